"""The same model as somebody writes it who wants it fast in PyTorch: library calls where there are any, eager mode, autograd.

The slow backward pass of the fast block is written out in torch operations, in closed form, and
autograd differentiates through it. That is less work than ``create_graph=True`` would be. The loop
over chunks won: all chunks in one batch of products took 1.4 of its time in a step (D 256, T 512).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, embedding, gelu, layer_norm, linear, scaled_dot_product_attention

Weights = dict[str, Tensor]


def load(problem: dict[str, Any], threads: int) -> Callable[[], tuple[float, dict]]:
    """A forward pass without a graph, or the loss and its gradients."""
    torch.set_num_threads(threads)
    config = problem["config"]
    if problem["family"] == "llama":
        from benchmarks.sides.pytorch_llama import reader

        return reader(problem)
    if config["dialect"] != "tf" or config["normalizer"] != "constant" or config["constant"] != 1.0 or config["first_order"]:
        raise ValueError(f"the twin is of the model as it is by default, got {config}")
    weights = {name: torch.from_numpy(np.array(a)) for name, a in problem["weights"].items()}
    if problem["work"] == "write":
        from benchmarks.sides.pytorch_stream import writer

        return writer(weights, torch.from_numpy(problem["tokens"]), problem["count"], config)
    tokens, labels = torch.from_numpy(problem["tokens"]), torch.from_numpy(problem["labels"])
    tables = rotary_tables(tokens.shape[1], config["width"] // config["heads"], weights["embedding"].dtype)

    def loss() -> Tensor:
        logits = model(weights, tokens, labels, tables, config)
        return cross_entropy(logits.flatten(0, 1), labels.flatten())

    def forward() -> tuple[float, dict]:
        with torch.inference_mode():
            return loss().item(), {}

    def step() -> tuple[float, dict]:
        value = loss()
        found = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
        return value.item(), dict(zip(weights, found, strict=True))

    if problem["work"] == "step":
        for w in weights.values():
            w.requires_grad_(True)
    return {"forward": forward, "step": step}[problem["work"]]


def host(gradients: dict) -> dict[str, np.ndarray]:
    """None is what autograd says of a weight that is not used."""
    return {name: np.zeros(()) if g is None else g.numpy() for name, g in gradients.items()}


def versions() -> dict[str, str]:
    """PyTorch."""
    return {"torch": torch.__version__}


def product(n: int) -> None:
    """One product of square matrices."""
    a = torch.ones((n, n))
    torch.mm(a, a)


def model(w: Weights, tokens: Tensor, labels: Tensor, tables: tuple[Tensor, Tensor], config: dict) -> Tensor:
    """(B,T),(B,T)->(B,T,V)   the logits"""
    x = embedding(tokens, w["embedding"])  # (B,T,D)
    for i in range(config["layers"]):
        prefix = f"trunk.{i}."
        layer = {name.removeprefix(prefix): a for name, a in w.items() if name.startswith(prefix)}
        x = transformer_block(x, layer, config["heads"], tables)
    x = layer_norm(x, x.shape[-1:], w["gain"], w["bias"], 1e-5)
    block = {name.removeprefix("block."): a for name, a in w.items() if name.startswith("block.")}
    if not config["fast"]:
        a = torch.relu(linear(x, block["W1"].t(), block["b1"])).square()  # (B,T,F)
        n = layer_norm(linear(a, block["W2"].t(), block["b2"]), x.shape[-1:], block["gain"], block["bias"], 0.0)
        return linear(n, block["U"].t(), block["c"])
    eta = {name.removeprefix("eta."): a for name, a in w.items() if name.startswith("eta.")}
    return fast_block(x, labels, block, eta, fading(1 - w["decay"], config["chunk"] or x.shape[1]))


def transformer_block(x: Tensor, w: Weights, heads: int, tables: tuple[Tensor, Tensor]) -> Tensor:
    """(B,T,D)->(B,T,D)"""
    batch, length, width = x.shape
    y = linear(layer_norm(x, (width,), w["gain1"], w["bias1"], 1e-5), w["W_qkv"].t(), w["b_qkv"])
    q, k, v = y.view(batch, length, 3, heads, width // heads).permute(2, 0, 3, 1, 4)  # (B,H,T,K)
    y = scaled_dot_product_attention(rotated(q, *tables), rotated(k, *tables), v, is_causal=True)
    x = x + linear(y.transpose(1, 2).reshape(x.shape), w["W_o"].t(), w["b_o"])
    y = linear(layer_norm(x, (width,), w["gain2"], w["bias2"], 1e-5), w["W_in"].t(), w["b_in"])  # (B,T,4D)
    return x + linear(gelu(y, approximate="tanh"), w["W_out"].t(), w["b_out"])


def rotary_tables(length: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(T,K/2) cosine and sine"""
    frequency = 10000.0 ** (-torch.arange(0, width, 2, dtype=dtype) / width)
    angle = torch.arange(length, dtype=dtype)[:, None] * frequency
    return angle.cos(), angle.sin()


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(B,H,T,K)->(B,H,T,K)"""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


class Fading(NamedTuple):
    """Powers of keep, for chunks of L tokens."""

    read: Tensor  # (L,1) keep^i
    mask: Tensor  # (L,L) keep^(i-j-1) below the diagonal, 0 elsewhere
    write: Tensor  # (L,1) keep^(L-1-j)
    keep: Tensor  # ()


def fading(keep: Tensor, length: int) -> Fading:
    """The tables of a chunk; a shorter one has their beginning, or their end."""
    i = torch.arange(length)
    power = keep ** i.to(keep.dtype)  # (L,)
    mask = power[(i[:, None] - i - 1).clamp(min=0)].tril(-1)  # (L,L)
    return Fading(power[:, None], mask, power.flip(0)[:, None], keep)


class Memory(NamedTuple):
    """What the slow weights make of each token: what each weight's gradient is an outer product of, and the slow hidden input."""

    h: Tensor  # (B,T,F)
    dh: Tensor  # (B,T,F)
    a: Tensor  # (B,T,F)
    dz: Tensor  # (B,T,D)
    dgain: Tensor  # (B,T,D)
    dbias: Tensor  # (B,T,D)


def memory(x: Tensor, labels: Tensor, p: Weights) -> Memory:
    """(B,T,D),(B,T)   the slow forward pass and its backward pass, per token"""
    # slow forward
    h = linear(x, p["W1"].t(), p["b1"])  # (B,T,F)
    r = torch.relu(h)
    a = r.square()
    z = linear(a, p["W2"].t(), p["b2"])  # (B,T,D)
    centred = z - z.mean(-1, keepdim=True)
    rstd = centred.square().mean(-1, keepdim=True).rsqrt()  # (B,T,1)
    n = centred * rstd
    logits = linear(n * p["gain"] + p["bias"], p["U"].t(), p["c"])  # (B,T,V)
    # slow backward
    hit = labels[..., None]
    dlogits = logits.softmax(-1).scatter_add(-1, hit, logits.new_full((1, 1, 1), -1.0).expand(hit.shape))
    dn = linear(dlogits, p["U"])  # (B,T,D), and the bias's gradient
    dgain, v = dn * n, dn * p["gain"]
    dz = rstd * (v - v.mean(-1, keepdim=True) - n * (n * v).mean(-1, keepdim=True))
    dh = 2 * r * linear(dz, p["W2"])  # (B,T,F)
    return Memory(h, dh, a, dz, dgain, dn)


def fast_block(x: Tensor, labels: Tensor, p: Weights, eta: Weights, fade: Fading) -> Tensor:
    """(B,T,D)->(B,T,V)   logits with the weights that the past has changed"""
    h, dh, a, dz, dgain, dbias = memory(x, labels, p)
    a_fast = torch.relu(h - read_past(x, x, dh, eta["W1"], eta["b1"], fade)).square()
    z = linear(a_fast, p["W2"].t(), p["b2"]) - read_past(a_fast, a, dz, eta["W2"], eta["b2"], fade)
    gain, bias = sum_past(torch.cat([dgain, dbias], -1), fade).chunk(2, -1)  # (B,T,D)
    n = layer_norm(z, x.shape[-1:], eps=0.0)
    return linear(n * (p["gain"] - eta["gain"] * gain) + (p["bias"] - eta["bias"] * bias), p["U"].t(), p["c"])


def read_past(q: Tensor, k: Tensor, v: Tensor, eta_W: Tensor, eta_b: Tensor, fade: Fading) -> Tensor:
    """(B,T,K),(B,T,K),(B,T,E)->(B,T,E)   sum_{s<t} keep^(t-s-1) (eta_W q_t . k_s + eta_b) v_s, in chunks"""
    reads, mask, writes, keep = fade
    size, outs, S, s = mask.shape[0], [], None, None
    for q_i, k_i, v_i in zip(q.split(size, 1), k.split(size, 1), v.split(size, 1), strict=True):
        n = q_i.shape[1]
        read, write = reads[:n], writes[size - n :]
        q_i = eta_W * q_i
        scores = (q_i @ k_i.mT + eta_b) * mask[:n, :n]  # (B,L,L)
        out = scores @ v_i
        if S is not None:
            out = torch.baddbmm(out, q_i * read, S) + (eta_b * read) * s
        outs.append(out)
        if len(outs) * size < q.shape[1]:  # nobody reads what the last chunk writes
            S_i, s_i = (k_i * write).mT @ v_i, write.mT @ v_i  # (B,K,E), (B,1,E)
            S, s = (S_i, s_i) if S is None else (S_i + keep**n * S, s_i + keep**n * s)
    return torch.cat(outs, 1)


def sum_past(v: Tensor, fade: Fading) -> Tensor:
    """(B,T,E)->(B,T,E)   sum_{s<t} keep^(t-s-1) v_s, in chunks"""
    reads, mask, writes, keep = fade
    size, outs, s = mask.shape[0], [], None
    for v_i in v.split(size, 1):
        n = v_i.shape[1]
        outs.append(mask[:n, :n] @ v_i if s is None else mask[:n, :n] @ v_i + reads[:n] * s)
        s_i = writes[size - n :].mT @ v_i  # (B,1,E)
        s = s_i if s is None else s_i + keep**n * s
    return torch.cat(outs, 1)
