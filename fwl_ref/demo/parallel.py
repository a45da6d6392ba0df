"""Worker processes that each compute on one core, and no processes at all where there is one GPU.

Small models gain little from a second BLAS thread and lose much when something else runs, so each
worker's linear algebra gets one thread. The C library is told to keep freed memory: arrays of a few
MB would otherwise go back to the system after every operation, and page faults would cost as much
as the arithmetic.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

WORKER_ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MALLOC_TRIM_THRESHOLD_": "1000000000",  # glibc; other C libraries ignore it
    "MALLOC_MMAP_THRESHOLD_": "1000000000",
}


@contextmanager
def worker_pool(count: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of ``count`` fresh processes, started with the environment above; progress bars share
    one lock.

    After an error, or when interrupted, jobs that have not begun are dropped.
    """
    context = multiprocessing.get_context("spawn")
    before = {name: os.environ.get(name) for name in WORKER_ENVIRONMENT}
    os.environ.update(WORKER_ENVIRONMENT)
    lock = context.RLock()
    tqdm.set_lock(lock)
    try:
        with ProcessPoolExecutor(
            count, mp_context=context, initializer=_start_worker, initargs=(lock,)
        ) as pool:
            try:
                yield pool
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class InTurn(Executor):
    """Does each job here and now, one after the other: for a GPU, which two processes would only
    share, with two copies of everything.
    """

    def submit(self, job: Callable, /, *args: Any, **kwargs: Any) -> Future:
        """Run the job; an error waits in the future, an interruption does not."""
        future: Future = Future()
        try:
            future.set_result(job(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def _start_worker(lock: Any) -> None:
    tqdm.set_lock(lock)
    signal.signal(signal.SIGINT, _quit)


def _quit(*_: Any) -> None:
    """An interrupted worker leaves without the traceback that it would otherwise print over the
    progress bars.
    """
    raise SystemExit(130)
