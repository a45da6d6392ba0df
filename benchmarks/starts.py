"""Where step sizes start: the published step, the default, and smaller ones, at two sizes.

    python benchmarks/starts.py [--size small demo full] [--seeds 0 1] [--out benchmarks/results/starts.json]

Trains models on the standard library that differ in the normalizer and the start alone, and reads
validation documents with each. About a quarter of a minute of one core for a small model and a
minute and a half for one of the demo's size; what the file has is not run again. It prints the
tables of docs/measurements.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fwl_ref.demo.run import FULL
from fwl_ref.files import whole_file
from fwl_ref.lm.corpus import pick
from fwl_ref.lm.data import load_corpus
from fwl_ref.lm.evaluate import bits_per_byte, fast_weights
from fwl_ref.lm.model import Config
from fwl_ref.lm.train import TrainSettings, train

RESULTS = Path(__file__).parent / "results" / "starts.json"
STEPS = 300
SIZES = {
    "small": (Config(width=32, layers=1, heads=2), TrainSettings(batch=4, window=128, steps=STEPS)),
    "demo": (FULL.config, FULL.training._replace(steps=STEPS)),
    "full": (FULL.config, FULL.training._replace(steps=2 * STEPS)),
}


class Start(NamedTuple):
    """What is changed."""

    config: dict[str, Any] = {}
    training: dict[str, Any] = {}


def starts(size: str) -> dict[str, Start]:
    """In words -> what is changed, at this size."""
    tokens = SIZES[size][1].batch * SIZES[size][1].window  # the weights of a batch
    found = {"plain": Start({"fast": False}), f"N = {tokens}, 0.01 (as published)": Start({"constant": float(tokens)})}
    if size == "small":
        found["batch, 0.01 (published)"] = Start({"normalizer": "batch"})
        found[f"N = 1, 0.01 / {tokens} (as published)"] = Start(training={"step_size": 0.01 / tokens})
    return found | {f"N = 1, {x}": Start(training={"step_size": x}) for x in (0.01, 0.001 if size == "small" else 0.003)}


def study(size: str, words: str, seed: int) -> dict[str, Any]:
    """Train one model, read documents; step sizes in units of N = 1."""
    clock, start = time.process_time(), starts(size)[words]
    config, settings = SIZES[size][0]._replace(**start.config), SIZES[size][1]._replace(seed=seed, **start.training)
    corpus = load_corpus("stdlib")
    progress = train(corpus, config, settings, label=f"{size}, {words}, seed {seed}", quiet=True)
    documents = pick(corpus.validation, 3, 2048)
    unit = settings.batch * settings.window if config.normalizer == "batch" else config.constant
    # a state cannot be carried where the normalizer counts the tokens of what is read
    ways = (False, True) if config.normalizer == "constant" else (False,)
    read = {c: bits_per_byte([fast_weights(progress.params, config, d, settings.window, carried=c) for d in documents]) for c in ways}
    return {
        "size": size,
        "start": words,
        "seed": seed,
        "training": float(np.mean([r.bits_per_byte for r in progress.history[-settings.steps // 3 :]])),
        "reset": read[False],
        "carried": read.get(True),
        "eta": {n: float(e) / unit for n, e in progress.params.eta._asdict().items()},
        "seconds": time.process_time() - clock,
    }


def table(rows: list[dict[str, Any]], size: str) -> str:
    """The rows of a size, those of one start together."""
    own = sorted((r for r in rows if r["size"] == size), key=lambda r: (list(starts(size)).index(r["start"]), r["seed"]))
    names = list(own[0]["eta"])
    lines = [f"| normalizer, start | seed | training | reset | carried | {' | '.join(names)} |", "|:--|" + "--:|" * (4 + len(names))]
    for r in own:
        eta = " | ".join(f"{e:.2g}" for e in r["eta"].values())
        carried = "-" if r["carried"] is None else f"{r['carried']:.2f}"
        lines.append(f"| {r['start']} | {r['seed']} | {r['training']:.2f} | {r['reset']:.2f} | {carried} | {eta} |")
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """What the figures depend on beside the program."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", nargs="+", default=["small", "demo"], choices=list(SIZES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    found = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {"run": machine(), "rows": []}
    done = {(r["size"], r["start"], r["seed"]) for r in found["rows"]}
    for size, seed in ((size, seed) for size in args.size for seed in args.seeds):
        for words in starts(size):
            if (size, words, seed) not in done:
                found["rows"].append(study(size, words, seed))
                with whole_file(args.out) as file:
                    file.write((json.dumps(found, indent=1) + "\n").encode())
    print("\n\n".join(table(found["rows"], size) for size in args.size))


if __name__ == "__main__":
    main()
