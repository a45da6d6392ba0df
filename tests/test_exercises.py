"""The notebooks' checker: says where an answer is wrong, never what it is, and never raises; and
the two witnesses by differences.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwl_ref.exercises import RTOL, RTOL_FLOAT32, adjoint_by_differences, agree, check, first_wrong, second_adjoint_by_differences, verdict
from fwl_ref.ops.cross_entropy import cross_entropy_bwd, cross_entropy_bwd_bwd, cross_entropy_fwd
from fwl_ref.ops.dense import dense_bwd, dense_bwd_bwd, dense_fwd
from fwl_ref.ops.layernorm import layernorm_bwd, layernorm_bwd_bwd, layernorm_fwd
from tests.strategies import generator, seeds
from tests.tolerances import assert_close

pytestmark = pytest.mark.host("exercises are checked on the host")

shapes = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)


class Pair(NamedTuple):
    first: Any = None
    second: Any = None


def double(x: np.ndarray) -> np.ndarray:
    return 2 * x


def both(x: np.ndarray) -> Pair:
    return Pair(2 * x, x.sum(axis=0))


CASES = [(generator(1)(3, 4),)]


@given(shape=shapes, seed=seeds, data=st.data())
def test_the_first_wrong_entry_is_the_first_in_reading_order(shape: tuple, seed: int, data: st.DataObject) -> None:
    """Wrong entries at random places: place and number are those of the mask, and an exact answer
    has none.
    """
    expected = generator(seed)(*shape)
    flat = data.draw(st.sets(st.integers(0, expected.size - 1), min_size=1), label="wrong")
    found = expected.copy()
    found.flat[sorted(flat)] += 1.0
    wrong = first_wrong(found, expected)
    assert wrong is not None
    assert np.ravel_multi_index(wrong.place, shape) == min(flat)
    assert wrong.total == len(flat)
    assert (wrong.found, wrong.expected) == (found[wrong.place], expected[wrong.place])
    assert first_wrong(expected, expected) is None
    assert f"[{', '.join(map(str, wrong.place))}]" in verdict("f", found, expected)


@given(shape=shapes, seed=seeds)
def test_rounding_is_not_a_mistake_and_a_hundredth_of_a_percent_is(shape: tuple, seed: int) -> None:
    """|found - expected| <= 1e-8 max |expected| passes; ten thousand times that does not."""
    expected = generator(seed)(*shape)
    largest = np.max(np.abs(expected))
    assert verdict("f", expected + 0.5 * RTOL * largest, expected) == "f: correct"
    assert verdict("f", expected + 1e4 * RTOL * largest, expected) != "f: correct"


@given(shape=shapes, seed=seeds)
def test_float32_is_judged_by_its_own_digits(shape: tuple, seed: int) -> None:
    """A right answer in float32 is correct, whichever side has it; a part in ten thousand off is
    not, and the digits of float16 tell nothing.
    """
    expected = generator(seed)(*shape)
    short = expected.astype(np.float32)
    assert verdict("f", short, expected) == verdict("f", expected, short) == "f: correct"
    assert verdict("f", lambda x: (x.astype(np.float32), 2 * x), lambda x: Pair(x, 2 * x), [(expected,)]) == "f: correct"
    off = (10 * RTOL_FLOAT32 * np.max(np.abs(expected))).astype(np.float32)
    assert "first wrong entry" in verdict("f", short + off, expected)
    assert "float16 has too few digits to tell" in verdict("f", np.float16(1 / 3), 1 / 3)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (7.25, "too small in size"),
        (9999.5, "too large in size"),
        (-7.25, "wrong sign"),
        (-737.25, "wrong sign"),
        (0.0, "should not be 0"),
        (np.nan, "not finite"),
        (np.inf, "not finite"),
    ],
)
def test_the_side_is_said_and_the_number_is_not(found: float, words: str) -> None:
    """Sign or size of the wrong entry; the expected 737.25 never appears."""
    line = verdict("f", np.array([[1.0, found]]), np.array([[1.0, 737.25]]))
    assert words in line
    assert "[0, 1]" in line
    assert "737" not in line.replace(f"{found:.3g}", "")


def test_an_entry_that_should_be_zero_is_said_to_be() -> None:
    """A leak past a mask: the expected 0 is not a secret."""
    assert "should be 0" in verdict("f", np.array([0.5, 1.0]), np.array([0.0, 1.0]))


def test_what_wrong_entries_have_in_common_is_said() -> None:
    """A flipped sign, one constant factor, a transpose."""
    x = generator(2)(3, 3)
    assert "as every sign is" in verdict("f", -x, x)
    assert "one wrong factor" in verdict("f", x / 3, x)
    assert "transpose" in verdict("f", x.T, x)
    short = x.astype(np.float32)
    assert "as every sign is" in verdict("f", -short, x)
    assert "one wrong factor" in verdict("f", short / 3, x)
    assert "transpose" in verdict("f", short.T, x)
    assert not any(words in verdict("f", x + np.eye(3), x) for words in ("every sign", "factor", "transpose"))


@pytest.mark.parametrize("blank", [None, ...])
def test_a_blank_is_not_done_yet(blank: Any) -> None:
    """None or ... for the whole, or for one result, which is named; a hint is for those who tried."""
    hints = {"anything": None}
    assert verdict("f", lambda x: blank, double, CASES, hints) == "f: not done yet (returned None)"
    assert verdict("f", lambda x: Pair(2 * x, blank), both, CASES, hints) == "f: not done yet (second is None)"
    assert verdict("f", blank, (2, 3), mistakes=hints) == "f: not done yet (returned None)"


def test_a_wrong_shape_names_both() -> None:
    """Shape found, shape expected; which result of several; how many results."""
    assert verdict("f", lambda x: 2 * x.T, double, CASES) == "f: shape (4, 3), expected (3, 4)"
    assert verdict("f", lambda x: (2 * x, x), both, CASES) == "f: second has shape (3, 4), expected (4,)"
    assert verdict("f", lambda x: 2 * x, both, CASES) == "f: returned 1 result, expected 2: first, second"
    assert "first wrong entry: second[0] =" in verdict("f", lambda x: (2 * x, x[0]), both, CASES)
    assert verdict("f", lambda x: (1, 2, 3), lambda x: (x, x), CASES, returns=("p", "q")) == "f: returned 3 results, expected 2: p, q"


def test_right_answers_are_correct_whatever_holds_them() -> None:
    """A list for a tuple, a nested list for an array, an integer for a float, None where the
    reference has None.
    """
    assert verdict("f", lambda x: [2 * x, x.sum(axis=0)], both, CASES) == "f: correct"
    assert verdict("f", lambda x: (2 * x).tolist(), double, CASES) == "f: correct"
    assert verdict("f", 2, np.asarray(2.0)) == "f: correct"
    assert verdict("f", lambda x: Pair(2 * x, 5), lambda x: Pair(2 * x, None), CASES) == "f: correct"
    assert verdict("f", np.ones((2, 2), dtype=bool), np.ones((2, 2), dtype=bool)) == "f: correct"
    assert verdict("f", np.True_, True) == "f: correct"


def test_results_stacked_into_one_array_are_read_one_by_one() -> None:
    """np.stack([p, q]) for (p, q), if every shape fits; hints and places are those of the result."""
    pair = lambda x: Pair(x, 2 * x)  # noqa: E731
    assert verdict("f", lambda x: np.stack([x, 2 * x]), pair, CASES) == "f: correct"
    line = verdict("f", lambda x: np.stack([x, 3 * x]), pair, CASES, {"about second": "second"})
    assert "first wrong entry: second[0, 0]" in line
    assert line.endswith(". Hint: about second")
    assert verdict("f", lambda x: np.stack([x.T, x.T]), pair, CASES) == "f: returned 1 result, expected 2: first, second"
    assert "returned 1 result" in verdict("f", lambda x: np.stack([x, x]), lambda x: (x, (x, x)), CASES)


def test_shapes_texts_and_truth_values_are_answers_too() -> None:
    """A shape is judged axis by axis without being given away."""
    assert verdict("s", (2, 9, 4), (2, 3, 4)) == "s: the shape (2, 9, 4) is wrong at axis 1"
    assert verdict("s", (2, 3), (2, 3, 4)) == "s: the shape (2, 3) has too few axes"
    assert verdict("s", [2, 3, 4, 1], (2, 3, 4)) == "s: the shape (2, 3, 4, 1) has too many axes"
    assert verdict("s", (np.int64(2), np.int32(3)), (2, 3)) == "s: correct"
    assert verdict("s", (np.int64(2), 4), (2, 3)) == "s: the shape (2, 4) is wrong at axis 1"
    assert verdict("s", (True, 3), (1, 3)) == "s: (True, 3) is not a shape: a tuple of whole numbers"
    assert verdict("s", 7, (2, 3)) == "s: 7 is not a shape: a tuple of whole numbers"
    assert verdict("s", (), ()) == verdict("s", [2, 3], (2, 3)) == verdict("s", "up", "up") == verdict("s", True, True) == "s: correct"
    assert verdict("s", "down", "up") == "s: 'down' is not it"
    assert verdict("s", 1, True) == "s: 1 is not it"


def test_an_error_in_the_attempt_is_one_line_that_says_where() -> None:
    """No traceback: the line inside the function, the kind of error and its message."""

    def attempt(x: np.ndarray) -> np.ndarray:
        y = 2 * x
        return y @ x

    line = verdict("f", attempt, double, CASES)
    assert line.startswith("f: line 3 raised ValueError: matmul")
    assert "\n" not in line
    assert verdict("f", lambda: 1, double, CASES).startswith("f: raised TypeError")


NONSENSE = ["text", b"x", {}, {1}, object(), [[1, 2], [3]], [None], range(3), double, 1j, np.array(["a"]), np.array([None]), (), iter([])]
NONSENSE += [np.full((3, 4), "a"), np.full((3, 4), None), np.full((3, 4), 1j)]


@pytest.mark.parametrize("answer", NONSENSE)
@pytest.mark.parametrize("reference", [double, both, (2, 3), "up", True])
def test_nonsense_is_wrong_and_never_raises(answer: Any, reference: Any) -> None:
    """Whatever an attempt returns, the verdict is one line that does not say correct."""
    cases = CASES if isinstance(reference, Callable) else ((),)
    line = verdict("f", lambda *_: answer, reference, cases, {"wrong": lambda *_: (0, 0), "any": None, "second": "second"})
    assert line.startswith("f: ")
    assert "correct" not in line
    assert "\n" not in line


def test_arguments_are_copies_and_changing_them_is_said() -> None:
    """An attempt in place cannot spoil the reference or a later case, and is told."""

    def in_place(x: np.ndarray) -> np.ndarray:
        x *= 2
        return x

    cases = [(generator(3)(2, 2),), (generator(4)(2, 2),)]
    saved = [case[0].copy() for case in cases]
    assert "changed in place" in verdict("f", in_place, double, cases)
    assert all(np.array_equal(case[0], before) for case, before in zip(cases, saved, strict=True))
    assert "Hint" not in verdict("f", in_place, double, cases, {"the right answer is no mistake": double})
    nested = [((generator(3)(2),),)]
    assert "changed in place" in verdict("f", lambda pair: in_place(pair[0]), lambda pair: 2 * pair[0], nested)


def test_the_case_that_fails_is_named() -> None:
    """Cases run in order; the number of the first that fails is said if there are several."""
    ones_only = [(np.ones(2),), (generator(5)(3),)]
    assert re.search(r", case 1$", verdict("f", lambda x: 2 * np.ones_like(x), double, ones_only))
    assert "case" not in verdict("f", lambda x: x, double, CASES)


def test_a_hint_is_that_of_the_mistake_that_was_made() -> None:
    """The first version that agrees with the attempt; one that equals the right answer here is no
    mistake.
    """
    hints = {"right": double, "sign?": lambda x: -2 * x, "twice?": lambda x: 4 * x, "also sign?": lambda x: -2 * x}
    assert verdict("f", lambda x: -2 * x, double, CASES, hints).endswith(". Hint: sign?")
    assert verdict("f", lambda x: 4 * x, double, CASES, hints).endswith(". Hint: twice?")
    assert "Hint" not in verdict("f", lambda x: 3 * x, double, CASES, hints)
    assert verdict("f", lambda x: 3 * x, double, CASES, hints | {"think": None}).endswith(". Hint: think")
    assert verdict("f", "down", "up", mistakes={"the other way": "down"}).endswith(". Hint: the other way")
    assert verdict("f", (3, 2), (2, 3), mistakes={"turn": (3, 2)}).endswith(". Hint: turn")
    assert verdict("f", lambda x: 2 * x.T, double, CASES, {"turn": lambda x: 2 * x.T}).endswith(". Hint: turn")


def test_in_several_results_the_first_wrong_one_gets_the_hint() -> None:
    """A version speaks for the results that it gives; the name of a result is a hint for it."""
    hints = {"half of first": lambda x: Pair(first=x), "mean?": lambda x: Pair(second=x.mean(axis=0)), "about second": "second"}
    assert verdict("f", lambda x: Pair(x, x), both, CASES, hints).endswith(". Hint: half of first")
    assert verdict("f", lambda x: Pair(2 * x, x.mean(axis=0)), both, CASES, hints).endswith(". Hint: mean?")
    assert verdict("f", lambda x: Pair(2 * x, x[0]), both, CASES, hints).endswith(". Hint: about second")
    assert "Hint" not in verdict("f", lambda x: Pair(3 * x, x[0]), both, CASES, hints)


def test_a_wrong_shape_gets_no_hint_about_the_formula() -> None:
    """Hints for a result or for anything are silent then, a version with just that shape is not."""
    hints = {"summed?": lambda x: Pair(second=x.sum()), "about second": "second", "anything": None}
    assert verdict("f", lambda x: Pair(2 * x, x), both, CASES, hints) == "f: second has shape (3, 4), expected (4,)"
    assert verdict("f", lambda x: Pair(2 * x, "x"), both, CASES, hints) == "f: second is not an array of numbers"
    assert "Hint" not in verdict("f", lambda x: x, both, CASES, hints)
    assert verdict("f", lambda x: Pair(2 * x, x.sum()), both, CASES, hints).endswith(". Hint: summed?")
    assert verdict("f", lambda x: Pair(2 * x, x[0]), both, CASES, hints).endswith(". Hint: about second")
    nested = lambda x: (x, Pair(x, x))  # noqa: E731
    assert "Hint" not in verdict("f", lambda x: (x, Pair(x, x.T)), nested, CASES, {"anything": None})


def test_check_prints_the_verdict_and_nothing_else(capsys: pytest.CaptureFixture) -> None:
    """One line on stdout, nothing returned, so a notebook shows nothing more."""
    assert check("f", double, double, CASES) is None
    assert capsys.readouterr().out == "f: correct\n"


def test_agree_compares_trees_shape_by_shape() -> None:
    """Equal to 1e-10; not if a shape, a leaf or a ten-millionth of the largest entry differs."""
    x = generator(6)(3, 4)
    assert agree(x, x + 1e-12)
    assert agree((x, Pair(x, None)), (x, (x, None)))
    assert not agree(x, x * (1 + 1e-7))
    assert agree(x, x * (1 + 1e-7), rtol=1e-6)
    assert not agree(x, x.T)
    assert not agree((x, x), (x,))
    assert not agree(x, np.full_like(x, np.nan))
    assert not agree(np.full_like(x, np.nan), x)


def test_what_is_not_finite_agrees_with_nothing() -> None:
    """An infinite entry makes the tolerance infinite: nothing may pass by it, on either side."""
    x = generator(6)(3, 4)
    infinite = x + np.where(x == x[0, 0], np.inf, 0)
    for found, expected in ((x, infinite), (infinite, x), (infinite, infinite), (x + 1, infinite)):
        assert not agree(found, expected)
        assert verdict("f", found, expected) != "f: correct"


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_differences_are_refused_where_rounding_hides_them(dtype: str) -> None:
    """In float32 an entry would be right to a part in a thousand, in float16 to none."""
    draw = generator(9)
    x, dy = draw(3, 4), draw(3, 4)
    for args, cotangent in (((x.astype(dtype),), dy), ((x,), dy.astype(dtype))):
        with pytest.raises(TypeError, match=f"differences need float64, got {dtype}"):
            adjoint_by_differences(np.sin, args, cotangent)
        with pytest.raises(TypeError, match=f"differences need float64, got {dtype}"):
            second_adjoint_by_differences(np.sin, args, (x,), cotangent)


OPS = [
    (lambda *a: dense_fwd(*a)[0], dense_fwd, dense_bwd, dense_bwd_bwd, ((3, 4), (4, 2), (2,))),
    (lambda *a: layernorm_fwd(*a)[0], layernorm_fwd, layernorm_bwd, layernorm_bwd_bwd, ((3, 4), (4,), (4,))),
]


@pytest.mark.parametrize("op", OPS, ids=["dense", "layernorm"])
@given(seed=seeds)
def test_differences_give_the_adjoints_of_both_orders(op: tuple, seed: int) -> None:
    """J^T dy against (D.2), (N.2); g_dy, g_args from the forward pass alone against (D.3), (N.3)."""
    output, fwd, bwd, bwd_bwd, sizes = op
    draw = generator(seed)
    args = tuple(draw(*size, scale=0.3) + (np.arange(size[-1]) if len(size) == 2 else 0) for size in sizes)  # rows far from constant
    y, res = fwd(*args)
    dy, g_d_args = draw(*y.shape), tuple(draw(*size) for size in sizes)
    assert agree(adjoint_by_differences(output, args, dy), bwd(dy, res), rtol=1e-8)
    second = second_adjoint_by_differences(output, args, g_d_args, dy)
    for found, expected in zip(second, bwd_bwd(*g_d_args, dy, res), strict=True):
        assert_close(found, np.zeros_like(found) if expected is None else expected, 1e-8, scale=1.0)


def test_differences_skip_what_has_no_derivative_and_follow_trees() -> None:
    """Integers give None; an argument and an output may be trees; None in g_d_args is
    zero.   (C.2), (C.3)
    """
    draw = generator(7)
    logits, labels, dy, g = draw(3, 4), np.array([1, 0, 3]), draw(3), draw(3, 4)
    _, res = cross_entropy_fwd(logits, labels)
    (dlogits, none) = adjoint_by_differences(lambda *a: cross_entropy_fwd(*a)[0], (logits, labels), dy)
    assert none is None
    assert_close(dlogits, cross_entropy_bwd(dy, res), 1e-8)
    g_dy, g_logits, none = second_adjoint_by_differences(lambda *a: cross_entropy_fwd(*a)[0], (logits, labels), (g, None), dy)
    assert none is None
    assert agree((g_dy, g_logits), cross_entropy_bwd_bwd(g, dy, res), rtol=1e-8)
    pair = Pair(draw(2), draw(3))
    found = adjoint_by_differences(lambda p: Pair(3 * p.first, p.second * p.second), (pair,), pair)
    assert type(found[0]) is Pair
    assert agree(found[0], Pair(3 * pair.first, 2 * pair.second * pair.second), rtol=1e-8)


def test_differences_reject_a_wrong_adjoint() -> None:
    """A dropped factor, a transpose and a forgotten term are all seen."""
    draw = generator(8)
    x, w, b, dy = draw(3, 3), draw(3, 3), draw(3), draw(3, 3)
    truth = adjoint_by_differences(lambda *a: dense_fwd(*a)[0], (x, w, b), dy)
    right = dense_bwd(dy, dense_fwd(x, w, b)[1])
    assert agree(truth, right, rtol=1e-8)
    for wrong in ((dy @ w, *right[1:]), (right[0], right[1].T, right[2]), (right[0], right[1], 0 * right[2]), (2 * right[0], *right[1:])):
        assert not agree(truth, wrong, rtol=1e-8)
