"""Optimizers on stale gradients are causal masks.

Take every gradient g_s at theta_0. An optimizer that is linear in its gradients then moves the
parameters by

    theta_t - theta_0 = - eta sum_{s<t} M_ts g_s

and its impulse response M describes it completely: M_ts is how far a unit gradient at s has moved
the parameters when token t reads them. A fast weight block whose read has the mask M *is* that
optimizer. Each optimizer below is written as what it carries from token to token, a few slots of
the parameters' shape (displacement, velocity, ...), from which the mask and the chunked and
recurrent forms follow:

    slots_{t+1} = keep_t slots_t + write_t g_t        theta_t = theta_0 - eta read_t . slots_t

An optimizer is given to a block by ``FastSettings(optimizer=momentum(0.9))``. In shapes, N is the
number of slots.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

from .backend import Array, Tree, device, host, is_host, namespace, to_numpy
from .ops.masked_attention import check_strict, masked_attention_recurrent_fwd
from .tree import named_leaves, tree_map


class Optimizer(NamedTuple):
    """A linear optimizer as N slots; numbers are Python floats, tokens count from 0.   (O.2)"""

    name: str
    keep: Callable[[int], Sequence[Sequence[float]]]  # (N,N) what token t leaves of the slots
    write: Callable[[int], Sequence[float]]  # (N,) into which slots the gradient of token t goes
    read: Callable[[int], Sequence[float]]  # (N,) of which slots token t's displacement is made
    # M_ts for s < t as derived on paper; nothing but closed_form uses it
    formula: Callable[[int, int], float] | None = None
    # FastParameters: every entry of every gradient is divided by it; None = 1
    divisor: Tree | None = None


class OptimizerState(NamedTuple):
    """What an optimizer carries from one piece of text to the next."""

    slots: Tree  # FastParameters, each entry (B,N,...) of the parameter's shape
    token: int  # how many tokens it has seen


# The rows of the dictionary
# --------------------------------------------------------------------------------------------------


def sgd() -> Optimizer:
    """theta <- theta - eta g   (O.5)"""
    return Optimizer(
        "SGD", lambda t: ((1.0,),), lambda t: (1.0,), lambda t: (1.0,), lambda t, s: 1.0
    )


def schedule(rates: Sequence[float]) -> Optimizer:
    """theta <- theta - eta rates[t] g: a step size for each token, as a factor of eta   (O.6)"""
    rates = tuple(float(r) for r in rates)
    for t, value in enumerate(rates):
        if not math.isfinite(value):
            raise ValueError(f"a step size must be finite, got {value} for token {t}")

    def rate(t: int) -> tuple[float]:
        if t >= len(rates):
            raise ValueError(
                f"the schedule ends after {len(rates)} tokens, but token {t} writes too: "
                "give a step size for every token"
            )
        return (rates[t],)

    return Optimizer(
        "step-size schedule", lambda t: ((1.0,),), rate, lambda t: (1.0,), lambda t, s: rates[s]
    )


def decay(rate: float) -> Optimizer:
    """theta <- theta - eta g + rate (theta_0 - theta)   (O.7)"""
    _check_fraction("the decay rate", rate)
    keep = 1.0 - rate
    return Optimizer(
        "decay",
        lambda t: ((keep,),),
        lambda t: (1.0,),
        lambda t: (1.0,),
        lambda t, s: keep ** (t - s - 1),
    )


def momentum(mu: float) -> Optimizer:
    """v <- mu v + g,  theta <- theta - eta v: heavy ball. Slots: displacement, velocity.   (O.8)"""
    return momentum_with_decay(mu, 0.0)._replace(name="momentum")


def momentum_with_decay(mu: float, rate: float) -> Optimizer:
    """v <- mu v + g,  theta <- theta - eta v + rate (theta_0 - theta)   (O.9)

    Slots: displacement, velocity.
    """
    _check_fraction("the momentum", mu)
    _check_fraction("the decay rate", rate)
    a = 1.0 - rate

    def response(gap: int) -> float:
        # a sum of numbers >= 0: the quotient of differences loses all digits where a is near mu
        return math.fsum(a**i * mu ** (gap - 1 - i) for i in range(gap))

    known = cache(response)  # a mask of T rows has T^2 / 2 entries and T gaps

    # displacement <- a displacement + (mu v + g),  v <- mu v + g
    return Optimizer(
        "momentum with decay",
        lambda t: ((a, mu), (0.0, mu)),
        lambda t: (1.0, 1.0),
        lambda t: (1.0, 0.0),
        lambda t, s: known(t - s),
    )


def averaging() -> Optimizer:
    """SGD, read at the mean of its iterates theta_0, ..., theta_t   (O.10)

    Slots: sum of the displacements up to now, displacement.
    """
    # displacement <- displacement + g,  sum <- sum + displacement + g
    return Optimizer(
        "averaging",
        lambda t: ((1.0, 1.0), (0.0, 1.0)),
        lambda t: (1.0, 1.0),
        lambda t: (1.0 / (t + 1), 0.0),
        lambda t, s: (t - s) / (t + 1),
    )


def sliding_window(window: int) -> Optimizer:
    """theta = theta_0 - eta (the last ``window`` gradients)   (O.11)

    Slots: those gradients; older ones are taken back exactly. A queue costs ``window`` slots and no
    exact form with a state has fewer, since each gradient must be known when it leaves.
    """
    _check_count("a sliding window", window, "token")
    # slot i takes what slot i - 1 held; slot 0 takes the new gradient
    shift = tuple(_unit(i - 1, window) for i in range(window))
    first, every = _unit(0, window), (1.0,) * window
    return Optimizer(
        "sliding window",
        lambda t: shift,
        lambda t: first,
        lambda t: every,
        lambda t, s: float(t - s <= window),
    )


def segments(length: int) -> Optimizer:
    """One step per segment of ``length`` tokens, with the sum of its gradients   (O.12)

    Slots: displacement, gradients of this segment.
    """
    _check_count("a segment", length, "token")

    def last(t: int) -> bool:
        return (t + 1) % length == 0

    return Optimizer(
        "segments",
        lambda t: ((1.0, 1.0), (0.0, 0.0)) if last(t) else ((1.0, 0.0), (0.0, 1.0)),
        lambda t: (1.0, 0.0) if last(t) else (0.0, 1.0),
        lambda t: (1.0, 0.0),
        lambda t, s: float(s // length < t // length),
    )


def any_mask(mask: Array) -> Optimizer:
    """theta_t = theta_0 - eta sum_{s<t} mask[t,s] g_s for a strictly causal mask (T,T)   (O.13)

    Slots: every gradient, T of them, so it is for short texts. Raises ValueError naming the first
    entry on or above the diagonal that is not 0.
    """
    mask = to_numpy(mask)
    check_strict(mask)
    rows, length = mask.tolist(), mask.shape[0]
    _check_count("a mask", length, "row")
    everything = tuple(_unit(i, length) for i in range(length))

    def row(t: int) -> int:
        if t >= length:
            raise ValueError(
                f"the mask has {length} rows, but token {t} takes part too: "
                "give a row and a column for every token"
            )
        return t

    return Optimizer(
        "any mask",
        lambda t: everything,
        lambda t: everything[row(t)],
        lambda t: rows[row(t)],
        lambda t, s: rows[t][s],
    )


def preconditioned(optimizer: Optimizer, divisor: Tree) -> Optimizer:
    """``optimizer`` on g / divisor, entry by entry   (O.20)

    With sgd() and divisor = sqrt(MS) + eps that is the RMS rule without its decay. ``divisor`` has
    the fast parameters' type and shapes. Raises ValueError unless all of it is finite and > 0.
    """
    for name, leaf in named_leaves(divisor):
        _check_divisor(leaf, f"the divisor of {name}")
    return optimizer._replace(name=f"{optimizer.name}, preconditioned", divisor=divisor)


# What follows from the slots
# --------------------------------------------------------------------------------------------------


def slots(optimizer: Optimizer) -> int:
    """N, which is at least the rank of every block M[p:, :p] below the diagonal   (O.4)"""
    return len(optimizer.write(0))


def system(
    optimizer: Optimizer, start: int, length: int, like: Array
) -> tuple[Array, Array, Array]:
    """(T,N,N),(T,N),(T,N)   keep, write, read of the tokens from ``start`` on   (O.2)"""
    xp, n, tokens = namespace(like), slots(optimizer), range(start, start + length)

    def table(f: Callable, *shape: int) -> Array:
        rows = [f(t) for t in tokens]
        return xp.reshape(xp.asarray(rows, dtype=like.dtype, device=device(like)), (length, *shape))

    return table(optimizer.keep, n, n), table(optimizer.write, n), table(optimizer.read, n)


def mask(optimizer: Optimizer, length: int) -> Array:
    """(T,T)   M on the host, by running the slots on unit impulses   (O.1), (O.3)"""
    one, impulses = host.ones((1, length, 1)), host.eye(length)[None, :, :]
    tables = system(optimizer, 0, length, one)
    (out, _), _ = masked_attention_recurrent_fwd(one, one, impulses, *tables)
    return out[0, :, :]


def closed_form(optimizer: Optimizer, length: int) -> Array:
    """(T,T)   M on the host, by the formula derived on paper   (O.5) to (O.13)"""
    if optimizer.formula is None:
        raise ValueError(f"{optimizer.name} has no formula: mask() runs its slots instead")
    entries = [
        [optimizer.formula(t, s) if s < t else 0.0 for s in range(length)] for t in range(length)
    ]
    return host.reshape(host.asarray(entries, dtype="float64"), (length, length))


def write_slots(optimizer: Optimizer, state: OptimizerState, gradient: Tree) -> OptimizerState:
    """(B,N,...),(B,...)->(B,N,...)   one token's gradient, leaf by leaf   (O.2)"""
    keep, write = optimizer.keep(state.token), optimizer.write(state.token)

    def moved(held: Array, g: Array) -> Array:
        xp, n = namespace(held, g), len(write)
        rows = [
            sum(keep[i][j] * held[:, j, ...] for j in range(n)) + write[i] * g for i in range(n)
        ]
        return xp.stack(rows, axis=1)

    return OptimizerState(tree_map(moved, state.slots, gradient), state.token + 1)


def read_slots(optimizer: Optimizer, state: OptimizerState) -> Tree:
    """(B,N,...)->(B,...)   (theta_0 - theta_t) / eta, leaf by leaf   (O.2)"""
    read = optimizer.read(state.token)
    sums = tree_map(lambda held: sum(c * held[:, n, ...] for n, c in enumerate(read)), state.slots)
    if optimizer.divisor is None:
        return sums
    return tree_map(lambda s, r: s / r, sums, optimizer.divisor)


def preconditioned_heads(divisor: Array) -> tuple[Array, Array]:
    """(D,F)->(R,D),(R,F)   u_r and w_r with 1 / divisor = sum_r u_r^T w_r, R = its rank   (O.21)

    Dividing a sum of outer products entry by entry is a sum over R heads, (sum_s x_s^T d_s) /
    divisor = sum_r sum_s (x_s u_r)^T (d_s w_r); a divisor that is itself an outer product a^T b
    needs one head, keys x / a and values d / b (O.22).
    """
    xp = namespace(divisor)
    _check_divisor(divisor, "the divisor")
    left, sizes, right = xp.linalg.svd(1 / divisor, full_matrices=False)  # (D,r), (r,), (r,F)
    # below it a singular value is rounding
    noise = max(divisor.shape) * float(xp.finfo(divisor.dtype).eps)
    on_host = to_numpy(sizes)  # the number of heads is a shape, so the host must know it
    rank = int(host.sum(on_host > noise * on_host[0]))
    return xp.matrix_transpose(left[:, :rank]), sizes[:rank, None] * right[:rank, :]


# Errors
# --------------------------------------------------------------------------------------------------


def _unit(i: int, n: int) -> tuple[float, ...]:
    return tuple(float(i == j) for j in range(n))


def _check_fraction(what: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{what} must lie in [0, 1], got {value}")


def _check_count(what: str, value: int, unit: str) -> None:
    if value < 1:
        raise ValueError(f"{what} must hold at least 1 {unit}, got {value}")


def _check_divisor(divisor: Array, what: str) -> None:
    if is_host(divisor) and not (host.all(host.isfinite(divisor)) and host.all(divisor > 0)):
        bad = host.argwhere(~(host.isfinite(divisor) & (divisor > 0)))[0]
        raise ValueError(
            f"{what} must be finite and > 0, got {divisor[tuple(bad)]} at index "
            f"{tuple(int(i) for i in bad)}: where all gradients were 0 add an epsilon to it"
        )
