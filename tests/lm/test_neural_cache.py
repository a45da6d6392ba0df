"""The neural cache: its formula word by word, probabilities that sum to 1, and the past only. A
docstring with "N:" has a negative control: something that must not hold.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from fwl_ref.lm import neural_cache
from fwl_ref.lm.neural_cache import cache_probability, mix_cache
from tests.tolerances import RTOL, assert_bitwise, assert_close, relative_error


def case(tokens: int = 23, width: int = 5, vocabulary: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(tokens, width)), rng.integers(0, vocabulary, tokens)


def literal(n: np.ndarray, labels: np.ndarray, theta: float) -> np.ndarray:
    found = [0.0]
    for t in range(1, len(n)):
        weight = [math.exp(theta * float(np.dot(n[t], n[s]))) for s in range(t)]
        found.append(sum(w for s, w in enumerate(weight) if labels[s] == labels[t]) / sum(weight))
    return np.asarray(found)


@pytest.mark.parametrize("block", [1, 7, 256])
def test_it_is_its_formula(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop over tokens and over their past, whatever the block; N: another theta gives another answer."""
    monkeypatch.setattr(neural_cache, "BLOCK", block)
    n, labels = case()
    assert_close(cache_probability(n, labels, 0.7), literal(n, labels, 0.7), RTOL)
    assert relative_error(cache_probability(n, labels, 0.7), literal(n, labels, 0.6)) > 1e-3


def test_probabilities_of_all_words_sum_to_one() -> None:
    """Of the cache from the second token on, and of the mixture everywhere; only the present label is exchanged."""
    n, labels = case()
    logits = np.random.default_rng(1).normal(size=(len(n), 4))
    nll = np.log(np.sum(np.exp(logits), axis=1, keepdims=True)) - logits
    for t in range(len(n)):
        cached, mixed = 0.0, 0.0
        for word in range(4):
            words = np.where(np.arange(len(n)) == t, word, labels)
            p = cache_probability(n, words, 2.0)
            own = np.asarray([nll[s, w] for s, w in enumerate(words)])
            cached, mixed = cached + p[t], mixed + np.exp(-mix_cache(own, p, 0.3))[t]
        assert_close(np.asarray(cached), np.asarray(float(t > 0)), RTOL)
        assert_close(np.asarray(mixed), np.asarray(1.0), RTOL)


def test_the_future_changes_nothing() -> None:
    """Other features and words from token 9 on leave all before as it was, to the bit."""
    n, labels = case()
    other, words = n.copy(), labels.copy()
    other[9:], words[9:] = case(seed=5)[0][9:], case(seed=5)[1][9:]
    assert_bitwise(cache_probability(n, labels, 1.0)[:9], cache_probability(other, words, 1.0)[:9])


def test_the_mixture_is_exact_at_its_edges() -> None:
    """lambda 0 is the model; a word never seen costs -log(1 - lambda) more; a loss of 1000 nats does not underflow."""
    nll, p = np.asarray([1.0, 2.0, 3.0, 1000.0, 1000.0]), np.asarray([0.0, 0.0, 0.5, 0.25, 0.0])
    assert_bitwise(mix_cache(nll, p, 0.0), nll)
    mixed = mix_cache(nll, p, 0.2)
    stay = -math.log(0.8)
    expected = [1.0, 2 + stay, -math.log(0.8 * math.exp(-3) + 0.2 * 0.5), -math.log(0.2 * 0.25), 1000 + stay]
    assert_close(mixed, np.asarray(expected), RTOL)


def test_settings_that_cannot_be_are_said() -> None:
    n, labels = case()
    with pytest.raises(ValueError, match="theta must be above 0"):
        cache_probability(n, labels, 0.0)
    with pytest.raises(ValueError, match=r"lambda must lie in \[0, 1\)"):
        mix_cache(np.zeros(3), np.zeros(3), 1.0)
