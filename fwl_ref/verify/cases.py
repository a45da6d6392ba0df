"""One case of the fast weight block: how it is drawn, and how it is changed.

The test suite draws its shapes with Hypothesis and fills them here; the self-test has one small
case of its own. The ways to run a case are in ``runs.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..backend import Array, as_index, host, like, namespace
from ..fwl import FastSettings
from ..slow_block import FastParameters, SlowParameters
from ..tree import tree_map

# The self-test's sizes: small enough to be instant, large enough for several chunks.
B, T, D, F, V = 2, 9, 6, 24, 7


class BlockCase(NamedTuple):
    """Everything ``fast_block_fwd`` takes, in its order: ``fast_block_fwd(*case)``."""

    x: Array  # (B,T,I)
    labels: Array  # (B,T)
    weights: Array  # (B,T)
    slow: SlowParameters
    eta: FastParameters  # of ()
    decay: Array  # ()
    settings: FastSettings


class AttentionCase(NamedTuple):
    """Everything a form of linear attention takes, in its order."""

    q: Array  # (B,T,K)
    k: Array  # (B,T,K)
    v: Array  # (B,T,E)
    keep: Array  # ()
    state: Array  # (B,K,E), or None: nothing came before


# Drawing
# ----------------------------------------------------------------------------------------


def generator(seed: int) -> Callable[..., Array]:
    """``draw(*shape, scale=1)`` yields normal float64 host arrays, one after another."""
    rng = host.random.default_rng(seed)
    return lambda *shape, scale=1.0: rng.standard_normal(shape) * scale


def weight_mask(kind: str, shape: tuple[int, ...], seed: int) -> Array:
    """Weights of the slow loss: "ones", "zero_one", "real" numbers in [0, 2], or "zeros"."""
    rng = host.random.default_rng(seed)
    if kind == "zero_one":
        return rng.integers(0, 2, shape).astype("float64")
    if kind == "real":
        return rng.uniform(0, 2, shape)
    return host.full(shape, {"ones": 1.0, "zeros": 0.0}[kind])


def make_block_case(
    batch: int,
    length: int,
    width: int,
    hidden: int,
    vocabulary: int,
    settings: FastSettings,
    seed: int,
    mask: str = "ones",
    decay: float = 0.0,
    zero_steps: frozenset[int] = frozenset(),
    dtype: str = "float64",
    features: int | None = None,
) -> BlockCase:
    """The host arrays of a case from its structure; ``features`` is the width of x, None = that of
    the block.

    ``mask`` is a kind of ``weight_mask``; ``zero_steps`` numbers the step sizes that are 0.
    """
    normal, rng = generator(seed), host.random.default_rng([seed, 1])
    features = width if features is None else features
    slow = SlowParameters(
        W1=normal(features, hidden, scale=features**-0.5),
        b1=normal(hidden, scale=0.3),
        W2=normal(hidden, width, scale=hidden**-0.5),
        b2=normal(width),
        gain=1 + normal(width, scale=0.2),
        bias=normal(width, scale=0.2),
        U=normal(width, vocabulary),
        c=normal(vocabulary, scale=0.3),
    )
    x, labels = normal(batch, length, features), rng.integers(0, vocabulary, (batch, length))
    weights = weight_mask(mask, (batch, length), seed + 2)
    eta = [0.0 if i in zero_steps else rng.uniform(0.02, 0.1) for i in range(6)]

    def real(a: Array | float) -> Array:
        return host.asarray(a, dtype=dtype)

    return BlockCase(
        real(x),
        labels,
        real(weights),
        tree_map(real, slow),
        FastParameters(*map(real, eta)),
        real(decay),
        settings,
    )


def small_case(
    target: Array, dtype: str, decay: float = 0.1, seed: int = 0, **settings: Any
) -> BlockCase:
    """The self-test's case: the same numbers on every device and, up to rounding, in both
    precisions.
    """
    chosen = FastSettings(**{"chunk": 4} | settings)
    drawn = make_block_case(B, T, D, F, V, chosen, seed, mask="real", decay=decay)

    def there(a: Array) -> Array:
        return like(a, target, dtype)

    return BlockCase(
        there(drawn.x),
        like(drawn.labels, target),
        there(drawn.weights),
        tree_map(there, drawn.slow),
        tree_map(there, drawn.eta),
        there(drawn.decay),
        chosen,
    )


def small_attention_case(target: Array, dtype: str, keep: float = 0.9) -> AttentionCase:
    """The self-test's case of linear attention: (B,T,D) queries and keys, (B,T,V) values."""
    normal = generator(1)
    drawn = normal(B, T, D), normal(B, T, D), normal(B, T, V), keep, normal(B, D, V)
    return AttentionCase(*(like(a, target, dtype) for a in drawn))


# Changing
# ----------------------------------------------------------------------------------------


def with_steps(case: BlockCase, factor: float | Array) -> BlockCase:
    """Every step size times ``factor``."""
    xp = namespace(case.x)
    return case._replace(eta=tree_map(lambda e: xp.asarray(factor * e), case.eta))


def with_settings(case: BlockCase, **changes: Any) -> BlockCase:
    """Other settings, by name."""
    return case._replace(settings=case.settings._replace(**changes))


def tokens(case: BlockCase, index: slice | Sequence[int]) -> BlockCase:
    """The sequences made of the tokens at ``index``, in that order."""
    return _taken(case, index, axis=1)


def sequences(case: BlockCase, index: slice | Sequence[int]) -> BlockCase:
    """The batch made of the sequences at ``index``, in that order."""
    return _taken(case, index, axis=0)


def _taken(case: BlockCase, index: slice | Sequence[int], axis: int) -> BlockCase:
    every = range(case.labels.shape[axis])
    chosen = [every[i] for i in (every[index] if isinstance(index, slice) else index)]
    xp, at = namespace(case.x), as_index(like(host.asarray(chosen, dtype="int64"), case.x))
    x, labels, weights = (xp.take(a, at, axis=axis) for a in (case.x, case.labels, case.weights))
    return case._replace(x=x, labels=labels, weights=weights)
