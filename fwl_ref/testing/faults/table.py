"""Classic faults of kernels, each as the answers that a kernel with it gives.

A diagnosis compares the kernel's answers with these. What matches to rounding in every failing
case is named; nothing is guessed from a likeness.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..options import Options
from ..subjects import Subject
from .backward import of_backward, of_layout
from .common import Fault
from .numbers import of_gates, of_rates, of_scales
from .own import of_rule
from .state import of_chunks, of_documents, of_reading, of_state


def faults(subject: Subject, options: Options) -> Iterator[Fault]:
    """Every fault that a kernel of this subject may have, the most specific first."""
    yield from of_reading(subject, options)
    yield from of_documents(subject, options)
    yield from of_state(subject, options)
    yield from of_chunks(subject, options)
    yield from of_gates(subject, options)
    yield from of_scales(subject, options)
    yield from of_rates(subject)
    yield from of_rule(subject, options)
    yield from of_layout(subject, options)
    yield from of_backward(subject, options)
