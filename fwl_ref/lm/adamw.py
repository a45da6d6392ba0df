"""AdamW (Loshchilov and Hutter, arXiv 1711.05101), warm-up and cosine schedule, clipping by global
norm, over parameter trees.

Nothing here looks at a value on a device: norms stay there, and clipping is a factor. Whoever wants
to print them decides when to fetch them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from ..backend import Array, Tree, is_host, namespace
from ..tree import leaves, rebuild, tree_map, zeros_like


class AdamState(NamedTuple):
    mean: Tree  # running mean of gradients
    square: Tree  # running mean of squared gradients
    step: int


class NonFiniteError(FloatingPointError):
    """Training met a loss or gradient that is not a number."""


def adam_init(params: Tree) -> AdamState:
    """Zero moments."""
    return AdamState(zeros_like(params), zeros_like(params), 0)


def adam_step(
    params: Tree,
    grads: Tree,
    state: AdamState,
    rates: Tree,
    decays: Tree,
    betas: tuple[float, float] = (0.9, 0.99),
    eps: float = 1e-8,
) -> tuple[Tree, AdamState]:
    """One AdamW step. ``rates``, ``decays`` are trees of floats: learning rate and weight decay of
    each leaf.
    """
    step = state.step + 1
    b1, b2 = betas
    fix1, fix2 = 1 - b1**step, 1 - b2**step
    new = []
    columns = (params, grads, state.mean, state.square, rates, decays)
    for p, g, m, s, rate, decay in zip(*(leaves(c) for c in columns), strict=True):
        xp = namespace(p, g)
        m = b1 * m + (1 - b1) * g
        s = b2 * s + (1 - b2) * (g * g)
        update = (m / fix1) / (xp.sqrt(s / fix2) + eps)
        new.append((p - rate * (update + decay * p), m, s))
    params, mean, square = (rebuild(params, list(column)) for column in zip(*new, strict=True))
    return params, AdamState(mean, square, step)


def squares(grads: Tree) -> Array:
    """(L,)   sum of squares of each leaf, in the order of ``leaves``; not finite where the gradient
    is not.
    """
    sums = [namespace(g).sum(g * g) for g in leaves(grads)]
    return namespace(*sums).stack(sums)


def global_norm(squares: Array) -> Array:
    """(L,)->()   Euclidean norm of all leaves together, from the squares of each."""
    xp = namespace(squares)
    return xp.sqrt(xp.sum(squares))


def clip(grads: Tree, limit: float, norm: Array | float) -> Tree:
    """Scale the gradients to norm ``limit`` if ``norm``, their own, is above it. On a device a
    factor decides, 1 or less.
    """
    if isinstance(norm, float) or is_host(norm):
        return grads if norm <= limit else tree_map(lambda g: g * (limit / norm), grads)
    xp = namespace(norm)
    factor = limit / xp.where(norm > limit, norm, limit)  # ()
    return tree_map(lambda g: g * factor, grads)


def cosine(step: int, steps: int, warmup: int, floor: float = 0.05) -> float:
    """Factor on the learning rate at ``step``: linear warm-up, then a half cosine down to
    ``floor``.
    """
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def check_finite(
    step: int,
    loss: float,
    norm: float,
    squares: list[float],
    finite: list[float],
    names: list[str],
) -> None:
    """Raise NonFiniteError, naming the step, unless loss, norm and updated parameters are finite.

    It names the first leaf whose sum of squared gradients is not finite, or that is itself not
    ``finite`` (1 or 0 a leaf) after the update.
    """
    if not (math.isfinite(loss) and math.isfinite(norm)):
        for name, square in zip(names, squares, strict=True):
            if not math.isfinite(square):
                raise NonFiniteError(
                    f"step {step}: the gradient of {name} is not finite, or too large to square "
                    f"(loss {loss}); parameters from before this step are in what was passed in or "
                    "saved last. Lower the learning rate or the step sizes, or look for a window "
                    "of constant features if LayerNorm has no epsilon"
                )
        raise NonFiniteError(
            f"step {step}: the loss is {loss}, the gradients' norm {norm}, though each is finite; "
            "lower the learning rate"
        )
    for name, whole in zip(names, finite, strict=True):
        if not whole:
            raise NonFiniteError(
                f"step {step}: {name} is not finite after the update, so this model is not saved; "
                "lower the learning rate"
            )
