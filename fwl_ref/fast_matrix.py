"""The smallest fast weight layer on top of a model: a fast matrix and a fast bias, with residual.

    k = key(x)      z = x + k W + b      n = norm(z)      l = cross-entropy of n U + c

Fast are W (K,D) and b (D,): each token changes them by the gradient of its loss, and later tokens
use what has become of them. With W = 0 and b = 0 the plain pass is the model that it is put on, for
``norm`` and U are the model's own. The six sweeps of ``fwl.py`` are here in their shortest form:

    sweep  function     computes
    1, 2   write_fwd    the plain pass and its gradient dz, the value; the key is k
    3      read_fwd     z'_t = z_t - sum_{s<t} M_ts (eta_W k_t . k_s + eta_b) dz_s, and its loss
    4      read_bwd     -> gradients of the memory, the norm, the head and the step sizes
    5, 6   write_bwd    -> gradients of x and of the slow parameters, through dz

The key of a token does not depend on fast parameters, so one k is both its query and its key. The
head is computed in blocks of tokens, ``ops/blocked_head.py``: logits of a large vocabulary are
never all there. What comes out is a loss per token.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .backend import Array, namespace
from .checks import check_fast_matrix
from .fast_layer import FastLayerResidual, Past, fast_layer_bwd, fast_layer_fwd
from .fwl import normalizer
from .key_map import KeyMap, KeyResidual, key_bwd, key_fwd
from .norm import NormResidual, norm_bwd, norm_bwd_bwd, norm_fwd
from .ops.blocked_head import (
    BLOCK,
    BlockedHeadResidual,
    blocked_head_bwd,
    blocked_head_bwd_bwd,
    blocked_head_dn,
    blocked_head_fwd,
    blocked_head_nll,
)
from .ops.dense import DenseResidual, dense_bwd, dense_fwd


class MatrixParameters(NamedTuple):
    """Slow parameters, and (same type) their gradients; None for those of a frozen head."""

    key: KeyMap
    W: Array  # (K,D)
    b: Array  # (D,)
    gain: Array  # (D,)
    bias: Array  # (D,) RMSNorm has none: 0 at the start
    U: Array  # (D,V)
    c: Array | None  # (V,)


class FastMatrix(NamedTuple):
    """One entry per fast parameter: step sizes, or accumulated gradients."""

    W: Array
    b: Array


class MatrixSettings(NamedTuple):
    """What is fixed about the layer. The first five are those of ``fwl.FastSettings``."""

    normalizer: str = "constant"  # "constant", "sequence" or "batch"
    constant: float = 1.0  # the value of N if the normalizer is constant
    eps: float = 1e-5  # of the normalisation
    chunk: int | None = 64  # tokens per chunk of the linear attention; None = parallel form
    first_order: bool = False  # stop the outer gradient at the memory's values
    norm: str = "rms"  # "layer" or "rms"
    unit: bool = True  # keys of unit length
    frozen: bool = True  # U and c are constants
    block: int | None = BLOCK  # tokens whose logits exist at the same time; None = all


class MatrixMemory(NamedTuple):
    """What write leaves behind for read, per token."""

    z: Array  # (B,T,D) the plain pass before the norm: the fast pass starts from it
    k: Array  # (B,T,K) keys, and queries
    dz: Array  # (B,T,D) values


class MatrixWriteResidual(NamedTuple):
    key: KeyResidual
    dense: DenseResidual
    norm: NormResidual
    head: BlockedHeadResidual
    dnll: Array  # (B,T) w / N
    dn: Array  # (B,T,D)
    first_order: bool


class MatrixReadResidual(NamedTuple):
    layer: FastLayerResidual
    norm: NormResidual
    head: BlockedHeadResidual


class FastMatrixResidual(NamedTuple):
    write: MatrixWriteResidual
    read: MatrixReadResidual


def write_fwd(
    x: Array, labels: Array, weights: Array, slow: MatrixParameters, settings: MatrixSettings
) -> tuple[tuple[MatrixMemory, Array], MatrixWriteResidual]:
    """(B,T,D),(B,T),(B,T)->MatrixMemory,(B,T)   sweeps 1 and 2; losses of the plain pass   (X.5)"""
    namespace(x, weights, slow.W)
    # sweep 1, up
    k, key = key_fwd(x, slow.key, settings.unit)  # (B,T,K)
    y, dense = dense_fwd(k, slow.W, slow.b)  # (B,T,D)
    z = x + y  # (B,T,D)
    n, norm = norm_fwd(z, slow.gain, slow.bias, settings.eps, settings.norm)  # (B,T,D)
    nll, head = blocked_head_fwd(
        n, slow.U, slow.c, labels, settings.block, settings.frozen
    )  # (B,T)
    # sweep 2, down: per token, inputs only
    dnll = weights / normalizer(weights, settings)  # (B,T)
    dn = blocked_head_dn(dnll, head)  # (B,T,D)
    dz, _, _ = norm_bwd(dn, norm)  # (B,T,D)
    res = MatrixWriteResidual(key, dense, norm, head, dnll, dn, settings.first_order)
    return (MatrixMemory(z, k, dz), nll), res


def _moved(
    memory: MatrixMemory,
    slow: MatrixParameters,
    eta: FastMatrix,
    decay: Array,
    state: FastMatrix | None,
    settings: MatrixSettings,
) -> tuple[Array, Any, FastLayerResidual, NormResidual]:
    """The fast pass up to the head: n' (B,T,D), the state, and residuals"""
    z, k, dz = memory
    past = Past(1 - decay, settings.chunk)
    # z'_t = z_t - sum_{s<t} M_ts (eta_W k_t . k_s + eta_b) dz_s   (B,T,D)
    (o, left), layer = fast_layer_fwd(k, k, dz, eta.W, eta.b, past, state)
    n, norm = norm_fwd(z - o, slow.gain, slow.bias, settings.eps, settings.norm)  # (B,T,D)
    return n, _named(left), layer, norm


def read_fwd(
    memory: MatrixMemory,
    labels: Array,
    slow: MatrixParameters,
    eta: FastMatrix,
    decay: Array,
    state: FastMatrix | None,
    settings: MatrixSettings,
) -> tuple[tuple[Array, FastMatrix], MatrixReadResidual]:
    """MatrixMemory,(B,T)->(B,T),FastMatrix   sweep 3: losses of the fast pass, the state   (X.6)"""
    namespace(memory.z, decay, *eta)
    n, left, layer, norm = _moved(memory, slow, eta, decay, state, settings)  # (B,T,D)
    nll, head = blocked_head_fwd(
        n, slow.U, slow.c, labels, settings.block, settings.frozen
    )  # (B,T)
    return (nll, left), MatrixReadResidual(layer, norm, head)


def read_bwd(
    g_nll: Array, g_state: FastMatrix | None, res: MatrixReadResidual
) -> tuple[MatrixMemory, MatrixParameters, FastMatrix, Array, FastMatrix | None]:
    """Adjoint of read_fwd: sweep 4.   (X.7)

    Returns g_memory, g_slow (None for key, W and b, which enter through the memory alone), g_eta,
    g_decay, g_state_in.
    """
    namespace(g_nll)
    # sweep 3: nll = cross-entropy of n' U + c
    g_n, g_U, g_c = blocked_head_bwd(g_nll, res.head)  # (B,T,D)
    # sweep 3: n' = norm(z'; gain, bias)
    g_z, g_gain, g_bias = norm_bwd(g_n, res.norm)  # (B,T,D)
    # sweep 3: z' = z - o
    layer = fast_layer_bwd(-g_z, g_state, res.layer)
    # sweep 3: k is query and key
    g_memory = MatrixMemory(g_z, layer.query + layer.key, layer.value)
    none: Any = None
    g_slow = MatrixParameters(none, none, none, g_gain, g_bias, g_U, g_c)
    # sweep 3: keep = 1 - decay
    return g_memory, g_slow, FastMatrix(*layer.eta), -layer.keep, _named(layer.state)


def write_bwd(g_memory: MatrixMemory, res: MatrixWriteResidual) -> tuple[Array, MatrixParameters]:
    """Adjoint of write_fwd with respect to x and the slow parameters: sweeps 5 and 6.   (X.8)

    With ``first_order`` the values count as constants: then norm and head get None here.
    """
    xp = namespace(*g_memory)
    g_z, above = g_memory.z, (None,) * 4  # (B,T,D)
    if not res.first_order:
        none = xp.zeros_like(res.norm.gain)  # (D,) what is written has no gradient of the gain
        # sweep 5, up: dz = norm_bwd(dn)
        g_dn, g_z5, g_gain5, _ = norm_bwd_bwd(g_memory.dz, none, none, res.dn, res.norm)  # (B,T,D)
        # sweep 5: dn = blocked_head_dn(w / N);  sweep 6, down: nll = cross-entropy of n U + c
        _, g_n, g_U, g_c = blocked_head_bwd_bwd(g_dn, None, None, res.dnll, res.head)  # (B,T,D)
        # sweep 1: n = norm(z; gain, bias)
        g_z6, g_gain, g_bias = norm_bwd(g_n, res.norm)  # (B,T,D)
        g_z, above = g_z + g_z5 + g_z6, (g_gain + g_gain5, g_bias, g_U, g_c)
    # sweep 1: z = x + k W + b
    g_k, g_W, g_b = dense_bwd(g_z, res.dense)  # (B,T,K)
    # sweep 1: k = key(x)
    g_x, g_key = key_bwd(g_k + g_memory.k, res.key)  # (B,T,D)
    return g_z + g_x, MatrixParameters(g_key, g_W, g_b, *above)


def fast_matrix_fwd(
    x: Array,
    labels: Array,
    weights: Array,
    slow: MatrixParameters,
    eta: FastMatrix,
    decay: Array,
    settings: MatrixSettings,
    state: FastMatrix | None = None,
) -> tuple[tuple[Array, Array, FastMatrix], FastMatrixResidual]:
    """(B,T,D),(B,T),(B,T)->(B,T),(B,T),FastMatrix   write, then read   (X.9)

    Parameters
    ----------
    x, labels, weights
        Features *before* the model's final normalisation; the next token at each position; its
        weight in the slow loss (0 = not written).
    slow, eta, decay
        Slow parameters, two step sizes, the rate lambda at which updates fade.
    settings
        What is fixed about the layer.
    state
        What an earlier call returned as state_out, accumulated gradients per sequence (B,K,D),
        (B,D); None = nothing yet. It needs the constant normalizer.

    Returns
    -------
    (nll, nll_slow, state_out), residual
        Losses per token of the fast pass and of the plain one.

    Raises
    ------
    ValueError, TypeError
        Labels out of range, negative or non-finite weights, bad settings, shapes that do not fit, a
        carried state without the constant normalizer, mixed arrays.
    """
    check_fast_matrix(x, labels, weights, slow, eta, decay, settings, state)
    (memory, nll_slow), write = write_fwd(x, labels, weights, slow, settings)
    (nll, state_out), read = read_fwd(memory, labels, slow, eta, decay, state, settings)
    return (nll, nll_slow, state_out), FastMatrixResidual(write, read)


def fast_matrix_score(
    x: Array,
    labels: Array,
    weights: Array,
    slow: MatrixParameters,
    eta: FastMatrix,
    decay: Array,
    settings: MatrixSettings,
    state: FastMatrix | None = None,
) -> tuple[Array, Array, FastMatrix]:
    """(B,T,D),(B,T),(B,T)->(B,T),(B,T,D),FastMatrix   fast_matrix_fwd for reading   (X.9)

    Losses of the fast pass, its n' for whoever wants logits, n' U + c, and the state. No residual
    is kept. Raises as ``fast_matrix_fwd``.
    """
    check_fast_matrix(x, labels, weights, slow, eta, decay, settings, state)
    memory = write_fwd(x, labels, weights, slow, settings)[0][0]
    n, left, _, _ = _moved(memory, slow, eta, decay, state, settings)  # (B,T,D)
    return blocked_head_nll(n, slow.U, slow.c, labels, settings.block), n, left


def fast_matrix_bwd(
    g_nll: Array, g_state: FastMatrix | None, res: FastMatrixResidual
) -> tuple[Array, MatrixParameters, FastMatrix, Array, FastMatrix | None]:
    """Adjoint of fast_matrix_fwd: sweeps 4, 5, 6.   (X.10)

    For a loss on the fast losses and, rarely, on the final state. Returns g_x, g_slow, g_eta,
    g_decay, g_state_in.
    """
    g_memory, read, g_eta, g_decay, g_state_in = read_bwd(g_nll, g_state, res.read)
    g_x, write = write_bwd(g_memory, res.write)
    pairs = zip(read, write, strict=True)
    g_slow = MatrixParameters(*(r if w is None else w if r is None else r + w for r, w in pairs))
    return g_x, g_slow, g_eta, g_decay, g_state_in


def _named(pair: tuple[Array, Array] | None) -> Any:
    """What belongs to W and b, as FastMatrix; None stays None."""
    return None if pair is None else FastMatrix(*pair)
