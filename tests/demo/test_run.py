"""The demo from end to end at tiny sizes: what it writes, that the numbers are those of the models
it leaves, and how it goes on.
"""

import json
import re
import shutil
import struct
from contextlib import contextmanager

import numpy as np
import pytest
from matplotlib.figure import Figure

from fwl_ref.demo import plots
from fwl_ref.demo import run as demo
from fwl_ref.demo.compare import change_standard_error
from fwl_ref.demo.parallel import InTurn
from fwl_ref.demo.run import FULL, LABELS, QUICK, equivalence_error, run_demo
from fwl_ref.lm import evaluate
from fwl_ref.lm import train as training
from fwl_ref.lm.cached import cached
from fwl_ref.lm.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, text_of
from fwl_ref.lm.corpus import pick
from fwl_ref.lm.data import Document, load_corpus
from fwl_ref.lm.evaluate import bits_per_byte, with_step_size
from fwl_ref.lm.model import Config, features, initialize
from fwl_ref.lm.train import TrainSettings, train
from fwl_ref.tree import leaves, named_leaves, size, tree_map

pytestmark = pytest.mark.host("files and processes")

NAMES = [
    "static", "dynamic_evaluation_sgd", "dynamic_evaluation_rms", "dynamic_evaluation_block",
    "neural_cache", "fast_untrained", "fast_windowed", "fast_carried", "fast_cache",
]  # fmt: skip
TINY = FULL._replace(
    config=Config(width=8, layers=1, heads=2, chunk=5),
    training=TrainSettings(steps=8, batch=2, window=16, warmup=2, seed=5),
    segment=5,
    validation=(1, 34),
    test=(2, 50),
    statistics_batches=2,
    timing=(24, 1),
    sgd=(0.02, 0.1),
    rms=(1e-3,),
    block=(0.1,),
    untrained=(0.01,),
    decays=(0.0,),
    thetas=(2.0, 8.0),
    shares=(0.05, 0.2),
)
TUNED = [*NAMES[1:6], "fast_cache"]
SHORT = TINY._replace(segment=8, validation=(1, 18), test=(2, 34), statistics_batches=1, timing=(16, 1), sgd=(0.1,))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Enough short documents for several in every part; nobody writes into the folder."""
    folder = tmp_path_factory.mktemp("text")
    for i in range(40):
        (folder / f"{i}.txt").write_text(f"the {i}th cat sat on mat {i * i}. " * 12)
    return str(folder)


@pytest.fixture(scope="module")
def done(tmp_path_factory, text):
    """A demo in worker processes: the folder, what it returned. Nobody writes into the folder."""
    out = tmp_path_factory.mktemp("demo") / "results"
    return out, run_demo(out, text, settings=TINY)


@pytest.fixture
def inline(monkeypatch):
    """No processes and no figure: a demo in a third of a second. What is returned grows by one
    entry a training step: fast or not.
    """

    @contextmanager
    def pool(_):
        yield InTurn()

    steps, original = [], training.loss_and_gradient

    def counted(params, tokens, labels, weights, config, total):
        steps.append(config.fast)
        return original(params, tokens, labels, weights, config, total)

    monkeypatch.setattr(demo, "worker_pool", pool)
    monkeypatch.setattr(plots, "draw", lambda *_: Figure(figsize=(1, 1)))
    monkeypatch.setattr(training, "loss_and_gradient", counted)
    return steps


def strict(text):
    """JSON as every other program reads it: no NaN, no Infinity."""

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


# --- what is written


def test_the_demo_writes_five_files(done):
    """Report and models; no drafts."""
    out, _ = done
    assert sorted(p.name for p in out.iterdir()) == ["demo.json", "demo.md", "demo.png", "fast.npz", "plain.npz"]


def test_the_json_holds_what_is_promised(done):
    """Nine ways under each of three headings, the equivalence, and everything the result depends
    on.
    """
    out, returned = done
    found = strict((out / "demo.json").read_text())
    assert found == strict(json.dumps(returned))
    for heading in ("bits_per_byte", "relative_time", "relative_multiply_adds", "change_standard_error", "chosen"):
        assert list(found[heading]) == NAMES, heading
    for heading in ("bits_per_byte", "relative_time", "relative_multiply_adds"):
        assert all(isinstance(x, float) and 0 < x < 100 for x in found[heading].values()), heading
        assert heading == "bits_per_byte" or found[heading]["static"] == 1
    assert 0 <= found["equivalence_max_error"] < 1e-10
    assert found["seed"] == 5 and {"python", "numpy", "blas"} <= found["versions"].keys()
    settings = found["settings"]
    assert settings["config"] == TINY.config._asdict() and settings["training"] == TINY.training._asdict()
    assert settings["segment"] == 5 and settings["sgd"] == [0.02, 0.1] and settings["quick"] is False
    assert len(found["documents"]) == 2 and len(found["validation_documents"]) == 1
    assert list(found["tried_on_validation"]) == TUNED and len(found["tried_on_validation"]["dynamic_evaluation_sgd"]) == 2
    assert len(found["tried_on_validation"]["neural_cache"]) == 4 and found["cache_bytes"] == 50
    assert found["date"] and found["machine"] and found["seconds"] > 0


def test_labels_and_sizes_are_those_of_the_report():
    """The ways by name and in order; quick and full differ in size only."""
    assert list(LABELS) == NAMES and len(set(LABELS.values())) == 9
    assert QUICK.config == FULL.config and QUICK.training.window == FULL.training.window and QUICK.training.steps < FULL.training.steps


def test_the_table_has_nine_rows(done):
    """With the bits of the JSON; the text names the corpus."""
    out, found = done
    lines = (out / "demo.md").read_text(encoding="utf-8").splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + 9
    for name, line in zip(NAMES, table[2:], strict=True):
        assert LABELS[name] in line and f" {found['bits_per_byte'][name]:.3f} " in line


def test_the_figure_is_a_picture(done):
    """A PNG, wide enough for a slide."""
    data = (done[0] / "demo.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">I", data[16:20])[0] > 1500 and len(data) > 20_000


# --- whether it is true


def test_both_models_are_trained_alike(done, text):
    """Equal numbers of parameters, same settings, seed and data; each is what training it here
    gives.
    """
    out, found = done
    corpus = load_corpus(text)
    models = {name: load_checkpoint(out / f"{name}.npz") for name in ("plain", "fast")}
    assert [(n, p.shape) for n, p in named_leaves(models["plain"].progress.params)] == [
        (n, p.shape) for n, p in named_leaves(models["fast"].progress.params)
    ]
    assert size(models["plain"].progress.params) == size(models["fast"].progress.params) == found["parameters"]
    for name, fast in (("plain", False), ("fast", True)):
        config = TINY.config._replace(fast=fast)
        assert models[name][:3] == (config, TINY.training, text_of(corpus))
        expected = train(corpus, config, TINY.training, quiet=True)
        for ours, other in zip(models[name].progress.history, expected.history, strict=True):
            assert ours[:3] == pytest.approx(other[:3], rel=1e-4) and ours.eta == pytest.approx(other.eta, rel=1e-4)
    assert models["fast"].progress.history[0].bits_per_byte == pytest.approx(models["plain"].progress.history[0].bits_per_byte, abs=0.05)
    assert found["learned"]["eta"] == tree_map(float, models["fast"].progress.params.eta)._asdict()


def test_the_figures_are_those_of_the_saved_models(done, text):
    """Reading the test documents here, with the models and step sizes that the report names, gives
    its bits per byte and its errors.
    """
    out, found = done
    plain, fast = (load_checkpoint(out / f"{name}.npz").progress.params for name in ("plain", "fast"))
    corpus, config = load_corpus(text), TINY.config
    assert set(found["documents"]) <= {d.name for d in corpus.test}
    documents = [Document(d.name, d.data[:51]) for d in corpus.test if d.name in found["documents"]]
    rate = {name: float(re.search(r"(?:rate|step size|theta) ([^,]+)", found["chosen"][name])[1]) for name in TUNED}
    carried = found["chosen"]["fast_untrained"].endswith("carried")
    opened = with_step_size(plain, rate["fast_untrained"], TINY.training.decay)
    sgd = {"descent": demo.Descent(rate["dynamic_evaluation_sgd"]), "segment": 5}
    block = {"rate": rate["dynamic_evaluation_block"], "decay": 0.0, "segment": 5}
    tuned_on = [Document(d.name, d.data[:35]) for d in corpus.validation if d.name in found["validation_documents"]]

    def cache(name, params, fast):
        """theta in units of one over the mean squared length of the features of validation text, each window read anew."""
        cfg, share = config._replace(fast=fast), float(found["chosen"][name].split("share ")[1])
        lengths = []
        for d in tuned_on:
            for i in range(0, len(d.data) - 1, 16):
                tokens = d.data[None, i : min(i + 16, len(d.data) - 1)].astype("int64")
                lengths += [float(v @ v) for v in features(params, tokens, cfg)[0][0]]
        return cached, params, {"theta": rate[name] / np.mean(lengths), "share": share, "carried": fast}

    ways = {
        "static": (evaluate.static, plain, {}),
        "dynamic_evaluation_sgd": (evaluate.dynamic, plain, sgd),
        "dynamic_evaluation_block": (evaluate.dynamic_block, plain, block),
        "fast_untrained": (evaluate.fast_weights, opened, {"carried": carried}),
        "fast_windowed": (evaluate.fast_weights, fast, {}),
        "fast_carried": (evaluate.fast_weights, fast, {"carried": True}),
        "neural_cache": cache("neural_cache", plain, False),
        "fast_cache": cache("fast_cache", fast, True),
    }
    of = {name: config._replace(fast=name != "neural_cache") for name in ways}
    losses = {name: [way(params, of[name], d, 16, **options) for d in documents] for name, (way, params, options) in ways.items()}
    for name, rows in losses.items():
        assert found["bits_per_byte"][name] == pytest.approx(bits_per_byte(rows), rel=1e-5), name
        assert found["change_standard_error"][name] == pytest.approx(change_standard_error(rows, losses["static"]), rel=1e-3, abs=1e-9)


def test_the_best_step_size_on_validation_is_chosen(done):
    """Of what was tried; the label in the table is that of the fewest bits."""
    _, found = done
    for name, tried in found["tried_on_validation"].items():
        assert found["chosen"][name] == min(tried, key=tried.get)
    assert found["chosen"]["static"] == "-" and found["chosen"]["fast_carried"] == "learned"


@pytest.mark.parametrize("dialect", ["tf", "jax"])
def test_the_equivalence_is_measured_and_can_fail(monkeypatch, dialect):
    """Tiny on a model whose fast weights matter; large as soon as the literal side does something
    else.
    """
    config = TINY.config._replace(dialect=dialect)
    params = with_step_size(tree_map(lambda p: p * 10 if p.ndim == 2 else p, initialize(config)), 0.05, 0.02)
    document = Document("d", np.random.default_rng(0).integers(97, 107, 40).astype("uint8"))
    assert equivalence_error(params, config, document, 16) < 1e-10
    literal = demo.evaluate_block
    for change in ({"decay": 0.0}, {"stale": False}, {"segment": 2}, {"n": 2.0}):
        monkeypatch.setattr(demo, "evaluate_block", lambda *args, change=change, **more: literal(*args, **{**more, **change}))
        assert equivalence_error(params, config, document, 16) > 1e-6, change


# --- going on


def same_report(a, b):
    """Everything that does not depend on the clock."""
    clock = {"relative_time", "microseconds_per_token_static", "seconds", "date", "equivalence_max_error"}
    return {k: v for k, v in a.items() if k not in clock} == {k: v for k, v in b.items() if k not in clock}


def test_an_interrupted_demo_goes_on(tmp_path, text, inline, monkeypatch):
    """Stopped while it reads documents: the second run trains nothing. Half a model: the other half
    is trained. Same report.
    """
    straight = run_demo(tmp_path / "straight", text, settings=SHORT)
    assert sorted(inline) == [False] * 8 + [True] * 8
    inline.clear()

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(demo, "read_all", stop)
        with pytest.raises(KeyboardInterrupt):
            run_demo(tmp_path / "out", text, settings=SHORT)
    assert sorted(inline) == [False] * 8 + [True] * 8
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["fast.npz", "plain.npz"]
    inline.clear()
    assert same_report(run_demo(tmp_path / "out", text, settings=SHORT), straight) and not inline

    config, saved = SHORT.config, []
    train(load_corpus(text), config, SHORT.training, quiet=True, save=saved.append, save_every=1)
    (tmp_path / "half").mkdir()
    save_checkpoint(tmp_path / "half" / "fast.npz", Checkpoint(config, SHORT.training, text_of(load_corpus(text)), saved[2], "demo"))
    shutil.copy(tmp_path / "straight" / "plain.npz", tmp_path / "half" / "plain.npz")
    inline.clear()
    assert same_report(run_demo(tmp_path / "half", text, settings=SHORT), straight) and inline == [True] * 5


def test_a_finished_demo_starts_anew(tmp_path, text, inline):
    """A second run trains both models again, and reports the same; so does one with other settings
    or another text.
    """
    first = run_demo(tmp_path, text, settings=SHORT)
    inline.clear()
    again = run_demo(tmp_path, text, settings=SHORT)
    assert sorted(inline) == [False] * 8 + [True] * 8 and same_report(first, again)
    (tmp_path / "demo.json").unlink()
    inline.clear()
    other = run_demo(tmp_path, text, settings=SHORT._replace(training=SHORT.training._replace(steps=3)))
    assert sorted(inline) == [False] * 3 + [True] * 3 and other["settings"]["training"]["steps"] == 3


def test_an_interrupted_demo_starts_anew_on_a_text_that_has_changed(tmp_path, text, inline, monkeypatch, capsys):
    """It says so, with documents and bytes; the models of the other text are not gone on with."""
    folder = tmp_path / "text"
    shutil.copytree(text, folder)

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(demo, "read_all", stop)
        with pytest.raises(KeyboardInterrupt):
            run_demo(tmp_path / "out", str(folder), settings=SHORT)
    inline.clear()
    trained_on = folder / load_corpus(str(folder)).train[0].name
    trained_on.write_text(trained_on.read_text() + "!")
    run_demo(tmp_path / "out", str(folder), settings=SHORT)
    assert sorted(inline) == [False] * 8 + [True] * 8
    said = [line for line in capsys.readouterr().out.splitlines() if "training anew" in line]
    assert len(said) == 2 and all("has changed since" in line and "documents and" in line for line in said)


def test_one_document_has_no_standard_error(tmp_path, text, inline):
    """It is null in the JSON, which stays JSON."""
    run_demo(tmp_path, text, settings=SHORT._replace(test=(1, 34)))
    found = strict((tmp_path / "demo.json").read_text())
    assert len(found["documents"]) == 1 and set(found["change_standard_error"].values()) == {None}
    assert "±" not in (tmp_path / "demo.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["plain", "fast"])
def test_other_peoples_files_are_left_alone(tmp_path, text, inline, name):
    """A file of a model's name that is no checkpoint: refused before training, and still there."""
    (tmp_path / f"{name}.npz").write_text("precious")
    with pytest.raises(ValueError, match=f"{name}.npz"):
        run_demo(tmp_path, text, settings=SHORT)
    assert not inline and (tmp_path / f"{name}.npz").read_text() == "precious"


def test_a_segment_of_nothing_is_refused_before_training(tmp_path, text, inline):
    """Reading comes last; what makes it impossible is said first."""
    with pytest.raises(ValueError, match="a segment must hold at least 1 token, got 0"):
        run_demo(tmp_path / "out", text, settings=SHORT._replace(segment=0))
    assert not inline and not list((tmp_path / "out").iterdir() if (tmp_path / "out").exists() else ())


# --- parts


def test_pick_takes_documents_evenly():
    """Long ones if there are enough, spread over all of them in order, cut to the limit and the
    first byte before it.
    """
    documents = tuple(Document(f"{i}", np.arange(n, dtype="uint8")) for i, n in enumerate((9, 50, 9, 50, 9, 50, 51, 9, 52, 9)))
    found = pick(documents, 3, 40)
    assert [d.name for d in found] == ["1", "3", "6"] and all((d.data == np.arange(41)).all() for d in found)
    assert [d.name for d in pick(documents, 5, 40)] == ["1", "3", "5", "6", "8"]
    assert [d.name for d in pick(documents, 6, 40)] == ["0", "1", "3", "5", "6", "8"]  # too few long ones: over all
    assert [len(d.data) for d in pick(documents[:2], 5, 100)] == [9, 50]


def test_models_are_not_mixed_up(done):
    """The plain model has step sizes of zero, the fast one has not."""
    plain, fast = (load_checkpoint(done[0] / f"{name}.npz").progress.params for name in ("plain", "fast"))
    assert not any(e.any() for e in plain.eta) and all(e > 0 for e in leaves(fast.eta))
