"""What the two Titans share: momentum with weight decay, as tables of a chunk.

    update     U_{i+1} = eta_i U_i + w_i
    memory     M_{i+1} = (1 - alpha_i) M_i + iota_i U_{i+1}

w_i is what token i writes; ``join`` iota is how much of the update reaches the memory at token i, 1
unless told otherwise. Both lines are linear, so rates alone decide how much of M_0, of U_0 and of
every write is in M_i and in U_i (``responses``). Reads of M_i are faded sums of writes
(``heavy_sums``) if writes are outer products, w_i = k_i^T u_i.

Rates may be exactly 0: products of rates come from a triangular solve, not from logarithms.
"""

from __future__ import annotations

from typing import NamedTuple

from ..backend import Array, device, namespace
from ..ops.common import anticausal_product, before, causal_product, masked
from .common import read_from, read_from_bwd, solve, solve_bwd, sums, sums_bwd


class Responses(NamedTuple):
    """What the rates of a chunk of L tokens decide.

    Row i: the state before token i. Column 0: the first state; column j+1: token j.
    """

    keeps: Array  # (B,L+1,L+1) products of 1 - alpha between two states
    momenta: Array  # (B,L+1,L+1) products of eta: how much of U_0 and of every write is in U_i
    through: Array  # (B,L+1,L+1) how much of U_0 and of every write is in M_i
    fade: Array  # (B,L+1,L+1) the same, but column 0 says how much of M_0 is in M_i


class ResponsesGradient(NamedTuple):
    """Gradients of what of ``Responses`` is used."""

    momenta: Array  # (B,L+1,L+1)
    from_U: Array  # (B,L+1,1) column 0 of through
    fade: Array  # (B,L+1,L+1)


def responses(momentum: Array, decay: Array, join: Array | None) -> Responses:
    """(B,L),(B,L),(B,L)->...   M is a faded sum of the U_1, ..., U_i that join it   (W.4)

    Two triangular matrices and their product. ``join`` None is 1.
    """
    xp = namespace(momentum, decay, join)
    keeps, momenta = _products(1 - decay), _products(momentum)  # (B,L+1,L+1)
    through = causal_product(keeps[:, 1:, 1:], _joined(momenta, join), own=True)  # (B,L,L+1)
    through = xp.concat([xp.zeros_like(keeps[:, :1, :]), through], axis=1)  # (B,L+1,L+1)
    fade = xp.concat([keeps[:, :, :1], through[:, :, 1:]], axis=-1)  # (B,L+1,L+1)
    return Responses(keeps, momenta, through, fade)


def responses_bwd(
    g: ResponsesGradient, table: Responses, momentum: Array, decay: Array, join: Array | None,
) -> tuple[Array, Array, Array | None]:  # fmt: skip
    """Adjoint of responses: dmomentum, ddecay, djoin.   (W.6)"""
    xp = namespace(g.fade)
    # forward: fade = [keeps_0, through_1, ...],  from_U = through_0
    dthrough = xp.concat([g.from_U, g.fade[:, :, 1:]], axis=-1)  # (B,L+1,L+1)
    # forward: through[1:, :] = keeps[1:, 1:] (join momenta[1:, :]), and row 0 is 0
    joined = _joined(table.momenta, join)  # (B,L,L+1)
    dkeeps = xp.matmul(dthrough, xp.matrix_transpose(joined))  # (B,L+1,L)
    dkeeps = xp.concat([g.fade[:, :, :1], dkeeps], axis=-1)  # (B,L+1,L+1)
    djoined = anticausal_product(table.keeps[:, 1:, 1:], dthrough[:, 1:, :], own=True)  # (B,L,L+1)
    # forward: joined = join momenta[1:, :]
    djoin = None if join is None else xp.sum(djoined * table.momenta[:, 1:, :], axis=-1)  # (B,L)
    into = djoined if join is None else join[:, :, None] * djoined  # (B,L,L+1)
    dmomenta = g.momenta + read_from_bwd(into, "inclusive")
    dmomentum = _products_bwd(dmomenta, table.momenta, momentum)  # (B,L)
    return dmomentum, -_products_bwd(dkeeps, table.keeps, 1 - decay), djoin


def heavy_sums(
    q: Array, k: Array, u: Array, table: Responses, M: Array, U: Array, read: str,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """(B,L,K),(B,L,K),(B,L,E),...,(B,K,E),(B,K,E)->(B,L,E),(B,K,E),(B,K,E)
    reads of the memories, and the last M and U, for writes k_j^T u_j   (W.5)
    """
    xp = namespace(q, k, u, M, U)
    # M_i = fade_i0 M_0 + through_i0 U_0 + sum_{j<i} fade_{i,j+1} k_j^T u_j
    out, M_out = sums(q, k, u, table.fade, M, read)  # (B,L,E), (B,K,E)
    from_U = table.through[:, :, :1]  # (B,L+1,1)
    out += read_from(from_U, read) * xp.matmul(q, U)
    M_out += from_U[:, -1:, :] * U
    # U_L = momenta_L0 U_0 + sum_j momenta_{L,j+1} k_j^T u_j
    last = table.momenta[:, -1, :, None]  # (B,L+1,1)
    U_out = xp.matmul(xp.matrix_transpose(k * last[:, 1:, :]), u) + last[:, :1, :] * U  # (B,K,E)
    return out, M_out, U_out


def heavy_sums_bwd(
    dout: Array, dM_out: Array, dU_out: Array, q: Array, k: Array, u: Array, table: Responses,
    M: Array, U: Array, read: str,
) -> tuple:  # fmt: skip
    """Adjoint of heavy_sums: dq, dk, du, ResponsesGradient, dM, dU.   (W.6)"""
    xp = namespace(dout, q)
    # forward: out, M_out = sums(q, k, u, fade, M)
    dq, dk, du, dfade, dM = sums_bwd(dout, dM_out, q, k, u, table.fade, M, read)
    # forward: out += from_U q U
    from_U = table.through[:, :, :1]  # (B,L+1,1)
    pulled = xp.matmul(dout, xp.matrix_transpose(U))  # (B,L,K)
    dq += read_from(from_U, read) * pulled
    dU = xp.matmul(xp.matrix_transpose(read_from(from_U, read) * q), dout)  # (B,K,E)
    dread = xp.sum(q * pulled, axis=-1, keepdims=True)  # (B,L,1)
    # forward: M_out += from_U_L U
    dU += from_U[:, -1:, :] * dM_out
    dlast = xp.sum(dM_out * U, axis=(1, 2))[:, None, None]  # (B,1,1)
    dfrom_U = read_from_bwd(dread, read) + _at_end(dlast, from_U)  # (B,L+1,1)
    # forward: U_out = (momenta_L k)^T u + momenta_L0 U
    last = table.momenta[:, -1, :, None]  # (B,L+1,1)
    pulled = xp.matmul(u, xp.matrix_transpose(dU_out))  # (B,L,K)
    dk += last[:, 1:, :] * pulled
    du += last[:, 1:, :] * xp.matmul(k, dU_out)
    dU += last[:, :1, :] * dU_out
    dfirst = xp.sum(U * dU_out, axis=(1, 2))[:, None]  # (B,1)
    dlast = xp.concat([dfirst, xp.sum(k * pulled, axis=-1)], axis=-1)  # (B,L+1)
    dmomenta = _at_end(dlast[:, None, :], table.momenta)  # (B,L+1,L+1)
    return dq, dk, du, ResponsesGradient(dmomenta, dfrom_U, dfade), dM, dU


def _joined(momenta: Array, join: Array | None) -> Array:
    """(B,L+1,L+1),(B,L)->(B,L,L+1)   how much of U_0 and of every write joins M with U_1, ..."""
    return momenta[:, 1:, :] if join is None else join[:, :, None] * momenta[:, 1:, :]


def _products(rate: Array) -> Array:
    """(B,L)->(B,L+1,L+1)
    P_ij = product of rate_r over j <= r < i, for j <= i, else 0; any rate, 0 too

    Row i is rate_{i-1} times row i - 1, plus the unit row i: so P is the inverse of I - (rate below
    the diagonal).
    """
    xp, size = namespace(rate), rate.shape[1] + 1
    unit = xp.eye(size, dtype=rate.dtype, device=device(rate))[None, :, :]  # (1,L+1,L+1)
    products = solve(-_below(rate), xp.broadcast_to(unit, (rate.shape[0], size, size)))
    return masked(products, before(size, rate, own=True))


def _products_bwd(dproducts: Array, products: Array, rate: Array) -> Array:
    """Adjoint of _products."""
    xp = namespace(dproducts)
    # forward: products = (I - below)^{-1}
    da, _ = solve_bwd(dproducts, -_below(rate), products)  # (B,L+1,L+1)
    # forward: below_{r+1,r} = rate_r
    one = xp.eye(rate.shape[1] + 1, k=-1, dtype=rate.dtype, device=device(rate))  # (L+1,L+1)
    return -xp.sum(da * one, axis=-1)[:, 1:]  # (B,L)


def _below(rate: Array) -> Array:
    """(B,L)->(B,L+1,L+1)   the rates on the first diagonal below the main one"""
    xp = namespace(rate)
    one = xp.eye(rate.shape[1] + 1, k=-1, dtype=rate.dtype, device=device(rate))  # (L+1,L+1)
    first = xp.zeros((rate.shape[0], 1), dtype=rate.dtype, device=device(rate))  # (B,1) of row 0
    return xp.concat([first, rate], axis=1)[:, :, None] * one


def _at_end(row: Array, like: Array) -> Array:
    """(B,1,N)->(B,L+1,N)   adjoint of taking the last row"""
    xp = namespace(row)
    return xp.concat([xp.zeros_like(like[:, :-1, :]), row], axis=1)
