"""Results as JSON lines: one finished row a line, appended whole, so that a run that was killed
loses the row it was making and no other.

One process writes. A line that was cut off when a machine stopped has no end of line: readers leave
it out, and the next writer takes it away.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, TypeAlias

from ..files import finite

Result: TypeAlias = dict[str, Any]


def read_results(path: Path) -> dict[str, Result]:
    """Key -> result, in the order of the file; empty if there is no file.

    Raises ValueError, naming file and line, for a line that is none of this program's.
    """
    if not path.exists():
        return {}
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    results: dict[str, Result] = {}
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            result = json.loads(line)
            results[result["key"]] = result
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"{path}, line {number}: expected a row of the study as JSON with a key, found "
                f"{line[:40]!r}: remove that line, and its row is made again"
            ) from None
    return results


def append_result(path: Path, result: Result) -> Result:
    """Add a line and have it on the disk; returns what a reader will find. Numbers that are not
    finite become null.
    """
    line = json.dumps(finite(result), allow_nan=False).encode() + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        file.seek(0)
        kept = file.read().rfind(b"\n") + 1
        file.truncate(kept)  # what a run that was killed left
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
    kept_as: Result = json.loads(line)
    return kept_as
