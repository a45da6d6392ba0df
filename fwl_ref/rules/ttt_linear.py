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

Forms: recurrent, the definition, 3 K E multiply-adds per token; dual, 3 K E + S (K + E) in
mini-batches of S, as matrix products.

Sun et al. 2024 (arXiv 2407.04620).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..backend import Array, namespace
from ..ops.layernorm import LayerNormResidual
from ..tree import add, tree_map
from .common import check_rule, chunks_bwd, chunks_fwd, start_state
from .ttt import (
    EPS,
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
    state: TTTLinearState | None = None, *, minibatch: int, read: str, eps: float = EPS,
) -> tuple[tuple[Array, TTTLinearState], TTTResidual]:  # fmt: skip
    """(B,T,K),(B,T,K),(B,T,E),(B,T),(E),(E),TTTLinearState->(B,T,E),TTTLinearState
    S_{t+1} = S_t - step_t dl_t/dS   (W.14)

    ``minibatch``: how many tokens take their gradients at one state; a call begins a mini-batch.
    ``read`` "strict": f(q_t) with S_t; "inclusive": with S_{t+1}. ``gain`` and ``bias`` None: no
    LayerNorm, no residual. ``state`` None: W = 0, b = 0; with LayerNorm better a learned W, for the
    slope of LN at z = 0 is 1 / sqrt(eps). Raises ValueError for another read, a mini-batch below 1,
    or shapes that do not fit.
    """
    norm, start = _checked(q, k, v, step, gain, bias, state, minibatch, read)
    return recurrent_fwd(
        _NETWORK, q, k, v, step, norm, start, minibatch=minibatch, read=read, eps=eps
    )


def ttt_linear_recurrent_bwd(
    g_out: Array, g_state_out: TTTLinearState | None, res: TTTResidual
) -> tuple:
    """Adjoint of ttt_linear_recurrent_fwd: backpropagation through time.   (W.15)

    Returns g_q, g_k, g_v, g_step, g_gain, g_bias, g_state.
    """
    return recurrent_bwd(_NETWORK, g_out, g_state_out, res)


def ttt_linear_dual_fwd(
    q: Array, k: Array, v: Array, step: Array, gain: Array | None, bias: Array | None,
    state: TTTLinearState | None = None, *, minibatch: int, read: str, eps: float = EPS,
) -> tuple[tuple[Array, TTTLinearState], tuple]:  # fmt: skip
    """(B,T,K),(B,T,K),(B,T,E),(B,T),(E),(E),TTTLinearState->(B,T,E),TTTLinearState
    by whole mini-batches   (W.16)

    z_t = q_t W + b - sum_s step_s (q_t . k_s + 1) dz_s, then f: the same function as
    ``ttt_linear_recurrent_fwd``, with the same errors.
    """
    norm, start = _checked(q, k, v, step, gain, bias, state, minibatch, read)
    return chunks_fwd(
        lambda *tokens: _batch_fwd(*tokens, read=read, eps=eps),
        (q, k, v, step, *norm),
        start,
        minibatch,
    )


def ttt_linear_dual_bwd(
    g_out: Array, g_state_out: TTTLinearState | None, res: tuple[TTTResidual, ...]
) -> tuple:
    """Adjoint of ttt_linear_dual_fwd.   (W.17)

    Returns g_q, g_k, g_v, g_step, g_gain, g_bias, g_state.
    """
    g_q, g_k, g_v, g_step, *g_norm, g_state = chunks_bwd(_batch_bwd, g_out, g_state_out, res)
    return g_q, g_k, g_v, g_step, *per_token_bwd(tuple(g_norm)), g_state


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
    q: Array, k: Array, v: Array, step: Array, *norm_and_state: Any, read: str, eps: float,
):  # fmt: skip
    *norm, state = norm_and_state
    # write: dz_s at the first state, for all tokens at once
    dz, _ = inner_gradient(k, layer(k, *state), v, *norm, eps=eps)  # (B,S,E)
    u = -step[:, :, None] * dz  # (B,S,E)
    # read: z_t = q_t W + b + sum_s (q_t . k_s + 1) u_s
    z, *after = dual_layer(q, k, u, *state, read)  # (B,S,E)
    out, _ = predict_fwd(q, z, *norm, eps=eps)  # (B,S,E)
    first = tree_map(lambda a: a[:, None, ...], state)  # (B,1,...)
    res = TTTResidual(q, k, v, step, tuple(norm), first, q.shape[1], read, eps)
    return (out, TTTLinearState(*after)), res


def _batch_bwd(g_out: Array, g_state_out: TTTLinearState | None, res: TTTResidual):
    q, k, v, step, norm, states, _, read, eps = res
    state = state_at(states, 0)
    xp = namespace(g_out, q)
    dz, slow = inner_gradient(k, layer(k, *state), v, *norm, eps=eps)  # (B,S,E)
    u = -step[:, :, None] * dz  # (B,S,E)
    z, *_ = dual_layer(q, k, u, *state, read)  # (B,S,E)
    _, head = predict_fwd(q, z, *norm, eps=eps)
    # read: out = predict(q, z)
    g_q_head, g_z, *g_norm_read = predict_bwd(g_out, head)  # (B,S,E)
    # read: z, *state_out = dual_layer(q, k, u, *state)
    g_q, g_k, g_u, *g_read = dual_layer_bwd(g_z, g_state_out, q, k, u, *state, read)
    # write: u = -step dz
    g_step = -xp.sum(g_u * dz, axis=-1)  # (B,S)
    g_dz = -step[:, :, None] * g_u  # (B,S,E)
    # write: dz = inner_gradient(k, z, v)
    g_k_loss, g_z, g_v, *g_norm = inner_gradient_bwd(g_dz, slow)  # (B,S,E)
    # write: z = k W + b
    g_k_layer, *g_written = layer_bwd(g_z, k, *state)  # (B,S,K)
    g_norm = [a + b for a, b in zip(g_norm, g_norm_read, strict=True)]  # (B,S,E)
    g_k = g_k + g_k_layer
    if g_k_loss is not None:
        g_q, g_k = g_q + g_q_head, g_k + g_k_loss
    return g_q, g_k, g_v, g_step, *g_norm, add(TTTLinearState(*g_read), TTTLinearState(*g_written))


def _checked(
    q: Array, k: Array, v: Array, step: Array, gain: Array | None, bias: Array | None,
    state: TTTLinearState | None, minibatch: int, read: str,
) -> tuple[tuple[Array, ...], TTTLinearState]:  # fmt: skip
    """Gain and bias per token, and the state that comes in."""
    namespace(q, k, v, step, gain, bias, *(state or ()))
    check_ttt(read, minibatch, q, k, v, step, gain, bias)
    if state is not None:
        check_rule(
            read,
            k=(k, "BTK"),
            v=(v, "BTE"),
            **{"state.W": (state.W, "BKE"), "state.b": (state.b, "BE")},
        )
    else:
        W = start_state(None, k, v)  # (B,K,E)
        state = TTTLinearState(W, namespace(W).sum(W, axis=1))
    return per_token(gain, bias, v), state
