"""Training: AdamW over windows of text, seeded and repeatable, resumable, with a progress line.

Gradients are clipped by their global norm. Step sizes and the decay are numbers of the order of 0.01 on which everything
downstream depends, so they get a learning rate in proportion to where they start, and they are kept in the range where the
update they stand for is a descent: step sizes stay >= 0 and the decay in [0, 1/2]. ``docs/measurements.md`` says what happens without.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NamedTuple

from tqdm import tqdm

from .backend import Tree, like, namespace
from .data import Corpus, training_batch
from .model import Config, Parameters, initialize, loss_and_gradient
from .optim import AdamState, adam_init, adam_step, check_finite, clip, cosine, global_norm
from .slow_block import FastParameters
from .tree import tree_map

LN2 = math.log(2)


class TrainSettings(NamedTuple):
    steps: int = 600
    batch: int = 4
    window: int = 256  # T
    rate: float = 2e-3
    warmup: int = 50
    weight_decay: float = 0.01
    clip: float = 1.0
    step_size: float = 0.01  # where the six step sizes start
    decay: float = 0.005  # where the decay starts
    seed: int = 0
    nonnegative: bool = True  # keep step sizes from changing sign


class Progress(NamedTuple):
    """All that training needs to go on from a step."""

    params: Parameters
    adam: AdamState
    history: tuple  # of Record


class Record(NamedTuple):
    step: int
    bits_per_byte: float
    grad_norm: float
    eta: tuple  # six step sizes
    decay: float


def check_train_settings(s: TrainSettings) -> None:
    """Raise ValueError naming the first setting that cannot be."""
    for name in ("steps", "batch", "window"):
        if getattr(s, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(s, name)}")
    for name in ("rate", "clip"):
        if not (math.isfinite(getattr(s, name)) and getattr(s, name) > 0):
            raise ValueError(f"{name} must be finite and > 0, got {getattr(s, name)}")
    if not 0 <= s.decay < 1:
        raise ValueError(f"the decay must lie in [0, 1), got {s.decay}")


def learning_rates(params: Parameters, config: Config, s: TrainSettings, factor: float) -> tuple[Tree, Tree]:
    """Learning rate and weight decay of every leaf: matrices decay, vectors and scalars do not."""
    rate = s.rate * factor
    rates = tree_map(lambda _: rate, params)
    scalar = rate if config.fast else 0.0  # a plain model's step sizes are zero and stay zero
    rates = rates._replace(eta=FastParameters(*(scalar * s.step_size * 10,) * 6), decay=scalar * s.decay * 10)
    return rates, tree_map(lambda p: s.weight_decay if p.ndim == 2 else 0.0, params)


def train_step(progress: Progress, corpus: Corpus, config: Config, s: TrainSettings) -> Progress:
    """One step: batch number ``adam.step`` of the corpus."""
    params, adam, history = progress
    step = adam.step
    host_batch = training_batch(corpus.train, s.batch, s.window, s.seed, step)
    tokens, labels = (like(a, params.embedding) for a in host_batch[:2])
    weights = like(host_batch.weights, params.embedding, params.embedding.dtype)
    loss, grads, _ = loss_and_gradient(params, tokens, labels, weights, config)
    norm, loss = global_norm(grads), float(loss)
    if not (math.isfinite(norm) and math.isfinite(loss)):
        check_finite(loss, grads, step)
    rates, decays = learning_rates(params, config, s, cosine(step, s.steps, s.warmup))
    params, adam = adam_step(params, clip(grads, s.clip, norm), adam, rates, decays)
    params = _project(params, s)
    eta = tuple(float(e) for e in params.eta)
    return Progress(params, adam, (*history, Record(step, loss / LN2, norm, eta, float(params.decay))))


def train(
    corpus: Corpus,
    config: Config,
    settings: TrainSettings,
    *,
    start: Progress | None = None,
    save: Callable[[Progress], None] | None = None,
    save_every: int = 200,
    label: str = "training",
    position: int = 0,
    quiet: bool = False,
) -> Progress:
    """Train from ``start`` (or from scratch) to ``settings.steps``, calling ``save`` every ``save_every`` steps and at the end.

    Raises NonFiniteError, naming step and parameter, if the loss or a gradient stops being finite.
    """
    check_train_settings(settings)
    if start is None:
        params = initialize(config, settings.seed, step_size=settings.step_size, decay=settings.decay)
        start = Progress(params, adam_init(params), ())
    progress, begin, done = start, time.perf_counter(), start.adam.step
    with tqdm(total=settings.steps, initial=done, desc=label, position=position, disable=quiet, mininterval=1, unit="step") as bar:
        for step in range(done, settings.steps):
            progress = train_step(progress, corpus, config, settings)
            recent = progress.history[-20:]
            speed = (step + 1 - done) * settings.batch * settings.window / (time.perf_counter() - begin)
            bar.set_postfix_str(f"{sum(r.bits_per_byte for r in recent) / len(recent):.3f} bits/byte, {speed:,.0f} tokens/s", refresh=False)
            bar.update()
            if save and ((step + 1) % save_every == 0 or step + 1 == settings.steps):
                save(progress)
    return progress


def _project(params: Parameters, s: TrainSettings) -> Parameters:
    """Back into the range where a step size is a descent and a decay forgets."""
    xp = namespace(params.embedding)

    def between(x, low, high):
        return xp.where(x < low, 0 * x + low, xp.where(x > high, 0 * x + high, x))

    eta = tree_map(lambda e: between(e, 0.0, math.inf), params.eta) if s.nonnegative else params.eta
    return params._replace(eta=eta, decay=between(params.decay, 0.0, 0.5))
