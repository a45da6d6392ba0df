"""The fast weight block one token at a time: predict, then reveal.

    stream = stream_start(batch, slow, settings)
    # score first ...
    logits, stream = stream_predict(stream, x, slow, eta, settings)
    # ... then learn what the token was
    stream = stream_reveal(stream, labels, weights, slow, decay, settings)

The state is the sum of past gradients (faded by the decay), one entry per fast parameter and
sequence, so the fast parameters are simply p - eta state. With an optimizer the state is that
optimizer's slots. Nothing here uses linear attention: it is the recurrent reading of the same
mathematics.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .backend import Array, device, namespace
from .checks import (
    check_block_parameters,
    check_decay,
    check_predict,
    check_reveal,
    check_settings,
    check_streamable,
)
from .fast_layer import decays
from .fwl import FastSettings, write_fwd
from .norm import norm_fwd
from .ops.dense import dense_fwd
from .ops.squared_relu import squared_relu_fwd
from .optimizers import OptimizerState, read_slots, slots, write_slots
from .slow_block import FastParameters, SlowParameters
from .tree import tree_map


class Stream(NamedTuple):
    """What is carried from token to token, one entry per sequence."""

    state: Any  # FastParameters, sums of past gradients; with an optimizer OptimizerState
    pending: Array | None  # (B,I) features predicted from, until reveal; then None


def stream_start(batch: int, slow: SlowParameters, settings: FastSettings | None = None) -> Stream:
    """An empty memory for ``batch`` sequences; ``settings`` None means the default ones."""
    check_block_parameters(slow)
    xp, optimizer = namespace(*slow), settings.optimizer if settings else None
    lead = (batch,) if optimizer is None else (batch, slots(optimizer))
    fast = (getattr(slow, name) for name in FastParameters._fields)
    zeros = (xp.zeros((*lead, *p.shape), dtype=p.dtype, device=device(p)) for p in fast)
    empty = FastParameters(*zeros)
    return Stream(empty if optimizer is None else OptimizerState(empty, 0), None)


def stream_predict(
    stream: Stream, x: Array, slow: SlowParameters, eta: FastParameters, settings: FastSettings
) -> tuple[Array, Stream]:
    """(B,I)->(B,V)   logits for the next token from the features of this one   (F.8)

    Raises ValueError without the constant normalizer, if the previous token was never revealed, or
    for another number of sequences than the stream was started with.
    """
    check_predict(stream.state, x, slow, eta, settings)
    if stream.pending is not None:
        raise ValueError(
            "predict after predict: reveal the previous token's label first "
            "(weight 0 if it must not be written)"
        )
    state, optimizer = stream.state, settings.optimizer
    sums = state if optimizer is None else read_slots(optimizer, state)
    xp = namespace(x, *sums)
    named = zip(FastParameters._fields, eta, sums, strict=True)
    fast = FastParameters(*(getattr(slow, name) - e * s for name, e, s in named))
    h = xp.matmul(x[:, None, :], fast.W1)[:, 0, :] + fast.b1  # (B,F)
    a, _ = squared_relu_fwd(h)  # (B,F)
    z = xp.matmul(a[:, None, :], fast.W2)[:, 0, :] + fast.b2  # (B,D)
    z = x + z if settings.residual else z
    n, _ = norm_fwd(z, fast.gain, fast.bias, settings.eps, settings.norm)  # (B,D)
    logits, _ = dense_fwd(n, slow.U, slow.c)  # (B,V)
    return logits, Stream(stream.state, x)


def stream_reveal(
    stream: Stream,
    labels: Array,
    weights: Array,
    slow: SlowParameters,
    decay: Array,
    settings: FastSettings,
) -> Stream:
    """(B,),(B,)   learn what the predicted tokens were   (F.9)

    Raises ValueError if nothing was predicted, if labels are out of range, weights negative, or
    either not one per sequence; and without the constant normalizer.
    """
    check_settings(settings)
    check_decay(decay, settings)
    check_streamable(settings)
    if stream.pending is None:
        raise ValueError(
            "reveal before predict: a token must be scored before its label is shown, "
            "or the score is not a prediction"
        )
    check_reveal(stream.pending, labels, weights, slow, decay, settings)
    xp = namespace(stream.pending, weights)
    token = stream.pending[:, None, :], labels[:, None], weights[:, None]  # T = 1
    (m, _), _ = write_fwd(*token, slow, settings)
    outer1 = xp.matmul(xp.matrix_transpose(m.x), m.dh)  # (B,I,F)
    outer2 = xp.matmul(xp.matrix_transpose(m.a), m.dz)  # (B,F,D)
    vectors = (g[:, 0, :] for g in (m.dh, m.dz, m.dgain, m.dbias))
    db1, db2, dgain, dbias = vectors  # (B,F), (B,D), (B,D), (B,D)
    new = FastParameters(outer1, db1, outer2, db2, dgain, dbias)
    if settings.optimizer is not None:
        return Stream(write_slots(settings.optimizer, stream.state, new), None)
    d1, d2, d3 = decays(decay)
    rates = FastParameters(d1, d1, d2, d2, d3, d3)
    return Stream(tree_map(lambda s, g, d: (1 - d) * s + g, stream.state, new, rates), None)
