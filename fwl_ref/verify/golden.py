"""Golden cases: one fast weight block, update rule or op, one file, so that two implementations can
be compared without sharing any code.

    python -m fwl_ref golden make DIR [--kind KIND] [--size K=64,T=128] [--dtype float32]
        [--count N] [--seed S]                      write varied cases with answers
    python -m fwl_ref golden run CASE.npz OUT.npz   answer a case of yours
    python -m fwl_ref golden check DIR [--answers MINE] [--kind KIND] [--rtol R]
                                                    recompute a folder and compare

With ``--backend cupy`` the answers are computed on a GPU, in float64 like all others.

A case is an ``.npz`` file without pickles. ``INPUTS`` says which arrays it holds. What they mean
and their shapes: ``golden_block.py`` for ``fwl``, ``sequential`` and ``dynamic_evaluation``,
``golden_rules.py`` for update rules, ``golden_around.py`` for their packed rows and heads
(``packed_RULE``, ``heads_RULE``), ``golden_ops.py`` for ``l2norm`` and ``short_conv``. Real numbers
are float64 or float32. The answers computed here are those to the numbers in the file, exact to
rounding in float64 either way.

Files written here hold inputs and answers together, so what ``run`` writes, ``check`` accepts.
Answers of yours may lie in a folder of their own, in files of the same names: ``--answers``. A file
need not have every answer, nor a folder every file: what is there is compared, the rest is listed
as missing. ``golden_answers.py`` says how far an answer may be off.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from ..backend import BACKENDS, Array, BackendError, backend_target, host, like, to_numpy
from ..files import load_arrays, save_arrays
from . import golden_around as around
from . import golden_block as block
from . import golden_ops as ops
from . import golden_rules as rules
from .golden_answers import TOLERANCE, Compared, compare
from .golden_fields import Arrays, Sizes, choice, precision, refuse

INPUTS = block.INPUTS | rules.INPUTS | ops.INPUTS | around.INPUTS
ANSWERS = block.ANSWERS | rules.ANSWERS | ops.ANSWERS | around.ANSWERS
KINDS = tuple(INPUTS)
Plan = block.Plan | rules.Plan | ops.Plan | around.Plan
PLANS: tuple[Plan, ...] = (*block.PLANS, *rules.PLANS, *ops.PLANS, *around.PLANS)


def _family(kind: str) -> ModuleType:
    """The file that knows this kind: all have the same functions."""
    return next(family for family in (block, rules, ops, around) if kind in family.KINDS)


# One case: arrays in, arrays out
# ----------------------------------------------------------------------------------------


def run_case(case: dict[str, Any], backend: str = "numpy") -> dict[str, Array]:
    """The answers to a case, by their names (``ANSWERS``), computed on ``backend`` and brought
    home.

    Raises ValueError naming the array, what was expected and what was found: see ``check_case``.
    Also if an answer is not finite.
    """
    checked, target = check_case(case), backend_target(backend)
    there = {n: like(a, target) if isinstance(a, host.ndarray) else a for n, a in checked.items()}
    with host.errstate(all="ignore"):  # found below, with a name
        found = _family(checked["kind"]).answers(there)
    answers = {name: to_numpy(a) for name, a in found.items()}
    for name, array in answers.items():
        wrong = array[~host.isfinite(array)]
        if wrong.size:
            why = "the input is too large, or a norm has eps 0 and meets a constant row"
            refuse(name, "finite answers", f"{wrong[0]}: {why}")
    return answers


def check_case(arrays: dict[str, Any]) -> dict[str, Any]:
    """The inputs among ``arrays``, checked and converted: float64 (of float32, too) and int64
    arrays, Python numbers and strings.

    Raises ValueError if an array is missing, unknown, of the wrong type or shape; if labels are out
    of range, numbers not finite, weights, step counts or rates out of range. The message names the
    array, what was expected and what was found.
    """
    arrays = {name: host.asarray(a) for name, a in arrays.items()}
    for name, array in arrays.items():
        if array.dtype.hasobject:
            refuse(name, "numbers or text", f"Python objects (dtype {array.dtype})")
    kind = choice(arrays, "kind", KINDS)
    family = _family(kind)
    known = {*family.names(kind, arrays).values(), *ANSWERS[kind]}
    for name in sorted(arrays.keys() - known):
        refuse(name, f"only the arrays of a {kind} case", "this one too: leave it out")
    return family.read_case(kind, arrays)


def answered_case(case: dict[str, Any], backend: str = "numpy") -> dict[str, Array]:
    """Inputs and answers together, as files hold them; old answers go.

    An input that has the name of an answer is renamed: ``W1`` of dynamic evaluation is ``slow_W1``.
    float32 stays float32.
    """
    inputs, answers = check_case(case), run_case(case, backend)
    names = _family(inputs["kind"]).names(inputs["kind"], case)
    written = {}
    for name, array in inputs.items():
        given = case.get(names.get(name, name))  # an optional input may not be there
        coarse = given is not None and precision(host.asarray(given)) == "float32"
        to = f"slow_{name}" if name in answers else name
        written[to] = host.asarray(array, dtype="float32" if coarse else None)
    return written | answers


# Files
# ----------------------------------------------------------------------------------------


class Result(NamedTuple):
    """One file of ``check_folder``."""

    file: str
    arrays: tuple[Compared, ...]  # the answers that are there, each compared
    missing: tuple[str, ...]  # the answers that are not
    problem: str  # why the case or its answers cannot be; empty if they can

    @property
    def ok(self) -> bool:
        """Whether there are answers, and every one of them agrees."""
        return bool(self.arrays) and not any(a.wrong for a in self.arrays)

    @property
    def worst(self) -> Compared:
        """The answer that differs most, compared with what is allowed."""
        return max(self.arrays, key=lambda a: a.error / a.tolerance)


def run_file(case_path: str | Path, out_path: str | Path, backend: str = "numpy") -> None:
    """Read a case, with answers or without, and write it with the answers computed here.

    Raises ValueError, naming the file and the array, for a case that cannot be; OSError if a file
    cannot be read or written.
    """
    arrays = load_arrays(Path(case_path))
    try:
        answered = answered_case(arrays, backend)
    except ValueError as error:
        raise ValueError(f"{case_path}: {error}") from None
    save_arrays(Path(out_path), answered)


def check_folder(
    folder: str | Path,
    backend: str = "numpy",
    *,
    answers: str | Path | None = None,
    kinds: Collection[str] = KINDS,
    rtol: float | None = None,
) -> list[Result]:
    """Recompute every ``*.npz`` of ``folder`` and compare: one Result per file, in the order of
    names. Nothing is written.

    Parameters
    ----------
    folder : of cases
    backend : where to compute
    answers : the folder of the answers, in files of the same names; None: those in the cases
    kinds : leave out cases of other kinds
    rtol : the error allowed, over an answer's largest magnitude; None: see ``golden_answers.py``

    Raises NotADirectoryError if there is no such folder, ValueError if it holds no case of these
    kinds or if ``rtol`` is not above 0 and below 1.
    """
    if rtol is not None and not 0 < rtol < 1:
        raise ValueError(f"expected rtol above 0 and below 1, found {rtol}: 1 lets zeros pass")
    for path in (Path(folder), *([] if answers is None else [Path(answers)])):
        if not path.is_dir():
            message = f"expected a folder of golden cases, found none at {str(path)!r}"
            raise NotADirectoryError(message)
    paths = sorted(Path(folder).glob("*.npz"))
    checked = [_check_file(path, backend, answers, kinds, rtol) for path in paths]
    results = [r for r in checked if r is not None]
    if not results:
        which = "" if set(kinds) == set(KINDS) else f" of kind {', '.join(kinds)}"
        expected = f"expected golden cases (*.npz){which} in {str(folder)!r}"
        raise ValueError(f"{expected}, found none: write some with `golden make`")
    return results


def _check_file(
    path: Path,
    backend: str,
    answers: str | Path | None,
    kinds: Collection[str],
    rtol: float | None,
) -> Result | None:
    """None for a case of another kind."""
    try:
        case = load_arrays(path)
        kind = check_case(case)["kind"]
        if kind not in kinds:
            return None
        stored = _answers(path, case, kind, answers)
        computed = run_case(case, backend)
    except (ValueError, OSError) as error:
        return Result(path.name, (), (), str(error))
    inputs = _family(kind).names(kind, case).values()
    coarse = any(precision(case[name]) == "float32" for name in inputs)
    missing = tuple(name for name in computed if name not in stored)
    return Result(path.name, tuple(compare(stored, computed, coarse, rtol)), missing, "")


def _answers(path: Path, case: Arrays, kind: str, folder: str | Path | None) -> Arrays:
    """Those in the case, or those in the file of the same name, if there is one."""
    inputs = set(_family(kind).names(kind, case).values())
    if folder is None:
        return {name: a for name, a in case.items() if name not in inputs}
    place = Path(folder) / path.name
    found = load_arrays(place) if place.exists() else {}
    for name in sorted(found.keys() - inputs - set(ANSWERS[kind])):
        refuse(name, f"only the arrays of a {kind} case", "this one too: leave it out")
    return {name: a for name, a in found.items() if name in ANSWERS[kind]}


def make_cases(
    folder: str | Path,
    count: int | None = None,
    seed: int = 0,
    backend: str = "numpy",
    *,
    kinds: Collection[str] = KINDS,
    sizes: Sizes | None = None,
    dtype: str = "float64",
) -> list[Path]:
    """Write ``count`` cases with their answers into ``folder`` and return the paths; a name says
    what is inside.

    Case number i depends on the options and i alone. The kinds take turns, so that a few cases have
    several of them; the default count has every plan.
    ``sizes`` fixes sizes by their letters, where a kind has them; the others are drawn. ``dtype``
    is that of the inputs, rounded to it before they are answered.

    Raises ValueError if ``count`` is below 1, ``seed`` negative, a size below 1 (T: below 0), or if
    none of the kinds has such a letter.
    """
    plans, sizes = kinds_in_turn([p for p in PLANS if p.kind in kinds]), sizes or {}
    count = len(plans) if count is None else count
    if count < 1 or seed < 0:
        found = f"found count {count} and seed {seed}"
        raise ValueError(f"expected at least 1 case and a seed >= 0, {found}")
    letters = sorted(set().union(*(_family(plan.kind).letters(plan.kind) for plan in plans)))
    for letter, size in sizes.items():
        if letter not in letters or size < (letter != "T"):
            expected = f"expected sizes >= 1 of {', '.join(letters)}"
            raise ValueError(f"{expected}, found {letter}={size}")
    digits, paths = max(2, len(str(count - 1))), []
    for i in range(count):
        plan = plans[i % len(plans)]
        case = draw_case(plan, host.random.default_rng([seed, i]), sizes)
        case = {n: a.astype(dtype) if a.dtype.kind == "f" else a for n, a in case.items()}
        rounded = "" if dtype == "float64" else f"_{dtype}"
        name = f"{i:0{digits}d}_{_family(plan.kind).describe(plan, case)}{rounded}.npz"
        paths.append(Path(folder) / name)
        save_arrays(paths[-1], answered_case(case, backend))
    return paths


def kinds_in_turn(plans: Sequence[Plan]) -> list[Plan]:
    """The first plan of every kind, then the second of those that have one, ..."""
    earlier: Counter[str] = Counter()
    turns = []
    for plan in plans:
        turns.append(earlier[plan.kind])
        earlier[plan.kind] += 1
    return [plan for _, plan in sorted(zip(turns, plans, strict=True), key=lambda pair: pair[0])]


def draw_case(plan: Plan, rng: Any, sizes: Sizes | None = None) -> Arrays:
    """The inputs of a case: sizes that are not given and numbers from ``rng``, the rest from
    ``plan``.
    """
    sizes = sizes or {}
    plan = plan._replace(length=sizes.get("T", plan.length))
    case = _family(plan.kind).draw_case(plan, rng, sizes)
    return {name: host.asarray(a) for name, a in case.items()}


# Command line
# ----------------------------------------------------------------------------------------


_SHORT = ", ".join([*block.KINDS, *rules.KINDS, *ops.KINDS, "packed_RULE, heads_RULE"])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``golden make | run | check`` as subcommands of ``parser``; ``main`` does what they say."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="make|run|check")
    make = actions.add_parser("make", help="write varied cases with their answers")
    make.add_argument("folder", metavar="DIR")
    count_help = "how many (default: one of every plan)"
    make.add_argument("--count", type=int, metavar="N", help=count_help)
    seed_help = "of the numbers drawn (default %(default)s)"
    make.add_argument("--seed", type=int, default=0, metavar="S", help=seed_help)
    size_help = "sizes by their letters; the others are drawn"
    make.add_argument("--size", type=_sizes, default={}, metavar="K=64,T=128", help=size_help)
    dtype_help = "of the inputs; answers are float64 (default %(default)s)"
    make.add_argument("--dtype", choices=TOLERANCE, default="float64", help=dtype_help)
    run = actions.add_parser("run", help="compute the answers to a case of yours")
    run.add_argument("case", metavar="CASE.npz")
    run.add_argument("out", metavar="OUT.npz")
    check = actions.add_parser("check", help="recompute a folder of cases and compare")
    check.add_argument("folder", metavar="DIR")
    answers_help = "a folder of your answers, in files of the same names (default: DIR)"
    check.add_argument("--answers", metavar="MINE", help=answers_help)
    allowed = ", ".join(f"{t:g} in {dtype}" for dtype, t in TOLERANCE.items())
    rtol_help = f"error allowed, over an answer's largest magnitude (default: {allowed})"
    check.add_argument("--rtol", type=float, metavar="R", help=rtol_help)
    kind_help = f"only this kind ({_SHORT}); may be given several times (default: all)"
    for action in (make, check):
        kind = action.add_argument("--kind", action="append", choices=KINDS, help=kind_help)
        kind.metavar = "KIND"
    where_help = "where to compute (default %(default)s)"
    for action in (make, run, check):
        action.add_argument("--backend", choices=BACKENDS, default="numpy", help=where_help)


def _sizes(text: str) -> Sizes:
    """K=64,T=128 -> {"K": 64, "T": 128}"""
    pairs = [item.partition("=") for item in text.split(",")]
    if not all(equals and value.isdecimal() for _, equals, value in pairs):
        raise argparse.ArgumentTypeError(f"expected sizes such as K=64,T=128, found {text!r}")
    return {letter: int(value) for letter, _, value in pairs}


def main(args: argparse.Namespace) -> int:
    """Do what the command line asks. 0: done, and every answer there is agrees; 1: an answer
    differs, there is none at all, or a case cannot be; 2: nothing could be done.
    """
    try:
        if args.action == "run":
            run_file(args.case, args.out, args.backend)
            print(f"wrote {args.out}")
            return 0
        kinds = args.kind or KINDS
        if args.action == "check":
            more = {"answers": args.answers, "kinds": kinds, "rtol": args.rtol}
            return _report(check_folder(args.folder, args.backend, **more))
        drawn = {"kinds": kinds, "sizes": args.size, "dtype": args.dtype}
        paths = make_cases(args.folder, args.count, args.seed, args.backend, **drawn)
        print(f"wrote {len(paths)} cases to {args.folder}")
    except (ValueError, OSError, BackendError) as error:
        print(f"golden {args.action}: {error}", file=sys.stderr)
        return 2
    return 0


def _report(results: list[Result]) -> int:
    """A line per case, one per array, one for what is missing. 1 if an answer differs, if a case
    cannot be, or if there is no answer at all.
    """
    for r in results:
        verdict = "ok  " if r.ok else "BAD " if r.problem else "DIFF" if r.arrays else "none"
        print(f"{verdict} {r.file}" + (f"  {r.problem}" if r.problem else ""))
        for array in r.arrays:
            print(f"     {array}")
        if r.arrays and r.missing:
            print(f"     missing, not compared: {', '.join(r.missing)}")
    answered = [r for r in results if r.arrays or r.problem]
    good, missing = sum(r.ok for r in results), sum(len(r.missing) for r in answered)
    silent = len(results) - len(answered)
    rest = f"; answers missing: {missing}" if missing else ""
    rest += f"; cases without answers: {silent}" if silent else ""
    print(f"{good} of {len(answered)} cases agree in every answer they have{rest}")
    return 0 if answered and good == len(answered) else 1
