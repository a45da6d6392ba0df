"""Dynamic evaluation of a whole model, or of its last layers, by true gradients.

A document is read in segments. Each is scored, and then the parameters make a step on its mean
loss: theta_0, theta_1, ... as ``fwl_ref.dynamic_evaluation`` has it. Keys and values of the window
so far stay as they were computed, and gradients stop at them; at every window the attention begins
anew, the parameters do not.

Nothing pulls back to the start. So a step is a multiple of the gradient, and it is made in the
gradient's own memory: with all parameters of a model one more copy of each is what hurts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

from ..backend import Array, Tree, host, like, namespace, to_numpy
from ..dynamic_evaluation import mean_square, rms_scale
from ..lm import llama
from ..lm.stack import stack_bwd, stack_fwd
from ..ops.blocked_head import blocked_head_dn, blocked_head_fwd
from ..ops.common import chunk_slices
from ..ops.cross_entropy import cross_entropy_bwd, cross_entropy_fwd
from ..ops.rmsnorm import rmsnorm_bwd, rmsnorm_fwd
from ..tree import tree_map
from .trunk import Model

# (theta, inputs (1,L) or (1,L,D), labels (1,L), caches) -> losses (1,L), gradient, caches
Score: TypeAlias = Callable[[Tree, Array, Array, tuple | None], tuple[Array, Tree, tuple]]


class Step(NamedTuple):
    """How parameters move after a segment: SGD, or RMS if there is a divisor."""

    rate: float  # eta
    divisor: Tree | None = None  # sqrt(MS) + eps of each parameter


class Top(NamedTuple):
    """Parameters of the last layers and of the final normalisation, and their gradients."""

    trunk: tuple  # of LlamaLayer
    gain: Array  # (D,)


def top_of(model: Model, layers: int) -> Top:
    """The last ``layers`` layers of a model. Raises ValueError if it has not so many."""
    if not 1 <= layers <= model.config.layers:
        raise ValueError(f"the model has {model.config.layers} layers, got {layers} to adapt")
    return Top(model.parameters.trunk[-layers:], model.parameters.gain)


def top_score(model: Model) -> Score:
    """The end of the model as a function of ``Top`` and of the features below it.   (T.3), (C.4)"""

    def score(p: Top, x: Array, labels: Array, caches: tuple | None) -> tuple[Array, Top, tuple]:
        (x, caches), res = stack_fwd(llama.layer_fwd, x, p.trunk, (model.config,), caches)
        n, norm = rmsnorm_fwd(x, p.gain, model.config.eps)  # (1,L,D)
        nll, head = blocked_head_fwd(n, model.U, None, labels, model.block, frozen=True)  # (1,L)
        # forward: nll = cross-entropy of n U, its mean
        dn = blocked_head_dn(_share(nll), head)  # (1,L,D)
        # forward: n = RMS(x)
        dx, dgain = rmsnorm_bwd(dn, norm)  # (1,L,D)
        # forward: x = stack(x)
        _, dtrunk = stack_bwd(llama.layer_bwd, dx, res)
        return nll, Top(dtrunk, dgain), caches

    return score


def whole_score(model: Model) -> Score:
    """The whole model as a function of all its parameters and of the tokens.   (M.8), (M.10)"""

    def score(p: Tree, tokens: Array, labels: Array, caches: tuple | None) -> tuple:
        (logits, caches), res = llama.model_fwd(p, tokens, model.config, caches)  # (1,L,V)
        nll, entropy = cross_entropy_fwd(logits, labels)  # (1,L)
        # forward: nll = cross-entropy of logits, its mean
        dlogits = cross_entropy_bwd(_share(nll), entropy)  # (1,L,V)
        return nll, llama.model_bwd(dlogits, res), caches

    return score


def adapted_losses(
    score: Score,
    theta: Tree,
    inputs: Array,
    labels: Array,
    step: Step,
    window: int,
    segment: int,
) -> Array:
    """(T,...),(T)->(T)   losses on the host, each segment scored before the step on it   (Y.4)

    After a loss that is not finite all others are infinite. Raises ValueError unless a window holds
    whole segments.
    """
    check_segments(window, segment)
    losses: list[Array] = []
    for rows in chunk_slices(labels.shape[0], window):
        caches = None
        for part in chunk_slices(rows.stop - rows.start, segment):
            here = slice(rows.start + part.start, rows.start + part.stop)
            given, words = inputs[here, ...][None, ...], labels[here][None, ...]
            nll, gradient, caches = score(theta, given, words, caches)
            losses.append(to_numpy(nll[0, ...]))
            if not host.all(host.isfinite(losses[-1])):
                rest = labels.shape[0] - here.start
                return host.concatenate([*losses[:-1], host.full(rest, math.inf)])
            if here.stop < labels.shape[0]:
                theta = moved(theta, gradient, step)
    return host.concatenate(losses)


def moved(theta: Tree, gradient: Tree, step: Step) -> Tree:
    """theta after one segment, in the memory of ``gradient``.   (Y.1), (Y.2)"""

    def sgd(p: Array, g: Array) -> Array:
        g *= -step.rate
        g += p
        return g

    def rms(p: Array, g: Array, divisor: Array) -> Array:
        g /= divisor
        return sgd(p, g)

    if step.divisor is None:
        return tree_map(sgd, theta, gradient)
    return tree_map(rms, theta, gradient, step.divisor)


def statistics(
    score: Score, theta: Tree, pieces: Sequence[tuple[Array, Array]], segment: int
) -> Tree:
    """The divisor of the RMS rule from gradients of training text: of the first segment of each
    piece, and so of texts as long as those on which it will step.   (Y.3)
    """
    gradients = (
        score(theta, inputs[:segment, ...][None, ...], labels[:segment][None, ...], None)[1]
        for inputs, labels in pieces
    )
    return rms_scale(mean_square(gradients)).divisor


def check_segments(window: int, segment: int) -> None:
    """Raise ValueError unless a window holds whole segments."""
    if segment < 1 or window % segment:
        raise ValueError(f"a window of {window} tokens must hold whole segments, got {segment}")


def whole_inputs(ids: Array, target: Array) -> Array:
    """(n)->(n-1)   the tokens that are read, where ``target`` is"""
    return like(ids[:-1], target)


def _share(nll: Array) -> Array:
    """(1,L)->(1,L)   the weight of each token in the mean"""
    xp = namespace(nll)
    return xp.ones_like(nll) / nll.shape[-1]
