"""The demo's figure. Okabe-Ito colours, and markers or line styles too, so that it reads without colour."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # a file, never a window
from matplotlib import pyplot as plt

from .backend import Array, host

COLOURS = {
    "static": "#000000",
    "dynamic_evaluation_sgd": "#E69F00",
    "dynamic_evaluation_rms": "#D55E00",
    "dynamic_evaluation_block": "#CC79A7",
    "fast_untrained": "#999999",
    "fast_windowed": "#56B4E9",
    "fast_carried": "#0072B2",
}
MARKERS = dict(zip(COLOURS, "osD^vPX", strict=True))


def demo_figure(path: Path, labels: dict[str, str], curves: dict, losses: dict[str, list[Array]], results: dict, window: int) -> None:
    """Three panels: training curves; gain by position in the document; cost against gain. Written whole or not at all."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(16, 5), constrained_layout=True)
    _training(left, curves)
    _by_position(middle, labels, losses, window)
    _cost(right, labels, results)
    temporary = path.with_suffix(".part.png")
    figure.savefig(temporary, dpi=110)
    plt.close(figure)
    temporary.replace(path)


def _training(axis, curves: dict[str, tuple]) -> None:
    styles = {"plain": ("#000000", "--"), "fast": ("#0072B2", "-")}
    for name, history in curves.items():
        bits = host.asarray([r.bits_per_byte for r in history])
        width = max(1, len(bits) // 30)
        smooth = host.convolve(bits, host.ones(width) / width, "valid")
        colour, style = styles[name]
        axis.plot(host.arange(len(smooth)) + width, smooth, style, color=colour, label=f"{name} model", linewidth=2)
    axis.set(xlabel="training step", ylabel=f"bits per byte (mean of {width} steps)", title="Training: same parameters, seed and data")
    axis.set_ylim(top=min(axis.get_ylim()[1], 5.0))
    axis.legend()
    axis.grid(alpha=0.3)


def _by_position(axis, labels: dict[str, str], losses: dict[str, list[Array]], window: int) -> None:
    longest = max(len(x) for x in losses["static"])
    width = max(window // 2, longest // 16)
    starts = range(0, longest - width + 1, width)
    for name, colour in COLOURS.items():
        if name == "static":
            continue
        gain = []
        for start in starts:
            base = host.concatenate([x[start : start + width] for x in losses["static"]])
            mine = host.concatenate([x[start : start + width] for x in losses[name]])
            gain.append(100 * (base.mean() - mine.mean()) / base.mean())
        middle = [start + width / 2 for start in starts]
        axis.plot(middle, gain, color=colour, marker=MARKERS[name], label=labels[name], linewidth=1.5)
    axis.axhline(0, color=COLOURS["static"], linewidth=1)
    axis.set(xlabel="position in the document (bytes)", ylabel="bits saved against static (%)", title="Gain by position in the document")
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)


def _cost(axis, labels: dict[str, str], results: dict) -> None:
    for name, colour in COLOURS.items():
        x, y = results["relative_time"][name], results["bits_per_byte"][name]
        axis.plot(x, y, color=colour, marker=MARKERS[name], markersize=10, linestyle="none")
        axis.annotate(labels[name], (x, y), xytext=(8, 4), textcoords="offset points", fontsize=8)
    axis.set(xlabel="time per byte, static = 1", ylabel="bits per byte (lower is better)", title="What it costs and what it gives")
    axis.set_xlim(0, 1.35 * max(results["relative_time"].values()))
    axis.grid(alpha=0.3)
