"""The laws every update rule obeys, over one table of rules. A new rule is one new row.

(out, state_out), res = fwd(*tokens, state, read=);   d_tokens, d_state = bwd(d_out, d_state_out,
res) = (d fwd)^T (d_out, d_state_out)

Two forms, recurrent (the definition) and chunked, each with a strict and an inclusive read.

A docstring that opens with "N:" is a negative control.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import array_api_compat.numpy
import array_api_strict
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fwl_ref.gradcheck import check_adjoint
from fwl_ref.rules.common import READS
from fwl_ref.tree import leaves, rebuild, tree_map
from tests.rules import one_matrix, several_arrays
from tests.rules.table import Rule, Shape
from tests.signatures import parse
from tests.strategies import arrays, chunks, first_elsewhere, generator, move_like, seeds, splits
from tests.tolerances import assert_bitwise, assert_close, assert_trees_close, float32_bound

PACKAGE = Path(__file__).resolve().parents[2] / "fwl_ref"
RULES = [*one_matrix.RULES, *several_arrays.RULES]
every_rule = pytest.mark.parametrize("rule", RULES, ids=[rule.name for rule in RULES])
FORMS = [(rule, form) for rule in RULES for form in ("recurrent", "chunked") if getattr(rule, form)]
every_form = pytest.mark.parametrize(("rule", "form"), FORMS, ids=[f"{rule.name}, {form}" for rule, form in FORMS])
IN_CHUNKS = [rule for rule in RULES if rule.chunked]
every_chunked_rule = pytest.mark.parametrize("rule", IN_CHUNKS, ids=[rule.name for rule in IN_CHUNKS])

shapes = st.builds(Shape, *(st.integers(low, high) for low, high in ((1, 2), (0, 5), (1, 3), (1, 3))))
reads = st.sampled_from(READS)
small = Shape(2, 4, 3, 2)
few = settings(max_examples=max(3, settings.default.max_examples // 5))  # where the structure that is drawn matters little


def pair(rule: Rule, form: str, read: str, chunk: int | None = None) -> tuple[Callable, Callable]:
    """``fwd(*tokens, state)`` and ``bwd((dout, dstate), res)`` of one form with everything else
    fixed.
    """
    fwd, bwd = getattr(rule, form)
    extra = () if form == "recurrent" else (chunk,)
    return lambda *case: fwd(*case, *extra, read=read), lambda d_output, res: bwd(*d_output, res)


def arguments(rule: Rule, shape: Shape, seed: int) -> tuple:
    """Tokens and an incoming state: everything a form takes but read and chunk."""
    return *rule.tokens(shape, seed), rule.state(shape, seed)


class Run(NamedTuple):
    """What a form of a rule gave."""

    output: Any  # (out, state)
    gradients: tuple
    res: Any

    @property
    def results(self) -> tuple:
        """What may be compared between two forms: their residuals differ."""
        return self.output, self.gradients


def run(fwd: Callable, bwd: Callable, case: tuple, seed: int) -> Run:
    """Output, gradients and residual for a random cotangent, which is moved to wherever the output
    lives.
    """
    draw = generator(seed + 99)
    output, res = fwd(*case)
    d_output = tree_map(lambda y: move_like(draw(*y.shape), y), output)
    return Run(output, bwd(d_output, res), res)


def cut(tokens: tuple, part: slice) -> tuple:
    return tuple(a[:, part] for a in tokens)


# Gradients
# -------------------------------------------------------------------------------------------------------------------


@every_rule
@given(shape=shapes, seed=seeds)
def test_the_gradient_is_the_derivative_of_the_inner_loss(rule: Rule, shape: Shape, seed: int) -> None:
    """<dl/dS, D> = Im l(S + i h D) / h, sequence by sequence.   (U.9), (U.14), (U.19), (U.24),
    (U.29), (U.34), (U.39), (U.44), (U.49), (U.54)
    """
    S, *rest = rule.inner(shape, seed)
    direction = tree_map(lambda a: generator(seed + 5)(*a.shape), S)
    moved = tree_map(lambda a, d: a + 1e-30j * d, S, direction)
    slope = np.imag(rule.loss(moved, *(tree_map(lambda a: a.astype("complex128"), a) for a in rest))) / 1e-30
    gradient = rule.gradient(S, *rest)
    pairs = zip(leaves(gradient), leaves(direction), strict=True)
    expected = sum(np.sum(np.reshape(g * d, (shape.batch, -1)), axis=1) for g, d in pairs)
    assert slope.shape == (shape.batch,)
    assert_close(expected, slope, scale=1.0)


@every_form
@given(shape=shapes, seed=seeds, read=reads, data=st.data())
def test_backward_is_the_adjoint_of_forward(rule: Rule, form: str, shape: Shape, seed: int, read: str, data: st.DataObject) -> None:
    """<u, J v> = <J^T u, v> for queries, keys, values, every rate and the state.   (U.1) to (U.58)"""
    chunk = data.draw(chunks(shape.length), label="chunk")
    check_adjoint(*pair(rule, form, read, chunk), arguments(rule, shape, seed), seed=seed)


@every_form
@pytest.mark.parametrize("read", READS)
def test_backward_is_the_gradient_by_complex_step(rule: Rule, form: str, read: str) -> None:
    """J^T u = Im <u, f(x + i h e)> / h, entry by entry: a witness that shares nothing with
    check_adjoint.   (U.1) to (U.58)
    """
    case, (fwd, bwd) = arguments(rule, small, 7), pair(rule, form, read, 3)
    output, gradients, _ = run(fwd, bwd, case, 7)
    u, lifted = generator(7 + 99), tree_map(lambda a: a.astype("complex128"), case)
    cotangent = [u(*y.shape) for y in leaves(output)]
    flat = leaves(lifted)
    assert len(leaves(gradients)) == len(flat)
    for i, actual in enumerate(leaves(gradients)):
        expected = np.zeros(actual.shape)
        for entry in np.ndindex(actual.shape):
            moved = flat[i].copy()
            moved[entry] += 1e-30j
            result, _ = fwd(*rebuild(lifted, [*flat[:i], moved, *flat[i + 1 :]]))
            expected[entry] = sum(np.sum(a * np.imag(b)) for a, b in zip(cotangent, leaves(result), strict=True)) / 1e-30
        assert_close(actual, expected, what=f"{rule.name}, gradient {i}")


@every_form
@few
@given(shape=shapes, seed=seeds, read=reads, data=st.data())
def test_an_unused_final_state_has_no_gradient(rule: Rule, form: str, shape: Shape, seed: int, read: str, data: st.DataObject) -> None:
    """bwd(dout, None, res) = bwd(dout, 0, res): None stands for zero by structure."""
    (out, state), res = pair(rule, form, read, data.draw(chunks(shape.length)))[0](*arguments(rule, shape, seed))
    bwd, dout = getattr(rule, form)[1], generator(seed + 9)(*out.shape)
    assert_trees_close(bwd(dout, None, res), bwd(dout, tree_map(lambda a: np.zeros_like(a), state), res), scale=1.0)


# Forms
# -----------------------------------------------------------------------------------------------------------------------


@every_chunked_rule
@given(shape=shapes, seed=seeds, read=reads, data=st.data())
def test_chunked_is_recurrent(rule: Rule, shape: Shape, seed: int, read: str, data: st.DataObject) -> None:
    """chunked_S = recurrent in outputs, final state and every gradient.   (U.12), (U.17), (U.22),
    (U.27), (U.32), (U.37), (U.42), (U.47), (U.52), (U.57)
    """
    case, chunk = arguments(rule, shape, seed), data.draw(chunks(shape.length), label="chunk")
    actual = run(*pair(rule, "chunked", read, chunk), case, seed)
    expected = run(*pair(rule, "recurrent", read), case, seed)
    assert_trees_close(actual.output, expected.output, what="output", scale=1.0)
    assert_trees_close(actual.gradients, expected.gradients, what="gradient", scale=1.0)


@every_chunked_rule
@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("length", first_elsewhere([7, 0, 1, 2, 12]))
def test_every_chunk_size_gives_the_same(rule: Rule, read: str, length: int) -> None:
    """S = 1, ..., T + 2 and one chunk: divisors, non-divisors, T itself, more than T."""
    case = arguments(rule, Shape(2, length, 3, 4), length)
    expected = run(*pair(rule, "recurrent", read), case, 1)
    for chunk in (None, *range(1, length + 3)):
        actual = run(*pair(rule, "chunked", read, chunk), case, 1)
        assert_trees_close(actual.results, expected.results, what=f"chunk {chunk}", scale=1.0)


@every_rule
@given(shape=shapes, seed=seeds, read=reads, data=st.data())
def test_a_split_sequence_with_a_carried_state_is_the_whole(rule: Rule, shape: Shape, seed: int, read: str, data: st.DataObject) -> None:
    """run(x[:k]) then run(x[k:], state) = run(x) for any cuts and any mix of forms."""
    case = arguments(rule, shape, seed)
    tokens, state, outs = case[:-1], case[-1], []
    expected, _ = pair(rule, "recurrent", read)[0](*case)
    cuts = data.draw(splits(shape.length), label="cuts")
    for start, stop in itertools.pairwise(cuts):
        form = data.draw(st.sampled_from(["recurrent", "chunked"] if rule.chunked else ["recurrent"]), label="form")
        (out, state), _ = pair(rule, form, read, 2)[0](*cut(tokens, slice(start, stop)), state)
        outs.append(out)
    assert_trees_close((np.concatenate(outs, axis=1), state), expected, scale=1.0)


@every_form
@few
@given(shape=shapes, seed=seeds, read=reads)
def test_no_state_is_an_empty_memory(rule: Rule, form: str, shape: Shape, seed: int, read: str) -> None:
    """state=None is a state of zeros, bitwise, and the gradient is that at zeros."""
    if not rule.starts_empty:
        return
    case, (fwd, bwd) = arguments(rule, shape, seed), pair(rule, form, read, 2)
    empty = run(fwd, bwd, (*case[:-1], None), seed)
    zeros = run(fwd, bwd, (*case[:-1], tree_map(lambda a: np.zeros_like(a), case[-1])), seed)
    for a, b in zip(leaves(empty.output), leaves(zeros.output), strict=True):
        assert_bitwise(a, b, rule.name)
    tokens = len(case) - 1
    assert_trees_close(empty.gradients[:tokens], zeros.gradients[:tokens])


@every_form
@given(shape=shapes, seed=seeds, data=st.data())
def test_an_inclusive_read_is_a_strict_read_one_token_later(rule: Rule, form: str, shape: Shape, seed: int, data: st.DataObject) -> None:
    """inclusive o_t = q_t S_{t+1}: the strict read of a following token with the same
    query.   (U.1)
    """
    case = arguments(rule, shape._replace(length=shape.length + 2), seed)
    t = data.draw(st.integers(0, shape.length), label="t")
    inclusive, _ = pair(rule, form, "inclusive", 2)[0](*case)
    q = case[0].copy()
    q[:, t + 1] = q[:, t]
    strict, _ = pair(rule, form, "strict", 2)[0](q, *case[1:])
    assert_close(strict[0][:, t + 1], inclusive[0][:, t], scale=1.0)
    assert_trees_close(strict[1], inclusive[1])


# Causality, sequences
# --------------------------------------------------------------------------------------------------------


def moved_from(rule: Rule, case: tuple, t: int, seed: int, own: bool) -> tuple:
    """``case`` with everything of tokens after t, and unless ``own`` all but the query of token t,
    replaced at scale 1e3.
    """
    other = rule.tokens(Shape(*case[2].shape[:2], case[0].shape[2], case[2].shape[-1]), seed)
    tokens = [a.copy() for a in case[:-1]]
    for i, (a, b) in enumerate(zip(tokens, other, strict=True)):
        start = t + 1 if own or i == 0 else t
        a[:, start:] = b[:, start:] * (1e3 if i < 3 else 1)  # rates have their range
    return *tokens, case[-1]


@every_form
@given(shape=shapes, seed=seeds, data=st.data())
def test_reading_is_causal_to_the_last_bit(rule: Rule, form: str, shape: Shape, seed: int, data: st.DataObject) -> None:
    """o_{<=t} keeps its bits when k, v and rates from t on (strict) or after t (inclusive) are
    replaced at scale 1e3.   (U.1)
    """
    shape = shape._replace(length=shape.length + 1)
    case, chunk = arguments(rule, shape, seed), data.draw(chunks(shape.length), label="chunk")
    t = data.draw(st.integers(0, shape.length - 1), label="t")
    for read in READS:
        fwd, _ = pair(rule, form, read, chunk)
        before, _ = fwd(*case)
        after, _ = fwd(*moved_from(rule, case, t, seed + 3, own=read == "inclusive"))
        assert_bitwise(after[0][:, : t + 1], before[0][:, : t + 1], f"{rule.name}, {read}")


@every_form
def test_an_inclusive_read_does_see_its_own_token(rule: Rule, form: str) -> None:
    """N: the test above is not true of inclusive reads passed off as strict."""
    case = arguments(rule, small, 3)
    fwd, _ = pair(rule, form, "inclusive", 2)
    before, _ = fwd(*case)
    after, _ = fwd(*moved_from(rule, case, 1, 8, own=False))
    assert_bitwise(after[0][:, :1], before[0][:, :1])
    assert np.all(np.abs(after[0][:, 1] - before[0][:, 1]) > 1e-3)


@every_form
@few
@given(seed=seeds, read=reads)
def test_sequences_do_not_see_each_other(rule: Rule, form: str, seed: int, read: str) -> None:
    """Sequence b of a batch is what it is alone; there is no sum over the batch, neither forward
    nor backward.
    """
    case, (fwd, bwd) = arguments(rule, small, seed), pair(rule, form, read, 3)
    whole = run(fwd, bwd, case, seed)
    draw = generator(seed + 99)
    cotangents = [draw(*y.shape) for y in leaves(whole.output)]
    for b in range(small.batch):
        alone = tree_map(lambda a: a[b : b + 1], case)
        output, res = fwd(*alone)
        gradients = bwd(rebuild(output, [u[b : b + 1] for u in cotangents]), res)
        assert_trees_close((output, gradients), tree_map(lambda a: a[b : b + 1], whole.results), scale=1.0)


# Arrays
# ----------------------------------------------------------------------------------------------------------------------


@every_form
@few
@given(shape=shapes, seed=seeds, read=reads)
def test_rules_are_pure(rule: Rule, form: str, shape: Shape, seed: int, read: str) -> None:
    """No input, residual or cotangent is modified, and a second call gives the same bits."""
    case, (fwd, bwd) = arguments(rule, shape, seed), pair(rule, form, read, 2)
    saved = [a.copy() for a in leaves(case)]
    output, res = fwd(*case)
    draw = generator(seed)
    d_output = tree_map(lambda y: draw(*y.shape), output)
    kept = [a.copy() for a in arrays((output, res, d_output))]
    first = bwd(d_output, res)
    again = fwd(*case)[0], bwd(d_output, res)
    for now, before in ((leaves(case), saved), (arrays((output, res, d_output)), kept), (leaves(again), leaves((output, first)))):
        for a, b in zip(now, before, strict=True):
            assert_bitwise(a, b, rule.name)


@every_form
@few
@given(shape=shapes, seed=seeds, read=reads)
def test_dtype_is_preserved_and_float32_is_float64_rounded(rule: Rule, form: str, shape: Shape, seed: int, read: str) -> None:
    """dtype(f(x)) = dtype(x) for every output, residual and gradient; |f32 - f64| <= c n 2^-24."""
    single = tree_map(lambda a: a.astype("float32"), arguments(rule, shape, seed))
    double = tree_map(lambda a: a.astype("float64"), single)
    rounded, exact = (run(*pair(rule, form, read, 2), case, seed) for case in (single, double))
    for results, dtype in ((rounded, "float32"), (exact, "float64")):
        assert all(a.dtype == dtype for a in arrays(results) if a.dtype.kind == "f")
    for a, b in zip(leaves(rounded.results), leaves(exact.results), strict=True):
        assert_close(a, b, float32_bound(terms=64, stages=32), rule.name, scale=1.0)


@every_form
@few
@given(shape=shapes, seed=seeds, read=reads)
def test_rules_accept_non_contiguous_inputs(rule: Rule, form: str, shape: Shape, seed: int, read: str) -> None:
    """f(strided view of x) = f(x), both directions."""

    def strided(a: np.ndarray) -> np.ndarray:
        view = np.full(tuple(2 * n for n in a.shape), np.nan, order="F")[tuple(slice(None, None, 2) for _ in a.shape)][..., ::-1]
        view[...] = a
        return view

    case, (fwd, bwd) = arguments(rule, shape, seed), pair(rule, form, read, 2)
    assert_trees_close(run(fwd, bwd, tree_map(strided, case), seed).results, run(fwd, bwd, case, seed).results, scale=1.0)


@every_form
@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("shape", [Shape(0, 3, 4, 5), Shape(2, 0, 4, 5), Shape(0, 0, 4, 5), Shape(2, 1, 4, 5)])
def test_empty_batch_and_empty_sequence_work(rule: Rule, form: str, read: str, shape: Shape) -> None:
    """B = 0, T = 0 and T = 1: shapes follow the inputs, nothing is NaN, and without tokens the
    state passes through.
    """
    case = arguments(rule, shape, 0)
    (out, state), gradients, _ = run(*pair(rule, form, read, 2), case, 0)
    assert out.shape == (shape.batch, shape.length, shape.values)
    assert [a.shape for a in leaves((state, gradients))] == [a.shape for a in leaves((case[-1], case))]
    assert all(np.all(np.isfinite(a)) for a in leaves((out, state, gradients)))
    if shape.length == 0:
        assert_trees_close(state, case[-1])
    elif read == "strict" and shape.batch and rule.starts_empty:
        (out, _), _ = pair(rule, form, read)[0](*case[:-1], None)
        assert np.all(out == 0)  # nothing was written before the only token


@every_form
@pytest.mark.parametrize("read", READS)
def test_rules_run_on_any_array_library_and_device(rule: Rule, form: str, read: str) -> None:
    """f on a strict array-API library, on a device that is not the host, equals f on NumPy: no rule
    calls NumPy by accident.
    """
    device, case = array_api_strict.Device("device1"), arguments(rule, small, 0)
    there = rebuild(case, [array_api_strict.asarray(a).to_device(device) for a in leaves(case)])
    expected, actual = (run(*pair(rule, form, read, 3), c, 0) for c in (case, there))
    for a, b in zip(arrays(actual), arrays(expected), strict=True):
        assert a.device == device, f"{rule.name}: a result left its device"
        assert_close(np.asarray(a.to_device(array_api_strict.Device("CPU_DEVICE"))), b, what=rule.name)


# Boundary
# --------------------------------------------------------------------------------------------------------------------


@every_form
def test_a_read_has_to_be_chosen(rule: Rule, form: str) -> None:
    """There is no default, and only two words are reads."""
    case = arguments(rule, small, 0)
    with pytest.raises(TypeError, match="read"):
        getattr(rule, form)[0](*case)
    for wrong in ("causal", "", None, True):
        with pytest.raises(ValueError, match='"strict".*or "inclusive"'):
            pair(rule, form, wrong)[0](*case)


@every_chunked_rule
@pytest.mark.parametrize("chunk", [0, -1])
def test_a_chunk_below_one_token_is_refused(rule: Rule, chunk: int) -> None:
    """S >= 1."""
    with pytest.raises(ValueError, match=f"at least 1 token.*got {chunk}"):
        pair(rule, "chunked", "strict", chunk)[0](*arguments(rule, small, 0))


@every_form
def test_shapes_that_do_not_fit_are_refused(rule: Rule, form: str) -> None:
    """One entry per token, one state per sequence: every input cut along every axis it shares with
    another one, and named.
    """
    case, (fwd, _) = arguments(rule, small, 0), pair(rule, form, "strict", 2)
    names = list(inspect.signature(getattr(rule, form)[0]).parameters)
    for i in range(1, len(case) - 1):
        for wrong in (case[i][:1], case[i][:, :1], case[i][0]):
            with pytest.raises(ValueError, match=rf"^{names[i]} must have shape \(.*got {re.escape(str(wrong.shape))}"):
                fwd(*case[:i], wrong, *case[i + 1 :])
    with pytest.raises(ValueError, match=r"state.*got \(1, "):
        fwd(*case[:-1], tree_map(lambda a: a[:1], case[-1]))
    with pytest.raises(TypeError, match="one dtype"):
        fwd(case[0].astype("float32"), *case[1:])


def signatures() -> list[tuple[str, str, str]]:
    """(module, function, first docstring line) of every _fwd, _loss and _gradient of the folder."""
    found = []
    for path in sorted((PACKAGE / "rules").glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if (
                isinstance(node, ast.FunctionDef)
                and node.name[0] != "_"
                and node.name.endswith(("_fwd", "_loss", "_gradient"))
                and path.stem != "common"
            ):
                found.append((path.stem, node.name, (ast.get_docstring(node) or "").split("\n")[0]))
    return found


SIGNATURES = signatures()


def test_every_rule_has_the_same_functions() -> None:
    """loss, gradient, recurrent_fwd, recurrent_bwd in every rule file, and a chunked_bwd for a
    chunked_fwd.
    """
    modules = {module for module, name, _ in SIGNATURES if name == f"{module}_loss"}
    assert {rule.name for rule in one_matrix.RULES} <= modules
    for name in modules:
        functions = dict(inspect.getmembers(importlib.import_module(f"fwl_ref.rules.{name}"), inspect.isfunction))
        assert {f"{name}_{suffix}" for suffix in ("loss", "gradient", "recurrent_fwd", "recurrent_bwd")} <= functions.keys()
        assert (f"{name}_chunked_fwd" in functions) == (f"{name}_chunked_bwd" in functions)
        for suffix in ("recurrent_fwd", "chunked_fwd"):
            if f"{name}_{suffix}" in functions:
                read = inspect.signature(functions[f"{name}_{suffix}"]).parameters["read"]
                assert read.kind is read.KEYWORD_ONLY and read.default is read.empty


LETTERS = {"B": 2, "T": 4, "K": 3, "E": 5, "N": 2}
PLAIN = [(m, n, line) for m, n, line in SIGNATURES if m in {rule.name for rule in one_matrix.RULES}]


@pytest.mark.parametrize(("module", "name", "line"), PLAIN, ids=[name for _, name, _ in PLAIN])
def test_the_signature_of_a_rule_is_what_it_computes(module: str, name: str, line: str) -> None:
    """Arrays of the shapes on the left of -> give arrays of the shapes on the right."""
    inputs, outputs = parse(line)
    draw, read = generator(0), {"read": "strict"} if name.endswith("_fwd") else {}
    case = [np.abs(draw(*(LETTERS[d] for d in dims))) for dims in inputs]
    result = getattr(importlib.import_module(f"fwl_ref.rules.{module}"), name)(*case, **read)
    found = leaves(result[0] if read else result)
    assert [a.shape for a in found] == [tuple(LETTERS[d] for d in dims) for dims in outputs]


# The README
# ------------------------------------------------------------------------------------------------------------------


@pytest.mark.host("reads a file")
def test_the_example_of_the_readme_runs() -> None:
    """Its assertion included."""
    (example,) = re.findall(r"```python\n(.*?)```", (PACKAGE / "rules" / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert "assert" in example
    exec(compile(example, "README.md", "exec"), {})


S, K, E, N = 8, 5, 3, 2  # tokens in a chunk
PRODUCTS = {  # multiply-adds of one chunk: recurrent, chunked
    "linear": (2 * S * K * E, 2 * S * K * E + S * S * (K + E)),
    "decay": (2 * S * K * E, 2 * S * K * E + S * S * (K + E)),
    "gla": (2 * S * K * E, 2 * S * K * E + S * S * (K + E)),  # the fades between are no matrix product: S S K more
    "delta": (3 * S * K * E, 3 * S * K * E + S * S * (2 * K + E) + S * (S - 1) // 2 * E),
    "gated_delta": (3 * S * K * E, 3 * S * K * E + S * S * (2 * K + E) + S * (S - 1) // 2 * E),
    "kda": (3 * S * K * E, 3 * S * K * E + S * S * (2 * K + E) + S * (S - 1) // 2 * E),  # likewise: S S (2 K) more
    "dplr": (4 * S * K * E, 4 * S * K * E + S * S * (4 * K + 3 * E) + S * (S - 1) // 2 * E),  # likewise: S S (4 K) more
    "longhorn": (3 * S * K * E, 3 * S * K * E + S * S * (2 * K + E) + S * (S - 1) // 2 * E),
    "delta_product": ((2 * N + 1) * S * K * E, 3 * N * S * K * E + (N * S) ** 2 * (2 * K + E) + N * S * (N * S - 1) // 2 * E),
}
PRODUCTS["gated_delta_product"] = PRODUCTS["delta_product"]


@pytest.mark.host("counts calls of NumPy")
@pytest.mark.parametrize("rule", one_matrix.RULES, ids=[rule.name for rule in one_matrix.RULES])
def test_multiply_adds_are_what_the_readme_says(rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrix products and outer products counted as they happen, forward, one chunk of S tokens."""
    count = 0

    def matmul(a: np.ndarray, b: np.ndarray, **options: Any) -> np.ndarray:
        nonlocal count
        found = np.matmul(a, b, **options)
        count += found.size * a.shape[-1]
        return found

    def outer(k: np.ndarray, v: np.ndarray) -> np.ndarray:
        nonlocal count
        count += k.size * v.shape[-1]
        return k[:, :, None] * v[:, None, :]

    monkeypatch.setattr(array_api_compat.numpy, "matmul", matmul)
    for name in ("linear", "decay", "gla", "delta", "dplr"):
        monkeypatch.setattr(importlib.import_module(f"fwl_ref.rules.{name}"), "outer", outer)
    for form, expected in zip(("recurrent", "chunked"), PRODUCTS[rule.name], strict=True):
        count = 0
        pair(rule, form, "strict")[0](*arguments(rule, Shape(1, S, K, E), 0))
        assert count == expected, f"{rule.name}, {form}"
