"""Writing text in PyTorch eager: keys and values in buffers, the memory as sums of outer products updated in place."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import embedding, gelu, layer_norm, linear, scaled_dot_product_attention

from benchmarks.sides.pytorch import Weights, memory, rotary_tables, rotated

Caches = list[tuple[Tensor, Tensor]]  # keys and values of each layer, (1,H,M,K), M places of which the first are taken


def writer(weights: Weights, prompt: Tensor, count: int, config: dict) -> Callable[[], tuple[float, dict]]:
    """The likeliest bytes after a prompt that has been read: the text, and the features and the memory at its end."""
    heads, length = config["heads"], prompt.shape[1]
    parts = [group(weights, f"trunk.{i}.") for i in range(config["layers"])]
    block, eta, keep = group(weights, "block."), group(weights, "eta."), 1 - weights["decay"]
    space = 1, heads, length + count, config["width"] // heads
    kind = weights["embedding"].dtype
    tables = rotary_tables(space[2], space[3], kind)

    def features(tokens: Tensor, caches: Caches, start: int) -> Tensor:
        """(1,n)->(1,n,D)"""
        x = embedding(tokens, weights["embedding"])
        for w, cache in zip(parts, caches, strict=True):
            x = layer(x, w, heads, tables, cache, start)
        return layer_norm(x, x.shape[-1:], weights["gain"], weights["bias"], 1e-5)

    with torch.inference_mode():
        read = [(torch.zeros(space, dtype=kind), torch.zeros(space, dtype=kind)) for _ in parts]
        x = features(prompt, read, 0)
        after, sums = x[:, -1:], written(x[:, :-1], prompt[:, 1:], block, keep) if config["fast"] else []

    def write() -> tuple[float, dict]:
        with torch.inference_mode():
            caches, state, x, text = [(k.clone(), v.clone()) for k, v in read], [s.clone() for s in sums], after, []
            for place in range(length, length + count):
                byte = predicted(x, block, eta, state).argmax(-1)  # (1,1)
                text.append(byte.item())
                if state:
                    reveal(state, x, byte, block, keep)
                x = features(byte, caches, place)
            found = {"text": torch.tensor(text, dtype=torch.float64), "features": x[:, -1]}
            names = "W1", "b1", "W2", "b2", "gain", "bias"
            return sum(text) / count, found | {n: s if n in ("W1", "W2") else s[:, 0] for n, s in zip(names, state, strict=False)}

    return write


def group(weights: Weights, prefix: str) -> Weights:
    """Those whose names begin so, without it."""
    return {name.removeprefix(prefix): a for name, a in weights.items() if name.startswith(prefix)}


def layer(x: Tensor, w: Weights, heads: int, tables: tuple[Tensor, Tensor], cache: tuple[Tensor, Tensor], start: int) -> Tensor:
    """(1,n,D)->(1,n,D)   n tokens at the places from ``start`` on; n is 1 unless nothing is before them"""
    _, n, width = x.shape
    stop, (cos, sin), (keys, values) = start + n, tables, cache
    y = linear(layer_norm(x, (width,), w["gain1"], w["bias1"], 1e-5), w["W_qkv"].t(), w["b_qkv"])
    q, k, v = y.view(1, n, 3, heads, width // heads).permute(2, 0, 3, 1, 4)  # (1,H,n,K)
    keys[:, :, start:stop], values[:, :, start:stop] = rotated(k, cos[start:stop], sin[start:stop]), v
    q = rotated(q, cos[start:stop], sin[start:stop])
    y = scaled_dot_product_attention(q, keys[:, :, :stop], values[:, :, :stop], is_causal=n > 1)
    x = x + linear(y.transpose(1, 2).reshape(x.shape), w["W_o"].t(), w["b_o"])
    y = linear(layer_norm(x, (width,), w["gain2"], w["bias2"], 1e-5), w["W_in"].t(), w["b_in"])
    return x + linear(gelu(y, approximate="tanh"), w["W_out"].t(), w["b_out"])


def predicted(x: Tensor, p: Weights, eta: Weights, state: list[Tensor]) -> Tensor:
    """(1,1,D)->(1,1,V)   logits; without a state those of the slow weights"""
    width = x.shape[-1:]
    h = linear(x, p["W1"].t(), p["b1"])  # (1,1,F)
    if not state:
        n = layer_norm(linear(torch.relu(h).square(), p["W2"].t(), p["b2"]), width, p["gain"], p["bias"], 0.0)
        return linear(n, p["U"].t(), p["c"])
    W1, b1, W2, b2, gain, bias = state
    a = torch.relu(h - eta["W1"] * (x @ W1) - eta["b1"] * b1).square()
    z = linear(a, p["W2"].t(), p["b2"]) - eta["W2"] * (a @ W2) - eta["b2"] * b2
    n = layer_norm(z, width, eps=0.0)
    return linear(n * (p["gain"] - eta["gain"] * gain) + (p["bias"] - eta["bias"] * bias), p["U"].t(), p["c"])


def written(x: Tensor, labels: Tensor, p: Weights, keep: Tensor) -> list[Tensor]:
    """What the tokens of a prompt leave: (1,D,F), (1,1,F), (1,F,D), (1,1,D), (1,1,D), (1,1,D)"""
    _, dh, a, dz, dgain, dbias = memory(x, labels, p)
    left = keep ** torch.arange(x.shape[1] - 1, -1, -1, dtype=x.dtype)[:, None]  # (n,1)
    return [(x * left).mT @ dh, left.mT @ dh, (a * left).mT @ dz, left.mT @ dz, left.mT @ dgain, left.mT @ dbias]


def reveal(state: list[Tensor], x: Tensor, byte: Tensor, p: Weights, keep: Tensor) -> None:
    """Write one byte to the memory."""
    _, dh, a, dz, dgain, dbias = memory(x, byte, p)
    for s, key, value in zip(state, (x, None, a, None, None, None), (dh, dh, dz, dz, dgain, dbias), strict=True):
        s.mul_(keep)
        if key is None:
            s.add_(value)
        else:
            s.baddbmm_(key.mT, value)
