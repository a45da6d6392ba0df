"""A tiny random llama with a tokenizer of bytes, and texts for it: the whole command in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fwl_ref.adapt.settings import Settings
from fwl_ref.lm import llama
from fwl_ref.lm.llama import LlamaConfig, LlamaParameters, parameter_axes
from fwl_ref.pretrained.load import Pretrained
from fwl_ref.tree import tree_map

WORDS = "abcdefghijklmnop \n"  # a token is a letter
CONFIG = LlamaConfig(width=16, hidden=24, layers=3, heads=4, groups=2, head=4, vocabulary=len(WORDS), context=64)
SETTINGS = Settings(
    length=96, window=16, contexts=(32, 96), long=32, test=2, validation=1, train_tokens=600, steps=4, batch=2, train_length=48,
    rate=1e-2, checks=2, segment=8, layers=2, full=1, tune_length=48, statistics=200, pieces=3, more=1, at_once=32, block=10, chunk=16,
)  # fmt: skip


class Ids(NamedTuple):
    ids: list[int]


class Letters:
    """What this project uses of a tokenizer."""

    def encode(self, text: str) -> Ids:
        return Ids([WORDS.index(c) for c in text])

    def id_to_token(self, i: int) -> str:
        return WORDS[i]

    def get_vocab_size(self) -> int:
        return len(WORDS)


def parameters(config: LlamaConfig = CONFIG, dtype: str = "float64", seed: int = 0) -> LlamaParameters:
    """Random parameters, with features that differ enough to be whitened."""
    rng, sizes = np.random.default_rng(seed), llama.axis_sizes(config)

    def one(words: str) -> np.ndarray:
        shape = tuple(sizes[w] for w in words.split(","))
        values = 1 + 0.1 * rng.normal(size=shape) if len(shape) == 1 else rng.normal(size=shape) * shape[0] ** -0.5
        return values.astype(dtype)

    drawn = tree_map(one, parameter_axes(config))
    return drawn._replace(embedding=rng.normal(size=(config.vocabulary, config.width)).astype(dtype) * 0.5)


def pretrained(dtype: str = "float64") -> Pretrained:
    return Pretrained("tiny.gguf", llama, CONFIG, parameters(dtype=dtype), Letters())


def write_texts(folder: Path, documents: int = 12, size: int = 150, seed: int = 1) -> Path:
    """Documents that repeat themselves, so that memory helps."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for i in range(documents):
        words = ["".join(rng.choice(list(WORDS[:16]), size=4)) for _ in range(5)]
        text = " ".join(words[j] for j in rng.integers(0, 5, size=size // 4))
        (folder / f"{i:02}.txt").write_text(text[: size - 7 * i], encoding="utf-8")
    return folder


def arguments(**given: Any) -> list[str]:
    return [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
