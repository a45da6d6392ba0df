"""Packed rows: several documents in one row of tokens, each with a memory of its own.

A document begins with its own state and never sees its neighbours, so it is a sequence. Documents
are cut out of their rows, those of one length become one batch, the rule runs on it as on any
batch, and the outputs go back to their places. So every form of every rule has packed rows, the
short convolution too, and a document gets the numbers that it gets alone.

``lengths`` says how the rows are cut: ``[[3, 5], [8]]`` are two rows of 8 tokens, with two
documents and one. Documents are counted row by row, and states are one per document, (N,...).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..backend import Array, Tree, as_index, device, namespace
from ..tree import leaves, tree_map

Lengths = Sequence[Sequence[int]]


class DocumentsResidual(NamedTuple):
    parts: tuple  # what the rule kept, one entry per length of a document
    groups: tuple  # (length, documents), in the order of the parts
    lengths: Lengths
    shape: tuple[int, int]  # (B, T)
    tokens: int  # arrays with a row per token


def document_lengths(starts: Sequence[Sequence[bool]]) -> list[list[int]]:
    """(B,T) of bool, as nested lists -> the lengths of the documents of every row.

    True where a document begins; the first token of a row begins one whatever it says.
    """
    rows = []
    for row in starts:
        first = [t for t, begins in enumerate(row) if begins or t == 0] + [len(row)]
        rows.append([b - a for a, b in zip(first, first[1:], strict=False)])
    return rows


def documents_fwd(
    fwd: Callable, tokens: tuple[Array, ...], lengths: Lengths, state: Tree | None = None
) -> tuple[tuple[Array, Tree], DocumentsResidual]:
    """``fwd(*tokens, state) -> (out, state), res`` on every document: out, and N states   (H.6)

    ``tokens`` have a row per token, (B,T,...); what is shared or fixed is ``fwd``'s own. Raises
    ValueError unless the documents of every row have at least 1 token and fill the row, TypeError
    for a state that is not of arrays.
    """
    _check_state(state)
    xp = namespace(*tokens, *leaves(state))
    _check_lengths(tokens[0], lengths)
    groups = _groups(lengths)
    outs, states, parts = [], [], []
    for length, documents in groups:
        places = _places(lengths, length, documents, tokens[0])  # (nL,)
        pieces = (_cut(a, places, len(documents), length) for a in tokens)  # (n,L,...)
        (out, after), res = fwd(*pieces, _rows(state, documents))
        outs.append(out)
        states.append(after)
        parts.append(res)
    state_out = tree_map(lambda *rows: xp.concat(list(rows), axis=0), *states)
    shape = (tokens[0].shape[0], tokens[0].shape[1])
    res = DocumentsResidual(tuple(parts), groups, lengths, shape, len(tokens))
    return (_back(outs, groups, lengths, shape), _rows(state_out, _inverse(groups))), res


def documents_bwd(
    bwd: Callable, dout: Array, dstate_out: Tree | None, res: DocumentsResidual
) -> tuple[Any, ...]:
    """Adjoint of documents_fwd.   (H.7)

    From ``bwd(dout, dstate, res) -> *dtokens, *dshared, dstate``.

    Returns the same: gradients of tokens in their rows, of shared parameters summed over documents,
    of N states.
    """
    parts, groups, lengths, shape, count = res
    xp, gradients = namespace(dout, *leaves(dstate_out)), []
    for part, (length, documents) in zip(parts, groups, strict=True):
        # forward: out back to its places
        places = _places(lengths, length, documents, dout)  # (nL,)
        dout_part = _cut(dout, places, len(documents), length)  # (n,L,...)
        gradients.append(bwd(dout_part, _rows(dstate_out, documents), part))
    *each, dstates = zip(*gradients, strict=True)
    # forward: tokens cut out of their rows
    dtokens = (_back(list(pieces), groups, lengths, shape) for pieces in each[:count])  # (B,T,...)
    # forward: every document takes the same shared parameters
    dshared = (sum(pieces[1:], pieces[0]) for pieces in each[count:])
    # forward: states picked out
    dstate = tree_map(lambda *rows: xp.concat(list(rows), axis=0), *dstates)
    return *dtokens, *dshared, _rows(dstate, _inverse(groups))


def _check_state(state: Tree) -> None:
    for leaf in leaves(state):
        if not hasattr(leaf, "shape"):
            raise TypeError(
                f"states of packed rows must be arrays, one row per document, got {leaf!r} among "
                "them: a mini-batch under way has one place for all sequences, give its network"
            )


def _check_lengths(tokens: Array, lengths: Lengths) -> None:
    rows, length = tokens.shape[:2]
    found = [sum(row) for row in lengths]
    if found != [length] * rows or any(n < 1 for row in lengths for n in row):
        raise ValueError(
            f"lengths must be those of the documents of {rows} rows of {length} tokens, each at "
            f"least 1, got {[list(row) for row in lengths]}"
        )


def _groups(lengths: Lengths) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """(length, numbers of the documents that are as long), shortest first"""
    flat = [n for row in lengths for n in row]
    found = sorted(set(flat)) or [0]
    return tuple((n, tuple(i for i, m in enumerate(flat) if m == n)) for n in found)


def _inverse(groups: tuple) -> tuple[int, ...]:
    """Where each document is, when groups follow each other."""
    order = [i for _, documents in groups for i in documents]
    return tuple(sorted(range(len(order)), key=order.__getitem__))


def _places(lengths: Lengths, length: int, documents: tuple[int, ...], like: Array) -> Array:
    """(nL,)   the tokens of documents of one length, in a row of all B T tokens"""
    xp, starts, total = namespace(like), [], 0
    for n in (n for row in lengths for n in row):
        starts.append(total)
        total += n
    tokens = [starts[i] + t for i in documents for t in range(length)]
    return as_index(xp.asarray(tokens, dtype=xp.int64, device=device(like)))


def _cut(a: Array, places: Array, count: int, length: int) -> Array:
    """(B,T,...)->(n,L,...)"""
    xp, rest = namespace(a), a.shape[2:]
    flat = xp.reshape(a, (a.shape[0] * a.shape[1], *rest))  # (BT,...)
    return xp.reshape(xp.take(flat, places, axis=0), (count, length, *rest))


def _back(pieces: list[Array], groups: tuple, lengths: Lengths, shape: tuple) -> Array:
    """Adjoint and inverse of _cut for all groups: (n,L,...) each -> (B,T,...)"""
    xp, rest = namespace(*pieces), pieces[0].shape[2:]
    rows = [xp.reshape(a, (a.shape[0] * a.shape[1], *rest)) for a in pieces]  # (nL,...)
    places = xp.concat([_places(lengths, n, documents, pieces[0]) for n, documents in groups])
    flat = xp.take(xp.concat(rows, axis=0), xp.argsort(places), axis=0)  # (BT,...)
    return xp.reshape(flat, (*shape, *rest))


def _rows(state: Tree, which: tuple[int, ...]) -> Tree:
    """The states of some documents; no state has none."""

    def pick(a: Array) -> Array:
        xp = namespace(a)
        index = xp.asarray(which, dtype=xp.int64, device=device(a))  # (n,)
        return xp.take(a, as_index(index), axis=0)

    return tree_map(pick, state)
