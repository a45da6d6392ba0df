"""Errors at the boundary: the invariant, the value found, the likely fix.

They are raised before any work is done. Shapes must match exactly, for nothing is broadcast. Values
are inspected on the host only. Arrays on a device were checked when they were on the host, so a
training step there makes no hidden transfer.
"""

from __future__ import annotations

from typing import Any

from .backend import Array, Tree, host, is_host, library, namespace
from .tree import leaves, named_leaves

NORMALIZERS = ("constant", "sequence", "batch")
NORMS = ("layer", "rms")

# axes of the parameters of a block, in the order of SlowParameters; the first six are fast
BLOCK_AXES = ("I,F", "F", "F,D", "D", "D", "D", "D,V", "V")
EDGE = 0.01  # a difference quotient at a decay of 0 needs decays just below it


def check_labels(labels: Array, vocabulary: int, what: str = "labels") -> None:
    """Integers in [0, vocabulary)."""
    if not is_host(labels):
        return
    if labels.dtype.kind not in "iu":
        raise TypeError(f"{what} must be integers, got dtype {labels.dtype}")
    if labels.size and (labels.min() < 0 or labels.max() >= vocabulary):
        bad = _first(~((labels >= 0) & (labels < vocabulary)))
        raise ValueError(
            f"{what} must lie in [0, {vocabulary}), got {labels[bad]} at index {bad}: "
            "pad with any valid label and weight 0"
        )


def check_weights(weights: Array) -> None:
    """Finite and not negative."""
    if not is_host(weights) or not weights.size:
        return
    good = host.isfinite(weights) & (weights >= 0)
    if not host.all(good):
        bad = _first(~good)
        raise ValueError(
            f"weights must be finite and >= 0, got {weights[bad]} at index {bad}: "
            "a weight says how strongly a token is written, 0 leaves it out"
        )


def check_like(array: Array, shape: tuple, what: str, letters: str) -> None:
    """One entry per token, neither broadcast nor cut."""
    if tuple(array.shape) != tuple(shape):
        raise ValueError(
            f"{what} must have shape {letters} = {tuple(shape)}, one per token of each sequence, "
            f"got {tuple(array.shape)}"
        )


def check_shapes(arrays: Tree, axes: Tree, sizes: dict[str, int], prefix: str = "") -> None:
    """Every array of a tree has the axes ("D,F") that the same place of ``axes`` says."""
    wanted, found = list(named_leaves(axes)), list(named_leaves(arrays))
    if [name for name, _ in wanted] != [name for name, _ in found]:
        odd = {name for name, _ in wanted} ^ {name for name, _ in found}
        raise ValueError(
            f"{prefix}parameters must be {', '.join(n for n, _ in wanted)}; "
            f"missing or too many: {', '.join(sorted(odd))}"
        )
    for (name, letters), (_, array) in zip(wanted, found, strict=True):
        shape = tuple(sizes[letter] for letter in letters.split(",") if letter)
        check_is_array(array, prefix + name)
        if tuple(array.shape) != shape:
            raise ValueError(
                f"{prefix}{name} must have shape ({letters}) = {shape}, got {tuple(array.shape)}: "
                "nothing is broadcast, and a layer has one row per input and one column per output"
            )


def check_is_array(x: Any, what: str) -> None:
    """A plain number has no library, no dtype and no gradient."""
    if not hasattr(x, "dtype"):
        raise TypeError(
            f"{what} must be an array, got {x!r} ({type(x).__name__}): "
            "like(number, x, x.dtype) makes one for the library and the dtype of x"
        )


def check_block_parameters(slow: Any) -> None:
    """One library and dtype, and the shapes that W1 (I,F), W2 (F,D) and U (D,V) ask for."""
    axes = type(slow)(*BLOCK_AXES)
    for name in ("W1", "W2", "U"):
        check_is_array(getattr(slow, name), name)
        if getattr(slow, name).ndim != 2:
            found = tuple(getattr(slow, name).shape)
            raise ValueError(f"{name} must have shape ({getattr(axes, name)}), got {found}")
    i, f = slow.W1.shape
    sizes = {"I": i, "F": f, "D": slow.W2.shape[1], "V": slow.U.shape[1]}
    check_shapes(slow, axes, sizes)
    namespace(*slow)


def check_slow_block(x: Array, labels: Array, p: Any, norm: str, residual: bool) -> None:
    """Shapes of features, labels and parameters that fit."""
    check_block_parameters(p)
    check_kind(p, norm, residual)
    namespace(x, *p)
    if x.ndim < 1 or x.shape[-1] != p.W1.shape[0]:
        raise ValueError(
            f"features {tuple(x.shape)} must end in the width I of W1, {tuple(p.W1.shape)}"
        )
    check_like(labels, x.shape[:-1], "labels", "(...)")


def check_block_data(x: Array, labels: Array, weights: Array, slow: Any) -> None:
    """Features, labels and weights of whole sequences, for a block with these parameters: one
    library, shapes that fit, values in range.
    """
    check_block_parameters(slow)
    namespace(x, weights, *slow)
    library(x, labels)
    if x.ndim != 3:
        raise ValueError(f"features must have shape (B,T,I), got {tuple(x.shape)}")
    check_like(labels, x.shape[:2], "labels", "(B,T)")
    check_like(weights, x.shape[:2], "weights", "(B,T)")
    _check_width(x, slow)
    check_labels(labels, slow.U.shape[1])
    check_weights(weights)


def _check_width(x: Array, slow: Any) -> None:
    if x.shape[-1] != slow.W1.shape[0]:
        raise ValueError(
            f"features have width {x.shape[-1]} but W1 has shape {tuple(slow.W1.shape)}: "
            "the first axis of W1 must match"
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
    check_step_sizes(eta)
    check_block_data(x, labels, weights, slow)
    namespace(x, decay, *eta)
    check_divisor(settings.optimizer, slow)
    check_kind(slow, settings.norm, settings.residual)
    if settings.eps == 0 and settings.norm == "layer" and slow.W2.shape[1] < 2:
        raise ValueError(
            "LayerNorm without epsilon needs a width of at least 2, got 1: its variance is 0; "
            "set eps > 0"
        )
    if state is not None:
        check_streamable(settings)
        check_state(state, x.shape[0], slow, settings.optimizer)
        namespace(x, *getattr(state, "slots", state))


def check_fast_matrix(
    x: Array,
    labels: Array,
    weights: Array,
    slow: Any,
    eta: Any,
    decay: Array,
    settings: Any,
    state: Any,
) -> None:
    """Everything fast_matrix_fwd relies on."""
    check_settings(settings)
    if settings.block is not None and settings.block < 1:
        raise ValueError(
            f"the head needs a block of at least 1 token (or None for all), got {settings.block}"
        )
    check_decay(decay, settings, shared=True)
    names = getattr(eta, "_fields", None)
    if names != ("W", "b"):
        raise TypeError(f"step sizes must be FastMatrix of two arrays, got {eta!r}")
    _check_steps(eta)
    for name, array in (("key.A", slow.key.A), ("U", slow.U)):
        check_is_array(array, name)
        if array.ndim != 2:
            raise ValueError(f"{name} must be a matrix, got shape {tuple(array.shape)}")
    d, k = slow.key.A.shape
    axes = type(slow)(type(slow.key)("D", "D,K"), "K,D", "D", "D", "D", "D,V", "V")
    axes = axes._replace(c=None) if slow.c is None else axes
    check_shapes(slow, axes, {"D": d, "K": k, "V": slow.U.shape[1]})
    namespace(x, weights, decay, *eta, *leaves(slow))
    library(x, labels)
    if x.ndim != 3 or x.shape[-1] != d:
        raise ValueError(f"features must have shape (B,T,D) with D = {d}, got {tuple(x.shape)}")
    check_like(labels, x.shape[:2], "labels", "(B,T)")
    check_like(weights, x.shape[:2], "weights", "(B,T)")
    check_labels(labels, slow.U.shape[1])
    check_weights(weights)
    if state is not None:
        check_streamable(settings)
        check_state(state, x.shape[0], slow)
        namespace(x, *state)


def check_predict(state: Any, x: Array, slow: Any, eta: Any, settings: Any) -> None:
    """Everything stream_predict relies on, but the order of calls."""
    check_settings(settings)
    check_streamable(settings)
    check_step_sizes(eta)
    check_block_parameters(slow)
    namespace(x, *slow, *eta)
    if x.ndim != 2:
        raise ValueError(f"features must have shape (B,I), got {tuple(x.shape)}")
    _check_width(x, slow)
    check_kind(slow, settings.norm, settings.residual)
    check_state(state, x.shape[0], slow, settings.optimizer)
    namespace(x, *getattr(state, "slots", state))
    check_divisor(settings.optimizer, slow)


def check_reveal(
    pending: Array, labels: Array, weights: Array, slow: Any, decay: Array, settings: Any
) -> None:
    """Everything stream_reveal relies on, once something was predicted."""
    check_block_parameters(slow)
    namespace(pending, weights, decay, *slow)
    library(pending, labels)
    _check_width(pending, slow)
    check_like(labels, pending.shape[:1], "labels", "(B,)")
    check_like(weights, pending.shape[:1], "weights", "(B,)")
    check_labels(labels, slow.U.shape[1])
    check_weights(weights)


def check_step_sizes(eta: Any) -> None:
    """Six arrays without axes, finite. A plain number is refused: it would get no gradient."""
    names = getattr(eta, "_fields", None)
    if names is None or len(names) != 6:
        raise TypeError(f"step sizes must be FastParameters of six arrays, got {eta!r}")
    _check_steps(eta)


def _check_steps(eta: Any) -> None:
    for name, step in zip(eta._fields, eta, strict=True):
        what = f"the step size of {name}"
        check_is_array(step, what)
        if tuple(step.shape):
            raise ValueError(
                f"{what} must have shape (), got {tuple(step.shape)}: "
                "one step size per parameter, for all of its entries"
            )
        if is_host(step) and not host.isfinite(step):
            raise ValueError(f"{what} must be finite, got {step}: 0 keeps a parameter slow")


def check_decay(decay: Array, settings: Any, shared: bool = False) -> None:
    """An array without axes, or unless it is ``shared`` one of three entries; in [0, 1]; one 0 with
    an optimizer, which has a decay of its own.

    ``EDGE`` beyond is let through, so that differences can be taken at 0 and at 1.
    """
    check_is_array(decay, "the decay")
    shared = shared or getattr(settings, "optimizer", None) is not None
    if tuple(decay.shape) not in ([()] if shared else [(), (3,)]):
        three = "" if shared else "; or (3,), for W1 and b1, for W2 and b2, for gain and bias"
        raise ValueError(
            f"the decay must have shape (), got {tuple(decay.shape)}: one for all updates{three}"
        )
    if not is_host(decay):
        return
    if not host.all((decay >= -EDGE) & (decay <= 1 + EDGE)):
        raise ValueError(
            f"the decay must lie in [0, 1], got {decay}: 0 keeps all updates, "
            "1 forgets each after one token"
        )
    if getattr(settings, "optimizer", None) is not None and decay != 0:
        raise ValueError(
            f"with an optimizer ({settings.optimizer.name}) the learned decay must be 0, "
            f"got {decay}: give the decay to the optimizer, as in optimizers.decay "
            "or momentum_with_decay"
        )


def check_state(state: Any, batch: int, slow: Any, optimizer: Any = None) -> None:
    """One entry per sequence for each of the six fast parameters: a state of one sequence is not
    broadcast to others. An optimizer's state holds its own slots.
    """
    if (optimizer is None) == hasattr(state, "slots"):
        wanted, found = "accumulated gradients", "slots"
        if optimizer is not None:
            wanted, found = f"slots of {optimizer.name}", "accumulated gradients"
        raise ValueError(
            f"the state must hold {wanted}, got {found}: "
            "carry a state only between calls with the same optimizer"
        )
    if optimizer is None:
        held, per, lead = state, "sequence", [batch]
    else:
        held, per, lead = state.slots, "sequence and slot", [batch, len(optimizer.write(0))]
    for name, array in zip(held._fields, held, strict=True):
        check_is_array(array, f"the state of {name}")
        expected = (*lead, *getattr(slow, name).shape)
        if tuple(array.shape) != expected:
            kind = "matrix" if getattr(slow, name).ndim == 2 else "vector"
            raise ValueError(
                f"the state holds {tuple(array.shape)} for {name}, "
                f"expected one {kind} per {per}, {expected}"
            )


def check_settings(settings: Any) -> None:
    """Normalizer, constant, epsilon, chunk, norm, optimizer."""
    if settings.normalizer not in NORMALIZERS:
        known = ", ".join(NORMALIZERS)
        raise ValueError(f"the normalizer must be one of {known}, got {settings.normalizer!r}")
    if not (host.isfinite(settings.constant) and settings.constant > 0):
        raise ValueError(f"the constant normalizer must be finite and > 0, got {settings.constant}")
    check_eps(settings.eps)
    if settings.chunk is not None and settings.chunk < 1:
        raise ValueError(
            f"the chunk size must be at least 1 token (or None for one chunk), got {settings.chunk}"
        )
    check_norm(settings.norm)
    if getattr(settings, "optimizer", None) is not None:
        check_optimizer(settings.optimizer)


def check_norm(norm: str) -> None:
    """The normalisation before the unembedding."""
    if norm not in NORMS:
        raise ValueError(f"the norm must be one of {', '.join(NORMS)}, got {norm!r}")


def check_kind(slow: Any, norm: str, residual: bool) -> None:
    """A norm that exists, and features that a residual can be added to."""
    check_norm(norm)
    i, d = slow.W1.shape[0], slow.W2.shape[1]
    if residual and i != d:
        raise ValueError(
            f"a residual adds features to the block's output: their width I must be D, got {i} "
            f"and {d}"
        )


def check_eps(eps: float) -> None:
    """LayerNorm's epsilon."""
    if not (host.isfinite(eps) and eps >= 0):
        raise ValueError(f"LayerNorm's eps must be finite and >= 0, got {eps}")


def check_optimizer(optimizer: Any) -> None:
    """keep is a square matrix with a row for every slot that is written and read."""
    keep, write, read = optimizer.keep(0), optimizer.write(0), optimizer.read(0)
    n = len(write)
    if not n or len(read) != n or [len(row) for row in keep] != [n] * n:
        shape = f"({len(keep)},{len(keep[0]) if len(keep) else 0})"
        raise ValueError(
            "an optimizer with N slots needs keep (N,N), write (N,) and read (N,), "
            f"got {shape}, ({n},) and ({len(read)},) for {optimizer.name}"
        )


def check_divisor(optimizer: Any, slow: Any) -> None:
    """A preconditioner has one entry per entry of the fast parameters, and their library and
    dtype.
    """
    if optimizer is None or optimizer.divisor is None:
        return
    namespace(*slow, *optimizer.divisor)
    for name, divisor in zip(optimizer.divisor._fields, optimizer.divisor, strict=True):
        expected = tuple(getattr(slow, name).shape)
        if tuple(divisor.shape) != expected:
            raise ValueError(
                f"the divisor of {name} must have the shape of {name}, {expected}, "
                f"got {tuple(divisor.shape)}"
            )


def check_evaluation(x: Array, eta: Any, decay: Any, n: Any, eps: float) -> None:
    """What evaluate_block takes besides the data: step sizes, decay, normalizer, epsilon. Decay
    and normalizer have no gradient there and may be plain numbers.
    """
    check_step_sizes(eta)
    namespace(x, *eta)
    check_eps(eps)
    for what, value, shapes in (
        ("the decay", decay, [()]),
        ("the normalizer n", n, [(), tuple(x.shape[:1])]),
    ):
        if not isinstance(value, int | float):
            check_is_array(value, what)
            namespace(x, value)
            if tuple(value.shape) not in shapes:
                allowed = " or ".join(map(str, shapes))
                raise ValueError(f"{what} must have shape {allowed}, got {tuple(value.shape)}")
    if _known(decay) and not 0 <= decay <= 1:
        raise ValueError(f"the decay must lie in [0, 1], got {decay}: 0 keeps all updates")
    if _known(n) and not (host.all(host.isfinite(n)) and host.all(n > 0)):
        raise ValueError(f"the normalizer n must be finite and > 0, got {n}: losses are divided")


def check_segment(segment: int) -> None:
    """Tokens per update of dynamic evaluation."""
    if segment < 1:
        raise ValueError(f"a segment must hold at least 1 token, got {segment}")


def check_streamable(settings: Any) -> None:
    """A carried state needs a normalizer that does not look at the future."""
    if settings.normalizer != "constant":
        raise ValueError(
            f'streaming needs the constant normalizer, got "{settings.normalizer}": with it, '
            'weights of later tokens would rescale earlier updates; use normalizer="constant"'
        )


def _known(x: Any) -> bool:
    """A plain number, or an array that can be looked at without a transfer."""
    return is_host(x) or not hasattr(x, "dtype")


def _first(wrong: Array) -> tuple[int, ...]:
    """The index of the first entry that is True."""
    return tuple(int(i) for i in host.argwhere(wrong)[0])
