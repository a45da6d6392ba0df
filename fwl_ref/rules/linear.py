"""Linear attention: a step of SGD per token, to let the memory's answer point towards the value.

    loss       l(S) = -<v, k S>
    gradient   l(S + C) = l(S) - <v, k C> for any change C,  so  dl/dS = -k^T v
    update     S_{t+1} = S_t + k_t^T v_t

Exactly online gradient descent with step size 1. The loss is linear in S, so its gradient does not
depend on S: stale gradients are current ones, every order of the tokens gives the same state, and
the sum over tokens needs no loop. State: S (B,K,E).

Forms: recurrent, the definition, 2 K E multiply-adds per token; chunked, 2 K E + S (K + E) in
chunks of S. One chunk is the parallel form, o = (q k^T * mask) v.

Katharopoulos et al. 2020 (arXiv 2006.16236); as fast weights, Schlag, Irie, Schmidhuber 2021 (arXiv
2102.11174).
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
    outer,
    reads,
    reads_bwd,
    stack,
    start_state,
    sums,
    sums_bwd,
    unfaded,
)


class LinearResidual(NamedTuple):
    q: Array  # (B,T,K)
    k: Array  # (B,T,K)
    v: Array  # (B,T,E)
    states: Array  # (B,T+1,K,E) all states of the recurrent form; (B,1,K,E) the first of a chunk
    read: str


def linear_loss(S: Array, k: Array, v: Array) -> Array:
    """(B,K,E),(B,K),(B,E)->(B)   l = -<v, k S>   (U.9)"""
    return -namespace(S, k, v).sum(apply(k, S) * v, axis=-1)  # (B,)


def linear_gradient(S: Array, k: Array, v: Array) -> Array:
    """(B,K,E),(B,K),(B,E)->(B,K,E)   dl/dS = -k^T v, whatever S   (U.9)"""
    namespace(S, k, v)
    return -outer(k, v)


def linear_recurrent_fwd(
    q: Array, k: Array, v: Array, state: Array | None = None, *, read: str
) -> tuple[tuple[Array, Array], LinearResidual]:
    """(B,T,K),(B,T,K),(B,T,E),(B,K,E)->(B,T,E),(B,K,E)   S_{t+1} = S_t + k_t^T v_t   (U.10)

    ``read`` "strict": o_t = q_t S_t; "inclusive": o_t = q_t S_{t+1}. ``state`` None is an empty
    memory. Raises ValueError for another read or shapes that do not fit.
    """
    xp = namespace(q, k, v, state)
    check_rule(read, q=(q, "BTK"), k=(k, "BTK"), v=(v, "BTE"), state=(state, "BKE"))
    states = [start_state(state, k, v)]
    for t in range(q.shape[1]):
        S = states[t]
        states.append(S - linear_gradient(S, k[:, t, :], v[:, t, :]))  # (B,K,E)
    states = xp.stack(states, axis=1)  # (B,T+1,K,E)
    return (reads(q, states, read), states[:, -1, ...]), LinearResidual(q, k, v, states, read)


def linear_recurrent_bwd(
    dout: Array, dstate_out: Array | None, res: LinearResidual
) -> tuple[Array, ...]:
    """Adjoint of linear_recurrent_fwd: backpropagation through time.   (U.11)

    Returns dq, dk, dv, dstate.
    """
    q, k, v, states, read = asked_for(dout, dstate_out, res)
    xp = namespace(dout, q)
    # forward: out = reads(q, states)
    dq, dread = reads_bwd(dout, q, states, read)  # (B,T,K), (B,T+1,K,E)
    dS = dread[:, -1, ...] if dstate_out is None else dread[:, -1, ...] + dstate_out  # (B,K,E)
    dks, dvs = [], []
    for t in reversed(range(q.shape[1])):
        # forward: S' = S + k^T v
        dks.append(apply(v[:, t, :], xp.matrix_transpose(dS)))  # (B,K)
        dvs.append(apply(k[:, t, :], dS))  # (B,E)
        dS = dS + dread[:, t, ...]
    return dq, stack(dks[::-1], k), stack(dvs[::-1], v), dS


def linear_chunked_fwd(
    q: Array, k: Array, v: Array, state: Array | None = None, chunk: int | None = None, *,
    read: str,
) -> tuple[tuple[Array, Array], tuple]:  # fmt: skip
    """(B,T,K),(B,T,K),(B,T,E),(B,K,E)->(B,T,E),(B,K,E)
    o = (q k^T * mask) v + q S_0, chunk after chunk   (U.12)

    ``chunk`` None is one chunk. Raises ValueError as ``linear_recurrent_fwd`` does, and if
    ``chunk`` is below 1.
    """
    namespace(q, k, v, state)
    check_rule(read, q=(q, "BTK"), k=(k, "BTK"), v=(v, "BTE"), state=(state, "BKE"))
    return chunks_fwd(
        lambda *tokens: _chunk_fwd(*tokens, read), (q, k, v), start_state(state, k, v), chunk
    )


def linear_chunked_bwd(
    dout: Array, dstate_out: Array | None, res: tuple[LinearResidual, ...]
) -> tuple[Array, ...]:
    """Adjoint of linear_chunked_fwd. Returns dq, dk, dv, dstate.   (U.13)"""
    return chunks_bwd(_chunk_bwd, dout, dstate_out, res)


def _chunk_fwd(q: Array, k: Array, v: Array, state: Array, read: str):
    out = sums(q, k, v, unfaded(q.shape[1], q), state, read)  # (B,L,E), (B,K,E)
    return out, LinearResidual(q, k, v, state[:, None, ...], read)


def _chunk_bwd(dout: Array, dstate_out: Array | None, res: LinearResidual):
    q, k, v, states, read = res
    # forward: out, state_out = sums(q, k, v)
    dq, dk, dv, _, dstate = sums_bwd(
        dout, dstate_out, q, k, v, unfaded(q.shape[1], q), states[:, 0, ...], read
    )
    return dq, dk, dv, dstate
