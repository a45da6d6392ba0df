"""Two texts in two columns of a terminal, line beside line."""

from __future__ import annotations


def side_by_side(titles: tuple[str, str], texts: tuple[str, str], width: int = 100) -> str:
    """Both texts under their titles, each in a column of half the ``width`` (at least 10).

    Long lines are broken at the edge of a column, whatever stands there. Characters that cannot be
    printed are shown as escapes, tabs as four spaces.
    """
    column = max(10, (width - 3) // 2)
    left, right = (_lines(text, column) for text in texts)
    count = max(len(left), len(right))
    left += [""] * (count - len(left))
    right += [""] * (count - len(right))
    rows = [titles, ("-" * column, "-" * column), *zip(left, right, strict=True)]
    return "\n".join(f"{a.ljust(column)} | {b}".rstrip() for a, b in rows)


def _lines(text: str, column: int) -> list[str]:
    found = []
    for line in text.expandtabs(4).split("\n"):
        plain = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
        found += [plain[i : i + column] for i in range(0, max(1, len(plain)), column)]
    return found
