"""A batch, a few sequences at a time, on as many threads as the linear algebra would have taken.

Sequences of a batch do not see each other, so a batch is a sum of its sequences. Few at a time,
what passes from one operation to the next stays in the processor's cache, and the residuals of few
sequences are all there are. And two parts on two threads gain where two threads inside every
product lose: products of this size are too small to be shared out. NumPy lets other threads run
while it computes.

Parts come in the order of the batch and are summed in it. So the number of threads changes nothing,
not even the rounding. On a device the batch stays whole: there one small product after the other is
what costs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import cache
from typing import Any

from ..backend import Array, Tree, is_host, namespace
from ..tree import tree_map

PART = 2**17  # numbers in the features of a part; with fewer, Python's own time begins to show


def shards(batch: int, size: int, target: Array) -> list[slice]:
    """Slices of the batch axis, at least one.

    ``size`` is that of a sequence's features, T x D. On the host a part has ``PART`` such numbers,
    or one sequence if that has more; on the device of ``target`` there is one part.
    """
    step = sequences(batch, size) if is_host(target) else max(batch, 1)
    return [slice(start, start + step) for start in range(0, max(batch, 1), step)]


def sequences(batch: int, size: int) -> int:
    """How many sequences a part has on the host."""
    return max(1, min(batch, PART // max(size, 1)))


def part_of(tree: Tree, part: slice) -> Tree:
    """The sequences ``part`` of every array of a tree whose first axis is the batch."""
    return tree_map(lambda a: a[part, ...], tree)


def joined(trees: list[Tree]) -> Tree:
    """The inverse of ``part_of``: the sequences of all trees in a row."""
    if len(trees) == 1:
        return trees[0]
    return tree_map(lambda *parts: namespace(*parts).concat(parts, axis=0), *trees)


def of_each(f: Callable[[slice], Any], parts: list[slice]) -> Iterator[Any]:
    """``f(part)`` for every part, in order; several at once if BLAS has several threads.

    ``f`` may raise: the error comes out here, and no further part is begun.
    """
    threads = min(len(parts), blas_threads()) if len(parts) > 1 else 1
    if threads == 1:
        yield from map(f, parts)
        return
    contexts = [copy_context() for _ in parts]  # NumPy's handling of errors is a context's own
    with _blas().limit(limits=1, user_api="blas"), ThreadPoolExecutor(threads) as pool:
        yield from pool.map(lambda context, part: context.run(f, part), contexts, parts)


def at_once(batch: int, size: int) -> int:
    """How many sequences are computed at once on the host."""
    step = sequences(batch, size)
    return min(batch, step * min(-(-batch // step), blas_threads()))


def blas_threads() -> int:
    """How many threads a product would take: OPENBLAS_NUM_THREADS and threadpoolctl set it.

    1 where threadpoolctl is not installed, as in a browser, which has no threads either.
    """
    if _blas() is None:
        return 1
    counts = [lib.num_threads for lib in _blas().lib_controllers if lib.user_api == "blas"]
    return min(counts, default=1)


def one_thread() -> None:
    """From here on this process' products take one thread, for there are others beside it."""
    if _blas() is not None:
        _blas().limit(limits=1, user_api="blas")


def blas_kernel() -> str:
    """The kernel that BLAS chose for this processor, such as Haswell, or "unknown"."""
    found = [lib.info().get("architecture") for lib in getattr(_blas(), "lib_controllers", ())]
    return "; ".join(sorted({name for name in found if name})) or "unknown"


@cache
def _blas() -> Any:
    """The linear algebra libraries of this process, None without threadpoolctl; finding them takes
    some milliseconds.
    """
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return None
    return ThreadpoolController()
