"""One side of the benchmark in a process of its own, which does as it is asked.

Nothing but the standard library is imported before the process is on its cores, so that libraries
find as many as they may use. Questions come and answers go as pickles, by the standard streams.
"""

from __future__ import annotations

import importlib
import os
import pickle
import re
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

PAUSE = 0.1  # seconds before each timing, in which the idle threads of the side before go to sleep
STATUS, REFERENCES = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def answers(side: Any) -> dict[str, Callable[..., Any]]:
    """What can be asked, by name."""
    work: list[Callable] = []
    before: list[int | None] = []

    def load(problem: dict[str, Any], threads: int) -> None:
        work[:] = [side.load(problem, threads)]
        with suppress(OSError):
            REFERENCES.write_text("5")  # Linux: the peak begins anew
        before[:] = [memory("VmRSS")]

    def clock() -> tuple[float, float]:
        time.sleep(PAUSE)
        start = time.perf_counter()
        loss, _ = work[0]()
        return time.perf_counter() - start, loss

    def gradients() -> tuple[float, dict]:
        loss, found = work[0]()
        return loss, side.host(found)

    def product(n: int) -> float:
        start = time.perf_counter()
        side.product(n)
        return time.perf_counter() - start

    return {
        "load": load,
        "clock": clock,
        "gradients": gradients,
        "product": product,
        "formed": lambda: side.formed(work[0]),
        "memory": lambda: (before[0], memory("VmHWM")),
        "versions": side.versions,
    }


def memory(field: str) -> int | None:
    """Bytes resident now (VmRSS) or at most (VmHWM); None where the system does not say.

    Not ``ru_maxrss``, which begins at what the parent held.
    """
    try:
        found = re.search(rf"{field}:\s+(\d+) kB", STATUS.read_text())
    except OSError:
        return None
    return 1024 * int(found[1]) if found else None


def main(side: str, cores: str) -> None:
    """Answer until the questions end."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [int(core) for core in cores.split(",")])
    questions, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    known = answers(importlib.import_module(f"benchmarks.sides.{side}"))
    while True:
        try:
            what, arguments = pickle.load(questions)
        except EOFError:
            return
        try:
            reply = (True, known[what](*arguments))
        except Exception:
            reply = (False, traceback.format_exc())
        pickle.dump(reply, replies)
        replies.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
