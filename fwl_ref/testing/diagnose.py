"""What a kernel does wrong, in words.

Its answers to several cases are compared with those that classic faults give (``faults``). If none
fits everywhere, it says what differs first and how: the array, the sequence, head, token and chunk,
a constant factor, a shift, an order; and with two probes, whether a token depends on one that it
must not know of.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ..backend import Array, host
from . import compare, layouts
from .faults.common import Fault, NotHere
from .faults.table import faults
from .options import Options
from .subjects import Subject
from .trial import Trial, answers, reference


class Diagnosis(NamedTuple):
    """A sentence, and what it rests on."""

    name: str  # of the fault; "" if it is none of those known
    sentence: str
    first: str  # where the first difference is


def diagnose(
    subject: Subject,
    options: Options,
    smallest: Trial,
    evidence: list[Trial],
    rerun: Callable[[Trial, dict[str, Array]], Trial],
) -> Diagnosis:
    """``evidence``: other cases; ``rerun(trial, changes)``: the kernel on a changed case."""
    if smallest.problem:
        return Diagnosis("", smallest.problem, "")
    first = smallest.differences[0]
    where = locate(subject, options, first)
    usable = [smallest, *(t for t in evidence if not t.problem)]
    backward = all(d.array.startswith("g_") for t in usable for d in t.differences)
    for fault in faults(subject, options):
        if all(_explains(fault, subject, options, trial, backward) for trial in usable):
            return Diagnosis(fault.name, fault.sentence, where)
    finite = all(host.all(host.isfinite(a)) for t in usable for a in t.found.values())
    found = _probed(subject, options, usable, rerun) if finite else None
    if found:
        return Diagnosis(*found, where)
    name, sentence = _described(subject, options, usable, backward)
    return Diagnosis(name, sentence, where)


def _explains(
    fault: Fault, subject: Subject, options: Options, trial: Trial, backward: bool
) -> bool:
    """Whether a kernel with this fault would say what the kernel said."""
    names = [n for n in trial.found if n.startswith("g_") == backward]
    if backward:
        wrong = {d.array for d in trial.differences}
        names = [n for n in names if n in wrong] or names
    try:
        with host.errstate(all="ignore"):
            said = answers(subject, trial.case, fault.options or options, fault.answer or reference)
    except (NotHere, ValueError, FloatingPointError, host.linalg.LinAlgError):
        return False
    if not set(names) <= set(said):
        return False
    if trial.failed and not any(
        _differs(said[d.array], d) for d in trial.differences if d.array in said
    ):
        return False
    return all(_same(said[n], trial, n, options) for n in names)


def _same(said: Array, trial: Trial, name: str, options: Options) -> bool:
    """To rounding, or a thousand times nearer than the right answer is."""
    found, size = trial.found[name], compare.magnitude(trial.expected, name)
    if said.shape != found.shape:
        return False
    with host.errstate(all="ignore"):
        off = host.abs(said - found)
        gap = float(host.max(host.abs(trial.expected[name] - found), initial=0.0))
        size = max(size, float(host.max(host.abs(said), initial=0.0)))
        bound = max(compare.tolerance(options.dtype, 100) * size, 1e-3 * gap)
        return bool(host.all((off <= bound) | (host.isnan(said) & host.isnan(found))))


def _differs(said: Array, difference: compare.Difference) -> bool:
    """Whether an answer is off by as much as the kernel's: what agrees with the right one explains
    nothing.
    """
    if said.shape != difference.expected.shape:
        return True
    with host.errstate(all="ignore"):
        off = host.max(host.abs(said - difference.expected))
        gap = host.max(host.abs(difference.found - difference.expected))
    return not off < 0.5 * gap


# --- where


def locate(subject: Subject, options: Options, difference: compare.Difference) -> str:
    """The first wrong entry in words: array, index, token, chunk, both numbers."""
    letters = layouts.shown(subject, difference.array, options)
    wrong = difference.wrong
    index = [int(i) for i in host.argwhere(wrong)[0]]
    words = []
    if "T" in letters:
        axis = letters.index("T")
        tokens = host.any(wrong, axis=tuple(i for i in range(wrong.ndim) if i != axis))
        token = int(host.argwhere(tokens)[0][0])
        index = [int(i) for i in host.argwhere(host.moveaxis(wrong, axis, 0))[0]]
        index = [*index[1 : axis + 1], token, *index[axis + 1 :]]
        words.append(f"token {token} of {len(tokens)}")
        words.append(f"chunk {token // options.chunk}")
    at = tuple(index)
    place = f"{difference.array}[{', '.join(map(str, at))}]" if at else difference.array
    axes = f" ({','.join(letters)})" if letters else ""
    found, want = float(difference.found[at]), float(difference.expected[at])
    detail = f", {', '.join(words)}" if words else ""
    return f"{place}{axes}{detail}: {found:.6g} instead of {want:.6g}"


# --- probes


def _probed(
    subject: Subject,
    options: Options,
    trials: list[Trial],
    rerun: Callable[[Trial, dict[str, Array]], Trial],
) -> tuple[str, str] | None:
    """Whether something depends on a token that it must not know of."""
    trial = max(trials, key=lambda t: t.plan.tokens)
    if trial.plan.tokens < 2:
        return None
    value = "x" if "x" in subject.tokens else "v"
    later = host.array(trial.case[value])
    later[:, -1, ...] += 1.0
    after = rerun(trial, {value: later})
    for name in (n for n in subject.outputs if n in trial.found and not after.problem):
        if _moves(subject, options, name, trial, after, slice(0, -1)):
            return (
                "sees the future",
                f"a token sees its future: {name} of earlier tokens changes with {value} of "
                f"the last one; "
                "a mask is missing or transposed",
            )
    # the gradients of a token know nothing of an earlier token's query and cotangent
    past = [f"cot_{next(iter(subject.outputs))}", *(n for n in ("q",) if n in subject.tokens)]
    first = {name: host.array(trial.case[name]) for name in past}
    for a in first.values():
        a[:, 0, ...] += 1.0
    after = rerun(trial, first)
    if after.problem:
        return None
    for name in (f"g_{n}" for n in subject.tokens if f"g_{n}" in trial.found):
        if _moves(subject, options, name, trial, after, slice(1, None)):
            return (
                f"{name} transposed",
                f"transposed: {name} of later tokens changes with the first token's query and "
                f"cotangent, on which they have no influence: a "
                " product of the backward pass is transposed (scores where their transpose "
                "belongs)",
            )
    return None


def _moves(
    subject: Subject, options: Options, name: str, before: Trial, after: Trial, part: slice
) -> bool:
    axis = layouts.shown(subject, name, options).index("T")
    a, b = (host.moveaxis(t.found[name], axis, 0)[part] for t in (before, after))
    size = compare.magnitude(before.expected, name)
    bound = 4 * compare.tolerance(options.dtype, before.plan.tokens) * size
    return bool(host.any(~(host.abs(a - b) <= bound)))


# --- how


def _described(
    subject: Subject, options: Options, trials: list[Trial], backward: bool
) -> tuple[str, str]:
    """What the numbers say, where no known fault fits."""
    first = trials[0].differences[0]
    name = first.array
    pairs = [(t.found[name], t.expected[name]) for t in trials if name in t.found]
    letters = layouts.shown(subject, name, options)
    others = [n for n in trials[0].found if n.startswith("g_") == backward]
    wrong = {d.array for t in trials for d in t.differences}
    alone = "; everything else agrees" if wrong == {name} and len(others) > 1 else ""
    if any(not host.all(host.isfinite(found)) for found, _ in pairs):
        why = "; an exp without its largest argument taken out, a logarithm or quotient of 0?"
        return "not finite", f"{name} is not finite{why}"
    every = [d for t in trials for d in t.differences]
    if all(d.error <= 100 * d.allowed and d.error < 0.05 for d in every):
        times = max(d.error / d.allowed for d in every)
        return (
            "rounding",
            f"rounding, by its size: {name} is off by up to {times:.2g} times what "
            f"{options.dtype} explains{alone}; are sums kept in a "
            "precision as low as that of the arrays? rtol=... allows more",
        )
    unit = compare.ROUNDOFF[options.dtype]
    for lower in (dtype for dtype, u in compare.ROUNDOFF.items() if unit < u):
        if all(d.error <= compare.tolerance(lower, 100) for d in every):
            return (
                f"rounds to {lower}",
                f"rounding, by its size: {name} is off by as much as {lower} is, "
                f"where arrays are {options.dtype}; is something computed or kept in {lower}?",
            )
    if all(not host.any(found) for found, _ in pairs):
        return f"{name} zero", f"{name} is all zeros{alone}"
    factor = _factor(pairs)
    if factor is not None:
        return (
            f"{name} times {factor:.4g}",
            f"scale: {name} is {_named(factor, trials, options)} what it should be{alone}",
        )
    if letters.endswith(("KE", "EK", "EE", "KK")) and all(
        f.shape[-1] == f.shape[-2] and _near(host.matrix_transpose(f), w) for f, w in pairs
    ):
        return (
            f"{name} transposed",
            f"transposed: {name} is the transpose of what it should be{alone}",
        )
    if "T" in letters:
        axis = letters.index("T")
        moved = [(host.moveaxis(f, axis, 0), host.moveaxis(w, axis, 0)) for f, w in pairs]
        long = [(f, w) for f, w in moved if len(f) > 1]
        if long and all(_near(f[::-1], w) for f, w in long):
            return f"{name} reversed", f"{name} has its tokens in reversed order{alone}"
        if long and all(_near(f[1:], w[:-1]) for f, w in long):
            return f"{name} one late", f"off by one: {name} is one token late{alone}"
        if long and all(_near(f[:-1], w[1:]) for f, w in long):
            return f"{name} one early", f"off by one: {name} is one token early{alone}"
        starts = {int(host.argwhere(_bad(f, w))[0][0]) for f, w in long if _bad(f, w).any()}
        if starts and all(s and s % options.chunk == 0 for s in starts):
            return (
                f"{name} from a chunk's start",
                f"{name} is right up to the end of a chunk and wrong from the next one's first "
                f"token on: the state is carried wrongly{alone}",
            )
    return "", f"{name} differs{alone}; it is none of the faults known here"


def _bad(found: Array, want: Array) -> Array:
    """Which tokens are off, tokens first."""
    size = float(host.max(host.abs(want), initial=0.0)) or 1.0
    off = host.reshape(host.abs(found - want), (len(found), -1))
    return host.any(off > 1e-3 * size, axis=1)


def _near(a: Array, b: Array) -> bool:
    size = float(host.max(host.abs(b), initial=0.0))
    return a.shape == b.shape and bool(host.max(host.abs(a - b), initial=0.0) <= 1e-3 * size)


def _factor(pairs: list[tuple[Array, Array]]) -> float | None:
    """The constant by which all found answers are the right ones' multiples."""
    found = host.concat([host.reshape(f, -1) for f, _ in pairs])
    want = host.concat([host.reshape(w, -1) for _, w in pairs])
    norm = float(want @ want)
    if not norm:
        return None
    c = float(found @ want) / norm
    left = host.max(host.abs(found - c * want))
    return c if abs(c - 1) > 1e-3 and left <= 1e-3 * host.max(host.abs(found)) else None


def _named(factor: float, trials: list[Trial], options: Options) -> str:
    """A factor in words."""
    for value, word in ((-1.0, "minus"), (2.0, "twice"), (0.5, "half")):
        if abs(factor - value) < 1e-3:
            return word
    return f"{factor:.6g} times"
