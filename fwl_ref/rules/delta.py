"""The delta rule (DeltaNet): one step of SGD per token on how well the memory recalls the value.

    loss       l(S) = 1/2 |k S - v|^2
    gradient   l(S + C) = l(S) + <k S - v, k C> + O(C^2) for a change C,
               so  dl/dS = k^T (k S - v)
    update     S_{t+1} = S_t - beta_t k_t^T (k_t S_t - v_t)
                       = (I - beta_t k_t^T k_t) S_t + beta_t k_t^T v_t

Exactly online gradient descent with step size beta on least squares (LMS, Widrow and Hoff); with
beta = 1 / |k|^2 the pair is stored without error. State: S (B,K,E).

What is written is an error, u_t = beta_t (v_t - k_t S_t), and it depends on earlier writes: S_t =
S_0 + sum_{s<t} k_s^T u_s. So the tokens of a chunk cannot be summed at once, but their dependence
is linear and triangular:

    (I + A) u = beta (v - k S_0),    A_ts = beta_t (k_t . k_s) for s < t

One triangular solve gives all u of a chunk; from there on it is linear attention with u in place of
v. This is the WY representation of a product of Householder-like matrices: with W = (I + A)^{-1}
beta k, the chunk multiplies the state by I - k^T W.

Forms: recurrent, the definition, 3 K E multiply-adds per token; chunked, 3 K E + S (2 K + 3/2 E) in
chunks of S, as matrix products.

Schlag, Irie, Schmidhuber 2021 (arXiv 2102.11174); the chunked form is Yang et al. 2024 (arXiv
2406.06484).
"""

from __future__ import annotations

from typing import NamedTuple

from ..backend import Array, namespace
from ..ops.common import masked
from .common import (
    apply,
    asked_for,
    check_rule,
    chunks_bwd,
    chunks_fwd,
    each,
    outer,
    past,
    reads,
    reads_bwd,
    solve,
    solve_bwd,
    stack,
    start_state,
    sums,
    sums_bwd,
    unfaded,
)


class DeltaResidual(NamedTuple):
    q: Array  # (B,T,K)
    k: Array  # (B,T,K)
    v: Array  # (B,T,E)
    beta: Array  # (B,T)
    states: Array  # (B,T+1,K,E) all states of the recurrent form; (B,1,K,E) the first of a chunk
    read: str


def delta_loss(S: Array, k: Array, v: Array) -> Array:
    """(B,K,E),(B,K),(B,E)->(B)   l = 1/2 |k S - v|^2   (U.24)"""
    xp = namespace(S, k, v)
    error = apply(k, S) - v  # (B,E)
    return 0.5 * xp.sum(error * error, axis=-1)  # (B,)


def delta_gradient(S: Array, k: Array, v: Array) -> Array:
    """(B,K,E),(B,K),(B,E)->(B,K,E)   dl/dS = k^T (k S - v)   (U.24)"""
    return outer(k, apply(k, S) - v)


def delta_gradient_bwd(dg: Array, S: Array, k: Array, v: Array) -> tuple[Array, Array, Array]:
    """Adjoint of delta_gradient: dS, dk, dv.   (U.26)"""
    xp = namespace(dg, S, k, v)
    error = apply(k, S) - v  # (B,E)
    # forward: g = k^T error
    dk = apply(error, xp.matrix_transpose(dg))  # (B,K)
    derror = apply(k, dg)  # (B,E)
    # forward: error = k S - v
    return outer(k, derror), dk + apply(derror, xp.matrix_transpose(S)), -derror


def delta_recurrent_fwd(
    q: Array, k: Array, v: Array, beta: Array, state: Array | None = None, *, read: str,
) -> tuple[tuple[Array, Array], DeltaResidual]:  # fmt: skip
    """(B,T,K),(B,T,K),(B,T,E),(B,T),(B,K,E)->(B,T,E),(B,K,E)
    S_{t+1} = S_t - beta_t k_t^T (k_t S_t - v_t)   (U.25)

    ``read`` "strict": o_t = q_t S_t; "inclusive": o_t = q_t S_{t+1}. ``state`` None is an empty
    memory. Raises ValueError for another read or shapes that do not fit.
    """
    xp = namespace(q, k, v, beta, state)
    check_rule(
        read, q=(q, "BTK"), k=(k, "BTK"), v=(v, "BTE"), beta=(beta, "BT"), state=(state, "BKE")
    )
    states = [start_state(state, k, v)]
    for t in range(q.shape[1]):
        S = states[t]
        states.append(S - each(beta[:, t]) * delta_gradient(S, k[:, t, :], v[:, t, :]))  # (B,K,E)
    states = xp.stack(states, axis=1)  # (B,T+1,K,E)
    return (reads(q, states, read), states[:, -1, ...]), DeltaResidual(q, k, v, beta, states, read)


def delta_recurrent_bwd(
    dout: Array, dstate_out: Array | None, res: DeltaResidual
) -> tuple[Array, ...]:
    """Adjoint of delta_recurrent_fwd: backpropagation through time.   (U.26)

    Returns dq, dk, dv, dbeta, dstate.
    """
    q, k, v, beta, states, read = asked_for(dout, dstate_out, res)
    xp = namespace(dout, q)
    # forward: out = reads(q, states)
    dq, dread = reads_bwd(dout, q, states, read)  # (B,T,K), (B,T+1,K,E)
    dS = dread[:, -1, ...] if dstate_out is None else dread[:, -1, ...] + dstate_out  # (B,K,E)
    dks, dvs, dbetas = [], [], []
    for t in reversed(range(q.shape[1])):
        token = states[:, t, ...], k[:, t, :], v[:, t, :]
        # forward: S' = S - beta g
        dbetas.append(-xp.sum(dS * delta_gradient(*token), axis=(1, 2)))  # (B,)
        # forward: g = k^T (k S - v)
        dg = -each(beta[:, t]) * dS  # (B,K,E)
        through, dk, dv = delta_gradient_bwd(dg, *token)  # (B,K,E), (B,K), (B,E)
        dS = dS + through + dread[:, t, ...]
        dks.append(dk)
        dvs.append(dv)
    return dq, stack(dks[::-1], k), stack(dvs[::-1], v), stack(dbetas[::-1], beta), dS


def delta_chunked_fwd(
    q: Array, k: Array, v: Array, beta: Array, state: Array | None = None, chunk: int | None = None,
    *, read: str,
) -> tuple[tuple[Array, Array], tuple]:  # fmt: skip
    """(B,T,K),(B,T,K),(B,T,E),(B,T),(B,K,E)->(B,T,E),(B,K,E)
    u = (I + A)^{-1} beta (v - k S_0), then linear attention with u   (U.27)

    ``chunk`` None is one chunk. Raises ValueError as ``delta_recurrent_fwd`` does, and if ``chunk``
    is below 1.
    """
    namespace(q, k, v, beta, state)
    check_rule(
        read, q=(q, "BTK"), k=(k, "BTK"), v=(v, "BTE"), beta=(beta, "BT"), state=(state, "BKE")
    )
    return chunks_fwd(
        lambda *tokens: _chunk_fwd(*tokens, read), (q, k, v, beta), start_state(state, k, v), chunk
    )


def delta_chunked_bwd(
    dout: Array, dstate_out: Array | None, res: tuple[DeltaResidual, ...]
) -> tuple[Array, ...]:
    """Adjoint of delta_chunked_fwd. Returns dq, dk, dv, dbeta, dstate.   (U.28)"""
    return chunks_bwd(_chunk_bwd, dout, dstate_out, res)


def _chunk_fwd(q: Array, k: Array, v: Array, beta: Array, state: Array, read: str):
    _, _, u = _errors(k, v, beta, state)  # (B,L,E)
    out = sums(q, k, u, unfaded(q.shape[1], q), state, read)  # (B,L,E), (B,K,E)
    return out, DeltaResidual(q, k, v, beta, state[:, None, ...], read)


def _chunk_bwd(dout: Array, dstate_out: Array | None, res: DeltaResidual):
    q, k, v, beta, states, read = res
    xp, state = namespace(dout, q), states[:, 0, ...]  # (B,K,E)
    gram, a, u = _errors(k, v, beta, state)  # (B,L,L), (B,L,L), (B,L,E)
    # forward: out, state_out = sums(q, k, u)
    dq, dk, du, _, dstate = sums_bwd(dout, dstate_out, q, k, u, unfaded(q.shape[1], q), state, read)
    # forward: u = (I + A)^{-1} r
    da, dr = solve_bwd(du, a, u)  # (B,L,L), (B,L,E)
    # forward: r = beta (v - k S_0)
    dv = beta[:, :, None] * dr  # (B,L,E)
    dbeta = xp.sum(dr * (v - xp.matmul(k, state)), axis=-1)  # (B,L)
    dk -= xp.matmul(dv, xp.matrix_transpose(state))
    dstate -= xp.matmul(xp.matrix_transpose(k), dv)
    # forward: A = beta (k k^T) below the diagonal
    dgram = beta[:, :, None] * da  # (B,L,L)
    dbeta += xp.sum(da * gram, axis=-1)
    dk += xp.matmul(dgram, k) + xp.matmul(xp.matrix_transpose(dgram), k)
    return dq, dk, dv, dbeta, dstate


def _errors(k: Array, v: Array, beta: Array, state: Array) -> tuple[Array, Array, Array]:
    """(B,L,K),(B,L,E),(B,L),(B,K,E)->(B,L,L),(B,L,L),(B,L,E)
    k k^T, A, and what is written: u_t = beta_t (v_t - k_t S_t)
    """
    xp = namespace(k, v, beta, state)
    gram = xp.matmul(k, xp.matrix_transpose(k))  # (B,L,L)
    a = masked(beta[:, :, None] * gram, past(k, "strict"))  # (B,L,L)
    return gram, a, solve(a, beta[:, :, None] * (v - xp.matmul(k, state)))
