"""The shape of the code: who imports whom, signatures that run, equations that exist in docs, code
and tests.
"""

from __future__ import annotations

import ast
import importlib
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwl_ref.tree import leaves
from tests.signatures import parse
from tests.strategies import generator, seeds

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "fwl_ref"
LABEL = re.compile(r"\(([A-Z]\.\d+)\)")

# Each module may import only from the rows above its own; within a row whose name ends in .* modules
# may import one another, without cycles. The core comes first, then the wings.
LAYERS = [
    {"backend", "allocator"},
    {"tree", "files", "ops.common"},
    {"checks"},
    {"adjoint.*"},
    {"gradcheck", "ops.*"},
    {"norm", "key_map", "optimizers", "rules.*"},
    {"slow_block"},
    {"fast_layer"},
    {"fwl", "dynamic_evaluation"},
    {"stream", "fast_matrix", "sequential", "exercises"},
    {"lm.*"},
    {"pretrained.*"},
    {"demo.*", "adapt.*"},
    {"study.*"},
    {"verify.*", "audit.*"},
    {"testing.*"},
    {"__main__"},
]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


SOURCES = {module_name(p): p for p in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in SOURCES.items()}
PACKAGES = {"__init__", *(name for name, p in SOURCES.items() if p.name == "__init__.py")}
OPS = [name for name in SOURCES if name.startswith("ops.") and name not in {*PACKAGES, "ops.common"}]


def imports(name: str) -> Iterator[tuple[str, list[str]]]:
    """(absolute module, names) of every import statement, wherever in the file it stands."""
    is_package = SOURCES[name].name == "__init__.py"
    here = ["fwl_ref", *(name.split(".") if name != "__init__" else [])]
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            up = node.level - (1 if is_package and name != "__init__" else 0)
            base = here[: len(here) - up] if node.level and name != "__init__" else (["fwl_ref"] if node.level else [])
            yield (".".join([*base, *([node.module] if node.module else [])]), [alias.name for alias in node.names])


@cache
def inner_imports(name: str) -> set[str]:
    """The modules of the package that a module imports."""
    found = set()
    for module, names in imports(name):
        parts = module.split(".")
        if parts[0] != "fwl_ref":
            continue
        inner = ".".join(parts[1:])
        if inner in SOURCES:
            found.add(inner)
        found |= {f"{inner}.{n}".lstrip(".") for n in names if f"{inner}.{n}".lstrip(".") in SOURCES}
    return found - PACKAGES - {name}


def layer(name: str) -> int:
    folder = f"{name.split('.')[0]}.*"
    return next(i for i, row in enumerate(LAYERS) if name in row or folder in row)


@cache
def reachable(name: str) -> set[str]:
    seen, todo = set(), [name]
    while todo:
        for module in inner_imports(todo.pop()) - seen:
            seen.add(module)
            todo.append(module)
    return seen


def test_the_import_reader_sees_the_imports() -> None:
    """The tests below would pass on an empty graph: here are four edges that exist."""
    assert "backend" in inner_imports("ops.dense")
    assert "ops.dense" in inner_imports("fwl")
    assert "lm.model" in reachable("__main__")
    assert {module for module, _ in imports("backend")} >= {"numpy", "array_api_compat"}


def test_only_the_backend_imports_an_array_library() -> None:
    """import numpy, cupy or array_api_compat in backend.py and nowhere else, by statement or by
    name.
    """
    libraries = {"numpy", "cupy", "array_api_compat", "array_api_strict", "scipy", "torch", "jax"}
    for name in set(SOURCES) - {"backend"}:
        taken = {module.split(".")[0] for module, _ in imports(name)} & libraries
        assert not taken, f"fwl_ref/{name} imports {taken}: take namespace, host or like from backend"
        calls = (n for n in ast.walk(TREES[name]) if isinstance(n, ast.Call))
        dynamic = (n for n in calls if getattr(n.func, "id", getattr(n.func, "attr", "")) in ("__import__", "import_module"))
        given_names = {str(a.value).split(".")[0] for n in dynamic for a in n.args if isinstance(a, ast.Constant)}
        assert not given_names & libraries, f"fwl_ref/{name} imports {given_names} by name"


def test_imports_point_down_only() -> None:
    """backend <- tree <- checks <- ops, gradcheck <- slow_block <- fast_layer <- fwl <- stream <- lm <- demo
    <- verify <- __main__.
    """
    for name in set(SOURCES) - PACKAGES:
        for module in inner_imports(name):
            wing = name.split(".")[0] if "." in name else None
            beside = wing not in (None, "ops") and module.startswith(f"{wing}.")
            below = layer(module) < layer(name) or beside
            assert below, f"fwl_ref/{name} imports {module}, which is not below it"
            assert name not in reachable(module), f"fwl_ref/{name} and {module} import each other"


def test_checking_a_kernel_loads_no_language_model() -> None:
    """Golden cases and the theorems of the self-test are of the core: no training, no data, no
    progress bars.
    """
    for name in ("verify.golden", "verify.theorems.table", "testing.kernel", "testing.command"):
        assert not {m.split(".")[0] for m in reachable(name)} & {"lm", "demo"}
    assert reachable("verify.theorems.table") >= {"fwl", "verify.cases", "verify.theorems.teeth"}


def test_golden_cases_of_blocks_rules_and_ops_are_twins() -> None:
    """All files offer the same to golden.py, and none knows another, but for what is put around a rule."""
    shared = {"INPUTS", "ANSWERS", "KINDS", "PLANS", "Plan", "letters", "names", "read_case", "answers", "draw_case", "describe"}
    files = {f"verify.golden_{kind}" for kind in ("block", "rules", "ops", "around")}
    for name in files:
        assert shared <= vars(importlib.import_module(f"fwl_ref.{name}")).keys()
        known = {"verify.golden_rules"} if name == "verify.golden_around" else set()
        assert reachable(name) & (files | {"verify.golden"}) - {name} == known


@pytest.mark.parametrize("name", OPS)
def test_an_op_imports_nothing_but_the_backend_and_what_ops_share(name: str) -> None:
    """An op stands alone: no other op, no host arrays. It may ask whether looking at the values of
    an argument is free, where it is, and how its library takes and writes.
    """
    assert {"backend"} <= inner_imports(name) <= {"backend", "ops.common"}
    assert inner_imports("ops.common") == {"backend"}
    taken = {n for module, names in imports(name) if module == "fwl_ref.backend" for n in names}
    allowed = {"Array", "namespace", "is_host", "device", "as_index", "written_to", "product_to", "overwritten"}
    assert {"Array", "namespace"} <= taken <= allowed, f"{name} takes {taken}"


def test_dynamic_evaluation_shares_no_code_with_fast_weights() -> None:
    """The oracle reaches neither fwl nor linear attention, not even through others."""
    assert not reachable("dynamic_evaluation") & {"fast_layer", "fwl", "stream", "ops.linear_attention"}
    assert "ops.linear_attention" in reachable("fwl")


# Signatures


def functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    """Public functions and classes at the top level of every module."""
    for name, tree in TREES.items():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                yield name, node


def public_callables(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef, list[ast.arg]]]:
    """(name, node, parameters) of the public functions at the top level and of the public and special methods of public classes; without
    the self or cls that Python hands to a method.
    """
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name, node, parameters_of(node)
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and (not method.name.startswith("_") or method.name.endswith("__")):
                    static = any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in method.decorator_list)
                    yield f"{node.name}.{method.name}", method, parameters_of(method)[0 if static else 1 :]


def parameters_of(node: ast.FunctionDef) -> list[ast.arg]:
    a = node.args
    return [*a.posonlyargs, *a.args, *([a.vararg] if a.vararg else []), *a.kwonlyargs, *([a.kwarg] if a.kwarg else [])]


def unannotated(tree: ast.Module) -> list[str]:
    """What public functions and methods leave without annotation, in the order of the file."""
    found = []
    for name, node, given_parameters in public_callables(tree):
        found += [f"{name}: the parameter {a.arg}" for a in given_parameters if a.annotation is None]
        found += [f"{name}: the return value"] if node.returns is None else []
    return found


def test_public_functions_annotate_every_parameter_and_the_return_value() -> None:
    """A type checker passes over what is not annotated; private helpers may leave it out."""
    found = [f"fwl_ref.{name}.{what}" for name, tree in TREES.items() for what in unannotated(tree)]
    assert not found, f"not annotated: {found[0]}"


def test_a_missing_annotation_is_found_wherever_it_can_be() -> None:
    """Every kind of parameter, the return value, methods of each kind; none in what is annotated or private."""
    source = """
def f(a, /, b, *c, d, **e): pass
class C:
    x: int = 0
    def __init__(self, g): pass
    @property
    def h(self): pass
    @classmethod
    def i(cls, j: int) -> None: pass
    @staticmethod
    def k(l) -> None: pass
    def _m(self, n): pass
def o(p: int, /, q: int, *r: int, s: int = 0, **t: int) -> None:
    def inner(u): pass
def _v(w): pass
class _X:
    def y(self, z): pass
"""
    assert [words.replace(": the parameter", "").replace(": the return value", " ->") for words in unannotated(ast.parse(source))] == [
        *("f a", "f b", "f c", "f d", "f e", "f ->"),
        *("C.__init__ g", "C.__init__ ->", "C.h ->", "C.k l"),
    ]
    assert sum(len(list(public_callables(tree))) for tree in TREES.values()) > 300


def first_line(node: ast.FunctionDef) -> str:
    return (ast.get_docstring(node) or "").split("\n")[0]


FORWARD = {(m, n.name): first_line(n) for m, n in functions() if m in OPS and n.name.endswith("_fwd")}
INTEGERS = {"labels", "tokens"}


def test_every_op_has_a_signature_to_run() -> None:
    """At least nine ops, some in several forms; the parser reads all of them and refuses nonsense."""
    assert {module for module, _ in FORWARD} == set(OPS)
    assert len(OPS) >= 9
    assert parse("(...,D),(D,F),()->(...,F)   y") == ([["...", "D"], ["D", "F"], []], [["...", "F"]])
    for nonsense in ("Adjoint of f.", "(B,T)", "(B,T)-(B)", ""):
        with pytest.raises(AssertionError):
            parse(nonsense)


@pytest.mark.parametrize(("module", "name"), FORWARD, ids=[name for _, name in FORWARD])
@given(data=st.data(), seed=seeds)
def test_the_signature_of_an_op_is_what_it_computes(module: str, name: str, data: st.DataObject, seed: int) -> None:
    """Arrays of the shapes on the left of -> give arrays of the shapes on the right, for any sizes
    and any leading axes.
    """
    inputs, outputs = parse(FORWARD[module, name])
    sizes = {d: data.draw(st.integers(1, 5), label=d) for dims in (*inputs, *outputs) for d in dims if d != "..."}
    if module == "ops.rotary":
        sizes["K"] *= 2  # channels turn in pairs
    if module == "ops.attention":
        sizes["S"] += sizes["T"]  # keys: a cache, then one per query
        sizes["H"] *= sizes.get("G", 1)  # query heads that share a key-value head
    if module == "ops.short_conv":
        sizes["J"] = sizes["P"] + 1  # taps: the past inputs, and the present one
    leading = tuple(data.draw(st.lists(st.integers(1, 3), max_size=2), label="..."))
    if module in ("ops.squared_relu", "ops.gelu", "ops.swiglu"):
        leading = leading or (2,)
    shape = lambda dims: tuple(n for d in dims for n in (leading if d == "..." else (sizes[d],)))  # noqa: E731
    node = next(n for m, n in functions() if (m, n.name) == (module, name))
    parameters = [a.arg for a in node.args.args]
    draw, rng = generator(seed), np.random.default_rng(seed)
    arguments = [
        rng.integers(0, sizes["V"], shape(dims)) if parameter in INTEGERS else np.asarray(draw(*shape(dims)) if dims else 0.9)
        for parameter, dims in zip(parameters, inputs, strict=False)
    ]
    if "mask" in parameters:
        arguments[parameters.index("mask")] *= np.tri(sizes["T"], k=-1)  # strictly causal
    result, _ = getattr(importlib.import_module(f"fwl_ref.{module}"), name)(*arguments)
    assert [np.shape(a) for a in leaves(result)] == [shape(dims) for dims in outputs]


def test_backward_passes_say_whose_adjoint_they_are() -> None:
    """f_bwd opens with 'Adjoint of f_fwd', f_bwd_bwd with 'Adjoint of f_bwd', and those functions
    stand in the same file.
    """
    names = {(m, n.name) for m, n in functions()}
    backward = [(m, n) for m, n in functions() if n.name.endswith("_bwd")]
    assert len(backward) > 15
    for module, node in backward:
        base = node.name.removesuffix("_bwd")
        forward = base if base.endswith("_bwd") else f"{base}_fwd"
        forward = forward if (module, forward) in names else base
        assert (module, forward) in names, f"{module}.{node.name}: there is no {forward}"
        assert first_line(node).startswith(f"Adjoint of {forward}"), f"{module}.{node.name}: {first_line(node)!r}"


# Equations


def labels_in_code() -> dict[str, str]:
    """Label -> the public function whose docstring cites it."""
    return {label: f"{m}.{n.name}" for m, n in functions() for label in LABEL.findall(ast.get_docstring(n) or "")}


def labels_in_docs() -> tuple[list[str], set[str]]:
    r"""The labels that equations of the docs carry, \tag{...}, and those that their text refers to."""
    text = "\n".join(p.read_text(encoding="utf-8") for p in sorted((ROOT / "docs").rglob("*.md")))
    return re.findall(r"\\tag\{([A-Z]\.\d+)\}", text), set(LABEL.findall(text))


@cache
def prose(source: str) -> list[str]:
    """Docstrings and comments of a file, that of the module first."""
    nodes = (n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Module | ast.FunctionDef | ast.ClassDef))
    comments = (t.string for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type == tokenize.COMMENT)
    return [*(ast.get_docstring(n) or "" for n in nodes), *comments]


@cache
def labels_in_tests() -> set[str]:
    """Labels in docstrings and comments of the tests; a range of labels, first "to" last, cites
    what lies between.
    """
    found = set()
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for text in prose(path.read_text(encoding="utf-8")):
            found |= set(LABEL.findall(text))
            for letter, low, high in re.findall(r"\(([A-Z])\.(\d+)\)\s+to\s+\(\1\.(\d+)\)", text):
                found |= {f"{letter}.{i}" for i in range(int(low), int(high) + 1)}
    return found


def test_equations_in_docs_and_citations_in_code_are_the_same() -> None:
    """labels(code) = labels(docs); the labels Q are theorems about the whole, which no single
    function computes.
    """
    code, (tags, references) = labels_in_code(), labels_in_docs()
    docs = {label for label in tags if not label.startswith("Q")}
    assert len(code) > 30
    assert len(tags) == len(set(tags)), f"labelled twice: {sorted(t for t in set(tags) if tags.count(t) > 1)}"
    assert not references - set(tags), f"docs/ refers to equations that it does not have: {sorted(references - set(tags))}"
    absent = {label: code[label] for label in sorted(set(code) - docs)}
    assert not absent, f"cited in code, absent from docs/: {absent}"
    assert not docs - set(code), f"in docs/, cited by no public docstring: {sorted(docs - set(code))}"


def test_every_equation_is_cited_by_a_test() -> None:
    """labels(docs) = labels(tests): each equation is checked by something, and no test cites an
    equation that does not exist.
    """
    docs, tests = set(labels_in_docs()[0]), labels_in_tests()
    assert not docs - tests, f"no test cites {sorted(docs - tests)}"
    assert not tests - docs, f"tests cite equations that docs/ does not have: {sorted(tests - docs)}"


# Negative controls

MARK = re.compile(r"(^|[#;] |\n)N: ")


def unexplained_marks(source: str) -> list[str]:
    """Docstrings and comments with an "N:", if the file's first docstring does not say what it means."""
    module, *texts = prose(source)
    return [] if '"N:"' in module and "negative control" in module else [text for text in texts if MARK.search(text)]


def test_the_mark_of_a_negative_control_is_explained_in_every_file_that_uses_it() -> None:
    """Who opens one file of tests is told there that "N:" marks something that must not hold."""
    sources = {path: path.read_text(encoding="utf-8") for path in sorted((ROOT / "tests").rglob("*.py"))}
    used = [path for path, source in sources.items() if any(map(MARK.search, prose(source)))]
    assert len(used) > 15
    unexplained = {path.name: unexplained_marks(sources[path]) for path in used}
    assert not any(unexplained.values()), f"used without a word: {unexplained}"
    marked = ['def f():\n    """N: x"""\n', "x = 1  # N: x\n", 'def f():\n    """A; N: x"""\n']
    assert [len(unexplained_marks(source)) for source in marked] == [1, 1, 1]
    assert not unexplained_marks('"""A docstring that opens with "N:" is a negative control."""\n' + marked[1])
