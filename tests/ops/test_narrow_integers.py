"""Labels and tokens in integers that cannot count to the vocabulary's size: an index must not wrap."""

from __future__ import annotations

import numpy as np
import pytest

from fwl_ref.ops.blocked_head import blocked_head_bwd, blocked_head_bwd_bwd, blocked_head_fwd
from fwl_ref.ops.cross_entropy import cross_entropy_bwd, cross_entropy_bwd_bwd, cross_entropy_fwd
from fwl_ref.ops.embedding import embedding_bwd, embedding_fwd
from tests.strategies import generator
from tests.tolerances import assert_bitwise, assert_close

NARROW = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"]
sizes = pytest.mark.parametrize("vocabulary", [3, 128, 257, 700])
narrow = pytest.mark.parametrize("dtype", NARROW)


def some(dtype: str, vocabulary: int) -> np.ndarray:
    """(1,4) the smallest and the largest indices that dtype and vocabulary allow."""
    top = min(vocabulary - 1, int(np.iinfo(dtype).max))
    return np.asarray([[0, 1, top - 1, top]], dtype)


@sizes
@narrow
def test_cross_entropy_of_labels_in_any_integer_dtype(dtype: str, vocabulary: int) -> None:
    """l = log sum exp(logits) - logits[y] and dl = p - onehot(y), and the backward pass of that, with
    one entry per row that is hit.   (C.1), (C.2), (C.3)
    """
    labels, draw = some(dtype, vocabulary), generator(vocabulary)
    logits, dy, g = draw(1, 4, vocabulary), draw(1, 4), draw(1, 4, vocabulary)
    loss, res = cross_entropy_fwd(logits, labels)
    p = np.exp(logits) / np.sum(np.exp(logits), axis=-1, keepdims=True)
    onehot = np.eye(vocabulary)[labels.astype("int64")]
    assert_close(loss, -np.log(np.sum(p * onehot, axis=-1)))
    assert_close(cross_entropy_bwd(dy, res), dy[..., None] * (p - onehot))
    g_dy, _ = cross_entropy_bwd_bwd(g, dy, res)
    assert_close(g_dy, np.sum((p - onehot) * g, axis=-1))
    assert np.all(np.sum(res.hit, axis=-1) == 1)


@sizes
@narrow
def test_the_head_in_blocks_takes_labels_in_any_integer_dtype(dtype: str, vocabulary: int) -> None:
    """The same bits as with int64: losses, gradients and their gradients   (C.4), (C.5), (C.6)"""
    labels, draw = some(dtype, vocabulary), generator(vocabulary)
    n, U, c, dy, g = draw(1, 4, 3), draw(3, vocabulary), draw(vocabulary), draw(1, 4), draw(1, 4, 3)

    def everything(labels: np.ndarray) -> list[np.ndarray]:
        nll, res = blocked_head_fwd(n, U, c, labels, 3)
        return [nll, *blocked_head_bwd(dy, res), *blocked_head_bwd_bwd(g, None, None, dy, res)]

    for found, wanted in zip(everything(labels), everything(labels.astype("int64")), strict=True):
        assert_bitwise(found, wanted)


@sizes
@narrow
def test_embedding_of_tokens_in_any_integer_dtype(dtype: str, vocabulary: int) -> None:
    """y = table[token], and each dy goes to the row of its token and to no other.   (E.1), (E.2)"""
    tokens, draw = some(dtype, vocabulary), generator(vocabulary)
    table, dy = draw(vocabulary, 3), draw(1, 4, 3)
    y, res = embedding_fwd(table, tokens)
    assert_bitwise(y, table[tokens.astype("int64")])
    expected = np.zeros_like(table)
    np.add.at(expected, tokens.astype("int64"), dy)
    assert_close(embedding_bwd(dy, res), expected)


@pytest.mark.parametrize("dtype", [float, np.float32, bool])
def test_what_is_no_integer_is_refused(dtype: type) -> None:
    """2.7 would become 2, True the label 1."""
    index = np.ones((2, 3), dtype=dtype)
    with pytest.raises(TypeError, match="labels must be integers"):
        cross_entropy_fwd(np.ones((2, 3, 5)), index)
    with pytest.raises(TypeError, match="labels must be integers"):
        blocked_head_fwd(np.ones((2, 3, 5)), np.ones((5, 4)), None, index)
    with pytest.raises(TypeError, match="tokens must be integers"):
        embedding_fwd(np.ones((5, 4)), index)
