"""Unembedding and cross-entropy in one, in blocks of tokens: (T,V) logits are never formed at once.

With a large vocabulary the logits are by far the largest arrays of a model, and nobody needs all of
them at once. A loss needs one number per token, its gradient one row of width D. So a block of
tokens is taken through the head, forward and back, and its logits are dropped:

    l = log sum exp(n U + c) - (n U + c)[y]            p = softmax(n U + c)
    slope = dl / dn = (p - e) U^T                      dn = dnll slope

The loss of a token is one number, so its gradient is that number's cotangent times ``slope``, which
the forward pass takes along while it has the logits. The other passes form the logits of a block
once more. At most ``block`` tokens have logits at any time, in three to five arrays of (block,V).

The arithmetic is that of ``dense.py`` and ``cross_entropy.py``, and so are the bad cases: labels
may have any integer dtype, and what is not finite spoils its own token.
"""

from __future__ import annotations

from typing import NamedTuple

from ..backend import Array, device, namespace
from .common import check_integers, chunk_slices

BLOCK = 256  # tokens; 50 MB per array at 49152 words in float32


class BlockedHeadResidual(NamedTuple):
    n: Array  # (...,D)
    U: Array  # (D,V)
    c: Array | None  # (V,)
    labels: Array  # (...)
    slope: Array  # (...,D) dl / dn of every token
    block: int | None
    frozen: bool  # the head is a constant: no gradient of U and c is formed


def blocked_head_fwd(
    n: Array,
    U: Array,
    c: Array | None,
    labels: Array,
    block: int | None = BLOCK,
    frozen: bool = False,
) -> tuple[Array, BlockedHeadResidual]:
    """(...,D),(D,V),(V),(...)->(...)   l = cross-entropy of n U + c; ``None`` = no c   (C.4)

    ``block`` is how many tokens have logits at once, None = all. A table with one row per word,
    (V,D), is given as its transpose, which is a view. ``frozen`` says that U and c get no gradient.
    Raises TypeError if labels are not integers, ValueError if ``block`` is below 1.
    """
    xp = namespace(n, U, c)
    rows, words, parts = _blocks(n, labels, block)
    nll, slope = [], []
    for part in parts:
        p, hit, loss = _softmax(rows[part, :], U, c, words[part])  # (S,V), (S,V), (S)
        nll.append(loss)
        slope.append(xp.matmul(_minus_one(p, hit), xp.matrix_transpose(U)))  # (S,D)
    res = BlockedHeadResidual(
        n, U, c, labels, xp.reshape(xp.concat(slope, axis=0), n.shape), block, frozen
    )
    return xp.reshape(xp.concat(nll, axis=0), labels.shape), res  # (...)


def blocked_head_nll(
    n: Array, U: Array, c: Array | None, labels: Array, block: int | None = BLOCK
) -> Array:
    """(...,D),(D,V),(V),(...)->(...)   blocked_head_fwd for reading: the losses alone   (C.4)

    Raises as ``blocked_head_fwd``.
    """
    xp = namespace(n, U, c)
    rows, words, parts = _blocks(n, labels, block)
    nll = [_softmax(rows[part, :], U, c, words[part])[2] for part in parts]  # (S) each
    return xp.reshape(xp.concat(nll, axis=0), labels.shape)  # (...)


def blocked_head_dn(dnll: Array, res: BlockedHeadResidual) -> Array:
    """The input half of the adjoint, dn = dnll slope: no product with U is formed.   (C.5)"""
    namespace(dnll, res.slope)
    return dnll[..., None] * res.slope  # (...,D)


def blocked_head_bwd(
    dnll: Array, res: BlockedHeadResidual
) -> tuple[Array, Array | None, Array | None]:
    """Adjoint of blocked_head_fwd: dn, dU, dc; ``None`` for a frozen head or no c.   (C.5)"""
    xp = namespace(dnll, res.n)
    dn = blocked_head_dn(dnll, res)  # (...,D)
    if res.frozen:
        return dn, None, None
    dU = xp.zeros_like(res.U)  # (D,V)
    dc = None if res.c is None else xp.zeros_like(res.c)  # (V,)
    rows, words, parts = _blocks(res.n, res.labels, res.block)
    dloss = xp.reshape(dnll, words.shape)  # (N,)
    for part in parts:
        # forward: l = log sum exp(n U + c) - (n U + c)[y]
        p, hit, _ = _softmax(rows[part, :], res.U, res.c, words[part])  # (S,V)
        dlogits = _minus_one(p, hit)  # (S,V)
        dlogits *= dloss[part][:, None]
        # forward: logits = n U + c
        dU += xp.matmul(xp.matrix_transpose(rows[part, :]), dlogits)  # (D,V)
        if dc is not None:
            dc += xp.sum(dlogits, axis=0)  # (V,)
    return dn, dU, dc


def blocked_head_bwd_bwd(
    g_dn: Array, g_dU: Array | None, g_dc: Array | None, dnll: Array, res: BlockedHeadResidual
) -> tuple[Array, Array, Array | None, Array | None]:
    """Adjoint of blocked_head_bwd as a function of (dnll, n, U, c); ``None`` = zero.   (C.6)

    Returns g_dnll, g_n, g_U, g_c: the last two are None for a frozen head.
    """
    xp = namespace(g_dn, dnll)
    U, c, frozen = res.U, res.c, res.frozen
    rows, words, parts = _blocks(res.n, res.labels, res.block)
    dloss = xp.reshape(dnll, words.shape)  # (N,)
    g_rows = xp.reshape(g_dn, rows.shape)  # (N,D)
    g_dnll, g_n = [], []
    g_U = None if frozen else xp.zeros_like(U)  # (D,V)
    g_c = None if frozen or c is None else xp.zeros_like(c)  # (V,)
    for part in parts:
        n, dy, g = rows[part, :], dloss[part][:, None], g_rows[part, :]  # (S,D), (S,1), (S,D)
        p, hit, _ = _softmax(n, U, c, words[part])  # (S,V)
        # backward: dn = dlogits U^T
        g_dlogits = xp.matmul(g, U)  # (S,V)
        # backward: dU = n^T dlogits,  dc = sum dlogits
        if g_dU is not None:
            g_dlogits += xp.matmul(n, g_dU)
        if g_dc is not None:
            g_dlogits += g_dc
        # backward: dlogits = dnll (p - e)
        pulled = p * g_dlogits  # (S,V)
        mean = xp.sum(pulled, axis=-1, keepdims=True)  # (S,1)
        picked = xp.sum(xp.where(hit, g_dlogits, xp.zeros_like(pulled)), axis=-1)  # (S)
        g_dnll.append(mean[:, 0] - picked)
        # a small change e of the logits changes p by (diag(p) - p p^T) e, a symmetric matrix
        pulled -= p * mean
        pulled *= dy
        g_logits = pulled  # (S,V)
        # forward: logits = n U + c
        g_n_part = xp.matmul(g_logits, xp.matrix_transpose(U))  # (S,D)
        if g_U is not None:  # a frozen head has no dU either
            dlogits = _minus_one(p, hit)  # (S,V)
            dlogits *= dy
            if g_dU is not None:  # backward: dU = n^T dlogits
                g_n_part += xp.matmul(dlogits, xp.matrix_transpose(g_dU))
            # backward: dn = dlogits U^T;  forward: logits = n U + c
            g_U += xp.matmul(xp.matrix_transpose(g), dlogits)
            g_U += xp.matmul(xp.matrix_transpose(n), g_logits)
        if g_c is not None:
            g_c += xp.sum(g_logits, axis=0)
        g_n.append(g_n_part)
    g_n_all = xp.reshape(xp.concat(g_n, axis=0), res.n.shape)  # (...,D)
    return xp.reshape(xp.concat(g_dnll, axis=0), dnll.shape), g_n_all, g_U, g_c


def _blocks(n: Array, labels: Array, block: int | None) -> tuple[Array, Array, list[slice]]:
    """(...,D),(...)->(N,D),(N)   all leading axes as one, and its blocks"""
    check_integers(labels, "labels")
    count = 1
    for size in labels.shape:
        count *= size
    rows = namespace(n).reshape(n, (count, n.shape[-1]))  # (N,D)
    return rows, namespace(labels).reshape(labels, (count,)), chunk_slices(count, block)


def _softmax(n: Array, U: Array, c: Array | None, labels: Array) -> tuple[Array, Array, Array]:
    """(S,D),(D,V),(V),(S)->(S,V),(S,V),(S)   probabilities, one-hot labels as bool, losses"""
    xp = namespace(n, U, c)
    logits = xp.matmul(n, U)  # (S,V)
    if c is not None:
        logits += c
    logits -= xp.max(logits, axis=-1, keepdims=True)
    index = xp.arange(logits.shape[-1], dtype=xp.int64, device=device(labels))  # (V,)
    hit = index == xp.astype(labels, xp.int64)[:, None]  # (S,V)
    picked = xp.sum(xp.where(hit, logits, xp.zeros_like(logits)), axis=-1)  # (S)
    p = xp.exp(logits)  # (S,V)
    total = xp.sum(p, axis=-1, keepdims=True)  # (S,1)
    p /= total
    return p, hit, xp.log(total[:, 0]) - picked


def _minus_one(p: Array, hit: Array) -> Array:
    """(S,V),(S,V)->(S,V)   p - e, a new array"""
    return namespace(p).where(hit, p - 1, p)
