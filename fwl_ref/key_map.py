"""Features as keys: centred, whitened, perhaps of unit length, and then learned.

    k = (x - mean) A          A (D,K)          and, of unit length, k / |k|

The features of a language model have a large common mean. Two of them, from any two places, point
in much the same direction, so that their product says little about how alike the places are. In
whitened coordinates the mean is 0 and every direction varies as much as every other. ``whitening``
makes such a map from features, as a start; mean and A are slow parameters after that.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from .backend import Array, namespace
from .ops.dense import DenseResidual, dense_bwd, dense_fwd
from .ops.l2norm import L2NormResidual, l2norm_bwd, l2norm_fwd


class KeyMap(NamedTuple):
    """Parameters of the map, and (same type) their gradients."""

    mean: Array  # (D,)
    A: Array  # (D,K)


class KeyResidual(NamedTuple):
    dense: DenseResidual
    unit: L2NormResidual | None


def key_fwd(x: Array, p: KeyMap, unit: bool) -> tuple[Array, KeyResidual]:
    """(...,D)->(...,K)   k = (x - mean) A, of unit length if ``unit``   (X.2)"""
    namespace(x, *p)
    k, dense = dense_fwd(x - p.mean, p.A, None)  # (...,K)
    if not unit:
        return k, KeyResidual(dense, None)
    k, scale = l2norm_fwd(k)  # (...,K)
    return k, KeyResidual(dense, scale)


def key_bwd(dk: Array, res: KeyResidual) -> tuple[Array, KeyMap]:
    """Adjoint of key_fwd.   (X.3)"""
    xp = namespace(dk)
    # forward: k = k / |k|
    if res.unit is not None:
        dk = l2norm_bwd(dk, res.unit)  # (...,K)
    # forward: k = (x - mean) A
    dx, dA, _ = dense_bwd(dk, res.dense)  # (...,D), (D,K)
    return dx, KeyMap(-xp.sum(dx, axis=tuple(range(dx.ndim - 1))), dA)


def whitening(features: Iterable[Array], width: int | None = None, ridge: float = 1e-3) -> KeyMap:
    """(...,D),...->KeyMap   keys of mean 0 and covariance about 1, from all given features   (X.4)

    ``width`` is K, how many directions are kept, the ones of largest variance; None = D. ``ridge``,
    in units of the mean variance, is added to every variance, so that a direction in which nothing
    varied is not blown up. Sums are taken in float64; the map has the dtype of the features.

    Raises ValueError if there are no features, for a width outside [1, D], a ridge that is not
    above 0, or features that are not finite.
    """
    if not ridge > 0:
        raise ValueError(f"the ridge must be above 0, got {ridge}: some variances may be 0")
    count = 0
    total: Any = 0
    square: Any = 0
    first: Any = None
    for x in features:
        xp, dtype = namespace(x), x.dtype
        flat = xp.astype(xp.reshape(x, (-1, x.shape[-1])), xp.float64)  # (N,D)
        if not flat.shape[0]:
            continue
        if first is None:
            first = xp.mean(flat, axis=0)  # (D,) subtracted at once: sums of what is left are small
        flat = flat - first  # (N,D)
        count, total = count + flat.shape[0], total + xp.sum(flat, axis=0)  # (D,)
        square = square + xp.matmul(xp.matrix_transpose(flat), flat)  # (D,D)
    if first is None:
        raise ValueError("whitening needs the features of at least one token, got none")
    shift = total / count  # (D,)
    covariance = square / count - shift[:, None] * shift  # (D,D)
    if not bool(xp.all(xp.isfinite(covariance))):
        raise ValueError("whitening needs finite features, got some that are not")
    variance, directions = xp.linalg.eigh(covariance)  # (D,), (D,D), smallest first
    size = variance.shape[0]
    width = size if width is None else width
    if not 1 <= width <= size:
        raise ValueError(f"keys must have a width of 1 to {size}, as the features, got {width}")
    floor = ridge * xp.mean(variance)  # ()
    if not bool(floor > 0):
        raise ValueError("whitening needs features that vary, got the same for every token")
    kept = xp.flip(variance, axis=0)[:width]  # (K,)
    kept = xp.where(kept > 0, kept, xp.zeros_like(kept)) + floor  # (K,) rounding may be below 0
    A = xp.flip(directions, axis=1)[:, :width] / xp.sqrt(kept)  # (D,K)
    return KeyMap(xp.astype(first + shift, dtype), xp.astype(A, dtype))
