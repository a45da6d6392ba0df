"""Test-time training: what TTT-Linear and TTT-MLP share. No rule of its own; the rules differ in
the network that makes z of its input.

    prediction   f(x) = x + LN(z; gain, bias)
                 without gain and bias  f(x) = z: neither LayerNorm nor residual
    loss         l = |f(k) - v|^2
    gradient     dz = LN^T(2 (f(k) - v)),  LN^T the adjoint of LayerNorm in its input;
                 from there the network's own backward pass
    update       moved_{t+1} = moved_t - step_t gradient_t,
                 the gradient at the network that the token's mini-batch began with, ``first``
    read         f(q) with the network first + factor_t moved, before (strict) or after (inclusive)
                 the update
    next         a mini-batch that is full leaves first + factor_t moved, t its last token

``factor`` belongs to the reader, ``step`` to the writer: together they are the published eta_ts. It
is one factor per token, None for 1; then first + moved is the network of a token, descending step
by step.

Token by token this is one loop for every network (``recurrent_fwd``). By whole mini-batches each
layer of a network is linear attention (``dual_layer``); how its layers follow each other is the
rule's, what happens between mini-batches is not (``dual_fwd``).

The inner gradient contains LayerNorm's backward pass, so the outer one needs the adjoint of that:
``layernorm_bwd_bwd``. In these files ``d...`` is a gradient of the inner loss and ``g_...`` one of
the outer loss. Gain and bias are slow parameters, one copy per token inside, so that their
gradients come per token, too; ``norm`` is the pair, or () to do without.

Sun et al. 2024 (arXiv 2407.04620).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ..backend import Array, Tree, device, namespace
from ..ops.common import chunk_slices, masked
from ..ops.layernorm import LayerNormResidual, layernorm_bwd, layernorm_bwd_bwd, layernorm_fwd
from ..tree import add, leaves, tree_map, zeros_like
from .common import asked_for, check_rule, outer, stack, sums, sums_bwd, unfaded

EPS = 1e-6  # LayerNorm's


class Network(NamedTuple):
    """What a rule brings: f and the gradient of the inner loss of one token, and the adjoints."""

    gradient: Callable  # state, k, v, *norm -> gradient, shaped as a state
    gradient_bwd: Callable  # g_gradient, state, k, v, *norm -> g_state, g_k, g_v, *g_norm
    read_fwd: Callable  # state, q, *norm -> f(q), residual
    read_bwd: Callable  # g_out, state, q, residual -> g_state, g_q, *g_norm


class UnderWay(NamedTuple):
    """A mini-batch that is not full yet, the state of a call that goes on with it.

    Give it for the state and get one back; give a network, and the call begins a mini-batch and
    returns the network after its last token.
    """

    first: Tree  # the network that the mini-batch began with
    moved: Tree  # -sum step gradient of its tokens so far
    place: Any  # int: how many there are; 0: a mini-batch begins. None in a gradient


class Settings(NamedTuple):
    """What is fixed about a call."""

    minibatch: int
    read: str
    eps: float
    whole: bool  # the state that goes out is a network, not UnderWay
    per_sequence: bool  # gain and bias (B,E)


class Tokens(NamedTuple):
    q: Array  # (B,T,K)
    k: Array  # (B,T,K)
    v: Array  # (B,T,E)
    step: Array  # (B,T)
    factor: Array | None  # (B,T)
    norm: tuple[Array, ...]  # (B,T,E) gain and bias per token, or ()


class TTTResidual(NamedTuple):
    q: Array  # (B,T,K)
    k: Array  # (B,T,K)
    v: Array  # (B,T,E)
    step: Array  # (B,T)
    factor: Array | None  # (B,T)
    norm: tuple[Array, ...]  # (B,T,E)
    states: tuple[Tree, Tree]  # first and moved: (B,T+1,...) of the recurrent form; (B,1,...)
    place: int  # of the state that came in; of a mini-batch 0
    settings: Settings

    @property
    def tokens(self) -> Tokens:
        """Without the states."""
        return Tokens(*self[:6])

    @property
    def read(self) -> str:
        """Strict or inclusive."""
        return self.settings.read


class DualResidual(NamedTuple):
    parts: tuple[TTTResidual, ...]  # of the mini-batches, the first maybe the rest of one
    after: tuple[Tree, ...]  # what has moved after the last token of each
    place: int  # of the state that came in
    settings: Settings


class InnerGradientResidual(NamedTuple):
    df: Array  # (...,E) 2 (f(k) - v)
    norm: LayerNormResidual | None  # None: no LayerNorm


def predict_fwd(
    x: Array, z: Array, gain: Array | None = None, bias: Array | None = None, *, eps: float = EPS,
) -> tuple[Array, LayerNormResidual | None]:  # fmt: skip
    """(...,E),(...,E),(...,E),(...,E)->(...,E)   f = x + LN(z; gain, bias), or f = z   (W.9)"""
    namespace(x, z, gain, bias)
    if gain is None:
        return z, None
    y, norm = layernorm_fwd(z, gain, bias, eps)  # (...,E)
    return x + y, norm


def predict_bwd(g_f: Array, norm: LayerNormResidual | None) -> tuple[Array, ...]:
    """Adjoint of predict_fwd.   (W.10)

    Returns g_x (None if x does not enter), g_z, and with LayerNorm g_gain, g_bias.
    """
    # forward: f = x + LN(z; gain, bias)
    return (None, g_f) if norm is None else (g_f, *layernorm_bwd(g_f, norm))


def inner_loss(
    k: Array, z: Array, v: Array, gain: Array | None = None, bias: Array | None = None, *,
    eps: float = EPS,
) -> Array:  # fmt: skip
    """(...,E),(...,E),(...,E),(...,E),(...,E)->(...)   l = |f(k) - v|^2   (W.11)"""
    f, _ = predict_fwd(k, z, gain, bias, eps=eps)  # (...,E)
    return namespace(f, v).sum((f - v) * (f - v), axis=-1)  # (...)


def inner_gradient(
    k: Array, z: Array, v: Array, gain: Array | None = None, bias: Array | None = None, *,
    eps: float = EPS,
) -> tuple[Array, InnerGradientResidual]:  # fmt: skip
    """(...,E),(...,E),(...,E),(...,E),(...,E)->(...,E)   dz = LN^T(2 (f(k) - v))   (W.11)"""
    f, norm = predict_fwd(k, z, gain, bias, eps=eps)  # (...,E)
    df = 2 * (f - v)  # (...,E)
    return predict_bwd(df, norm)[1], InnerGradientResidual(df, norm)


def inner_gradient_bwd(g_dz: Array, res: InnerGradientResidual) -> tuple[Array, ...]:
    """Adjoint of inner_gradient.   (W.12)

    Returns g_k (None if k does not enter), g_z, g_v, and with LayerNorm g_gain, g_bias.
    """
    df, norm = res
    xp = namespace(g_dz, df)
    if norm is None:
        # backward: dz = df,  df = 2 (z - v)
        return None, 2 * g_dz, -2 * g_dz
    # backward: dz = LN^T(df), which depends on df, z and gain
    none = xp.zeros_like(df)  # (...,E) inner gradients of gain and bias are not used
    g_df, g_z_twice, g_gain_twice, _ = layernorm_bwd_bwd(g_dz, none, none, df, norm)  # (...,E)
    # backward: df = 2 (f - v),  f = k + LN(z; gain, bias)
    g_k, g_z, g_gain, g_bias = predict_bwd(2 * g_df, norm)  # (...,E)
    return g_k, g_z + g_z_twice, -2 * g_df, g_gain + g_gain_twice, g_bias


def layer(x: Array, W: Array, b: Array | None) -> Array:
    """(B,...,K),(B,K,E),(B,E)->(B,...,E)
    y = x W + b, every sequence its own W and b; x is one token (B,K) or many (B,S,K)
    """
    xp, rows = namespace(x, W, b), _rows(x)
    y = xp.matmul(rows, W)  # (B,S,E)
    y = y if b is None else y + b[:, None, :]
    return xp.reshape(y, (*x.shape[:-1], W.shape[2]))  # (B,...,E)


def layer_bwd(g_y: Array, x: Array, W: Array, b: Array | None) -> tuple[Array, Array, Array | None]:
    """Adjoint of layer: g_x, g_W, g_b."""
    xp, g_rows = namespace(g_y, x, W), _rows(g_y)  # (B,S,E)
    # forward: y = x W + b
    g_x = xp.reshape(xp.matmul(g_rows, xp.matrix_transpose(W)), x.shape)  # (B,...,K)
    g_W = xp.matmul(xp.matrix_transpose(_rows(x)), g_rows)  # (B,K,E)
    return g_x, g_W, None if b is None else xp.sum(g_rows, axis=1)  # (B,E)


def layer_gradient(x: Array, dy: Array, b: Array | None) -> tuple[Array, Array | None]:
    """(B,K),(B,E),(B,E)->(B,K,E),(B,E)
    dl/dW = x^T dy, dl/db = dy for one token; of b only whether there is one
    """
    return outer(x, dy), None if b is None else dy


def layer_gradient_bwd(g_W: Array, g_b: Array | None, x: Array, dy: Array) -> tuple[Array, Array]:
    """Adjoint of layer_gradient: g_x, g_dy."""
    # forward: dW = x^T dy,  db = dy
    g_x, _, _ = layer_bwd(dy, x, g_W, None)  # (B,K) dy g_W^T
    return g_x, layer(x, g_W, g_b)  # (B,E) x g_W + g_b


def dual_layer(
    q: Array, k: Array, u: Array, W: Array, b: Array | None, read: str,
) -> tuple[Array, Array, Array | None]:  # fmt: skip
    """(B,S,K),(B,S,K),(B,S,E),(B,K,E),(B,E)->(B,S,E),(B,K,E),(B,E)   a fast layer   (W.16)

    y_t = q_t W + b + sum_s (q_t . k_s + 1) u_s: every token has changed the layer, W by k_s^T u_s
    and b by u_s, and it is never formed. Returns y, and W and b after the last token.

    With a strict read it is the fast layer of the block (``fast_layer_fwd``) whose state is W and b
    themselves, nothing faded and every step size 1. It stands here because a rule may also read
    inclusively and do without a bias.
    """
    queries, keys, fade = with_one(q, b), with_one(k, b), unfaded(q.shape[1], q)
    y, S = sums(queries, keys, u, fade, packed(W, b), read)  # (B,S,E), (B,K+1,E)
    return y, *unpacked(S, b)


def dual_layer_bwd(
    g_y: Array, g_after: tuple | None, q: Array, k: Array, u: Array, W: Array, b: Array | None,
    read: str,
) -> tuple:  # fmt: skip
    """Adjoint of dual_layer: g_q, g_k, g_u, g_W, g_b.   (W.17)

    ``g_after``: the gradients of W and b after the last token, None for 0.
    """
    queries, keys, fade = with_one(q, b), with_one(k, b), unfaded(q.shape[1], q)
    g_S, width = None if g_after is None else packed(*g_after), q.shape[2]  # (B,K+1,E)
    # forward: y, S = sums([q, 1], [k, 1], u)
    gradients = sums_bwd(g_y, g_S, queries, keys, u, fade, packed(W, b), read)
    g_q, g_k, g_u, _, g_S = gradients  # (B,S,K+1), (B,S,K+1), (B,S,E), (B,K+1,E)
    # without the channel of ones, which is no input
    return g_q[:, :, :width], g_k[:, :, :width], g_u, *unpacked(g_S, b)


def fast_read(
    q: Array, k: Array, u: Array, layer_first: tuple, layer_moved: tuple, factor: Array | None,
    read: str,
) -> tuple[Array, Array, tuple]:  # fmt: skip
    """(B,S,K),(B,S,K),(B,S,E),((B,K,E),(B,E)),((B,K,E),(B,E)),(B,S)->(B,S,E)
    z_t = q_t W + b + factor_t y_t, y the dual layer of what has moved   (W.16)

    Returns z, y, and what has moved after the last token.
    """
    y, *moved = dual_layer(q, k, u, *layer_moved, read)  # (B,S,E)
    z = layer(q, *layer_first)  # (B,S,E)
    return z + (y if factor is None else factor[:, :, None] * y), y, tuple(moved)


def fast_read_bwd(
    g_z: Array, g_after: tuple, q: Array, k: Array, u: Array, layer_first: tuple,
    layer_moved: tuple, factor: Array | None, read: str, y: Array,
) -> tuple:  # fmt: skip
    """Adjoint of fast_read: g_q, g_k, g_u, g_first, g_moved, g_factor.   (W.17)"""
    xp = namespace(g_z, y)
    # forward: z = layer(q, first) + factor y
    g_q, *g_first = layer_bwd(g_z, q, *layer_first)  # (B,S,K)
    g_y = g_z if factor is None else factor[:, :, None] * g_z  # (B,S,E)
    g_factor = None if factor is None else xp.sum(g_z * y, axis=-1)  # (B,S)
    # forward: y, *moved = dual_layer(q, k, u, *moved)
    gradients = dual_layer_bwd(g_y, g_after, q, k, u, *layer_moved, read)
    g_q_dual, g_k, g_u, *g_moved = gradients
    return g_q + g_q_dual, g_k, g_u, tuple(g_first), tuple(g_moved), g_factor


def state_at(states: Tree, t: int) -> Tree:
    """(B,S,...)->(B,...)   one of the states of a residual"""
    return tree_map(lambda a: a[:, t, ...], states)


def descend(state: Tree, rate: Array, gradient: Tree) -> Tree:
    """state - rate * gradient for every parameter (B,...), the rate (B) one number per sequence"""
    return tree_map(lambda p, d: p - _broad(rate, p) * d, state, gradient)


def descend_bwd(g_state: Tree, rate: Array, gradient: Tree) -> tuple[Array, Tree]:
    """Adjoint of descend with respect to rate (B) and gradient; the state's is g_state itself."""
    # forward: state - rate * gradient
    return -_inner(g_state, gradient), tree_map(lambda g: -_broad(rate, g) * g, g_state)


def moved_by(first: Tree, factor: Array | None, moved: Tree) -> Tree:
    """first + factor * moved, the factor (B) or None for 1: the network that a token reads"""
    return add(first, moved) if factor is None else descend(first, -factor, moved)


def moved_by_bwd(g_network: Tree, factor: Array | None, moved: Tree) -> tuple[Tree, Array | None]:
    """Adjoint of moved_by: g_moved and g_factor; g_first is g_network itself."""
    if factor is None:
        return g_network, None
    # forward: first + factor * moved
    return tree_map(lambda g: _broad(factor, g) * g, g_network), _inner(g_network, moved)


def recurrent_fwd(
    network: Network, tokens: Tokens, state: UnderWay, settings: Settings
) -> tuple[tuple, TTTResidual]:
    """moved_{t+1} = moved_t - step_t dl_t/dfirst, read first + factor_t moved   (W.14), (W.20)"""
    first, moved, place = state
    q, k, v, step, factor, norm = tokens
    states, outs = [(first, moved)], []
    for t in range(q.shape[1]):
        norm_t, factor_t = [p[:, t, :] for p in norm], _at(factor, t)  # (B,E), (B,)
        gradient = network.gradient(first, k[:, t, :], v[:, t, :], *norm_t, eps=settings.eps)
        after = descend(moved, step[:, t], gradient)
        seen = moved_by(first, factor_t, moved if settings.read == "strict" else after)
        out, _ = network.read_fwd(seen, q[:, t, :], *norm_t, eps=settings.eps)  # (B,E)
        outs.append(out)
        moved = after
        if _ends(t, place, q.shape[1], settings):
            first, moved = moved_by(first, factor_t, moved), zeros_like(moved)
        states.append((first, moved))
    stacked = tree_map(lambda *parts: namespace(*parts).stack(parts, axis=1), *states)
    res = TTTResidual(*tokens, stacked, place, settings)
    return (stack(outs, v), _state_out(first, moved, place + q.shape[1], settings)), res


def recurrent_bwd(
    network: Network, g_out: Array, g_state_out: Tree | None, res: TTTResidual
) -> tuple:
    """Adjoint of recurrent_fwd: backpropagation through time.   (W.15), (W.21)

    Returns g_q, g_k, g_v, g_step, with a factor g_factor, g_gain, g_bias, g_state.
    """
    g_first, g_moved = _state_gradient(g_state_out, state_at(res.states, 0)[0], res.settings)
    asked = asked_for(g_out, (g_first, g_moved), res)
    q, k, v, step, factor, norm, states, place, settings = asked
    namespace(g_out, q)
    g_qs, g_ks, g_vs, g_steps, g_factors, g_norms = [], [], [], [], [], []
    for t in reversed(range(q.shape[1])):
        first, moved = state_at(states, t)
        norm_t, factor_t = [p[:, t, :] for p in norm], _at(factor, t)
        token = first, k[:, t, :], v[:, t, :], *norm_t
        gradient = network.gradient(*token, eps=settings.eps)
        after, g_factor = descend(moved, step[:, t], gradient), None
        if _ends(t, place, q.shape[1], settings):
            # forward: first', moved' = first + factor * after, 0
            g_moved, g_factor = moved_by_bwd(g_first, factor_t, after)
        # forward: out = f(q) with the network that is read, first + factor * moved
        seen_moved = moved if settings.read == "strict" else after
        seen = moved_by(first, factor_t, seen_moved)
        _, head = network.read_fwd(seen, q[:, t, :], *norm_t, eps=settings.eps)
        g_seen, g_q, *g_norm_read = network.read_bwd(g_out[:, t, :], seen, q[:, t, :], head)
        g_first = add(g_first, g_seen)
        g_seen_moved, g_factor_read = moved_by_bwd(g_seen, factor_t, seen_moved)
        g_factors.append(g_factor_read if g_factor is None else g_factor + g_factor_read)
        if settings.read == "inclusive":
            g_moved = add(g_moved, g_seen_moved)
        # forward: after = moved - step * gradient
        g_step, g_gradient = descend_bwd(g_moved, step[:, t], gradient)  # (B,)
        if settings.read == "strict":
            g_moved = add(g_moved, g_seen_moved)
        # forward: gradient = network.gradient(first, k, v)
        g_through, g_k, g_v, *g_norm = network.gradient_bwd(g_gradient, *token, eps=settings.eps)
        g_first = add(g_first, g_through)
        g_qs.append(g_q)
        g_ks.append(g_k)
        g_vs.append(g_v)
        g_steps.append(g_step)
        g_norms.append([a + b for a, b in zip(g_norm, g_norm_read, strict=True)])
    rows = [(g_qs, q), (g_ks, k), (g_vs, v), (g_steps, step)]
    rows += [] if factor is None else [(g_factors, factor)]
    g_tokens = (stack(found[::-1], like) for found, like in rows)
    columns = ([found[i] for found in g_norms[::-1]] for i in range(len(norm)))
    g_norm = tuple(stack(found, p) for found, p in zip(columns, norm, strict=True))  # (B,T,E)
    return *g_tokens, *per_token_bwd(g_norm, settings), _as_given(g_first, g_moved, settings)


def dual_fwd(
    batch_fwd: Callable, tokens: Tokens, state: UnderWay, settings: Settings
) -> tuple[tuple, DualResidual]:
    """``batch_fwd(tokens, first, moved, settings) -> out, moved`` on one mini-batch, or what is
    left of it, after the other: between them, first' = first + factor moved   (W.16), (W.22)
    """
    (first, moved, place), outs, parts, afters = state, [], [], []
    for part in _mini_batches(tokens.q.shape[1], place, settings.minibatch):
        own = tree_map(lambda a: a[:, None, ...], (first, moved))  # (B,1,...)
        res = TTTResidual(*_cut(tokens, part), own, 0, settings)
        out, moved = batch_fwd(res.tokens, first, moved, settings)
        outs.append(out)  # (B,S,E)
        parts.append(res)
        afters.append(moved)
        if part.stop > part.start and _ends(part.stop - 1, place, tokens.q.shape[1], settings):
            factor = _at(tokens.factor, part.stop - 1)  # (B,)
            first, moved = moved_by(first, factor, moved), zeros_like(moved)
    state_out = _state_out(first, moved, place + tokens.q.shape[1], settings)
    out = namespace(*outs).concat(outs, axis=1)  # (B,T,E)
    return (out, state_out), DualResidual(tuple(parts), tuple(afters), place, settings)


def dual_bwd(
    batch_bwd: Callable, g_out: Array, g_state_out: Tree | None, res: DualResidual
) -> tuple:
    """Adjoint of dual_fwd.   (W.17), (W.23)

    From ``batch_bwd(g_out, g_moved, *what batch_fwd takes) -> g_tokens, g_first, g_moved``.
    """
    parts, afters, place, settings = res
    xp, length, pieces = namespace(g_out), g_out.shape[1], []
    g_state = _state_gradient(g_state_out, state_at(parts[0].states, 0)[0], settings)
    g_first, g_moved = g_state
    slices = _mini_batches(length, place, settings.minibatch)
    for part, own, after in reversed(list(zip(slices, parts, afters, strict=True))):
        g_factor, asked = None, asked_for(g_out[:, part, :], (g_first, g_moved), own)
        if part.stop > part.start and _ends(part.stop - 1, place, length, settings):
            # forward: first', moved' = first + factor * after, 0
            g_moved, g_factor = moved_by_bwd(g_first, _at(asked.factor, -1), after)
        states = state_at(asked.states, 0)
        g_tokens, g_through, g_moved = batch_bwd(
            g_out[:, part, :], g_moved, asked.tokens, *states, settings
        )
        g_first = add(g_first, g_through)
        if g_factor is not None:
            last = xp.concat([xp.zeros_like(g_tokens.factor[:, 1:]), g_factor[:, None]], axis=1)
            g_tokens = g_tokens._replace(factor=g_tokens.factor + last)
        pieces.append(g_tokens)
    g = tree_map(lambda *rows: xp.concat(list(rows), axis=1), *pieces[::-1])
    factor = () if g.factor is None else (g.factor,)
    g_norm = per_token_bwd(g.norm, settings)
    return g.q, g.k, g.v, g.step, *factor, *g_norm, _as_given(g_first, g_moved, settings)


def check_ttt(
    read: str, minibatch: int, q: Array, k: Array, v: Array, step: Array, factor: Array | None,
    gain: Array | None, bias: Array | None, state: Tree,
) -> None:  # fmt: skip
    """What both rules rely on, beside the shapes of their states."""
    if minibatch < 1:
        raise ValueError(f"a mini-batch must hold at least 1 token, got {minibatch}")
    if isinstance(state, UnderWay) and not 0 <= state.place < minibatch:
        raise ValueError(
            f"state.place counts the tokens of a mini-batch of {minibatch} that are over: from 0 "
            f"to {minibatch - 1}, got {state.place}; a full one begins the next at 0"
        )
    if (gain is None) != (bias is None):
        raise ValueError(
            "LayerNorm needs a gain and a bias, got only one of them: pass both, or None for both "
            "to do without LayerNorm"
        )
    width = "K" if gain is None else "E"  # x + LN(z): the network's input is as wide as its output
    tokens = {"q": (q, f"BT{width}"), "k": (k, f"BT{width}"), "v": (v, "BTE"), "step": (step, "BT")}
    shared = "E" if gain is None or gain.ndim == 1 else "BE"
    check_rule(read, **tokens, factor=(factor, "BT"), gain=(gain, shared), bias=(bias, shared))


def call(
    q: Array, k: Array, v: Array, step: Array, factor: Array | None, gain: Array | None,
    bias: Array | None, state: Tree, minibatch: int, read: str, eps: float,
) -> tuple[Tokens, UnderWay, Settings]:  # fmt: skip
    """The arguments of a rule, checked: tokens, the state under way, what is fixed."""
    whole = not isinstance(state, UnderWay)
    under_way = UnderWay(state, zeros_like(state), 0) if whole else state
    norm = per_token(gain, bias, v)
    per_sequence = gain is not None and gain.ndim == 2
    settings = Settings(minibatch, read, eps, whole, per_sequence)
    return Tokens(q, k, v, step, factor, norm), under_way, settings


def networks(state: Tree | None) -> tuple[Tree, ...]:
    """The networks in a state: itself, or first and moved of one under way; none of None"""
    if state is None:
        return ()
    return (state.first, state.moved) if isinstance(state, UnderWay) else (state,)


def per_token(gain: Array | None, bias: Array | None, v: Array) -> tuple[Array, ...]:
    """(E) or (B,E),(E) or (B,E),(B,T,E)->(B,T,E),(B,T,E)
    a copy of gain and bias for every token; () if there are none
    """
    if gain is None or bias is None:
        return ()
    rows = (p if p.ndim == 1 else p[:, None, :] for p in (gain, bias))
    return tuple(namespace(p, v).broadcast_to(p, v.shape) for p in rows)


def per_token_bwd(
    g_norm: tuple[Array, ...], settings: Settings
) -> tuple[Array | None, Array | None]:
    """Adjoint of per_token: g_gain, g_bias."""
    axis = 1 if settings.per_sequence else (0, 1)
    return tuple(namespace(g).sum(g, axis=axis) for g in g_norm) or (None, None)  # (E,)


def _ends(t: int, place: int, length: int, settings: Settings) -> bool:
    """Whether what has moved joins the network after token t: its mini-batch is full, or it is the
    last token and a network is asked for.
    """
    return (place + t + 1) % settings.minibatch == 0 or (settings.whole and t == length - 1)


def _mini_batches(length: int, place: int, minibatch: int) -> list[slice]:
    """The rest of the mini-batch under way, then whole ones; at least one slice, also if T = 0"""
    stop = min(minibatch - place, length)
    rest = chunk_slices(length - stop, minibatch) if length > stop else []
    return [slice(0, stop), *(slice(stop + s.start, stop + s.stop) for s in rest)]


def _state_out(first: Tree, moved: Tree, tokens: int, settings: Settings) -> Tree:
    """The network, or what a call goes on with."""
    return first if settings.whole else UnderWay(first, moved, tokens % settings.minibatch)


def _state_gradient(g_state: Tree | None, like: Tree, settings: Settings) -> tuple[Tree, Tree]:
    """g_first and g_moved of the state that goes out"""
    empty = zeros_like(like)
    if g_state is None:
        return empty, empty
    return (g_state, empty) if settings.whole else (g_state.first, g_state.moved)


def _as_given(g_first: Tree, g_moved: Tree, settings: Settings) -> Tree:
    """A gradient has the type of the state that came in; a place has none."""
    return g_first if settings.whole else UnderWay(g_first, g_moved, None)


def _cut(tokens: Tokens, part: slice) -> Tokens:
    return tree_map(lambda a: a[:, part, ...], tokens)


def _at(factor: Array | None, t: int) -> Array | None:
    return None if factor is None else factor[:, t]


def _inner(a: Tree, b: Tree) -> Array:
    """(B)   the inner product of two trees (B,...) for every sequence; where ``a`` is 0, 0"""
    pairs = [(x, masked(x * y, x != 0)) for x, y in zip(leaves(a), leaves(b), strict=True)]
    return sum(namespace(x).sum(xy, axis=tuple(range(1, x.ndim))) for x, xy in pairs)


def _rows(x: Array) -> Array:
    """(B,K) or (B,S,K) -> (B,S,K)"""
    return x[:, None, :] if x.ndim == 2 else x


def packed(W: Array, b: Array | None) -> Array:
    """(B,K,E),(B,E)->(B,K+1,E)   a bias is a weight whose input is 1"""
    return W if b is None else namespace(W, b).concat([W, b[:, None, :]], axis=1)


def unpacked(S: Array, b: Array | None) -> tuple[Array, Array | None]:
    """The inverse of packed; of b only whether there is one."""
    return (S, None) if b is None else (S[:, :-1, :], S[:, -1, :])


def with_one(x: Array, b: Array | None) -> Array:
    """(B,S,K)->(B,S,K+1)   the input of a packed layer"""
    xp = namespace(x)
    if b is None:
        return x
    return xp.concat([x, xp.ones((*x.shape[:2], 1), dtype=x.dtype, device=device(x))], axis=2)


def _broad(rate: Array, like: Array) -> Array:
    """(B)->(B,1,...)   with as many axes as a parameter has"""
    return namespace(rate).reshape(rate, (rate.shape[0],) + (1,) * (like.ndim - 1))
