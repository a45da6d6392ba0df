"""Dynamic evaluation of a real model: against a loop written out, and its two gradients against each
other. A docstring with "N:" has a negative control: something that must not hold.
"""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.sides.ours import formed
from fwl_ref.adapt.descent import Step, Top, adapted_losses, check_segments, statistics, top_of, top_score, whole_score
from fwl_ref.adapt.trunk import features, model_on
from fwl_ref.adapt.ways_descent import gradient_products
from fwl_ref.lm import llama
from fwl_ref.ops.cross_entropy import cross_entropy_bwd, cross_entropy_fwd
from fwl_ref.tree import leaves, rebuild
from tests.adapt.small import CONFIG, parameters
from tests.tolerances import RTOL, assert_close, assert_trees_close, relative_error

pytestmark = pytest.mark.host("documents come from the host")

MODEL = model_on(parameters(), CONFIG, 32, 10)
IDS = np.random.default_rng(2).integers(0, CONFIG.vocabulary, 45)
INPUTS, LABELS = IDS[:-1], IDS[1:]
WINDOW, SEGMENT = 16, 8


def loop(rate: float, statistics: list[np.ndarray] | None) -> np.ndarray:
    """Windows, segments, caches, gradients of the mean loss, steps: nothing of descent.py."""
    theta, losses = MODEL.parameters, []
    for first in range(0, 44, WINDOW):
        caches = None
        for i in range(first, min(first + WINDOW, 44), SEGMENT):
            end = min(i + SEGMENT, first + WINDOW, 44)
            (logits, caches), res = llama.model_fwd(theta, INPUTS[None, i:end], CONFIG, caches)
            nll, entropy = cross_entropy_fwd(logits, LABELS[None, i:end])
            losses.append(nll[0])
            gradient = leaves(llama.model_bwd(cross_entropy_bwd(np.full((1, end - i), 1 / (end - i)), entropy), res))
            if statistics is not None:
                gradient = [g / s for g, s in zip(gradient, statistics, strict=True)]
            theta = rebuild(theta, [p - rate * g for p, g in zip(leaves(theta), gradient, strict=True)])
    return np.concatenate(losses)


def test_all_parameters_move_as_in_a_loop() -> None:
    """SGD and RMS, keys and values of the window kept, the attention begun anew at each; N: another
    rate is another answer.   (Y.1), (Y.2), (Y.3)
    """
    score = whole_score(MODEL)
    found = adapted_losses(score, MODEL.parameters, INPUTS, LABELS, Step(0.3), WINDOW, SEGMENT)
    assert_close(found, loop(0.3, None), RTOL)
    assert relative_error(found, loop(0.2, None)) > 1e-3
    pieces = [(INPUTS[i : i + 8], LABELS[i : i + 8]) for i in (0, 20)]
    divisor = statistics(score, MODEL.parameters, pieces, SEGMENT)
    squares = []
    for tokens, labels in pieces:
        (logits, _), res = llama.model_fwd(MODEL.parameters, tokens[None], CONFIG)
        _, entropy = cross_entropy_fwd(logits, labels[None])
        squares.append([g**2 for g in leaves(llama.model_bwd(cross_entropy_bwd(np.full((1, 8), 1 / 8), entropy), res))])
    roots = [np.sqrt((a + b) / 2) for a, b in zip(*squares, strict=True)]
    mean = sum(r.sum() for r in roots) / sum(r.size for r in roots)
    found = adapted_losses(score, MODEL.parameters, INPUTS, LABELS, Step(0.01, divisor), WINDOW, SEGMENT)
    assert_close(found, loop(0.01, [r + 0.1 * mean for r in roots]), RTOL)


def test_the_gradient_of_the_last_layers_is_that_of_the_whole_model() -> None:
    """The same losses and gradients, also behind a cache; the unembedding stays.   (T.4), (C.5)"""
    x = features(MODEL, IDS, WINDOW, CONFIG.layers - 2)[None, :WINDOW]
    tokens, labels = INPUTS[None, :WINDOW], LABELS[None, :WINDOW]
    caches, whole_caches = None, None
    for part in (slice(0, 8), slice(8, 16)):
        nll, gradient, caches = top_score(MODEL)(top_of(MODEL, 2), x[:, part], labels[:, part], caches)
        expected, whole, whole_caches = whole_score(MODEL)(MODEL.parameters, tokens[:, part], labels[:, part], whole_caches)
        assert_close(nll, expected, RTOL)
        assert_trees_close(gradient, Top(whole.trunk[-2:], whole.gain), RTOL)


def test_with_a_rate_of_zero_it_is_the_model_at_the_window() -> None:
    """Segments behind a cache are windows; N: a rate that explodes gives infinite losses and no error."""
    x = features(MODEL, IDS, WINDOW, CONFIG.layers - 2)
    expected = [llama.model_fwd(MODEL.parameters, INPUTS[None, i : i + WINDOW], CONFIG)[0][0] for i in range(0, 44, WINDOW)]
    nll = np.concatenate(
        [cross_entropy_fwd(e, LABELS[None, i : i + WINDOW])[0][0] for e, i in zip(expected, range(0, 44, 16), strict=True)]
    )
    still = adapted_losses(top_score(MODEL), top_of(MODEL, 2), x, LABELS, Step(0.0), WINDOW, SEGMENT)
    assert_close(still, nll, RTOL)
    with np.errstate(all="ignore"):
        wild = adapted_losses(top_score(MODEL), top_of(MODEL, 2), x, LABELS, Step(1e300), WINDOW, SEGMENT)
    assert_close(wild[:8], nll[:8], RTOL)
    assert np.isinf(wild[-1])
    assert len(wild) == 44


@pytest.mark.parametrize("layers", [None, 1, 2])
def test_the_multiply_adds_that_are_counted_are_those_that_are_formed(layers: int | None) -> None:
    """Of a loss and its gradient, on a model whose attention is small beside its matrices: that is formed above the diagonal too."""
    config = CONFIG._replace(width=32, hidden=96, heads=4, head=8, groups=2, vocabulary=200)
    model, ids = model_on(parameters(config), config, 32, 10), np.random.default_rng(5).integers(0, 200, 5)

    def work() -> None:
        if layers is None:
            whole_score(model)(model.parameters, ids[None, :-1], ids[None, 1:], None)
        else:
            x = features(model, ids, 4, config.layers - layers)
            top_score(model)(top_of(model, layers), x[None], ids[None, 1:], None)

    counted = 4 * gradient_products(config, 4, layers)
    assert counted <= formed(work) < 1.05 * counted


def test_settings_that_cannot_be_are_said() -> None:
    with pytest.raises(ValueError, match="whole segments, got 7"):
        check_segments(16, 7)
    with pytest.raises(ValueError, match="has 3 layers, got 4"):
        top_of(MODEL, 4)
