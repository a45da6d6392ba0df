"""NumPy against CuPy as the text, the width and the batch grow: forward pass and training step of
the language model, float32.

    python -m benchmarks.scaling --backend cupy --full     on a GPU: T 1k to 64k, D 128 to 1024, batch 1 to 64
    python -m benchmarks.scaling                           NumPy alone, small sizes: that the script runs, in half a minute

Both libraries run in turn within one process. A size that does not fit into ``--memory`` gigabytes
by the formula of ``fwl_ref.lm.footprint`` is left out and the line says so; NumPy is left out where
one training step would take more than ``--seconds`` at the speed seen so far.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from benchmarks.interleave import interleaved, machine
from fwl_ref.backend import BACKENDS, backend_target, peak_bytes
from fwl_ref.demo import cost
from fwl_ref.lm import footprint
from fwl_ref.lm.model import Config
from fwl_ref.lm.train import TrainSettings, begin
from fwl_ref.verify.device import forward, step, toy_corpus

FULL = ((1024, 4096, 16384, 65536), (128, 256, 512, 1024), (1, 8, 64))
SMALL = ((128, 512), (64, 128), (1, 4))


def sizes(full: bool) -> Iterator[tuple[int, int, int]]:
    """(T, D, batch), cheapest first within a width."""
    lengths, widths, batches = FULL if full else SMALL
    for width in widths:
        yield from sorted(((t, width, b) for t in lengths for b in batches), key=lambda size: (size[0] * size[2], size[0]))


def main(arguments: list[str] | None = None) -> None:
    """Print one line per size as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=BACKENDS, default="numpy")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=float, default=8.0, help="gigabytes there are, default 8")
    parser.add_argument("--seconds", type=float, default=20.0, help="the longest training step to wait for on NumPy, default 20")
    args = parser.parse_args(arguments)
    target, corpus, speed = backend_target(args.backend), toy_corpus(), 0.0
    print(f"two layers, heads of 64, chunk 64; {machine(args.backend)}\n")
    print("| T | D | batch | forward NumPy, s | CuPy, s | ratio | step NumPy, s | CuPy, s | ratio | memory stated | taken |")
    print("|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    for window, width, batch in sizes(args.full):
        config = Config(width=width, layers=2, heads=max(1, width // 64))
        settings = TrainSettings(batch=batch, window=window)
        together = None if args.backend == "numpy" else batch
        need = footprint.training(config, batch, window, together=together).total
        if need > 1e9 * args.memory:
            left_out = f"left out: {footprint.readable(need)} of {args.memory:g} GB"
            print(f"| {window} | {width} | {batch} | {left_out} | | | | | | | |", flush=True)
            continue
        work = 3 * batch * window * cost.fast(config, window)  # forward, and twice that backward
        names = ["numpy"] if not speed or work / speed <= args.seconds else []
        names += [args.backend] if args.backend != "numpy" else []
        starts = {name: begin(config, settings, name) for name in names}
        peak_bytes(target, reset=True)
        jobs = {f"{name} forward": lambda p=p, c=config, s=settings: forward(p, corpus, c, s) for name, p in starts.items()}
        jobs |= {f"{name} step": lambda p=p, c=config, s=settings: step(p, corpus, c, s) for name, p in starts.items()}
        times = interleaved(jobs, args.rounds) if jobs else {}
        if "numpy step" in times:
            speed = work / times["numpy step"].seconds
        cells = [str(window), str(width), str(batch)]
        for what in ("forward", "step"):
            pair = [times[f"{name} {what}"].seconds if f"{name} {what}" in times else None for name in BACKENDS]
            cells += [f"{seconds:.4f}" if seconds else "-" for seconds in pair] + [f"{pair[0] / pair[1]:.1f}" if all(pair) else "-"]
        taken = peak_bytes(target)
        print(f"| {' | '.join([*cells, footprint.readable(need), footprint.readable(taken) if taken else '-'])} |", flush=True)


if __name__ == "__main__":
    main()
