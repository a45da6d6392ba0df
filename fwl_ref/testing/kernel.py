"""``check_kernel``: property tests for somebody else's kernel in two lines.

    from fwl_ref.testing import check_kernel
    check_kernel("gated_delta", my_kernel)

draws cases, compares outputs, final state and gradients with the reference, and if anything
differs raises KernelError with the smallest such case and a sentence that says what is wrong.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ..backend import Array, host
from ..files import save_arrays
from ..verify.golden_rules import RULES
from .cases import Plan, lengths, plans, strategies
from .diagnose import diagnose
from .layouts import inputs_of_head
from .options import Options, check_options
from .subjects import Arrays, Subject, state_out, subject
from .trial import Trial, attempt


class KernelError(AssertionError):
    """The kernel differs from the reference. ``fault`` is the short name of what is wrong, empty if
    it is none that is known; ``plan`` the smallest case.
    """

    def __init__(self, message: str, fault: str, plan: Plan) -> None:
        super().__init__(message)
        self.fault, self.plan = fault, plan


class Report(NamedTuple):
    """What was compared, if all agrees."""

    rule: str
    cases: int
    arrays: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.rule}: {self.cases} cases agree in {', '.join(self.arrays)}"


def check_kernel(
    rule: str,
    kernel: Callable[..., Any],
    *,
    backward: Callable[..., Any] | None = None,
    examples: int = 50,
    seed: int = 0,
    plan: Plan | None = None,
    rtol: float | None = None,
    save: str | Path | None = None,
    **options: Any,
) -> Report:
    """Compare a kernel with the reference on drawn cases.

    Parameters
    ----------
    rule : the name of an update rule, "linear_attention", "masked_attention", "attention" or
        "fast_block"
    kernel : takes the rule's arrays in their order, then the state (an array, a tuple of arrays, or
        None), and returns the output, or the output and the final state
    backward : ``backward(cotangents, *inputs)``, inputs as the kernel got them, one cotangent for
        each thing it returned; returns gradients in the order of the inputs, None for one not to be
        compared. For autograd: ``torch_gradients(kernel)``, ``jax_gradients(kernel)``
    examples, seed : how many cases are drawn, and from where
    plan : run this case alone
    rtol : the error allowed, over the largest magnitude; None: the bound of ``compare``
    save : a folder for the smallest failing case with its answers, as a golden file
    options : what the kernel wants, by the names of ``Options``

    Raises
    ------
    KernelError
        An AssertionError: what differs, where, what is the likely fault, and how to run it again.
    ValueError, TypeError, BackendError
        An unknown rule or option, or a library that is missing.
    """
    target = subject(rule)
    checked = check_options(target, _options(options))
    check = _Check(target, kernel, backward, checked, rtol)
    if plan is not None:
        smallest = check.run(plan)
        count, arrays = 1, tuple(smallest.found)
    else:
        smallest, count, arrays = _search(check, examples, seed)
    if not smallest.failed:
        return Report(rule, count, arrays)
    evidence = check.evidence()
    diagnosis = diagnose(target, checked, smallest, evidence, check.rerun)
    file = _save(target, smallest, checked, Path(save)) if save is not None else None
    message = _message(check, smallest, diagnosis.sentence, diagnosis.first, file)
    raise KernelError(message, diagnosis.name, smallest.plan)


class _Check(NamedTuple):
    """A kernel and how it is run."""

    subject: Subject
    kernel: Callable[..., Any]
    backward: Callable[..., Any] | None
    options: Options
    rtol: float | None

    def run(self, plan: Plan, case: Arrays | None = None) -> Trial:
        return attempt(
            self.subject, self.kernel, self.backward, self.options, plan, self.rtol, case
        )

    def rerun(self, trial: Trial, changes: dict[str, Array]) -> Trial:
        return self.run(trial.plan, trial.case | changes)

    def evidence(self) -> list[Trial]:
        """Cases in which faults show and differ from one another."""
        options, chunk = self.options, self.options.chunk
        sizes = options.sizes
        states = {"optional": (True, False), "always": (True,), "never": (False,)}[options.state]
        states = states if self.subject.state else (False,)
        if self.subject.needs_state:
            states = (True,)
        allowed = lengths(options)
        wanted = (3, 2 * chunk + max(1, chunk // 2), chunk)
        near = [min(allowed, key=lambda n, w=w: abs(n - w)) for w in dict.fromkeys(wanted)]
        heads = sizes.get("H", 1 if options.layout == "BTK" else 2)
        shapes = [(sizes.get("K", k), sizes.get("E", e)) for k, e in ((4, 4), (4, 3))]
        return [
            self.run(Plan(sizes.get("B", 2), heads, length, K, E, state, seed=1))
            for length in near
            for K, E in dict.fromkeys(shapes)
            for state in states
        ]


def _search(check: _Check, examples: int, seed: int) -> tuple[Trial, int, tuple[str, ...]]:
    """The smallest failing trial, or the last one; how many ran; what was compared."""
    strategies()  # says what to install
    import hypothesis as h

    last: list[Trial] = []
    failed: list[Trial] = []
    arrays: dict[str, None] = {}

    @h.seed(seed)
    @h.settings(
        max_examples=examples, database=None, deadline=None, report_multiple_bugs=False,
        suppress_health_check=list(h.HealthCheck), print_blob=False, derandomize=False,
        phases=(h.Phase.generate, h.Phase.shrink), verbosity=h.Verbosity.quiet,
    )  # fmt: skip
    @h.given(plans(check.subject, check.options))
    def property_(plan: Plan) -> None:
        trial = check.run(plan)
        last.append(trial)
        arrays.update(dict.fromkeys(trial.found))
        if trial.failed:
            failed.append(trial)
            raise _Failed

    try:
        property_()
    except _Failed:
        return failed[-1], len(last), tuple(arrays)
    except h.errors.Flaky:
        smallest = min(failed, key=lambda t: (t.plan.tokens, t.plan))
        why = "it gave two different answers to the same inputs: it depends on something else"
        return smallest._replace(problem=why), len(last), tuple(arrays)
    return last[-1], len(last), tuple(arrays)


class _Failed(Exception):
    """For Hypothesis: this case fails."""


def _options(given: dict[str, Any]) -> Options:
    """Raises TypeError naming the option that does not exist and the nearest that does."""
    for name in given:
        if name not in Options._fields:
            near = difflib.get_close_matches(name, Options._fields, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(Options._fields)}"
            raise TypeError(f"check_kernel has no option {name!r}: {hint}")
    return Options(**given)


# --- what is said


def _message(check: _Check, trial: Trial, sentence: str, where: str, file: Path | None) -> str:
    lines = [f"{check.subject.name}: {sentence}"]
    if where:
        first, *rest = trial.differences
        lines.append(f"  first: {where}")
        lines.append(f"  error {first.error:.3g} of the largest entry, allowed {first.allowed:.3g}")
        if rest:
            also = ", ".join(f"{d.array} ({d.error:.3g})" for d in rest)
            lines.append(f"  also wrong: {also}")
        wrong = {d.array for d in trial.differences}
        right = [name for name in trial.found if name not in wrong]
        if right:
            lines.append(f"  right: {', '.join(right)}")
    lines.append(f"  smallest case: {trial.plan}")
    lines.append(
        "  again: the same call with plan=Plan(...) as above (from fwl_ref.testing import Plan)"
    )
    if file:
        lines.append(f"  its arrays and the right answers: {file}")
    return "\n".join(lines)


def _save(subject: Subject, trial: Trial, options: Options, folder: Path) -> Path:
    """The case of the first head as a file; for update rules a golden one, for ``python -m fwl_ref
    golden run``.
    """
    arrays = inputs_of_head(subject, trial.case, options, 0)
    answers = {n: host.asarray(a) for n, a in subject.answers(arrays, options.settings).items()}
    case: dict[str, Any] = {"kind": subject.name} | arrays | answers
    case |= {"read": options.read, "chunk": options.chunk if options.stale else 0}
    for name in subject.state:
        case[f"cot_{name}"] = case.pop(f"cot_{state_out(name)}")
    rule = RULES.get(subject.name)
    named = (*rule.counts, *rule.numbers) if rule else ()
    case |= {name: options.settings[name] * 1 for name in named}
    path = folder / f"{subject.name}_B{trial.plan.B}T{trial.plan.tokens}_seed{trial.plan.seed}.npz"
    save_arrays(path, {name: host.asarray(a) for name, a in case.items()})
    return path
