"""What ops share: chunks, and products that no number travels through against the order of time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwl_ref.ops import common
from fwl_ref.ops.common import (
    anticausal_product,
    before,
    causal_product,
    causal_scores,
    chunk_slices,
    in_a_row,
    masked,
    row_mean,
    row_sum,
    sum_to,
    token_sum,
)
from fwl_ref.ops.linear_attention import (
    linear_attention_chunked_bwd,
    linear_attention_chunked_fwd,
    linear_attention_recurrent_bwd,
    linear_attention_recurrent_fwd,
)
from fwl_ref.ops.masked_attention import (
    masked_attention_bwd,
    masked_attention_chunked_bwd,
    masked_attention_chunked_fwd,
    masked_attention_fwd,
    masked_attention_recurrent_bwd,
    masked_attention_recurrent_fwd,
)
from tests.strategies import chunks, generator, seeds
from tests.tolerances import assert_bitwise, assert_close

HALF = pytest.param("float16", 100, 700, marks=pytest.mark.host("the array API standard has no float16"))
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


@pytest.mark.parametrize("own", [False, True])
@given(length=st.integers(0, 9), block=st.integers(1, 10), seed=seeds)
def test_products_with_a_triangle_are_the_whole_products(own: bool, length: int, block: int, seed: int) -> None:
    """Blocks that are all 0 are left out, and nothing else: any length, any size of a block."""
    draw = generator(seed)
    q, k, v = draw(2, length, 3), draw(2, length, 3), draw(2, length, 4)
    whole = np.tril(q @ k.mT, 0 if own else -1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common, "BLOCK", block)
        assert_close(causal_scores(q, k, own), whole, scale=1.0)
        assert_close(causal_product(whole, v, own), whole @ v, scale=1.0)
        assert_close(anticausal_product(whole, v, own), whole.mT @ v, scale=1.0)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("block", [2, 3, 128])
def test_no_score_of_the_future_gets_in(own: bool, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that is not finite spoils the scores of those that see it, and no others."""
    monkeypatch.setattr(common, "BLOCK", block)
    q, k = generator(1)(2, 6, 3), generator(2)(2, 6, 3)
    k[:, 3] = np.nan
    seen = np.zeros((2, 6, 6), bool)
    seen[:, 3 if own else 4 :, 3] = True
    assert np.array_equal(np.isnan(causal_scores(q, k, own)), seen)


def test_parts_in_a_row_are_copied_only_if_there_are_several() -> None:
    """One part is itself."""
    a, b = generator(1)(2, 3, 4), generator(2)(2, 1, 4)
    assert in_a_row([a]) is a
    assert_bitwise(in_a_row([a, b]), np.concatenate([a, b], axis=1))


@given(width=st.integers(1, 9), seed=seeds)
def test_the_mean_of_a_row_is_the_mean(width: int, seed: int) -> None:
    """Also of complex numbers, none of which is conjugated."""
    x = generator(seed)(2, 3, width) + 1j * generator(seed + 1)(2, 3, width)
    assert_close(row_mean(x.real), np.mean(x.real, axis=-1, keepdims=True), scale=1.0)
    assert_close(row_mean(x).imag, np.mean(x, axis=-1, keepdims=True).imag, scale=1.0)


@given(shape=st.lists(st.integers(0, 4), min_size=2, max_size=4), seed=seeds)
def test_sums_of_rows_and_of_tokens_are_sums(shape: list[int], seed: int) -> None:
    """Of arrays with any number of axes, empty ones among them; what is as large as its target is left as it is."""
    x = generator(seed)(*shape)
    assert_close(row_sum(x), np.sum(x, axis=-1, keepdims=True), scale=1.0)
    tokens = np.sum(x, axis=tuple(range(x.ndim - 1)))
    assert_close(token_sum(x), tokens, scale=1.0)
    assert_close(sum_to(x, x[(0,) * (x.ndim - 1)] if x.size else np.zeros(shape[-1])), tokens, scale=1.0)
    assert sum_to(x, x) is x


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_row_has_one_sum_whatever_stands_beside_it(dtype: str) -> None:
    """To the bit: so a text has the same losses alone and beside others."""
    x = generator(4)(24, 129).astype(dtype)
    whole = row_sum(x)
    for start in range(24):
        assert_bitwise(row_sum(x[start:]), whole[start:])
        assert_bitwise(row_sum(x[: start + 1]), whole[: start + 1])


@pytest.mark.parametrize(("dtype", "size", "width"), [HALF, ("float32", 1e36, 400), ("float64", 1e307, 50)])
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


T, S = 6, 3  # tokens, and the one that is spoilt
KEEP = np.asarray(0.9)
SLOT = np.full((T, 1, 1), 0.9), np.ones((T, 1)), np.ones((T, 1))  # the same decay as one slot
MASK = np.asarray([[0.9 ** (t - s - 1) if s < t else 0.0 for s in range(T)] for t in range(T)])


def with_two_outputs(fwd: Callable, bwd: Callable, *rest: Any) -> tuple[Callable, Callable]:
    """A form with a state as a function of q, k, v with one output."""

    def one_fwd(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> tuple:
        (out, _), res = fwd(q, k, v, *rest)
        return out, res

    return one_fwd, lambda dout, res: bwd(dout, None, res)[:3]


RECURRENT = {
    "linear": with_two_outputs(linear_attention_recurrent_fwd, linear_attention_recurrent_bwd, KEEP),
    "slots": with_two_outputs(masked_attention_recurrent_fwd, masked_attention_recurrent_bwd, *SLOT),
}
FORMS = {
    **RECURRENT,
    "linear, parallel": with_two_outputs(linear_attention_chunked_fwd, linear_attention_chunked_bwd, KEEP, None, None),
    "linear, chunks": with_two_outputs(linear_attention_chunked_fwd, linear_attention_chunked_bwd, KEEP, None, 2),
    "slots, one chunk": with_two_outputs(masked_attention_chunked_fwd, masked_attention_chunked_bwd, *SLOT, None, None),
    "slots, chunks": with_two_outputs(masked_attention_chunked_fwd, masked_attention_chunked_bwd, *SLOT, None, 2),
    "mask": (lambda q, k, v: masked_attention_fwd(q, k, v, MASK), masked_attention_bwd),
}


def spoilt(a: np.ndarray, bad: float) -> np.ndarray:
    """One entry of token S."""
    a = a.copy()
    a[0, S, 1] = bad
    return a


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", FORMS)
def test_every_form_spoils_the_same_entries_and_none_before(name: str, bad: float) -> None:
    """What is not finite in k_S or v_S leaves o_{<=S} and dq_{<=S} as they are, to the bit, and later
    outputs are finite where those of the recurrent form are. (L.1) to (L.6), (O.14) to (O.19)
    """
    (fwd, bwd), (by_token, _) = FORMS[name], RECURRENT["linear"]
    draw = generator(8)
    q, k, v, dout = draw(1, T, 3), draw(1, T, 3), draw(1, T, 2), draw(1, T, 2)
    out, res = fwd(q, k, v)
    dq = bwd(dout, res)[0]
    for case in ((q, spoilt(k, bad), v), (q, k, spoilt(v, bad))):
        with np.errstate(all="ignore"):
            found, found_res = fwd(*case)
            found_dq = bwd(dout, found_res)[0]
            expected, _ = by_token(*case)
        assert_bitwise(found[:, : S + 1], out[:, : S + 1])
        assert_bitwise(found_dq[:, : S + 1], dq[:, : S + 1])
        assert np.array_equal(np.isfinite(found), np.isfinite(expected))
        assert not np.any(np.all(np.isfinite(found[:, S + 1 :]), axis=-1))


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", FORMS)
def test_no_backward_pass_lets_a_token_spoil_what_was_written_after_it(name: str, bad: float) -> None:
    """What is not finite in dout_S or q_S leaves dk_{>=S}, dv_{>=S} and every other dq as they are, to
    the bit. (L.2), (L.4), (L.6), (O.15), (O.17), (O.19)
    """
    fwd, bwd = FORMS[name]
    draw = generator(9)
    q, k, v, dout = draw(1, T, 3), draw(1, T, 3), draw(1, T, 2), draw(1, T, 2)
    dq, dk, dv = bwd(dout, fwd(q, k, v)[1])
    others = np.arange(T) != S
    with np.errstate(all="ignore"):
        both = bwd(spoilt(dout, bad), fwd(q, k, v)[1]), bwd(dout, fwd(spoilt(q, bad), k, v)[1])
    for found_dq, found_dk, found_dv in both:
        assert_bitwise(found_dq[:, others], dq[:, others])
        assert_bitwise(found_dk[:, S:], dk[:, S:])
        assert_bitwise(found_dv[:, S:], dv[:, S:])
