"""Notebooks on the site: under each title stand its file and its source, and where JupyterLite is
part of the site also a link that opens it in the browser, if it runs there.

The source is a page with the .py that the notebook is made of.
"""

from __future__ import annotations

import html
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

from tools import lite


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("doctree-resolved", add_ways)
    app.connect("html-collect-pages", source_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def ways(name: str, in_browser: bool) -> str:
    """The line of links, as HTML; they are relative to the folder of the notebooks."""
    runs = in_browser and name not in lite.AWAY
    links = [f'<a href="../{lite.address(name)}">open in the browser</a>'] if runs else []
    links += [f'<a href="{name}.ipynb" download>download</a>', f'<a href="source_{name}.html">source</a>']
    return f'<p class="ways">{" · ".join(links)}</p>'


def add_ways(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Under the title of a notebook."""
    folder, _, name = docname.rpartition("/")
    if folder != "notebooks" or app.builder.format != "html":
        return
    title = next(doctree.findall(nodes.title))
    title.parent.insert(1, nodes.raw("", ways(name, app.tags.has("site")), format="html"))


def source_pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """A page for the .py of every notebook."""
    for notebook in lite.ALL:
        source = notebook.with_suffix(".py").read_text(encoding="utf-8")
        code = app.builder.highlighter.highlight_block(source, "python")
        back = f'<p><a href="{notebook.stem}.html">the notebook</a></p>'
        title = f"notebooks/{Path(notebook.stem)}.py"
        body = f"<h1>{html.escape(title)}</h1>{back}{code}"
        yield f"notebooks/source_{notebook.stem}", {"title": title, "body": body}, "page.html"
