"""The llama family (Touvron et al., arXiv 2302.13971), forward and backward by hand.

    q, k, v = RMS(x) W_q, RMS(x) W_k, RMS(x) W_v
    x = x + merge(attention(rotary(q), rotary(k), v)) W_o      H query heads, G key-value heads
    x = x + swiglu(RMS(x) W_gate, RMS(x) W_up) W_down

No layer has a bias. The head width K is a number of its own, so that H K need not be D. Every
parameter is one tensor of the published files, up to a transposition: ``pretrained/`` only renames.
A cache of keys and values works as in ``transformer.py``: gradients stop at it.
"""

from __future__ import annotations

from typing import NamedTuple

from ..backend import Array, namespace
from ..checks import check_labels, check_shapes
from ..ops.attention import (
    GroupedAttentionResidual,
    grouped_attention_bwd,
    grouped_attention_fwd,
)
from ..ops.dense import DenseResidual, dense_bwd, dense_fwd
from ..ops.embedding import EmbeddingResidual, embedding_bwd, embedding_fwd
from ..ops.rmsnorm import RmsNormResidual, rmsnorm_bwd, rmsnorm_fwd
from ..ops.rotary import PAIRS, RotaryResidual, rotary_bwd, rotary_fwd, rotated
from ..ops.swiglu import SwigluResidual, swiglu_bwd, swiglu_fwd
from ..tree import leaves
from .heads import merge_heads, split_heads
from .stack import stack, stack_bwd, stack_fwd
from .transformer import KeyValues
from .unembed import unembed_bwd, unembed_fwd


class LlamaConfig(NamedTuple):
    """Everything that fixes the function a model computes, but its parameters."""

    width: int  # D
    hidden: int  # F, of the SwiGLU layer
    layers: int
    heads: int  # H, of queries
    groups: int  # G, heads of keys and values
    head: int  # K, width of a head
    vocabulary: int  # V
    context: int  # tokens it was trained to read at once; more are computed all the same
    eps: float = 1e-5  # of the normalisations
    base: float = 10000.0  # of the rotary positions
    pairs: str = "halves"  # which channels these rotate: "halves" or "interleaved"
    tied: bool = True  # the embedding is the unembedding
    factors: tuple | None = None  # K/2 numbers that slow the rotary positions down, one for a pair


class LlamaLayer(NamedTuple):
    """Parameters of one layer, and (same type) their gradients."""

    gain1: Array  # (D,)
    W_q: Array  # (D,HK)
    W_k: Array  # (D,GK)
    W_v: Array  # (D,GK)
    W_o: Array  # (HK,D)
    gain2: Array  # (D,)
    W_gate: Array  # (D,F)
    W_up: Array  # (D,F)
    W_down: Array  # (F,D)


class LlamaParameters(NamedTuple):
    """All parameters of a model, and (same type) their gradients."""

    embedding: Array  # (V,D)
    trunk: tuple  # of LlamaLayer
    gain: Array  # (D,) final normalisation
    unembedding: Array | None  # (V,D); None = tied, the embedding serves

    @property
    def table(self) -> Array:
        """The unembedding, (V,D), whichever array it is."""
        return self.embedding if self.unembedding is None else self.unembedding


class LlamaLayerResidual(NamedTuple):
    norm1: RmsNormResidual
    w_q: DenseResidual
    w_k: DenseResidual
    w_v: DenseResidual
    rotary: RotaryResidual  # of queries and keys
    attention: GroupedAttentionResidual
    w_o: DenseResidual
    norm2: RmsNormResidual
    w_gate: DenseResidual
    w_up: DenseResidual
    swiglu: SwigluResidual
    w_down: DenseResidual


class FeaturesResidual(NamedTuple):
    embed: EmbeddingResidual
    stack: tuple  # of LlamaLayerResidual
    norm: RmsNormResidual


class LlamaResidual(NamedTuple):
    features: FeaturesResidual
    table: DenseResidual
    tied: bool


def check_config(config: LlamaConfig) -> None:
    """Raise ValueError naming the first setting that cannot be."""
    for name in ("width", "hidden", "layers", "heads", "groups", "head", "vocabulary", "context"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")
    for name in ("eps", "base"):
        if not getattr(config, name) > 0:
            raise ValueError(f"{name} must be above 0, got {getattr(config, name)}")
    if config.heads % config.groups:
        raise ValueError(
            f"the query heads must be a multiple of the key-value heads, got {config.heads} "
            f"and {config.groups}"
        )
    if config.head % 2:
        raise ValueError(f"rotary positions need an even head width, got {config.head}")
    if config.pairs not in PAIRS:
        raise ValueError(f"pairs must be {' or '.join(PAIRS)}, got {config.pairs!r}")
    if config.factors is not None and (
        len(config.factors) != config.head // 2 or not all(f > 0 for f in config.factors)
    ):
        raise ValueError(
            f"factors must be {config.head // 2} numbers above 0, one for each pair of channels, "
            f"got {config.factors}"
        )


def parameter_axes(config: LlamaConfig) -> LlamaParameters:
    """Which sizes the axes of each parameter have, as words: "D,HK" for W_q."""
    layer = LlamaLayer("D", "D,HK", "D,GK", "D,GK", "HK,D", "D", "D,F", "D,F", "F,D")
    table = None if config.tied else "V,D"
    return LlamaParameters("V,D", (layer,) * config.layers, "D", table)


def axis_sizes(config: LlamaConfig) -> dict[str, int]:
    """What the words of ``parameter_axes`` stand for."""
    queries, keys = config.heads * config.head, config.groups * config.head
    named = {"V": config.vocabulary, "D": config.width, "F": config.hidden}
    return {**named, "HK": queries, "GK": keys}


def check_parameters(p: LlamaParameters, config: LlamaConfig) -> None:
    """Raise ValueError or TypeError unless every parameter has the shape that ``config`` says."""
    check_config(config)
    if len(p.trunk) != config.layers:
        raise ValueError(f"the model must have {config.layers} layers, got {len(p.trunk)}")
    check_shapes(p, parameter_axes(config), axis_sizes(config))
    namespace(*leaves(p))


def layer_fwd(
    x: Array, p: LlamaLayer, config: LlamaConfig, cache: KeyValues | None = None
) -> tuple[tuple[Array, KeyValues], LlamaLayerResidual]:
    """(B,T,D)->(B,T,D),KeyValues   one layer   (T.5)"""
    xp = namespace(x, *p)
    start = 0 if cache is None else cache.k.shape[2]
    y, norm1 = rmsnorm_fwd(x, p.gain1, config.eps)  # (B,T,D)
    q, w_q = dense_fwd(y, p.W_q, None)  # (B,T,HK)
    k, w_k = dense_fwd(y, p.W_k, None)  # (B,T,GK)
    v, w_v = dense_fwd(y, p.W_v, None)  # (B,T,GK)
    turn = (start, config.base, config.pairs, config.factors)
    q, rotary = rotary_fwd(split_heads(q, config.heads), *turn)  # (B,H,T,K)
    k = rotated(split_heads(k, config.groups), rotary)  # (B,G,T,K)
    v = split_heads(v, config.groups)  # (B,G,T,K)
    if cache is not None:
        k, v = xp.concat([cache.k, k], axis=2), xp.concat([cache.v, v], axis=2)  # (B,G,P+T,K)
    y, attention = grouped_attention_fwd(q, k, v)  # (B,H,T,K)
    y, w_o = dense_fwd(merge_heads(y), p.W_o, None)  # (B,T,D)
    x = x + y
    y, norm2 = rmsnorm_fwd(x, p.gain2, config.eps)  # (B,T,D)
    gate, w_gate = dense_fwd(y, p.W_gate, None)  # (B,T,F)
    up, w_up = dense_fwd(y, p.W_up, None)  # (B,T,F)
    y, swiglu = swiglu_fwd(gate, up)  # (B,T,F)
    y, w_down = dense_fwd(y, p.W_down, None)  # (B,T,D)
    res = LlamaLayerResidual(
        norm1, w_q, w_k, w_v, rotary, attention, w_o,
        norm2, w_gate, w_up, swiglu, w_down,
    )  # fmt: skip
    return (x + y, KeyValues(k, v)), res


def layer_bwd(dx: Array, res: LlamaLayerResidual) -> tuple[Array, LlamaLayer]:
    """Adjoint of layer_fwd with respect to x and the parameters; the cache is constant.   (T.6)"""
    length = dx.shape[1]
    # forward: x = x + swiglu(RMS(x) W_gate, RMS(x) W_up) W_down
    dy, dW_down, _ = dense_bwd(dx, res.w_down)  # (B,T,F)
    dgate, dup = swiglu_bwd(dy, res.swiglu)  # (B,T,F)
    dy, dW_gate, _ = dense_bwd(dgate, res.w_gate)  # (B,T,D)
    dy_up, dW_up, _ = dense_bwd(dup, res.w_up)  # (B,T,D)
    dy, dgain2 = rmsnorm_bwd(dy + dy_up, res.norm2)  # (B,T,D)
    dx = dx + dy
    # forward: x = x + merge(attention(q, k, v)) W_o
    dy, dW_o, _ = dense_bwd(dx, res.w_o)  # (B,T,HK)
    heads = res.w_q.w.shape[1] // res.attention.members[0].q.shape[-1]
    dq, dk, dv = grouped_attention_bwd(
        split_heads(dy, heads), res.attention
    )  # (B,H,T,K), 2 (B,G,P+T,K)
    cached = dk.shape[2] - length
    # forward: q, k = rotary(q), rotary(k)
    dq = rotary_bwd(dq, res.rotary)  # (B,H,T,K)
    dk = rotary_bwd(dk[:, :, cached:, :], res.rotary)  # (B,G,T,K)
    # forward: q, k, v = RMS(x) W_q, RMS(x) W_k, RMS(x) W_v
    dy, dW_q, _ = dense_bwd(merge_heads(dq), res.w_q)  # (B,T,D)
    dy_k, dW_k, _ = dense_bwd(merge_heads(dk), res.w_k)  # (B,T,D)
    dy_v, dW_v, _ = dense_bwd(merge_heads(dv[:, :, cached:, :]), res.w_v)  # (B,T,D)
    dy, dgain1 = rmsnorm_bwd(dy + dy_k + dy_v, res.norm1)  # (B,T,D)
    grads = LlamaLayer(dgain1, dW_q, dW_k, dW_v, dW_o, dgain2, dW_gate, dW_up, dW_down)
    return dx + dy, grads


def features_fwd(
    p: LlamaParameters, tokens: Array, config: LlamaConfig, caches: tuple | None = None
) -> tuple[tuple[Array, tuple[KeyValues, ...]], FeaturesResidual]:
    """(B,T)->(B,T,D),(KeyValues,...)   embedding, stack, final normalisation   (M.6)

    Raises ValueError or TypeError if a parameter has another shape than ``config`` says or a token
    is out of range.
    """
    check_parameters(p, config)
    check_labels(tokens, config.vocabulary, "tokens")
    x, embed = embedding_fwd(p.embedding, tokens)  # (B,T,D)
    (x, caches), stack = stack_fwd(layer_fwd, x, p.trunk, (config,), caches)  # (B,T,D)
    x, norm = rmsnorm_fwd(x, p.gain, config.eps)  # (B,T,D)
    return (x, caches), FeaturesResidual(embed, stack, norm)


def features_bwd(dx: Array, res: FeaturesResidual) -> LlamaParameters:
    """Adjoint of features_fwd: gradients of all that it uses, None for an unembedding.   (M.7)"""
    # forward: x = RMS(stack(embedding(tokens)))
    dx, dgain = rmsnorm_bwd(dx, res.norm)  # (B,T,D)
    dx, dtrunk = stack_bwd(layer_bwd, dx, res.stack)  # (B,T,D)
    return LlamaParameters(embedding_bwd(dx, res.embed), dtrunk, dgain, None)


def features(
    p: LlamaParameters, tokens: Array, config: LlamaConfig, caches: tuple | None = None
) -> tuple[Array, tuple[KeyValues, ...]]:
    """``features_fwd`` without a residual: the memory of one layer in place of all of them.

    Raises as ``features_fwd``.   (M.6)
    """
    x, caches = features_below_norm(p, tokens, config, caches)  # (B,T,D)
    return rmsnorm_fwd(x, p.gain, config.eps)[0], caches


def features_below_norm(
    p: LlamaParameters, tokens: Array, config: LlamaConfig, caches: tuple | None = None
) -> tuple[Array, tuple[KeyValues, ...]]:
    """(B,T)->(B,T,D),(KeyValues,...)   ``features`` before the final normalisation: what a layer on
    top of the model is given. Raises as ``features_fwd``.
    """
    check_parameters(p, config)
    check_labels(tokens, config.vocabulary, "tokens")
    x, _ = embedding_fwd(p.embedding, tokens)  # (B,T,D)
    return stack(layer_fwd, x, p.trunk, (config,), caches)  # (B,T,D)


def model_fwd(
    p: LlamaParameters, tokens: Array, config: LlamaConfig, caches: tuple | None = None
) -> tuple[tuple[Array, tuple[KeyValues, ...]], LlamaResidual]:
    """(B,T)->(B,T,V),(KeyValues,...)   logits of the next tokens   (M.6), (M.8)

    Raises as ``features_fwd``.
    """
    (x, caches), res = features_fwd(p, tokens, config, caches)  # (B,T,D)
    logits, table = unembed_fwd(x, p.table)  # (B,T,V)
    return (logits, caches), LlamaResidual(res, table, p.unembedding is None)


def model_bwd(dlogits: Array, res: LlamaResidual) -> LlamaParameters:
    """Adjoint of model_fwd: a tied table has one gradient, the sum of both of its uses.   (M.10)"""
    # forward: logits = x table^T
    dx, dtable = unembed_bwd(dlogits, res.table)  # (B,T,D), (V,D)
    # forward: x = features(tokens)
    grads = features_bwd(dx, res.features)
    if res.tied:
        return grads._replace(embedding=grads.embedding + dtable)
    return grads._replace(unembedding=dtable)
