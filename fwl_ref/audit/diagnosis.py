"""What kind of leak is it? From which rows change when, and in whose favour.

own label            a row knows the token that it scores, and none after it
own segment          rows know what follows up to the end of their segment
  update_before_score  ... and above all their own label
  segment_statistics   ... and their own label no more than others
whole document       rows know everything to the end
  two_passes           ... and above all their own label
  statistics           ... counts of tokens; or something that enters with the first update
  normalizer           ... none of these; or nothing but the length
tuning               whatever follows, there are only a few different pasts
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..backend import Array, host
from .evaluator import precision
from .probes import Audit, Single, at_scale, label_sum, outcomes, single

TEXTS = 12  # other texts after a place, to count how many different scores they make
MANY = 7  # more than a few choices would make
LABEL_ROWS = 5  # rows in which losses are summed over all labels for a diagnosis: V calls each
ROUNDING = 1024  # roundings that another order of sums may make


class Finding(NamedTuple):
    """One thing that makes a score illegal."""

    kind: str
    row: int  # the first row that is wrong, as far as seen
    reach: tuple[int, int]  # rows [start, end) that know one another's labels, or tokens ahead
    words: str


def diagnose(audit: Audit, scale: dict[int, Any], singles: dict[int, tuple]) -> list[Finding]:
    """Findings for first changed rows by position: ``scale`` after changes of all that follows,
    ``singles`` (what was changed, first changed row or None) after a change of one token.
    """
    first = min(scale.values())
    alone = {p: row for p, (_, row) in singles.items() if row is not None}
    rows = {p: min(scale[p], alone.get(p, p)) for p in scale}
    far = sorted(p for p in scale if scale[p] <= (first + p - 1) / 2)
    explained = sum(alone.get(p) == scale[p] for p in far)
    count = MANY
    if len(far) >= 3 or explained < len(far) / 2:  # else they lie in one segment, the first
        p = far[len(far) // 2]
        count = outcomes(audit, p, (first + p - 1) // 2 + 1, TEXTS)
    if count >= MANY:
        return [spread(audit, rows, singles)]
    words = (
        f"row {first} knows the text after it, but {TEXTS} other texts there leave it only {count} "
        "different scores: something was chosen from a few candidates (a step size, a "
        "checkpoint) by how well it reads this text"
    )
    found = [Finding("tuning", first, (0, len(audit.document) - 1), words)]
    near = {p: row for p, row in alone.items() if row > (first + p - 1) / 2}
    return [*found, spread(audit, near, singles)] if len(near) > len(singles) / 2 else found


def spread(audit: Audit, rows: dict[int, int], singles: dict[int, tuple]) -> Finding:
    """A leak that every label has, by first changed row and position of the change."""
    n, first = len(audit.document), min(rows.values())
    depths = {p - 1 - row for p, row in rows.items()}
    if depths == {0}:
        return Finding("own_label", first, (0, 1), own_label_words(first, "changes with its label"))
    end = n - 2
    last = at_scale(audit, end)
    if last is not None and last <= (first + end) / 2:
        return whole_document(audit, first, singles)
    free = [p - 1 - row for p, row in rows.items() if row > 0]  # the first row stops all others
    if len(set(free)) == 1 and len(free) > 3:
        ahead = free[0]
        words = f"every row knows {ahead + 1} tokens that it has not reached, its label the first"
        return Finding("lookahead", first, (0, ahead + 1), words)
    return own_segment(audit, first, rows)


def whole_document(audit: Audit, first: int, singles: dict[int, tuple]) -> Finding:
    """Every row from ``first`` on knows everything to the end."""
    n = len(audit.document)
    changes = [change for change, row in singles.values() if row is not None]
    later = audit.rng.integers(min(first + 3, n - 1), n, TEXTS)  # the last rows have few after them
    changes += [single(audit, int(p)) for p in later]
    favour = favoured(audit, changes, first, n - 1)
    head = f"row {first} knows tokens up to the end of the document"
    if favour == "own":
        kind = "two_passes"
        words = f"{head}, and a row is helped most by its own label: the text was learned before"
    elif favour == "counts":
        kind = "statistics"
        words = (
            f"{head}, in any order, and a token makes itself likelier: its counts were taken first"
        )
    elif first > 0:
        kind = "statistics"
        words = (
            f"{head}, rows before it nothing, and no label is favoured: what is known enters with "
            "the first update, as squared gradients of the test text would, or a tuned step size"
        )
    else:
        kind = "normalizer"
        words = f"{head}, and no label is favoured: means or variances over the document"
    return Finding(kind, first, (first, n - 1), words)


def own_segment(audit: Audit, first: int, rows: dict[int, int]) -> Finding:
    """Rows know what follows up to the end of a segment: find a whole one, and whom it favours."""
    p = sorted(rows)[len(rows) // 2]
    start, low, high = rows[p], p, len(audit.document)
    while high - low > 1:  # the last token whose change reaches back to the segment's first row
        middle = (low + high) // 2
        reached = at_scale(audit, middle)
        low, high = (middle, high) if reached is not None and reached <= start else (low, middle)
    end = low
    changes = [single(audit, int(q)) for q in audit.rng.integers(start + 1, end + 1, TEXTS)]
    favour = favoured(audit, changes, start, end)
    head = f"rows {start} to {end - 1} know one another's labels, a segment of {end - start}"
    if favour == "own":
        words = f"{head}, and a row is helped most by its own: it was scored after the update on it"
        return Finding("update_before_score", first, (start, end), words)
    how = "in any order: counts" if favour == "counts" else "and no label is favoured: statistics"
    words = f"{head}, {how} of the segment, or attention that looks ahead in it"
    return Finding("segment_statistics", first, (start, end), words)


def own_label_words(row: int, seen: str) -> str:
    """The words for a row that knows its label."""
    return f"row {row} {seen}: the token was written, or read, before it was scored"


# Whom a leak favours
# ------------------------------------------------------------------------------------------------


def favoured(audit: Audit, changes: list[Single], start: int, end: int) -> str:
    """ "own", "counts" or "": whom rows [start, end) favour, which know one another's labels."""
    if audit.shows_labels:
        pairs = [_odds(audit, change, start) for change in changes if change.position > start]
        own = [pair[0] for pair in pairs]
    else:
        pairs = [_losses(audit, change, start) for change in changes]
        own = [label_sum(audit, row) - 1 for row in unsure_rows(audit, LABEL_ROWS, start, end)]
    other = host.array([o for *_, o in pairs if o is not None])
    helped = mostly_positive(other)
    if helped and in_any_order(audit, start, end):
        return "counts"
    typical = host.median(abs(other)) if len(other) else 0.0
    most = mostly_positive(host.array(own)) and (helped or host.median(own) > 1.5 * typical)
    return "own" if most else ""


def mostly_positive(shifts: Array) -> bool:
    """More often than by chance, by 2.2 standard deviations: 5 of 5, 10 of 12."""
    n = len(shifts)
    return bool(n > 0 and (2 * host.sum(shifts > 0) - n) / n**0.5 >= 2.2)


def in_any_order(audit: Audit, start: int, end: int) -> bool:
    """Whether row ``start`` stays as it is when later labels of rows [start, end) change places."""
    place = slice(start + 2, end + 1)
    text = audit.document.copy()
    text[place] = audit.rng.integers(0, audit.vocabulary, len(text[place]))
    row = audit.ask(text)[start]
    text[place] = text[place][::-1]
    allowed = max(ROUNDING * precision(audit.scores), audit.tolerance)
    return end - start > 2 and bool((abs(audit.ask(text)[start] - row) <= allowed).all())


def _odds(audit: Audit, change: Single, start: int) -> tuple:
    """Change of the new label's log odds against the old one's: in its own row, and the median of
    the rows before.
    """
    pair = [change.new, change.old]
    moved = (change.scores - audit.scores)[start : change.position, :][:, pair].astype("float64")
    moved = moved[:, 0] - moved[:, 1]
    return moved[-1], host.median(moved[:-1]) if len(moved) > 1 else None


def _losses(audit: Audit, change: Single, start: int) -> tuple:
    """Mean gain of earlier rows with the new label, and loss of those with the old one."""
    rows = slice(start, max(change.position - 1, start))
    labels = audit.document[1:][rows]
    gain = (audit.scores - change.scores)[rows].astype("float64")
    gain = host.concatenate([gain[labels == change.new], -gain[labels == change.old]])
    return (float(gain.mean()) if len(gain) else None,)


def unsure_rows(audit: Audit, count: int, start: int, end: int) -> list[int]:
    """``count`` rows of [start, end) with large losses: where the next token is certain, knowing it
    shows least.
    """
    rows = audit.rng.permutation(host.arange(start, max(end - 1, start + 1)))[: 8 * count]
    return [int(row) for row in rows[host.argsort(-audit.scores[rows])][:count]]
