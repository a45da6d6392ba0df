"""The fast weight block with a decay for each of its two layers and for the norm's gain and bias.

Their ratios are learned beside the decay that a model has:

    lambda_i = lambda exp(10 r_i)      r starts at 0

The 10 lets a step of training move a ratio by as much, in parts of it, as it moves the decay.
"""

from __future__ import annotations

from ..backend import Array, Tree, namespace

PACE = 10.0


def apart_fwd(decay: Array, ratios: Array) -> tuple[Array, tuple[Array, Array]]:
    """(),(3,)->(3,)   the decay of each, from r (3,)"""
    factors = namespace(decay, ratios).exp(PACE * ratios)  # (3,)
    return decay * factors, (decay, factors)


def apart_bwd(ddecays: Array, res: tuple[Array, Array]) -> dict[str, Tree]:
    """Adjoint of apart_fwd: of the decay, and of r as what the model has of its ``own``."""
    decay, factors = res
    # forward: decays = decay factors,  factors = exp(10 ratios)
    ddecay = namespace(ddecays).sum(ddecays * factors)  # ()
    return {"decay": ddecay, "own": PACE * decay * factors * ddecays}
