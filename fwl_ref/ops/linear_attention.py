"""Strictly causal linear attention with a decaying mask, in three forms.

    o_t = sum_{s<t} keep^{t-s-1} (q_t . k_s) v_s  =  q_t S_t          S_{t+1} = keep S_t + k_t v_t^T

Reading is *strict*: token t reads what was written before it, never its own value. ``keep = 1 -
lambda`` is what is left of the memory after one token; ``keep = 1`` is plain (undecayed) linear
attention. The state S has one row per key channel.

    parallel     one masked product over all pairs: T^2 work, no loop
    chunked      the parallel form on each chunk, the state carried between them: what one runs
    recurrent    the definition, one token at a time: what one checks against

An exclusive cumulative sum is the case q = k = 1. It is *not* computed as cumsum(v) - v, which
leaks v_t into token t by rounding. Neither does a future that is not finite reach the past
(``ops/common.py``). The backward pass of ``o = (q k^T * M) v`` is three more linear attentions, two
of them anti-causal.
"""

from __future__ import annotations

from typing import NamedTuple

from ..backend import Array, device, namespace
from .common import anticausal_product, causal_product, causal_scores, chunk_slices, in_a_row

ALONE = 256  # tokens
SHORT = 64  # tokens: of sums over the past, whose state is as small as a token


class LinearAttentionResidual(NamedTuple):
    q: Array  # (B,T,K)
    k: Array  # (B,T,K)
    v: Array  # (B,T,E)
    keep: Array  # () what one token leaves of the memory, 1 - lambda
    state: Array | None  # (B,K,E) what was in memory before the first token; None = empty
    scores: Array  # (B,T,T) q_t . k_s for s < t, before they fade: few numbers beside those of q


class RecurrentResidual(NamedTuple):
    q: Array  # (B,T,K)
    k: Array  # (B,T,K)
    v: Array  # (B,T,E)
    keep: Array  # ()
    state: Array | None  # (B,K,E)


class PastSumResidual(NamedTuple):
    out: Array  # (B,T,E) what keep multiplies on the way from each token to the next
    keep: Array  # ()
    carried: bool  # whether a state came in


class Decay(NamedTuple):
    """Powers of ``keep`` over one chunk of L tokens, or their derivatives by ``keep``."""

    read: Array  # (L,1) keep^i: what is left of the incoming state when token i reads
    mask: Array  # (L,L) keep^(i-j-1) for j < i, else 0
    write: Array  # (L,1) keep^(L-1-j): what is left of token j's write at the end
    whole: Array  # () keep^L


def linear_attention_fwd(
    q: Array, k: Array, v: Array, keep: Array, state: Array | None = None
) -> tuple[tuple[Array, Array], LinearAttentionResidual]:
    """(B,T,K),(B,T,K),(B,T,E),(),(B,K,E)->(B,T,E),(B,K,E)   parallel form   (L.1)"""
    namespace(q, k, v, keep, state)
    decay = _decay(keep, q.shape[1])
    out, scores = _read(q, k, v, state, decay)
    res = LinearAttentionResidual(q, k, v, keep, state, scores)
    return (out, _written(k, v, state, decay)), res


def linear_attention_bwd(
    dout: Array, dstate_out: Array | None, res: LinearAttentionResidual
) -> tuple[Array, ...]:
    """Adjoint of linear_attention_fwd; ``dstate_out`` None: no final state was used.   (L.2)"""
    length = res.q.shape[1]
    return _bwd(dout, dstate_out, res, _decay(res.keep, length), _decay_slope(res.keep, length))


def _read(q: Array, k: Array, v: Array, state: Array | None, decay: Decay) -> tuple[Array, Array]:
    """(B,T,K),(B,T,K),(B,T,E),(B,K,E)->(B,T,E),(B,T,T)   what a chunk reads, and its scores"""
    xp = namespace(q, k, v, state)
    scores = causal_scores(q, k)  # (B,T,T)
    out = causal_product(scores * decay.mask, v)  # (B,T,E)
    if state is not None:
        out += xp.matmul(q * decay.read, state)  # (B,T,E)
    return out, scores


def _written(k: Array, v: Array, state: Array | None, decay: Decay) -> Array:
    """(B,T,K),(B,T,E),(B,K,E)->(B,K,E)   what a chunk leaves: the state after its last token"""
    xp = namespace(k, v)
    new = xp.matmul(xp.matrix_transpose(k * decay.write), v)  # (B,K,E)
    if state is not None:
        new += decay.whole * state
    return new


def _bwd(
    dout: Array,
    dstate_out: Array | None,
    res: LinearAttentionResidual,
    decay: Decay,
    slope: Decay,
) -> tuple[Array, ...]:
    """Adjoint of ``_read`` and, unless ``dstate_out`` is None, of ``_written``."""
    xp = namespace(dout, res.q)
    q, k, v, _, state, scores = res
    # forward: out = (q k^T * mask) v
    dmasked = causal_scores(dout, v)  # (B,T,T)
    dkeep = xp.sum(scores * dmasked * slope.mask)  # ()
    scores, dmasked = scores * decay.mask, dmasked * decay.mask
    dq = causal_product(dmasked, k)  # (B,T,K)
    dk = anticausal_product(dmasked, q)  # (B,T,K)
    dv = anticausal_product(scores, dout)  # (B,T,E)
    dstate = None
    if state is not None:
        # forward: out += keep^i q state
        pulled = xp.matmul(dout, xp.matrix_transpose(state))  # (B,T,K)
        dq += decay.read * pulled
        dkeep = dkeep + xp.sum(slope.read * pulled * q)
        dstate = xp.matmul(xp.matrix_transpose(q * decay.read), dout)  # (B,K,E)
    if dstate_out is not None:
        # forward: state_out = sum_j keep^(L-1-j) k_j v_j^T
        pulled = xp.matmul(v, xp.matrix_transpose(dstate_out))  # (B,T,K)
        dk += decay.write * pulled
        dv += xp.matmul(k * decay.write, dstate_out)  # (B,T,E)
        dkeep = dkeep + xp.sum(slope.write * pulled * k)
        if state is not None:
            # forward: state_out += keep^L state
            dstate += decay.whole * dstate_out
            dkeep = dkeep + slope.whole * xp.sum(state * dstate_out)
    return dq, dk, dv, dkeep, dstate


def linear_attention_chunked_fwd(
    q: Array,
    k: Array,
    v: Array,
    keep: Array,
    state: Array | None = None,
    chunk: int | None = None,
    carry: bool = True,
) -> tuple[tuple[Array, Array | None], tuple[LinearAttentionResidual, ...]]:
    """(B,T,K),(B,T,K),(B,T,E),(),(B,K,E)->(B,T,E),(B,K,E)
    the parallel form on chunks of any size   (L.3)

    ``chunk`` None is one chunk. Without ``carry`` nobody reads the final state: it is None, and
    chunks may be larger. Raises ValueError if ``chunk`` is below 1.
    """
    namespace(q, k, v, keep, state)
    outs, residuals = [], []
    length = q.shape[1]
    if not carry and chunk is not None:
        chunk = chunk_alone(chunk, length, q.shape[2], v.shape[2])
    parts = chunk_slices(length, chunk)
    decays = {n: _decay(keep, n) for n in {p.stop - p.start for p in parts}}  # two at most
    for part in parts:
        now = q[:, part, :], k[:, part, :], v[:, part, :]
        decay = decays[part.stop - part.start]
        out, scores = _read(*now, state, decay)
        outs.append(out)  # (B,S,E)
        residuals.append(LinearAttentionResidual(*now, keep, state, scores))
        wanted = carry or part.stop < length
        state = _written(*now[1:], state, decay) if wanted else None
    return (in_a_row(outs), state), tuple(residuals)


def chunk_alone(chunk: int, length: int, keys: int, values: int) -> int:
    """The size of chunks if no state goes on from the last: few chunks then have few states.

    Two chunks of T/2 tokens form T K E products for the state between them, one of T tokens forms
    T/2 T/2 (K + E) for the pairs across. So a text of at most 4 K E / (K + E) tokens is one chunk;
    for keys of D channels and values of 4 D that is 3.2 D. In training both take 7 % of a step off.
    """
    whole = length * (keys + values) <= 4 * keys * values
    return chunk if chunk < 1 else max(chunk, length if whole else ALONE)


def linear_attention_chunked_bwd(
    dout: Array, dstate_out: Array | None, res: tuple[LinearAttentionResidual, ...]
) -> tuple[Array, ...]:
    """Adjoint of linear_attention_chunked_fwd: the chunks in reverse, and so the state.   (L.4)"""
    dqs, dks, dvs, dkeep, stop, dstate = [], [], [], 0, dout.shape[1], dstate_out
    keep = res[0].keep
    tables = {n: (_decay(keep, n), _decay_slope(keep, n)) for n in {p.q.shape[1] for p in res}}
    for part in reversed(res):
        start = stop - part.q.shape[1]
        now = dout[:, start:stop, :]  # (B,S,E)
        dq, dk, dv, dkeep_part, dstate = _bwd(now, dstate, part, *tables[stop - start])
        dqs.append(dq)
        dks.append(dk)
        dvs.append(dv)
        dkeep = dkeep + dkeep_part
        stop = start
    dq, dk, dv = (in_a_row(parts[::-1]) for parts in (dqs, dks, dvs))
    return dq, dk, dv, dkeep, dstate


def linear_attention_recurrent_fwd(
    q: Array, k: Array, v: Array, keep: Array, state: Array | None = None
) -> tuple[tuple[Array, Array], RecurrentResidual]:
    """(B,T,K),(B,T,K),(B,T,E),(),(B,K,E)->(B,T,E),(B,K,E)   the definition   (L.5)"""
    xp = namespace(q, k, v, keep, state)
    start = state
    if state is None:
        state = xp.zeros((q.shape[0], q.shape[2], v.shape[2]), dtype=q.dtype, device=device(q))
    outs = [xp.zeros_like(v[:, :0, :])]
    for t in range(q.shape[1]):
        outs.append(xp.matmul(q[:, t : t + 1, :], state))  # (B,1,E) read, then write
        state = keep * state + xp.matmul(k[:, t, :, None], v[:, t, None, :])  # (B,K,E)
    return (xp.concat(outs, axis=1), state), RecurrentResidual(q, k, v, keep, start)


def linear_attention_recurrent_bwd(
    dout: Array, dstate_out: Array | None, res: RecurrentResidual
) -> tuple[Array, ...]:
    """Adjoint of linear_attention_recurrent_fwd: backpropagation through time.   (L.6)"""
    xp = namespace(dout, res.q)
    q, k, v, keep, start = res
    state = start
    if state is None:
        state = xp.zeros((q.shape[0], q.shape[2], v.shape[2]), dtype=q.dtype, device=device(q))
    states = []
    for t in range(q.shape[1]):
        states.append(state)
        state = keep * state + xp.matmul(k[:, t, :, None], v[:, t, None, :])  # (B,K,E)
    dstate = xp.zeros_like(state) if dstate_out is None else dstate_out  # (B,K,E)
    dqs, dks, dvs, dkeep = [q[:, :0, :]], [k[:, :0, :]], [v[:, :0, :]], xp.zeros_like(keep)
    for t in reversed(range(q.shape[1])):
        # forward: state = keep state + k v^T
        dkeep = dkeep + xp.sum(dstate * states[t])
        dks.append(xp.matmul(v[:, t, None, :], xp.matrix_transpose(dstate)))  # (B,1,K)
        dvs.append(xp.matmul(k[:, t, None, :], dstate))  # (B,1,E)
        dstate = keep * dstate
        # forward: out = q state
        dqs.append(xp.matmul(dout[:, t, None, :], xp.matrix_transpose(states[t])))  # (B,1,K)
        dstate = dstate + xp.matmul(q[:, t, :, None], dout[:, t, None, :])  # (B,K,E)
    dq, dk, dv = (xp.concat(parts[::-1], axis=1) for parts in (dqs, dks, dvs))
    return dq, dk, dv, dkeep, None if start is None else dstate


def past_sum_fwd(
    v: Array, keep: Array, state: Array | None = None
) -> tuple[tuple[Array, Array], PastSumResidual]:
    """(B,T,E),(),(B,E)->(B,T,E),(B,E)   q = k = 1: out_{t+1} = keep out_t + v_t   (L.7)

    Without scores and in short chunks: fewer products than the general form by a factor of three,
    in the backward pass of six. In training it takes 2 % of a step off.
    """
    xp = namespace(v, keep, state)
    start = state
    if start is None:
        start = xp.zeros((v.shape[0], v.shape[2]), dtype=v.dtype, device=device(v))  # (B,E)
    sums = [start[:, None, :]]  # (B,1,E) what token 0 reads; then what each next token reads
    parts = chunk_slices(v.shape[1], SHORT)
    decays = {n: _decay(keep, n + 1) for n in {p.stop - p.start for p in parts}}  # two at most
    for part in parts:
        decay = decays[part.stop - part.start]
        # the next token reads this one too: the mask of one token more, without its first row
        new = causal_product(decay.mask[None, 1:, :-1], v[:, part, :], own=True)  # (B,S,E)
        new += decay.read[1:, :] * sums[-1][:, -1:, :]
        sums.append(new)
    every = in_a_row(sums)  # (B,T+1,E)
    out = every[:, :-1, :]  # (B,T,E)
    return (out, every[:, -1, :]), PastSumResidual(out, keep, state is not None)


def past_sum_bwd(
    dout: Array, dstate_out: Array | None, res: PastSumResidual
) -> tuple[Array, Array, Array | None]:
    """Adjoint of past_sum_fwd: the same sum with time reversed.   (L.8)"""
    xp = namespace(dout, res.out)
    # forward: out_{t+1} = keep out_t + v_t
    (back, dstate), _ = past_sum_fwd(xp.flip(dout, axis=1), res.keep, dstate_out)
    dv = xp.flip(back, axis=1)  # (B,T,E) the gradient of out_{t+1}, all later ones counted
    return dv, xp.sum(dv * res.out), dstate if res.carried else None


def _decay(keep: Array, length: int) -> Decay:
    """The powers of keep; powers, never ratios of cumulative products, which overflow."""
    xp = namespace(keep)
    power = xp.pow(keep, xp.arange(length + 1, dtype=keep.dtype, device=device(keep)))  # (L+1,)
    return _arrange(power, length)


def _decay_slope(keep: Array, length: int) -> Decay:
    """d/d keep of every entry of _decay: n keep^(n-1)."""
    xp = namespace(keep)
    n = xp.arange(length + 1, dtype=keep.dtype, device=device(keep))  # (L+1,)
    slope = n * xp.pow(keep, xp.where(n > 0, n - 1, xp.zeros_like(n)))  # (L+1,)
    return _arrange(slope, length)


def _arrange(power: Array, length: int) -> Decay:
    """Lay a sequence f(0..L) out as the four places where a power of keep occurs.

    The mask has L rows of [0, ..., 0, f(L-1), ..., f(0)] over and over, cut one entry short: so
    each row begins one entry earlier, and the first L columns are f(i-j-1) below the diagonal.
    """
    xp = namespace(power)
    falling = xp.flip(power[:length])  # (L,)
    row = xp.concat([xp.zeros_like(falling), falling])  # (2L,)
    flat = xp.reshape(xp.broadcast_to(row, (length, 2 * length)), (-1,))  # (2LL,)
    width = max(2 * length - 1, 0)
    mask = xp.reshape(flat[: length * width], (length, width))[:, :length]  # (L,L)
    return Decay(power[:length, None], mask, falling[:, None], power[length])
