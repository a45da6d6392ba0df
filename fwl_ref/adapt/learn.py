"""Training of the layer on cached features, through its own update.

A step's batch is a function of the seed and the step, and the file has everything that training
goes on from. So a run that was interrupted ends with the same bits as one that was not. Validation
documents are read at the start and a few times on the way, and the best of these states is kept.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

from ..backend import Array, host, like, namespace, to_numpy
from ..fast_matrix import FastMatrix
from ..files import UNREADABLE, load_arrays, save_arrays
from ..key_map import KeyMap
from ..lm.adamw import AdamState, NonFiniteError, adam_init, adam_step, cosine, squares
from ..lm.bar import Bar
from ..tree import named_leaves, rebuild, tree_map
from .layer import MOST_DECAY, Learned

SAVE_EVERY = 30.0  # seconds between two files

# (learned, x (B,T,D), labels (B,T), weights (B,T)) -> mean loss, its gradient
LossAndGradient: TypeAlias = Callable[[Learned, Array, Array, Array], tuple[Array, Learned]]


class Piece(NamedTuple):
    """A training document: cached features on the host, and its tokens."""

    x: Array  # (T,D)
    ids: Array  # (T+1,)


class Training(NamedTuple):
    """Settings of one training."""

    steps: int
    batch: int
    length: int
    seed: int
    checks: int  # how often validation documents are read
    rate: float
    fast: bool  # False: step sizes are 0 and stay so, a plain layer


class Trained(NamedTuple):
    """What a training leaves."""

    best: Learned  # of least validation loss
    loss: float  # that loss
    curve: tuple[float, ...]  # training loss of every step


class Progress(NamedTuple):
    learned: Learned
    adam: AdamState
    best: Learned
    loss: float
    curve: tuple[float, ...]


def draw(
    pieces: Sequence[Piece], batch: int, length: int, seed: int, step: int
) -> tuple[Array, Array, Array]:
    """Batch number ``step``: features (B,T,D), labels (B,T), weights (B,T), on the host.

    A document is drawn by its size. A longer one gives ``length`` tokens from a random place.
    """
    rng = host.random.default_rng([seed, step])
    sizes = host.asarray([len(piece.x) for piece in pieces], dtype="float64")
    chosen = rng.choice(len(pieces), size=batch, p=sizes / sizes.sum())
    length = min(length, max(len(pieces[i].x) for i in chosen))
    x = host.zeros((batch, length, pieces[0].x.shape[1]), dtype="float32")
    labels = host.zeros((batch, length), dtype="int64")
    weights = host.zeros((batch, length), dtype="float32")
    for row, i in enumerate(chosen):
        piece = pieces[i]
        count = min(length, len(piece.x))
        at = int(rng.integers(0, len(piece.x) - count + 1))
        x[row, :count] = piece.x[at : at + count]
        x[row, count:] = piece.x[at + count - 1]  # features of weight 0 must be features still
        labels[row, :count] = piece.ids[at + 1 : at + count + 1]
        weights[row, :count] = 1
    return x, labels, weights


def rates_of(learned: Learned, scale: float, training: Training) -> Learned:
    """How far one step may move each leaf, in units of its size; W and b in those of features."""
    rate = training.rate
    keys = KeyMap(rate * _rms(learned.key.mean), rate * _rms(learned.key.A))
    step = 20 * rate if training.fast else 0.0
    decay = 0.02 * rate if training.fast else 0.0
    U = None if learned.U is None else rate * _rms(learned.U)
    return Learned(keys, rate * scale, rate * scale, FastMatrix(step, step), decay, U)


def train(
    file: Path | None,
    key: str,
    first: Learned,
    gradient_of: LossAndGradient,
    pieces: Sequence[Piece],
    training: Training,
    validate: Callable[[Learned], float],
    scale: float,
) -> Trained:
    """Train from ``first``, or from what ``file`` holds of the same training (``key``).

    ``scale`` is the root mean square of the features. Raises NonFiniteError if a loss or a gradient
    is not finite; what was saved stays.
    """
    rates = rates_of(first, scale, training)
    none = tree_map(lambda _: 0.0, rates)
    progress = _load(file, key, first)
    if progress is None:
        progress = Progress(first, adam_init(first), first, math.inf, ())
    done, saved = len(progress.curve), time.monotonic()
    name = file.stem if file else "layer"
    at_checks = {round(training.steps * (i + 1) / training.checks) for i in range(training.checks)}
    if not done and progress.loss == math.inf:  # training must better what it began from
        progress = progress._replace(loss=validate(first))
        Bar.write(f"  {name}, at the start: validation {progress.loss:.4f} nats a token")
    bar = Bar(total=training.steps, initial=done, desc=f"training, {name}", unit="step")
    try:
        for step in range(done, training.steps):
            batch = draw(pieces, training.batch, training.length, training.seed, step)
            x, labels, weights = (
                like(a, first.W, first.W.dtype if a.dtype == "float32" else None) for a in batch
            )
            loss, gradient = gradient_of(progress.learned, x, labels, weights)
            value = float(to_numpy(loss))
            _check(value, gradient, step)
            factor = cosine(step, training.steps, max(1, training.steps // 20))
            now = tree_map(lambda r, f=factor: r * f, rates)
            learned, adam = adam_step(progress.learned, gradient, progress.adam, now, none)
            learned = learned._replace(decay=_within(learned.decay))
            curve = (*progress.curve, value)
            after = progress._replace(learned=learned, adam=adam, curve=curve)
            if step + 1 in at_checks:
                found = validate(learned)
                if found < progress.loss:
                    after = after._replace(best=learned, loss=found)
                Bar.write(f"  {name}, step {step + 1}: validation {found:.4f} nats a token")
            progress = after  # whole steps only: what is saved is what goes on
            if time.monotonic() - saved > SAVE_EVERY:
                _save(file, key, progress)
                saved = time.monotonic()
            bar.set_postfix_str(f"loss {value:.3f}", refresh=False)
            bar.update()
    finally:
        bar.close()
        _save(file, key, progress)
    return Trained(progress.best, progress.loss, progress.curve)


def _check(loss: float, gradient: Learned, step: int) -> None:
    """Raise NonFiniteError, naming what it is, unless the loss and every gradient is finite."""
    if not math.isfinite(loss):
        raise NonFiniteError(f"step {step}: the loss is {loss}; lower the learning rate")
    found = to_numpy(squares(gradient))
    if not host.all(host.isfinite(found)):
        names = [name for name, _ in named_leaves(gradient)]
        bad = names[int(host.argmin(host.isfinite(found)))]
        raise NonFiniteError(f"step {step}: the gradient of {bad} is not finite")


def _within(decay: Array) -> Array:
    """()->()   a decay in [0, MOST_DECAY]"""
    return namespace(decay).clip(decay, 0.0, MOST_DECAY)


def _rms(a: Array) -> float:
    """(...)->float"""
    values = host.asarray(to_numpy(a), dtype="float64")
    return math.sqrt(float((values**2).mean()))


def _save(file: Path | None, key: str, progress: Progress) -> None:
    if file is None:
        return
    trees = {"learned": progress.learned, "best": progress.best}
    trees |= {"mean": progress.adam.mean, "square": progress.adam.square}
    arrays = {
        f"{part}/{name}": to_numpy(leaf)
        for part, tree in trees.items()
        for name, leaf in named_leaves(tree)
    }
    arrays |= {"loss": host.asarray(progress.loss), "curve": host.asarray(progress.curve)}
    save_arrays(file, {**arrays, "key": host.asarray(key)})


def _load(file: Path | None, key: str, first: Learned) -> Progress | None:
    """What a file holds of the training ``key``; None if there is none or it is of another one."""
    if file is None or not file.exists():
        return None
    try:
        arrays = load_arrays(file)
    except UNREADABLE:
        return None
    if str(arrays.get("key")) != key:
        return None
    names = [name for name, _ in named_leaves(first)]
    target = first.W

    def tree(part: str) -> Learned:
        return rebuild(first, [like(arrays[f"{part}/{name}"], target) for name in names])

    curve = tuple(float(value) for value in arrays["curve"])
    adam = AdamState(tree("mean"), tree("square"), len(curve))
    return Progress(tree("learned"), adam, tree("best"), float(arrays["loss"]), curve)
