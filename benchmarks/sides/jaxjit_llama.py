"""The llama family in JAX, compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.sides.jaxjit import Weights, attention, nll, part


def reader(problem: dict[str, Any]) -> Callable[[], tuple[float, dict]]:
    """Compiled on its first call."""
    config = problem["config"]
    if config["pairs"] != "interleaved" or not config["tied"] or config["factors"] is not None:
        raise ValueError(f"the twin has interleaved pairs, plain positions and tied tables, got {config}")
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", problem["weights"]["embedding"].dtype == np.float64)
    weights = {name: jnp.asarray(a) for name, a in problem["weights"].items()}
    tokens, labels = (jnp.asarray(problem[name], dtype=jnp.int32) for name in ("tokens", "labels"))
    run = jax.jit(lambda w, t, y: nll(model(w, t, config), y).mean())
    return lambda: (float(run(weights, tokens, labels)), {})


def model(w: Weights, tokens: jax.Array, config: dict) -> jax.Array:
    """(B,T)->(B,T,V)   the logits"""
    x = w["embedding"][tokens]  # (B,T,D)
    for i in range(config["layers"]):
        x = layer(x, part(w, f"trunk.{i}."), config)
    return normalised(x, w["gain"], config["eps"]) @ w["embedding"].T


def layer(x: jax.Array, w: Weights, config: dict) -> jax.Array:
    """(B,T,D)->(B,T,D)"""
    y = normalised(x, w["gain1"], config["eps"])
    q, k, v = ((y @ w[name]).reshape(*y.shape[:2], -1, config["head"]) for name in ("W_q", "W_k", "W_v"))  # (B,T,H,K), (B,T,G,K)
    size = config["heads"] // config["groups"]
    k, v = jnp.repeat(rotated(k, config["base"]), size, axis=2), jnp.repeat(v, size, axis=2)  # (B,T,H,K)
    x = x + attention(rotated(q, config["base"]), k, v).reshape(*x.shape[:2], -1) @ w["W_o"]
    y = normalised(x, w["gain2"], config["eps"])
    return x + (jax.nn.silu(y @ w["W_gate"]) * (y @ w["W_up"])) @ w["W_down"]


def normalised(x: jax.Array, gain: jax.Array, eps: float) -> jax.Array:
    """(B,T,D)->(B,T,D)"""
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + eps) * gain


def rotated(x: jax.Array, base: float) -> jax.Array:
    """(B,T,H,K)->(B,T,H,K)"""
    length, width = x.shape[1], x.shape[-1]
    angle = jnp.arange(length, dtype=x.dtype)[:, None] * base ** (-jnp.arange(0, width, 2, dtype=x.dtype) / width)  # (T,K/2)
    cos, sin = jnp.cos(angle)[:, None, :], jnp.sin(angle)[:, None, :]  # (T,1,K/2)
    a, b = x[..., 0::2], x[..., 1::2]
    return jnp.stack([a * cos - b * sin, a * sin + b * cos], -1).reshape(x.shape)
