"""Reads from the past without training: against loops, and against the fast matrix whose case they
are. A docstring with "N:" has a negative control: something that must not hold.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from fwl_ref.adapt import past
from fwl_ref.adapt.fast_unembedding import fast_unembedding
from fwl_ref.adapt.past import bounded_read, delta_read, past_read
from fwl_ref.fast_matrix import FastMatrix, MatrixParameters, MatrixSettings, fast_matrix_score
from fwl_ref.key_map import KeyMap, key_fwd
from fwl_ref.norm import norm_bwd, norm_fwd
from fwl_ref.ops.blocked_head import blocked_head_fwd, blocked_head_nll
from tests.tolerances import RTOL, assert_close, relative_error

T, D, V = 19, 6, 11
RNG = np.random.default_rng(7)
X, LABELS = RNG.normal(size=(T, D)), RNG.integers(0, V, T)
K, VALUES = RNG.normal(size=(T, 4)), RNG.normal(size=(T, D))
TABLE, GAIN = RNG.normal(size=(V, D)), 1 + 0.1 * RNG.normal(size=D)


def literal(
    k: np.ndarray, v: np.ndarray, ratio: float = 0.0, decay: float = 0.0, theta: float | None = None, prior: float | None = None
) -> np.ndarray:
    out = np.zeros((len(k), v.shape[1]))
    for t in range(len(k)):
        total = 0.0
        for s in range(t):
            alike = float(np.dot(k[t], k[s]))
            kernel = (1 - decay) ** (t - 1 - s) * (alike + ratio if theta is None else math.exp(theta * (alike - 0.5)))
            out[t] += kernel * v[s]
            total += kernel
        out[t] /= 1.0 if prior is None else prior + total
    return out


@pytest.mark.parametrize("block", [1, 5, 256])
@pytest.mark.parametrize(
    "options", [{}, {"ratio": 0.3}, {"decay": 0.2, "ratio": 0.1}, {"theta": 1.5}, {"theta": 1.5, "decay": 0.1, "prior": 0.5}]
)
def test_a_read_is_a_sum_over_the_past(options: dict[str, Any], block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kernel and decay as a loop over pairs."""
    monkeypatch.setattr(past, "BLOCK", block)
    assert_close(past_read(K, VALUES, **options), literal(K, VALUES, **options), RTOL)


def test_the_linear_read_is_the_fast_matrix_that_nothing_trained() -> None:
    """With W = 0 and b = 0 the sweeps of fast_matrix.py compute x - eta o, their losses too; N: not with
    another ratio of step sizes.   (X.6), (X.9)
    """
    key = KeyMap(X.mean(axis=0), RNG.normal(size=(D, D)))
    slow, one = MatrixParameters(key, np.zeros((D, D)), np.zeros(D), GAIN, np.zeros(D), TABLE.T, None), np.ones((1, T))
    eta, ratio, decay = 0.4, 0.2, 0.05
    steps = FastMatrix(np.asarray(eta), np.asarray(eta * ratio))
    settings = MatrixSettings(chunk=4, block=5)
    expected, _, _ = fast_matrix_score(X[None], LABELS[None], one, slow, steps, np.asarray(decay), settings)
    n, norm = norm_fwd(X, GAIN, np.zeros(D), settings.eps, "rms")
    _, head = blocked_head_fwd(n, TABLE.T, None, LABELS, 5, frozen=True)
    dz, _, _ = norm_bwd(head.slope, norm)
    k, _ = key_fwd(X, key, True)

    def losses(ratio: float) -> np.ndarray:
        moved = X - eta * past_read(k, dz, ratio=ratio, decay=decay)
        return blocked_head_nll(norm_fwd(moved, GAIN, np.zeros(D), settings.eps, "rms")[0], TABLE.T, None, LABELS, 5)

    assert_close(losses(ratio), expected[0], RTOL)
    assert relative_error(losses(0.0), expected[0]) > 1e-6


@pytest.mark.parametrize("chunk", [1, 4, 64])
def test_reads_that_repetition_cannot_blow_up(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The delta rule and the bounded state as loops over a matrix that really changes. A pair that comes again and again is read as
    a bounded number of times its value; N: the linear read grows with every repetition.
    """
    monkeypatch.setattr(past, "CHUNK", chunk)
    S, expected = np.zeros((4, D)), []
    for k, v in zip(K, VALUES, strict=True):
        expected.append(k @ S)
        S = S - 0.1 * np.outer(k, k @ S - v)
    assert_close(delta_read(K, VALUES, beta=0.1), np.asarray(expected), RTOL)
    limit = 6.0
    S, held, cut, expected = np.zeros((4, D)), np.zeros((4, D)), 0, []
    for t, (k, v) in enumerate(zip(K, VALUES, strict=True)):
        expected.append(k @ held)
        S = S + np.outer(k, v)
        if (t + 1) % chunk == 0:
            cut += np.linalg.norm(S) > limit
            S = S * min(1.0, limit / np.linalg.norm(S))
            held = S
    assert_close(bounded_read(K, VALUES, most=limit), np.asarray(expected), RTOL)
    assert chunk > T or cut > 0
    k, v = np.ones((200, 1)), np.ones((200, 1))
    assert past_read(k, v)[-1] == 199
    assert_close(delta_read(k, v, beta=0.3)[-1], np.ones(1), RTOL)
    assert bounded_read(k, v, most=2.0)[-1] <= 2 * (1 + RTOL)
    assert past_read(k, v, theta=2.0, prior=1.0)[-1] < 1


@pytest.mark.parametrize("block", [1, 4, 64])
def test_the_fast_unembedding_takes_a_step_on_a_matrix_that_really_changes(block: int) -> None:
    """One stale gradient step a token on U, formed and used; every step size at once; N: with the own
    token's gradient it would be another answer.
    """
    U, k = TABLE.T, K
    etas = (0.0, 0.3)
    for eta, found in zip(etas, fast_unembedding(X, k, U, LABELS, etas, block), strict=True):
        change, losses, cheating = np.zeros((4, V)), [], []
        for t in range(T):
            p = np.exp(X[t] @ U)
            p /= p.sum()
            logits = X[t] @ U - eta * (k[t] @ change)
            losses.append(np.log(np.exp(logits).sum()) - logits[LABELS[t]])
            change += np.outer(k[t], p - np.eye(V)[LABELS[t]])
            logits = X[t] @ U - eta * (k[t] @ change)
            cheating.append(np.log(np.exp(logits).sum()) - logits[LABELS[t]])
        assert_close(found, np.asarray(losses), RTOL)
        assert eta == 0 or relative_error(found, np.asarray(cheating)) > 1e-3


def test_a_decay_that_cannot_be_is_said() -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\), got 1"):
        past_read(K, VALUES, decay=1.0)
    with pytest.raises(ValueError, match="give theta"):
        past_read(K, VALUES, prior=1.0)
