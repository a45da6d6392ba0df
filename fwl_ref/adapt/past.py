"""What a token reads from the gradients of the tokens before it, with a kernel of any shape.

    o_t = sum_{s<t} (1 - decay)^(t-1-s) kappa(k_t, k_s) v_s

With kappa = k_t . k_s + ratio this is one fast matrix and one fast bias whose step sizes have that
ratio, nothing trained (X.6). With kappa = exp(theta (k_t . k_s - 1/2)) a write is read where keys
are nearly the same. The parallel form serves for all: a document is short beside a vocabulary.
"""

from __future__ import annotations

import math

from ..backend import Array, device, namespace
from ..ops.common import chunk_slices

BLOCK = 256  # tokens that read at a time


def past_read(
    k: Array, v: Array, *, ratio: float = 0.0, decay: float = 0.0, theta: float | None = None
) -> Array:
    """(T,K),(T,D)->(T,D)   o above; ``theta`` None = the linear kernel

    Raises ValueError if the decay is not in [0, 1).
    """
    if not 0 <= decay < 1:
        raise ValueError(f"the decay must lie in [0, 1), got {decay}")
    xp = namespace(k, v)
    position = xp.arange(k.shape[0], dtype=k.dtype, device=device(k))  # (T,)
    parts = []
    for rows in chunk_slices(k.shape[0], BLOCK):
        gap = position[rows][:, None] - position[None, : rows.stop]  # (R,S) t - s
        score = xp.matmul(k[rows, :], xp.matrix_transpose(k[: rows.stop, :]))  # (R,S)
        score = score + ratio if theta is None else xp.exp(theta * (score - 0.5))
        if decay:
            past = xp.where(gap > 0, gap - 1, xp.zeros_like(gap))  # (R,S)
            score = score * xp.exp(past * math.log1p(-decay))
        score = xp.where(gap > 0, score, xp.zeros_like(score))
        parts.append(xp.matmul(score, v[: rows.stop, :]))  # (R,D)
    return xp.concat(parts, axis=0)
