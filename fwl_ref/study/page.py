"""The page of the study, written from plan and results alone. What was not run is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..lm.table import save_text
from .collect import Lines, lines
from .journal import Result
from .prose import METHOD, NOT_RUN, OPENING, TITLES
from .row import Row
from .settings import Sizes
from .summary import readme_lines
from .tables import ablations, health, lasting, main_tables, memories, where_tables


def write_page(
    page: Path, out: Path, rows: list[Row], results: dict[str, Result], sizes: Sizes
) -> None:
    """The page, its figure beside it, and the README's lines in ``out``; each whole or not at
    all.
    """
    from .figures import save_figure  # matplotlib takes a second to load

    found = lines(rows, results)
    picture = page.with_suffix(".png")
    drawn = save_figure(picture, found) if results else False
    runs = len({row.key for row in rows})
    save_text(page, markdown(found, results, sizes, runs, picture.name if drawn else None))
    if results:
        save_text(out / "readme_lines.md", "\n".join(readme_lines(found, sizes)) + "\n")


def markdown(
    found: Lines, results: dict[str, Result], sizes: Sizes, runs: int, picture: str | None = None
) -> str:
    """The page as text; the plan has so many ``runs``."""
    if not results:
        return OPENING + NOT_RUN.format(runs=runs)
    parts = [OPENING]
    parts += ["## In five lines\n", *readme_lines(found, sizes), ""]
    if picture:
        words = "Three panels: change of bits by position, gain by training, change by repetition"
        parts += [f"![{words}]({picture})\n"]
    writers: dict[int, Callable[[Lines], list[str]]] = {
        1: main_tables, 2: lasting, 3: memories, 4: where_tables, 5: ablations, 6: health,
    }  # fmt: skip
    for section, writer in writers.items():
        parts += [f"## {section}. {TITLES[section]}\n"]
        parts += writer(found) or ["None of these runs has been made.\n"]
    parts += missing(found)
    parts += [METHOD.format(**_sizes(sizes)), *provenance(results)]
    return "\n".join(parts).rstrip() + "\n"


def missing(found: Lines) -> list[str]:
    """Which planned runs are not there, and which failed."""
    groups: dict[tuple[int, str, int], list[str]] = {}
    failed = []
    for spot, line in found.items():
        left = [s for s in line.planned if s not in line.runs and s not in line.failed]
        label = ": ".join(filter(None, (spot.variant, spot.name)))
        if left and line.kind != "train":
            seeds = " ".join(map(str, left))
            groups.setdefault(spot[:3], []).append(f"{label} (seeds {seeds})")
        failed += [f"- {spot.corpus}, {label}, seed {s}: {why}" for s, why in line.failed.items()]
    parts = []
    if groups:
        parts += ["## What is missing\n", "These planned runs have not been made:\n"]
        for (section, corpus, window), names in groups.items():
            parts += [f"- section {section}, {corpus}, window {window}: {'; '.join(names)}"]
        parts += [""]
    if failed:
        parts += ["## What failed\n", *failed, ""]
    return parts


def provenance(results: dict[str, Result]) -> list[str]:
    """Machine, versions, commits, dates."""

    def all_of(name: str) -> str:
        return ", ".join(sorted({str(r.get(name, "unknown")) for r in results.values()}))

    versions = sorted(
        {"; ".join(f"{k} {v}" for k, v in r["versions"].items()) for r in results.values()}
    )
    hours = sum(r["row_seconds"] for r in results.values()) / 3600
    return [
        f"{len(results)} rows, {hours:.2f} core-hours; {all_of('machine')}; {', '.join(versions)}; "
        f"commits {all_of('commit')}; {all_of('date')}."
    ]


def _sizes(s: Sizes) -> dict[str, Any]:
    c, t = s.config, s.training
    return {
        "validation": s.validation[0], "more": s.more, "layers": c.layers, "width": c.width,
        "steps": t.steps, "batch": t.batch, "window": t.window, "test": s.test[0],
        "bytes": f"{s.test[1]:,}", "order": s.order,
    }  # fmt: skip
