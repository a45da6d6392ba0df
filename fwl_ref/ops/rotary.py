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
    cos: Array  # (T,K/2)
    sin: Array  # (T,K/2)


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
    res = RotaryResidual(xp.cos(angle), xp.sin(angle))
    return _rotate(x, res.cos, res.sin), res


def rotary_bwd(dy: Array, res: RotaryResidual) -> Array:
    """Adjoint of rotary_fwd: rotate back.   (P.2)"""
    return _rotate(dy, res.cos, -res.sin)


def _rotate(x: Array, cos: Array, sin: Array) -> Array:
    """(...,T,K),(T,K/2),(T,K/2)->(...,T,K)"""
    xp = namespace(x, cos)
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]  # (...,T,K/2)
    return xp.concat([a * cos - b * sin, a * sin + b * cos], axis=-1)
