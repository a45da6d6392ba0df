"""True gradients of the fast matrix as rows: nothing trained, and the layer that was trained."""

from __future__ import annotations

from ..backend import Array, namespace
from ..fast_matrix import FastMatrix
from ..key_map import key_fwd
from ..lm.tune import tune
from .layer import etas_of
from .refreshed import refreshed_losses
from .rows import Row
from .settings import head_products
from .study import Document, Study, mean_loss, read_at, timed
from .ways import home, row
from .ways_trained import sizes_of, trained
from .ways_untrained import DECAYS, FURTHER, WHITENED_STEPS, keys_of, step_unit

UNTRAINED = "fast, not trained, whitened values, true gradients"
TRAINED = "fast, trained, carried, true gradients"
SEGMENT = 32  # tokens between two steps: what is read is never older
FACTORS = (0.3, 1.0, 3.0)  # on the step sizes that were learned with stale gradients


def untrained_losses(study: Study, document: Document, eta: float, decay: float) -> Array:
    """(T,)   losses with a matrix and a bias that begin as 0, values whitened"""
    found = read_at(study, document, study.settings.window)
    W = namespace(found.x).zeros_like(study.facts.values)  # (D,D)
    return refreshed_losses(
        study.model, found.x, keys_of(study, found.x), found.labels,
        FastMatrix(W, study.model.bias), FastMatrix(eta, 0.0), SEGMENT,
        decay=decay, values=study.facts.values,
    )  # fmt: skip


def refreshed_untrained(study: Study) -> Row:
    """Step size and decay tuned, nothing trained."""
    unit, more = step_unit(study, True), study.settings.more

    def loss(step: float, decay: float = 0.0) -> float:
        found = [untrained_losses(study, d, step * unit, decay) for d in study.validation]
        return mean_loss([home(f) for f in found])

    tuned = tune(loss, WHITENED_STEPS, 3.0, more + FURTHER if more else 0)
    at = {0.0: tuned.loss, **{d: loss(tuned.best, d) for d in (DECAYS if more else ())}}
    decay = min(at, key=at.__getitem__)
    losses, seconds = timed(
        lambda d: untrained_losses(study, d, tuned.best * unit, decay), study.test, UNTRAINED
    )
    D = study.model.config.width
    chosen = {"step": tuned.best, "decay": decay, "validation": at[decay]}
    return row(
        study, UNTRAINED, losses, seconds, 2 * head_products(study.model.config) + 4 * D * D,
        chosen=chosen, memory=4 * D * D,
    )  # fmt: skip


def refreshed_trained(study: Study) -> Row:
    """The layer as stale gradients trained it; only a factor on its step sizes is tuned."""
    learned, more = trained(study, fast=True).best, study.settings.more
    eta = etas_of(learned, sizes_of(study))
    decay = float(learned.decay)

    def losses_at(document: Document, factor: float) -> Array:
        found = read_at(study, document, study.settings.window)
        k, _ = key_fwd(found.x, learned.key, True)  # (T,K)
        return refreshed_losses(
            study.model, found.x, k, found.labels, FastMatrix(learned.W, learned.b),
            FastMatrix(factor * eta.W, factor * eta.b), SEGMENT, decay=decay,
        )  # fmt: skip

    def loss(factor: float) -> float:
        return mean_loss([home(losses_at(d, factor)) for d in study.validation])

    tuned = tune(loss, FACTORS, 3.0, more)
    losses, seconds = timed(lambda d: losses_at(d, tuned.best), study.test, TRAINED)
    D = study.model.config.width
    chosen = {"factor": tuned.best, "validation": tuned.loss}
    return row(
        study, TRAINED, losses, seconds, 2 * head_products(study.model.config) + 3 * D * D,
        chosen=chosen, memory=4 * D * D,
    )  # fmt: skip
