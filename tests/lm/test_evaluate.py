"""Ways of reading a document: they must agree where they coincide, see no future, and leave
everything as it was.
"""

import math

import numpy as np
import pytest

from fwl_ref.dynamic_evaluation import Descent, RmsScale, dynamic_evaluation, evaluate_block, rms_scale
from fwl_ref.lm.data import Document
from fwl_ref.lm.evaluate import (
    Way,
    bits_per_byte,
    carry,
    dynamic,
    dynamic_block,
    fast_weights,
    read,
    static,
    with_step_size,
)
from fwl_ref.lm.model import Config, features_fwd, initialize, model_bwd, model_fwd
from fwl_ref.ops.cross_entropy import cross_entropy_fwd
from fwl_ref.slow_block import FastParameters, slow_block_bwd, slow_block_fwd
from fwl_ref.tree import leaves, tree_map

CONFIG = Config(width=8, layers=1, heads=2, chunk=5)
DESCENT = {"descent": Descent(0.05, 0.01), "segment": 3}
BLOCK = {"rate": 0.05, "decay": 0.01, "segment": 3}
FUNCTIONS = {  # name -> function, options but for the window
    "static": (static, {}),
    "fast": (fast_weights, {}),
    "carried": (fast_weights, {"carried": True}),
    "dynamic": (dynamic, DESCENT),
    "dynamic block": (dynamic_block, BLOCK),
}
every_way = pytest.mark.parametrize("name", FUNCTIONS)


@pytest.fixture(scope="module")
def params():
    """A random float64 model whose fast weights matter."""
    return with_step_size(tree_map(lambda p: p * 3 if p.ndim == 2 else p, initialize(CONFIG, seed=1, dtype="float64")), 0.05, 0.01)


def document(length, seed=0):
    return Document(f"d{seed}", np.random.default_rng(seed).integers(97, 107, length).astype("uint8"))


def way(params, name, **more):
    """One of FUNCTIONS as a Way, in windows of 8 unless told otherwise."""
    function, options = FUNCTIONS[name]
    return Way(function, params, CONFIG, {"window": 8, **options, **more}, name)


@every_way
@pytest.mark.parametrize("length", [2, 9, 25, 30])
def test_every_way_scores_every_byte_but_the_first(params, name, length):
    """As many finite losses as bytes less one, whole windows or not; with a limit, just that many;
    the first is the same for all.
    """
    losses = read(way(params, name), document(length))
    assert losses.shape == (length - 1,) and np.isfinite(losses).all()
    assert read(way(params, name, limit=5), document(length)).shape == (min(5, length - 1),)
    assert losses[0] == pytest.approx(static(params, CONFIG, document(length), 8)[0], rel=1e-12)


@pytest.mark.parametrize("segment", [1, 3, 8, 100])
@pytest.mark.parametrize("attention_window", [None, 4])
def test_dynamic_evaluation_at_rate_zero_is_static(params, segment, attention_window):
    """Segments see the window's earlier ones through the cache, so cutting a window up changes no
    loss.
    """
    config = CONFIG._replace(attention_window=attention_window)
    expected = static(params, config, document(30), 8)
    found = dynamic(params, config, document(30), 8, descent=Descent(0.0), segment=segment)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("segment", [1, 3, 8])
def test_dynamic_evaluation_of_the_block_at_rate_zero_is_static(params, segment):
    """The block alone, never moved, scores like the plain model."""
    found = dynamic_block(params, CONFIG, document(30), 8, rate=0.0, decay=0.0, segment=segment)
    np.testing.assert_allclose(found, static(params, CONFIG, document(30), 8), rtol=1e-10)


@pytest.mark.parametrize("carried", [True, False])
def test_fast_weights_with_zero_step_sizes_are_static(params, carried):
    """Nothing is written that can be read: the plain model's losses."""
    still = with_step_size(params, 0.0, 0.01)
    found = fast_weights(still, CONFIG, document(30), 8, carried=carried)
    np.testing.assert_allclose(found, static(params, CONFIG, document(30), 8), rtol=1e-10)


def test_carrying_the_state_matters_only_from_the_second_window(params):
    """On a document of a single window carried = reset; on a longer one they part after the first
    window.
    """
    one, several = ([fast_weights(params, CONFIG, document(n), 8, carried=c) for c in (False, True)] for n in (9, 25))
    assert (one[0] == one[1]).all()
    reset, carried = several
    assert (reset[:8] == carried[:8]).all() and abs(reset[8:] - carried[8:]).max() > 1e-4


def test_a_window_of_the_whole_document_carries_like_many_windows_if_attention_does_not_see_far(params):
    """With the trunk's attention limited to one token, features do not depend on windows, so
    carried windows equal one long window.
    """
    config = CONFIG._replace(attention_window=1)
    whole = fast_weights(params, config, document(30), 100)
    for window in (1, 7, 16):
        np.testing.assert_allclose(fast_weights(params, config, document(30), window, carried=True), whole, rtol=1e-10)


@pytest.mark.parametrize("segment", [1, 3])
def test_dynamic_evaluation_of_the_block_starts_like_fast_weights(params, segment):
    """Up to the first update both read the slow weights; one update of one token then moves the
    next score alike.
    """
    config = CONFIG._replace(constant=1.0)
    block = dynamic_block(with_step_size(params, 0.0, 0.0), config, document(9), 8, rate=0.05, decay=0.0, segment=segment)
    fast = fast_weights(with_step_size(params, 0.05, 0.0), config, document(9), 8)
    assert block[0] == pytest.approx(fast[0], rel=1e-12)
    if segment == 1:
        assert block[1] == pytest.approx(fast[1], rel=1e-10) and block[7] != pytest.approx(fast[7], rel=1e-6)


def test_dynamic_evaluation_of_the_block_by_the_rms_rule(params):
    """Segment by segment: a gradient over its usual size, and a pull to the start; U and c stay where they are   (Y.2)"""
    rng, data = np.random.default_rng(7), document(11).data.astype("int64")[None]
    scale = RmsScale(*(tree_map(lambda a: rng.uniform(0.5, 2, a.shape), params.block) for _ in range(2)))
    found = dynamic_block(params, CONFIG, document(11), 10, rate=0.05, decay=0.1, segment=5, scale=scale)
    (x, _), _ = features_fwd(params, data[:, :-1], CONFIG)
    theta = params.block
    for part in (slice(0, 5), slice(5, 10)):
        (nll, _), res = slow_block_fwd(x[:, part], data[:, 1:][:, part], theta, 0.0)
        np.testing.assert_allclose(found[part], nll[0], rtol=1e-12)
        _, g = slow_block_bwd(np.full((1, 5), 0.2), res)
        columns = zip(theta, g, scale.divisor, scale.norm, params.block, strict=True)
        stepped = [p - 0.05 * a / d + 0.1 * n * (p0 - p) for p, a, d, n, p0 in columns]
        theta = type(theta)(*stepped[:6], theta.U, theta.c)


@pytest.mark.parametrize("segment", [1, 2, 5])
def test_dynamic_evaluation_of_the_block_moves_by_the_mean_over_a_segment(params, segment):
    """One window of whole segments is ``evaluate_block`` with N = L, which theorems are about; a
    sum is not the mean   (Y.4)
    """
    found = dynamic_block(params, CONFIG, document(11), 10, rate=0.5, decay=0.1, segment=segment)
    data = document(11).data.astype("int64")[None]
    (x, _), _ = features_fwd(params, data[:, :-1], CONFIG)
    rates, ones = (FastParameters(*(0 * e + 0.5 for e in params.eta)), np.ones((1, 10), dtype=x.dtype))
    block = (x, data[:, 1:], ones, params.block, rates)
    mean, total = (evaluate_block(*block, segment=segment, decay=0.1, n=n, eps=0.0)[0] for n in (float(segment), 1.0))
    np.testing.assert_allclose(found, cross_entropy_fwd(mean, data[:, 1:])[0][0], rtol=1e-10)
    if segment > 1:
        assert np.max(np.abs(found - cross_entropy_fwd(total, data[:, 1:])[0][0])) > 1e-3


def test_the_block_goes_on_from_window_to_window(params):
    """With the trunk's attention limited to one token, features do not depend on windows, so many
    windows equal one long window if segments fit into both; starting each window afresh does not.
    """
    config, options = CONFIG._replace(attention_window=1), {"rate": 0.5, "decay": 0.1, "segment": 3}
    whole = dynamic_block(params, config, document(30), 100, **options)
    found = dynamic_block(params, config, document(30), 6, **options)
    np.testing.assert_allclose(found, whole, rtol=1e-10)
    afresh = dynamic_block(params, config, Document("second window", document(30).data[6:]), 6, **options)
    assert abs(whole[6:12] - afresh[:6]).max() > 1e-3


def test_step_sizes_can_be_set_whatever_they_were(params):
    """Six equal step sizes and a decay in place of learned ones, of zeros, of what is not a number;
    all else is the same arrays.
    """
    for start in (params, params._replace(eta=tree_map(lambda e: 0 * e, params.eta), decay=0 * params.decay + np.nan)):
        p = with_step_size(start, 0.25, 0.125)
        assert [float(e) for e in p.eta] == [0.25] * 6 and float(p.decay) == 0.125 and p.decay.dtype == start.decay.dtype
        assert p.embedding is start.embedding and p.block is start.block


@pytest.mark.parametrize("cut", [9, 16, 17])
def test_a_state_goes_on_from_one_text_to_the_next(params, cut):
    """Two halves, the second from the state of the first: without attention across the cut, the losses of a text read in windows that end
    there; from no state, those of ``carried``.
    """
    first, state = carry(params, CONFIG, Document("a", document(40).data[: cut + 1]), cut)
    second, _ = carry(params, CONFIG, Document("b", document(40).data[cut:]), cut, state=state)
    whole = fast_weights(params, CONFIG, document(40), cut, carried=True)
    np.testing.assert_allclose(np.concatenate([first, second]), whole, rtol=1e-12)
    assert (carry(params, CONFIG, document(40), cut)[0] == whole).all()


@every_way
def test_every_document_starts_afresh(params, name):
    """Nothing is carried from one document to the next, or from one reading to the next."""
    alone = read(way(params, name), document(30, seed=2))
    read(way(params, name), document(40, seed=1))
    assert (read(way(params, name), document(30, seed=2)) == alone).all()


@every_way
def test_no_way_sees_the_future(params, name):
    """Changing the end of a document leaves the losses before it as they are, to the bit."""
    first = document(30)
    other = Document("other", np.concatenate([first.data[:20], first.data[20:][::-1] ^ 1]))
    a, b = (read(way(params, name), d) for d in (first, other))
    assert (a[:19] == b[:19]).all() and (a[19:] != b[19:]).any()


def test_evaluation_leaves_the_parameters_alone(params):
    """Dynamic evaluation moves a copy: the model that one holds is as before."""
    before = [p.copy() for p in leaves(params)]
    for name in FUNCTIONS:
        read(way(params, name), document(30))
    assert all((a == b).all() for a, b in zip(before, leaves(params), strict=True))


def test_dynamic_evaluation_adapts_to_repetition(params):
    """On one byte over and over every way that adapts ends below the static model."""
    same = Document("aaa", np.full(60, 97, dtype="uint8"))
    ends = {name: read(way(params, name), same)[-10:].mean() for name in FUNCTIONS}
    assert all(ends[name] < ends["static"] - 0.1 for name in ends.keys() - {"static"})


def test_bits_per_byte_is_the_mean_over_bytes():
    """Every byte counts once, whichever document it is in; nats become bits."""
    losses = [np.full(3, math.log(2)), np.full(1, 5 * math.log(2))]
    assert bits_per_byte(losses) == pytest.approx(2.0, rel=1e-12)


# --- dynamic evaluation of the whole model, against the loop that defines it


def whole_model_literally(params, text, window, segment, descent):
    """Losses of the definition's loop on one document: each segment reads the keys and values that
    the window's earlier segments left behind, as they left them.
    """
    config, caches, cuts = CONFIG._replace(fast=False), {}, []
    data = text.data.astype("int64")[None]
    last = data.shape[1] - 1
    for start in range(0, last, window):
        end = min(start + window, last)
        cuts += [(start, first, min(first + segment, end)) for first in range(start, end, segment)]

    def score(theta, cut):
        start, first, stop = cut
        tokens, labels = data[:, first:stop], data[:, first + 1 : stop + 1]
        before = caches.get((start, first))  # what ended here, in the same window
        output, res = model_fwd(theta, tokens, labels, None, config, caches=before)
        caches[start, stop] = output.caches
        return output.nll[0], model_bwd(np.full_like(output.nll, 1 / output.nll.size), res)

    return np.concatenate([nll for nll, _ in dynamic_evaluation(params, cuts, score, descent)])


@pytest.mark.parametrize(("window", "segment"), [(8, 8), (8, 3), (8, 1), (100, 7)])
@pytest.mark.parametrize("rms", [False, True])
def test_dynamic_evaluation_of_the_whole_model_is_the_loop_that_defines_it(params, window, segment, rms):
    """To the bit; parameters go on from window to window and keys and values do not   (Y.1),
    (Y.2)
    """
    descent = Descent(0.05, 0.01, rms_scale(tree_map(np.square, params)) if rms else None)
    found = dynamic(params, CONFIG, document(30), window, descent=descent, segment=segment)
    assert (found == whole_model_literally(params, document(30), window, segment, descent)).all()
    other = whole_model_literally(params, document(30), window, segment, descent._replace(decay=0.3))
    assert abs(found - other).max() > 1e-6


def test_a_way_is_plain_data_and_reads_with_its_options():
    """The function gets parameters, configuration and document in this order, and every option."""

    def function(*args, **options):
        return args, options

    found = read(Way(function, "parameters", "configuration", {"window": 3, "limit": 2}), "document")
    assert found == (("parameters", "configuration", "document"), {"window": 3, "limit": 2})
