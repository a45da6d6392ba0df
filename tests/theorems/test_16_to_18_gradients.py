"""Every gradient of the whole: the block, its halves, the transformer around it, the language model
(theorems 16 to 18).

Differences are taken with a small step, well inside the margin to the squared ReLU's kink, at which
the write pass is not differentiable.

A docstring that opens with "N:" is a negative control.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fwl_ref.fast_layer
from fwl_ref.fwl import FastSettings, fast_block_bwd, fast_block_fwd, read_bwd, read_fwd, write_bwd, write_fwd
from fwl_ref.gradcheck import AdjointError, check_adjoint
from fwl_ref.lm.model import (
    Config,
    effective_step_sizes,
    effective_step_sizes_bwd,
    features_bwd,
    features_fwd,
    loss_and_gradient,
    model_bwd,
    model_fwd,
)
from fwl_ref.lm.stack import stack_bwd, stack_fwd
from fwl_ref.lm.transformer import KeyValues, LayerParameters, layer_bwd, layer_fwd
from fwl_ref.ops.linear_attention import linear_attention_recurrent_bwd, linear_attention_recurrent_fwd
from fwl_ref.slow_block import FastParameters, slow_block_bwd, slow_block_fwd
from fwl_ref.tree import add, named_leaves, tree_map
from fwl_ref.verify.cases import tokens, with_settings, with_steps
from fwl_ref.verify.runs import Gradients, gradients, run
from tests.strategies import (
    MORE_NUMBERS,
    at_most,
    block_cases,
    chunks,
    fast_state,
    first_elsewhere,
    generator,
    make_block_case,
    make_model_case,
    model_off_the_kink,
    off_the_kink,
    seeds,
    smooth_block_cases,
    splits,
    unsaturated,
)
from tests.theorems.compare import CLEAR, EVERY_NORMALIZER, largest_difference
from tests.tolerances import assert_trees_close, relative_error

STEP = 1e-5  # of finite differences: 3 STEP times a tangent is small beside the margin of 0.05 and beside a LayerNorm's deviation


def gentle_state(case, seed):
    """A carried state that moves the fast pre-activations by at most 0.02, so that they stay off
    the kink.
    """
    state = fast_state(case, seed)
    moved = np.max(np.abs(case.eta.W1 * (case.x @ state.W1) + case.eta.b1 * state.b1[:, None, :]))
    return tree_map(lambda s: s * min(1.0, 0.02 / float(moved + 1e-9)), state)


def cotangent(case, seed):
    """Random gradients of logits and state."""
    normal = generator(seed)
    return tree_map(lambda y: normal(*y.shape), run(case))


def block_of(case):
    """The block as a function of everything differentiable: (x, slow, eta, decay, state) ->
    (logits, state_out).
    """

    def fwd(x, slow, eta, decay, state):
        (logits, _, out), res = fast_block_fwd(x, case.labels, case.weights, slow, eta, decay, case.settings, state)
        return (logits, out), res

    def bwd(g_output, res):
        return fast_block_bwd(*g_output, res)

    bwd.__name__ = "fast_block_bwd"
    return fwd, bwd


def check_block(case, state=None, seed=0):
    return check_adjoint(*block_of(case), (case.x, case.slow, case.eta, case.decay, state), seed=seed, step=STEP)


# Theorem 16: adjoints
# --------------------------------------------------------------------------------------------------------


@at_most(25)
@given(case=smooth_block_cases(max_length=5, max_batch=2), seed=seeds)
def test_the_backward_pass_of_the_block_is_the_adjoint_of_its_forward_pass(case, seed):
    """<u, J v> = <J^T u, v> for x, slow, eta, lambda and the incoming state; u on the logits and on
    the final state   (F.7)
    """
    check_block(case, gentle_state(case, seed), seed)


def without_state(case):
    """``block_of`` for a block that starts with an empty memory."""
    fwd, bwd = block_of(case)
    return (lambda *a: fwd(*a, None)), (lambda g, res: bwd(g, res)[:4])


@pytest.mark.parametrize("eps", first_elsewhere([1e-6, 0.0]))
@pytest.mark.parametrize("normalizer", EVERY_NORMALIZER)
def test_the_backward_pass_of_the_block_is_the_adjoint_for_every_normalizer_and_epsilon(normalizer, eps):
    """The same without a state, which sequence and batch cannot carry   (F.7)"""
    case = off_the_kink(make_block_case(2, 6, 4, 5, 4, FastSettings(normalizer, 2.0, eps, 4), 11, "real", 0.1))
    report = check_adjoint(*without_state(case), (case.x, case.slow, case.eta, case.decay), step=STEP)
    assert report.checked == 1 + 8 + 6 + 1


@pytest.mark.parametrize("half", ["read", "write"])
def test_a_residual_that_the_backward_pass_forgets_is_rejected(half):
    """N: z = x + a W2 + b2 gives x a share of g_z in both halves   (X.14)"""
    settings = FastSettings("constant", 2.0, 1e-5, 4, norm="rms", residual=True)
    case = off_the_kink(make_block_case(2, 6, 4, 5, 4, settings, 11, "real", 0.1))
    fwd, bwd = without_state(case)
    args = (case.x, case.slow, case.eta, case.decay)
    check_adjoint(fwd, bwd, args, step=STEP)

    def forgetful(g, res):
        read, write = (half._replace(residual=False) for half in (res.read, res.write))
        return bwd(g, res._replace(read=read) if half == "read" else res._replace(write=write))

    with pytest.raises(AdjointError, match="argument 0"):
        check_adjoint(fwd, forgetful, args, step=STEP)


@given(case=smooth_block_cases(max_length=5, max_batch=2, normalizers=EVERY_NORMALIZER), seed=seeds)
def test_the_backward_pass_of_the_write_is_the_adjoint_of_the_write(case, seed):
    """d Memory / d (x, slow): sweeps 5 and 6, gradients of gradients   (F.5)"""

    def fwd(x, slow):
        (memory, _), res = write_fwd(x, case.labels, case.weights, slow, case.settings)
        return memory, res

    assert check_adjoint(fwd, write_bwd, (case.x, case.slow), seed=seed, step=STEP).checked == 1 + 8


@at_most(25)
@given(case=smooth_block_cases(max_length=5, max_batch=2), seed=seeds)
def test_the_backward_pass_of_the_read_is_the_adjoint_of_the_read(case, seed):
    """d (logits, state) / d (memory, x, slow, eta, lambda, state): sweep 4   (F.4), (F.12), (F.13)"""
    (memory, _), _ = write_fwd(*case[:4], case.settings)

    def fwd(memory, x, slow, eta, decay, state):
        return read_fwd(memory, x, slow, eta, decay, state, case.settings)

    args = (memory, case.x, case.slow, case.eta, case.decay, gentle_state(case, seed))
    check_adjoint(fwd, lambda g, res: read_bwd(*g, res), args, seed=seed, step=STEP)


@given(case=smooth_block_cases(max_length=5, max_batch=2).map(unsaturated), seed=seeds)
def test_the_backward_pass_of_the_slow_block_is_the_adjoint_of_its_forward_pass(case, seed):
    """d nll / d (x, slow), eps 0 and 1e-6   (B.2)"""

    def fwd(x, slow):
        (nll, _), res = slow_block_fwd(x, case.labels, slow, *case.settings.plain)
        return nll, res

    check_adjoint(fwd, slow_block_bwd, (case.x, case.slow), seed=seed, step=STEP)


def transformer_parameters(width, normal):
    d, shapes = (width, ((width,), (width,), (width, 3 * width), (3 * width,), (width, width), (width,)))
    shapes += ((d,), (d,), (d, 4 * d), (4 * d,), (4 * d, d), (d,))
    p = LayerParameters(*(normal(*shape, scale=0.5) for shape in shapes))
    return p._replace(gain1=1 + p.gain1, gain2=1 + p.gain2)


@given(
    seed=seeds,
    length=st.integers(1, 4),
    cached=st.integers(0, 3),
    window=st.none() | st.integers(1, 4),
    shape=st.sampled_from([(4, 1), (4, 2), (6, 3)]),
)
def test_the_backward_pass_of_a_transformer_layer_is_the_adjoint_with_a_window_and_a_cache(seed, length, cached, window, shape):
    """d y / d (x, parameters); the cache of earlier keys and values is constant   (T.2)"""
    (width, heads), normal = shape, generator(seed)
    cache = KeyValues(*(normal(2, heads, cached, width // heads) for _ in range(2))) if cached else None

    def fwd(x, p):
        (y, _), res = layer_fwd(x, p, heads, window, cache)
        return y, res

    check_adjoint(fwd, layer_bwd, (normal(2, length, width), transformer_parameters(width, normal)), seed=seed, step=STEP)


@pytest.mark.parametrize("window", first_elsewhere([2, None]))
def test_the_backward_pass_of_the_stack_is_the_adjoint_of_its_forward_pass(window):
    """d y / d (x, all layers)   (T.4)"""
    normal = generator(12)
    layers = tuple(transformer_parameters(4, normal) for _ in range(2))

    def fwd(x, p):
        (y, _), res = stack_fwd(layer_fwd, x, p, (2, window))
        return y, res

    def bwd(dy, res):
        return stack_bwd(layer_bwd, dy, res)

    assert check_adjoint(fwd, bwd, (normal(2, 4, 4), layers), step=STEP).checked == 1 + 2 * 12


MODELS = {
    "plain": Config(width=4, layers=1, heads=2, vocabulary=5, fast=False),
    "tf": Config(width=4, layers=1, heads=2, vocabulary=5, dialect="tf", chunk=2),
    "jax": Config(width=4, layers=1, heads=2, vocabulary=5, dialect="jax", chunk=None, attention_window=2),
    "batch": Config(width=4, layers=1, heads=2, vocabulary=5, dialect="tf", normalizer="batch"),
}


@pytest.mark.parametrize("seed", first_elsewhere([1, 2]))
@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in ("tf", "jax") else [MORE_NUMBERS]) for n in MODELS])
def test_the_backward_pass_of_the_language_model_is_the_adjoint_of_its_forward_pass(name, seed):
    """d nll / d (every parameter, step size and lambda), through read, write and
    transformer   (M.4)
    """
    case = model_off_the_kink(make_model_case(2, 4, MODELS[name], seed))

    def fwd(p):
        output, res = model_fwd(p, *case[1:])
        return output.nll, res

    assert check_adjoint(fwd, model_bwd, (case.parameters,), seed=seed, step=STEP).checked == 1 + 12 + 2 + 8 + 6 + 1


def test_the_backward_pass_of_the_features_is_the_adjoint_of_their_forward_pass():
    """d x / d (embedding, trunk, gain, bias)   (M.2)"""
    case = make_model_case(2, 4, MODELS["jax"], 3)
    p = case.parameters

    def fwd(embedding, trunk, gain, bias):
        parameters = p._replace(embedding=embedding, trunk=trunk, gain=gain, bias=bias)
        (x, _), res = features_fwd(parameters, case.tokens, case.config)
        return x, res

    def bwd(dx, res):
        return features_bwd(dx, *res)

    check_adjoint(fwd, bwd, (p.embedding, p.trunk, p.gain, p.bias), step=STEP)


# that the plain model has its gradient, which the mean only weighs, is the test above
@pytest.mark.parametrize("name", [*first_elsewhere(["tf", "jax", "batch"]), pytest.param("plain", marks=[pytest.mark.slow, MORE_NUMBERS])])
def test_the_gradient_of_the_mean_loss_is_the_adjoint_of_the_mean_loss(name):
    """loss = sum w nll / sum w over the batch   (M.5)"""
    case = model_off_the_kink(make_model_case(2, 4, MODELS[name], 4))

    def fwd(p):
        loss, gradient = loss_and_gradient(p, *case[1:])
        return np.asarray(loss), gradient

    check_adjoint(fwd, lambda g_loss, gradient: tree_map(lambda g: g * g_loss, gradient), (case.parameters,), step=STEP)


@pytest.mark.parametrize("dialect", ["tf", "jax"])
@given(seed=seeds)
def test_the_backward_pass_of_the_dialects_step_sizes_is_their_adjoint(dialect, seed):
    """tf: the identity; jax: two zeros and a tie, whose gradients add   (M.4)"""
    eta = FastParameters(*map(np.asarray, generator(seed)(6)))
    check_adjoint(
        lambda eta: (effective_step_sizes(eta, dialect), None), lambda g, _: effective_step_sizes_bwd(g, dialect), (eta,), seed=seed
    )


# Theorem 17: the same gradient in every form
# ---------------------------------------------------------------------------------


@given(case=block_cases(normalizers=EVERY_NORMALIZER, min_length=0), seed=seeds)
def test_gradients_do_not_depend_on_the_chunk_size(case, seed):
    """chunk = 1, ..., T + 2 and None: the same g_x, g_slow, g_eta, g_lambda   (F.7), (L.4)"""
    g = cotangent(case, seed)
    expected = gradients(with_settings(case, chunk=None), *g)
    for chunk in range(1, case.x.shape[1] + 3):
        assert_trees_close(gradients(with_settings(case, chunk=chunk), *g), expected, what=f"chunk {chunk}", scale=1.0)


def chunkless(f):
    return lambda q, k, v, keep, state, *rest: f(q, k, v, keep, state)


@pytest.mark.parametrize("seed", first_elsewhere(range(4)))
def test_gradients_are_those_of_backpropagation_through_time(seed, monkeypatch):
    """The chunked backward pass = backpropagation through the recurrence S <- keep S + k v^T of
    every layer   (F.7), (L.6)
    """
    case = make_block_case(2, 6, 4, 5, 4, FastSettings(chunk=4), seed, "real", 0.1)
    g, state = cotangent(case, seed), fast_state(case, seed)
    expected = gradients(case, *g, state)
    monkeypatch.setattr(fwl_ref.fast_layer, "linear_attention_chunked_fwd", chunkless(linear_attention_recurrent_fwd))
    monkeypatch.setattr(fwl_ref.fast_layer, "linear_attention_chunked_bwd", linear_attention_recurrent_bwd)
    assert_trees_close(gradients(case, *g, state), expected, scale=1.0)


@given(case=block_cases(min_length=0), data=st.data(), seed=seeds)
def test_gradients_flow_back_through_the_carried_state(case, data, seed):
    """run(x[:k]), run(x[k:], state) backwards, g_state carried from the last piece to the first =
    the backward pass of run(x)   (F.7)
    """
    cuts = data.draw(splits(case.x.shape[1]), label="cuts")
    state, (g_logits, g_state) = fast_state(case, seed), cotangent(case, seed)
    expected = gradients(case, g_logits, g_state, state)
    pieces = []
    for low, high in zip(cuts[:-1], cuts[1:], strict=True):
        part = with_settings(tokens(case, slice(low, high)), chunk=data.draw(chunks(high - low), label="chunk"))
        (_, _, state), res = fast_block_fwd(*part, state)
        pieces.append((slice(low, high), res))
    total, g_xs = None, []
    for part, res in reversed(pieces):
        g_x, *shared, g_state = fast_block_bwd(g_logits[:, part], g_state, res)
        g_xs.insert(0, g_x)
        total = tuple(shared) if total is None else add(total, tuple(shared))
    found = Gradients(np.concatenate(g_xs, axis=1), *total, g_state)
    assert_trees_close(found, expected, scale=1.0)


# Theorem 18: the first-order switch
# ------------------------------------------------------------------------------------------


@given(case=block_cases(normalizers=EVERY_NORMALIZER), seed=seeds)
def test_without_step_sizes_the_first_order_switch_changes_nothing(case, seed):
    """eta = 0: nothing reads the memory's values, so no gradient flows into them and sweep 5
    carries zeros   (F.5)
    """
    case = with_steps(case, 0.0)
    g_logits = cotangent(case, seed).logits
    first = gradients(with_settings(case, first_order=True), g_logits)
    assert_trees_close(first, gradients(case, g_logits), scale=1e-3)


@given(case=block_cases(normalizers=EVERY_NORMALIZER), seed=seeds)
def test_the_first_order_switch_never_changes_the_forward_pass_nor_the_step_sizes_gradients(case, seed):
    """stop-gradient is the identity forwards; g_eta and g_lambda come out of sweep 4 alone   (F.4)"""
    g = cotangent(case, seed)
    first = with_settings(case, first_order=True)
    assert_trees_close(run(first), run(case), rtol=0.0)
    found, expected = gradients(first, *g), gradients(case, *g)
    assert_trees_close((found.eta, found.decay), (expected.eta, expected.decay), rtol=0.0)


@pytest.mark.parametrize("normalizer", EVERY_NORMALIZER)
@pytest.mark.parametrize("seed", first_elsewhere(range(3)))
def test_with_step_sizes_the_first_order_switch_changes_every_gradient_that_the_write_contributes_to(normalizer, seed):
    """N: for eta > 0 the gradient of x and of each of the eight slow parameters differs: what
    meta-learning adds   (F.5)
    """
    case = make_block_case(2, 6, 4, 5, 4, FastSettings(normalizer), seed, "real", 0.1)
    g_logits = cotangent(case, seed).logits
    full, first = gradients(case, g_logits), gradients(with_settings(case, first_order=True), g_logits)
    assert relative_error(first.x, full.x) > CLEAR
    differences = largest_difference(first.slow, full.slow)
    assert min(differences.values()) > CLEAR, differences


@pytest.mark.parametrize("normalizer", EVERY_NORMALIZER)
def test_the_first_order_gradient_is_not_the_gradient(normalizer):
    """N: with the switch on, the check that proves (F.7) finds it out"""
    case = off_the_kink(make_block_case(2, 6, 4, 5, 4, FastSettings(normalizer), 13, "real", 0.1))
    check_adjoint(*without_state(case), (case.x, case.slow, case.eta, case.decay), step=STEP)
    first = with_settings(case, first_order=True)
    with pytest.raises(AdjointError, match="they differ by"):
        check_adjoint(*without_state(first), (case.x, case.slow, case.eta, case.decay), step=STEP)


def test_the_first_order_switch_keeps_the_gradients_of_the_keys():
    """With the switch on, write_bwd is the adjoint of the keys h, x, a of the memory, its values
    held constant   (F.5)
    """
    case = off_the_kink(make_block_case(2, 5, 4, 5, 4, FastSettings(first_order=True), 14, "real"))

    def fwd(x, slow):
        (memory, _), res = write_fwd(x, case.labels, case.weights, slow, case.settings)
        return (memory.h, memory.x, memory.a), (memory, res)

    def bwd(g_keys, residual):
        memory, res = residual
        g_memory = tree_map(np.zeros_like, memory)
        g_h, g_x, g_a = g_keys
        return write_bwd(g_memory._replace(h=g_h, x=g_x, a=g_a), res)

    check_adjoint(fwd, bwd, (case.x, case.slow), step=STEP)


def test_the_loss_of_one_token_is_trained_through_the_writes_before_it():
    """g_x of the outer loss of token t is not 0 at s < t, and is 0 at every s > t   (F.7)"""
    case = make_block_case(1, 6, 4, 5, 4, FastSettings(), 15, "ones")
    (logits, _, _), res = fast_block_fwd(*case)
    g_logits = np.zeros_like(logits)
    g_logits[:, 3] = generator(15)(4)
    g_x, *_ = fast_block_bwd(g_logits, None, res)
    assert np.all(np.max(np.abs(g_x[0, :4]), axis=-1) > CLEAR)
    assert np.all(g_x[0, 4:] == 0)


def test_named_leaves_of_the_gradient_are_those_of_the_parameters():
    """A gradient has the type of what it is the gradient of   (M.4)"""
    case = make_model_case(2, 4, MODELS["tf"], 5)
    _, gradient = loss_and_gradient(case.parameters, *case[1:])
    found, expected = dict(named_leaves(gradient)), dict(named_leaves(case.parameters))
    assert {n: g.shape for n, g in found.items()} == {n: p.shape for n, p in expected.items()}
    assert len(found) == 1 + 12 + 2 + 8 + 6 + 1
