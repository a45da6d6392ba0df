"""The fast matrix with true gradients: each is taken where the matrix stands when it is written.

    z_t = x_t + k_t (W - eta_W S_W) + b - eta_b S_b          S of the segments before
    S_W <- fade S_W + sum k_t^T v_t,    S_b <- fade S_b + sum v_t        after each segment

v_t is the gradient of token t's loss with respect to z_t, at these very z_t, perhaps whitened. So
the logits by which a token is scored are those whose gradient is written, and a token needs two
products with the unembedding. A stale gradient needs a pass of its own, which makes three. This is
dynamic evaluation of the matrix and the bias.

Each document of a batch has an S of its own. A segment is little work for the whole unembedding, so
documents that are read side by side share the time in which it comes from memory.
"""

from __future__ import annotations

import math

from ..backend import Array, device, namespace
from ..fast_matrix import FastMatrix
from ..norm import norm_bwd, norm_fwd
from ..ops.blocked_head import blocked_head_fwd
from ..ops.common import chunk_slices
from .trunk import Model


def refreshed_losses(
    model: Model,
    x: Array,
    k: Array,
    labels: Array,
    start: FastMatrix,
    eta: FastMatrix,
    segment: int,
    *,
    decay: float = 0.0,
    values: Array | None = None,
) -> Array:
    """(B,T,D),(B,T,K),(B,T)->(B,T)   losses; ``values`` (D,D) whitens what is written (Y.1), (X.15)

    What pads a document at its end changes none of its losses. Raises ValueError if ``segment`` is
    below 1 or the decay is not in [0, 1).
    """
    if not 0 <= decay < 1:
        raise ValueError(f"the decay must lie in [0, 1), got {decay}")
    xp, gain = namespace(x, k), model.parameters.gain
    B, _, D = x.shape
    S_W = xp.zeros((B, k.shape[2], D), dtype=x.dtype, device=device(x))  # (B,K,D)
    S_b = xp.zeros((B, 1, D), dtype=x.dtype, device=device(x))  # (B,1,D)
    losses = []
    for rows in chunk_slices(x.shape[1], segment):
        keys = k[:, rows, :]  # (B,L,K)
        z = x[:, rows, :] + xp.matmul(keys, start.W - eta.W * S_W)  # (B,L,D)
        z += start.b - eta.b * S_b
        n, norm = norm_fwd(z, gain, model.bias, model.config.eps, "rms")  # (B,L,D)
        nll, head = blocked_head_fwd(n, model.U, None, labels[:, rows], model.block, frozen=True)
        losses.append(nll)  # (B,L)
        # forward: nll = cross-entropy of norm(z) U
        v, _, _ = norm_bwd(head.slope, norm)  # (B,L,D)
        v = v if values is None else xp.matmul(v, values)
        length = keys.shape[1]
        left = xp.arange(length - 1, -1, -1, dtype=x.dtype, device=device(x))  # (L,) tokens behind
        v = v * xp.exp(left * math.log1p(-decay))[:, None]
        fade = (1 - decay) ** length
        # forward: z = x + k W + b
        S_W = fade * S_W + xp.matmul(xp.matrix_transpose(keys), v)  # (B,K,D)
        S_b = fade * S_b + xp.sum(v, axis=1, keepdims=True)  # (B,1,D)
    return xp.concat(losses, axis=1)
