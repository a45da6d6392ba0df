"""What stands on the features, as a pair of functions: the fast weight block read otherwise, or
another memory. Training and reading are written once for all of them (``teach.py``).

    fwd(p, x, labels, weights, state) -> (losses (B,T), state), residual
    bwd(dnll, residual)               -> g_x, the gradients of what is not the trunk, by name

``top_of`` finds the pair by the row's settings, which are plain data.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from ..backend import Array, Tree
from ..fwl import FastSettings, fast_block_bwd, fast_block_fwd
from ..lm.model import (
    DIALECTS,
    Config,
    effective_step_sizes,
    effective_step_sizes_bwd,
    fast_settings,
)
from ..ops.cross_entropy import cross_entropy_bwd, cross_entropy_fwd
from ..optimizers import momentum_with_decay, sliding_window
from ..sequential import sequential_bwd, sequential_fwd
from ..slow_block import slow_block_bwd, slow_block_fwd
from ..tree import zeros_like
from .decays import apart_bwd, apart_fwd
from .leak import leaking_bwd, leaking_fwd
from .memory import memory_bwd, memory_fwd
from .scales import scaled_bwd, scaled_fwd


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


def with_window(config: Config, tokens: int) -> Top:
    """Stale gradients of the last ``tokens`` tokens alone; the model's own decay is 0. In one
    chunk, for the state at a chunk's end is all those gradients.
    """
    settings = fast_settings(config)._replace(optimizer=sliding_window(tokens), chunk=None)
    return _block(config, settings, fast_block_fwd, fast_block_bwd)


def with_decays(config: Config) -> Top:
    """Stale gradients that fade at a rate of their own in each layer (``decays.py``)."""
    below = stale(config)

    def fwd(p: Any, *given: Any) -> tuple:
        decays, own = apart_fwd(p.decay, p.own)  # (3,)
        out, res = below.fwd(p._replace(decay=decays), *given)
        return out, (res, own)

    def bwd(dnll: Array, res: tuple) -> tuple[Array, dict[str, Tree]]:
        block, own = res
        g_x, grads = below.bwd(dnll, block)  # (B,T,D)
        return g_x, grads | apart_bwd(grads["decay"], own)

    return Top(fwd, bwd)


def with_scales(config: Config) -> Top:
    """Stale gradients under a learned preconditioner (``scales.py``)."""
    settings = fast_settings(config)

    def fwd(p: Any, *given: Any) -> tuple:
        scaled = partial(scaled_fwd, own=p.own)
        return _block(config, settings, scaled, scaled_bwd).fwd(p, *given)

    return Top(fwd, _block(config, settings, scaled_fwd, scaled_bwd).bwd)


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
        (x, state), own = memory_fwd(x, labels, p.own, state, rule=rule, chunk=config.chunk)
        (nll, _), block = slow_block_fwd(x, labels, p.block, eps)  # (B,T)
        return (nll, state), (own, block, p)

    def bwd(dnll: Array, res: tuple) -> tuple[Array, dict[str, Tree]]:
        own, block, p = res
        g_x, g_block = slow_block_bwd(dnll, block)  # (B,T,D)
        g_x, g_memory = memory_bwd(g_x, own)  # (B,T,D)
        zero = {"eta": zeros_like(p.eta), "decay": zeros_like(p.decay)}
        return g_x, {"block": g_block, "own": g_memory, **zero}

    return Top(fwd, bwd)


TOPS: dict[str, Callable[..., Top]] = {
    "stale": stale,
    "momentum": with_momentum,
    "window": with_window,
    "decays": with_decays,
    "scales": with_scales,
    "sequential": sequential,
    "leak": leaking,
    "memory": memory,
}


def _block(config: Config, settings: FastSettings, block_fwd: Callable, block_bwd: Callable) -> Top:
    """A block with the arguments and gradients of ``fast_block_fwd``, or one more of its own."""

    def fwd(p: Any, x: Array, labels: Array, weights: Array, state: Any) -> tuple:
        eta = effective_step_sizes(p.eta, config.dialect)
        given = x, labels, weights, p.block, eta, p.decay, settings, state
        (logits, _, state), block = block_fwd(*given)  # (B,T,V)
        nll, loss = cross_entropy_fwd(logits, labels)  # (B,T)
        return (nll, state), (block, loss)

    def bwd(dnll: Array, res: tuple) -> tuple[Array, dict[str, Tree]]:
        block, loss = res
        given = cross_entropy_bwd(dnll, loss), None  # no loss on the last state
        g_x, g_block, g_eta, g_decay, _, *g_own = block_bwd(*given, block)
        g_eta = effective_step_sizes_bwd(g_eta, config.dialect)
        own = {"own": g_own[0]} if g_own else {}
        return g_x, {"block": g_block, "eta": g_eta, "decay": g_decay, **own}

    return Top(fwd, bwd)
