"""The unembedding as a fast matrix: a neural cache that is written by a gradient.

    logits_t = n_t U - eta sum_{s<t} (k_t . k_s) (p_s - y_s)

p_s - y_s is the gradient of token s with respect to its logits, so this is one stale gradient step
a token on the unembedding, with a key k in the place of n. The state (K,V) is carried in blocks of
tokens; (T,V) values are never there at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..backend import Array, device, namespace
from ..ops.common import chunk_slices
from ..ops.cross_entropy import cross_entropy_bwd, cross_entropy_fwd


def fast_unembedding(
    n: Array, k: Array, U: Array, labels: Array, etas: Sequence[float], block: int
) -> list[Array]:
    """(T,D),(T,K),(D,V),(T)->(T),...   losses for each step size; the read is linear in eta   (C.1)

    Raises ValueError if ``block`` is below 1.
    """
    xp = namespace(n, k, U)
    state = xp.zeros((k.shape[1], U.shape[1]), dtype=k.dtype, device=device(k))  # (K,V)
    losses: list[list[Array]] = [[] for _ in etas]
    for rows in chunk_slices(n.shape[0], block):
        keys, words = k[rows, :], labels[rows]  # (L,K), (L,)
        logits = xp.matmul(n[rows, :], U)  # (L,V)
        nll, res = cross_entropy_fwd(logits, words)  # (L,)
        values = cross_entropy_bwd(xp.ones_like(nll), res)  # (L,V) p - y
        i = xp.arange(keys.shape[0], device=device(k))  # (L,)
        scores = xp.matmul(keys, xp.matrix_transpose(keys))  # (L,L)
        scores = xp.where(i[None, :] < i[:, None], scores, xp.zeros_like(scores))
        moved = xp.matmul(keys, state) + xp.matmul(scores, values)  # (L,V)
        for found, eta in zip(losses, etas, strict=True):
            found.append(cross_entropy_fwd(logits - eta * moved, words)[0])  # (L,)
        state += xp.matmul(xp.matrix_transpose(keys), values)
    return [xp.concat(found) for found in losses]
