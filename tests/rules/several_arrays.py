"""The rules whose state is several arrays: Titans (M, U), TTT (a network), Mesa (G, H).

Two things do not fit a row and are tested in the files of these rules instead. Slow parameters that
all tokens share (LayerNorm's gain and bias, the ridge) have no time axis: a row fixes them. And
a mini-batch, TTT's or the chunk of Titans with rates per chunk, is part of the function, so a
sequence may be cut anywhere only if it holds one token: rows have mini-batches of 1, and each form
of TTT is a row of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fwl_ref.backend import like
from fwl_ref.rules import mesa, titans, titans_mlp, titans_per_chunk, ttt_linear, ttt_mlp
from fwl_ref.rules.mesa import MesaState
from fwl_ref.rules.titans import TitansState
from fwl_ref.rules.titans_mlp import TitansMLPState
from fwl_ref.rules.ttt_linear import TTTLinearState
from fwl_ref.rules.ttt_mlp import TTTMLPState
from tests.rules.table import Rule, Shape, memory, rates, unit_keys
from tests.strategies import generator

HIDDEN = 3  # F of the TTT-MLP
EPS = 1.0  # LayerNorm of one to three channels is nearly a step function with the usual 1e-6, and finite differences need smoothness


def sequences(n: Shape, seed: int) -> tuple:
    """q, k, v."""
    draw = generator(seed)
    return (draw(n.batch, n.length, n.width), unit_keys(draw, n.batch, n.length, n.width), draw(n.batch, n.length, n.values))


def square(n: Shape) -> Shape:
    """Keys as wide as values, for x + LN(z)."""
    return n._replace(width=n.values)


def token(n: Shape, seed: int) -> tuple:
    """k and v of one token per sequence."""
    draw = generator(seed + 4)
    return unit_keys(draw, n.batch, n.width), draw(n.batch, n.values)


# Titans
# ----------------------------------------------------------------------------------------------------------------------


def titans_tokens(n: Shape, seed: int) -> tuple:
    per_token = n.batch, n.length
    return (*sequences(n, seed), rates(seed, 0, 0.8, *per_token), rates(seed + 1, 0, 0.5, *per_token), rates(seed + 2, 0.1, 1, *per_token))


def titans_state(n: Shape, seed: int) -> TitansState:
    return TitansState(memory(n, seed), memory(n, seed + 1))


TITANS = Rule(
    "titans",
    titans.titans_loss,
    titans.titans_gradient,
    (titans.titans_recurrent_fwd, titans.titans_recurrent_bwd),
    (titans.titans_chunked_fwd, titans.titans_chunked_bwd),
    titans_tokens,
    titans_state,
    lambda n, seed: (memory(n, seed), *token(n, seed)),
)


def alone(fwd: Callable, bwd: Callable) -> tuple[Callable, Callable]:
    """A form of Titans with rates per chunk, chunks of one token."""

    def per_chunk_fwd(q: Any, k: Any, v: Any, momentum: Any, decay: Any, step: Any, state: Any, *chunk: Any, read: str) -> tuple:
        return fwd(q, k, v, momentum, decay, step, state, *chunk, minibatch=1, read=read)

    return per_chunk_fwd, bwd


TITANS_PER_CHUNK = Rule(
    "titans_per_chunk",
    titans_per_chunk.titans_per_chunk_loss,
    titans_per_chunk.titans_per_chunk_gradient,
    alone(titans_per_chunk.titans_per_chunk_recurrent_fwd, titans_per_chunk.titans_per_chunk_recurrent_bwd),
    alone(titans_per_chunk.titans_per_chunk_chunked_fwd, titans_per_chunk.titans_per_chunk_chunked_bwd),
    titans_tokens,
    titans_state,
    lambda n, seed: (memory(n, seed), *token(n, seed)),
)


# Test-time training
# ----------------------------------------------------------------------------------------------------------


def gain_and_bias(width: int) -> tuple[np.ndarray, np.ndarray]:
    channel = np.arange(width)
    return 1 + 0.3 * np.cos(channel), 0.3 * np.sin(1 + channel)


def linear_state(n: Shape, seed: int) -> TTTLinearState:
    draw = generator(seed + 2)
    return TTTLinearState(draw(n.batch, n.width, n.values), draw(n.batch, n.values))


def mlp_state(n: Shape, seed: int) -> TTTMLPState:
    draw = generator(seed + 2)
    sizes = (n.width, HIDDEN), (HIDDEN,), (HIDDEN, n.values), (n.values,)
    return TTTMLPState(*(draw(n.batch, *size, scale=0.6) for size in sizes))


def ttt_tokens(n: Shape, seed: int) -> tuple:
    return *sequences(n, seed), rates(seed, 0.02, 0.1, n.batch, n.length)


def fixed(fwd: Callable, bwd: Callable, norm: bool, minibatch: int = 1, rates: int = 1) -> tuple[Callable, Callable]:
    """A form of TTT or of Titans with an MLP with a fixed mini-batch, as a function of tokens and state."""

    def called_fwd(q: Any, k: Any, v: Any, rate: Any, *rest: Any, read: str) -> tuple:
        shared = (like(p, v, v.dtype) for p in gain_and_bias(v.shape[-1])) if norm else (None, None)
        *more, state = rest
        return fwd(q, k, v, rate, *more, *shared, state, minibatch=minibatch, read=read, eps=EPS)

    def ttt_fwd(q: Any, k: Any, v: Any, step: Any, state: Any, *, read: str) -> tuple:
        return called_fwd(q, k, v, step, state, read=read)

    def titans_fwd(q: Any, k: Any, v: Any, momentum: Any, decay: Any, step: Any, state: Any, *, read: str) -> tuple:
        return called_fwd(q, k, v, momentum, decay, step, state, read=read)

    def called_bwd(g_out: Any, g_state: Any, res: Any) -> tuple:
        *g_tokens, g_gain, g_bias, g_state = bwd(g_out, g_state, res)
        assert (g_gain is not None) == (g_bias is not None) == norm
        return *g_tokens, g_state

    return ttt_fwd if rates == 1 else titans_fwd, called_bwd


def ttt_rows(module: Any, state: Callable, norm: bool) -> list[Rule]:
    name = module.__name__.rsplit(".", 1)[-1]
    loss, gradient, rf, rb, df, db = (
        getattr(module, f"{name}_{suffix}") for suffix in ("loss", "gradient", "recurrent_fwd", "recurrent_bwd", "dual_fwd", "dual_bwd")
    )
    shape = square if norm else lambda n: n

    def inner(n: Shape, seed: int) -> tuple:
        return (state(shape(n), seed), *token(shape(n), seed), *(gain_and_bias(n.values) if norm else ()))

    def row(form: str, fwd: Callable, bwd: Callable) -> Rule:
        return Rule(
            f"{name}, {'LayerNorm' if norm else 'identity'}, {form}",
            loss,
            gradient,
            fixed(fwd, bwd, norm),
            None,
            lambda n, seed: ttt_tokens(shape(n), seed),
            lambda n, seed: state(shape(n), seed),
            inner,
            starts_empty=module is ttt_linear and not norm,
        )

    return [row("token by token", rf, rb), row("dual", df, db)] if norm else [row("dual", df, db)]


def titans_mlp_state(n: Shape, seed: int) -> TitansMLPState:
    U = mlp_state(n, seed + 1)
    return TitansMLPState(mlp_state(n, seed), TTTMLPState(*(0.3 * p for p in U)))


def titans_mlp_tokens(n: Shape, seed: int) -> tuple:
    per_token = n.batch, n.length
    heavy = rates(seed, 0, 0.8, *per_token), rates(seed + 1, 0, 0.5, *per_token)
    return *sequences(n, seed), *heavy, rates(seed + 2, 0.02, 0.1, *per_token)


def titans_mlp_row(form: str, fwd: Callable, bwd: Callable) -> Rule:
    return Rule(
        f"titans_mlp, LayerNorm, {form}",
        titans_mlp.titans_mlp_loss,
        titans_mlp.titans_mlp_gradient,
        fixed(fwd, bwd, True, rates=3),
        None,
        lambda n, seed: titans_mlp_tokens(square(n), seed),
        lambda n, seed: titans_mlp_state(square(n), seed),
        lambda n, seed: (mlp_state(square(n), seed), *token(square(n), seed), *gain_and_bias(n.values)),
        starts_empty=False,
    )


# Mesa
# ------------------------------------------------------------------------------------------------------------------------


def ridge(width: int) -> np.ndarray:
    return 0.5 + 0.3 * np.arange(width)


def mesa_tokens(n: Shape, seed: int) -> tuple:
    return (*sequences(n, seed), rates(seed, 0.3, 1, n.batch, n.length), rates(seed + 1, 0, 1, n.batch, n.length))


def mesa_state(n: Shape, seed: int) -> MesaState:
    """H as it arises: a sum of k^T k."""
    k = generator(seed + 3)(n.batch, 2, n.width)
    return MesaState(memory(n, seed), np.matrix_transpose(k) @ k)


def symmetric(state: MesaState | None) -> MesaState | None:
    """Only symmetric matrices are states, so a change of the state is a symmetric one: the
    projection, and its adjoint.
    """
    return None if state is None else state._replace(H=0.5 * (state.H + state.H.mT))


def mesa_form(fwd: Callable, bwd: Callable) -> tuple[Callable, Callable]:
    """A form of Mesa with a fixed ridge as a function of tokens and (symmetric) state."""

    def mesa_fwd(q: Any, k: Any, v: Any, keep: Any, weight: Any, state: Any, *chunk: Any, read: str) -> tuple:
        few = {"iterations": 6} if chunk else {}  # twice as many as a row's keys are wide
        return fwd(q, k, v, keep, weight, like(ridge(q.shape[-1]), q, q.dtype), symmetric(state), *chunk, read=read, **few)

    def mesa_bwd(dout: Any, dstate: Any, res: Any) -> tuple:
        *d_tokens, dridge, dstate = bwd(dout, dstate, res)
        assert dridge.shape == d_tokens[0].shape[-1:]
        return *d_tokens, symmetric(dstate)

    return mesa_fwd, mesa_bwd


MESA = Rule(
    "mesa",
    mesa.mesa_loss,
    mesa.mesa_gradient,
    mesa_form(mesa.mesa_recurrent_fwd, mesa.mesa_recurrent_bwd),
    mesa_form(mesa.mesa_chunked_fwd, mesa.mesa_chunked_bwd),
    mesa_tokens,
    mesa_state,
    lambda n, seed: (memory(n, seed), mesa_state(n, seed + 1), ridge(n.width)),
)


RULES = [
    TITANS,
    TITANS_PER_CHUNK,
    *ttt_rows(ttt_linear, linear_state, norm=False),
    *ttt_rows(ttt_linear, linear_state, norm=True),
    *ttt_rows(ttt_mlp, mlp_state, norm=True),
    titans_mlp_row("token by token", titans_mlp.titans_mlp_recurrent_fwd, titans_mlp.titans_mlp_recurrent_bwd),
    titans_mlp_row("dual", titans_mlp.titans_mlp_dual_fwd, titans_mlp.titans_mlp_dual_bwd),
    MESA,
]
