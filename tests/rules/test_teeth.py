"""The laws and the table reject wrong rules (theorem 19).

Each mutant is the library with one name inside one of its modules replaced. ``CHECKS`` are the
comparisons of this folder without Hypothesis: they pass on the library, and for every mutant those
that are listed beside it fail. What no check could see is named too.

A docstring that opens with "N:" is a negative control.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from types import ModuleType

import numpy as np
import pytest

import fwl_ref.rules.channels
import fwl_ref.rules.common
import fwl_ref.rules.decay
import fwl_ref.rules.delta
import fwl_ref.rules.delta_product
import fwl_ref.rules.dplr
import fwl_ref.rules.gated_delta
import fwl_ref.rules.gated_delta_product
import fwl_ref.rules.gla
import fwl_ref.rules.kda
import fwl_ref.rules.linear
import fwl_ref.rules.longhorn
from fwl_ref.gradcheck import AdjointError, check_adjoint
from fwl_ref.rules.channels import channel_fades, channel_fades_bwd, channel_sums, channel_sums_bwd
from fwl_ref.rules.common import (
    READS,
    apply,
    fades,
    fades_bwd,
    outer,
    past,
    read_from,
    read_from_bwd,
    reads,
    reads_bwd,
    solve,
    solve_bwd,
    sums,
    sums_bwd,
)
from fwl_ref.rules.delta import delta_gradient, delta_gradient_bwd
from fwl_ref.rules.dplr import _recalled as recalled
from fwl_ref.rules.kda import _errors as kda_errors
from fwl_ref.rules.longhorn import longhorn_rate_bwd
from tests.rules import test_lattice as table
from tests.rules.one_matrix import RULES
from tests.rules.table import Rule, Shape
from tests.rules.test_laws import arguments, moved_from, pair, run
from tests.tolerances import assert_bitwise, assert_close, assert_trees_close

pytestmark = pytest.mark.host("about the comparisons, not about arrays")

RULE = {rule.name: rule for rule in RULES}
UPDATES = {name: getattr(table, f"{name}_update") for name in RULE}
SHAPE, SEED, CHUNK = (Shape(2, 6, 3, 3), 5, 4)  # K = E, so that key and value can be taken for each other


# Checks
# ----------------------------------------------------------------------------------------------------------------------


def is_the_formula(rule: Rule) -> None:
    """Both forms, both reads, against the textbook's update."""
    case = arguments(rule, SHAPE, SEED)
    for read in READS:
        expected = table.literal(UPDATES[rule.name], case[0], case[-1], read, *case[1:-1])
        for form in ("recurrent", "chunked"):
            assert_trees_close(pair(rule, form, read, CHUNK)[0](*case)[0], expected, scale=1.0)


def is_causal(rule: Rule) -> None:
    """A strict read does not see its own token, not by a bit."""
    case = arguments(rule, SHAPE, SEED)
    for form in ("recurrent", "chunked"):
        fwd, _ = pair(rule, form, "strict", CHUNK)
        before, after = fwd(*case)[0][0], fwd(*moved_from(rule, case, 2, 8, own=False))[0][0]
        assert_bitwise(after[:, :3], before[:, :3])


def is_chunked(rule: Rule) -> None:
    """Chunked and recurrent agree in outputs, states and gradients."""
    case = arguments(rule, SHAPE, SEED)
    for read in READS:
        actual, expected = (run(*pair(rule, form, read, CHUNK), case, SEED).results for form in ("chunked", "recurrent"))
        assert_trees_close(actual, expected, scale=1.0)


def has_adjoints(rule: Rule) -> None:
    """Every backward pass is the adjoint of its forward pass."""
    for read in READS:
        for form in ("recurrent", "chunked"):
            check_adjoint(*pair(rule, form, read, CHUNK), arguments(rule, SHAPE, SEED))


def has_its_gradient(rule: Rule) -> None:
    """The gradient is the derivative of the loss, in one direction."""
    S, *rest = rule.inner(SHAPE, SEED)
    direction = np.cos(np.arange(S.size)).reshape(S.shape)
    slope = np.imag(rule.loss(S + 1e-30j * direction, *(a.astype("complex128") for a in rest))) / 1e-30
    assert_trees_close(np.sum(rule.gradient(S, *rest) * direction, axis=(1, 2)), slope, scale=1.0)


CHECKS = {check.__name__: check for check in (is_the_formula, is_causal, is_chunked, has_adjoints, has_its_gradient)}


def failing(name: str, checks: Iterable[str] = CHECKS) -> set[str]:
    """The checks that a rule does not pass."""
    found = set()
    for check in checks:
        try:
            CHECKS[check](RULE[name])
        except (AssertionError, AdjointError):
            found.add(check)
    return found


@pytest.mark.parametrize("name", RULE)
def test_the_library_passes_every_check(name: str) -> None:
    """Without this the rejections below would mean nothing."""
    assert failing(name) == set()


# Mutants
# ---------------------------------------------------------------------------------------------------------------------


def inclusive(f: Callable) -> Callable:
    """A read that is inclusive whatever was asked for."""
    return lambda *args: f(*args[:-1], "inclusive")


def strict(f: Callable) -> Callable:
    return lambda *args: f(*args[:-1], "strict")


def zeroed(f: Callable, i: int) -> Callable:
    """f with one of its results dropped."""
    return lambda *args: tuple(0 * y if j == i else y for j, y in enumerate(f(*args)))


def negated(f: Callable) -> Callable:
    return lambda *args: -f(*args)


def faded_on_arrival(gamma):
    """A write fades once more than it should: by the decay of its own token."""
    own = np.concatenate([np.ones_like(gamma[..., :1]), gamma], axis=-1)[..., : gamma.shape[-1] + 1]
    return fades(gamma) * own[..., None, :]


def first_decay_forgotten(gamma):
    """The chunk starts with an undecayed token."""
    return fades(np.concatenate([np.ones_like(gamma[..., :1]), gamma[..., 1:]], axis=-1))


def ratio_of_cumulative_products(gamma):
    total = np.concatenate([np.ones_like(gamma[..., :1]), np.cumprod(gamma, axis=-1)], axis=-1)
    with np.errstate(all="ignore"):
        return np.tril(total[..., :, None] / total[..., None, :])


def stale(k, v, beta, state):
    """Errors at the first state of the chunk instead of the current one."""
    gram = k @ np.swapaxes(k, 1, 2)
    return gram, 0 * gram, beta[:, :, None] * (v - k @ state)


def stale_gated(k, v, fade, beta, state):
    gram, recalled = k @ np.swapaxes(k, 1, 2), k @ state
    return gram, recalled, 0 * gram, beta[:, :, None] * (v - fade[:, 1:, :1] * recalled)


def before_the_gate(k, v, fade, beta, state):
    """Errors at S_t instead of at alpha_t S_t: the gradient before the decay."""
    gram, recalled, rows = k @ np.swapaxes(k, 1, 2), k @ state, fade[:, :-1, :]
    a = np.tril(beta[:, :, None] * rows[:, :, 1:] * gram, -1)
    return gram, recalled, a, solve(a, beta[:, :, None] * (v - rows[:, :, :1] * recalled))


def stale_by_channel(asked, k, v, fade, beta, state):
    recalled = np.matmul(asked * fade[:, :-1, 0], state)
    return np.zeros(k.shape[:2] + k.shape[1:2]), recalled, beta[:, :, None] * (v - recalled)


def own_gate_forgotten(asked, k, v, fade, beta, state):
    """Errors at S_t instead of at Diag(alpha_t) S_t."""
    return kda_errors(k, k, v, fade, beta, state)


def stale_recalls(k, v, a, b, fade, state):
    """What a reads of the first state of the chunk, instead of the current one."""
    return 0 * (a @ np.swapaxes(k, 1, 2)), 0 * (a @ np.swapaxes(b, 1, 2)), np.matmul(a * fade[:, :-1, 0], state)


def recalls_of_pairs_only(k, v, a, b, fade, state):
    """What a reads, without what was recalled and written before."""
    return recalled(k, v, a, 0 * b, fade, state)


def gate_at_every_step(alpha, steps):
    return np.repeat(alpha, steps, axis=1)


def not_transposed(dx, a, x):
    dr = solve(a, dx)
    return np.tril(-dr @ np.swapaxes(x, 1, 2), -1), dr


def with_its_diagonal(dx, a, x):
    da, dr = solve_bwd(dx, a, x)
    return np.tril(-dr @ np.swapaxes(x, 1, 2)), dr


MODULE = {name: getattr(fwl_ref.rules, name) for name in RULE}
ALL = tuple(RULE)
BY_CHANNEL = ("gla", "kda", "dplr")  # chunks through ``channel_sums``
SUMMED = tuple(name for name in RULE if name not in BY_CHANNEL)  # chunks through ``sums``
DELTAS = ("delta", "gated_delta", "delta_product", "gated_delta_product", "longhorn", "kda")
SOLVING = (*DELTAS, "dplr")
FADING = ("decay", "gated_delta", "gated_delta_product", *BY_CHANNEL)
LENDER = {"delta_product": "delta", "longhorn": "delta", "gated_delta_product": "gated_delta"}  # of the chunked form
FORM, CAUSAL, CHUNKED, ADJOINT, GRADIENT = CHECKS


def own(attribute: str, mutant: Callable, *rules: str) -> list[tuple]:
    """(rule to check, module, attribute, mutant): a name replaced in the module of the rule itself."""
    return [(rule, MODULE[rule], attribute, mutant) for rule in rules]


def lent(attribute: str, mutant: Callable, *rules: str) -> list[tuple]:
    """The same for what DeltaProduct and Longhorn take from the delta rules."""
    return [(rule, MODULE[LENDER.get(rule, rule)], attribute, mutant) for rule in rules]


def fading(attribute: str, mutant: Callable, *rules: str) -> list[tuple]:
    """The same for what rules with a gate per channel do in ``channels.py``."""
    return [(rule, fading_module(rule), attribute, mutant) for rule in rules]


def faded(mutant: Callable, *rules: str) -> list[tuple]:
    """A mutant of ``fades``, and of ``channel_fades`` in the rules with a gate per channel."""
    by_channel = lambda alpha: np.transpose(mutant(np.swapaxes(alpha, 1, 2)), (0, 2, 3, 1))  # noqa: E731
    return [
        (rule, MODULE[rule], "channel_fades", by_channel) if rule in BY_CHANNEL else (rule, fading_module(rule), "fades", mutant)
        for rule in rules
    ]


def fading_module(rule: str) -> ModuleType:
    return fwl_ref.rules.channels if rule in BY_CHANNEL else MODULE[LENDER.get(rule, rule)]


def summing(mutate: Callable, backward: bool = False) -> list[tuple]:
    """Sums of writes, by token and by channel."""
    names = ("sums_bwd", "channel_sums_bwd") if backward else ("sums", "channel_sums")
    plain, by_channel = (sums_bwd, channel_sums_bwd) if backward else (sums, channel_sums)
    return lent(names[0], mutate(plain), *SUMMED) + own(names[1], mutate(by_channel), *BY_CHANNEL)


def swapped(f: Callable, i: int, j: int) -> Callable:
    """f with two of its arguments exchanged."""

    def mutant(*args):
        order = list(args)
        order[i], order[j] = args[j], args[i]
        return f(*order)

    return mutant


MUTANTS = {  # what is wrong: (where, the checks that must see it)
    "inclusive for strict, token by token": (own("reads", inclusive(reads), *ALL), {FORM, CAUSAL, CHUNKED}),
    "inclusive for strict, in chunks": (summing(inclusive), {FORM, CAUSAL, CHUNKED}),
    "inclusive for strict, by channel": (fading("read_from", inclusive(read_from), *BY_CHANNEL), {FORM, CAUSAL, CHUNKED}),
    "strict for inclusive, token by token": (own("reads", strict(reads), *ALL), {FORM, CHUNKED}),
    "strict for inclusive, in chunks": (summing(strict), {FORM, CHUNKED}),
    "strict for inclusive, by channel": (fading("read_from", strict(read_from), *BY_CHANNEL), {FORM, CHUNKED}),
    "key and value swapped in the write": (
        own("outer", lambda k, v: outer(v, k), "linear", "decay", "gla", "delta", "dplr"),
        {FORM, GRADIENT},
    ),
    "key and value swapped in the chunk": (summing(partial(swapped, i=1, j=2)), {FORM, CHUNKED, ADJOINT}),
    "query and key swapped in the chunk": (summing(partial(swapped, i=0, j=1)), {FORM, CAUSAL, CHUNKED, ADJOINT}),
    "faded on arrival": (faded(faded_on_arrival, *FADING), {FORM, CHUNKED}),
    "first decay of a chunk forgotten": (faded(first_decay_forgotten, *FADING), {FORM, CHUNKED}),
    "sign of the delta gradient": (own("delta_gradient", negated(delta_gradient), *DELTAS), {FORM, CHUNKED, ADJOINT}),
    "error forgotten": (own("apply", lambda k, S: 0 * apply(k, S), "delta"), {FORM, CHUNKED, ADJOINT}),
    "stale errors": (lent("_errors", stale, "delta", "delta_product", "longhorn"), {FORM, CHUNKED, ADJOINT}),
    "stale errors behind a gate": (lent("_errors", stale_gated, "gated_delta", "gated_delta_product"), {FORM, CHUNKED, ADJOINT}),
    "errors before the gate": (lent("_errors", before_the_gate, "gated_delta", "gated_delta_product"), {FORM, CHUNKED, ADJOINT}),
    "stale errors behind gates": (own("_errors", stale_by_channel, "kda"), {FORM, CHUNKED, ADJOINT}),
    "errors before the gates": (own("_errors", own_gate_forgotten, "kda"), {FORM, CHUNKED, ADJOINT}),
    "stale recalls": (own("_recalled", stale_recalls, "dplr"), {FORM, CHUNKED, ADJOINT}),
    "recalls of pairs only": (own("_recalled", recalls_of_pairs_only, "dplr"), {FORM, CHUNKED, ADJOINT}),
    "nothing recalled": (own("apply", lambda k, S: 0 * apply(k, S), "dplr"), {FORM, CHUNKED, ADJOINT}),
    "a gate at every step": (own("_gates", gate_at_every_step, "gated_delta_product"), {FORM, CHUNKED, ADJOINT}),
    "explicit step for implicit": (own("longhorn_rate", lambda k, beta, one: beta / one, "longhorn"), {FORM, ADJOINT}),
    "solve not transposed in its adjoint": (lent("solve_bwd", not_transposed, *SOLVING), {CHUNKED, ADJOINT}),
    "diagonal in the adjoint of solve": (
        lent("solve_bwd", with_its_diagonal, *(rule for rule in SOLVING if rule not in BY_CHANNEL)),
        {CHUNKED, ADJOINT},
    ),
    "gradient of the system dropped": (lent("solve_bwd", zeroed(solve_bwd, 0), *SOLVING), {CHUNKED, ADJOINT}),
    "gradient of the right side dropped": (lent("solve_bwd", zeroed(solve_bwd, 1), *SOLVING), {CHUNKED, ADJOINT}),
    "gradient of the fades dropped": (
        fading("fades_bwd", lambda *a: 0 * fades_bwd(*a), *FADING[:3])
        + own("channel_fades_bwd", lambda *a: 0 * channel_fades_bwd(*a), *BY_CHANNEL),
        {CHUNKED, ADJOINT},
    ),
    "gradient of the fades off by one": (fading("read_from_bwd", strict(read_from_bwd), *FADING[1:]), {CHUNKED, ADJOINT}),
    "gradient of the rate dropped": (own("longhorn_rate_bwd", zeroed(longhorn_rate_bwd, 1), "longhorn"), {ADJOINT}),
    "dependence of the rate on the key dropped": (own("longhorn_rate_bwd", zeroed(longhorn_rate_bwd, 0), "longhorn"), {ADJOINT}),
}
for i, of in enumerate(("query", "key", "value", None, "state")):
    if of:  # the gradient of the fades is above
        MUTANTS[f"{of}'s gradient dropped in chunks"] = (summing(partial(zeroed, i=i), backward=True), {CHUNKED, ADJOINT})
for i, of in enumerate(("query", "state")):
    mutant = "reads_bwd", zeroed(reads_bwd, i)
    MUTANTS[f"{of}'s gradient dropped in reads"] = (
        [place for rule in ALL for place in (lent if rule == "longhorn" else own)(*mutant, rule)],
        {CHUNKED, ADJOINT},
    )
for i, of in enumerate(("state", "key", "value")):
    places = own("delta_gradient_bwd", zeroed(delta_gradient_bwd, i), *(rule for rule in DELTAS if rule != "longhorn"))
    MUTANTS[f"{of}'s gradient dropped in a delta step"] = (places, {CHUNKED, ADJOINT})
LISTED = [(what, *place) for what, (places, _) in MUTANTS.items() for place in places]


@pytest.mark.parametrize(("what", "name", "module", "attribute", "mutant"), LISTED, ids=[f"{what}, {name}" for what, name, *_ in LISTED])
def test_a_mutant_is_rejected(what, name, module, attribute, mutant, monkeypatch) -> None:
    """N: all checks that are listed for it fail (others may too).   (U.1) to (U.58)"""
    monkeypatch.setattr(module, attribute, mutant)
    assert failing(name, MUTANTS[what][1]) == MUTANTS[what][1]


@pytest.mark.parametrize("name", FADING)
def test_a_ratio_of_cumulative_products_is_right_on_paper_only(name, monkeypatch) -> None:
    """Equal where nothing underflows, so the checks accept it; the test of strong decay does
    not.   (U.3)
    """
    ((_, *place),) = faded(ratio_of_cumulative_products, name)
    monkeypatch.setattr(*place)
    assert failing(name) == set()
    with pytest.raises(AssertionError), np.errstate(all="ignore"):
        table.test_strong_decay_neither_overflows_nor_divides_zero_by_zero(name, "float64", 1e-100, "strict")


@pytest.mark.parametrize("name", BY_CHANNEL)
def test_an_inclusive_mask_over_fades_is_an_equivalent_mutant(name, monkeypatch) -> None:
    """The table of fades is 0 where the mask is, so on finite numbers no check can or should see
    it.   (U.22)
    """
    monkeypatch.setattr(fwl_ref.rules.channels, "past", inclusive(past))
    assert failing(name) == set()


def test_fades_of_channels_are_those_of_tokens_channel_by_channel() -> None:
    """To the bit, a gate of 0 among them; and to rounding their gradients, which take another way.   (U.3), (U.4)"""
    gates = np.random.default_rng(2).uniform(0, 1, (2, 7, 3))
    gates[1, 3, 2] = 0
    fade, given = channel_fades(gates), np.random.default_rng(3).standard_normal((2, 8, 8, 3))
    dgates = channel_fades_bwd(given, fade)
    for c in range(3):
        alone = fades(gates[..., c])
        assert_bitwise(fade[..., c], alone)
        assert_close(dgates[..., c], fades_bwd(given[..., c], alone), scale=1.0)


@pytest.mark.parametrize("name", [rule for rule in SOLVING if rule in BY_CHANNEL])
def test_a_diagonal_in_the_adjoint_of_solve_is_an_equivalent_mutant_by_channel(name, monkeypatch) -> None:
    """The adjoint of the scores masks once more, and the scores of a strict read are 0
    there.   (U.8), (U.48), (U.53)
    """
    monkeypatch.setattr(MODULE[name], "solve_bwd", with_its_diagonal)
    assert failing(name) == set()


@pytest.mark.parametrize("form", ["recurrent", "chunked"])
@pytest.mark.parametrize("name", ALL)
def test_the_gradient_check_is_sharp(name, form) -> None:
    """N: any one gradient that is wrong by one part in a hundred thousand is found."""
    case, (fwd, bwd) = (arguments(RULE[name], SHAPE, SEED), pair(RULE[name], form, "inclusive", CHUNK))
    for i in range(len(case)):
        with pytest.raises(AdjointError, match=f"argument {i}"):
            check_adjoint(fwd, lambda d, res: tuple(g * (1 + 1e-5 * (j == i)) for j, g in enumerate(bwd(d, res))), case)
