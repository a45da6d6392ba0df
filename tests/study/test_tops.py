"""The fast weight block read otherwise, and taught otherwise: against ``lm.model`` where they agree, by their adjoints elsewhere."""

import numpy as np
import pytest

from fwl_ref.fwl import FastSettings, fast_block_fwd, write_fwd
from fwl_ref.gradcheck import check_adjoint
from fwl_ref.lm.corpus import Document
from fwl_ref.lm.evaluate import fast_weights
from fwl_ref.lm.model import Config, Parameters, initialize, loss_and_gradient, model_bwd, model_fwd, model_score
from fwl_ref.lm.train import TrainSettings
from fwl_ref.slow_block import FastParameters
from fwl_ref.study.leak import leaking_bwd, leaking_fwd
from fwl_ref.study.learner import learner_of
from fwl_ref.study.model import Model
from fwl_ref.study.scales import Scales, scaled_fwd
from fwl_ref.study.teach import gradient_of, held, read_with, shared, together
from fwl_ref.study.tops import top_of
from fwl_ref.tree import leaves, tree_map
from tests.strategies import fast_state, make_block_case, off_the_kink
from tests.tolerances import assert_close, assert_trees_close

pytestmark = pytest.mark.host("the study runs on the host")

CONFIG = Config(width=4, layers=1, heads=1, vocabulary=5, chunk=3)
BLOCK = FastSettings(eps=0.1, chunk=2)


def model(seed=0, decay=0.1):
    p, rng = initialize(CONFIG, seed, "float64", 0.1, decay), np.random.default_rng(seed)
    return p._replace(block=tree_map(lambda a: a + 0.3 * rng.standard_normal(a.shape), p.block))


def learned_too(p, asked):
    """The parameters ``p`` of lm.model, and at random what a top learns beside them."""
    rng, own = np.random.default_rng(9), learner_of({"top": asked}).begin(CONFIG, TrainSettings()).params.own
    return Model(*p, tree_map(lambda a: 0.1 * rng.standard_normal(a.shape), own))


def text(seed, batch=3, length=8):
    drawn = np.random.default_rng(seed).integers(0, CONFIG.vocabulary, (batch, length + 1))
    weights = np.ones((batch, length))
    weights[1, 5:] = 0
    return drawn[:, :-1], drawn[:, 1:], weights


def test_training_with_the_stale_top_is_that_of_the_model():
    """Loss and gradients of lm.model, weights and all; reading too, reset and carried."""
    p, given, top = model(), text(1), top_of(CONFIG, {"name": "stale"})
    loss, grads = gradient_of(top)(p, *given, CONFIG, given[2].sum())
    expected, wanted = loss_and_gradient(p, *given, CONFIG)
    assert_close(loss, expected)
    assert_trees_close(grads, wanted)
    document = Document("d", np.random.default_rng(2).integers(0, 5, 20).astype("uint8"))
    for carried in (False, True):
        found = read_with(p, CONFIG, document, 8, top=top, carried=carried)
        assert_close(found, fast_weights(p, CONFIG, document, 8, carried=carried))


def test_a_state_carried_in_training_comes_from_the_first_half():
    """The second half's loss and gradient, from the state that the first half leaves and a trunk that begins anew."""
    p, (tokens, labels, weights) = model(3), text(3)
    top = top_of(CONFIG, {"name": "stale"})
    loss, grads = gradient_of(top, carried=True)(p, tokens, labels, weights, CONFIG, 1.0)
    state = model_score(p, tokens[:, :4], labels[:, :4], weights[:, :4], CONFIG).state
    output, res = model_fwd(p, tokens[:, 4:], labels[:, 4:], weights[:, 4:], CONFIG, state)
    share = weights[:, 4:] / weights[:, 4:].sum()
    assert_close(loss, (share * output.nll).sum())
    assert_trees_close(grads, model_bwd(share, res))


@pytest.mark.parametrize(
    "asked",
    [
        {"name": "leak"},
        {"name": "momentum", "mu": 0.9, "decay": 0.05},
        {"name": "window", "tokens": 2},
        {"name": "decays"},
        {"name": "scales"},
        {"name": "sequential", "segment": 3, "within": True},
        {"name": "sequential", "segment": 3, "within": False},
    ],
    ids=lambda asked: f"{asked['name']}{asked.get('within', '')}",
)
def test_every_top_has_its_gradient(asked):
    """By features' gain, block, step sizes and decay, which is no parameter beside a momentum; lm.model's tests have the layers below."""
    config, given = CONFIG._replace(dialect="jax"), text(4, batch=2, length=6)
    gradient = gradient_of(top_of(config, asked))
    by_optimizer = asked["name"] in ("momentum", "window")
    p = model(4, decay=0.0 if by_optimizer else 0.1)
    if asked["name"] in ("decays", "scales"):
        p = learned_too(p, asked)

    def fwd(*parts):
        loss, g = gradient(p._replace(**dict(zip(varied, parts, strict=True))), *given, config, given[2].sum())
        return loss, g

    varied = ["gain", "block", "eta", *([] if by_optimizer else ["decay"]), *(["own"] if isinstance(p, Model) else [])]
    bwd = lambda d, g: tuple(tree_map(lambda a: d * a, getattr(g, n)) for n in varied)  # noqa: E731
    check_adjoint(fwd, bwd, tuple(getattr(p, n) for n in varied), step=1e-5)


@pytest.mark.parametrize("name", ["decays", "scales"])
def test_what_a_top_learns_begins_as_nothing(name):
    """The loss of lm.model at the start, and its gradients; they part as soon as what is learned moves."""
    given, asked = text(6), {"name": name}
    learner = learner_of({"top": asked})
    p = tree_map(lambda a: a.astype("float64"), learner.begin(CONFIG, TrainSettings(step_size=0.1)).params)
    loss, g = learner.gradient(p, *given, CONFIG, given[2].sum())
    expected, wanted = loss_and_gradient(Parameters(*p[:-1]), *given, CONFIG)
    assert_close(loss, expected)
    assert_trees_close(Parameters(*g[:-1]), wanted)
    assert all(np.any(a != 0) for a in leaves(g.own))
    other, _ = learner.gradient(learned_too(p[:-1], asked), *given, CONFIG, given[2].sum())
    assert other != loss


def test_scales_are_a_preconditioner():
    """Token by token: the step that a weight takes is its gradient times the scales of its row and its column."""
    case, rng = case_of(2), np.random.default_rng(2)
    given = case.x, case.labels, case.weights, case.slow, case.eta, case.decay, BLOCK
    own = Scales(*(0.05 * rng.standard_normal(a.shape[-1]) for a in write_fwd(*given[:4], BLOCK)[0][0][1:]))
    k1, v1, k2, v2, gain, bias = (np.exp(10 * s) for s in own)
    steps = FastParameters(np.outer(k1, v1), v1, np.outer(k2, v2), v2, gain, bias)
    (logits, _, _), _ = scaled_fwd(*given, None, own)
    for t in range(6):
        now = slice(t, t + 1)
        (_, _, state), _ = fast_block_fwd(*(a[:, :t] for a in given[:3]), *given[3:])
        moved = FastParameters(*(a * s for a, s in zip(state, steps, strict=True)))
        (alone, _, _), _ = fast_block_fwd(*(a[:, now] for a in given[:3]), *given[3:], moved)
        assert_close(logits[:, now], alone)


def case_of(seed, length=6):
    case = make_block_case(2, length, 3, 4, 4, BLOCK, seed=seed, mask="real")
    return off_the_kink(case._replace(decay=np.asarray(0.3)))


def test_the_leak_is_the_inclusive_read():
    """Token by token: the fast parameters with a token's own gradient in them, as a state that the next token would read
    from an empty window. So a token's own label changes its own prediction, which no honest read lets it.
    """
    case = case_of(1)
    given = case.x, case.labels, case.weights, case.slow, case.eta, case.decay, BLOCK
    (logits, _, _), _ = leaking_fwd(*given)
    for t in range(6):
        now = slice(t, t + 1)
        (_, _, state), _ = fast_block_fwd(*(a[:, : t + 1] for a in given[:3]), *given[3:])
        (alone, _, _), _ = fast_block_fwd(*(a[:, now] for a in given[:3]), *given[3:], state)
        assert_close(logits[:, now], alone)
    other = case.labels.copy()
    other[:, 3] = (other[:, 3] + 1) % 4
    (changed, _, _), _ = leaking_fwd(case.x, other, *given[2:])
    (honest, _, _), _ = fast_block_fwd(*given)
    (same, _, _), _ = fast_block_fwd(case.x, other, *given[2:])
    assert np.array_equal(same[:, :4], honest[:, :4])
    assert np.array_equal(changed[:, :3], logits[:, :3]) and not np.allclose(changed[:, 3], logits[:, 3])


def test_the_leak_is_differentiated():
    """By features, slow parameters, step sizes, decay and state."""
    case = case_of(2)

    def fwd(x, slow, eta, decay, state):
        (logits, _, after), res = leaking_fwd(x, case.labels, case.weights, slow, eta, decay, BLOCK, state)
        return (logits, after), res

    check_adjoint(fwd, lambda g, res: leaking_bwd(*g, res), (case.x, case.slow, case.eta, case.decay, fast_state(case, 3)))


def test_what_is_held_shared_and_clipped():
    """Gradients of step sizes and decay: 0 for those held, one for all. All by one norm: in the direction that they have."""
    p, given = model(5), (*text(5), CONFIG, 20.0)
    _, g = loss_and_gradient(p, *given)
    _, h = held(loss_and_gradient, ("W1", "decay"))(p, *given)
    assert h.eta == g.eta._replace(W1=0.0) and h.decay == 0 != g.decay
    _, s = shared(loss_and_gradient)(p, *given)
    assert_close(np.sqrt(sum(e * e for e in s.eta)), abs(sum(g.eta)))
    assert len(set(map(float, s.eta))) == 1
    norm = np.sqrt(sum(np.sum(np.square(a, dtype="float64")) for a in leaves(g)))
    _, c = together(loss_and_gradient, norm / 3)(p, *given)
    assert_trees_close(c, tree_map(lambda a: a / 3, g))
    for other in (h, s):
        assert all(np.array_equal(a, b) for a, b in zip(leaves(other[:5]), leaves(g[:5]), strict=True))


def test_a_learner_begins_where_its_row_says():
    """Held step sizes at their values, the others and the decay where training starts them."""
    settings = TrainSettings(step_size=0.02, decay=0.003)
    begun = learner_of({"taught": {"held": {"W1": 0.0, "gain": 0.05}}}).begin(CONFIG, settings).params
    assert begun.eta == FastParameters(*np.float32([0, 0.02, 0.02, 0.02, 0.05, 0.02])) and begun.decay == np.float32(0.003)
    assert learner_of({"taught": {"held": {"decay": 0.25}}}).begin(CONFIG, settings).params.decay == 0.25
    assert learner_of({"config": {}}).gradient is None
