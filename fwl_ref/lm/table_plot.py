"""The table of ``evaluate`` as a picture: every document in every way, and the gain by position."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..backend import Array, host
from ..files import save_png
from .position import bins, gains
from .table import Row, bits

# Okabe-Ito colours, and markers too, so that it reads without colour
STYLES = [("#000000", "o"), ("#E69F00", "s"), ("#56B4E9", "P"), ("#0072B2", "X")]
NAMED = 40  # more documents than that are drawn without their names


def draw(rows: list[Row], window: int) -> Figure:
    """Left the bits per byte of each document, right what each way saves against the first by
    position. Not made through pyplot: the caller's figures and settings stay as they are.
    """
    with matplotlib.rc_context({"font.size": 12}):
        height = 4 + 0.22 * min(len(rows), NAMED)
        figure = Figure(figsize=(14, height), dpi=110, layout="constrained")
        left, right = figure.subplots(1, 2)
        _documents(left, rows)
        _positions(right, rows, window)
        for axis in (left, right):
            axis.grid(alpha=0.3)
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def save(path: Path, rows: list[Row], window: int) -> None:
    """``draw`` into a PNG file, written whole or not at all."""
    save_png(path, draw(rows, window))


def _documents(axis: Axes, rows: list[Row]) -> None:
    places = host.arange(len(rows))[::-1]  # the first on top
    for way, (colour, marker) in zip(rows[0].losses, STYLES, strict=False):
        found = [bits([row])[way] for row in rows]
        axis.plot(found, places, marker, color=colour, label=way, markersize=6)
    named = len(rows) <= NAMED
    names = [f"{_short(row.name)}  {row.seen}".rstrip() for row in rows]
    axis.set_yticks(places if named else [], names if named else [])
    below = "" if named else f"{len(rows)} documents in the order of the table"
    axis.set(xlabel="bits per byte", ylabel=below, title="Each document")


def _positions(axis: Axes, rows: list[Row], window: int) -> None:
    first, *others = rows[0].losses
    base: list[Array] = [row.losses[first] for row in rows]
    longest = max(map(len, base))
    parts = bins(longest, window)
    middles = [(part.start + min(part.stop, longest)) / 2 for part in parts]
    axis.axhline(0, color=STYLES[0][0])
    for way, (colour, marker) in zip(others, STYLES[1:], strict=False):
        saved = gains([row.losses[way] for row in rows], base, parts)
        axis.plot(middles, saved, color=colour, marker=marker)
    axis.set(xlabel="position in the document (bytes)", title="Gain by position")
    axis.set_ylabel(f"bits saved against {first} (%)")


def _short(name: str) -> str:
    """The end of a long name; no formula in it is set."""
    text = name if len(name) <= 28 else f"...{name[-25:]}"
    return text.replace("$", r"\$")
