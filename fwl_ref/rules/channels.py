"""What the rules with a gate per key channel share: faded sums of writes with a table of fades for
every channel, each with its adjoint. ``common.py`` has the same for one gate per token.

Row c of a state fades by the gates of its own channel, so with G^c (``channel_fades``)

    S_ic = G^c_i0 S_0c + sum_{j<i} G^c_{i,j+1} k_jc u_j

Scores are no longer one matrix product: in sum_c q_c k_c G^c the fade stands between the factors.
Kernels split G^c into a factor for q and one for k, which overflows unless pieces are short; here
the table of fades is formed as it stands, a product of the gates of each gap.
"""

from __future__ import annotations

from ..backend import Array, device, namespace, written_to
from ..ops.common import anticausal_product, causal_product, masked
from .common import past, read_from, read_from_bwd, stack, start_state


def channel_fades(alpha: Array) -> Array:
    """(B,L,K)->(B,L+1,L+1,K)   G^c for every channel c, see ``fades``   (U.3)

    Row by row, G_{i+1,j} = alpha_i G_ij: channels lie beside one another, and only j <= i is
    formed. For 64 tokens of 64 channels that takes a tenth of the time of ``fades``.
    """
    xp, (batch, length, width) = namespace(alpha), alpha.shape
    shape, every = (batch, length + 1, length + 1, width), slice(None)
    fade = xp.zeros(shape, dtype=alpha.dtype, device=device(alpha))
    for i in range(length + 1):
        if i > 0:
            older = alpha[:, i - 1, None, :] * fade[:, i - 1, :i, :]  # (B,i,K)
            fade = written_to(fade, (every, i, slice(i), every), older)
        fade = written_to(fade, (every, i, i, every), 1)
    return fade


def channel_fades_bwd(dfade: Array, fade: Array) -> Array:
    """Adjoint of channel_fades: (B,L+1,L+1,K),(B,L+1,L+1,K)->(B,L,K).   (U.4)"""
    xp, length = namespace(dfade, fade), fade.shape[1] - 1
    dalphas, dlater = [], dfade[:, length, :length, :]  # (B,L,K) of row i + 1, the last first
    for i in reversed(range(length)):
        # forward: row i + 1 = alpha_i row i
        dalphas.append(xp.sum(dlater * fade[:, i, : i + 1, :], axis=1))  # (B,K)
        alpha = fade[:, i + 1, i, None, :]  # (B,1,K)
        dlater = dfade[:, i, :i, :] + alpha * dlater[:, :i, :]  # (B,i,K)
    return stack(dalphas[::-1], fade[:, 0, :length, :])  # (B,L,K)


def channel_scores(q: Array, k: Array, fade: Array, read: str) -> Array:
    """(B,L,K),(B,L,K),(B,L+1,L+1,K)->(B,L,L)   sum_c q_ic k_jc G^c of write j in read i   (U.22)"""
    xp, seen = namespace(q, k, fade), read_from(fade, read)  # (B,L,L+1,K)
    faded = k[:, None, :, :] * seen[:, :, 1:, :]  # (B,L,L,K)
    return masked(xp.matmul(faded, q[..., None])[..., 0], past(q, read))


def channel_scores_bwd(
    dscores: Array, q: Array, k: Array, fade: Array, read: str
) -> tuple[Array, Array, Array]:
    """Adjoint of channel_scores: dq, dk, dfade.   (U.23)"""
    xp, seen = namespace(dscores, q, k, fade), read_from(fade, read)[:, :, 1:, :]  # (B,L,L,K)
    dqs, dk, dwrites, every = [], xp.zeros_like(k), xp.zeros_like(seen), slice(None)
    for i in range(q.shape[1]):
        n = i + 1 if read == "inclusive" else i  # writes before read i
        row, keys, left = dscores[:, i, None, :n], k[:, :n, :], seen[:, i, :n, :]  # (B,n,K)
        # forward: scores_ij = sum_c q_ic k_jc seen_ijc
        dqs.append(xp.matmul(row, keys * left)[:, 0, :])  # (B,K)
        asked = xp.matrix_transpose(row) * q[:, i, None, :]  # (B,n,K)
        dk = written_to(dk, (every, slice(n), every), asked * left, add=True)
        dwrites = written_to(dwrites, (every, i, slice(n), every), asked * keys)
    return stack(dqs, q), dk, _of_reads(xp.zeros_like(q), dwrites, read)


def channel_start(q: Array, fade: Array, state: Array, read: str) -> Array:
    """(B,L,K),(B,L+1,L+1,K),(B,K,E)->(B,L,E)   reads of what is left of S_0   (U.22)"""
    xp = namespace(q, fade, state)
    return xp.matmul(q * read_from(fade, read)[:, :, 0, :], state)


def channel_start_bwd(
    dout: Array, q: Array, fade: Array, state: Array, read: str
) -> tuple[Array, Array, Array]:
    """Adjoint of channel_start: dq, dfade, dstate.   (U.23)"""
    xp, first = namespace(dout, q, fade, state), read_from(fade, read)[:, :, 0, :]  # (B,L,K)
    # forward: out = (q * first) state
    pulled = xp.matmul(dout, xp.matrix_transpose(state))  # (B,L,K)
    dstate = xp.matmul(xp.matrix_transpose(q * first), dout)  # (B,K,E)
    dwrites = xp.zeros_like(fade[:, 1:, 1:, :])  # (B,L,L,K)
    return first * pulled, _of_reads(q * pulled, dwrites, read), dstate


def channel_sums(
    q: Array, k: Array, u: Array, fade: Array, state: Array | None, read: str
) -> tuple[Array, Array]:
    """(B,L,K),(B,L,K),(B,L,E),(B,L+1,L+1,K),(B,K,E)->(B,L,E),(B,K,E)
    reads of faded sums of writes, and the last of these sums   (U.22)

    ``state`` None: nothing came in.
    """
    xp, last = namespace(q, k, u, fade, state), fade[:, -1, ...]  # (B,L+1,K)
    out = causal_product(channel_scores(q, k, fade, read), u, read == "inclusive")  # (B,L,E)
    written = xp.matmul(xp.matrix_transpose(k * last[:, 1:, :]), u)  # (B,K,E)
    if state is None:
        return out, written
    return out + channel_start(q, fade, state, read), written + last[:, 0, :, None] * state


def channel_sums_bwd(
    dout: Array, dstate_out: Array | None, q: Array, k: Array, u: Array, fade: Array,
    state: Array | None, read: str,
) -> tuple[Array, ...]:  # fmt: skip
    """Adjoint of channel_sums: dq, dk, du, dfade, dstate (0 where no state came in).   (U.23)"""
    xp, last = namespace(dout, q, k, u, fade, state), fade[:, -1, ...]  # (B,L+1,K)
    empty = start_state(None, k, u)  # (B,K,E)
    dstate_out = empty if dstate_out is None else dstate_out  # (B,K,E)
    # forward: out = scores u
    du = anticausal_product(channel_scores(q, k, fade, read), dout, read == "inclusive")  # (B,L,E)
    dscores = xp.matmul(dout, xp.matrix_transpose(u))  # (B,L,L)
    dq, dk, dfade = channel_scores_bwd(dscores, q, k, fade, read)
    # forward: state_out = (k * last)^T u
    pulled = xp.matmul(u, xp.matrix_transpose(dstate_out))  # (B,L,K)
    dk += last[:, 1:, :] * pulled
    du += xp.matmul(k * last[:, 1:, :], dstate_out)
    if state is None:
        return dq, dk, du, dfade + _of_last(xp.zeros_like(last[:, 0, :]), k * pulled), empty
    # forward: out += start
    dq_start, dfade_start, dstate = channel_start_bwd(dout, q, fade, state, read)
    # forward: state_out += Diag(last_0) state
    dstate += last[:, 0, :, None] * dstate_out
    dlast = _of_last(xp.sum(state * dstate_out, axis=2), k * pulled)  # (B,L+1,L+1,K)
    return dq + dq_start, dk, du, dfade + dfade_start + dlast, dstate


def _of_reads(dfirst: Array, dwrites: Array, read: str) -> Array:
    """(B,L,K),(B,L,L,K)->(B,L+1,L+1,K)   into the rows that are read: column 0, the others"""
    dseen = namespace(dfirst, dwrites).concat([dfirst[:, :, None, :], dwrites], axis=2)
    return read_from_bwd(dseen, read)


def _of_last(dfirst: Array, dwrites: Array) -> Array:
    """(B,K),(B,L,K)->(B,L+1,L+1,K)   into the last row: column 0, the others"""
    xp = namespace(dfirst, dwrites)
    dlast = xp.concat([dfirst[:, None, :], dwrites], axis=1)[:, None, ...]  # (B,1,L+1,K)
    length = dwrites.shape[1]
    shape = (dlast.shape[0], length, length + 1, dlast.shape[3])
    rest = xp.zeros(shape, dtype=dlast.dtype, device=device(dlast))
    return xp.concat([rest, dlast], axis=1)
