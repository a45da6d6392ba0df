"""The fast weight block: write, read, and both differentiated (Clark et al., EMNLP 2022, arXiv
2212.02475).

    sweep  function    direction
    1      write_fwd   up     slow forward
    2      write_fwd   down   slow backward -> memory; no weight gradient is ever formed
    3      read_fwd    up     fast forward through the memory (linear attention)
    4      read_bwd    down   -> gradients of features, memory, parameters, step sizes
    5      write_bwd   up     backward of the slow backward: here *_bwd_bwd are called
    6      write_bwd   down   backward of the slow forward

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

A weight gradient is an outer product (input, output gradient), so x_t W_t is linear attention:
query the fast input, key the slow input, value the slow output gradient. A bias is a weight whose
input is 1, so the keys carry a constant channel and one call serves weight and bias together.

``d...`` is what the slow loss says, ``g_...`` is what the outer loss says.
"""

from __future__ import annotations

from typing import NamedTuple

from .backend import Array, namespace
from .checks import check_fast_block
from .ops.cross_entropy import (
    CrossEntropyResidual,
    cross_entropy_bwd,
    cross_entropy_bwd_bwd,
    cross_entropy_fwd,
)
from .ops.dense import DenseResidual, dense_bwd, dense_bwd_bwd, dense_dx, dense_fwd
from .ops.layernorm import LayerNormResidual, layernorm_bwd, layernorm_bwd_bwd, layernorm_fwd
from .ops.linear_attention import linear_attention_chunked_bwd, linear_attention_chunked_fwd
from .ops.masked_attention import masked_attention_chunked_bwd, masked_attention_chunked_fwd
from .ops.squared_relu import (
    SquaredReluResidual,
    squared_relu_bwd,
    squared_relu_bwd_bwd,
    squared_relu_fwd,
)
from .optimizers import Optimizer, OptimizerState, preconditioned_heads, system
from .slow_block import FastParameters, SlowParameters


class FastSettings(NamedTuple):
    """What is fixed about a fast weight block. See docs/notation.md for the normalizers, model.py
    for the dialects.
    """

    normalizer: str = "constant"  # "constant", "sequence" or "batch"
    constant: float = 1.0  # the value of N if the normalizer is constant
    eps: float = 1e-6  # LayerNorm; the tf dialect has 0
    chunk: int | None = 64  # tokens per chunk of the linear attention; None = parallel form
    first_order: bool = False  # stop the outer gradient at the memory's values
    optimizer: Optimizer | None = (
        None  # what the read does with past gradients; None = SGD with the learned decay
    )


class Memory(NamedTuple):
    """What write leaves behind for read. Keys are inputs, values are gradients of the slow loss,
    per token.
    """

    h: Array  # (B,T,F) slow hidden input: the fast pass starts from it, h' = h - ...
    x: Array  # (B,T,D) keys of layer 1
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
    norm: LayerNormResidual
    unembed: DenseResidual
    loss: CrossEntropyResidual
    dnll: Array  # (B,T) w / N
    dlogits: Array  # (B,T,V)
    dn: Array  # (B,T,D)
    dz: Array  # (B,T,D)
    da: Array  # (B,T,F)
    first_order: bool


class ReadResidual(NamedTuple):
    """Sweep 3. An attention's residual is that of linear attention or, with an optimizer, one of
    masked attention per head.
    """

    a: Array  # (B,T,F) fast hidden activation a'
    x: Array  # (B,T,D)
    sums: Array  # (B,T,2D) accumulated gradients of gain and bias
    attention1: tuple
    attention2: tuple
    attention3: tuple
    act: SquaredReluResidual
    dense2: DenseResidual
    norm: LayerNormResidual
    unembed: DenseResidual
    eta: FastParameters
    optimizer: Optimizer | None


class FastBlockResidual(NamedTuple):
    write: WriteResidual
    read: ReadResidual


def normalizer(weights: Array, settings: FastSettings) -> Array:
    """(B,T)->() or (B,1)   N, what the slow losses are divided by   (F.3)"""
    xp = namespace(weights)
    if settings.normalizer == "constant":
        return xp.full((), settings.constant, dtype=weights.dtype, device=weights.device)
    n = (
        xp.sum(weights)
        if settings.normalizer == "batch"
        else xp.sum(weights, axis=1, keepdims=True)
    )
    return xp.where(n > 0, n, xp.ones_like(n))  # all weights zero: nothing is written, whatever N


def write_fwd(
    x: Array, labels: Array, weights: Array, slow: SlowParameters, settings: FastSettings
):
    """(B,T,D),(B,T),(B,T)->Memory,(B,T,V)   sweeps 1 and 2   (F.1)"""
    xp = namespace(x, weights, *slow)
    # sweep 1, up: slow forward
    h, dense1 = dense_fwd(x, slow.W1, slow.b1)  # (B,T,F)
    a, act = squared_relu_fwd(h)  # (B,T,F)
    z, dense2 = dense_fwd(a, slow.W2, slow.b2)  # (B,T,D)
    gain, bias = (
        xp.broadcast_to(slow.gain, z.shape),
        xp.broadcast_to(slow.bias, z.shape),
    )  # (B,T,D) per token: so are the gradients
    n, norm = layernorm_fwd(z, gain, bias, settings.eps)  # (B,T,D)
    logits, unembed = dense_fwd(n, slow.U, slow.c)  # (B,T,V)
    _, loss = cross_entropy_fwd(logits, labels)
    # sweep 2, down: slow backward, per token, inputs only
    dnll = weights / normalizer(weights, settings)  # (B,T)
    dlogits = cross_entropy_bwd(dnll, loss)  # (B,T,V)
    dn = dense_dx(dlogits, unembed)  # (B,T,D)
    dz, dgain, dbias = layernorm_bwd(dn, norm)  # (B,T,D)
    da = dense_dx(dz, dense2)  # (B,T,F)
    dh = squared_relu_bwd(da, act)  # (B,T,F)
    res = WriteResidual(
        dense1, act, dense2, norm, unembed, loss, dnll, dlogits, dn, dz, da, settings.first_order
    )
    return (Memory(h, x, dh, a, dz, dgain, dbias), logits), res


def read_fwd(
    memory: Memory,
    x: Array,
    slow: SlowParameters,
    eta: FastParameters,
    decay: Array,
    state: FastParameters | OptimizerState | None,
    settings: FastSettings,
):
    """Memory,(B,T,D)->(B,T,V),FastParameters   sweep 3: fast logits and the accumulated
    gradients   (F.2)

    With ``settings.optimizer`` the mask is that optimizer's and the state an
    OptimizerState   (O.23)
    """
    xp = namespace(x, decay, *eta, *slow)
    keep, chunk, optimizer = 1 - decay, settings.chunk, settings.optimizer
    held, start = (state.slots, state.token) if isinstance(state, OptimizerState) else (state, 0)
    state1, state2, state3 = _pack(held)
    tables = system(optimizer, start, x.shape[1], x) if optimizer else None  # (T,N,N), (T,N), (T,N)
    heads1, heads2, heads3 = _heads(optimizer)
    ones = xp.ones_like(x[..., :1])  # (B,T,1) the input of a bias
    # h'_t = x_t W1 + b1 - sum_{s<t} (eta_W1 x_t . x_s + eta_b1) dh_s
    q1 = xp.concat([eta.W1 * x, eta.b1 * ones], axis=-1)  # (B,T,D+1)
    k1 = xp.concat([memory.x, ones], axis=-1)  # (B,T,D+1)
    (o1, state1), attention1 = _attend_fwd(q1, k1, memory.dh, keep, state1, chunk, tables, heads1)
    a, act = squared_relu_fwd(memory.h - o1)  # (B,T,F)
    # z'_t = a'_t W2 + b2 - sum_{s<t} (eta_W2 a'_t . a_s + eta_b2) dz_s
    zslow, dense2 = dense_fwd(a, slow.W2, slow.b2)  # (B,T,D)
    q2 = xp.concat([eta.W2 * a, eta.b2 * ones], axis=-1)  # (B,T,F+1)
    k2 = xp.concat([memory.a, ones], axis=-1)  # (B,T,F+1)
    (o2, state2), attention2 = _attend_fwd(q2, k2, memory.dz, keep, state2, chunk, tables, heads2)
    # gain_t = gain - eta_gain sum_{s<t} dgain_s, and the same for the bias: cumulative sums, q = k
    # = 1
    v3 = xp.concat([memory.dgain, memory.dbias], axis=-1)  # (B,T,2D)
    (sums, state3), attention3 = _attend_fwd(ones, ones, v3, keep, state3, chunk, tables, heads3)
    width = x.shape[-1]
    gain = slow.gain - eta.gain * sums[..., :width]  # (B,T,D)
    bias = slow.bias - eta.bias * sums[..., width:]  # (B,T,D)
    n, norm = layernorm_fwd(zslow - o2, gain, bias, settings.eps)  # (B,T,D)
    logits, unembed = dense_fwd(n, slow.U, slow.c)  # (B,T,V)
    res = ReadResidual(
        a, x, sums, attention1, attention2, attention3, act, dense2, norm, unembed, eta, optimizer
    )
    held = _unpack(state1, state2, state3)
    return (logits, OptimizerState(held, start + x.shape[1]) if optimizer else held), res


def read_bwd(g_logits: Array, g_state: FastParameters | None, res: ReadResidual):
    """Adjoint of read_fwd: sweep 4.   (F.4)

    Returns g_memory, g_x, g_slow (None for W1 and b1, which enter through memory.h alone), g_eta,
    g_decay, g_state_in. With an optimizer the gradients of a state are those of its slots, and
    g_decay is 0.
    """
    xp = namespace(g_logits)
    eta, width, fwidth = res.eta, res.x.shape[-1], res.a.shape[-1]
    g_state1, g_state2, g_state3 = _pack(g_state)
    # sweep 3: logits = n U + c
    g_n, g_U, g_c = dense_bwd(g_logits, res.unembed)  # (B,T,D)
    # sweep 3: n = LN(z'; gain', bias')
    g_z, g_gain_t, g_bias_t = layernorm_bwd(g_n, res.norm)  # (B,T,D) all three
    # sweep 3: gain' = gain - eta_gain sums[:D],  bias' = bias - eta_bias sums[D:]
    g_gain, g_bias = xp.sum(g_gain_t, axis=(0, 1)), xp.sum(g_bias_t, axis=(0, 1))  # (D,)
    g_eta_gain = -xp.sum(g_gain_t * res.sums[..., :width])  # ()
    g_eta_bias = -xp.sum(g_bias_t * res.sums[..., width:])  # ()
    g_sums = xp.concat([-eta.gain * g_gain_t, -eta.bias * g_bias_t], axis=-1)  # (B,T,2D)
    _, _, g_v3, g_keep3, g_state3 = _attend_bwd(g_sums, g_state3, res.attention3, res.optimizer)
    # sweep 3: z' = a' W2 + b2 - attention(q2, k2, dz)
    g_q2, g_k2, g_dz, g_keep2, g_state2 = _attend_bwd(-g_z, g_state2, res.attention2, res.optimizer)
    g_eta_W2 = xp.sum(g_q2[..., :fwidth] * res.a)  # ()
    g_eta_b2 = xp.sum(g_q2[..., fwidth:])  # ()
    g_a, g_W2, g_b2 = dense_bwd(g_z, res.dense2)  # (B,T,F)
    g_a += eta.W2 * g_q2[..., :fwidth]
    # sweep 3: a' = relu(h')^2,  h' = h - attention(q1, k1, dh)
    g_h = squared_relu_bwd(g_a, res.act)  # (B,T,F)
    g_q1, g_k1, g_dh, g_keep1, g_state1 = _attend_bwd(-g_h, g_state1, res.attention1, res.optimizer)
    g_eta_W1 = xp.sum(g_q1[..., :width] * res.x)  # ()
    g_eta_b1 = xp.sum(g_q1[..., width:])  # ()
    g_x = eta.W1 * g_q1[..., :width]  # (B,T,D)
    # sweep 3: keep = 1 - decay
    g_decay = -(g_keep1 + g_keep2 + g_keep3)  # ()
    g_memory = Memory(
        g_h, g_k1[..., :width], g_dh, g_k2[..., :fwidth], g_dz, g_v3[..., :width], g_v3[..., width:]
    )
    g_slow = SlowParameters(None, None, g_W2, g_b2, g_gain, g_bias, g_U, g_c)
    g_eta = FastParameters(g_eta_W1, g_eta_b1, g_eta_W2, g_eta_b2, g_eta_gain, g_eta_bias)
    return g_memory, g_x, g_slow, g_eta, g_decay, _unpack(g_state1, g_state2, g_state3)


def write_bwd(g_memory: Memory, res: WriteResidual) -> tuple[Array, SlowParameters]:
    """Adjoint of write_fwd with respect to x and the slow parameters: sweeps 5 and 6.   (F.5)

    With ``first_order`` the memory's values count as constants: sweep 5 falls away and sweep 6
    carries the keys' gradients only.
    """
    xp = namespace(*g_memory)
    g_a, g_h, g_slow = g_memory.a, g_memory.h, None
    if not res.first_order:
        # sweep 5, up: backward of the slow backward
        # sweep 2: dh = squared_relu_bwd(da)
        g_da, g_h5 = squared_relu_bwd_bwd(g_memory.dh, res.da, res.act)  # (B,T,F)
        # sweep 2: da = dz W2^T
        g_dz, _, g_W2_5, _ = dense_bwd_bwd(g_da, None, None, res.dz, res.dense2)  # (B,T,D)
        # sweep 2: dz, dgain, dbias = layernorm_bwd(dn)
        g_dz += g_memory.dz
        g_dn, g_z5, g_gain5, _ = layernorm_bwd_bwd(
            g_dz, g_memory.dgain, g_memory.dbias, res.dn, res.norm
        )  # (B,T,D)
        # sweep 2: dn = dlogits U^T
        g_dlogits, _, g_U5, _ = dense_bwd_bwd(g_dn, None, None, res.dlogits, res.unembed)  # (B,T,V)
        # sweep 2: dlogits = cross_entropy_bwd(w / N)
        _, g_logits = cross_entropy_bwd_bwd(g_dlogits, res.dnll, res.loss)  # (B,T,V)
        # sweep 6, down: backward of the slow forward
        # sweep 1: logits = n U + c
        g_n, g_U, g_c = dense_bwd(g_logits, res.unembed)  # (B,T,D)
        # sweep 1: n = LN(z; gain, bias)
        g_z, g_gain, g_bias = layernorm_bwd(g_n, res.norm)  # (B,T,D)
        g_z += g_z5
        # sweep 1: z = a W2 + b2
        g_a6, g_W2, g_b2 = dense_bwd(g_z, res.dense2)  # (B,T,F)
        g_a = g_a + g_a6
        g_h = g_h + g_h5
        g_gain, g_bias = xp.sum(g_gain + g_gain5, axis=(0, 1)), xp.sum(g_bias, axis=(0, 1))  # (D,)
        g_slow = (g_W2 + g_W2_5, g_b2, g_gain, g_bias, g_U + g_U5, g_c)
    # sweep 1: a = relu(h)^2
    g_h = g_h + squared_relu_bwd(g_a, res.act)  # (B,T,F)
    # sweep 1: h = x W1 + b1
    g_x, g_W1, g_b1 = dense_bwd(g_h, res.dense1)  # (B,T,D)
    return g_x + g_memory.x, SlowParameters(g_W1, g_b1, *(g_slow or (None,) * 6))


def fast_block_fwd(
    x: Array,
    labels: Array,
    weights: Array,
    slow: SlowParameters,
    eta: FastParameters,
    decay: Array,
    settings: FastSettings,
    state: FastParameters | OptimizerState | None = None,
):
    """(B,T,D),(B,T),(B,T)->(B,T,V),(B,T,V),FastParameters   write, then read   (F.6)

    Parameters
    ---------- x, labels, weights : features; the next token at each position; its weight in the
    slow loss (0 = not written) slow, eta, decay : slow parameters, six step sizes, the rate lambda
    at which updates fade towards the slow weights state : what an earlier call returned as
    state_out; needs the constant normalizer. None = nothing yet. It is the gradients accumulated
        before the first token, per sequence, or with ``settings.optimizer`` the slots of that optimizer

    Returns
    -------
    (logits, logits_slow, state_out), residual

    Raises
    ------
    ValueError, TypeError
        labels out of range, negative or non-finite weights, bad settings, a carried state without the constant normalizer, a decay
        beside an optimizer, mixed arrays.
    """
    check_fast_block(x, labels, weights, slow, eta, decay, settings, state)
    (memory, logits_slow), write = write_fwd(x, labels, weights, slow, settings)
    (logits, state_out), read = read_fwd(memory, x, slow, eta, decay, state, settings)
    return (logits, logits_slow, state_out), FastBlockResidual(write, read)


def fast_block_bwd(g_logits: Array, g_state: FastParameters | None, res: FastBlockResidual):
    """Adjoint of fast_block_fwd for a loss on the fast logits (and, rarely, on the final state):
    sweeps 4, 5, 6.   (F.7)

    Returns g_x, g_slow, g_eta, g_decay, g_state_in.
    """
    g_memory, g_x, read, g_eta, g_decay, g_state_in = read_bwd(g_logits, g_state, res.read)
    g_x_write, write = write_bwd(g_memory, res.write)
    pairs = zip(read, write, strict=True)
    g_slow = SlowParameters(*(r if w is None else w if r is None else r + w for r, w in pairs))
    return g_x + g_x_write, g_slow, g_eta, g_decay, g_state_in


def _attend_fwd(q, k, v, keep, state, chunk, tables, heads):
    """One strictly causal read: with the mask of the learned decay, or with the optimizer's, a sum
    over the heads of its preconditioner.
    """
    if tables is None:
        return linear_attention_chunked_fwd(q, k, v, keep, state, chunk)
    total, residuals = 0, []
    for u, w in heads:
        # out = sum_r ((q u_r) . memory) w_r: all heads read one memory of plain gradients
        (out, state_out), res = masked_attention_chunked_fwd(u * q, k, v, *tables, state, chunk)
        total = total + w * out  # (B,T,E)
        residuals.append((u, w, res))
    return (total, state_out), tuple(residuals)


def _attend_bwd(dout, dstate_out, res, optimizer):
    """The adjoint of _attend_fwd: gradients of q, k, v, keep and the state."""
    if optimizer is None:
        return linear_attention_chunked_bwd(dout, dstate_out, res)
    xp = namespace(dout)
    dq, dk, dv, dstate = 0, 0, 0, None
    for u, w, head in res:
        # forward: total += w out, out and state_out = attention(u q, k, v, state); every head
        # leaves the same state, count it once
        dq_r, dk_r, dv_r, dstate_r = masked_attention_chunked_bwd(w * dout, dstate_out, head)
        dq, dk, dv, dstate_out = dq + u * dq_r, dk + dk_r, dv + dv_r, None
        dstate = dstate_r if dstate is None else dstate + dstate_r
    return dq, dk, dv, xp.zeros((), dtype=dout.dtype, device=dout.device), dstate


def _heads(optimizer: Optimizer | None) -> tuple:
    """The heads (u, w) of each of the three reads; without a preconditioner one head that changes
    nothing.
    """
    if optimizer is None or optimizer.divisor is None:
        return (((1.0, 1.0),),) * 3
    pairs = [preconditioned_heads(divisor) for divisor in _pack(optimizer.divisor)]  # (R,K), (R,E)
    return tuple([(u[r, :], w[r, :]) for r in range(u.shape[0])] for u, w in pairs)


def _pack(state: FastParameters | None):
    """Six accumulated gradients -> the three attention states; a bias is the row of a constant key.
    Leading axes: sequences, slots.
    """
    if state is None:
        return None, None, None
    xp = namespace(*state)
    layer1 = xp.concat([state.W1, state.b1[..., None, :]], axis=-2)  # (...,D+1,F)
    layer2 = xp.concat([state.W2, state.b2[..., None, :]], axis=-2)  # (...,F+1,D)
    return layer1, layer2, xp.concat([state.gain, state.bias], axis=-1)[..., None, :]  # (...,1,2D)


def _unpack(
    layer1: Array | None, layer2: Array | None, norm: Array | None
) -> FastParameters | None:
    """The inverse of _pack."""
    if layer1 is None:
        return None
    width = layer2.shape[-1]
    return FastParameters(
        layer1[..., :-1, :],
        layer1[..., -1, :],
        layer2[..., :-1, :],
        layer2[..., -1, :],
        norm[..., 0, :width],
        norm[..., 0, width:],
    )
