"""DeltaProduct: N steps of the delta rule per token, on N pairs of key and value.

    loss       l(S) = 1/2 |k S - v|^2 of one pair           gradient   k^T (k S - v)
    update     S <- S - beta_tn k_tn^T (k_tn S - v_tn)  for n = 0 .. N-1, from S_t to S_{t+1}

Exactly N steps of online gradient descent per token. One token multiplies the state by a product of
N matrices I - beta k^T k: one of them shrinks or reflects, two can rotate. N = 1 is the delta rule.
State: S (B,K,E). The token reads before its first step (strict) or after its last (inclusive),
never in between.

Forms: recurrent, the definition, (2 N + 1) K E multiply-adds per token; chunked: the delta rule on
N T tokens, of which only one in N is read, so N times its cost. The chunk counts tokens, not steps.

Siems et al. 2025 (arXiv 2502.10297).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..backend import Array, device, namespace
from .common import asked_for, check_rule, each, reads, reads_bwd, stack, start_state
from .delta import (
    DeltaResidual,
    delta_chunked_bwd,
    delta_chunked_fwd,
    delta_gradient,
    delta_gradient_bwd,
    delta_loss,
)


class DeltaProductResidual(NamedTuple):
    steps: int  # N
    read: str
    # steps as tokens: q (B,TN,K) 0 where nothing is read, k (B,TN,K), v (B,TN,E), rates (B,TN);
    # recurrent: all TN + 1 states
    delta: Any  # of the delta rule, gated or not; chunked: one per chunk


def delta_product_loss(S: Array, k: Array, v: Array) -> Array:
    """(B,K,E),(B,K),(B,E)->(B)   of one pair: the delta rule's l = 1/2 |k S - v|^2   (U.34)"""
    return delta_loss(S, k, v)


def delta_product_gradient(S: Array, k: Array, v: Array) -> Array:
    """(B,K,E),(B,K),(B,E)->(B,K,E)   of one pair: dl/dS = k^T (k S - v)   (U.34)"""
    return delta_gradient(S, k, v)


def delta_product_recurrent_fwd(
    q: Array, k: Array, v: Array, beta: Array, state: Array | None = None, *, read: str,
) -> tuple[tuple[Array, Array], DeltaProductResidual]:  # fmt: skip
    """(B,T,K),(B,T,N,K),(B,T,N,E),(B,T,N),(B,K,E)->(B,T,E),(B,K,E)
    S <- S - beta_tn k_tn^T (k_tn S - v_tn), n = 0 .. N-1   (U.35)

    ``read`` "strict": o_t = q_t S_t; "inclusive": o_t = q_t S_{t+1}. ``state`` None is an empty
    memory. Raises ValueError for another read, shapes that do not fit, or N = 0.
    """
    xp = namespace(q, k, v, beta, state)
    steps = _check(q, k, v, beta, state, read)
    states = [start_state(state, k, v)]
    for t in range(q.shape[1]):
        for n in range(steps):
            S = states[-1]
            g = delta_product_gradient(S, k[:, t, n, :], v[:, t, n, :])  # (B,K,E)
            states.append(S - each(beta[:, t, n]) * g)
    states = xp.stack(states, axis=1)  # (B,TN+1,K,E)
    out = reads(q, states[:, ::steps, ...], read)  # (B,T,E)
    res = DeltaResidual(spread(q, steps, read), flat(k), flat(v), flat(beta), states, read)
    return (out, states[:, -1, ...]), DeltaProductResidual(steps, read, res)


def delta_product_recurrent_bwd(
    dout: Array, dstate_out: Array | None, res: DeltaProductResidual
) -> tuple[Array, ...]:
    """Adjoint of delta_product_recurrent_fwd: backpropagation through time.   (U.36)

    Returns dq, dk, dv, dbeta, dstate.
    """
    steps, read, delta = res
    q, k, v, beta, states, _ = asked_for(spread(dout, steps, read), dstate_out, delta)
    xp, q = namespace(dout, q), every(q, steps, read)  # (B,T,K)
    # forward: out = reads(q, every N-th state)
    dq, dread = reads_bwd(dout, q, states[:, ::steps, ...], read)  # (B,T,K), (B,T+1,K,E)
    dS = dread[:, -1, ...] if dstate_out is None else dread[:, -1, ...] + dstate_out  # (B,K,E)
    dks, dvs, dbetas = [], [], []
    for i in reversed(range(k.shape[1])):
        token = states[:, i, ...], k[:, i, :], v[:, i, :]
        # forward: S' = S - beta g
        dbetas.append(-xp.sum(dS * delta_product_gradient(*token), axis=(1, 2)))  # (B,)
        # forward: g = k^T (k S - v)
        dg = -each(beta[:, i]) * dS  # (B,K,E)
        through, dk, dv = delta_gradient_bwd(dg, *token)  # (B,K,E), (B,K), (B,E)
        dS = dS + through
        if i % steps == 0:
            dS = dS + dread[:, i // steps, ...]
        dks.append(dk)
        dvs.append(dv)
    rows = stack(dks[::-1], k), stack(dvs[::-1], v), stack(dbetas[::-1], beta)  # (B,TN,...)
    return dq, *(unflat(a, steps) for a in rows), dS


def delta_product_chunked_fwd(
    q: Array, k: Array, v: Array, beta: Array, state: Array | None = None, chunk: int | None = None,
    *, read: str,
) -> tuple[tuple[Array, Array], DeltaProductResidual]:  # fmt: skip
    """(B,T,K),(B,T,N,K),(B,T,N,E),(B,T,N),(B,K,E)->(B,T,E),(B,K,E)
    the delta rule on N T tokens, every N-th one read   (U.37)

    ``chunk`` (in tokens) None is one chunk. Raises ValueError as ``delta_product_recurrent_fwd``
    does, and if ``chunk`` is below 1.
    """
    namespace(q, k, v, beta, state)
    steps = _check(q, k, v, beta, state, read)
    chunk = chunk * steps if chunk and chunk > 0 else chunk
    tokens = spread(q, steps, read), flat(k), flat(v), flat(beta)  # (B,TN,...)
    (out, state), delta = delta_chunked_fwd(*tokens, state, chunk, read=read)  # (B,TN,E), (B,K,E)
    return (every(out, steps, read), state), DeltaProductResidual(steps, read, delta)


def delta_product_chunked_bwd(
    dout: Array, dstate_out: Array | None, res: DeltaProductResidual
) -> tuple[Array, ...]:
    """Adjoint of delta_product_chunked_fwd. Returns dq, dk, dv, dbeta, dstate.   (U.38)"""
    steps, read, delta = res
    # forward: out = every N-th output of the delta rule, whose queries are 0 in between
    dq, dk, dv, dbeta, dstate = delta_chunked_bwd(spread(dout, steps, read), dstate_out, delta)
    return every(dq, steps, read), *(unflat(a, steps) for a in (dk, dv, dbeta)), dstate


def _check(q: Array, k: Array, v: Array, beta: Array, state: Array | None, read: str) -> int:
    check_rule(
        read, q=(q, "BTK"), k=(k, "BTNK"), v=(v, "BTNE"), beta=(beta, "BTN"), state=(state, "BKE")
    )
    return count_steps(k)


# --- steps as tokens


def count_steps(k: Array) -> int:
    """N of k (B,T,N,K). Raises ValueError if it is 0."""
    if not k.shape[2]:
        raise ValueError(
            f"a token takes at least one step, got k of shape {tuple(k.shape)}: N is its third axis"
        )
    return k.shape[2]


def flat(a: Array) -> Array:
    """(B,T,N,...)->(B,TN,...)   steps as tokens"""
    return namespace(a).reshape(a, (a.shape[0], a.shape[1] * a.shape[2], *a.shape[3:]))


def unflat(a: Array, steps: int) -> Array:
    """(B,TN,...)->(B,T,N,...)"""
    return namespace(a).reshape(a, (a.shape[0], a.shape[1] // steps, steps, *a.shape[2:]))


def spread(a: Array, steps: int, read: str) -> Array:
    """(B,T,K)->(B,TN,K)   each token's row at the step where it reads; 0 at the others

    That is its first step if the read is strict, its last if inclusive.
    """
    xp = namespace(a)
    row = a[:, :, None, :]  # (B,T,1,K)
    shape = (*a.shape[:2], steps - 1, a.shape[2])
    rest = xp.zeros(shape, dtype=a.dtype, device=device(a))  # (B,T,N-1,K)
    return flat(xp.concat([row, rest] if read == "strict" else [rest, row], axis=2))


def every(a: Array, steps: int, read: str) -> Array:
    """(B,TN,E)->(B,T,E)   the rows that spread filled: its adjoint"""
    return unflat(a, steps)[:, :, 0 if read == "strict" else steps - 1, :]
