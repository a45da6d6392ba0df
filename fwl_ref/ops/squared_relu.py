"""Squared ReLU, the activation of the fast weight block.

The Jacobian is diagonal, hence symmetric: backward multiplies by ``2 relu(x)``, and so does the
adjoint of backward. The second derivative is a step at 0, so finite differences must stay off that
point.
"""

from __future__ import annotations

from typing import NamedTuple

from ..backend import Array, device, namespace


class SquaredReluResidual(NamedTuple):
    r: Array  # (...) relu(x): both x > 0 and the slope can be read off it


def squared_relu_fwd(x: Array) -> tuple[Array, SquaredReluResidual]:
    """(...)->(...)   y = relu(x)^2   (R.1)"""
    xp = namespace(x)
    # maximum keeps "not a number", and is five times as fast as a choice by where
    r = xp.maximum(x, xp.zeros((), dtype=x.dtype, device=device(x)))  # (...)
    return r * r, SquaredReluResidual(r)


def squared_relu_bwd(dy: Array, res: SquaredReluResidual) -> Array:
    """Adjoint of squared_relu_fwd.   (R.2)"""
    # forward: y = relu(x)^2
    dx = res.r * dy  # (...)
    dx *= 2
    return dx


def squared_relu_bwd_bwd(g_dx: Array, dy: Array, res: SquaredReluResidual) -> tuple[Array, Array]:
    """Adjoint of squared_relu_bwd as a function of (dy, x).   (R.3)"""
    xp = namespace(g_dx, dy)
    # backward: dx = 2 relu(x) dy
    g_dy = 2 * (res.r * g_dx)  # (...)
    # a choice by where takes eight times as long as this product: its branches follow no pattern
    g_x = xp.astype(res.r > 0, dy.dtype)  # (...)
    g_x *= 2
    g_x *= dy * g_dx
    return g_dy, g_x
