"""The demo's report: the table says what was measured, the JSON is JSON, the figure can be read
from the last row.
"""

import json
import math
import re
import struct
from contextlib import contextmanager

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

from fwl_ref import files
from fwl_ref.demo import plots, report
from fwl_ref.demo.compare import change_standard_error
from fwl_ref.demo.plots import COLOURS, MARKERS, bins, demo_figure, draw, gains, spreads
from fwl_ref.demo.report import markdown, write_report
from fwl_ref.demo.run import FULL, LABELS, relative_multiply_adds, settings_of
from fwl_ref.files import finite
from fwl_ref.slow_block import FastParameters

pytestmark = pytest.mark.host("files and figures")

NAMES = list(LABELS)
BITS = dict(zip(NAMES, (3.0, 2.7, 2.6, 2.75, 2.55, 2.9, 2.5, 2.4, 2.3), strict=True))
TIMES = dict(zip(NAMES, (1.0, 4.2, 4.8, 1.5, 1.7, 1.6, 1.5, 1.62, 2.3), strict=True))
OKABE_ITO = {"#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#999999"}  # with grey for black


def results(documents=3, **changes):
    """What the demo measures, made up."""
    return {
        "bits_per_byte": BITS,
        "relative_time": TIMES,
        "relative_multiply_adds": relative_multiply_adds(FULL, 8192),
        "cache_bytes": 8192,
        "equivalence_max_error": 3.2e-14,
        "change_standard_error": {name: 0.25 + 0.1 * i for i, name in enumerate(NAMES)},
        "chosen": dict.fromkeys(NAMES, "learned") | {"static": "-", "dynamic_evaluation_sgd": "rate 0.04, decay 0"},
        "microseconds_per_token_static": 37.4,
        "learned": {"eta": FastParameters(*(0.01 * i for i in range(6)))._asdict(), "decay": 0.0036},
        "settings": settings_of(FULL, "stdlib", False),
        "documents": [f"d{i}.py" for i in range(documents)],
        "validation_documents": ["a.py", "b.py"],
        "seed": 7,
        "parameters": 792839,
        "versions": {"python": "3.11.7", "numpy": "2.4.6", "blas": "Kernel"},
        "machine": "Linux x86_64, 2 cores",
        "date": "2024-05-06",
        "seconds": 168.6,
    } | changes


def curves(steps):
    """Training that falls from 8 bits to 3, and to 2.5."""
    falling = {"plain": 3.0, "fast": 2.5}
    return {n: end + (8 - end) * np.exp(-8 * np.arange(steps) / steps) for n, end in falling.items()}


def losses(*lengths, bits=BITS):
    """Losses in nats of documents of these lengths, at the given bits per byte everywhere."""
    return {name: [np.full(n, b * math.log(2), "float32") for n in lengths] for name, b in bits.items()}


@pytest.fixture
def blank(monkeypatch):
    """Nothing is drawn, which saves half a second where the figure is not the subject."""
    monkeypatch.setattr(plots, "draw", lambda *_: Figure(figsize=(1, 1)))


# --- JSON


def test_numbers_that_are_not_finite_become_null():
    """Wherever they are; everything else stays what it is."""
    data = {"a": math.nan, "b": [1, math.inf, (2.5, -math.inf)], "c": {"d": "nan", "e": None, "f": True}, "g": np.float64("nan")}
    assert finite(data) == {"a": None, "b": [1, None, [2.5, None]], "c": {"d": "nan", "e": None, "f": True}, "g": None}
    assert json.loads(json.dumps(finite(data), allow_nan=False)) == finite(data)


def test_a_report_that_is_no_json_is_refused_whole(tmp_path):
    """Rather no file than one that no other program reads."""
    broken = results(seconds=math.nan)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_report(tmp_path, LABELS, broken, curves(5), losses(40), 16)
    assert not list(tmp_path.iterdir())


# --- the table


def rows(text):
    """The cells of every row."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_the_table_says_what_was_measured():
    """A row per way, in order; every number as measured, to the digits shown."""
    found = results()
    head, rule, *body = rows(markdown(LABELS, found))
    assert len(body) == 9 and {len(row) for row in (head, rule, *body)} == {6}
    for name, (label, bits, change, time, adds, chosen) in zip(NAMES, body, strict=True):
        assert label == LABELS[name] and chosen == found["chosen"][name]
        assert (bits, time, adds) == (f"{BITS[name]:.3f}", f"{TIMES[name]:.2f}x", f"{found['relative_multiply_adds'][name]:.2f}x")
        if name == "static":
            assert change == "-"
        else:
            percent = 100 * (BITS[name] - BITS["static"]) / BITS["static"]
            assert change == f"{percent:+.1f} % (± {found['change_standard_error'][name]:.1f})"


def test_the_text_says_what_was_run():
    """Everything that a result depends on."""
    text = markdown(LABELS, results())
    for words in (
        "3.2e-14", "over 3 documents", "validation documents (2)", "5 interleaved", "document of 8,192 bytes",
        "37 microseconds", "decay 0.0036", "W2 0.0200",
        "stdlib of Python 3.11.7", "792,839 parameters", "1500 steps of 4 windows of 256 bytes", "seed 7", "2 cores", "NumPy 2.4.6",
        "Kernel", "2024-05-06", "169 s",
    ):  # fmt: skip
        assert words in text, words


@pytest.mark.parametrize(
    ("corpus", "words"),
    [
        ("stdlib", "Corpus stdlib of Python 3.11.7; 792,839"),
        ("topics", "Corpus topics of Python 3.11.7; 792,839"),
        ("txt", "Corpus txt; Python 3.11.7; 792,839"),
        ("texts/stdlib", "Corpus texts/stdlib; Python 3.11.7; 792,839"),
    ],
)
def test_a_text_of_ones_own_is_not_said_to_be_of_python(corpus, words):
    """Only the two corpora that come with Python are; its version is stated all the same."""
    found = results(settings=settings_of(FULL, corpus, False))
    assert words in markdown(LABELS, found)


def test_one_document_has_no_standard_error():
    """It is left out, and the text says why."""
    text = markdown(LABELS, results(documents=1, change_standard_error=dict.fromkeys(NAMES)))
    assert "±" not in text and "standard error" not in text and "one document" in text
    assert rows(text)[3][2] == "-10.0 %"


def test_a_way_that_diverged_is_shown_as_such():
    """In the table and in the figure: no number is made up, and the legend still names it."""
    found = results(bits_per_byte=BITS | {"dynamic_evaluation_rms": None})
    row = rows(markdown(LABELS, found))[2 + NAMES.index("dynamic_evaluation_rms")]
    assert row[1:3] == ["not finite", "-"]
    figure = draw(LABELS, curves(5), losses(100) | {"dynamic_evaluation_rms": [np.full(100, np.nan)]}, found, 16)
    shown = dict(zip(NAMES, figure.axes[2].lines, strict=True))
    assert [name for name, line in shown.items() if not len(line.get_xdata())] == ["dynamic_evaluation_rms"]
    assert len(figure.legends[0].get_texts()) == 9


# --- files


def test_the_report_is_three_files_and_says_where(tmp_path, blank, capsys):
    """JSON with every key, the table, a picture; nothing else is left in the folder; the table is
    printed.
    """
    out = tmp_path / "new" / "folder"
    write_report(out, LABELS, results(), curves(40), losses(100, 60), 16)
    assert sorted(p.name for p in out.iterdir()) == ["demo.json", "demo.md", "demo.png"]
    text = (out / "demo.md").read_bytes().decode("utf-8")
    assert json.loads((out / "demo.json").read_text()) == json.loads(json.dumps(results())) and text == markdown(LABELS, results())
    printed = capsys.readouterr().out
    assert text in printed and all(str(out / name) in printed for name in ("demo.json", "demo.md", "demo.png", "plain.npz", "fast.npz"))


class Full:
    """A file on a disk that is full."""

    def __init__(self, file):
        self.file = file

    def write(self, data):
        self.file.write(data[: len(data) // 2])
        raise OSError("no space left")


@pytest.mark.parametrize("broken", ["demo.json", "demo.md", "demo.png"])
def test_a_report_that_breaks_off_leaves_whole_files(tmp_path, monkeypatch, blank, broken):
    """Each file is the old one or the new one, and there are no drafts."""
    for name in ("demo.json", "demo.md", "demo.png"):
        (tmp_path / name).write_text("old")
    whole = report.whole_file

    @contextmanager
    def breaks_off(path):
        with whole(path) as file:
            yield Full(file) if path.name == broken else file

    for module in (report, files):  # the picture is written by files.save_png
        monkeypatch.setattr(module, "whole_file", breaks_off)
    with pytest.raises(OSError, match="no space left"):
        write_report(tmp_path, LABELS, results(), curves(5), losses(40), 16)
    names = ["demo.json", "demo.md", "demo.png"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    assert [(tmp_path / n).read_bytes() == b"old" for n in names] == [n >= broken for n in names]


def test_the_picture_is_a_png_of_sensible_size(tmp_path):
    """Signature, width and height from the header; wide enough for a slide. Whoever calls keeps
    backend, style and figures.
    """
    from matplotlib import pyplot

    before, figures = dict(matplotlib.rcParams), pyplot.get_fignums()
    demo_figure(tmp_path / "demo.png", LABELS, curves(40), losses(100, 60), results(), 16)
    data = (tmp_path / "demo.png").read_bytes()
    width, height = struct.unpack(">II", data[16:24])
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and data[12:16] == b"IHDR" and data.endswith(b"IEND\xaeB`\x82")
    assert 1500 <= width <= 2500 and 0.3 < height / width < 0.6 and 20_000 < len(data) < 1_000_000
    assert dict(matplotlib.rcParams) == before and pyplot.get_fignums() == figures


# --- the figure


@pytest.fixture(scope="module", params=[(600, (8192,) * 3), (4, (30,)), (60, (100_000, 500))], ids=["full", "tiny", "long"])
def figure(request):
    """A figure that has been drawn, of ordinary, tiny and long training and documents."""
    steps, lengths = request.param
    figure = draw(LABELS, curves(steps), losses(*lengths), results(), 256)
    FigureCanvasAgg(figure).draw()
    return figure


def texts(figure):
    """Every text that is seen, with its place in pixels."""
    renderer = figure.canvas.get_renderer()
    found = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]
    drawn = [t for t in found if not _outside_its_axis(t)]
    return [(t, t.get_window_extent(renderer)) for t in drawn]


def _outside_its_axis(text):
    """Tick labels beyond the limits of an axis exist but are not drawn."""
    for axes in text.figure.axes:
        for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            for tick, place in zip(axis.get_major_ticks(), axis.get_majorticklocs(), strict=False):
                if text in (tick.label1, tick.label2):
                    return not low - 1e-9 <= place <= high + 1e-9
    return False


def test_texts_neither_overlap_nor_leave_the_figure(figure):
    """Titles, labels, ticks, legends: each within the picture, none on another."""
    found = texts(figure)
    assert len(found) > 30
    for i, (text, box) in enumerate(found):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height, text.get_text()
        for other, second in found[i + 1 :]:
            assert not box.overlaps(second), f"{text.get_text()!r} lies on {other.get_text()!r}"


def test_texts_are_large_enough(figure):
    """At least 10 points, titles and legend more."""
    assert min(t.get_fontsize() for t, _ in texts(figure)) >= 10
    assert min(t.get_fontsize() for t in figure.legends[0].get_texts()) >= 12


def test_the_legend_covers_no_panel(figure):
    """It lies below all three and names all nine ways, in order."""
    (legend,) = figure.legends
    box = legend.get_window_extent(figure.canvas.get_renderer())
    assert [t.get_text() for t in legend.get_texts()] == list(LABELS.values())
    assert all(not box.overlaps(axes.get_tightbbox(figure.canvas.get_renderer())) for axes in figure.axes)
    assert box.y1 < min(axes.bbox.y0 for axes in figure.axes)


def test_the_legend_of_training_covers_no_curve(figure):
    """Both curves pass below or left of it."""
    axes = figure.axes[0]
    box = axes.get_legend().get_window_extent(figure.canvas.get_renderer())
    for line in axes.lines:
        points = axes.transData.transform(line.get_xydata())
        fine = np.concatenate([points[:-1] + share * np.diff(points, axis=0) for share in np.linspace(0, 1, 50)])
        assert not ((fine > box.min) & (fine < box.max)).all(axis=1).any()


def test_every_way_has_a_colour_and_a_marker_of_its_own(figure):
    """Okabe-Ito colours, the same in both panels and in the legend, and markers for those who do
    not see them.
    """
    assert list(COLOURS) == list(MARKERS) == NAMES
    assert {c.upper() for c in COLOURS.values()} <= OKABE_ITO and len(set(COLOURS.values())) == len(set(MARKERS.values())) == 9
    for lines, names in ((figure.axes[1].lines[1:], NAMES[1:]), (figure.axes[2].lines, NAMES), (figure.legends[0].get_lines(), NAMES)):
        assert [to_hex(line.get_color()).upper() for line in lines] == [COLOURS[name].upper() for name in names]
        assert [line.get_marker() for line in lines] == [MARKERS[name] for name in names]


def test_the_figure_shows_the_measurements(figure):
    """Training that ends where it ended; gains against static by position; time and bits of every
    way, inside the panel.
    """
    left, middle, right = figure.axes
    assert [line.get_ydata()[-1] for line in left.lines] == [pytest.approx(end, abs=0.3) for end in (3.0, 2.5)]
    low, high = left.get_ylim()
    assert all(low < line.get_ydata()[-1] < high for line in left.lines)
    for name, line in zip(NAMES[1:], middle.lines[1:], strict=True):
        np.testing.assert_allclose(line.get_ydata(), 100 * (1 - BITS[name] / BITS["static"]), rtol=1e-5)
        assert (
            1 <= len(line.get_xdata()) <= 16 and middle.get_xlim()[0] <= line.get_xdata()[0] <= line.get_xdata()[-1] <= middle.get_xlim()[1]
        )
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in right.lines] == [(TIMES[n], BITS[n]) for n in NAMES]
    (left_end, right_end), (bottom, top) = right.get_xlim(), right.get_ylim()
    assert left_end == 0 and all(0 < TIMES[n] < right_end and bottom < BITS[n] < top for n in NAMES)
    assert all(re.search(r"\w", words) for axes in figure.axes for words in (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()))


def test_gains_are_averages_over_the_bytes_of_each_part():
    """Every byte counts once; documents that end early are left out of later parts."""
    base = [np.full(10, 2.0), np.full(4, 4.0)]
    mine = [np.concatenate([np.full(4, 1.0), np.full(6, 1.5)]), np.full(4, 2.0)]
    assert gains(mine, base, [slice(0, 4), slice(4, 8), slice(8, 12)]) == pytest.approx([50.0, 25.0, 25.0])


def test_the_spread_of_a_part_is_that_of_the_table_over_the_documents_that_fill_it():
    """A document that ends inside a part does not count there; fewer than two have no spread; the
    end of the longest document fills the last part.
    """
    rng = np.random.default_rng(0)
    base = [rng.uniform(1, 2, n) for n in (10, 10, 7, 4)]
    mine = [x * rng.uniform(0.5, 1, len(x)) for x in base]
    found = spreads(mine, base, [slice(0, 4), slice(4, 8), slice(8, 12)])
    kept = ([0, 1, 2, 3], [0, 1], [0, 1])
    for value, documents, (a, b) in zip(found, kept, ((0, 4), (4, 8), (8, 10)), strict=True):
        changes = [100 * (mine[i][a:b].mean() / base[i][a:b].mean() - 1) for i in documents]
        assert value == pytest.approx(np.std(changes, ddof=1) / len(changes) ** 0.5, rel=1e-12)
    assert spreads(mine, base, [slice(0, 10)]) == [change_standard_error(mine[:2], base[:2])]
    assert np.isnan(spreads(mine[1:3], base[1:3], [slice(4, 8)])).all()


def bands(figure):
    """Colour and outline (x, low, high) of every band of the middle panel."""
    found = {}
    for band in figure.axes[1].collections:
        points = np.unique(band.get_paths()[0].vertices, axis=0)
        xs = np.unique(points[:, 0])
        edges = [(x, *points[points[:, 0] == x, 1][[0, -1]]) for x in xs]
        found[to_hex(band.get_facecolor()[0]).upper()] = np.array(edges)
    return found


def test_the_gain_by_position_is_drawn_with_its_standard_error():
    """A band around each curve, as wide to either side as the table's spread of that part, in the
    curve's colour; the axis says what it is.
    """
    rng = np.random.default_rng(0)
    noisy = {n: [x * rng.uniform(0.5, 1.5, len(x)).astype("float32") for x in rows] for n, rows in losses(600, 600, 600).items()}
    figure = draw(LABELS, curves(5), noisy, results(), 256)
    drawn, parts = bands(figure), bins(600, 256)
    assert len(parts) == 4 and len(drawn) == 8
    for name, line in zip(NAMES[1:], figure.axes[1].lines[1:], strict=True):
        x, low, high = drawn[COLOURS[name].upper()].T
        error = [change_standard_error([r[p] for r in noisy[name]], [r[p] for r in noisy["static"]]) for p in parts]
        assert min(error) > 0.1
        np.testing.assert_allclose(x, line.get_xdata())
        np.testing.assert_allclose(high - line.get_ydata(), error, rtol=1e-6)
        np.testing.assert_allclose(line.get_ydata() - low, error, rtol=1e-6)
    assert "standard error over documents" in figure.axes[1].get_xlabel()


def test_a_spread_that_is_not_known_is_neither_drawn_nor_named():
    """One document: curves without bands. A way that diverged: bands of the others."""
    alone = draw(LABELS, curves(5), losses(600), results(), 256)
    assert not bands(alone) and "standard error" not in alone.axes[1].get_xlabel()
    broken = losses(600, 600) | {"fast_cache": [np.full(600, np.nan, "float32")] * 2}
    assert set(bands(draw(LABELS, curves(5), broken, results(), 256))) == {COLOURS[n].upper() for n in NAMES[1:-1]}


@pytest.mark.parametrize(
    ("length", "window"), [(1, 1), (1, 256), (30, 256), (128, 256), (129, 256), (8192, 256), (8191, 256), (100_003, 256)]
)
def test_parts_of_a_document_are_few_and_equal(length, window):
    """Between 1 and 16, one after another from the start, none shorter than half a window, at least
    half of the document covered.
    """
    parts = bins(length, window)
    widths = {part.stop - part.start for part in parts}
    assert 1 <= len(parts) <= 16 and len(widths) == 1 and widths.pop() >= max(1, window // 2)
    assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])] and parts[-1].start < length
    assert min(parts[-1].stop, length) > length / 2
