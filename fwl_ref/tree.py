"""Trees: NamedTuples and tuples nested in each other, with arrays as leaves.

Parameters, gradients and states are trees. A gradient has the type of the thing it is the gradient
of, so one ``map`` serves the optimizer, dynamic evaluation and the checks. ``None`` is an absent
leaf and stays ``None``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .backend import Array, Tree, namespace

__all__ = ["tree_map", "named_leaves", "leaves", "rebuild", "zeros_like", "add", "size"]


def tree_map(f: Callable[..., Array], tree: Tree, *others: Tree) -> Tree:
    """Apply ``f`` to corresponding leaves of trees of the same structure."""
    if isinstance(tree, tuple):
        children = [tree_map(f, *branch) for branch in zip(tree, *others, strict=True)]
        return type(tree)(*children) if hasattr(tree, "_fields") else tuple(children)
    return None if tree is None else f(tree, *others)


def named_leaves(tree: Tree, prefix: str = "") -> Iterator[tuple[str, Array]]:
    """Yield ``("trunk.0.w_out", array)`` for every leaf, in a fixed order."""
    if isinstance(tree, tuple):
        names = getattr(tree, "_fields", range(len(tree)))
        for name, child in zip(names, tree, strict=True):
            yield from named_leaves(child, f"{prefix}.{name}" if prefix else str(name))
    elif tree is not None:
        yield prefix, tree


def leaves(tree: Tree) -> list[Array]:
    """The leaves in the order of ``named_leaves``."""
    return [leaf for _, leaf in named_leaves(tree)]


def rebuild(tree: Tree, new_leaves: list[Array]) -> Tree:
    """A tree shaped like ``tree`` with ``new_leaves`` (in the order of ``leaves``)."""
    queue = iter(new_leaves)
    return tree_map(lambda _: next(queue), tree)


def zeros_like(tree: Tree) -> Tree:
    """A tree of zeros of the same structure."""
    return tree_map(lambda x: namespace(x).zeros_like(x), tree)


def add(a: Tree, b: Tree) -> Tree:
    """Leafwise ``a + b``."""
    return tree_map(lambda x, y: x + y, a, b)


def size(tree: Tree) -> int:
    """Number of scalars in the tree."""
    total = 0
    for leaf in leaves(tree):
        count = 1
        for n in leaf.shape:
            count *= n
        total += count
    return total
