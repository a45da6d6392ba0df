"""The two tolerances of the suite, each stated once with its reason; none was tuned to make a test
pass.

``RTOL``: two exact computations in float64 differ by rounding, that is by about 2^-53 = 1.1e-16 per
operation. The sums of this suite have at most some thousand terms and the data is of order one, so
1e-10 leaves room for cancellation by a factor of a thousand and is still a million times smaller
than any formula error. The error is measured against the largest entry, not entry by entry: an
entry that is a small difference of large numbers has no relative accuracy in any order of
summation.

``float32_bound``: Higham's bound for a sum of n terms, n u / (1 - n u) with u = 2^-24, times a
handful of such sums one after the other.
"""

from __future__ import annotations

import numpy as np

RTOL = 1e-10


def float32_bound(terms: int, stages: int = 8) -> float:
    """Relative error of ``stages`` successive float32 sums of ``terms`` terms each."""
    unit = 2.0**-24
    return stages * (terms + 2) * unit / (1 - terms * unit)


def relative_error(actual: np.ndarray, expected: np.ndarray, scale: float = 0.0) -> float:
    """max |actual - expected| / max(max |expected|, scale); 0 for empty arrays, infinity where
    something is not finite.
    """
    actual, expected = (a * 1 if a.dtype == bool else a for a in (np.asarray(actual), np.asarray(expected)))
    assert actual.shape == expected.shape, f"shapes {actual.shape} and {expected.shape} differ"
    if not actual.size:
        return 0.0
    if not (np.all(np.isfinite(actual)) and np.all(np.isfinite(expected))):
        return float("inf")
    error, size = np.max(np.abs(actual - expected)), max(float(np.max(np.abs(expected))), scale)
    return float(error / size) if error > 0 else 0.0


def assert_close(actual: np.ndarray, expected: np.ndarray, rtol: float = RTOL, what: str = "", scale: float = 0.0) -> None:
    """Fail, naming both numbers, unless ``relative_error`` is at most ``rtol``. ``scale`` is the
    size of what was summed, if it cancels.
    """
    error = relative_error(actual, expected, scale)
    assert error <= rtol, f"{what or 'values'} differ by {error:.3g} relative, allowed {rtol:.3g}:\n{actual}\n{expected}"


def assert_trees_close(actual: tuple, expected: tuple, rtol: float = RTOL, what: str = "", scale: float = 0.0) -> None:
    """``assert_close`` leaf by leaf; both must have the same leaves."""
    from fwl_ref.tree import named_leaves

    actual, expected = list(named_leaves(actual)), list(named_leaves(expected))
    assert [n for n, _ in actual] == [n for n, _ in expected], f"leaves {[n for n, _ in actual]} and {[n for n, _ in expected]} differ"
    for (name, a), (_, e) in zip(actual, expected, strict=True):
        assert_close(a, e, rtol, f"{what} {name}".strip(), scale)


def assert_bitwise(actual: np.ndarray, expected: np.ndarray, what: str = "") -> None:
    """Equal to the last bit, signs of zeros and NaNs included."""
    actual, expected = np.ascontiguousarray(actual), np.ascontiguousarray(expected)
    assert actual.dtype == expected.dtype, f"{what}: dtypes {actual.dtype} and {expected.dtype} differ"
    assert actual.shape == expected.shape, f"{what}: shapes {actual.shape} and {expected.shape} differ"
    assert actual.tobytes() == expected.tobytes(), f"{what or 'values'} differ by {np.max(np.abs(actual - expected)):.3g}, expected 0 bits"
