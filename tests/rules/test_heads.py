"""Heads folded into the batch, shared heads, and parameters per head, against loops over heads.

A docstring that opens with "N:" is a negative control.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwl_ref.gradcheck import check_adjoint
from fwl_ref.rules.common import READS
from fwl_ref.rules.gated_delta import gated_delta_chunked_bwd, gated_delta_chunked_fwd
from fwl_ref.rules.heads import GROUPINGS, fold, per_head, per_head_bwd, share, share_bwd, unfold
from fwl_ref.rules.mesa import MesaState, mesa_chunked_bwd, mesa_chunked_fwd, mesa_recurrent_bwd, mesa_recurrent_fwd
from tests.strategies import generator, seeds
from tests.tolerances import assert_bitwise, assert_close, assert_trees_close

sizes = st.integers(1, 3)
every_grouping = pytest.mark.parametrize("grouping", GROUPINGS)


@given(batch=sizes, length=st.integers(0, 3), heads=sizes, seed=seeds)
def test_a_head_is_a_sequence_and_back(batch: int, length: int, heads: int, seed: int) -> None:
    """Sequence b H + h is head h of sequence b, wherever the heads stand; unfold is the inverse and the adjoint.   (H.2)"""
    draw = generator(seed)
    for a, axis in ((draw(batch, length, heads, 4), 2), (draw(batch, heads, length, 4), 1), (draw(batch, length, heads), 2)):
        folded = fold(a, axis)
        for b in range(batch):
            for h in range(heads):
                assert_bitwise(folded[b * heads + h], np.take(a[b], h, axis=axis - 1))
        assert_bitwise(unfold(folded, heads, axis), a)
        if length:
            check_adjoint(lambda x, axis=axis: (fold(x, axis), None), lambda d, _, axis=axis: unfold(d, heads, axis), (a,), seed=seed)


@every_grouping
@given(groups=sizes, copies=sizes, seed=seeds)
def test_a_shared_head_is_copied_and_gathers(grouping: str, groups: int, copies: int, seed: int) -> None:
    """Head h of H reads head h // (H/G), or h mod G; the adjoint adds up.   (H.3), (H.4)"""
    heads, draw = groups * copies, generator(seed)
    for a, axis in ((draw(2, 3, groups, 2), 2), (draw(2, groups, 3), 1), (draw(2, 3, groups), 2)):
        shared = share(a, heads, axis, grouping)
        for h in range(heads):
            of = h // copies if grouping == "neighbours" else h % groups
            assert_bitwise(np.take(shared, h, axis=axis), np.take(a, of, axis=axis))
        check_adjoint(
            lambda x, axis=axis: (share(x, heads, axis, grouping), None),
            lambda d, _, axis=axis: share_bwd(d, groups, axis, grouping),
            (a,),
            seed=seed,
        )


def test_the_two_groupings_are_different_layers() -> None:
    """N: with 2 heads for 4, neighbours are 0 0 1 1 and strided 0 1 0 1.   (H.3)"""
    a = np.arange(2.0).reshape(1, 1, 2)
    assert share(a, 4, 2, "neighbours").ravel().tolist() == [0, 0, 1, 1]
    assert share(a, 4, 2, "strided").ravel().tolist() == [0, 1, 0, 1]


@given(batch=sizes, heads=sizes, seed=seeds)
def test_a_parameter_per_head_goes_to_every_sequence(batch: int, heads: int, seed: int) -> None:
    """Folded sequence b H + h gets p_h; gradients of all sequences add up.   (H.5)"""
    p = generator(seed)(heads, 3)
    for i, row in enumerate(per_head(p, batch)):
        assert_bitwise(row, p[i % heads])
    check_adjoint(lambda x: (per_head(x, batch), None), lambda d, _: per_head_bwd(d, heads), (p,), seed=seed)


@every_grouping
@pytest.mark.parametrize("read", READS)
def test_a_layer_of_heads_is_a_loop_over_heads(grouping: str, read: str) -> None:
    """2 heads of q and k for 4 of v: outputs, states and all gradients of one folded call are those of
    four calls, where the gradients of a shared head add up.   (H.2) to (H.4)
    """
    draw, rng, groups, heads = generator(0), np.random.default_rng(1), 2, 4
    q, k, v = draw(2, 7, groups, 3), 0.4 * draw(2, 7, groups, 3), draw(2, 7, heads, 2)
    alpha, beta, state = rng.uniform(0.5, 1, (2, 7, heads)), rng.uniform(0.1, 1, (2, 7, heads)), draw(2, heads, 3, 2)
    dout, dstate = draw(2, 7, heads, 2), draw(2, heads, 3, 2)

    wide = (share(a, heads, 2, grouping) for a in (q, k))
    (out, after), res = gated_delta_chunked_fwd(*(fold(a) for a in (*wide, v, alpha, beta)), fold(state, 1), 4, read=read)
    *g, g_state = gated_delta_chunked_bwd(fold(dout), fold(dstate, 1), res)
    g_q, g_k, g_v, g_alpha, g_beta = (unfold(a, heads) for a in g)
    found = share_bwd(g_q, groups, 2, grouping), share_bwd(g_k, groups, 2, grouping), g_v, g_alpha, g_beta, unfold(g_state, heads, 1)

    expected = [np.zeros_like(a) for a in (q, k, v, alpha, beta, state)]
    for h in range(heads):
        of = h // 2 if grouping == "neighbours" else h % 2
        one = q[:, :, of], k[:, :, of], v[:, :, h], alpha[:, :, h], beta[:, :, h], state[:, h]
        (o, s), r = gated_delta_chunked_fwd(*one, 4, read=read)
        assert_close(unfold(out, heads)[:, :, h], o)
        assert_close(unfold(after, heads, 1)[:, h], s)
        d = gated_delta_chunked_bwd(dout[:, :, h], dstate[:, h], r)
        for i in range(2):
            expected[i][:, :, of] += d[i]
        for i in range(2, 5):
            expected[i][:, :, h] += d[i]
        expected[5][:, h] += d[5]
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b)


MESA = {"recurrent": (mesa_recurrent_fwd, mesa_recurrent_bwd), "chunked": (mesa_chunked_fwd, mesa_chunked_bwd)}


@pytest.mark.parametrize("form", MESA)
@pytest.mark.parametrize("read", READS)
def test_mesa_takes_a_ridge_per_head(form: str, read: str) -> None:
    """One folded call with (BH,K) ridges is a call per head with (K); its gradient adds up over sequences.   (H.5), (W.26), (W.28)"""
    (fwd, bwd), draw, rng = MESA[form], generator(2), np.random.default_rng(3)
    q, k, v = draw(2, 5, 3, 3), draw(2, 5, 3, 3), draw(2, 5, 3, 2)
    keep, weight, ridge = rng.uniform(0.5, 1, (2, 5, 3)), rng.uniform(0, 1, (2, 5, 3)), rng.uniform(0.5, 1.5, (3, 3))
    dout = draw(2, 5, 3, 2)
    (out, _), res = fwd(*(fold(a) for a in (q, k, v, keep, weight)), per_head(ridge, 2), read=read)
    *g, g_ridge, _ = bwd(fold(dout), None, res)
    assert g_ridge.shape == (6, 3)
    for h in range(3):
        (o, _), r = fwd(*(a[:, :, h] for a in (q, k, v, keep, weight)), ridge[h], read=read)
        *d, d_ridge, _ = bwd(dout[:, :, h], None, r)
        assert_close(unfold(out, 3)[:, :, h], o)
        assert_close(per_head_bwd(g_ridge, 3)[h], d_ridge)
        assert_trees_close(tuple(unfold(a, 3)[:, :, h] for a in g), tuple(d))

    def of_ridge(p: np.ndarray) -> tuple:
        return fwd(*(fold(a) for a in (q, k, v, keep, weight)), p, MesaState(0 * out[:, :3], np.zeros((6, 3, 3))), read=read)

    check_adjoint(lambda p: (lambda y: (y[0][0], y[1]))(of_ridge(p)), lambda d, r: bwd(d, None, r)[-2], (per_head(ridge, 2),))


def test_heads_that_cannot_be_are_refused() -> None:
    """The words name what was found."""
    a = np.ones((4, 3, 2))
    for wrong in (0, 3):
        with pytest.raises(ValueError, match=f"axis from 1 to 2 of 3 axes, got {wrong}"):
            fold(a, wrong)
    with pytest.raises(ValueError, match="4 sequences cannot be those of 3 heads"):
        unfold(a, 3)
    with pytest.raises(ValueError, match="2 heads cannot be shared by 3"):
        share(a, 3)
    with pytest.raises(ValueError, match="3 heads cannot be shared by 2"):
        share_bwd(a, 3)
    with pytest.raises(ValueError, match="grouping must be one of neighbours, strided, got 'pairs'"):
        share(a, 4, grouping="pairs")
