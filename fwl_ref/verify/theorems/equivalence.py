"""What a fast weight layer computes: dynamic evaluation with every gradient taken at the slow
weights (theorems 1 to 5).
"""

from __future__ import annotations

from collections.abc import Iterator

from ...backend import Array, host, like, namespace, to_numpy
from ...dynamic_evaluation import Descent, dynamic_evaluation
from ...fwl import fast_block_bwd, fast_block_fwd
from ...ops.cross_entropy import cross_entropy_bwd, cross_entropy_fwd
from ...ops.dense import dense_bwd, dense_fwd
from ...ops.linear_attention import linear_attention_fwd
from ...slow_block import SlowParameters, slow_block_bwd, slow_block_fwd
from ...tree import add, tree_map
from ..cases import B, BlockCase, T, small_attention_case, small_case, with_steps
from ..measure import Finding, different, same
from ..runs import run, sequential, stale


def equivalence(target: Array, dtype: str) -> Iterator[Finding]:
    """1. The block is dynamic evaluation with every gradient taken at the slow weights."""
    for eps in (1e-6, 0.0):
        case = small_case(target, dtype, eps=eps)
        claim = f"block = dynamic evaluation at the slow weights, eps {eps:g}"
        yield same(claim, run(case).logits, stale(case).logits, dtype)


def first_tokens(target: Array, dtype: str) -> Iterator[Finding]:
    """2. True SGD agrees on tokens 0 and 1, and on no later one."""
    case = with_steps(small_case(target, dtype), 3.0)
    ours, theirs = run(case).logits, sequential(case).logits
    yield same("tokens 0 and 1 = true SGD", ours[:, :2, :], theirs[:, :2, :], dtype)
    yield different("token 2 is not", ours[:, 2, :], theirs[:, 2, :], dtype)


def second_order(target: Array, dtype: str) -> Iterator[Finding]:
    """3. The difference to true SGD shrinks with the square of the step sizes. Below float32's
    rounding, so in float64 only.
    """
    if dtype == "float32":
        return
    sizes = []
    for k in (6, 7, 8):
        case = with_steps(small_case(target, dtype), 2.0**-k)
        difference = to_numpy(run(case).logits - sequential(case).logits)
        sizes.append(float(host.max(host.abs(difference))))
    slopes = [float(host.log2(a / b)) for a, b in zip(sizes[:-1], sizes[1:], strict=True)]
    error = max(abs(slope - 2) for slope in slopes)
    yield Finding("slope of the difference to true SGD is 2", error, 0.1)


def linear_loss(target: Array, dtype: str) -> Iterator[Finding]:
    """4. For a loss linear in the parameters, stale and current gradients are the same, and so
    is linear attention.
    """
    q, k, v, keep, start = small_attention_case(target, dtype)
    xp, none = namespace(q), like(host.zeros(v.shape[2]), q, dtype)  # no bias

    def score(theta: tuple, t: int) -> tuple:
        y, _ = dense_fwd(q[0, t : t + 1, :], theta[0], none)
        _, res = dense_fwd(k[0, t : t + 1, :], theta[0], none)
        _, dW, _ = dense_bwd(v[0, t : t + 1, :], res)
        return y, (-dW,)  # of l = -<v, k W>

    rows = [y for y, _ in dynamic_evaluation((start[0, ...],), range(T), score, Descent(1.0))]
    (out, _), _ = linear_attention_fwd(q, k, v, xp.ones_like(keep), start)
    claim = "linear attention = SGD on a linear loss"
    yield same(claim, out[0, ...], xp.concat(rows, axis=0), dtype)


def tangent_kernel(target: Array, dtype: str) -> Iterator[Finding]:
    """5. At step size 0 the slope of a loss in the step sizes is minus a causal row sum of
    products of gradients.
    """
    case = small_case(target, dtype, decay=0.0)
    still, t, xp = with_steps(case, 0.0), T - 1, namespace(case.x)
    (logits, _, _), res = fast_block_fwd(*still)
    _, loss = cross_entropy_fwd(logits, case.labels)
    hot = host.zeros((B, T))
    hot[0, t] = 1.0  # the loss of one token
    _, _, g_eta, _, _ = fast_block_bwd(cross_entropy_bwd(like(hot, target, dtype), loss), None, res)

    last = _token_gradient(case, t, weigh=False)
    total = tree_map(xp.zeros_like, g_eta)
    for s in range(t):
        written = _token_gradient(case, s, weigh=True)
        row = [-xp.sum(a * b) for a, b in zip(last[:6], written[:6], strict=True)]
        total = add(total, type(g_eta)(*row))
    yield same("d loss / d step size = - sum of <g_t, g_s>", g_eta, total, dtype)


def _token_gradient(case: BlockCase, s: int, weigh: bool) -> SlowParameters:
    """Gradient of the slow loss of token s of the first sequence, times its weight if asked."""
    part = slice(s, s + 1)
    x, labels, weights = case.x[0, part, :], case.labels[0, part], case.weights[0, part]
    _, res = slow_block_fwd(x, labels, case.slow, *case.settings.plain)
    _, gradient = slow_block_bwd(weights if weigh else namespace(x).ones_like(weights), res)
    return gradient
