"""What check_adjoint says when it fails: the reason in words, or nothing.

``check_adjoint`` puts the function and the argument in front.
"""

from __future__ import annotations

import math
from typing import Any

from ..backend import Array, Tree
from ..tree import leaves, named_leaves
from .leaves import differentiable, is_float
from .numbers import RESOLUTION, Sides, largest, wide

__all__ = [
    "no_adjoint", "another_structure", "another_array",
    "not_finite", "disagreement", "lost_in_the_input", "drowned", "unseen",
]  # fmt: skip


# Refused before anything is compared; empty if nothing is wrong


def no_adjoint(args: tuple, output: Tree) -> str:
    """Something must be there to check, and real floating-point numbers throughout."""
    for a in leaves(args):
        if "complex" in str(getattr(a, "dtype", "")):
            return f"an argument is {_digits(a)}; only real numbers are checked"
    if not any(differentiable(a) for a in args):
        return "nothing to check, no argument is a floating-point array"
    for label, y in named_leaves(output):
        if not is_float(y):
            kind = _digits(y) if hasattr(y, "dtype") else type(y).__name__
            return (
                f"output {label or 0} is {kind}; only real floating-point arrays have "
                "derivatives: leave it out of what fwd returns as its output"
            )
    if not any(math.prod(y.shape) for y in leaves(output)):
        return "nothing to check, the output has no entries"
    return ""


def another_structure(arg: Tree, gradient: Tree, label: str = "") -> str:
    """A gradient is a tuple of as many entries wherever its argument is one, or None."""
    if gradient is None or not isinstance(arg, tuple):
        return ""
    if not isinstance(gradient, tuple) or len(gradient) != len(arg):
        found = (
            f"{len(gradient)} entries" if isinstance(gradient, tuple) else type(gradient).__name__
        )
        return (
            f"the gradient of {label or 'an argument'} must be a tuple of "
            f"{len(arg)} entries, got {found}"
        )
    names = getattr(arg, "_fields", range(len(arg)))
    for name, a, g in zip(names, arg, gradient, strict=True):
        if reason := another_structure(a, g, f"{label}.{name}" if label else str(name)):
            return reason
    return ""


def another_array(grad: Any, leaf: Array) -> str:
    """A gradient is an array of the shape and dtype of its input, or None."""
    if grad is None:
        return ""
    if not hasattr(grad, "dtype"):
        return f"the gradient is a {type(grad).__name__}, not an array"
    if tuple(grad.shape) != tuple(leaf.shape):
        return f"gradient of shape {tuple(grad.shape)} for an input of shape {tuple(leaf.shape)}"
    if grad.dtype != leaf.dtype:
        return f"gradient of dtype {_digits(grad)} for an input of {_digits(leaf)}"
    return ""


# Both sides were measured


def not_finite(sides: Sides) -> str:
    """NaN or infinity on either side."""
    return (
        f"{_both(sides)}|J v| = {sides.scale:.3g}: all three must be finite. Look for NaN or an "
        "overflow in the output and in the gradient"
    )


def disagreement(sides: Sides, rtol: float) -> str:
    """The two sides differ."""
    apart = sides.error / sides.scale if sides.scale > 0 else math.inf
    return f"{_both(sides)}they differ by {apart:.3g} |J v|, allowed {rtol:.1g}"


def lost_in_the_input(sides: Sides, leaf: Array) -> str:
    """The input has too few digits for the step."""
    return (
        f"rounding hides the derivative. An input as large as {largest(wide(leaf)):.3g} in "
        f"{_digits(leaf)} moves by {sides.step:.1g} v with a relative error of {sides.slip:.1g}, "
        f"more than {RESOLUTION:g}: {_more_digits(leaf)}take a larger step, or a smaller input"
    )


def drowned(sides: Sides, leaf: Array, sizes: list[float]) -> str:
    """The output has too few digits for the derivative."""
    return (
        f"rounding hides the derivative. |J v| = {sides.scale:.3g} is uncertain by "
        f"{sides.rounding:.2g} at a step of {sides.step:.1g}, for an output of size "
        f"{math.hypot(*sizes):.3g} in {_digits(leaf)}; {RESOLUTION:g} |J v| is allowed: "
        f"{_more_digits(leaf)}take a larger step, or subtract what is constant from the output"
    )


def unseen(sides: Sides, label: str, k: int, size: float, most: float, y: Array) -> str:
    """Output k does not move, and has too few digits to show that it should."""
    return (
        f"rounding hides whether the derivative is 0. Output {label or k}, of size {size:.3g} in "
        f"{_digits(y)}, does not move at a step of {sides.step:.1g}; a |J v| below "
        f"{sides.noise[k]:.2g} might not show, and no |J v| is larger than {most:.2g}: "
        f"{_more_digits(y)}take a larger step, or subtract what is constant from the output"
    )


def _both(sides: Sides) -> str:
    return (
        f"<u, J v> = {sides.lhs:.12g} by differences, "
        f"<J^T u, v> = {sides.rhs:.12g} by the backward pass; "
    )


def _digits(a: Array) -> str:
    """The dtype by its name, whatever the library puts in front of it."""
    return str(a.dtype).split(".")[-1]


def _more_digits(a: Array) -> str:
    return "" if _digits(a) == "float64" else "check in float64, "
