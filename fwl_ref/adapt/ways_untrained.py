"""Fast weights of which nothing was trained: only step sizes, decay and kernel are tuned."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

from ..backend import Array, namespace
from ..key_map import key_fwd
from ..lm.tune import tune
from .fast_unembedding import fast_unembedding
from .past import bounded_read, delta_read, past_read
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
THETAS = (5.0, 10.0, 20.0)  # of the exponential kernel
PRIORS = (10.0, 100.0, 1000.0)  # of the normalised read, in sums of its weights
BETAS = (0.01, 0.03, 0.1)  # of the delta rule
NORMS = (3.0, 10.0, 30.0)  # of the bounded state, in lengths of a write

Read: TypeAlias = Callable[..., Array]  # (k (T,K), v (T,D), options) -> (T,D)


class Kind(NamedTuple):
    """How stale gradients of the past are read."""

    read: Read
    tries: tuple[dict[str, float], ...]  # options; each gets a step size
    maps: int  # products of width D x D a token
    pairs: bool = False  # a token is compared with every token before it
    steps: tuple[float, ...] | None = None  # step sizes; None: STEPS, or WHITENED_STEPS


LINEAR = Kind(past_read, ({},), 3)
SHARP = Kind(past_read, tuple({"theta": t} for t in THETAS), 1, True)
MEAN_STEPS = (0.01, 0.03, 0.1, 0.3)  # of reads that are no longer than what was written
PAIRS = tuple({"theta": t, "prior": p} for p in PRIORS for t in (2.5, 5.0))
NORMALISED = Kind(past_read, PAIRS, 1, True, MEAN_STEPS)
DELTA = Kind(delta_read, tuple({"beta": b} for b in BETAS), 4, False, MEAN_STEPS)
BOUNDED = Kind(bounded_read, tuple({"most": m} for m in NORMS), 3)
UNEMBEDDING = (0.03, 0.1, 0.3, 1.0, 3.0)  # in logits, for one write


def keys_of(study: Study, x: Array) -> Array:
    """(T,D)->(T,K)   whitened, of unit length"""
    return key_fwd(x, study.facts.key, True)[0]


def untrained_losses(
    study: Study,
    document: Document,
    eta: float,
    whiten: bool,
    read: Read = past_read,
    **options: Any,
) -> Array:
    """(T,)   losses with the stale gradients of the past added; ``options`` as ``read`` has them

    Values are in units of a write's length, as training text has it.
    """
    found, facts = read_at(study, document, study.settings.window), study.facts
    k, length = keys_of(study, found.x), facts.whitened if whiten else facts.dz  # (T,K)
    v = namespace(k).matmul(found.dz, facts.values) if whiten else found.dz  # (T,D)
    o = read(k, v / length, **options)  # (T,D)
    return plain_losses(study.model, found.x - eta * length * o, found.labels)


def step_unit(study: Study, whiten: bool) -> float:
    """The step size with which one write moves a feature by its own length."""
    facts = study.facts
    return facts.x / (facts.whitened if whiten else facts.dz)


def untrained_step(study: Study) -> float:
    """The step size of the linear form that is best on validation; from its row if there is one."""
    key = ("eta", False)
    if key not in study.memo:
        unit, more = step_unit(study, False), study.settings.more

        def loss(step: float) -> float:
            found = [home(untrained_losses(study, d, step * unit, False)) for d in study.validation]
            return mean_loss(found)

        further = more + FURTHER if more else 0
        study.memo[key] = tune(loss, STEPS, 3.0, further).best * unit
    return study.memo[key]


def untrained(study: Study, name: str, whiten: bool, kind: Kind = LINEAR) -> Row:
    """A read of the past with a tuned step size and options; for the linear one, first the step
    size, then the bias's and the decay.
    """
    unit, more, linear = step_unit(study, whiten), study.settings.more, kind is LINEAR

    def loss(eta: float, options: dict[str, float]) -> float:
        found = study.validation
        return mean_loss(
            [home(untrained_losses(study, d, eta, whiten, kind.read, **options)) for d in found]
        )

    def at_step(options: dict[str, float], step: float) -> float:
        return loss(step * unit, options)

    steps = kind.steps or (WHITENED_STEPS if whiten else STEPS)
    further = more + FURTHER if more else 0
    best: tuple[float, float, dict[str, float]] = (math.inf, 0.0, {})
    tries = kind.tries if more or linear else kind.tries[1:2]
    for options in tries:
        t = tune(partial(at_step, options), steps, 3.0, further)
        best = min(best, (t.loss, t.best * unit, options), key=lambda f: f[0])
    if linear:
        study.memo["eta", whiten] = best[1]
        for option, values in (("ratio", RATIOS), ("decay", DECAYS)) if more else ():
            for value in values:
                tried = best[2] | {option: value}
                at = loss(best[1], tried)
                best = min(best, (at, best[1], tried), key=lambda f: f[0])
    reached, eta, options = best
    losses, seconds = timed(
        lambda d: untrained_losses(study, d, eta, whiten, kind.read, **options), study.test, name
    )
    D, T = study.model.config.width, study.settings.length
    reads = kind.maps * D * D + (T * D if kind.pairs else 0)
    chosen = {"step": eta / unit, "eta": eta, **options, "validation": reached}
    return row(
        study, name, losses, seconds, 2 * head_products(study.model.config) + reads, chosen=chosen,
        memory=4 * (T * 2 * D if kind.pairs else D * D), uses=(AS_IS,),
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
