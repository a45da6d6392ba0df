"""Ways to read a document: static, dynamic evaluation, fast weights.

``way(params, config, document, window, limit, ...)`` returns the loss in nats of every byte but the
first, (n-1,) on the host. All see the text in the same windows of T bytes, so all have the same
context. What differs is what they carry on from what they have read. One window is in memory at a
time. Its losses stay on the device until the document is read, and come home together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ..backend import Array, host, namespace, to_numpy
from ..checks import check_segment
from ..dynamic_evaluation import FAST_ONLY, Descent, RmsScale, update
from ..ops.common import chunk_slices
from ..slow_block import FastParameters, slow_block_bwd, slow_block_fwd
from ..tree import tree_map
from .corpus import Corpus
from .data import Batch, Document, training_batch, windows
from .device import batch_like
from .model import (
    DIALECTS,
    Config,
    Parameters,
    features,
    loss_and_gradient,
    model_bwd,
    model_fwd,
    model_score,
)

LN2 = 0.6931471805599453


def static(
    params: Parameters, config: Config, document: Document, window: int, limit: int | None = None
) -> Array:
    """The plain model: nothing is carried on."""
    return fast_weights(params, config._replace(fast=False), document, window, limit)


def fast_weights(
    params: Parameters,
    config: Config,
    document: Document,
    window: int,
    limit: int | None = None,
    *,
    carried: bool = False,
) -> Array:
    """The fast weight block. Its state starts empty in every window, or is ``carried`` through the
    document.
    """
    if carried:
        return carry(params, config, document, window, limit)[0]
    batches = windows(document, window, limit)
    return _home([read_window(params, config, b, None, carry=False)[0] for b in batches])


def carry(
    params: Parameters,
    config: Config,
    document: Document,
    window: int,
    limit: int | None = None,
    state: FastParameters | None = None,
) -> tuple[Array, FastParameters | None]:
    """The fast weight block, its state carried through the document from ``state`` (None: empty);
    the losses, and the state after all.
    """
    losses = []
    for batch in windows(document, window, limit):
        nll, state = read_window(params, config, batch, state)
        losses.append(nll)
    return _home(losses), state


def read_window(
    params: Parameters,
    config: Config,
    batch: Batch,
    state: FastParameters | None,
    carry: bool = True,
) -> tuple[Array, FastParameters | None]:
    """Losses (T,) of one window, and the state after it. All else is let go before the next window
    is read.
    """
    output = model_score(params, *batch_like(batch, params.embedding), config, state, carry=carry)
    return output.nll[0, :], output.state


def segment_gradients(
    params: Parameters, config: Config, corpus: Corpus, segment: int, seed: int, count: int
) -> Iterator[Parameters]:
    """Gradients of the plain model on ``count`` segments of training text, drawn by ``seed``: for
    the statistics of the RMS rule   (Y.3)
    """
    plain = config._replace(fast=False)
    for i in range(count):
        batch = training_batch(corpus.train, 1, segment, seed, i)
        yield loss_and_gradient(params, *batch_like(batch, params.embedding), plain)[1]


def dynamic(
    params: Parameters,
    config: Config,
    document: Document,
    window: int,
    limit: int | None = None,
    *,
    descent: Descent,
    segment: int,
) -> Array:
    """Dynamic evaluation of the whole plain model: score a segment, then take a step on it.

    The parameters ``theta`` are carried through the document, the keys and values ``caches``
    through a window: a segment sees the window's earlier ones, and no gradient reaches them.

    Raises ValueError if ``segment`` is below 1.
    """
    check_segment(segment)
    config = config._replace(fast=False)
    theta, losses = params, []
    for batch in windows(document, window, limit):
        tokens, labels, _ = batch_like(batch, params.embedding)  # (1,T)
        caches = None
        for part in chunk_slices(tokens.shape[1], segment):
            output, res = model_fwd(
                theta, tokens[:, part], labels[:, part], None, config, caches=caches
            )
            mean = namespace(output.nll).full_like(output.nll, 1 / output.nll.shape[1])  # (1,L)
            gradient = model_bwd(mean, res)
            losses.append(output.nll[0, :])  # (L,)
            theta, caches = update(theta, gradient, params, descent), output.caches
    return _home(losses)


def dynamic_block(
    params: Parameters,
    config: Config,
    document: Document,
    window: int,
    limit: int | None = None,
    *,
    rate: float,
    decay: float,
    segment: int,
    scale: RmsScale | None = None,
) -> Array:
    """Dynamic evaluation of the block's six fast parameters alone: the trunk runs once per window,
    forward. With ``scale``, statistics of the block's gradients, by the RMS rule.

    Raises ValueError if ``segment`` is below 1.
    """
    check_segment(segment)
    eps, descent = DIALECTS[config.dialect], Descent(rate, decay, scale, FAST_ONLY)
    theta, losses = params.block, []
    for batch in windows(document, window, limit):
        tokens, labels, _ = batch_like(batch, params.embedding)  # (1,T)
        x, _ = features(params, tokens, config)  # (1,T,D)
        for part in chunk_slices(tokens.shape[1], segment):
            (nll, _), res = slow_block_fwd(x[:, part, :], labels[:, part], theta, eps)
            losses.append(nll[0, :])  # (L,)
            mean = namespace(nll).full_like(nll, 1 / nll.shape[1])  # (1,L) of the segment's losses
            _, gradient = slow_block_bwd(mean, res)
            theta = update(theta, gradient, params.block, descent)
    return _home(losses)


class Way(NamedTuple):
    """One way of reading as plain data, which can be sent to another process."""

    function: Callable[..., Array]  # static, fast_weights, dynamic or dynamic_block
    params: Parameters
    config: Config
    options: dict[str, Any]  # the window, and what else the function takes
    label: str = "-"  # its step sizes in words


def read(way: Way, document: Document) -> Array:
    """Losses in nats (n-1,) of every byte but the first.

    Raises ValueError if there are not 2 bytes, or as the way's function does.
    """
    return way.function(way.params, way.config, document, **way.options)


def with_step_size(params: Parameters, step_size: float, decay: float) -> Parameters:
    """The same parameters with one step size for all six fast parameters: what one has without
    learning them.
    """
    eta = tree_map(lambda e: namespace(e).full_like(e, step_size), params.eta)
    return params._replace(eta=eta, decay=namespace(params.decay).full_like(params.decay, decay))


def bits_per_byte(losses: list[Array]) -> float:
    """Mean over all bytes of all documents, in bits."""
    return float(host.concatenate(losses).astype("float64").mean() / LN2)


def _home(losses: list[Array]) -> Array:
    """Losses of all windows as one host array."""
    return to_numpy(namespace(*losses).concat(losses))
