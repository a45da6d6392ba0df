"""Heads, logarithms and norms; and faults of the backward pass alone."""

from __future__ import annotations

from collections.abc import Iterator

from ...backend import host
from ...ops.common import chunk_slices
from ..options import Options
from ..subjects import Arrays, Settings, Subject, state_out, tokens_of
from .common import Fault, changed, length_of, with_answer


def of_layout(subject: Subject, options: Options) -> Iterator[Fault]:
    """Faults of a kernel's layout: which head reads which values."""
    if options.grouped_values > 1:
        other = "strided" if options.grouping == "neighbours" else "neighbours"
        yield Fault(
            "heads grouped otherwise",
            f"the wrong value heads share a head of q and k: as with grouping={other!r}",
            None,
            options._replace(grouping=other),
        )
    if options.log_gates:
        yield Fault(
            f"gradient of {subject.gate}, not of its log",
            f"gate as log or not: g_{subject.gate} is the gradient of the gate, "
            "not of its logarithm: times the gate is missing",
            lambda s, a, o: _without_log(s, a, o),
        )
    elif subject.gate:
        yield Fault(
            f"gradient of log {subject.gate}",
            f"gate as log or not: g_{subject.gate} is the gradient of the gate's logarithm, "
            "which came as itself",
            lambda s, a, o: with_answer(s.answers(a, o), f"g_{s.gate}", lambda g: g * a[s.gate]),
        )
    if options.l2norm:
        yield Fault(
            "no l2 norm", "it does not normalise q and k", None, options._replace(l2norm=0.0)
        )
        yield Fault(
            "l2 epsilon",
            "it normalises by |k| alone: the epsilon under the root is missing",
            None,
            options._replace(l2norm=1e-30),
        )
    elif subject.tokens.get("q") == subject.tokens.get("k", "") and subject.name != "attention":
        yield Fault(
            "l2 norm",
            "it normalises q and k, which come as they are to be used; give l2norm=EPSILON if "
            "that is meant",
            None,
            options._replace(l2norm=1e-6),
        )
        yield Fault(
            "l2 norm",
            "it normalises q, which comes as it is to be used",
            changed("q", lambda q: q / host.linalg.vector_norm(q, axis=-1, keepdims=True)),
        )


def _without_log(subject: Subject, a: Arrays, settings: Settings) -> Arrays:
    return with_answer(
        subject.answers(a, settings), f"g_{subject.gate}", lambda g: g / a[subject.gate]
    )


# --- the backward pass alone


def of_backward(subject: Subject, options: Options) -> Iterator[Fault]:
    """Faults of a backward pass whose forward pass is right."""
    if subject.state:
        yield Fault(
            "cotangent of the state ignored",
            "its backward pass ignores the gradient of the final state",
            lambda s, a, o: s.answers(
                a | {f"cot_{state_out(n)}": 0 * a[f"cot_{state_out(n)}"] for n in s.state}, o
            ),
        )
        yield Fault(
            "gradient not carried",
            "its backward pass does not carry the gradient of the state back from chunk to chunk",
            _not_carried,
        )
    yield Fault(
        "cotangent of the output ignored",
        "its backward pass ignores the gradient of the output",
        lambda s, a, o: s.answers(
            a | {f"cot_{n}": 0 * a[f"cot_{n}"] for n in s.outputs if f"cot_{n}" in a}, o
        ),
    )


def _not_carried(subject: Subject, a: Arrays, settings: Settings) -> Arrays:
    """Every chunk from its own state, and only the last knows of the final state's gradient."""
    parts = chunk_slices(length_of(subject, a), settings["chunk"])
    state, found = {n: a[n] for n in subject.state}, []
    for part in parts:
        piece = tokens_of(subject, a, part) | state
        if part is not parts[-1]:
            piece |= {f"cot_{state_out(n)}": 0 * a[f"cot_{state_out(n)}"] for n in subject.state}
        found.append(subject.answers(piece, settings))
        state = {n: found[-1][state_out(n)] for n in subject.state}
    tokens = {
        f"g_{n}": host.concat([f[f"g_{n}"] for f in found], axis=1)
        for n in subject.tokens
        if f"g_{n}" in found[0]
    }
    shared = {f"g_{n}": sum(f[f"g_{n}"] for f in found) for n in subject.shared}
    outputs = {n: host.concat([f[n] for f in found], axis=1) for n in subject.outputs}
    states = {state_out(n): found[-1][state_out(n)] for n in subject.state}
    return (
        outputs | states | tokens | shared | {f"g_{n}": found[0][f"g_{n}"] for n in subject.state}
    )
