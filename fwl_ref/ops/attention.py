"""Causal softmax attention, one block of queries at a time.

Only the rows' log-sum-exp is kept; the backward pass recomputes the probabilities block by block,
so memory grows with T and not with T^2 (the idea of Dao et al., arXiv 2205.14135). A block that
sees few keys may keep its probabilities: the first few blocks of a text do, however long it is.
Keys may start earlier than queries (``P`` earlier keys of a cache), and an optional sliding window
lets token t see the last ``window`` keys only, its own included.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ..backend import Array, device, namespace, overwritten, written_to
from .common import chunk_slices, row_sum

BLOCK = 128  # queries: 128 x 512 float32 scores of a few heads fit in a second-level cache
FEW = 512  # keys; in training a plain step takes 3 % less, and a sequence keeps a fifth more


class AttentionResidual(NamedTuple):
    q: Array  # (B,H,T,K)
    k: Array  # (B,H,P+T,K)
    v: Array  # (B,H,P+T,K)
    out: Array  # (B,H,T,K) gives the row sums of p dp without forming them
    lse: Array  # (B,H,T,1) log-sum-exp of each row of scores
    window: int | None
    kept: tuple  # of each block p (B,H,R,C), or None: to be recomputed


def attention_fwd(
    q: Array, k: Array, v: Array, window: int | None = None, few: int = 0
) -> tuple[Array, AttentionResidual]:
    """(B,H,T,K),(B,H,S,K),(B,H,S,K)->(B,H,T,K)   o = softmax(q k^T / sqrt K) v, causal   (A.1)

    Blocks of queries that see at most ``few`` keys keep their probabilities for the way back.
    """
    xp = namespace(q, k, v)
    if q.shape[2] == 0:  # no rows, and with no keys either there is no largest score
        return q, AttentionResidual(q, k, v, q, q[..., :1], window, (None,))
    # laid out by tokens: to merge the heads then takes no copy
    shape = (q.shape[0], q.shape[2], q.shape[1], v.shape[3])
    out = xp.permute_dims(xp.empty(shape, dtype=q.dtype, device=device(q)), (0, 2, 1, 3))
    lses, kept = [], []
    for rows, cols in blocks(q.shape[2], k.shape[2], window):
        scores = _scores(q, k, rows, cols, window)  # (B,H,R,C)
        top = xp.max(scores, axis=-1, keepdims=True)  # (B,H,R,1)
        scores -= top
        p = overwritten(xp.exp, scores)  # (B,H,R,C)
        total = row_sum(p)  # (B,H,R,1)
        read = xp.matmul(p, v[:, :, cols, :]) / total  # (B,H,R,K)
        out = written_to(out, (..., rows, slice(None)), read)  # (B,H,T,K)
        lses.append(top + xp.log(total))  # (B,H,R,1)
        if p.shape[3] <= few:
            p /= total
            kept.append(p)  # (B,H,R,C)
        else:
            kept.append(None)
    return out, AttentionResidual(q, k, v, out, xp.concat(lses, axis=2), window, tuple(kept))


def attention_bwd(dout: Array, res: AttentionResidual) -> tuple[Array, Array, Array]:
    """Adjoint of attention_fwd.   (A.2)"""
    xp = namespace(dout, res.q)
    q, k, v, out, lse, window, kept = res
    scale = q.shape[-1] ** -0.5
    dqs, dk, dv = [], xp.zeros_like(k), xp.zeros_like(v)
    for (rows, cols), p in zip(blocks(q.shape[2], k.shape[2], window), kept, strict=True):
        # forward: p = exp(scores - lse)
        if p is None:
            p = _scores(q, k, rows, cols, window)  # (B,H,R,C)
            p -= lse[:, :, rows, :]
            p = overwritten(xp.exp, p)
        do = dout[:, :, rows, :]  # (B,H,R,K)
        # forward: out = p v
        read = (..., cols, slice(None))
        more = xp.matmul(xp.matrix_transpose(p), do)  # (B,H,C,K)
        dv = written_to(dv, read, more, add=True)  # (B,H,P+T,K)
        dp = xp.matmul(do, xp.matrix_transpose(v[:, :, cols, :]))  # (B,H,R,C)
        # forward: p = softmax(scores); Jacobian diag(p) - p p^T, symmetric; p . dp = out . dout
        dp -= row_sum(do * out[:, :, rows, :])
        dp *= p  # becomes dscores
        # forward: scores = q k^T / sqrt(K)
        dqs.append(xp.matmul(dp, k[:, :, cols, :]) * scale)  # (B,H,R,K)
        scaled = q[:, :, rows, :] * scale  # (B,H,R,K)
        more = xp.matmul(xp.matrix_transpose(dp), scaled)  # (B,H,C,K)
        dk = written_to(dk, read, more, add=True)  # (B,H,P+T,K)
    return xp.concat(dqs, axis=2), dk, dv


class GroupedAttentionResidual(NamedTuple):
    members: tuple  # of H/G AttentionResidual: member j has the query heads j, j + H/G, ...


def grouped_attention_fwd(
    q: Array, k: Array, v: Array, window: int | None = None
) -> tuple[Array, GroupedAttentionResidual]:
    """(B,H,T,K),(B,G,S,K),(B,G,S,K)->(B,H,T,K)   query head h reads key head h // (H/G)   (A.3)

    Grouped-query attention (Ainslie et al., arXiv 2305.13245): H/G attentions over the same keys
    and values, which are not copied. Raises ValueError if H is no multiple of G.
    """
    xp = namespace(q, k, v)
    size = _group_size(q.shape[1], k.shape[1])
    found = [attention_fwd(q[:, j::size, :, :], k, v, window) for j in range(size)]
    out = _ungrouped(xp.stack([o for o, _ in found], axis=2))  # (B,H,T,K)
    return out, GroupedAttentionResidual(tuple(res for _, res in found))


def grouped_attention_bwd(dout: Array, res: GroupedAttentionResidual) -> tuple[Array, Array, Array]:
    """Adjoint of grouped_attention_fwd: keys and values have gradients from each member of their
    group.   (A.4)
    """
    xp = namespace(dout)
    size = len(res.members)
    found = [attention_bwd(dout[:, j::size, :, :], res.members[j]) for j in range(size)]
    # forward: out = the members' heads in turn
    dq = _ungrouped(xp.stack([dq for dq, _, _ in found], axis=2))  # (B,H,T,K)
    # forward: every member reads the same k, v
    _, dk, dv = found[0]  # (B,G,S,K)
    for _, dk_j, dv_j in found[1:]:
        dk, dv = dk + dk_j, dv + dv_j  # (B,G,S,K)
    return dq, dk, dv


def _group_size(heads: int, groups: int) -> int:
    if groups < 1 or heads % groups:
        raise ValueError(
            f"each key-value head serves equally many query heads: {heads} query heads are no "
            f"multiple of {groups} key-value heads"
        )
    return heads // groups


def _ungrouped(x: Array) -> Array:
    """(B,G,H/G,T,K)->(B,H,T,K)"""
    batch, groups, size, *rest = x.shape
    return namespace(x).reshape(x, (batch, groups * size, *rest))


def blocks(length: int, keys: int, window: int | None) -> Iterator[tuple[slice, slice]]:
    """Query rows and the key columns that any of them may see: never those above the diagonal."""
    cached = keys - length
    for rows in chunk_slices(length, BLOCK):
        first = 0 if window is None else max(0, cached + rows.start - window + 1)
        yield rows, slice(first, cached + rows.stop)


def _scores(q: Array, k: Array, rows: slice, cols: slice, window: int | None) -> Array:
    """(B,H,R,C) q . k / sqrt(K), minus infinity where the query may not look"""
    xp = namespace(q, k)
    scaled = q[:, :, rows, :] * q.shape[-1] ** -0.5  # (B,H,R,K)
    scores = xp.matmul(scaled, xp.matrix_transpose(k[:, :, cols, :]))  # (B,H,R,C)
    cached = k.shape[2] - q.shape[2]
    # without a window all rows see what lies before the first of them: only the last columns differ
    edge = cols.start if window is not None else cached + rows.start
    t = xp.arange(cached + rows.start, cached + rows.stop, device=device(q))[:, None]  # (R,1)
    s = xp.arange(edge, cols.stop, device=device(q))[None, :]  # (1,E)
    seen = s <= t if window is None else (s <= t) & (s > t - window)  # (R,E)
    # one sum for all heads: a choice by where takes a copy of the scores, and one to put them back
    unseen = xp.where(seen, xp.zeros((), dtype=q.dtype, device=device(q)), -xp.inf)  # (R,E)
    last = (..., slice(edge - cols.start, None))
    return written_to(scores, last, unseen, add=True)  # (B,H,R,C)
