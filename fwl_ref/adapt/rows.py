"""Rows of the table on disk: one file each, written whole, so that a run that was killed keeps what
it had finished.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from ..backend import Array, host
from ..files import UNREADABLE, load_arrays, save_arrays


class Row(NamedTuple):
    """One way of reading, on all test documents or on some."""

    name: str
    documents: tuple[int, ...]  # numbers of the test documents that were read
    losses: tuple[Array, ...]  # of each of them (T,) in nats, on the host
    chosen: dict[str, Any]  # what was tuned on validation, and the validation loss
    window: int  # the trunk's
    seconds: float  # a token, without the trunk and without what it uses
    products: float  # multiply-adds a token, likewise
    memory: int  # bytes beside the model that are kept while a document is read, likewise
    uses: tuple[str, ...] = ()  # rows whose work is done as well


def row_file(folder: Path, name: str) -> Path:
    """Where a row is kept."""
    slug = "".join(c if c.isalnum() else "-" for c in name)
    return folder / f"{slug}.npz"


def save_row(folder: Path, key: str, row: Row) -> None:
    """Write a row of the run ``key``."""
    about = row._asdict()
    losses = about.pop("losses")
    arrays = {f"loss{i}": loss for i, loss in enumerate(losses)}
    arrays["about"] = host.asarray(json.dumps({"key": key, **about}))
    save_arrays(row_file(folder, row.name), arrays)


def load_row(folder: Path, key: str, name: str) -> Row | None:
    """A row of the run ``key``; None if it is not there, damaged, or of another run."""
    file = row_file(folder, name)
    if not file.exists():
        return None
    try:
        arrays = load_arrays(file)
        about = json.loads(str(arrays["about"]))
        if about.pop("key") != key or about["name"] != name:
            return None
        about["documents"], about["uses"] = tuple(about["documents"]), tuple(about["uses"])
        return Row(
            losses=tuple(arrays[f"loss{i}"] for i in range(len(about["documents"]))), **about
        )
    except (*UNREADABLE, TypeError):
        return None
