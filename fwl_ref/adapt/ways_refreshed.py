"""True gradients of the fast matrix as rows: nothing trained, the layer that stale gradients
trained, and one trained through true gradients; at the window and at longer ones, and with a cache.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from ..backend import Array, namespace
from ..fast_matrix import FastMatrix
from ..key_map import KeyMap, key_fwd
from ..lm.tune import tune
from .layer import Learned, etas_of, start
from .learn import Progress, train
from .refreshed import refreshed_losses
from .rows import Row
from .settings import head_products
from .study import Document, Study, mean_loss, read_at, timed
from .through import through_loss_and_gradient
from .ways import context_name, home, row
from .ways_cache import with_cache
from .ways_trained import RATIO, sizes_of, trained, training_of
from .ways_untrained import DECAYS, FURTHER, WHITENED_STEPS, step_unit

UNTRAINED = "fast, not trained, whitened values, true gradients"
TRAINED = "fast, trained, carried, true gradients"
THROUGH = "fast, trained through true gradients"
FACTORS = (0.3, 1.0, 3.0)  # on the step sizes that were learned with stale gradients


class Layer(NamedTuple):
    """A matrix and a bias that take true gradient steps, with all that fixes how."""

    key: KeyMap
    start: FastMatrix
    eta: FastMatrix
    decay: float
    values: Array | None  # (D,D) whitens what is written


def losses_of(study: Study, layer: Layer, document: Document, window: int) -> Array:
    """(T,)   losses of a document with the trunk at a window"""
    found = read_at(study, document, window)
    k, _ = key_fwd(found.x, layer.key, True)  # (T,K)
    return refreshed_losses(
        study.model, found.x, k, found.labels, layer.start, layer.eta, study.settings.refresh,
        decay=layer.decay, values=layer.values,
    )  # fmt: skip


def named(study: Study, name: str, window: int) -> str:
    """The row's name with the trunk at a window."""
    return name if window == study.settings.window else f"{context_name(window)}, {name}"


def untrained_layer(study: Study, step: float, decay: float) -> Layer:
    """It begins as 0, and values are whitened; the bias stays."""
    facts = study.facts
    first = FastMatrix(namespace(facts.values).zeros_like(facts.values), study.model.bias)
    eta = FastMatrix(step * step_unit(study, True), 0.0)
    return Layer(facts.key, first, eta, decay, facts.values)


def untrained_of(study: Study, row: Row) -> Layer:
    """The layer of a row ``UNTRAINED``."""
    return untrained_layer(study, row.chosen["step"], row.chosen["decay"])


def refreshed_untrained(study: Study, window: int) -> Row:
    """Step size and decay tuned at this window, nothing trained."""
    more = study.settings.more

    def loss(step: float, decay: float = 0.0) -> float:
        return _validation_loss(study, untrained_layer(study, step, decay), window)

    tuned = tune(loss, WHITENED_STEPS, 3.0, more + FURTHER if more else 0)
    at = {0.0: tuned.loss, **{d: loss(tuned.best, d) for d in (DECAYS if more else ())}}
    decay = min(at, key=at.__getitem__)
    chosen = {"step": tuned.best, "decay": decay, "validation": at[decay]}
    return _row(study, UNTRAINED, untrained_layer(study, tuned.best, decay), window, chosen)


def refreshed_trained(study: Study) -> Row:
    """The layer as stale gradients trained it; only a factor on its step sizes is tuned."""
    learned, window = trained(study, fast=True).best, study.settings.window
    layer = _layer_of(learned, sizes_of(study), None)

    def times(factor: float) -> Layer:
        return layer._replace(eta=FastMatrix(*(factor * e for e in layer.eta)))

    def loss(factor: float) -> float:
        return _validation_loss(study, times(factor), window)

    tuned = tune(loss, FACTORS, 3.0, study.settings.more)
    chosen = {"factor": tuned.best, "validation": tuned.loss}
    return _row(study, TRAINED, times(tuned.best), window, chosen)


def trained_through(study: Study, untrained: Row) -> tuple[Progress, Layer]:
    """Train from the layer of the row ``UNTRAINED``, or take from the disk what was trained."""
    if "through" not in study.memo:
        first = untrained_of(study, untrained)
        sizes = FastMatrix(first.eta.W, RATIO * first.eta.W)
        gradient_of = partial(
            through_loss_and_gradient,
            model=study.model,
            sizes=sizes,
            segment=study.settings.refresh,
            values=first.values,
        )
        training, window = training_of(study, True), study.settings.window

        def validate(learned: Learned) -> float:
            return _validation_loss(study, _layer_of(learned, sizes, first.values), window)

        key = f"{study.key} through {training} {sizes} {first.decay}"
        progress = train(
            study.folder / "through.npz", key, start(first.key, first.decay), gradient_of,
            study.pieces, training, validate, study.facts.entry,
        )  # fmt: skip
        study.memo["through"] = progress, _layer_of(progress.best, sizes, first.values)
    found: tuple[Progress, Layer] = study.memo["through"]
    return found


def refreshed_through(study: Study, untrained: Row, window: int) -> Row:
    """Trained through its own steps at the settings' window; read at any."""
    progress, layer = trained_through(study, untrained)
    chosen = {
        "validation": progress.loss,
        "training loss": progress.curve[-1],
        "step": float(layer.eta.W) / step_unit(study, True),
        "bias step": float(layer.eta.b) / step_unit(study, True),
        "decay": layer.decay,
    }
    return _row(study, THROUGH, layer, window, chosen)


def refreshed_cache(study: Study, under: Row, layer: Layer) -> Row:
    """The neural cache over the losses of a row of this file, lambda tuned for it."""
    tuned = [home(losses_of(study, layer, d, under.window)) for d in study.validation]
    name = f"{under.name}, and cache"
    return with_cache(study, name, under.name, under.losses, tuned, under.window)


def _layer_of(learned: Learned, sizes: FastMatrix, values: Array | None) -> Layer:
    first = FastMatrix(learned.W, learned.b)
    return Layer(learned.key, first, etas_of(learned, sizes), float(learned.decay), values)


def _validation_loss(study: Study, layer: Layer, window: int) -> float:
    return mean_loss([home(losses_of(study, layer, d, window)) for d in study.validation])


def _row(study: Study, name: str, layer: Layer, window: int, chosen: dict[str, Any]) -> Row:
    title = named(study, name, window)
    read: Callable[[Document], Array] = lambda d: losses_of(study, layer, d, window)  # noqa: E731
    losses, seconds = timed(read, study.test, title)
    D, head = study.model.config.width, head_products(study.model.config)
    maps = 3 if layer.values is None else 4  # keys, read, write, whitening
    return row(
        study, title, losses, seconds, 2 * head + maps * D * D, chosen=chosen, memory=4 * D * D,
        window=window,
    )  # fmt: skip
