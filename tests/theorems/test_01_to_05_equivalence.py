"""What a fast weight layer computes: dynamic evaluation with every gradient taken at the slow
weights (theorems 1 to 5).

A docstring that opens with "N:" is a negative control.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwl_ref.dynamic_evaluation import Descent, dynamic_evaluation
from fwl_ref.fwl import FastSettings, fast_block_bwd, fast_block_fwd
from fwl_ref.gradcheck import directional_difference
from fwl_ref.lm.model import DIALECTS, effective_step_sizes
from fwl_ref.norm import norm_fwd
from fwl_ref.ops.cross_entropy import cross_entropy_bwd, cross_entropy_fwd
from fwl_ref.ops.dense import dense_bwd, dense_fwd
from fwl_ref.ops.linear_attention import linear_attention_fwd
from fwl_ref.slow_block import FastParameters, slow_block_fwd
from fwl_ref.tree import leaves, tree_map
from fwl_ref.verify.cases import tokens, with_settings, with_steps
from fwl_ref.verify.runs import plain, run, sequential, stale
from tests.strategies import AttentionCase, at_most, attention_cases, block_cases, make_block_case, smooth_block_cases, unsaturated
from tests.theorems.compare import CLEAR, EVERY_NORMALIZER, assert_equivalent, literal, only, segment_masked, shares, token_gradient
from tests.tolerances import assert_bitwise, assert_close, assert_trees_close, relative_error

FIXED = make_block_case(2, 7, 4, 6, 5, FastSettings(eps=0.0, chunk=3), seed=5, mask="real")
rates = st.sampled_from([0.01, 1.0, 100.0])


# Theorem 1: stale gradients, every step size
# ---------------------------------------------------------------------------------


@given(block_cases(normalizers=EVERY_NORMALIZER))
def test_fwl_is_dynamic_evaluation_at_the_slow_weights(case):
    """logits'_t = slow block with p - eta_p sum_{s<t} keep^{t-s-1} grad_p l_s / N, for every t:
    (F.6) is (Y.4), stale   (Q.1)
    """
    assert_equivalent(case)


@pytest.mark.parametrize("name", FastParameters._fields)
@given(case=block_cases(normalizers=EVERY_NORMALIZER, masks=("ones", "real"), min_length=2, zero_steps=False))
def test_each_fast_parameter_alone_is_dynamic_evaluation_of_that_parameter(name, case):
    """eta_q = 0 for q other than p: only p moves, p_t = p - eta_p sum_{s<t} grad_p l_s / N   (F.6)"""
    assert_equivalent(only(case, name))


@pytest.mark.parametrize("name", FastParameters._fields)
def test_each_step_size_moves_the_logits(name):
    """N: d logits' / d eta_p is not 0, so the theorem about each parameter alone is not
    empty   (F.6)
    """
    assert relative_error(run(only(FIXED, name)).logits, plain(FIXED)) > CLEAR


@pytest.mark.parametrize("dialect", DIALECTS)
@given(case=block_cases(normalizers=EVERY_NORMALIZER, zero_steps=False))
def test_both_dialects_are_dynamic_evaluation_with_their_own_step_sizes(dialect, case):
    """tf: six step sizes, eps 0; jax: eta_b1 = eta_b2 = 0, eta_bias = eta_gain, eps 1e-6   (F.6)"""
    case = with_settings(case._replace(eta=effective_step_sizes(case.eta, dialect)), eps=DIALECTS[dialect])
    assert_equivalent(case)


@given(block_cases(normalizers=EVERY_NORMALIZER, masks=("ones", "real"), min_length=0))
def test_the_state_is_the_decayed_sum_of_past_gradients(case):
    """state_T = sum_{s<T} (1 - lambda)^{T-1-s} grad l_s / N, one entry per fast parameter and
    sequence   (F.2), (Q.2)
    """
    _, state = run(case)
    batch, length = case.labels.shape
    keep, scale = 1 - case.decay, float(np.max(np.sum(shares(case), axis=1)))
    for b in range(batch):
        total = FastParameters(*(np.zeros_like(p) for p in case.slow[:6]))
        for s in range(length):
            gradient = token_gradient(case, b, slice(s, s + 1))
            total = tree_map(lambda old, g, s=s: old + keep ** (length - 1 - s) * g, total, gradient)
        assert_trees_close(FastParameters(*(g[b] for g in state)), total, what=f"state of sequence {b}", scale=scale)


# On top of a model
# ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["layer", "rms"])
@given(case=block_cases(normalizers=EVERY_NORMALIZER, residuals=(True,)))
def test_a_block_with_a_second_layer_of_0_is_the_model_below_it_to_the_bit(norm, case):
    """W2 = 0, b2 = 0: z = x, so the plain pass is norm and unembedding; and the first token's fast pass
    is that too   (X.12), (X.13)
    """
    case = with_settings(case._replace(slow=case.slow._replace(W2=0 * case.slow.W2, b2=0 * case.slow.b2)), norm=norm)
    n, _ = norm_fwd(case.x, np.broadcast_to(case.slow.gain, case.x.shape), case.slow.bias, case.settings.eps, norm)
    logits, _ = dense_fwd(n, case.slow.U, case.slow.c)
    (fast, slow, _), _ = fast_block_fwd(*case)
    assert_bitwise(slow, logits)
    assert_bitwise(fast[:, 0], logits[:, 0])


@pytest.mark.parametrize("change", [{"norm": "rms"}, {"residual": True}, {"norm": "rms", "residual": True}])
def test_norm_and_residual_are_other_blocks(change):
    """N: none of the two settings is without effect, in the plain or in the fast pass   (X.12)"""
    case = with_settings(FIXED, **change)
    assert relative_error(plain(case), plain(FIXED)) > CLEAR
    moved, before = (run(c).logits - plain(c) for c in (case, FIXED))
    assert relative_error(moved, before) > CLEAR
    assert_equivalent(case)


# Theorem 2: where true SGD agrees exactly
# ------------------------------------------------------------------------------------


@given(block_cases(normalizers=EVERY_NORMALIZER))
def test_tokens_0_and_1_are_exact_for_true_sgd(case):
    """p_0 = p and p_1 = p - eta_p grad l_0(p) / N hold for stale and for current gradients alike:
    (F.6) = (Y.4) for t <= 1
    """
    assert_close(run(case).logits[:, :2], sequential(case).logits[:, :2])


def test_token_2_is_not_exact_for_true_sgd():
    """N: p_2 of true SGD holds grad l_1(p_1), that of (F.6) holds grad l_1(p)."""
    assert relative_error(run(FIXED).logits[:, 2], sequential(FIXED).logits[:, 2]) > CLEAR


@given(case=block_cases(), length=st.integers(1, 4))
def test_a_segment_mask_makes_fwl_stale_dynamic_evaluation_per_segment(case, length):
    """M_ts = keep^{gap} 1[floor(s/L) < floor(t/L)]: the block read before it is written, segment by
    segment, is stale (Y.4)
    """
    assert_close(segment_masked(case, length), stale(case, length).logits)


@given(case=block_cases(min_length=2), length=st.integers(1, 4))
def test_two_segments_with_a_segment_mask_are_exact_for_true_sgd(case, length):
    """theta_1 = theta_0 - eta grad L(segment_0; theta_0): the first gradient is taken at the slow
    weights, so (F.6) = (Y.4) for t < 2L
    """
    logits, _ = sequential(case, length)
    assert_close(segment_masked(case, length)[:, : 2 * length], logits[:, : 2 * length])


@pytest.mark.parametrize("length", [1, 2])
def test_the_third_segment_is_not_exact_for_true_sgd(length):
    """N: theta_2 of true SGD holds a gradient taken at theta_1   (Y.4)"""
    third = slice(2 * length, 3 * length)
    assert relative_error(segment_masked(FIXED, length)[:, third], sequential(FIXED, length).logits[:, third]) > CLEAR


@given(block_cases())
def test_a_segment_of_one_token_is_the_block_itself(case):
    """L = 1: 1[floor(s/L) < floor(t/L)] = 1[s < t]   (F.6)"""
    assert_close(segment_masked(case, 1), run(case).logits)


# Theorem 3: the error against true SGD
# ---------------------------------------------------------------------------------------


def gap(case, length, h):
    """(B,T,V)   (true SGD - stale) logits for the step sizes h eta: against the block itself for
    one token per segment.
    """
    case = with_steps(case, h)
    return sequential(case, length).logits - (run(case).logits if length == 1 else segment_masked(case, length))


def ladder(case, length, start_gap=1e-6, rungs=4):
    """h, h/2, h/4, ... for the step sizes h eta. It starts where the gap is about ``start_gap``:
    small beside 1, large beside rounding.
    """
    small = 2.0**-20
    speed = np.max(np.abs(run(with_steps(case, small)).logits - plain(case))) / small
    rough = min(1.0, 4e-3 / speed)  # moves the logits by at most 0.004
    start = min(1.0, rough * (start_gap / np.max(np.abs(gap(case, length, rough)))) ** 0.5)
    return [start / 2**k for k in range(rungs)]


def slopes(sizes):
    """log2 of the ratio of neighbours on a halving ladder."""
    return np.log2(np.asarray(sizes[:-1]) / np.asarray(sizes[1:]))


def along(f, fast, direction):
    """J_f(fast) direction, by central differences with a step that does not depend on the length of
    ``direction``.
    """
    norm = float(np.sqrt(sum(np.sum(v * v) for v in direction)))
    if norm == 0:
        return tree_map(lambda y: 0 * y, f(fast))
    return tree_map(lambda y: norm * y, directional_difference(f, (fast,), ([v / norm for v in direction],), 1e-3))


def predicted_gap(case, length):
    """(B,T,V)   J_t E sum_{s<r<t} keep^{...} H_r E g_s, over segments r, s; E holds the step sizes,
    H_r g are differences of gradients.
    """
    slow, keep = FastParameters(*case.slow[:6]), 1 - case.decay
    out = np.zeros((*case.labels.shape, case.slow.U.shape[1]))
    for b in range(case.labels.shape[0]):
        past = curved = FastParameters(*(np.zeros_like(p) for p in slow))  # sum_s g_s,  sum_{s<r} H_r E g_s
        for start in range(0, case.labels.shape[1], length):
            part = slice(start, start + length)

            def logits(fast, b=b, part=part):
                p = case.slow._replace(**fast._asdict())
                return slow_block_fwd(case.x[b, part], case.labels[b, part], p, *case.settings.plain)[0][1]

            out[b, part] = along(logits, slow, tree_map(lambda e, q: e * q, case.eta, curved))
            step = tree_map(lambda e, g: e * g, case.eta, past)
            hessian = along(lambda fast, b=b, part=part: token_gradient(case, b, part, fast), slow, step)
            curved = tree_map(lambda q, h: keep * q + h, curved, hessian)
            past = tree_map(lambda old, g: keep * old + g, past, token_gradient(case, b, part))
    return out


smooth = smooth_block_cases(min_length=3, max_length=6, max_batch=2, masks=("ones", "real"), zero_steps=False).map(unsaturated)


@pytest.mark.parametrize("length", [1, 2])
@at_most(25)
@given(case=smooth)
def test_the_difference_to_true_sgd_is_of_second_order_in_the_step_size(length, case):
    """|logits(true SGD) - logits'| = O(eta^2): slope 2 on a halving ladder, per token (F.6) and per
    segment (Y.4)
    """
    if case.labels.shape[1] <= 2 * length:  # two segments are exact
        case = tokens(case, [0, 1, 2, 0, 1, 2])
    slope = slopes([np.max(np.abs(gap(case, length, h))) for h in ladder(case, length, 1e-8)])
    assert np.all((slope > 1.9) & (slope < 2.1)), f"slopes {slope}, expected 2"


@pytest.mark.parametrize("length", [1, 2])
@at_most(25)
@given(case=smooth)
def test_the_coefficient_of_the_difference_is_the_sum_of_hessian_gradient_products(length, case):
    """(logits(true SGD) - logits') / eta^2 -> J_t sum_{s<r<t} H_r g_s, with an error that shrinks
    like eta   (Q.3)
    """
    if case.labels.shape[1] <= 2 * length:
        case = tokens(case, [0, 1, 2, 0, 1, 2])
    coefficient = predicted_gap(case, length)
    errors = [relative_error(gap(case, length, h) / h**2, coefficient) for h in ladder(case, length)]
    slope = slopes(errors)
    assert np.all((slope > 0.9) & (slope < 1.1)), f"relative errors {errors} shrink with slopes {slope}, expected 1"


# Theorem 4: losses linear in the parameters
# ----------------------------------------------------------------------------------


def online_layer(case: AttentionCase, rate: float, decay: float, output_gradient):
    """Sequential dynamic evaluation of one layer y_t = x_t W, token by token; ``output_gradient(y,
    v)`` defines the loss.
    """

    def score(theta, t):
        y, res = dense_fwd(case.q[0, t : t + 1], theta[0], np.zeros(case.v.shape[-1]))
        _, res_key = dense_fwd(case.k[0, t : t + 1], theta[0], np.zeros(case.v.shape[-1]))
        return y, (dense_bwd(output_gradient(case.k[0, t : t + 1] @ theta[0], case.v[0, t : t + 1]), res_key)[1],)

    W = np.asarray(case.state[0])
    rows = [y for y, _ in dynamic_evaluation((W,), range(case.q.shape[1]), score, Descent(rate, decay))]
    return np.concatenate([np.zeros((0, case.v.shape[-1])), *rows])


linear_layers = attention_cases(carried=True).filter(lambda case: case.q.shape[0] > 0)


@given(case=linear_layers, rate=rates, decay=st.sampled_from([0.0, 0.3]))
def test_for_a_loss_linear_in_the_parameters_stale_is_sequential_for_every_step_size(case, rate, decay):
    """l_s(W) = <v_s, k_s W>: theta_t = W - eta sum_{s<t} keep^{t-s-1} k_s v_s^T by (Y.1) at the
    current weights, which is (L.1)   (Q.4)
    """
    keep = np.asarray(1.0 - decay)
    (read, _), _ = linear_attention_fwd(case.q, case.k, case.v, keep)
    size = float(np.max(np.abs(case.q[0] @ case.state[0]), initial=0.0))
    expected = case.q[0] @ case.state[0] - rate * read[0]
    assert_close(online_layer(case, rate, decay, lambda y, v: v), expected, scale=size)


def test_for_a_quadratic_loss_stale_is_not_sequential():
    """N: l_s(W) = |k_s W - v_s|^2 / 2 has a gradient that depends on W, so the stale sum differs
    from (Y.1)
    """
    rng = np.random.default_rng(0)
    case = AttentionCase(*(rng.standard_normal((1, 5, 3)) for _ in range(3)), np.asarray(1.0), rng.standard_normal((1, 3, 3)))
    stale_gradients = case._replace(v=case.k @ case.state - case.v)
    (read, _), _ = linear_attention_fwd(*stale_gradients[:4])
    difference = online_layer(case, 0.1, 0.0, lambda y, v: y - v) - (case.q @ case.state - 0.1 * read)[0]
    assert np.max(np.abs(difference[:2])) < CLEAR < np.max(np.abs(difference[2:]))


def test_the_loss_of_a_fast_weight_block_is_not_linear_so_stale_differs_from_sequential():
    """N: at a finite step size (F.6) is not true SGD, and the larger the step the larger the
    difference   (Y.4)
    """
    differences = [relative_error(run(with_steps(FIXED, f)).logits, sequential(with_steps(FIXED, f)).logits) for f in (0.25, 0.5, 1.0)]
    assert CLEAR < differences[0] < differences[1] < differences[2]


# Theorem 5: the empirical neural tangent kernel
# ------------------------------------------------------------------------------


@given(block_cases(max_batch=2, max_length=6, masks=("ones", "real", "zero_one")))
def test_the_slope_of_the_loss_in_the_step_size_is_minus_a_causal_row_sum_of_the_tangent_kernel(case):
    """d l_t / d eta_p at 0 = - sum_{s<t} keep^{t-s-1} <g_t, g_s>_p: (F.7) against gradients of the
    slow block (B.2)   (Q.7)
    """
    still = with_steps(case, 0.0)
    (logits, _, _), res = fast_block_fwd(*still)
    _, loss = cross_entropy_fwd(logits, case.labels)
    unit = with_settings(still, normalizer="constant", constant=1.0)._replace(weights=np.ones_like(case.weights))
    for b, t in np.ndindex(*case.labels.shape):
        hot = np.zeros_like(case.weights)
        hot[b, t] = 1.0
        _, _, g_eta, _, _ = fast_block_bwd(cross_entropy_bwd(hot, loss), None, res)
        g_t = token_gradient(unit, b, slice(t, t + 1))
        expected, size = [0.0] * 6, [0.0] * 6
        for s in range(t):
            g_s = token_gradient(still, b, slice(s, s + 1))
            for i in range(6):
                kernel = (1 - case.decay) ** (t - s - 1) * g_t[i] * g_s[i]
                expected[i] -= float(np.sum(kernel))
                size[i] += float(np.sum(np.abs(kernel)))
        for name, slope, value, scale in zip(FastParameters._fields, g_eta, expected, size, strict=True):
            assert_close(slope, np.asarray(value), what=f"d l[{b},{t}] / d eta_{name}", scale=max(scale, 1e-3))


@given(smooth)
def test_the_slope_of_the_loss_in_the_step_size_agrees_with_differences_of_the_forward_pass(case):
    """d l_t / d eta at 0 by central differences of (F.6), as a second witness: no backward pass of
    the block takes part.
    """
    step = ladder(case, 1)[-1]  # the difference's own error falls with h^6; rounding is far below 1e-8 on every rung

    def losses(h):
        nll, _ = cross_entropy_fwd(run(with_steps(case, float(h))).logits, case.labels)
        return nll

    found = directional_difference(losses, (np.asarray(0.0),), ([np.asarray(1.0)],), step)
    unit = with_settings(case, normalizer="constant", constant=1.0)._replace(weights=np.ones_like(case.weights))
    expected = np.zeros_like(found)
    for b, t in np.ndindex(*case.labels.shape):
        g_t = token_gradient(unit, b, slice(t, t + 1))
        for s in range(t):
            g_s = token_gradient(case, b, slice(s, s + 1))
            products = tree_map(lambda e, x, y: e * np.sum(x * y), case.eta, g_t, g_s)
            expected[b, t] -= (1 - case.decay) ** (t - s - 1) * sum(leaves(products))
    assert_close(found, expected, rtol=1e-8)


def test_the_literal_loop_and_dynamic_evaluation_agree_with_each_other():
    """The two oracles share the slow block but not the update: p - eta G against (Y.1) applied
    token by token.
    """
    assert_close(literal(FIXED).logits, stale(FIXED).logits)
