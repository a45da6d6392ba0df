"""The neural cache as a row: on the model as it is, and on any other way of reading."""

from __future__ import annotations

from collections.abc import Sequence

from ..backend import Array
from ..lm.cached import best_share, squared_length, tune_cache
from ..lm.neural_cache import cache_probability, mix_cache
from .rows import Row
from .study import Document, Study, read_at, timed
from .ways import AS_IS, home, row

THETAS = (5.0, 10.0, 20.0, 40.0)  # for features of mean length 1
SHARES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4)  # lambda
CACHE = "neural cache"


def cache_unit(study: Study) -> float:
    """One over the mean squared length of final features, on validation."""
    if "cache_unit" not in study.memo:
        window = study.settings.window
        found = (read_at(study, document, window).n for document in study.validation)
        study.memo["cache_unit"] = 1 / squared_length(found)
    return study.memo["cache_unit"]


def probability(study: Study, document: Document, theta: float, window: int) -> Array:
    """(T,)   what the cache gives the next token, for features at a window"""
    key = ("cache", document.tokens.key, theta, window)
    if key not in study.memo:
        found = read_at(study, document, window)
        study.memo[key] = cache_probability(found.n, found.labels, theta * cache_unit(study))
    return study.memo[key]


def cache_theta(study: Study) -> float:
    """theta of the cache, tuned with lambda on the model as it is."""
    if "theta" not in study.memo:
        window = study.settings.window
        plain = [home(read_at(study, d, window).nll) for d in study.validation]

        def cached(theta: float) -> list[Array]:
            return [home(probability(study, d, theta, window)) for d in study.validation]

        more = study.settings.more
        study.memo["theta"] = tune_cache(plain, cached, THETAS, SHARES, more).theta
    return study.memo["theta"]


def with_cache(
    study: Study,
    name: str,
    under: str,
    losses: Sequence[Array],
    validation: Sequence[Array],
    window: int,
    documents: Sequence[int] | None = None,
    tuned_on: Sequence[Document] | None = None,
) -> Row:
    """The cache over losses of another way, its lambda tuned for that way."""
    theta = cache_theta(study)
    tuned = study.validation if tuned_on is None else tuned_on
    cached = [home(probability(study, d, theta, window)) for d in tuned]
    cached = [c[: len(v)] for c, v in zip(cached, validation, strict=True)]
    share = best_share(validation, cached, SHARES)
    tests = [study.test[i] for i in documents] if documents is not None else study.test
    for d in tests:  # timed afresh below
        study.memo.pop(("cache", d.tokens.key, theta, window), None)
    own, seconds = timed(lambda d: probability(study, d, theta, window), tests, name)
    mixed = [mix_cache(a, b, share.best) for a, b in zip(losses, own, strict=True)]
    D, T = study.model.config.width, study.settings.length
    chosen = {"theta": theta, "lambda": share.best, "validation": share.loss}
    return row(
        study, name, mixed, seconds, T / 2 * D, chosen=chosen, window=window,
        memory=T * (4 * D + 8), uses=(under,), documents=documents,
    )  # fmt: skip


def neural_cache(study: Study) -> Row:
    """The cache on the model as it is."""
    window = study.settings.window
    plain = [home(read_at(study, d, window).nll) for d in study.test]
    tuned = [home(read_at(study, d, window).nll) for d in study.validation]
    return with_cache(study, CACHE, AS_IS, plain, tuned, window)
