"""The update rules of dynamic evaluation, against their formulas written out entry by entry, and
the loop around them.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwl_ref.dynamic_evaluation import Descent, RmsScale, dynamic_evaluation, evaluate_block, mean_square, rms_scale, update
from fwl_ref.fwl import FastSettings
from fwl_ref.lm.model import Config, initialize, loss_and_gradient
from fwl_ref.slow_block import FastParameters
from fwl_ref.tree import leaves, tree_map
from tests.strategies import generator, make_block_case, seeds
from tests.tolerances import assert_bitwise, assert_close

SHAPES = ((3, 2), (2,), (2, 3), (3,), (3,), (3,))


def tree(seed: int, scale: float = 1.0) -> FastParameters:
    """Any tree will do for a rule."""
    normal = generator(seed)
    return FastParameters(*(normal(*shape, scale=scale) for shape in SHAPES))


@given(seed=seeds, rate=st.sampled_from([0.0, 0.1, 2.0]), decay=st.sampled_from([0.0, 0.3, 1.0]))
def test_the_sgd_rule_is_a_gradient_step_and_a_pull_towards_the_start(seed, rate, decay):
    """theta - eta g + lambda (theta_0 - theta); one step size, or one for each parameter   (Y.1)"""
    theta, gradient, start = tree(seed), tree(seed + 1), tree(seed + 2)
    rates = FastParameters(*(rate * (i + 1) for i in range(6)))
    for given_rate, each in ((rate, (rate,) * 6), (rates, rates)):
        moved = update(theta, gradient, start, Descent(given_rate, decay))
        for p, g, p0, eta, found in zip(theta, gradient, start, each, moved, strict=True):
            assert_close(found, p - eta * g + decay * (p0 - p))


@given(seed=seeds, decay=st.sampled_from([0.0, 0.05, 0.9]))
def test_the_rms_rule_divides_by_the_frozen_scale_and_pulls_at_most_all_the_way(seed, decay):
    """theta - eta g / divisor + min(1, lambda RMSnorm) (theta_0 - theta), entry by entry   (Y.2)"""
    theta, gradient, start = tree(seed), tree(seed + 1), tree(seed + 2)
    scale = rms_scale(mean_square([tree(seed + 3), tree(seed + 4)]), eps=0.2)
    moved = update(theta, gradient, start, Descent(0.1, decay, scale))
    for i, found in enumerate(moved):
        for entry in np.ndindex(found.shape):
            p, g, p0 = (float(t[i][entry]) for t in (theta, gradient, start))
            pull = min(1.0, decay * float(scale.norm[i][entry]))
            assert found[entry] == pytest.approx(p - 0.1 * g / float(scale.divisor[i][entry]) + pull * (p0 - p), rel=1e-12, abs=1e-12)


def test_the_pull_of_the_rms_rule_is_clipped():
    """An entry whose RMSnorm is above 1 / lambda goes back to theta_0, not beyond it; below, it
    goes part of the way   (Y.2)
    """
    one, start = (np.array([1.0, 1.0]),), (np.array([0.0, 0.0]),)
    scale = RmsScale((np.ones(2),), (np.array([0.5, 4.0]),))
    (moved,) = update(one, (np.zeros(2),), start, Descent(0.1, 0.5, scale))
    assert moved.tolist() == [0.75, 0.0]


@given(seed=seeds, count=st.integers(1, 4), eps=st.sampled_from([0.0, 0.1]))
def test_the_statistics_are_the_root_mean_square_over_batches(seed, count, eps):
    """MS is a mean over batches; its root is measured against the mean over all scalars of all
    parameters   (Y.3)
    """
    gradients = [tree(seed + i) for i in range(count)]
    scale = rms_scale(mean_square(iter(gradients)), eps)
    flat = np.sqrt(np.mean([np.concatenate([g.ravel() for g in t]) ** 2 for t in gradients], axis=0))
    assert_close(np.concatenate([d.ravel() for d in scale.divisor]), flat + eps * flat.mean())
    assert_close(np.concatenate([n.ravel() for n in scale.norm]), flat / flat.mean())


def test_lambda_and_epsilon_of_the_published_program_are_converted():
    """A small transformer: his divisor and his clipped pull written out, and ours with epsilon / m and lambda m / m_K, entry by
    entry. m_K / m is 7.4: left as it is, lambda pulls that much harder where nothing is clipped   (Y.5)
    """
    config = Config(width=16, layers=1, heads=2, vocabulary=16, fast=False)
    plain, rng = initialize(config, dtype="float64"), np.random.default_rng(0)

    def gradient() -> tuple:
        text = rng.integers(0, 16, (2, 17))
        return loss_and_gradient(plain, text[:, :-1], text[:, 1:], None, config)[1][:-2]  # a plain model has no step sizes, no decay

    square = mean_square(gradient() for _ in range(4))
    roots = [np.sqrt(ms) for ms in leaves(square)]
    m, m_K = np.mean(np.concatenate([r.ravel() for r in roots])), np.mean([r.mean() for r in roots])
    assert round(m_K / m, 1) == 7.4
    his_eps, his_decay, theta0 = 0.002, 0.3, plain[:-2]
    g, theta = gradient(), tree_map(lambda p: p + 0.1 * rng.standard_normal(p.shape), theta0)
    scale = rms_scale(square, his_eps / m)
    ours = update(theta, g, theta0, Descent(0.01, his_decay * m / m_K, scale))
    parts = zip(leaves(theta), leaves(g), leaves(theta0), roots, leaves(ours), strict=True)
    clipped = 0
    for p, slope, start, root, found in parts:
        pull = np.minimum(1.0, his_decay * root / m_K)
        clipped += int(np.sum(pull == 1))
        assert_close(found, p - 0.01 * slope / (root + his_eps) + pull * (start - p))
    assert 0 < clipped < sum(r.size for r in roots)
    still = tree_map(np.zeros_like, g)
    soft = [update(theta, still, theta0, Descent(0.0, 1e-3 * factor, scale)) for factor in (1.0, m / m_K)]
    moved = [np.concatenate([(a - b).ravel() for a, b in zip(leaves(s), leaves(theta), strict=True)]) for s in soft]
    assert_close(moved[0], moved[1] * m_K / m)


def test_a_subset_moves_and_the_rest_is_the_same_arrays():
    """Parameters outside the subset are not even copied   (Y.1)"""
    theta, gradient, start = tree(1), tree(2), tree(3)
    subset = FastParameters(True, False, False, True, False, True)
    moved = update(theta, gradient, start, Descent(0.5, 0.1, subset=subset))
    everything = update(theta, gradient, start, Descent(0.5, 0.1))
    for p, one, all_, free in zip(theta, moved, everything, subset, strict=True):
        assert one is p if not free else np.array_equal(one, all_)


def test_a_segment_is_scored_before_it_is_learned_from():
    """score sees theta_{i-1} and the yielded parameters are theta_i; the loop starts at theta_0
    unless told otherwise   (Y.1)
    """
    start, seen = (np.array([1.0]),), []

    def score(theta, segment):
        seen.append(float(theta[0][0]))
        return segment, (np.array([float(segment)]),)

    steps = list(dynamic_evaluation(start, [1, 2, 3], score, Descent(0.1)))
    assert seen == pytest.approx([1.0, 0.9, 0.7])
    assert [result for result, _ in steps] == [1, 2, 3]
    assert [float(theta[0][0]) for _, theta in steps] == pytest.approx([0.9, 0.7, 0.4])
    seen.clear()
    list(dynamic_evaluation(start, [1], score, Descent(0.1), theta=(np.array([5.0]),)))
    assert seen == [5.0] and start[0][0] == 1.0


def test_a_rate_and_a_decay_of_zero_are_static_evaluation():
    """theta_i = theta_0, bit by bit   (Y.1), (Y.2)"""
    start, gradient = tree(5), tree(6)
    for scale in (None, rms_scale(tree_map(np.abs, tree(7)))):
        for a, b in zip(leaves(update(start, gradient, start, Descent(0.0, 0.0, scale))), leaves(start), strict=True):
            assert_bitwise(a, b)


def test_epsilon_is_a_tenth_of_the_mean_root_unless_told_otherwise():
    """divisor = sqrt(MS) + 0.1 mean sqrt(MS)   (Y.3)"""
    scale = rms_scale((np.array([1.0, 9.0]),))
    assert_close(scale.divisor[0], np.array([1.2, 3.2]))


def test_the_block_is_not_pulled_back_and_has_the_epsilon_of_the_fast_block_unless_told_otherwise():
    """lambda = 0 and eps = 1e-6 by default: the same bits with them, others with others   (Y.4)"""
    case = make_block_case(2, 5, 4, 6, 5, FastSettings(), seed=3)
    by_default, told, pulled, smooth = (
        evaluate_block(*case[:5], segment=2, **rule)[0] for rule in ({}, {"decay": 0.0, "eps": 1e-6}, {"decay": 0.01}, {"eps": 1e-2})
    )
    assert_bitwise(by_default, told)
    assert np.max(np.abs(pulled - told)) > 1e-6 and np.max(np.abs(smooth - told)) > 1e-6


def test_the_losses_of_a_segment_are_summed_unless_told_otherwise():
    """N = 1 by default: the same bits as with n = 1.0, and others with n = 2.0   (Y.4)"""
    case = make_block_case(2, 5, 4, 6, 5, FastSettings(), seed=3)
    by_default, one, two = (evaluate_block(*case[:5], segment=2, **n)[0] for n in ({}, {"n": 1.0}, {"n": 2.0}))
    assert_bitwise(by_default, one)
    assert np.max(np.abs(one - two)) > 1e-3


@pytest.mark.parametrize("stale", [False, True])
@pytest.mark.parametrize(("batch", "length"), [(0, 5), (2, 0), (0, 0)])
def test_no_sequences_and_no_tokens_are_scored_by_nobody(batch, length, stale):
    """No logits; the parameters of each sequence, if there is one, stay where they started   (Y.4)"""
    case = make_block_case(2, 5, 4, 6, 5, FastSettings(), seed=3)
    x, labels, weights = (a[:batch, :length].astype(d) for a, d in zip(case[:3], ("float32", "int64", "float32"), strict=True))
    slow, eta = (tree_map(lambda a: a.astype("float32"), t) for t in (case.slow, case.eta))
    n = np.ones(batch, dtype="float32")
    logits, final = evaluate_block(x, labels, weights, slow, eta, segment=2, n=n, stale=stale)
    assert logits.shape == (batch, length, 5) and logits.dtype == np.float32
    for found, p in zip(final, slow[:6], strict=True):
        assert found.dtype == np.float32
        assert_bitwise(found, np.broadcast_to(p, (batch, *p.shape)))


@pytest.mark.parametrize("name", ["decay", "n"])
def test_a_decay_or_normalizer_that_is_no_number_is_refused_in_words(name):
    """They may be plain numbers, but None is none."""
    case = make_block_case(1, 3, 2, 4, 5, FastSettings(), 0)
    with pytest.raises(TypeError, match=r"(decay|normalizer n) must be an array, got None"):
        evaluate_block(*case[:5], segment=1, **{name: None})
