"""The tables of the page, a function a section. An empty list: there are no runs of it."""

from __future__ import annotations

from collections.abc import Iterable

from ..lm import footprint
from ..lm.model import Config
from .collect import (
    Line,
    Lines,
    change,
    change_by_bucket,
    change_by_position,
    counts_by_bucket,
    mean,
)
from .journal import Result
from .memory import count_parameters
from .prose import ABLATIONS, MEMORIES, NUDGED
from .row import BASE, BLOCK, CARRIED, RESET
from .where import BUCKETS, CONTEXT, POSITIONS, REPEATED
from .words import number, per_byte, percent, spot_of

Cells = tuple[str, ...]


def main_tables(found: Lines) -> list[str]:
    """Section 1: a table for each corpus and window, and changes by position."""
    parts: list[str] = []
    for corpus, window in _places(found, 1):
        base = found[spot_of(1, corpus, window, BASE)]
        own = [s for s in found if s[:3] == (1, corpus, window) and found[s].kind == "read"]
        own += [s for s in found if s[:3] == (1, corpus, 0)]
        mine = [found[spot] for spot in own]
        table = [_main(line, base) for line in mine if line.runs or line.failed]
        if not any(line.runs for line in mine if line.kind == "read"):
            continue
        heads = ("reading", "bits per byte", "change", "of it", "seeds")
        more = ("multiply-adds", "time", "tuned")
        read = next(line for line in mine if line.runs and line.kind == "read")
        count = len(next(iter(read.runs.values()))["bits"])
        title = f"### {corpus}, windows of {window} bytes, {count} documents\n"
        parts += [title, *grid((*heads, *more), table)]
        places = [
            (line.spot.name, change_by_position(line, base))
            for line in mine
            if line.kind == "read" and line is not base
        ]
        parts += ["Change by position in the document, in bits:\n"]
        parts += grid(
            ("reading", *_ranges(POSITIONS)), [(n, *map(number, c)) for n, c in places if c]
        )
    return parts


def lasting(found: Lines) -> list[str]:
    """Section 2: the gain against how good the plain model is."""
    table: list[Cells] = []
    for spot, base in found.items():
        if spot.section == 2 and spot.name == BASE and base.runs:
            own = found[spot._replace(name=CARRIED)]
            block = found[spot._replace(name=BLOCK)]
            table.append(
                (spot.variant, number(mean(base)), number(change(own, base)),
                 percent(change(own, base), mean(base)), number(change(block, base)),
                 str(len(base.runs)))
            )  # fmt: skip
    heads = (
        "model",
        "plain, bits per byte",
        "fast weights carried",
        "of it",
        "block adapted",
        "seeds",
    )
    return grid(heads, table) if table else []


def memories(found: Lines) -> list[str]:
    """Section 3: what gradients write against what projections write."""
    parts: list[str] = []
    for corpus, window in _places(found, 3):
        own = [line for s, line in found.items() if s[:3] == (3, corpus, window)]
        reads = [line for line in own if line.kind == "read" and line.runs]
        base = next(line for line in own if line.spot.name == BASE)
        fast = next(line for line in own if line.spot.name == CARRIED)
        table = [
            (line.spot.variant, line.spot.name, number(mean(line)),
             *(number(change(line, other)) if line is not other else "-" for other in (base, fast)),
             str(len(line.runs)), *_costs(line, base), f"{_parameters(line):,}")
            for line in reads
        ]  # fmt: skip
        if table:
            heads = ("written by", "reading", "bits per byte", "change against plain")
            more = ("against fast weights, carried", "seeds", "multiply-adds", "time", "parameters")
            parts += [f"### {corpus}, windows of {window} bytes\n", *grid((*heads, *more), table)]
    return [*parts, MEMORIES] if parts else []


def where_tables(found: Lines) -> list[str]:
    """Section 4: change by what is known of a byte."""
    titles = {
        "position": "By position in the document",
        "frequency": f"By how often training text has the {CONTEXT} bytes before",
        "earlier": f"By how often the document has had this byte after the same {REPEATED} bytes",
    }
    parts: list[str] = []
    for corpus, window in _places(found, 4):
        mine = [v for s, v in found.items() if s[:3] == (4, corpus, window) and v.runs]
        for question, title in titles.items() if mine else ():
            parts += [f"### {title}: {corpus}, windows of {window} bytes\n"]
            table: list[tuple[str, ...]] = [
                ("bytes, all documents", *map(str, counts_by_bucket(mine[0], question)))
            ]
            table += [
                (_where_name(line), *map(number, change_by_bucket(line, question))) for line in mine
            ]
            parts += grid(("change in bits", *_ranges(BUCKETS[question])), table)
    return parts


def ablations(found: Lines) -> list[str]:
    """Section 5: each against the model as it is."""
    table: list[Cells] = []
    for spot, line in found.items():
        if spot.section == 5 and line.kind == "read" and line.runs:
            name = RESET if spot.name.startswith(("reset", RESET)) else CARRIED
            base = found[spot._replace(variant="as it is", name=name)]
            own = change(line, base) if line is not base else None
            table.append(
                (spot.variant, spot.name, number(mean(line)), number(own), str(len(line.runs)))
            )
    heads = ("model", "reading", "bits per byte", "change against as it is", "seeds")
    return [*grid(heads, table), ABLATIONS] if table else []


def health(found: Lines) -> list[str]:
    """Section 6: how large the largest gradients are, whose they are, and what rounding does."""
    table: list[Cells] = []
    for spot, line in found.items():
        if spot.section != 6 or line.kind != "train" or not line.runs:
            continue
        ratios = [max(r["norm_largest"]) / r["norm_median"] for r in line.runs.values()]
        shares = [r["norm_shares"] for r in line.runs.values()]
        most = max(shares[0], key=shares[0].__getitem__)
        share = sum(s.get(most, 0.0) for s in shares) / len(shares)
        own = found[spot._replace(name=CARRIED)]
        nudged = found.get(spot._replace(variant=f"{spot.variant}, nudged", name=CARRIED))
        apart = "-" if nudged is None else _apart(own, nudged)
        table.append(
            (spot.variant, f"{sum(ratios) / len(ratios):.0f}", f"{most}: {100 * share:.0f} %",
             number(mean(own)), apart, str(len(line.runs)))
        )  # fmt: skip
    heads = (
        "training", "largest norm over median", "largest share in the ten largest norms",
        "carried, bits per byte", "moved by rounding", "seeds",
    )  # fmt: skip
    return [*grid(heads, table), NUDGED] if table else []


def grid(heads: Iterable[str], table: Iterable[Iterable[str]]) -> list[str]:
    """A Markdown table, and an empty line."""
    heads = list(heads)
    bar = ["|:--", *("|--:" for _ in heads[1:]), "|"]
    return [
        f"| {' | '.join(heads)} |",
        "".join(bar),
        *(f"| {' | '.join(row)} |" for row in table),
        "",
    ]


def _main(line: Line, base: Line) -> Cells:
    """A line of the main table."""
    own = change(line, base) if line is not base else None
    tuned = dict.fromkeys(filter(None, map(_tuned, line.runs.values())))
    return (
        line.spot.name,
        number(mean(line)) if line.runs else "; ".join(line.failed.values()),
        number(own),
        percent(own, mean(base)),
        str(len(line.runs)) if line.products else "-",
        *_costs(line, base),
        ", ".join(tuned) or "-",
    )


def _costs(line: Line, base: Line) -> tuple[str, str]:
    """Multiply-adds and time a byte, in units of another line's."""
    if not (line.products and base.products):
        return "-", "-"
    mine, plain = per_byte(line), per_byte(base)
    time = f"{mine / plain:.2f}x" if mine and plain else "-"
    return f"{line.products / base.products:.2f}x", time


def _parameters(line: Line) -> int:
    """How many numbers the line's model has, six step sizes and a decay among them."""
    settings = next(iter(line.runs.values()))["settings"]
    config, top = Config(**settings["config"]), settings.get("top")
    own = count_parameters(config, top["rule"], top["heads"]) if top else 0
    return footprint.count_parameters(config) + own


def _tuned(run: Result) -> str:
    chosen = run.get("chosen") or {}
    words = [f"{k} {chosen[k]:g}" for k in ("rate", "decay", "theta", "share") if k in chosen]
    return " ".join([*words, *(["edge"] if chosen.get("edge") else [])])


def _where_name(line: Line) -> str:
    return line.spot.name.removeprefix("where: ")


def _apart(a: Line, b: Line) -> str:
    found: list[float] = []
    for seed in a.runs.keys() & b.runs.keys():
        one, other = (
            Line(x.spot, x.kind, x.planned, {seed: x.runs[seed]}, {}, None) for x in (a, b)
        )
        moved = change(one, other)
        found += [abs(moved.value)] if moved else []
    return f"{sum(found) / len(found):.3f}" if found else "-"


def _places(found: Lines, section: int) -> list[tuple[str, int]]:
    spots = (s for s in found if s.section == section and s.window)
    return list(dict.fromkeys((s.corpus, s.window) for s in spots))


def _ranges(edges: tuple[int, ...]) -> list[str]:
    pairs = zip(edges, edges[1:], strict=False)
    words = [str(a) if b == a + 1 else f"{a} to {b - 1}" for a, b in pairs]
    return [*words, f"{edges[-1]} and more"]
