"""The leaves that a check moves: which they are, their gradients, tangents and random numbers."""

from __future__ import annotations

from typing import Any

from ..backend import Array, Tree, host, like, namespace
from ..tree import leaves, tree_map

__all__ = ["is_float", "differentiable", "as_tuple", "spread", "only", "copied", "random"]


def is_float(a: Any) -> bool:
    """Whether it is an array of real floating-point numbers: others are constants."""
    return "float" in str(getattr(a, "dtype", ""))


def differentiable(arg: Tree) -> bool:
    """Whether a tree has at least one floating-point array."""
    return any(is_float(a) for a in leaves(arg))


def as_tuple(x: Any) -> tuple:
    """A bare array is one result; a NamedTuple is one tree; a plain tuple is several results."""
    return x if type(x) is tuple else (x,)


def spread(arg: Tree, gradient: Tree) -> list[Array | None]:
    """One gradient for every leaf of ``arg``; None where the gradient has none."""
    if isinstance(arg, tuple):
        parts = [None] * len(arg) if gradient is None else gradient
        return [g for a, part in zip(arg, parts, strict=True) for g in spread(a, part)]
    return [] if arg is None else [gradient]


def only(v: Array, args: tuple, i: int, j: int) -> tuple:
    """Tangents that move leaf j of argument i along v, and nothing else."""
    tangents = [None] * len(leaves(args[i]))
    tangents[j] = v
    return tuple(tangents if k == i else None for k in range(len(args)))


def copied(a: Any) -> Any:
    """A copy of an array; anything else is what it is."""
    return namespace(a).asarray(a, copy=True) if hasattr(a, "dtype") else a


def random(rng: host.random.Generator, tree: Tree) -> Tree:
    """Standard normal numbers in the shapes, the dtype and the library of the leaves."""
    return tree_map(lambda a: like(rng.standard_normal(tuple(a.shape)), a, a.dtype), tree)
