"""The unembedding of a model whose table of tokens has one row per token, (V,D): the layout of an
embedding, so that both may be one array ("tied", Press and Wolf, arXiv 1608.05859).
"""

from __future__ import annotations

from ..backend import Array, namespace
from ..ops.dense import DenseResidual, dense_bwd, dense_fwd


def unembed_fwd(x: Array, table: Array) -> tuple[Array, DenseResidual]:
    """(...,D),(V,D)->(...,V)   logits = x table^T   (M.8)"""
    return dense_fwd(x, namespace(x, table).matrix_transpose(table), None)


def unembed_bwd(dlogits: Array, res: DenseResidual) -> tuple[Array, Array]:
    """Adjoint of unembed_fwd.   (M.9)"""
    dx, dw, _ = dense_bwd(dlogits, res)  # (...,D), (D,V)
    return dx, namespace(dw).matrix_transpose(dw)
