"""Titans with momentum and weight decay once per chunk, as the library titans-pytorch has them.

    loss       l(M) = 1/2 |k M - v|^2 of a token, the delta rule's; a chunk's is the sum over its m
               tokens of theta_t l_t(M)
    update     U' = eta U - sum_t theta_t dl_t/dM
    memory     M' = (1 - alpha) M + U', when the chunk is full

A token is read from the last full chunk's memory: strictly the one after the chunks that are full
before it, inclusively the one after those that are full with it. So only the last token of a chunk
tells the two reads apart.

It is Titans with rates that are spread over a chunk's tokens (``per_chunk_fwd``): momentum eta at
its first token and 1 after it, decay alpha at its last and 0 before it, and the update joins the
memory (``join``) at its last alone. Everything else is ``titans.py``'s. Momentum and decay come
as (B,T) all the same; the entry at a chunk's first token counts, the others are not looked at and
have the gradient 0. A chunk that is not full at the end of a call has changed U and not M, and the
next call begins a chunk.

Within a chunk the memory stands still, so gradients at the current memory are those at the chunk's
first. Gradients that are stale over several chunks (the library's ``batch_size``) are
``titans_per_chunk_stale_fwd``'s, whose ``chunk`` says how many tokens.
"""

from __future__ import annotations

from ..backend import Array, device, namespace
from .titans import (
    TitansResidual,
    TitansState,
    titans_chunked_bwd,
    titans_chunked_fwd,
    titans_gradient,
    titans_loss,
    titans_recurrent_bwd,
    titans_recurrent_fwd,
    titans_stale_bwd,
    titans_stale_fwd,
)


def titans_per_chunk_loss(M: Array, k: Array, v: Array) -> Array:
    """(B,K,E),(B,K),(B,E)->(B)   of one token, the delta rule's l = 1/2 |k M - v|^2   (W.35)"""
    return titans_loss(M, k, v)


def titans_per_chunk_gradient(M: Array, k: Array, v: Array) -> Array:
    """(B,K,E),(B,K),(B,E)->(B,K,E)   of one token, dl/dM = k^T (k M - v)   (W.35)"""
    return titans_gradient(M, k, v)


def per_chunk_fwd(
    momentum: Array, decay: Array, minibatch: int
) -> tuple[tuple[Array, Array, Array], int]:
    """(B,T),(B,T)->(B,T),(B,T),(B,T)   momentum, decay, join of every token   (W.30)

    Of each chunk of ``minibatch`` tokens the entries at its first token count. Raises ValueError if
    ``minibatch`` is below 1.
    """
    xp = namespace(momentum, decay)
    first, last, source, _ = _places(momentum, minibatch)  # (T,)
    one, zero = xp.ones_like(momentum), xp.zeros_like(decay)  # (B,T)
    spread = xp.where(last, xp.take(decay, source, axis=1), zero)  # (B,T)
    join = xp.where(last, one, zero)  # (B,T)
    return (xp.where(first, momentum, one), spread, join), minibatch


def per_chunk_bwd(dmomentum: Array, ddecay: Array, minibatch: int) -> tuple[Array, Array]:
    """Adjoint of per_chunk_fwd: dmomentum, ddecay; join is fixed.   (W.38)"""
    xp = namespace(dmomentum, ddecay)
    first, _, _, target = _places(ddecay, minibatch)  # (T,)
    full = target < ddecay.shape[1]  # (T,) whether the chunk that begins here ends
    # forward: spread_last = decay_first
    target = xp.where(full, target, xp.zeros_like(target))  # (T,)
    back = xp.where(first & full, xp.take(ddecay, target, axis=1), xp.zeros_like(ddecay))  # (B,T)
    # forward: momentum_first, and 1 elsewhere
    return xp.where(first, dmomentum, xp.zeros_like(dmomentum)), back


def titans_per_chunk_recurrent_fwd(
    q: Array, k: Array, v: Array, momentum: Array, decay: Array, step: Array,
    state: TitansState | None = None, *, minibatch: int, read: str,
) -> tuple[tuple[Array, TitansState], tuple[TitansResidual, int]]:  # fmt: skip
    """(B,T,K),(B,T,K),(B,T,E),(B,T),(B,T),(B,T),TitansState->(B,T,E),TitansState
    M' = (1 - alpha) M + U', U' = eta U - sum_t theta_t dl_t/dM, once per chunk   (W.36)

    Raises ValueError as ``titans_recurrent_fwd`` does, and if ``minibatch``, the tokens of a
    chunk, is below 1.
    """
    momentum, decay, join = _spread(momentum, decay, q, minibatch)
    outputs, res = titans_recurrent_fwd(q, k, v, momentum, decay, step, state, read=read, join=join)
    return outputs, (res, minibatch)


def titans_per_chunk_recurrent_bwd(
    dout: Array, dstate_out: TitansState | None, res: tuple[TitansResidual, int]
) -> tuple:
    """Adjoint of titans_per_chunk_recurrent_fwd.   (W.37)

    Returns dq, dk, dv, dmomentum, ddecay, dstep, dstate.
    """
    return _gathered(titans_recurrent_bwd(dout, dstate_out, res[0]), res[1])


def titans_per_chunk_chunked_fwd(
    q: Array, k: Array, v: Array, momentum: Array, decay: Array, step: Array,
    state: TitansState | None = None, chunk: int | None = None, *, minibatch: int, read: str,
) -> tuple[tuple[Array, TitansState], tuple]:  # fmt: skip
    """(B,T,K),(B,T,K),(B,T,E),(B,T),(B,T),(B,T),TitansState->(B,T,E),TitansState
    the same function by chunks, of any length   (W.30)

    Raises ValueError as ``titans_per_chunk_recurrent_fwd`` does, and if ``chunk`` is below 1.
    """
    momentum, decay, join = _spread(momentum, decay, q, minibatch)
    outputs, res = titans_chunked_fwd(
        q, k, v, momentum, decay, step, state, chunk, read=read, join=join
    )
    return outputs, (res, minibatch)


def titans_per_chunk_chunked_bwd(
    dout: Array, dstate_out: TitansState | None, res: tuple[tuple, int]
) -> tuple:
    """Adjoint of titans_per_chunk_chunked_fwd.   (W.38)

    Returns dq, dk, dv, dmomentum, ddecay, dstep, dstate.
    """
    return _gathered(titans_chunked_bwd(dout, dstate_out, res[0]), res[1])


def titans_per_chunk_stale_fwd(
    q: Array, k: Array, v: Array, momentum: Array, decay: Array, step: Array,
    state: TitansState | None = None, chunk: int | None = None, *, minibatch: int, read: str,
) -> tuple[tuple[Array, TitansState], tuple]:  # fmt: skip
    """(B,T,K),(B,T,K),(B,T,E),(B,T),(B,T),(B,T),TitansState->(B,T,E),TitansState
    gradients at the first memory of every ``chunk`` tokens: titans_stale_fwd with the rates of
    (W.30)

    Raises ValueError as ``titans_per_chunk_chunked_fwd`` does.
    """
    momentum, decay, join = _spread(momentum, decay, q, minibatch)
    outputs, res = titans_stale_fwd(
        q, k, v, momentum, decay, step, state, chunk, read=read, join=join
    )
    return outputs, (res, minibatch)


def titans_per_chunk_stale_bwd(
    dout: Array, dstate_out: TitansState | None, res: tuple[tuple, int]
) -> tuple:
    """Adjoint of titans_per_chunk_stale_fwd.   (W.38)

    Returns dq, dk, dv, dmomentum, ddecay, dstep, dstate.
    """
    return _gathered(titans_stale_bwd(dout, dstate_out, res[0]), res[1])


def _spread(momentum: Array, decay: Array, q: Array, minibatch: int) -> tuple[Array, Array, Array]:
    """momentum, decay, join of every token, shapes checked"""
    for name, rate in (("momentum", momentum), ("decay", decay)):
        if tuple(rate.shape) != tuple(q.shape[:2]):
            raise ValueError(
                f"{name} must have shape (B,T) = {tuple(q.shape[:2])}, got {tuple(rate.shape)}: "
                "one entry per token, of which a chunk's first counts"
            )
    return per_chunk_fwd(momentum, decay, minibatch)[0]


def _gathered(gradients: tuple, minibatch: int) -> tuple:
    """The gradients of Titans with a join, those of its rates brought back."""
    dq, dk, dv, dmomentum, ddecay, dstep, _, dstate = gradients
    return dq, dk, dv, *per_chunk_bwd(dmomentum, ddecay, minibatch), dstep, dstate


def _places(rate: Array, minibatch: int) -> tuple[Array, Array, Array, Array]:
    """(B,T)->(T,),(T,),(T,),(T,)   is a chunk's first token, is its last; where the first of one
    that ends here is, where the last of one that begins here is (T or more: not there)
    """
    if minibatch < 1:
        raise ValueError(f"a chunk must hold at least 1 token, got {minibatch}")
    xp = namespace(rate)
    t = xp.arange(rate.shape[1], device=device(rate))  # (T,)
    place = t % minibatch
    return place == 0, place == minibatch - 1, t - place, t + (minibatch - 1)
