"""Golden cases of what stands around a rule: packed rows and heads. ``golden_rules.py`` has the
rule's own arrays, numbers and answers, and this file what differs.

``packed_RULE`` is one row of B documents, (1,T,...): the state is reset at every boundary. States
are one per document, (B,...), and ``cu_seqlens`` (B+1,) says where documents begin and where the
last one ends: 0, ..., T. None is empty, unless it is the only one.

``heads_RULE`` is a layer of H heads: tokens (B,T,H,...), states (B,H,...), what tokens share
(Mesa's ridge, TTT's norm) once per head, (H,...). Queries and keys have G heads, (B,T,G,...), and
``grouping`` says which heads share one: "neighbours" or "strided" (``rules/heads.py``).

Answers have the names of the rule's, and a gradient the shape of its input.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..backend import Array, host
from ..rules import heads
from . import golden_rules
from .golden_fields import Arrays, Sizes, choice, first, get, refuse
from .golden_rules import RULES

OWN = {"packed": "cu_seqlens", "heads": "grouping"}  # the input that a rule does not have
# a place in a mini-batch is one for all sequences: documents that begin have none
_WITHIN = {
    "packed": [kind for kind, rule in RULES.items() if "place" not in rule.counts],
    "heads": list(RULES),
}
KINDS = tuple(f"{around}_{rule}" for around, rules in _WITHIN.items() for rule in rules)


def _parts(kind: str) -> tuple[str, str]:
    """packed_gated_delta -> packed, gated_delta"""
    around, rule = kind.split("_", 1)
    return around, rule


INPUTS = {k: (*golden_rules.INPUTS[_parts(k)[1]], OWN[_parts(k)[0]]) for k in KINDS}
ANSWERS = {k: golden_rules.ANSWERS[_parts(k)[1]] for k in KINDS}


def _shapes(kind: str) -> dict[str, str]:
    """The letters of a case's arrays: the rule's, packed or with heads."""
    around, rule = _parts(kind)
    change = _one_row if around == "packed" else _with_heads
    return {name: change(name, letters) for name, letters in RULES[rule].arrays.items()}


def _one_row(name: str, letters: str) -> str:
    """BTK -> 1TK"""
    return f"1{letters[1:]}" if letters.startswith("BT") else letters


def _with_heads(name: str, letters: str) -> str:
    """BTK -> BTHK, of q and k BTGK; BKE -> BHKE, K -> HK"""
    if letters.startswith("BT"):
        return f"BT{'G' if name in ('q', 'k') else 'H'}{letters[2:]}"
    return f"BH{letters[1:]}" if letters.startswith("B") else f"H{letters}"


def letters(kind: str) -> set[str]:
    """The sizes that a case of this kind has."""
    return set("".join(_shapes(kind).values())) - {"1"}


def names(kind: str, arrays: Arrays) -> dict[str, str]:
    """Every input, and what it is called in a file: the same."""
    return {name: name for name in INPUTS[kind]}


def read_case(kind: str, arrays: Arrays) -> dict[str, Any]:
    """The inputs of a file, checked and converted. Raises ValueError naming the array."""
    around, rule = _parts(kind)
    case = golden_rules.read_case(rule, arrays, _shapes(kind)) | {"kind": kind}
    if around == "packed":
        documents = len(case[f"cot_{next(iter(RULES[rule].state))}"])
        return case | {"cu_seqlens": _boundaries(arrays, documents, case["q"].shape[1])}
    groups, of = case["q"].shape[2], case["cot_out"].shape[2]
    if of % groups:
        refuse("q", f"G heads that divide H = {of}", f"G = {groups}")
    return case | {"grouping": choice(arrays, "grouping", heads.GROUPINGS)}


def _boundaries(arrays: Arrays, documents: int, length: int) -> tuple[int, ...]:
    """``cu_seqlens``: from 0 to T, one more than documents, in increasing order."""
    found = get(arrays, "cu_seqlens")
    if found.shape != (documents + 1,):
        refuse("cu_seqlens", f"shape (B+1,) = ({documents + 1},)", found.shape)
    if found.dtype.kind not in "iu":
        refuse("cu_seqlens", "integers", found.dtype)
    ends = tuple(int(place) for place in found)
    if ends[0] != 0 or ends[-1] != length:
        refuse("cu_seqlens", f"0 first and T = {length} last", f"{ends[0]} and {ends[-1]}")
    short = host.asarray([b <= a for a, b in zip(ends, ends[1:], strict=False)])
    if short.any() and documents > 1:
        (i,) = first(short)
        refuse("cu_seqlens", "documents of at least 1 token", f"{ends[i]}, {ends[i + 1]}")
    return ends


# Answers
# ----------------------------------------------------------------------------------------


def answers(case: dict[str, Any]) -> dict[str, Array]:
    """The answers to a case that was checked."""
    around, rule = _parts(case["kind"])
    case = case | {"kind": rule}
    return _packed(case) if around == "packed" else _heads(case)


def _packed(case: dict[str, Any]) -> dict[str, Array]:
    ends = case["cu_seqlens"]
    lengths = [b - a for a, b in zip(ends, ends[1:], strict=False)]
    return golden_rules.answers(case | ({"lengths": [lengths]} if sum(lengths) else {}))


def _heads(case: dict[str, Any]) -> dict[str, Array]:
    rule, grouping = RULES[case["kind"]], case["grouping"]
    (batch, _, groups), of = case["q"].shape[:3], case["cot_out"].shape[2]
    letters = rule.arrays | {golden_rules.after(n): shape for n, shape in rule.state.items()}
    letters["out"] = letters["cot_out"]

    def fold(name: str) -> Array:
        a = case[name]
        if not letters[name].startswith("B"):
            return heads.per_head(a, batch)
        a = heads.share(a, of, grouping=grouping) if name in ("q", "k") else a
        return heads.fold(a, _axis(letters[name]))

    def unfold(name: str, a: Array) -> Array:
        source = name.removeprefix("g_")
        if not letters[source].startswith("B"):
            return heads.per_head_bwd(a, of)
        a = heads.unfold(a, of, _axis(letters[source]))
        return heads.share_bwd(a, groups, grouping=grouping) if source in ("q", "k") else a

    found = golden_rules.answers(case | {name: fold(name) for name in rule.arrays})
    return {name: a if name == "loss" else unfold(name, a) for name, a in found.items()}


def _axis(letters: str) -> int:
    """Where heads stand: behind the tokens, if there are any."""
    return 2 if letters.startswith("BT") else 1


# Varied cases
# ----------------------------------------------------------------------------------------


class Plan(NamedTuple):
    """What is fixed about a case before its numbers are drawn."""

    kind: str
    rule: golden_rules.Plan  # what is fixed about the rule's part
    length: int  # T, of all documents together
    grouping: str


# Every rule packed and with heads: the last of its own plans whose mini-batch is not one token,
# states never empty; rows are longer, for they are of several documents. Heads share in either
# way, in turns.
_RULE = {plan.kind: plan._replace(zero=()) for plan in golden_rules.PLANS if plan.minibatch != 1}


def _plan(kind: str, i: int) -> Plan:
    around, name = _parts(kind)
    rule = _RULE[name]
    length = 2 * rule.length + 1 if around == "packed" else rule.length
    return Plan(kind, rule, length, heads.GROUPINGS[i % 2])


PLANS = tuple(_plan(kind, i) for i, kind in enumerate(KINDS))


def draw_case(plan: Plan, rng: Any, given: Sizes) -> dict[str, Any]:
    """The inputs of a case: sizes that are not given and numbers from ``rng``, the rest from
    ``plan``.
    """
    around, _ = _parts(plan.kind)
    groups = given.get("G", given.get("H", int(rng.integers(1, 3))))
    sizes = {"1": 1, "G": groups, "H": groups * int(rng.integers(2, 4))}
    if around == "packed":
        sizes["B"] = min(int(rng.integers(2, 5)), max(plan.length, 1))
    rule = plan.rule._replace(length=plan.length)
    case = golden_rules.draw_case(rule, rng, sizes | given, _shapes(plan.kind))
    case["kind"] = plan.kind
    if around == "heads":
        return case | {"grouping": plan.grouping}
    documents = len(case[f"cot_{next(iter(RULES[rule.kind].state))}"])
    if documents > max(plan.length, 1):
        refuse("cu_seqlens", "documents of at least 1 token", f"B={documents}, T={plan.length}")
    inner = 1 + rng.permutation(max(plan.length - 1, 0))[: documents - 1]
    return case | {"cu_seqlens": [0, *sorted(inner), plan.length]}


def describe(plan: Plan, case: Arrays) -> str:
    """A name that says what is inside."""
    plain = golden_rules.describe(plan.rule._replace(kind=plan.kind), case)
    if "cu_seqlens" in case:
        return f"{plain}_documents{len(case['cu_seqlens']) - 1}"
    return f"{plain}_H{case['cot_out'].shape[2]}G{case['q'].shape[2]}_{plan.grouping}"
