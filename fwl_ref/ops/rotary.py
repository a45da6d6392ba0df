"""Rotary positions (Su et al., arXiv 2104.09864): channel pairs are rotated by an angle
proportional to the position.

A rotation is orthogonal, so its adjoint is the rotation by the opposite angle. Channel i is paired
with channel i + K/2.
"""

from __future__ import annotations

from typing import NamedTuple

from ..backend import Array, namespace

_LOG_BASE = 9.210340371976184  # log 10000


class RotaryResidual(NamedTuple):
    cos: Array  # (T,K) of each channel's angle
    sin: Array  # (T,K) with the sign that the other channel of the pair enters with


def rotary_fwd(x: Array, start: int = 0) -> tuple[Array, RotaryResidual]:
    """(...,T,K)->(...,T,K)   y_t = Rot(t + start) x_t   (P.1)

    Raises ValueError if the head width K is odd: channels are rotated in pairs.
    """
    xp = namespace(x)
    length, width = x.shape[-2], x.shape[-1]
    if width % 2:
        raise ValueError(
            f"rotary positions rotate channels in pairs: the head width must be even, got {width}"
        )
    half = xp.arange(width // 2, dtype=x.dtype, device=x.device)  # (K/2,)
    frequency = xp.exp(half * (-2.0 * _LOG_BASE / width))  # (K/2,) 10000^(-2i/K)
    position = xp.arange(start, start + length, dtype=x.dtype, device=x.device)  # (T,)
    angle = position[:, None] * frequency[None, :]  # (T,K/2)
    cos, sin = xp.cos(angle), xp.sin(angle)  # (T,K/2)
    res = RotaryResidual(xp.concat([cos, cos], axis=-1), xp.concat([-sin, sin], axis=-1))
    return _rotate(x, res.cos, res.sin), res


def rotary_bwd(dy: Array, res: RotaryResidual) -> Array:
    """Adjoint of rotary_fwd: rotate back.   (P.2)"""
    return _rotate(dy, res.cos, -res.sin)


def _rotate(x: Array, cos: Array, sin: Array) -> Array:
    """(...,T,K),(T,K),(T,K)->(...,T,K)   [a cos - b sin, a sin + b cos] for x = [a, b]"""
    y = namespace(x, cos).roll(x, x.shape[-1] // 2, axis=-1)  # (...,T,K) [b, a]
    y *= sin
    y += x * cos
    return y
