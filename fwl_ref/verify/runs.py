"""The ways to run a case of the block: the block itself, its gradients, and what it is compared
with.

``stale`` and ``sequential`` are dynamic evaluation. They share no code with the fast weight block,
and N is formed from its definition here for the same reason.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ..backend import Array, like, namespace, to_numpy
from ..dynamic_evaluation import evaluate_block
from ..fwl import fast_block_bwd, fast_block_fwd
from ..optimizers import OptimizerState
from ..slow_block import FastParameters, SlowParameters, slow_block_fwd
from .cases import BlockCase

State = FastParameters | OptimizerState


class Run(NamedTuple):
    """What the block says, and what it remembers."""

    logits: Array  # (B,T,V)
    state: State  # accumulated gradients, or an optimizer's slots


class Evaluation(NamedTuple):
    """What dynamic evaluation says, and where its parameters end."""

    logits: Array  # (B,T,V)
    parameters: FastParameters  # one of each per sequence: (B,I,F) ... (B,D)


class Gradients(NamedTuple):
    """The gradients of everything that the block differentiates, in the order of its arguments."""

    x: Array  # (B,T,I)
    slow: SlowParameters
    eta: FastParameters
    decay: Array  # ()
    state: FastParameters | None  # of an optimizer's slots; None if no state came in


def run(case: BlockCase, state: State | None = None) -> Run:
    """The fast weight block."""
    (logits, _, state), _ = fast_block_fwd(*case, state)
    return Run(logits, state)


def gradients(
    case: BlockCase,
    g_logits: Array,
    g_state: FastParameters | None = None,
    state: State | None = None,
) -> Gradients:
    """The backward pass of the block for a cotangent of its logits and, if given, its state."""
    _, res = fast_block_fwd(*case, state)
    return Gradients(*fast_block_bwd(g_logits, g_state, res))


def as_function(case: BlockCase) -> tuple[Callable, Callable]:
    """The block as a function of x, slow, eta and decay, and its adjoint: for ``check_adjoint``."""

    def fwd(x: Array, slow: SlowParameters, eta: FastParameters, decay: Array) -> tuple:
        changed = case._replace(x=x, slow=slow, eta=eta, decay=decay)
        (logits, _, out), res = fast_block_fwd(*changed)
        return (logits, out), res

    def bwd(g: tuple[Array, Any], res: Any) -> tuple:
        return fast_block_bwd(*g, res)[:4]

    return fwd, bwd


def plain(case: BlockCase) -> Array:
    """(B,T,V)   logits of the slow block."""
    (_, logits), _ = slow_block_fwd(case.x, case.labels, case.slow, *case.settings.plain)
    return logits


def stale(case: BlockCase, segment: int = 1) -> Evaluation:
    """Dynamic evaluation with every gradient taken at the slow weights."""
    return _dynamic(case, segment, stale=True)


def sequential(case: BlockCase, segment: int = 1) -> Evaluation:
    """Dynamic evaluation proper, every gradient taken at the current weights."""
    return _dynamic(case, segment, stale=False)


def _dynamic(case: BlockCase, segment: int, stale: bool) -> Evaluation:
    n, decay = normalizers(case), float(to_numpy(case.decay))
    eps, norm, residual = case.settings.plain
    rule = {"segment": segment, "decay": decay, "n": n, "eps": eps, "norm": norm}
    return Evaluation(*evaluate_block(*case[:5], residual=residual, stale=stale, **rule))


def normalizers(case: BlockCase) -> Array:
    """() or (B,)   N by its definition; 1 where nothing is written."""
    xp, settings = namespace(case.weights), case.settings
    if settings.normalizer == "constant":
        return like(settings.constant, case.weights, case.weights.dtype)
    total = xp.sum(case.weights, axis=None if settings.normalizer == "batch" else 1)
    return xp.where(total > 0, total, xp.ones_like(total))
