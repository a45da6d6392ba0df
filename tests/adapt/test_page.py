"""docs/adapt.md: its table is that of the run whose results are kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fwl_ref.adapt.table import Line

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.host("reads files")


def table(results: dict) -> list[str]:
    """A row for each way: the change on each text with its interval, the change in the last quarter, and what it costs."""
    lines = [Line(**line) for line in results["lines"]]
    texts = list(dict.fromkeys(line.text for line in lines))
    found = {(line.way, line.text): line for line in lines}
    rows = []
    for way in dict.fromkeys(line.way for line in lines):
        mine = [found[way, text] for text in texts]
        cells = [c for line in mine for c in (f"{line.change:+.3f} ± {line.interval:.3f}", f"{line.quarters[-1]:+.3f}")]
        rows.append(f"| {' | '.join([way, *cells, f'{mine[0].time:.2f}', f'{mine[0].products:.2f}'])} |")
    return rows


def test_the_page_has_the_table_of_the_run_that_is_kept() -> None:
    """benchmarks/results/adapt.json, as ``adapt`` wrote it."""
    results = json.loads((ROOT / "benchmarks/results/adapt.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs/adapt.md").read_text(encoding="utf-8")
    assert not results["failures"]
    for row in table(results):
        assert row in page.splitlines(), row
    s = results["settings"]
    for words in (f"{s['train_tokens']:,} tokens", f"{s['steps']} steps", results["date"][:10], f"NumPy {results['versions']['numpy']}"):
        assert words in page, words
