"""Training: the optimizer's formulas, repeatability to the bit, resuming."""

import io
import math
import sys

import numpy as np
import pytest

from fwl_ref.lm import train as training
from fwl_ref.lm.adamw import NonFiniteError, adam_init, adam_step, clip, cosine, global_norm, squares
from fwl_ref.lm.bar import Bar
from fwl_ref.lm.data import training_batch
from fwl_ref.lm.model import Config, initialize
from fwl_ref.lm.train import Progress, TrainSettings, train, train_step
from fwl_ref.slow_block import FastParameters
from fwl_ref.tree import leaves, named_leaves, tree_map

CONFIG = Config(width=8, layers=1, heads=2, chunk=5)
SETTINGS = TrainSettings(steps=6, batch=2, window=12, warmup=2, seed=3)


def assert_bitwise(a, b):
    """Two trees are the same to the last bit."""
    for (name, x), (_, y) in zip(named_leaves(a), named_leaves(b), strict=True):
        assert x.dtype == y.dtype and x.tobytes() == y.tobytes(), name


# --- the optimizer


def test_adamw_follows_its_formulas_for_three_steps():
    """m, v, bias corrections, decoupled weight decay and per-leaf rates, against the formulas
    written out for each leaf.
    """
    rng = np.random.default_rng(0)
    tree = FastParameters(*(rng.standard_normal(s) for s in [(3, 2), (2,), (2, 3), (), (1,), (4,)]))
    rates = FastParameters(0.1, 0.2, 0.3, 0.0, 0.5, 0.6)
    decays = FastParameters(0.01, 0.0, 0.5, 0.1, 0.0, 0.2)
    grads = [tree_map(lambda p: rng.standard_normal(p.shape), tree) for _ in range(3)]
    params, state = tree, adam_init(tree)
    for g in grads:
        params, state = adam_step(params, g, state, rates, decays, betas=(0.9, 0.99), eps=1e-8)
    assert state.step == 3
    for i, p in enumerate(tree):
        m = v = np.zeros_like(p)
        for k, g in enumerate((g[i] for g in grads), start=1):
            m = 0.9 * m + 0.1 * g
            v = 0.99 * v + 0.01 * g**2
            m_hat, v_hat = m / (1 - 0.9**k), v / (1 - 0.99**k)
            p = p - rates[i] * m_hat / (np.sqrt(v_hat) + 1e-8) - rates[i] * decays[i] * p
        np.testing.assert_allclose(params[i], p, rtol=1e-13)
        np.testing.assert_allclose(state.mean[i], m, rtol=1e-13)
        np.testing.assert_allclose(state.square[i], v, rtol=1e-13)


def test_adamw_has_the_moments_it_says_unless_told_otherwise():
    """betas (0.9, 0.99) and eps 1e-8 are the defaults: the same bits."""
    p, g = (np.array([1.0, -2.0]),), [(np.array([0.3, 4.0]),), (np.array([-1.0, 0.1]),)]
    ends = []
    for options in ({}, {"betas": (0.9, 0.99), "eps": 1e-8}):
        params, state = p, adam_init(p)
        for each in g:
            params, state = adam_step(params, each, state, (0.1,), (0.01,), **options)
        ends.append((params, state.mean, state.square))
    assert_bitwise(*ends)


def test_the_first_adamw_step_moves_by_the_rate():
    """Whatever the gradient's size, the first step is the learning rate against its sign."""
    for scale in (1e-3, 1e3):
        (moved,), _ = adam_step((np.zeros(2),), (np.array([scale, -scale]),), adam_init((np.zeros(2),)), (0.1,), (0.0,))
        np.testing.assert_allclose(moved, [-0.1, 0.1], rtol=1e-4)


def test_cosine_schedule_has_the_right_ends():
    """Warm-up rises by equal steps to 1; then 1 at its start, the middle half way, the floor at the
    end, never rising.
    """
    assert [cosine(s, 100, 4) for s in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert cosine(4, 100, 4) == 1 and cosine(52, 100, 4) == pytest.approx(0.525) and cosine(100, 100, 4) == pytest.approx(0.05)
    after = [cosine(s, 100, 4) for s in range(4, 101)]
    assert all(a >= b for a, b in zip(after[:-1], after[1:], strict=True))
    assert cosine(0, 10, 0) == 1 and cosine(3, 3, 3) == 1 and cosine(4, 4, 3) == pytest.approx(0.05)


def test_clip_keeps_the_direction_and_bounds_the_norm():
    """Above the limit all leaves are scaled by one factor, below it nothing moves."""
    grads = (np.array([3.0, 0.0]), (np.array(4.0), None))
    assert global_norm(squares(grads)) == 5
    clipped = clip(grads, 1.0, 5.0)
    assert global_norm(squares(clipped)) == pytest.approx(1) and clipped[0][0] / clipped[1][0] == pytest.approx(0.75)
    assert clip(grads, 5.0, 5.0) is grads and clip(grads, 6.0, 5.0) is grads


def test_step_sizes_are_clipped_apart():
    """A spike in one of them takes nothing from the weights, and the other way round."""
    p = initialize(CONFIG, 0)
    ones = tree_map(np.ones_like, p)
    root = global_norm(squares(ones._replace(eta=None, decay=None)))
    small = tree_map(lambda g: g * 0.1 / root, ones)  # both norms are below 1
    assert_bitwise(training.clipped(small, 1.0), small)
    spiky = small._replace(eta=tree_map(lambda g: 1e6 * g, ones.eta))
    found = training.clipped(spiky, 1.0)
    assert_bitwise(found._replace(eta=ones.eta, decay=ones.decay), small._replace(eta=ones.eta, decay=ones.decay))
    assert global_norm(squares((found.eta, found.decay))) == pytest.approx(1)
    assert found.eta.W1 / found.decay == pytest.approx(spiky.eta.W1 / spiky.decay)
    steep = ones._replace(eta=tree_map(lambda g: g * 0.1, ones.eta), decay=ones.decay * 0.1)
    found = training.clipped(steep, 1.0)
    assert global_norm(squares(found._replace(eta=None, decay=None))) == pytest.approx(1)
    assert_bitwise((found.eta, found.decay), (steep.eta, steep.decay))


# --- training


@pytest.mark.parametrize("fast", [True, False])
def test_training_lowers_the_loss_on_repetitive_text(corpus, fast):
    """From 8 bits per byte of a uniform guess to clearly less, in a few dozen steps."""
    settings = SETTINGS._replace(steps=40, rate=1e-2, batch=4, window=16)
    history = train(corpus, CONFIG._replace(fast=fast), settings, quiet=True).history
    assert history[0].bits_per_byte == pytest.approx(8, abs=0.1)
    assert np.mean([r.bits_per_byte for r in history[-5:]]) < 5
    assert [r.step for r in history] == list(range(40))


@pytest.mark.parametrize("fast", [True, False])
def test_the_same_seed_gives_the_same_parameters_to_the_bit(corpus, fast):
    """Two runs agree in every bit of parameters, moments and history; another seed does not."""
    config = CONFIG._replace(fast=fast)
    first, second = (train(corpus, config, SETTINGS, quiet=True) for _ in range(2))
    assert_bitwise(first[:2][0], second[:2][0])
    assert_bitwise(first.adam[:2], second.adam[:2])
    assert first.history == second.history
    other = train(corpus, config, SETTINGS._replace(seed=4), quiet=True)
    assert any((a != b).any() for a, b in zip(leaves(first.params), leaves(other.params), strict=True))


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("k", [1, 4])
def test_resuming_equals_training_straight_through_to_the_bit(corpus, fast, k):
    """Going on from the progress saved at step k changes nothing: parameters, moments, history."""
    config, saved = CONFIG._replace(fast=fast), []
    straight = train(corpus, config, SETTINGS, save=saved.append, save_every=1, quiet=True)
    assert [p.adam.step for p in saved] == [1, 2, 3, 4, 5, 6]
    resumed = train(corpus, config, SETTINGS, start=saved[k - 1], quiet=True)
    assert_bitwise(straight.params, resumed.params)
    assert_bitwise(straight.adam[:2], resumed.adam[:2])
    assert straight.history == resumed.history


def test_training_that_is_done_does_nothing(corpus):
    """Resuming at the last step returns the progress as it is."""
    done = train(corpus, CONFIG, SETTINGS._replace(steps=2), quiet=True)
    assert train(corpus, CONFIG, SETTINGS._replace(steps=2), start=done, quiet=True) is done


def test_saving_happens_every_so_often_and_at_the_end(corpus):
    """``save_every`` 4 of 6 steps saves after 4 and after 6."""
    saved = []
    train(corpus, CONFIG, SETTINGS, save=lambda p: saved.append(p.adam.step), save_every=4, quiet=True)
    assert saved == [4, 6]


def interrupted(monkeypatch, step, error=KeyboardInterrupt, where="loss_and_gradient"):
    """Step number ``step`` (or the first saving from there on) does not come to its end."""
    original, calls = getattr(training, where), []

    def broken(*args):
        calls.append(1)
        if len(calls) == step + 1:
            raise error
        return original(*args)

    monkeypatch.setattr(training, where, broken)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError])
@pytest.mark.parametrize("host", [True, False])
@pytest.mark.parametrize("k", [1, 4])
def test_training_that_breaks_off_saves_every_finished_step(corpus, monkeypatch, error, host, k):
    """Whatever ends it, and also where records come home many at a time: going on from there is
    training straight through.
    """
    straight, saved = train(corpus, CONFIG, SETTINGS, quiet=True), []
    with monkeypatch.context() as patched:
        patched.setattr(training, "is_host", lambda _: host)
        interrupted(patched, k, error)
        with pytest.raises(error):
            train(corpus, CONFIG, SETTINGS, save=saved.append, quiet=True)
    assert [p.adam.step for p in saved] == [k] and len(saved[0].history) == k
    resumed = train(corpus, CONFIG, SETTINGS, start=saved[0], quiet=True)
    assert_bitwise(straight.params, resumed.params)
    assert straight.history == resumed.history


def test_what_is_saved_already_is_not_saved_again(corpus, monkeypatch):
    """Interrupted just after a save, or in the first step: there is nothing new to keep."""
    for step, expected in ((0, []), (2, [2]), (3, [2, 3])):
        saved = []
        with monkeypatch.context() as patched:
            interrupted(patched, step)
            with pytest.raises(KeyboardInterrupt):
                train(corpus, CONFIG, SETTINGS, save=lambda p, saved=saved: saved.append(p.adam.step), save_every=2, quiet=True)
        assert saved == expected


def test_an_interrupted_save_is_made_again(corpus):
    """The interruption comes while the file is written: it is written before training ends."""
    saved = []

    def save(progress):
        saved.append(progress.adam.step)
        if len(saved) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(corpus, CONFIG, SETTINGS, save=save, save_every=4, quiet=True)
    assert saved == [4, 4]


def test_nothing_is_saved_of_a_loss_or_a_parameter_that_is_not_finite(corpus, monkeypatch):
    """A gradient that is not finite; an update that is not, after a loss that was. Both name the
    step, and nothing is returned.
    """
    saved = []
    original, update = training.loss_and_gradient, training.adam_step

    def poisoned(*args):
        loss, grads = original(*args)
        return loss, grads._replace(gain=grads.gain * np.nan)

    def spoiled(params, *args):
        params, state = update(params, *args)
        return params._replace(bias=params.bias + (np.inf if state.step == 6 else 0)), state

    for name, function, words in (
        ("loss_and_gradient", poisoned, "step 0: the gradient of gain"),
        ("adam_step", spoiled, "step 5: bias is not finite after the update.*lower the learning rate"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(training, name, function)
            with pytest.raises(NonFiniteError, match=words):
                train(corpus, CONFIG, SETTINGS, save=saved.append, quiet=True)
            with pytest.raises(NonFiniteError, match=words):
                train(corpus, CONFIG, SETTINGS, quiet=True)
    assert not saved


@pytest.mark.host("standard error")
@pytest.mark.parametrize(
    "error", [BrokenPipeError(32, "Broken pipe"), OSError(5, "Input/output error"), ValueError("I/O operation on closed file")]
)
def test_a_progress_bar_that_nobody_sees_ends_alone(corpus, monkeypatch, error):
    """The reader has gone, the terminal has gone, the stream is closed: training goes on, and so
    does sampling. While somebody reads, the bar is there.
    """

    class Gone(io.StringIO):
        def write(self, text):
            if self.closed_for_good:
                raise error
            return super().write(text)

        def flush(self):
            if self.closed_for_good:
                raise error

    for closed in (False, True):
        stream = Gone()
        stream.closed_for_good = closed
        monkeypatch.setattr(sys, "stderr", stream)
        assert train(corpus, CONFIG, SETTINGS).adam.step == 6
        assert len(list(Bar(range(3), mininterval=0))) == 3
        with Bar(total=2, mininterval=0) as bar:
            bar.update()
            Bar.write("a line", file=io.StringIO())
            bar.update()
        assert ("bits/byte" in stream.getvalue()) is not closed
    monkeypatch.setattr(sys, "stderr", None)
    assert train(corpus, CONFIG, SETTINGS).adam.step == 6 and len(list(Bar(range(3)))) == 3


@pytest.mark.parametrize(
    "changes",
    [{"warmup": -1}, {"weight_decay": math.nan}, {"weight_decay": -0.1}, {"step_size": math.inf}, {"clip": 0.0}, {"decay": math.nan}],
)
def test_settings_that_cannot_be_are_refused_by_name(corpus, changes):
    """Before the first step: which one, and what was found."""
    ((name, value),) = changes.items()
    with pytest.raises(ValueError, match=f"{name} must .*got {value}"):
        train(corpus, CONFIG, SETTINGS._replace(**changes), quiet=True)


def test_plain_and_fast_models_see_the_same_batches(corpus, monkeypatch):
    """Same tokens, labels and weights at every step, and the same parameters to start from but for
    the step sizes.
    """
    seen = {True: [], False: []}
    original = training.loss_and_gradient

    def watched(params, tokens, labels, weights, config, total):
        seen[config.fast].append((tokens, labels, weights))
        return original(params, tokens, labels, weights, config, total)

    monkeypatch.setattr(training, "loss_and_gradient", watched)
    for fast in (True, False):
        train(corpus, CONFIG._replace(fast=fast), SETTINGS, quiet=True)
    assert len(seen[True]) == len(seen[False]) == 6
    for step, (ours, other) in enumerate(zip(seen[True], seen[False], strict=True)):
        expected = training_batch(corpus.train, SETTINGS.batch, SETTINGS.window, SETTINGS.seed, step)
        for a, b, c in zip(ours, other, expected, strict=True):
            assert (a == b).all() and (a == c).all()
    fast, plain = (initialize(CONFIG._replace(fast=f), seed=3) for f in (True, False))
    assert_bitwise(fast[:5], plain[:5])


def test_a_plain_model_keeps_step_sizes_of_exactly_zero(corpus):
    """Step sizes and decay of the plain model start at 0 and never move; those of the fast model
    do.
    """
    plain = train(corpus, CONFIG._replace(fast=False), SETTINGS, quiet=True)
    assert not any(e.any() for e in plain.params.eta) and plain.params.decay == 0
    assert all(r.eta == (0,) * 6 and r.decay == 0 for r in plain.history)
    fast = train(corpus, CONFIG, SETTINGS, quiet=True)
    assert all(abs(float(e) - SETTINGS.step_size) > 1e-6 for e in fast.params.eta)


@pytest.mark.parametrize("nonnegative", [True, False])
def test_step_sizes_stay_where_an_update_is_a_descent(corpus, monkeypatch, nonnegative):
    """However hard the gradient pushes, step sizes stay >= 0 (unless one asks otherwise) and the
    decay in [0, 1/2].
    """
    original = training.loss_and_gradient

    def push(*args):
        loss, grads = original(*args)
        return loss, grads._replace(eta=tree_map(lambda e: 0 * e + 1, grads.eta), decay=0 * grads.decay - 1)

    monkeypatch.setattr(training, "loss_and_gradient", push)
    settings = SETTINGS._replace(rate=2.0, steps=8, decay=0.05, nonnegative=nonnegative)
    last = train(corpus, CONFIG, settings, quiet=True).history[-1]
    assert last.decay == 0.5 and (max(last.eta) == min(last.eta) == 0 if nonnegative else max(last.eta) < 0)


def test_training_does_not_touch_what_it_starts_from(corpus):
    """A step makes new arrays: the progress that one holds stays as it was."""
    p = initialize(CONFIG, 0)
    start = Progress(p, adam_init(p), ())
    before = [x.copy() for x in leaves(start[:2]) if hasattr(x, "copy")]
    train_step(start, corpus, CONFIG, SETTINGS)
    after = [x for x in leaves(start[:2]) if hasattr(x, "copy")]
    assert all((a == b).all() for a, b in zip(before, after, strict=True))


def test_training_works_in_float64(corpus):
    """The precision is that of the parameters: a float64 start stays float64, and agrees with
    float32 to its rounding.
    """
    p = initialize(CONFIG, SETTINGS.seed, dtype="float64")
    wide = train(corpus, CONFIG, SETTINGS, start=Progress(p, adam_init(p), ()), quiet=True)
    narrow = train(corpus, CONFIG, SETTINGS, quiet=True)
    assert all(x.dtype == "float64" for x in leaves(wide.params)) and all(x.dtype == "float32" for x in leaves(narrow.params))
    for a, b in zip(wide.history, narrow.history, strict=True):
        assert a.bits_per_byte == pytest.approx(b.bits_per_byte, abs=1e-4)
