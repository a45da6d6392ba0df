"""Run the plan: rows that are there are not made again, those that are not are spread over workers,
the most important ones first, and the page is written from what is there.
"""

from __future__ import annotations

import os
import subprocess
import time
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

from ..demo.parallel import is_starting, worker_pool
from ..files import reserved
from ..lm import footprint
from ..lm.bar import Bar
from ..lm.corpus import summary
from .estimate import measure, memory, seconds
from .journal import Result, append_result, read_results
from .make import corpus_of, make
from .page import write_page
from .plan import once, plan
from .row import Row
from .settings import FULL, Sizes, check_sizes

MINUTES = 120.0  # of two cores
RESULTS = "results.jsonl"


class Outcome(NamedTuple):
    """What a run has left."""

    rows: list[Row]  # the whole plan
    results: dict[str, Result]  # key -> what came out
    made: int  # rows of this run


def run_study(
    out: Path,
    page: Path | None = None,
    minutes: float | None = MINUTES,
    sizes: Sizes = FULL,
    pool: Executor | None = None,
    at_once: int | None = None,
) -> Outcome:
    """Make rows for ``minutes`` (None: all), then write the page to ``page`` (None: into ``out``).

    Rows go to ``pool``, ``at_once`` of them at a time; without one, to a process for each core, two
    at most. No row is started that would not end in time. All workers have to see the folder
    ``out``.

    Raises ValueError for sizes or minutes that cannot be, or results that cannot be read; OSError
    if nothing can be written or another study writes there; what a row raises, after the page is
    written.
    """
    if is_starting():  # a worker imports a main module that calls this: the first process says so
        raise SystemExit(1)
    check_sizes(sizes)
    if minutes is not None and not minutes >= 0:
        raise ValueError(f"the minutes must be at least 0, got {minutes}: 0 only writes the page")
    if at_once is None:
        at_once = min(2, os.cpu_count() or 1)
    with reserved(out / RESULTS):
        return _run(out, page or out / "study.md", minutes, sizes, pool, at_once)


def _run(
    out: Path,
    page: Path,
    minutes: float | None,
    sizes: Sizes,
    given: Executor | None,
    at_once: int,
) -> Outcome:
    """The run, once it is known that its outcome can be written."""
    began = time.monotonic()
    corpora = {name: corpus_of(name) for name in sizes.corpora}
    rows = plan(sizes, {name: " ".join(c.fingerprint) for name, c in corpora.items()})
    runs, results = once(rows), read_results(out / RESULTS)
    todo = [row for row in runs if row.key not in results]
    if not todo or minutes == 0:
        write_page(page, out, rows, results, sizes)
        print(f"{len(runs) - len(todo)} of {len(runs)} rows are there; page: {page}", flush=True)
        return Outcome(rows, results, 0)
    for corpus in corpora.values():
        print(summary(corpus), flush=True)
    speeds = measure(sizes, corpora[sizes.corpora[0]])
    train_bytes = {n: sum(len(d.data) for d in c.train) for n, c in corpora.items()}
    costs = {row.key: seconds(row, speeds, train_bytes[row.corpus]) for row in todo}
    print(statement(runs, todo, costs, minutes, at_once), flush=True)
    deadline = None if minutes is None else began + 60 * minutes
    pools = nullcontext(given) if given is not None else worker_pool(at_once)
    before = len(results)
    try:
        with pools as pool:
            spread(pool, todo, costs, results, out, deadline, at_once)
    finally:
        write_page(page, out, rows, results, sizes)
    left = sum(row.key not in results for row in runs)
    more = f"; {left} rows are left, the same command goes on with them" if left else ""
    print(f"{len(results) - before} rows made{more}; page: {page}", flush=True)
    return Outcome(rows, results, len(results) - before)


def spread(
    pool: Executor,
    todo: list[Row],
    costs: dict[str, float],
    results: dict[str, Result],
    out: Path,
    deadline: float | None,
    at_once: int,
) -> None:
    """Make the rows of ``todo``, the first ones first, each when what it needs is there.

    ``results`` receives them, and the file. Estimates are corrected by how long the rows of this
    run have really taken. Raises what a row raises.
    """
    waiting, running = list(todo), dict[Future, Row]()
    spent, estimated = 0.0, 0.0
    source = commit()
    with Bar(total=round(sum(costs.values())), desc="study", unit="core-second") as bar:
        while waiting or running:
            while len(running) < at_once:
                left = None if deadline is None else deadline - time.monotonic()
                pace = max(1.0, spent / estimated) if estimated > 0 else 1.0
                row = next_row(waiting, results, costs, left, pace)
                if row is None:
                    break
                waiting.remove(row)
                bar.set_postfix_str(f"{row.corpus}, seed {row.seed}: {row.variant} {row.name}")
                running[pool.submit(make, row, out)] = row
            if not running:
                return
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                row = running.pop(future)
                result = future.result() | {"commit": source}
                results[row.key] = append_result(out / RESULTS, result)
                spent += result["row_seconds"]
                estimated += costs[row.key]
                bar.update(round(costs[row.key]))


def next_row(
    waiting: list[Row],
    results: dict[str, Result],
    costs: dict[str, float],
    left: float | None,
    pace: float,
) -> Row | None:
    """The first row whose needs are there and that would end in the seconds ``left``; None if there
    is none. A row that needs one that failed is never made.
    """
    for row in waiting:
        there = all(k in results and "failed" not in results[k] for k in row.needs)
        if there and (left is None or pace * costs[row.key] <= left):
            return row
    return None


def statement(
    runs: list[Row],
    todo: list[Row],
    costs: dict[str, float],
    minutes: float | None,
    at_once: int,
) -> str:
    """What the run will take, and how far it will come."""
    total = sum(costs.values())
    reach, spent = 0, 0.0
    for row in todo:
        spent += costs[row.key]
        reach += minutes is None or spent <= 60 * minutes * at_once
    by_section: dict[int, float] = {}
    for row in todo:
        by_section[row.section] = by_section.get(row.section, 0.0) + costs[row.key] / 60
    parts = ", ".join(f"section {n}: {m:.1f}" for n, m in sorted(by_section.items()))
    time_given = "no limit" if minutes is None else f"{minutes:g} minutes"
    return (
        f"study: {len(runs)} rows, {len(runs) - len(todo)} are there; the other {len(todo)} take "
        f"about {total / 60:.1f} core-minutes ({parts}), {total / 60 / at_once:.1f} minutes "
        f"{at_once} at a time; {time_given}: about the first {reach} of them; memory at the peak "
        f"about {footprint.readable(memory(todo, at_once))}"
    )


def commit() -> str:
    """The commit of the source, "+" behind it if files differ from it; "unknown" outside git."""
    here = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        command = ["git", "-C", str(here), *words]
        found = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return found.stdout.strip()

    try:
        changes = git("status", "--porcelain", "--untracked-files=no", "--", ".")
        return git("rev-parse", "HEAD")[:12] + ("+" if changes else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
