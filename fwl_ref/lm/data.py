"""Windows of text: a document from end to end, and batches to train on.

Documents are kept apart: no window holds bytes of two of them, so none is read with the memory of
another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ..backend import Array, host
from .corpus import MIN_BYTES, Corpus, Document, Fingerprint, load_corpus

__all__ = [
    "Batch", "Corpus", "Document", "Fingerprint", "load_corpus", "training_batch", "windows",
]  # fmt: skip


class Batch(NamedTuple):
    """Windows of text: ``labels[t]`` is the byte after ``tokens[t]``; weight 0 marks padding."""

    tokens: Array  # (B,T) int64
    labels: Array  # (B,T) int64
    weights: Array  # (B,T) float


def windows(document: Document, length: int, limit: int | None = None) -> Iterator[Batch]:
    """Consecutive windows (B = 1), the last one perhaps shorter: every byte is predicted once.

    The first byte is given; with a ``limit`` only so many bytes after it are predicted.

    Raises ValueError if ``length`` or ``limit`` is below 1, or if there are not 2 bytes.
    """
    if length < 1:
        raise ValueError(f"a window must hold at least 1 token, got T = {length}")
    if limit is not None and limit < 1:
        raise ValueError(f"at least 1 byte of a document must be read, got a limit of {limit}")
    if len(document.data) < MIN_BYTES:
        raise ValueError(
            f"{document.name!r} has {len(document.data)} bytes, at least {MIN_BYTES} bytes are "
            "needed: the first one is not predicted"
        )
    data = document.data[: None if limit is None else limit + 1].astype(host.int64)
    for start in range(0, len(data) - 1, length):
        tokens, labels = data[start : start + length], data[start + 1 : start + length + 1]
        tokens = tokens[: len(labels)]
        yield Batch(tokens[None], labels[None], host.ones((1, len(labels)), dtype="float32"))


def training_batch(
    documents: Sequence[Document], batch: int, length: int, seed: int, step: int
) -> Batch:
    """Batch number ``step``, a function of the seed and the step: training resumes and repeats.

    A document's share of the bytes that are trained on is its share of all bytes. A document
    shorter than a window is padded with weight 0.

    Raises ValueError if ``batch`` or ``length`` is below 1, or if no document has 2 bytes.
    """
    if batch < 1 or length < 1:
        raise ValueError(f"batch and window must be at least 1, got B = {batch}, T = {length}")
    ends = place_ends(documents, length)
    if not len(ends) or not ends[-1]:
        raise ValueError(
            f"none of {len(documents)} documents has 2 bytes: the first is given, the others are "
            "predicted, so there is nothing to train on"
        )
    rng = host.random.default_rng([seed, step])
    tokens = host.zeros((batch, length), dtype=host.int64)
    labels = host.zeros((batch, length), dtype=host.int64)
    weights = host.zeros((batch, length), dtype="float32")
    for row, place in enumerate(rng.integers(0, ends[-1], size=batch)):
        piece = window_at(documents, ends, length, int(place))
        n = len(piece) - 1
        tokens[row, :n], labels[row, :n], weights[row, :n] = piece[:-1], piece[1:], 1
    return Batch(tokens, labels, weights)


def place_ends(documents: Sequence[Document], length: int) -> Array:
    """(N,)   where each document's places end, if all documents' places are numbered in a row.

    A window is drawn by drawing a place. A document of n bytes has n - 1 to predict. It gets a
    place for each if it fills a window, and ``length`` places otherwise, because its windows are so
    much shorter: then places times bytes of a window is (n - 1) * ``length`` for every document.
    """
    sizes = host.array([len(d.data) - 1 for d in documents], dtype=host.int64)
    return host.cumsum(host.where(sizes > 0, host.maximum(sizes, length), 0))


def window_at(documents: Sequence[Document], ends: Array, length: int, place: int) -> Array:
    """(n+1,)   the bytes of the window of a place: n = ``length``, or all of a shorter document.

    The window lies around the byte of its place, as far as the document's ends allow.
    """
    i = int(host.searchsorted(ends, place, side="right"))
    data, first = documents[i].data, int(ends[i - 1]) if i else 0
    start = max(0, min(place - first - length // 2, len(data) - 1 - length))
    return data[start : start + length + 1]
