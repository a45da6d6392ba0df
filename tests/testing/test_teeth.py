"""Kernels with one classic fault each are rejected, and the fault is named.

Every update rule and attention op: the state off by one, a fade or a rate left out, the last chunk
short, its state not returned, strict for inclusive and the other way round, scale, gates as
logarithms or not, dk from a product that is transposed.
"""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fwl_ref.fwl import FastSettings, fast_block_bwd, fast_block_fwd
from fwl_ref.sequential import sequential_bwd, sequential_fwd
from fwl_ref.slow_block import FastParameters
from fwl_ref.testing import KernelError, Plan, check_kernel
from fwl_ref.testing.options import Options
from fwl_ref.testing.subjects import SUBJECTS
from fwl_ref.verify import golden
from fwl_ref.verify.golden_rules import RULES
from tests.testing import naive
from tests.testing.mutants import CHUNK, MINIBATCH, Mutant, driver, honest, mutants

pytestmark = [
    pytest.mark.host("kernels are functions of host arrays"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # a kernel that overflows is one of them
]
ALL = mutants()
QUICK = {"gated_delta", "linear_attention", "masked_attention", "attention"}


@pytest.fixture(autouse=True, scope="module")
def answers_once() -> Iterator[None]:
    """The reference says the same to the same arrays: the cases by which faults are told apart are those
    of every mutant of a rule, and are answered once. A mutant has its own code and is not asked less.
    """
    kept = dict(SUBJECTS)
    SUBJECTS.update({name: subject._replace(answers=remembering(subject.answers)) for name, subject in kept.items()})
    yield
    SUBJECTS.update(kept)


def remembering(answers: Any) -> Any:
    """``answers`` of the last thousands of cases, by the bytes of their arrays; a caller may change what it gets."""
    known: dict[tuple, dict] = {}

    def answer(arrays: dict, settings: dict) -> dict:
        key = (*((n, a.dtype.str, a.shape, a.tobytes()) for n, a in ((n, np.asarray(a)) for n, a in arrays.items())), *settings.items())
        if key not in known:
            if len(known) > 4000:
                known.clear()
            known[key] = answers(arrays, settings)
        return {name: a.copy() if isinstance(a, np.ndarray) else a for name, a in known[key].items()}

    return answer


def rejected(rule: str, kernel: Any, backward: Any = None, **options: Any) -> KernelError:
    with pytest.raises(KernelError) as caught:
        check_kernel(rule, kernel, backward=backward, chunk=CHUNK, minibatch=MINIBATCH, examples=12, **options)
    return caught.value


@pytest.mark.parametrize("mutant", [pytest.param(m, marks=() if m.rule in QUICK else pytest.mark.slow, id=str(m)) for m in ALL])
def test_a_kernel_with_a_classic_fault_is_rejected_and_the_fault_named(mutant: Mutant) -> None:
    """By its short name, which belongs to one sentence."""
    error = rejected(mutant.rule, mutant.kernel, mutant.backward, **mutant.options)
    assert error.fault == mutant.fault, str(error)
    assert str(error).startswith(f"{mutant.rule}: ") and "smallest case: Plan(" in str(error)


def test_the_page_names_every_rule_every_option_and_their_number() -> None:
    """docs/check_your_kernel.md, its tables against the code."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "check_your_kernel.md").read_text(encoding="utf-8")
    rows = {name for line in page.splitlines() if line.startswith("| `") for name in re.findall(r"`(\w+)`", line.split("|")[1])}
    options = {*Options._fields, *inspect.signature(check_kernel).parameters} - {"rule", "kernel", "options"}
    assert rows == {*SUBJECTS, *options}
    assert "over 400 kernels" in page and len(ALL) > 400


def test_readme_names_every_rule_and_both_ways_in() -> None:
    """Who looks for a rule by its name finds it there, and whether to bring a function or files."""
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    section = readme.split("## To check another implementation")[1].split("\n## ")[0]
    assert set(re.findall(r"`(\w+)`", section)) >= set(SUBJECTS)
    assert "check_kernel(" in section and "fwl_ref golden make" in section and "docs/check_your_kernel.md" in section


def test_the_page_names_every_option_of_golden_files() -> None:
    """Those that the command has, and no others; and every kind."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "check_your_kernel.md").read_text(encoding="utf-8")
    table = page.split("| option of `golden` |")[1].split("\n\n")[0]
    parser = argparse.ArgumentParser()
    golden.add_arguments(parser)
    actions = next(iter(parser._subparsers._group_actions)).choices.values()
    flags = {flag for action in actions for flag in action._option_string_actions} - {"-h", "--help"}
    assert set(re.findall(r"--\w+", table)) == flags
    others = {kind for kind in golden.KINDS if not kind.startswith(("packed", "heads"))}
    assert {*re.findall(r"`(\w+)`", page)} >= others | {"packed_RULE", "heads_RULE"}
    assert "1e-9 in float64, 1e-3" in table and golden.TOLERANCE == {"float64": 1e-9, "float32": 1e-3}


def test_every_rule_has_the_classic_faults() -> None:
    """The table is not empty anywhere."""
    for rule in RULES:
        names = {m.fault for m in ALL if m.rule == rule}
        assert len(names) >= 14, (rule, names)
        assert {
            "misses its own write",
            "state not carried",
            "state of the last chunk missing",
            "last chunk missing",
            "g_k transposed",
        } <= names


@pytest.mark.parametrize("rule", RULES)
def test_the_drivers_that_mutants_are_made_of_are_right(rule: str) -> None:
    """Without a bug they pass, forward and backward: it is the bug that is found."""
    check_kernel(rule, driver(rule), backward=honest(rule), chunk=CHUNK, minibatch=MINIBATCH, examples=15)


# The fast weight block
# ----------------------------------------------------------------------------------------


def block(x: Any, labels: Any, weights: Any, slow: Any, eta: Any, decay: Any, state: Any, *, bug: str = "") -> Any:
    if bug.startswith("labels one late"):
        labels = np.concatenate([0 * labels[:, :1], labels[:, :-1]], axis=1)
    weights = np.ones_like(weights) if bug == "no weights" else weights
    state = None if bug == "ignores the state in" else state
    decay = 0 * decay if bug == "no decay" else 1 - decay if bug == "decay inverted" else decay
    sign = {"ascends": -1.0, "no step sizes": 0.0}.get(bug, 1.0)
    eta = FastParameters(*(sign * e for e in eta))
    eta = eta._replace(gain=0 * eta.gain) if bug == "no eta_gain" else eta
    outputs, _ = fast_block_fwd(x, labels, weights, slow, eta, decay, FastSettings(chunk=CHUNK), state)
    return outputs


def block_bwd(cotangents: tuple, *inputs: Any, first_order: bool = False, used: float = 1.0) -> tuple:
    g_logits, _, g_state = cotangents
    *rest, state = inputs
    settings = FastSettings(chunk=CHUNK, first_order=first_order)
    _, res = fast_block_fwd(*rest, settings, state)
    g_x, g_slow, g_eta, g_decay, g_in = fast_block_bwd(g_logits, FastParameters(*(used * g for g in g_state)), res)
    return g_x, None, None, g_slow, g_eta, g_decay, g_in


@pytest.mark.parametrize(
    "bug",
    ["labels one late", "no weights", "ignores the state in", "no decay", "decay inverted", "ascends", "no step sizes", "no eta_gain"],
)  # fmt: skip
def test_faults_of_a_fast_weight_block_are_named(bug: str) -> None:
    assert rejected("fast_block", lambda *a: block(*a, bug=bug)).fault == bug


def test_faults_of_its_backward_pass_are_named() -> None:
    first = rejected("fast_block", block, lambda *a: block_bwd(*a, first_order=True))
    assert first.fault == "first order" and "sweep 5" in str(first)
    unused = rejected("fast_block", block, lambda *a: block_bwd(*a, used=0.0))
    assert unused.fault == "cotangent of the state ignored"


# And with true gradients between segments
# ----------------------------------------------------------------------------------------


def chain(x: Any, labels: Any, weights: Any, slow: Any, eta: Any, decay: Any, state: Any, *, bug: str = "") -> Any:
    """Segments of two tokens, each a block of its own with step sizes 0."""
    labels = np.concatenate([0 * labels[:, :1], labels[:, :-1]], axis=1) if bug == "labels one late" else labels
    held = FastParameters(*(np.zeros((len(x), *p.shape)) for p in slow[:6])) if state is None else state
    sign, rows, none = -1.0 if bug == "ascends" else 1.0, [], FastParameters(*(0 * e for e in eta))
    for start in range(0, x.shape[1], MINIBATCH):
        part, outs, sums = slice(start, start + MINIBATCH), [], []
        for b in range(len(x)):
            data = x[b : b + 1, part], labels[b : b + 1, part], weights[b : b + 1, part]
            moved = slow._replace(**{n: getattr(slow, n) - sign * e * a[b] for n, e, a in zip(held._fields, eta, held, strict=True)})
            (_, logits, written), _ = fast_block_fwd(*data, moved, none, 0 * decay, FastSettings())
            if bug == "own segment":
                (logits, _, _), _ = fast_block_fwd(*data, moved, eta, 0 * decay, FastSettings())
            if bug == "stale gradients":
                (_, _, written), _ = fast_block_fwd(*data, slow, none, 0 * decay, FastSettings())
            outs.append(logits)
            sums.append(written)
        rows.append(np.concatenate(outs))
        keep = 1.0 if bug == "no decay" else 1 - decay
        held = FastParameters(*(keep * a + np.concatenate([s[i] for s in sums]) for i, a in enumerate(held)))
    return np.concatenate(rows, axis=1), held


def chain_bwd(cotangents: tuple, *inputs: Any, first_order: bool = False, used: float = 1.0) -> tuple:
    *rest, state = inputs
    _, res = sequential_fwd(*rest, FastSettings(first_order=first_order), state, segment=MINIBATCH, within=False)
    g_x, g_slow, g_eta, g_decay, g_in = sequential_bwd(cotangents[0], FastParameters(*(used * g for g in cotangents[1])), res)
    return g_x, None, None, g_slow, g_eta, g_decay, g_in


def test_a_chain_of_segments_passes() -> None:
    check_kernel("sequential_block", chain, backward=chain_bwd, chunk=CHUNK, minibatch=MINIBATCH, examples=12)


@pytest.mark.parametrize("bug", ["stale gradients", "own segment", "no decay", "ascends", "labels one late"])
def test_faults_of_a_chain_of_segments_are_named(bug: str) -> None:
    assert rejected("sequential_block", lambda *a: chain(*a, bug=bug)).fault == bug


def test_faults_of_the_backward_pass_of_a_chain_are_named() -> None:
    assert rejected("sequential_block", chain, lambda *a: chain_bwd(*a, first_order=True)).fault == "first order"
    assert rejected("sequential_block", chain, lambda *a: chain_bwd(*a, used=0.0)).fault == "cotangent of the state ignored"


# What a kernel can do wrong besides
# ----------------------------------------------------------------------------------------


def test_shapes_types_and_exceptions_are_findings() -> None:
    """The message says what came and what was expected."""
    good = naive.KERNELS["delta"]

    def turned(*inputs: Any) -> Any:
        out, state = good(*inputs)
        return out, np.swapaxes(state, 1, 2)

    assert "state_out has shape (1, 2, 1), expected (1, 1, 2): it is transposed" in str(rejected("delta", turned))
    assert "expected at most out and state, got 3 results" in str(rejected("delta", lambda *a: (*good(*a), 0)))
    broken = rejected("delta", lambda q, k, v, beta: q)
    assert "it raised TypeError" in str(broken) and broken.plan.tokens == 1
    infinite = rejected("delta", lambda *a: tuple(x / 0 for x in good(*a)))
    assert infinite.fault == "not finite"


def test_the_smallest_case_is_small_and_can_be_run_again() -> None:
    """A state that is lost between chunks needs one token of the second chunk."""
    kernel = driver("gated_delta", "state not carried")
    error = rejected("gated_delta", kernel)
    assert (error.plan.B, error.plan.tokens, error.plan.K, error.plan.E) == (1, CHUNK + 1, 1, 1)
    again = rejected("gated_delta", kernel, plan=error.plan)
    assert (again.fault, again.plan) == (error.fault, error.plan)
    assert f"token {CHUNK} of {CHUNK + 1}, chunk 1" in str(error)
    assert check_kernel("gated_delta", driver("gated_delta"), plan=error.plan).cases == 1


def test_low_precision_sums_are_called_rounding() -> None:
    """float64 arrays, but a state kept in float32."""

    def kernel(*inputs: Any) -> Any:
        out, state = naive.KERNELS["decay"](*(None if a is None else a.astype("float32") for a in inputs))
        return out.astype("float64"), state.astype("float64")

    assert rejected("decay", kernel).fault == "rounds to float32"
    check_kernel("decay", kernel, rtol=1e-5, examples=12)
    slightly = rejected(
        "decay", lambda *a: tuple(x * (1 + 3e-14 * np.sin(np.arange(x.size).reshape(x.shape))) for x in naive.KERNELS["decay"](*a))
    )
    assert slightly.fault == "rounding"


def test_answers_that_change_by_themselves_are_found() -> None:
    """Twice the same inputs, two answers."""
    calls = [0]

    def kernel(*inputs: Any) -> Any:
        calls[0] += 1
        out, state = naive.KERNELS["delta"](*inputs)
        return out + (calls[0] == 5), state

    assert "two different answers" in str(rejected("delta", kernel))


def test_a_failing_case_is_saved_as_a_golden_case(tmp_path: Any) -> None:
    """Which the golden command reads and answers alike; for ops the arrays are there too."""
    for rule in ("gated_delta", "titans", "mesa", "ttt_linear"):
        error = rejected(rule, driver(rule, "last token not in the state"), save=tmp_path / rule)
        (path,) = (tmp_path / rule).glob("*.npz")
        assert str(path) in str(error)
        golden.run_file(path, tmp_path / "again.npz")
        (result,) = golden.check_folder(path.parent)
        assert result.ok, result
    rejected("attention", lambda *a: naive.attention(*a, bug="no scale"), save=tmp_path / "op")
    (path,) = (tmp_path / "op").glob("*.npz")
    assert {"q", "k", "v", "cot_out", "out", "g_k"} <= set(np.load(path))


def test_bad_options_are_refused_before_the_kernel_runs() -> None:
    """Each with the name of the option and what to do."""

    def never(*inputs: Any) -> Any:
        raise AssertionError("the kernel ran")

    for message, rule, options in [
        ("the rule must be one of linear, ", "gated", {}),
        ("did you mean log_gates", "gated_delta", {"log_gate": True}),
        ("layout must be one of BTK, BTHK, BHTK", "delta", {"layout": "THBK"}),
        ("no gate that is taken as a logarithm", "delta", {"log_gates": True}),
        ("needs a layout with heads", "delta", {"grouped_values": 2}),
        ("NumPy has no bfloat16", "delta", {"dtype": "bfloat16"}),
        ("chunk must be at least 1", "delta", {"chunk": 0}),
        ('scale must be a number or "rsqrt"', "delta", {"scale": "sqrt"}),
        ("read must be one of inclusive, strict", "delta", {"read": "causal"}),
        ("no axis is called X", "delta", {"sizes": {"X": 3}}),
        ("about q, which fast_block does not have", "fast_block", {"scale": 2.0}),
        ("place must be from 0 to minibatch - 1 = 3, got 4", "ttt_mlp_under_way", {"place": 4}),
        ("l2norm must be the epsilon under the root", "delta", {"l2norm": -1.0}),
        ("has no state of shape (K,E)", "attention", {"state_layout": "EK"}),
        ("needs no_such_library", "delta", {"library": "no_such_library"}),
    ]:
        with pytest.raises((ValueError, TypeError, RuntimeError)) as caught:
            check_kernel(rule, never, **options)
        assert message in str(caught.value), caught.value


def test_lengths_and_sizes_that_a_kernel_insists_on_are_kept() -> None:
    """T in multiples of the chunk, K and heads as they must be."""
    seen: list[tuple[int, ...]] = []

    def kernel(q: Any, k: Any, v: Any, beta: Any, state: Any) -> Any:
        seen.append(q.shape)
        outs = [naive.delta(q[:, :, h], k[:, :, h], v[:, :, h], beta[:, :, h], state[:, h]) for h in range(3)]
        return np.stack([o for o, _ in outs], 2), np.stack([s for _, s in outs], 1)

    check_kernel("delta", kernel, layout="BTHK", sizes={"K": 8, "H": 3}, multiple_of=4, chunk=4, state="always", examples=20)
    assert {s[3] for s in seen} == {8} and {s[2] for s in seen} == {3} and all(s[1] % 4 == 0 for s in seen)
    assert len({s[1] for s in seen}) > 2


def test_a_kernel_without_states_is_checked_without() -> None:
    """Neither in nor out; its gradients are those of a loss on the outputs alone."""

    def kernel(q: Any, k: Any, v: Any) -> Any:
        return naive.linear(q, k, v)[0]

    report = check_kernel("linear", kernel, state="never", examples=15)
    assert report.arrays == ("out",)

    def silent(*inputs: Any) -> Any:
        return naive.linear(*inputs)[0]

    def backward(cotangents: tuple, *inputs: Any) -> tuple:
        return honest("linear")((cotangents[0], None), *inputs)

    assert "g_state" in check_kernel("linear", silent, backward=backward, examples=15).arrays


def test_what_a_kernel_gets_is_what_its_documentation_says() -> None:
    """Arrays in the order of the rule's own arguments, states as its own type."""
    for rule, arrays in RULES.items():
        name = arrays.function or rule
        form = "dual" if hasattr(arrays.module, f"{name}_dual_fwd") else "chunked"
        function = getattr(arrays.module, f"{name}_{form}_fwd")
        fixed = ("state", "chunk", "read", "minibatch", "eps", "iterations", "factor", "join")  # by keyword, 1 unless given
        names = [n for n in inspect.signature(function).parameters if n not in fixed]
        assert [n for n in SUBJECTS[rule].arguments if n not in arrays.keywords] == names
    got: list[Any] = []
    rejected("titans", lambda *a: got.append(a[-1]), plan=Plan(state=True))
    assert type(got[0]).__name__ == "TitansState"
