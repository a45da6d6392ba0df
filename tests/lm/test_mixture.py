"""The mixture that may switch: exact Bayes over paths, its bound, and that it looks at the past only.
A docstring with "N:" has a negative control: something that must not hold.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from fwl_ref.lm.mixture import mixture, regret_bound
from tests.tolerances import RTOL, assert_bitwise, assert_close

pytestmark = pytest.mark.host("losses that came home")


def prior(path: tuple[int, ...], count: int, switch: float | None) -> float:
    """Of a path, written out: 1 / N, and for every next token stay or move."""
    found = 1 / count
    for t, (before, now) in enumerate(itertools.pairwise(path), start=1):
        a = 1 / (t + 1) if switch is None else switch
        found *= (1 - a) if now == before else a / (count - 1)
    return found


@pytest.mark.parametrize("switch", [None, 0.0, 0.2])
@pytest.mark.parametrize("count", [2, 3])
def test_it_is_bayes_over_all_paths(count: int, switch: float | None) -> None:
    """-log of the sum over every path of its prior times the probability that it gives all tokens."""
    losses = np.random.default_rng(count).exponential(2.0, (count, 6))
    mixed, weights = mixture(list(losses), switch)
    for tokens in range(1, 7):
        paths = itertools.product(range(count), repeat=tokens)
        total = sum(prior(p, count, switch) * math.exp(-sum(losses[i, t] for t, i in enumerate(p))) for p in paths)
        assert_close(np.sum(mixed[:tokens]), np.asarray(-math.log(total)), RTOL)
    assert_close(np.sum(weights, axis=1), np.ones(6), RTOL)
    assert_close(np.exp(-mixed), np.sum(weights * np.exp(-losses.T), axis=1), RTOL)


@pytest.mark.parametrize("switch", [None, 0.01])
def test_it_loses_no_more_than_its_bound_against_any_predictor(switch: float | None) -> None:
    """Random losses, one predictor that turns from best to worst, one that says impossible; N: half of
    the bound is not kept by all.
    """
    rng, tight = np.random.default_rng(0), 0.0
    for tokens in (1, 2, 50, 400):
        good, bad = np.full(tokens, 0.1), np.full(tokens, 9.0)
        turning = np.where(np.arange(tokens) < tokens // 2, good, np.inf)
        for losses in ([good, bad], [rng.exponential(3, tokens), good, bad], [turning, rng.exponential(1, tokens)]):
            mixed = np.sum(mixture(losses, switch)[0])
            bound = regret_bound(tokens, len(losses), switch)
            assert all(mixed <= np.sum(one) + bound + 1e-9 for one in losses)
            tight = max(tight, max(mixed - np.sum(one) for one in losses if np.isfinite(np.sum(one))) / bound)
    assert tight > 0.5


def test_the_bound_is_the_prior_of_the_path() -> None:
    """Staying, with 1 / (t + 1) and with a constant; and a path with two moves."""
    assert_close(np.asarray(regret_bound(7, 3)), np.asarray(-math.log(prior((1,) * 7, 3, None))), RTOL)
    assert_close(np.asarray(regret_bound(7, 3)), np.asarray(math.log(3) + math.log(7)), RTOL)
    assert_close(np.asarray(regret_bound(7, 3, 0.1)), np.asarray(-math.log(prior((1,) * 7, 3, 0.1))), RTOL)
    path = (0, 0, 2, 2, 2, 1, 1)
    assert_close(np.asarray(regret_bound(7, 3, 0.1, 2)), np.asarray(-math.log(prior(path, 3, 0.1))), RTOL)
    assert regret_bound(0, 2) == 0
    with pytest.raises(ValueError, match="when they are"):
        regret_bound(7, 3, None, 1)


def test_it_looks_at_the_past_only() -> None:
    """Other losses from token 5 on leave the weights up to token 5 and the losses before it, to the bit; N: those after differ."""
    rng = np.random.default_rng(3)
    one, other = rng.exponential(1, (2, 9)), rng.exponential(1, (2, 9))
    other[:, :5] = one[:, :5]
    (mixed, weights), (again, weights_again) = mixture(list(one)), mixture(list(other))
    assert_bitwise(mixed[:5], again[:5])
    assert_bitwise(weights[:6], weights_again[:6])
    assert not np.array_equal(weights[6:], weights_again[6:])


def test_what_cannot_be_mixed_is_said() -> None:
    with pytest.raises(ValueError, match="at least two predictors"):
        mixture([np.zeros(3)])
    with pytest.raises(ValueError, match=r"\[3, 4\] tokens"):
        mixture([np.zeros(3), np.zeros(4)])
    with pytest.raises(ValueError, match=r"\[0, 1\), got 1"):
        mixture([np.zeros(3), np.zeros(3)], 1.0)
