"""Files written whole or not at all, by one process at a time: ``.npz`` without pickles, and plain
data for JSON.

A file is drafted beside its place and then renamed, so a reader finds the old one or the new one. A
draft has one name per file and is locked while somebody writes it. What a killed process left is
not locked, and the next writer takes it over.
"""

from __future__ import annotations

import errno
import io
import math
import os
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

from .backend import Array, host

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows: no such locks, so keeping two writers apart is left to the user
    fcntl = None

# what NumPy and zipfile raise for a file that is no archive, damaged, encrypted, or holds pickles
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
    """A file to write to, which takes the place of ``path`` once all is written.

    If that breaks off, the old file stays as it was. A link is followed, and the permissions of the
    old file are kept.

    Raises OSError if ``path`` is a folder or a device, or if another process is writing it.
    """
    place = _place(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    draft = _beside(place, "part")
    with _claimed(draft, path) as file:
        if place.exists():
            draft.chmod(stat.S_IMODE(place.stat().st_mode))
        yield file
        file.flush()
        if fcntl is None:
            file.close()  # Windows does not rename an open file
        draft.replace(place)


@contextmanager
def reserved(path: Path) -> Iterator[None]:
    """Keep the file ``path`` for this process during long work whose outcome goes there.

    Its folder is made if need be. A draft is made and removed: what cannot be written is better
    known before the work than after it.

    Raises OSError, saying why, if nothing can be written there or another process has reserved it.
    """
    place = _place(path)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with _claimed(_beside(place, "part"), path):
            pass
    except BlockingIOError:
        raise
    except OSError as error:
        raise OSError(
            f"nothing can be written into the folder {str(place.parent)!r} ({error.strerror}): "
            "give another one"
        ) from None
    with _claimed(_beside(place, "lock"), path):
        yield


def save_png(path: Path, figure: Any, **options: Any) -> None:
    """A figure of Matplotlib as PNG, drawn before the file is begun and then written whole.

    ``options`` are those of its ``savefig``. Raises OSError if it cannot be written.
    """
    image = io.BytesIO()
    figure.savefig(image, format="png", **options)
    with whole_file(path) as file:
        file.write(image.getvalue())


def save_arrays(path: Path, arrays: dict[str, Array]) -> None:
    """Write arrays to ``path``, all of them or, if that breaks off, none."""
    with whole_file(path) as file:
        host.savez(file, **arrays)


def load_arrays(path: Path) -> dict[str, Array]:
    """All arrays of an ``.npz`` file. Raises ValueError if it is none, is damaged, or holds pickled
    objects; OSError if there is none.
    """
    with path.open("rb") as file:
        if file.read(2) != b"PK":  # NumPy would take it for a pickle, and advise to load that
            raise ValueError(f"{path}: expected an .npz file without pickles, found something else")
        file.seek(0)
        try:
            archive = host.load(file, allow_pickle=False)
        except UNREADABLE as error:
            raise ValueError(
                f"{path}: expected an .npz file without pickles, found something else ({error})"
            ) from None
        arrays = {}
        for name in archive.files:
            try:
                arrays[name] = archive[name]
            except UNREADABLE as error:
                raise ValueError(
                    f"{path}: {name}: expected an array without pickles, "
                    f"found none that can be read ({error})"
                ) from None
            if not isinstance(arrays[name], host.ndarray):
                raise ValueError(f"{path}: {name}: expected an array, found raw bytes")
    return arrays


def finite(data: Any) -> Any:
    """Nested plain data with None for every number that is not finite: JSON has no word for it."""
    if isinstance(data, dict):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def _place(path: Path) -> Path:
    """Where ``path`` leads, through links. Raises OSError unless a plain file is there, or none."""
    place = Path(os.path.realpath(path))
    try:
        mode = place.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return place
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(f"{str(path)!r} is a device or a pipe: give the name of a file")
    return place


def _beside(place: Path, what: str) -> Path:
    """A hidden name in the folder of ``place``, one for each name there, and short however long
    that is. Only within one folder is renaming never half done.
    """
    return place.with_name(f".{place.name[:40]}.{zlib.crc32(os.fsencode(place.name)):08x}.{what}")


@contextmanager
def _claimed(name: Path, purpose: Path) -> Iterator[BinaryIO]:
    """A new file ``name``, locked; if it still has that name at the end, it is removed.

    Raises BlockingIOError, about ``purpose``, if a process that is alive has locked it.
    """
    while True:
        file = os.fdopen(os.open(name, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        try:
            if not _lock(file):
                raise BlockingIOError(
                    f"another process is writing {str(purpose)!r}: "
                    "wait until it has ended, or give another file"
                )
            mine = _is(file, name)  # it was not renamed or removed before it was locked
            if mine and not os.fstat(file.fileno()).st_size:
                break
            if mine:
                name.unlink()  # a killed process left it
        except BaseException:
            file.close()
            raise
        file.close()
    with file:
        try:
            yield file
        finally:
            if not file.closed and _is(file, name):
                name.unlink()


def _lock(file: BinaryIO) -> bool:
    """Whether no other process has locked the file; True too where the file system has no locks."""
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            pass
    return True


def _is(file: BinaryIO, name: Path) -> bool:
    """Whether the open file is the one of that name."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), name.stat())
    return False
