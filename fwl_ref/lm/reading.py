"""Find the text of a source: one document a file, and a list of all that was left out, and why.

A folder is read as people have them. Hidden entries, pictures and other files that are not UTF-8,
links to nothing and files that may not be read are left out and listed. Links to folders are
followed, each folder once. A single file that cannot be read as text is an error.
"""

from __future__ import annotations

import os
import stat
import sysconfig
import tempfile
import zipfile
from collections.abc import Callable, Set
from pathlib import Path
from typing import NamedTuple

from ..backend import Array, host

SKIPPED_FOLDERS = {
    "test", "tests", "idle_test",  # another kind of text, and absent from many installations
    "site-packages", "dist-packages", "__pycache__",  # not the standard library
    "encodings", "pydoc_data",  # generated tables, near copies of each other; the other corpus
}  # fmt: skip


class Document(NamedTuple):
    name: str
    data: Array  # (n,) uint8, on the host


class LeftOut(NamedTuple):
    """Something in a source that is not in the corpus."""

    name: str
    size: int | None  # bytes; None where nobody looked, as into a hidden folder
    why: str  # "hidden", "not UTF-8", ...


class Reading(NamedTuple):
    """What a source holds: documents in the order of their names, and what is none."""

    documents: list[Document]
    left_out: list[LeftOut]


def read(source: str) -> Reading:
    """All text of "stdlib", "topics", or the UTF-8 file or folder at the path ``source``.

    Raises
    ------
    FileNotFoundError
        No such path.
    ValueError
        A path to one file that is not UTF-8 (with the byte and its offset), or to a pipe or device;
        an empty name; "topics" where Python came without them.
    OSError
        A path to a file or folder that may not be read.
    """
    if source == "stdlib":
        return _standard_library()
    if source == "topics":
        topics = _topics()
        return Reading([document(f"topics/{k}", topics[k].encode()) for k in sorted(topics)], [])
    if not source:  # as a path that would be the current folder
        raise ValueError("the name of the corpus is empty: give '.' for the current folder")
    path = Path(source)
    if path.is_dir():
        return _folder(path)
    return Reading([document(shown(path.name), _one_file(path))], [])


def document(name: str, raw: bytes) -> Document:
    """A document of these bytes."""
    return Document(name, host.frombuffer(raw, dtype=host.uint8))


def shown(path: str | Path) -> str:
    """A path as text that can be printed on one line and encoded, whatever bytes it is made of."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _standard_library() -> Reading:
    """Every source file; some Pythons have them in an archive, as in a browser."""
    root = Path(tempfile.__file__).parent  # os would not do, which is part of the interpreter

    def read_in(folder: Path) -> Reading:
        return _folder(folder, lambda name: name.endswith(".py"), SKIPPED_FOLDERS)

    if not root.is_file():
        return read_in(Path(sysconfig.get_paths()["stdlib"]))
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(root) as archive:
        archive.extractall(folder)
        return read_in(Path(folder))


def _topics() -> dict[str, str]:
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise ValueError(
            "this Python came without its reference texts (pydoc_data.topics): give 'stdlib', or "
            "the path of a UTF-8 file or folder"
        ) from None
    return topics


def _one_file(path: Path) -> bytes:
    if not path.exists():
        raise FileNotFoundError(
            f"no corpus at {shown(path)!r}: give 'stdlib', 'topics', "
            "or the path of a UTF-8 file or folder"
        )
    if not path.is_file():
        raise ValueError(
            f"{shown(path)!r} is a pipe or a device, and text is read more than once (to train, to "
            "go on, to evaluate): write it to a file and give that"
        )
    raw = path.read_bytes()
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{shown(path)!r} is not UTF-8: byte 0x{raw[error.start]:02x} at offset {error.start}; "
            "convert it or leave it out"
        ) from None
    return raw


def _folder(
    root: Path,
    wanted: Callable[[str], bool] = lambda name: True,
    skipped: Set[str] = frozenset(),
) -> Reading:
    """Files below ``root`` whose name is ``wanted``, outside folders with a name in ``skipped``."""
    found, left_out = [], []
    for name, item in sorted(_walk(root, skipped).items()):
        if not wanted(name):
            continue
        text = _file(item) if isinstance(item, Path) else item
        if isinstance(text, LeftOut):
            left_out.append(text._replace(name=shown(name)))
        else:
            found.append(document(shown(name), text))
    return Reading(found, left_out)


def _walk(root: Path, skipped: Set[str]) -> dict[str, Path | LeftOut]:
    """Every file below ``root`` by its relative name, and every entry that is not followed.

    Links to folders wait until all else is found, so a folder that lies here is known by its own
    name. A folder is read once, so circles of links end.
    """
    found: dict[str, Path | LeftOut] = {}
    folders: list[tuple[str, Path]] = [("", root)]
    links: list[tuple[str, Path]] = []
    seen: set[Path] = set()
    while folders or links:
        links.sort(reverse=True)  # the first name is taken first
        prefix, folder = (folders or links).pop()
        real = folder.resolve()
        if real in seen:
            found[prefix] = LeftOut(prefix, None, "read under another name")
            continue
        seen.add(real)
        try:
            entries = list(folder.iterdir())
        except OSError:
            if folder == root:
                raise
            found[prefix] = LeftOut(prefix, None, "unreadable")
            continue
        for entry in entries:
            name = prefix + entry.name
            if entry.name.startswith("."):
                found[name] = LeftOut(name, None, "hidden")
            elif not _is_folder(entry):
                found[name] = entry
            elif entry.is_symlink() and real.is_relative_to(entry.resolve()):
                found[name] = LeftOut(name, None, "linked in a circle")
            elif entry.name not in skipped:
                (links if entry.is_symlink() else folders).append((f"{name}/", entry))
    return found


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a link into a folder that may not be searched
        return False


def _file(path: Path) -> bytes | LeftOut:
    """The bytes of a UTF-8 file in a folder, or why it has none."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return LeftOut(path.name, None, "pipe or device")
        raw = path.read_bytes()
        raw.decode()
    except UnicodeDecodeError:
        return LeftOut(path.name, len(raw), "not UTF-8")
    except FileNotFoundError:
        return LeftOut(path.name, None, "dangling link")
    except OSError:
        return LeftOut(path.name, None, "unreadable")
    return raw
