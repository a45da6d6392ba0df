"""Training: AdamW over windows of text, seeded and repeatable, resumable, with a progress line.

Step sizes and the decay are numbers of the order of 0.01 on which everything downstream depends, so
they get a learning rate in proportion to where they start, and they are kept in the range where the
update they stand for is a descent: step sizes stay >= 0 and the decay in [0, 1/2]. Gradients are
clipped by their norm, theirs apart from those of the weights: the norm of the seven spikes, and
would shrink the step of a million weights. ``docs/measurements.md`` says what happens without.

A step leaves everything on the device that the parameters are on. What is recorded of a step is one
short row, fetched at once on the host and ``LOG_EVERY`` rows at a time from a device, so that a GPU
is not made to wait between steps.

Where ``mpiexec`` has started several processes, each takes its rows of every batch; what comes out
of ``summed`` is the same on all of them, and so is all that follows (``lm/ranks.py``).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from ..backend import Array, Tree, host, is_host, namespace, to_numpy
from ..slow_block import FastParameters
from ..tree import leaves, named_leaves, tree_map
from .adamw import (
    AdamState,
    NonFiniteError,
    adam_init,
    adam_step,
    check_finite,
    clip,
    cosine,
    global_norm,
    squares,
)
from .bar import Bar
from .data import Corpus, training_batch
from .device import batch_like, to_backend
from .model import Config, Parameters, initialize, loss_and_gradient
from .ranks import ALONE, RankError, Ranks, check_same, rows, summed
from .shards import part_of

LN2 = math.log(2)
SAVE_EVERY = 200  # steps
LOG_EVERY = 10  # steps per transfer of records from a device


class TrainSettings(NamedTuple):
    """How a model is trained; the defaults are those of the command ``train``."""

    steps: int = 600
    batch: int = 4
    window: int = 256  # T
    rate: float = 2e-3
    warmup: int = 50
    weight_decay: float = 0.01
    clip: float = 1.0  # of the weights' gradient, and of that of step sizes and decay
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
    """What is recorded of a step."""

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
    for name in ("warmup", "weight_decay", "seed"):
        if not 0 <= getattr(s, name) < math.inf:
            raise ValueError(f"{name} must be finite and at least 0, got {getattr(s, name)}")
    if not math.isfinite(s.step_size):
        raise ValueError(f"step_size must be finite, got {s.step_size}")
    if not 0 <= s.decay < 1:
        raise ValueError(f"the decay must lie in [0, 1), got {s.decay}")


def learning_rates(
    params: Parameters, config: Config, s: TrainSettings, factor: float
) -> tuple[Tree, Tree]:
    """Learning rate and weight decay of every leaf: matrices decay, vectors and scalars do not."""
    rate = s.rate * factor
    rates = tree_map(lambda _: rate, params)
    scalar = rate if config.fast else 0.0  # a plain model's step sizes are zero and stay zero
    rates = rates._replace(
        eta=FastParameters(*(scalar * s.step_size * 10,) * 6), decay=scalar * s.decay * 10
    )
    return rates, tree_map(lambda p: s.weight_decay if p.ndim == 2 else 0.0, params)


def begin(config: Config, s: TrainSettings, backend: str = "numpy") -> Progress:
    """Fresh parameters and zero moments, on the device that ``backend`` names."""
    params = to_backend(initialize(config, s.seed, step_size=s.step_size, decay=s.decay), backend)
    return Progress(params, adam_init(params), ())


def on_backend(progress: Progress, backend: str) -> Progress:
    """Progress read from a file, moved to the device that ``backend`` names: where it is, training
    goes on.
    """
    mean, square, step = progress.adam
    return progress._replace(
        params=to_backend(progress.params, backend),
        adam=AdamState(to_backend(mean, backend), to_backend(square, backend), step),
    )


def train_step(progress: Progress, corpus: Corpus, config: Config, s: TrainSettings) -> Progress:
    """One step: batch number ``adam.step`` of the corpus. Raises NonFiniteError, naming step and
    parameter.
    """
    params, adam, row = advance(progress.params, progress.adam, corpus, config, s)
    return Progress(params, adam, (*progress.history, *records([row], progress.adam.step, params)))


def advance(
    params: Parameters,
    adam: AdamState,
    corpus: Corpus,
    config: Config,
    s: TrainSettings,
    ranks: Ranks = ALONE,
    gradient: Callable[..., tuple[Array, Parameters]] | None = None,
) -> tuple[Parameters, AdamState, Array]:
    """One step without looking at its outcome: parameters, moments, and the row that ``records``
    reads. Nothing leaves the device, but for a sum over ``ranks`` whose MPI cannot read from it.

    Another model is another ``gradient`` (None: ``loss_and_gradient``), called as that one is; its
    parameters have the fields of ``Parameters``, and may have more.

    Every rank draws the whole batch, so all know the sum of its weights without asking.
    """
    xp, step = namespace(params.embedding), adam.step
    batch = training_batch(corpus.train, s.batch, s.window, s.seed, step)
    total = float(host.sum(batch.weights, dtype="float64"))
    mine = batch_like(part_of(batch, rows(ranks, s.batch)), params.embedding)
    loss, grads = summed(ranks, (gradient or loss_and_gradient)(params, *mine, config, total))
    leaf_squares = squares(grads)  # (L,)
    norm = global_norm(leaf_squares)  # ()
    rates, decays = learning_rates(params, config, s, cosine(step, s.steps, s.warmup))
    params, adam = adam_step(params, clipped(grads, s.clip), adam, rates, decays)
    params = _project(params, s)
    numbers = xp.stack([loss, norm, *params.eta, params.decay])  # (9,)
    finite = xp.stack([xp.all(xp.isfinite(p)) for p in leaves(params)])  # (L,)
    row = xp.concat([numbers, leaf_squares, xp.astype(finite, numbers.dtype)])  # (9+2L,)
    return params, adam, row


def clipped(grads: Parameters, limit: float) -> Parameters:
    """The weights' gradients scaled to norm ``limit`` if theirs is above it, and those of step
    sizes and decay if theirs is.
    """
    whole: Any = grads
    groups = whole._replace(eta=None, decay=None), (grads.eta, grads.decay)
    weights, (eta, decay) = (clip(g, limit, global_norm(squares(g))) for g in groups)
    return weights._replace(eta=eta, decay=decay)


def records(rows: list[Array], first: int, params: Parameters) -> tuple[Record, ...]:
    """What steps ``first``, ``first`` + 1, ... left: one transfer for all. Raises NonFiniteError
    for the first that went wrong.
    """
    names = [name for name, _ in named_leaves(params)]
    table = to_numpy(namespace(*rows).stack(rows)).tolist()
    done = []
    for step, (loss, norm, *rest) in enumerate(table, start=first):
        check_finite(step, loss, norm, rest[7 : 7 + len(names)], rest[7 + len(names) :], names)
        done.append(Record(step, loss / LN2, norm, tuple(rest[:6]), rest[6]))
    return tuple(done)


def train(
    corpus: Corpus,
    config: Config,
    settings: TrainSettings,
    *,
    start: Progress | None = None,
    save: Callable[[Progress], None] | None = None,
    save_every: int = SAVE_EVERY,
    label: str = "training",
    position: int = 0,
    quiet: bool = False,
    ranks: Ranks = ALONE,
) -> Progress:
    """Train from ``start`` (or from scratch, on the host) to ``settings.steps``.

    ``save`` is called every ``save_every`` steps, after the last one, and when training breaks off
    with steps that were not saved: interrupted, or because something else went wrong.

    The arrays of ``start`` decide on library, device and precision: see ``begin`` and
    ``on_backend``.

    Every one of the ``ranks`` calls this with the same arguments, but for ``save``, which the first
    has alone.

    Raises NonFiniteError, naming step and parameter, if the loss, a gradient or a parameter stops
    being finite; nothing of that step is saved. ValueError if there are more ranks than sequences
    in a batch, RankError if ranks have come to hold different parameters.
    """
    check_train_settings(settings)
    rows(ranks, settings.batch)
    progress = begin(config, settings) if start is None else start
    clock, first, done = time.perf_counter(), progress.adam.step, []
    together = 1 if is_host(progress.params.embedding) else LOG_EVERY
    params, adam, _ = progress
    check_same(ranks, params, first)
    kept = first  # the step up to which all is saved
    bar = Bar(
        total=settings.steps,
        initial=first,
        desc=label,
        position=position,
        disable=quiet or not ranks.first,
        mininterval=1,
        unit="step",
    )
    with bar:
        try:
            for step in range(first + 1, settings.steps + 1):
                params, adam, row = advance(params, adam, corpus, config, settings, ranks)
                done.append(row)
                saving = step % save_every == 0 or step == settings.steps
                if len(done) < together and not saving:
                    continue
                progress, done = _recorded(progress, params, adam, done), []
                seconds = time.perf_counter() - clock
                speed = (step - first) * settings.batch * settings.window / seconds
                bar.set_postfix_str(_so_far(progress.history, speed), refresh=False)
                bar.update(step - bar.n)
                if saving:
                    check_same(ranks, params, step)
                if saving and save:
                    save(progress)
                    kept = step
        except (NonFiniteError, RankError):
            raise
        except BaseException:
            if done and len(done) == adam.step - progress.adam.step:  # each step left its row
                progress = _recorded(progress, params, adam, done)
            if save and progress.adam.step > kept:
                save(progress)
            raise
    return progress


def _recorded(progress: Progress, params: Parameters, adam: AdamState, rows: list) -> Progress:
    """Progress after the steps that left ``rows``. Raises NonFiniteError."""
    done = records(rows, progress.adam.step, params)
    return Progress(params, adam, (*progress.history, *done))


def _so_far(history: tuple, speed: float) -> str:
    """What the progress bar shows: the mean of the last steps."""
    recent = history[-20:]
    bits = sum(record.bits_per_byte for record in recent) / len(recent)
    return f"{bits:.3f} bits/byte, {speed:,.0f} tokens/s"


def _project(params: Parameters, s: TrainSettings) -> Parameters:
    """Back into the range where a step size is a descent and a decay forgets."""
    xp = namespace(params.embedding)

    def between(x: Array, low: float, high: float) -> Array:
        return xp.where(x < low, 0 * x + low, xp.where(x > high, 0 * x + high, x))

    eta = tree_map(lambda e: between(e, 0.0, math.inf), params.eta) if s.nonnegative else params.eta
    return params._replace(eta=eta, decay=between(params.decay, 0.0, 0.5))
