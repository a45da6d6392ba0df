"""Every name and keyword that the package asks of an array library exists: in the array API
standard, and in CuPy where it is installed.

Read off the syntax trees, so lines that no test reaches are checked too, and no GPU is needed: CuPy
can be imported without one. Whatever is called on a namespace (``xp.sum(x, axis=0)``,
``namespace(x).zeros_like(x)``) must exist, with that many positional arguments and those keywords.
What is read off an array (``x.shape``) must be in the standard, outside the few places that work on
host arrays by design.
"""

from __future__ import annotations

import ast
import functools
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import array_api_strict
import numpy as np
import pytest

from tests.conftest import notes

pytestmark = pytest.mark.host("reads source files and signatures")

PACKAGE = Path(__file__).resolve().parent.parent / "fwl_ref"
SPACES = {"namespace", "library"}  # functions whose result is a namespace
MISSING = ""
try:
    import array_api_compat.cupy as cupy_namespace
    import cupy
except ImportError as error:
    MISSING = f"CuPy is not installed ({error}): pip install 'fwl_ref[cupy-surface]', no GPU needed"
    notes["names and keywords against CuPy"] = MISSING
without_cupy = pytest.mark.skipif(bool(MISSING), reason=MISSING)

# What the standard gives an array, and what only NumPy does.
STANDARD = {"T", "device", "dtype", "mT", "ndim", "shape", "size", "to_device"}
NUMPY_ONLY = {n for n in dir(np.ndarray) if not n.startswith("_")} - STANDARD
OTHERS = {"copy", "item", "sort"}  # also methods of lists, dictionaries, strings

# Functions that work on host arrays by design, and why: (module, function) or (module, "") for all
# of a module.
HOST_CODE = {
    ("backend", ""): "the crossings",
    ("verify.measure", ""): "compares what came home",
    ("files", ""): "files",
    ("lm.checkpoint", ""): "files",
    ("checks", "check_labels"): "returns at once for arrays of a device",
    ("checks", "check_weights"): "returns at once for arrays of a device",
    ("lm.data", ""): "text",
    ("lm.corpus", ""): "text",
    ("lm.reading", ""): "text",
    ("lm.state", ""): "files",
    ("lm.table", ""): "losses that came home",
    ("lm.evaluate", "bits_per_byte"): "losses that came home",
    ("demo.compare", "change_standard_error"): "losses that came home",
    ("exercises", ""): "compares on the host",
    ("lm.generate", "sample"): "logits that came home",
    ("testing.command", ""): "no arrays",
    ("testing.cases", ""): "draws cases on the host",
    ("testing.compare", ""): "compares what came home",
    ("testing.diagnose", ""): "compares what came home",
    ("testing.faults.backward", ""): "host arrays of a case",
    ("testing.faults.common", ""): "host arrays of a case",
    ("testing.faults.numbers", ""): "host arrays of a case",
    ("testing.faults.own", ""): "host arrays of a case",
    ("testing.faults.state", ""): "host arrays of a case",
    ("testing.faults.table", ""): "host arrays of a case",
    ("testing.layouts", ""): "host arrays of a case",
    ("testing.libraries", ""): "the crossings",
    ("testing.options", ""): "no arrays",
    ("testing.trial", ""): "the crossings",
    ("verify.golden", ""): "files",
    ("verify.report", ""): "files",
    ("verify.golden_answers", ""): "files",
    ("verify.golden_fields", ""): "files",
    ("verify.golden_block", "read_case"): "files",
    ("verify.golden_block", "draw_case"): "draws cases on the host",
    ("verify.golden_rules", "_check_ranges"): "files",
    ("verify.golden_rules", "draw_case"): "draws cases on the host",
    ("verify.golden_ops", "draw_case"): "draws cases on the host",
    ("verify.golden_around", "_boundaries"): "files",
    ("lm.model", "initialize"): "draws parameters on the host",
    ("demo.plots", ""): "figures",
    ("demo.pair", ""): "files",
    ("pretrained.gguf_file", ""): "files",
    ("pretrained.source", ""): "files",
    ("audit.check", ""): "scores that came home",
    ("audit.diagnosis", ""): "scores that came home",
    ("audit.evaluator", ""): "scores that came home",
    ("audit.probes", ""): "scores that came home",
    ("demo.report", ""): "files",
    ("lm.mixture", ""): "losses that came home",
    ("adapt.documents", ""): "text",
    ("adapt.store", ""): "files",
    ("adapt.learn", "draw"): "draws batches on the host",
    ("adapt.learn", "_rms"): "a value that came home",
    ("adapt.rows", ""): "files",
    ("adapt.run", ""): "files",
    ("adapt.table", ""): "losses that came home",
    ("adapt.figure", ""): "figures",
    ("adapt.study", "measure"): "features and gradients that came home",
    ("adapt.study", "mean_loss"): "losses that came home",
    ("study.collect", ""): "results that came home",
    ("study.estimate", ""): "text",
    ("study.journal", ""): "files",
    ("study.make", ""): "losses that came home",
    ("study.ngram", ""): "text",
    ("study.outside", ""): "text",
    ("study.row", ""): "no arrays",
    ("study.statistics", ""): "results that came home",
    ("study.training", ""): "gradients that came home",
    ("study.ways", ""): "losses that came home",
    ("study.where", ""): "text",
    ("study.tables", ""): "results that came home",
    ("study.page", ""): "files",
}


class Use(NamedTuple):
    """One place where something is asked of a library."""

    where: str  # file:line
    name: str  # "sum", "linalg.qr"
    positional: int | None  # how many arguments; None: not called, or with *args
    keywords: tuple[str, ...]


# Reading
# -----------------------------------------------------------------------------------------------------------------------


def sources() -> Iterator[tuple[str, str]]:
    """Module name and text of every file of the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        yield (".".join(path.relative_to(PACKAGE).with_suffix("").parts), path.read_text(encoding="utf-8"))


def is_space(node: ast.AST, names: set[str]) -> bool:
    """Whether an expression is a namespace: a name that was bound to one, or a call that returns
    one.
    """
    if isinstance(node, ast.Name):
        return node.id in names
    return isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in SPACES


def bound(tree: ast.AST) -> set[str]:
    """Names that are bound to a namespace anywhere in a module, by ``xp = namespace(...)`` alone or
    in a tuple.
    """
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                pairs = zip(target.elts, node.value.elts, strict=False) if both_tuples(target, node.value) else [(target, node.value)]
                names |= {t.id for t, v in pairs if isinstance(t, ast.Name) and is_space(v, set())}
    return names | {"xp"}


def both_tuples(a: ast.AST, b: ast.AST) -> bool:
    return isinstance(a, ast.Tuple) and isinstance(b, ast.Tuple)


def uses(module: str, text: str) -> Iterator[Use]:
    """Every name asked of a namespace in a module, with the arguments if it is called."""
    tree = ast.parse(text)
    names, calls = bound(tree), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            calls[node.func] = node
    inner = {node.value for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or node in inner:
            continue
        path, root = [node.attr], node.value
        while isinstance(root, ast.Attribute):
            path.insert(0, root.attr)
            root = root.value
        if not is_space(root, names) or path[0].startswith("__"):
            continue
        call = calls.get(node)
        starred = call is None or any(isinstance(a, ast.Starred) for a in call.args)
        keywords = () if call is None else tuple(k.arg for k in call.keywords if k.arg)
        yield Use(f"{module}:{node.lineno}", ".".join(path), None if starred else len(call.args), keywords)


def root(node: ast.AST) -> ast.AST:
    """Where a chain of attributes, calls and indices begins: ``host`` in ``host.zeros(3).sum()``; a
    call of ``to_numpy`` begins one.
    """
    while isinstance(node, ast.Attribute | ast.Call | ast.Subscript):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "to_numpy":
            return node.func
        node = node.func if isinstance(node, ast.Call) else node.value
    return node


def at_home(node: ast.AST, names: set[str]) -> bool:
    """Whether an expression is a host array by the look of it, or no array at all."""
    begin = root(node)
    return isinstance(begin, ast.Constant) or getattr(begin, "id", "") in {"host", "math", "to_numpy", "args", "xp"} | names


def foreign(module: str, text: str) -> Iterator[str]:
    """Places that read something off an array that only NumPy's arrays have, in code that must run
    on any.

    Let go are fields of NamedTuples, what came home by ``to_numpy``, and what stands behind
    ``is_host``.
    """
    for top in ast.parse(text).body:
        if (module, "") in HOST_CODE or (module, getattr(top, "name", "")) in HOST_CODE:
            continue
        inside = list(ast.walk(top))
        called = {n.func for n in inside if isinstance(n, ast.Call)}
        guarded = {n for i in inside if isinstance(i, ast.If) and "is_host" in ast.dump(i.test) for n in ast.walk(i)}
        home = {t.id for n in inside if isinstance(n, ast.Assign) and at_home(n.value, set()) for t in n.targets if isinstance(t, ast.Name)}
        for node in inside:
            wrong = isinstance(node, ast.Attribute) and node.attr in (NUMPY_ONLY - OTHERS) | {"T"}
            if not wrong or node in guarded or (node.attr in fields() and node not in called) or is_space(node.value, {"xp"}):
                continue
            if not at_home(node.value, home):
                yield f"{module}:{node.lineno}: .{node.attr}"


@functools.cache
def fields() -> set[str]:
    """Names of the fields of every class of the package."""
    classes = [node for _, text in sources() for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ClassDef)]
    return {field.target.id for node in classes for field in node.body if isinstance(field, ast.AnnAssign)}


# Judging
# -----------------------------------------------------------------------------------------------------------------------


def find(space: Any, path: str) -> Any:
    """The object at "linalg.qr", or None."""
    return functools.reduce(lambda found, name: getattr(found, name, None), path.split("."), space)


def objection(use: Use, space: Any) -> str:
    """Why the library cannot do what a line asks of it; empty if it can, as far as its signature
    tells.
    """
    function = find(space, use.name)
    if function is None:
        return f"{use.where}: {space.__name__} has no {use.name}"
    if use.positional is None or not callable(function):
        return ""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a ufunc, written in C
        wrong = set(use.keywords) - {"out", "dtype", "casting", "where"}
        count = getattr(function, "nin", use.positional)
        return (
            f"{use.where}: {use.name} takes {count} arrays, got {use.positional} and {sorted(wrong)}"
            if wrong or count != use.positional
            else ""
        )
    try:
        signature.bind(*[None] * use.positional, **dict.fromkeys(use.keywords))
    except TypeError as error:
        return f"{use.where}: {space.__name__}.{use.name}{signature}: {error}"
    loose = {n for n in use.keywords if n not in signature.parameters}
    return f"{use.where}: {use.name} takes {sorted(loose)} only through **kwargs" if loose - {"out", "dtype"} else ""


@functools.cache
def everything() -> list[Use]:
    """All uses in the package. Not made on import: the backends that leave these tests out would
    read every source for nothing.
    """
    return [use for module, text in sources() for use in uses(module, text)]


def test_the_reader_sees_what_is_asked() -> None:
    """The tests below would pass on an empty list: here are uses that exist, of every kind."""
    assert len(everything()) > 300 and len({use.name for use in everything()}) > 30
    found = {(use.name, use.keywords) for use in everything()}
    assert {
        ("sum", ("axis", "keepdims")),
        ("cumulative_prod", ("axis", "include_initial")),
        ("arange", ("dtype", "device")),
        ("inf", ()),
    } <= found
    assert {use.where.split(":")[0] for use in everything()} >= {
        "fwl",
        "lm.train",
        "lm.adamw",
        "ops.attention",
        "ops.layernorm",
        "tree",
        "gradcheck",
    }


def test_the_array_api_standard_has_every_name_and_keyword() -> None:
    """Against the reference implementation of the standard, signature by signature."""
    wrong = [o for o in (objection(use, array_api_strict) for use in everything()) if o]
    assert not wrong, "\n".join(wrong)


@without_cupy
def test_cupy_has_every_name_and_keyword() -> None:
    """Against CuPy as array_api_compat presents it, imported without a GPU."""
    wrong = [o for o in (objection(use, cupy_namespace) for use in everything()) if o]
    assert not wrong, "\n".join(wrong)


def test_arrays_are_asked_for_nothing_that_only_numpy_has() -> None:
    """No x.sum(), x.T, x.astype(...) in code that must run on any library: functions, not methods."""
    wrong = [line for module, text in sources() for line in foreign(module, text)]
    assert not wrong, "\n".join(wrong)


@without_cupy
def test_cupy_arrays_have_what_the_package_reads_off_arrays() -> None:
    """shape, dtype, ndim, device, size."""
    read = {n.attr for _, text in sources() for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Attribute)} & STANDARD
    assert {"shape", "dtype", "ndim", "device"} <= read
    assert not {name for name in read - {"to_device", "mT"} if not hasattr(cupy.ndarray, name)}


# Mutants: a line that asks for what is not there is found
# ------------------------------------------------------------------------


def source(line: str) -> str:
    return f"def f(x, y):\n    xp, n = namespace(x), 2\n    if x.ndim < 0:  # never reached\n        return {line}\n    return x\n"


BOTH, CUPY, NEITHER = {"standard", "cupy"}, {"cupy"}, set()
ASKED = {  # a line, and the libraries that can do it
    "xp.sum(x, axis=0)": BOTH,
    "namespace(x).zeros_like(x)": BOTH,
    "xp.linalg.vector_norm(x, axis=-1)": BOTH,
    "xp.einsum('ij,jk', x, y)": CUPY,
    "xp.linalg.lstsq(x, y)": CUPY,
    "xp.concatenate([x, y])": CUPY,
    "namespace(x, y).add_at(x, y)": NEITHER,
    "xp.sum(x, dim=0)": NEITHER,
    "xp.sum(x, axis=0, keepdim=True)": NEITHER,
    "xp.exp(x, y, n)": NEITHER,
    "xp.exp(x, axis=0)": NEITHER,
    "xp.matmul(x)": NEITHER,
    "xp.cumulative_sum(x, axis=0, initial=0)": NEITHER,
}


@pytest.mark.parametrize("line", ASKED)
@pytest.mark.parametrize("space", ["standard", pytest.param("cupy", marks=without_cupy)])
def test_a_bad_name_and_a_bad_keyword_are_found(line: str, space: str) -> None:
    """Also on a line that no test reaches."""
    library = array_api_strict if space == "standard" else cupy_namespace
    found = [o for o in (objection(use, library) for use in uses("mutant", source(line))) if o]
    assert bool(found) != (space in ASKED[line]), found


@pytest.mark.parametrize("line", ["x.T", "x.sum()", "(x @ y).astype('float32')", "x.copy().reshape(-1)", "y.any(axis=0)"])
def test_a_method_that_only_numpy_has_is_found(line: str) -> None:
    """And xp.any(y), x.shape are not."""
    assert list(foreign("mutant", source(line)))
    assert not list(foreign("mutant", source("xp.any(y) or x.shape[0]")))
