"""Test-time training: what TTT-Linear and TTT-MLP share. No rule of its own; the rules differ in
the network that makes z of its input.

    prediction   f(x) = x + LN(z; gain, bias)
                 without gain and bias  f(x) = z: neither LayerNorm nor residual
    loss         l = |f(k) - v|^2
    gradient     dz = LN^T(2 (f(k) - v)),  LN^T the adjoint of LayerNorm in its input;
                 from there the network's own backward pass
    update       state_{t+1} = state_t - step_t gradient_t,
                 the gradient at the state that the token's mini-batch began with
    read         f(q) with the network before (strict) or after (inclusive) the update

Token by token this is one loop for every network (``recurrent_fwd``). By whole mini-batches each
layer of a network is linear attention (``dual_layer``); how its layers follow each other is the
rule's.

The inner gradient contains LayerNorm's backward pass, so the outer one needs the adjoint of that:
``layernorm_bwd_bwd``. In these files ``d...`` is a gradient of the inner loss and ``g_...`` one of
the outer loss. Gain and bias are slow parameters, one copy per token inside, so that their
gradients come per token, too; ``norm`` is the pair, or () to do without.

Sun et al. 2024 (arXiv 2407.04620).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ..backend import Array, Tree, namespace
from ..ops.layernorm import LayerNormResidual, layernorm_bwd, layernorm_bwd_bwd, layernorm_fwd
from ..tree import add, leaves, tree_map, zeros_like
from .common import asked_for, check_rule, outer, stack, sums, sums_bwd, unfaded

EPS = 1e-6  # LayerNorm's


class Network(NamedTuple):
    """What a rule brings: f and the gradient of the inner loss of one token, and the adjoints."""

    gradient: Callable  # state, k, v, *norm -> gradient, shaped as a state
    gradient_bwd: Callable  # g_gradient, state, k, v, *norm -> g_state, g_k, g_v, *g_norm
    read_fwd: Callable  # state, q, *norm -> f(q), residual
    read_bwd: Callable  # g_out, state, q, residual -> g_state, g_q, *g_norm


class TTTResidual(NamedTuple):
    q: Array  # (B,T,K)
    k: Array  # (B,T,K)
    v: Array  # (B,T,E)
    step: Array  # (B,T)
    norm: tuple[Array, ...]  # (B,T,E) gain and bias per token, or ()
    states: Tree  # (B,T+1,...) all of the recurrent form; (B,1,...) the first of a mini-batch
    minibatch: int
    read: str
    eps: float


class InnerGradientResidual(NamedTuple):
    df: Array  # (...,E) 2 (f(k) - v)
    norm: LayerNormResidual | None  # None: no LayerNorm


def predict_fwd(
    x: Array, z: Array, gain: Array | None = None, bias: Array | None = None, *, eps: float = EPS,
) -> tuple[Array, LayerNormResidual | None]:  # fmt: skip
    """(...,E),(...,E),(...,E),(...,E)->(...,E)   f = x + LN(z; gain, bias), or f = z   (W.9)"""
    namespace(x, z, gain, bias)
    if gain is None:
        return z, None
    y, norm = layernorm_fwd(z, gain, bias, eps)  # (...,E)
    return x + y, norm


def predict_bwd(g_f: Array, norm: LayerNormResidual | None) -> tuple[Array, ...]:
    """Adjoint of predict_fwd.   (W.10)

    Returns g_x (None if x does not enter), g_z, and with LayerNorm g_gain, g_bias.
    """
    # forward: f = x + LN(z; gain, bias)
    return (None, g_f) if norm is None else (g_f, *layernorm_bwd(g_f, norm))


def inner_loss(
    k: Array, z: Array, v: Array, gain: Array | None = None, bias: Array | None = None, *,
    eps: float = EPS,
) -> Array:  # fmt: skip
    """(...,E),(...,E),(...,E),(...,E),(...,E)->(...)   l = |f(k) - v|^2   (W.11)"""
    f, _ = predict_fwd(k, z, gain, bias, eps=eps)  # (...,E)
    return namespace(f, v).sum((f - v) * (f - v), axis=-1)  # (...)


def inner_gradient(
    k: Array, z: Array, v: Array, gain: Array | None = None, bias: Array | None = None, *,
    eps: float = EPS,
) -> tuple[Array, InnerGradientResidual]:  # fmt: skip
    """(...,E),(...,E),(...,E),(...,E),(...,E)->(...,E)   dz = LN^T(2 (f(k) - v))   (W.11)"""
    f, norm = predict_fwd(k, z, gain, bias, eps=eps)  # (...,E)
    df = 2 * (f - v)  # (...,E)
    return predict_bwd(df, norm)[1], InnerGradientResidual(df, norm)


def inner_gradient_bwd(g_dz: Array, res: InnerGradientResidual) -> tuple[Array, ...]:
    """Adjoint of inner_gradient.   (W.12)

    Returns g_k (None if k does not enter), g_z, g_v, and with LayerNorm g_gain, g_bias.
    """
    df, norm = res
    xp = namespace(g_dz, df)
    if norm is None:
        # backward: dz = df,  df = 2 (z - v)
        return None, 2 * g_dz, -2 * g_dz
    # backward: dz = LN^T(df), which depends on df, z and gain
    none = xp.zeros_like(df)  # (...,E) inner gradients of gain and bias are not used
    g_df, g_z_twice, g_gain_twice, _ = layernorm_bwd_bwd(g_dz, none, none, df, norm)  # (...,E)
    # backward: df = 2 (f - v),  f = k + LN(z; gain, bias)
    g_k, g_z, g_gain, g_bias = predict_bwd(2 * g_df, norm)  # (...,E)
    return g_k, g_z + g_z_twice, -2 * g_df, g_gain + g_gain_twice, g_bias


def layer(x: Array, W: Array, b: Array | None) -> Array:
    """(B,...,K),(B,K,E),(B,E)->(B,...,E)
    y = x W + b, every sequence its own W and b; x is one token (B,K) or many (B,S,K)
    """
    xp, rows = namespace(x, W, b), _rows(x)
    y = xp.matmul(rows, W)  # (B,S,E)
    y = y if b is None else y + b[:, None, :]
    return xp.reshape(y, (*x.shape[:-1], W.shape[2]))  # (B,...,E)


def layer_bwd(g_y: Array, x: Array, W: Array, b: Array | None) -> tuple[Array, Array, Array | None]:
    """Adjoint of layer: g_x, g_W, g_b."""
    xp, g_rows = namespace(g_y, x, W), _rows(g_y)  # (B,S,E)
    # forward: y = x W + b
    g_x = xp.reshape(xp.matmul(g_rows, xp.matrix_transpose(W)), x.shape)  # (B,...,K)
    g_W = xp.matmul(xp.matrix_transpose(_rows(x)), g_rows)  # (B,K,E)
    return g_x, g_W, None if b is None else xp.sum(g_rows, axis=1)  # (B,E)


def layer_gradient(x: Array, dy: Array, b: Array | None) -> tuple[Array, Array | None]:
    """(B,K),(B,E),(B,E)->(B,K,E),(B,E)
    dl/dW = x^T dy, dl/db = dy for one token; of b only whether there is one
    """
    return outer(x, dy), None if b is None else dy


def layer_gradient_bwd(g_W: Array, g_b: Array | None, x: Array, dy: Array) -> tuple[Array, Array]:
    """Adjoint of layer_gradient: g_x, g_dy."""
    # forward: dW = x^T dy,  db = dy
    g_x, _, _ = layer_bwd(dy, x, g_W, None)  # (B,K) dy g_W^T
    return g_x, layer(x, g_W, g_b)  # (B,E) x g_W + g_b


def dual_layer(
    q: Array, k: Array, u: Array, W: Array, b: Array | None, read: str,
) -> tuple[Array, Array, Array | None]:  # fmt: skip
    """(B,S,K),(B,S,K),(B,S,E),(B,K,E),(B,E)->(B,S,E),(B,K,E),(B,E)   a fast layer   (W.16)

    y_t = q_t W + b + sum_s (q_t . k_s + 1) u_s: every token has changed the layer, W by k_s^T u_s
    and b by u_s, and it is never formed. Returns y, and W and b after the last token.

    With a strict read it is the fast layer of the block (``fast_layer_fwd``) whose state is W and b
    themselves, nothing faded and every step size 1. It stands here because a rule may also read
    inclusively and do without a bias.
    """
    queries, keys, fade = _with_one(q, b), _with_one(k, b), unfaded(q.shape[1], q)
    y, S = sums(queries, keys, u, fade, _packed(W, b), read)  # (B,S,E), (B,K+1,E)
    return y, *_unpacked(S, b)


def dual_layer_bwd(
    g_y: Array, g_after: tuple | None, q: Array, k: Array, u: Array, W: Array, b: Array | None,
    read: str,
) -> tuple:  # fmt: skip
    """Adjoint of dual_layer: g_q, g_k, g_u, g_W, g_b.   (W.17)

    ``g_after``: the gradients of W and b after the last token, None for 0.
    """
    queries, keys, fade = _with_one(q, b), _with_one(k, b), unfaded(q.shape[1], q)
    g_S, width = None if g_after is None else _packed(*g_after), q.shape[2]  # (B,K+1,E)
    # forward: y, S = sums([q, 1], [k, 1], u)
    gradients = sums_bwd(g_y, g_S, queries, keys, u, fade, _packed(W, b), read)
    g_q, g_k, g_u, _, g_S = gradients  # (B,S,K+1), (B,S,K+1), (B,S,E), (B,K+1,E)
    # without the channel of ones, which is no input
    return g_q[:, :, :width], g_k[:, :, :width], g_u, *_unpacked(g_S, b)


def state_at(states: Tree, t: int) -> Tree:
    """(B,S,...)->(B,...)   one of the states of a residual"""
    return tree_map(lambda a: a[:, t, ...], states)


def descend(state: Tree, rate: Array, gradient: Tree) -> Tree:
    """state - rate * gradient for every parameter (B,...), the rate (B) one number per sequence"""
    return tree_map(lambda p, d: p - _broad(rate, p) * d, state, gradient)


def descend_bwd(g_state: Tree, rate: Array, gradient: Tree) -> tuple[Array, Tree]:
    """Adjoint of descend with respect to rate (B) and gradient; the state's is g_state itself."""
    xp = namespace(rate)
    # forward: state - rate * gradient
    pairs = zip(leaves(g_state), leaves(gradient), strict=True)
    g_rate = -sum(xp.sum(g * d, axis=tuple(range(1, g.ndim))) for g, d in pairs)  # (B,)
    return g_rate, tree_map(lambda g: -_broad(rate, g) * g, g_state)


def recurrent_fwd(
    network: Network, q: Array, k: Array, v: Array, step: Array, norm: tuple[Array, ...],
    state: Tree, *, minibatch: int, read: str, eps: float,
) -> tuple[tuple, TTTResidual]:  # fmt: skip
    """(B,T,K),(B,T,K),(B,T,E),(B,T),(B,T,E)...,state->(B,T,E),state
    state_{t+1} = state_t - step_t dl_t/dstate   (W.14), (W.20)
    """
    states, outs = [state], []
    for t in range(q.shape[1]):
        if t % minibatch == 0:
            first = states[t]
        norm_t = [p[:, t, :] for p in norm]  # (B,E)
        gradient = network.gradient(first, k[:, t, :], v[:, t, :], *norm_t, eps=eps)
        states.append(descend(states[t], step[:, t], gradient))
        seen = states[t] if read == "strict" else states[t + 1]
        out, _ = network.read_fwd(seen, q[:, t, :], *norm_t, eps=eps)  # (B,E)
        outs.append(out)
    stacked = tree_map(lambda *parts: namespace(*parts).stack(parts, axis=1), *states)
    res = TTTResidual(q, k, v, step, norm, stacked, minibatch, read, eps)
    return (stack(outs, v), states[-1]), res


def recurrent_bwd(
    network: Network, g_out: Array, g_state_out: Tree | None, res: TTTResidual
) -> tuple:
    """Adjoint of recurrent_fwd: backpropagation through time.   (W.15), (W.21)

    Returns g_q, g_k, g_v, g_step, g_gain, g_bias, g_state, those of gain and bias summed over
    tokens.
    """
    q, k, v, step, norm, states, minibatch, read, eps = asked_for(g_out, g_state_out, res)
    namespace(g_out, q)
    g_first = zeros_like(state_at(states, 0))
    g_state = g_first if g_state_out is None else g_state_out
    g_qs, g_ks, g_vs, g_steps, g_norms = [], [], [], [], []
    for t in reversed(range(q.shape[1])):
        norm_t, first = [p[:, t, :] for p in norm], state_at(states, t - t % minibatch)
        seen = state_at(states, t if read == "strict" else t + 1)
        token = first, k[:, t, :], v[:, t, :], *norm_t
        # forward: out = f(q) with the state that is read
        _, head = network.read_fwd(seen, q[:, t, :], *norm_t, eps=eps)
        g_seen, g_q, *g_norm_read = network.read_bwd(g_out[:, t, :], seen, q[:, t, :], head)
        g_qs.append(g_q)
        if read == "inclusive":
            g_state = add(g_state, g_seen)
        # forward: state' = state - step * gradient
        gradient = network.gradient(*token, eps=eps)
        g_step, g_gradient = descend_bwd(g_state, step[:, t], gradient)  # (B,)
        g_steps.append(g_step)
        # forward: gradient = network.gradient(first, k, v)
        g_moved, g_k, g_v, *g_norm = network.gradient_bwd(g_gradient, *token, eps=eps)
        g_ks.append(g_k)
        g_vs.append(g_v)
        g_norms.append([a + b for a, b in zip(g_norm, g_norm_read, strict=True)])
        g_first = add(g_first, g_moved)
        if read == "strict":
            g_state = add(g_state, g_seen)
        if t % minibatch == 0:
            # forward: first = state
            g_state, g_first = add(g_state, g_first), zeros_like(g_first)
    tokens = (
        stack(rows[::-1], like) for rows, like in ((g_qs, q), (g_ks, k), (g_vs, v), (g_steps, step))
    )
    columns = ([rows[i] for rows in g_norms[::-1]] for i in range(len(norm)))
    g_norm = tuple(stack(rows, p) for rows, p in zip(columns, norm, strict=True))  # (B,T,E)
    return *tokens, *per_token_bwd(g_norm), g_state


def check_ttt(
    read: str, minibatch: int, q: Array, k: Array, v: Array, step: Array, gain: Array | None,
    bias: Array | None,
) -> None:  # fmt: skip
    """What both rules rely on, beside the shapes of their states."""
    if minibatch < 1:
        raise ValueError(f"a mini-batch must hold at least 1 token, got {minibatch}")
    if (gain is None) != (bias is None):
        raise ValueError(
            "LayerNorm needs a gain and a bias, got only one of them: pass both, or None for both "
            "to do without LayerNorm"
        )
    width = "K" if gain is None else "E"  # x + LN(z): the network's input is as wide as its output
    tokens = {"q": (q, f"BT{width}"), "k": (k, f"BT{width}"), "v": (v, "BTE"), "step": (step, "BT")}
    check_rule(read, **tokens, gain=(gain, "E"), bias=(bias, "E"))


def per_token(gain: Array | None, bias: Array | None, v: Array) -> tuple[Array, ...]:
    """(E),(E),(B,T,E)->(B,T,E),(B,T,E)
    a copy of gain and bias for every token; () if there are none
    """
    if gain is None:
        return ()
    return tuple(namespace(p, v).broadcast_to(p, v.shape) for p in (gain, bias))


def per_token_bwd(g_norm: tuple[Array, ...]) -> tuple[Array | None, Array | None]:
    """Adjoint of per_token: g_gain, g_bias."""
    return tuple(namespace(g).sum(g, axis=(0, 1)) for g in g_norm) or (None, None)  # (E,)


def _rows(x: Array) -> Array:
    """(B,K) or (B,S,K) -> (B,S,K)"""
    return x[:, None, :] if x.ndim == 2 else x


def _packed(W: Array, b: Array | None) -> Array:
    """(B,K,E),(B,E)->(B,K+1,E)   a bias is a weight whose input is 1"""
    return W if b is None else namespace(W, b).concat([W, b[:, None, :]], axis=1)


def _unpacked(S: Array, b: Array | None) -> tuple[Array, Array | None]:
    """The inverse of _packed; of b only whether there is one."""
    return (S, None) if b is None else (S[:, :-1, :], S[:, -1, :])


def _with_one(x: Array, b: Array | None) -> Array:
    """(B,S,K)->(B,S,K+1)   the input of a packed layer"""
    xp = namespace(x)
    if b is None:
        return x
    return xp.concat([x, xp.ones((*x.shape[:2], 1), dtype=x.dtype, device=x.device)], axis=2)


def _broad(rate: Array, like: Array) -> Array:
    """(B)->(B,1,...)   with as many axes as a parameter has"""
    return namespace(rate).reshape(rate, (rate.shape[0],) + (1,) * (like.ndim - 1))
