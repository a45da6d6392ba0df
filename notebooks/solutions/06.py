"""Solutions of notebook 6."""

import numpy as np

# Segment 0 is scored at theta_0, segment 1 after one step whose gradient both learners took at
# theta_0. Segment 2 starts at token 6.
first_token = 6


def missed(g, H, kappa):
    """(T,P),(T,P,P)->(T,P)   sum over s < r < t of kappa^(t-s-2) H_r g_s, as two running sums that
    fade.
    """
    past = total = np.zeros_like(g[0])
    rows = []
    for g_t, H_t in zip(g, H, strict=True):
        rows.append(total)
        total = kappa * total + H_t @ past  # the sequential step at t sees the past through H_t
        past = kappa * past + g_t
    return np.stack(rows)
