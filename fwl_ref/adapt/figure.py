"""The figure: what each way changes, by position in the document."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..backend import host
from ..files import save_png
from .rows import Row
from .study import Document
from .table import change_by_document
from .ways import AS_IS

BINS = 16


def save_figure(
    path: Path,
    rows: Sequence[Row],
    documents: Sequence[Document],
    length: int,
    names: Sequence[str],
) -> None:
    """Curves of the rows ``names``, a panel for each text, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    base = next(row for row in rows if row.name == AS_IS)
    texts = list(dict.fromkeys(d.source for d in documents))
    figure = Figure(figsize=(6.5 * len(texts), 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(texts), squeeze=False)[0]
    edges = host.linspace(0, length, min(BINS, length) + 1).astype(int)
    for axis, text in zip(axes, texts, strict=True):
        for row in rows:
            if row.name not in names:
                continue
            changes = [
                change
                for i, change in zip(row.documents, change_by_document(row, base), strict=True)
                if documents[i].source == text
            ]
            x, y = [], []
            for low, high in zip(edges[:-1], edges[1:], strict=True):
                inside = [change[low:high].mean() for change in changes if len(change) > low]
                if inside and high > low:
                    x.append((low + high) / 2)
                    y.append(sum(inside) / len(inside))
            axis.plot(x, y, label=row.name)
        axis.axhline(0, color="0.5", linewidth=0.8)
        axis.set(title=text, xlabel="tokens read", ylabel="nats a token against the model as it is")
    axes[0].legend(fontsize="x-small")
    save_png(path, figure, dpi=130)
