"""docs/adapt.md: its tables are those of the runs whose results are kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fwl_ref.adapt.table import Line, as_markdown

ROOT = Path(__file__).parents[2]
RUNS = ["adapt.json", "adapt_true.json", "adapt_unseen.json", "adapt_through.json", "adapt_through_unseen.json"]
pytestmark = pytest.mark.host("reads files")


@pytest.mark.parametrize("name", RUNS)
def test_the_page_has_the_table_of_the_run_that_is_kept(name: str) -> None:
    """benchmarks/results/, as ``adapt`` wrote it."""
    results = json.loads((ROOT / "benchmarks/results" / name).read_text(encoding="utf-8"))
    page = (ROOT / "docs/adapt.md").read_text(encoding="utf-8")
    assert not results["failures"]
    assert as_markdown([Line(**line) for line in results["lines"]]) in page
    s = results["settings"]
    for words in (f"{s['train_tokens']:,} tokens", f"{s['steps']} steps", results["date"][:10], f"NumPy {results['versions']['numpy']}"):
        assert words in page, words
