"""Fast weights on top of a loaded model: parameters with which they change nothing yet.

Both are given the model's features before its final normalisation, ``features_below_norm`` of its
family. Normalisation and unembedding are the model's own, and what is added is zero. So the plain
pass starts as exactly the model.
"""

from __future__ import annotations

from typing import NamedTuple

from ..backend import Array, namespace
from ..fast_matrix import MatrixParameters, MatrixSettings
from ..key_map import KeyMap
from ..lm import gpt2
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
        raise ValueError(
            f"the keys are of features of width {key.A.shape[0]}, the model has {width}"
        )
    W = xp.zeros((key.A.shape[1], width), dtype=table.dtype, device=table.device)  # (K,D)
    b, U = xp.zeros_like(final.gain), xp.matrix_transpose(table)  # (D,), (D,V)
    settings = MatrixSettings(eps=final.eps, norm=final.norm)
    return MatrixParameters(key, W, b, final.gain, final.bias, U, None), settings
