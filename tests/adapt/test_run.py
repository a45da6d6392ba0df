"""The command from end to end on a tiny random model: its rows, that it goes on after an interrupt, what
it says when something fails, and that every way scores before it sees. A docstring with "N:" has a
negative control: something that must not hold.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fwl_ref import __main__ as program
from fwl_ref.adapt import command, learn, past, plan, run, settings, study, table, ways_cache, ways_descent, ways_refreshed, ways_untrained
from fwl_ref.adapt.documents import PARTS, Texts, Tokens, load_texts
from fwl_ref.adapt.refreshed import refreshed_losses
from fwl_ref.adapt.rows import Row, load_row, row_file, save_row
from fwl_ref.adapt.store import Store
from fwl_ref.adapt.study import Document, Study
from fwl_ref.adapt.trunk import features, model_on
from fwl_ref.audit import audit_scores
from fwl_ref.fast_matrix import FastMatrix
from fwl_ref.key_map import KeyMap, key_fwd, whitening
from fwl_ref.lm.cached import TunedCache
from fwl_ref.lm.mixture import mixture
from fwl_ref.lm.neural_cache import mix_cache
from fwl_ref.lm.tune import Tuned
from tests.adapt.small import CONFIG, SETTINGS, Letters, arguments, parameters, pretrained, write_texts
from tests.tolerances import RTOL, assert_bitwise, assert_close, relative_error

pytestmark = pytest.mark.host("the whole command; a device is tried by hand")

TINY = SETTINGS._replace(length=48, contexts=(32,), test=1, train_tokens=200, steps=2, train_length=24, checks=1, tune_length=24, more=0)


def texts_in(folder: Path, names: tuple[str, ...] = ("one",)) -> list[Texts]:
    s = TINY
    return [load_texts(str(write_texts(folder / n, 5, 90, i)), Letters(), s.length, s.validation, s.test, 100) for i, n in enumerate(names)]


def losses_in(out: Path) -> dict[str, np.ndarray]:
    """Of every row on the disk."""
    found = {}
    for file in sorted((out / "rows").glob("*.npz")):
        with np.load(file) as arrays:
            found[file.stem] = np.concatenate([arrays[n] for n in arrays.files if n.startswith("loss")])
    return found


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Texts], Path]:
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("done")
    texts = texts_in(folder, ("one", "two"))
    outcome = run.run(pretrained(), texts, TINY, Store(folder / "features", "m", 10**8), folder / "out", "numpy")
    assert not outcome.failures
    return folder, texts, folder / "out"


def test_every_row_is_there_and_the_table_says_what_its_losses_are(done: Any) -> None:
    """Perplexity, bits per byte and change of a row and a text, worked out again from the saved losses."""
    _, texts, out = done
    found = json.loads((out / "results.json").read_text())
    lines = {(line["text"], line["way"]): line for line in found["lines"]}
    ways = [way for text, way in lines if text == texts[0].name]
    assert len(ways) == 45
    assert {way for _, way in lines} >= {plan.AS_IS, "context 32", plan.SAFE_ALL, "dynamic evaluation, SGD, all parameters"}
    assert found["failures"] == {}
    assert found["settings"]["steps"] == 2
    with np.load(row_file(out / "rows", plan.CACHE)) as cached, np.load(row_file(out / "rows", plan.AS_IS)) as base:
        nats, plain = cached["loss1"], base["loss1"]
    with np.load(row_file(out / "rows", plan.SAFE_TRUE)) as safe, np.load(row_file(out / "rows", ways_refreshed.TRUE_UNTRAINED)) as true:
        assert_close(safe["loss1"], mixture([plain, true["loss1"]])[0], RTOL)
    line = lines[texts[1].name, plan.CACHE]
    assert_close(np.asarray(found["nats"][plan.CACHE]["1"]), nats.mean(), RTOL)
    assert_close(np.asarray(line["perplexity"]), np.exp(nats.mean()), RTOL)
    assert_close(np.asarray(line["bits_per_byte"]), nats.sum() / np.log(2) / len(nats), RTOL)
    assert_close(np.asarray(line["change"]), (nats - plain).mean(), RTOL)
    assert_close(np.asarray(line["quarters"]), np.asarray([(nats - plain)[i : i + 12].mean() for i in (0, 12, 24, 36)]), RTOL)
    rows = list(csv.DictReader((out / "results.csv").read_text().splitlines()))
    assert len(rows) == 2 * len(ways)
    assert plan.BOTH in (out / "results.txt").read_text()
    assert (out / "results.md").read_text().count("\n") == 2 + len(ways)
    assert (out / "position.png").stat().st_size > 1000


def test_rows_of_true_gradients_are_what_they_say(done: Any) -> None:
    """Worked out again from what was chosen and what was trained: nothing trained, at the window and at the longer
    one, and trained through; each with the cache on top; and with keys of two layers. N: other keys, or values as
    they are, are other losses.
    """
    folder, texts, out = done
    model, s = model_on(parameters(), CONFIG, 32, 10), TINY
    store = Store(folder / "features", "m", 10**8)
    train, validation, test = (study.documents_of(texts, part) for part in PARTS)
    found = Study(model, s, store, out, "", train, validation, test, {})
    pieces, facts = found.pieces, found.facts
    rows, chosen = losses_in(out), json.loads((out / "results.json").read_text())["chosen"]

    def again(name: str, window: int, key: Any, first: FastMatrix, U: np.ndarray, values: Any) -> np.ndarray:
        unit, picked = facts.x / facts.whitened, chosen[name]
        eta, losses = FastMatrix(picked["step"] * unit, picked.get("bias step", 0.0) * unit), []
        for document in test:
            at = study.read_at(found, document, window)
            k, _ = key_fwd(at.x, key, True)
            given = at.x[None], k[None], at.labels[None], first, eta, 32
            losses.append(refreshed_losses(model._replace(U=U), *given, decay=picked["decay"], values=values)[0])
        return np.concatenate(losses)

    def learned(file: str) -> tuple[KeyMap, FastMatrix, np.ndarray]:
        with np.load(out / file) as arrays:
            key, first = KeyMap(arrays["best/key.mean"], arrays["best/key.A"]), FastMatrix(arrays["best/W"], arrays["best/b"])
            return key, first, arrays.get("best/U", model.U)

    picked = chosen[ways_refreshed.TRUE_DEEP]
    at = study.read_at(found, test[0], s.window)
    own = whitening(features(model, piece.ids, s.window, 2) for piece in pieces)
    below = features(model, test[0].tokens.ids, s.window, 2).astype("float32").astype("float64")
    k = np.concatenate([key_fwd(at.x, facts.key, True)[0], key_fwd(below, own, True)[0]], axis=1) / np.sqrt(2)
    first, eta = FastMatrix(np.zeros((2 * CONFIG.width, CONFIG.width)), np.zeros(CONFIG.width)), picked["step"] * facts.x / facts.whitened
    deep = refreshed_losses(
        model, at.x[None], k[None], at.labels[None], first, FastMatrix(eta, 0.0), 32, decay=picked["decay"], values=facts.values
    )
    assert_close(deep[0], rows[row_file(out, ways_refreshed.TRUE_DEEP).stem][:48], RTOL)
    nothing = FastMatrix(np.zeros_like(facts.values), np.zeros(CONFIG.width))
    ways = ways_refreshed.TRUE_UNTRAINED, ways_refreshed.THROUGH, ways_refreshed.THROUGH_HEAD
    layers = (facts.key, nothing, model.U), learned("through.npz"), learned("through_head.npz")
    assert relative_error(layers[2][2], model.U) > 1e-6
    for way, layer in zip(ways, layers, strict=True):
        for window in (s.window, 32):
            name = ways_refreshed.named(found, way, window)
            saved = rows[row_file(out, name).stem]
            assert_close(again(name, window, *layer, facts.values), saved, RTOL)
            assert relative_error(again(name, window, *layer, None), saved) > 1e-6
            cached = [ways_cache.probability(found, d, chosen[f"{name}, and cache"]["theta"], window) for d in test]
            mixed = mix_cache(saved, np.concatenate(cached), chosen[f"{name}, and cache"]["lambda"])
            mixed[48] = saved[48]  # the first token of the second document has no past
            assert_close(mixed, rows[row_file(out, f"{name}, and cache").stem], RTOL)
    assert relative_error(rows[row_file(out, ways_refreshed.THROUGH).stem], rows[row_file(out, ways_refreshed.TRUE_UNTRAINED).stem]) > 1e-6


def test_training_through_true_gradients_begins_at_the_row_where_nothing_is_trained(done: Any, tmp_path: Path) -> None:
    """The first training loss is what that layer, its bias a little fast, has on the first batch; N: not with values as they are."""
    folder, texts, _ = done
    model, s = model_on(parameters(), CONFIG, 32, 10), TINY._replace(refresh=6)
    train, validation = (study.documents_of(texts, part) for part in PARTS[:2])
    own = Study(model, s, Store(None, "m", 0), tmp_path, "", train, validation, (), {})
    pieces, facts = own.pieces, own.facts
    row = Row("", (), (), {"step": 1.0, "decay": 0.01}, s.window, 0.0, 0.0, 0)
    progress, layer = ways_refreshed.trained_through(own, row)
    x, labels, weights = learn.draw(pieces, s.batch, s.train_length, s.seed, 0)
    eta = facts.x / facts.whitened
    nothing = FastMatrix(np.zeros_like(facts.values), np.zeros(CONFIG.width))

    def mean(values: Any) -> np.ndarray:
        given = nothing, FastMatrix(eta, eta / 100), 6
        keys = [key_fwd(a, facts.key, True)[0] for a in x.astype("float64")]
        pairs = zip(x.astype("float64"), keys, labels, strict=True)
        found = [refreshed_losses(model, a[None], k[None], y[None], *given, decay=0.01, values=values)[0] for a, k, y in pairs]
        return np.sum(np.stack(found) * weights) / np.sum(weights)

    assert_close(np.asarray(progress.curve[0]), mean(facts.values), RTOL)
    assert relative_error(np.asarray(progress.curve[0]), mean(None)) > 1e-6
    assert len(progress.curve) == s.steps and layer.values is facts.values
    assert ways_refreshed.trained_through(own, row)[0] is progress


def test_readings_of_longer_windows_are_kept_one_at_a_time(done: Any) -> None:
    """Those of the settings' window stay."""
    folder, texts, out = done
    model = model_on(parameters(), CONFIG, 32, 10)
    test = study.documents_of(texts, "test")
    for store in (Store(None, "m", 0), Store(folder / "features", "m", 10**8)):
        found = Study(model, TINY, store, out, "", (), (), test, {"theta": 1.0})
        for window in (TINY.window, 32, 48):
            for document in test:
                x = study.read_at(found, document, window).x.astype("float32")
                assert_bitwise(study.features_at(found, document, window), x)
        held = sorted([TINY.window, 48] * len(test))
        assert sorted(k[2] for k in found.memo if k[0] == "reading") == held
        assert sorted(k[2] for k in found.memo if k[0] == "features") == (held if store.folder is None else [])


def test_a_run_goes_on_where_it_was_interrupted(done: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ended in the middle of training, and again in the middle of the rows: the same bits as a run that
    was left alone; rows that are there are not made again. N: other settings make all anew.
    """
    folder, texts, out = done
    store = Store(folder / "features", "m", 10**8)
    again = tmp_path / "out"
    real, calls = learn.adam_step, []

    def ends(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(learn, "adam_step", ends)
    with pytest.raises(KeyboardInterrupt):
        run.run(pretrained(), texts, TINY, store, again, "numpy")
    monkeypatch.setattr(learn, "adam_step", real)
    before = losses_in(again)
    assert 3 < len(before) < 14
    assert len((again / "results.csv").read_text().splitlines()) == 1 + 2 * len(before)
    monkeypatch.setattr(plan, "descent_row", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run.run(pretrained(), texts, TINY, store, again, "numpy")
    monkeypatch.setattr(plan, "descent_row", ways_descent.descent_row)
    stamps = {f: f.stat().st_mtime_ns for f in (again / "rows").glob("*.npz")}
    run.run(pretrained(), texts, TINY, store, again, "numpy")
    assert all(f.stat().st_mtime_ns == stamp for f, stamp in stamps.items())
    one, other = losses_in(out), losses_in(again)
    assert one.keys() == other.keys()
    for name in one:
        assert_bitwise(one[name], other[name])
    key, changed = (run.run_key("m", texts, s, "numpy") for s in (TINY, TINY._replace(seed=1)))
    assert load_row(again / "rows", key, plan.CACHE) is not None
    assert load_row(again / "rows", changed, plan.CACHE) is None
    assert load_row(again / "rows", key, "no such row") is None


def test_a_row_that_fails_is_named_and_the_others_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An explosion in training takes what is made of it along, and nothing else."""

    def explodes(*_: Any, **__: Any) -> Row:
        raise FloatingPointError("it exploded")

    monkeypatch.setattr(plan, "layer_row", explodes)
    monkeypatch.setattr(plan, "descent_row", explodes)
    outcome = run.run(pretrained(), texts_in(tmp_path), TINY, Store(None, "m", 0), tmp_path / "out", "numpy")
    assert outcome.failures[plan.CARRIED] == "FloatingPointError: it exploded"
    assert "needs the row" in outcome.failures[plan.BOTH]
    assert {row.name for row in outcome.rows} >= {plan.AS_IS, plan.CACHE, plan.SHARP, plan.SAFE_CACHE, plan.UNEMBEDDING}
    assert "it exploded" in (tmp_path / "out" / "results.txt").read_text()


def test_a_text_that_nothing_is_trained_on(done: Any, tmp_path: Path) -> None:
    """Only its documents are in the table, under the layer and the settings that the other texts gave; rows
    that are asked for bring those that they need, and a second call adds to them. N: an unknown word.
    """
    folder, texts, out = done
    ids = np.random.default_rng(3).integers(0, CONFIG.vocabulary, 49)
    new = Texts("new", (), (), (Tokens("n", ids, np.ones(49, dtype="int64")),))
    given = [*(t._replace(test=()) for t in texts), new]
    store, there = Store(folder / "features", "m", 10**8), tmp_path / "out"
    first = run.run(pretrained(), given, TINY, store, there, "numpy", ("guard: as it is, neural",))
    assert [row.name for row in first.rows] == [plan.AS_IS, plan.CACHE, plan.SAFE_CACHE]
    second = run.run(pretrained(), given, TINY, store, there, "numpy", (plan.CARRIED, "SGD, all"))
    made = {plan.AS_IS, plan.CACHE, plan.SAFE_CACHE, plan.CARRIED, "dynamic evaluation, SGD, all parameters"}
    assert {row.name for row in second.rows} == made  # a whole name is that row alone: not with the cache, not with a longer context
    found = json.loads((there / "results.json").read_text())
    assert {line["text"] for line in found["lines"]} == {"new"}
    with np.load(there / "fast.npz") as here, np.load(out / "fast.npz") as before:
        assert_bitwise(here["best/W"], before["best/W"])
    with pytest.raises(ValueError, match="no row's name contains 'cash'"):
        run.run(pretrained(), given, TINY, store, there, "numpy", ("cash",))


def test_training_text_is_read_when_a_row_asks_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for the model as it is and the cache; and a word that no row has is refused before anything is computed."""
    asked: list[str] = []
    real = study.training_pieces
    monkeypatch.setattr(study, "training_pieces", lambda s: asked.append("training text") or real(s))
    given, there = texts_in(tmp_path), tmp_path / "out"
    run.run(pretrained(), given, TINY, Store(None, "m", 0), there, "numpy", (plan.CACHE,))
    assert not asked
    run.run(pretrained(), given, TINY, Store(None, "m", 0), there, "numpy", (plan.UNTRAINED, plan.WHITENED))
    assert asked == ["training text"]
    monkeypatch.setattr(study, "measure", lambda *_: (_ for _ in ()).throw(MemoryError("too little")))
    with pytest.raises(study.TrainingTextError, match="nothing can be learned of training text: too little"):
        run.run(pretrained(), given, TINY, Store(None, "m", 0), tmp_path / "other", "numpy")  # not a failure of each row
    asked.pop()
    monkeypatch.setattr(run, "_statement", lambda *_: asked.append("the statement"))
    with pytest.raises(ValueError, match="no row's name contains 'cash'"):
        run.run(pretrained(), given, TINY, Store(None, "m", 0), there, "numpy", ("cash",))
    assert asked == ["training text"]


def test_dynamic_evaluation_goes_on_after_its_last_document(done: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ended in a row, it reads no document again; its losses and its time are those of the disk."""
    folder, texts, _ = done
    store, there = Store(tmp_path / "features", "m", 10**8), tmp_path / "out"
    real, calls = ways_descent.adapted_losses, []

    def ends(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return real(*args)

    words = ("SGD, all", "RMS, all")
    monkeypatch.setattr(ways_descent, "adapted_losses", ends)
    with pytest.raises(KeyboardInterrupt):
        run.run(pretrained(), texts, TINY, store, there, "numpy", words)
    again = run.run(pretrained(), texts, TINY, store, there, "numpy", words)
    assert not again.failures
    assert len(calls) == 1 + 2 * (2 * 3 + 2)  # 3 rates on 2 validation documents, 2 test documents; the seventh call was not finished
    whole = losses_in(done[2])
    for row in again.rows[1:]:
        assert_bitwise(np.concatenate(row.losses), whole[row_file(there, row.name).stem])
        assert row.seconds > 0


@pytest.mark.slow
def test_every_way_scores_before_it_sees(done: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The audit of each row, as a function from tokens to losses: other futures change no earlier loss, and
    probabilities of all words sum to 1. N: a row shifted by one token is caught.
    """
    folder, texts, out = done
    model = model_on(parameters(), CONFIG, 32, 10)
    store = Store(None, "m", 0)
    key = run.run_key("m", texts, TINY, "numpy")
    train, validation = (study.documents_of(texts, part) for part in PARTS[:2])
    whole = Study(model, TINY, store, out, key, train, validation, (), {})
    for module in (ways_descent, ways_refreshed, ways_untrained):  # settings are given: tuning is no part of reading
        monkeypatch.setattr(module, "tune", lambda loss, values, *_, **__: Tuned(values[1], 0.0, {}))
    bounded = ways_untrained.BOUNDED._replace(tries=2 * ({"most": 1.5},))  # so that it binds in so short a text
    monkeypatch.setattr(plan, "KINDS", tuple((name, bounded if name == plan.BOUNDED else kind) for name, kind in plan.KINDS))
    monkeypatch.setattr(past, "CHUNK", 4)
    monkeypatch.setattr(ways_cache, "tune_cache", lambda *_: TunedCache(10.0, 0.05, 0.0, {}))
    monkeypatch.setattr(ways_cache, "best_share", lambda *_: Tuned(0.05, 0.0, {}))
    known: dict[bytes, dict[str, np.ndarray]] = {}

    def read(ids: np.ndarray) -> dict[str, np.ndarray]:
        ids = np.asarray(ids, dtype="int64")
        if ids.tobytes() not in known:
            document = Document("audit", Tokens("audit", ids, np.ones(len(ids), dtype="int64")))
            reader, rows = whole._replace(test=(document,)), {}
            for step in plan.plan(reader):
                rows[step.name] = step.make(rows)
            known[ids.tobytes()] = {name: row.losses[0] for name, row in rows.items()}
        return known[ids.tobytes()]

    document = np.random.default_rng(9).integers(0, CONFIG.vocabulary, 36)
    for name in read(document):
        report = audit_scores(
            lambda ids, n=name: read(ids)[n], document, vocabulary=CONFIG.vocabulary, positions=[5, 19, 33], label_rows=1, lengths=False
        )
        assert report.ok, f"{name}: {report}"
    shifted = audit_scores(
        lambda ids: np.roll(read(ids)[plan.CACHE], -1),
        document,
        vocabulary=CONFIG.vocabulary,
        positions=[5, 19],
        label_rows=0,
        lengths=False,
    )
    assert not shifted.ok


def test_the_command_reads_its_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Sizes by machine, options over them, two texts; the status is 1 if a row is not there, 2 for bad input."""
    monkeypatch.setattr(command, "load", lambda _: pretrained())
    monkeypatch.setattr(command, "digest_of", lambda _: "m")
    folders = [write_texts(tmp_path / name, 5, 90, i) for i, name in enumerate(("one", "two"))]
    monkeypatch.setattr(settings, "QUICK", TINY)
    seen: list[Any] = []

    def pretends(*args: Any) -> run.Outcome:
        seen.append(args)
        return run.Outcome((), {"a row": "why"} if len(seen) == 2 else {})

    monkeypatch.setattr(command, "run", pretends)
    words = ["adapt", "--model", "m", "--quick", "--out", str(tmp_path / "out"), *arguments(steps=5, length=40)]
    words += [w for f in folders for w in ("--data", str(f))]
    assert [program.main(words), program.main([*words, "--no-cache", "--only", "cache", "guard"])] == [0, 1]
    (_, texts, asked, store, out, backend, every), (_, _, _, nowhere, _, _, only) = seen
    assert (every, only) == ((), ["cache", "guard"])
    assert asked == TINY._replace(steps=5, length=40)
    assert [t.name for t in texts] == [str(f) for f in folders]
    assert (store.folder, nowhere.folder) == (out / "features", None)
    assert backend == "numpy"
    new = write_texts(tmp_path / "new", 4, 90, 7)
    assert program.main([*words, "--unseen", str(new)]) == 0
    *others, unseen = seen[2][1]
    for part in ("train", "validation", "test"):
        assert [[d.key for d in getattr(t, part)] for t in others] == [[d.key for d in getattr(t, part)] for t in texts]
    assert (unseen.name, unseen.train, unseen.validation, len(unseen.test)) == (str(new), (), (), TINY.test)
    assert program.main([*words, "--unseen", str(folders[0])]) == 0  # its test documents are read twice
    assert program.main(["adapt", "--model", "m", "--steps", "0"]) == 2
    assert "steps must be at least 1, got 0" in capsys.readouterr().err


@pytest.mark.parametrize("s", [settings.HOST, settings.QUICK, settings.DEVICE, settings.settings_for("cupy", True), TINY])
def test_the_sizes_are_sound(s: settings.Settings) -> None:
    settings.check_settings(s)
    need = settings.need(s, CONFIG, s.train_tokens, 1000, 4000, 1e-3)
    assert need.memory > 0
    assert need.disk == 2 * CONFIG.width * s.train_tokens + 4 * CONFIG.width * 5000 * (2 + len(s.contexts))
    assert need.trained == 2 * 16 * CONFIG.width * CONFIG.vocabulary  # two unembeddings, their best, their moments
    assert need.seconds > 0


@pytest.mark.parametrize(
    ("change", "words"),
    [({"segment": 7}, "whole segments"), ({"contexts": (24,), "long": 24}, "multiple of the window"), ({"long": 48}, "long context must")],
)
def test_settings_that_cannot_be_are_said(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        settings.check_settings(TINY._replace(**change))


def test_an_interval_is_students(tmp_path: Path) -> None:
    """Four numbers worked out by hand; one number has none. A damaged row counts as absent."""
    assert_close(np.asarray(table.interval([1.0, 2.0, 3.0, 6.0])), np.asarray(3.182 * np.std([1, 2, 3, 6], ddof=1) / 2), RTOL)
    assert np.isnan(table.interval([1.0]))
    row = Row("a, b", (0,), (np.zeros(3),), {"x": 1.0}, 512, 0.1, 2.0, 3)
    save_row(tmp_path, "key", row)
    found = load_row(tmp_path, "key", "a, b")
    assert found is not None
    assert found[:2] + found[3:] == row[:2] + row[3:]
    row_file(tmp_path, "a, b").write_bytes(b"PK broken")
    assert load_row(tmp_path, "key", "a, b") is None
