"""The same model in JAX, compiled. The slow gradients are ``jax.grad`` with respect to what each layer's output is moved by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Weights = dict[str, jax.Array]


def load(problem: dict[str, Any], threads: int) -> Callable[[], tuple[float, dict]]:
    """Compiled on its first call. ``threads`` is not passed on: XLA takes the cores that the process is on."""
    config = problem["config"]
    if problem["family"] == "llama":
        from benchmarks.sides.jaxjit_llama import reader

        return reader(problem)
    if config["dialect"] != "tf" or config["normalizer"] != "constant" or config["constant"] != 1.0 or config["first_order"]:
        raise ValueError(f"the twin is of the model as it is by default, got {config}")
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", problem["weights"]["embedding"].dtype == np.float64)
    weights = {name: jnp.asarray(a) for name, a in problem["weights"].items()}
    tokens, labels = (jnp.asarray(problem[name], dtype=jnp.int32) for name in ("tokens", "labels"))

    def loss(w: Weights, tokens: jax.Array, labels: jax.Array) -> jax.Array:
        return nll(model(w, tokens, labels, config), labels).mean()

    run = jax.jit(jax.value_and_grad(loss) if problem["work"] == "step" else lambda *a: (loss(*a), {}))

    def work() -> tuple[float, dict]:
        value, gradients = jax.block_until_ready(run(weights, tokens, labels))
        return float(value), gradients

    return work


def host(gradients: dict) -> dict[str, np.ndarray]:
    """Copied to NumPy."""
    return {name: np.asarray(g) for name, g in gradients.items()}


def versions() -> dict[str, str]:
    """JAX."""
    return {"jax": jax.__version__}


def model(w: Weights, tokens: jax.Array, labels: jax.Array, config: dict) -> jax.Array:
    """(B,T),(B,T)->(B,T,V)   the logits"""
    x = w["embedding"][tokens]  # (B,T,D)
    for i in range(config["layers"]):
        x = transformer_block(x, part(w, f"trunk.{i}."), config["heads"])
    x = normalised(x, 1e-5) * w["gain"] + w["bias"]
    p = part(w, "block.")
    if not config["fast"]:
        return head(x, p, (0.0, 0.0, p["gain"], p["bias"]))[0]
    return fast_block(x, labels, p, part(w, "eta."), 1 - w["decay"], config["chunk"] or x.shape[1])


def part(w: Weights, prefix: str) -> Weights:
    """The weights whose names begin so."""
    return {name.removeprefix(prefix): a for name, a in w.items() if name.startswith(prefix)}


def transformer_block(x: jax.Array, w: Weights, heads: int) -> jax.Array:
    """(B,T,D)->(B,T,D)"""
    batch, length, width = x.shape
    y = (normalised(x, 1e-5) * w["gain1"] + w["bias1"]) @ w["W_qkv"] + w["b_qkv"]
    q, k, v = jnp.moveaxis(y.reshape(batch, length, 3, heads, width // heads), 2, 0)  # (B,T,H,K)
    y = attention(rotated(q), rotated(k), v)
    x = x + y.reshape(x.shape) @ w["W_o"] + w["b_o"]
    y = (normalised(x, 1e-5) * w["gain2"] + w["bias2"]) @ w["W_in"] + w["b_in"]
    return x + jax.nn.gelu(y, approximate=True) @ w["W_out"] + w["b_out"]


def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """(B,T,H,K)->(B,T,H,K)   not jax.nn.dot_product_attention, which forms float64 scores in float32 and could not be checked"""
    scores = jnp.einsum("bthk,bshk->bhts", q * q.shape[-1] ** -0.5, k)
    seen = jnp.tril(jnp.ones(scores.shape[-2:], dtype=bool))
    return jnp.einsum("bhts,bshk->bthk", jax.nn.softmax(jnp.where(seen, scores, -jnp.inf)), v)


def normalised(x: jax.Array, eps: float) -> jax.Array:
    """(...,D)->(...,D)"""
    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt((centred * centred).mean(-1, keepdims=True) + eps)


def rotated(x: jax.Array) -> jax.Array:
    """(B,T,H,K)->(B,T,H,K)"""
    frequency = 10000.0 ** (-jnp.arange(0, x.shape[-1], 2, dtype=x.dtype) / x.shape[-1])
    angle = jnp.arange(x.shape[1], dtype=x.dtype)[:, None, None] * frequency  # (T,1,K/2)
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate([a * jnp.cos(angle) - b * jnp.sin(angle), a * jnp.sin(angle) + b * jnp.cos(angle)], -1)


def nll(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """(B,T,V),(B,T)->(B,T)"""
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], -1)[..., 0]


def head(x: jax.Array, p: Weights, fast: tuple) -> tuple[jax.Array, jax.Array]:
    """(B,T,D)->(B,T,V),(B,T,F)   the block, with what moves its layers' outputs and with its gain and bias"""
    move1, move2, gain, bias = fast
    a = jax.nn.relu(x @ p["W1"] + p["b1"] + move1) ** 2
    n = normalised(a @ p["W2"] + p["b2"] + move2, 0.0) * gain + bias
    return n @ p["U"] + p["c"], a


def fast_block(x: jax.Array, labels: jax.Array, p: Weights, eta: Weights, keep: jax.Array, chunk: int) -> jax.Array:
    """(B,T,D)->(B,T,V)   logits with the weights that the past has changed"""

    def slow(fast: tuple) -> tuple[jax.Array, jax.Array]:
        logits, a = head(x, p, fast)
        return nll(logits, labels).sum(), a

    per_token = jnp.zeros_like(x)
    still = (jnp.zeros((*x.shape[:2], p["b1"].size), x.dtype), per_token, p["gain"] + per_token, p["bias"] + per_token)
    (dh, dz, dgain, dbias), a = jax.grad(slow, has_aux=True)(still)
    one = jnp.ones_like(x[..., :1])
    move1 = -past(eta["W1"] * x, x, dh, keep, chunk) - eta["b1"] * past(one, one, dh, keep, chunk)
    a_fast = jax.nn.relu(x @ p["W1"] + p["b1"] + move1) ** 2
    move2 = -past(eta["W2"] * a_fast, a, dz, keep, chunk) - eta["b2"] * past(one, one, dz, keep, chunk)
    gain = p["gain"] - eta["gain"] * past(one, one, dgain, keep, chunk)
    bias = p["bias"] - eta["bias"] * past(one, one, dbias, keep, chunk)
    return head(x, p, (move1, move2, gain, bias))[0]


def past(q: jax.Array, k: jax.Array, v: jax.Array, keep: jax.Array, chunk: int) -> jax.Array:
    """(B,T,K),(B,T,K),(B,T,E)->(B,T,E)   sum_{s<t} keep^(t-s-1) (q_t . k_s) v_s, in chunks"""
    outs, S = [], jnp.zeros((q.shape[0], q.shape[2], v.shape[2]), q.dtype)
    for start in range(0, q.shape[1], chunk):
        q_i, k_i, v_i = (a[:, start : start + chunk] for a in (q, k, v))
        i = jnp.arange(q_i.shape[1])
        power = keep ** i.astype(q.dtype)  # (L,)
        mask = jnp.tril(power[jnp.maximum(i[:, None] - i - 1, 0)], -1)  # (L,L)
        outs.append((q_i @ k_i.mT * mask) @ v_i + (q_i * power[:, None]) @ S)
        S = keep ** len(i) * S + (k_i * power[::-1, None]).mT @ v_i
    return jnp.concatenate(outs, 1)
