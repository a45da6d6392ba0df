"""Dense layer.

The adjoint of ``y = x w + b`` is bilinear in ``(dy, x)`` and ``(dy, w)``, so its own adjoint is
made of the same three products. The weight gradient is an outer product per token: this is the
whole reason why a gradient step can be written as linear attention.
"""

from __future__ import annotations

from typing import NamedTuple

from ..backend import Array, namespace
from .common import flat, token_sum


class DenseResidual(NamedTuple):
    x: Array  # (...,D) needed for dw
    w: Array  # (D,F)   needed for dx
    biased: bool = True  # whether there is a bias, and so a gradient of it


def dense_fwd(x: Array, w: Array, b: Array | None) -> tuple[Array, DenseResidual]:
    """(...,D),(D,F),(F)->(...,F)   y = x w + b; ``None`` = no bias   (D.1)"""
    xp = namespace(x, w, b)
    y = xp.matmul(flat(x), w)  # (N,F), one product for all tokens
    if b is not None:
        y += b
    y = xp.reshape(y, (*x.shape[:-1], w.shape[1]))  # (...,F)
    return y, DenseResidual(x, w, b is not None)


def dense_dx(dy: Array, res: DenseResidual) -> Array:
    """The input half of the adjoint, dx = dy w^T: all that the slow pass ever forms.   (D.2)"""
    xp = namespace(dy, res.w)
    dx = xp.matmul(flat(dy), xp.matrix_transpose(res.w))  # (N,D)
    return xp.reshape(dx, res.x.shape)  # (...,D)


def dense_bwd(dy: Array, res: DenseResidual) -> tuple[Array, Array, Array | None]:
    """Adjoint of dense_fwd; without a bias there is no gradient of it.   (D.2)"""
    xp = namespace(dy, res.w)
    # forward: y = x w + b
    dx = dense_dx(dy, res)  # (...,D)
    dw = xp.matmul(xp.matrix_transpose(flat(res.x)), flat(dy))  # (D,F)
    db = token_sum(dy) if res.biased else None  # (F,)
    return dx, dw, db


def dense_bwd_bwd(
    g_dx: Array, g_dw: Array | None, g_db: Array | None, dy: Array, res: DenseResidual
) -> tuple[Array, Array | None, Array | None, None]:
    """Adjoint of dense_bwd as a function of (dy, x, w, b); ``None`` = zero everywhere.   (D.3)"""
    xp = namespace(g_dx, dy)
    # backward: dx = dy w^T
    g_dy = xp.reshape(xp.matmul(flat(g_dx), res.w), dy.shape)  # (...,F)
    g_w = xp.matmul(xp.matrix_transpose(flat(g_dx)), flat(dy))  # (D,F)
    g_x = None  # dx does not depend on x
    # backward: dw = x^T dy
    if g_dw is not None:
        g_dy = g_dy + xp.reshape(xp.matmul(flat(res.x), g_dw), dy.shape)  # (...,F)
        g_x = xp.reshape(xp.matmul(flat(dy), xp.matrix_transpose(g_dw)), res.x.shape)  # (...,D)
    # backward: db = sum dy
    if g_db is not None:
        g_dy = g_dy + g_db  # (...,F)
    return g_dy, g_x, g_w, None  # b does not enter the backward pass
