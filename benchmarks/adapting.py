"""What the ways of docs/adapt.md take on one document, beside the model as it is: interleaved.

    python -m benchmarks.adapting [--backend cupy] [--out FILE]

SmolLM2-135M reads 2,048 tokens at a window of 512. Step sizes are small and nothing is tuned: time
does not depend on them. Side by side, the same tokens are read as several documents. The
multiply-adds are those of the table of ``adapt``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import numpy as np

from benchmarks.interleave import Times, interleaved, machine
from fwl_ref.adapt.descent import Step, adapted_losses, top_of, top_score, whole_inputs, whole_score
from fwl_ref.adapt.layer import layer_losses, start
from fwl_ref.adapt.refreshed import refreshed_losses
from fwl_ref.adapt.settings import head_products, settings_for, trunk_products
from fwl_ref.adapt.trunk import Model, features, model_on, plain_losses
from fwl_ref.adapt.ways_descent import gradient_products
from fwl_ref.backend import Array, like, namespace
from fwl_ref.fast_matrix import FastMatrix
from fwl_ref.key_map import KeyMap, key_fwd
from fwl_ref.lm.device import to_backend
from fwl_ref.lm.neural_cache import cache_probability
from fwl_ref.lm.table import save_text
from fwl_ref.norm import norm_fwd
from fwl_ref.pretrained.load import load

WINDOW, SEGMENT, LAYERS, TOGETHER, SMALL = 512, 128, 4, 4, 1e-6


def jobs(model: Model, ids: Array, long: int, chunk: int, refresh: int) -> dict[str, Callable[[], Array]]:
    """Each way as a function that reads ``ids`` (T+1) from the tokens on and returns its losses; the model as it is comes first.

    ``long`` is the longer context.
    """
    labels, D = like(ids[1:], model.U), model.config.width
    key = KeyMap(model.bias, like(np.eye(D), model.U, model.U.dtype))
    first, eta = FastMatrix(key.A * 0, model.bias), FastMatrix(SMALL, SMALL)
    learned = start(key, 0.0)

    def plain(window: int) -> Array:
        return plain_losses(model, features(model, ids, window), labels)

    def cache() -> Array:
        x = features(model, ids, WINDOW)
        n, _ = norm_fwd(x, model.parameters.gain, model.bias, model.config.eps, "rms")  # (T,D)
        return plain_losses(model, x, labels) + SMALL * cache_probability(n, labels, 1.0 / D)

    def stale() -> Array:
        return layer_losses(learned, features(model, ids, WINDOW), labels, model, eta, chunk)[0]

    def true(documents: int) -> Array:
        x = features(model, ids, WINDOW)
        x, words = (namespace(a).reshape(a, (documents, -1, *a.shape[1:])) for a in (x, labels))  # (B,T/B,D), (B,T/B)
        k, _ = key_fwd(x, key, True)  # (B,T/B,D)
        losses = refreshed_losses(model, x, k, words, first, eta, refresh, values=key.A)  # (B,T/B)
        return namespace(losses).reshape(losses, labels.shape)

    def last() -> Array:
        below = features(model, ids, WINDOW, model.config.layers - LAYERS)
        return adapted_losses(top_score(model), top_of(model, LAYERS), below, labels, Step(SMALL), WINDOW, SEGMENT)

    def all_of() -> Array:
        inputs = whole_inputs(ids, model.U)
        return adapted_losses(whole_score(model), model.parameters, inputs, labels, Step(SMALL), WINDOW, SEGMENT)

    return {
        "as it is": lambda: plain(WINDOW), f"context {long}": lambda: plain(long), "neural cache": cache,
        "fast, stale gradients": stale, "fast, true gradients": lambda: true(1),
        f"fast, true gradients, {TOGETHER} documents side by side": lambda: true(TOGETHER),
        f"dynamic evaluation, SGD, last {LAYERS} layers": last,
        "dynamic evaluation, SGD, all parameters": all_of,
    }  # fmt: skip


def counted(model: Model, tokens: int, long: int) -> list[float]:
    """Multiply-adds of each way of ``jobs`` over those of the model as it is."""
    c, D = model.config, model.config.width
    head, plain = head_products(c), head_products(c) + trunk_products(c, WINDOW)
    adds = [
        plain, head + trunk_products(c, long), plain + tokens / 2 * D, plain + 2 * head + 4 * D * D,
        *(2 * [plain + head + 4 * D * D]), gradient_products(c, WINDOW, LAYERS), gradient_products(c, WINDOW, None),
    ]  # fmt: skip
    return [a / plain for a in adds]


def table(times: dict[str, Times], products: list[float]) -> Iterator[str]:
    """Lines of Markdown."""
    yield "| way | seconds | beside the model as it is | multiply-adds |\n|:--|--:|--:|--:|"
    for (name, t), p in zip(times.items(), products, strict=True):
        yield f"| {name} | {t.seconds:.3f} | {t.ratio:.2f} ± {t.spread:.2f} | {p:.2f} |"


def main(arguments: list[str] | None = None) -> None:
    """Parse, time, print and save."""
    parser = argparse.ArgumentParser(description="what adapting takes beside the model as it is")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--backend", default="numpy")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="a JSON file for the table")
    args = parser.parse_args(arguments)
    found, s = load(args.model), settings_for(args.backend, False)
    model = model_on(to_backend(found.parameters, args.backend), found.config, s.at_once, s.block)
    ids = np.random.default_rng(0).integers(0, found.config.vocabulary, args.tokens + 1)
    print(machine(args.backend), flush=True)
    work = jobs(model, ids, args.tokens, s.chunk, s.refresh)
    times = interleaved(work, args.rounds)
    lines = list(table(times, counted(model, args.tokens, args.tokens)))
    print("\n".join(lines), flush=True)
    if args.out:
        run = {"date": date.today().isoformat(), "machine": machine(args.backend), "tokens": args.tokens, "rounds": args.rounds}
        save_text(args.out, json.dumps(run | {"rows": lines[1:]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
