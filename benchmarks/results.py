"""What is kept of a run: results/bench.json and the tables. Nothing is measured here."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.agreement import BOUND, Checked
from benchmarks.interleave import compared
from benchmarks.problem import SIZES
from benchmarks.processes import US
from fwl_ref.files import whole_file

PAIRS = 7  # the least that a result is taken from


class Measured(NamedTuple):
    """What one work took on one number of threads."""

    seconds: dict[str, list[float]]  # side -> one per round
    memory: dict[str, tuple[int | None, int | None]]  # side -> bytes before the first call, and at most


def on(threads: int) -> str:
    """1 -> "1_thread", 2 -> "2_threads" """
    return f"{threads}_thread{'s' if threads > 1 else ''}"


def summary(checks: dict[str, Checked], measured: dict[int, dict[str, Measured]], peaks: dict[int, float], adds: dict[str, int]) -> dict:
    """What results/bench.json holds of one size; ``measured`` and ``peaks`` by threads, ``adds`` the counted multiply-adds by work."""
    found: dict[str, Any] = {}
    for threads, works in measured.items():
        sides = list(next(iter(works.values())).seconds)
        for other in sides[1:]:
            times = {work: compared(m.seconds, other)[US] for work, m in works.items()}
            found[f"ratio_to_{other}_{on(threads)}"] = {work: t.ratio for work, t in times.items()}
            found[f"spread_of_ratio_to_{other}_{on(threads)}"] = {work: t.spread for work, t in times.items()}
        seconds = {work: {name: statistics.median(m.seconds[name]) for name in sides} for work, m in works.items()}
        found[f"seconds_{on(threads)}"] = seconds
        found[f"memory_mib_{on(threads)}"] = {work: {name: mib(*m.memory[name]) for name in sides} for work, m in works.items()}
        found[f"product_peak_gflops_{on(threads)}"] = 2e-9 * peaks[threads]
        found[f"share_of_product_peak_{on(threads)}"] = {
            work: {name: adds[work] / taken / peaks[threads] for name, taken in by.items()} for work, by in seconds.items()
        }
    found["multiply_adds"] = {work: {"counted": adds[work], "formed": c.formed} for work, c in checks.items()}
    found["largest_error_in_float64"] = {work: c.errors for work, c in checks.items()} | {"bound": BOUND}
    return found


def mib(before: int | None, peak: int | None) -> dict[str, float | None]:
    """Bytes as MiB: the whole process at its peak, and the share of the work."""
    if before is None or peak is None:
        return {"process": None, "work": None}
    return {"process": peak / 2**20, "work": (peak - before) / 2**20}


def table(name: str, found: dict) -> Iterator[str]:
    """The lines of one size."""
    run, size = found["run"], SIZES[name]
    sizes = size._asdict()
    sizes |= sizes.pop("config")._asdict() if "config" in sizes else {}
    yield f"\n## {name}: {', '.join(f'{k} {v}' for k, v in sizes.items())}\n"
    programs = ", ".join(f"{program} {number}" for program, number in run["versions"].items())
    yield f"{run['machine']}, cores {', '.join(map(str, run['cores']))}; {programs}; {run['date']}"
    if run["pairs"] < PAIRS:
        yield f"\nOnly {run['pairs']} of at least {PAIRS} pairs: a trial, not a result."
    for threads in run["threads"]:
        by = on(threads)
        sides = list(next(iter(found[f"seconds_{by}"].values())))
        yield f"\n{by.replace('_', ' ')}, square products at {found[f'product_peak_gflops_{by}']:.0f} GFLOP/s\n"
        heads = [f"{US} / {o}" for o in sides[1:]] + [f"{s}: s | share of peak | work, MiB" for s in sides]
        yield f"| work | {' | '.join(heads)} |"
        yield f"|:--|{'--:|' * (len(sides) - 1 + 3 * len(sides))}"
        for work, seconds in found[f"seconds_{by}"].items():
            cells = [f"{found[f'ratio_to_{o}_{by}'][work]:.2f} ± {found[f'spread_of_ratio_to_{o}_{by}'][work]:.2f}" for o in sides[1:]]
            for side in sides:
                memory = found[f"memory_mib_{by}"][work][side]["work"]
                share = found[f"share_of_product_peak_{by}"][work][side]
                cells += [f"{seconds[side]:.3f}", f"{share:.0%}", "-" if memory is None else f"{memory:.0f}"]
            yield f"| {work.replace('_', ' ')} | {' | '.join(cells)} |"
    yield "\n| work | multiply-adds counted | formed | formed / counted | largest error in float64 |\n|:--|--:|--:|--:|:--|"
    for work, adds in found["multiply_adds"].items():
        errors = ", ".join(f"{side} {value:.1e}" for side, value in found["largest_error_in_float64"][work].items())
        numbers = f"{adds['counted']:.4g} | {adds['formed']:.4g} | {adds['formed'] / adds['counted']:.2f}"
        yield f"| {work.replace('_', ' ')} | {numbers} | {errors} |"


def save(path: Path, found: dict[str, dict]) -> None:
    """The sizes that were measured replace those in the file; others stay, each with its own date and machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    with whole_file(path) as file:
        file.write((json.dumps(old | found, indent=1) + "\n").encode())
