"""A vector divided by its length, with an epsilon under the root, differentiated twice.

With ``r = (|x|^2 + eps)^{-1/2}`` and ``y = r x`` the Jacobian of ``y`` is

    L(v) = r (v - y <y, v>)

which is symmetric. So one function serves the backward pass and the second backward pass, as in
``layernorm.py``; without the mean the derivation is that one, shortened. It also gives the
derivative of what L depends on: a small change e of x changes y by ``L(e)`` and r by ``-r^2 <y,
e>``, to first order.

Kernels normalise queries and keys with it (eps = 1e-6, inside the root, as here). It keeps a delta
rule from growing: its memory is multiplied by I - beta k^T k, and |k| < 1 makes that a contraction
for beta in [0,2].
"""

from __future__ import annotations

from typing import NamedTuple

from ..backend import Array, namespace


class L2NormResidual(NamedTuple):
    y: Array  # (...,K) the output, of length below 1
    r: Array  # (...,1) what x was multiplied by


def l2norm_fwd(x: Array, eps: float = 1e-6) -> tuple[Array, L2NormResidual]:
    """(...,K)->(...,K)   y = r x,  r = (|x|^2 + eps)^{-1/2}   (N.7)

    ``eps`` is under the root and in the units of |x|^2. Raises ValueError if it is negative; with
    0, a vector of zeros has no direction and becomes "not a number".
    """
    if eps < 0:
        raise ValueError(f"eps stands under the root: it must be >= 0, got {eps}")
    xp = namespace(x)
    r = 1 / xp.sqrt(_dot(x, x) + eps)  # (...,1)
    y = r * x  # (...,K)
    return y, L2NormResidual(y, r)


def l2norm_bwd(dy: Array, res: L2NormResidual) -> Array:
    """Adjoint of l2norm_fwd.   (N.8)"""
    # forward: y = r x
    return _jacobian(dy, res)  # (...,K)


def l2norm_bwd_bwd(g_dx: Array, dy: Array, res: L2NormResidual) -> tuple[Array, Array]:
    """Adjoint of l2norm_bwd as a function of (dy, x).   (N.9)"""
    namespace(g_dx, dy)
    y, r = res
    # backward: dx = L(dy);  L is symmetric, so its adjoint is L
    g_dy, dx = _jacobian(g_dx, res), _jacobian(dy, res)  # (...,K)
    # L depends on x: a small change e of x changes y by L(e), r by -r^2 <y, e>
    g_x = -r * (y * _dot(g_dx, dx) + dx * _dot(y, g_dx) + g_dy * _dot(y, dy))  # (...,K)
    return g_dy, g_x


def _jacobian(v: Array, res: L2NormResidual) -> Array:
    """(...,K)->(...,K)   L(v) = r (v - y <y, v>), <u, L(v)> = <L(u), v>"""
    return res.r * (v - res.y * _dot(res.y, v))


def _dot(a: Array, b: Array) -> Array:
    """(...,K),(...,K)->(...,1)"""
    return namespace(a, b).sum(a * b, axis=-1, keepdims=True)
