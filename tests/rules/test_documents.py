"""Packed rows: every document of a row gets what it gets alone, in every form of every rule.

A docstring that opens with "N:" is a negative control.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import array_api_strict
import numpy as np
import pytest

from fwl_ref.gradcheck import check_adjoint
from fwl_ref.ops.short_conv import short_conv_bwd, short_conv_fwd
from fwl_ref.rules.common import READS
from fwl_ref.rules.decay import decay_chunked_fwd
from fwl_ref.rules.documents import document_lengths, documents_bwd, documents_fwd
from fwl_ref.rules.mesa import mesa_recurrent_bwd, mesa_recurrent_fwd
from fwl_ref.rules.ttt import UnderWay
from fwl_ref.rules.ttt_linear import ttt_linear_dual_bwd, ttt_linear_dual_fwd
from fwl_ref.tree import leaves, tree_map
from tests.rules.several_arrays import gain_and_bias, linear_state, ttt_tokens
from tests.rules.table import Rule, Shape
from tests.rules.test_laws import FORMS, pair
from tests.strategies import MORE_NUMBERS, generator
from tests.tolerances import assert_bitwise, assert_close, assert_trees_close

LENGTHS = [[3, 1, 4], [4, 4]]  # two rows of 8 tokens, five documents
DOCUMENTS = [(0, 0, 3), (0, 3, 4), (0, 4, 8), (1, 0, 4), (1, 4, 8)]  # row, start, stop
SHAPE, ONE_EACH = Shape(2, 8, 3, 3), Shape(5, 8, 3, 3)
ELSEWHERE = {"delta", "mesa"}  # one matrix, several arrays: packing makes the same calls for all rules
every_form = pytest.mark.parametrize(
    ("rule", "form"),
    [pytest.param(rule, form, id=f"{rule.name}, {form}", marks=[] if rule.name in ELSEWHERE else [MORE_NUMBERS]) for rule, form in FORMS],
)
every_read = pytest.mark.parametrize("read", READS)


def packed(rule: Rule, form: str, read: str) -> tuple:
    """fwd(*tokens, state) and bwd((dout, dstate), res) on packed rows."""
    fwd, bwd = pair(rule, form, read, 2)
    apart = lambda dout, dstate, res: bwd((dout, dstate), res)  # noqa: E731
    return lambda *case: documents_fwd(fwd, case[:-1], LENGTHS, case[-1]), lambda d, res: documents_bwd(apart, *d, res)


@every_form
@every_read
def test_a_document_in_a_row_is_the_document_alone(rule: Rule, form: str, read: str) -> None:
    """Outputs, final states and all gradients of packed rows are those of a call per document.   (H.6), (H.7)"""
    tokens, state, draw = rule.tokens(SHAPE, 3), rule.state(ONE_EACH, 3), generator(4)
    fwd, bwd = packed(rule, form, read)
    output, res = fwd(*tokens, state)
    cotangent = tree_map(lambda a: draw(*a.shape), output)
    gradients = bwd(cotangent, res)
    one_fwd, one_bwd = pair(rule, form, read, 2)
    for i, (row, start, stop) in enumerate(DOCUMENTS):
        of = np.s_[row : row + 1, start:stop]
        own = tree_map(lambda a: a[i : i + 1], state)  # noqa: B023
        (out, after), part = one_fwd(*(a[of] for a in tokens), own)
        last = tree_map(lambda a: a[i : i + 1], cotangent[1])  # noqa: B023
        expected = one_bwd((cotangent[0][of], last), part)
        assert_close(output[0][of], out, scale=1.0)
        assert_trees_close(tree_map(lambda a: a[i : i + 1], output[1]), after, scale=1.0)  # noqa: B023
        assert_trees_close(tuple(a[of] for a in gradients[:-1]), expected[:-1], scale=1.0)
        assert_trees_close(tree_map(lambda a: a[i : i + 1], gradients[-1]), expected[-1], scale=1.0)  # noqa: B023


@every_form
def test_backward_is_the_adjoint_of_forward(rule: Rule, form: str) -> None:
    """<u, J v> = <J^T u, v> for tokens and for the states of documents.   (H.7)"""
    check_adjoint(*packed(rule, form, "inclusive"), (*rule.tokens(SHAPE, 1), rule.state(ONE_EACH, 1)))


@every_form
@every_read
def test_no_document_sees_another(rule: Rule, form: str, read: str) -> None:
    """Every other document keeps its bits when all of one is replaced at scale 1e3, or is not a number.   (H.6)"""
    tokens, state = rule.tokens(SHAPE, 5), rule.state(ONE_EACH, 5)
    fwd, _ = packed(rule, form, read)
    (before, states), _ = fwd(*tokens, state)
    for bad in (1e3, np.nan):
        spoilt = [a.copy() for a in tokens]
        for a in spoilt[:3]:
            a[0, 3:4] *= bad
        with np.errstate(all="ignore"):
            (after, moved), _ = fwd(*spoilt, state)
        seen = np.ones((2, 8), dtype=bool)
        seen[0, 3] = False
        assert_bitwise(after[seen], before[seen])
        for a, b in zip(leaves(moved), leaves(states), strict=True):
            assert_bitwise(np.delete(a, 1, axis=0), np.delete(b, 1, axis=0))
            assert not np.array_equal(a[1], b[1])


def test_parameters_that_documents_share_gather_all_gradients() -> None:
    """TTT's gain and bias, Mesa's ridge: by finite differences of the packed function.   (H.7)"""
    q, k, v, step = ttt_tokens(SHAPE, 2)
    state = linear_state(ONE_EACH, 2)

    def ttt(gain: Any, bias: Any) -> tuple:
        fwd = lambda *case: ttt_linear_dual_fwd(*case[:-1], gain, bias, case[-1], minibatch=3, read="inclusive", eps=1.0)  # noqa: E731
        (out, _), res = documents_fwd(fwd, (q, k, v, step), LENGTHS, state)
        return out, res

    check_adjoint(ttt, lambda d, res: documents_bwd(ttt_linear_dual_bwd, d, None, res)[4:6], gain_and_bias(3))
    rates = np.random.default_rng(0).uniform(0.3, 1, (2, 2, 8))

    def mesa(ridge: Any) -> tuple:
        fwd = lambda *case: mesa_recurrent_fwd(*case[:-1], ridge, case[-1], read="strict")  # noqa: E731
        (out, _), res = documents_fwd(fwd, (q, k, v, *rates), LENGTHS)
        return out, res

    check_adjoint(mesa, lambda d, res: documents_bwd(mesa_recurrent_bwd, d, None, res)[5], (np.asarray([0.5, 1.0, 1.5]),))


def test_a_short_convolution_does_not_reach_into_the_document_before() -> None:
    """An op with a state is packed like a rule.   (H.6), (S.4)"""
    draw = generator(0)
    x, w, dy = draw(2, 8, 2), draw(4, 2), draw(2, 8, 2)
    fwd = lambda x, state: short_conv_fwd(x, w, state)  # noqa: E731
    (y, _), res = documents_fwd(fwd, (x,), LENGTHS)
    dx, dw, _ = documents_bwd(short_conv_bwd, dy, None, res)
    total = np.zeros_like(w)
    for row, start, stop in DOCUMENTS:
        of = np.s_[row : row + 1, start:stop]
        (alone, _), part = short_conv_fwd(x[of], w)
        assert_bitwise(y[of], alone)
        dx_alone, dw_alone, _ = short_conv_bwd(dy[of], None, part)
        assert_close(dx[of], dx_alone)
        total += dw_alone
    assert_close(dw, total)


def test_a_gate_of_0_at_a_start_is_no_boundary_for_a_strict_read() -> None:
    """N: it resets the memory after the token has read it, so the first token of a document reads the document before."""
    q, k, v = generator(0)(3, 1, 6, 2)
    gamma = np.full((1, 6), 0.9)
    gamma[0, 3] = 0
    gated = {read: decay_chunked_fwd(q, k, v, gamma, read=read)[0][0] for read in READS}
    whole = {read: documents_fwd(partial(decay_chunked_fwd, read=read), (q, k, v, gamma), [[3, 3]])[0][0] for read in READS}
    assert_close(gated["inclusive"], whole["inclusive"])
    assert np.all(whole["strict"][0, 3] == 0)
    assert np.max(np.abs(gated["strict"][0, 3])) > 0.1


@pytest.mark.parametrize("shape", [(0, 0), (2, 0), (0, 3), (1, 1)])
def test_no_rows_and_no_tokens_are_packed_too(shape: tuple) -> None:
    """B = 0, T = 0: shapes follow, N = 0 states."""
    q, lengths = np.ones((*shape, 2)), [[1] * shape[1] for _ in range(shape[0])]
    fwd = partial(decay_chunked_fwd, read="strict")
    (out, state), _ = documents_fwd(fwd, (q, q, q, np.ones(shape)), lengths)
    assert out.shape == q.shape and state.shape == (shape[0] * shape[1], 2, 2)


def test_packed_rows_run_on_any_array_library_and_device() -> None:
    """Documents are gathered and put back where the arrays are."""
    device = array_api_strict.Device("device1")
    q, k, v = generator(0)(3, 2, 8, 2)
    tokens = q, k, v, np.full((2, 8), 0.9)
    fwd = partial(decay_chunked_fwd, read="strict")
    (expected, _), _ = documents_fwd(fwd, tokens, LENGTHS)
    (out, _), _ = documents_fwd(fwd, tuple(array_api_strict.asarray(a).to_device(device) for a in tokens), LENGTHS)
    assert out.device == device
    assert_close(np.asarray(out.to_device(array_api_strict.Device("CPU_DEVICE"))), expected)


def test_lengths_come_from_starts_and_must_fill_the_rows() -> None:
    """True begins a document, and so does a row."""
    assert document_lengths([[True, False, True], [False, False, False]]) == [[2, 1], [3]]
    assert document_lengths([[], []]) == [[], []]
    q = np.ones((2, 8, 2))
    for wrong in ([[3, 5]], [[3, 5], [7]], [[3, 5], [9, -1]], [[8], [8, 0]]):
        with pytest.raises(ValueError, match="2 rows of 8 tokens"):
            documents_fwd(partial(decay_chunked_fwd, read="strict"), (q, q, q, q[..., 0]), wrong)


def test_a_mini_batch_under_way_is_refused_in_words():
    """Its place is one number for all sequences, and documents may be anywhere."""
    tokens, network = ttt_tokens(SHAPE, 0), linear_state(ONE_EACH, 0)
    under_way = UnderWay(network, tree_map(np.zeros_like, network), 1)
    with pytest.raises(TypeError, match="arrays, one row per document, got 1 among them: a mini-batch under way"):
        documents_fwd(partial(ttt_linear_dual_fwd, minibatch=2), tokens, LENGTHS, under_way)
