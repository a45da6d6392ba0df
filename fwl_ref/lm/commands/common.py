"""Options and words that the commands share."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ...backend import BACKENDS, Array
from ...files import reserved
from ..state import half_life

DEFAULT = " (default: %(default)s)"


def add_data(parser: argparse.ArgumentParser, default: str | None, more: str = DEFAULT) -> None:
    """``--data``: a source of text."""
    text = "'stdlib', 'topics', or a UTF-8 file or folder of yours"
    parser.add_argument("--data", default=default, help=text + more)


def add_backend(parser: argparse.ArgumentParser) -> None:
    """``--backend``: where to compute."""
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        default="numpy",
        help="where to compute; cupy is an NVIDIA GPU" + DEFAULT,
    )


@contextmanager
def outputs(*paths: Path | None, beside: Sequence[Path | None] = ()) -> Iterator[None]:
    """Keep the files ``paths`` (None: not asked for) for this command while it works.

    Raises ValueError if one of them has another use, also as one of those that are read
    ``beside``, and OSError if nothing can be written there: before the work rather than after it.
    """
    asked = [path for path in paths if path is not None]
    places = [os.path.realpath(path) for path in (*asked, *filter(None, beside))]
    for place in places[: len(asked)]:
        if places.count(place) > 1:
            raise ValueError(f"each file has one use, but {place!r} is named twice")
    with ExitStack() as kept:
        for path in asked:
            kept.enter_context(reserved(path))
        yield


def say(line: str) -> None:
    """A line on standard error, if anybody can see it."""
    if sys.stderr is not None:
        with suppress(OSError):
            print(line, file=sys.stderr, flush=True)


def remark(path: Path, size: int, decay: Array) -> str:
    """What a saved memory is: of how many bytes, and how long they last."""
    half = half_life(decay)
    lasts = "nothing fades" if half == math.inf else f"half of it fades in {half:,.0f} bytes"
    return f"memory of {size:,} bytes in {path}; {lasts}"
