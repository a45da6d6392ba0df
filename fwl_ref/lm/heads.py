"""From a row of numbers per token to attention heads, and back: each is the other's adjoint, for
both only rearrange.
"""

from __future__ import annotations

from ..backend import Array, namespace


def split_heads(y: Array, heads: int) -> Array:
    """(B,T,HK)->(B,H,T,K)"""
    xp = namespace(y)
    batch, length, width = y.shape
    return xp.permute_dims(xp.reshape(y, (batch, length, heads, width // heads)), (0, 2, 1, 3))


def split_qkv(y: Array, heads: int) -> tuple[Array, Array, Array]:
    """(B,T,3D)->(B,H,T,K) three times: queries, keys and values of one product"""
    width = y.shape[-1] // 3
    q, k, v = y[..., :width], y[..., width : 2 * width], y[..., 2 * width :]
    return split_heads(q, heads), split_heads(k, heads), split_heads(v, heads)


def merge_heads(y: Array) -> Array:
    """(B,H,T,K)->(B,T,HK)"""
    xp = namespace(y)
    batch, heads, length, width = y.shape
    return xp.reshape(xp.permute_dims(y, (0, 2, 1, 3)), (batch, length, heads * width))
