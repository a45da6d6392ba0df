"""Gates, rates and scales: left out, doubled, taken for something else, off by a token."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ...backend import host
from ...ops.common import chunk_slices
from ..options import Options
from ..subjects import Arrays, Settings, Subject
from ..trial import Answer
from .common import Fault, changed

FADES = {
    "gamma": "the fade",
    "alpha": "the fade",
    "keep": "the fade",
    "decay": "the weight decay",
    "momentum": "the momentum",
}


def of_gates(subject: Subject, options: Options) -> Iterator[Fault]:
    """Faults of gates: a logarithm taken for a gate, a gate forgotten or applied twice."""
    fades = [n for n in subject.inputs if n in FADES]
    for name in fades:
        none = (lambda g: 0 * g) if name in ("decay", "momentum") else (lambda g: 0 * g + 1)
        yield Fault(
            f"no {name}",
            f"{FADES[name]} is missing: it answers as if {name} were {none(0):d}",
            changed(name, none),
        )
        yield Fault(
            f"{name} inverted",
            f"it takes {name} for 1 - {name}: what is kept for what is forgotten",
            changed(name, lambda g: 1 - g),
        )
        if name == subject.gate:
            word = (
                "is a logarithm and it forgets to take exp of it"
                if options.log_gates
                else "is the gate itself and it takes its logarithm"
            )
            yield Fault(
                f"log of {name}", f"gate as log or not: {name} {word}", changed(name, host.log)
            )
            word = (
                "exp is taken twice"
                if options.log_gates
                else "is the gate itself and it takes exp of it, as of a logarithm"
            )
            yield Fault(
                f"exp of {name}", f"gate as log or not: {name} {word}", changed(name, host.exp)
            )
        if subject.tokens.get(name):
            yield from _shifts(name)
            yield Fault(
                f"{name} of the chunk's first token",
                f"one {name} per chunk: every token fades by that of its chunk's first",
                _per_chunk(name),
            )


def _per_chunk(name: str) -> Answer:
    def answer(subject: Subject, a: Arrays, settings: Settings) -> Arrays:
        gate, chunk = host.array(a[name]), settings["chunk"]
        for part in chunk_slices(gate.shape[1], chunk):
            gate[:, part, ...] = gate[:, part.start : part.start + 1, ...]
        return subject.answers(a | {name: gate}, settings)

    return answer


def _shifts(name: str) -> Iterator[Fault]:
    def before(fill: float) -> Callable:
        return lambda g: host.concat([0 * g[:, :1, ...] + fill, g[:, :-1, ...]], axis=1)

    def after(fill: float) -> Callable:
        return lambda g: host.concat([g[:, 1:, ...], 0 * g[:, :1, ...] + fill], axis=1)

    for fill in (1.0, 0.0):
        yield Fault(
            f"{name} one late",
            f"off by one: token t takes the {name} of token t - 1",
            changed(name, before(fill)),
        )
        yield Fault(
            f"{name} one early",
            f"off by one: token t takes the {name} of token t + 1",
            changed(name, after(fill)),
        )


def of_rates(subject: Subject) -> Iterator[Fault]:
    """Faults of rates: forgotten, squared, of another token."""
    for name in ("beta", "step", "weight", "weights"):
        if name not in subject.tokens:
            continue
        yield Fault(
            f"no {name}",
            f"{name} is missing: it answers as if it were 1",
            changed(name, lambda g: 0 * g + 1),
        )
        yield Fault(
            f"{name} twice",
            f"scale: it answers as if {name} were twice as large, as of a loss without its 1/2",
            changed(name, lambda g: 2 * g),
        )
        yield Fault(
            f"{name} half",
            f"scale: it answers as if {name} were half as large, as of a loss with a 1/2 too many",
            changed(name, lambda g: g / 2),
        )
        yield Fault(f"{name} squared", f"{name} is applied twice", changed(name, lambda g: g * g))
        yield Fault(
            f"{name} sigmoid",
            f"it takes the sigmoid of {name}, which is the rate itself",
            changed(name, lambda g: 1 / (1 + host.exp(-g))),
        )
        yield from _shifts(name)


def of_scales(subject: Subject, options: Options) -> Iterator[Fault]:
    """Faults of scales and norms of queries and keys."""
    if "q" not in subject.tokens:
        return
    for power, word in (
        (-0.5, "divides q by sqrt(K)"),
        (0.5, "multiplies q by sqrt(K)"),
        (-1.0, "divides q by K"),
        (1.0, "multiplies q by K"),
    ):
        more = (
            "once more than it should"
            if options.scale != 1.0 or subject.name == "attention"
            else "and should not"
        )
        if power > 0 and (options.scale == "rsqrt" or subject.name == "attention"):
            word, more = (
                ("does not divide q by sqrt(K)", "and should") if power == 0.5 else (word, more)
            )
        yield Fault(
            f"q K^{power}",
            f"scale: it {word} {more}",
            changed("q", lambda q, p=power: q * q.shape[-1] ** p),
        )
    if options.scale not in (1.0, "rsqrt"):
        yield Fault(
            "no scale",
            f"scale: it leaves out the factor {options.scale} of q",
            changed("q", lambda q: q / float(options.scale)),
        )
        yield Fault(
            "scale twice",
            f"scale: the factor {options.scale} of q is applied twice",
            changed("q", lambda q: q * float(options.scale)),
        )
    k_power = lambda k: k * k.shape[-1] ** -0.5  # noqa: E731
    if subject.name != "attention":
        yield Fault("k K^-0.5", "scale: it divides k, not q, by sqrt(K)", changed("k", k_power))
