"""A neural cache over the features of a language model: read with it, and tune it.

The features are those below the block, each window read anew, so the losses under the cache may be
the plain model's or those of fast weights. A trunk runs once for both. theta is tuned in units of
one over the mean squared length of a feature, which makes it a number of the same size for every
model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from ..backend import Array, host, namespace, to_numpy
from .data import Document, windows
from .device import batch_like
from .model import Config, Parameters, block_score, fast_settings, features
from .neural_cache import cache_probability, mix_cache
from .tune import Tuned, tune


class Parts(NamedTuple):
    """A document as a model has read it."""

    nll: Array  # (T,) losses of the model, in nats
    x: Array  # (T,D) features below the block
    labels: Array  # (T,) the bytes that came next


class TunedCache(NamedTuple):
    """What was chosen, its loss in nats a byte, and the loss of every pair that was tried."""

    theta: float  # in units of one over the mean squared length of a feature
    share: float  # lambda
    loss: float
    tried: dict[tuple[float, float], float]


def cached(
    params: Parameters,
    config: Config,
    document: Document,
    window: int,
    limit: int | None = None,
    *,
    theta: float,
    share: float,
    carried: bool = False,
) -> Array:
    """A way of reading as those of ``evaluate``: the model's losses with the cache mixed in.

    theta is that of ``cache_probability``, in no units. Raises as it and ``mix_cache`` do.
    """
    nll, x, labels = parts(params, config, document, window, limit, carried=carried)
    return to_numpy(mix_cache(nll, cache_probability(x, labels, theta), share))


def parts(
    params: Parameters,
    config: Config,
    document: Document,
    window: int,
    limit: int | None = None,
    *,
    carried: bool = False,
) -> Parts:
    """Losses of the plain model, or of a fast one, its state reset in every window or ``carried``;
    and what the cache needs.
    """
    state, found = None, []
    settings = fast_settings(config)._replace(carry=carried)
    for batch in windows(document, window, limit):
        tokens, labels, weights = batch_like(batch, params.embedding)  # (1,T)
        x, _ = features(params, tokens, config)  # (1,T,D)
        nll, _, state = block_score(params, x, labels, weights, config, settings, state)  # (1,T)
        found.append((nll[0, :], x[0, :, :], labels[0, :]))
    xp = namespace(params.embedding)
    return Parts(*(xp.concat(list(part), axis=0) for part in zip(*found, strict=True)))


def squared_length(features: Iterable[Array]) -> float:
    """(T,D),...->float   mean squared length of a feature, over all of all documents"""
    total, count = 0.0, 0
    for x in features:
        total += float(to_numpy(namespace(x).sum(x * x)))
        count += x.shape[0]
    return total / count


def best_share(losses: Sequence[Array], cached: Sequence[Array], shares: Sequence[float]) -> Tuned:
    """lambda of least loss for given losses and probabilities of the cache."""

    def loss(share: float) -> float:
        mixed = [to_numpy(mix_cache(a, b, share)) for a, b in zip(losses, cached, strict=True)]
        return float(host.concatenate(mixed).astype("float64").mean())

    return tune(loss, shares, more=0)


def tune_cache(
    losses: Sequence[Array],
    probability: Callable[[float], Sequence[Array]],
    thetas: Sequence[float],
    shares: Sequence[float],
    more: int = 0,
) -> TunedCache:
    """theta and lambda together, for losses (T,) of documents; ``probability`` gives what the cache
    has of each at a theta. Beyond the edge of ``thetas`` up to ``more`` others are tried.

    Raises FloatingPointError if no loss is finite.
    """
    tried: dict[tuple[float, float], float] = {}

    def loss(theta: float) -> float:
        found = best_share(losses, probability(theta), shares)
        tried.update({(theta, share): value for share, value in found.tried.items()})
        return found.loss

    tune(loss, thetas, 2.0, more)
    best = min(tried, key=tried.__getitem__)
    return TunedCache(*best, tried[best], tried)


def tune_on(
    read: Sequence[Parts], thetas: Sequence[float], shares: Sequence[float]
) -> tuple[TunedCache, float]:
    """``tune_cache`` on documents that were read, and the unit of its theta."""
    unit = 1 / squared_length(part.x for part in read)

    def probability(theta: float) -> list[Array]:
        return [cache_probability(part.x, part.labels, theta * unit) for part in read]

    return tune_cache([part.nll for part in read], probability, thetas, shares), unit
