"""SwiGLU (Shazeer, arXiv 2002.05202), the activation of the llama family: one half of the hidden
layer, through SiLU, gates the other.

SiLU is ``a(g) = g s(g)`` with the logistic function s; with ``up = 1`` this file computes it alone.
Everything is entrywise: slope ``a' = s (1 + g (1 - s))``, curvature ``a'' = s (1 - s) (2 + g
(1 - 2 s))``.
"""

from __future__ import annotations

from typing import NamedTuple

from ..backend import Array, namespace


class SwigluResidual(NamedTuple):
    gate: Array  # (...)
    up: Array  # (...)
    s: Array  # (...) logistic function of the gate, the expensive part


def swiglu_fwd(gate: Array, up: Array) -> tuple[Array, SwigluResidual]:
    """(...),(...)->(...)   y = gate s up,  s = 1 / (1 + exp(-gate))   (S.1)"""
    xp = namespace(gate, up)
    s = xp.tanh(0.5 * gate)  # (...) s = (1 + tanh(gate / 2)) / 2: no exponential overflows
    s += 1
    s *= 0.5
    y = gate * s  # (...)
    y *= up
    return y, SwigluResidual(gate, up, s)


def swiglu_bwd(dy: Array, res: SwigluResidual) -> tuple[Array, Array]:
    """Adjoint of swiglu_fwd.   (S.2)"""
    gate, up, s = res
    # forward: y = a(gate) up
    dup = gate * s  # (...)
    dup *= dy
    dgate = _slope(res)  # (...)
    dgate *= up
    dgate *= dy
    return dgate, dup


def swiglu_bwd_bwd(
    g_dgate: Array, g_dup: Array, dy: Array, res: SwigluResidual
) -> tuple[Array, Array, Array]:
    """Adjoint of swiglu_bwd as a function of (dy, gate, up).   (S.3)"""
    gate, up, s = res
    slope = _slope(res)  # (...) a'
    curvature = s * (1 - s) * (2 + gate * (1 - 2 * s))  # (...) a''
    # backward: dgate = a'(gate) up dy
    g_dy = slope * up * g_dgate  # (...)
    g_gate = curvature * up * dy * g_dgate  # (...)
    g_up = slope * dy * g_dgate  # (...)
    # backward: dup = a(gate) dy
    g_dy = g_dy + gate * s * g_dup  # (...)
    g_gate = g_gate + slope * dy * g_dup  # (...)
    return g_dy, g_gate, g_up


def _slope(res: SwigluResidual) -> Array:
    """(...)   a' = s (1 + g (1 - s))"""
    slope = 1 - res.s
    slope *= res.gate
    slope += 1
    slope *= res.s
    return slope
