"""True gradients of the fast matrix, trained through: ``refreshed.py`` and its adjoint.

    W_i = W - eta_W S_W,   b_i = b - eta_b S_b      S what the segments before i have written
    memory, l = write(segment i) at W_i, b_i        l are the losses by which it is scored
    S <- what a fast layer leaves after k, dz P     P whitens what is written

Nothing is derived here but the line between segments. The write and its adjoint, gradients of
gradients included, are those of ``fast_matrix.py``, the sum with its decay is the state of
``fast_layer.py``, whose read has step sizes of 0. As in ``sequential.py`` each sequence has
matrices of its own, so sequences are taken one after the other. The head is a constant, or it is
trained as well: then it has gradients of the losses and of what was written by it.
"""

from __future__ import annotations

from typing import NamedTuple

from ..backend import Array, device, namespace
from ..checks import check_fast_matrix, check_segment
from ..fast_layer import FastLayerResidual, Past, fast_layer_bwd, fast_layer_fwd
from ..fast_matrix import (
    FastMatrix,
    MatrixMemory,
    MatrixParameters,
    MatrixSettings,
    MatrixWriteResidual,
    write_bwd,
    write_fwd,
)
from ..norm import norm_bwd
from ..ops.blocked_head import blocked_head_bwd
from ..ops.common import chunk_slices
from ..tree import add, zeros_like
from .layer import Learned, etas_of, settings_of, slow_of
from .trunk import Model


class SegmentResidual(NamedTuple):
    """One segment of one sequence."""

    write: MatrixWriteResidual
    layer: FastLayerResidual
    held: FastMatrix  # S before it, (1,K,D), (1,D)


class ThroughResidual(NamedTuple):
    sequences: tuple[tuple[SegmentResidual, ...], ...]
    slow: MatrixParameters  # without a head that is frozen
    eta: FastMatrix
    decay: Array  # ()
    segment: int
    values: Array | None  # (D,D) P


def through_fwd(
    x: Array,
    labels: Array,
    weights: Array,
    slow: MatrixParameters,
    eta: FastMatrix,
    decay: Array,
    settings: MatrixSettings,
    segment: int,
    values: Array | None = None,
) -> tuple[Array, ThroughResidual]:
    """(B,T,D),(B,T),(B,T)->(B,T)   losses, each segment at what those before it left   (X.15)

    Raises ValueError as ``fast_matrix_fwd``, for a segment below 1, and for settings with another
    normalizer than the constant one, or first order.
    """
    check_segment(segment)
    check_fast_matrix(x, labels, weights, slow, eta, decay, settings, None)
    if settings.normalizer != "constant" or settings.first_order:
        raise ValueError(
            "true gradients are trained through with the constant normalizer and to second order, "
            f"got {settings}"
        )
    xp = namespace(x, weights, slow.W)
    found, sequences = [], []
    for b in range(x.shape[0]):
        data = tuple(a[b : b + 1, ...] for a in (x, labels, weights))  # (1,T,...)
        held, losses, parts = _nothing(slow), [], []
        for part in chunk_slices(x.shape[1], segment):
            # W_i = W - eta_W S_W,  b_i = b - eta_b S_b
            W, bias = slow.W - eta.W * held.W[0, :, :], slow.b - eta.b * held.b[0, :]
            at = slow._replace(W=W, b=bias)
            given, words, w = (a[:, part, ...] for a in data)  # (1,L,D), (1,L), (1,L)
            (memory, nll), write = write_fwd(given, words, w, at, settings)
            losses.append(nll)  # (1,L)
            # S' = what is left after k, dz P
            v = memory.dz if values is None else xp.matmul(memory.dz, values)  # (1,L,D)
            still = xp.zeros_like(decay)  # ()
            past = Past(1 - decay, settings.chunk)
            (_, left), layer = fast_layer_fwd(memory.k, memory.k, v, still, still, past, held)
            parts.append(SegmentResidual(write, layer, held))
            held = FastMatrix(*(left or held))
        found.append(xp.concat(losses, axis=1))  # (1,T)
        sequences.append(tuple(parts))
    learned = slow._replace(U=None, c=None) if settings.frozen else slow
    res = ThroughResidual(tuple(sequences), learned, eta, decay, segment, values)
    return xp.concat(found, axis=0), res


def through_bwd(
    g_nll: Array, res: ThroughResidual
) -> tuple[Array, MatrixParameters, FastMatrix, Array]:
    """Adjoint of through_fwd: g_x, g_slow (None for a frozen head), g_eta, g_decay.   (X.16)"""
    xp = namespace(g_nll)
    g_slow = zeros_like(res.slow)
    g_eta, g_decay = zeros_like(res.eta), xp.zeros_like(res.decay)
    g_xs = []
    for b, parts in enumerate(res.sequences):
        g_held, g_parts = _nothing(res.slow), []
        slices = chunk_slices(g_nll.shape[1], res.segment)
        for part, (write, layer, held) in reversed(list(zip(slices, parts, strict=True))):
            # forward: S' = what is left after k, v
            g_out = xp.zeros_like(write.dn)  # (1,L,D)
            back = fast_layer_bwd(g_out, g_held, layer)
            # forward: v = dz P
            g_dz = back.value  # (1,L,D)
            if res.values is not None:
                g_dz = xp.matmul(g_dz, xp.matrix_transpose(res.values))
            # forward: nll = cross-entropy of norm(z) U
            g_n, *g_head = blocked_head_bwd(g_nll[b : b + 1, part], write.head)  # (1,L,D)
            g_z, g_gain, g_bias = norm_bwd(g_n, write.norm)  # (1,L,D)
            # forward: memory = write(x; W_i, b_i)
            g_memory = MatrixMemory(g_z, back.query + back.key, g_dz)
            g_x, g_at = write_bwd(g_memory, write)  # (1,L,D)
            # forward: W_i = W - eta_W S_W,  b_i = b - eta_b S_b
            g_eta = FastMatrix(
                g_eta.W - xp.sum(g_at.W * held.W[0, :, :]), g_eta.b - xp.sum(g_at.b * held.b[0, :])
            )
            g_W, g_b = back.state or g_held
            g_held = FastMatrix(g_W - res.eta.W * g_at.W, g_b - res.eta.b * g_at.b)
            # forward: norm and head at the losses, and at what is written
            g_above = add(g_at[3:], (g_gain, g_bias, *g_head))
            g_slow = add(g_slow, MatrixParameters(*g_at[:3], *g_above))
            g_decay = g_decay - back.keep
            g_parts.append(g_x)
        g_xs.append(xp.concat(g_parts[::-1], axis=1))  # (1,T,D)
    return xp.concat(g_xs, axis=0), g_slow, g_eta, g_decay


def through_loss_and_gradient(
    learned: Learned,
    x: Array,
    labels: Array,
    weights: Array,
    model: Model,
    sizes: FastMatrix,
    segment: int,
    values: Array | None,
) -> tuple[Array, Learned]:
    """(B,T,D),(B,T),(B,T)->(),Learned   mean loss of the tokens of weight 1, through the steps

    (X.15), (X.16)
    """
    xp = namespace(x, weights)
    slow, eta = slow_of(learned, model), etas_of(learned, sizes)
    settings = settings_of(model, segment, frozen=learned.U is None)
    nll, res = through_fwd(x, labels, weights, slow, eta, learned.decay, settings, segment, values)
    share = weights / xp.sum(weights)  # (B,T)
    loss = xp.sum(nll * share)  # ()
    # forward: loss = sum nll share
    _, g_slow, g_eta, g_decay = through_bwd(share, res)
    # forward: eta = steps sizes
    g_steps = FastMatrix(g_eta.W * sizes.W, g_eta.b * sizes.b)  # (), ()
    return loss, Learned(g_slow.key, g_slow.W, g_slow.b, g_steps, g_decay, g_slow.U)


def _nothing(slow: MatrixParameters) -> FastMatrix:
    """(1,K,D), (1,D)   zeros: nothing is written yet"""
    xp = namespace(slow.W, slow.b)
    W = xp.zeros((1, *slow.W.shape), dtype=slow.W.dtype, device=device(slow.W))
    return FastMatrix(W, xp.zeros((1, *slow.b.shape), dtype=slow.b.dtype, device=device(slow.b)))
