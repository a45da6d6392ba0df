"""The smallest fast weight layer on top of a model: what every token reads, formed literally; forms
of the sum; causality; gradients of both orders; and mutants that these must reject.

The literal side is plain NumPy with parameters that really move. Its Jacobian of the normalisation
is a matrix that is written out.

A docstring that opens with "N:" is a negative control.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fwl_ref.fast_matrix
from fwl_ref.fast_matrix import (
    FastMatrix,
    MatrixSettings,
    fast_matrix_bwd,
    fast_matrix_fwd,
    fast_matrix_score,
    write_bwd,
    write_fwd,
)
from fwl_ref.gradcheck import AdjointError, check_adjoint
from fwl_ref.key_map import KeyMap, key_bwd, key_fwd, whitening
from fwl_ref.norm import norm_bwd, norm_bwd_bwd, norm_fwd
from fwl_ref.ops.blocked_head import blocked_head_nll
from fwl_ref.ops.dense import dense_fwd
from fwl_ref.tree import leaves, tree_map
from tests.strategies import MatrixCase, at_most, generator, make_matrix_case, matrix_cases, seeds, splits
from tests.theorems.compare import CLEAR, EVERY_NORMALIZER, perturb_future
from tests.tolerances import assert_bitwise, assert_close, assert_trees_close, relative_error

FIXED = make_matrix_case(2, 7, 5, 4, 6, MatrixSettings(chunk=3, frozen=False, block=4), seed=3, mask="real", decay=0.1)


def with_settings(case: MatrixCase, **changes: Any) -> MatrixCase:
    return case._replace(settings=case.settings._replace(**changes))


def run(case: MatrixCase, state: FastMatrix | None = None) -> tuple:
    """Fast losses, plain losses, state."""
    return fast_matrix_fwd(*case, state)[0]


def tokens(case: MatrixCase, part: slice) -> MatrixCase:
    return case._replace(x=case.x[:, part], labels=case.labels[:, part], weights=case.weights[:, part])


# The literal side
# ------------------------------------------------------------------------------------------------------------


def normalisation(z: np.ndarray, eps: float, norm: str) -> tuple[np.ndarray, np.ndarray]:
    """(D)->(D),(D,D)   the normalised z and its Jacobian, dn_i / dz_j"""
    width = len(z)
    centre = np.eye(width) - (1 / width if norm == "layer" else 0)
    v = centre @ z
    size = np.sqrt(np.mean(v**2) + eps)
    return v / size, centre / size - np.outer(v, centre @ v) / (width * size**3)


def losses_and_gradient(case: MatrixCase, x: np.ndarray, label: int, W: np.ndarray, b: np.ndarray) -> tuple[float, FastMatrix]:
    """The loss of one token at the parameters W and b, and its gradient with respect to them."""
    p, s = case.slow, case.settings
    k = (x - p.key.mean) @ p.key.A
    k = k / np.sqrt(np.sum(k**2) + 1e-6) if s.unit else k
    n, jacobian = normalisation(x + k @ W + b, s.eps, s.norm)
    logits = (n * p.gain + p.bias) @ p.U + (0 if p.c is None else p.c)
    probabilities = np.exp(logits - np.max(logits))
    probabilities /= np.sum(probabilities)
    dz = jacobian.T @ (p.gain * (p.U @ (probabilities - np.eye(len(logits))[label])))
    return -float(np.log(probabilities[label])), FastMatrix(np.outer(k, dz), dz)


def literal(case: MatrixCase, state: FastMatrix | None = None) -> tuple:
    """``run`` with p_t = p - eta_p G_t formed for every token, G_{t+1} = keep G_t + grad l_t / N."""
    slow, eta, total = case.slow, case.eta, np.sum(case.weights, axis=1)
    n = {"constant": case.settings.constant + 0 * total, "sequence": total, "batch": np.sum(total) + 0 * total}[case.settings.normalizer]
    fast, plain, states = np.zeros(case.labels.shape), np.zeros(case.labels.shape), []
    for b in range(len(case.labels)):
        G = FastMatrix(np.zeros_like(slow.W), np.zeros_like(slow.b)) if state is None else tree_map(lambda s, b=b: s[b], state)
        for t, label in enumerate(case.labels[b]):
            moved = slow.W - eta.W * G.W, slow.b - eta.b * G.b
            fast[b, t], _ = losses_and_gradient(case, case.x[b, t], label, *moved)
            plain[b, t], gradient = losses_and_gradient(case, case.x[b, t], label, slow.W, slow.b)
            share = case.weights[b, t] / (n[b] if n[b] > 0 else 1)
            G = tree_map(lambda g, new, share=share: (1 - case.decay) * g + share * new, G, gradient)
        states.append(G)
    return fast, plain, FastMatrix(*(np.stack(column) for column in zip(*states, strict=True)))


def assert_literal(case: MatrixCase, state: FastMatrix | None = None) -> None:
    found, wanted = run(case, state), literal(case, state)
    scale = 1 + float(np.max(np.sum(case.weights, axis=1), initial=0.0))
    assert_trees_close(found, wanted, scale=scale)


@given(case=matrix_cases(normalizers=EVERY_NORMALIZER))
def test_token_t_uses_the_parameters_that_the_tokens_before_it_left(case):
    """W_t = W - eta_W sum_{s<t} keep^{t-s-1} dl_s/dW / N, and so for b, at every t   (X.5), (X.6), (X.9)"""
    assert_literal(case)


@given(case=matrix_cases(), seed=seeds)
def test_it_goes_on_from_a_state(case, seed):
    """The state is the decayed sum of past gradients   (X.6)"""
    assert_literal(case, some_state(case, seed))


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_the_literal_gradient_is_that_of_differences(norm):
    """The literal side's gradient against central differences of its own loss."""
    case, step = with_settings(FIXED, norm=norm), 1e-5
    W, b = case.slow.W, case.slow.b
    _, gradient = losses_and_gradient(case, case.x[0, 0], 2, W, b)
    for i, j in np.ndindex(*W.shape):
        e = np.zeros_like(W)
        e[i, j] = step
        ahead, behind = (losses_and_gradient(case, case.x[0, 0], 2, W + v, b)[0] for v in (e, -e))
        assert abs((ahead - behind) / (2 * step) - gradient.W[i, j]) < 1e-8


def test_each_step_size_moves_the_losses():
    """N: with one step size alone the fast losses are others than the plain ones   (X.6)"""
    for name in FastMatrix._fields:
        eta = FastMatrix(*(e if n == name else 0 * e for n, e in zip(FastMatrix._fields, FIXED.eta, strict=True)))
        fast, plain, _ = run(FIXED._replace(eta=eta))
        assert relative_error(fast, plain) > CLEAR


# It starts as the model
# ------------------------------------------------------------------------------------------------------------


@given(case=matrix_cases())
def test_with_step_sizes_of_0_it_is_the_plain_layer_to_the_bit(case):
    """eta = 0: z' = z   (X.6)"""
    fast, plain, _ = run(case._replace(eta=tree_map(lambda e: 0 * e, case.eta)))
    assert_bitwise(fast, plain)


@given(case=matrix_cases())
def test_with_a_matrix_and_a_bias_of_0_the_plain_pass_is_the_model_to_the_bit(case):
    """W = 0, b = 0: z = x   (X.5), (X.11)"""
    slow, s = case.slow, case.settings
    case = case._replace(slow=slow._replace(W=0 * slow.W, b=0 * slow.b))
    n, _ = norm_fwd(case.x, slow.gain, slow.bias, s.eps, s.norm)
    assert_bitwise(run(case)[1], blocked_head_nll(n, slow.U, slow.c, case.labels, s.block))


def test_the_first_token_has_read_nothing():
    """t = 0: an empty sum   (X.6)"""
    fast, plain, _ = run(FIXED)
    assert_bitwise(fast[:, 0], plain[:, 0])


# Forms
# -----------------------------------------------------------------------------------------------------------------------


@given(case=matrix_cases(min_length=0), other=st.none() | st.integers(1, 9), block=st.none() | st.integers(1, 20))
def test_chunks_and_blocks_change_nothing(case, other, block):
    """Chunked = parallel = one token at a time; the head in any blocks   (L.2), (X.9)"""
    assert_trees_close(run(with_settings(case, chunk=other, block=block)), run(case), scale=1.0)


@given(case=matrix_cases(min_length=0), data=st.data(), seed=seeds)
def test_a_sequence_may_be_cut_anywhere(case, data, seed):
    """run(x[:k]) and run(x[k:], state) = run(x), also one token at a time   (X.9)"""
    cuts, state = data.draw(splits(case.x.shape[1]), label="cuts"), some_state(case, seed)
    expected, rows = run(case, state), []
    for low, high in zip(cuts[:-1], cuts[1:], strict=True):
        nll, _, state = run(tokens(case, slice(low, high)), state)
        rows.append(nll)
    assert_close(np.concatenate(rows, axis=1), expected[0], scale=1.0)
    assert_trees_close(state, expected[2], scale=1.0)


@given(case=matrix_cases(min_length=0))
def test_reading_without_residuals_is_the_same(case):
    """fast_matrix_score: the same losses and state, and n' whose logits give those losses   (X.9)"""
    nll, n, state = fast_matrix_score(*case)
    fast, _, expected = run(case)
    assert_bitwise(nll, fast)
    assert_trees_close(state, expected)
    logits, _ = dense_fwd(n, case.slow.U, case.slow.c)
    own = np.take_along_axis(logits, case.labels[..., None], axis=-1)[..., 0]
    assert_close(np.log(np.sum(np.exp(logits), axis=-1)) - own, nll, scale=1.0)


# Causality
# ------------------------------------------------------------------------------------------------------------------


@given(case=matrix_cases(max_batch=2), data=st.data(), seed=seeds)
def test_no_token_sees_its_label_or_anything_later(case, data, seed):
    """n'_0, ..., n'_t are the same bits whatever x_s, s > t, and labels and weights from t on are: what
    token t predicts does not know its own label   (X.6)
    """
    t = data.draw(st.integers(0, case.x.shape[1] - 1), label="t")
    other = perturb_future((case.x, case.labels, case.weights), t, case.slow.U.shape[1], seed)
    changed = case._replace(x=other[0], labels=other[1], weights=other[2])
    (nll, n, _), (nll_there, n_there, _) = fast_matrix_score(*case), fast_matrix_score(*changed)
    assert_bitwise(n_there[:, : t + 1], n[:, : t + 1])
    assert_bitwise(nll_there[:, :t], nll[:, :t])


def test_a_weight_of_0_is_not_written():
    """N: and a weight above 0 is   (X.5)"""
    weights = FIXED.weights.copy()
    weights[:, 2] = 0
    labels = FIXED.labels.copy()
    labels[:, 2] = (labels[:, 2] + 1) % FIXED.slow.U.shape[1]
    later = slice(3, None)
    silent, other = (run(FIXED._replace(weights=weights, labels=y))[0][:, later] for y in (FIXED.labels, labels))
    assert_bitwise(silent, other)
    assert relative_error(run(FIXED._replace(labels=labels))[0][:, later], run(FIXED)[0][:, later]) > CLEAR


# Gradients
# -------------------------------------------------------------------------------------------------------------------


def some_state(case: MatrixCase, seed: int) -> FastMatrix:
    normal, batch = generator(seed), case.x.shape[0]
    return FastMatrix(*(normal(batch, *p.shape, scale=0.1) for p in (case.slow.W, case.slow.b)))


def as_function(case: MatrixCase) -> tuple[Callable, Callable]:
    """(x, slow, eta, decay, state) -> (fast losses, state); the head is a constant if it is frozen."""

    def fwd(x, slow, eta, decay, state):
        if case.settings.frozen:
            slow = slow._replace(U=case.slow.U, c=case.slow.c)
        (nll, _, out), res = fast_matrix_fwd(x, case.labels, case.weights, slow, eta, decay, case.settings, state)
        return (nll, out), res

    def bwd(g, res):
        return fast_matrix_bwd(*g, res)

    return fwd, bwd


def check(case: MatrixCase, state: FastMatrix | None, seed: int = 0) -> Any:
    args = (case.x, case.slow, case.eta, case.decay)
    fwd, bwd = as_function(case)
    if state is not None:
        return check_adjoint(fwd, bwd, (*args, state), seed=seed)
    return check_adjoint(lambda *a: fwd(*a, None), lambda g, res: bwd(g, res)[:4], args, seed=seed)


@at_most(25)
@given(case=matrix_cases(max_length=5, max_batch=2, masks=("ones", "real")), seed=seeds)
def test_the_backward_pass_is_the_adjoint_of_the_forward_pass(case, seed):
    """<u, J v> = <J^T u, v> for x, all slow parameters, step sizes, decay and state: gradients of
    gradients   (X.7), (X.8), (X.10)
    """
    check(case, some_state(case, seed), seed)


@pytest.mark.parametrize("normalizer", EVERY_NORMALIZER)
@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_the_backward_pass_is_the_adjoint_for_every_normalizer(normalizer, norm):
    """Without a state   (X.10)"""
    assert check(with_settings(FIXED, normalizer=normalizer, norm=norm), None).checked == 1 + 8 + 2 + 1


@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("unit", [True, False])
def test_the_backward_pass_of_the_write_is_the_adjoint_of_the_write(norm, unit):
    """d memory / d (x, slow): sweeps 5 and 6   (X.8)"""
    case = with_settings(FIXED, norm=norm, unit=unit)

    def fwd(x, slow):
        (memory, _), res = write_fwd(x, case.labels, case.weights, slow, case.settings)
        return memory, res

    check_adjoint(fwd, write_bwd, (case.x, case.slow))


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_first_order_holds_the_values_constant(norm):
    """The adjoint of z and k alone, whatever the gradient of dz is; what lies above gets None   (X.8)"""
    case = with_settings(FIXED, norm=norm, first_order=True)

    def fwd(x, slow):
        (memory, _), res = write_fwd(x, case.labels, case.weights, case.slow._replace(key=slow[0], W=slow[1], b=slow[2]), case.settings)
        return memory[:2], (memory, res)

    def bwd(g, kept):
        memory, res = kept
        g_x, g_slow = write_bwd(memory._replace(z=g[0], k=g[1], dz=1 + memory.dz), res)
        assert g_slow[3:] == (None,) * 4
        return g_x, g_slow[:3]

    check_adjoint(fwd, bwd, (case.x, tuple(case.slow[:3])))


def test_first_order_changes_the_gradient_and_nothing_else():
    """N: the values' gradient is not 0   (X.8)"""
    (full, res), (first, stopped) = fast_matrix_fwd(*FIXED), fast_matrix_fwd(*with_settings(FIXED, first_order=True))
    assert_bitwise(first[0], full[0])
    g = np.ones_like(full[0])
    assert relative_error(fast_matrix_bwd(g, None, stopped)[0], fast_matrix_bwd(g, None, res)[0]) > CLEAR


def test_a_frozen_head_gets_no_gradient_and_changes_no_other():
    """frozen: g_U = g_c = None   (X.10)"""
    g = generator(2)(*FIXED.labels.shape)
    free, frozen = (fast_matrix_bwd(g, None, fast_matrix_fwd(*with_settings(FIXED, frozen=f))[1]) for f in (False, True))
    assert frozen[1].U is None and frozen[1].c is None
    assert_trees_close((frozen[0], frozen[1][:5], *frozen[2:]), (free[0], free[1][:5], *free[2:]), scale=1.0)


def changed(f: Callable, index: int) -> Callable:
    """``f`` with one of its results set to zero."""

    def mutant(*args):
        results = list(f(*args))
        results[index] = 0 * results[index]
        return tuple(results)

    return mutant


BACKWARD_MUTANTS = {
    "sweep 5 leaves nothing at z": ("norm_bwd_bwd", 1),
    "sweep 5 leaves nothing at the gain": ("norm_bwd_bwd", 2),
    "sweep 5 does not reach the head": ("norm_bwd_bwd", 0),
    "the turning point is forgotten": ("blocked_head_bwd_bwd", 1),
    "the unembedding of the write is forgotten": ("blocked_head_bwd_bwd", 2),
    "the features are no key": ("key_bwd", 0),
    "the keys are not learned": ("key_bwd", 1),
    "the residual's other arm is forgotten": ("dense_bwd", 0),
}


@pytest.mark.host("mutants are written in NumPy's own arithmetic, put in the place of functions that the package calls")
@pytest.mark.parametrize("name", BACKWARD_MUTANTS)
def test_a_wrong_backward_pass_is_rejected(name, monkeypatch):
    """N: (X.8) with one term left out is not an adjoint"""
    function, index = BACKWARD_MUTANTS[name]
    original = getattr(fwl_ref.fast_matrix, function)
    if function == "key_bwd" and index == 1:
        monkeypatch.setattr(fwl_ref.fast_matrix, function, lambda *a: (original(*a)[0], tree_map(lambda g: 0 * g, original(*a)[1])))
    else:
        monkeypatch.setattr(fwl_ref.fast_matrix, function, changed(original, index))
    with pytest.raises(AdjointError):
        check(FIXED, None)


@pytest.mark.parametrize(("field", "share"), [("query", 0), ("key", 0), ("value", 0)])
@pytest.mark.host("mutants are written in NumPy's own arithmetic, put in the place of functions that the package calls")
def test_a_read_without_one_of_its_gradients_is_rejected(field, share, monkeypatch):
    """N: one k is query and key, and both shares count   (X.7)"""
    original = fwl_ref.fast_matrix.fast_layer_bwd

    def mutant(*args):
        result = original(*args)
        return result._replace(**{field: share * getattr(result, field)})

    monkeypatch.setattr(fwl_ref.fast_matrix, "fast_layer_bwd", mutant)
    with pytest.raises(AdjointError):
        check(FIXED, None)


FORWARD_MUTANTS = {
    "the bias is not fast": ("fast_layer_fwd", lambda f: lambda q, k, v, w, b, *rest: f(q, k, v, w, 0 * b, *rest)),
    "the sign is wrong": ("fast_layer_fwd", lambda f: lambda q, k, v, *rest: f(q, k, -v, *rest)),
    "the query is not centred": ("fast_layer_fwd", lambda f: lambda q, k, v, *rest: f(q + 0.1, k, v, *rest)),
    "the norm's Jacobian is left out": ("norm_bwd", lambda f: lambda dy, res: (dy * res.gain, *f(dy, res)[1:])),
    "N is forgotten": ("normalizer", lambda f: lambda w, s: 2 * f(w, s)),
}


@pytest.mark.host("mutants are written in NumPy's own arithmetic, put in the place of functions that the package calls")
@pytest.mark.parametrize("name", FORWARD_MUTANTS)
def test_a_wrong_layer_is_rejected(name, monkeypatch):
    """N: (X.6) with a mistake is not the literal layer"""
    function, mutant = FORWARD_MUTANTS[name]
    monkeypatch.setattr(fwl_ref.fast_matrix, function, mutant(getattr(fwl_ref.fast_matrix, function)))
    with pytest.raises(AssertionError):
        assert_literal(FIXED)


# Its parts
# -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_token", [False, True])
@given(seed=seeds)
def test_rms_normalisation_with_a_bias_obeys_the_laws(per_token, seed):
    """Both orders, gain and bias shared or per token   (X.1)"""
    draw, shape = generator(seed), (2, 3, 5)
    gain_shape = shape if per_token else shape[-1:]
    args = (draw(*shape), 1 + draw(*gain_shape, scale=0.3), draw(*gain_shape), 0.1, "rms")
    check_adjoint(norm_fwd, norm_bwd, args, norm_bwd_bwd, seed=seed)


@pytest.mark.parametrize("unit", [False, True])
@given(seed=seeds)
def test_the_gradient_of_the_keys(unit, seed):
    """For x, mean and A   (X.2), (X.3)"""
    draw = generator(seed)
    check_adjoint(lambda x, p: key_fwd(x, p, unit), key_bwd, (draw(2, 3, 4), KeyMap(draw(4), draw(4, 3))), seed=seed)


@given(seed=seeds, width=st.integers(1, 5), parts=st.integers(1, 4))
def test_whitened_keys_have_mean_0_and_variance_1(seed, width, parts):
    """mean k = 0 and k^T k / N = 1 in the kept directions, up to the ridge; in any parts   (X.4)"""
    draw = generator(seed)
    x = draw(60, 5) @ draw(5, 5) + 1e4 * draw(5)
    p = whitening(np.array_split(x, parts), width, ridge=1e-12)
    k, _ = key_fwd(x, p, False)
    covariance = k.T @ k / 60
    assert_close(np.mean(k, axis=0), np.zeros(width), 1e-6, scale=1.0)
    assert_close(covariance, np.eye(width), 1e-6)


def test_the_widest_directions_are_kept_and_the_ridge_bounds_the_others():
    """A = Q (v + ridge mean v)^-1/2   (X.4)"""
    x = np.concatenate([np.diag([1.0, 9.0, 0.0]), -np.diag([1.0, 9.0, 0.0])])
    v = np.asarray([81.0, 1.0, 0.0]) / 3
    p = whitening([x], 3, ridge=0.5)
    assert_close(np.abs(p.A), np.eye(3)[:, [1, 0, 2]] / np.sqrt(v + 0.5 * np.mean(v)))
    assert_close(whitening([x], 1, ridge=0.5).A, p.A[:, :1])


def test_features_come_in_any_shape_and_in_pieces_that_may_be_empty():
    """(B,T,D) are B T features, no token adds nothing, and the ridge is 1e-3   (X.4)"""
    x = generator(0)(2, 4, 3)
    rows = np.reshape(x, (8, 3))
    whole = whitening([rows], ridge=1e-3)
    for other in (whitening([x]), whitening([rows[:0], rows])):
        assert_bitwise(other.mean, whole.mean)
        assert_bitwise(other.A, whole.A)


@pytest.mark.parametrize(
    ("features", "width", "ridge", "words"),
    [
        ([], None, 1e-3, "at least one token"),
        ([np.ones((4, 3))], None, 1e-3, "that vary"),
        ([np.eye(3)], 4, 1e-3, "a width of 1 to 3"),
        ([np.eye(3)], None, 0.0, "ridge must be above 0"),
        ([np.full((2, 3), np.nan)], None, 1e-3, "finite"),
    ],
)
def test_features_that_cannot_be_whitened_are_refused(features, width, ridge, words):
    """Before a map is made   (X.4)"""
    with pytest.raises(ValueError, match=words):
        whitening(features, width, ridge)


# Errors
# ---------------------------------------------------------------------------------------------------------------------

BAD = {
    "a batch of one width": ("features must have shape", lambda c: c._replace(x=c.x[..., :-1])),
    "labels of another length": ("labels must have shape", lambda c: c._replace(labels=c.labels[:, :-1])),
    "weights of another length": ("weights must have shape", lambda c: c._replace(weights=c.weights[:, :-1])),
    "another bias": ("b must have shape", lambda c: c._replace(slow=c.slow._replace(b=c.slow.b[:-1]))),
    "a table not transposed": ("U must have shape", lambda c: c._replace(slow=c.slow._replace(U=c.slow.U.T))),
    "another norm": ("norm must be one of", lambda c: with_settings(c, norm="batch")),
    "a block of nothing": ("at least 1 token", lambda c: with_settings(c, block=0)),
    "a step size per entry": ("the step size of W must have shape", lambda c: c._replace(eta=c.eta._replace(W=c.slow.W))),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_named(name):
    """An error before anything is computed."""
    words, spoil = BAD[name]
    with pytest.raises(ValueError, match=words):
        run(spoil(FIXED))


def test_a_state_needs_the_constant_normalizer_and_one_entry_per_sequence():
    """As for the block."""
    state = some_state(FIXED, 0)
    with pytest.raises(ValueError, match="constant normalizer"):
        run(with_settings(FIXED, normalizer="sequence"), state)
    with pytest.raises(ValueError, match="one matrix per sequence"):
        run(FIXED, tree_map(lambda s: s[:1], state))
    with pytest.raises(TypeError, match="FastMatrix of two arrays"):
        run(FIXED._replace(eta=tuple(FIXED.eta)))


def test_float32_stays_float32():
    """Every output and every gradient."""
    case = tree_map(lambda a: a.astype("float32") if a.dtype.kind == "f" else a, tuple(FIXED[:6]))
    output, res = fast_matrix_fwd(*case, FIXED.settings)
    gradients = fast_matrix_bwd(output[0], None, res)
    assert {a.dtype for a in leaves((output, gradients))} == {np.dtype("float32")}
