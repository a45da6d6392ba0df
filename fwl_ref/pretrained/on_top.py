"""Fast weights on top of a loaded model: parameters with which they change nothing yet.

Both are given the model's features before its final normalisation, ``features_below_norm`` of its
family. Normalisation and unembedding are the model's own, and what is added is zero. So the plain
pass starts as exactly the model.
"""

from __future__ import annotations

from typing import NamedTuple

from ..backend import Array, device, host, like, namespace
from ..fast_matrix import MatrixParameters, MatrixSettings
from ..fwl import FastSettings
from ..key_map import KeyMap
from ..lm import gpt2
from ..slow_block import SlowParameters
from .load import Pretrained


class FinalNorm(NamedTuple):
    """The model's last normalisation, as ``norm_fwd`` takes it."""

    gain: Array  # (D,)
    bias: Array  # (D,) zeros for RMSNorm, which has none
    eps: float
    norm: str  # "layer" or "rms"


def final_norm(model: Pretrained) -> FinalNorm:
    """What stands between the model's features and its unembedding."""
    p, eps = model.parameters, model.config.eps
    if model.family is gpt2:
        return FinalNorm(p.gain, p.bias, eps, "layer")
    return FinalNorm(p.gain, namespace(p.gain).zeros_like(p.gain), eps, "rms")


def matrix_on_top(model: Pretrained, key: KeyMap) -> tuple[MatrixParameters, MatrixSettings]:
    """KeyMap->MatrixParameters   a fast matrix and a fast bias of zeros on the model   (X.11)

    The unembedding is a view of the model's table. ``key`` may be ``whitening`` of its features.
    Raises ValueError if the key map is for features of another width.
    """
    final, table = final_norm(model), model.parameters.table
    xp = namespace(table, final.gain, *key)
    width = final.gain.shape[0]
    if key.A.shape[0] != width:
        raise ValueError(f"the keys are for features of width {key.A.shape[0]}, not {width}")
    W = xp.zeros((key.A.shape[1], width), dtype=table.dtype, device=device(table))  # (K,D)
    b, U = xp.zeros_like(final.gain), xp.matrix_transpose(table)  # (D,), (D,V)
    settings = MatrixSettings(eps=final.eps, norm=final.norm)
    return MatrixParameters(key, W, b, final.gain, final.bias, U, None), settings


def block_on_top(
    model: Pretrained, key: KeyMap, hidden: int, seed: int
) -> tuple[SlowParameters, FastSettings]:
    """KeyMap->SlowParameters   the fast weight block with residual on the model   (X.13)

    The hidden units are ``hidden`` random directions of the keys, drawn from ``seed``; with
    ``whitening`` of the model's features they vary by about 1. The second layer is 0. The block
    forms all its logits at once, so it is for small vocabularies and short windows. Raises
    ValueError as ``matrix_on_top``, and if ``hidden`` is below 1.
    """
    matrix, settings = matrix_on_top(model, key)
    if hidden < 1:
        raise ValueError(f"the block needs at least 1 hidden unit, got {hidden}")
    xp, (keys, width) = namespace(matrix.W), matrix.W.shape
    drawn = host.random.default_rng(seed).standard_normal((keys, hidden)) / keys**0.5
    W1 = xp.matmul(key.A, like(drawn, key.A, key.A.dtype))  # (D,F)
    b1 = -xp.matmul(key.mean, W1)  # (F,)
    dtype, where = matrix.W.dtype, device(matrix.W)
    W2 = xp.zeros((hidden, width), dtype=dtype, device=where)  # (F,D)
    c = xp.zeros(matrix.U.shape[1], dtype=dtype, device=where)  # (V,)
    slow = SlowParameters(W1, b1, W2, matrix.b, matrix.gain, matrix.bias, matrix.U, c)
    return slow, FastSettings(eps=settings.eps, norm=settings.norm, residual=True)
