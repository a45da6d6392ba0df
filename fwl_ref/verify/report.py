"""The self-test's report, as data and as Markdown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..files import whole_file
from ..lm.footprint import readable
from .device import Timing
from .measure import Finding

TABLE = [
    "Seconds, median of interleaved runs, float32, two layers; "
    "memory of a training step as stated and as taken on the device.",
    "",
    "| width | window | batch | forward NumPy | device | ratio "
    "| step NumPy | device | ratio | stated | taken |",
    "|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
]


def row(number: int, dtype: str, finding: Finding) -> dict[str, Any]:
    """One finding as plain data; theorem 0 is about transfers."""
    return {"theorem": number, "dtype": dtype, **finding._asdict(), "ok": bool(finding.ok)}


def line(row: dict[str, Any]) -> str:
    """One finding as the screen and the report show it."""
    verdict = "PASS" if row["ok"] else "FAIL"
    name = f"theorem {row['theorem']:2d}" if row["theorem"] else "transfers "
    sign = ">=" if row["must_exceed"] else "<="
    compared = f"{shown(row['error'], '8.1e')} {sign} {row['allowed']:7.1e}"
    return f"{verdict}  {name}  {row['dtype']}  {compared}  {row['claim']}"


def shown(value: float | None, how: str) -> str:
    """A number, or the word for what JSON has no number for."""
    return "not a number" if value is None else format(value, how)


def markdown(found: dict[str, Any]) -> str:
    """The whole outcome as Markdown."""
    facts = found["versions"] | {"date": found["date"], "seconds": found["seconds"]}
    lines = [f"# fwl_ref check, backend {found['backend']}", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    lines += ["", f"{found['failed']} failed.", ""]
    lines += ["```", *map(line, found["findings"]), *found["broken"], "```", ""]
    if found["timings"]:
        lines += [*TABLE, *(_cells(Timing(**timing)) for timing in found["timings"]), ""]
    if found["demo"]:
        lines += [*_demo_lines(found["demo"]), ""]
    return "\n".join(lines)


def _cells(t: Timing) -> str:
    cells = (
        *(str(t.width), str(t.window), str(t.batch)),
        *_compared(t.numpy_forward, t.forward),
        *_compared(t.numpy_step, t.step),
        *(readable(t.stated), readable(t.taken)),
    )
    return f"| {' | '.join(cells)} |"


def _compared(here: float, there: float) -> tuple[str, str, str]:
    return f"{here:.4f}", f"{there:.4f}", f"{here / there:.1f}"


def _demo_lines(demo: dict[str, Any]) -> list[str]:
    error, times = shown(demo["equivalence_max_error"], ".1e"), demo["relative_time"]
    head = f"Quick demo, {demo['seconds']} s; equivalence on the trained model {error}."
    ways = [
        f"- {name}: {shown(bits, '.3f')} bits per byte, time {shown(times[name], '.2f')}"
        for name, bits in demo["bits_per_byte"].items()
    ]
    return [head, "", *ways]


def write(out: Path, found: dict[str, Any]) -> Path:
    """Write ``out``/check-BACKEND.md and .json, each whole or not at all; the path of the first."""
    path = out / f"check-{found['backend']}.md"
    texts = {
        path: markdown(found),
        path.with_suffix(".json"): json.dumps(found, indent=1, allow_nan=False) + "\n",
    }
    for place, text in texts.items():
        with whole_file(place) as file:
            file.write(text.encode())
    return path
