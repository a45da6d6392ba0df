"""Files written whole or not at all: ``.npz`` without pickles, and plain data for JSON."""

from __future__ import annotations

import math
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from .backend import Array, host

# what NumPy and zipfile raise for a file that is no archive, is damaged, is encrypted, or holds
# pickles
UNREADABLE = (
    ValueError,
    EOFError,
    OSError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    KeyError,
    zipfile.BadZipFile,
    zlib.error,
)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of ``path`` once all is written; if that breaks
    off, the old file stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(
        f".{path.name}.{os.getpid()}.part"
    )  # beside it: only within one folder is a replacement never half done
    try:
        with draft.open("wb") as file:
            yield file
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def check_writable(folder: Path) -> None:
    """Make ``folder`` if need be and see that files can be written into it: better now than after
    training. Raises OSError, saying why.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f"nothing can be written into the folder {str(folder)!r} ({error.strerror}): give another one"
        ) from None


def save_arrays(path: Path, arrays: dict[str, Array]) -> None:
    """Write arrays to ``path``, all of them or, if that breaks off, none."""
    with whole_file(path) as file:
        host.savez(file, **arrays)


def load_arrays(path: Path) -> dict[str, Array]:
    """All arrays of an ``.npz`` file. Raises ValueError if it is none, is damaged, or holds pickled
    objects; OSError if there is none.
    """
    with path.open("rb") as file:
        try:
            archive = host.load(file, allow_pickle=False)
        except UNREADABLE as error:
            raise ValueError(
                f"{path}: expected an .npz file without pickles, found something else ({error})"
            ) from None
        if not hasattr(archive, "files"):
            raise ValueError(f"{path}: expected an .npz file of named arrays, found a single array")
        arrays = {}
        for name in archive.files:
            try:
                arrays[name] = archive[name]
            except UNREADABLE as error:
                raise ValueError(
                    f"{path}: {name}: expected an array without pickles, found none that can be read ({error})"
                ) from None
            if not isinstance(arrays[name], host.ndarray):
                raise ValueError(f"{path}: {name}: expected an array, found raw bytes")
    return arrays


def finite(data: Any) -> Any:
    """Nested plain data with None for every number that is not finite, for which JSON has no word."""
    if isinstance(data, dict):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
