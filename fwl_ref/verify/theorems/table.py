"""The nineteen theorems in their order, and all of them checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ...backend import Array
from ..measure import DTYPES, Finding
from .causality import causality, counting_normalizers, leaks
from .equivalence import equivalence, first_tokens, linear_loss, second_order, tangent_kernel
from .forms import forms, nothing_fast, pieces, streaming
from .gradients import adjoints, backward_forms, first_order
from .teeth import teeth
from .weights_and_symmetry import order, symmetry, weights

Theorem = Callable[[Array, str], Iterator[Finding]]  # of a target and a precision

THEOREMS: tuple[Theorem, ...] = (
    *(equivalence, first_tokens, second_order, linear_loss, tangent_kernel),
    *(forms, pieces, streaming, nothing_fast),
    *(causality, leaks, counting_normalizers),
    *(weights, order, symmetry),
    *(adjoints, backward_forms, first_order),
    teeth,
)


def findings(target: Array) -> Iterator[tuple[int, str, Finding]]:
    """Number of the theorem, precision and finding, for all theorems on ``target``'s device."""
    for number, theorem in enumerate(THEOREMS, start=1):
        for dtype in DTYPES:
            for finding in attempted(theorem, target, dtype):
                yield number, dtype, finding


def attempted(theorem: Theorem, target: Array, dtype: str) -> Iterator[Finding]:
    """The findings of one theorem; that it broke down is one too, so that the others go on."""
    try:
        yield from theorem(target, dtype)
    except Exception as error:  # whatever a library on somebody's machine may raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        yield Finding(f"{theorem.__name__}: {reason}", float("nan"), 0.0)
