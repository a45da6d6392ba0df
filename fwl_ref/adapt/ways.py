"""The ways of reading, and what they share: the model as it is, at any window, and the mixture.

Whatever is tuned is tuned on the validation documents of all texts together, and then the test
documents are read once. Every way scores a token from what stands before it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from ..backend import Array, host, like, to_numpy, wait
from ..lm.bar import Bar
from ..lm.mixture import mixture
from .rows import Row
from .settings import head_products
from .study import Study, features_at
from .trunk import features, plain_losses

AS_IS = "as it is"


def row(
    study: Study,
    name: str,
    losses: Sequence[Array],
    seconds: float,
    products: float,
    *,
    chosen: dict[str, Any] | None = None,
    window: int | None = None,
    memory: int = 0,
    uses: tuple[str, ...] = (),
    documents: Sequence[int] | None = None,
) -> Row:
    """A row; on all test documents unless told which."""
    numbers = tuple(range(len(study.test)) if documents is None else documents)
    at = study.settings.window if window is None else window
    return Row(name, numbers, tuple(losses), chosen or {}, at, seconds, products, memory, uses)


def context_name(window: int) -> str:
    """The row of the model at a longer window."""
    return f"context {window}"


def as_it_is(study: Study, window: int) -> Row:
    """The model at a window of its attention."""
    ids = study.test[0].tokens.ids
    wait(features(study.model, ids[: window + 1], window))  # the first time is no measure
    began = time.perf_counter()
    wait(features(study.model, ids, window))
    trunk = (time.perf_counter() - began) / (len(ids) - 1)
    name = AS_IS if window == study.settings.window else context_name(window)
    losses, seconds = [], 0.0
    for document in Bar(study.test, desc=name, unit="document", leave=False):
        x = like(features_at(study, document, window), study.model.U, study.model.U.dtype)
        labels = like(document.tokens.ids[1:], x)  # (T,)
        began = time.perf_counter()
        losses.append(home(plain_losses(study.model, x, labels)))
        seconds += time.perf_counter() - began
    seconds /= sum(len(loss) for loss in losses)
    c = study.model.config
    chosen = {"trunk_seconds": trunk}
    cost = head_products(c)
    return row(study, name, losses, seconds, cost, chosen=chosen, window=window)


def guard(
    study: Study,
    name: str,
    rows: Sequence[Row],
    documents: Sequence[int] | None = None,
    uses: tuple[str, ...] = (),
    window: int | None = None,
) -> Row:
    """The mixture of rows that follows the better one; nothing to tune, only the past is used."""
    numbers = tuple(range(len(study.test)) if documents is None else documents)
    found, began = [], time.perf_counter()
    for number in numbers:
        found.append(mixture([r.losses[r.documents.index(number)] for r in rows])[0])
    seconds = (time.perf_counter() - began) / sum(len(f) for f in found)
    uses = uses or tuple(r.name for r in rows)
    count = len(rows)
    return row(
        study, name, found, seconds, 4.0 * count, memory=8 * count, uses=uses,
        documents=numbers, window=window, chosen={"of": [r.name for r in rows]},
    )  # fmt: skip


def home(a: Array) -> Array:
    """On the host, in float64: there losses are compared and mixed."""
    return host.asarray(to_numpy(a), dtype="float64")
