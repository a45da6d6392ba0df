"""Token embedding. The adjoint of a gather is a scatter-add, written as a one-hot product:
deterministic on every backend.
"""

from __future__ import annotations

from typing import NamedTuple

from ..backend import Array, as_index, device, namespace
from .common import check_integers


class EmbeddingResidual(NamedTuple):
    tokens: Array  # (...) int64
    vocabulary: int


def embedding_fwd(table: Array, tokens: Array) -> tuple[Array, EmbeddingResidual]:
    """(V,D),(...)->(...,D)   y = table[token]   (E.1)

    Tokens may have any integer dtype, also one that cannot count to V. Raises TypeError for others.
    """
    check_integers(tokens, "tokens")
    xp = namespace(table)
    tokens = xp.astype(tokens, xp.int64)  # (...)
    y = xp.take(table, as_index(xp.reshape(tokens, (-1,))), axis=0)  # (N,D)
    return xp.reshape(y, (*tokens.shape, table.shape[1])), EmbeddingResidual(tokens, table.shape[0])


def embedding_bwd(dy: Array, res: EmbeddingResidual) -> Array:
    """Adjoint of embedding_fwd with respect to the table.   (E.2)"""
    xp = namespace(dy)
    # forward: y = onehot(token) table
    index = xp.arange(res.vocabulary, dtype=xp.int64, device=device(res.tokens))  # (V,)
    onehot = index[:, None] == xp.reshape(res.tokens, (1, -1))  # (V,N)
    rows = xp.reshape(dy, (onehot.shape[1], dy.shape[-1]))  # (N,D)
    return xp.matmul(xp.astype(onehot, dy.dtype), rows)  # (V,D)
