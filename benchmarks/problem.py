"""What is timed: sizes, the works of each, and the numbers that every side is given.

Plain dictionaries of arrays: a process of another library can take them without importing this
project, whose settings of the C library would otherwise be measured there too.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np

from fwl_ref.adapt.settings import head_products, trunk_products
from fwl_ref.demo import cost
from fwl_ref.lm.llama import LlamaConfig, axis_sizes, parameter_axes
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


class Llama(NamedTuple):
    """A model of another family and a batch."""

    config: LlamaConfig
    window: int  # T
    batch: int


# SmolLM2-135M as its file has it, but for ten of its 30 layers, which are alike, and fewer words: it is the trunk that is measured
SMOLLM2 = LlamaConfig(576, 1536, 10, 9, 3, 64, 512, 8192, 1e-5, 100_000.0, "interleaved")
SIZES: dict[str, Size | Llama] = {
    "reference": Size(256, 4, 4, 512, 512, 8),
    "small": Size(128, 2, 4, 256, 256, 8),
    "smollm2": Llama(SMOLLM2, 512, 1),
}
WORKS = ("plain_forward", "plain_step", "fast_forward", "fast_step")
LLAMA_WORKS = ("llama_forward",)


def works(size: Size | Llama, only: Collection[str] = (*WORKS, *LLAMA_WORKS)) -> list[str]:
    """Those of ``only`` that there are for a size."""
    return [work for work in (LLAMA_WORKS if isinstance(size, Llama) else WORKS) if work in only]


CHUNK = 256  # tokens: this project takes so many by itself where no state goes on


def config(size: Size, kind: str) -> Config:
    """The model as it is by default, plain or fast; in chunks of which PyTorch has its best time too."""
    return Config(size.width, size.layers, size.heads, size.vocabulary, fast=kind == "fast", chunk=CHUNK)


def problem(size: Size | Llama, work: str, dtype: str = "float32", seed: int = 0) -> dict[str, Any]:
    """Weights as training starts with them and random text; labels are the next tokens."""
    kind, what = work.split("_")
    model = size.config if isinstance(size, Llama) else config(size, kind)
    weights = llama_weights(model, seed, dtype) if isinstance(size, Llama) else dict(named_leaves(initialize(model, seed, dtype)))
    text = np.random.default_rng(seed).integers(0, model.vocabulary, (size.batch, size.window + 1))
    return {
        "family": "llama" if isinstance(size, Llama) else "fwl",
        "config": model._asdict(),
        "work": what,
        "weights": weights,
        "tokens": np.ascontiguousarray(text[:, :-1]),
        "labels": np.ascontiguousarray(text[:, 1:]),
    }


def llama_weights(c: LlamaConfig, seed: int, dtype: str) -> dict[str, np.ndarray]:
    """At random. A matrix is the view that a file's gives, whose rows are outputs; the table of tokens lies as it is used."""
    rng, sizes = np.random.default_rng(seed), axis_sizes(c)

    def one(name: str, axes: str) -> np.ndarray:
        shape = tuple(sizes[axis] for axis in axes.split(","))
        if len(shape) == 1:
            return np.ones(shape, dtype)
        rows = shape if name == "embedding" else shape[::-1]
        values = (rng.standard_normal(rows) * sizes[axes.split(",")[0]] ** -0.5).astype(dtype)
        return values if name == "embedding" else values.T

    return {name: one(name, axes) for name, axes in named_leaves(parameter_axes(c))}


def counted(size: Size | Llama, work: str) -> int:
    """Multiply-adds by formula. A step is three forwards, for every product has two adjoints: what a step forms beyond that, it forms
    twice.
    """
    kind, what = work.split("_")
    if isinstance(size, Llama):
        return int(size.batch * size.window * (trunk_products(size.config, size.window) + head_products(size.config)))
    own = config(size, kind)
    forward = cost.fast(own, size.window, alone=True) if kind == "fast" else cost.static(own, size.window)
    return size.batch * forward * (3 if what == "step" else 1)
