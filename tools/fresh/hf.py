"""transformers: the gated delta rule of Qwen3-Next, one head."""

from __future__ import annotations

from typing import Any

from .common import Case, answers, strict_read
from .fla import NOTHING, one_head

PACKAGE, MODULE, PROGRAM = "transformers", "transformers", "transformers"
NOTES: dict[str, str] = {}


def gated_delta(x: dict[str, Any], case: Case) -> tuple:
    """Its built-in scale K^-1/2 is undone on q."""
    from transformers.models.qwen3_next.modeling_qwen3_next import torch_recurrent_gated_delta_rule as program

    q, k, v, g, beta = one_head(x["q"] * x["q"].shape[-1] ** 0.5, x["k"], x["v"], x["alpha"].log(), x["beta"])
    out, S = program(q, k, v, g, beta, x["state"][:, None], True, False)
    return out[:, :, 0], {"state": S[:, 0]}


ADAPTERS = {"torch_recurrent_gated_delta_rule": gated_delta}


def answer(function: str, case: Case) -> Case:
    """The answers of the function of that name."""
    program = ADAPTERS[function]
    return answers(case, strict_read(program, NOTHING) if str(case["read"]) == "strict" else program)
