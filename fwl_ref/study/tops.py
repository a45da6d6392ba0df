"""What stands on the features, as a pair of functions: the fast weight block read otherwise, or
another memory. Training and reading are written once for all of them.

    fwd(p, x, labels, weights, state) -> (losses (B,T), state), residual
    bwd(dnll, residual)               -> g_x, the gradients of what is not the trunk, by name

``top_of`` finds the pair by the row's settings, which are plain data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from ..backend import Array, Tree, device, host, namespace, to_numpy
from ..fwl import (
    FastSettings,
    Memory,
    fast_block_bwd,
    fast_block_fwd,
    read_bwd,
    read_fwd,
    write_bwd,
    write_fwd,
)
from ..lm.adamw import clip, global_norm, squares
from ..lm.corpus import Document
from ..lm.data import windows
from ..lm.device import batch_like
from ..lm.model import (
    DIALECTS,
    Config,
    effective_step_sizes,
    effective_step_sizes_bwd,
    fast_settings,
    features,
    features_bwd,
    features_fwd,
)
from ..lm.shards import of_each, shards
from ..ops.cross_entropy import cross_entropy_bwd, cross_entropy_fwd
from ..optimizers import momentum_with_decay
from ..sequential import sequential_bwd, sequential_fwd
from ..slow_block import SlowParameters, slow_block_bwd, slow_block_fwd
from ..tree import add, tree_map, zeros_like
from .memory import memory_bwd, memory_fwd

Gradient: TypeAlias = Callable[..., tuple[Array, Any]]  # as ``lm.model.loss_and_gradient``


class Top(NamedTuple):
    """A pair of functions."""

    fwd: Callable[..., tuple[tuple[Array, Any], Any]]
    bwd: Callable[[Array, Any], tuple[Array, dict[str, Tree]]]


def top_of(config: Config, asked: dict[str, Any]) -> Top:
    """The top that a row asks for by name; the other entries are its options.

    Raises KeyError for another name.
    """
    options = {k: v for k, v in asked.items() if k != "name"}
    return TOPS[asked["name"]](config, **options)


def stale(config: Config) -> Top:
    """The fast weight block as ``lm.model`` reads it."""
    return _block(config, fast_settings(config), fast_block_fwd, fast_block_bwd)


def with_momentum(config: Config, mu: float, decay: float) -> Top:
    """Stale gradients, taken by SGD with momentum and a fixed decay; the model's own is 0."""
    settings = fast_settings(config)._replace(optimizer=momentum_with_decay(mu, decay))
    return _block(config, settings, fast_block_fwd, fast_block_bwd)


def sequential(config: Config, segment: int, within: bool) -> Top:
    """Gradients of a segment at the weights that earlier ones left, and training through that."""

    def fwd(*given: Any) -> tuple:
        (logits, state), res = sequential_fwd(*given, segment=segment, within=within)
        return (logits, None, state), res

    return _block(config, fast_settings(config), fwd, sequential_bwd)


def leaking(config: Config) -> Top:
    """The inclusive read: every token has learned from its own label. It is no prediction."""
    return _block(config, fast_settings(config), leaking_fwd, leaking_bwd)


def memory(config: Config, rule: str, heads: int) -> Top:
    """A memory of learned keys and values before the slow block; ``heads`` are those it has."""
    eps = DIALECTS[config.dialect]

    def fwd(p: Any, x: Array, labels: Array, _: Array, state: Array | None) -> tuple:
        (x, state), own = memory_fwd(x, labels, p.memory, state, rule=rule, chunk=config.chunk)
        (nll, _), block = slow_block_fwd(x, labels, p.block, eps)  # (B,T)
        return (nll, state), (own, block, p)

    def bwd(dnll: Array, res: tuple) -> tuple[Array, dict[str, Tree]]:
        own, block, p = res
        g_x, g_block = slow_block_bwd(dnll, block)  # (B,T,D)
        g_x, g_memory = memory_bwd(g_x, own)  # (B,T,D)
        zero = {"eta": zeros_like(p.eta), "decay": zeros_like(p.decay)}
        return g_x, {"block": g_block, "memory": g_memory, **zero}

    return Top(fwd, bwd)


TOPS: dict[str, Callable[..., Top]] = {
    "stale": stale,
    "momentum": with_momentum,
    "sequential": sequential,
    "leak": leaking,
    "memory": memory,
}


def _block(config: Config, settings: FastSettings, block_fwd: Callable, block_bwd: Callable) -> Top:
    """A block with the arguments and gradients of ``fast_block_fwd``."""

    def fwd(p: Any, x: Array, labels: Array, weights: Array, state: Any) -> tuple:
        eta = effective_step_sizes(p.eta, config.dialect)
        given = x, labels, weights, p.block, eta, p.decay, settings, state
        (logits, _, state), block = block_fwd(*given)  # (B,T,V)
        nll, loss = cross_entropy_fwd(logits, labels)  # (B,T)
        return (nll, state), (block, loss)

    def bwd(dnll: Array, res: tuple) -> tuple[Array, dict[str, Tree]]:
        block, loss = res
        g_x, g_block, g_eta, g_decay, _ = block_bwd(cross_entropy_bwd(dnll, loss), None, block)
        g_eta = effective_step_sizes_bwd(g_eta, config.dialect)
        return g_x, {"block": g_block, "eta": g_eta, "decay": g_decay}

    return Top(fwd, bwd)


# The leak: token t reads at place t + 1 of a sequence in which token s writes at place s
# --------------------------------------------------------------------------------------------------


def leaking_fwd(
    x: Array,
    labels: Array,
    weights: Array,
    slow: SlowParameters,
    eta: Any,
    decay: Array,
    settings: FastSettings,
    state: Any = None,
) -> tuple[tuple[Array, Array, Any], tuple]:
    """(B,T,I),(B,T),(B,T)->(B,T,V),(B,T,V),FastParameters   fast_block_fwd, read inclusively:
    p_t = p - eta sum_{s<=t} (1 - lambda)^{t-s} g_s. A state fades once more at the end of each call

    Raises as the parts of the block do.
    """
    (m, slow_logits), write = write_fwd(x, labels, weights, slow, settings)
    later = Memory(_later(m.h), *(_earlier(a) for a in m[1:]))  # (B,T+1,...)
    (logits, state), read = read_fwd(later, _later(x), slow, eta, decay, state, settings)
    return (logits[:, 1:, :], slow_logits, state), (write, read)


def leaking_bwd(g_logits: Array, g_state: Any, res: tuple) -> tuple:
    """Adjoint of leaking_fwd: g_x, g_slow, g_eta, g_decay, g_state_in."""
    write, read = res
    # forward: logits = read(later memory, later x)[1:]
    g_later = namespace(g_logits).concat([_nothing(g_logits), g_logits], axis=1)  # (B,T+1,V)
    g_m, g_x, g_read, g_eta, g_decay, g_state = read_bwd(g_later, g_state, read)
    g_m = Memory(g_m.h[:, 1:, :], *(a[:, :-1, :] for a in g_m[1:]))  # (B,T,...)
    # forward: m = write(x)
    g_x_write, g_write = write_bwd(g_m, write)
    pairs = zip(g_read, g_write, strict=True)
    g_slow = SlowParameters(*(r if w is None else w if r is None else r + w for r, w in pairs))
    return g_x[:, 1:, :] + g_x_write, g_slow, g_eta, g_decay, g_state


def _later(a: Array) -> Array:
    """(B,T,...)->(B,T+1,...)   the first token once more before it: what it reads is not used"""
    return namespace(a).concat([a[:, :1, :], a], axis=1)


def _earlier(a: Array) -> Array:
    """(B,T,...)->(B,T+1,...)   0 after the last token"""
    return namespace(a).concat([a, _nothing(a)], axis=1)


def _nothing(a: Array) -> Array:
    """(B,T,...)->(B,1,...)"""
    shape = (a.shape[0], 1, *a.shape[2:])
    return namespace(a).zeros(shape, dtype=a.dtype, device=device(a))


# Training and reading with any top
# --------------------------------------------------------------------------------------------------


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


TRUNK = ("embedding", "trunk", "gain", "bias")


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


def clipped(gradient: Gradient, limit: float) -> Gradient:
    """The same, with the gradients of step sizes and decay scaled to norm ``limit`` if theirs is
    above it: they take no part of the norm from the others then.
    """

    def less(p: Any, *given: Any) -> tuple[Array, Any]:
        loss, g = gradient(p, *given)
        eta, decay = clip((g.eta, g.decay), limit, global_norm(squares((g.eta, g.decay))))
        return loss, g._replace(eta=eta, decay=decay)

    return less
