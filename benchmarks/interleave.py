"""Times that can be compared: jobs in turn within one run, medians over rounds, ratios within a
round.

A machine that slows down slows every job of a round, so ratios of neighbours hold where seconds do
not. Set OPENBLAS_NUM_THREADS=1 for the steadier comparison on a machine that does other things too.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from threadpoolctl import threadpool_info

from fwl_ref.backend import backend_versions, wait


class Times(NamedTuple):
    """What interleaved rounds gave for one job."""

    seconds: float  # median
    ratio: float  # median over rounds of this job's time over the first job's
    spread: float  # half the range of that ratio


def interleaved(jobs: dict[str, Callable[[], Any]], rounds: int = 5) -> dict[str, Times]:
    """Run every job once to warm up, then ``rounds`` times in turn. A job returns an array of the
    device that it is to be waited for.
    """
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for count in range(rounds + 1):
        for name, job in jobs.items():
            start = time.perf_counter()
            wait(job())
            if count:
                seconds[name].append(time.perf_counter() - start)
    first = next(iter(seconds.values()))
    found = {}
    for name, times in seconds.items():
        ratios = [a / b for a, b in zip(times, first, strict=True)]
        found[name] = Times(statistics.median(times), statistics.median(ratios), (max(ratios) - min(ratios)) / 2)
    return found


def machine(backend: str = "numpy") -> str:
    """One line that every table must carry."""
    kernels = sorted({f"{i['internal_api']} {i.get('architecture')}, {i['num_threads']} threads" for i in threadpool_info()})
    versions = ", ".join(f"{name} {value}" for name, value in backend_versions(backend).items())
    return f"{platform.machine()}, {os.cpu_count()} cores; {'; '.join(kernels)}; {versions}"
