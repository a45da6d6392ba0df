"""Gated DeltaProduct: forget a little, then N steps of the delta rule on N pairs of key and value.

    decay      S <- alpha_t S_t
    loss       l(S) = 1/2 |k S - v|^2 of one pair           gradient   k^T (k S - v)
    update     S <- S - beta_tn k_tn^T (k_tn S - v_tn)  for n = 0 .. N-1, then S_{t+1} = S

One gate per token, before its first step: what a token writes does not fade by its own gate. alpha
= 1 is DeltaProduct, N = 1 the gated delta rule. State: S (B,K,E). The token reads before its gate
(strict) or after its last step (inclusive).

Forms: recurrent, the definition, (2 N + 1) K E multiply-adds per token; chunked: the
gated delta rule on N T tokens, of which the first of each token has its gate and the others have 1,
and of which only one in N is read. The chunk counts tokens, not steps.

Siems et al. 2025 (arXiv 2502.10297).
"""

from __future__ import annotations

from ..backend import Array, device, namespace
from .common import asked_for, check_rule, each, reads, reads_bwd, stack, start_state
from .delta import delta_gradient, delta_gradient_bwd, delta_loss
from .delta_product import DeltaProductResidual, count_steps, every, flat, spread, unflat
from .gated_delta import GatedDeltaResidual, gated_delta_chunked_bwd, gated_delta_chunked_fwd


def gated_delta_product_loss(S: Array, k: Array, v: Array) -> Array:
    """(B,K,E),(B,K),(B,E)->(B)   of one pair: the delta rule's l = 1/2 |k S - v|^2   (U.54)"""
    return delta_loss(S, k, v)


def gated_delta_product_gradient(S: Array, k: Array, v: Array) -> Array:
    """(B,K,E),(B,K),(B,E)->(B,K,E)   of one pair: dl/dS = k^T (k S - v)   (U.54)"""
    return delta_gradient(S, k, v)


def gated_delta_product_recurrent_fwd(
    q: Array, k: Array, v: Array, alpha: Array, beta: Array, state: Array | None = None, *,
    read: str,
) -> tuple[tuple[Array, Array], DeltaProductResidual]:  # fmt: skip
    """(B,T,K),(B,T,N,K),(B,T,N,E),(B,T),(B,T,N),(B,K,E)->(B,T,E),(B,K,E)
    S <- alpha_t S_t, then S <- S - beta_tn k_tn^T (k_tn S - v_tn), n = 0 .. N-1   (U.55)

    ``read`` "strict": o_t = q_t S_t; "inclusive": o_t = q_t S_{t+1}. ``state`` None is an empty
    memory. Raises ValueError for another read, shapes that do not fit, or N = 0.
    """
    xp = namespace(q, k, v, alpha, beta, state)
    steps = _check(q, k, v, alpha, beta, state, read)
    states = [start_state(state, k, v)]
    for t in range(q.shape[1]):
        S = each(alpha[:, t]) * states[-1]  # (B,K,E)
        for n in range(steps):
            g = gated_delta_product_gradient(S, k[:, t, n, :], v[:, t, n, :])  # (B,K,E)
            S = S - each(beta[:, t, n]) * g
            states.append(S)
    states = xp.stack(states, axis=1)  # (B,TN+1,K,E)
    out = reads(q, states[:, ::steps, ...], read)  # (B,T,E)
    gates = _gates(alpha, steps)  # (B,TN)
    tokens = spread(q, steps, read), flat(k), flat(v), gates, flat(beta)  # (B,TN,...)
    res = GatedDeltaResidual(*tokens, states, read)
    return (out, states[:, -1, ...]), DeltaProductResidual(steps, read, res)


def gated_delta_product_recurrent_bwd(
    dout: Array, dstate_out: Array | None, res: DeltaProductResidual
) -> tuple[Array, ...]:
    """Adjoint of gated_delta_product_recurrent_fwd: backpropagation through time.   (U.56)

    Returns dq, dk, dv, dalpha, dbeta, dstate.
    """
    steps, read, delta = res
    q, k, v, gates, beta, states, _ = asked_for(spread(dout, steps, read), dstate_out, delta)
    xp, q = namespace(dout, q), every(q, steps, read)  # (B,T,K)
    # forward: out = reads(q, every N-th state)
    dq, dread = reads_bwd(dout, q, states[:, ::steps, ...], read)  # (B,T,K), (B,T+1,K,E)
    dS = dread[:, -1, ...] if dstate_out is None else dread[:, -1, ...] + dstate_out  # (B,K,E)
    dks, dvs, dalphas, dbetas = [], [], [], []
    for i in reversed(range(k.shape[1])):
        token = each(gates[:, i]) * states[:, i, ...], k[:, i, :], v[:, i, :]
        # forward: S' = S - beta g
        dbetas.append(-xp.sum(dS * gated_delta_product_gradient(*token), axis=(1, 2)))  # (B,)
        # forward: g = k^T (k S - v)
        dg = -each(beta[:, i]) * dS  # (B,K,E)
        through, dk, dv = delta_gradient_bwd(dg, *token)  # (B,K,E), (B,K), (B,E)
        dS = dS + through
        if i % steps == 0:
            # forward: S = alpha S_t
            dalphas.append(xp.sum(dS * states[:, i, ...], axis=(1, 2)))  # (B,)
            dS = each(gates[:, i]) * dS + dread[:, i // steps, ...]
        dks.append(dk)
        dvs.append(dv)
    dk, dv, dbeta = stack(dks[::-1], k), stack(dvs[::-1], v), stack(dbetas[::-1], beta)  # (B,TN,..)
    dalpha = stack(dalphas[::-1], gates)  # (B,T)
    return dq, unflat(dk, steps), unflat(dv, steps), dalpha, unflat(dbeta, steps), dS


def gated_delta_product_chunked_fwd(
    q: Array, k: Array, v: Array, alpha: Array, beta: Array, state: Array | None = None,
    chunk: int | None = None, *, read: str,
) -> tuple[tuple[Array, Array], DeltaProductResidual]:  # fmt: skip
    """(B,T,K),(B,T,N,K),(B,T,N,E),(B,T),(B,T,N),(B,K,E)->(B,T,E),(B,K,E)
    the gated delta rule on N T tokens, gates 1 but for every N-th, every N-th one read   (U.57)

    ``chunk`` (in tokens) None is one chunk. Raises ValueError as
    ``gated_delta_product_recurrent_fwd`` does, or if ``chunk`` is below 1.
    """
    namespace(q, k, v, alpha, beta, state)
    steps = _check(q, k, v, alpha, beta, state, read)
    chunk = chunk * steps if chunk and chunk > 0 else chunk
    rates = _gates(alpha, steps), flat(beta)  # (B,TN)
    tokens = spread(q, steps, read), flat(k), flat(v), *rates  # (B,TN,...)
    (out, state), res = gated_delta_chunked_fwd(*tokens, state, chunk, read=read)  # (B,TN,E)
    return (every(out, steps, read), state), DeltaProductResidual(steps, read, res)


def gated_delta_product_chunked_bwd(
    dout: Array, dstate_out: Array | None, res: DeltaProductResidual
) -> tuple[Array, ...]:
    """Adjoint of gated_delta_product_chunked_fwd.   (U.58)

    Returns dq, dk, dv, dalpha, dbeta, dstate.
    """
    steps, read, delta = res
    # forward: out = every N-th output of the gated delta rule, whose queries are 0 in between
    gradients = gated_delta_chunked_bwd(spread(dout, steps, read), dstate_out, delta)
    dq, dk, dv, dgates, dbeta, dstate = gradients  # (B,TN,...)
    dk, dv, dgates, dbeta = (unflat(a, steps) for a in (dk, dv, dgates, dbeta))
    # forward: gates = alpha, then 1 N - 1 times
    return every(dq, steps, read), dk, dv, dgates[:, :, 0], dbeta, dstate


def _gates(alpha: Array, steps: int) -> Array:
    """(B,T)->(B,TN)   alpha at the first step of each token; 1 at the others"""
    xp = namespace(alpha)
    shape = (*alpha.shape, steps - 1)
    ones = xp.ones(shape, dtype=alpha.dtype, device=device(alpha))  # (B,T,N-1)
    return flat(xp.concat([alpha[:, :, None], ones], axis=2))


def _check(
    q: Array, k: Array, v: Array, alpha: Array, beta: Array, state: Array | None, read: str
) -> int:
    check_rule(
        read,
        q=(q, "BTK"),
        k=(k, "BTNK"),
        v=(v, "BTNE"),
        alpha=(alpha, "BT"),
        beta=(beta, "BTN"),
        state=(state, "BKE"),
    )
    return count_steps(k)
