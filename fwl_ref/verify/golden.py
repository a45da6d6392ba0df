"""Golden cases: one fast weight block or update rule, one file, so that two implementations can be
compared without sharing any code.

    python -m fwl_ref golden make DIR [--count N] [--seed S]     write N varied cases with their answers
    python -m fwl_ref golden run CASE.npz OUT.npz                compute the answers to somebody's case
    python -m fwl_ref golden check DIR                           recompute a folder of cases and compare

With ``--backend cupy`` the answers are computed on a GPU, in float64 like all others.

A case is an ``.npz`` file without pickles; real numbers are float64. ``INPUTS`` says which arrays
it holds and their shapes. Files written here hold inputs and answers together, so what ``run``
writes, ``check`` accepts. Dynamic evaluation ends with parameters that have the names of those it
started from: next to answers, ``W1 ... bias`` are the final ones, (B,...), and the ones of the
start are called ``slow_W1 ... slow_bias``. A case without answers simply says ``W1 ... bias``.
``verify/golden_rules.py`` says what cases of update rules hold.

An answer is compared by its largest error over its own largest magnitude, and ``TOLERANCE`` is
allowed. Arrays whose entries are all below ``FLOOR`` are compared as if their magnitude were
``FLOOR``: they may be rounding errors of an exact zero.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple

from ..backend import BACKENDS, Array, BackendError, backend_target, host, like, namespace, to_numpy
from ..checks import NORMALIZERS
from ..dynamic_evaluation import evaluate_block
from ..files import load_arrays, save_arrays
from ..fwl import FastSettings, fast_block_bwd, fast_block_fwd, normalizer
from ..ops.cross_entropy import cross_entropy_bwd, cross_entropy_fwd
from ..ops.squared_relu import squared_relu_bwd
from ..rules.common import READS
from ..slow_block import FastParameters, SlowParameters
from .golden_rules import (
    RULE_PLANS,
    RULES,
    RulePlan,
    check_rule_case,
    describe_rule_case,
    draw_rule_case,
    rule_answers,
)

TOLERANCE = 1e-9
FLOOR = 1e-6
BLOCKS = ("fwl", "dynamic_evaluation")
KINDS = (*BLOCKS, *RULES)
FAST, SLOW = FastParameters._fields, SlowParameters._fields

REAL = {  # arrays of float64, with the letters of their shapes
    "x": "BTD", "weights": "BT",
    "W1": "DF", "b1": "F", "W2": "FD", "b2": "D", "gain": "D", "bias": "D", "U": "DV", "c": "V",
}  # fmt: skip
NUMBERS = (*(f"eta_{name}" for name in FAST), "eps", "constant", "decay")  # scalars
COUNTS = ("first_order", "chunk")  # integers; chunk 0 = parallel form
INPUTS = {
    "fwl": (*REAL, "labels", *NUMBERS, *COUNTS, "normalizer", "kind"),
    "dynamic_evaluation": (*REAL, "labels", *NUMBERS, *COUNTS, "segment", "normalizer", "kind"),
    **{
        kind: (*rule.arrays, *rule.numbers, *rule.counts, "chunk", "read", "kind")
        for kind, rule in RULES.items()
    },
}
ANSWERS = {
    "fwl": ("logits_slow", "logits", "dh", "dz", "dn", "loss", "g_x")
    + (*(f"g_{name}" for name in SLOW), *(f"g_eta_{name}" for name in FAST), "g_decay"),
    "dynamic_evaluation": ("logits", *FAST),
    **{kind: rule.answers for kind, rule in RULES.items()},
}


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


# --- one case: arrays in, arrays out


def run_case(case: dict[str, Any], backend: str = "numpy") -> dict[str, Array]:
    """The answers to a case, by their names (``ANSWERS``), computed on ``backend`` and brought
    home.

    fwl: ``logits_slow``, ``logits`` (B,T,V); ``dh`` (B,T,F), ``dz``, ``dn`` (B,T,D); ``loss`` ();
    ``g_NAME`` shaped like the input NAME. dynamic_evaluation: ``logits`` (B,T,V), ``W1`` (B,D,F)
    ... ``bias`` (B,D). a rule: ``out``, ``state_out``, ``loss``, ``g_NAME``: see
    ``verify/golden_rules.py``.

    Raises
    ------
    ValueError
        Naming the array, what was expected and what was found: see ``check_case``. Also if an answer is not finite.
    """
    p = check_case(case)
    answer = {"fwl": _fast_weights, "dynamic_evaluation": _dynamic_evaluation}.get(
        p["kind"], rule_answers
    )
    with host.errstate(all="ignore"):  # found below, with a name
        answers = {name: to_numpy(a) for name, a in answer(_on_device(p, backend)).items()}
    for name, array in answers.items():
        if not host.all(host.isfinite(array)):
            raise ValueError(
                f"{name}: expected finite answers, found {array[~host.isfinite(array)][0]}: the input is too large, "
                "or LayerNorm has eps 0 and meets a constant row"
            )
    return answers


def check_case(arrays: dict[str, Any]) -> dict[str, Any]:
    """The inputs among ``arrays``, checked and converted: float64 and int64 arrays, Python numbers
    and strings.

    Raises
    ------
    ValueError
        If an array is missing, unknown, of the wrong type or shape; if labels are out of range, numbers not finite, weights, step counts
        or rates out of range. The message names the array, what was expected and what was found.
    """
    arrays = {name: host.asarray(a) for name, a in arrays.items()}
    for name, array in arrays.items():
        if array.dtype.hasobject:
            raise ValueError(
                f"{name}: expected numbers or text, found Python objects (dtype {array.dtype})"
            )
    kind = _choice(arrays, "kind", KINDS)
    answered = _is_answered(arrays, kind)
    where = {name: f"slow_{name}" if answered and name in FAST else name for name in INPUTS[kind]}
    known = {*where.values(), *ANSWERS[kind]}
    for name in sorted(arrays.keys() - known):
        raise ValueError(
            f"{name}: expected only the arrays of a {kind} case, found this one too: leave it out"
        )
    if kind in RULES:
        return _rule_case(kind, arrays)
    case: dict[str, Any] = {"kind": kind, "normalizer": _choice(arrays, "normalizer", NORMALIZERS)}

    sizes: dict[str, int] = {}
    for name, letters in REAL.items():
        case[name] = _real(arrays, where[name], letters, sizes)
    if (case["weights"] < 0).any():
        raise ValueError(
            f"weights: expected numbers >= 0, found {case['weights'].min()}; 0 leaves a token out"
        )
    case["labels"] = _labels(arrays, sizes)
    for name in NUMBERS:
        case[name] = _number(arrays, name)
    for name in COUNTS:
        case[name] = _count(arrays, name, least=0)

    if case["first_order"] > 1:
        raise ValueError(f"first_order: expected 0 or 1, found {case['first_order']}")
    if case["eps"] < 0 or (case["eps"] == 0 and sizes["D"] < 2):
        least = (
            ">= 0"
            if sizes["D"] > 1
            else "> 0, for a row of x has width D = 1 and its variance is 0"
        )
        raise ValueError(f"eps: expected a number {least}, found {case['eps']}")
    if not 0 <= case["decay"] <= 1:
        raise ValueError(f"decay: expected a number in [0, 1], found {case['decay']}")
    if case["normalizer"] == "constant" and case["constant"] <= 0:
        raise ValueError(f"constant: expected a number > 0, found {case['constant']}")
    if kind == "dynamic_evaluation":
        case["segment"] = _count(arrays, "segment", least=1)
    return case


def _rule_case(kind: str, arrays: dict[str, Array]) -> dict[str, Any]:
    rule, sizes = RULES[kind], {}
    case: dict[str, Any] = {
        "kind": kind,
        "read": _choice(arrays, "read", READS),
        "chunk": _count(arrays, "chunk", least=0),
    }
    case |= {name: _count(arrays, name, least) for name, least in rule.counts.items()}
    case |= {name: _number(arrays, name) for name in rule.numbers}
    case |= {name: _real(arrays, name, letters, sizes) for name, letters in rule.arrays.items()}
    check_rule_case(case)
    return case


def _on_device(p: dict[str, Any], backend: str) -> dict[str, Any]:
    """The arrays of a case where ``backend`` computes."""
    target = backend_target(backend)
    return p | {name: like(a, target) for name, a in p.items() if isinstance(a, host.ndarray)}


def _fast_weights(p: dict[str, Any]) -> dict[str, Array]:
    slow, eta, decay = (
        SlowParameters(*(p[n] for n in SLOW)),
        _step_sizes(p),
        like(p["decay"], p["x"], "float64"),
    )
    labels, w = p["labels"], p["weights"]
    xp = namespace(w)
    (logits, logits_slow, _), res = fast_block_fwd(
        p["x"], labels, w, slow, eta, decay, _settings(p)
    )
    nll, loss = cross_entropy_fwd(logits, labels)  # (B,T)
    total = xp.sum(w)  # ()
    share = w / xp.where(total > 1e-8, total, 1e-8 * xp.ones_like(total))  # (B,T)
    g_x, g_slow, g_eta, g_decay, _ = fast_block_bwd(cross_entropy_bwd(share, loss), None, res)
    answers = {
        "logits_slow": logits_slow,
        "logits": logits,
        "dh": squared_relu_bwd(res.write.da, res.write.act),
        "dz": res.write.dz,
        "dn": res.write.dn,
    }
    answers |= {"loss": xp.sum(share * nll), "g_x": g_x}
    answers |= {f"g_{name}": g for name, g in zip(SLOW, g_slow, strict=True)}
    return (
        answers
        | {f"g_eta_{name}": g for name, g in zip(FAST, g_eta, strict=True)}
        | {"g_decay": g_decay}
    )


def _dynamic_evaluation(p: dict[str, Any]) -> dict[str, Array]:
    slow = SlowParameters(*(p[n] for n in SLOW))
    n = normalizer(p["weights"], _settings(p))  # () or (B,1)
    n = n if n.ndim == 0 else n[:, 0]  # () or (B,)
    rule = {"segment": p["segment"], "decay": p["decay"], "n": n, "eps": p["eps"]}
    logits, final = evaluate_block(p["x"], p["labels"], p["weights"], slow, _step_sizes(p), **rule)
    return {"logits": logits} | final._asdict()


def _step_sizes(p: dict[str, Any]) -> FastParameters:
    return FastParameters(*(like(p[f"eta_{name}"], p["x"], "float64") for name in FAST))


def _settings(p: dict[str, Any]) -> FastSettings:
    constant = p["constant"] if p["normalizer"] == "constant" else 1.0
    return FastSettings(
        p["normalizer"], constant, p["eps"], p["chunk"] or None, bool(p["first_order"])
    )


# --- what an array must be


def _get(arrays: dict[str, Array], name: str) -> Array:
    if name not in arrays:
        raise ValueError(
            f"{name}: expected in every case of this kind, found nothing: it is missing"
        )
    return arrays[name]


def _check_shape(name: str, array: Array, letters: str, sizes: dict[str, int]) -> None:
    """Bind the letters not seen before to this array's sizes, and compare the others."""
    found, pattern = tuple(array.shape), f"({','.join(letters)})"
    expected = tuple(
        sizes.get(letter, found[i] if i < len(found) else letter)
        for i, letter in enumerate(letters)
    )
    if found != expected:
        shape = (
            f"{pattern} = ({', '.join(str(sizes.get(letter, letter)) for letter in letters)})"
            if letters
            else "() (a scalar)"
        )
        raise ValueError(f"{name}: expected shape {shape}, found {found}")
    for letter, size in zip(letters, found, strict=True):
        if not size and letter != "T":
            raise ValueError(f"{name}: expected {letter} >= 1 in shape {pattern}, found {found}")
        sizes[letter] = size


def _check_float64(name: str, array: Array) -> None:
    if array.dtype.kind != "f" or array.dtype.itemsize != 8:  # either byte order
        raise ValueError(f"{name}: expected float64, found {array.dtype}")


def _check_finite(name: str, array: Array) -> None:
    if not host.all(host.isfinite(array)):
        bad = tuple(int(i) for i in host.argwhere(~host.isfinite(array))[0])
        raise ValueError(
            f"{name}: expected finite numbers, found {array[bad]}"
            + (f" at index {bad}" if bad else "")
        )


def _real(arrays: dict[str, Array], name: str, letters: str, sizes: dict[str, int]) -> Array:
    """Finite float64 numbers of the shape that the letters say."""
    array = _get(arrays, name)
    _check_shape(name, array, letters, sizes)
    _check_float64(name, array)
    _check_finite(name, array)
    return array.astype("float64")


def _labels(arrays: dict[str, Array], sizes: dict[str, int]) -> Array:
    """(B,T) int64 in [0, V)"""
    labels = _get(arrays, "labels")
    _check_shape("labels", labels, "BT", sizes)
    if labels.dtype.kind not in "iu":
        raise ValueError(f"labels: expected integers, found {labels.dtype}")
    outside = (labels < 0) | (labels >= sizes["V"])
    if outside.any():
        bad = tuple(int(i) for i in host.argwhere(outside)[0])
        raise ValueError(
            f"labels: expected integers in [0, V) = [0, {sizes['V']}), found {labels[bad]} at index {bad}"
        )
    return labels.astype("int64")


def _number(arrays: dict[str, Array], name: str) -> float:
    """A finite real scalar; an integer is as good."""
    array = _get(arrays, name)
    _check_shape(name, array, "", {})
    if array.dtype.kind not in "iu":
        _check_float64(name, array)
    _check_finite(name, array)
    return float(array)


def _count(arrays: dict[str, Array], name: str, least: int) -> int:
    """An integer scalar, at least ``least``."""
    array = _get(arrays, name)
    _check_shape(name, array, "", {})
    if array.dtype.kind not in "biu":
        raise ValueError(f"{name}: expected an integer, found {array.dtype} {array}")
    if array < least:
        raise ValueError(f"{name}: expected an integer >= {least}, found {array}")
    return int(array)


def _choice(arrays: dict[str, Array], name: str, choices: tuple[str, ...]) -> str:
    """A scalar string among ``choices``."""
    array = _get(arrays, name)
    _check_shape(name, array, "", {})
    value = array.item()
    value = value.decode("ascii", "replace") if isinstance(value, bytes) else value
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, found {value!r}")
    return value


def _is_answered(arrays: dict[str, Array], kind: str) -> bool:
    """Whether a case of dynamic evaluation calls its start ``slow_W1 ...`` because ``W1 ...`` are
    its answers.
    """
    return kind == "dynamic_evaluation" and any(f"slow_{name}" in arrays for name in FAST)


# --- files


def answered_case(case: dict[str, Any], backend: str = "numpy") -> dict[str, Array]:
    """Inputs and answers together, as files hold them: the start of dynamic evaluation is renamed
    ``slow_W1 ...``; old answers go.
    """
    inputs, answers = check_case(case), run_case(case, backend)
    renamed = {
        f"slow_{name}" if name in answers else name: host.asarray(a) for name, a in inputs.items()
    }
    return renamed | answers


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
        raise NotADirectoryError(
            f"expected a folder of golden cases, found none at {str(folder)!r}"
        )
    paths = sorted(folder.glob("*.npz"))
    if not paths:
        raise ValueError(
            f"expected golden cases (*.npz) in {str(folder)!r}, found none: write some with `golden make`"
        )
    return [_check_file(path, backend) for path in paths]


def _check_file(path: Path, backend: str) -> Result:
    try:
        stored = load_arrays(path)
        kind = check_case(stored)["kind"]
        if kind == "dynamic_evaluation" and not _is_answered(stored, kind):
            raise ValueError(
                "slow_W1: expected beside the answers W1 ... bias, found nothing: this is a case without answers"
            )
        errors = {
            name: _error(name, _get(stored, name), answer)
            for name, answer in run_case(stored, backend).items()
        }
    except (ValueError, OSError) as error:
        return Result(path.name, "", float("nan"), str(error))
    worst = max(errors, key=errors.__getitem__)
    return Result(path.name, worst, errors[worst], "")


def _error(name: str, stored: Array, answer: Array) -> float:
    """Largest difference over the largest magnitude; infinite where a stored number is not finite."""
    if stored.shape != answer.shape:
        raise ValueError(f"{name}: expected shape {answer.shape}, found {stored.shape}")
    _check_float64(name, stored)
    if not stored.size:
        return 0.0
    if not host.all(host.isfinite(stored)):
        return float("inf")
    return float(
        host.max(host.abs(stored - answer)) / max(float(host.max(host.abs(answer))), FLOOR)
    )


# --- varied cases


class Plan(NamedTuple):
    """What is fixed about a case before its numbers are drawn."""

    kind: str
    normalizer: str
    eps: float
    decay: float
    chunk: int
    first_order: int
    weights: str  # "ones", "some_zero", "real", "all_zero"
    length: int  # T
    segment: int = 0
    still: tuple[str, ...] = ()  # step sizes that are zero


BLOCK_PLANS = (  # together: every normalizer, both eps, decay or none, all sorts of chunks, segments and weights, T = 1, both kinds
    Plan("fwl", "constant", 1e-6, 0.0, 0, 0, "ones", 8),
    Plan("fwl", "batch", 0.0, 0.02, 3, 0, "some_zero", 8),
    Plan("dynamic_evaluation", "constant", 1e-6, 0.02, 0, 0, "some_zero", 6, 1),
    Plan("fwl", "sequence", 0.0, 0.0, 1, 1, "real", 5),
    Plan("fwl", "constant", 0.0, 0.1, 99, 0, "real", 7, 0, ("b1", "bias")),
    Plan("dynamic_evaluation", "sequence", 0.0, 0.0, 0, 0, "real", 7, 3),
    Plan("fwl", "batch", 1e-6, 0.0, 0, 1, "all_zero", 4),
    Plan("fwl", "sequence", 1e-6, 0.05, 4, 0, "some_zero", 1),
    Plan("dynamic_evaluation", "batch", 1e-6, 0.1, 0, 0, "ones", 5, 99, ("W2",)),
    Plan("fwl", "constant", 1e-6, 0.3, 2, 1, "some_zero", 9),
    Plan("fwl", "batch", 0.0, 0.0, 5, 0, "real", 11, 0, ("W1", "gain")),
    Plan("dynamic_evaluation", "constant", 0.0, 0.0, 0, 0, "all_zero", 4, 1),
)
PLANS = (*BLOCK_PLANS, *RULE_PLANS)


def make_cases(
    folder: str | Path, count: int = len(PLANS), seed: int = 0, backend: str = "numpy"
) -> list[Path]:
    """Write ``count`` cases with their answers into ``folder`` and return the paths; a name says
    what is inside.

    Case number i depends on ``seed`` and i alone; the default count has every kind. Raises
    ValueError if ``count`` is below 1 or ``seed`` negative.
    """
    if count < 1 or seed < 0:
        raise ValueError(
            f"expected at least 1 case and a seed >= 0, found count {count} and seed {seed}"
        )
    folder = Path(folder)
    digits, paths = max(2, len(str(count - 1))), []
    for i in range(count):
        plan = PLANS[i % len(PLANS)]
        case = draw_case(plan, host.random.default_rng([seed, i]))
        paths.append(folder / f"{i:0{digits}d}_{_describe(plan, case)}.npz")
        save_arrays(paths[-1], answered_case(case, backend))
    return paths


def draw_case(plan: Plan | RulePlan, rng: Any) -> dict[str, Array]:
    """The inputs of a case: sizes and numbers from ``rng``, the rest from ``plan``."""
    if plan.kind in RULES:
        return draw_rule_case(plan, rng)
    b, t, d, f, v = (
        int(rng.integers(1, 4)),
        plan.length,
        int(rng.integers(3, 7)),
        int(rng.integers(5, 13)),
        int(rng.integers(3, 10)),
    )
    size = {"B": b, "T": t, "D": d, "F": f, "V": v}
    case = {name: rng.standard_normal([size[s] for s in letters]) for name, letters in REAL.items()}
    case |= {"W1": case["W1"] / d**0.5, "W2": case["W2"] / f**0.5, "gain": 1 + 0.2 * case["gain"]}
    case |= {name: 0.2 * case[name] for name in ("b1", "b2", "bias", "c")}
    case["labels"] = rng.integers(0, v, (b, t))
    drawn = rng.uniform(0.1, 2.0, (b, t))
    keep = rng.random((b, t)) < 0.6
    case["weights"] = {
        "ones": 0 * drawn + 1,
        "real": drawn,
        "some_zero": 1.0 * keep,
        "all_zero": 0 * drawn,
    }[plan.weights]
    steps = rng.uniform(0.02, 0.2, len(FAST)) * (1 if plan.normalizer == "constant" else t)
    case |= {
        f"eta_{name}": 0.0 if name in plan.still else step
        for name, step in zip(FAST, steps, strict=True)
    }
    case |= {"constant": rng.uniform(0.5, 3.0) if plan.normalizer == "constant" else 1.0}
    case |= {
        name: getattr(plan, name)
        for name in ("kind", "normalizer", "eps", "decay", "chunk", "first_order")
    }
    if plan.kind == "dynamic_evaluation":
        case["segment"] = plan.segment
    return {name: host.asarray(a) for name, a in case.items()}


def _describe(plan: Plan | RulePlan, case: dict[str, Array]) -> str:
    if plan.kind in RULES:
        return describe_rule_case(plan, case)
    (b, t, d), (f, v) = case["x"].shape, (len(case["b1"]), len(case["c"]))
    form = f"chunk{plan.chunk}" if plan.kind == "fwl" else f"segment{plan.segment}"
    order = "_first_order" if plan.first_order else ""
    still = "".join(f"_{name}_still" for name in plan.still)
    sizes = f"B{b}T{t}D{d}F{f}V{v}"
    return f"{plan.kind}_{plan.normalizer}_{form}_decay{plan.decay:g}_eps{plan.eps:g}_{plan.weights}{order}{still}_{sizes}"


# --- command line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``golden make | run | check`` as subcommands of ``parser``; ``main`` does what they say."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="make|run|check")
    make = actions.add_parser("make", help="write varied cases with their answers")
    make.add_argument("folder", metavar="DIR")
    make.add_argument(
        "--count",
        type=int,
        default=len(PLANS),
        metavar="N",
        help="how many (default %(default)s: every kind)",
    )
    make.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="S",
        help="of the numbers drawn (default %(default)s)",
    )
    run = actions.add_parser("run", help="compute the answers to somebody's case")
    run.add_argument("case", metavar="CASE.npz")
    run.add_argument("out", metavar="OUT.npz")
    check = actions.add_parser("check", help="recompute a folder of cases and compare")
    check.add_argument("folder", metavar="DIR")
    for action in (make, run, check):
        action.add_argument(
            "--backend",
            choices=BACKENDS,
            default="numpy",
            help="where to compute (default %(default)s)",
        )


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
