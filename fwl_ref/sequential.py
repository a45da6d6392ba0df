"""The fast weight block with true gradients between segments: test-time training end to end.

    segment i reads with    p_i = p - eta_p A_i
    and leaves              A_{i+1} = (1 - lambda) A_i + sum_{s in i} dl_s/dp (p_i) / N

The block (``fwl.py``) takes every gradient at the slow weights. Here those of a segment are taken
at the weights that the segments before it have left, as in dynamic evaluation; and training goes
through all of it, gradients of gradients along the whole chain. Nothing new is derived for one
segment: it is the block whose slow weights are p_i. So the forward pass is ``fast_block_fwd`` on
one segment after the other, the backward pass ``fast_block_bwd`` in reverse, and what is here is
the line between them.

What a token reads of its own segment has to be chosen. ``within`` False: nothing, every token is
scored with p_i. That is dynamic evaluation of the block, trained through (Tandon et al. 2025,
arXiv 2512.23675, do it to some layers of a transformer). ``within`` True: what its earlier tokens
wrote, stale within the segment. One segment then is the block itself.

The state is A, accumulated gradients, as it is the block's. A call begins a segment. Each sequence
has weights of its own, so sequences are taken one after the other.
"""

from __future__ import annotations

from typing import NamedTuple

from .backend import Array, device, namespace
from .checks import check_decay, check_fast_block, check_segment
from .fwl import FastBlockResidual, FastSettings, fast_block_bwd, fast_block_fwd, normalizer
from .ops.common import chunk_slices
from .slow_block import FastParameters, SlowParameters
from .tree import add, tree_map, zeros_like


class SegmentResidual(NamedTuple):
    """One segment of one sequence."""

    block: FastBlockResidual
    held: FastParameters  # A before it, (1,...)


class SequentialResidual(NamedTuple):
    sequences: tuple[tuple[SegmentResidual, ...], ...]
    x: Array  # (B,T,I)
    slow: SlowParameters
    eta: FastParameters
    decay: Array  # ()
    segment: int
    within: bool
    carried: bool  # whether a state came in


def sequential_fwd(
    x: Array,
    labels: Array,
    weights: Array,
    slow: SlowParameters,
    eta: FastParameters,
    decay: Array,
    settings: FastSettings,
    state: FastParameters | None = None,
    *,
    segment: int,
    within: bool,
) -> tuple[tuple[Array, FastParameters], SequentialResidual]:
    """(B,T,I),(B,T),(B,T)->(B,T,V),FastParameters   segment after segment   (F.16)

    Parameters
    ----------
    x, labels, weights, slow, eta, settings
        As for ``fast_block_fwd``; ``settings`` without an optimizer. N counts all tokens of the
        call, whatever the segment.
    decay
        lambda, once per segment; within a segment nothing fades.
    state
        What an earlier call returned as state_out; None = nothing yet. It needs the constant
        normalizer.
    segment
        Tokens whose gradients are taken at the same weights, L.
    within
        Whether a token reads what earlier tokens of its own segment wrote.

    Returns
    -------
    (logits, state_out), residual

    Raises
    ------
    ValueError, TypeError
        As ``fast_block_fwd``; for a segment below 1, and for an optimizer.
    """
    check_segment(segment)
    if settings.optimizer is not None:
        raise ValueError(
            f"between segments there is SGD with decay only, got {settings.optimizer.name}: "
            "its mask is of stale gradients; use fast_block_fwd, or optimizer=None"
        )
    check_decay(decay, settings, shared=True)
    check_fast_block(x, labels, weights, slow, eta, decay, settings, state)
    xp, batch = namespace(x, weights, *slow), x.shape[0]
    share = weights / normalizer(weights, settings)  # (B,T)
    inner = settings._replace(normalizer="constant", constant=1.0)
    held = _start(x, slow) if state is None else state
    outs, finals, residuals = [], [], []
    for b in range(batch):
        own = slice(b, b + 1)
        data = x[own, ...], labels[own, ...], share[own, ...]  # (1,T,...)
        first = tree_map(lambda a: a[own, ...], held)  # noqa: B023
        logits, final, parts = _sequence_fwd(data, slow, eta, decay, inner, first, segment, within)
        outs.append(logits)  # (1,T,V)
        finals.append(final)
        residuals.append(parts)
    fixed = x, slow, eta, decay, segment, within, state is not None
    res = SequentialResidual(tuple(residuals), *fixed)
    if not batch:
        none = xp.zeros((0, x.shape[1], slow.U.shape[1]), dtype=x.dtype, device=device(x))
        return (none, held), res
    final = tree_map(lambda *parts: xp.concat(list(parts), axis=0), *finals)
    return (xp.concat(outs, axis=0), final), res


def sequential_bwd(
    g_logits: Array, g_state: FastParameters | None, res: SequentialResidual
) -> tuple[Array, SlowParameters, FastParameters, Array, FastParameters | None]:
    """Adjoint of sequential_fwd: back through the chain of weights.   (F.17)

    Returns g_x, g_slow, g_eta, g_decay, g_state_in. With ``settings.first_order`` the values in the
    memory of every segment count as constants, as they do in the block.
    """
    xp = namespace(g_logits, res.x)
    g_slow, g_eta, g_decay = zeros_like(res.slow), zeros_like(res.eta), xp.zeros_like(res.decay)
    g_state = _start(res.x, res.slow) if g_state is None else g_state
    g_xs, g_firsts = [], []
    for b, parts in enumerate(res.sequences):
        own = slice(b, b + 1)
        last = tree_map(lambda a: a[own, ...], g_state)  # noqa: B023
        g_x, g_slow_b, g_eta_b, g_decay_b, g_first = _sequence_bwd(
            g_logits[own, ...], last, parts, res
        )
        g_slow, g_eta, g_decay = add(g_slow, g_slow_b), add(g_eta, g_eta_b), g_decay + g_decay_b
        g_xs.append(g_x)
        g_firsts.append(g_first)
    if not g_xs:
        return xp.zeros_like(res.x), g_slow, g_eta, g_decay, g_state if res.carried else None
    g_state_in = tree_map(lambda *parts: xp.concat(list(parts), axis=0), *g_firsts)
    g_x = xp.concat(g_xs, axis=0)  # (B,T,I)
    return g_x, g_slow, g_eta, g_decay, g_state_in if res.carried else None


def _sequence_fwd(
    data: tuple, slow: SlowParameters, eta: FastParameters, decay: Array, inner: FastSettings,
    held: FastParameters, segment: int, within: bool,
) -> tuple[Array, FastParameters, tuple[SegmentResidual, ...]]:  # fmt: skip
    """One sequence, its segments one after the other."""
    xp, outs, residuals = namespace(data[0]), [], []
    own, none = eta if within else zeros_like(eta), xp.zeros_like(decay)
    for part in chunk_slices(data[0].shape[1], segment):
        # p_i = p - eta A_i
        moved = _moved(slow, eta, held)
        x, labels, share = (a[:, part, ...] for a in data)  # (1,L,...)
        (logits, _, sums), res = fast_block_fwd(x, labels, share, moved, own, none, inner)
        outs.append(logits)  # (1,L,V)
        residuals.append(SegmentResidual(res, held))
        # A' = (1 - lambda) A + S, S the sum of the segment's gradients
        if part.stop > part.start:  # no token, no segment
            held = tree_map(lambda a, s: (1 - decay) * a + s, held, sums)
    return xp.concat(outs, axis=1), held, tuple(residuals)


def _sequence_bwd(
    g_logits: Array, g_held: FastParameters, parts: tuple[SegmentResidual, ...],
    res: SequentialResidual,
) -> tuple:  # fmt: skip
    """Adjoint of _sequence_fwd: g_x, g_slow, g_eta, g_decay, g_held."""
    xp, eta, decay = namespace(g_logits), res.eta, res.decay
    g_slow, g_eta, g_decay = zeros_like(res.slow), zeros_like(eta), xp.zeros_like(decay)
    g_xs = []
    slices = chunk_slices(g_logits.shape[1], res.segment)
    for part, (block, held) in reversed(list(zip(slices, parts, strict=True))):
        # forward: logits, S = block(x, p_i)
        g_x, g_moved, g_own, _, _ = fast_block_bwd(g_logits[:, part, :], g_held, block)
        g_xs.append(g_x)  # (1,L,I)
        g_eta = add(g_eta, g_own) if res.within else g_eta
        # forward: A' = (1 - lambda) A + S
        if part.stop > part.start:
            for g, a in zip(g_held, held, strict=True):
                g_decay = g_decay - xp.sum(g * a)  # ()
            g_held = tree_map(lambda g: (1 - decay) * g, g_held)
        # forward: p_i = p - eta A
        g_slow, g_fast = add(g_slow, g_moved), FastParameters(*g_moved[: len(held)])
        g_eta = tree_map(lambda g_e, g, a: g_e - xp.sum(g * a[0, ...]), g_eta, g_fast, held)  # ()
        g_held = tree_map(lambda g_a, e, g: g_a - e * g[None, ...], g_held, eta, g_fast)
    return xp.concat(g_xs[::-1], axis=1), g_slow, g_eta, g_decay, g_held


def _moved(slow: SlowParameters, eta: FastParameters, held: FastParameters) -> SlowParameters:
    """p - eta A, A of one sequence (1,...); U and c stay"""
    fast = [p - e * a[0, ...] for p, e, a in zip(slow[: len(held)], eta, held, strict=True)]
    return slow._replace(**dict(zip(held._fields, fast, strict=True)))


def _start(x: Array, slow: SlowParameters) -> FastParameters:
    """Nothing accumulated, for every sequence (B,...)"""
    xp, names = namespace(x, *slow), FastParameters._fields
    shapes = ((x.shape[0], *getattr(slow, name).shape) for name in names)
    return FastParameters(*(xp.zeros(s, dtype=x.dtype, device=device(x)) for s in shapes))
