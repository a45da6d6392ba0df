"""Build notebooks/*.ipynb from notebooks/*.py, byte for byte repeatable.

    python tools/notebooks.py              execute all and write the .ipynb files, with outputs
    python tools/notebooks.py 03 05        only these
    python tools/notebooks.py --check      execute all, write nothing, fail if a committed .ipynb is not what its .py gives
    python tools/notebooks.py --copy lab   execute nothing, copy the .ipynb files into a folder for answers

The .py file (percent format) is the only source. Cell ids come from the content and nothing comes
from a clock, so a second run writes the same bytes. --check compares sources and text outputs, not
pixels: another version of a plotting library draws differently. A notebook fails if a cell raises,
writes to stderr, prints an address or a path of this machine, or if the whole takes over a minute.

Nobody's answers are lost. An editor keeps the id of a cell whose content it changes, so an id that
is not that of its content tells what somebody has typed. Such a notebook is not written over.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import os
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any


class Later:
    """A module that is imported when something of it is first used: these take seconds, and so would
    every process of the suite that collects the tests of notebooks and leaves them to another. It is
    not in ``sys.modules`` before, where Hypothesis asks every module for its file.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self._name), name)


jupytext, nbformat, nbclient = Later("jupytext"), Later("nbformat"), Later("nbclient")

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "notebooks"
LIMIT = 60.0  # seconds a notebook may take
KEEP = (
    "To keep that, move the file out of notebooks/, for instance into lab/, where `make lab` opens it. To drop it, delete the file. "
    "An edit of the notebook itself belongs into its .py."
)
ADDRESS = re.compile(r"0x[0-9a-f]{6,}")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
METADATA = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}, "language_info": {"name": "python"}}


def read(source: Path) -> nbformat.NotebookNode:
    """The notebook of a .py file, without outputs; the id of a cell is a hash of its content,
    numbered if that repeats.
    """
    notebook, seen = jupytext.read(source, fmt="py:percent"), {}
    for cell in notebook.cells:
        digest = content(cell)
        seen[digest] = seen.get(digest, 0) + 1
        cell["id"] = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
        cell.metadata = nbformat.from_dict({key: value for key, value in cell.metadata.items() if key == "tags"})
    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def content(cell: nbformat.NotebookNode) -> str:
    """What the id of a cell starts with."""
    return hashlib.sha1(f"{cell.cell_type}\0{cell.source}".encode()).hexdigest()[:8]


def answers(path: Path) -> list[int]:
    """The cells of an .ipynb that somebody has changed or added since it was written here."""
    if not path.exists():
        return []
    cells = nbformat.read(path, 4).cells
    return [i for i, cell in enumerate(cells) if cell.source.strip() and cell.get("id", "").split("-")[0] != content(cell)]


def copy(folder: Path) -> None:
    """Put a copy of every notebook into a folder, for answers; a copy that holds some stays."""
    folder.mkdir(parents=True, exist_ok=True)
    for source in sorted(FOLDER.glob("*.ipynb")):
        target = folder / source.name
        if answers(target):
            print(f"{target}: has answers, kept as it is")
        else:
            shutil.copyfile(source, target)


def execute(notebook: nbformat.NotebookNode, folder: Path = FOLDER) -> nbformat.NotebookNode:
    """The notebook with the outputs of its cells; the package is imported from this checkout,
    progress bars are silent.
    """
    # one BLAS thread: the arrays are small, and two threads are many times slower when anything
    # else runs
    environment = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"} | os.environ | {"TQDM_DISABLE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    resources = {"metadata": {"path": str(folder)}}
    quiet = ["--log-level=ERROR"]  # of the kernel itself; what cells say is kept
    settings = {"timeout": int(LIMIT), "record_timing": False, "coalesce_streams": True, "extra_arguments": quiet}
    nbclient.NotebookClient(notebook, resources=resources, **settings).execute(env=environment)
    notebook.metadata = nbformat.from_dict(METADATA)
    return notebook


def text(notebook: nbformat.NotebookNode) -> list[tuple]:
    """What must not change: sources and text outputs. A picture counts as a picture, whatever is on
    it.
    """
    return [(cell.cell_type, cell.source, [_output_text(o) for o in cell.get("outputs", [])]) for cell in notebook.cells]


def _output_text(output: nbformat.NotebookNode) -> str:
    data = output.get("data", {})
    return output.get("text") or ("picture" if "image/png" in data else data.get("text/plain", output.output_type))


def faults(notebook: nbformat.NotebookNode, seconds: float) -> list[str]:
    """What a reader on another machine would not see the same, and a run that takes too long."""
    found = [] if seconds <= LIMIT else [f"took {seconds:.0f} s, allowed {LIMIT:.0f} s"]
    for number, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            shown = _output_text(output)
            if output.get("name") == "stderr":
                found.append(f"cell {number} writes to stderr: {shown.strip().splitlines()[-1]}")
            elif ADDRESS.search(shown) or str(ROOT) in shown or str(Path.home()) in shown:
                found.append(f"cell {number} prints an address or a path of this machine: {shown.strip().splitlines()[0]}")
    return found


def difference(old: nbformat.NotebookNode, new: nbformat.NotebookNode) -> str | None:
    """Where the text of two notebooks first differs; None if it does not."""
    a, b = text(old), text(new)
    where = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
    if where is not None:
        kind = "source" if a[where][:2] != b[where][:2] else "output"
        return f"the {kind} of cell {where} is not what the .py gives"
    return None if len(a) == len(b) else f"{len(a)} cells, the .py gives {len(b)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="how the notebooks' names start; all if left out")
    parser.add_argument("--check", action="store_true", help="write nothing, fail if a committed notebook is stale")
    parser.add_argument("--copy", type=Path, metavar="FOLDER", help="only copy the notebooks, for answers; those there are kept")
    options = parser.parse_args()
    if options.copy:
        copy(options.copy)
        return 0
    chosen = tuple(options.names) or ("",)
    sources = [p for p in sorted(FOLDER.glob("*.py")) if p.name.startswith(chosen)]
    failed = not sources
    for orphan in sorted(p for p in FOLDER.glob("*.ipynb") if not p.with_suffix(".py").exists()):
        failed = True
        print(f"{orphan.name}: has no .py of the same name, which is the only source")
    for source in sources:
        start, target, notebook = time.perf_counter(), source.with_suffix(".ipynb"), read(source)
        if not options.check and (typed := answers(target)):
            failed = True
            print(f"{target.name}: not written, for somebody has edited cell {', '.join(map(str, typed))}. {KEEP}", flush=True)
            continue
        try:
            execute(notebook)
            seconds = time.perf_counter() - start
            found = faults(notebook, seconds)
        except nbclient.exceptions.CellTimeoutError:
            seconds, found = time.perf_counter() - start, [f"a cell took over {LIMIT:.0f} s"]
        except nbclient.exceptions.CellExecutionError as error:
            seconds, found = (time.perf_counter() - start, [f"a cell raised an error\n{COLOUR.sub('', str(error))}"])
        if options.check and not found:
            stale = difference(nbformat.read(target, 4), notebook) if target.exists() else "there is no .ipynb"
            found = [f"stale, run tools/notebooks.py: {stale}"] if stale else []
        elif not found:
            target.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
        print(f"{source.name}: {seconds:.1f} s, {'; '.join(found) or 'ok'}", flush=True)
        failed = failed or bool(found)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
