"""What ops share: chunks, and products that no number travels through against the order of time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwl_ref.ops.common import anticausal_product, before, causal_product, chunk_slices, masked
from fwl_ref.ops.linear_attention import linear_attention_chunked_fwd, linear_attention_recurrent_fwd
from fwl_ref.ops.masked_attention import masked_attention_fwd
from tests.strategies import chunks, generator, seeds
from tests.tolerances import assert_bitwise, assert_close

BAD = [np.nan, np.inf, -np.inf]
HOLES = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2), st.sampled_from(BAD)), max_size=4)  # token, column, what is there


@given(length=st.integers(0, 12), data=st.data())
def test_chunks_cover_the_sequence_once_and_in_order(length: int, data: st.DataObject) -> None:
    """The slices partition 0, ..., T - 1; there is always at least one, so that T = 0 works. (L.3)"""
    chunk = data.draw(chunks(length), label="chunk")
    parts = chunk_slices(length, chunk)
    assert len(parts) >= 1
    assert [t for part in parts for t in range(part.start, part.stop)] == list(range(length))
    assert all(part.stop - part.start <= (chunk or length) for part in parts)


def test_masks_count_the_token_itself_only_if_told_to() -> None:
    """s < t, or s <= t."""
    like = np.zeros(0)
    assert np.array_equal(before(3, like), [[False, False, False], [True, False, False], [True, True, False]])
    assert np.array_equal(before(3, like, own=True), [[True, False, False], [True, True, False], [True, True, True]])


def test_a_mask_removes_what_is_not_finite() -> None:
    """0 where the mask says no, whatever stands there: never 0 times infinity."""
    assert_bitwise(masked(np.array([np.nan, np.inf, 3.0]), np.array([False, False, True])), np.array([0.0, 0.0, 3.0]))


def by_definition(scores: np.ndarray, v: np.ndarray, own: bool) -> np.ndarray:
    """The sum over the past, one term at a time; no term of the future is formed."""
    out = np.zeros(v.shape)
    for t in range(v.shape[1]):
        for s in range(t + own):
            out[:, t] += scores[:, t, s, None] * v[:, s]
    return out


@pytest.mark.parametrize("own", [False, True])
@given(length=st.integers(0, 6), holes=HOLES, seed=seeds)
def test_a_causal_product_spoils_what_the_sum_over_the_past_would(own: bool, length: int, holes: list, seed: int) -> None:
    """Finite where the definition is, with its value, and not finite where it is not: any holes,
    both directions of time.
    """
    draw = generator(seed)
    scores, v = np.tril(draw(2, length, length), 0 if own else -1), draw(2, length, 3)
    for t, column, bad in holes:
        v[1:, t : t + 1, column] = bad
    with np.errstate(invalid="ignore"):
        expected = by_definition(scores, v, own)
        turned = by_definition(np.flip(scores.mT, axis=(1, 2)), np.flip(v, axis=1), own)
    pairs = ((causal_product(scores, v, own), expected), (anticausal_product(scores, v, own), np.flip(turned, axis=1)))
    for found, wanted in pairs:
        finite = np.isfinite(wanted)
        assert np.array_equal(np.isfinite(found), finite)
        assert_close(found[finite], wanted[finite], scale=1.0)


@pytest.mark.parametrize(("dtype", "size", "width"), [("float16", 100, 700), ("float32", 1e36, 400), ("float64", 1e307, 50)])
def test_values_whose_sum_overflows_are_finite_values(dtype: str, size: float, width: int) -> None:
    """Looking whether values are finite adds none of them up: with v = size everywhere and scores
    of 1/8, o_t is t size / 8 exactly.
    """
    k, q = np.ones((1, 4, 1), dtype), np.full((1, 4, 1), 0.125, dtype)
    v, keep = np.full((1, 4, width), size, dtype), np.asarray(1, dtype)
    expected = np.asarray([0, 1, 2, 3], dtype)[None, :, None] * (v / np.asarray(8, dtype))
    mask = np.tril(np.ones((4, 4), dtype), -1)
    found = [linear_attention_chunked_fwd(q, k, v, keep, None, chunk)[0][0] for chunk in (None, 3)]
    found += [masked_attention_fwd(q, k, v, mask)[0], linear_attention_recurrent_fwd(q, k, v, keep)[0][0]]
    for out in found:
        assert np.all(np.isfinite(out))
        assert_bitwise(out, expected)
