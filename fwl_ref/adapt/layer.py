"""The layer on top that is trained: one fast matrix and one fast bias, and what is learned of them.

Learned are the key map, W, b, the two step sizes and the decay, perhaps the unembedding; the norm
is the model's own and stays. Step sizes are learned as factors on those that tuning found, so that
one learning rate fits them.
"""

from __future__ import annotations

from typing import NamedTuple

from ..backend import Array, device, namespace
from ..fast_matrix import (
    FastMatrix,
    MatrixParameters,
    MatrixSettings,
    fast_matrix_bwd,
    fast_matrix_fwd,
    fast_matrix_score,
)
from ..key_map import KeyMap, key_bwd, key_fwd
from ..norm import norm_bwd, norm_fwd
from ..ops.blocked_head import blocked_head_bwd, blocked_head_fwd
from ..ops.dense import dense_bwd, dense_fwd
from .trunk import Model, plain_losses

MOST_DECAY = 0.1  # of what is learned: half of a write is gone after 7 tokens


class Learned(NamedTuple):
    """What training changes, and (same type) its gradients."""

    key: KeyMap
    W: Array  # (K,D)
    b: Array  # (D,)
    steps: FastMatrix  # (), () factors on the step sizes
    decay: Array  # ()
    U: Array | None = None  # (D,V) None = the model's own


def start(key: KeyMap, decay: float, U: Array | None = None) -> Learned:
    """The layer with which the model computes what it computed before; ``U`` if it is learned."""
    xp = namespace(*key)
    K, D = key.A.shape[1], key.A.shape[0]
    W = xp.zeros((K, D), dtype=key.A.dtype, device=device(key.A))  # (K,D)
    one = xp.ones((), dtype=key.A.dtype, device=device(key.A))  # ()
    return Learned(key, W, xp.zeros_like(key.mean), FastMatrix(one, one), one * decay, U)


def settings_of(model: Model, chunk: int, frozen: bool = True) -> MatrixSettings:
    """A head that is frozen or not, the model's norm, and sums over the past in chunks."""
    eps, block = model.config.eps, model.block
    return MatrixSettings(eps=eps, chunk=chunk, norm="rms", frozen=frozen, block=block)


def slow_of(learned: Learned, model: Model) -> MatrixParameters:
    """All slow parameters of the layer: those that are learned and the model's own."""
    gain, U = model.parameters.gain, with_head(learned.U, model).U
    return MatrixParameters(learned.key, learned.W, learned.b, gain, model.bias, U, None)


def with_head(U: Array | None, model: Model) -> Model:
    """The model with the unembedding (D,V) that was learned, if one was."""
    return model if U is None else model._replace(U=U)


def etas_of(learned: Learned, sizes: FastMatrix) -> FastMatrix:
    """Step sizes: the learned factors times ``sizes``, two numbers."""
    return FastMatrix(learned.steps.W * sizes.W, learned.steps.b * sizes.b)


def loss_and_gradient(
    learned: Learned,
    x: Array,
    labels: Array,
    weights: Array,
    model: Model,
    sizes: FastMatrix,
    chunk: int,
) -> tuple[Array, Learned]:
    """(B,T,D),(B,T),(B,T)->(),Learned   mean loss of the tokens of weight 1, through the update

    (X.9), (X.10)   Raises ValueError for an unembedding that is learned: a fast layer's is frozen.
    """
    if learned.U is not None:
        raise ValueError("through stale gradients the unembedding is not trained, got one")
    xp = namespace(x, weights)
    slow, eta = slow_of(learned, model), etas_of(learned, sizes)
    settings = settings_of(model, chunk)
    (nll, _, _), res = fast_matrix_fwd(x, labels, weights, slow, eta, learned.decay, settings)
    share = weights / xp.sum(weights)  # (B,T)
    loss = xp.sum(nll * share)  # ()
    # forward: loss = sum nll share
    _, g_slow, g_eta, g_decay, _ = fast_matrix_bwd(share, None, res)
    # forward: eta = steps sizes
    g_steps = FastMatrix(g_eta.W * sizes.W, g_eta.b * sizes.b)  # (), ()
    return loss, Learned(g_slow.key, g_slow.W, g_slow.b, g_steps, g_decay)


def plain_loss_and_gradient(
    learned: Learned, x: Array, labels: Array, weights: Array, model: Model
) -> tuple[Array, Learned]:
    """(B,T,D),(B,T),(B,T)->(),Learned   ``loss_and_gradient`` for step sizes of 0, without a memory

    (X.5)
    """
    xp = namespace(x, weights)
    k, key = key_fwd(x, learned.key, True)  # (B,T,K)
    y, dense = dense_fwd(k, learned.W, learned.b)  # (B,T,D)
    gain, eps = model.parameters.gain, model.config.eps
    n, norm = norm_fwd(x + y, gain, model.bias, eps, "rms")  # (B,T,D)
    U, frozen = with_head(learned.U, model).U, learned.U is None
    nll, head = blocked_head_fwd(n, U, None, labels, model.block, frozen)  # (B,T)
    share = weights / xp.sum(weights)  # (B,T)
    # forward: loss = sum nll share,  nll = cross-entropy of n U
    dn, dU, _ = blocked_head_bwd(share, head)  # (B,T,D)
    # forward: n = norm(x + k W + b)
    dz, _, _ = norm_bwd(dn, norm)  # (B,T,D)
    dk, dW, db = dense_bwd(dz, dense)  # (B,T,K)
    # forward: k = key(x)
    _, dkey = key_bwd(dk, key)
    zero = xp.zeros_like(learned.decay)  # ()
    return xp.sum(nll * share), Learned(dkey, dW, db, FastMatrix(zero, zero), zero, dU)


def plain_layer_losses(learned: Learned, x: Array, labels: Array, model: Model) -> Array:
    """(T,D),(T)->(T)   losses of the layer without a memory   (X.5)"""
    k, _ = key_fwd(x, learned.key, True)  # (T,K)
    y, _ = dense_fwd(k, learned.W, learned.b)  # (T,D)
    return plain_losses(with_head(learned.U, model), x + y, labels)


def layer_losses(
    learned: Learned,
    x: Array,
    labels: Array,
    model: Model,
    sizes: FastMatrix,
    chunk: int,
    reset: int | None = None,
) -> tuple[Array, Array]:
    """(T,D),(T)->(T),(T,D)   losses and final features of a document   (X.9)

    With ``reset`` the memory is emptied after every so many tokens.
    """
    xp = namespace(x)
    slow, eta = slow_of(learned, model), etas_of(learned, sizes)
    settings, found, fast = settings_of(model, chunk), [], []
    step = x.shape[0] if reset is None else reset
    for i in range(0, x.shape[0], step):
        part, words = x[None, i : i + step, :], labels[None, i : i + step]  # (1,L,D), (1,L)
        weights = xp.ones((1, part.shape[1]), dtype=x.dtype, device=device(x))  # (1,L)
        nll, n, _ = fast_matrix_score(
            part, words, weights, slow, eta, learned.decay, settings
        )  # (1,L), (1,L,D)
        found.append(nll[0, :])
        fast.append(n[0, :, :])
    return xp.concat(found), xp.concat(fast, axis=0)
