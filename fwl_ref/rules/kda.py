"""Kimi delta attention (KDA): the gated delta rule with a gate for every key channel.

    decay      S'_t = Diag(alpha_t) S_t
    loss       l(S') = 1/2 |k S' - v|^2
    gradient   dl/dS' = k^T (k S' - v)
    update     S_{t+1} = S'_t - beta_t k_t^T (k_t S'_t - v_t)
                       = (I - beta_t k_t^T k_t) Diag(alpha_t) S_t + beta_t k_t^T v_t

Exactly a weight decay towards 0 with a rate per key channel, then online gradient descent at the
faded memory. alpha (B,T,K) with equal channels is the gated delta rule, alpha = 1 the delta rule.
State: S (B,K,E).

What is written is u_t = beta_t (v_t - k_t S'_t), and given u the rest is gated linear attention.
What k_t recalls behind its own gate is a strict read of alpha_t k_t:

    k_t S'_t = (alpha_t k_t) S_t = (alpha_t k_t G_t0) S_0 + sum_{j<t} (sum_c alpha_tc k_tc k_jc
    G^c_{t,j+1}) u_j

so the errors of a chunk solve the delta rule's system, with scores as in gated linear attention:

    (I + A) u = beta (v - (alpha k G_t0) S_0),    A_tj = beta_t sum_c alpha_tc k_tc k_jc G^c_{t,j+1}

Forms: recurrent, the definition, 3 K E multiply-adds per token; chunked, 3 K E + S (4 K
+ 3/2 E) and S K / 2 for the fades. An alpha of 0 resets its channel, in both.

Kimi Team 2025 (arXiv 2510.26692).
"""

from __future__ import annotations

from typing import NamedTuple

from ..backend import Array, namespace
from .channels import (
    channel_fades,
    channel_fades_bwd,
    channel_scores,
    channel_scores_bwd,
    channel_start,
    channel_start_bwd,
    channel_sums,
    channel_sums_bwd,
)
from .common import (
    asked_for,
    check_rule,
    chunks_bwd,
    chunks_fwd,
    each,
    reads,
    reads_bwd,
    solve,
    solve_bwd,
    stack,
    start_state,
)
from .delta import delta_gradient, delta_gradient_bwd, delta_loss


class KDAResidual(NamedTuple):
    q: Array  # (B,T,K)
    k: Array  # (B,T,K)
    v: Array  # (B,T,E)
    alpha: Array  # (B,T,K)
    beta: Array  # (B,T)
    states: Array  # (B,T+1,K,E) all states of the recurrent form; (B,1,K,E) the first of a chunk
    read: str


def kda_loss(S: Array, k: Array, v: Array) -> Array:
    """(B,K,E),(B,K),(B,E)->(B)
    the delta rule's l = 1/2 |k S' - v|^2, of the faded memory S' = Diag(alpha) S   (U.44)
    """
    return delta_loss(S, k, v)


def kda_gradient(S: Array, k: Array, v: Array) -> Array:
    """(B,K,E),(B,K),(B,E)->(B,K,E)
    the delta rule's k^T (k S' - v), at the faded memory S' = Diag(alpha) S   (U.44)
    """
    return delta_gradient(S, k, v)


def kda_recurrent_fwd(
    q: Array, k: Array, v: Array, alpha: Array, beta: Array, state: Array | None = None, *,
    read: str,
) -> tuple[tuple[Array, Array], KDAResidual]:  # fmt: skip
    """(B,T,K),(B,T,K),(B,T,E),(B,T,K),(B,T),(B,K,E)->(B,T,E),(B,K,E)
    S_{t+1} = S' - beta_t k_t^T (k_t S' - v_t), S' = Diag(alpha_t) S_t   (U.45)

    ``read`` "strict": o_t = q_t S_t; "inclusive": o_t = q_t S_{t+1}. ``state`` None is an empty
    memory. Raises ValueError for another read or shapes that do not fit.
    """
    xp = namespace(q, k, v, alpha, beta, state)
    _check(q, k, v, alpha, beta, state, read)
    states = [start_state(state, k, v)]
    for t in range(q.shape[1]):
        S = alpha[:, t, :, None] * states[t]
        g = kda_gradient(S, k[:, t, :], v[:, t, :])  # (B,K,E)
        states.append(S - each(beta[:, t]) * g)
    states = xp.stack(states, axis=1)  # (B,T+1,K,E)
    res = KDAResidual(q, k, v, alpha, beta, states, read)
    return (reads(q, states, read), states[:, -1, ...]), res


def kda_recurrent_bwd(dout: Array, dstate_out: Array | None, res: KDAResidual) -> tuple[Array, ...]:
    """Adjoint of kda_recurrent_fwd: backpropagation through time.   (U.46)

    Returns dq, dk, dv, dalpha, dbeta, dstate.
    """
    q, k, v, alpha, beta, states, read = asked_for(dout, dstate_out, res)
    xp = namespace(dout, q)
    # forward: out = reads(q, states)
    dq, dread = reads_bwd(dout, q, states, read)  # (B,T,K), (B,T+1,K,E)
    dS = dread[:, -1, ...] if dstate_out is None else dread[:, -1, ...] + dstate_out  # (B,K,E)
    dks, dvs, dalphas, dbetas = [], [], [], []
    for t in reversed(range(q.shape[1])):
        token = alpha[:, t, :, None] * states[:, t, ...], k[:, t, :], v[:, t, :]
        # forward: S_{t+1} = S' - beta g
        dbetas.append(-xp.sum(dS * kda_gradient(*token), axis=(1, 2)))  # (B,)
        # forward: g = k^T (k S' - v)
        dg = -each(beta[:, t]) * dS  # (B,K,E)
        through, dk, dv = delta_gradient_bwd(dg, *token)  # (B,K,E), (B,K), (B,E)
        dS = dS + through
        # forward: S' = Diag(alpha) S
        dalphas.append(xp.sum(dS * states[:, t, ...], axis=2))  # (B,K)
        dS = alpha[:, t, :, None] * dS + dread[:, t, ...]
        dks.append(dk)
        dvs.append(dv)
    rates = stack(dalphas[::-1], alpha), stack(dbetas[::-1], beta)  # (B,T,K), (B,T)
    return dq, stack(dks[::-1], k), stack(dvs[::-1], v), *rates, dS


def kda_chunked_fwd(
    q: Array, k: Array, v: Array, alpha: Array, beta: Array, state: Array | None = None,
    chunk: int | None = None, *, read: str,
) -> tuple[tuple[Array, Array], tuple]:  # fmt: skip
    """(B,T,K),(B,T,K),(B,T,E),(B,T,K),(B,T),(B,K,E)->(B,T,E),(B,K,E)
    u = (I + A)^{-1} beta (v - (alpha k G) S_0), then sums faded by channel   (U.47)

    ``chunk`` None is one chunk. Raises ValueError as ``kda_recurrent_fwd`` does, or if ``chunk`` is
    below 1.
    """
    namespace(q, k, v, alpha, beta, state)
    _check(q, k, v, alpha, beta, state, read)
    return chunks_fwd(
        lambda *tokens: _chunk_fwd(*tokens, read),
        (q, k, v, alpha, beta),
        start_state(state, k, v),
        chunk,
    )


def kda_chunked_bwd(
    dout: Array, dstate_out: Array | None, res: tuple[KDAResidual, ...]
) -> tuple[Array, ...]:
    """Adjoint of kda_chunked_fwd. Returns dq, dk, dv, dalpha, dbeta, dstate.   (U.48)"""
    return chunks_bwd(_chunk_bwd, dout, dstate_out, res)


def _chunk_fwd(q: Array, k: Array, v: Array, alpha: Array, beta: Array, state: Array, read: str):
    fade = channel_fades(alpha)  # (B,L+1,L+1,K)
    *_, u = _errors(alpha * k, k, v, fade, beta, state)  # (B,L,E)
    out = channel_sums(q, k, u, fade, state, read)  # (B,L,E), (B,K,E)
    return out, KDAResidual(q, k, v, alpha, beta, state[:, None, ...], read)


def _chunk_bwd(dout: Array, dstate_out: Array | None, res: KDAResidual):
    q, k, v, alpha, beta, states, read = res
    xp, state, fade = namespace(dout, q), states[:, 0, ...], channel_fades(alpha)  # (B,L+1,L+1,K)
    asked, rate = alpha * k, beta[:, :, None]  # (B,L,K), (B,L,1)
    scores, recalled, u = _errors(asked, k, v, fade, beta, state)  # (B,L,L), (B,L,E), (B,L,E)
    # forward: out, state_out = channel_sums(q, k, u)
    dq, dk, du, dfade, dstate = channel_sums_bwd(dout, dstate_out, q, k, u, fade, state, read)
    # forward: u = (I + A)^{-1} r
    da, dr = solve_bwd(du, rate * scores, u)  # (B,L,L), (B,L,E)
    # forward: r = beta (v - recalled), A = beta scores
    dv = rate * dr  # (B,L,E)
    dbeta = xp.sum(dr * (v - recalled), axis=-1) + xp.sum(da * scores, axis=-1)  # (B,L)
    # forward: recalled = what asked reads of S_0
    dasked, dfade_start, dstate_start = channel_start_bwd(-dv, asked, fade, state, "strict")
    # forward: scores = those of asked and k
    more, dk_scores, dfade_scores = channel_scores_bwd(rate * da, asked, k, fade, "strict")
    dasked += more  # (B,L,K)
    # forward: asked = alpha k
    dk += dk_scores + alpha * dasked
    # forward: fade = channel_fades(alpha)
    dfade += dfade_start + dfade_scores  # (B,L+1,L+1,K)
    dalpha = channel_fades_bwd(dfade, fade) + k * dasked  # (B,L,K)
    return dq, dk, dv, dalpha, dbeta, dstate + dstate_start


def _errors(
    asked: Array, k: Array, v: Array, fade: Array, beta: Array, state: Array
) -> tuple[Array, Array, Array]:
    """Scores of alpha k and k (B,L,L), what alpha k reads of S_0 (B,L,E), and what is written,
    (B,L,E)

    That is u_t = beta_t (v_t - k_t S'_t).
    """
    scores = channel_scores(asked, k, fade, "strict")  # (B,L,L)
    recalled = channel_start(asked, fade, state, "strict")  # (B,L,E)
    rate = beta[:, :, None]  # (B,L,1)
    return scores, recalled, solve(rate * scores, rate * (v - recalled))


def _check(
    q: Array, k: Array, v: Array, alpha: Array, beta: Array, state: Array | None, read: str
) -> None:
    check_rule(
        read,
        q=(q, "BTK"),
        k=(k, "BTK"),
        v=(v, "BTE"),
        alpha=(alpha, "BTK"),
        beta=(beta, "BT"),
        state=(state, "BKE"),
    )
