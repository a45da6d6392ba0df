"""The language model: embed -> stack -> final LayerNorm -> block -> loss; its parameters and its
configuration.

A ``fast`` model sends the features through the fast weight block. A ``plain`` model sends them
through the same block with every step size zero, which is the slow block: the number of parameters
is equal, so that comparing the two measures the fast weights alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from ..backend import Array, device, host, is_host, library, namespace
from ..checks import (
    BLOCK_AXES,
    check_labels,
    check_like,
    check_settings,
    check_shapes,
    check_streamable,
    check_weights,
)
from ..fwl import FastSettings, fast_block_bwd, fast_block_fwd, fast_block_score, normalizer
from ..ops.attention import FEW
from ..ops.cross_entropy import cross_entropy_bwd, cross_entropy_fwd
from ..ops.embedding import EmbeddingResidual, embedding_bwd, embedding_fwd
from ..ops.layernorm import LayerNormResidual, layernorm_bwd, layernorm_fwd
from ..slow_block import (
    FastParameters,
    SlowParameters,
    slow_block_bwd,
    slow_block_fwd,
)
from ..tree import add, leaves
from .shards import joined, of_each, part_of, shards
from .stack import stack, stack_bwd, stack_fwd
from .transformer import EPS, LAYER_AXES, LayerParameters, layer_bwd, layer_fwd

DIALECTS = {"tf": 0.0, "jax": 1e-6}  # name -> LayerNorm epsilon of the published program


# axes of the parameters of a transformer layer, in the order of LayerParameters
TRUNK_AXES = ("D", "D", "D,3D", "3D", "D,D", "D", "D", "D", "D,F", "F", "F,D", "D")


class Config(NamedTuple):
    """Everything that fixes the function a model computes, but its parameters."""

    width: int = 128  # D
    layers: int = 3
    heads: int = 4  # H
    vocabulary: int = 256  # V: bytes
    attention_window: int | None = None  # keys a token may look back on; None = the text window
    fast: bool = True
    # "tf": six step sizes, no epsilon; "jax": no fast dense biases, one step size for gain and bias
    dialect: str = "tf"
    normalizer: str = "constant"
    constant: float = 1.0
    chunk: int | None = 64
    first_order: bool = False


class Parameters(NamedTuple):
    """All parameters of the model, and (same type) their gradients."""

    embedding: Array  # (V,D)
    trunk: tuple  # of LayerParameters
    gain: Array  # (D,) final LayerNorm
    bias: Array  # (D,)
    block: SlowParameters
    eta: FastParameters  # six step sizes, scalars
    decay: Array  # () lambda, the rate at which updates fade


class ModelResidual(NamedTuple):
    embed: EmbeddingResidual
    stack: tuple
    norm: LayerNormResidual
    block: Any  # FastBlockResidual or SlowBlockResidual
    loss: Any  # CrossEntropyResidual of a fast model; that of a plain one is in its block
    config: Config


def check_config(config: Config) -> None:
    """Raise ValueError naming the first setting that cannot be."""
    for name in ("width", "layers", "heads", "vocabulary"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")
    if config.width % config.heads:
        raise ValueError(
            f"the width must be a multiple of the number of heads, got width {config.width} "
            f"and {config.heads} heads"
        )
    if (config.width // config.heads) % 2:
        raise ValueError(
            f"rotary positions need an even head width, got {config.width} / {config.heads} = "
            f"{config.width // config.heads}: change the width or the number of heads"
        )
    if config.attention_window is not None and config.attention_window < 1:
        raise ValueError(
            "the attention window must be at least 1 (or None for all), "
            f"got {config.attention_window}"
        )
    if config.dialect not in DIALECTS:
        raise ValueError(
            f"the dialect must be one of {', '.join(DIALECTS)}, got {config.dialect!r}"
        )
    check_settings(fast_settings(config))


def check_model(p: Parameters, config: Config) -> None:
    """Raise ValueError or TypeError unless every parameter has the shape that ``config`` says."""
    if len(p.trunk) != config.layers:
        raise ValueError(f"the model must have {config.layers} layers, got {len(p.trunk)}")
    trunk = (LayerParameters(*LAYER_AXES),) * config.layers
    block, eta = SlowParameters(*BLOCK_AXES), FastParameters(*[""] * len(FastParameters._fields))
    d, v = config.width, config.vocabulary
    axes = Parameters("V,D", trunk, "D", "D", block, eta, "")
    check_shapes(p, axes, {"I": d, "D": d, "3D": 3 * d, "F": 4 * d, "V": v})
    namespace(*leaves(p))


def fast_settings(config: Config) -> FastSettings:
    """The block's share of the configuration."""
    eps = DIALECTS[config.dialect]
    return FastSettings(config.normalizer, config.constant, eps, config.chunk, config.first_order)


def initialize(
    config: Config,
    seed: int = 0,
    dtype: str = "float32",
    step_size: float = 0.01,
    decay: float = 0.005,
) -> Parameters:
    """Random host parameters: normal with deviation 0.02, output projections scaled by 1 / sqrt(2
    layers), gains 1, biases 0.

    The step sizes start at 0.01. That is the number of both published programs but not their step:
    they divide by the weights of the batch, the default N = 1 does not, so a token steps as many
    times further here as a batch has weighted tokens. ``normalizer="batch"``, or ``constant`` that
    number, takes the published step (docs/questions.md has the choice). A plain model has the same
    parameters; its step sizes are zero.
    """
    check_config(config)
    rng = host.random.default_rng(seed)

    def normal(*shape: int, scale: float = 0.02) -> Array:
        return (rng.standard_normal(shape) * scale).astype(dtype)

    def constant(value: float, *shape: int) -> Array:
        return host.full(shape, value, dtype=dtype)

    return _assemble(config, normal, constant, step_size, decay)


def parameter_shapes(config: Config) -> Parameters:
    """Arrays of the shapes that ``initialize`` gives, each a view of one zero: nothing is drawn."""
    check_config(config)
    zero = host.zeros((), dtype="float32")

    def normal(*shape: int, scale: float = 0.0) -> Array:
        return host.broadcast_to(zero, shape)

    def constant(value: float, *shape: int) -> Array:
        return host.broadcast_to(zero, shape)

    return _assemble(config, normal, constant, 0.0, 0.0)


def _assemble(
    config: Config, normal: Callable, constant: Callable, step_size: float, decay: float
) -> Parameters:
    """The tree of parameters, its arrays made by ``normal`` and ``constant``, in a fixed order."""
    d, f, v = config.width, 4 * config.width, config.vocabulary
    out = 0.02 / (2 * config.layers) ** 0.5
    trunk = tuple(
        LayerParameters(
            constant(1, d), constant(0, d), normal(d, 3 * d), constant(0, 3 * d),
            normal(d, d, scale=out), constant(0, d),
            constant(1, d), constant(0, d), normal(d, f), constant(0, f),
            normal(f, d, scale=out), constant(0, d),
        )
        for _ in range(config.layers)
    )  # fmt: skip
    block = SlowParameters(
        normal(d, f),
        constant(0, f),
        normal(f, d),
        constant(0, d),
        constant(1, d),
        constant(0, d),
        normal(d, v),
        constant(0, v),
    )
    embedding = normal(v, d)
    start = step_size if config.fast else 0.0
    eta = FastParameters(*(constant(start) for _ in FastParameters._fields))
    return Parameters(
        embedding,
        trunk,
        constant(1, d),
        constant(0, d),
        block,
        eta,
        constant(decay if config.fast else 0.0),
    )


def effective_step_sizes(eta: FastParameters, dialect: str) -> FastParameters:
    """The step sizes a dialect really uses: jax has no fast dense biases and lets the gain's step
    size serve the bias too.
    """
    if dialect == "tf":
        return eta
    return eta._replace(b1=0 * eta.b1, b2=0 * eta.b2, bias=eta.gain)


def effective_step_sizes_bwd(g_eta: FastParameters, dialect: str) -> FastParameters:
    """Adjoint of effective_step_sizes."""
    if dialect == "tf":
        return g_eta
    return g_eta._replace(
        b1=0 * g_eta.b1, b2=0 * g_eta.b2, gain=g_eta.gain + g_eta.bias, bias=0 * g_eta.bias
    )


def features_fwd(
    p: Parameters, tokens: Array, config: Config, caches: tuple | None = None, few: int = 0
) -> tuple[tuple[Array, tuple], tuple]:
    """(B,T)->(B,T,D),(KeyValues,...)   embedding, stack, final LayerNorm   (M.1)

    ``few`` as in ``attention_fwd``.
    """
    check_labels(tokens, config.vocabulary, "tokens")
    x, embed = embedding_fwd(p.embedding, tokens)  # (B,T,D)
    layer = partial(layer_fwd, few=few)
    (x, caches), stack = stack_fwd(layer, x, p.trunk, _layer_settings(config), caches)
    x, norm = layernorm_fwd(x, p.gain, p.bias, EPS)  # (B,T,D)
    return (x, caches), (embed, stack, norm)


def features_bwd(
    dx: Array, embed: EmbeddingResidual, stack: tuple, norm: LayerNormResidual
) -> tuple:
    """Adjoint of features_fwd: gradients of embedding, trunk, gain, bias.   (M.2)"""
    dx, dgain, dbias = layernorm_bwd(dx, norm)  # (B,T,D)
    dx, dtrunk = stack_bwd(layer_bwd, dx, stack)  # (B,T,D)
    return embedding_bwd(dx, embed), dtrunk, dgain, dbias


def features(
    p: Parameters, tokens: Array, config: Config, caches: tuple | None = None
) -> tuple[Array, tuple]:
    """(B,T)->(B,T,D),(KeyValues,...)   features_fwd for reading: no residual is kept   (M.1)"""
    check_labels(tokens, config.vocabulary, "tokens")
    x, _ = embedding_fwd(p.embedding, tokens)  # (B,T,D)
    x, caches = stack(layer_fwd, x, p.trunk, _layer_settings(config), caches)
    x, _ = layernorm_fwd(x, p.gain, p.bias, EPS)  # (B,T,D)
    return x, caches


class Output(NamedTuple):
    """What a forward pass of the model yields."""

    nll: Array  # (B,T) cross-entropy of each next token, in nats
    logits: Array  # (B,T,V)
    state: FastParameters | None  # accumulated gradients after the last token (fast models)
    caches: tuple  # keys and values per layer, for the next segment


def model_fwd(
    p: Parameters,
    tokens: Array,
    labels: Array,
    weights: Array | None,
    config: Config,
    state: FastParameters | None = None,
    caches: tuple | None = None,
) -> tuple[Output, ModelResidual]:
    """(B,T),(B,T),(B,T)->Output   tokens, next tokens, weights of the slow loss (None = all
    1)   (M.3)

    Raises ValueError or TypeError if a parameter has another shape than ``config`` says, tokens or
    labels are out of range, weights are negative, or a state cannot be carried.
    """
    weights = _checked(p, tokens, labels, weights, config)
    return _model_fwd(p, tokens, labels, weights, config, state, caches)


def _model_fwd(
    p: Parameters,
    tokens: Array,
    labels: Array,
    weights: Array,
    config: Config,
    state: FastParameters | None = None,
    caches: tuple | None = None,
    carry: bool = True,
    few: int = 0,
) -> tuple[Output, ModelResidual]:
    """model_fwd of what was checked, once for all parts of a batch"""
    (x, caches), trunk = features_fwd(p, tokens, config, caches, few)
    block: Any  # the residual of either block
    if config.fast:
        eta = effective_step_sizes(p.eta, config.dialect)
        settings = fast_settings(config)._replace(carry=carry)
        (logits, _, state), block = fast_block_fwd(
            x, labels, weights, p.block, eta, p.decay, settings, state
        )
        nll, loss = cross_entropy_fwd(logits, labels)  # (B,T)
    else:
        (nll, logits), block = slow_block_fwd(x, labels, p.block, DIALECTS[config.dialect])
        loss = None
    return Output(nll, logits, state, caches), ModelResidual(*trunk, block, loss, config)


def model_bwd(dnll: Array, res: ModelResidual) -> Parameters:
    """Adjoint of model_fwd with respect to the parameters, for a loss that weighs nll by ``dnll``
    (B,T).   (M.4)
    """
    if res.config.fast:
        g_logits = cross_entropy_bwd(dnll, res.loss)  # (B,T,V)
        g_x, g_block, g_eta, g_decay, _ = fast_block_bwd(g_logits, None, res.block)
        g_eta = effective_step_sizes_bwd(g_eta, res.config.dialect)
    else:
        g_x, g_block = slow_block_bwd(dnll, res.block)
        zero = namespace(dnll).zeros((), dtype=dnll.dtype, device=device(dnll))
        g_eta, g_decay = FastParameters(*(zero for _ in FastParameters._fields)), zero
    return Parameters(*features_bwd(g_x, res.embed, res.stack, res.norm), g_block, g_eta, g_decay)


def model_score(
    p: Parameters,
    tokens: Array,
    labels: Array,
    weights: Array | None,
    config: Config,
    state: FastParameters | None = None,
    caches: tuple | None = None,
    carry: bool = True,
) -> Output:
    """(B,T),(B,T),(B,T)->Output   model_fwd for reading: no residual is kept   (M.3)

    A few sequences at a time on the host (``lm/shards.py``). Without ``carry`` nothing is read
    after this text: there is no state. Raises as ``model_fwd``.
    """
    weights = _checked(p, tokens, labels, weights, config)
    if state is not None:
        check_streamable(fast_settings(config))
    settings = fast_settings(_with_whole_normalizer(config, weights))._replace(carry=carry)

    def score(part: slice) -> Output:
        text, target, w = tokens[part, :], labels[part, :], weights[part, :]
        x, kept = features(p, text, config, part_of(caches, part))  # (S,T,D)
        held = part_of(state, part)
        return Output(*block_score(p, x, target, w, config, settings, held), kept)

    return joined(list(of_each(score, _parts(tokens, config))))


def block_score(
    p: Parameters,
    x: Array,
    labels: Array,
    weights: Array,
    config: Config,
    settings: FastSettings,
    state: FastParameters | None = None,
) -> tuple[Array, Array, FastParameters | None]:
    """(B,T,D),(B,T),(B,T)->(B,T),(B,T,V),FastParameters   losses, logits and state of the model's
    block, slow or fast, on features that are there: for reading, no residual is kept   (M.3)
    """
    if not config.fast:
        (nll, logits), _ = slow_block_fwd(x, labels, p.block, DIALECTS[config.dialect])
        return nll, logits, None
    eta = effective_step_sizes(p.eta, config.dialect)
    logits, after = fast_block_score(x, labels, weights, p.block, eta, p.decay, settings, state)
    return cross_entropy_fwd(logits, labels)[0], logits, after  # (B,T)


def loss_and_gradient(
    p: Parameters,
    tokens: Array,
    labels: Array,
    weights: Array | None,
    config: Config,
    total: float | None = None,
) -> tuple[Array, Parameters]:
    """Mean next-token loss over weighted tokens in nats, and its gradient   (M.5)

    ``total`` is the sum of the weights, and has to be given if these are some sequences of a larger
    batch: that of all of it. The losses and gradients of its parts then sum up to those of the
    whole, the normalizer "batch" included.

    A few sequences at a time on the host (``lm/shards.py``). Raises as ``model_fwd``, and
    ValueError for a ``total`` that is not above 0.
    """
    xp = namespace(p.embedding)
    weights = _checked(p, tokens, labels, weights, config)
    config = _with_whole_normalizer(config, weights, total)
    whole = xp.sum(weights) if total is None else xp.full_like(xp.sum(weights), total)  # ()
    share = weights / xp.where(whole > 0, whole, xp.ones_like(whole))  # (B,T)

    def one(part: slice) -> tuple[Array, Parameters]:
        text, target, w = tokens[part, :], labels[part, :], weights[part, :]
        output, res = _model_fwd(p, text, target, w, config, carry=False, few=FEW)
        return xp.sum(share[part, :] * output.nll), model_bwd(share[part, :], res)

    found = of_each(one, _parts(tokens, config))
    loss, gradient = next(found)
    for part_loss, part_gradient in found:
        loss, gradient = loss + part_loss, add(gradient, part_gradient)
    return loss, gradient


def _checked(
    p: Parameters, tokens: Array, labels: Array, weights: Array | None, config: Config
) -> Array:
    """The weights, if everything fits; else as ``model_fwd`` raises."""
    check_model(p, config)
    xp = namespace(p.embedding, weights)
    library(p.embedding, tokens, labels)
    if weights is None:
        weights = xp.ones(labels.shape, dtype=p.embedding.dtype, device=device(p.embedding))
    check_like(labels, tokens.shape, "labels", "(B,T)")
    check_like(weights, tokens.shape, "weights", "(B,T)")
    check_weights(weights)
    check_labels(tokens, config.vocabulary, "tokens")
    check_labels(labels, config.vocabulary)
    return weights


def _layer_settings(config: Config) -> tuple:
    """What all layers of the trunk share."""
    return config.heads, config.attention_window


def _parts(tokens: Array, config: Config) -> list[slice]:
    return shards(tokens.shape[0], tokens.shape[1] * config.width, tokens)


def _with_whole_normalizer(config: Config, weights: Array, total: float | None = None) -> Config:
    """The configuration for a part of a batch: N is that of the whole batch."""
    if total is not None and not total > 0:
        raise ValueError(f"the weights of a whole batch must have a sum above 0, got {total}")
    if config.normalizer == "batch" and total is not None:
        return config._replace(normalizer="constant", constant=total)
    if config.normalizer != "batch" or not is_host(weights):  # a device takes it whole anyway
        return config
    n = float(normalizer(weights, fast_settings(config)))
    return config._replace(normalizer="constant", constant=n)
