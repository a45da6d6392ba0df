"""A batch, one sequence at a time, on as many threads as the linear algebra would have taken.

Sequences of a batch do not see each other, so a batch is a sum of its sequences. One at a time,
what passes from one operation to the next stays in the processor's cache, and the residuals of one
sequence are all there are. And two sequences on two threads gain where two threads inside every
product lose: products of this size are too small to be shared out. NumPy lets other threads run
while it computes.

Results come in the order of the sequences and are summed in it. So the number of threads changes
nothing, not even the rounding. On a device the batch stays whole: there one small product after the
other is what costs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import cache
from typing import Any

from ..backend import Array, Tree, is_host, namespace
from ..tree import tree_map

WORTH_A_THREAD = 2**14  # numbers


def shards(batch: int, target: Array) -> list[slice]:
    """Slices of the batch axis: one a sequence on the host, all in one on the device of
    ``target``. At least one.
    """
    step = 1 if is_host(target) else max(batch, 1)
    return [slice(start, start + step) for start in range(0, max(batch, 1), step)]


def part_of(tree: Tree, part: slice) -> Tree:
    """The sequences ``part`` of every array of a tree whose first axis is the batch."""
    return tree_map(lambda a: a[part, ...], tree)


def joined(trees: list[Tree]) -> Tree:
    """The inverse of ``part_of``: the sequences of all trees in a row."""
    if len(trees) == 1:
        return trees[0]
    return tree_map(lambda *parts: namespace(*parts).concat(parts, axis=0), *trees)


def of_each(f: Callable[[slice], Any], parts: list[slice], size: int) -> Iterator[Any]:
    """``f(part)`` for every part, in order; several at once if BLAS has several threads.

    ``size`` is that of a part's features, T x D. Small ones are taken one after the other: their
    time is spent in Python, where only one thread runs. ``f`` may raise: the error comes out here,
    and no further part is begun.
    """
    threads = at_once(len(parts), size)
    if threads == 1:
        yield from map(f, parts)
        return
    contexts = [copy_context() for _ in parts]  # NumPy's handling of errors is a context's own
    with _blas().limit(limits=1, user_api="blas"), ThreadPoolExecutor(threads) as pool:
        yield from pool.map(lambda context, part: context.run(f, part), contexts, parts)


def at_once(count: int, size: int) -> int:
    """How many of ``count`` parts ``of_each`` takes at once."""
    return min(count, blas_threads()) if count > 1 and size >= WORTH_A_THREAD else 1


def blas_threads() -> int:
    """How many threads a product would take: OPENBLAS_NUM_THREADS and threadpoolctl set it."""
    counts = [lib.num_threads for lib in _blas().lib_controllers if lib.user_api == "blas"]
    return min(counts, default=1)


@cache
def _blas() -> Any:
    """The linear algebra libraries of this process; finding them takes some milliseconds."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
