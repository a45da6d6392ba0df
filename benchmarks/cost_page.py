"""docs/cost.md and its plots, from the rows that ``curves.py`` found and from nothing else.

A plot carries the digest of the rows that it shows, so a test can say whether it is of them.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fwl_ref.files import whole_file
from fwl_ref.lm.footprint import readable

Found = dict[str, Any]  # section -> {"run": ..., "rows": [...]}

WAYS = {
    "dynamic": ("dynamic evaluation, all parameters", "#D55E00", "v"),
    "dynamic_block": ("dynamic evaluation, block only", "#CC79A7", "D"),
    "fast_carried": ("fast weights, state carried in", "#0072B2", "P"),
    "fast": ("fast weights", "#56B4E9", "o"),
}
AXES = {"layers": "layers", "width": "width D", "length": "window T"}
DEFAULT = {"layers": 4, "width": 256, "length": 512}
GOALS = {4: 1.4, 12: 1.2}  # of fast / plain, by layers
AGAIN = "python -m benchmarks.curves --only"

INTRODUCTION = """# What it costs

A network that learns while it reads can take real gradient steps, which is dynamic evaluation, or have fast weights. This page says what
each costs beside the plain model, which learns nothing: counted, and measured. `make cost` writes it from `benchmarks/results/cost.json`.

All models read one window of T bytes (256 symbols, heads of 64 channels). *Fast weights* begin each window with an empty memory, in one
chunk if T is at most 3.2 D, else in chunks of 256 tokens, or with one that is *carried* in, in chunks of 64. *Dynamic evaluation* takes a
plain SGD step every 64 bytes, on all parameters or on the six of the block that fast weights move too. The published rule with RMS does
more work per step. Everything is divided by the plain model's.
"""

FORMULA = r"""## Where the counted ratio comes from

Per token, with L layers, width $D$, hidden width $4D$ and a window of T tokens (a multiple of 128), in chunks of $S$, which are all of a
window that is read alone and has at most 256 or $3.2 D$ tokens, and 256 of a longer one, the plain model forms

$$
L\,\big(12 D^2 + D\,(T + 128)\big) + 8 D^2 + D V
$$

multiply-adds, and fast weights form beyond that, up to some multiples of $D$,

$$
\underbrace{8 D^2 + 2 D V}_{\text{slow backward, fast forward}}
+ \underbrace{16 D^2\,(1 - S/T)}_{\text{states written and read}}
+ \underbrace{5 D\,(S + 128)}_{\text{inside a chunk}}
+ \underbrace{128 D}_{\text{sums}} .
$$

The second sum does not grow with L, so the ratio falls towards 1 as models grow deeper. It hardly depends on $D$, once $D$ is well
above $S$ and $V$. A longer window makes the trunk's attention dearer, and fast weights relatively cheaper.

What of this does the mathematics need?

- *The slow unembedding and the fast one* both: the slow one's gradient is what is written, the fast one predicts.
- *One product for the slow and the fast read*, $a' (W_2 - \eta S_2)$, would save $4 D^2$. It is exact only without decay. With decay token
  $i$ of a chunk reads $\mathrm{keep}^i S_2$, so what stands in brackets is another matrix for every token. For the first layer it saves
  nothing in any case: the slow product $x W_1$ is needed by itself.
- *Half of a block on the diagonal is masked*: $5 \cdot 128\,D$ are multiplied by zeros. Blocks above it are not formed.
- *Pairs or states*: a larger chunk has more pairs of tokens, $10 D$ each, and fewer states, $16 D^2$. Where the state goes on, chunks of 64
  form the fewest products; where it does not, the last chunk's state is not written, and larger chunks are better. What other chunk sizes
  form and take, `python -m benchmarks.ratios` says.

Without any masked half the count at four layers would be {least:.2f} in place of {counted:.2f}. The goals are 1.4 at four layers and 1.2 at
twelve.
"""


def share(row: dict, column: str, way: str) -> float:
    """A column's entry over the plain model's."""
    return row[column][way] / row[column]["plain"]


def relative(row: dict, way: str) -> float:
    """Counted or measured, whichever the row has."""
    return share(row, "multiply_adds", way) if "multiply_adds" in row else row["ratio"][way]


def along(rows: list[dict], axis: str) -> list[dict]:
    """The rows on one axis, in order: the other two as by default."""
    on = [row for row in rows if all(row[other] == n for other, n in DEFAULT.items() if other != axis)]
    return sorted(on, key=lambda row: row[axis])


def rows_of(found: Found, section: str) -> list[dict]:
    """None yet, if it was not run."""
    return found.get(section, {}).get("rows", [])


# Words and tables
# ------------------------------------------------------------------------------------------------------------------


def page(found: Found) -> str:
    """The whole page."""
    parts = [INTRODUCTION, *counted(found), *allocated(found), *measured(found), *inference(found), *length(found), *generation(found)]
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def ran(found: Found, section: str) -> str:
    """When and where."""
    run = found[section]["run"]
    rounds = f", median of {run['rounds']} rounds" if section not in ("counted", "formed") else ""
    return f"{run['date']}, {run['machine']}; {run['libraries']}{rounds}.\n"


def absent(section: str) -> str:
    """Said in place of a table."""
    return f"Not measured yet: `{AGAIN} {section}`.\n"


def table(heads: list[str], lines: Iterator[list[str]]) -> str:
    """Markdown, numbers to the right."""
    return "\n".join([f"| {' | '.join(heads)} |", f"|{'--:|' * len(heads)}", *(f"| {' | '.join(cells)} |" for cells in lines)]) + "\n"


def curves_table(rows: list[dict]) -> str:
    """A line per point, a column per way."""
    heads = ["layers", "D", "T", *(label for label, *_ in WAYS.values())]
    seen = [row for axis in AXES for row in along(rows, axis)]
    unique = [row for i, row in enumerate(seen) if row not in seen[:i]]

    def cells(row: dict) -> Iterator[str]:
        yield from (str(row[axis]) for axis in AXES)
        for way in WAYS:
            yield f"{relative(row, way):.2f}" + (f" ± {row['spread'][way]:.2f}" if "spread" in row else "")

    return table(heads, (list(cells(row)) for row in unique))


def counted(found: Found) -> Iterator[str]:
    """By formula, and where products are formed."""
    rows = rows_of(found, "counted")
    yield "## Counted\n"
    yield "![Counted multiply-adds relative to the plain model, over depth, width and window](cost_counted.png)\n"
    yield "Multiply-adds of all matrix products, by formula (`fwl_ref/demo/cost.py`, which a test compares with the products formed).\n"
    yield curves_table(rows)
    yield claim(rows)
    same = {key(row): row["multiply_adds"] for row in rows}
    checked = [row for row in rows_of(found, "formed") if same[key(row)] == row["multiply_adds"]]
    others = len(rows_of(found, "formed")) - len(checked)
    yield f"Counted again where the products are formed, at {len(checked) + others} of these {len(rows)} points: " + (
        "the same integers.\n" if not others else f"OTHER integers at {others} of them.\n"
    )
    if not rows_of(found, "formed"):
        yield absent("formed")
    (middle,) = [row for row in rows if key(row) == tuple(DEFAULT.values())]
    plain, fast = middle["multiply_adds"]["plain"], middle["multiply_adds"]["fast"]
    unneeded = middle["length"] * 5 * 128 * middle["width"]
    text = FORMULA.replace("{least:.2f}", f"{(fast - unneeded) / plain:.2f}").replace("{counted:.2f}", f"{fast / plain:.2f}")
    yield text


def claim(rows: list[dict]) -> str:
    """What the table says, in words."""
    low, high = ({way: f"{of(relative(row, way) for row in rows):.2f}" for way in WAYS} for of in (min, max))
    text = f"Dynamic evaluation of the whole model costs {low['dynamic']} to {high['dynamic']} times the plain model, whatever its size. "
    text += f"Fast weights cost {low['fast']} to {high['fast']} times, the less the deeper the model. "
    if all(relative(row, "dynamic_block") < relative(row, "fast") for row in rows):
        text += (
            "Dynamic evaluation of the block alone is counted cheaper than they are: it takes one step where they take 64, one for each "
        )
        text += "byte. Its steps wait for one another."
    return text.rstrip() + "\n"


def key(row: dict) -> tuple:
    """Which point."""
    return tuple(row[axis] for axis in AXES)


def allocated(found: Found) -> Iterator[str]:
    """Bytes."""
    yield "## Memory\n"
    rows = rows_of(found, "formed")
    if not rows:
        yield absent("formed")
        return
    yield "What NumPy and Python hold at most while one window is read, beyond the parameters. In brackets what `fwl_ref/lm/footprint.py`\n"
    yield "states before it starts. Dynamic evaluation also holds gradients and moved parameters, and residuals of a segment at a time.\n"
    heads = ["layers", "D", "T", "plain", "fast weights", *(WAYS[way][0] for way in ("dynamic_block", "dynamic"))]

    def cells(row: dict) -> Iterator[str]:
        yield from (str(row[axis]) for axis in AXES)
        for way in ("plain", "fast"):
            yield f"{readable(row['peak_bytes'][way])} ({readable(row['stated_bytes'][way])})"
        for way in ("dynamic_block", "dynamic"):
            yield readable(row["peak_bytes"][way])

    yield table(heads, (list(cells(row)) for row in rows))


def measured(found: Found) -> Iterator[str]:
    """Seconds over the plain model's."""
    yield "## Measured\n"
    rows = rows_of(found, "measured")
    if not rows:
        yield absent("measured")
        return
    yield "![Measured time relative to the plain model, over depth, width and window](cost_measured.png)\n"
    yield f"Time over the plain model's in the same round, one core; ± is half the range of the rounds. {ran(found, 'measured')}"
    yield curves_table(rows)


def inference(found: Found) -> Iterator[str]:
    """Against the goals."""
    yield "## Inference\n"
    rows = rows_of(found, "inference")
    if not rows:
        yield absent("inference")
        return
    yield f"Whole batches through `model_score`, D = 256, T = 512, one core. {ran(found, 'inference')}"
    heads = ["layers", "batch", "fast / plain, measured", "counted", "goal", ""]

    def cells(row: dict) -> Iterator[str]:
        goal = GOALS[row["layers"]]
        yield from (str(row["layers"]), str(row["batch"]), f"{row['ratio']['fast']:.2f} ± {row['spread']['fast']:.2f}")
        yield from (f"{row['counted']:.2f}", f"{goal:.1f}", "reached" if row["ratio"]["fast"] <= goal else "missed")

    yield table(heads, (list(cells(row)) for row in rows))


def length(found: Found) -> Iterator[str]:
    """Long texts."""
    yield "## Long texts\n"
    rows = rows_of(found, "length")
    if not rows:
        yield absent("length")
        return
    yield "![Cost per token against the length of the text](cost_length.png)\n"
    yield "A text is read piece by piece with an attention window of 256 keys, the memory carried through (`lm/context.py`).\n"
    yield f"Beside it what one window as long as the text would form, without an attention window. {ran(found, 'length')}"
    heads = ["bytes", "million multiply-adds per byte", "one window", "time per byte, 512 bytes = 1", "µs per byte", "held at most"]
    yield table(
        heads,
        (
            [
                f"{row['length']:,}",
                f"{row['multiply_adds'] / row['length'] / 1e6:.2f}",
                f"{row['without_window'] / row['length'] / 1e6:.2f}",
                f"{row['ratio_per_token']:.2f} ± {row['spread']:.2f}",
                f"{1e6 * row['seconds'] / row['length']:.0f}",
                readable(row["peak_bytes"]),
            ]
            for row in rows
        ),
    )


def generation(found: Found) -> Iterator[str]:
    """Bytes per second."""
    yield "## Writing\n"
    rows = rows_of(found, "generation")
    if not rows:
        yield absent("generation")
        return
    yield f"{rows[0]['count']} bytes after a prompt of {rows[0]['prompt']}, the likeliest each time, with cached keys and values.\n"
    yield "The fast model learns from each byte.\n"
    programs = ", ".join(f"{name} {number}" for name, number in rows[0]["versions"].items())
    yield f"Four layers, D = 256, one core; {programs}. {ran(found, 'generation')}"
    sides = list(rows[0]["bytes_per_second"])
    others = [side for side in sides if f"ratio_to_{side}" in rows[0]]
    heads = ["model", *(f"{side}: bytes per second" for side in sides), *(f"seconds, fwl_ref / {side}" for side in others)]
    yield table(
        heads,
        (
            [
                row["kind"],
                *(f"{row['bytes_per_second'][side]:.0f}" for side in sides),
                *(f"{row[f'ratio_to_{side}']:.2f} ± {row['spread']:.2f}" for side in others),
            ]
            for row in rows
        ),
    )
    if others:
        error = max(value for row in rows for value in row["largest_error_in_float64"].values())
        yield f"In float64 both write the same text and end with the same features and memory, to {error:.0e} of the largest entry.\n"
    else:
        yield "PyTorch was not there.\n"


# Plots
# ------------------------------------------------------------------------------------------------------------------


def digest(rows: list[dict]) -> str:
    """Which rows a plot shows."""
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def plots(found: Found) -> dict[str, tuple[Figure, str]]:
    """File name -> figure and digest, of the sections that there are."""
    kinds = {"counted": draw_curves, "measured": draw_curves, "length": draw_length}
    return {
        f"cost_{name}.png": (draw(rows_of(found, name), name), digest(rows_of(found, name)))
        for name, draw in kinds.items()
        if rows_of(found, name)
    }


def draw_curves(rows: list[dict], name: str) -> Figure:
    """Three panels: depth, width, window. Not made through pyplot: the caller's figures stay as they are."""
    with matplotlib.rc_context({"font.size": 11}):
        figure = Figure(figsize=(12, 4.4), dpi=100, layout="constrained")
        for axis, (of, label) in zip(figure.subplots(1, 3, sharey=True), AXES.items(), strict=True):
            one_axis(axis, along(rows, of), of)
            axis.set_xlabel(label)
        first = figure.axes[0]
        first.set_ylim(0, 1.05 * first.dataLim.union([axis.dataLim for axis in figure.axes]).ymax)
        first.set_ylabel(f"{ {'counted': 'multiply-adds', 'measured': 'time'}[name] }, plain = 1")
        figure.legend(*first.get_legend_handles_labels(), loc="outside lower center", ncols=len(WAYS))
    return figure


def one_axis(axis: Axes, rows: list[dict], of: str) -> None:
    """A line per way."""
    for way, (label, colour, marker) in WAYS.items():
        axis.plot([row[of] for row in rows], [relative(row, way) for row in rows], color=colour, marker=marker, label=label)
    axis.axhline(1, color="#000000", linewidth=1)
    places(axis, [row[of] for row in rows], of != "layers")
    axis.grid(alpha=0.3)


def places(axis: Axes, values: list[int], doubling: bool) -> None:
    """A tick at every value."""
    if doubling:
        axis.set_xscale("log", base=2)
    axis.set_xticks(values, [f"{n:,}" for n in values])
    axis.minorticks_off()


def draw_length(rows: list[dict], _: str) -> Figure:
    """Left counted, right measured, per byte."""
    with matplotlib.rc_context({"font.size": 11}):
        figure = Figure(figsize=(12, 4), dpi=100, layout="constrained")
        left, right = figure.subplots(1, 2)
        lengths = [row["length"] for row in rows]
        for column, label, style in (
            ("multiply_adds", "attention window of 256, read on", "o-"),
            ("without_window", "one window of all", "s--"),
        ):
            left.plot(lengths, [row[column] / row["length"] / 1e6 for row in rows], style, label=label)
        right.plot(lengths, [row["ratio_per_token"] for row in rows], "o-")
        left.set_ylabel("million multiply-adds per byte")
        right.set_ylabel("time per byte, 512 bytes = 1")
        left.legend()
        for axis in (left, right):
            places(axis, lengths, True)
            axis.set(xlabel="bytes read", ylim=(0, None))
            axis.grid(alpha=0.3)
    return figure


def write(folder: Path, found: Found) -> None:
    """The page and the plots, each whole or not at all. Nothing without counted curves."""
    if not rows_of(found, "counted"):
        return
    for name, (figure, of) in plots(found).items():
        image = io.BytesIO()
        figure.savefig(image, format="png", metadata={"Source": of, "Software": None})
        with whole_file(folder / name) as file:
            file.write(image.getvalue())
    with whole_file(folder / "cost.md") as file:
        file.write(page(found).encode())
