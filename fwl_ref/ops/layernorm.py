"""Layer normalisation (Ba, Kiros and Hinton, arXiv 1607.06450), differentiated twice.

With the normalised input ``n = (z - mean z) rstd`` the Jacobian of ``n`` is

    L(v) = rstd (v - mean v - n mean(n v))

which is symmetric. So one function serves the backward pass, and the same function serves the
second backward pass. It also gives the derivative of everything L depends on: a small change e of
z changes n by ``L(e)`` and rstd by ``-rstd^2 mean(n e)``, to first order.

``gain`` and ``bias`` may be shared, (D), or one per token, (...,D): per token their gradients are
per token too, which is what the fast weight block writes to its memory.
"""

from __future__ import annotations

from typing import NamedTuple

from ..backend import Array, namespace
from .common import row_mean, sum_to


class LayerNormResidual(NamedTuple):
    n: Array  # (...,D) normalised input
    rstd: Array  # (...,1) one over the standard deviation
    gain: Array  # (D) or (...,D)


def layernorm_fwd(
    z: Array, gain: Array, bias: Array, eps: float = 1e-5
) -> tuple[Array, LayerNormResidual]:
    """(...,D),(D),(D)->(...,D)   y = n gain + bias,  n = (z - mean z) rstd   (N.1)"""
    xp = namespace(z, gain, bias)
    n = z - row_mean(z)  # (...,D)
    rstd = 1 / xp.sqrt(row_mean(n * n) + eps)  # (...,1)
    n *= rstd
    y = n * gain  # (...,D)
    y += bias
    return y, LayerNormResidual(n, rstd, gain)


def layernorm_bwd(dy: Array, res: LayerNormResidual) -> tuple[Array, Array, Array]:
    """Adjoint of layernorm_fwd.   (N.2)"""
    # forward: y = n gain + bias
    dbias = sum_to(dy, res.gain)  # as gain
    dgain = sum_to(dy * res.n, res.gain)  # as gain
    # forward: n = (z - mean z) rstd
    dz = _jacobian(dy * res.gain, res)  # (...,D)
    return dz, dgain, dbias


def layernorm_bwd_bwd(
    g_dz: Array, g_dgain: Array, g_dbias: Array, dy: Array, res: LayerNormResidual
) -> tuple[Array, Array, Array, None]:
    """Adjoint of layernorm_bwd as a function of (dy, z, gain, bias).   (N.3)"""
    xp = namespace(g_dz, dy)
    n, rstd, gain = res
    # backward: dbias = dy  (summed to bias's shape)
    g_dy = g_dbias + xp.zeros_like(dy)  # (...,D)
    # backward: dgain = dy n  (summed to gain's shape)
    g_dy = g_dy + g_dgain * n  # (...,D)
    g_n = g_dgain * dy  # (...,D)
    # backward: dz = L(v),  v = dy gain;  L is symmetric, so its adjoint is L
    v = dy * gain  # (...,D)
    dz, lu = _jacobian(v, res), _jacobian(g_dz, res)  # (...,D)
    g_dy = g_dy + lu * gain  # (...,D)
    g_gain = sum_to(lu * dy, gain)  # as gain
    # L depends on z: a small change e of z changes n by L(e), rstd by -rstd^2 mean(n e)
    g_z = -rstd * (
        n * row_mean(g_dz * dz) + dz * row_mean(n * g_dz) + lu * row_mean(n * v)
    )  # (...,D)
    g_z = g_z + _jacobian(g_n, res)  # (...,D)
    return g_dy, g_z, g_gain, None  # the bias does not enter the backward pass


def _jacobian(v: Array, res: LayerNormResidual) -> Array:
    """(...,D)->(...,D)   L(v) = rstd (v - mean v - n mean(n v)), <u, L(v)> = <L(u), v>"""
    out = v - row_mean(v)  # (...,D) one buffer: this is hot
    out -= res.n * row_mean(res.n * v)
    out *= res.rstd
    return out
