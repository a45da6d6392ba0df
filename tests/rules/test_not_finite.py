"""A number that is not finite does not travel against the order of time, in any form of any rule: not
from a token to the outputs before it; not, in a backward pass, from a cotangent to the gradients
of the tokens after it; and not from a token that no cotangent asks for to any gradient at all.

A docstring that opens with "N:" is a negative control.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

from fwl_ref.rules import mesa, titans, titans_mlp, ttt_linear, ttt_mlp
from fwl_ref.rules.common import READS, asked_for
from fwl_ref.rules.longhorn import longhorn_rate, longhorn_rate_bwd
from fwl_ref.rules.mesa import MesaState, mesa_chunked_bwd, mesa_chunked_fwd
from fwl_ref.tree import leaves, rebuild, tree_map, zeros_like
from tests.rules import several_arrays
from tests.rules.table import Shape, unit_keys
from tests.rules.test_laws import FORMS, RULES, pair
from tests.strategies import MORE_NUMBERS, arrays, first_elsewhere, generator
from tests.tolerances import assert_bitwise, assert_close, assert_trees_close

SHAPE, SEED, TOKEN = Shape(2, 7, 3, 3), 5, 4  # one token of seven is spoilt, in the second sequence only
CHUNKS = (None, 1, 3, 5)
BAD = pytest.mark.parametrize("bad", first_elsewhere([np.nan, np.inf]))
every_read = pytest.mark.parametrize("read", READS)


class Form(NamedTuple):
    """One function of tokens and state; ``bwd`` takes the cotangents of both outputs."""

    name: str
    fwd: Callable
    bwd: Callable
    tokens: tuple  # q, k, v, rates
    state: Any


def forms(read: str) -> list[Form]:
    """Every row of the tables, the chunked forms with several chunks, and those whose chunk is part of
    the function.
    """
    found = []
    for rule, form in FORMS:
        for chunk in CHUNKS if form == "chunked" else (None,):
            fwd, bwd = pair(rule, form, read, chunk)
            found.append(Form(f"{rule.name}, {form} by {chunk}", fwd, bwd, rule.tokens(SHAPE, SEED), rule.state(SHAPE, SEED)))
    draws = several_arrays.ttt_tokens(SHAPE, SEED)
    for module, state in ((ttt_linear, several_arrays.linear_state), (ttt_mlp, several_arrays.mlp_state)):
        name = module.__name__.rsplit(".", 1)[-1]
        for form in ("recurrent", "dual"):
            both = (getattr(module, f"{name}_{form}_{way}") for way in ("fwd", "bwd"))
            fwd, bwd = several_arrays.fixed(*both, norm=True, minibatch=3)
            found.append(Form(f"{name}, {form}, mini-batches of 3", with_read(fwd, read), apart(bwd), draws, state(SHAPE, SEED)))
    for form in ("recurrent", "dual"):
        both = (getattr(titans_mlp, f"titans_mlp_{form}_{way}") for way in ("fwd", "bwd"))
        fwd, bwd = several_arrays.fixed(*both, norm=True, minibatch=3, rates=3)
        draws, state = several_arrays.titans_mlp_tokens(SHAPE, SEED), several_arrays.titans_mlp_state(SHAPE, SEED)
        found.append(Form(f"titans_mlp, {form}, mini-batches of 3", with_read(fwd, read), apart(bwd), draws, state))
    tokens, state = several_arrays.titans_tokens(SHAPE, SEED), several_arrays.titans_state(SHAPE, SEED)
    for chunk in CHUNKS:
        fwd = with_read(lambda *case, chunk=chunk, read: titans.titans_stale_fwd(*case, chunk, read=read), read)
        found.append(Form(f"titans, stale by {chunk}", fwd, apart(titans.titans_stale_bwd), tokens, state))
    return found


def with_read(fwd: Callable, read: str) -> Callable:
    return lambda *case: fwd(*case, read=read)


def apart(bwd: Callable) -> Callable:
    return lambda d_output, res: bwd(*d_output, res)


def spoilt(a: np.ndarray, bad: float) -> np.ndarray:
    """One entry of one token of one sequence."""
    a = a.copy()
    a[(1, TOKEN, *(0,) * (a.ndim - 2))] = bad
    return a


ALL_FORMS = {read: forms(read) for read in READS}
NAMES = [form.name for form in ALL_FORMS["strict"]]
SAME_CALLS = (" by 1", " by 5")  # those of chunks of 3, with other numbers
every_form = pytest.mark.parametrize(
    "index", [pytest.param(i, id=name, marks=[MORE_NUMBERS] if name.endswith(SAME_CALLS) else []) for i, name in enumerate(NAMES)]
)


@every_form
@every_read
@BAD
def test_what_is_not_finite_leaves_the_outputs_before_it_as_they_are(index: int, read: str, bad: float) -> None:
    """o_{<s}, and o_s of a strict read, keep their bits when an entry of k_s, v_s or a rate of token s
    is NaN or infinite; later ones do not stay finite. The other sequence keeps all its bits.
    """
    form = ALL_FORMS[read][index]
    clean = TOKEN + (read == "strict")
    (expected, _), _ = form.fwd(*form.tokens, form.state)
    for i in range(1, len(form.tokens)):
        tokens = (*form.tokens[:i], spoilt(form.tokens[i], bad), *form.tokens[i + 1 :])
        with np.errstate(all="ignore"):
            (out, _), _ = form.fwd(*tokens, form.state)
        assert_bitwise(out[:, :clean], expected[:, :clean], f"argument {i}")
        assert_bitwise(out[0], expected[0], f"argument {i}")
        for t in range(clean, SHAPE.length):
            assert not np.all(np.isfinite(out[1, t])), f"argument {i}: token {t} read what is not finite"


@every_read
@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.chunked], ids=[rule.name for rule in RULES if rule.chunked])
def test_both_forms_spoil_the_same_entries(rule: Any, read: str) -> None:
    """The chunked form is finite exactly where the recurrent one is, in outputs and in the final
    state, for a NaN in one entry of k_s, v_s or a rate.
    """
    tokens, state = rule.tokens(SHAPE, SEED), rule.state(SHAPE, SEED)
    for i in range(1, len(tokens)):
        case = (*tokens[:i], spoilt(tokens[i], np.nan), *tokens[i + 1 :], state)
        with np.errstate(all="ignore"):
            expected, _ = pair(rule, "recurrent", read)[0](*case)
            for chunk in CHUNKS:
                actual, _ = pair(rule, "chunked", read, chunk)[0](*case)
                for a, b in zip(leaves(actual), leaves(expected), strict=True):
                    assert np.array_equal(np.isfinite(a), np.isfinite(b)), f"argument {i}, chunk {chunk}"


@every_form
@every_read
@BAD
def test_the_gradient_of_an_earlier_query_does_not_see_what_is_not_finite(index: int, read: str, bad: float) -> None:
    """dq_t depends on dout_t and on what token t reads, so dq_{<s}, and dq_s of a strict read, keep
    their bits.
    """
    form = ALL_FORMS[read][index]
    clean = TOKEN + (read == "strict")
    (out, _), res = form.fwd(*form.tokens, form.state)
    dout = generator(SEED + 9)(*out.shape)
    expected = form.bwd((dout, None), res)[0]
    for i in range(1, len(form.tokens)):
        tokens = (*form.tokens[:i], spoilt(form.tokens[i], bad), *form.tokens[i + 1 :])
        with np.errstate(all="ignore"):
            dq = form.bwd((dout, None), form.fwd(*tokens, form.state)[1])[0]
        assert_bitwise(dq[:, :clean], expected[:, :clean], f"argument {i}")


@every_form
@every_read
@BAD
def test_a_cotangent_or_query_that_is_not_finite_leaves_the_gradients_of_later_tokens(index: int, read: str, bad: float) -> None:
    """dk_j, dv_j and d rate_j of j > t, and of t itself in a strict read, and every dq but dq_t, keep
    their bits when an entry of dout_t or q_t is NaN or infinite: nobody after t was read by t.
    """
    form = ALL_FORMS[read][index]
    first = TOKEN + (read == "inclusive")
    (out, _), res = form.fwd(*form.tokens, form.state)
    dout = generator(SEED + 9)(*out.shape)
    dq, *expected, _ = form.bwd((dout, None), res)
    with np.errstate(all="ignore"):
        from_cotangent = form.bwd((spoilt(dout, bad), None), res)
        from_query = form.bwd((dout, None), form.fwd(spoilt(form.tokens[0], bad), *form.tokens[1:], form.state)[1])
    others = np.arange(SHAPE.length) != TOKEN
    for found_dq, *found, _ in (from_cotangent, from_query):
        assert_bitwise(found_dq[:, others], dq[:, others], "dq")
        for i, (a, b) in enumerate(zip(found, expected, strict=True), start=1):
            assert_bitwise(a[:, first:], b[:, first:], f"gradient {i}")
            assert_bitwise(a[0], b[0], f"gradient {i}")


@every_form
@every_read
@BAD
def test_a_cotangent_of_the_final_state_that_is_not_finite_leaves_the_gradients_of_queries(index: int, read: str, bad: float) -> None:
    """dq_t depends on dout_t alone, and the other sequence on nothing of this one: they keep their
    bits when an entry of dstate is NaN or infinite.
    """
    form = ALL_FORMS[read][index]
    (out, state), res = form.fwd(*form.tokens, form.state)
    draw = generator(SEED + 9)
    dout, dstate = draw(*out.shape), tree_map(lambda a: draw(*a.shape), state)
    expected = form.bwd((dout, dstate), res)
    for entry in range(len(leaves(dstate))):
        spoilt_leaves = [a.copy() for a in leaves(dstate)]
        spoilt_leaves[entry][(1, *(0,) * (spoilt_leaves[entry].ndim - 1))] = bad
        with np.errstate(all="ignore"):
            found = form.bwd((dout, rebuild(dstate, spoilt_leaves)), res)
        assert_bitwise(found[0], expected[0], "dq")
        for a, b in zip(leaves(found), leaves(expected), strict=True):
            assert_bitwise(a[0], b[0], "the other sequence")


def unasked(i: int, read: str) -> slice:
    """The tokens whose outputs must have no cotangent, so that none asks for argument i of TOKEN: for
    its query the token itself, else all from there on, or from the next if reads are strict.
    """
    return slice(TOKEN, TOKEN + 1) if i == 0 else slice(TOKEN + (read == "strict"), None)


@every_form
@every_read
@BAD
def test_what_no_cotangent_asks_for_leaves_every_gradient_as_it_is(index: int, read: str, bad: float) -> None:
    """If dout is 0 from a token on and the final state unused (for its query: if dout is 0 at the
    token), all gradients, those of the state that comes in included, are what they are with a
    finite token: that is a zero of structure, not 0 times NaN. The token's own are 0.
    """
    form = ALL_FORMS[read][index]
    (out, state), res = form.fwd(*form.tokens, form.state)
    for i in range(len(form.tokens)):
        dout = generator(SEED + 9)(*out.shape)
        dout[:, unasked(i, read)] = 0
        expected = form.bwd((dout, None), res)
        assert np.all(expected[i][:, TOKEN] == 0)
        tokens = (*form.tokens[:i], spoilt(form.tokens[i], bad), *form.tokens[i + 1 :])
        for dstate in (None, zeros_like(state)):
            with np.errstate(all="ignore"):
                found = form.bwd((dout, dstate), form.fwd(*tokens, form.state)[1])
            assert_trees_close(found, expected, what=f"argument {i}", scale=1.0)


@every_form
@every_read
def test_what_a_cotangent_does_ask_for_is_seen(index: int, read: str) -> None:
    """N: with a cotangent of one later output, or of the final state alone, the same token spoils
    gradients, and its query with one of its own output: nothing that counts is taken out.
    """
    form = ALL_FORMS[read][index]
    (out, state), _ = form.fwd(*form.tokens, form.state)
    own, late, none = np.zeros(out.shape), np.zeros(out.shape), np.zeros(out.shape)
    own[:, TOKEN], late[:, -1] = 1, 1
    for i in range(len(form.tokens)):
        tokens = (*form.tokens[:i], spoilt(form.tokens[i], np.nan), *form.tokens[i + 1 :])
        for d_output in ((late, None), (none, tree_map(np.ones_like, state))) if i else ((own, None),):
            with np.errstate(all="ignore"):
                found = form.bwd(d_output, form.fwd(*tokens, form.state)[1])
            assert not all(np.all(np.isfinite(a[1])) for a in leaves(found)), f"argument {i}"


@every_read
@BAD
@pytest.mark.parametrize("kind", ["recurrent", "dual"])
def test_a_factor_that_no_cotangent_asks_for_leaves_every_gradient_as_it_is(kind: str, read: str, bad: float) -> None:
    """TTT's factor belongs to the token that reads, in a strict read too: with a cotangent of earlier
    outputs alone it may be anything, and its own gradient is 0.
    """
    tokens, network = several_arrays.ttt_tokens(SHAPE, SEED), several_arrays.linear_state(SHAPE, SEED)
    fwd, bwd = (getattr(ttt_linear, f"ttt_linear_{kind}_{way}") for way in ("fwd", "bwd"))
    factor, norm = np.full(SHAPE[:2], 0.7), several_arrays.gain_and_bias(SHAPE.values)
    dout = generator(SEED + 9)(SHAPE.batch, SHAPE.length, SHAPE.values)
    dout[:, TOKEN:] = 0

    def gradients(factor: np.ndarray) -> tuple:
        with np.errstate(all="ignore"):
            _, res = fwd(*tokens, *norm, network, minibatch=3, read=read, eps=1.0, factor=factor)
            return bwd(dout, None, res)

    expected = gradients(factor)
    assert np.all(expected[4][:, TOKEN] == 0) and np.any(expected[4][:, TOKEN - 2] != 0)
    assert_trees_close(gradients(spoilt(factor, bad)), expected, scale=1.0)


@every_form
def test_what_is_finite_is_not_taken_out(index: int) -> None:
    """A finite residual keeps its bits, asked for or not: LayerNorm with epsilon 0 has no value at 0."""
    form = ALL_FORMS["strict"][index]
    (out, _), res = form.fwd(*form.tokens, form.state)
    parts = res if isinstance(res, tuple) and not hasattr(res, "_fields") else getattr(res, "parts", [getattr(res, "delta", res)])
    for part in [p for p in parts if hasattr(p, "q")]:
        found = asked_for(np.zeros((*part.q.shape[:2], out.shape[-1])), None, part)
        for a, b in zip(arrays(found), arrays(part), strict=True):
            assert_bitwise(a, b)


@every_read
@pytest.mark.parametrize("form", ["recurrent", "other"])
def test_what_no_cotangent_asks_for_leaves_the_gradients_of_shared_parameters(form: str, read: str) -> None:
    """The ridge, and LayerNorm's gain and bias, are shared by all tokens: their gradients are sums over
    those that count.
    """
    draws, (gain, bias), lam = several_arrays.ttt_tokens(SHAPE, SEED), several_arrays.gain_and_bias(3), several_arrays.ridge(3)
    keep = several_arrays.mesa_tokens(SHAPE, SEED)
    case = {
        ttt_linear: (draws, (gain, bias, several_arrays.linear_state(SHAPE, SEED)), {"minibatch": 3}, "dual"),
        ttt_mlp: (draws, (gain, bias, several_arrays.mlp_state(SHAPE, SEED)), {"minibatch": 3}, "dual"),
        mesa: (keep, (lam, several_arrays.mesa_state(SHAPE, SEED)), {}, "chunked"),
    }
    for module, (tokens, rest, how, other) in case.items():
        name = f"{module.__name__.rsplit('.', 1)[-1]}_{other if form == 'other' else form}"
        fwd, bwd = (getattr(module, f"{name}_{way}") for way in ("fwd", "bwd"))
        (out, _), res = fwd(*tokens, *rest, **how, read=read)
        for i in range(len(tokens)):
            dout = generator(SEED + 9)(*out.shape)
            dout[:, unasked(i, read)] = 0
            expected = bwd(dout, None, res)
            bad = (*tokens[:i], spoilt(tokens[i], np.nan), *tokens[i + 1 :])
            with np.errstate(all="ignore"):
                found = bwd(dout, None, fwd(*bad, *rest, **how, read=read)[1])
            assert_trees_close(found, expected, what=f"{name}, argument {i}", scale=1.0)


@pytest.mark.parametrize("form", ["recurrent", "chunked"])
@every_read
def test_longhorn_takes_no_square_of_a_key(form: str, read: str) -> None:
    """Keys and values of 1e200: the step is k^T (k S - v) / |k|^2, which has neither the square nor
    overflows. With (k, v, beta) -> (c k, c v, beta / c^2) the outputs are the same, and the
    gradients are theirs divided by c, c and 1 / c^2.
    """
    rule = next(rule for rule in RULES if rule.name == "longhorn")
    (q, k, v, beta), state = rule.tokens(SHAPE, SEED), rule.state(SHAPE, SEED)
    fwd, bwd = pair(rule, form, read, *([3] if form == "chunked" else []))
    # so large a beta that 1 is nothing beside beta |k|^2
    (expected, expected_end), res = fwd(q, k, v, np.full_like(beta, 1e40), state)
    dout = generator(SEED + 9)(*expected.shape)
    gradients = bwd((dout, None), res)
    (out, end), res = fwd(q, 1e200 * k, 1e200 * v, beta, state)
    found = bwd((dout, None), res)
    assert_trees_close((out, end), (expected, expected_end), scale=1.0)
    for a, b, size in zip(found, gradients, (1, 1e200, 1e200, 0, 1), strict=True):
        assert_close(a * size, b if size else 0 * b, scale=1.0)
    k[..., 0] *= 1e200  # one channel alone
    (out, end), res = fwd(q, k, v, beta, state)
    assert all(np.all(np.isfinite(a)) for a in leaves((out, end, bwd((dout, None), res))))


def test_the_rate_of_longhorn_is_the_explicit_one_of_an_implicit_step() -> None:
    """beta / (1 + beta |k|^2) and its derivatives: dk = -2 beta'^2 k, dbeta = 1 / (1 + beta |k|^2)^2   (U.40), (U.41)"""
    k, beta = np.asarray([[3.0, 4.0], [0.0, 1.0]]), np.asarray([0.5, 2.0])
    rate = np.asarray([0.5 / 13.5, 2 / 3])
    assert_close(longhorn_rate(k, beta), rate)
    dk, dbeta = longhorn_rate_bwd(np.ones(2), k, beta)
    assert_close(dk, -2 * rate[:, None] ** 2 * k)
    assert_close(dbeta, np.asarray([1 / 13.5**2, 1 / 9]))


@pytest.mark.parametrize("form", ["chunked"])
@every_read
def test_mesa_takes_no_square_of_a_query(form: str, read: str) -> None:
    """The outputs are linear in q, also where one channel of it is 1e200: conjugate gradients work at unit size."""
    rule = next(rule for rule in RULES if rule.name == "mesa")
    (q, *tokens), state = rule.tokens(SHAPE, SEED), rule.state(SHAPE, SEED)
    fwd, _ = pair(rule, form, read)
    q[..., 0] = 0
    one = np.zeros_like(q)
    one[..., 0] = 1
    expected = fwd(one, *tokens, state)[0][0]
    assert_close(fwd(q + 1e200 * one, *tokens, state)[0][0] / 1e200, expected, scale=1.0)


@pytest.mark.parametrize("form", ["recurrent", "chunked"])
def test_mesa_squares_its_keys(form: str) -> None:
    """The limit that its page states: H is carried, so where weight |k|^2 overflows the memory is not
    finite from then on; values of that size, which are not squared, are no harm.
    """
    rule = next(rule for rule in RULES if rule.name == "mesa")
    (q, k, v, keep, weight), state = rule.tokens(SHAPE, SEED), rule.state(SHAPE, SEED)
    fwd, bwd = pair(rule, form, "strict")
    empty = zeros_like(state)
    (expected, _), res = fwd(q, k, v, keep, weight, empty)
    dout = generator(SEED + 9)(*expected.shape)
    gradients = bwd((dout, None), res)
    (out, _), res = fwd(q, k, 1e200 * v, keep, weight, empty)
    found = bwd((dout, None), res)
    assert_close(out / 1e200, expected, scale=1.0)
    for a, b, size in zip(leaves(found), leaves(gradients), (1e200, 1e200, 1, 1e200, 1e200, 1, 1e200), strict=True):
        assert_close(a / size, b, scale=1.0)
    k[1, TOKEN] = 1e200
    with np.errstate(all="ignore"):
        (out, end), _ = fwd(q, k, v, keep, weight, empty)
    assert_bitwise(out[:, : TOKEN + 1], expected[:, : TOKEN + 1])
    assert_bitwise(out[0], expected[0])
    assert not np.any(np.isfinite(end.H[1])) and not np.any(np.isfinite(out[1, TOKEN + 1 :]))


@pytest.mark.parametrize(("dtype", "size"), [("float32", 2.0**24), ("float64", 2.0**60), ("float32", 1e30), ("float32", 1e-30)])
@every_read
def test_the_backward_pass_of_mesa_is_linear_in_its_cotangent_at_any_size(dtype: str, size: float, read: str) -> None:
    """bwd(size dout) = size bwd(dout): tokens whose conjugate gradients are done stand still, and no
    square of a large or small number is taken.   (W.28), (W.29)
    """
    n = Shape(2, 9, 3, 2)
    draw = generator(3)
    q, k, v = draw(n.batch, n.length, n.width), unit_keys(draw, n.batch, n.length, n.width), draw(n.batch, n.length, n.values)
    keep, weight = np.full((n.batch, n.length), 0.9), np.full((n.batch, n.length), 0.5)
    state = MesaState(np.zeros((n.batch, n.width, n.values)), np.zeros((n.batch, n.width, n.width)))
    case = [a.astype(dtype) for a in (q, k, v, keep, weight, several_arrays.ridge(n.width))]
    (out, _), res = mesa_chunked_fwd(*case, MesaState(*(a.astype(dtype) for a in state)), 4, read=read)
    dout = draw(*out.shape).astype(dtype)
    once, scaled = (mesa_chunked_bwd(np.asarray(c, dtype) * dout, None, res) for c in (1, size))
    for a, b in zip(leaves(scaled), leaves(once), strict=True):
        assert np.all(np.isfinite(a))
        assert_close(a / np.asarray(size, dtype), b, 64 * float(np.finfo(dtype).eps))
