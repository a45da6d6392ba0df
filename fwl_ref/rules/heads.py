"""Heads around a rule: a head is a sequence of its own, so heads fold into the batch.

A rule knows sequences (B,T,K) and nothing else. Layers have H heads, each with its own queries,
keys, values, rates and memory, and none looks at another: exactly what sequences of a batch do. So
a layer of heads is a rule on B H sequences, and the functions here are what stands around it:

    fold, unfold                 (B,T,H,...) <-> (BH,T,...), states (B,H,K,E) <-> (BH,K,E)
    share, share_bwd             G heads of keys for H heads of values
    per_head, per_head_bwd       a parameter per head, (H,...), for every sequence: (BH,...)

``axis`` is where the heads stand: 2 in (B,T,H,...), 1 in (B,H,T,...) and in states. ``fold`` only
moves numbers, so its adjoint is ``unfold``, and the other way round.
"""

from __future__ import annotations

from ..backend import Array, namespace

GROUPINGS = ("neighbours", "strided")


def fold(a: Array, axis: int = 2) -> Array:
    """(B,T,H,...)->(BH,T,...)   sequence b H + h is head h of sequence b   (H.2)

    Raises ValueError unless ``axis`` is an axis after the first.
    """
    _check_axis(a, axis)
    xp, rest = namespace(a), [i for i in range(1, a.ndim) if i != axis]
    a = xp.permute_dims(a, (0, axis, *rest))  # (B,H,T,...)
    return xp.reshape(a, (a.shape[0] * a.shape[1], *a.shape[2:]))


def unfold(a: Array, heads: int, axis: int = 2) -> Array:
    """(BH,T,...)->(B,T,H,...)   the inverse of fold, and its adjoint   (H.2)

    Raises ValueError if the batch is no multiple of ``heads``, or ``axis`` cannot be.
    """
    if heads < 1 or a.shape[0] % heads:
        raise ValueError(f"{a.shape[0]} sequences cannot be those of {heads} heads: no multiple")
    xp = namespace(a)
    a = xp.reshape(a, (a.shape[0] // heads, heads, *a.shape[1:]))  # (B,H,T,...)
    _check_axis(a, axis)
    rest = range(2, a.ndim)
    return xp.permute_dims(a, (0, *rest[: axis - 1], 1, *rest[axis - 1 :]))


def share(a: Array, heads: int, axis: int = 2, grouping: str = "neighbours") -> Array:
    """(B,T,G,...)->(B,T,H,...)   every one of G heads for H / G others   (H.3)

    ``grouping`` "neighbours": heads 0, 1, .. H/G - 1 get head 0 of ``a``, the usual way; "strided":
    heads 0, G, 2 G, .. do. Raises ValueError for another word, or if H is no multiple of G.
    """
    _check_axis(a, axis)
    groups = a.shape[axis]
    at = _repeated(groups, heads, axis, grouping)
    xp = namespace(a)
    wide = xp.expand_dims(a, axis=at)  # (B,T,G,1,...), strided (B,T,1,G,...)
    wide = xp.broadcast_to(wide, (*wide.shape[:at], heads // groups, *wide.shape[at + 1 :]))
    return xp.reshape(wide, (*a.shape[:axis], heads, *a.shape[axis + 1 :]))


def share_bwd(g: Array, groups: int, axis: int = 2, grouping: str = "neighbours") -> Array:
    """Adjoint of share: a head that others share gathers their gradients.   (H.4)"""
    _check_axis(g, axis)
    heads = g.shape[axis]
    at = _repeated(groups, heads, axis, grouping)
    xp, each = namespace(g), heads // groups
    split = (groups, each) if at > axis else (each, groups)
    # forward: every head of a, H / G times
    return xp.sum(xp.reshape(g, (*g.shape[:axis], *split, *g.shape[axis + 1 :])), axis=at)


def per_head(p: Array, batch: int) -> Array:
    """(H,...)->(BH,...)   a parameter per head, for sequences folded by ``fold``   (H.5)"""
    xp = namespace(p)
    return xp.reshape(xp.broadcast_to(p, (batch, *p.shape)), (batch * p.shape[0], *p.shape[1:]))


def per_head_bwd(g: Array, heads: int) -> Array:
    """Adjoint of per_head: sequences add up.   (H.5)"""
    return namespace(g).sum(unfold(g, heads, axis=1), axis=0)


def _repeated(groups: int, heads: int, axis: int, grouping: str) -> int:
    """The axis along which heads are copies."""
    if grouping not in GROUPINGS:
        raise ValueError(f"grouping must be one of {', '.join(GROUPINGS)}, got {grouping!r}")
    if groups < 1 or heads % groups:
        raise ValueError(f"{groups} heads cannot be shared by {heads}: no multiple")
    return axis + 1 if grouping == "neighbours" else axis


def _check_axis(a: Array, axis: int) -> None:
    if not 1 <= axis < a.ndim:
        raise ValueError(
            f"heads stand on an axis from 1 to {a.ndim - 1} of {a.ndim} axes, got {axis}: 2 in "
            "(B,T,H,...), 1 in (B,H,T,...) and in states"
        )
