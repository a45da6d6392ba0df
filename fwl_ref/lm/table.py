"""The table of ``evaluate``: every document in every way, as rows, as lines of text, as CSV and as
JSON.

The gain is what the last way saves of the bits of the first, in percent: of what adapts against
what does not.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, NamedTuple

from ..backend import Array, host
from ..files import finite, whole_file
from ..slow_block import FastParameters
from .bar import Bar
from .data import Document
from .evaluate import Way, bits_per_byte, carry, read


class Row(NamedTuple):
    """One document, read in every way."""

    name: str
    seen: str  # a word of ``lm/seen.py``; empty if nobody asked
    losses: dict[str, Array]  # way -> (n-1,) in nats, on the host


def print_table(
    documents: Iterable[Document],
    ways: dict[str, Way],
    note: str = "",
    *,
    words: Sequence[str] = (),
    state: FastParameters | None = None,
    pool: Executor | None = None,
) -> tuple[list[Row], FastParameters | None]:
    """Read every document in every way; print bits per byte of each document as it is done, and of
    all bytes together.

    ``note`` stands behind the heading of the columns, ``words`` are what ``seen`` says of each
    document; if they differ, each has a sum of its own. A way whose function is ``carry`` starts
    from ``state`` and goes on from one document to the next; its last state is returned. All other
    readings are spread over the ``pool``, if there is one.

    Raises ValueError if no document has at least 2 bytes, and FloatingPointError, when the table
    is complete, if a loss is not finite.
    """
    kept = list(documents)
    pairs = list(zip(kept, words or [""] * len(kept), strict=True))
    pairs = [(document, word) for document, word in pairs if len(document.data) > 1]
    if not pairs:
        raise ValueError(
            "no document of at least 2 bytes to read: "
            "the first byte is given, the others are predicted"
        )
    rows: list[Row] = []
    print(_heading(list(ways), bool(words), note))
    free = [way for way in ways.values() if way.function is not carry]
    spread: Any = pool.map if pool else map  # the same order; without a pool, one when it is asked
    readings = spread(read, free * len(pairs), [document for document, _ in pairs for _ in free])
    for document, word in Bar(pairs, desc="reading", unit="document", leave=False):
        losses = {}
        for name, way in ways.items():
            if way.function is carry:
                options = way.options | {"state": state}
                losses[name], state = carry(way.params, way.config, document, **options)
            else:
                losses[name] = next(readings)
        rows.append(Row(document.name, word, losses))
        Bar.write(_line(rows[-1:], document.name, count=True))
    for total in totals(rows):
        print(_line(total.rows, total.title))
    broken = not_finite(rows)
    if broken:
        raise FloatingPointError(
            f"{broken}, so the means over it say nothing: the parameters are too large for their "
            "precision, or the fast weights diverged, which smaller step sizes prevent"
        )
    return rows, state


class Total(NamedTuple):
    """Rows that are summed up together."""

    title: str
    rows: list[Row]


def totals(rows: list[Row]) -> list[Total]:
    """All rows of each word, if there are several words, and all rows."""
    words = list(dict.fromkeys(row.seen for row in rows))
    parts = [[row for row in rows if row.seen == word] for word in words]
    several = [
        Total(f"{len(part)} {word}", part) for word, part in zip(words, parts, strict=True)
    ] * (len(words) > 1)
    return [*several, Total(f"all {len(rows)} documents", rows)]


def bits(rows: list[Row]) -> dict[str, float]:
    """Bits per byte of every way over all bytes of some rows."""
    return {way: bits_per_byte([row.losses[way] for row in rows]) for way in rows[0].losses}


def gain(rows: list[Row]) -> float | None:
    """Percent of the first way's bits that the last one saves; None if there is one way only."""
    first, *others = bits(rows).values()
    return 100 * (1 - others[-1] / first) if others else None


def not_finite(rows: list[Row]) -> str:
    """The first loss that is not finite, in words; empty if all are."""
    for row in rows:
        for way, losses in row.losses.items():
            if not host.all(host.isfinite(losses)):
                byte = int(host.argmin(host.isfinite(losses)))
                return (
                    f"the loss of byte {byte + 1:,} of {row.name!r} is {losses[byte]} in the column"
                    f" {way!r}"
                )
    return ""


def as_json(rows: list[Row], about: dict[str, Any]) -> str:
    """The table with all digits: ``about`` it, documents, totals. What is not finite is null."""

    def numbers(some: list[Row]) -> dict[str, Any]:
        predicted = sum(_size(row) for row in some)
        return {"bytes": predicted, "bits_per_byte": bits(some), "gain_percent": gain(some)}

    documents = [{"document": row.name, "seen": row.seen, **numbers([row])} for row in rows]
    sums = [
        {"total": total.title, "documents": len(total.rows), **numbers(total.rows)}
        for total in totals(rows)
    ]
    return json.dumps(finite({**about, "documents": documents, "totals": sums}), indent=1) + "\n"


def as_csv(rows: list[Row]) -> str:
    """One line a document: name, what the model had seen, bytes predicted, bits per byte of every
    way with all digits, gain in percent.
    """
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["document", "seen", "bytes", *rows[0].losses, "gain_percent"])
    for row in rows:
        percent = gain([row])
        last = "" if percent is None else percent
        lines.writerow([row.name, row.seen, _size(row), *bits([row]).values(), last])
    return text.getvalue()


def save_text(path: Path, text: str) -> None:
    """Write a file whole or not at all, as UTF-8."""
    with whole_file(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))


def _size(row: Row) -> int:
    return len(next(iter(row.losses.values())))


def _heading(ways: list[str], seen: bool, note: str) -> str:
    last = ["gain %"] * (len(ways) > 1) + ["seen".ljust(12)] * seen
    return "  ".join(["bytes".rjust(9), *ways, *last, f"document  {note}".rstrip()])


def _line(rows: list[Row], title: str, count: bool = False) -> str:
    """A row, or a sum of rows, under the heading."""
    cells = [f"{value:{len(way)}.3f}" for way, value in bits(rows).items()]
    percent = gain(rows)
    if percent is not None:
        cells.append(f"{percent:6.1f}")
    if any(row.seen for row in rows):
        cells.append((rows[0].seen if count else "").ljust(12))
    return "  ".join([(f"{_size(rows[0]):,}" if count else "").rjust(9), *cells, title])
