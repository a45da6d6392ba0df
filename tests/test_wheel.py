"""The built wheel, in an environment of its own and far from the sources: what `pip install` gives a user."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEN_LINES = (ROOT / "README.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]

pytestmark = [pytest.mark.host("builds and installs a wheel"), pytest.mark.slow]


def run(*command: object, cwd: Path) -> str:
    """Output of a command that must succeed, in a clean environment."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=kept, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment in which nothing but the wheel and what it asks for is installed."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder / "dist", ROOT, cwd=folder)
    (wheel,) = (folder / "dist").glob("fwl_ref-*.whl")
    venv.create(folder / "env")
    python = folder / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-compile", wheel, cwd=folder)
    return python


def test_the_wheel_has_every_module_and_data_file_and_nothing_else(python: Path, tmp_path: Path) -> None:
    """All of fwl_ref/ is installed, tests and tools are not."""
    where = Path(run(python, "-c", "import fwl_ref; print(fwl_ref.__file__)", cwd=tmp_path).strip()).parent
    assert ROOT not in where.parents
    unshipped, made = {"ruff.toml", "README.md"}, {"__pycache__", ".ruff_cache"}
    ours, theirs = (
        {p.relative_to(folder) for p in folder.rglob("*") if p.is_file() and not made & set(p.parts)}
        for folder in (ROOT / "fwl_ref", where)
    )
    assert {p for p in ours if p.name not in unshipped} <= theirs <= ours
    for name in ("tests", "tools", "benchmarks", "notebooks"):
        assert not (where.parent / name).exists(), f"{name} was installed beside the package"


def test_the_ten_lines_of_the_readme_run_as_installed(python: Path, tmp_path: Path) -> None:
    """The equivalence, with the wheel alone."""
    assert run(python, "-c", TEN_LINES, cwd=tmp_path).split() == ["True", "True"]


def test_a_notebook_finds_its_style_and_its_picture_as_installed(python: Path, tmp_path: Path) -> None:
    """What every notebook loads in its first cells, from a folder that has neither; see also test_notebooks.py."""
    style = "import matplotlib.pyplot as plt; plt.style.use('fwl_ref.figures.lecture'); print(plt.rcParams['font.size'])"
    assert run(python, "-c", style, cwd=tmp_path).split() == ["15.0"]
    picture = "from importlib.resources import files; print(files('fwl_ref').joinpath('figures/six_sweeps.svg').read_text())"
    assert run(python, "-c", picture, cwd=tmp_path).startswith("<svg ")


def test_the_commands_run_as_installed(python: Path, tmp_path: Path) -> None:
    """Self-test, golden cases, a short training and a reading; from a folder that has nothing to do with the sources."""
    assert "claims hold" in run(python, "-m", "fwl_ref", "check", "--no-demo", cwd=tmp_path)
    run(python, "-m", "fwl_ref", "golden", "make", "cases", "--count", 2, cwd=tmp_path)
    run(python, "-m", "fwl_ref", "golden", "check", "cases", cwd=tmp_path)
    size = ["--width", 8, "--layers", 1, "--heads", 2, "--window", 16, "--batch", 1, "--steps", 2]
    run(python, "-m", "fwl_ref", "train", "--out", "m.npz", *size, cwd=tmp_path)
    (tmp_path / "mine.txt").write_text("the cat sat on the mat. " * 40)
    assert "mine.txt" in run(python, "-m", "fwl_ref", "evaluate", "m.npz", "--data", "mine.txt", "--bytes", 64, cwd=tmp_path)
