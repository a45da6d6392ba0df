"""Where the state is read, where it goes, and what happens between chunks."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from ...backend import host
from ...ops.common import chunk_slices
from ..options import Options
from ..packed import documents
from ..subjects import SUBJECTS, Arrays, Settings, Subject, state_out, tokens_of, zeros
from .common import Fault, NotHere, length_of, states_after, with_answer


def of_reading(subject: Subject, options: Options) -> Iterator[Fault]:
    """Faults of reading: its own write, or the state of another token."""
    if subject.read:
        if subject.name == "attention":
            for fill in ("itself", "nothing", "nan"):  # what the first token has left to see
                yield Fault(
                    "strict mask",
                    "a token does not see itself: the mask is exclusive",
                    partial(_strict_attention, fill=fill),
                )
            yield Fault("no mask", "a token sees its future: the mask is missing", _all_attention)
        elif subject.name == "linear_attention":
            yield Fault(
                "reads its own write",
                "a token reads its own write: the mask is inclusive where linear_attention is "
                "strict",
                _inclusive_linear,
            )
        return
    if options.read == "strict":
        yield Fault(
            "reads its own write",
            "a token reads its own write: it looks at the state after it, where a strict read "
            "looks at the one before",
            lambda s, a, o: s.answers(a, o | {"read": "inclusive"}),
        )
    else:
        yield Fault(
            "misses its own write",
            "a token does not see its own write: it reads the state before it (a strict read) "
            "where the inclusive one is "
            'asked for; if that is meant, give read="strict"',
            lambda s, a, o: s.answers(a, o | {"read": "strict"}),
        )


def _inclusive_linear(subject: Subject, a: Arrays, settings: Settings) -> Arrays:
    """o_t = q_t S_{t+1}: the decay rule's inclusive read at a constant rate"""
    gamma = host.broadcast_to(a["keep"], a["q"].shape[:2])
    case = {n: a[n] for n in ("q", "k", "v", "state", "cot_out", "cot_state_out")}
    found = SUBJECTS["decay"].answers(case | {"gamma": gamma}, settings | {"read": "inclusive"})
    found["g_keep"] = host.sum(found.pop("g_gamma"))
    return found


def _softmax(a: Arrays, mask) -> Arrays:
    scores = host.matmul(a["q"], host.matrix_transpose(a["k"])) * a["q"].shape[-1] ** -0.5
    scores = host.where(mask, scores, -host.inf)
    with host.errstate(all="ignore"):
        p = host.exp(scores - host.max(scores, axis=-1, keepdims=True))
        p = host.nan_to_num(p / host.sum(p, axis=-1, keepdims=True))
    return {"out": host.matmul(p, a["v"])}


def _strict_attention(subject: Subject, a: Arrays, settings: Settings, fill: str) -> Arrays:
    mask = host.tri(a["q"].shape[1], k=-1, dtype=bool)
    mask[0, 0] = fill == "itself"
    out = _softmax(a, mask)["out"]
    if fill == "nan":
        out[:, 0, :] = host.nan
    return {"out": out}


def _all_attention(subject: Subject, a: Arrays, settings: Settings) -> Arrays:
    n = a["q"].shape[1]
    return _softmax(a, host.ones((n, n), dtype=bool))


def of_state(subject: Subject, options: Options) -> Iterator[Fault]:
    """Faults of the state that comes in and goes out."""
    if not subject.state:
        return
    yield Fault(
        "ignores the state in",
        "it ignores the state that comes in",
        lambda s, a, o: s.answers(zeros(s, a), o),
    )
    yield Fault(
        "last token not in the state",
        "the state it returns is off by one: the last token's write is missing",
        lambda s, a, o: s.answers(a, o) | states_after(s, a, o, length_of(s, a) - 1),
    )
    for name in subject.state:
        out = state_out(name)
        yield Fault(
            f"{out} zero",
            f"the {out} it returns is all zeros",
            lambda s, a, o, out=out: with_answer(s.answers(a, o), out, lambda x: 0 * x),
        )
        if len(subject.state) > 1:
            yield Fault(
                f"{out} not updated",
                f"the {out} it returns is the one that came in",
                lambda s, a, o, out=out, n=name: s.answers(a, o) | {out: a[n]},
            )
    if "BKE" in subject.state.values():
        yield Fault(
            "state in transposed",
            "it reads the state that comes in as its transpose",
            lambda s, a, o: s.answers(_transposed(s, a), o),
        )
        yield Fault(
            "state out transposed",
            "the state it returns is the transpose",
            lambda s, a, o: s.answers(a, o) | _states_transposed(s, a, o),
        )


def of_documents(subject: Subject, options: Options) -> Iterator[Fault]:
    """Faults of rows of several documents."""
    if not options.packed:
        return
    yield Fault(
        "documents leak",
        "it ignores cu_seqlens: a document goes on with what the documents before it have written",
        partial(_leaking, options=options),
    )
    if subject.state:
        yield Fault(
            "state of the first document",
            "every document starts from the state of the first: there is one per document",
            lambda s, a, o: s.answers(
                a | {n: host.repeat(a[n][:1], len(a[n]), axis=0) for n in s.state}, o
            ),
        )


def _leaking(subject: Subject, a: Arrays, settings: Settings, options: Options) -> Arrays:
    """Forward only: the row as one sequence, from the first document's state."""
    batch, length = len(a[next(iter(subject.tokens))]), length_of(subject, a)
    row = documents(batch, length, options)
    whole = {n: x[:1] if n.removeprefix("cot_") not in subject.shared else x for n, x in a.items()}
    for name, letters in (subject.tokens | subject.outputs).items():
        for known in {name, f"cot_{name}"} & a.keys():
            parts = [a[known][d.sequence, : d.length] for d in row]
            whole[known] = host.concat(parts)[None] if letters.startswith("BT") else whole[known]
    found, end = [], 0
    for d in row:
        end += d.length
        if d.wanted:
            seen = subject.answers(tokens_of(subject, whole, slice(0, end)), settings)
            outs = {n: seen[n][:, end - length : end, ...] for n in subject.outputs}
            found.append(outs | {state_out(n): seen[state_out(n)] for n in subject.state})
    return {n: host.concat([f[n] for f in found]) for n in found[0]}


def _transposed(subject: Subject, a: Arrays) -> Arrays:
    names = [n for n, letters in subject.state.items() if letters == "BKE"]
    if a[names[0]].shape[-1] != a[names[0]].shape[-2]:
        raise NotHere
    return a | {n: host.matrix_transpose(a[n]) for n in names}


def _states_transposed(subject: Subject, a: Arrays, settings: Settings) -> Arrays:
    names = [n for n, letters in subject.state.items() if letters == "BKE"]
    if a[names[0]].shape[-1] != a[names[0]].shape[-2]:
        raise NotHere
    found = subject.answers(a, settings)
    return {state_out(n): host.matrix_transpose(found[state_out(n)]) for n in names}


# --- chunks


def of_chunks(subject: Subject, options: Options) -> Iterator[Fault]:
    """Faults at the boundaries of chunks."""
    if not subject.state:
        yield Fault(
            "last chunk missing",
            "the last chunk, which is short, is left out: its outputs are zero",
            lambda s, a, o: _short(s, a, o, states=False),
        )
        return
    yield Fault(
        "last chunk missing",
        "the last chunk, which is short, is left out: its outputs are zero and the state "
        "stops before it",
        lambda s, a, o: _short(s, a, o, states=True),
    )
    yield Fault(
        "outputs of the last chunk missing",
        "the outputs of the last chunk, which is short, are zero",
        lambda s, a, o: _short(s, a, o, states=False),
    )
    yield Fault(
        "state of the last chunk missing",
        "the state it returns is the one before the last chunk: the last chunk's writes are "
        "missing",
        lambda s, a, o: (
            s.answers(a, o)
            | states_after(s, a, o, (length_of(s, a) - 1) // o["chunk"] * o["chunk"])
        ),
    )
    yield Fault(
        "state of the short chunk missing",
        "the state it returns stops before the last chunk where that is short",
        lambda s, a, o: (
            s.answers(a, o) | states_after(s, a, o, length_of(s, a) // o["chunk"] * o["chunk"])
        ),
    )
    yield Fault(
        "state not carried",
        "the state is not carried from chunk to chunk: every chunk after the first starts "
        "from an empty memory",
        lambda s, a, o: _restarted(s, a, o, empty=True),
    )
    yield Fault(
        "state restarts",
        "every chunk starts from the state that came in, not from the one the chunk before left",
        lambda s, a, o: _restarted(s, a, o, empty=False),
    )


def _short(subject: Subject, a: Arrays, settings: Settings, states: bool) -> Arrays:
    length, chunk = length_of(subject, a), settings["chunk"]
    full = length // chunk * chunk
    if full == length:
        return subject.answers(a, settings)
    found = subject.answers(a, settings)
    for name in subject.outputs:
        out = host.array(found[name])
        out[:, full:, ...] = 0
        found[name] = out
    return found | (states_after(subject, a, settings, full) if states else {})


def _restarted(subject: Subject, a: Arrays, settings: Settings, empty: bool) -> Arrays:
    """Forward only: chunks that do not know of one another."""
    found: list[Arrays] = []
    for i, part in enumerate(chunk_slices(length_of(subject, a), settings["chunk"])):
        piece = tokens_of(subject, a, part)
        found.append(subject.answers(zeros(subject, piece) if i and empty else piece, settings))
    joined = {n: host.concat([f[n] for f in found], axis=1) for n in subject.outputs}
    return joined | {state_out(n): found[-1][state_out(n)] for n in subject.state}
