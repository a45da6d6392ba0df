"""What the rules share: checks, strict and inclusive reads, fading, sums of writes, and the
triangular solve of the delta rules.

State i is the memory before token i, so token t turns state t into state t + 1. A *strict* read of
token t looks at state t, an *inclusive* one at state t + 1: one index apart, and everywhere asked
for by name.

Every state here is a faded sum of writes, with G_ij (``fade``) what is left in state i of what was
in state j:

    S_i = G_i0 S_0 + sum_{j<i} G_{i,j+1} k_j^T u_j

The rules differ in G (what is forgotten) and in u (what is written: the value itself, or an error).
"""

from __future__ import annotations

from collections.abc import Callable

from ..backend import Array, is_host, namespace
from ..ops.linear_attention import chunk_slices

READS = ("strict", "inclusive")


# --- at the boundary


def check_rule(read: str, **arrays: tuple[Array | None, str]) -> None:
    """``check_rule(read, q=(q, "BTK"), ...)``: the read is one of the two, and a letter means one
    size in all arrays. None is skipped.

    Raises ValueError. Nothing is broadcast: there is one row per token, one rate per token, one
    state per sequence.
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
                f"{name} must have shape {shape}, got {found}: nothing is broadcast, one entry per token and sequence"
            )


def check_read(read: str) -> None:
    """One of the two words."""
    if read not in READS:
        raise ValueError(
            f'read must be "strict" (before the token is written) or "inclusive" (after), got {read!r}'
        )


def check_positive(rate: Array, name: str) -> None:
    """Logarithms are taken: > 0. Values are looked at on the host only."""
    if is_host(rate) and (rate <= 0).any():
        raise ValueError(
            f"{name} must be > 0 where its logarithm is taken, got {rate[rate <= 0][0]}: the recurrent form takes any number"
        )


# --- one token at a time


def start_state(state: Array | None, k: Array, v: Array) -> Array:
    """(B,K,E)   the state that comes in; None = an empty memory"""
    if state is not None:
        return state
    return namespace(k).zeros(
        (k.shape[0], k.shape[-1], v.shape[-1]), dtype=k.dtype, device=k.device
    )


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
    """(B,T+1,...)->(B,T,...)   of T + 1 states those that T tokens read: all but the last if
    strict, all but the first if inclusive
    """
    return states[:, :-1, ...] if read == "strict" else states[:, 1:, ...]


def read_from_bwd(dseen: Array, read: str) -> Array:
    """Adjoint of read_from: 0 for the state that nobody reads."""
    xp = namespace(dseen)
    unread = xp.zeros(
        (dseen.shape[0], 1, *dseen.shape[2:]), dtype=dseen.dtype, device=dseen.device
    )  # (B,1,...)
    return xp.concat(
        [dseen, unread] if read == "strict" else [unread, dseen], axis=1
    )  # (B,T+1,...)


# --- a chunk of tokens at once


def fades(gamma: Array) -> Array:
    """(...,L)->(...,L+1,L+1)   G_ij = exp(sum_{j<=r<i} log gamma_r) for j <= i, else 0: what is
    left in state i of state j   (U.3)

    The logarithms of each gap are summed, not subtracted from one another: a difference of
    cumulative sums loses what is recent beside what is old, and a ratio of cumulative products
    overflows.
    """
    xp = namespace(gamma)
    length = gamma.shape[-1]
    log = xp.log(gamma)[..., None]  # (...,L,1)
    gap = xp.cumulative_sum(
        xp.where(_since(gamma), log, xp.zeros_like(log)), axis=-2, include_initial=True
    )  # (...,L+1,L+1)
    return masked(xp.exp(gap), lower(length + 1, gamma))


def fades_bwd(dfade: Array, fade: Array, gamma: Array) -> Array:
    """Adjoint of fades.   (U.4)"""
    xp = namespace(dfade, fade, gamma)
    # forward: fade = exp(gap)
    dgap = dfade * fade  # (...,L+1,L+1)
    # forward: gap_ij = sum_{j<=r<i} log_r
    later = xp.flip(
        xp.cumulative_sum(xp.flip(dgap[..., 1:, :], axis=-2), axis=-2), axis=-2
    )  # (...,L,L+1) sums over i > r
    dlog = xp.sum(masked(later, _since(gamma)), axis=-1)  # (...,L)
    # forward: log = log gamma
    return dlog / gamma  # (...,L)


def unfaded(length: int, like: Array) -> Array:
    """(1,L+1,L+1)   the table of ``fades`` for gamma = 1: nothing is forgotten"""
    xp = namespace(like)
    return masked(
        xp.ones((1, length + 1, length + 1), dtype=like.dtype, device=like.device),
        lower(length + 1, like),
    )


def sums(q: Array, k: Array, u: Array, fade: Array, state: Array, read: str) -> tuple[Array, Array]:
    """(B,L,K),(B,L,K),(B,L,E),(B,L+1,L+1),(B,K,E)->(B,L,E),(B,K,E)   reads and end of S_i = G_i0
    S_0 + sum G_{i,j+1} k_j^T u_j   (U.5)
    """
    xp = namespace(q, k, u, fade, state)
    seen, last = read_from(fade, read), fade[:, -1, :, None]  # (B,L,L+1), (B,L+1,1)
    scores = masked(xp.matmul(q, xp.matrix_transpose(k)) * seen[:, :, 1:], past(q, read))  # (B,L,L)
    out = xp.matmul(scores, u) + seen[:, :, :1] * xp.matmul(q, state)  # (B,L,E)
    state_out = (
        xp.matmul(xp.matrix_transpose(k * last[:, 1:, :]), u) + last[:, :1, :] * state
    )  # (B,K,E)
    return out, state_out


def sums_bwd(
    dout: Array,
    dstate_out: Array | None,
    q: Array,
    k: Array,
    u: Array,
    fade: Array,
    state: Array,
    read: str,
):
    """Adjoint of sums: dq, dk, du, dfade, dstate.   (U.6)"""
    xp = namespace(dout, q, k, u, fade, state)
    dstate_out = xp.zeros_like(state) if dstate_out is None else dstate_out  # (B,K,E)
    seen, last = read_from(fade, read), fade[:, -1, :, None]  # (B,L,L+1), (B,L+1,1)
    # forward: out = (q k^T * seen) u
    scores = masked(xp.matmul(q, xp.matrix_transpose(k)), past(q, read))  # (B,L,L)
    dmasked = masked(xp.matmul(dout, xp.matrix_transpose(u)), past(q, read))  # (B,L,L)
    dscores = dmasked * seen[:, :, 1:]  # (B,L,L)
    dq = xp.matmul(dscores, k)  # (B,L,K)
    dk = xp.matmul(xp.matrix_transpose(dscores), q)  # (B,L,K)
    du = xp.matmul(xp.matrix_transpose(scores * seen[:, :, 1:]), dout)  # (B,L,E)
    # forward: out += seen_0 q state
    pulled = xp.matmul(dout, xp.matrix_transpose(state))  # (B,L,K)
    dq += seen[:, :, :1] * pulled
    dstate = xp.matmul(xp.matrix_transpose(q * seen[:, :, :1]), dout)  # (B,K,E)
    dseen = xp.concat(
        [xp.sum(q * pulled, axis=-1, keepdims=True), scores * dmasked], axis=-1
    )  # (B,L,L+1)
    # forward: state_out = (last k)^T u
    pulled = xp.matmul(u, xp.matrix_transpose(dstate_out))  # (B,L,K)
    dk += last[:, 1:, :] * pulled
    du += last[:, 1:, :] * xp.matmul(k, dstate_out)
    # forward: state_out += last_0 state
    dstate += last[:, :1, :] * dstate_out
    dlast = xp.concat(
        [xp.sum(state * dstate_out, axis=(1, 2))[:, None], xp.sum(k * pulled, axis=-1)], axis=-1
    )  # (B,L+1)
    dfade = read_from_bwd(dseen, read) + xp.concat(
        [xp.zeros_like(dseen), dlast[:, None, :]], axis=1
    )  # (B,L+1,L+1)
    return dq, dk, du, dfade, dstate


def solve(a: Array, r: Array) -> Array:
    """(B,L,L),(B,L,E)->(B,L,E)   x = (I + A)^{-1} r for strictly lower triangular A: forward
    substitution by halves   (U.7)
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
    # forward: x = (I + A)^{-1} r. Read backwards in time, the transposed system is lower triangular
    # too.
    dr = xp.flip(
        solve(xp.flip(xp.matrix_transpose(a), axis=(1, 2)), xp.flip(dx, axis=1)), axis=1
    )  # (B,L,E)
    da = masked(-xp.matmul(dr, xp.matrix_transpose(x)), past(x, "strict"))  # (B,L,L)
    return da, dr


# --- chunks


def chunks_fwd(chunk_fwd: Callable, tokens: tuple[Array, ...], state: Array, chunk: int | None):
    """``chunk_fwd(*tokens, state) -> (out, state), res`` on consecutive chunks, the state carried
    between them; None = one chunk
    """
    outs, residuals = [], []
    for part in chunk_slices(tokens[0].shape[1], chunk):
        (out, state), res = chunk_fwd(*(a[:, part, ...] for a in tokens), state)
        outs.append(out)  # (B,S,E)
        residuals.append(res)
    return (namespace(*outs).concat(outs, axis=1), state), tuple(residuals)


def chunks_bwd(chunk_bwd: Callable, dout: Array, dstate: Array | None, res: tuple):
    """Adjoint of chunks_fwd: ``chunk_bwd(dout, dstate, res) -> *dtokens, dstate`` on the chunks in
    reverse.
    """
    xp = namespace(dout)
    pieces, stop = [], dout.shape[1]
    for part in reversed(res):
        start = stop - part.q.shape[1]
        *dtokens, dstate = chunk_bwd(dout[:, start:stop, :], dstate, part)
        pieces.append(dtokens)
        stop = start
    return *(xp.concat(list(parts), axis=1) for parts in zip(*pieces[::-1], strict=True)), dstate


# --- masks


def past(tokens: Array, read: str) -> Array:
    """(B,L,...)->(L,L)   which writes j a read of token i sees: j < i if strict, j <= i if
    inclusive
    """
    i = namespace(tokens).arange(tokens.shape[1], device=tokens.device)  # (L,)
    return i[None, :] < i[:, None] if read == "strict" else i[None, :] <= i[:, None]


def lower(size: int, like: Array) -> Array:
    """(size,size)   j <= i"""
    i = namespace(like).arange(size, device=like.device)  # (size,)
    return i[None, :] <= i[:, None]


def masked(scores: Array, mask: Array) -> Array:
    """scores where the mask says so, else 0, even where the score is not finite"""
    xp = namespace(scores)
    return xp.where(mask, scores, xp.zeros_like(scores))


def _since(gamma: Array) -> Array:
    """(...,L)->(L,L+1)   whether token r fades what was in state j: j <= r"""
    i = namespace(gamma).arange(gamma.shape[-1] + 1, device=gamma.device)  # (L+1,)
    return i[None, :] <= i[:-1, None]
