"""Golden cases: one fast weight block or update rule, one file, so that two implementations can be
compared without sharing any code.

    python -m fwl_ref golden make DIR [--count N] [--seed S]     write varied cases with answers
    python -m fwl_ref golden run CASE.npz OUT.npz                answer a case of yours
    python -m fwl_ref golden check DIR                           recompute a folder and compare

With ``--backend cupy`` the answers are computed on a GPU, in float64 like all others.

A case is an ``.npz`` file without pickles; real numbers are float64. ``INPUTS`` says which arrays
it holds. What they mean and their shapes: ``golden_block.py`` for the kinds ``fwl`` and
``dynamic_evaluation``, ``golden_rules.py`` for update rules. Files written here hold inputs and
answers together, so what ``run`` writes, ``check`` accepts.

An answer is compared by its largest error over its own largest magnitude, and ``TOLERANCE`` is
allowed. Arrays whose entries are all below ``FLOOR`` are compared as if their magnitude were
``FLOOR``: they may be rounding errors of an exact zero.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from ..backend import BACKENDS, Array, BackendError, backend_target, host, like, to_numpy
from ..files import load_arrays, save_arrays
from . import golden_block as block
from . import golden_rules as rules
from .golden_fields import check_float64, choice, get, refuse

TOLERANCE = 1e-9
FLOOR = 1e-6
INPUTS = block.INPUTS | rules.INPUTS
ANSWERS = block.ANSWERS | rules.ANSWERS
KINDS = tuple(INPUTS)
PLANS = (*block.PLANS, *rules.PLANS)
Plan = block.Plan | rules.Plan


def _family(kind: str) -> ModuleType:
    """The file that knows this kind: both have the same functions."""
    return block if kind in block.KINDS else rules


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
            why = "the input is too large, or LayerNorm has eps 0 and meets a constant row"
            refuse(name, "finite answers", f"{wrong[0]}: {why}")
    return answers


def check_case(arrays: dict[str, Any]) -> dict[str, Any]:
    """The inputs among ``arrays``, checked and converted: float64 and int64 arrays, Python numbers
    and strings.

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
    """
    inputs, answers = check_case(case), run_case(case, backend)
    renamed = {f"slow_{n}" if n in answers else n: host.asarray(a) for n, a in inputs.items()}
    return renamed | answers


# Files
# ----------------------------------------------------------------------------------------


class Result(NamedTuple):
    """One file of ``check_folder``."""

    file: str
    array: str  # the answer that differs most
    error: float  # its largest error over its largest magnitude
    problem: str  # why nothing could be compared; empty if everything could

    @property
    def ok(self) -> bool:
        """Whether every answer agrees within ``TOLERANCE``."""
        return not self.problem and self.error <= TOLERANCE


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


def check_folder(folder: str | Path, backend: str = "numpy") -> list[Result]:
    """Recompute every ``*.npz`` of ``folder`` and compare: one Result per file, in the order of
    names. Nothing is written.

    Raises NotADirectoryError if there is no such folder, ValueError if it holds no case.
    """
    folder = Path(folder)
    if not folder.is_dir():
        message = f"expected a folder of golden cases, found none at {str(folder)!r}"
        raise NotADirectoryError(message)
    paths = sorted(folder.glob("*.npz"))
    if not paths:
        expected = f"expected golden cases (*.npz) in {str(folder)!r}"
        raise ValueError(f"{expected}, found none: write some with `golden make`")
    return [_check_file(path, backend) for path in paths]


def _check_file(path: Path, backend: str) -> Result:
    try:
        stored = load_arrays(path)
        kind = check_case(stored)["kind"]
        renamed = {f"slow_{name}" for name in INPUTS[kind] if name in ANSWERS[kind]}
        if renamed and not renamed & stored.keys():
            found = "nothing: this is a case without answers"
            refuse("slow_W1", "beside the answers W1 ... bias", found)
        answers = run_case(stored, backend)
        errors = {name: _error(name, get(stored, name), a) for name, a in answers.items()}
    except (ValueError, OSError) as error:
        return Result(path.name, "", float("nan"), str(error))
    worst = max(errors, key=errors.__getitem__)
    return Result(path.name, worst, errors[worst], "")


def _error(name: str, stored: Array, answer: Array) -> float:
    """Largest difference over the largest magnitude; infinite if a stored number is not finite."""
    if stored.shape != answer.shape:
        refuse(name, f"shape {answer.shape}", stored.shape)
    check_float64(name, stored)
    if not stored.size:
        return 0.0
    if not host.all(host.isfinite(stored)):
        return float("inf")
    magnitude = max(float(host.max(host.abs(answer))), FLOOR)
    return float(host.max(host.abs(stored - answer))) / magnitude


def make_cases(
    folder: str | Path, count: int = len(PLANS), seed: int = 0, backend: str = "numpy"
) -> list[Path]:
    """Write ``count`` cases with their answers into ``folder`` and return the paths; a name says
    what is inside.

    Case number i depends on ``seed`` and i alone; the default count has every kind. Raises
    ValueError if ``count`` is below 1 or ``seed`` negative.
    """
    if count < 1 or seed < 0:
        found = f"found count {count} and seed {seed}"
        raise ValueError(f"expected at least 1 case and a seed >= 0, {found}")
    digits, paths = max(2, len(str(count - 1))), []
    for i in range(count):
        plan = PLANS[i % len(PLANS)]
        case = draw_case(plan, host.random.default_rng([seed, i]))
        name = f"{i:0{digits}d}_{_family(plan.kind).describe(plan, case)}.npz"
        paths.append(Path(folder) / name)
        save_arrays(paths[-1], answered_case(case, backend))
    return paths


def draw_case(plan: Plan, rng: Any) -> dict[str, Array]:
    """The inputs of a case: sizes and numbers from ``rng``, the rest from ``plan``."""
    case = _family(plan.kind).draw_case(plan, rng)
    return {name: host.asarray(a) for name, a in case.items()}


# Command line
# ----------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``golden make | run | check`` as subcommands of ``parser``; ``main`` does what they say."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="make|run|check")
    make = actions.add_parser("make", help="write varied cases with their answers")
    make.add_argument("folder", metavar="DIR")
    count_help = "how many (default %(default)s: every kind)"
    make.add_argument("--count", type=int, default=len(PLANS), metavar="N", help=count_help)
    seed_help = "of the numbers drawn (default %(default)s)"
    make.add_argument("--seed", type=int, default=0, metavar="S", help=seed_help)
    run = actions.add_parser("run", help="compute the answers to a case of yours")
    run.add_argument("case", metavar="CASE.npz")
    run.add_argument("out", metavar="OUT.npz")
    check = actions.add_parser("check", help="recompute a folder of cases and compare")
    check.add_argument("folder", metavar="DIR")
    where_help = "where to compute (default %(default)s)"
    for action in (make, run, check):
        action.add_argument("--backend", choices=BACKENDS, default="numpy", help=where_help)


def main(args: argparse.Namespace) -> int:
    """Do what the command line asks. 0: done, and everything agrees; 1: an answer differs or a case
    is bad; 2: nothing could be done.
    """
    try:
        if args.action == "make":
            paths = make_cases(args.folder, args.count, args.seed, args.backend)
            print(f"wrote {len(paths)} cases to {args.folder}")
        elif args.action == "run":
            run_file(args.case, args.out, args.backend)
            print(f"wrote {args.out}")
        else:
            return _report(check_folder(args.folder, args.backend))
    except (ValueError, OSError, BackendError) as error:
        print(f"golden {args.action}: {error}", file=sys.stderr)
        return 2
    return 0


def _report(results: list[Result]) -> int:
    """A line per case; 1 if any is not ok."""
    for r in results:
        verdict = "ok  " if r.ok else "BAD " if r.problem else "DIFF"
        print(f"{verdict} {r.file}  " + (r.problem or f"largest error {r.error:.1e} in {r.array}"))
    bad = sum(not r.ok for r in results)
    print(f"{len(results) - bad} of {len(results)} cases agree within {TOLERANCE:g}")
    return 1 if bad else 0
