"""A setting is tuned on validation documents: a few values, and further ones where the best is at
the edge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple


class Tuned(NamedTuple):
    """What was tried, and the best of it."""

    best: float
    loss: float
    tried: dict[float, float]  # value -> loss


def tune(
    loss: Callable[[float], float], values: Sequence[float], factor: float = 3.0, more: int = 3
) -> Tuned:
    """The value of least loss. As long as it is the first or last one, another one is tried that is
    ``factor`` away, at most ``more`` times. What is not finite counts as infinite.

    Raises FloatingPointError if no loss is finite.
    """
    tried: dict[float, float] = {}

    def at(value: float) -> None:
        found = loss(value)
        tried[value] = found if math.isfinite(found) else math.inf

    for value in values:
        at(value)
    for _ in range(more):
        best = min(tried, key=tried.__getitem__)
        if best not in (min(tried), max(tried)) or not best or factor == 1:
            break
        at(best * factor if best == max(tried) else best / factor)
    best = min(tried, key=tried.__getitem__)
    if tried[best] == math.inf:
        raise FloatingPointError(
            f"no value gives a finite loss, tried {sorted(tried)}: try smaller ones"
        )
    return Tuned(best, tried[best], dict(sorted(tried.items())))
