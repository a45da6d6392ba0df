"""The comparisons of the suite see what is not finite, and every warning but one is a failure: the
one then has nothing to hide behind.
"""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from tests.tolerances import assert_bitwise, assert_close, assert_trees_close, relative_error

pytestmark = pytest.mark.host("about the comparisons, not about arrays")

GOOD = np.asarray([1.0, 2.0])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_close_to_nothing(bad):
    """Not to a number, not to itself, on either side, whatever the tolerance; to the last bit it is
    equal only to itself.
    """
    wrong = np.asarray([1.0, bad])
    for pair in ((wrong, GOOD), (GOOD, wrong), (wrong, wrong)):
        assert relative_error(*pair) == np.inf
        for compare, (a, b) in ((assert_close, pair), (assert_trees_close, ((pair[0],), (pair[1],)))):
            with pytest.raises(AssertionError, match="differ by inf"):
                compare(a, b, rtol=1e300, scale=1e300)
    assert_bitwise(wrong, wrong.copy())
    with pytest.raises(AssertionError):
        assert_bitwise(wrong, GOOD)


def test_the_error_is_measured_against_the_largest_entry():
    """max |a - b| / max |b|; rounding passes, an error ten times the tolerance does not; shapes
    must agree.
    """
    assert relative_error(GOOD + [0, 1e-3], GOOD) == pytest.approx(5e-4)
    assert_close(GOOD * (1 + 1e-14), GOOD)
    with pytest.raises(AssertionError, match="differ by 1e-09"):
        assert_close(GOOD * (1 + 1e-9), GOOD)
    with pytest.raises(AssertionError, match="shapes"):
        assert_close(GOOD, GOOD[:1])


def test_a_warning_of_the_arithmetic_is_a_failure():
    """Overflow in a product, division by 0, an invalid value, but for that of a product:
    pyproject.toml exempts it, and says why.
    """
    large, zero = np.full((2, 2), 1e300), np.zeros(2)
    for what, compute in {
        "overflow encountered in matmul": lambda: large @ large,
        "divide by zero encountered in divide": lambda: GOOD / zero,
        "invalid value encountered in divide": lambda: zero / zero,
        "invalid value encountered in subtract": lambda: np.full(2, np.inf) - np.inf,
    }.items():
        with pytest.raises(RuntimeWarning, match=what):
            compute()
    warnings.warn("invalid value encountered in matmul", RuntimeWarning, stacklevel=1)  # passes, and its values are looked at
    with pytest.raises(AssertionError, match="differ by inf"):
        assert_close(np.asarray([[np.inf, 1.0]]) @ np.asarray([0.0, 1.0]), np.ones(1))
