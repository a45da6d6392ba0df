"""Linear attention with any strictly causal mask; chunked and recurrent where the mask comes from a
few memory slots.

    any mask M, parallel form only     o_t = sum_{s<t} M_ts (q_t . k_s) v_s
    N slots, three forms               o_t = q_t (read_t . S_t)
                                       S_{t+1} = keep_t S_t + write_t (k_t^T v_t)

A slot is a memory matrix (K,E) and S_t a stack of N of them. ``keep_t`` (N,N) says what token t
leaves of the slots, ``write_t`` (N,) into which slots it writes, ``read_t`` (N,) which slots it
reads; reading comes first. Unrolled, this is the first line with

    M_ts = read_t keep_{t-1} ... keep_{s+1} write_s

so N slots are linear attention with a mask whose blocks below the diagonal have rank N at most. One
slot with a constant ``keep`` is ``linear_attention``. In shapes, N is the number of slots and L the
length of a chunk.

Mask and slots are data: they have no gradient. As in linear attention, what is not finite reaches
the tokens after it and no others (``ops/common.py``).
"""

from __future__ import annotations

from typing import NamedTuple

from ..backend import Array, device, is_host, namespace
from .common import anticausal_product, before, causal_product, chunk_slices, masked


class MaskedAttentionResidual(NamedTuple):
    q: Array  # (B,T,K)
    k: Array  # (B,T,K)
    v: Array  # (B,T,E)
    mask: Array  # (T,T)


class Response(NamedTuple):
    """What a chunk of L tokens makes of a unit impulse in each incoming slot and each write."""

    read: Array  # (L,N) what token i reads of incoming slot n
    mask: Array  # (L,L) what token i reads of token j's write; 0 for j >= i
    write: Array  # (L,N) what is left of token j's write in outgoing slot n
    whole: Array  # (N,N) what is left of incoming slot n in outgoing slot m, at [m, n]


class ChunkResidual(NamedTuple):
    masked: MaskedAttentionResidual
    state: Array | None  # (B,N,K,E) the slots before the first token; None = empty
    response: Response  # kept because it takes a loop over tokens


class RecurrentResidual(NamedTuple):
    q: Array  # (B,T,K)
    k: Array  # (B,T,K)
    v: Array  # (B,T,E)
    keep: Array  # (T,N,N)
    write: Array  # (T,N)
    read: Array  # (T,N)
    state: Array | None  # (B,N,K,E)


def masked_attention_fwd(
    q: Array, k: Array, v: Array, mask: Array
) -> tuple[Array, MaskedAttentionResidual]:
    """(B,T,K),(B,T,K),(B,T,E),(T,T)->(B,T,E)   parallel form, any strictly causal mask   (O.14)

    Raises ValueError if the mask lets a token read itself or its future (``check_strict``).
    """
    xp = namespace(q, k, v, mask)
    check_strict(mask)
    scores = _scored(xp.matmul(q, xp.matrix_transpose(k)), mask)  # (B,T,T)
    return causal_product(scores, v), MaskedAttentionResidual(q, k, v, mask)


def masked_attention_bwd(dout: Array, res: MaskedAttentionResidual) -> tuple[Array, ...]:
    """Adjoint of masked_attention_fwd with respect to q, k, v.   (O.15)"""
    xp = namespace(dout, res.q)
    q, k, v, mask = res
    # forward: out = (q k^T * mask) v
    scores = _scored(xp.matmul(q, xp.matrix_transpose(k)), mask)  # (B,T,T)
    dscores = _scored(xp.matmul(dout, xp.matrix_transpose(v)), mask)  # (B,T,T)
    dq = causal_product(dscores, k)  # (B,T,K)
    dk = anticausal_product(dscores, q)  # (B,T,K)
    dv = anticausal_product(scores, dout)  # (B,T,E)
    return dq, dk, dv


def masked_attention_chunked_fwd(
    q: Array,
    k: Array,
    v: Array,
    keep: Array,
    write: Array,
    read: Array,
    state: Array | None = None,
    chunk: int | None = None,
) -> tuple[tuple[Array, Array], tuple[ChunkResidual, ...]]:
    """(B,T,K),(B,T,K),(B,T,E),(T,N,N),(T,N),(T,N),(B,N,K,E)->(B,T,E),(B,N,K,E)
    N slots, in chunks of any size   (O.16)

    ``chunk`` None is one chunk: the parallel form with a state. Raises ValueError if ``chunk`` is
    below 1.
    """
    xp = namespace(q, k, v, keep, write, read, state)
    outs, residuals = [], []
    for part in chunk_slices(q.shape[1], chunk):
        tokens = q[:, part, :], k[:, part, :], v[:, part, :]
        response = _respond(keep[part, :, :], write[part, :], read[part, :])
        out, within = masked_attention_fwd(*tokens, response.mask)  # (B,L,E)
        residuals.append(ChunkResidual(within, state, response))
        kept = _spread(within.k, response.write)  # (B,L,NK)
        new = xp.matmul(xp.matrix_transpose(kept), within.v)  # (B,NK,E)
        if state is not None:
            out += xp.matmul(_spread(within.q, response.read), _flat(state))  # (B,L,E)
            new += _flat(_mix(response.whole, state))  # (B,NK,E)
        state = xp.reshape(new, (q.shape[0], read.shape[1], q.shape[2], v.shape[2]))  # (B,N,K,E)
        outs.append(out)
    return (xp.concat(outs, axis=1), state), tuple(residuals)


def masked_attention_chunked_bwd(
    dout: Array, dstate_out: Array | None, res: tuple[ChunkResidual, ...]
) -> tuple[Array, ...]:
    """Adjoint of masked_attention_chunked_fwd: dq, dk, dv, dstate; the chunks in reverse.   (O.17)

    ``dstate_out`` None if the final slots were not used.
    """
    xp = namespace(dout)
    dqs, dks, dvs, stop = [], [], [], dout.shape[1]
    for within, state, response in reversed(res):
        start = stop - within.q.shape[1]
        part, dstate = dout[:, start:stop, :], None  # (B,L,E)
        # forward: out = (q k^T * mask) v
        dq, dk, dv = masked_attention_bwd(part, within)
        if state is not None:
            # forward: out += sum_n read_n q state_n
            dasked = xp.matmul(part, xp.matrix_transpose(_flat(state)))  # (B,L,NK)
            dq += _gather(dasked, response.read)  # (B,L,K)
            asked = _spread(within.q, response.read)  # (B,L,NK)
            dflat = xp.matmul(xp.matrix_transpose(asked), part)  # (B,NK,E)
            dstate = xp.reshape(dflat, state.shape)  # (B,N,K,E)
        if dstate_out is not None:
            # forward: state_out_n = sum_j write_jn k_j v_j^T
            dkept = xp.matmul(within.v, xp.matrix_transpose(_flat(dstate_out)))  # (B,L,NK)
            dk += _gather(dkept, response.write)  # (B,L,K)
            dv += xp.matmul(_spread(within.k, response.write), _flat(dstate_out))  # (B,L,E)
            if state is not None:
                # forward: state_out += whole state
                dstate += _mix(xp.matrix_transpose(response.whole), dstate_out)
        dqs.append(dq)
        dks.append(dk)
        dvs.append(dv)
        stop, dstate_out = start, dstate
    dq, dk, dv = (xp.concat(parts[::-1], axis=1) for parts in (dqs, dks, dvs))
    return dq, dk, dv, dstate_out


def masked_attention_recurrent_fwd(
    q: Array, k: Array, v: Array, keep: Array, write: Array, read: Array, state: Array | None = None
) -> tuple[tuple[Array, Array], RecurrentResidual]:
    """(B,T,K),(B,T,K),(B,T,E),(T,N,N),(T,N),(T,N),(B,N,K,E)->(B,T,E),(B,N,K,E)
    the definition, token by token   (O.18)
    """
    xp = namespace(q, k, v, keep, write, read, state)
    res = RecurrentResidual(q, k, v, keep, write, read, state)
    state, outs = _start(res), [xp.zeros_like(v[:, :0, :])]
    for t in range(q.shape[1]):
        seen = _mix(read[t : t + 1, :], state)[:, 0, :, :]  # (B,K,E) read, then write
        outs.append(xp.matmul(q[:, t : t + 1, :], seen))  # (B,1,E)
        state = _written(state, t, res)
    return (xp.concat(outs, axis=1), state), res


def masked_attention_recurrent_bwd(
    dout: Array, dstate_out: Array | None, res: RecurrentResidual
) -> tuple[Array, ...]:
    """Adjoint of masked_attention_recurrent_fwd: dq, dk, dv, dstate; through time.   (O.19)"""
    xp = namespace(dout, res.q)
    q, k, v, keep, write, read, start = res
    state, states = _start(res), []
    for t in range(q.shape[1]):
        states.append(state)
        state = _written(state, t, res)
    dstate = xp.zeros_like(state) if dstate_out is None else dstate_out  # (B,N,K,E)
    dqs, dks, dvs = [q[:, :0, :]], [k[:, :0, :]], [v[:, :0, :]]
    for t in reversed(range(q.shape[1])):
        # forward: state = keep state + write (k^T v)
        douter = _mix(write[t : t + 1, :], dstate)[:, 0, :, :]  # (B,K,E)
        dks.append(xp.matmul(v[:, t, None, :], xp.matrix_transpose(douter)))  # (B,1,K)
        dvs.append(xp.matmul(k[:, t, None, :], douter))  # (B,1,E)
        dstate = _mix(xp.matrix_transpose(keep[t, :, :]), dstate)
        # forward: out = q (read . state)
        seen = _mix(read[t : t + 1, :], states[t])[:, 0, :, :]  # (B,K,E)
        dqs.append(xp.matmul(dout[:, t, None, :], xp.matrix_transpose(seen)))  # (B,1,K)
        dseen = xp.matmul(q[:, t, :, None], dout[:, t, None, :])  # (B,K,E)
        dstate = dstate + read[t, :, None, None] * dseen[:, None, :, :]  # (B,N,K,E)
    dq, dk, dv = (xp.concat(parts[::-1], axis=1) for parts in (dqs, dks, dvs))
    return dq, dk, dv, None if start is None else dstate


def check_strict(mask: Array) -> None:
    """Raises ValueError naming the first entry on or above the diagonal that is not 0.

    A token reads what was written before it. Looks at host arrays only; on a device such entries
    count as 0.
    """
    if mask.ndim != 2 or mask.shape[0] != mask.shape[1]:
        raise ValueError(
            f"a mask must have shape (T,T), one row per reading token, got {tuple(mask.shape)}"
        )
    if not is_host(mask):
        return
    xp = namespace(mask)
    t, s = xp.nonzero(xp.triu(mask != 0))
    if t.shape[0]:
        raise ValueError(
            "a mask must be strictly causal, 0 on and above the diagonal, got "
            f"M[{int(t[0])},{int(s[0])}] = {mask[t[0], s[0]]}: token {int(t[0])} would read what "
            f"token {int(s[0])} writes with its own label; shift the mask down by one row, or cut "
            "it with tril"
        )


def _scored(scores: Array, mask: Array) -> Array:
    """(B,L,L),(L,L)->(B,L,L)
    scores times the mask, and 0 on and above the diagonal whatever stands there
    """
    return masked(scores * mask, before(mask.shape[0], mask))


def _start(res: RecurrentResidual) -> Array:
    """(B,N,K,E)   the slots that come in; None = empty"""
    if res.state is not None:
        return res.state
    shape = (res.q.shape[0], res.read.shape[1], res.q.shape[2], res.v.shape[2])
    return namespace(res.q).zeros(shape, dtype=res.q.dtype, device=device(res.q))


def _written(state: Array, t: int, res: RecurrentResidual) -> Array:
    """(B,N,K,E)->(B,N,K,E)   the slots after token t"""
    outer = res.k[:, t, :, None] * res.v[:, t, None, :]  # (B,K,E)
    return _mix(res.keep[t, :, :], state) + res.write[t, :, None, None] * outer[:, None, :, :]


def _respond(keep: Array, write: Array, read: Array) -> Response:
    """(L,N,N),(L,N),(L,N)->Response
    run the slots on unit impulses: N incoming slots, then L writes   (O.16)
    """
    xp = namespace(keep, write, read)
    length, slots = read.shape
    impulse = xp.eye(slots + length, dtype=read.dtype, device=device(read))  # (N+L,N+L)
    now, impulse = impulse[:slots, :], impulse[slots:, :]  # (N,N+L) the slots, (L,N+L)
    rows = [now[:0, :]]
    for i in range(length):
        rows.append(xp.matmul(read[i : i + 1, :], now))  # (1,N+L) read, then write
        now = xp.matmul(keep[i, :, :], now) + write[i, :, None] * impulse[i, None, :]  # (N,N+L)
    seen = xp.concat(rows, axis=0)  # (L,N+L)
    write = xp.matrix_transpose(now[:, slots:])  # (L,N)
    return Response(seen[:, :slots], seen[:, slots:], write, now[:, :slots])


def _mix(weights: Array, state: Array) -> Array:
    """(M,N),(B,N,K,E)->(B,M,K,E)   sums of slots"""
    xp = namespace(weights, state)
    batch, slots, width, values = state.shape
    mixed = xp.matmul(weights, xp.reshape(state, (batch, slots, width * values)))  # (B,M,KE)
    return xp.reshape(mixed, (batch, weights.shape[0], width, values))


def _spread(a: Array, weights: Array) -> Array:
    """(B,L,K),(L,N)->(B,L,NK)   a copy of a per slot: N slots of K keys are one of NK keys"""
    xp = namespace(a, weights)
    copies = weights[:, :, None] * a[:, :, None, :]  # (B,L,N,K)
    return xp.reshape(copies, (*a.shape[:2], weights.shape[1] * a.shape[2]))


def _gather(da: Array, weights: Array) -> Array:
    """(B,L,NK),(L,N)->(B,L,K)   adjoint of _spread with respect to a"""
    xp = namespace(da, weights)
    slots = weights.shape[1]
    copies = xp.reshape(da, (*da.shape[:2], slots, da.shape[2] // slots))  # (B,L,N,K)
    return xp.sum(weights[:, :, None] * copies, axis=2)


def _flat(state: Array) -> Array:
    """(B,N,K,E)->(B,NK,E)"""
    xp = namespace(state)
    batch, slots, width, values = state.shape
    return xp.reshape(state, (batch, slots * width, values))
