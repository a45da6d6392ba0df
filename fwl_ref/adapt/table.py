"""The table: perplexity, bits per byte, the change against the model as it is with its uncertainty
over documents, by quarter of the document, and what each way costs.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import NamedTuple

from ..backend import Array, host
from .rows import Row
from .settings import Settings, context_bytes, model_bytes, trunk_products
from .study import Document
from .trunk import Model
from .ways import AS_IS

# 97.5 % of Student's t distribution, by degrees of freedom; the normal one beyond
T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


class Line(NamedTuple):
    """One way on the documents of one text."""

    text: str
    way: str
    documents: int
    tokens: int
    perplexity: float  # per token
    bits_per_byte: float
    change: float  # nats a token against the model as it is, mean over documents
    interval: float  # half of the 95 % interval over documents, paired; nan for one document
    worst: float  # the largest change of any document
    quarters: tuple[float, ...]  # the change by quarter of the longest length; nan = none so long
    time: float  # a token, relative to the model as it is
    products: float
    memory: float


def lines(
    rows: Sequence[Row], documents: Sequence[Document], settings: Settings, model: Model
) -> list[Line]:
    """A line for each text and row. The first row is the model as it is."""
    by_name = {row.name: row for row in rows}
    base = by_name[AS_IS]
    costs = {row.name: cost(row, by_name, model) for row in rows}
    found = []
    for text in dict.fromkeys(d.source for d in documents):
        for row in rows:
            numbers = [i for i in row.documents if documents[i].source == text]
            if numbers:
                mine = [documents[i] for i in numbers]
                own, plain = (
                    [r.losses[r.documents.index(i)] for i in numbers] for r in (row, base)
                )
                seconds, products, memory = (
                    a / b for a, b in zip(costs[row.name], costs[AS_IS], strict=True)
                )
                relative = (seconds, products, memory)
                found.append(_line(text, row.name, mine, own, plain, settings.length, relative))
    return found


def cost(row: Row, rows: dict[str, Row], model: Model) -> tuple[float, float, float]:
    """Seconds and multiply-adds a token, and bytes, of a row, with the trunk and what it uses."""
    used, todo = {}, [row.name]
    while todo:
        name = todo.pop()
        if name not in used:
            used[name] = rows[name]
            todo += rows[name].uses
    windows = {r.window for r in used.values() if r.window}
    trunks = {
        r.window: r.chosen["trunk_seconds"] for r in rows.values() if "trunk_seconds" in r.chosen
    }
    seconds = sum(r.seconds for r in used.values()) + sum(trunks.get(w, math.nan) for w in windows)
    products = sum(r.products for r in used.values())
    products += sum(trunk_products(model.config, w) for w in windows)
    memory = model_bytes(model.config) + sum(r.memory for r in used.values())
    memory += sum(context_bytes(model.config, w) for w in windows)
    return seconds, products, float(memory)


def change_by_document(row: Row, base: Row) -> tuple[Array, ...]:
    """(T,) of each document of ``row``: its losses less those of ``base``"""
    pairs = zip(row.documents, row.losses, strict=True)
    return tuple(loss - base.losses[base.documents.index(i)] for i, loss in pairs)


def interval(values: Sequence[float]) -> float:
    """Half of the 95 % interval of a mean; nan for one value."""
    if len(values) < 2:
        return math.nan
    freedom = len(values) - 1
    quantile = T_975[freedom - 1] if freedom <= len(T_975) else 1.96
    return quantile * float(host.std(values, ddof=1)) / math.sqrt(len(values))


def as_text(table: Sequence[Line], settings: Settings) -> str:
    """Lines to read."""
    out = []
    for text in dict.fromkeys(line.text for line in table):
        mine = [line for line in table if line.text == text]
        wide = max(len(line.way) for line in mine)
        out.append(
            f"{text}: up to {settings.length} tokens of each document; change in nats a token "
            "against the model as it is, 95 % interval over documents"
        )
        heads = (
            "docs",
            "ppl",
            "bits/byte",
            "change",
            "+-",
            "worst",
            "by quarter",
            "time",
            "mul-add",
        )
        form = "{:>4} {:>8} {:>9} {:>8} {:>7} {:>8} {:>32} {:>6} {:>7} {:>7}"
        out.append(f"{'way':{wide}} " + form.format(*heads, "memory"))
        for line in mine:
            quarters = " ".join(f"{q:+7.3f}" for q in line.quarters)
            cells = (
                str(line.documents), f"{line.perplexity:.3f}", f"{line.bits_per_byte:.4f}",
                f"{line.change:+.4f}", f"{line.interval:.4f}", f"{line.worst:+.4f}", quarters,
                f"{line.time:.2f}x", f"{line.products:.2f}x", f"{line.memory:.2f}x",
            )  # fmt: skip
            out.append(f"{line.way:{wide}} " + form.format(*cells))
        out.append("")
    return "\n".join(out)


def as_csv(table: Sequence[Line]) -> str:
    """One line a text and way, all digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [name for name in Line._fields if name != "quarters"]
    writer.writerow([*names, *(f"quarter{i + 1}" for i in range(4))])
    for line in table:
        writer.writerow([*(getattr(line, name) for name in names), *line.quarters])
    return text.getvalue()


def as_markdown(table: Sequence[Line]) -> str:
    """A table for a page: of each text the change with its interval and the change in the last
    quarter, and what a way costs.
    """
    found = {(line.way, line.text): line for line in table}
    texts = list(dict.fromkeys(line.text for line in table))
    heads = [head for text in texts for head in (text, "end")]
    out = [f"| way | {' | '.join([*heads, 'time', 'multiply-adds'])} |"]
    out += ["|---|" + "--:|" * (len(heads) + 2)]
    for way in dict.fromkeys(line.way for line in table):
        mine = [found[way, text] for text in texts]
        cells = [
            cell
            for line in mine
            for cell in (f"{line.change:+.3f} ± {line.interval:.3f}", f"{line.quarters[-1]:+.3f}")
        ]
        cost = [f"{mine[0].time:.2f}", f"{mine[0].products:.2f}"]
        out.append(f"| {' | '.join([way, *cells, *cost])} |")
    return "\n".join([*out, ""])


def _line(
    text: str,
    way: str,
    documents: Sequence[Document],
    losses: Sequence[Array],
    base: Sequence[Array],
    length: int,
    relative: tuple[float, float, float],
) -> Line:
    tokens = sum(len(loss) for loss in losses)
    nats = sum(float(loss.sum()) for loss in losses)
    size = sum(int(d.tokens.sizes[1:].sum()) for d in documents)
    changes = [a - b for a, b in zip(losses, base, strict=True)]
    means = [float(change.mean()) for change in changes]
    quarters = []
    for i in range(4):
        part = slice(i * length // 4, (i + 1) * length // 4)
        inside = [float(change[part].mean()) for change in changes if len(change[part])]
        quarters.append(sum(inside) / len(inside) if inside else math.nan)
    perplexity = math.exp(min(nats / tokens, 700.0))
    bits = nats / math.log(2) / size
    mean = sum(means) / len(means)
    return Line(
        text, way, len(documents), tokens, perplexity, bits, mean, interval(means), max(means),
        tuple(quarters), *relative,
    )  # fmt: skip
