"""Linear attention: three forms of one function, its state, its causality, its gradients."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwl_ref.ops.linear_attention import (
    ALONE,
    SHORT,
    chunk_alone,
    linear_attention_bwd,
    linear_attention_chunked_bwd,
    linear_attention_chunked_fwd,
    linear_attention_fwd,
    linear_attention_recurrent_bwd,
    linear_attention_recurrent_fwd,
    past_sum_bwd,
    past_sum_fwd,
)
from tests.strategies import AttentionCase, attention_cases, chunks, first_elsewhere, generator, seeds, splits
from tests.tolerances import assert_bitwise, assert_close, assert_trees_close, float32_bound


def chunked(chunk: int | None) -> Callable:
    """The chunked form as a function of the same five arguments as the others."""
    return lambda q, k, v, keep, state=None: linear_attention_chunked_fwd(q, k, v, keep, state, chunk)


FORMS = {
    "parallel": linear_attention_fwd,
    "recurrent": linear_attention_recurrent_fwd,
    "chunks of 1": chunked(1),
    "chunks of 3": chunked(3),
    "one chunk": chunked(None),
}
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


def by_definition(q: np.ndarray, k: np.ndarray, v: np.ndarray, keep: np.ndarray, state: np.ndarray | None) -> tuple:
    """o_t = keep^t q_t S_0 + sum_{s<t} keep^(t-s-1) (q_t . k_s) v_s, and S_T, with nothing but
    scalar loops over t and s.
    """
    batch, length, width = q.shape
    out, final = np.zeros(v.shape, v.dtype), np.zeros((batch, width, v.shape[2]), v.dtype)
    for b in range(batch):
        for t in range(length + 1):
            total = np.zeros((width, v.shape[2])) if state is None else keep**t * state[b]
            for s in range(t):
                total = total + keep ** (t - s - 1) * np.outer(k[b, s], v[b, s])
            if t < length:
                out[b, t] = q[b, t] @ total
            else:
                final[b] = total
    return out, final


def size(case: AttentionCase) -> float:
    """The size of the terms that the sums add up, for tolerances where the sums cancel."""
    q, k, v, state = (0.0 if a is None else float(np.max(np.abs(a), initial=0)) for a in (*case[:3], case.state))
    return q * (k * v + state)


@given(case=attention_cases(), data=st.data())
def test_parallel_chunked_and_recurrent_linear_attention_agree(case: AttentionCase, data: st.DataObject) -> None:
    """parallel = chunked_S = recurrent = the double sum, for every chunk size S: theorem 6. (L.1),
    (L.3), (L.5)
    """
    chunk = data.draw(chunks(case.q.shape[1]), label="chunk")
    expected = by_definition(*case)
    for name, form in {**FORMS, f"chunks of {chunk}": chunked(chunk)}.items():
        assert_trees_close(form(*case)[0], expected, what=name, scale=size(case))


@pytest.mark.parametrize("length", first_elsewhere([7, 0, 1, 2, 12]))
def test_every_chunk_size_gives_the_same_output_and_state(length: int) -> None:
    """chunked_S = recurrent for S = 1, ..., T + 2: divisors, non-divisors, T and more than T;
    theorem 6. (L.3)
    """
    draw = generator(length)
    case = (draw(2, length, 3), draw(2, length, 3), draw(2, length, 4), np.asarray(0.9), draw(2, 3, 4))
    expected, _ = linear_attention_recurrent_fwd(*case)
    for chunk in range(1, length + 3):
        assert_trees_close(chunked(chunk)(*case)[0], expected, what=f"chunk {chunk}", scale=1.0)


@given(case=attention_cases(dtype="float32"), data=st.data())
def test_the_forms_agree_in_float32(case: AttentionCase, data: st.DataObject) -> None:
    """Theorem 6 at 2^-24: |parallel - recurrent| <= c T u. (L.1), (L.3), (L.5)"""
    expected, _ = linear_attention_recurrent_fwd(*case)
    for form in (linear_attention_fwd, chunked(data.draw(chunks(case.q.shape[1]), label="chunk"))):
        actual, _ = form(*case)
        assert actual[0].dtype == actual[1].dtype == np.float32
        assert_trees_close(actual, expected, float32_bound(terms=9 * 5, stages=8), scale=size(case))


@given(case=attention_cases(), data=st.data())
def test_a_split_sequence_with_a_carried_state_is_the_whole(case: AttentionCase, data: st.DataObject) -> None:
    """run(x[:k]) then run(x[k:], state) = run(x) for any cuts and any mix of forms: theorem 7.
    (L.1), (L.3), (L.5)
    """
    length = case.q.shape[1]
    cuts = data.draw(splits(length), label="cuts")
    expected, _ = linear_attention_recurrent_fwd(*case)
    state, outs = case.state, []
    for start, stop in zip(cuts, cuts[1:], strict=False):
        form = FORMS[data.draw(st.sampled_from(sorted(FORMS)), label="form")]
        part = (a[:, start:stop] for a in case[:3])
        (out, state), _ = form(*part, case.keep, state)
        outs.append(out)
    assert_trees_close((np.concatenate(outs, axis=1), state), expected, scale=size(case))


@every_form
@given(case=attention_cases(carried=True))
def test_states_of_a_decayed_sum_add(form: Callable, case: AttentionCase) -> None:
    """S_T(state) = keep^T state + S_T(0), and the reads add the same way; keep = 1 is plain
    addition: theorem 7.
    """
    (out, state), _ = form(*case)
    (out_empty, state_empty), _ = form(*case[:4], None)
    powers = case.keep ** np.arange(case.q.shape[1])[:, None]
    assert_close(state, case.keep ** case.q.shape[1] * case.state + state_empty, scale=size(case))
    assert_close(out, powers * (case.q @ case.state) + out_empty, scale=size(case))
    (_, twice), _ = form(*case[:2], 2 * case.v, case.keep, 2 * case.state)
    assert_bitwise(twice, 2 * state)  # linear in what is remembered; a factor of 2 does not round


@given(case=attention_cases(keeps=(1.0, 0.9, 0.5)), data=st.data())
def test_chunked_backward_is_parallel_backward_is_backpropagation_through_time(case: AttentionCase, data: st.DataObject) -> None:
    """All five gradients (q, k, v, keep, state) agree between the three backward passes: theorem
    17. (L.2), (L.4), (L.6)
    """
    chunk, used, seed = (data.draw(chunks(case.q.shape[1]), label="chunk"), data.draw(st.booleans(), label="state used"), data.draw(seeds))
    (out, state_out), parallel = linear_attention_fwd(*case)
    draw = generator(seed)
    dout, dstate_out = draw(*out.shape), draw(*state_out.shape) if used else None
    expected = linear_attention_recurrent_bwd(dout, dstate_out, linear_attention_recurrent_fwd(*case)[1])
    in_chunks = linear_attention_chunked_bwd(dout, dstate_out, chunked(chunk)(*case)[1])
    for name, actual in (("parallel", linear_attention_bwd(dout, dstate_out, parallel)), (f"chunked {chunk}", in_chunks)):
        assert len(actual) == 5
        assert (actual[4] is None) == (case.state is None)
        assert_trees_close(actual, expected, what=name, scale=10 * (1 + size(case)))


@pytest.mark.parametrize("chunk", [None, 1, 2, 7])
def test_the_gradient_of_keep_is_right_where_powers_of_zero_occur(chunk: int | None) -> None:
    """d/d keep of keep^n at keep = 0 is [n = 1], with 0^0 = 1: theorem 17 at the edge. (L.2), (L.4)"""
    draw = generator(3)
    case = (draw(2, 6, 3), draw(2, 6, 3), draw(2, 6, 2), np.asarray(0.0), draw(2, 3, 2))
    (out, state), res = linear_attention_recurrent_fwd(*case)
    dout, dstate = draw(*out.shape), draw(*state.shape)
    expected = linear_attention_recurrent_bwd(dout, dstate, res)
    assert_trees_close(linear_attention_chunked_bwd(dout, dstate, chunked(chunk)(*case)[1]), expected)


def test_keep_of_zero_reads_the_previous_token_only() -> None:
    """keep = 0: o_t = (q_t . k_{t-1}) v_{t-1}, for 0^0 = 1. (L.1), (L.3), (L.5)"""
    draw = generator(4)
    q, k, v = draw(2, 5, 3), draw(2, 5, 3), draw(2, 5, 2)
    expected = np.sum(q[:, 1:] * k[:, :-1], axis=-1, keepdims=True) * v[:, :-1]
    for form in FORMS.values():
        (out, state), _ = form(q, k, v, np.asarray(0.0))
        assert np.all(out[:, 0] == 0)
        assert_close(out[:, 1:], expected)
        assert_close(state, k[:, -1, :, None] * v[:, -1, None, :])


@every_form
@pytest.mark.parametrize("decay", [0.0, 0.25, 0.9, 1.0])
def test_the_decay_mask_is_a_power_of_the_gap(form: Callable, decay: float) -> None:
    """M_ts = (1 - lambda)^(t-s-1) for s < t and 0 otherwise: read off with q = k = 1 and v =
    identity. (L.1), (L.3), (L.5)
    """
    length = 7
    one, identity = np.ones((1, length, 1)), np.eye(length)[None]
    (mask, state), _ = form(one, one, identity, np.asarray(1 - decay))
    for t in range(length):
        assert_close(state[0, 0, t], np.asarray((1 - decay) ** (length - 1 - t)))
        for s in range(length):
            assert_close(mask[0, t, s], np.asarray((1 - decay) ** (t - s - 1) if s < t else 0.0))


@every_form
@given(seed=seeds)
def test_an_exclusive_cumulative_sum_is_linear_attention_with_unit_keys(form: Callable, seed: int) -> None:
    """q = k = 1, keep = 1: o_t = sum_{s<t} v_s. (L.1), (L.3), (L.5)"""
    v = generator(seed)(2, 8, 3)
    one = np.ones((2, 8, 1))
    (out, total), _ = form(one, one, v, np.asarray(1.0))
    expected = np.stack([v[:, :t].sum(axis=1) for t in range(8)], axis=1)
    assert_close(out, expected, scale=1.0)
    assert_close(total[:, 0], v.sum(axis=1), scale=1.0)


def test_subtracting_from_an_inclusive_cumulative_sum_leaks_the_own_token_and_is_caught() -> None:
    """cumsum(v)_t - v_t depends on v_t by rounding; sum_{s<t} v_s does not, bitwise: negative
    control of theorem 11.
    """
    v = generator(0)(1, 6, 2)
    louder = v.copy()
    louder[:, 3] += 1e8
    one, keep = np.ones((1, 6, 1)), np.asarray(1.0)

    def subtracting(a: np.ndarray) -> np.ndarray:
        return np.cumsum(a, axis=1) - a

    assert_close(subtracting(v), linear_attention_fwd(one, one, v, keep)[0][0], scale=1.0)  # the same formula on paper
    assert np.any(subtracting(v)[:, 3] != subtracting(louder)[:, 3])
    for form in FORMS.values():
        assert_bitwise(form(one, one, louder, keep)[0][0][:, :4], form(one, one, v, keep)[0][0][:, :4])


@every_form
@given(case=attention_cases(min_length=1), seed=seeds, data=st.data())
def test_reading_is_strictly_causal_to_the_last_bit(form: Callable, case: AttentionCase, seed: int, data: st.DataObject) -> None:
    """o_{<=t} does not move when q_{>t}, k_{>=t}, v_{>=t} move by 1e3: theorem 10 at op level.
    (L.1), (L.3), (L.5)
    """
    t = data.draw(st.integers(0, case.q.shape[1] - 1), label="t")
    draw = generator(seed)
    q, k, v = (a.copy() for a in case[:3])
    q[:, t + 1 :] += draw(*q[:, t + 1 :].shape, scale=1e3)
    k[:, t:] += draw(*k[:, t:].shape, scale=1e3)
    v[:, t:] += draw(*v[:, t:].shape, scale=1e3)
    before, after = form(*case)[0][0], form(q, k, v, *case[3:])[0][0]
    assert_bitwise(after[:, : t + 1], before[:, : t + 1])


def test_an_inclusive_mask_is_caught_by_the_causality_test() -> None:
    """o_t = sum_{s<=t} ... moves with v_t: negative control of theorem 10."""
    draw = generator(2)
    q, k, v, keep = draw(1, 5, 3), draw(1, 5, 3), draw(1, 5, 2), np.asarray(1.0)

    def inclusive(value: np.ndarray) -> np.ndarray:
        return linear_attention_fwd(q, k, value, keep)[0][0] + np.sum(q * k, axis=-1, keepdims=True) * value

    moved = v.copy()
    moved[:, 2:] += 1e3
    assert np.all(inclusive(moved)[:, 2] != inclusive(v)[:, 2])
    assert_bitwise(inclusive(moved)[:, :2], inclusive(v)[:, :2])  # tokens before it are still untouched


@pytest.mark.parametrize("bad", first_elsewhere([np.nan, np.inf]))
@pytest.mark.parametrize("chunk", first_elsewhere([2, None, 1, 3, 9]))
@pytest.mark.parametrize("where", ["q", "k", "v"])
def test_what_is_not_finite_reaches_no_earlier_token(where: str, bad: float, chunk: int | None) -> None:
    """o_{<=s} are bitwise unmoved by a NaN or an infinity in k_s or v_s, o_{<s} by one in q_s:
    theorem 11. (L.1), (L.3)
    """
    draw, s = generator(6), 3
    arrays = {"q": draw(1, 6, 3), "k": draw(1, 6, 3), "v": draw(1, 6, 2)}
    expected = chunked(chunk)(*arrays.values(), np.asarray(0.9))[0][0]
    arrays[where][:, s, 1] = bad
    with np.errstate(all="ignore"):
        found = chunked(chunk)(*arrays.values(), np.asarray(0.9))[0][0]
    clean = s if where == "q" else s + 1
    assert_bitwise(found[:, :clean], expected[:, :clean])
    assert not np.all(np.isfinite(found[:, clean : clean + 1]))


@pytest.mark.parametrize("alone", [1, 2, 4, 100])
@given(case=attention_cases(), data=st.data(), seed=seeds)
def test_a_text_that_leaves_nothing_reads_the_same(alone: int, case: AttentionCase, data: st.DataObject, seed: int) -> None:
    """Without ``carry`` there is no final state, chunks are larger, and output and gradients stay. (L.3), (L.4)"""
    chunk = data.draw(chunks(case.q.shape[1]), label="chunk")
    (expected, _), res = chunked(chunk)(*case)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fwl_ref.ops.linear_attention.ALONE", alone)
        (out, state), found = linear_attention_chunked_fwd(*case, chunk, carry=False)
    dout = generator(seed)(*out.shape)
    assert state is None and len(found) <= len(res)
    assert_close(out, expected, scale=1 + size(case))
    gradients = linear_attention_chunked_bwd(dout, None, res)
    assert_trees_close(linear_attention_chunked_bwd(dout, None, found), gradients, scale=10 * (1 + size(case)))


def test_a_text_that_leaves_nothing_has_large_chunks() -> None:
    """All of a text, if the pairs across its middle form fewer products than the state there; else at least ALONE tokens. What was
    larger stays, what is refused is refused.
    """
    assert [chunk_alone(n, 16, 8, 8) for n in (-1, 0, 1, 16, 17)] == [-1, 0, 16, 16, 17]  # 4 K E / (K + E) = 16
    assert [chunk_alone(n, 17, 8, 8) for n in (1, ALONE, ALONE + 1)] == [ALONE, ALONE, ALONE + 1]
    for width, sizes in ((1, [ALONE, 3]), (ALONE, [ALONE + 3])):
        q = np.ones((1, ALONE + 3, width))
        (out, _), residuals = linear_attention_chunked_fwd(q, q, q, np.asarray(1.0), None, 1, carry=False)
        assert_close(out[0, :, 0], width * np.arange(ALONE + 3.0))  # the second reads what the first left
        assert [res.q.shape[1] for res in residuals] == sizes


@pytest.mark.parametrize("carry", [True, False])
@pytest.mark.parametrize("chunk", [0, -1])
def test_a_chunk_below_one_token_is_refused(chunk: int, carry: bool) -> None:
    """S >= 1. (L.3)"""
    one = np.ones((1, 2, 1))
    with pytest.raises(ValueError, match=f"at least 1 token.*got {chunk}"):
        linear_attention_chunked_fwd(one, one, one, np.asarray(1.0), None, chunk, carry)


# Sums over the past
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("carried", [False, True])
@pytest.mark.parametrize("length", first_elsewhere([SHORT + 1, 0, 1, SHORT - 1, SHORT, 2 * SHORT, 2 * SHORT + 3]))
def test_a_sum_over_the_past_is_linear_attention_whose_queries_and_keys_are_1(length: int, carried: bool) -> None:
    """Output, state and all gradients, across the boundary of a chunk. (L.7), (L.8)"""
    draw, keep = generator(length), np.asarray(0.9)
    v, state, dout, dstate = draw(2, length, 3), draw(2, 3) if carried else None, draw(2, length, 3), draw(2, 3)
    one, held = np.ones((2, length, 1)), state[:, None, :] if carried else None
    (expected, after), res = linear_attention_fwd(one, one, v, keep, held)
    (out, left), summed = past_sum_fwd(v, keep, state)
    assert_trees_close((out, left), (expected, after[:, 0]), scale=10.0)
    for last in (None, dstate):
        _, _, *gradients = linear_attention_bwd(dout, None if last is None else last[:, None, :], res)
        dv, dkeep, dheld = past_sum_bwd(dout, last, summed)
        assert_trees_close((dv, dkeep), tuple(gradients[:2]), scale=100.0 * (1 + length))
        assert (dheld is None) is (not carried)
        if carried:
            assert_close(dheld, gradients[2][:, 0], scale=10.0)


@pytest.mark.parametrize("bad", first_elsewhere([np.nan, np.inf]))
def test_what_is_not_finite_reaches_no_earlier_sum(bad: float) -> None:
    """Nor another channel, forwards; no later token backwards: theorem 11. (L.7), (L.8)"""
    draw, keep, t = generator(7), np.asarray(0.9), SHORT + 2
    v, dout = draw(1, 2 * SHORT, 2), draw(1, 2 * SHORT, 2)
    (expected, _), res = past_sum_fwd(v, keep)
    dv, _, _ = past_sum_bwd(dout, None, res)
    v[0, t, 1] = dout[0, t, 1] = bad
    with np.errstate(all="ignore"):
        (out, _), _ = past_sum_fwd(v, keep)
        moved, _, _ = past_sum_bwd(dout, None, res)
    assert_bitwise(out[:, : t + 1], expected[:, : t + 1])
    assert_bitwise(out[..., 0], expected[..., 0])
    assert not np.any(np.isfinite(out[0, t + 1 :, 1]))
    assert_bitwise(moved[:, t:], dv[:, t:])
    assert not np.any(np.isfinite(moved[0, :t, 1]))
