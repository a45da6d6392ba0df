"""Where step sizes start: the published step, steps in between, and the default.

    python benchmarks/starts.py [--steps 300] [--seeds 0 1]

Trains small models on the standard library that differ in the normalizer and the start alone, and
reads validation documents with each. About three minutes on one core. It prints the table of
docs/measurements.md.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from fwl_ref.lm.corpus import pick
from fwl_ref.lm.data import load_corpus
from fwl_ref.lm.evaluate import bits_per_byte, fast_weights
from fwl_ref.lm.model import Config
from fwl_ref.lm.train import TrainSettings, train

CONFIG = Config(width=32, layers=1, heads=2)
TRAINING = TrainSettings(batch=4, window=128)
TOKENS = TRAINING.batch * TRAINING.window  # the weights of a batch

# in words -> changes of the configuration, changes of the training settings
STARTS: dict[str, tuple[dict, dict]] = {
    "plain": ({"fast": False}, {}),
    "batch, 0.01 (published)": ({"normalizer": "batch"}, {}),
    f"N = {TOKENS}, 0.01 (the same)": ({"constant": float(TOKENS)}, {}),
    f"N = 1, 0.01 / {TOKENS}": ({}, {"step_size": 0.01 / TOKENS}),
    "N = 1, 0.001": ({}, {"step_size": 0.001}),
    "N = 1, 0.01 (default)": ({}, {}),
}


def study(start: str, steps: int, seed: int) -> dict[str, Any]:
    """Train one model, read documents with the state reset every window; step sizes in units of N = 1."""
    config, settings = CONFIG._replace(**STARTS[start][0]), TRAINING._replace(steps=steps, seed=seed, **STARTS[start][1])
    corpus = load_corpus("stdlib")
    progress = train(corpus, config, settings, label=f"{start}, seed {seed}", quiet=True)
    documents = pick(corpus.validation, 3, 2048)
    unit = TOKENS if config.normalizer == "batch" else config.constant
    return {
        "start": start,
        "seed": seed,
        "training": float(np.mean([r.bits_per_byte for r in progress.history[-max(1, steps // 3) :]])),
        "reset": bits_per_byte([fast_weights(progress.params, config, d, settings.window, carried=False) for d in documents]),
        "eta": {n: float(e) / unit for n, e in progress.params.eta._asdict().items()},
    }


def report(rows: list[dict[str, Any]]) -> str:
    """The table."""
    names = list(rows[0]["eta"])
    lines = [f"| normalizer, start | seed | training | reset | {' | '.join(names)} |", "|:--|" + "--:|" * (3 + len(names))]
    for r in rows:
        eta = " | ".join(f"{e:.2g}" for e in r["eta"].values())
        lines.append(f"| {r['start']} | {r['seed']} | {r['training']:.2f} | {r['reset']:.2f} | {eta} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    args = parser.parse_args()
    print(report([study(start, args.steps, seed) for start in STARTS for seed in args.seeds]))


if __name__ == "__main__":
    main()
