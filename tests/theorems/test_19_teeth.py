"""The comparisons of this folder reject wrong programs (theorem 19).

Each mutant is the library with one name inside ``fwl_ref.fwl`` or ``fwl_ref.fast_layer`` replaced. Every test first shows
that the unmutated program passes. The replacements do not reach the other side of a comparison:
dynamic evaluation and the slow block import their own operations.

A docstring that opens with "N:" is a negative control, one with "E:" its counterpart: something that
the comparison must accept.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import fwl_ref.fast_layer
import fwl_ref.fwl
from fwl_ref.backend import namespace
from fwl_ref.fwl import FastSettings, fast_block_bwd, fast_block_fwd, normalizer, read_fwd
from fwl_ref.gradcheck import AdjointError, check_adjoint
from fwl_ref.ops.cross_entropy import cross_entropy_bwd_bwd
from fwl_ref.ops.dense import dense_bwd, dense_bwd_bwd, dense_dx
from fwl_ref.ops.layernorm import layernorm_bwd, layernorm_bwd_bwd
from fwl_ref.ops.linear_attention import linear_attention_chunked_bwd, linear_attention_chunked_fwd, past_sum_fwd
from fwl_ref.ops.squared_relu import squared_relu_bwd_bwd
from fwl_ref.slow_block import FastParameters
from fwl_ref.verify.cases import with_settings
from fwl_ref.verify.runs import run, sequential, stale
from tests.strategies import fast_state, make_block_case, off_the_kink
from tests.theorems.compare import CLEAR, EVERY_NORMALIZER, assert_equivalent, equivalence_error
from tests.tolerances import RTOL, assert_bitwise, assert_close, relative_error

COMPARISONS = pytest.mark.host("about the comparisons, not about arrays")
SQUARE = 4  # D = F, so that a transposed weight still has the right shape
CASES = {n: make_block_case(2, 7, SQUARE, SQUARE, 5, FastSettings(n, 2.0, 0.0, 3), 16, "real", 0.1) for n in EVERY_NORMALIZER}
CASE = CASES["constant"]


# Mutants of the forward pass
# -------------------------------------------------------------------------------------------------


def attention(change: Callable, *layers: int) -> dict[str, Callable]:
    """Linear attention changed in the given calls of a read: 0 and 1 are the dense layers, 2 the
    LayerNorm's cumulative sums.
    """
    calls = []

    def mutant(*args):
        calls.append(None)
        if (len(calls) - 1) % 2 in layers:
            return change(*args)
        return linear_attention_chunked_fwd(*args)

    def sums(v, keep, state):
        (out, left), res = past_sum_fwd(v, keep, state)
        if 2 in layers:
            one = np.ones_like(v[..., :1])
            (out, left), _ = change(one, one, v, keep, None if state is None else state[:, None, :])
            left = left[:, 0, :]
        return (out, left), res

    return {"linear_attention_chunked_fwd": mutant, "past_sum_fwd": sums}


def inclusive_mask(q, k, v, *rest):
    (out, state), res = linear_attention_chunked_fwd(q, k, v, *rest)
    return (out + np.sum(q * k, axis=-1, keepdims=True) * v, state), res


def one_token_late(q, k, v, *rest):
    (out, state), res = linear_attention_chunked_fwd(q, k, v, *rest)
    return (np.concatenate([0 * out[:, :1], out[:, :-1]], axis=1), state), res


def decayed_once_more(q, k, v, keep, *rest):
    (out, state), res = linear_attention_chunked_fwd(q, k, v, keep, *rest)
    return (keep * out, state), res


def query_and_key_swapped(q, k, v, *rest):
    return linear_attention_chunked_fwd(k, q, v, *rest)


def fast_key(q, k, v, *rest):
    """The fast activation a' as the key, in place of the slow one."""
    return linear_attention_chunked_fwd(q, np.concatenate([q[..., :-1] / CASE.eta.W2, k[..., -1:]], axis=-1), v, *rest)


def slow_query(q, k, v, *rest):
    """The slow activation a as the query, in place of the fast one."""
    return linear_attention_chunked_fwd(np.concatenate([CASE.eta.W2 * k[..., :-1], q[..., -1:]], axis=-1), k, v, *rest)


def transposed_weight_gradient(q, k, v, *rest):
    """The outer product dh x^T in place of x dh^T; needs D = F."""
    return linear_attention_chunked_fwd(q, np.concatenate([v, k[..., -1:]], axis=-1), k[..., :-1], *rest)


def missing_normalizer(weights, settings):
    return namespace(weights).ones_like(normalizer(weights, settings))


def ignored_weights(weights, settings):
    n = normalizer(weights, settings)
    return n * np.where(weights > 0, weights, 1.0)  # w / (N w): a partly counted token counts fully


def layernorm_without(*terms: str) -> Callable:
    """LayerNorm's backward pass with terms of rstd (v - mean v - n mean(n v)) dropped."""

    def mutant(dy, res):
        _, dgain, dbias = layernorm_bwd(dy, res)
        v = dy * res.gain
        dz = v
        if "mean" not in terms:
            dz = dz - np.mean(v, axis=-1, keepdims=True)
        if "projection" not in terms:
            dz = dz - res.n * np.mean(res.n * v, axis=-1, keepdims=True)
        return (dz if "rstd" in terms else res.rstd * dz), dgain, dbias

    return mutant


def transposed_weight(dy, res):
    """dx = dy w in place of dy w^T, where the shapes allow it."""
    return dense_dx(dy, res._replace(w=res.w.T) if res.w.shape[0] == res.w.shape[1] else res)


def relu_in_place_of_squared_relu(dy, res):
    return np.where(res.r > 0, dy, 0.0)


def step_sizes_in_the_wrong_order(memory, x, slow, eta, *rest):
    return read_fwd(memory, x, slow, eta._replace(b1=eta.b2, b2=eta.b1), *rest)


FORWARD_MUTANTS = {
    "inclusive mask": lambda: attention(inclusive_mask, 0, 1, 2),
    "inclusive mask in layer 1 only": lambda: attention(inclusive_mask, 0),
    "inclusive mask in layer 2 only": lambda: attention(inclusive_mask, 1),
    "inclusive cumulative sums": lambda: attention(inclusive_mask, 2),
    "cumulative sums off by one": lambda: attention(one_token_late, 2),
    "decay counted from the wrong token": lambda: attention(decayed_once_more, 0, 1, 2),
    "query and key swapped in layer 2": lambda: attention(query_and_key_swapped, 1),
    "fast key in layer 2": lambda: attention(fast_key, 1),
    "slow query in layer 2": lambda: attention(slow_query, 1),
    "transposed weight gradient": lambda: attention(transposed_weight_gradient, 0),
    "missing normalizer": lambda: {"normalizer": missing_normalizer},
    "weights ignored": lambda: {"normalizer": ignored_weights},
    "LayerNorm without its mean": lambda: {"norm_bwd": layernorm_without("mean")},
    "LayerNorm without its projection": lambda: {"norm_bwd": layernorm_without("projection")},
    "LayerNorm without its scale": lambda: {"norm_bwd": layernorm_without("rstd")},
    "transposed weight": lambda: {"dense_dx": transposed_weight},
    "ReLU's derivative": lambda: {"squared_relu_bwd": relu_in_place_of_squared_relu},
    "step sizes in the wrong order": lambda: {"read_fwd": step_sizes_in_the_wrong_order},
}


def install(monkeypatch: pytest.MonkeyPatch, mutant: dict[str, Callable]) -> None:
    for name, replacement in mutant.items():
        module = fwl_ref.fwl if hasattr(fwl_ref.fwl, name) else fwl_ref.fast_layer
        monkeypatch.setattr(module, name, replacement)


@COMPARISONS
@pytest.mark.parametrize("mutant", FORWARD_MUTANTS)
def test_the_equivalence_comparison_rejects_every_mutant_of_the_block(mutant, monkeypatch):
    """N: a wrong block is told from dynamic evaluation at the slow weights, in its logits, far
    above the tolerance   (Q.1)
    """
    assert_equivalent(CASE)
    oracle, _ = stale(CASE)
    install(monkeypatch, FORWARD_MUTANTS[mutant]())
    assert_bitwise(stale(CASE).logits, oracle, "the oracle's logits")  # it shares no code with what is mutated
    assert equivalence_error(CASE).logits > CLEAR
    with pytest.raises(AssertionError, match="not dynamic evaluation"):
        assert_equivalent(CASE)


@pytest.mark.parametrize("normalizer", ["sequence", "batch"])
def test_the_equivalence_comparison_rejects_a_missing_normalizer_that_counts(normalizer, monkeypatch):
    """N: N = 1 in place of the sum of weights   (F.3)"""
    assert_equivalent(CASES[normalizer])
    install(monkeypatch, {"normalizer": missing_normalizer})
    assert equivalence_error(CASES[normalizer]).logits > CLEAR


def test_the_equivalence_comparison_rejects_a_batch_normalizer_in_place_of_a_sequence_normalizer():
    """N: one N for all sequences is not an N for each   (F.3)"""
    batch, sequence = CASES["batch"], CASES["sequence"]
    assert relative_error(run(batch).logits, run(sequence).logits) > CLEAR


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_the_equivalence_comparison_rejects_a_state_that_forgot_the_last_token(layer, monkeypatch):
    """N: logits that are right and a state that is not: the state is compared too   (F.2)"""

    def without_last(q, k, v, *rest):
        (out, _), res = linear_attention_chunked_fwd(q, k, v, *rest)
        return (out, linear_attention_chunked_fwd(q[:, :-1], k[:, :-1], v[:, :-1], *rest)[0][1]), res

    install(monkeypatch, attention(without_last, layer))
    error = equivalence_error(CASE)
    assert error.logits <= RTOL
    assert min(error.state, error.parameters) > CLEAR


@pytest.mark.parametrize("steps", ["their own", "all 1"])
def test_swapping_query_and_key_in_layer_1_is_an_equivalent_mutant(steps, monkeypatch):
    """E: in layer 1 both are x and the step size scales their product, so no comparison of logits
    can or should reject it   (F.2)

    With step sizes of 1 not even the scaling tells them apart: the state is the same too.
    """
    case = CASE if steps == "their own" else CASE._replace(eta=FastParameters(*(np.asarray(1.0) for _ in CASE.eta)))
    expected, state = run(case)
    install(monkeypatch, attention(query_and_key_swapped, 0))
    logits, swapped_state = run(case)
    assert_close(logits, expected)
    assert (relative_error(swapped_state.W1, state.W1) <= RTOL) == (steps == "all 1")


def test_the_equivalence_comparison_rejects_true_sgd():
    """N: gradients at the current weights are another program, and the comparison knows it   (Y.4)"""
    assert_equivalent(CASE)
    assert relative_error(run(CASE).logits, sequential(CASE).logits) > CLEAR


# Mutants of the backward pass
# ------------------------------------------------------------------------------------------------


def check_block(case):
    """The gradient check of (F.7), everything differentiable and a carried state."""

    def fwd(x, slow, eta, decay, state):
        (logits, _, out), res = fast_block_fwd(x, case.labels, case.weights, slow, eta, decay, case.settings, state)
        return (logits, out), res

    args = (case.x, case.slow, case.eta, case.decay, fast_state(case, 3, 1e-3))
    return check_adjoint(fwd, lambda g, res: fast_block_bwd(*g, res), args, step=1e-5)


def zeroed(f: Callable, *positions: int) -> Callable:
    """f with some of its results replaced by zeros: a dropped term."""

    def mutant(*args):
        return tuple(0 * y if i in positions and y is not None else y for i, y in enumerate(f(*args)))

    return mutant


def dense_bwd_bwd_transposed(g_dx, g_dw, g_db, dy, res):
    """The gradient of a square weight transposed."""
    g_dy, g_x, g_w, g_b = dense_bwd_bwd(g_dx, g_dw, g_db, dy, res)
    return g_dy, g_x, g_w.T if g_w.shape[0] == g_w.shape[1] else g_w, g_b


BACKWARD_MUTANTS = {
    "squared ReLU's second derivative dropped": {"squared_relu_bwd_bwd": zeroed(squared_relu_bwd_bwd, 1)},
    "gradient of dh not passed on": {"squared_relu_bwd_bwd": zeroed(squared_relu_bwd_bwd, 0)},
    "weight's second gradient dropped": {"dense_bwd_bwd": zeroed(dense_bwd_bwd, 2)},
    "weight's second gradient transposed": {"dense_bwd_bwd": dense_bwd_bwd_transposed},
    "LayerNorm's dependence on its input dropped": {"norm_bwd_bwd": zeroed(layernorm_bwd_bwd, 1)},
    "LayerNorm's dependence on its gain dropped": {"norm_bwd_bwd": zeroed(layernorm_bwd_bwd, 2)},
    "softmax's Hessian dropped": {"cross_entropy_bwd_bwd": zeroed(cross_entropy_bwd_bwd, 1)},
    "queries' gradient dropped": {"linear_attention_chunked_bwd": zeroed(linear_attention_chunked_bwd, 0)},
    "keys' gradient dropped": {"linear_attention_chunked_bwd": zeroed(linear_attention_chunked_bwd, 1)},
    "values' gradient dropped": {"linear_attention_chunked_bwd": zeroed(linear_attention_chunked_bwd, 2)},
    "decay's gradient dropped": {"linear_attention_chunked_bwd": zeroed(linear_attention_chunked_bwd, 3)},
    "state's gradient dropped": {"linear_attention_chunked_bwd": zeroed(linear_attention_chunked_bwd, 4)},
    "inputs' first gradient dropped": {"dense_bwd": zeroed(dense_bwd, 0)},
    "weights' first gradient dropped": {"dense_bwd": zeroed(dense_bwd, 1)},
    "biases' first gradient dropped": {"dense_bwd": zeroed(dense_bwd, 2)},
}


@pytest.fixture(scope="module")
def smooth_case():
    case = off_the_kink(make_block_case(2, 5, SQUARE, SQUARE, 4, FastSettings("constant", 1.0, 1e-6, 3), 17, "real", 0.1))
    check_block(case)  # the unmutated program passes
    return case


@COMPARISONS
@pytest.mark.parametrize("mutant", BACKWARD_MUTANTS)
def test_the_gradient_check_rejects_every_mutant_of_the_second_backward_pass(mutant, smooth_case, monkeypatch):
    """N: one term dropped anywhere in sweeps 4, 5 or 6 is found   (F.7)"""
    install(monkeypatch, BACKWARD_MUTANTS[mutant])
    with pytest.raises(AdjointError, match="they differ by"):
        check_block(smooth_case)


@COMPARISONS
def test_the_gradient_check_rejects_a_stop_gradient_in_the_write(smooth_case):
    """N: first_order=True passed off as the gradient   (F.5)"""
    with pytest.raises(AdjointError, match="they differ by"):
        check_block(with_settings(smooth_case, first_order=True))


@COMPARISONS
def test_the_gradient_check_rejects_a_small_error(smooth_case, monkeypatch):
    """N: a second backward pass that is wrong by one part in a hundred thousand is found: the check
    is sharp   (F.7)
    """

    def mutant(*args):
        return tuple(None if g is None else g * (1 + 1e-5) for g in layernorm_bwd_bwd(*args))

    install(monkeypatch, {"norm_bwd_bwd": mutant})
    with pytest.raises(AdjointError, match="they differ by"):
        check_block(smooth_case)
