"""The figure of the study: three panels, read off the same lines as the tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from ..files import save_png
from .collect import Lines, change, change_by_bucket, change_by_position, mean
from .row import BASE, BLOCK, CACHE, CARRIED, RESET, SGD
from .statistics import Mean
from .where import EARLIER, POSITIONS

DRAWN = {
    CARRIED: ("#0072B2", "o"),
    RESET: ("#56B4E9", "s"),
    SGD: ("#E69F00", "^"),
    BLOCK: ("#CC79A7", "D"),
    CACHE: ("#000000", "v"),
}
SIZES: dict[Any, int] = {  # Any: newer matplotlib wants a type that older ones lack
    "font.size": 13,
    "lines.linewidth": 2,
    "lines.markersize": 8,
}


def save_figure(path: Path, found: Lines) -> bool:
    """Draw into a PNG file, whole or not at all; False, and no file, if there is nothing to
    draw.
    """
    if not any(line.runs for line in found.values() if line.kind == "read"):
        return False
    save_png(path, draw(found))
    return True


def draw(found: Lines) -> Figure:
    """Change by position, gain against the plain model's bits, change by repetition; for the first
    corpus and window that there are runs of.
    """
    with matplotlib.rc_context(SIZES):
        layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
        figure = Figure(figsize=(16, 6), dpi=100, layout=layout)
        left, middle, right = figure.subplots(1, 3)
        _position(left, found)
        _lasting(middle, found)
        _earlier(right, found)
        for axis in (left, middle, right):
            axis.axhline(0, color="#999999", linewidth=1)
            axis.grid(alpha=0.3)
        handles, labels = left.get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def _position(axis: Axes, found: Lines) -> None:
    axis.set(title="by position", xlabel="bytes read before", ylabel="change, bits per byte")
    axis.set_xscale("symlog", linthresh=POSITIONS[1])
    axis.set_xticks(POSITIONS, [str(n) for n in POSITIONS], rotation=45)
    for spot, base in found.items():
        if spot.section == 1 and spot.name == BASE and base.runs:
            for name in DRAWN:
                line = found.get(spot._replace(name=name))
                if line and line.runs:
                    _curve(axis, POSITIONS, change_by_position(line, base), name)
            return


def _lasting(axis: Axes, found: Lines) -> None:
    axis.set(title="does it last?", xlabel="plain model, bits per byte", ylabel="change, bits")
    axis.invert_xaxis()
    for name in (CARRIED, BLOCK):
        points = []
        for spot, base in found.items():
            if spot.section == 2 and spot.name == BASE and base.runs:
                level, moved = mean(base), change(found[spot._replace(name=name)], base)
                if level and moved:
                    points.append((level.value, moved))
        points.sort(key=lambda point: -point[0])
        _curve(axis, [x for x, _ in points], [moved for _, moved in points], name)


def _earlier(axis: Axes, found: Lines) -> None:
    axis.set(title="by repetition", xlabel="seen before in the document", ylabel="change, bits")
    axis.set_xscale("symlog", linthresh=1)
    axis.set_xticks(EARLIER, [str(n) for n in EARLIER])
    first = next((s[:3] for s, v in found.items() if v.kind == "where" and v.runs), None)
    for spot, line in found.items():
        if spot[:3] == first and line.kind == "where" and line.runs:
            name = spot.name.removeprefix("where: ")
            _curve(axis, EARLIER, change_by_bucket(line, "earlier"), name)


def _curve(axis: Axes, xs: object, means: list, name: str) -> None:
    """A curve with its intervals; what is not known is left out."""
    kept: list[tuple[float, Mean]] = [
        (x, m)
        for x, m in zip(xs, means, strict=True)  # type: ignore[call-overload]
        if m is not None
    ]
    if kept:
        colour, marker = DRAWN[name]
        values, halves = [m.value for _, m in kept], [m.half for _, m in kept]
        axis.errorbar(
            [x for x, _ in kept], values, halves, color=colour, marker=marker, capsize=3, label=name
        )
