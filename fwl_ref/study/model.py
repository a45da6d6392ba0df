"""A model whose top learns something that ``lm.model`` has not."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..backend import Array, Tree
from ..lm.adamw import adam_init
from ..lm.model import Parameters
from ..lm.train import Progress


class Model(NamedTuple):
    """``lm.model.Parameters``, and what the top has of its own."""

    embedding: Array
    trunk: tuple
    gain: Array
    bias: Array
    block: Any
    eta: Any
    decay: Array
    own: Tree


def begin_with(params: Parameters, own: Tree) -> Progress:
    """A start of training, zero moments for all of it."""
    model: Any = Model(*params, own)
    return Progress(model, adam_init(model), ())
