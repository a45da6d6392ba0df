"""What a browser's Python has not: tqdm, threadpoolctl, the reference texts, a folder with the standard library, 64 bits, a new NumPy.

The notebooks run there with NumPy, Matplotlib and array-api-compat alone; tools/lite.py builds what readers open.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import zipfile

import array_api_strict
import numpy as np
import pytest

from fwl_ref import backend
from fwl_ref.lm import reading
from fwl_ref.lm.bar import NoBar
from fwl_ref.ops.embedding import embedding_fwd
from fwl_ref.ops.linear_attention import linear_attention_chunked_fwd
from tools import lite

pytestmark = pytest.mark.host("about Python in a browser")

# what NumPy 2.0 has not; Pyodide 0.27 brings that version
NEWER = {"cumulative_sum", "cumulative_prod", "unstack", "matvec", "vecmat"}
AS_THERE = """
import sys
class Absent:
    def find_spec(name, path, target=None):
        if name.partition(".")[0] in {absent}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent)
import numpy
for name in {newer}:
    vars(numpy).pop(name, None)
numpy.__all__ = [name for name in numpy.__all__ if name not in {newer}]
read = numpy.from_dlpack
numpy.from_dlpack = lambda x, /: read(x)  # it takes no device
"""
PROGRAM = """
{as_there}
{imports}
from fwl_ref.lm import shards
from fwl_ref.lm.bar import Bar
assert shards.blas_threads() == 1 and shards.blas_kernel() == "unknown"
assert list(Bar(range(3), desc="counting", unit="number")) == [0, 1, 2]
with Bar(total=3, initial=1, disable=True) as bar:
    bar.set_postfix_str("so far", refresh=False)
    bar.update(2)
assert bar.n == 3
import fwl_ref.__main__, fwl_ref.demo.run, fwl_ref.lm.train
print(sorted({{name.partition(".")[0] for name in sys.modules}} & {absent!r}))
"""
ABSENT = {"tqdm", "threadpoolctl", "hypothesis", "cupy", "torch", "jax", "gguf", "safetensors", "tokenizers", "ml_dtypes", "pytest"}


def as_there() -> str:
    """What makes a process of this machine lack the same."""
    return AS_THERE.format(absent=ABSENT, newer=NEWER)


def imports() -> str:
    """Every import statement of the notebooks that names the package."""
    lines = set()
    for path in lite.NOTEBOOKS:
        for node in ast.walk(ast.parse(path.with_suffix(".py").read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fwl_ref"):
                lines.add(ast.unparse(node))
    return "\n".join(sorted(lines))


def test_the_package_and_all_that_notebooks_import_need_numpy_matplotlib_and_array_api_compat_alone():
    """In a process where everything else that is optional cannot be imported."""
    program = PROGRAM.format(as_there=as_there(), absent=ABSENT, imports=imports())
    assert program.count("from fwl_ref") > 40
    done = subprocess.run([sys.executable, "-c", program], cwd=lite.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


CELLS = """
import io, json
from contextlib import redirect_stdout
import matplotlib
matplotlib.use("Agg")
from matplotlib import pyplot
pyplot.show = lambda: pyplot.close("all")
scope = {"__name__": "__main__"}
for number, source in enumerate(json.load(sys.stdin)):
    with redirect_stdout(io.StringIO()):
        exec(compile(source, f"code cell {number}", "exec"), scope)
"""
QUICK = ("01", "02", "04", "06")  # a second or two each


@pytest.mark.parametrize(
    "path", [pytest.param(p, id=p.stem[:2], marks=() if p.stem.startswith(QUICK) else pytest.mark.slow) for p in lite.NOTEBOOKS]
)
def test_a_notebook_runs_without_all_that_a_browser_has_not(path):
    """Cell by cell, those that train for minutes left out, with NumPy cut down to what its version 2.0 has."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code" and "slow" not in c["metadata"].get("tags", [])]
    program = f"{as_there()}\nsys.path.insert(0, {str(lite.ROOT)!r})\n{CELLS}"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, input=json.dumps(code), cwd=path.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_arrays_come_home_where_numpy_cannot_be_told_the_device(monkeypatch):
    """Before 2.1 from_dlpack takes no keyword; the answer is the same."""
    x, read = array_api_strict.asarray([1.0, 2.0], device=array_api_strict.Device("device1")), np.from_dlpack
    monkeypatch.setattr(np, "from_dlpack", lambda x, /: read(x))
    assert np.array_equal(backend.to_numpy(x), [1.0, 2.0])


def test_a_bar_that_nobody_sees_passes_everything_on():
    """Also as an iterator in a ``with``, and with an error."""
    assert list(NoBar("abc", desc="letters")) == ["a", "b", "c"]
    with pytest.raises(KeyError), NoBar(total=2):
        raise KeyError


def test_rows_are_taken_with_integers_of_the_width_of_the_machine(monkeypatch):
    """int32 where addresses have 32 bits: NumPy there takes no int64. The values are the same."""
    table, tokens = np.arange(12.0).reshape(6, 2), np.asarray([[5, 0, 2]], dtype=np.uint8)
    assert backend.as_index(tokens).dtype == np.int64
    expected, _ = embedding_fwd(table, tokens)
    monkeypatch.setattr(backend.sys, "maxsize", 2**31 - 1)
    assert backend.as_index(tokens).dtype == np.int32
    found, _ = embedding_fwd(table, tokens)
    assert np.array_equal(found, expected) and np.array_equal(found, table[tokens])


def test_attention_on_a_strict_library_takes_with_integers_of_that_width_too(monkeypatch):
    """array_api_strict makes int64 everywhere; notebook 10 runs the block on it."""
    draw = np.random.default_rng(0)
    q, k, v = (array_api_strict.asarray(draw.standard_normal((1, 5, 2))) for _ in range(3))
    keep, take = array_api_strict.asarray(0.9), np.take
    (expected, _), _ = linear_attention_chunked_fwd(q, k, v, keep, None, 3)

    def narrow(a, indices, *args, **options):
        assert np.asarray(indices).dtype == np.int32
        return take(a, indices, *args, **options)

    monkeypatch.setattr(np, "take", narrow)
    monkeypatch.setattr(backend.sys, "maxsize", 2**31 - 1)
    (found, _), _ = linear_attention_chunked_fwd(q, k, v, keep, None, 3)
    assert bool(array_api_strict.all(found == expected))


def test_the_standard_library_is_read_out_of_an_archive(tmp_path, monkeypatch):
    """There it is one: the same documents under the same names, without the folders that are left out."""
    texts = {"one.py": "1\n", "json/two.py": "2\n", "json/data.txt": "no", "test/three.py": "3\n"}
    with zipfile.ZipFile(tmp_path / "python.zip", "w") as archive:
        for name, text in texts.items():
            archive.writestr(name, text)
    monkeypatch.setattr(reading.tempfile, "__file__", str(tmp_path / "python.zip" / "tempfile.py"))
    found = reading.read("stdlib")
    assert [(d.name, bytes(d.data)) for d in found.documents] == [("json/two.py", b"2\n"), ("one.py", b"1\n")]


def test_missing_reference_texts_are_named(monkeypatch):
    """Pyodide leaves pydoc_data out; the error says what to give instead."""
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(ValueError, match=r"(?s)came without.*pydoc_data.topics.*give 'stdlib'"):
        reading.read("topics")


# --- what readers open


@pytest.mark.parametrize("path", lite.NOTEBOOKS, ids=lambda p: p.stem[:2])
def test_a_notebook_in_the_browser_installs_the_package_and_is_otherwise_the_same(path):
    """One cell more, below the title; it names the wheels that are built."""
    committed = json.loads(path.read_text(encoding="utf-8"))
    there = lite.in_browser(committed)
    cells = there["cells"]
    assert [cells[0], *cells[2:]] == committed["cells"]
    line = next(line for line in cells[1]["source"].splitlines() if line.startswith("%pip"))
    assert re.fullmatch(r"%pip install -q( [\w-]+)+", line), "what else stands there is taken for a package"
    assert there["metadata"]["kernelspec"]["name"] == "python"
    assert json.loads(path.read_text(encoding="utf-8")) == committed


def test_the_reference_texts_travel_as_a_wheel(tmp_path):
    """It has the texts of this Python, under the name that is imported; the wheel has another, for Pyodide has a package of that one."""
    import pydoc_data.topics

    with zipfile.ZipFile(lite.write_texts(tmp_path)) as wheel:
        scope: dict = {}
        exec(wheel.read("pydoc_data/topics.py"), scope)
        about = next(name for name in wheel.namelist() if name.endswith("dist-info/METADATA"))
        assert f"Name: {lite.TEXTS}\n" in wheel.read(about).decode() and lite.TEXTS in lite.INSTALL.split()
    assert scope["topics"] == pydoc_data.topics.topics


def test_without_jupyterlite_the_build_says_what_to_install(tmp_path, monkeypatch):
    """Before anything is built."""
    monkeypatch.setattr(lite.sys, "prefix", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"pip install -e '\.\[site\]'"):
        lite.build(tmp_path / "lite")
    assert not list(tmp_path.iterdir())
