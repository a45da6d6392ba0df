"""The table of evaluate: its sums, its gains, and the files that have all its digits."""

import csv
import io
import json

import numpy as np
import pytest

from fwl_ref.lm.data import Document
from fwl_ref.lm.evaluate import Way, bits_per_byte, carry, fast_weights, static, with_step_size
from fwl_ref.lm.model import Config, initialize
from fwl_ref.lm.table import Row, as_csv, as_json, gain, print_table, totals
from fwl_ref.lm.table_plot import NAMED, draw, save
from fwl_ref.tree import leaves, tree_map

pytestmark = pytest.mark.host("losses that came home")
CONFIG = Config(width=8, layers=1, heads=2, chunk=5)
LN2 = np.log(2)


@pytest.fixture(scope="module")
def params():
    """A random float64 model whose fast weights matter."""
    return with_step_size(tree_map(lambda p: p * 3 if p.ndim == 2 else p, initialize(CONFIG, seed=1, dtype="float64")), 0.05, 0.01)


def document(length, seed=0):
    return Document(f"d{seed}", np.random.default_rng(seed).integers(97, 107, length).astype("uint8"))


def ways(params):
    options = {"window": 8}
    return {"static": Way(static, params, CONFIG, options), "fast": Way(fast_weights, params, CONFIG, options)}


ROWS = [
    Row("a, b", "test", {"x": np.full(4, 2 * LN2), "y": np.full(4, 1 * LN2)}),
    Row("c", "trained", {"x": np.full(12, 4 * LN2), "y": np.full(12, 1 * LN2)}),
    Row("d", "test", {"x": np.full(4, 6 * LN2), "y": np.full(4, 5 * LN2)}),
]


@pytest.mark.parametrize("lengths", [(1, 2, 9), (0, 30)])
def test_a_table_leaves_out_what_has_nothing_to_predict(params, lengths, capsys):
    """The first byte of a document is given: one of one byte has no loss, and no row."""
    print_table([document(n, seed=n) for n in lengths], {"static": ways(params)["static"]})
    printed = capsys.readouterr().out.splitlines()
    kept = [n for n in lengths if n > 1]
    assert [line.split()[0] for line in printed[1:-1]] == [str(n - 1) for n in kept]
    expected = bits_per_byte([static(params, CONFIG, document(n, seed=n), 8) for n in kept])
    assert printed[-1].split() == [f"{expected:.3f}", "all", str(len(kept)), "documents"]


def test_a_table_has_gains_and_words(params, capsys):
    """In percent of the first way's bits, negative where adapting costs; documents of one word are summed up by themselves."""
    documents = [document(30, 1), document(20, 2), document(25, 3)]
    rows, _ = print_table(documents, ways(params), "(note)", words=["test", "trained", "test"])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split()[:5] == ["bytes", "static", "fast", "gain", "%"] and printed[0].endswith("seen          document  (note)")
    losses = {name: [way.function(params, CONFIG, d, 8) for d in documents] for name, way in ways(params).items()}
    bits = {name: bits_per_byte(each) for name, each in losses.items()}
    saved = 100 * (1 - bits["fast"] / bits["static"])
    assert printed[-1].split() == [*(f"{n:.3f}" for n in bits.values()), f"{saved:.1f}", "all", "3", "documents"]
    assert [line.split()[-2:] for line in printed[-3:-1]] == [["2", "test"], ["1", "trained"]]
    assert printed[1].split()[-2:] == ["test", "d1"] and [row.seen for row in rows] == ["test", "trained", "test"]


def test_sums_are_over_bytes():
    """Four bytes at 2 and four at 6 are 4 bits; with twelve at 4 still 4. Of one word there is one sum."""
    found = totals(ROWS)
    assert [t.title for t in found] == ["2 test", "1 trained", "all 3 documents"]
    assert [gain(t.rows) for t in found] == pytest.approx([25.0, 75.0, 55.0])
    assert [t.title for t in totals(ROWS[::2])] == ["all 2 documents"]
    assert gain([ROWS[0]._replace(losses={"x": ROWS[0].losses["x"]})]) is None


def test_csv_and_json_hold_all_digits():
    """Read back by their own libraries: names with commas, all ways, all sums; what is not finite is null."""
    lines = list(csv.reader(io.StringIO(as_csv(ROWS))))
    assert lines[0] == ["document", "seen", "bytes", "x", "y", "gain_percent"]
    assert lines[1][:3] == ["a, b", "test", "4"] and [float(n) for n in lines[2][3:]] == pytest.approx([4, 1, 75], rel=1e-15)
    found = json.loads(as_json(ROWS, {"model": "m"}))
    assert found["model"] == "m" and [d["document"] for d in found["documents"]] == ["a, b", "c", "d"]
    assert found["totals"][-1]["total"] == "all 3 documents" and found["totals"][-1]["bytes"] == 20
    assert found["totals"][-1]["bits_per_byte"] == pytest.approx({"x": 4, "y": 1.8}) and found["totals"][-1][
        "gain_percent"
    ] == pytest.approx(55)
    broken = ROWS[0]._replace(losses={"x": np.array([np.nan])})
    assert json.loads(as_json([broken], {}))["documents"][0]["bits_per_byte"]["x"] is None
    assert as_csv([ROWS[0]._replace(losses={"x": np.ones(1)})]).splitlines()[1].endswith(",")


def test_what_is_carried_goes_on_from_document_to_document(params, capsys):
    """From a given state through all documents: the state after the last; the other ways start afresh."""
    documents = [document(20, 1), document(30, 2)]
    _, start = carry(params, CONFIG, document(12, 3), 8)
    rows, last = print_table(documents, ways(params) | {"on": Way(carry, params, CONFIG, {"window": 8})}, state=start)
    state = start
    for row, d in zip(rows, documents, strict=True):
        losses, state = carry(params, CONFIG, d, 8, state=state)
        assert (row.losses["on"] == losses).all() and (row.losses["fast"] == fast_weights(params, CONFIG, d, 8)).all()
    assert all((a == b).all() for a, b in zip(leaves(last), leaves(state), strict=True))


def test_the_picture_shows_the_table(tmp_path):
    """Bits of every document in every way, the gain by position of all ways but the first; a PNG; many documents have no names."""
    left, right = draw(ROWS, 4).axes
    assert [list(line.get_xdata()) for line in left.lines] == [pytest.approx([2, 4, 6]), pytest.approx([1, 1, 5])]
    assert [label.get_text() for label in left.get_yticklabels()] == ["a, b  test", "c  trained", "d  test"]
    # of the first bytes all documents have as many: (2 + 4 + 6) / 3 bits against (1 + 1 + 5) / 3; of the last only one has any
    saved = list(right.lines[1].get_ydata())
    assert [saved[0], saved[-1]] == pytest.approx([100 * (1 - 7 / 12), 75.0])
    many, _ = draw([ROWS[1]._replace(name=f"$x_{i}") for i in range(NAMED + 1)], 4).axes
    assert not many.get_yticklabels() and "41 documents" in many.get_ylabel()
    save(tmp_path / "t.png", [row._replace(name="$x_$ " * 9) for row in ROWS], 4)
    assert (tmp_path / "t.png").read_bytes()[:4] == b"\x89PNG"
