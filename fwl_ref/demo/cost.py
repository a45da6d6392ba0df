"""Multiply-adds by formula, for every way of reading one window of ``length`` bytes.

They are exact integers, equal to a count of the real products. A document costs the sum over its
windows; a neural cache knows no windows and is counted over the document. Only matrix products are
counted; they are what grows with the square of the width. Left out: sums, elementwise work, and the
update of dynamic evaluation, a few operations per parameter and segment (dozens with the RMS rule).

Per token and dense layer (d_in, d_out) fast weights cost a slow product, an input gradient (not for
the first layer: the slow gradient stops at the features), a fast product (the first layer's is the
slow one), a state read, a state write, and the work inside a chunk. Dynamic evaluation costs
forward and both halves of backward for every layer: three forwards.
"""

from __future__ import annotations

from ..lm import neural_cache
from ..lm.model import Config
from ..ops.attention import BLOCK
from ..ops.common import BLOCK as TRIANGLE
from ..ops.common import chunk_slices
from ..ops.linear_attention import SHORT, chunk_alone


def attention_pairs(config: Config, length: int, cached: int = 0) -> int:
    """Pairs of query and key for which a score is formed, on ``length`` queries after
    ``cached`` keys: whole blocks, masked or not.
    """
    total, window = 0, config.attention_window
    for start in range(0, length, BLOCK):
        stop = min(start + BLOCK, length)
        first = 0 if window is None else max(0, cached + start - window + 1)
        total += (stop - start) * (cached + stop - first)
    return total


def chunk_pairs(length: int) -> int:
    """Pairs of tokens of one chunk of linear attention: whole blocks, masked or not."""
    return sum((p.stop - p.start) * p.stop for p in chunk_slices(length, TRIANGLE))


def trunk(config: Config, length: int) -> int:
    """Embedding to features, forward: a layer's four dense products, and two products over the
    pairs of attention.
    """
    d = config.width
    return config.layers * (12 * d * d * length + 2 * d * attention_pairs(config, length))


def block(config: Config) -> int:
    """The slow block, forward, per token."""
    d, f, v = config.width, 4 * config.width, config.vocabulary
    return d * f + f * d + d * v


def static(config: Config, length: int) -> int:
    """The plain model, forward."""
    return trunk(config, length) + length * block(config)


def fast(config: Config, length: int, carried: bool = False, alone: bool = False) -> int:
    """The fast weight model: write and read. The first chunk of a window has no state to read
    unless one is ``carried`` in; the last leaves none if the window is ``alone``, and chunks are
    larger.
    """
    d, f, v = config.width, 4 * config.width, config.vocabulary
    # both layers with the constant channel of the bias
    memory = sum(
        past(config.chunk or length, length, k, e, carried, alone)
        for k, e in [(d + 1, f), (f + 1, d)]
    )
    memory += past_sums(length, 2 * d)  # of gain and bias
    products = block(config)  # sweep 1
    products += v * d + d * f  # sweep 2, input gradients: unembedding, second layer
    products += f * d + d * v  # sweep 3, fast: second layer, unembedding
    return trunk(config, length) + length * products + memory


def past(chunk: int, length: int, keys: int, values: int, carried: bool, alone: bool) -> int:
    """Linear attention in chunks: pairs of tokens, states read and states written."""
    chunk = min(chunk_alone(chunk, length, keys, values) if alone else chunk, length)
    sizes = [min(chunk, length - start) for start in range(0, length, chunk)]
    pairs = sum(chunk_pairs(n) for n in sizes)
    reads = length if carried else length - sizes[0]  # tokens that read a state
    writes = length - sizes[-1] if alone else length
    return pairs * (keys + values) + (writes + reads) * keys * values


def past_sums(length: int, values: int) -> int:
    """Sums over the past without queries: pairs of tokens, and states that cost no product."""
    return values * sum(chunk_pairs(p.stop - p.start) for p in chunk_slices(length, SHORT))


def cache(config: Config, length: int) -> int:
    """The neural cache on a whole document, beside the model: every byte against all before it,
    in blocks of bytes, masked or not. It grows with the square of the length.
    """
    starts = range(0, length, neural_cache.BLOCK)
    ends = [min(start + neural_cache.BLOCK, length) for start in starts]
    return config.width * sum((end - start) * end for start, end in zip(starts, ends, strict=True))


def dynamic(config: Config, length: int, segment: int) -> int:
    """Dynamic evaluation of the whole model: forward and backward of each segment, the embedding's
    gradient as a one-hot product.
    """
    d, v = config.width, config.vocabulary
    dense = config.layers * 12 * d * d + block(config)
    sizes = [min(segment, length - start) for start in range(0, length, segment)]
    pairs = sum(attention_pairs(config, n, i * segment) for i, n in enumerate(sizes))
    attention = config.layers * 7 * d * pairs  # 2 products forward, 5 backward
    return length * (3 * dense + v * d) + attention


def dynamic_block(config: Config, length: int) -> int:
    """Dynamic evaluation of the block alone: the trunk forward, the block forward and backward."""
    return trunk(config, length) + 3 * length * block(config)
