"""The site: nothing is missing from it, links between equations, functions and tests are complete,
and it asks nothing of the network.

What is read here are the sources; ``make docs`` builds the site, strictly. That code in the pages
runs and links lead somewhere is in ``test_docs.py``. The built site is looked at too, by the
thorough profile and where Sphinx is installed.
"""

from __future__ import annotations

import ast
import importlib
import json
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.conftest import PROFILE
from tests.test_structure import OPS, functions, labels_in_code, labels_in_docs, labels_in_tests
from tools import equations, handout, lite, npm, offline, widths

pytestmark = pytest.mark.host("reads the documentation")

ROOT, DOCS = equations.ROOT, equations.DOCS
KNOWN = equations.equations()
BUILT_FROM = {"sphinx", "myst_nb", "furo", "typst", "pypandoc"}


# --- equations, functions, tests


@pytest.mark.slow
def test_the_site_knows_every_equation_function_and_test():
    """The reader that makes the links and the one that checks the structure were written apart, and
    agree.
    """
    tags, _ = labels_in_docs()
    assert list(KNOWN) == list(dict.fromkeys(KNOWN)) and set(KNOWN) == set(tags)
    assert {label: f"fwl_ref.{path}" for label, path in labels_in_code().items()}.items() <= {
        (label, function.path) for label, cited in equations.functions().items() for function in cited
    }
    checked = {label for check in equations.checks() for label in check.labels}
    assert checked == labels_in_tests()


@pytest.mark.parametrize("label", KNOWN)
def test_an_equation_has_a_function_and_a_test(label):
    """What the line under it shows; theorems about the whole, Q, have tests only."""
    assert KNOWN[label].heading and KNOWN[label].latex and "tag" not in KNOWN[label].latex
    assert equations.functions().get(label) or label.startswith("Q"), f"no public function cites ({label})"
    assert any(check.source and label in check.labels for check in equations.checks()), f"no test cites ({label})"


def test_the_index_of_equations_is_what_the_sources_give():
    """docs/equations.md is written by tools/equations.py; run it if this fails."""
    assert equations.page_with_index() == equations.INDEX.read_text(encoding="utf-8"), "stale: run python tools/equations.py"


def test_a_label_that_occurs_twice_is_refused(tmp_path, monkeypatch):
    """It names both pages."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.md").write_text("# Title\n\n$$\nx = 1 \\tag{X.1}\n$$\n")
    monkeypatch.setattr(equations, "DOCS", tmp_path)
    with pytest.raises(ValueError, match=r"\(X\.1\) is the label of two equations, in a and in b"):
        equations.equations()


def test_a_comment_in_a_block_of_code_is_no_heading(tmp_path, monkeypatch):
    """The heading of an equation is that of the text."""
    (tmp_path / "a.md").write_text("# T\n\n## Forward\n\n```python\n# no heading\n```\n\n$$\nx \\tag{X.1}\n$$\n")
    monkeypatch.setattr(equations, "DOCS", tmp_path)
    assert equations.equations()["X.1"] == equations.Equation("X.1", "a", "Forward", "x")


def test_a_range_of_labels_cites_what_lies_between():
    """And labels come in order."""
    assert equations.cited("(N.9), (N.10) and (D.1) to (D.3)") == ("D.1", "D.2", "D.3", "N.9", "N.10")


# --- pages


def sources() -> set[str]:
    """Every page there is, by the name that the site gives it."""
    pages = {p.relative_to(DOCS).with_suffix("").as_posix() for suffix in ("md", "rst") for p in DOCS.rglob(f"*.{suffix}")}
    notebooks = {f"notebooks/{p.stem}" for p in (ROOT / "notebooks").glob("[0-9]*.ipynb")}
    return {page for page in pages if not page.startswith(("_", "handout/", "lectures/slides/", "notebooks/"))} | notebooks


def test_every_page_and_every_notebook_is_in_the_contents():
    """The toctrees hold all pages, and no page that is not there."""
    assert len(sources()) > 30
    assert set(equations.pages()) == sources()


def headings(page: Path) -> list[str]:
    return re.findall(r"^#{2,3} (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("module", [name for name in OPS if (DOCS / f"theory/{name.removeprefix('ops.')}.md").exists()])
def test_an_op_is_derived_in_the_same_form_as_all(module):
    """Why, adjoint, adjoint of the adjoint if the op has one, agreement in numbers, what the
    residual costs.
    """
    page = DOCS / f"theory/{module.removeprefix('ops.')}.md"
    twice = any(m == module and n.name.endswith("_bwd_bwd") for m, n in functions())
    wanted = {"Why", "Adjoint", "Agreement", "Residual"} | ({"Adjoint of the adjoint"} if twice else set())
    assert wanted <= set(headings(page)), f"{page.name} has no section {wanted - set(headings(page))}"
    assert f"`{module.replace('.', '/')}.py`" in page.read_text(encoding="utf-8").split("\n## ")[0]


def test_every_op_is_derived_somewhere():
    """An op without a page of its own opens the page that it belongs to."""
    opening = "".join(page.read_text(encoding="utf-8").split("\n## ")[0] for page in DOCS.glob("theory/**/*.md"))
    assert {module for module in OPS if f"`{module.replace('.', '/')}.py`" not in opening} == set()


def test_every_page_of_theory_says_why_and_shows_that_it_agrees():
    """A page that derives something has a reason, and code that would fail if it were wrong: it
    asserts, or says what it prints.
    """
    for page in DOCS.glob("theory/**/*.md"):
        code = "".join(re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL))
        assert re.search(r"^ *assert |^ *print\(.*\)  # ", code, re.MULTILINE), f"{page.name} shows nothing"
        assert page.name == "reading.md" or "Why" in headings(page), f"{page.name} does not say why"


# what rules share and what stands around them
AROUND = ("__init__", "common", "channels", "gates", "heads", "documents", "ttt", "heavy_ball")
RULES = [p.stem for p in sorted((ROOT / "fwl_ref" / "rules").glob("*.py")) if p.stem not in AROUND]


def rule_page(rule: str) -> dict[str, str]:
    """Heading -> text of the page of a rule; what stands before the first section is under ''."""
    parts = re.split(r"^## (.*)$", (DOCS / f"theory/rules/{rule}.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {"": parts[0]} | dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_has_a_page_of_the_same_form(rule):
    """Why, inner loss, two forms, each with its backward pass, special cases, cost, agreement, in
    this order; and the overview links to it.
    """
    page, second = rule_page(rule), "Dual form" if rule.startswith("ttt") or rule.endswith("mlp") else "Chunked form"
    form = ["", "Why", "Inner loss", "Recurrent form", second, "Special cases", "Cost", "Agreement"]
    assert [heading for heading in page if heading != "The stale form"] == form
    assert f"`rules/{rule}.py`" in page[""]
    for heading in ("Recurrent form", second):
        assert f"### Backward of the {heading.lower()}\n" in page[heading]
    assert f"](rules/{rule}.md)" in (DOCS / "theory/rules.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("rule", RULES)
def test_the_page_of_a_rule_has_the_costs_of_the_readme(rule):
    """The README of the rules has them, measured by ``tests/rules``; the page says the same."""
    readme = (ROOT / "fwl_ref" / "rules" / "README.md").read_text(encoding="utf-8").split("Multiply-adds per token")[1]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in readme.splitlines() if line.startswith("|")]
    costs = next(row[1:] for row in rows if f"`{rule}`" in row[0])
    said = [[cell.strip() for cell in line.strip("|").split("|")] for line in rule_page(rule)["Cost"].splitlines() if line.startswith("|")]
    assert [row[1] for row in said[2:]] == costs


def test_every_question_that_is_asked_most_is_answered_with_code():
    """docs/questions.md: these have a block of code of their own (test_docs runs it)."""
    text = (DOCS / "questions.md").read_text(encoding="utf-8")
    answers = dict(part.split("\n", 1) for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:])
    for words in (
        "loop run in training",
        "per sequence",
        "before or after write",
        "chunk is short",
        "add past gradients",
        "evaluation differ",
    ):
        question = next((q for q in answers if words in q), None)
        assert question, f"nobody asks: {words}"
        assert re.search(r"^```python\n.*?assert", answers[question], re.MULTILINE | re.DOTALL), f"{question} has no code that asserts"


def test_every_module_is_in_the_api_reference_exactly_once():
    """``.. modules::`` with patterns; a new module is found by the last page, which documents what
    the others do not.
    """
    modules = {".".join(p.relative_to(ROOT / "fwl_ref").with_suffix("").parts) for p in (ROOT / "fwl_ref").rglob("*.py")}
    modules = {name for name in modules if not name.endswith(("__init__", "__main__"))}
    pages: dict[str, list[str]] = {name: [] for name in modules}
    for page in DOCS.glob("api/*.rst"):
        for patterns, but in re.findall(r"^\.\. modules:: (.*)\n(?:   :but: (.*)\n)?", page.read_text(encoding="utf-8"), re.MULTILINE):
            for name in modules:
                if any(fnmatch(name, p) for p in patterns.split()) and not any(fnmatch(name, p) for p in but.split()):
                    pages[name].append(page.name)
    assert {name: found for name, found in pages.items() if len(found) != 1} == {}


def test_every_public_function_says_what_it_does():
    """The API reference has nothing to show for a function without a docstring."""
    silent = [f"{m}.{n.name}" for m, n in functions() if isinstance(n, ast.FunctionDef) and not ast.get_docstring(n)]
    assert not silent


# --- the handout, the picture, MathJax


def test_the_handout_takes_its_formulas_from_the_docs():
    """By label, each of them known; and none is written out in the template a second time with its
    number.
    """
    used = handout.labels()
    assert len(used) >= 20 and set(used) <= set(KNOWN)
    assert {"D.3", "R.3", "N.3", "C.3", "F.1", "F.2", "F.4", "F.5", "Q.1", "Q.3"} <= set(used)
    assert "tag" not in handout.TEMPLATE.read_text(encoding="utf-8")


def test_n_has_one_meaning_on_the_handout():
    """LayerNorm's page calls the normalised vector n and the centred one c; the block has an n and a c of its own."""
    assert handout.renamed("N.1", r"n = \rho\, c , \mathrm{mean}(c \odot n)") == (
        r"\hat z = \rho\, z_{\mathrm{c}} , \mathrm{mean}(z_{\mathrm{c}} \odot \hat z)"
    )
    assert handout.renamed("F.1", "n = c") == "n = c"
    for label in ("N.1", "N.2", "N.3"):
        assert not re.search(r"(?<![\\a-zA-Z])n(?![a-zA-Z])", handout.renamed(label, KNOWN[label].latex))
    assert "label is the next token" in handout.TEMPLATE.read_text(encoding="utf-8")


@pytest.mark.skipif(not (find_spec("typst") and find_spec("pypandoc")), reason="typst and pypandoc (the extra docs) are not installed")
def test_the_handout_is_two_pages_of_the_equations_of_the_docs(tmp_path, monkeypatch):
    """It is made of the sources as they are; a third page and an unknown label are refused."""
    handout.build(tmp_path / "handout.pdf")
    assert (tmp_path / "handout.pdf").read_bytes().startswith(b"%PDF")
    text = handout.TEMPLATE.read_text(encoding="utf-8")
    monkeypatch.setattr(handout, "TEMPLATE", tmp_path / "handout.typ")
    for change, words in (("\n#pagebreak()\nmore", "must be 2 pages, it is 3"), ('\n#eq("X.99")', "do not have: X.99")):
        (tmp_path / "handout.typ").write_text(text + change)
        with pytest.raises(ValueError, match=words):
            handout.build(tmp_path / "other.pdf")
    assert not (tmp_path / "other.pdf").exists()


def test_the_picture_is_an_svg_that_asks_for_nothing():
    """Well-formed, with a title for those who do not see it, and in colours that are replaced for
    print.
    """
    svg = handout.PICTURE.read_text(encoding="utf-8")
    root = ElementTree.fromstring(svg)
    assert root.find("{http://www.w3.org/2000/svg}title").text
    assert not offline.requests_of_page(svg)
    assert "var(" in svg and "var(" not in handout.plain_svg(svg)


def test_mathjax_says_what_to_do_if_it_cannot_be_fetched(tmp_path, monkeypatch):
    """Without npm: the version, what is missing, and how to do without."""
    monkeypatch.setattr(npm.shutil, "which", lambda _: None)
    with pytest.raises(RuntimeError, match=r"(?s)could not be fetched.*npm is not installed.*build/docs/static/mathjax"):
        npm.ensure(npm.MATHJAX, tmp_path / "static" / "mathjax")
    assert not list(tmp_path.iterdir())


def test_an_archive_that_is_not_the_expected_one_is_refused(tmp_path, monkeypatch):
    """By its SHA-512, before anything is unpacked."""
    monkeypatch.setattr(npm, "fetch", lambda *_: b"something else")
    with pytest.raises(RuntimeError, match="not the one expected"):
        npm.ensure(npm.MATHJAX, tmp_path / "static" / "mathjax")
    assert not list(tmp_path.iterdir())


def test_requests_to_the_network_are_found():
    """Scripts, styles, pictures, fonts, with or without https:; links that a reader may follow are
    none.
    """
    for page in (
        '<script src="https://cdn.example.org/x.js"></script>',
        '<link rel="stylesheet" href="//cdn.example.org/x.css">',
        '<img src="http://example.org/x.png">',
        '<img srcset="a.png 1x, https://example.org/b.png 2x">',
        "<style>@import url('https://example.org/font.css')</style>",
        '<p style="background: url(https://example.org/x.png)">',
    ):
        assert len(offline.requests_of_page(page)) == 1, page
    quiet = (
        '<a href="https://arxiv.org/abs/2212.02475">paper</a><script src="x.js"></script><link rel="canonical" href="https://example.org">'
    )
    assert offline.requests_of_page(quiet + '<svg xmlns="http://www.w3.org/2000/svg"></svg>') == []
    assert offline.requests_of_style("@font-face { src: url(https://example.org/x.woff2) }") == ["https://example.org/x.woff2"]
    assert offline.requests_of_style("a { background: url(x.png) } /* https://example.org */") == []


def test_the_demo_is_on_the_site_without_a_second_copy_of_its_numbers():
    """The page takes the README's section by its headings, and the picture from where the README has it."""
    page, readme = ((folder / name).read_text(encoding="utf-8") for folder, name in ((DOCS, "adapting.md"), (ROOT, "README.md")))
    start, end = re.findall(r':(?:start-after|end-before): "(.*)"', page)
    assert "| static  " in readme.split(start)[1].split(end)[0] and not re.search(r"\d", page)
    assert "](demo.png)" in page and "](docs/demo.png)" in readme


def test_what_is_cut_is_told_from_what_may_scroll():
    """tools/widths.py: on a desktop nothing is wider than its column; on a phone a formula may be, where it says so."""
    formula = {"kind": "formula", "over": 5, "outside": 0, "told": True}
    assert widths.cut(formula, 1366) and not widths.cut(formula, 390) and not widths.cut(formula | {"over": 1}, 1366)
    assert widths.cut(formula | {"told": False}, 390) and widths.cut(formula | {"kind": "code"}, 390)
    assert widths.cut(formula | {"over": 0, "outside": 2}, 390)


@pytest.mark.skipif(not shutil.which("node"), reason="needs Node.js, which runs what a browser would")
def test_a_search_for_layernorm_finds_its_derivation_first():
    """As the page scores results: a page named so, then its sections, notebooks, the API."""
    rows = [["api/ops", "ops/layernorm.py", "#x", None, 40], ["notebooks/02_layernorm_twice", "2.", "", None, 15]]
    rows += [["theory/layernorm", "Layer normalisation, twice", "", None, 5], ["theory/layernorm", "Adjoint", "#adjoint", None, 20]]
    order = [["theory/layernorm", ""], ["theory/layernorm", "#adjoint"], ["api/ops", "#x"], ["notebooks/02_layernorm_twice", ""]]
    for asked in ("layernorm", "LayerNorm", "layer norm"):
        program = (DOCS / "_static" / "scorer.js").read_text(encoding="utf-8").replace("var Scorer", "globalThis.Scorer")
        program = f"globalThis.window = {{location: {{search: '?q={asked}'}}}};\n{program}"
        program += f"\nconst rows = {json.dumps(rows)}.sort((a, b) => Scorer.score(b) - Scorer.score(a));"
        program += "\nconsole.log(JSON.stringify(rows.map(r => [r[0], r[2]])));"
        done = subprocess.run(["node", "-e", program], capture_output=True, text=True, check=True)
        assert json.loads(done.stdout) == order


def test_every_notebook_page_has_its_ways(monkeypatch):
    """Download and source always, the browser where JupyterLite is part of the site."""
    monkeypatch.syspath_prepend(str(DOCS / "_ext"))
    ways = importlib.import_module("ways").ways
    assert re.findall(r">([^<>]+)</a>", ways("01_x", in_browser=True)) == ["open in the browser", "download", "source"]
    assert re.findall(r'href="([^"]+)"', ways("01_x", in_browser=False)) == ["01_x.ipynb", "source_01_x.html"]
    assert "../lite/notebooks/index.html?path=01_x.ipynb" in ways("01_x", in_browser=True)
    assert sorted(lite.AWAY) == ["11_a_real_model_reads_your_text"]  # it loads a model from a file
    assert re.findall(r">([^<>]+)</a>", ways(*lite.AWAY, in_browser=True)) == ["download", "source"]


def test_the_hosted_pages_are_built_by_make():
    """The workflow knows nothing but the target, which builds site and notebooks."""
    workflow = (ROOT / ".github" / "workflows" / "pages.yml").read_text(encoding="utf-8")
    assert re.findall(r"- run: (.*)", workflow) == ["make site"] and "path: build/site" in workflow
    recipe = re.search(r"^site: .*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert recipe and "-t site" in recipe[1] and "tools/lite.py build/site/lite" in recipe[1]


# --- the built site


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    missing = sorted(name for name in BUILT_FROM if find_spec(name) is None)
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (the extra docs)")
    if PROFILE != "thorough":
        pytest.skip("make docs builds the site; the tests do in the thorough profile")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-n", "-W", "--keep-going", "-q", "-E", "-b", "html", str(DOCS), str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def test_the_site_builds_strictly_and_asks_nothing_of_the_network(site):
    """No warning, a page for every source, and no script, style, font or picture from elsewhere;
    MathJax and its fonts are in it.
    """
    assert offline.requests_of_site(site) == []
    assert {page for page in sources() if not (site / f"{page}.html").exists()} == set()
    assert (site / "_static/mathjax/tex-chtml.js").exists() and len(list((site / "_static/mathjax").rglob("*.woff"))) > 20
    assert "mathjax/tex-chtml.js" in (site / "theory/layernorm.html").read_text(encoding="utf-8")
    for notebook in (ROOT / "notebooks").glob("[0-9]*.ipynb"):
        assert (site / "notebooks" / notebook.name).read_bytes() == notebook.read_bytes()
    assert "dynamic evaluation, block only" in (site / "adapting.html").read_text(encoding="utf-8")
    assert (site / "handout.pdf").read_bytes().startswith(b"%PDF")
    assert (site / "searchindex.js").stat().st_size > 10_000


def test_equations_functions_and_tests_are_linked_both_ways(site):
    """On the page of an equation: its function and its tests. At the function: the equation and the
    tests. At the test: the equation.
    """
    for label, equation in KNOWN.items():
        anchor = "eq-" + label.replace(".", "-").lower()
        page = (site / f"{equation.page}.html").read_text(encoding="utf-8")
        assert page.count(f'id="{anchor}"') == 1, f"({label}) is not on its page once"
        below = page.split(f'id="{anchor}"')[1].split("</details>")[0]
        for function in equations.functions().get(label, []):
            assert f"#{function.path}" in below, f"({label}) does not link to {function.path}"
        assert "proofs.html#" in below, f"({label}) does not link to a test"
    proofs = (site / "proofs.html").read_text(encoding="utf-8")
    api = "".join(page.read_text(encoding="utf-8") for page in site.glob("api/*.html"))
    for label, equation in KNOWN.items():
        target = f'{equation.page}.html#eq-{label.replace(".", "-").lower()}"'
        assert target in proofs, f"the proofs do not link to ({label})"
        assert label.startswith("Q") or target in api, f"the API reference does not link to ({label})"
    anchors = re.findall(r'href="\.\./proofs\.html#([^"]+)"', api)
    assert len(set(anchors)) > 40 and all(f'id="{anchor}"' in proofs for anchor in set(anchors))


def test_every_link_within_the_site_leads_somewhere(site):
    """To a page that exists, and to an anchor that it has."""
    pages = {path: path.read_text(encoding="utf-8") for path in site.rglob("*.html") if "_static" not in path.parts}
    anchors = {path: set(re.findall(r'(?:id|name)="([^"]+)"', text)) for path, text in pages.items()}
    dead = []
    for path, text in pages.items():
        for href in set(re.findall(r'<a [^>]*href="([^"]+)"', re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL))):
            if re.match(r"[a-z]+:", href):
                continue
            name, _, anchor = href.partition("#")
            target = (path.parent / name).resolve() if name else path
            if not target.exists() or (anchor and target in pages and anchor not in anchors[target]):
                dead.append(f"{path.relative_to(site)}: {href}")
    assert not dead
