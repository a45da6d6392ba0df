"""Optimizers as slots: their masks against the formulas of the dictionary, how many slots they
need, what they refuse.

A docstring that opens with "N:" is a negative control.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwl_ref.fwl import FastSettings, fast_block_fwd
from fwl_ref.optimizers import (
    Optimizer,
    OptimizerState,
    any_mask,
    averaging,
    closed_form,
    decay,
    mask,
    momentum,
    momentum_with_decay,
    preconditioned,
    preconditioned_heads,
    read_slots,
    schedule,
    segments,
    sgd,
    sliding_window,
    slots,
    system,
    write_slots,
)
from fwl_ref.slow_block import FastParameters
from fwl_ref.stream import Stream, stream_predict, stream_reveal, stream_start
from tests.strategies import generator, make_block_case, seeds
from tests.tolerances import assert_close, float32_bound

CASE = make_block_case(2, 5, 4, 6, 5, FastSettings(), seed=3)
HOST = pytest.mark.host("values are looked at on the host only")

# The table, entry by entry, as the contract of the project has it.
TABLE = {
    "SGD": (sgd(), lambda t, s: 1),
    "step-size schedule": (schedule([0.5 + 0.1 * t for t in range(12)]), lambda t, s: 0.5 + 0.1 * s),
    "decay to theta_0": (decay(0.2), lambda t, s: 0.8 ** (t - s - 1)),
    "heavy ball": (momentum(0.9), lambda t, s: (1 - 0.9 ** (t - s)) / (1 - 0.9)),
    "momentum and decay": (momentum_with_decay(0.9, 0.2), lambda t, s: (0.8 ** (t - s) - 0.9 ** (t - s)) / (0.8 - 0.9)),
    "averaging": (averaging(), lambda t, s: (t - s) / (t + 1)),
    "sliding window": (sliding_window(3), lambda t, s: t - s <= 3),
    "segments": (segments(4), lambda t, s: s // 4 < t // 4),
}
every_row = pytest.mark.parametrize("name", TABLE)
SLOTS = dict(zip(TABLE, (1, 1, 1, 2, 2, 2, 3, 2), strict=True))


@every_row
@pytest.mark.parametrize("length", [0, 1, 2, 12])
def test_slots_run_on_unit_impulses_give_the_mask_of_the_table(name: str, length: int) -> None:
    """mask = formula = the table: (O.1), (O.3), (O.5) to (O.12)"""
    optimizer, entry = TABLE[name]
    expected = np.asarray([[float(entry(t, s)) if s < t else 0.0 for s in range(length)] for t in range(length)]).reshape(length, length)
    assert_close(mask(optimizer, length), expected)
    assert_close(closed_form(optimizer, length), expected)
    assert np.all(np.triu(mask(optimizer, length)) == 0)


@given(mu=st.floats(0, 1), rate=st.floats(0, 1), length=st.integers(0, 20))
def test_momentum_with_decay_is_a_geometric_sum(mu: float, rate: float, length: int) -> None:
    """sum_{i+j=t-s-1} a^i mu^j, a = 1 - lambda, which is the quotient of (O.9) where a != mu, and
    its limit where a = mu.
    """
    a = 1 - rate
    expected = np.zeros((length, length))
    for t in range(length):
        for s in range(t):
            expected[t, s] = sum(a**i * mu ** (t - s - 1 - i) for i in range(t - s))
    assert_close(mask(momentum_with_decay(mu, rate), length), expected)
    assert_close(closed_form(momentum_with_decay(mu, rate), length), expected)


# mu against 1 - rate, from equal over the next float to far apart; and heavy ball with mu up to 1
NEARLY_EQUAL = [(0.3, 0.7), (0.25, 0.75), *((0.3 + 10.0**-n, 0.7) for n in range(1, 17)), (np.nextafter(0.25, 1), 0.75)]
NEARLY_ONE = [(1.0, 0.0), *((1 - 10.0**-n, 0.0) for n in range(1, 17)), (np.nextafter(1.0, 0), 0.0), (1.0, 1e-12), (0.0, 1.0)]


@pytest.mark.parametrize(("mu", "rate"), [*NEARLY_EQUAL, *NEARLY_ONE])
def test_the_closed_form_has_all_digits_where_the_two_rates_are_nearly_equal(mu: float, rate: float) -> None:
    """M_ts is sum_{i+j=t-s-1} a^i mu^j in exact fractions, to rounding, however near a = 1 - rate
    is to mu: the quotient of (O.9) is 0 / 0 to rounding there.
    """
    length, a, b = 24, 1 - Fraction(rate), Fraction(float(mu))
    exact = [float(sum(a**i * b ** (n - 1 - i) for i in range(n))) for n in range(length)]
    expected = np.asarray([[exact[max(t - s, 0)] for s in range(length)] for t in range(length)])
    for found in (closed_form(momentum_with_decay(mu, rate), length), mask(momentum_with_decay(mu, rate), length)):
        assert np.all(np.abs(found - expected) <= 2 * length * np.finfo(float).eps * expected)


def test_the_closed_form_adds_up_each_gap_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 tokens have 4,950 entries and 99 gaps, each a sum of its own."""
    sums, fsum = [], math.fsum
    monkeypatch.setattr("fwl_ref.optimizers.math.fsum", lambda terms: sums.append(1) or fsum(terms))
    optimizer = momentum_with_decay(0.9, 0.05)
    assert_close(closed_form(optimizer, 100), mask(optimizer, 100))
    assert len(sums) == 99


@every_row
def test_no_form_with_fewer_slots_exists(name: str) -> None:
    """rank M[p:, :p] is what a form with a state must carry past token p; the largest of these
    ranks is the number of slots: (O.4)
    """
    optimizer, _ = TABLE[name]
    whole = mask(optimizer, 12)
    assert max(np.linalg.matrix_rank(whole[p:, :p]) for p in range(1, 12)) == slots(optimizer) == SLOTS[name]


@given(seed=seeds, length=st.integers(1, 8))
def test_any_strict_mask_is_the_mask_of_its_optimizer(seed: int, length: int) -> None:
    """(O.13)"""
    wanted = np.tril(generator(seed)(length, length), -1)
    assert_close(mask(any_mask(wanted), length), wanted)
    assert_close(closed_form(any_mask(wanted), length), wanted)
    assert slots(any_mask(wanted)) == length


@every_row
@given(cut=st.integers(0, 12), seed=seeds)
def test_tables_start_where_they_are_told_to(name: str, cut: int, seed: int) -> None:
    """keep, write, read of the tokens cut, ..., 11 are the end of those of 0, ..., 11: (O.2)"""
    like = np.zeros(0)
    for whole, rest in zip(system(TABLE[name][0], 0, 12, like), system(TABLE[name][0], cut, 12 - cut, like), strict=True):
        assert np.array_equal(whole[cut:], rest)


@every_row
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_tables_and_slots_have_the_dtype_of_what_they_are_like(name: str, dtype: str) -> None:
    """No silent float64: (O.2)"""
    optimizer, _ = TABLE[name]
    assert {str(a.dtype) for a in system(optimizer, 0, 3, np.zeros(0, dtype))} == {dtype}
    g = FastParameters(*(np.ones((2, 3), dtype) for _ in range(6)))
    state = OptimizerState(FastParameters(*(np.zeros((2, slots(optimizer), 3), dtype) for _ in range(6))), 0)
    state = write_slots(optimizer, state, g)
    assert {str(a.dtype) for a in (*state.slots, *read_slots(optimizer, state))} == {dtype}
    assert state.token == 1


@every_row
@given(seed=seeds)
def test_writing_and_reading_slots_one_by_one_is_the_mask(name: str, seed: int) -> None:
    """read_t . slots_t = sum_{s<t} M_ts g_s, leaf by leaf: (O.2), (O.3)"""
    optimizer, normal, length = TABLE[name][0], generator(seed), 8
    gradients = [FastParameters(*(normal(2, 3) for _ in range(6))) for _ in range(length)]
    state, m = (OptimizerState(FastParameters(*(np.zeros((2, slots(optimizer), 3)) for _ in range(6))), 0), mask(optimizer, length))
    for t in range(length):
        for i, sums in enumerate(read_slots(optimizer, state)):
            expected = sum((m[t, s] * gradients[s][i] for s in range(t)), np.zeros((2, 3)))
            assert_close(sums, expected, scale=1.0)
        state = write_slots(optimizer, state, gradients[t])


# Preconditioning
# -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "heads"), [((3, 5), 3), ((5, 3), 3), ((1, 4), 1), ((4, 1), 1)])
def test_a_divisor_without_structure_needs_as_many_heads_as_its_shorter_side(shape: tuple, heads: int) -> None:
    """rank(1 / R) = min(D, F) in general: (O.21)"""
    divisor = np.random.default_rng(0).uniform(0.5, 2, shape)
    u, w = preconditioned_heads(divisor)
    assert u.shape == (heads, shape[0]) and w.shape == (heads, shape[1])
    assert_close(u.T @ w, 1 / divisor)


def test_heads_of_a_float32_divisor_are_float32_and_as_few() -> None:
    """Rounding does not add heads: (O.22) in float32."""
    divisor = np.outer([1.0, 2.0, 3.0], [0.5, 0.7]).astype("float32")
    u, w = preconditioned_heads(divisor)
    assert u.shape[0] == 1 and u.dtype == w.dtype == np.float32
    assert_close(u.T @ w, 1 / divisor, float32_bound(terms=3))


# What is refused
# -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: decay(1.5), ["decay rate", "[0, 1]", "1.5"]),
        (lambda: decay(-0.1), ["decay rate", "-0.1"]),
        (lambda: decay(float("nan")), ["decay rate", "nan"]),
        (lambda: momentum(1.01), ["momentum", "[0, 1]", "1.01"]),
        (lambda: momentum_with_decay(0.5, 2.0), ["decay rate", "2.0"]),
        (lambda: sliding_window(0), ["window", "at least 1 token", "got 0"]),
        (lambda: segments(-1), ["segment", "at least 1 token", "got -1"]),
        (lambda: mask(schedule([1.0, 2.0]), 3), ["2 tokens", "token 2", "every token"]),
        (lambda: schedule([1.0, float("inf")]), ["step size", "finite", "inf", "token 1"]),
        (lambda: mask(any_mask(np.zeros((2, 2))), 3), ["2 rows", "token 2", "every token"]),
        (lambda: any_mask(np.zeros((0, 0))), ["at least 1 row"]),
        (lambda: closed_form(sgd()._replace(formula=None), 2), ["SGD", "no formula", "mask()"]),
    ],
)
def test_what_is_no_optimizer_is_refused_with_what_was_found(make, words: list[str]) -> None:
    """The invariant, the value, the fix."""
    with pytest.raises(ValueError) as caught:
        make()
    assert all(word in str(caught.value) for word in words), str(caught.value)


@HOST
def test_a_mask_that_is_not_strict_is_no_optimizer() -> None:
    """(O.13)"""
    with pytest.raises(ValueError, match=r"strictly causal.*M\[1,1\] = 1.0"):
        any_mask(np.tril(np.ones((3, 3))) - np.eye(3) * [[1], [0], [0]])


@HOST
@pytest.mark.parametrize("entry", [0.0, -1.0, np.nan, np.inf])
def test_a_divisor_that_is_not_positive_is_refused(entry: float) -> None:
    """(O.20), (O.21)"""
    divisor = FastParameters(*(np.ones(p.shape) for p in CASE.slow[:6]))
    divisor.W2[3, 1] = entry
    with pytest.raises(ValueError, match=rf"divisor of W2 must be finite and > 0, got {entry} at index \(3, 1\).*epsilon"):
        preconditioned(sgd(), divisor)
    with pytest.raises(ValueError, match=r"finite and > 0.*\(3, 1\)"):
        preconditioned_heads(divisor.W2)


def block(optimizer: Optimizer | None, state=None, decay_rate: float = 0.0):
    return fast_block_fwd(*CASE[:5], np.asarray(decay_rate), CASE.settings._replace(optimizer=optimizer), state)


def test_a_divisor_of_other_shapes_or_precision_is_refused() -> None:
    """One entry per parameter entry, in the parameters' dtype. (O.20)"""
    good = FastParameters(*(np.ones(p.shape) for p in CASE.slow[:6]))
    with pytest.raises(ValueError, match=r"divisor of W1 must have the shape of W1, \(4, 6\), got \(6, 4\)"):
        block(preconditioned(sgd(), good._replace(W1=np.ones((6, 4)))))
    with pytest.raises(TypeError, match="float64.*float32"):
        block(preconditioned(sgd(), good._replace(b2=np.ones(4, "float32"))))
    settings = CASE.settings._replace(optimizer=preconditioned(sgd(), good._replace(b1=np.ones(1))))
    with pytest.raises(ValueError, match=r"divisor of b1 must have the shape of b1, \(6,\)"):
        stream_predict(stream_start(2, CASE.slow, settings), CASE.x[:, 0], CASE.slow, CASE.eta, settings)


@HOST
def test_a_learned_decay_beside_an_optimizer_is_refused() -> None:
    """N: the decay would be ignored, so it must be 0: in the block (O.23) and in the stream."""
    settings = CASE.settings._replace(optimizer=momentum(0.9))
    with pytest.raises(ValueError, match=r"optimizer \(momentum\) the learned decay must be 0, got 0.1.*momentum_with_decay"):
        block(momentum(0.9), decay_rate=0.1)
    _, pending = stream_predict(stream_start(2, CASE.slow, settings), CASE.x[:, 0], CASE.slow, CASE.eta, settings)
    with pytest.raises(ValueError, match="learned decay must be 0"):
        stream_reveal(pending, CASE.labels[:, 0], CASE.weights[:, 0], CASE.slow, np.asarray(0.1), settings)


def test_the_state_of_another_kind_of_read_is_refused() -> None:
    """N: accumulated gradients are not slots, and slots are not those of an optimizer with another
    number of them. (O.23)
    """
    (_, _, sums), _ = block(None)
    (_, _, two), _ = block(momentum(0.9))
    with pytest.raises(ValueError, match="must hold slots of momentum, got accumulated gradients.*same optimizer"):
        block(momentum(0.9), sums)
    with pytest.raises(ValueError, match="must hold accumulated gradients, got slots"):
        block(None, two)
    with pytest.raises(ValueError, match=r"\(2, 2, 4, 6\) for W1, expected one matrix per sequence and slot, \(2, 1, 4, 6\)"):
        block(decay(0.1), two)
    settings = CASE.settings._replace(optimizer=decay(0.1))
    for state in (sums, two):
        with pytest.raises(ValueError, match="the state"):
            stream_predict(Stream(state, None), CASE.x[:, 0], CASE.slow, CASE.eta, settings)


def test_carrying_slots_needs_the_constant_normalizer() -> None:
    """N: later weights would rescale earlier writes."""
    (_, _, state), _ = block(momentum(0.9))
    settings = CASE.settings._replace(optimizer=momentum(0.9), normalizer="batch")
    with pytest.raises(ValueError, match="constant normalizer"):
        fast_block_fwd(*CASE[:6], settings, state)


@pytest.mark.parametrize(
    "change",
    [{"read": lambda t: (1.0,)}, {"keep": lambda t: ((1.0, 0.0),)}, {"keep": lambda t: ((1.0,), (1.0,))}, {"write": lambda t: ()}],
    ids=["read", "keep, rows", "keep, columns", "no slots"],
)
def test_tables_that_do_not_fit_each_other_are_refused(change: dict) -> None:
    """keep (N,N), write (N,), read (N,): (O.2)"""
    with pytest.raises(ValueError, match=r"keep \(N,N\), write \(N,\) and read \(N,\), got"):
        block(momentum(0.9)._replace(**change))


def test_momentum_and_decay_of_the_same_rate_have_their_own_formula():
    """a = mu: (a^n - mu^n) / (a - mu) is 0 / 0, and its limit n a^(n-1) is what the slots
    do   (O.9)
    """
    same = momentum_with_decay(0.5, 0.5)
    assert_close(closed_form(same, 7), mask(same, 7))
    assert_close(closed_form(same, 7)[6], np.array([(6 - s) * 0.5 ** (5 - s) if s < 6 else 0.0 for s in range(7)]))
