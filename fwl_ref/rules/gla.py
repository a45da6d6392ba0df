"""Gated linear attention (GLA): SGD with a weight decay of its own for every key channel.

    loss       l(S) = -<v, k S> + 1/2 sum_c (1 - alpha_c) |S_c|^2      S_c: row of key channel c
    gradient   l(S + C) = l(S) - <v, k C> + sum_c (1 - alpha_c) <S_c, C_c> + O(C^2) for a change C,
               so  dl/dS = -k^T v + Diag(1 - alpha) S
    update     S_{t+1} = S_t - dl/dS = Diag(alpha_t) S_t + k_t^T v_t

Exactly online gradient descent with step size 1 and a diagonal regulariser. alpha (B,T,K) is a
number per token and key channel, in (0,1] if memories fade. State: S (B,K,E).

Each channel is linear attention with decay, so there is a parallel form with one mask G^c per
channel: ``channels.py``.

Forms: recurrent, the definition, 2 K E multiply-adds per token; chunked, 2 K E + S (2 K
+ E) and S K / 2 for the fades. An alpha of 0 resets its channel, in both.

Yang et al. 2023 (arXiv 2312.06635).
"""

from __future__ import annotations

from typing import NamedTuple

from ..backend import Array, namespace
from .channels import channel_fades, channel_fades_bwd, channel_sums, channel_sums_bwd
from .common import (
    apply,
    asked_for,
    check_rule,
    chunks_bwd,
    chunks_fwd,
    outer,
    reads,
    reads_bwd,
    stack,
    start_state,
)


class GLAResidual(NamedTuple):
    q: Array  # (B,T,K)
    k: Array  # (B,T,K)
    v: Array  # (B,T,E)
    alpha: Array  # (B,T,K)
    states: Array  # (B,T+1,K,E) all states of the recurrent form; (B,1,K,E) the first of a chunk
    read: str


def gla_loss(S: Array, k: Array, v: Array, alpha: Array) -> Array:
    """(B,K,E),(B,K),(B,E),(B,K)->(B)   l = -<v, k S> + 1/2 sum_c (1 - alpha_c) |S_c|^2   (U.19)"""
    xp = namespace(S, k, v, alpha)
    pull = 0.5 * xp.sum((1 - alpha) * xp.sum(S * S, axis=2), axis=1)  # (B,)
    return pull - xp.sum(apply(k, S) * v, axis=-1)


def gla_gradient(S: Array, k: Array, v: Array, alpha: Array) -> Array:
    """(B,K,E),(B,K),(B,E),(B,K)->(B,K,E)   dl/dS = -k^T v + Diag(1 - alpha) S   (U.19)"""
    return (1 - alpha)[:, :, None] * S - outer(k, v)


def gla_recurrent_fwd(
    q: Array, k: Array, v: Array, alpha: Array, state: Array | None = None, *, read: str,
) -> tuple[tuple[Array, Array], GLAResidual]:  # fmt: skip
    """(B,T,K),(B,T,K),(B,T,E),(B,T,K),(B,K,E)->(B,T,E),(B,K,E)
    S_{t+1} = Diag(alpha_t) S_t + k_t^T v_t   (U.20)

    ``read`` "strict": o_t = q_t S_t; "inclusive": o_t = q_t S_{t+1}. ``state`` None is an empty
    memory. Raises ValueError for another read or shapes that do not fit.
    """
    xp = namespace(q, k, v, alpha, state)
    check_rule(
        read, q=(q, "BTK"), k=(k, "BTK"), v=(v, "BTE"), alpha=(alpha, "BTK"), state=(state, "BKE")
    )
    states = [start_state(state, k, v)]
    for t in range(q.shape[1]):
        S = states[t]
        states.append(S - gla_gradient(S, k[:, t, :], v[:, t, :], alpha[:, t, :]))  # (B,K,E)
    states = xp.stack(states, axis=1)  # (B,T+1,K,E)
    return (reads(q, states, read), states[:, -1, ...]), GLAResidual(q, k, v, alpha, states, read)


def gla_recurrent_bwd(dout: Array, dstate_out: Array | None, res: GLAResidual) -> tuple[Array, ...]:
    """Adjoint of gla_recurrent_fwd: backpropagation through time.   (U.21)

    Returns dq, dk, dv, dalpha, dstate.
    """
    q, k, v, alpha, states, read = asked_for(dout, dstate_out, res)
    xp = namespace(dout, q)
    # forward: out = reads(q, states)
    dq, dread = reads_bwd(dout, q, states, read)  # (B,T,K), (B,T+1,K,E)
    dS = dread[:, -1, ...] if dstate_out is None else dread[:, -1, ...] + dstate_out  # (B,K,E)
    dks, dvs, dalphas = [], [], []
    for t in reversed(range(q.shape[1])):
        # forward: S' = Diag(alpha) S + k^T v
        dalphas.append(xp.sum(dS * states[:, t, ...], axis=2))  # (B,K)
        dks.append(apply(v[:, t, :], xp.matrix_transpose(dS)))  # (B,K)
        dvs.append(apply(k[:, t, :], dS))  # (B,E)
        dS = alpha[:, t, :, None] * dS + dread[:, t, ...]
    return dq, stack(dks[::-1], k), stack(dvs[::-1], v), stack(dalphas[::-1], alpha), dS


def gla_chunked_fwd(
    q: Array, k: Array, v: Array, alpha: Array, state: Array | None = None,
    chunk: int | None = None, *, read: str,
) -> tuple[tuple[Array, Array], tuple]:  # fmt: skip
    """(B,T,K),(B,T,K),(B,T,E),(B,T,K),(B,K,E)->(B,T,E),(B,K,E)
    o = (sum_c q_c k_c^T * G^c) v + (q * G_0) S_0, by chunks   (U.22)

    ``chunk`` None is one chunk. Raises ValueError as ``gla_recurrent_fwd`` does, or if ``chunk`` is
    below 1.
    """
    namespace(q, k, v, alpha, state)
    check_rule(
        read, q=(q, "BTK"), k=(k, "BTK"), v=(v, "BTE"), alpha=(alpha, "BTK"), state=(state, "BKE")
    )
    return chunks_fwd(
        lambda *tokens: _chunk_fwd(*tokens, read), (q, k, v, alpha), start_state(state, k, v), chunk
    )


def gla_chunked_bwd(
    dout: Array, dstate_out: Array | None, res: tuple[GLAResidual, ...]
) -> tuple[Array, ...]:
    """Adjoint of gla_chunked_fwd. Returns dq, dk, dv, dalpha, dstate.   (U.23)"""
    return chunks_bwd(_chunk_bwd, dout, dstate_out, res)


def _chunk_fwd(q: Array, k: Array, v: Array, alpha: Array, state: Array, read: str):
    out = channel_sums(q, k, v, channel_fades(alpha), state, read)  # (B,L,E), (B,K,E)
    return out, GLAResidual(q, k, v, alpha, state[:, None, ...], read)


def _chunk_bwd(dout: Array, dstate_out: Array | None, res: GLAResidual):
    q, k, v, alpha, states, read = res
    fade = channel_fades(alpha)  # (B,L+1,L+1,K)
    # forward: out, state_out = channel_sums(q, k, v)
    d_sums = channel_sums_bwd(dout, dstate_out, q, k, v, fade, states[:, 0, ...], read)
    dq, dk, dv, dfade, dstate = d_sums
    # forward: fade = channel_fades(alpha)
    return dq, dk, dv, channel_fades_bwd(dfade, fade), dstate
