"""Several documents in one row, for kernels that take ``cu_seqlens``: the places where they begin,
and where the last one ends.

A document is a sequence (``rules/documents.py``), so a case is the same and so is its answer. Only
the kernel is asked otherwise: the B sequences of a case come as documents of one row, each followed
by a short one that nobody asks for, so that lengths differ and no boundary is where a chunk ends.
States are one per document, (N,...).
"""

from __future__ import annotations

from typing import NamedTuple

from ..backend import Array, host
from . import layouts
from .options import Options
from .subjects import Arrays, Subject


class Document(NamedTuple):
    """The first ``length`` tokens of a sequence."""

    sequence: int
    length: int
    wanted: bool


def documents(batch: int, length: int, options: Options) -> list[Document]:
    """Every sequence, and behind it a few of its own tokens once more, as a document to ignore."""
    found = []
    for b in range(batch):
        short = min(length, options.multiple_of * (1 + b % 3))
        found += [Document(b, length, True), Document(b, short, False)]
    return found


def cu_seqlens(row: list[Document]) -> Array:
    """(N+1,) int64   where documents begin"""
    return host.cumulative_sum(host.asarray([0] + [d.length for d in row], dtype="int64"))


def pack(subject: Subject, options: Options, row: list[Document], arrays: Arrays) -> Arrays:
    """Batches, in the kernel's layout -> rows: (B,T,...) -> (1,M,...), states (B,...) -> (N,...)

    Cotangents of what nobody asks for are 0.
    """
    return {name: _packed(subject, options, row, name, a) for name, a in arrays.items()}


def _packed(subject: Subject, options: Options, row: list[Document], name: str, a: Array) -> Array:
    letters = layouts.shown(subject, name, options)
    if "B" not in letters:
        return a
    asked = [d.wanted or not name.startswith("cot_") for d in row]
    if "T" not in letters:
        return host.stack([a[d.sequence] * keep for d, keep in zip(row, asked, strict=True)])
    axes = letters.index("B"), letters.index("T")
    a = host.moveaxis(a, axes, (0, 1))
    parts = [a[d.sequence, : d.length] * keep for d, keep in zip(row, asked, strict=True)]
    return host.moveaxis(host.concat(parts)[None], (0, 1), axes)


def unpack(subject: Subject, options: Options, row: list[Document], arrays: Arrays) -> Arrays:
    """The answers to a row -> those of the documents that were asked for, as a batch."""
    return {name: _unpacked(subject, options, row, name, a) for name, a in arrays.items()}


def _unpacked(
    subject: Subject, options: Options, row: list[Document], name: str, a: Array
) -> Array:
    letters = layouts.shown(subject, name, options)
    if "B" not in letters:
        return a
    if "T" not in letters:
        return host.stack([a[n] for n, d in enumerate(row) if d.wanted])
    axes = letters.index("B"), letters.index("T")
    a, ends = host.moveaxis(a, axes, (0, 1))[0], cu_seqlens(row)[1:]
    parts = [a[e - d.length : e] for e, d in zip(ends, row, strict=True) if d.wanted]
    return host.moveaxis(host.stack(parts), (0, 1), axes)
