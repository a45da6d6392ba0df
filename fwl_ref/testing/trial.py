"""One case: what the reference says, and what the kernel says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ..backend import Array, host
from . import compare, layouts, packed
from .cases import Plan, draw
from .libraries import converter, flat, home
from .options import Options
from .subjects import Arrays, Settings, Subject, state_out

Answer = Callable[[Subject, Arrays, Settings], Arrays]


class Trial(NamedTuple):
    """A case with both answers, in the kernel's layout."""

    plan: Plan
    case: Arrays
    expected: Arrays
    found: Arrays
    differences: list[compare.Difference]
    problem: str = ""  # why there is nothing to compare

    @property
    def failed(self) -> bool:
        """Whether the kernel is wrong about it."""
        return bool(self.differences or self.problem)


def reference(subject: Subject, arrays: Arrays, settings: Settings) -> Arrays:
    """The exact answers of one head."""
    return subject.answers(arrays, settings)


def answers(subject: Subject, case: Arrays, options: Options, answer: Answer = reference) -> Arrays:
    """The answers to a case in the kernel's layout, as ``answer`` gives them for one head."""
    first = next(iter(subject.outputs))
    count = case[f"cot_{first}"].shape[layouts.head_letters(subject.outputs[first]).index("H")]
    heads = []
    for head in range(count):
        arrays = layouts.inputs_of_head(subject, case, options, head)
        heads.append(answer(subject, arrays, options.settings))
    full = layouts.expected(subject, case, options, heads)
    return {name: layouts.present(subject, name, a, options) for name, a in full.items()}


# --- the kernel's side


def attempt(
    subject: Subject,
    kernel: Callable[..., Any],
    backward: Callable[..., Any] | None,
    options: Options,
    plan: Plan,
    rtol: float | None = None,
    case: Arrays | None = None,
) -> Trial:
    """Run the kernel on a case and compare. What it raises becomes the trial's ``problem``."""
    case = draw(subject, plan, options) if case is None else case
    convert = converter(options)
    row = packed.documents(plan.B, plan.tokens, options) if options.packed else None
    given = {n: layouts.present(subject, n, a, options) for n, a in case.items()}
    given = packed.pack(subject, options, row, given) if row else given
    there = {n: convert(a) for n, a in given.items()}
    inputs = [_argument(there, argument) for argument in subject.arguments]
    if subject.state and options.state != "never":
        empty = not plan.state and options.state == "optional"
        names = tuple(subject.state)
        group = (subject.state_type, names) if subject.state_type else names[0]
        inputs.append(None if empty else _argument(there, group))
    if row:
        inputs.append(convert(packed.cu_seqlens(row)))

    found: Arrays = {}
    try:
        returned = _returned(subject, kernel(*inputs))
        for name, a in returned.items():
            found[name] = home(a)
    except Exception as error:  # whatever a kernel raises is the finding
        return Trial(plan, case, {}, {}, [], f"it raised {type(error).__name__}: {error}")
    case = _unused(subject, case, returned)
    expected = answers(subject, case, options)
    shaped = packed.pack(subject, options, row, expected) if row else expected
    problem = _shapes(found, shaped)
    if problem:
        return Trial(plan, case, expected, found, [], problem)
    if backward is not None:
        try:
            cotangents = _cotangents(subject, there, returned)
            gradients = backward(cotangents, *inputs)
            found |= _gradients(subject, gradients, options, plan)
        except Exception as error:
            why = f"its backward pass raised {type(error).__name__}: {error}"
            return Trial(plan, case, expected, found, [], why)
        problem = _shapes(found, shaped)
        if problem:
            return Trial(plan, case, expected, found, [], problem)
    found = packed.unpack(subject, options, row, found) if row else found
    if "g_state_H" in found:  # only symmetric changes have a meaning
        g = found["g_state_H"]
        found["g_state_H"] = 0.5 * (g + host.matrix_transpose(g))
    wrong = differences(subject, case, options, expected, found, rtol)
    return Trial(plan, case, expected, found, wrong)


def differences(
    subject: Subject,
    case: Arrays,
    options: Options,
    expected: Arrays,
    found: Arrays,
    rtol: float | None,
) -> list[compare.Difference]:
    """The arrays out of bounds, outputs first. See ``compare`` for the bound."""
    given = options.sizes
    terms = sum(case["x" if "x" in case else "q"].shape[axis] for axis in (1, -1))
    terms += max(given.values(), default=0)
    bound = compare.tolerance(options.dtype, terms) if rtol is None else rtol
    kept = {name: expected[name] for name in found}
    names = [name for name in expected if name in found]
    wrong = [d for n in names if (d := compare.difference(n, found[n], kept, bound))]
    if rtol is not None or all(d.error > compare.HOPELESS * d.allowed for d in wrong):
        return wrong
    spread = _spread(subject, case, options, expected)
    return [
        d for w in wrong
        if (d := compare.difference(w.array, found[w.array], kept, bound, spread[w.array]))
    ]  # fmt: skip


def _spread(subject: Subject, case: Arrays, options: Options, expected: Arrays) -> dict[str, float]:
    """How much each exact answer moves with inputs that are off by rounding, before and after what
    the layout does to them.
    """
    unit, spread = compare.ROUNDOFF[options.dtype], dict.fromkeys(expected, 0.0)
    for seed in range(3):
        rng = host.random.default_rng(seed)

        def moved(arrays: Arrays, rng: Any = rng) -> Arrays:
            return {
                n: a * (1 + rng.choice((-unit, unit), a.shape)) if _moves(n, a) else a
                for n, a in arrays.items()
            }

        def answer(
            subject: Subject, arrays: Arrays, settings: Settings, moved: Any = moved
        ) -> Arrays:
            return moved(subject.answers(moved(arrays), settings))

        for name, a in answers(subject, moved(case), options, answer).items():
            change = host.max(host.abs(a - expected[name]), initial=0.0)
            spread[name] = max(spread[name], float(change))
    return spread


def _moves(name: str, a: Array) -> bool:
    """Whether rounding makes another number of it that is as good; H must stay symmetric."""
    return host.asarray(a).dtype.kind == "f" and name != "state_H"


# --- arguments and results


def _argument(arrays: Arrays, argument: Any) -> Any:
    """One argument of the kernel: an array, or a tuple of them."""
    if isinstance(argument, str):
        return arrays[argument]
    kind, names = argument
    return kind(*(arrays[name] for name in names))


def _returned(subject: Subject, returned: Any) -> Arrays:
    """What the kernel returned, by name: outputs, then the state if it returns one."""
    parts = returned if isinstance(returned, tuple | list) else (returned,)
    names = [*subject.outputs, *(["state"] if subject.state else [])]
    if len(parts) > len(names):
        raise ValueError(f"expected at most {' and '.join(names)}, got {len(parts)} results")
    found: Arrays = {}
    for name, part in zip(names, parts, strict=False):
        if name != "state":
            if part is None:
                raise ValueError(f"expected {name} first, got None")
            found[name] = part
        elif part is not None:
            arrays = _arrays(part)
            if len(arrays) != len(subject.state):
                raise ValueError(f"the state must be {', '.join(subject.state)}, got {len(arrays)}")
            found |= zip(map(state_out, subject.state), arrays, strict=True)
    return found


def _arrays(part: Any) -> list[Any]:
    """The arrays of a state or of parameters; the place of a mini-batch under way is none."""
    return flat(part[:2] if hasattr(part, "place") else part)


def _unused(subject: Subject, case: Arrays, returned: Arrays) -> Arrays:
    """A final state that the kernel keeps to itself is used by nobody: its cotangent is 0."""
    kept = [f"cot_{n}" for n in subject.cotangents if n not in returned]
    return case | {name: host.zeros_like(case[name]) for name in kept}


def _cotangents(subject: Subject, there: Arrays, returned: Arrays) -> tuple[Any, ...]:
    """One for each thing returned; None where nobody uses it."""
    outputs = tuple(there.get(f"cot_{n}") for n in subject.outputs if n in returned)
    states = [there[f"cot_{state_out(n)}"] for n in subject.state if state_out(n) in returned]
    if not states:
        return outputs
    return (*outputs, subject.state_type(*states) if subject.state_type else states[0])


def _gradients(subject: Subject, given: Any, options: Options, plan: Plan) -> Arrays:
    """The gradients handed over, by name, in the order of the inputs; None is skipped."""
    names = [a if isinstance(a, str) else a[1] for a in subject.arguments]
    if subject.state and options.state != "never":
        names.append(tuple(subject.state) if subject.state_type else next(iter(subject.state)))
    if options.packed:
        names.append("cu_seqlens")
    parts = list(given) if isinstance(given, tuple | list) else [given]
    if len(parts) > len(names):
        raise ValueError(f"expected {len(names)} gradients at most, got {len(parts)}")
    found: Arrays = {}
    for name, part in zip(names, parts, strict=False):
        if part is None:
            continue
        if isinstance(name, str):
            found[f"g_{name}"] = home(part)
        else:
            pairs = zip(name, _arrays(part), strict=True)
            found |= {f"g_{n}": home(a) for n, a in pairs if a is not None}
    constant = ("g_labels", "g_weights", "g_mask", "g_cu_seqlens")
    return {n: a for n, a in found.items() if n not in constant}


def _shapes(found: Arrays, expected: Arrays) -> str:
    """What is wrong about the shapes; empty if nothing is."""
    for name, a in found.items():
        want = expected[name].shape
        if a.shape != want:
            swapped = "" if a.ndim < 2 or a.shape != _swapped(want) else ": it is transposed"
            return f"{name} has shape {a.shape}, expected {want}{swapped}"
    return ""


def _swapped(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:-2], shape[-1], shape[-2]) if len(shape) > 1 else shape
