"""The llama family as somebody writes it who wants it fast in PyTorch: a library call for every op that has one, eager mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, embedding, linear, rms_norm, scaled_dot_product_attention, silu

Weights = dict[str, Tensor]


def reader(problem: dict[str, Any]) -> Callable[[], tuple[float, dict]]:
    """A forward pass without a graph."""
    config = problem["config"]
    if config["pairs"] != "interleaved" or not config["tied"] or config["factors"] is not None:
        raise ValueError(f"the twin has interleaved pairs, plain positions and tied tables, got {config}")
    weights = {name: torch.from_numpy(np.array(a)) for name, a in problem["weights"].items()}  # strides stay: linear gets rows of outputs
    tokens, labels = torch.from_numpy(problem["tokens"]), torch.from_numpy(problem["labels"])
    dtype = weights["embedding"].dtype
    frequency = config["base"] ** (-torch.arange(0, config["head"], 2, dtype=dtype) / config["head"])
    angle = torch.arange(tokens.shape[1], dtype=dtype)[:, None] * frequency  # (T,K/2)
    tables = angle.cos(), angle.sin()

    def forward() -> tuple[float, dict]:
        with torch.inference_mode():
            logits = model(weights, tokens, tables, config)
            return cross_entropy(logits.flatten(0, 1), labels.flatten()).item(), {}

    return forward


def model(w: Weights, tokens: Tensor, tables: tuple[Tensor, Tensor], config: dict) -> Tensor:
    """(B,T)->(B,T,V)   the logits"""
    x = embedding(tokens, w["embedding"])  # (B,T,D)
    for i in range(config["layers"]):
        prefix = f"trunk.{i}."
        x = layer(x, {name.removeprefix(prefix): a for name, a in w.items() if name.startswith(prefix)}, tables, config)
    return linear(rms_norm(x, x.shape[-1:], w["gain"], config["eps"]), w["embedding"])


def layer(x: Tensor, w: Weights, tables: tuple[Tensor, Tensor], config: dict) -> Tensor:
    """(B,T,D)->(B,T,D)"""
    width, eps, head = x.shape[-1:], config["eps"], config["head"]
    y = rms_norm(x, width, w["gain1"], eps)
    q, k, v = (linear(y, w[name].t()).unflatten(-1, (-1, head)).transpose(1, 2) for name in ("W_q", "W_k", "W_v"))  # (B,H,T,K), (B,G,T,K)
    y = scaled_dot_product_attention(rotated(q, *tables), rotated(k, *tables), v, is_causal=True, enable_gqa=True)
    x = x + linear(y.transpose(1, 2).flatten(2), w["W_o"].t())
    y = rms_norm(x, width, w["gain2"], eps)
    return x + linear(silu(linear(y, w["W_gate"].t())) * linear(y, w["W_up"].t()), w["W_down"].t())


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(B,H,T,K)->(B,H,T,K)"""
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)
