"""The API reference and the page of proofs, made of the sources: ``.. modules:: ops.*`` and
``{proofs}``.

The docstrings of the package are plain text, not markup: a signature of shapes first, then
sentences, then perhaps sections in the manner of numpy. They are laid out here and otherwise shown
as they are.
"""

from __future__ import annotations

import ast
import fnmatch
import io
import re
import tokenize
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from links import count, details, link_labels, summary, test_id, test_list
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from tools import equations

PACKAGE = equations.ROOT / "fwl_ref"
SHAPE = re.compile(r"\([^()]*\)")
SECTIONS = ("Parameters", "Returns", "Yields", "Raises")


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("modules", Modules)
    app.add_directive("proofs", Proofs)
    app.add_directive("checked", Checked)
    app.add_node(checked)
    app.connect("doctree-resolved", fill_in, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def modules() -> dict[str, Path]:
    """Module name without ``fwl_ref.`` -> file, packages left out."""
    found = {".".join(p.relative_to(PACKAGE).with_suffix("").parts): p for p in sorted(PACKAGE.rglob("*.py"))}
    return {name: path for name, path in found.items() if not name.endswith(("__init__", "__main__"))}


class Modules(SphinxDirective):
    """``.. modules:: a b.*`` documents these modules; ``:but:`` leaves some out, ``*`` means all."""

    required_arguments = 1
    final_argument_whitespace = True
    option_spec = {"but": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        available, left_out = modules(), self.options.get("but", "").split()
        chosen = [m for pattern in self.arguments[0].split() for m in available if fnmatch.fnmatch(m, pattern)]
        chosen = [m for m in dict.fromkeys(chosen) if not any(fnmatch.fnmatch(m, pattern) for pattern in left_out)]
        if not chosen:
            raise self.error(f"no module of fwl_ref matches {self.arguments[0]!r}")
        lines = [line for name in chosen for line in module_page(name, available[name])]
        section = nodes.section()
        section.document = self.state.document
        self.state.nested_parse_with_titles = getattr(self.state, "nested_parse_with_titles", None)
        self.state.nested_parse(StringList(lines, source="api"), 0, section, match_titles=True)
        for name in chosen:
            self.env.note_dependency(str(available[name]))
        return section.children


def module_page(name: str, path: Path) -> list[str]:
    """A module as reStructuredText: its docstring, then its public functions and classes as they
    stand in the file.
    """
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    title = name.replace(".", "/") + ".py"
    lines = [title, "-" * len(title), "", f".. py:module:: fwl_ref.{name}", ""]
    lines += [*text(ast.get_docstring(tree) or ""), ""]
    comments = {
        t.start[0]: t.string.lstrip("# ") for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type == tokenize.COMMENT
    }
    forward = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef)}
    for node in tree.body:
        if getattr(node, "name", "_").startswith("_"):
            continue
        if isinstance(node, ast.FunctionDef):
            head = f"py:function:: {node.name}({arguments(node)})"
        elif isinstance(node, ast.ClassDef):
            head = f"py:class:: {node.name}"
        else:
            continue
        body = text(ast.get_docstring(node) or "", signature=True)
        if node.name.endswith("_bwd") and name.startswith(("ops.", "rules.")):  # where the three laws hold to the letter
            body = [*adjoint_shapes(node.name, forward), *body]
        body += fields(node, comments) if isinstance(node, ast.ClassDef) else []
        labels = equations.cited(ast.get_docstring(node) or "")
        body += ["", f".. checked:: {' '.join(labels)}"] if labels else []
        lines += [f".. {head}", f"   :module: fwl_ref.{name}", "", *(f"   {line}".rstrip() for line in body), ""]
    return lines


def adjoint_shapes(name: str, forward: dict[str, ast.FunctionDef]) -> list[str]:
    """A backward pass takes gradients of outputs and gives gradients of inputs: the shapes of the
    forward pass, turned round.
    """
    node = forward.get(name.removesuffix("_bwd").removesuffix("_bwd") + "_fwd")
    inputs, arrow, outputs = (ast.get_docstring(node) or "").partition("   ")[0].partition("->") if node else ("", "", "")
    if not arrow or not inputs.startswith("("):
        return []
    pairs = zip(node.args.args, SHAPE.findall(inputs), strict=False)
    inputs = ",".join(shape for argument, shape in pairs if argument.arg not in ("labels", "tokens"))  # integers have no gradient
    left, right = (f"{inputs},{outputs}", f"{outputs},{inputs}") if name.endswith("_bwd_bwd") else (outputs, inputs)
    return [f"**shapes** ``{left} -> {right}``", ""]


def arguments(node: ast.FunctionDef) -> str:
    """The signature without annotations: shapes say more, and stand below."""
    for argument in ast.walk(node.args):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    return ast.unparse(node.args)


def fields(node: ast.ClassDef, comments: dict[int, str]) -> list[str]:
    """The fields of a NamedTuple with their comments, in which the shapes are."""
    lines = [""]
    for item in node.body:
        if isinstance(item, ast.AnnAssign):
            default = f" = {ast.unparse(item.value)}" if item.value else ""
            kind = ast.unparse(item.annotation)
            kind = "" if kind == "Array" else f" : {kind}"
            note = comments.get(item.end_lineno or 0, "")
            lines.append(f"* ``{item.target.id}{kind}{default}``" + (f" {escape(note)}" if note else ""))
    return lines


def text(docstring: str, signature: bool = False) -> list[str]:
    """A docstring as reStructuredText that shows it as it is."""
    lines, out = docstring.splitlines(), []
    if signature and lines:
        shapes, _, rest = lines[0].partition("   ")
        if shapes.startswith("(") or ("->" in shapes and " " not in shapes):
            out += [f"**shapes** ``{shapes.replace('->', ' -> ')}``", ""]
            lines[0] = rest.strip()
    blocks = re.split(r"\n\s*\n(?!    )", "\n".join(lines).strip("\n"))  # an indented block may have empty lines
    for block in blocks:
        rows = block.splitlines()
        if not rows:
            continue
        if len(rows) > 1 and rows[0] in SECTIONS and set(rows[1]) == {"-"}:
            out += [f"**{rows[0]}**", "", *items(rows[2:]), ""]
        elif rows[0].startswith("    "):
            out += ["::", "", *(f"    {row}" for row in rows), ""]
        else:
            first = next((i for i, row in enumerate(rows) if row.startswith("    ")), len(rows))
            out += [escape(" ".join(rows[:first])), ""]
            out += ["::", "", *(f"    {row}" for row in rows[first:]), ""] if first < len(rows) else []
    return out


def items(rows: list[str]) -> list[str]:
    """``name : what it is`` and lines that go on from it, as a list; anything else as sentences."""
    entries: list[str] = []
    for row in rows:
        if row.startswith(" ") and entries:
            entries[-1] += f" {row.strip()}" if " : " in entries[-1] else f" : {row.strip()}"
        else:
            entries.append(row.strip())
    out: list[str] = []
    for entry in entries:
        name, colon, rest = entry.partition(" : ")
        out.append(f"* ``{name}`` : {escape(rest)}" if colon else f"* {escape(entry)}")
    return out


def escape(plain: str) -> str:
    """Plain text, with ``code`` in double backticks, for a parser that gives meaning to * _ | and
    `.
    """
    parts = plain.split("``")
    parts[::2] = [re.sub(r"([\\*_|`])", r"\\\1", part) for part in parts[::2]]
    parts[::2] = [re.sub(r"(?<!\S)\\\*(\w+)\\\*(?!\w)", r"*\1*", part) for part in parts[::2]]  # *one word* is emphasis
    return re.sub(r"^(\w+)([.)] )", r"\1\\\2", join_code(parts))  # "1. text" is a sentence, not a list


def join_code(parts: list[str]) -> str:
    """Text and code in turn; a letter that touches code needs a separator that is not seen."""
    out = parts[0]
    for code, after in zip(parts[1::2], parts[2::2], strict=False):
        out += ("" if not out or out[-1].isspace() or out[-1] in "([-/" else "\\ ") + f"``{code}``"
        out += ("\\ " if after[:1].isalnum() else "") + after
    return out


class checked(nodes.General, nodes.Element):
    """Stands for the tests of some labels until all pages are read."""


class Checked(SphinxDirective):
    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        return [checked(labels=self.arguments[0].split())]


def fill_in(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Function -> tests: those that check an equation which the function computes."""
    from links import Finder

    finder = Finder(app, docname)
    for node in list(doctree.findall(checked)):
        wanted = set(node["labels"])
        tests = [c for c in app.sources["checks"] if wanted & set(c.labels)]
        named = ", ".join(f"({label})" for label in node["labels"])
        line = summary("", "", *link_labels(finder, f"{named}: checked by {count(tests)}"))
        node.replace_self(details("", line, test_list(finder, tests), classes=["trace"]))


class Proofs(SphinxDirective):
    """Every test that cites an equation, file by file, with its claim and its code."""

    def run(self) -> list[nodes.Node]:
        files: dict[str, list[equations.Check]] = {}
        for check in equations.checks():
            files.setdefault(check.file, []).append(check)
            self.env.note_dependency(str(equations.ROOT / check.file))
        return [self.file(file, tests) for file, tests in files.items()]

    def file(self, file: str, tests: list[equations.Check]) -> nodes.section:
        section = nodes.section("", nodes.title("", "", nodes.literal("", file)), ids=[test_id(file)], names=[file])
        module = ast.get_docstring(ast.parse((equations.ROOT / file).read_text(encoding="utf-8"))) or ""
        section += nodes.paragraph("", module.split("\n\n")[0])
        for test in tests:
            if not test.source:
                continue
            title = nodes.paragraph("", "", nodes.strong("", test.name.removeprefix("test_").replace("_", " ")), classes=["test-name"])
            box = nodes.container("", title, ids=[test_id(file, test.name)], classes=["test"])
            box += [nodes.paragraph("", part) for part in test.claim.split("\n\n")]
            others = [f"({label})" for label in test.labels if f"({label})" not in test.claim]  # between two that are named, or in comments
            box += [nodes.paragraph("", f"Checks {', '.join(others)} too.")] if others else []
            code = nodes.literal_block(test.source, test.source, language="python", classes=["test-source"])
            box += details("", summary("", "its code"), code, classes=["trace"])
            section += box
        return section
