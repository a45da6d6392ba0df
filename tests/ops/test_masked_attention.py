"""Masked attention: any strictly causal mask, three forms for memory slots, their state, causality
and gradients.

A docstring that opens with "N:" is a negative control.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwl_ref.gradcheck import AdjointError, check_adjoint
from fwl_ref.ops.linear_attention import (
    linear_attention_bwd,
    linear_attention_chunked_fwd,
    linear_attention_fwd,
    linear_attention_recurrent_bwd,
    linear_attention_recurrent_fwd,
)
from fwl_ref.ops.masked_attention import (
    check_strict,
    masked_attention_bwd,
    masked_attention_chunked_bwd,
    masked_attention_chunked_fwd,
    masked_attention_fwd,
    masked_attention_recurrent_bwd,
    masked_attention_recurrent_fwd,
)
from tests.strategies import AttentionCase, attention_cases, chunks, first_elsewhere, generator, scales, seeds, splits
from tests.tolerances import assert_bitwise, assert_close, assert_trees_close, float32_bound


class SlotCase(NamedTuple):
    """Everything a form with slots takes."""

    q: np.ndarray  # (B,T,K)
    k: np.ndarray  # (B,T,K)
    v: np.ndarray  # (B,T,E)
    keep: np.ndarray  # (T,N,N)
    write: np.ndarray  # (T,N)
    read: np.ndarray  # (T,N)
    state: np.ndarray | None  # (B,N,K,E)


@st.composite
def slot_cases(draw: Callable, min_length: int = 0, carried: bool | None = None, dtype: str = "float64") -> SlotCase:
    """Slots of any small number that mix, fade and grow, differently at every token."""
    batch, length, slots = (draw(st.integers(0, 2)), draw(st.integers(min_length, 9)), draw(st.integers(1, 3)))
    width, values, scale, normal = (draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(scales), generator(draw(seeds)))
    state = normal(batch, slots, width, values) if (draw(st.booleans()) if carried is None else carried) else None
    case = (normal(batch, length, width, scale=scale), normal(batch, length, width), normal(batch, length, values))
    tables = (normal(length, slots, slots, scale=0.6), normal(length, slots), normal(length, slots))
    return SlotCase(*(None if a is None else np.asarray(a, dtype=dtype) for a in (*case, *tables, state)))


def chunked(chunk: int | None) -> Callable:
    """The chunked form as a function of the same seven arguments as the recurrent one."""
    return lambda *case: masked_attention_chunked_fwd(*case, chunk)


FORMS = {"recurrent": masked_attention_recurrent_fwd, "chunks of 1": chunked(1), "chunks of 3": chunked(3), "one chunk": chunked(None)}
HOST = pytest.mark.host("values are looked at on the host only")
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


def mask_by_definition(keep: np.ndarray, write: np.ndarray, read: np.ndarray) -> np.ndarray:
    """M_ts = read_t keep_{t-1} ... keep_{s+1} write_s, one product after another."""
    length = read.shape[0]
    mask = np.zeros((length, length))
    for t in range(length):
        for s in range(t):
            reached = write[s]
            for r in range(s + 1, t):
                reached = keep[r] @ reached
            mask[t, s] = read[t] @ reached
    return mask


def by_definition(case: SlotCase) -> tuple[np.ndarray, np.ndarray]:
    """o_t and S_T with scalar loops over sequences, tokens and slots."""
    batch, length, _ = case.q.shape
    slots = case.read.shape[1]
    out, finals = np.zeros(case.v.shape), np.zeros((batch, slots, case.q.shape[2], case.v.shape[2]))
    for b in range(batch):
        held = [np.zeros(finals.shape[2:]) if case.state is None else case.state[b, n] for n in range(slots)]
        for t in range(length):
            out[b, t] = sum(case.read[t, n] * (case.q[b, t] @ held[n]) for n in range(slots))
            new = np.outer(case.k[b, t], case.v[b, t])
            held = [sum(case.keep[t, m, n] * held[n] for n in range(slots)) + case.write[t, m] * new for m in range(slots)]
        finals[b] = held
    return out, finals


def size(case: SlotCase) -> float:
    """The size of the terms that the sums add up, for tolerances where the sums cancel."""
    length = case.read.shape[0]
    held = np.abs(np.ones(case.read.shape[1]))
    for t in range(length):
        held = np.maximum(held, np.abs(case.keep[t]) @ held + np.abs(case.write[t]))
    q, k, v, state, read = (0.0 if a is None else float(np.max(np.abs(a), initial=0)) for a in (*case[:3], case.state, case.read))
    return float(np.max(held)) * max(1.0, read) * max(1.0, q) * (k * v + state)


def strict_mask(length: int, seed: int) -> np.ndarray:
    """A mask with no structure at all."""
    return np.tril(generator(seed)(length, length), -1)


# The forms
# -------------------------------------------------------------------------------------------------------------------


@given(case=attention_cases(), seed=seeds)
def test_masked_attention_is_the_double_sum_for_any_mask(case: AttentionCase, seed: int) -> None:
    """o_t = sum_{s<t} M_ts (q_t . k_s) v_s. (O.14)"""
    mask = strict_mask(case.q.shape[1], seed)
    out, _ = masked_attention_fwd(*case[:3], mask)
    expected = np.zeros(case.v.shape)
    for b, t in np.ndindex(*case.q.shape[:2]):
        for s in range(t):
            expected[b, t] += mask[t, s] * (case.q[b, t] @ case.k[b, s]) * case.v[b, s]
    q, k, v = (float(np.max(np.abs(a), initial=0)) for a in case[:3])
    assert_close(out, expected, scale=3 * q * k * v)


@given(case=slot_cases(), data=st.data())
def test_the_chunked_and_recurrent_forms_of_slots_agree(case: SlotCase, data: st.DataObject) -> None:
    """chunked_S = recurrent = the sums, for every chunk size S: theorem 6 for slots. (O.16), (O.18)"""
    chunk = data.draw(chunks(case.q.shape[1]), label="chunk")
    expected = by_definition(case)
    for name, form in {**FORMS, f"chunks of {chunk}": chunked(chunk)}.items():
        assert_trees_close(form(*case)[0], expected, what=name, scale=size(case))


@given(case=slot_cases(carried=False))
def test_slots_are_masked_attention_with_their_impulse_response(case: SlotCase) -> None:
    """N slots = the parallel form with M_ts = read_t keep_{t-1} ... keep_{s+1} write_s. (O.3),
    (O.14), (O.18)
    """
    (out, _), _ = masked_attention_recurrent_fwd(*case)
    masked, _ = masked_attention_fwd(*case[:3], mask_by_definition(*case[3:6]))
    assert_close(masked, out, scale=size(case))


@pytest.mark.parametrize("length", first_elsewhere([7, 0, 1, 2, 12]))
def test_every_chunk_size_gives_the_same_output_and_slots(length: int) -> None:
    """chunked_S = recurrent for S = 1, ..., T + 2. (O.16)"""
    draw = generator(length)
    tables = (draw(length, 2, 2, scale=0.5), draw(length, 2), draw(length, 2))
    case = (draw(2, length, 3), draw(2, length, 3), draw(2, length, 4), *tables, draw(2, 2, 3, 4))
    expected, _ = masked_attention_recurrent_fwd(*case)
    for chunk in range(1, length + 3):
        assert_trees_close(chunked(chunk)(*case)[0], expected, what=f"chunk {chunk}", scale=1.0)


@given(case=slot_cases(dtype="float32"), data=st.data())
def test_the_forms_agree_in_float32(case: SlotCase, data: st.DataObject) -> None:
    """|chunked - recurrent| <= c T u, and everything stays float32. (O.16), (O.18)"""
    expected, _ = masked_attention_recurrent_fwd(*case)
    actual, _ = chunked(data.draw(chunks(case.q.shape[1]), label="chunk"))(*case)
    assert actual[0].dtype == actual[1].dtype == np.float32
    assert_trees_close(actual, expected, float32_bound(terms=9 * 4 * 3, stages=8), scale=size(case))


@given(case=slot_cases(), data=st.data())
def test_a_split_sequence_with_carried_slots_is_the_whole(case: SlotCase, data: st.DataObject) -> None:
    """run(x[:k]) then run(x[k:], slots) = run(x) for any cuts and any mix of forms: theorem 7 for
    slots. (O.16), (O.18)
    """
    cuts = data.draw(splits(case.q.shape[1]), label="cuts")
    expected, _ = masked_attention_recurrent_fwd(*case)
    state, outs = case.state, []
    for start, stop in zip(cuts, cuts[1:], strict=False):
        form = FORMS[data.draw(st.sampled_from(sorted(FORMS)), label="form")]
        part = (a[:, start:stop] for a in case[:3])
        (out, state), _ = form(*part, *(a[start:stop] for a in case[3:6]), state)
        outs.append(out)
    assert_trees_close((np.concatenate(outs, axis=1), state), expected, scale=size(case))


# Linear attention is one slot
# ------------------------------------------------------------------------------------------------


def as_slot(case: AttentionCase) -> tuple:
    """Linear attention with decay as one slot: keep_t = keep, write_t = read_t = 1."""
    length = case.q.shape[1]
    one = np.ones((length, 1))
    return (*case[:3], np.full((length, 1, 1), case.keep), one, one, None if case.state is None else case.state[:, None])


@given(case=attention_cases(), data=st.data())
def test_one_slot_that_decays_is_linear_attention(case: AttentionCase, data: st.DataObject) -> None:
    """keep_t = keep, write = read = 1 is (L.1), (L.3), (L.5), with every gradient and the state:
    (O.14) to (O.19)
    """
    chunk, seed = data.draw(chunks(case.q.shape[1]), label="chunk"), data.draw(seeds)
    (out, state), res = linear_attention_recurrent_fwd(*case)
    draw = generator(seed)
    dout, dstate = draw(*out.shape), draw(*state.shape)
    dq, dk, dv, _, dstart = linear_attention_recurrent_bwd(dout, dstate, res)
    scale = 10 * (1 + max(float(np.max(np.abs(a), initial=0)) for a in (out, state, dq, dk, dv)))
    for name, fwd, bwd in (
        ("recurrent", masked_attention_recurrent_fwd, masked_attention_recurrent_bwd),
        (f"chunked {chunk}", chunked(chunk), masked_attention_chunked_bwd),
    ):
        (masked_out, masked_state), masked_res = fwd(*as_slot(case))
        assert_trees_close((masked_out, masked_state[:, 0]), (out, state), what=name, scale=scale)
        *gradients, dslot = bwd(dout, dstate[:, None], masked_res)
        assert_trees_close(tuple(gradients), (dq, dk, dv), what=name, scale=scale)
        assert (dslot is None) == (case.state is None)
        if dslot is not None:
            assert_close(dslot[:, 0], dstart, what=name, scale=scale)


@pytest.mark.parametrize("keep", [1.0, 0.9, 0.0])
def test_the_decay_mask_given_as_a_matrix_is_linear_attention(keep: float) -> None:
    """M_ts = keep^(t-s-1) in (O.14), (O.15) is (L.1), (L.2)."""
    draw = generator(8)
    q, k, v, dout = draw(2, 7, 3), draw(2, 7, 3), draw(2, 7, 4), draw(2, 7, 4)
    mask = np.asarray([[keep ** (t - s - 1) if s < t else 0.0 for s in range(7)] for t in range(7)])
    (expected, _), linear = linear_attention_fwd(q, k, v, np.asarray(keep))
    out, res = masked_attention_fwd(q, k, v, mask)
    assert_close(out, expected)
    assert_trees_close(masked_attention_bwd(dout, res), linear_attention_bwd(dout, None, linear)[:3])


# Gradients
# -------------------------------------------------------------------------------------------------------------------


@given(case=slot_cases(), data=st.data())
def test_chunked_backward_is_backpropagation_through_time(case: SlotCase, data: st.DataObject) -> None:
    """Gradients of q, k, v and the slots agree between the two backward passes: theorem 17 for
    slots. (O.17), (O.19)
    """
    chunk, used, seed = (data.draw(chunks(case.q.shape[1]), label="chunk"), data.draw(st.booleans(), label="state used"), data.draw(seeds))
    (out, state), res = masked_attention_recurrent_fwd(*case)
    draw = generator(seed)
    dout, dstate = draw(*out.shape), draw(*state.shape) if used else None
    expected = masked_attention_recurrent_bwd(dout, dstate, res)
    actual = masked_attention_chunked_bwd(dout, dstate, chunked(chunk)(*case)[1])
    assert (actual[3] is None) == (case.state is None)
    largest = max(float(np.max(np.abs(a), initial=0)) for a in expected if a is not None)
    assert_trees_close(actual, expected, scale=10 * (1 + size(case) + largest))


def test_the_backward_pass_of_any_mask_is_that_of_the_slots_that_make_it() -> None:
    """(O.15) with a mask = (O.19) with the slots it comes from."""
    draw = generator(12)
    case = (draw(2, 6, 3), draw(2, 6, 3), draw(2, 6, 2), draw(6, 2, 2, scale=0.5), draw(6, 2), draw(6, 2))
    dout = draw(2, 6, 2)
    expected = masked_attention_recurrent_bwd(dout, None, masked_attention_recurrent_fwd(*case)[1])
    _, res = masked_attention_fwd(*case[:3], mask_by_definition(*case[3:]))
    assert_trees_close(masked_attention_bwd(dout, res), expected[:3])


@pytest.mark.parametrize("position", [0, 1, 2, 3], ids=["q", "k", "v", "state"])
@pytest.mark.parametrize("chunk", [None, 2])
def test_a_gradient_that_forgets_the_slots_is_caught(position: int, chunk: int | None) -> None:
    """N: check_adjoint accepts (O.17) and rejects it with the share of one argument halved."""
    draw = generator(13)
    tables = (draw(5, 2, 2, scale=0.5), draw(5, 2), draw(5, 2))
    args = (draw(2, 5, 3), draw(2, 5, 3), draw(2, 5, 2), draw(2, 2, 3, 2))

    def fwd(q, k, v, state):
        return masked_attention_chunked_fwd(q, k, v, *tables, state, chunk)

    def bwd(d_output, res):
        return masked_attention_chunked_bwd(*d_output, res)

    def mutant(d_output, res):
        return tuple(g / 2 if i == position else g for i, g in enumerate(bwd(d_output, res)))

    assert check_adjoint(fwd, bwd, args).checked == 4
    with pytest.raises(AdjointError, match="they differ by"):
        check_adjoint(fwd, mutant, args)


# Causality
# -------------------------------------------------------------------------------------------------------------------


@every_form
@given(case=slot_cases(min_length=1), seed=seeds, data=st.data())
def test_reading_slots_is_strictly_causal_to_the_last_bit(form: Callable, case: SlotCase, seed: int, data: st.DataObject) -> None:
    """o_{<=t} does not move when q, read after t or k, v, keep, write from t on move by 1e3:
    theorem 10 for slots. (O.16), (O.18)
    """
    t = data.draw(st.integers(0, case.q.shape[1] - 1), label="t")
    draw = generator(seed)
    q, k, v, keep, write, read = (a.copy() for a in case[:6])
    for a, start in ((q, t + 1), (k, t), (v, t)):
        a[:, start:] += draw(*a[:, start:].shape, scale=1e3)
    for a, start in ((keep, t), (write, t), (read, t + 1)):
        a[start:] += draw(*a[start:].shape, scale=1e3)
    before, after = form(*case)[0][0], form(q, k, v, keep, write, read, case.state)[0][0]
    assert_bitwise(after[:, : t + 1], before[:, : t + 1])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["k", "v"])
def test_a_non_finite_value_spoils_the_tokens_after_it_and_no_others(where: str, bad: float) -> None:
    """A NaN or infinity at s leaves o_{<=s} unmoved to the bit and makes o_{>s} not finite, in
    every form. (O.14), (O.16), (O.18)
    """
    draw, s = generator(6), 3
    case = {"q": draw(1, 6, 3), "k": draw(1, 6, 3), "v": draw(1, 6, 2)}
    tables = (0.9 * np.ones((6, 1, 1)), np.ones((6, 1)), np.ones((6, 1)))
    spoilt = {**case, where: case[where].copy()}
    spoilt[where][0, s] = bad

    def reads(q, k, v):
        return [masked_attention_fwd(q, k, v, mask_by_definition(*tables))[0], *(f(q, k, v, *tables, None)[0][0] for f in FORMS.values())]

    with np.errstate(all="ignore"):
        for after, before in zip(reads(**spoilt), reads(**case), strict=True):
            assert_bitwise(after[:, : s + 1], before[:, : s + 1])
            assert not np.any(np.all(np.isfinite(after[:, s + 1 :]), axis=-1))


@HOST
@given(length=st.integers(1, 6), data=st.data())
def test_a_mask_that_reads_the_present_or_the_future_is_refused_by_its_first_entry(length: int, data: st.DataObject) -> None:
    """N: M_ts != 0 for some s >= t is an error that names the first such entry, and a strict mask
    passes. (O.14)
    """
    mask = strict_mask(length, 0)
    check_strict(mask)
    pairs = st.tuples(st.integers(0, length - 1), st.integers(0, length - 1)).filter(lambda p: p[0] <= p[1])
    wrong = data.draw(st.lists(pairs, min_size=1, max_size=3), label="entries")
    for t, s in wrong:
        mask[t, s] = 0.5
    t, s = min(wrong)
    one = np.ones((1, length, 1))
    with pytest.raises(ValueError, match=rf"strictly causal.*got M\[{t},{s}\] = 0.5.*tril"):
        masked_attention_fwd(one, one, one, mask)


@HOST
@pytest.mark.parametrize("entry", [np.nan, np.inf, -1e-300])
def test_the_smallest_and_the_strangest_entry_on_the_diagonal_are_refused(entry: float) -> None:
    """N: not zero is not zero. (O.14)"""
    mask = strict_mask(4, 1)
    mask[2, 2] = entry
    with pytest.raises(ValueError, match=r"got M\[2,2\]"):
        check_strict(mask)


@pytest.mark.parametrize("shape", [(3,), (2, 3), (1, 3, 3)])
def test_a_mask_that_is_not_a_square_matrix_is_refused(shape: tuple) -> None:
    """One row per reading token, one column per writing token. (O.14)"""
    with pytest.raises(ValueError, match=r"shape \(T,T\)"):
        check_strict(np.zeros(shape))


@pytest.mark.parametrize("chunk", [0, -1])
def test_a_chunk_below_one_token_is_refused(chunk: int) -> None:
    """S >= 1. (O.16)"""
    one, table = np.ones((1, 2, 1)), np.ones((2, 1))
    with pytest.raises(ValueError, match=f"at least 1 token.*got {chunk}"):
        masked_attention_chunked_fwd(one, one, one, table[:, :, None], table, table, None, chunk)


def test_linear_attention_and_slots_run_the_same_chunks() -> None:
    """One slot with keep = 1 in chunks of 2 is (L.3) in chunks of 2, state included. (O.16)"""
    draw = generator(14)
    case = AttentionCase(draw(2, 7, 3), draw(2, 7, 3), draw(2, 7, 2), np.asarray(1.0), draw(2, 3, 2))
    (out, state), residuals = linear_attention_chunked_fwd(*case, 2)
    (masked_out, masked_state), masked_residuals = chunked(2)(*as_slot(case))
    assert [r.q.shape for r in residuals] == [r.masked.q.shape for r in masked_residuals]
    assert_trees_close((masked_out, masked_state[:, 0]), (out, state))
