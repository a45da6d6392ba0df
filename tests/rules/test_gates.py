"""Gates of 0, given as numbers or as logarithms, in every form of every rule that has a gate.

A docstring that opens with "N:" is a negative control.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given

from fwl_ref.gradcheck import check_adjoint
from fwl_ref.rules.common import READS, fades, fades_bwd
from fwl_ref.rules.gates import gates_from_log, gates_from_log_bwd
from fwl_ref.tree import leaves, tree_map
from tests.rules.table import Rule, Shape
from tests.rules.test_laws import RULES, pair
from tests.strategies import generator, seeds
from tests.tolerances import assert_close, assert_trees_close

GATED = [r for r in RULES if r.name in ("decay", "gla", "gated_delta", "kda", "dplr", "gated_delta_product", "mesa")]
SHAPE, RESET = Shape(2, 9, 3, 3), 4
every_gated_rule = pytest.mark.parametrize("rule", GATED, ids=[rule.name for rule in GATED])
every_read = pytest.mark.parametrize("read", READS)
every_form = pytest.mark.parametrize(("form", "chunk"), [("recurrent", None), ("chunked", None), ("chunked", 3), ("chunked", 1)])


def with_logs(rule: Rule, seed: int, *closed: float) -> tuple[tuple, np.ndarray]:
    """Tokens of a rule, and log gates: an open one (0), and from RESET on those in ``closed``."""
    tokens = rule.tokens(SHAPE, seed)
    g = np.log(tokens[3])
    g[:, 1] = 0
    for i, value in enumerate(closed):
        g[:, RESET + i] = value
    return tokens, g


def run(rule: Rule, form: str, read: str, chunk: int | None, tokens: tuple, g: np.ndarray, state: Any) -> tuple:
    """Outputs, and gradients with that of g in the place of the gate's."""
    fwd, bwd = pair(rule, form, read, chunk)
    alpha, draw = gates_from_log(g), generator(3)
    output, res = fwd(*tokens[:3], alpha, *tokens[4:], state)
    gradients = list(bwd(tree_map(lambda a: draw(*a.shape), output), res))
    gradients[3] = gates_from_log_bwd(gradients[3], alpha)
    return output, tuple(gradients)


@every_gated_rule
@every_read
@every_form
def test_a_log_gate_of_minus_800_is_a_gate_of_0(rule: Rule, read: str, form: str, chunk: int | None) -> None:
    """g = -800 and g = -inf reset the memory: what follows is what follows from nothing, no gradient
    reaches what was before, all is finite, and both forms agree.   (H.1), (U.3), (U.4)
    """
    tokens, g = with_logs(rule, 5, -800.0, -np.inf)
    state = rule.state(SHAPE, 5)
    (out, after), gradients = run(rule, form, read, chunk, tokens, g, state)
    assert all(np.all(np.isfinite(a)) for a in leaves((out, after, gradients)))
    assert all(np.all(a == 0) for a in leaves(gradients[3][:, RESET : RESET + 2]))
    expected = run(rule, "recurrent", read, None, tokens, g, state)
    assert_trees_close(((out, after), gradients), expected, scale=1.0)
    if rule.name == "dplr":  # what a token recalls goes round the gate
        return
    other = tree_map(lambda a: 3 * a, state)
    (again, same), _ = run(rule, form, read, chunk, tokens, g, other)
    unseen = RESET + (read == "strict")
    assert_trees_close((again[:, unseen:], same), (out[:, unseen:], after), scale=1.0)
    assert not np.allclose(again[:, :RESET], out[:, :RESET])
    fwd, bwd = pair(rule, form, read, chunk)
    (_, last), res = fwd(*tokens[:3], gates_from_log(g), *tokens[4:], state)
    dout = generator(1)(*out.shape)
    dout[:, :unseen] = 0
    for a in leaves(bwd((dout, tree_map(lambda a: np.ones_like(a), last)), res)[-1]):
        assert_close(a, np.zeros_like(a), scale=1.0)


@every_gated_rule
@every_form
def test_the_gradient_of_a_gate_of_0_is_its_gradient(rule: Rule, form: str, chunk: int | None) -> None:
    """<u, J v> = <J^T u, v> where gates are exactly 0: what the gate lets through is nothing, what it
    would let through is not.   (U.4)
    """
    seed = 3
    tokens, g = with_logs(rule, seed, -800.0, -0.1, -800.0)
    alpha = gates_from_log(g)
    assert np.all(alpha[:, RESET] == 0)
    case = (*tokens[:3], alpha, *tokens[4:], rule.state(SHAPE, seed))
    fwd, bwd = pair(rule, form, "inclusive", chunk)
    check_adjoint(fwd, bwd, case, seed=seed)
    output, res = fwd(*case)
    assert np.any(bwd(output, res)[3][:, RESET] != 0)


@given(seed=seeds)
def test_a_gate_from_its_logarithm_has_the_gradient_of_an_exponential(seed: int) -> None:
    """alpha = e^g, dg = alpha dalpha, for numbers per token and per channel.   (H.1)"""
    draw = generator(seed)
    for shape in ((2, 5), (2, 5, 3)):
        check_adjoint(lambda g: (gates_from_log(g),) * 2, gates_from_log_bwd, (-np.abs(draw(*shape)),), seed=seed)


def test_dividing_by_the_gate_is_not_a_number_at_0() -> None:
    """N: the shorter formula for the adjoint of the fades, sum dG G / gamma, is 0 / 0 there.   (U.4)"""
    gamma = np.asarray([[0.5, 0.0, 0.7]])
    table, dfade = fades(gamma), np.ones((1, 4, 4))
    with np.errstate(invalid="ignore"):
        short = np.sum(np.tril(dfade * table, -1)[:, 2:, :2], axis=(1, 2)) / gamma[:, 1]
    assert np.isnan(short[0])
    # G_{2,2} (G_11 + G_10) + G_{3,2} (G_11 + G_10)
    assert_close(fades_bwd(dfade, table)[0, 1], np.asarray((1 + 0.7) * (1 + 0.5)))
