"""What a row will cost, before it is made: multiply-adds by formula (``demo/cost.py``), times the
seconds of one that were measured on this machine a moment ago.

Every kind of work has a speed of its own: large products are faster than small ones. What is no
matrix product is counted in bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from ..backend import host
from ..demo import cost
from ..lm import footprint
from ..lm.corpus import Corpus, Document
from ..lm.data import Batch, training_batch
from ..lm.model import Config, initialize, loss_and_gradient
from .learner import learner_of
from .make import settings_of, window_of
from .memory import HEADS, RULES, memory_products
from .ngram import ngram_nats
from .row import Row
from .settings import Sizes
from .ways import WAYS, Given
from .where import frequencies

BACKWARD = 3  # a training step in units of a reading
SAMPLE = 4096  # bytes of text to measure what is no matrix product
WORKS = {
    "rms": "sgd",
    "block_rms": "block",
    "untrained": "fast",
}  # its speed


# one of each kind of top, to measure its speed
KINDS: dict[str, dict[str, Any]] = {
    **{rule: {"name": "memory", "rule": rule, "heads": HEADS} for rule in RULES},
    "sequential": {"name": "sequential", "segment": 64, "within": True},
    "leak": {"name": "leak"},
    "momentum": {"name": "momentum", "mu": 0.9, "decay": 0.005},
    "window": {"name": "window", "tokens": 64},
    "decays": {"name": "decays"},
    "scales": {"name": "scales"},
}


class Work(NamedTuple):
    """What kind of work, and how much."""

    kind: str
    amount: float  # multiply-adds, or bytes


def work(row: Row, train_bytes: int = 0) -> list[Work]:
    """The parts of a row. ``train_bytes`` is the size of the corpus' training part."""
    if row.kind == "outside":
        return [Work("n-grams", row.settings["test"][0] * row.settings["test"][1])]
    if row.kind == "where":
        return [Work("where", train_bytes)]
    config, training = settings_of(row)
    if row.kind == "train":
        one = BACKWARD * cost.fast(config, training.window)
        if not config.fast:
            one = BACKWARD * cost.static(config, training.window)
        kind = "train fast" if config.fast else "train plain"
        if row.settings.get("taught", {}).get("carried"):  # one half is read, the other trained on
            one = one * (1 + BACKWARD) // (2 * BACKWARD)
        if "top" in row.settings:
            top = row.settings["top"]
            kind = f"train {kind_of(top)}"
            one = BACKWARD * top_products(config, top, training.window)
        return [Work(kind, float(one * training.batch * training.steps))]
    o, window = row.settings, window_of(row)
    (few, short), (many, long) = o["validation"], o["test"]
    passes = (len(o["rates"]) + 1) * len(o["decays"]) if "rates" in o else 0
    passes += 1 if "thetas" in o else 0
    size = passes * few * short + many * long
    way = WORKS.get(o["way"], o["way"])
    if way == "cache":
        pairs = config.width * (len(o["thetas"]) * few * short**2 + many * long**2) / 2
        below = "fast" if config.fast else "static"
        return [Work("cache", pairs), Work(below, size * per_byte(below, config, window, o))]
    if way == "n-grams":
        below, size = "fast" if config.fast else "static", few * short + many * long
        products = size * per_byte(below, config, window, o)
        return [Work("n-grams", size), Work(below, products)]
    kind = kind_of(o["top"]) if way == "top" else way
    return [Work(kind, size * per_byte(way, config, window, o))]


def kind_of(top: dict[str, Any]) -> str:
    """A top's key in KINDS: its rule, or its name."""
    kind: str = top.get("rule", top["name"])
    return kind


def top_products(config: Config, top: dict[str, Any], length: int) -> int:
    """Multiply-adds to read a window with a top. Blocks that read otherwise than the model does are
    taken as the fast block, which is near enough for an estimate.
    """
    if top["name"] == "memory":
        own = memory_products(config, length, top["rule"], top["heads"])
        return cost.static(config._replace(fast=False), length) + own
    return cost.fast(config, length, carried=True)


def per_byte(way: str, config: Config, window: int, o: dict[str, Any]) -> float:
    """Multiply-adds to read one byte."""
    segment = o.get("segment", 1)
    counts: dict[str, Callable[[], int]] = {
        "static": lambda: cost.static(config._replace(fast=False), window),
        "fast": lambda: cost.fast(config._replace(fast=True), window, carried=True),
        "sgd": lambda: cost.dynamic(config, window, segment),
        "block": lambda: cost.dynamic_block(config, window),
        "fresh": lambda: cost.dynamic_block(config, window),
        "top": lambda: top_products(config, o["top"], window),
    }
    return counts[way]() / window


def reading(row: Row) -> float | None:
    """Multiply-adds a byte of a row that reads, for the table; None for others. The cache's are
    those of all earlier bytes, of which a document has ``long`` / 2 on average.
    """
    if row.kind != "read":
        return None
    (config, _), window = settings_of(row), window_of(row)
    o = row.settings
    way = WORKS.get(o["way"], o["way"])
    if way == "cache":
        below = "fast" if config.fast else "static"
        return per_byte(below, config, window, o) + config.width * o["test"][1] / 2
    if way == "n-grams":
        return per_byte("fast" if config.fast else "static", config, window, o)
    if o["way"] == "fast" and not o["carried"]:
        return cost.fast(config, window) / window
    return per_byte(way, config, window, o)


def seconds(row: Row, speeds: dict[str, float], train_bytes: int = 0) -> float:
    """Estimated seconds of a row on one core."""
    return sum(speeds[part.kind] * part.amount for part in work(row, train_bytes))


def measure(s: Sizes, corpus: Corpus) -> dict[str, float]:
    """Seconds a multiply-add, or a byte, of every kind of work; a few seconds."""
    window = s.windows[0]
    data = host.random.default_rng(0).integers(97, 123, window + 1).astype("uint8")
    document, found = Document("measured", data), {}
    for fast in (False, True):
        config = s.config._replace(fast=fast)
        params = initialize(config)
        batch = training_batch([document], 1, window, 0, 0)
        one = BACKWARD * (cost.fast if fast else cost.static)(config, window)

        def step(params: Any = params, batch: Batch = batch, config: Config = config) -> None:
            loss_and_gradient(params, batch.tokens, batch.labels, batch.weights, config)

        found[f"train {'fast' if fast else 'plain'}"] = _timed(step) / one
    given = Given(params, config, window, 0, corpus, [document])
    plain = given._replace(config=config._replace(fast=False))
    settings: dict[str, dict[str, Any]] = {
        "static": {},
        "fast": {"carried": True},
        "sgd": {"segment": s.segment},
        "block": {"segment": s.segment},
        "fresh": {},
    }
    for way, o in settings.items():
        o |= {"rates": (1e-3,), "decays": (0.0,), "more": 0}
        own = given if way in ("fast", "fresh") else plain
        read = WAYS[way](own, o).read

        def once(read: Any = read) -> None:
            read(document)

        found[way] = _timed(once) / (window * per_byte(way, config, window, o))
    for kind, top in KINDS.items():
        config = s.config._replace(fast=top["name"] != "memory")
        learner, one = learner_of({"top": top}), top_products(config, top, window)
        params = learner.begin(config, s.training._replace(decay=0.0)).params
        arguments = params, *batch, config, float(batch.weights.sum())
        step_with = partial(learner.gradient or loss_and_gradient, *arguments)
        found[f"train {kind}"] = _timed(step_with) / (BACKWARD * one)
        own = given._replace(params=params, config=config)
        read = WAYS["top"](own, {"top": top, "carried": True}).read
        found[kind] = _timed(partial(read, document)) / one
    o = {"carried": False, "thetas": (10.0,), "shares": (0.1,), "more": 0}
    pairs = config.width * window**2  # half of it twice
    both = _timed(lambda: WAYS["cache"](plain, o).read(document))
    rest = 2 * found["static"] * window * per_byte("static", config, window, o)
    found["cache"] = max(0.1 * both, both - rest) / pairs
    sample = corpus.train[0].data[:SAMPLE]
    found["n-grams"] = _timed(lambda: ngram_nats(sample.tobytes())) / len(sample)
    pieces = [Document("piece", sample)]
    found["where"] = _timed(lambda: frequencies(pieces, pieces)) / len(sample)
    return found


def memory(rows: list[Row], at_once: int) -> float:
    """Bytes at the peak of the largest training step, ``at_once`` of them together."""
    peak = 0
    for row in rows:
        if row.kind == "train":
            config, t = settings_of(row)
            need = footprint.training(config, t.batch, t.window, together=1)
            peak = max(peak, need.total)
    return float(peak * at_once)


def _timed(once: Callable[[], Any]) -> float:
    """Seconds of the faster of two goes; the first one also warms up."""
    best = float("inf")
    for _ in range(2):
        began = time.perf_counter()
        once()
        best = min(best, time.perf_counter() - began)
    return best
