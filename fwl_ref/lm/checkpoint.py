"""Save and load models and training progress: one ``.npz`` file, no pickles, written whole or not
at all.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, get_type_hints

from ..backend import Array, Tree, host, to_numpy
from ..files import load_arrays, save_arrays
from ..tree import named_leaves, rebuild
from .adamw import AdamState
from .corpus import Corpus, Fingerprint, identity
from .model import Config, Parameters, parameter_shapes
from .train import Progress, Record, TrainSettings, check_train_settings

FORMAT = 3
TREES = ("params", "mean", "square")


Names: TypeAlias = tuple[tuple[str, str], ...]  # name and ``identity`` of each document


class Text(NamedTuple):
    """What a model was trained on: where it came from, and what was there."""

    source: str  # as for load_corpus
    fingerprint: Fingerprint
    size: int  # bytes in the training part
    train: Names
    validation: Names
    test: Names
    earlier: Names = ()  # what the model that training started from was trained on


class Checkpoint(NamedTuple):
    """A model on disk: what it computes, how it was trained, on what, and how far."""

    config: Config
    settings: TrainSettings
    text: Text
    progress: Progress
    writer: str = "train"  # the command that wrote it: "train" or "demo"
    origin: str = ""  # ``fingerprint_of`` the parameters that training started from; "": none


def text_of(corpus: Corpus) -> Text:
    """The text of a corpus, as a checkpoint knows it."""
    size = sum(len(document.data) for document in corpus.train)
    names = [tuple((d.name, identity(d)) for d in part) for part in corpus.parts]
    return Text(corpus.source, corpus.fingerprint, size, *names)


def fingerprint_of(params: Parameters) -> str:
    """16 hexadecimal digits of the SHA-256 of all parameters: which model it is."""
    found = hashlib.sha256()
    for name, leaf in named_leaves(params):
        array = to_numpy(leaf)
        found.update(f"{name} {array.dtype} {array.shape} ".encode() + array.tobytes())
    return found.hexdigest()[:16]


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; see ``load_checkpoint``."""
    progress = checkpoint.progress
    meta = {
        "format": FORMAT,
        "config": checkpoint.config._asdict(),
        "settings": checkpoint.settings._asdict(),
        "text": checkpoint.text,
        "writer": checkpoint.writer,
        "origin": checkpoint.origin,
        "step": progress.adam.step,
        "history": [tuple(record) for record in progress.history],
    }
    trees = (progress.params, progress.adam.mean, progress.adam.square)
    arrays = {
        f"{kind}/{name}": to_numpy(leaf)
        for kind, tree in zip(TREES, trees, strict=True)
        for name, leaf in named_leaves(tree)
    }
    described = host.frombuffer(json.dumps(meta).encode(), dtype=host.uint8)
    save_arrays(path, {"meta": described, **arrays})


def load_checkpoint(path: Path) -> Checkpoint:
    """Read what ``save_checkpoint`` wrote.

    Raises
    ------
    FileNotFoundError
        No such file.
    ValueError
        Naming the file: not a checkpoint, damaged, of another format, with settings that cannot be,
        or with an array (named) that is missing or misshapen, or a parameter that is not finite.
    OSError
        A file that cannot be read.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"no checkpoint at {str(path)!r}: train one with `python -m fwl_ref train --out {path}`"
        )
    arrays = load_arrays(path)
    try:
        meta = json.loads(arrays.pop("meta").tobytes())
        found = meta["format"]
    except (KeyError, ValueError, TypeError, RecursionError):
        raise ValueError(
            f"{path}: expected a checkpoint of fwl_ref, "
            "found arrays without a description of the model"
        ) from None
    if found != FORMAT:
        raise ValueError(
            f"{path}: expected checkpoint format {FORMAT}, found {found}: "
            "train again, or use the version that wrote it"
        )
    try:
        config, settings = _fields(Config, meta["config"]), _fields(TrainSettings, meta["settings"])
        check_train_settings(settings)
        history = tuple(_record(*row) for row in meta["history"])
        source, fingerprint, size, *names = meta["text"]
        known = (tuple((str(n), str(i)) for n, i in part) for part in names)
        train, validation, test, earlier = known
        text = Text(
            str(source), Fingerprint(*fingerprint), int(size), train, validation, test, earlier
        )
        step, writer, origin = int(meta["step"]), str(meta["writer"]), str(meta["origin"])
        if step < 0:
            raise ValueError(f"step {step}")
        if config.layers > len(arrays):  # else a claimed number alone could take for ever
            raise ValueError(f"{config.layers} layers, {len(arrays)} arrays")
        shapes = parameter_shapes(config)
    except (KeyError, ValueError, TypeError, OverflowError, AttributeError) as error:
        raise ValueError(
            f"{path}: expected a model that this version knows, "
            f"found a description that does not fit ({error})"
        ) from None
    params, mean, square = (_take(arrays, kind, shapes, path) for kind in TREES)
    for name, leaf in named_leaves(params):
        if not host.all(host.isfinite(leaf)):
            bad = tuple(int(i) for i in host.argwhere(~host.isfinite(leaf))[0])
            raise ValueError(
                f"{path}: params/{name}: expected finite numbers, found {leaf[bad]} at index {bad}:"
                " every loss would be nan; train again, or use a file from before"
            )
    progress = Progress(params, AdamState(mean, square, step), history)
    return Checkpoint(config, settings, text, progress, writer, origin)


def _fields(kind: type, given: dict[str, Any]) -> Any:
    """A NamedTuple of numbers and words; TypeError, naming it, for a value of another type."""
    for name, hint in get_type_hints(kind).items():
        value = given[name]
        fits = isinstance(value, hint) or (hint is float and isinstance(value, int))
        if not fits or (isinstance(value, bool) and hint is not bool):
            raise TypeError(f"{name} {value!r}")
    return kind(**given)


def _record(step: int, bits: float, norm: float, eta: list[float], decay: float) -> Record:
    """A row of the history; TypeError or ValueError if it is none."""
    e1, e2, e3, e4, e5, e6 = eta
    numbers = (bits, norm, e1, e2, e3, e4, e5, e6, decay)
    bits, norm, *eta, decay = (math.fsum([number]) for number in numbers)  # refuses words
    return Record(int(step), bits, norm, tuple(eta), decay)


def _take(arrays: dict[str, Array], kind: str, shapes: Tree, path: Path) -> Tree:
    """The tree ``kind`` out of the file's arrays, checked against the shapes that the configuration
    implies.
    """
    found = []
    for name, leaf in named_leaves(shapes):
        key = f"{kind}/{name}"
        array = arrays.get(key)
        if array is None:
            raise ValueError(
                f"{path}: {key}: expected an array of shape {leaf.shape}, "
                "found nothing: it is missing"
            )
        if array.shape != leaf.shape or array.dtype.kind != "f":
            raise ValueError(
                f"{path}: {key}: expected real numbers of shape {leaf.shape}, "
                f"found {array.dtype} of shape {array.shape}"
            )
        found.append(array)
    return rebuild(shapes, found)
