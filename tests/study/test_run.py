"""The study from end to end with tiny sizes: every kind of row, going on after a stop, and what the page says."""

import json

import numpy as np
import pytest
from matplotlib.figure import Figure

from fwl_ref.demo.parallel import InTurn
from fwl_ref.lm.train import train
from fwl_ref.study import figures, training
from fwl_ref.study import make as making
from fwl_ref.study import run as running
from fwl_ref.study.estimate import KINDS, reading, seconds, work
from fwl_ref.study.journal import read_results
from fwl_ref.study.make import corpus_of, model_file, settings_of
from fwl_ref.study.plan import once, plan
from fwl_ref.study.row import BLOCK, CARRIED, SGD
from fwl_ref.study.run import RESULTS, next_row, run_study
from fwl_ref.study.ways import WAYS
from fwl_ref.tree import leaves
from tests.study.small import tiny, write_text

pytestmark = pytest.mark.host("files")

TIMES = ("row_seconds", "seconds_per_byte", "date", "commit")  # a commit may be made meanwhile


WIDE = {"windows": (16, 24), "seeds": (0, 1), "few": (0, 1), "widths": (4,), "layers": (2,)}  # of plans that are not run


@pytest.fixture(scope="module")
def sizes(tmp_path_factory):
    """One corpus of short documents."""
    return tiny([write_text(tmp_path_factory.mktemp("text") / "one")])


@pytest.fixture(scope="module")
def rows(sizes):
    """A plan of several windows, seeds and sizes."""
    return planned(sizes._replace(**WIDE))


def planned(sizes):
    return plan(sizes, {name: " ".join(corpus_of(name).fingerprint) for name in sizes.corpora})


def go(out, sizes, minutes=None):
    """The study in this process."""
    return run_study(out, None, minutes, sizes, InTurn(), 1)


@pytest.fixture(scope="module")
def done(tmp_path_factory, sizes):
    """The whole plan; nobody writes into the folder."""
    out = tmp_path_factory.mktemp("study")
    return out, go(out, sizes)


@pytest.fixture
def short(monkeypatch, sizes):
    """The sizes of a plan that is cut to its first groups of rows, and a picture that is not drawn."""
    monkeypatch.setattr(running, "plan", lambda *a: [r for r in plan(*a) if r.section in (1, 4)][:14])
    monkeypatch.setattr(figures, "draw", lambda _: Figure(figsize=(1, 1)))
    return sizes


def same(result):
    """What must not depend on when and how it was made."""
    return {k: v for k, v in result.items() if k not in TIMES}


# --- the plan


def test_keys_are_of_what_is_run_and_needs_come_before(rows):
    """Rows of one key are the same run; a row stands behind those that it needs; all kinds and ways are in the plan."""
    seen = {}
    for row in rows:
        assert all(key in seen for key in row.needs), row
        twin = seen.setdefault(row.key, row)
        assert (row.kind, row.corpus, row.seed, row.settings, row.needs) == (twin.kind, twin.corpus, twin.seed, twin.settings, twin.needs)
    assert len(once(rows)) == len(seen) < len(rows)
    assert {row.kind for row in rows} == set(making.MAKERS)
    assert {row.settings["way"] for row in rows if row.kind == "read"} == set(WAYS)
    assert {row.section for row in rows} == {1, 2, 3, 4, 5, 6}


def test_another_text_or_seed_is_another_run(sizes, rows):
    """No key of one is a key of the other."""
    wide = sizes._replace(**WIDE)
    other = plan(wide, dict.fromkeys(sizes.corpora, "other"))
    assert not {r.key for r in rows} & {r.key for r in other}
    keys = [{r.key for r in rows if r.seed == seed and r.kind != "outside"} for seed in wide.seeds]
    assert not keys[0] & keys[1] and len(keys[0]) == len(keys[1])


def test_a_stopped_study_has_all_seeds_of_what_comes_first(sizes, rows):
    """Stop anywhere among the rows of the main table: of no group has one seed begun before the other seed has the group before."""
    runs = [r for r in once(rows) if r.section == 1 and r.kind == "read" and r.window == 16]
    order = [(r.name, r.seed) for r in runs]
    assert order[:6] == [(name, seed) for seed in (0, 1) for name in ("plain, equal steps", CARRIED, "fast weights, reset")]
    groups = [{BLOCK, SGD}, {"plain, equal training compute"}]
    for group in groups:
        place = {seed: [order.index((name, seed)) for name in group] for seed in (0, 1)}
        assert max(place[0]) < min(place[1]) == min(place[0]) + len(group)


# --- from end to end


def test_every_row_is_made(done, sizes):
    """Each with finite numbers, versions, commit, seed and settings; nothing failed."""
    (out, outcome), rows = done, planned(sizes)
    results = read_results(out / RESULTS)
    assert results == outcome.results and set(results) == {r.key for r in rows} and outcome.made == len(results)
    for row in once(rows):
        result = results[row.key]
        assert "failed" not in result, result
        assert {"versions", "commit", "date", "machine", "row_seconds"} <= set(result) and result["seed"] == row.seed
        assert result["settings"] == json.loads(json.dumps(row.settings))
        if row.kind in ("read", "outside"):
            assert len(result["bits"]) == 2 and all(0 < b < 60 for b in result["bits"])
        assert work(row, 100) and seconds(row, dict.fromkeys(SPEEDS, 1.0), 100) > 0
        assert (reading(row) is None) == (row.kind != "read")


SPEEDS = ("train plain", "train fast", *WAYS, *KINDS, *(f"train {kind}" for kind in KINDS), "n-grams", "where")


def test_the_same_command_again_makes_nothing_and_writes_the_same_page(done, sizes):
    """Results stay as they are, to the byte."""
    out, _ = done
    page, before = (out / "study.md").read_text(), (out / RESULTS).read_bytes()
    assert go(out, sizes).made == 0
    assert (out / RESULTS).read_bytes() == before and (out / "study.md").read_text() == page
    assert (out / "study.png").read_bytes()[:4] == b"\x89PNG"


def test_the_page_of_a_whole_study(done, sizes):
    """Every way of reading in both corpora, every section, nothing missing; the five lines also in a file."""
    out, outcome = done
    page = (out / "study.md").read_text()
    for row in outcome.rows:
        if row.kind != "train":
            assert f"| {row.name} |" in page, row.name
    assert "What is missing" not in page and "What failed" not in page and "None of these" not in page
    lines = (out / "readme_lines.md").read_text()
    assert lines.count("\n- ") == 4 and "not run" not in lines and lines in page
    assert page.count("| projections: ") == 2 * 3 and "| projections: delta | memory, carried |" in page  # section 3


def test_a_study_that_was_stopped_goes_on_to_the_same_results(tmp_path, done, short, monkeypatch):
    """Interrupted in the middle of a training: its checkpoint is used, and all rows come out to the bit as without the stop. In
    between the page names what is missing.
    """
    whole = {r.key: done[1].results[r.key] for r in running.plan(short, {n: " ".join(corpus_of(n).fingerprint) for n in short.corpora})}
    steps, advance = [], training.advance

    def stops(*arguments):
        steps.append(arguments[1].step)
        if len(steps) == 4 + 3:
            raise KeyboardInterrupt
        return advance(*arguments)

    monkeypatch.setattr(training, "advance", stops)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, short)
    found = read_results(tmp_path / RESULTS)
    assert 0 < len(found) < len(whole)
    page = (tmp_path / "study.md").read_text()
    assert "## What is missing" in page and "plain, dynamic evaluation SGD (seeds 0)" in page
    steps.clear()
    monkeypatch.setattr(training, "advance", lambda *a: (steps.append(a[1].step), advance(*a))[1])
    assert go(tmp_path, short).results.keys() == whole.keys()
    assert steps[0] == 2  # not from the beginning
    after = read_results(tmp_path / RESULTS)
    assert {k: same(v) for k, v in after.items()} == {k: same(v) for k, v in whole.items()}


def test_training_is_that_of_the_command_train(done):
    """The same parameters, to the bit; and the squares are those of the gradients' norms."""
    out, outcome = done
    row = next(r for r in outcome.rows if r.kind == "train" and r.name == "fast weights")
    config, settings = settings_of(row)
    found = training.train_model(model_file(out, row.key), config, settings, corpus_of(row.corpus))
    expected = train(corpus_of(row.corpus), config, settings, quiet=True)
    assert all(np.array_equal(a, b) for a, b in zip(leaves(found.progress.params), leaves(expected.params), strict=True))
    assert found.progress.history == expected.history
    norms = [record.grad_norm for record in expected.history]
    assert np.allclose(np.sqrt(found.squares.sum(axis=1)), norms, rtol=1e-6)
    assert outcome.results[row.key]["norm_largest"] == sorted(norms, reverse=True)


def test_switched_off_parameters_change_what_is_read_and_a_nudge_what_is_trained(done):
    """Rows of sections 5 and 6 are no copies of the main ones."""
    _, outcome = done
    bits = {(r.section, r.variant, r.name, r.seed): outcome.results[r.key].get("bits") for r in outcome.rows if r.kind == "read"}
    base = bits[5, "as it is", "fast weights, carried", 0]
    others = [v for (section, _, name, seed), v in bits.items() if section == 5 and seed == 0 and "carried, read" in name]
    assert len(others) == 3 and all(o != base for o in others)
    trained = {variant: v for (section, variant, name, _), v in bits.items() if section == 5 and name == CARRIED}
    assert trained.pop("step sizes may be negative") == base  # in four steps none becomes it
    assert len(trained) == len({str(v) for v in trained.values()}) == 18  # every other ablation is another model
    assert bits[6, "as it is", "fast weights, carried", 0] == base != bits[6, "as it is, nudged", "fast weights, carried", 0]


# --- time, and what goes wrong


def test_no_row_is_started_that_would_not_end_in_time(rows):
    """A later one that would is; what is needed and not there, or failed, is waited for."""
    train_row = next(r for r in rows if r.kind == "train")
    read_row = next(r for r in rows if r.needs == (train_row.key,))
    outside = rows[0]
    waiting, costs = [train_row, read_row, outside], {train_row.key: 100.0, read_row.key: 1.0, outside.key: 2.0}
    assert next_row(waiting, {}, costs, None, 1.0) is train_row
    assert next_row(waiting, {}, costs, 99, 1.0) is outside
    assert next_row(waiting, {}, costs, 150, 2.0) is outside
    assert next_row(waiting, {}, costs, 1, 1.0) is None
    assert next_row(waiting[1:], {train_row.key: {}}, costs, 5, 1.0) is read_row
    assert next_row(waiting[1:], {train_row.key: {"failed": "why"}}, costs, 5, 1.0) is outside


def test_without_time_only_the_page_is_written(tmp_path, sizes):
    """It says that nothing has been run, and how much there would be; no figure."""
    outcome = go(tmp_path, sizes, minutes=0)
    page = (tmp_path / "study.md").read_text()
    assert outcome.made == 0 and "It has not been run yet" in page and not (tmp_path / "study.png").exists()
    with pytest.raises(ValueError, match="minutes"):
        go(tmp_path, sizes, minutes=-1)
    with pytest.raises(ValueError, match="sgd must have"):
        go(tmp_path, sizes._replace(sgd=()))


def test_numbers_that_run_away_are_a_result(tmp_path, short, monkeypatch):
    """A training that diverges leaves a row that says so; what needs it is not made, the rest is; the page names it."""
    advance = training.advance

    def explodes(params, adam, corpus, config, settings, *more):
        if config.fast:
            raise FloatingPointError("step 2: the loss is nan")
        return advance(params, adam, corpus, config, settings, *more)

    monkeypatch.setattr(training, "advance", explodes)
    outcome = go(tmp_path, short)
    failed = [r for r in outcome.results.values() if "failed" in r]
    assert failed and all(r["kind"] == "train" for r in failed)
    assert not any(r["kind"] == "where" and "carried" in r["name"] for r in outcome.results.values())
    page = (tmp_path / "study.md").read_text()
    assert "## What failed" in page and "step 2: the loss is nan" in page and "| plain, dynamic evaluation SGD |" in page


def test_workers_make_the_same_rows(tmp_path, short, done, monkeypatch):
    """Two processes: the first rows of the plan."""
    cut = running.plan
    monkeypatch.setattr(running, "plan", lambda *a: cut(*a)[:8])
    outcome = run_study(tmp_path, tmp_path / "page.md", None, short, None, 2)
    assert outcome.made == 8 and (tmp_path / "page.md").exists()
    assert all(same(v) == same(done[1].results[k]) for k, v in outcome.results.items())
