"""check_score_first: change what comes later, and demand that earlier scores stay as they are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from ..backend import Array, host
from .diagnosis import ROUNDING, Finding, diagnose, own_label_words, unsure_rows
from .evaluator import document_losses, precision, reader
from .probes import Audit, at_scale, first_changed, label_sum, length_error, single

MIN_TOKENS = 16
ROUNDINGS = 64  # of a loss: how far a sum of probabilities may be from 1


class ScoreLeak(AssertionError):
    """A score knew something that it must not know. ``report`` has all findings."""

    def __init__(self, report: AuditReport) -> None:
        super().__init__(str(report))
        self.report = report


class AuditReport(NamedTuple):
    """What was checked and what was found. ``str(report)`` says both."""

    findings: tuple[Finding, ...]
    checked: tuple[str, ...]
    calls: int  # of the evaluator

    @property
    def ok(self) -> bool:
        return not self.findings

    def __str__(self) -> str:
        found = [f"{f.kind}: {f.words}" for f in self.findings]
        verdict = found or ["no leak found: no earlier score changed"]
        return "\n".join([*verdict, *(f"  checked: {line}" for line in self.checked)])


def check_score_first(evaluator: Any, document: Any, **options: Any) -> AuditReport:
    """``audit_scores``, and ScoreLeak if it finds anything: one line in a test."""
    report = audit_scores(evaluator, document, **options)
    if not report.ok:
        raise ScoreLeak(report)
    return report


def audit_scores(
    evaluator: Any,
    document: Any,
    *,
    vocabulary: int = 256,
    tolerance: float = 0.0,
    positions: Iterable[int] | None = None,
    label_rows: int = 2,
    lengths: bool = True,
    seed: int = 0,
) -> AuditReport:
    """Is every token scored by what stands before it alone?

    Parameters
    ----------
    evaluator : a function from tokens (n,), host integers, to losses in nats (n-1,) or logits
        (n-1,V), row i for token i + 1, in any array library; or the class of a stream with
        predict() and reveal(token). All that is fitted to the test text must happen inside it.
    document : bytes, or integers (n,) in [0, vocabulary); several of the evaluator's segments.
    tolerance : how far an earlier score may move, 0 for every bit (but for the sign of a zero).
    positions : where the future begins, each in [1, n); None = 12 places spread over the document.
    label_rows : for losses, in how many rows to sum over all labels, V calls each.
    lengths : whether the evaluator can be asked for documents of other lengths too.

    Costs 5 calls per position, 4 for repeats, 6 for lengths, for losses V per ``label_rows``; a
    leak some dozens more to say what it is, and for losses 5 V.

    Raises ValueError or TypeError for a document, a setting or scores that cannot be audited.
    """
    ask, calls = reader(evaluator, vocabulary)
    tokens = check_document(document, vocabulary)
    places = check_positions(positions, len(tokens), seed)
    if not (host.isfinite(tolerance) and tolerance >= 0):
        raise ValueError(f"the tolerance must be finite and >= 0, got {tolerance}")
    if label_rows < 0:
        raise ValueError(f"label_rows must be at least 0, got {label_rows}")
    rng = host.random.default_rng(seed)
    audit = Audit(ask, tokens, ask(tokens), vocabulary, tolerance, rng)
    unsteady = repeats(audit)
    if unsteady:
        return AuditReport((unsteady,), (REPEATED,), calls[0])
    allowed = "every bit" if tolerance == 0 else f"all but {tolerance:g}"
    scale = {p: at_scale(audit, p) for p in places}
    changes = [single(audit, p) for p in places]
    singles = {c.position: (c, first_changed(audit, c.scores, c.position)) for c in changes}
    checked = [
        REPEATED,
        f"{len(places)} places from token {places[0]} to {places[-1]}: four other futures, and one "
        f"other label; earlier {'logits' if audit.shows_labels else 'losses'} keep {allowed}",
    ]
    scale = {p: row for p, row in scale.items() if row is not None}
    scale |= {p: row for p, (_, row) in singles.items() if row is not None and p not in scale}
    findings = diagnose(audit, scale, singles) if scale else []
    if not findings and not audit.shows_labels and label_rows:
        findings, line = labels_sum_to_one(audit, label_rows)
        checked.append(line)
    if not findings and lengths:
        findings, line = lengths_agree(audit)
        checked.append(line)
    checked.append(f"{calls[0]} calls of {len(tokens)} tokens, seed {seed}")
    return AuditReport(tuple(findings), tuple(checked), calls[0])


REPEATED = "the same document, before and after another one: the same scores"


def repeats(audit: Audit) -> Finding | None:
    """The same text has the same scores, whatever was read in between."""
    again = audit.ask(audit.document)
    steady = abs(again - audit.scores) <= audit.tolerance
    audit.ask(audit.rng.integers(0, audit.vocabulary, len(audit.document)))
    after = audit.ask(audit.document)
    same = steady & (abs(after - audit.scores) <= audit.tolerance)
    if same.all():
        return None
    row = int(host.argwhere(~same)[0][0])
    if steady.all():
        words = "reading another document in between changed the scores of this one: state is kept"
        return Finding("state", row, (row, len(same)), words)
    runs = [audit.scores, again, *(audit.ask(audit.document) for _ in range(4))]
    means = host.array([document_losses(scores, audit.document).mean() for scores in runs])
    if (means[1:2] < means[:1]).all() and (means[3:] < means[2:-1]).all():
        words = (
            f"read again and again, the document costs less every time ({means[0]:.4g}, "
            f"{means[1]:.4g}, ... {means[-1]:.4g} nats a token): state is kept between calls"
        )
        return Finding("state", row, (row, len(same)), words)
    error = abs(again - audit.scores).max()
    words = (
        f"the same document has other scores each time, by up to {error:.3g}: random numbers "
        "(dropout), state kept between calls, or a device that adds in any order, for which there "
        "is the tolerance"
    )
    return Finding("random", row, (row, len(same)), words)


def labels_sum_to_one(audit: Audit, count: int) -> tuple[list[Finding], str]:
    """With losses the own label is not seen by changing tokens, but by adding its alternatives."""
    allowed = ROUNDINGS * precision(audit.scores) + audit.tolerance
    rows = unsure_rows(audit, count, 0, len(audit.scores))
    sums = {row: label_sum(audit, row) for row in rows}
    line = (
        f"rows {', '.join(map(str, sums))}: the probabilities of all {audit.vocabulary} labels sum "
        f"to 1 within {allowed:.1g}"
    )
    row = max(sums, key=lambda row: abs(sums[row] - 1))
    if abs(sums[row] - 1) <= allowed:
        return [], line
    if sums[row] > 1:
        seen = f"gives its {audit.vocabulary} labels probabilities that sum to {sums[row]:.6g}"
        return [Finding("own_label", row, (0, 1), own_label_words(row, seen))], line
    words = (
        f"the probabilities of all {audit.vocabulary} labels of row {row} sum to {sums[row]:.6g}: "
        "losses in bits instead of nats, a vocabulary that is larger, or a label that was seen and "
        "hurt"
    )
    return [Finding("not_a_distribution", row, (0, 1), words)], line


def lengths_agree(audit: Audit) -> tuple[list[Finding], str]:
    """The document cut short, or with something after it, has the same scores up to rounding."""
    n = len(audit.document)
    places = sorted({max(2, n // 3), n // 2, n - n // 5, n - 1})
    error, row = length_error(audit, places)
    allowed = max(ROUNDING * precision(audit.scores), audit.tolerance)
    line = (
        f"documents of {', '.join(map(str, places))}, {n + n // 2} and {2 * n} tokens: scores "
        f"agree within {error:.1g} (rounding: {allowed:.1g})"
    )
    if error <= allowed:
        return [], line
    words = (
        f"row {row} depends on how long the document is, and on nothing else of what follows: a "
        "normalizer over its length, or padding"
    )
    return [Finding("normalizer", row, (0, n - 1), words)], line


def check_document(document: Any, vocabulary: int) -> Array:
    """The document as integers (n,), or an error that says what is wrong with it."""
    if isinstance(document, bytes | bytearray):
        document = host.frombuffer(bytes(document), dtype="uint8")
    tokens = host.asarray(document)
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise TypeError(
            "the document must be bytes or integers (n,), got "
            f"shape {tokens.shape} of dtype {tokens.dtype}"
        )
    if vocabulary < 2:
        raise ValueError(f"the vocabulary must hold at least 2 tokens, got {vocabulary}")
    if len(tokens) < MIN_TOKENS:
        raise ValueError(
            f"the document must have at least {MIN_TOKENS} tokens, better several segments of the "
            f"evaluator, got {len(tokens)}"
        )
    if tokens.min() < 0 or tokens.max() >= vocabulary:
        raise ValueError(
            f"tokens must lie in [0, {vocabulary}), got {tokens.min()} to {tokens.max()}: give the "
            "evaluator's vocabulary"
        )
    return tokens.astype("int64")


def check_positions(positions: Iterable[int] | None, n: int, seed: int) -> list[int]:
    """Where futures begin: one in each twelfth of the document, the second token and the last; or
    what the caller wants, sorted.
    """
    if positions is None:
        edges = host.linspace(2, n - 1, 11).astype("int64")
        rng = host.random.default_rng([seed, 1])
        drawn = [
            int(rng.integers(a, max(b, a + 1))) for a, b in zip(edges, edges[1:], strict=False)
        ]
        return sorted({1, n - 1, *drawn})
    places = sorted({int(p) for p in positions})
    if not places or places[0] < 1 or places[-1] >= n:
        raise ValueError(
            f"positions must lie in [1, {n}), at least one, got {places[:1]} to {places[-1:]}: the "
            "first token is given, so its change may change everything"
        )
    return places
