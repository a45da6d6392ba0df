"""Golden cases of the fast weight block, stale or with true gradients between segments, and of
dynamic evaluation: which arrays a case of each holds, and the answers to it. ``golden.py`` has the
rest; ``golden_rules.py`` is the twin for rules.

Inputs: features ``x``, ``labels`` and ``weights``; the slow parameters ``W1 ... c``; the step sizes
``eta_W1 ... eta_bias``; ``normalizer`` with its ``constant``, ``eps``, ``decay``, ``first_order``
(0 or 1), ``chunk`` (0 = the parallel form). Dynamic evaluation has ``segment``, tokens per update;
``sequential`` has it, too, and ``within`` (0 or 1), whether a token reads its own segment. Two may
be left out: ``norm``, "layer" if there is none, and ``residual`` (0 or 1), 0 if there is none,
which needs I = D.

Answers of ``fwl``: ``logits_slow``, ``logits`` (B,T,V); ``dh`` (B,T,F), ``dz``, ``dn`` (B,T,D);
``loss`` (), the weighted mean; ``g_NAME``, its gradient, shaped like the input NAME. Answers of
``sequential``: ``logits``, ``loss``, ``g_NAME``.
Answers of ``dynamic_evaluation``: ``logits`` (B,T,V), and the final ``W1`` (B,I,F) ... ``bias``
(B,D). These have the names of the parameters it started from: next to answers, the ones of the
start are called ``slow_W1 ... slow_bias``. A case without answers simply says ``W1 ... bias``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..backend import Array, like, namespace
from ..checks import NORMALIZERS, NORMS
from ..dynamic_evaluation import evaluate_block
from ..fwl import FastSettings, fast_block_bwd, fast_block_fwd, normalizer
from ..ops.cross_entropy import cross_entropy_bwd, cross_entropy_fwd
from ..ops.squared_relu import squared_relu_bwd
from ..sequential import sequential_bwd, sequential_fwd
from ..slow_block import FastParameters, SlowParameters
from .golden_fields import Arrays, Sizes, choice, count, labels, number, real, refuse

FAST, SLOW = FastParameters._fields, SlowParameters._fields

REAL = {  # arrays of float64, with the letters of their shapes
    **{"x": "BTI", "weights": "BT"},
    **{"W1": "IF", "b1": "F", "W2": "FD", "b2": "D", "gain": "D", "bias": "D", "U": "DV", "c": "V"},
}
NUMBERS = (*(f"eta_{name}" for name in FAST), "eps", "constant", "decay")  # scalars
COUNTS = {"first_order": 0, "chunk": 0}  # integers and the least value of each
OPTIONAL = {"norm": "layer", "residual": 0}  # and what a case without them means
_BOTH = (*REAL, "labels", *NUMBERS, *COUNTS, *OPTIONAL)

INPUTS = {
    "fwl": (*_BOTH, "normalizer", "kind"),
    "dynamic_evaluation": (*_BOTH, "segment", "normalizer", "kind"),
    "sequential": (*_BOTH, "segment", "within", "normalizer", "kind"),
}
_GRADIENTS = ("g_x", *(f"g_{n}" for n in SLOW), *(f"g_eta_{n}" for n in FAST), "g_decay")
ANSWERS = {
    "fwl": ("logits_slow", "logits", "dh", "dz", "dn", "loss", *_GRADIENTS),
    "dynamic_evaluation": ("logits", *FAST),
    "sequential": ("logits", "loss", *_GRADIENTS),
}
KINDS = tuple(INPUTS)


def letters(kind: str) -> set[str]:
    """The sizes that a case of this kind has."""
    return set("".join(REAL.values()))


def names(kind: str, arrays: Arrays) -> dict[str, str]:
    """Every input, and what it is called in this file; optional ones only if they are there."""
    renamed = kind == "dynamic_evaluation" and any(f"slow_{name}" in arrays for name in FAST)
    inputs = (n for n in INPUTS[kind] if n in arrays or n not in OPTIONAL)
    return {n: f"slow_{n}" if renamed and n in FAST else n for n in inputs}


def read_case(kind: str, arrays: Arrays) -> dict[str, Any]:
    """The inputs of a file, checked and converted. Raises ValueError naming the array."""
    where, sizes = names(kind, arrays), Sizes()
    case: dict[str, Any] = {"kind": kind, "normalizer": choice(arrays, "normalizer", NORMALIZERS)}
    case |= {name: real(arrays, where[name], letters, sizes) for name, letters in REAL.items()}
    if (case["weights"] < 0).any():
        found = f"{case['weights'].min()}; 0 leaves a token out"
        refuse("weights", "numbers >= 0", found)
    case["labels"] = labels(arrays, "labels", "BT", sizes)
    case |= {name: number(arrays, name) for name in NUMBERS}
    case |= {name: count(arrays, name, least) for name, least in COUNTS.items()}
    case |= OPTIONAL
    if "norm" in arrays:
        case["norm"] = choice(arrays, "norm", NORMS)
    if "residual" in arrays:
        case["residual"] = count(arrays, "residual", least=0)
    if kind != "fwl":
        case["segment"] = count(arrays, "segment", least=1)
    if kind == "sequential":
        case["within"] = count(arrays, "within", least=0)
    _check_ranges(case)
    return case


def _check_ranges(case: dict[str, Any]) -> None:
    """What shapes and types do not say."""
    eps, alone = case["eps"], case["norm"] == "layer" and len(case["b2"]) < 2
    for name in ("first_order", "residual", "within"):
        if case.get(name, 0) > 1:
            refuse(name, "0 or 1", case[name])
    (i, _), (_, d) = case["W1"].shape, case["W2"].shape
    if case["residual"] and i != d:
        refuse("residual", f"0, for features of width I = {i} cannot be added to D = {d}", 1)
    if eps < 0 or (eps == 0 and alone):
        why = "> 0, for a row of z has width D = 1 and its variance is 0" if alone else ">= 0"
        refuse("eps", f"a number {why}", eps)
    if not 0 <= case["decay"] <= 1:
        refuse("decay", "a number in [0, 1]", case["decay"])
    if case["normalizer"] == "constant" and case["constant"] <= 0:
        refuse("constant", "a number > 0", case["constant"])


# Answers
# ----------------------------------------------------------------------------------------


def answers(case: dict[str, Any]) -> dict[str, Array]:
    """The answers to a case that was checked."""
    if case["kind"] == "fwl":
        return _fast_weights(case)
    return _sequential(case) if case["kind"] == "sequential" else _dynamic_evaluation(case)


def _fast_weights(case: dict[str, Any]) -> dict[str, Array]:
    (logits, logits_slow, _), res = fast_block_fwd(*_block(case))
    loss, g_logits = _outer_loss(case, logits)
    return {
        "logits_slow": logits_slow,
        "logits": logits,
        "dh": squared_relu_bwd(res.write.da, res.write.act),
        "dz": res.write.dz,
        "dn": res.write.dn,
        "loss": loss,
        **_gradients(fast_block_bwd(g_logits, None, res)),
    }


def _sequential(case: dict[str, Any]) -> dict[str, Array]:
    how = {"segment": case["segment"], "within": bool(case["within"])}
    (logits, _), res = sequential_fwd(*_block(case), **how)
    loss, g_logits = _outer_loss(case, logits)
    gradients = _gradients(sequential_bwd(g_logits, None, res))
    return {"logits": logits, "loss": loss, **gradients}


def _block(case: dict[str, Any]) -> tuple:
    """What the block takes."""
    decay = like(case["decay"], case["x"], "float64")
    data = (case["x"], case["labels"], case["weights"])
    return *data, _slow(case), _step_sizes(case), decay, _settings(case)


def _outer_loss(case: dict[str, Any], logits: Array) -> tuple[Array, Array]:
    """() and (B,T,V)   the weighted mean of cross-entropies, and its gradient"""
    w, xp = case["weights"], namespace(logits)
    nll, loss = cross_entropy_fwd(logits, case["labels"])  # (B,T)
    total = xp.sum(w)  # ()
    share = w / xp.where(total > 1e-8, total, 1e-8 * xp.ones_like(total))  # (B,T)
    return xp.sum(share * nll), cross_entropy_bwd(share, loss)


def _gradients(found: tuple) -> dict[str, Array]:
    """By their names; that of the state, which no case has, is left out."""
    g_x, g_slow, g_eta, g_decay, _ = found
    return dict(zip(_GRADIENTS, (g_x, *g_slow, *g_eta, g_decay), strict=True))


def _dynamic_evaluation(case: dict[str, Any]) -> dict[str, Array]:
    n = normalizer(case["weights"], _settings(case))  # () or (B,1)
    n = n if n.ndim == 0 else n[:, 0]  # () or (B,)
    rule = {name: case[name] for name in ("segment", "decay", "eps", "norm")}
    rule |= {"n": n, "residual": bool(case["residual"])}
    data = (case["x"], case["labels"], case["weights"])
    logits, final = evaluate_block(*data, _slow(case), _step_sizes(case), **rule)
    return {"logits": logits, **final._asdict()}


def _slow(case: dict[str, Any]) -> SlowParameters:
    return SlowParameters(*(case[name] for name in SLOW))


def _step_sizes(case: dict[str, Any]) -> FastParameters:
    return FastParameters(*(like(case[f"eta_{name}"], case["x"], "float64") for name in FAST))


def _settings(case: dict[str, Any]) -> FastSettings:
    return FastSettings(
        normalizer=case["normalizer"],
        constant=case["constant"] if case["normalizer"] == "constant" else 1.0,
        eps=case["eps"],
        chunk=case["chunk"] or None,
        first_order=bool(case["first_order"]),
        norm=case["norm"],
        residual=bool(case["residual"]),
    )


# Varied cases
# ----------------------------------------------------------------------------------------


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
    norm: str = "layer"
    residual: int = 0
    within: int = 0


# Together: all kinds, every normalizer, both eps, decay or none, T = 1, all sorts of chunks,
# segments and weights, and blocks that stand on a model.
PLANS = (
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
    Plan("fwl", "constant", 1e-6, 0.05, 3, 0, "real", 8, norm="rms", residual=1),
    Plan("fwl", "sequence", 0.0, 0.0, 0, 1, "some_zero", 6, residual=1),
    Plan("fwl", "batch", 0.0, 0.02, 2, 0, "ones", 7, norm="rms"),
    Plan("dynamic_evaluation", "constant", 1e-6, 0.1, 0, 0, "real", 6, 2, norm="rms", residual=1),
    Plan("sequential", "constant", 1e-6, 0.1, 0, 0, "real", 8, 3),
    Plan("sequential", "sequence", 0.0, 0.0, 2, 0, "some_zero", 7, 2, within=1),
    Plan("sequential", "batch", 1e-6, 0.3, 0, 0, "real", 6, 1, ("b1",)),
)


def draw_case(plan: Plan, rng: Any, given: Sizes) -> dict[str, Any]:
    """The inputs of a case: sizes that are not given and numbers from ``rng``, the rest from
    ``plan``; features of the block's width unless I is given, and a residual only if they are.
    """
    limits = {"B": (1, 4), "D": (3, 7), "F": (5, 13), "V": (3, 10)}
    sizes = {letter: int(rng.integers(*bounds)) for letter, bounds in limits.items()} | given
    sizes = {"I": sizes["D"]} | sizes | {"T": plan.length}
    case: dict[str, Any] = {
        name: rng.standard_normal([sizes[letter] for letter in letters])
        for name, letters in REAL.items()
    }
    case["W1"] /= sizes["I"] ** 0.5
    case["W2"] /= sizes["F"] ** 0.5
    case["gain"] = 1 + 0.2 * case["gain"]
    case |= {name: 0.2 * case[name] for name in ("b1", "b2", "bias", "c")}
    case["labels"] = rng.integers(0, sizes["V"], (sizes["B"], plan.length))

    drawn = rng.uniform(0.1, 2.0, case["labels"].shape)
    kept = rng.random(case["labels"].shape) < 0.6
    masks = {"ones": 0 * drawn + 1, "real": drawn, "some_zero": 1.0 * kept, "all_zero": 0 * drawn}
    case["weights"] = masks[plan.weights]
    counted = plan.normalizer != "constant"
    steps = rng.uniform(0.02, 0.2, len(FAST)) * (plan.length if counted else 1)
    steps *= min(1.0, 12 / max(plan.length, 1))  # a long text is walked no further than a short one
    for name, step in zip(FAST, steps, strict=True):
        case[f"eta_{name}"] = 0.0 if name in plan.still else step
    case["constant"] = 1.0 if counted else rng.uniform(0.5, 3.0)
    fixed = ("kind", "normalizer", "eps", "decay", *COUNTS, *OPTIONAL)
    case |= {name: getattr(plan, name) for name in fixed}
    case["residual"] = plan.residual if sizes["I"] == sizes["D"] else 0
    case |= {n: getattr(plan, n) for n in ("segment", "within") if n in INPUTS[plan.kind]}
    return case


def describe(plan: Plan, case: Arrays) -> str:
    """A name that says what is inside."""
    form = f"chunk{plan.chunk}" if plan.kind == "fwl" else f"segment{plan.segment}"
    form += "_within" if plan.within else ""
    order = "_first_order" if plan.first_order else ""
    still = "".join(f"_{name}_still" for name in plan.still)
    top = ("_rms" if plan.norm == "rms" else "") + ("_residual" if case["residual"] else "")
    (b, t, i), (f, d), v = case["x"].shape, case["W2"].shape, len(case["c"])
    wide = f"I{i}" if i != d else ""
    settings = f"{plan.normalizer}_{form}_decay{plan.decay:g}_eps{plan.eps:g}_{plan.weights}"
    return f"{plan.kind}_{settings}{order}{top}{still}_B{b}T{t}{wide}D{d}F{f}V{v}"
