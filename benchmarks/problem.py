"""What is timed: two sizes, four works, and the numbers that every side is given.

Plain dictionaries of arrays: a process of another library can take them without importing this
project, whose settings of the C library would otherwise be measured there too.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fwl_ref.demo import cost
from fwl_ref.lm.model import Config, initialize
from fwl_ref.tree import named_leaves


class Size(NamedTuple):
    """A model and a batch."""

    width: int
    layers: int
    heads: int
    vocabulary: int
    window: int  # T
    batch: int


SIZES = {
    "reference": Size(256, 4, 4, 512, 512, 8),
    "small": Size(128, 2, 4, 256, 256, 8),
}
WORKS = ("plain_forward", "plain_step", "fast_forward", "fast_step")


def config(size: Size, kind: str) -> Config:
    """The model as it is by default, plain or fast."""
    return Config(size.width, size.layers, size.heads, size.vocabulary, fast=kind == "fast")


def problem(size: Size, work: str, dtype: str = "float32", seed: int = 0) -> dict[str, Any]:
    """Weights as training starts with them and random text; labels are the next tokens."""
    kind, what = work.split("_")
    text = np.random.default_rng(seed).integers(0, size.vocabulary, (size.batch, size.window + 1))
    model = config(size, kind)
    return {
        "config": model._asdict(),
        "work": what,
        "weights": dict(named_leaves(initialize(model, seed, dtype))),
        "tokens": np.ascontiguousarray(text[:, :-1]),
        "labels": np.ascontiguousarray(text[:, 1:]),
    }


def counted(size: Size, work: str) -> int:
    """Multiply-adds by formula. A step is three forwards, for every product has two adjoints: what a step forms beyond that, it forms
    twice.
    """
    kind, what = work.split("_")
    forward = (cost.fast if kind == "fast" else cost.static)(config(size, kind), size.window)
    return size.batch * forward * (3 if what == "step" else 1)
