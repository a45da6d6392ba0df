"""Write docs/peers.md: what other people's programs computed, and how far this project's answers are from theirs.

    python tools/peers.py [--check]

Reads ``tests/peers/manifest.json`` and recomputes every case. The page states the power of ten above the largest error, so that it is
the same on every machine whose rounding is no worse; ``--check`` writes nothing and fails if the page is stale.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

from fwl_ref.verify.golden import check_folder

ROOT = Path(__file__).resolve().parent.parent
FOLDER, PAGE = ROOT / "tests" / "peers", ROOT / "docs" / "peers.md"
OPEN, CLOSE = "<!-- from here: tools/peers.py -->", "<!-- to here -->"


def tables() -> str:
    """One table for each program: cases, what they compare, the bound on the error."""
    manifest = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))
    errors = {Path(r.file).stem: r.worst.error for r in check_folder(FOLDER) if not r.problem}
    lines = []
    for program, cases in manifest.items():
        lines += ["", f"## {program}", "", "| function | case | agrees within | in the case's variables |", "|:--|:--|--:|:--|"]
        for case in cases:
            bound = f"1e{math.ceil(math.log10(max(errors[case['case']], 1e-15)))}" if case["case"] in errors else "1e-12"
            kind = " ".join(case["case"].split("_")[1:-1])
            lines.append(f"| `{case['function']}` | {kind} | {bound} | {case['mapping']} |")
        lines += ["", *(f"Source: {source}." for source in dict.fromkeys(case["source"] for case in cases))]
    return "\n".join([OPEN, *lines, "", CLOSE])


def main() -> int:
    """Write the page or say that it is stale."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, fail if docs/peers.md is stale")
    options = parser.parse_args()
    old = PAGE.read_text(encoding="utf-8")
    new = old[: old.index(OPEN)] + tables() + old[old.index(CLOSE) + len(CLOSE) :]
    if options.check:
        return int(new != old)
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
