"""The laws every op obeys, over one table of ops. A new op is one new row. A docstring with "N:" has
a negative control: something that must not hold.

y, res = fwd(*x);   d_x = bwd(dy, res) = (df/dx)^T dy;   g_dy, *g_x = bwd_bwd(*g_d_x, dy, res) = (d
bwd/d(dy, x))^T g_d_x
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any, NamedTuple

import array_api_strict
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fwl_ref.gradcheck import check_adjoint
from fwl_ref.ops.attention import BLOCK, attention_bwd, attention_fwd, grouped_attention_bwd, grouped_attention_fwd
from fwl_ref.ops.blocked_head import blocked_head_bwd, blocked_head_bwd_bwd, blocked_head_dn, blocked_head_fwd, blocked_head_nll
from fwl_ref.ops.cross_entropy import cross_entropy_bwd, cross_entropy_bwd_bwd, cross_entropy_fwd
from fwl_ref.ops.dense import dense_bwd, dense_bwd_bwd, dense_dx, dense_fwd
from fwl_ref.ops.embedding import embedding_bwd, embedding_fwd
from fwl_ref.ops.gelu import gelu_bwd, gelu_bwd_bwd, gelu_fwd
from fwl_ref.ops.l2norm import l2norm_bwd, l2norm_bwd_bwd, l2norm_fwd
from fwl_ref.ops.layernorm import layernorm_bwd, layernorm_bwd_bwd, layernorm_fwd
from fwl_ref.ops.linear_attention import (
    linear_attention_bwd,
    linear_attention_chunked_bwd,
    linear_attention_chunked_fwd,
    linear_attention_fwd,
    linear_attention_recurrent_bwd,
    linear_attention_recurrent_fwd,
    past_sum_bwd,
    past_sum_fwd,
)
from fwl_ref.ops.masked_attention import (
    masked_attention_bwd,
    masked_attention_chunked_bwd,
    masked_attention_chunked_fwd,
    masked_attention_fwd,
    masked_attention_recurrent_bwd,
    masked_attention_recurrent_fwd,
)
from fwl_ref.ops.rmsnorm import rmsnorm_bwd, rmsnorm_bwd_bwd, rmsnorm_fwd
from fwl_ref.ops.rotary import rotary_bwd, rotary_fwd
from fwl_ref.ops.short_conv import short_conv_bwd, short_conv_bwd_bwd, short_conv_fwd
from fwl_ref.ops.squared_relu import squared_relu_bwd, squared_relu_bwd_bwd, squared_relu_fwd
from fwl_ref.ops.swiglu import swiglu_bwd, swiglu_bwd_bwd, swiglu_fwd
from fwl_ref.optimizers import Optimizer, mask, momentum_with_decay, segments, system
from fwl_ref.tree import leaves, rebuild, tree_map
from tests.strategies import arrays, at_most, generator, move_like, seeds
from tests.tolerances import assert_bitwise, assert_close, float32_bound


class Shape(NamedTuple):
    batch: int
    length: int
    width: int
    values: int


class Op(NamedTuple):
    """One row: the triple, and arguments in float64 from a shape and a seed."""

    name: str
    fwd: Callable
    bwd: Callable  # (d_output, residual) -> one gradient per floating-point argument
    bwd_bwd: Callable | None
    arguments: Callable[[Shape, int], tuple]


def _dense(n: Shape, seed: int) -> tuple:
    draw = generator(seed)
    return draw(n.batch, n.length, n.width), draw(n.width, n.values), draw(n.values)


def _layernorm(per_token: bool, eps: float) -> Callable:
    def arguments(n: Shape, seed: int) -> tuple:
        draw, width = generator(seed), n.width + 2
        z = draw(n.batch, n.length, width, scale=0.2) + draw(1, 1, 1) + np.arange(width) % 3  # never nearly constant
        shape = z.shape if per_token else (width,)
        return z, 1 + draw(*shape, scale=0.3), draw(*shape), eps

    return arguments


def _rmsnorm(per_token: bool, eps: float) -> Callable:
    def arguments(n: Shape, seed: int) -> tuple:
        z, gain, _, _ = _layernorm(per_token, eps)(n, seed)
        return z, gain, eps

    return arguments


def _no_bias(n: Shape, seed: int) -> tuple:
    return *_dense(n, seed)[:2], None


def _gates(n: Shape, seed: int) -> tuple:
    draw = generator(seed)
    return draw(n.batch, n.length, n.width, scale=2.0), draw(n.batch, n.length, n.width)


def _off_zero(n: Shape, seed: int) -> tuple:
    x = generator(seed)(n.batch, n.length, n.width)
    return (x + 0.1 * np.sign(x),)  # the squared ReLU's second derivative jumps at 0


def _logits(n: Shape, seed: int) -> tuple:
    labels = np.random.default_rng(seed + 1).integers(0, n.values, (n.batch, n.length))
    return generator(seed)(n.batch, n.length, n.values, scale=2.0), labels


def _head(bias: bool, frozen: bool = False) -> Callable:
    def arguments(n: Shape, seed: int) -> tuple:
        draw = generator(seed)
        labels = np.random.default_rng(seed + 1).integers(0, n.values, (n.batch, n.length))
        c = draw(n.values) if bias else None
        return draw(n.batch, n.length, n.width), draw(n.width, n.values), c, labels, 3, frozen

    return arguments


def _head_without_bias(*gradients_and_residual: Any) -> tuple:
    """Both backward passes of a head without c, for which there is no gradient."""
    *g, dy, res = gradients_and_residual
    answer = blocked_head_bwd_bwd(*g, None, dy, res) if g else blocked_head_bwd(dy, res)
    assert answer[-1] is None
    return answer[:-1]


def _table(n: Shape, seed: int) -> tuple:
    tokens = np.random.default_rng(seed + 1).integers(0, n.values, (n.batch, n.length))
    return generator(seed)(n.values, n.width), tokens


def _heads(cached: int, window: int | None, scale: float = 1.0, few: int = 0) -> Callable:
    def arguments(n: Shape, seed: int) -> tuple:
        draw, keys = generator(seed), (n.batch, 2, cached + n.length, n.width)
        return draw(n.batch, 2, n.length, n.width, scale=scale), draw(*keys), draw(*keys), window, few

    return arguments


def _turned(n: Shape, seed: int) -> tuple:
    return generator(seed)(n.batch, n.length, 2 * n.width), 3, 50.0, "interleaved", (2.0, *[0.5] * (n.width - 1))


def _groups(n: Shape, seed: int) -> tuple:
    draw, keys = generator(seed), (n.batch, 2, 3 + n.length, n.width)
    return draw(n.batch, 6, n.length, n.width), draw(*keys), draw(*keys), 4


def _memory(keep: float, carried: bool, *chunk: int | None) -> Callable:
    def arguments(n: Shape, seed: int) -> tuple:
        draw = generator(seed)
        q, k, v = (draw(n.batch, n.length, size) for size in (n.width, n.width, n.values))
        state = draw(n.batch, n.width, n.values) if carried else None
        return q, k, v, np.asarray(keep), state, *chunk

    return arguments


def _state_gradient(bwd: Callable, carried: bool) -> Callable:
    """The memory's backward passes take the gradients of both outputs; without a state there is no
    gradient for it.
    """

    def linear_attention_adjoint(d_output: tuple, res: Any) -> tuple:
        gradients = bwd(*d_output, res)
        assert carried or gradients[-1] is None
        return gradients if carried else gradients[:-1]

    return linear_attention_adjoint


def _taps(taps: int, carried: bool) -> Callable:
    def arguments(n: Shape, seed: int) -> tuple:
        draw = generator(seed)
        state = draw(n.batch, taps - 1, n.width) if carried else None
        return draw(n.batch, n.length, n.width), draw(taps, n.width), state

    return arguments


def _short_conv(name: str, taps: int, carried: bool) -> Op:
    def second(*gradients_and_d_output: Any) -> tuple:
        *g, (dy, _), res = gradients_and_d_output  # what the state is given does not enter the answers
        g_d_output, g_x, g_w, g_state = short_conv_bwd_bwd(*g, *(() if carried else (None,)), dy, res)
        assert carried or g_state is None
        return (g_d_output, g_x, g_w, g_state) if carried else (g_d_output, g_x, g_w)

    return Op(name, short_conv_fwd, _state_gradient(short_conv_bwd, carried), second, _taps(taps, carried))


PARALLEL, CHUNKED, RECURRENT = (
    (linear_attention_fwd, linear_attention_bwd),
    (linear_attention_chunked_fwd, linear_attention_chunked_bwd),
    (linear_attention_recurrent_fwd, linear_attention_recurrent_bwd),
)


def _linear(name: str, form: tuple, keep: float, carried: bool, *chunk: int | None) -> Op:
    return Op(name, form[0], _state_gradient(form[1], carried), None, _memory(keep, carried, *chunk))


def _sum(keep: float, carried: bool) -> Op:
    """Linear attention with q = k = 1."""

    def arguments(n: Shape, seed: int) -> tuple:
        draw = generator(seed)
        return draw(n.batch, n.length, n.values), np.asarray(keep), draw(n.batch, n.values) if carried else None

    return Op("sum over the past" + ", state" * carried, past_sum_fwd, _state_gradient(past_sum_bwd, carried), None, arguments)


def _masked(optimizer: Optimizer) -> Op:
    """Any mask, here that of an optimizer; masks and slots are data, made like q."""

    def fwd(q: Any, k: Any, v: Any) -> tuple:
        return masked_attention_fwd(q, k, v, move_like(mask(optimizer, q.shape[1]), q))

    return Op("masked attention", fwd, masked_attention_bwd, None, lambda n, seed: _memory(1.0, False)(n, seed)[:3])


def _slots(name: str, form: tuple, optimizer: Optimizer, carried: bool, *chunk: int | None) -> Op:
    """Masked attention with the slots of an optimizer, read from token 1 on."""

    def fwd(q: Any, k: Any, v: Any, state: Any) -> tuple:
        return form[0](q, k, v, *system(optimizer, 1, q.shape[1], q), state, *chunk)

    def arguments(n: Shape, seed: int) -> tuple:
        q, k, v, *_ = _memory(1.0, False)(n, seed)
        return q, k, v, generator(seed + 1)(n.batch, 2, n.width, n.values) if carried else None

    return Op(f"masked attention, {name}", fwd, _state_gradient(form[1], carried), None, arguments)


SLOTS_CHUNKED, SLOTS_RECURRENT = (
    (masked_attention_chunked_fwd, masked_attention_chunked_bwd),
    (masked_attention_recurrent_fwd, masked_attention_recurrent_bwd),
)

OPS = [
    Op("dense", dense_fwd, dense_bwd, dense_bwd_bwd, _dense),
    Op("dense, no bias", dense_fwd, lambda dy, res: dense_bwd(dy, res)[:2], None, _no_bias),
    Op("squared_relu", squared_relu_fwd, squared_relu_bwd, squared_relu_bwd_bwd, _off_zero),
    Op("gelu", gelu_fwd, gelu_bwd, gelu_bwd_bwd, _off_zero),
    Op("layernorm", layernorm_fwd, layernorm_bwd, layernorm_bwd_bwd, _layernorm(per_token=False, eps=1e-5)),
    Op("layernorm, no epsilon", layernorm_fwd, layernorm_bwd, layernorm_bwd_bwd, _layernorm(per_token=False, eps=0.0)),
    Op("layernorm, gain per token", layernorm_fwd, layernorm_bwd, layernorm_bwd_bwd, _layernorm(per_token=True, eps=0.3)),
    Op("rmsnorm", rmsnorm_fwd, rmsnorm_bwd, rmsnorm_bwd_bwd, _rmsnorm(per_token=False, eps=1e-5)),
    Op("rmsnorm, gain per token", rmsnorm_fwd, rmsnorm_bwd, rmsnorm_bwd_bwd, _rmsnorm(per_token=True, eps=0.3)),
    Op("swiglu", swiglu_fwd, swiglu_bwd, swiglu_bwd_bwd, _gates),
    Op("l2norm", l2norm_fwd, l2norm_bwd, l2norm_bwd_bwd, lambda n, seed: (generator(seed)(n.batch, n.length, n.width), 0.3)),
    _short_conv("short convolution", 3, False),
    _short_conv("short convolution, state", 4, True),
    _short_conv("short convolution, one tap", 1, True),
    Op("cross_entropy", cross_entropy_fwd, cross_entropy_bwd, cross_entropy_bwd_bwd, _logits),
    Op("blocked head", blocked_head_fwd, blocked_head_bwd, blocked_head_bwd_bwd, _head(bias=True)),
    Op("blocked head, no c", blocked_head_fwd, _head_without_bias, _head_without_bias, _head(bias=False)),
    Op("embedding", embedding_fwd, embedding_bwd, None, _table),
    Op("rotary", rotary_fwd, rotary_bwd, None, lambda n, seed: (generator(seed)(n.batch, n.length, 2 * n.width), 3)),
    Op("rotary, interleaved", rotary_fwd, rotary_bwd, None, _turned),
    Op("attention", attention_fwd, attention_bwd, None, _heads(cached=0, window=None)),
    Op("attention, window", attention_fwd, attention_bwd, None, _heads(cached=0, window=2)),
    Op("attention, cache", attention_fwd, attention_bwd, None, _heads(cached=3, window=None)),
    Op("attention, cache and window", attention_fwd, attention_bwd, None, _heads(cached=3, window=2)),
    Op("attention, kept", attention_fwd, attention_bwd, None, _heads(cached=0, window=None, few=100)),
    Op("attention, grouped", grouped_attention_fwd, grouped_attention_bwd, None, _groups),
    _linear("linear attention, parallel", PARALLEL, 0.8, False),
    _linear("linear attention, parallel, state", PARALLEL, 0.8, True),
    _linear("linear attention, chunked", CHUNKED, 0.8, False, 2),
    _linear("linear attention, chunked, state", CHUNKED, 1.0, True, 3),
    _linear("linear attention, recurrent", RECURRENT, 0.8, False),
    _linear("linear attention, recurrent, state", RECURRENT, 0.8, True),
    _sum(0.8, False),
    _sum(1.0, True),
    _masked(momentum_with_decay(0.9, 0.2)),
    _slots("one chunk", SLOTS_CHUNKED, momentum_with_decay(0.9, 0.2), False, None),
    _slots("chunked, state", SLOTS_CHUNKED, segments(3), True, 2),
    _slots("recurrent", SLOTS_RECURRENT, segments(3), False),
    _slots("recurrent, state", SLOTS_RECURRENT, momentum_with_decay(0.9, 0.2), True),
]

ONE_KEY = {"attention", "attention, window", "attention, kept"}  # a text of one token has one key
every_op = pytest.mark.parametrize("op", OPS, ids=[op.name for op in OPS])
shapes = st.builds(Shape, *(st.integers(1, high) for high in (2, 5, 4, 4)))
small = Shape(2, 4, 3, 2)


class Run(NamedTuple):
    """What an op gave, in the order in which it was computed, and the cotangents it was given."""

    output: Any
    res: Any
    gradients: tuple
    d_output: Any
    g_gradients: tuple | None  # None: the op has no second backward pass
    second: tuple | None

    @property
    def results(self) -> tuple:
        """What may be compared between two runs."""
        return self.output, self.gradients, self.second


def run(op: Op, args: tuple, seed: int = 0) -> Run:
    """Forward, backward and second backward on random cotangents, which are moved to wherever the
    output lives.
    """
    draw = generator(seed + 99)
    output, res = op.fwd(*args)

    def cotangent(y: Any) -> Any:
        return move_like(draw(*y.shape), y)

    d_output = tree_map(cotangent, output)
    gradients = op.bwd(d_output, res)
    gradients = gradients if type(gradients) is tuple else (gradients,)
    if op.bwd_bwd is None:
        return Run(output, res, gradients, d_output, None, None)
    g_gradients = tuple(cotangent(g) for g in gradients)
    return Run(output, res, gradients, d_output, g_gradients, op.bwd_bwd(*g_gradients, d_output, res))


def _host(a: Any) -> np.ndarray:
    return np.asarray(a if isinstance(a, np.ndarray | np.generic) else a.to_device(array_api_strict.Device("CPU_DEVICE")))


def _map_floats(f: Callable, args: tuple) -> tuple:
    return tuple(f(a) if isinstance(a, np.ndarray) and a.dtype.kind == "f" else a for a in args)


@every_op
@given(shape=shapes, seed=seeds)
def test_backward_is_the_adjoint_of_forward_and_second_backward_of_backward(op: Op, shape: Shape, seed: int) -> None:
    """<u, J v> = <J^T u, v>, both orders: theorem 16 for (D.1) to (D.3), (R.1) to (R.3), (N.1) to
    (N.9), (C.1) to (C.6), (S.1) to (S.6), (A.1) to (A.4).
    """
    assume(shape.length > 1 or op.name not in ONE_KEY)  # 0 to rounding against 0, which the check refuses: see below
    check_adjoint(op.fwd, op.bwd, op.arguments(shape, seed), op.bwd_bwd, seed=seed)


@pytest.mark.parametrize("window", [None, 2])
@given(seed=seeds, width=st.integers(1, 4))
def test_a_token_that_sees_one_key_takes_its_value_whatever_the_key(window: int | None, seed: int, width: int) -> None:
    """A softmax of one score is 1: o = v, dv = do, and q and k have no gradient but rounding.   (A.1),
    (A.2)
    """
    draw = generator(seed)
    q, k, v, dout = (draw(2, 2, 1, width) for _ in range(4))
    out, res = attention_fwd(q, k, v, window)
    dq, dk, dv = attention_bwd(dout, res)
    size = float(np.sum(np.abs(dout * v)))  # of the terms that cancel
    assert_close(out, v)
    assert_close(dv, dout)
    assert np.max(np.abs(dq)) <= 1e-14 * size * np.max(np.abs(k)) and np.max(np.abs(dk)) <= 1e-14 * size * np.max(np.abs(q))


def _complex_step(f: Callable[..., Any], args: tuple, u: Any) -> list[np.ndarray]:
    """d <u, f(args)> / d arg = Im <u, f(args + i h e)> / h, entry by entry: no subtraction, so h =
    1e-30 and the error is rounding.
    """
    flat = leaves(args)
    lifted = [a.astype("complex128") if isinstance(a, np.ndarray) and a.dtype.kind == "f" else a for a in flat]
    gradients = []
    for i, arg in enumerate(flat):
        if not (isinstance(arg, np.ndarray) and arg.dtype.kind == "f"):
            continue
        gradient = np.zeros(arg.shape)
        for entry in np.ndindex(arg.shape):
            moved = lifted[i].copy()
            moved[entry] += 1e-30j
            output = f(*rebuild(args, [*lifted[:i], moved, *lifted[i + 1 :]]))
            pairs = zip(arrays(u), arrays(output), strict=True)
            gradient[entry] = sum(np.sum(a * np.imag(b)) for a, b in pairs) / 1e-30
        gradients.append(gradient)
    return gradients


@every_op
@at_most(20)
@given(seed=seeds)
def test_backward_is_the_gradient_by_complex_step(op: Op, seed: int) -> None:
    """J^T u = Im <u, f(x + i h e)> / h: theorem 16 again by a witness that shares nothing with
    check_adjoint. (G.2), (E.2), (P.2)
    """
    args = op.arguments(small, seed)
    actual = run(op, args, seed)
    expected = _complex_step(lambda *a: op.fwd(*a)[0], args, actual.d_output)
    assert len(actual.gradients) == len(expected)
    for i, (gradient, wanted) in enumerate(zip(actual.gradients, expected, strict=True)):
        assert_close(gradient, wanted, what=f"{op.name}, argument {i}")


@pytest.mark.parametrize("op", [op for op in OPS if op.bwd_bwd], ids=[op.name for op in OPS if op.bwd_bwd])
@at_most(20)
@given(seed=seeds)
def test_second_backward_is_the_gradient_of_backward_by_complex_step(op: Op, seed: int) -> None:
    """(d bwd / d(dy, x))^T g = Im <g, bwd(dy, x + i h e)> / h: theorem 16 for (D.3), (R.3), (G.3),
    (N.3), (N.6), (S.3), (C.3), full Jacobians.
    """
    args = op.arguments(small, seed)
    actual = run(op, args, seed)

    def backward(dy: np.ndarray, *inputs: Any) -> Any:
        return op.bwd(dy, op.fwd(*inputs)[1])

    expected = _complex_step(backward, (actual.d_output, *args), actual.g_gradients)
    second = [a for part in actual.second for a in (part if type(part) is tuple else (part,))]
    assert len(second) == len(expected)
    for i, (a, wanted) in enumerate(zip(second, expected, strict=True)):
        assert_close(np.zeros_like(wanted) if a is None else a, wanted, what=f"{op.name}, argument {i}")


@given(shape=shapes, seed=seeds, block=st.none() | st.integers(1, 12), bias=st.booleans())
def test_the_head_in_blocks_is_the_dense_layer_and_the_cross_entropy(shape: Shape, seed: int, block: int | None, bias: bool) -> None:
    """Losses and all gradients of both orders, for any block   (C.4), (C.5), (C.6)"""
    n, U, c, labels, *_ = _head(bias)(shape, seed)
    draw = generator(seed + 5)
    dnll, g_dn, g_dU, g_dc = draw(*labels.shape), draw(*n.shape), draw(*U.shape), draw(*U.shape[1:]) if bias else None
    logits, dense = dense_fwd(n, U, c)
    nll, loss = cross_entropy_fwd(logits, labels)
    dlogits = cross_entropy_bwd(dnll, loss)
    g_dlogits, g_n, g_U, _ = dense_bwd_bwd(g_dn, g_dU, g_dc, dlogits, dense)
    g_dnll, g_logits = cross_entropy_bwd_bwd(g_dlogits, dnll, loss)
    g_n2, g_U2, g_c = dense_bwd(g_logits, dense)
    found, res = blocked_head_fwd(n, U, c, labels, block)
    assert_close(found, nll, scale=1.0)
    assert_close(blocked_head_nll(n, U, c, labels, block), found, scale=1.0)
    first, wanted = blocked_head_bwd(dnll, res), dense_bwd(dlogits, dense)
    second = blocked_head_bwd_bwd(g_dn, g_dU, g_dc, dnll, res)
    pairs = [*zip(first, wanted, strict=True), *zip(second, (g_dnll, g_n + g_n2, g_U + g_U2, g_c), strict=True)]
    for a, b in pairs:
        assert (a is None) == (b is None)
        if a is not None:
            assert_close(a, b, scale=1.0)


@given(shape=shapes, seed=seeds)
def test_a_frozen_head_gets_no_gradient_and_changes_no_other(shape: Shape, seed: int) -> None:
    """dU = dc = g_U = g_c = None; dn = dnll slope   (C.5), (C.6)"""
    args, draw = _head(bias=True)(shape, seed), generator(seed + 5)
    (nll, free), (same, frozen) = blocked_head_fwd(*args), blocked_head_fwd(*args[:-1], True)
    dnll, g_dn = draw(*nll.shape), draw(*args[0].shape)
    assert_bitwise(same, nll)
    first, second = blocked_head_bwd(dnll, frozen), blocked_head_bwd_bwd(g_dn, None, None, dnll, frozen)
    assert first[1:] == second[2:] == (None, None)
    assert_bitwise(first[0], blocked_head_bwd(dnll, free)[0])
    assert_bitwise(blocked_head_dn(dnll, free), first[0])
    for a, b in zip(second[:2], blocked_head_bwd_bwd(g_dn, None, None, dnll, free)[:2], strict=True):
        assert_bitwise(a, b)


def test_what_is_not_finite_spoils_its_own_token_of_the_head() -> None:
    """As in cross_entropy: losses and dn of the other tokens keep their bits, in any block   (C.4), (C.5)"""
    n, U, c, labels, *_ = _head(bias=True)(Shape(2, 4, 3, 5), 1)
    bad = n.copy()
    bad[0, 1, 2], bad[1, 2, 0] = np.nan, np.inf
    kept = np.all(np.isfinite(bad), axis=-1)
    with np.errstate(invalid="ignore"):
        (nll, res), (wrong, spoilt) = blocked_head_fwd(n, U, c, labels, 3), blocked_head_fwd(bad, U, c, labels, 3)
    assert np.all(np.isnan(wrong[~kept])) and np.all(np.isnan(spoilt.slope[~kept]))
    assert_bitwise(wrong[kept], nll[kept])
    assert_bitwise(blocked_head_dn(nll, spoilt)[kept], blocked_head_dn(nll, res)[kept])


def test_large_logits_have_a_finite_loss_in_the_blocked_head() -> None:
    """The largest of them is taken off before the exponential.   (C.4)"""
    n, U = np.ones((1, 1)), np.asarray([[2000.0, 0.0, -2000.0]])
    assert_close(blocked_head_nll(n, U, None, np.asarray([1])), np.asarray([2000.0]))


@pytest.mark.host("memory of NumPy's arrays")
def test_the_head_in_blocks_never_holds_all_logits() -> None:
    """At most eight arrays of (block,V) at once, in every pass; all logits would be 32.   (C.4), (C.5), (C.6)"""
    length, V, block = 64, 5000, 2
    draw = generator(0)
    n, U, c, labels = draw(1, length, 3), draw(3, V), draw(V), np.zeros((1, length), "int64")
    dnll, g_dn = draw(1, length), draw(1, length, 3)
    tracemalloc.start()
    _, res = blocked_head_fwd(n, U, c, labels, block)
    blocked_head_nll(n, U, c, labels, block)
    blocked_head_bwd(dnll, res)
    blocked_head_bwd_bwd(g_dn, None, None, dnll, res._replace(frozen=True))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * block * V * 8 + 4 * U.nbytes


def test_a_block_below_one_token_is_refused() -> None:
    """A loop of no tokens a time would not end."""
    with pytest.raises(ValueError, match="at least 1 token"):
        blocked_head_fwd(*_head(bias=True)(small, 0)[:4], 0)


def test_large_logits_neither_overflow_nor_vanish() -> None:
    """l = top - logit_y to rounding when the others are far below, whatever the size of the
    logits.   (C.1), (C.2)
    """
    logits = np.array([[1000.0, 0.0, -1000.0], [-5000.0, -4000.0, -4001.0]])
    loss, res = cross_entropy_fwd(logits, np.array([1, 1]))
    assert_close(loss, np.array([1000.0, np.log(1 + np.exp(-1.0))]))
    assert_close(cross_entropy_bwd(np.ones(2), res), np.array([[1.0, -1.0, 0.0], [0.0, -1.0 / (1 + np.e), 1.0 / (1 + np.e)]]))


def test_positions_count_from_0_unless_told_otherwise() -> None:
    """Rot(0) is the identity; Rot(start) x_0 is row ``start`` of the same x at every
    position.   (P.1)
    """
    x = np.broadcast_to(generator(3)(1, 4), (5, 4))
    turned = rotary_fwd(x)[0]
    assert_bitwise(turned[0], x[0])
    assert_close(rotary_fwd(x[:1], 3)[0][0], turned[3])


def test_dense_dx_is_the_input_half_of_dense_backward() -> None:
    """dense_dx(dy) = dense_bwd(dy)[0], bitwise.   (D.2)"""
    args = _dense(small, 0)
    y, res = dense_fwd(*args)
    assert_bitwise(dense_dx(y, res), dense_bwd(y, res)[0])


@every_op
@given(shape=shapes, seed=seeds)
def test_ops_are_pure(op: Op, shape: Shape, seed: int) -> None:
    """No input, residual or cotangent is modified, and a second call gives the same bits."""
    args = op.arguments(shape, seed)
    saved = [a.copy() for a in arrays(args)]
    output, res = op.fwd(*args)
    kept = [a.copy() for a in (*arrays(output), *arrays(res))]
    first = run(op, args, seed)
    d_output = [a.copy() for a in arrays(first.d_output)]
    op.bwd(first.d_output, first.res)
    again = run(op, args, seed)
    for what, now, before in (
        ("inputs", arrays(args), saved),
        ("output and residual", [*arrays(output), *arrays(res)], kept),
        ("residual after backward", [*arrays(first.output), *arrays(first.res)], kept),
        ("cotangent", arrays(first.d_output), d_output),
        ("second run", arrays(again), arrays(first)),
    ):
        for a, b in zip(now, before, strict=True):
            assert_bitwise(a, b, f"{op.name}: {what}")


@every_op
@given(shape=shapes, seed=seeds)
def test_dtype_is_preserved_and_float32_is_float64_rounded(op: Op, shape: Shape, seed: int) -> None:
    """dtype(f(x)) = dtype(x) for every output, residual and gradient; |f32 - f64| <= c n 2^-24."""
    exact_args = _map_floats(lambda a: a.astype("float32").astype("float64"), op.arguments(shape, seed))
    rounded_args = _map_floats(lambda a: a.astype("float32"), exact_args)
    exact, rounded = run(op, exact_args, seed), run(op, rounded_args, seed)
    for results, dtype in ((exact, "float64"), (rounded, "float32")):
        for a in arrays(results):
            assert a.dtype.kind != "f" or a.dtype == dtype, f"{op.name}: {a.dtype} from {dtype}"
    for a, b in zip(arrays(rounded.results), arrays(exact.results), strict=True):
        assert_close(a, b, float32_bound(terms=64, stages=32), op.name, scale=1.0)


def _strided(a: np.ndarray) -> np.ndarray:
    """The same values with gaps between them, a negative stride and the axes in Fortran order."""
    if not a.ndim:
        return a
    base = np.full(tuple(2 * n for n in a.shape), np.nan, dtype=a.dtype, order="F")
    view = base[tuple(slice(None, None, 2) for _ in a.shape)][..., ::-1]
    view[...] = a
    return view


@every_op
@given(shape=shapes, seed=seeds)
def test_ops_accept_non_contiguous_inputs(op: Op, shape: Shape, seed: int) -> None:
    """f(strided view of x) = f(x), both directions."""
    args = op.arguments(shape, seed)
    strided = _map_floats(_strided, args)
    for a, b in zip(arrays(run(op, strided, seed).results), arrays(run(op, args, seed).results), strict=True):
        assert_close(a, b, what=op.name, scale=1.0)


@every_op
@pytest.mark.parametrize("shape", [Shape(0, 3, 4, 5), Shape(2, 0, 4, 5), Shape(0, 0, 4, 5), Shape(2, 1, 4, 5)])
def test_empty_batch_and_empty_sequence_work(op: Op, shape: Shape) -> None:
    """B = 0, T = 0 and T = 1: shapes of outputs and gradients follow the inputs, nothing is NaN;
    theorem 9 at op level.
    """
    args = op.arguments(shape, 0)
    output, gradients, second = run(op, args).results
    assert all(np.all(np.isfinite(a)) for a in arrays((output, gradients, second)))
    floats = [a.shape for a in args if isinstance(a, np.ndarray) and a.dtype.kind == "f"]
    assert [g.shape for g in gradients] == floats
    if shape.length == 0 or shape.batch == 0:
        shared = [a for a in gradients if a.ndim == 0 or a.shape[0] != shape.batch]
        assert all(np.all(a == 0) for a in shared)  # nothing was seen, so parameters do not move


@every_op
def test_ops_run_on_any_array_library_and_device(op: Op) -> None:
    """f on a strict array-API library, on a device that is not the host, equals f on NumPy: no op
    calls NumPy by accident.
    """
    device = array_api_strict.Device("device1")
    args = op.arguments(small, 0)
    strict_args = tuple(array_api_strict.asarray(a).to_device(device) if isinstance(a, np.ndarray) else a for a in args)
    expected, actual = run(op, args), run(op, strict_args)
    for a, b in zip(arrays((actual.results, actual.res)), arrays((expected.results, expected.res)), strict=True):
        assert a.device == device, f"{op.name}: a result left its device"
        assert_close(_host(a), b, what=op.name)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("length", [BLOCK - 1, BLOCK, BLOCK + 1])
@pytest.mark.parametrize("window", [None, 5])
def test_blocked_attention_is_attention(length: int, window: int | None, dtype: str) -> None:
    """o = softmax(mask(q k^T / sqrt K)) v in one piece, across the boundary of a block of
    queries.   (A.1), (A.2)
    """
    draw, cached = generator(length), 3
    q, dout = draw(1, 1, length, 4).astype(dtype), draw(1, 1, length, 4).astype(dtype)
    k, v = draw(1, 1, cached + length, 4).astype(dtype), draw(1, 1, cached + length, 4).astype(dtype)
    t, s = np.arange(length)[:, None] + cached, np.arange(cached + length)[None, :]
    seen = (s <= t) & (s > t - (window or cached + length + 1))
    weight = np.where(seen, np.exp(q[0, 0] @ k[0, 0].T / 2), 0)
    p = weight / weight.sum(axis=1, keepdims=True)
    dp = dout[0, 0] @ v[0, 0].T
    dscores = p * (dp - np.sum(p * dp, axis=1, keepdims=True)) / 2
    out, res = attention_fwd(q, k, v, window)
    rtol = 1e-10 if dtype == "float64" else float32_bound(terms=length)
    for a, b in zip((out, *attention_bwd(dout, res)), (p @ v[0, 0], dscores @ k[0, 0], dscores.T @ q[0, 0], p.T @ dout[0, 0]), strict=True):
        assert_close(a[0, 0], b, rtol)


def test_blocks_that_see_few_keys_keep_their_probabilities_and_use_them() -> None:
    """exp(scores - lse) of each block of at most so many keys, and gradients are taken from it; without ``few``, of none.   (A.1), (A.2)"""
    draw, length = generator(8), BLOCK + 2
    q, k, v, dout = (draw(1, 1, length, 4) for _ in range(4))
    for few, blocks in ((BLOCK - 1, 0), (BLOCK, 1), (length, 2)):
        _, res = attention_fwd(q, k, v, None, few)
        assert [p is not None for p in res.kept] == [True] * blocks + [False] * (2 - blocks)
    scores = np.where(np.tri(length, dtype=bool), q[0, 0] @ k[0, 0].T / 2, -np.inf)
    p = np.exp(scores - res.lse[0, 0])
    assert_close(np.concatenate([res.kept[0][0, 0], p[:BLOCK, BLOCK:]], axis=1), p[:BLOCK])
    assert_close(res.kept[1][0, 0], p[BLOCK:])
    none = res._replace(kept=tuple(0 * p for p in res.kept))
    assert not np.any(attention_bwd(dout, none)[2])  # dv = p^T do
    assert attention_fwd(q[:, :, :1], k[:, :, :1], v[:, :, :1])[1].kept == (None,)


def test_forward_values_are_the_textbook_formulas() -> None:
    """(D.1), (R.1), (G.1), (N.1), (N.4), (S.1), (C.1), (E.1), (P.1) against the formula written with
    loops or scalars.
    """
    draw = generator(5)
    x, w, b = draw(3, 4), draw(4, 2), draw(2)
    assert_close(dense_fwd(x, w, b)[0], np.asarray([[sum(x[n, d] * w[d, f] for d in range(4)) + b[f] for f in range(2)] for n in range(3)]))
    assert_close(squared_relu_fwd(x)[0], np.vectorize(lambda u: u * u if u > 0 else 0.0)(x))
    tanh_gelu = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    assert_close(gelu_fwd(x)[0], tanh_gelu)
    n = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    assert_close(layernorm_fwd(x, w[:, 0], w[:, 1])[0], n * w[:, 0] + w[:, 1])
    assert_close(rmsnorm_fwd(x, w[:, 0], 0.2)[0], np.stack([row / np.sqrt(sum(u * u for u in row) / 4 + 0.2) for row in x]) * w[:, 0])
    assert_bitwise(rmsnorm_fwd(x, w[:, 0])[0], rmsnorm_fwd(x, w[:, 0], 1e-5)[0])
    assert_close(swiglu_fwd(x, 3 - x)[0], x / (1 + np.exp(-x)) * (3 - x))
    assert_close(l2norm_fwd(x, 0.5)[0], np.asarray([[a / np.sqrt(sum(b * b for b in row) + 0.5) for a in row] for row in x]))
    assert_close(short_conv_fwd(x[None], draw(2, 4))[0][1][0, 0], x[2])
    labels = np.asarray([3, 0, 2])
    p = np.exp(x) / np.exp(x).sum(1, keepdims=True)
    assert_close(cross_entropy_fwd(x, labels)[0], -np.log(p[np.arange(3), labels]))
    assert_bitwise(embedding_fwd(w, labels)[0], w[labels])
    turned = rotary_fwd(x, start=2)[0]  # (T,K): channel i turns with channel i + K/2
    for t in range(3):
        for i in range(2):
            z = complex(x[t, i], x[t, i + 2]) * np.exp(1j * (t + 2) * 10000.0 ** (-2 * i / 4))
            assert_close(turned[t, [i, i + 2]], np.asarray([z.real, z.imag]))
    turned = rotary_fwd(x, 2, 50.0, "interleaved", (1.0, 4.0))[0]  # channel 2i turns with channel 2i + 1
    for t in range(3):
        for i in range(2):
            z = complex(x[t, 2 * i], x[t, 2 * i + 1]) * np.exp(1j * (t + 2) * 50.0 ** (-2 * i / 4) / (1.0, 4.0)[i])
            assert_close(turned[t, [2 * i, 2 * i + 1]], np.asarray([z.real, z.imag]))


def test_cross_entropy_of_huge_logits_is_finite() -> None:
    """l(x + c) = l(x): subtracting the largest logit keeps exp from overflowing.   (C.1)"""
    logits, labels = generator(1)(4, 5), np.asarray([0, 1, 2, 3])
    assert_close(cross_entropy_fwd(logits + 1e5, labels)[0], cross_entropy_fwd(logits, labels)[0])


def test_rotary_refuses_an_odd_width() -> None:
    """Channels turn in pairs.   (P.1)"""
    with pytest.raises(ValueError, match="even, got 3"):
        rotary_fwd(np.ones((2, 3)))


def test_rotary_refuses_pairs_that_have_no_name() -> None:
    """Two conventions, by name: a flag that is true or false would say nothing.   (P.1)"""
    with pytest.raises(ValueError, match="halves or interleaved, got 'neox'"):
        rotary_fwd(np.ones((2, 4)), pairs="neox")


def test_rotary_refuses_factors_that_are_not_one_for_each_pair() -> None:
    """2 pairs, 1 factor.   (P.1)"""
    with pytest.raises(ValueError, match="each of the 2 pairs must have one factor, got 1"):
        rotary_fwd(np.ones((2, 4)), factors=(2.0,))


def test_the_two_conventions_of_pairs_differ_by_an_order_of_the_channels() -> None:
    """Interleaved is halves after the even channels are moved before the odd ones; N: without that
    move they differ by as much as the values.   (P.1)
    """
    x = generator(7)(5, 8)
    order = np.asarray([0, 2, 4, 6, 1, 3, 5, 7])
    interleaved, halves = rotary_fwd(x, 3, 100.0, "interleaved")[0], rotary_fwd(x[:, order], 3, 100.0, "halves")[0]
    assert_close(interleaved[:, order], halves)
    assert np.max(np.abs(rotary_fwd(x, 3, 100.0)[0] - interleaved)) > 0.5


def _repeated(x: np.ndarray, size: int) -> np.ndarray:
    """(B,G,S,K)->(B,G size,S,K): a copy of each head for every query head that reads it."""
    return np.stack([x[:, h // size] for h in range(x.shape[1] * size)], axis=1)


def test_grouped_attention_is_attention_over_repeated_keys_and_values() -> None:
    """Head h reads keys h // (H/G); their gradients are sums over the heads that read them; N: heads
    dealt out by h % G give another output.   (A.3), (A.4)
    """
    q, k, v, window = _groups(Shape(2, 5, 4, 1), 3)
    dout = generator(4)(*q.shape)
    out, res = grouped_attention_fwd(q, k, v, window)
    expected, plain = attention_fwd(q, _repeated(k, 3), _repeated(v, 3), window)
    assert_close(out, expected)
    dq, dk, dv = attention_bwd(dout, plain)
    summed = [np.stack([d[:, :3].sum(axis=1), d[:, 3:].sum(axis=1)], axis=1) for d in (dk, dv)]
    for found, wanted in zip(grouped_attention_bwd(dout, res), (dq, *summed), strict=True):
        assert_close(found, wanted)
    dealt = attention_fwd(q, np.concatenate([k] * 3, axis=1), np.concatenate([v] * 3, axis=1), window)[0]
    assert np.max(np.abs(dealt - out)) > 0.1


def test_grouped_attention_refuses_heads_that_cannot_be_shared_out() -> None:
    """4 query heads, 3 key-value heads.   (A.3)"""
    draw = generator(0)
    with pytest.raises(ValueError, match="4 query heads are no multiple of 3 key-value heads"):
        grouped_attention_fwd(draw(1, 4, 2, 2), draw(1, 3, 2, 2), draw(1, 3, 2, 2))


def test_a_gate_of_any_size_neither_overflows_nor_warns() -> None:
    """silu(g) = g for large g, 0 for very negative ones, in both precisions.   (S.1), (S.2)"""
    for dtype in ("float32", "float64"):
        gate = np.asarray([-1e30, -200.0, 0.0, 200.0, 1e30], dtype=dtype)
        y, res = swiglu_fwd(gate, np.ones_like(gate))
        assert_bitwise(np.abs(y), np.maximum(gate, 0))
        slope = swiglu_bwd(np.ones_like(gate), res)[0]
        assert_bitwise(np.abs(slope), np.asarray([0, 0, 0.5, 1, 1], dtype=dtype))


def test_a_dense_layer_without_a_bias_has_no_gradient_of_one() -> None:
    """None comes in for the bias, and None goes out; the rest is as with a bias of 0.   (D.1), (D.2)"""
    draw = generator(0)
    x, w, dy = draw(2, 3), draw(3, 4), draw(2, 4)
    (y, res), (same, other) = dense_fwd(x, w, None), dense_fwd(x, w, np.zeros(4))
    assert_bitwise(y, same)
    (dx, dw, db), (dx_0, dw_0, db_0) = dense_bwd(dy, res), dense_bwd(dy, other)
    assert db is None and db_0.shape == (4,)
    assert_bitwise(dx, dx_0)
    assert_bitwise(dw, dw_0)
