"""Every Hypothesis strategy of the suite.

Hypothesis draws structure: shapes, seeds, scales, chunk sizes, dtypes, weight masks. The arrays
follow from the seed, so that a failing example is a handful of small numbers, and shrinking finds
the smallest shape that still fails. How a seed fills a case of the block is said once, for the
suite and for the self-test, in ``fwl_ref/verify/cases.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import array_api_strict
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st

from fwl_ref.fast_matrix import FastMatrix, MatrixParameters, MatrixSettings
from fwl_ref.fwl import FastSettings
from fwl_ref.key_map import KeyMap
from fwl_ref.lm.model import Config, Parameters, effective_step_sizes, fast_settings, features_fwd, initialize
from fwl_ref.ops.linear_attention import linear_attention_recurrent_fwd
from fwl_ref.slow_block import FastParameters, slow_block_fwd
from fwl_ref.tree import leaves, tree_map
from fwl_ref.verify.cases import AttentionCase, BlockCase, generator, make_block_case, weight_mask

seeds = st.integers(0, 2**31 - 1)
sizes = st.integers(1, 6)  # of an axis that must not be empty
lengths = st.integers(0, 9)  # T, empty included
dtypes = st.sampled_from(["float64", "float32"])
scales = st.sampled_from([0.1, 1.0, 3.0])
MORE_NUMBERS = pytest.mark.host("more numbers for calls that are made elsewhere too")
MASKS = ("ones", "zero_one", "real", "zeros")


def at_most(examples: int) -> settings:
    """No more examples than this in any profile: for a property that is checked entry by entry, or
    leaf by leaf, so that one example is many checks.
    """
    return settings(max_examples=min(examples, settings.default.max_examples))


def first_elsewhere(values: Iterable[Any]) -> list:
    """Parameters of which other backends run the first alone: the others are more numbers for the same
    calls, and show no other name of the library.
    """
    first, *more = values
    return [first, *(pytest.param(value, marks=MORE_NUMBERS) for value in more)]


def move_like(a: np.ndarray, target: Any) -> Any:
    """``a`` in the library and on the device of ``target``: NumPy, in its precision, or the strict
    library.
    """
    if isinstance(target, np.ndarray | np.generic):
        return np.asarray(a, dtype=target.dtype)
    return array_api_strict.asarray(a).to_device(target.device)


def arrays(tree: Any) -> list:
    """The leaves of a tree that are arrays."""
    return [a for a in leaves(tree) if hasattr(a, "dtype")]


def chunks(length: int) -> st.SearchStrategy[int | None]:
    """None, 1, divisors and non-divisors of T, T itself and more than T."""
    return st.none() | st.integers(1, length + 2)


def splits(length: int) -> st.SearchStrategy[list[int]]:
    """Where to cut a sequence: any number of cuts, empty pieces included; the bounds 0 and T are
    part of the list.
    """
    return st.lists(st.integers(0, length), max_size=4).map(lambda cuts: [0, *sorted(cuts), length])


@st.composite
def block_cases(
    draw: Callable,
    normalizers: tuple[str, ...] = ("constant",),
    masks: tuple[str, ...] = MASKS,
    min_length: int = 1,
    max_length: int = 8,
    max_batch: int = 3,
    dtype: str = "float64",
    decays: tuple[float, ...] = (0.0, 0.1, 0.4),
    zero_steps: bool = True,
    first_order: bool = False,
    residuals: tuple[bool, ...] = (False, True),
) -> BlockCase:
    """A small fast weight block and a batch for it. ``zero_steps`` lets some step sizes be exactly
    0.
    """
    batch, length = draw(st.integers(1, max_batch)), draw(st.integers(min_length, max_length))
    width, hidden, vocabulary = (draw(st.integers(3, 5)), draw(st.integers(1, 7)), draw(st.integers(2, 6)))
    settings = FastSettings(
        normalizer=draw(st.sampled_from(normalizers)),
        constant=draw(st.sampled_from([1.0, 0.5, 3.0])),
        eps=draw(st.sampled_from([1e-6, 0.0])),
        chunk=draw(chunks(length)),
        first_order=first_order,
        norm=draw(st.sampled_from(["layer", "rms"])),
        residual=draw(st.sampled_from(residuals)),
    )
    off = draw(st.sets(st.integers(0, 5), max_size=3)) if zero_steps else set()
    mask, decay, seed = draw(st.sampled_from(masks)), draw(st.sampled_from(decays)), draw(seeds)
    features = width if settings.residual else draw(st.integers(1, 5))  # of any width; the block's own among them
    return make_block_case(batch, length, width, hidden, vocabulary, settings, seed, mask, decay, frozenset(off), dtype, features)


def off_the_kink(case: BlockCase, margin: float = 0.05, spread: float = 0.3) -> BlockCase:
    """``case`` moved to where finite differences are trustworthy; only b1, b2 and eta change.

    b1 puts each hidden unit's kink into the widest gap between its tokens' pre-activations, so that
    units still switch within a sequence; b2 grows until every LayerNorm input has standard
    deviation at least ``spread``; eta halves until the fast pass keeps both.
    """
    if not case.x.shape[0] * case.x.shape[1]:
        return case
    flat = np.sort(np.reshape(case.x @ case.slow.W1, (-1, case.slow.W1.shape[1])), axis=0)  # (N,F)
    edges = np.concatenate([flat[:1] - 6 * margin, flat, flat[-1:] + 6 * margin])  # (N+2,F)
    widest = np.argmax(edges[1:] - edges[:-1], axis=0)[None]  # (1,F)
    middle = (np.take_along_axis(edges, widest, 0) + np.take_along_axis(edges, widest + 1, 0)) / 2
    case = case._replace(slow=case.slow._replace(b1=-middle[0].astype(case.x.dtype)))
    for _ in range(60):
        still = case._replace(eta=FastParameters(*(0 * e for e in case.eta)))
        if distances(still)[1] >= 1.1 * spread:
            break
        case = case._replace(slow=case.slow._replace(b2=case.slow.b2 * 1.3))
    for _ in range(60):
        kink, deviation = distances(case)
        if kink >= margin and deviation >= spread:
            return case
        case = case._replace(eta=FastParameters(*(e / 2 for e in case.eta)))
    raise ValueError(f"no step size keeps the fast pass off the kink: distances {distances(case)}")


def distances(case: BlockCase) -> tuple[float, float]:
    """The smallest |pre-activation| of slow and fast pass, and their smallest standard deviation of
    a LayerNorm input.
    """
    from fwl_ref.fwl import write_fwd

    (memory, _), res = write_fwd(*case[:4], case.settings)
    keep, eta, slow = 1 - case.decay, case.eta, case.slow
    one = np.ones_like(case.x[..., :1])

    def moved(query: np.ndarray, key: np.ndarray, value: np.ndarray, step: Any, step_bias: Any) -> np.ndarray:
        (total, _), _ = linear_attention_recurrent_fwd(query, key, value, keep)
        (plain, _), _ = linear_attention_recurrent_fwd(one, one, value, keep)
        return step * total + step_bias * plain

    h = memory.h - moved(case.x, memory.x, memory.dh, eta.W1, eta.b1)  # (B,T,F)
    a = np.maximum(h, 0) ** 2  # (B,T,F)
    skip = case.x if case.settings.residual else 0.0
    z = skip + a @ slow.W2 + slow.b2 - moved(a, memory.a, memory.dz, eta.W2, eta.b2)  # (B,T,D)
    z_slow = skip + memory.a @ slow.W2 + slow.b2
    kink = min(np.min(np.abs(memory.h)), np.min(np.abs(h)))
    return float(kink), float(min(np.min(np.std(z, axis=-1)), np.min(np.std(z_slow, axis=-1))))


@st.composite
def smooth_block_cases(draw: Callable, margin: float = 0.05, **structure: Any) -> BlockCase:
    """``block_cases`` kept off the squared ReLU's kink and away from LayerNorm's singularity: for
    finite differences.
    """
    return off_the_kink(draw(block_cases(**structure)), margin)


def fast_state(case: BlockCase, seed: int, scale: float = 0.1) -> FastParameters:
    """Accumulated gradients as if something had been read before: one matrix per sequence, of the
    parameters' shapes.
    """
    normal, batch = generator(seed), case.x.shape[0]
    shapes = (getattr(case.slow, name).shape for name in FastParameters._fields)
    return FastParameters(*(normal(batch, *shape, scale=scale).astype(case.x.dtype) for shape in shapes))


@st.composite
def attention_cases(
    draw: Callable,
    keeps: tuple[float, ...] = (1.0, 0.9, 0.5, 0.0),
    min_length: int = 0,
    max_length: int = 9,
    carried: bool | None = None,
    dtype: str = "float64",
) -> AttentionCase:
    """Linear attention of any small shape; ``carried`` says whether a state comes in (None =
    either).
    """
    batch, length = draw(st.integers(0, 3)), draw(st.integers(min_length, max_length))
    width, values = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    keep, scale, normal = draw(st.sampled_from(keeps)), draw(scales), generator(draw(seeds))
    state = normal(batch, width, values) if (draw(st.booleans()) if carried is None else carried) else None
    case = (normal(batch, length, width, scale=scale), normal(batch, length, width), normal(batch, length, values), keep, state)
    return AttentionCase(*(None if a is None else np.asarray(a, dtype=dtype) for a in case))


class MatrixCase(NamedTuple):
    """Everything ``fast_matrix_fwd`` takes, in its order."""

    x: np.ndarray  # (B,T,D)
    labels: np.ndarray  # (B,T)
    weights: np.ndarray  # (B,T)
    slow: MatrixParameters
    eta: FastMatrix
    decay: np.ndarray  # ()
    settings: MatrixSettings


@st.composite
def matrix_cases(
    draw: Callable,
    normalizers: tuple[str, ...] = ("constant",),
    masks: tuple[str, ...] = MASKS,
    min_length: int = 1,
    max_length: int = 8,
    max_batch: int = 3,
) -> MatrixCase:
    """A small fast matrix on top of features, of every kind of norm, key and head."""
    batch, length = draw(st.integers(1, max_batch)), draw(st.integers(min_length, max_length))
    width, keys, vocabulary = draw(st.integers(3, 5)), draw(st.integers(1, 5)), draw(st.integers(2, 6))
    settings = MatrixSettings(
        normalizer=draw(st.sampled_from(normalizers)),
        constant=draw(st.sampled_from([1.0, 0.5, 3.0])),
        eps=draw(st.sampled_from([1e-6, 1e-2])),
        chunk=draw(chunks(length)),
        norm=draw(st.sampled_from(["layer", "rms"])),
        unit=draw(st.booleans()),
        frozen=draw(st.booleans()),
        block=draw(st.none() | st.integers(1, 8)),
    )
    mask, decay, seed = draw(st.sampled_from(masks)), draw(st.sampled_from([0.0, 0.1, 0.4])), draw(seeds)
    return make_matrix_case(batch, length, width, keys, vocabulary, settings, seed, mask, decay, draw(st.booleans()))


def make_matrix_case(
    batch: int,
    length: int,
    width: int,
    keys: int,
    vocabulary: int,
    settings: MatrixSettings,
    seed: int,
    mask: str = "ones",
    decay: float = 0.0,
    bias: bool = True,
) -> MatrixCase:
    """The arrays of a MatrixCase from its structure. Features spread around a mean that is far from
    constant, so that no normalisation comes near its singularity.
    """
    normal, rng = generator(seed), np.random.default_rng([seed, 1])
    slow = MatrixParameters(
        KeyMap(normal(width), normal(width, keys, scale=width**-0.5)),
        normal(keys, width, scale=0.2 * keys**-0.5),
        normal(width, scale=0.2),
        1 + normal(width, scale=0.2),
        normal(width, scale=0.2),
        normal(width, vocabulary, scale=0.5),
        normal(vocabulary, scale=0.3) if bias else None,
    )
    x = normal(batch, length, width, scale=0.4) + 2 * np.arange(width) % 5
    raw = (x - slow.key.mean) @ slow.key.A  # (B,T,K)
    if raw.size and np.linalg.norm(raw, axis=-1).min() < 0.3:  # a key of no length has no direction: first entries become 0.5 or more
        first = slow.key.A[:, 0]
        mean = slow.key.mean - (0.5 - raw[..., 0].min()) * first / (first @ first)
        slow = slow._replace(key=slow.key._replace(mean=mean))
    labels = rng.integers(0, vocabulary, (batch, length))
    eta = FastMatrix(*(np.asarray(rng.uniform(0.02, 0.1)) for _ in range(2)))
    return MatrixCase(x, labels, weight_mask(mask, (batch, length), seed + 2), slow, eta, np.asarray(decay), settings)


class ModelCase(NamedTuple):
    """Everything ``model_fwd`` takes, in its order: ``model_fwd(*case)``."""

    parameters: Parameters
    tokens: np.ndarray  # (B,T)
    labels: np.ndarray  # (B,T)
    weights: np.ndarray  # (B,T)
    config: Config


@st.composite
def model_cases(draw: Callable, normalizers: tuple[str, ...] = ("constant",), min_length: int = 1, max_length: int = 6) -> ModelCase:
    """A tiny language model with parameters of order one (fresh ones are nearly zero, so that
    little of the model takes part).
    """
    batch, length = draw(st.integers(1, 2)), draw(st.integers(min_length, max_length))
    config = Config(
        width=4,
        layers=draw(st.integers(1, 2)),
        heads=draw(st.integers(1, 2)),
        vocabulary=draw(st.integers(2, 5)),
        attention_window=draw(st.none() | st.integers(1, length + 1)),
        dialect=draw(st.sampled_from(["tf", "jax"])),
        normalizer=draw(st.sampled_from(normalizers)),
        chunk=draw(chunks(length)),
    )
    return make_model_case(batch, length, config, draw(seeds), draw(st.sampled_from(MASKS)))


def make_model_case(batch: int, length: int, config: Config, seed: int, mask: str = "real") -> ModelCase:
    """The arrays of a ModelCase from its structure."""
    normal, rng = generator(seed), np.random.default_rng([seed, 1])
    fresh = initialize(config, seed, "float64")
    start = 1.0 if config.fast else 0.0
    parameters = tree_map(lambda p: p + normal(*p.shape, scale=0.4), fresh)._replace(
        embedding=normal(config.vocabulary, config.width),
        eta=FastParameters(*(np.asarray(start * rng.uniform(0.02, 0.1)) for _ in range(6))),
        decay=np.asarray(0.1 * start),
    )
    tokens, labels = (rng.integers(0, config.vocabulary, (batch, length)) for _ in range(2))
    return ModelCase(parameters, tokens, labels, weight_mask(mask, (batch, length), seed + 2), config)


def model_off_the_kink(case: ModelCase) -> ModelCase:
    """``off_the_kink`` for the block inside a model: b1, b2 and the step sizes change."""
    p, config = case.parameters, case.config
    (x, _), _ = features_fwd(p, case.tokens, config)
    eta = effective_step_sizes(p.eta, config.dialect)
    block = off_the_kink(BlockCase(x, case.labels, case.weights, p.block, eta, p.decay, fast_settings(config)))
    shrink = float(block.eta.W1 / eta.W1) if config.fast else 1.0
    eta = FastParameters(*(np.asarray(e * shrink) for e in p.eta))
    return case._replace(parameters=p._replace(block=block.slow, eta=eta))


def unsaturated(case: BlockCase) -> BlockCase:
    """U and c shrunk until no logit exceeds 2: where a softmax saturates, losses, gradients and
    Hessians vanish into rounding.
    """
    (_, logits), _ = slow_block_fwd(case.x, case.labels, case.slow, *case.settings.plain)
    shrink = min(1.0, 2 / float(np.max(np.abs(logits))))
    return case._replace(slow=case.slow._replace(U=case.slow.U * shrink, c=case.slow.c * shrink))
