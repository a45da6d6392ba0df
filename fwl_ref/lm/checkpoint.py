"""Save and load models and training progress: one ``.npz`` file, no pickles, written whole or not
at all.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from ..backend import Array, Tree, host, to_numpy
from ..files import load_arrays, save_arrays
from ..tree import named_leaves, rebuild
from .adamw import AdamState
from .model import Config, initialize
from .train import Progress, Record, TrainSettings

FORMAT = 1


class Checkpoint(NamedTuple):
    """A model on disk: what it computes, how it was trained, and how far."""

    config: Config
    settings: TrainSettings
    corpus: str  # where the text came from
    progress: Progress


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
    arrays = {
        f"{kind}/{name}": to_numpy(leaf)
        for kind, tree in trees.items()
        for name, leaf in named_leaves(tree)
    }
    save_arrays(
        path, {"meta": host.frombuffer(json.dumps(meta).encode(), dtype=host.uint8), **arrays}
    )


def load_checkpoint(path: Path) -> Checkpoint:
    """Read what ``save_checkpoint`` wrote.

    Raises
    ------
    FileNotFoundError
        No such file.
    ValueError
        Naming the file: not a checkpoint, damaged, of another format, or with an array (named) that is missing or misshapen.
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
    except (KeyError, ValueError, TypeError):
        raise ValueError(
            f"{path}: expected a checkpoint of fwl_ref, found arrays without a description of the model"
        ) from None
    if found != FORMAT:
        raise ValueError(
            f"{path}: expected checkpoint format {FORMAT}, found {found}: train again, or use the version that wrote it"
        )
    try:
        config, settings = Config(**meta["config"]), TrainSettings(**meta["settings"])
        history = tuple(
            Record(step, bits, norm, tuple(eta), decay)
            for step, bits, norm, eta, decay in meta["history"]
        )
        step, corpus, shape = int(meta["step"]), str(meta["corpus"]), initialize(config)
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(
            f"{path}: expected a model that this version knows, found a description that does not fit ({error})"
        ) from None
    params, mean, square = (
        _take(arrays, kind, shape, path) for kind in ("params", "mean", "square")
    )
    return Checkpoint(
        config, settings, corpus, Progress(params, AdamState(mean, square, step), history)
    )


def _take(arrays: dict[str, Array], kind: str, shape: Tree, path: Path) -> Tree:
    """The tree ``kind`` out of the file's arrays, checked against the shapes that the configuration
    implies.
    """
    found = []
    for name, leaf in named_leaves(shape):
        name, array = f"{kind}/{name}", arrays.get(f"{kind}/{name}")
        if array is None:
            raise ValueError(
                f"{path}: {name}: expected an array of shape {leaf.shape}, found nothing: it is missing"
            )
        if array.shape != leaf.shape or array.dtype.kind != "f":
            raise ValueError(
                f"{path}: {name}: expected real numbers of shape {leaf.shape}, found {array.dtype} of shape {array.shape}"
            )
        found.append(array)
    return rebuild(shape, found)
