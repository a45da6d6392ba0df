"""Golden cases of the update rules: every answer recomputed from the formulas alone, and errors
that name the array.

A docstring that opens with "N:" is a negative control.
"""

from __future__ import annotations

import numpy as np
import pytest

from fwl_ref.verify import golden
from fwl_ref.verify.golden_rules import PLANS, RULES
from tests.tolerances import assert_close

pytestmark = pytest.mark.host("files and host arrays")


def draw(i, seed=0):
    """The inputs of the rules' case number i."""
    return golden.draw_case(PLANS[i], np.random.default_rng([seed, i]))


# --- the rules once more, in plain numpy, token by token; complex inputs give derivatives by the complex step. A state is a dictionary.


def fading(S, fade, k, v):
    return {"state": fade * S["state"] + np.outer(k, v)}


def delta(S, k, v, beta):
    return {"state": S["state"] - beta * np.outer(k, k @ S["state"] - v)}


def dplr(S, k, v, alpha, a, b):
    return {"state": (np.diag(alpha) + np.outer(b, a)) @ S["state"] + np.outer(k, v)}


def delta_product(S, k, v, beta):
    for pair in zip(k, v, beta, strict=True):
        S = delta(S, *pair)
    return S


def longhorn(S, k, v, beta):
    """(I + beta k^T k) S' = S + beta k^T v: the equation of the implicit step, solved."""
    return {"state": np.linalg.solve(np.eye(len(k)) + beta * np.outer(k, k), S["state"] + beta * np.outer(k, v))}


def titans(S, first, k, v, momentum, decay, step):
    """Gradient at the current memory, or at the first one of the chunk."""
    gradient = np.outer(k, k @ first["state_M"] - v)
    U = momentum * S["state_U"] - step * gradient
    return {"state_M": (1 - decay) * S["state_M"] + U, "state_U": U}


def mesa(S, k, v, keep, weight):
    return {"state_G": keep * S["state_G"] + weight * np.outer(k, v), "state_H": keep * S["state_H"] + weight * np.outer(k, k)}


def layernorm(z, case):
    """x -> normalised x, and the Jacobian of gain * normalised + bias as a matrix."""
    centred = z - z.mean()
    rstd = 1 / np.sqrt((centred**2).mean() + case["eps"])
    n, d = centred * rstd, len(z)
    return n, case["gain"][:, None] * rstd * (np.eye(d) - np.ones((d, d)) / d - np.outer(n, n) / d)


def gelu(x):
    """The tanh form, and its slope."""
    c = np.sqrt(2 / np.pi)
    t = np.tanh(c * (x + 0.044715 * x**3))
    return 0.5 * x * (1 + t), 0.5 * (1 + t) + 0.5 * x * (1 - t**2) * c * (1 + 3 * 0.044715 * x**2)


def network(S, x):
    """z and, for the MLP, hidden activation and slope."""
    if "state_W" in S:
        return x @ S["state_W"] + S["state_b"], None, None
    a, slope = gelu(x @ S["state_W1"] + S["state_b1"])
    return a @ S["state_W2"] + S["state_b2"], a, slope


def predict(S, x, case):
    z, *_ = network(S, x)
    return x + layernorm(z, case)[0] * case["gain"] + case["bias"]


def ttt(S, first, k, v, step, case):
    """A step of gradient descent on |f(k) - v|^2, the gradient taken at the first state of the
    mini-batch.
    """
    z, a, slope = network(first, k)
    dz = layernorm(z, case)[1].T @ (2 * (predict(first, k, case) - v))
    if a is None:
        gradient = {"state_W": np.outer(k, dz), "state_b": dz}
    else:
        dh = slope * (first["state_W2"] @ dz)
        gradient = {"state_W1": np.outer(k, dh), "state_b1": dh, "state_W2": np.outer(a, dz), "state_b2": dz}
    return {name: S[name] - step * gradient[name] for name in gradient}


def titans_mlp(S, first, k, v, momentum, decay, step, case):
    """The same gradient, carried on by U; M fades."""
    still = {name: 0 * a for name, a in S.items()}
    pushed = ttt(still, first, k, v, step, case)
    U = {n.replace("state_", "state_U_"): momentum * S[n.replace("state_", "state_U_")] + g for n, g in pushed.items()}
    return {n: (1 - decay) * S[n] + U[n.replace("state_", "state_U_")] for n in pushed} | U


def per_chunk(S, first, chunk, place, full, k, v, step):
    """One update for a chunk: eta before its first token, alpha and the memory after its last."""
    U = (chunk[0] if place == 0 else 1) * S["state_U"] - step * np.outer(k, k @ first["state_M"] - v)
    return {"state_M": (1 - chunk[1]) * S["state_M"] + U if full else S["state_M"], "state_U": U}


def under_way(case, b):
    """out and final states of one sequence in a mini-batch under way, with the reader's factor."""
    names = [n for n in RULES[str(case["kind"])].state if "moved" not in n]
    first, moved = {n: case[n][b] for n in names}, {n: case[n.replace("state_", "state_moved_")][b] for n in names}
    place, out = int(case["place"]), []
    for q, k, v, step, factor in zip(*(case[n][b] for n in ("q", "k", "v", "step", "factor")), strict=True):
        after = ttt(moved, first, k, v, step, case)
        seen = after if str(case["read"]) == "inclusive" else moved
        out.append(predict({n: first[n] + factor * seen[n] for n in names}, q, case))
        moved, place = after, place + 1
        if place == int(case["minibatch"]):
            first, moved, place = {n: first[n] + factor * moved[n] for n in names}, {n: 0 * a for n, a in moved.items()}, 0
    return out, first | {n.replace("state_", "state_moved_"): a for n, a in moved.items()}


def update(kind, S, first, tokens, case):
    if kind in ("linear", "decay", "gla", "gated_delta", "kda", "gated_delta_product"):
        k, v, *rates = tokens
        fade = rates[0] if rates else 1.0
        fade = fade[:, None] if kind in ("gla", "kda") else fade
        if kind in ("gated_delta", "kda", "gated_delta_product"):
            step = delta_product if kind == "gated_delta_product" else delta
            return step({"state": fade * S["state"]}, k, v, rates[1])
        return fading(S, fade, k, v)
    if kind == "titans":
        return titans(S, first if int(case["stale"]) else S, *tokens)
    if kind == "titans_mlp":
        return titans_mlp(S, first, *tokens, case)
    if kind.startswith("ttt"):
        return ttt(S, first, *tokens, case)
    return {"delta": delta, "dplr": dplr, "delta_product": delta_product, "longhorn": longhorn, "mesa": mesa}[kind](S, *tokens)


def read(kind, S, q, case):
    if kind.startswith("ttt") or kind == "titans_mlp":
        return predict(S, q, case)
    if kind == "mesa":
        return q @ np.linalg.solve(S["state_H"] + np.diag(case["ridge"]), S["state_G"])
    return q @ S.get("state", S.get("state_M"))


def by_hand(case):
    """out, final states and loss."""
    kind, inclusive = str(case["kind"]), str(case["read"]) == "inclusive"
    rule, length = RULES[kind], case["q"].shape[1]
    stale = int(case.get("stale", 0)) and (int(case["chunk"]) or max(length, 1)) or int(case.get("minibatch", 0)) or 1
    out, finals = np.zeros(case["cot_out"].shape, dtype=complex), []
    for b in range(len(out)):
        if "place" in case:
            out[b], final = under_way(case, b)
            finals.append(final)
            continue
        S = first = {name: case[name][b] for name in rule.state}
        for t in range(length):
            first = S if t % stale == 0 else first
            tokens = [case[name][b, t] for name in list(rule.tokens)[1:]]
            if kind == "titans_per_chunk":
                size = int(case["minibatch"])
                chunk, place = [case[n][b, t - t % size] for n in ("momentum", "decay")], t % size
                after = per_chunk(S, first, chunk, place, place == size - 1, *tokens[:2], tokens[-1])
            else:
                after = update(kind, S, first, tokens, case)
            out[b, t] = read(kind, after if inclusive else S, case["q"][b, t], case)
            S = after
        finals.append(S)
    answers = {"out": out} | {name.replace("state", "state_out"): np.stack([S[name] for S in finals]) for name in rule.state}
    loss = np.sum(out * case["cot_out"])
    for name in rule.state:
        loss = loss + np.sum(answers[name.replace("state", "state_out")] * case[f"cot_{name}"])
    return answers | {"loss": loss}


every_case = pytest.mark.parametrize("i", range(len(PLANS)), ids=[f"{p.kind}, {p.read}, chunk {p.chunk}" for p in PLANS])


@every_case
def test_answers_are_those_of_a_loop_in_plain_numpy(i):
    """Outputs, final states and loss, for two seeds."""
    for seed in (0, 1):
        case = draw(i, seed)
        answers = golden.run_case(case)
        assert tuple(answers) == golden.ANSWERS[str(case["kind"])]
        for name, expected in by_hand(case).items():
            assert np.all(expected.imag == 0)
            assert_close(answers[name], expected.real, what=name, scale=1.0)


@every_case
def test_gradients_are_those_of_the_complex_step(i):
    """Three entries of every gradient are Im loss(p + i h) / h of the plain loop; H moves with its
    mirror image.
    """
    case, rng = draw(i, seed=2), np.random.default_rng(i)
    answers, rule = golden.run_case(case), RULES[str(case["kind"])]
    for name in (*rule.tokens, *rule.shared, *rule.state):
        gradient = answers[f"g_{name}"]
        assert gradient.shape == case[name].shape
        for _ in range(3):
            index = tuple(int(rng.integers(0, n)) for n in gradient.shape)
            moved = case[name].astype(complex)
            moved[index] += 0.5e-30j
            mirror = (*index[:-2], index[-1], index[-2]) if name == "state_H" else index
            moved[mirror] += 0.5e-30j
            slope = by_hand(case | {name: moved})["loss"].imag / 1e-30
            assert_close(gradient[index], np.asarray(slope), what=name, scale=max(1.0, float(np.max(np.abs(gradient)))))


@pytest.mark.parametrize("kind", RULES)
def test_the_form_does_not_change_the_answers(kind):
    """chunk is how, not what: every answer is the same for the recurrent form and for all chunks,
    where the function allows it.
    """
    for i in (i for i, plan in enumerate(PLANS) if plan.kind == kind and not plan.stale):
        case = draw(i, seed=3)
        expected = golden.run_case(case)
        sizes = [0, int(case["minibatch"])] if "eps" in case else [0, 1, 2, 5, 99]
        for chunk in sizes:
            for name, answer in golden.run_case(case | {"chunk": np.asarray(chunk)}).items():
                assert_close(answer, expected[name], what=f"{name}, chunk {chunk}", scale=1.0)


def test_mesa_in_chunks_is_exact_for_wide_keys():
    """Its conjugate gradients go on until nothing but rounding is left, however many channels a kernel insists on."""
    i = max(i for i, plan in enumerate(PLANS) if plan.kind == "mesa")
    case = golden.draw_case(PLANS[i], np.random.default_rng(0), {"K": 64, "B": 1, "T": 20})
    by_token, in_chunks = (golden.run_case(case | {"chunk": np.asarray(chunk)}) for chunk in (0, 8))
    for name, answer in by_token.items():
        assert_close(in_chunks[name], answer, what=name, scale=1.0)


def test_a_stale_chunk_is_another_function():
    """N: Titans with gradients at the chunk's first memory; the same for chunks of one token."""
    i = next(i for i, plan in enumerate(PLANS) if plan.stale and plan.kind == "titans")
    case = draw(i)
    exact, stale = (golden.run_case(case | {"stale": np.asarray(s)})["out"] for s in (0, 1))
    assert np.max(np.abs(exact - stale)) > 1e-3
    single = [golden.run_case(case | {"stale": np.asarray(s), "chunk": np.asarray(1)})["out"] for s in (0, 1)]
    assert_close(*single, scale=1.0)


def test_the_cases_are_varied():
    """Every rule has both reads and both forms; some state is empty, some chunk exceeds T, some T
    is 1.
    """
    assert {p.kind for p in PLANS} == set(RULES)
    for kind in RULES:
        plans = [p for p in PLANS if p.kind == kind]
        assert {p.read for p in plans} == {"strict", "inclusive"}
        assert {p.chunk > 0 for p in plans} == {False, True}
    assert any(p.length == 1 for p in PLANS) and any(p.chunk > p.length for p in PLANS)
    assert any(p.chunk > 1 and p.length % p.chunk for p in PLANS)
    assert any("state" in p.zero for p in PLANS)
    assert len({draw(i)["q"].shape for i in range(len(PLANS))}) > 8


@every_case
def test_a_case_of_no_tokens_has_answers(i):
    """T = 0: no outputs, the state passes through, and the gradient of the state is its cotangent."""
    case = draw(i)
    rule = RULES[str(case["kind"])]
    case |= {name: case[name][:, :0] for name in (*rule.tokens, "cot_out")}
    answers = golden.run_case(case)
    assert answers["out"].shape == case["cot_out"].shape
    for name in rule.state:
        assert_close(answers[name.replace("state", "state_out")], case[name])
        cot = case[f"cot_{name}"]
        assert_close(answers[f"g_{name}"], 0.5 * (cot + cot.mT) if name == "state_H" else cot)


# --- bad cases

FIRST = {kind: next(i for i, plan in enumerate(PLANS) if plan.kind == kind) for kind in RULES}


@pytest.mark.parametrize("kind", RULES)
def test_missing_extra_ill_shaped_and_non_finite_arrays_are_named(kind):
    """For every array of every rule: absent, with an axis too many, of another size, of another
    type, with a NaN.
    """
    case, rule = draw(FIRST[kind]), RULES[kind]
    assert case.keys() == set(golden.INPUTS[kind])

    def refused(changed, name, words):
        with pytest.raises(ValueError) as error:
            golden.run_case(changed)
        assert str(error.value).startswith(f"{name}: expected") and words in str(error.value)

    for name in golden.INPUTS[kind]:
        refused({n: a for n, a in case.items() if n != name}, name, "found nothing")
    for name in rule.arrays:
        refused(case | {name: case[name][None]}, name, "expected shape")
        refused(case | {name: case[name].astype("float16")}, name, "expected float64 or float32, found float16")
        bad = case[name].copy()
        bad[(0,) * bad.ndim] = np.nan
        refused(case | {name: bad}, name, "expected finite numbers, found nan")
        if name != "q":
            grown = np.concatenate([case[name], case[name]], axis=0)
            refused(case | {name: grown}, name, "expected shape")
    refused(case | {"labels": np.asarray(1)}, "labels", "leave it out")
    refused(case | {"read": np.asarray("causal")}, "read", "strict, inclusive, found 'causal'")
    refused(case | {"chunk": np.asarray(-1)}, "chunk", ">= 0, found -1")
    for name in rule.counts:
        refused(case | {name: np.asarray(-1)}, name, "found -1")


BAD = {
    "a negative keep": ("mesa", {"keep": lambda a: -a}, "keep", ">= 0, found -"),
    "a negative weight": ("mesa", {"weight": lambda a: -a}, "weight", ">= 0, found -"),
    "no ridge": ("mesa", {"ridge": lambda a: 0 * a}, "ridge", "> 0, found 0.0"),
    "a state that is not symmetric": ("mesa", {"state_H": lambda a: a + np.tri(a.shape[-1], k=-1)}, "state_H", "symmetric"),
    "a negative implicit step": ("longhorn", {"beta": lambda a: -a}, "beta", ">= 0, found -"),
    "stale twice": ("titans", {"stale": lambda _: 2}, "stale", "0 or 1, found 2"),
    "a chunk that is no mini-batch": ("ttt_linear", {"chunk": lambda _: 2}, "chunk", "0 or the mini-batch, 3, found 2"),
    "a place that the mini-batch does not have": (
        "ttt_linear_under_way",
        {"place": lambda _: 4},
        "place",
        "below the mini-batch, 3, found 4",
    ),
    "a mini-batch of 0": ("ttt_mlp", {"minibatch": lambda _: 0}, "minibatch", ">= 1, found 0"),
    "no epsilon": ("ttt_linear", {"eps": lambda _: 0.0}, "eps", "> 0, found 0.0"),
}


@pytest.mark.parametrize("wrong", BAD)
def test_a_bad_case_is_refused_by_name(wrong):
    """ValueError that starts with the array's name and says what was found."""
    kind, changes, name, words = BAD[wrong]
    case = draw(FIRST[kind])
    with pytest.raises(ValueError) as error:
        golden.run_case(case | {n: np.asarray(change(case[n])) for n, change in changes.items()})
    assert str(error.value).startswith(f"{name}: expected") and words in str(error.value)


@pytest.mark.parametrize("chunk", [0, 2])
def test_a_decay_of_0_is_a_decay(chunk):
    """No form takes its logarithm."""
    case = draw(FIRST["decay"]) | {"chunk": np.asarray(chunk)}
    case["gamma"] = 0 * case["gamma"]
    assert_close(golden.run_case(case)["out"], by_hand(case)["out"].real)
