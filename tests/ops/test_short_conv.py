"""The short convolution against its definition, cut anywhere, and causal.

A docstring that opens with "N:" is a negative control.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwl_ref.ops.short_conv import short_conv_bwd, short_conv_fwd
from tests.strategies import generator, seeds, splits
from tests.tolerances import assert_bitwise, assert_close

lengths = st.integers(0, 9)
widths = st.integers(1, 5)


def by_definition(x: np.ndarray, w: np.ndarray, state: np.ndarray | None) -> np.ndarray:
    """y_t = sum over the taps that reach back i tokens, one scalar at a time."""
    (batch, length, width), past = x.shape, len(w) - 1
    y = np.zeros(x.shape)
    for b, t, d in np.ndindex(batch, length, width):
        for i in range(past + 1):  # i tokens ago
            if t - i >= 0:
                y[b, t, d] += w[past - i, d] * x[b, t - i, d]
            elif state is not None:
                y[b, t, d] += w[past - i, d] * state[b, past + t - i, d]
    return y


@given(length=lengths, taps=widths, seed=seeds, carried=st.booleans())
def test_it_is_the_definition(length: int, taps: int, seed: int, carried: bool) -> None:
    """y_t = sum_j w_j x_{t-P+j} with scalar loops; the state that goes out is the last P inputs.   (S.4)"""
    draw = generator(seed)
    x, w, state = draw(2, length, 3), draw(taps, 3), draw(2, taps - 1, 3) if carried else None
    (y, after), _ = short_conv_fwd(x, w, state)
    assert_close(y, by_definition(x, w, state), scale=1.0)
    start = np.zeros((2, taps - 1, 3)) if state is None else state
    assert_bitwise(after, np.concatenate([start, x], axis=1)[:, length:])


@given(length=lengths, taps=widths, seed=seeds, data=st.data())
def test_a_sequence_may_be_cut_anywhere(length: int, taps: int, seed: int, data: st.DataObject) -> None:
    """run(x[:k]) then run(x[k:], state) = run(x), to the bit; gradients of the pieces add up.   (S.5)"""
    draw = generator(seed)
    x, w, state = draw(2, length, 3), draw(taps, 3), draw(2, taps - 1, 3)
    (whole, last), res = short_conv_fwd(x, w, state)
    dy, dlast = draw(*whole.shape), draw(*last.shape)
    outs, residuals, carried = [], [], state
    for start, stop in itertools.pairwise(data.draw(splits(length), label="cuts")):
        (y, carried), piece = short_conv_fwd(x[:, start:stop], w, carried)
        outs.append(y)
        residuals.append((start, stop, piece))
    assert_bitwise(np.concatenate(outs, axis=1), whole)
    assert_bitwise(carried, last)
    dx, dw, dstate = np.zeros_like(x), np.zeros_like(w), dlast
    for start, stop, piece in reversed(residuals):
        dx[:, start:stop], dw_piece, dstate = short_conv_bwd(dy[:, start:stop], dstate, piece)
        dw = dw + dw_piece
    for actual, expected in zip((dx, dw, dstate), short_conv_bwd(dy, dlast, res), strict=True):
        assert_close(actual, expected, scale=1.0)


@given(seed=seeds, t=st.integers(0, 6))
def test_it_is_causal_to_the_last_bit(seed: int, t: int) -> None:
    """y_{<=t} keeps its bits when what comes after t is not a number, and y_t itself does not.   (S.4)"""
    draw = generator(seed)
    x, w = draw(1, 8, 2), draw(4, 2)
    spoiled = x.copy()
    spoiled[:, t + 1 :] = np.nan
    before, after = short_conv_fwd(x, w)[0][0], short_conv_fwd(spoiled, w)[0][0]
    assert_bitwise(after[:, : t + 1], before[:, : t + 1])
    assert np.all(np.isnan(after[:, t + 1 :]))


def test_a_kernel_of_the_present_alone_scales_and_a_reversed_kernel_is_another() -> None:
    """N: w = (0, .., 0, 1) is the identity; with the taps in the other order the output is 3 tokens late.   (S.4)"""
    x, present = generator(0)(1, 6, 2), np.eye(4)[3][:, None] * np.ones(2)
    assert_bitwise(short_conv_fwd(x, present)[0][0], x)
    late = short_conv_fwd(x, present[::-1])[0][0]
    assert_bitwise(late[:, 3:], x[:, :3])
    assert not np.allclose(late, x)


def test_what_does_not_fit_is_refused() -> None:
    """Errors name the shape that is expected."""
    x = np.ones((2, 5, 3))
    for w in (np.ones((4, 2)), np.ones((0, 3))):
        with pytest.raises(ValueError, match=r"\(J,D\) = \(taps >= 1, 3\)"):
            short_conv_fwd(x, w)
    with pytest.raises(ValueError, match=r"last 3 inputs, \(B,P,D\) = \(2, 3, 3\), got \(2, 4, 3\)"):
        short_conv_fwd(x, np.ones((4, 3)), np.ones((2, 4, 3)))


def test_a_final_state_that_nobody_uses_has_gradient_0() -> None:
    """None says so.   (S.5)"""
    draw = generator(0)
    x, w, dy = draw(2, 3, 2), draw(4, 2), draw(2, 3, 2)
    (_, state), res = short_conv_fwd(x, w)
    for a, b in zip(short_conv_bwd(dy, None, res), short_conv_bwd(dy, np.zeros_like(state), res), strict=True):
        assert (a is None and b is None) or np.array_equal(a, b)
