"""Golden cases of the update rules: which arrays a case of each rule holds, and the answers to it.
``verify/golden.py`` has the rest.

Inputs: ``q``, ``k``, ``v``, rates and shared parameters, the state that comes in, ``read``
("strict" or "inclusive"), ``chunk`` (0 = the recurrent form, else tokens per chunk), and the
cotangents ``cot_out`` and ``cot_state``, which fix a loss:

    loss = sum(out * cot_out) + sum(state_out * cot_state)

Answers: ``out``, ``state_out``, ``loss``, and ``g_NAME`` for every input but the cotangents. A
state of several arrays has names of its own for each: ``state_M``, ``cot_state_M``,
``state_out_M``, ``g_state_M``. Rows are tokens and a state is read by q S, (B,K,E).

Two rules say more. Titans has ``stale``: 1 takes the gradients of a chunk at its first memory,
chunk 0 being one chunk then. TTT has ``minibatch``, part of the function, and ``chunk`` is 0 or
equal to it, for the dual form goes by whole mini-batches. Mesa's ``state_H`` is symmetric, and
``g_state_H`` is the gradient for symmetric changes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..backend import Array, host, namespace
from ..rules import (
    decay,
    delta,
    delta_product,
    gated_delta,
    gla,
    linear,
    longhorn,
    mesa,
    titans,
    ttt_linear,
    ttt_mlp,
)


class RuleArrays(NamedTuple):
    """What a case of one rule holds beside read, chunk and cotangents, with the letters of the
    shapes.
    """

    module: Any  # the rule's file
    tokens: dict[str, str]  # in the order of the rule's arguments
    shared: dict[str, str] = {}  # parameters that all tokens share
    state: dict[str, str] = {"state": "BKE"}
    state_type: type | None = None  # None: a single array
    bounds: dict[str, str] = {}  # "> 0" or ">= 0"
    logs: str = ""  # the rate whose logarithm the chunked form takes
    counts: dict[str, int] = {}  # integers and the least value of each
    numbers: tuple[str, ...] = ()

    @property
    def arrays(self) -> dict[str, str]:
        """All float64 arrays, cotangents included."""
        out = self.tokens["q"][:-1] + self.tokens["v"][-1]
        cotangents = {"cot_out": out} | {
            f"cot_{name}": letters for name, letters in self.state.items()
        }
        return self.tokens | self.shared | self.state | cotangents

    @property
    def answers(self) -> tuple[str, ...]:
        """The names of the answers."""
        return (
            "out",
            *map(_after, self.state),
            "loss",
            *(f"g_{name}" for name in (*self.tokens, *self.shared, *self.state)),
        )


_QKV = {"q": "BTK", "k": "BTK", "v": "BTE"}
_SQUARE = {"q": "BTE", "k": "BTE", "v": "BTE", "step": "BT"}  # x + LN(z): keys as wide as values
_NORM = {"gain": "E", "bias": "E"}
_TTT = {"counts": {"minibatch": 1}, "numbers": ("eps",)}

RULES = {
    "linear": RuleArrays(linear, _QKV),
    "decay": RuleArrays(decay, _QKV | {"gamma": "BT"}, logs="gamma"),
    "gla": RuleArrays(gla, _QKV | {"alpha": "BTK"}, logs="alpha"),
    "delta": RuleArrays(delta, _QKV | {"beta": "BT"}),
    "gated_delta": RuleArrays(gated_delta, _QKV | {"alpha": "BT", "beta": "BT"}, logs="alpha"),
    "delta_product": RuleArrays(
        delta_product, {"q": "BTK", "k": "BTNK", "v": "BTNE", "beta": "BTN"}
    ),
    "longhorn": RuleArrays(longhorn, _QKV | {"beta": "BT"}, bounds={"beta": ">= 0"}),
    "titans": RuleArrays(
        titans,
        _QKV | {"momentum": "BT", "decay": "BT", "step": "BT"},
        state={"state_M": "BKE", "state_U": "BKE"},
        state_type=titans.TitansState,
        counts={"stale": 0},
    ),
    "ttt_linear": RuleArrays(
        ttt_linear,
        _SQUARE,
        _NORM,
        {"state_W": "BEE", "state_b": "BE"},
        ttt_linear.TTTLinearState,
        **_TTT,
    ),
    "ttt_mlp": RuleArrays(
        ttt_mlp,
        _SQUARE,
        _NORM,
        {"state_W1": "BEF", "state_b1": "BF", "state_W2": "BFE", "state_b2": "BE"},
        ttt_mlp.TTTMLPState,
        **_TTT,
    ),
    "mesa": RuleArrays(
        mesa,
        _QKV | {"keep": "BT", "weight": "BT"},
        {"ridge": "K"},
        {"state_G": "BKE", "state_H": "BKK"},
        mesa.MesaState,
        bounds={"ridge": "> 0", "keep": ">= 0", "weight": ">= 0"},
        logs="keep",
    ),
}


def check_rule_case(case: dict[str, Any]) -> None:
    """What shapes and types do not say: ranges of rates, flags, a symmetric H. Raises ValueError
    naming the array.
    """
    rule, chunk = RULES[case["kind"]], case["chunk"]
    bounds = rule.bounds | ({rule.logs: "> 0"} if rule.logs and chunk else {})
    for name, bound in bounds.items():
        outside = case[name] <= 0 if bound == "> 0" else case[name] < 0
        if outside.any():
            why = (
                ": the chunked form takes logarithms, chunk 0 does not"
                if name == rule.logs and bound != rule.bounds.get(name)
                else ""
            )
            raise ValueError(
                f"{name}: expected numbers {bound}, found {case[name][outside][0]}{why}"
            )
    if case.get("stale", 0) > 1:
        raise ValueError(f"stale: expected 0 or 1, found {case['stale']}")
    if "minibatch" in case and chunk not in (0, case["minibatch"]):
        raise ValueError(f"chunk: expected 0 or the mini-batch, {case['minibatch']}, found {chunk}")
    if "eps" in case and not case["eps"] > 0:
        raise ValueError(f"eps: expected a number > 0, found {case['eps']}")
    if "state_H" in case:
        H = case["state_H"]  # (B,K,K)
        skew = host.max(host.abs(H - host.matrix_transpose(H)))
        if skew > 1e-12 * host.max(host.abs(H)):
            raise ValueError(
                f"state_H: expected symmetric matrices, found entries that differ by {skew:.3g} from their mirror images"
            )


def rule_answers(p: dict[str, Any]) -> dict[str, Array]:
    """The answers to a case that was checked."""
    rule, chunk = RULES[p["kind"]], p["chunk"] or None
    inputs = [p[name] for name in (*rule.tokens, *rule.shared)]
    state, cotangent = (
        _packed(rule, [p[f"{prefix}{name}"] for name in rule.state]) for prefix in ("", "cot_")
    )
    keywords: dict[str, Any] = {"read": p["read"]} | {
        name: p[name] for name in ("minibatch", "eps") if name in p
    }
    form = (
        "dual"
        if "minibatch" in p and chunk
        else "stale"
        if p.get("stale")
        else "chunked"
        if chunk
        else "recurrent"
    )
    fwd, bwd = (getattr(rule.module, f"{p['kind']}_{form}_{way}") for way in ("fwd", "bwd"))
    (out, state_out), res = fwd(
        *inputs, state, *((chunk,) if form in ("stale", "chunked") else ()), **keywords
    )
    gradients = bwd(p["cot_out"], cotangent, res)
    xp = namespace(out)
    pairs = [
        (out, p["cot_out"]),
        *zip(_unpacked(rule, state_out), _unpacked(rule, cotangent), strict=True),
    ]
    answers = {"out": out} | {
        _after(name): a for name, a in zip(rule.state, _unpacked(rule, state_out), strict=True)
    }
    answers["loss"] = sum(xp.sum(a * c) for a, c in pairs)
    names = (*rule.tokens, *rule.shared, *rule.state)
    answers |= {
        f"g_{name}": g
        for name, g in zip(names, [*gradients[:-1], *_unpacked(rule, gradients[-1])], strict=True)
    }
    if "state_H" in p:
        answers["g_state_H"] = 0.5 * (
            answers["g_state_H"] + xp.matrix_transpose(answers["g_state_H"])
        )
    return answers


def _after(name: str) -> str:
    """state -> state_out, state_M -> state_out_M"""
    return name.replace("state", "state_out", 1)


def _packed(rule: RuleArrays, arrays: list[Array]) -> Any:
    return rule.state_type(*arrays) if rule.state_type else arrays[0]


def _unpacked(rule: RuleArrays, state: Any) -> tuple[Array, ...]:
    return tuple(state) if rule.state_type else (state,)


# --- varied cases


class RulePlan(NamedTuple):
    """What is fixed about a rule's case before its numbers are drawn."""

    kind: str
    read: str
    chunk: int
    length: int  # T
    minibatch: int = 0
    stale: int = 0
    zero: tuple[str, ...] = ()  # arrays that are 0


RULE_PLANS = (  # together: every rule with both reads and both forms; chunks that do not divide T and that exceed it; T = 1; empty memories
    RulePlan("linear", "strict", 0, 8),
    RulePlan("linear", "inclusive", 3, 7, zero=("state",)),
    RulePlan("decay", "inclusive", 0, 1),
    RulePlan("decay", "strict", 4, 9),
    RulePlan("gla", "strict", 0, 5, zero=("state", "cot_state")),
    RulePlan("gla", "inclusive", 99, 6),
    RulePlan("delta", "inclusive", 0, 6),
    RulePlan("delta", "strict", 4, 10),
    RulePlan("gated_delta", "strict", 0, 6, zero=("state",)),
    RulePlan("gated_delta", "inclusive", 5, 12),
    RulePlan("delta_product", "inclusive", 0, 5),
    RulePlan("delta_product", "strict", 2, 5),
    RulePlan("longhorn", "strict", 0, 7),
    RulePlan("longhorn", "inclusive", 3, 6),
    RulePlan("titans", "inclusive", 0, 6, zero=("state_U",)),
    RulePlan("titans", "strict", 4, 9),
    RulePlan("titans", "inclusive", 3, 8, stale=1),
    RulePlan("ttt_linear", "inclusive", 0, 7, 3),
    RulePlan("ttt_linear", "strict", 4, 8, 4),
    RulePlan("ttt_mlp", "inclusive", 0, 5, 2),
    RulePlan("ttt_mlp", "inclusive", 3, 7, 3),
    RulePlan("ttt_mlp", "strict", 1, 4, 1),
    RulePlan("mesa", "inclusive", 0, 6, zero=("state_G", "state_H")),
    RulePlan("mesa", "strict", 3, 8),
)
RANGES = {
    **dict.fromkeys(("gamma", "alpha", "keep"), (0.3, 1.0)), **dict.fromkeys(("beta", "weight"), (0.1, 1.0)), "momentum": (0.0, 0.8),
    "decay": (0.0, 0.4), "step": (0.05, 0.3), "ridge": (0.5, 1.5), "gain": (0.7, 1.3),
}  # fmt: skip


def draw_rule_case(plan: RulePlan, rng: Any) -> dict[str, Any]:
    """The inputs of a case: sizes and numbers from ``rng``, the rest from ``plan``."""
    sizes = {
        letter: int(rng.integers(low, high))
        for letter, low, high in (("B", 1, 4), ("K", 2, 6), ("E", 3, 7), ("N", 2, 4), ("F", 3, 8))
    }
    sizes["T"], rule = plan.length, RULES[plan.kind]
    case: dict[str, Any] = {}
    for name, letters in rule.arrays.items():
        shape = [sizes[letter] for letter in letters]
        case[name] = (
            rng.uniform(*RANGES[name], shape) if name in RANGES else rng.standard_normal(shape)
        )
    case["k"] /= case["k"].shape[-1] ** 0.5
    if "state_H" in case:
        case["state_H"] = case["state_H"] @ host.matrix_transpose(case["state_H"])
        case["state_H"] = 0.5 * (case["state_H"] + host.matrix_transpose(case["state_H"]))
    case |= {name: host.zeros_like(case[name]) for name in plan.zero}
    case |= {
        name: getattr(plan, name) for name in ("kind", "read", "chunk", *rule.counts)
    } | dict.fromkeys(rule.numbers, 1e-2)
    return {name: host.asarray(a) for name, a in case.items()}


def describe_rule_case(plan: RulePlan, case: dict[str, Array]) -> str:
    """A name that says what is inside."""
    form = f"chunk{plan.chunk}" if plan.chunk else "recurrent"
    extra = (f"_minibatch{plan.minibatch}" if plan.minibatch else "") + (
        "_stale" if plan.stale else ""
    )
    zero = "".join(f"_no_{name}" for name in plan.zero)
    batch, length, width = case["q"].shape
    return f"{plan.kind}_{plan.read}_{form}{extra}{zero}_B{batch}T{length}K{width}E{case['v'].shape[-1]}"
