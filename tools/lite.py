"""The notebooks in a reader's browser: JupyterLite, with the package's own wheel, as a folder of the
site.

    python tools/lite.py FOLDER

A page that is opened there runs Python in the browser itself, and no server. The interpreter with
NumPy and Matplotlib is Pyodide; it comes to readers from its public address. All else lies in the
folder: the notebooks, the wheels of the package and of what it needs, and the reference texts of
Python, which Pyodide leaves out and notebook 7 reads.
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ALL = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
# one that loads a model from a file stays out: in a browser there is neither the file nor what reads it
AWAY = {path.stem for path in ALL if "fwl_ref.pretrained" in path.with_suffix(".py").read_text(encoding="utf-8")}
NOTEBOOKS = [path for path in ALL if path.stem not in AWAY]
TEXTS = "python_reference_texts"  # the wheel of pydoc_data: of that name Pyodide has a package, which it would take from elsewhere
INSTALLED = f"fwl_ref array-api-strict {TEXTS}"  # by the added cell; array-api-compat comes with fwl_ref
# the comment stands alone: what follows %pip on its line are names of packages there, a comment too
INSTALL = f"# in the browser only: these lie beside this notebook\n%pip install -q {INSTALLED}"
KERNEL = {"display_name": "Python (Pyodide)", "language": "python", "name": "python"}


def address(name: str) -> str:
    """Where the notebook of this name opens, seen from the top of the site."""
    return f"lite/notebooks/index.html?path={name}.ipynb"


def in_browser(notebook: dict[str, Any]) -> dict[str, Any]:
    """The notebook as it is there: below its title a cell that installs the package."""
    title, *others = notebook["cells"]
    cell = {"cell_type": "code", "id": "install", "source": INSTALL, "metadata": {}, "outputs": [], "execution_count": None}
    return notebook | {"cells": [title, cell, *others], "metadata": notebook["metadata"] | {"kernelspec": KERNEL}}


def write_notebooks(folder: Path) -> None:
    """Those that run there, with the outputs that are committed."""
    folder.mkdir(parents=True)
    for path in NOTEBOOKS:
        notebook = in_browser(json.loads(path.read_text(encoding="utf-8")))
        (folder / path.name).write_text(json.dumps(notebook, ensure_ascii=False, indent=1), encoding="utf-8")


def write_wheels(folder: Path) -> None:
    """The package, what it and the notebooks need beyond Pyodide, and the reference texts."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = [line for line in project["dependencies"] if line.startswith("array-api-compat")]
    shown = [line for line in project["optional-dependencies"]["notebooks"] if line.startswith("array-api-strict")]
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT, *needed, *shown, "comm"]
    subprocess.run([str(part) for part in command], check=True)
    write_texts(folder)


def write_texts(folder: Path) -> Path:
    """A wheel of ``pydoc_data``, as this Python has it."""
    import pydoc_data.topics as topics

    version = platform.python_version()
    about = f"{TEXTS}-{version}.dist-info"
    wheel = folder / f"{TEXTS}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("pydoc_data/__init__.py", "")
        archive.write(Path(topics.__file__), "pydoc_data/topics.py")
        archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {TEXTS}\nVersion: {version}\nLicense: PSF-2.0\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: tools/lite.py\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")  # nothing is ever uninstalled there
    return wheel


def kernel() -> Path:
    """The extension that runs Python in a page. Raises RuntimeError if it is not installed."""
    found = Path(sys.prefix) / "share" / "jupyter" / "labextensions" / "@jupyterlite" / "pyodide-kernel-extension"
    if not found.exists() or find_spec("jupyterlite_core") is None:
        raise RuntimeError(f"JupyterLite is not installed in {sys.prefix}: pip install -e '.[site]'")
    return found


def build(target: Path) -> None:
    """JupyterLite in the folder ``target``, which is new afterwards. Raises RuntimeError."""
    extension = kernel()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_notebooks(folder / "contents")
        write_wheels(folder / "wheels")
        command = [sys.executable, "-m", "jupyterlite_core", "build", "--lite-dir", folder, "--output-dir", folder / "out"]
        command += ["--contents", folder / "contents", "--apps", "notebooks", "--apps", "lab", "--apps", "tree"]
        command += [
            "--ignore-sys-prefix",
            f"--LiteBuildConfig.federated_extensions={extension}",
            "--no-sourcemaps",
            "--no-unused-shared-packages",
        ]
        for wheel in sorted((folder / "wheels").glob("*.whl")):
            command += ["--piplite-wheels", wheel]
        done = subprocess.run([str(part) for part in command], cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode or not (folder / "out" / "notebooks" / "index.html").exists():
            raise RuntimeError(f"JupyterLite was not built:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
        shutil.rmtree(target, ignore_errors=True)
        shutil.move(folder / "out", target)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    build(Path(sys.argv[1]))
