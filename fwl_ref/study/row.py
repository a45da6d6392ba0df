"""A row of the plan: one run as plain data, and the key that says what would come out the same."""

from __future__ import annotations

import hashlib
import json
from typing import Any, NamedTuple

VERSION = 1  # of what rows mean: another one makes all rows anew

KINDS = ("train", "read", "outside", "where")

# names that the page asks for
BASE = "plain, equal steps"
CARRIED = "fast weights, carried"
RESET = "fast weights, reset"
BLOCK = "plain, dynamic evaluation of the block"
BLOCK_RMS = "plain, dynamic evaluation of the block, RMS"
SGD = "plain, dynamic evaluation SGD"
RMS = "plain, dynamic evaluation RMS"
CACHE = "plain, neural cache"
MEMORY = "memory, carried"


class Row(NamedTuple):
    """What is run, and where it stands on the page."""

    key: str  # the same for rows that would come out the same
    kind: str  # one of KINDS
    section: int  # of the page
    variant: str  # which model, in words; "" for the main table's
    name: str  # what is done with it, in words
    corpus: str
    window: int
    seed: int
    settings: dict[str, Any]  # all that the outcome depends on, beside the text
    needs: tuple[str, ...] = ()  # keys of rows that have to be there


def key_of(kind: str, text: str, seed: int, settings: dict[str, Any], needs: tuple) -> str:
    """16 hexadecimal digits; ``text`` is a digest of the corpus."""
    words = json.dumps([VERSION, kind, text, seed, settings, needs], sort_keys=True)
    return hashlib.sha256(words.encode()).hexdigest()[:16]
