"""The fast weight block: write, read, and both differentiated (Clark et al., EMNLP 2022, arXiv
2212.02475).

    sweep  function    direction
    1      write_fwd   up     slow forward
    2      write_fwd   down   slow backward -> memory; no weight gradient is ever formed
    3      read_fwd    up     fast forward through the memory (linear attention)
    4      read_bwd    down   -> gradients of features, memory, parameters, step sizes
    5      sweep5      up     backward of the slow backward: here *_bwd_bwd are called
    6      write_bwd   down   backward of the slow forward; write_bwd runs both

              WRITE, slow weights               MEMORY              READ, fast weights

              slow loss                                             outer loss
               ^     |     ^     |                                   ^     |
               |     |     |     |                                   |     |
              (1)   (2)   (5)   (6)                                 (3)   (4)
               |     |     |     |                                   |     |
               |     |     |     v                                   |     |
               x     |     |    g_x, g_slow                          |     |
                     |     |          +-------------------+          |     |
                     '-----|--------> |   keys, values    | ---------'     |
                           |          +-------------------+                |
                           '--------- |  their gradients  | <--------------'
                                      +-------------------+

The numbers are the order in time; up is towards a loss, down is towards the features x. The forward
pass fills the memory (1, 2) and uses it (3). The backward pass retraces those steps in reverse: 4
undoes 3, 5 undoes 2, 6 undoes 1. The features also enter sweep 3 directly, as queries, and sweep 4
returns that share of g_x.

Token t uses, for every fast parameter p,

    p_t = p - eta_p sum_{s<t} (1 - lambda)^{t-s-1} dl_s/dp / N

Both dense layers are fast layers (``fast_layer.py``): what the past takes off their output is
linear attention, with query the fast input, key the slow input, value the slow output gradient.

``d...`` is what the slow loss says, ``g_...`` is what the outer loss says.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .backend import Array, device, namespace
from .checks import check_fast_block
from .fast_layer import (
    FastLayerResidual,
    PastSumsResidual,
    fast_layer_bwd,
    fast_layer_fwd,
    past_sums_bwd,
    past_sums_fwd,
    pasts,
    pasts_bwd,
)
from .norm import NormResidual, norm_bwd, norm_bwd_bwd, norm_fwd
from .ops.common import token_sum
from .ops.cross_entropy import (
    CrossEntropyResidual,
    cross_entropy_bwd,
    cross_entropy_bwd_bwd,
    cross_entropy_fwd,
)
from .ops.dense import DenseResidual, dense_bwd, dense_bwd_bwd, dense_dx, dense_fwd
from .ops.squared_relu import (
    SquaredReluResidual,
    squared_relu_bwd,
    squared_relu_bwd_bwd,
    squared_relu_fwd,
)
from .optimizers import Optimizer, OptimizerState
from .slow_block import FastParameters, SlowParameters


class FastSettings(NamedTuple):
    """What is fixed about a fast weight block.

    docs/notation.md has the normalizers and the dialects.
    """

    normalizer: str = "constant"  # "constant", "sequence" or "batch"
    constant: float = 1.0  # the value of N if the normalizer is constant
    eps: float = 1e-6  # LayerNorm; the tf dialect has 0
    chunk: int | None = 64  # tokens per chunk of the linear attention; None = parallel form
    first_order: bool = False  # stop the outer gradient at the memory's values
    optimizer: Optimizer | None = None  # of past gradients; None = SGD with the learned decay
    norm: str = "layer"  # "layer" or "rms", before the unembedding
    residual: bool = False  # z = x + a W2 + b2, for a block on top of a model
    carry: bool = True  # False: there is no state after the last token, but an optimizer's

    @property
    def plain(self) -> tuple[float, str, bool]:
        """What of it the slow block needs: slow_block_fwd(x, labels, slow, *settings.plain)"""
        return self.eps, self.norm, self.residual


class Memory(NamedTuple):
    """What write leaves behind for read, per token: inputs as keys, gradients as values."""

    h: Array  # (B,T,F) slow hidden input: the fast pass starts from it, h' = h - ...
    x: Array  # (B,T,I) keys of layer 1
    dh: Array  # (B,T,F) values of layer 1
    a: Array  # (B,T,F) keys of layer 2
    dz: Array  # (B,T,D) values of layer 2
    dgain: Array  # (B,T,D) gradient of the gain at each token
    dbias: Array  # (B,T,D) gradient of the bias at each token


class WriteResidual(NamedTuple):
    """Sweeps 1 and 2: the residual of each op, and the cotangents that the slow backward met."""

    dense1: DenseResidual
    act: SquaredReluResidual
    dense2: DenseResidual
    norm: NormResidual
    unembed: DenseResidual
    loss: CrossEntropyResidual
    dnll: Array  # (B,T) w / N
    dlogits: Array  # (B,T,V)
    dn: Array  # (B,T,D)
    dz: Array  # (B,T,D)
    da: Array  # (B,T,F)
    first_order: bool
    residual: bool


class ReadResidual(NamedTuple):
    """Sweep 3."""

    layer1: FastLayerResidual
    act: SquaredReluResidual
    dense2: DenseResidual
    layer2: FastLayerResidual
    dgain: Array  # (B,T,D) the gain's gradients so far, summed over the past
    dbias: Array  # (B,T,D)
    sums: PastSumsResidual
    norm: NormResidual
    unembed: DenseResidual
    eta: FastParameters
    decay: Array  # () or (3,)
    residual: bool


class HandedOn(NamedTuple):
    """What sweep 5 hands on to sweep 6: the turning point, and what it left on its way up."""

    logits: Array  # (B,T,V) where sweep 5 ends and sweep 6 begins
    z: Array  # (B,T,D)
    h: Array  # (B,T,F)
    W2: Array  # (F,D)
    gain: Array  # (B,T,D) per token
    U: Array  # (D,V)


class FastBlockResidual(NamedTuple):
    write: WriteResidual
    read: ReadResidual


def normalizer(weights: Array, settings: Any) -> Array:
    """(B,T)->() or (B,1)   N, what the slow losses are divided by   (F.3)"""
    xp = namespace(weights)
    if settings.normalizer == "constant":
        return xp.full((), settings.constant, dtype=weights.dtype, device=device(weights))
    if settings.normalizer == "batch":
        n = xp.sum(weights)  # ()
    else:
        n = xp.sum(weights, axis=1, keepdims=True)  # (B,1)
    return xp.where(n > 0, n, xp.ones_like(n))  # all weights zero: nothing is written, whatever N


def write_fwd(
    x: Array, labels: Array, weights: Array, slow: SlowParameters, settings: FastSettings
) -> tuple[tuple[Memory, Array], WriteResidual]:
    """(B,T,I),(B,T),(B,T)->Memory,(B,T,V)   sweeps 1 and 2   (F.1), (X.12)"""
    xp = namespace(x, weights, *slow)
    # sweep 1, up: slow forward
    h, dense1 = dense_fwd(x, slow.W1, slow.b1)  # (B,T,F)
    a, act = squared_relu_fwd(h)  # (B,T,F)
    z, dense2 = dense_fwd(a, slow.W2, slow.b2)  # (B,T,D)
    z = x + z if settings.residual else z
    gain = xp.broadcast_to(slow.gain, z.shape)  # (B,T,D) per token, and so are the gradients
    bias = xp.broadcast_to(slow.bias, z.shape)  # (B,T,D)
    n, norm = norm_fwd(z, gain, bias, settings.eps, settings.norm)  # (B,T,D)
    logits, unembed = dense_fwd(n, slow.U, slow.c)  # (B,T,V)
    _, loss = cross_entropy_fwd(logits, labels)
    # sweep 2, down: slow backward, per token, inputs only
    dnll = weights / normalizer(weights, settings)  # (B,T)
    dlogits = cross_entropy_bwd(dnll, loss)  # (B,T,V)
    dn = dense_dx(dlogits, unembed)  # (B,T,D)
    dz, dgain, dbias = norm_bwd(dn, norm)  # (B,T,D)
    da = dense_dx(dz, dense2)  # (B,T,F)
    dh = squared_relu_bwd(da, act)  # (B,T,F)
    res = WriteResidual(
        dense1, act, dense2, norm, unembed, loss, dnll, dlogits, dn, dz, da,
        settings.first_order, settings.residual,
    )  # fmt: skip
    return (Memory(h, x, dh, a, dz, dgain, dbias), logits), res


def read_fwd(
    memory: Memory,
    x: Array,
    slow: SlowParameters,
    eta: FastParameters,
    decay: Array,
    state: FastParameters | OptimizerState | None,
    settings: FastSettings,
) -> tuple[tuple[Array, Any], ReadResidual]:
    """Memory,(B,T,I)->(B,T,V),FastParameters   sweep 3: fast logits, accumulated gradients   (F.2)

    With ``settings.optimizer`` the mask is its own and the state an OptimizerState.   (O.23)
    """
    namespace(x, decay, *eta, *slow)
    held, token = state if isinstance(state, OptimizerState) else (state, 0)
    state1, state2, state3 = _pairs(held)
    past1, past2, past3 = pasts(x, decay, settings.chunk, settings.optimizer, token, settings.carry)
    # h'_t = x_t W1 + b1 - sum_{s<t} M_ts (eta_W1 x_t . x_s + eta_b1) dh_s   (B,T,F)
    (o1, state1), layer1 = fast_layer_fwd(x, memory.x, memory.dh, eta.W1, eta.b1, past1, state1)
    a, act = squared_relu_fwd(memory.h - o1)  # (B,T,F)
    # z'_t = a'_t W2 + b2 - sum_{s<t} M_ts (eta_W2 a'_t . a_s + eta_b2) dz_s   (B,T,D)
    z, dense2 = dense_fwd(a, slow.W2, slow.b2)  # (B,T,D)
    z = x + z if settings.residual else z
    (o2, state2), layer2 = fast_layer_fwd(a, memory.a, memory.dz, eta.W2, eta.b2, past2, state2)
    # gain'_t = gain - eta_gain sum_{s<t} M_ts dgain_s, and the same for the bias   (B,T,D)
    (dgain, dbias, state3), sums = past_sums_fwd(memory.dgain, memory.dbias, past3, state3)
    gain, bias = slow.gain - eta.gain * dgain, slow.bias - eta.bias * dbias  # (B,T,D)
    n, norm = norm_fwd(z - o2, gain, bias, settings.eps, settings.norm)  # (B,T,D)
    logits, unembed = dense_fwd(n, slow.U, slow.c)  # (B,T,V)
    res = ReadResidual(
        layer1, act, dense2, layer2, dgain, dbias, sums, norm, unembed, eta, decay,
        settings.residual,
    )  # fmt: skip
    held = _join(state1, state2, state3)
    return (logits, held if past1.seen is None else OptimizerState(held, past1.seen)), res


def read_bwd(
    g_logits: Array, g_state: FastParameters | None, res: ReadResidual
) -> tuple[Memory, Array, SlowParameters, FastParameters, Array, FastParameters | None]:
    """Adjoint of read_fwd: sweep 4.   (F.4), (F.12), (F.13), (X.14)

    Returns g_memory, g_x, g_slow (None for W1 and b1, which enter through memory.h alone), g_eta,
    g_decay, g_state_in. With an optimizer the gradients of a state are those of its slots, and
    g_decay is 0.
    """
    xp, eta = namespace(g_logits), res.eta
    g_state1, g_state2, g_state3 = _pairs(g_state)
    # sweep 3: logits = n U + c
    g_n, g_U, g_c = dense_bwd(g_logits, res.unembed)  # (B,T,D)
    # sweep 3: n = norm(z'; gain', bias')
    g_z, g_gain_t, g_bias_t = norm_bwd(g_n, res.norm)  # (B,T,D) all three
    # sweep 3: gain' = gain - eta_gain dgain,  bias' = bias - eta_bias dbias
    g_gain, g_bias = token_sum(g_gain_t), token_sum(g_bias_t)  # (D,)
    g_eta_gain, g_eta_bias = -xp.sum(g_gain_t * res.dgain), -xp.sum(g_bias_t * res.dbias)  # ()
    g_sums = (-eta.gain * g_gain_t, -eta.bias * g_bias_t)  # (B,T,D)
    g_dgain, g_dbias, g_keep3, g_state3 = past_sums_bwd(*g_sums, g_state3, res.sums)  # (B,T,D)
    # sweep 3: z' = a' W2 + b2 - o2, with a residual + x
    layer2 = fast_layer_bwd(-g_z, g_state2, res.layer2)
    g_a, g_W2, g_b2 = dense_bwd(g_z, res.dense2)  # (B,T,F)
    # sweep 3: a' = relu(h')^2
    g_h = squared_relu_bwd(g_a + layer2.query, res.act)  # (B,T,F)
    # sweep 3: h' = h - o1
    layer1 = fast_layer_bwd(-g_h, g_state1, res.layer1)
    # sweep 3: keep = 1 - decay
    g_decay = pasts_bwd((layer1.keep, layer2.keep, g_keep3), res.decay)  # as decay
    g_memory = Memory(g_h, layer1.key, layer1.value, layer2.key, layer2.value, g_dgain, g_dbias)
    g_slow = SlowParameters(None, None, g_W2, g_b2, g_gain, g_bias, g_U, g_c)
    g_eta = FastParameters(*layer1.eta, *layer2.eta, g_eta_gain, g_eta_bias)
    g_state = _join(layer1.state, layer2.state, g_state3)
    g_x = layer1.query + g_z if res.residual else layer1.query  # (B,T,I)
    return g_memory, g_x, g_slow, g_eta, g_decay, g_state


def sweep5(g_memory: Memory, res: WriteResidual) -> HandedOn:
    """Adjoint of sweep 2, the slow backward: up again, with what sweep 6 will pick up.   (F.5)"""
    # sweep 2: dh = squared_relu_bwd(da)
    g_da, g_h = squared_relu_bwd_bwd(g_memory.dh, res.da, res.act)  # (B,T,F)
    # sweep 2: da = dz W2^T
    g_dz, _, g_W2, _ = dense_bwd_bwd(g_da, None, None, res.dz, res.dense2)  # (B,T,D)
    # sweep 2: dz, dgain, dbias = norm_bwd(dn)
    g_dn, g_z, g_gain, _ = norm_bwd_bwd(
        g_dz + g_memory.dz, g_memory.dgain, g_memory.dbias, res.dn, res.norm
    )  # (B,T,D)
    # sweep 2: dn = dlogits U^T
    g_dlogits, _, g_U, _ = dense_bwd_bwd(g_dn, None, None, res.dlogits, res.unembed)  # (B,T,V)
    # sweep 2: dlogits = cross_entropy_bwd(w / N)
    _, g_logits = cross_entropy_bwd_bwd(g_dlogits, res.dnll, res.loss)  # (B,T,V)
    return HandedOn(g_logits, g_z, g_h, g_W2, g_gain, g_U)


def write_bwd(g_memory: Memory, res: WriteResidual) -> tuple[Array, SlowParameters]:
    """Adjoint of write_fwd with respect to x and the slow parameters: sweeps 5 and 6.   (F.5)

    With ``first_order`` the memory's values count as constants. Sweep 5 hands nothing on, and
    sweep 6 begins with the keys, at a; what lies above gets None.
    """
    namespace(*g_memory)
    if res.first_order:
        g_h = g_memory.h + squared_relu_bwd(g_memory.a, res.act)  # (B,T,F)
        g_x, g_W1, g_b1 = dense_bwd(g_h, res.dense1)  # (B,T,I)
        return g_x + g_memory.x, SlowParameters(g_W1, g_b1, *(None,) * 6)
    # sweep 5, up: backward of the slow backward
    five = sweep5(g_memory, res)
    # sweep 6, down: backward of the slow forward
    # sweep 1: logits = n U + c
    g_n, g_U, g_c = dense_bwd(five.logits, res.unembed)  # (B,T,D)
    # sweep 1: n = norm(z; gain, bias)
    g_z, g_gain, g_bias = norm_bwd(g_n, res.norm)  # (B,T,D) all three
    # sweep 1: z = a W2 + b2, with a residual + x
    g_z = g_z + five.z  # (B,T,D)
    g_a, g_W2, g_b2 = dense_bwd(g_z, res.dense2)  # (B,T,F)
    # sweep 1: a = relu(h)^2
    g_h = squared_relu_bwd(g_memory.a + g_a, res.act)  # (B,T,F)
    # sweep 1: h = x W1 + b1
    g_x, g_W1, g_b1 = dense_bwd(g_memory.h + five.h + g_h, res.dense1)  # (B,T,I)
    g_x = g_x + g_z if res.residual else g_x  # (B,T,I)
    g_gain, g_bias = token_sum(g_gain + five.gain), token_sum(g_bias)  # (D,)
    g_slow = (g_W1, g_b1, g_W2 + five.W2, g_b2, g_gain, g_bias, g_U + five.U, g_c)
    return g_x + g_memory.x, SlowParameters(*g_slow)


def fast_block_fwd(
    x: Array,
    labels: Array,
    weights: Array,
    slow: SlowParameters,
    eta: FastParameters,
    decay: Array,
    settings: FastSettings,
    state: FastParameters | OptimizerState | None = None,
) -> tuple[tuple[Array, Array, Any], FastBlockResidual]:
    """(B,T,I),(B,T),(B,T)->(B,T,V),(B,T,V),FastParameters   write, then read   (F.6)

    Parameters
    ----------
    x, labels, weights
        Features, of any width I; the next token at each position; its weight in the slow loss (0 =
        not written).
    slow, eta, decay
        Slow parameters, six step sizes, the rate lambda at which updates fade: () for all of them,
        or (3,) for those of W1 and b1, of W2 and b2, of gain and bias.
    settings
        What is fixed about the block.
    state
        What an earlier call returned as state_out; None = nothing yet. It needs the constant
        normalizer. It is the gradients accumulated before the first token, per sequence, or with
        ``settings.optimizer`` the slots of that optimizer.

    Returns
    -------
    (logits, logits_slow, state_out), residual

    Raises
    ------
    ValueError, TypeError
        Labels out of range, negative or non-finite weights, bad settings, a carried state without
        the constant normalizer, a decay beside an optimizer, mixed arrays.
    """
    check_fast_block(x, labels, weights, slow, eta, decay, settings, state)
    (memory, logits_slow), write = write_fwd(x, labels, weights, slow, settings)
    (logits, state_out), read = read_fwd(memory, x, slow, eta, decay, state, settings)
    return (logits, logits_slow, state_out), FastBlockResidual(write, read)


def fast_block_score(
    x: Array,
    labels: Array,
    weights: Array,
    slow: SlowParameters,
    eta: FastParameters,
    decay: Array,
    settings: FastSettings,
    state: FastParameters | OptimizerState | None = None,
) -> tuple[Array, Any]:
    """(B,T,I),(B,T),(B,T)->(B,T,V),FastParameters   fast_block_fwd for reading: fast logits and the
    state, no residual is kept   (F.6)

    Raises as ``fast_block_fwd``.
    """
    check_fast_block(x, labels, weights, slow, eta, decay, settings, state)
    memory = write_fwd(x, labels, weights, slow, settings)[0][0]
    return read_fwd(memory, x, slow, eta, decay, state, settings)[0]


def fast_block_bwd(
    g_logits: Array, g_state: FastParameters | None, res: FastBlockResidual
) -> tuple[Array, SlowParameters, FastParameters, Array, FastParameters | None]:
    """Adjoint of fast_block_fwd: sweeps 4, 5, 6.   (F.7)

    For a loss on the fast logits and, rarely, on the final state. Returns g_x, g_slow, g_eta,
    g_decay, g_state_in.
    """
    g_memory, g_x, read, g_eta, g_decay, g_state_in = read_bwd(g_logits, g_state, res.read)
    g_x_write, write = write_bwd(g_memory, res.write)
    pairs = zip(read, write, strict=True)
    g_slow = SlowParameters(*(r if w is None else w if r is None else r + w for r, w in pairs))
    return g_x + g_x_write, g_slow, g_eta, g_decay, g_state_in


def _pairs(fast: FastParameters | None) -> tuple:
    """Six entries -> three pairs: two dense layers with their biases, LayerNorm's gain and bias"""
    return (None, None, None) if fast is None else (fast[:2], fast[2:4], fast[4:])


def _join(layer1: tuple | None, layer2: tuple | None, norm: tuple | None) -> Any:
    """The inverse of _pairs."""
    return None if layer1 is None else FastParameters(*layer1, *layer2, *norm)
