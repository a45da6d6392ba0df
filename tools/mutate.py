"""Mutation testing of the numerical core: change one thing at a time and see whether a test
notices.

    python tools/mutate.py [MODULE ...] [--jobs 2] [--again]     e.g. ops.dense fwl; default: the whole core
    python tools/mutate.py --since REV                           try only statements that did not stand in the package at REV
    python tools/mutate.py --page                                write docs/mutation.md from the results so far

A mutant is one changed operator, comparison, number, branch or statement, or two exchanged
neighbours in a call or a returned tuple. Each runs in a forked process, against the tests named in
``CORE``, until one fails: the tests are collected once, a fork changes the code of the functions that
are imported already and runs those that call the changed one, and what noticed earlier mutants comes
first. For a mutant outside of a function the module is imported anew. Results are kept in
``results/mutation.json``, so a run can be interrupted and resumed; a module whose source has changed
starts again, and ``--again`` tries survivors without an explanation once more, after tests have been
added, each with the module imported anew. Those that no test can notice are explained in
``equivalent_mutants.txt``.
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
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import types
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "fwl_ref"
RESULTS = ROOT / "results" / "mutation.json"
PAGE = ROOT / "docs" / "mutation.md"
UNTRIED = ROOT / "tools" / "untried_mutants.txt"  # what the page counts as not tried, so that the next run knows
EQUIVALENT = ROOT / "tools" / "equivalent_mutants.txt"  # reasons, "# " before each, and under it the mutants as the report prints them
SECONDS = 240  # of processor time: a mutant that loops for ever is killed, and counts as noticed

THEOREMS = [
    f"tests/theorems/test_{name}.py"
    for name in ("01_to_05_equivalence", "07_to_09_forms", "10_to_12_causality", "13_to_15_weights_and_symmetry", "16_to_18_gradients")
]
LAWS, MASKS = ["tests/ops/test_laws.py", THEOREMS[-1]], "tests/theorems/test_optimizers_are_masks.py"
RULES = [f"tests/rules/test_{name}.py" for name in ("laws", "lattice", "not_finite", "titans", "ttt", "mesa", "teeth")]
CORE: dict[str, list[str]] = {  # module -> tests, the quickest to fail first
    "tree": ["tests/test_tree.py"],
    **{name: ["tests/test_gradcheck.py"] for name in ("gradcheck", "adjoint.leaves", "adjoint.numbers", "adjoint.words")},
    "ops.common": ["tests/ops/test_common.py", *LAWS],
    "ops.dense": LAWS,
    "ops.squared_relu": LAWS,
    "ops.gelu": LAWS,
    "ops.layernorm": LAWS,
    "ops.rmsnorm": LAWS,
    "ops.swiglu": LAWS,
    "ops.cross_entropy": [*LAWS, "tests/ops/test_narrow_integers.py"],
    "ops.embedding": [*LAWS, "tests/ops/test_narrow_integers.py"],
    "ops.rotary": [*LAWS, "tests/lm/test_model.py"],
    "ops.attention": [*LAWS, "tests/lm/test_model.py", "tests/demo/test_cost.py"],
    "ops.linear_attention": ["tests/ops/test_linear_attention.py", *LAWS],
    "ops.masked_attention": ["tests/ops/test_masked_attention.py", *LAWS],
    "slow_block": ["tests/lm/test_model.py", *THEOREMS],
    "lm.transformer": ["tests/lm/test_model.py", *THEOREMS],
    "lm.model": [
        *(f"tests/lm/test_{name}.py" for name in ("model", "shards", "checkpoint", "train", "generate")),
        *THEOREMS,
        "tests/test_bad_input.py",
    ],
    **dict.fromkeys(("lm.llama", "lm.gpt2", "lm.unembed", "lm.heads", "lm.stack"), ["tests/lm/test_families.py"]),
    "norm": ["tests/test_fast_matrix.py", *THEOREMS],
    **dict.fromkeys(("key_map", "fast_matrix"), ["tests/test_fast_matrix.py"]),
    "ops.blocked_head": [*LAWS, "tests/ops/test_narrow_integers.py", "tests/test_fast_matrix.py"],
    "sequential": ["tests/test_sequential.py", "tests/test_decays.py"],
    "fast_layer": ["tests/test_fast_layer.py", "tests/test_decays.py", *THEOREMS, MASKS],
    "fwl": [*THEOREMS, MASKS, "tests/lm/test_shards.py", "tests/test_decays.py"],
    "stream": ["tests/theorems/test_07_to_09_forms.py", "tests/test_decays.py", MASKS, "tests/test_bad_input.py"],
    "dynamic_evaluation": ["tests/test_dynamic_evaluation.py", *THEOREMS[:1], "tests/test_bad_input.py"],
    "lm.adamw": [
        "tests/lm/test_train.py",
        "tests/test_bad_input.py",
        "tests/test_backend.py::test_clipping_by_a_factor_is_clipping_by_a_decision",
        "tests/test_backend.py::test_a_training_step_brings_nothing_home_but_its_record",
    ],
    "optimizers": ["tests/test_optimizers.py", MASKS],
    **{name: [f"tests/{name.replace('.', '/test_')}.py", *LAWS] for name in ("ops.l2norm", "ops.short_conv")},
    **{f"rules.{p.stem}": RULES for p in sorted((PACKAGE / "rules").glob("*.py")) if p.stem != "__init__"},
    **{f"rules.{name}": [f"tests/rules/test_{name}.py", *RULES] for name in ("gates", "heads", "documents")},
    "rules.mesa": [*RULES, "tests/rules/test_heads.py"],  # a ridge per head
    **{f"rules.{name}": ["tests/rules/test_titans_mlp.py", *RULES] for name in ("titans_mlp", "heavy_ball")},
}


UNCHANGED = "unchanged"


class Mutant(NamedTuple):
    module: str
    line: int
    what: str  # the changed line, before and after; UNCHANGED is the module as it is

    @property
    def key(self) -> str:
        return f"{self.module}: {self.what}"


OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult, ast.FloorDiv: ast.Mult}
COMPARISONS = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.Is: ast.IsNot, ast.IsNot: ast.Is}
SYMMETRIC = {"namespace", "max", "min", "maximum", "minimum", "_dot"}  # exchanging their arguments changes nothing
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
    if isinstance(node, ast.Call):
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if name not in SYMMETRIC and not name.startswith("check"):
            yield from exchanged(node, lambda n: n.args)
    if isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple):
        yield from exchanged(node, lambda n: n.value.elts)


def exchanged(node: ast.AST, items: Callable[[ast.AST], list[ast.AST]]) -> Iterator[ast.AST]:
    """Exchange each two neighbours of ``items(node)`` that differ."""
    for i in range(len(items(node)) - 1):
        other = copy.deepcopy(node)
        both = items(other)
        both[i], both[i + 1] = both[i + 1], both[i]
        if ast.dump(both[i]) != ast.dump(both[i + 1]) and not any(isinstance(b, ast.Starred | ast.JoinedStr) for b in both[i : i + 2]):
            yield other


def skipped(node: ast.AST) -> bool:
    """Not mutated: annotations, imports, error messages, docstrings, and checks at the boundary
    that only raise.
    """
    if isinstance(node, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom | ast.ClassDef | ast.arg):
        return True
    return isinstance(node, ast.If) and isinstance(node.body[-1], ast.Raise)


def path_of(module: str) -> Path:
    return PACKAGE / (module.replace(".", "/") + ".py")


def nodes(module: str) -> Iterator[tuple[int, str, ast.AST, ast.AST]]:
    """(line, what, tree, changed node) of every mutant of a module; the tree is changed in place and
    only as it should be until the next step.
    """
    source = path_of(module).read_text(encoding="utf-8")
    lines, tree = source.splitlines(), ast.parse(source)
    seen: Counter[str] = Counter()  # the same change to the same line, further down or to its right, gets a number

    def walk(parent: ast.AST) -> Iterator[tuple[int, str, ast.AST, ast.AST]]:
        for field, value in ast.iter_fields(parent):
            if field in ("annotation", "returns", "decorator_list"):
                continue
            for i, child in enumerate(value if isinstance(value, list) else [value]):
                if not isinstance(child, ast.AST) or skipped(child):
                    continue
                for new in changes(child):
                    place(parent, field, i if isinstance(value, list) else None, new)
                    what = describe(child, new, lines)
                    seen[what] += 1
                    yield child.lineno, what + (f", {seen[what]}" if seen[what] > 1 else ""), tree, new
                    place(parent, field, i if isinstance(value, list) else None, child)
                yield from walk(child)

    yield from walk(tree)


def mutants(module: str) -> list[Mutant]:
    """All mutants of a module, in the order of its lines."""
    return [Mutant(module, line, what) for line, what, _, _ in nodes(module)]


def source_of(mutant: Mutant) -> str:
    """The module with this one change."""
    if mutant.what == UNCHANGED:
        return path_of(mutant.module).read_text(encoding="utf-8")
    return next(ast.unparse(ast.fix_missing_locations(tree)) for _, what, tree, _ in nodes(mutant.module) if what == mutant.what)


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
        return importlib.util.spec_from_loader(name, self, origin=str(path_of(self.mutant.module)))

    def exec_module(self, module) -> None:
        exec(compile(source_of(self.mutant), module.__spec__.origin, "exec"), module.__dict__)


class NearestFirst:
    """Tests named after the module, before the others: they are the likeliest to fail."""

    def __init__(self, module: str) -> None:
        self.name = module.split(".")[-1]

    def pytest_collection_modifyitems(self, items: list) -> None:
        items.sort(key=lambda item: self.name not in item.nodeid)


OPTIONS = ["-x", "-q", "-p", "no:cacheprovider", "--assert=plain"]
NOTICED, SURVIVED, NOT_CHANGED = 1, 0, 3  # exit status of the process that tries a mutant


def survives(mutant: Mutant) -> bool:
    """Import the module with the mutant in place and run its tests, in a process of its own; True if
    all of them pass.
    """

    def child() -> int:
        sys.meta_path.insert(0, Replaced(mutant))
        import pytest

        limit()
        for tests in CORE[mutant.module]:  # one after the other: most mutants do not live to see the second be collected
            if pytest.main([tests, *OPTIONS], [NearestFirst(mutant.module)]) != 0:
                return NOTICED
        return SURVIVED

    return ended(forked(child)) == SURVIVED


class Calls:
    """Runs a file of tests on the package as it is and notes for each which functions it calls:
    {test: {module: lines where they begin}}.
    """

    def __init__(self, out: Path) -> None:
        self.out = out

    def pytest_runtestloop(self, session) -> bool:
        found: dict[str, set[int]] = {}

        def called(frame, event, _) -> None:
            path = frame.f_code.co_filename
            if path.startswith(str(PACKAGE)):
                found.setdefault(path, set()).add(frame.f_code.co_firstlineno)

        threading.settrace(called)
        sys.settrace(called)
        calls = {}
        for item in session.items:
            found.clear()
            tested(item, None)
            calls[item.nodeid] = {path: sorted(lines) for path, lines in found.items()}
        self.out.write_text(json.dumps(calls))
        return True


def calls_of(module: str, jobs: int) -> dict[str, list[int]]:
    """test -> the lines where the functions of the module begin that it calls. Kept in results/, for as long as no source changes."""
    sources = b"".join(p.read_bytes() for top in ("fwl_ref", "tests") for p in sorted((ROOT / top).rglob("*.py")))
    folder = RESULTS.parent / "calls" / hashlib.sha256(sources).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)

    def recorded(tests: str) -> dict:
        out = folder / f"{hashlib.sha256(tests.encode()).hexdigest()[:16]}.json"
        if not out.exists():

            def child() -> int:
                import pytest

                return pytest.main([tests, *OPTIONS, "-s"], [Calls(out)])

            if ended(forked(child)) != 0:
                out.unlink(missing_ok=True)
                sys.exit(f"{module}: its tests fail without a mutant, so they would seem to notice every one: run {tests}")
        return json.loads(out.read_text())

    with ThreadPoolExecutor(jobs) as pool:
        every = list(pool.map(recorded, CORE[module]))
    return {test: paths.get(str(path_of(module)), []) for calls in every for test, paths in calls.items()}


class Tries(NearestFirst):
    """Collects a module's tests once and forks for every mutant: the child changes the functions that
    are there already and runs the tests that call the one with the mutant, until one fails. Results
    go to ``out``, a line each.
    """

    def __init__(self, module: str, todo: list[Mutant], jobs: int, calls: dict[str, list[int]], out: int) -> None:
        super().__init__(module)
        self.todo, self.jobs, self.calls, self.out = todo, jobs, calls, out
        self.words = Path(tempfile.mkdtemp())  # a file per process: the test that failed

    def pytest_runtestloop(self, session) -> bool:
        running: dict[int, Mutant] = {}
        for mutant in (*self.todo, None):
            while running and (mutant is None or len(running) == self.jobs):
                pid, status = os.wait()
                self.ended(session, running.pop(pid), os.waitstatus_to_exitcode(status), self.words / str(pid))
            if mutant is not None:
                running[forked(lambda mutant=mutant: self.child(session, mutant))] = mutant
        shutil.rmtree(self.words)
        return True

    def child(self, session, mutant: Mutant) -> int:
        function = changed(mutant)
        if function is None:
            return NOT_CHANGED
        limit()
        items = [item for item in session.items if any(line in function for line in self.calls[item.nodeid])]
        for item, following in zip(items, [*items[1:], None], strict=True):
            tested(item, following)
            if session.testsfailed:
                (self.words / str(os.getpid())).write_text(item.nodeid)
                return NOTICED
        return SURVIVED

    def ended(self, session, mutant: Mutant, status: int, word: Path) -> None:
        """Says what became of a mutant. The test that noticed it comes first from now on."""
        if word.exists():
            first = word.read_text()
            session.items.sort(key=lambda item: item.nodeid != first)
        os.write(self.out, f"{json.dumps([mutant.key, status])}\n".encode())


def tested(item, following) -> None:
    item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)


def tries(module: str, todo: list[Mutant], jobs: int) -> Iterator[tuple[str, int]]:
    """(mutant's key, exit status) as they end, from one process that has collected the module's tests."""
    calls = calls_of(module, jobs)
    read, write = os.pipe()

    def child() -> int:
        import pytest

        os.close(read)
        return pytest.main([*CORE[module], *OPTIONS, "-s"], [Tries(module, todo, jobs, calls, write)])

    pid = forked(child)
    os.close(write)
    with os.fdopen(read) as lines:
        for line in lines:
            yield tuple(json.loads(line))
    if ended(pid) != 0:
        sys.exit(f"{module}: its tests could not be collected: run {' '.join(CORE[module])}")


def changed(mutant: Mutant) -> range | None:
    """Put the mutant's code into the functions of the module as imported; the lines of the function at
    the top level that it stands in, or None if it stands outside of them.
    """
    node, tree = next((node, tree) for _, what, tree, node in nodes(mutant.module) if what == mutant.what)
    around = [f for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) and any(n is node for n in ast.walk(f))]
    if not around:
        return None
    name, source = f"fwl_ref.{mutant.module}", ast.unparse(ast.fix_missing_locations(tree))
    module = importlib.import_module(name)
    made = {"__name__": name, "__package__": name.rpartition(".")[0], "__file__": module.__file__}
    exec(compile(source, module.__file__, "exec"), made)
    if not transplanted(made, vars(module), name):
        return None
    first = min(line.lineno for line in (around[0], *around[0].decorator_list))
    return range(first, around[0].end_lineno + 1)


def transplanted(new: dict, old: dict, name: str) -> bool:
    """Give every function and method of a module the code of its namesake; True if one differs."""
    differs = False
    for key, value in list(new.items()):
        if isinstance(value, type) and value.__module__ == name and key in old:
            differs |= transplanted(dict(vars(value)), dict(vars(old[key])), name)
        if isinstance(value, types.FunctionType) and value.__module__ == name and isinstance(old.get(key), types.FunctionType):
            if value.__code__.co_freevars != old[key].__code__.co_freevars:
                return False
            function = old[key]
            for part in ("__code__", "__defaults__", "__kwdefaults__"):
                differs |= getattr(value, part) != getattr(function, part)
                setattr(function, part, getattr(value, part))
    return differs


def forked(work: Callable[[], int]) -> int:
    """The process that does ``work`` in silence and ends with its result as its exit status."""
    pid = os.fork()
    if pid == 0:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        status = NOT_CHANGED
        try:
            status = work()
        finally:
            os._exit(status)
    return pid


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def limit() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))  # of processor time: the machine may be busy


def digest(module: str) -> str:
    """Of the code, so that results of another version are not mixed in; docstrings and annotations have no mutants."""
    code = "\n".join(code for _, code in bodies(path_of(module).read_text(encoding="utf-8")))
    return hashlib.sha256(code.encode()).hexdigest()[:16]


def same_since(revision: str, module: str) -> list[range]:
    """Lines of the statements that stood word for word somewhere in the package at ``revision``: code may have moved between files."""

    def listed(*command: str) -> str:
        return subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    paths = [path for path in listed("ls-tree", "-r", "--name-only", revision, "fwl_ref").split() if path.endswith(".py")]
    before = {code for path in paths for _, code in statements(listed("show", f"{revision}:{path}"))}
    return [lines for lines, code in statements(path_of(module).read_text(encoding="utf-8")) if code in before]


def statements(source: str) -> Iterator[tuple[range, str]]:
    """(lines, code) of every statement, however it is broken into lines; of a loop or a branch its first line alone."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.stmt) and not isinstance(node, ast.FunctionDef | ast.ClassDef):
            body = getattr(node, "body", None)
            end = body[0].lineno if body else (node.end_lineno or node.lineno) + 1
            yield range(node.lineno, end), ast.unparse(node).split("\n")[0] if body else ast.unparse(node)


def bodies(source: str) -> list[tuple[range, str]]:
    """(lines, code) of every statement at the top level of a module, without annotations and docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            node.body[0] = ast.Pass()
        if isinstance(node, ast.FunctionDef):
            node.returns = None
        if isinstance(node, ast.arg):
            node.annotation = None
    return [(range(n.lineno, (n.end_lineno or n.lineno) + 1), ast.unparse(n)) for n in tree.body]


def load() -> dict:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def save(results: dict) -> None:
    """The whole file or none of it. By hand: no module of the package may be imported before a fork
    has replaced one.
    """
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    partial = RESULTS.with_suffix(".partial")
    partial.write_text(json.dumps(results, indent=1))
    partial.replace(RESULTS)


def run(modules: list[str], jobs: int, again: bool, since: str) -> None:
    """Try every mutant that has no result yet, or with ``again`` has survived without an
    explanation. A mutant of a statement that is the same ``since`` a revision keeps what was found
    there, unless it was not tried: explained or noticed, for no page with open ones is ever committed.
    """
    results, explained, untried = load(), explanations(), set(UNTRIED.read_text(encoding="utf-8").splitlines())
    for module in modules:
        entry = results.get(module)
        if entry is None or entry["digest"] != digest(module):
            entry = results[module] = {"digest": digest(module), "mutants": {}}
        todo, done = {m.key: m for m in mutants(module)}, entry["mutants"]
        same = same_since(since, module) if since else []
        for key, m in todo.items():
            if key not in done and key not in untried and any(m.line in lines for lines in same):
                done[key] = {"line": m.line, "survived": key in explained, "since": since}
        todo = {k: m for k, m in todo.items() if k not in done or (again and done[k]["survived"] and k not in explained)}
        for key, alive in results_of(module, todo, jobs, again) if todo else ():
            done[key] = {"line": todo[key].line, "survived": alive}
            if alive and key not in explained:
                print(f"SURVIVED {module}.py:{todo[key].line} {todo[key].what}", flush=True)
            save(results)
        save(results)  # also where nothing was left to try
        alive = sum(m["survived"] for m in done.values())
        print(f"{module}: {len(done)} mutants, {len(done) - alive} noticed, {alive} survived", flush=True)


def results_of(module: str, todo: dict[str, Mutant], jobs: int, anew: bool) -> Iterator[tuple[str, bool]]:
    """(mutant's key, True if it survived). With ``anew`` the module is imported anew for all of them."""
    rest = dict(todo)
    if not anew:
        for key, status in tries(module, list(todo.values()), jobs):
            if status != NOT_CHANGED:
                yield rest.pop(key).key, status == SURVIVED
    if rest and not survives(Mutant(module, 0, UNCHANGED)):
        sys.exit(f"{module}: its tests fail without a mutant, so they would seem to notice every one: run {' '.join(CORE[module])}")
    with ThreadPoolExecutor(jobs) as pool:
        yield from zip(rest, pool.map(survives, rest.values()), strict=True)


def explanations() -> dict[str, str]:
    """mutant -> why it computes the same function, or differs where the contract says nothing."""
    why, found = "", {}
    for line in EQUIVALENT.read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            why = line[2:]
        elif line:
            found[line] = why
    return found


def page() -> str:
    """docs/mutation.md; writes untried_mutants.txt too. Exits if a module has no results on the present source, or something is
    explained that did not survive. Mutants that were not tried are counted as such.
    """
    results, why = load(), explanations()
    for module in CORE:
        if results.get(module, {"digest": ""})["digest"] != digest(module):
            sys.exit(f"{module}: no mutant has been tried on the present source: run {sys.argv[0]} {module}")
    untried = {m.key for module in CORE for m in mutants(module)} - {key for module in CORE for key in results[module]["mutants"]}
    UNTRIED.write_text("".join(f"{key}\n" for key in sorted(untried)), encoding="utf-8")
    survivors = [key for module in CORE for key, m in results[module]["mutants"].items() if m["survived"]]
    if stale := sorted(set(why) - set(survivors) - untried):
        sys.exit(f"{EQUIVALENT.name} explains what is noticed or not a mutant any more: {'; '.join(stale)}")
    lines = [
        "# Mutation testing",
        "",
        "Written by `python tools/mutate.py --page`. A mutant is the numerical core with one operator, comparison, number, branch or",
        "statement changed, or two neighbouring arguments or results exchanged; it is *noticed* if a test fails. Checks that only raise",
        "errors are not mutated: `tests/test_bad_input.py` is about them. Hypothesis draws the same examples of a property, ten at most,",
        "for every mutant, and with the unchanged module all of those tests pass. A number behind a change: it is the second, third, ...",
        "place in the file where the same line could change in this way.",
        *kept(results),
        "",
        "| module | mutants | noticed | survived, explained | survived, open | not tried |",
        "|:--|--:|--:|--:|--:|--:|",
    ]
    totals = [0, 0, 0, 0, 0]
    for module in CORE:
        tried = results[module]["mutants"]
        alive = [key for key, m in tried.items() if m["survived"]]
        explained = sum(key in why for key in alive)
        every = len(mutants(module))
        counts = (every, len(tried) - len(alive), explained, len(alive) - explained, every - len(tried))
        totals = [a + b for a, b in zip(totals, counts, strict=True)]
        lines.append(f"| `{module}` | " + " | ".join(map(str, counts)) + " |")
    lines += [f"| all | {' | '.join(map(str, totals))} |", "", "## Survivors, and why no test can notice them"]
    for reason in dict.fromkeys(["Open.", *why.values()]):
        if keys := [key for key in survivors if why.get(key, "Open.") == reason]:
            lines += ["", reason, "", *(f"- {key}" for key in keys)]
    return "\n".join(lines) + "\n"


def kept(results: dict) -> list[str]:
    """What the page says of results that stand from an earlier run."""
    since = Counter(m["since"] for module in CORE for m in results[module]["mutants"].values() if "since" in m)
    return [
        f"{count} were not tried again: their statements stood in the package word for word at {revision}, where all were noticed or"
        " explained."
        for revision, count in since.items()
    ]


def main() -> int:
    """Run or write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("modules", nargs="*", help="default: the whole core")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--again", action="store_true", help="try survivors that are not explained once more")
    parser.add_argument("--since", default="", help="keep what was found for statements that are unchanged since this commit")
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

    since = args.since and subprocess.check_output(["git", "rev-parse", "--short", args.since], cwd=ROOT, text=True).strip()
    run(args.modules or list(CORE), args.jobs, args.again, since)
    return 0


if __name__ == "__main__":
    sys.exit(main())
