"""The mutation tool: what it makes are mutants, it tells who notices them, and its page is about
the present core.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache

import pytest

from tools import mutate

pytestmark = pytest.mark.host("about the sources and the mutation tool")


@cache
def core() -> dict[str, list[mutate.Mutant]]:
    """All mutants of the core; making them takes a second."""
    return {module: mutate.mutants(module) for module in mutate.CORE}


def test_mutants_are_programs_that_differ_from_the_module_on_one_line():
    """Every mutant compiles, is none of the others and has one line that is not the module's."""
    original = ast.unparse(ast.parse(mutate.source_of(mutate.Mutant("tree", 0, mutate.UNCHANGED))))
    sources = [mutate.source_of(m) for m in mutate.mutants("tree")]
    assert len(set(sources)) == len(sources) > 20 and original not in sources
    for source in sources:
        compile(source, "mutant", "exec")
        assert sum(a != b for a, b in zip(original.splitlines(), source.splitlines(), strict=True)) == 1


def test_every_kind_of_change_is_made():
    """Operators, comparisons, numbers, signs, branches, statements, dropped and exchanged calls,
    exchanged results.
    """
    module = """
def f(x, y, flag):
    x += y
    if flag < 2:
        x = -x
    z = xp.where(x > y, x, y) if flag else xp.matrix_transpose(x)
    return z * 0.5, g(x, y)
"""
    found = {ast.unparse(new).split("\n")[0] for node in ast.walk(ast.parse(module)) for new in mutate.changes(node)}
    assert found == {
        "x -= y", "pass", "if True:", "if False:", "flag <= 2", "3", "x", "x >= y", "xp.where(x > y, y, x)", "xp.where(x, x > y, y)",
        "xp.where(x > y, x, y)", "xp.matrix_transpose(x)", "z / 0.5", "0.635", "g(y, x)", "return (g(x, y), z * 0.5)",
    }  # fmt: skip


@pytest.mark.slow
def test_who_notices_is_told_from_who_does_not():
    """A fresh process: the module as it is passes its own tests, a sum that starts at 1 does not;
    other tests see no difference.
    """
    program = (
        "from tools import mutate as m\n"
        "m.CORE = {'tree': ['tests/test_tree.py']}\n"
        "started = next(x for x in m.mutants('tree') if 'total = 0' in x.what)\n"
        "print(m.survives(m.Mutant('tree', 0, m.UNCHANGED)), m.survives(started))\n"
        "m.CORE = {'tree': ['tests/lm/test_data.py::test_split_follows_the_hash_of_the_name']}\n"
        "print(m.survives(started))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=mutate.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False", "True"]


def test_an_explanation_is_about_a_mutant_of_the_present_source():
    """Each line under a reason is a mutant, word for word; none is explained twice."""
    listed = [line for line in mutate.EQUIVALENT.read_text(encoding="utf-8").splitlines() if line and not line.startswith("# ")]
    assert len(listed) == len(set(listed)) == len(mutate.explanations())
    assert set(listed) <= {m.key for found in core().values() for m in found}


def test_the_page_counts_the_mutants_of_the_present_source_and_leaves_none_open():
    """docs/mutation.md is written by tools/mutate.py --page; run it, and the modules that changed
    before it, if this fails. What was not tried is counted, and listed for the next run.
    """
    row = re.compile(r"^\| `([\w.]+)` \| (\d+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", re.MULTILINE)
    rows = {name: tuple(map(int, counts)) for name, *counts in row.findall(mutate.PAGE.read_text(encoding="utf-8"))}
    assert {name: counts[0] for name, counts in rows.items()} == {module: len(found) for module, found in core().items()}
    for name, (every, noticed, explained, open_, untried) in rows.items():
        assert every == noticed + explained + untried and open_ == 0, name
    untried = mutate.UNTRIED.read_text(encoding="utf-8").splitlines()
    assert len(untried) == len(set(untried)) == sum(counts[-1] for counts in rows.values())
    assert set(untried) <= {m.key for found in core().values() for m in found}


def test_the_core_names_modules_and_tests_that_exist():
    """A misspelt file would leave a module to fewer tests than it seems."""
    for module, tests in mutate.CORE.items():
        assert mutate.path_of(module).is_file()
        assert all((mutate.ROOT / test.split("::")[0]).exists() for test in tests)
