"""Golden cases of the update rules: which arrays a case of each rule holds, and the answers to it.
``golden.py`` has the rest; ``golden_block.py`` is the twin for the fast weight block, and
``golden_around.py`` puts packed rows and heads around a rule.

Inputs: ``q``, ``k``, ``v``, rates and shared parameters, the state that comes in, ``read``
("strict" or "inclusive"), ``chunk`` (0 = the recurrent form, else tokens per chunk), and the
cotangents ``cot_out`` and ``cot_state``, which fix a loss:

    loss = sum(out * cot_out) + sum(state_out * cot_state)

Answers: ``out``, ``state_out``, ``loss``, and ``g_NAME`` for every input but the cotangents. A
state of several arrays has names of its own for each: ``state_M``, ``cot_state_M``,
``state_out_M``, ``g_state_M``. Rows are tokens and a state is read by q S, (B,K,E).

Some rules say more. Titans has ``stale``: 1 takes the gradients of a chunk at its first memory,
chunk 0 being one chunk then; ``titans_per_chunk`` has ``minibatch`` too, the tokens of one update,
of which the first's momentum and decay count. TTT and Titans with an MLP have ``minibatch``, part
of the function, and ``chunk`` is 0 or equal to it, for the dual form goes by whole mini-batches.
``ttt_linear_under_way`` and ``ttt_mlp_under_way`` are TTT with the reader's ``factor``, in a
mini-batch of which ``place`` tokens are over: ``state_...`` is the network that it began with,
``state_moved_...`` what they have moved it by. Mesa's ``state_H`` is symmetric, and ``g_state_H``
is the gradient for symmetric changes.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

from ..backend import Array, host, namespace
from ..rules import (
    decay,
    delta,
    delta_product,
    dplr,
    gated_delta,
    gated_delta_product,
    gla,
    kda,
    linear,
    longhorn,
    mesa,
    titans,
    titans_mlp,
    titans_per_chunk,
    ttt_linear,
    ttt_mlp,
)
from ..rules.common import READS
from ..rules.documents import documents_bwd, documents_fwd
from ..rules.ttt import UnderWay
from ..tree import leaves
from .golden_fields import Arrays, Sizes, choice, count, number, real, refuse


class RuleArrays(NamedTuple):
    """What a case of one rule holds beside read and chunk, with the letters of the shapes."""

    module: ModuleType  # the rule's file
    tokens: dict[str, str]  # in the order of the rule's arguments
    shared: dict[str, str] = {}  # parameters that all tokens share
    state: dict[str, str] = {"state": "BKE"}
    state_type: Callable | None = None  # of its arrays; None: a single array
    bounds: dict[str, str] = {}  # "> 0" or ">= 0"
    gate: str = ""  # what is left of the memory after a token: kernels like its logarithm
    counts: dict[str, int] = {}  # integers and the least value of each
    numbers: tuple[str, ...] = ()
    function: str = ""  # how the rule's functions begin; empty: with the name of the kind
    keywords: tuple[str, ...] = ()  # tokens that come by keyword

    @property
    def arrays(self) -> dict[str, str]:
        """All float64 arrays, cotangents included."""
        out = self.tokens["q"][:-1] + self.tokens["v"][-1]
        cotangents = {f"cot_{name}": letters for name, letters in self.state.items()}
        return self.tokens | self.shared | self.state | {"cot_out": out} | cotangents

    @property
    def differentiated(self) -> tuple[str, ...]:
        """The inputs that have gradients, in the order of the backward pass."""
        return (*self.tokens, *self.shared, *self.state)


def _under_way(network: Callable) -> Callable:
    """The arrays of two networks -> a mini-batch under way; its place is in the case."""

    def state(*arrays: Array) -> UnderWay:
        half = len(arrays) // 2
        return UnderWay(network(*arrays[:half]), network(*arrays[half:]), None)

    return state


def _titans_mlp_state(*arrays: Array) -> titans_mlp.TitansMLPState:
    """The arrays of two networks -> M and U"""
    M, U = (ttt_mlp.TTTMLPState(*half) for half in (arrays[:4], arrays[4:]))
    return titans_mlp.TitansMLPState(M, U)


def _states(network: dict[str, str], *parts: str) -> dict[str, str]:
    """state_W1, ..., and of what else has the shape of a network state_U_W1, ..."""
    return {f"state_{part}{n}": shape for part in parts for n, shape in network.items()}


_QKV = {"q": "BTK", "k": "BTK", "v": "BTE"}
_TTT: dict[str, Any] = {
    # x + LN(z): keys as wide as values
    "tokens": {"q": "BTE", "k": "BTE", "v": "BTE", "step": "BT"},
    "shared": {"gain": "E", "bias": "E"},
    "counts": {"minibatch": 1},
    "numbers": ("eps",),
}
_LINEAR = {"W": "BEE", "b": "BE"}
_MLP = {"W1": "BEF", "b1": "BF", "W2": "BFE", "b2": "BE"}


_UNDER_WAY: dict[str, Any] = _TTT | {
    "tokens": _TTT["tokens"] | {"factor": "BT"},
    "counts": {"minibatch": 1, "place": 0},
    "keywords": ("factor",),
}
_HEAVY = {"momentum": "BT", "decay": "BT", "step": "BT"}

RULES = {
    "linear": RuleArrays(linear, _QKV),
    "decay": RuleArrays(decay, {**_QKV, "gamma": "BT"}, gate="gamma"),
    "gla": RuleArrays(gla, {**_QKV, "alpha": "BTK"}, gate="alpha"),
    "delta": RuleArrays(delta, {**_QKV, "beta": "BT"}),
    "gated_delta": RuleArrays(gated_delta, {**_QKV, "alpha": "BT", "beta": "BT"}, gate="alpha"),
    "kda": RuleArrays(kda, {**_QKV, "alpha": "BTK", "beta": "BT"}, gate="alpha"),
    "dplr": RuleArrays(dplr, {**_QKV, "alpha": "BTK", "a": "BTK", "b": "BTK"}, gate="alpha"),
    "delta_product": RuleArrays(
        delta_product,
        {"q": "BTK", "k": "BTNK", "v": "BTNE", "beta": "BTN"},
    ),
    "gated_delta_product": RuleArrays(
        gated_delta_product,
        {"q": "BTK", "k": "BTNK", "v": "BTNE", "alpha": "BT", "beta": "BTN"},
        gate="alpha",
    ),
    "longhorn": RuleArrays(longhorn, {**_QKV, "beta": "BT"}, bounds={"beta": ">= 0"}),
    "titans": RuleArrays(
        titans,
        {**_QKV, **_HEAVY},
        state={"state_M": "BKE", "state_U": "BKE"},
        state_type=titans.TitansState,
        counts={"stale": 0},
    ),
    "titans_per_chunk": RuleArrays(
        titans_per_chunk,
        {**_QKV, **_HEAVY},
        state={"state_M": "BKE", "state_U": "BKE"},
        state_type=titans.TitansState,
        counts={"minibatch": 1, "stale": 0},
    ),
    "titans_mlp": RuleArrays(
        titans_mlp,
        state=_states(_MLP, "", "U_"),
        state_type=_titans_mlp_state,
        **(_TTT | {"tokens": {"q": "BTE", "k": "BTE", "v": "BTE", **_HEAVY}}),
    ),
    "ttt_linear": RuleArrays(
        ttt_linear,
        state=_states(_LINEAR, ""),
        state_type=ttt_linear.TTTLinearState,
        **_TTT,
    ),
    "ttt_mlp": RuleArrays(
        ttt_mlp,
        state=_states(_MLP, ""),
        state_type=ttt_mlp.TTTMLPState,
        **_TTT,
    ),
    "ttt_linear_under_way": RuleArrays(
        ttt_linear,
        state=_states(_LINEAR, "", "moved_"),
        state_type=_under_way(ttt_linear.TTTLinearState),
        function="ttt_linear",
        **_UNDER_WAY,
    ),
    "ttt_mlp_under_way": RuleArrays(
        ttt_mlp,
        state=_states(_MLP, "", "moved_"),
        state_type=_under_way(ttt_mlp.TTTMLPState),
        function="ttt_mlp",
        **_UNDER_WAY,
    ),
    "mesa": RuleArrays(
        mesa,
        {**_QKV, "keep": "BT", "weight": "BT"},
        shared={"ridge": "K"},
        state={"state_G": "BKE", "state_H": "BKK"},
        state_type=mesa.MesaState,
        bounds={"ridge": "> 0", "keep": ">= 0", "weight": ">= 0"},
        gate="keep",
    ),
}


def after(name: str) -> str:
    """state -> state_out, state_M -> state_out_M"""
    return name.replace("state", "state_out", 1)


INPUTS = {
    kind: (*rule.arrays, *rule.numbers, *rule.counts, "chunk", "read", "kind")
    for kind, rule in RULES.items()
}
ANSWERS = {
    kind: ("out", *map(after, rule.state), "loss", *(f"g_{n}" for n in rule.differentiated))
    for kind, rule in RULES.items()
}
KINDS = tuple(INPUTS)


def letters(kind: str) -> set[str]:
    """The sizes that a case of this kind has."""
    return set("".join(RULES[kind].arrays.values()))


def names(kind: str, arrays: Arrays) -> dict[str, str]:
    """Every input, and what it is called in a file: the same."""
    return {name: name for name in INPUTS[kind]}


def read_case(kind: str, arrays: Arrays, shapes: dict[str, str] | None = None) -> dict[str, Any]:
    """The inputs of a file, checked and converted. Raises ValueError naming the array.

    ``shapes`` : letters of the arrays, where they are not the rule's own
    """
    rule, sizes = RULES[kind], Sizes()
    case: dict[str, Any] = {"kind": kind, "read": choice(arrays, "read", READS)}
    counts = {"chunk": 0, **rule.counts}
    case |= {name: count(arrays, name, least) for name, least in counts.items()}
    case |= {name: number(arrays, name) for name in rule.numbers}
    shapes = shapes or rule.arrays
    case |= {name: real(arrays, name, letters, sizes) for name, letters in shapes.items()}
    _check_ranges(case)
    return case


def _check_ranges(case: dict[str, Any]) -> None:
    """What shapes and types do not say: ranges of rates, flags, a symmetric H."""
    rule, chunk = RULES[case["kind"]], case["chunk"]
    for name, bound in rule.bounds.items():
        outside = case[name] <= 0 if bound == "> 0" else case[name] < 0
        if outside.any():
            refuse(name, f"numbers {bound}", f"{case[name][outside][0]}")
    if case.get("stale", 0) > 1:
        refuse("stale", "0 or 1", case["stale"])
    if _has_dual(case["kind"]) and chunk not in (0, case["minibatch"]):
        refuse("chunk", f"0 or the mini-batch, {case['minibatch']}", chunk)
    if case.get("place", 0) and case["place"] >= case["minibatch"]:
        refuse("place", f"a number below the mini-batch, {case['minibatch']}", case["place"])
    if "eps" in case and not case["eps"] > 0:
        refuse("eps", "a number > 0", case["eps"])
    if "state_H" in case:
        H = case["state_H"]  # (B,K,K)
        skew = host.max(host.abs(H - host.matrix_transpose(H)))
        if skew > 1e-12 * host.max(host.abs(H)):
            found = f"entries that differ by {skew:.3g} from their mirror images"
            refuse("state_H", "symmetric matrices", found)


# Answers
# ----------------------------------------------------------------------------------------


def answers(case: dict[str, Any]) -> dict[str, Array]:
    """The answers to a case that was checked. One with ``lengths`` is a row of documents."""
    rule, form = RULES[case["kind"]], _form(case)
    function = rule.function or case["kind"]
    fwd, bwd = (getattr(rule.module, f"{function}_{form}_{way}") for way in ("fwd", "bwd"))
    tokens = [case[name] for name in rule.tokens if name not in rule.keywords]
    shared = [case[name] for name in rule.shared]
    state = _packed(rule, [case[name] for name in rule.state])
    if "place" in case:
        state = state._replace(place=case["place"])
    cotangents = [case[f"cot_{name}"] for name in rule.state]
    chunk = [case["chunk"] or None] if form in ("stale", "chunked") else []
    named = ("read", "minibatch", "eps", *rule.keywords)
    keywords: dict[str, Any] = {n: case[n] for n in named if n in case}
    if case["kind"] == "mesa" and form == "chunked":  # K would do without rounding
        keywords["iterations"] = 30 + 2 * case["q"].shape[2]

    def read(*arrays: Any) -> Any:
        *tokens, state = arrays
        return fwd(*tokens, *shared, state, *chunk, **keywords)

    given = (case["cot_out"], _packed(rule, cotangents))
    if "lengths" in case:
        (out, state_out), res = documents_fwd(read, tuple(tokens), case["lengths"], state)
        *g_inputs, g_state = documents_bwd(bwd, *given, res)
    else:
        (out, state_out), res = read(*tokens, state)
        *g_inputs, g_state = bwd(*given, res)

    xp, states = namespace(out), _unpacked(rule, state_out)
    gradients = (*g_inputs, *_unpacked(rule, g_state))
    pairs = zip((out, *states), (case["cot_out"], *cotangents), strict=True)
    found = {
        "out": out,
        **{after(name): a for name, a in zip(rule.state, states, strict=True)},
        "loss": sum(xp.sum(a * cotangent) for a, cotangent in pairs),
        **{f"g_{name}": g for name, g in zip(rule.differentiated, gradients, strict=True)},
    }
    if "state_H" in case:
        g_H = found["g_state_H"]
        found["g_state_H"] = 0.5 * (g_H + xp.matrix_transpose(g_H))
    return found


def _form(case: dict[str, Any]) -> str:
    """Which of the rule's forms a case asks for."""
    if case.get("stale"):
        return "stale"
    if not case["chunk"]:
        return "recurrent"
    return "dual" if _has_dual(case["kind"]) else "chunked"


def _has_dual(kind: str) -> bool:
    """Whether the other form goes by whole mini-batches."""
    return hasattr(RULES[kind].module, f"{RULES[kind].function or kind}_dual_fwd")


def _packed(rule: RuleArrays, arrays: list[Array]) -> Any:
    return rule.state_type(*arrays) if rule.state_type else arrays[0]


def _unpacked(rule: RuleArrays, state: Any) -> tuple[Array, ...]:
    """The arrays of a state; the place of one under way is a number."""
    return tuple(a for a in leaves(state) if not isinstance(a, int))


# Varied cases
# ----------------------------------------------------------------------------------------


class Plan(NamedTuple):
    """What is fixed about a case before its numbers are drawn."""

    kind: str
    read: str
    chunk: int
    length: int  # T
    minibatch: int = 0
    stale: int = 0
    place: int = 0
    zero: tuple[str, ...] = ()  # arrays that are 0


# Together: every rule with both reads and both forms, chunks that do not divide T and that exceed
# it, T = 1, empty memories.
PLANS = (
    Plan("linear", "strict", 0, 8),
    Plan("linear", "inclusive", 3, 7, zero=("state",)),
    Plan("decay", "inclusive", 0, 1),
    Plan("decay", "strict", 4, 9),
    Plan("gla", "strict", 0, 5, zero=("state", "cot_state")),
    Plan("gla", "inclusive", 99, 6),
    Plan("delta", "inclusive", 0, 6),
    Plan("delta", "strict", 4, 10),
    Plan("gated_delta", "strict", 0, 6, zero=("state",)),
    Plan("gated_delta", "inclusive", 5, 12),
    Plan("kda", "inclusive", 0, 7),
    Plan("kda", "strict", 4, 10, zero=("state",)),
    Plan("dplr", "strict", 0, 6),
    Plan("dplr", "inclusive", 4, 11),
    Plan("delta_product", "inclusive", 0, 5),
    Plan("delta_product", "strict", 2, 5),
    Plan("gated_delta_product", "strict", 0, 4),
    Plan("gated_delta_product", "inclusive", 3, 7),
    Plan("longhorn", "strict", 0, 7),
    Plan("longhorn", "inclusive", 3, 6),
    Plan("titans", "inclusive", 0, 6, zero=("state_U",)),
    Plan("titans", "strict", 4, 9),
    Plan("titans", "inclusive", 3, 8, stale=1),
    Plan("titans_per_chunk", "inclusive", 0, 7, 3),
    Plan("titans_per_chunk", "strict", 4, 8, 2),
    Plan("titans_per_chunk", "inclusive", 4, 9, 2, stale=1),
    Plan("titans_mlp", "inclusive", 0, 5, 2),
    Plan("titans_mlp", "strict", 3, 7, 3, zero=("state_U_W1", "state_U_b1", "state_U_W2")),
    Plan("ttt_linear", "inclusive", 0, 7, 3),
    Plan("ttt_linear", "strict", 4, 8, 4),
    Plan("ttt_mlp", "inclusive", 0, 5, 2),
    Plan("ttt_mlp", "inclusive", 3, 7, 3),
    Plan("ttt_mlp", "strict", 1, 4, 1),
    Plan("ttt_linear_under_way", "strict", 3, 8, 3, place=1),
    Plan("ttt_linear_under_way", "inclusive", 0, 6, 4, place=3),
    Plan("ttt_mlp_under_way", "strict", 0, 4, 3, place=2),
    Plan("ttt_mlp_under_way", "inclusive", 2, 6, 2, place=1),
    Plan("mesa", "inclusive", 0, 6, zero=("state_G", "state_H")),
    Plan("mesa", "strict", 3, 8),
)
RANGES = {  # of what is not normal
    **dict.fromkeys(("gamma", "alpha", "keep"), (0.3, 1.0)),
    **dict.fromkeys(("beta", "weight"), (0.1, 1.0)),
    "momentum": (0.0, 0.8),
    "decay": (0.0, 0.4),
    "step": (0.05, 0.3),
    "factor": (0.2, 1.2),
    "ridge": (0.5, 1.5),
    "gain": (0.7, 1.3),
}


def draw_case(
    plan: Plan, rng: Any, given: Sizes, shapes: dict[str, str] | None = None
) -> dict[str, Any]:
    """The inputs of a case: sizes that are not given and numbers from ``rng``, the rest from
    ``plan``; ``shapes`` as of ``read_case``.
    """
    limits = {"B": (1, 4), "K": (2, 6), "E": (3, 7), "N": (2, 4), "F": (3, 8)}
    sizes = {letter: int(rng.integers(*bounds)) for letter, bounds in limits.items()} | given
    sizes["T"], rule = plan.length, RULES[plan.kind]
    case: dict[str, Any] = {}
    for name, letters in (shapes or rule.arrays).items():
        shape = [sizes[letter] for letter in letters]
        drawn = name in RANGES
        case[name] = rng.uniform(*RANGES[name], shape) if drawn else rng.standard_normal(shape)
    case["k"] /= case["k"].shape[-1] ** 0.5
    if plan.kind == "dplr":
        case |= erasing(case["a"], case["b"])
    if "state_H" in case:
        H = case["state_H"] @ host.matrix_transpose(case["state_H"])
        case["state_H"] = 0.5 * (H + host.matrix_transpose(H))
    case |= {name: host.zeros_like(case[name]) for name in plan.zero}
    case |= {name: getattr(plan, name) for name in ("kind", "read", "chunk", *rule.counts)}
    return case | dict.fromkeys(rule.numbers, 1e-2)


def erasing(a: Array, b: Array) -> dict[str, Array]:
    """a of length 1 and b = -a times a rate in (0, 1) per channel, as in RWKV-7, from any a and b

    They take out part of what is recalled, so that a memory does not blow up.
    """
    a = a / host.sqrt(host.sum(a * a, axis=-1, keepdims=True))
    return {"a": a, "b": -a / (1 + host.exp(-b))}


def describe(plan: Plan, case: Arrays) -> str:
    """A name that says what is inside."""
    form = f"chunk{plan.chunk}" if plan.chunk else "recurrent"
    batching = f"_minibatch{plan.minibatch}" if plan.minibatch else ""
    batching += f"_place{plan.place}" if plan.place else ""
    stale = "_stale" if plan.stale else ""
    zero = "".join(f"_no_{name}" for name in plan.zero)
    (b, t, *_, k), e = case["q"].shape, case["v"].shape[-1]
    return f"{plan.kind}_{plan.read}_{form}{batching}{stale}{zero}_B{b}T{t}K{k}E{e}"
