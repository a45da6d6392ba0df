"""Where adapting helps: the change of every byte's loss, by what is known of the byte.

Three questions: how far into the document it stands, how often training has seen the ``CONTEXT``
bytes before it, and how often the document itself has had it after the last ``REPEATED`` bytes
already. Answers are sums per document, so that an interval over documents can be formed from them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from ..backend import Array, host
from ..lm.corpus import Document

CONTEXT = 4
REPEATED = 3
FREQUENCIES = (0, 1, 3, 10, 30, 100, 300, 1000)  # where a bucket begins
EARLIER = (0, 1, 2, 4, 8, 16)
POSITIONS = (0, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
BUCKETS = {"position": POSITIONS, "frequency": FREQUENCIES, "earlier": EARLIER}


def codes(data: Array, length: int) -> Array:
    """(n)->(n-length+1)   every ``length`` bytes in a row as one number"""
    wide = data.astype("int64")
    stop = len(data) - length + 1
    found = host.zeros(max(0, stop), dtype="int64")  # (n-length+1,)
    for i in range(length if stop > 0 else 0):
        found = found * 256 + wide[i : stop + i]
    return found


def frequencies(train: Iterable[Document], documents: Sequence[Document]) -> list[Array]:
    """(n-1,) a document: how often training text has the CONTEXT bytes before each byte but the
    first; -1 where so many bytes do not stand before it.
    """
    asked = host.unique(host.concatenate([codes(d.data, CONTEXT) for d in documents]))  # (A,)
    counts = host.zeros(len(asked), dtype="int64")  # (A,)
    for document in train:
        found = codes(document.data, CONTEXT)
        place = host.searchsorted(asked, found)
        place = host.minimum(place, len(asked) - 1)
        host.add.at(counts, place[asked[place] == found], 1)
    result = []
    for d in documents:
        known = counts[host.searchsorted(asked, codes(d.data, CONTEXT))]  # of bytes 0..3, 1..4
        before = host.full(len(d.data) - 1, -1)
        before[CONTEXT - 1 :] = known[:-1]  # byte t is predicted from t - CONTEXT .. t - 1
        result.append(before)
    return result


def earlier(document: Document) -> Array:
    """(n-1,)   how often the document had this byte after the same REPEATED bytes before; -1 where
    so many bytes do not stand before it.
    """
    seen: Counter[int] = Counter()
    found = host.full(len(document.data) - 1, -1)
    for t, code in enumerate(codes(document.data, REPEATED + 1).tolist(), start=REPEATED - 1):
        found[t] = seen[code]
        seen[code] += 1
    return found


def sums(
    train: Iterable[Document],
    documents: Sequence[Document],
    losses: Sequence[Array],
    base: Sequence[Array],
) -> dict[str, Any]:
    """Of every question and document: the sum of changes in nats and the number of bytes, by
    bucket.
    """
    values = {
        "position": [host.arange(len(d.data) - 1) for d in documents],
        "frequency": frequencies(train, documents),
        "earlier": [earlier(d) for d in documents],
    }
    found: dict[str, Any] = {}
    for name, edges in BUCKETS.items():
        found[name] = {"change": [], "count": []}
        for value, loss, plain in zip(values[name], losses, base, strict=True):
            bucket = host.searchsorted(edges, value, side="right") - 1  # -1: not asked
            change = (loss - plain).astype("float64")
            inside = [bucket == i for i in range(len(edges))]
            found[name]["change"].append([float(change[part].sum()) for part in inside])
            found[name]["count"].append([int(part.sum()) for part in inside])
    return found
