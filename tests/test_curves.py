"""The curves of what fast weights and dynamic evaluation cost: the page and its plots are of the stored rows, the rows are of the programs.
A docstring that opens with "N:" is a negative control.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import cost_page, curves, generation
from benchmarks.agreement import agree
from benchmarks.curves import Point, by_formula, config, points, read_on_by_formula, ways
from benchmarks.processes import SideError
from benchmarks.sides import ours
from fwl_ref.lm.generate import read_text, reader_start, write_text
from fwl_ref.lm.model import initialize
from tests.test_benchmarks import twin

pytestmark = pytest.mark.host("measures NumPy, and starts processes")

DOCS = Path(__file__).resolve().parent.parent / "docs"
FOUND = curves.load(curves.RESULTS)
TINY = {"layers": (1, 2), "width": (64,), "length": (70,)}
SECONDS = {"seconds": dict.fromkeys(cost_page.WAYS, 1.0) | {"plain": 1.0}, "spread": dict.fromkeys(cost_page.WAYS, 0.25)}


def whole() -> dict[str, Any]:
    """The stored rows, with times that nobody measured for what is not stored yet."""
    run = {"date": "today", "machine": "m", "libraries": "l", "rounds": 5}
    measured = [row | SECONDS for row in copy.deepcopy(FOUND["counted"]["rows"])]
    for row in measured:
        adds = row.pop("multiply_adds")
        row["ratio"] = {way: n / adds["plain"] for way, n in adds.items()}
    held = dict.fromkeys(FOUND["counted"]["rows"][0]["multiply_adds"], 12_345_678)
    formed = [row | {"peak_bytes": held, "stated_bytes": held} for row in FOUND["counted"]["rows"]]
    inference = [{"layers": n, "batch": 8, "counted": 1.3, "ratio": {"fast": 1.3}, "spread": {"fast": 0.1}} for n in (4, 12)]
    length = [
        {"length": n, "multiply_adds": 2_500_000 * n, "without_window": n * n, "peak_bytes": 12_345_678}
        | {"seconds": n * 25e-6, "ratio_per_token": 1.5, "spread": 0.125}
        for n in (512, 1024)
    ]
    writing = {"kind": "fast", "prompt": 7, "count": 9, "largest_error_in_float64": {"torch": 2e-15}, "versions": {"torch": "2"}}
    writing |= {"bytes_per_second": {"fwl_ref": 100.0, "torch": 300.0}, "ratio_to_torch": 3.0, "spread": 0.5}
    made_up = {"formed": formed, "measured": measured, "inference": inference, "length": length, "generation": [writing]}
    return FOUND | {name: {"run": run, "rows": rows} for name, rows in made_up.items()}


# The stored results and the page
# ------------------------------------------------------------------------------------------------------------------


def test_the_page_and_its_plots_are_of_the_stored_rows() -> None:
    """Every figure of docs/cost.md: ``python -m benchmarks.curves --only counted`` writes it anew if this fails."""
    assert (DOCS / "cost.md").read_text(encoding="utf-8") == cost_page.page(FOUND)
    stored = {path.name: Image.open(path).text["Source"] for path in DOCS.glob("cost_*.png")}
    assert stored == {name: of for name, (_, of) in cost_page.plots(FOUND).items()}


def test_the_stored_counts_are_those_of_the_formulas() -> None:
    """At every point, in order; what was counted where it is formed is the same."""
    counted = [row["multiply_adds"] for row in FOUND["counted"]["rows"]]
    assert [Point(row["layers"], row["width"], row["length"]) for row in FOUND["counted"]["rows"]] == points()
    assert counted == [by_formula(point) for point in points()]
    for row in cost_page.rows_of(FOUND, "formed"):
        assert row["multiply_adds"] == by_formula(Point(row["layers"], row["width"], row["length"]))


def test_the_points_cover_what_is_claimed() -> None:
    """Depth 2 to 12, width 64 to 512, T 128 to 2048, each once."""
    for values, least, most in zip(zip(*points(), strict=True), (2, 64, 128), (12, 512, 2048), strict=True):
        assert (min(values), max(values)) == (least, most)
    assert len(points()) == len(set(points())) == 13


def test_the_formulas_on_the_page_are_the_counts() -> None:
    """Those printed there, up to 40 D per token, at every point."""
    text = cost_page.FORMULA
    for words in ("12 D^2 + D\\,(T + 128)", "8 D^2 + D V", "8 D^2 + 2 D V", "16 D^2\\,(1 - S/T)", "5 D\\,(S + 128)", "128 D"):
        assert words in text
    v = 256
    for point in points():
        layers, d, t = point
        s = t if t <= max(256, 3.2 * d) else 256
        plain = layers * (12 * d * d + d * (t + 128)) + 8 * d * d + d * v
        more = 8 * d * d + 2 * d * v + 16 * d * d * (1 - s / t) + 5 * d * (s + 128) + 128 * d
        adds = by_formula(point)
        assert adds["plain"] == plain * t
        assert 0 <= (adds["fast"] - adds["plain"]) / t - more <= 40 * d


def test_every_plot_shows_the_rows() -> None:
    """Each way's line on each axis; the lengths; N: other rows have another digest."""
    found = whole()
    plots = cost_page.plots(found)
    assert list(plots) == ["cost_counted.png", "cost_measured.png", "cost_length.png"]
    for name in ("counted", "measured"):
        for axis, of in zip(plots[f"cost_{name}.png"][0].axes, cost_page.AXES, strict=True):
            for line, way in zip(axis.get_lines(), cost_page.WAYS, strict=False):
                expected = {row[of]: cost_page.relative(row, way) for row in cost_page.along(found[name]["rows"], of)}
                assert dict(zip(line.get_xdata(), line.get_ydata(), strict=True)) == expected
                assert sorted(expected) == sorted(curves.AXES[of])
    left, right = plots["cost_length.png"][0].axes
    assert [list(line.get_ydata()) for line in (*left.get_lines(), *right.get_lines())] == [[2.5, 2.5], [512e-6, 1024e-6], [1.5, 1.5]]
    found["length"]["rows"][1]["ratio_per_token"] = 1.6
    assert cost_page.plots(found)["cost_length.png"][1] != plots["cost_length.png"][1]


def test_the_page_says_what_was_found_and_what_was_not_measured() -> None:
    """Goals reached and missed, with and without PyTorch; N: integers that differ are called so."""
    found = whole()
    text = cost_page.page(found)
    assert "| 4 | 8 | 1.30 ± 0.10 | 1.30 | 1.4 | reached |" in text and "| 12 | 8 | 1.30 ± 0.10 | 1.30 | 1.2 | missed |" in text
    assert "| 512 | 2.50 | 0.00 | 1.50 ± 0.12 | 25 | 12.3 MB |" in text
    assert "| fast | 100 | 300 | 3.00 ± 0.50 |" in text and "Not measured" not in text
    middle = found["counted"]["rows"][1]["multiply_adds"]
    ratios = [middle[way] / middle["plain"] for way in cost_page.WAYS]
    assert f"| 4 | 256 | 512 | {' | '.join(f'{r:.2f} ± 0.25' for r in ratios)} |" in text
    assert f"| 4 | 256 | 512 | {' | '.join(f'{r:.2f}' for r in ratios)} |" in text
    alone = copy.deepcopy(found)
    alone["generation"]["rows"][0] |= {"bytes_per_second": {"fwl_ref": 100.0}}
    del alone["generation"]["rows"][0]["ratio_to_torch"]
    assert "PyTorch was not there" in cost_page.page(alone)
    counted = {"run": found["counted"]["run"], "rows": FOUND["counted"]["rows"]}
    assert cost_page.page({"counted": counted}).count("Not measured yet") == 6
    wrong = copy.deepcopy(found["counted"]["rows"][0]) | {"peak_bytes": dict.fromkeys(middle, 1), "stated_bytes": dict.fromkeys(middle, 1)}
    wrong["multiply_adds"]["fast"] += 1
    assert "OTHER integers at 1 of them" in cost_page.page(found | {"formed": {"run": counted["run"], "rows": [wrong]}})


# The programs
# ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes that take no time."""
    monkeypatch.setattr(Point.__new__, "__defaults__", (1, 64, 70))
    monkeypatch.setattr(curves, "AXES", TINY)
    monkeypatch.setattr(cost_page, "DEFAULT", {"layers": 1, "width": 64, "length": 70})
    monkeypatch.setattr(cost_page, "GOALS", {1: 1.4})
    monkeypatch.setattr(curves, "BATCHES", [(1, 2)])
    monkeypatch.setattr(curves, "LENGTHS", (70, 140))
    monkeypatch.setattr(curves, "WINDOW", 20)


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
def test_the_whole_run_saves_every_row_and_writes_the_page(tmp_path: Path) -> None:
    """All sections but the one that starts processes; formed is counted; each row is in the file before the next begins."""
    out = tmp_path / "cost.json"
    words = ["--rounds=1", "--out", str(out), "--docs", str(tmp_path)]
    assert curves.main([*words, "--only", "counted", "formed", "measured", "inference", "length"]) == 0
    found = json.loads(out.read_text())
    assert list(found) == ["counted", "formed", "measured", "inference", "length"]
    assert [len(found[name]["rows"]) for name in found] == [2, 2, 2, 1, 2]
    for counted, formed, measured in zip(*(found[name]["rows"] for name in ("counted", "formed", "measured")), strict=True):
        assert counted["multiply_adds"] == formed["multiply_adds"] and all(n > 0 for n in formed["peak_bytes"].values())
        assert measured["ratio"]["plain"] == 1 and list(measured["seconds"]) == list(counted["multiply_adds"])
    assert (tmp_path / "cost.md").read_text() == cost_page.page(found)
    assert {p.name for p in tmp_path.glob("*.png")} == {"cost_counted.png", "cost_measured.png", "cost_length.png"}

    def breaks(_: Any) -> Any:
        yield {"layers": 1}
        raise SideError("broken off")

    before, curves.SECTIONS["inference"] = curves.SECTIONS["inference"], breaks
    try:
        assert curves.main([*words, "--only", "inference"]) == 2
    finally:
        curves.SECTIONS["inference"] = before
    after = json.loads(out.read_text())
    assert after["inference"]["rows"] == [{"layers": 1}] and after["length"] == found["length"]


@pytest.mark.usefixtures("tiny")
def test_a_way_that_diverges_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """N: losses that are not finite."""
    monkeypatch.setattr(curves, "ways", lambda point: {"plain": lambda: np.array([np.nan])})
    with pytest.raises(SideError, match="finite losses"):
        list(curves.really_formed(None))


@pytest.mark.parametrize("words", [["--rounds=0"], ["--cores", "987654"]])
def test_what_cannot_be_measured_is_refused(words: list[str], capsys: Any) -> None:
    """Before anything starts."""
    assert curves.main([*words, "--only", "counted"]) == 2 and "must be" in capsys.readouterr().err


@pytest.mark.parametrize(("length", "piece", "window"), [(9, 4, 3), (300, 150, 20), (8, 8, 100), (1, 4, 2), (140, 70, 20)])
def test_reading_on_forms_what_the_formula_says(length: int, piece: int, window: int) -> None:
    """However the text is cut. N: another attention window is another number."""
    c = config(Point(2, 64, piece))._replace(attention_window=window, chunk=5)
    params, text = initialize(c), bytes(range(97, 107)) * 30
    found = ours.formed(lambda: read_text(params, c, reader_start(params), text[:length], piece))
    assert found == read_on_by_formula(c, length, piece)
    if length > piece:
        assert found != read_on_by_formula(c._replace(attention_window=window - 1), length, piece)


@pytest.mark.parametrize("fast", [False, True])
def test_one_more_byte_is_one_byte_of_work(fast: bool) -> None:
    """Products while text is written: the trunk's for one byte, whose query meets every cached key, and the slow block's; a fast model
    forms its slow block once more, the slow backward, and two outer products. A plain model writes nothing to a memory.
    """
    d, layers, prompt, count = 64, 2, 5, 6
    c = config(Point(layers, d, 100))._replace(fast=fast)
    params = initialize(c)
    reader = read_text(params, c, reader_start(params), bytes(range(prompt)), 100)
    trunk = sum(layers * (12 * d * d + 2 * d * (prompt + i + 1)) for i in range(count))
    block = 8 * d * d + 256 * d
    written = block + 256 * d + 4 * d * d + 8 * d * d
    assert ours.formed(lambda: write_text(params, c, reader, count, window=100)) == trunk + count * (block + (written if fast else 0))


def test_the_cost_of_a_byte_does_not_grow_with_the_text() -> None:
    """From 512 to 16,384 bytes with a window of 256 keys: within a few hundredths, for the first bytes see less. N: without one it
    grows more than threefold.
    """
    c = config(Point())
    per_byte = {w: [read_on_by_formula(c._replace(attention_window=w), n, 512) / n for n in curves.LENGTHS] for w in (curves.WINDOW, None)}
    sliding, whole_text = per_byte[curves.WINDOW], per_byte[None]
    assert max(sliding) < 1.04 * min(sliding) and max(sliding[2:]) < 1.01 * min(sliding[2:])
    assert whole_text[-1] > 3 * whole_text[0]


@pytest.mark.usefixtures("tiny")
def test_every_way_reads_the_same_bytes() -> None:
    """Losses of all T bytes; the first segment's are the plain model's where nothing was learned yet."""
    losses = {name: job() for name, job in ways(Point()).items()}
    assert {len(x) for x in losses.values()} == {70}
    for name in ("dynamic", "dynamic_block"):
        assert np.allclose(losses[name][:64], losses["plain"][:64], rtol=1e-5) and not np.allclose(losses[name][64:], losses["plain"][64:])
    assert losses["fast"][0] == pytest.approx(losses["plain"][0], rel=1e-5) and losses["fast_carried"][0] != losses["fast"][0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "fast"])
def test_pytorch_writes_the_same_text(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes, last features and memory in float64. N: with a faster decay it does not."""
    side = twin("pytorch")
    monkeypatch.setattr(generation, "SIZE", {"width": 16, "layers": 2, "heads": 2, "vocabulary": 256})
    monkeypatch.setattr(generation, "PROMPT", 9)
    monkeypatch.setattr(generation, "COUNT", 12)
    given = generation.problem(kind, "float64")
    expected = ours.load(given, 1)()
    assert len(expected[1]) == (8 if kind == "fast" else 2)
    loss, found = side.load(given, 1)()
    assert agree("writing", "torch", (loss, side.host(found)), expected) < 1e-12
    loss, found = side.load(given | {"weights": given["weights"] | {"decay": given["weights"]["decay"] + 1e-3}}, 1)()
    if kind == "fast":
        with pytest.raises(SideError, match="nothing is timed"):
            agree("writing", "torch", (loss, side.host(found)), expected)


@pytest.mark.slow
def test_writing_is_measured_in_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """This project alone, where PyTorch is left out: a row for each model."""
    monkeypatch.setattr(generation, "SIZE", {"width": 16, "layers": 1, "heads": 2, "vocabulary": 256})
    monkeypatch.setattr(generation, "PROMPT", 5)
    monkeypatch.setattr(generation, "COUNT", 4)
    rows = list(generation.rows([], curves.available()[:1], 1))
    assert [row["kind"] for row in rows] == ["plain", "fast"] and all(row["bytes_per_second"]["fwl_ref"] > 0 for row in rows)
