"""Longhorn: an implicit step of the delta rule, with the gradient taken where the step ends.

    loss       l(S) = 1/2 |k S - v|^2                     gradient   k^T (k S - v)
    update     S_{t+1} = argmin_S |S - S_t|^2 + beta_t |k_t S - v_t|^2,
               that is   S_{t+1} = S_t - beta_t dl/dS (S_{t+1})

Exactly the proximal point method on the delta rule's loss. The implicit equation can be solved by
hand: multiply it by k to find k S_{t+1} - v = (k S_t - v) / (1 + beta |k|^2), and put that back:

    S_{t+1} = S_t - rate_t k_t^T (k_t S_t - v_t),    rate = beta / (1 + beta |k|^2)

So it is the delta rule with another rate, which satisfies rate |k|^2 < 1: no beta >= 0 makes a step
overshoot. State: S (B,K,E).

|k|^2 overflows long before the step does, in float32 at |k| = 2e19. But c k, c v and rate / c^2
make the same step for every c, so the delta rule gets k and v divided by ``size``, the largest
entry of a key that has one above 1. No square of a large number is taken.

Forms and cost: those of the delta rule, and K for the rate. What is left to do is the backward pass
through the rate.

Liu et al. 2024 (arXiv 2407.14207), the objective itself; the paper gives every value channel its
own beta and approximates k k^T in the solution by its diagonal.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..backend import Array, namespace
from ..ops.common import masked
from .common import check_rule, each, reads, start_state
from .delta import (
    DeltaResidual,
    delta_chunked_bwd,
    delta_chunked_fwd,
    delta_gradient,
    delta_loss,
    delta_recurrent_bwd,
)


class LonghornResidual(NamedTuple):
    k: Array  # (B,T,K) divided by size
    beta: Array  # (B,T) times size
    size: Array  # (B,T)
    delta: Any  # DeltaResidual of the delta rule with rate beta', or one per chunk


def longhorn_loss(S: Array, k: Array, v: Array) -> Array:
    """(B,K,E),(B,K),(B,E)->(B)   the delta rule's l = 1/2 |k S - v|^2   (U.39)"""
    return delta_loss(S, k, v)


def longhorn_gradient(S: Array, k: Array, v: Array) -> Array:
    """(B,K,E),(B,K),(B,E)->(B,K,E)   dl/dS = k^T (k S - v)   (U.39)"""
    return delta_gradient(S, k, v)


def longhorn_rate(k: Array, beta: Array, one: Array | float = 1.0) -> Array:
    """(...,K),(...)->(...)
    beta' = beta / (1 + beta |k|^2): the explicit step that the implicit one amounts to   (U.40)

    With k / size, size beta and ``one`` = 1 / size it is size^2 beta'.
    """
    return beta / (one + beta * namespace(k, beta).sum(k * k, axis=-1))


def longhorn_rate_bwd(
    drate: Array, k: Array, beta: Array, one: Array | float = 1.0
) -> tuple[Array, Array]:
    """Adjoint of longhorn_rate: dk, dbeta.   (U.41)"""
    xp = namespace(drate, k, beta)
    shrink = 1 / (one + beta * xp.sum(k * k, axis=-1))  # (...)
    # forward: beta' = beta / (1 + beta |k|^2)
    dbeta = (drate * shrink) * (one * shrink)  # (...)
    dk = (-2 * drate * (beta * shrink) ** 2)[..., None] * k  # (...,K)
    # a rate that no cotangent asks for asks for nothing, whatever the key is
    return masked(dk, drate[..., None] != 0), masked(dbeta, drate != 0)


def longhorn_recurrent_fwd(
    q: Array, k: Array, v: Array, beta: Array, state: Array | None = None, *, read: str,
) -> tuple[tuple[Array, Array], LonghornResidual]:  # fmt: skip
    """(B,T,K),(B,T,K),(B,T,E),(B,T),(B,K,E)->(B,T,E),(B,K,E)
    S_{t+1} = S_t - beta'_t k_t^T (k_t S_t - v_t)   (U.40)

    ``read`` "strict": o_t = q_t S_t; "inclusive": o_t = q_t S_{t+1}. ``state`` None is an empty
    memory. Raises ValueError for another read or shapes that do not fit.
    """
    xp = namespace(q, k, v, beta, state)
    check_rule(
        read, q=(q, "BTK"), k=(k, "BTK"), v=(v, "BTE"), beta=(beta, "BT"), state=(state, "BKE")
    )
    k, v, beta, size = _divided(k, v, beta)
    rate, states = longhorn_rate(k, beta, 1 / size), [start_state(state, k, v)]  # (B,T)
    for t in range(q.shape[1]):
        S = states[t]
        g = longhorn_gradient(S, k[:, t, :], v[:, t, :])  # (B,K,E)
        states.append(S - each(rate[:, t]) * g)
    states = xp.stack(states, axis=1)  # (B,T+1,K,E)
    delta = DeltaResidual(q, k, v, rate, states, read)
    return (reads(q, states, read), states[:, -1, ...]), LonghornResidual(k, beta, size, delta)


def longhorn_recurrent_bwd(
    dout: Array, dstate_out: Array | None, res: LonghornResidual
) -> tuple[Array, ...]:
    """Adjoint of longhorn_recurrent_fwd: the delta rule's through time, then beta'.   (U.41)

    Returns dq, dk, dv, dbeta, dstate.
    """
    return _through_rate(delta_recurrent_bwd(dout, dstate_out, res.delta), res)


def longhorn_chunked_fwd(
    q: Array, k: Array, v: Array, beta: Array, state: Array | None = None, chunk: int | None = None,
    *, read: str,
) -> tuple[tuple[Array, Array], LonghornResidual]:  # fmt: skip
    """(B,T,K),(B,T,K),(B,T,E),(B,T),(B,K,E)->(B,T,E),(B,K,E)
    the delta rule's chunks with the rates beta'   (U.42)

    ``chunk`` None is one chunk. Raises ValueError as ``longhorn_recurrent_fwd`` does, and if
    ``chunk`` is below 1.
    """
    namespace(q, k, v, beta, state)
    check_rule(
        read, q=(q, "BTK"), k=(k, "BTK"), v=(v, "BTE"), beta=(beta, "BT"), state=(state, "BKE")
    )
    k, v, beta, size = _divided(k, v, beta)
    rate = longhorn_rate(k, beta, 1 / size)  # (B,T)
    out, delta = delta_chunked_fwd(q, k, v, rate, state, chunk, read=read)  # (B,T,E), (B,K,E)
    return out, LonghornResidual(k, beta, size, delta)


def longhorn_chunked_bwd(
    dout: Array, dstate_out: Array | None, res: LonghornResidual
) -> tuple[Array, ...]:
    """Adjoint of longhorn_chunked_fwd. Returns dq, dk, dv, dbeta, dstate.   (U.43)"""
    return _through_rate(delta_chunked_bwd(dout, dstate_out, res.delta), res)


def _divided(k: Array, v: Array, beta: Array) -> tuple[Array, Array, Array, Array]:
    """k / size (B,T,K), v / size (B,T,E), size beta (B,T) and size (B,T) = max(1, |k_c|)"""
    xp = namespace(k, v, beta)
    size = xp.max(xp.abs(k), axis=-1)  # (B,T)
    size = xp.where((size > 1) & xp.isfinite(size), size, xp.ones_like(size))
    return k / size[:, :, None], v / size[:, :, None], size * beta, size


def _through_rate(gradients: tuple, res: LonghornResidual) -> tuple:
    (dq, dk, dv, drate, dstate), size = gradients, res.size[:, :, None]  # (B,T,1)
    # forward: beta' = rate(k, beta)
    dk_rate, dbeta = longhorn_rate_bwd(drate, res.k, res.beta, 1 / res.size)  # (B,T,K), (B,T)
    # forward: k / size, v / size, size beta; whatever size is, so it has no gradient
    return dq, (dk + dk_rate) / size, dv / size, res.size * dbeta, dstate
