"""True gradients of the fast matrix: against a loop that writes out loss, gradient and step. A docstring
with "N:" has a negative control: something that must not hold.
"""

from __future__ import annotations

import numpy as np
import pytest

from fwl_ref.adapt.refreshed import refreshed_losses
from fwl_ref.adapt.trunk import model_on
from fwl_ref.fast_matrix import FastMatrix
from tests.adapt.small import CONFIG, parameters
from tests.tolerances import RTOL, assert_close, relative_error

MODEL = model_on(parameters(), CONFIG, 32, 10)
RNG = np.random.default_rng(6)
T, D, K = 21, CONFIG.width, 5
X, KEYS, LABELS = RNG.normal(size=(T, D)), RNG.normal(size=(T, K)), RNG.integers(0, CONFIG.vocabulary, T)
START = FastMatrix(0.1 * RNG.normal(size=(K, D)), 0.1 * RNG.normal(size=D))
ETA = FastMatrix(0.3, 0.05)
VALUES = RNG.normal(size=(D, D))


def loss_and_gradient(z: np.ndarray, label: int) -> tuple[float, np.ndarray]:
    """Of one token, with respect to z: softmax, RMSNorm, written out."""
    gain, eps = MODEL.parameters.gain, MODEL.config.eps
    r = 1 / np.sqrt(np.mean(z * z) + eps)
    p = np.exp((z * r * gain) @ MODEL.U)
    p /= p.sum()
    dn = MODEL.U @ (p - np.eye(len(p))[label]) * gain
    return -np.log(p[label]), r * dn - z * r**3 * np.mean(z * dn)


def literal(segment: int, decay: float, values: np.ndarray | None, stale: bool = False) -> np.ndarray:
    """Every token is scored by matrices that are really formed; these move after each segment."""
    W, b = START
    losses, writes = [], []
    for t in range(T):
        loss, _ = loss_and_gradient(X[t] + KEYS[t] @ W + b, LABELS[t])
        losses.append(loss)
        at = START if stale else (W, b)
        _, v = loss_and_gradient(X[t] + KEYS[t] @ at[0] + at[1], LABELS[t])
        writes.append((KEYS[t], v if values is None else v @ values))
        if (t + 1) % segment == 0:
            for key, value in writes:
                W = W - ETA.W * np.outer(key, value) + decay * (START.W - W)
                b = b - ETA.b * value + decay * (START.b - b)
            writes = []
    return np.asarray(losses)


@pytest.mark.parametrize("segment", [1, 4, 30])
@pytest.mark.parametrize(("decay", "values"), [(0.0, None), (0.1, None), (0.1, VALUES)])
def test_it_is_dynamic_evaluation_of_the_matrix(segment: int, decay: float, values: np.ndarray | None) -> None:
    """Gradients where the matrix stands, decay towards its start, whitened values; N: with gradients where it
    started it would be another answer, from the third segment on.   (Y.1)
    """
    found = refreshed_losses(MODEL, X[None], KEYS[None], LABELS[None], START, ETA, segment, decay=decay, values=values)[0]
    assert_close(found, literal(segment, decay, values), RTOL)
    if segment < T / 2:
        stale = literal(segment, decay, values, stale=True)
        assert_close(found[: 2 * segment], stale[: 2 * segment], RTOL)
        assert relative_error(found, stale) > 1e-4


def test_documents_side_by_side_know_nothing_of_each_other() -> None:
    """Each has the losses that it has alone, and what pads a shorter one changes none of them; N: in the place of
    the padding the document itself goes on otherwise.
    """
    fixed = {"decay": 0.1, "values": VALUES}
    alone = [refreshed_losses(MODEL, X[None, :n], KEYS[None, :n], LABELS[None, :n], START, ETA, 4, **fixed)[0] for n in (T, 10)]
    x, k, labels = (np.stack([a, np.where(np.arange(T).reshape(T, *(1,) * (a.ndim - 1)) < 10, a, 0)]) for a in (X, KEYS, LABELS))
    found = refreshed_losses(MODEL, x, k, labels, START, ETA, 4, **fixed)
    assert_close(found[0], alone[0], RTOL)
    assert_close(found[1, :10], alone[1], RTOL)
    assert relative_error(found[1, 10:], alone[0][10:]) > 1e-3


def test_a_decay_that_cannot_be_is_said() -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\), got 1"):
        refreshed_losses(MODEL, X[None], KEYS[None], LABELS[None], START, ETA, 4, decay=1.0)
