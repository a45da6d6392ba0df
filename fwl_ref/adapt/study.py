"""What all ways of reading share: the model, the documents as it has them, and what was measured on
training text.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ..backend import Array, host, like, to_numpy
from ..key_map import KeyMap, whitening
from ..lm.bar import Bar
from .documents import Texts, Tokens
from .learn import Piece
from .settings import KEY_TOKENS, Settings
from .store import Store, kept, name_of, stored
from .trunk import Model, Reading, features, reading

VALUE_RIDGE = 1e-2  # gradients vary very unevenly: rare directions are not to be blown up


class TrainingTextError(ValueError):
    """Of the texts to train on; the next row would meet it as well."""


class Document(NamedTuple):
    """A document of one of the texts."""

    source: str
    tokens: Tokens


class Study(NamedTuple):
    """Everything that a way of reading may use. ``memo`` keeps what several of them compute."""

    model: Model
    settings: Settings
    store: Store
    folder: Path  # of the results
    key: str  # names the run: model, text, settings and backend
    train: tuple[Document, ...]
    validation: tuple[Document, ...]
    test: tuple[Document, ...]
    memo: dict[Any, Any]

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """Training text with its features, on the host; computed when a row first asks."""
        if "pieces" not in self.memo:
            self.memo["pieces"] = training_pieces(self)
        found: tuple[Piece, ...] = self.memo["pieces"]
        return found

    @property
    def facts(self) -> Facts:
        """Of these pieces. Raises TrainingTextError, and no row that needs them can be made."""
        if "facts" not in self.memo:
            try:
                self.memo["facts"] = measure(self.model, self.pieces, self.settings)
            except Exception as error:
                raise TrainingTextError(
                    f"nothing can be learned of training text: {error}"
                ) from error
        found: Facts = self.memo["facts"]
        return found


class Facts(NamedTuple):
    """Of training text."""

    key: KeyMap  # whitens features
    values: Array  # (D,D) whitens gradients, in their own coordinates
    x: float  # root mean square length of features
    dz: float  # of their gradients
    whitened: float  # of whitened gradients
    entry: float  # root mean square entry of the features


def documents_of(texts: Sequence[Texts], part: str) -> tuple[Document, ...]:
    """Documents of all texts to train on, to tune by or to test on, one text after the other."""
    return tuple(Document(t.name, tokens) for t in texts for tokens in getattr(t, part))


def training_pieces(study: Study) -> tuple[Piece, ...]:
    """Features of the training documents in float16, from the store or through the trunk."""
    pieces, window = [], study.settings.window
    for _, t in Bar(study.train, desc="features of training text", unit="document", leave=False):
        compute = partial(_features_home, study.model, t.ids, window)
        pieces.append(Piece(stored(study.store, t, window, "float16", compute), t.ids))
    return tuple(pieces)


def features_at(study: Study, document: Document, window: int, layers: int | None = None) -> Array:
    """(T,D)   features at a window of the trunk, of all layers or the lowest, on the host, from the
    store or computed; without a folder for them, kept in the memo as readings are
    """
    key = ("features", document.tokens.key, window, layers)
    if key in study.memo:
        return study.memo[key]
    compute = partial(_features_home, study.model, document.tokens.ids, window, layers)
    found = stored(study.store, document.tokens, window, "float32", compute, layers)
    if study.store.folder is None:
        _forget(study, window)
        study.memo[key] = found
    return found


def read_at(study: Study, document: Document, window: int) -> Reading:
    """A document at a window of the trunk, its losses and gradients; kept in the memo, of longer
    windows one at a time.
    """
    key = ("reading", document.tokens.key, window)
    if key not in study.memo:
        _forget(study, window)
        x = like(features_at(study, document, window), study.model.U, study.model.U.dtype)
        study.memo[key] = reading(study.model, x, document.tokens.ids)
    return study.memo[key]


def key_at(study: Study, layers: int) -> KeyMap:
    """What whitens the features after so many layers, from the training text of ``facts.key``; in
    the store, as it takes a pass of its own.
    """

    def compute() -> dict[str, Array]:
        chosen = _until(_shuffled(study.pieces, study.settings), KEY_TOKENS)
        bar = Bar(chosen, desc=f"features after layer {layers}", leave=False)
        window = study.settings.window
        key = whitening(_features_home(study.model, piece.ids, window, layers) for piece in bar)
        return key._asdict()

    if ("key", layers) not in study.memo:
        found = kept(study.store, name_of(study.store, "key", study.key, layers), compute)
        U = study.model.U
        study.memo["key", layers] = KeyMap(*(like(found[n], U, U.dtype) for n in KeyMap._fields))
    found_key: KeyMap = study.memo["key", layers]
    return found_key


def measure(model: Model, pieces: Sequence[Piece], settings: Settings) -> Facts:
    """What the ways need to know of training text.

    Raises ValueError as ``whitening``.
    """
    order = _shuffled(pieces, settings)
    chosen = _until(order, KEY_TOKENS)
    target, dtype = model.U, model.U.dtype
    key = whitening(host.asarray(piece.x, dtype="float32") for piece in chosen)
    gradients, squares, count = [], 0.0, 0
    for piece in _until(order, settings.statistics):
        x = like(piece.x, target, dtype)  # (T,D)
        gradients.append(to_numpy(reading(model, x, piece.ids).dz))
        squares += float((host.asarray(piece.x, dtype="float64") ** 2).sum())
        count += len(piece.x)
    A = host.asarray(whitening(gradients, ridge=VALUE_RIDGE).A, dtype="float64")  # (D,D)
    values = A @ (A / host.linalg.norm(A, axis=0)).T  # (D,D) back in the coordinates of gradients
    dz = host.concatenate(gradients).astype("float64")  # (N,D)
    length = math.sqrt(squares / count)
    return Facts(
        KeyMap(like(key.mean, target, dtype), like(key.A, target, dtype)),
        like(values, target, dtype),
        length,
        float(host.sqrt((dz**2).sum() / len(dz))),
        float(host.sqrt(((dz @ values) ** 2).sum() / len(dz))),
        length / math.sqrt(model.config.width),
    )


def mean_loss(losses: Sequence[Array]) -> float:
    """Nats a token over all tokens."""
    return sum(float(loss.sum()) for loss in losses) / sum(len(loss) for loss in losses)


def timed(
    compute: Callable[[Document], Array], documents: Sequence[Document], name: str
) -> tuple[tuple[Array, ...], float]:
    """Losses of each document, brought home in float64, and seconds a token."""
    losses, seconds = [], 0.0
    for document in Bar(documents, desc=name, unit="document", leave=False):
        began = time.perf_counter()
        losses.append(host.asarray(to_numpy(compute(document)), dtype="float64"))
        seconds += time.perf_counter() - began
    return tuple(losses), seconds / sum(len(loss) for loss in losses)


def _forget(study: Study, window: int) -> None:
    """What the memo has of longer windows than the settings', but for this one."""
    here = window, study.settings.window
    kinds = "reading", "features"
    for old in [k for k in study.memo if k[0] in kinds and k[2] not in here]:
        del study.memo[old]


def _features_home(model: Model, ids: Array, window: int, layers: int | None = None) -> Array:
    return to_numpy(features(model, ids, window, layers))


def _shuffled(pieces: Sequence[Piece], settings: Settings) -> list[Piece]:
    """In the order in which statistics take them."""
    rng = host.random.default_rng([settings.seed, 13])
    return [pieces[i] for i in rng.permutation(len(pieces))]


def _until(pieces: Sequence[Piece], tokens: int) -> list[Piece]:
    """Pieces from the front until there are ``tokens`` tokens; the last one is cut."""
    found: list[Piece] = []
    left = tokens
    for piece in pieces:
        if left < 2:
            break
        found.append(Piece(piece.x[:left], piece.ids[: left + 1]))
        left -= len(piece.x)
    return found
