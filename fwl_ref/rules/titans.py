"""Titans with a linear memory: gradient descent with momentum and weight decay, run online.

    loss       l(M) = 1/2 |k M - v|^2, the delta rule's
    gradient   dl/dM = k^T (k M - v)
    update     U_{t+1} = eta_t U_t - theta_t dl_t/dM (M_t),    M_{t+1} = (1 - alpha_t) M_t + U_{t+1}

Exactly heavy ball with weight decay, three learned rates per token: ``momentum`` eta, ``decay``
alpha, ``step`` theta. Without momentum and decay it is the delta rule. State: the memory M, which
is read, and the update U that is still under way, both (B,K,E). (The paper's loss has no 1/2: its
theta is half of this one.)

A write w_j = -theta_j k_j^T e_j, e_j = k_j M_j - v_j, reaches M_i through every U on the way: rates
alone decide how much of it, C_ij. So

    M_i = a_i M_0 + c_i U_0 + sum_{j<i} C_ij w_j,    w_j = k_j^T u_j
    (I + A) u = theta (v - a k M_0 - c k U_0)

with A_ts = theta_t C_ts (k_t . k_s) strictly lower triangular: the delta rule's WY form with the
heavy ball's impulse response as its mask. The chunked form is therefore exact, gradients taken at
the current memory. The *stale* form is another function unless chunks hold one token: it takes the
gradients of a chunk at the chunk's first memory, so A = 0 and there is nothing to solve. That is
what the paper trains with, and there the chunk size is part of the model.

A fourth rate is 1 unless it is given: ``join`` iota, how much of the update reaches the memory,
M_{t+1} = (1 - alpha_t) M_t + iota_t U_{t+1}. With it one update may hold many tokens
(``titans_per_chunk.py``). What rates decide is in ``heavy_ball.py``.

Forms: recurrent, the definition, 3 K E multiply-adds per token; chunked and stale, 6 K E + S (2 K +
3/2 E) + O(S^2) in chunks of S.

Behrouz, Zhong, Mirrokni 2025 (arXiv 2501.00663).
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
    past,
    read_from_bwd,
    reads,
    reads_bwd,
    solve,
    solve_bwd,
    stack,
    start_state,
)
from .delta import delta_gradient, delta_gradient_bwd, delta_loss
from .heavy_ball import Responses, heavy_sums, heavy_sums_bwd, responses, responses_bwd


class TitansState(NamedTuple):
    """What is carried from token to token; also the gradient of that."""

    M: Array  # (B,K,E) the memory, the S of the other rules
    U: Array  # (B,K,E) its momentum


class TitansResidual(NamedTuple):
    q: Array  # (B,T,K)
    k: Array  # (B,T,K)
    v: Array  # (B,T,E)
    momentum: Array  # (B,T)
    decay: Array  # (B,T)
    step: Array  # (B,T)
    join: Array | None  # (B,T)
    states: TitansState  # (B,T+1,K,E) all of the recurrent form; (B,1,K,E) the first of a chunk
    read: str
    stale: bool


def titans_loss(M: Array, k: Array, v: Array) -> Array:
    """(B,K,E),(B,K),(B,E)->(B)   the delta rule's l = 1/2 |k M - v|^2   (W.1)"""
    return delta_loss(M, k, v)


def titans_gradient(M: Array, k: Array, v: Array) -> Array:
    """(B,K,E),(B,K),(B,E)->(B,K,E)   the delta rule's dl/dM = k^T (k M - v)   (W.1)"""
    return delta_gradient(M, k, v)


def titans_recurrent_fwd(
    q: Array, k: Array, v: Array, momentum: Array, decay: Array, step: Array,
    state: TitansState | None = None, *, read: str, join: Array | None = None,
) -> tuple[tuple[Array, TitansState], TitansResidual]:  # fmt: skip
    """(B,T,K),(B,T,K),(B,T,E),(B,T),(B,T),(B,T),TitansState->(B,T,E),TitansState
    M' = (1 - alpha) M + eta U - theta dl/dM   (W.2)

    ``read`` "strict": o_t = q_t M_t; "inclusive": o_t = q_t M_{t+1}. ``state`` None is an empty
    memory at rest. ``join`` (B,T): how much of U' reaches M'; None is 1. Raises ValueError for
    another read or shapes that do not fit.
    """
    xp, start = _checked(q, k, v, momentum, decay, step, join, state, read)
    memories, updates = [start.M], [start.U]
    for t in range(q.shape[1]):
        M, U = memories[t], updates[t]
        g = titans_gradient(M, k[:, t, :], v[:, t, :])  # (B,K,E)
        updates.append(each(momentum[:, t]) * U - each(step[:, t]) * g)
        joins = updates[t + 1] if join is None else each(join[:, t]) * updates[t + 1]  # (B,K,E)
        memories.append((1 - each(decay[:, t])) * M + joins)  # (B,K,E)
    states = TitansState(xp.stack(memories, axis=1), xp.stack(updates, axis=1))  # (B,T+1,K,E)
    res = TitansResidual(q, k, v, momentum, decay, step, join, states, read, False)
    return (reads(q, states.M, read), TitansState(memories[-1], updates[-1])), res


def titans_recurrent_bwd(dout: Array, dstate_out: TitansState | None, res: TitansResidual) -> tuple:
    """Adjoint of titans_recurrent_fwd: backpropagation through time.   (W.3)

    Returns dq, dk, dv, dmomentum, ddecay, dstep, with a join djoin, dstate.
    """
    q, k, v, momentum, decay, step, join, states, read, _ = asked_for(dout, dstate_out, res)
    xp = namespace(dout, q)
    # forward: out = reads(q, memories)
    dq, dread = reads_bwd(dout, q, states.M, read)  # (B,T,K), (B,T+1,K,E)
    dM, dU = dread[:, -1, ...], xp.zeros_like(dread[:, -1, ...])  # (B,K,E)
    if dstate_out is not None:
        dM, dU = dM + dstate_out.M, dU + dstate_out.U
    dks, dvs, dmomenta, ddecays, dsteps, djoins = [], [], [], [], [], []
    for t in reversed(range(q.shape[1])):
        M, U, token = states.M[:, t, ...], states.U[:, t, ...], (k[:, t, :], v[:, t, :])
        # forward: M' = (1 - alpha) M + iota U'
        djoins.append(xp.sum(dM * states.U[:, t + 1, ...], axis=(1, 2)))  # (B,)
        dU = dU + (dM if join is None else each(join[:, t]) * dM)
        ddecays.append(-xp.sum(dM * M, axis=(1, 2)))  # (B,)
        dM = (1 - each(decay[:, t])) * dM
        # forward: U' = eta U - theta g
        dmomenta.append(xp.sum(dU * U, axis=(1, 2)))  # (B,)
        dsteps.append(-xp.sum(dU * titans_gradient(M, *token), axis=(1, 2)))  # (B,)
        dg = -each(step[:, t]) * dU  # (B,K,E)
        dU = each(momentum[:, t]) * dU
        # forward: g = k^T (k M - v)
        through, dk, dv = delta_gradient_bwd(dg, M, *token)  # (B,K,E), (B,K), (B,E)
        dM = dM + through + dread[:, t, ...]
        dks.append(dk)
        dvs.append(dv)
    rates = (
        stack(rows[::-1], like)
        for rows, like in ((dmomenta, momentum), (ddecays, decay), (dsteps, step), (djoins, join))
        if like is not None
    )
    return dq, stack(dks[::-1], k), stack(dvs[::-1], v), *rates, TitansState(dM, dU)


def titans_chunked_fwd(
    q: Array, k: Array, v: Array, momentum: Array, decay: Array, step: Array,
    state: TitansState | None = None, chunk: int | None = None, *, read: str,
    join: Array | None = None,
) -> tuple[tuple[Array, TitansState], tuple]:  # fmt: skip
    """(B,T,K),(B,T,K),(B,T,E),(B,T),(B,T),(B,T),TitansState->(B,T,E),TitansState
    the same function by chunks   (W.5)

    u = (I + A)^{-1} theta (v - a k M_0 - c k U_0), then sums of u with the coefficients of (W.4).
    ``chunk`` None is one chunk. Raises ValueError as ``titans_recurrent_fwd`` does, and if
    ``chunk`` is below 1.
    """
    _, start = _checked(q, k, v, momentum, decay, step, join, state, read)
    return chunks_fwd(
        lambda *tokens: _chunk_fwd(*tokens, read, stale=False),
        (q, k, v, momentum, decay, step, join),
        start,
        chunk,
    )


def titans_chunked_bwd(
    dout: Array, dstate_out: TitansState | None, res: tuple[TitansResidual, ...]
) -> tuple:
    """Adjoint of titans_chunked_fwd.   (W.6)

    Returns dq, dk, dv, dmomentum, ddecay, dstep, with a join djoin, dstate.
    """
    return chunks_bwd(_chunk_bwd, dout, dstate_out, res)


def titans_stale_fwd(
    q: Array, k: Array, v: Array, momentum: Array, decay: Array, step: Array,
    state: TitansState | None = None, chunk: int | None = None, *, read: str,
    join: Array | None = None,
) -> tuple[tuple[Array, TitansState], tuple]:  # fmt: skip
    """(B,T,K),(B,T,K),(B,T,E),(B,T),(B,T),(B,T),TitansState->(B,T,E),TitansState
    u = theta (v - k M_0): not titans_recurrent_fwd   (W.7)

    The gradients of a chunk are taken at its first memory, so the chunk size is part of the
    function; with chunks of one token it is ``titans_recurrent_fwd``.
    """
    _, start = _checked(q, k, v, momentum, decay, step, join, state, read)
    return chunks_fwd(
        lambda *tokens: _chunk_fwd(*tokens, read, stale=True),
        (q, k, v, momentum, decay, step, join),
        start,
        chunk,
    )


def titans_stale_bwd(
    dout: Array, dstate_out: TitansState | None, res: tuple[TitansResidual, ...]
) -> tuple:
    """Adjoint of titans_stale_fwd.   (W.8)

    Returns dq, dk, dv, dmomentum, ddecay, dstep, with a join djoin, dstate.
    """
    return chunks_bwd(_chunk_bwd, dout, dstate_out, res)


def _checked(
    q: Array, k: Array, v: Array, momentum: Array, decay: Array, step: Array, join: Array | None,
    state: TitansState | None, read: str,
):  # fmt: skip
    """The namespace and the state that comes in."""
    M, U = state or (None, None)
    xp = namespace(q, k, v, momentum, decay, step, join, M, U)
    tokens = {"q": (q, "BTK"), "k": (k, "BTK"), "v": (v, "BTE")}
    rates = {"momentum": (momentum, "BT"), "decay": (decay, "BT"), "step": (step, "BT")}
    rates["join"] = (join, "BT")
    check_rule(read, **tokens, **rates, **{"state.M": (M, "BKE"), "state.U": (U, "BKE")})
    return xp, TitansState(start_state(M, k, v), start_state(U, k, v))


def _chunk_fwd(
    q: Array, k: Array, v: Array, momentum: Array, decay: Array, step: Array, join: Array | None,
    state: TitansState, read: str, stale: bool,
):  # fmt: skip
    M, U = state
    table = responses(momentum, decay, join)
    _, _, u = _errors(k, v, step, state, table, stale)  # (B,L,E)
    out, M_out, U_out = heavy_sums(q, k, u, table, M, U, read)  # (B,L,E), (B,K,E), (B,K,E)
    states = TitansState(M[:, None, ...], U[:, None, ...])  # (B,1,K,E)
    res = TitansResidual(q, k, v, momentum, decay, step, join, states, read, stale)
    return (out, TitansState(M_out, U_out)), res


def _chunk_bwd(dout: Array, dstate_out: TitansState | None, res: TitansResidual):
    q, k, v, momentum, decay, step, join, states, read, stale = res
    xp, M, U = namespace(dout, q), states.M[:, 0, ...], states.U[:, 0, ...]  # (B,K,E)
    dM_out, dU_out = dstate_out or (xp.zeros_like(M), xp.zeros_like(U))  # (B,K,E)
    table = responses(momentum, decay, join)
    gram, a, u = _errors(k, v, step, TitansState(M, U), table, stale)  # (B,L,L), (B,L,L), (B,L,E)
    # forward: out, M_out, U_out = heavy_sums(q, k, u, table, M, U)
    dq, dk, du, dtable, dM, dU = heavy_sums_bwd(dout, dM_out, dU_out, q, k, u, table, M, U, read)
    # forward: u = (I + A)^{-1} r
    from_M, from_U_then, seen = _seen_by_keys(table, stale)  # (B,L,1), (B,L,1), (B,L,L)
    da, dr = solve_bwd(du, a, u)  # (B,L,L), (B,L,E)
    # forward: r = theta (v - from_M k M - from_U_then k U)
    dv = step[:, :, None] * dr  # (B,L,E)
    kM, kU = xp.matmul(k, M), xp.matmul(k, U)  # (B,L,E)
    dstep = xp.sum(dr * (v - from_M * kM - from_U_then * kU), axis=-1)  # (B,L)
    dk -= from_M * xp.matmul(dv, xp.matrix_transpose(M))
    dk -= from_U_then * xp.matmul(dv, xp.matrix_transpose(U))
    dM -= xp.matmul(xp.matrix_transpose(from_M * k), dv)
    dU -= xp.matmul(xp.matrix_transpose(from_U_then * k), dv)
    # forward: A = theta (k k^T * seen) below the diagonal
    dstep += xp.sum(da * gram * seen, axis=-1)
    da = step[:, :, None] * da
    dgram = da * seen  # (B,L,L)
    dk += xp.matmul(dgram, k) + xp.matmul(xp.matrix_transpose(dgram), k)
    if not stale:
        # forward: from_M, from_U_then, seen = the rows of fade and through before each token
        dfrom_M, dthen = (-xp.sum(dv * kS, axis=-1, keepdims=True) for kS in (kM, kU))  # (B,L,1)
        dseen = xp.concat([dfrom_M, da * gram], axis=-1)  # (B,L,L+1)
        dtable = dtable._replace(
            from_U=dtable.from_U + read_from_bwd(dthen, "strict"),
            fade=dtable.fade + read_from_bwd(dseen, "strict"),
        )
    dmomentum, ddecay, djoin = responses_bwd(dtable, table, momentum, decay, join)
    drates = (dmomentum, ddecay, dstep) if join is None else (dmomentum, ddecay, dstep, djoin)
    return dq, dk, dv, *drates, TitansState(dM, dU)


def _errors(
    k: Array, v: Array, step: Array, state: TitansState, table: Responses, stale: bool,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """k k^T (B,L,L), A (B,L,L), and what is written, u_t = theta_t (v_t - k_t M_t) (B,L,E)"""
    xp, (M, U) = namespace(k, v, step), state
    from_M, from_U, seen = _seen_by_keys(table, stale)  # (B,L,1), (B,L,1), (B,L,L)
    gram = xp.matmul(k, xp.matrix_transpose(k))  # (B,L,L)
    a = masked(step[:, :, None] * (gram * seen), past(k, "strict"))  # (B,L,L)
    known = from_M * xp.matmul(k, M) + from_U * xp.matmul(k, U)  # (B,L,E)
    return gram, a, solve(a, step[:, :, None] * (v - known))


def _seen_by_keys(table: Responses, stale: bool) -> tuple[Array, Array, Array]:
    """How much of M_0 (B,L,1), U_0 (B,L,1) and the writes (B,L,L) each gradient is taken at

    Stale: M_0 alone.
    """
    from_M, from_U, seen = table.fade[:, :-1, :1], table.through[:, :-1, :1], table.fade[:, :-1, 1:]
    if stale:
        xp = namespace(seen)
        return xp.ones_like(from_M), xp.zeros_like(from_U), xp.zeros_like(seen)
    return from_M, from_U, seen
