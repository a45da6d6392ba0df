"""Fast weights of which nothing was trained: only step sizes, decay and kernel are tuned."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from ..backend import Array, namespace
from ..key_map import key_fwd
from ..lm.tune import tune
from .fast_unembedding import fast_unembedding
from .past import past_read
from .rows import Row
from .settings import head_products
from .study import Document, Study, mean_loss, read_at, timed
from .trunk import plain_losses
from .ways import AS_IS, home, row

STEPS = (0.0003, 0.001, 0.003, 0.01)  # of the length of a feature, for one write of each
WHITENED_STEPS = (0.0001, 0.0003, 0.001, 0.003)  # a whitened write moves what moves little
FURTHER = 2  # values more beyond the edge than the settings say: steps differ by powers of ten
RATIOS = (0.01, 0.1)  # of the step size of the bias to that of the matrix
DECAYS = (1 / 8192, 1 / 2048, 1 / 512)
SHARP = (5.0, 10.0, 20.0)  # theta of the exponential kernel
UNEMBEDDING = (0.03, 0.1, 0.3, 1.0, 3.0)  # in logits, for one write


def keys_of(study: Study, x: Array) -> Array:
    """(T,D)->(T,K)   whitened, of unit length"""
    return key_fwd(x, study.facts.key, True)[0]


def untrained_losses(
    study: Study, document: Document, eta: float, whiten: bool, **options: Any
) -> Array:
    """(T,)   losses with the stale gradients of the past added; ``options`` as ``past_read``"""
    found = read_at(study, document, study.settings.window)
    k = keys_of(study, found.x)  # (T,K)
    xp = namespace(k)
    v = xp.matmul(found.dz, study.facts.values) if whiten else found.dz  # (T,D)
    o = past_read(k, v, **options)  # (T,D)
    return plain_losses(study.model, found.x - eta * o, found.labels)


def step_unit(study: Study, whiten: bool) -> float:
    """The step size with which one write moves a feature by its own length."""
    facts = study.facts
    return facts.x / (facts.whitened if whiten else facts.dz)


def untrained_step(study: Study) -> float:
    """The step size of the linear form that is best on validation; from its row if there is one."""
    key = ("eta", False, False)
    if key not in study.memo:
        unit, more = step_unit(study, False), study.settings.more

        def loss(step: float) -> float:
            found = [home(untrained_losses(study, d, step * unit, False)) for d in study.validation]
            return mean_loss(found)

        further = more + FURTHER if more else 0
        study.memo[key] = tune(loss, STEPS, 3.0, further).best * unit
    return study.memo[key]


def untrained(study: Study, name: str, whiten: bool, sharp: bool) -> Row:
    """One fast matrix and bias with tuned step sizes and decay, or a sharp kernel in its place."""
    unit, more = step_unit(study, whiten), study.settings.more

    def loss(eta: float, **options: Any) -> float:
        return mean_loss(
            [home(untrained_losses(study, d, eta, whiten, **options)) for d in study.validation]
        )

    steps, further = WHITENED_STEPS if whiten else STEPS, more + FURTHER if more else 0

    def at_theta(theta: float, step: float) -> float:
        return loss(step * unit, theta=theta)

    best: tuple[float, float, dict[str, float]]
    if sharp:
        found = []
        for theta in SHARP if more else SHARP[1:2]:
            t = tune(partial(at_theta, theta), steps, 3.0, further)
            found.append((t.loss, t.best * unit, {"theta": theta}))
        best = min(found, key=lambda f: f[0])
    else:
        t = tune(lambda e: loss(e * unit), steps, 3.0, further)
        best = (t.loss, t.best * unit, {})
        study.memo["eta", whiten, sharp] = best[1]
        for option, values in (("ratio", RATIOS), ("decay", DECAYS)) if more else ():
            for value in values:
                tried = best[2] | {option: value}
                at = loss(best[1], **tried)
                best = min(best, (at, best[1], tried), key=lambda f: f[0])
    reached, eta, options = best
    losses, seconds = timed(
        lambda d: untrained_losses(study, d, eta, whiten, **options), study.test, name
    )
    D, T = study.model.config.width, study.settings.length
    reads = T / 2 * 2 * D + D * D if sharp else 3 * D * D
    chosen = {"step": eta / unit, "eta": eta, **options, "validation": reached}
    return row(
        study, name, losses, seconds, 2 * head_products(study.model.config) + reads, chosen=chosen,
        memory=4 * (T * 2 * D if sharp else D * D), uses=(AS_IS,),
    )  # fmt: skip


def unembedding(study: Study, name: str) -> Row:
    """The unembedding fast as well, read with a linear kernel."""
    model = study.model

    def all_losses(document: Document, etas: Sequence[float]) -> list[Array]:
        found = read_at(study, document, study.settings.window)
        k = keys_of(study, found.x)  # (T,K)
        return fast_unembedding(found.n, k, model.U, found.labels, etas, model.block)

    etas = UNEMBEDDING if study.settings.more else UNEMBEDDING[1:4]
    lists = [[home(a) for a in all_losses(d, etas)] for d in study.validation]
    means = {e: mean_loss([found[i] for found in lists]) for i, e in enumerate(etas)}
    best = tune(lambda e: means[e], etas, more=0)
    losses, seconds = timed(lambda d: all_losses(d, [best.best])[0], study.test, name)
    D, V = model.config.width, model.config.vocabulary
    return row(
        study, name, losses, seconds, 2 * D * V + D * D,
        chosen={"eta": best.best, "validation": best.loss}, memory=4 * D * V, uses=(AS_IS,),
    )  # fmt: skip
