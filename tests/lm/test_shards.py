"""A batch, one sequence at a time and on several threads: the same function, to the bit whatever the threads."""

from __future__ import annotations

import threading
from typing import Any

import array_api_strict
import numpy as np
import pytest

from fwl_ref.lm import model, shards
from fwl_ref.lm.model import Config, features, features_fwd, initialize, loss_and_gradient, model_bwd, model_fwd, model_score
from fwl_ref.tree import leaves
from tests.strategies import generator
from tests.tolerances import assert_bitwise, assert_close, assert_trees_close

pytestmark = pytest.mark.host("a device takes a batch whole")

CONFIG = Config(width=8, layers=2, heads=2, vocabulary=11, chunk=4)


def problem(batch: int = 3, length: int = 9) -> tuple:
    rng = np.random.default_rng(0)
    tokens, labels = rng.integers(0, 11, (2, batch, length))
    return initialize(CONFIG, 1, "float64", step_size=0.1, decay=0.1), tokens, labels, rng.uniform(0, 2, (batch, length))


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """So many threads, one sequence a part, also for sequences as small as here."""
    monkeypatch.setattr(shards, "PART", 1)
    monkeypatch.setattr(shards, "blas_threads", lambda: request.param)
    return request.param


@pytest.mark.parametrize("normalizer", ["constant", "sequence", "batch"])
@pytest.mark.parametrize("fast", [True, False])
def test_a_batch_is_the_sum_of_its_sequences(threads: int, fast: bool, normalizer: str) -> None:
    """Loss and gradient, and what reading yields, are those of the whole batch at once, N of the whole batch included."""
    config = CONFIG._replace(fast=fast, normalizer=normalizer)
    p, *text, weights = problem()
    output, res = model_fwd(p, *text, weights, config)
    share = weights / weights.sum()
    loss, gradient = loss_and_gradient(p, *text, weights, config)
    assert_close(loss, np.sum(share * output.nll))
    assert_trees_close(gradient, model_bwd(share, res))
    assert_trees_close(model_score(p, *text, weights, config), output)
    assert_trees_close(model_score(p, *text, weights, config, carry=False), output._replace(state=None))


def test_training_forms_no_state_that_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The windows are short: no chunk comes after the first. Nor does reading without ``carry``."""
    p, *text, weights = problem()

    def refused(*args: object) -> None:
        raise AssertionError("a state is formed")

    monkeypatch.setattr("fwl_ref.ops.linear_attention._written", refused)
    loss_and_gradient(p, *text, weights, CONFIG)
    model_score(p, *text, weights, CONFIG, carry=False)
    with pytest.raises(AssertionError, match="a state is formed"):
        model_score(p, *text, weights, CONFIG)


def test_the_number_of_threads_does_not_change_a_bit(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequences are summed in their order."""
    p, *text, weights = problem(batch=5)
    found = leaves((loss_and_gradient(p, *text, weights, CONFIG), model_score(p, *text, weights, CONFIG)))
    monkeypatch.setattr(shards, "blas_threads", lambda: 1)
    for a, b in zip(found, leaves((loss_and_gradient(p, *text, weights, CONFIG), model_score(p, *text, weights, CONFIG))), strict=True):
        assert_bitwise(a, b)


def test_reading_goes_on_from_a_state_and_from_caches(threads: int) -> None:
    """Two halves, state and keys and values carried, are the whole; features alone too."""
    p, tokens, labels, weights = problem(length=8)
    whole = model_score(p, tokens, labels, weights, CONFIG)
    first, last = slice(0, 4), slice(4, 8)
    one = model_score(p, tokens[:, first], labels[:, first], weights[:, first], CONFIG)
    two = model_score(p, tokens[:, last], labels[:, last], weights[:, last], CONFIG, one.state, one.caches)
    assert_close(np.concatenate([one.nll, two.nll], axis=1), whole.nll)
    assert_trees_close(two.state, whole.state)
    (x, caches), _ = features_fwd(p, tokens, CONFIG)
    assert_trees_close(features(p, tokens, CONFIG), (x, caches))


def test_no_sequence_at_all_is_no_sequence(threads: int) -> None:
    """B = 0 reads nothing and loses nothing."""
    p, *text, weights = problem(batch=0)
    assert model_score(p, *text, weights, CONFIG).nll.shape == (0, 9)
    loss, gradient = loss_and_gradient(p, *text, weights, CONFIG)
    assert loss == 0 and not any(np.any(g) for g in leaves(gradient))


def test_an_error_of_one_sequence_comes_out_and_no_more_are_begun(threads: int) -> None:
    """What is under way ends."""
    begun = []

    def work(part: slice) -> int:
        begun.append(part.start)
        if part.start == 1:
            raise ZeroDivisionError("of the second")
        return part.start

    with pytest.raises(ZeroDivisionError, match="of the second"):
        list(shards.of_each(work, [slice(i, i + 1) for i in range(50)]))
    assert len(begun) < 50


def test_threads_inherit_how_numpy_treats_errors_and_blas_gets_its_threads_back(threads: int) -> None:
    """And there are as many threads as sequences at most."""
    seen = set()

    def work(part: slice) -> float:
        seen.add(threading.current_thread().name)
        return np.float64(1) / np.float64(0)

    before = [lib.num_threads for lib in shards._blas().lib_controllers]
    with np.errstate(divide="ignore"):
        assert list(shards.of_each(work, shards.shards(2, 1, np.zeros(1)))) == [np.inf] * 2
    assert [lib.num_threads for lib in shards._blas().lib_controllers] == before
    assert len(seen) <= min(threads, 2)
    with pytest.raises(RuntimeWarning):
        list(shards.of_each(work, shards.shards(2, 1, np.zeros(1))))


def test_a_part_is_as_many_sequences_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """PART numbers, and one sequence at least; at once are as many parts as there are threads."""
    monkeypatch.setattr(shards, "PART", 100)
    host = np.zeros(1)
    assert shards.shards(5, 50, host) == [slice(0, 2), slice(2, 4), slice(4, 6)]
    assert shards.shards(2, 101, host) == [slice(0, 1), slice(1, 2)] and shards.shards(3, 0, host) == [slice(0, 3)]
    assert shards.shards(5, 50, array_api_strict.zeros(1)) == [slice(0, 5)]
    for threads, expected in ((1, [2, 1, 2, 0]), (2, [4, 1, 2, 0]), (9, [5, 1, 5, 0])):
        monkeypatch.setattr(shards, "blas_threads", lambda threads=threads: threads)
        assert [shards.at_once(*each) for each in ((5, 50), (1, 1000), (5, 99), (0, 50))][:1] == expected[:1]
        assert [shards.at_once(*each) for each in ((1, 1000), (0, 50))] == [1, 0]


@pytest.mark.parametrize("length", [2, 8])
def test_a_model_takes_as_many_sequences_at_once_as_their_features_allow(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """PART numbers of (B,T,D) in a part of five sequences, whatever is done with it."""
    p, *text, weights = problem(batch=5, length=length)
    monkeypatch.setattr(shards, "PART", 2 * length * CONFIG.width)
    taken: list[slice] = []

    def of_each(f: Any, parts: list[slice]) -> Any:
        taken.extend(parts)
        return map(f, parts)

    monkeypatch.setattr(model, "of_each", of_each)
    for work in (loss_and_gradient, model_score):
        taken.clear()
        work(p, *text, weights, CONFIG)
        assert taken == [slice(0, 2), slice(2, 4), slice(4, 6)]


def test_parts_of_a_tree_and_back() -> None:
    """Slices of the first axis of every array; None stays None."""
    draw = generator(0)
    tree = (draw(3, 2), (None, draw(3, 1, 4)))
    parts = [shards.part_of(tree, part) for part in shards.shards(3, shards.PART, tree[0])]
    assert [len(p[0]) for p in parts] == [1, 1, 1] and parts[0][1][0] is None
    assert_trees_close(shards.joined(parts), tree)
    assert shards.shards(0, 9, tree[0]) == [slice(0, 1)]
