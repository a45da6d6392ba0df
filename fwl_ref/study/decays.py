"""The fast weight block with a decay for each of its two layers and for the norm's gain and bias.

Their ratios are learned beside the decay that a model has:

    lambda_i = lambda exp(10 r_i)      r starts at 0

The 10 lets a step of training move a ratio by as much, in parts of it, as it moves the decay.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..backend import Array, Tree, host, namespace
from ..lm.adamw import adam_init
from ..lm.train import Progress

PACE = 10.0


class DecaysModel(NamedTuple):
    """``lm.model.Parameters``, and the logarithms of the ratios."""

    embedding: Array
    trunk: tuple
    gain: Array
    bias: Array
    block: Any
    eta: Any
    decay: Array  # () lambda
    ratios: Array  # (3,) r


def begin_decays(fresh: Progress) -> Progress:
    """The same start, all ratios 1."""
    params: Any = DecaysModel(*fresh.params, host.zeros(3, dtype=fresh.params.decay.dtype))
    return Progress(params, adam_init(params), ())


def apart_fwd(decay: Array, ratios: Array) -> tuple[Array, tuple[Array, Array]]:
    """(),(3,)->(3,)   the decay of each"""
    factors = namespace(decay, ratios).exp(PACE * ratios)  # (3,)
    return decay * factors, (decay, factors)


def apart_bwd(ddecays: Array, res: tuple[Array, Array]) -> dict[str, Tree]:
    """Adjoint of apart_fwd, by name."""
    decay, factors = res
    # forward: decays = decay factors,  factors = exp(10 ratios)
    ddecay = namespace(ddecays).sum(ddecays * factors)  # ()
    return {"decay": ddecay, "ratios": PACE * decay * factors * ddecays}
