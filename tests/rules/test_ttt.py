"""Test-time training: gradient descent run literally on a loss that knows no derivative, the dual
forms, what is a special case of what.

What follows an "N:" is a negative control.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import array_api_strict
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwl_ref.fast_layer import Past, fast_layer_bwd, fast_layer_fwd
from fwl_ref.gradcheck import AdjointError, check_adjoint
from fwl_ref.rules import ttt, ttt_linear, ttt_mlp
from fwl_ref.rules.common import READS
from fwl_ref.rules.delta import delta_chunked_fwd, delta_recurrent_bwd, delta_recurrent_fwd
from fwl_ref.rules.linear import linear_chunked_bwd, linear_chunked_fwd
from fwl_ref.rules.ttt import (
    UnderWay,
    dual_layer,
    dual_layer_bwd,
    inner_gradient,
    inner_gradient_bwd,
    inner_loss,
    predict_bwd,
    predict_fwd,
)
from fwl_ref.rules.ttt_linear import (
    TTTLinearState,
    ttt_linear_dual_bwd,
    ttt_linear_dual_fwd,
    ttt_linear_gradient,
    ttt_linear_gradient_bwd,
    ttt_linear_recurrent_bwd,
    ttt_linear_recurrent_fwd,
)
from fwl_ref.rules.ttt_mlp import (
    TTTMLPState,
    slow_bwd,
    slow_fwd,
    ttt_mlp_dual_fwd,
    ttt_mlp_gradient,
    ttt_mlp_gradient_bwd,
    ttt_mlp_recurrent_fwd,
)
from fwl_ref.tree import leaves, rebuild, tree_map
from tests.rules.several_arrays import gain_and_bias, linear_state, mlp_state, square, token, ttt_tokens
from tests.rules.table import Shape
from tests.strategies import first_elsewhere, generator, seeds, splits
from tests.tolerances import assert_bitwise, assert_close, assert_trees_close, float32_bound, relative_error

CLEAR = 1e-3  # a difference of this size is no rounding
every_read = pytest.mark.parametrize("read", READS)


class Network(NamedTuple):
    """One kind of hidden state, with everything that the tests vary."""

    name: str
    module: Any
    state: Callable
    norm: bool
    literal: Callable  # (state of one sequence, x) -> z, for one token


def literal_linear(state: TTTLinearState, x: np.ndarray) -> np.ndarray:
    return x @ state.W + (0 if state.b is None else state.b)


def literal_mlp(state: TTTMLPState, x: np.ndarray) -> np.ndarray:
    h = x @ state.W1 + state.b1
    return (0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))) @ state.W2 + state.b2


def without_bias(n: Shape, seed: int) -> TTTLinearState:
    return linear_state(n, seed)._replace(b=None)


NETWORKS = [
    Network("linear", ttt_linear, linear_state, True, literal_linear),
    Network("linear, no bias", ttt_linear, without_bias, True, literal_linear),
    Network("linear, identity", ttt_linear, linear_state, False, literal_linear),
    Network("linear, no bias, identity", ttt_linear, without_bias, False, literal_linear),
    Network("mlp", ttt_mlp, mlp_state, True, literal_mlp),
    Network("mlp, identity", ttt_mlp, mlp_state, False, literal_mlp),
]
every_network = pytest.mark.parametrize("network", NETWORKS, ids=[n.name for n in NETWORKS])
shapes = st.builds(Shape, *(st.integers(low, high) for low, high in ((1, 2), (0, 6), (1, 4), (1, 4))))


def arguments(network: Network, n: Shape, seed: int) -> tuple:
    """q, k, v, step, gain, bias, state: everything but mini-batch and read."""
    n = square(n) if network.norm else n
    norm = gain_and_bias(n.values) if network.norm else (None, None)
    return *ttt_tokens(n, seed), *norm, network.state(n, seed)


def function(network: Network, kind: str, way: str) -> Callable:
    """The rule's own, e.g. ttt_mlp_dual_fwd."""
    return getattr(network.module, f"{network.module.__name__.rsplit('.', 1)[-1]}_{kind}_{way}")


def form(network: Network, kind: str, eps: float, minibatch: int, read: str) -> tuple[Callable, Callable]:
    """fwd(*arguments) and bwd((dout, dstate), res), one gradient for each argument that is there."""
    fwd, bwd = (function(network, kind, way) for way in ("fwd", "bwd"))

    def present(d_output: tuple, res: Any) -> tuple:
        gradients = bwd(*d_output, res)
        assert all((g is not None) == network.norm for g in gradients[4:6])
        return tuple(g for g in gradients if g is not None)

    return partial(fwd, minibatch=minibatch, read=read, eps=eps), present


class Run(NamedTuple):
    """What a form gave."""

    output: Any  # (out, state)
    gradients: tuple


def run(network: Network, kind: str, case: tuple, minibatch: int, read: str, eps: float = 1.0, seed: int = 0) -> Run:
    fwd, bwd = form(network, kind, eps, minibatch, read)
    output, res = fwd(*case)
    draw = generator(seed + 99)
    return Run(output, bwd(tree_map(lambda y: draw(*y.shape).astype(y.dtype), output), res))


# The definition
# --------------------------------------------------------------------------------------------------------------


def literal_prediction(network: Network, state: Any, x: np.ndarray, gain: Any, bias: Any, eps: float) -> np.ndarray:
    z = network.literal(state, x)
    if gain is None:
        return z
    return x + gain * (z - z.mean()) / np.sqrt(np.mean((z - z.mean()) ** 2) + eps) + bias


def by_definition(network: Network, case: tuple, minibatch: int, read: str, eps: float, factor: np.ndarray | None = None) -> tuple:
    """Descent on |f(k) - v|^2, one sequence and token at a time; every entry of the gradient by a
    complex step of the loss itself. A state under way goes on, and is what goes out.
    """
    q, k, v, step, gain, bias, state = case
    outs, finals = np.zeros(v.shape), []
    factor = np.ones(step.shape) if factor is None else factor
    carried = state if isinstance(state, UnderWay) else UnderWay(state, tree_map(np.zeros_like, state), 0)
    for b in range(q.shape[0]):
        first, moved = ([p[b] for p in leaves(part)] for part in carried[:2])
        network_of = lambda arrays: rebuild(carried.first, arrays)  # noqa: E731
        place = carried.place
        for t in range(q.shape[1]):
            after = []
            for i, parameter in enumerate(first):
                slope = np.zeros(parameter.shape)
                for entry in np.ndindex(parameter.shape):
                    up = [p.astype("complex128") for p in first]
                    up[i][entry] += 1e-30j
                    error = literal_prediction(network, network_of(up), k[b, t], gain, bias, eps) - v[b, t]
                    slope[entry] = np.imag(np.sum(error * error)) / 1e-30
                after.append(moved[i] - step[b, t] * slope)
            seen = [f + factor[b, t] * m for f, m in zip(first, moved if read == "strict" else after, strict=True)]
            outs[b, t] = literal_prediction(network, network_of(seen), q[b, t], gain, bias, eps)
            moved, place = after, (place + 1) % minibatch
            if place == 0 or (state is not carried and t == q.shape[1] - 1):
                first = [f + factor[b, t] * m for f, m in zip(first, moved, strict=True)]
                moved = [0 * m for m in moved]
        finals.append(network_of(first) if state is not carried else UnderWay(network_of(first), network_of(moved), None))
    final = tree_map(lambda *parts: np.stack(parts), *finals)
    return outs, final if state is not carried else final._replace(place=place)


@every_network
@every_read
@pytest.mark.parametrize("minibatch", first_elsewhere([3, 1, 2, 9]))
def test_ttt_is_gradient_descent_on_its_loss_run_literally(network: Network, read: str, minibatch: int) -> None:
    """state' = state - step dl/dstate at the mini-batch's first state: both forms.   (W.9) to
    (W.16), (W.18), (W.20), (W.22)
    """
    case = arguments(network, Shape(2, 5, 2, 3), minibatch)
    expected = by_definition(network, case, minibatch, read, 1e-6)
    for kind in ("recurrent", "dual"):
        fwd, _ = form(network, kind, 1e-6, minibatch, read)
        assert_trees_close(fwd(*case)[0], expected, what=kind, scale=1.0)


# The pieces
# ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [True, False])
@given(seed=seeds)
def test_the_inner_loss_its_gradient_and_their_adjoints(norm: bool, seed: int) -> None:
    """<dl/dz, D> = dl along D; predict and inner_gradient against their backward passes.   (W.9),
    (W.10), (W.11), (W.12)
    """
    draw, shape = generator(seed), (2, 3, 4)
    k, z, v, direction = (draw(*shape) for _ in range(4))
    pair = (1 + draw(*shape, scale=0.3), draw(*shape)) if norm else ()
    slope = np.imag(inner_loss(k + 0j, z + 1e-30j * direction, v + 0j, *(p + 0j for p in pair), eps=0.5)) / 1e-30
    dz, _ = inner_gradient(k, z, v, *pair, eps=0.5)
    assert_close(np.sum(dz * direction, axis=-1), slope, scale=1.0)

    def zero_for_none(gradients: tuple) -> tuple:
        return tuple(np.zeros(shape) if g is None else g for g in gradients)

    check_adjoint(partial(predict_fwd, eps=0.5), lambda d, res: zero_for_none(predict_bwd(d, res)), (k, z, *pair))
    check_adjoint(partial(inner_gradient, eps=0.5), lambda d, res: zero_for_none(inner_gradient_bwd(d, res)), (k, z, v, *pair))


@every_network
@given(seed=seeds)
def test_the_adjoint_of_the_inner_gradient(network: Network, seed: int) -> None:
    """The gradient of the whole state, differentiated: an outer gradient of an inner one.   (W.13),
    (W.15), (W.18), (W.19), (W.21)
    """
    n = Shape(2, 1, 3, 3)
    state, (k, v) = network.state(n, seed), token(n, seed)
    norm = tuple(np.tile(p, (2, 1)) for p in gain_and_bias(3)) if network.norm else ()
    gradient, adjoint = (
        (ttt_linear_gradient, ttt_linear_gradient_bwd) if network.module is ttt_linear else (ttt_mlp_gradient, ttt_mlp_gradient_bwd)
    )
    check_adjoint(lambda *a: (gradient(*a, eps=1.0), a), lambda g, a: adjoint(g, *a, eps=1.0), (state, k, v, *norm))


@pytest.mark.parametrize("norm", [True, False])
@given(seed=seeds)
def test_the_slow_pass_of_the_mlp_and_its_adjoint(norm: bool, seed: int) -> None:
    """Sweeps 1 and 2 for many tokens at once, then 5 and 6.   (W.18), (W.19)"""
    n = Shape(2, 4, 3, 3)
    _, k, v, _ = ttt_tokens(n, seed)
    pair = tuple(np.tile(p, (2, 4, 1)) for p in gain_and_bias(3)) if norm else ()

    def forward(*inputs: Any) -> tuple:
        (dh, a, dz), res = slow_fwd(*inputs, eps=1.0)
        return (dh, a, dz), (inputs[0], inputs[1], dz, res)

    check_adjoint(forward, lambda g, res: slow_bwd(*g, *res), (mlp_state(n, seed), k, v, *pair))


# Forms
# -----------------------------------------------------------------------------------------------------------------------


@every_network
@every_read
@pytest.mark.parametrize("minibatch", first_elsewhere([3, 1, 2, 6, 8]))
def test_dual_is_token_by_token(network: Network, read: str, minibatch: int) -> None:
    """Outputs, final state and every gradient, gain and bias included, with LayerNorm's usual
    eps.   (W.15), (W.17), (W.21), (W.23)
    """
    case = arguments(network, Shape(2, 6, 3, 5), minibatch)
    expected, actual = (run(network, kind, case, minibatch, read, eps=1e-6) for kind in ("recurrent", "dual"))
    assert_trees_close(actual, expected, scale=1.0)


@every_network
@every_read
@pytest.mark.parametrize("kind", ["recurrent", "dual"])
@pytest.mark.parametrize("minibatch", first_elsewhere([3, 2, 7]))
def test_backward_is_the_adjoint_of_forward_for_mini_batches(network: Network, read: str, kind: str, minibatch: int) -> None:
    """<u, J v> = <J^T u, v> for tokens, steps, gain, bias and state.   (W.14) to (W.17), (W.20) to
    (W.23)
    """
    check_adjoint(*form(network, kind, 1.0, minibatch, read), arguments(network, Shape(2, 5, 3, 2), minibatch))


@every_network
@every_read
@pytest.mark.parametrize("kind", ["recurrent", "dual"])
def test_backward_is_the_gradient_by_complex_step_for_mini_batches(network: Network, read: str, kind: str) -> None:
    """J^T u = Im <u, f(x + i h e)> / h, gain and bias too; nothing is truncated, so the usual
    eps.   (W.15), (W.17), (W.21), (W.23)
    """
    case, (fwd, _) = arguments(network, Shape(1, 3, 2, 2), 5), form(network, kind, 1e-6, 2, read)
    output, gradients = run(network, kind, case, 2, read, eps=1e-6)
    draw = generator(99)
    u = [draw(*y.shape) for y in leaves(output)]
    lifted = tree_map(lambda a: a.astype("complex128"), case)
    flat, actual = leaves(lifted), leaves(gradients)
    assert len(flat) == len(actual)
    for i, gradient in enumerate(actual):
        expected = np.zeros(gradient.shape)
        for entry in np.ndindex(gradient.shape):
            moved = flat[i].copy()
            moved[entry] += 1e-30j
            results = leaves(fwd(*rebuild(lifted, [*flat[:i], moved, *flat[i + 1 :]]))[0])
            expected[entry] = sum(np.sum(a * np.imag(b)) for a, b in zip(u, results, strict=True)) / 1e-30
        assert_close(gradient, expected, what=f"{network.name}, gradient {i}")


@every_network
@given(seed=seeds, read=st.sampled_from(READS), minibatch=st.integers(1, 3), cuts=splits(3))
def test_a_sequence_split_between_mini_batches_is_the_whole(network: Network, seed: int, read: str, minibatch: int, cuts: list) -> None:
    """run(x[:k]) then run(x[k:], state) = run(x) for k a multiple of the mini-batch, any mix of
    forms.   (W.14), (W.16), (W.20), (W.22)
    """
    *tokens, gain, bias, state = case = arguments(network, Shape(2, 3 * minibatch, 2, 3), seed)
    expected, _ = run(network, "recurrent", case, minibatch, read)
    outs = []
    for i, (start, stop) in enumerate(itertools.pairwise(minibatch * cut for cut in cuts)):
        fwd, _ = form(network, ("dual", "recurrent")[i % 2], 1.0, minibatch, read)
        (out, state), _ = fwd(*(a[:, start:stop] for a in tokens), gain, bias, state)
        outs.append(out)
    assert_trees_close((np.concatenate(outs, axis=1), state), expected, scale=1.0)


@every_network
@every_read
@pytest.mark.parametrize("kind", ["recurrent", "dual"])
def test_reading_is_causal_to_the_last_bit_in_mini_batches(network: Network, read: str, kind: str) -> None:
    """o_{<=t} keeps its bits when k, v and step from t on (strict) or after t (inclusive) are
    replaced at scale 1e3.   (W.16), (W.22)
    """
    case, other = arguments(network, Shape(2, 6, 3, 3), 1), arguments(network, Shape(2, 6, 3, 3), 2)
    fwd, _ = form(network, kind, 1e-6, 4, read)
    before, _ = fwd(*case)
    for t in range(6):
        tokens = [a.copy() for a in case[:4]]
        for i in range(4):
            start = t + (i == 0 or read == "inclusive")
            tokens[i][:, start:] = other[i][:, start:] * (1e3 if i < 3 else 1)
        with np.errstate(over="ignore", invalid="ignore"):
            after, _ = fwd(*tokens, *case[4:])
        assert_bitwise(after[0][:, : t + 1], before[0][:, : t + 1], f"{network.name}, token {t}")


@every_network
@pytest.mark.parametrize("kind", ["recurrent", "dual"])
def test_float32_is_float64_rounded_in_mini_batches(network: Network, kind: str) -> None:
    """dtype(f(x)) = dtype(x); |f32 - f64| <= c n 2^-24, gradients of gain and bias
    included.   (W.16), (W.17), (W.22), (W.23)
    """
    single = tree_map(lambda a: a.astype("float32"), arguments(network, Shape(2, 5, 3, 4), 3))
    double = tree_map(lambda a: a.astype("float64"), single)
    rounded, exact = (run(network, kind, case, 3, "inclusive") for case in (single, double))
    assert all(a.dtype == np.float32 for a in leaves(rounded))
    for a, b in zip(leaves(rounded), leaves(exact), strict=True):
        assert_close(a, b, float32_bound(terms=64, stages=32), network.name, scale=1.0)


@every_network
@pytest.mark.parametrize("kind", ["recurrent", "dual"])
def test_mini_batches_run_on_any_array_library_and_device(network: Network, kind: str) -> None:
    """f on a strict array-API library, on a device that is not the host, equals f on
    NumPy.   (W.16), (W.22)
    """
    device, case = array_api_strict.Device("device1"), arguments(network, Shape(2, 5, 3, 3), 4)
    fwd, bwd = form(network, kind, 1e-6, 2, "strict")
    output, res = fwd(*case)
    there, res_there = fwd(*rebuild(case, [array_api_strict.asarray(a).to_device(device) for a in leaves(case)]))
    expected, actual = leaves((output, bwd(output, res))), leaves((there, bwd(there, res_there)))
    for a, b in zip(actual, expected, strict=True):
        assert a.device == device
        assert_close(np.asarray(a.to_device(array_api_strict.Device("CPU_DEVICE"))), b)


# The reader's factor, and mini-batches that go on
# ---------------------------------------------------------------------------------------------------------------


def under_way(network: Network, n: Shape, seed: int, place: int) -> tuple[tuple, np.ndarray]:
    """Arguments with a mini-batch of which ``place`` tokens are over, and a factor per token."""
    *case, first = arguments(network, n, seed)
    factor = np.random.default_rng(seed).uniform(0.2, 1.5, (n.batch, n.length))
    return (*case, UnderWay(first, tree_map(lambda a: 0.1 * a, network.state(square(n) if network.norm else n, seed + 5)), place)), factor


def form_with_factor(network: Network, kind: str, eps: float, minibatch: int, read: str, place: int) -> tuple[Callable, Callable]:
    """fwd(q, k, v, step, factor, gain, bias, first, moved), and its adjoint from (dout, (dfirst, dmoved))."""
    fwd, bwd = (function(network, kind, way) for way in ("fwd", "bwd"))

    def forward(*case: Any) -> tuple:
        *tokens, factor, gain, bias, first, moved = case
        state = UnderWay(first, moved, place)
        (out, after), res = fwd(*tokens, gain, bias, state, minibatch=minibatch, read=read, eps=eps, factor=factor)
        return (out, tuple(after[:2])), res

    def backward(d_output: tuple, res: Any) -> tuple:
        *gradients, g_state = bwd(d_output[0], UnderWay(*d_output[1], None), res)
        return (*(g for g in gradients if g is not None), *g_state[:2])

    return forward, backward


def spread_out(case: tuple, factor: np.ndarray) -> tuple:
    """As ``form_with_factor`` takes them."""
    return *case[:4], factor, *case[4:6], *case[6][:2]


@every_network
@every_read
@pytest.mark.parametrize("under_way_at", first_elsewhere([(3, 2), (1, 0), (3, 0), (4, 1), (9, 3)]))
def test_a_mini_batch_under_way_goes_on_by_definition(network: Network, read: str, under_way_at: tuple[int, int]) -> None:
    """Read first + factor_t moved; a full mini-batch leaves first + factor_t moved: both forms, and the
    place afterwards.   (W.14), (W.16), (W.20), (W.22)
    """
    minibatch, place = under_way_at
    case, factor = under_way(network, Shape(2, 5, 2, 3), minibatch, place)
    expected, after = by_definition(network, case, minibatch, read, 1e-2, factor)
    for kind in ("recurrent", "dual"):
        (out, state), _ = function(network, kind, "fwd")(*case, minibatch=minibatch, read=read, eps=1e-2, factor=factor)
        assert_trees_close((out, state.first, state.moved), (expected, after.first, after.moved), what=kind, scale=1.0)
        assert state.place == after.place == (place + 5) % minibatch
    whole = (*case[:6], case[6].first)
    expected = by_definition(network, whole, minibatch, read, 1e-2, factor)
    for kind in ("recurrent", "dual"):
        found, _ = function(network, kind, "fwd")(*whole, minibatch=minibatch, read=read, eps=1e-2, factor=factor)
        assert_trees_close(found, expected, what=kind, scale=1.0)


@every_network
@every_read
@pytest.mark.parametrize("kind", ["recurrent", "dual"])
@pytest.mark.parametrize("under_way_at", first_elsewhere([(3, 2), (4, 1), (9, 3)]))
def test_backward_is_the_adjoint_of_forward_for_a_mini_batch_under_way(
    network: Network, read: str, kind: str, under_way_at: tuple[int, int]
) -> None:
    """<u, J v> = <J^T u, v> for the factor, and for first and moved of the state.   (W.15), (W.17), (W.21), (W.23)"""
    minibatch, place = under_way_at
    case = spread_out(*under_way(network, Shape(2, 5, 3, 2), 3, place))
    check_adjoint(*form_with_factor(network, kind, 1.0, minibatch, read, place), case)


@every_network
@every_read
@pytest.mark.parametrize("kind", ["recurrent", "dual"])
def test_backward_is_the_adjoint_of_forward_for_a_factor_and_a_network(network: Network, read: str, kind: str) -> None:
    """The same where a mini-batch begins, and what comes in is a network that nothing has moved.   (W.15), (W.17), (W.21), (W.23)"""
    case, factor = under_way(network, Shape(2, 5, 3, 2), 3, 0)
    fwd, bwd = (function(network, kind, way) for way in ("fwd", "bwd"))

    def from_a_network(factor: Any, first: Any) -> tuple:
        return fwd(*case[:6], first, minibatch=3, read=read, eps=1.0, factor=factor)

    check_adjoint(from_a_network, lambda d, res: (lambda g: (g[4], g[-1]))(bwd(*d, res)), (factor, case[6].first))


@every_network
@given(seed=seeds, read=st.sampled_from(READS), minibatch=st.integers(1, 4), cuts=splits(7))
def test_a_sequence_under_way_may_be_cut_anywhere(network: Network, seed: int, read: str, minibatch: int, cuts: list) -> None:
    """run(x[:k]) then run(x[k:], state) = run(x) for every k, token by token too, any mix of forms; and
    backwards through the pieces.   (W.14) to (W.17), (W.20) to (W.23)
    """
    case, factor = under_way(network, Shape(2, 7, 2, 3), seed, 0)
    *tokens, gain, bias, state = case
    settings = {"minibatch": minibatch, "read": read, "eps": 1.0}
    (expected, last), res = function(network, "recurrent", "fwd")(*case, **settings, factor=factor)
    draw = generator(seed)
    dout, dlast = draw(*expected.shape), UnderWay(*(tree_map(lambda a: draw(*a.shape), part) for part in last[:2]), None)
    gradients = function(network, "recurrent", "bwd")(dout, dlast, res)
    for pieces in (cuts, list(range(8))):
        outs, residuals, carried = [], [], state
        for i, (start, stop) in enumerate(itertools.pairwise(pieces)):
            kind, of = ("dual", "recurrent")[i % 2], np.s_[:, start:stop]
            fwd = function(network, kind, "fwd")
            (out, carried), part = fwd(*(a[of] for a in tokens), gain, bias, carried, **settings, factor=factor[of])
            outs.append(out)
            residuals.append((kind, of, part))
        assert carried.place == last.place
        found = np.concatenate(outs, axis=1), carried.first, carried.moved
        assert_trees_close(found, (expected, last.first, last.moved), scale=1.0)
        d_state, d_tokens = dlast, [np.zeros_like(a) for a in (*tokens, factor)]
        for kind, of, part in reversed(residuals):
            *g, d_state = function(network, kind, "bwd")(dout[of], d_state, part)
            for whole, piece in zip(d_tokens, g[:5], strict=True):
                whole[of] = piece
        assert_trees_close((*d_tokens, *d_state[:2]), (*gradients[:5], *gradients[-1][:2]), scale=1.0)


@every_read
def test_the_published_step_is_a_factor_of_the_reader_and_a_rate_of_the_writer(read: str) -> None:
    """eta_ts = token_idx_t lr_s in one table: z_t = q_t W + b - sum_s eta_ts (q_t . k_s + 1) dz_s in a
    mini-batch, and the next begins with the row of its last token.   (W.16)
    """
    q, k, v, lr, _, _, (W, b) = arguments(NETWORKS[2], Shape(2, 6, 3, 2), 1)
    index = 1 / np.arange(1, 4) + np.asarray([0.1, 0.0, -0.05])  # 1 / (t + 1) and what was learned
    out, after = np.zeros(v.shape), TTTLinearState(W.copy(), b.copy())
    for start in (0, 3):
        at = np.s_[:, start : start + 3]
        dz = 2 * (k[at] @ after.W + after.b[:, None] - v[at])
        eta = index[None, :, None] * lr[at][:, None, :] * np.tri(3, k=0 if read == "inclusive" else -1)
        pairs = q[at] @ np.swapaxes(k[at], 1, 2) + 1
        out[at] = q[at] @ after.W + after.b[:, None] - (eta * pairs) @ dz
        u = index[2] * lr[at][:, :, None] * dz
        after = TTTLinearState(after.W - np.swapaxes(k[at], 1, 2) @ u, after.b - u.sum(1))
    factor = np.tile(np.concatenate([index, index]), (2, 1))
    for fwd in (ttt_linear_recurrent_fwd, ttt_linear_dual_fwd):
        found, _ = fwd(q, k, v, lr, None, None, TTTLinearState(W, b), minibatch=3, read=read, factor=factor)
        assert_trees_close(found, (out, after), scale=1.0)


@every_network
@every_read
def test_no_factor_is_a_factor_of_1_and_a_factor_is_no_step(network: Network, read: str) -> None:
    """Factor 1 changes nothing. N: the same numbers as the writer's step and as the reader's factor differ.   (W.14)"""
    case, factor = under_way(network, Shape(2, 6, 3, 3), 2, 0)
    case = louder((*case[:6], case[6].first))
    for kind in ("recurrent", "dual"):
        run_with = partial(function(network, kind, "fwd"), minibatch=3, read=read, eps=1.0)
        assert_trees_close(run_with(*case, factor=0 * factor + 1)[0], run_with(*case)[0], scale=1.0)
        by_reader, _ = run_with(*case, factor=factor)[0]
        by_writer, _ = run_with(*case[:3], case[3] * factor, *case[4:])[0]
        assert relative_error(by_reader, by_writer) > CLEAR


@pytest.mark.parametrize("network", [n for n in NETWORKS if n.norm], ids=[n.name for n in NETWORKS if n.norm])
@pytest.mark.parametrize("kind", ["recurrent", "dual"])
def test_gain_and_bias_may_be_one_per_sequence(network: Network, kind: str) -> None:
    """(B,E) is a call per sequence, gradients per sequence: LayerNorm per head.   (W.9), (W.10)"""
    *tokens, gain, bias, state = arguments(network, Shape(2, 5, 3, 3), 4)
    gain, bias = np.stack([gain, 2 * gain]), np.stack([bias, -bias])
    fwd, bwd = form(network, kind, 1.0, 3, "inclusive")
    case = (*tokens, gain, bias, state)
    check_adjoint(fwd, bwd, case)
    (out, _), _ = fwd(*case)
    for b in range(2):
        own = tree_map(lambda a: a[b : b + 1], state)  # noqa: B023
        (alone, _), _ = fwd(*(a[b : b + 1] for a in tokens), gain[b], bias[b], own)
        assert_close(out[b : b + 1], alone)


@every_network
@pytest.mark.parametrize("kind", ["recurrent", "dual"])
def test_a_place_outside_of_the_mini_batch_is_refused(network: Network, kind: str) -> None:
    """A full mini-batch is the next one at 0."""
    for place in (-1, 3):
        case, _ = under_way(network, Shape(2, 4, 3, 3), 0, place)
        with pytest.raises(ValueError, match=f"from 0 to 2, got {place}; a full one begins the next at 0"):
            function(network, kind, "fwd")(*case, minibatch=3, read="strict")
    case, factor = under_way(network, Shape(2, 4, 3, 3), 0, 1)
    with pytest.raises(ValueError, match=r"factor must have shape \(B,T\)"):
        function(network, kind, "fwd")(*case, minibatch=3, read="strict", factor=factor[:, :3])
    with pytest.raises(ValueError, match=r"state\.\w+ must have shape"):
        moved = tree_map(lambda a: np.concatenate([a, a], axis=1), case[6].moved)
        function(network, kind, "fwd")(*case[:6], case[6]._replace(moved=moved), minibatch=3, read="strict")


# Special cases
# ---------------------------------------------------------------------------------------------------------------


@every_read
@given(n=shapes, seed=seeds)
def test_ttt_with_mini_batch_1_and_no_layernorm_is_delta_at_twice_the_rate(read: str, n: Shape, seed: int) -> None:
    """l = |k S - v|^2 has twice the gradient of the delta rule's: outputs and gradients, b
    None.   (W.14), (W.15), (W.16)
    """
    q, k, v, step, _, _, state = arguments(NETWORKS[3], n, seed)
    expected, res = delta_recurrent_fwd(q, k, v, 2 * step, state.W, read=read)
    draw = generator(seed + 9)
    cotangent = draw(*expected[0].shape), draw(*expected[1].shape)
    dq, dk, dv, dbeta, dS = delta_recurrent_bwd(*cotangent, res)
    for fwd, bwd in ((ttt_linear_recurrent_fwd, ttt_linear_recurrent_bwd), (ttt_linear_dual_fwd, ttt_linear_dual_bwd)):
        (out, after), ours = fwd(q, k, v, step, None, None, state, minibatch=1, read=read)
        assert_trees_close((out, after.W), expected, scale=1.0)
        g_q, g_k, g_v, g_step, _, _, g_state = bwd(cotangent[0], TTTLinearState(cotangent[1], None), ours)
        assert_trees_close((g_q, g_k, g_v, g_step, g_state.W), (dq, dk, dv, 2 * dbeta, dS), scale=1.0)


def with_one(x: np.ndarray) -> np.ndarray:
    return np.concatenate([x, np.ones_like(x[..., :1])], axis=-1)


@every_read
@given(n=shapes, seed=seeds)
def test_a_bias_is_a_weight_whose_input_is_1(read: str, n: Shape, seed: int) -> None:
    """With b the same rule is delta on [q, 1] and [k, 1], the state's last row being b.   (W.14),
    (W.16)
    """
    q, k, v, step, _, _, state = arguments(NETWORKS[2], n, seed)
    S = np.concatenate([state.W, state.b[:, None]], axis=1)
    (out, after), _ = delta_chunked_fwd(with_one(q), with_one(k), v, 2 * step, S, 3, read=read)
    for fwd in (ttt_linear_recurrent_fwd, ttt_linear_dual_fwd):
        (ours, (W, b)), _ = fwd(q, k, v, step, None, None, state, minibatch=1, read=read)
        assert_trees_close((ours, W, b), (out, after[:, :-1], after[:, -1]), scale=1.0)


@given(n=shapes, seed=seeds)
def test_the_dual_layer_read_strictly_is_the_fast_layer_whose_state_is_the_layer(n: Shape, seed: int) -> None:
    """State W and b, keep and step sizes 1: the same output, final state and gradients.   (W.16),
    (W.17), (F.10), (F.11)
    """
    q, k, u, _, _, _, (W, b) = arguments(NETWORKS[2], n, seed)
    one = np.asarray(1.0)
    y, *after = dual_layer(q, k, u, W, b, "strict")
    (out, state), res = fast_layer_fwd(q, k, u, one, one, Past(one, chunk=2), (W, b))
    assert_trees_close((y, *after), (out, *state), scale=1.0)
    draw = generator(seed + 9)
    g_y, g_after = draw(*y.shape), tuple(draw(*p.shape) for p in after)
    g = fast_layer_bwd(g_y, g_after, res)
    ours = dual_layer_bwd(g_y, g_after, q, k, u, W, b, "strict")
    assert_trees_close(tuple(ours), (g.query, g.key, g.value, *g.state), scale=1.0)


@every_read
@given(n=shapes, seed=seeds)
def test_ttt_in_one_mini_batch_from_zero_is_linear_attention(read: str, n: Shape, seed: int) -> None:
    """T tokens a mini-batch, W = 0, step 1/2, no LayerNorm: o_t = sum (q_t . k_s) v_s, and
    gradients.   (W.14), (W.16), (W.17)
    """
    q, k, v, step, _, _, state = arguments(NETWORKS[3], n, seed)
    empty, half = TTTLinearState(0 * state.W, None), 0 * step + 0.5
    expected, res = linear_chunked_fwd(q, k, v, None, 2, read=read)
    draw = generator(seed + 9)
    cotangent = draw(*expected[0].shape), draw(*expected[1].shape)
    settings = {"minibatch": max(n.length, 1), "read": read}
    (out, after), ours = ttt_linear_dual_fwd(q, k, v, half, None, None, empty, **settings)
    assert_trees_close((out, after.W), expected, scale=1.0)
    assert_close(ttt_linear_recurrent_fwd(q, k, v, half, None, None, empty, **settings)[0][0], expected[0], scale=1.0)
    gradients = ttt_linear_dual_bwd(cotangent[0], TTTLinearState(cotangent[1], None), ours)
    assert_trees_close((gradients[0], gradients[2]), tuple(linear_chunked_bwd(*cotangent, res)[i] for i in (0, 2)), scale=1.0)


@every_read
def test_no_state_is_a_linear_network_of_zeros(read: str) -> None:
    """state None: W = 0 and b = 0, bitwise.   (W.14), (W.16)"""
    *case, state = arguments(NETWORKS[0], Shape(2, 4, 3, 3), 1)
    for fwd in (ttt_linear_recurrent_fwd, ttt_linear_dual_fwd):
        none, zeros = (fwd(*case, s, minibatch=2, read=read)[0] for s in (None, tree_map(np.zeros_like, state)))
        for a, b in zip(leaves(none), leaves(zeros), strict=True):
            assert_bitwise(a, b)


# What differs
# ----------------------------------------------------------------------------------------------------------------


def louder(case: tuple) -> tuple:
    """The same with steps between 0.1 and 0.5, so that what one step changes in the next gradient
    is plain to see.
    """
    return *case[:3], 5 * case[3], *case[4:]


@every_network
def test_stale_is_not_current_and_strict_is_not_inclusive(network: Network) -> None:
    """N: a mini-batch of 2 is another function from its second token on; the two reads differ at
    every token.   (W.14), (W.20)
    """
    case = louder(arguments(network, Shape(2, 6, 3, 4), 6))
    (current, _), (stale, _) = (run(network, "dual", case, m, "strict").output for m in (1, 2))
    assert_close(stale[:, :2], current[:, :2])  # token 1 reads what token 0 wrote, and that gradient is never stale
    assert np.all(np.max(np.abs(stale - current), axis=(0, 2))[2:] > CLEAR)
    inclusive, _ = run(network, "dual", case, 1, "inclusive").output
    assert np.all(np.max(np.abs(inclusive - current), axis=(0, 2)) > CLEAR)


@every_network
def test_a_network_split_inside_a_mini_batch_is_another_function(network: Network) -> None:
    """N: given a network, the second call begins a mini-batch of its own.   (W.14), (W.20)"""
    *tokens, gain, bias, state = case = louder(arguments(network, Shape(1, 4, 3, 4), 6))
    fwd, _ = form(network, "dual", 1.0, 4, "strict")
    (_, state), _ = fwd(*(a[:, :1] for a in tokens), gain, bias, state)
    (out, _), _ = fwd(*(a[:, 1:] for a in tokens), gain, bias, state)
    whole, _ = run(network, "dual", case, 4, "strict").output
    assert_close(out[:, 0], whole[:, 1])
    assert relative_error(out[:, 1:], whole[:, 2:]) > CLEAR


# Boundary
# --------------------------------------------------------------------------------------------------------------------


@every_network
@pytest.mark.parametrize("kind", ["recurrent", "dual"])
def test_bad_settings_are_refused(network: Network, kind: str) -> None:
    """A mini-batch below 1, half a LayerNorm, keys that cannot be added to values, a network of the
    wrong size.   (W.14), (W.20)
    """
    case = arguments(network, Shape(2, 4, 3, 3), 0)
    for minibatch in (0, -2):
        with pytest.raises(ValueError, match=f"mini-batch must hold at least 1 token, got {minibatch}"):
            form(network, kind, 1.0, minibatch, "strict")[0](*case)
    fwd, _ = form(network, kind, 1.0, 2, "strict")
    with pytest.raises(ValueError, match="a gain and a bias, got only one"):
        fwd(*case[:4], np.ones(3), None, case[6])
    wide = (np.concatenate([a, a], axis=-1) for a in case[:2])
    with pytest.raises(ValueError, match=r"^v must have shape \(B,T,E\)" if network.norm else r"^state\.\w+ must have shape"):
        fwd(*wide, *case[2:])
    with pytest.raises(ValueError, match=r"(gain|bias) must have shape \(E\)"):
        fwd(*case[:4], np.ones(5), np.ones(5), case[6])
    with pytest.raises(ValueError, match=r"state\.\w+ must have shape"):
        fwd(*case[:6], rebuild(case[6], [np.concatenate([a, a], axis=1) for a in leaves(case[6])]))


@every_network
@pytest.mark.parametrize("kind", ["recurrent", "dual"])
def test_the_epsilon_of_layernorm_is_a_millionth_unless_told_otherwise(network: Network, kind: str) -> None:
    """The same bits as with eps = 1e-6; others with 1e-2 if there is a LayerNorm.   (W.14), (W.20)"""
    fwd = function(network, kind, "fwd")
    case = arguments(network, Shape(2, 4, 3, 3), 0)
    by_default, small, large = (fwd(*case, minibatch=2, read="strict", **eps)[0][0] for eps in ({}, {"eps": 1e-6}, {"eps": 1e-2}))
    assert_bitwise(by_default, small)
    assert (relative_error(large, small) > CLEAR) == network.norm


def test_a_layer_without_a_bias_has_no_gradient_for_one() -> None:
    """None in, None out.   (D.2)"""
    draw = generator(2)
    x, W, g_y = draw(2, 4, 3), draw(2, 3, 5), draw(2, 4, 5)
    assert ttt.layer_bwd(g_y, x, W, None)[2] is None
    assert_close(ttt.layer_bwd(g_y, x, W, draw(2, 5))[2], np.sum(g_y, axis=1))


@pytest.mark.parametrize("fwd", [ttt_mlp_recurrent_fwd, ttt_mlp_dual_fwd])
def test_an_mlp_needs_weights_to_start_from(fwd: Callable) -> None:
    """From zeros only b2 would ever move, so there is no empty memory.   (W.18), (W.20)"""
    case = arguments(NETWORKS[4], Shape(1, 3, 3, 3), 0)
    with pytest.raises(ValueError, match="TTT-MLP needs a state, got None"):
        fwd(*case[:6], None, minibatch=1, read="strict")
    (_, after), _ = fwd(*case[:6], tree_map(np.zeros_like, case[6]), minibatch=1, read="strict", eps=1.0)
    assert not np.any(after.W1) and not np.any(after.b1) and not np.any(after.W2) and np.all(after.b2 != 0)


# Teeth
# -----------------------------------------------------------------------------------------------------------------------


COMPARISONS = pytest.mark.host("about the comparisons, not about arrays")


def is_sound(network: Network) -> None:
    """The definition, dual = token by token in everything, and the adjoint of the dual form."""
    case = arguments(network, Shape(2, 5, 3, 3), 8)
    for read in READS:
        by_token, dual = (run(network, kind, case, 2, read) for kind in ("recurrent", "dual"))
        assert_trees_close(by_token.output, by_definition(network, case, 2, read, 1.0), scale=1.0)
        assert_trees_close(dual, by_token, scale=1.0)
        check_adjoint(*form(network, "dual", 1.0, 2, read), case)
    case, factor = under_way(network, Shape(2, 5, 3, 3), 8, 1)
    for kind in ("recurrent", "dual"):
        check_adjoint(*form_with_factor(network, kind, 1.0, 3, "strict", 1), spread_out(case, factor))


LINEAR, MLP = NETWORKS[0], NETWORKS[4]
USERS = {ttt: (LINEAR, MLP), ttt_linear: (LINEAR,), ttt_mlp: (MLP,)}  # who notices a change of which file


def replaced(name: str, change: Callable, *modules: Any) -> list[tuple]:
    """The function of that name, as ``change`` makes it, in each of the modules; once for every
    network that uses the module.
    """
    return [
        (network, m, name, lambda *args, f=getattr(m, name), **settings: change(f, *args, **settings))
        for m in modules
        for network in USERS[m]
    ]  # fmt: skip


def dropped(i: int) -> Callable:
    return lambda f, *args, **settings: tuple(
        (tree_map(lambda a: 0 * a, y) if j == i else y) for j, y in enumerate(f(*args, **settings))
    )  # fmt: skip


BOTH = ttt_linear, ttt_mlp
MUTANTS = {
    "strict and inclusive exchanged": replaced("sums", lambda f, *a: f(*a[:-1], READS[1 - READS.index(a[-1])]), ttt),
    "query and key exchanged": replaced("sums", lambda f, q, k, *a: f(k, q, *a), ttt),
    "fast key for slow key, slow query for fast": replaced("sums", lambda f, q, k, *a: f(k, k, *a), ttt),
    "sign of the write": replaced("sums", lambda f, q, k, u, *a: f(q, k, -u, *a), ttt),
    "sign of the step": replaced("descend", lambda f, state, rate, g: f(state, -rate, g), ttt),
    "residual forgotten": replaced("predict_fwd", lambda f, x, *a, **s: f(0 * x, *a, **s), ttt, *BOTH),
    "factor 2 forgotten": replaced("inner_gradient", lambda f, *a, **s: (0.5 * f(*a, **s)[0], f(*a, **s)[1]), *BOTH),
    "constant channel of zeros": replaced("with_one", lambda f, x, b: f(x, b) * (np.arange(x.shape[2] + 1) < x.shape[2]), ttt),
    "gradient of the key of an inner gradient dropped": replaced("layer_gradient_bwd", dropped(0), *BOTH),
    "gradient of the value of an inner gradient dropped": replaced("layer_gradient_bwd", dropped(1), *BOTH),
    "state after the mini-batch not passed on": replaced("dual_layer_bwd", lambda f, g, after, *a: f(g, None, *a), ttt),
    "stop-gradient in the write": replaced("inner_gradient_bwd", lambda f, g, res: f(0 * g, res), *BOTH),
    "second derivative of LayerNorm dropped": replaced("layernorm_bwd_bwd", dropped(1), ttt),
    "LayerNorm's gain in the second order dropped": replaced("layernorm_bwd_bwd", dropped(2), ttt),
    "curvature of GELU dropped": replaced("gelu_bwd_bwd", dropped(1), ttt_mlp),
    "slope of GELU in the second order dropped": replaced("gelu_bwd_bwd", dropped(0), ttt_mlp),
    "gradient of the query dropped": replaced("sums_bwd", dropped(0), ttt),
    "gradient of the key dropped": replaced("sums_bwd", dropped(1), ttt),
    "gradient of the value dropped": replaced("sums_bwd", dropped(2), ttt),
    "gradient of the state dropped": replaced("sums_bwd", dropped(4), ttt),
    "gradient of the step dropped": replaced("descend_bwd", dropped(0), ttt),
    "reader's factor forgotten": replaced("moved_by", lambda f, first, factor, moved: f(first, None, moved), ttt),
    "gradient of the factor dropped": replaced("moved_by_bwd", lambda f, *a: (f(*a)[0], None if a[1] is None else 0 * f(*a)[1]), ttt),
    "gradient through the steps dropped": replaced("descend_bwd", dropped(1), ttt),
    "gradient of the network's input dropped": replaced("layer_bwd", dropped(0), *BOTH),
    "gradient of the weights dropped": replaced("layer_bwd", dropped(1), *BOTH),
    "gradient of the biases dropped": replaced("layer_bwd", dropped(2), *BOTH),
}


@COMPARISONS
@pytest.mark.parametrize("network", [LINEAR, MLP], ids=["linear", "mlp"])
def test_the_library_is_sound(network: Network) -> None:
    """Without this the rejections below would mean nothing.   (W.9) to (W.23)"""
    is_sound(network)


PLACES = [(what, *place) for what, places in MUTANTS.items() for place in places]
NAMES = [f"{what}, {n.name}, in {m.__name__.split('.')[-1]}" for what, n, m, *_ in PLACES]


@COMPARISONS
@pytest.mark.parametrize(("what", "network", "module", "name", "mutant"), PLACES, ids=NAMES)
def test_a_mutant_of_ttt_is_rejected(
    what: str, network: Network, module: Any, name: str, mutant: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """N: one function replaced in one file.   (W.9) to (W.23)"""
    monkeypatch.setattr(module, name, mutant)
    with pytest.raises((AssertionError, AdjointError)):
        is_sound(network)


def test_what_moves_nothing_has_no_rate_even_if_it_is_not_finite() -> None:
    """The gradient of a rate is an inner product; a gradient of 0 takes no part in it, whatever it stands beside."""
    g, beside, rate = np.asarray([[0.0, 2.0, 1.0]]), np.asarray([[np.nan, 3.0, 5.0]]), np.ones(1)
    assert_bitwise(ttt.descend_bwd((g,), rate, (beside,))[0], np.asarray([-11.0]))
    assert_bitwise(ttt.moved_by_bwd((g,), rate, (beside,))[1], np.asarray([11.0]))
