"""TTT-MLP: the hidden state is a two-layer network, trained by gradient descent while it reads.

    network    h = x W1 + b1,   a = gelu(h),   z = a W2 + b2,    f(x) = x + LN(z; gain, bias)
    loss       l(W1, b1, W2, b2) = |f(k) - v|^2
    gradient   dz = LN^T(2 (f(k) - v)),   dh = gelu'(h) (dz W2^T);
               dl/dW1 = k^T dh, dl/db1 = dh, dl/dW2 = a^T dz, dl/db2 = dz
    update     state_{t+1} = state_t - step_t dl_t/dstate,
               the gradient at the state that the token's mini-batch began with

Exactly gradient descent on gradients that are stale within a mini-batch, with an inclusive read in
the paper. This is the fast weight block (``fwl.py``) with another loss: there the next token's
cross-entropy, one mini-batch as long as the sequence, squared ReLU, a strict read, and a step size
per parameter. The same six sweeps, numbered alike. State: W1 (B,K,F), b1 (B,F), W2 (B,F,E), b2
(B,E). It must be given, for from W1 = W2 = 0 all gradients but that of b2 are 0.

In a mini-batch each layer is linear attention with a constant channel for its bias (the *dual*
form). First layer: query q, key k, value -step dh. Second layer: query gelu(h'), the fast hidden
activation; key a, the slow one; value -step dz. Between mini-batches there is no such form, since
the gradients depend on the state in no linear way: a chunk is a mini-batch.

Forms: recurrent, the definition, 3 K F + 4 F E multiply-adds per token; dual, 3 K F + 4 F E + S (K
+ 2 F + E) in mini-batches of S, as matrix products.

Sun et al. 2024 (arXiv 2407.04620).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ..backend import Array, namespace
from ..ops.gelu import GeluResidual, gelu_bwd, gelu_bwd_bwd, gelu_fwd
from ..tree import add, tree_map
from .common import check_rule, chunks_bwd, chunks_fwd
from .ttt import (
    EPS,
    InnerGradientResidual,
    Network,
    TTTResidual,
    check_ttt,
    dual_layer,
    dual_layer_bwd,
    inner_gradient,
    inner_gradient_bwd,
    inner_loss,
    layer,
    layer_bwd,
    layer_gradient,
    layer_gradient_bwd,
    per_token,
    per_token_bwd,
    predict_bwd,
    predict_fwd,
    recurrent_bwd,
    recurrent_fwd,
    state_at,
)


class TTTMLPState(NamedTuple):
    """The network that is being trained; also the gradient of it."""

    W1: Array  # (B,K,F)
    b1: Array  # (B,F)
    W2: Array  # (B,F,E)
    b2: Array  # (B,E)


class SlowResidual(NamedTuple):
    """What the inner backward pass met on one token (B,...) or many (B,S,...)."""

    a: Array  # (B,...,F)
    da: Array  # (B,...,F)
    act: GeluResidual
    loss: InnerGradientResidual


def ttt_mlp_loss(
    state: TTTMLPState, k: Array, v: Array, gain: Array | None = None, bias: Array | None = None, *,
    eps: float = EPS,
) -> Array:  # fmt: skip
    """TTTMLPState,(B,K),(B,E),(E),(E)->(B)
    l = |f(k) - v|^2, f(x) = x + LN(gelu(x W1 + b1) W2 + b2)   (W.18)
    """
    a, _ = gelu_fwd(layer(k, state.W1, state.b1))  # (B,F)
    return inner_loss(k, layer(a, state.W2, state.b2), v, gain, bias, eps=eps)


def ttt_mlp_gradient(
    state: TTTMLPState, k: Array, v: Array, gain: Array | None = None, bias: Array | None = None, *,
    eps: float = EPS,
) -> TTTMLPState:  # fmt: skip
    """TTTMLPState,(B,K),(B,E),(E),(E)->TTTMLPState
    dl/dW1 = k^T dh, dl/db1 = dh, dl/dW2 = a^T dz, dl/db2 = dz   (W.18)
    """
    (dh, a, dz), _ = slow_fwd(state, k, v, gain, bias, eps=eps)  # (B,F), (B,F), (B,E)
    return TTTMLPState(*layer_gradient(k, dh, state.b1), *layer_gradient(a, dz, state.b2))


def ttt_mlp_gradient_bwd(
    g: TTTMLPState, state: TTTMLPState, k: Array, v: Array, gain: Array | None = None,
    bias: Array | None = None, *, eps: float = EPS,
) -> tuple:  # fmt: skip
    """Adjoint of ttt_mlp_gradient: g_state, g_k, g_v, with LayerNorm g_gain, g_bias.   (W.21)"""
    (dh, a, dz), res = slow_fwd(state, k, v, gain, bias, eps=eps)  # (B,F), (B,F), (B,E)
    # backward: dW1 = k^T dh, db1 = dh: an outer product is bilinear
    g_k, g_dh = layer_gradient_bwd(g.W1, g.b1, k, dh)  # (B,K), (B,F)
    # backward: dW2 = a^T dz, db2 = dz
    g_a, g_dz = layer_gradient_bwd(g.W2, g.b2, a, dz)  # (B,F), (B,E)
    g_state, g_k_slow, g_v, *g_norm = slow_bwd(g_dh, g_a, g_dz, state, k, dz, res)
    return g_state, g_k + g_k_slow, g_v, *g_norm


def slow_fwd(
    state: TTTMLPState, k: Array, v: Array, gain: Array | None = None, bias: Array | None = None, *,
    eps: float = EPS,
) -> tuple[tuple[Array, Array, Array], SlowResidual]:  # fmt: skip
    """TTTMLPState,(B,...,K),(B,...,E)->(B,...,F),(B,...,F),(B,...,E)
    sweeps 1 and 2: dh, a, dz of each token   (W.18)
    """
    # sweep 1, up
    a, act = gelu_fwd(layer(k, state.W1, state.b1))  # (B,...,F)
    z = layer(a, state.W2, state.b2)  # (B,...,E)
    # sweep 2, down
    dz, loss = inner_gradient(k, z, v, gain, bias, eps=eps)  # (B,...,E)
    da, _, _ = layer_bwd(dz, a, state.W2, state.b2)  # (B,...,F)
    dh = gelu_bwd(da, act)  # (B,...,F)
    return (dh, a, dz), SlowResidual(a, da, act, loss)


def slow_bwd(
    g_dh: Array, g_a: Array, g_dz: Array, state: TTTMLPState, k: Array, dz: Array,
    res: SlowResidual,
) -> tuple:  # fmt: skip
    """Adjoint of slow_fwd, sweeps 5 and 6.   (W.19)

    Returns g_state, g_k, g_v, and with LayerNorm g_gain, g_bias.
    """
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
    q: Array, k: Array, v: Array, step: Array, gain: Array | None, bias: Array | None,
    state: TTTMLPState, *, minibatch: int, read: str, eps: float = EPS,
) -> tuple[tuple[Array, TTTMLPState], TTTResidual]:  # fmt: skip
    """(B,T,K),(B,T,K),(B,T,E),(B,T),(E),(E),TTTMLPState->(B,T,E),TTTMLPState
    state_{t+1} = state_t - step_t dl_t/dstate   (W.20)

    ``minibatch``: how many tokens take their gradients at one state; a call begins a mini-batch.
    ``read`` "strict": f(q_t) with state t; "inclusive": with state t + 1. ``gain`` and ``bias``
    None: no LayerNorm, no residual. Raises ValueError for another read, a mini-batch below 1,
    shapes that do not fit, or no state.
    """
    norm = _checked(q, k, v, step, gain, bias, state, minibatch, read)
    return recurrent_fwd(
        _NETWORK, q, k, v, step, norm, state, minibatch=minibatch, read=read, eps=eps
    )


def ttt_mlp_recurrent_bwd(g_out: Array, g_state_out: TTTMLPState | None, res: TTTResidual) -> tuple:
    """Adjoint of ttt_mlp_recurrent_fwd: backpropagation through time.   (W.21)

    Returns g_q, g_k, g_v, g_step, g_gain, g_bias, g_state.
    """
    return recurrent_bwd(_NETWORK, g_out, g_state_out, res)


def ttt_mlp_dual_fwd(
    q: Array, k: Array, v: Array, step: Array, gain: Array | None, bias: Array | None,
    state: TTTMLPState, *, minibatch: int, read: str, eps: float = EPS,
) -> tuple[tuple[Array, TTTMLPState], tuple]:  # fmt: skip
    """(B,T,K),(B,T,K),(B,T,E),(B,T),(E),(E),TTTMLPState->(B,T,E),TTTMLPState
    by whole mini-batches   (W.22)

    Each layer is a linear attention whose values are slow gradients: the same function as
    ``ttt_mlp_recurrent_fwd``, with the same errors.
    """
    norm = _checked(q, k, v, step, gain, bias, state, minibatch, read)
    return chunks_fwd(
        lambda *tokens: _batch_fwd(*tokens, read=read, eps=eps),
        (q, k, v, step, *norm),
        state,
        minibatch,
    )


def ttt_mlp_dual_bwd(
    g_out: Array, g_state_out: TTTMLPState | None, res: tuple[TTTResidual, ...]
) -> tuple:
    """Adjoint of ttt_mlp_dual_fwd.   (W.23)

    Returns g_q, g_k, g_v, g_step, g_gain, g_bias, g_state.
    """
    g_q, g_k, g_v, g_step, *g_norm, g_state = chunks_bwd(_batch_bwd, g_out, g_state_out, res)
    return g_q, g_k, g_v, g_step, *per_token_bwd(tuple(g_norm)), g_state


def _read_fwd(state: TTTMLPState, q: Array, *norm: Array, eps: float):
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


_NETWORK = Network(ttt_mlp_gradient, ttt_mlp_gradient_bwd, _read_fwd, _read_bwd)


def _batch_fwd(
    q: Array, k: Array, v: Array, step: Array, *norm_and_state: Any, read: str, eps: float,
):  # fmt: skip
    *norm, state = norm_and_state
    # write, sweeps 1 and 2: dh_s, a_s, dz_s at the first state, for all tokens at once
    slow, _ = slow_fwd(state, k, v, *norm, eps=eps)  # (B,S,F), (B,S,F), (B,S,E)
    # read, sweep 3
    (out, state_out), _ = _fast_fwd(q, k, step, slow, norm, state, read, eps)  # (B,S,E)
    first = tree_map(lambda a: a[:, None, ...], state)  # (B,1,...)
    res = TTTResidual(q, k, v, step, tuple(norm), first, q.shape[1], read, eps)
    return (out, state_out), res


def _batch_bwd(g_out: Array, g_state_out: TTTMLPState | None, res: TTTResidual):
    q, k, v, step, norm, states, _, read, eps = res
    state = state_at(states, 0)
    slow, slow_res = slow_fwd(state, k, v, *norm, eps=eps)  # (B,S,F), (B,S,F), (B,S,E)
    _, fast_res = _fast_fwd(q, k, step, slow, norm, state, read, eps)
    # read, sweep 4
    g_q, g_k, g_step, g_slow, g_state, g_norm = _fast_bwd(
        g_out, g_state_out, q, k, step, slow, state, read, fast_res
    )
    # write, sweeps 5 and 6
    g_written, g_k_slow, g_v, *g_norm_slow = slow_bwd(*g_slow, state, k, slow[2], slow_res)
    g_norm = [a + b for a, b in zip(g_norm, g_norm_slow, strict=True)]  # (B,S,E)
    return g_q, g_k + g_k_slow, g_v, g_step, *g_norm, add(g_state, g_written)


def _fast_fwd(
    q: Array, k: Array, step: Array, slow: tuple, norm: Sequence[Array], state: TTTMLPState,
    read: str, eps: float,
):  # fmt: skip
    """Sweep 3: f(q_t) with the parameters of each token, none of which is formed."""
    (dh, a, dz), rate = slow, step[:, :, None]  # (B,S,F), (B,S,F), (B,S,E), (B,S,1)
    # h'_t = q_t W1 + b1 - sum_s step_s (q_t . k_s + 1) dh_s
    h_fast, *after1 = dual_layer(q, k, -rate * dh, state.W1, state.b1, read)  # (B,S,F)
    a_fast, act = gelu_fwd(h_fast)  # (B,S,F)
    # z'_t = a'_t W2 + b2 - sum_s step_s (a'_t . a_s + 1) dz_s
    z_fast, *after2 = dual_layer(a_fast, a, -rate * dz, state.W2, state.b2, read)  # (B,S,E)
    out, head = predict_fwd(q, z_fast, *norm, eps=eps)  # (B,S,E)
    return (out, TTTMLPState(*after1, *after2)), (a_fast, act, head)


def _fast_bwd(
    g_out: Array, g_state_out: TTTMLPState | None, q: Array, k: Array, step: Array, slow: tuple,
    state: TTTMLPState, read: str, res: tuple,
):  # fmt: skip
    """Adjoint of _fast_fwd, sweep 4: g_q, g_k, g_step, (g_dh, g_a, g_dz), g_state, g_norm."""
    xp, (dh, a, dz), rate, (a_fast, act, head) = namespace(g_out), slow, step[:, :, None], res
    g_after1, g_after2 = (None, None) if g_state_out is None else (g_state_out[:2], g_state_out[2:])
    # forward: out = predict(q, z')
    g_q_head, g_z, *g_norm = predict_bwd(g_out, head)  # (B,S,E)
    # forward: z' = dual_layer(a', a, u2),  u2 = -step dz
    g_a_fast, g_a, g_u2, *g_layer2 = dual_layer_bwd(
        g_z, g_after2, a_fast, a, -rate * dz, state.W2, state.b2, read
    )  # (B,S,F)
    # forward: a' = gelu(h')
    g_h = gelu_bwd(g_a_fast, act)  # (B,S,F)
    # forward: h' = dual_layer(q, k, u1),  u1 = -step dh
    g_q, g_k, g_u1, *g_layer1 = dual_layer_bwd(
        g_h, g_after1, q, k, -rate * dh, state.W1, state.b1, read
    )  # (B,S,K)
    # forward: u1 = -step dh,  u2 = -step dz
    g_step = -xp.sum(g_u1 * dh, axis=-1) - xp.sum(g_u2 * dz, axis=-1)  # (B,S)
    g_q = g_q if g_q_head is None else g_q + g_q_head
    g_slow = -rate * g_u1, g_a, -rate * g_u2  # (B,S,F), (B,S,F), (B,S,E)
    return g_q, g_k, g_step, g_slow, TTTMLPState(*g_layer1, *g_layer2), g_norm


def _checked(
    q: Array, k: Array, v: Array, step: Array, gain: Array | None, bias: Array | None,
    state: TTTMLPState, minibatch: int, read: str,
) -> tuple[Array, ...]:  # fmt: skip
    """Gain and bias per token."""
    if state is None:
        raise ValueError(
            "TTT-MLP needs a state, got None: from W1 = W2 = 0 the gradients of W1, b1 and W2 are "
            "0, so start from learned ones"
        )
    namespace(q, k, v, step, gain, bias, *state)
    check_ttt(read, minibatch, q, k, v, step, gain, bias)
    letters = {"W1": "BKF", "b1": "BF", "W2": "BFE", "b2": "BE"}
    check_rule(
        read,
        k=(k, "BTK"),
        v=(v, "BTE"),
        **{f"state.{name}": (getattr(state, name), letters[name]) for name in letters},
    )
    return per_token(gain, bias, v)
