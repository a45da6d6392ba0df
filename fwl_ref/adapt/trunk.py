"""Features of a document from a frozen model: the residual stream before the final normalisation.

A document is read in windows, and the attention of each begins anew. Its last window is padded at
the end, which nothing before it sees.
"""

from __future__ import annotations

from typing import NamedTuple

from ..backend import Array, Tree, host, like, namespace
from ..lm import llama
from ..norm import norm_bwd, norm_fwd
from ..ops.blocked_head import blocked_head_fwd, blocked_head_nll
from ..ops.common import chunk_slices


class Model(NamedTuple):
    """A frozen model of the llama family, where the arithmetic happens."""

    config: llama.LlamaConfig
    parameters: Tree  # LlamaParameters, on the device
    U: Array  # (D,V) the unembedding
    bias: Array  # (D,) zeros: the final RMSNorm has none
    at_once: int  # tokens that go through the trunk together
    block: int  # tokens that have logits at the same time


class Reading(NamedTuple):
    """A document at one window, as the frozen model has it."""

    x: Array  # (T,D) before the final normalisation
    labels: Array  # (T,) int64
    n: Array  # (T,D) final features
    nll: Array  # (T,) losses of the model as it is
    dz: Array  # (T,D) gradient of each token's loss with respect to x


def model_on(parameters: Tree, config: llama.LlamaConfig, at_once: int, block: int) -> Model:
    """A model whose parameters are on their device already.

    Raises ValueError or TypeError if a parameter has another shape than ``config`` says.
    """
    llama.check_parameters(parameters, config)
    xp = namespace(parameters.gain)
    U = xp.matrix_transpose(parameters.table)  # (D,V)
    return Model(config, parameters, U, xp.zeros_like(parameters.gain), at_once, block)


def features(model: Model, ids: Array, window: int, layers: int | None = None) -> Array:
    """(n)->(n-1,D)   features of all tokens but the last, host ids; after ``layers`` layers, None =
    all.
    """
    inputs = ids[:-1]
    count = -(-len(inputs) // window)
    padded = host.zeros(count * window, dtype=host.int64)
    padded[: len(inputs)] = inputs
    tokens = like(padded.reshape(count, window), model.U)  # (N,window)
    xp, found = namespace(model.U), []
    below = model.parameters._replace(trunk=model.parameters.trunk[:layers])
    config = model.config._replace(layers=len(below.trunk))
    for rows in chunk_slices(count, max(1, model.at_once // window)):
        x, _ = llama.features_below_norm(below, tokens[rows, :], config)  # (B,window,D)
        found.append(xp.reshape(x, (-1, x.shape[-1])))
    return xp.concat(found, axis=0)[: len(inputs), :]


def reading(model: Model, x: Array, ids: Array) -> Reading:
    """(T,D),(T+1)->Reading   the frozen model's end: norm, losses, and gradients of these"""
    labels = like(ids[1:], x)  # (T,)
    gain = model.parameters.gain
    n, norm = norm_fwd(x, gain, model.bias, model.config.eps, "rms")  # (T,D)
    nll, head = blocked_head_fwd(n, model.U, None, labels, model.block, frozen=True)  # (T,)
    # forward: nll = cross-entropy of norm(x) U
    dz, _, _ = norm_bwd(head.slope, norm)  # (T,D)
    return Reading(x, labels, n, nll, dz)


def plain_losses(model: Model, x: Array, labels: Array) -> Array:
    """(T,D),(T)->(T)   the model's end without gradients: norm, unembedding, losses"""
    gain, eps = model.parameters.gain, model.config.eps
    n, _ = norm_fwd(x, gain, model.bias, eps, "rms")  # (T,D)
    return blocked_head_nll(n, model.U, None, labels, model.block)
