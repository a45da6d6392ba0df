"""The two lectures: slides, plan, sketches and problems say the same, and what the docs say.

That the answers to the problems and the code on the slides run, and that links lead somewhere, is in
``test_docs.py``. The slides are built here where typst and pandoc are installed.
"""

from __future__ import annotations

import base64
import re
import xml.etree.ElementTree as ElementTree
from importlib.util import find_spec

import matplotlib
import pytest

from tools import drawings, equations, lectures, npm, offline

pytestmark = pytest.mark.host("reads the documentation")

ROOT, DOCS = equations.ROOT, equations.DOCS
KNOWN = equations.equations()
SLIDES = {name: lectures.slides(source) for name, source in lectures.SOURCES.items()}
EVERY = [pytest.param(slide, id=f"{name}-{i}") for name, slides in SLIDES.items() for i, slide in enumerate(slides, 1)]
PLAN = (DOCS / "lecture_plan.md").read_text(encoding="utf-8")
NUMBER = re.compile(r"(?<![\w.(])-?\d+\.\d+")  # with decimals: what is measured
can_build = pytest.mark.skipif(not (find_spec("typst") and find_spec("pypandoc")), reason="typst and pypandoc (the extra docs) are absent")


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


# --- slides


@pytest.mark.parametrize("slide", EVERY)
def test_a_slide_shows_equations_of_the_docs_and_its_notes_say_how_long_it_takes(slide):
    """Every label, shown alone or spoken of, is one of docs/equations.md."""
    index = (DOCS / "equations.md").read_text(encoding="utf-8")
    for label in {*slide.labels, *equations.cited(slide.text), *equations.cited(slide.notes)}:
        assert label in KNOWN and f"({label})" in index
    assert 1 <= slide.minutes <= 6 and len(slide.notes.split()) >= 8


def test_the_derivations_are_on_the_slides():
    """By label, lecture by lecture."""
    shown = [{label for slide in slides for label in slide.labels} for slides in SLIDES.values()]
    assert {"Y.1", "D.1", "D.2", "F.10", "L.5", "L.1", "L.3", "Q.2", "B.1", "F.1", "F.2", "Q.1"} <= shown[0]
    assert {"D.3", "R.3", "C.3", "N.2", "N.3", "L.2", "F.12", "F.5", "Q.3", "Q.7", "U.10", "U.25"} <= shown[1]


def test_rows_of_an_equation_are_those_of_the_docs():
    """(F.5:1-5) and (F.5:6-10) are all of it; what is not there is refused."""
    whole = lectures.formula("F.5").replace(r"\begin{aligned}", "").replace(r"\end{aligned}", "")
    parts = [lectures.formula("F.5", rows).removeprefix(r"\begin{aligned}").removesuffix(r"\end{aligned}") for rows in ("1-5", "6-10")]
    assert re.sub(r"\s", "", r"\\".join(parts)) == re.sub(r"\s", "", whole)
    with pytest.raises(ValueError, match=r"\(F.5:9-11\): the equation has 10 rows"):
        lectures.formula("F.5", "9-11")
    with pytest.raises(ValueError, match="do not have: X.99"):
        lectures.formula("X.99")


def results() -> list[tuple[str, dict[str, str]]]:
    """The tables of results on the slides: lecture, settings."""
    pattern = re.compile(r"^::: \{\.measured (.*)\}$", re.M)
    found = [
        (name, setting) for name, source in lectures.SOURCES.items() for setting in pattern.findall(source.read_text(encoding="utf-8"))
    ]
    return [(name, dict(re.findall(r'(\w+)="([^"]*)"', setting))) for name, setting in found]


@pytest.mark.parametrize(("lecture", "table"), results())
def test_a_table_of_results_has_the_figures_of_the_page_that_it_names(lecture, table):
    """Read here in another way: each row's cells stand, in order, in one line of that page."""
    head, *rows = lectures.measured(**table)
    lines = [[cell.strip() for cell in line.strip("| \n").split("|")] for line in read(table["file"]).splitlines() if line.startswith("|")]
    assert rows
    for row in rows:
        assert any(is_part(row, [lectures.without_links(cell) for cell in line]) for line in lines), row
    assert is_part(head, next(line for line in lines if set(head) <= set(line)))


def is_part(some: list[str], line: list[str]) -> bool:
    rest = iter(line)
    return all(cell in rest for cell in some)


def test_the_result_of_the_demo_is_on_the_slides_row_by_row():
    """All rows of README's table, and a row or column that is not there is refused."""
    columns = "reading test documents; bits per byte; change against static; time per byte"
    whole = lectures.measured("README.md", columns)
    shown = [lectures.measured(**table) for name, table in results() if name == "lecture_2" and table["file"] == "README.md"]
    assert shown == [whole] and len(whole) > 7
    with pytest.raises(ValueError, match="no row 'slow weights'"):
        lectures.measured("README.md", columns, "slow weights")
    with pytest.raises(ValueError, match="no table with the columns price"):
        lectures.measured("README.md", "price")


def figures_said(text: str) -> list[str]:
    """Numbers with decimals in prose and notes: not in formulas, code, settings of pictures and tables."""
    text = re.sub(r"```.*?```|\$\$.*?\$\$|\$[^$\n]*\$|^:::[^\n]*$|\{.*?\}|`[^`]*`|\([A-Z]\.\d+[^)]*\)", " ", text, flags=re.S | re.M)
    return NUMBER.findall(text)


@pytest.mark.parametrize("lecture", lectures.SOURCES)
def test_a_measured_number_in_the_prose_of_a_slide_is_one_of_the_measurements(lecture):
    """It stands in README or in docs/measurements.md. N: another number is found."""
    measured = set(NUMBER.findall(read("README.md") + read("docs/measurements.md")))
    text = lectures.SOURCES[lecture].read_text(encoding="utf-8")
    assert set(figures_said(text)) <= measured
    assert figures_said(text + "\nIt gains 12.34 % in (Q.1) and $0.99$.")[-1] == "12.34" and "12.34" not in measured


def test_the_slides_speak_of_the_cost_as_the_plan_does():
    """In words, which test_docs compares with README for the plan."""
    words = "reading takes four to five times as long"
    assert words in PLAN and words in lectures.SOURCES["lecture_1"].read_text(encoding="utf-8")


# --- plan


def test_the_minutes_of_the_plan_are_those_of_the_slides():
    """Row by row: the slides from a to b take what the row says; all slides occur once, in order; 15
    minutes are left for questions.
    """
    for slides, part in zip(SLIDES.values(), re.findall(r"^## \w+ lecture:.*?(?=^## )", PLAN, re.S | re.M), strict=True):
        assert slides[0].title.lower() in part.splitlines()[0].lower()
        rows = re.findall(r"^\| \((\d+)\) \| (.*?) \| (?:(\d+) to (\d+).*?)? ?\|", part, re.M)
        covered = [n for _, _, a, b in rows if a for n in range(int(a), int(b) + 1)]
        assert covered == list(range(1, len(slides) + 1))
        for minutes, _, a, b in rows:
            assert not a or sum(slide.minutes for slide in slides[int(a) - 1 : int(b)]) == int(minutes), f"slides {a} to {b}"
        assert sum(int(minutes) for minutes, what, a, _ in rows if what.startswith("Questions")) == 15


def test_what_the_plan_asks_the_class_is_answered():
    """Each question of the plan, and the page of questions answers each in a few words."""
    page = read("docs/lectures/questions.md")
    asked = re.findall(r"^- (.*\?)", PLAN.split("## Questions to ask the class")[1], re.M)
    answers = page.split("## Questions to ask the class")[1].split("\n### ")[1:]
    assert len(asked) == len(answers) == 5
    for part in page.split("\n### ")[1:]:
        question, answer = part.split("\n", 1)
        assert question.endswith("?") and 15 < len(answer.split("\n## ")[0].split()) < 110, question


def test_each_sketch_stands_on_the_board_page_at_the_slide_and_minutes_that_it_names():
    """docs/lectures/board.md: all sketches, each with its slide, as many minutes as its notes say."""
    page, words = read("docs/lectures/board.md"), {"three": 3, "four": 4, "five": 5, "six": 6}
    found = []
    for lecture, part in zip(SLIDES.values(), page.split("\n## ")[1:], strict=True):
        for number, minutes, picture in re.findall(r"^Slide (\d+), (\w+) minutes.*?\(figures/(\w+)\.svg\)", part, re.S | re.M):
            slide = lecture[int(number) - 1]
            assert f"figures/{picture}.svg" in slide.text and slide.minutes == words[minutes], slide.title
            found.append(picture)
    assert sorted(found) == sorted(name for name in drawings.DRAWINGS if name.startswith("board_")) and len(found) == 7


# --- problems


def test_every_problem_has_an_answer_that_code_checks():
    """Twelve; the plan says which belong to which lecture."""
    text = read("docs/lectures/problems.md")
    problems = re.findall(r"^### Problem (\d+): ", text, re.M)
    answers = dict(re.findall(r"^### Answer (\d+)\n(.*?)(?=^### |\Z)", text, re.S | re.M))
    assert problems == list(answers) == [str(n) for n in range(1, 13)]
    for number, answer in answers.items():
        assert re.search(r"^```python\n.*?^assert|^```python\n.*?^    assert", answer, re.S | re.M), f"answer {number} checks nothing"
    second = text.index("## Problems of the second lecture")
    assert text.index("### Problem 6:") < second < text.index("### Problem 7:")


# --- pictures


def test_every_picture_is_used_and_every_one_that_is_used_is_there():
    """docs/lectures/figures holds what tools/drawings.py draws, and nothing else."""
    files = {path.stem for path in drawings.FOLDER.iterdir()}
    used = set(re.findall(r"figures/(\w+)\.svg", "".join(p.read_text(encoding="utf-8") for p in lectures.FOLDER.rglob("*.md"))))
    assert files == set(drawings.DRAWINGS) == used - {"six_sweeps"}


@pytest.mark.parametrize("name", drawings.DRAWINGS)
def test_a_picture_is_an_svg_with_a_title_that_asks_for_nothing(name):
    """Well-formed, and its title says what it shows."""
    svg = (drawings.FOLDER / f"{name}.svg").read_text(encoding="utf-8")
    assert "title" in "".join(node.tag for node in ElementTree.fromstring(svg).iter())
    assert not offline.requests_of_page(svg)


def test_a_picture_is_what_the_package_draws_today(tmp_path):
    """Drawn again by the same Matplotlib, curves are the same to three decimals: rounding differs
    between machines.
    """
    name = "slope"
    svg = (drawings.FOLDER / f"{name}.svg").read_text(encoding="utf-8")
    if f"Matplotlib v{matplotlib.__version__}" not in svg:
        pytest.skip("drawn by another version of Matplotlib")
    number = re.compile(r"-?\d+\.\d+")
    again = drawings.save(name, tmp_path).read_text(encoding="utf-8")
    old, new = ([float(n) for n in number.findall(text)] for text in (svg, again))
    assert len(old) == len(new) and max(abs(a - b) for a, b in zip(old, new, strict=True)) < 1e-3


def test_the_decay_in_a_picture_is_the_one_that_readme_says():
    """Read from it, so a new run of the demo gives a new picture."""
    assert f"decay {drawings.learned_decay()}" in read("README.md")


# --- what is built


@can_build
def test_the_slides_are_one_page_each_and_a_full_one_is_refused_by_its_title(tmp_path, monkeypatch):
    """The PDF has as many pages as there are slides."""
    source = tmp_path / "short.md"
    notes = "\n\n::: notes\n1 min. Nothing.\n:::\n\n"
    source.write_text(f"## First\n\n(D.2){notes}## Second\n\n(F.5:1-5){notes}")
    lectures.pdfs(source, tmp_path / "a.pdf", tmp_path / "b.pdf")
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF") and (tmp_path / "b.pdf").read_bytes().startswith(b"%PDF")
    source.write_text(f"## First\n\n(D.2){notes}## Second\n\n" + "(F.5)\n\n" * 4 + notes)
    with pytest.raises(ValueError, match="2 slides became . pages, so one is too full: Second$"):
        lectures.pdfs(source, tmp_path / "c.pdf", tmp_path / "d.pdf")
    assert not (tmp_path / "c.pdf").exists()


@can_build
def test_a_page_of_slides_is_one_file_that_asks_for_nothing(tmp_path):
    """Styles, scripts and pictures are in it; a script cannot end early; notes are not shown."""
    for path in lectures.PARTS.values():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text('x = "</script>";')
    page = lectures.page(lectures.SOURCES["lecture_1"], tmp_path)
    assert offline.requests_of_page(page) == [] and page.count("</script>") == page.count("<script")
    assert page.count('<aside class="notes">') == len(SLIDES["lecture_1"]) == page.count("<section")
    pictures = re.findall(r'src="data:image/svg\+xml;base64,([^"]*)"', page)
    assert len(pictures) == 7 and all(b"<svg" in base64.b64decode(code) for code in pictures)


def test_a_slide_without_minutes_is_refused(tmp_path):
    """By its title."""
    (tmp_path / "x.md").write_text("## A title\n\ntext\n\n::: notes\nsay\n:::\n")
    with pytest.raises(ValueError, match="the slide 'A title' must begin with its minutes"):
        _ = lectures.slides(tmp_path / "x.md")[0].minutes


def test_what_is_fetched_is_named_with_what_to_do_without_it(tmp_path, monkeypatch):
    """Each package says what it is needed for, and where its files would go."""
    monkeypatch.setattr(npm.shutil, "which", lambda _: None)
    for package in npm.PACKAGES.values():
        with pytest.raises(RuntimeError, match=rf"{package.name} {package.version} could not be fetched.*\n.*packages/some"):
            npm.ensure(package, tmp_path / "packages" / "some")
