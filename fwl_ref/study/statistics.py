"""The mean over seeds and documents of a crossed table, and how sure it is.

Every document is read with the model of every seed. So a number x of seed s and document d is

    x_sd = mean + seed_s + document_d + rest_sd

with four unknown parts, of which the last three vary. Other seeds and other documents would give
another mean. Its variance is estimated from mean squares (the two-way analysis of variance without
replication), and its degrees of freedom as Satterthwaite does (Biometrics Bulletin 2, 1946). The
differences of two ways of reading make such a table too: that is the comparison paired by document
and seed.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from ..adapt.table import T_975
from ..backend import Array, host


class Mean(NamedTuple):
    """A mean and half of its 95 % interval; nan where that is not known."""

    value: float
    half: float
    seeds: int
    documents: int


def student(freedom: float) -> float:
    """97.5 % of Student's t distribution; degrees of freedom are rounded down to a tabulated
    number, which makes an interval wider, never narrower.
    """
    return T_975[max(1, math.floor(min(len(T_975), freedom))) - 1]


def mean_interval(table: Array) -> Mean:
    """(S,D)->mean   of numbers of S seeds and D documents, with half of its 95 % interval

    One seed: the interval is over documents alone, and the page says so. Source: the analysis of
    variance above. With few seeds it is wide, as it should be: three seeds say little about seeds.

    Raises ValueError if the table is empty or has another number of axes.
    """
    x = host.asarray(table, dtype="float64")  # (S,D)
    if x.ndim != 2 or not x.size:
        raise ValueError(
            f"expected numbers of seeds and documents, (S,D), got the shape {x.shape}: "
            "give one row per seed"
        )
    seeds, documents = x.shape
    mean = float(x.mean())
    if not host.all(host.isfinite(x)) or x.size == 1:
        return Mean(mean, math.nan, seeds, documents)
    rows, columns = x.mean(axis=1), x.mean(axis=0)  # (S,), (D,)
    of_seeds = documents * float(rows.var(ddof=1)) if seeds > 1 else 0.0
    of_documents = seeds * float(columns.var(ddof=1)) if documents > 1 else 0.0
    rest, loose = 0.0, max(1, (seeds - 1) * (documents - 1))
    if seeds > 1 and documents > 1:
        left = x - rows[:, None] - columns[None, :] + mean  # (S,D)
        rest = float((left * left).sum()) / loose
    # below the larger of the two only by chance: then the larger one is taken
    total = max(of_seeds + of_documents - rest, of_seeds, of_documents)
    parts = of_seeds**2 / max(1, seeds - 1) + of_documents**2 / max(1, documents - 1)
    parts += rest**2 / loose
    freedom = total**2 / parts if parts else math.inf
    return Mean(mean, student(freedom) * math.sqrt(total / x.size), seeds, documents)
