"""What weights, batches and symmetries do (theorems 13 to 15).

A docstring that opens with "N:" is a negative control.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwl_ref.fwl import FastSettings
from fwl_ref.slow_block import FastParameters
from fwl_ref.verify.cases import sequences, tokens, with_settings
from fwl_ref.verify.runs import run, sequential
from tests.strategies import block_cases, make_block_case, seeds
from tests.theorems.compare import CLEAR, EVERY_NORMALIZER
from tests.tolerances import assert_close, assert_trees_close, relative_error

FIXED = make_block_case(3, 7, 4, 6, 5, FastSettings(chunk=3), seed=8, mask="real")


def drawn_token(data, case):
    return data.draw(st.integers(0, case.x.shape[1] - 1), label="token")


def weighing(case, t, factor):
    """``case`` with the weight of token t times ``factor``."""
    weights = case.weights.copy()
    weights[:, t] *= factor
    return case._replace(weights=weights)


# Theorem 13: weights
# ---------------------------------------------------------------------------------------------------------


@given(case=block_cases(normalizers=EVERY_NORMALIZER, decays=(0.0,)), data=st.data())
def test_a_token_of_weight_0_is_read_but_not_written(case, data):
    """w_s = 0 (lambda = 0): all other tokens and the state are as if s had never been; token s
    itself still reads   (F.6)
    """
    s = drawn_token(data, case)
    length = case.x.shape[1]
    others = [t for t in range(length) if t != s]
    (logits, state), (without, without_state) = (run(weighing(case, s, 0.0)), run(tokens(case, others)))
    assert_close(logits[:, others], without)
    assert_trees_close(state, without_state, what="state", scale=1.0)
    up_to_s = weighing(tokens(case, slice(0, s + 1)), s, 0.0)
    if case.settings.normalizer == "constant":
        assert_close(logits[:, : s + 1], run(up_to_s).logits)


@given(case=block_cases(normalizers=EVERY_NORMALIZER, decays=(0.0,)), data=st.data())
def test_a_token_of_weight_2_is_written_twice(case, data):
    """2 w_s (lambda = 0) = the token twice with w_s each, for every later token, for the state, and
    for N   (F.6)
    """
    s = drawn_token(data, case)
    length = case.x.shape[1]
    heavy, heavy_state = run(weighing(case, s, 2.0))
    twice, twice_state = run(tokens(case, [*range(s + 1), *range(s, length)]))
    assert_close(np.delete(twice, s + 1, axis=1), heavy)
    assert_trees_close(twice_state, heavy_state, what="state", scale=1.0)


def test_with_decay_a_token_of_weight_0_still_lets_time_pass():
    """N: for lambda > 0 a token that is not written still fades what was: deleting it
    differs   (F.6)
    """
    case = weighing(FIXED._replace(decay=np.asarray(0.3)), 2, 0.0)
    others = [0, 1, 3, 4, 5, 6]
    assert relative_error(run(case).logits[:, others], run(tokens(case, others)).logits) > CLEAR


@given(case=block_cases(normalizers=EVERY_NORMALIZER), data=st.data())
def test_permuting_the_batch_permutes_the_result(case, data):
    """FWL(x[pi], y[pi], w[pi]) = FWL(x, y, w)[pi], logits and state, for every normalizer   (F.6)"""
    order = data.draw(st.permutations(range(case.x.shape[0])), label="order")
    (logits, state), (permuted, permuted_state) = run(case), run(sequences(case, order))
    assert_close(permuted, logits[order])
    assert_trees_close(permuted_state, FastParameters(*(g[order] for g in state)), what="state", scale=1.0)


@given(case=block_cases(normalizers=("constant", "sequence")))
def test_a_sequence_does_not_see_the_others_of_its_batch(case):
    """FWL(batch)[b] = FWL(sequence b alone) for the constant and the sequence normalizer   (F.3),
    (F.6)
    """
    logits, state = run(case)
    for b in range(case.x.shape[0]):
        alone, alone_state = run(sequences(case, [b]))
        assert_close(logits[[b]], alone)
        assert_trees_close(FastParameters(*(g[[b]] for g in state)), alone_state, what="state", scale=1.0)


def test_under_the_batch_normalizer_a_sequence_does_see_the_others():
    """N: N sums over the batch, so each sequence's steps depend on the others' weights   (F.3)"""
    case = with_settings(FIXED, normalizer="batch")
    assert relative_error(run(case).logits[[0]], run(sequences(case, [0])).logits) > CLEAR


# Theorem 14: order
# -----------------------------------------------------------------------------------------------------------


def shuffled(case, t, order):
    """``case`` with the tokens before t in another order."""
    return tokens(case, [*order, *range(t, case.x.shape[1])])


@given(case=block_cases(normalizers=EVERY_NORMALIZER, decays=(0.0,)), data=st.data())
def test_the_order_of_the_past_does_not_matter(case, data):
    """lambda = 0: permuting (x_s, y_s, w_s), s < t, changes neither logits'_t nor anything later: a
    sum has no order   (F.6)
    """
    t = drawn_token(data, case)
    order = data.draw(st.permutations(range(t)), label="order")
    (logits, state), (other, other_state) = run(case), run(shuffled(case, t, order))
    assert_close(other[:, t:], logits[:, t:])
    assert_trees_close(other_state, state, what="state", scale=1.0)


def test_with_decay_the_order_of_the_past_matters():
    """N: for lambda > 0 what came last weighs most, keep^{t-s-1}   (F.6)"""
    case = FIXED._replace(decay=np.asarray(0.3))
    assert relative_error(run(shuffled(case, 5, [4, 3, 2, 1, 0])).logits[:, 5:], run(case).logits[:, 5:]) > CLEAR


def test_for_true_sgd_the_order_of_the_past_matters():
    """N: each gradient of (Y.1) is taken where the earlier ones led; (F.6) takes all of them at one
    point
    """
    reverse = shuffled(FIXED, 5, [4, 3, 2, 1, 0])
    assert relative_error(sequential(reverse).logits[:, 5:], sequential(FIXED).logits[:, 5:]) > CLEAR


# Theorem 15: changes of coordinates
# ------------------------------------------------------------------------------------------


@given(case=block_cases(normalizers=EVERY_NORMALIZER, residuals=(False,)), seed=seeds)
def test_rotating_the_features_changes_nothing(case, seed):
    """x -> x R, W1 -> R^T W1, R orthogonal: the same logits, and state_W1 -> R^T state_W1: x_t .
    x_s is invariant   (F.6)
    """
    width = case.x.shape[-1]
    R = np.linalg.qr(np.random.default_rng(seed).standard_normal((width, width)))[0]
    (logits, state), (other, other_state) = (run(case), run(case._replace(x=case.x @ R, slow=case.slow._replace(W1=R.T @ case.slow.W1))))
    assert_close(other, logits)
    assert_trees_close(other_state, state._replace(W1=R.T @ state.W1), what="state", scale=1.0)


@given(case=block_cases(normalizers=EVERY_NORMALIZER, residuals=(False,)), factor=st.sampled_from([0.25, 0.7, 2.0, 3.3]))
def test_scaling_the_features_is_scaling_the_first_step_size_by_the_square(case, factor):
    """x -> c x, W1 -> W1 / c equals eta_W1 -> c^2 eta_W1: gradient descent depends on the
    coordinates   (F.6)
    """
    scaled = case._replace(x=factor * case.x, slow=case.slow._replace(W1=case.slow.W1 / factor))
    faster = case._replace(eta=case.eta._replace(W1=factor**2 * case.eta.W1))
    assert_close(run(scaled).logits, run(faster).logits)


def test_with_a_residual_the_coordinates_of_the_features_are_fixed():
    """N: x enters z as it is, so x -> x R, W1 -> R^T W1 is another block   (X.12)"""
    case, R = with_settings(FIXED, residual=True), np.linalg.qr(np.random.default_rng(1).standard_normal((4, 4)))[0]
    turned = case._replace(x=case.x @ R, slow=case.slow._replace(W1=R.T @ case.slow.W1))
    assert relative_error(run(turned).logits, run(case).logits) > CLEAR


def test_scaling_the_features_alone_is_not_a_symmetry():
    """N: x -> c x, W1 -> W1 / c leaves the slow pass alone but not the fast one   (F.6)"""
    scaled = FIXED._replace(x=2 * FIXED.x, slow=FIXED.slow._replace(W1=FIXED.slow.W1 / 2))
    assert relative_error(run(scaled).logits, run(FIXED).logits) > CLEAR


@given(case=block_cases(normalizers=EVERY_NORMALIZER), data=st.data())
def test_permuting_the_vocabulary_permutes_the_logits(case, data):
    """U[:, pi], c[pi], y -> pi^{-1}(y): logits'[..., pi], and the same state: no token is
    special   (F.6)
    """
    order = np.asarray(data.draw(st.permutations(range(case.slow.U.shape[1])), label="order"))
    slow = case.slow._replace(U=case.slow.U[:, order], c=case.slow.c[order])
    (logits, state), (other, other_state) = (run(case), run(case._replace(slow=slow, labels=np.argsort(order)[case.labels])))
    assert_close(other, logits[..., order])
    assert_trees_close(other_state, state, what="state", scale=1.0)


@given(case=block_cases(normalizers=EVERY_NORMALIZER), data=st.data())
def test_permuting_the_hidden_units_changes_nothing(case, data):
    """W1[:, pi], b1[pi], W2[pi]: the same logits, the state permuted alike   (F.6)"""
    order = data.draw(st.permutations(range(case.slow.W1.shape[1])), label="order")

    def move(p):
        return p._replace(W1=p.W1[..., order], b1=p.b1[..., order], W2=p.W2[..., order, :])

    (logits, state), (other, other_state) = run(case), run(case._replace(slow=move(case.slow)))
    assert_close(other, logits)
    assert_trees_close(other_state, move(state), what="state", scale=1.0)


@given(case=block_cases(normalizers=EVERY_NORMALIZER), data=st.data())
def test_permuting_the_channels_after_the_second_layer_changes_nothing(case, data):
    """W2[:, pi], b2[pi], gain[pi], bias[pi], U[pi]: a norm treats its channels alike, so the logits are
    the same; with a residual those of x and the rows of W1 move along   (F.6), (X.12)
    """
    order = data.draw(st.permutations(range(case.slow.gain.shape[0])), label="order")

    def move(p):
        p = p._replace(W1=p.W1[..., order, :]) if case.settings.residual else p
        return p._replace(W2=p.W2[..., order], b2=p.b2[..., order], gain=p.gain[..., order], bias=p.bias[..., order])

    x = case.x[..., order] if case.settings.residual else case.x
    (logits, state), (other, other_state) = (run(case), run(case._replace(x=x, slow=move(case.slow)._replace(U=case.slow.U[order]))))
    assert_close(other, logits)
    assert_trees_close(other_state, move(state), what="state", scale=1.0)


@pytest.mark.parametrize("normalizer", EVERY_NORMALIZER)
def test_doubling_all_weights_cancels_where_the_normalizer_counts_them(normalizer):
    """w -> 2 w: nothing under sequence and batch, N doubles too; eta -> 2 eta under the constant
    normalizer   (F.3)
    """
    case = with_settings(FIXED, normalizer=normalizer)
    faster = case._replace(eta=FastParameters(*(2 * e for e in case.eta)))
    doubled, _ = run(case._replace(weights=2 * case.weights))
    assert_close(doubled, run(faster if normalizer == "constant" else case).logits)
