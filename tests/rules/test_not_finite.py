"""A number that is not finite does not travel against the order of time, in any form of any rule: not
from a token to the outputs before it, and not, in a backward pass, from a cotangent to the
gradients of the tokens after it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

from fwl_ref.rules import titans, ttt_linear, ttt_mlp
from fwl_ref.rules.common import READS
from fwl_ref.rules.mesa import MesaState, mesa_chunked_bwd, mesa_chunked_fwd
from fwl_ref.tree import leaves
from tests.rules import several_arrays
from tests.rules.table import Shape, unit_keys
from tests.rules.test_laws import FORMS, RULES, pair
from tests.strategies import generator
from tests.tolerances import assert_bitwise, assert_close

SHAPE, SEED, TOKEN = Shape(2, 7, 3, 3), 5, 4  # one token of seven is spoilt, in the second sequence only
CHUNKS = (None, 1, 3, 5)
BAD = pytest.mark.parametrize("bad", [np.nan, np.inf])
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
every_form = pytest.mark.parametrize("index", range(len(NAMES)), ids=NAMES)


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
