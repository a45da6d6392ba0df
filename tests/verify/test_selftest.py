"""The check that an installation runs on itself: it passes where all is well, says FAIL where it is
not, and always leaves a report.
"""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import array_api_strict
import numpy as np
import pytest

from fwl_ref.__main__ import main
from fwl_ref.backend import backend_target
from fwl_ref.demo import run as demo
from fwl_ref.fwl import fast_block_fwd
from fwl_ref.ops.linear_attention import linear_attention_fwd
from fwl_ref.tree import tree_map
from fwl_ref.verify import device, runs
from fwl_ref.verify.measure import ALLOWED, DTYPES, Finding
from fwl_ref.verify.report import markdown
from fwl_ref.verify.selftest import run_checks
from fwl_ref.verify.theorems import equivalence, forms, gradients, table, teeth
from fwl_ref.verify.theorems.table import THEOREMS, findings
from tests.tolerances import RTOL, float32_bound

pytestmark = pytest.mark.host("moves arrays itself, and writes files")

STRICT = array_api_strict.zeros(0).to_device(array_api_strict.Device("device1"))


def failed(target: Any) -> set[tuple[int, str]]:
    """Numbers and precisions of the theorems that do not hold."""
    return {(number, dtype) for number, dtype, finding in findings(target) if not finding.ok}


def only(numbers: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The other theorems find nothing: all nineteen take seconds, and a mutant is about a few of them."""
    kept = (f if number in numbers else lambda *_: iter(()) for number, f in enumerate(THEOREMS, start=1))
    monkeypatch.setattr(table, "THEOREMS", tuple(kept))


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str]:
    """The command, run once: its folder, its exit code and what it printed."""
    folder, said = tmp_path_factory.mktemp("check") / "new", io.StringIO()
    with redirect_stdout(said):
        code = main(["check", "--no-demo", "--out", str(folder)])
    return folder, code, said.getvalue()


def test_every_theorem_is_checked_in_both_precisions_and_holds(checked: tuple[Path, int, str]) -> None:
    """1 to 19; the third is below float32's rounding."""
    found = strict_json(checked[0] / "check-numpy.json")["findings"]
    assert {(row["theorem"], row["dtype"]) for row in found} == {(n, d) for n in range(1, 20) for d in DTYPES} - {(3, "float32")}
    assert len(found) > 60
    for row in found:
        assert row["ok"], row


@pytest.mark.parametrize("theorem", [f for f in THEOREMS if f not in (gradients.adjoints, teeth.teeth)], ids=lambda f: f.__name__)
def test_the_checks_themselves_run_on_any_library_and_device(theorem: Any) -> None:
    """All but the two that are mostly gradient checks, which are slow there; the suite runs those
    on that library.
    """
    for dtype in DTYPES:
        assert all(finding.ok for finding in theorem(STRICT, dtype))


def test_what_is_allowed_is_what_the_suite_allows() -> None:
    """The two tolerances are those of tests/tolerances.py."""
    assert ALLOWED["float64"] == RTOL and ALLOWED["float32"] == pytest.approx(float32_bound(terms=64, stages=32), rel=1e-4)
    assert len(THEOREMS) == 19 and all(f.__doc__.startswith(f"{n}. ") for n, f in enumerate(THEOREMS, start=1))


def test_a_number_that_is_none_never_passes() -> None:
    """Neither as an error nor as a difference that must be seen."""
    nan = float("nan")
    assert not Finding("", nan, 1.0).ok and not Finding("", nan, 0.0, True).ok
    assert (
        Finding("", 1.0, 1.0).ok and Finding("", 1.0, 1.0, True).ok and not Finding("", 2.0, 1.0).ok and not Finding("", 0.5, 1.0, True).ok
    )


# A wrong program is noticed, and by the theorem that it breaks
# ---------------------------------------------------------------------


def scaled(position: int, factor: float) -> Any:
    """fast_block_fwd with one of its results off by a factor."""

    def mutant(*args: Any) -> Any:
        outputs, res = fast_block_fwd(*args)
        return tuple(tree_map(lambda a: a * factor, y) if i == position else y for i, y in enumerate(outputs)), res

    return mutant


def inclusive(q: Any, k: Any, v: Any, keep: Any, state: Any = None, chunk: Any = None) -> Any:
    (out, after), res = linear_attention_fwd(q, k, v, keep, state)
    return (out + np.sum(q * k, axis=-1, keepdims=True) * v, after), res


def leaky(x: Any, labels: Any, weights: Any, *rest: Any) -> Any:
    """A block that lets the last token's weight into everything, by a hair."""
    (logits, slow, state), res = fast_block_fwd(x, labels, weights, *rest)
    return (logits * (1 + 1e-13 * weights[:, -1:, None]), slow, state), res


def none_at_all(*_: Any) -> Any:
    return 1 / 0


class Mutant(NamedTuple):
    """A function of the package, what stands in its place, and the claims that must fail."""

    function: str
    replacement: Any
    broken: set[tuple[int, str]]  # at least these theorems, in these precisions


MUTANTS = {
    "logits off by a thousandth": Mutant(
        "fast_block_fwd",
        scaled(0, 1.001),
        {(1, "float64"), (1, "float32"), (8, "float64"), (9, "float64")},
    ),
    "logits off by a millionth": Mutant("fast_block_fwd", scaled(0, 1 + 1e-6), {(1, "float64")}),
    "state off by a millionth": Mutant("fast_block_fwd", scaled(2, 1 + 1e-6), {(8, "float64")}),
    "inclusive mask in chunks": Mutant("linear_attention_chunked_fwd", inclusive, {(6, "float64"), (6, "float32")}),
    "a leak of the future": Mutant("fast_block_fwd", leaky, {(10, "float64")}),
    "gradients of another block": Mutant("fast_block_bwd", none_at_all, {(16, "float64"), (18, "float32"), (5, "float64")}),
}


def install(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Into every file of the self-test that uses the function; the package itself stays right."""
    users = [module for module in (runs, equivalence, forms) if hasattr(module, mutant.function)]
    assert users
    for module in users:
        monkeypatch.setattr(module, mutant.function, mutant.replacement)


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_program_fails_the_check(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each mutant fails at least the theorems it is about. One that breaks down is a finding,
    and the rest is still checked.
    """
    mutant = MUTANTS[name]
    only({number for number, _ in mutant.broken}, monkeypatch)
    install(mutant, monkeypatch)
    assert failed(np.zeros(0)) >= mutant.broken


# The report
# ------------------------------------------------------------------------------------------------------------------------


def strict_json(path: Path) -> dict[str, Any]:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_the_command_passes_here_and_writes_its_report(checked: tuple[Path, int, str]) -> None:
    """Exit code 0, a line per claim with error and bound, the same in Markdown and JSON, with
    versions and machine.
    """
    folder, code, out = checked
    assert code == 0
    lines = [line for line in out.splitlines() if line.startswith("PASS")]
    assert f"{len(lines)} of {len(lines)} claims hold" in out and "FAIL" not in out
    found, text = strict_json(folder / "check-numpy.json"), (folder / "check-numpy.md").read_text()
    assert found["failed"] == 0 and len(found["findings"]) == len(lines) and found["demo"] is None and not found["timings"]
    assert all(line in text for line in lines)
    for word in ("numpy " + np.__version__, "python", "fwl_ref", "machine", "cores"):
        assert word.split()[0] in text and word in out


def test_the_command_fails_where_a_claim_does(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 1; FAIL beside the claim, what went wrong in words, and a report all the same."""
    mutant = MUTANTS["gradients of another block"]
    only({1, *(number for number, _ in mutant.broken)}, monkeypatch)
    install(mutant, monkeypatch)
    assert run_checks("numpy", tmp_path, demo=False) == 1
    out, found = capsys.readouterr().out, strict_json(tmp_path / "check-numpy.json")
    assert "ZeroDivisionError: division by zero" in out and found["failed"] == out.count("FAIL") > 3 and "PASS" in out
    assert "ZeroDivisionError" in (tmp_path / "check-numpy.md").read_text()


RESULTS = {"bits_per_byte": {"static": 5.0}, "relative_time": {"static": 1.0}, "equivalence_max_error": 1e-14, "seconds": 60.0}


@pytest.mark.parametrize(("error", "code"), [(1e-14, 0), (1e-6, 1), (float("nan"), 1), (None, 1)])
def test_the_quick_demo_is_part_of_it(error: float | None, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the backend asked for, in a folder of its own, with models that are trained there; an equivalence
    that does not hold, or a demo that breaks down, fails the check.
    """
    calls = []

    def quick(out: Path, **options: Any) -> dict[str, Any]:
        calls.append((out.name, options))
        if error is None:
            raise RuntimeError("no such kernel")
        return RESULTS | {"equivalence_max_error": error, "more": 1}

    monkeypatch.setattr(demo, "run_demo", quick)
    monkeypatch.setattr(table, "THEOREMS", THEOREMS[:1])
    assert run_checks("numpy", tmp_path) == code
    assert calls == [("check-numpy-demo", {"quick": True, "settings": demo.QUICK._replace(shipped=False), "backend": "numpy"})]
    text = (tmp_path / "check-numpy.md").read_text()
    assert ("no such kernel" in text) == (error is None) and ("5.000 bits per byte" in text) == (error is not None)


def test_times_and_memory_are_in_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row per size: seconds of both libraries, ratios, bytes stated and taken. Here both are
    NumPy, and the ratio is about one.
    """
    rows = list(device.timings(np.zeros(0), "numpy", sizes=((64, 16, 1), (64, 24, 2)), rounds=3))
    assert [(row.width, row.window, row.batch) for row in rows] == [(64, 16, 1), (64, 24, 2)]
    assert all(min(row[3:7]) > 0 and row.stated > 0 and 0.05 < row.step / row.numpy_step < 20 for row in rows)
    found = {"backend": "cupy", "versions": {"cupy": "99"}, "date": "today", "seconds": 1.0, "failed": 0, "broken": [], "findings": []}
    text = markdown(found | {"timings": [row._asdict() for row in rows], "demo": RESULTS})
    assert text.count("| 64 |") == 2 and "cupy: 99" in text and "static: 5.000 bits per byte" in text


@pytest.mark.gpu
def test_the_check_passes_on_a_gpu(tmp_path: Path) -> None:
    """Every theorem in both precisions, and steps that do not wait."""
    assert not failed(backend_target("cupy"))
    assert all(finding.ok for finding in device.without_waiting(backend_target("cupy"), "cupy"))
