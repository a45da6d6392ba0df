"""The documentation runs: every Python block, what it says it prints, every relative link; and
nothing private is left in any file.

Blocks of one file share a namespace and run in order, in an empty folder. A comment at the end of a
``print`` is what that line prints (all that it prints, if it runs several times); ``...`` in it
stands for anything. Comments elsewhere are prose.
"""

from __future__ import annotations

import ast
import doctest
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from fwl_ref.demo import report
from fwl_ref.demo.run import LABELS
from tools import theorems

pytestmark = pytest.mark.host("reads the documentation")

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted({ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("fwl_ref/**/*.md")})
FENCE = re.compile(r"^([ \t]*)(`{3,}|~{3,})([^\n`]*)\n(.*?)^[ \t]*\2[ \t]*$", re.MULTILINE | re.DOTALL)
SAME = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# --- code


def blocks(text: str) -> Iterator[tuple[int, str]]:
    """(line, code) of every fenced block of Python; the line is that of its first line of code."""
    for match in FENCE.finditer(text):
        indent, _, language, code = match.groups()
        if language.strip() == "python":
            yield (text.count("\n", 0, match.start(4)) + 1, re.sub(f"^{indent}", "", code, flags=re.MULTILINE))


def stated(code: str) -> list[tuple[range, str]]:
    """(lines, comment) of every ``print`` that ends in a comment."""
    tokens = tokenize.generate_tokens(io.StringIO(code).readline)
    comments = {t.start[0]: t.string.lstrip("#").strip() for t in tokens if t.type == tokenize.COMMENT}
    calls = (n.value for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Call))
    prints = (c for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print" and c.end_lineno in comments)
    return [(range(c.lineno, c.end_lineno + 1), comments[c.end_lineno]) for c in prints]


def run_blocks(text: str, name: str) -> int:
    """Run every block of a page and compare what it prints with what it says; returns how many
    outputs were compared.
    """
    printed: dict[int, list[str]] = {}

    def record(*values: Any, **options: Any) -> None:
        out = io.StringIO()
        print(*values, **{**options, "file": out})
        printed.setdefault(sys._getframe(1).f_lineno, []).append(out.getvalue())

    namespace, compared = {"__name__": "__main__", "print": record}, 0
    for line, code in blocks(text):
        exec(compile("\n" * (line - 1) + code, name, "exec"), namespace)  # noqa: S102 this is what the page is for
        for lines, comment in stated(code):
            found = " ".join(out.strip() for n in lines for out in printed.get(n + line - 1, []))
            where = f"{name}, line {lines.start + line - 1}"
            assert doctest.OutputChecker().check_output(comment + "\n", found + "\n", SAME), f"{where} says {comment!r}, prints {found!r}"
            compared += 1
    return compared


WITH_CODE = [path for path in PAGES if list(blocks(path.read_text(encoding="utf-8")))]


@pytest.mark.parametrize("path", WITH_CODE, ids=named)
def test_every_python_block_runs_and_prints_what_it_says(path, tmp_path, monkeypatch):
    """As a reader would run them, top to bottom."""
    monkeypatch.chdir(tmp_path)
    run_blocks(path.read_text(encoding="utf-8"), named(path))


def test_the_readme_shows_what_it_claims():
    """Its block prints something, and says what."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert sum(len(stated(code)) for _, code in blocks(text)) >= 1


def test_the_lecture_plan_adds_up_and_says_what_the_readme_and_the_notebook_say():
    """Minutes of both lectures; the cost of dynamic evaluation in the demo's table; which exercise
    of notebook 2 is RMSNorm.
    """
    plan, readme = ((ROOT / name).read_text(encoding="utf-8") for name in ("docs/lecture_plan.md", "README.md"))
    lectures = re.findall(r"^## \w+ lecture:.*?(?=^## )", plan, re.S | re.M)
    assert [sum(map(int, re.findall(r"^\| \((\d+)\)", part, re.M))) for part in lectures] == [90, 90]
    times = re.findall(r"^\| dynamic evaluation, (?:SGD|RMS) .*? (\d+\.\d+)x ", readme, re.M)
    assert [round(float(time)) for time in times] == [4, 5] and "takes four to five times as long" in plan
    notebook = (ROOT / "notebooks" / "02_layernorm_twice.py").read_text(encoding="utf-8")
    assert "## Exercise 2: RMSNorm, twice" in notebook and "does the second of notebook 2: RMSNorm, twice" in plan


def test_the_page_of_theorems_lists_their_tests_and_no_others():
    """docs/theorems.md is written by tools/theorems.py; run it if this fails. Every test in
    tests/theorems is on it.
    """
    found = {theorems.TITLES[number]: [name for name, _ in tests] for number, tests in theorems.tests_by_theorem().items()}
    sections = re.findall(r"^## (?:\d+\. )?(.*?)$(.*?)(?=^#|\Z)", (ROOT / "docs" / "theorems.md").read_text(encoding="utf-8"), re.S | re.M)
    listed = {title[0].lower() + title[1:]: re.findall(r"^\| `(test_\w+)` \|", text, re.M) for title, text in sections}
    assert listed == {title: [name.split("::")[1] for name in names] for title, names in found.items()}
    of_theorems = {
        f"{path.relative_to(ROOT).as_posix()}::{name}"
        for path in (ROOT / "tests" / "theorems").glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)\(", path.read_text(encoding="utf-8"), re.M)
    }
    assert of_theorems <= {name for names in found.values() for name in names} and len(of_theorems) > 100


REDO = """README's table is not of the demo as it is. On a quiet machine: run `make demo`; put results/demo.md (table, text) in the place of
what stands under "What adapting buys" in README.md, and results/demo.png in that of docs/demo.png. Then go through the prose: in the
paragraph that asks whether it is cheaper, every row that adapts is spoken of once, as (time, change); the differences there, the first
screen, and the numbers of `make demo QUICK=1` under "Does it last?" follow. This test, tests/test_lectures.py and the next one say when it
is done."""


def test_readme_has_the_rows_of_the_demo():
    """The table under "What adapting buys" has the demo's head and ways, in order. N: one row less is noticed."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")

    def found(text):
        lines = text.split("## What adapting buys")[1].split("\n\n")[2].splitlines()
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        return cells[0], [row[0] for row in cells[2:]]

    head, ways = found(text)
    assert ways == list(LABELS.values()), REDO
    assert head == report.HEAD, REDO
    assert found(re.sub(r"^\| dynamic evaluation, RMS.*\n", "", text, flags=re.M))[1] == [w for w in ways if not w.endswith("RMS")]


def said_of_the_table(readme):
    """What is said of the table in README: all (time, change) in brackets, the rows' own, the one
    result of the first screen.
    """
    rows = re.findall(r"^\| (.*?) +\| +[\d.]+ \| +(-\d+\.\d %).*?\| +(\d+\.\d\dx) \| +(\d+\.\d\dx) \|", readme, re.M)
    table = {name: (time, change) for name, change, time, _ in rows}
    fewest = min(rows, key=lambda row: row[3])[0]
    said = re.findall(r"\((\d+\.\d\dx),\s(-\d+\.\d %)\)", readme)
    first = re.search(r"needs (\d+\.\d %) .*? (\d+\.\d\d) times as long", readme, re.S)
    more = re.search(r"gain (\d\.\d)\s+points more than\s+the block alone, for (0\.\d\d)x more time", readme)
    return table, said, first.groups(), more.groups(), fewest


def test_readme_says_of_its_table_what_the_table_says():
    """Each row that adapts is spoken of once, with its figures; the first screen quotes the best;
    the differences are those of the rows. N: another figure in the table is noticed.
    """

    def agrees(readme):
        table, said, (bits, time), (points, longer), fewest = said_of_the_table(readme)
        best, alone = table["fast weights, carried through the document"], table["dynamic evaluation, block only"]
        number = lambda text: float(text.strip("x% "))  # noqa: E731
        return (
            sorted(said) == sorted(table.values())
            and (f"{time}x", f"-{bits}") == best
            and f"{number(alone[1]) - number(best[1]):.1f}" == points
            and f"{number(best[0]) - number(alone[0]):.2f}" == longer
            and fewest == "dynamic evaluation, block only"
        )

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert agrees(readme), REDO
    for way, figure in (("fast weights, carried through", r"-\d+\.\d %"), ("dynamic evaluation, block", r"\d\.\d\dx")):
        other = re.sub(rf"(\| {way}.*?){figure}", lambda row: row[0][:-3] + str(9 - int(row[0][-3])) + row[0][-2:], readme)
        assert other != readme and not agrees(other), way


def test_readme_and_demo_promise_the_same_minutes():
    """How long the demo takes, with and without QUICK=1."""
    number = {"one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8"}
    promise = r"(\w+) to (\w+) minutes on two cores, QUICK=1 for (\w+)"
    low, high, quick = (number[word] for word in re.search(promise, (ROOT / "README.md").read_text(encoding="utf-8")).groups())
    demo = (ROOT / "fwl_ref" / "demo" / "run.py").read_text(encoding="utf-8")
    assert f"'{low} to {high} minutes'" in demo and f"'{quick} minute'" in demo


PAGE = """
Text.

```python
x = 3  # a comment, no output
print(x)  # 3
```

- A list:

  ```python
  def twice(n):
      print(n,
            2 * n)  # 5 10
  twice(5)
  for i in range(3):
      print(i)  # 0 1 2
  print([0.25, x])  # [0.25, ...]
  print("no comment")
  ```

```text
print(1)  # 2
```
"""


def test_the_runner_compares_every_stated_output():
    """Simple lines, lines over two lines, in functions and in loops; other languages are left
    alone.
    """
    assert [line for line, _ in blocks(PAGE)] == [5, 12]
    assert run_blocks(PAGE, "page") == 4


@pytest.mark.parametrize(
    ("right", "wrong", "words"),
    [
        ("print(x)  # 3", "print(x)  # 4", "page, line 6 says '4', prints '3'"),
        ("# 5 10", "# 5 11", "page, line 13 says '5 11'"),
        ("# 0 1 2", "# 2", "says '2', prints '0 1 2'"),
        ("# [0.25, ...]", "# [0.35, ...]", "says"),
        ("  twice(5)\n", "", "says '5 10', prints ''"),
    ],
)
def test_the_runner_sees_a_page_that_lies(right, wrong, words):
    """A wrong number, a missing one, and an output that never comes."""
    assert right in PAGE
    with pytest.raises(AssertionError, match=re.escape(words)):
        run_blocks(PAGE.replace(right, wrong), "page")


def test_an_error_names_the_page_and_the_line():
    """The traceback points into the page."""
    with pytest.raises(NameError) as caught:
        run_blocks(PAGE.replace("x = 3", "x = missing"), "page")
    last = caught.traceback[-1]
    assert (last.frame.code.raw.co_filename, last.lineno + 1) == ("page", 5)


# --- links


def prose(text: str) -> str:
    """A page without code and formulas, in which brackets mean other things."""
    text = FENCE.sub("", text)
    text = re.sub(r"^(?: {4}|\t).*$", "", text, flags=re.MULTILINE)
    for pattern in (r"(`+)[^`].*?\1", r"\$\$.*?\$\$", r"\$[^$\n]+\$"):
        text = re.sub(pattern, "", text, flags=re.DOTALL)
    return text


def links(text: str) -> list[str]:
    """Targets of Markdown links and pictures, inline or by reference, that are not addresses on the
    web.
    """
    text = prose(text)
    found = re.findall(r"\]\(<?([^()\s>]+)>?(?:\s+\"[^\"]*\")?\)", text) + re.findall(r"^\[[^\]]+\]:\s+(\S+)", text, re.MULTILINE)
    return [target for target in found if not re.match(r"[a-z]+:", target)]


def anchors(text: str) -> set[str]:
    """What the headings of a page are called in an address, and labels that are given by hand."""
    found: set[str] = set()
    for heading in re.findall(r"^#+\s+(.+?)\s*#*$", FENCE.sub("", text), re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
        found.add(next(s for s in [slug, *(f"{slug}-{i}" for i in range(1, 99))] if s not in found))
    return found | set(re.findall(r"^\(([\w.:-]+)\)=$", text, re.MULTILINE)) | set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", text))


def dead_links(page: Path) -> list[str]:
    """Links to files that are not there, or to headings that their page does not have."""
    dead = []
    for target in links(page.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        if not path.exists():
            dead.append(f"{target}: no such file")
        elif anchor and path.suffix == ".md" and anchor not in anchors(path.read_text(encoding="utf-8")):
            dead.append(f"{target}: no such heading")
    return dead


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_every_relative_link_leads_somewhere(path):
    """To a file that exists and, within Markdown, to a heading that exists."""
    assert not dead_links(path)


def test_the_link_reader_reads_links(tmp_path):
    """It finds dead ones among living ones, and no links in code or formulas."""
    (tmp_path / "there.md").write_text("# 1. A (great) `heading`\n## 1. A (great) `heading`\n(label)=\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](there.md) [b](there.md#1-a-great-heading) [c](there.md#1-a-great-heading-1) [d](there.md#label) [e](#here)\n# Here\n"
        "![f](gone.png) [g](there.md#gone) [h][ref] [i](https://example.org/x) [j](mailto:a@b)\n"
        "`[k](code.md)` $[x](y)$ $$[x](y)$$\n\n    [l](code.md)\n\n```text\n[m](code.md)\n```\n\n[ref]: missing/page.md\n"
    )
    assert dead_links(page) == ["gone.png: no such file", "there.md#gone: no such heading", "missing/page.md: no such file"]
    assert len(PAGES) >= 6 and sum(len(links(path.read_text(encoding="utf-8"))) for path in PAGES) > 10


# --- what must not be in any file

IGNORED = [line.strip("/").removesuffix("/*") for line in (ROOT / ".gitignore").read_text().split()]
PRIVATE = {  # written so that this file does not hold what it looks for
    "a path of the machine it was written on": rb"(?<![\w.~/-])/(?:[w]ork|[r]oot|[h]ome/\w+|[U]sers/\w+)(?:/|\b(?![\w-]))",
    "a folder outside the repository": rb"[.][.]/shared",
    "a package index": rb"index[-]url|https?://[^\s/\"'<>)]*(?:[r]egistry|[m]irror|[a]rtifact|[n]exus|[p]roxy|[p]ypi|[l]ocalhost|\d\.\d|:\d)",
}


def files(folder: Path = ROOT) -> Iterator[Path]:
    """Every file of the repository but what .gitignore leaves out."""
    for path in sorted(folder.iterdir()):
        if path.name in (".git", ".ruff_cache") or any(fnmatch(path.name, pattern) for pattern in IGNORED):
            continue
        if path.is_dir():
            yield from files(path)
        else:
            yield path


def private(data: bytes) -> list[str]:
    """What a file gives away."""
    return [f"{what}: {match[0]!r}" for what, pattern in PRIVATE.items() for match in [re.search(pattern, data)] if match]


def test_no_file_names_what_is_private():
    """Paths of one machine, folders beside the repository, hosts of package indexes: none, in text,
    pictures or notebooks.
    """
    seen, found = 0, {}
    for path in files():
        seen += 1
        given_away = private(path.read_bytes())
        if given_away:
            found[named(path)] = given_away
    assert not found
    assert seen > 50


def test_the_search_for_private_words_finds_them():
    """Each pattern has something to find, and ordinary text is left alone."""
    hidden = ["/w#ork/main/x.py", "see '/w#ork'", "/r#oot/.venv", "/h#ome/ann/x", "PYTHONPATH=../sh#ared", "--index-#url x"]
    hidden += ["http://py#pi.example.org/simple", "https:#//10.0.0.1/x", "http:#//host:8080/"]
    for text in hidden:
        assert private(text.replace("#", "").encode()), text
    for text in ("a/work/b", "network/worked", "home/", "https://arxiv.org/abs/2212.02475", "~/work", "../shares", "3/4", "/workflow"):
        assert not private(text.encode()), text
