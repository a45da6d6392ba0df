"""Save and load models and training progress: one ``.npz`` file, no pickles, written whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from .backend import Array, Tree, host, to_numpy
from .model import Config, initialize
from .optim import AdamState
from .train import Progress, Record, TrainSettings
from .tree import named_leaves, rebuild

FORMAT = 1

# what NumPy and zipfile raise for a file that is no archive, is damaged, is encrypted, or holds pickles
UNREADABLE = (ValueError, EOFError, OSError, MemoryError, NotImplementedError, RuntimeError, KeyError, zipfile.BadZipFile, zlib.error)


class Checkpoint(NamedTuple):
    """A model on disk: what it computes, how it was trained, and how far."""

    config: Config
    settings: TrainSettings
    corpus: str  # where the text came from
    progress: Progress


# --- files


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of ``path`` once all is written; if that breaks off, the old file stays as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")  # beside it: only within one folder is a replacement never half done
    try:
        with draft.open("wb") as file:
            yield file
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def check_writable(folder: Path) -> None:
    """Make ``folder`` if need be and see that files can be written into it: better now than after training. Raises OSError, saying why."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"nothing can be written into the folder {str(folder)!r} ({error.strerror}): give another one") from None


def save_arrays(path: Path, arrays: dict[str, Array]) -> None:
    """Write arrays to ``path``, all of them or, if that breaks off, none."""
    with whole_file(path) as file:
        host.savez(file, **arrays)


def load_arrays(path: Path) -> dict[str, Array]:
    """All arrays of an ``.npz`` file. Raises ValueError if it is none, is damaged, or holds pickled objects; OSError if there is none."""
    with path.open("rb") as file:
        try:
            archive = host.load(file, allow_pickle=False)
        except UNREADABLE as error:
            raise ValueError(f"{path}: expected an .npz file without pickles, found something else ({error})") from None
        if not hasattr(archive, "files"):
            raise ValueError(f"{path}: expected an .npz file of named arrays, found a single array")
        arrays = {}
        for name in archive.files:
            try:
                arrays[name] = archive[name]
            except UNREADABLE as error:
                raise ValueError(f"{path}: {name}: expected an array without pickles, found none that can be read ({error})") from None
            if not isinstance(arrays[name], host.ndarray):
                raise ValueError(f"{path}: {name}: expected an array, found raw bytes")
    return arrays


# --- models


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
        Naming the file: not a checkpoint, damaged, of another format, or with an array (named) that is missing or misshapen.
    OSError
        A file that cannot be read.
    """
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {str(path)!r}: train one with `python -m fwl_ref train --out {path}`")
    arrays = load_arrays(path)
    try:
        meta = json.loads(arrays.pop("meta").tobytes())
        found = meta["format"]
    except (KeyError, ValueError, TypeError):
        raise ValueError(f"{path}: expected a checkpoint of fwl_ref, found arrays without a description of the model") from None
    if found != FORMAT:
        raise ValueError(f"{path}: expected checkpoint format {FORMAT}, found {found}: train again, or use the version that wrote it")
    try:
        config, settings = Config(**meta["config"]), TrainSettings(**meta["settings"])
        history = tuple(Record(step, bits, norm, tuple(eta), decay) for step, bits, norm, eta, decay in meta["history"])
        step, corpus, shape = int(meta["step"]), str(meta["corpus"]), initialize(config)
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: expected a model that this version knows, found a description that does not fit ({error})") from None
    params, mean, square = (_take(arrays, kind, shape, path) for kind in ("params", "mean", "square"))
    return Checkpoint(config, settings, corpus, Progress(params, AdamState(mean, square, step), history))


def _take(arrays: dict[str, Array], kind: str, shape: Tree, path: Path) -> Tree:
    """The tree ``kind`` out of the file's arrays, checked against the shapes that the configuration implies."""
    found = []
    for name, leaf in named_leaves(shape):
        name, array = f"{kind}/{name}", arrays.get(f"{kind}/{name}")
        if array is None:
            raise ValueError(f"{path}: {name}: expected an array of shape {leaf.shape}, found nothing: it is missing")
        if array.shape != leaf.shape or array.dtype.kind != "f":
            raise ValueError(f"{path}: {name}: expected real numbers of shape {leaf.shape}, found {array.dtype} of shape {array.shape}")
        found.append(array)
    return rebuild(shape, found)
