"""Save and load models and training progress: one ``.npz`` file, no pickles, written whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

from .backend import Array, Tree, host, to_numpy
from .model import Config, initialize
from .optim import AdamState
from .train import Progress, Record, TrainSettings
from .tree import named_leaves, rebuild

FORMAT = 1


class Checkpoint(NamedTuple):
    """A model on disk: what it computes, how it was trained, and how far."""

    config: Config
    settings: TrainSettings
    corpus: str  # where the text came from
    progress: Progress


def save_arrays(path: Path, arrays: dict[str, Array]) -> None:
    """Write arrays to ``path`` through a temporary file beside it, so that an interruption leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            host.savez(file, **arrays)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; see ``load_checkpoint``."""
    progress = checkpoint.progress
    meta = {
        "format": FORMAT,
        "config": checkpoint.config._asdict(),
        "settings": checkpoint.settings._asdict(),
        "corpus": checkpoint.corpus,
        "step": progress.adam.step,
        "history": [tuple(record) for record in progress.history],
    }
    trees = {"params": progress.params, "mean": progress.adam.mean, "square": progress.adam.square}
    arrays = {f"{kind}/{name}": to_numpy(leaf) for kind, tree in trees.items() for name, leaf in named_leaves(tree)}
    save_arrays(path, {"meta": host.frombuffer(json.dumps(meta).encode(), dtype=host.uint8), **arrays})


def load_checkpoint(path: Path) -> Checkpoint:
    """Read what ``save_checkpoint`` wrote.

    Raises
    ------
    FileNotFoundError
        No such file.
    ValueError
        Not a checkpoint, of another format, or with an array missing or misshapen (named).
    """
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {str(path)!r}: train one with `python -m fwl_ref train --out {path}`")
    try:
        with host.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        meta = json.loads(arrays.pop("meta").tobytes())
    except (zipfile.BadZipFile, KeyError, ValueError, OSError) as error:
        raise ValueError(f"{str(path)!r} is not a fwl_ref checkpoint: {error}") from None
    if meta["format"] != FORMAT:
        raise ValueError(f"{str(path)!r} has checkpoint format {meta['format']}, this version reads format {FORMAT}: train again")
    config, settings = Config(**meta["config"]), TrainSettings(**meta["settings"])
    shape = initialize(config)
    trees = [_take(arrays, kind, shape, path) for kind in ("params", "mean", "square")]
    history = tuple(Record(step, bits, norm, tuple(eta), decay) for step, bits, norm, eta, decay in meta["history"])
    progress = Progress(trees[0], AdamState(trees[1], trees[2], meta["step"]), history)
    return Checkpoint(config, settings, meta["corpus"], progress)


def _take(arrays: dict[str, Array], kind: str, shape: Tree, path: Path) -> Tree:
    """The tree ``kind`` out of the file's arrays, checked against the shapes that the configuration implies."""
    found = []
    for name, leaf in named_leaves(shape):
        array = arrays.get(f"{kind}/{name}")
        if array is None or array.shape != leaf.shape:
            what = "missing" if array is None else f"of shape {array.shape}"
            raise ValueError(f"{str(path)!r}: {kind}/{name} is {what}, expected shape {leaf.shape}")
        found.append(array)
    return rebuild(shape, found)
