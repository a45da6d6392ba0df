"""Every update rule: its chunked form, its recurrent form, and flash-linear-attention's naive
reference where that is the same function; time and error per length.

    python -m benchmarks.rules [--only delta mesa] [--length 128 512 2048] [--rounds 5]

Forward passes in float32 on one thread, in turn, in one process; the sequence and head axes are one
axis of 8, keys and values have 64 channels. Errors are to the recurrent form in float64, over its
largest entry. The references come with the package fla-core and need PyTorch; only their files
``naive.py`` are loaded, without Triton. They compute in float32 whatever they are given, and have
scales, layouts and logarithms of their own, which are undone here.

Left out, for theirs are other functions: TTT-Linear (it reads z + LN(z)), Titans (a LayerNorm in the
memory). None there: TTT-MLP. Longhorn is their delta rule, at the implicit rate.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.interleave import interleaved, machine
from benchmarks.processes import ROOT
from fwl_ref.files import whole_file
from fwl_ref.lm.bar import Bar
from fwl_ref.tree import tree_map
from fwl_ref.verify.golden_rules import RANGES, RULES, erasing

SIZES = {"B": 8, "K": 64, "E": 64, "N": 2, "F": 256}
CHUNK, MINIBATCH = 64, 16
MEASURED = tuple(name for name, rule in RULES.items() if "place" not in rule.counts)  # a call that goes on is the same work
STEP = (0.005, 0.02)  # of TTT, where the steps of a mini-batch add up

Arrays = dict[str, Any]


def draw(name: str, length: int, seed: int = 0) -> Arrays:
    """Tokens, shared parameters and a state, float64: normal entries, rates as in the golden cases. An empty memory but for TTT, whose
    network starts at random.
    """
    rule, rng = RULES[name], np.random.default_rng(seed)
    sizes, ttt = SIZES | {"T": length}, "minibatch" in rule.counts
    found: Arrays = {}
    for array, letters in (rule.tokens | rule.shared).items():
        shape = [sizes[letter] for letter in letters]
        bounds = STEP if ttt and array == "step" else RANGES.get(array)
        found[array] = rng.uniform(*bounds, shape) if bounds else rng.standard_normal(shape)
    found["k"] /= found["k"].shape[-1] ** 0.5
    if name == "dplr":  # any other a and b blow the state up
        found |= erasing(found["a"], found["b"])
    states = []
    for letters in rule.state.values():
        shape = [sizes[letter] for letter in letters]
        states.append(rng.standard_normal(shape) / shape[1] ** 0.5 if ttt and len(shape) == 3 else np.zeros(shape))
    return found | {"state": rule.state_type(*states) if rule.state_type else states[0]}


def form(name: str, kind: str, arrays: Arrays) -> Callable[[], Any]:
    """A job: one form of a rule on these arrays, with the inclusive read. The chunked form of TTT is the dual one."""
    rule = RULES[name]
    dual = kind == "chunked" and hasattr(rule.module, f"{name}_dual_fwd")
    function = getattr(rule.module, f"{name}_{'dual' if dual else kind}_fwd")
    options: dict[str, Any] = {"read": "inclusive"} | ({"minibatch": MINIBATCH} if "minibatch" in rule.counts else {})
    options |= {"chunk": CHUNK} if kind == "chunked" and not dual else {}
    return lambda: function(*arrays.values(), **options)[0][0]


def reference(name: str, arrays: Arrays) -> Callable[[], np.ndarray] | None:
    """The same by flash-linear-attention's naive loop; None where there is none or it is not installed."""
    if name not in REFERENCES or any(importlib.util.find_spec(package) is None for package in ("fla", "torch", "einops")):
        return None
    import torch

    torch.set_num_threads(1)
    given = {n: torch.from_numpy(a) for n, a in arrays.items() if n != "state"}
    job = REFERENCES[name](**given)

    def run() -> np.ndarray:
        with torch.inference_mode():
            return job().numpy().reshape(SIZES["B"], -1, SIZES["E"])

    return run


def naive(folder: str) -> ModuleType:
    """fla/ops/FOLDER/naive.py alone: its package would ask for Triton."""
    (home,) = importlib.util.find_spec("fla").submodule_search_locations
    path = Path(home) / "ops" / folder / "naive.py"
    spec = importlib.util.spec_from_file_location(f"naive_{folder}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Each takes our arrays, (B,T,...), and gives a job. One head: its axis comes after T, or before it in the delta rule's file.


def _linear(q, k, v):
    function = naive("linear_attn").naive_recurrent_linear_attn
    return lambda: function(q[:, :, None], k[:, :, None], v[:, :, None], scale=1.0)[0]


def _decay(q, k, v, gamma):
    function, g = naive("simple_gla").naive_recurrent_simple_gla, gamma.log()
    return lambda: function(q[:, :, None], k[:, :, None], v[:, :, None], g[:, :, None], scale=1.0)[0]


def _gla(q, k, v, alpha):
    function, q, g = naive("gla").naive_recurrent_gla, q * q.shape[-1] ** 0.5, alpha.log()
    return lambda: function(q[:, :, None], k[:, :, None], v[:, :, None], g[:, :, None])[0]


def _delta(q, k, v, beta):
    function, q = naive("delta_rule").delta_rule_recurrence, q * q.shape[-1] ** 0.5
    return lambda: function(q[:, None], k[:, None], v[:, None], beta[:, None])[0]


def _longhorn(q, k, v, beta):
    return _delta(q, k, v, beta / (1 + beta * (k * k).sum(-1)))


def _gated_delta(q, k, v, alpha, beta):
    function, g = naive("gated_delta_rule").naive_recurrent_gated_delta_rule, alpha.log()
    return lambda: function(q[:, :, None], k[:, :, None], v[:, :, None], beta[:, :, None], g[:, :, None], scale=1.0)[0]


def _delta_product(q, k, v, beta):
    function, steps = naive("gated_delta_product").naive_recurrent_gated_delta_product, k.shape[2]
    k, v, beta = (a.flatten(1, 2)[:, :, None] for a in (k, v, beta))
    return lambda: function(q[:, :, None], k, v, None, beta, 1.0, None, num_householder=steps)[0]


def _mesa(q, k, v, keep, weight, ridge):
    function, g = naive("mesa_net").naive_mesa_net_exact, keep.log()
    tokens = [a[:, :, None] for a in (q, k, v, g)]
    return lambda: function(*tokens, ridge[None], weight[:, :, None])[0]


REFERENCES = {
    "linear": _linear, "decay": _decay, "gla": _gla, "delta": _delta, "gated_delta": _gated_delta,
    "delta_product": _delta_product, "longhorn": _longhorn, "mesa": _mesa,
}  # fmt: skip


def measure(name: str, length: int, rounds: int) -> dict[str, dict[str, float]]:
    """By form: median seconds, ratio to the recurrent form and its spread, error."""
    exact_arrays = draw(name, length)
    exact = form(name, "recurrent", exact_arrays)()
    arrays = {n: tree_map(lambda a: a.astype("float32"), a) for n, a in exact_arrays.items()}
    jobs = {kind: form(name, kind, arrays) for kind in ("recurrent", "chunked")}
    theirs = reference(name, arrays)
    jobs |= {"fla": theirs} if theirs else {}
    scale = np.max(np.abs(exact))
    if not np.isfinite(scale):
        raise FloatingPointError(
            f"{name} at {length} tokens: the recurrent form in float64 must be finite, so that an error means something"
        )
    errors = {kind: float(np.max(np.abs(job() - exact)) / scale) for kind, job in jobs.items()}
    return {kind: times._asdict() | {"error": errors[kind]} for kind, times in interleaved(jobs, rounds).items()}


def lines(found: dict[str, dict[str, dict]]) -> list[str]:
    """The table."""
    rows = [
        "| rule | T | recurrent, ms | chunked, ms | chunked / recurrent | fla / recurrent | error: recurrent | chunked | fla |",
        f"|:--|{'--:|' * 8}",
    ]
    for name, lengths in found.items():
        for length, forms in lengths.items():
            ours, theirs = forms["chunked"], forms.get("fla")
            cells = [f"{1e3 * forms[kind]['seconds']:.1f}" for kind in ("recurrent", "chunked")]
            cells += [f"{t['ratio']:.2f} ± {t['spread']:.2f}" if t else "-" for t in (ours, theirs)]
            cells += [f"{t['error']:.0e}" if t else "-" for t in (forms["recurrent"], ours, theirs)]
            rows.append(f"| {name} | {length} | {' | '.join(cells)} |")
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=MEASURED, default=list(MEASURED))
    parser.add_argument("--length", nargs="+", type=int, default=[128, 512, 2048], help=f"multiples of {MINIBATCH}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "bench_rules.json")
    args = parser.parse_args(arguments)
    if any(length < 1 or length % MINIBATCH for length in args.length):
        parser.error(f"lengths must be multiples of {MINIBATCH}, TTT's mini-batch, got {args.length}")
    found: dict[str, dict[str, dict]] = {}
    with threadpool_limits(1), Bar(total=len(args.only) * len(args.length), unit="row") as bar:
        run = {"date": date.today().isoformat(), "machine": machine(), "rounds": args.rounds, "chunk": CHUNK, "sizes": SIZES}
        for name in args.only:
            for length in args.length:
                bar.set_description(f"{name}, {length} tokens")
                found.setdefault(name, {})[str(length)] = measure(name, length, args.rounds)
                bar.update()
    if any("fla" in forms for lengths in found.values() for forms in lengths.values()):
        run["versions"] = {package: version(package) for package in ("fla-core", "torch")}
    else:
        print("flash-linear-attention's references are left out: pip install torch einops, and fla-core --no-deps\n", file=sys.stderr)
    print("\n".join([f"{run['machine']}\n", *lines(found)]))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(args.out) as file:
        file.write((json.dumps({"run": run, "rules": found}, indent=1) + "\n").encode())
    print(f"\n{args.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
