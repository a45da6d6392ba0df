"""The neural cache (Grave et al., arXiv 1612.04426): words that followed similar features return.

    p_cache(w | t) = sum_{s<t} [y_s = w] exp(theta n_t . n_s) / sum_{s<t} exp(theta n_t . n_s)
    p(w | t)       = (1 - lambda) p_model(w | t) + lambda p_cache(w | t)

n are the final features, y the tokens that came next. Nothing is trained: it is a memory of the
document with a softmax kernel. The first token has no past, so there p is the model's.
"""

from __future__ import annotations

import math

from ..backend import Array, device, library
from ..ops.common import chunk_slices

BLOCK = 256  # tokens that read at a time: (256,T) scores


def cache_probability(n: Array, labels: Array, theta: float) -> Array:
    """(T,D),(T)->(T)   p_cache(y_t | t), 0 for the first token; Grave et al., arXiv 1612.04426

    Raises ValueError if theta is not above 0.
    """
    if not theta > 0:
        raise ValueError(f"theta must be above 0, got {theta}: it says how alike features must be")
    xp = library(n, labels)
    position = xp.arange(n.shape[0], device=device(n))  # (T,)
    parts = []
    for rows in chunk_slices(n.shape[0], BLOCK):
        seen = position[None, : rows.stop] < position[rows][:, None]  # (R,S) s < t
        keys = xp.matrix_transpose(n[: rows.stop, :])  # (D,S)
        scores = xp.matmul(n[rows, :], keys) * theta  # (R,S)
        scores = xp.where(seen, scores, -xp.inf)
        top = xp.max(scores, axis=-1, keepdims=True) if rows.stop else scores  # (R,1)
        top = xp.where(top > -xp.inf, top, xp.zeros_like(top))
        weight = xp.exp(scores - top)  # (R,S), 0 for what it may not see
        same = labels[rows][:, None] == labels[: rows.stop][None, :]  # (R,S)
        hit = xp.sum(xp.where(same, weight, xp.zeros_like(weight)), axis=-1)  # (R,)
        total = xp.sum(weight, axis=-1)  # (R,)
        parts.append(hit / xp.where(total > 0, total, xp.ones_like(total)))
    return xp.concat(parts)


def mix_cache(nll: Array, probability: Array, share: float) -> Array:
    """(T),(T)->(T)   -log((1 - lambda) exp(-nll) + lambda p_cache); the first token keeps its loss

    Probabilities of all words sum to 1 if those of the model do. Source: Grave et al., arXiv
    1612.04426.

    Raises ValueError if ``share``, lambda, is not in [0, 1).
    """
    if not 0 <= share < 1:
        raise ValueError(f"lambda must lie in [0, 1), got {share}: at 1 a new word is impossible")
    xp = library(nll, probability)
    first = xp.arange(nll.shape[0], device=device(nll)) == 0  # (T,)
    model = math.log(1 - share) - nll  # (T,) log of the model's part of the sum
    none = probability * share <= 0  # (T,)
    cached = xp.log(xp.where(none, xp.ones_like(nll), probability * share))  # (T,)
    cached = xp.where(none, model, cached)
    top = xp.where(model > cached, model, cached)  # (T,)
    mixed = -top - xp.log(xp.exp(model - top) + xp.exp(cached - top))  # (T,)
    return xp.where(first, nll, xp.where(none, -model, mixed))
