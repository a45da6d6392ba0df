"""Prediction by the contexts of the text itself: what the cheapest adapting model reaches.

Counts of what followed each context of up to ``order`` bytes, mixed from short to long:

    p_k(y) = (c_k(y) + u_k p_{k-1}(y)) / (n_k + u_k)

c_k(y) says how often y followed the last k bytes, n_k is the sum of it over y, and u_k how many
different bytes followed. p_{-1} is uniform over 256 bytes. A context that was never seen passes
the shorter one on. This is the escape of Witten and Bell (IEEE Transactions on Information Theory
37, 1991), which they call method C, with the orders mixed instead of tried in turn. Each p_k sums
to 1 if p_{k-1} does: (n_k + u_k) / (n_k + u_k).
"""

from __future__ import annotations

import math
from typing import TypeAlias

ORDER = 5
UNIFORM = 1 / 256


# context -> what followed it, and how often
Counts: TypeAlias = dict[bytes, dict[int, int]]


def probability(counts: Counts, past: bytes, y: int) -> float:
    """p(y) after ``past``, the last ``order`` bytes or fewer; Witten and Bell, as above."""
    p = UNIFORM
    for k in range(len(past) + 1):
        seen = counts.get(past[len(past) - k :])
        if seen is None:
            break  # a longer context was not seen either
        p = (seen.get(y, 0) + len(seen) * p) / (sum(seen.values()) + len(seen))
    return p


def counted(counts: Counts, past: bytes, y: int) -> None:
    """Count ``y`` after each context that ends here; the counts given are changed."""
    for k in range(len(past) + 1):
        seen = counts.setdefault(past[len(past) - k :], {})
        seen[y] = seen.get(y, 0) + 1


def ngram_nats(text: bytes, order: int = ORDER) -> list[float]:
    """The loss in nats of every byte but the first, each predicted before it is counted.

    The first byte is given, as to the models. Raises ValueError if ``order`` is below 0.
    """
    if order < 0:
        raise ValueError(f"the order must be at least 0, got {order}: it counts bytes of context")
    counts: Counts = {}
    losses: list[float] = []
    counted(counts, b"", text[0])
    for t in range(1, len(text)):
        past, y = text[max(0, t - order) : t], text[t]
        losses.append(-math.log(probability(counts, past, y)))
        counted(counts, past, y)
    return losses
