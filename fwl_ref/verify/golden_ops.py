"""Golden cases of two ops that kernels fuse: the l2 norm and the causal short convolution, with the
adjoints of both orders. ``golden.py`` has the rest.

``l2norm``: ``x`` (B,T,K) and ``eps``, which stands under the root. ``short_conv``: ``x`` (B,T,D),
the taps ``w`` (J,D), the present token's last, and ``state``, the P = J - 1 inputs before, (B,P,D).
Cotangents fix a loss, and those of its gradients a second one:

    loss = sum(out * cot_out) + sum(state_out * cot_state)
    loss_2 = sum(g_x * cot_g_x) + ...                           over every gradient g_NAME

Answers: ``out``, ``state_out``, ``loss``, ``g_NAME``, the gradient of ``loss``, for every input,
``loss_2``, and ``g2_NAME``, the gradient of ``loss_2``, for every input and for the cotangents
``cot_out`` and ``cot_state``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ..backend import Array, host, namespace
from ..ops.l2norm import l2norm_bwd, l2norm_bwd_bwd, l2norm_fwd
from ..ops.short_conv import short_conv_bwd, short_conv_bwd_bwd, short_conv_fwd
from .golden_fields import Arrays, Sizes, number, real, refuse


class OpArrays(NamedTuple):
    """What a case of one op holds, with the letters of the shapes."""

    inputs: dict[str, str]  # in the order of the op's arguments
    outputs: dict[str, str]  # by the names of their cotangents: state stands for state_out
    passes: Callable  # (case) -> outputs, gradients, second gradients as ``second`` has them
    numbers: tuple[str, ...] = ()

    @property
    def second(self) -> tuple[str, ...]:
        """What has a gradient of the second order."""
        return (*self.inputs, *(f"cot_{name}" for name in self.outputs))

    @property
    def arrays(self) -> dict[str, str]:
        """All float64 arrays, cotangents included."""
        cotangents = {f"cot_{name}": letters for name, letters in self.outputs.items()}
        second = {f"cot_g_{name}": letters for name, letters in self.inputs.items()}
        return self.inputs | cotangents | second


def _l2norm(case: dict[str, Any]) -> tuple:
    out, res = l2norm_fwd(case["x"], case["eps"])
    g_cot_out, g_x = l2norm_bwd_bwd(case["cot_g_x"], case["cot_out"], res)
    return (out,), (l2norm_bwd(case["cot_out"], res),), (g_x, g_cot_out)


def _short_conv(case: dict[str, Any]) -> tuple:
    outputs, res = short_conv_fwd(case["x"], case["w"], case["state"])
    gradients = short_conv_bwd(case["cot_out"], case["cot_state"], res)
    g_dx, g_dw, g_dstate = (case[f"cot_g_{name}"] for name in ("x", "w", "state"))
    cotangents, *inputs = short_conv_bwd_bwd(g_dx, g_dw, g_dstate, case["cot_out"], res)
    return outputs, gradients, (*inputs, *cotangents)


OPS = {
    "l2norm": OpArrays({"x": "BTK"}, {"out": "BTK"}, _l2norm, ("eps",)),
    "short_conv": OpArrays(
        {"x": "BTD", "w": "JD", "state": "BPD"}, {"out": "BTD", "state": "BPD"}, _short_conv
    ),
}


def _answer(name: str) -> str:
    """out -> out, state -> state_out"""
    return name if name == "out" else f"{name}_out"


INPUTS = {kind: (*op.arrays, *op.numbers, "kind") for kind, op in OPS.items()}
ANSWERS = {
    kind: (
        *map(_answer, op.outputs), "loss", *(f"g_{n}" for n in op.inputs),
        "loss_2", *(f"g2_{n}" for n in op.second),
    )
    for kind, op in OPS.items()
}  # fmt: skip
KINDS = tuple(OPS)


def letters(kind: str) -> set[str]:
    """The sizes that a case of this kind has; P is J - 1."""
    return set("".join(OPS[kind].arrays.values())) - {"P"}


def names(kind: str, arrays: Arrays) -> dict[str, str]:
    """Every input, and what it is called in a file: the same."""
    return {name: name for name in INPUTS[kind]}


def read_case(kind: str, arrays: Arrays) -> dict[str, Any]:
    """The inputs of a file, checked and converted. Raises ValueError naming the array."""
    op, sizes = OPS[kind], Sizes()
    case: dict[str, Any] = {"kind": kind}
    case |= {name: real(arrays, name, shape, sizes) for name, shape in op.arrays.items()}
    case |= {name: number(arrays, name) for name in op.numbers}
    if "eps" in case and case["eps"] < 0:
        refuse("eps", "a number >= 0", case["eps"])
    if "J" in sizes and sizes["P"] != sizes["J"] - 1:
        refuse("state", f"P = J - 1 = {sizes['J'] - 1} inputs in shape (B,P,D)", sizes["P"])
    return case


def answers(case: dict[str, Any]) -> dict[str, Array]:
    """The answers to a case that was checked."""
    op = OPS[case["kind"]]
    outputs, gradients, second = op.passes(case)

    def loss(found: tuple[Array, ...], cotangents: list[str]) -> Array:
        pairs = zip(found, cotangents, strict=True)
        return sum(namespace(a).sum(a * case[name]) for a, name in pairs)

    return {
        **{_answer(name): a for name, a in zip(op.outputs, outputs, strict=True)},
        "loss": loss(outputs, [f"cot_{name}" for name in op.outputs]),
        **{f"g_{name}": g for name, g in zip(op.inputs, gradients, strict=True)},
        "loss_2": loss(gradients, [f"cot_g_{name}" for name in op.inputs]),
        **{f"g2_{name}": g for name, g in zip(op.second, second, strict=True)},
    }


# Varied cases
# ----------------------------------------------------------------------------------------


class Plan(NamedTuple):
    """What is fixed about a case before its numbers are drawn."""

    kind: str
    length: int  # T
    eps: float = 0.0
    taps: int = 0  # J
    zero: tuple[str, ...] = ()  # arrays that are 0


# Together: an epsilon that is not small, vectors without a direction, fewer tokens than taps.
PLANS = (
    Plan("l2norm", 7, 1e-6),
    Plan("l2norm", 4, 0.3, zero=("x",)),
    Plan("l2norm", 5, 0.3),
    Plan("short_conv", 2, taps=4),
    Plan("short_conv", 6, taps=1),
    Plan("short_conv", 9, taps=4),
)


def draw_case(plan: Plan, rng: Any, given: Sizes) -> dict[str, Any]:
    """The inputs of a case: sizes that are not given and numbers from ``rng``, the rest from
    ``plan``.
    """
    limits = {"B": (1, 4), "K": (2, 6), "D": (1, 5)}
    sizes = {letter: int(rng.integers(*bounds)) for letter, bounds in limits.items()}
    sizes |= {"J": plan.taps} | given | {"T": plan.length}
    sizes["P"], op = sizes["J"] - 1, OPS[plan.kind]
    case: dict[str, Any] = {
        name: rng.standard_normal([sizes[letter] for letter in shape])
        for name, shape in op.arrays.items()
    }
    case |= {name: host.zeros_like(case[name]) for name in plan.zero}
    return case | {"kind": plan.kind} | {name: getattr(plan, name) for name in op.numbers}


def describe(plan: Plan, case: Arrays) -> str:
    """A name that says what is inside."""
    zero = "".join(f"_no_{name}" for name in plan.zero)
    how = f"taps{case['w'].shape[0]}" if "w" in case else f"eps{plan.eps:g}"
    b, t, d = case["x"].shape
    letter = "D" if "w" in case else "K"
    return f"{plan.kind}_{how}{zero}_B{b}T{t}{letter}{d}"
