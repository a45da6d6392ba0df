"""Laws of trees: a map over leaves that keeps the structure."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwl_ref.tree import add, leaves, named_leaves, rebuild, size, tree_map, zeros_like
from tests.strategies import generator, seeds
from tests.tolerances import assert_bitwise


class Pair(NamedTuple):
    first: Any
    second: Any


@st.composite
def trees(draw: st.DrawFn) -> Any:
    """Arrays and None, nested in tuples and NamedTuples."""
    normal = generator(draw(seeds))
    leaf = st.sampled_from([(), (2,), (0, 3), (2, 3)]).map(lambda shape: np.asarray(normal(*shape)))
    nested = st.recursive(leaf | st.none(), lambda t: st.lists(t, max_size=3).map(tuple) | st.builds(Pair, t, t), max_leaves=6)
    return draw(nested)


def structure(tree: Any) -> Any:
    return (type(tree), [structure(t) for t in tree]) if isinstance(tree, tuple) else tree is None


@given(tree=trees())
def test_map_keeps_structure_and_composes(tree: Any) -> None:
    """map(f . g) = map(f) . map(g), map(id) = id, type(map(f)(t)) = type(t), None stays None."""
    twice = tree_map(lambda x: 2 * x, tree)
    assert structure(twice) == structure(tree)
    for a, b in zip(leaves(tree_map(lambda x: 2 * x + 1, tree)), leaves(tree_map(lambda x: x + 1, twice)), strict=True):
        assert_bitwise(a, b)
    assert all(a is b for a, b in zip(leaves(tree_map(lambda x: x, tree)), leaves(tree), strict=True))


@given(tree=trees())
def test_rebuild_inverts_leaves(tree: Any) -> None:
    """rebuild(t, leaves(t)) = t, leaf for leaf the same object."""
    again = rebuild(tree, leaves(tree))
    assert structure(again) == structure(tree)
    assert all(a is b for a, b in zip(leaves(again), leaves(tree), strict=True))


@given(tree=trees())
def test_addition_has_a_zero_and_size_counts_scalars(tree: Any) -> None:
    """t + 0 = t, t + t = 2 t, size(t) = sum of leaf sizes."""
    for a, b, c in zip(leaves(add(tree, zeros_like(tree))), leaves(tree), leaves(add(tree, tree)), strict=True):
        assert np.array_equal(a, b)
        assert np.array_equal(c, 2 * b)
    assert size(tree) == sum(leaf.size for leaf in leaves(tree))


def test_leaves_have_names_that_say_where_they_are() -> None:
    """Names are the path through fields and positions, in the order of leaves."""
    a, b, c = np.ones(1), np.ones(2), np.ones(3)
    tree = Pair((a, Pair(b, None)), c)
    assert [name for name, _ in named_leaves(tree)] == ["first.0", "first.1.first", "second"]
    assert [leaf is x for (_, leaf), x in zip(named_leaves(tree), (a, b, c), strict=True)] == [True] * 3
    assert [name for name, _ in named_leaves(a)] == [""]


def test_trees_of_different_structure_do_not_map_together() -> None:
    """map(f)(t, u) needs t and u alike."""
    one = np.ones(1)
    with pytest.raises(ValueError, match="shorter|longer"):
        tree_map(lambda x, y: x + y, (one, one), (one,))
