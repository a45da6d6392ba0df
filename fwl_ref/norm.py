"""The normalisation before an unembedding, of either kind, and with a bias in both.

    layer    y = (z - mean z) rstd gain + bias           LayerNorm, as GPT-2 has it
    rms      y = z rrms gain + bias                      RMSNorm, as the llama family has it

RMSNorm has no bias of its own. Here it gets one that may start at 0, so that a block on top of a
llama has the same six fast parameters as a block on top of a GPT-2.
"""

from __future__ import annotations

from .backend import Array, namespace
from .ops.common import sum_to
from .ops.layernorm import LayerNormResidual, layernorm_bwd, layernorm_bwd_bwd, layernorm_fwd
from .ops.rmsnorm import RmsNormResidual, rmsnorm_bwd, rmsnorm_bwd_bwd, rmsnorm_fwd

NormResidual = LayerNormResidual | RmsNormResidual  # its type says which kind it was


def norm_fwd(
    z: Array, gain: Array, bias: Array, eps: float, norm: str
) -> tuple[Array, NormResidual]:
    """(...,D),(D),(D)->(...,D)   ``norm`` is "layer" or "rms"   (N.1), (X.1)"""
    namespace(z, gain, bias)
    if norm == "layer":
        return layernorm_fwd(z, gain, bias, eps)
    y, res = rmsnorm_fwd(z, gain, eps)  # (...,D)
    return y + bias, res


def norm_bwd(dy: Array, res: NormResidual) -> tuple[Array, Array, Array]:
    """Adjoint of norm_fwd: dz, dgain, dbias; gain and bias have one shape.   (N.2), (X.1)"""
    if isinstance(res, LayerNormResidual):
        return layernorm_bwd(dy, res)
    # forward: y = rms(z) gain + bias
    return *rmsnorm_bwd(dy, res), sum_to(dy, res.gain)  # (...,D), as gain, as gain


def norm_bwd_bwd(
    g_dz: Array, g_dgain: Array, g_dbias: Array, dy: Array, res: NormResidual
) -> tuple[Array, Array, Array, None]:
    """Adjoint of norm_bwd as a function of (dy, z, gain, bias).   (N.3), (X.1)"""
    if isinstance(res, LayerNormResidual):
        return layernorm_bwd_bwd(g_dz, g_dgain, g_dbias, dy, res)
    g_dy, g_z, g_gain = rmsnorm_bwd_bwd(g_dz, g_dgain, dy, res)  # (...,D), (...,D), as gain
    # backward: dbias = dy  (summed to bias's shape)
    return g_dy + g_dbias, g_z, g_gain, None  # the bias does not enter the backward pass
