"""Is this installation sound? Every theorem once, on this machine, in float64 and float32; then the
quick demo and, on a GPU, times.

    python -m fwl_ref check [--backend numpy|cupy] [--no-demo]

The test suite draws thousands of cases and needs its own packages. This needs nothing but the
package: one small fixed case per claim, the error found beside the error allowed, and one report,
``check-BACKEND.md`` and ``.json``, to send along with a question. ``measure.py`` says what is
allowed, ``theorems/`` what is claimed.
"""

from __future__ import annotations

import datetime
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import __version__
from ..backend import Array, backend_target, backend_versions
from ..files import finite
from . import report
from .device import model_gradient, timings, without_waiting
from .measure import ALLOWED, DTYPES, Finding
from .theorems.table import attempted, findings


def run_checks(backend: str, out: Path, demo: bool = True) -> int:
    """Everything on ``backend``; prints as it goes and writes ``out``/check-BACKEND.md and .json.
    0 if all holds, 1 if not.

    Raises BackendError if there is no such library or device.
    """
    target, clock = backend_target(backend), time.perf_counter()
    versions = _versions(backend)
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    print(f"fwl_ref check, backend {backend}: {listed}", flush=True)

    rows = []
    for number, dtype, finding in claims(target, backend):
        rows.append(report.row(number, dtype, finding))
        print(report.line(rows[-1]), flush=True)
    bad = sum(not row["ok"] for row in rows)

    times, results, broken = [], None, []
    try:
        if backend != "numpy":
            times += [timing._asdict() for timing in timings(target, backend)]
        if demo:
            results = _quick_demo(backend, out)
            broken += _demo_objections(results)
    except Exception as error:  # the report is written whatever happens, and says it
        broken.append(f"{type(error).__name__}: {' '.join(str(error).split())}")
    print("".join(f"FAIL  {line}\n" for line in broken), end="", flush=True)

    found = {
        "backend": backend,
        "versions": versions,
        "date": datetime.date.today().isoformat(),
        "seconds": round(time.perf_counter() - clock, 1),
        "failed": bad + len(broken),
        "broken": broken,
        "findings": rows,
        "timings": times,
        "demo": results,
    }
    written = report.write(out, finite(found))
    print(f"{len(rows) - bad} of {len(rows)} claims hold; {found['seconds']} s")
    print(f"written: {written} (send this one along with a question) and .json")
    return 1 if found["failed"] else 0


def claims(target: Array, backend: str) -> Iterator[tuple[int, str, Finding]]:
    """Number of the theorem, precision and finding, for all that needs no demo."""
    yield from findings(target)
    for dtype in DTYPES:
        for finding in attempted(model_gradient, target, dtype):
            yield 16, dtype, finding
    if backend != "numpy":
        for finding in attempted(without_waiting, target, backend):
            yield 0, "float32", finding


def _versions(backend: str) -> dict[str, str]:
    machine = f"{platform.platform()}, {os.cpu_count()} cores"
    return {"fwl_ref": __version__, **backend_versions(backend), "machine": machine}


def _quick_demo(backend: str, out: Path) -> dict[str, Any]:
    """The quick demo's table with models trained here, and its own check of the theorem on one."""
    from ..demo.run import QUICK, run_demo

    settings = QUICK._replace(shipped=False)
    place = out / f"check-{backend}-demo"
    results = run_demo(place, quick=True, settings=settings, backend=backend)
    kept = ("bits_per_byte", "relative_time", "equivalence_max_error", "seconds")
    return {name: results[name] for name in kept}


def _demo_objections(results: dict[str, Any]) -> list[str]:
    """What is wrong with the demo's results; not a number is."""
    error = results["equivalence_max_error"]
    if error is not None and error <= ALLOWED["float64"]:
        return []
    shown = report.shown(error, ".1e")
    return [f"demo: the block is not dynamic evaluation on the trained model: {shown}"]
