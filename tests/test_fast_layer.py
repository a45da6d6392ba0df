"""The fast layer alone: it is a dense layer whose weights really moved, and its backward pass is its
adjoint, for every kind of mask.

A docstring that opens with "N:" is a negative control.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fwl_ref.fast_layer
from fwl_ref.fast_layer import (
    Past,
    fast_layer_bwd,
    fast_layer_fwd,
    past_attention_bwd,
    past_attention_fwd,
    past_sums_bwd,
    past_sums_fwd,
    pasts,
)
from fwl_ref.gradcheck import AdjointError, check_adjoint
from fwl_ref.ops.linear_attention import linear_attention_chunked_bwd
from fwl_ref.ops.masked_attention import masked_attention_chunked_bwd
from fwl_ref.optimizers import Optimizer, mask, momentum, preconditioned, sgd, slots
from fwl_ref.slow_block import FastParameters
from tests.strategies import chunks, first_elsewhere, generator, seeds
from tests.tolerances import RTOL, assert_close, assert_trees_close, relative_error

K, E = 4, 3  # width of the layer's input and output
SHAPES = ((K, E), (E,), (E, K), (K,), (K,), (K,))  # of W1, b1, W2, b2, gain, bias
CLEAR = 1e4 * RTOL


def divisor(seed: int = 3) -> FastParameters:
    """What a preconditioner divides by; it has no structure, so that it needs several heads."""
    rng = np.random.default_rng(seed)
    return FastParameters(*(rng.uniform(0.5, 2.0, shape) for shape in SHAPES))


class Kind(NamedTuple):
    """A mask: a rate of decay, or an optimizer."""

    decay: float
    optimizer: Optimizer | None


KINDS = {
    "no decay": Kind(0.0, None),
    "decay": Kind(0.3, None),
    "momentum": Kind(0.0, momentum(0.8)),
    "preconditioner": Kind(0.0, preconditioned(sgd(), divisor())),
    "momentum, preconditioner": Kind(0.0, preconditioned(momentum(0.8), divisor())),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


class LayerCase(NamedTuple):
    """Everything that ``fast_layer_fwd`` takes, in its order, but for the mask."""

    query: np.ndarray  # (B,T,K)
    key: np.ndarray  # (B,T,K)
    value: np.ndarray  # (B,T,E)
    eta_W: np.ndarray  # ()
    eta_b: np.ndarray  # ()


def layer_case(seed: int, length: int = 5, batch: int = 2) -> LayerCase:
    normal = generator(seed)
    tokens = normal(batch, length, K), normal(batch, length, K), normal(batch, length, E)
    return LayerCase(*tokens, np.asarray(0.3), np.asarray(-0.7))


def past_of(kind: Kind, x: np.ndarray, chunk: int | None, token: int = 0) -> tuple[Past, Past, Past]:
    return pasts(x, np.asarray(kind.decay), chunk, kind.optimizer, token)


def state_of(kind: Kind, seed: int, shapes: tuple, batch: int = 2) -> tuple:
    """A pair of sums of earlier gradients, or of an optimizer's slots."""
    lead, normal = (batch,) if kind.optimizer is None else (batch, slots(kind.optimizer)), generator(seed)
    return tuple(normal(*lead, *shape) for shape in shapes)


def mask_of(kind: Kind, length: int) -> np.ndarray:
    """(T,T)   M as a table: powers of 1 - lambda, or what the optimizer's slots answer to impulses."""
    if kind.optimizer is not None:
        return mask(kind.optimizer, length)
    powers = [[(1 - kind.decay) ** (t - s - 1) if s < t else 0.0 for s in range(length)] for t in range(length)]
    return np.reshape(np.asarray(powers), (length, length))


# What it computes
# ----------------------------------------------------------------------------------------------------------------------


def by_moving_the_weights(case: LayerCase, kind: Kind) -> np.ndarray:
    """(B,T,E)   q_t (W - W_t) + b - b_t, the weight and the bias of every token formed."""
    M, over = mask_of(kind, case.query.shape[1]), kind.optimizer.divisor if kind.optimizer else None
    out = np.zeros_like(case.value)
    for b, t in np.ndindex(*case.query.shape[:2]):
        moved_W = sum((M[t, s] * np.outer(case.key[b, s], case.value[b, s]) for s in range(t)), np.zeros((K, E)))
        moved_b = sum((M[t, s] * case.value[b, s] for s in range(t)), np.zeros(E))
        if over is not None:
            moved_W, moved_b = moved_W / over.W1, moved_b / over.b1
        out[b, t] = case.query[b, t] @ (case.eta_W * moved_W) + case.eta_b * moved_b
    return out


@every_kind
@given(seed=seeds, length=st.integers(0, 6), data=st.data())
def test_the_fast_layer_is_a_dense_layer_whose_weights_moved(kind: str, seed: int, length: int, data: st.DataObject) -> None:
    """o_t = q_t (W - W_t) + b - b_t with W_t and b_t formed for every token   (F.10)"""
    case, chunk = layer_case(seed, length), data.draw(chunks(length), label="chunk")
    (out, _), _ = fast_layer_fwd(*case, past_of(KINDS[kind], case.query, chunk)[0])
    assert_close(out, by_moving_the_weights(case, KINDS[kind]), scale=1.0)


@every_kind
@given(seed=seeds, cut=st.integers(0, 5))
def test_the_state_of_a_fast_layer_carries_the_sums_on(kind: str, seed: int, cut: int) -> None:
    """Two pieces, the pair handed on, are the whole: outputs and state   (F.10)"""
    case, way = layer_case(seed), KINDS[kind]
    (expected, after), _ = fast_layer_fwd(*case, past_of(way, case.query, None)[0])
    first, rest = (LayerCase(*(a[:, part] for a in case[:3]), *case[3:]) for part in (slice(0, cut), slice(cut, None)))
    (head, state), _ = fast_layer_fwd(*first, past_of(way, first.query, 2)[0])
    (tail, state), _ = fast_layer_fwd(*rest, past_of(way, rest.query, None, token=cut)[0], state)
    assert_close(np.concatenate([head, tail], axis=1), expected, scale=1.0)
    assert_trees_close(state, after, scale=1.0)


@every_kind
@given(seed=seeds, length=st.integers(0, 6))
def test_past_sums_are_sums_over_the_tokens_before(kind: str, seed: int, length: int) -> None:
    """sum_{s<t} M_ts dgain_s, the same for the bias   (F.14)"""
    normal, way = generator(seed), KINDS[kind]
    dgain, dbias = normal(2, length, K), normal(2, length, K)
    (gain, bias, _), _ = past_sums_fwd(dgain, dbias, past_of(way, dgain, 2)[2])
    over = way.optimizer.divisor if way.optimizer else None
    M = mask_of(way, length)
    for found, value, name in ((gain, dgain, "gain"), (bias, dbias, "bias")):
        expected = np.matmul(M, value) / (1.0 if over is None else getattr(over, name))
        assert_close(found, expected, what=name, scale=1.0)


@every_kind
def test_a_mask_is_made_once_for_the_three_reads(kind: str) -> None:
    """One mask for all parameters; only a preconditioner has other heads for each, as many as the
    divisor has rows of their own   (O.21), (O.23)
    """
    way, x = KINDS[kind], np.zeros((2, 5, K))
    made = past_of(way, x, 3, token=7)
    assert all(p.keep is made[0].keep and p.tables is made[0].tables and p.chunk == 3 for p in made)
    assert {p.seen for p in made} == ({None} if way.optimizer is None else {12})
    over = way.optimizer is not None and way.optimizer.divisor is not None
    assert [len(p.heads) for p in made] == ([min(K + 1, E), min(E + 1, K), 1] if over else [1, 1, 1])


# Its adjoint
# ----------------------------------------------------------------------------------------------------------------------


def check_layer(kind: str, carried: bool, chunk: int | None = 2, seed: int = 0) -> Any:
    """The law of (F.11): tokens, step sizes, keep and the state that comes in; cotangents on output
    and final state.
    """
    way, case = KINDS[kind], layer_case(seed)
    past = past_of(way, case.query, chunk)[0]
    learned = way.optimizer is None
    state = state_of(way, seed + 1, SHAPES[:2]) if carried else None

    def fwd(query, key, value, eta, keep, state):
        mine = past._replace(keep=keep) if learned else past
        return fast_layer_fwd(query, key, value, *eta, mine, state)

    def bwd(g_output, res):
        g = fast_layer_bwd(*g_output, res)
        assert learned or g.keep == 0
        present = (g.query, g.key, g.value, g.eta, g.keep if learned else None, g.state)
        return tuple(a for i, a in enumerate(present) if i < 4 or a is not None)

    args = (*case[:3], tuple(case[3:]), past.keep if learned else None, state)
    return check_adjoint(fwd, bwd, args, seed=seed)


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("carried", [False, True])
@pytest.mark.parametrize("seed", first_elsewhere(range(3)))
@every_kind
def test_the_backward_pass_of_a_fast_layer_is_its_adjoint(kind: str, seed: int, carried: bool, chunk: int | None) -> None:
    """d (o, state) / d (query, key, value, eta, keep, state)   (F.11)"""
    learned = KINDS[kind].optimizer is None
    assert check_layer(kind, carried, chunk, seed).checked == 3 + 2 + learned + 2 * carried


def check_sums(kind: str, carried: bool, chunk: int | None = 2, seed: int = 0) -> Any:
    """The law of (F.15)."""
    way, normal = KINDS[kind], generator(seed)
    dgain, dbias = normal(2, 5, K), normal(2, 5, K)
    past, learned = past_of(way, dgain, chunk)[2], way.optimizer is None
    state = state_of(way, seed + 1, SHAPES[4:]) if carried else None

    def fwd(dgain, dbias, keep, state):
        return past_sums_fwd(dgain, dbias, past._replace(keep=keep) if learned else past, state)

    def bwd(g_output, res):
        g_dgain, g_dbias, g_keep, g_state = past_sums_bwd(*g_output, res)
        return (g_dgain, g_dbias, *((g_keep,) if learned else ()), *((g_state,) if carried else ()))

    return check_adjoint(fwd, bwd, (dgain, dbias, past.keep if learned else None, state), seed=seed)


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("carried", [False, True])
@every_kind
def test_the_backward_pass_of_past_sums_is_its_adjoint(kind: str, carried: bool, chunk: int | None) -> None:
    """d (sums, state) / d (dgain, dbias, keep, state)   (F.15)"""
    learned = KINDS[kind].optimizer is None
    assert check_sums(kind, carried, chunk).checked == 2 + learned + 2 * carried


# Teeth
# ----------------------------------------------------------------------------------------------------------------------


def changed(f: Callable, position: int, by: float = 0.0) -> Callable:
    """f with one of its results multiplied: 0 drops it."""

    def mutant(*args):
        return tuple(by * y if i == position and y is not None else y for i, y in enumerate(f(*args)))

    return mutant


def inclusive(q, k, v, past, state):
    """A token reads its own value."""
    (out, after), res = past_attention_fwd(q, k, v, past, state)
    return (out + np.sum(q * k, axis=-1, keepdims=True) * v, after), res


def query_and_key_swapped(q, k, v, past, state):
    return past_attention_fwd(k, q, v, past, state)


def without_preconditioner(q, k, v, past, state):
    return past_attention_fwd(q, k, v, past._replace(heads=Past(past.keep).heads), state)


def first_head_only(q, k, v, past, state):
    return past_attention_fwd(q, k, v, past._replace(heads=past.heads[:1]), state)


def bias_first(S):
    """The bias taken from the first row of the state, not from the last."""
    return None if S is None else (S[..., 1:, :], S[..., 0, :])


FORWARD_MUTANTS = {
    "a token reads itself": ({"past_attention_fwd": inclusive}, "decay"),
    "a token reads itself, with slots": ({"past_attention_fwd": inclusive}, "momentum"),
    "query and key swapped": ({"past_attention_fwd": query_and_key_swapped}, "decay"),
    "preconditioner forgotten": ({"past_attention_fwd": without_preconditioner}, "preconditioner"),
    "one head of several": ({"past_attention_fwd": first_head_only}, "momentum, preconditioner"),
    "bias from the wrong row": ({"_unstacked": bias_first}, "no decay"),
}


@pytest.mark.host("about the comparisons, not about arrays")
@pytest.mark.parametrize("name", FORWARD_MUTANTS)
def test_a_wrong_fast_layer_is_told_from_moved_weights(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """N: the comparisons of (F.10), whole and in two pieces, notice every mutant"""
    (mutant, kind), case = FORWARD_MUTANTS[name], layer_case(1)

    def error() -> float:
        expected, found, state = by_moving_the_weights(case, KINDS[kind]), [], None
        for start, part in ((0, slice(0, 2)), (2, slice(2, None))):
            piece = LayerCase(*(a[:, part] for a in case[:3]), *case[3:])
            (out, state), _ = fast_layer_fwd(*piece, past_of(KINDS[kind], piece.query, 2, token=start)[0], state)
            found.append(out)
        return relative_error(np.concatenate(found, axis=1), expected)

    assert error() <= RTOL
    for target, replacement in mutant.items():
        monkeypatch.setattr(fwl_ref.fast_layer, target, replacement)
    assert error() > CLEAR


def test_step_sizes_in_the_wrong_order_are_told_from_moved_weights() -> None:
    """N: eta_W belongs to the keys, eta_b to the constant   (F.10)"""
    case, kind = layer_case(1), KINDS["decay"]
    swapped = case._replace(eta_W=case.eta_b, eta_b=case.eta_W)
    (out, _), _ = fast_layer_fwd(*swapped, past_of(kind, case.query, 2)[0])
    assert relative_error(out, by_moving_the_weights(case, kind)) > CLEAR


def state_once_per_head(dout, dstate_out, res):
    """Every head hands the gradient of the state on: as many times as there are heads."""
    past, attention = res
    results = []
    for (u, w), head in zip(past.heads, attention, strict=True):
        dq, dk, dv, dstate = masked_attention_chunked_bwd(w * dout, dstate_out, head)
        results.append((u * dq, dk, dv, dstate))
    dq, dk, dv, dstate = (sum(parts) for parts in zip(*results, strict=True))
    return dq, dk, dv, np.zeros(()), dstate


NAMES = ("queries", "keys", "values", "keep", "state")
BACKWARD_MUTANTS: dict[str, tuple[dict, str]] = {
    **{
        f"gradient of {name} dropped, {kind}": ({"past_attention_bwd": changed(past_attention_bwd, i)}, kind)
        for i, name in enumerate(NAMES)
        for kind in KINDS
        if name != "keep" or KINDS[kind].optimizer is None
    },
    "keep's gradient with the sign of the decay's": (
        {"linear_attention_chunked_bwd": changed(linear_attention_chunked_bwd, 3, -1.0)},
        "decay",
    ),
    "values' gradient wrong by one part in a million": (
        {"masked_attention_chunked_bwd": changed(masked_attention_chunked_bwd, 2, 1 + 1e-6)},
        "momentum",
    ),
    "bias from the wrong row": ({"_unstacked": bias_first}, "decay"),
    "final state counted once per head": ({"past_attention_bwd": state_once_per_head}, "momentum, preconditioner"),
}


@cache
def is_sound(kind: str) -> None:
    """Without a mutant the check passes; once for all mutants."""
    check_layer(kind, carried=True)


@pytest.mark.host("about the comparisons, not about arrays")
@pytest.mark.parametrize("name", BACKWARD_MUTANTS)
def test_the_gradient_check_rejects_every_mutant_of_the_fast_layers_backward_pass(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """N: a dropped or wrong term of (F.11) is found, with every kind of mask"""
    mutant, kind = BACKWARD_MUTANTS[name]
    is_sound(kind)
    for target, replacement in mutant.items():
        monkeypatch.setattr(fwl_ref.fast_layer, target, replacement)
    with pytest.raises(AdjointError, match="they differ by"):
        check_layer(kind, carried=True)


def test_the_gradient_check_rejects_a_forgotten_step_size() -> None:
    """N: g_query = g_q in place of eta_W g_q   (F.11)"""
    case = layer_case(2)
    past = past_of(KINDS["decay"], case.query, 2)[0]

    def bwd(g_output, res):
        return fast_layer_bwd(*g_output, res._replace(eta_W=np.asarray(1.0))).query

    fwd = lambda query: fast_layer_fwd(query, *case[1:], past)  # noqa: E731
    check_adjoint(fwd, lambda g, res: fast_layer_bwd(*g, res).query, (case.query,))
    with pytest.raises(AdjointError, match="they differ by"):
        check_adjoint(fwd, bwd, (case.query,))
