"""Many machines: what a training step would cost on N ranks, computed from measured steps of one rank and stated networks.

    python -m benchmarks.ranks                                   the tables and the figure of docs/ranks.md, from MEASURED below
    python -m benchmarks.ranks --measure --backend numpy         seconds of a step of one rank, for MEASURED
    mpiexec -n 4 python -m benchmarks.ranks --measure            seconds of a step on ranks of one machine

Nothing that the first command prints or draws was measured on more than one machine.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from benchmarks.interleave import machine
from fwl_ref.backend import BACKENDS, wait
from fwl_ref.lm import footprint
from fwl_ref.lm.data import training_batch
from fwl_ref.lm.model import Config
from fwl_ref.lm.ranks import everybody, own_device, started
from fwl_ref.lm.train import TrainSettings, advance, begin
from fwl_ref.verify.device import toy_corpus

FIGURE = Path(__file__).resolve().parent.parent / "fwl_ref" / "figures" / "ranks.svg"
SIZES = {"small": (128, 256), "large": (512, 1024)}  # width, window; three layers, as the demo's models
RANKS = tuple(2**i for i in range(11))  # 1 to 1,024
STRONG = 1024  # sequences in a batch that is divided


class Step(NamedTuple):
    """What was measured of one rank."""

    seconds: dict[int, float]  # of a step, by the number of sequences
    draw: float  # seconds to draw a sequence of a batch, which every rank does for all of them

    def of(self, batch: float) -> float:
        """Seconds of a step with ``batch`` sequences: on a straight line between neighbours, beyond all on the line from first to last."""
        known = sorted(self.seconds)
        low, high = next(((a, b) for a, b in pairwise(known) if batch <= b), (known[0], known[-1]))
        slope = (self.seconds[high] - self.seconds[low]) / (high - low)
        return self.seconds[low] + (batch - low) * slope


class Network(NamedTuple):
    """A message of n bytes takes ``latency`` + n / ``bandwidth`` seconds."""

    latency: float  # s
    bandwidth: float  # bytes/s


# stated, not measured: round figures for such networks between two processes, MPI included
NETWORKS = {"10 Gbit/s Ethernet": Network(50e-6, 1.25e9), "200 Gbit/s InfiniBand": Network(2e-6, 25e9)}
COPY = 20e9  # bytes/s between a GPU and its host: where MPI cannot read from the GPU the sum goes there and back

# by --measure on 2026-11-26: 16 cores of an Intel Xeon (OpenBLAS SkylakeX) and an NVIDIA H200, Python 3.12.3, NumPy 2.5.2, CuPy 14.2.0;
# a rank is one core (OPENBLAS_NUM_THREADS=1) or one GPU; medians of 5 steps, of 2 for numpy, large
MEASURED = {
    ("numpy", "small"): Step({1: 0.0561, 2: 0.0896, 4: 0.1746, 8: 0.3303}, 4.2e-6),
    ("numpy", "large"): Step({1: 1.4702, 2: 2.8544}, 6.2e-6),
    ("cupy", "small"): Step({1: 0.0797, 4: 0.0813, 16: 0.0869, 64: 0.0836}, 4.3e-6),
    ("cupy", "large"): Step({1: 0.2030, 4: 0.2230, 16: 0.2345, 64: 0.5796}, 5.4e-6),
}


def config_of(size: str) -> Config:
    """The model of a size."""
    return Config(width=SIZES[size][0], layers=3, heads=max(2, SIZES[size][0] // 64))


def gradient_bytes(size: str) -> int:
    """What a rank sends into a sum: float32 gradients and the loss."""
    return 4 * (footprint.count_parameters(config_of(size)) + 1)


def ring(n: int, size: float, net: Network) -> float:
    """Seconds to sum ``size`` bytes over n ranks in a ring: n - 1 pieces round to sum, n - 1 round to tell."""
    return 2 * (n - 1) * (net.latency + size / n / net.bandwidth)


def halving(n: int, size: float, net: Network) -> float:
    """Seconds by recursive halving to sum and doubling to tell: the bytes of the ring, with a tree's number of messages."""
    return 2 * math.ceil(math.log2(n)) * net.latency + 2 * (n - 1) / n * size / net.bandwidth


def tree(n: int, size: float, net: Network) -> float:
    """Seconds by recursive doubling: everything in every message, for what is small."""
    return math.ceil(math.log2(n)) * (net.latency + size / net.bandwidth)


def summing(n: int, size: float, net: Network) -> float:
    """Seconds of the fastest of the three."""
    return min(f(n, size, net) for f in (ring, halving, tree))


def step(n: int, batch: float, key: tuple[str, str], net: Network) -> float:
    """Seconds of a step of n ranks with ``batch`` sequences each. Nothing overlaps: the sum begins when the backward pass has ended."""
    one, bytes_ = MEASURED[key], gradient_bytes(key[1])
    copies = 2 * bytes_ / COPY if key[0] == "cupy" and n > 1 else 0.0
    return one.of(batch) + (n - 1) * batch * one.draw + copies + summing(n, bytes_, net)


def weak(n: int, key: tuple[str, str], net: Network, batch: int = 4) -> float:
    """Efficiency with ``batch`` sequences a rank however many ranks: the step of one rank over that of n."""
    return step(1, batch, key, net) / step(n, batch, key, net)


def strong(n: int, key: tuple[str, str], net: Network) -> float:
    """How many times faster n ranks are than one with a batch of ``STRONG`` sequences."""
    return step(1, STRONG, key, net) / step(n, STRONG / n, key, net)


def turning_point(key: tuple[str, str], net: Network) -> int:
    """The largest number of ranks, a power of two, with which doubling them has still paid by a fifth."""
    paid = [n for n in RANKS[1:] if strong(n, key, net) >= 1.2 * strong(n // 2, key, net)]
    return max(paid, default=1)


def tables() -> Iterator[str]:
    """The lines of docs/ranks.md."""
    yield "| size | bytes a rank sends into a sum | network | ring, 8 ranks | ring, 1,024 | halving and doubling, 8 | 1,024 |"
    yield "|:--|--:|:--|--:|--:|--:|--:|"
    for size in SIZES:
        total = gradient_bytes(size)
        for name, net in NETWORKS.items():
            cells = [f"{1e3 * f(n, total, net):.2f} ms" for f in (ring, halving) for n in (8, 1024)]
            yield f"| {size} | {total:,} | {name} | {' | '.join(cells)} |"
    yield ""
    yield "| one rank | size | network | weak: efficiency at 8 | 64 | 1,024 | strong: times faster at 8 | 64 | 1,024 | pays until |"
    yield "|:--|:--|:--|--:|--:|--:|--:|--:|--:|--:|"
    for key in MEASURED:
        for name, net in NETWORKS.items():
            cells = [f"{weak(n, key, net):.0%}" for n in (8, 64, 1024)] + [f"{strong(n, key, net):.1f}" for n in (8, 64, 1024)]
            yield f"| {key[0]} | {key[1]} | {name} | {' | '.join(cells)} | {turning_point(key, net):,} ranks |"


def draw(path: Path = FIGURE) -> None:
    """Weak and strong scaling to 1,024 ranks."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    with plt.rc_context({"svg.hashsalt": "fwl_ref", "svg.fonttype": "none", "font.size": 9}):
        figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
        for i, key in enumerate(MEASURED):
            for (name, net), style in zip(NETWORKS.items(), ("--", "-"), strict=True):
                label = f"{key[0]}, {key[1]}, {name}"
                axes[0].plot(RANKS, [weak(n, key, net) for n in RANKS], style, color=f"C{i}", label=label)
                axes[1].plot(RANKS, [strong(n, key, net) for n in RANKS], style, color=f"C{i}")
        axes[1].plot(RANKS, RANKS, ":", color="black", label="ideal")
        axes[0].set(xscale="log", ylim=(0, 1.05), xlabel="ranks", ylabel="efficiency", title="4 sequences a rank (computed)")
        axes[1].set(xscale="log", yscale="log", xlabel="ranks", ylabel="times faster", title=f"{STRONG:,} sequences divided (computed)")
        for axis in axes:
            axis.set_xscale("log", base=2)
            axis.grid(alpha=0.3)
        axes[0].legend(fontsize=7)
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def measure(backend: str, rounds: int, sizes: list[str], batches: list[int]) -> None:
    """Print the seconds of a step for every size, and of drawing; on ranks, those of the slowest."""
    ranks, corpus = started(), toy_corpus()
    own_device(ranks, backend)
    if ranks.first:
        print(f"{ranks.size} ranks, three layers; {machine(backend)}\n", flush=True)
    for size in sizes:
        config, window = config_of(size), SIZES[size][1]
        for batch in batches:
            settings = TrainSettings(batch=batch * ranks.size, window=window)
            params, adam, _ = begin(config, settings, backend)
            seconds = []
            for _ in range(rounds + 1):
                if ranks.size > 1:
                    everybody(ranks)
                clock = time.perf_counter()
                params, adam, row = advance(params, adam, corpus, config, settings, ranks)
                wait(row)
                seconds.append(time.perf_counter() - clock)
            if ranks.first:
                print(f"{backend} {size}: {batch} a rank: {statistics.median(seconds[1:]):.4f} s", flush=True)
        clock = time.perf_counter()
        for i in range(10):
            training_batch(corpus.train, 64, window, 0, i)
        if ranks.first:
            print(f"{backend} {size}: drawing a sequence: {(time.perf_counter() - clock) / 640:.2e} s", flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Print the tables and draw, or measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="time steps here instead")
    parser.add_argument("--backend", choices=BACKENDS, default="numpy")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 2, 4, 8], help="sequences of a rank")
    args = parser.parse_args(arguments)
    if args.measure:
        measure(args.backend, args.rounds, args.sizes, args.batches)
        return
    print("\n".join(tables()))
    draw()


if __name__ == "__main__":
    main()
