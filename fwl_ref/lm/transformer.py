"""A pre-LN transformer layer and the stack of them, forward and backward by hand.

    q, k, v = split(LN(x) W_qkv + b_qkv)
    x = x + merge(attention(rotary(q), rotary(k), v)) W_o + b_o
    x = x + gelu(LN(x) W_in + b_in) W_out + b_out

A cache of earlier keys and values lets a segment see what came before it. Gradients stop at the
cache, as in dynamic evaluation of Transformer-XL (Krause et al., arXiv 1904.08378).
"""

from __future__ import annotations

from typing import NamedTuple

from ..backend import Array, namespace
from ..ops.attention import AttentionResidual, attention_bwd, attention_fwd
from ..ops.dense import DenseResidual, dense_bwd, dense_fwd
from ..ops.gelu import GeluResidual, gelu_bwd, gelu_fwd
from ..ops.layernorm import LayerNormResidual, layernorm_bwd, layernorm_fwd
from ..ops.rotary import RotaryResidual, rotary_bwd, rotary_fwd, rotated
from .heads import merge_heads, split_heads, split_qkv

EPS = 1e-5  # of the trunk's LayerNorms
# axes of the parameters of a layer, in their order
LAYER_AXES = ("D", "D", "D,3D", "3D", "D,D", "D", "D", "D", "D,F", "F", "F,D", "D")


class LayerParameters(NamedTuple):
    """One transformer layer, and (same type) its gradients."""

    gain1: Array  # (D,)
    bias1: Array  # (D,)
    W_qkv: Array  # (D,3D) queries, keys, values of all heads
    b_qkv: Array  # (3D,)
    W_o: Array  # (D,D)
    b_o: Array  # (D,)
    gain2: Array  # (D,)
    bias2: Array  # (D,)
    W_in: Array  # (D,4D)
    b_in: Array  # (4D,)
    W_out: Array  # (4D,D)
    b_out: Array  # (D,)


class KeyValues(NamedTuple):
    """The cache: what a layer keeps of tokens it has seen; keys are already rotated."""

    k: Array  # (B,H,P,K)
    v: Array  # (B,H,P,K)


class LayerResidual(NamedTuple):
    norm1: LayerNormResidual
    qkv: DenseResidual
    rotary: RotaryResidual  # of queries and keys
    attention: AttentionResidual
    o: DenseResidual
    norm2: LayerNormResidual
    w_in: DenseResidual
    gelu: GeluResidual
    w_out: DenseResidual


def layer_fwd(
    x: Array,
    p: LayerParameters,
    heads: int,
    window: int | None = None,
    cache: KeyValues | None = None,
    few: int = 0,
) -> tuple[tuple[Array, KeyValues], LayerResidual]:
    """(B,T,D)->(B,T,D),KeyValues   one pre-LN layer; ``few`` as in attention_fwd   (T.1)"""
    xp = namespace(x, *p)
    start = 0 if cache is None else cache.k.shape[2]
    y, norm1 = layernorm_fwd(x, p.gain1, p.bias1, EPS)  # (B,T,D)
    y, qkv = dense_fwd(y, p.W_qkv, p.b_qkv)  # (B,T,3D)
    q, k, v = split_qkv(y, heads)  # (B,H,T,K)
    q, rotary = rotary_fwd(q, start)  # (B,H,T,K)
    k = rotated(k, rotary)  # (B,H,T,K)
    if cache is not None:
        k, v = xp.concat([cache.k, k], axis=2), xp.concat([cache.v, v], axis=2)  # (B,H,P+T,K)
    y, attention = attention_fwd(q, k, v, window, few)  # (B,H,T,K)
    y, o = dense_fwd(merge_heads(y), p.W_o, p.b_o)  # (B,T,D)
    x = x + y
    y, norm2 = layernorm_fwd(x, p.gain2, p.bias2, EPS)  # (B,T,D)
    y, w_in = dense_fwd(y, p.W_in, p.b_in)  # (B,T,4D)
    y, gelu = gelu_fwd(y)  # (B,T,4D)
    y, w_out = dense_fwd(y, p.W_out, p.b_out)  # (B,T,D)
    return (x + y, KeyValues(k, v)), LayerResidual(
        norm1, qkv, rotary, attention, o, norm2, w_in, gelu, w_out
    )


def layer_bwd(dx: Array, res: LayerResidual) -> tuple[Array, LayerParameters]:
    """Adjoint of layer_fwd with respect to x and the parameters; the cache is constant.   (T.2)"""
    xp = namespace(dx)
    length = dx.shape[1]
    # forward: x = x + gelu(LN(x) W_in + b_in) W_out + b_out
    dy, dW_out, db_out = dense_bwd(dx, res.w_out)  # (B,T,4D)
    dy = gelu_bwd(dy, res.gelu)  # (B,T,4D)
    dy, dW_in, db_in = dense_bwd(dy, res.w_in)  # (B,T,D)
    dy, dgain2, dbias2 = layernorm_bwd(dy, res.norm2)  # (B,T,D)
    dx = dx + dy
    # forward: x = x + merge(attention(q, k, v)) W_o + b_o
    dy, dW_o, db_o = dense_bwd(dx, res.o)  # (B,T,D)
    heads = res.attention.q.shape[1]
    dq, dk, dv = attention_bwd(
        split_heads(dy, heads), res.attention
    )  # (B,H,T,K), twice (B,H,P+T,K)
    cached = dk.shape[2] - length
    # forward: q, k = rotary(q), rotary(k)
    dq = rotary_bwd(dq, res.rotary)  # (B,H,T,K)
    dk = rotary_bwd(dk[:, :, cached:, :], res.rotary)  # (B,H,T,K)
    # forward: q, k, v = split(LN(x) W_qkv + b_qkv)
    dy = xp.concat(
        [merge_heads(dq), merge_heads(dk), merge_heads(dv[:, :, cached:, :])], axis=-1
    )  # (B,T,3D)
    dy, dW_qkv, db_qkv = dense_bwd(dy, res.qkv)  # (B,T,D)
    dy, dgain1, dbias1 = layernorm_bwd(dy, res.norm1)  # (B,T,D)
    grads = (
        dgain1,
        dbias1,
        dW_qkv,
        db_qkv,
        dW_o,
        db_o,
        dgain2,
        dbias2,
        dW_in,
        db_in,
        dW_out,
        db_out,
    )
    return dx + dy, LayerParameters(*grads)
