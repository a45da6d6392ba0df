"""Ways to read a document: static, dynamic evaluation, fast weights; each yields the loss of every
byte.

All see the text in the same windows of T bytes, so all have the same context. What differs is what
they carry on from what they have read. One window is in memory at a time; its losses stay on the
device until the document is read and come home together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from tqdm import tqdm

from ..backend import Array, host, namespace, to_numpy
from ..checks import check_segment
from ..dynamic_evaluation import FAST_ONLY, Descent, dynamic_evaluation
from ..ops.linear_attention import chunk_slices
from ..slow_block import FastParameters, SlowParameters, slow_block_bwd, slow_block_fwd
from ..tree import tree_map
from .data import Batch, Document, windows
from .device import batch_like
from .model import DIALECTS, Config, Parameters, features_fwd, loss_and_gradient, model_fwd

LN2 = 0.6931471805599453

Method = Callable[[Document], Array]


def static(params: Parameters, config: Config, window: int, limit: int | None = None) -> Method:
    """The plain model: parameters never change."""
    return fast_weights(params, config._replace(fast=False), window, limit)


def fast_weights(
    params: Parameters,
    config: Config,
    window: int,
    limit: int | None = None,
    *,
    carried: bool = False,
) -> Method:
    """The fast weight block; its state is reset at every window, or ``carried`` through the
    document.
    """

    def score(batch: Batch, state: FastParameters | None) -> tuple:
        output, _ = model_fwd(params, *batch_like(batch, params.embedding), config, state)
        return output.nll[
            0, :
        ], output.state if carried else None  # all else is let go before the next window

    def read(document: Document) -> Array:
        state, losses = None, []
        for batch in windows(document, window, limit):
            nll, state = score(batch, state)
            losses.append(nll)
        return _home(losses)

    return read


def dynamic(
    params: Parameters,
    config: Config,
    window: int,
    limit: int | None = None,
    *,
    descent: Descent,
    segment: int,
) -> Method:
    """Dynamic evaluation of the whole plain model: segments of a window see the window's earlier
    segments through the cache.

    Raises ValueError if ``segment`` is below 1.
    """
    check_segment(segment)
    config = config._replace(fast=False)

    def score(theta: Parameters, item: tuple) -> tuple:
        tokens, labels, past = item
        _, gradient, output = loss_and_gradient(
            theta, tokens, labels, None, config, past[0] if past else None
        )
        past[:] = [
            output.caches
        ]  # the next segment of this window sees these keys and values, and no gradient reaches them
        return output.nll[0, :], gradient

    def segments(document: Document) -> Iterator[tuple]:
        for batch in windows(document, window, limit):
            tokens, labels, _ = batch_like(batch, params.embedding)
            past: list = []
            for part in chunk_slices(tokens.shape[1], segment):
                yield tokens[:, part], labels[:, part], past

    def read(document: Document) -> Array:
        return _home(
            [nll for nll, _ in dynamic_evaluation(params, segments(document), score, descent)]
        )

    return read


def dynamic_block(
    params: Parameters,
    config: Config,
    window: int,
    limit: int | None = None,
    *,
    rate: float,
    decay: float,
    segment: int,
) -> Method:
    """Dynamic evaluation of the block's six fast parameters alone: the trunk runs forward once per
    window.
    """
    check_segment(segment)
    eps = DIALECTS[config.dialect]
    descent = Descent(rate, decay, subset=FAST_ONLY)

    def score(theta: SlowParameters, item: tuple) -> tuple:
        x, labels = item
        (nll, _), res = slow_block_fwd(x, labels, theta, eps)
        share = namespace(nll).full_like(nll, 1 / nll.shape[1])  # (1,L) the mean over the segment
        return nll[0, :], slow_block_bwd(share, res)[1]

    def segments(document: Document) -> Iterator[tuple]:
        for batch in windows(document, window, limit):
            tokens, labels, _ = batch_like(batch, params.embedding)
            (x, _), _ = features_fwd(params, tokens, config)
            for part in chunk_slices(tokens.shape[1], segment):
                yield x[:, part, :], labels[:, part]

    def read(document: Document) -> Array:
        return _home(
            [nll for nll, _ in dynamic_evaluation(params.block, segments(document), score, descent)]
        )

    return read


def with_step_size(params: Parameters, step_size: float, decay: float) -> Parameters:
    """The same parameters with one step size for all six fast parameters: what one has without
    learning them.
    """
    eta = tree_map(lambda e: namespace(e).full_like(e, step_size), params.eta)
    return params._replace(eta=eta, decay=namespace(params.decay).full_like(params.decay, decay))


def bits_per_byte(losses: list[Array]) -> float:
    """Mean over all bytes of all documents, in bits."""
    return float(host.concatenate(losses).astype("float64").mean() / LN2)


def print_table(documents: Iterable[Document], ways: dict[str, Method], note: str = "") -> None:
    """Read every document in every way; print bits per byte of each document as it is done, and of
    all bytes together.

    ``note`` stands behind the heading of the columns.

    Raises ValueError if no document has at least 2 bytes.
    """
    kept = [d for d in documents if len(d.data) > 1]
    if not kept:
        raise ValueError(
            "no document of at least 2 bytes to read: the first byte is given, the others are predicted"
        )
    print("bytes".rjust(9), *(name.rjust(26) for name in ways), f" document  {note}".rstrip())
    total: dict[str, list[Array]] = {name: [] for name in ways}
    for document in tqdm(kept, desc="reading", unit="document", leave=False):
        for name, method in ways.items():
            total[name].append(method(document))
        row = [f"{bits_per_byte(losses[-1:]):26.3f}" for losses in total.values()]
        tqdm.write(" ".join([f"{len(total[name][-1]):9,}", *row, f" {document.name}"]))
    print(
        " ".join(
            [
                " " * 9,
                *(f"{bits_per_byte(losses):26.3f}" for losses in total.values()),
                f" all {len(kept)} documents",
            ]
        )
    )


def _home(losses: list[Array]) -> Array:
    """Losses of all windows as one host array."""
    return to_numpy(namespace(*losses).concat(losses))
