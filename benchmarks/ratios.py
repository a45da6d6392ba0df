"""What the chunk size costs, and what each way of reading costs, as ratios within one run.

    OPENBLAS_NUM_THREADS=1 python -m benchmarks.ratios [--width 128] [--window 256] [--rounds 5] [--backend numpy]

Half a minute on one core. The first table divides by a chunk of 64, the second by static reading;
beside the measured ratio stands the ratio of multiply-adds by formula.
"""

from __future__ import annotations

import argparse

import numpy as np

from benchmarks.interleave import interleaved, machine
from fwl_ref.backend import BACKENDS
from fwl_ref.demo import cost
from fwl_ref.dynamic_evaluation import Descent
from fwl_ref.lm import evaluate
from fwl_ref.lm.data import Document
from fwl_ref.lm.device import to_backend
from fwl_ref.lm.model import Config, initialize, loss_and_gradient, model_score

CHUNKS = (64, 8, 16, 32, 128, None)


def chunk_sizes(config: Config, window: int, rounds: int, backend: str) -> None:
    """Forward pass and gradient of the model for several chunk sizes."""
    params = to_backend(initialize(config, step_size=0.01), backend)
    (text,) = to_backend((np.random.default_rng(0).integers(0, 256, (1, window)),), backend)
    configs = {chunk: config._replace(chunk=chunk) for chunk in CHUNKS}
    forward = interleaved({str(c): lambda f=f: model_score(params, text, text, None, f).nll for c, f in configs.items()}, rounds)
    gradient = interleaved({str(c): lambda f=f: loss_and_gradient(params, text, text, None, f)[0] for c, f in configs.items()}, rounds)
    print("| chunk | forward, ms | ratio | gradient, ms | ratio | multiply-adds |\n|--:|--:|--:|--:|--:|--:|")
    for chunk, fixed in configs.items():
        a, b = forward[str(chunk)], gradient[str(chunk)]
        adds = cost.fast(fixed, window) / cost.fast(configs[CHUNKS[0]], window)
        print(
            f"| {chunk or 'T'} | {1e3 * a.seconds:.1f} | {a.ratio:.2f} ± {a.spread:.2f} "
            f"| {1e3 * b.seconds:.1f} | {b.ratio:.2f} ± {b.spread:.2f} | {adds:.2f} |"
        )


def ways_of_reading(config: Config, window: int, rounds: int, backend: str, segment: int = 64) -> None:
    """Static, fast and dynamic reading of one document of four windows."""
    params = to_backend(initialize(config, step_size=0.01), backend)
    document = Document("made up", np.random.default_rng(1).integers(97, 123, 4 * window + 1).astype("uint8"))
    dynamic = {"descent": Descent(0.01), "segment": segment}
    block = {"rate": 0.01, "decay": 0.0, "segment": segment}
    ways = {  # name -> function, its options, multiply-adds of a window
        "static": (evaluate.static, {}, cost.static(config, window)),
        "fast, reset": (evaluate.fast_weights, {}, cost.fast(config, window, alone=True)),
        "fast, carried": (evaluate.fast_weights, {"carried": True}, cost.fast(config, window, carried=True)),
        "dynamic, whole model": (evaluate.dynamic, dynamic, cost.dynamic(config, window, segment)),
        "dynamic, block alone": (evaluate.dynamic_block, block, cost.dynamic_block(config, window)),
    }
    jobs = {
        name: lambda read=read, options=options: read(params, config, document, window, **options)
        for name, (read, options, _) in ways.items()
    }
    times = interleaved(jobs, rounds)
    print("| reading | microseconds per byte | ratio | multiply-adds |\n|:--|--:|--:|--:|")
    for name, (_, _, adds) in ways.items():
        t = times[name]
        print(f"| {name} | {1e6 * t.seconds / (4 * window):.1f} | {t.ratio:.2f} ± {t.spread:.2f} | {adds / ways['static'][2]:.2f} |")


def main(arguments: list[str] | None = None) -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("width", 128), ("layers", 2), ("window", 256), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--backend", choices=BACKENDS, default="numpy")
    args = parser.parse_args(arguments)
    config = Config(width=args.width, layers=args.layers, heads=max(1, args.width // 64))
    print(f"{args.layers} layers, width {args.width}, windows of {args.window}; {machine(args.backend)}\n")
    chunk_sizes(config, args.window, args.rounds, args.backend)
    print()
    ways_of_reading(config, args.window, args.rounds, args.backend)


if __name__ == "__main__":
    main()
