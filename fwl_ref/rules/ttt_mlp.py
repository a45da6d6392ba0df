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

Forms: recurrent, the definition, 3 K F + 4 F E multiply-adds per token; dual, 4 K F + 5 F E + S (K
+ 2 F + E) in mini-batches of S, as matrix products.

Sun et al. 2024 (arXiv 2407.04620).
"""

from __future__ import annotations

from typing import NamedTuple

from ..backend import Array, namespace
from ..ops.gelu import GeluResidual, gelu_bwd, gelu_bwd_bwd, gelu_fwd
from ..tree import add
from .common import check_rule
from .ttt import (
    EPS,
    DualResidual,
    InnerGradientResidual,
    Network,
    Settings,
    Tokens,
    TTTResidual,
    UnderWay,
    call,
    check_ttt,
    dual_bwd,
    dual_fwd,
    fast_read,
    fast_read_bwd,
    inner_gradient,
    inner_gradient_bwd,
    inner_loss,
    layer,
    layer_bwd,
    layer_gradient,
    layer_gradient_bwd,
    networks,
    predict_bwd,
    predict_fwd,
    recurrent_bwd,
    recurrent_fwd,
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
    state: TTTMLPState | UnderWay, *, minibatch: int, read: str, eps: float = EPS,
    factor: Array | None = None,
) -> tuple[tuple[Array, TTTMLPState | UnderWay], TTTResidual]:  # fmt: skip
    """(B,T,K),(B,T,K),(B,T,E),(B,T),(E),(E),TTTMLPState->(B,T,E),TTTMLPState
    state_{t+1} = state_t - step_t dl_t/dstate   (W.20)

    ``minibatch``: how many tokens take their gradients at one state; a call begins a mini-batch,
    unless ``state`` is ``UnderWay``: then it goes on with that one, and an ``UnderWay`` goes out.
    ``read`` "strict": f(q_t) with state t; "inclusive": with state t + 1. ``factor`` (B,T): what a
    token multiplies all steps of its mini-batch by when it reads; None is 1. ``gain`` and ``bias``
    (E), or (B,E) one per sequence; None: no LayerNorm, no residual. Raises ValueError for another
    read, a mini-batch below 1, a place outside of it, shapes that do not fit, or no state.
    """
    _check(q, k, v, step, factor, gain, bias, state, minibatch, read)
    called = call(q, k, v, step, factor, gain, bias, state, minibatch, read, eps)
    return recurrent_fwd(_NETWORK, *called)


def ttt_mlp_recurrent_bwd(
    g_out: Array, g_state_out: TTTMLPState | UnderWay | None, res: TTTResidual
) -> tuple:
    """Adjoint of ttt_mlp_recurrent_fwd: backpropagation through time.   (W.21)

    Returns g_q, g_k, g_v, g_step, with a factor g_factor, g_gain, g_bias, g_state.
    """
    return recurrent_bwd(_NETWORK, g_out, g_state_out, res)


def ttt_mlp_dual_fwd(
    q: Array, k: Array, v: Array, step: Array, gain: Array | None, bias: Array | None,
    state: TTTMLPState | UnderWay, *, minibatch: int, read: str, eps: float = EPS,
    factor: Array | None = None,
) -> tuple[tuple[Array, TTTMLPState | UnderWay], DualResidual]:  # fmt: skip
    """(B,T,K),(B,T,K),(B,T,E),(B,T),(E),(E),TTTMLPState->(B,T,E),TTTMLPState
    by whole mini-batches   (W.22)

    Each layer is a linear attention whose values are slow gradients: the same function as
    ``ttt_mlp_recurrent_fwd``, with the same errors.
    """
    _check(q, k, v, step, factor, gain, bias, state, minibatch, read)
    called = call(q, k, v, step, factor, gain, bias, state, minibatch, read, eps)
    return dual_fwd(_batch_fwd, *called)


def ttt_mlp_dual_bwd(
    g_out: Array, g_state_out: TTTMLPState | UnderWay | None, res: DualResidual
) -> tuple:
    """Adjoint of ttt_mlp_dual_fwd.   (W.23)

    Returns g_q, g_k, g_v, g_step, with a factor g_factor, g_gain, g_bias, g_state.
    """
    return dual_bwd(_batch_bwd, g_out, g_state_out, res)


def ttt_mlp_read_fwd(
    state: TTTMLPState, q: Array, gain: Array | None = None, bias: Array | None = None, *,
    eps: float = EPS,
) -> tuple[Array, tuple]:  # fmt: skip
    """TTTMLPState,(B,K),(B,E),(B,E)->(B,E)   f(q) = q + LN(gelu(q W1 + b1) W2 + b2)   (W.20)"""
    a, act = gelu_fwd(layer(q, state.W1, state.b1))  # (B,F)
    out, head = predict_fwd(q, layer(a, state.W2, state.b2), gain, bias, eps=eps)  # (B,E)
    return out, (a, act, head)


def ttt_mlp_read_bwd(g_out: Array, state: TTTMLPState, q: Array, res: tuple) -> tuple:
    """Adjoint of ttt_mlp_read_fwd: g_state, g_q, and with LayerNorm g_gain, g_bias.   (W.21)"""
    a, act, head = res
    # forward: out = predict(q, z)
    g_q_head, g_z, *g_norm = predict_bwd(g_out, head)  # (B,E)
    # forward: z = a W2 + b2
    g_a, g_W2, g_b2 = layer_bwd(g_z, a, state.W2, state.b2)  # (B,F)
    # forward: a = gelu(q W1 + b1)
    g_q, g_W1, g_b1 = layer_bwd(gelu_bwd(g_a, act), q, state.W1, state.b1)  # (B,K)
    return TTTMLPState(g_W1, g_b1, g_W2, g_b2), g_q if g_q_head is None else g_q + g_q_head, *g_norm


_NETWORK = Network(ttt_mlp_gradient, ttt_mlp_gradient_bwd, ttt_mlp_read_fwd, ttt_mlp_read_bwd)


def _batch_fwd(tokens: Tokens, first: TTTMLPState, moved: TTTMLPState, settings: Settings) -> tuple:
    # write, sweeps 1 and 2: dh_s, a_s, dz_s at the first state, for all tokens at once
    slow, _ = slow_fwd(first, tokens.k, tokens.v, *tokens.norm, eps=settings.eps)
    # read, sweep 3
    (out, after), _ = _fast_fwd(tokens, slow, first, moved, settings)  # (B,S,E)
    return out, after


def _batch_bwd(
    g_out: Array, g_moved: TTTMLPState, tokens: Tokens, first: TTTMLPState, moved: TTTMLPState,
    settings: Settings,
) -> tuple:  # fmt: skip
    slow, slow_res = slow_fwd(first, tokens.k, tokens.v, *tokens.norm, eps=settings.eps)
    _, fast_res = _fast_fwd(tokens, slow, first, moved, settings)
    # read, sweep 4
    g, g_slow, g_first, g_moved = _fast_bwd(
        g_out, g_moved, tokens, slow, first, moved, settings, fast_res
    )
    # write, sweeps 5 and 6
    g_written, g_k, g_v, *g_norm = slow_bwd(*g_slow, first, tokens.k, slow[2], slow_res)
    g_norm = [a + b for a, b in zip(g.norm, g_norm, strict=True)]  # (B,S,E)
    g = g._replace(k=g.k + g_k, v=g_v, norm=tuple(g_norm))
    return g, add(g_first, g_written), g_moved


def _fast_fwd(
    tokens: Tokens, slow: tuple, first: TTTMLPState, moved: TTTMLPState, settings: Settings
) -> tuple:
    """Sweep 3: f(q_t) with the parameters of each token, none of which is formed."""
    q, k, _, step, factor, norm = tokens
    (dh, a, dz), rate = slow, step[:, :, None]  # (B,S,F), (B,S,F), (B,S,E), (B,S,1)
    # h'_t = q_t W1 + b1 - factor_t sum_s step_s (q_t . k_s + 1) dh_s
    h_fast, y1, after1 = fast_read(q, k, -rate * dh, first[:2], moved[:2], factor, settings.read)
    a_fast, act = gelu_fwd(h_fast)  # (B,S,F)
    # z'_t = a'_t W2 + b2 - factor_t sum_s step_s (a'_t . a_s + 1) dz_s
    z_fast, y2, after2 = fast_read(
        a_fast, a, -rate * dz, first[2:], moved[2:], factor, settings.read
    )
    out, head = predict_fwd(q, z_fast, *norm, eps=settings.eps)  # (B,S,E)
    return (out, TTTMLPState(*after1, *after2)), (a_fast, act, head, y1, y2)


def _fast_bwd(
    g_out: Array, g_moved: TTTMLPState, tokens: Tokens, slow: tuple, first: TTTMLPState,
    moved: TTTMLPState, settings: Settings, res: tuple,
) -> tuple:  # fmt: skip
    """Adjoint of _fast_fwd, sweep 4: g_tokens (v None), (g_dh, g_a, g_dz), g_first, g_moved."""
    q, k, _, step, factor, _ = tokens
    xp, (dh, a, dz), rate = namespace(g_out), slow, step[:, :, None]
    (a_fast, act, head, y1, y2), read = res, settings.read
    # forward: out = predict(q, z')
    g_q_head, g_z, *g_norm = predict_bwd(g_out, head)  # (B,S,E)
    # forward: z' = fast_read(a', a, u2),  u2 = -step dz
    g_a_fast, g_a, g_u2, g_first2, g_moved2, g_factor2 = fast_read_bwd(
        g_z, g_moved[2:], a_fast, a, -rate * dz, first[2:], moved[2:], factor, read, y2
    )  # (B,S,F)
    # forward: a' = gelu(h')
    g_h = gelu_bwd(g_a_fast, act)  # (B,S,F)
    # forward: h' = fast_read(q, k, u1),  u1 = -step dh
    g_q, g_k, g_u1, g_first1, g_moved1, g_factor1 = fast_read_bwd(
        g_h, g_moved[:2], q, k, -rate * dh, first[:2], moved[:2], factor, read, y1
    )  # (B,S,K)
    # forward: u1 = -step dh,  u2 = -step dz
    g_step = -xp.sum(g_u1 * dh, axis=-1) - xp.sum(g_u2 * dz, axis=-1)  # (B,S)
    g_q = g_q if g_q_head is None else g_q + g_q_head
    g_slow = -rate * g_u1, g_a, -rate * g_u2  # (B,S,F), (B,S,F), (B,S,E)
    g_factor = None if factor is None else g_factor1 + g_factor2  # (B,S)
    g_tokens = Tokens(g_q, g_k, None, g_step, g_factor, tuple(g_norm))
    return g_tokens, g_slow, TTTMLPState(*g_first1, *g_first2), TTTMLPState(*g_moved1, *g_moved2)


def _check(
    q: Array, k: Array, v: Array, step: Array, factor: Array | None, gain: Array | None,
    bias: Array | None, state: TTTMLPState | UnderWay, minibatch: int, read: str,
) -> None:  # fmt: skip
    if state is None:
        raise ValueError(
            "TTT-MLP needs a state, got None: from W1 = W2 = 0 the gradients of W1, b1 and W2 are "
            "0, so start from learned ones"
        )
    found = networks(state)
    namespace(q, k, v, step, factor, gain, bias, *(p for network in found for p in network))
    check_ttt(read, minibatch, q, k, v, step, factor, gain, bias, state)
    letters = {"W1": "BKF", "b1": "BF", "W2": "BFE", "b2": "BE"}
    for network in found:
        check_rule(
            read,
            k=(k, "BTK"),
            v=(v, "BTE"),
            **{f"state.{name}": (getattr(network, name), letters[name]) for name in letters},
        )
