"""What several ops and the rules share: cutting a sequence into chunks, and products that keep to
the order of time.

A causal product ``scores v`` sums over the past: entry (t, s) of ``scores`` is 0 for s > t. That is
not enough to keep the future out, for 0 times infinity is not a number. So scores are masked by
``where``, never by a product with 0, and what is not finite is taken out of ``v`` and put back as
"not a number" exactly where the sum over the past would have met it: in its own column, at the
tokens after it. The recurrent forms, which see one token at a time, spoil the same entries.
"""

from __future__ import annotations

import math

from ..backend import Array, device, is_host, namespace, product_to, written_to

BLOCK = 128  # tokens: of a product with a triangle, the blocks that are all 0 are not formed


def chunk_slices(length: int, chunk: int | None) -> list[slice]:
    """Consecutive slices of at most ``chunk`` tokens (None = all); at least one, also if T = 0.

    Raises ValueError if ``chunk`` is below 1.
    """
    if chunk is None:
        return [slice(0, length)]
    if chunk < 1:
        raise ValueError(
            f"the chunk size must be at least 1 token (or None for one chunk), got {chunk}"
        )
    return [slice(start, min(start + chunk, length)) for start in range(0, max(length, 1), chunk)]


def check_integers(a: Array, what: str) -> None:
    """Raise TypeError unless ``a`` has an integer dtype: 2.7 would become 2 without a word."""
    if not namespace(a).isdtype(a.dtype, "integral"):
        raise TypeError(f"{what} must be integers, got dtype {a.dtype}")


def sum_to(x: Array, target: Array) -> Array:
    """Sum the leading axes of x (...,D) away if ``target`` is (D): the adjoint of broadcasting."""
    return x if x.ndim == target.ndim else token_sum(x)


def flat(x: Array) -> Array:
    """(...,D)->(N,D)   all tokens in a row"""
    return namespace(x).reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))


def token_sum(x: Array) -> Array:
    """(...,D)->(D,)   a product with ones takes half to two thirds of the time of ``xp.sum``"""
    xp, rows = namespace(x), flat(x)  # (N,D)
    return xp.matmul(xp.ones((rows.shape[0],), dtype=x.dtype, device=device(x)), rows)


def row_sum(x: Array) -> Array:
    """(...,D)->(...,1)   dot products with ones take at most two thirds of the time of ``xp.sum``

    A matrix product with ones would be faster still, but rounds a row as its neighbours allow: then
    a text read beside others is not the same text to the bit.
    """
    xp = namespace(x)
    ones = xp.ones((x.shape[-1],), dtype=x.dtype, device=device(x))  # (D,)
    return xp.vecdot(ones, x)[..., None]  # ones first: the first one is conjugated


def row_mean(x: Array) -> Array:
    """(...,D)->(...,1)"""
    return row_sum(x) / x.shape[-1]


def before(length: int, like: Array, own: bool = False) -> Array:
    """(L,L) bool   s < t: which tokens s token t sees; with ``own`` also itself, s <= t"""
    i = namespace(like).arange(length, device=device(like))  # (L,)
    return i[None, :] <= i[:, None] if own else i[None, :] < i[:, None]


def masked(scores: Array, mask: Array) -> Array:
    """scores where the mask says so, else 0, even where the score is not finite"""
    xp = namespace(scores)
    return xp.where(mask, scores, xp.zeros((), dtype=scores.dtype, device=device(scores)))


def causal_scores(q: Array, k: Array, own: bool = False) -> Array:
    """(B,L,K),(B,L,K)->(B,L,L)   q_t . k_s over the past s < t, else 0; with ``own``, s <= t"""
    xp = namespace(q, k)
    every = slice(None)
    scores = xp.empty((*q.shape[:2], k.shape[1]), dtype=q.dtype, device=device(q))  # (B,L,L)
    for part in chunk_slices(q.shape[1], BLOCK):
        past, here = (every, part, slice(0, part.stop)), (every, part, part)
        turned = xp.matrix_transpose(k[:, : part.stop, :])  # (B,K,C)
        scores = product_to(scores, past, q[:, part, :], turned)
        last = masked(scores[here], before(part.stop - part.start, q, own))  # (B,R,R)
        scores = written_to(scores, here, last)  # the rest of what is formed is all past
        scores = written_to(scores, (every, part, slice(part.stop, None)), 0)
    return scores


def causal_product(scores: Array, v: Array, own: bool = False) -> Array:
    """(B,L,L),(B,L,E)->(B,L,E)   sum_s scores_ts v_s over the past s < t; with ``own``, s <= t

    ``scores`` must be 0 everywhere else. What is not finite in v_s makes the same column of every
    later token "not a number" and leaves all other entries as they are, to the bit.
    """
    xp = namespace(scores, v)
    if plainly_finite(v):
        return _sum_of_past(scores, v)  # (B,L,E)
    finite, bad = screened(v)  # (B,L,E)
    t = xp.arange(v.shape[1], dtype=xp.int32, device=device(v))[:, None]  # (L,1)
    first = xp.min(xp.where(bad, t, v.shape[1]), axis=1, keepdims=True)  # (B,1,E)
    return xp.where(t >= first if own else t > first, xp.nan, _sum_of_past(scores, finite))


def anticausal_product(scores: Array, v: Array, own: bool = False) -> Array:
    """(B,L,L),(B,L,E)->(B,L,E)   scores^T v, the sum over the future that a backward pass takes

    ``scores`` as in ``causal_product``, and the same promise with time reversed.
    """
    xp = namespace(scores, v)
    if plainly_finite(v):
        return _sum_of_future(scores, v)  # (B,L,E)
    finite, bad = screened(v)  # (B,L,E)
    t = xp.arange(v.shape[1], dtype=xp.int32, device=device(v))[:, None]  # (L,1)
    last = xp.max(xp.where(bad, t, -1), axis=1, keepdims=True)  # (B,1,E)
    return xp.where(t <= last if own else t < last, xp.nan, _sum_of_future(scores, finite))


def in_a_row(parts: list[Array]) -> Array:
    """(B,S,...),...->(B,T,...)   consecutive parts of a sequence; one part is not copied"""
    return parts[0] if len(parts) == 1 else namespace(*parts).concat(parts, axis=1)


def _sum_of_past(scores: Array, v: Array) -> Array:
    """(B,L,L),(B,L,E)->(B,L,E)   scores v"""
    xp = namespace(scores, v)
    out, every = xp.empty_like(v), slice(None)
    for p in chunk_slices(v.shape[1], BLOCK):
        out = product_to(out, (every, p, every), scores[:, p, : p.stop], v[:, : p.stop, :])
    return out


def _sum_of_future(scores: Array, v: Array) -> Array:
    """(B,L,L),(B,L,E)->(B,L,E)   scores^T v"""
    xp = namespace(scores, v)
    turned, out, every = xp.matrix_transpose(scores), xp.empty_like(v), slice(None)
    for p in chunk_slices(v.shape[1], BLOCK):
        out = product_to(out, (every, p, every), turned[:, p, p.start :], v[:, p.start :, :])
    return out


def plainly_finite(v: Array) -> bool:
    """Whether nothing need be screened: nothing is there, or the host can see that all is finite.

    On a device the answer is no, because asking would wait for it.
    """
    xp = namespace(v)
    if 0 in v.shape:
        return True
    return is_host(v) and bool(xp.all(xp.isfinite(v)))


def screened(v: Array) -> tuple[Array, Array]:
    """v with 0 for every entry that is not finite, and where those entries are"""
    finite = namespace(v).isfinite(v)
    return masked(v, finite), ~finite
