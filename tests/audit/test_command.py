"""``python -m fwl_ref audit``, and the PyTorch example."""

import importlib

import pytest

from fwl_ref.__main__ import main
from tests.conftest import notes

pytestmark = pytest.mark.host("the command line")

SOURCE = """
import numpy as np

def honest(tokens):
    counts, rows = np.ones(256), []
    for token in tokens[:-1]:
        counts[token] += 1
        rows.append(np.log(counts / counts.sum()))
    return np.array(rows)

def cheat(tokens):
    return honest(tokens) + np.eye(256)[tokens[1:]]

def wrong(tokens):
    return np.zeros(3)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a module of evaluators and a text."""
    (tmp_path / "audited_here.py").write_text(SOURCE)
    (tmp_path / "text.txt").write_text("the cat sat on the mat. " * 40)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_the_exit_status_says_whether_it_leaks(folder, capsys):
    """0 and what was checked; 1 and the finding in words."""
    assert main(["audit", "audited_here:honest", "--data", "text.txt", "--bytes", "64"]) == 0
    out = capsys.readouterr().out
    assert "64 bytes of text.txt" in out and "no leak found" in out and "checked:" in out
    assert main(["audit", "audited_here:cheat", "--data", "text.txt", "--bytes", "64", "--seed", "1"]) == 1
    out = capsys.readouterr().out
    assert "own_label: row 0 changes with its label" in out and "seed 1" in out
    assert main(["audit", "audited_here:cheat", "--data", "text.txt", "--bytes", "64", "--tolerance", "1.5"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["audited_here", "--data", "text.txt"], "must be named MODULE:FUNCTION, got 'audited_here'"),
        (["audited_here:absent", "--data", "text.txt"], "'audited_here' has no 'absent'"),
        (["nowhere_at_all:f", "--data", "text.txt"], "no module 'nowhere_at_all'"),
        (["audited_here:honest", "--data", "absent.txt"], "absent.txt"),
        (["audited_here:honest", "--data", "text.txt", "--bytes", "0"], "--bytes must be at least 1, got 0"),
        (["audited_here:honest", "--data", "text.txt", "--bytes", "8"], "at least 16 tokens"),
        (["audited_here:honest", "--data", "text.txt", "--vocabulary", "9"], "give the evaluator's vocabulary"),
        (["audited_here:wrong", "--data", "text.txt"], "row i scores token i + 1"),
    ],
)
def test_what_cannot_be_audited_is_one_line(folder, capsys, words, message):
    """Exit status 2."""
    assert main(["audit", *words]) == 2
    assert message in capsys.readouterr().err


def test_the_pytorch_example_is_told_from_its_cheat():
    """Ten lines around a model of torch; skipped, and said, where torch is absent."""
    try:
        importlib.import_module("torch")
    except ImportError as error:
        notes["examples/audit_pytorch.py"] = f"PyTorch is not installed ({error}): pip install torch==2.13.0"
        pytest.skip(notes["examples/audit_pytorch.py"])
    from examples import audit_pytorch
    from fwl_ref.audit import audit_scores

    document = b"Is this score legal? It is if every token was scored before the update that saw it. " * 3
    assert audit_scores(audit_pytorch.evaluator, document).ok
    (finding,) = audit_scores(audit_pytorch.cheat, document).findings
    assert (finding.kind, finding.reach[1] - finding.reach[0]) == ("update_before_score", 32)
