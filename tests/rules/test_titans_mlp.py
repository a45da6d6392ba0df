"""Titans with an MLP: heavy ball run literally on a loss that knows no derivative, the dual form, what is a
special case of what.

What follows an "N:" is a negative control.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from fwl_ref.gradcheck import AdjointError, check_adjoint
from fwl_ref.rules import heavy_ball, titans_mlp
from fwl_ref.rules.common import READS
from fwl_ref.rules.titans_mlp import (
    TitansMLPState,
    titans_mlp_dual_bwd,
    titans_mlp_dual_fwd,
    titans_mlp_gradient,
    titans_mlp_loss,
    titans_mlp_recurrent_bwd,
    titans_mlp_recurrent_fwd,
)
from fwl_ref.rules.ttt_mlp import (
    TTTMLPState,
    ttt_mlp_dual_bwd,
    ttt_mlp_dual_fwd,
    ttt_mlp_gradient,
    ttt_mlp_read_bwd,
    ttt_mlp_read_fwd,
)
from fwl_ref.tree import leaves, tree_map, zeros_like
from tests.rules.several_arrays import gain_and_bias, titans_mlp_state, titans_mlp_tokens
from tests.rules.table import Shape, rates
from tests.strategies import generator
from tests.tolerances import assert_bitwise, assert_close, assert_trees_close, relative_error

SHAPE = Shape(2, 5, 3, 3)
CLEAR = 1e-3  # a difference of this size is no rounding
FORMS = {
    "recurrent": (titans_mlp_recurrent_fwd, titans_mlp_recurrent_bwd),
    "dual": (titans_mlp_dual_fwd, titans_mlp_dual_bwd),
}
every_read = pytest.mark.parametrize("read", READS)
every_form = pytest.mark.parametrize("form", FORMS)
with_or_without = pytest.mark.parametrize("norm", [True, False], ids=["LayerNorm", "identity"])


def arguments(n: Shape, seed: int, norm: bool = True) -> tuple:
    """q, k, v, momentum, decay, step, join, gain, bias, state"""
    shared = gain_and_bias(n.values) if norm else (None, None)
    return *titans_mlp_tokens(n, seed), rates(seed + 11, -0.5, 1.5, n.batch, n.length), *shared, titans_mlp_state(n, seed)


def called(form: str, minibatch: int, read: str, eps: float = 1.0) -> tuple[Callable, Callable]:
    """fwd(*arguments) with join and bwd(cotangents, res), one gradient for each argument that is there."""
    fwd, bwd = FORMS[form]

    def forward(*case: Any) -> tuple:
        if len(case) == 8:  # without a norm, as the check of adjoints passes it
            case = (*case[:7], None, None, case[7])
        return fwd(*case[:6], *case[7:], minibatch=minibatch, read=read, eps=eps, join=case[6])

    return forward, lambda d, res: tuple(g for g in bwd(*d, res) if g is not None)


def present(case: tuple) -> tuple:
    return tuple(a for a in case if a is not None)


def network(M: TTTMLPState, x: np.ndarray, gain: Any, bias: Any, eps: float) -> np.ndarray:
    h = x @ M.W1 + M.b1
    z = (0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))) @ M.W2 + M.b2
    if gain is None:
        return z
    return x + gain * (z - z.mean()) / np.sqrt(np.mean((z - z.mean()) ** 2) + eps) + bias


def walked(case: tuple, minibatch: int, read: str, eps: float) -> tuple:
    """U <- eta U - theta dl/dM, M <- (1 - alpha) M + iota U, one sequence, token and parameter at a time; every
    entry of the gradient by a complex step of |f(k) - v|^2.
    """
    q, k, v, momentum, decay, step, join, gain, bias, state = case
    outs, finals = np.zeros(v.shape), []
    for b in range(q.shape[0]):
        M, U = ([p[b] for p in leaves(part)] for part in state)
        first = M
        net = lambda arrays: TTTMLPState(*arrays)  # noqa: E731
        for t in range(q.shape[1]):
            first = M if t % minibatch == 0 else first
            before, slopes = M, []
            for i, parameter in enumerate(first):
                slope = np.zeros(parameter.shape)
                for entry in np.ndindex(parameter.shape):
                    up = [p.astype("complex128") for p in first]
                    up[i][entry] += 1e-30j
                    error = network(net(up), k[b, t], gain, bias, eps) - v[b, t]
                    slope[entry] = np.imag(np.sum(error * error)) / 1e-30
                slopes.append(slope)
            U = [momentum[b, t] * u - step[b, t] * g for u, g in zip(U, slopes, strict=True)]
            M = [(1 - decay[b, t]) * m + join[b, t] * u for m, u in zip(M, U, strict=True)]
            outs[b, t] = network(net(before if read == "strict" else M), q[b, t], gain, bias, eps)
        finals.append(TitansMLPState(net(M), net(U)))
    return outs, tree_map(lambda *parts: np.stack(parts), *finals)


@with_or_without
@every_read
@pytest.mark.parametrize("minibatch", [1, 2, 9])
def test_titans_with_an_mlp_is_heavy_ball_run_literally(minibatch: int, read: str, norm: bool) -> None:
    """Outputs and both states, in both forms.   (W.31), (W.33)"""
    case = arguments(SHAPE, minibatch, norm)
    expected = walked(case, minibatch, read, 1e-2)
    for form in FORMS:
        assert_trees_close(called(form, minibatch, read, 1e-2)[0](*case)[0], expected, what=form, scale=1.0)


@with_or_without
@every_read
@every_form
@pytest.mark.parametrize("minibatch", [1, 3])
def test_backward_is_the_adjoint_of_forward(minibatch: int, form: str, read: str, norm: bool) -> None:
    """<u, J v> = <J^T u, v> for tokens, rates, join, gain, bias, network and momentum.   (W.32), (W.34)"""
    check_adjoint(*called(form, minibatch, read), present(arguments(SHAPE, minibatch, norm)))


@with_or_without
@every_read
@pytest.mark.parametrize("minibatch", [1, 2, 5, 8])
def test_dual_is_token_by_token(minibatch: int, read: str, norm: bool) -> None:
    """Outputs, states and every gradient, with a join and without.   (W.32), (W.34)"""
    case = arguments(Shape(2, 6, 4, 4), minibatch, norm)
    draw, results = generator(4), []
    for join in (case[6], None):
        given = (*case[:6], join, *case[7:])
        for form in FORMS:
            fwd, bwd = called(form, minibatch, read, 1e-3)
            output, res = fwd(*given)
            draw = generator(4)
            results.append((output, bwd(tree_map(lambda y: draw(*y.shape), output), res)))  # noqa: B023
    assert len(results[0][1]) == len(results[2][1]) + 1
    assert_trees_close(results[1], results[0], scale=1.0)
    assert_trees_close(results[3], results[2], scale=1.0)


@with_or_without
@every_read
@every_form
def test_without_momentum_and_decay_it_is_ttt_with_an_mlp(form: str, read: str, norm: bool) -> None:
    """eta = alpha = 0: outputs, network and the gradients that both have, whatever U is.   (W.31), (W.33)"""
    q, k, v, _, _, step, _, gain, bias, state = arguments(SHAPE, 3, norm)
    none, fixed = np.zeros_like(step), {"minibatch": 2, "read": read, "eps": 1.0}
    fwd, bwd = FORMS[form]
    (out, after), res = fwd(q, k, v, none, none, step, gain, bias, state, **fixed)
    expected, ttt_res = ttt_mlp_dual_fwd(q, k, v, step, gain, bias, state.M, **fixed)
    assert_trees_close((out, after.M), expected, scale=1.0)
    draw = generator(5)
    g_out, g_M = draw(*out.shape), tree_map(lambda p: draw(*p.shape), after.M)
    g_q, g_k, g_v, _, _, g_step, g_gain, g_bias, g_state = bwd(g_out, TitansMLPState(g_M, zeros_like(g_M)), res)
    ours = (g_q, g_k, g_v, g_step, g_gain, g_bias, g_state.M)
    assert_trees_close(present(ours), present(ttt_mlp_dual_bwd(g_out, g_M, ttt_res)), scale=1.0)


def test_it_is_not_ttt_with_another_step() -> None:
    """N: momentum and decay each change what is read from a mini-batch's second token on.   (W.31)"""
    q, k, v, momentum, decay, step, _, gain, bias, state = arguments(Shape(1, 4, 3, 3), 3)
    step, state = 5 * step, state._replace(U=zeros_like(state.U))
    fixed = {"minibatch": 4, "read": "inclusive", "eps": 1.0}
    run = lambda *rate: titans_mlp_dual_fwd(q, k, v, *rate, step, gain, bias, state, **fixed)[0][0]  # noqa: E731
    plain, heavy, fading = run(0 * momentum, 0 * decay), run(momentum + 0.1, 0 * decay), run(0 * momentum, decay + 0.1)
    assert_close(heavy[:, 0], plain[:, 0])
    assert relative_error(heavy[:, 1:], plain[:, 1:]) > CLEAR and relative_error(fading, plain) > CLEAR
    (stale, _), (fresh, _) = (titans_mlp_dual_fwd(q, k, v, momentum, decay, step, gain, bias, state, minibatch=m, read="inclusive")[0]
                              for m in (4, 1))  # fmt: skip
    assert relative_error(stale[:, 1:], fresh[:, 1:]) > CLEAR


@every_read
def test_a_sequence_split_between_mini_batches_is_the_whole(read: str) -> None:
    """The state is all that a later call needs, whichever form is next.   (W.31), (W.33)"""
    case = arguments(Shape(2, 8, 3, 3), 6)
    expected, _ = called("recurrent", 2, read)[0](*case)
    state, outs = case[-1], []
    for i, (start, stop) in enumerate(itertools.pairwise((0, 2, 6, 8))):
        fwd, _ = called(("dual", "recurrent")[i % 2], 2, read)
        (out, state), _ = fwd(*(a[:, start:stop] for a in case[:7]), *case[7:9], state)
        outs.append(out)
    assert_trees_close((np.concatenate(outs, axis=1), state), expected, scale=1.0)


@every_form
def test_a_gain_and_a_bias_per_sequence(form: str) -> None:
    """(B,E): each sequence is what it is alone with its own; and so are their gradients.   (W.31), (W.33)"""
    case = list(arguments(SHAPE, 7))
    case[7], case[8] = (np.stack([p, 1.5 * p]) for p in case[7:9])
    fwd, bwd = called(form, 2, "strict")
    check_adjoint(fwd, bwd, tuple(case))
    for b in range(2):
        alone = [tree_map(lambda a: a[b : b + 1], a) for a in case]  # noqa: B023
        alone[7], alone[8] = case[7][b], case[8][b]
        assert_trees_close(fwd(*alone)[0], tree_map(lambda a: a[b : b + 1], fwd(*case)[0]), scale=1.0)  # noqa: B023


def test_the_loss_and_its_gradient_are_those_of_ttt() -> None:
    """|f(k) - v|^2 by a complex step, and the network's own read with its adjoint.   (W.31), (W.20), (W.21)"""
    q, k, v, *_, gain, bias, state = arguments(SHAPE, 8)
    M, token = state.M, (k[:, 0], v[:, 0], np.tile(gain, (2, 1)), np.tile(bias, (2, 1)))
    assert_trees_close(titans_mlp_gradient(M, *token), ttt_mlp_gradient(M, *token))
    direction = tree_map(lambda p: generator(3)(*p.shape), M)
    moved = tree_map(lambda p, d: p + 1e-30j * d, M, direction)
    slope = np.imag(titans_mlp_loss(moved, *(a + 0j for a in token))) / 1e-30
    pairs = zip(leaves(titans_mlp_gradient(M, *token)), leaves(direction), strict=True)
    assert_close(sum(np.sum(g * d, axis=tuple(range(1, g.ndim))) for g, d in pairs), slope, scale=1.0)

    def read_bwd(d: Any, res: Any) -> tuple:
        return ttt_mlp_read_bwd(d, *res)

    def read_fwd(M: Any, q: Any, *norm: Any) -> tuple:
        out, res = ttt_mlp_read_fwd(M, q, *norm, eps=1.0)
        return out, (M, q, res)

    check_adjoint(read_fwd, read_bwd, (M, q[:, 0], *token[2:]))


@every_form
def test_what_does_not_fit_is_refused(form: str) -> None:
    """By name: no state, a short rate, a mini-batch of none, half a LayerNorm, a wrong momentum.   (W.31), (W.33)"""
    case, (fwd, _) = arguments(SHAPE, 9), called(form, 2, "strict")
    with pytest.raises(ValueError, match="Titans with an MLP needs a state, got None"):
        fwd(*case[:-1], None)
    for i, name in enumerate(("q", "k", "v", "momentum", "decay", "step", "join")):
        with pytest.raises(ValueError, match=rf"{'k' if name == 'q' else name} must have shape \(B,T"):
            fwd(*case[:i], case[i][:, :1], *case[i + 1 :])
    with pytest.raises(ValueError, match="mini-batch must hold at least 1 token, got 0"):
        called(form, 0, "strict")[0](*case)
    with pytest.raises(ValueError, match="a gain and a bias, got only one"):
        fwd(*case[:8], None, case[9])
    wrong = case[9]._replace(U=case[9].U._replace(b1=case[9].U.b1[:, :1]))
    with pytest.raises(ValueError, match=r"^state\.U\.b1 must have shape \(B,F\)"):
        fwd(*case[:9], wrong)


@every_form
def test_the_default_epsilon_is_a_millionth(form: str) -> None:
    """The same bits.   (W.31)"""
    case, (fwd, _) = arguments(SHAPE, 9), FORMS[form]
    given = (*case[:6], *case[7:])
    default, small = (fwd(*given, minibatch=2, read="strict", **words)[0][0] for words in ({}, {"eps": 1e-6}))
    assert_bitwise(default, small)


# Teeth
# -----------------------------------------------------------------------------------------------------------------------

COMPARISONS = pytest.mark.host("about the comparisons, not about arrays")


def is_sound() -> None:
    """The definition, both forms, their adjoints."""
    case = arguments(SHAPE, 8)
    for read in READS:
        expected = walked(case, 3, read, 1.0)
        for form in FORMS:
            fwd, bwd = called(form, 3, read)
            assert_trees_close(fwd(*case)[0], expected, scale=1.0)
            check_adjoint(fwd, bwd, case)


def replaced(module: Any, name: str, change: Callable) -> tuple:
    return module, name, partial(lambda f, *a, **s: change(f, *a, **s), getattr(module, name))


def dropped(i: int) -> Callable:
    return lambda f, *a, **s: tuple(tree_map(lambda x: 0 * x, y) if j == i else y for j, y in enumerate(f(*a, **s)))


MUTANTS = {
    "strict and inclusive exchanged": replaced(heavy_ball, "sums", lambda f, *a: f(*a[:-1], READS[1 - READS.index(a[-1])])),
    "slow query for fast": replaced(titans_mlp, "heavy_sums", lambda f, q, k, *a: f(k, k, *a)),
    "momentum forgotten": replaced(titans_mlp, "responses", lambda f, momentum, *a: f(0 * momentum, *a)),
    "decay forgotten": replaced(titans_mlp, "responses", lambda f, momentum, decay, join: f(momentum, 0 * decay, join)),
    "join forgotten": replaced(titans_mlp, "responses", lambda f, momentum, decay, join: f(momentum, decay, None)),
    "sign of the join": replaced(titans_mlp, "moved_by", lambda f, first, factor, moved: f(first, -factor, moved)),
    "a bias that is not kept": replaced(titans_mlp, "_moved", lambda f, S, *a: f(S._replace(M=S.M._replace(b1=0 * S.M.b1)), *a)),
    "constant channel of zeros": replaced(titans_mlp, "with_one", lambda f, x, b: f(x, b) * (np.arange(x.shape[2] + 1) < x.shape[2])),
    "first state's gradient dropped in a mini-batch": replaced(titans_mlp, "slow_bwd", dropped(0)),
    "first state's gradient dropped": replaced(titans_mlp, "ttt_mlp_gradient_bwd", dropped(0)),
    "gradient of the table dropped": replaced(titans_mlp, "heavy_sums_bwd", dropped(3)),
    "gradient of the momentum's state dropped": replaced(titans_mlp, "heavy_sums_bwd", dropped(5)),
    "gradient of rates dropped": replaced(titans_mlp, "moved_by_bwd", dropped(1)),
    "gradient of what is read dropped": replaced(titans_mlp, "ttt_mlp_read_bwd", dropped(0)),
    "stop-gradient in the write": replaced(titans_mlp, "slow_bwd", lambda f, g_dh, g_a, g_dz, *a: f(0 * g_dh, g_a, 0 * g_dz, *a)),
}


@COMPARISONS
def test_the_library_is_sound() -> None:
    """Without this the rejections below would mean nothing.   (W.31) to (W.34)"""
    is_sound()


@COMPARISONS
@pytest.mark.parametrize("what", MUTANTS)
def test_a_mutant_of_titans_with_an_mlp_is_rejected(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """N: one function of the file replaced.   (W.31) to (W.34)"""
    monkeypatch.setattr(*MUTANTS[what])
    with pytest.raises((AssertionError, AdjointError)):
        is_sound()


def test_zero_tokens_leave_the_state_as_it_is() -> None:
    """T = 0, both forms: nothing read, nothing written, the state's gradient goes through.   (W.31), (W.33)"""
    case = arguments(Shape(2, 0, 3, 3), 1)
    for form in FORMS:
        fwd, bwd = called(form, 2, "strict")
        (out, state), res = fwd(*case)
        assert out.shape == (2, 0, 3)
        assert_trees_close(state, case[-1])
        assert_trees_close(bwd((out, state), res)[-1], case[-1])
