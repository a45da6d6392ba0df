"""The block with true gradients between segments: dynamic evaluation that is trained through, and the stale block
where there is one segment.

A docstring that opens with "N:" is a negative control.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwl_ref import sequential
from fwl_ref.fwl import FastSettings, fast_block_bwd, fast_block_fwd
from fwl_ref.gradcheck import AdjointError, check_adjoint
from fwl_ref.optimizers import sgd
from fwl_ref.sequential import sequential_bwd, sequential_fwd
from fwl_ref.slow_block import FastParameters
from fwl_ref.tree import leaves, tree_map, zeros_like
from fwl_ref.verify.cases import BlockCase, tokens, with_settings
from fwl_ref.verify.runs import sequential as dynamic_evaluation
from tests.strategies import block_cases, fast_state, generator, make_block_case, off_the_kink
from tests.theorems.compare import CLEAR, EVERY_NORMALIZER
from tests.tolerances import assert_bitwise, assert_close, assert_trees_close, relative_error

FIXED = make_block_case(2, 7, 4, 6, 5, FastSettings(eps=1e-3, chunk=3), seed=5, mask="real")
every_reading = pytest.mark.parametrize("within", [False, True], ids=["segment", "within"])


def run(case: BlockCase, segment: int, within: bool, state: FastParameters | None = None) -> tuple:
    outputs, _ = sequential_fwd(
        case.x, case.labels, case.weights, case.slow, case.eta, case.decay, case.settings, state, segment=segment, within=within
    )
    return outputs


def moved(case: BlockCase, state: FastParameters) -> FastParameters:
    """The fast parameters of every sequence, (B,...)"""
    return tree_map(lambda p, e, a: p - e * a, FastParameters(*case.slow[:6]), case.eta, state)


# What it computes
# ----------------------------------------------------------------------------------------


@given(case=block_cases(normalizers=EVERY_NORMALIZER), segment=st.integers(1, 4))
def test_it_is_dynamic_evaluation_of_the_block(case: BlockCase, segment: int) -> None:
    """(F.16) read at the start of each segment is (Y.4) with gradients at the current weights: logits and final
    parameters, every normalizer, any decay and weights.
    """
    logits, state = run(case, segment, within=False)
    expected, final = dynamic_evaluation(case, segment)
    assert_close(logits, expected, scale=1.0)
    assert_trees_close(moved(case, state), final, scale=1.0)


@given(case=block_cases(normalizers=EVERY_NORMALIZER))
def test_segments_of_one_token_are_true_sgd_whichever_way_they_are_read(case: BlockCase) -> None:
    """A token has no earlier one in its own segment   (F.16), (Y.4)"""
    expected, final = dynamic_evaluation(case, 1)
    for within in (False, True):
        logits, state = run(case, 1, within)
        assert_close(logits, expected, scale=1.0)
        assert_trees_close(moved(case, state), final, scale=1.0)


@given(case=block_cases(normalizers=EVERY_NORMALIZER, min_length=0), first_order=st.booleans())
def test_one_segment_read_within_is_the_stale_block(case: BlockCase, first_order: bool) -> None:
    """Logits, state and all gradients are those of (F.6), (F.7) without decay, first order or not   (F.16), (F.17)"""
    case = with_settings(case._replace(decay=0 * case.decay), first_order=first_order)
    data = (case.x, case.labels, case.weights, case.slow, case.eta, case.decay, case.settings)
    (logits, state), res = sequential_fwd(*data, segment=max(case.x.shape[1], 1), within=True)
    (expected, _, after), block = fast_block_fwd(*data)
    assert_trees_close((logits, state), (expected, after), scale=1.0)
    draw = generator(3)
    g_logits, g_state = draw(*logits.shape), tree_map(lambda a: draw(*a.shape), state)
    ours, theirs = sequential_bwd(g_logits, g_state, res), fast_block_bwd(g_logits, g_state, block)
    assert_trees_close(ours[:3], theirs[:3], scale=1.0)
    assert ours[4] is None


def test_one_segment_read_at_its_start_is_the_slow_block() -> None:
    """Nothing is read, all is written; a segment longer than the text is as long as the text   (F.16)"""
    (_, slow, written), _ = fast_block_fwd(*FIXED[:5], 0 * FIXED.decay, FIXED.settings)
    for segment in (7, 99):
        assert_trees_close(run(FIXED._replace(decay=0 * FIXED.decay), segment, False), (slow, written), scale=1.0)


@every_reading
@pytest.mark.parametrize("first", [0, 3, 6, 7])
def test_a_text_cut_between_segments_is_the_whole(within: bool, first: int) -> None:
    """The state is all that the next call needs; no tokens leave it as it is   (F.16)"""
    expected = run(FIXED, 3, within)
    head, state = run(tokens(FIXED, slice(0, first)), 3, within)
    tail, state = run(tokens(FIXED, slice(first, 7)), 3, within, state)
    assert_trees_close((np.concatenate([head, tail], axis=1), state), expected, scale=1.0)


@every_reading
def test_sequences_do_not_see_each_other_and_none_is_none(within: bool) -> None:
    """Each is what it is alone; B = 0 is empty, with gradients of 0   (F.16), (F.17)"""
    logits, state = run(FIXED, 3, within)
    for b in range(2):
        alone = FIXED._replace(**{n: getattr(FIXED, n)[b : b + 1] for n in ("x", "labels", "weights")})
        assert_trees_close(run(alone, 3, within), (logits[b : b + 1], tree_map(lambda a: a[b : b + 1], state)))  # noqa: B023
    none = FIXED._replace(**{n: getattr(FIXED, n)[:0] for n in ("x", "labels", "weights")})
    (empty, nothing), res = sequential_fwd(*none[:6], none.settings, segment=3, within=within)
    assert empty.shape == (0, 7, 5) and nothing.W1.shape == (0, 4, 6)
    g_x, *g_parameters, g_state = sequential_bwd(empty, None, res)
    assert g_x.shape == none.x.shape and g_state is None
    assert_trees_close(tuple(g_parameters), (zeros_like(none.slow), zeros_like(none.eta), np.zeros(())))
    (_, after), res = sequential_fwd(*none[:6], none.settings, nothing, segment=3, within=within)
    assert_trees_close(sequential_bwd(empty, after, res)[-1], after)


@every_reading
def test_reading_is_causal_to_the_last_bit(within: bool) -> None:
    """Logits at t keep their bits when features after t, labels and weights from t on are replaced   (F.16)"""
    before, _ = run(FIXED, 3, within)
    for t in range(7):
        x, labels, weights = FIXED.x.copy(), FIXED.labels.copy(), FIXED.weights.copy()
        x[:, t + 1 :] *= 1e3
        labels[:, t:], weights[:, t:] = 0, 17.0
        after, _ = run(FIXED._replace(x=x, labels=labels, weights=weights), 3, within)
        assert_bitwise(after[:, : t + 1], before[:, : t + 1], f"token {t}")


def test_stale_gradients_are_another_function() -> None:
    """N: from the third segment on, with the segment's own tokens read or not; what is read within a segment
    differs from its second token on   (F.16), (Q.3)
    """
    louder = FIXED._replace(eta=tree_map(lambda e: 4 * e, FIXED.eta), decay=0 * FIXED.decay)
    (stale, _, _), _ = fast_block_fwd(*louder[:6], louder.settings)
    fresh, _ = run(louder, 2, True)
    assert_close(fresh[:, :2], stale[:, :2])
    assert_close(fresh[:, 2], stale[:, 2])  # the second segment's first token: all gradients so far at the slow weights
    assert relative_error(fresh[:, 4:], stale[:, 4:]) > CLEAR
    start, _ = run(louder, 2, False)
    assert_close(start[:, 0], fresh[:, 0])
    assert relative_error(start[:, 1], fresh[:, 1]) > CLEAR


# Its gradients
# ----------------------------------------------------------------------------------------


def arguments(case: BlockCase) -> tuple:
    """x, slow, eta, decay, state: what has a gradient."""
    return case.x, case.slow, case.eta, case.decay, fast_state(case, 3)


def form(case: BlockCase, segment: int, within: bool) -> tuple[Any, Any]:
    def fwd(x: Any, slow: Any, eta: Any, decay: Any, state: Any) -> Any:
        data = x, case.labels, case.weights, slow, eta, decay, case.settings
        return sequential_fwd(*data, state, segment=segment, within=within)

    return fwd, lambda g, res: sequential_bwd(*g, res)


def smooth(seed: int, length: int = 6) -> BlockCase:
    case = make_block_case(2, length, 3, 4, 4, FastSettings(eps=0.1, chunk=2), seed=seed, mask="real")
    return off_the_kink(case._replace(decay=np.asarray(0.3)))


@every_reading
def test_no_token_is_no_segment(within: bool) -> None:
    """T = 0: a state comes out as it went in, not faded, and so does its gradient   (F.16), (F.17)"""
    case = tokens(smooth(4), slice(0, 0))
    fwd, bwd = form(case, 2, within)
    (logits, after), res = fwd(*arguments(case))
    assert logits.shape == (2, 0, 4)
    assert_trees_close(after, fast_state(case, 3))
    g_x, *g_parameters, g_state = bwd((logits, after), res)
    assert g_x.shape == case.x.shape and not any(np.any(g) for g in leaves(tuple(g_parameters)))
    assert_trees_close(g_state, after)


@every_reading
@pytest.mark.parametrize("segment", [1, 2, 4, 9])
def test_backward_is_the_adjoint_of_forward(within: bool, segment: int) -> None:
    """<u, J v> = <J^T u, v> for features, slow parameters, step sizes, decay and state   (F.17)"""
    case = smooth(4)
    check_adjoint(*form(case, segment, within), arguments(case))


@every_reading
def test_the_whole_is_differentiated_in_two_calls_as_in_one(within: bool) -> None:
    """The state's gradient carries from the second call to the first   (F.17)"""
    case = smooth(6)
    fwd = lambda c, s: sequential_fwd(*c[:6], c.settings, s, segment=2, within=within)  # noqa: E731
    start = fast_state(case, 3)
    (logits, state), res = fwd(case, start)
    draw = generator(8)
    g_logits, g_state = draw(*logits.shape), tree_map(lambda a: draw(*a.shape), state)
    expected = sequential_bwd(g_logits, g_state, res)
    (_, middle), head = fwd(tokens(case, slice(0, 4)), start)
    _, tail = fwd(tokens(case, slice(4, 6)), middle)
    last = sequential_bwd(g_logits[:, 4:], g_state, tail)
    first = sequential_bwd(g_logits[:, :4], last[4], head)
    assert_close(np.concatenate([first[0], last[0]], axis=1), expected[0], scale=1.0)
    summed = tree_map(lambda a, b: a + b, first[1:4], last[1:4])
    assert_trees_close((*summed, first[4]), expected[1:], scale=1.0)


@every_reading
def test_the_switch_of_first_order_changes_the_gradient_and_only_that(within: bool) -> None:
    """N: second order is there; with step sizes of 0 there is none   (F.17)"""
    case = smooth(7)
    g = generator(9)(2, 6, 4)
    still = case._replace(eta=zeros_like(case.eta))
    for c, differs in ((case, True), (still, False)):
        found = []
        for first_order in (False, True):
            one = with_settings(c, first_order=first_order)
            (logits, _), res = sequential_fwd(*one[:6], one.settings, segment=2, within=within)
            found.append((logits, sequential_bwd(g, None, res)[1]))
        assert_close(found[0][0], found[1][0])
        assert (relative_error(found[1][1].W1, found[0][1].W1) > CLEAR) == differs


# Boundary and teeth
# ----------------------------------------------------------------------------------------


def test_what_cannot_be_is_refused() -> None:
    """A segment of no token, an optimizer, a carried state with a normalizer that looks ahead   (F.16)"""
    with pytest.raises(ValueError, match="a segment must hold at least 1 token, got 0"):
        run(FIXED, 0, True)
    with pytest.raises(ValueError, match="there is SGD with decay only, got SGD"):
        run(with_settings(FIXED, optimizer=sgd()), 2, True)
    with pytest.raises(ValueError, match="streaming needs the constant normalizer"):
        run(with_settings(FIXED, normalizer="batch"), 2, True, fast_state(FIXED, 1))


def is_sound() -> None:
    """Dynamic evaluation, the state, the adjoint."""
    case = smooth(4)
    expected, final = dynamic_evaluation(case, 2)
    logits, state = run(case, 2, False)
    assert_close(logits, expected, scale=1.0)
    assert_trees_close(moved(case, state), final, scale=1.0)
    for within in (False, True):
        check_adjoint(*form(case, 2, within), arguments(case))


def stale_slow(f: Any, slow: Any, eta: Any, held: Any) -> Any:
    return slow


def dropped(i: int) -> Any:
    return lambda f, *a: tuple(None if y is None else tree_map(lambda x: 0 * x, y) if j == i else y for j, y in enumerate(f(*a)))


def without_state(f: Any, g_logits: Any, g_state: Any, res: Any) -> Any:
    return f(g_logits, tree_map(lambda a: 0 * a, g_state), res)


MUTANTS = {
    "stale gradients": ("_moved", stale_slow),
    "ascends": ("_moved", lambda f, slow, eta, held: f(slow, tree_map(lambda e: -e, eta), held)),
    "gradient not carried between segments": ("fast_block_bwd", without_state),
    "gradient of the weights dropped": ("fast_block_bwd", dropped(1)),
    "gradient of the step sizes within dropped": ("fast_block_bwd", dropped(2)),
    "gradient of the features dropped": ("fast_block_bwd", dropped(0)),
}


def test_it_is_sound() -> None:
    """Without this the rejections below would mean nothing.   (F.16), (F.17)"""
    is_sound()


@pytest.mark.parametrize("what", MUTANTS)
def test_a_mutant_is_rejected(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """N: one function of the file replaced   (F.16), (F.17)"""
    name, change = MUTANTS[what]
    original = getattr(sequential, name)
    monkeypatch.setattr(sequential, name, lambda *a: change(original, *a))
    with pytest.raises((AssertionError, AdjointError)):
        is_sound()
