"""The layer that is trained: what it starts as, its two ways to a gradient, and training that goes on.
A docstring with "N:" has a negative control: something that must not hold.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fwl_ref.adapt.layer import Learned, layer_losses, loss_and_gradient, plain_layer_losses, plain_loss_and_gradient, start
from fwl_ref.adapt.learn import Piece, Training, draw, train
from fwl_ref.adapt.trunk import features, model_on, reading
from fwl_ref.fast_matrix import FastMatrix
from fwl_ref.key_map import whitening
from fwl_ref.lm import llama
from fwl_ref.lm.adamw import NonFiniteError
from fwl_ref.ops.cross_entropy import cross_entropy_fwd
from fwl_ref.tree import leaves, rebuild, tree_map
from tests.adapt.small import CONFIG, parameters
from tests.tolerances import RTOL, assert_bitwise, assert_close, assert_trees_close, relative_error

pytestmark = pytest.mark.host("documents come from the host")

MODEL = model_on(parameters(), CONFIG, 32, 10)
RNG = np.random.default_rng(4)
DOCUMENTS = [RNG.integers(0, CONFIG.vocabulary, n) for n in (41, 30, 55)]
PIECES = [Piece(features(MODEL, ids, 16), ids) for ids in DOCUMENTS]
KEY = whitening(piece.x for piece in PIECES)
SIZES = FastMatrix(0.5, 0.01)
GRADIENT = partial(loss_and_gradient, model=MODEL, sizes=SIZES, chunk=8)
TRAINING = Training(steps=6, batch=2, length=24, seed=3, checks=3, rate=1e-2, fast=True)


def moved(seed: int = 0) -> Learned:
    """A layer that is not at its start."""
    rng, first = np.random.default_rng(seed), start(KEY, 0.02)
    return rebuild(first, [a + 0.01 * rng.normal(size=a.shape) for a in leaves(first)])


def wide(step: int) -> tuple[np.ndarray, ...]:
    """A batch in float64."""
    x, labels, weights = draw(PIECES, 2, 24, 0, step)
    return x.astype("float64"), labels, weights.astype("float64")


def test_a_reading_is_the_model_at_the_window() -> None:
    """Losses of windows that know nothing of each other, however many go through the trunk together, and
    gradients of these losses; N: another window is another answer.   (M.8), (C.4)
    """
    ids = DOCUMENTS[0]
    found = reading(MODEL, PIECES[0].x, ids)
    parts = [llama.model_fwd(MODEL.parameters, ids[None, i : i + 16][:, : 40 - i], CONFIG)[0][0][0] for i in (0, 16, 32)]
    nll, _ = cross_entropy_fwd(np.concatenate(parts), ids[1:])
    assert_close(found.nll, nll, RTOL)
    assert_close(features(MODEL._replace(at_once=1), ids, 16), PIECES[0].x, RTOL)
    assert relative_error(features(MODEL, ids, 20), PIECES[0].x) > 1e-3
    direction = RNG.normal(size=found.x.shape)
    up, down = (reading(MODEL, found.x + e * direction, ids).nll for e in (1e-5, -1e-5))
    assert_close((up - down) / 2e-5, np.sum(found.dz * direction, axis=1), 1e-6)


def test_at_the_start_it_is_the_model_and_without_steps_a_plain_layer() -> None:
    """Step sizes of 0 and W = 0 leave every loss; with W both forms are one function and one gradient.   (X.5), (X.9), (X.10)"""
    x, labels = PIECES[0].x, DOCUMENTS[0][1:]
    none = FastMatrix(0.0, 0.0)
    assert_close(layer_losses(start(KEY, 0.0), x, labels, MODEL, none, 8)[0], reading(MODEL, x, DOCUMENTS[0]).nll, RTOL)
    learned = moved()
    assert_close(layer_losses(learned, x, labels, MODEL, none, 8)[0], plain_layer_losses(learned, x, labels, MODEL), RTOL)
    batch = wide(0)
    fast = loss_and_gradient(learned, *batch, MODEL, none, 8)
    plain = plain_loss_and_gradient(learned, *batch, MODEL)
    assert_close(fast[0], plain[0], RTOL)
    for part in ("key", "W", "b"):
        assert_trees_close(getattr(fast[1], part), getattr(plain[1], part), RTOL)


def test_the_gradient_is_that_of_the_mean_loss() -> None:
    """Along a random direction of everything that is learned; N: not if the steps' part is left out.   (X.10)"""
    learned, (x, labels, weights) = moved(), wide(1)
    loss, gradient = loss_and_gradient(learned, x, labels, weights, MODEL, SIZES, 8)
    direction = tree_map(lambda a: RNG.normal(size=a.shape), learned)

    def at(e: float) -> Any:
        there = tree_map(lambda p, d: p + e * d, learned, direction)
        rows = [layer_losses(there, x[i], labels[i], MODEL, SIZES, 8)[0] for i in range(2)]
        return np.sum(np.stack(rows) * weights) / np.sum(weights)

    assert_close(loss, at(0.0), RTOL)
    slope = sum(np.sum(g * d) for g, d in zip(leaves(gradient), leaves(direction), strict=True))
    assert_close(np.asarray((at(1e-5) - at(-1e-5)) / 2e-5), np.asarray(slope), 1e-6)
    part = slope - np.sum(gradient.steps.W * direction.steps.W)
    assert relative_error(np.asarray(part), np.asarray(slope)) > 1e-5


def test_reset_memory_reads_each_piece_alone() -> None:
    """Emptied every 16 tokens: the pieces read by themselves; N: carried it is another answer."""
    learned, x, labels = moved(), PIECES[0].x, DOCUMENTS[0][1:]
    found, _ = layer_losses(learned, x, labels, MODEL, SIZES, 8, reset=16)
    alone = [layer_losses(learned, x[i : i + 16], labels[i : i + 16], MODEL, SIZES, 8)[0] for i in (0, 16, 32)]
    assert_close(found, np.concatenate(alone), RTOL)
    assert relative_error(layer_losses(learned, x, labels, MODEL, SIZES, 8)[0], found) > 1e-4


def run(file: Path | None, validate: Any, training: Training = TRAINING) -> Any:
    return train(file, "key", start(KEY, 0.01), GRADIENT, PIECES, training, validate, 1.0)


def norm_of(learned: Learned) -> float:
    """A loss that is least at the end."""
    return -float(np.sum(learned.W**2))


def test_an_interrupted_training_ends_with_the_same_bits(tmp_path: Path) -> None:
    """Ended while it looks at the validation documents, gone on from the file: the same learned, best and
    curve; N: a file of another training is not gone on from.
    """
    whole = run(None, norm_of)
    calls = []

    def ends(learned: Learned) -> float:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return norm_of(learned)

    file = tmp_path / "fast.npz"
    with pytest.raises(KeyboardInterrupt):
        run(file, ends)
    again = run(file, norm_of)
    for one, other in zip(leaves(whole.best), leaves(again.best), strict=True):
        assert_bitwise(one, other)
    assert whole.curve == again.curve
    assert whole.loss == again.loss < 0
    assert len(calls) == 3
    assert run(file, norm_of).curve == whole.curve
    other = train(file, "another key", start(KEY, 0.01), GRADIENT, PIECES, TRAINING._replace(steps=1), norm_of, 1.0)
    assert len(other.curve) == 1


def test_batches_are_documents_and_their_labels() -> None:
    """A batch is a function of seed and step; features and labels are of one place; N: another step draws another."""
    x, labels, weights = draw(PIECES, 3, 48, 0, 5)
    assert_bitwise(x, draw(PIECES, 3, 48, 0, 5)[0])
    assert not np.array_equal(labels, draw(PIECES, 3, 48, 0, 6)[1])
    for row in range(3):
        count = int(weights[row].sum())
        places = [
            (i, at)
            for i, piece in enumerate(PIECES)
            for at in range(len(piece.x) - count + 1)
            if np.array_equal(piece.x[at : at + count].astype("float32"), x[row, :count])
        ]
        assert len(places) == 1
        i, at = places[0]
        assert_bitwise(DOCUMENTS[i][at + 1 : at + count + 1], labels[row, :count])


def test_a_loss_that_is_no_number_ends_training() -> None:
    bad = [piece._replace(x=piece.x * np.nan) for piece in PIECES]
    with pytest.raises(NonFiniteError, match="step 0"):
        train(None, "key", start(KEY, 0.01), GRADIENT, bad, TRAINING, norm_of, 1.0)


def test_a_fast_layer_keeps_its_unembedding() -> None:
    """Its gradient would be dropped; N: a plain layer takes it."""
    learned = moved()._replace(U=MODEL.U)
    assert plain_loss_and_gradient(learned, *wide(0), MODEL)[1].U is not None
    with pytest.raises(ValueError, match="the unembedding is not trained"):
        GRADIENT(learned, *wide(0))
