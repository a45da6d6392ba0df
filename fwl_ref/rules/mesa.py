"""MesaNet: the memory is the minimiser of a ridge regression of all past values on all past keys.

    loss       L_t(S) = 1/2 sum_{s<t} zeta_ts |k_s S - v_s|^2 + 1/2 sum_c ridge_c |S_c|^2
               (S_c: the row of key channel c)
    gradient   dL/dS = (H + Lambda) S - G,
               H = sum zeta k^T k,  G = sum zeta k^T v,  Lambda = Diag(ridge)
    update     S_t = argmin L_t = (H_t + Lambda)^{-1} G_t

Exactly recursive least squares: one Newton step, from wherever one starts, ends at the minimum of a
quadratic. zeta_ts is weight_s times the keep of every token after s, so the statistics follow
G_{t+1} = keep_t G_t + weight_t k_t^T v_t and H likewise. The memory does not depend on the order of
the tokens (if keep = 1), and there is no step size to be too large. State: G (B,K,E) and H (B,K,K),
symmetric.

A query needs only x = q (H_t + Lambda)^{-1}, then o = x G_t. The matrix is symmetric and positive
definite, so conjugate gradients find x from products x H_t alone, and those of all tokens of a
chunk are one linear attention with keys k and values k: no H_t is formed. K iterations would be
exact without rounding, a few more are with it; fewer are an approximation, and the residual says
how good. The backward pass solves the same system once more, for the adjoint of a solve is a solve;
it does not go back through the iterations.

H holds squares of keys: where weight |k|^2 overflows, the memory is not finite from then on.
Values, queries and cotangents are not squared.

Forms, in multiply-adds per token: recurrent, the definition, K^3 / 3 + K^2 E + 2 K E + K^2;
chunked, with n iterations and chunks of S, (n + 1) (K^2 + 2 S K) + K^2 + 2 K E + S (K + E), and 2 S
for the fades.

von Oswald et al. 2025 (arXiv 2506.05233).
"""

from __future__ import annotations

from typing import NamedTuple

from ..backend import Array, device, is_host, namespace
from ..ops.common import causal_product, masked
from .common import (
    apply,
    asked_for,
    check_rule,
    chunks_bwd,
    chunks_fwd,
    each,
    fades,
    fades_bwd,
    outer,
    past,
    read_from,
    reads,
    reads_bwd,
    stack,
    start_state,
    sums,
    sums_bwd,
)


class MesaState(NamedTuple):
    """The statistics of the past; also the gradient of them."""

    G: Array  # (B,K,E) sum of zeta k^T v
    H: Array  # (B,K,K) sum of zeta k^T k


class MesaResidual(NamedTuple):
    q: Array  # (B,T,K)
    k: Array  # (B,T,K)
    v: Array  # (B,T,E)
    keep: Array  # (B,T)
    weight: Array  # (B,T)
    ridge: Array  # (K) or (B,K)
    states: MesaState  # (B,T+1,...)
    minima: Array  # (B,T+1,K,E) S of each of them
    read: str


class MesaChunkResidual(NamedTuple):
    q: Array  # (B,L,K)
    k: Array  # (B,L,K)
    v: Array  # (B,L,E)
    keep: Array  # (B,L)
    weight: Array  # (B,L)
    ridge: Array  # (K) or (B,K)
    states: MesaState  # (B,1,...) before the chunk
    x: Array  # (B,L,K) what conjugate gradients found for q (H + Lambda)^{-1}
    error: Array  # (B,L) |q - x (H + Lambda)|, what they left
    read: str
    iterations: int


def mesa_loss(S: Array, state: MesaState, ridge: Array) -> Array:
    """(B,K,E),MesaState,(K)->(B)
    L = 1/2 <S, (H + Lambda) S> - <S, G>, without the constant 1/2 sum zeta |v|^2   (W.24)

    ``ridge`` (K), here and below, is shared by all sequences; (B,K) is one for each of them.
    """
    xp = namespace(S, *state, ridge)
    half = 0.5 * (xp.matmul(state.H, S) + ridge[..., None] * S)  # (B,K,E)
    return xp.sum(S * (half - state.G), axis=(1, 2))  # (B,)


def mesa_gradient(S: Array, state: MesaState, ridge: Array) -> Array:
    """(B,K,E),MesaState,(K)->(B,K,E)   dL/dS = (H + Lambda) S - G   (W.24)"""
    xp = namespace(S, *state, ridge)
    return xp.matmul(state.H, S) + ridge[..., None] * S - state.G


def mesa_minimum(state: MesaState, ridge: Array) -> Array:
    """MesaState,(K)->(B,K,E)
    S = (H + Lambda)^{-1} G: one Newton step on the loss, here from S = 0   (W.25)
    """
    xp = namespace(*state, ridge)
    S = xp.zeros_like(state.G)
    return S - xp.linalg.solve(_matrix(state.H, ridge), mesa_gradient(S, state, ridge))


def mesa_minimum_bwd(
    dS: Array, S: Array, state: MesaState, ridge: Array
) -> tuple[MesaState, Array]:
    """Adjoint of mesa_minimum, dstate and dridge: a solve with the transpose.   (W.27)"""
    xp = namespace(dS, S, *state, ridge)
    # forward: S = A^{-1} G,  A = H + Lambda
    dG = xp.linalg.solve(xp.matrix_transpose(_matrix(state.H, ridge)), dS)  # (B,K,E)
    dA = -xp.matmul(dG, xp.matrix_transpose(S))  # (B,K,K)
    diagonal = dA * xp.eye(ridge.shape[-1], dtype=S.dtype, device=device(S))  # (B,K,K)
    return MesaState(dG, dA), _as_ridge(xp.sum(diagonal, axis=-1), ridge)


def mesa_recurrent_fwd(
    q: Array, k: Array, v: Array, keep: Array, weight: Array, ridge: Array,
    state: MesaState | None = None, *, read: str,
) -> tuple[tuple[Array, MesaState], MesaResidual]:  # fmt: skip
    """(B,T,K),(B,T,K),(B,T,E),(B,T),(B,T),(K),MesaState->(B,T,E),MesaState
    o_t = q_t S, S = argmin of the loss   (W.26)

    ``read`` "strict": S minimises the loss of the tokens before t; "inclusive": that of t too.
    ``state`` None: no past. Raises ValueError for another read, shapes that do not fit, or a ridge
    that is not positive.
    """
    xp, start = _checked(q, k, v, keep, weight, ridge, state, read)
    states, minima = [start], [mesa_minimum(start, ridge)]
    for t in range(q.shape[1]):
        (G, H), kept, written = states[t], each(keep[:, t]), each(weight[:, t])
        G = kept * G + written * outer(k[:, t, :], v[:, t, :])  # (B,K,E)
        H = kept * H + written * outer(k[:, t, :], k[:, t, :])  # (B,K,K)
        states.append(MesaState(G, H))
        minima.append(mesa_minimum(states[t + 1], ridge))
    parts = (xp.stack(list(part), axis=1) for part in zip(*states, strict=True))
    stacked, minima = MesaState(*parts), xp.stack(minima, axis=1)  # (B,T+1,...)
    res = MesaResidual(q, k, v, keep, weight, ridge, stacked, minima, read)
    return (reads(q, minima, read), states[-1]), res


def mesa_recurrent_bwd(dout: Array, dstate_out: MesaState | None, res: MesaResidual) -> tuple:
    """Adjoint of mesa_recurrent_fwd: backpropagation through time.   (W.27)

    Returns dq, dk, dv, dkeep, dweight, dridge, dstate.
    """
    q, k, v, keep, weight, ridge, states, minima, read = asked_for(dout, dstate_out, res)
    xp = namespace(dout, q)
    # forward: out = reads(q, minima)
    dq, dread = reads_bwd(dout, q, minima, read)  # (B,T,K), (B,T+1,K,E)
    # forward: minimum of the last state
    last = MesaState(*(a[:, -1, ...] for a in states))
    (dG, dH), dridge = mesa_minimum_bwd(dread[:, -1, ...], minima[:, -1, ...], last, ridge)
    if dstate_out is not None:
        dG, dH = dG + dstate_out.G, dH + dstate_out.H  # (B,K,E), (B,K,K)
    dks, dvs, dkeeps, dweights = [], [], [], []
    for t in reversed(range(q.shape[1])):
        state, key, value = MesaState(*(a[:, t, ...] for a in states)), k[:, t, :], v[:, t, :]
        # forward: G' = keep G + weight k^T v,  H' = keep H + weight k^T k
        dkeeps.append(xp.sum(dG * state.G, axis=(1, 2)) + xp.sum(dH * state.H, axis=(1, 2)))  # (B,)
        dvalue, dkey = apply(key, dG), apply(key, dH)  # (B,E), (B,K)
        dweights.append(xp.sum(dvalue * value, axis=-1) + xp.sum(dkey * key, axis=-1))  # (B,)
        dkey = apply(value, xp.matrix_transpose(dG)) + dkey  # (B,K)
        dkey = dkey + apply(key, xp.matrix_transpose(dH))
        dks.append(weight[:, t, None] * dkey)
        dvs.append(weight[:, t, None] * dvalue)
        dG, dH = each(keep[:, t]) * dG, each(keep[:, t]) * dH
        # forward: minimum of this state
        through, dridge_t = mesa_minimum_bwd(dread[:, t, ...], minima[:, t, ...], state, ridge)
        dG, dH, dridge = dG + through.G, dH + through.H, dridge + dridge_t
    tokens = (
        stack(rows[::-1], like)
        for rows, like in ((dks, k), (dvs, v), (dkeeps, keep), (dweights, weight))
    )
    return dq, *tokens, dridge, MesaState(dG, dH)


def mesa_chunked_fwd(
    q: Array, k: Array, v: Array, keep: Array, weight: Array, ridge: Array,
    state: MesaState | None = None, chunk: int | None = None, *, read: str, iterations: int = 30,
) -> tuple[tuple[Array, MesaState], tuple]:  # fmt: skip
    """(B,T,K),(B,T,K),(B,T,E),(B,T),(B,T),(K),MesaState->(B,T,E),MesaState
    o_t = x_t G, x_t (H + Lambda) = q_t   (W.28)

    ``chunk`` None is one chunk. ``iterations`` of conjugate gradients: K and a few more for
    rounding; ``error`` in each chunk's residual says what they left. Raises ValueError as
    ``mesa_recurrent_fwd`` does, or if ``chunk`` or ``iterations`` is below 1.
    """
    _, start = _checked(q, k, v, keep, weight, ridge, state, read)
    if iterations < 1:
        raise ValueError(f"conjugate gradients need at least 1 iteration, got {iterations}")
    return chunks_fwd(
        lambda *tokens: _chunk_fwd(*tokens, ridge, read, iterations),
        (q, k, v, keep, weight),
        start,
        chunk,
    )


def mesa_chunked_bwd(
    dout: Array, dstate_out: MesaState | None, res: tuple[MesaChunkResidual, ...]
) -> tuple:
    """Adjoint of mesa_chunked_fwd, if the iterations sufficed.   (W.29)

    Returns dq, dk, dv, dkeep, dweight, dridge, dstate.
    """
    *dtokens, dridge, dstate = chunks_bwd(_chunk_bwd, dout, dstate_out, res)
    return *dtokens, _as_ridge(namespace(dout).sum(dridge, axis=1), res[0].ridge), dstate


def conjugate_gradients(
    q: Array, k: Array, weight: Array, ridge: Array, fade: Array, H: Array, read: str,
    iterations: int,
) -> tuple[Array, Array]:  # fmt: skip
    """(B,L,K),(B,L,K),(B,L),(K),(B,L+1,L+1),(B,K,K)->(B,L,K),(B,L)
    x_t (H_t + Lambda) = q_t, and what is left, |q_t - x_t (...)|   (W.28)

    H is the matrix before the chunk. Each token has a system of its own; the products of all of
    them are one linear attention. A token whose residual is down to rounding stands still.
    """
    xp, seen = namespace(q, k, weight, ridge, fade, H), read_from(fade, read)  # (B,L,L+1)
    zeta = masked(seen[:, :, 1:] * weight[:, None, :], past(q, read))  # (B,L,L)

    def product(x: Array) -> Array:
        """x_t (H_t + Lambda) = fade_t0 x_t H_0 + sum_s zeta_ts (x_t . k_s) k_s + x_t Lambda"""
        scores = masked(zeta * xp.matmul(x, xp.matrix_transpose(k)), past(q, read))  # (B,L,L)
        written = causal_product(scores, k, read == "inclusive")  # (B,L,K)
        return seen[:, :, :1] * xp.matmul(x, H) + written + ridge[..., None, :] * x  # (B,L,K)

    # x is linear in q: at unit size no square overflows
    size = xp.max(xp.abs(q), axis=-1, keepdims=True)  # (B,L,1)
    size = xp.where(size > 0, size, xp.ones_like(size))
    q = q / size  # (B,L,K)
    x, residual, direction = xp.zeros_like(q), q, q  # (B,L,K)
    squared = xp.sum(q * q, axis=-1, keepdims=True)  # (B,L,1)
    rounding = float(xp.finfo(q.dtype).eps) ** 2 * squared  # (B,L,1)
    for _ in range(iterations):
        moving, along = squared > rounding, product(direction)  # (B,L,1), (B,L,K)
        curvature = xp.sum(direction * along, axis=-1, keepdims=True)  # (B,L,1)
        length = masked(squared, moving) / xp.where(moving, curvature, xp.ones_like(curvature))
        x = x + length * direction
        residual = residual - length * along
        before, squared = squared, xp.sum(residual * residual, axis=-1, keepdims=True)  # (B,L,1)
        turn = masked(squared, moving) / xp.where(moving, before, xp.ones_like(before))  # (B,L,1)
        direction = residual + turn * direction
    left = q - product(x)  # (B,L,K)
    return size * x, size[:, :, 0] * xp.sqrt(xp.sum(left * left, axis=-1))


def _chunk_fwd(
    q: Array, k: Array, v: Array, keep: Array, weight: Array, state: MesaState, ridge: Array,
    read: str, iterations: int,
):  # fmt: skip
    xp, fade, share = namespace(q), fades(keep), weight[:, :, None]  # (B,L+1,L+1), (B,L,1)
    x, error = conjugate_gradients(q, k, weight, ridge, fade, state.H, read, iterations)
    out, G = sums(x, k, share * v, fade, state.G, read)  # (B,L,E), (B,K,E)
    last = fade[:, -1, :, None]  # (B,L+1,1)
    H = xp.matmul(xp.matrix_transpose(k * last[:, 1:, :] * share), k)  # (B,K,K)
    after = MesaState(G, H + last[:, :1, :] * state.H)
    states = MesaState(state.G[:, None, ...], state.H[:, None, ...])  # (B,1,...)
    res = MesaChunkResidual(q, k, v, keep, weight, ridge, states, x, error, read, iterations)
    return (out, after), res


def _chunk_bwd(dout: Array, dstate_out: MesaState | None, res: MesaChunkResidual):
    q, k, v, keep, weight, ridge, states, x, _, read, iterations = res
    G, H = (a[:, 0, ...] for a in states)  # (B,K,E), (B,K,K)
    xp, fade, share = namespace(dout, q), fades(keep), weight[:, :, None]  # (B,L+1,L+1), (B,L,1)
    dG_out, dH_out = dstate_out or (None, None)
    # forward: out, G_out = sums(x, k, weight v, fade, G)
    dx, dk, du, dfade, dG = sums_bwd(dout, dG_out, x, k, share * v, fade, G, read)
    dv = share * du  # (B,L,E)
    dweight = xp.sum(du * v, axis=-1)  # (B,L)
    # forward: x (H_t + Lambda) = q, so dq solves the same system, and the matrix gets -x^T dq
    dq, _ = conjugate_gradients(dx, k, weight, ridge, fade, H, read, iterations)  # (B,L,K)
    dridge = -dq * x  # (B,L,K) per token
    # forward: x H_t, H_out = sums(x, k, weight k, fade, H)
    _, dk_H, du, dfade_H, dH = sums_bwd(-dq, dH_out, x, k, share * k, fade, H, read)
    dk += dk_H + share * du
    dweight += xp.sum(du * k, axis=-1)
    dkeep = fades_bwd(dfade + dfade_H, fade)  # (B,L)
    return dq, dk, dv, dkeep, dweight, dridge, MesaState(dG, dH)


def _checked(
    q: Array, k: Array, v: Array, keep: Array, weight: Array, ridge: Array, state: MesaState | None,
    read: str,
):  # fmt: skip
    """The namespace and the state that comes in."""
    G, H = state or (None, None)
    xp = namespace(q, k, v, keep, weight, ridge, G, H)
    tokens = {
        "q": (q, "BTK"),
        "k": (k, "BTK"),
        "v": (v, "BTE"),
        "keep": (keep, "BT"),
        "weight": (weight, "BT"),
        "ridge": (ridge, "K" if ridge.ndim == 1 else "BK"),
    }
    check_rule(read, **tokens, **{"state.G": (G, "BKE"), "state.H": (H, "BKK")})
    if is_host(ridge) and not (ridge > 0).all():
        raise ValueError(
            f"the ridge must be > 0, got {ridge}: without a ridge the loss of an empty memory has "
            "no single minimum"
        )
    return xp, MesaState(start_state(G, k, v), start_state(H, k, k))


def _matrix(H: Array, ridge: Array) -> Array:
    """(B,K,K),(K)->(B,K,K)   H + Lambda"""
    identity = namespace(H, ridge).eye(ridge.shape[-1], dtype=H.dtype, device=device(H))  # (K,K)
    return H + identity * ridge[..., None, :]


def _as_ridge(dridge: Array, ridge: Array) -> Array:
    """(B,K)->(K) or (B,K)   summed over the sequences that share it"""
    return namespace(dridge).sum(dridge, axis=0) if ridge.ndim == 1 else dridge
