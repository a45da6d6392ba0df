"""What the rules share: checks, reads, fading, sums of writes, a triangular solve, chunks.

State i is the memory before token i, so token t turns state t into state t + 1. A *strict* read of
token t looks at state t, an *inclusive* one at state t + 1: one index apart, and everywhere asked
for by name.

Every state here is a faded sum of writes, with G_ij (``fade``) what is left in state i of what was
in state j:

    S_i = G_i0 S_0 + sum_{j<i} G_{i,j+1} k_j^T u_j

The rules differ in G (what is forgotten) and in u (what is written: the value itself, or an error).

Nothing here lets a number that is not finite travel against the order of time, forwards or
backwards, for the recurrent forms do not and the chunked ones are the same functions: tables are
masked, sums over tokens are the causal products of ``ops/common.py``, and ``solve`` looks only
below the diagonal. Backward passes begin with ``asked_for``, for 0 times infinity is no gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..backend import Array, Tree, device, namespace
from ..ops.common import anticausal_product, before, causal_product, chunk_slices, masked
from ..tree import leaves, tree_map

READS = ("strict", "inclusive")
RATES = ("gamma", "alpha", "beta", "keep", "weight", "momentum", "decay", "step", "join")


# --- at the boundary


def check_rule(read: str, **arrays: tuple[Array | None, str]) -> None:
    """``check_rule(read, q=(q, "BTK"), ...)``: one of the two reads, one size per letter.

    Raises ValueError. None is skipped. Nothing is broadcast: there is one row per token, one rate
    per token, one state per sequence.
    """
    check_read(read)
    sizes: dict[str, int] = {}
    for name, (array, letters) in arrays.items():
        if array is None:
            continue
        found = tuple(array.shape)
        if len(found) == len(letters):
            for letter, size in zip(letters, found, strict=True):
                sizes.setdefault(letter, size)
        expected = tuple(sizes.get(letter, letter) for letter in letters)
        if found != expected:
            shape = f"({','.join(letters)}) = ({', '.join(str(n) for n in expected)})"
            raise ValueError(
                f"{name} must have shape {shape}, got {found}: nothing is broadcast, "
                "one entry per token and sequence"
            )


def check_read(read: str) -> None:
    """One of the two words."""
    if read not in READS:
        raise ValueError(
            'read must be "strict" (before the token is written) or "inclusive" (after), '
            f"got {read!r}"
        )


# --- one token at a time


def start_state(state: Array | None, k: Array, v: Array) -> Array:
    """(B,K,E)   the state that comes in; None = an empty memory"""
    if state is not None:
        return state
    shape = (k.shape[0], k.shape[-1], v.shape[-1])
    return namespace(k).zeros(shape, dtype=k.dtype, device=device(k))


def outer(k: Array, v: Array) -> Array:
    """(B,K),(B,E)->(B,K,E)   k^T v"""
    return k[:, :, None] * v[:, None, :]


def apply(k: Array, S: Array) -> Array:
    """(B,K),(B,K,E)->(B,E)   k S"""
    return namespace(k, S).matmul(k[:, None, :], S)[:, 0, :]


def each(rate: Array) -> Array:
    """(B)->(B,1,1)   one number per sequence, ready to scale its state"""
    return rate[:, None, None]


def stack(rows: list[Array], like: Array) -> Array:
    """T arrays (B,...) -> (B,T,...), of the shape of ``like`` even if T = 0"""
    xp = namespace(like)
    return xp.stack(rows, axis=1) if rows else xp.zeros_like(like)


def reads(q: Array, states: Array, read: str) -> Array:
    """(B,T,K),(B,T+1,K,E)->(B,T,E)   o_t = q_t S_t if strict, q_t S_{t+1} if inclusive   (U.1)"""
    xp = namespace(q, states)
    return xp.matmul(q[:, :, None, :], read_from(states, read))[:, :, 0, :]  # (B,T,E)


def reads_bwd(dout: Array, q: Array, states: Array, read: str) -> tuple[Array, Array]:
    """Adjoint of reads: the gradients of q and of every state, as far as it is read.   (U.2)"""
    xp = namespace(dout, q, states)
    # forward: out_t = q_t S
    dq = xp.matmul(read_from(states, read), dout[..., None])[..., 0]  # (B,T,K)
    return dq, read_from_bwd(q[..., None] * dout[:, :, None, :], read)  # (B,T,K), (B,T+1,K,E)


def read_from(states: Array, read: str) -> Array:
    """(B,T+1,...)->(B,T,...)   the states that tokens read: all but the last, or the first"""
    return states[:, :-1, ...] if read == "strict" else states[:, 1:, ...]


def read_from_bwd(dseen: Array, read: str) -> Array:
    """Adjoint of read_from: 0 for the state that is not read."""
    xp = namespace(dseen)
    shape = (dseen.shape[0], 1, *dseen.shape[2:])
    unread = xp.zeros(shape, dtype=dseen.dtype, device=device(dseen))  # (B,1,...)
    parts = [dseen, unread] if read == "strict" else [unread, dseen]
    return xp.concat(parts, axis=1)  # (B,T+1,...)


# --- backward passes: what a cotangent asks for


def asked_for(dout: Array, dstate_out: Tree | None, res: Any) -> Any:
    """The residual with a 0, or a rate of 1, for what is not finite and not asked for.

    A query is asked for if its own output has a cotangent that is not 0; a write and its rates, if
    a later state has one. The rest has the gradient 0 whatever it is, and a backward pass that
    multiplied 0 by infinity would say otherwise, and spoil with it what came before.
    """
    xp = namespace(dout, res.q)
    output = xp.any(dout != 0, axis=-1)  # (B,T)
    states = read_from_bwd(xp.astype(output, xp.int32), res.read)  # (B,T+1) is it read
    states = xp.flip(xp.cumulative_sum(xp.flip(states, axis=1), axis=1), axis=1) > 0  # or a later
    for final in leaves(dstate_out):
        states = states | xp.any(final != 0, axis=tuple(range(1, final.ndim)))[:, None]
    uses = {"q": output, "x": output, "states": states, "minima": states}
    uses |= dict.fromkeys(("k", "v", "a", "b", *RATES), states[:, 1:])
    uses["factor"] = output | states[:, 1:]  # of the reader, and of what it hands on
    return res._replace(
        **{
            name: _finite_unless(uses[name], getattr(res, name), int(name in (*RATES, "factor")))
            for name in res._fields
            if name in uses
        }
    )


def _finite_unless(used: Array, tree: Tree, fill: int) -> Tree:
    """(B,T),(B,T,...)->(B,T,...)   ``fill`` for what is neither used nor finite

    Of the states of a chunk there is only the first, (B,1,...).
    """

    def leaf(a: Array) -> Array:
        xp, where = namespace(a), used[:, : a.shape[1]]
        where = xp.reshape(where, (*where.shape, *(1,) * (a.ndim - 2)))
        return xp.where(where | xp.isfinite(a), a, xp.full_like(a, fill))

    return tree_map(leaf, tree)


# --- a chunk of tokens at once


def fades(gamma: Array) -> Array:
    """(...,L)->(...,L+1,L+1)   G_ij = prod_{j<=r<i} gamma_r for j <= i, else 0   (U.3)

    That is what is left in state i of state j. The decays of each gap are multiplied, from the
    oldest on: a ratio of cumulative products overflows or is 0 / 0, and a difference of summed
    logarithms loses what is recent beside what is old. A decay may be 0, which leaves nothing.
    """
    xp = namespace(gamma)
    decay = gamma[..., None]  # (...,L,1)
    since = xp.where(_since(gamma), decay, xp.ones_like(decay))  # (...,L,L+1)
    gap = xp.cumulative_prod(since, axis=-2, include_initial=True)  # (...,L+1,L+1)
    return masked(gap, before(gamma.shape[-1] + 1, gamma, own=True))


def fades_bwd(dfade: Array, fade: Array) -> Array:
    """Adjoint of fades: (B,L+1,L+1),(B,L+1,L+1)->(B,L).   (U.4)

    What is left of G_ij without gamma_r is G_{i,r+1} G_rj: no division, so gamma_r may be 0.
    """
    xp = namespace(dfade, fade)
    # forward: fade_ij = prod_{j<=r<i} gamma_r
    after = anticausal_product(fade, dfade, own=True)[:, 1:, :]  # sum_{i>r} G_{i,r+1} dG_ij
    order = _since(fade[:, 0, 1:])  # (L,L+1)
    return xp.sum(masked(fade[:, :-1, :] * after, order), axis=-1)  # (B,L)


def unfaded(length: int, like: Array) -> Array:
    """(1,L+1,L+1)   the table of ``fades`` for gamma = 1: nothing is forgotten"""
    shape = (1, length + 1, length + 1)
    ones = namespace(like).ones(shape, dtype=like.dtype, device=device(like))
    return masked(ones, before(length + 1, like, own=True))


def sums(q: Array, k: Array, u: Array, fade: Array, state: Array, read: str) -> tuple[Array, Array]:
    """(B,L,K),(B,L,K),(B,L,E),(B,L+1,L+1),(B,K,E)->(B,L,E),(B,K,E)   faded sums of writes   (U.5)

    Reads of the states S_i = G_i0 S_0 + sum G_{i,j+1} k_j^T u_j, and the last of them.
    """
    xp = namespace(q, k, u, fade, state)
    seen, last = read_from(fade, read), fade[:, -1, :, None]  # (B,L,L+1), (B,L+1,1)
    scores = masked(xp.matmul(q, xp.matrix_transpose(k)) * seen[:, :, 1:], past(q, read))  # (B,L,L)
    out = causal_product(scores, u, read == "inclusive")  # (B,L,E)
    out += seen[:, :, :1] * xp.matmul(q, state)
    written = xp.matmul(xp.matrix_transpose(k * last[:, 1:, :]), u)  # (B,K,E)
    return out, written + last[:, :1, :] * state


def sums_bwd(
    dout: Array, dstate_out: Array | None, q: Array, k: Array, u: Array, fade: Array, state: Array,
    read: str,
) -> tuple[Array, ...]:  # fmt: skip
    """Adjoint of sums: dq, dk, du, dfade, dstate.   (U.6)"""
    xp = namespace(dout, q, k, u, fade, state)
    dstate_out = xp.zeros_like(state) if dstate_out is None else dstate_out  # (B,K,E)
    seen, last = read_from(fade, read), fade[:, -1, :, None]  # (B,L,L+1), (B,L+1,1)
    own = read == "inclusive"
    # forward: out = (q k^T * seen) u
    scores = masked(xp.matmul(q, xp.matrix_transpose(k)), past(q, read))  # (B,L,L)
    dmasked = masked(xp.matmul(dout, xp.matrix_transpose(u)), past(q, read))  # (B,L,L)
    dscores = masked(dmasked * seen[:, :, 1:], past(q, read))  # (B,L,L)
    dq = causal_product(dscores, k, own)  # (B,L,K)
    dk = anticausal_product(dscores, q, own)  # (B,L,K)
    faded = masked(scores * seen[:, :, 1:], past(q, read))  # (B,L,L)
    du = anticausal_product(faded, dout, own)  # (B,L,E)
    # forward: out += seen_0 q state
    pulled = xp.matmul(dout, xp.matrix_transpose(state))  # (B,L,K)
    dq += seen[:, :, :1] * pulled
    dstate = xp.matmul(xp.matrix_transpose(q * seen[:, :, :1]), dout)  # (B,K,E)
    dfirst = xp.sum(q * pulled, axis=-1, keepdims=True)  # (B,L,1)
    dseen = xp.concat([dfirst, scores * dmasked], axis=-1)  # (B,L,L+1)
    # forward: state_out = (last k)^T u
    pulled = xp.matmul(u, xp.matrix_transpose(dstate_out))  # (B,L,K)
    dk += last[:, 1:, :] * pulled
    du += last[:, 1:, :] * xp.matmul(k, dstate_out)
    # forward: state_out += last_0 state
    dstate += last[:, :1, :] * dstate_out
    dfirst = xp.sum(state * dstate_out, axis=(1, 2))[:, None]  # (B,1)
    dlast = xp.concat([dfirst, xp.sum(k * pulled, axis=-1)], axis=-1)  # (B,L+1)
    dlast = xp.concat([xp.zeros_like(dseen), dlast[:, None, :]], axis=1)  # (B,L+1,L+1)
    return dq, dk, du, read_from_bwd(dseen, read) + dlast, dstate


def solve(a: Array, r: Array) -> Array:
    """(B,L,L),(B,L,E)->(B,L,E)   x = (I + A)^{-1} r for strictly lower triangular A   (U.7)

    Forward substitution by halves; entries of A on and above the diagonal are not looked at.
    """
    xp = namespace(a, r)
    length, half = r.shape[1], r.shape[1] // 2
    if length < 2:
        return r
    # [I + A11    0   ] [x1]   [r1]
    # [  A21    I + A22] [x2] = [r2]
    x1 = solve(a[:, :half, :half], r[:, :half, :])  # (B,L/2,E)
    x2 = solve(a[:, half:, half:], r[:, half:, :] - xp.matmul(a[:, half:, :half], x1))  # (B,L/2,E)
    return xp.concat([x1, x2], axis=1)


def solve_bwd(dx: Array, a: Array, x: Array) -> tuple[Array, Array]:
    """Adjoint of solve: da (strictly lower triangular) and dr.   (U.8)"""
    xp = namespace(dx, a, x)
    # forward: x = (I + A)^{-1} r. Read backwards in time, A^T is strictly lower triangular too.
    reversed_a = xp.flip(xp.matrix_transpose(a), axis=(1, 2))  # (B,L,L)
    dr = xp.flip(solve(reversed_a, xp.flip(dx, axis=1)), axis=1)  # (B,L,E)
    da = masked(-xp.matmul(dr, xp.matrix_transpose(x)), past(x, "strict"))  # (B,L,L)
    return da, dr


# --- chunks


def chunks_fwd(
    chunk_fwd: Callable, tokens: tuple[Array, ...], state: Array, chunk: int | None
) -> tuple[tuple, tuple]:
    """``chunk_fwd(*tokens, state) -> (out, state), res`` on one chunk after the other; None among
    the tokens stays None.
    """
    outs, residuals = [], []
    for part in chunk_slices(tokens[0].shape[1], chunk):
        (out, state), res = chunk_fwd(*(_cut(a, part) for a in tokens), state)
        outs.append(out)  # (B,S,E)
        residuals.append(res)
    return (namespace(*outs).concat(outs, axis=1), state), tuple(residuals)


def chunks_bwd(chunk_bwd: Callable, dout: Array, dstate: Array | None, res: tuple) -> tuple:
    """Adjoint of chunks_fwd: ``chunk_bwd(dout, dstate, res) -> *dtokens, dstate`` in reverse."""
    xp = namespace(dout)
    pieces, stop = [], dout.shape[1]
    for part in reversed(res):
        start = stop - part.q.shape[1]
        dpart = dout[:, start:stop, :]  # (B,S,E)
        *dtokens, dstate = chunk_bwd(dpart, dstate, asked_for(dpart, dstate, part))
        pieces.append(dtokens)
        stop = start
    columns = zip(*pieces[::-1], strict=True)
    dtokens = (None if c[0] is None else xp.concat(list(c), axis=1) for c in columns)  # (B,T,...)
    return *dtokens, dstate


def _cut(tokens: Array | None, part: slice) -> Array | None:
    return None if tokens is None else tokens[:, part, ...]


# --- masks


def past(tokens: Array, read: str) -> Array:
    """(B,L,...)->(L,L)   which writes j token i reads: j < i if strict, j <= i if inclusive"""
    return before(tokens.shape[1], tokens, own=read == "inclusive")


def _since(gamma: Array) -> Array:
    """(...,L)->(L,L+1)   whether token r fades what was in state j: j <= r"""
    i = namespace(gamma).arange(gamma.shape[-1] + 1, device=device(gamma))  # (L+1,)
    return i[None, :] <= i[:-1, None]
