"""The block before any fast weights: an ordinary layer, first-order gradients only.

The plain model and dynamic evaluation use it. It uses no code of the write and the read, so it
can serve as the literal side of the equivalence that the fast weight block claims.
"""

from __future__ import annotations

from typing import NamedTuple

from .backend import Array
from .checks import check_slow_block
from .norm import NormResidual, norm_bwd, norm_fwd
from .ops.cross_entropy import CrossEntropyResidual, cross_entropy_bwd, cross_entropy_fwd
from .ops.dense import DenseResidual, dense_bwd, dense_fwd
from .ops.squared_relu import SquaredReluResidual, squared_relu_bwd, squared_relu_fwd


class SlowParameters(NamedTuple):
    """Parameters of the block, and (same type) their gradients."""

    W1: Array  # (I,F) I = D in a language model
    b1: Array  # (F,)
    W2: Array  # (F,D)
    b2: Array  # (D,)
    gain: Array  # (D,)
    bias: Array  # (D,)
    U: Array  # (D,V) unembedding, always slow
    c: Array  # (V,)  always slow


class FastParameters(NamedTuple):
    """One entry per fast parameter: step sizes, accumulated gradients, or the parameters."""

    W1: Array
    b1: Array
    W2: Array
    b2: Array
    gain: Array
    bias: Array


class SlowBlockResidual(NamedTuple):
    dense1: DenseResidual
    act: SquaredReluResidual
    dense2: DenseResidual
    norm: NormResidual
    unembed: DenseResidual
    loss: CrossEntropyResidual
    residual: bool


def slow_block_fwd(
    x: Array,
    labels: Array,
    p: SlowParameters,
    eps: float,
    norm: str = "layer",
    residual: bool = False,
) -> tuple[tuple[Array, Array], SlowBlockResidual]:
    """(...,I),(...)->(...),(...,V)   cross-entropy per token, and the logits   (B.1)

    ``norm`` is "layer" or "rms"; with ``residual`` z = x + a W2 + b2, which needs I = D.   (X.12)
    Raises ValueError or TypeError if shapes do not fit, or arrays are mixed.
    """
    check_slow_block(x, labels, p, norm, residual)
    h, dense1 = dense_fwd(x, p.W1, p.b1)  # (...,F)
    a, act = squared_relu_fwd(h)  # (...,F)
    z, dense2 = dense_fwd(a, p.W2, p.b2)  # (...,D)
    z = x + z if residual else z
    n, normed = norm_fwd(z, p.gain, p.bias, eps, norm)  # (...,D)
    logits, unembed = dense_fwd(n, p.U, p.c)  # (...,V)
    nll, loss = cross_entropy_fwd(logits, labels)  # (...)
    return (nll, logits), SlowBlockResidual(dense1, act, dense2, normed, unembed, loss, residual)


def slow_block_bwd(dnll: Array, res: SlowBlockResidual) -> tuple[Array, SlowParameters]:
    """Adjoint of slow_block_fwd: dx, and dp summed over tokens.   (B.2)"""
    dlogits = cross_entropy_bwd(dnll, res.loss)  # (...,V)
    dn, dU, dc = dense_bwd(dlogits, res.unembed)  # (...,D)
    dz, dgain, dbias = norm_bwd(dn, res.norm)  # (...,D)
    da, dW2, db2 = dense_bwd(dz, res.dense2)  # (...,F)
    dh = squared_relu_bwd(da, res.act)  # (...,F)
    dx, dW1, db1 = dense_bwd(dh, res.dense1)  # (...,I)
    dx = dx + dz if res.residual else dx
    return dx, SlowParameters(dW1, db1, dW2, db2, dgain, dbias, dU, dc)
