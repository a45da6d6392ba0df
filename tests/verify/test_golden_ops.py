"""Golden cases of the l2 norm and the short convolution: every answer from plain formulas and the complex step, both orders, and
errors that name the array.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fwl_ref.verify import golden
from fwl_ref.verify.golden_ops import OPS, PLANS
from tests.tolerances import assert_close

pytestmark = pytest.mark.host("files and host arrays")
every_case = pytest.mark.parametrize("i", range(len(PLANS)), ids=[f"{p.kind}, {p.length} tokens" for p in PLANS])
Case = dict[str, Any]


def draw(i: int, seed: int = 0) -> Case:
    return golden.draw_case(PLANS[i], np.random.default_rng([seed, i]))


def normalised(case: Case) -> tuple[Case, Case]:
    """Outputs, and the gradient by the Jacobian as a matrix; complex inputs give derivatives by the complex step."""
    x, dy = case["x"], case["cot_out"]
    length = np.sqrt(np.sum(x * x, axis=-1) + case["eps"])
    eye = np.eye(x.shape[-1]) / length[..., None, None]
    jacobian = eye - np.einsum("...i,...j->...ij", x, x) / length[..., None, None] ** 3
    return {"out": x / length[..., None]}, {"x": np.einsum("...i,...ij->...j", dy, jacobian)}


def convolved(case: Case) -> tuple[Case, Case]:
    """Tap by tap, and each gradient where its input was read."""
    x, w, state = (case[n] for n in ("x", "w", "state"))
    before, length = state.shape[1], x.shape[1]
    past = np.concatenate([state, x], axis=1)
    out, g_past, g_w = np.zeros(x.shape, complex), np.zeros(past.shape, complex), np.zeros(w.shape, complex)
    for t in range(length):
        for j in range(len(w)):
            out[:, t] += w[j] * past[:, t + j]
            g_past[:, t + j] += w[j] * case["cot_out"][:, t]
            g_w[j] += np.sum(case["cot_out"][:, t] * past[:, t + j], axis=0)
    g_past[:, length:] += case["cot_state"]
    return {"out": out, "state": past[:, length:]}, {"x": g_past[:, before:], "w": g_w, "state": g_past[:, :before]}


def by_hand(case: Case) -> Case:
    """Everything but the gradients of the second order."""
    outputs, gradients = (normalised if str(case["kind"]) == "l2norm" else convolved)(case)
    found = {"out": outputs["out"]} | ({"state_out": outputs["state"]} if "state" in outputs else {})
    found["loss"] = sum(np.sum(a * case[f"cot_{n}"]) for n, a in outputs.items())
    found |= {f"g_{n}": g for n, g in gradients.items()}
    return found | {"loss_2": sum(np.sum(g * case[f"cot_g_{n}"]) for n, g in gradients.items())}


@every_case
def test_answers_are_those_of_plain_formulas(i: int) -> None:
    """Outputs, both losses and the gradients, for two seeds."""
    for seed in (0, 1):
        case = draw(i, seed)
        answers, expected = golden.run_case(case), by_hand(case)
        assert tuple(answers) == golden.ANSWERS[PLANS[i].kind] and set(expected) < set(answers)
        for name, a in expected.items():
            assert_close(answers[name], np.real(a), what=name, scale=1.0)


@every_case
@pytest.mark.parametrize("order", ["", "2"])
def test_gradients_of_both_orders_are_those_of_the_complex_step(i: int, order: str) -> None:
    """Three entries of every one: of loss for the inputs, of loss_2 for inputs and cotangents."""
    case, rng, op = draw(i, seed=2), np.random.default_rng(i), OPS[PLANS[i].kind]
    answers, loss = golden.run_case(case), "loss_2" if order else "loss"
    for name in op.second if order else op.inputs:
        gradient = answers[f"g{order}_{name}"]
        assert gradient.shape == case[name].shape
        for _ in range(3 if gradient.size else 0):
            at = tuple(int(rng.integers(0, n)) for n in gradient.shape)
            moved = case[name].astype(complex)
            moved[at] += 1e-30j
            slope = by_hand(case | {name: moved})[loss].imag / 1e-30
            assert_close(gradient[at], np.asarray(slope), what=name, scale=max(1.0, float(np.max(np.abs(gradient)))))


def test_the_cases_are_varied() -> None:
    """An epsilon that is not small, vectors without a direction, fewer tokens than taps, a single tap."""
    assert {plan.kind for plan in PLANS} == set(OPS)
    assert any(not draw(i)["x"].any() for i in range(len(PLANS))) and any(p.eps > 0.1 for p in PLANS)
    assert any(p.length < p.taps for p in PLANS) and any(p.taps == 1 for p in PLANS)


@every_case
def test_a_case_of_no_tokens_has_answers(i: int) -> None:
    """T = 0: empty outputs, losses of what is left."""
    case = draw(i)
    case |= {name: case[name][:, :0] for name in ("x", "cot_out", "cot_g_x")}
    for name, a in by_hand(case).items():
        assert_close(golden.run_case(case)[name], np.real(a), what=name, scale=1.0)


BAD = {
    "a negative epsilon": ("l2norm", {"eps": lambda _: -1.0}, "eps", ">= 0, found -1.0"),
    "no direction and no epsilon": ("l2norm", {"eps": lambda _: 0.0, "x": lambda a: 0 * a}, "out", "finite answers, found nan"),
    "taps of other channels": ("short_conv", {"w": lambda a: np.hstack([a, a])}, "w", "expected shape (J,D)"),
    "a longer past": ("short_conv", {n: lambda a: np.hstack([a, a]) for n in ("state", "cot_state", "cot_g_state")}, "state", "P = J - 1"),
    "a gate": ("short_conv", {"alpha": lambda _: 1.0}, "alpha", "leave it out"),
    "an answer of the other op": ("l2norm", {"g2_w": lambda _: 1.0}, "g2_w", "leave it out"),
}


@pytest.mark.parametrize("wrong", BAD)
def test_a_bad_case_is_refused_by_name(wrong: str) -> None:
    """ValueError that starts with the array's name and says what was found."""
    kind, changes, name, words = BAD[wrong]
    case = draw(max(i for i, plan in enumerate(PLANS) if plan.kind == kind))
    with pytest.raises(ValueError) as error:
        golden.run_case(case | {n: np.asarray(change(case.get(n))) for n, change in changes.items()})
    assert str(error.value).startswith(f"{name}: expected") and words in str(error.value)


@pytest.mark.parametrize("kind", OPS)
def test_missing_ill_shaped_and_non_finite_arrays_are_named(kind: str) -> None:
    """Every input, cotangents of both orders among them."""
    case = draw(max(i for i, plan in enumerate(PLANS) if plan.kind == kind))
    assert case.keys() == set(golden.INPUTS[kind])
    for name in golden.INPUTS[kind]:
        with pytest.raises(ValueError, match=f"^{name}: expected .* found nothing"):
            golden.run_case({n: a for n, a in case.items() if n != name})
    for name in OPS[kind].arrays:
        for bad, words in ((case[name][None], "shape"), (case[name] * np.nan, "finite numbers"), (case[name] > 0, "float64")):
            with pytest.raises(ValueError, match=f"^{name}: expected .*{words}"):
                golden.run_case(case | {name: bad})
