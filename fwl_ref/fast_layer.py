"""A dense layer that every past token has changed, and that is never formed.

    W_t = W - eta_W sum_{s<t} M_ts k_s^T v_s        b_t = b - eta_b sum_{s<t} M_ts v_s

    q_t W_t + b_t = q_t W + b - o_t         o_t = sum_{s<t} M_ts (eta_W q_t . k_s + eta_b) v_s

The gradient of a weight is an outer product: of a token's input, the key k_s, and of the gradient
of its output, the value v_s. So the correction o is linear attention. A bias is a weight whose
input is 1: the bracket is [eta_W q_t, eta_b] . [k_s, 1], and one attention serves both. Gain and
bias of LayerNorm are sums of the past without any query, ``past_sums_fwd``.

The mask M is one value, ``Past``: that of the learned decay, M_ts = keep^(t-s-1), or that of an
optimizer. A state is the sum over earlier tokens, one gradient for the weight and one for the
bias. Step sizes sit in the queries and do not enter it.
"""

from __future__ import annotations

from typing import NamedTuple

from .backend import Array, device, namespace
from .ops.linear_attention import (
    PastSumResidual,
    linear_attention_chunked_bwd,
    linear_attention_chunked_fwd,
    past_sum_bwd,
    past_sum_fwd,
)
from .ops.masked_attention import masked_attention_chunked_bwd, masked_attention_chunked_fwd
from .optimizers import Optimizer, preconditioned_heads, system

Pair = tuple[Array, Array]  # what belongs to a weight and its bias, or to a gain and its bias


class Past(NamedTuple):
    """The mask M of a read: how strongly a token reads each token before it."""

    keep: Array  # () 1 - lambda, what one token leaves of the memory; used only without tables
    chunk: int | None = None  # tokens per chunk of the attention; None = one chunk
    carry: bool = True  # whether the state after the last token is wanted
    tables: tuple[Array, Array, Array] | None = None  # an optimizer's keep, write, read
    heads: tuple = ((1.0, 1.0),)  # (u, w) of each head of its preconditioner, (K,) and (E,)
    seen: int | None = None  # tokens that the optimizer has seen when the window ends


class PastAttentionResidual(NamedTuple):
    past: Past
    attention: tuple  # of linear attention or, with an optimizer, of masked attention per head


PastSumsResidual = PastSumResidual | PastAttentionResidual  # the latter with an optimizer


class FastLayerResidual(NamedTuple):
    query: Array  # (B,T,K)
    eta_W: Array  # ()
    attention: PastAttentionResidual


class FastLayerGradient(NamedTuple):
    """Of everything that a fast layer is given; ``eta`` and ``state`` are weight and bias."""

    query: Array  # (B,T,K)
    key: Array  # (B,T,K)
    value: Array  # (B,T,E)
    eta: Pair  # (), ()
    keep: Array  # () 0 with an optimizer
    state: Pair | None  # None if none came in


def decays(decay: Array) -> tuple[Array, Array, Array]:
    """() or (3,)->(),(),()   of the first layer, of the second, of the sums"""
    return (decay[0], decay[1], decay[2]) if decay.ndim else (decay, decay, decay)


def pasts(
    x: Array,
    decay: Array,
    chunk: int | None,
    optimizer: Optimizer | None,
    token: int,
    carry: bool = True,
) -> tuple[Past, ...]:
    """The masks of the two dense layers and of the sums, for the window x that begins at ``token``.

    It is one mask, unless the decay (3,) has an entry for each. A preconditioner has other heads
    for each of the three.
    """
    if decay.ndim:
        return tuple(Past(1 - one, chunk, carry) for one in decays(decay))
    past = Past(1 - decay, chunk, carry)
    if optimizer is None:
        return past, past, past
    length = x.shape[1]
    tables = system(optimizer, token, length, x)  # (T,N,N), (T,N), (T,N)
    past = past._replace(tables=tables, seen=token + length)
    if optimizer.divisor is None:
        return past, past, past
    W1, b1, W2, b2, gain, bias = optimizer.divisor
    divisors = (_stacked((W1, b1)), _stacked((W2, b2)), _abreast((gain, bias)))
    return tuple(past._replace(heads=_heads(divisor)) for divisor in divisors)


def pasts_bwd(g_keeps: tuple[Array, Array, Array], decay: Array) -> Array:
    """Adjoint of pasts by the decay, as the decay: () if it was shared, or (3,)."""
    # forward: keep = 1 - decay
    if decay.ndim:
        return -namespace(decay).stack(list(g_keeps))
    first, second, third = g_keeps
    return -(first + second + third)


def fast_layer_fwd(
    query: Array,
    key: Array,
    value: Array,
    eta_W: Array,
    eta_b: Array,
    past: Past,
    state: Pair | None = None,
) -> tuple[tuple[Array, Pair | None], FastLayerResidual]:
    """(B,T,K),(B,T,K),(B,T,E),(),()->(B,T,E),state   what the past takes off a dense layer   (F.10)

    ``state``: (B,K,E), (B,E), with an optimizer (B,N,K,E), (B,N,E) for its N slots; None = empty.
    """
    xp = namespace(query, key, value, eta_W, eta_b)
    one = xp.ones_like(query[..., :1])  # (B,T,1) the input of a bias
    q = xp.concat([eta_W * query, eta_b * one], axis=-1)  # (B,T,K+1)
    k = xp.concat([key, one], axis=-1)  # (B,T,K+1)
    (out, S), attention = past_attention_fwd(q, k, value, past, _stacked(state))  # (B,T,E)
    return (out, _unstacked(S)), FastLayerResidual(query, eta_W, attention)


def fast_layer_bwd(g_out: Array, g_state: Pair | None, res: FastLayerResidual) -> FastLayerGradient:
    """Adjoint of fast_layer_fwd; ``g_state`` None if the final state was not used.   (F.11)"""
    xp = namespace(g_out)
    # forward: out, S = attention(q, k, value)
    g_q, g_k, g_value, g_keep, g_S = past_attention_bwd(g_out, _stacked(g_state), res.attention)
    # forward: k = [key, 1]
    g_key = g_k[..., :-1]  # (B,T,K)
    # forward: q = [eta_W query, eta_b]
    g_query = res.eta_W * g_q[..., :-1]  # (B,T,K)
    g_eta = xp.sum(g_q[..., :-1] * res.query), xp.sum(g_q[..., -1:])  # (), ()
    return FastLayerGradient(g_query, g_key, g_value, g_eta, g_keep, _unstacked(g_S))


def past_sums_fwd(
    dgain: Array, dbias: Array, past: Past, state: Pair | None = None
) -> tuple[tuple[Array, Array, Pair | None], PastSumsResidual]:
    """(B,T,D),(B,T,D)->(B,T,D),(B,T,D),state   sums over the tokens before: q = k = 1   (F.14)

    ``state``: (B,D), (B,D), with an optimizer (B,N,D), (B,N,D); None = empty.
    """
    xp = namespace(dgain, dbias)
    value = xp.concat([dgain, dbias], axis=-1)  # (B,T,2D) one call for both
    if past.tables is None:
        (sums, s), summed = past_sum_fwd(value, past.keep, _beside(state))  # (B,T,2D)
        return (*_halves(sums), _halves(s)), summed
    one = xp.ones_like(dgain[..., :1])  # (B,T,1)
    (sums, S), attention = past_attention_fwd(one, one, value, past, _abreast(state))  # (B,T,2D)
    return (*_halves(sums), _apart(S)), attention


def past_sums_bwd(
    g_gain: Array, g_bias: Array, g_state: Pair | None, res: PastSumsResidual
) -> tuple[Array, ...]:
    """Adjoint of past_sums_fwd: g_dgain, g_dbias, g_keep, g_state.   (F.15)"""
    xp = namespace(g_gain, g_bias)
    # forward: sums, S = attention(1, 1, [dgain, dbias])
    g_sums = xp.concat([g_gain, g_bias], axis=-1)  # (B,T,2D)
    if isinstance(res, PastSumResidual):
        g_value, g_keep, g_s = past_sum_bwd(g_sums, _beside(g_state), res)  # (B,T,2D)
        return *_halves(g_value), g_keep, None if g_s is None else _halves(g_s)
    _, _, g_value, g_keep, g_S = past_attention_bwd(g_sums, _abreast(g_state), res)  # (B,T,2D)
    return *_halves(g_value), g_keep, _apart(g_S)


def past_attention_fwd(
    q: Array, k: Array, v: Array, past: Past, state: Array | None
) -> tuple[tuple[Array, Array], PastAttentionResidual]:
    """(B,T,K),(B,T,K),(B,T,E),(B,K,E)->(B,T,E),(B,K,E)   one read of the past, by its mask

    With an optimizer it is the sum over the heads of its preconditioner, and a state has its slots.
    """
    if past.tables is None:
        read, res = linear_attention_chunked_fwd(q, k, v, past.keep, state, past.chunk, past.carry)
        return read, PastAttentionResidual(past, res)
    total, residuals = 0, []
    for u, w in past.heads:
        # out = sum_r ((q u_r) . memory) w_r: all heads read one memory of plain gradients
        one = masked_attention_chunked_fwd(u * q, k, v, *past.tables, state, past.chunk)
        (out, state_out), head = one
        total = total + w * out  # (B,T,E)
        residuals.append(head)
    return (total, state_out), PastAttentionResidual(past, tuple(residuals))


def past_attention_bwd(
    dout: Array, dstate_out: Array | None, res: PastAttentionResidual
) -> tuple[Array, ...]:
    """Adjoint of past_attention_fwd: gradients of q, k, v, keep and the state."""
    past, attention = res
    if past.tables is None:
        return linear_attention_chunked_bwd(dout, dstate_out, attention)
    xp = namespace(dout)
    dq, dk, dv, dstate = 0, 0, 0, None
    for (u, w), head in zip(past.heads, attention, strict=True):
        # forward: total += w out,  out, state_out = attention(u q, k, v, state)
        dq_r, dk_r, dv_r, dstate_r = masked_attention_chunked_bwd(w * dout, dstate_out, head)
        dq, dk, dv = dq + u * dq_r, dk + dk_r, dv + dv_r
        dstate = dstate_r if dstate is None else dstate + dstate_r
        dstate_out = None  # every head leaves the same state: count it once
    return dq, dk, dv, xp.zeros((), dtype=dout.dtype, device=device(dout)), dstate


def _heads(divisor: Array) -> tuple[Pair, ...]:
    """(K,E)->(K),(E) for each head"""
    u, w = preconditioned_heads(divisor)  # (R,K), (R,E)
    return tuple((u[r, :], w[r, :]) for r in range(u.shape[0]))


# A pair as the memory of an attention, and back; None stays None
# --------------------------------------------------------------------------------------------------


def _stacked(pair: Pair | None) -> Array | None:
    """(...,K,E),(...,E)->(...,K+1,E)   the bias is the row of the constant key"""
    if pair is None:
        return None
    W, b = pair
    return namespace(W, b).concat([W, b[..., None, :]], axis=-2)


def _unstacked(S: Array | None) -> Pair | None:
    """(...,K+1,E)->(...,K,E),(...,E)"""
    return None if S is None else (S[..., :-1, :], S[..., -1, :])


def _beside(pair: Pair | None) -> Array | None:
    """(...,D),(...,D)->(...,2D)"""
    return None if pair is None else namespace(*pair).concat(list(pair), axis=-1)


def _abreast(pair: Pair | None) -> Array | None:
    """(...,D),(...,D)->(...,1,2D)   the constant key has one row"""
    both = _beside(pair)  # (...,2D)
    return None if both is None else both[..., None, :]


def _apart(S: Array | None) -> Pair | None:
    """(...,1,2D)->(...,D),(...,D)"""
    return None if S is None else _halves(S[..., 0, :])


def _halves(x: Array) -> Pair:
    """(...,2D)->(...,D),(...,D)"""
    width = x.shape[-1] // 2
    return x[..., :width], x[..., width:]
