"""Kernels that take several documents in one row, by ``cu_seqlens``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fwl_ref.testing import KernelError, check_kernel
from fwl_ref.testing.options import Options
from fwl_ref.testing.packed import cu_seqlens, documents
from fwl_ref.tree import tree_map
from tests.testing.mutants import functions
from tests.testing.naive import KERNELS

pytestmark = pytest.mark.host("kernels are functions of host arrays; the reference is checked elsewhere")


def in_rows(rule: str, bug: str = "") -> Callable[..., Any]:
    """The naive loop of a rule, from document to document."""

    def kernel(*inputs: Any) -> Any:
        *arrays, places = inputs
        *arrays, state = arrays if rule != "attention" else (*arrays, None)
        outs, states = [], []
        if bug == "documents leak":
            state = tree_map(lambda a: a[:1], state)
        for n, (start, stop) in enumerate(zip(places[:-1], places[1:], strict=True)):
            first = 0 if bug == "state of the first document" else n
            own = state if bug == "documents leak" else tree_map(lambda a: a[first][None], state)  # noqa: B023
            cut = [a[:, start:stop] if a.ndim > 1 and a.shape[:2] == (1, places[-1]) else a for a in arrays]
            if rule == "attention":
                cut = [cut[0], *(a[:, : int(stop)] for a in arrays[1:])] if bug else cut
                outs.append(KERNELS[rule](*cut))
                continue
            out, after = KERNELS[rule](*cut, own)
            state = after if bug == "documents leak" else state
            outs.append(out)
            states.append(after)
        out = np.concatenate(outs, axis=1)
        return out if rule == "attention" else (out, tree_map(lambda *rows: np.concatenate(rows), *states))

    return kernel


def by_hand(cotangents: tuple, q: Any, k: Any, v: Any, beta: Any, state: Any, places: Any) -> tuple:
    """The delta rule's backward pass, document by document; nothing for where they begin."""
    (fwd, bwd), found = functions("delta"), []
    for n, (start, stop) in enumerate(zip(places[:-1], places[1:], strict=True)):
        part = np.s_[:, start:stop]
        _, res = fwd(q[part], k[part], v[part], beta[part], None if state is None else state[n][None])
        found.append(bwd(cotangents[0][part], cotangents[1][n][None], res))
    *tokens, states = zip(*found, strict=True)
    return (*(np.concatenate(rows, axis=1) for rows in tokens), np.concatenate(states), None)


@pytest.mark.parametrize("rule", ["delta", "titans", "mesa", "attention", "short_conv"])
def test_a_kernel_of_rows_is_accepted(rule: str) -> None:
    """One state, two, a parameter that documents share, no state, and a convolution."""
    check_kernel(rule, in_rows(rule), packed=True, chunk=4, examples=15)


def test_its_gradients_are_compared_too() -> None:
    """By hand; in both layouts with heads the row is the axis of tokens."""
    report = check_kernel("delta", in_rows("delta"), backward=by_hand, packed=True, chunk=4, examples=15)
    assert {"g_q", "g_k", "g_v", "g_beta", "g_state"} <= set(report.arrays)

    def heads(*inputs: Any) -> Any:
        *tokens, state, places = inputs
        assert all(a.shape[0] == 1 and a.shape[2] == places[-1] for a in tokens) and (state is None or len(state) == len(places) - 1)
        each = [
            in_rows("delta")(*(a[:, h] for a in tokens), None if state is None else state[:, h], places) for h in range(tokens[0].shape[1])
        ]
        return np.stack([out for out, _ in each], 1), np.stack([S for _, S in each], 1)

    check_kernel("delta", heads, packed=True, layout="BHTK", chunk=4, examples=10)


@pytest.mark.parametrize(
    ("rule", "bug"),
    [("delta", "documents leak"), ("delta", "state of the first document"), ("titans", "documents leak"),
     ("short_conv", "documents leak")],
)  # fmt: skip
def test_faults_of_rows_are_named(rule: str, bug: str) -> None:
    with pytest.raises(KernelError) as caught:
        check_kernel(rule, in_rows(rule, bug), packed=True, chunk=4, examples=15)
    assert caught.value.fault == bug, str(caught.value)


def test_a_kernel_that_takes_all_lengths_for_the_first_is_rejected() -> None:
    """Lengths differ, also where all sequences of a case are as long as one another."""
    row = documents(3, 9, Options())
    assert [d.length for d in row] == [9, 1, 9, 2, 9, 3] and cu_seqlens(row).tolist() == [0, 9, 10, 19, 21, 30, 33]

    def kernel(*inputs: Any) -> Any:
        *rest, places = inputs
        return in_rows("delta")(*rest, np.minimum(places[1] * np.arange(len(places)), places[-1]))

    with pytest.raises(KernelError):
        check_kernel("delta", kernel, packed=True, chunk=4, examples=15)
    with pytest.raises(KernelError, match="state_out has shape"):
        check_kernel("delta", lambda *a: (in_rows("delta")(*a)[0], np.zeros((1, 1, 1))), packed=True, examples=5)
    with pytest.raises(ValueError, match="packed: all sequences of masked_attention share an array with tokens"):
        check_kernel("masked_attention", in_rows("delta"), packed=True)
