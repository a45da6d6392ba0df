"""This project, as somebody gets it who only imports it: no settings, no environment variables."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import array_api_compat.numpy as xp
import numpy as np

from fwl_ref import __version__
from fwl_ref.lm.generate import read_text, reader_start, write_text
from fwl_ref.lm.llama import LlamaConfig, features, parameter_axes
from fwl_ref.lm.model import Config, loss_and_gradient, model_score, parameter_shapes
from fwl_ref.ops.blocked_head import blocked_head_nll
from fwl_ref.tree import named_leaves, rebuild


def load(problem: dict[str, Any], threads: int) -> Callable[[], tuple[float, dict]]:
    """What a reader calls to read, and what training calls. ``threads`` is not passed on: the process is on that many cores."""
    if problem["family"] == "llama":
        return llama_reader(problem)
    config = Config(**problem["config"])
    weights = rebuild(parameter_shapes(config), list(problem["weights"].values()))
    if problem["work"] == "write":
        return writer(problem, weights, config)
    text = problem["tokens"], problem["labels"]

    def forward() -> tuple[float, dict]:
        return float(np.mean(model_score(weights, *text, None, config, carry=False).nll)), {}

    def step() -> tuple[float, dict]:
        loss, gradient = loss_and_gradient(weights, *text, None, config)
        return float(loss), dict(named_leaves(gradient))

    return {"forward": forward, "step": step}[problem["work"]]


def llama_reader(problem: dict[str, Any]) -> Callable[[], tuple[float, dict]]:
    """A model of the llama family reads: its trunk without residuals, the head in blocks of tokens."""
    config = LlamaConfig(**problem["config"])
    weights = rebuild(parameter_axes(config), list(problem["weights"].values()))

    def forward() -> tuple[float, dict]:
        x, _ = features(weights, problem["tokens"], config)
        return float(np.mean(blocked_head_nll(x, weights.table.T, None, problem["labels"]))), {}

    return forward


def writer(problem: dict[str, Any], weights: Any, config: Config) -> Callable[[], tuple[float, dict]]:
    """The likeliest bytes after a prompt that has been read: the text, and the features and the memory at its end."""
    count, length = problem["count"], problem["tokens"].shape[1] + problem["count"] + 1
    start = read_text(weights, config, reader_start(weights), bytes(problem["tokens"][0].tolist()), length)

    def write() -> tuple[float, dict]:
        text, reader = write_text(weights, config, start, count, window=length, temperature=0.0)
        found = {"text": np.frombuffer(text, "uint8").astype("float64"), "features": reader.last}
        return float(np.mean(found["text"])), found | (reader.stream.state._asdict() if config.fast else {})

    return write


def host(gradients: dict) -> dict[str, np.ndarray]:
    """They are NumPy's."""
    return gradients


def versions() -> dict[str, str]:
    """This project and NumPy, with the library of its products."""
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return {"fwl_ref": __version__, "numpy": version("numpy"), "blas": f"{blas['name']} {blas['version']}"}


def product(n: int) -> None:
    """One product of square matrices."""
    a = np.ones((n, n), dtype="float32")
    np.matmul(a, a)


def formed(work: Callable[[], Any]) -> int:
    """Multiply-adds of all matrix products that a work forms: counted where they are formed, sums left out."""
    total, matmul = [0], xp.matmul

    def watched(a: np.ndarray, b: np.ndarray, **options: Any) -> np.ndarray:
        out = matmul(a, b, **options)
        if a.ndim > 1:  # the product of a vector is a sum over tokens, which no formula counts
            total.append(int(out.size) * a.shape[-1])
        return out

    xp.matmul = watched
    try:
        work()
    finally:
        xp.matmul = matmul
    return sum(total)
