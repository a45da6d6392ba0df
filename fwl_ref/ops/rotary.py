"""Rotary positions (Su et al., arXiv 2104.09864): channel pairs are rotated by an angle
proportional to the position.

A rotation is orthogonal, so its adjoint is the rotation by the opposite angle. Two conventions say
which channels are a pair: i and i + K/2 ("halves"), or 2i and 2i + 1 ("interleaved"). They differ
by a fixed order of the channels, which may as well be an order of the columns of the weights.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from ..backend import Array, device, namespace

PAIRS = ("halves", "interleaved")  # the partner of channel i: i + K/2, or its neighbour


class RotaryResidual(NamedTuple):
    cos: Array  # (T,K) of every channel's angle
    sin: Array  # (T,K) with the sign that its partner takes: -sin for a, sin for b
    pairs: str


def rotary_fwd(
    x: Array,
    start: int = 0,
    base: float = 10000.0,
    pairs: str = "halves",
    factors: tuple[float, ...] | None = None,
) -> tuple[Array, RotaryResidual]:
    """(...,T,K)->(...,T,K)   y_t = Rot(t + start) x_t   (P.1)

    Pair i turns by base^(-2i/K) per position, divided by its factor if there are ``factors``, as
    models have that were trained further on longer texts. Raises ValueError if the head width K is
    odd, if there are not K/2 factors, or if ``pairs`` is neither "halves" nor "interleaved".
    """
    if pairs not in PAIRS:
        raise ValueError(f"the pairs of rotary positions are {' or '.join(PAIRS)}, got {pairs!r}")
    xp = namespace(x)
    length, width = x.shape[-2], x.shape[-1]
    if width % 2:
        raise ValueError(
            f"rotary positions rotate channels in pairs: the head width must be even, got {width}"
        )
    half = xp.arange(width // 2, dtype=x.dtype, device=device(x))  # (K/2,)
    frequency = xp.exp(half * (-2.0 * math.log(base) / width))  # (K/2,) base^(-2i/K)
    if factors is not None:
        if len(factors) != width // 2:
            raise ValueError(
                f"each of the {width // 2} pairs must have one factor, got {len(factors)}"
            )
        frequency = frequency / xp.asarray(factors, dtype=x.dtype, device=device(x))  # (K/2,)
    position = xp.arange(start, start + length, dtype=x.dtype, device=device(x))  # (T,)
    angle = position[:, None] * frequency[None, :]  # (T,K/2)
    cos, sin = xp.cos(angle), xp.sin(angle)  # (T,K/2)
    res = RotaryResidual(_paired(cos, cos, pairs), _paired(-sin, sin, pairs), pairs)
    return rotated(x, res), res


def rotated(x: Array, res: RotaryResidual) -> Array:
    """(...,T,K)->(...,T,K)   rotary_fwd at the positions of another array: keys turn as queries do,
    by angles that are there   (P.1)
    """
    return _rotate(x, res.cos, res.sin, res.pairs)


def rotary_bwd(dy: Array, res: RotaryResidual) -> Array:
    """Adjoint of rotary_fwd: rotate back.   (P.2)"""
    return _rotate(dy, res.cos, -res.sin, res.pairs)


def _rotate(x: Array, cos: Array, sin: Array, pairs: str) -> Array:
    """(...,T,K),(T,K),(T,K)->(...,T,K)   (a, b) becomes (a cos - b sin, b cos + a sin)

    Written for whole rows, y = partner(x) (-sin, sin) + x (cos, cos), it takes a third of the time
    that it takes for a and b apart: rows of half a head are short.
    """
    namespace(x, cos)
    half = x.shape[-1] // 2
    halves = pairs == "halves"
    a, b = (x[..., :half], x[..., half:]) if halves else (x[..., 0::2], x[..., 1::2])  # (...,T,K/2)
    y = _paired(b, a, pairs)  # (...,T,K) every channel's partner
    y *= sin
    y += x * cos
    return y


def _paired(a: Array, b: Array, pairs: str) -> Array:
    """(...,T,K/2),(...,T,K/2)->(...,T,K)   the channels of a pair at their places"""
    xp = namespace(a, b)
    if pairs == "halves":
        return xp.concat([a, b], axis=-1)
    return xp.reshape(xp.stack([a, b], axis=-1), (*a.shape[:-1], 2 * a.shape[-1]))
