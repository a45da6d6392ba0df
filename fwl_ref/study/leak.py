"""A mistake on purpose: the fast weight block read inclusively, so that every token has learned
from its own label before it is predicted. It shows what a leak looks like.

Token t reads at place t + 1 of a sequence in which token s writes at place s.
"""

from __future__ import annotations

from typing import Any

from ..backend import Array, device, namespace
from ..fwl import FastSettings, Memory, read_bwd, read_fwd, write_fwd
from ..slow_block import SlowParameters
from .written import back_through_write


def leaking_fwd(
    x: Array,
    labels: Array,
    weights: Array,
    slow: SlowParameters,
    eta: Any,
    decay: Array,
    settings: FastSettings,
    state: Any = None,
) -> tuple[tuple[Array, Array, Any], tuple]:
    """(B,T,I),(B,T),(B,T)->(B,T,V),(B,T,V),FastParameters   fast_block_fwd, read inclusively:
    p_t = p - eta sum_{s<=t} (1 - lambda)^{t-s} g_s. A state fades once more at the end of each call

    Raises as the parts of the block do.
    """
    (m, slow_logits), write = write_fwd(x, labels, weights, slow, settings)
    later = Memory(_later(m.h), *(_earlier(a) for a in m[1:]))  # (B,T+1,...)
    (logits, state), read = read_fwd(later, _later(x), slow, eta, decay, state, settings)
    return (logits[:, 1:, :], slow_logits, state), (write, read)


def leaking_bwd(g_logits: Array, g_state: Any, res: tuple) -> tuple:
    """Adjoint of leaking_fwd: g_x, g_slow, g_eta, g_decay, g_state_in."""
    write, read = res
    # forward: logits = read(later memory, later x)[1:]
    g_later = namespace(g_logits).concat([_nothing(g_logits), g_logits], axis=1)  # (B,T+1,V)
    g_m, g_x, g_read, g_eta, g_decay, g_state = read_bwd(g_later, g_state, read)
    g_m = Memory(g_m.h[:, 1:, :], *(a[:, :-1, :] for a in g_m[1:]))  # (B,T,...)
    # forward: m = write(x)
    g_x, g_slow = back_through_write(g_m, g_x[:, 1:, :], g_read, write)
    return g_x, g_slow, g_eta, g_decay, g_state


def _later(a: Array) -> Array:
    """(B,T,...)->(B,T+1,...)   the first token once more before it: what it reads is not used"""
    return namespace(a).concat([a[:, :1, :], a], axis=1)


def _earlier(a: Array) -> Array:
    """(B,T,...)->(B,T+1,...)   0 after the last token"""
    return namespace(a).concat([a, _nothing(a)], axis=1)


def _nothing(a: Array) -> Array:
    """(B,T,...)->(B,1,...)"""
    shape = (a.shape[0], 1, *a.shape[2:])
    return namespace(a).zeros(shape, dtype=a.dtype, device=device(a))
