"""Where each equation is derived, computed and checked, read from the sources themselves;
docs/equations.md is made of it.

    python tools/equations.py            write docs/equations.md
    python tools/equations.py --check    write nothing, fail if it is stale

An equation is a display formula of the docs with a \\tag. A function computes it if its docstring
cites the label, a test checks it if its docstring or a comment in it does. Nothing is registered
anywhere: a citation is the link. Standard library only.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import sys
import tokenize
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
INDEX = DOCS / "equations.md"
LABEL = re.compile(r"\(([A-Z]\.\d+)\)")
TAG = re.compile(r"\\tag\{([A-Z]\.\d+)\}")
RANGE = re.compile(r"\(([A-Z])\.(\d+)\)\s+to\s+\(\1\.(\d+)\)")
PARTS = re.compile(
    r"^(```.*?\n```|#+ [^\n]*|\$\$\n.*?\n\$\$)$", re.S | re.M
)  # code (its comments are no headings), heading, display formula
START, END = "<!-- made by tools/equations.py from here -->", "<!-- to here -->"


class Equation(NamedTuple):
    label: str
    page: str  # without suffix, relative to docs/
    heading: str  # the heading it stands under
    latex: str  # without the tag


class Function(NamedTuple):
    """What cites a label in its docstring: a public function or class of the package."""

    module: str  # fwl_ref.ops.dense
    name: str

    @property
    def path(self) -> str:
        return f"{self.module}.{self.name}"


class Check(NamedTuple):
    """A test that cites labels."""

    file: str  # tests/ops/test_laws.py
    name: str
    claim: str  # its docstring
    source: str
    labels: tuple[str, ...]


def pages() -> list[str]:
    """The pages of the site in reading order: the toctrees of the front page, patterns expanded,
    and those of pages found there.
    """
    found: list[str] = []
    todo = ["index"]
    while todo:
        page = todo.pop(0)
        if page in found:
            continue
        found.append(page)
        source = next((p for p in (DOCS / f"{page}.md", DOCS / f"{page}.rst") if p.exists()), None)
        inner = [] if source is None else toctree(source)
        todo = [entry for entry in inner if entry not in found] + todo
    return found


def toctree(source: Path) -> list[str]:
    """The entries of all toctrees of one page, as page names relative to docs/."""
    text, entries = source.read_text(encoding="utf-8"), []
    blocks = re.findall(r"^`{3,}\{toctree\}\n(.*?)^`{3,}", text, re.S | re.M)
    blocks += re.findall(r"^\.\. toctree::\n(.*?)(?=^\S|\Z)", text, re.S | re.M)
    for block in blocks:
        for line in filter(None, (line.strip() for line in block.splitlines())):
            entry = re.sub(r"^.*<(.*)>$", r"\1", line)
            if entry.startswith(":") or "://" in entry:
                continue
            place = (source.parent / entry).resolve()
            if "*" in entry:
                matches = sorted(p for suffix in ("md", "rst", "ipynb") for p in source.parent.glob(f"{entry}.{suffix}"))
                entries += [str(p.relative_to(DOCS).with_suffix("")) for p in matches]
            else:
                entries.append(str(place.relative_to(DOCS)).removesuffix(".md"))
    return list(dict.fromkeys(entries))


def equations() -> dict[str, Equation]:
    """Every labelled equation of the docs, in reading order. A label that occurs twice is an error."""
    order = {page: i for i, page in enumerate(pages())}
    sources = {str(p.relative_to(DOCS).with_suffix("")): p for p in DOCS.rglob("*.md")}
    found: dict[str, Equation] = {}
    for page in sorted(sources, key=lambda p: (order.get(p, len(order)), p)):
        heading = ""
        for part in PARTS.split(sources[page].read_text(encoding="utf-8")):
            if part.startswith("#"):
                heading = part.lstrip("# ")
            for label in TAG.findall(part) if part.startswith("$$") else ():
                if label in found:
                    raise ValueError(f"({label}) is the label of two equations, in {found[label].page} and in {page}: rename one")
                found[label] = Equation(label, page, heading, TAG.sub("", part.strip("$")).strip())
    return found


@cache
def functions() -> dict[str, list[Function]]:
    """Label -> the public functions and classes whose docstring cites it."""
    found: dict[str, list[Function]] = {}
    for path in sorted((ROOT / "fwl_ref").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                for label in cited(ast.get_docstring(node) or ""):
                    found.setdefault(label, []).append(Function(module, node.name))
    return found


@cache
def checks() -> list[Check]:
    """The tests that cite a label, in the order of their files. What stands outside tests belongs
    to the file, and is called its name.
    """
    found = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        file, source = str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
        tree, lines = ast.parse(source), source.splitlines()
        nodes = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")]
        spans = {n.name: (min([n.lineno, *(d.lineno for d in n.decorator_list)]), n.end_lineno) for n in nodes}
        comments = [t for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type == tokenize.COMMENT]
        inside: set[int] = set()
        for node in nodes:
            first, last = spans[node.name]
            mine = [i for i, c in enumerate(comments) if first <= c.start[0] <= last]
            inside |= set(mine)
            claim = ast.get_docstring(node) or ""
            labels = cited(" ".join([claim, *(comments[i].string for i in mine)]))
            if labels:
                found.append(Check(file, node.name, claim, "\n".join(lines[first - 1 : last]), labels))
        others = (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name not in spans)
        texts = [ast.get_docstring(tree) or "", *(ast.get_docstring(n) or "" for n in others)]
        texts += [c.string for i, c in enumerate(comments) if i not in inside]
        if labels := cited(" ".join(texts)):
            found.append(Check(file, Path(file).stem, ast.get_docstring(tree) or "", "", labels))
    return found


def cited(text: str) -> tuple[str, ...]:
    """The labels in a text; "(X.1) to (X.3)" cites what lies between."""
    labels = set(LABEL.findall(text))
    for letter, low, high in RANGE.findall(text):
        labels |= {f"{letter}.{i}" for i in range(int(low), int(high) + 1)}
    return tuple(sorted(labels, key=lambda label: (label[0], int(label[2:]))))


def title(page: str) -> str:
    """The first heading of a page."""
    return next(line[2:] for line in (DOCS / f"{page}.md").read_text(encoding="utf-8").splitlines() if line.startswith("# "))


def index() -> str:
    """The table of docs/equations.md: label, what it is, who computes it, which files of tests
    check it.
    """
    computed, checked, rows, page = functions(), checks(), [], None
    for equation in equations().values():
        if equation.page != page:
            page = equation.page
            rows += [
                "",
                f"## [{title(page)}]({page}.md)",
                "",
                "| equation | derived under | computed by | checked in |",
                "|---|---|---|---|",
            ]
        code = ", ".join(f"`{f.name}`" for f in computed.get(equation.label, [])) or "the whole"
        files = ", ".join(f"`{file}`" for file in dict.fromkeys(t.file for t in checked if equation.label in t.labels))
        rows.append(f"| ({equation.label}) | {equation.heading} | {code} | {files} |")
    return "\n".join(rows).strip()


def page_with_index() -> str:
    """docs/equations.md as it should be: its own text, and the table between the two marks."""
    before, _, rest = INDEX.read_text(encoding="utf-8").partition(START)
    if not rest:
        raise ValueError(f"{INDEX} has lost the line {START!r}, below which the table goes")
    return f"{before}{START}\n\n{index()}\n\n{END}{rest.partition(END)[2]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, fail if docs/equations.md is stale")
    options, wanted = parser.parse_args(), page_with_index()
    stale = wanted != INDEX.read_text(encoding="utf-8")
    if stale and options.check:
        print("docs/equations.md is stale: run python tools/equations.py", file=sys.stderr)
    elif stale:
        INDEX.write_text(wanted, encoding="utf-8")
    return int(stale and options.check)


if __name__ == "__main__":
    sys.exit(main())
