"""TTT-Linear: the hidden state is a linear map, trained by mini-batch gradient descent on the sequence that it reads.

    network    z = x W + b,    f(x) = x + LN(z; gain, bias)
    loss       l(W, b) = |f(k) - v|^2
    gradient   dl = <dz, k dW + db>,  so  dl/dW = k^T dz,  dl/db = dz,    dz = LN^T(2 (f(k) - v))
    update     (W, b)_{t+1} = (W, b)_t - step_t dl_t/d(W, b), at the (W, b) that the token's mini-batch began with

Exactly gradient descent on gradients that are stale within a mini-batch; they are applied token by token, so an inclusive read (the
paper's) sees its own. The size of the mini-batch is part of the function; with one token nothing is stale. Without LayerNorm and
residual (gain and bias None) the network is linear, and with keys [k, 1], or k where the state has no b, the rule is

    for mini-batches of 1              the delta rule at twice the rate
    for one mini-batch from W = 0      linear attention with values 2 step v: plain for step = 1/2

State: W (B,K,E) and b (B,E), or b None for no bias.

In a mini-batch every dz_j is known beforehand and the writes -step_j [k_j, 1]^T dz_j only add up. So the W of a token need never be
formed: that is linear attention with -step dz for the value, the *dual* form. Between mini-batches there is no such form, since
LayerNorm makes dz depend on W in no linear way: a chunk is a mini-batch.

Forms: recurrent, the definition, 3 K E multiply-adds per token; dual, 3 K E + S (K + E) in mini-batches of S, as matrix products.

Sun et al. 2024 (arXiv 2407.04620).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..backend import Array, namespace
from ..tree import add, zeros_like
from .common import apply, check_rule, chunks_bwd, chunks_fwd, outer, stack, start_state, sums, sums_bwd, unfaded
from .ttt import (
    EPS,
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


class TTTLinearState(NamedTuple):
    """The network that is being trained; also the gradient of it."""

    W: Array  # (B,K,E)
    b: Array | None  # (B,E) None: no bias


class TTTLinearResidual(NamedTuple):
    q: Array  # (B,T,K)
    k: Array  # (B,T,K)
    v: Array  # (B,T,E)
    step: Array  # (B,T)
    norm: tuple[Array, ...]  # (B,T,E) gain and bias per token, or ()
    states: tuple[TTTLinearState, ...]  # all T + 1 states of the recurrent form; the first of a mini-batch
    minibatch: int
    read: str
    eps: float


def ttt_linear_loss(
    state: TTTLinearState, k: Array, v: Array, gain: Array | None = None, bias: Array | None = None, *, eps: float = EPS
) -> Array:
    """TTTLinearState,(B,K),(B,E),(E),(E)->(B)   l = |f(k) - v|^2, f(x) = x + LN(x W + b)   (W.13)"""
    return inner_loss(k, layer(k, *state), v, gain, bias, eps=eps)


def ttt_linear_gradient(
    state: TTTLinearState, k: Array, v: Array, gain: Array | None = None, bias: Array | None = None, *, eps: float = EPS
) -> TTTLinearState:
    """TTTLinearState,(B,K),(B,E),(E),(E)->TTTLinearState   dl/dW = k^T dz, dl/db = dz   (W.13)"""
    dz, _ = inner_gradient(k, layer(k, *state), v, gain, bias, eps=eps)  # (B,E)
    return TTTLinearState(outer(k, dz), None if state.b is None else dz)


def ttt_linear_gradient_bwd(
    g: TTTLinearState, state: TTTLinearState, k: Array, v: Array, gain: Array | None = None, bias: Array | None = None, *, eps: float = EPS
) -> tuple:
    """Adjoint of ttt_linear_gradient: g_state, g_k, g_v, and with LayerNorm g_gain, g_bias.   (W.15)"""
    xp = namespace(g.W, k, v)
    dz, res = inner_gradient(k, layer(k, *state), v, gain, bias, eps=eps)  # (B,E)
    # backward: dW = k^T dz,  db = dz
    g_k = apply(dz, xp.matrix_transpose(g.W))  # (B,K)
    g_dz = apply(k, g.W) if g.b is None else apply(k, g.W) + g.b  # (B,E)
    # backward: dz = inner_gradient(k, z, v)
    g_k_loss, g_z, g_v, *g_norm = inner_gradient_bwd(g_dz, res)  # (B,E)
    g_k = g_k if g_k_loss is None else g_k + g_k_loss
    # forward: z = k W + b
    g_k_layer, *g_state = layer_bwd(g_z, k, *state)  # (B,K)
    return TTTLinearState(*g_state), g_k + g_k_layer, g_v, *g_norm


def ttt_linear_recurrent_fwd(
    q: Array, k: Array, v: Array, step: Array, gain: Array | None, bias: Array | None, state: TTTLinearState | None = None,
    *, minibatch: int, read: str, eps: float = EPS,
):  # fmt: skip
    """(B,T,K),(B,T,K),(B,T,E),(B,T),(E),(E),TTTLinearState->(B,T,E),TTTLinearState   S_{t+1} = S_t - step_t dl_t/dS   (W.14)

    ``minibatch``: how many tokens take their gradients at one state; a call begins a mini-batch. ``read`` "strict": f(q_t) with S_t;
    "inclusive": with S_{t+1}. ``gain`` and ``bias`` None: no LayerNorm, no residual. ``state`` None: W = 0, b = 0; with LayerNorm
    better a learned W, for the slope of LN at z = 0 is 1 / sqrt(eps). Raises ValueError for another read, a mini-batch below 1, or
    shapes that do not fit.
    """
    norm, start = _checked(q, k, v, step, gain, bias, state, minibatch, read)
    states, outs = [start], []
    for t in range(q.shape[1]):
        if t % minibatch == 0:
            first = states[t]
        norm_t = [p[:, t, :] for p in norm]  # (B,E)
        gradient = ttt_linear_gradient(first, k[:, t, :], v[:, t, :], *norm_t, eps=eps)
        states.append(descend(states[t], step[:, t], gradient))
        seen = states[t] if read == "strict" else states[t + 1]
        out, _ = predict_fwd(q[:, t, :], layer(q[:, t, :], *seen), *norm_t, eps=eps)  # (B,E)
        outs.append(out)
    return (stack(outs, v), states[-1]), TTTLinearResidual(q, k, v, step, norm, tuple(states), minibatch, read, eps)


def ttt_linear_recurrent_bwd(g_out: Array, g_state_out: TTTLinearState | None, res: TTTLinearResidual):
    """Adjoint of ttt_linear_recurrent_fwd: backpropagation through time.   (W.15)

    Returns g_q, g_k, g_v, g_step, g_gain, g_bias, g_state.
    """
    q, k, v, step, norm, states, minibatch, read, eps = res
    namespace(g_out, q)
    g_state = zeros_like(states[-1]) if g_state_out is None else g_state_out
    g_first, g_qs, g_ks, g_vs, g_steps, g_norms = zeros_like(states[-1]), [], [], [], [], []
    for t in reversed(range(q.shape[1])):
        norm_t, seen, first = [p[:, t, :] for p in norm], states[t] if read == "strict" else states[t + 1], states[t - t % minibatch]
        token = first, k[:, t, :], v[:, t, :], *norm_t
        # forward: out = predict(q, q W + b)
        _, head = predict_fwd(q[:, t, :], layer(q[:, t, :], *seen), *norm_t, eps=eps)  # (B,E)
        g_q_head, g_z, *g_norm_read = predict_bwd(g_out[:, t, :], head)  # (B,E)
        g_q, *g_seen = layer_bwd(g_z, q[:, t, :], *seen)  # (B,K)
        g_qs.append(g_q if g_q_head is None else g_q + g_q_head)
        if read == "inclusive":
            g_state = add(g_state, TTTLinearState(*g_seen))
        # forward: state' = state - step * gradient
        g_step, g_gradient = descend_bwd(g_state, step[:, t], ttt_linear_gradient(*token, eps=eps))  # (B,)
        g_steps.append(g_step)
        # forward: gradient = ttt_linear_gradient(first, k, v)
        g_moved, g_k, g_v, *g_norm = ttt_linear_gradient_bwd(g_gradient, *token, eps=eps)
        g_ks.append(g_k)
        g_vs.append(g_v)
        g_norms.append([a + b for a, b in zip(g_norm, g_norm_read, strict=True)])
        g_first = add(g_first, g_moved)
        if read == "strict":
            g_state = add(g_state, TTTLinearState(*g_seen))
        if t % minibatch == 0:
            # forward: first = state
            g_state, g_first = add(g_state, g_first), zeros_like(g_first)
    tokens = (stack(rows[::-1], like) for rows, like in ((g_qs, q), (g_ks, k), (g_vs, v), (g_steps, step)))
    g_norm = tuple(stack([rows[i] for rows in g_norms[::-1]], p) for i, p in enumerate(norm))  # (B,T,E)
    return *tokens, *per_token_bwd(g_norm), g_state


def ttt_linear_dual_fwd(
    q: Array, k: Array, v: Array, step: Array, gain: Array | None, bias: Array | None, state: TTTLinearState | None = None,
    *, minibatch: int, read: str, eps: float = EPS,
):  # fmt: skip
    """(B,T,K),(B,T,K),(B,T,E),(B,T),(E),(E),TTTLinearState->(B,T,E),TTTLinearState   by whole mini-batches   (W.16)

    z_t = q_t W + b - sum_s step_s (q_t . k_s + 1) dz_s, then f: the same function as ``ttt_linear_recurrent_fwd``,
    with the same errors.
    """
    norm, start = _checked(q, k, v, step, gain, bias, state, minibatch, read)
    return chunks_fwd(lambda *tokens: _batch_fwd(*tokens, read=read, eps=eps), (q, k, v, step, *norm), start, minibatch)


def ttt_linear_dual_bwd(g_out: Array, g_state_out: TTTLinearState | None, res: tuple[TTTLinearResidual, ...]):
    """Adjoint of ttt_linear_dual_fwd. Returns g_q, g_k, g_v, g_step, g_gain, g_bias, g_state.   (W.17)"""
    g_q, g_k, g_v, g_step, *g_norm, g_state = chunks_bwd(_batch_bwd, g_out, g_state_out, res)
    return g_q, g_k, g_v, g_step, *per_token_bwd(tuple(g_norm)), g_state


def _batch_fwd(q: Array, k: Array, v: Array, step: Array, *norm_and_state: Any, read: str, eps: float):
    *norm, state = norm_and_state
    # write: dz_s at the first state, for all tokens at once
    dz, _ = inner_gradient(k, layer(k, *state), v, *norm, eps=eps)  # (B,S,E)
    u = -step[:, :, None] * dz  # (B,S,E)
    # read: z_t = q_t W + b + sum_s (q_t . k_s + 1) u_s
    z, S = sums(_input(q, state), _input(k, state), u, unfaded(q.shape[1], q), _packed(state), read)  # (B,S,E)
    out, _ = predict_fwd(q, z, *norm, eps=eps)  # (B,S,E)
    return (out, _unpacked(S, state)), TTTLinearResidual(q, k, v, step, tuple(norm), (state,), q.shape[1], read, eps)


def _batch_bwd(g_out: Array, g_state_out: TTTLinearState | None, res: TTTLinearResidual):
    q, k, v, step, norm, (state,), _, read, eps = res
    xp, fade, S = namespace(g_out, q), unfaded(q.shape[1], q), _packed(state)  # (1,S+1,S+1), (B,K+1,E)
    dz, slow = inner_gradient(k, layer(k, *state), v, *norm, eps=eps)  # (B,S,E)
    u, width = -step[:, :, None] * dz, q.shape[2]  # (B,S,E)
    z, _ = sums(_input(q, state), _input(k, state), u, fade, S, read)  # (B,S,E)
    _, head = predict_fwd(q, z, *norm, eps=eps)
    # read: out = predict(q, z)
    g_q_head, g_z, *g_norm_read = predict_bwd(g_out, head)  # (B,S,E)
    # read: z, state_out = sums([q, 1], [k, 1], u)
    g_S_out = None if g_state_out is None else _packed(g_state_out)  # (B,K+1,E)
    g_q, g_k, g_u, _, g_S = sums_bwd(g_z, g_S_out, _input(q, state), _input(k, state), u, fade, S, read)
    g_q, g_k = g_q[:, :, :width], g_k[:, :, :width]  # (B,S,K) the channel of ones is nobody's input
    # write: u = -step dz
    g_step = -xp.sum(g_u * dz, axis=-1)  # (B,S)
    g_dz = -step[:, :, None] * g_u  # (B,S,E)
    # write: dz = inner_gradient(k, z, v)
    g_k_loss, g_z, g_v, *g_norm = inner_gradient_bwd(g_dz, slow)  # (B,S,E)
    # write: z = k W + b
    g_k_layer, *g_written = layer_bwd(g_z, k, *state)  # (B,S,K)
    g_norm = [a + b for a, b in zip(g_norm, g_norm_read, strict=True)]  # (B,S,E)
    g_k += g_k_layer
    if g_k_loss is not None:
        g_q, g_k = g_q + g_q_head, g_k + g_k_loss
    return g_q, g_k, g_v, g_step, *g_norm, add(_unpacked(g_S, state), TTTLinearState(*g_written))


def _checked(
    q: Array, k: Array, v: Array, step: Array, gain: Array | None, bias: Array | None, state: TTTLinearState | None,
    minibatch: int, read: str,
) -> tuple[tuple[Array, ...], TTTLinearState]:  # fmt: skip
    """Gain and bias per token, and the state that comes in."""
    namespace(q, k, v, step, gain, bias, *(state or ()))
    check_ttt(read, minibatch, q, k, v, step, gain, bias)
    if state is not None:
        check_rule(read, k=(k, "BTK"), v=(v, "BTE"), **{"state.W": (state.W, "BKE"), "state.b": (state.b, "BE")})
    else:
        W = start_state(None, k, v)  # (B,K,E)
        state = TTTLinearState(W, namespace(W).sum(W, axis=1))
    return per_token(gain, bias, v), state


def _input(x: Array, state: TTTLinearState) -> Array:
    """(B,S,K)->(B,S,K+1)   a bias is a weight whose input is 1"""
    return x if state.b is None else namespace(x).concat([x, namespace(x).ones_like(x[:, :, :1])], axis=2)


def _packed(state: TTTLinearState) -> Array:
    """W (B,K,E) and b (B,E) as one matrix (B,K+1,E)"""
    W, b = state
    return W if b is None else namespace(W, b).concat([W, b[:, None, :]], axis=1)


def _unpacked(S: Array, like: TTTLinearState) -> TTTLinearState:
    """The inverse of _packed."""
    return TTTLinearState(S, None) if like.b is None else TTTLinearState(S[:, :-1, :], S[:, -1, :])
