"""What fast weights and dynamic evaluation cost beside plain inference, counted and measured.

    make cost                                         everything, some minutes on a machine that does nothing else
    python -m benchmarks.curves --only counted formed     what no other work on the machine can disturb

Six sections, each a list of rows in ``benchmarks/results/cost.json``, which is written after every
row. From that file alone come docs/cost.md and its plots (``cost_page.py``), after every section.

    counted      multiply-adds by formula, over depth, width and T
    formed       the same, counted where products are formed; bytes allocated at the peak, and stated
    measured     seconds of all ways in turn, one core
    inference    fast / plain at 4 and 12 layers, batches of 1 and 8
    length       a text of up to 16,384 bytes read piece by piece, with an attention window
    generation   bytes per second written with cached keys and values, beside PyTorch eager
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks import cost_page, generation
from benchmarks.bench import available, described
from benchmarks.interleave import interleaved, machine
from benchmarks.processes import ROOT, SideError, check_installed
from benchmarks.sides.ours import formed
from fwl_ref.demo import cost
from fwl_ref.dynamic_evaluation import Descent
from fwl_ref.files import whole_file
from fwl_ref.lm import evaluate, footprint
from fwl_ref.lm.bar import Bar
from fwl_ref.lm.data import Document
from fwl_ref.lm.generate import read_text, reader_start
from fwl_ref.lm.model import Config, Parameters, initialize, model_score

RESULTS = Path(__file__).parent / "results" / "cost.json"
SEGMENT = 64  # tokens per step of dynamic evaluation, and a chunk of the fast weights
ROUNDS = 5


class Point(NamedTuple):
    """A place on the curves."""

    layers: int = 4
    width: int = 256
    length: int = 512  # T


AXES = {"layers": (2, 4, 6, 8, 10, 12), "width": (64, 128, 256, 512), "length": (128, 256, 512, 1024, 2048)}
BATCHES = [(4, 1), (4, 8), (12, 1), (12, 8)]  # layers, batch
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
WINDOW = 256  # keys that a token sees, where texts are long

Row = dict[str, Any]


def points() -> list[Point]:
    """Every axis with the other two as by default; where axes cross, once."""
    return list(dict.fromkeys(Point()._replace(**{axis: n}) for axis, values in AXES.items() for n in values))


def config(point: Point) -> Config:
    """Bytes, heads of 64 channels; all else by default."""
    return Config(point.width, point.layers, max(1, point.width // 64), chunk=SEGMENT)


def ways(point: Point) -> dict[str, Callable[[], np.ndarray]]:
    """Each way of reading one window of T bytes: losses (T,). ``plain`` is first, what the others are compared with."""
    c, n = config(point), point.length
    params = initialize(c)
    text = Document("made up", np.random.default_rng(0).integers(97, 123, n + 1).astype("uint8"))
    _, state = evaluate.carry(params, c, text, n)
    descent = Descent(0.01)
    return {
        "plain": lambda: evaluate.static(params, c, text, n),
        "fast": lambda: evaluate.fast_weights(params, c, text, n),
        "fast_carried": lambda: evaluate.carry(params, c, text, n, state=state)[0],
        "dynamic_block": lambda: evaluate.dynamic_block(params, c, text, n, rate=0.01, decay=0.0, segment=SEGMENT),
        "dynamic": lambda: evaluate.dynamic(params, c, text, n, descent=descent, segment=SEGMENT),
    }


def by_formula(point: Point) -> dict[str, int]:
    """Multiply-adds of each way."""
    c, n = config(point), point.length
    return {
        "plain": cost.static(c, n),
        "fast": cost.fast(c, n, alone=True),
        "fast_carried": cost.fast(c, n, carried=True),
        "dynamic_block": cost.dynamic_block(c, n),
        "dynamic": cost.dynamic(c, n, SEGMENT),
    }


def peak(job: Callable[[], Any]) -> int:
    """Bytes that NumPy and Python hold at most while the job runs, beyond what was there."""
    tracemalloc.start()
    try:
        job()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# Sections: each yields its rows
# ------------------------------------------------------------------------------------------------------------------


def counted(_: argparse.Namespace) -> Iterator[Row]:
    """By formula."""
    for point in points():
        yield point._asdict() | {"multiply_adds": by_formula(point)}


def really_formed(_: argparse.Namespace) -> Iterator[Row]:
    """Products counted where they are formed, and bytes. Raises SideError if a way computes what is not finite."""
    for point in points():
        jobs = ways(point)
        adds = {name: formed(partial(finite, name, point, job)) for name, job in jobs.items()}
        held = {name: peak(job) for name, job in jobs.items()}
        stated = {
            name: footprint.evaluation(config(point)._replace(fast=name == "fast"), point.length).activations for name in ("plain", "fast")
        }
        yield point._asdict() | {"multiply_adds": adds, "peak_bytes": held, "stated_bytes": stated}


def finite(name: str, point: Point, job: Callable[[], np.ndarray]) -> None:
    """Do it. Raises SideError if losses are not finite: seconds of what diverged say nothing."""
    if not np.all(np.isfinite(job())):
        raise SideError(f"{name} at {point} must give finite losses: take smaller step sizes")


def measured(args: argparse.Namespace) -> Iterator[Row]:
    """Ratios to plain."""
    for point in points():
        yield point._asdict() | in_columns(interleaved(ways(point), args.rounds))


def inference(args: argparse.Namespace) -> Iterator[Row]:
    """Whole batches, at D and T as by default."""
    for layers, batch in BATCHES:
        point = Point(layers=layers)
        text = np.random.default_rng(0).integers(0, 256, (batch, point.length + 1))
        jobs = {}
        for name in ("plain", "fast"):
            c = config(point)._replace(fast=name == "fast")
            jobs[name] = partial(losses, initialize(c), text, c)
        adds = by_formula(point)
        yield {"layers": layers, "batch": batch, "counted": adds["fast"] / adds["plain"]} | in_columns(interleaved(jobs, args.rounds))


def losses(params: Parameters, text: np.ndarray, c: Config) -> np.ndarray:
    """(B,T)"""
    return model_score(params, text[:, :-1], text[:, 1:], None, c, carry=False).nll


def length(args: argparse.Namespace) -> Iterator[Row]:
    """A text read on, the state carried: multiply-adds and seconds of all of it; what reading it in one window, without an attention
    window, would form.
    """
    point = Point()
    whole, piece = config(point), point.length
    c = whole._replace(attention_window=WINDOW)
    params = initialize(c)
    text = np.random.default_rng(0).integers(97, 123, max(LENGTHS)).astype("uint8").tobytes()
    jobs = {str(n): lambda n=n: read_text(params, c, reader_start(params), text[:n], piece).last for n in LENGTHS}
    adds = {n: formed(jobs[str(n)]) for n in LENGTHS}
    held = {n: peak(jobs[str(n)]) for n in LENGTHS}
    times = interleaved(jobs, args.rounds)
    for n in LENGTHS:
        t, share = times[str(n)], min(LENGTHS) / n
        yield {
            "length": n,
            "multiply_adds": adds[n],
            "without_window": cost.fast(whole, n),
            "peak_bytes": held[n],
            "seconds": t.seconds,
            "ratio_per_token": t.ratio * share,
            "spread": t.spread * share,
        }


def read_on_by_formula(c: Config, n: int, piece: int) -> int:
    """Multiply-adds of ``read_text``: each piece's trunk sees the keys before it, the last byte is not written."""
    total = 0
    for start in range(0, n, piece):
        size = min(piece, n - start)
        seen = cost.attention_pairs(c, size, start)
        total += c.layers * (12 * c.width**2 * size + 2 * c.width * seen)
        written = size - (start == 0)
        if written:
            total += cost.fast(c, written, carried=True) - cost.trunk(c, written)
    return total


def in_columns(times: dict) -> Row:
    """Times of several jobs as three columns, a job each."""
    return {field: {name: getattr(t, field) for name, t in times.items()} for field in ("seconds", "ratio", "spread")}


SECTIONS: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "counted": counted,
    "formed": really_formed,
    "measured": measured,
    "inference": inference,
    "length": length,
    "generation": lambda args: generation.rows(args.against, args.cores[:1], args.rounds),
}


# The command
# ------------------------------------------------------------------------------------------------------------------


def load(path: Path) -> dict[str, Any]:
    """What was found so far."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def save(path: Path, found: dict[str, Any]) -> None:
    """Whole or not at all, sections in their order."""
    ordered = {name: found[name] for name in SECTIONS if name in found}
    with whole_file(path) as file:
        file.write((json.dumps(ordered, indent=1) + "\n").encode())


@contextmanager
def on_cores(cores: list[int]) -> Iterator[None]:
    """This process on these cores alone, where the system can do that."""
    before = available()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, before)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line, checked. Raises SideError."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--against", nargs="*", choices=["torch"], default=["torch"], help="nothing after it: generation without PyTorch")
    parser.add_argument("--cores", nargs="+", type=int, default=available(), help="the first is used")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where the page and its plots go")
    args = parser.parse_args(arguments)
    if args.rounds < 1:
        raise SideError(f"rounds must be at least 1, got {args.rounds}")
    if not set(args.cores) <= set(available()):
        raise SideError(f"--cores must be among those that this process may use, {available()}, got {args.cores}")
    if "generation" in args.only:
        check_installed(args.against)
    return args


def main(arguments: list[str] | None = None) -> int:
    """Measure, save after every row, and write the page. 2 if something is missing, fails or disagrees."""
    try:
        args = parse(arguments)
        found = load(args.out)
        with on_cores(args.cores[:1]), threadpool_limits(1), Bar(unit="row") as bar:
            for name in args.only:
                bar.set_description(name)
                run = {"date": date.today().isoformat(), "machine": described(), "libraries": machine(), "rounds": args.rounds}
                found[name] = {"run": run, "rows": []}
                for row in SECTIONS[name](args):
                    found[name]["rows"].append(row)
                    save(args.out, found)
                    bar.update()
                cost_page.write(args.docs, found)
    except SideError as failed:
        print(failed, file=sys.stderr)
        return 2
    print(f"{args.out}\n{args.docs / 'cost.md'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
