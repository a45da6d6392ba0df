"""Test-time training: what TTT-Linear and TTT-MLP share. No rule of its own; the rules differ in the network that makes z of its input.

    prediction   f(x) = x + LN(z; gain, bias)        without gain and bias  f(x) = z: neither LayerNorm nor residual
    loss         l = |f(k) - v|^2
    gradient     dz = LN^T(2 (f(k) - v)),  LN^T the adjoint of LayerNorm in its input; from there the network's own backward pass
    update       state_{t+1} = state_t - step_t gradient_t, at the state that the token's mini-batch began with
    read         f(q) with the network before (strict) or after (inclusive) the update

The inner gradient contains LayerNorm's backward pass, so the outer one needs the adjoint of that: ``layernorm_bwd_bwd``. In these files
``d...`` is a gradient of the inner loss and ``g_...`` one of the outer loss. Gain and bias are slow parameters, one copy per token inside,
so that their gradients come per token, too; ``norm`` is the pair, or () to do without.

Sun et al. 2024 (arXiv 2407.04620).
"""

from __future__ import annotations

from typing import NamedTuple

from ..backend import Array, Tree, namespace
from ..ops.layernorm import LayerNormResidual, layernorm_bwd, layernorm_bwd_bwd, layernorm_fwd
from ..tree import leaves, tree_map
from .common import check_rule

EPS = 1e-6  # LayerNorm's


class InnerGradientResidual(NamedTuple):
    df: Array  # (...,E) 2 (f(k) - v)
    norm: LayerNormResidual | None  # None: no LayerNorm


def predict_fwd(x: Array, z: Array, gain: Array | None = None, bias: Array | None = None, *, eps: float = EPS):
    """(...,E),(...,E),(...,E),(...,E)->(...,E)   f = x + LN(z; gain, bias), or f = z   (W.9)"""
    namespace(x, z, gain, bias)
    if gain is None:
        return z, None
    y, norm = layernorm_fwd(z, gain, bias, eps)  # (...,E)
    return x + y, norm


def predict_bwd(g_f: Array, norm: LayerNormResidual | None) -> tuple[Array, ...]:
    """Adjoint of predict_fwd: g_x (None if x does not enter), g_z, and with LayerNorm g_gain, g_bias.   (W.10)"""
    # forward: f = x + LN(z; gain, bias)
    return (None, g_f) if norm is None else (g_f, *layernorm_bwd(g_f, norm))


def inner_loss(k: Array, z: Array, v: Array, gain: Array | None = None, bias: Array | None = None, *, eps: float = EPS) -> Array:
    """(...,E),(...,E),(...,E),(...,E),(...,E)->(...)   l = |f(k) - v|^2   (W.11)"""
    f, _ = predict_fwd(k, z, gain, bias, eps=eps)  # (...,E)
    return namespace(f, v).sum((f - v) * (f - v), axis=-1)  # (...)


def inner_gradient(k: Array, z: Array, v: Array, gain: Array | None = None, bias: Array | None = None, *, eps: float = EPS):
    """(...,E),(...,E),(...,E),(...,E),(...,E)->(...,E)   dz = LN^T(2 (f(k) - v))   (W.11)"""
    f, norm = predict_fwd(k, z, gain, bias, eps=eps)  # (...,E)
    df = 2 * (f - v)  # (...,E)
    return predict_bwd(df, norm)[1], InnerGradientResidual(df, norm)


def inner_gradient_bwd(g_dz: Array, res: InnerGradientResidual) -> tuple[Array, ...]:
    """Adjoint of inner_gradient: g_k (None if k does not enter), g_z, g_v, and with LayerNorm g_gain, g_bias.   (W.12)"""
    df, norm = res
    xp = namespace(g_dz, df)
    if norm is None:
        # backward: dz = df,  df = 2 (z - v)
        return None, 2 * g_dz, -2 * g_dz
    # backward: dz = LN^T(df), which depends on df, z and gain
    none = xp.zeros_like(df)  # (...,E) nobody asks for the inner gradients of gain and bias
    g_df, g_z_twice, g_gain_twice, _ = layernorm_bwd_bwd(g_dz, none, none, df, norm)  # (...,E)
    # backward: df = 2 (f - v),  f = k + LN(z; gain, bias)
    g_k, g_z, g_gain, g_bias = predict_bwd(2 * g_df, norm)  # (...,E)
    return g_k, g_z + g_z_twice, -2 * g_df, g_gain + g_gain_twice, g_bias


def layer(x: Array, W: Array, b: Array | None) -> Array:
    """(B,...,K),(B,K,E),(B,E)->(B,...,E)   y = x W + b, every sequence its own W and b; x is one token (B,K) or many (B,S,K)"""
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


def check_ttt(read: str, minibatch: int, q: Array, k: Array, v: Array, step: Array, gain: Array | None, bias: Array | None) -> None:
    """What both rules rely on, beside the shapes of their states."""
    if minibatch < 1:
        raise ValueError(f"a mini-batch must hold at least 1 token, got {minibatch}")
    if (gain is None) != (bias is None):
        raise ValueError("LayerNorm needs a gain and a bias, got only one of them: pass both, or None for both to do without LayerNorm")
    width = "K" if gain is None else "E"  # x + LN(z): the network's input is as wide as its output
    tokens = {"q": (q, f"BT{width}"), "k": (k, f"BT{width}"), "v": (v, "BTE"), "step": (step, "BT")}
    check_rule(read, **tokens, gain=(gain, "E"), bias=(bias, "E"))


def per_token(gain: Array | None, bias: Array | None, v: Array) -> tuple[Array, ...]:
    """(E),(E),(B,T,E)->(B,T,E),(B,T,E)   a copy of gain and bias for every token; () if there are none"""
    return () if gain is None else tuple(namespace(p, v).broadcast_to(p, v.shape) for p in (gain, bias))


def per_token_bwd(g_norm: tuple[Array, ...]) -> tuple[Array | None, Array | None]:
    """Adjoint of per_token: g_gain, g_bias."""
    return tuple(namespace(g).sum(g, axis=(0, 1)) for g in g_norm) or (None, None)  # (E,)


def _rows(x: Array) -> Array:
    """(B,K) or (B,S,K) -> (B,S,K)"""
    return x[:, None, :] if x.ndim == 2 else x


def _broad(rate: Array, like: Array) -> Array:
    """(B)->(B,1,...)   with as many axes as a parameter has"""
    return namespace(rate).reshape(rate, (rate.shape[0],) + (1,) * (like.ndim - 1))
