"""A decay for each of the two layers and for the norm's sums: against gradient steps in a loop, by its adjoint, in a stream."""

import array_api_compat.numpy as xp
import numpy as np
import pytest

from fwl_ref.fwl import FastSettings, fast_block_bwd, fast_block_fwd, fast_block_score
from fwl_ref.gradcheck import check_adjoint
from fwl_ref.optimizers import sgd
from fwl_ref.sequential import sequential_fwd
from fwl_ref.slow_block import FastParameters, slow_block_bwd, slow_block_fwd
from fwl_ref.stream import stream_predict, stream_reveal, stream_start
from tests.strategies import fast_state, make_block_case, off_the_kink
from tests.tolerances import assert_close, assert_trees_close

SETTINGS = FastSettings(eps=0.1, chunk=2)
THREE = (0.5, 0.125, 0.25)  # of W1 and b1, of W2 and b2, of gain and bias


def case_of(seed, decay=THREE):
    case = off_the_kink(make_block_case(2, 5, 3, 4, 4, SETTINGS, seed=seed, mask="real"))
    return case._replace(decay=np.asarray(decay))


def given(case):
    return case.x, case.labels, case.weights, case.slow, case.eta, case.decay, SETTINGS


def test_every_pair_fades_at_its_own_rate():
    """Gradient steps in a loop, of the slow block alone: what a step has moved fades by the decay of its parameter."""
    case = case_of(1)
    (logits, _, state), _ = fast_block_fwd(*given(case))
    rates = FastParameters(*np.repeat(THREE, 2))
    for b in range(2):
        moved = FastParameters(*(np.zeros_like(p) for p in case.slow[:6]))
        for t in range(5):
            now = slice(b, b + 1), slice(t, t + 1)
            fast = case.slow._replace(**{n: getattr(case.slow, n) - getattr(case.eta, n) * getattr(moved, n) for n in moved._fields})
            (_, own), _ = slow_block_fwd(case.x[now], case.labels[now], fast, SETTINGS.eps)
            assert_close(logits[now], own)
            _, res = slow_block_fwd(case.x[now], case.labels[now], case.slow, SETTINGS.eps)
            _, g = slow_block_bwd(case.weights[now], res)
            moved = FastParameters(*((1 - r) * m + d for r, m, d in zip(rates, moved, g[:6], strict=True)))
        assert_trees_close(FastParameters(*(s[b] for s in state)), moved)


def test_three_that_are_equal_are_one():
    """To the bit; and the gradient of the one is the sum of the three."""
    one, three = case_of(2, 0.25), case_of(2, (0.25,) * 3)
    (a, _, s), res = fast_block_fwd(*given(one))
    (b, _, r), res3 = fast_block_fwd(*given(three))
    assert all(np.array_equal(x, y) for x, y in zip((a, *s), (b, *r), strict=True))
    g, g3 = fast_block_bwd(a, s, res)[3], fast_block_bwd(b, r, res3)[3]
    assert g3.shape == (3,) and g.shape == ()
    assert_close(g, g3.sum())
    assert np.array_equal(fast_block_score(*given(three))[0], b)


def test_the_three_are_differentiated():
    """With a state, and chunks of two."""
    case = case_of(3)

    def fwd(x, slow, eta, decay, state):
        (logits, _, after), res = fast_block_fwd(x, case.labels, case.weights, slow, eta, decay, SETTINGS, state)
        return (logits, after), res

    check_adjoint(fwd, lambda g, res: fast_block_bwd(*g, res), (case.x, case.slow, case.eta, case.decay, fast_state(case, 3)))


def test_a_stream_fades_alike():
    """Predict and reveal, token by token: the same logits and the same sums."""
    case = case_of(4)
    (logits, _, state), _ = fast_block_fwd(*given(case))
    stream = stream_start(2, case.slow, SETTINGS)
    for t in range(5):
        own, stream = stream_predict(stream, case.x[:, t], case.slow, case.eta, SETTINGS)
        assert_close(own, logits[:, t])
        stream = stream_reveal(stream, case.labels[:, t], case.weights[:, t], case.slow, case.decay, SETTINGS)
    assert_trees_close(stream.state, state)


@pytest.mark.host("values are checked on the host, before they are moved")
def test_other_shapes_and_values_are_refused():
    """By name; a block that has one mask for all wants one decay."""
    case = case_of(5)
    for shape in ((1,), (2,), (6,), (3, 1)):
        with pytest.raises(ValueError, match=r"shape \(\), got .*; or \(3,\)"):
            fast_block_fwd(*given(case._replace(decay=xp.zeros(shape))))
    with pytest.raises(ValueError, match=r"lie in \[0, 1\]"):
        fast_block_fwd(*given(case._replace(decay=np.asarray((0.1, 1.5, 0.1)))))
    with pytest.raises(ValueError, match="the decay must have shape"):
        fast_block_fwd(*given(case)[:-1], SETTINGS._replace(optimizer=sgd()))
    with pytest.raises(ValueError, match=r"shape \(\), got \(3,\): one for all updates$"):
        sequential_fwd(*given(case), segment=2, within=True)
