"""A progress bar that ends alone: a terminal or pipe that is gone does not end the work.

Where tqdm is not installed, as in a browser, the work goes on without a bar.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, Self


class NoBar:
    """What is used of tqdm, and shows nothing."""

    def __init__(self, iterable: Iterable = (), *, initial: int = 0, **options: Any) -> None:
        self.iterable, self.n = iterable, initial

    def __iter__(self) -> Iterator:
        return iter(self.iterable)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def update(self, n: int = 1) -> None:
        """Only count."""
        self.n += n

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        """Nobody reads it."""


try:
    from tqdm import tqdm
except ImportError:
    tqdm = NoBar


class Bar(tqdm):
    """tqdm on standard error, if it is installed; what it cannot show it leaves out."""

    def __init__(self, *args: Any, disable: bool = False, **options: Any) -> None:
        super().__init__(*args, disable=disable or sys.stderr is None, **options)

    @staticmethod
    def status_printer(file: Any) -> Callable[[str], None]:
        """What writes a line to the stream; nothing, if that is closed."""
        try:
            return tqdm.status_printer(file)
        except (OSError, ValueError):
            return lambda _: None

    def display(self, *args: Any, **options: Any) -> None:
        """Draw the bar if anybody can see it."""
        with suppress(OSError):
            super().display(*args, **options)

    def clear(self, *args: Any, **options: Any) -> None:
        """Take the bar away for a line of text."""
        with suppress(OSError):
            super().clear(*args, **options)

    def close(self) -> None:
        """The last line, and no error if nobody reads it."""
        with suppress(OSError):
            super().close()
