"""check_adjoint: proves that a backward pass is the adjoint of its forward pass.

With J the Jacobian of the forward pass, the adjoint satisfies <u, J v> = <J^T u, v> for every
tangent v of the input and every cotangent u of the output. ``both_sides`` is that law, for one
array. ``check_adjoint`` asks it of every leaf of every input, with random u and v, and of the
adjoint of the backward pass too.

J v is a sixth-order central difference of the forward pass, so the check knows nothing about how
the backward pass was derived. Both sides are compared in units of |J v|, the standard deviation of
<u, J v> over random u: a value near zero by chance can neither fail nor pass a check. Every leaf is
checked on its own, so a small gradient cannot hide behind a large one.

A difference has rounding errors. Where they could hide an error of a thousandth of |J v|, nothing
is proved, and the check fails and says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from .backend import Array, Tree, host, like, namespace, to_numpy
from .tree import add, leaves, named_leaves, rebuild, tree_map

__all__ = ["both_sides", "check_adjoint", "AdjointError", "AdjointReport", "directional_difference"]

# sixth-order central difference: f'(x) = sum_i c_i (f(x + i h) - f(x - i h)) / h + O(h^6)
_STENCIL = ((1, 3 / 4), (2, -3 / 20), (3, 1 / 60))


def both_sides(
    fwd: Callable[[Array], tuple[Array, Any]],
    bwd: Callable[[Array, Any], Array],
    x: Array,
    v: Array,
    u: Array,
    step: float = 1e-3,
) -> tuple[float, float]:
    """<u, J v> by differences of ``fwd``, and <J^T u, v> by ``bwd``: equal, if ``bwd`` is right.

    ``fwd(x)`` returns an output and a residual, ``bwd(u, residual)`` the gradient of <u, output>.
    v has the shape of x, u that of the output.
    """
    xp = namespace(x, v, u)
    jv = 0  # J v, the change of the output when x moves along v
    for i, c in _STENCIL:
        ahead, _ = fwd(x + i * step * v)
        behind, _ = fwd(x - i * step * v)
        jv = jv + c * (ahead - behind) / step
    _, residual = fwd(x)
    jtu = bwd(u, residual)  # J^T u, the gradient
    return float(xp.sum(u * jv)), float(xp.sum(jtu * v))


class AdjointError(AssertionError):
    """A backward pass is not the adjoint of its forward pass, or rounding hides whether it is."""


class AdjointReport(NamedTuple):
    """The largest relative error of a passed check, and where it was."""

    error: float
    where: str
    checked: int


def check_adjoint(
    fwd: Callable[..., tuple[Tree, Any]],
    bwd: Callable[..., Tree],
    args: tuple,
    bwd_bwd: Callable[..., Tree] | None = None,
    *,
    seed: int = 0,
    step: float | None = None,
    rtol: float = 1e-8,
) -> AdjointReport:
    """Check ``bwd`` as the adjoint of ``fwd`` and, if given, ``bwd_bwd`` as the adjoint of ``bwd``.

    Parameters
    ----------
    fwd : ``fwd(*args) -> output, residual``; args and output may be trees. Integer arrays and
        non-arrays are constants.
    bwd : ``bwd(d_output, residual) -> d_args``, one entry per differentiable argument in order;
        None means zero.
    bwd_bwd : ``bwd_bwd(*g_d_args, d_output, residual) -> g_d_output, *g_args``.
    step : of the finite difference; the error is O(step^6) plus rounding / step. A leaf that fails
        is tried once more at a quarter of it. None: 1e-3 in float64, 0.1 in less.
    rtol : largest allowed |<u, J v> - <J^T u, v>| / |J v|, above the rounding of the difference
        itself.

    Raises
    ------
    AdjointError
        Naming the function, the argument and both numbers; or, if rounding may be more than a
        thousandth of |J v|, its size, where it comes from and what to change.
    ValueError
        If ``step`` is not a finite number above 0.
    """
    if step is not None and not (step > 0 and math.isfinite(step)):
        raise ValueError(f"the step must be finite and > 0, got {step}")
    report = _check(fwd, bwd, args, _name(bwd), seed, step, rtol)
    if bwd_bwd is None:
        return report

    output, _ = fwd(*args)
    cotangent = _random(_generator(seed + 1), output)

    def backward(d_output, *inputs):
        _, residual = fwd(*inputs)
        return _as_tuple(bwd(d_output, residual)), (d_output, residual)

    def backward_adjoint(g_d_args, residual):
        return bwd_bwd(*g_d_args, *residual)

    args = (cotangent, *args)
    second = _check(backward, backward_adjoint, args, _name(bwd_bwd), seed + 2, step, rtol)
    return max(report, second)._replace(checked=report.checked + second.checked)


def directional_difference(
    f: Callable[..., Tree], args: tuple, tangents: tuple, step: float
) -> Tree:
    """d/de f(args + e tangents) at e = 0 by a sixth-order central difference.

    One entry of ``tangents`` per argument: the tangents of its leaves in order, or None. Within
    it, None is a leaf that stays.
    """
    total = None
    for i, c in _STENCIL:
        ahead, behind = (f(*_move(args, tangents, by * step)) for by in (i, -i))
        term = tree_map(lambda a, b, w=c / step: (a - b) * w, ahead, behind)
        total = term if total is None else add(total, term)
    return total


# The machinery: one leaf at a time
# -----------------------------------------------------------------------------

_FINER = 4  # a step 4 times finer bends 4^6 times less; a wrong adjoint stays as wrong
_COARSER = 16  # where rounding hides a small derivative in float64, a coarser step has less of it
_ULPS = 30  # rounding of a difference: 30 machine epsilons of the output, over the step
_RESOLUTION = 1e-3  # of |J v|: more rounding than this could hide what the check is for


class _Sides(NamedTuple):
    """Both sides of the law for one leaf at one step, and what they are measured by."""

    where: str
    step: float
    lhs: float  # <u, J v>
    rhs: float  # <J^T u, v>
    moved: tuple[float, ...]  # |J v| of every output
    noise: tuple[float, ...]  # the most that the rounding of every output adds to lhs
    slip: float  # the relative error of v itself: x + h v is rounded too

    @property
    def scale(self) -> float:
        """|J v|"""
        return math.hypot(*self.moved)

    @property
    def error(self) -> float:
        return abs(self.lhs - self.rhs)

    @property
    def rounding(self) -> float:
        """The most that rounding changes lhs. An output that stays where others move adds none."""
        moving = [n for n, length in zip(self.noise, self.moved, strict=True) if length > 0]
        return math.hypot(*(moving or self.noise)) + self.slip * self.scale


def _check(fwd, bwd, args, name, seed, step, rtol) -> AdjointReport:
    """Both sides of the law for every leaf of ``args``."""
    draw = _generator(seed)
    output, residual = fwd(*tree_map(_copy, args))  # copies: bwd cannot change what is measured
    _refuse_what_has_no_adjoint(args, output, name)
    eps = max(_epsilon(a) for a in leaves((args, output)) if _is_float(a))
    step = step or (1e-3 if eps < 1e-12 else 0.1)
    tried = (step, step / _FINER, *([step * _COARSER] if eps < 1e-12 else []))
    u = _random(draw, output)
    held, sizes = [_wide(a) for a in leaves(u)], [_norm(_wide(y)) for y in leaves(output)]
    gradients = _as_tuple(bwd(u, residual))
    variables = [i for i, a in enumerate(args) if _differentiable(a)]
    if len(gradients) != len(variables):
        raise AdjointError(
            f"{name} returned {len(gradients)} gradients "
            f"for {len(variables)} differentiable arguments"
        )

    found = []
    for i, gradient in zip(variables, gradients, strict=True):
        for j, (label, leaf, grad) in enumerate(_aligned(args[i], gradient, name)):
            if not _is_float(leaf):
                continue
            where = f"{name}, argument {i}" + (f" ({label})" if label else "")
            _check_gradient(grad, leaf, where)
            v = _random(draw, leaf)
            moves = _only(v, args, i, j)
            rhs = 0.0 if grad is None else _inner(_wide(grad), _wide(v))
            problems = []
            for h in tried:
                jv = leaves(directional_difference(lambda *a: fwd(*a)[0], args, moves, h))
                jv = [_wide(a) for a in jv]
                lhs = sum(_inner(a, b) for a, b in zip(held, jv, strict=True))
                moved, noise = map(_norm, jv), (_ULPS * eps * size / h for size in sizes)
                sides = _Sides(where, h, lhs, rhs, tuple(moved), tuple(noise), _slip(leaf, v, h))
                problems.append(_problem(sides, rtol, leaf, sizes))
                if not problems[-1]:
                    break
            else:
                hidden = [words for words in problems[:2] if "rounding hides" in words]
                raise AdjointError((hidden or problems[1:])[0])
            found.append(sides)
    _refuse_outputs_that_cannot_move(found, output, sizes)
    return max(AdjointReport(s.error / (s.scale or 1.0), s.where, len(found)) for s in found)


def _problem(sides: _Sides, rtol: float, leaf: Array, sizes: list[float]) -> str:
    """Why the two sides disagree, or why agreement would prove nothing; empty if they agree."""
    if not all(map(math.isfinite, (sides.lhs, sides.rhs, sides.scale))):
        return _not_finite(sides)
    if not sides.slip <= _RESOLUTION:
        return _lost_in_the_input(sides, leaf)
    if not sides.error <= rtol * sides.scale + sides.rounding:
        return _disagreement(sides, rtol)
    both_zero = sides.scale == 0 and sides.rhs == 0
    if not both_zero and not sides.rounding <= _RESOLUTION * sides.scale:
        return _drowned(sides, leaf, sizes)
    return ""


def _refuse_outputs_that_cannot_move(found: list, output: Tree, sizes: list[float]) -> None:
    """An output that does not move is 0 = 0, if a thousandth of the largest |J v| would show."""
    most = max(sides.scale for sides in found)
    for k, (label, y) in enumerate(named_leaves(output)):
        for sides in found:
            if sides.moved[k] == 0 and not sides.noise[k] <= _RESOLUTION * most:
                raise AdjointError(_unseen(sides, label, k, sizes[k], most, y))


def _slip(x: Array, v: Array, step: float) -> float:
    """The largest error of an entry of v, as the difference sees it.

    The stencil moves x by h v, but x + h v is rounded: at x = 10^8, float64 has steps of 1e-8.
    """
    total = 0.0
    for i, c in _STENCIL:
        apart = _wide(x + v * (i * step)) - _wide(x - v * (i * step))
        total = total + abs(c) / step * host.abs(apart - 2 * i * step * _wide(v))
    return float(host.max(total, initial=0.0))


# What went wrong, in words


def _both(sides: _Sides) -> str:
    return (
        f"{sides.where}: <u, J v> = {sides.lhs:.12g} by differences, "
        f"<J^T u, v> = {sides.rhs:.12g} by the backward pass; "
    )


def _disagreement(sides: _Sides, rtol: float) -> str:
    apart = sides.error / sides.scale if sides.scale > 0 else math.inf
    return f"{_both(sides)}they differ by {apart:.3g} |J v|, allowed {rtol:.1g}"


def _not_finite(sides: _Sides) -> str:
    return (
        f"{_both(sides)}|J v| = {sides.scale:.3g}: all three must be finite. Look for NaN or an "
        "overflow in the output and in the gradient"
    )


def _lost_in_the_input(sides: _Sides, leaf: Array) -> str:
    return (
        f"{sides.where}: rounding hides the derivative. An input as large as "
        f"{_largest(_wide(leaf)):.3g} in {_digits(leaf)} moves by {sides.step:.1g} v with a "
        f"relative error of {sides.slip:.1g}, "
        f"more than {_RESOLUTION:g}: {_more_digits(leaf)}take a larger step, or a smaller input"
    )


def _drowned(sides: _Sides, leaf: Array, sizes: list[float]) -> str:
    return (
        f"{sides.where}: rounding hides the derivative. |J v| = {sides.scale:.3g} is uncertain by "
        f"{sides.rounding:.2g} at a step of {sides.step:.1g}, for an output of size "
        f"{math.hypot(*sizes):.3g} in {_digits(leaf)}; {_RESOLUTION:g} |J v| is allowed: "
        f"{_more_digits(leaf)}take a larger step, or subtract what is constant from the output"
    )


def _unseen(sides: _Sides, label: str, k: int, size: float, most: float, y: Array) -> str:
    return (
        f"{sides.where}: rounding hides whether the derivative is 0. Output {label or k}, of size "
        f"{size:.3g} in {_digits(y)}, does not move at a step of {sides.step:.1g}; a |J v| below "
        f"{sides.noise[k]:.2g} might not show, and no |J v| is larger than {most:.2g}: "
        f"{_more_digits(y)}take a larger step, or subtract what is constant from the output"
    )


def _digits(a: Array) -> str:
    """The dtype by its name, whatever the library puts in front of it."""
    return str(a.dtype).rsplit(".", 1)[-1]


def _more_digits(a: Array) -> str:
    return "" if _digits(a) == "float64" else "check in float64, "


# Refused before anything is compared


def _refuse_what_has_no_adjoint(args: tuple, output: Tree, name: str) -> None:
    """Something to check, and real floating-point numbers throughout."""
    for a in leaves(args):
        if "complex" in str(getattr(a, "dtype", "")):
            raise AdjointError(
                f"{name}: an argument is {_digits(a)}; only real numbers are checked"
            )
    if not any(_differentiable(a) for a in args):
        raise AdjointError(f"{name}: nothing to check, no argument is a floating-point array")
    for label, y in named_leaves(output):
        if not _is_float(y):
            kind = _digits(y) if hasattr(y, "dtype") else type(y).__name__
            raise AdjointError(
                f"{name}: output {label or 0} is {kind}; only real floating-point arrays have "
                "derivatives: leave it out of what fwd returns as its output"
            )
    if not any(math.prod(y.shape) for y in leaves(output)):
        raise AdjointError(f"{name}: nothing to check, the output has no entries")


def _check_gradient(grad: Any, leaf: Array, where: str) -> None:
    """An array of the shape and dtype of its input, or None."""
    if grad is None:
        return
    if not hasattr(grad, "dtype"):
        raise AdjointError(f"{where}: the gradient is a {type(grad).__name__}, not an array")
    if tuple(grad.shape) != tuple(leaf.shape):
        raise AdjointError(
            f"{where}: gradient of shape {tuple(grad.shape)} "
            f"for an input of shape {tuple(leaf.shape)}"
        )
    if grad.dtype != leaf.dtype:
        raise AdjointError(
            f"{where}: gradient of dtype {_digits(grad)} for an input of {_digits(leaf)}"
        )


# Trees and numbers


def _name(f: Callable) -> str:
    return getattr(f, "__name__", None) or repr(f)


def _as_tuple(x: Any) -> tuple:
    """A bare array is one result; a NamedTuple is one tree; a plain tuple is several results."""
    return x if type(x) is tuple else (x,)


def _differentiable(arg: Any) -> bool:
    """A tree with at least one floating-point array leaf."""
    return any(_is_float(a) for a in leaves(arg))


def _is_float(a: Any) -> bool:
    return "float" in str(getattr(a, "dtype", ""))


def _aligned(arg: Tree, gradient: Tree, where: str) -> list[tuple[str, Array, Array | None]]:
    """(name, leaf, gradient) for every leaf of ``arg``; None where the gradient has none."""
    out = []

    def walk(a: Tree, g: Tree, label: str) -> None:
        if isinstance(a, tuple):
            if g is not None and (not isinstance(g, tuple) or len(g) != len(a)):
                found = f"{len(g)} entries" if isinstance(g, tuple) else type(g).__name__
                raise AdjointError(
                    f"{where}: the gradient of {label or 'an argument'} must be a tuple of "
                    f"{len(a)} entries, got {found}"
                )
            names = getattr(a, "_fields", range(len(a)))
            for k, name in enumerate(names):
                walk(a[k], None if g is None else g[k], f"{label}.{name}" if label else str(name))
        elif a is not None:
            out.append((label, a, g))

    walk(arg, gradient, "")
    return out


def _only(v: Array, args: tuple, i: int, j: int) -> tuple:
    """Tangents that move leaf j of argument i along v, and nothing else."""
    tangents = [None] * len(leaves(args[i]))
    tangents[j] = v
    return tuple(tangents if k == i else None for k in range(len(args)))


def _move(args: tuple, tangents: tuple, by: float) -> tuple:
    moved = []
    for arg, tangent in zip(args, tangents, strict=True):
        if tangent is None:
            moved.append(arg)
        else:
            pairs = zip(leaves(arg), tangent, strict=True)
            moved.append(rebuild(arg, [a if t is None else a + t * by for a, t in pairs]))
    return tuple(moved)


def _copy(a: Any) -> Any:
    return namespace(a).asarray(a, copy=True) if hasattr(a, "dtype") else a


def _generator(seed: int) -> Callable[[tuple], host.ndarray]:
    rng = host.random.default_rng(seed)
    return lambda shape: rng.standard_normal(tuple(shape))


def _random(draw: Callable, tree: Tree) -> Tree:
    """Standard normal numbers in the shapes, the dtype and the library of the leaves."""
    return tree_map(lambda a: like(draw(a.shape), a, a.dtype), tree)


def _wide(a: Array) -> host.ndarray:
    """A copy on the host, in float64."""
    return to_numpy(a).astype("float64")


def _inner(a: host.ndarray, b: host.ndarray) -> float:
    """<a, b>, with the sizes taken out first, so that only the result can overflow."""
    big, wide = _largest(a), _largest(b)
    with host.errstate(invalid="ignore"):  # infinity over infinity: the caller refuses NaN
        return float(host.sum((a / big) * (b / wide))) * big * wide


def _norm(a: host.ndarray) -> float:
    """|a|, with the size taken out first: squares neither overflow nor vanish."""
    big = _largest(a)
    with host.errstate(invalid="ignore"):
        return float(host.sqrt(host.sum((a / big) ** 2))) * big


def _largest(x: host.ndarray) -> float:
    """The size of the largest entry, 1 if there is none."""
    return float(host.max(host.abs(x), initial=0.0)) or 1.0


def _epsilon(x: Array) -> float:
    return float(namespace(x).finfo(x.dtype).eps)
