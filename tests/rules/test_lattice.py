"""Which rule is which: each update is the textbook's formula, each special case is the simpler
rule, and each claim of optimality holds.

What follows an "N:" is a negative control.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwl_ref.ops.linear_attention import linear_attention_fwd
from fwl_ref.rules.common import READS, fades, fades_bwd, solve, solve_bwd, sums, unfaded
from fwl_ref.rules.decay import decay_chunked_bwd, decay_chunked_fwd, decay_recurrent_fwd
from fwl_ref.rules.delta import delta_chunked_bwd, delta_chunked_fwd, delta_loss, delta_recurrent_fwd
from fwl_ref.rules.delta_product import delta_product_chunked_bwd, delta_product_chunked_fwd, delta_product_recurrent_fwd
from fwl_ref.rules.dplr import dplr_chunked_bwd, dplr_chunked_fwd, dplr_recurrent_fwd
from fwl_ref.rules.gated_delta import gated_delta_chunked_bwd, gated_delta_chunked_fwd, gated_delta_recurrent_fwd
from fwl_ref.rules.gated_delta_product import (
    gated_delta_product_chunked_bwd,
    gated_delta_product_chunked_fwd,
    gated_delta_product_recurrent_fwd,
)
from fwl_ref.rules.gla import gla_chunked_bwd, gla_chunked_fwd, gla_recurrent_fwd
from fwl_ref.rules.kda import kda_chunked_bwd, kda_chunked_fwd, kda_recurrent_fwd
from fwl_ref.rules.linear import linear_chunked_bwd, linear_chunked_fwd, linear_recurrent_fwd
from fwl_ref.rules.longhorn import longhorn_chunked_bwd, longhorn_chunked_fwd, longhorn_gradient, longhorn_recurrent_fwd
from tests.rules.table import Shape, memory, rates, unit_keys
from tests.strategies import chunks, generator, seeds
from tests.tolerances import RTOL, assert_close, assert_trees_close, float32_bound, relative_error

shapes = st.builds(Shape, *(st.integers(low, high) for low, high in ((1, 2), (0, 6), (1, 4), (1, 3))))
read_names = st.sampled_from(READS)
every_read = pytest.mark.parametrize("read", READS)
CLEAR = 1e-3  # a difference of this size is no rounding


def sequences(n: Shape, seed: int) -> tuple:
    """q, k, v, and the state that comes in."""
    draw = generator(seed)
    k = unit_keys(draw, n.batch, n.length, n.width)
    return draw(n.batch, n.length, n.width), k, draw(n.batch, n.length, n.values), memory(n, seed)


# The table of the textbook
# ---------------------------------------------------------------------------------------------------
#
# There a state maps keys to values, S (E,K), and vectors are columns: its S is the transpose of the
# library's.


def column(a: np.ndarray) -> np.ndarray:
    return a[:, None]


def literal(update: Callable, q: np.ndarray, state: np.ndarray, read: str, *tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """o_t = S q_t with S <- update(S, *token), one sequence and one token at a time, in the
    textbook's layout.
    """
    outs, finals = [], []
    for b in range(q.shape[0]):
        S, rows = state[b].T, [np.zeros((0, state.shape[2]))]
        for t in range(q.shape[1]):
            after = update(S, *(a[b, t] for a in tokens))
            rows.append(((S if read == "strict" else after) @ column(q[b, t])).T)
            S = after
        outs.append(np.concatenate(rows))
        finals.append(S.T)
    return np.stack(outs), np.stack(finals)


def linear_update(S, k, v):
    return S + column(v) @ column(k).T


def decay_update(S, k, v, gamma):
    return gamma * S + column(v) @ column(k).T


def gla_update(S, k, v, alpha):
    return S @ np.diag(alpha) + column(v) @ column(k).T


def delta_update(S, k, v, beta):
    return S @ (np.eye(len(k)) - beta * column(k) @ column(k).T) + beta * column(v) @ column(k).T


def gated_delta_update(S, k, v, alpha, beta):
    return delta_update(alpha * S, k, v, beta)


def kda_update(S, k, v, alpha, beta):
    return delta_update(S @ np.diag(alpha), k, v, beta)


def dplr_update(S, k, v, alpha, a, b):
    return S @ (np.diag(alpha) + column(a) @ column(b).T) + column(v) @ column(k).T


def rwkv7_update(S, k, v, w, kappa, rate):
    return S @ (np.diag(w) - column(kappa) @ column(rate * kappa).T) + column(v) @ column(k).T


def comba_update(S, k, v, alpha, beta, share):
    return S @ (alpha * np.eye(len(k)) - share * beta * column(k) @ column(k).T) + beta * column(v) @ column(k).T


def delta_product_update(S, k, v, beta):
    for pair in zip(k, v, beta, strict=True):
        S = delta_update(S, *pair)
    return S


def gated_delta_product_update(S, k, v, alpha, beta):
    return delta_product_update(alpha * S, k, v, beta)


def longhorn_update(S, k, v, beta):
    """argmin_X |X - S|^2 + beta |X k - v|^2, from its normal equations X (I + beta k k^T) = S +
    beta v k^T.
    """
    matrix = np.eye(len(k)) + beta * column(k) @ column(k).T
    return np.linalg.solve(matrix, (S + beta * column(v) @ column(k).T).T).T


@every_read
@given(n=shapes, seed=seeds, data=st.data())
def test_every_update_is_the_formula_of_the_table(read: str, n: Shape, seed: int, data: st.DataObject) -> None:
    """Both forms of all of them against the update written out.   (U.10), (U.15), (U.20), (U.25),
    (U.30), (U.35), (U.40), (U.45), (U.50), (U.55) and their
    chunks
    """
    q, k, v, state = sequences(n, seed)
    chunk = data.draw(chunks(n.length), label="chunk")
    fade, step = (rates(seed, 0.1, 1.2, n.batch, n.length), rates(seed + 1, 0.1, 1.5, n.batch, n.length))
    channels, often = (rates(seed, 0.1, 1.2, n.batch, n.length, n.width), rates(seed, 0.1, 1.5, n.batch, n.length, 3))
    draw = generator(seed + 5)
    recall, write = (unit_keys(draw, n.batch, n.length, n.width) for _ in range(2))
    keys, values = (unit_keys(draw, n.batch, n.length, 3, n.width), draw(n.batch, n.length, 3, n.values))
    for update, recurrent, chunked, tokens in (
        (linear_update, linear_recurrent_fwd, linear_chunked_fwd, (k, v)),
        (decay_update, decay_recurrent_fwd, decay_chunked_fwd, (k, v, fade)),
        (gla_update, gla_recurrent_fwd, gla_chunked_fwd, (k, v, channels)),
        (delta_update, delta_recurrent_fwd, delta_chunked_fwd, (k, v, step)),
        (gated_delta_update, gated_delta_recurrent_fwd, gated_delta_chunked_fwd, (k, v, fade, step)),
        (kda_update, kda_recurrent_fwd, kda_chunked_fwd, (k, v, channels, step)),
        (dplr_update, dplr_recurrent_fwd, dplr_chunked_fwd, (k, v, channels, recall, write)),
        (delta_product_update, delta_product_recurrent_fwd, delta_product_chunked_fwd, (keys, values, often)),
        (gated_delta_product_update, gated_delta_product_recurrent_fwd, gated_delta_product_chunked_fwd, (keys, values, fade, often)),
        (longhorn_update, longhorn_recurrent_fwd, longhorn_chunked_fwd, (k, v, step)),
    ):
        expected = literal(update, q, state, read, *tokens)
        assert_trees_close(recurrent(q, *tokens, state, read=read)[0], expected, what=f"{update.__name__}, recurrent", scale=1.0)
        assert_trees_close(chunked(q, *tokens, state, chunk, read=read)[0], expected, what=f"{update.__name__}, chunked", scale=1.0)


# Special cases: outputs, states and gradients of the simpler rule
# -------------------------------------------------------------


def both(fwd: Callable, bwd: Callable, tokens: tuple, state: np.ndarray, read: str, seed: int) -> tuple[tuple, tuple]:
    """Output and gradients in chunks of 3."""
    output, res = fwd(*tokens, state, 3, read=read)
    draw = generator(seed + 9)
    return output, bwd(draw(*output[0].shape), draw(*output[1].shape), res)


@given(n=shapes, seed=seeds, read=read_names)
def test_gated_delta_without_gate_is_delta(n: Shape, seed: int, read: str) -> None:
    """alpha = 1.   (U.32), (U.33)"""
    q, k, v, state = sequences(n, seed)
    step = rates(seed, 0.1, 1.5, n.batch, n.length)
    out, (dq, dk, dv, _, dbeta, dstate) = both(
        gated_delta_chunked_fwd, gated_delta_chunked_bwd, (q, k, v, np.ones_like(step), step), state, read, seed
    )
    expected, gradients = both(delta_chunked_fwd, delta_chunked_bwd, (q, k, v, step), state, read, seed)
    assert_trees_close((out, dq, dk, dv, dbeta, dstate), (expected, *gradients), scale=1.0)


@given(n=shapes, seed=seeds, read=read_names)
def test_kda_with_equal_channels_is_gated_delta(n: Shape, seed: int, read: str) -> None:
    """alpha_c = the gate for every channel c; the gradient of the gate is the sum over
    channels.   (U.47), (U.48)
    """
    q, k, v, state = sequences(n, seed)
    gate, step = rates(seed, 0.2, 1.0, n.batch, n.length), rates(seed + 1, 0.1, 1.5, n.batch, n.length)
    alpha = np.repeat(gate[..., None], n.width, axis=-1)
    out, (dq, dk, dv, dalpha, dbeta, dstate) = both(kda_chunked_fwd, kda_chunked_bwd, (q, k, v, alpha, step), state, read, seed)
    expected, gradients = both(gated_delta_chunked_fwd, gated_delta_chunked_bwd, (q, k, v, gate, step), state, read, seed)
    assert_trees_close((out, dq, dk, dv, np.sum(dalpha, axis=-1), dbeta, dstate), (expected, *gradients), scale=1.0)


@every_read
def test_orthonormal_keys_do_not_make_kda_a_sum(read: str) -> None:
    """Keys along the axes, beta = 1, nothing in memory yet: KDA is gated linear attention. N for
    orthonormal keys in general, which a gate per channel turns into one another, as one gate never
    does.   (U.47)
    """
    draw, length = generator(4), 5
    q, v, alpha = draw(1, length, 6), draw(1, length, 3), rates(4, 0.2, 1.0, 1, length, 6)
    axes, turned = np.eye(6)[None, :length], np.linalg.qr(draw(6, 6))[0][None, :length]
    for k, equal in ((axes, True), (turned, False)):
        stored = kda_chunked_fwd(q, k, v, alpha, np.ones((1, length)), None, 2, read=read)[0]
        summed = gla_chunked_fwd(q, k, v, alpha, None, 2, read=read)[0]
        if equal:
            assert_trees_close(stored, summed)
        else:
            assert relative_error(stored[1], summed[1]) > CLEAR


@given(n=shapes, seed=seeds, read=read_names)
def test_dplr_without_its_second_pair_is_gated_linear_attention(n: Shape, seed: int, read: str) -> None:
    """b = 0, whatever is recalled; the gradient of a is 0.   (U.52), (U.53)"""
    q, k, v, state = sequences(n, seed)
    alpha, a = rates(seed, 0.2, 1.0, n.batch, n.length, n.width), generator(seed + 3)(*k.shape)
    out, (dq, dk, dv, dalpha, da, _, dstate) = both(dplr_chunked_fwd, dplr_chunked_bwd, (q, k, v, alpha, a, 0 * a), state, read, seed)
    expected, gradients = both(gla_chunked_fwd, gla_chunked_bwd, (q, k, v, alpha), state, read, seed)
    assert_trees_close((out, dq, dk, dv, dalpha, dstate), (expected, *gradients), scale=1.0)
    assert np.all(da == 0)


@given(n=shapes, seed=seeds, read=read_names)
def test_kda_is_dplr_that_takes_out_what_the_key_recalls(n: Shape, seed: int, read: str) -> None:
    """a = alpha k, b = -beta k, beta k in place of k; gradients by the chain rule. With it the gated
    delta rule and the delta rule are special cases too.   (U.52), (U.53)
    """
    q, k, v, state = sequences(n, seed)
    alpha, beta = rates(seed, 0.2, 1.0, n.batch, n.length, n.width), rates(seed + 1, 0.1, 1.5, n.batch, n.length, 1)
    tokens = q, beta * k, v, alpha, alpha * k, -beta * k
    out, (dq, dwrite, dv, dalpha, da, db, dstate) = both(dplr_chunked_fwd, dplr_chunked_bwd, tokens, state, read, seed)
    expected, gradients = both(kda_chunked_fwd, kda_chunked_bwd, (q, k, v, alpha, beta[..., 0]), state, read, seed)
    dk, dbeta = beta * (dwrite - db) + alpha * da, np.sum(k * (dwrite - db), axis=-1)
    assert_trees_close((out, dq, dk, dv, dalpha + k * da, dbeta, dstate), (expected, *gradients), scale=1.0)


@given(n=shapes, seed=seeds, data=st.data())
def test_rwkv7_is_dplr(n: Shape, seed: int, data: st.DataObject) -> None:
    """S (diag(w) - kappa^T (rate kappa)) + v^T k with |kappa| = 1, inclusive as published: a = -kappa,
    b = rate kappa.   (U.50), (U.52)
    """
    q, k, v, state = sequences(n, seed)
    kappa, w = generator(seed + 3)(*k.shape), rates(seed, 0.545, 1.0, *k.shape)
    kappa, rate = kappa / np.linalg.norm(kappa, axis=-1, keepdims=True), rates(seed + 1, 0.0, 1.0, *k.shape)
    expected = literal(rwkv7_update, q, state, "inclusive", k, v, w, kappa, rate)
    chunk = data.draw(chunks(n.length), label="chunk")
    assert_trees_close(dplr_chunked_fwd(q, k, v, w, -kappa, rate * kappa, state, chunk, read="inclusive")[0], expected, scale=1.0)


def comba(q, k, v, alpha, beta, share, d, of) -> tuple:
    """The arguments of DPLR that make it Comba, ``of`` the query of what is taken out."""
    gates = np.repeat(alpha[..., None], k.shape[-1], axis=-1)
    return q - d * k, beta[..., None] * k, v, gates, of, -(share * beta)[..., None] * k


@given(n=shapes, seed=seeds, d=st.floats(-1, 1), data=st.data())
def test_comba_is_dplr(n: Shape, seed: int, d: float, data: st.DataObject) -> None:
    """S (alpha - b beta k k^T) + beta v k^T, read by q - d k, inclusive as published: what is taken
    out is b times what k recalls before the gate.   (U.50), (U.52)
    """
    q, k, v, state = sequences(n, seed)
    alpha, beta, share = (rates(seed + i, 0.2, 1.0, n.batch, n.length) for i in range(3))
    expected = literal(comba_update, q - d * k, state, "inclusive", k, v, alpha, beta, share)
    chunk, tokens = data.draw(chunks(n.length), label="chunk"), comba(q, k, v, alpha, beta, share, d, k)
    assert_trees_close(dplr_chunked_fwd(*tokens, state, chunk, read="inclusive")[0], expected, scale=1.0)


def test_comba_with_all_taken_out_is_not_the_gated_delta_rule() -> None:
    """b = 1, d = 0: the gated delta rule recalls behind the gate, a = alpha k; N for a = k.   (U.52)"""
    q, k, v, state = sequences(Shape(1, 5, 3, 2), 0)
    alpha, beta, one = np.full((1, 5), 0.5), np.full((1, 5), 0.8), np.ones((1, 5))
    expected, _ = gated_delta_chunked_fwd(q, k, v, alpha, beta, state, read="inclusive")
    behind, before = (dplr_chunked_fwd(*comba(q, k, v, alpha, beta, one, 0, of), state, read="inclusive")[0] for of in (0.5 * k, k))
    assert_trees_close(behind, expected)
    assert relative_error(before[0], expected[0]) > CLEAR


def test_dplr_moves_a_row_which_no_gradient_step_does() -> None:
    """a asks for row 0, b writes it to row 1, alpha lets go of the rest: a transition that is not
    symmetric, so that it descends no loss of S alone; N for the delta rule's, which are.   (U.49),
    (U.50)
    """
    nothing, first, second = np.zeros((1, 1, 2)), np.eye(2)[None, :1], np.eye(2)[None, 1:]
    (_, moved), _ = dplr_recurrent_fwd(nothing, nothing, nothing, nothing, first, second, np.eye(2)[None], read="strict")
    assert_close(moved, np.asarray([[[0.0, 0.0], [1.0, 0.0]]]))
    (_, step), _ = delta_recurrent_fwd(nothing, first + 2 * second, nothing, np.ones((1, 1)), np.eye(2)[None], read="strict")
    assert_close(step, np.matrix_transpose(step))


@given(n=shapes, seed=seeds, read=read_names)
def test_decay_without_decay_is_linear_attention(n: Shape, seed: int, read: str) -> None:
    """gamma = 1.   (U.17), (U.18)"""
    q, k, v, state = sequences(n, seed)
    out, (dq, dk, dv, _, dstate) = both(decay_chunked_fwd, decay_chunked_bwd, (q, k, v, np.ones((n.batch, n.length))), state, read, seed)
    expected, gradients = both(linear_chunked_fwd, linear_chunked_bwd, (q, k, v), state, read, seed)
    assert_trees_close((out, dq, dk, dv, dstate), (expected, *gradients), scale=1.0)


@given(n=shapes, seed=seeds, read=read_names)
def test_gated_linear_attention_with_equal_channels_is_decay(n: Shape, seed: int, read: str) -> None:
    """alpha_c = gamma for every channel c; the gradient of gamma is the sum over
    channels.   (U.22), (U.23)
    """
    q, k, v, state = sequences(n, seed)
    gamma = rates(seed, 0.2, 1.0, n.batch, n.length)
    alpha = np.repeat(gamma[..., None], n.width, axis=-1)
    out, (dq, dk, dv, dalpha, dstate) = both(gla_chunked_fwd, gla_chunked_bwd, (q, k, v, alpha), state, read, seed)
    expected, gradients = both(decay_chunked_fwd, decay_chunked_bwd, (q, k, v, gamma), state, read, seed)
    assert_trees_close((out, dq, dk, dv, np.sum(dalpha, axis=-1), dstate), (expected, *gradients), scale=1.0)


@given(n=shapes, seed=seeds, read=read_names)
def test_delta_product_with_one_step_is_delta(n: Shape, seed: int, read: str) -> None:
    """N = 1.   (U.37), (U.38)"""
    q, k, v, state = sequences(n, seed)
    step = rates(seed, 0.1, 1.5, n.batch, n.length)
    tokens = q, k[:, :, None], v[:, :, None], step[:, :, None]
    out, (dq, dk, dv, dbeta, dstate) = both(delta_product_chunked_fwd, delta_product_chunked_bwd, tokens, state, read, seed)
    expected, gradients = both(delta_chunked_fwd, delta_chunked_bwd, (q, k, v, step), state, read, seed)
    assert_trees_close((out, dq, dk[:, :, 0], dv[:, :, 0], dbeta[:, :, 0], dstate), (expected, *gradients), scale=1.0)


@given(n=shapes, seed=seeds, read=read_names)
def test_gated_delta_product_with_one_step_is_gated_delta(n: Shape, seed: int, read: str) -> None:
    """N = 1.   (U.57), (U.58)"""
    q, k, v, state = sequences(n, seed)
    gate, step = rates(seed, 0.2, 1.0, n.batch, n.length), rates(seed + 1, 0.1, 1.5, n.batch, n.length)
    tokens = q, k[:, :, None], v[:, :, None], gate, step[:, :, None]
    forms = gated_delta_product_chunked_fwd, gated_delta_product_chunked_bwd
    out, (dq, dk, dv, dgate, dbeta, dstate) = both(*forms, tokens, state, read, seed)
    expected, gradients = both(gated_delta_chunked_fwd, gated_delta_chunked_bwd, (q, k, v, gate, step), state, read, seed)
    assert_trees_close((out, dq, dk[:, :, 0], dv[:, :, 0], dgate, dbeta[:, :, 0], dstate), (expected, *gradients), scale=1.0)


@given(n=shapes, seed=seeds, read=read_names, steps=st.integers(1, 3))
def test_gated_delta_product_without_gate_is_delta_product(n: Shape, seed: int, read: str, steps: int) -> None:
    """alpha = 1.   (U.57), (U.58)"""
    draw, pairs = generator(seed), (n.batch, n.length, steps)
    q, k, v = draw(n.batch, n.length, n.width), unit_keys(draw, *pairs, n.width), draw(*pairs, n.values)
    beta, state = rates(seed, 0.1, 1.5, *pairs), memory(n, seed)
    tokens, forms = (q, k, v, np.ones(pairs[:2]), beta), (gated_delta_product_chunked_fwd, gated_delta_product_chunked_bwd)
    out, (dq, dk, dv, _, dbeta, dstate) = both(*forms, tokens, state, read, seed)
    expected, gradients = both(delta_product_chunked_fwd, delta_product_chunked_bwd, (q, k, v, beta), state, read, seed)
    assert_trees_close((out, dq, dk, dv, dbeta, dstate), (expected, *gradients), scale=1.0)


@every_read
def test_a_token_of_gated_delta_product_has_one_gate(read: str) -> None:
    """What was there is halved once, not once per step, and what the token writes is not halved at
    all.   (U.55), (U.57)
    """
    k, v = np.eye(4)[None, None, :2], np.asarray([[[[1.0], [2.0]]]])  # writes rows 0 and 1
    state, query, half = np.asarray([[[0.0], [0.0], [3.0], [4.0]]]), np.ones((1, 1, 4)), np.full((1, 1), 0.5)
    tokens = query, k, v, half, np.ones((1, 1, 2))
    for form in (gated_delta_product_recurrent_fwd, gated_delta_product_chunked_fwd):
        (out, after), _ = form(*tokens, state, read=read)
        assert_close(after, np.asarray([[[1.0], [2.0], [1.5], [2.0]]]))
        assert_close(out, np.asarray([[[7.0 if read == "strict" else 6.5]]]))


@given(n=shapes, seed=seeds, steps=st.integers(1, 4))
def test_delta_product_leaves_what_delta_leaves_after_n_times_as_many_tokens(n: Shape, seed: int, steps: int) -> None:
    """S of T tokens of N steps = S of N T tokens.   (U.35)"""
    draw, pairs = generator(seed), (n.batch, n.length, steps)
    k, v, beta = (unit_keys(draw, *pairs, n.width), draw(*pairs, n.values), rates(seed, 0.1, 1.5, *pairs))
    flat = (np.reshape(a, (n.batch, n.length * steps, *a.shape[3:])) for a in (k, v, beta))
    (_, expected), _ = delta_recurrent_fwd(draw(n.batch, n.length * steps, n.width), *flat, memory(n, seed), read="strict")
    (_, state), _ = delta_product_recurrent_fwd(draw(n.batch, n.length, n.width), k, v, beta, memory(n, seed), read="strict")
    assert_close(state, expected, scale=1.0)


def test_a_chunk_of_delta_product_counts_tokens_and_not_steps() -> None:
    """T tokens in chunks of S are ceil(T / S) chunks, of S N steps each but for the last, with a gate
    or without.   (U.37), (U.57)
    """
    draw = generator(6)
    tokens = draw(1, 7, 3), draw(1, 7, 2, 3), draw(1, 7, 2, 4), draw(1, 7, 2)
    gated = *tokens[:3], np.ones((1, 7)), tokens[3]
    for chunk, sizes in ((1, [2] * 7), (3, [6, 6, 2]), (7, [14]), (9, [14]), (None, [14])):
        _, res = delta_product_chunked_fwd(*tokens, None, chunk, read="strict")
        assert [part.k.shape[1] for part in res.delta] == sizes
        _, res = gated_delta_product_chunked_fwd(*gated, None, chunk, read="strict")
        assert [part.k.shape[1] for part in res.delta] == sizes


def test_two_delta_steps_rotate() -> None:
    """Reflections, beta |k|^2 = 2, at an angle of 45 degrees: k_0 then k_1 turn the memory by 90
    degrees; one step never does.   (U.35)
    """
    k = np.asarray([[1.0, 0.0], [np.sqrt(0.5), np.sqrt(0.5)]])[None, None]  # (1,1,2,2)
    tokens = np.zeros((1, 1, 2)), k, np.zeros((1, 1, 2, 1)), 2 * np.ones((1, 1, 2))
    turned = np.concatenate(
        [delta_product_chunked_fwd(*tokens, np.eye(2)[None, :, i : i + 1], read="strict")[0][1] for i in (0, 1)], axis=2
    )
    assert_close(turned[0], np.asarray([[0.0, -1.0], [1.0, 0.0]]))


@given(n=shapes, seed=seeds, read=read_names)
def test_longhorn_is_delta_with_a_smaller_rate(n: Shape, seed: int, read: str) -> None:
    """beta' = beta / (1 + beta |k|^2), outputs and gradients, for keys of any length and any beta
    >= 0.   (U.40) to (U.43)
    """
    q, k, v, state = sequences(n, seed)
    k, beta = 3 * k, rates(seed, 0.0, 20.0, n.batch, n.length)
    out, (dq, dk, dv, _, dstate) = both(longhorn_chunked_fwd, longhorn_chunked_bwd, (q, k, v, beta), state, read, seed)
    rate = beta / (1 + beta * np.sum(k * k, axis=-1))
    expected, (eq, ek, ev, erate, estate) = both(delta_chunked_fwd, delta_chunked_bwd, (q, k, v, rate), state, read, seed)
    assert_trees_close((out, dq, dv, dstate), (expected, eq, ev, estate), scale=1.0)
    assert_close(dk, ek - 2 * (erate * rate**2)[..., None] * k, scale=1.0)


@every_read
def test_orthonormal_keys_make_the_delta_rule_a_sum(read: str) -> None:
    """k_s . k_t = [s = t], beta = 1, nothing in memory yet: the error is the value, and gates
    become decays.   (U.27), (U.32)
    """
    draw, length = generator(4), 5
    q, v, alpha = draw(2, length, 6), draw(2, length, 3), rates(4, 0.2, 1.0, 2, length)
    k = np.stack([np.linalg.qr(draw(6, 6))[0][:length] for _ in range(2)])
    ones = np.ones((2, length))
    assert_trees_close(delta_chunked_fwd(q, k, v, ones, None, 2, read=read)[0], linear_chunked_fwd(q, k, v, None, 2, read=read)[0])
    gated, faded = (
        gated_delta_chunked_fwd(q, k, v, alpha, ones, None, 2, read=read),
        decay_chunked_fwd(q, k, v, alpha, None, 2, read=read),
    )
    assert_trees_close(gated[0], faded[0])
    once_more = np.concatenate([k, k], axis=1), np.concatenate([v, v], axis=1)
    stored = delta_recurrent_fwd(np.zeros((2, 2 * length, 6)), *once_more, np.ones((2, 2 * length)), read=read)[0][1]
    summed = linear_recurrent_fwd(np.zeros((2, 2 * length, 6)), *once_more, read=read)[0][1]
    assert relative_error(stored, summed) > CLEAR  # N: a pair that comes again is written again by the sum alone


@given(n=shapes, seed=seeds)
def test_strict_linear_attention_is_the_op(n: Shape, seed: int) -> None:
    """linear, and decay with a constant gamma, are ``ops.linear_attention`` with keep = 1 and keep
    = gamma.   (U.12), (U.17)
    """
    q, k, v, state = sequences(n, seed)
    for keep, ours in (
        (1.0, linear_chunked_fwd(q, k, v, state, 2, read="strict")[0]),
        (0.7, decay_chunked_fwd(q, k, v, np.full((n.batch, n.length), 0.7), state, 2, read="strict")[0]),
    ):
        assert_trees_close(ours, linear_attention_fwd(q, k, v, np.asarray(keep), state)[0], scale=1.0)


# What the optimizers promise
# -------------------------------------------------------------------------------------------------


@given(n=shapes, seed=seeds)
def test_linear_attention_is_one_full_batch_step_on_least_squares(n: Shape, seed: int) -> None:
    """From S = 0, one step of rate 1/2 on sum_s |k_s S - v_s|^2 leaves sum_s k_s^T v_s.   (U.10)"""
    q, k, v, _ = sequences(n, seed)
    (_, state), _ = linear_recurrent_fwd(q, k, v, read="strict")
    gradient = 2 * np.matrix_transpose(k) @ (k @ np.zeros_like(state) - v)
    assert_close(state, -0.5 * gradient, scale=1.0)


@given(n=shapes, seed=seeds)
def test_a_delta_step_of_rate_one_over_the_key_squared_stores_the_pair(n: Shape, seed: int) -> None:
    """beta = 1 / |k|^2: afterwards k S = v and the loss is 0, whatever was in memory.   (U.25)"""
    n = n._replace(length=1)
    _, k, v, state = sequences(n, seed)
    (recalled, after), _ = delta_recurrent_fwd(k, k, v, 1 / np.sum(k * k, axis=-1), state, read="inclusive")
    assert_close(recalled, v, scale=1.0)
    assert_close(delta_loss(after, k[:, 0], v[:, 0]), np.zeros(n.batch), scale=1.0)


@given(n=shapes, seed=seeds, beta=st.sampled_from([0.01, 1.0, 1e3]))
def test_a_longhorn_step_is_the_proximal_point(n: Shape, seed: int, beta: float) -> None:
    """S' = S - beta dl/dS(S'), the minimum of |X - S|^2 + beta |k X - v|^2: every other X is
    worse.   (U.39), (U.40)
    """
    n = n._replace(length=1)
    q, k, v, S = sequences(n, seed)
    (_, after), _ = longhorn_recurrent_fwd(q, 2 * k, v, np.full((n.batch, 1), beta), S, read="strict")
    key, value = 2 * k[:, 0], v[:, 0]
    assert_close(after, S - beta * longhorn_gradient(after, key, value), scale=float(1 + beta))

    def objective(X: np.ndarray) -> np.ndarray:
        return np.sum((X - S) ** 2, axis=(1, 2)) + 2 * beta * delta_loss(X, key, value)

    for i in range(5):
        assert np.all(objective(after + 0.1 * generator(seed + i)(*S.shape)) > objective(after))


def test_an_implicit_step_cannot_overshoot_and_an_explicit_one_can() -> None:
    """beta |k|^2 = 100: forty delta steps on one pair blow up, forty of Longhorn's approach its
    value.   (U.25), (U.40)
    """
    k, v = np.full((1, 40, 1), 10.0), np.ones((1, 40, 1))
    (_, explicit), _ = delta_recurrent_fwd(k, k, v, np.ones((1, 40)), read="strict")
    (_, implicit), _ = longhorn_recurrent_fwd(k, k, v, np.ones((1, 40)), read="strict")
    assert np.all(np.abs(explicit) > 1e30)
    assert_close(10.0 * implicit, np.ones((1, 1, 1)))


@every_read
def test_the_order_of_the_past_matters_to_the_delta_rule_and_not_to_a_sum(read: str) -> None:
    """Permuting the tokens leaves sum_s k_s^T v_s; N for the delta rules.   (U.10), (U.25)"""
    q, k, v, state = sequences(Shape(1, 5, 3, 2), 0)
    step, order = np.full((1, 5), 0.8), [3, 0, 4, 1, 2]
    summed = (linear_chunked_fwd(q, k[:, p], v[:, p], state, read=read)[0][1] for p in (slice(None), order))
    stored = (delta_chunked_fwd(q, k[:, p], v[:, p], step, state, read=read)[0][1] for p in (slice(None), order))
    assert_close(*summed)
    assert relative_error(*stored) > CLEAR


# The WY representation
# -------------------------------------------------------------------------------------------------------


@given(n=shapes, seed=seeds)
def test_a_chunk_of_delta_steps_multiplies_the_state_by_one_matrix_of_low_rank(n: Shape, seed: int) -> None:
    """prod_t (I - beta_t k_t^T k_t) = I - k^T W, W = (I + A)^{-1} beta k; what is added is k^T (I +
    A)^{-1} beta v.   (U.7), (U.27)
    """
    q, k, v, _ = sequences(n, seed)
    beta = rates(seed, 0.1, 1.5, n.batch, n.length)
    identity = np.tile(np.eye(n.width), (n.batch, 1, 1))
    product = identity
    for t in range(n.length):
        product = (identity - beta[:, t, None, None] * k[:, t, :, None] * k[:, t, None, :]) @ product
    a = np.tril(beta[:, :, None] * (k @ np.matrix_transpose(k)), -1)
    W, U = (solve(a, beta[:, :, None] * right) for right in (k, v))
    kT = np.matrix_transpose(k)
    assert_close(identity - kT @ W, product, scale=1.0)
    state = memory(n, seed)
    (_, after), _ = delta_chunked_fwd(q, k, v, beta, state, read="strict")
    assert_close(after, product @ state + kT @ U, scale=1.0)
    assert_close(after, state + kT @ (U - W @ state), scale=1.0)


@given(length=st.integers(0, 9), width=st.integers(1, 3), seed=seeds)
def test_solve_is_the_inverse_of_a_unit_triangular_matrix(length: int, width: int, seed: int) -> None:
    """(I + A) x = r, and the adjoint is dr = (I + A)^{-T} dx, dA = -dr x^T below the
    diagonal.   (U.7), (U.8)
    """
    draw = generator(seed)
    a, r, dx = np.tril(draw(2, length, length), -1), draw(2, length, width), draw(2, length, width)
    inverse = np.linalg.inv(np.eye(length) + a)
    x = solve(a, r)
    size = float(np.max(np.abs(inverse), initial=1.0)) ** 2
    assert_close(x, inverse @ r, scale=size)
    da, dr = solve_bwd(dx, a, x)
    assert_close(dr, np.matrix_transpose(inverse) @ dx, scale=size)
    assert_close(da, np.tril(-np.matrix_transpose(inverse) @ dx @ np.matrix_transpose(inverse @ r), -1), scale=size**2)


# Fading
# ----------------------------------------------------------------------------------------------------------------------


@given(length=st.integers(0, 8), seed=seeds)
def test_fades_are_the_products_of_the_decays_in_between(length: int, seed: int) -> None:
    """G_ij = gamma_j ... gamma_{i-1}; d G_ij / d gamma_r = G_{i,r+1} G_rj for j <= r < i.   (U.3),
    (U.4)

    Some decays are 0, some negative.
    """
    gamma, draw = rates(seed, -0.5, 1.5, 2, length), generator(seed)
    gamma[rates(seed + 1, 0, 1, 2, length) < 0.2] = 0
    table, dfade = fades(gamma), draw(2, length + 1, length + 1)
    dgamma = np.zeros_like(gamma)
    for b in range(2):
        for i in range(length + 1):
            for j in range(length + 1):
                expected = np.prod(gamma[b, j:i]) if j <= i else 0.0
                assert_close(table[b, i, j], expected)
                for r in range(j, i):
                    dgamma[b, r] += dfade[b, i, j] * np.prod(np.delete(gamma[b, j:i], r - j))
    assert_close(fades_bwd(dfade, table), dgamma, scale=1.0)
    assert_close(unfaded(length, gamma)[0], fades(np.ones((1, length)))[0])


@every_read
@given(n=shapes, seed=seeds)
def test_sums_are_reads_of_a_state_that_is_a_sum_of_faded_writes(read: str, n: Shape, seed: int) -> None:
    """o_t = q_t S_i, i = t or t + 1, S_i = G_i0 S_0 + sum_{j<i} G_{i,j+1} k_j^T u_j, for any table
    G.   (U.1), (U.5)
    """
    q, k, u, state = sequences(n, seed)
    table = np.tril(generator(seed + 4)(n.batch, n.length + 1, n.length + 1))
    out, last = sums(q, k, u, table, state, read)
    states = [
        table[:, i, 0, None, None] * state
        + sum((table[:, i, j + 1, None, None] * k[:, j, :, None] * u[:, j, None, :] for j in range(i)), np.zeros_like(state))
        for i in range(n.length + 1)
    ]
    for t in range(n.length):
        seen = states[t] if read == "strict" else states[t + 1]
        assert_close(out[:, t], np.matmul(q[:, t, None], seen)[:, 0], scale=1.0)
    assert_close(last, states[-1], scale=1.0)


def twice(*rows: np.ndarray) -> tuple:
    """The same pair at both steps of a token."""
    return tuple(np.stack([a, a], axis=2) for a in rows)


FORGETFUL = {
    "decay": (decay_recurrent_fwd, decay_chunked_fwd, decay_chunked_bwd, lambda gamma, width: (gamma,)),
    "gla": (gla_recurrent_fwd, gla_chunked_fwd, gla_chunked_bwd, lambda gamma, width: (np.repeat(gamma[..., None], width, axis=-1),)),
    "kda": (
        kda_recurrent_fwd,
        kda_chunked_fwd,
        kda_chunked_bwd,
        lambda gamma, width: (np.repeat(gamma[..., None], width, axis=-1), 0 * gamma + 1),
    ),
    "dplr": (
        dplr_recurrent_fwd,
        dplr_chunked_fwd,
        dplr_chunked_bwd,
        lambda gamma, width: (gates := np.repeat(gamma[..., None], width, axis=-1), 0.5 + 0 * gates, -0.1 + 0 * gates),
    ),
    "gated_delta_product": (
        lambda q, k, v, *rest, read: gated_delta_product_recurrent_fwd(q, *twice(k, v), *rest, read=read),
        lambda q, k, v, *rest, read: gated_delta_product_chunked_fwd(q, *twice(k, v), *rest, read=read),
        gated_delta_product_chunked_bwd,
        lambda gamma, width: (gamma, 0 * np.stack([gamma, gamma], axis=2) + 0.7),
    ),
    "gated_delta": (
        gated_delta_recurrent_fwd,
        gated_delta_chunked_fwd,
        gated_delta_chunked_bwd,
        lambda gamma, width: (gamma, 0 * gamma + 1),
    ),
}


@every_read
@pytest.mark.parametrize("name", FORGETFUL)
@pytest.mark.parametrize(("dtype", "tiny"), [("float64", 1e-100), ("float32", 1e-12)])
def test_strong_decay_neither_overflows_nor_divides_zero_by_zero(name: str, dtype: str, tiny: float, read: str) -> None:
    """gamma^T underflows, so any ratio of cumulative products is 0 / 0 or infinite; products
    over the gap are right.
    """
    recurrent, chunked, chunked_bwd, rates_of = FORGETFUL[name]
    gamma = np.full((2, 12), 1.0)
    gamma[:, 2:9] = tiny
    assert np.prod(gamma.astype(dtype)[0]) == 0
    q, k, v, state = (a.astype(dtype) for a in sequences(Shape(2, 12, 3, 2), 1))
    tokens = q, k, v, *(a.astype(dtype) for a in rates_of(gamma, 3))
    expected, _ = recurrent(*tokens, state, read=read)
    actual, res = chunked(*tokens, state, read=read)
    assert_trees_close(actual, expected, RTOL if dtype == "float64" else float32_bound(terms=12))
    gradients = chunked_bwd(np.ones_like(actual[0]), np.ones_like(actual[1]), res)
    assert all(np.all(np.isfinite(g)) for g in gradients)


def test_products_over_the_gap_keep_what_a_difference_of_summed_logarithms_loses() -> None:
    """After a decay of 1e-30, float32 log-differences have lost the decays that follow; N for the
    difference.   (U.3)
    """
    gamma = np.asarray([[1e-30, 1e-30, 1e-30, 0.9, 0.99, 0.999]], dtype="float32")
    exact = 0.9 * 0.99 * 0.999
    total = np.cumsum(np.log(gamma), axis=1)
    difference = np.exp(total[0, 5] - total[0, 2])
    product = fades(gamma)[0, 6, 3]
    assert abs(product - exact) < float32_bound(terms=3, stages=1)
    assert abs(difference - exact) > 10 * float32_bound(terms=3, stages=1)


def test_a_token_takes_at_least_one_step() -> None:
    """N = 0 is a mistake.   (U.35), (U.37), (U.55), (U.57)"""
    q, none = np.ones((1, 2, 3)), np.ones((1, 2, 0, 3))
    for form in (delta_product_recurrent_fwd, delta_product_chunked_fwd):
        with pytest.raises(ValueError, match="at least one step"):
            form(q, none, none, np.ones((1, 2, 0)), read="strict")
    for form in (gated_delta_product_recurrent_fwd, gated_delta_product_chunked_fwd):
        with pytest.raises(ValueError, match="at least one step"):
            form(q, none, none, np.ones((1, 2)), np.ones((1, 2, 0)), read="strict")
