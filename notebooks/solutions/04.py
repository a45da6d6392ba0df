"""Solutions to notebook 4."""

import numpy as np

state_after_100 = (4, 9, 32)
state_after_200 = (4, 9, 32)


def decayed_mask(T, keep):
    """A power of keep where s < t; the maximum keeps the unused powers from overflowing."""
    age = np.arange(T)[:, None] - np.arange(T)[None, :] - 1
    return np.where(age >= 0, keep ** np.maximum(age, 0), 0.0)


def fast_layer(x, W, d, eta):
    """x_t W - eta sum_{s<t} (x_t . x_s) d_s"""
    scores = x @ x.T * np.tri(len(x), k=-1)
    return x @ W - eta * scores @ d


def strict_attention_bwd(do, q, k, v):
    """Reverse o = A v, then A = q k^T * M."""
    M = np.tri(len(q), k=-1)
    A, dA = q @ k.T * M, do @ v.T * M
    return dA @ k, dA.T @ q, A.T @ do
