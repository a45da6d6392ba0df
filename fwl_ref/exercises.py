"""The notebooks' exercises check themselves: where an answer goes wrong, never what it is.

    hints = {"Is it x^T dy or dy x^T?": transposed}
    check("my_dense_bwd", my_dense_bwd, dense_bwd, cases, mistakes=hints)

prints ``not done yet``, the first wrong entry with a hint, or ``correct``. A hint comes from
``mistakes``, which maps a hint to a wrong version of the function that gives the same results.
Without a match the hint is the sign or the size of the entry. A blank, a wrong shape or an error
inside the attempt is a line too, not a traceback, so a notebook with blanks runs from top to
bottom. What holds a right answer does not matter: float32, a list, arrays stacked into one.

``agree`` and the two ``adjoint_by_differences`` are what the notebooks compare gradients with on
the way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from traceback import walk_tb
from typing import Any, NamedTuple

from .backend import Tree, host, is_host, to_numpy
from .gradcheck import directional_difference
from .tree import leaves, rebuild

__all__ = [
    "check",
    "verdict",
    "agree",
    "adjoint_by_differences",
    "second_adjoint_by_differences",
    "first_wrong",
    "WrongEntry",
]

RTOL = 1e-8  # of the largest entry: far above float64 rounding, far below a wrong formula
RTOL_FLOAT32 = 1e-5  # the same for float32


class Problem(NamedTuple):
    """What is wrong with an answer."""

    kind: str  # "blank"; "form": its type, its shape, how many results; "content": its numbers
    words: str


class WrongEntry(NamedTuple):
    """The first entry of an array that is wrong, and how many are."""

    place: tuple[int, ...]  # its index
    found: float
    expected: float
    total: int  # of wrong entries


def check(
    name: str,
    attempt: Any,
    reference: Any,
    cases: Sequence[tuple] = ((),),
    mistakes: Mapping[str, Any] | None = None,
    returns: Sequence[str] = (),
) -> None:
    """Print the ``verdict`` on an attempt."""
    print(verdict(name, attempt, reference, cases, mistakes, returns))


def verdict(
    name: str,
    attempt: Any,
    reference: Any,
    cases: Sequence[tuple] = ((),),
    mistakes: Mapping[str, Any] | None = None,
    returns: Sequence[str] = (),
) -> str:
    """One line on how ``attempt(*case)`` compares with ``reference(*case)``, case by case.

    Parameters
    ----------
    attempt, reference : functions of the same arguments; or values, if there is nothing to call
        (``cases`` left out). Results: an array, a number, a text, a shape (a tuple of ints), or a
        tuple of arrays.
    cases : tuples of arguments. Let sizes differ from each other, or a transpose goes unseen.
    mistakes : hint -> a likely wrong version of the function (or value). The hint of the first
        that the attempt agrees with is shown. In a tuple of results it is the first wrong one that
        must agree; a version may return None for the others. Instead of a version, the name of a
        result: a hint for that result if nothing before it fits; or None: for whatever is wrong.
        The last two speak of formulas, so they stay silent if the shape is wrong.
    returns : names for the entries of a tuple of results; a NamedTuple has its own.

    Returns
    -------
    ``"NAME: not done yet (returned None)"``, ``"NAME: correct"``, or what is wrong first. The
    expected number is never in it.
    """
    for number, case in enumerate(cases):
        expected = _call(reference, case)
        copy = tuple(_copy(a) for a in case)
        try:
            found = _call(attempt, copy)
        except Exception as error:  # the reader's code: any error is an answer
            words = " ".join(str(error).split())
            return f"{name}: {_line(error)}raised {type(error).__name__}: {words}"
        problem = _problem(found, expected, returns)
        if problem is None and not all(_same(a, b) for a, b in zip(copy, case, strict=True)):
            words = "the result is right, but an argument was changed in place: make a new array"
            problem = Problem("form", words)
        if problem is not None:
            if problem.kind == "blank":
                return f"{name}: {problem.words}"
            hint = _hint(found, expected, case, mistakes or {}, returns, problem.kind)
            return f"{name}: {problem.words}{f', case {number}' if len(cases) > 1 else ''}{hint}"
    return f"{name}: correct"


def agree(found: Tree, expected: Tree, rtol: float = 1e-10) -> bool:
    """True if two results have the same shapes and agree, array by array.

    Allowed is ``rtol`` times the largest entry.
    """
    found, expected = leaves((found,)), leaves((expected,))
    if [host.shape(a) for a in found] != [host.shape(b) for b in expected]:
        return False
    return all(first_wrong(a, b, rtol) is None for a, b in zip(found, expected, strict=True))


def adjoint_by_differences(
    f: Callable[..., Tree], args: tuple, cotangent: Tree, step: float = 1e-3
) -> tuple:
    """J^T cotangent of ``f`` at ``args``, entry by entry: slow, and it knows no derivative.

    Each entry is a sixth-order central difference in float64, good to about 1e-10 of the output's
    size. One result per argument; None for integers and non-arrays.

    Raises
    ------
    TypeError
        For arguments or cotangents in float32 or less: rounding would be a part in a thousand.
    """
    _refuse_few_digits((args, cotangent))
    given = leaves((cotangent,))
    results: list[Any] = []
    for i, arg in enumerate(args):
        parts = leaves((arg,))
        if not all(hasattr(a, "dtype") and a.dtype.kind == "f" for a in parts):
            results.append(None)
            continue
        gradients = [host.zeros_like(a) for a in parts]
        for j, part in enumerate(parts):
            for index in host.ndindex(part.shape):
                unit = host.zeros_like(part)
                unit[index] = 1
                tangents = [unit if k == j else None for k in range(len(parts))]
                moves = tuple(tangents if k == i else None for k in range(len(args)))
                change = leaves((directional_difference(f, args, moves, step),))
                pairs = zip(given, change, strict=True)
                gradients[j][index] = sum(float(host.sum(u * v)) for u, v in pairs)
        results.append(rebuild((arg,), gradients)[0])
    return tuple(results)


def _refuse_few_digits(tree: Tree) -> None:
    for a in leaves(tree):
        if hasattr(a, "dtype") and a.dtype.kind in "fc" and a.dtype != "float64":
            raise TypeError(f"differences need float64, got {a.dtype}: rounding would hide them")


def second_adjoint_by_differences(
    f: Callable[..., Tree], args: tuple, g_d_args: tuple, dy: Tree, step: float = 3e-3
) -> tuple:
    """g_dy and g_args of ``f_bwd`` as a function of (dy, args), from the forward pass alone.

    <g, J^T dy> = <dy, J g>, so g_dy = J g is the forward derivative along g, and g_args is the
    gradient of <dy, J g>: a difference of differences, good to about 1e-10 where ``f`` is smooth.
    ``None`` in ``g_d_args`` is zero. Raises as ``adjoint_by_differences``.
    """
    _refuse_few_digits((args, g_d_args, dy))
    tangents = tuple(None if g is None else leaves((g,)) for g in g_d_args)

    def along(*moved: Tree) -> Tree:
        return directional_difference(f, moved, tangents, step)

    return along(*args), *adjoint_by_differences(along, args, dy, step)


def first_wrong(found: Any, expected: Any, rtol: float = RTOL) -> WrongEntry | None:
    """The first entry, in reading order, that is wrong; None if there is none.

    Allowed is ``rtol`` times the largest expected entry. What is not finite is wrong on either
    side: an infinite tolerance would allow everything.
    """
    # times 1.0, for booleans cannot be subtracted
    found, expected = host.asarray(found) * 1.0, host.asarray(expected) * 1.0
    with host.errstate(invalid="ignore"):
        allowed = rtol * host.max(host.abs(expected), initial=0.0)
        wrong = ~((host.abs(found - expected) <= allowed) & host.isfinite(expected))
    if not host.any(wrong):
        return None
    index = tuple(int(i) for i in host.argwhere(wrong)[0])
    return WrongEntry(index, float(found[index]), float(expected[index]), int(host.sum(wrong)))


def _call(f: Any, args: tuple) -> Any:
    return f(*args) if callable(f) else f


def _line(error: Exception) -> str:
    """The line of the reader's function where it happened, counted from its def."""
    for frame, line in islice(walk_tb(error.__traceback__), 1, None):  # the first is verdict
        if frame.f_code.co_name not in ("_call", "<module>"):
            return f"line {line - frame.f_code.co_firstlineno + 1} "
    return ""


def _problem(
    found: Any, expected: Any, returns: Sequence[str] = (), name: str = ""
) -> Problem | None:
    """What is wrong first; None if nothing is."""
    if found is None or found is Ellipsis:
        what = f"{name} is None" if name else "returned None"
        return Problem("blank", f"not done yet ({what})")
    if isinstance(expected, str | bool):
        found = bool(found) if isinstance(found, host.bool) else found
        right = type(found) is type(expected) and found == expected
        return None if right else Problem("content", f"{_said(found)} is not it")
    if _is_shape(expected):
        words = _shape_problem(found, expected)
        return None if words is None else Problem("content", words)
    if isinstance(expected, tuple):
        names, found = _names(expected, returns), _unstacked(found, expected)
        if not isinstance(found, tuple | list) or len(found) != len(expected):
            count = len(found) if isinstance(found, tuple | list) else 1
            wanted = f"{len(expected)}: {', '.join(names)}"
            words = f"returned {count} result{'s' * (count != 1)}, expected {wanted}"
            return Problem("form", words)
        for f, e, n in zip(found, expected, names, strict=True):
            problem = None if e is None else _problem(f, e, (), f"{name}.{n}" if name else n)
            if problem is not None:
                return problem
        return None
    return _array_problem(found, expected, name)


def _unstacked(found: Any, expected: tuple) -> Any:
    """The results one by one, if the answer is one array that holds just these; else as it is."""
    array = _array(found) if hasattr(found, "dtype") else None
    if array is None or array.ndim == 0 or len(array) != len(expected):
        return found
    flat = not any(isinstance(e, tuple) for e in expected)
    fits = flat and all(e is None or host.shape(e) == array.shape[1:] for e in expected)
    return list(array) if fits else found


def _array_problem(found: Any, expected: Any, name: str) -> Problem | None:
    found, expected = _array(found), _array(expected)
    if found is None:
        return Problem("form", f"{name or 'the result'} is not an array of numbers")
    if found.shape != expected.shape:
        verb = f"{name} has " if name else ""
        return Problem("form", f"{verb}shape {found.shape}, expected {expected.shape}")
    rtol = RTOL_FLOAT32 if "float32" in (found.dtype, expected.dtype) else RTOL
    wrong = first_wrong(found, expected, rtol)
    if wrong is None:
        return None
    entry = name or "the result"
    if wrong.place:
        entry = f"{name or 'entry '}[{', '.join(map(str, wrong.place))}]"
    count = f"; {wrong.total} of {found.size} entries are wrong" if found.size > 1 else ""
    few = "; float16 has too few digits to tell" if found.dtype == "float16" else ""
    how = f"{_side(wrong)}{_pattern(found, expected, rtol)}{count}{few}"
    return Problem("content", f"first wrong entry: {entry} = {wrong.found:.3g}, {how}")


def _side(wrong: WrongEntry) -> str:
    """On which side of the expected number, without the number."""
    if not host.isfinite(wrong.found):
        return "which is not finite"
    if wrong.expected == 0:
        return "but it should be 0"
    if wrong.found == 0:
        return "but it should not be 0"
    if wrong.found * wrong.expected < 0:
        return "of the wrong sign"
    return f"too {'large' if abs(wrong.found) > abs(wrong.expected) else 'small'} in size"


def _pattern(found: Any, expected: Any, rtol: float) -> str:
    """What the wrong entries have in common."""
    if found.size < 2 or not host.all(host.isfinite(found) & host.isfinite(expected)):
        return ""
    factor = host.sum(found * expected) / max(host.sum(expected * expected), 1e-300)
    if factor != 0 and first_wrong(found, factor * expected, rtol) is None:
        if abs(factor + 1) < rtol:
            return ", as every sign is"
        return " (the whole result has one wrong factor)"
    square = found.ndim > 1 and found.shape[-1] == found.shape[-2]
    if square and first_wrong(host.swapaxes(found, -1, -2), expected, rtol) is None:
        return " (the result is the transpose)"
    return ""


def _shape_problem(found: Any, expected: tuple) -> str | None:
    if not _is_shape(found):
        return f"{_said(found)} is not a shape: a tuple of whole numbers"
    found = tuple(int(n) for n in found)  # np.int64(3) is shown as 3
    if len(found) != len(expected):
        count = "many" if len(found) > len(expected) else "few"
        return f"the shape {found} has too {count} axes"
    wrong = next((i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b), None)
    return None if wrong is None else f"the shape {found} is wrong at axis {wrong}"


def _names(expected: tuple, returns: Sequence[str]) -> Sequence[str]:
    return getattr(expected, "_fields", returns) or [f"result {i}" for i in range(len(expected))]


def _hint(
    found: Any,
    expected: Any,
    case: tuple,
    mistakes: Mapping[str, Any],
    returns: Sequence[str],
    kind: str,
) -> str:
    """The hint of the mistake that gives what was found.

    A mistake that cannot be told from the right answer here counts as none.
    """
    pick, result = (lambda x: x), None
    several = isinstance(expected, tuple) and not _is_shape(expected)
    found = _unstacked(found, expected) if several else found
    if several and isinstance(found, tuple | list) and len(found) == len(expected):
        pairs = enumerate(zip(found, expected, strict=True))
        wrong = next((i for i, (f, e) in pairs if e is not None and _problem(f, e)), 0)
        pick, result = (lambda x: x[wrong]), _names(expected, returns)[wrong]
    for hint, mistake in mistakes.items():
        of_result = isinstance(mistake, str) and not isinstance(expected, str)
        if mistake is None or of_result:
            if kind == "content" and (mistake is None or mistake == result):
                return f". Hint: {hint}"
            continue
        version = pick(_call(mistake, tuple(_copy(a) for a in case)))
        if version is None or _problem(version, pick(expected)) is None:
            continue
        if _problem(pick(found), version) is None:
            return f". Hint: {hint}"
    return ""


def _said(x: Any) -> str:
    """What was found, on one short line."""
    words = " ".join(repr(x).split())
    return words if len(words) <= 60 else f"{words[:57]}..."


def _array(x: Any) -> Any:
    """``x`` as an array of numbers on the host; None if it is none."""
    try:
        x = to_numpy(x) if hasattr(x, "dtype") and not is_host(x) else host.asarray(x)
    except (TypeError, ValueError):
        return None
    return x if x.dtype.kind in "biuf" else None


def _is_shape(x: Any) -> bool:
    numbers = type(x) in (tuple, list) and all(isinstance(n, int | host.integer) for n in x)
    return numbers and not any(isinstance(n, bool) for n in x)


def _copy(x: Any) -> Any:
    if isinstance(x, tuple):
        children = [_copy(a) for a in x]
        return type(x)(*children) if hasattr(x, "_fields") else tuple(children)
    return x.copy() if isinstance(x, host.ndarray) else x


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, tuple):
        return all(_same(c, d) for c, d in zip(a, b, strict=True))
    return host.array_equal(a, b) if isinstance(a, host.ndarray) else True
