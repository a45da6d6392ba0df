"""The demo's figure. Okabe-Ito colours, and markers or line styles too, so that it reads without
colour.
"""

from __future__ import annotations

from itertools import compress
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from ..backend import Array, host
from ..files import save_png
from ..lm.position import bins, gains
from .compare import change_standard_error

COLOURS = {
    "static": "#000000",
    "dynamic_evaluation_sgd": "#E69F00",
    "dynamic_evaluation_rms": "#D55E00",
    "dynamic_evaluation_block": "#CC79A7",
    "neural_cache": "#F0E442",
    "fast_untrained": "#999999",
    "fast_windowed": "#56B4E9",
    "fast_carried": "#0072B2",
    "fast_cache": "#009E73",
}
MARKERS = dict(zip(COLOURS, "osD^*vPXp", strict=True))
# yellow is pale on white
EDGE: dict[str, Any] = {"markeredgecolor": "#000000", "markeredgewidth": 0.6}
SIZES: dict[Any, int] = {  # Any: newer versions of matplotlib want a type that older ones lack
    "font.size": 14,
    "axes.titlesize": 16,
    "legend.fontsize": 14,
    "lines.linewidth": 2,
    "lines.markersize": 8,
}


def demo_figure(
    path: Path,
    labels: dict[str, str],
    curves: dict,
    losses: dict[str, list[Array]],
    results: dict,
    window: int,
) -> None:
    """Draw the figure into a PNG file, written whole or not at all."""
    save_png(path, draw(labels, curves, losses, results, window))


def draw(
    labels: dict[str, str], curves: dict, losses: dict[str, list[Array]], results: dict, window: int
) -> Figure:
    """Three panels: training curves; gain by position in the document; cost against gain. One
    legend below names the ways to read.

    Not made through pyplot: nothing is shown, and the caller's figures and settings stay as they
    are.
    """
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
    with matplotlib.rc_context(SIZES):
        figure = Figure(figsize=(16, 6.8), dpi=110, layout=layout)
        left, middle, right = figure.subplots(1, 3)
        _training(left, curves)
        _by_position(middle, losses, window)
        handles = _cost(right, results)
        for axis in (left, middle, right):
            axis.grid(alpha=0.3)
        for axis in (left, middle):
            axis.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, steps=[1, 2, 5, 10]))
        figure.legend(
            handles, [labels[name] for name in COLOURS], loc="outside lower center", ncols=3
        )
    return figure


def spreads(losses: list[Array], base: list[Array], parts: list[slice]) -> list[float]:
    """Standard error of the percent saved in each part, over the documents that fill it.

    NaN where fewer than two do.
    """
    longest, found = max(len(x) for x in base), []
    for part in parts:
        full = [len(x) >= min(part.stop, longest) for x in base]
        mine, other = ([x[part] for x in compress(rows, full)] for rows in (losses, base))
        found.append(change_standard_error(mine, other))
    return found


def _training(axis: Axes, curves: dict[str, Array]) -> None:
    styles, lowest = {"plain": ("#000000", "--"), "fast": ("#0072B2", "-")}, host.inf
    for name, bits in curves.items():
        width = max(1, len(bits) // 30)
        smooth = host.convolve(bits, host.ones(width) / width, "valid")
        steps, (colour, style) = host.arange(len(smooth)) + width, styles[name]
        axis.plot(steps, smooth, style, color=colour, label=f"{name} model", linewidth=2.5)
        lowest = min(lowest, smooth.min())
    shown = "bits per byte" if width == 1 else f"bits per byte (mean of {width} steps)"
    axis.set(xlabel="training step", ylabel=shown, title="Training: same size, seed and data")
    # the first steps fall from 8 bits and say nothing
    axis.set_ylim(top=min(axis.get_ylim()[1], lowest + 2.5))
    axis.legend(loc="upper right")


def _by_position(axis: Axes, losses: dict[str, list[Array]], window: int) -> None:
    base = losses["static"]
    longest = max(len(x) for x in base)
    parts = bins(longest, window)
    middles = [(part.start + min(part.stop, longest)) / 2 for part in parts]
    axis.axhline(0, color=COLOURS["static"], linewidth=1.5)
    place = "position in the document (bytes)"
    for name, colour in COLOURS.items():
        if name != "static":
            gain, error = gains(losses[name], base, parts), spreads(losses[name], base, parts)
            axis.plot(middles, gain, color=colour, marker=MARKERS[name], **EDGE)
            if not host.all(host.isnan(error)):
                edges = host.subtract(gain, error), host.add(gain, error)
                axis.fill_between(middles, *edges, color=colour, alpha=0.2, linewidth=0)
                place = "position in the document (bytes)\nbands: standard error over documents"
    axis.set(xlabel=place, ylabel="bits saved against static (%)")
    axis.set_title("Gain by position in the document")
    axis.set_xlim(0, longest)


def _cost(axis: Axes, results: dict) -> list:
    times, bits = results["relative_time"], results["bits_per_byte"]
    handles = []
    for name, colour in COLOURS.items():
        place = ([], []) if bits[name] is None else (times[name], bits[name])  # None: it diverged
        dots = axis.plot(*place, color=colour, marker=MARKERS[name], markersize=13, **EDGE)
        dots[0].set_linestyle("none")
        handles += dots
    axis.set(
        xlabel="time per byte, static = 1",
        ylabel="bits per byte (lower is better)",
        title="What it costs, what it gives",
    )
    axis.set_xlim(0, 1.1 * max(times.values()))
    axis.margins(y=0.12)
    return handles
