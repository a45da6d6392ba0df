"""Times that can be compared: jobs in turn within one run, medians over rounds, ratios within a
round.

A machine that slows down slows every job of a round, so ratios of neighbours hold where seconds do
not. Rounds go forwards and backwards in turn, A B B A, so that a drift helps nobody.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from threadpoolctl import threadpool_info

from fwl_ref.backend import backend_versions, wait

Clock = Callable[[], float]  # does a job once and returns the seconds that it took


class Times(NamedTuple):
    """What interleaved rounds gave for one job."""

    seconds: float  # median
    ratio: float  # median over rounds of this job's time over the first job's
    spread: float  # half the range of that ratio


def in_turn(clocks: dict[str, Clock], rounds: int, tick: Callable[[], Any] = lambda: None) -> dict[str, list[float]]:
    """Every job once to warm up, then ``rounds`` times, every second round in reverse; ``tick`` after each round. Seconds by job."""
    seconds: dict[str, list[float]] = {name: [] for name in clocks}
    names = list(clocks)
    for count in range(rounds + 1):
        for name in names if count % 2 else reversed(names):
            taken = clocks[name]()
            if count:
                seconds[name].append(taken)
        tick()
    return seconds


def compared(seconds: dict[str, list[float]], to: str) -> dict[str, Times]:
    """Medians, and ratios to the job ``to`` of the same round."""
    found = {}
    for name, times in seconds.items():
        ratios = [a / b for a, b in zip(times, seconds[to], strict=True)]
        found[name] = Times(statistics.median(times), statistics.median(ratios), (max(ratios) - min(ratios)) / 2)
    return found


def interleaved(jobs: dict[str, Callable[[], Any]], rounds: int = 5) -> dict[str, Times]:
    """Time the jobs in turn; ratios are to the first. A job returns an array of the device that it is to be waited for."""
    return compared(in_turn({name: partial(_clocked, job) for name, job in jobs.items()}, rounds), next(iter(jobs)))


def machine(backend: str = "numpy") -> str:
    """One line that every table must carry."""
    kernels = sorted({f"{i['internal_api']} {i.get('architecture')}, {i['num_threads']} threads" for i in threadpool_info()})
    versions = ", ".join(f"{name} {value}" for name, value in backend_versions(backend).items())
    return f"{platform.machine()}, {os.cpu_count()} cores; {'; '.join(kernels)}; {versions}"


def _clocked(job: Callable[[], Any]) -> float:
    start = time.perf_counter()
    wait(job())
    return time.perf_counter() - start
