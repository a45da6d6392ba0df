"""Worker processes that each compute on one core.

Small models gain little from a second BLAS thread and lose much when something else runs, so each worker's linear algebra gets one
thread. The C library is told to keep freed memory: arrays of a few MB would otherwise go back to the system after every operation, and
page faults would cost as much as the arithmetic.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

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
    """A pool of ``count`` fresh processes, started with the environment above; progress bars share one lock."""
    context = multiprocessing.get_context("spawn")
    before = {name: os.environ.get(name) for name in WORKER_ENVIRONMENT}
    os.environ.update(WORKER_ENVIRONMENT)
    lock = context.RLock()
    tqdm.set_lock(lock)
    try:
        with ProcessPoolExecutor(count, mp_context=context, initializer=tqdm.set_lock, initargs=(lock,)) as pool:
            yield pool
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
