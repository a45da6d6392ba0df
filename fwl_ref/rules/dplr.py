"""Diagonal plus low rank (DPLR), the generalised delta rule of RWKV-7: gated linear attention that
also writes what it recalls.

    recall     r_t = a_t S_t
    loss       l(S) = -<v, k S> - <r, b S> + 1/2 sum_c (1 - alpha_c) |S_c|^2
    gradient   dl/dS = -k^T v - b^T r + Diag(1 - alpha) S,  with r held fixed
    update     S_{t+1} = S_t - dl/dS = (Diag(alpha_t) + b_t^T a_t) S_t + k_t^T v_t

Two pairs are written per token: (k, v), and (b, r) whose value the memory gives itself. With b
against a the second pair erases: a = alpha k and b = -beta k take out what k recalls, which is the
delta rules' step. Since r is held fixed this is a semi-gradient step; unless the transition
Diag(alpha) + b^T a is symmetric, it is the gradient of no function of S alone. a, b and alpha are
(B,T,K). State: S (B,K,E).

    b = 0                                        gated linear attention
    a = alpha k, b = -beta k, write beta k       KDA; equal channels: the gated delta rule
    a = -kappa, b = kappa * rate                 RWKV-7, |kappa| = 1, a rate per channel
    a = k, b = -beta' k, equal alpha, write beta k, query q - d k       Comba

A recall is a strict read, so given all r of a chunk the rest is gated linear attention of both
pairs, and r itself solves a triangular system, as the errors of the delta rules do. With sums over
c of a_tc b_jc G^c_{t,j+1} in place of plain scores:

    (I - sigma^ab) r = sigma^ak v + (a G_t0) S_0

Forms: recurrent, the definition, 4 K E multiply-adds per token; chunked, 4 K E + S (8 K
+ 7/2 E) and S K / 2 for the fades. alpha may be 0 in both.

Peng et al. 2025 (arXiv 2503.14456); Comba: Hu et al. 2025 (arXiv 2506.02475).
"""

from __future__ import annotations

from typing import NamedTuple

from ..backend import Array, namespace
from ..ops.common import anticausal_product, causal_product
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
    apply,
    asked_for,
    check_rule,
    chunks_bwd,
    chunks_fwd,
    outer,
    reads,
    reads_bwd,
    solve,
    solve_bwd,
    stack,
    start_state,
)


class DPLRResidual(NamedTuple):
    q: Array  # (B,T,K)
    k: Array  # (B,T,K)
    v: Array  # (B,T,E)
    alpha: Array  # (B,T,K)
    a: Array  # (B,T,K)
    b: Array  # (B,T,K)
    states: Array  # (B,T+1,K,E) all states of the recurrent form; (B,1,K,E) the first of a chunk
    read: str


def dplr_loss(S: Array, k: Array, v: Array, alpha: Array, b: Array, r: Array) -> Array:
    """(B,K,E),(B,K),(B,E),(B,K),(B,K),(B,E)->(B)
    l = -<v, k S> - <r, b S> + 1/2 sum_c (1 - alpha_c) |S_c|^2, r = a S_t held fixed   (U.49)
    """
    xp = namespace(S, k, v, alpha, b, r)
    pull = 0.5 * xp.sum((1 - alpha) * xp.sum(S * S, axis=2), axis=1)  # (B,)
    return pull - xp.sum(apply(k, S) * v + apply(b, S) * r, axis=-1)


def dplr_gradient(S: Array, k: Array, v: Array, alpha: Array, b: Array, r: Array) -> Array:
    """(B,K,E),(B,K),(B,E),(B,K),(B,K),(B,E)->(B,K,E)
    dl/dS = -k^T v - b^T r + Diag(1 - alpha) S   (U.49)
    """
    return (1 - alpha)[:, :, None] * S - outer(k, v) - outer(b, r)


def dplr_recurrent_fwd(
    q: Array, k: Array, v: Array, alpha: Array, a: Array, b: Array, state: Array | None = None, *,
    read: str,
) -> tuple[tuple[Array, Array], DPLRResidual]:  # fmt: skip
    """(B,T,K),(B,T,K),(B,T,E),(B,T,K),(B,T,K),(B,T,K),(B,K,E)->(B,T,E),(B,K,E)
    S_{t+1} = (Diag(alpha_t) + b_t^T a_t) S_t + k_t^T v_t   (U.50)

    ``read`` "strict": o_t = q_t S_t; "inclusive": o_t = q_t S_{t+1}. ``state`` None is an empty
    memory. Raises ValueError for another read or shapes that do not fit.
    """
    xp = namespace(q, k, v, alpha, a, b, state)
    _check(q, k, v, alpha, a, b, state, read)
    states = [start_state(state, k, v)]
    for t in range(q.shape[1]):
        S = states[t]
        r = apply(a[:, t, :], S)  # (B,E)
        g = dplr_gradient(S, k[:, t, :], v[:, t, :], alpha[:, t, :], b[:, t, :], r)  # (B,K,E)
        states.append(S - g)
    states = xp.stack(states, axis=1)  # (B,T+1,K,E)
    res = DPLRResidual(q, k, v, alpha, a, b, states, read)
    return (reads(q, states, read), states[:, -1, ...]), res


def dplr_recurrent_bwd(
    dout: Array, dstate_out: Array | None, res: DPLRResidual
) -> tuple[Array, ...]:
    """Adjoint of dplr_recurrent_fwd: backpropagation through time.   (U.51)

    Returns dq, dk, dv, dalpha, da, db, dstate.
    """
    q, k, v, alpha, a, b, states, read = asked_for(dout, dstate_out, res)
    xp = namespace(dout, q)
    # forward: out = reads(q, states)
    dq, dread = reads_bwd(dout, q, states, read)  # (B,T,K), (B,T+1,K,E)
    dS = dread[:, -1, ...] if dstate_out is None else dread[:, -1, ...] + dstate_out  # (B,K,E)
    dks, dvs, dalphas, das, dbs = [], [], [], [], []
    for t in reversed(range(q.shape[1])):
        S, r = states[:, t, ...], apply(a[:, t, :], states[:, t, ...])  # (B,K,E), (B,E)
        # forward: S' = Diag(alpha) S + k^T v + b^T r
        dalphas.append(xp.sum(dS * S, axis=2))  # (B,K)
        dks.append(apply(v[:, t, :], xp.matrix_transpose(dS)))  # (B,K)
        dvs.append(apply(k[:, t, :], dS))  # (B,E)
        dbs.append(apply(r, xp.matrix_transpose(dS)))  # (B,K)
        dr = apply(b[:, t, :], dS)  # (B,E)
        # forward: r = a S
        das.append(apply(dr, xp.matrix_transpose(S)))  # (B,K)
        dS = alpha[:, t, :, None] * dS + outer(a[:, t, :], dr) + dread[:, t, ...]
    rates = (stack(rows[::-1], k) for rows in (dalphas, das, dbs))  # (B,T,K)
    return dq, stack(dks[::-1], k), stack(dvs[::-1], v), *rates, dS


def dplr_chunked_fwd(
    q: Array, k: Array, v: Array, alpha: Array, a: Array, b: Array, state: Array | None = None,
    chunk: int | None = None, *, read: str,
) -> tuple[tuple[Array, Array], tuple]:  # fmt: skip
    """(B,T,K),(B,T,K),(B,T,E),(B,T,K),(B,T,K),(B,T,K),(B,K,E)->(B,T,E),(B,K,E)
    r = (I - sigma^ab)^{-1} (sigma^ak v + (a G) S_0), then sums of both pairs   (U.52)

    ``chunk`` None is one chunk. Raises ValueError as ``dplr_recurrent_fwd`` does, or if
    ``chunk`` is below 1.
    """
    namespace(q, k, v, alpha, a, b, state)
    _check(q, k, v, alpha, a, b, state, read)
    return chunks_fwd(
        lambda *tokens: _chunk_fwd(*tokens, read),
        (q, k, v, alpha, a, b),
        start_state(state, k, v),
        chunk,
    )


def dplr_chunked_bwd(
    dout: Array, dstate_out: Array | None, res: tuple[DPLRResidual, ...]
) -> tuple[Array, ...]:
    """Adjoint of dplr_chunked_fwd. Returns dq, dk, dv, dalpha, da, db, dstate.   (U.53)"""
    return chunks_bwd(_chunk_bwd, dout, dstate_out, res)


def _chunk_fwd(
    q: Array, k: Array, v: Array, alpha: Array, a: Array, b: Array, state: Array, read: str
):
    fade = channel_fades(alpha)  # (B,L+1,L+1,K)
    *_, r = _recalled(k, v, a, b, fade, state)  # (B,L,E)
    # pairs (k, v), and pairs (b, r)
    out, state_out = channel_sums(q, k, v, fade, state, read)  # (B,L,E), (B,K,E)
    more, state_more = channel_sums(q, b, r, fade, None, read)  # (B,L,E), (B,K,E)
    res = DPLRResidual(q, k, v, alpha, a, b, state[:, None, ...], read)
    return (out + more, state_out + state_more), res


def _chunk_bwd(dout: Array, dstate_out: Array | None, res: DPLRResidual):
    q, k, v, alpha, a, b, states, read = res
    xp, state, fade = namespace(dout, q), states[:, 0, ...], channel_fades(alpha)  # (B,L+1,L+1,K)
    of_pairs, of_recalls, r = _recalled(k, v, a, b, fade, state)  # (B,L,L), (B,L,L), (B,L,E)
    # forward: out, state_out = channel_sums(q, k, v) + channel_sums(q, b, r)
    d_pairs = channel_sums_bwd(dout, dstate_out, q, k, v, fade, state, read)
    d_recalls = channel_sums_bwd(dout, dstate_out, q, b, r, fade, None, read)
    dq, dk, dv, dfade, dstate = d_pairs
    dq_more, db, dr, dfade_more, _ = d_recalls
    dfade += dfade_more
    # forward: r = (I - of_recalls)^{-1} (of_pairs v + what a reads of S_0)
    dsystem, dright = solve_bwd(dr, -of_recalls, r)  # (B,L,L), (B,L,E)
    dv += anticausal_product(of_pairs, dright)
    d_start = channel_start_bwd(dright, a, fade, state, "strict")
    dof_pairs = xp.matmul(dright, xp.matrix_transpose(v))  # (B,L,L)
    # forward: of_pairs, of_recalls = scores of a and k, of a and b
    d_of_pairs = channel_scores_bwd(dof_pairs, a, k, fade, "strict")
    d_of_recalls = channel_scores_bwd(-dsystem, a, b, fade, "strict")
    da, dfade_start, dstate_start = d_start
    da += d_of_pairs[0] + d_of_recalls[0]  # (B,L,K)
    dk += d_of_pairs[1]  # (B,L,K)
    db += d_of_recalls[1]  # (B,L,K)
    # forward: fade = channel_fades(alpha)
    dfade += dfade_start + d_of_pairs[2] + d_of_recalls[2]  # (B,L+1,L+1,K)
    dalpha = channel_fades_bwd(dfade, fade)  # (B,L,K)
    return dq + dq_more, dk, dv, dalpha, da, db, dstate + dstate_start


def _recalled(
    k: Array, v: Array, a: Array, b: Array, fade: Array, state: Array
) -> tuple[Array, Array, Array]:
    """Strict scores of a and k (B,L,L), of a and b (B,L,L), and what is recalled, (B,L,E)

    That is r_t = a_t S_t.
    """
    of_pairs = channel_scores(a, k, fade, "strict")  # (B,L,L)
    of_recalls = channel_scores(a, b, fade, "strict")  # (B,L,L)
    right = causal_product(of_pairs, v) + channel_start(a, fade, state, "strict")  # (B,L,E)
    return of_pairs, of_recalls, solve(-of_recalls, right)


def _check(
    q: Array, k: Array, v: Array, alpha: Array, a: Array, b: Array, state: Array | None, read: str
) -> None:
    check_rule(
        read,
        q=(q, "BTK"),
        k=(k, "BTK"),
        v=(v, "BTE"),
        alpha=(alpha, "BTK"),
        a=(a, "BTK"),
        b=(b, "BTK"),
        state=(state, "BKE"),
    )
