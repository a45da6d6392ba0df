"""Titans with a deep memory: a two-layer network, trained by heavy ball with weight decay.

    network    h = x W1 + b1,   a = gelu(h),   z = a W2 + b2,    f(x) = x + LN(z; gain, bias)
    loss       l(M) = |f(k) - v|^2, M the network W1, b1, W2, b2: TTT-MLP's
    update     U_{t+1} = eta_t U_t - theta_t dl_t/dM,
               M_{t+1} = (1 - alpha_t) M_t + iota_t U_{t+1},
               the gradient at the network that the token's mini-batch began with

It is ``ttt_mlp.py`` with another optimizer, and ``titans.py`` with another memory: without momentum
and decay the first, with the same step. Without gain and bias
f(x) = z, as in the paper; with them it is the memory of the library titans-pytorch. ``momentum``
eta, ``decay`` alpha and ``step`` theta are numbers per token, ``join`` iota is 1 unless given: all
as in ``titans.py``. All four parameters decay, biases too. State: M and U, each of the shape of a
network. It must be given: see ``ttt_mlp.py``.

Gradients are stale within a mini-batch, which is part of the function; a call begins one. Then they
are known numbers, and each layer is linear attention whose mask is the heavy ball's
(``heavy_sums``), with a constant channel for its bias (the *dual* form). First layer: query q, key
k, value -theta dh. Second layer: query gelu(h'), the fast hidden activation; key a, the slow one;
value -theta dz. The six sweeps of ``fwl.py``, numbered alike.

Forms: recurrent, the definition, 3 K F + 4 F E multiply-adds per token; dual, 6 K F + 7 F E + S (K
+ 2 F + E) + O(S^2) in mini-batches of S, as matrix products.

Behrouz, Zhong, Mirrokni 2025 (arXiv 2501.00663).
"""

from __future__ import annotations

from typing import NamedTuple

from ..backend import Array, namespace
from ..ops.gelu import gelu_bwd, gelu_fwd
from ..tree import add, leaves, tree_map, zeros_like
from .common import asked_for, check_rule, chunks_bwd, chunks_fwd, stack
from .heavy_ball import Responses, heavy_sums, heavy_sums_bwd, responses, responses_bwd
from .ttt import (
    EPS,
    check_ttt,
    descend,
    descend_bwd,
    moved_by,
    moved_by_bwd,
    packed,
    per_token,
    predict_bwd,
    predict_fwd,
    state_at,
    unpacked,
    with_one,
)
from .ttt_mlp import (
    TTTMLPState,
    slow_bwd,
    slow_fwd,
    ttt_mlp_gradient,
    ttt_mlp_gradient_bwd,
    ttt_mlp_loss,
    ttt_mlp_read_bwd,
    ttt_mlp_read_fwd,
)


class TitansMLPState(NamedTuple):
    """What is carried from token to token; also the gradient of that."""

    M: TTTMLPState  # the network that is read
    U: TTTMLPState  # its momentum


class TitansMLPResidual(NamedTuple):
    q: Array  # (B,T,K)
    k: Array  # (B,T,K)
    v: Array  # (B,T,E)
    momentum: Array  # (B,T)
    decay: Array  # (B,T)
    step: Array  # (B,T)
    join: Array | None  # (B,T)
    norm: tuple[Array, ...]  # (B,T,E) gain and bias per token, or ()
    states: TitansMLPState  # (B,T+1,...) of the recurrent form; (B,1,...) of a mini-batch
    read: str
    eps: float
    minibatch: int
    per_sequence: bool  # gain and bias (B,E)


def titans_mlp_loss(
    M: TTTMLPState, k: Array, v: Array, gain: Array | None = None, bias: Array | None = None, *,
    eps: float = EPS,
) -> Array:  # fmt: skip
    """TTTMLPState,(B,K),(B,E),(E),(E)->(B)   TTT-MLP's l = |f(k) - v|^2   (W.31)"""
    return ttt_mlp_loss(M, k, v, gain, bias, eps=eps)


def titans_mlp_gradient(
    M: TTTMLPState, k: Array, v: Array, gain: Array | None = None, bias: Array | None = None, *,
    eps: float = EPS,
) -> TTTMLPState:  # fmt: skip
    """TTTMLPState,(B,K),(B,E),(E),(E)->TTTMLPState   its gradient, TTT-MLP's   (W.31)"""
    return ttt_mlp_gradient(M, k, v, gain, bias, eps=eps)


def titans_mlp_recurrent_fwd(
    q: Array, k: Array, v: Array, momentum: Array, decay: Array, step: Array, gain: Array | None,
    bias: Array | None, state: TitansMLPState, *, minibatch: int, read: str, eps: float = EPS,
    join: Array | None = None,
) -> tuple[tuple[Array, TitansMLPState], TitansMLPResidual]:  # fmt: skip
    """(B,T,K),(B,T,K),(B,T,E),(B,T),(B,T),(B,T),(E),(E),TitansMLPState->(B,T,E),TitansMLPState
    M' = (1 - alpha) M + eta U - theta dl/dM   (W.31)

    ``minibatch``: how many tokens take their gradients at one network; a call begins a mini-batch.
    ``read`` "strict": f(q_t) with network t; "inclusive": with network t + 1. ``gain`` and
    ``bias`` (E), or (B,E) one per sequence; None: no LayerNorm, no residual. ``join`` (B,T): how
    much of U' reaches M'; None is 1. Raises ValueError for another read, a mini-batch below 1,
    shapes that do not fit, or no state.
    """
    norm = _checked(q, k, v, momentum, decay, step, join, gain, bias, state, minibatch, read)
    states, outs = [state], []
    for t in range(q.shape[1]):
        M, first, norm_t = states[t].M, states[t - t % minibatch].M, [p[:, t, :] for p in norm]
        gradient = titans_mlp_gradient(first, k[:, t, :], v[:, t, :], *norm_t, eps=eps)
        states.append(_moved(states[t], gradient, *_rates_at(t, momentum, decay, step, join)))
        seen = M if read == "strict" else states[t + 1].M
        out, _ = ttt_mlp_read_fwd(seen, q[:, t, :], *norm_t, eps=eps)  # (B,E)
        outs.append(out)
    stacked = tree_map(lambda *parts: namespace(*parts).stack(parts, axis=1), *states)
    per_sequence = gain is not None and gain.ndim == 2
    res = TitansMLPResidual(
        q, k, v, momentum, decay, step, join, norm, stacked, read, eps, minibatch, per_sequence
    )
    return (stack(outs, v), states[-1]), res


def titans_mlp_recurrent_bwd(
    g_out: Array, g_state_out: TitansMLPState | None, res: TitansMLPResidual
) -> tuple:
    """Adjoint of titans_mlp_recurrent_fwd: backpropagation through time.   (W.32)

    Returns g_q, g_k, g_v, g_momentum, g_decay, g_step, with a join g_join, g_gain, g_bias, g_state.
    """
    xp, res = namespace(g_out, res.q), asked_for(g_out, g_state_out, res)
    q, k, v, momentum, decay, step, join, norm, states, read, eps, minibatch, _ = res
    g_M, g_U = g_state_out or zeros_like(state_at(states, 0))
    g_first = zeros_like(g_M)
    rows = []
    for t in reversed(range(q.shape[1])):
        (M, U), after = state_at(states, t), state_at(states, t + 1)
        first, norm_t = state_at(states.M, t - t % minibatch), [p[:, t, :] for p in norm]
        eta, alpha, theta, iota = _rates_at(t, momentum, decay, step, join)
        token = first, k[:, t, :], v[:, t, :], *norm_t
        gradient = titans_mlp_gradient(*token, eps=eps)
        # forward: out = f(q) with the network that is read
        seen = M if read == "strict" else after.M
        _, head = ttt_mlp_read_fwd(seen, q[:, t, :], *norm_t, eps=eps)
        g_seen, g_q, *g_norm = ttt_mlp_read_bwd(g_out[:, t, :], seen, q[:, t, :], head)
        if read == "inclusive":
            g_M = add(g_M, g_seen)
        # forward: M' = (1 - alpha) M + iota U'
        g_joined, g_iota = moved_by_bwd(g_M, iota, after.U)  # (B,)
        g_alpha, g_M = descend_bwd(g_M, alpha - 1, M)  # (B,)
        # forward: U' = eta U - theta gradient
        g_update = add(g_U, g_joined)
        g_theta, g_gradient = descend_bwd(g_update, theta, gradient)  # (B,)
        g_U, g_eta = moved_by_bwd(g_update, eta, U)  # (B,)
        if read == "strict":
            g_M = add(g_M, g_seen)
        # forward: gradient = titans_mlp_gradient(first, k, v)
        g_through, g_k, g_v, *g_more = ttt_mlp_gradient_bwd(g_gradient, *token, eps=eps)
        g_first = add(g_first, g_through)
        if t % minibatch == 0:
            # forward: first = M
            g_M, g_first = add(g_M, g_first), zeros_like(g_first)
        g_norm = [a + b for a, b in zip(g_norm, g_more, strict=True)]  # (B,E)
        rows.append((g_q, g_k, g_v, g_eta, g_alpha, g_theta, g_iota, *g_norm))
    likes = (q, k, v, momentum, decay, step, join, *norm)
    columns = list(zip(*rows[::-1], strict=True)) or [()] * len(likes)
    found = [stack(list(c), a) for c, a in zip(columns, likes, strict=True) if a is not None]
    return _as_given(xp, found, len(norm), res.per_sequence, TitansMLPState(g_M, g_U))


def titans_mlp_dual_fwd(
    q: Array, k: Array, v: Array, momentum: Array, decay: Array, step: Array, gain: Array | None,
    bias: Array | None, state: TitansMLPState, *, minibatch: int, read: str, eps: float = EPS,
    join: Array | None = None,
) -> tuple[tuple[Array, TitansMLPState], tuple[TitansMLPResidual, ...]]:  # fmt: skip
    """(B,T,K),(B,T,K),(B,T,E),(B,T),(B,T),(B,T),(E),(E),TitansMLPState->(B,T,E),TitansMLPState
    by whole mini-batches   (W.33)

    Each layer is a linear attention whose values are slow gradients and whose mask is the heavy
    ball's: the same function as ``titans_mlp_recurrent_fwd``, with the same errors.
    """
    norm = _checked(q, k, v, momentum, decay, step, join, gain, bias, state, minibatch, read)
    per_sequence = gain is not None and gain.ndim == 2

    def batch_fwd(q, k, v, momentum, decay, step, join, *rest):
        *norm, state = rest
        own = tree_map(lambda a: a[:, None, ...], state)  # (B,1,...)
        fixed = tuple(norm), own, read, eps, minibatch, per_sequence
        res = TitansMLPResidual(q, k, v, momentum, decay, step, join, *fixed)
        return _batch_fwd(res, state), res

    return chunks_fwd(batch_fwd, (q, k, v, momentum, decay, step, join, *norm), state, minibatch)


def titans_mlp_dual_bwd(
    g_out: Array, g_state_out: TitansMLPState | None, res: tuple[TitansMLPResidual, ...]
) -> tuple:
    """Adjoint of titans_mlp_dual_fwd.   (W.34)

    Returns g_q, g_k, g_v, g_momentum, g_decay, g_step, with a join g_join, g_gain, g_bias, g_state.
    """
    xp = namespace(g_out)
    *found, g_state = chunks_bwd(_batch_bwd, g_out, g_state_out, res)
    return _as_given(xp, found, len(res[0].norm), res[0].per_sequence, g_state)


def _batch_fwd(res: TitansMLPResidual, state: TitansMLPState) -> tuple[Array, TitansMLPState]:
    """One mini-batch."""
    table = responses(res.momentum, res.decay, res.join)
    # write, sweeps 1 and 2: dh_s, a_s, dz_s at the first network, for all tokens at once
    slow, _ = slow_fwd(state.M, res.k, res.v, *res.norm, eps=res.eps)
    # read, sweep 3
    (out, after), _ = _fast_fwd(res, slow, table, state)  # (B,S,E)
    return out, after


def _batch_bwd(g_out: Array, g_after: TitansMLPState | None, res: TitansMLPResidual) -> tuple:
    """Adjoint of _batch_fwd: g_q, g_k, g_v, rates, g_norm, g_state."""
    state = state_at(res.states, 0)
    g_after = zeros_like(state) if g_after is None else g_after
    table = responses(res.momentum, res.decay, res.join)
    slow, slow_res = slow_fwd(state.M, res.k, res.v, *res.norm, eps=res.eps)
    _, fast = _fast_fwd(res, slow, table, state)
    # read, sweep 4
    g_q, g_k, g_step, g_norm, g_slow, g_table, g_state = _fast_bwd(
        g_out, g_after, res, slow, table, state, fast
    )
    # write, sweeps 5 and 6
    g_written, g_k_slow, g_v, *g_more = slow_bwd(*g_slow, state.M, res.k, slow[2], slow_res)
    # forward: table = responses(momentum, decay, join)
    g_eta, g_alpha, g_iota = responses_bwd(g_table, table, res.momentum, res.decay, res.join)
    g_norm = [a + b for a, b in zip(g_norm, g_more, strict=True)]  # (B,S,E)
    g_state = g_state._replace(M=add(g_state.M, g_written))
    return g_q, g_k + g_k_slow, g_v, g_eta, g_alpha, g_step, g_iota, *g_norm, g_state


def _fast_fwd(
    res: TitansMLPResidual, slow: tuple, table: Responses, state: TitansMLPState
) -> tuple:
    """Sweep 3: f(q_t) with the network of each token, none of which is formed."""
    (dh, a, dz), rate = slow, res.step[:, :, None]  # (B,S,F), (B,S,F), (B,S,E), (B,S,1)
    M, U = state
    # h'_t = q_t W1_t + b1_t, written by k_s and -theta_s dh_s
    h_fast, M1, U1 = _layer(res.q, res.k, -rate * dh, table, M[:2], U[:2], res.read)
    a_fast, act = gelu_fwd(h_fast)  # (B,S,F)
    # z'_t = a'_t W2_t + b2_t, written by a_s and -theta_s dz_s
    z_fast, M2, U2 = _layer(a_fast, a, -rate * dz, table, M[2:], U[2:], res.read)
    out, head = predict_fwd(res.q, z_fast, *res.norm, eps=res.eps)  # (B,S,E)
    after = TitansMLPState(TTTMLPState(*M1, *M2), TTTMLPState(*U1, *U2))
    return (out, after), (a_fast, act, head)


def _fast_bwd(
    g_out: Array, g_after: TitansMLPState, res: TitansMLPResidual, slow: tuple, table: Responses,
    state: TitansMLPState, fast: tuple,
) -> tuple:  # fmt: skip
    """Adjoint of _fast_fwd, sweep 4.

    Returns g_q, g_k, g_step, g_norm, (g_dh, g_a, g_dz), g_table, g_state.
    """
    xp, (dh, a, dz), rate = namespace(g_out), slow, res.step[:, :, None]
    (M, U), (g_M, g_U), (a_fast, act, head) = state, g_after, fast
    # forward: out = predict(q, z')
    g_q_head, g_z, *g_norm = predict_bwd(g_out, head)  # (B,S,E)
    # forward: z' = layer(a', a, u2),  u2 = -theta dz
    g_a_fast, g_a, g_u2, g_table2, g_M2, g_U2 = _layer_bwd(
        g_z, g_M[2:], g_U[2:], a_fast, a, -rate * dz, table, M[2:], U[2:], res.read
    )  # (B,S,F), (B,S,F), (B,S,E)
    # forward: a' = gelu(h')
    g_h = gelu_bwd(g_a_fast, act)  # (B,S,F)
    # forward: h' = layer(q, k, u1),  u1 = -theta dh
    g_q, g_k, g_u1, g_table1, g_M1, g_U1 = _layer_bwd(
        g_h, g_M[:2], g_U[:2], res.q, res.k, -rate * dh, table, M[:2], U[:2], res.read
    )  # (B,S,K), (B,S,K), (B,S,F)
    # forward: u1 = -theta dh,  u2 = -theta dz
    g_step = -xp.sum(g_u1 * dh, axis=-1) - xp.sum(g_u2 * dz, axis=-1)  # (B,S)
    g_slow = -rate * g_u1, g_a, -rate * g_u2  # (B,S,F), (B,S,F), (B,S,E)
    g_q = g_q if g_q_head is None else g_q + g_q_head
    g_state = TitansMLPState(TTTMLPState(*g_M1, *g_M2), TTTMLPState(*g_U1, *g_U2))
    return g_q, g_k, g_step, g_norm, g_slow, add(g_table1, g_table2), g_state


def _layer(
    q: Array, k: Array, u: Array, table: Responses, M: tuple, U: tuple, read: str
) -> tuple[Array, tuple, tuple]:
    """(B,S,K),(B,S,K),(B,S,E),...,((B,K,E),(B,E)),((B,K,E),(B,E))->(B,S,E),M,U   a fast layer

    A bias is a weight whose input is 1.
    """
    heavy = packed(*M), packed(*U)  # (B,K+1,E)
    y, M_out, U_out = heavy_sums(with_one(q, M[1]), with_one(k, M[1]), u, table, *heavy, read)
    return y, unpacked(M_out, M[1]), unpacked(U_out, M[1])


def _layer_bwd(
    g_y: Array, g_M: tuple, g_U: tuple, q: Array, k: Array, u: Array, table: Responses, M: tuple,
    U: tuple, read: str,
) -> tuple:  # fmt: skip
    """Adjoint of _layer: g_q, g_k, g_u, g_table, g_M, g_U."""
    inputs = with_one(q, M[1]), with_one(k, M[1]), u, table, packed(*M), packed(*U), read
    # forward: y, M', U' = heavy_sums([q, 1], [k, 1], u)
    found = heavy_sums_bwd(g_y, packed(*g_M), packed(*g_U), *inputs)
    g_q, g_k, g_u, g_table, g_M_in, g_U_in = found  # (B,S,K+1), (B,S,K+1), (B,S,E)
    # without the channel of ones, which is no input
    width = q.shape[2]
    states = unpacked(g_M_in, M[1]), unpacked(g_U_in, M[1])
    return g_q[:, :, :width], g_k[:, :, :width], g_u, g_table, *states


def _moved(
    state: TitansMLPState, gradient: TTTMLPState, eta: Array, alpha: Array, theta: Array,
    iota: Array | None,
) -> TitansMLPState:  # fmt: skip
    """One step of heavy ball: U' = eta U - theta g, M' = (1 - alpha) M + iota U'"""
    none = zeros_like(gradient)
    U = descend(moved_by(none, eta, state.U), theta, gradient)
    return TitansMLPState(moved_by(descend(none, alpha - 1, state.M), iota, U), U)


def _rates_at(t: int, *rates: Array | None) -> tuple:
    """(B,T)->(B)   of token t"""
    return tuple(None if rate is None else rate[:, t] for rate in rates)


def _as_given(xp, found: list, norms: int, per_sequence: bool, g_state: TitansMLPState) -> tuple:
    """Gradients by token -> gain's and bias's as they came, join's only if there is one."""
    tokens = [g for g in found[: len(found) - norms] if g is not None]
    axis = 1 if per_sequence else (0, 1)
    g_norm = [xp.sum(g, axis=axis) for g in found[len(found) - norms :]] or [None, None]  # (E,)
    return *tokens, *g_norm, g_state


def _checked(
    q: Array, k: Array, v: Array, momentum: Array, decay: Array, step: Array, join: Array | None,
    gain: Array | None, bias: Array | None, state: TitansMLPState, minibatch: int, read: str,
) -> tuple[Array, ...]:  # fmt: skip
    """The norm of every token."""
    if state is None:
        raise ValueError(
            "Titans with an MLP needs a state, got None: from W1 = W2 = 0 the gradients of W1, b1 "
            "and W2 are 0, so start from learned ones, with U = 0"
        )
    namespace(q, k, v, momentum, decay, step, join, gain, bias, *leaves(state))
    check_ttt(read, minibatch, q, k, v, step, None, gain, bias, state)
    rates = {"momentum": (momentum, "BT"), "decay": (decay, "BT"), "join": (join, "BT")}
    letters = {"W1": "BKF", "b1": "BF", "W2": "BFE", "b2": "BE"}
    networks = {
        f"state.{part}.{name}": (getattr(getattr(state, part), name), letters[name])
        for part in ("M", "U")
        for name in letters
    }
    check_rule(read, k=(k, "BTK"), v=(v, "BTE"), **rates, **networks)
    return per_token(gain, bias, v)
