"""A matrix and a bias that take true gradient steps read documents, several of them side by side.

A segment of one document is little work for a whole unembedding: documents that go through it
together share the time in which it comes from memory.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import NamedTuple

from ..backend import Array, host, like, namespace
from ..fast_matrix import FastMatrix
from ..key_map import KeyMap, key_fwd
from ..lm.bar import Bar
from ..ops.common import chunk_slices
from .layer import with_head
from .refreshed import refreshed_losses
from .study import Document, Study, features_at
from .ways import home


class Layer(NamedTuple):
    """A matrix and a bias that take true gradient steps, with all that fixes how."""

    key: KeyMap
    start: FastMatrix
    eta: FastMatrix
    decay: float
    values: Array | None  # (D,D) whitens what is written
    U: Array | None = None  # (D,V) the unembedding if it was trained as well
    below: tuple[int, KeyMap] | None = None  # features after so many layers are keys as well


def losses_of(
    study: Study, layer: Layer, documents: Sequence[Document], window: int, name: str = "tuning"
) -> tuple[tuple[Array, ...], float]:
    """(T,) of each document, on the host, with the trunk at a window; and seconds a token"""
    s, model = study.settings, with_head(layer.U, study.model)
    losses, seconds = [host.empty(0)] * len(documents), 0.0
    order = sorted(range(len(documents)), key=lambda i: -len(documents[i].tokens.ids))
    for part in Bar(chunk_slices(len(order), s.together), desc=name, leave=False):
        read = [documents[i] for i in order[part]]
        x, labels = _padded(study, read, window)
        h = _padded(study, read, window, layer.below[0])[0] if layer.below else None  # (B,T,D)
        began = time.perf_counter()
        k, _ = key_fwd(x, layer.key, True)  # (B,T,D)
        if layer.below:
            deep, _ = key_fwd(h, layer.below[1], True)  # (B,T,D)
            k = namespace(x).concat([k, deep], axis=-1) / math.sqrt(2)  # (B,T,2D) of unit length
        found = home(
            refreshed_losses(
                model, x, k, labels, layer.start, layer.eta, s.refresh,
                decay=layer.decay, values=layer.values,
            )
        )  # fmt: skip
        seconds += time.perf_counter() - began
        for loss, i in zip(found, order[part], strict=True):
            losses[i] = loss[: len(documents[i].tokens.ids) - 1]
    return tuple(losses), seconds / sum(len(loss) for loss in losses)


def _padded(
    study: Study, documents: Sequence[Document], window: int, layers: int | None = None
) -> tuple[Array, Array]:
    """(B,T,D),(B,T)   features and labels side by side, zeros behind what is shorter"""
    length = max(len(d.tokens.ids) for d in documents) - 1
    x = host.zeros((len(documents), length, study.model.config.width), dtype="float32")
    labels = host.zeros((len(documents), length), dtype="int64")
    for i, document in enumerate(documents):
        count = len(document.tokens.ids) - 1
        x[i, :count] = features_at(study, document, window, layers)
        labels[i, :count] = document.tokens.ids[1:]
    U = study.model.U
    return like(x, U, U.dtype), like(labels, U)
