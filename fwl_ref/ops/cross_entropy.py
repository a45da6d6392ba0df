"""Softmax cross-entropy per token; weights and normalizers enter through ``dy``.

The Hessian with respect to the logits, ``diag(p) - p p^T``, is symmetric: it is what the second
backward pass applies.
"""

from __future__ import annotations

from typing import NamedTuple

from ..backend import Array, as_index, device, namespace, overwritten
from .common import check_integers, row_sum


class CrossEntropyResidual(NamedTuple):
    p: Array  # (...,V) softmax of the logits
    hit: Array  # (...,V) bool, one-hot labels: without a scatter every order of threads agrees


def cross_entropy_fwd(logits: Array, labels: Array) -> tuple[Array, CrossEntropyResidual]:
    """(...,V),(...)->(...)   l = log sum exp(logits) - logits[y]   (C.1)

    Labels may have any integer dtype, also one that cannot count to V. Raises TypeError for others.
    """
    check_integers(labels, "labels")
    xp = namespace(logits)
    labels = xp.astype(labels, xp.int64)[..., None]  # (...,1)
    shifted = logits - xp.max(logits, axis=-1, keepdims=True)  # (...,V)
    picked = xp.take_along_axis(shifted, as_index(labels), axis=-1)  # (...,1)
    p = overwritten(xp.exp, shifted)  # (...,V)
    total = row_sum(p)  # (...,1)
    p /= total
    index = xp.arange(logits.shape[-1], dtype=xp.int64, device=device(labels))  # (V,)
    return (xp.log(total) - picked)[..., 0], CrossEntropyResidual(p, index == labels)


def cross_entropy_bwd(dy: Array, res: CrossEntropyResidual) -> Array:
    """Adjoint of cross_entropy_fwd with respect to the logits.   (C.2)"""
    namespace(dy, res.p)
    # forward: l = log sum exp(logits) - logits[y]
    dlogits = _slope(res)  # (...,V)
    dlogits *= dy[..., None]
    return dlogits


def cross_entropy_bwd_bwd(
    g_dlogits: Array, dy: Array, res: CrossEntropyResidual
) -> tuple[Array, Array]:
    """Adjoint of cross_entropy_bwd as a function of (dy, logits).   (C.3)"""
    xp = namespace(g_dlogits, dy)
    # backward: dlogits = dy (p - onehot)
    g_dy = xp.sum(_slope(res) * g_dlogits, axis=-1)  # (...)
    # a small change e of the logits changes p by (diag(p) - p p^T) e, a symmetric matrix
    pulled = res.p * g_dlogits  # (...,V)
    mean = xp.sum(pulled, axis=-1, keepdims=True)  # (...,1)
    pulled -= res.p * mean
    pulled *= dy[..., None]
    return g_dy, pulled


def _slope(res: CrossEntropyResidual) -> Array:
    """(...,V)   p - onehot. A choice by where would take four times as long as this difference."""
    return res.p - namespace(res.p).astype(res.hit, res.p.dtype)
