"""Solutions of notebook 9."""

import numpy as np

M_52 = 1.75  # velocities after tokens 2, 3, 4: 1 + 1/2 + 1/4


def fading_window(n, lam, w):
    """(n,n)   (1 - lam)^(t-s-1) for 1 <= t - s <= w, else 0."""
    gap = np.arange(n)[:, None] - np.arange(n)[None, :]  # (n,n) t - s
    return np.where((gap >= 1) & (gap <= w), (1 - lam) ** np.maximum(gap - 1, 0), 0.0)


def gated_delta_step(S, k, v, alpha, beta):
    """(K,E)   fade, then one step at the faded memory."""
    S = alpha * S  # (K,E)
    return S - beta * np.outer(k, k @ S - v)  # (K,E)
