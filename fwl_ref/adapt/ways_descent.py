"""Real dynamic evaluation as rows: of the last layers and of all parameters, SGD and RMS."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from ..backend import Array, like
from ..dynamic_evaluation import RmsScale
from ..lm.bar import Bar
from ..lm.tune import tune
from .descent import (
    Score,
    adapted_losses,
    descent_of,
    statistics,
    top_of,
    top_score,
    whole_inputs,
    whole_score,
)
from .rows import Row
from .settings import context_bytes, head_products, model_bytes, trunk_products
from .study import Document, Study, mean_loss
from .trunk import features
from .ways import home, row

RATES = {  # (RMS, all parameters) -> what is tried first
    (True, False): (3e-5, 1e-4, 3e-4),
    (True, True): (1e-6, 3e-6, 1e-5),
    (False, False): (1e-2, 3e-2, 1e-1),
    (False, True): (3e-3, 1e-2, 3e-2),
}


def descent_name(study: Study, rms: bool, whole: bool) -> str:
    """The row's name."""
    part = "all parameters" if whole else f"last {study.settings.layers} layers"
    return f"dynamic evaluation, {'RMS' if rms else 'SGD'}, {part}"


def inputs_of(study: Study, ids: Array, whole: bool) -> Array:
    """(n)->(n-1) or (n-1,D)   tokens, or the features below the last layers"""
    if whole:
        return whole_inputs(ids, study.model.U)
    below = study.model.config.layers - study.settings.layers
    return features(study.model, ids, study.settings.window, below)


def score_of(study: Study, whole: bool) -> tuple[Score, Any]:
    """The function of what adapts, and its parameters."""
    if whole:
        return whole_score(study.model), study.model.parameters
    return top_score(study.model), top_of(study.model, study.settings.layers)


def scale_of(study: Study, whole: bool) -> RmsScale:
    """Statistics of training text for the RMS rule."""
    s, target = study.settings, study.model.U
    key = ("scale", whole)
    if key not in study.memo:
        score, theta = score_of(study, whole)
        long = [p for p in study.pieces if len(p.x) >= s.segment] or list(study.pieces)
        every = max(1, len(long) // s.pieces)
        pieces = []
        for piece in long[::every][: s.pieces]:
            ids = piece.ids[: s.segment + 1]
            pieces.append((inputs_of(study, ids, whole), like(ids[1:], target)))
        study.memo[key] = statistics(score, theta, pieces, s.segment)
    return study.memo[key]


def losses_of(
    study: Study, document: Document, rate: float, rms: bool, whole: bool, limit: int | None = None
) -> Array:
    """(T,)   losses of a document, of its first ``limit`` tokens"""
    s = study.settings
    ids = document.tokens.ids[: None if limit is None else limit + 1]
    score, theta = score_of(study, whole)
    descent = descent_of(rate, scale_of(study, whole) if rms else None)
    key = ("below", document.tokens.key, limit)
    if whole:
        inputs = inputs_of(study, ids, whole)
    else:
        if key not in study.memo:
            study.memo[key] = inputs_of(study, ids, whole)
        inputs = study.memo[key]
    labels = like(ids[1:], study.model.U)  # (T,)
    return adapted_losses(score, theta, inputs, labels, descent, s.window, s.segment)


def first_of(documents: Sequence[Document], count: int) -> list[int]:
    """The numbers of the first ``count`` documents of each text."""
    seen: dict[str, int] = {}
    found = []
    for i, document in enumerate(documents):
        seen[document.source] = seen.get(document.source, 0) + 1
        if seen[document.source] <= count:
            found.append(i)
    return found


def descent_row(study: Study, rms: bool, whole: bool) -> Row:
    """One rule on one set of parameters, its rate tuned on the first validation document of each
    text.
    """
    s, name = study.settings, descent_name(study, rms, whole)
    documents = [study.validation[i] for i in first_of(study.validation, 1)]

    def loss(rate: float) -> float:
        found = mean_loss(
            [home(losses_of(study, d, rate, rms, whole, s.tune_length)) for d in documents]
        )
        Bar.write(f"  {name}, rate {rate:g}: validation {found:.4f} nats a token")
        return found

    tuned = tune(loss, RATES[rms, whole], 3.0, s.more)
    numbers = first_of(study.test, s.full if whole else len(study.test))
    losses, seconds = [], 0.0
    for number in Bar(numbers, desc=name, unit="document", leave=False):
        began = time.perf_counter()
        losses.append(home(losses_of(study, study.test[number], tuned.best, rms, whole)))
        seconds += time.perf_counter() - began
    seconds /= sum(len(found) for found in losses)
    for key in [k for k in study.memo if k[:1] == ("below",)]:
        del study.memo[key]
    study.memo["descent", rms, whole] = tuned.best
    c = study.model.config
    head, trunk = head_products(c), trunk_products(c, s.window)
    top, moved = trunk_products(c, s.window, s.layers), model_bytes(c)
    if whole:
        products = 3 * (trunk + head)
        study.memo.pop(("scale", True), None)  # four times the model
    else:
        products = trunk + 2 * top + 2 * head
        layers = (moved - 4 * c.vocabulary * c.width) // c.layers  # bytes of one
        moved = s.layers * layers
    copies = 4 if rms else 2  # gradient, parameters, and the statistics of RMS
    kept = copies * moved + context_bytes(c, s.window)
    return row(
        study, name, losses, seconds, products, window=0, memory=kept,
        chosen={"rate": tuned.best, "validation": tuned.loss}, documents=numbers,
    )  # fmt: skip


def descent_validation(study: Study, rms: bool, rate: float) -> tuple[list[Document], list[Array]]:
    """The documents on which the rate was tuned, and their losses at that rate, last layers."""
    documents = [study.validation[i] for i in first_of(study.validation, 1)]
    limit = study.settings.tune_length
    return documents, [home(losses_of(study, d, rate, rms, False, limit)) for d in documents]
