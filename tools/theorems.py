"""Write docs/theorems.md: every theorem, its tests, how many comparisons they make and the largest
error seen; and every update rule.

    python tools/theorems.py [--profile thorough]

Runs the tests of the theorems with the comparisons of ``tests/tolerances.py`` and ``check_adjoint``
watched: what a passed comparison measured is noted under the test that made it. Negative controls
compare nothing that should be small, so they show no error.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import os
import platform
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "theorems.md"
FOLDERS = ("tests/theorems", "tests/ops", "tests/test_gradcheck.py")
HEADING = re.compile(r"^# Theorem (\d+)")  # a section of a file in tests/theorems
MENTION = re.compile(r"[Tt]heorem (\d+)")  # elsewhere: in a docstring
# theorems that a file is about, where neither says it; 0 has no number
SUBJECTS = {"test_19_teeth.py": [19], "test_optimizers_are_masks.py": [0]}
TITLES = {
    1: "the block is the slow block at p - eta sum of past gradients",
    2: "it is true SGD for tokens 0 and 1, and for two segments",
    3: "elsewhere it differs by O(eta^2), with a known coefficient",
    4: "for a loss linear in the parameters stale is sequential",
    5: "the slope of a loss in eta is a row sum of the tangent kernel",
    6: "parallel = chunked = recurrent",
    7: "pieces with the state carried = the whole; states add",
    8: "predict and reveal = the full pass",
    9: "nothing fast, nothing written, nothing there",
    10: "the future does not move a bit",
    11: "leaks through masks, sums and overflow are caught",
    12: "what the normalizers do, exactly",
    13: "weights count; sequences are independent",
    14: "the order of the past does not matter",
    15: "rotations, scalings, permutations",
    16: "every backward is an adjoint, every second backward too",
    17: "gradients agree between all forms",
    18: "the first-order switch",
    19: "the checks reject wrong programs",
    0: "a linear optimizer on stale gradients is a mask, and no other is",
}


class Tally:
    """What was measured under each test."""

    def __init__(self) -> None:
        self.current, self.seen = "", {}

    def note(self, error: float, count: int = 1) -> None:
        total, worst = self.seen.get(self.current, (0, 0.0))
        self.seen[self.current] = (total + count, max(worst, error))

    def pytest_sessionstart(self) -> None:
        """Before anything is collected."""
        watch(self)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Any:
        """Everything noted from here on belongs to this test, parameters left out."""
        self.current = f"{item.path.relative_to(ROOT).as_posix()}::{item.originalname}"
        self.seen.setdefault(self.current, (0, 0.0))
        return (yield)


def watch(tally: Tally) -> None:
    """Wrap the comparisons before any test module imports them."""
    sys.path.insert(0, str(ROOT))
    from fwl_ref import gradcheck
    from tests import tolerances
    from tests.theorems import compare

    def after(module: Any, name: str, measure: Callable[..., tuple[float, int]]) -> None:
        original = getattr(module, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)  # raises if the comparison fails: then nothing is noted
            tally.note(*measure(result, *args, **kwargs))
            return result

        setattr(module, name, watched)

    after(
        tolerances,
        "assert_close",
        lambda _, actual, expected, rtol=0, what="", scale=0.0: (tolerances.relative_error(actual, expected, scale), 1),
    )
    after(tolerances, "assert_bitwise", lambda *_, **__: (0.0, 1))
    after(compare, "assert_equivalent", lambda _, case: (max(compare.equivalence_error(case)), 4))
    after(gradcheck, "check_adjoint", lambda result, *_, **__: (result.error, result.checked))
    compare.assert_bitwise = tolerances.assert_bitwise


def tests_by_theorem() -> dict[int, list[tuple[str, str]]]:
    """Theorem -> (test, first line of its docstring), read from the sources in the order in which
    they stand.
    """
    found: dict[int, list[tuple[str, str]]] = {number: [] for number in TITLES}
    paths = [p for folder in FOLDERS for p in ([ROOT / folder] if folder.endswith(".py") else sorted((ROOT / folder).glob("test_*.py")))]
    for path in paths:
        source = path.read_text(encoding="utf-8")
        headings = [(i, int(m[1])) for i, line in enumerate(source.splitlines(), 1) if (m := HEADING.match(line))]
        for node in ast.parse(source).body:
            if not (isinstance(node, ast.FunctionDef) and node.name.startswith("test_")):
                continue
            text = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
            above = [number for line, number in headings if line < node.lineno]
            numbers = above[-1:] or [int(n) for n in MENTION.findall(text)] or SUBJECTS.get(path.name, [])
            for number in numbers:
                found[number].append((f"{path.relative_to(ROOT).as_posix()}::{node.name}", text))
    return found


def page(tally: Tally, profile: str) -> str:
    """The page as Markdown."""
    lines = [
        "# Theorems and their tests",
        "",
        f"Written by `python tools/theorems.py`, Hypothesis profile {profile}, Python {platform.python_version()}, NumPy {np.__version__};",
        "float64 unless a test says otherwise. *Comparisons* counts every passed comparison of two arrays, or of one leaf's derivative;",
        "*largest error* is the largest of their relative errors. A test without comparisons is a negative control, or asserts something",
        "else than closeness. Tolerances: `tests/tolerances.py`.",
        "",
    ]
    for number, tests in tests_by_theorem().items():
        lines += [
            f"## {f'{number}. ' if number else ''}{TITLES[number][0].upper()}{TITLES[number][1:]}",
            "",
            "| test | comparisons | largest error |",
            "|:--|--:|--:|",
        ]
        for name, _ in tests:
            count, worst = tally.seen.get(name, (0, 0.0))
            lines.append(f"| `{name.split('::')[1]}` | {count or ''} | {f'{worst:.0e}' if count else ''} |")
        lines.append("")
    return "\n".join(lines)


SIGNATURE = re.compile(r"^[^ ]+->[^ ]+ +(.*?)(?: +\([A-Z]\.\d+\))?$")  # shapes, formula, label
TOKENS, CHUNK, WIDTH, SEEDS = 64, 16, 3, 10


def rules_page() -> str:
    """What each rule is, read off its functions; how far its forms are apart and what they cost, by
    running them.
    """
    from benchmarks.sides.ours import formed
    from fwl_ref.tree import leaves
    from tests.rules import one_matrix, several_arrays
    from tests.rules.table import Shape
    from tests.tolerances import relative_error

    rows = [
        "# Update rules",
        "",
        f"Written by the same command, by running the code: K = E = {WIDTH}, {TOKENS} tokens, chunks of {CHUNK}, strict reads, float64.",
        f"*Apart* is the largest relative difference between the recurrent form and the other, over outputs and states of {SEEDS} seeds;",
        "*products* are multiply-adds in matrix products per token, forward, recurrent and chunked (outer products of single tokens are",
        "not counted; formulas are in `fwl_ref/rules/README.md`). TTT is shown with mini-batches of one token.",
        "",
        "| rule | inner loss | update | state, one sequence | forms | apart | products |",
        "|:--|:--|:--|:--|:--|--:|--:|",
    ]
    families: dict[str, list] = {}
    for rule in [*one_matrix.RULES, *several_arrays.RULES]:
        families.setdefault(rule.name.split(",")[0], []).append(rule)
    for name, members in families.items():
        module = importlib.import_module(f"fwl_ref.rules.{name}")
        forms = [f for f in ("recurrent", "chunked", "dual", "stale") if hasattr(module, f"{name}_{f}_fwd")]
        shape = Shape(1, TOKENS, WIDTH, WIDTH)
        rule = next((m for m in members if m.name.endswith("token by token")), members[0])
        state = rule.state(shape, 0)
        shapes = ", ".join("x".join(map(str, a.shape[1:])) for a in leaves(state))
        if rule.chunked:
            others = [lambda *a, **k: rule.chunked[0](*a[:-1], a[-1], CHUNK, **k)]  # noqa: B023 called in this turn of the loop
        else:  # forms of TTT are rows of their own, with or without LayerNorm
            others = [m.recurrent[0] for m in members if m is not rule and m.name.split(",")[:2] == rule.name.split(",")[:2]]
        apart = 0.0
        for seed in range(SEEDS):
            tokens, state = rule.tokens(shape, seed), rule.state(shape, seed)
            expected = leaves(rule.recurrent[0](*tokens, state, read="strict")[0])
            found = [leaves(f(*tokens, state, read="strict")[0]) for f in others]
            apart = max([apart, *(relative_error(a, b) for f in found for a, b in zip(f, expected, strict=True))])
        given = (*rule.tokens(shape, 0), rule.state(shape, 0))
        counts = [formed(lambda: f(*given, read="strict")) for f in (rule.recurrent[0], *others)]  # noqa: B023 called at once
        formulas = [formula(getattr(module, f"{name}_{f}")) for f in ("loss", "recurrent_fwd")]
        cost = ", ".join(f"{c / TOKENS:,.0f}" for c in counts)
        rows.append(f"| `{name}` | {' | '.join(formulas)} | {shapes} | {', '.join(forms)} | {apart:.0e} | {cost} |")
    return "\n".join([*rows, ""])


def formula(f: Callable) -> str:
    """What stands between the shapes and the label of a docstring's first paragraph."""
    found = SIGNATURE.match(" ".join(f.__doc__.split("\n\n")[0].split()))
    return f"`{found[1]}`".replace("|", "\\|") if found else ""


def main() -> int:
    """Run the tests, write the page; the exit code is pytest's."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--profile", default="thorough")
    args = parser.parse_args()
    os.environ["HYPOTHESIS_PROFILE"] = args.profile
    os.chdir(ROOT)
    tally = Tally()
    code = pytest.main([*FOLDERS, "-q", "-p", "no:cacheprovider"], plugins=[tally])
    if code == 0:
        with tempfile.NamedTemporaryFile("w", dir=PAGE.parent, delete=False, encoding="utf-8") as file:
            file.write(page(tally, args.profile) + rules_page())
        Path(file.name).chmod(0o644)
        Path(file.name).replace(PAGE)
        print(f"written: {PAGE.relative_to(ROOT)}")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
