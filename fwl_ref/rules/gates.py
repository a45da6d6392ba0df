"""Gates that come as logarithms, as kernels take them: one step in front of any rule.

    alpha = exp(g),  dg = alpha * dalpha

g = -800 is a gate of 0 (and g = 0 one of 1): the memory, or its channel, is reset. Every form of
every rule takes a gate of 0 and divides by none, so nothing here or there becomes "not a number".

Shapes are free: one gate per token (B,T), or one per token and key channel (B,T,K).
"""

from __future__ import annotations

from ..backend import Array, namespace


def gates_from_log(g: Array) -> Array:
    """(...)->(...)   alpha = exp(g)   (H.1)"""
    return namespace(g).exp(g)


def gates_from_log_bwd(dalpha: Array, alpha: Array) -> Array:
    """Adjoint of gates_from_log, from the gates that it returned.   (H.1)"""
    # forward: alpha = exp(g)
    return alpha * dalpha
