"""Another memory in the place of the fast weights: its adjoint, what it reads, what it costs."""

import numpy as np
import pytest

from benchmarks.sides.ours import formed
from fwl_ref.demo import cost
from fwl_ref.gradcheck import check_adjoint
from fwl_ref.lm.corpus import load_corpus
from fwl_ref.lm.model import Config, Parameters, features, initialize, model_score
from fwl_ref.lm.train import TrainSettings
from fwl_ref.study import training
from fwl_ref.study.learner import learner_of
from fwl_ref.study.memory import HEADS, RULES, count_parameters, memory_bwd, memory_fwd, memory_products
from fwl_ref.study.settings import FULL
from fwl_ref.study.teach import gradient_of
from fwl_ref.study.tops import top_of
from fwl_ref.study.training import train_model
from fwl_ref.tree import leaves, size, tree_map
from tests.strategies import generator
from tests.study.small import tiny, write_text
from tests.tolerances import assert_close, assert_trees_close

pytestmark = pytest.mark.host("the study runs on the host")

CONFIG = Config(width=4, layers=1, heads=1, vocabulary=5, fast=False, chunk=3)
every_rule = pytest.mark.parametrize("rule", RULES)


def begun(rule, seed=0, config=CONFIG, heads=2):
    """A plain model with a memory, as training begins."""
    return learner_of({"top": {"name": "memory", "rule": rule, "heads": heads}}).begin(config, TrainSettings(seed=seed)).params


def drawn(rule, seed=0, config=CONFIG, heads=2):
    """float64 parameters of which every one matters."""
    p = begun(rule, seed, config, heads)
    rng = np.random.default_rng(seed)
    return tree_map(lambda a: a.astype("float64") + 0.3 * rng.standard_normal(a.shape), p)


def data(seed, length=7, batch=2):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((batch, length, CONFIG.width)), rng.integers(0, CONFIG.vocabulary, (batch, length))


@every_rule
def test_backward_is_the_adjoint_of_forward(rule):
    """For the features and every parameter, from an empty memory and from a full one."""
    x, labels = data(1)
    state = generator(2)(4, 4, 4)
    for before in (None, state):

        def fwd(x, p, before=before):
            (out, _), res = memory_fwd(x, labels, p, before, rule=rule, chunk=3)
            return out, res

        check_adjoint(fwd, memory_bwd, (x, drawn(rule).own))


def literal(x, labels, p, rule, heads):
    """(T,D): one sequence, token by token and head by head, with the memory as a matrix."""
    length, d = x.shape
    unit = lambda a: a / np.sqrt(a @ a + 1e-6)  # noqa: E731
    out, wide = x * 1, heads * d
    for h in range(heads):
        S, own = np.zeros((d, d)), slice(h * d, (h + 1) * d)
        for t in range(length):
            w = x[t] @ p.W_w + p.labels[labels[t]] + p.c
            k, v, rates = unit(w[:wide][own]), w[wide : 2 * wide][own], 1 / (1 + np.exp(-w[2 * wide :]))
            o = unit(x[t] @ p.W_q[:, own]) @ S
            out[t] += (o / np.sqrt((o * o).mean() + 1e-5) * p.gain) @ p.W_o[own]
            if rule == "gated_delta":
                S = rates[h] * S
            S = S + (np.outer(k, v) if rule == "linear" else rates[-heads + h] * np.outer(k, v - k @ S))
    return out


@every_rule
def test_it_is_what_its_formula_says(rule):
    """The whole layer against a loop over tokens, which knows neither chunks nor folded heads."""
    x, labels = data(3)
    p = drawn(rule, 3).own
    (found, _), _ = memory_fwd(x, labels, p, rule=rule, chunk=3)
    for b in range(2):
        assert_close(found[b], literal(x[b], labels[b], p, rule, 2))


@every_rule
def test_the_read_is_strict_and_a_state_goes_on(rule):
    """A token's own label does not change what it reads, the next token's reading does; two pieces are the whole."""
    x, labels = data(4)
    p = drawn(rule, 4).own
    run = lambda x, y, s=None: memory_fwd(x, y, p, s, rule=rule, chunk=3)[0]  # noqa: E731
    whole, last = run(x, labels)
    other = labels.copy()
    other[:, 4] = (labels[:, 4] + 1) % CONFIG.vocabulary
    changed, _ = run(x, other)
    assert np.array_equal(changed[:, :5], whole[:, :5]) and not np.allclose(changed[:, 5], whole[:, 5])
    first, state = run(x[:, :3], labels[:, :3])
    second, end = run(x[:, 3:], labels[:, 3:], state)
    assert_close(np.concatenate([first, second], axis=1), whole)
    assert_close(end, last)


@every_rule
def test_the_gradient_of_the_whole_model(rule):
    """Mean loss over weighted tokens by the memory and what is on either side of it; lm.model's tests have the layers below."""
    config, top = CONFIG, top_of(CONFIG, {"name": "memory", "rule": rule, "heads": 2})
    p, rng = drawn(rule, 5), np.random.default_rng(5)
    text = rng.integers(0, 5, (3, 8))
    weights = np.ones((3, 7))
    weights[1, 5:] = 0
    gradient = gradient_of(top)

    def fwd(gain, block, memory):
        own = p._replace(gain=gain, block=block, own=memory)
        return gradient(own, text[:, :-1], text[:, 1:], weights, config, weights.sum())

    def bwd(d, g):
        return tree_map(lambda a: d * a, (g.gain, g.block, g.own))

    check_adjoint(fwd, bwd, (p.gain, p.block, p.own), step=1e-5)


def test_without_a_read_it_is_the_plain_model():
    """W_o = 0: the losses of lm.model, and a start that differs from the plain one's only by the memory."""
    p = drawn("delta", 6)
    p = p._replace(own=p.own._replace(W_o=0 * p.own.W_o))
    text = np.random.default_rng(6).integers(0, 5, (2, 9))
    top = top_of(CONFIG, {"name": "memory", "rule": "delta", "heads": 2})
    x, _ = features(p, text[:, :-1], CONFIG)
    (nll, _), _ = top.fwd(p, x, text[:, 1:], None, None)
    plain = Parameters(*p[:-1])
    assert_close(nll, model_score(plain, text[:, :-1], text[:, 1:], None, CONFIG).nll)
    assert_trees_close(Parameters(*begun("delta", 3)[:-1]), initialize(CONFIG, 3))


@every_rule
@pytest.mark.parametrize("length", [64, 100])
def test_its_cost_is_counted(rule, length):
    """The formula is the number of multiply-adds of one forward pass, with a last chunk that is shorter too."""
    config = CONFIG._replace(chunk=32)
    x, labels = data(7, length, 1)
    p = drawn(rule, 7).own
    assert formed(lambda: memory_fwd(x, labels, p, rule=rule, chunk=32)) == memory_products(config, length, rule, 2)


@every_rule
def test_it_costs_about_what_fast_weights_cost(rule):
    """In the study, reading: within a tenth of the fast model's multiply-adds, and as many numbers to remember or fewer."""
    config, window = FULL.config, FULL.windows[0]
    own = cost.static(config._replace(fast=False), window) + memory_products(config, window, rule)
    assert 0.9 < own / cost.fast(config, window, carried=True) < 1.1
    d, f = config.width, 4 * config.width
    assert HEADS * d * d <= (d + 1) * f + (f + 1) * d + 2 * d


def test_training_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    """Stopped after two of four steps: parameters, moments and squares come back whole, the memory's too."""
    sizes = tiny([write_text(tmp_path / "text")])
    top = {"name": "memory", "rule": "gated_delta", "heads": 2}
    asked = sizes.config._replace(fast=False), sizes.training, load_corpus(sizes.corpora[0])
    learner = learner_of({"top": top})
    whole = train_model(tmp_path / "whole.npz", *asked, learner=learner)
    advance, steps = training.advance, []

    def stops(*arguments):
        steps.append(arguments[1].step)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return advance(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "advance", stops)
        train_model(tmp_path / "part.npz", *asked, learner=learner)
    found = train_model(tmp_path / "part.npz", *asked, learner=learner)
    assert steps == [0, 1, 2]
    assert all(np.array_equal(a, b) for a, b in zip(leaves(found.progress[:2]), leaves(whole.progress[:2]), strict=True))
    assert np.array_equal(found.squares, whole.squares) and found.progress.history == whole.progress.history
    first = learner.begin(*asked[:2]).params
    assert not any(np.array_equal(a, b) for a, b in zip(leaves(first.own), leaves(whole.progress.params.own), strict=True))


def test_a_gate_begins_where_the_decay_of_fast_weights_does():
    """alpha = 0.995, beta = 1/2 for features and labels of 0."""
    p = begun("gated_delta").own
    rates = 1 / (1 + np.exp(-p.c[-4:]))
    assert np.allclose(rates, [0.995, 0.995, 0.5, 0.5], atol=1e-4) and not p.c[:-4].any()
    assert [a.dtype for a in leaves(p)] == ["float32"] * 6
    for rule in RULES:
        assert size(begun(rule).own) == count_parameters(CONFIG, rule, 2)
