"""Real dynamic evaluation as rows: of the last layers and of all parameters, SGD and RMS."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from ..backend import Array, Tree, host, like
from ..lm.bar import Bar
from ..lm.llama import LlamaConfig
from ..lm.tune import tune
from .descent import (
    Score,
    Step,
    adapted_losses,
    statistics,
    top_of,
    top_score,
    whole_inputs,
    whole_score,
)
from .rows import Row
from .settings import context_bytes, head_products, model_bytes, trunk_products
from .store import kept, name_of
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


def texts_of(study: Study) -> list[Array]:
    """Tokens of training text, a segment each, for the statistics of the RMS rule."""
    s = study.settings
    texts = [document.tokens.ids for document in study.train]
    long = [ids for ids in texts if len(ids) > s.segment] or texts
    every = max(1, len(long) // s.pieces)
    return [ids[: s.segment + 1] for ids in long[::every][: s.pieces]]


def divisor_of(study: Study, whole: bool) -> Tree:
    """What the RMS rule divides by, from training text."""
    key = ("divisor", whole)
    if key not in study.memo:
        score, theta = score_of(study, whole)
        target, segment = study.model.U, study.settings.segment
        pieces = [(inputs_of(study, i, whole), like(i[1:], target)) for i in texts_of(study)]
        study.memo[key] = statistics(score, theta, pieces, segment)
    return study.memo[key]


def losses_of(
    study: Study, document: Document, rate: float, rms: bool, whole: bool, limit: int | None = None
) -> tuple[Array, float]:
    """(T,), seconds   losses of a document, of its first ``limit`` tokens, and the time they took

    All parameters take minutes a document, so what was read is kept on the disk.
    """
    s = study.settings
    ids = document.tokens.ids[: None if limit is None else limit + 1]
    label = like(ids[1:], study.model.U)  # (T,)

    def compute() -> dict[str, Array]:
        score, theta = score_of(study, whole)
        step = Step(rate, divisor_of(study, whole) if rms else None)
        began = time.perf_counter()
        inputs = below(study, document, ids, whole)
        found = home(adapted_losses(score, theta, inputs, label, step, s.window, s.segment))
        return {"losses": found, "seconds": host.asarray(time.perf_counter() - began)}

    words = [document.tokens.key, len(ids), rate, s.window, s.segment]
    words += [None if whole else s.layers]
    words += [[int(i) for i in ids] for ids in texts_of(study)] if rms else []
    found = kept(study.store, name_of(study.store, "descent", *words), compute)
    return found["losses"], float(found["seconds"])


def below(study: Study, document: Document, ids: Array, whole: bool) -> Array:
    """``inputs_of``, in the memo as long as a rate is tuned"""
    if whole:
        return inputs_of(study, ids, whole)
    key = ("below", document.tokens.key, len(ids))
    if key not in study.memo:
        study.memo[key] = inputs_of(study, ids, whole)
    return study.memo[key]


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
        read = [losses_of(study, d, rate, rms, whole, s.tune_length)[0] for d in documents]
        found = mean_loss(read)
        Bar.write(f"  {name}, rate {rate:g}: validation {found:.4f} nats a token")
        return found

    tuned = tune(loss, RATES[rms, whole], 3.0, s.more)
    numbers = first_of(study.test, s.full if whole else len(study.test))
    losses, seconds = [], 0.0
    for number in Bar(numbers, desc=name, unit="document", leave=False):
        found, taken = losses_of(study, study.test[number], tuned.best, rms, whole)
        losses.append(found)
        seconds += taken
    seconds /= sum(len(found) for found in losses)
    for key in [k for k in study.memo if k[:1] == ("below",)]:
        del study.memo[key]
    c = study.model.config
    moved = model_bytes(c)
    if whole:
        study.memo.pop(("divisor", True), None)  # as large as the model
    else:
        layers = (moved - 4 * c.vocabulary * c.width) // c.layers  # bytes of one
        moved = s.layers * layers
    copies = 3 if rms else 2  # parameters, gradient, and the divisor of RMS
    products = gradient_products(c, s.window, None if whole else s.layers)
    products += (copies - 1) * moved / 4 / s.segment  # the step itself
    kept_bytes = copies * moved + context_bytes(c, s.window)
    return row(
        study, name, losses, seconds, products, window=0, memory=kept_bytes,
        chosen={"rate": tuned.best, "validation": tuned.loss}, documents=numbers,
    )  # fmt: skip


def gradient_products(config: LlamaConfig, window: int, layers: int | None) -> float:
    """Multiply-adds a token of a loss and its gradient by the last ``layers``, None = all."""
    head, trunk = head_products(config), trunk_products(config, window)
    if layers is None:
        return 3 * (trunk + head) + head  # the embedding's gradient is a product too
    return trunk + 2 * trunk_products(config, window, layers) + 2 * head


def descent_validation(study: Study, rms: bool, rate: float) -> tuple[list[Document], list[Array]]:
    """The documents on which the rate was tuned, and their losses at that rate, last layers."""
    documents = [study.validation[i] for i in first_of(study.validation, 1)]
    limit = study.settings.tune_length
    return documents, [losses_of(study, d, rate, rms, False, limit)[0] for d in documents]
