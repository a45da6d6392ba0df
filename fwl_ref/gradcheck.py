"""check_adjoint: proves that a backward pass is the adjoint of its forward pass, and its adjoint of
it.

For a random tangent v of one input and a random cotangent u of the output, the adjoint satisfies
<u, J v> = <J^T u, v>. The left side is a sixth-order central difference of the forward pass, so the
check knows nothing about how the backward pass was derived. The difference is measured against |J
v|, the standard deviation of <u, J v> over random u: an accidental near-zero can neither fail nor
pass a check. Every leaf of every input is checked on its own, so a small gradient cannot hide
behind a large one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from .backend import Array, Tree, host, like, namespace, to_numpy
from .tree import leaves, named_leaves, rebuild, tree_map

__all__ = ["check_adjoint", "AdjointError", "AdjointReport", "directional_difference"]

# sixth-order central difference: f'(x) = sum_i c_i (f(x + i h) - f(x - i h)) / h + O(h^6)
_STENCIL = ((1, 3 / 4), (2, -3 / 20), (3, 1 / 60))
_FINER = 4  # where the function bends too much for a step, a finer one has 4^6 times less error; a wrong adjoint stays as wrong


class AdjointError(AssertionError):
    """A backward pass is not the adjoint of its forward pass."""


class AdjointReport(NamedTuple):
    """The largest relative error of a passed check, and where it was."""

    error: float
    where: str
    checked: int


def directional_difference(
    f: Callable[..., Tree], args: tuple, tangents: tuple, step: float
) -> Tree:
    """d/de f(args + e tangents) at e = 0 by a sixth-order central difference."""
    total = None
    for i, c in _STENCIL:
        for sign in (1, -1):
            moved = _move(args, tangents, sign * i * step)
            term = tree_map(lambda y, w=sign * c / step: y * w, f(*moved))
            total = term if total is None else tree_map(lambda a, b: a + b, total, term)
    return total


def check_adjoint(
    fwd: Callable[..., tuple[Tree, Any]],
    bwd: Callable[..., Tree],
    args: tuple,
    bwd_bwd: Callable[..., Tree] | None = None,
    *,
    seed: int = 0,
    step: float = 1e-3,
    rtol: float = 1e-8,
) -> AdjointReport:
    """Check ``bwd`` as the adjoint of ``fwd`` and, if given, ``bwd_bwd`` as the adjoint of ``bwd``.

    Parameters
    ---------- fwd : ``fwd(*args) -> output, residual``; args and output may be trees. Integer
    arrays and non-arrays are constants. bwd : ``bwd(d_output, residual) -> d_args``, one entry per
    differentiable argument in order; None means zero. bwd_bwd : ``bwd_bwd(*g_d_args, d_output,
    residual) -> g_d_output, *g_args``. step : of the finite difference; the error is O(step^6) plus
    rounding / step. A leaf that fails is tried once more at a quarter of it. rtol : largest allowed
    |<u, J v> - <J^T u, v>| / |J v|, above the rounding of the difference itself.

    Raises
    ------
    AdjointError
        Naming the function, the argument and both numbers.
    """
    report = _check(fwd, bwd, args, _name(bwd), seed, step, rtol)
    if bwd_bwd is None:
        return report

    output, _ = fwd(*args)
    draw = _generator(seed + 1)
    cotangent = tree_map(lambda y: like(draw(y.shape), y, y.dtype), output)

    def backward(d_output, *inputs):
        _, residual = fwd(*inputs)
        return _as_tuple(bwd(d_output, residual)), (d_output, residual)

    def backward_adjoint(g_d_args, residual):
        return bwd_bwd(*g_d_args, *residual)

    second = _check(
        backward, backward_adjoint, (cotangent, *args), _name(bwd_bwd), seed + 2, step, rtol
    )
    return max(report, second)._replace(checked=report.checked + second.checked)


def _check(fwd, bwd, args, name, seed, step, rtol) -> AdjointReport:
    draw = _generator(seed)
    output, residual = fwd(*args)
    u = tree_map(lambda y: like(draw(y.shape), y, y.dtype), output)
    gradients = _as_tuple(bwd(u, residual))
    variables = [i for i, a in enumerate(args) if _differentiable(a)]
    if len(gradients) != len(variables):
        raise AdjointError(
            f"{name} returned {len(gradients)} gradients for {len(variables)} differentiable arguments"
        )
    eps = _machine_epsilon(leaves(output)[0])
    worst, checked = AdjointReport(0.0, "", 0), 0
    for i, gradient in zip(variables, gradients, strict=True):
        names = [n for n, _ in named_leaves(args[i])]
        grads = _aligned(gradient, args[i])
        for j, (label, leaf, grad) in enumerate(zip(names, leaves(args[i]), grads, strict=True)):
            where = f"{name}, argument {i}" + (f" ({label})" if label else "")
            if grad is not None and tuple(grad.shape) != tuple(leaf.shape):
                raise AdjointError(
                    f"{where}: gradient of shape {tuple(grad.shape)} for an input of shape {tuple(leaf.shape)}"
                )
            v = like(draw(leaf.shape), leaf, leaf.dtype)
            tangents = [None] * len(names)
            tangents[j] = v
            checked += 1
            for h in (step, step / _FINER):
                jv = directional_difference(
                    lambda *a: fwd(*a)[0], args, _tangents(args, i, tangents), h
                )
                lhs, rhs = _inner(u, jv), 0.0 if grad is None else _inner(grad, v)
                scale = _norm(jv)
                rounding = 30 * eps * _norm(output) / h
                error = abs(lhs - rhs)
                if error <= rtol * scale + rounding:
                    break
            else:
                raise AdjointError(
                    f"{where}: <u, J v> = {lhs:.12g} by differences, <J^T u, v> = {rhs:.12g} by the backward pass; "
                    f"they differ by {error / max(scale, 1e-300):.3g} |J v|, allowed {rtol:.1g}"
                )
            worst = max(worst, AdjointReport(error / max(scale, rounding, 1e-300), where, 0))
    return worst._replace(checked=checked)


def _name(f: Callable) -> str:
    return getattr(f, "__name__", None) or repr(f)


def _as_tuple(x: Any) -> tuple:
    """A bare array is one result; a NamedTuple is one tree; a plain tuple is several results."""
    return x if type(x) is tuple else (x,)


def _differentiable(arg: Any) -> bool:
    """A tree with at least one floating-point array leaf."""
    return isinstance(arg, tuple) and any(_is_float(a) for a in leaves(arg)) or _is_float(arg)


def _is_float(a: Any) -> bool:
    return hasattr(a, "dtype") and "float" in str(a.dtype)


def _aligned(gradient: Tree, arg: Tree) -> list:
    """Leaves of the gradient in the order of the argument's leaves, None where the gradient has
    none.
    """
    out = []

    def walk(a, g):
        if isinstance(a, tuple):
            for i, child in enumerate(a):
                walk(child, None if g is None else g[i])
        elif a is not None:
            out.append(g)

    walk(arg, gradient)
    return out


def _tangents(args: tuple, i: int, tangents: list) -> tuple:
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


def _generator(seed: int) -> Callable[[tuple], host.ndarray]:
    rng = host.random.default_rng(seed)
    return lambda shape: rng.standard_normal(tuple(shape))


def _inner(a: Tree, b: Tree) -> float:
    return float(
        sum(
            float(to_numpy(namespace(x, y).sum(x * y)))
            for x, y in zip(leaves(a), leaves(b), strict=True)
        )
    )


def _norm(a: Tree) -> float:
    return float(
        host.sqrt(sum(float(host.sum(to_numpy(x).astype("float64") ** 2)) for x in leaves(a)))
    )


def _machine_epsilon(x: Array) -> float:
    return float(namespace(x).finfo(x.dtype).eps)
