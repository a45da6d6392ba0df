"""TTT-Linear: the hidden state is a linear map, trained by gradient descent while it reads.

    network    z = x W + b,    f(x) = x + LN(z; gain, bias)
    loss       l(W, b) = |f(k) - v|^2
    gradient   dl/dz = dz = LN^T(2 (f(k) - v)).  Changes C of W and c of b change z by k C + c,
               and l by <dz, k C + c> + O(C^2 + c^2),  so  dl/dW = k^T dz,  dl/db = dz
    update     (W, b)_{t+1} = (W, b)_t - step_t dl_t/d(W, b),
               the gradient at the (W, b) that the token's mini-batch began with

Exactly gradient descent on gradients that are stale within a mini-batch; they are applied token by
token, so an inclusive read (the paper's) sees its own. The size of the mini-batch is part of the
function; with one token nothing is stale. Without LayerNorm and residual (gain and bias None) the
network is linear, and with keys [k, 1], or k where the state has no b, the rule is

    for mini-batches of 1              the delta rule at twice the rate
    for one mini-batch from W = 0      linear attention with values 2 step v: plain for step = 1/2

State: W (B,K,E) and b (B,E), or b None for no bias.

In a mini-batch every dz_j is known beforehand and the writes -step_j [k_j, 1]^T dz_j only add up.
So the W of a token need never be formed: that is linear attention with -step dz for the value, the
*dual* form. Between mini-batches there is no such form, since LayerNorm makes dz depend on W in no
linear way: a chunk is a mini-batch.

Forms: recurrent, the definition, 3 K E multiply-adds per token; dual, 4 K E + S (K + E) in
mini-batches of S, as matrix products.

Sun et al. 2024 (arXiv 2407.04620).
"""

from __future__ import annotations

from typing import NamedTuple

from ..backend import Array, namespace
from ..ops.layernorm import LayerNormResidual
from ..tree import add
from .common import check_rule, start_state
from .ttt import (
    EPS,
    DualResidual,
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


class TTTLinearState(NamedTuple):
    """The network that is being trained; also the gradient of it."""

    W: Array  # (B,K,E)
    b: Array | None  # (B,E) None: no bias


def ttt_linear_loss(
    state: TTTLinearState, k: Array, v: Array, gain: Array | None = None, bias: Array | None = None,
    *, eps: float = EPS,
) -> Array:  # fmt: skip
    """TTTLinearState,(B,K),(B,E),(E),(E)->(B)
    l = |f(k) - v|^2, f(x) = x + LN(x W + b)   (W.13)
    """
    return inner_loss(k, layer(k, *state), v, gain, bias, eps=eps)


def ttt_linear_gradient(
    state: TTTLinearState, k: Array, v: Array, gain: Array | None = None, bias: Array | None = None,
    *, eps: float = EPS,
) -> TTTLinearState:  # fmt: skip
    """TTTLinearState,(B,K),(B,E),(E),(E)->TTTLinearState   dl/dW = k^T dz, dl/db = dz   (W.13)"""
    dz, _ = inner_gradient(k, layer(k, *state), v, gain, bias, eps=eps)  # (B,E)
    return TTTLinearState(*layer_gradient(k, dz, state.b))


def ttt_linear_gradient_bwd(
    g: TTTLinearState, state: TTTLinearState, k: Array, v: Array, gain: Array | None = None,
    bias: Array | None = None, *, eps: float = EPS,
) -> tuple:  # fmt: skip
    """Adjoint of ttt_linear_gradient: g_state, g_k, g_v, with LayerNorm g_gain, g_bias.   (W.15)"""
    dz, res = inner_gradient(k, layer(k, *state), v, gain, bias, eps=eps)  # (B,E)
    # backward: dW = k^T dz,  db = dz
    g_k, g_dz = layer_gradient_bwd(*g, k, dz)  # (B,K), (B,E)
    # backward: dz = inner_gradient(k, z, v)
    g_k_loss, g_z, g_v, *g_norm = inner_gradient_bwd(g_dz, res)  # (B,E)
    g_k = g_k if g_k_loss is None else g_k + g_k_loss
    # forward: z = k W + b
    g_k_layer, *g_state = layer_bwd(g_z, k, *state)  # (B,K)
    return TTTLinearState(*g_state), g_k + g_k_layer, g_v, *g_norm


def ttt_linear_recurrent_fwd(
    q: Array, k: Array, v: Array, step: Array, gain: Array | None, bias: Array | None,
    state: TTTLinearState | UnderWay | None = None, *, minibatch: int, read: str, eps: float = EPS,
    factor: Array | None = None,
) -> tuple[tuple[Array, TTTLinearState | UnderWay], TTTResidual]:  # fmt: skip
    """(B,T,K),(B,T,K),(B,T,E),(B,T),(E),(E),TTTLinearState->(B,T,E),TTTLinearState
    S_{t+1} = S_t - step_t dl_t/dS   (W.14)

    ``minibatch``: how many tokens take their gradients at one state; a call begins a mini-batch,
    unless ``state`` is ``UnderWay``: then it goes on with that one, and an ``UnderWay`` goes out.
    ``read`` "strict": f(q_t) with S_t; "inclusive": with S_{t+1}. ``factor`` (B,T): what a token
    multiplies all steps of its mini-batch by when it reads; None is 1. ``gain`` and ``bias`` (E),
    or (B,E) one per sequence; None: no LayerNorm, no residual. ``state`` None: W = 0, b = 0; with
    LayerNorm better a learned W, for the slope of LN at z = 0 is 1 / sqrt(eps). Raises ValueError
    for another read, a mini-batch below 1, a place outside of it, or shapes that do not fit.
    """
    start = _checked(q, k, v, step, factor, gain, bias, state, minibatch, read)
    called = call(q, k, v, step, factor, gain, bias, start, minibatch, read, eps)
    return recurrent_fwd(_NETWORK, *called)


def ttt_linear_recurrent_bwd(
    g_out: Array, g_state_out: TTTLinearState | UnderWay | None, res: TTTResidual
) -> tuple:
    """Adjoint of ttt_linear_recurrent_fwd: backpropagation through time.   (W.15)

    Returns g_q, g_k, g_v, g_step, with a factor g_factor, g_gain, g_bias, g_state.
    """
    return recurrent_bwd(_NETWORK, g_out, g_state_out, res)


def ttt_linear_dual_fwd(
    q: Array, k: Array, v: Array, step: Array, gain: Array | None, bias: Array | None,
    state: TTTLinearState | UnderWay | None = None, *, minibatch: int, read: str, eps: float = EPS,
    factor: Array | None = None,
) -> tuple[tuple[Array, TTTLinearState | UnderWay], DualResidual]:  # fmt: skip
    """(B,T,K),(B,T,K),(B,T,E),(B,T),(E),(E),TTTLinearState->(B,T,E),TTTLinearState
    by whole mini-batches   (W.16)

    z_t = q_t W + b - factor_t sum_s step_s (q_t . k_s + 1) dz_s, then f: the same function as
    ``ttt_linear_recurrent_fwd``, with the same errors.
    """
    start = _checked(q, k, v, step, factor, gain, bias, state, minibatch, read)
    called = call(q, k, v, step, factor, gain, bias, start, minibatch, read, eps)
    return dual_fwd(_batch_fwd, *called)


def ttt_linear_dual_bwd(
    g_out: Array, g_state_out: TTTLinearState | UnderWay | None, res: DualResidual
) -> tuple:
    """Adjoint of ttt_linear_dual_fwd.   (W.17)

    Returns g_q, g_k, g_v, g_step, with a factor g_factor, g_gain, g_bias, g_state.
    """
    return dual_bwd(_batch_bwd, g_out, g_state_out, res)


def _read_fwd(state: TTTLinearState, q: Array, *norm: Array, eps: float):
    """TTTLinearState,(B,K)->(B,E)   f(q) = q + LN(q W + b)"""
    return predict_fwd(q, layer(q, *state), *norm, eps=eps)


def _read_bwd(
    g_out: Array, state: TTTLinearState, q: Array, head: LayerNormResidual | None
) -> tuple:
    """Adjoint of _read_fwd: g_state, g_q, and with LayerNorm g_gain, g_bias."""
    # forward: out = predict(q, z)
    g_q_head, g_z, *g_norm = predict_bwd(g_out, head)  # (B,E)
    # forward: z = q W + b
    g_q, *g_state = layer_bwd(g_z, q, *state)  # (B,K)
    return TTTLinearState(*g_state), g_q if g_q_head is None else g_q + g_q_head, *g_norm


_NETWORK = Network(ttt_linear_gradient, ttt_linear_gradient_bwd, _read_fwd, _read_bwd)


def _batch_fwd(
    tokens: Tokens, first: TTTLinearState, moved: TTTLinearState, settings: Settings
) -> tuple:
    q, k, v, step, factor, norm = tokens
    # write: dz_s at the first state, for all tokens at once
    dz, _ = inner_gradient(k, layer(k, *first), v, *norm, eps=settings.eps)  # (B,S,E)
    u = -step[:, :, None] * dz  # (B,S,E)
    # read: z_t = q_t W + b + factor_t sum_s (q_t . k_s + 1) u_s
    z, _, after = fast_read(q, k, u, first, moved, factor, settings.read)  # (B,S,E)
    out, _ = predict_fwd(q, z, *norm, eps=settings.eps)  # (B,S,E)
    return out, TTTLinearState(*after)


def _batch_bwd(
    g_out: Array, g_moved: TTTLinearState, tokens: Tokens, first: TTTLinearState,
    moved: TTTLinearState, settings: Settings,
) -> tuple:  # fmt: skip
    q, k, v, step, factor, norm = tokens
    xp = namespace(g_out, q)
    dz, slow = inner_gradient(k, layer(k, *first), v, *norm, eps=settings.eps)  # (B,S,E)
    u = -step[:, :, None] * dz  # (B,S,E)
    z, y, _ = fast_read(q, k, u, first, moved, factor, settings.read)  # (B,S,E)
    _, head = predict_fwd(q, z, *norm, eps=settings.eps)
    # read: out = predict(q, z)
    g_q_head, g_z, *g_norm_read = predict_bwd(g_out, head)  # (B,S,E)
    # read: z, moved' = fast_read(q, k, u, first, moved, factor)
    g_read = fast_read_bwd(g_z, g_moved, q, k, u, first, moved, factor, settings.read, y)
    g_q, g_k, g_u, g_first, g_moved, g_factor = g_read
    # write: u = -step dz
    g_step = -xp.sum(g_u * dz, axis=-1)  # (B,S)
    g_dz = -step[:, :, None] * g_u  # (B,S,E)
    # write: dz = inner_gradient(k, z, v)
    g_k_loss, g_z, g_v, *g_norm = inner_gradient_bwd(g_dz, slow)  # (B,S,E)
    # write: z = k W + b
    g_k_layer, *g_written = layer_bwd(g_z, k, *first)  # (B,S,K)
    g_norm = [a + b for a, b in zip(g_norm, g_norm_read, strict=True)]  # (B,S,E)
    g_k = g_k + g_k_layer
    if g_k_loss is not None:
        g_q, g_k = g_q + g_q_head, g_k + g_k_loss
    g_first = add(TTTLinearState(*g_first), TTTLinearState(*g_written))
    g_tokens = Tokens(g_q, g_k, g_v, g_step, g_factor, tuple(g_norm))
    return g_tokens, g_first, TTTLinearState(*g_moved)


def _checked(
    q: Array, k: Array, v: Array, step: Array, factor: Array | None, gain: Array | None,
    bias: Array | None, state: TTTLinearState | UnderWay | None, minibatch: int, read: str,
) -> TTTLinearState | UnderWay:  # fmt: skip
    """The state that comes in."""
    found = networks(state)
    namespace(q, k, v, step, factor, gain, bias, *(p for network in found for p in network))
    check_ttt(read, minibatch, q, k, v, step, factor, gain, bias, state)
    for W, b in found:
        check_rule(
            read,
            k=(k, "BTK"),
            v=(v, "BTE"),
            **{"state.W": (W, "BKE"), "state.b": (b, "BE")},
        )
    if state is not None:
        return state
    W = start_state(None, k, v)  # (B,K,E)
    return TTTLinearState(W, namespace(W).sum(W, axis=1))
