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

from ..backend import Array, as_index, device, namespace
from .common import anticausal_product, before, causal_product, chunk_slices, masked


class LinearAttentionResidual(NamedTuple):
    q: Array  # (B,T,K)
    k: Array  # (B,T,K)
    v: Array  # (B,T,E)
    keep: Array  # () what one token leaves of the memory, 1 - lambda
    state: Array | None  # (B,K,E) what was in memory before the first token; None = empty


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
    xp = namespace(q, k, v, keep, state)
    decay = _decay(keep, q.shape[1])
    scores = _faded(xp.matmul(q, xp.matrix_transpose(k)), decay)  # (B,T,T)
    out = causal_product(scores, v)  # (B,T,E)
    state_out = xp.matmul(xp.matrix_transpose(k * decay.write), v)  # (B,K,E)
    if state is not None:
        out += xp.matmul(q * decay.read, state)  # (B,T,E)
        state_out += decay.whole * state  # (B,K,E)
    return (out, state_out), LinearAttentionResidual(q, k, v, keep, state)


def linear_attention_bwd(
    dout: Array, dstate_out: Array | None, res: LinearAttentionResidual
) -> tuple[Array, ...]:
    """Adjoint of linear_attention_fwd; ``dstate_out`` None: no final state was used.   (L.2)"""
    xp = namespace(dout, res.q)
    q, k, v, keep, state = res
    decay, slope = _decay(keep, q.shape[1]), _decay_slope(keep, q.shape[1])
    # forward: out = (q k^T * mask) v
    scores = xp.matmul(q, xp.matrix_transpose(k))  # (B,T,T)
    dmasked = xp.matmul(dout, xp.matrix_transpose(v))  # (B,T,T)
    dkeep = xp.sum(_faded(scores * dmasked, slope))  # ()
    scores, dmasked = _faded(scores, decay), _faded(dmasked, decay)
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
    q: Array, k: Array, v: Array, keep: Array, state: Array | None = None, chunk: int | None = None
) -> tuple[tuple[Array, Array], tuple[LinearAttentionResidual, ...]]:
    """(B,T,K),(B,T,K),(B,T,E),(),(B,K,E)->(B,T,E),(B,K,E)
    the parallel form on chunks of any size   (L.3)

    ``chunk`` None is one chunk. Raises ValueError if ``chunk`` is below 1.
    """
    xp = namespace(q, k, v, keep, state)
    outs, residuals = [], []
    for part in chunk_slices(q.shape[1], chunk):
        tokens = q[:, part, :], k[:, part, :], v[:, part, :]
        (out, state), res = linear_attention_fwd(*tokens, keep, state)
        outs.append(out)  # (B,S,E)
        residuals.append(res)
    return (xp.concat(outs, axis=1), state), tuple(residuals)


def linear_attention_chunked_bwd(
    dout: Array, dstate_out: Array | None, res: tuple[LinearAttentionResidual, ...]
) -> tuple[Array, ...]:
    """Adjoint of linear_attention_chunked_fwd: the chunks in reverse, and so the state.   (L.4)"""
    xp = namespace(dout)
    dqs, dks, dvs, dkeep, stop, dstate = [], [], [], 0, dout.shape[1], dstate_out
    for part in reversed(res):
        start = stop - part.q.shape[1]
        dq, dk, dv, dkeep_part, dstate = linear_attention_bwd(dout[:, start:stop, :], dstate, part)
        dqs.append(dq)
        dks.append(dk)
        dvs.append(dv)
        dkeep = dkeep + dkeep_part
        stop = start
    dq, dk, dv = (xp.concat(parts[::-1], axis=1) for parts in (dqs, dks, dvs))
    return dq, dk, dv, dkeep, dstate


def linear_attention_recurrent_fwd(
    q: Array, k: Array, v: Array, keep: Array, state: Array | None = None
) -> tuple[tuple[Array, Array], LinearAttentionResidual]:
    """(B,T,K),(B,T,K),(B,T,E),(),(B,K,E)->(B,T,E),(B,K,E)   the definition   (L.5)"""
    xp = namespace(q, k, v, keep, state)
    start = state
    if state is None:
        state = xp.zeros((q.shape[0], q.shape[2], v.shape[2]), dtype=q.dtype, device=device(q))
    outs = [xp.zeros_like(v[:, :0, :])]
    for t in range(q.shape[1]):
        outs.append(xp.matmul(q[:, t : t + 1, :], state))  # (B,1,E) read, then write
        state = keep * state + xp.matmul(k[:, t, :, None], v[:, t, None, :])  # (B,K,E)
    return (xp.concat(outs, axis=1), state), LinearAttentionResidual(q, k, v, keep, start)


def linear_attention_recurrent_bwd(
    dout: Array, dstate_out: Array | None, res: LinearAttentionResidual
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


def _faded(scores: Array, decay: Decay) -> Array:
    """(B,L,L)->(B,L,L)   scores times the mask, and 0 on and above the diagonal"""
    return masked(scores * decay.mask, before(scores.shape[1], scores))


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
    """Lay a sequence f(0..L) out as the four places where a power of keep occurs."""
    xp = namespace(power)
    i = xp.arange(length, device=device(power))  # (L,)
    gap = i[:, None] - i[None, :] - 1  # (L,L) tokens between write and read
    index = xp.reshape(xp.where(gap >= 0, gap, xp.zeros_like(gap)), (-1,))  # (L*L,)
    spread = xp.reshape(xp.take(power, as_index(index), axis=0), (length, length))  # (L,L)
    mask = xp.where(gap >= 0, spread, xp.zeros_like(spread))
    return Decay(power[:length, None], mask, xp.flip(power[:length])[:, None], power[length])
