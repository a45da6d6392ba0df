"""GELU in its tanh form (Hendrycks and Gimpel, arXiv 1606.08415), the activation of the
transformer's MLP.

The trunk is differentiated once: the slow pass stops at the features. The second backward is for a
memory that is itself a GELU network and writes its own gradients (test-time training,
``rules/ttt_mlp.py``). It is entrywise: slope y', curvature y''.
"""

from __future__ import annotations

from typing import NamedTuple

from ..backend import Array, namespace, overwritten

_SLOPE = 0.7978845608028654  # sqrt(2 / pi)
_CUBIC = 0.044715


class GeluResidual(NamedTuple):
    x: Array  # (...)
    t: Array  # (...) tanh(...), the expensive part


def gelu_fwd(x: Array) -> tuple[Array, GeluResidual]:
    """(...)->(...)   y = x (1 + t) / 2,  t = tanh(sqrt(2/pi) (x + 0.044715 x^3))   (G.1)"""
    xp = namespace(x)
    u = x * x  # (...)
    u *= _SLOPE * _CUBIC
    u += _SLOPE
    u *= x
    t = overwritten(xp.tanh, u)  # (...)
    y = t + 1  # (...)
    y *= x
    y *= 0.5
    return y, GeluResidual(x, t)


def gelu_bwd(dy: Array, res: GeluResidual) -> Array:
    """Adjoint of gelu_fwd.   (G.2)"""
    x, t = res
    # forward: y = x (1 + t) / 2,  t = tanh(u),  u = sqrt(2/pi) (x + 0.044715 x^3)
    slope = x * x  # (...) becomes dy/dx, one buffer: this line is hot
    slope *= 3 * _SLOPE * _CUBIC
    slope += _SLOPE  # du/dx
    slope *= x
    slope *= 1 - t * t  # x dt/dx
    slope += t
    slope += 1
    slope *= 0.5
    slope *= dy
    return slope


def gelu_bwd_bwd(g_dx: Array, dy: Array, res: GeluResidual) -> tuple[Array, Array]:
    """Adjoint of gelu_bwd as a function of (dy, x).   (G.3)"""
    x, t = res
    # backward: dx = y'(x) dy,  y' = (1 + t + x (1 - t^2) u') / 2
    g_dy = gelu_bwd(g_dx, res)  # (...)
    # y'' = (1 - t^2) (2 u' + x u'' - 2 x t u'^2) / 2
    slope = _SLOPE * (1 + 3 * _CUBIC * (x * x))  # (...) u'
    bend = 6 * _SLOPE * _CUBIC * x  # (...) u''
    curvature = 0.5 * (1 - t * t) * (2 * slope + x * bend - 2 * (x * t) * (slope * slope))  # (...)
    g_x = curvature * dy * g_dx  # (...)
    return g_dy, g_x
