"""The fast weight block with a learned preconditioner: a scale for each input and each output of
what is written.

RMS dynamic evaluation divides the gradient of every weight by its usual size. For a dense layer the
factored form of that divides by a number for the row and one for the column, which is to write
other keys and other values:

    key' = key exp(10 p),   value' = value exp(10 q)      p, q start at 0

Linear attention reads what is written and knows nothing of it. The 10 is that of ``decays.py``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..backend import Array, host, namespace
from ..fwl import FastSettings, Memory, read_bwd, read_fwd, write_fwd
from ..lm.model import Parameters
from ..slow_block import SlowParameters
from .decays import PACE
from .written import back_through_write


class Scales(NamedTuple):
    """Logarithms of the scales over 10, and (same type) their gradients; in the order of Memory."""

    x: Array  # (I,) keys of layer 1
    dh: Array  # (F,) values of layer 1
    a: Array  # (F,) keys of layer 2
    dz: Array  # (D,) values of layer 2
    dgain: Array  # (D,)
    dbias: Array  # (D,)


def no_scales(p: Parameters) -> Scales:
    """Zeros, for the block of a model: nothing is scaled."""
    (width, hidden), out = p.block.W1.shape, p.block.W2.shape[1]
    sizes = (width, hidden, hidden, out, out, out)
    return Scales(*(host.zeros(n, dtype=p.gain.dtype) for n in sizes))


def scaled_fwd(
    x: Array,
    labels: Array,
    weights: Array,
    slow: SlowParameters,
    eta: Any,
    decay: Array,
    settings: FastSettings,
    state: Any,
    own: Scales,
) -> tuple[tuple[Array, Array, Any], tuple]:
    """(B,T,I),(B,T),(B,T)->(B,T,V),(B,T,V),FastParameters   fast_block_fwd, what is written scaled

    Raises as the parts of the block do.
    """
    xp = namespace(x, *own)
    (m, slow_logits), write = write_fwd(x, labels, weights, slow, settings)
    by = Scales(*(xp.exp(PACE * s) for s in own))
    scaled = Memory(m.h, *(a * s for a, s in zip(m[1:], by, strict=True)))  # (B,T,...)
    (logits, state), read = read_fwd(scaled, x, slow, eta, decay, state, settings)
    return (logits, slow_logits, state), (write, read, scaled, by)


def scaled_bwd(g_logits: Array, g_state: Any, res: tuple) -> tuple:
    """Adjoint of scaled_fwd: g_x, g_slow, g_eta, g_decay, g_state_in, g_own."""
    write, read, scaled, by = res
    xp = namespace(g_logits)
    # forward: logits = read(scaled memory)
    g_m, g_x, g_read, g_eta, g_decay, g_state = read_bwd(g_logits, g_state, read)
    # forward: scaled = m exp(10 own)
    pairs = zip(g_m[1:], scaled[1:], strict=True)
    g_own = Scales(*(PACE * xp.sum(g * a, axis=(0, 1)) for g, a in pairs))
    g_m = Memory(g_m.h, *(g * s for g, s in zip(g_m[1:], by, strict=True)))  # (B,T,...)
    # forward: m = write(x)
    g_x, g_slow = back_through_write(g_m, g_x, g_read, write)
    return g_x, g_slow, g_eta, g_decay, g_state, g_own
