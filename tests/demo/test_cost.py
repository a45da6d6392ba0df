"""Cost: the formulas against a count of the products that are really formed, as integers that must
be equal.
"""

import ast

import array_api_compat.numpy as xp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwl_ref.demo import cost
from fwl_ref.dynamic_evaluation import Descent
from fwl_ref.lm.cached import cached
from fwl_ref.lm.data import Document
from fwl_ref.lm.evaluate import Way, dynamic, dynamic_block, fast_weights, read, static
from fwl_ref.lm.model import Config, initialize
from fwl_ref.ops.attention import BLOCK
from tests.strategies import seeds
from tests.test_structure import TREES, reachable

pytestmark = pytest.mark.host("counts the products of NumPy")

PRODUCTS = ("matmul", "dot", "tensordot", "einsum", "inner", "outer", "convolve")
CONFIG = Config(width=8, layers=2, heads=2, vocabulary=256, chunk=5)


def count(way, length, seed=0):
    """Multiply-adds of all products while a document with ``length`` bytes to predict is read."""
    counted, patch = [], pytest.MonkeyPatch()
    matmul, vecdot = xp.matmul, xp.vecdot

    def watched(a, b, **options):
        out = matmul(a, b, **options)
        if a.ndim == 1:
            assert np.all(a == 1), "a product of a vector is a sum over tokens"
        else:
            counted.append(int(out.size) * a.shape[-1])
        return out

    def summed(ones, a):
        assert np.all(ones == 1), "a product that is not counted"
        return vecdot(ones, a)

    def unforeseen(*args, **kwargs):
        raise AssertionError("a product that is not counted")

    with patch.context() as patched:
        for name in PRODUCTS:
            patched.setattr(xp, name, unforeseen, raising=False)
        patched.setattr(xp, "matmul", watched)
        patched.setattr(xp, "vecdot", summed)
        losses = read(way, Document("d", np.random.default_rng(seed).integers(0, 256, length + 1).astype("uint8")))
    assert losses.shape == (length,) and counted
    return sum(counted)


def spans(length, window):
    """The lengths of the windows of a document."""
    return [min(window, length - start) for start in range(0, length, window)]


def expected(way, config, length, window, segment):
    """The formulas, summed over the windows of a document; only the first window finds no state to
    read.
    """
    formulas = {
        "static": lambda i, n: cost.static(config, n),
        "windowed": lambda i, n: cost.fast(config, n, alone=True),
        "carried": lambda i, n: cost.fast(config, n, carried=i > 0),
        "dynamic": lambda i, n: cost.dynamic(config, n, segment),
        "dynamic block": lambda i, n: cost.dynamic_block(config, n),
    }
    if way.startswith("cached"):
        below = "carried" if way.endswith("carried") else "static"
        return expected(below, config, length, window, segment) + cost.cache(config, length)
    return sum(formulas[way](i, n) for i, n in enumerate(spans(length, window)))


def reader(way, config, window, segment):
    """A way of reading, with a rule that leaves parameters where they are: what is counted does not
    depend on it.
    """
    function, options = {
        "static": (static, {}),
        "windowed": (fast_weights, {}),
        "carried": (fast_weights, {"carried": True}),
        "dynamic": (dynamic, {"descent": Descent(0.0), "segment": segment}),
        "dynamic block": (dynamic_block, {"rate": 0.0, "decay": 0.0, "segment": segment}),
        "cached": (cached, {"theta": 1.0, "share": 0.1}),
        "cached, carried": (cached, {"theta": 1.0, "share": 0.1, "carried": True}),
    }[way]
    config = config._replace(fast=way != "cached")
    return Way(function, initialize(config), config, {"window": window, **options})


WAYS = ("static", "windowed", "carried", "dynamic", "dynamic block", "cached", "cached, carried")


def test_nothing_is_multiplied_behind_the_counter():
    """Whatever reading runs forms products by ``matmul`` of the namespace, which is what is
    counted: no operator @ anywhere.
    """
    assert {"lm.model", "fwl", "ops.dense", "dynamic_evaluation"} <= reachable("lm.evaluate")
    for name in {"lm.evaluate", "lm.cached", *reachable("lm.evaluate"), *reachable("lm.cached")}:
        assert not any(isinstance(n, ast.MatMult) for n in ast.walk(TREES[name])), name


@pytest.mark.parametrize("way", WAYS)
@given(data=st.data(), seed=seeds)
def test_every_formula_is_the_count_of_the_real_products(way, data, seed):
    """Windows, segments, chunks and attention windows of any size, dividing each other or not;
    models of any shape.
    """
    config = Config(
        width=data.draw(st.sampled_from([4, 8, 12]), label="width"),
        layers=data.draw(st.integers(1, 3), label="layers"),
        heads=data.draw(st.integers(1, 2), label="heads"),
        attention_window=data.draw(st.none() | st.integers(1, 20), label="attention window"),
        dialect=data.draw(st.sampled_from(["tf", "jax"]), label="dialect"),
        chunk=data.draw(st.none() | st.integers(1, 20), label="chunk"),
    )
    window, segment, length = (data.draw(st.integers(1, n), label=name) for n, name in ((20, "window"), (20, "segment"), (45, "length")))
    assert count(reader(way, config, window, segment), length, seed) == expected(way, config, length, window, segment)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("attention_window", "chunk"), [(None, None), (100, 200)])
def test_formulas_hold_across_blocks_of_attention(way, attention_window, chunk):
    """Windows and chunks longer than one block of queries, segments that end inside a block, a
    last window that is short.
    """
    config = CONFIG._replace(layers=1, attention_window=attention_window, chunk=chunk)
    window, segment = 2 * BLOCK + 7, BLOCK + 3
    length = window + BLOCK + 1
    assert count(reader(way, config, window, segment), length) == expected(way, config, length, window, segment)


def test_the_demo_reports_the_counted_ratios():
    """``relative_multiply_adds`` are the counts of one window over the static one; carried means
    that a state came in; the cache is that of a whole document, a window's share of it.
    """
    from fwl_ref.demo.run import LABELS, QUICK, relative_multiply_adds

    settings = QUICK._replace(config=CONFIG, training=QUICK.training._replace(window=23), segment=7)
    found = relative_multiply_adds(settings, 46)
    assert list(found) == list(LABELS)
    once = {way: count(reader(way, CONFIG, 23, 7), 23) for way in WAYS}
    twice = count(reader("carried", CONFIG, 23, 7), 46)
    beside = (count(reader("cached", CONFIG, 23, 7), 46) - count(reader("static", CONFIG, 23, 7), 46)) / 2
    for name, counted in {
        "static": once["static"],
        "dynamic_evaluation_sgd": once["dynamic"],
        "dynamic_evaluation_rms": once["dynamic"],
        "dynamic_evaluation_block": once["dynamic block"],
        "fast_untrained": twice - once["carried"],
        "fast_windowed": once["windowed"],
        "fast_carried": twice - once["carried"],
        "neural_cache": once["static"] + beside,
        "fast_cache": twice - once["carried"] + beside,
    }.items():
        assert found[name] == counted / once["static"], name


@pytest.mark.parametrize("name", ["FULL", "QUICK"])
def test_the_demo_costs_what_is_claimed(name):
    """Dynamic evaluation over three times the static model, fast weights well under twice; a cache of 8,192 bytes between."""
    from fwl_ref.demo import run as demo

    found = demo.relative_multiply_adds(getattr(demo, name), 8192)
    assert found["static"] == 1
    assert all(found[k] > 3 for k in ("dynamic_evaluation_sgd", "dynamic_evaluation_rms"))
    assert all(1 < found[k] < 1.7 for k in ("fast_untrained", "fast_windowed", "fast_carried", "neural_cache"))
    assert found["neural_cache"] - 1 == pytest.approx(found["fast_cache"] - found["fast_carried"])


MUTANTS = {
    "a first chunk that reads": lambda c, n: cost.fast(c, n, carried=True),
    "one chunk": lambda c, n: cost.fast(c._replace(chunk=None), n),
    "no cumulative sums": lambda c, n: cost.fast(c, n) - n * 2 * c.width,
    "attention without its blocks": lambda c, n: cost.fast(c, n) - c.layers * 2 * c.width * (n * n - n * (n + 1) // 2),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_count_rejects_formulas_that_are_nearly_right(mutant):
    """Each of these differs from the count by a few percent or less of what is counted."""
    counted = count(reader("carried", CONFIG, 23, 7), 23)
    wrong = MUTANTS[mutant](CONFIG, 23)
    assert counted != wrong and abs(counted - wrong) < 0.2 * counted


def test_a_window_alone_leaves_no_state():
    """Two chunks, for those of a window alone are of 256 tokens at least: the second reads what the first wrote, and nothing is
    written after it.
    """
    counted = count(reader("windowed", CONFIG, 300, 7), 300)
    assert counted == cost.fast(CONFIG, 300, alone=True)
    assert counted != cost.fast(CONFIG._replace(chunk=256), 300)
