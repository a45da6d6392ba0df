"""Memory by formula, in bytes, said before the work starts; with what to lower if it is too much.
A test compares it with what NumPy allocates.

Per token and layer the transformer keeps 23 D numbers for its backward pass, 12 D of them in the
MLP; the fast block keeps about 8 F more, and one state per chunk and sequence. Nothing grows with
the square of T: attention keeps one number per query, and the probabilities of blocks that see
``FEW`` keys at most, and forms its scores for ``BLOCK`` queries at a time; linear attention forms
and keeps them for a chunk. Reading a document takes one window at a time, however long it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from ..ops.attention import BLOCK, FEW, blocks
from ..ops.linear_attention import chunk_alone
from .model import Config
from .shards import at_once


class Bytes(NamedTuple):
    """What a computation holds at its peak."""

    parameters: int  # in training also gradients, moments, successors: grows with width and layers
    activations: int  # residuals and temporaries: grows with batch x window

    @property
    def total(self) -> int:
        """All of it."""
        return self.parameters + self.activations


def count_parameters(config: Config) -> int:
    """Numbers in the parameters of a model: embedding, layers, final LayerNorm, fast block, step
    sizes and decay.
    """
    d, f, v = config.width, 4 * config.width, config.vocabulary
    layer = 2 * d + (3 * d * d + 3 * d) + (d * d + d) + 2 * d + (d * f + f) + (f * d + d)
    fast = d * f + f + f * d + d + 2 * d + d * v + v
    return v * d + config.layers * layer + 2 * d + fast + 6 + 1


def training(
    config: Config, batch: int, window: int, itemsize: int = 4, together: int | None = None
) -> Bytes:
    """A training step: a backward pass over everything the forward pass kept, then AdamW, which
    holds old and new values at once.

    ``together`` sequences of the batch are computed at once; None: one a thread, as on the host. On
    a device it is the whole batch.
    """
    if together is None:
        together = at_once(batch, window * config.width)
    f, v, p = 4 * config.width, config.vocabulary, count_parameters(config)
    chunk = min(chunk_alone(config.chunk or window, window, config.width, 4 * config.width), window)
    config = config._replace(chunk=chunk)
    # of one block of queries: scores, probabilities and their gradient
    attention = 3 * config.heads * min(BLOCK, window)
    # gradients of the memory, and the scores of a chunk
    block = 12 * f + 4 * v + 3 * chunk if config.fast else f + 2 * v
    temporaries = window * max(block, 3 * f + attention) * itemsize
    kept = (
        _kept(config, window, itemsize) + config.layers * _probabilities(config, window) * itemsize
    )
    backward = together * (kept + temporaries)
    if together < batch:  # each sequence's gradient, before it is added
        backward += together * p * itemsize
    # AdamW's temporaries come when those of the backward pass are gone
    step = max(0, 4 * p * itemsize - backward)
    return Bytes(4 * p * itemsize + step, backward)


def evaluation(config: Config, window: int, itemsize: int = 4) -> Bytes:
    """Reading a document with parameters that do not change: one window after the other, nothing of
    the last one kept but the state. Of a layer only its keys and values are kept.
    """
    d, f, v = config.width, 4 * config.width, config.vocabulary
    chunk = min(config.chunk or window, window)
    layer = 23 * d + 3 * config.heads * min(BLOCK, window)
    caches = 4 * d * config.layers  # keys, and the values with all that they are a view of
    block = 3 * f + 4 * d + 3 * v  # in the slow cross-entropy
    if config.fast:  # or at the end of the read, which keeps its queries and keys
        block = max(block, 9 * f + 14 * d + v + 3 * chunk)
    # of a fast model the states: one per chunk, the one that comes in and two on the way
    states = (-(-window // chunk) + 3) * (2 * d * f + f + 3 * d) if config.fast else 0
    held = (window * (caches + max(layer, block)) + states) * itemsize
    return Bytes(count_parameters(config) * itemsize, held)


def sentence(need: Bytes) -> str:
    """The statement: how much, and what it grows with."""
    parameters, activations = readable(need.parameters), readable(need.activations)
    return f"{readable(need.total)}: parameters {parameters}, activations {activations}"


def readable(count: float) -> str:
    """12345678 -> "12.3 MB" """
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


@contextmanager
def explained(
    what: str, need: Bytes, config: Config, window: int, batch: int = 1
) -> Iterator[None]:
    """Turn an out-of-memory error, of the host or of CuPy's pool, into one that says which size to
    lower.
    """
    try:
        yield
    except MemoryError as error:
        if need.parameters > need.activations:
            advice = f"lower the width (now {config.width}) or the layers (now {config.layers})"
        elif batch > 1:
            advice = f"lower the batch (now {batch}), or the window (now {window} tokens)"
        else:
            advice = f"lower the window (now {window} tokens)"
        raise MemoryError(
            f"out of memory: {what} takes about {sentence(need)}; {advice} ({error})"
        ) from None


def _probabilities(config: Config, window: int) -> int:
    """Numbers that attention of one layer keeps in training: those of blocks with few keys."""
    seen = blocks(window, window, config.attention_window)
    sizes = [(rows.stop - rows.start, cols.stop - cols.start) for rows, cols in seen]
    return config.heads * sum(r * c for r, c in sizes if c <= FEW)


def _kept(config: Config, window: int, itemsize: int) -> int:
    """Bytes that the forward pass of one sequence keeps for the backward pass."""
    d, f, v = config.width, 4 * config.width, config.vocabulary
    chunk = min(config.chunk or window, window)
    states = -(-window // chunk) * (2 * d * f + d + f)  # one per chunk, of both layers
    trunk = config.layers * 23 * d + 2 * d  # per token; see the fields of LayerResidual
    if config.fast:
        # last: the scores of both layers
        per_token = (trunk + 8 * f + 11 * d + 4 * v + 2 * chunk) * itemsize + 2 * v
        return window * per_token + states * itemsize
    # labels take one byte per entry of the vocabulary
    return window * ((trunk + 2 * f + 2 * d + 2 * v) * itemsize + v)
