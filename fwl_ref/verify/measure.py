"""A claim that was checked once, and how differences are measured.

Allowed is what rounding can do, and nothing was tuned. float64: 1e-10, the tolerance of the suite.
float32: Higham's bound for 32 sums of 64 terms in succession, 32 (64 + 2) 2^-24 = 1.3e-4. Errors
are relative to the largest entry. Where a claim is bitwise, 0 is allowed; where a wrong program
must be noticed, the difference must be at least 100 times what rounding may do.
"""

from __future__ import annotations

from typing import NamedTuple

from ..backend import Array, Tree, host, to_numpy
from ..tree import leaves

DTYPES = ("float64", "float32")
ALLOWED = {"float64": 1e-10, "float32": 32 * 66 * 2.0**-24}


class Finding(NamedTuple):
    """One claim, checked once."""

    claim: str
    error: float  # what was found
    allowed: float
    must_exceed: bool = False  # a negative control: the error must be at least ``allowed``

    @property
    def ok(self) -> bool:
        """Whether the claim holds; not a number never does."""
        return self.error >= self.allowed if self.must_exceed else self.error <= self.allowed


def same(claim: str, found: Tree, expected: Tree, dtype: str) -> Finding:
    """The finding that two trees of arrays agree up to the rounding of ``dtype``."""
    return Finding(claim, gap(found, expected), ALLOWED[dtype])


def different(claim: str, found: Tree, expected: Tree, dtype: str) -> Finding:
    """The finding that two trees of arrays differ by far more than the rounding of ``dtype``."""
    return Finding(claim, gap(found, expected), 100 * ALLOWED[dtype], must_exceed=True)


def gap(a: Tree, b: Tree) -> float:
    """Largest difference over the largest magnitude of ``b``, over all leaves.

    Not a number where ``a`` is not finite or has another shape.
    """
    worst = 0.0
    for x, y in zip(leaves(a), leaves(b), strict=True):
        x, y = to_numpy(x).astype("float64"), to_numpy(y).astype("float64")
        if x.shape != y.shape or not host.all(host.isfinite(x)):
            return float("nan")
        if x.size:
            worst = max(worst, float(host.max(host.abs(x - y)) / max(host.max(host.abs(y)), 1e-3)))
    return worst


def bits(a: Array, b: Array) -> float:
    """How many entries are not the same to the last bit."""
    a, b = host.ascontiguousarray(to_numpy(a)), host.ascontiguousarray(to_numpy(b))
    return float(host.sum(a.view(f"u{a.itemsize}") != b.view(f"u{b.itemsize}")))
