"""Root mean square normalisation (Zhang and Sennrich, arXiv 1910.07467), differentiated twice.

It is layer normalisation without the mean and without the bias. With the normalised input
``n = z rrms`` the Jacobian of ``n`` is

    L(v) = rrms (v - n mean(n v))

which is symmetric, so that one function serves the backward pass and its adjoint, as in
``layernorm.py``. Everything that L depends on moves with z: a small change e of z changes n by
``L(e)`` and rrms by ``-rrms^2 mean(n e)``.

``gain`` may be shared, (D), or one per token, (...,D): per token its gradient is per token too.
"""

from __future__ import annotations

from typing import NamedTuple

from ..backend import Array, namespace
from .common import row_mean, sum_to


class RmsNormResidual(NamedTuple):
    n: Array  # (...,D) normalised input
    rrms: Array  # (...,1) one over the root mean square
    gain: Array  # (D) or (...,D)


def rmsnorm_fwd(z: Array, gain: Array, eps: float = 1e-5) -> tuple[Array, RmsNormResidual]:
    """(...,D),(D)->(...,D)   y = n gain,  n = z rrms,  rrms = 1 / sqrt(mean z^2 + eps)   (N.4)"""
    xp = namespace(z, gain)
    rrms = 1 / xp.sqrt(row_mean(z * z) + eps)  # (...,1)
    n = z * rrms  # (...,D)
    return n * gain, RmsNormResidual(n, rrms, gain)


def rmsnorm_bwd(dy: Array, res: RmsNormResidual) -> tuple[Array, Array]:
    """Adjoint of rmsnorm_fwd.   (N.5)"""
    # forward: y = n gain
    dgain = sum_to(dy * res.n, res.gain)  # as gain
    # forward: n = z rrms
    dz = _jacobian(dy * res.gain, res)  # (...,D)
    return dz, dgain


def rmsnorm_bwd_bwd(
    g_dz: Array, g_dgain: Array, dy: Array, res: RmsNormResidual
) -> tuple[Array, Array, Array]:
    """Adjoint of rmsnorm_bwd as a function of (dy, z, gain).   (N.6)"""
    n, rrms, gain = res
    # backward: dgain = dy n  (summed to gain's shape)
    g_dy = g_dgain * n  # (...,D)
    g_n = g_dgain * dy  # (...,D)
    # backward: dz = L(v),  v = dy gain;  L is symmetric, so its adjoint is L
    v = dy * gain  # (...,D)
    dz, lu = _jacobian(v, res), _jacobian(g_dz, res)  # (...,D)
    g_dy = g_dy + lu * gain  # (...,D)
    g_gain = sum_to(lu * dy, gain)  # as gain
    # L depends on z: a small change e of z changes n by L(e), rrms by -rrms^2 mean(n e)
    g_z = -rrms * (
        n * row_mean(g_dz * dz) + dz * row_mean(n * g_dz) + lu * row_mean(n * v)
    )  # (...,D)
    g_z = g_z + _jacobian(g_n, res)  # (...,D)
    return g_dy, g_z, g_gain


def _jacobian(v: Array, res: RmsNormResidual) -> Array:
    """(...,D)->(...,D)   L(v) = rrms (v - n mean(n v)), <u, L(v)> = <L(u), v>"""
    return res.rrms * (v - res.n * row_mean(res.n * v))
