"""What a token may know: the past, and nothing else (theorems 10 to 12).

A docstring that opens with "N:" is a negative control.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fwl_ref.fast_layer
from fwl_ref.fwl import FastSettings, normalizer
from fwl_ref.lm.model import model_fwd
from fwl_ref.ops.linear_attention import linear_attention_chunked_fwd
from fwl_ref.verify.cases import sequences, tokens, with_settings, with_steps
from fwl_ref.verify.runs import normalizers, run
from tests.strategies import block_cases, first_elsewhere, make_block_case, model_cases, seeds
from tests.theorems.compare import CLEAR, EVERY_NORMALIZER, assert_future_is_invisible, block_logits
from tests.tolerances import assert_bitwise, assert_close, relative_error

FIXED = make_block_case(2, 8, 4, 6, 5, FastSettings(chunk=3), seed=7, mask="real", decay=0.0)
VOCABULARY = 5


# Theorem 10: bitwise causality
# -----------------------------------------------------------------------------------------------


@given(case=block_cases(), data=st.data(), seed=seeds)
def test_the_future_does_not_move_a_single_bit_of_the_block(case, data, seed):
    """logits'_0..t are the same bits whatever x_{>t}, y_{>=t}, w_{>=t} are, at scale 1e3, with the
    constant normalizer   (F.6)
    """
    t = data.draw(st.integers(0, case.x.shape[1] - 1), label="t")
    assert_future_is_invisible(block_logits(case), case[:3], t, case.slow.U.shape[1], seed)


@given(case=model_cases(), data=st.data(), seed=seeds)
def test_the_future_does_not_move_a_single_bit_of_the_language_model(case, data, seed):
    """The same for (M.3): attention, its window and the block together; tokens_{>t}, labels_{>=t},
    weights_{>=t} replaced
    """
    t = data.draw(st.integers(0, case.tokens.shape[1] - 1), label="t")

    def logits(*arrays):
        return model_fwd(case.parameters, *arrays, case.config)[0].logits

    assert_future_is_invisible(logits, case[1:4], t, case.config.vocabulary, seed)


def test_the_past_does_move_the_block():
    """N: the label of token 2 moves the logits of token 3, so the theorem is not true of a block
    that reads nothing   (F.6)
    """
    other = FIXED.labels.copy()
    other[:, 2] = (other[:, 2] + 1) % VOCABULARY
    moved, still = run(FIXED._replace(labels=other)).logits, run(FIXED).logits
    assert np.all(np.abs(moved - still)[:, 3:].max(axis=(0, 2)) > CLEAR)


# Theorem 11: what the comparison must catch
# ----------------------------------------------------------------------------------


def inclusive(q, k, v, keep, *rest):
    """A mask with its diagonal: token t reads its own write."""
    (out, state), res = linear_attention_chunked_fwd(q, k, v, keep, *rest)
    return (out + np.sum(q * k, axis=-1, keepdims=True) * v, state), res


def subtracted(q, k, v, keep, *rest):
    """An exclusive cumulative sum as cumsum(a) - a: equal on paper, but rounding tells token t
    about its own value.
    """
    (_, state_out), res = linear_attention_chunked_fwd(q, k, v, keep, *rest)
    writes = k[..., :, None] * v[..., None, :]  # (B,T,K,E)
    return (np.sum(q[..., None] * (np.cumsum(writes, axis=1) - writes), axis=-2), state_out), res


@pytest.mark.parametrize("t", range(1, 7))
@pytest.mark.parametrize("mutant", [inclusive, subtracted])
def test_an_inclusive_mask_and_a_subtracted_cumsum_are_caught(mutant, t, monkeypatch):
    """N: a read that includes s = t, by its mask or by rounding only, fails the bitwise comparison
    that (F.6) passes
    """
    assert_future_is_invisible(block_logits(FIXED), FIXED[:3], t, VOCABULARY, seed=1)
    monkeypatch.setattr(fwl_ref.fast_layer, "linear_attention_chunked_fwd", mutant)
    with pytest.raises(AssertionError, match="expected 0 bits"):
        assert_future_is_invisible(block_logits(FIXED), FIXED[:3], t, VOCABULARY, seed=1)


def test_the_subtracted_cumsum_is_right_up_to_rounding(monkeypatch):
    """So only a bitwise comparison can catch it: its values agree with (F.6) to rounding where
    nothing large is subtracted
    """
    expected, _ = run(FIXED)
    monkeypatch.setattr(fwl_ref.fast_layer, "linear_attention_chunked_fwd", subtracted)
    assert_close(run(FIXED).logits, expected)


@pytest.mark.parametrize("normalizer", ["sequence", "batch"])
def test_a_normalizer_that_counts_tokens_lets_the_future_through(normalizer):
    """N: N = sum of w holds w_{>=t}, so the bitwise theorem is one of the constant normalizer
    only   (F.3)
    """
    case = with_settings(FIXED, normalizer=normalizer)
    with pytest.raises(AssertionError, match="expected 0 bits"):
        assert_future_is_invisible(block_logits(case), case[:3], 3, VOCABULARY, seed=1)


@pytest.mark.parametrize("value", first_elsewhere([np.nan, 1e160, np.inf]))
@pytest.mark.parametrize("chunk", first_elsewhere([2, None, 1, 3, 99]))
def test_a_non_finite_future_does_not_reach_the_past(chunk, value):
    """x_s overflows or is not a number for s >= 5: every earlier token keeps its bits, in every
    chunk; later ones are spoilt   (L.1)
    """
    case, first = with_settings(FIXED, chunk=chunk), 5
    expected, _ = run(case)
    x = case.x.copy()
    x[:, first:] = value
    with np.errstate(all="ignore"):
        logits, _ = run(case._replace(x=x))
    assert_bitwise(logits[:, :first], expected[:, :first], "logits before the overflow")
    if not np.isfinite(value):  # a large x that every hidden unit rectifies away is harmless
        assert not np.any(np.isfinite(logits[:, first:]))


# Theorem 12: what the future does through the normalizer, exactly
# ------------------------------------------------------------


@pytest.mark.parametrize("total", [0.25, 1.0, 3.0])
def test_the_normalizer_is_the_sum_of_the_weights_also_below_one(total: float) -> None:
    """(F.3): of a batch and of each sequence; 1 only where the sum is 0."""
    weights = np.asarray([[total, 0.0], [0.0, 0.0]])
    assert float(normalizer(weights, FastSettings(normalizer="batch"))) == total
    assert normalizer(weights, FastSettings(normalizer="sequence")).tolist() == [[total], [1.0]]


@given(case=block_cases(normalizers=("constant", "batch")), data=st.data())
def test_a_prefix_of_a_batch_is_the_short_batch_with_rescaled_step_sizes(case, data):
    """FWL_T(eta)[:t] = FWL_t(eta N_t / N_T), where N counts the weights of the batch; the constant
    N has ratio 1   (Q.5)
    """
    t = data.draw(st.integers(1, case.x.shape[1]), label="t")
    prefix = tokens(case, slice(0, t))
    ratio = float(normalizers(prefix) / normalizers(case))
    assert_close(run(with_steps(prefix, ratio)).logits, run(case).logits[:, :t])


@given(case=block_cases(normalizers=("sequence",)), data=st.data())
def test_a_prefix_of_a_sequence_is_the_short_sequence_with_rescaled_step_sizes(case, data):
    """FWL_T(eta)[:t] = FWL_t(eta N_t / N_T) for each sequence with its own N   (Q.5)"""
    t = data.draw(st.integers(1, case.x.shape[1]), label="t")
    whole, _ = run(case)
    for b in range(case.x.shape[0]):
        prefix = tokens(sequences(case, [b]), slice(0, t))
        ratio = float(normalizers(prefix)[0] / normalizers(case)[b])
        assert_close(run(with_steps(prefix, ratio)).logits[0], whole[b, :t])


@given(case=block_cases(normalizers=EVERY_NORMALIZER, max_batch=1), copies=st.integers(1, 4))
def test_copies_of_a_sequence_act_like_a_smaller_step_under_the_batch_normalizer_only(case, copies):
    """B copies with N = sum over the batch: FWL(eta) of each = FWL(eta / B) of one; otherwise
    copies do not see each other   (Q.6)
    """
    many, _ = run(sequences(case, [0] * copies))
    one, _ = run(with_steps(case, 1 / copies if case.settings.normalizer == "batch" else 1.0))
    assert_close(many, np.repeat(one, copies, axis=0))


@given(case=block_cases(), constant=st.sampled_from([0.25, 2.0, 7.0]))
def test_the_constant_normalizer_divides_the_step_sizes(case, constant):
    """FWL with N = n and step sizes eta is FWL with N = 1 and step sizes eta / n   (F.3)"""
    unit = with_settings(case, constant=1.0)
    assert_close(run(with_settings(case, constant=constant)).logits, run(with_steps(unit, 1 / constant)).logits)


def test_without_rescaling_a_prefix_is_not_processed_like_the_whole():
    """N: FWL_T(eta)[:t] is not FWL_t(eta) under a normalizer that counts tokens   (Q.5)"""
    case = with_settings(FIXED, normalizer="batch")
    assert relative_error(run(tokens(case, slice(0, 4))).logits, run(case).logits[:, :4]) > CLEAR
