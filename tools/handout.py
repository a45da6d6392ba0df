"""The derivation on two pages, as a PDF to print: docs/handout/handout.typ with the equations of
the docs, taken over by label.

    python -m tools.handout FILE.pdf

The text is in the template; a formula is written there as #eq("N.3") and comes from the page that
derives it, so the two cannot drift. pandoc turns LaTeX into Typst, Typst makes the PDF; both
install from Python packages (pypandoc_binary, typst).
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from pathlib import Path

from tools import equations

TEMPLATE = equations.DOCS / "handout" / "handout.typ"
PICTURE = equations.ROOT / "fwl_ref" / "figures" / "six_sweeps.svg"
PAGES = 2
# On its own page LayerNorm has short names, n for the normalised vector and c for the centred one. Here both stand for parts of the block.
RENAMED = {"N": {"n": r"\hat z", "c": r"z_{\mathrm{c}}"}}
USED = re.compile(r'#eq\("([A-Z]\.\d+)"')


def build(target: Path) -> None:
    """Make the PDF, unless it is newer than all it is made of. Raises ValueError for an unknown
    label, or if it is not two pages.
    """
    sources = [TEMPLATE, PICTURE, Path(__file__), Path(equations.__file__), *equations.DOCS.glob("theory/**/*.md")]
    if target.exists() and target.stat().st_mtime > max(p.stat().st_mtime for p in sources):
        return
    import typst

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        shutil.copy2(TEMPLATE, folder)
        (folder / "equations.typ").write_text(typst_equations(labels()), encoding="utf-8")
        (folder / PICTURE.name).write_text(plain_svg(PICTURE.read_text(encoding="utf-8")), encoding="utf-8")
        source = folder / TEMPLATE.name
        pages = typst.compile(source, format="svg")
        count = len(pages) if isinstance(pages, list) else 1
        if count != PAGES:
            raise ValueError(f"the handout must be {PAGES} pages, it is {count}: change {TEMPLATE}")
        target.parent.mkdir(parents=True, exist_ok=True)
        typst.compile(source, output=target)


def labels() -> list[str]:
    """The labels that the template asks for, in its order."""
    return list(dict.fromkeys(USED.findall(TEMPLATE.read_text(encoding="utf-8"))))


def typst_equations(wanted: list[str]) -> str:
    """A Typst file that maps each label to its formula."""
    import pypandoc

    known = equations.equations()
    unknown = [label for label in wanted if label not in known]
    if unknown:
        raise ValueError(f"the handout asks for equations that the docs do not have: {', '.join(unknown)}")
    markdown = "\n\n".join(f"$${renamed(label, known[label].latex)}$$" for label in wanted)
    formulas = re.findall(r"\$ .*? \$", pypandoc.convert_text(markdown, "typst", format="markdown", verify_format=False), re.S)
    if len(formulas) != len(wanted):
        raise ValueError(f"{len(wanted)} equations became {len(formulas)} formulas: a dollar sign in one of them?")
    entries = [f'  "{label}": {formula.replace("#h(0em)", "thin")},' for label, formula in zip(wanted, formulas, strict=True)]
    return "#let equations = (\n" + "\n".join(entries) + "\n)\n"


def renamed(label: str, latex: str) -> str:
    """The formula with the names that its symbols have on these two pages."""
    for old, new in RENAMED.get(label[0], {}).items():
        latex = re.sub(rf"(?<![\\a-zA-Z]){old}(?![a-zA-Z}}])", lambda _, new=new: new, latex)
    return latex.replace("& &", r"& \quad &")  # columns apart, as MathJax sets them


def plain_svg(svg: str) -> str:
    """Variables replaced by their values: on paper there is one mode."""
    return re.sub(r"var\(--[\w-]+, ([^)]*)\)", r"\1", svg)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    build(Path(sys.argv[1]))
