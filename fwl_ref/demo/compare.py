"""Compare ways of reading: choose step sizes on validation documents, read test documents, time
everything in turn.

Losses may be computed on both cores. Times are taken in one process with nothing else running, the
ways interleaved, and only their ratios are reported.
"""

from __future__ import annotations

import math
import statistics
import time
from concurrent.futures import Executor, Future
from operator import itemgetter

from ..backend import Array, host
from ..lm.bar import Bar
from ..lm.data import Document
from ..lm.evaluate import Way, bits_per_byte, read


def read_all(
    pool: Executor, ways: list[Way], documents: list[Document], title: str
) -> list[list[Array]]:
    """Losses of every way (outer list) on every document (inner list), in the order given.

    The readings are spread over the pool; a progress bar counts them.
    """
    with Bar(total=len(ways) * len(documents), desc=title, unit="document") as bar:

        def submit(way: Way, document: Document) -> Future:
            future = pool.submit(read, way, document)
            future.add_done_callback(lambda _: bar.update())
            return future

        jobs = [[submit(way, document) for document in documents] for way in ways]
        return [[future.result() for future in row] for row in jobs]


def choose(
    pool: Executor, candidates: dict[str, list[Way]], documents: list[Document], title: str
) -> tuple[dict[str, Way], dict]:
    """For each name the candidate with the fewest bits per byte on ``documents``, and what every
    candidate had.

    Raises ValueError, naming them, if all candidates of a name diverged.
    """
    flat = [way for ways in candidates.values() for way in ways]
    scores = iter([bits_per_byte(losses) for losses in read_all(pool, flat, documents, title)])
    table = {name: {way.label: next(scores) for way in ways} for name, ways in candidates.items()}
    chosen = {}
    for name, ways in candidates.items():
        bits = table[name]
        scored = [(bits[way.label], way) for way in ways]
        finite = [pair for pair in scored if math.isfinite(pair[0])]  # not the diverged ones
        if not finite:
            raise ValueError(
                f"{name}: all of {', '.join(bits)} diverged on the validation documents: "
                "try smaller step sizes"
            )
        _, chosen[name] = min(finite, key=itemgetter(0))
    return chosen, table


def change_standard_error(rows: list[Array], base: list[Array]) -> float:
    """Standard error, over documents, of the change of the mean loss against ``base``, in percent.

    NaN where it is not known: for fewer than two documents, or if a loss is not finite.
    """
    changes = [100 * (a.mean() - b.mean()) / b.mean() for a, b in zip(rows, base, strict=True)]
    if len(changes) < 2 or not all(map(math.isfinite, changes)):
        return math.nan
    return float(host.std(changes, ddof=1) / len(changes) ** 0.5)


def relative_times(
    ways: dict[str, Way], documents: dict[str, Document], rounds: int
) -> tuple[dict[str, float], float]:
    """Time per byte of each way, on a document of its own, over the first one's; and microseconds
    per byte of the first: medians over interleaved rounds after a warm-up.

    Run it in a process whose linear algebra uses one thread, with nothing beside it.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}  # per byte
    for count in range(rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            losses = read(way, documents[name])
            if count:  # the first round warms up
                seconds[name].append((time.perf_counter() - start) / len(losses))
    first = next(iter(seconds.values()))
    ratios = {
        name: statistics.median(a / b for a, b in zip(times, first, strict=True))
        for name, times in seconds.items()
    }
    return ratios, 1e6 * statistics.median(first)
