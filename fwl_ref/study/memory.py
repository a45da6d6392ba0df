"""Another memory in the place of the fast weights: its keys and values are learned projections.

A fast weight layer writes its inputs and the gradients of its outputs. Here a token writes what a
dense layer makes of its features x and of its label y, given as a one-hot vector: the same
information, known at the same time, after the token has been predicted. A token reads strictly what
earlier ones wrote, and what it reads is added to its features before the block, which stays slow:

    q = unit(x W_q)    [k, v, b] = x W_w + labels[y] + c    k = unit(k)    rates = sigmoid(b)
    o = rule(q, k, v, rates)      x' = x + RMS(o; gain) W_o

H heads of width D each. The rule is linear attention, the delta rule or the gated delta rule
(``rules/``), in chunks. Keys of length 1 and a normalised output are what these layers usually
have. Four heads cost about what the fast weights cost (``tests/study/test_memory.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ..backend import Array, host, namespace
from ..lm.heads import merge_heads, split_heads
from ..lm.model import Config
from ..lm.train import TrainSettings
from ..lm.transformer import EPS
from ..ops.common import chunk_slices
from ..ops.dense import DenseResidual, dense_bwd, dense_fwd
from ..ops.embedding import EmbeddingResidual, embedding_bwd, embedding_fwd
from ..ops.l2norm import L2NormResidual, l2norm_bwd, l2norm_fwd
from ..ops.rmsnorm import RmsNormResidual, rmsnorm_bwd, rmsnorm_fwd
from ..rules.delta import delta_chunked_bwd, delta_chunked_fwd
from ..rules.gated_delta import gated_delta_chunked_bwd, gated_delta_chunked_fwd
from ..rules.heads import fold, unfold
from ..rules.linear import linear_chunked_bwd, linear_chunked_fwd

HEADS = 4
KEPT = 5.3  # sigmoid of it is 0.995: gates start where the decay of fast weights starts
SCALE = 0.02  # deviation of a starting matrix, as in ``lm/model.py``


class Rule(NamedTuple):
    """A rule in chunks, and how many rates a token has."""

    fwd: Callable
    bwd: Callable
    rates: int  # the last one is beta, the one before it alpha


RULES = {
    "linear": Rule(linear_chunked_fwd, linear_chunked_bwd, 0),
    "delta": Rule(delta_chunked_fwd, delta_chunked_bwd, 1),
    "gated_delta": Rule(gated_delta_chunked_fwd, gated_delta_chunked_bwd, 2),
}


class MemoryParameters(NamedTuple):
    """The layer, and (same type) its gradients; C = H (2 D + rates) columns are written."""

    W_q: Array  # (D,HD)
    W_w: Array  # (D,C) keys, values and rates of all heads
    labels: Array  # (V,C)
    c: Array  # (C,)
    gain: Array  # (D,) of each head's output
    W_o: Array  # (HD,D)


class MemoryResidual(NamedTuple):
    query: DenseResidual
    write: DenseResidual
    labels: EmbeddingResidual
    unit_q: L2NormResidual
    unit_k: L2NormResidual
    rates: Array  # (B,T,HR)
    rule: Any
    norm: RmsNormResidual
    out: DenseResidual
    name: str


def memory_fwd(
    x: Array,
    labels: Array,
    p: MemoryParameters,
    state: Array | None = None,
    *,
    rule: str,
    chunk: int | None = None,
) -> tuple[tuple[Array, Array], MemoryResidual]:
    """(B,T,D),(B,T),(BH,D,D)->(B,T,D),(BH,D,D)   x + what a strict read finds; the memory after

    Every token writes. Padding stands behind the text, so no token that counts reads it. ``state``
    None is an empty memory; it is a constant. Source: the formulas above.

    Raises KeyError for another rule, ValueError as the rule does.
    """
    xp, known = namespace(x, *p), RULES[rule]
    d, heads = x.shape[-1], p.W_q.shape[1] // x.shape[-1]
    q, query = dense_fwd(x, p.W_q, None)  # (B,T,HD)
    w, write = dense_fwd(x, p.W_w, p.c)  # (B,T,C)
    seen, lookup = embedding_fwd(p.labels, labels)  # (B,T,C)
    w = w + seen
    wide = heads * d
    q, unit_q = l2norm_fwd(split_heads(q, heads))  # (B,H,T,D)
    k, unit_k = l2norm_fwd(split_heads(w[..., :wide], heads))  # (B,H,T,D)
    v = split_heads(w[..., wide : 2 * wide], heads)  # (B,H,T,D)
    rates = 0.5 * (1 + xp.tanh(0.5 * w[..., 2 * wide :]))  # (B,T,HR) the sigmoid
    tokens = [fold(a, axis=1) for a in (q, k, v)]  # (BH,T,D)
    tokens += [fold(a) for a in _columns(rates, heads, known.rates)]  # (BH,T)
    (o, state), run = known.fwd(*tokens, state, chunk, read="strict")  # (BH,T,D)
    o, norm = rmsnorm_fwd(unfold(o, heads, axis=1), p.gain, EPS)  # (B,H,T,D)
    o, out = dense_fwd(merge_heads(o), p.W_o, None)  # (B,T,D)
    return (x + o, state), MemoryResidual(
        query, write, lookup, unit_q, unit_k, rates, run, norm, out, rule
    )


def memory_bwd(dout: Array, res: MemoryResidual) -> tuple[Array, MemoryParameters]:
    """Adjoint of memory_fwd with respect to x and the parameters; the state is constant."""
    xp, known = namespace(dout), RULES[res.name]
    heads = res.unit_q.y.shape[1]
    # forward: x' = x + RMS(o) W_o
    do, dW_o, _ = dense_bwd(dout, res.out)  # (B,T,HD)
    do, dgain = rmsnorm_bwd(split_heads(do, heads), res.norm)  # (B,H,T,D)
    # forward: o = rule(q, k, v, rates)
    dq, dk, dv, *drates, _ = known.bwd(fold(do, axis=1), None, res.rule)  # (BH,T,D), (BH,T)
    dq, dk, dv = (unfold(g, heads, axis=1) for g in (dq, dk, dv))  # (B,H,T,D)
    # forward: rates = sigmoid(b)
    columns = [unfold(g, heads, axis=2) for g in drates]  # (B,T,H) each
    db = xp.concat(columns, axis=-1) if columns else xp.zeros_like(res.rates)  # (B,T,HR)
    db = db * res.rates * (1 - res.rates)
    # forward: q = unit(x W_q), k = unit(k)
    dq, dk = l2norm_bwd(dq, res.unit_q), l2norm_bwd(dk, res.unit_k)  # (B,H,T,D)
    # forward: w = x W_w + labels[y] + c
    dw = xp.concat([merge_heads(dk), merge_heads(dv), db], axis=-1)  # (B,T,C)
    dx, dW_w, dc = dense_bwd(dw, res.write)  # (B,T,D)
    dx_q, dW_q, _ = dense_bwd(merge_heads(dq), res.query)  # (B,T,D)
    dlabels = embedding_bwd(dw, res.labels)
    return dout + dx + dx_q, MemoryParameters(dW_q, dW_w, dlabels, dc, dgain, dW_o)


def begin_memory(
    config: Config, s: TrainSettings, rule: str, heads: int = HEADS
) -> MemoryParameters:
    """A memory's starting parameters.

    A label weighs as much as the features do. Raises KeyError for another rule.
    """
    rng, d = host.random.default_rng([s.seed, 1]), config.width
    rates = heads * RULES[rule].rates

    def normal(*shape: int, scale: float = SCALE) -> Array:
        return host.asarray(rng.standard_normal(shape) * scale, dtype="float32")

    columns = 2 * heads * d + rates
    c = host.zeros(columns, dtype="float32")  # (C,)
    c[columns - rates : columns - heads] = KEPT  # alpha, of the last rule; a beta starts at 1/2
    return MemoryParameters(
        normal(d, heads * d),
        normal(d, columns),
        normal(config.vocabulary, columns, scale=SCALE * d**0.5),
        c,
        host.ones(d, dtype="float32"),
        normal(heads * d, d, scale=SCALE / (2 * config.layers) ** 0.5),
    )


def count_parameters(config: Config, rule: str, heads: int = HEADS) -> int:
    """How many numbers a memory learns."""
    d, columns = config.width, heads * (2 * config.width + RULES[rule].rates)
    return 2 * d * heads * d + (d + config.vocabulary + 1) * columns + d


def memory_products(config: Config, length: int, rule: str, heads: int = HEADS) -> int:
    """Multiply-adds of the layer on one window: four projections, and the rule in its chunks."""
    d, rates = config.width, RULES[rule].rates
    total = length * d * (4 * heads * d + heads * rates)
    for part in chunk_slices(length, config.chunk):
        n = part.stop - part.start
        own = 2 * n * n * d + 2 * n * d * d  # scores and their sums; the state read and written
        if rule != "linear":
            own += n * n * d + n * d * d + d * _solved(n)  # k k^T, what is recalled, the system
        total += heads * own
    return total


def _columns(rates: Array, heads: int, count: int) -> list[Array]:
    """(B,T,HR)->(B,T,H), R of them"""
    return [rates[..., i * heads : (i + 1) * heads] for i in range(count)]


def _solved(n: int) -> int:
    """Multiply-adds for a column of the triangular system (``rules.common.solve``)."""
    half = n // 2
    return 0 if n < 2 else half * (n - half) + _solved(half) + _solved(n - half)
