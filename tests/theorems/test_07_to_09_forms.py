"""One function, many ways to run it: in one piece, in pieces, in chunks, token by token, or not at
all (theorems 7 to 9).

A docstring that opens with "N:" is a negative control.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwl_ref.fwl import FastSettings, fast_block_bwd, fast_block_fwd
from fwl_ref.lm.model import model_bwd, model_fwd
from fwl_ref.slow_block import FastParameters
from fwl_ref.stream import stream_predict, stream_reveal, stream_start
from fwl_ref.tree import leaves, tree_map
from fwl_ref.verify.cases import tokens, with_settings, with_steps
from fwl_ref.verify.runs import plain, run
from tests.strategies import block_cases, fast_state, make_block_case, model_cases, seeds
from tests.theorems.compare import CLEAR, EVERY_NORMALIZER, run_in_pieces, run_stream
from tests.tolerances import assert_close, assert_trees_close, relative_error

FIXED = make_block_case(2, 7, 4, 6, 5, FastSettings(chunk=3), seed=6, mask="real", decay=0.1)


# Theorem 7: pieces
# -----------------------------------------------------------------------------------------------------------


@given(case=block_cases(min_length=0), data=st.data(), seed=seeds)
def test_running_in_pieces_with_the_state_carried_is_running_in_one_piece(case, data, seed):
    """run(x[:k]) then run(x[k:], state) = run(x): any number of splits, any chunk size or the
    streaming form in each   (F.6), (F.8)
    """
    start = data.draw(st.sampled_from([None, fast_state(case, seed)]), label="state")
    logits, state = run_in_pieces(case, start, data)
    whole, whole_state = run(case, start)
    assert_close(logits, whole)
    assert_trees_close(state, whole_state, what="state", scale=1.0)


@given(case=block_cases(min_length=0), data=st.data())
def test_states_of_pieces_add_after_fading(case, data):
    """state(x) = (1 - lambda)^{T-k} state(x[:k]) + state(x[k:]), the plain sum where lambda = 0:
    each piece writes as if alone   (F.2)
    """
    length = case.x.shape[1]
    k = data.draw(st.integers(0, length), label="k")
    faded = (1 - case.decay) ** (length - k)
    _, first = run(tokens(case, slice(0, k)))
    _, second = run(tokens(case, slice(k, None)))
    assert_trees_close(tree_map(lambda a, b: faded * a + b, first, second), run(case).state, what="state", scale=1.0)


def test_a_forgotten_state_is_noticed():
    """N: run(x[k:]) without the state of x[:k] is not the end of run(x)   (F.6)"""
    assert relative_error(run(tokens(FIXED, slice(3, None))).logits, run(FIXED).logits[:, 3:]) > CLEAR


@given(case=block_cases(normalizers=EVERY_NORMALIZER, min_length=0))
def test_every_chunk_size_gives_the_same_logits_and_state(case):
    """chunk = 1, ..., T + 2 and None: the same function   (F.2), (L.3)"""
    logits, state = run(with_settings(case, chunk=None))
    for chunk in range(1, case.x.shape[1] + 3):
        chunked, chunked_state = run(with_settings(case, chunk=chunk))
        assert_close(chunked, logits, what=f"chunk {chunk}")
        assert_trees_close(chunked_state, state, what=f"chunk {chunk} state", scale=1.0)


# Theorem 8: streaming
# --------------------------------------------------------------------------------------------------------


@given(block_cases(min_length=0))
def test_predict_then_reveal_is_the_full_pass(case):
    """logits of (F.8) from the state left by (F.9), token after token, are logits' of (F.6); so is
    the final state
    """
    (logits, state), (streamed, streamed_state) = run(case), run_stream(case)
    assert_close(streamed, logits)
    assert_trees_close(streamed_state, state, what="state", scale=1.0)


def predict(stream, case=FIXED):
    return stream_predict(stream, case.x[:, 0], case.slow, case.eta, case.settings)


def reveal(stream, case=FIXED):
    return stream_reveal(stream, case.labels[:, 0], case.weights[:, 0], case.slow, case.decay, case.settings)


def test_revealing_before_predicting_is_an_error():
    """N: score first, then learn: (F.9) without a pending prediction, at the start and after a
    reveal, is refused
    """
    start = stream_start(2, FIXED.slow)
    with pytest.raises(ValueError, match="reveal before predict"):
        reveal(start)
    once = reveal(predict(start)[1])
    with pytest.raises(ValueError, match="reveal before predict"):
        reveal(once)


def test_predicting_twice_without_a_label_is_an_error():
    """N: (F.8) while a prediction is pending would forget a token silently"""
    _, pending = predict(stream_start(2, FIXED.slow))
    with pytest.raises(ValueError, match="predict after predict"):
        predict(pending)


def test_predicting_does_not_change_the_memory():
    """(F.8) reads: the state before and after are the same arrays"""
    start = stream_start(2, FIXED.slow)
    assert all(a is b for a, b in zip(predict(start)[1].state, start.state, strict=True))


@pytest.mark.parametrize("normalizer", ["sequence", "batch"])
def test_carrying_a_state_needs_the_constant_normalizer(normalizer):
    """N: with N = sum of weights a later piece would rescale earlier writes, so (F.6) with a state
    and (F.8) refuse
    """
    case = with_settings(FIXED, normalizer=normalizer)
    with pytest.raises(ValueError, match="constant normalizer"):
        run(case, fast_state(case, 0))
    with pytest.raises(ValueError, match="constant normalizer"):
        predict(stream_start(2, case.slow), case)


# Theorem 9: nothing is fast, nothing is written, nothing is there
# ------------------------------------------------------------


@given(block_cases(normalizers=EVERY_NORMALIZER, min_length=0))
def test_zero_step_sizes_are_the_plain_model(case):
    """eta = 0: logits' = logits of the slow block (B.1), whatever was written; and (F.6) returns
    those as its second output always
    """
    assert_close(run(with_steps(case, 0.0)).logits, plain(case))
    (_, slow_logits, _), _ = fast_block_fwd(*case)
    assert_close(slow_logits, plain(case))


@given(case=model_cases(normalizers=EVERY_NORMALIZER))
def test_a_fast_language_model_with_zero_step_sizes_is_the_plain_language_model(case):
    """eta = 0: the losses (M.3) and the gradients (M.4) of all parameters but the step sizes are
    those of the plain model
    """
    p = case.parameters._replace(eta=tree_map(lambda e: 0 * e, case.parameters.eta))
    fast, res_fast = model_fwd(p, *case[1:4], case.config)
    slow, res_slow = model_fwd(p, *case[1:4], case.config._replace(fast=False))
    assert_close(fast.nll, slow.nll)
    dnll = case.weights + 1
    g_fast, g_slow = model_bwd(dnll, res_fast), model_bwd(dnll, res_slow)
    assert_trees_close(g_fast._replace(eta=g_slow.eta), g_slow, scale=1e-3)


@given(case=block_cases(normalizers=EVERY_NORMALIZER, masks=("zeros",), min_length=0))
def test_all_zero_weights_are_the_plain_model_without_nan(case):
    """w = 0: nothing is written, N counts as 1 (F.3), logits' = slow logits; the backward pass
    (F.7) is finite and g_eta = 0
    """
    (logits, _, state), res = fast_block_fwd(*case)
    assert_close(logits, plain(case))
    g_x, g_slow, g_eta, g_decay, _ = fast_block_bwd(np.ones_like(logits), None, res)
    assert all(np.all(np.isfinite(g)) for g in leaves((g_x, g_slow)))
    assert all(np.all(g == 0) for g in leaves((state, g_eta, g_decay)))


@given(case=block_cases(normalizers=EVERY_NORMALIZER, min_length=1, max_length=1))
def test_one_token_reads_an_empty_memory(case):
    """T = 1: logits'_0 = slow logits, and the state holds that token's gradient   (F.6)"""
    assert_close(run(case).logits, plain(case))
    written = np.any(case.weights > 0, axis=1)
    assert np.array_equal(np.any(run(case).state.bias != 0, axis=1), written)


@pytest.mark.parametrize("normalizer", EVERY_NORMALIZER)
def test_no_token_at_all_passes_the_state_through(normalizer):
    """T = 0: no logits, the state that came in (or zeros), and (F.7) returns that state's gradient"""
    case = with_settings(tokens(FIXED, slice(0, 0)), normalizer=normalizer)
    state = fast_state(case, 1) if normalizer == "constant" else None
    (logits, _, out), res = fast_block_fwd(*case, state)
    assert logits.shape == (2, 0, 5)
    assert_trees_close(out, state or FastParameters(*(np.zeros((2, *p.shape)) for p in case.slow[:6])))
    g_state = fast_state(case, 2) if state else None
    g_x, g_slow, g_eta, _, g_state_in = fast_block_bwd(logits, g_state, res)
    assert g_x.shape == case.x.shape
    assert all(np.all(g == 0) for g in leaves((g_slow, g_eta)))
    if state is not None:
        assert_trees_close(g_state_in, g_state)
