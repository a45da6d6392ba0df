"""What the plan says of compute, against counted products; and the committed page, against the code that writes it."""

import ast
import platform
import re

import numpy as np
import pytest

from benchmarks.sides.ours import formed
from fwl_ref.demo import cost
from fwl_ref.lm.corpus import load_corpus
from fwl_ref.lm.model import Config, initialize, loss_and_gradient
from fwl_ref.lm.train import TrainSettings
from fwl_ref.study.collect import lines
from fwl_ref.study.journal import read_results
from fwl_ref.study.page import markdown
from fwl_ref.study.plan import equal_steps, equal_window, once, plan
from fwl_ref.study.row import BASE
from fwl_ref.study.settings import FULL
from tests.test_structure import ROOT

pytestmark = pytest.mark.host("counts the products of NumPy, and files")

CONFIG = Config(width=64, layers=2, heads=2)
PLAIN = CONFIG._replace(fast=False)


def training_products(config, length):
    """Multiply-adds of one sequence's loss and gradient."""
    text = np.random.default_rng(0).integers(0, 256, (1, length + 1))
    return formed(lambda: loss_and_gradient(initialize(config), text[:, :-1], text[:, 1:], None, config))


def test_equal_training_compute_gives_the_plain_model_its_due():
    """Steps of the plain model times its counted products are those of the fast model's steps, or up to 5 % more."""
    window, steps = 128, 600
    own, other = (training_products(config, window) for config in (PLAIN, CONFIG))
    found = equal_steps(PLAIN, CONFIG, TrainSettings(steps=steps, window=window))
    assert 1 <= found * own / (steps * other) < 1.05


def test_the_longer_window_is_the_longest_that_costs_no_more():
    """One window more would cost more a byte than fast weights do."""
    window = 64
    found = equal_window(PLAIN, CONFIG, window)
    limit = cost.fast(CONFIG, window, carried=True) / window
    assert found % window == 0 and found > window
    assert cost.static(PLAIN, found) / found <= limit < cost.static(PLAIN, found + window) / (found + window)


def test_every_section_is_asked_before_a_longer_window():
    """And in the order main table, another memory, training lengths, the second corpus, ablations, health; no row twice."""
    rows = once(plan(FULL, {name: name for name in FULL.corpora}))
    first = {}
    for i, row in enumerate(rows):
        first.setdefault((row.section, row.corpus, row.window), i)
    a, b = FULL.corpora
    short, long = FULL.windows
    order = [(1, a, short), (3, a, short), (2, a, short), (1, b, short), (5, a, short), (6, a, short), (1, a, long), (1, b, long)]
    assert sorted(order, key=first.__getitem__) == order


def test_the_committed_page_is_what_the_plan_writes_of_the_committed_results():
    """To the letter with the Python whose library was read; with another one the texts are others, and so are the keys of the rows."""
    page = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
    results = read_results(ROOT / "benchmarks" / "results" / "study.jsonl")
    assert f"\n{len(results)} rows, " in page
    if {r["versions"]["python"] for r in results.values()} == {platform.python_version()}:
        rows = plan(FULL, {name: " ".join(load_corpus(name).fingerprint) for name in FULL.corpora})
        assert results.keys() <= {row.key for row in rows}
        assert page == markdown(lines(rows, results), results, FULL, len(once(rows)), "study.png")
    number, pair = re.compile(r"\d+\.\d+"), re.compile(r"\d+\.\d ± \d+\.\d %")
    said = (ROOT / "README.md").read_text(encoding="utf-8").split("**What else would buy it?**")[1].split("\n\n")[0]
    assert len(number.findall(said)) > 10 and set(number.findall(said)) <= set(number.findall(page))
    assert len(pair.findall(said)) > 5 and set(pair.findall(said)) <= set(pair.findall(page))  # changes with their intervals


def test_dynamic_evaluation_has_the_losses_of_the_plain_model_before_its_first_step():
    """The first 64 bytes of every document, of each corpus, window and seed: rows that are compared were read with one model."""
    results = [r for r in read_results(ROOT / "benchmarks" / "results" / "study.jsonl").values() if r["kind"] == "read"]
    base = {r["needs"][0]: r for r in results if r["name"] == BASE}
    ways = [r for r in results if r["settings"]["way"] in ("sgd", "rms", "block", "block_rms") and r["needs"][0] in base]
    assert len(ways) > 40
    for row in ways:
        plain = base[row["needs"][0]]
        np.testing.assert_allclose([d[0] for d in row["by_position"]], [d[0] for d in plain["by_position"]], rtol=1e-4, err_msg=row["name"])


def test_notebook_8_draws_the_figures_of_the_page():
    """Each model's bits, change and interval, of section 2."""
    page = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
    notebook = (ROOT / "notebooks" / "08_train_and_adapt.py").read_text(encoding="utf-8")
    drawn = ast.literal_eval(re.search(r"^study = (\{.*?^\})", notebook, re.MULTILINE | re.DOTALL)[1])
    assert len(drawn) == 7
    for name, (bits, change, interval) in drawn.items():
        assert re.search(rf"^\| {name} \| {bits:.3f} ± [\d.]+ \| {change:.3f} ± {interval:.3f} \|", page, re.MULTILINE), name
