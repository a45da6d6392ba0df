"""Do all sides compute the same? Loss and every gradient in float64, before anything is timed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from benchmarks.problem import Llama, Size, problem
from benchmarks.processes import US, SideError, process

BOUND = 1e-10  # the largest error of a loss or gradient, over its largest entry


class Checked(NamedTuple):
    """What one work gave in float64."""

    loss: float
    errors: dict[str, float]  # side -> largest error of its loss and gradients
    formed: int  # multiply-adds of this project's products


def error(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference over the largest entry; a difference where all should be 0 counts in full, and what is not finite is infinite."""
    if found.shape != expected.shape and found.shape:
        return np.inf
    scale = float(np.max(np.abs(expected), initial=0.0))
    gap = float(np.max(np.abs(found - expected), initial=0.0))
    return (gap / scale if scale else gap) if np.isfinite(gap) else np.inf


def agree(work: str, name: str, found: tuple[float, dict], expected: tuple[float, dict], bound: float = BOUND) -> float:
    """The largest error of a side's loss and gradients. Raises SideError naming the first that is above ``bound``."""
    missing = set(expected[1]) ^ set(found[1])
    if missing:
        raise SideError(f"{work}: {name} and {US} must have the same gradients, but only one has {', '.join(sorted(missing))}")
    pairs = {"the loss": (found[0], expected[0])} | {f"the gradient of {n}": (found[1][n], g) for n, g in expected[1].items()}
    errors = {what: error(np.asarray(a), np.asarray(b)) for what, (a, b) in pairs.items()}
    for what, value in errors.items():
        if not value <= bound:
            raise SideError(f"{work}: {what} by {name} must be within {bound:g} of that by {US}, is {value:.2g} away: nothing is timed")
    return max(errors.values())


def check(size: Size | Llama, work: str, sides: list[str], cores: list[int]) -> Checked:
    """Loss and gradients by all sides in float64, on the text that will be timed."""
    given, answers, formed = problem(size, work, "float64"), {}, 0
    for name in sides:
        with process(name, cores) as ask:
            ask("load", given, len(cores))
            answers[name] = ask("gradients")
            if name == US:
                formed = ask("formed")
    errors = {name: agree(work, name, answers[name], answers[US]) for name in sides if name != US}
    return Checked(answers[US][0], errors, formed)
