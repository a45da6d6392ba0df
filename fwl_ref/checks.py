"""Errors at the boundary: the invariant, the value found, the likely fix. Raised before any work is
done.

Values are inspected on the host only. Arrays on a device were checked when they were on the host,
so a training step there makes no hidden transfer.
"""

from __future__ import annotations

from typing import Any

from .backend import Array, host, is_host, library, namespace

NORMALIZERS = ("constant", "sequence", "batch")


def check_labels(labels: Array, vocabulary: int, what: str = "labels") -> None:
    """Integers in [0, vocabulary)."""
    if not is_host(labels):
        return
    if labels.dtype.kind not in "iu":
        raise TypeError(f"{what} must be integers, got dtype {labels.dtype}")
    if labels.size and (labels.min() < 0 or labels.max() >= vocabulary):
        bad = host.argwhere((labels < 0) | (labels >= vocabulary))[0]
        raise ValueError(
            f"{what} must lie in [0, {vocabulary}), got {labels[tuple(bad)]} at index {tuple(int(i) for i in bad)}: "
            "pad with any valid label and weight 0"
        )


def check_weights(weights: Array) -> None:
    """Finite and not negative."""
    if not is_host(weights) or not weights.size:
        return
    if not host.all(host.isfinite(weights)) or weights.min() < 0:
        bad = host.argwhere(~(host.isfinite(weights) & (weights >= 0)))[0]
        raise ValueError(
            f"weights must be finite and >= 0, got {weights[tuple(bad)]} at index {tuple(int(i) for i in bad)}: "
            "a weight says how strongly a token is written, 0 leaves it out"
        )


def check_block_data(x: Array, labels: Array, weights: Array, slow: Any) -> None:
    """Features, labels and weights of whole sequences, for a block with these parameters: one
    library, shapes that fit, values in range.
    """
    namespace(x, weights, *slow)
    library(x, labels)
    if x.ndim != 3:
        raise ValueError(f"features must have shape (B,T,D), got {tuple(x.shape)}")
    check_like(labels, x.shape[:2], "labels", "(B,T)")
    check_like(weights, x.shape[:2], "weights", "(B,T)")
    if x.shape[2] != slow.W1.shape[0]:
        raise ValueError(
            f"features have width {x.shape[2]} but W1 has shape {tuple(slow.W1.shape)}: the first axis of W1 must match"
        )
    check_labels(labels, slow.U.shape[1])
    check_weights(weights)


def check_like(array: Array, shape: tuple, what: str, letters: str) -> None:
    """One entry per token, neither broadcast nor cut."""
    if tuple(array.shape) != tuple(shape):
        raise ValueError(
            f"{what} must have shape {letters} = {tuple(shape)}, one per token of each sequence, got {tuple(array.shape)}"
        )


def check_fast_block(
    x: Array,
    labels: Array,
    weights: Array,
    slow: Any,
    eta: Any,
    decay: Array,
    settings: Any,
    state: Any,
) -> None:
    """Everything fast_block_fwd relies on."""
    check_settings(settings)
    check_decay(decay, settings)
    namespace(x, decay, *eta, *(getattr(state, "slots", state) or ()))
    check_block_data(x, labels, weights, slow)
    check_divisor(settings.optimizer, slow)
    if settings.eps == 0 and x.shape[2] < 2:
        raise ValueError(
            "LayerNorm without epsilon needs a width of at least 2, got 1: its variance is 0; set eps > 0"
        )
    if state is not None:
        check_streamable(settings)
        check_state(state, x.shape[0], slow, settings.optimizer)


def check_state(state: Any, batch: int, slow: Any, optimizer: Any = None) -> None:
    """One entry per sequence: a state of one sequence is not broadcast to others. An optimizer's
    state holds its own slots.
    """
    if (optimizer is None) == hasattr(state, "slots"):
        wanted, found = (
            ("accumulated gradients", "slots")
            if optimizer is None
            else (f"slots of {optimizer.name}", "accumulated gradients")
        )
        raise ValueError(
            f"the state must hold {wanted}, got {found}: carry a state only between calls with the same optimizer"
        )
    held, per = (state, "sequence") if optimizer is None else (state.slots, "sequence and slot")
    lead = (batch,) if optimizer is None else (batch, len(optimizer.write(0)))
    expected = (*lead, *slow.W1.shape)
    if tuple(held.W1.shape) != expected:
        raise ValueError(
            f"the state holds {tuple(held.W1.shape)} for W1, expected one matrix per {per}, {expected}"
        )


def check_decay(decay: Array, settings: Any) -> None:
    """The learned decay is an optimizer of its own. Where it is not read, it must be 0."""
    if settings.optimizer is not None and is_host(decay) and decay != 0:
        raise ValueError(
            f"with an optimizer ({settings.optimizer.name}) the learned decay must be 0, got {decay}: give the decay to the optimizer, "
            "as in optimizers.decay or momentum_with_decay"
        )


def check_settings(settings: Any) -> None:
    """Normalizer, constant, epsilon, chunk, optimizer."""
    if settings.normalizer not in NORMALIZERS:
        raise ValueError(
            f"the normalizer must be one of {', '.join(NORMALIZERS)}, got {settings.normalizer!r}"
        )
    if not (host.isfinite(settings.constant) and settings.constant > 0):
        raise ValueError(f"the constant normalizer must be finite and > 0, got {settings.constant}")
    if not (host.isfinite(settings.eps) and settings.eps >= 0):
        raise ValueError(f"LayerNorm's eps must be finite and >= 0, got {settings.eps}")
    if settings.chunk is not None and settings.chunk < 1:
        raise ValueError(
            f"the chunk size must be at least 1 token (or None for one chunk), got {settings.chunk}"
        )
    if settings.optimizer is not None:
        check_optimizer(settings.optimizer)


def check_optimizer(optimizer: Any) -> None:
    """keep is a square matrix with a row for every slot that is written and read."""
    keep, write, read = optimizer.keep(0), optimizer.write(0), optimizer.read(0)
    n = len(write)
    if not n or len(read) != n or [len(row) for row in keep] != [n] * n:
        shape = f"({len(keep)},{len(keep[0]) if len(keep) else 0})"
        raise ValueError(
            f"an optimizer with N slots needs keep (N,N), write (N,) and read (N,), got {shape}, ({n},) and ({len(read)},) for "
            f"{optimizer.name}"
        )


def check_divisor(optimizer: Any, slow: Any) -> None:
    """A preconditioner has one entry per entry of the fast parameters, and their library and dtype."""
    if optimizer is None or optimizer.divisor is None:
        return
    namespace(*slow, *optimizer.divisor)
    for name, divisor in zip(optimizer.divisor._fields, optimizer.divisor, strict=True):
        if tuple(divisor.shape) != tuple(getattr(slow, name).shape):
            raise ValueError(
                f"the divisor of {name} must have the shape of {name}, {tuple(getattr(slow, name).shape)}, got {divisor.shape}"
            )


def check_segment(segment: int) -> None:
    """Tokens per update of dynamic evaluation."""
    if segment < 1:
        raise ValueError(f"a segment must hold at least 1 token, got {segment}")


def check_streamable(settings: Any) -> None:
    """A carried state needs a normalizer that does not look at the future."""
    if settings.normalizer != "constant":
        raise ValueError(
            f'streaming needs the constant normalizer, got "{settings.normalizer}": with it, weights of later tokens would rescale '
            'earlier updates; use normalizer="constant"'
        )
