"""Training through true gradients: the losses are those that are read, the backward pass is the adjoint, and
the gradient is that of the mean loss. A docstring with "N:" has a negative control: something that must not hold.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fwl_ref.adapt.layer import Learned, etas_of, loss_and_gradient, plain_loss_and_gradient, slow_of, start, with_head
from fwl_ref.adapt.refreshed import refreshed_losses
from fwl_ref.adapt.through import through_bwd, through_fwd, through_loss_and_gradient
from fwl_ref.adapt.trunk import model_on
from fwl_ref.fast_matrix import FastMatrix, MatrixSettings
from fwl_ref.gradcheck import check_adjoint
from fwl_ref.key_map import key_fwd, whitening
from fwl_ref.tree import leaves, rebuild, tree_map
from tests.adapt.small import CONFIG, parameters
from tests.strategies import MatrixCase, make_matrix_case
from tests.tolerances import RTOL, assert_close, assert_trees_close, relative_error

MODEL = model_on(parameters(), CONFIG, 32, 10)
RNG = np.random.default_rng(12)
B, T, D = 2, 23, CONFIG.width
X, LABELS = RNG.normal(size=(B, T, D)) + np.arange(D) % 3, RNG.integers(0, CONFIG.vocabulary, (B, T))
ONES, SIZES = np.ones((B, T)), FastMatrix(0.5, 0.05)
VALUES = RNG.normal(size=(D, D)) * D**-0.5
frozen = pytest.mark.parametrize("head", [False, True], ids=["frozen", "learned"])
either = pytest.mark.parametrize("values", [None, VALUES], ids=["as they are", "whitened"])


def moved(decay: float = 0.05) -> Learned:
    """A layer that is not at its start."""
    first = start(whitening([X.reshape(-1, D)]), decay)
    rng = np.random.default_rng(1)
    return rebuild(first, [a + 0.02 * abs(rng.normal(size=a.shape)) for a in leaves(first)])


LEARNED = moved()


def read(learned: Learned, segment: int, values: np.ndarray | None) -> np.ndarray:
    """(B,T)   as the rows of the table read: no residual"""
    eta, first = etas_of(learned, SIZES), FastMatrix(learned.W, learned.b)
    k, _ = key_fwd(X, learned.key, True)
    decay, model = float(learned.decay), with_head(learned.U, MODEL)
    return refreshed_losses(model, X, k, LABELS, first, eta, segment, decay=decay, values=values)


@either
@pytest.mark.parametrize("segment", [1, 4, 30])
@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_what_is_trained_is_what_is_read(segment: int, decay: float, values: np.ndarray | None) -> None:
    """Each sequence with matrices of its own, carried from segment to segment; N: other segments are another answer.   (X.15)"""
    learned = LEARNED._replace(decay=np.asarray(decay))
    settings = MatrixSettings(eps=CONFIG.eps, chunk=3, block=10)
    given = X, LABELS, ONES, slow_of(learned, MODEL), etas_of(learned, SIZES), learned.decay, settings
    found, _ = through_fwd(*given, segment, values)
    assert_close(found, read(learned, segment, values), RTOL)
    assert relative_error(found, read(learned, 7, values)) > 1e-4


def case(decay: float = 0.3) -> MatrixCase:
    return make_matrix_case(2, 6, 4, 3, 5, MatrixSettings(chunk=2, block=4), seed=3, mask="real", decay=decay)


@either
@frozen
@pytest.mark.parametrize("segment", [1, 2, 4, 9])
def test_the_backward_pass_is_the_adjoint_of_the_forward_pass(segment: int, head: bool, values: np.ndarray | None) -> None:
    """<u, J v> = <J^T u, v> for features, key map, W, b, gain, bias, head, step sizes and decay: gradients of
    gradients along the chain   (X.16)
    """
    c = case()
    settings = c.settings._replace(frozen=not head)
    eta = tree_map(lambda e: 10 * e, c.eta)
    P = None if values is None else values[:4, :4]

    def fwd(x: Any, slow: Any, eta: Any, decay: Any) -> Any:
        slow = slow if head else slow._replace(U=c.slow.U, c=c.slow.c)
        return through_fwd(x, c.labels, c.weights, slow, eta, decay, settings, segment, P)

    report = check_adjoint(fwd, through_bwd, (c.x, c.slow, eta, c.decay))
    assert report.checked == 1 + 8 + 2 + 1


@either
@frozen
def test_the_gradient_is_that_of_the_mean_loss(head: bool, values: np.ndarray | None) -> None:
    """Along a random direction of everything that is learned, from the losses that are read; N: that of stale
    gradients is another one, and so are the losses with another head.   (X.16)
    """
    learned = LEARNED._replace(U=MODEL.U + 0.1 * RNG.normal(size=MODEL.U.shape)) if head else LEARNED
    loss, gradient = through_loss_and_gradient(learned, X, LABELS, ONES, MODEL, SIZES, 4, values)
    assert_close(loss, np.mean(read(learned, 4, values)), RTOL)
    assert not head or relative_error(read(learned, 4, values), read(LEARNED, 4, values)) > 1e-3
    direction = tree_map(lambda a: RNG.normal(size=a.shape), learned)

    def at(e: float) -> Any:
        return np.mean(read(tree_map(lambda p, d: p + e * d, learned, direction), 4, values))

    slope = sum(np.sum(g * d) for g, d in zip(leaves(gradient), leaves(direction), strict=True))
    assert_close(np.asarray((at(1e-5) - at(-1e-5)) / 2e-5), np.asarray(slope), 1e-6)
    stale = loss_and_gradient(LEARNED, X, LABELS, ONES, MODEL, SIZES, 4)[1]
    assert relative_error(stale.W, gradient.W) > 1e-3


def test_without_steps_it_is_a_plain_layer_and_padding_is_not_written() -> None:
    """The loss and gradient of fine-tuning, with the head or without; tokens of weight 0 at the end change no gradient. N: with
    steps both are others.   (X.5)
    """
    none = FastMatrix(0.0, 0.0)
    weights = np.where(np.arange(T) < 17, ONES, 0.0)
    for learned in (LEARNED._replace(U=1.1 * MODEL.U), LEARNED):
        plain = plain_loss_and_gradient(learned, X, LABELS, weights, MODEL)
        still = through_loss_and_gradient(learned, X, LABELS, weights, MODEL, none, 4, VALUES)
        assert_close(still[0], plain[0], RTOL)
        assert_trees_close((*still[1][:3], still[1].U), (*plain[1][:3], plain[1].U), RTOL)
    whole = through_loss_and_gradient(LEARNED, X, LABELS, weights, MODEL, SIZES, 4, VALUES)
    assert_trees_close(whole, through_loss_and_gradient(LEARNED, X[:, :17], LABELS[:, :17], ONES[:, :17], MODEL, SIZES, 4, VALUES), RTOL)
    assert relative_error(whole[1].W, plain[1].W) > 1e-3


def test_what_cannot_be_is_refused() -> None:
    """A segment of no token, and what has no backward pass here."""
    c = case()
    with pytest.raises(ValueError, match="a segment must hold at least 1 token, got 0"):
        through_fwd(*c, 0)
    for change in ({"normalizer": "batch"}, {"first_order": True}):
        with pytest.raises(ValueError, match="trained through with the constant normalizer"):
            through_fwd(*c._replace(settings=c.settings._replace(**change)), 2)
