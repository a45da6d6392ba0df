"""Softmax cross-entropy per token; weights and normalizers enter through ``dy``.

The Hessian with respect to the logits, ``diag(p) - p p^T``, is symmetric: it is what the second
backward pass applies.
"""

from __future__ import annotations

from typing import NamedTuple

from ..backend import Array, device, namespace
from .common import check_integers


class CrossEntropyResidual(NamedTuple):
    p: Array  # (...,V) softmax of the logits
    hit: Array  # (...,V) bool, one-hot labels: without a scatter every order of threads agrees


def cross_entropy_fwd(logits: Array, labels: Array) -> tuple[Array, CrossEntropyResidual]:
    """(...,V),(...)->(...)   l = log sum exp(logits) - logits[y]   (C.1)

    Labels may have any integer dtype, also one that cannot count to V. Raises TypeError for others.
    """
    check_integers(labels, "labels")
    xp = namespace(logits)
    shifted = logits - xp.max(logits, axis=-1, keepdims=True)  # (...,V)
    p = xp.exp(shifted)  # (...,V)
    total = xp.sum(p, axis=-1, keepdims=True)  # (...,1)
    p /= total
    index = xp.arange(logits.shape[-1], dtype=xp.int64, device=device(labels))  # (V,)
    hit = index == xp.astype(labels, xp.int64)[..., None]  # (...,V)
    picked = xp.sum(xp.where(hit, shifted, xp.zeros_like(shifted)), axis=-1)  # (...)
    return xp.log(total[..., 0]) - picked, CrossEntropyResidual(p, hit)


def cross_entropy_bwd(dy: Array, res: CrossEntropyResidual) -> Array:
    """Adjoint of cross_entropy_fwd with respect to the logits.   (C.2)"""
    xp = namespace(dy, res.p)
    # forward: l = log sum exp(logits) - logits[y]
    scaled = res.p * dy[..., None]  # (...,V)
    return scaled - xp.where(res.hit, dy[..., None], xp.zeros_like(scaled))  # (...,V)


def cross_entropy_bwd_bwd(
    g_dlogits: Array, dy: Array, res: CrossEntropyResidual
) -> tuple[Array, Array]:
    """Adjoint of cross_entropy_bwd as a function of (dy, logits).   (C.3)"""
    xp = namespace(g_dlogits, dy)
    # backward: dlogits = dy (p - onehot)
    pulled = res.p * g_dlogits  # (...,V)
    mean = xp.sum(pulled, axis=-1, keepdims=True)  # (...,1)
    picked = xp.sum(xp.where(res.hit, g_dlogits, xp.zeros_like(pulled)), axis=-1)  # (...)
    g_dy = mean[..., 0] - picked  # (...)
    # a small change e of the logits changes p by (diag(p) - p p^T) e, a symmetric matrix
    g_logits = dy[..., None] * (pulled - res.p * mean)  # (...,V)
    return g_dy, g_logits
