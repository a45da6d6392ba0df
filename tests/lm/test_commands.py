"""train, evaluate and generate as people with text of their own use them: go on, start from another model, look at what was trained on,
keep a memory.
"""

import csv
import json
import re

import numpy as np
import pytest

from fwl_ref.__main__ import main
from fwl_ref.lm import evaluate, generate
from fwl_ref.lm.checkpoint import fingerprint_of, load_checkpoint
from fwl_ref.lm.corpus import load_corpus
from fwl_ref.lm.data import Document
from fwl_ref.lm.model import Config
from fwl_ref.lm.state import load_state
from fwl_ref.lm.train import TrainSettings, train
from fwl_ref.tree import leaves

pytestmark = pytest.mark.host("files and the command line")

SIZES = ["--batch=1", "--window=8", "--width=8", "--layers=1", "--heads=2"]
CONFIG = Config(width=8, layers=1, heads=2)
SETTINGS = TrainSettings(steps=3, batch=1, window=8)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with text/ of ten documents, other/ text, fast.npz and plain.npz of text/ after 3 steps; nobody writes into it."""
    folder = tmp_path_factory.mktemp("here")
    for name, cat in (("text", "cat"), ("other", "dog")):
        (folder / name).mkdir()
        for i in range(10):
            (folder / name / f"{name[0]}{i}.txt").write_text(f"the {i}th {cat} sat on mat {i}. " * 8)
    for name, more in (("fast", []), ("plain", ["--plain"])):
        assert main(["train", "--data", str(folder / "text"), "--out", str(folder / f"{name}.npz"), "--steps=3", *SIZES, *more]) == 0
    return folder


def done(capsys, *words):
    """Standard output and error of a command that succeeds."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == 0
    return capsys.readouterr()


def refused(capsys, *words):
    """The one line of a command that ends with 2."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("fwl_ref:")][-1]


def same(a, b):
    return all((x == y).all() for x, y in zip(leaves(a), leaves(b), strict=True))


# --- train


def test_more_steps_go_on_with_a_finished_model(here, tmp_path, capsys):
    """From its last step, on the schedule of the new number, which is said; the model keeps all its steps."""
    out = tmp_path / "m.npz"
    command = ["train", "--data", here / "text", "--out", out, *SIZES, "--warmup=1"]
    done(capsys, *command, "--steps=3")
    first = load_checkpoint(out).progress
    said = done(capsys, *command, "--steps=5").out
    assert "at step 3 of 5; 3 were planned" in said and "will not be the one of 5 steps in one go" in said
    corpus, settings = load_corpus(str(here / "text")), SETTINGS._replace(steps=5, warmup=1)
    expected = train(corpus, CONFIG, settings, start=first, quiet=True)
    found = load_checkpoint(out)
    assert same(found.progress.params, expected.params) and found.settings.steps == 5 and len(found.progress.history) == 5
    assert not same(found.progress.params, train(corpus, CONFIG, settings, quiet=True).params)
    assert "trained already, all 5 steps" in done(capsys, *command, "--steps=5").out
    line = refused(capsys, *command, "--steps=4")
    assert "has 5 steps already" in line and "--steps 5 or more" in line


def test_within_the_warm_up_more_steps_are_a_training_in_one_go(here, tmp_path, capsys):
    """The learning rate so far did not depend on the number of steps: to the bit, and nothing else is said."""
    out = tmp_path / "m.npz"
    out.write_bytes((here / "fast.npz").read_bytes())
    said = done(capsys, "train", "--data", here / "text", "--out", out, *SIZES, "--steps=5").out
    assert "at step 3 of 5; 3 were planned" in said and "in one go" not in said
    straight = train(load_corpus(str(here / "text")), CONFIG, SETTINGS._replace(steps=5), quiet=True)
    assert same(load_checkpoint(out).progress.params, straight.params)


def test_saving_is_as_often_as_asked(here, tmp_path, monkeypatch, capsys):
    """--save-every 2 of 5 steps: after 2, 4 and 5."""
    from fwl_ref.lm import resume

    steps, save = [], resume.save_checkpoint
    monkeypatch.setattr(resume, "save_checkpoint", lambda path, made: (steps.append(made.progress.adam.step), save(path, made)))
    command = ["train", "--data", here / "text", "--out", tmp_path / "m.npz", "--steps=5", *SIZES]
    done(capsys, *command, "--save-every=2")
    assert steps == [2, 4, 5]
    assert "--save-every must be at least 1 step, got 0" in refused(capsys, *command, "--save-every=0")


def test_training_starts_from_another_model(here, tmp_path, capsys):
    """Its parameters, its settings where none are given, no moments; the text of both counts as trained on; another run resumes."""
    out = tmp_path / "m.npz"
    command = ["train", "--data", here / "other", "--out", out, "--from", here / "fast.npz", "--rate=0.01"]
    assert "starting from" in done(capsys, *command).out
    origin, found = load_checkpoint(here / "fast.npz"), load_checkpoint(out)
    assert found.config == CONFIG and found.settings == SETTINGS._replace(rate=0.01)
    assert found.origin == fingerprint_of(origin.progress.params) and found.progress.adam.step == 3
    start = origin.progress._replace(adam=origin.progress.adam._replace(step=0), history=())
    zero = start._replace(adam=start.adam._replace(mean=_zeros(start.adam.mean), square=_zeros(start.adam.square)))
    expected = train(load_corpus(str(here / "other")), CONFIG, SETTINGS._replace(rate=0.01), start=zero, quiet=True)
    assert same(found.progress.params, expected.params)
    words = [
        line.split()[-2] for line in done(capsys, "evaluate", out, "--data", here / "text", "--bytes=20").out.splitlines() if ".txt" in line
    ]
    assert words.count("trained") == len(load_corpus(str(here / "text")).train)
    assert "at step 3 of 4" in done(capsys, *command, "--steps=4").out
    assert "started from model" in refused(capsys, *[w for w in command if w not in ("--from", here / "fast.npz")], "--steps=5", *SIZES)


def _zeros(tree):
    from fwl_ref.tree import zeros_like

    return zeros_like(tree)


def test_a_plain_model_becomes_a_fast_one_and_back(here, tmp_path, capsys):
    """Step sizes start where a fresh model's do, or are gone; the rest is taken over."""
    from fwl_ref.lm.resume import begin_from

    plain, fast = (load_checkpoint(here / f"{name}.npz") for name in ("plain", "fast"))
    made = begin_from(plain, CONFIG, SETTINGS._replace(step_size=0.125, decay=0.25)).params
    assert [float(e) for e in made.eta] == [0.125] * 6 and float(made.decay) == 0.25
    assert same(made._replace(eta=plain.progress.params.eta, decay=plain.progress.params.decay), plain.progress.params)
    gone = begin_from(fast, CONFIG._replace(fast=False), SETTINGS).params
    assert not any(float(e) for e in (*gone.eta, gone.decay)) and same(gone.block, fast.progress.params.block)
    assert same(begin_from(fast, CONFIG, SETTINGS._replace(step_size=0.5)).params, fast.progress.params)
    done(capsys, "train", "--data", here / "text", "--out", tmp_path / "m.npz", "--from", here / "plain.npz", "--fast", "--steps=1")
    assert load_checkpoint(tmp_path / "m.npz").config.fast


def test_another_model_must_fit(here, tmp_path, capsys):
    """Shapes that --from cannot have, a file that is none."""
    command = ["train", "--data", here / "text", "--out", tmp_path / "m.npz", "--from"]
    assert "layers" in refused(capsys, *command, here / "fast.npz", "--layers=2")
    assert "embedding" in refused(capsys, *command, here / "fast.npz", "--width=16")
    assert "no checkpoint" in refused(capsys, *command, here / "absent.npz")
    assert not list(tmp_path.iterdir())


# --- evaluate


def test_evaluate_says_of_every_document_what_the_model_saw(here, capsys):
    """Of the whole text: its parts, a sum for each, and a warning; of other text nothing; of the test documents no warning."""
    corpus = load_corpus(str(here / "text"))
    out, err = done(capsys, "evaluate", here / "fast.npz", "--data", here / "text", "--bytes=20")
    words = {line.split()[-1]: line.split()[-2] for line in out.splitlines() if line.endswith(".txt")}
    parts = zip(corpus.parts, ("trained", "validation", "test"), strict=True)
    assert words == {d.name: word for part, word in parts for d in part}
    assert f"{len(corpus.train)} of 10 documents were trained on" in err and out.splitlines()[-1].endswith("all 10 documents")
    assert f"{len(corpus.train)} trained" in out
    out, err = done(capsys, "evaluate", here / "fast.npz", "--data", here / "other", "--bytes=20")
    assert "warning" not in err and out.count("never seen") == 10
    out, err = done(capsys, "evaluate", here / "fast.npz")
    assert "warning" not in err and out.count("  test  ") == len(corpus.test) and "  trained  " not in out


def test_a_plain_model_is_the_first_column(here, tmp_path, capsys):
    """Read statically in the same windows; the gain counts from it. A fast one is refused, one of other text gets a warning."""
    csv_file, json_file, plot = (tmp_path / name for name in ("t.csv", "t.json", "t.png"))
    out = done(
        capsys, "evaluate", here / "fast.npz", "--plain", here / "plain.npz", "--csv", csv_file, "--json", json_file, "--plot", plot
    ).out
    names = ["plain model", "slow weights alone", "fast, reset every window", "fast, carried"]
    documents = load_corpus(str(here / "text")).test
    plain, fast = (load_checkpoint(here / f"{name}.npz").progress.params for name in ("plain", "fast"))
    bits = [
        evaluate.bits_per_byte([evaluate.static(plain, CONFIG._replace(fast=False), d, 8) for d in documents]),
        evaluate.bits_per_byte([evaluate.fast_weights(fast, CONFIG, d, 8, carried=True) for d in documents]),
    ]
    last = json.loads(json_file.read_text())["totals"][-1]
    assert list(last["bits_per_byte"]) == names and last["gain_percent"] == pytest.approx(100 * (1 - bits[1] / bits[0]), rel=1e-12)
    assert [last["bits_per_byte"][n] for n in (names[0], names[-1])] == pytest.approx(bits, rel=1e-12)
    rows = list(csv.reader(csv_file.read_text().splitlines()))
    assert rows[0] == ["document", "seen", "bytes", *names, "gain_percent"] and {row[1] for row in rows[1:]} == {"test"}
    assert plot.read_bytes()[:4] == b"\x89PNG" and "saves of 'plain model'" in out
    assert "--plain takes one trained with --plain" in refused(capsys, "evaluate", here / "fast.npz", "--plain", here / "fast.npz")
    done(capsys, "train", "--data", here / "other", "--out", tmp_path / "p.npz", "--steps=1", "--plain", *SIZES)
    assert "trained on other text" in done(capsys, "evaluate", here / "fast.npz", "--plain", tmp_path / "p.npz").err


def test_a_memory_is_carried_from_run_to_run(here, tmp_path, capsys):
    """Two runs are one: the second starts where the first stopped; what is in the file is the state after all."""
    (tmp_path / "d").mkdir()
    for i in range(2):
        (tmp_path / "d" / f"{i}.txt").write_text(f"a {i} b " * 9)
    state = tmp_path / "s.npz"
    command = ["evaluate", here / "fast.npz", "--state", state, "--data"]
    assert "memory of 53 bytes" in done(capsys, *command, tmp_path / "d" / "0.txt").out
    second = done(capsys, *command, tmp_path / "d" / "1.txt").out
    assert "fast, carried on" in second and "memory of 106 bytes" in second and re.search(r"half of it fades in \d+ bytes", second)
    checkpoint = load_checkpoint(here / "fast.npz")
    params, after, losses = checkpoint.progress.params, None, None
    for i in range(2):
        text = Document(str(i), np.frombuffer(f"a {i} b ".encode() * 9, dtype="uint8"))
        losses, after = evaluate.carry(params, CONFIG, text, 8, state=after)
    found = load_state(state, params, CONFIG, 8).reader
    assert same(found.stream.state, after) and found.last is None
    assert f"{evaluate.bits_per_byte([losses]):.3f}" in second.splitlines()[-2]


def test_a_memory_that_cannot_be_is_refused(here, tmp_path, capsys):
    """Of a plain model, of another model, another file."""
    state = tmp_path / "s.npz"
    assert "plain one" in refused(capsys, "evaluate", here / "plain.npz", "--state", state)
    done(capsys, "generate", here / "plain.npz", "--state", state, "--count=1")
    for command in ("evaluate", "generate"):
        assert "memory of another model" in refused(capsys, command, here / "fast.npz", "--state", state)
        assert "expected a memory" in refused(capsys, command, here / "fast.npz", "--state", here / "plain.npz")


def test_what_cannot_be_written_is_said_before_anything_is_read(here, tmp_path, capsys, monkeypatch):
    """A folder, below a file, one file for two things, the model itself: nothing is computed, nothing is touched."""
    (tmp_path / "notes").write_text("precious")
    monkeypatch.setattr("fwl_ref.lm.table.print_table", lambda *_, **more: pytest.fail("read"))
    model = tmp_path / "m.npz"
    model.write_bytes((here / "fast.npz").read_bytes())
    for option in ("--csv", "--json", "--plot", "--state"):
        assert "nothing can be written" in refused(capsys, "evaluate", model, option, tmp_path / "notes" / "x")
        assert "each file" in refused(capsys, "evaluate", model, option, model)
    assert "Is a directory" in refused(capsys, "evaluate", model, "--csv", tmp_path)
    assert "each file" in refused(capsys, "evaluate", model, "--csv", tmp_path / "x", "--json", tmp_path / "x")
    assert "nothing can be written" in refused(capsys, "generate", model, "--state", tmp_path / "notes" / "x")
    assert (tmp_path / "notes").read_text() == "precious" and sorted(p.name for p in tmp_path.iterdir()) == ["m.npz", "notes"]
    assert model.read_bytes() == (here / "fast.npz").read_bytes()


# --- generate


def test_generate_goes_on_with_what_it_saved(here, tmp_path, capsys):
    """Its own text without a prompt, or with one as if it had been read; the memory of evaluate needs a prompt and gets the usual one."""
    model, state = here / "fast.npz", tmp_path / "s.npz"
    params = load_checkpoint(model).progress.params
    options = {"window": 8, "temperature": 0.0}
    whole = generate.generate(params, CONFIG, b"the cat", 30, **options)
    command = ["generate", model, "--temperature=0", "--state", state, "--count"]
    first = done(capsys, *command, 12, "--prompt", "the cat").out
    assert first.startswith(f"the cat▸{whole[:12].decode('utf-8', 'replace')}\nmemory of 19 bytes")
    assert done(capsys, *command, 18).out.startswith(f"▸{whole[12:].decode('utf-8', 'replace')}\nmemory of 37 bytes")
    third = done(capsys, *command, 5, "--prompt", " sat").out
    expected = generate.generate(params, CONFIG, b"the cat" + whole + b" sat", 5, **options)
    assert third.startswith(f" sat▸{expected.decode('utf-8', 'replace')}\n")
    done(capsys, "evaluate", model, "--state", tmp_path / "e.npz", "--bytes=9")
    assert done(capsys, "generate", model, "--state", tmp_path / "e.npz", "--count=1").out.startswith("def ▸")


def test_before_and_after_stand_side_by_side(here, monkeypatch, capsys):
    """Left what the slow weights alone write, right what adapting does: the same seed, so the difference is the memory's."""
    monkeypatch.setenv("COLUMNS", "103")
    params = load_checkpoint(here / "fast.npz").progress.params
    slow = evaluate.with_step_size(params, 0.0, 0.0)
    texts = [generate.generate(p, CONFIG, b"the cat", 9, window=8, seed=4) for p in (slow, params)]
    lines = done(capsys, "generate", here / "fast.npz", "--prompt", "the cat", "--count=9", "--seed=4", "--compare").out.splitlines()
    left, right = lines[0].split(" | ")
    assert left.strip() == "before: slow weights alone" and right == "after: adapted" and len(left) == 50
    from fwl_ref.lm.side_by_side import side_by_side

    shown = tuple(f"the cat▸{text.decode('utf-8', 'replace')}" for text in texts)
    assert "\n".join(lines) == side_by_side(("before: slow weights alone", "after: adapted"), shown, 103)
