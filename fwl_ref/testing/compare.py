"""How far a kernel may be from the exact answer.

A kernel that rounds well answers exactly to inputs that are off by rounding. So an entry may differ
from the exact one by

    tolerance(dtype, n) * M + 16 * spread,      tolerance = 16 u + 8 (n + 2) a / (1 - n a)

with u the unit roundoff of the arrays (float64 2^-53, float32 2^-24, float16 2^-11, bfloat16 2^-8),
a that of the sums in the kernel (2^-53 for float64, else 2^-24), and n how many terms are summed
one after another, T + K + E. M is the largest magnitude in the array, or 1/16 of the largest in any
array of the case if that is more. ``spread`` is how much the exact answer of the array changes, at
most, when every input and what norms, scales and logarithms make of it is changed by a share u, up
or down, in three ways: 0 for a case in good condition, large for one that no arithmetic of this
precision can answer, so that nothing is blamed on the kernel that is the case's. It is not looked
at where the error is a million times the first term. With ``rtol`` given, the bound is ``rtol * M``
and nothing else.
"""

from __future__ import annotations

from typing import NamedTuple

from ..backend import Array, host
from .subjects import Arrays

ROUNDOFF = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
STAGES, SHARES, FLOOR = 8, 16, 2.0**-4
HOPELESS = 1e6  # a case drawn here is never in a condition as bad as this


class Difference(NamedTuple):
    """One array that is not what it should be."""

    array: str
    error: float  # the largest, over the magnitude; infinite where something is not finite
    allowed: float  # the same, as the bound
    wrong: Array  # bool, where it is out of bounds; of the kernel's shape
    found: Array
    expected: Array


def tolerance(dtype: str, terms: int) -> float:
    """The relative error that rounding explains in sums of that many terms."""
    u = ROUNDOFF[dtype]
    a = min(u, ROUNDOFF["float32"])
    return SHARES * u + STAGES * (terms + 2) * a / (1 - terms * a)


def rounded(a: Array, dtype: str) -> Array:
    """float64 numbers that ``dtype`` represents exactly."""
    if a.dtype.kind != "f" or dtype == "float64":
        return a
    if dtype != "bfloat16":
        return a.astype(dtype).astype("float64")
    bits = a.astype("float32").view("uint32")  # (...) to nearest, ties to even
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & host.uint32(0xFFFF0000)
    return bits.view("float32").astype("float64")


def magnitude(expected: Arrays, name: str) -> float:
    """M above."""
    sizes = {n: float(host.max(host.abs(a), initial=0.0)) for n, a in expected.items()}
    return max(sizes[name], FLOOR * max(sizes.values()))


def difference(
    name: str, found: Array, expected: Arrays, rtol: float, spread: float = 0.0
) -> Difference | None:
    """None if every entry is within ``rtol * M + 16 * spread``."""
    want, size = expected[name], magnitude(expected, name)
    with host.errstate(all="ignore"):
        error = host.abs(found - want)
        bound = rtol * size + SHARES * spread
        wrong = ~(error <= bound)  # what is not finite is wrong too
    if not wrong.any():
        return None
    worst = float(host.max(host.where(host.isfinite(error), error, host.inf)))
    size = size or 1.0
    return Difference(name, worst / size, bound / size, wrong, found, want)
