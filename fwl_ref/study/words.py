"""Numbers in words, and where a line stands."""

from __future__ import annotations

import math

from .collect import Line, Spot
from .statistics import Mean


def spot_of(section: int, corpus: str, window: int, name: str, variant: str = "") -> Spot:
    """Where a line stands."""
    return Spot(section, corpus, window, variant, name)


def number(found: Mean | None) -> str:
    """A mean and half of its interval."""
    if found is None:
        return "-"
    if not math.isfinite(found.value):
        return "not finite"
    half = f" ± {found.half:.3f}" if math.isfinite(found.half) else ""
    return f"{found.value:.3f}{half}"


def percent(change: Mean | None, base: Mean | None) -> str:
    """A change in percent of the bits that it is a change of."""
    if change is None or base is None or not math.isfinite(change.value):
        return "-"
    half = f" ± {100 * change.half / base.value:.1f}" if math.isfinite(change.half) else ""
    return f"{100 * change.value / base.value:+.1f}{half} %"


def per_byte(line: Line) -> float | None:
    """Seconds a byte, mean over seeds; None without a run."""
    times = [run["seconds_per_byte"] for run in line.runs.values()]
    return sum(times) / len(times) if times else None
