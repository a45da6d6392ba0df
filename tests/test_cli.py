"""The command line: every command on a tiny corpus, and one clear line for everything that can be
mistyped.
"""

import io
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from fwl_ref import __version__
from fwl_ref.__main__ import main, parser
from fwl_ref.files import reserved
from fwl_ref.lm import evaluate
from fwl_ref.lm import generate as generation
from fwl_ref.lm import train as training
from fwl_ref.lm.checkpoint import Checkpoint, Text, load_checkpoint, save_checkpoint, text_of
from fwl_ref.lm.corpus import Fingerprint, load_corpus, summary
from fwl_ref.lm.model import Config
from fwl_ref.lm.reading import read as read_source
from fwl_ref.lm.resume import CONFIG as DEFAULTS
from fwl_ref.lm.resume import TRAINING
from fwl_ref.lm.train import TrainSettings, train
from fwl_ref.tree import leaves, tree_map

pytestmark = pytest.mark.host("files and the command line")

SIZES = {"steps": 3, "batch": 1, "window": 8, "width": 8, "layers": 1, "heads": 2}
CONFIG = Config(width=8, layers=1, heads=2)
SETTINGS = TrainSettings(steps=3, batch=1, window=8)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A folder of a few short documents; nobody writes into it."""
    folder = tmp_path_factory.mktemp("text")
    for i in range(6):
        (folder / f"{i}.txt").write_text(f"the {i}th cat sat on mat {i}. " * 12)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory, text):
    """A fast and a plain model trained on the text, by their names; nobody writes into the folder."""
    folder = tmp_path_factory.mktemp("models")
    assert main(training_command(text, folder / "fast.npz")) == main(training_command(text, folder / "plain.npz", "--plain")) == 0
    return folder


def training_command(data, out, *more, **sizes):
    """``train`` at tiny sizes."""
    options = [f"--{name}={value}" for name, value in (SIZES | sizes).items()]
    return ["train", "--data", str(data), "--out", str(out), *options, *map(str, more)]


def words_of(capsys, *argv):
    """What a command that must succeed prints."""
    capsys.readouterr()
    assert main([str(word) for word in argv]) == 0
    return capsys.readouterr().out


def fails(capsys, argv, *words):
    """The command ends with 2 and one line that holds all words. Errors of argparse come with the
    usage before that line.
    """
    capsys.readouterr()
    try:
        code, usage = main([str(word) for word in argv]), False
    except SystemExit as error:
        code, usage = error.code, True
    err = capsys.readouterr().err
    lines = [line for line in err.replace("\r", "\n").splitlines() if line.strip() and "%|" not in line]
    assert code == 2 and lines, (code, err)
    assert "Traceback" not in err and (usage or len(lines) == 1), err
    assert all(word in lines[-1] for word in words), lines[-1]
    assert not any(word in lines[-1] for word in ("NoneType", "object has no", "<class", "need at least one array")), lines[-1]


# --- what works


@pytest.mark.parametrize(("name", "fast"), [("fast", True), ("plain", False)])
def test_train_writes_a_checkpoint_of_what_was_asked(models, text, name, fast):
    """The same as calling train, to the bit."""
    found = load_checkpoint(models / f"{name}.npz")
    assert found[:3] == (CONFIG._replace(fast=fast), SETTINGS, text_of(load_corpus(str(text)))) and found.writer == "train"
    expected = train(load_corpus(str(text)), CONFIG._replace(fast=fast), SETTINGS, quiet=True)
    assert all((a == b).all() for a, b in zip(leaves(found.progress.params), leaves(expected.params), strict=True))


def test_every_option_of_train_arrives(tmp_path, text):
    """Dialect, first order, rate and seed are in the checkpoint."""
    options = ("--dialect", "jax", "--first-order", "--rate", "0.01", "--seed", "5")
    assert main(training_command(text, tmp_path / "m.npz", *options, steps=1)) == 0
    found = load_checkpoint(tmp_path / "m.npz")
    assert found.config == CONFIG._replace(dialect="jax", first_order=True)
    assert found.settings == SETTINGS._replace(steps=1, rate=0.01, seed=5)


def test_train_resumes_to_the_same_bits(tmp_path, text, models, capsys):
    """From a checkpoint after one step: it says so, and ends where straight training ends. A model
    that is trained is left alone.
    """
    saved = []
    straight = train(load_corpus(str(text)), CONFIG, SETTINGS, quiet=True, save=saved.append, save_every=1)
    save_checkpoint(tmp_path / "m.npz", Checkpoint(CONFIG, SETTINGS, text_of(load_corpus(str(text))), saved[0]))
    out = words_of(capsys, *training_command(text, tmp_path / "m.npz"))
    assert summary(load_corpus(str(text))) in out.splitlines()
    assert f"resuming {tmp_path / 'm.npz'} at step 1 of 3" in out and f"written: {tmp_path / 'm.npz'}" in out
    found = load_checkpoint(tmp_path / "m.npz").progress
    assert all((a == b).all() for a, b in zip(leaves(found.params), leaves(straight.params), strict=True))
    before = (tmp_path / "m.npz").read_bytes()
    assert "trained already, all 3 steps" in words_of(capsys, *training_command(text, tmp_path / "m.npz"))
    assert (tmp_path / "m.npz").read_bytes() == before


@pytest.mark.parametrize("name", ["fast", "plain"])
def test_evaluate_prints_bits_per_byte_of_every_way(models, text, capsys, name):
    """Left to itself it reads the model's test documents; the last line is over all bytes, static
    and adapting.
    """
    out = words_of(capsys, "evaluate", models / f"{name}.npz").splitlines()
    params, documents = (load_checkpoint(models / f"{name}.npz").progress.params, load_corpus(str(text)).test)
    config = CONFIG._replace(fast=name == "fast")
    losses = [[evaluate.static(params, config, d, 8) for d in documents]]
    if name == "fast":
        losses += [[evaluate.fast_weights(params, config, d, 8, carried=c) for d in documents] for c in (False, True)]
    expected = [f"{evaluate.bits_per_byte(each):.3f}" for each in losses]
    assert out[-1].split()[: len(losses)] == expected and out[-1].endswith(f"all {len(documents)} documents")
    assert len(out) == len(documents) + 3 and all(d.name in out[i + 2] for i, d in enumerate(documents))
    assert out[0] == summary(load_corpus(str(text)))


def test_evaluate_reads_files_of_ones_own_up_to_a_limit(models, text, tmp_path, capsys):
    """--data and --bytes; documents too short to score are left out."""
    (tmp_path / "a.txt").write_text("the cat sat on a mat")
    (tmp_path / "b.txt").write_text("x")
    out = words_of(capsys, "evaluate", models / "fast.npz", "--data", tmp_path, "--bytes", 7).splitlines()
    (document,) = (d for d in read_source(str(tmp_path)).documents if d.name == "a.txt")
    losses = evaluate.static(load_checkpoint(models / "fast.npz").progress.params, CONFIG, document, 8, 7)
    assert out[0] == f"text {tmp_path}: 1 documents (20 bytes); left out: 1 empty or one byte (b.txt; 1 bytes)"
    assert out[2].split()[:2] == ["7", f"{evaluate.bits_per_byte([losses]):.3f}"] and out[-1].endswith("all 1 documents")


@pytest.mark.parametrize("name", ["fast", "plain"])
def test_generate_prints_prompt_and_text(models, capsys, tmp_path, name):
    """What ``generate`` returns, after the prompt, from the command line or from a file."""
    (tmp_path / "prompt.txt").write_text("the cät", encoding="utf-8")
    out = words_of(capsys, "generate", models / f"{name}.npz", "--prompt", "the cät", "--count", 9, "--seed", 3, "--temperature", 0.5)
    params, prompt = load_checkpoint(models / f"{name}.npz").progress.params, "the cät".encode()
    expected = generation.generate(params, CONFIG._replace(fast=name == "fast"), prompt, 9, window=8, temperature=0.5, seed=3)
    assert out == f"{prompt.decode()}▸{expected.decode('utf-8', 'replace')}\n"
    path = f"@{tmp_path / 'prompt.txt'}"
    assert words_of(capsys, "generate", models / f"{name}.npz", "--prompt", path, "--count", 9, "--seed", 3, "--temperature", 0.5) == out


def test_generate_passes_every_option_on(models, capsys, monkeypatch):
    """--no-adapt, and a prompt whose bytes are not UTF-8."""
    seen = {}
    read = generation.read_text
    monkeypatch.setattr(generation, "read_text", lambda *args: seen.update(prompt=args[3]) or read(*args))
    monkeypatch.setattr(generation, "write_text", lambda params, config, reader, count, **more: seen.update(more) or (b"!", reader))
    prompt = os.fsdecode(b"caf\xe9")
    assert words_of(capsys, "generate", models / "fast.npz", "--prompt", prompt, "--no-adapt", "--seed", 4).endswith("▸!\n")
    assert seen == {"prompt": b"caf\xe9", "window": 8, "temperature": 0.7, "seed": 4, "adapt": False, "quiet": False}


def test_golden_makes_runs_and_checks(tmp_path, capsys):
    """0 when all agree, 1 when an answer differs, 2 when there is nothing to check."""
    assert "wrote 2 cases" in words_of(capsys, "golden", "make", tmp_path / "cases", "--count", 2, "--seed", 1)
    case = sorted((tmp_path / "cases").iterdir())[0]
    words_of(capsys, "golden", "run", case, tmp_path / "answers" / "out.npz")
    assert "2 of 2 cases agree" in words_of(capsys, "golden", "check", tmp_path / "cases")
    assert "1 of 1 cases agree" in words_of(capsys, "golden", "check", tmp_path / "answers")
    with np.load(tmp_path / "answers" / "out.npz") as file:
        arrays = dict(file)
    np.savez(tmp_path / "answers" / "out.npz", **arrays | {"logits": arrays["logits"] * 1.001})
    assert main(["golden", "check", str(tmp_path / "answers")]) == 1
    fails(capsys, ["golden", "check", tmp_path / "absent"], "absent")


def test_demo_is_called_with_what_was_asked(monkeypatch, tmp_path, capsys):
    """Folder, corpus and size; results/ and the standard library if nothing is said."""
    from fwl_ref.demo import run as demo

    calls = []
    monkeypatch.setattr(demo, "run_demo", lambda *args, **more: calls.append((*args, more)))
    words_of(capsys, "demo")
    words_of(capsys, "demo", "--quick", "--data", "topics", "--out", tmp_path)
    calls = [(str(out), *rest) for out, *rest in calls]
    here = {"backend": "numpy", "pool": None}
    assert calls == [("results", "stdlib", False, here), (str(tmp_path), "topics", True, here)]


def test_help_and_version(capsys):
    """Every command explains itself and its options; the version is the package's."""
    for argv, words in {
        (): ["demo", "train", "evaluate", "generate", "golden"],
        ("demo",): ["--quick", "--data", "--out"],
        ("train",): ["--plain", "--dialect", "--first-order", "--steps", "--rate", "--seed"],
        ("evaluate",): ["checkpoint", "--bytes"],
        ("generate",): ["@FILE", "--temperature", "--no-adapt"],
        ("golden",): ["make", "run", "check"],
    }.items():
        with pytest.raises(SystemExit) as caught:
            main([*argv, "--help"])
        out = capsys.readouterr().out
        assert caught.value.code == 0 and all(word in out for word in words), out
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0 and capsys.readouterr().out.strip() == __version__


def test_no_command_waits_for_what_another_one_needs():
    """Starting loads neither what draws pictures nor what reads the models of others, for that takes a second."""
    late = {"matplotlib", "gguf", "safetensors", "tokenizers", "mpi4py"}
    program = "import sys, fwl_ref.__main__ as m; m.parser(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not late & {name.partition(".")[0] for name in done.stdout.split()}


def test_the_module_runs_as_a_program(tmp_path):
    """python -m fwl_ref: the exit code and the line reach the shell."""
    run = subprocess.run([sys.executable, "-m", "fwl_ref", "evaluate", str(tmp_path / "absent.npz")], capture_output=True, text=True)
    assert run.returncode == 2 and not run.stdout
    assert run.stderr.startswith("fwl_ref: no checkpoint at") and run.stderr.count("\n") == 1


# --- what is mistyped


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--steps", 0], ["steps", "at least 1", "got 0"]),
        (["--batch", -2], ["batch", "at least 1", "got -2"]),
        (["--window", 0], ["window", "at least 1", "got 0"]),
        (["--width", 0], ["width", "at least 1", "got 0"]),
        (["--layers", 0], ["layers", "at least 1", "got 0"]),
        (["--heads", 0], ["heads", "at least 1", "got 0"]),
        (["--heads", 3], ["multiple of the number of heads", "width 8", "3 heads"]),
        (["--width", 6], ["even head width", "6 / 2 = 3"]),
        (["--width", 10**7], ["allocate"]),
        (["--seed", -1], ["seed", "at least 0", "got -1"]),
        (["--rate", 0], ["rate", "> 0", "got 0.0"]),
        (["--rate", "nan"], ["rate", "finite", "got nan"]),
        (["--rate", "inf"], ["rate", "finite", "got inf"]),
        (["--steps", "many"], ["--steps", "invalid int value", "'many'"]),
        (["--rate", "fast"], ["--rate", "invalid float value", "'fast'"]),
        (["--dialect", "torch"], ["--dialect", "invalid choice", "'torch'"]),
        (["--epochs", 3], ["unrecognized arguments", "--epochs"]),
    ],
)
def test_train_refuses_numbers_that_cannot_be(tmp_path, text, capsys, options, words):
    """Which option, what must hold and what was found; nothing is written."""
    fails(capsys, [*training_command(text, tmp_path / "new" / "m.npz"), *options], *words)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


@pytest.mark.parametrize("command", ["train", "demo", "evaluate"])
def test_text_that_cannot_be_read_is_refused(tmp_path, models, capsys, command):
    """No such path, not UTF-8, nothing in it: for every command that takes --data."""
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 100)
    (tmp_path / "empty").mkdir()
    (tmp_path / "byte.txt").write_text("x")
    argv = {
        "train": training_command("stdlib", tmp_path / "out" / "m.npz"),
        "demo": ["demo", "--quick", "--out", tmp_path / "out"],
        "evaluate": ["evaluate", models / "fast.npz"],
    }[command]
    fails(capsys, [*argv, "--data", tmp_path / "absent"], "absent", "'stdlib', 'topics'")
    fails(capsys, [*argv, "--data", "standardlib"], "standardlib", "'stdlib', 'topics'")
    fails(capsys, [*argv, "--data", tmp_path / "latin.txt"], "latin.txt", "not UTF-8", "0xe9", "offset 3")
    fails(capsys, [*argv, "--data", "a" * 300], "File name too long")
    for name in ("empty", "byte.txt"):
        fails(capsys, [*argv, "--data", tmp_path / name], "least 2 bytes" if command == "evaluate" else "empty or tiny")


def test_train_refuses_to_write_where_it_cannot(tmp_path, text, models, capsys):
    """A folder, somebody else's file, below a file: said before training, and nothing is touched."""
    (tmp_path / "notes.txt").write_text("precious")
    fails(capsys, training_command(text, tmp_path), "Is a directory", str(tmp_path))
    fails(capsys, training_command(text, tmp_path / "notes.txt"), "notes.txt", "expected an .npz file")
    fails(capsys, training_command(text, tmp_path / "notes.txt" / "m.npz"), "nothing can be written", "notes.txt")
    fails(capsys, training_command(text, tmp_path / ("a" * 300)), "File name too long")
    assert (tmp_path / "notes.txt").read_text() == "precious" and len(list(tmp_path.iterdir())) == 1


def test_train_refuses_a_checkpoint_of_other_settings(models, text, tmp_path, capsys):
    """Which settings differ, and how; the checkpoint stays."""
    before = (models / "fast.npz").read_bytes()
    out = models / "fast.npz"
    fails(capsys, training_command(text, out, steps=4, width=12), "fast.npz", "width 8, not 12", "another --out")
    fails(capsys, training_command(text, out, "--plain"), "fast True, not False")
    for i in range(6):
        (tmp_path / f"{i}.txt").write_text(f"another text, {i}. " * 20)
    fails(capsys, training_command(tmp_path, out), f"data {text}, not {tmp_path}")
    assert (models / "fast.npz").read_bytes() == before


@pytest.mark.parametrize("command", ["evaluate", "generate"])
def test_a_model_that_cannot_be_read_is_refused(tmp_path, capsys, command):
    """No such file, a folder, another kind of file, arrays of something else."""
    (tmp_path / "notes.npz").write_text("precious")
    np.savez(tmp_path / "arrays.npz", x=np.ones(3))
    fails(capsys, [command, tmp_path / "absent.npz"], "no checkpoint", "absent.npz", "fwl_ref train")
    fails(capsys, [command, tmp_path], "Is a directory")
    fails(capsys, [command, tmp_path / "notes.npz"], "notes.npz", "expected an .npz file")
    fails(capsys, [command, tmp_path / "arrays.npz"], "arrays.npz", "expected a checkpoint")
    fails(capsys, [command], "the following arguments are required", "checkpoint")


@pytest.mark.parametrize("command", ["evaluate", "generate"])
@pytest.mark.parametrize(("value", "found"), [(np.nan, "nan"), (-np.inf, "-inf")])
def test_a_model_that_is_not_finite_is_refused_by_the_parameter(tmp_path, text, capsys, command, value, found):
    """Nothing is computed with it: one line that names the file, the parameter and the entry."""
    checkpoint = some_checkpoint()
    trunk = checkpoint.progress.params.trunk
    weights = trunk[0].W_o.copy()
    weights[1, 2] = value
    params = checkpoint.progress.params._replace(trunk=(trunk[0]._replace(W_o=weights), *trunk[1:]))
    save_checkpoint(tmp_path / "m.npz", checkpoint._replace(progress=checkpoint.progress._replace(params=params)))
    argv = [command, tmp_path / "m.npz", *(["--data", text] if command == "evaluate" else [])]
    fails(capsys, argv, "m.npz: params/trunk.0.W_o: expected finite numbers", f"found {found} at index (1, 2)")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("part", ["U", "eta"])
def test_losses_and_logits_that_are_not_finite_are_no_success(tmp_path, text, capsys, part):
    """Finite parameters that overflow: evaluate prints its table, names the first loss and the
    column, and fails; so does generate, where the likeliest of no numbers was a byte.
    """
    checkpoint = some_checkpoint()
    params = checkpoint.progress.params
    if part == "U":
        params = params._replace(block=params.block._replace(U=np.full_like(params.block.U, 3e38)))
        first, column = "byte 1 of '0.txt'", "slow weights alone"
    else:  # the plain model is sound
        params = params._replace(eta=tree_map(lambda e: np.full_like(e, 3e38), params.eta))
        first, column = "of '0.txt'", "fast, reset every window"
    save_checkpoint(tmp_path / "m.npz", checkpoint._replace(progress=checkpoint.progress._replace(params=params)))
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "m.npz"), "--data", str(text)]) == 2
    out, err = capsys.readouterr()
    assert out.splitlines()[-1].endswith("all 6 documents")
    assert "the loss of byte" in err and first in err and f"in the column {column!r}" in err and "smaller step sizes" in err
    fails(capsys, ["generate", tmp_path / "m.npz", "--prompt", "the cat sat", "--temperature", 0], "the logits after", "not finite")


@pytest.mark.parametrize("limit", [0, -5])
def test_evaluate_refuses_to_read_nothing(models, capsys, limit):
    """At least one byte."""
    fails(capsys, ["evaluate", models / "fast.npz", "--bytes", limit], "at least 1 byte", f"got a limit of {limit}")


def test_evaluate_says_if_the_text_is_gone(tmp_path, text, models, capsys):
    """The corpus of a checkpoint is a path; if nothing is there any more, the path is named."""
    found = load_checkpoint(models / "fast.npz")
    save_checkpoint(tmp_path / "m.npz", found._replace(text=found.text._replace(source=str(tmp_path / "gone"))))
    fails(capsys, ["evaluate", tmp_path / "m.npz"], "no corpus", "gone")
    assert words_of(capsys, "evaluate", tmp_path / "m.npz", "--data", text, "--bytes", 5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--prompt", ""], ["prompt", "at least 1 byte"]),
        (["--prompt", "@absent.txt"], ["No such file", "absent.txt"]),
        (["--prompt", "@."], ["Is a directory"]),
        (["--count", -1], ["count", "at least 0", "got -1"]),
        (["--temperature", -0.5], ["temperature", "at least 0", "got -0.5"]),
        (["--temperature", "nan"], ["temperature", "finite", "got nan"]),
        (["--seed", -1], ["seed", "at least 0", "got -1"]),
        (["--count", "ten"], ["--count", "invalid int value"]),
    ],
)
def test_generate_refuses_what_cannot_be(models, capsys, options, words):
    """Which option, what must hold and what was found."""
    fails(capsys, ["generate", models / "fast.npz", *options], *words)


def test_golden_refuses_what_cannot_be(tmp_path, capsys):
    """Counts, folders and files."""
    (tmp_path / "notes.txt").write_text("precious")
    fails(capsys, ["golden", "make", tmp_path / "a", "--count", 0], "at least 1 case", "count 0")
    fails(capsys, ["golden", "make", tmp_path / "notes.txt"], "notes.txt")
    fails(capsys, ["golden", "run", tmp_path / "absent.npz", tmp_path / "out.npz"], "absent.npz")
    fails(capsys, ["golden", "run", tmp_path, tmp_path / "out.npz"], "Is a directory")
    fails(capsys, ["golden", "run", tmp_path / "notes.txt", tmp_path / "out.npz"], "notes.txt", "expected an .npz file")
    fails(capsys, ["golden", "check", tmp_path], "expected golden cases", "golden make")
    fails(capsys, ["golden"], "make|run|check")
    assert (tmp_path / "notes.txt").read_text() == "precious"


def test_demo_refuses_to_write_where_it_cannot(tmp_path, text, capsys):
    """A file in the way, or another kind of file under the name of a model: said before training."""
    (tmp_path / "file").write_text("precious")
    (tmp_path / "plain.npz").write_text("precious")
    fails(capsys, ["demo", "--quick", "--data", text, "--out", tmp_path / "file"], "nothing can be written", "file")
    fails(capsys, ["demo", "--quick", "--data", text, "--out", tmp_path], "plain.npz", "expected an .npz file")
    assert all((tmp_path / name).read_text() == "precious" for name in ("file", "plain.npz"))


@pytest.mark.parametrize("argv", [[], ["tarin"], ["--quick"], ["demo", "stdlib"]])
def test_commands_that_do_not_exist_are_refused(capsys, argv):
    """argparse's own words."""
    fails(capsys, argv, "error:")


# --- what goes wrong later


def test_a_loss_that_is_not_finite_is_one_line(tmp_path, text, capsys, monkeypatch):
    """The step and the parameter; no checkpoint of broken numbers."""
    original = training.loss_and_gradient

    def poisoned(*args):
        loss, grads = original(*args)
        return loss, grads._replace(gain=grads.gain * np.nan)

    monkeypatch.setattr(training, "loss_and_gradient", poisoned)
    fails(capsys, training_command(text, tmp_path / "m.npz"), "step 0", "gradient of gain", "not finite")
    assert not list(tmp_path.iterdir())


def stopping(monkeypatch, stop, step=2):
    """Training calls ``stop`` in the middle of a step."""
    original, calls = training.loss_and_gradient, []

    def stopped(*args):
        calls.append(1)
        if len(calls) == step + 1:
            stop()
        return original(*args)

    monkeypatch.setattr(training, "loss_and_gradient", stopped)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_training_after_saving_and_the_next_run_goes_on(tmp_path, text, models, capsys, monkeypatch, request, name):
    """Ctrl-C, a request to end, a closed terminal: 128 + N, one line, no traceback, and not a step
    is lost. Afterwards the signals mean what they meant before.
    """
    number = getattr(signal, name)
    before = signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL
    inherited = signal.signal(number, before)  # a suite that runs in the background or under nohup inherits "ignored"
    request.addfinalizer(lambda: signal.signal(number, inherited))
    with monkeypatch.context() as patched:
        stopping(patched, lambda: signal.raise_signal(number))
        assert main(training_command(text, tmp_path / "m.npz")) == 128 + number
    err = capsys.readouterr().err
    assert ("interrupted" if name == "SIGINT" else f"ended by {name}") in err and "run again" in err and "Traceback" not in err
    assert load_checkpoint(tmp_path / "m.npz").progress.adam.step == 2 and [p.name for p in tmp_path.iterdir()] == ["m.npz"]
    assert "at step 2 of 3" in words_of(capsys, *training_command(text, tmp_path / "m.npz"))
    ends = [load_checkpoint(path).progress for path in (tmp_path / "m.npz", models / "fast.npz")]
    assert all((a == b).all() for a, b in zip(leaves(ends[0].params), leaves(ends[1].params), strict=True))
    assert signal.getsignal(number) == before


def test_an_interruption_in_the_first_step_leaves_nothing(tmp_path, text, capsys, monkeypatch):
    """There is no finished step to save; elsewhere nothing is said of going on."""

    def stop():
        raise KeyboardInterrupt

    stopping(monkeypatch, stop, step=0)
    assert main(training_command(text, tmp_path / "m.npz")) == 130
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(generation, "write_text", lambda *_, **more: stop())
    save_checkpoint(tmp_path / "m.npz", some_checkpoint())
    capsys.readouterr()
    assert main(["generate", str(tmp_path / "m.npz")]) == 130 and capsys.readouterr().err == "\nfwl_ref: interrupted\n"


def some_checkpoint(**changes):
    """An untrained model of some text."""
    text = Text("stdlib", Fingerprint("a", "b", "c"), 1, (), (), ())
    return Checkpoint(CONFIG._replace(**changes), SETTINGS, text, training.begin(CONFIG._replace(**changes), SETTINGS))


def test_nohup_is_respected(tmp_path, text, monkeypatch):
    """A hangup that is ignored when the command starts does not end it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        stopping(monkeypatch, lambda: signal.raise_signal(signal.SIGHUP))
        assert main(training_command(text, tmp_path / "m.npz")) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


class Gone(io.StringIO):
    """A stream whose reader has gone."""

    def write(self, _):
        raise BrokenPipeError(32, "Broken pipe")


@pytest.mark.parametrize("stream", [None, Gone()])
def test_training_does_not_need_anybody_to_watch(tmp_path, text, monkeypatch, stream):
    """Standard error closed, or its reader gone: the model is trained to the end. A mistake still
    ends with 2.
    """
    monkeypatch.setattr(sys, "stderr", stream)
    assert main(training_command(text, tmp_path / "m.npz")) == 0
    assert load_checkpoint(tmp_path / "m.npz").progress.adam.step == 3
    assert main(["train", "--steps", "0"]) == 2


@pytest.mark.slow
def test_a_reader_that_leaves_is_no_error(tmp_path, text):
    """`train 2>&1 | true`: the model is there, whole, and Python says nothing at the end."""
    save_checkpoint(tmp_path / "m.npz", some_checkpoint())
    script = '"$@" 2>err | true; echo ${PIPESTATUS[0]}'
    argv = [sys.executable, "-m", "fwl_ref", "generate", str(tmp_path / "m.npz"), "--count", "9"]
    run = subprocess.run(["bash", "-c", script, "-", *argv], capture_output=True, text=True, cwd=tmp_path, env=environment())
    assert run.stdout.strip() in ("0", "141") and "rror" not in (tmp_path / "err").read_text()
    script = '"$@" 2>&1 | true; wait'
    argv = [sys.executable, "-m", "fwl_ref", *training_command(text, tmp_path / "n.npz")]
    subprocess.run(["bash", "-c", script, "-", *argv], check=True, cwd=tmp_path, env=environment())
    found = tmp_path / "n.npz"
    assert not found.exists() or load_checkpoint(found).progress.adam.step == 3


def environment():
    """For a command that runs in another folder."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}


def test_a_second_training_to_one_file_is_refused_before_it_begins(tmp_path, text, models, capsys):
    """The first goes on; when it has ended, its file is there for the next. Generating is open to
    all.
    """
    with reserved(tmp_path / "m.npz"):
        fails(capsys, training_command(text, tmp_path / "m.npz"), "another process is writing", "m.npz", "wait")
        assert not (tmp_path / "m.npz").exists()
        shutil.copy(models / "fast.npz", tmp_path / "m.npz")
        assert words_of(capsys, "generate", tmp_path / "m.npz", "--count", 1)
    assert "trained already" in words_of(capsys, *training_command(text, tmp_path / "m.npz"))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(("steps", "rate"), [(1, 1e41), (3, 1e39), (60, 1e39)])
def test_a_model_that_is_not_finite_is_not_written(tmp_path, text, capsys, steps, rate):
    """A rate beyond float32 spoils the parameters after the loss was looked at, in the last step or
    before.
    """
    fails(capsys, training_command(text, tmp_path / "m.npz", "--rate", rate, steps=steps), "not finite", "ower the learning rate")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("length", [249, 251])
def test_a_long_name_is_no_reason_to_lose_a_model(tmp_path, text, length):
    """Up to the 255 bytes that file systems take: the draft has a short name of its own."""
    assert main(training_command(text, tmp_path / ("a" * length + ".npz"), steps=1)) == 0
    assert [len(path.name) for path in tmp_path.iterdir()] == [length + 4]


def test_what_an_encoding_lacks_is_written_with_backslashes(tmp_path, monkeypatch):
    """Sampled bytes are any bytes: a Latin-1 pipe gets the text all the same."""
    save_checkpoint(tmp_path / "m.npz", some_checkpoint())
    monkeypatch.setattr(generation, "write_text", lambda *_, **more: ("→ é".encode() + b"\xff", None))
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="latin-1"))
    assert main(["generate", str(tmp_path / "m.npz"), "--prompt", "a "]) == 0
    assert raw.getvalue() == b"a \\u25b8\\u2192 \xe9\\ufffd\n"


# --- the text


@pytest.fixture
def moving_text(tmp_path, text):
    """A copy of the text that may be changed, and a half-trained and a trained model of it."""
    folder = tmp_path / "text"
    shutil.copytree(text, folder)
    corpus, saved = load_corpus(str(folder)), []
    train(corpus, CONFIG, SETTINGS, quiet=True, save=saved.append, save_every=1)
    for name, progress in (("half", saved[1]), ("whole", saved[2])):
        save_checkpoint(tmp_path / f"{name}.npz", Checkpoint(CONFIG, SETTINGS, text_of(corpus), progress))
    return folder


def trained_document(folder, part):
    """A document of a part of the corpus."""
    return folder / getattr(load_corpus(str(folder)), part)[0].name


def test_training_goes_on_with_the_same_text_only(moving_text, tmp_path, capsys):
    """One byte of a training document: refused, half trained or wholly, with documents and bytes
    before and after, and what to do. The same text elsewhere is the same text.
    """
    was = text_of(load_corpus(str(moving_text)))
    size = (len(was.train), was.size)
    shutil.copytree(moving_text, tmp_path / "elsewhere")
    path = trained_document(moving_text, "train")
    path.write_text(path.read_text() + "!")
    for name in ("half", "whole"):
        before = (tmp_path / f"{name}.npz").read_bytes()
        words = ("has changed", f"{size[0]} documents and {size[1]:,} bytes", f"now {size[0]} and {size[1] + 1:,}", "another --out")
        fails(capsys, training_command(moving_text, tmp_path / f"{name}.npz"), *words)
        assert (tmp_path / f"{name}.npz").read_bytes() == before
    assert "at step 2 of 3" in words_of(capsys, *training_command(tmp_path / "elsewhere", tmp_path / "half.npz"))
    ends = [load_checkpoint(tmp_path / f"{name}.npz") for name in ("half", "whole")]
    assert all((a == b).all() for a, b in zip(leaves(ends[0].progress.params), leaves(ends[1].progress.params), strict=True))
    assert ends[0].text.source == str(tmp_path / "elsewhere")


def test_evaluate_says_whether_the_text_is_new_to_the_model(moving_text, tmp_path, capsys):
    """As it was; a changed test document; a changed training document, a warning; other text."""

    def said(*argv):
        assert main(["evaluate", str(tmp_path / "whole.npz"), "--bytes", "5", *map(str, argv)]) == 0
        out, err = capsys.readouterr()
        return err.splitlines()[0] if "warning: the text" in err else out.splitlines()[1]

    other = trained_document(moving_text, "train")  # one of many
    capsys.readouterr()
    assert "none of which was trained on" in said()
    assert "what the model was trained on among it" in said("--data", moving_text)
    assert "as a whole not what the model was trained on" in said("--data", other)
    path = trained_document(moving_text, "test")
    path.write_text(path.read_text() + "!")
    assert "some have changed" in said() and "none was trained on" in said()
    path = trained_document(moving_text, "train")
    path.write_text(path.read_text() + "!")
    assert said().startswith("warning: the text in") and "may have been trained on" in said()


def test_evaluate_warns_of_a_changed_text_once(moving_text, tmp_path, capsys):
    """The whole warning on standard error alone; the table, which may be kept without it, says what
    follows for its figures.
    """
    path = trained_document(moving_text, "train")
    path.write_text(path.read_text() + "!")
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "whole.npz"), "--bytes", "5"]) == 0
    out, err = capsys.readouterr()
    assert err.count("has changed since") == 1 and "has changed" not in out and "warning" not in out
    assert out.splitlines()[1].endswith("; test documents that may have been trained on)")


@pytest.mark.parametrize("normalizer", ["batch", "sequence"])
def test_evaluate_prints_what_a_normalizer_allows(tmp_path, text, capsys, normalizer):
    """Carried fast weights need the constant normalizer: without it two columns, and why."""
    save_checkpoint(tmp_path / "m.npz", some_checkpoint(normalizer=normalizer))
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "m.npz"), "--data", str(text)]) == 0
    out, err = capsys.readouterr()
    assert "carried" not in out and out.splitlines()[-1].split()[3:] == ["all", "6", "documents"]
    assert f"no column for carried fast weights: the normalizer '{normalizer}'" in err


def test_demo_and_train_keep_their_models_apart(tmp_path, text, capsys):
    """Each refuses the other's, before any work, and says whose it is."""
    for writer, other, argv in (
        ("train", "demo", ["demo", "--quick", "--data", text, "--out", tmp_path]),
        ("demo", "train", training_command(text, tmp_path / "fast.npz")),
    ):
        save_checkpoint(tmp_path / "fast.npz", some_checkpoint()._replace(writer=writer))
        before = (tmp_path / "fast.npz").read_bytes()
        fails(capsys, argv, "fast.npz", f"command `{writer}`", f"`{other}` would replace it", "another --out")
        assert (tmp_path / "fast.npz").read_bytes() == before


def test_every_setting_is_an_option_and_the_help_says_its_default(tmp_path, text, capsys):
    """All fields of Config and TrainSettings: what is not given is what Python takes, what is given is in the checkpoint."""
    assert not {*DEFAULTS._fields, *TRAINING._fields} & vars(parser().parse_args(["train"])).keys()
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    words = " ".join(capsys.readouterr().out.split())
    for name, value in (DEFAULTS._asdict() | TRAINING._asdict()).items():
        option = f"--{name.replace('_', '-')}"
        assert re.search(rf"{option}[ ,].*?\(default: {'none' if value is None else value}\)", words), name
    given = {
        "config": CONFIG._replace(
            attention_window=6, chunk=None, dialect="jax", normalizer="sequence", constant=2.0, first_order=True, vocabulary=300, layers=2
        ),
        "settings": SETTINGS._replace(
            steps=1, rate=0.01, warmup=3, weight_decay=0.5, clip=0.25, step_size=0.02, decay=0.25, seed=5, nonnegative=False, batch=2
        ),
    }
    words = []
    for name, value in (given["config"]._asdict() | given["settings"]._asdict()).items():
        option = name.replace("_", "-")
        flag = isinstance(value, bool)
        words += [f"--{'' if value else 'no-'}{option}"] if flag else [f"--{option}", "none" if value is None else str(value)]
    assert main(["train", "--data", str(text), "--out", str(tmp_path / "m.npz"), *words]) == 0
    found = load_checkpoint(tmp_path / "m.npz")
    assert (found.config, found.settings) == (given["config"], given["settings"])


def test_an_error_of_many_lines_becomes_one(capsys, monkeypatch):
    """Whatever an error says, and also if it says nothing."""
    from fwl_ref.demo import run as demo

    for error, line in ((ValueError("two\n  lines"), "fwl_ref: two lines"), (MemoryError(), "fwl_ref: MemoryError")):

        def broken(*_, error=error, **more):
            raise error

        monkeypatch.setattr(demo, "run_demo", broken)
        assert main(["demo"]) == 2 and capsys.readouterr().err == f"{line}\n"
