"""What can be checked: every update rule, the attention ops, the short convolution, the l2 norm and
the fast weight block, each with its arrays in the order of a kernel's arguments and the exact
answers to a case.

Arrays here are of one head. Letters of shapes: B sequences, T tokens, K key channels, E value
channels; N steps of a DeltaProduct; I features, F the hidden width, D the width and V classes of
the block; J taps of a convolution over P = J - 1 earlier tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ..backend import Array, host
from ..fwl import FastSettings, fast_block_bwd, fast_block_fwd
from ..ops.attention import attention_bwd, attention_fwd
from ..ops.l2norm import l2norm_bwd, l2norm_fwd
from ..ops.linear_attention import linear_attention_recurrent_bwd, linear_attention_recurrent_fwd
from ..ops.masked_attention import masked_attention_bwd, masked_attention_fwd
from ..ops.short_conv import short_conv_bwd, short_conv_fwd
from ..sequential import sequential_bwd, sequential_fwd
from ..slow_block import FastParameters, SlowParameters
from ..verify import golden_rules

Arrays = dict[str, Any]
Settings = dict[str, Any]


class Subject(NamedTuple):
    """One function that kernels compute."""

    name: str
    tokens: dict[str, str]  # arrays with a row per token, and the letters of their shapes
    shared: dict[str, str]  # parameters: one for all tokens, one per head in layouts with heads
    state: dict[str, str]  # what comes in and goes out; empty: there is none
    arguments: tuple[Any, ...]  # of a kernel, in order, the state not among them: names, or
    # (type, names) for arrays that come as one tuple
    state_type: Callable | None  # of its arrays; None: the state is a single array
    outputs: dict[str, str]  # what a kernel returns before the state
    answers: Callable[[Arrays, Settings], Arrays]
    gate: str = ""  # the fade, which kernels like to take as a logarithm
    read: str = ""  # the only read there is; empty: strict and inclusive
    integers: tuple[str, ...] = ()
    headless: tuple[str, ...] = ()  # arrays that all heads share
    heads: bool = True  # whether layouts with heads make sense
    needs_state: bool = False  # there is no empty one: at W = 0 LayerNorm's slope is 1 / sqrt(eps)

    @property
    def inputs(self) -> dict[str, str]:
        """Everything that comes in, in the order of the gradients."""
        return self.tokens | self.shared | self.state

    @property
    def cotangents(self) -> dict[str, str]:
        """Of the first output and of the state that goes out: together they fix a loss."""
        first = next(iter(self.outputs.items()))
        return dict([first]) | {state_out(name): letters for name, letters in self.state.items()}


def state_out(name: str) -> str:
    """state -> state_out, state_M -> state_out_M"""
    return name.replace("state", "state_out", 1)


# --- the update rules


def _rule(name: str) -> Subject:
    rule = golden_rules.RULES[name]

    def answers(arrays: Arrays, settings: Settings) -> Arrays:
        stale = int(settings["stale"] and "stale" in rule.counts)
        case = arrays | {"kind": name, "read": settings["read"], "stale": stale}
        case["chunk"] = settings["chunk"] if stale else 0
        case["cot_out"] = arrays["cot_out"]
        for state in rule.state:
            case[f"cot_{state}"] = arrays[f"cot_{state_out(state)}"]
        named = ("minibatch", "place", "eps")
        case |= {n: settings[n] for n in named if n in (*rule.counts, *rule.numbers)}
        return golden_rules.answers(case)

    out = rule.tokens["q"][:-1] + rule.tokens["v"][-1]
    return Subject(
        name, rule.tokens, rule.shared, rule.state, (*rule.tokens, *rule.shared), rule.state_type,
        {"out": out if out.count("T") else "BTE"}, answers, gate=rule.gate,
        needs_state="gain" in rule.shared,
    )  # fmt: skip


# --- the attention ops

_QKV = {"q": "BTK", "k": "BTK", "v": "BTE"}


def _linear_attention(arrays: Arrays, settings: Settings) -> Arrays:
    inputs = [arrays[n] for n in ("q", "k", "v", "keep", "state")]
    (out, state), res = linear_attention_recurrent_fwd(*inputs)
    g = linear_attention_recurrent_bwd(arrays["cot_out"], arrays["cot_state_out"], res)
    gradients = zip(("q", "k", "v", "keep", "state"), g, strict=True)
    return {"out": out, "state_out": state} | {f"g_{n}": a for n, a in gradients}


def _masked_attention(arrays: Arrays, settings: Settings) -> Arrays:
    out, res = masked_attention_fwd(*(arrays[n] for n in ("q", "k", "v", "mask")))
    gradients = masked_attention_bwd(arrays["cot_out"], res)
    return {"out": out} | {f"g_{n}": a for n, a in zip("qkv", gradients, strict=True)}


def _attention(arrays: Arrays, settings: Settings) -> Arrays:
    q, k, v = (arrays[n][:, None, ...] for n in "qkv")  # (B,1,T,K)
    out, res = attention_fwd(q, k, v, settings["window"])
    gradients = attention_bwd(arrays["cot_out"][:, None, ...], res)
    found = {"out": out} | {f"g_{n}": a for n, a in zip("qkv", gradients, strict=True)}
    return {name: a[:, 0, ...] for name, a in found.items()}


def _short_conv(arrays: Arrays, settings: Settings) -> Arrays:
    (out, state), res = short_conv_fwd(arrays["x"], arrays["w"], arrays["state"])
    gradients = short_conv_bwd(arrays["cot_out"], arrays["cot_state_out"], res)
    named = zip(("x", "w", "state"), gradients, strict=True)
    return {"out": out, "state_out": state} | {f"g_{n}": a for n, a in named}


def _l2norm(arrays: Arrays, settings: Settings) -> Arrays:
    out, res = l2norm_fwd(arrays["x"], settings["eps"])
    return {"out": out, "g_x": l2norm_bwd(arrays["cot_out"], res)}


# --- the fast weight block

_SLOW = {
    **{"W1": "IF", "b1": "F", "W2": "FD", "b2": "D", "gain": "D", "bias": "D"},
    **{"U": "DV", "c": "V"},
}
_STATE = {f"state_{n}": f"B{letters}" for n, letters in _SLOW.items() if n not in "Uc"}
_ETA = tuple(f"eta_{name}" for name in FastParameters._fields)


def _block(arrays: Arrays, settings: Settings) -> Arrays:
    (logits, logits_slow, after), res = fast_block_fwd(*_given(arrays, settings))
    found = {"logits": logits, "logits_slow": logits_slow}
    return found | _state_and_gradients(arrays, after, fast_block_bwd, res)


def _sequential(arrays: Arrays, settings: Settings) -> Arrays:
    how = {"segment": settings["minibatch"], "within": settings["within"]}
    (logits, after), res = sequential_fwd(*_given(arrays, settings), **how)
    return {"logits": logits} | _state_and_gradients(arrays, after, sequential_bwd, res)


def _given(arrays: Arrays, settings: Settings) -> tuple:
    """What the block takes, with one segment after the other too."""
    fast = FastSettings(eps=settings["eps"], first_order=settings["first_order"])
    slow = SlowParameters(*(arrays[n] for n in _SLOW))
    eta, state = (FastParameters(*(arrays[n] for n in names)) for names in (_ETA, _STATE))
    data = (arrays["x"], arrays["labels"], arrays["weights"])
    return *data, slow, eta, arrays["decay"], fast, state


def _state_and_gradients(
    arrays: Arrays, after: FastParameters, bwd: Callable, res: NamedTuple
) -> Arrays:
    """The state that is left, and the gradients that ``bwd`` gives, by their names."""
    cotangent = FastParameters(*(arrays[f"cot_{state_out(n)}"] for n in _STATE))
    g_x, g_slow, g_eta, g_decay, g_state = bwd(arrays["cot_logits"], cotangent, res)
    return {
        **{state_out(n): a for n, a in zip(_STATE, after, strict=True)},
        "g_x": g_x,
        **{f"g_{n}": g for n, g in zip(_SLOW, g_slow, strict=True)},
        **{f"g_{n}": g for n, g in zip(_ETA, g_eta, strict=True)},
        "g_decay": g_decay,
        **{f"g_{n}": g for n, g in zip(_STATE, g_state or (), strict=True)},
    }


_FAST_BLOCK = Subject(
    "fast_block", {"x": "BTI", "labels": "BT", "weights": "BT"},
    _SLOW | dict.fromkeys((*_ETA, "decay"), ""), _STATE,
    ("x", "labels", "weights", (SlowParameters, tuple(_SLOW)), (FastParameters, _ETA), "decay"),
    FastParameters, {"logits": "BTV", "logits_slow": "BTV"}, _block,
    read="strict", integers=("labels",), heads=False,
)  # fmt: skip
SUBJECTS = {name: _rule(name) for name in golden_rules.RULES} | {
    "linear_attention": Subject(
        "linear_attention", _QKV, {"keep": ""}, {"state": "BKE"}, ("q", "k", "v", "keep"), None,
        {"out": "BTE"}, _linear_attention, gate="keep", read="strict",
    ),
    "masked_attention": Subject(
        "masked_attention", _QKV, {"mask": "TT"}, {}, ("q", "k", "v", "mask"), None,
        {"out": "BTE"}, _masked_attention, read="strict", headless=("mask",),
    ),
    "attention": Subject(
        "attention", _QKV | {"v": "BTK"}, {}, {}, ("q", "k", "v"), None,
        {"out": "BTK"}, _attention, read="inclusive",
    ),
    "short_conv": Subject(
        "short_conv", {"x": "BTD"}, {"w": "JD"}, {"state": "BPD"}, ("x", "w"), None,
        {"out": "BTD"}, _short_conv, read="inclusive", heads=False,
    ),
    "l2norm": Subject(
        "l2norm", {"x": "BTK"}, {}, {}, ("x",), None, {"out": "BTK"}, _l2norm, read="inclusive",
    ),
    "fast_block": _FAST_BLOCK,
    "sequential_block": _FAST_BLOCK._replace(
        name="sequential_block", outputs={"logits": "BTV"}, answers=_sequential
    ),
}  # fmt: skip


# other names of the same functions, arrays in the same order
ALIASES = {"momentum_delta": "titans"}


def subject(name: str) -> Subject:
    """The entry of that name. Raises ValueError listing the names there are."""
    name = ALIASES.get(name, name)
    if name not in SUBJECTS:
        raise ValueError(f"the rule must be one of {', '.join(SUBJECTS)}, got {name!r}")
    return SUBJECTS[name]


def zeros(subject: Subject, arrays: Arrays) -> Arrays:
    """The same arrays with an empty memory."""
    return arrays | {name: host.zeros_like(arrays[name]) for name in subject.state}


def tokens_of(subject: Subject, arrays: Arrays, part: slice) -> Arrays:
    """The tokens of a slice, their cotangents too; parameters and states as they are."""

    def cut(a: Array, letters: str) -> Array:
        for axis, letter in enumerate(letters):
            a = a[(slice(None),) * axis + (part,)] if letter == "T" else a
        return a

    found = {n: cut(arrays[n], letters) for n, letters in subject.inputs.items()}
    return found | {f"cot_{n}": cut(arrays[f"cot_{n}"], s) for n, s in subject.cotangents.items()}
