"""Cases: Hypothesis draws the structure, a seed the numbers.

``Plan`` is a case in a handful of small numbers, the simple ones first, so that shrinking a failure
leads to the smallest case that still fails; ``draw`` makes its arrays.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..backend import Array, BackendError, host
from ..verify.golden_rules import RANGES, erasing
from .compare import rounded
from .layouts import head_letters, is_headless, letters_of
from .options import Options
from .subjects import Arrays, Subject, state_out

GATES = ("spread", "near 1", "near 0")
RATES = ("spread", "some 0", "all 1")
KEYS = ("spread", "nearly collinear", "repeated")


class Plan(NamedTuple):
    """The structure of one case; ``check_kernel(..., plan=Plan(...))`` runs it alone."""

    B: int = 1
    H: int = 1
    tokens: int = 1
    K: int = 1
    E: int = 1
    state: bool = False  # whether one comes in
    gates: str = "spread"
    rates: str = "spread"
    keys: str = "spread"
    seed: int = 0


def lengths(options: Options) -> list[int]:
    """Short ones, the ones around the ends of chunks, and long ones, in increasing order."""
    chunk, unit = options.chunk, options.multiple_of
    around = {chunk * n + d for n in (1, 2) for d in (-1, 0, 1)}
    wanted = {1, 2, 3, 4, 5, chunk // 2, 3 * chunk, 4 * chunk + chunk // 2} | around
    if "T" in options.sizes:
        wanted = {options.sizes["T"]}
    return sorted({-(-n // unit) * unit for n in wanted if n > 0})


def plans(subject: Subject, options: Options) -> Any:
    """The Hypothesis strategy of the cases that the options allow."""
    st = strategies()
    # LayerNorm of two channels gives their signs: its derivative is rounding and nothing else
    least = 3 if subject.needs_state or "eta_W1" in subject.shared else 1
    normed = options.l2norm or subject.name == "l2norm"
    narrow = max(least, 2 if normed else 1)  # one channel by its norm is a sign, likewise

    def size(letter: str, low: int, high: int) -> Any:
        fixed = options.sizes.get(letter)
        return st.just(fixed) if fixed else st.integers(low, high)

    heads = 1 if options.layout == "BTK" else 3
    states = {"optional": (False, True), "always": (True,), "never": (False,)}[options.state]
    if not subject.state or subject.needs_state:
        states = (bool(subject.state),)
    return st.builds(
        Plan,
        B=size("B", 1, 3), H=size("H", 1, heads), tokens=st.sampled_from(lengths(options)),
        K=size("K", narrow, 5), E=size("E", least, 5), state=st.sampled_from(states),
        gates=st.sampled_from(GATES), rates=st.sampled_from(RATES), keys=st.sampled_from(KEYS),
        seed=st.integers(0, 2**16),
    )  # fmt: skip


def strategies() -> Any:
    """Hypothesis's strategies. Raises BackendError saying what to install."""
    try:
        from hypothesis import strategies as st
    except ImportError:
        raise BackendError(
            "check_kernel draws its cases with Hypothesis, which is missing: pip install hypothesis"
        ) from None
    return st


def draw(subject: Subject, plan: Plan, options: Options) -> Arrays:
    """The inputs and cotangents of a case, heads as an axis, rounded to the kernel's dtype."""
    rng = host.random.default_rng([plan.seed, 0x6B6974])
    sizes = {"B": plan.B, "T": plan.tokens, "K": plan.K, "E": plan.E, "N": 2, "D": plan.K, "J": 4}
    sizes |= {"F": plan.E + 2, "V": 4, "H": plan.H * options.grouped_values} | {
        letter: n for letter, n in options.sizes.items() if letter in "NFDVIJ"
    }
    sizes["P"] = sizes["J"] - 1
    sizes = {"I": sizes["D"]} | sizes  # features of the block's width unless told otherwise
    case: Arrays = {}
    names = (*subject.inputs, *(f"cot_{name}" for name in subject.cotangents))
    for name in names:
        letters = letters_of(subject, name)
        full = letters if is_headless(subject, name) else head_letters(letters)
        shape = [sizes[letter] for letter in full]
        if name in ("q", "k"):
            shape[full.index("H")] = plan.H
        case[name] = _numbers(subject, name, shape, plan, rng)
    if "k" in case:
        case["k"] = _keys(case["k"], plan.keys, rng, bool(options.l2norm))
    if subject.name == "dplr":
        case |= erasing(case["a"], case["b"])
    if options.log_gates:
        case[subject.gate] = host.log(case[subject.gate])
    if "mask" in case:
        case["mask"] = host.tril(case["mask"], k=-1)
    if "state_H" in case:  # symmetric and positive
        H = case["state_H"] / plan.K**0.5
        case["state_H"] = host.matmul(H, host.matrix_transpose(H))
    case = {name: rounded(a, options.dtype) for name, a in case.items()}
    if subject.state and not plan.state:
        case |= {name: host.zeros_like(case[name]) for name in subject.state}
    if options.state == "never":  # nobody can use the final state either
        case |= {
            n: host.zeros_like(case[n]) for n in (f"cot_{state_out(s)}" for s in subject.state)
        }
    return case


def _numbers(subject: Subject, name: str, shape: list[int], plan: Plan, rng: Any) -> Array:
    """One array, by what it is for."""
    if name in subject.integers:
        return rng.integers(0, 4, shape)
    if name == subject.gate and name in ("gamma", "alpha", "keep"):
        near = {"spread": (0.3, 1.0), "near 1": (1 - 1e-3, 1.0), "near 0": (1e-6, 1e-2)}
        return rng.uniform(*near[plan.gates], shape)
    if name in ("beta", "step", "weight", "weights"):
        a = rng.uniform(*RANGES.get(name, (0.1, 1.0)), shape)
        keep = {"spread": 1.0, "some 0": rng.random(shape) < 0.6, "all 1": 1.0}[plan.rates]
        return a * keep if plan.rates != "all 1" or name == "step" else host.ones(shape)
    if name == "momentum" and plan.gates != "spread":
        return rng.uniform(*{"near 1": (0.8, 0.95), "near 0": (0.0, 1e-3)}[plan.gates], shape)
    if name.startswith("eta_"):
        return rng.uniform(0.02, 0.2, shape)
    if name == "decay" and name in subject.shared:
        near = {"spread": (0.0, 0.5), "near 1": (0.9, 1.0), "near 0": (0.0, 1e-3)}
        return rng.uniform(*near[plan.gates], shape)
    if name in RANGES:
        return rng.uniform(*RANGES[name], shape)
    a = rng.standard_normal(shape)
    if name == "x" and subject.name == "l2norm":  # also short vectors, and none at all
        a = a * (rng.random((*shape[:-1], 1)) < (0.6 if plan.rates == "some 0" else 1))
        return 1e-3 * a if plan.gates == "near 0" else a
    if name == "q" and subject.name == "attention" and plan.gates == "near 1":
        return 1e3 * a  # scores whose exp overflows
    if name in ("W1", "W2") or name.startswith("state_") and name.endswith(("_W", "_W1", "_W2")):
        return a / max(shape[-2], 1) ** 0.5
    return a


def _keys(k: Array, kind: str, rng: Any, free: bool) -> Array:
    """Unit keys, so that no step overshoots; of any length where the kernel normalises them."""
    if kind == "nearly collinear":
        k = k[:, :1, ...] + 1e-2 * k
    if kind == "repeated":
        k = host.repeat(k, 2, axis=1)[:, : k.shape[1], ...]
    k = k / host.sqrt(host.sum(k * k, axis=-1, keepdims=True))
    return k * rng.uniform(0.5, 2.0, (*k.shape[:-1], 1)) if free else k
