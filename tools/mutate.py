"""Mutation testing of the numerical core: change one thing at a time and see whether a test notices.

    python tools/mutate.py [MODULE ...] [--jobs 2] [--sample N]     e.g. ops.dense fwl; default: the whole core
    python tools/mutate.py --page                                   write docs/mutation.md from the results so far

A mutant is one changed operator, comparison, number, branch or statement, or two exchanged neighbours in a call or a returned tuple. Each
runs in a forked process, against the tests named in ``CORE``, until one fails. Results are kept in ``results/mutation.json``, so a run can
be interrupted and resumed; a module whose source has changed starts again. Survivors that no test can kill are explained in ``EQUIVALENT``.
"""

from __future__ import annotations

import argparse
import ast
import copy
import hashlib
import importlib.abc
import importlib.util
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "fwl_ref"
RESULTS = ROOT / "results" / "mutation.json"
PAGE = ROOT / "docs" / "mutation.md"
SECONDS = 120  # a mutant that loops for ever is killed, and counts as noticed

THEOREMS = [f"tests/theorems/test_{n}.py" for n in ("1_equivalence", "2_forms", "3_causality", "4_weights_and_symmetry", "5_gradients")]
LAWS, RULES, MASKS = ["tests/ops/test_laws.py", THEOREMS[-1]], ["tests/rules"], "tests/theorems/test_7_optimizers_are_masks.py"
CORE: dict[str, list[str]] = {  # module -> tests, the quickest to fail first
    "ops.dense": LAWS,
    "ops.squared_relu": LAWS,
    "ops.gelu": LAWS,
    "ops.layernorm": LAWS,
    "ops.cross_entropy": LAWS,
    "ops.embedding": LAWS,
    "ops.rotary": [*LAWS, "tests/test_model.py"],
    "ops.attention": [*LAWS, "tests/test_model.py", "tests/test_cost.py"],
    "ops.linear_attention": ["tests/ops/test_linear_attention.py", *LAWS],
    "ops.masked_attention": ["tests/ops/test_masked_attention.py", *LAWS],
    "slow_block": ["tests/test_model.py", *THEOREMS],
    "transformer": ["tests/test_model.py", *THEOREMS],
    "fwl": [*THEOREMS, MASKS],
    "stream": ["tests/theorems/test_2_forms.py", MASKS, "tests/test_bad_input.py"],
    "dynamic_evaluation": ["tests/test_dynamic_evaluation.py", *THEOREMS[:1], "tests/test_bad_input.py"],
    "optim": [
        "tests/test_train.py",
        "tests/test_bad_input.py",
        "tests/test_backend.py::test_clipping_by_a_factor_is_clipping_by_a_decision",
    ],
    "optimizers": ["tests/test_optimizers.py", MASKS],
    **{f"rules.{p.stem}": RULES for p in sorted((PACKAGE / "rules").glob("*.py")) if p.stem != "__init__"},
}

# Mutants that compute the same function, or differ where the contract says nothing: what the report prints -> why.
EQUIVALENT: dict[str, str] = {
    "optim: `factor = limit / xp.where(norm > limit, norm, limit)`: `norm > limit` -> `norm >= limit`": (
        "at norm = limit the factor is 1 either way"
    ),
    "ops.masked_attention: `if not is_host(mask):`: `if not is_host(mask):` -> `if False:`": (
        "on NumPy no mask is elsewhere; the strict library notices"
    ),
    "ops.squared_relu: `r = xp.where(x < 0, xp.zeros_like(x), x)`: `x < 0` -> `x <= 0`": "0 is replaced by 0",
    "ops.layernorm: `g_dy = g_dbias + xp.zeros_like(dy)`: `g_dbias + xp.zeros_like(dy)` -> `g_dbias - xp.zeros_like(dy)`": (
        "0 is subtracted"
    ),
    "ops.embedding: `onehot = index[:, None] == xp.reshape(res.tokens, (1, -1))`: `1` -> `2`": (
        "of -1 in a shape: NumPy reads any negative size as -1"
    ),
    "ops.embedding: `y = xp.take(table, xp.reshape(tokens, (-1,)), axis=0)`: `1` -> `2`": (
        "of -1 in a shape: NumPy reads any negative size as -1"
    ),
    "ops.attention: `first = 0 if window is None else max(0, past + start - window + 1)`: `past + start` -> `past - start`": (
        "more columns are formed, and the mask hides them: slower, the same function; tests/test_cost.py counts the columns"
    ),
    "ops.linear_attention: `outs = [xp.zeros_like(v[:, :0, :])]`: `xp.zeros_like(v[:, :0, :])` -> `xp.ones_like(v[:, :0, :])`": (
        "the array is empty"
    ),
    "ops.linear_attention: `slope = n * xp.pow(keep, xp.where(n > 0, n - 1, xp.zeros_like(n)))`: "
    "`xp.zeros_like(n)` -> `xp.ones_like(n)`": "at n = 0 the power is multiplied by n",
}


class Mutant(NamedTuple):
    module: str
    line: int
    what: str  # the changed line, before and after
    source: str

    @property
    def key(self) -> str:
        return f"{self.module}: {self.what}"


OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult, ast.FloorDiv: ast.Mult}
COMPARISONS = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.Is: ast.IsNot, ast.IsNot: ast.Is}
SYMMETRIC = {"namespace", "max", "min", "maximum", "minimum"}  # exchanging their arguments changes nothing
DROPPED = {"matrix_transpose", "flip"}  # calls replaced by their argument
SWAPPED = {"max": "min", "min": "max", "zeros_like": "ones_like", "ones_like": "zeros_like", "sum": "mean", "mean": "sum"}


def changes(node: ast.AST) -> Iterator[ast.AST]:
    """Every way to change this one node."""

    def made(new: ast.AST) -> ast.AST:
        return ast.copy_location(new, node)

    if isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in OPERATORS:
        other = copy.deepcopy(node)
        other.op = OPERATORS[type(node.op)]()
        yield other
    if isinstance(node, ast.AugAssign):
        yield made(ast.Pass())
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield made(copy.deepcopy(node.operand))
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
        other = copy.deepcopy(node)
        other.ops[0] = COMPARISONS[type(node.ops[0])]()
        yield other
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        yield made(ast.Constant(node.value + 1 if type(node.value) is int else node.value * 1.25 + 0.01))
    if isinstance(node, ast.IfExp):
        yield made(copy.deepcopy(node.body))
        yield made(copy.deepcopy(node.orelse))
    if isinstance(node, ast.If):
        for value in (True, False):
            other = copy.deepcopy(node)
            other.test = made(ast.Constant(value))
            yield other
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        name = node.func.attr
        if name in DROPPED:
            yield made(copy.deepcopy(node.args[0]))
        if name in SWAPPED:
            other = copy.deepcopy(node)
            other.func.attr = SWAPPED[name]
            yield other
        if name == "where":
            other = copy.deepcopy(node)
            other.args[1], other.args[2] = other.args[2], other.args[1]
            yield other
    if isinstance(node, ast.Call):
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if name not in SYMMETRIC and not name.startswith("check"):
            yield from exchanged(node, lambda n: n.args, stop=1 if name == "where" else None)  # of where, done above
    if isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple):
        yield from exchanged(node, lambda n: n.value.elts)


def exchanged(node: ast.AST, items: Callable[[ast.AST], list[ast.AST]], stop: int | None = None) -> Iterator[ast.AST]:
    """Exchange each two neighbours of ``items(node)`` that differ."""
    for i in range(len(items(node)) - 1)[:stop]:
        other = copy.deepcopy(node)
        both = items(other)
        both[i], both[i + 1] = both[i + 1], both[i]
        if ast.dump(both[i]) != ast.dump(both[i + 1]) and not any(isinstance(b, ast.Starred | ast.JoinedStr) for b in both[i : i + 2]):
            yield other


def skipped(node: ast.AST) -> bool:
    """Not mutated: annotations, imports, error messages, docstrings, and checks at the boundary that only raise."""
    if isinstance(node, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom | ast.ClassDef | ast.arg):
        return True
    return isinstance(node, ast.If) and isinstance(node.body[-1], ast.Raise)


def mutants(module: str) -> list[Mutant]:
    """All mutants of a module, in the order of its lines."""
    path = PACKAGE / (module.replace(".", "/") + ".py")
    source = path.read_text(encoding="utf-8")
    lines, tree, found = source.splitlines(), ast.parse(source), []

    def walk(parent: ast.AST) -> None:
        for field, value in ast.iter_fields(parent):
            if field in ("annotation", "returns", "decorator_list"):
                continue
            for i, child in enumerate(value if isinstance(value, list) else [value]):
                if not isinstance(child, ast.AST) or skipped(child):
                    continue
                for new in changes(child):
                    place(parent, field, i if isinstance(value, list) else None, new)
                    found.append(Mutant(module, child.lineno, describe(child, new, lines), ast.unparse(ast.fix_missing_locations(tree))))
                    place(parent, field, i if isinstance(value, list) else None, child)
                walk(child)

    walk(tree)
    seen: Counter[str] = Counter()  # the same change to the same line, further down or to its right, gets a number
    for i, mutant in enumerate(found):
        seen[mutant.what] += 1
        if seen[mutant.what] > 1:
            found[i] = mutant._replace(what=f"{mutant.what}, {seen[mutant.what]}")
    return found


def place(parent: ast.AST, field: str, index: int | None, node: ast.AST) -> None:
    """Put a node into its parent."""
    if index is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[index] = node


def describe(old: ast.AST, new: ast.AST, lines: list[str]) -> str:
    """The line and the change, short enough for a table."""
    line = lines[old.lineno - 1].split("  # ")[0].strip()
    before, after = (ast.unparse(n).split("\n")[0] for n in (old, new))
    return f"`{line}`: `{before}` -> `{after}`"


class Replaced(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Loads one module from a mutated source."""

    def __init__(self, mutant: Mutant) -> None:
        self.name, self.mutant = f"fwl_ref.{mutant.module}", mutant

    def find_spec(self, name, path=None, target=None):
        if name != self.name:
            return None
        origin = str(PACKAGE / (self.mutant.module.replace(".", "/") + ".py"))
        return importlib.util.spec_from_loader(name, self, origin=origin)

    def exec_module(self, module) -> None:
        exec(compile(self.mutant.source, module.__spec__.origin, "exec"), module.__dict__)


class NearestFirst:
    """Tests named after the module, before the others: they are the likeliest to fail."""

    def __init__(self, module: str) -> None:
        self.name = module.split(".")[-1]

    def pytest_collection_modifyitems(self, items: list) -> None:
        items.sort(key=lambda item: self.name not in item.nodeid)


def survives(mutant: Mutant) -> bool:
    """Run the module's tests with the mutant in place, in a process of its own; True if all of them pass."""
    child = os.fork()
    if child == 0:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        sys.meta_path.insert(0, Replaced(mutant))
        import pytest

        options = ["-x", "-q", "-p", "no:cacheprovider", "--assert=plain"]
        os._exit(0 if pytest.main([*CORE[mutant.module], *options], [NearestFirst(mutant.module)]) == 0 else 1)
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.05)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return False


def digest(module: str) -> str:
    """Of the source, so that results of another version are not mixed in."""
    return hashlib.sha256((PACKAGE / (module.replace(".", "/") + ".py")).read_bytes()).hexdigest()[:16]


def load() -> dict:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def run(modules: list[str], jobs: int, sample: int | None) -> None:
    """Try every mutant that has no result yet."""
    results = load()
    for module in modules:
        entry = results.get(module)
        if entry is None or entry["digest"] != digest(module):
            entry = results[module] = {"digest": digest(module), "mutants": {}}
        todo = {m.key: m for m in mutants(module)}
        if sample is not None:
            todo = dict(sorted(random.Random(module).sample(sorted(todo.items()), min(sample, len(todo)))))
        todo = {k: m for k, m in todo.items() if k not in entry["mutants"]}
        path = PACKAGE / (module.replace(".", "/") + ".py")
        if todo and not survives(Mutant(module, 0, "unchanged", path.read_text(encoding="utf-8"))):
            sys.exit(f"{module}: its tests fail without a mutant, so they would seem to notice every one: run {' '.join(CORE[module])}")
        with ThreadPoolExecutor(jobs) as pool:
            for mutant, alive in zip(todo.values(), pool.map(survives, todo.values()), strict=True):
                entry["mutants"][mutant.key] = {"line": mutant.line, "survived": alive}
                if alive and mutant.key not in EQUIVALENT:
                    print(f"SURVIVED {mutant.module}.py:{mutant.line} {mutant.what}", flush=True)
                RESULTS.parent.mkdir(parents=True, exist_ok=True)
                RESULTS.write_text(json.dumps(results, indent=1))
        alive = sum(m["survived"] for m in entry["mutants"].values())
        print(f"{module}: {len(entry['mutants'])} mutants, {len(entry['mutants']) - alive} noticed, {alive} survived", flush=True)


def page() -> str:
    """docs/mutation.md."""
    results = load()
    lines = [
        "# Mutation testing",
        "",
        "Written by `python tools/mutate.py --page`. A mutant is the numerical core with one operator, comparison, number, branch or",
        "statement changed, or two neighbouring arguments or results exchanged; it is *noticed* if a test fails. Checks that only raise",
        "errors are not mutated: `tests/test_bad_input.py` is about them. Hypothesis draws the same ten examples of each property for",
        "every mutant, and with the unchanged module all of those tests pass.",
        "",
        "| module | mutants | noticed | survived, explained | survived, open |",
        "|:--|--:|--:|--:|--:|",
    ]
    totals, rows = [0, 0, 0, 0], []
    for module, entry in results.items():
        found = entry["mutants"]
        alive = [k for k, m in found.items() if m["survived"]]
        explained = [k for k in alive if k in EQUIVALENT]
        counts = (len(found), len(found) - len(alive), len(explained), len(alive) - len(explained))
        totals = [a + b for a, b in zip(totals, counts, strict=True)]
        lines.append(f"| `{module}` | " + " | ".join(map(str, counts)) + " |")
        rows += [(k, EQUIVALENT.get(k, "open")) for k in alive]
    lines += [f"| all | {' | '.join(map(str, totals))} |", "", "## Survivors", ""]
    lines += [f"- {key}. {why[0].upper()}{why[1:]}." for key, why in rows] or ["None."]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run or write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("modules", nargs="*", help="default: the whole core")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--sample", type=int, default=None, help="so many mutants of each module, drawn once and for all")
    parser.add_argument("--page", action="store_true", help="write docs/mutation.md and run nothing")
    args = parser.parse_args()
    if unknown := [m for m in args.modules if m not in CORE]:
        parser.error(f"unknown modules {', '.join(unknown)}: choose from {', '.join(CORE)}")
    if args.page:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    os.chdir(ROOT)
    os.environ["HYPOTHESIS_PROFILE"] = "mutants"
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    sys.path.insert(0, str(ROOT))
    import array_api_strict  # noqa: F401  imported once, before the forks
    import hypothesis  # noqa: F401
    import numpy  # noqa: F401
    import pytest  # noqa: F401

    run(args.modules or list(CORE), args.jobs, args.sample)
    return 0


if __name__ == "__main__":
    sys.exit(main())
