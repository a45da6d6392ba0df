"""This project beside PyTorch eager and JAX jit, on the same weights and text: time and memory.

    make bench                                       everything, on a machine that does nothing else
    python -m benchmarks.bench --size small --only fast_step --threads 1 --pairs 2 --out /tmp/trial.json

First all sides compute loss and gradients in float64. Nothing is timed unless they agree. Then, in
float32, each side has a fresh process for each work, pinned to the given cores, in an environment
that tunes nothing. They take turns, A B B A, and a ratio is the median over the rounds of one
round's times. PyTorch is told how many threads to take; the others find that many cores.

A forward pass is for reading: this project's ``model_score``, the others without a graph. A step is
the loss and all gradients. Memory is what a process holds at most beyond what it held with its
libraries and data loaded. A size that was measured replaces that size in the results.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from contextlib import ExitStack
from datetime import date
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_info

from benchmarks.agreement import check
from benchmarks.interleave import in_turn
from benchmarks.problem import LLAMA_WORKS, SIZES, WORKS, Llama, Size, counted, problem, works
from benchmarks.processes import ROOT, SIDES, US, Ask, SideError, check_installed, process
from benchmarks.results import PAIRS, Measured, save, summary, table
from fwl_ref.lm.bar import Bar

ROUNDED = 1e-4  # float32: of the loss; what is timed is what was checked
PRODUCT = 2048  # rows of the square matrices whose product measures the machine


def product_peak(sides: list[str], cores: list[int]) -> float:
    """Multiply-adds per second of the fastest square product that any side forms."""
    best = float("inf")
    for name in sides:
        if name != "jax":
            with process(name, cores) as ask:
                best = min(best, *(ask("product", PRODUCT) for _ in range(6)))
    return PRODUCT**3 / best


def measure(size: Size | Llama, work: str, sides: list[str], cores: list[int], pairs: int, loss: float, bar: Any) -> Measured:
    """Rounds of all sides in turn. Raises SideError if a side's loss is not what was checked."""
    given = problem(size, work)

    def clock(name: str, ask: Ask) -> float:
        seconds, found = ask("clock")
        if not abs(found - loss) <= ROUNDED * abs(loss):
            raise SideError(f"{work}: {name} must lose {loss:.6g} within {ROUNDED:g} of it in float32, got {found:.6g}")
        return seconds

    with ExitStack() as stack:
        asks = {name: stack.enter_context(process(name, cores)) for name in sides}
        for ask in asks.values():
            ask("load", given, len(cores))
        clocks = {name: lambda name=name, ask=ask: clock(name, ask) for name, ask in asks.items()}
        return Measured(in_turn(clocks, pairs, bar.update), {name: ask("memory") for name, ask in asks.items()})


def available() -> list[int]:
    """The cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def described() -> str:
    """The machine in words."""
    kernels = sorted({f"{i['internal_api']} {i.get('architecture')}" for i in threadpool_info()})
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    processor = models[0] if models else platform.processor()
    return ", ".join([f"{platform.system()} {platform.machine()}", processor, f"{os.cpu_count()} cores", *kernels])


def versions(sides: list[str], cores: list[int]) -> dict[str, str]:
    """Of everything that is measured."""
    found = {"python": platform.python_version()}
    for name in sides:
        with process(name, cores) as ask:
            found |= ask("versions")
    return found


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line, checked. Raises SideError."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--only", nargs="+", choices=[*WORKS, *LLAMA_WORKS], default=[*WORKS, *LLAMA_WORKS], help="the works to do")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--pairs", type=int, default=PAIRS, help=f"rounds; a result needs at least {PAIRS}, the default")
    parser.add_argument("--against", nargs="+", choices=[name for name in SIDES if name != US], default=["torch", "jax"])
    parser.add_argument("--cores", nargs="+", type=int, default=available(), help="the first is used for one thread, the first two for two")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "bench.json")
    args = parser.parse_args(arguments)
    if min(args.pairs, *args.threads) < 1:
        raise SideError(f"pairs and threads must be at least 1, got {args.pairs} and {args.threads}")
    if max(args.threads) > len(args.cores):
        raise SideError(f"each thread needs a core, got {max(args.threads)} threads and the cores {args.cores}: lower --threads")
    if not set(args.cores) <= set(available()):
        raise SideError(f"--cores must be among those that this process may use, {available()}, got {args.cores}")
    check_installed(args.against)
    return args


def main(arguments: list[str] | None = None) -> int:
    """Check, time, print and save. 2 if a side is missing, fails or disagrees."""
    try:
        args = parse(arguments)
        sides = [US, *args.against]
        run = {"date": date.today().isoformat(), "versions": versions(sides, args.cores[:1]), "machine": described(), "cores": args.cores}
        run |= {"pairs": args.pairs, "threads": args.threads}
        todo = {name: works(SIZES[name], args.only) for name in args.size}
        todo = {name: some for name, some in todo.items() if some}
        rounds = sum(map(len, todo.values())) * (1 + len(args.threads) * (args.pairs + 1))
        checks, found, start = {}, {}, time.perf_counter()
        with Bar(total=rounds, unit="round") as bar:
            for name, some in todo.items():
                for work in some:
                    bar.set_description(f"check {name} {work}")
                    checks[name, work] = check(SIZES[name], work, sides, args.cores[:1])
                    bar.update()
            peaks = {threads: product_peak(sides, args.cores[:threads]) for threads in args.threads}
            for name, some in todo.items():
                measured: dict[int, dict[str, Measured]] = {threads: {} for threads in args.threads}
                for threads, work in ((threads, work) for threads in args.threads for work in some):
                    bar.set_description(f"{name} {work}, threads: {threads}")
                    cores, loss = args.cores[:threads], checks[name, work].loss
                    measured[threads][work] = measure(SIZES[name], work, sides, cores, args.pairs, loss, bar)
                adds = {work: counted(SIZES[name], work) for work in some}
                found[name] = summary({work: checks[name, work] for work in some}, measured, peaks, adds) | {"run": run}
                save(args.out, {name: found[name]})
        for name, size in found.items():
            print("\n".join(table(name, size)))
        print(f"\n{args.out}, after {time.perf_counter() - start:.0f} s")
    except SideError as failed:
        print(failed, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
