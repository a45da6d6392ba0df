"""check_adjoint has teeth: it accepts what is right and rejects every mutant. Mutants wrap the real
op, they never copy it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import pytest

from fwl_ref.gradcheck import AdjointError, both_sides, check_adjoint, directional_difference
from fwl_ref.ops.cross_entropy import cross_entropy_bwd, cross_entropy_bwd_bwd, cross_entropy_fwd
from fwl_ref.ops.dense import dense_bwd, dense_bwd_bwd, dense_fwd
from fwl_ref.ops.layernorm import layernorm_bwd, layernorm_bwd_bwd, layernorm_fwd
from fwl_ref.ops.linear_attention import linear_attention_bwd, linear_attention_fwd
from fwl_ref.ops.squared_relu import squared_relu_bwd, squared_relu_bwd_bwd, squared_relu_fwd
from tests.backends import NAME
from tests.strategies import generator
from tests.tolerances import assert_close

_draw = generator(7)
DENSE = (_draw(2, 3, 4), _draw(4, 4), _draw(4))
NORM = (_draw(3, 5), 1 + _draw(5, scale=0.3), _draw(5))
RELU = (np.asarray([[0.5, -0.7, 1.2], [-0.4, 0.9, 0.3]]),)
LOSS = (_draw(3, 5), np.asarray([0, 4, 2]))
MEMORY = (_draw(2, 5, 3), _draw(2, 5, 3), _draw(2, 5, 3), np.asarray(0.8), _draw(2, 3, 3))


def mean(a: np.ndarray) -> np.ndarray:
    return np.mean(a, axis=-1, keepdims=True)


def memory_bwd(d_output: tuple, res: Any) -> tuple:
    return linear_attention_bwd(*d_output, res)


def changed(f: Callable, i: int, change: Callable) -> Callable:
    """``f`` with its i-th result replaced by ``change(result, *f's arguments)``."""

    def mutant(*args: Any) -> Any:
        results = f(*args)
        if type(results) is not tuple:
            return change(results, *args)
        return (*results[:i], change(results[i], *args), *results[i + 1 :])

    return mutant


def without(f: Callable, i: int) -> Callable:
    """``f`` that takes its i-th argument for zero: every term that comes from it is forgotten."""
    return lambda *args: f(*args[:i], 0 * args[i], *args[i + 1 :])


def one_entry(g: np.ndarray, *_: Any) -> np.ndarray:
    g = g.copy()
    g[(-1,) * g.ndim] *= 1.01
    return g


ACCEPTED = {
    "dense": (dense_fwd, dense_bwd, DENSE, dense_bwd_bwd),
    "squared_relu": (squared_relu_fwd, squared_relu_bwd, RELU, squared_relu_bwd_bwd),
    "layernorm": (layernorm_fwd, layernorm_bwd, NORM, layernorm_bwd_bwd),
    "cross_entropy": (cross_entropy_fwd, cross_entropy_bwd, LOSS, cross_entropy_bwd_bwd),
    "linear attention": (linear_attention_fwd, memory_bwd, MEMORY, None),
}

# name: (op, the mutated first-order backward)
FIRST = {
    "transposed weight gradient": ("dense", changed(dense_bwd, 1, lambda g, *_: g.T)),
    "bias gradient averaged instead of summed": ("dense", changed(dense_bwd, 2, lambda g, *_: g / 6)),
    "gradients of two inputs swapped": ("linear attention", lambda d, r: tuple(memory_bwd(d, r)[i] for i in (1, 0, 2, 3, 4))),
    "missing factor 2": ("squared_relu", lambda dy, r: squared_relu_bwd(dy, r) / 2),
    "wrong sign": ("cross_entropy", lambda dy, r: -cross_entropy_bwd(dy, r)),
    "label forgotten": ("cross_entropy", lambda dy, r: cross_entropy_bwd(dy, r._replace(hit=np.zeros_like(r.hit)))),
    "layernorm, mean term dropped": ("layernorm", changed(layernorm_bwd, 0, lambda g, dy, r: g + r.rstd * mean(dy * r.gain))),
    "layernorm, variance term dropped": (
        "layernorm",
        changed(layernorm_bwd, 0, lambda g, dy, r: g + r.rstd * r.n * mean(r.n * dy * r.gain)),
    ),
    "layernorm, both terms dropped": ("layernorm", changed(layernorm_bwd, 0, lambda g, dy, r: r.rstd * dy * r.gain)),
    "layernorm, rstd dropped": ("layernorm", changed(layernorm_bwd, 0, lambda g, dy, r: g / r.rstd)),
    "layernorm, gain dropped": ("layernorm", changed(layernorm_bwd, 0, lambda g, dy, r: layernorm_bwd(dy / r.gain, r)[0])),
    "layernorm, gain gradient without n": ("layernorm", changed(layernorm_bwd, 1, lambda g, dy, r: layernorm_bwd(dy, r)[2])),
    "off by one token": ("linear attention", changed(memory_bwd, 2, lambda g, *_: np.roll(g, 1, axis=1))),
    "own token included": ("linear attention", changed(memory_bwd, 2, lambda g, d, r: g + np.sum(r.q * r.k, -1, keepdims=True) * d[0])),
    "decay forgotten": ("linear attention", lambda d, r: memory_bwd(d, r._replace(keep=np.asarray(1.0)))),
    "final state's gradient forgotten": ("linear attention", lambda d, r: linear_attention_bwd(d[0], None, r)),
    "None for a gradient that is not zero": ("dense", changed(dense_bwd, 2, lambda *_: None)),
    "wrong shape that would broadcast": ("dense", changed(dense_bwd, 2, lambda g, *_: g[None])),
    "one shape of a scalar": ("dense", changed(dense_bwd, 2, lambda g, *_: g[:1])),
    "NaN gradient": ("dense", changed(dense_bwd, 0, lambda g, *_: g * np.nan)),
    "one NaN among numbers": ("dense", changed(dense_bwd, 1, lambda g, *_: np.where(np.eye(4) * (g == g[0, 0]) > 0, np.nan, g))),
    "infinite gradient": ("dense", changed(dense_bwd, 0, lambda g, *_: g + np.inf)),
    "a missing entry": ("dense", lambda dy, r: dense_bwd(dy, r)[:2]),
    "an entry too many": ("dense", lambda dy, r: (*dense_bwd(dy, r), None)),
    "one entry wrong by a per cent": ("dense", changed(dense_bwd, 1, one_entry)),
    "everything wrong by a millionth": ("layernorm", changed(layernorm_bwd, 0, lambda g, *_: g * (1 + 1e-6))),
}

# name: (op, the mutated second backward)
SECOND = {
    "dense, dx term forgotten": ("dense", without(dense_bwd_bwd, 0)),
    "dense, dw term forgotten": ("dense", without(dense_bwd_bwd, 1)),
    "dense, db term forgotten": ("dense", without(dense_bwd_bwd, 2)),
    "dense, no gradient for x": ("dense", changed(dense_bwd_bwd, 1, lambda *_: None)),
    "dense, gradient of w transposed": ("dense", changed(dense_bwd_bwd, 2, lambda g, *_: g.T)),
    "squared relu, stopped gradient": ("squared_relu", changed(squared_relu_bwd_bwd, 1, lambda g, *_: None)),
    "squared relu, missing factor 2": ("squared_relu", changed(squared_relu_bwd_bwd, 1, lambda g, *_: g / 2)),
    "squared relu, no step at 0": ("squared_relu", changed(squared_relu_bwd_bwd, 1, lambda g, g_dx, dy, r: 2 * dy * g_dx)),
    "cross entropy, stopped gradient": ("cross_entropy", changed(cross_entropy_bwd_bwd, 1, lambda g, *_: 0 * g)),
    "cross entropy, rank-one term dropped": (
        "cross_entropy",
        changed(cross_entropy_bwd_bwd, 1, lambda g, gd, dy, r: g + dy[..., None] * r.p * np.sum(r.p * gd, -1, keepdims=True)),
    ),
    "cross entropy, label forgotten": (
        "cross_entropy",
        changed(cross_entropy_bwd_bwd, 0, lambda g, gd, dy, r: g + np.sum(np.where(r.hit, gd, 0), -1)),
    ),
    "layernorm, dz forgotten": ("layernorm", without(layernorm_bwd_bwd, 0)),
    "layernorm, dgain forgotten": ("layernorm", without(layernorm_bwd_bwd, 1)),
    "layernorm, dbias forgotten": ("layernorm", without(layernorm_bwd_bwd, 2)),
    "layernorm, first term of g_z dropped": (
        "layernorm",
        changed(layernorm_bwd_bwd, 1, lambda g, gz, gg, gb, dy, r: g + r.rstd * r.n * mean(gz * layernorm_bwd(dy, r)[0])),
    ),
    "layernorm, second term of g_z dropped": (
        "layernorm",
        changed(layernorm_bwd_bwd, 1, lambda g, gz, gg, gb, dy, r: g + r.rstd * layernorm_bwd(dy, r)[0] * mean(r.n * gz)),
    ),
    "layernorm, third term of g_z dropped": (
        "layernorm",
        changed(layernorm_bwd_bwd, 1, lambda g, gz, gg, gb, dy, r: g + r.rstd * layernorm_bwd(gz / r.gain, r)[0] * mean(r.n * dy * r.gain)),
    ),
    "layernorm, last term of g_z dropped": (
        "layernorm",
        changed(layernorm_bwd_bwd, 1, lambda g, gz, gg, gb, dy, r: layernorm_bwd_bwd(gz, 0 * gg, gb, dy, r)[1]),
    ),
    "layernorm, gradient of the gain forgotten": ("layernorm", changed(layernorm_bwd_bwd, 2, lambda *_: None)),
    "layernorm, NaN in the second backward": ("layernorm", changed(layernorm_bwd_bwd, 2, lambda g, *_: g * np.nan)),
}


@cache
def first_order_is_right(op: str, seed: int) -> None:
    """Raises if bwd is not; asked once for all mutants of bwd_bwd."""
    fwd, bwd, args, _ = ACCEPTED[op]
    check_adjoint(fwd, bwd, args, seed=seed)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ACCEPTED)
def test_check_adjoint_accepts_the_real_ops(name: str, seed: int) -> None:
    """<u, J v> = <J^T u, v> to 1e-8 of |J v|, and the report says how well."""
    fwd, bwd, args, bwd_bwd = ACCEPTED[name]
    report = check_adjoint(fwd, bwd, args, bwd_bwd, seed=seed)
    leaves = sum(a.dtype.kind == "f" for a in args)
    assert report.checked == (leaves if bwd_bwd is None else 2 * leaves + 1)
    assert 0 < report.error < 1e-8 and report.where


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", FIRST)
def test_check_adjoint_rejects_a_wrong_backward(name: str, seed: int) -> None:
    """J^T u replaced by a mutant: rejected for every seed; theorem 19."""
    op, mutant = FIRST[name]
    fwd, _, args, _ = ACCEPTED[op]
    with np.errstate(invalid="ignore"), pytest.raises(AdjointError):
        check_adjoint(fwd, mutant, args, seed=seed)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", SECOND)
def test_check_adjoint_rejects_a_wrong_second_backward(name: str, seed: int) -> None:
    """(d bwd)^T g replaced by a mutant while bwd is right: rejected for every seed; theorem 19."""
    op, mutant = SECOND[name]
    fwd, bwd, args, _ = ACCEPTED[op]
    first_order_is_right(op, seed)
    with pytest.raises(AdjointError):
        check_adjoint(fwd, bwd, args, mutant, seed=seed)


def test_a_wrong_second_backward_needs_the_second_order_check() -> None:
    """Without bwd_bwd only the first order is checked: the mutants above are caught by order 2, not
    by luck.
    """
    fwd, bwd, args, _ = ACCEPTED["layernorm"]
    assert check_adjoint(fwd, bwd, args).checked == 3


class Layer(NamedTuple):
    loud: Any
    quiet: Any
    absent: Any = None


def tree_fwd(x: np.ndarray, p: tuple) -> tuple:
    """Two layers in a tree; the second is a thousand million times quieter."""
    big, res_big = dense_fwd(x, p[0].loud, p[0].quiet)
    small, res_small = dense_fwd(x, p[1].loud, p[1].quiet)
    return Layer(big * 1e3, small * 1e-6), (res_big, res_small)


def tree_bwd(d: Layer, res: tuple) -> tuple:
    dx_big, *big = dense_bwd(d.loud * 1e3, res[0])
    dx_small, *small = dense_bwd(d.quiet * 1e-6, res[1])
    return dx_big + dx_small, (Layer(*big), Layer(*small))


def quiet_fwd(x: np.ndarray, p: Layer) -> tuple:
    """One output of size 1 to which the leaf ``quiet`` contributes a millionth."""
    y, res = dense_fwd(x, p.loud, 1e-6 * p.quiet)
    return y, res


def quiet_bwd(factor: float) -> Callable:
    def bwd(dy: np.ndarray, res: Any) -> tuple:
        dx, dw, db = dense_bwd(dy, res)
        return dx, Layer(dw, factor * 1e-6 * db)

    return bwd


def test_check_adjoint_walks_trees_of_arguments_and_outputs() -> None:
    """Every leaf is checked on its own; absent leaves are skipped."""
    x, w, b = DENSE
    assert check_adjoint(tree_fwd, tree_bwd, (x, (Layer(w, b), Layer(w.T, -b)))).checked == 5
    assert check_adjoint(quiet_fwd, quiet_bwd(1.0), (x, Layer(w, b))).checked == 3


def test_a_bug_in_a_tiny_leaf_cannot_hide_behind_large_ones() -> None:
    """A gradient of relative size 1e-6 that is wrong by one part in a thousand is rejected, and the
    leaf is named; theorem 19.
    """
    x, w, b = DENSE
    for factor in (1.001, 2.0, -1.0, 0.0):
        with pytest.raises(AdjointError, match=r"argument 1 \(quiet\)"):
            check_adjoint(quiet_fwd, quiet_bwd(factor), (x, Layer(w, b)))


def test_a_missing_leaf_of_a_tree_is_rejected() -> None:
    """None stands for zero: right for a leaf that does not matter, rejected for one that does;
    theorem 19.
    """
    x, w, b = DENSE
    with pytest.raises(AdjointError, match=r"argument 1 \(quiet\)"):
        check_adjoint(quiet_fwd, lambda dy, r: (quiet_bwd(1)(dy, r)[0], quiet_bwd(1)(dy, r)[1]._replace(quiet=None)), (x, Layer(w, b)))
    with pytest.raises(AdjointError, match=r"argument 1"):
        check_adjoint(quiet_fwd, lambda dy, r: (quiet_bwd(1)(dy, r)[0], None), (x, Layer(w, b)))

    def ignores_b(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> tuple:
        return dense_fwd(x, w, 0 * b)

    check_adjoint(ignores_b, changed(dense_bwd, 2, lambda *_: None), DENSE)


@pytest.mark.parametrize("seed", range(3))
def test_a_function_that_bends_too_much_for_a_step_is_tried_with_a_finer_one(seed: int) -> None:
    """At h = 1e-3 the difference of sin r x, r v = 200, is off by (r v h)^6 / 140 = 5e-7, at h / 4
    by 1e-10; one in 10^6 is still seen.
    """
    draw = np.random.default_rng(seed)
    _, v = draw.standard_normal(1), draw.standard_normal(1)  # the check's u and v
    rate, x = 200 / abs(v[0]), np.asarray([0.3])

    def check(wrong: float, **step: float) -> float:
        waves, adjoint = (lambda x: (np.sin(rate * x), None), lambda dy, _: wrong * rate * dy * np.cos(rate * x))
        return check_adjoint(waves, adjoint, (x,), seed=seed, **step).error

    assert check(1.0) < 1e-8
    for wrong, step in ((1.0, {"step": 4e-3}), (1 + 1e-6, {})):  # from 4e-3 the finer step is 1e-3, and not enough
        with pytest.raises(AdjointError):
            check(wrong, **step)


def test_the_reported_error_is_relative_to_the_length_of_the_change() -> None:
    """|<u, J v> - <J^T u, v>| / |J v| for an adjoint off by one part in 10^9, whatever the size of
    the function.
    """
    draw = np.random.default_rng(5)
    u, v = draw.standard_normal(6), draw.standard_normal(6)
    for size in (1.0, 1e-6):
        report = check_adjoint(lambda x, s=size: (s * x, None), lambda dy, _, s=size: s * (1 + 1e-9) * dy, (np.ones(6),), seed=5)
        assert report.error == pytest.approx(1e-9 * abs(u @ v) / np.linalg.norm(v), rel=0.05)
        assert report.where == "<lambda>, argument 0"


def test_a_non_finite_forward_pass_is_rejected() -> None:
    """NaN compares false with everything: the check must still say no; theorem 19."""
    for bad in (np.nan, np.inf):

        def fwd(x: np.ndarray, w: np.ndarray, b: np.ndarray, bad: float = bad) -> tuple:
            y, res = dense_fwd(x, w, b)
            return y * bad, res

        with np.errstate(invalid="ignore"), pytest.raises(AdjointError):
            check_adjoint(fwd, dense_bwd, DENSE)


def test_a_function_that_is_identically_zero_is_accepted() -> None:
    """With one class the cross-entropy and both its gradients are 0 = 0.   (C.1)"""
    check_adjoint(cross_entropy_fwd, cross_entropy_bwd, (_draw(2, 1), np.asarray([0, 0])), cross_entropy_bwd_bwd)


def test_the_message_names_the_function_the_argument_and_both_numbers() -> None:
    """What a maintainer reads first when a gradient is wrong."""

    def forgetful_bwd(dy: np.ndarray, res: Any) -> tuple:
        dx, dw, db = dense_bwd(dy, res)
        return dx, 2 * dw, db

    with pytest.raises(AdjointError, match=r"forgetful_bwd, argument 1: <u, J v> = .* by differences, <J\^T u, v> = .* by the backward"):
        check_adjoint(dense_fwd, forgetful_bwd, DENSE)
    with pytest.raises(AdjointError, match=r"2 gradients for 3"):
        check_adjoint(dense_fwd, FIRST["a missing entry"][1], DENSE)
    with pytest.raises(AdjointError, match=r"shape \(1, 4\) for an input of shape \(4,\)"):
        check_adjoint(dense_fwd, FIRST["wrong shape that would broadcast"][1], DENSE)


def test_float32_gradients_are_checked_at_float32_accuracy() -> None:
    """The tolerance grows with the machine epsilon, not to infinity: a sign error in float32 is
    still rejected.
    """
    args = tuple(a.astype("float32") for a in DENSE)
    check_adjoint(dense_fwd, dense_bwd, args, dense_bwd_bwd, step=1e-1)
    with pytest.raises(AdjointError):
        check_adjoint(dense_fwd, changed(dense_bwd, 1, lambda g, *_: -g), args, step=1e-1)


def test_the_law_holds_for_one_tangent_and_one_cotangent() -> None:
    """<u, J v> = <J^T u, v>: the two numbers are equal for dense's adjoint, and differ by what a mutant adds."""
    x, w, b = DENSE
    v, u = _draw(*x.shape), _draw(2, 3, 4)
    lhs, rhs = both_sides(lambda x: dense_fwd(x, w, b), lambda u, res: dense_bwd(u, res)[0], x, v, u)
    assert_close(lhs, np.sum(u * (v @ w)))
    assert_close(rhs, np.sum(u * (v @ w)))
    lhs, rhs = both_sides(lambda x: dense_fwd(x, w, b), lambda u, res: 2 * dense_bwd(u, res)[0], x, v, u)
    assert_close(rhs, 2 * lhs)


# What rounding hides, and what else could fool the check
# --------------------------------------------------------------------------------------------------------


def narrow(args: tuple, dtype: str = "float32", size: float = 1.0) -> tuple:
    """The arguments in a narrow precision, the first of them ``size`` times as large."""
    return tuple((a * (size if i == 0 else 1.0)).astype(dtype) for i, a in enumerate(args))


def zeroed(bwd: Callable) -> Callable:
    return lambda dy, res: tuple(0 * g for g in bwd(dy, res))


def offset_loss(offset: float) -> Callable:
    """A loss of the size of a thousandth on top of a constant."""
    return lambda x: (offset + np.sum(1e-3 * x * x), x)


def loss_bwd(factor: float) -> Callable:
    return lambda dy, x: factor * 2e-3 * dy * x


def test_rounding_that_hides_a_zeroed_leaf_is_said_and_fails() -> None:
    """x = 100 N(0,1) in float32: y is a hundred times db's share, whose difference is mostly rounding. The right adjoint is refused too."""
    args = narrow(DENSE, size=100.0)
    words = r"rounding hides the derivative.*an output of size .* in float32.*check in float64, take a larger step"
    for bwd in (changed(dense_bwd, 2, lambda g, *_: 0 * g), dense_bwd):
        with pytest.raises(AdjointError, match=words):
            check_adjoint(dense_fwd, bwd, args)
        with pytest.raises(AdjointError, match=r"rounding hides the derivative. An input as large as .* in float32"):
            check_adjoint(dense_fwd, bwd, args, step=1e-3)
    with pytest.raises(AdjointError, match=r"argument 2: <u, J v>"):  # the larger step that the message asks for
        check_adjoint(dense_fwd, changed(dense_bwd, 2, lambda g, *_: 0 * g), args, step=10.0)
    check_adjoint(dense_fwd, dense_bwd, args, step=10.0)


@pytest.mark.parametrize("size", [1.0, 100.0])
@pytest.mark.parametrize("step", [None, 1e-3, 0.1, 1.0])
def test_float16_has_too_few_digits_for_a_difference(size: float, step: float | None) -> None:
    """All gradients zero, and the right ones: both are refused, for no difference in float16 could tell them apart."""
    args = narrow(DENSE, "float16", size)
    for bwd in (zeroed(dense_bwd), dense_bwd):
        with pytest.raises(AdjointError, match=r"rounding hides the derivative.*float16.*check in float64"):
            check_adjoint(dense_fwd, bwd, args, step=step)


@pytest.mark.parametrize("offset", [1e8, -1e10, 1e13, 1e16, 1e20])
def test_a_tiny_loss_on_a_large_offset_is_refused(offset: float) -> None:
    """From 1e13 on the loss does not even move: 0 = 0 proves nothing about what is below the last digit."""
    for factor in (0.0, 1.0):
        with pytest.raises(AdjointError, match=r"rounding hides.*subtract what is constant from the output"):
            check_adjoint(offset_loss(offset), loss_bwd(factor), (_draw(3, 4),))
    check_adjoint(offset_loss(0.0), loss_bwd(1.0), (_draw(3, 4),))


def test_an_output_that_cannot_move_is_refused_beside_one_that_does() -> None:
    """Two outputs: the gradient of the first is forgotten, and its offset hides that."""

    def fwd(x: np.ndarray) -> tuple:
        return (1e16 + x, 3 * x), x

    with pytest.raises(AdjointError, match=r"rounding hides whether the derivative is 0. Output 0, of size"):
        check_adjoint(fwd, lambda d, x: 3 * d[1], (_draw(4),))


@pytest.mark.parametrize("size", [1e-310, 1e-200, 1e155, 1e200, 1e305])
def test_lengths_neither_overflow_nor_vanish(size: float) -> None:
    """|J v| of a large or a tiny function is a number, and half its gradient is not its gradient."""
    x = _draw(5)
    assert check_adjoint(lambda x: (size * x, None), lambda dy, _: size * dy, (x,)).error < 1e-8
    for factor in (0.0, 0.5, 1.01, -1.0):
        with pytest.raises(AdjointError, match=r"they differ by"):
            check_adjoint(lambda x: (size * x, None), lambda dy, _: factor * size * dy, (x,))


def test_a_product_that_overflows_is_refused() -> None:
    """Infinity is within every allowance of infinity."""
    with np.errstate(over="ignore", invalid="ignore"), pytest.raises(AdjointError, match=r"must be finite"):
        check_adjoint(lambda x: (1e308 * x, None), lambda dy, _: 1e308 * dy, (10 * np.ones(5),))


@pytest.mark.parametrize("step", [1e-14, 1e-17, 1e-300])
@pytest.mark.parametrize("factor", [0.0, 1.0, 2.0])
def test_a_step_below_the_last_digit_of_the_input_is_refused(step: float, factor: float) -> None:
    """x + h v is rounded to x, or to a neighbour of it that v has nothing to do with."""
    wrong = lambda dy, res: tuple(factor * g for g in dense_bwd(dy, res))  # noqa: E731
    with pytest.raises(AdjointError, match=r"An input as large as .* in float64 moves by .* take a larger step"):
        check_adjoint(dense_fwd, wrong, DENSE, step=step)


@pytest.mark.parametrize("factor", [0.0, 1.0])
def test_an_input_so_large_that_it_cannot_move_is_refused(factor: float) -> None:
    """x = 10^14 has no digits for a step of a thousandth, although x - 10^14 is small."""
    with pytest.raises(AdjointError, match=r"An input as large as 1e\+14"):
        check_adjoint(lambda x: (x - 1e14, None), lambda dy, _: factor * dy, (1e14 + _draw(4),))


@pytest.mark.parametrize("step", [0.0, -1e-3, np.nan, np.inf])
def test_a_step_that_is_none_is_refused(step: float) -> None:
    """A step is a finite number above 0."""
    with pytest.raises(ValueError, match=r"step must be finite and > 0, got"):
        check_adjoint(dense_fwd, dense_bwd, DENSE, step=step)


FLOAT32 = {
    "one per cent": changed(dense_bwd, 1, lambda g, *_: 1.01 * g),
    "sign": changed(dense_bwd, 0, lambda g, *_: -g),
    "one leaf zero": changed(dense_bwd, 2, lambda g, *_: 0 * g),
    "transposed square matrix": changed(dense_bwd, 1, lambda g, *_: g.T),
    "None": changed(dense_bwd, 2, lambda *_: None),
    "all zero": zeroed(dense_bwd),
    "NaN": changed(dense_bwd, 0, lambda g, *_: g * np.float32(np.nan)),
    "infinite": changed(dense_bwd, 0, lambda g, *_: g + np.float32(np.inf)),
    "another dtype": changed(dense_bwd, 0, lambda g, *_: g.astype("float64")),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", FLOAT32)
def test_float32_mutants_are_rejected_at_sane_scales(name: str, seed: int) -> None:
    """With the step that float32 gets by itself."""
    with np.errstate(invalid="ignore"), pytest.raises(AdjointError):
        check_adjoint(dense_fwd, FLOAT32[name], narrow(DENSE), seed=seed)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", [n for n, (_, _, args, _) in ACCEPTED.items() if all(a.dtype.kind == "f" for a in args)])
def test_float32_ops_pass_at_sane_scales(name: str, seed: int) -> None:
    """Both orders, and a rounding well below the thousandth that would be refused."""
    fwd, bwd, args, bwd_bwd = ACCEPTED[name]
    steps = {"squared_relu": 0.03, "linear attention": 0.5}  # the kink is 0.3 away; a polynomial of degree 4 in the decay allows any
    assert check_adjoint(fwd, bwd, narrow(args), bwd_bwd, seed=seed, step=steps.get(name)).error < 1e-3


def test_arrays_whose_numbers_are_whole_are_variables_too() -> None:
    """Floats that look like integers, and a scalar: right ones pass, 1 per cent is seen."""
    x = np.arange(6.0)
    for args in ((x,), (np.asarray(3.0),)):
        check_adjoint(lambda x: (x * x, x), lambda dy, x: 2 * dy * x, args)
        with pytest.raises(AdjointError, match="argument 0"):
            check_adjoint(lambda x: (x * x, x), lambda dy, x: 2.02 * dy * x, args)


def test_a_check_of_nothing_is_refused() -> None:
    """No variable, or no output: nothing would be compared. An empty variable beside others is checked with them."""
    x, w, b = DENSE
    with pytest.raises(AdjointError, match="no argument is a floating-point array"):
        check_adjoint(lambda n: (n * 1.0, n), lambda dy, n: (), (np.arange(3),))
    with pytest.raises(AdjointError, match="the output has no entries"):
        check_adjoint(dense_fwd, dense_bwd, (x[:0], w, b))
    assert check_adjoint(dense_fwd, dense_bwd, (x[..., :0], w[:0], b)).checked == 3


def test_only_real_numbers_are_checked() -> None:
    """Complex arguments, outputs and gradients, and outputs that are counts, are refused in words."""
    x = _draw(3)
    with pytest.raises(AdjointError, match="complex128; only real numbers"):
        check_adjoint(lambda x: (x * x, x), lambda dy, x: 2 * dy * x, (x + 0j,))
    with pytest.raises(AdjointError, match="output 0 is complex128"):
        check_adjoint(lambda x: (x * 1j, x), lambda dy, x: dy, (x,))
    with pytest.raises(AdjointError, match="dtype complex128 for an input of float64"):
        check_adjoint(lambda x: (x * x, x), lambda dy, x: 2 * dy * x + 0j, (x,))
    with pytest.raises(AdjointError, match="output 1 is int64"):
        check_adjoint(lambda x: ((x * x, np.arange(3)), x), lambda dy, x: 2 * dy[0] * x, (x,))
    with pytest.raises(AdjointError, match="gradient is a float, not an array"):
        check_adjoint(lambda x: (x * x, x), lambda dy, x: float(2 * dy * x), (np.asarray(0.5),))


def test_a_gradient_has_the_structure_of_its_argument() -> None:
    """An entry too many, or rows of an array in place of a tuple, are not walked by luck."""
    pair = (_draw(3), _draw(3))

    def fwd(p: tuple) -> tuple:
        return p[0] * p[1], p

    check_adjoint(fwd, lambda d, p: ((d * p[1], d * p[0]),), (pair,))
    with pytest.raises(AdjointError, match="tuple of 2 entries, got 3 entries"):
        check_adjoint(fwd, lambda d, p: ((d * p[1], d * p[0], d),), (pair,))
    with pytest.raises(AdjointError, match="tuple of 2 entries, got (ndarray|Array)"):
        check_adjoint(fwd, lambda d, p: np.stack([d * p[1], d * p[0]]), (pair,))


def test_a_backward_pass_cannot_change_what_it_is_measured_by() -> None:
    """The cotangent doubled in place, the input zeroed in place: both sides would move together."""

    def doubles(dy: np.ndarray, res: Any) -> tuple:
        dy *= 2
        return dense_bwd(dy, res)

    def erases(dy: np.ndarray, res: Any) -> tuple:
        res.x[...] = 0
        return dense_bwd(dy, res)

    for bwd in (doubles, erases):
        with pytest.raises(AdjointError, match="they differ"):
            check_adjoint(dense_fwd, bwd, tuple(a.copy() for a in DENSE))


def test_integers_within_a_tree_are_constants() -> None:
    """Only the leaves that have a derivative are moved."""

    def fwd(p: tuple) -> tuple:
        return p[0] * p[1], p

    assert check_adjoint(fwd, lambda d, p: ((d * p[1], None),), ((_draw(4), np.arange(4)),)).checked == 1


def test_the_directional_difference_is_of_sixth_order() -> None:
    """|D_h f - f'| = O(h^6): halving the step divides the error by 2^6."""
    x, v = np.asarray([0.3]), np.asarray([1.0])
    errors = [abs(float(directional_difference(np.exp, (x,), ([v],), h)[0]) - np.exp(0.3)) for h in (0.4, 0.2)]
    assert 5.8 < np.log2(errors[0] / errors[1]) < 6.2
    for power in range(7):  # exact, not only accurate, on polynomials up to degree 6
        assert_close(directional_difference(lambda a, n=power: a**n, (x,), ([v],), 0.5), power * x ** max(power - 1, 0), scale=1.0)


# Numbers that the check is made of, each to its last digit or within a per cent
# --------------------------------------------------------------------------------------------------------


def drawn(count: int = 1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """u and v of a check of one array with one output of the same shape."""
    draw = np.random.default_rng(seed)
    return draw.standard_normal(count), draw.standard_normal(count)


def times(dy: Any, factor: Any) -> Any:
    return factor * dy


@pytest.mark.parametrize(("dtype", "steps"), [("float64", (1e-3, 1e-3 / 4, 16e-3)), ("float32", (0.1, 0.025))])
def test_the_steps_that_are_tried(dtype: str, steps: tuple) -> None:
    """The default of the precision, a quarter of it, and in float64 sixteen times it; three points on each side."""
    points, v = [], drawn()[1][0]

    def fwd(x: np.ndarray) -> tuple:
        points.append(float(x[0]) / v)
        return x, 2

    with pytest.raises(AdjointError, match="they differ"):
        check_adjoint(fwd, times, (np.zeros(1, dtype),))
    expected = [sign * i * h for h in steps for i in (1, 2, 3) for sign in (1, -1)]
    np.testing.assert_allclose(points, [0, *expected], rtol=1e-6)


def test_the_step_of_the_law() -> None:
    """``both_sides`` looks at x, and at three points a thousandth of v apart on each side."""
    points = []

    def fwd(x: np.ndarray) -> tuple:
        points.append(float(x[0]))
        return x, 1

    both_sides(fwd, times, np.zeros(1), np.ones(1), np.ones(1))
    np.testing.assert_allclose(points, [1e-3, -1e-3, 2e-3, -2e-3, 3e-3, -3e-3, 0], rtol=1e-12)


@pytest.mark.parametrize(("dtype", "step"), [("float64", 16e-3), ("float32", 0.1)])
def test_rounding_of_a_thousandth_is_the_limit(dtype: str, step: float) -> None:
    """30 eps |y| / h = 0.001 |J v| at the largest step that is tried: one per cent less passes, one per cent more does not."""
    limit = 1e-3 * abs(drawn()[1][0]) * step / (30 * np.finfo(dtype).eps)
    check = lambda y: check_adjoint(lambda x: (x + y.astype(x.dtype), 1), times, (np.zeros(1, dtype),))  # noqa: E731
    check(np.asarray(0.99 * limit))
    with pytest.raises(AdjointError, match=r"rounding hides the derivative. \|J v\| ="):
        check(np.asarray(1.01 * limit))


def test_a_thousandth_of_the_largest_change_is_the_limit_for_an_output_that_stays() -> None:
    """30 eps |c| / h = 0.001 |J v|, of the output c beside one that moves by |J v|."""
    most = 1e-3 * abs(np.random.default_rng(0).standard_normal(3)[2])  # after two cotangents
    limit = 1e-3 * most * 1e-3 / (30 * np.finfo("float64").eps)
    check = lambda c: check_adjoint(lambda x: ((c + 0 * x, 1e-3 * x), None), lambda d, _: 1e-3 * d[1], (np.zeros(1),))  # noqa: E731
    check(0.99 * limit)
    words = f"Output 0, of size {1.01 * limit:.3g} in float64, .* no |J v| is larger than {most:.2g}: take a larger step, or subtract"
    with pytest.raises(AdjointError, match=re.escape(words).replace(re.escape(".*"), ".*")):
        check(1.01 * limit)


def test_what_the_rounding_of_the_input_adds_is_allowed() -> None:
    """At x = 10^9 the difference sees v to four digits: so much may the two sides differ, in units of |J v|."""
    x = 1e9 + _draw(4)
    report = check_adjoint(lambda x: (1e-6 * (x - 1e9), 1e-6), times, (x,))
    assert 1e-8 < report.error < 1e-3
    with pytest.raises(AdjointError, match="they differ"):
        check_adjoint(lambda x: (1e-6 * (x - 1e9), 1.01e-6), times, (x,))


def test_a_coarser_step_does_not_excuse_what_finer_ones_saw() -> None:
    """1 + sin with a period of the coarsest step: there nothing moves, but at the finer steps a gradient of zeros was wrong."""
    rate = 2 * np.pi / (16e-3 * abs(drawn()[1][0]))
    with pytest.raises(AdjointError, match="they differ"):
        check_adjoint(lambda x: (1 + np.sin(rate * x), 0), times, (np.zeros(1),))


def test_the_numbers_of_a_message() -> None:
    """Both sides, how far they are apart in units of |J v|, and infinity where nothing moves."""
    (u,), (v,) = drawn()
    number = "(-?[0-9.e-]+)"
    words = rf"times, argument 0: <u, J v> = {number} by differences, <J\^T u, v> = {number} by the backward pass; "
    with pytest.raises(AdjointError) as caught:
        check_adjoint(lambda x: (0.1 * x, 0.2), times, (np.zeros(1),))
    found = re.fullmatch(words + rf"they differ by {number} \|J v\|, allowed 1e-08", str(caught.value))
    assert [float(n) for n in found.groups()] == pytest.approx([0.1 * u * v, 0.2 * u * v, abs(u)], rel=1e-2)
    with pytest.raises(AdjointError, match=re.escape("they differ by inf |J v|")):
        check_adjoint(lambda x: (0 * x, 1), times, (np.zeros(1),))
    with pytest.raises(AdjointError, match=r"more than 0.001: take a larger step"):  # in float64 no more digits are offered
        check_adjoint(lambda x: (x - 1e14, 1), times, (1e14 + _draw(4),))


@pytest.mark.parametrize("rtol", [1.0, 1e9, -1e-8, np.nan, np.inf])
def test_a_tolerance_that_allows_anything_is_refused(rtol: float) -> None:
    """A gradient of zeros is off by about |J v|: with a tolerance of 1 it would pass.."""
    with pytest.raises(ValueError, match=rf"rtol must be >= 0 and < 1, got {rtol}"):
        check_adjoint(dense_fwd, dense_bwd, DENSE, rtol=rtol)


def test_every_tolerance_from_0_to_1_is_taken_at_its_word() -> None:
    """With 0 only the rounding of the difference is allowed; an adjoint off by a half passes with 0.9 if |u| is near 1."""
    check_adjoint(dense_fwd, dense_bwd, DENSE, rtol=0)
    off = 0.5 * abs(drawn()[0][0])
    half = lambda rtol: check_adjoint(lambda x: (x, 0.5), times, (np.zeros(1),), rtol=rtol)  # noqa: E731
    assert half(1.01 * off).error == pytest.approx(off)
    with pytest.raises(AdjointError):
        half(0.99 * off)


def test_numbers_among_the_arguments_are_constants() -> None:
    """An integer and a string are handed on as they are; a function without a name is called by what it prints."""
    fwd = lambda x, n, how: (n * x if how == "times" else x, n)  # noqa: E731
    assert check_adjoint(fwd, times, (_draw(3), 3, "times")).where == "times, argument 0"
    nameless = check_adjoint(fwd, partial(times), (_draw(3), 3, "times")).where
    assert nameless.endswith(">), argument 0" if NAME == "numpy" else ", argument 0")
    with pytest.raises(AdjointError, match="times: output 0 is float; only real"):
        check_adjoint(lambda x: (1.0, x), times, (_draw(3),))


def test_a_gradient_of_another_structure_is_named_by_its_path() -> None:
    """The second of two entries, and an entry within it."""
    args = ((_draw(3), Layer((_draw(3), _draw(3)), _draw(3))),)

    def check(gradient: Callable) -> None:
        check_adjoint(lambda p: (p[0] + p[1].loud[0] * p[1].loud[1] * p[1].quiet, p), lambda d, p: (gradient(d, p),), args)

    right = lambda d, p: (d, Layer((d * p[1].loud[1] * p[1].quiet, d * p[1].loud[0] * p[1].quiet), d * p[1].loud[0] * p[1].loud[1]))  # noqa: E731
    check(right)
    with pytest.raises(AdjointError, match="the gradient of 1 must be a tuple of 3 entries, got 2 entries"):
        check(lambda d, p: (d, (d, d)))
    with pytest.raises(AdjointError, match=r"the gradient of 1\.loud must be a tuple of 2 entries, got 3 entries"):
        check(lambda d, p: (d, Layer((d, d, d), d)))
