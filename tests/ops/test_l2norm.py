"""The l2 norm at its edges; the laws of its adjoints are in test_laws.py.

A docstring that opens with "N:" is a negative control.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from fwl_ref.ops.l2norm import l2norm_bwd, l2norm_bwd_bwd, l2norm_fwd
from tests.strategies import generator, seeds
from tests.tolerances import assert_bitwise, assert_close


def test_l2norm_of_zeros_is_zeros_with_finite_gradients() -> None:
    """x = 0: y = 0 and dx = dy / sqrt(eps); the second derivative of an odd function is 0 there.   (N.7) to (N.9)"""
    dy, g = generator(0)(2, 3), generator(1)(2, 3)
    y, res = l2norm_fwd(np.zeros((2, 3)), 1e-4)
    assert_bitwise(y, np.zeros((2, 3)))
    assert_close(l2norm_bwd(dy, res), dy * 100)
    g_dy, g_x = l2norm_bwd_bwd(g, dy, res)
    assert_close(g_dy, g * 100)
    assert np.all(g_x == 0)


@given(seed=seeds)
def test_l2norm_is_shorter_than_1_and_keeps_the_direction(seed: int) -> None:
    """|y| = |x| / sqrt(|x|^2 + eps) < 1; with eps = 0 it is 1 and dx is orthogonal to x.   (N.7), (N.8)"""
    draw = generator(seed)
    x, dy = draw(4, 5), draw(4, 5)
    y, _ = l2norm_fwd(x, 0.1)
    size = np.sqrt(np.sum(x * x, axis=1))
    assert_close(np.sqrt(np.sum(y * y, axis=1)), size / np.sqrt(size**2 + 0.1))
    assert_close(y / np.sqrt(np.sum(y * y, axis=1, keepdims=True)), x / size[:, None])
    y, res = l2norm_fwd(x, 0.0)
    assert_close(np.sum(y * y, axis=1), np.ones(4))
    assert_close(np.sum(l2norm_bwd(dy, res) * x, axis=1), np.zeros(4), scale=1.0)
    assert_bitwise(l2norm_fwd(x)[0], l2norm_fwd(x, 1e-6)[0])


def test_every_vector_has_its_own_norm() -> None:
    """Whatever stands before the last axis: the rows of (B,T,K) are those of (B T,K).   (N.7) to (N.9)"""
    x, dy, g = generator(0)(3, 2, 3, 4)
    flat = lambda a: np.reshape(a, (6, 4))  # noqa: E731
    (y, res), (rows, each) = l2norm_fwd(x, 0.1), l2norm_fwd(flat(x), 0.1)
    assert_bitwise(flat(y), rows)
    assert_bitwise(flat(l2norm_bwd(dy, res)), l2norm_bwd(flat(dy), each))
    for a, b in zip(l2norm_bwd_bwd(g, dy, res), l2norm_bwd_bwd(flat(g), flat(dy), each), strict=True):
        assert_bitwise(flat(a), b)


def test_epsilon_outside_the_root_is_another_function() -> None:
    """N: x / (|x| + eps) and x / max(|x|, eps), which other programs compute, differ for short vectors.   (N.7)"""
    x = np.asarray([[3e-4, 4e-4]])
    y, _ = l2norm_fwd(x, 1e-6)
    assert_close(y, x / np.sqrt(2.5e-7 + 1e-6))
    for other in (x / (5e-4 + 1e-6), x / max(5e-4, 1e-6)):
        assert np.max(np.abs(other - y)) > 0.3


def test_a_negative_epsilon_is_refused() -> None:
    """It stands under a root."""
    with pytest.raises(ValueError, match="eps stands under the root: it must be >= 0, got -1"):
        l2norm_fwd(np.ones(3), -1.0)
