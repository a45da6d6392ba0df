"""A mixture that follows the better predictor: Bayes over paths that may switch.

Several predictors give each next token a probability. Before each token the mixture has a weight
for each of them, from the losses of the tokens before, and predicts with the weighted sum:

    p_t = sum_i w_{t,i} p_{t,i},      v_{t,i} = w_{t,i} p_{t,i} / p_t
    w_{t+1,i} = (1 - a_t) v_{t,i} + a_t (1 - v_{t,i}) / (N - 1)

This is exact Bayes with a prior over paths, that starts anywhere and switches with probability a_t
after token t (Herbster and Warmuth, Machine Learning 32, 1998: fixed share). So for any path its
loss is at most that of the path plus -log of the path's prior. With a_t = 1 / (t + 1), t = 1, 2,
..., the path that stays has the prior 1 / (N T): whatever the others do, the loss of T tokens is at
most log N + log T above that of any one predictor. It looks at the past only, so it is legal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..backend import Array, host


def mixture(losses: Sequence[Array], switch: float | None = None) -> tuple[Array, Array]:
    """N times (T)->(T),(T,N)   losses of the mixture, and the weights it used; on the host

    ``switch`` is a constant a; None = 1 / (t + 1). ``regret_bound`` says what it can cost.

    Raises ValueError if there are not two predictors at least, all of one length, or if ``switch``
    is not in [0, 1).
    """
    if len(losses) < 2 or len({len(loss) for loss in losses}) != 1:
        raise ValueError(
            "a mixture needs at least two predictors of the same tokens, got losses of "
            f"{[len(loss) for loss in losses]} tokens"
        )
    if switch is not None and not 0 <= switch < 1:
        raise ValueError(f"the switching probability must lie in [0, 1), got {switch}")
    table = host.stack([host.asarray(loss, dtype="float64") for loss in losses], axis=1)  # (T,N)
    tokens, count = table.shape
    lowest = table.min(axis=1)  # (T,)
    likelihood = host.exp(lowest[:, None] - table)  # (T,N), the best is 1
    weights, mixed = host.zeros_like(table), host.zeros(tokens)  # (T,N), (T,)
    w = host.full(count, 1 / count)  # (N,)
    for t in range(tokens):
        weights[t] = w
        joint = w * likelihood[t]  # (N,)
        total = joint.sum()
        mixed[t] = lowest[t] - math.log(total) if total > 0 else math.inf
        v = joint / total if total > 0 else w  # (N,)
        a = 1 / (t + 2) if switch is None else switch
        w = (1 - a) * v + a * (1 - v) / (count - 1)
    return mixed, weights


def regret_bound(tokens: int, count: int, switch: float | None = None, switches: int = 0) -> float:
    """What the mixture can lose at most, in nats over ``tokens``, against a path that switches
    ``switches`` times between ``count`` predictors; with the default ``switch`` only 0 is known.

    Source: the prior of that path; Herbster and Warmuth, Machine Learning 32, 1998.

    Raises ValueError for ``switches`` above 0 with the default ``switch``.
    """
    if tokens == 0:
        return 0.0
    start = math.log(count)
    if switch is None:
        if switches:
            raise ValueError("with a switching probability of 1 / (t + 1) it matters when they are")
        return start + math.log(tokens)
    stays = tokens - 1 - switches
    moves = switches * math.log((count - 1) / switch) if switches else 0.0
    return start + moves - stays * math.log(1 - switch)
