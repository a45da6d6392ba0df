"""TTT-MLP: the hidden state is a two-layer network, trained by mini-batch gradient descent on the sequence that it reads.

    network    h = x W1 + b1,   a = gelu(h),   z = a W2 + b2,    f(x) = x + LN(z; gain, bias)
    loss       l(W1, b1, W2, b2) = |f(k) - v|^2
    gradient   dz = LN^T(2 (f(k) - v)),   dh = gelu'(h) (dz W2^T);   dl/dW1 = k^T dh, dl/db1 = dh, dl/dW2 = a^T dz, dl/db2 = dz
    update     state_{t+1} = state_t - step_t dl_t/dstate, at the state that the token's mini-batch began with

Exactly gradient descent on gradients that are stale within a mini-batch, with an inclusive read in the paper. This is the fast weight block
(``fwl.py``) with another loss: there the next token's cross-entropy, one mini-batch as long as the sequence, squared ReLU, a strict
read, and a step size per parameter. The same six sweeps, numbered alike. State: W1 (B,K,F), b1 (B,F), W2 (B,F,E), b2 (B,E). It must be
given, for from W1 = W2 = 0 all gradients but that of b2 are 0.

In a mini-batch each layer is linear attention with a constant channel for its bias (the *dual* form). First layer: query q, key k, value
-step dh. Second layer: query gelu(h'), the fast hidden activation; key a, the slow one; value -step dz. Between mini-batches there is no
such form, since the gradients depend on the state in no linear way: a chunk is a mini-batch.

Forms: recurrent, the definition, 3 K F + 4 F E multiply-adds per token; dual, 3 K F + 4 F E + S (K + 2 F + E) in mini-batches of S, as
matrix products.

Sun et al. 2024 (arXiv 2407.04620).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ..backend import Array, namespace
from ..ops.gelu import GeluResidual, gelu_bwd, gelu_bwd_bwd, gelu_fwd
from ..tree import add, zeros_like
from .common import check_rule, chunks_bwd, chunks_fwd, outer, stack, sums, sums_bwd, unfaded
from .ttt import (
    EPS,
    InnerGradientResidual,
    check_ttt,
    descend,
    descend_bwd,
    inner_gradient,
    inner_gradient_bwd,
    inner_loss,
    layer,
    layer_bwd,
    per_token,
    per_token_bwd,
    predict_bwd,
    predict_fwd,
)


class TTTMLPState(NamedTuple):
    """The network that is being trained; also the gradient of it."""

    W1: Array  # (B,K,F)
    b1: Array  # (B,F)
    W2: Array  # (B,F,E)
    b2: Array  # (B,E)


class TTTMLPResidual(NamedTuple):
    q: Array  # (B,T,K)
    k: Array  # (B,T,K)
    v: Array  # (B,T,E)
    step: Array  # (B,T)
    norm: tuple[Array, ...]  # (B,T,E) gain and bias per token, or ()
    states: tuple[TTTMLPState, ...]  # all T + 1 states of the recurrent form; the first of a mini-batch
    minibatch: int
    read: str
    eps: float


class SlowResidual(NamedTuple):
    """What the inner backward pass met on one token (B,...) or many (B,S,...)."""

    a: Array  # (B,...,F)
    da: Array  # (B,...,F)
    act: GeluResidual
    loss: InnerGradientResidual


def ttt_mlp_loss(
    state: TTTMLPState, k: Array, v: Array, gain: Array | None = None, bias: Array | None = None, *, eps: float = EPS
) -> Array:
    """TTTMLPState,(B,K),(B,E),(E),(E)->(B)   l = |f(k) - v|^2, f(x) = x + LN(gelu(x W1 + b1) W2 + b2)   (W.18)"""
    a, _ = gelu_fwd(layer(k, state.W1, state.b1))  # (B,F)
    return inner_loss(k, layer(a, state.W2, state.b2), v, gain, bias, eps=eps)


def ttt_mlp_gradient(
    state: TTTMLPState, k: Array, v: Array, gain: Array | None = None, bias: Array | None = None, *, eps: float = EPS
) -> TTTMLPState:
    """TTTMLPState,(B,K),(B,E),(E),(E)->TTTMLPState   dl/dW1 = k^T dh, dl/db1 = dh, dl/dW2 = a^T dz, dl/db2 = dz   (W.18)"""
    (dh, a, dz), _ = slow_fwd(state, k, v, gain, bias, eps=eps)  # (B,F), (B,F), (B,E)
    return TTTMLPState(outer(k, dh), dh, outer(a, dz), dz)


def ttt_mlp_gradient_bwd(
    g: TTTMLPState, state: TTTMLPState, k: Array, v: Array, gain: Array | None = None, bias: Array | None = None, *, eps: float = EPS
) -> tuple:
    """Adjoint of ttt_mlp_gradient: g_state, g_k, g_v, and with LayerNorm g_gain, g_bias.   (W.21)"""
    (dh, a, dz), res = slow_fwd(state, k, v, gain, bias, eps=eps)  # (B,F), (B,F), (B,E)
    # backward: dW1 = k^T dh, db1 = dh: an outer product is bilinear, and so is a layer
    g_k, g_dh = _outer_bwd(g.W1, g.b1, k, dh)  # (B,K), (B,F)
    # backward: dW2 = a^T dz, db2 = dz
    g_a, g_dz = _outer_bwd(g.W2, g.b2, a, dz)  # (B,F), (B,E)
    g_state, g_k_slow, g_v, *g_norm = slow_bwd(g_dh, g_a, g_dz, state, k, dz, res)
    return g_state, g_k + g_k_slow, g_v, *g_norm


def slow_fwd(state: TTTMLPState, k: Array, v: Array, gain: Array | None = None, bias: Array | None = None, *, eps: float = EPS):
    """TTTMLPState,(B,...,K),(B,...,E)->(B,...,F),(B,...,F),(B,...,E)   sweeps 1 and 2: dh, a, dz of each token   (W.18)"""
    # sweep 1, up
    a, act = gelu_fwd(layer(k, state.W1, state.b1))  # (B,...,F)
    z = layer(a, state.W2, state.b2)  # (B,...,E)
    # sweep 2, down
    dz, loss = inner_gradient(k, z, v, gain, bias, eps=eps)  # (B,...,E)
    da, _, _ = layer_bwd(dz, a, state.W2, state.b2)  # (B,...,F)
    dh = gelu_bwd(da, act)  # (B,...,F)
    return (dh, a, dz), SlowResidual(a, da, act, loss)


def slow_bwd(g_dh: Array, g_a: Array, g_dz: Array, state: TTTMLPState, k: Array, dz: Array, res: SlowResidual) -> tuple:
    """Adjoint of slow_fwd, sweeps 5 and 6: g_state, g_k, g_v, and with LayerNorm g_gain, g_bias.   (W.19)"""
    a, da, act, loss = res
    # sweep 5: dh = gelu_bwd(da)
    g_da, g_h = gelu_bwd_bwd(g_dh, da, act)  # (B,...,F)
    # sweep 5: da = dz W2^T, so dz = g_da W2 is its adjoint and W2's gradient is g_da^T dz
    g_dz = g_dz + layer(g_da, state.W2, None)  # (B,...,E)
    _, g_W2_slow, _ = layer_bwd(dz, g_da, state.W2, None)  # (B,F,E)
    # sweep 5: dz = inner_gradient(k, z, v)
    g_k_loss, g_z, g_v, *g_norm = inner_gradient_bwd(g_dz, loss)  # (B,...,E)
    # sweep 6: z = a W2 + b2
    g_a_layer, g_W2, g_b2 = layer_bwd(g_z, a, state.W2, state.b2)  # (B,...,F)
    # sweep 6: a = gelu(h)
    g_h = g_h + gelu_bwd(g_a + g_a_layer, act)  # (B,...,F)
    # sweep 6: h = k W1 + b1
    g_k, g_W1, g_b1 = layer_bwd(g_h, k, state.W1, state.b1)  # (B,...,K)
    g_k = g_k if g_k_loss is None else g_k + g_k_loss
    return TTTMLPState(g_W1, g_b1, g_W2 + g_W2_slow, g_b2), g_k, g_v, *g_norm


def ttt_mlp_recurrent_fwd(
    q: Array, k: Array, v: Array, step: Array, gain: Array | None, bias: Array | None, state: TTTMLPState,
    *, minibatch: int, read: str, eps: float = EPS,
):  # fmt: skip
    """(B,T,K),(B,T,K),(B,T,E),(B,T),(E),(E),TTTMLPState->(B,T,E),TTTMLPState   state_{t+1} = state_t - step_t dl_t/dstate   (W.20)

    ``minibatch``: how many tokens take their gradients at one state; a call begins a mini-batch. ``read`` "strict": f(q_t) with state t;
    "inclusive": with state t + 1. ``gain`` and ``bias`` None: no LayerNorm, no residual. Raises ValueError for another read, a mini-batch
    below 1, shapes that do not fit, or no state.
    """
    norm = _checked(q, k, v, step, gain, bias, state, minibatch, read)
    states, outs = [state], []
    for t in range(q.shape[1]):
        if t % minibatch == 0:
            first = states[t]
        norm_t = [p[:, t, :] for p in norm]  # (B,E)
        gradient = ttt_mlp_gradient(first, k[:, t, :], v[:, t, :], *norm_t, eps=eps)
        states.append(descend(states[t], step[:, t], gradient))
        out, _ = _read_fwd(states[t] if read == "strict" else states[t + 1], q[:, t, :], norm_t, eps)  # (B,E)
        outs.append(out)
    return (stack(outs, v), states[-1]), TTTMLPResidual(q, k, v, step, norm, tuple(states), minibatch, read, eps)


def ttt_mlp_recurrent_bwd(g_out: Array, g_state_out: TTTMLPState | None, res: TTTMLPResidual):
    """Adjoint of ttt_mlp_recurrent_fwd: backpropagation through time.   (W.21)

    Returns g_q, g_k, g_v, g_step, g_gain, g_bias, g_state.
    """
    q, k, v, step, norm, states, minibatch, read, eps = res
    namespace(g_out, q)
    g_state = zeros_like(states[-1]) if g_state_out is None else g_state_out
    g_first, g_qs, g_ks, g_vs, g_steps, g_norms = zeros_like(states[-1]), [], [], [], [], []
    for t in reversed(range(q.shape[1])):
        norm_t, seen, first = [p[:, t, :] for p in norm], states[t] if read == "strict" else states[t + 1], states[t - t % minibatch]
        token = first, k[:, t, :], v[:, t, :], *norm_t
        # forward: out = f(q) with the state that is read
        _, fast = _read_fwd(seen, q[:, t, :], norm_t, eps)
        g_seen, g_q, *g_norm_read = _read_bwd(g_out[:, t, :], seen, q[:, t, :], fast)  # (B,K)
        g_qs.append(g_q)
        if read == "inclusive":
            g_state = add(g_state, g_seen)
        # forward: state' = state - step * gradient
        g_step, g_gradient = descend_bwd(g_state, step[:, t], ttt_mlp_gradient(*token, eps=eps))  # (B,)
        g_steps.append(g_step)
        # forward: gradient = ttt_mlp_gradient(first, k, v)
        g_moved, g_k, g_v, *g_norm = ttt_mlp_gradient_bwd(g_gradient, *token, eps=eps)
        g_ks.append(g_k)
        g_vs.append(g_v)
        g_norms.append([a + b for a, b in zip(g_norm, g_norm_read, strict=True)])
        g_first = add(g_first, g_moved)
        if read == "strict":
            g_state = add(g_state, g_seen)
        if t % minibatch == 0:
            # forward: first = state
            g_state, g_first = add(g_state, g_first), zeros_like(g_first)
    tokens = (stack(rows[::-1], like) for rows, like in ((g_qs, q), (g_ks, k), (g_vs, v), (g_steps, step)))
    g_norm = tuple(stack([rows[i] for rows in g_norms[::-1]], p) for i, p in enumerate(norm))  # (B,T,E)
    return *tokens, *per_token_bwd(g_norm), g_state


def ttt_mlp_dual_fwd(
    q: Array, k: Array, v: Array, step: Array, gain: Array | None, bias: Array | None, state: TTTMLPState,
    *, minibatch: int, read: str, eps: float = EPS,
):  # fmt: skip
    """(B,T,K),(B,T,K),(B,T,E),(B,T),(E),(E),TTTMLPState->(B,T,E),TTTMLPState   by whole mini-batches   (W.22)

    Each layer is a linear attention whose values are slow gradients: the same function as ``ttt_mlp_recurrent_fwd``,
    with the same errors.
    """
    norm = _checked(q, k, v, step, gain, bias, state, minibatch, read)
    return chunks_fwd(lambda *tokens: _batch_fwd(*tokens, read=read, eps=eps), (q, k, v, step, *norm), state, minibatch)


def ttt_mlp_dual_bwd(g_out: Array, g_state_out: TTTMLPState | None, res: tuple[TTTMLPResidual, ...]):
    """Adjoint of ttt_mlp_dual_fwd. Returns g_q, g_k, g_v, g_step, g_gain, g_bias, g_state.   (W.23)"""
    g_q, g_k, g_v, g_step, *g_norm, g_state = chunks_bwd(_batch_bwd, g_out, g_state_out, res)
    return g_q, g_k, g_v, g_step, *per_token_bwd(tuple(g_norm)), g_state


def _read_fwd(state: TTTMLPState, q: Array, norm: Sequence[Array], eps: float):
    """TTTMLPState,(B,K)->(B,E)   f(q) = q + LN(gelu(q W1 + b1) W2 + b2)"""
    a, act = gelu_fwd(layer(q, state.W1, state.b1))  # (B,F)
    out, head = predict_fwd(q, layer(a, state.W2, state.b2), *norm, eps=eps)  # (B,E)
    return out, (a, act, head)


def _read_bwd(g_out: Array, state: TTTMLPState, q: Array, res: tuple) -> tuple:
    """Adjoint of _read_fwd: g_state, g_q, and with LayerNorm g_gain, g_bias."""
    a, act, head = res
    # forward: out = predict(q, z)
    g_q_head, g_z, *g_norm = predict_bwd(g_out, head)  # (B,E)
    # forward: z = a W2 + b2
    g_a, g_W2, g_b2 = layer_bwd(g_z, a, state.W2, state.b2)  # (B,F)
    # forward: a = gelu(q W1 + b1)
    g_q, g_W1, g_b1 = layer_bwd(gelu_bwd(g_a, act), q, state.W1, state.b1)  # (B,K)
    return TTTMLPState(g_W1, g_b1, g_W2, g_b2), g_q if g_q_head is None else g_q + g_q_head, *g_norm


def _outer_bwd(g_W: Array, g_b: Array, x: Array, dy: Array) -> tuple[Array, Array]:
    """(B,K,E),(B,E),(B,K),(B,E)->(B,K),(B,E)   adjoint of (x, dy) -> (x^T dy, dy): g_x = dy g_W^T, g_dy = x g_W + g_b"""
    g_x, _, _ = layer_bwd(dy, x, g_W, None)  # (B,K)
    return g_x, layer(x, g_W, g_b)


def _batch_fwd(q: Array, k: Array, v: Array, step: Array, *norm_and_state: Any, read: str, eps: float):
    *norm, state = norm_and_state
    # write, sweeps 1 and 2: dh_s, a_s, dz_s at the first state, for all tokens at once
    slow, _ = slow_fwd(state, k, v, *norm, eps=eps)  # (B,S,F), (B,S,F), (B,S,E)
    # read, sweep 3
    (out, state_out), _ = _fast_fwd(q, k, step, slow, norm, state, read, eps)  # (B,S,E)
    return (out, state_out), TTTMLPResidual(q, k, v, step, tuple(norm), (state,), q.shape[1], read, eps)


def _batch_bwd(g_out: Array, g_state_out: TTTMLPState | None, res: TTTMLPResidual):
    q, k, v, step, norm, (state,), _, read, eps = res
    slow, slow_res = slow_fwd(state, k, v, *norm, eps=eps)  # (B,S,F), (B,S,F), (B,S,E)
    _, fast_res = _fast_fwd(q, k, step, slow, norm, state, read, eps)
    # read, sweep 4
    g_q, g_k, g_step, g_slow, g_state, g_norm = _fast_bwd(g_out, g_state_out, q, k, step, slow, state, read, fast_res)
    # write, sweeps 5 and 6
    g_written, g_k_slow, g_v, *g_norm_slow = slow_bwd(*g_slow, state, k, slow[2], slow_res)
    g_norm = [a + b for a, b in zip(g_norm, g_norm_slow, strict=True)]  # (B,S,E)
    return g_q, g_k + g_k_slow, g_v, g_step, *g_norm, add(g_state, g_written)


def _fast_fwd(q: Array, k: Array, step: Array, slow: tuple, norm: Sequence[Array], state: TTTMLPState, read: str, eps: float):
    """Sweep 3: f(q_t) with the parameters of each token, none of which is formed."""
    fade, (dh, a, dz), rate = unfaded(q.shape[1], q), slow, step[:, :, None]  # (1,S+1,S+1), ..., (B,S,1)
    # h'_t = q_t W1 + b1 - sum_s step_s (q_t . k_s + 1) dh_s
    h_fast, S1 = sums(_with_one(q), _with_one(k), -rate * dh, fade, _packed(state.W1, state.b1), read)  # (B,S,F), (B,K+1,F)
    a_fast, act = gelu_fwd(h_fast)  # (B,S,F)
    # z'_t = a'_t W2 + b2 - sum_s step_s (a'_t . a_s + 1) dz_s
    z_fast, S2 = sums(_with_one(a_fast), _with_one(a), -rate * dz, fade, _packed(state.W2, state.b2), read)  # (B,S,E), (B,F+1,E)
    out, head = predict_fwd(q, z_fast, *norm, eps=eps)  # (B,S,E)
    return (out, TTTMLPState(S1[:, :-1, :], S1[:, -1, :], S2[:, :-1, :], S2[:, -1, :])), (a_fast, act, head)


def _fast_bwd(
    g_out: Array, g_state_out: TTTMLPState | None, q: Array, k: Array, step: Array, slow: tuple, state: TTTMLPState, read: str, res: tuple
):  # fmt: skip
    """Adjoint of _fast_fwd, sweep 4: g_q, g_k, g_step, (g_dh, g_a, g_dz), g_state, g_norm."""
    xp, fade, (dh, a, dz), rate, (a_fast, act, head) = namespace(g_out), unfaded(q.shape[1], q), slow, step[:, :, None], res
    g_S1, g_S2 = (None, None) if g_state_out is None else (_packed(*g_state_out[:2]), _packed(*g_state_out[2:]))
    # forward: out = predict(q, z')
    g_q_head, g_z, *g_norm = predict_bwd(g_out, head)  # (B,S,E)
    # forward: z', S2 = sums([a', 1], [a, 1], -step dz)
    keys, values = _with_one(a), -rate * dz  # (B,S,F+1), (B,S,E)
    g_a_fast, g_a, g_u2, _, g_S2 = sums_bwd(g_z, g_S2, _with_one(a_fast), keys, values, fade, _packed(state.W2, state.b2), read)
    # forward: a' = gelu(h')
    g_h = gelu_bwd(g_a_fast[:, :, :-1], act)  # (B,S,F)
    # forward: h', S1 = sums([q, 1], [k, 1], -step dh)
    g_q, g_k, g_u1, _, g_S1 = sums_bwd(g_h, g_S1, _with_one(q), _with_one(k), -rate * dh, fade, _packed(state.W1, state.b1), read)
    g_q, g_k, g_a = g_q[:, :, :-1], g_k[:, :, :-1], g_a[:, :, :-1]  # the channel of ones is nobody's input
    # forward: u1 = -step dh,  u2 = -step dz
    g_step = -xp.sum(g_u1 * dh, axis=-1) - xp.sum(g_u2 * dz, axis=-1)  # (B,S)
    g_q = g_q if g_q_head is None else g_q + g_q_head
    g_state = TTTMLPState(g_S1[:, :-1, :], g_S1[:, -1, :], g_S2[:, :-1, :], g_S2[:, -1, :])
    return g_q, g_k, g_step, (-rate * g_u1, g_a, -rate * g_u2), g_state, g_norm


def _checked(
    q: Array, k: Array, v: Array, step: Array, gain: Array | None, bias: Array | None, state: TTTMLPState, minibatch: int, read: str
) -> tuple[Array, ...]:  # fmt: skip
    """Gain and bias per token."""
    if state is None:
        raise ValueError(
            "TTT-MLP needs a state, got None: from W1 = W2 = 0 the gradients of W1, b1 and W2 are 0, so start from learned ones"
        )
    namespace(q, k, v, step, gain, bias, *state)
    check_ttt(read, minibatch, q, k, v, step, gain, bias)
    letters = {"W1": "BKF", "b1": "BF", "W2": "BFE", "b2": "BE"}
    check_rule(read, k=(k, "BTK"), v=(v, "BTE"), **{f"state.{name}": (getattr(state, name), letters[name]) for name in letters})
    return per_token(gain, bias, v)


def _with_one(x: Array) -> Array:
    """(B,S,K)->(B,S,K+1)   a bias is a weight whose input is 1"""
    xp = namespace(x)
    return xp.concat([x, xp.ones((*x.shape[:2], 1), dtype=x.dtype, device=x.device)], axis=2)


def _packed(W: Array, b: Array) -> Array:
    """(B,K,E),(B,E)->(B,K+1,E)   a layer as one matrix"""
    return namespace(W, b).concat([W, b[:, None, :]], axis=1)
