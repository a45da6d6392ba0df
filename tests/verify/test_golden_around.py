"""Golden cases of packed rows and heads: every document and every head once more, alone, by the plain loops of the rules; and errors
that name the array.

A docstring that opens with "N:" is a negative control.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fwl_ref.rules import heads
from fwl_ref.verify import golden
from fwl_ref.verify.golden_around import KINDS, PLANS
from fwl_ref.verify.golden_rules import RULES
from tests.tolerances import assert_close
from tests.verify.test_golden_rules import by_hand

pytestmark = pytest.mark.host("files and host arrays")
PACKED = [i for i, plan in enumerate(PLANS) if plan.kind.startswith("packed")]
HEADS = [i for i, plan in enumerate(PLANS) if plan.kind.startswith("heads")]
every_case = pytest.mark.parametrize("i", range(len(PLANS)), ids=[plan.kind for plan in PLANS])
Case = dict[str, Any]


def draw(i: int, seed: int = 0, **sizes: int) -> Case:
    """The inputs of case number i."""
    return golden.draw_case(PLANS[i], np.random.default_rng([seed, i]), sizes)


def index(kind: str) -> int:
    return next(i for i, plan in enumerate(PLANS) if plan.kind == kind)


def parts(case: Case) -> tuple[Any, list[tuple[Case, Any]]]:
    """The rule, and every document or head as a case of it, with the place of its outputs."""
    around, _, name = str(case["kind"]).partition("_")
    rule, found = RULES[name], []
    if around == "packed":
        ends = [int(place) for place in case["cu_seqlens"]]
        for n, (start, end) in enumerate(zip(ends, ends[1:], strict=False)):
            one = {m: case[m][:, start:end] if s.startswith("BT") else case[m][n : n + 1] for m, s in rule.arrays.items() if s[0] == "B"}
            found.append((case | one | {"kind": name}, (slice(0, 1), slice(start, end))))
        return rule, found
    many, groups = case["cot_out"].shape[2], case["q"].shape[2]
    for h in range(many):
        source = h // (many // groups) if str(case["grouping"]) == "neighbours" else h % groups
        one = {}
        for m, s in rule.arrays.items():
            a = np.moveaxis(case[m], 2 if s.startswith("BT") else 1 if s[0] == "B" else 0, 0)
            one[m] = a[source if m in ("q", "k") else h]
        found.append((case | one | {"kind": name}, (slice(None), slice(None), h)))
    return rule, found


def alone(case: Case) -> Case:
    """out, final states and loss: the documents or heads one after the other."""
    rule, each = parts(case)
    answers = [by_hand(one) for one, _ in each]
    out = np.zeros(case["cot_out"].shape, dtype=complex)
    for (_, place), found in zip(each, answers, strict=True):
        out[place] = found["out"]
    join = np.concatenate if str(case["kind"]).startswith("packed") else lambda states: np.stack(states, axis=1)
    states = {n.replace("state", "state_out", 1): join([f[n.replace("state", "state_out", 1)] for f in answers]) for n in rule.state}
    return {"out": out, **states, "loss": sum(found["loss"] for found in answers)}


@every_case
def test_answers_are_those_of_documents_and_heads_alone(i: int) -> None:
    """Outputs, final states and loss, for two seeds, whose documents and groups differ."""
    for seed in (0, 1):
        case = draw(i, seed)
        answers, expected = golden.run_case(case), alone(case)
        assert tuple(answers) == golden.ANSWERS[PLANS[i].kind]
        assert expected.keys() < answers.keys()
        for name, a in expected.items():
            assert_close(answers[name], a.real, what=name, scale=1.0)


@every_case
def test_gradients_are_those_of_the_complex_step(i: int) -> None:
    """Two entries of every gradient are Im loss(p + i h) / h; a gradient has the shape of its input."""
    case, rng = draw(i, seed=2), np.random.default_rng(i)
    answers, (rule, _) = golden.run_case(case), parts(case)
    for name in rule.differentiated:
        gradient = answers[f"g_{name}"]
        assert gradient.shape == case[name].shape
        for _ in range(2):
            at = tuple(int(rng.integers(0, n)) for n in gradient.shape)
            moved = case[name].astype(complex)
            moved[at] += 0.5e-30j
            moved[(*at[:-2], at[-1], at[-2]) if name == "state_H" else at] += 0.5e-30j
            slope = alone(case | {name: moved})["loss"].imag / 1e-30
            assert_close(gradient[at], np.asarray(slope), what=name, scale=max(1.0, float(np.max(np.abs(gradient)))))


def test_every_rule_is_packed_and_has_heads() -> None:
    """But for TTT under way: its place in a mini-batch is one for all documents. States come in, and no case is one document or head."""
    expected = {"heads_" + rule for rule in RULES} | {"packed_" + rule for rule in RULES if "under_way" not in rule}
    assert {plan.kind for plan in PLANS} == set(KINDS) == expected
    for i in PACKED:
        case = draw(i)
        assert len(case["cu_seqlens"]) > 2 and case["q"].shape[0] == 1
        assert all(np.abs(case[name]).max() > 0 for name in parts(case)[0].state)
    assert all(draw(i)["cot_out"].shape[2] > draw(i)["q"].shape[2] for i in HEADS)
    assert {str(draw(i)["grouping"]) for i in HEADS} == set(heads.GROUPINGS)
    assert {draw(i)["q"].shape[2] for i in HEADS} > {1}


@pytest.mark.parametrize("i", PACKED, ids=[PLANS[i].kind for i in PACKED])
def test_a_boundary_elsewhere_is_another_case(i: int) -> None:
    """N: the first document one token longer or shorter; outputs up to the earlier end are the same."""
    case = draw(i, B=2, T=9) | {"cu_seqlens": np.asarray([0, 4, 9])}
    here, there = (golden.run_case(case | {"cu_seqlens": np.asarray([0, end, 9])})["out"] for end in (4, 5))
    assert_close(here[:, :4], there[:, :4], scale=1.0)
    assert np.abs(here[:, 4] - there[:, 4]).max() > 1e-6


@pytest.mark.parametrize("i", HEADS, ids=[PLANS[i].kind for i in HEADS])
def test_the_other_grouping_is_another_case(i: int) -> None:
    """N: neighbours and strided differ, but not for the first head."""
    case = draw(i, G=2, H=4)
    here, there = (golden.run_case(case | {"grouping": np.asarray(g)})["out"] for g in heads.GROUPINGS)
    assert_close(here[:, :, 0], there[:, :, 0], scale=1.0)
    assert np.abs(here[:, :, 1] - there[:, :, 1]).max() > 1e-6


@every_case
def test_a_case_of_no_tokens_has_answers(i: int) -> None:
    """One empty document: the state passes through."""
    case = draw(i, T=0)
    answers = golden.run_case(case)
    for name in parts(case)[0].state:
        assert_close(answers[name.replace("state", "state_out", 1)], case[name])


# --- bad cases

BAD = {
    "two rows": ("packed_delta", {"q": lambda a: np.concatenate([a, a])}, "q", "shape (1,T,K)"),
    "states of another number": ("packed_delta", {"cot_state": lambda a: a[1:]}, "cot_state", "expected shape (B,K,E)"),
    "boundaries of another number": ("packed_delta", {"cu_seqlens": lambda a: a[1:]}, "cu_seqlens", "shape (B+1,)"),
    "real boundaries": ("packed_delta", {"cu_seqlens": lambda a: a * 1.0}, "cu_seqlens", "integers, found float64"),
    "a late start": ("packed_delta", {"cu_seqlens": lambda a: a + (a == 0)}, "cu_seqlens", "0 first and T ="),
    "an early end": ("packed_delta", {"cu_seqlens": lambda a: a - (a == a[-1])}, "cu_seqlens", "0 first and T ="),
    "an empty document": ("packed_delta", {"cu_seqlens": lambda a: a * (a == a[-1])}, "cu_seqlens", "at least 1 token, found 0, 0"),
    "documents in disorder": ("packed_delta", {"cu_seqlens": lambda a: a[[0, 2, 1, *range(3, len(a))]]}, "cu_seqlens", "at least 1 token"),
    "labels in a row": ("packed_delta", {"labels": lambda _: 1}, "labels", "leave it out"),
    "tokens without heads": ("heads_mesa", {"v": lambda a: a[:, :, 0]}, "v", "expected shape (B,T,H,E)"),
    "one ridge for all heads": ("heads_mesa", {"ridge": lambda a: a[0]}, "ridge", "expected shape (H,K)"),
    "a ridge of 0 in one head": ("heads_mesa", {"ridge": lambda a: a * (np.arange(len(a)) > 0)[:, None]}, "ridge", "> 0, found 0.0"),
    "heads that cannot be shared": ("heads_mesa", {n: lambda a: np.concatenate([a] * 5, axis=2) for n in "qk"}, "q", "G heads that divide"),
    "keys of other heads": ("heads_mesa", {"k": lambda a: np.concatenate([a] * 5, axis=2)}, "k", "expected shape (B,T,G,K)"),
    "another grouping": ("heads_mesa", {"grouping": lambda _: "blocks"}, "grouping", "neighbours, strided, found 'blocks'"),
    "boundaries among heads": ("heads_mesa", {"cu_seqlens": lambda _: [0, 1]}, "cu_seqlens", "leave it out"),
}


@pytest.mark.parametrize("wrong", BAD)
def test_a_bad_case_is_refused_by_name(wrong: str) -> None:
    """ValueError that starts with the array's name and says what was found."""
    kind, changes, name, words = BAD[wrong]
    case = draw(index(kind), B=3)
    with pytest.raises(ValueError) as error:
        golden.run_case(case | {n: np.asarray(change(case.get(n))) for n, change in changes.items()})
    assert str(error.value).startswith(f"{name}: expected") and words in str(error.value)


@pytest.mark.parametrize("kind", KINDS)
def test_missing_arrays_are_named(kind: str) -> None:
    """Every input of every kind."""
    case = draw(index(kind))
    assert case.keys() == set(golden.INPUTS[kind])
    for name in golden.INPUTS[kind]:
        with pytest.raises(ValueError, match=f"^{name}: expected .* found nothing"):
            golden.run_case({n: a for n, a in case.items() if n != name})


def test_more_documents_than_tokens_cannot_be_drawn() -> None:
    """Sizes that do not go together are refused before anything is written."""
    with pytest.raises(ValueError, match="documents of at least 1 token, found B=4, T=3"):
        draw(PACKED[0], B=4, T=3)
    with pytest.raises(ValueError, match="G heads that divide H = 5, found G = 2"):
        golden.run_case(draw(HEADS[0], G=2, H=5))
