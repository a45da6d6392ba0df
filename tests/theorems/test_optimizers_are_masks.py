"""The first dictionary: an optimizer on stale gradients is a causal mask, and what is not linear is
none.

One side is the fast weight block reading with a mask, the other the optimizer run literally
(``literal.py``), with first-order gradients of the slow block and parameters that really move.
Negative controls fail twice: they do not superpose, and the mask nearest to them, found by least
squares, does not reproduce them.

A docstring that opens with "N:" is a negative control, one with "E:" its counterpart: something that
the comparison must accept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwl_ref import optimizers
from fwl_ref.dynamic_evaluation import mean_square, rms_scale
from fwl_ref.fwl import FastSettings, fast_block_bwd, fast_block_fwd, read_fwd, write_fwd
from fwl_ref.gradcheck import AdjointError, check_adjoint
from fwl_ref.optimizers import (
    Optimizer,
    OptimizerState,
    any_mask,
    averaging,
    decay,
    mask,
    momentum,
    momentum_with_decay,
    preconditioned,
    preconditioned_heads,
    read_slots,
    schedule,
    segments,
    sgd,
    sliding_window,
    slots,
)
from fwl_ref.slow_block import FastParameters
from fwl_ref.tree import leaves, tree_map
from fwl_ref.verify.cases import tokens, with_settings, with_steps
from fwl_ref.verify.runs import run
from tests.strategies import MORE_NUMBERS, BlockCase, block_cases, generator, make_block_case, off_the_kink, seeds
from tests.theorems import literal
from tests.theorems.compare import (
    CLEAR,
    EVERY_NORMALIZER,
    assert_future_is_invisible,
    block_logits,
    run_in_pieces,
    run_stream,
    segment_masked,
    shares,
    token_gradient,
)
from tests.tolerances import RTOL, assert_close, assert_trees_close, float32_bound, relative_error

LONGEST = 7


class Row(NamedTuple):
    """One row of the dictionary: the optimizer as a mask, and the optimizer."""

    optimizer: Optimizer
    walk: literal.Walk


fractions = st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0])
counts = st.integers(1, LONGEST + 2)
ROWS = {
    "SGD": st.builds(lambda: Row(sgd(), literal.sgd())),
    "step-size schedule": st.lists(st.floats(0, 2), min_size=LONGEST, max_size=LONGEST).map(
        lambda rates: Row(schedule(rates), literal.sgd(rates.__getitem__))
    ),
    "decay": fractions.map(lambda rate: Row(decay(rate), literal.decay(rate))),
    "momentum": fractions.map(lambda mu: Row(momentum(mu), literal.heavy_ball(mu))),
    "momentum with decay": st.builds(
        lambda mu, rate: Row(momentum_with_decay(mu, rate), literal.heavy_ball(mu, rate)), fractions, fractions
    ),
    "averaging": st.builds(lambda: Row(averaging(), literal.polyak_average())),
    "sliding window": counts.map(lambda window: Row(sliding_window(window), literal.queue(window))),
    "segments": counts.map(lambda length: Row(segments(length), literal.minibatches(length))),
}
every_row = pytest.mark.parametrize("name", ROWS)

RATES = (0.3, 1.7, 0.9, 0.0, 1.1, 0.6, 1.3)
FIXED_ROWS = {
    "SGD": Row(sgd(), literal.sgd()),
    "step-size schedule": Row(schedule(RATES), literal.sgd(RATES.__getitem__)),
    "decay": Row(decay(0.2), literal.decay(0.2)),
    "momentum": Row(momentum(0.7), literal.heavy_ball(0.7)),
    "momentum with decay": Row(momentum_with_decay(0.7, 0.2), literal.heavy_ball(0.7, 0.2)),
    "averaging": Row(averaging(), literal.polyak_average()),
    "sliding window": Row(sliding_window(2), literal.queue(2)),
    "segments": Row(segments(3), literal.minibatches(3)),
}
every_fixed_row = pytest.mark.parametrize("name", FIXED_ROWS)
CONTROLS = {
    "Adam": literal.adam(),
    "clipping": literal.clipping(0.5),
    "sign": literal.sign(),
    "Muon": literal.muon(),
    "true sequential SGD": literal.sequential_sgd(),
}
every_control = pytest.mark.parametrize("name", CONTROLS)
FIXED = make_block_case(2, LONGEST, 4, 6, 5, FastSettings(chunk=3), seed=21, mask="real")
no_decay = {"decays": (0.0,), "max_batch": 2, "max_length": LONGEST}


def reading(case: BlockCase, optimizer: Optimizer | None) -> BlockCase:
    """The same block, read with the mask of ``optimizer``."""
    return with_settings(case, optimizer=optimizer)


def walked(case: BlockCase, walk: literal.Walk) -> list[list[FastParameters]]:
    return literal.walked(walk, case.x, case.labels, shares(case), case.slow, case.eta, case.settings.plain)


def logits_of(case: BlockCase, walk: literal.Walk) -> np.ndarray:
    """(B,T,V)   the optimizer run literally."""
    return literal.logits_at(walked(case, walk), case.x, case.labels, case.slow, case.settings.plain)


def moves_of(case: BlockCase, walk: literal.Walk) -> np.ndarray:
    """(B,T+1,P)   how far the optimizer, run literally, has moved the parameters."""
    return literal.moves(walked(case, walk), case.slow)


# The rows
# --------------------------------------------------------------------------------------------------------------------


@every_row
@given(case=block_cases(normalizers=EVERY_NORMALIZER, **no_decay), data=st.data())
def test_the_block_read_with_the_mask_is_the_optimizer_on_stale_gradients(name: str, case: BlockCase, data: st.DataObject) -> None:
    """logits'_t = slow block at theta_t, theta_t - theta_0 = - eta sum_{s<t} M_ts g_s, for every t:
    (O.1), (O.5) to (O.12), (O.23)
    """
    row = data.draw(ROWS[name], label=name)
    assert_close(run(reading(case, row.optimizer)).logits, logits_of(case, row.walk), what=row.optimizer.name)


@every_row
@given(case=block_cases(min_length=0, **no_decay), data=st.data())
def test_the_slots_hold_what_the_optimizer_has_moved(name: str, case: BlockCase, data: st.DataObject) -> None:
    """theta_T = theta_0 - eta read_T . slots_T for the slots that (O.23) leaves behind: (O.2)"""
    row = data.draw(ROWS[name], label=name)
    _, state = run(reading(case, row.optimizer))
    assert state.token == case.x.shape[1]
    sums = read_slots(row.optimizer, state)
    for b, thetas in enumerate(walked(case, row.walk)):
        final = FastParameters(*(p - e * s[b] for p, e, s in zip(case.slow, case.eta, sums, strict=False)))
        assert_trees_close(final, thetas[-1], what=row.optimizer.name, scale=1.0)


@every_row
@given(case=block_cases(min_length=0, **no_decay), data=st.data())
def test_pieces_chunks_and_streams_of_an_optimizer_are_the_whole(name: str, case: BlockCase, data: st.DataObject) -> None:
    """Cut anywhere, each piece in chunks of any size or token by token, slots carried: the same
    logits and slots. (O.2), (O.16), (O.18)
    """
    case = reading(case, data.draw(ROWS[name], label=name).optimizer)
    logits, state = run_in_pieces(case, None, data)
    whole, expected = run(case)
    assert_close(logits, whole)
    assert state.token == expected.token
    assert_trees_close(state.slots, expected.slots, what="slots", scale=float(LONGEST))


@every_fixed_row
def test_every_chunk_size_reads_the_same(name: str) -> None:
    """chunk = None, 1, ..., T + 2: the optimizer. (O.16), (O.23)"""
    case, expected = (reading(FIXED, FIXED_ROWS[name].optimizer), logits_of(FIXED, FIXED_ROWS[name].walk))
    for chunk in (None, *range(1, LONGEST + 3)):
        assert_close(run(with_settings(case, chunk=chunk)).logits, expected, what=f"chunk {chunk}")


def test_one_write_can_be_read_by_every_optimizer() -> None:
    """Write once, read with any mask: the memory knows nothing of the optimizer. (F.1), (O.23)"""
    (memory, _), _ = write_fwd(*FIXED[:4], FIXED.settings)
    for name, row in FIXED_ROWS.items():
        (logits, _), _ = read_fwd(memory, FIXED.x, FIXED.slow, FIXED.eta, FIXED.decay, None, reading(FIXED, row.optimizer).settings)
        assert_close(logits, logits_of(FIXED, row.walk), what=name)


@given(case=block_cases(**no_decay), seed=seeds)
def test_any_mask_is_the_optimizer_that_weighs_past_gradients_with_it(case: BlockCase, seed: int) -> None:
    """theta_t = theta_0 - eta sum_{s<t} M_ts g_s for a mask without any structure: T slots, one per
    gradient. (O.13)
    """
    weight = np.tril(generator(seed)(LONGEST + 1, LONGEST + 1), -1)  # one row more: the parameters after the last token

    def walk(theta0, eta, gradient, length):
        past = []
        for t in range(length):
            theta = theta0
            for s, g in enumerate(past):
                theta = literal.descend(theta, eta, tree_map(lambda x, t=t, s=s: weight[t, s] * x, g))
            yield theta
            past.append(gradient(t, theta0))

    assert_close(run(reading(case, any_mask(weight))).logits, logits_of(case, walk))


@every_fixed_row
@given(seed=seeds, t=st.integers(0, LONGEST - 1))
def test_no_optimizer_sees_the_future(name: str, seed: int, t: int) -> None:
    """logits'_{<=t} are the same bits whatever x_{>t}, y_{>=t}, w_{>=t} are: theorem 10 for every
    mask. (O.23)
    """
    case = reading(FIXED, FIXED_ROWS[name].optimizer)
    assert_future_is_invisible(block_logits(case), case[:3], t, case.slow.U.shape[1], seed)


@every_fixed_row
def test_an_optimizer_reads_in_float32_what_it_reads_in_float64(name: str) -> None:
    """dtype kept in logits, slots and gradients; |f32 - f64| <= c n 2^-24. (O.23)"""
    exact = make_block_case(2, LONGEST, 4, 6, 5, FastSettings(chunk=3, optimizer=FIXED_ROWS[name].optimizer), seed=22)
    single = lambda a: np.asarray(a, dtype="float32")  # noqa: E731
    case = exact._replace(**{f: tree_map(single, getattr(exact, f)) for f in ("x", "weights", "slow", "eta", "decay")})
    (logits, _, state), res = fast_block_fwd(*case)
    gradients = fast_block_bwd(np.ones_like(logits), state.slots, res)
    assert {a.dtype for a in leaves((logits, state.slots, gradients))} == {np.dtype("float32")}
    assert_close(logits, run(exact).logits, float32_bound(terms=64, stages=64))


# What they have in common
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.0, 0.1, 1.0])
def test_the_learned_decay_is_the_decaying_optimizer(rate: float) -> None:
    """lambda of the block = (O.7): logits, the one slot, and all gradients but that of lambda
    itself.
    """
    learned = FIXED._replace(decay=np.asarray(rate))
    (logits, _, state), res = fast_block_fwd(*learned)
    (masked, _, held), masked_res = fast_block_fwd(*reading(FIXED, decay(rate)))
    assert_close(masked, logits)
    assert_trees_close(tree_map(lambda s: s[:, 0], held.slots), state, scale=1.0)
    g_logits = generator(1)(*logits.shape)
    g_x, g_slow, g_eta, g_decay, _ = fast_block_bwd(g_logits, None, res)
    masked_gradients = fast_block_bwd(g_logits, None, masked_res)
    assert_trees_close(masked_gradients[:3], (g_x, g_slow, g_eta), scale=1.0)
    assert masked_gradients[3] == 0 != g_decay


@given(case=block_cases(masks=("ones", "real"), **no_decay), seed=seeds)
def test_a_schedule_is_a_weight_of_the_loss(case: BlockCase, seed: int) -> None:
    """eta_s g_s is the gradient of eta_s l_s: (O.6) with rates r = SGD with weights r w (constant
    normalizer).
    """
    rates = np.random.default_rng(seed).uniform(0, 2, LONGEST)
    weighed = case._replace(weights=case.weights * rates[: case.x.shape[1]])
    assert_close(run(reading(case, schedule(rates.tolist()))).logits, run(weighed).logits)


@given(case=block_cases(**no_decay), length=counts)
def test_a_segment_mask_is_the_block_read_segment_by_segment(case: BlockCase, length: int) -> None:
    """(O.12) = the default block, read before it is written, one segment after another; with L = 1
    the default block.
    """
    assert_close(run(reading(case, segments(length))).logits, segment_masked(case, length))
    assert_close(run(reading(case, segments(1))).logits, run(case).logits)


@pytest.mark.parametrize(
    "special",
    [sgd(), momentum(0.0), decay(0.0), momentum_with_decay(0.0, 0.0), schedule([1.0] * LONGEST), sliding_window(LONGEST), segments(1)],
    ids=lambda optimizer: optimizer.name,
)
def test_special_cases_are_plain_sgd(special: Optimizer) -> None:
    """mu = 0, lambda = 0, rates of 1, a window that holds everything, segments of one token: (O.5)
    and the default block.
    """
    assert_close(run(reading(FIXED, special)).logits, run(FIXED).logits)


def test_averaging_is_momentum_1_with_a_shrinking_step() -> None:
    """(t - s) / (t + 1): (O.10) is (O.8) at mu = 1, divided by t + 1."""
    assert_close(mask(averaging(), 9), mask(momentum(1.0), 9) / np.arange(1, 10)[:, None])


# Gradients
# -------------------------------------------------------------------------------------------------------------------


def block_of(case: BlockCase, token: int) -> tuple[Callable, Callable]:
    """The block as a function of (x, slow, eta, slots), reading from ``token`` on."""

    def fwd(x, slow, eta, held):
        state = OptimizerState(held, token)
        (logits, _, out), res = fast_block_fwd(x, case.labels, case.weights, slow, eta, case.decay, case.settings, state)
        return (logits, out.slots), res

    def bwd(g_output, res):
        g_x, g_slow, g_eta, g_decay, g_slots = fast_block_bwd(*g_output, res)
        assert g_decay == 0
        return g_x, g_slow, g_eta, g_slots

    return fwd, bwd


def slots_of(case: BlockCase, seed: int) -> FastParameters:
    """Slots as if something had been read before."""
    normal, lead = generator(seed), (case.x.shape[0], slots(case.settings.optimizer))
    return FastParameters(*(normal(*lead, *p.shape, scale=1e-3) for p in case.slow[:6]))


SMOOTH = with_steps(off_the_kink(make_block_case(1, 5, 3, 3, 3, FastSettings(chunk=2), seed=23, mask="real")), 0.3)


def divisors(case: BlockCase, seed: int) -> FastParameters:
    """A positive number for every entry of every fast parameter."""
    rng = np.random.default_rng(seed)
    return FastParameters(*(rng.uniform(0.5, 2.0, p.shape) for p in case.slow[:6]))


OPTIMIZERS = {name: row.optimizer for name, row in FIXED_ROWS.items()}
OPTIMIZERS["momentum, preconditioned"] = preconditioned(momentum(0.7), divisors(SMOOTH, 1))


# SGD is the block itself, of theorem 16
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[*([pytest.mark.slow] if n == "SGD" else []), *([] if n == "momentum, preconditioned" else [MORE_NUMBERS])])
        for n in OPTIMIZERS
    ],
)
def test_the_backward_pass_of_the_block_is_the_adjoint_for_every_optimizer(name: str) -> None:
    """<u, J v> = <J^T u, v> for x, slow, eta and the slots that come in: theorem 16 with the mask
    of (O.23); (O.17), (O.20)
    """
    case = reading(SMOOTH, OPTIMIZERS[name])
    args = (case.x, case.slow, case.eta, slots_of(case, 2))
    assert check_adjoint(*block_of(case, token=1), args, step=1e-5).checked == 1 + 8 + 6 + 6


def test_the_gradient_check_rejects_the_gradient_of_another_optimizer() -> None:
    """N: the backward pass of momentum 0.7 is not that of momentum 0.69."""
    case, other = reading(SMOOTH, momentum(0.7)), reading(SMOOTH, momentum(0.69))
    args = (case.x, case.slow, case.eta, slots_of(case, 2))
    fwd, bwd = block_of(case, token=1)
    with pytest.raises(AdjointError, match="they differ by"):
        check_adjoint(lambda *a: (fwd(*a)[0], a), lambda g, a: bwd(g, block_of(other, token=1)[0](*a)[1]), args, step=1e-5)


# Preconditioning
# -------------------------------------------------------------------------------------------------------------


@given(case=block_cases(**no_decay), seed=seeds)
def test_the_rms_rule_is_a_sum_of_heads(case: BlockCase, seed: int) -> None:
    """p_t = p - eta (sum_{s<t} g_s) / R: (Y.2) stale, and the block with the heads of 1 / R:
    (O.20), (O.21)
    """
    divisor = divisors(case, seed)
    assert_close(run(reading(case, preconditioned(sgd(), divisor))).logits, logits_of(case, literal.rms(divisor)))


def test_the_rms_rule_with_statistics_of_real_gradients_is_a_sum_of_heads() -> None:
    """R = sqrt(MS) + eps from token gradients (Y.3), as dynamic evaluation uses it: (O.20)"""
    gradients = [token_gradient(FIXED, b, slice(t, t + 1)) for b in range(2) for t in range(LONGEST)]
    divisor = rms_scale(mean_square(gradients)).divisor
    case = with_steps(FIXED, 0.1)
    expected = logits_of(case, literal.rms(divisor))
    optimizer = preconditioned(sgd(), divisor)
    assert_close(run(reading(case, optimizer)).logits, expected)
    assert_close(run_stream(reading(case, optimizer)).logits, expected)
    assert relative_error(run(case).logits, expected) > CLEAR


@every_fixed_row
def test_every_optimizer_can_be_preconditioned(name: str) -> None:
    """The optimizer on g / R: the same mask for every head, one state of plain gradients, in pieces
    and in a stream. (O.20)
    """
    row, divisor = FIXED_ROWS[name], divisors(FIXED, 3)

    def divided(theta0, eta, gradient, length):
        yield from row.walk(theta0, eta, lambda t, theta: tree_map(lambda g, r: g / r, gradient(t, theta), divisor), length)

    case, expected = (reading(FIXED, preconditioned(row.optimizer, divisor)), logits_of(FIXED, divided))
    logits, state = run(case)
    assert_close(logits, expected)
    assert_trees_close(state.slots, run(reading(FIXED, row.optimizer)).state.slots, scale=1.0)
    first, state = run(tokens(case, slice(0, 3)))
    second, _ = run_stream(tokens(case, slice(3, None)), state)
    assert_close(np.concatenate([first, second], axis=1), expected)


@given(seed=seeds, width=st.integers(1, 5), values=st.integers(1, 5), rank=st.integers(1, 3))
def test_dividing_an_outer_product_is_a_sum_of_rank_heads(seed: int, width: int, values: int, rank: int) -> None:
    """(x^T d) / R = sum_r (x u_r)^T (d w_r) with rank(1 / R) heads: (O.21)"""
    rng = np.random.default_rng(seed)
    inverse = sum(np.outer(rng.uniform(0.5, 2, width), rng.uniform(0.5, 2, values)) for _ in range(rank))
    u, w = preconditioned_heads(1 / inverse)
    assert u.shape[0] == w.shape[0] == min(rank, width, values)
    x, d = rng.standard_normal(width), rng.standard_normal(values)
    assert_close(sum(np.outer(x * a, d * b) for a, b in zip(u, w, strict=True)), np.outer(x, d) * inverse)


@given(seed=seeds, width=st.integers(1, 6), values=st.integers(1, 6))
def test_a_divisor_that_factors_is_one_head_with_rescaled_keys_and_values(seed: int, width: int, values: int) -> None:
    """R = a^T b: (x^T d) / R = (x / a)^T (d / b), one head: (O.22)"""
    rng = np.random.default_rng(seed)
    a, b = rng.uniform(0.1, 3, width), rng.uniform(0.1, 3, values)
    u, w = preconditioned_heads(np.outer(a, b))
    assert u.shape == (1, width) and w.shape == (1, values)
    x, d = rng.standard_normal(width), rng.standard_normal(values)
    assert_close(np.outer(x * u[0], d * w[0]), np.outer(x / a, d / b))


def test_a_block_whose_divisors_factor_is_the_block_with_a_rescaled_memory() -> None:
    """R of weight and bias = a^T b with a_bias = 1: read (O.20) with one head = read a memory of
    keys x / a and values dh / b: (O.22)
    """
    rng = np.random.default_rng(4)
    a1, b1, a2, b2, gain, bias = (rng.uniform(0.5, 2, n) for n in (4, 6, 6, 4, 4, 4))
    divisor = FastParameters(np.outer(a1, b1), b1, np.outer(a2, b2), b2, gain, bias)
    (m, _), _ = write_fwd(*FIXED[:4], FIXED.settings)
    rescaled = m._replace(x=m.x / a1, dh=m.dh / b1, a=m.a / a2, dz=m.dz / b2, dgain=m.dgain / gain, dbias=m.dbias / bias)
    (expected, _), _ = read_fwd(rescaled, FIXED.x, FIXED.slow, FIXED.eta, FIXED.decay, None, FIXED.settings)
    assert_close(run(reading(FIXED, preconditioned(sgd(), divisor))).logits, expected)


# Negative controls
# -----------------------------------------------------------------------------------------------------------


def weighing(case: BlockCase, weights: np.ndarray) -> BlockCase:
    return case._replace(weights=weights)


def superposition_error(walk: literal.Walk) -> tuple[float, float]:
    """Stale gradients are linear in the weights w of the losses. How far are moves from being so:
    D(w) + D(w') and 2 D(w)?
    """
    rng = np.random.default_rng(5)
    one, two = (rng.uniform(0.5, 1.5, FIXED.weights.shape), rng.uniform(0.5, 1.5, FIXED.weights.shape))
    first, second, both, twice = (moves_of(weighing(FIXED, w), walk) for w in (one, two, one + two, 2 * one))
    return relative_error(both, first + second), relative_error(twice, 2 * first)


@every_fixed_row
def test_the_moves_of_every_row_superpose(name: str) -> None:
    """E: D(g + g') = D(g) + D(g') and D(2 g) = 2 D(g), as they must for - eta sum M_ts g_s: (O.1)"""
    assert max(superposition_error(FIXED_ROWS[name].walk)) <= RTOL


@every_control
def test_the_moves_of_a_control_do_not_superpose(name: str) -> None:
    """N: Adam, clipping, sign, Muon and gradients at the current weights are no mask, whatever the
    mask: (O.1) superposes.
    """
    assert min(superposition_error(CONTROLS[name])) > CLEAR


def nearest_mask(cases: list[BlockCase], walk: literal.Walk) -> np.ndarray:
    """(T,T)   the one mask that comes nearest to the moves of ``walk`` on all cases, by least
    squares.
    """
    pairs = [(moves_of(case, walk), np.diff(moves_of(case, literal.sgd()), axis=1)) for case in cases]  # (B,T+1,P), (B,T,P)
    found = np.zeros((LONGEST, LONGEST))
    for t in range(1, LONGEST):
        steps = np.concatenate([np.reshape(np.moveaxis(g[:, :t], 1, -1), (-1, t)) for _, g in pairs])  # -eta g_s, one column per s
        moved = np.concatenate([np.ravel(moves[:, t]) for moves, _ in pairs])
        found[t, :t] = np.linalg.lstsq(steps, moved, rcond=None)[0]
    return found


def mask_error(optimizer: Optimizer, walk: literal.Walk, cases: list[BlockCase]) -> float:
    """The comparison of the rows: the largest error of the block read with a mask against the
    optimizer run literally.
    """
    return max(relative_error(run(reading(case, optimizer)).logits, logits_of(case, walk)) for case in cases)


DATA = [FIXED, weighing(FIXED, 2 * FIXED.weights)]  # clipping is a mask for each of them, but not the same one


@every_fixed_row
def test_the_nearest_mask_of_every_row_is_its_mask(name: str) -> None:
    """E: least squares find (O.5) to (O.12) from the moves alone, and the comparison accepts what
    they find: (O.13)
    """
    row = FIXED_ROWS[name]
    found = nearest_mask(DATA, row.walk)
    assert_close(found, mask(row.optimizer, LONGEST), scale=1.0)
    assert mask_error(row.optimizer, row.walk, DATA) <= RTOL
    assert mask_error(any_mask(found), row.walk, DATA) <= RTOL


@every_control
def test_the_comparison_rejects_every_control_against_its_nearest_mask(name: str) -> None:
    """N: the best of all masks is not the optimizer: (O.13) leaves an error far above the tolerance"""
    walk = CONTROLS[name]
    assert mask_error(any_mask(nearest_mask(DATA, walk)), walk, DATA) > CLEAR


def test_clipping_is_a_mask_on_one_text_and_another_on_the_next() -> None:
    """N: min(1, c / |g_s|) scales columns as a schedule does, but the rates depend on the
    gradients: no fixed mask serves two texts.
    """
    walk = CONTROLS["clipping"]
    for case in DATA:
        one = [tokens(case._replace(x=case.x[:1], labels=case.labels[:1], weights=case.weights[:1]), slice(None))]
        assert mask_error(any_mask(nearest_mask(one, walk)), walk, one) <= RTOL
    assert mask_error(any_mask(nearest_mask(DATA, walk)), walk, DATA) > CLEAR


@every_fixed_row
def test_the_comparison_tells_every_row_from_every_other(name: str) -> None:
    """N: each optimizer against the masks of the seven others: (O.5) to (O.12)"""
    for other, row in FIXED_ROWS.items():
        error = mask_error(row.optimizer, FIXED_ROWS[name].walk, [FIXED])
        assert (error <= RTOL) if other == name else (error > CLEAR), f"{name} read as {other}: {error:.3g}"


MUTANTS = {
    "one token late": lambda o: o._replace(**{f: (lambda t, table=getattr(o, f): table(t + 1)) for f in ("keep", "write", "read")}),
    "writes twice": lambda o: o._replace(write=lambda t: [2 * w for w in o.write(t)]),
    "keeps nothing": lambda o: o._replace(keep=lambda t: [[0.0 * a for a in row] for row in o.keep(t)]),
    "keeps transposed": lambda o: o._replace(keep=lambda t: [list(row) for row in zip(*o.keep(t), strict=True)]),
}


@pytest.mark.parametrize("mutant", MUTANTS)
@pytest.mark.parametrize("name", ["averaging", "segments"])
def test_the_comparison_rejects_a_row_with_a_wrong_table(name: str, mutant: str) -> None:
    """N: one wrong table of (O.2) is found"""
    row = FIXED_ROWS[name]
    assert mask_error(MUTANTS[mutant](row.optimizer), row.walk, [FIXED]) > CLEAR


def test_a_slot_state_that_forgets_its_token_is_noticed() -> None:
    """N: averaging divides by t + 1, so slots without the number of tokens they have seen are not a
    state
    """
    case = reading(FIXED, averaging())
    whole, _ = run(case)
    _, state = run(tokens(case, slice(0, 3)))
    rest = tokens(case, slice(3, None))
    assert_close(run(rest, state).logits, whole[:, 3:])
    assert relative_error(run(rest, state._replace(token=0)).logits, whole[:, 3:]) > CLEAR


def test_the_literal_side_imports_no_fast_weight_code() -> None:
    """literal.py reaches dynamic evaluation and the slow block, which tests/test_structure.py keeps
    apart from the read.
    """
    names = {getattr(value, "__module__", "") for value in vars(literal).values()}
    assert "fwl_ref.dynamic_evaluation" in names
    apart = {"fwl_ref.fast_layer", "fwl_ref.fwl", "fwl_ref.stream", optimizers.__name__, "fwl_ref.ops.masked_attention"}
    assert not names & apart
