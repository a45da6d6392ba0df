"""Mesa: the memory is the minimum of its loss, conjugate gradients find what it reads, and how far
off they are is known.

What follows an "N:" is a negative control.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwl_ref.gradcheck import AdjointError, check_adjoint
from fwl_ref.rules import mesa
from fwl_ref.rules.common import READS, fades
from fwl_ref.rules.decay import decay_recurrent_fwd
from fwl_ref.rules.delta import delta_recurrent_fwd
from fwl_ref.rules.linear import linear_recurrent_fwd
from fwl_ref.rules.mesa import (
    MesaState,
    conjugate_gradients,
    mesa_chunked_bwd,
    mesa_chunked_fwd,
    mesa_gradient,
    mesa_loss,
    mesa_minimum,
    mesa_minimum_bwd,
    mesa_recurrent_bwd,
    mesa_recurrent_fwd,
)
from tests.rules.several_arrays import mesa_state, mesa_tokens, ridge, symmetric
from tests.rules.table import Shape, memory
from tests.strategies import chunks, generator, seeds
from tests.tolerances import assert_bitwise, assert_close, assert_trees_close, relative_error

CLEAR = 1e-3  # a difference of this size is no rounding
every_read = pytest.mark.parametrize("read", READS)
shapes = st.builds(Shape, *(st.integers(low, high) for low, high in ((1, 2), (0, 6), (1, 4), (1, 3))))
SHAPE = Shape(2, 7, 3, 2)


def arguments(n: Shape, seed: int) -> tuple:
    """q, k, v, keep, weight, ridge, state."""
    return *mesa_tokens(n, seed), ridge(n.width), mesa_state(n, seed)


def weights_at(keep: np.ndarray, weight: np.ndarray, b: int, tokens: int) -> np.ndarray:
    """zeta_ts of the first ``tokens`` tokens, seen from after the last of them: weight_s times
    every later keep.
    """
    return np.asarray([weight[b, s] * np.prod(keep[b, s + 1 : tokens]) for s in range(tokens)])


def least_squares(k: np.ndarray, v: np.ndarray, zeta: np.ndarray, lam: np.ndarray) -> np.ndarray:
    """argmin 1/2 sum zeta |k S - v|^2 + 1/2 sum lam_c |S_c|^2 as an ordinary least squares problem,
    with the ridge as more rows.
    """
    rows = np.concatenate([np.sqrt(zeta)[:, None] * k, np.diag(np.sqrt(lam))])
    return np.linalg.lstsq(rows, np.concatenate([np.sqrt(zeta)[:, None] * v, np.zeros((len(lam), v.shape[1]))]), rcond=None)[0]


@every_read
@given(n=shapes, seed=seeds, data=st.data())
def test_mesa_reads_the_least_squares_solution_of_the_past(read: str, n: Shape, seed: int, data: st.DataObject) -> None:
    """o_t = q_t argmin sum zeta |k S - v|^2 + ridge, by a solver that knows neither G nor H: both
    forms.   (W.25), (W.26), (W.28)
    """
    q, k, v, keep, weight, lam, _ = case = arguments(n, seed)
    chunk, expected = data.draw(chunks(n.length), label="chunk"), np.zeros(v.shape)
    for b in range(n.batch):
        for t in range(n.length):
            seen = t + (read == "inclusive")
            S = least_squares(k[b, :seen], v[b, :seen], weights_at(keep, weight, b, seen), lam)
            expected[b, t] = q[b, t] @ S
    assert_close(mesa_recurrent_fwd(*case[:-1], read=read)[0][0], expected, scale=1.0)
    assert_close(mesa_chunked_fwd(*case[:-1], None, chunk, read=read)[0][0], expected, scale=1.0)


@given(n=shapes, seed=seeds)
def test_the_memory_satisfies_its_normal_equations_and_nothing_is_better(n: Shape, seed: int) -> None:
    """(H_t + Lambda) S_t = G_t: the gradient is 0 at every token, and every other S has a larger
    loss.   (W.24), (W.25), (W.26)
    """
    *case, lam, _ = arguments(n, seed)
    _, res = mesa_recurrent_fwd(*case, lam, mesa_state(n, seed), read="strict")
    for t in range(n.length + 1):
        S, state = res.minima[:, t], MesaState(res.states.G[:, t], res.states.H[:, t])
        assert_close(state.H @ S + lam[:, None] * S, state.G, scale=1.0)
        assert_close(mesa_gradient(S, state, lam), 0 * S, scale=1.0)
        for i in range(3):
            moved = S + 0.1 * generator(seed + i)(*S.shape)
            assert np.all(mesa_loss(moved, state, lam) > mesa_loss(S, state, lam))


@given(seed=seeds)
def test_the_loss_is_the_sum_over_the_past_up_to_a_constant(seed: int) -> None:
    """1/2 sum zeta |k S - v|^2 + 1/2 sum ridge_c |S_c|^2 - 1/2 sum zeta |v|^2 for any S.   (W.24)"""
    *case, lam, _ = arguments(SHAPE, seed)
    q, k, v, keep, weight = case
    (_, state), _ = mesa_recurrent_fwd(*case, lam, read="strict")
    S = memory(SHAPE, seed + 7)
    for b in range(SHAPE.batch):
        zeta = weights_at(keep, weight, b, SHAPE.length)
        fit = zeta @ (np.sum((k[b] @ S[b] - v[b]) ** 2, axis=1) - np.sum(v[b] ** 2, axis=1))
        assert_close(mesa_loss(S, state, lam)[b], np.asarray(0.5 * fit + 0.5 * lam @ np.sum(S[b] ** 2, axis=1)), scale=1.0)


@given(n=shapes, seed=seeds)
def test_one_newton_step_from_anywhere_ends_at_the_minimum(n: Shape, seed: int) -> None:
    """S - (H + Lambda)^{-1} dL/dS(S) is the same S' for every S: the loss is quadratic.   (W.24),
    (W.25)
    """
    state, lam, S = mesa_state(n, seed), ridge(n.width), 3 * memory(n, seed + 7)
    matrix = state.H + np.diag(lam)
    assert_close(S - np.linalg.solve(matrix, mesa_gradient(S, state, lam)), mesa_minimum(state, lam), scale=1.0)


@given(n=shapes, seed=seeds)
def test_the_adjoint_of_the_minimum(n: Shape, seed: int) -> None:
    """dG = (H + Lambda)^{-T} dS, dH = -dG S^T, dridge its diagonal, for a symmetric H and for one
    that is not.   (W.27)
    """
    state = mesa_state(n, seed)
    turn = generator(seed + 3)(*state.H.shape)
    tilted = state._replace(H=state.H + turn - np.swapaxes(turn, -1, -2))  # its symmetric part is as positive as before

    def forward(state: MesaState, lam: np.ndarray) -> tuple:
        S = mesa_minimum(state, lam)
        return S, (S, state, lam)

    for each in (state, tilted):
        check_adjoint(forward, lambda dS, res: mesa_minimum_bwd(dS, *res), (each, ridge(n.width)))


@every_read
@pytest.mark.parametrize("chunk", [None, 3])
def test_every_gradient_the_ridge_included(read: str, chunk: int | None) -> None:
    """Adjoints of both forms, and chunked = recurrent, for tokens, rates, ridge and state.   (W.26)
    to (W.29)
    """
    case = arguments(SHAPE, 3)

    def on_symmetric(fwd: Callable, *extra: Any, **settings: int) -> Callable:
        return lambda *a: fwd(*a[:-1], symmetric(a[-1]), *extra, read=read, **settings)

    def to_symmetric(bwd: Callable) -> Callable:
        return lambda d, res: (*(g := bwd(*d, res))[:-1], symmetric(g[-1]))

    recurrent = on_symmetric(mesa_recurrent_fwd), to_symmetric(mesa_recurrent_bwd)
    chunked = on_symmetric(mesa_chunked_fwd, chunk, iterations=6), to_symmetric(mesa_chunked_bwd)
    draw, results = generator(4), []
    cotangent = draw(2, 7, 2), MesaState(draw(2, 3, 2), draw(2, 3, 3))
    for fwd, bwd in (recurrent, chunked):
        check_adjoint(fwd, bwd, case)
        output, res = fwd(*case)
        results.append((output, bwd(cotangent, res)))
    assert_trees_close(results[1], results[0], scale=1.0)


# Conjugate gradients
# ---------------------------------------------------------------------------------------------------------


@every_read
def test_the_residual_says_what_conjugate_gradients_left(read: str) -> None:
    """error_t = |q_t - x_t (H_t + Lambda)| with H_t formed, and |o - o_exact| <= error |G| /
    (smallest eigenvalue).   (W.28)
    """
    n = Shape(2, 6, 5, 3)
    q, k, v, keep, weight, lam, state = case = arguments(n, 5)
    lam = 0.05 * lam
    (exact, _), res = mesa_recurrent_fwd(*case[:5], lam, state, read=read)
    rows = slice(0, -1) if read == "strict" else slice(1, None)
    matrices, G = res.states.H[:, rows] + np.diag(lam), res.states.G[:, rows]
    smallest, size = (np.min(np.linalg.eigvalsh(matrices), axis=-1), np.linalg.norm(G, ord=2, axis=(-2, -1)))
    errors = []
    for iterations in range(1, 2 * n.width + 1):
        (out, _), (part,) = mesa_chunked_fwd(*case[:5], lam, state, read=read, iterations=iterations)
        literal = np.linalg.norm(q - (part.x[:, :, None, :] @ matrices)[:, :, 0, :], axis=-1)
        assert_close(part.error, literal, scale=1.0)
        assert np.all(np.linalg.norm(out - exact, axis=-1) <= part.error * size / smallest + 1e-12)
        errors.append(float(np.max(part.error)))
        if iterations <= 2:  # N: too few iterations are an approximation, and it shows
            assert relative_error(out, exact) > CLEAR
    assert errors[0] > CLEAR
    assert errors[n.width - 1] < CLEAR * errors[n.width - 2]  # the K-th iteration ends the search, but for rounding
    assert errors[-1] < 1e-12  # which K more take away
    assert_close(out, exact)


@given(seed=seeds)
def test_a_token_that_has_converged_stands_still(seed: int) -> None:
    """Many more iterations than needed, a query of zeros, an eigenvector, no past at all: finite,
    the same, then to the bit.   (W.28)
    """
    q, k, _, keep, weight, lam, state = arguments(SHAPE, seed)
    q[0, 0], lam = 0, 0 * lam + 0.5
    k[1] = 0  # the system of this sequence is a multiple of the identity: one iteration solves it
    state.H[1] = 0
    few, more, many = (conjugate_gradients(q, k, weight, lam, fades(keep), state.H, "strict", n) for n in (SHAPE.width + 1, 20, 200))
    assert np.all(np.isfinite(many[0])) and np.all(many[0][0, 0] == 0) and np.max(many[1]) < 1e-12
    assert_close(many[0], few[0], scale=1.0)
    assert_bitwise(many[0], more[0])
    assert_close(many[0][1], 2 * q[1])


# What it is like
# -------------------------------------------------------------------------------------------------------------


@given(seed=seeds)
def test_the_order_of_the_past_does_not_matter(seed: int) -> None:
    """keep = 1: a permutation of the past leaves the state; N: it does not leave the delta
    rule's.   (W.26)
    """
    q, k, v, keep, weight, lam, state = arguments(SHAPE, seed)
    order = np.random.default_rng(seed).permutation(SHAPE.length)
    order = order if np.any(order != np.arange(SHAPE.length)) else order[::-1]
    (_, expected), _ = mesa_recurrent_fwd(q, k, v, 0 * keep + 1, weight, lam, state, read="strict")
    mixed = (a[:, order] for a in (q, k, v))
    (_, actual), _ = mesa_recurrent_fwd(*mixed, 0 * keep + 1, weight[:, order], lam, state, read="strict")
    assert_trees_close(actual, expected, scale=1.0)
    half = 0.5 + 0 * keep
    delta, delta_mixed = (delta_recurrent_fwd(q, a, b, half, read="strict")[0][1] for a, b in ((k, v), (k[:, order], v[:, order])))
    assert np.max(np.abs(delta_mixed - delta)) > 1e-6


@every_read
def test_a_strong_ridge_leaves_linear_attention(read: str) -> None:
    """ridge o_t -> sum zeta (q_t . k_s) v_s with an error of order |H| / ridge: halved when the
    ridge doubles.   (W.26), (W.28)
    """
    q, k, v, keep, weight, lam, _ = arguments(SHAPE, 6)
    (decayed, _), _ = decay_recurrent_fwd(q, k, weight[..., None] * v, keep, read=read)
    gaps = []
    for strength in (1e4, 2e4, 4e4):
        (out, _), _ = mesa_chunked_fwd(q, k, v, keep, weight, 0 * lam + strength, read=read)
        gaps.append(relative_error(strength * out, decayed))
    assert gaps[0] < CLEAR
    assert_close(np.asarray(gaps[:-1]) / np.asarray(gaps[1:]), np.asarray([2.0, 2.0]), rtol=CLEAR)


def test_orthonormal_keys_leave_linear_attention_at_any_ridge() -> None:
    """H = identity on the keys seen: o_t = sum (q_t . k_s) v_s / (1 + ridge) for queries among
    them.   (W.26)
    """
    draw, length = generator(9), 5
    k, v = np.linalg.qr(draw(1, 6, 6))[0][:, :length], draw(1, length, 3)
    one = np.ones((1, length))
    (out, _), _ = mesa_recurrent_fwd(k, k, v, one, one, np.full(6, 0.7), read="inclusive")
    assert_close(1.7 * out, linear_recurrent_fwd(k, k, v, read="inclusive")[0][0])


def test_a_small_ridge_stores_more_than_any_step_size() -> None:
    """As many tokens as channels: Mesa recalls every value, one pass of the delta rule recalls the
    last only.   (W.26)
    """
    draw = generator(2)
    k, v, one = draw(1, 4, 4), draw(1, 4, 3), np.ones((1, 4))
    (_, state), _ = mesa_recurrent_fwd(k, k, v, one, one, np.full(4, 1e-12), read="strict")
    assert_close(
        k @ mesa_minimum(state, np.full(4, 1e-12)), v, rtol=1e-8
    )  # the ridge itself moves the solution by about 1e-12 / eigenvalue
    (_, S), _ = delta_recurrent_fwd(k, k, v, 1 / np.sum(k * k, axis=-1), read="strict")
    assert_close((k @ S)[:, -1], v[:, -1])
    assert np.all(np.max(np.abs(k @ S - v), axis=-1)[:, :-1] > CLEAR)


# Boundary
# --------------------------------------------------------------------------------------------------------------------


every_fwd = pytest.mark.parametrize("fwd", [mesa_recurrent_fwd, mesa_chunked_fwd])


@every_fwd
def test_bad_settings_are_refused(fwd: Callable) -> None:
    """A ridge of the wrong size, an H that is no square, no iterations.   (W.26), (W.28)"""
    *tokens, lam, state = arguments(SHAPE, 0)
    with pytest.raises(ValueError, match=r"ridge must have shape \(K\) = \(3\)"):
        fwd(*tokens, lam[:2], state, read="strict")
    with pytest.raises(ValueError, match=r"state\.H must have shape"):
        fwd(*tokens, lam, state._replace(H=state.H[:, :, :2]), read="strict")
    if fwd is mesa_chunked_fwd:
        with pytest.raises(ValueError, match="at least 1 iteration, got 0"):
            fwd(*tokens, lam, state, read="strict", iterations=0)


@pytest.mark.host("values are looked at on the host alone")
@every_fwd
def test_a_ridge_must_be_positive_and_a_keep_may_be_0(fwd: Callable) -> None:
    """Without a ridge the memory of no tokens has no minimum; keep = 0 forgets
    everything.   (W.26), (W.28)
    """
    *tokens, keep, weight, lam, state = arguments(SHAPE, 0)
    for wrong in (0 * lam, lam - lam[1], np.nan * lam):
        with pytest.raises(ValueError, match="ridge must be > 0"):
            fwd(*tokens, keep, weight, wrong, state, read="strict")
    (out, after), _ = fwd(*tokens, 0 * keep, weight, lam, state, read="strict")
    assert np.all(np.isfinite(out))
    assert_close(after.H, weight[:, -1, None, None] * tokens[1][:, -1, :, None] * tokens[1][:, -1, None, :])


# Teeth
# -----------------------------------------------------------------------------------------------------------------------


COMPARISONS = pytest.mark.host("about the comparisons, not about arrays")


def is_sound() -> None:
    """The least squares solution in both forms, their gradients equal, and the recurrent one
    adjoint.
    """
    *tokens, lam, state = case = arguments(SHAPE, 8)
    q, k, v, keep, weight = tokens
    for read in READS:
        expected = np.zeros(v.shape)
        for b, t in np.ndindex(v.shape[:2]):
            seen = t + (read == "inclusive")
            expected[b, t] = q[b, t] @ least_squares(k[b, :seen], v[b, :seen], weights_at(keep, weight, b, seen), lam)
        for fwd in (mesa_recurrent_fwd, mesa_chunked_fwd):
            assert_close(fwd(*tokens, lam, read=read)[0][0], expected, scale=1.0)
        draw = generator(10)
        cotangent = draw(*v.shape), MesaState(draw(*state.G.shape), draw(*state.H.shape))
        results = []
        for fwd, bwd in ((mesa_recurrent_fwd, mesa_recurrent_bwd), (partial(mesa_chunked_fwd, chunk=3), mesa_chunked_bwd)):
            output, res = fwd(*case, read=read)
            results.append((output, bwd(*cotangent, res)))
        assert_trees_close(results[1], results[0], scale=1.0)
        check_adjoint(partial(mesa_recurrent_fwd, read=read), lambda d, res: mesa_recurrent_bwd(*d, res), case)


def replaced(name: str, change: Callable) -> tuple[str, Callable]:
    """The function of that name in mesa.py, as ``change`` makes it."""
    original = getattr(mesa, name)
    return name, lambda *args, **settings: change(original, *args, **settings)


def reverse(read: str) -> str:
    return "inclusive" if read == "strict" else "strict"


def dropped(i: int) -> Callable:
    return lambda f, *args: tuple(0 * y if j == i else y for j, y in enumerate(f(*args)))


MUTANTS = {
    "strict and inclusive exchanged token by token": replaced("reads", lambda f, q, S, read: f(q, S, reverse(read))),
    "strict and inclusive exchanged in the read of G": replaced("sums", lambda f, *a: f(*a[:-1], reverse(a[-1]))),
    "strict and inclusive exchanged in the system": replaced("conjugate_gradients", lambda f, *a: f(*a[:-2], reverse(a[-2]), a[-1])),
    "no ridge": replaced("_matrix", lambda f, H, lam: f(H, 1e-3 * lam)),
    "no ridge in the system": replaced("conjugate_gradients", lambda f, q, k, w, lam, *a: f(q, k, w, 1e-3 * lam, *a)),
    "no weight in the system": replaced("conjugate_gradients", lambda f, q, k, w, *a: f(q, k, 0 * w + 1, *a)),
    "no decay": replaced("fades", lambda f, keep: f(0 * keep + 1)),
    "state forgotten in the system": replaced("conjugate_gradients", lambda f, *a: f(*a[:5], 0 * a[5], *a[6:])),
    "one iteration": replaced("conjugate_gradients", lambda f, *a: f(*a[:-1], 1)),
    "no system at all": replaced("conjugate_gradients", lambda f, q, *a: (q, f(q, *a)[1])),
    "sign of the gradient": replaced("mesa_gradient", lambda f, *a: -f(*a)),
    "key and value exchanged": replaced("outer", lambda f, k, v: f(k, v) if k.shape == v.shape else 0 * f(k, v)),
    "stop-gradient in the state": replaced("mesa_minimum_bwd", lambda f, *a: (MesaState(*(0 * g for g in f(*a)[0])), f(*a)[1])),
    "stop-gradient in the ridge": replaced("mesa_minimum_bwd", lambda f, *a: (f(*a)[0], 0 * f(*a)[1])),
    "gradient of the query of the read dropped": replaced("sums_bwd", dropped(0)),
    "gradient of the key dropped": replaced("sums_bwd", dropped(1)),
    "gradient of the value dropped": replaced("sums_bwd", dropped(2)),
    "gradient of the fades dropped": replaced("sums_bwd", dropped(3)),
    "gradient of the state dropped": replaced("sums_bwd", dropped(4)),
    "gradient of keep dropped": replaced("fades_bwd", lambda f, *a: 0 * f(*a)),
}


@COMPARISONS
def test_the_library_is_sound() -> None:
    """Without this the rejections below would mean nothing.   (W.24) to (W.29)"""
    is_sound()


@COMPARISONS
@pytest.mark.parametrize("what", MUTANTS)
def test_a_mutant_of_mesa_is_rejected(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """N: one function of the file replaced.   (W.24) to (W.29)"""
    monkeypatch.setattr(mesa, *MUTANTS[what])
    with pytest.raises((AssertionError, AdjointError)):
        is_sound()
