"""What a row of the tables of rules holds, and what the rows draw their arguments from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tests.strategies import generator


class Shape(NamedTuple):
    batch: int
    length: int
    width: int  # K
    values: int  # E


class Rule(NamedTuple):
    """One row: the functions of a rule file, and float64 arguments from a shape and a seed."""

    name: str
    loss: Callable  # (S, k, v, ...) -> (B,)
    gradient: Callable  # the same arguments -> the type of S
    recurrent: tuple[Callable, Callable]  # fwd(*tokens, state, read=), bwd(dout, dstate, res)
    chunked: tuple[Callable, Callable] | None  # fwd(*tokens, state, chunk, read=), bwd
    tokens: Callable[[Shape, int], tuple]  # q, k, v, rates: axis 1 is time
    state: Callable[[Shape, int], Any]  # what comes in
    inner: Callable[[Shape, int], tuple]  # the arguments of loss and gradient: one token per sequence
    starts_empty: bool = True  # state None means zeros


def unit_keys(draw: Callable, *shape: int) -> np.ndarray:
    """Keys shorter than 1, so that a delta step with a rate below 2 never grows the memory: the
    comparisons stay well conditioned.
    """
    k = draw(*shape)
    return k / np.sqrt(1 + np.sum(k * k, axis=-1, keepdims=True))


def rates(seed: int, low: float, high: float, *shape: int) -> np.ndarray:
    return np.random.default_rng([seed, 1]).uniform(low, high, shape)


def memory(n: Shape, seed: int) -> np.ndarray:
    return generator(seed + 2)(n.batch, n.width, n.values)
