"""The gated delta rule (Gated DeltaNet): forget a little, then take the delta rule's step.

    decay      S'_t = alpha_t S_t
    loss       l(S') = 1/2 |k S' - v|^2
    gradient   dl/dS' = k^T (k S' - v)
    update     S_{t+1} = S'_t - beta_t k_t^T (k_t S'_t - v_t)
                       = alpha_t (I - beta_t k_t^T k_t) S_t + beta_t k_t^T v_t

Exactly decoupled weight decay towards 0 followed by online gradient descent, both with rates per
token; the gradient is taken at the faded memory. alpha = 1 is the delta rule; with orthonormal
keys, beta = 1 and an empty memory it is linear attention with decay. State: S (B,K,E).

What is written is u_t = beta_t (v_t - k_t S'_t); given u, the rest is linear attention with decay.
With G_ij what is left in state i of state j, S'_t = G_{t+1,0} S_0 + sum_{j<t} G_{t+1,j+1} k_j^T
u_j, so the errors of a chunk solve the delta rule's system with fades in it:

    (I + A) u = beta (v - G_{t+1,0} k S_0),    A_tj = beta_t G_{t+1,j+1} (k_t . k_j) for j < t

Every G_ij is formed as a product over its gap, so no quotient of decays occurs.

Forms: recurrent, the definition, 3 K E multiply-adds per token; chunked, 3 K E + S (2 K
+ 3/2 E) and S for the fades. An alpha of 0 resets the memory, in both.

Yang, Kautz, Hatamizadeh 2024 (arXiv 2412.06464).
"""

from __future__ import annotations

from typing import NamedTuple

from ..backend import Array, namespace
from ..ops.common import masked
from .common import (
    asked_for,
    check_rule,
    chunks_bwd,
    chunks_fwd,
    each,
    fades,
    fades_bwd,
    past,
    read_from_bwd,
    reads,
    reads_bwd,
    solve,
    solve_bwd,
    stack,
    start_state,
    sums,
    sums_bwd,
)
from .delta import delta_gradient, delta_gradient_bwd, delta_loss


class GatedDeltaResidual(NamedTuple):
    q: Array  # (B,T,K)
    k: Array  # (B,T,K)
    v: Array  # (B,T,E)
    alpha: Array  # (B,T)
    beta: Array  # (B,T)
    states: Array  # (B,T+1,K,E) all states of the recurrent form; (B,1,K,E) the first of a chunk
    read: str


def gated_delta_loss(S: Array, k: Array, v: Array) -> Array:
    """(B,K,E),(B,K),(B,E)->(B)
    the delta rule's l = 1/2 |k S' - v|^2, of the faded memory S' = alpha S   (U.29)
    """
    return delta_loss(S, k, v)


def gated_delta_gradient(S: Array, k: Array, v: Array) -> Array:
    """(B,K,E),(B,K),(B,E)->(B,K,E)
    the delta rule's k^T (k S' - v), at the faded memory S' = alpha S   (U.29)
    """
    return delta_gradient(S, k, v)


def gated_delta_recurrent_fwd(
    q: Array, k: Array, v: Array, alpha: Array, beta: Array, state: Array | None = None, *,
    read: str,
) -> tuple[tuple[Array, Array], GatedDeltaResidual]:  # fmt: skip
    """(B,T,K),(B,T,K),(B,T,E),(B,T),(B,T),(B,K,E)->(B,T,E),(B,K,E)
    S_{t+1} = S' - beta_t k_t^T (k_t S' - v_t), S' = alpha_t S_t   (U.30)

    ``read`` "strict": o_t = q_t S_t; "inclusive": o_t = q_t S_{t+1}. ``state`` None is an empty
    memory. Raises ValueError for another read or shapes that do not fit.
    """
    xp = namespace(q, k, v, alpha, beta, state)
    check_rule(
        read,
        q=(q, "BTK"),
        k=(k, "BTK"),
        v=(v, "BTE"),
        alpha=(alpha, "BT"),
        beta=(beta, "BT"),
        state=(state, "BKE"),
    )
    states = [start_state(state, k, v)]
    for t in range(q.shape[1]):
        S = each(alpha[:, t]) * states[t]
        g = gated_delta_gradient(S, k[:, t, :], v[:, t, :])  # (B,K,E)
        states.append(S - each(beta[:, t]) * g)
    states = xp.stack(states, axis=1)  # (B,T+1,K,E)
    res = GatedDeltaResidual(q, k, v, alpha, beta, states, read)
    return (reads(q, states, read), states[:, -1, ...]), res


def gated_delta_recurrent_bwd(
    dout: Array, dstate_out: Array | None, res: GatedDeltaResidual
) -> tuple[Array, ...]:
    """Adjoint of gated_delta_recurrent_fwd: backpropagation through time.   (U.31)

    Returns dq, dk, dv, dalpha, dbeta, dstate.
    """
    q, k, v, alpha, beta, states, read = asked_for(dout, dstate_out, res)
    xp = namespace(dout, q)
    # forward: out = reads(q, states)
    dq, dread = reads_bwd(dout, q, states, read)  # (B,T,K), (B,T+1,K,E)
    dS = dread[:, -1, ...] if dstate_out is None else dread[:, -1, ...] + dstate_out  # (B,K,E)
    dks, dvs, dalphas, dbetas = [], [], [], []
    for t in reversed(range(q.shape[1])):
        token = each(alpha[:, t]) * states[:, t, ...], k[:, t, :], v[:, t, :]
        # forward: S_{t+1} = S' - beta g
        dbetas.append(-xp.sum(dS * gated_delta_gradient(*token), axis=(1, 2)))  # (B,)
        # forward: g = k^T (k S' - v)
        dg = -each(beta[:, t]) * dS  # (B,K,E)
        through, dk, dv = delta_gradient_bwd(dg, *token)  # (B,K,E), (B,K), (B,E)
        dS = dS + through
        # forward: S' = alpha S
        dalphas.append(xp.sum(dS * states[:, t, ...], axis=(1, 2)))  # (B,)
        dS = each(alpha[:, t]) * dS + dread[:, t, ...]
        dks.append(dk)
        dvs.append(dv)
    rates = stack(dalphas[::-1], alpha), stack(dbetas[::-1], beta)  # (B,T)
    return dq, stack(dks[::-1], k), stack(dvs[::-1], v), *rates, dS


def gated_delta_chunked_fwd(
    q: Array, k: Array, v: Array, alpha: Array, beta: Array, state: Array | None = None,
    chunk: int | None = None, *, read: str,
) -> tuple[tuple[Array, Array], tuple]:  # fmt: skip
    """(B,T,K),(B,T,K),(B,T,E),(B,T),(B,T),(B,K,E)->(B,T,E),(B,K,E)
    u = (I + A)^{-1} beta (v - G k S_0), then faded sums   (U.32)

    ``chunk`` None is one chunk. Raises ValueError as ``gated_delta_recurrent_fwd`` does, or
    if ``chunk`` is below 1.
    """
    namespace(q, k, v, alpha, beta, state)
    check_rule(
        read,
        q=(q, "BTK"),
        k=(k, "BTK"),
        v=(v, "BTE"),
        alpha=(alpha, "BT"),
        beta=(beta, "BT"),
        state=(state, "BKE"),
    )
    return chunks_fwd(
        lambda *tokens: _chunk_fwd(*tokens, read),
        (q, k, v, alpha, beta),
        start_state(state, k, v),
        chunk,
    )


def gated_delta_chunked_bwd(
    dout: Array, dstate_out: Array | None, res: tuple[GatedDeltaResidual, ...]
) -> tuple[Array, ...]:
    """Adjoint of gated_delta_chunked_fwd. Returns dq, dk, dv, dalpha, dbeta, dstate.   (U.33)"""
    return chunks_bwd(_chunk_bwd, dout, dstate_out, res)


def _chunk_fwd(q: Array, k: Array, v: Array, alpha: Array, beta: Array, state: Array, read: str):
    fade = fades(alpha)  # (B,L+1,L+1)
    _, _, _, u = _errors(k, v, fade, beta, state)  # (B,L,E)
    out = sums(q, k, u, fade, state, read)  # (B,L,E), (B,K,E)
    return out, GatedDeltaResidual(q, k, v, alpha, beta, state[:, None, ...], read)


def _chunk_bwd(dout: Array, dstate_out: Array | None, res: GatedDeltaResidual):
    q, k, v, alpha, beta, states, read = res
    xp, state, fade = namespace(dout, q), states[:, 0, ...], fades(alpha)  # (B,K,E), (B,L+1,L+1)
    gram, recalled, a, u = _errors(k, v, fade, beta, state)  # (B,L,L), (B,L,E), (B,L,L), (B,L,E)
    after = fade[:, 1:, :]  # (B,L,L+1)
    # forward: out, state_out = sums(q, k, u)
    dq, dk, du, dfade, dstate = sums_bwd(dout, dstate_out, q, k, u, fade, state, read)
    # forward: u = (I + A)^{-1} r
    da, dr = solve_bwd(du, a, u)  # (B,L,L), (B,L,E)
    # forward: r = beta (v - after_0 k S_0)
    dv = beta[:, :, None] * dr  # (B,L,E)
    dbeta = xp.sum(dr * (v - after[:, :, :1] * recalled), axis=-1)  # (B,L)
    drecalled = -after[:, :, :1] * dv  # (B,L,E)
    dk += xp.matmul(drecalled, xp.matrix_transpose(state))
    dstate += xp.matmul(xp.matrix_transpose(k), drecalled)
    # forward: A = beta after (k k^T) below the diagonal
    dgram = beta[:, :, None] * after[:, :, 1:] * da  # (B,L,L)
    dbeta += xp.sum(da * after[:, :, 1:] * gram, axis=-1)
    dk += xp.matmul(dgram, k) + xp.matmul(xp.matrix_transpose(dgram), k)
    # forward: after = the rows t + 1 of fade
    dfirst = -xp.sum(dv * recalled, axis=-1, keepdims=True)  # (B,L,1)
    dafter = xp.concat([dfirst, beta[:, :, None] * da * gram], axis=-1)  # (B,L,L+1)
    dalpha = fades_bwd(dfade + read_from_bwd(dafter, "inclusive"), fade)  # (B,L)
    return dq, dk, dv, dalpha, dbeta, dstate


def _errors(
    k: Array, v: Array, fade: Array, beta: Array, state: Array
) -> tuple[Array, Array, Array, Array]:
    """k k^T (B,L,L), k S_0 (B,L,E), A (B,L,L), and what is written, (B,L,E)

    That is u_t = beta_t (v_t - k_t S'_t).
    """
    xp = namespace(k, v, fade, beta, state)
    gram, recalled = xp.matmul(k, xp.matrix_transpose(k)), xp.matmul(k, state)  # (B,L,L), (B,L,E)
    after = fade[:, 1:, :]  # (B,L,L+1)
    a = masked(beta[:, :, None] * after[:, :, 1:] * gram, past(k, "strict"))  # (B,L,L)
    return gram, recalled, a, solve(a, beta[:, :, None] * (v - after[:, :, :1] * recalled))
