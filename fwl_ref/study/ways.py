"""Ways of reading with a trained model. What is tuned is tuned on validation documents, and then
the test documents are read once.

A way takes what was loaded and the row's settings, and returns what it chose and a reader, which
gives the losses of a document.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, TypeAlias

from ..backend import Array, host, to_numpy
from ..dynamic_evaluation import Descent, evaluate_block, mean_square, rms_scale
from ..lm import cached, evaluate
from ..lm.corpus import Corpus, Document
from ..lm.data import windows
from ..lm.device import batch_like
from ..lm.evaluate import bits_per_byte
from ..lm.model import (
    Config,
    Parameters,
    effective_step_sizes,
    fast_settings,
    features,
)
from ..lm.neural_cache import mix_cache
from ..lm.tune import tune
from ..ops.cross_entropy import cross_entropy_fwd
from .ngram import ngram_nats
from .teach import read_with
from .tops import top_of

Reader: TypeAlias = Callable[[Document], Array]  # losses (T,) in nats


class Given(NamedTuple):
    """What a way reads with."""

    params: Parameters
    config: Config
    window: int
    seed: int
    corpus: Corpus
    validation: list[Document]


class Chosen(NamedTuple):
    """How a way reads, and what was tuned."""

    read: Reader
    tuned: dict[str, Any]


def static(given: Given, _: dict[str, Any]) -> Chosen:
    """The model as it is."""
    config = given.config._replace(fast=False)
    return Chosen(_bound(given, evaluate.static, config=config), {})


def fast(given: Given, o: dict[str, Any]) -> Chosen:
    """A trained fast weight model, reset or ``carried``; parameters in ``off`` do not move."""
    zero = {name: 0 * getattr(given.params.eta, name) for name in o.get("off", ())}
    params = given.params._replace(eta=given.params.eta._replace(**zero))
    reader = _bound(given, evaluate.fast_weights, params=params, carried=o["carried"])
    return Chosen(reader, {})


def sgd(given: Given, o: dict[str, Any]) -> Chosen:
    """Dynamic evaluation of all parameters."""

    def reader(rate: float, decay: float) -> Reader:
        descent = Descent(rate, decay)
        return _bound(given, evaluate.dynamic, descent=descent, segment=o["segment"])

    return tuned(given, reader, o["rates"], o["decays"], o["more"])


def by_rms(given: Given, o: dict[str, Any]) -> Chosen:
    """Dynamic evaluation of all parameters with the RMS rule; decays a tenth of the others'."""
    scale = rms_scale(mean_square(_gradients(given, o)))

    def reader(rate: float, decay: float) -> Reader:
        descent = Descent(rate, decay / 10, scale)
        return _bound(given, evaluate.dynamic, descent=descent, segment=o["segment"])

    return tuned(given, reader, o["rates"], o["decays"], o["more"])


def block(given: Given, o: dict[str, Any]) -> Chosen:
    """Dynamic evaluation of the block alone; with ``batches`` by the RMS rule, as ``by_rms``."""
    scale = None
    if "batches" in o:
        scale = rms_scale(mean_square(gradient.block for gradient in _gradients(given, o)))

    def reader(rate: float, decay: float) -> Reader:
        pull = decay if scale is None else decay / 10
        options = {"rate": rate, "decay": pull, "segment": o["segment"], "scale": scale}
        return _bound(given, evaluate.dynamic_block, **options)

    return tuned(given, reader, o["rates"], o["decays"], o["more"])


def untrained(given: Given, o: dict[str, Any]) -> Chosen:
    """Fast weights with one step size for all on the plain model, carried."""

    def reader(rate: float, decay: float) -> Reader:
        params = evaluate.with_step_size(given.params, rate, decay)
        config = given.config._replace(fast=True)
        return _bound(given, evaluate.fast_weights, params=params, config=config, carried=True)

    return tuned(given, reader, o["rates"], o["decays"], o["more"])


def cache(given: Given, o: dict[str, Any]) -> Chosen:
    """The neural cache over the features below the block, on the model as it is or, of a fast one,
    on its losses (``lm/cached.py``).
    """
    model = given.params, given.config
    read = [cached.parts(*model, d, given.window, carried=o["carried"]) for d in given.validation]
    best, unit = cached.tune_on(read, o["thetas"], o["shares"])
    edge = best.theta in (min(o["thetas"]), max(o["thetas"]))
    edge = edge or best.share in (min(o["shares"]), max(o["shares"]))
    bits = best.loss / evaluate.LN2
    chosen = {"theta": best.theta, "share": best.share, "bits": bits, "edge": edge}
    options = {"theta": best.theta * unit, "share": best.share, "carried": o["carried"]}
    return Chosen(_bound(given, cached.cached, **options), chosen)


def with_top(given: Given, o: dict[str, Any]) -> Chosen:
    """A model with another top than the fast weight block, or the block read otherwise."""
    top = top_of(given.config, o["top"])
    return Chosen(_bound(given, read_with, top=top, carried=o["carried"]), {})


def ngrams(given: Given, o: dict[str, Any]) -> Chosen:
    """Counts of the document's own contexts (``ngram.py``) mixed with a model: with no training,
    and nearly no arithmetic, what repeats is predicted.
    """
    under = fast(given, o) if given.config.fast else static(given, o)

    def parts(document: Document) -> tuple[Array, Array]:
        counted = ngram_nats(document.data.tobytes(), o["order"])  # (T,) nats
        return under.read(document), host.exp(-host.asarray(counted))

    found = [parts(d) for d in given.validation]
    table = {s: bits_per_byte([mix_cache(*part, s) for part in found]) for s in o["shares"]}
    share = min(table, key=table.__getitem__)
    edge = share in (min(o["shares"]), max(o["shares"]))
    chosen = {"share": share, "bits": table[share], "edge": edge}
    return Chosen(lambda document: mix_cache(*parts(document), share), chosen)


def fresh(given: Given, _: dict[str, Any]) -> Chosen:
    """The learned step sizes of a fast model, its gradients taken at the parameters as they are at
    every token and not at the slow ones; reset every window. Token by token, so it takes long.
    """
    p, config = given.params, given.config
    eta, fixed = effective_step_sizes(p.eta, config.dialect), fast_settings(config)

    def read(document: Document) -> Array:
        losses = []
        for batch in windows(document, given.window):
            tokens, labels, weights = batch_like(batch, p.embedding)  # (1,T)
            x, _ = features(p, tokens, config)  # (1,T,D)
            decay, n, eps = float(to_numpy(p.decay)), fixed.constant, fixed.eps
            logits, _ = evaluate_block(
                x, labels, weights, p.block, eta, segment=1, decay=decay, n=n, eps=eps
            )  # (1,T,V)
            losses.append(to_numpy(cross_entropy_fwd(logits, labels)[0])[0])
        return host.concatenate(losses)

    return Chosen(read, {})


WAYS: dict[str, Callable[[Given, dict[str, Any]], Chosen]] = {
    "static": static,
    "fast": fast,
    "sgd": sgd,
    "rms": by_rms,
    "block": block,
    "block_rms": block,
    "untrained": untrained,
    "cache": cache,
    "n-grams": ngrams,
    "fresh": fresh,
    "top": with_top,
}


def tuned(
    given: Given,
    reader: Callable[[float, float], Reader],
    rates: tuple[float, ...],
    decays: tuple[float, ...],
    more: int,
) -> Chosen:
    """The rate and decay with the fewest bits on validation documents. As long as the best rate is
    the smallest or the largest, one half or twice as large is tried, at most ``more`` times.

    Raises FloatingPointError if nothing that was tried gave finite losses.
    """
    table: dict[tuple[float, float], float] = {}

    def fewest(rate: float) -> float:
        for decay in decays:
            with host.errstate(all="ignore"):  # a rate that is too large explodes: a result too
                bits = bits_per_byte([reader(rate, decay)(d) for d in given.validation])
            table[rate, decay] = bits if math.isfinite(bits) else math.inf
        return min(table[rate, decay] for decay in decays)

    found = tune(fewest, rates, factor=2.0, more=more)
    rate, decay = min(table, key=table.__getitem__)
    tried = list(found.tried)  # in their order
    edge = len(tried) > 1 and rate in (tried[0], tried[-1])
    chosen = {"rate": rate, "decay": decay, "bits": found.loss, "edge": edge}
    return Chosen(reader(rate, decay), chosen)


def _gradients(given: Given, o: dict[str, Any]) -> Iterator[Parameters]:
    """Of training text, for the statistics of the RMS rule."""
    drawn = given.corpus, o["segment"], given.seed + 1, o["batches"]
    return evaluate.segment_gradients(given.params, given.config, *drawn)


def _bound(given: Given, function: Callable[..., Array], **options: Any) -> Reader:
    """A function of ``lm/evaluate.py`` that needs only the document."""
    own = {"params": given.params, "config": given.config, "window": given.window} | options
    return partial(_read, function, own)


def _read(function: Callable[..., Array], options: dict[str, Any], document: Document) -> Array:
    return function(document=document, **options)
