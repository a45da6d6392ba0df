"""Bad input: each mistake gets an error that says what must hold, what was found and what to do,
and nothing is lost.
"""

import os
import re

import array_api_strict
import numpy as np
import pytest

from fwl_ref.backend import namespace
from fwl_ref.dynamic_evaluation import Descent, evaluate_block, mean_square, rms_scale
from fwl_ref.fwl import FastSettings, fast_block_fwd
from fwl_ref.lm import train as training
from fwl_ref.lm.adamw import NonFiniteError, adam_init
from fwl_ref.lm.data import Document, load_corpus, training_batch, windows
from fwl_ref.lm.evaluate import dynamic, dynamic_block, fast_weights, static
from fwl_ref.lm.model import Config, check_config, initialize, loss_and_gradient, model_fwd
from fwl_ref.lm.train import Progress, TrainSettings, train
from fwl_ref.ops.linear_attention import linear_attention_chunked_fwd
from fwl_ref.ops.rotary import rotary_fwd
from fwl_ref.slow_block import FastParameters, SlowParameters, slow_block_fwd
from fwl_ref.stream import Stream, stream_predict, stream_reveal, stream_start
from fwl_ref.tree import leaves, tree_map

B, T, D, F, V = 2, 5, 4, 6, 3
RNG = np.random.default_rng(0)
SHAPES = {"W1": (D, F), "b1": (F,), "W2": (F, D), "b2": (D,), "gain": (D,), "bias": (D,), "U": (D, V), "c": (V,)}
SLOW = SlowParameters(**{n: RNG.standard_normal(s) for n, s in SHAPES.items()})
X, LABELS, WEIGHTS = RNG.standard_normal((B, T, D)), RNG.integers(0, V, (B, T)), np.ones((B, T))
ETA, DECAY, SETTINGS = FastParameters(*(np.asarray(0.1),) * 6), np.asarray(0.01), FastSettings()
CONFIG = Config(width=8, layers=1, heads=2)
NARROW = SlowParameters(SLOW.W1, SLOW.b1, SLOW.W2[:, :1], SLOW.b2[:1], SLOW.gain[:1], SLOW.bias[:1], SLOW.U[:1], SLOW.c)  # D = 1


def block(**changes):
    """The fast weight block on good input but for ``changes``."""
    good = {"x": X, "labels": LABELS, "weights": WEIGHTS, "slow": SLOW, "eta": ETA, "decay": DECAY, "settings": SETTINGS}
    return fast_block_fwd(**{**good, **changes})


def oracle(**changes):
    """Dynamic evaluation of the block on good input but for ``changes``."""
    good = {"x": X, "labels": LABELS, "weights": WEIGHTS, "slow": SLOW, "eta": ETA, "segment": 2}
    return evaluate_block(**{**good, **changes})


def at(array, index, value):
    """A copy with one entry changed."""
    array = array.copy()
    array[index] = value
    return array


def state(batch):
    """An empty memory."""
    return stream_start(batch, SLOW).state


def refused(error, words, action, *args, **kwargs):
    """``action`` raises ``error`` with all ``words`` in its message."""
    with pytest.raises(error) as caught:
        action(*args, **kwargs)
    for word in words:
        assert word in str(caught.value), f"{word!r} is missing in: {caught.value}"


# --- the block


@pytest.mark.parametrize("run", [block, oracle])
@pytest.mark.parametrize(("index", "value"), [((0, 1), V), ((1, 4), -1), ((1, 0), 10**6)])
def test_labels_out_of_range_are_refused(run, index, value):
    """The range, the label, its place, and how to pad."""
    refused(ValueError, [f"[0, {V})", f"got {value} at index {index}", "weight 0"], run, labels=at(LABELS, index, value))


@pytest.mark.parametrize("run", [block, oracle])
@pytest.mark.parametrize("value", [-0.5, np.nan, np.inf])
def test_weights_that_are_negative_or_not_finite_are_refused(run, value):
    """The bound, the weight, its place, and what 0 means."""
    words = ["finite and >= 0", f"got {value} at index (1, 2)", "0 leaves it out"]
    refused(ValueError, words, run, weights=at(WEIGHTS, (1, 2), value))


@pytest.mark.parametrize("labels", [LABELS * 1.0, LABELS > 0])
def test_labels_that_are_not_integers_are_refused(labels):
    """The dtype that was found."""
    refused(TypeError, ["labels must be integers", str(labels.dtype)], block, labels=labels)


def single(tree):
    """The same in float32."""
    return tree_map(lambda p: p.astype("float32"), tree)


MIXED = {"x": single(X), "weights": single(WEIGHTS), "slow": single(SLOW), "U": SLOW._replace(U=single(SLOW.U)), "eta": single(ETA)}


@pytest.mark.parametrize("what", MIXED)
def test_mixed_dtypes_are_refused(what):
    """Nothing is upcast silently; the message names both dtypes."""
    changes = {"slow" if what == "U" else what: MIXED[what]}
    refused(TypeError, ["one dtype", "float32", "float64", "convert one of them"], block, **changes)


FOREIGN = {
    "x": {"x": array_api_strict.asarray(X)},
    "labels": {"labels": array_api_strict.asarray(LABELS)},
    "weights": {"weights": array_api_strict.asarray(WEIGHTS)},
    "one parameter": {"slow": SLOW._replace(U=array_api_strict.asarray(SLOW.U))},
    "step sizes": {"eta": tree_map(array_api_strict.asarray, ETA)},
}


@pytest.mark.parametrize("what", FOREIGN)
def test_mixed_libraries_are_refused(what):
    """Arrays of two libraries never meet; the message names both."""
    refused(TypeError, ["one library", "numpy", "array_api_strict", "like()"], block, **FOREIGN[what])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"x": X[0]}, ["(B,T,I)", "(5, 4)"]),
        ({"labels": LABELS[:, 1:]}, ["labels", "(2, 5)", "(2, 4)"]),
        ({"weights": WEIGHTS[:1]}, ["weights", "(2, 5)", "(1, 5)"]),
        ({"x": X[..., 1:]}, ["width 3", "W1", "(4, 6)"]),
        ({"settings": SETTINGS._replace(eps=0.0), "slow": NARROW}, ["at least 2", "eps > 0"]),
        ({"settings": SETTINGS._replace(residual=True), "slow": NARROW}, ["residual", "I must be D", "4 and 1"]),
        ({"settings": SETTINGS._replace(norm="batch")}, ["layer, rms", "'batch'"]),
    ],
)
def test_shapes_that_do_not_fit_are_refused(changes, words):
    """What was expected and what was found."""
    refused(ValueError, words, block, **changes)


def test_dynamic_evaluation_refuses_a_norm_and_a_residual_that_cannot_be():
    """As the block does, before a sequence is read."""
    refused(ValueError, ["residual", "I must be D"], oracle, slow=NARROW, residual=True)
    refused(ValueError, ["layer, rms", "'batch'"], oracle, x=X[:0], labels=LABELS[:0], weights=WEIGHTS[:0], norm="batch")


def test_features_of_width_1_need_no_epsilon():
    """LayerNorm sees z (D), not x (I): the block's width decides."""
    (logits, _, _), _ = block(x=X[..., :1], slow=SLOW._replace(W1=SLOW.W1[:1]), settings=SETTINGS._replace(eps=0.0))
    assert np.all(np.isfinite(logits))


# --- shapes of parameters: nothing is broadcast


MISSHAPEN = {
    "W1 without an axis": ("W1", SLOW.W1[0], ["W1", "(I,F)", "(6,)"]),
    "b1 a row": ("b1", SLOW.b1[None], ["b1", "(F) = (6,)", "(1, 6)"]),
    "b1 of one entry": ("b1", SLOW.b1[:1], ["b1", "(F) = (6,)", "(1,)"]),
    "b1 a scalar": ("b1", SLOW.b1[0], ["b1", "(F) = (6,)", "()"]),
    "W2 transposed": ("W2", SLOW.W2.T, ["W2", "(F,D) = (6, 6)", "(4, 6)"]),
    "b2 per token": ("b2", np.ones((T, D)), ["b2", "(D) = (4,)", "(5, 4)"]),
    "gain of one entry": ("gain", SLOW.gain[:1], ["gain", "(D) = (4,)", "(1,)"]),
    "gain per token": ("gain", np.ones((T, D)), ["gain", "(D) = (4,)", "(5, 4)"]),
    "bias per sequence": ("bias", np.ones((B, 1, D)), ["bias", "(D) = (4,)", "(2, 1, 4)"]),
    "U of another width": ("U", SLOW.U[:2], ["U", "(D,V) = (4, 3)", "(2, 3)"]),
    "U per sequence": ("U", np.ones((B, D, V)), ["U", "(D,V)", "(2, 4, 3)"]),
    "c of one entry": ("c", SLOW.c[:1], ["c", "(V) = (3,)", "(1,)"]),
}


def predict(stream=None, x=X[:, 0], slow=SLOW, eta=ETA, settings=SETTINGS):
    """The first prediction of a stream on good input but for what is given."""
    return stream_predict(stream_start(B, SLOW) if stream is None else stream, x, slow, eta, settings)


def reveal(slow=SLOW, decay=DECAY, pending=None, settings=SETTINGS):
    """The first label of a stream."""
    return stream_reveal(predict()[1] if pending is None else pending, LABELS[:, 0], WEIGHTS[:, 0], slow, decay, settings)


@pytest.mark.parametrize("what", MISSHAPEN)
def test_a_parameter_of_another_shape_is_refused_everywhere(what):
    """Block, oracle, slow block and all three calls of a stream: the name, the axes in letters and numbers, and what was found."""
    name, array, words = MISSHAPEN[what]
    slow = SLOW._replace(**{name: array})
    for action in (block, oracle, predict, reveal):
        refused(ValueError, [*words, "must have shape"], action, slow=slow)
    refused(ValueError, words, stream_start, B, slow)
    refused(ValueError, words, slow_block_fwd, X, LABELS, slow, 1e-6)


@pytest.mark.parametrize("run", [block, oracle, predict])
@pytest.mark.parametrize("name", FastParameters._fields)
@pytest.mark.parametrize("shape", [(1,), (D,), (B, 1, 1)])
def test_a_step_size_is_one_number(run, name, shape):
    """A step size per channel would run forward and get the gradient of a scalar."""
    eta = ETA._replace(**{name: np.full(shape, 0.1)})
    refused(ValueError, [f"the step size of {name}", "shape ()", str(shape)], run, eta=eta)


@pytest.mark.parametrize("run", [block, oracle, predict])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_step_size_is_finite(run, value):
    """Named, with the value."""
    refused(ValueError, ["the step size of b2", "finite", str(value)], run, eta=ETA._replace(b2=np.asarray(value)))


@pytest.mark.parametrize("run", [block, oracle, predict])
@pytest.mark.parametrize("value", [0.1, 1, np.float32(0.1)])
def test_a_plain_number_or_another_dtype_for_a_step_size_is_refused_in_words(run, value):
    """A Python number has no library and gets no gradient; like() makes an array of it."""
    eta = ETA._replace(gain=value)
    words = ["one dtype", "float32", "float64"] if isinstance(value, np.float32) else ["the step size of gain", repr(value), "like("]
    refused(TypeError, words, run, eta=eta)
    refused(TypeError, ["FastParameters of six arrays", "0.1"], run, eta=0.1)


@pytest.mark.parametrize("run", [block, reveal])
def test_a_plain_number_or_another_dtype_for_the_decay_is_refused_in_words(run):
    """As a step size."""
    refused(TypeError, ["the decay must be an array", "0.01", "like("], run, decay=0.01)
    refused(TypeError, ["one dtype", "float32", "float64"], run, decay=np.asarray(0.01, dtype="float32"))
    refused(ValueError, ["the decay must have shape ()", "(1,)"], run, decay=DECAY[None])
    refused(ValueError, ["the decay must have shape ()", "(2,)"], run, decay=np.full(B, 0.1))


@pytest.mark.parametrize("run", [block, oracle, reveal])
@pytest.mark.parametrize("value", [1.5, -0.5, np.nan, np.inf])
def test_a_decay_outside_its_range_is_refused(run, value):
    """As the golden files do: [0, 1]."""
    refused(ValueError, ["the decay must lie in [0, 1]", f"got {value}"], run, decay=np.asarray(value))


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_decay_at_the_ends_of_its_range_is_taken(value):
    """Nothing fades, or all does."""
    for run in (block, oracle, reveal):
        run(decay=np.asarray(value))


def test_the_oracle_takes_plain_numbers_where_there_is_no_gradient():
    """Decay and normalizer may be numbers or arrays, with the same result."""
    logits, _ = oracle(decay=0.25, n=2.0)
    assert (oracle(decay=np.asarray(0.25), n=np.asarray(2.0))[0] == logits).all()
    assert (oracle(decay=np.asarray(0.25), n=np.full(B, 2.0))[0] == logits).all()
    refused(ValueError, ["normalizer n", "() or (2,)", "(2, 1)"], oracle, n=np.ones((B, 1)))
    refused(ValueError, ["the decay must have shape ()", "(2,)"], oracle, decay=np.full(B, 0.1))
    refused(ValueError, ["eps", "finite and >= 0"], oracle, eps=-1.0)


@pytest.mark.parametrize("n", [0.0, -1.0, np.nan, np.asarray([1.0, 0.0])])
def test_the_normalizer_of_the_oracle_is_above_0(n):
    """Losses are divided by it."""
    refused(ValueError, ["normalizer n", "finite and > 0", str(n)], oracle, n=n)


@pytest.mark.parametrize("name", FastParameters._fields)
def test_every_entry_of_a_state_has_its_shape(name):
    """Not only W1: an entry that is broadcast over sequences, or has an axis of 1, is refused."""
    good = state(B)
    array = getattr(good, name)
    for wrong in (array[:1], array[0], array[..., :1], array[..., None]):
        bad = good._replace(**{name: wrong})
        words = [f"for {name}", str(tuple(array.shape)), str(tuple(wrong.shape))]
        refused(ValueError, words, block, state=bad)
        refused(ValueError, words, predict, stream=Stream(bad, None))
    for run, given in ((block, {"state": good._replace(**{name: 0.0})}), (predict, {"stream": Stream(good._replace(**{name: 0.0}), None)})):
        refused(TypeError, [f"the state of {name}", "must be an array", "0.0"], run, **given)
    refused(TypeError, ["one dtype"], block, state=good._replace(**{name: single(array)}))
    refused(TypeError, ["one dtype"], predict, stream=Stream(good._replace(**{name: single(array)}), None))


def test_features_and_labels_of_the_slow_block_fit():
    """Its boundary: width, and one label per token."""
    refused(ValueError, ["width", "(4, 6)"], slow_block_fwd, X[..., :3], LABELS, SLOW, 1e-6)
    refused(ValueError, ["labels", "(2, 5)", "(5,)"], slow_block_fwd, X, LABELS[0], SLOW, 1e-6)
    refused(ValueError, ["(B,I)", "(2, 5, 4)"], predict, x=X)
    refused(ValueError, ["width 3", "(4, 6)"], predict, x=X[:, 0, :3])


@pytest.mark.parametrize("number", [1.0, 2, True])
def test_a_plain_number_among_arrays_is_refused_in_words(number):
    """Wherever arrays meet: not an AttributeError."""
    refused(TypeError, ["must be arrays", f"the number {number!r}", "like("], namespace, X, number)
    refused(TypeError, ["W2 must be an array", repr(number)], block, slow=SLOW._replace(W2=number))


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("normalizer", "mean", ["constant, sequence, batch", "'mean'"]),
        ("constant", 0.0, ["finite and > 0", "0.0"]),
        ("constant", np.inf, ["finite and > 0", "inf"]),
        ("eps", -1.0, ["finite and >= 0", "-1.0"]),
        ("chunk", 0, ["at least 1 token", "None", "got 0"]),
        ("chunk", -4, ["at least 1 token", "got -4"]),
    ],
)
def test_settings_that_cannot_be_are_refused(setting, value, words):
    """The block, the configuration of a model and the stream refuse the same settings with the same
    words.
    """
    settings = SETTINGS._replace(**{setting: value})
    refused(ValueError, words, block, settings=settings)
    refused(ValueError, words, stream_predict, stream_start(B, SLOW), X[:, 0], SLOW, ETA, settings)
    if setting != "eps":
        refused(ValueError, words, check_config, CONFIG._replace(**{setting: value}))


def test_linear_attention_refuses_chunks_of_nothing():
    """A chunk holds at least one token."""
    refused(ValueError, ["at least 1 token", "got 0"], linear_attention_chunked_fwd, X, X, X, np.asarray(1.0), None, 0)


@pytest.mark.parametrize("normalizer", ["batch", "sequence"])
def test_a_carried_state_needs_the_constant_normalizer(normalizer):
    """Carrying, streaming and carried evaluation say why and what to use."""
    words = ["constant", f'"{normalizer}"', 'use normalizer="constant"']
    settings = SETTINGS._replace(normalizer=normalizer)
    refused(ValueError, words, block, state=state(B), settings=settings)
    refused(ValueError, words, stream_predict, stream_start(B, SLOW), X[:, 0], SLOW, ETA, settings)
    _, pending = stream_predict(stream_start(B, SLOW), X[:, 0], SLOW, ETA, SETTINGS)
    refused(ValueError, words, stream_reveal, pending, LABELS[:, 0], WEIGHTS[:, 0], SLOW, DECAY, settings)
    config = CONFIG._replace(normalizer=normalizer)
    document = Document("d", np.arange(30, dtype="uint8"))
    refused(ValueError, words, fast_weights, initialize(config), config, document, 8, carried=True)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_state_of_another_batch_size_is_refused(batch):
    """One matrix per sequence: neither broadcast nor cut."""
    refused(ValueError, [f"({batch}, 4, 6)", "(2, 4, 6)", "per sequence"], block, state=state(batch))


@pytest.mark.parametrize("batch", [1, 3])
def test_a_stream_refuses_another_batch_size(batch):
    """Features, labels and weights must be of as many sequences as the stream was started with: a
    stream of one is not broadcast.
    """
    refused(ValueError, [str(B), str(batch), "sequence"], stream_predict, stream_start(batch, SLOW), X[:, 0], SLOW, ETA, SETTINGS)
    _, pending = stream_predict(stream_start(B, SLOW), X[:, 0], SLOW, ETA, SETTINGS)
    labels, weights = np.zeros(batch, dtype="int64"), np.ones(batch)
    refused(ValueError, [str(B), str(batch)], stream_reveal, pending, labels, WEIGHTS[:, 0], SLOW, DECAY, SETTINGS)
    refused(ValueError, [str(B), str(batch)], stream_reveal, pending, LABELS[:, 0], weights, SLOW, DECAY, SETTINGS)


def test_revealing_before_predicting_is_refused():
    """A label may be seen once its token is scored, and every scored token is revealed before the
    next; the stream is as before.
    """
    start = stream_start(B, SLOW)
    now = X[:, 0], SLOW, ETA, SETTINGS
    shown = LABELS[:, 0], WEIGHTS[:, 0], SLOW, DECAY, SETTINGS
    refused(ValueError, ["reveal before predict", "scored before"], stream_reveal, start, *shown)
    logits, pending = stream_predict(start, *now)
    refused(ValueError, ["predict after predict", "reveal", "weight 0"], stream_predict, pending, *now)
    again = stream_reveal(pending, *shown)
    refused(ValueError, ["reveal before predict"], stream_reveal, again, *shown)
    assert (stream_predict(start, *now)[0] == logits).all()


def test_a_stream_refuses_what_the_block_refuses():
    """Labels out of range and negative weights, token by token."""
    _, pending = stream_predict(stream_start(B, SLOW), X[:, 0], SLOW, ETA, SETTINGS)
    words = [f"[0, {V})", f"got {V} at index (1,)"]
    refused(ValueError, words, stream_reveal, pending, np.array([0, V]), WEIGHTS[:, 0], SLOW, DECAY, SETTINGS)
    words = ["finite and >= 0", "got -1.0"]
    refused(ValueError, words, stream_reveal, pending, LABELS[:, 0], -WEIGHTS[:, 0], SLOW, DECAY, SETTINGS)


def test_a_refused_call_changes_no_argument():
    """Arrays that an error was raised about are as they were."""
    labels, given = at(LABELS, (0, 0), 99), [X, WEIGHTS, *SLOW]
    before = [a.copy() for a in (*given, labels)]
    refused(ValueError, ["99"], block, labels=labels)
    assert all((a == b).all() for a, b in zip(before, (*given, labels), strict=True))


# --- the model


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("what", ["tokens", "labels"])
@pytest.mark.parametrize("value", [-1, 256])
def test_a_model_refuses_tokens_and_labels_out_of_range(fast, what, value):
    """Fast and plain alike: the array's name, the range, the value and its place."""
    config, good = CONFIG._replace(fast=fast), RNG.integers(0, 256, (2, 6))
    arrays = {"tokens": good, "labels": good} | {what: at(good, (1, 3), value)}
    refused(
        ValueError, [what, "[0, 256)", f"got {value} at index (1, 3)"], model_fwd, initialize(config), **arrays, weights=None, config=config
    )


@pytest.mark.parametrize("fast", [True, False])
def test_a_model_refuses_bad_weights_of_the_loss(fast):
    """Fast and plain alike, so that the two are always compared on the same loss."""
    config, tokens = CONFIG._replace(fast=fast), RNG.integers(0, 256, (2, 6))
    for weights, words in (
        (at(np.ones((2, 6), "float32"), (0, 2), -1), ["finite and >= 0", "got -1.0 at index (0, 2)"]),
        (at(np.ones((2, 6), "float32"), (0, 2), np.nan), ["finite and >= 0", "got nan at index (0, 2)"]),
        (np.ones((2, 1), "float32"), ["weights", "(2, 6)", "(2, 1)"]),
    ):
        refused(ValueError, words, loss_and_gradient, initialize(config), tokens, tokens, weights, config)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"embedding": np.ones((255, 8), "float32")}, ["embedding", "(V,D) = (256, 8)", "(255, 8)"]),
        ({"embedding": np.ones((257, 8), "float32")}, ["embedding", "(V,D) = (256, 8)", "(257, 8)"]),
        ({"gain": np.ones(1, "float32")}, ["gain", "(D) = (8,)", "(1,)"]),
        ({"bias": np.ones((6, 8), "float32")}, ["bias", "(D) = (8,)", "(6, 8)"]),
        ({"decay": np.zeros(1, "float32")}, ["decay", "() = ()", "(1,)"]),
        ({"decay": 0.0}, ["decay must be an array", "0.0"]),
        ({"trunk": ()}, ["1 layers", "got 0"]),
        ({"trunk": {"W_qkv": np.ones((8, 8), "float32")}}, ["trunk.0.W_qkv", "(D,3D) = (8, 24)", "(8, 8)"]),
        ({"trunk": {"b_in": np.ones(1, "float32")}}, ["trunk.0.b_in", "(F) = (32,)", "(1,)"]),
        ({"block": {"b1": np.ones((1, 32), "float32")}}, ["block.b1", "(F) = (32,)", "(1, 32)"]),
        ({"block": {"c": np.ones(1, "float32")}}, ["block.c", "(V) = (256,)", "(1,)"]),
        ({"block": {"c": None}}, ["block.c", "missing"]),
        ({"eta": {"W1": np.zeros(8, "float32")}}, ["eta.W1", "() = ()", "(8,)"]),
        ({"eta": {"W1": np.zeros((), "float64")}}, ["one dtype", "float32", "float64"]),
    ],
)
def test_a_model_refuses_parameters_of_another_shape_than_its_configuration_says(fast, changes, words):
    """Fast and plain alike: the path of the parameter, its axes in letters and numbers, and what was found."""
    config, tokens = CONFIG._replace(fast=fast), RNG.integers(0, 256, (2, 6))
    p = initialize(config)
    for name, value in changes.items():
        if name == "trunk" and isinstance(value, dict):
            value = (p.trunk[0]._replace(**value),)
        elif isinstance(value, dict):
            value = getattr(p, name)._replace(**value)
        p = p._replace(**{name: value})
    refused((ValueError, TypeError), words, model_fwd, p, tokens, tokens, None, config)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 12, "heads": 4}, ["even head width", "12 / 4 = 3", "change the width"]),
        ({"width": 10, "heads": 4}, ["multiple of the number of heads", "width 10", "4 heads"]),
        ({"dialect": "torch"}, ["tf, jax", "'torch'"]),
        ({"width": 0}, ["width", "at least 1", "got 0"]),
        ({"layers": 0}, ["layers", "at least 1", "got 0"]),
        ({"heads": -2}, ["heads", "at least 1", "got -2"]),
        ({"vocabulary": 0}, ["vocabulary", "at least 1", "got 0"]),
        ({"attention_window": 0}, ["attention window", "at least 1", "got 0"]),
    ],
)
def test_a_model_that_cannot_be_is_refused(changes, words):
    """Before anything is allocated; the first setting that cannot be is named."""
    refused(ValueError, words, initialize, CONFIG._replace(**changes))


def test_rotary_positions_refuse_an_odd_width():
    """Channels are rotated in pairs."""
    refused(ValueError, ["pairs", "even", "got 3"], rotary_fwd, np.ones((2, 3)))


# --- text


def test_a_path_that_is_not_there_is_refused(tmp_path):
    """The path, and what may be given instead."""
    refused(FileNotFoundError, ["absent.txt", "stdlib", "topics", "UTF-8"], load_corpus, str(tmp_path / "absent.txt"))


@pytest.mark.parametrize("size", [0, 1, 200])
def test_an_empty_or_tiny_corpus_is_refused(tmp_path, size):
    """An empty folder, an empty file, files too short: how much is there and how much is needed."""
    (tmp_path / "empty").mkdir()
    refused(ValueError, ["empty or tiny", "0 documents", "10240 bytes", "give more text"], load_corpus, str(tmp_path / "empty"))
    (tmp_path / "short.txt").write_bytes(b"x" * size)
    used = "with 200 bytes" if size == 200 else "with 0 bytes"
    refused(
        ValueError,
        ["empty or tiny", "1 documents", used, "10240 bytes", "give more text"],
        load_corpus,
        str(tmp_path / "short.txt"),
    )
    refused(ValueError, ["empty or tiny", "1 documents"], load_corpus, str(tmp_path))


def test_a_corpus_too_small_to_split_is_refused(tmp_path):
    """One file of a few kilobytes, or two documents: the size found, and what would be enough."""
    (tmp_path / "one.txt").write_bytes(b"x" * 3000)
    refused(ValueError, ["1 documents", "3000 bytes", "one document of at least 10240 bytes"], load_corpus, str(tmp_path / "one.txt"))
    (tmp_path / "two.txt").write_bytes(b"y" * 3000)
    refused(ValueError, ["2 documents", "would be empty", "three documents"], load_corpus, str(tmp_path))


def test_a_file_that_is_not_utf8_is_refused(tmp_path):
    """The file, the byte, its offset, and what to do; in a folder such a file is left out, and said
    where too little is left.
    """
    (tmp_path / "good.txt").write_text("ü" * 500, encoding="utf-8")
    (tmp_path / "latin.txt").write_bytes(b"a" * 400 + "ü".encode("latin-1") + b"a" * 400)
    refused(ValueError, ["latin.txt", "not UTF-8", "0xfc", "offset 400", "convert"], load_corpus, str(tmp_path / "latin.txt"))
    refused(ValueError, ["1 documents", "1000 bytes", "left out: 1 not UTF-8 (latin.txt; 801 bytes)"], load_corpus, str(tmp_path))


def test_a_pipe_is_refused_unread(tmp_path):
    """Text is read more than once, and a pipe cannot be; opening one would wait for a writer."""
    os.mkfifo(tmp_path / "pipe")
    refused(ValueError, ["pipe", "more than once", "write it to a file"], load_corpus, str(tmp_path / "pipe"))
    refused(ValueError, ["pipe", "more than once"], load_corpus, os.devnull)


def test_a_source_in_any_spelling_can_be_printed(tmp_path):
    """A path of Latin-1 bytes is named with its bytes spelled out, not in an error about encoding."""
    refused(FileNotFoundError, ["no corpus", r"gr\\xfcn"], load_corpus, os.fsdecode(os.fsencode(tmp_path) + b"/gr\xfcn"))


def test_training_on_nothing_is_refused():
    """Documents of one byte, or none, have nothing to predict."""
    for documents in ((), (Document("d", np.zeros(1, dtype="uint8")),)):
        refused(ValueError, [f"none of {len(documents)} documents", "2 bytes"], training_batch, documents, 2, 8, 0, 0)


def test_windows_and_batches_of_nothing_are_refused():
    """T and B are at least 1."""
    document = Document("d", np.arange(40, dtype="uint8"))
    refused(ValueError, ["at least 1", "T = 0"], lambda: list(windows(document, 0)))
    refused(ValueError, ["at least 1", "B = 0"], training_batch, (document,), 0, 8, 0, 0)
    refused(ValueError, ["at least 1", "T = -1"], training_batch, (document,), 2, -1, 0, 0)


# --- dynamic evaluation


def test_a_segment_of_nothing_is_refused():
    """At least one token, said before the document is looked at: there is none here."""
    p, words = initialize(CONFIG), ["at least 1 token", "got 0"]
    refused(ValueError, words, oracle, segment=0)
    refused(ValueError, words, dynamic, p, CONFIG, None, 8, descent=Descent(0.1), segment=0)
    refused(ValueError, words, dynamic_block, p, CONFIG, None, 8, rate=0.1, decay=0.0, segment=0)


def test_the_rms_rule_needs_gradients():
    """No batches, or gradients that are all zero, leave nothing to divide by."""
    refused(ValueError, ["at least one training batch", "none"], mean_square, [])
    refused(ValueError, ["all zeros", "collect"], rms_scale, (np.zeros(3),))


@pytest.mark.parametrize("length", [0, 1])
def test_a_document_without_a_second_byte_is_refused(length):
    """The first byte is given and not predicted, so there is nothing to score."""
    document, p = Document("d", np.zeros(length, dtype="uint8")), initialize(CONFIG)
    refused(ValueError, ["2 bytes"], static, p, CONFIG, document, 8)
    refused(ValueError, ["2 bytes"], dynamic, p, CONFIG, document, 8, descent=Descent(0.1), segment=4)
    refused(ValueError, ["2 bytes"], dynamic_block, p, CONFIG, document, 8, rate=0.1, decay=0.0, segment=4)


# --- training


SHORT = TrainSettings(steps=4, batch=2, window=6, warmup=1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 0}, ["steps", "at least 1", "got 0"]),
        ({"batch": 0}, ["batch", "at least 1", "got 0"]),
        ({"window": 0}, ["window", "at least 1", "got 0"]),
        ({"rate": 0.0}, ["rate", "> 0", "got 0.0"]),
        ({"rate": np.nan}, ["rate", "finite", "got nan"]),
        ({"clip": -1.0}, ["clip", "> 0", "got -1.0"]),
        ({"decay": 1.0}, ["decay", "[0, 1)", "got 1.0"]),
    ],
)
def test_training_that_cannot_be_is_refused(corpus, changes, words):
    """Before the first step."""
    refused(ValueError, words, train, corpus, CONFIG, SHORT._replace(**changes), quiet=True)


@pytest.mark.parametrize("name", ["embedding", "trunk", "block", "eta", "decay"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_stops_training_by_name(corpus, monkeypatch, name, value):
    """The step and the parameter; the last good progress is what was saved, and it is finite and
    can be resumed.
    """
    original, saved = training.loss_and_gradient, []

    def poisoned(*args):
        loss, grads = original(*args)
        if len(saved) == 2:
            grads = grads._replace(**{name: tree_map(lambda g: g * 0 + value, getattr(grads, name))})
        return loss, grads

    monkeypatch.setattr(training, "loss_and_gradient", poisoned)
    words = ["step 2", f"gradient of {name}", "not finite", "Lower the learning rate"]
    with np.errstate(all="ignore"):
        refused(NonFiniteError, words, train, corpus, CONFIG, SHORT, save=saved.append, save_every=1, quiet=True)
    assert [p.adam.step for p in saved] == [1, 2]
    assert all(np.isfinite(a).all() for a in leaves(saved[-1].params))
    monkeypatch.setattr(training, "loss_and_gradient", original)
    assert train(corpus, CONFIG, SHORT, start=saved[-1], quiet=True).adam.step == 4


@pytest.mark.parametrize("fast", [True, False])
def test_a_parameter_that_is_not_a_number_stops_training(corpus, fast):
    """NaN in one weight: an error in that very step, with its number and a parameter that it
    reached; nothing is saved.
    """
    config = CONFIG._replace(fast=fast)
    p, saved = initialize(config), []
    p = p._replace(block=p.block._replace(W1=at(p.block.W1, (0, 0), np.nan)))
    start = Progress(p, adam_init(p), ())
    refused(
        NonFiniteError,
        ["step 0", "gradient of", "not finite"],
        train,
        corpus,
        config,
        SHORT,
        start=start,
        save=saved.append,
        save_every=1,
        quiet=True,
    )
    assert not saved and start.adam.step == 0


def test_a_loss_that_is_not_finite_stops_training(corpus, monkeypatch):
    """Even if every gradient happens to be finite."""
    original = training.loss_and_gradient

    def poisoned(*args):
        loss, grads = original(*args)
        return loss * np.inf, grads

    monkeypatch.setattr(training, "loss_and_gradient", poisoned)
    refused(NonFiniteError, ["step 0", "loss is inf", "learning rate"], train, corpus, CONFIG, SHORT, quiet=True)


def test_messages_have_no_placeholders(corpus):
    """No f-string lost its f: messages of a few errors carry no braces."""
    for action in (
        lambda: block(labels=LABELS + V),
        lambda: block(settings=SETTINGS._replace(chunk=0)),
        lambda: block(settings=SETTINGS._replace(norm="batch")),
        lambda: initialize(CONFIG._replace(heads=3)),
        lambda: load_corpus("/does/not/exist"),
        lambda: train(corpus, CONFIG, SHORT._replace(batch=0), quiet=True),
    ):
        with pytest.raises((ValueError, OSError)) as caught:
            action()
        assert not re.search(r"[{}]", str(caught.value))
