"""Compare ways of reading: choose step sizes on validation documents, read test documents, time
everything in turn.

A ``Way`` is plain data, so that it can be sent to another process. Losses may be computed on both
cores; times are taken in one process with nothing else running, the ways interleaved, and only
their ratios are reported.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future
from typing import Any, NamedTuple

from tqdm import tqdm

from ..backend import Array
from ..lm.data import Document
from ..lm.evaluate import Method, bits_per_byte
from ..lm.model import Config, Parameters


class Way(NamedTuple):
    """One way of reading a document: ``make(params, config, **options)`` is the method."""

    label: str
    make: Callable[..., Method]
    params: Parameters
    config: Config
    options: dict[str, Any]


def read(way: Way, documents: Iterable[Document]) -> list[Array]:
    """Losses in nats of every byte but the first, one array per document."""
    method = way.make(way.params, way.config, **way.options)
    return [method(document) for document in documents]


def read_all(
    pool: Executor, ways: list[Way], documents: list[Document], title: str
) -> list[list[Array]]:
    """Every way on every document, spread over the pool, with a progress bar; in the order given."""
    with tqdm(total=len(ways) * len(documents), desc=title, unit="document") as bar:

        def submit(way: Way, document: Document) -> Future:
            future = pool.submit(read, way, [document])
            future.add_done_callback(lambda _: bar.update())
            return future

        jobs = [[submit(way, document) for document in documents] for way in ways]
        return [[future.result()[0] for future in row] for row in jobs]


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
        finite = [
            way for way in ways if math.isfinite(table[name][way.label])
        ]  # a diverged candidate never wins
        if not finite:
            raise ValueError(
                f"{name}: all of {', '.join(table[name])} diverged on the validation documents: try smaller step sizes"
            )
        chosen[name] = min(finite, key=lambda way, name=name: table[name][way.label])
    return chosen, table


def relative_times(
    ways: dict[str, Way], document: Document, rounds: int
) -> tuple[dict[str, float], float]:
    """Time of each way over the first one's, and microseconds per byte of the first: medians over
    interleaved rounds after a warm-up.

    Run it in a process whose linear algebra uses one thread, with nothing beside it.
    """
    methods = {name: way.make(way.params, way.config, **way.options) for name, way in ways.items()}
    first = next(iter(methods))
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for count in range(rounds + 1):
        for name, method in methods.items():
            start = time.perf_counter()
            losses = method(document)
            if count:
                seconds[name].append(time.perf_counter() - start)
    ratios = {
        name: statistics.median(a / b for a, b in zip(seconds[name], seconds[first], strict=True))
        for name in methods
    }
    return ratios, 1e6 * statistics.median(seconds[first]) / len(losses)
