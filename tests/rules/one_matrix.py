"""The rules whose state is one matrix S, (B,K,E): a new one is one new row of ``RULES``, and the laws
in test_laws.py run over it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fwl_ref.rules import decay, delta, delta_product, dplr, gated_delta, gated_delta_product, gla, kda, linear, longhorn
from tests.rules.table import Rule, Shape, memory, rates, unit_keys
from tests.strategies import generator


def _sums(n: Shape, seed: int) -> tuple:
    draw = generator(seed)
    return (draw(n.batch, n.length, n.width), unit_keys(draw, n.batch, n.length, n.width), draw(n.batch, n.length, n.values))


def _faded(n: Shape, seed: int) -> tuple:
    return *_sums(n, seed), rates(seed, 0.2, 1.0, n.batch, n.length)


def _faded_by_channel(n: Shape, seed: int) -> tuple:
    return *_sums(n, seed), rates(seed, 0.2, 1.0, n.batch, n.length, n.width)


def _stepped(n: Shape, seed: int) -> tuple:
    return *_sums(n, seed), rates(seed, 0.1, 1.5, n.batch, n.length)


def _faded_and_stepped(n: Shape, seed: int) -> tuple:
    return *_faded(n, seed), rates(seed + 1, 0.1, 1.5, n.batch, n.length)


def _faded_by_channel_and_stepped(n: Shape, seed: int) -> tuple:
    return *_faded_by_channel(n, seed), rates(seed + 1, 0.1, 1.5, n.batch, n.length)


def _faded_and_recalled(n: Shape, seed: int) -> tuple:
    draw = generator(seed + 7)
    a, b = (unit_keys(draw, n.batch, n.length, n.width) for _ in range(2))
    return *_faded_by_channel(n, seed), a, 0.5 * b


def _stepped_often(n: Shape, seed: int) -> tuple:
    draw, pairs = generator(seed), (n.batch, n.length, 2)
    return (draw(n.batch, n.length, n.width), unit_keys(draw, *pairs, n.width), draw(*pairs, n.values), rates(seed, 0.1, 1.5, *pairs))


def _faded_and_stepped_often(n: Shape, seed: int) -> tuple:
    *pairs, beta = _stepped_often(n, seed)
    return *pairs, rates(seed + 1, 0.2, 1.0, n.batch, n.length), beta


def _pair(n: Shape, seed: int) -> tuple:
    draw = generator(seed)
    return memory(n, seed), unit_keys(draw, n.batch, n.width), draw(n.batch, n.values)


def _pair_and_fade(n: Shape, seed: int) -> tuple:
    return *_pair(n, seed), rates(seed, 0.2, 1.0, n.batch)


def _pair_and_fades(n: Shape, seed: int) -> tuple:
    return *_pair(n, seed), rates(seed, 0.2, 1.0, n.batch, n.width)


def _two_pairs_and_fades(n: Shape, seed: int) -> tuple:
    return *_pair_and_fades(n, seed), *_pair(n, seed + 7)[1:]


def row(module: Any, tokens: Callable, inner: Callable) -> Rule:
    """A rule file whose state is a single matrix."""
    name = module.__name__.rsplit(".", 1)[-1]
    loss, gradient, rf, rb, cf, cb = (
        getattr(module, f"{name}_{suffix}")
        for suffix in ("loss", "gradient", "recurrent_fwd", "recurrent_bwd", "chunked_fwd", "chunked_bwd")
    )
    return Rule(name, loss, gradient, (rf, rb), (cf, cb), tokens, memory, inner)


RULES = [
    row(linear, _sums, _pair),
    row(decay, _faded, _pair_and_fade),
    row(gla, _faded_by_channel, _pair_and_fades),
    row(delta, _stepped, _pair),
    row(gated_delta, _faded_and_stepped, _pair),
    row(kda, _faded_by_channel_and_stepped, _pair),
    row(dplr, _faded_and_recalled, _two_pairs_and_fades),
    row(delta_product, _stepped_often, _pair),
    row(gated_delta_product, _faded_and_stepped_often, _pair),
    row(longhorn, _stepped, _pair),
]
