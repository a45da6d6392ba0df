"""The first line of a docstring that is a signature: (B,T,D),(D,F)->(B,T,F)."""

from __future__ import annotations

import re

SIGNATURE = re.compile(r"^((?:\([^()]*\),?)+)->((?:\([^()]*\),?)+)(?:\s|$)")


def parse(signature: str) -> tuple[list[list[str]], list[list[str]]]:
    """The axes of all inputs and of all outputs."""
    match = SIGNATURE.match(signature)
    assert match, f"not a signature such as (B,T),(T)->(B): {signature!r}"
    return tuple([[d for d in dims.split(",") if d] for dims in re.findall(r"\(([^()]*)\)", side)] for side in match.groups())
