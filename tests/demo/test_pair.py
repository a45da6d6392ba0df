"""The two models that come with the package: what is written is what is read, and no document that the demo reads was trained on."""

from __future__ import annotations

import numpy as np
import pytest

from fwl_ref.demo.pair import MODELS, PAIR, SHIPPED_OF, Pair, check_held_out, load_pair, save_pair
from fwl_ref.demo.run import FULL, QUICK
from fwl_ref.lm.corpus import Document, load_corpus, pick
from fwl_ref.lm.evaluate import bits_per_byte, fast_weights, static
from fwl_ref.lm.model import Config, check_model, initialize
from fwl_ref.lm.train import TrainSettings
from fwl_ref.tree import leaves, named_leaves

pytestmark = pytest.mark.host("a file and its numbers")

TINY = Config(width=8, layers=1, heads=2)


def tiny() -> Pair:
    """Two models of random numbers."""
    models = (initialize(TINY, seed) for seed in (1, 2))
    return Pair(*models, {n: np.arange(3.0) for n in MODELS}, TINY, TrainSettings(steps=3), ("a", "b"), "today")


def test_what_is_read_is_what_was_written_to_half_precision(tmp_path):
    """Each number in its place; the same file again."""
    pair = tiny()
    save_pair(tmp_path / "pair.npz", pair)
    found = load_pair(tmp_path / "pair.npz")
    for name in MODELS:
        for (leaf, a), (_, b) in zip(named_leaves(getattr(pair, name)), named_leaves(getattr(found, name)), strict=True):
            assert b.dtype == np.float32 and np.array_equal(b, np.float16(a)), leaf
        assert np.array_equal(found.curves[name], pair.curves[name])
    assert found[3:] == pair[3:]


def test_a_number_beyond_half_precision_is_refused(tmp_path):
    """By name, and nothing is written."""
    pair = tiny()
    with np.errstate(over="ignore"), pytest.raises(ValueError, match=r"fast\.decay has a number beyond half precision"):
        save_pair(tmp_path / "pair.npz", pair._replace(fast=pair.fast._replace(decay=np.float32(1e6))))
    assert not list(tmp_path.iterdir())


def test_a_document_that_was_trained_on_is_refused():
    """Before anything is read."""
    with pytest.raises(ValueError, match="were trained on b, which is to be read"):
        check_held_out(tiny(), [Document("c", np.zeros(2, "uint8")), Document("b", np.zeros(2, "uint8"))])
    check_held_out(tiny(), [Document("c", np.zeros(2, "uint8"))])


def test_the_models_of_the_package_are_the_full_demo_s_trained_longer():
    """Their shapes, settings and curves; names of training documents, none of which the demo reads."""
    pair, corpus = load_pair(), load_corpus(SHIPPED_OF)
    assert pair.config == FULL.config and pair.training._replace(steps=0) == FULL.training._replace(steps=0)
    assert pair.training.steps >= 4 * FULL.training.steps and QUICK.shipped and not FULL.shipped
    for name in MODELS:
        model = getattr(pair, name)
        check_model(model, pair.config)
        assert all(np.all(np.isfinite(a)) for a in leaves(model)) and pair.curves[name].shape == (pair.training.steps,)
    check_held_out(pair, [*corpus.validation, *corpus.test])
    assert len(pair.trained) > 100 and PAIR.stat().st_size < 2**22


def test_the_models_of_the_package_read_better_than_those_of_minutes():
    """On four held-out documents: the plain one below 2.6 bits a byte, and fast weights below it."""
    pair, window = load_pair(), FULL.training.window
    documents = pick(load_corpus(SHIPPED_OF).validation, 4, 2048)
    plain = bits_per_byte([static(pair.plain, pair.config._replace(fast=False), d, window) for d in documents])
    fast = bits_per_byte([fast_weights(pair.fast, pair.config, d, window, carried=True) for d in documents])
    assert fast < plain < 2.6
