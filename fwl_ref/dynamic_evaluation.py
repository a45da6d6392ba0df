"""Dynamic evaluation, literally: score a segment, then take a gradient step on it.

    SGD   theta_i = theta_{i-1} - eta grad + lambda (theta_0 - theta_{i-1})
    RMS   theta_i = theta_{i-1} - eta grad / divisor + lambda RMSnorm (theta_0 - theta_{i-1})

with grad that of L(segment_i) at theta_{i-1} (Krause et al., arXiv 1709.07432, 1904.08378).
Loops, first-order gradients, parameters that really change. No fast weight code is imported: this
is the baseline that fast weights are compared with, and the oracle that they are checked against.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from .backend import Array, Tree, device, namespace, to_numpy
from .checks import check_block_data, check_evaluation, check_kind, check_segment
from .ops.common import chunk_slices
from .slow_block import FastParameters, SlowParameters, slow_block_bwd, slow_block_fwd
from .tree import add, leaves, size, tree_map

# a descent's subset: the block but U and c
FAST_ONLY = SlowParameters(*(name in FastParameters._fields for name in SlowParameters._fields))


class Descent(NamedTuple):
    """How parameters move after a segment. A rate of 0 and a decay of 0 is static evaluation."""

    rate: Tree  # eta: one float for all parameters, or a tree of step sizes
    decay: float = 0.0  # lambda, towards theta_0
    scale: RmsScale | None = None  # the RMS rule's frozen statistics; None = SGD
    subset: Tree | None = None  # tree of bool: which parameters move; None = all


class RmsScale(NamedTuple):
    """Frozen statistics of the RMS rule, one tree entry per parameter."""

    divisor: Tree  # sqrt(MS) + eps
    norm: Tree  # RMSnorm = sqrt(MS) / mean(sqrt(MS)), unclipped


def rms_scale(mean_square: Tree, eps: float = 0.1) -> RmsScale:
    """The RMS rule's statistics from MS, the mean of squared gradients.   (Y.3)

    ``eps`` is in units of mean(sqrt(MS)), so that it means the same for any model. Epsilon and
    lambda of the published program mean something else: (Y.5) converts them. Raises ValueError if
    no gradient was ever non-zero.
    """
    root = tree_map(lambda m: namespace(m).sqrt(m), mean_square)
    mean = sum(float(to_numpy(namespace(r).sum(r))) for r in leaves(root)) / size(root)
    if not mean > 0:
        raise ValueError(
            "the RMS rule needs squared gradients of some training batches, got all zeros: "
            "collect them first"
        )
    return RmsScale(tree_map(lambda r: r + eps * mean, root), tree_map(lambda r: r / mean, root))


def mean_square(gradients: Iterable[Tree]) -> Tree:
    """MS, the mean of squared gradients over training batches: collected, then frozen.   (Y.3)

    Raises ValueError if there is no batch.
    """
    total, count = None, 0
    for gradient in gradients:
        squared = tree_map(lambda g: g * g, gradient)
        total = squared if total is None else add(total, squared)
        count += 1
    if total is None:
        raise ValueError("mean_square needs the gradients of at least one training batch, got none")
    return tree_map(lambda t: t / count, total)


def update(theta: Tree, gradient: Tree, theta0: Tree, descent: Descent) -> Tree:
    """theta after one segment: the SGD rule (Y.1), or with ``descent.scale`` the RMS rule (Y.2)."""

    def sgd(p: Array, g: Array, p0: Array, rate: Any) -> Array:
        return p - rate * g + descent.decay * (p0 - p)

    def rms(p: Array, g: Array, p0: Array, rate: Any, divisor: Array, norm: Array) -> Array:
        xp = namespace(p, norm)
        pull = norm * descent.decay
        pull = xp.where(pull < 1, pull, xp.ones_like(pull))  # RMSnorm clipped to 1 / lambda
        return p - rate * g / divisor + pull * (p0 - p)

    rates, scale = descent.rate, descent.scale
    if not isinstance(rates, tuple):
        rates = tree_map(lambda _: descent.rate, theta)
    if scale is None:
        moved = tree_map(sgd, theta, gradient, theta0, rates)
    else:
        moved = tree_map(rms, theta, gradient, theta0, rates, scale.divisor, scale.norm)
    if descent.subset is None:
        return moved
    return tree_map(lambda m, p, free: m if free else p, moved, theta, descent.subset)


def dynamic_evaluation(
    theta0: Tree,
    segments: Iterable[Any],
    score: Callable,
    descent: Descent,
    theta: Tree | None = None,
) -> Iterator[tuple]:
    """Score each segment with the parameters of before it, then update on it.

    Parameters
    ----------
    score : ``score(theta, segment) -> result, gradient``
        The gradient is that of the segment's loss at theta.
    theta
        Where to start; None = theta0. Start each document at theta0 unless you mean to carry on.

    Yields
    ------
    result, theta
        What was scored, and the parameters after the update on it.
    """
    theta = theta0 if theta is None else theta
    for segment in segments:
        result, gradient = score(theta, segment)
        theta = update(theta, gradient, theta0, descent)
        yield result, theta


def evaluate_block(
    x: Array,
    labels: Array,
    weights: Array,
    slow: SlowParameters,
    eta: FastParameters,
    *,
    segment: int,
    decay: Array | float = 0.0,
    n: Array | float = 1.0,
    eps: float = 1e-6,
    norm: str = "layer",
    residual: bool = False,
    stale: bool = False,
) -> tuple[Array, FastParameters]:
    """Dynamic evaluation of the block alone, on given features.   (Y.4)

    Every sequence has parameters of its own.

    Parameters
    ----------
    x, labels, weights : (B,T,I), (B,T), (B,T)
    eta : six step sizes, arrays of shape ()
    segment : tokens per update, L
    decay : lambda, in [0, 1]: a number, or an array of shape ()
    n : the normalizer N: a number, or an array of shape (), or one per sequence (B,)
    eps, norm, residual : of the block, as ``slow_block_fwd`` takes them
    stale : take every gradient at theta_0 instead of at the current parameters. With ``segment`` 1
        this is what fast weights compute.

    Returns
    -------
    logits (B,T,V), each scored before the update on its segment, and the final fast parameters
    with a leading batch axis.

    Raises
    ------
    ValueError, TypeError
        If ``segment`` is below 1, labels are out of range, weights negative or not finite, step
        sizes not finite, the decay outside [0, 1], N not above 0, shapes do not fit, or arrays are
        mixed.
    """
    check_segment(segment)
    check_block_data(x, labels, weights, slow)
    check_evaluation(x, eta, decay, n, eps)
    check_kind(slow, norm, residual)
    xp = namespace(x, weights, *slow)
    rates = SlowParameters(*eta, 0.0, 0.0)
    descent = Descent(rates, decay, subset=FAST_ONLY)
    parts = chunk_slices(x.shape[1], segment)

    def score(theta: SlowParameters, part: tuple) -> tuple[Array, SlowParameters]:
        x, labels, share = part  # (L,I), (L,), (L,)
        (_, logits), res = slow_block_fwd(x, labels, theta, eps, norm, residual)  # (L,V)
        if stale:
            _, res = slow_block_fwd(x, labels, slow, eps, norm, residual)
        _, gradient = slow_block_bwd(share, res)
        return logits, gradient

    if x.shape[0] == 0:  # nothing to stack
        none = xp.zeros((0, x.shape[1], slow.U.shape[1]), dtype=x.dtype, device=device(x))
        return none, tree_map(lambda p: p[None, ...][:0, ...], FastParameters(*slow[: len(eta)]))
    all_logits, finals = [], []
    for b in range(x.shape[0]):
        normalizer = n if isinstance(n, int | float) or n.ndim == 0 else n[b]
        share = weights[b, ...] / normalizer  # (T,)
        segments = [(x[b, part, :], labels[b, part], share[part]) for part in parts]
        rows, theta = [], slow
        for logits, after in dynamic_evaluation(slow, segments, score, descent):
            rows.append(logits)
            theta = after  # the last one is the answer
        all_logits.append(xp.concat(rows, axis=0))  # (T,V)
        finals.append(theta[: len(FastParameters._fields)])
    final = FastParameters(*(xp.stack(list(column)) for column in zip(*finals, strict=True)))
    return xp.stack(all_logits), final
