"""A stack of layers, whatever layers they are: the trunk of every model here.

``layer_fwd(x, p, *settings, cache) -> (x, cache), residual`` and its adjoint come from the model;
``settings`` is what all its layers share.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..backend import Array


def stack_fwd(
    layer_fwd: Callable, x: Array, trunk: tuple, settings: tuple, caches: tuple | None = None
) -> tuple[tuple[Array, tuple], tuple]:
    """(B,T,D)->(B,T,D),(KeyValues,...)   all layers in turn   (T.3)"""
    residuals, kept = [], []
    for p, before in zip(trunk, _each(trunk, caches), strict=True):
        (x, cache), res = layer_fwd(x, p, *settings, before)
        residuals.append(res)
        kept.append(cache)
    return (x, tuple(kept)), tuple(residuals)


def stack(
    layer_fwd: Callable, x: Array, trunk: tuple, settings: tuple, caches: tuple | None = None
) -> tuple[Array, tuple]:
    """(B,T,D)->(B,T,D),(KeyValues,...)   stack_fwd for reading: no residual is kept   (T.3)"""
    kept = []
    for p, before in zip(trunk, _each(trunk, caches), strict=True):
        (x, cache), _ = layer_fwd(x, p, *settings, before)
        kept.append(cache)
    return x, tuple(kept)


def stack_bwd(layer_bwd: Callable, dx: Array, res: tuple) -> tuple[Array, tuple]:
    """Adjoint of stack_fwd.   (T.4)"""
    grads = []
    for layer in reversed(res):
        dx, grad = layer_bwd(dx, layer)
        grads.append(grad)
    return dx, tuple(reversed(grads))


def _each(trunk: tuple, caches: tuple | None) -> tuple[Any, ...]:
    """The cache of each layer, None if there are none."""
    return (None,) * len(trunk) if caches is None else caches
