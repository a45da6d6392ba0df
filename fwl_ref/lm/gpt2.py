"""GPT-2 (Radford et al. 2019), forward and backward by hand.

    x = embedding[token] + positions[t]
    x = x + merge(attention(split(LN(x) W_qkv + b_qkv))) W_o + b_o
    x = x + gelu(LN(x) W_in + b_in) W_out + b_out

It is the trunk of ``transformer.py`` with positions that are learned in place of rotary ones, and a
head width of D / H. The table of positions has an end, and so has what the model can read. A cache
of keys and values works as there: gradients stop at it.
"""

from __future__ import annotations

from typing import NamedTuple

from ..backend import Array, device, namespace
from ..checks import check_labels, check_shapes
from ..ops.attention import AttentionResidual, attention_bwd, attention_fwd
from ..ops.dense import DenseResidual, dense_bwd, dense_fwd
from ..ops.embedding import EmbeddingResidual, embedding_bwd, embedding_fwd
from ..ops.gelu import GeluResidual, gelu_bwd, gelu_fwd
from ..ops.layernorm import LayerNormResidual, layernorm_bwd, layernorm_fwd
from ..tree import leaves
from .heads import merge_heads, split_heads, split_qkv
from .stack import stack, stack_bwd, stack_fwd
from .transformer import LAYER_AXES, KeyValues, LayerParameters
from .unembed import unembed_bwd, unembed_fwd


class Gpt2Config(NamedTuple):
    """Everything that fixes the function a model computes, but its parameters."""

    width: int  # D
    hidden: int  # F, of the GELU layer
    layers: int
    heads: int  # H
    vocabulary: int  # V
    context: int  # C, positions there are: no more tokens can be read
    eps: float = 1e-5  # of the normalisations
    tied: bool = True  # the embedding is the unembedding


class Gpt2Parameters(NamedTuple):
    """All parameters of a model, and (same type) their gradients."""

    embedding: Array  # (V,D)
    positions: Array  # (C,D)
    trunk: tuple  # of LayerParameters
    gain: Array  # (D,) final normalisation
    bias: Array  # (D,)
    unembedding: Array | None  # (V,D); None = tied, the embedding serves

    @property
    def table(self) -> Array:
        """The unembedding, (V,D), whichever array it is."""
        return self.embedding if self.unembedding is None else self.unembedding


class Gpt2LayerResidual(NamedTuple):
    norm1: LayerNormResidual
    w_qkv: DenseResidual
    attention: AttentionResidual
    w_o: DenseResidual
    norm2: LayerNormResidual
    w_in: DenseResidual
    gelu: GeluResidual
    w_out: DenseResidual


class FeaturesResidual(NamedTuple):
    embed: EmbeddingResidual
    start: int  # position of the first token
    context: int
    stack: tuple  # of Gpt2LayerResidual
    norm: LayerNormResidual


class Gpt2Residual(NamedTuple):
    features: FeaturesResidual
    table: DenseResidual
    tied: bool


def check_config(config: Gpt2Config) -> None:
    """Raise ValueError naming the first setting that cannot be."""
    for name in ("width", "hidden", "layers", "heads", "vocabulary", "context"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")
    if not config.eps > 0:
        raise ValueError(f"eps must be above 0, got {config.eps}")
    if config.width % config.heads:
        raise ValueError(
            f"the width must be a multiple of the number of heads, got width {config.width} "
            f"and {config.heads} heads"
        )


def parameter_axes(config: Gpt2Config) -> Gpt2Parameters:
    """Which sizes the axes of each parameter have, as words: "D,3D" for W_qkv."""
    layer = LayerParameters(*LAYER_AXES)
    table = None if config.tied else "V,D"
    return Gpt2Parameters("V,D", "C,D", (layer,) * config.layers, "D", "D", table)


def axis_sizes(config: Gpt2Config) -> dict[str, int]:
    """What the words of ``parameter_axes`` stand for."""
    named = {"V": config.vocabulary, "C": config.context, "F": config.hidden}
    return {**named, "D": config.width, "3D": 3 * config.width}


def check_parameters(p: Gpt2Parameters, config: Gpt2Config) -> None:
    """Raise ValueError or TypeError unless every parameter has the shape that ``config`` says."""
    check_config(config)
    if len(p.trunk) != config.layers:
        raise ValueError(f"the model must have {config.layers} layers, got {len(p.trunk)}")
    check_shapes(p, parameter_axes(config), axis_sizes(config))
    namespace(*leaves(p))


def layer_fwd(
    x: Array, p: LayerParameters, config: Gpt2Config, cache: KeyValues | None = None
) -> tuple[tuple[Array, KeyValues], Gpt2LayerResidual]:
    """(B,T,D)->(B,T,D),KeyValues   one layer   (T.7)"""
    xp = namespace(x, *p)
    y, norm1 = layernorm_fwd(x, p.gain1, p.bias1, config.eps)  # (B,T,D)
    y, w_qkv = dense_fwd(y, p.W_qkv, p.b_qkv)  # (B,T,3D)
    q, k, v = split_qkv(y, config.heads)  # (B,H,T,K)
    if cache is not None:
        k, v = xp.concat([cache.k, k], axis=2), xp.concat([cache.v, v], axis=2)  # (B,H,P+T,K)
    y, attention = attention_fwd(q, k, v)  # (B,H,T,K)
    y, w_o = dense_fwd(merge_heads(y), p.W_o, p.b_o)  # (B,T,D)
    x = x + y
    y, norm2 = layernorm_fwd(x, p.gain2, p.bias2, config.eps)  # (B,T,D)
    y, w_in = dense_fwd(y, p.W_in, p.b_in)  # (B,T,F)
    y, gelu = gelu_fwd(y)  # (B,T,F)
    y, w_out = dense_fwd(y, p.W_out, p.b_out)  # (B,T,D)
    res = Gpt2LayerResidual(norm1, w_qkv, attention, w_o, norm2, w_in, gelu, w_out)
    return (x + y, KeyValues(k, v)), res


def layer_bwd(dx: Array, res: Gpt2LayerResidual) -> tuple[Array, LayerParameters]:
    """Adjoint of layer_fwd with respect to x and the parameters; the cache is constant.   (T.8)"""
    xp = namespace(dx)
    # forward: x = x + gelu(LN(x) W_in + b_in) W_out + b_out
    dy, dW_out, db_out = dense_bwd(dx, res.w_out)  # (B,T,F)
    dy = gelu_bwd(dy, res.gelu)  # (B,T,F)
    dy, dW_in, db_in = dense_bwd(dy, res.w_in)  # (B,T,D)
    dy, dgain2, dbias2 = layernorm_bwd(dy, res.norm2)  # (B,T,D)
    dx = dx + dy
    # forward: x = x + merge(attention(q, k, v)) W_o + b_o
    dy, dW_o, db_o = dense_bwd(dx, res.w_o)  # (B,T,D)
    heads = res.attention.q.shape[1]
    dq, dk, dv = attention_bwd(split_heads(dy, heads), res.attention)  # (B,H,T,K), 2 (B,H,P+T,K)
    cached = dk.shape[2] - dx.shape[1]
    # forward: q, k, v = split(LN(x) W_qkv + b_qkv)
    parts = (dq, dk[:, :, cached:, :], dv[:, :, cached:, :])  # (B,H,T,K) three times
    dy = xp.concat([merge_heads(part) for part in parts], axis=-1)  # (B,T,3D)
    dy, dW_qkv, db_qkv = dense_bwd(dy, res.w_qkv)  # (B,T,D)
    dy, dgain1, dbias1 = layernorm_bwd(dy, res.norm1)  # (B,T,D)
    grads = LayerParameters(
        dgain1, dbias1, dW_qkv, db_qkv, dW_o, db_o,
        dgain2, dbias2, dW_in, db_in, dW_out, db_out,
    )  # fmt: skip
    return dx + dy, grads


def features_fwd(
    p: Gpt2Parameters, tokens: Array, config: Gpt2Config, caches: tuple | None = None
) -> tuple[tuple[Array, tuple[KeyValues, ...]], FeaturesResidual]:
    """(B,T)->(B,T,D),(KeyValues,...)   embeddings, stack, final LayerNorm   (M.11)

    Raises ValueError or TypeError if a parameter has another shape than ``config`` says, a token is
    out of range, or there are more tokens than positions.
    """
    x, embed, start = _embed(p, tokens, config, caches)  # (B,T,D)
    (x, caches), stack = stack_fwd(layer_fwd, x, p.trunk, (config,), caches)  # (B,T,D)
    x, norm = layernorm_fwd(x, p.gain, p.bias, config.eps)  # (B,T,D)
    return (x, caches), FeaturesResidual(embed, start, config.context, stack, norm)


def features_bwd(dx: Array, res: FeaturesResidual) -> Gpt2Parameters:
    """Adjoint of features_fwd: gradients of all that it uses, None for an unembedding.   (M.12)"""
    xp = namespace(dx)
    # forward: x = LN(stack(x))
    dx, dgain, dbias = layernorm_bwd(dx, res.norm)  # (B,T,D)
    dx, dtrunk = stack_bwd(layer_bwd, dx, res.stack)  # (B,T,D)
    # forward: x = embedding[token] + positions[start + t]
    rows = xp.sum(dx, axis=0)  # (T,D)
    end = res.context - res.start - rows.shape[0]
    before, after = (
        xp.zeros((n, rows.shape[1]), dtype=dx.dtype, device=device(dx)) for n in (res.start, end)
    )
    dpositions = xp.concat([before, rows, after], axis=0)  # (C,D)
    return Gpt2Parameters(embedding_bwd(dx, res.embed), dpositions, dtrunk, dgain, dbias, None)


def features(
    p: Gpt2Parameters, tokens: Array, config: Gpt2Config, caches: tuple | None = None
) -> tuple[Array, tuple[KeyValues, ...]]:
    """``features_fwd`` without a residual: the memory of one layer in place of all of them.

    Raises as ``features_fwd``.   (M.11)
    """
    x, caches = features_below_norm(p, tokens, config, caches)  # (B,T,D)
    return layernorm_fwd(x, p.gain, p.bias, config.eps)[0], caches


def features_below_norm(
    p: Gpt2Parameters, tokens: Array, config: Gpt2Config, caches: tuple | None = None
) -> tuple[Array, tuple[KeyValues, ...]]:
    """(B,T)->(B,T,D),(KeyValues,...)   ``features`` before the final LayerNorm: what a layer on top
    of the model is given. Raises as ``features_fwd``.
    """
    x, _, _ = _embed(p, tokens, config, caches)  # (B,T,D)
    return stack(layer_fwd, x, p.trunk, (config,), caches)  # (B,T,D)


def model_fwd(
    p: Gpt2Parameters, tokens: Array, config: Gpt2Config, caches: tuple | None = None
) -> tuple[tuple[Array, tuple[KeyValues, ...]], Gpt2Residual]:
    """(B,T)->(B,T,V),(KeyValues,...)   logits of the next tokens   (M.11), (M.8)

    Raises as ``features_fwd``.
    """
    (x, caches), res = features_fwd(p, tokens, config, caches)  # (B,T,D)
    logits, table = unembed_fwd(x, p.table)  # (B,T,V)
    return (logits, caches), Gpt2Residual(res, table, p.unembedding is None)


def model_bwd(dlogits: Array, res: Gpt2Residual) -> Gpt2Parameters:
    """Adjoint of model_fwd: a tied table has one gradient, the sum of both of its uses.   (M.10)"""
    # forward: logits = x table^T
    dx, dtable = unembed_bwd(dlogits, res.table)  # (B,T,D), (V,D)
    # forward: x = features(tokens)
    grads = features_bwd(dx, res.features)
    if res.tied:
        return grads._replace(embedding=grads.embedding + dtable)
    return grads._replace(unembedding=dtable)


def _embed(
    p: Gpt2Parameters, tokens: Array, config: Gpt2Config, caches: tuple | None
) -> tuple[Array, EmbeddingResidual, int]:
    """(B,T)->(B,T,D), its residual, and the position of the first token"""
    check_parameters(p, config)
    check_labels(tokens, config.vocabulary, "tokens")
    start = 0 if caches is None else caches[0].k.shape[2]
    end = start + tokens.shape[1]
    if end > config.context:
        raise ValueError(
            f"there are {config.context} learned positions, got {end} tokens ({start} of them in "
            "the cache): read a shorter window"
        )
    x, embed = embedding_fwd(p.embedding, tokens)  # (B,T,D)
    return x + p.positions[start:end, :], embed, start
