"""Links that need no markup: a label such as (N.3), the name of a function, a source file or a test
become links wherever they stand.

Under each labelled equation goes a line that unfolds: the functions that compute it, the tests that
check it. All of it is read from the sources by tools/equations.py.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

from tools import equations, offline

WORDS = re.compile(r"[A-Za-z_][\w.]*")


class details(nodes.General, nodes.Element):
    """Text that unfolds."""


class summary(nodes.General, nodes.TextElement):
    """The line that is always seen."""


def setup(app: Sphinx) -> dict[str, Any]:
    for node in (details, summary):
        app.add_node(node, html=(_open, _close), latex=(_skip, None), text=(_skip, None))
    app.connect("builder-inited", read_sources)
    app.connect("source-read", to_copied_notebooks)
    app.connect("doctree-read", number_equations)
    app.connect("doctree-resolved", add_links)
    app.connect("build-finished", check_offline)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _open(self: Any, node: nodes.Element) -> None:
    self.body.append(self.starttag(node, type(node).__name__, ""))


def _close(self: Any, node: nodes.Element) -> None:
    self.body.append(f"</{type(node).__name__}>\n")


def _skip(self: Any, node: nodes.Element) -> None:
    raise nodes.SkipNode


def read_sources(app: Sphinx) -> None:
    """Equations, functions and tests, once a build."""
    app.sources = {"equations": equations.equations(), "functions": equations.functions(), "checks": equations.checks()}


def to_copied_notebooks(app: Sphinx, docname: str, source: list[str]) -> None:
    """In the repository the notebooks lie beside docs/, on the site inside it."""
    source[0] = source[0].replace("](../notebooks/", "](/notebooks/").replace("](../../notebooks/", "](/notebooks/")
    if docname.startswith("notebooks/"):
        source[0] = source[0].replace("](../docs/", "](/")


def check_offline(app: Sphinx, exception: Exception | None) -> None:
    """A page that asks something of the network is an error: the site must work from a USB stick."""
    if exception is None and app.builder.format == "html":
        asked = offline.requests_of_site(Path(app.outdir))
        if asked:
            raise ExtensionError("the site would ask the network for\n  " + "\n  ".join(asked))


def equation_id(label: str) -> str:
    return "eq-" + label.replace(".", "-").lower()


def number_equations(app: Sphinx, doctree: nodes.document) -> None:
    r"""The label of a formula is its number and its anchor; \tag is for readers of the source."""
    for node in doctree.findall(nodes.math_block):
        match = equations.TAG.search(node.astext())
        if match:
            latex = equations.TAG.sub("", node.astext()).strip()
            node.clear()
            node += nodes.Text(latex)
            node["number"], node["label"] = match[1], match[1]
            node["ids"] = [equation_id(match[1])]
            node["classes"].append("labelled")


def add_links(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """After all pages are read: link labels, names of functions, files and tests; add what belongs
    under an equation.
    """
    finder = Finder(app, docname)
    if app.builder.format == "html":
        inline_pictures(app, doctree)
    for node in list(doctree.findall(nodes.math_block)):
        if node.get("label") in app.sources["equations"]:
            if "math-wrapper" in node.parent.get("classes", []):  # the theme's box around a formula, with a copy of its anchor
                node.parent.replace_self(node)
            node.parent.insert(node.parent.index(node) + 1, below_equation(finder, node["label"]))
    for node in list(doctree.findall(lambda n: isinstance(n, nodes.Text | nodes.literal))):
        if any(isinstance(p, nodes.reference | nodes.FixedTextElement | nodes.math | nodes.raw) for p in _above(node)):
            continue
        if isinstance(node, nodes.literal):
            target = finder.name(node.astext())
            if target:
                link = nodes.reference("", "", refuri=target, internal=True)
                node.replace_self(link)
                link += node
        elif not isinstance(node.parent, nodes.literal | nodes.math_block):
            parts = link_labels(finder, str(node))
            test = finder.tests.get(f"test_{node.replace(' ', '_')}") if len(node.parent.children) == 1 else None
            if test:  # the name of a test, written as a sentence, in a cell of its own
                parts = [nodes.Text(""), finder.linked(str(node), finder.test(test), literal=False)]
            if len(parts) > 1:
                node.parent.replace(node, parts)


def inline_pictures(app: Sphinx, doctree: nodes.document) -> None:
    """An SVG becomes part of its page, where it can follow the reader's switch between light and
    dark.
    """
    for node in list(doctree.findall(nodes.image)):
        if node["uri"].endswith(".svg"):
            picture = (Path(app.srcdir) / node["uri"]).read_text(encoding="utf-8")
            if "alt" in node:  # a notebook's output has none, and keeps the title of the picture
                picture = picture.replace("<svg ", f'<svg aria-label="{html.escape(node["alt"])}" ', 1)
            node.replace_self(nodes.raw("", picture, format="html"))


def _above(node: nodes.Node) -> list[nodes.Node]:
    found = []
    while node.parent is not None:
        node = node.parent
        found.append(node)
    return found


def link_labels(finder: Finder, text: str) -> list[nodes.Node]:
    """A text cut at its labels, each a link to its equation."""
    parts, end = [], 0
    for match in equations.LABEL.finditer(text):
        target = finder.label(match[1])
        if target:
            parts += [nodes.Text(text[end : match.start()]), nodes.reference("", match[0], refuri=target, internal=True, classes=["eq"])]
            end = match.end()
    return [*parts, nodes.Text(text[end:])]


def below_equation(finder: Finder, label: str) -> nodes.Element:
    """computed by f, checked by 3 tests: unfolds to the tests and their claims."""
    code = finder.app.sources["functions"].get(label, [])
    tests = [c for c in finder.app.sources["checks"] if label in c.labels]
    line = summary()
    if code:
        line += nodes.Text("computed by ")
        for i, function in enumerate(code):
            line += [nodes.Text(", ")] * bool(i) + [finder.linked(function.name, finder.function(function.path))]
        line += nodes.Text("; ")
    line += nodes.Text(f"checked by {count(tests)}")
    block = details("", line, classes=["trace"])
    block += test_list(finder, tests)
    return block


def count(tests: list[equations.Check]) -> str:
    return f"{len(tests)} test{'' if len(tests) == 1 else 's'}"


def test_list(finder: Finder, tests: list[equations.Check]) -> nodes.bullet_list:
    items = nodes.bullet_list()
    for test in tests:
        name = test.name.removeprefix("test_").replace("_", " ") if test.source else test.file
        items += nodes.list_item("", nodes.paragraph("", "", finder.linked(name, finder.test(test), literal=False)))
    return items


class Finder:
    """Where things are, as links from one page."""

    def __init__(self, app: Sphinx, docname: str) -> None:
        self.app, self.docname = app, docname
        domain = app.env.get_domain("py")
        self.objects = {name: (entry.docname, entry.node_id) for name, entry in domain.objects.items()}
        self.short: dict[str, list[str]] = {}
        for name in self.objects:
            self.short.setdefault(name.rsplit(".", 1)[-1], []).append(name)
        self.tests: dict[str, equations.Check] = {}
        for check in app.sources["checks"]:
            self.tests.setdefault(check.name, check)
            self.tests.setdefault(check.file, check)

    def uri(self, docname: str, anchor: str) -> str:
        if docname == self.docname:
            return f"#{anchor}"
        return f"{self.app.builder.get_relative_uri(self.docname, docname)}#{anchor}"

    def label(self, label: str) -> str | None:
        equation = self.app.sources["equations"].get(label)
        return equation and self.uri(equation.page, equation_id(label))

    def function(self, path: str) -> str | None:
        return self.uri(*self.objects[path]) if path in self.objects else None

    def test(self, test: equations.Check) -> str | None:
        return self.uri("proofs", test_id(test.file, test.name if test.source else ""))

    def name(self, text: str) -> str | None:
        """The target of a name in code type: a function or class (if only one has that name), a
        source file, a test or a file of tests.
        """
        if text in self.tests:
            test = self.tests[text]
            return self.uri("proofs", test_id(test.file, "" if text == test.file else test.name))
        if text.endswith(".py"):
            module = "fwl_ref." + text.removeprefix("fwl_ref/").removesuffix(".py").replace("/", ".")
            return self.function(module)
        if not WORDS.fullmatch(text) or text.startswith("_"):
            return None
        if text.startswith("fwl_ref."):
            return self.function(text)
        named = [full for full in self.short.get(text.rsplit(".", 1)[-1], []) if f".{full}".endswith(f".{text}")]
        clear = "_" in text or "." in text or text[0].isupper()  # a plain word in code type is more often a setting than a function
        return self.function(named[0]) if clear and len(named) == 1 else None

    def linked(self, text: str, target: str | None, literal: bool = True) -> nodes.Node:
        inner = nodes.literal("", text) if literal else nodes.Text(text)
        return nodes.reference("", "", inner, refuri=target, internal=True) if target else inner


def test_id(file: str, name: str = "") -> str:
    return nodes.make_id(f"{file} {name}".strip())
