"""Multiply-adds by formula, per token, for every way of reading a document. A test counts the real products and compares.

Only matrix products count; they are what grows with the model. Per dense layer (d_in, d_out) fast weights cost a slow product, an
input gradient (not for the first layer: the slow gradient stops at the features), a fast product (the first layer's is the slow one), a
state read, a state write, and the work inside a chunk. Dynamic evaluation costs forward and both halves of backward for every layer:
three forwards.
"""

from __future__ import annotations

from .model import Config
from .ops.attention import BLOCK


def attention_keys(config: Config, length: int, past: int = 0) -> float:
    """Mean number of keys that a query's block of scores is formed for, on ``length`` queries after ``past`` cached keys."""
    total = 0
    for start in range(0, length, BLOCK):
        stop = min(start + BLOCK, length)
        window = config.attention_window
        first = 0 if window is None else max(0, past + start - window + 1)
        total += (stop - start) * (past + stop - first)
    return total / length


def trunk(config: Config, length: int, past: int = 0) -> float:
    """Embedding to features, forward."""
    d = config.width
    return config.layers * (12 * d * d + 2 * attention_keys(config, length, past) * d)


def static(config: Config, length: int) -> float:
    """The plain model, forward."""
    d, f, v = config.width, 4 * config.width, config.vocabulary
    return trunk(config, length) + 2 * d * f + d * v


def fast(config: Config, length: int, carried: bool = False) -> float:
    """The fast weight model: write and read. The first chunk of a window has no state to read unless one is carried in."""
    d, f, v = config.width, 4 * config.width, config.vocabulary
    chunk = min(config.chunk or length, length)
    spans = [(s, min(s + chunk, length)) for s in range(0, length, chunk)]
    local = sum((b - a) ** 2 for a, b in spans) / length  # pairs formed per token inside its chunk
    reads = 1.0 if carried else 1 - spans[0][1] / length  # share of tokens that read a state
    layers = [(d + 1, f), (f + 1, d), (1, 2 * d)]  # with the constant channel of the bias; cumulative sums of gain and bias
    memory = sum(local * (k + e) + (1 + reads) * k * e for k, e in layers)
    slow_products = d * f + f * d + d * v  # sweep 1
    input_gradients = d * v + d * f  # sweep 2: unembedding, second layer
    fast_products = f * d + d * v  # sweep 3: second layer, unembedding
    return trunk(config, length) + slow_products + input_gradients + fast_products + memory


def dynamic(config: Config, length: int, segment: int) -> float:
    """Dynamic evaluation of the whole model: forward and backward of each segment, the embedding's gradient as a one-hot product."""
    d, f, v = config.width, 4 * config.width, config.vocabulary
    total = 0.0
    for start in range(0, length, segment):
        n = min(segment, length - start)
        keys = attention_keys(config, n, start)
        dense = config.layers * 12 * d * d + 2 * d * f + d * v
        total += n * (3 * dense + config.layers * 7 * keys * d + v * d)  # attention: 2 products forward, 5 backward
    return total / length


def dynamic_block(config: Config, length: int) -> float:
    """Dynamic evaluation of the block alone: the trunk forward, the block forward and backward."""
    d, f, v = config.width, 4 * config.width, config.vocabulary
    return trunk(config, length) + 3 * (2 * d * f + d * v)
