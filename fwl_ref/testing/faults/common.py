"""What a fault is, and what the files of faults share."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ...backend import host
from ..options import Options
from ..subjects import Arrays, Settings, Subject, state_out, tokens_of
from ..trial import Answer


class Fault(NamedTuple):
    """What a kernel may do wrong."""

    name: str  # a word or two, for tests and tables
    sentence: str
    answer: Answer | None = None  # None: the options alone differ
    options: Options | None = None


class NotHere(Exception):
    """The fault makes no sense in this case."""


def changed(name: str, change: Callable) -> Answer:
    """The answers to other numbers in one array."""

    def answer(subject: Subject, a: Arrays, settings: Settings) -> Arrays:
        with host.errstate(all="ignore"):
            moved = a | {name: change(a[name])}
            found = subject.answers(moved, settings)
        return {n: host.asarray(x) for n, x in found.items()}

    return answer


def with_answer(answers: Arrays, name: str, change: Callable) -> Arrays:
    """The answers with one of them changed."""
    return answers | {name: change(answers[name])}


def length_of(subject: Subject, arrays: Arrays) -> int:
    """T of a case"""
    return arrays[next(iter(subject.tokens))].shape[1]


def states_after(subject: Subject, a: Arrays, settings: Settings, length: int) -> Arrays:
    """The states after that many tokens."""
    after = subject.answers(tokens_of(subject, a, slice(0, length)), settings) if length else a
    return {state_out(n): after[state_out(n)] if length else a[n] for n in subject.state}
