"""``python -m fwl_ref kernel``, the pytest fixture, and what is said when something is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fwl_ref.__main__ import main
from fwl_ref.testing import check_kernel
from fwl_ref.testing.command import imported

pytestmark = pytest.mark.host("the command line and files")
ROOT = Path(__file__).resolve().parents[2]
KERNELS = '''
import numpy as np

def delta(q, k, v, beta, state=None, forget=0.0):
    """(B,H,T,K) heads, a state that is read after the write."""
    S = np.zeros((*k.shape[:2], k.shape[-1], v.shape[-1]), k.dtype) if state is None else state
    out = []
    for t in range(q.shape[2]):
        S = (1 - forget) * S
        error = v[:, :, t] - (k[:, :, t, :, None] * S).sum(-2)
        S = S + k[:, :, t, :, None] * (beta[:, :, t, None] * error)[:, :, None, :]
        out.append((q[:, :, t, :, None] * S).sum(-2))
    return np.stack(out, 2), S

def forgets(*inputs):
    return delta(*inputs, forget=0.1)

number = 3
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of somebody's with kernels in it."""
    (tmp_path / "their_kernels.py").write_text(KERNELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "their_kernels", raising=False)
    return tmp_path


def test_the_command_accepts_and_rejects(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """0 and a line that says what was compared; 1, a sentence and a file."""
    words = ["--rule", "delta", "--layout", "BHTK", "--chunk", "4", "--examples", "12"]
    assert main(["kernel", "their_kernels:delta", *words]) == 0
    assert capsys.readouterr().out.strip() == "delta: 12 cases agree in out, state_out"
    assert main(["kernel", "their_kernels:delta", *words, "--dtype", "float32", "--sizes", "K=4,E=2"]) == 0
    capsys.readouterr()
    assert main(["kernel", "their_kernels:forgets", *words, "--save", "failing"]) == 1
    said = capsys.readouterr().out
    assert "smallest case: Plan(" in said and "failing/delta_B1T" in said
    assert list((folder / "failing").glob("*.npz"))


def test_bad_input_is_refused_in_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """2, and what to do."""
    for name, options, message in [
        ("their_kernels", [], "expected MODULE:FUNCTION"),
        ("their_kernels:gamma", [], "their_kernels has no function gamma"),
        ("their_kernels:number", [], "their_kernels has no function number"),
        ("no_such_module:f", [], "no_such_module cannot be imported"),
        ("their_kernels:delta", ["--sizes", "K"], "--sizes must look like K=64,E=64"),
        ("their_kernels:delta", ["--autograd"], "--autograd needs --library torch or jax"),
        ("their_kernels:delta", ["--log-gates"], "delta has no gate that is taken as a logarithm"),
    ]:
        assert main(["kernel", name, "--rule", "delta", *options]) == 2, name
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1


def test_a_module_of_the_current_folder_is_found(folder: Path) -> None:
    assert imported("their_kernels:delta").__name__ == "delta"


@pytest.mark.slow
def test_the_fixture_is_the_function_and_keeps_the_case(folder: Path) -> None:
    """One line in conftest.py; a failing case lies in the test's temporary folder."""
    (folder / "conftest.py").write_text('pytest_plugins = ["fwl_ref.testing.plugin"]\n')
    (folder / "test_theirs.py").write_text(
        "from their_kernels import delta, forgets\n\n\n"
        "def test_right(check_kernel):\n    check_kernel('delta', delta, layout='BHTK', chunk=4, examples=10)\n\n\n"
        "def test_wrong(check_kernel):\n    check_kernel('delta', forgets, layout='BHTK', chunk=4, examples=10)\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--basetemp", str(folder / "tmp"), "."]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert "1 failed, 1 passed" in done.stdout, done.stdout
    assert "KernelError: delta: " in done.stdout
    assert len(list((folder / "tmp").rglob("delta_*.npz"))) == 1


def test_a_missing_hypothesis_is_said_and_importing_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an extra of the project."""
    code = "import sys; sys.modules['hypothesis'] = None; import fwl_ref.testing, fwl_ref.testing.command, fwl_ref.__main__"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    with pytest.raises(RuntimeError, match=r"pip install hypothesis"):
        check_kernel("delta", lambda *a: a[0])
