"""Linear attention with decay (RetNet, the scalar decay of Mamba-2): SGD with weight decay.

    loss       l(S) = -<v, k S> + (1 - gamma) / 2 |S|^2
    gradient   l(S + C) = l(S) - <v, k C> + (1 - gamma) <S, C> + O(C^2) for a change C,
               so  dl/dS = -k^T v + (1 - gamma) S
    update     S_{t+1} = S_t - dl/dS = gamma_t S_t + k_t^T v_t

Exactly online gradient descent with step size 1, where the regulariser pulls the memory towards 0.
gamma is a number per token, in (0,1] if memories fade; RetNet has a constant, Mamba-2 learns it.
State: S (B,K,E).

The update is still a sum of writes, each scaled by the decays that came after it, so the parallel
form is linear attention with a mask: G_{t,s+1} = gamma_{s+1} ... gamma_{t-1} if the read is strict,
one factor more, gamma_t, if it is inclusive. The mask is formed as products over the gap; a
ratio of cumulative products overflows as soon as a chunk forgets much.

Forms: recurrent, the definition, 2 K E multiply-adds per token, any gamma; chunked, 2 K E + S (K +
E) and S for the mask. A gamma of 0 resets the memory, in both.

Sun et al. 2023 (RetNet, arXiv 2307.08621); Dao and Gu 2024 (Mamba-2, arXiv 2405.21060).
"""

from __future__ import annotations

from typing import NamedTuple

from ..backend import Array, namespace
from .common import (
    apply,
    asked_for,
    check_rule,
    chunks_bwd,
    chunks_fwd,
    each,
    fades,
    fades_bwd,
    outer,
    reads,
    reads_bwd,
    stack,
    start_state,
    sums,
    sums_bwd,
)


class DecayResidual(NamedTuple):
    q: Array  # (B,T,K)
    k: Array  # (B,T,K)
    v: Array  # (B,T,E)
    gamma: Array  # (B,T)
    states: Array  # (B,T+1,K,E) all states of the recurrent form; (B,1,K,E) the first of a chunk
    read: str


def decay_loss(S: Array, k: Array, v: Array, gamma: Array) -> Array:
    """(B,K,E),(B,K),(B,E),(B)->(B)   l = -<v, k S> + (1 - gamma) / 2 |S|^2   (U.14)"""
    xp = namespace(S, k, v, gamma)
    return 0.5 * (1 - gamma) * xp.sum(S * S, axis=(1, 2)) - xp.sum(apply(k, S) * v, axis=-1)  # (B,)


def decay_gradient(S: Array, k: Array, v: Array, gamma: Array) -> Array:
    """(B,K,E),(B,K),(B,E),(B)->(B,K,E)   dl/dS = -k^T v + (1 - gamma) S   (U.14)"""
    return each(1 - gamma) * S - outer(k, v)


def decay_recurrent_fwd(
    q: Array, k: Array, v: Array, gamma: Array, state: Array | None = None, *, read: str,
) -> tuple[tuple[Array, Array], DecayResidual]:  # fmt: skip
    """(B,T,K),(B,T,K),(B,T,E),(B,T),(B,K,E)->(B,T,E),(B,K,E)
    S_{t+1} = gamma_t S_t + k_t^T v_t   (U.15)

    ``read`` "strict": o_t = q_t S_t; "inclusive": o_t = q_t S_{t+1}. ``state`` None is an empty
    memory. Raises ValueError for another read or shapes that do not fit.
    """
    xp = namespace(q, k, v, gamma, state)
    check_rule(
        read, q=(q, "BTK"), k=(k, "BTK"), v=(v, "BTE"), gamma=(gamma, "BT"), state=(state, "BKE")
    )
    states = [start_state(state, k, v)]
    for t in range(q.shape[1]):
        S = states[t]
        states.append(S - decay_gradient(S, k[:, t, :], v[:, t, :], gamma[:, t]))  # (B,K,E)
    states = xp.stack(states, axis=1)  # (B,T+1,K,E)
    return (reads(q, states, read), states[:, -1, ...]), DecayResidual(q, k, v, gamma, states, read)


def decay_recurrent_bwd(
    dout: Array, dstate_out: Array | None, res: DecayResidual
) -> tuple[Array, ...]:
    """Adjoint of decay_recurrent_fwd: backpropagation through time.   (U.16)

    Returns dq, dk, dv, dgamma, dstate.
    """
    q, k, v, gamma, states, read = asked_for(dout, dstate_out, res)
    xp = namespace(dout, q)
    # forward: out = reads(q, states)
    dq, dread = reads_bwd(dout, q, states, read)  # (B,T,K), (B,T+1,K,E)
    dS = dread[:, -1, ...] if dstate_out is None else dread[:, -1, ...] + dstate_out  # (B,K,E)
    dks, dvs, dgammas = [], [], []
    for t in reversed(range(q.shape[1])):
        # forward: S' = gamma S + k^T v
        dgammas.append(xp.sum(dS * states[:, t, ...], axis=(1, 2)))  # (B,)
        dks.append(apply(v[:, t, :], xp.matrix_transpose(dS)))  # (B,K)
        dvs.append(apply(k[:, t, :], dS))  # (B,E)
        dS = each(gamma[:, t]) * dS + dread[:, t, ...]
    return dq, stack(dks[::-1], k), stack(dvs[::-1], v), stack(dgammas[::-1], gamma), dS


def decay_chunked_fwd(
    q: Array, k: Array, v: Array, gamma: Array, state: Array | None = None,
    chunk: int | None = None, *, read: str,
) -> tuple[tuple[Array, Array], tuple]:  # fmt: skip
    """(B,T,K),(B,T,K),(B,T,E),(B,T),(B,K,E)->(B,T,E),(B,K,E)
    o = (q k^T * G) v + G_0 q S_0, chunk after chunk   (U.17)

    ``chunk`` None is one chunk. Raises ValueError as ``decay_recurrent_fwd`` does, or if ``chunk``
    is below 1.
    """
    namespace(q, k, v, gamma, state)
    check_rule(
        read, q=(q, "BTK"), k=(k, "BTK"), v=(v, "BTE"), gamma=(gamma, "BT"), state=(state, "BKE")
    )
    return chunks_fwd(
        lambda *tokens: _chunk_fwd(*tokens, read), (q, k, v, gamma), start_state(state, k, v), chunk
    )


def decay_chunked_bwd(
    dout: Array, dstate_out: Array | None, res: tuple[DecayResidual, ...]
) -> tuple[Array, ...]:
    """Adjoint of decay_chunked_fwd. Returns dq, dk, dv, dgamma, dstate.   (U.18)"""
    return chunks_bwd(_chunk_bwd, dout, dstate_out, res)


def _chunk_fwd(q: Array, k: Array, v: Array, gamma: Array, state: Array, read: str):
    out = sums(q, k, v, fades(gamma), state, read)  # (B,L,E), (B,K,E)
    return out, DecayResidual(q, k, v, gamma, state[:, None, ...], read)


def _chunk_bwd(dout: Array, dstate_out: Array | None, res: DecayResidual):
    q, k, v, gamma, states, read = res
    fade = fades(gamma)  # (B,L+1,L+1)
    # forward: out, state_out = sums(q, k, v)
    dq, dk, dv, dfade, dstate = sums_bwd(dout, dstate_out, q, k, v, fade, states[:, 0, ...], read)
    # forward: fade = fades(gamma)
    return dq, dk, dv, fades_bwd(dfade, fade), dstate
