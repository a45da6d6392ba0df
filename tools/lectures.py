"""The slides of the two lectures, from docs/lectures/slides/*.md: each a page for the browser, one file
that asks for nothing, and two PDFs, for the projector and with the notes for the speaker.

    python -m tools.lectures FOLDER

The sources are Markdown. Three things in them are not written out but taken from where they stand:

    (F.10)                      alone in a paragraph: the equation of the docs; (F.2:1-3) its first three rows;
                                (F.2:3/) a new line at each wide space in it
    ![what it shows](../x.svg)  alone in a paragraph: a picture; {height=50} in % of a slide
    ::: {.measured file="README.md" columns="a; b" rows="x; y"}     columns and rows of a table; the first column names a row

So a slide cannot say another formula or another number than the docs. ``::: notes`` has what the speaker
says, and begins with the minutes that it takes. pandoc reads the Markdown and writes reveal.js's HTML
and Typst; Typst makes the PDFs.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

from tools import equations, handout

FOLDER = equations.DOCS / "lectures"
SLIDES = FOLDER / "slides"
PICTURES = (FOLDER / "figures", equations.ROOT / "fwl_ref" / "figures")
SOURCES = {"lecture_1": SLIDES / "1.md", "lecture_2": SLIDES / "2.md"}
EQUATION = re.compile(r"^\(([A-Z]\.\d+)(?::([\d,-]+/?))?\)$")
MEASURED = re.compile(r"^::: \{\.measured (.*)\}\n:::$", re.M)
SETTING = re.compile(r'(\w+)="([^"]*)"')
Node = dict[str, Any]  # of pandoc's tree


class Slide(NamedTuple):
    title: str
    labels: tuple[str, ...]  # of the equations that it shows
    text: str  # as it is written, without the notes
    notes: str

    @property
    def minutes(self) -> int:
        """What the notes begin with."""
        found = re.match(r"(\d+) min\.", self.notes)
        if not found:
            raise ValueError(f"the notes of the slide {self.title!r} must begin with its minutes, as in '3 min.'")
        return int(found[1])


def slides(source: Path) -> list[Slide]:
    """The slides of a lecture as they are written, for those who check them."""
    found = []
    for part in re.split(r"^## ", source.read_text(encoding="utf-8"), flags=re.M)[1:]:
        title, _, body = part.partition("\n")
        text, _, notes = body.partition("::: notes")
        labels = (match[1] for line in text.splitlines() if (match := EQUATION.match(line.strip())))
        found.append(Slide(title.split(" {")[0], tuple(labels), text.strip(), notes.replace(":::", "").strip()))
    return found


# --- what is taken from where it stands


def formula(label: str, rows: str = "") -> str:
    """The LaTeX of a labelled equation, or of some of its rows: "1-3,6"; with a "/" at the end in narrow
    lines. Raises ValueError.
    """
    known = equations.equations()
    if label not in known:
        raise ValueError(f"the slides ask for an equation that the docs do not have: {label}")
    latex = known[label].latex
    if not rows:
        return latex
    inner = re.fullmatch(r"\s*\\begin\{aligned\}(.*)\\end\{aligned\}\s*", latex, re.S)
    lines = re.split(r"\\\\", inner[1]) if inner else [latex]
    wanted = [n for part in rows.rstrip("/").split(",") for n in range(int(part.split("-")[0]), int(part.split("-")[-1]) + 1)]
    if not inner or max(wanted) > len(lines):
        raise ValueError(f"({label}:{rows}): the equation has {len(lines)} rows")
    chosen = r"\\".join(lines[n - 1] for n in wanted).rstrip()
    return r"\begin{aligned}" + (chosen.replace(r"\qquad", r"\\ &") if rows.endswith("/") else chosen) + r"\end{aligned}"


def without_links(cell: str) -> str:
    return re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", cell).strip()


@cache
def tables(file: str) -> tuple[tuple[tuple[str, ...], ...], ...]:
    """Every Markdown table of a file, as rows of cells; the first row is the head."""
    text = (equations.ROOT / file).read_text(encoding="utf-8")
    blocks = re.findall(r"(?:^\|.*\|[ ]*\n)+", text, re.M)
    split = [[tuple(map(without_links, line.strip().strip("|").split("|"))) for line in block.splitlines()] for block in blocks]
    return tuple((rows[0], *rows[2:]) for rows in split)


def measured(file: str, columns: str, rows: str = "") -> list[list[str]]:
    """The chosen columns and rows of the table whose head has these columns. Raises ValueError."""
    names = [name.strip() for name in columns.split(";")]
    table = next((t for t in tables(file) if set(names) <= set(t[0])), None)
    if table is None:
        raise ValueError(f"{file} has no table with the columns {', '.join(names)}")
    at = [table[0].index(name) for name in names]
    found = [[row[i] for i in at] for row in table[1:]]
    if rows:
        wanted = [name.strip() for name in rows.split(";")]
        absent = [name for name in wanted if name not in [row[0] for row in found]]
        if absent:
            raise ValueError(f"the table of {file} has no row {absent[0]!r}")
        found = [row for name in wanted for row in found if row[0] == name]
    return [names, *found]


def picture(name: str) -> Path:
    """Where a picture lies, seen from the slides. Raises ValueError."""
    path = (SLIDES / name).resolve()
    if not path.exists():
        raise ValueError(f"the slides ask for a picture that is not there: {name}")
    return path


# --- pandoc's tree


def pandoc(text: str, form: str, to: str, *options: str) -> str:
    """``text`` in another form. One start of pandoc: pypandoc asks it for its formats each time, if it may."""
    import pypandoc

    return pypandoc.convert_text(text, to, format=form, extra_args=options, verify_format=False)


def tree(source: Path) -> Node:
    """A lecture as pandoc reads it, with the tables of results."""
    text = MEASURED.sub(lambda found: table(measured(**dict(SETTING.findall(found[1])))), source.read_text(encoding="utf-8"))
    return json.loads(parsed(text))


@cache
def parsed(text: str) -> str:
    """Read once for the page and the PDFs. No line is too long for a table that keeps its own widths."""
    return pandoc(text, "markdown-implicit_figures", "json", "--columns=9999")


def written(document: Node, blocks: list[Node], to: str) -> str:
    options = ["--mathjax", "--slide-level=2"] if to == "revealjs" else []
    return pandoc(json.dumps({**document, "blocks": blocks}), "json", to, *options)


def expand(blocks: list[Node], to: str) -> Iterator[Node]:
    """The blocks, with equations, pictures and tables put in."""
    for block in blocks:
        kind, inner = block["t"], block.get("c")
        if kind == "Para" and len(inner) == 1 and inner[0]["t"] == "Str" and (match := EQUATION.match(inner[0]["c"])):
            yield from equation(match[1], match[2] or "", to)
        elif kind == "Para" and len(inner) == 1 and inner[0]["t"] == "Image":
            yield image(inner[0], to)
        elif kind == "Div" and "columns" in inner[0][1] and to == "typst":
            yield from grid(inner[1])
        elif kind == "Div":
            yield {"t": "Div", "c": [inner[0], list(expand(inner[1], to))]}
        else:
            yield block


def equation(label: str, rows: str, to: str) -> Iterator[Node]:
    """A display formula with its label beside it."""
    name = f"from {label}" if rows else label
    display = {"t": "Para", "c": [{"t": "Math", "c": [{"t": "DisplayMath"}, formula(label, rows)]}]}
    if to == "typst":
        yield from [raw(f'#labelled("{name}")['), display, raw("]")]
    else:
        yield from [raw('<div class="labelled">', "html"), display, raw(f"<span>({name})</span></div>", "html")]


def image(node: Node, to: str) -> Node:
    (_, _, settings), words, (name, _) = node["c"]
    path, height = picture(name), dict(settings).get("height", "60")
    if to == "typst":
        return raw(f'#picture("{path.name}", {height}%)')
    kind = {".svg": "svg+xml", ".png": "png"}[path.suffix]
    data = handout.plain_svg(path.read_text(encoding="utf-8")).encode() if path.suffix == ".svg" else path.read_bytes()
    alt = "".join(word.get("c", " ") for word in words if word["t"] in ("Str", "Space"))
    code = base64.b64encode(data).decode()
    html = f'<img class="picture" alt="{alt}" style="height: {height}vh" src="data:image/{kind};base64,{code}">'
    return raw(html.replace(f"{height}vh", f"{7.2 * float(height):.0f}px"), "html")  # a slide is 720 pixels high


def table(rows: list[list[str]]) -> str:
    """In Markdown, as the cells are; numbers stand to the right."""
    right = [all(re.match(r"[-\d]", row[i]) for row in rows[1:]) for i in range(len(rows[0]))]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines.insert(1, "|" + "|".join("--:" if number else ":--" for number in right) + "|")
    return "\n".join(lines) + "\n"


def grid(columns: list[Node]) -> Iterator[Node]:
    widths = [dict(column["c"][0][2])["width"].replace("%", "fr") for column in columns]
    yield raw(f"#grid(columns: ({', '.join(widths)}), column-gutter: 22pt, [")
    for i, column in enumerate(columns):
        yield from [raw("], [")] if i else []
        yield from expand(column["c"][1], "typst")
    yield raw("])")


def raw(code: str, to: str = "typst") -> Node:
    return {"t": "RawBlock", "c": [to, code]}


# --- what is built


def build(folder: Path) -> None:
    """Make pages and PDFs, unless they are newer than all they are made of. Raises ValueError for an
    unknown equation, picture or table, and where a slide is too full.

    ``folder`` has the packages in ``packages/``: reveal.js and MathJax, by ``tools.npm``.
    """
    made_of = [*SLIDES.iterdir(), *(p for f in PICTURES for p in f.iterdir()), Path(__file__), Path(handout.__file__)]
    made_of += [*equations.DOCS.glob("**/*.md"), equations.ROOT / "README.md"]
    newest = max(p.stat().st_mtime for p in made_of)
    for name, source in SOURCES.items():
        targets = [folder / "site" / f"{name}{ending}" for ending in (".html", ".pdf", "_notes.pdf")]
        if all(t.exists() and t.stat().st_mtime > newest for t in targets):
            continue
        targets[0].parent.mkdir(parents=True, exist_ok=True)
        pdfs(source, *targets[1:])
        targets[0].write_text(page(source, folder / "packages"), encoding="utf-8")


def page(source: Path, packages: Path) -> str:
    """The slides for the browser: styles, scripts and pictures are in the page."""
    document = tree(source)
    parts = {name: (packages / path).read_text(encoding="utf-8") for name, path in PARTS.items()}
    parts = {name: text.replace("</script", r"<\/script") for name, text in parts.items()}
    parts["style"] = (SLIDES / "slides.css").read_text(encoding="utf-8")
    body = written(document, list(expand(document["blocks"], "revealjs")), "revealjs")
    title = slides(source)[0].title
    return Template((SLIDES / "slides.html").read_text(encoding="utf-8")).substitute(parts, body=body, title=title)


PARTS = {
    "reset": "reveal/dist/reset.css",
    "reveal_style": "reveal/dist/reveal.css",
    "reveal": "reveal/dist/reveal.js",
    "notes": "reveal/plugin/notes/notes.js",
    "mathjax": "mathjax/tex-svg.js",
}


def typst_source(source: Path) -> str:
    """``#slide[title][body][notes]`` for every slide."""
    document, blocks = tree(source), []
    for block in document["blocks"]:
        if block["t"] == "Header":
            blocks += [*([raw("]")] if blocks else []), raw("#slide["), {"t": "Plain", "c": block["c"][2]}, raw("][")]
        elif block["t"] == "Div" and "notes" in block["c"][0][1]:
            blocks += [raw("]["), *block["c"][1]]
        else:
            blocks += expand([block], "typst")
    text = written(document, [*blocks, raw("]")], "typst")
    return '#import "slides.typ": *\n#show: deck\n\n' + text.replace("#h(0em)", "thin")


def pdfs(source: Path, projector: Path, notes: Path) -> None:
    """The two PDFs. Raises ValueError if a slide does not fit."""
    import typst

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        shutil.copy2(SLIDES / "slides.typ", folder)
        for name in set(re.findall(r"^!\[.*\]\((.*?)\)", source.read_text(encoding="utf-8"), re.M)):
            path = picture(name)
            if path.suffix == ".svg":
                (folder / path.name).write_text(handout.plain_svg(path.read_text(encoding="utf-8")), encoding="utf-8")
            else:
                shutil.copy2(path, folder)
        main = folder / "main.typ"
        main.write_text(typst_source(source), encoding="utf-8")
        pages, wanted = typst.compile(main, format="svg"), [slide.title for slide in slides(source)]
        if len(pages) != len(wanted):
            raise ValueError(f"{source.name}: {len(wanted)} slides became {len(pages)} pages, so one is too full: {too_full(main)}")
        typst.compile(main, output=projector)
        typst.compile(main, output=notes, sys_inputs={"notes": "yes"})


def too_full(main: Path) -> str:
    """The titles of slides that take more than one page."""
    import typst

    head, *parts = re.split(r"(?=^#slide\[)", main.read_text(encoding="utf-8"), flags=re.M)
    found = []
    for part in parts:
        main.write_text(head + part, encoding="utf-8")
        if isinstance(typst.compile(main, format="svg"), list):
            found.append(part.split("][")[0].removeprefix("#slide[").strip())
    return "; ".join(found)


if __name__ == "__main__":
    from tools import npm

    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    target = Path(sys.argv[1])
    npm.ensure(npm.REVEAL, target / "packages" / "reveal")
    npm.ensure(npm.MATHJAX_ALONE, target / "packages" / "mathjax")
    build(target)
