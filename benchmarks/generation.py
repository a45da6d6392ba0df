"""Writing text one byte after the other, with cached keys and values: this project beside PyTorch eager.

Both take the likeliest byte each time, from one model and one prompt, which is read before the clock
starts. The fast model writes each byte to its memory. In float64 both must write the same text and
end with the same features and the same memory, or nothing is timed.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np

from benchmarks.agreement import agree
from benchmarks.interleave import compared, in_turn
from benchmarks.processes import US, process
from fwl_ref.lm.model import Config, initialize
from fwl_ref.tree import named_leaves

SIZE = {"width": 256, "layers": 4, "heads": 4, "vocabulary": 256}
PROMPT, COUNT = 256, 200


def problem(kind: str, dtype: str = "float32", seed: int = 0) -> dict[str, Any]:
    """A model, a prompt, and how much to write. Weights are large enough that one byte is clearly the likeliest."""
    model = Config(**SIZE, fast=kind == "fast")
    weights = {name: (20 * a if a.ndim == 2 else a).astype(dtype) for name, a in named_leaves(initialize(model, seed, "float64", 1e-3))}
    prompt = np.random.default_rng(seed).integers(0, model.vocabulary, (1, PROMPT))
    return {"family": "fwl", "config": model._asdict(), "work": "write", "weights": weights, "tokens": prompt, "count": COUNT}


def rows(against: list[str], cores: list[int], rounds: int) -> Iterator[dict[str, Any]]:
    """A row for the plain and for the fast model: bytes per second of each side, and PyTorch's seconds over this project's.

    Raises SideError if a side is not there or writes something else.
    """
    sides = [US, *against]
    for kind in ("plain", "fast"):
        answers = {}
        for name in sides:
            with process(name, cores) as ask:
                ask("load", problem(kind, "float64"), len(cores))
                answers[name] = ask("gradients")
        errors = {name: agree(f"{kind} writing", name, answers[name], answers[US]) for name in against}
        with ExitStack() as stack:
            asks = {name: stack.enter_context(process(name, cores)) for name in sides}
            versions: dict[str, str] = {}
            for ask in asks.values():
                versions |= ask("versions")
                ask("load", problem(kind), len(cores))
            seconds = in_turn({name: lambda ask=ask: ask("clock")[0] for name, ask in asks.items()}, rounds)
        row = {"kind": kind, "prompt": PROMPT, "count": COUNT, "largest_error_in_float64": errors, "versions": versions}
        row["bytes_per_second"] = {name: COUNT / statistics.median(times) for name, times in seconds.items()}
        for name in against:
            times = compared(seconds, name)[US]
            row |= {f"ratio_to_{name}": times.ratio, "spread": times.spread}
        yield row
