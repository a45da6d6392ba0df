"""What the page asks of plan and results: the runs of all seeds of one line, and their means."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

from ..backend import Array, host
from .estimate import reading
from .journal import Result
from .row import Row
from .statistics import Mean, mean_interval


class Spot(NamedTuple):
    """A line of the page: all but the seed."""

    section: int
    corpus: str
    window: int
    variant: str
    name: str


class Line(NamedTuple):
    """A line's runs."""

    spot: Spot
    kind: str
    planned: tuple[int, ...]  # seeds
    runs: dict[int, Result]  # seed -> result, of those that are there and did not fail
    failed: dict[int, str]  # seed -> why
    products: float | None  # multiply-adds a byte, of a way of reading


Lines: TypeAlias = dict[Spot, Line]


def lines(rows: Iterable[Row], results: dict[str, Result]) -> Lines:
    """All lines of a plan, in its order."""
    found: Lines = {}
    for row in rows:
        spot = Spot(row.section, row.corpus, row.window, row.variant, row.name)
        spot = spot._replace(name=f"trained: {row.name}") if row.kind == "train" else spot
        spot = spot._replace(name=f"where: {row.name}") if row.kind == "where" else spot
        line = found.get(spot) or Line(spot, row.kind, (), {}, {}, reading(row))
        result = results.get(row.key)
        if result is not None and "failed" in result:
            line.failed[row.seed] = result["failed"]
        elif result is not None:
            line.runs[row.seed] = result
        found[spot] = line._replace(planned=(*line.planned, row.seed))
    return found


def bits(line: Line, field: str = "bits") -> dict[int, Array]:
    """Seed -> (D,) or (D,P), nan for what was not finite"""
    return {seed: host.asarray(r[field], dtype="float64") for seed, r in line.runs.items()}


def mean(line: Line) -> Mean | None:
    """Bits a byte over seeds and documents; None without a run."""
    table = list(bits(line).values())
    return mean_interval(host.stack(table)) if table else None


def change(line: Line, base: Line) -> Mean | None:
    """Bits a byte less those of ``base``, paired by document and seed; None without a common
    seed.
    """
    own, other = bits(line), bits(base)
    if line.kind == "outside" and own:  # has no seed: the same against each
        own = dict.fromkeys(other, own[0])
    table = [own[seed] - other[seed] for seed in own if seed in other]
    return mean_interval(host.stack(table)) if table else None


def change_by_position(line: Line, base: Line) -> list[Mean | None]:
    """``change`` in each of the places of ``where.POSITIONS``, over the documents that reach it."""
    own, other = bits(line, "by_position"), bits(base, "by_position")
    table = [own[seed] - other[seed] for seed in own if seed in other]  # (D,P) each
    if not table:
        return []
    return [_of_some(part) for part in host.moveaxis(host.stack(table), 2, 0)]


def change_by_bucket(line: Line, question: str) -> list[Mean | None]:
    """Change in bits a byte in each bucket of a question of section 4, over the documents that
    have such bytes; a document counts as one, however many of them it has.
    """
    tables = []
    for run in line.runs.values():
        sums, counts = (
            host.asarray(run["where"][question][k], dtype="float64") for k in ("change", "count")
        )
        tables.append(
            host.where(counts > 0, sums / host.maximum(counts, 1), math.nan) / math.log(2)
        )
    if not tables:
        return []
    return [_of_some(part) for part in host.moveaxis(host.stack(tables), 2, 0)]


def counts_by_bucket(line: Line, question: str) -> list[int]:
    """Bytes in each bucket, of one seed."""
    run = next(iter(line.runs.values()))
    return [int(n) for n in host.asarray(run["where"][question]["count"]).sum(axis=0)]


def _of_some(part: Array) -> Mean | None:
    """Of (S,D), over the documents with a number; None if there is none."""
    kept = part[:, host.all(host.isfinite(part), axis=0)]
    return mean_interval(kept) if kept.size else None
