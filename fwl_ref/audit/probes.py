"""Changes to a document that must not change its earlier scores, and what they changed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ..backend import Array, host
from .evaluator import Evaluator

Random = host.random.Generator


class Audit(NamedTuple):
    """What every probe needs."""

    ask: Evaluator
    document: Array  # (n,)
    scores: Array  # (n-1,) losses or (n-1,V) logits of the document as it is
    vocabulary: int
    tolerance: float
    rng: Random

    @property
    def shows_labels(self) -> bool:
        """Whether a row must ignore its own label too: logits must, a loss is the label's."""
        return self.scores.ndim == 2


class Single(NamedTuple):
    """One token changed."""

    position: int
    old: int
    new: int
    scores: Array


def futures(audit: Audit, p: int) -> Iterator[Array]:
    """The document with everything from token ``p`` on replaced, in four ways that help and hurt
    an adaptive reader: noise, one token, its own tokens in another order, the past once more.
    """
    rng, rest = audit.rng, len(audit.document) - p
    for future in (
        rng.integers(0, audit.vocabulary, rest),
        host.full(rest, rng.integers(0, audit.vocabulary)),
        rng.permutation(audit.document[p:]),
        host.resize(audit.document[:p], rest),
    ):
        yield with_future(audit, p, future)


def with_future(audit: Audit, p: int, future: Array) -> Array:
    """The document with another future; its first token is another one for certain."""
    changed = audit.document.copy()
    changed[p:] = future
    if changed[p] == audit.document[p]:
        changed[p] = other_token(audit, p)
    return changed


def other_token(audit: Audit, p: int) -> int:
    """A token that the document has elsewhere, or else any, but not the one at ``p``."""
    old = audit.document[p]
    choice = audit.document[audit.document != old]
    if not len(choice):
        return int((old + 1) % audit.vocabulary)
    return int(audit.rng.choice(choice))


def kept(audit: Audit, p: int) -> int:
    """How many rows may not change when tokens from ``p`` on do."""
    return p if audit.shows_labels else p - 1


def first_changed(audit: Audit, scores: Array, p: int) -> int | None:
    """The first of the rows that may not change that did."""
    rows = kept(audit, p)
    moved = abs(scores[:rows] - audit.scores[:rows]) > audit.tolerance
    moved = moved if moved.ndim == 1 else moved.any(axis=1)
    return int(moved.argmax()) if moved.any() else None


def earliest(rows: list[int | None]) -> int | None:
    """The smallest row that there is."""
    return min((row for row in rows if row is not None), default=None)


def at_scale(audit: Audit, p: int) -> int | None:
    """The first row that knows anything of the tokens from ``p`` on."""
    return earliest([first_changed(audit, audit.ask(d), p) for d in futures(audit, p)])


def single(audit: Audit, p: int) -> Single:
    """Change token ``p`` alone."""
    changed = audit.document.copy()
    changed[p] = new = other_token(audit, p)
    return Single(p, int(audit.document[p]), new, audit.ask(changed))


def outcomes(audit: Audit, p: int, rows: int, texts: int) -> int:
    """How many different scores the first ``rows`` have with the document's own future and
    ``texts`` futures of noise from token ``p`` on.
    """
    seen = [audit.scores[:rows]]
    for _ in range(texts):
        noise = audit.rng.integers(0, audit.vocabulary, len(audit.document) - p)
        past = audit.ask(with_future(audit, p, noise))[:rows]
        if all((abs(past - known) > audit.tolerance).any() for known in seen):
            seen.append(past)
    return len(seen)


def length_error(audit: Audit, places: list[int]) -> tuple[float, int]:
    """The largest change of a score, over 1 + its size, when the document ends earlier or goes on;
    and the row of it.
    """
    n, worst = len(audit.document), (0.0, 0)
    noise = audit.rng.integers(0, audit.vocabulary, n)
    longer = [host.concatenate([audit.document, tail]) for tail in (noise[: n // 2], 0 * noise)]
    for text in [*(audit.document[:p] for p in places), *longer]:
        rows = min(len(text), n) - 1
        error = abs(audit.ask(text)[:rows] - audit.scores[:rows]) / (1 + abs(audit.scores[:rows]))
        error = error if error.ndim == 1 else error.max(axis=1)
        worst = max(worst, (float(error.max()), int(error.argmax())))
    return worst


def label_sum(audit: Audit, row: int) -> float:
    """sum_v exp(-loss of label v) in ``row``: 1 unless the row knows its label. V calls."""
    total, changed = 0.0, audit.document.copy()
    for v in range(audit.vocabulary):
        changed[row + 1] = v
        total += float(host.exp(-audit.ask(changed)[row].astype("float64")))
    return total
