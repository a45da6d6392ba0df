"""The cache over a model: the model's own losses and features below it, one reading for both; and the
setting of least loss. A docstring with "N:" has a negative control: something that must not hold.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from fwl_ref.lm import evaluate
from fwl_ref.lm.cached import best_share, cached, parts, squared_length, tune_cache, tune_on
from fwl_ref.lm.data import Document
from fwl_ref.lm.evaluate import with_step_size
from fwl_ref.lm.model import Config, Parameters, features, initialize
from fwl_ref.lm.neural_cache import cache_probability, mix_cache
from fwl_ref.tree import tree_map
from tests.tolerances import RTOL, assert_bitwise, assert_close, relative_error

pytestmark = pytest.mark.host("documents come from the host")

CONFIG = Config(width=8, layers=1, heads=2, chunk=5)
PLAIN = CONFIG._replace(fast=False)
WINDOW = 8


@pytest.fixture(scope="module")
def params() -> Parameters:
    """A random float64 model whose fast weights matter."""
    return with_step_size(tree_map(lambda p: p * 3 if p.ndim == 2 else p, initialize(CONFIG, seed=1, dtype="float64")), 0.05, 0.01)


def document(length: int = 29, seed: int = 0) -> Document:
    return Document(f"d{seed}", np.random.default_rng(seed).integers(97, 103, length).astype("uint8"))


@pytest.mark.parametrize("limit", [None, 13])
@pytest.mark.parametrize(("config", "carried"), [(PLAIN, False), (CONFIG, False), (CONFIG, True)])
def test_the_losses_are_those_of_the_ways_without_a_cache(params: Parameters, config: Config, carried: bool, limit: int | None) -> None:
    """To the bit: with a share of 0 nothing is changed; N: another state is another answer."""
    text = document()
    own = evaluate.fast_weights(params, config, text, WINDOW, limit, carried=carried)
    assert_bitwise(parts(params, config, text, WINDOW, limit, carried=carried).nll, own)
    assert_bitwise(cached(params, config, text, WINDOW, limit, theta=1.0, share=0.0, carried=carried), own)
    if config.fast and limit is None:
        assert relative_error(parts(params, config, text, WINDOW, carried=not carried).nll, own) > 1e-6


def test_it_is_the_cache_over_the_whole_document(params: Parameters) -> None:
    """Features of each window by itself, one cache for all; N: a cache that is emptied with the window is another answer."""
    text = document()
    tokens, labels = text.data[None, :-1].astype("int64"), text.data[1:].astype("int64")
    x = np.concatenate([features(params, tokens[:, i : i + WINDOW], PLAIN)[0][0] for i in range(0, 28, WINDOW)])
    nll = evaluate.static(params, PLAIN, text, WINDOW)
    found = cached(params, PLAIN, text, WINDOW, theta=0.3, share=0.25)
    assert_close(found, mix_cache(nll, cache_probability(x, labels, 0.3), 0.25), RTOL)
    emptied = np.concatenate([cache_probability(x[i : i + WINDOW], labels[i : i + WINDOW], 0.3) for i in range(0, 28, WINDOW)])
    assert relative_error(mix_cache(nll, emptied, 0.25), found) > 1e-3
    assert_close(np.asarray(squared_length([x[:5], x[5:]])), np.mean(np.sum(x**2, axis=1)), RTOL)


def test_the_pair_of_least_loss_is_chosen(params: Parameters) -> None:
    """All pairs are tried, in nats a byte over all bytes; theta in units of the features. N: without units another theta is best."""
    read = [parts(params, CONFIG, document(n, n), WINDOW, carried=True) for n in (29, 40)]
    thetas, shares = (0.5, 2.0, 8.0), (0.02, 0.1, 0.4)
    best, unit = tune_on(read, thetas, shares)
    assert_close(np.asarray(1 / unit), np.mean(np.concatenate([np.sum(p.x**2, axis=1) for p in read])), RTOL)
    literal = {}
    for theta in thetas:
        for share in shares:
            rows = [mix_cache(p.nll, cache_probability(p.x, p.labels, theta * unit), share) for p in read]
            literal[theta, share] = float(np.mean(np.concatenate(rows)))
    assert best.tried.keys() == literal.keys()
    assert_close(np.asarray([best.tried[k] for k in literal]), np.asarray(list(literal.values())), RTOL)
    assert (best.theta, best.share) == min(literal, key=literal.__getitem__)
    assert best.loss == min(best.tried.values())
    without = [cache_probability(p.x, p.labels, 2.0) for p in read]
    assert relative_error(np.asarray(best_share([p.nll for p in read], without, shares).loss), np.asarray(best.loss)) > 1e-4


def test_a_theta_at_the_edge_is_gone_beyond(params: Parameters) -> None:
    """Twice as large, as often as is said; N: not at all if nothing is said."""
    p = parts(params, PLAIN, document(), WINDOW)

    def hits(theta: float) -> list[np.ndarray]:
        return [np.full(28, 1 - 1 / theta)]

    shares = (0.1, 0.5)
    assert tune_cache([p.nll], hits, (2.0, 4.0), shares, 2).theta == 16
    assert tune_cache([p.nll], hits, (2.0, 4.0), shares).theta == 4


def test_losses_that_are_no_numbers_are_said() -> None:
    with pytest.raises(FloatingPointError, match="no value gives a finite loss"):
        tune_cache([np.full(3, math.nan)], lambda _: [np.zeros(3)], (1.0,), (0.1,))
