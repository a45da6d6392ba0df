"""Gains by position in the document: where in a text does adapting help."""

from __future__ import annotations

from ..backend import Array, host


def bins(length: int, window: int) -> list[slice]:
    """Where gains are averaged: at most 16 parts of equal length, none below half a window; a short
    rest at the end is left out.
    """
    width = max(1, window // 2, -(-length // 16))
    starts = range(0, length, width)
    return [slice(a, a + width) for a in starts if a == 0 or a + width <= length]


def gains(losses: list[Array], base: list[Array], parts: list[slice]) -> list[float]:
    """Percent saved against ``base`` in each part, over all bytes of the documents that reach
    it.
    """
    found = []
    for part in parts:
        mine, other = (
            host.concatenate([x[part] for x in rows]).astype("float64").mean()
            for rows in (losses, base)
        )
        found.append(float(100 * (1 - mine / other)))
    return found
