"""True gradients of the fast matrix as rows: nothing trained, the layer that stale gradients
trained, and one trained through true gradients, perhaps with the unembedding; at the window and at
longer ones, and with a cache.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from ..backend import Array, namespace
from ..fast_matrix import FastMatrix
from ..lm.tune import tune
from .layer import Learned, etas_of, start
from .learn import Trained, train
from .rows import Row
from .settings import head_products
from .study import Study, key_at, mean_loss
from .through import through_loss_and_gradient
from .true_layer import Layer, losses_of
from .ways import context_name, row
from .ways_cache import with_cache
from .ways_trained import RATIO, sizes_of, trained, training_of
from .ways_untrained import DECAYS, FURTHER, WHITENED_STEPS, step_unit

TRUE_UNTRAINED = "fast, not trained, whitened values, true gradients"
TRUE_TRAINED = "fast, trained, carried, true gradients"
TRUE_DEEP = "fast, not trained, true gradients, keys of two layers"
THROUGH = "fast, trained through true gradients"
THROUGH_HEAD = "fast and unembedding, trained through true gradients"
DEPTH = 2 / 3  # of the trunk's layers: features from there are keys in TRUE_DEEP as well
FACTORS = (0.3, 1.0, 3.0)  # on the step sizes that were learned with stale gradients


def named(study: Study, name: str, window: int) -> str:
    """The row's name with the trunk at a window."""
    return name if window == study.settings.window else f"{context_name(window)}, {name}"


def untrained_layer(study: Study, step: float, decay: float, deep: bool = False) -> Layer:
    """It begins as 0, and values are whitened; the bias stays. ``deep``: keys of two layers."""
    facts, layers = study.facts, max(1, round(DEPTH * study.model.config.layers))
    W = namespace(facts.values).concat([0 * facts.values] * (2 if deep else 1), axis=0)  # (K,D)
    eta = FastMatrix(step * step_unit(study, True), 0.0)
    below = (layers, key_at(study, layers)) if deep else None
    first = FastMatrix(W, study.model.bias)
    return Layer(facts.key, first, eta, decay, facts.values, below=below)


def untrained_of(study: Study, row: Row) -> Layer:
    """The layer of a row ``TRUE_UNTRAINED`` or ``TRUE_DEEP``."""
    deep = "layers below" in row.chosen
    return untrained_layer(study, row.chosen["step"], row.chosen["decay"], deep)


def refreshed_untrained(study: Study, window: int, name: str = TRUE_UNTRAINED) -> Row:
    """Step size and decay tuned at this window, nothing trained."""
    more, deep = study.settings.more, name == TRUE_DEEP

    def loss(step: float, decay: float = 0.0) -> float:
        return _validation_loss(study, untrained_layer(study, step, decay, deep), window)

    tuned = tune(loss, WHITENED_STEPS, 3.0, more + FURTHER if more else 0)
    at = {0.0: tuned.loss, **{d: loss(tuned.best, d) for d in (DECAYS if more else ())}}
    decay = min(at, key=at.__getitem__)
    layer = untrained_layer(study, tuned.best, decay, deep)
    chosen = {"step": tuned.best, "decay": decay, "validation": at[decay]}
    chosen |= {"layers below": layer.below[0]} if layer.below else {}
    return _row(study, name, layer, window, chosen)


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
    return _row(study, TRUE_TRAINED, times(tuned.best), window, chosen)


def trained_through(study: Study, untrained: Row, head: bool = False) -> tuple[Trained, Layer]:
    """Train from the layer of the row ``TRUE_UNTRAINED``, or take from the disk what was trained.
    With ``head`` the unembedding is trained as well.
    """
    memo = ("through", head)
    if memo not in study.memo:
        first, U = untrained_of(study, untrained), study.model.U if head else None
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
        file = study.folder / ("through_head.npz" if head else "through.npz")
        progress = train(
            file, key, start(first.key, first.decay, U), gradient_of,
            study.pieces, training, validate, study.facts.entry,
        )  # fmt: skip
        study.memo[memo] = progress, _layer_of(progress.best, sizes, first.values)
    found: tuple[Trained, Layer] = study.memo[memo]
    return found


def refreshed_through(study: Study, untrained: Row, window: int, head: bool = False) -> Row:
    """Trained through its own steps at the settings' window; read at any."""
    progress, layer = trained_through(study, untrained, head)
    chosen = {
        "validation": progress.loss,
        "training loss": progress.curve[-1],
        "step": float(layer.eta.W) / step_unit(study, True),
        "bias step": float(layer.eta.b) / step_unit(study, True),
        "decay": layer.decay,
    }
    return _row(study, THROUGH_HEAD if head else THROUGH, layer, window, chosen)


def refreshed_cache(study: Study, under: Row, layer: Layer) -> Row:
    """The neural cache over the losses of a row of this file, lambda tuned for it."""
    tuned, _ = losses_of(study, layer, study.validation, under.window)
    name = f"{under.name}, and cache"
    return with_cache(study, name, under.name, under.losses, tuned, under.window)


def _layer_of(learned: Learned, sizes: FastMatrix, values: Array | None) -> Layer:
    first = FastMatrix(learned.W, learned.b)
    eta, decay = etas_of(learned, sizes), float(learned.decay)
    return Layer(learned.key, first, eta, decay, values, learned.U)


def _validation_loss(study: Study, layer: Layer, window: int) -> float:
    return mean_loss(losses_of(study, layer, study.validation, window)[0])


def _row(study: Study, name: str, layer: Layer, window: int, chosen: dict[str, Any]) -> Row:
    title = named(study, name, window)
    losses, seconds = losses_of(study, layer, study.test, window, title)
    D, head = study.model.config.width, head_products(study.model.config)
    maps = 6 if layer.below else 3  # keys, read, write
    maps += layer.values is not None  # whitening
    return row(
        study, title, losses, seconds, 2 * head + maps * D * D, chosen=chosen, window=window,
        memory=int(4 * (2 * D * layer.start.W.shape[0] + (0 if layer.U is None else head))),
    )  # fmt: skip
