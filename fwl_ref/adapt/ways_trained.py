"""The layer that is trained, plain and fast, and how its fast form reads: reset or carried."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from ..backend import Array
from ..fast_matrix import FastMatrix
from ..tree import tree_map
from .layer import (
    Learned,
    layer_losses,
    loss_and_gradient,
    plain_layer_losses,
    plain_loss_and_gradient,
    start,
)
from .learn import LossAndGradient, Trained, Training, train
from .rows import Row
from .settings import head_products
from .study import Document, Study, mean_loss, read_at, timed
from .ways import home, row
from .ways_untrained import step_unit, untrained_step

PLAIN = "plain layer, trained"
PLAIN_HEAD = "plain layer and unembedding, trained"
RESET = "fast, trained, reset"
CARRIED = "fast, trained, carried"
DECAY = 1 / 8192  # at the start
RATIO = 0.01  # at the start, of the step size of the bias to that of the matrix


def sizes_of(study: Study) -> FastMatrix:
    """Step sizes at the start: what tuning found for the layer that is not trained."""
    eta = untrained_step(study)
    return FastMatrix(eta, RATIO * eta)


def trained(study: Study, fast: bool, head: bool = False) -> Trained:
    """Train the layer, or take from the disk what was trained. With ``head`` the unembedding is
    trained as well: of a plain layer only.
    """
    s, name = study.settings, "fast" if fast else "plain_head" if head else "plain"
    if name not in study.memo:
        training = training_of(study, fast)
        sizes = sizes_of(study) if fast else FastMatrix(0.0, 0.0)
        gradient_of: LossAndGradient = partial(plain_loss_and_gradient, model=study.model)
        if fast:
            gradient_of = partial(loss_and_gradient, model=study.model, sizes=sizes, chunk=s.chunk)

        def validate(learned: Learned) -> float:
            return mean_loss(
                [home(losses_of(study, learned, fast, d, s.window)) for d in study.validation]
            )

        first = start(study.facts.key, DECAY, study.model.U if head else None)
        key = f"{study.key} {training} {sizes}"
        study.memo[name] = train(
            study.folder / f"{name}.npz", key, first, gradient_of, study.pieces, training, validate,
            study.facts.entry,
        )  # fmt: skip
    return study.memo[name]


def training_of(study: Study, fast: bool) -> Training:
    """What the settings say of it."""
    s = study.settings
    return Training(s.steps, s.batch, s.train_length, s.seed, s.checks, s.rate, fast)


def losses_of(
    study: Study,
    learned: Learned,
    fast: bool,
    document: Document,
    window: int,
    reset: int | None = None,
) -> Array:
    """(T,)   losses of a document under the layer, with the trunk at a window"""
    found = read_at(study, document, window)
    if not fast:
        return plain_layer_losses(learned, found.x, found.labels, study.model)
    sizes = sizes_of(study)
    return layer_losses(
        learned, found.x, found.labels, study.model, sizes, study.settings.chunk, reset
    )[0]


def layer_row(study: Study, name: str, window: int | None = None) -> Row:
    """The row ``PLAIN``, ``PLAIN_HEAD``, ``RESET`` or ``CARRIED``, perhaps with the trunk at a
    longer window.
    """
    fast, head_too = name not in (PLAIN, PLAIN_HEAD), name == PLAIN_HEAD
    at = study.settings.window if window is None else window
    progress = trained(study, fast, head_too)
    reset = study.settings.window if name == RESET else None
    losses, seconds = timed(
        lambda d: losses_of(study, progress.best, fast, d, at, reset), study.test, name
    )
    D, head = study.model.config.width, head_products(study.model.config)
    products = 3 * head + 4 * D * D if fast else head + 2 * D * D
    chosen: dict[str, Any] = {"validation": progress.loss, "training loss": progress.curve[-1]}
    if fast:
        eta = sizes_of(study).W / step_unit(study, False)
        steps = tree_map(float, progress.best.steps)
        chosen |= {
            "step": eta * steps.W,
            "bias step": RATIO * eta * steps.b,
            "decay": float(progress.best.decay),
        }
    title = name if window is None else f"context {window}, {name}"
    return row(
        study, title, losses, seconds, products, chosen=chosen, window=window,
        memory=int(4 * (D * D * (2 if fast else 1) + (head if head_too else 0))),
    )  # fmt: skip


def validation_losses(study: Study, name: str, window: int) -> Sequence[Array]:
    """Losses of the validation documents, for what is tuned on top of the layer."""
    fast = name != PLAIN
    key = ("validation", name, window)
    if key not in study.memo:
        best = trained(study, fast).best
        reset = study.settings.window if name == RESET else None
        study.memo[key] = [
            home(losses_of(study, best, fast, d, window, reset)) for d in study.validation
        ]
    return study.memo[key]
