"""The notebooks: .py and .ipynb say the same, the rules of notebooks/README.md are kept, and every
solution passes its exercise's check.

That the outputs are what the library gives today is ``make notebooks``: it executes everything and
compares.
"""

from __future__ import annotations

import ast
import io
import re
import runpy
import subprocess
import symtable
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import pytest

from fwl_ref import exercises
from fwl_ref.pretrained.load import smollm2_path
from tests.conftest import notes
from tests.test_structure import functions
from tools import notebooks

pytestmark = pytest.mark.host("files, and figures on the host")

matplotlib.use("Agg")
SOURCES = sorted(notebooks.FOLDER.glob("*.py"))
LIBRARY = {node.name for _, node in functions()}
every_notebook = pytest.mark.parametrize("source", SOURCES, ids=[path.stem for path in SOURCES])
SHOWS = "inspect.getsource("
STYLE = 'plt.style.use("fwl_ref.figures.lecture")'


def code(notebook: notebooks.nbformat.NotebookNode) -> list[notebooks.nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tags(cell: notebooks.nbformat.NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def sections(notebook: notebooks.nbformat.NotebookNode) -> dict[str, list[notebooks.nbformat.NotebookNode]]:
    """Heading -> its cells; what stands before the first section is not in it."""
    found: dict[str, list] = {}
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and cell.source.startswith("## "):
            found[cell.source.splitlines()[0]] = []
        if found:
            next(reversed(found.values())).append(cell)
    return found


def redefined(source: str) -> set[str]:
    """Names of the library that a notebook defines again: by def, class, or as a lambda."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names & LIBRARY


def names(source: str) -> tuple[set[str], set[str]]:
    """The global names that a cell binds, and all that it binds or reads, its functions included."""
    bound, used = set(), set()

    def visit(table: symtable.SymbolTable, top: bool) -> None:
        for symbol in table.get_symbols():
            if top and (symbol.is_assigned() or symbol.is_imported()):
                bound.add(symbol.get_name())
            if top or symbol.is_global():
                used.add(symbol.get_name())
        for inner in table.get_children():
            visit(inner, top=False)

    visit(symtable.symtable(source, "a cell", "exec"), top=True)
    return bound - {"_"}, used - {"_"}


def bound_again(notebook: notebooks.nbformat.NotebookNode) -> list[str]:
    """Names that an exercise needs and that two cells bind: to run one of them again breaks it."""
    bound = [name for cell in code(notebook) for name in names(cell.source)[0]]
    exercises_ = [part for heading, part in sections(notebook).items() if heading.startswith("## Exercise")]
    used = {name for part in exercises_ for cell in part if cell.cell_type == "code" for name in names(cell.source)[1]}
    return sorted(name for name in used if bound.count(name) > 1)


def rules_broken(notebook: notebooks.nbformat.NotebookNode) -> list[str]:
    """What notebooks/README.md asks for and a notebook does not do."""
    cells, found = code(notebook), []
    everything = "\n".join(cell.source for cell in cells)
    if not notebook.cells or not notebook.cells[0].source.startswith("# ") or "**Question.**" not in notebook.cells[0].source:
        found.append("the first cell is a title that asks a **Question.**")
    found += [f"a cell of {n} lines: {c.source.splitlines()[0]}" for c in cells if (n := len(c.source.splitlines())) > 15]
    found += [f"defines {name} again" for name in sorted(redefined(everything))]
    found += [f"an exercise needs {name}, which two cells bind" for name in bound_again(notebook)]
    found += [f"no {need}" for need in ("from fwl_ref", STYLE, SHOWS, "check(") if need not in everything]
    found += [] if any("exercise" in tags(cell) for cell in cells) else ["no exercise"]
    for heading, part in sections(notebook).items():
        figures = [i for i, cell in enumerate(part) if cell.cell_type == "code" and "plt.show()" in cell.source]
        asserts = [i for i, cell in enumerate(part) if cell.cell_type == "code" and "assert " in cell.source]
        exercise = heading.startswith("## Exercise")
        if len(figures) > 1:
            found.append(f"{heading}: {len(figures)} figures")
        if exercise != any("exercise" in tags(cell) for cell in part if cell.cell_type == "code"):
            found.append(f"{heading}: an exercise has that name and a cell with that tag")
        if not exercise and any(c.cell_type == "code" for c in part) and (not asserts or (figures and asserts[-1] < figures[0])):
            found.append(f"{heading}: no assertion of the claim after the figure")
        drawn = "".join(part[i].source for i in figures)
        if figures and "axis(" not in drawn and not all(f"{axis}label" in drawn for axis in "xy"):
            found.append(f"{heading}: an axis has no label")
    return found


def test_there_are_notebooks_and_each_has_its_solutions() -> None:
    """notebooks/NN_name.py, numbered from 01 without gaps, with solutions/NN.py and NN_name.ipynb."""
    numbers = [path.name[:2] for path in SOURCES]
    assert len(SOURCES) >= 5
    assert numbers == [f"{i:02d}" for i in range(1, len(SOURCES) + 1)]
    assert [p.stem for p in sorted((notebooks.FOLDER / "solutions").glob("*.py"))] == numbers
    assert sorted(notebooks.FOLDER.glob("*.ipynb")) == [path.with_suffix(".ipynb") for path in SOURCES]
    readme = (notebooks.FOLDER / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"\((\d\d_\w+\.ipynb)\)", readme) == [path.with_suffix(".ipynb").name for path in SOURCES]


@every_notebook
def test_links_between_notebooks_lead_somewhere(source: Path) -> None:
    """[text](NN_name.ipynb) exists, and so does every page of the docs that a notebook names."""
    text = source.read_text(encoding="utf-8")
    for name in re.findall(r"\]\(([\w./]+)\)", text):
        assert (notebooks.FOLDER / name).exists(), name
    for name in re.findall(r"docs/[\w/]+\.md", text):
        assert (notebooks.ROOT / name).exists(), name


@every_notebook
def test_a_notebook_keeps_the_rules(source: Path) -> None:
    """Short cells, one figure a section with labels, an assertion after it, exercises, nothing of
    the library defined again.
    """
    assert rules_broken(notebooks.read(source)) == []


def test_the_rules_reject_what_breaks_them() -> None:
    """One mutant per rule: each edit of a notebook that keeps the rules must be caught."""
    good = notebooks.read(SOURCES[0])
    exercise = next(i for i, cell in enumerate(good.cells) if "exercise" in tags(cell))
    figure = next(i for i, cell in enumerate(good.cells) if "plt.show()" in cell.source)

    def broken(i: int, edit) -> list[str]:
        notebook = notebooks.read(SOURCES[0])
        notebook.cells[i].source = edit(notebook.cells[i].source)
        return rules_broken(notebook)

    assert rules_broken(good) == []
    assert "title" in broken(0, lambda s: s.replace("**Question.**", ""))[0]
    assert "lines" in broken(1, lambda s: s + "\nx = 1" * 16)[0]
    assert "defines dense_bwd again" in broken(exercise, lambda s: s + "\ndef dense_bwd(dy): return dy")
    assert "defines dense_fwd again" in broken(exercise, lambda s: s + "\ndense_fwd = lambda x: x")
    assert "an exercise needs ones, which two cells bind" in broken(1, lambda s: s + "\nones = 1")
    assert "an exercise needs rng, which two cells bind" in broken(exercise, lambda s: s + "\nf = lambda: (lambda: rng)\nrng = 1")
    assert any("2 figures" in fault for fault in broken(figure + 1, lambda s: s + "\nplt.show()"))
    assert any("no label" in fault for fault in broken(figure, lambda s: s.replace("xlabel", "label")))
    assert any("assertion" in fault for fault in broken(figure + 1, lambda s: s.replace("assert ", "_ = ")))
    untagged = notebooks.read(SOURCES[0])
    untagged.cells[exercise].metadata = notebooks.nbformat.from_dict({})
    assert any("that tag" in fault for fault in rules_broken(untagged))


@every_notebook
def test_the_committed_notebook_has_the_cells_of_its_source(source: Path) -> None:
    """.ipynb = .py cell by cell, ids and tags too: nobody edited one of them alone."""
    committed, fresh = notebooks.nbformat.read(source.with_suffix(".ipynb"), 4), notebooks.read(source)
    parts = lambda nb: [(c.id, c.cell_type, c.source, tags(c)) for c in nb.cells]  # noqa: E731
    assert parts(committed) == parts(fresh), "run: python tools/notebooks.py"


@every_notebook
def test_the_committed_outputs_are_complete_and_clean(source: Path) -> None:
    """Every code cell ran, in order, with no error, no warning, no address, no clock; every figure
    is there; blanks are blank.
    """
    committed = notebooks.nbformat.read(source.with_suffix(".ipynb"), 4)
    assert [cell.execution_count for cell in code(committed)] == list(range(1, len(code(committed)) + 1))
    assert notebooks.faults(committed, seconds=0.0) == []
    for cell in code(committed):
        outputs = cell.outputs
        assert not any(output.output_type == "error" for output in outputs)
        assert sum("image/png" in output.get("data", {}) for output in outputs) == cell.source.count("plt.show()")
        assert "execution" not in cell.metadata
        lines = "".join(output.get("text", "") for output in outputs).splitlines()
        if cell.source.startswith("check(") or "\ncheck(" in cell.source:
            assert lines
            assert not any(line.endswith(": correct") for line in lines), "the committed notebook has a solved exercise"


def silent_hints(name: str, attempt, reference, cases=((),), mistakes=None, returns=()) -> list[str]:
    """Hints that do not come when somebody makes just that mistake: it is no mistake in these
    cases, or another hint takes it.
    """
    found = []
    for hint, mistake in (mistakes or {}).items():
        if mistake is None or isinstance(mistake, str) and not isinstance(reference, str):
            continue  # not a version but a hint for what no version fits

        def version(*args, mistake=mistake):
            wrong, right = (f(*args) if callable(f) else f for f in (mistake, reference))
            if isinstance(wrong, tuple) and not exercises._is_shape(wrong):
                return [r if w is None else w for w, r in zip(wrong, right, strict=True)]
            return wrong

        line = exercises.verdict(name, version, reference, cases, mistakes, returns)
        found += [] if line.endswith(f". Hint: {hint}") else [f"{hint!r} stays silent: {line}"]
    return found


def runs(source: Path, solved: bool) -> tuple[list[str], list[str]]:
    """What ``check`` prints when the notebook runs, with the solutions put in after each exercise
    cell or not; and the silent hints.
    """
    solutions = runpy.run_path(str(source.parent / "solutions" / f"{source.name[:2]}.py"))
    own = {name: value for name, value in solutions.items() if not name.startswith("__")}
    lines, silent = [], []

    def recorded(*args, **kwargs) -> None:
        lines.append(exercises.verdict(*args, **kwargs))
        silent.extend(silent_hints(*args, **kwargs))

    namespace = {"__name__": "__main__"}
    for cell in code(notebooks.read(source)):
        if "slow" in tags(cell):
            continue
        with redirect_stdout(io.StringIO()):
            exec(compile(cell.source, f"{source.name}, a cell", "exec"), namespace)
        if namespace.get("check") is exercises.check:
            namespace["check"] = recorded
        if "exercise" in tags(cell) and solved:
            tree = ast.parse(cell.source)
            blanks = {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}
            blanks |= {t.id for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)}
            assert blanks <= set(own), f"no solution for {sorted(blanks - set(own))}"
            namespace |= {name: own[name] for name in blanks}
    return lines, silent


@pytest.fixture
def in_the_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Where a notebook runs, with figures that are closed instead of shown, and the style put back."""
    from matplotlib import pyplot

    monkeypatch.chdir(notebooks.FOLDER)
    monkeypatch.setattr(pyplot, "show", lambda: pyplot.close("all"))
    monkeypatch.setenv("TQDM_DISABLE", "1")
    with matplotlib.rc_context():
        yield


def absent_model() -> str:
    """What a notebook that loads a real model needs and is not installed; "" if nothing."""
    libraries = [name for name in ("gguf", "tokenizers") if find_spec(name) is None]
    if libraries:
        return f"{' and '.join(libraries)} not installed: pip install 'fwl_ref[pretrained]'"
    try:
        return "" if smollm2_path() else "no file of a model"
    except FileNotFoundError as error:
        return str(error)


WITH_A_MODEL = [path for path in SOURCES if "fwl_ref.pretrained" in path.read_text(encoding="utf-8")]
NO_MODEL = absent_model()
if NO_MODEL:
    notes["solutions of the notebook that loads SmolLM2-135M"] = NO_MODEL


@pytest.mark.slow
@pytest.mark.parametrize(
    "source",
    [pytest.param(p, marks=pytest.mark.skipif(p in WITH_A_MODEL and bool(NO_MODEL), reason=NO_MODEL)) for p in SOURCES],
    ids=[path.stem for path in SOURCES],
)
@pytest.mark.usefixtures("in_the_folder")
def test_the_solutions_pass_the_checks_and_every_hint_can_come(source: Path) -> None:
    """Every exercise says correct with its solution, in the cells that the reader runs; each
    mistake gets its own hint.
    """
    lines, silent = runs(source, solved=True)
    assert lines
    assert [line for line in lines if not line.endswith(": correct")] == []
    assert silent == []


@pytest.mark.usefixtures("in_the_folder")
def test_unsolved_exercises_are_not_correct() -> None:
    """The run above could not fail if check always said correct: without solutions it never does."""
    lines, _ = runs(SOURCES[0], solved=False)
    assert len(lines) >= 4
    assert all("not done yet" in line for line in lines)


def test_a_hint_that_cannot_come_is_found() -> None:
    """A mistake that is right in these cases, and one that another hint takes."""
    cases = [(2.0,)]
    assert silent_hints("f", None, lambda x: x * x, cases, {"half": lambda x: x / 2, "about it": None}) == []
    assert len(silent_hints("f", None, lambda x: x * x, cases, {"doubled": lambda x: 2 * x})) == 1
    assert len(silent_hints("f", None, lambda x: x * x, cases, {"half": lambda x: x / 2, "also": lambda x: x / 2})) == 1
    assert silent_hints("f", None, lambda x: (x, x), cases, {"second": lambda x: (None, 3 * x)}) == []


# Standing alone

IN_ANOTHER_PLACE = """
import sys, warnings
sys.path.insert(0, sys.argv[1])
warnings.simplefilter("error")
import matplotlib
matplotlib.use("Agg")
for cell in sys.stdin.read().split(sys.argv[2]):
    exec(cell)
import fwl_ref
print("", fwl_ref.__path__[0].removesuffix("/fwl_ref"), matplotlib.rcParams["font.size"], sep="\\n")
"""


def first_cells(source: Path) -> list[str]:
    """The cells of a notebook up to the one that chooses the style, and one that shows a picture."""
    cells = [cell.source for cell in code(notebooks.read(source))]
    style = next(i for i, cell in enumerate(cells) if "plt.style.use" in cell)
    return cells[: style + 1] + [cell for cell in cells[style + 1 :] if cell.startswith("SVG(")]


def run_in(folder: Path, package: Path, cells: list[str]) -> subprocess.CompletedProcess:
    """Run cells in a folder, with the package imported from another."""
    command = [sys.executable, "-I", "-c", IN_ANOTHER_PLACE, str(package), "# next cell"]
    return subprocess.run(command, input="# next cell".join(cells), cwd=folder, capture_output=True, text=True, check=False)


def test_an_ipynb_alone_finds_its_style_and_its_picture(tmp_path: Path) -> None:
    """Its first cells run in an empty folder, for every notebook; a style of that folder would not
    be found.
    """
    alone = [cell for source in SOURCES for cell in first_cells(source)]
    done = run_in(tmp_path, notebooks.ROOT, alone)
    assert done.stdout.endswith(f"\n{notebooks.ROOT}\n15.0\n"), done.stderr
    assert any(cell.startswith("SVG(") for cell in alone)
    broken = [cell.replace("fwl_ref.figures.lecture", "lecture.mplstyle") for cell in first_cells(SOURCES[0])]
    assert "lecture.mplstyle" in run_in(tmp_path, notebooks.ROOT, broken).stderr


# The tool

TINY = """# %% [markdown]
# # A title

# %%
import matplotlib.pyplot as plt
from tqdm import tqdm

print(sum(tqdm(range(4))))

# %% tags=["exercise"]
fig, ax = plt.subplots(figsize=(1, 1))
plt.show()
"""


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(notebooks, "FOLDER", tmp_path)
    source = tmp_path / "01_tiny.py"
    source.write_text(TINY, encoding="utf-8")
    return source


def tool(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["notebooks.py", *arguments])
    return notebooks.main()


@pytest.mark.slow
def test_the_tool_writes_the_same_bytes_twice_and_check_compares(tiny: Path, monkeypatch, capsys) -> None:
    """Executed, silent progress bars, a picture; --check passes on that, and fails for a stale
    .ipynb and for an orphan.
    """
    target = tiny.with_suffix(".ipynb")
    assert tool(monkeypatch) == 0
    first = target.read_bytes()
    assert [notebooks._output_text(o) for c in code(notebooks.nbformat.read(target, 4)) for o in c.outputs] == ["6\n", "picture"]
    assert tool(monkeypatch, "01") == 0
    assert target.read_bytes() == first
    assert tool(monkeypatch, "--check") == 0
    assert capsys.readouterr().out.count(" s, ok") == 3
    stale = first.replace(b'"6\\n"', b'"7\\n"')
    assert stale != first
    target.write_bytes(stale)
    tiny.with_name("02_orphan.ipynb").write_bytes(first)
    assert tool(monkeypatch, "--check") == 1
    said = capsys.readouterr().out
    assert "02_orphan.ipynb: has no .py" in said
    assert "01_tiny.py" in said
    assert "stale, run tools/notebooks.py: the output of cell 1 is not what the .py gives" in said
    assert target.read_bytes() == stale
    assert tool(monkeypatch, "02") == 1  # nothing has that name


def typed_into(path: Path, cell: int, answer: str) -> bytes:
    """As an editor does it: the content of a cell changes, its id stays; an empty cell comes last."""
    notebook = notebooks.nbformat.read(path, 4)
    notebook.cells[cell].source = answer
    notebook.cells.append(notebooks.nbformat.v4.new_code_cell(""))
    notebooks.nbformat.write(notebook, path)
    return path.read_bytes()


def without_running(notebook: notebooks.nbformat.NotebookNode) -> notebooks.nbformat.NotebookNode:
    return notebook


def test_an_answer_is_not_written_over(tiny: Path, monkeypatch, capsys) -> None:
    """A notebook that the tool wrote is written again, outputs and an edited .py or not; one that
    somebody typed into is refused by name and cell, and stays byte by byte; a new cell counts too.
    """
    monkeypatch.setattr(notebooks, "execute", without_running)
    target = tiny.with_suffix(".ipynb")
    assert tool(monkeypatch) == 0
    tiny.write_text(TINY.replace("range(4)", "range(5)"), encoding="utf-8")
    assert tool(monkeypatch) == 0
    assert b"range(5)" in target.read_bytes()
    clean = target.read_bytes()
    before = typed_into(target, 2, "answer = 1")
    capsys.readouterr()
    assert tool(monkeypatch) == 1
    said = capsys.readouterr().out
    assert said.startswith("01_tiny.ipynb: not written, for somebody has edited cell 2. To keep that, move the file")
    assert target.read_bytes() == before
    target.write_bytes(clean)
    notebook = notebooks.nbformat.read(target, 4)
    notebook.cells.insert(1, notebooks.nbformat.v4.new_code_cell("mine = 1"))
    notebooks.nbformat.write(notebook, target)
    assert notebooks.answers(target) == [1]
    target.unlink()
    assert tool(monkeypatch) == 0


@every_notebook
def test_the_committed_notebook_has_no_answers(source: Path) -> None:
    """Nothing that one clones is taken for somebody's answer, or no notebook could be written again."""
    assert notebooks.answers(source.with_suffix(".ipynb")) == []


def test_the_copies_for_answers_keep_them(tmp_path: Path, monkeypatch, capsys) -> None:
    """--copy makes a folder with every notebook; again, it renews what has no answers, and only that."""
    lab = tmp_path / "new" / "lab"
    assert tool(monkeypatch, "--copy", str(lab)) == 0
    first, second = (lab / path.with_suffix(".ipynb").name for path in SOURCES[:2])
    assert [path.name for path in sorted(lab.iterdir())] == [path.with_suffix(".ipynb").name for path in SOURCES]
    exercise = next(i for i, cell in enumerate(notebooks.nbformat.read(first, 4).cells) if "exercise" in tags(cell))
    kept = typed_into(first, exercise, "shape_of_g_dy = (7, 9)")
    second.write_text(second.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert capsys.readouterr().out == ""
    assert tool(monkeypatch, "--copy", str(lab)) == 0
    assert capsys.readouterr().out == f"{first}: has answers, kept as it is\n"
    assert first.read_bytes() == kept
    assert second.read_bytes() == SOURCES[1].with_suffix(".ipynb").read_bytes()


def test_check_sees_an_edit_of_a_source_or_an_output_and_not_of_pixels() -> None:
    """difference() is None for the committed notebook itself and for other pixels, and names the
    cell of any other edit.
    """
    path = SOURCES[0].with_suffix(".ipynb")

    def edited(edit) -> str | None:
        notebook = notebooks.nbformat.read(path, 4)
        edit(notebook)
        return notebooks.difference(notebooks.nbformat.read(path, 4), notebook)

    printed = next(i for i, c in enumerate(notebooks.nbformat.read(path, 4).cells) if c.get("outputs") and "text" in c.outputs[0])
    drawn = next(i for i, c in enumerate(notebooks.nbformat.read(path, 4).cells) if "plt.show()" in c.source)
    assert edited(lambda nb: None) is None
    assert edited(lambda nb: nb.cells[drawn].outputs[0].data.update({"image/png": "other"})) is None
    assert edited(lambda nb: nb.cells[1].update(source="x = 1")) == "the source of cell 1 is not what the .py gives"
    assert (
        edited(lambda nb: nb.cells[printed].outputs[0].update(text="False\n")) == f"the output of cell {printed} is not what the .py gives"
    )
    assert edited(lambda nb: nb.cells[drawn].update(outputs=[])) == f"the output of cell {drawn} is not what the .py gives"
    assert "cells, the .py gives" in edited(lambda nb: nb.cells.pop())


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("import sys\nprint('careful', file=sys.stderr)", "writes to stderr: careful"),
        ("print(object())", "prints an address"),
        ("import os\nprint(os.getcwd(), __import__('fwl_ref').__file__)", "a path of this machine"),
        ("assert 1 == 2", "a cell raised an error"),
    ],
)
def test_the_tool_refuses_what_differs_between_machines(tiny: Path, monkeypatch, capsys, cell: str, words: str) -> None:
    """Warnings, addresses, paths and errors fail, and nothing is written."""
    tiny.write_text(f"# %%\n{cell}\n", encoding="utf-8")
    assert tool(monkeypatch) == 1
    assert words in capsys.readouterr().out
    assert not tiny.with_suffix(".ipynb").exists()


@pytest.mark.slow
def test_a_notebook_that_takes_too_long_fails(tiny: Path, monkeypatch, capsys) -> None:
    """A cell over the limit is stopped; many cells that add up to more than a minute fail too."""
    tiny.write_text("# %%\nimport time\ntime.sleep(60)\n", encoding="utf-8")
    monkeypatch.setattr(notebooks, "LIMIT", 1.0)
    assert tool(monkeypatch) == 1
    assert "took over 1 s" in capsys.readouterr().out
    monkeypatch.setattr(notebooks, "LIMIT", 60.0)
    empty = SimpleNamespace(cells=[])
    assert notebooks.faults(empty, seconds=60.5) == ["took 60 s, allowed 60 s"]
    assert notebooks.faults(empty, seconds=59.5) == []


def test_ids_come_from_the_content(tiny: Path) -> None:
    """Equal cells are numbered, an edit changes one id, and nothing else does."""
    tiny.write_text("# %%\nx = 1\n\n# %%\nx = 1\n\n# %%\ny = 2\n", encoding="utf-8")
    before = [cell.id for cell in notebooks.read(tiny).cells]
    tiny.write_text("# %%\nx = 1\n\n# %%\nx = 1\n\n# %%\ny = 3\n", encoding="utf-8")
    after = [cell.id for cell in notebooks.read(tiny).cells]
    assert before[1] == f"{before[0]}-2"
    assert before[:2] == after[:2]
    assert before[2] != after[2]
    assert len(set(before)) == 3


def test_names_of_the_library_are_known() -> None:
    """The rule against defining the library again would pass on an empty list."""
    assert {"dense_fwd", "write_bwd", "linear_attention_fwd", "check"} <= LIBRARY
    assert redefined("def write_bwd(): pass\nclass Memory: pass\nmine = lambda: 0\nread_fwd = lambda: 0") == {
        "write_bwd",
        "Memory",
        "read_fwd",
    }


def test_the_tool_imports_what_takes_seconds_when_it_is_used() -> None:
    """Hypothesis, which asks every module that is there for its file, does not import it either."""
    words = (
        "import sys; from tools import notebooks as n; a = 'nbformat' in sys.modules; n.nbformat.v4; print(a, 'nbformat' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    assert run.stdout == "False True\n"
