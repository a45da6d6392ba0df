"""Both sides of the law for one leaf, and what they are measured by.

All in float64 on the host. Sizes are taken out first, so that squares neither overflow nor vanish.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from ..backend import Array, host, namespace, to_numpy

__all__ = ["RESOLUTION", "Sides", "epsilon", "wide", "inner", "norm", "largest"]

RESOLUTION = 1e-3  # of |J v|: more rounding than this could hide what the check is for


class Sides(NamedTuple):
    """Both sides of the law for one leaf at one step, and what they are measured by."""

    where: str
    step: float
    lhs: float  # <u, J v>
    rhs: float  # <J^T u, v>
    moved: tuple[float, ...]  # |J v| of every output
    noise: tuple[float, ...]  # the most that the rounding of every output adds to lhs
    slip: float  # the relative error of v itself: x + h v is rounded too

    @property
    def scale(self) -> float:
        """|J v|"""
        return math.hypot(*self.moved)

    @property
    def error(self) -> float:
        """How far the two sides are apart."""
        return abs(self.lhs - self.rhs)

    @property
    def rounding(self) -> float:
        """The most that rounding changes lhs. An output that stays where others move adds none."""
        moving = [n for n, length in zip(self.noise, self.moved, strict=True) if length > 0]
        return math.hypot(*(moving or self.noise)) + self.slip * self.scale


def epsilon(x: Array) -> float:
    """The machine epsilon of an array's dtype."""
    return float(namespace(x).finfo(x.dtype).eps)


def wide(a: Array) -> host.ndarray:
    """A copy on the host, in float64."""
    return to_numpy(a).astype("float64")


def inner(a: host.ndarray, b: host.ndarray) -> float:
    """<a, b>; only the result can overflow."""
    big, high = largest(a), largest(b)
    with host.errstate(invalid="ignore"):  # infinity over infinity: the caller refuses NaN
        return float(host.sum((a / big) * (b / high))) * big * high


def norm(a: host.ndarray) -> float:
    """|a|"""
    big = largest(a)
    with host.errstate(invalid="ignore"):
        return float(host.sqrt(host.sum((a / big) ** 2))) * big


def largest(x: host.ndarray) -> float:
    """The size of the largest entry, 1 if there is none."""
    return float(host.max(host.abs(x), initial=0.0)) or 1.0
