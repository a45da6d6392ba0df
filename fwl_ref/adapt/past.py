"""What a token reads from the gradients of the tokens before it, with a kernel of any shape.

    o_t = sum_{s<t} (1 - decay)^(t-1-s) kappa(k_t, k_s) v_s

With kappa = k_t . k_s + ratio this is one fast matrix and one fast bias whose step sizes have that
ratio, nothing trained (X.6). With kappa = exp(theta (k_t . k_s - 1/2)) a write is read where keys
are nearly the same. The parallel form serves for all: a document is short beside a vocabulary.

Stale gradients of a text that repeats itself add up without bound. Three reads cannot: one divides
by the sum of its weights, one writes by the delta rule what is not known yet, and one keeps the
matrix below a norm.
"""

from __future__ import annotations

import math

from ..backend import Array, device, namespace
from ..ops.common import chunk_slices
from ..rules.delta import delta_chunked_fwd

BLOCK = 256  # tokens that read at a time
CHUNK = 32  # tokens of the delta rule that are solved together, and between two bounds


def past_read(
    k: Array,
    v: Array,
    *,
    ratio: float = 0.0,
    decay: float = 0.0,
    theta: float | None = None,
    prior: float | None = None,
) -> Array:
    """(T,K),(T,D)->(T,D)   o above; ``theta`` None = the linear kernel

    With a ``prior`` o is divided by prior + sum kappa, so that it is never longer than the longest
    v. Raises ValueError if the decay is not in [0, 1), and for a prior without a theta: a linear
    kernel may sum to 0.
    """
    if prior is not None and theta is None:
        raise ValueError("only a kernel that is positive can be normalised: give theta")
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
        o = xp.matmul(score, v[: rows.stop, :])  # (R,D)
        parts.append(o if prior is None else o / (prior + xp.sum(score, axis=1, keepdims=True)))
    return xp.concat(parts, axis=0)


def delta_read(k: Array, v: Array, *, beta: float) -> Array:
    """(T,K),(T,D)->(T,D)   k_t S_t, where S_{t+1} = S_t - beta k_t^T (k_t S_t - v_t)   (U.27)

    A pair k, v that comes again and again ends as k S = v, however often.
    """
    rates = beta * namespace(k, v).ones_like(k[None, :, 0])  # (1,T)
    q, value = k[None, ...], v[None, ...]  # (1,T,K), (1,T,D)
    return delta_chunked_fwd(q, q, value, rates, chunk=CHUNK, read="strict")[0][0][0, ...]


def bounded_read(k: Array, v: Array, *, most: float) -> Array:
    """(T,K),(T,D)->(T,D)   k_t S, S of the chunks before, scaled down to the norm ``most``"""
    xp = namespace(k, v)
    S = xp.zeros((k.shape[1], v.shape[1]), dtype=v.dtype, device=device(v))  # (K,D)
    parts = []
    for rows in chunk_slices(k.shape[0], CHUNK):
        parts.append(xp.matmul(k[rows, :], S))  # (L,D)
        S = S + xp.matmul(xp.matrix_transpose(k[rows, :]), v[rows, :])
        norm = xp.sqrt(xp.sum(S * S))  # ()
        S = S * xp.where(norm > most, most / norm, xp.ones_like(norm))
    return xp.concat(parts, axis=0)
