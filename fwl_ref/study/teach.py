"""Training and reading with any top (``tops.py``), and gradients that are changed on their way.

A gradient is called as ``lm.model.loss_and_gradient`` is, and stands in for it in ``lm.train``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from ..backend import Array, host, namespace, to_numpy
from ..lm.adamw import clip, global_norm, squares
from ..lm.corpus import Document
from ..lm.data import windows
from ..lm.device import batch_like
from ..lm.model import Config, features, features_bwd, features_fwd
from ..lm.shards import of_each, shards
from ..tree import add, tree_map
from .tops import Top

Gradient: TypeAlias = Callable[..., tuple[Array, Any]]

TRUNK = ("embedding", "trunk", "gain", "bias")  # in the order of features_bwd


def gradient_of(top: Top, *, carried: bool = False) -> Gradient:
    """Mean loss over weighted tokens and its gradient, as ``lm.model.loss_and_gradient``.

    ``carried``: the first half of every window is only read, and the second half starts from the
    state that is left, a constant. The trunk begins anew, as it does in reading.
    """

    def gradient(
        p: Any, tokens: Array, labels: Array, weights: Array, config: Config, total: float
    ) -> tuple[Array, Any]:
        xp, length = namespace(p.embedding), tokens.shape[1]
        first = length // 2 if carried else 0
        whole = float(xp.sum(weights[:, first:])) if carried else total
        share = weights / max(whole, 1.0)  # (B,T)

        def one(part: slice) -> tuple[Array, Any]:
            state, own = None, slice(first, length)
            if first:
                x, _ = features(p, tokens[part, :first], config)  # (S,T/2,D)
                (_, state), _ = top.fwd(p, x, labels[part, :first], weights[part, :first], None)
            (x, _), below = features_fwd(p, tokens[part, own], config)  # (S,T,D)
            (nll, _), res = top.fwd(p, x, labels[part, own], weights[part, own], state)  # (S,T)
            g_x, rest = top.bwd(share[part, own], res)  # (S,T,D)
            trunk = dict(zip(TRUNK, features_bwd(g_x, *below), strict=True))
            return xp.sum(share[part, own] * nll), p._replace(**trunk, **rest)

        parts = shards(tokens.shape[0], length * config.width, p.embedding)
        found = of_each(one, parts)
        loss, grads = next(found)
        for part_loss, part_grads in found:
            loss, grads = loss + part_loss, add(grads, part_grads)
        return loss, grads

    return gradient


def read_with(
    params: Any, config: Config, document: Document, window: int, *, top: Top, carried: bool
) -> Array:
    """Losses in nats (n-1,), the state reset in every window or ``carried``."""
    state, losses = None, []
    for batch in windows(document, window):
        tokens, labels, weights = batch_like(batch, params.embedding)  # (1,T)
        x, _ = features(params, tokens, config)  # (1,T,D)
        (nll, after), _ = top.fwd(params, x, labels, weights, state)  # (1,T)
        state = after if carried else None
        losses.append(to_numpy(nll)[0, :])
    return host.concatenate(losses)


def held(gradient: Gradient, names: tuple[str, ...]) -> Gradient:
    """The same, with no gradient of the step sizes, or the decay, of these ``names``."""

    def without(p: Any, *given: Any) -> tuple[Array, Any]:
        loss, g = gradient(p, *given)
        zeros = {n: 0 * getattr(g.eta, n) for n in names if n != "decay"}
        g = g._replace(eta=g.eta._replace(**zeros))
        return loss, g._replace(decay=0 * g.decay) if "decay" in names else g

    return without


def shared(gradient: Gradient) -> Gradient:
    """The same for one step size instead of six. Each of the six gets the sum of their gradients
    over the root of 6: together they have the norm that one parameter's would have, and Adam, which
    does not see a factor, moves them as one.
    """

    def summed(p: Any, *given: Any) -> tuple[Array, Any]:
        loss, g = gradient(p, *given)
        one = sum(g.eta) / len(g.eta) ** 0.5  # ()
        return loss, g._replace(eta=tree_map(lambda _: one, g.eta))

    return summed


def together(gradient: Gradient, limit: float) -> Gradient:
    """The same, all of it scaled to norm ``limit`` if its norm is above it. Training, which clips
    step sizes and decay apart, has nothing left to do then.
    """

    def less(p: Any, *given: Any) -> tuple[Array, Any]:
        loss, g = gradient(p, *given)
        return loss, clip(g, limit, global_norm(squares(g)))

    return less
