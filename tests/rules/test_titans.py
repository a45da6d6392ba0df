"""Titans with a linear memory: heavy ball run literally, the chunked form that is exact, the stale
one that is another function.

What follows an "N:" is a negative control.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwl_ref.gradcheck import AdjointError, check_adjoint
from fwl_ref.rules import heavy_ball, titans
from fwl_ref.rules.common import READS
from fwl_ref.rules.delta import delta_chunked_bwd, delta_chunked_fwd
from fwl_ref.rules.gated_delta import gated_delta_recurrent_fwd
from fwl_ref.rules.titans import (
    TitansState,
    titans_chunked_bwd,
    titans_chunked_fwd,
    titans_recurrent_bwd,
    titans_recurrent_fwd,
    titans_stale_bwd,
    titans_stale_fwd,
)
from fwl_ref.rules.titans_per_chunk import (
    titans_per_chunk_chunked_bwd,
    titans_per_chunk_chunked_fwd,
    titans_per_chunk_recurrent_bwd,
    titans_per_chunk_recurrent_fwd,
    titans_per_chunk_stale_bwd,
    titans_per_chunk_stale_fwd,
)
from fwl_ref.rules.ttt_linear import TTTLinearState, ttt_linear_recurrent_fwd
from tests.rules.several_arrays import titans_state, titans_tokens
from tests.rules.table import Shape, rates
from tests.strategies import chunks, generator, seeds
from tests.tolerances import assert_close, assert_trees_close, relative_error

shapes = st.builds(Shape, *(st.integers(low, high) for low, high in ((1, 2), (0, 7), (1, 4), (1, 3))))
every_read = pytest.mark.parametrize("read", READS)
CLEAR = 1e-3  # a difference of this size is no rounding
SHAPE = Shape(2, 7, 3, 2)


def arguments(n: Shape, seed: int) -> tuple:
    return *titans_tokens(n, seed), titans_state(n, seed)


def walked(q, k, v, momentum, decay, step, state, read, chunk=1, join=None) -> tuple:
    """Columns, one sequence after another: U <- eta U - theta (M k - v) k^T,  M <- (1 - alpha) M +
    iota U.  Gradients at chunk starts.
    """
    join = np.ones_like(step) if join is None else join
    outs, final = (np.zeros((*q.shape[:2], v.shape[2])), TitansState(np.zeros_like(state.M), np.zeros_like(state.U)))
    for b in range(q.shape[0]):
        M, U = state.M[b].T, state.U[b].T  # (E,K)
        for t in range(q.shape[1]):
            if t % chunk == 0:
                start = M
            before = M
            U = momentum[b, t] * U - step[b, t] * np.outer(start @ k[b, t] - v[b, t], k[b, t])
            M = (1 - decay[b, t]) * M + join[b, t] * U
            outs[b, t] = (before if read == "strict" else M) @ q[b, t]
        final.M[b], final.U[b] = M.T, U.T
    return outs, final


@every_read
@given(n=shapes, seed=seeds, data=st.data())
def test_titans_is_heavy_ball_with_weight_decay_run_literally(read: str, n: Shape, seed: int, data: st.DataObject) -> None:
    """U <- eta U - theta dl/dM, M <- (1 - alpha) M + U; both forms, gradients at the current
    memory.   (W.1), (W.2), (W.4), (W.5)
    """
    case, chunk = arguments(n, seed), data.draw(chunks(n.length), label="chunk")
    expected = walked(*case, read)
    assert_trees_close(titans_recurrent_fwd(*case, read=read)[0], expected, what="recurrent", scale=1.0)
    assert_trees_close(titans_chunked_fwd(*case, chunk, read=read)[0], expected, what="chunked", scale=1.0)


@every_read
@given(n=shapes, seed=seeds, data=st.data())
def test_the_stale_form_is_heavy_ball_on_the_gradients_at_chunk_starts(read: str, n: Shape, seed: int, data: st.DataObject) -> None:
    """The same loop, dl/dM at the chunk's first memory, for every chunk size.   (W.7)"""
    case, chunk = arguments(n, seed), data.draw(chunks(n.length), label="chunk")
    expected = walked(*case, read, chunk or max(n.length, 1))
    assert_trees_close(titans_stale_fwd(*case, chunk, read=read)[0], expected, scale=1.0)


@every_read
def test_stale_is_current_for_chunks_of_one_token_only(read: str) -> None:
    """Output, state, gradients agree at chunk = 1; N: at chunk = 2 what a chunk's second token
    writes differs.   (W.7), (W.8)
    """
    case = arguments(SHAPE, 1)
    output, res = titans_recurrent_fwd(*case, read=read)
    draw = generator(5)
    cotangent = draw(*output[0].shape), TitansState(*(draw(*a.shape) for a in output[1]))
    alone, alone_res = titans_stale_fwd(*case, 1, read=read)
    assert_trees_close(alone, output)
    assert_trees_close(titans_stale_bwd(*cotangent, alone_res), titans_recurrent_bwd(*cotangent, res))
    (out, state), _ = titans_stale_fwd(*case, 2, read=read)
    first = 2 if read == "strict" else 1  # whose write is read first
    assert_close(out[:, :first], output[0][:, :first])
    assert np.all(np.max(np.abs(out - output[0]), axis=(0, 2))[first:] > CLEAR)
    assert relative_error(state.M, output[1].M) > CLEAR


@pytest.mark.parametrize("i", range(1, 6))
def test_the_stale_form_refuses_what_does_not_fit(i: int) -> None:
    """The argument that is too short is named, as in the other forms, for which
    tests/rules/test_laws.py asks.   (W.7)
    """
    case, name = list(arguments(SHAPE, 3)), ("q", "k", "v", "momentum", "decay", "step")[i]
    case[i] = case[i][:, :1]
    with pytest.raises(ValueError, match=rf"^{name} must have shape \(.*got {re.escape(str(case[i].shape))}"):
        titans_stale_fwd(*case, 2, read="strict")


@every_read
@pytest.mark.parametrize("chunk", [None, 1, 2, 3])
def test_the_stale_backward_is_the_adjoint_of_the_stale_forward(read: str, chunk: int | None) -> None:
    """<u, J v> = <J^T u, v> for every input.   (W.8)"""
    check_adjoint(lambda *a: titans_stale_fwd(*a, chunk, read=read), lambda d, res: titans_stale_bwd(*d, res), arguments(SHAPE, 2))


@every_read
@given(n=shapes, seed=seeds, data=st.data())
def test_titans_without_momentum_and_decay_is_the_delta_rule(read: str, n: Shape, seed: int, data: st.DataObject) -> None:
    """eta = alpha = 0, U_0 = 0: outputs, memory, and the gradients that both have.   (W.5), (W.6)"""
    q, k, v, _, _, step, state = arguments(n, seed)
    none, chunk = np.zeros_like(step), data.draw(chunks(n.length), label="chunk")
    (out, (M, _)), res = titans_chunked_fwd(q, k, v, none, none, step, state._replace(U=0 * state.U), chunk, read=read)
    expected, delta_res = delta_chunked_fwd(q, k, v, step, state.M, chunk, read=read)
    assert_trees_close((out, M), expected, scale=1.0)
    draw = generator(seed + 9)
    dout, dM = draw(*out.shape), draw(*M.shape)
    dq, dk, dv, _, _, dstep, dstate = titans_chunked_bwd(dout, TitansState(dM, np.zeros_like(dM)), res)
    assert_trees_close((dq, dk, dv, dstep, dstate.M), delta_chunked_bwd(dout, dM, delta_res), scale=1.0)


def test_decay_without_momentum_is_not_the_gated_delta_rule() -> None:
    """N: Titans takes its gradient at M, Gated DeltaNet at the faded memory; at M = 0 they agree,
    after the first token no more.   (W.2)
    """
    q, k, v, momentum, decay, step, _ = arguments(SHAPE, 3)
    (ours, _), _ = titans_recurrent_fwd(q, k, v, 0 * momentum, decay, step, read="inclusive")
    (gated, _), _ = gated_delta_recurrent_fwd(q, k, v, 1 - decay, step, read="inclusive")
    assert_close(ours[:, 0], gated[:, 0])
    assert np.all(np.max(np.abs(ours - gated), axis=(0, 2))[1:] > CLEAR)


@pytest.mark.parametrize(("momentum", "decay"), [(0.0, 0.0), (0.7, 0.0), (0.0, 0.3), (0.7, 0.4), (0.9, 0.2)])
def test_the_impulse_response_is_a_difference_of_exponentials(momentum: float, decay: float) -> None:
    """M_ts = (a^(t-s) - mu^(t-s)) / (a - mu), a = 1 - decay: read off with keys that never meet and
    an empty memory.   (W.4)
    """
    length, keep = 8, 1 - decay
    one, identity = np.ones((1, length)), np.eye(length)[None]
    (seen, _), _ = titans_chunked_fwd(
        np.ones((1, length, length)), identity, identity, momentum * one, decay * one, one, read="strict"
    )  # fmt: skip
    gap = np.arange(length)[:, None] - np.arange(length)[None, :]
    assert_close(seen[0], np.where(gap > 0, (keep ** np.maximum(gap, 0) - momentum ** np.maximum(gap, 0)) / (keep - momentum), 0))


@every_read
@pytest.mark.parametrize(("momentum", "decay"), [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0), (0.5, -0.2), (-0.3, 0.5)])
def test_rates_may_be_zero_one_and_negative(read: str, momentum: float, decay: float) -> None:
    """Where a logarithm or a quotient of products fails: chunked = recurrent, the gradients of the
    rates included.   (W.5), (W.6)
    """
    q, k, v, _, _, step, state = arguments(SHAPE, 4)
    mixed = np.where(np.arange(SHAPE.length) % 3 == 1, 0.4, 1.0) * np.ones_like(step)
    case = q, k, v, momentum * mixed, decay * mixed, step, state
    output, res = titans_recurrent_fwd(*case, read=read)
    draw = generator(6)
    cotangent = draw(*output[0].shape), TitansState(*(draw(*a.shape) for a in output[1]))
    for chunk in (None, 3):
        actual, chunk_res = titans_chunked_fwd(*case, chunk, read=read)
        assert_trees_close(actual, output, scale=1.0)
        assert_trees_close(titans_chunked_bwd(*cotangent, chunk_res), titans_recurrent_bwd(*cotangent, res), scale=1.0)


# How much of the update joins the memory
# --------------------------------------------------------------------------------------


def with_join(case: tuple) -> tuple:
    """A join before the state."""
    return *case[:6], rates(11, -0.5, 1.5, *case[5].shape), case[6]


FORMS = {
    "recurrent": (titans_recurrent_fwd, titans_recurrent_bwd, ()),
    "chunked": (titans_chunked_fwd, titans_chunked_bwd, (3,)),
    "stale": (titans_stale_fwd, titans_stale_bwd, (3,)),
}


@every_read
@pytest.mark.parametrize("form", FORMS)
def test_an_update_joins_the_memory_as_far_as_it_is_told(form: str, read: str) -> None:
    """M' = (1 - alpha) M + iota U', literally; the adjoint, join's gradient included; a join of 1 is
    none, to the last bit of a product.   (W.2), (W.4), (W.5), (W.7)
    """
    case, (fwd, bwd, chunk) = with_join(arguments(SHAPE, 2)), FORMS[form]
    joined = lambda *a: fwd(*a[:6], a[7], *chunk, read=read, join=a[6])  # noqa: E731
    expected = walked(*case[:6], case[7], read, 3 if form == "stale" else 1, join=case[6])
    assert_trees_close(joined(*case)[0], expected, scale=1.0)
    check_adjoint(joined, lambda d, res: bwd(*d, res), case)
    one = np.ones_like(case[6])
    assert_trees_close(joined(*case[:6], one, case[7])[0], fwd(*case[:6], case[7], *chunk, read=read)[0], scale=1.0)
    with pytest.raises(ValueError, match=r"^join must have shape \(B,T\)"):
        joined(*case[:6], one[:, :2], case[7])


PER_CHUNK = {
    "recurrent": (titans_per_chunk_recurrent_fwd, titans_per_chunk_recurrent_bwd),
    "chunked": (titans_per_chunk_chunked_fwd, titans_per_chunk_chunked_bwd),
    "stale": (titans_per_chunk_stale_fwd, titans_per_chunk_stale_bwd),
}


def stored(q, k, v, momentum, decay, step, state, read, size, batch) -> tuple:
    """Columns; the gradients of a chunk summed, all at the memory that its batch began with; one update
    of U and of M for each full chunk; a read is from the last one.
    """
    outs, final = np.zeros((*q.shape[:2], v.shape[2])), TitansState(np.zeros_like(state.M), np.zeros_like(state.U))
    for b in range(q.shape[0]):
        M, U = state.M[b].T, state.U[b].T  # (E,K)
        first = M
        for start in range(0, q.shape[1], size):
            chunk = range(start, min(start + size, q.shape[1]))
            surprise = 0
            for t in chunk:
                first = M if t % batch == 0 else first
                surprise = surprise - step[b, t] * np.outer(first @ k[b, t] - v[b, t], k[b, t])
            U, before = momentum[b, start] * U + surprise, M
            M = (1 - decay[b, start]) * M + U if len(chunk) == size else M
            for t in chunk:
                outs[b, t] = (M if read == "inclusive" and t == start + size - 1 else before) @ q[b, t]
        final.M[b], final.U[b] = M.T, U.T
    return outs, final


@every_read
@pytest.mark.parametrize("length", [1, 6, 7])
@pytest.mark.parametrize(("size", "batch"), [(1, 1), (2, 2), (3, 3), (2, 4), (3, 6), (9, 9)])
def test_rates_per_chunk_are_one_update_for_every_chunk(read: str, length: int, size: int, batch: int) -> None:
    """The library's loop literally, for any number of chunks at one memory; forms agree, and each has its
    own adjoint.   (W.30), (W.35) to (W.38)
    """
    case = arguments(SHAPE._replace(length=length), size)
    expected = stored(*case, read, size, batch)
    calls = {
        "recurrent": lambda *a: titans_per_chunk_recurrent_fwd(*a, minibatch=size, read=read),
        "chunked": lambda *a: titans_per_chunk_chunked_fwd(*a, 4, minibatch=size, read=read),
        "stale": lambda *a: titans_per_chunk_stale_fwd(*a, batch, minibatch=size, read=read),
    }
    for form, fwd in calls.items():
        if form == "stale" or batch == size:
            assert_trees_close(fwd(*case)[0], expected, what=form, scale=1.0)
        check_adjoint(fwd, lambda d, res, form=form: PER_CHUNK[form][1](*d, res), case)


def test_rates_per_chunk_are_not_rates_per_token() -> None:
    """N: a chunk of one token is Titans itself; rates that are constant in a chunk of two are another
    function, since each of its tokens fades the memory and adds the update.   (W.30)
    """
    q, k, v, momentum, decay, step, state = arguments(SHAPE, 5)
    alone, _ = titans_per_chunk_chunked_fwd(q, k, v, momentum, decay, step, state, 2, minibatch=1, read="inclusive")
    assert_trees_close(alone, titans_chunked_fwd(q, k, v, momentum, decay, step, state, 2, read="inclusive")[0], scale=1.0)
    constant = [np.repeat(a[:, ::2], 2, axis=1)[:, : SHAPE.length] for a in (momentum, decay)]
    (_, ours), _ = titans_per_chunk_chunked_fwd(q, k, v, *constant, step, state, 2, minibatch=2, read="inclusive")
    (_, tokens), _ = titans_stale_fwd(q, k, v, *constant, step, state, 2, read="inclusive")
    assert relative_error(ours.M, tokens.M) > CLEAR


@every_read
@pytest.mark.parametrize("form", PER_CHUNK)
def test_a_text_may_be_cut_between_chunks(form: str, read: str) -> None:
    """Two calls with the state carried are one, outputs, states and gradients; N: cut inside a chunk they
    are another function, for the next call begins a chunk.   (W.36), (W.37), (W.38)
    """
    fwd, bwd = PER_CHUNK[form]
    run = lambda case: fwd(*case, *{"stale": (4,), "chunked": (3,)}.get(form, ()), minibatch=2, read=read)  # noqa: E731
    tokens, state = titans_tokens(SHAPE, 9), titans_state(SHAPE, 9)
    (whole, end), res = run((*tokens, state))
    draw = generator(10)
    dout, dend = draw(*whole.shape), TitansState(*(draw(*a.shape) for a in end))
    expected = bwd(dout, dend, res)
    for cut, same in ((4, True), (3, False)):
        (head, between), first = run((*(a[:, :cut] for a in tokens), state))
        (tail, left), second = run((*(a[:, cut:] for a in tokens), between))
        assert (relative_error(left.M, end.M) < CLEAR) == same
        if same:
            assert_trees_close((np.concatenate([head, tail], axis=1), left), (whole, end), scale=1.0)
            later = bwd(dout[:, cut:], dend, second)
            sooner = bwd(dout[:, :cut], later[-1], first)
            joined = [np.concatenate(pair, axis=1) for pair in zip(sooner[:-1], later[:-1], strict=True)]
            assert_trees_close((*joined, sooner[-1]), expected, scale=1.0)


@every_read
def test_without_momentum_and_decay_chunks_end_where_mini_batches_of_ttt_end(read: str) -> None:
    """Memory of keys [k, 1] = [W, b] of TTT-Linear without LayerNorm at half the step, after every full
    chunk; the first token of a chunk, read strictly, and the last, read inclusively, see the same.
    (W.35), (W.36), (W.11)
    """
    size, (q, k, v, momentum, _, step) = 3, titans_tokens(SHAPE._replace(length=6), 12)
    with_one = lambda a: np.concatenate([a, np.ones((*a.shape[:2], 1))], axis=-1)  # noqa: E731
    M, none = titans_state(SHAPE._replace(width=SHAPE.width + 1), 12), 0 * momentum
    (out, end), _ = titans_per_chunk_chunked_fwd(with_one(q), with_one(k), v, none, none, step, M, 4, minibatch=size, read=read)
    network = TTTLinearState(M.M[:, :-1], M.M[:, -1])
    (seen, left), _ = ttt_linear_recurrent_fwd(q, k, v, step / 2, None, None, network, minibatch=size, read=read)
    assert_close(end.M, np.concatenate([left.W, left.b[:, None]], axis=1), scale=1.0)
    shared = np.s_[:, ::size] if read == "strict" else np.s_[:, size - 1 :: size]
    assert_close(out[shared], seen[shared], scale=1.0)
    assert relative_error(out, seen) > CLEAR


@pytest.mark.parametrize("form", PER_CHUNK)
def test_only_the_last_token_of_a_chunk_tells_the_reads_apart(form: str) -> None:
    """And in a chunk that is longer than the text both read M_0.   (W.36)"""
    case = titans_tokens(SHAPE, 13)
    state = titans_state(SHAPE, 13)
    strict, inclusive = (PER_CHUNK[form][0](*case, state, minibatch=3, read=read)[0][0] for read in READS)
    apart = np.max(np.abs(strict - inclusive), axis=(0, 2))
    assert np.all((apart > CLEAR) == (np.arange(SHAPE.length) % 3 == 2))
    for read in READS:
        (out, _), _ = PER_CHUNK[form][0](*case, state, minibatch=8, read=read)
        assert_close(out, case[0] @ state.M, scale=1.0)


def test_rates_per_chunk_are_checked() -> None:
    """A chunk of no token, rates of another shape.   (W.30)"""
    case = arguments(SHAPE, 5)
    with pytest.raises(ValueError, match="a chunk must hold at least 1 token, got 0"):
        titans_per_chunk_recurrent_fwd(*case, minibatch=0, read="strict")
    with pytest.raises(ValueError, match=r"^momentum must have shape \(B,T\) = \(2, 7\), got \(2, 4\)"):
        titans_per_chunk_recurrent_fwd(*case[:3], case[3][:, ::2], *case[4:], minibatch=2, read="strict")


def test_momentum_on_the_delta_rule_is_titans_without_decay() -> None:
    """S' = S + m', m' = theta m - eta dl/dS at S: heavy ball on the delta rule, a rate per token; with
    forgetting S' = alpha S + m' it is Titans.   (W.2), (W.5)
    """
    q, k, v, theta, forget, eta, (S, m) = case = arguments(SHAPE, 6)
    for keep in (np.ones_like(forget), 1 - forget):
        (out, (S_out, m_out)), _ = titans_chunked_fwd(q, k, v, theta, 1 - keep, eta, case[6], 3, read="inclusive")
        memory, moved = S.copy(), m.copy()
        for t in range(SHAPE.length):
            error = np.einsum("bk,bke->be", k[:, t], memory) - v[:, t]
            moved = theta[:, t, None, None] * moved - eta[:, t, None, None] * np.einsum("bk,be->bke", k[:, t], error)
            memory = keep[:, t, None, None] * memory + moved
            assert_close(out[:, t], np.einsum("bk,bke->be", q[:, t], memory), scale=1.0)
        assert_trees_close((S_out, m_out), (memory, moved), scale=1.0)


# Teeth
# -----------------------------------------------------------------------------------------------------------------------


COMPARISONS = pytest.mark.host("about the comparisons, not about arrays")


def is_sound() -> None:
    """Both forms are heavy ball, agree in their gradients, and are their own adjoints."""
    case = arguments(SHAPE, 7)
    for read in READS:
        expected = walked(*case, read)
        output, res = titans_recurrent_fwd(*case, read=read)
        chunked, chunk_res = titans_chunked_fwd(*case, 3, read=read)
        draw = generator(8)
        cotangent = draw(*output[0].shape), TitansState(*(draw(*a.shape) for a in output[1]))
        assert_trees_close((output, chunked), (expected, expected), scale=1.0)
        assert_trees_close(titans_chunked_bwd(*cotangent, chunk_res), titans_recurrent_bwd(*cotangent, res), scale=1.0)
        check_adjoint(lambda *a: titans_chunked_fwd(*a, 3, read=read), lambda d, res: titans_chunked_bwd(*d, res), case)  # noqa: B023
        joined = lambda *a: titans_chunked_fwd(*a[:6], a[7], 3, read=read, join=a[6])  # noqa: B023, E731
        check_adjoint(joined, lambda d, res: titans_chunked_bwd(*d, res), with_join(case))
        assert_trees_close(joined(*with_join(case))[0], walked(*case, read, join=with_join(case)[6]), scale=1.0)


def replaced(name: str, change: Callable, module: Any = titans) -> tuple[Any, str, Callable]:
    """The function of that name in titans.py or heavy_ball.py, as ``change`` makes it."""
    original = getattr(module, name)
    return module, name, lambda *args: change(original, *args)


def reverse(read: str) -> str:
    return "inclusive" if read == "strict" else "strict"


def dropped(i: int) -> Callable:
    return lambda f, *args: tuple(0 * y if j == i else y for j, y in enumerate(f(*args)))


def other_column(f: Callable, *args: Any) -> Any:
    """The impulse response of the momentum alone, as if nothing decayed."""
    table = f(*args)
    return table._replace(fade=np.concatenate([table.fade[:, :, :1], table.momenta[:, :, 1:]], axis=-1))


MUTANTS = {
    "strict and inclusive exchanged token by token": replaced("reads", lambda f, q, S, read: f(q, S, reverse(read))),
    "strict and inclusive exchanged in chunks": replaced("sums", lambda f, *a: f(*a[:-1], reverse(a[-1])), heavy_ball),
    "strict and inclusive exchanged for U_0": replaced("read_from", lambda f, S, read: f(S, reverse(read)), heavy_ball),
    "stale errors in the exact form": replaced("_seen_by_keys", lambda f, table, stale: f(table, True)),
    "own token in its error": replaced("_seen_by_keys", lambda f, table, stale: (table.fade[:, 1:, :1], *f(table, stale)[1:])),
    "sign of the gradient": replaced("titans_gradient", lambda f, *a: -f(*a)),
    "key and value swapped": replaced("sums", lambda f, q, k, u, *a: f(k, q, u, *a), heavy_ball),
    "momentum for decay": replaced("responses", lambda f, momentum, decay, join: f(1 - decay, 1 - momentum, join)),
    "writes fade by momentum only": replaced("responses", other_column),
    "products off by one token": replaced("_products", lambda f, rate: f(np.concatenate([rate[:, 1:], rate[:, :1]], axis=1)), heavy_ball),
    "adjoint of products dropped": replaced("_products_bwd", lambda f, *a: 0 * f(*a), heavy_ball),
    "gradient of the system dropped": replaced("solve_bwd", dropped(0)),
    "gradient of the right side dropped": replaced("solve_bwd", dropped(1)),
    "gradient of the fades dropped": replaced("sums_bwd", dropped(3), heavy_ball),
    "gradient of the memory dropped": replaced("sums_bwd", dropped(4), heavy_ball),
    "join forgotten in the table": replaced("responses", lambda f, momentum, decay, join: f(momentum, decay, None)),
    "gradient of a read memory dropped": replaced("reads_bwd", dropped(1)),
    "memory's share of a step's gradient dropped": replaced("delta_gradient_bwd", dropped(0)),
}


@COMPARISONS
def test_the_library_is_sound() -> None:
    """Without this the rejections below would mean nothing.   (W.2) to (W.6)"""
    is_sound()


@COMPARISONS
@pytest.mark.parametrize("what", MUTANTS)
def test_a_mutant_of_titans_is_rejected(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """N: one function of the file replaced.   (W.2) to (W.6)"""
    monkeypatch.setattr(*MUTANTS[what])
    with pytest.raises((AssertionError, AdjointError)):
        is_sound()
