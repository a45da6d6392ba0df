"""The README's five lines about the study, with their limits."""

from __future__ import annotations

from ..lm import footprint
from .collect import Line, Lines, change, mean
from .row import BASE, BLOCK, BLOCK_RMS, CACHE, CARRIED, MEMORY, RMS, SGD
from .settings import Sizes
from .words import number, percent, spot_of

OTHERS = (BLOCK, BLOCK_RMS, SGD, RMS, CACHE)


def readme_lines(found: Lines, s: Sizes) -> list[str]:
    """Five items of Markdown; a figure that has not been made is called so."""
    corpus, window = s.corpora[0], s.windows[0]

    def line(name: str, variant: str = "") -> Line | None:
        known = found.get(spot_of(1, corpus, window, name, variant))
        return known if known and known.runs else None

    def against(name: str, base: Line | None, variant: str = "") -> str:
        own = line(name, variant)
        if own is None or base is None:
            return "not run"
        moved = change(own, base)
        return f"{number(moved)} bits ({percent(moved, mean(base))})" if moved else "not run"

    base, same = line(BASE), line("plain, equal training compute", "plain, equal training compute")
    documents = len(next(iter(base.runs.values()))["bits"]) if base else 0
    seeds = len(base.runs) if base else 0
    outside = [found.get(spot_of(1, corpus, 0, name)) for name in ("gzip", "xz", "n-grams")]
    marks = [f"{o.spot.name} {number(mean(o))}" for o in outside if o and o.runs]
    size = footprint.count_parameters(s.config)
    memories = [
        f"{spot.variant.removeprefix('projections: ')} {number(moved)} bits"
        for spot, own in found.items()
        if spot.section == 3 and spot.name == MEMORY and base and (moved := change(own, base))
    ]
    others = (f"{name.removeprefix('plain, ')} {against(name, base)}" for name in OTHERS)
    level = number(mean(base)) if base else "not run"
    return [
        f"- Text of {corpus}, windows of {window} bytes: the plain model has {level} bits per "
        f"byte; trained fast weights, carried through the document, change that by "
        f"{against(CARRIED, base)}; {documents} documents, {seeds} seeds, 95 % intervals.",
        f"- Against a plain model that was trained with as much compute: {against(CARRIED, same)}.",
        f"- What others buy on the plain model: {'; '.join(others)}. Another memory, trained in "
        f"the place of the fast weights and carried: {'; '.join(memories) or 'not run'}.",
        f"- The same documents alone: {'; '.join(marks) or 'not run'} bits per byte. "
        f"{_lasts(found)}",
        f"- Limits: models of {size:,} parameters on bytes, trained for minutes; documents of at "
        f"most {s.test[1]:,} bytes, {len(s.corpora)} sorts of text. Nothing here is about larger "
        "models.",
    ]


def _lasts(found: Lines) -> str:
    """The gain of the worst and of the best plain model among those of section 2."""
    pairs = []
    for spot, base in found.items():
        if spot.section == 2 and spot.name == BASE and base.runs:
            level, moved = mean(base), change(found[spot._replace(name=CARRIED)], base)
            if level and moved:
                pairs.append((level.value, spot.variant, percent(moved, level)))
    if len(pairs) < 2:
        return "Whether the gain lasts for better models: not run."
    (_, worst, first), (_, best, last) = max(pairs), min(pairs)
    return f"The change is {first} on the worst plain model ({worst}), {last} on the best ({best})."
