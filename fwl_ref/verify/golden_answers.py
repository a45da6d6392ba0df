"""The answers that a file holds against those computed here, array by array.

An array is compared by its largest error over its own largest magnitude. What is allowed depends on
the coarser of two precisions, that of the case's inputs and that of the array (``TOLERANCE``).
Arrays whose entries are all below ``FLOOR`` are compared as if their magnitude were ``FLOOR``: they
may be rounding errors of an exact zero.
"""

from __future__ import annotations

from typing import NamedTuple

from ..backend import Array, host
from .golden_fields import Arrays, check_real, first, precision

TOLERANCE = {"float64": 1e-9, "float32": 1e-3}
FLOOR = {"float64": 1e-6, "float32": 1e-2}


class Compared(NamedTuple):
    """One array of a file."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    error: float  # the largest, over the largest magnitude; infinite if something is not finite
    tolerance: float
    wrong: str  # where and how first; empty if the array agrees

    def __str__(self) -> str:
        """The line of a report."""
        what = f"{self.name:<13} {self.shape!s:<13} {self.dtype:<8}"
        verdict = f"wrong, {self.wrong}" if self.wrong else "ok"
        return f"{what} error {self.error:.1e}, allowed {self.tolerance:.1e}: {verdict}"


def compare(stored: Arrays, answers: Arrays, coarse: bool, rtol: float | None) -> list[Compared]:
    """Every array that is in both, in the order of ``answers``.

    Parameters
    ----------
    stored : the arrays of the file
    answers : those computed here, float64
    coarse : whether an input of the case is float32
    rtol : the error allowed instead of ``TOLERANCE``
    """
    found = {name: stored[name] for name in answers if name in stored}
    return [_compare(n, a, answers[n], coarse, rtol) for n, a in found.items()]


def _compare(name: str, found: Array, want: Array, coarse: bool, rtol: float | None) -> Compared:
    kind = "float32" if coarse else precision(found)
    tolerance = TOLERANCE[kind] if rtol is None else rtol
    row = Compared(name, tuple(found.shape), str(found.dtype), float("inf"), tolerance, "")
    if found.shape != want.shape:
        return row._replace(wrong=f"expected shape {want.shape}")
    try:
        check_real(name, found)
    except ValueError as error:
        return row._replace(wrong=str(error).removeprefix(f"{name}: "))
    if not found.size:
        return row._replace(error=0.0)
    magnitude = max(float(host.max(host.abs(want))), FLOOR[kind])
    with host.errstate(all="ignore"):
        errors = host.abs(found.astype("float64") - want) / magnitude
    outside = ~(errors <= tolerance)  # what is not finite is outside too
    row = row._replace(error=float(host.max(host.where(host.isfinite(errors), errors, host.inf))))
    if not outside.any():
        return row
    place = first(outside)
    where = f"first at {list(place)}: " if place else ""
    share = f" ({int(outside.sum())} of {found.size} entries)" if found.size > 1 else ""
    wrong = f"{where}{float(found[place]):.9g} instead of {float(want[place]):.9g}{share}"
    return row._replace(wrong=wrong)
