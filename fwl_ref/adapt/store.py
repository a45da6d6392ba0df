"""Features on disk, so that a document goes through the trunk once, and what else takes long.

A file holds the features of one document at one window. Its name is a hash of the model's files,
the tokens, the window and the precision: other features have another name, and nothing is ever
stale. Losses under dynamic evaluation are kept in the same way. Files are written whole, so a run
that was killed goes on after its last document.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from ..backend import Array, host
from ..files import load_arrays, save_arrays
from .documents import Tokens


class Store(NamedTuple):
    """Where features are kept; ``folder`` None = nowhere."""

    folder: Path | None
    model: str  # digest of the model's files
    limit: int  # bytes that the folder may hold


def digest_of(model: str) -> str:
    """SHA-256 of a model's file, or of all files of its folder that hold tensors or settings."""
    path, found = Path(model), hashlib.sha256()
    files = [path] if path.is_file() else sorted(path.glob("*.json")) + sorted(path.glob("*.saf*"))
    for file in files:
        found.update(f"{file.name} {file.stat().st_size} ".encode())
        with file.open("rb") as opened:
            while piece := opened.read(1 << 24):
                found.update(piece)
    return found.hexdigest()


def key_of(store: Store, tokens: Tokens, window: int, dtype: str, layers: int | None = None) -> str:
    """32 hexadecimal digits that name the features of a document, after all layers or some."""
    return name_of(store, tokens.key, window, dtype, *(() if layers is None else (layers,)))


def name_of(store: Store, *words: Any) -> str:
    """32 hexadecimal digits that name what depends on the model and on ``words``."""
    return hashlib.sha256(" ".join(str(w) for w in (store.model, *words)).encode()).hexdigest()[:32]


def held(store: Store) -> int:
    """Bytes in the folder."""
    if store.folder is None or not store.folder.is_dir():
        return 0
    return sum(file.stat().st_size for file in store.folder.glob("*.npz"))


def kept(store: Store, name: str, compute: Callable[[], dict[str, Array]]) -> dict[str, Array]:
    """Arrays on the host under a name that says all that they depend on: from the disk if they are
    there; else computed and kept, unless another run keeps the same at that moment.

    Raises OSError if the folder is full or would hold more than ``limit`` bytes.
    """
    if store.folder is None:
        return compute()
    file = store.folder / f"{name}.npz"
    if file.exists():
        try:
            return load_arrays(file)
        except ValueError:
            file.unlink(missing_ok=True)  # damaged: computed again
    arrays = compute()
    if held(store) + sum(a.nbytes for a in arrays.values()) > store.limit:
        raise OSError(
            f"the folder {str(store.folder)!r} would hold more than {store.limit:,} bytes: "
            "remove files of other runs from it, raise --cache-limit, or give --no-cache"
        )
    with suppress(BlockingIOError):
        save_arrays(file, arrays)
    return arrays


def stored(
    store: Store,
    tokens: Tokens,
    window: int,
    dtype: str,
    compute: Callable[[], Array],
    layers: int | None = None,
) -> Array:
    """(T,D)   features on the host, from the disk if they are there; else computed and kept.

    Raises FloatingPointError if they are not finite in ``dtype``, and OSError as ``kept``.
    """

    def features() -> dict[str, Array]:
        with host.errstate(over="ignore"):  # what is not finite is named below
            x = host.asarray(compute(), dtype=dtype)
        if not host.all(host.isfinite(x)):
            raise FloatingPointError(
                f"features of {tokens.name!r} are not finite in {dtype}: keep them in float32"
            )
        return {"x": x}

    return kept(store, key_of(store, tokens, window, dtype, layers), features)["x"]
