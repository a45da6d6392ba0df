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

from .adjoint import words
from .adjoint.leaves import as_tuple, copied, differentiable, is_float, only, random, spread
from .adjoint.numbers import RESOLUTION, Sides, epsilon, inner, norm, wide
from .backend import Array, Tree, host, namespace
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
        is tried again at a quarter of it and, in float64, at 16 times it. None: 1e-3 in float64,
        0.1 in less.
    rtol : largest allowed |<u, J v> - <J^T u, v>| / |J v|, above the rounding of the difference
        itself; at least 0 and below 1.

    Raises
    ------
    AdjointError
        Naming the function, the argument and both numbers; or, if rounding may be more than a
        thousandth of |J v|, its size, where it comes from and what to change.
    ValueError
        If ``step`` is not a finite number above 0, or ``rtol`` not between 0 and 1.
    """
    if step is not None and not (step > 0 and math.isfinite(step)):
        raise ValueError(f"the step must be finite and > 0, got {step}")
    if not 0 <= rtol < 1:
        raise ValueError(
            f"rtol must be >= 0 and < 1, got {rtol}: a gradient of zeros is off by about |J v|, "
            "so that 1 or more might pass it; 1e-8 is usual, rounding is allowed for beside it"
        )
    report = _check(fwd, bwd, args, _name(bwd), seed, step, rtol)
    if bwd_bwd is None:
        return report

    output, _ = fwd(*args)
    cotangent = random(host.random.default_rng(seed + 1), output)

    def backward(d_output, *inputs):
        _, residual = fwd(*inputs)
        return as_tuple(bwd(d_output, residual)), (d_output, residual)

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


def _move(args: tuple, tangents: tuple, by: float) -> tuple:
    moved = []
    for arg, tangent in zip(args, tangents, strict=True):
        if tangent is None:
            moved.append(arg)
        else:
            pairs = zip(leaves(arg), tangent, strict=True)
            moved.append(rebuild(arg, [a if t is None else a + t * by for a, t in pairs]))
    return tuple(moved)


# The machinery: one leaf at a time
# -----------------------------------------------------------------------------

_FINER = 4  # a step 4 times finer bends 4^6 times less; a wrong adjoint stays as wrong
_COARSER = 16  # where rounding hides a small derivative in float64, a coarser step has less of it
_ULPS = 30  # rounding of a difference: 30 machine epsilons of the output, over the step


def _check(fwd, bwd, args, name, seed, step, rtol) -> AdjointReport:
    """Both sides of the law for every leaf of ``args``."""
    rng = host.random.default_rng(seed)
    output, residual = fwd(*tree_map(copied, args))  # copies: bwd cannot change what is measured
    _refuse(name, words.no_adjoint(args, output))
    eps = max(epsilon(a) for a in leaves((args, output)) if is_float(a))
    double = eps < 1e-12
    step = step or (1e-3 if double else 0.1)
    tried = (step, step / _FINER, *([step * _COARSER] if double else []))
    u = random(rng, output)
    held, sizes = [wide(a) for a in leaves(u)], [norm(wide(y)) for y in leaves(output)]
    gradients = as_tuple(bwd(u, residual))
    variables = [i for i, a in enumerate(args) if differentiable(a)]
    if len(gradients) != len(variables):
        raise AdjointError(
            f"{name} returned {len(gradients)} gradients "
            f"for {len(variables)} differentiable arguments"
        )

    found = []
    for i, gradient in zip(variables, gradients, strict=True):
        _refuse(name, words.another_structure(args[i], gradient))
        pairs = zip(named_leaves(args[i]), spread(args[i], gradient), strict=True)
        for j, ((label, leaf), grad) in enumerate(pairs):
            if not is_float(leaf):
                continue
            where = f"{name}, argument {i}" + (f" ({label})" if label else "")
            _refuse(where, words.another_array(grad, leaf))
            v = random(rng, leaf)
            rhs = 0.0 if grad is None else inner(wide(grad), wide(v))
            problems = []
            for h in tried:
                jv = directional_difference(lambda *a: fwd(*a)[0], args, only(v, args, i, j), h)
                jv = [wide(a) for a in leaves(jv)]
                lhs = sum(inner(a, b) for a, b in zip(held, jv, strict=True))
                moved, noise = map(norm, jv), (_ULPS * eps * size / h for size in sizes)
                sides = Sides(where, h, lhs, rhs, tuple(moved), tuple(noise), _slip(leaf, v, h))
                problems.append(_problem(sides, rtol, leaf, sizes))
                if not problems[-1]:
                    break
            else:
                hidden = [said for said in problems[:2] if "rounding hides" in said]
                raise AdjointError(f"{where}: {(hidden or problems[1:])[0]}")
            found.append(sides)
    _refuse_outputs_that_cannot_move(found, output, sizes)
    return max(AdjointReport(s.error / (s.scale or 1.0), s.where, len(found)) for s in found)


def _problem(sides: Sides, rtol: float, leaf: Array, sizes: list[float]) -> str:
    """Why the two sides disagree, or why agreement would prove nothing; empty if they agree."""
    if not all(map(math.isfinite, (sides.lhs, sides.rhs, sides.scale))):
        return words.not_finite(sides)
    if not sides.slip <= RESOLUTION:
        return words.lost_in_the_input(sides, leaf)
    if not sides.error <= rtol * sides.scale + sides.rounding:
        return words.disagreement(sides, rtol)
    both_zero = sides.scale == 0 and sides.rhs == 0
    if not both_zero and not sides.rounding <= RESOLUTION * sides.scale:
        return words.drowned(sides, leaf, sizes)
    return ""


def _refuse_outputs_that_cannot_move(found: list, output: Tree, sizes: list[float]) -> None:
    """An output that does not move is 0 = 0, if a thousandth of the largest |J v| would show."""
    most = max(sides.scale for sides in found)
    for k, (label, y) in enumerate(named_leaves(output)):
        for sides in found:
            if sides.moved[k] == 0 and not sides.noise[k] <= RESOLUTION * most:
                unseen = words.unseen(sides, label, k, sizes[k], most, y)
                raise AdjointError(f"{sides.where}: {unseen}")


def _refuse(where: str, reason: str) -> None:
    """Raises, if there is a reason."""
    if reason:
        raise AdjointError(f"{where}: {reason}")


def _slip(x: Array, v: Array, step: float) -> float:
    """The largest error of an entry of v, as the difference sees it.

    The stencil moves x by h v, but x + h v is rounded: at x = 10^8, float64 has steps of 1e-8.
    """
    total = 0.0
    for i, c in _STENCIL:
        apart = wide(x + v * (i * step)) - wide(x - v * (i * step))
        total = total + abs(c) / step * host.abs(apart - 2 * i * step * wide(v))
    return float(host.max(total, initial=0.0))


def _name(f: Callable) -> str:
    return getattr(f, "__name__", None) or repr(f)
