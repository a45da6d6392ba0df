"""How step sizes and decay are learned: the study behind docs/measurements.md.

    python benchmarks/step_sizes.py [--steps 600] [--seeds 0] [--out results/step_sizes.json]

Trains the demo's fast model in five variants on the standard library and reads validation documents
with each. About four minutes a seed on two cores. The plain Markdown tables it prints are the ones
in the docs.
"""

from __future__ import annotations

import argparse
import json
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from fwl_ref.demo.parallel import worker_pool
from fwl_ref.demo.run import FULL, pick
from fwl_ref.fwl import write_fwd
from fwl_ref.lm import train as training
from fwl_ref.lm.adamw import clip, global_norm, squares
from fwl_ref.lm.data import load_corpus, training_batch
from fwl_ref.lm.evaluate import bits_per_byte, fast_weights
from fwl_ref.lm.model import Config, Parameters, fast_settings, features_fwd, loss_and_gradient
from fwl_ref.lm.train import TrainSettings, train
from fwl_ref.tree import named_leaves

# name -> changes of the configuration, changes of the training settings
VARIANTS: dict[str, tuple[dict, dict]] = {
    "as shipped": ({}, {}),
    "step sizes free": ({}, {"nonnegative": False}),
    "first order": ({"first_order": True}, {}),
    "no decay": ({}, {"decay": 0.0}),
    "one norm": ({}, {}),  # all gradients clipped together, step sizes and decay among them
}


def study(name: str, steps: int, seed: int) -> dict[str, Any]:
    """Train one variant, watch every gradient, read validation documents."""
    config = FULL.config._replace(**VARIANTS[name][0])
    settings = FULL.training._replace(steps=steps, seed=seed, **VARIANTS[name][1])
    corpus, norms = load_corpus("stdlib"), []

    def watched(*args: Any) -> tuple:
        loss, grads = loss_and_gradient(*args)
        norms.append({n: float(np.sqrt(np.sum(np.square(g, dtype="float64")))) for n, g in named_leaves(grads)})
        return loss, clip(grads, settings.clip, global_norm(squares(grads))) if name == "one norm" else grads

    training.loss_and_gradient = watched
    progress = train(corpus, config, settings, label=f"{name}, seed {seed}")
    params, documents = progress.params, pick(corpus.validation, *FULL.validation)
    read = {c: bits_per_byte([fast_weights(params, config, d, settings.window, carried=c) for d in documents]) for c in (False, True)}
    total = np.array([r.grad_norm for r in progress.history])
    return {
        "variant": name,
        "seed": seed,
        "training": float(np.mean([r.bits_per_byte for r in progress.history[-steps // 3 :]])),
        "reset": read[False],
        "carried": read[True],
        "eta": {n: float(e) for n, e in params.eta._asdict().items()},
        "decay": float(params.decay),
        "norm": dict(zip(("median", "p99", "max"), np.percentile(total, [50, 99, 100]).tolist(), strict=True)),
        "largest share": largest_shares(norms),
        **mean_direction(params, config, settings, corpus),
        **spikes(params, config, settings, corpus),
    }


def largest_shares(norms: list[dict[str, float]]) -> dict[str, float]:
    """In the ten steps with the largest gradients, each parameter's mean share of the squared norm;
    the largest three.
    """
    top = sorted(norms, key=lambda step: -sum(v * v for v in step.values()))[:10]
    share = {n: float(np.mean([step[n] ** 2 / sum(v * v for v in step.values()) for step in top])) for n in top[0]}
    return dict(sorted(share.items(), key=lambda item: -item[1])[:3])


def mean_direction(params: Parameters, config: Config, settings: TrainSettings, corpus: Any) -> dict[str, float]:
    """How much of the features and of the hidden activations is one direction shared by all tokens."""
    batch = training_batch(corpus.validation, 8, settings.window, 5, 0)
    (x, _), _ = features_fwd(params, batch.tokens, config)
    (memory, _), _ = write_fwd(x, batch.labels, batch.weights, params.block, fast_settings(config))
    flat = np.reshape(x, (-1, x.shape[-1])), np.reshape(memory.a, (-1, memory.a.shape[-1]))
    mean = [float(np.sum(np.square(np.mean(v, axis=0)))) for v in flat]
    return {"x": float(np.mean(np.sum(flat[0] ** 2, axis=1))), "x mean": mean[0], "a mean": mean[1]}


def spikes(params: Parameters, config: Config, settings: TrainSettings, corpus: Any, count: int = 120) -> dict[str, Any]:
    """What goes with a large gradient of eta_W1 on training batches: one extreme token, a long run
    of one byte, or writes that agree?
    """
    rows = []
    for step in range(count):
        tokens, labels, weights = training_batch(corpus.train, settings.batch, settings.window, settings.seed, step)
        _, grads = loss_and_gradient(params, tokens, labels, weights, config)
        (x, _), _ = features_fwd(params, tokens, config)
        (memory, _), res = write_fwd(x, labels, weights, params.block, fast_settings(config))
        longest = max(len(list(run)) for row in tokens for _, run in groupby(row))
        each = np.linalg.norm(memory.dh, axis=-1)
        together = np.linalg.norm(np.sum(memory.dh, axis=1), axis=-1)
        rows.append((abs(float(grads.eta.W1)), np.max(res.norm.rstd), np.max(each), longest, np.max(together)))
    logs = np.log(np.array(rows) + 1e-12)
    names = ("largest rstd of a token", "largest norm of dh of a token", "longest run of one byte", "norm of the sum of dh of a window")
    return {"correlation": {n: float(np.corrcoef(logs[:, 0], logs[:, i + 1])[0, 1]) for i, n in enumerate(names)}}


def report(rows: list[dict[str, Any]]) -> str:
    """Markdown tables."""
    lines = ["| variant | seed | training | reset | carried | W1 | b1 | W2 | b2 | gain | bias | decay | norm: median, 99 %, largest |"]
    lines.append("|:--|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|:--|")
    for r in rows:
        eta = " | ".join(f"{e:.4f}" for e in r["eta"].values())
        norm = ", ".join(f"{v:.1f}" for v in r["norm"].values())
        bits = " | ".join(f"{r[k]:.3f}" for k in ("training", "reset", "carried"))
        lines.append(f"| {r['variant']} | {r['seed']} | {bits} | {eta} | {r['decay']:.4f} | {norm} |")
    shares = "largest shares of the ten largest gradients"
    lines += ["", f"| variant | seed | E x.x | mean x . mean x | eta_W1 times that | plus eta_b1 | {shares} |"]
    lines.append("|:--|--:|--:|--:|--:|--:|:--|")
    for r in rows:
        shared = r["eta"]["W1"] * r["x mean"]
        share = ", ".join(f"{n} {100 * v:.0f} %" for n, v in r["largest share"].items())
        sizes = f"{r['x']:.0f} | {r['x mean']:.0f} | {shared:.4f} | {shared + r['eta']['b1']:.4f}"
        lines.append(f"| {r['variant']} | {r['seed']} | {sizes} | {share} |")
    runs = " | ".join(f"{r['variant']}, {r['seed']}" for r in rows)
    lines += ["", f"| correlation of log gradient of eta_W1 with the log of | {runs} |"]
    lines.append("|:--|" + "--:|" * len(rows))
    for n in rows[0]["correlation"]:
        lines.append(f"| {n} | " + " | ".join(f"{r['correlation'][n]:.2f}" for r in rows) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run all variants, two at a time."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("results/step_sizes.json"))
    args = parser.parse_args()
    with worker_pool(2) as pool:
        jobs = [pool.submit(study, name, args.steps, seed) for seed in args.seeds for name in VARIANTS]
        rows = [job.result() for job in jobs]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(rows, indent=1) + "\n")
    print(report(rows))


if __name__ == "__main__":
    main()
