"""Checkpoints: what is saved comes back to the bit, and a file that is no checkpoint is refused by
name.
"""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwl_ref import files
from fwl_ref.files import reserved, save_arrays, whole_file
from fwl_ref.lm.adamw import adam_init
from fwl_ref.lm.checkpoint import FORMAT, Checkpoint, Text, load_checkpoint, save_checkpoint
from fwl_ref.lm.corpus import Fingerprint
from fwl_ref.lm.model import Config, initialize, parameter_shapes
from fwl_ref.lm.train import Progress, TrainSettings, train
from fwl_ref.tree import named_leaves
from tests.tolerances import assert_bitwise

pytestmark = pytest.mark.host("files")

CONFIG = Config(width=4, layers=1, heads=1, chunk=5)
SETTINGS = TrainSettings(steps=6, batch=2, window=12, warmup=2, seed=3)
TEXT = Text("some/größe.txt", Fingerprint("aa", "bb", "cc"), 4_000, (("a", "1"), ("ß", "2")), (), (("c", "3"),), (("d", "4"),))


def fresh(config=CONFIG, dtype="float32", settings=SETTINGS):
    """A checkpoint before the first step."""
    params = initialize(config, dtype=dtype)
    return Checkpoint(config, settings, TEXT, Progress(params, adam_init(params), ()))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The bytes of a good file."""
    path = tmp_path_factory.mktemp("saved") / "model.npz"
    save_checkpoint(path, fresh())
    return path.read_bytes()


def contents(path):
    with np.load(path) as file:
        return dict(file)


def meta(path):
    """The description in a file."""
    return json.loads(contents(path)["meta"].tobytes())


def described(**changes):
    """The array that describes a model."""
    return np.frombuffer(json.dumps(changes).encode(), dtype="uint8")


def assert_same(a, b):
    """Two progresses are the same to the bit."""
    for x, y in zip((a.params, *a.adam[:2]), (b.params, *b.adam[:2]), strict=True):
        for (name, p), (other, q) in zip(named_leaves(x), named_leaves(y), strict=True):
            assert name == other
            assert_bitwise(p, q, name)
    assert (a.adam.step, a.history) == (b.adam.step, b.history)


# --- round trips


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("fast", [True, False])
def test_a_checkpoint_comes_back_to_the_bit(tmp_path, corpus, dtype, fast):
    """Configuration, settings, corpus, parameters, moments, step and history; awkward values too."""
    config = CONFIG._replace(fast=fast, attention_window=7, dialect="jax", constant=0.1 + 0.2, first_order=True)
    settings = SETTINGS._replace(steps=3, rate=1 / 3)
    before = fresh(config, dtype, settings).progress
    progress = train(corpus, config, settings, start=before, quiet=True)
    odd = np.asarray([1e-40, -0.0, 3e38, 5e-324], dtype=dtype)
    mean = progress.adam.mean._replace(gain=np.asarray([np.nan, -0.0, np.inf, 5e-324], dtype=dtype))
    progress = progress._replace(params=progress.params._replace(gain=odd), adam=progress.adam._replace(mean=mean))
    whole = Checkpoint(config, settings, TEXT, progress, "demo")
    save_checkpoint(tmp_path / "new" / "folder" / "model.npz", whole)
    found = load_checkpoint(tmp_path / "new" / "folder" / "model.npz")
    assert found[:3] == whole[:3] and found.writer == "demo"
    assert [type(x) for x in (*found.config, *found.settings)] == [type(x) for x in (*config, *settings)]
    assert_same(found.progress, progress)
    assert [p.name for p in (tmp_path / "new" / "folder").iterdir()] == ["model.npz"]


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("k", [1, 4])
def test_resuming_through_a_file_equals_training_straight_through_to_the_bit(tmp_path, corpus, fast, k):
    """Training, stopping at step k, saving, loading and going on: every bit of parameters, moments
    and history.
    """
    config, path, paths = CONFIG._replace(fast=fast), tmp_path / "model.npz", []

    def save(progress):
        save_checkpoint(path, Checkpoint(config, SETTINGS, TEXT, progress))
        paths.append(path.read_bytes())

    straight = train(corpus, config, SETTINGS, save=save, save_every=1, quiet=True)
    path.write_bytes(paths[k - 1])
    found = load_checkpoint(path)
    assert found.progress.adam.step == k and len(found.progress.history) == k
    resumed = train(corpus, found.config, found.settings, start=found.progress, quiet=True)
    assert_same(resumed, straight)


def test_the_same_checkpoint_is_the_same_file(tmp_path):
    """No dates and no names of machines: equal content, equal arrays."""
    for name in ("a", "b"):
        save_checkpoint(tmp_path / name, fresh())
    a, b = (contents(tmp_path / name) for name in ("a", "b"))
    assert a.keys() == b.keys() and all(a[k].tobytes() == b[k].tobytes() for k in a)


# --- written whole


@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt(), MemoryError()])
def test_an_interrupted_save_leaves_the_old_file_whole(tmp_path, saved, monkeypatch, error):
    """Whatever breaks off the writing half way: the old checkpoint loads as before, and there is no
    draft.
    """
    path = tmp_path / "model.npz"
    path.write_bytes(saved)
    whole = files.host.savez

    def breaks_off(file, **arrays):
        whole(file, **dict(list(arrays.items())[: len(arrays) // 2]))
        raise error

    monkeypatch.setattr(files.host, "savez", breaks_off)
    with pytest.raises(type(error)):
        save_checkpoint(path, fresh(CONFIG._replace(width=8)))
    assert path.read_bytes() == saved and list(tmp_path.iterdir()) == [path]
    assert load_checkpoint(path).config == CONFIG


def test_a_file_is_replaced_only_when_all_is_written(tmp_path):
    """While one writes, a reader finds the old file; afterwards the new one; and who has the old
    one open reads it to its end.
    """
    path = tmp_path / "text"
    path.write_bytes(b"old")
    with path.open("rb") as reader:
        with whole_file(path) as file:
            file.write(b"new, " * 10_000)
            file.flush()
            assert path.read_bytes() == b"old"
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new, " * 10_000 and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_saved_files_have_the_permissions_that_the_user_asks_for(tmp_path, umask):
    """The umask decides who may read a file, as for any file one writes."""
    before = os.umask(umask)
    try:
        save_arrays(tmp_path / "a.npz", {"x": np.ones(1)})
    finally:
        os.umask(before)
    assert (tmp_path / "a.npz").stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_folder_that_cannot_be_written_to_is_refused_early(tmp_path):
    """A folder is made, its parents too; where a file is in the way the message names the folder
    and says why. Nothing is left behind.
    """
    with reserved(tmp_path / "a" / "b" / "model.npz"):
        pass
    assert (tmp_path / "a" / "b").is_dir() and not list((tmp_path / "a" / "b").iterdir())
    (tmp_path / "file").write_text("precious")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError) as caught, reserved(folder / "model.npz"):
            pass
        assert all(word in str(caught.value) for word in ("nothing can be written", repr(str(folder)), "give another"))
    assert (tmp_path / "file").read_text() == "precious"


def test_a_link_is_followed_and_permissions_are_kept(tmp_path, saved):
    """Models that lie on another disk, behind a link, stay there; so does who may read them. A link
    to nothing yet is followed too.
    """
    (tmp_path / "disk").mkdir()
    target, link = tmp_path / "disk" / "model.npz", tmp_path / "model.npz"
    link.symlink_to(target)
    for mode in (0o600, 0o664):
        save_checkpoint(link, fresh())
        assert link.is_symlink() and load_checkpoint(target).config == CONFIG
        target.chmod(mode)
        save_checkpoint(link, fresh())
        assert target.stat().st_mode & 0o777 == mode
    assert [p.name for p in (tmp_path / "disk").iterdir()] == ["model.npz"] and len(list(tmp_path.iterdir())) == 2


def test_only_files_are_replaced(tmp_path):
    """A pipe, a device, a folder: refused, and still there."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name, words in (("pipe", "device or a pipe"), ("folder", "Is a directory")):
        with pytest.raises(OSError, match=words):
            save_arrays(tmp_path / name, {"x": np.ones(1)})
        with pytest.raises(OSError, match=words), reserved(tmp_path / name):
            pass
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "folder").is_dir()


@pytest.mark.parametrize("name", ["a" * 255, "ä" * 127, "a" * 250])
def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path, name):
    """Drafts and locks have short names. A longer one is refused before any work."""
    with reserved(tmp_path / name):
        save_arrays(tmp_path / name, {"x": np.ones(1)})
    assert [p.name for p in tmp_path.iterdir()] == [name]
    with pytest.raises(OSError, match="File name too long"), reserved(tmp_path / (name + "äää")):
        raise AssertionError("work has begun")


KILLED = """
import os, signal, sys
from pathlib import Path
from fwl_ref.files import reserved, whole_file
path = Path(sys.argv[1])
with reserved(path), whole_file(path) as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_cleared_away(tmp_path, saved):
    """A draft and a reservation that nobody holds any more: the next one to write takes them over,
    and a file it does not concern stays.
    """
    path = tmp_path / "model.npz"
    path.write_bytes(saved)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL and load_checkpoint(path).config == CONFIG
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".lock", ".npz", ".part"]
    with reserved(path):
        assert sorted(p.suffix for p in tmp_path.iterdir()) == [".lock", ".npz"]
        save_checkpoint(path, fresh(CONFIG._replace(width=8)))
    assert load_checkpoint(path).config.width == 8 and list(tmp_path.iterdir()) == [path]


def test_a_file_has_one_writer_at_a_time(tmp_path):
    """The second is refused and disturbs nothing; other files are free; afterwards it may."""
    path = tmp_path / "a"
    for one in (whole_file, reserved):
        with one(path):
            before = {p for p in tmp_path.iterdir() if p.name != "b"}
            with pytest.raises(BlockingIOError, match="another process is writing .*a': wait"), one(path):
                raise AssertionError("work has begun")
            with one(tmp_path / "b"):
                pass
            assert {p for p in tmp_path.iterdir() if p.name != "b"} == before
        with one(path):
            pass
    with reserved(path), whole_file(path) as file:  # whoever has reserved a file may write it
        file.write(b"new")
    assert path.read_bytes() == b"new"


def test_a_file_system_without_locks_is_no_obstacle(tmp_path, monkeypatch):
    """Some network disks have none: then keeping writers apart is left to the user."""

    def none(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(files.fcntl, "flock", none)
    with reserved(tmp_path / "a"):
        save_arrays(tmp_path / "a", {"x": np.ones(1)})
    monkeypatch.setattr(files, "fcntl", None)
    with reserved(tmp_path / "a"):
        save_arrays(tmp_path / "a", {"x": np.ones(1)})
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


# --- files that are no checkpoints


def refused(path, *words, error=ValueError):
    """Loading fails with one line that names the file and holds all ``words``."""
    with pytest.raises(error) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in (path.name, *words)), message


def test_a_checkpoint_that_is_not_there(tmp_path):
    """The path, and how to make one."""
    refused(tmp_path / "absent.npz", "no checkpoint", "train", error=FileNotFoundError)


def test_a_folder_is_no_checkpoint(tmp_path):
    """The operating system's own words."""
    refused(tmp_path, "Is a directory", error=OSError)


FOREIGN = {
    "empty": b"",
    "text": b"hello world\n" * 10,
    "a single array": b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, 'shape': (1,), }".ljust(127) + b"\n" + bytes(8),
    "a pickle": b"\x80\x04]\x94.",
    "a zip of nothing": b"PK\x05\x06" + bytes(18),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_files_are_refused(tmp_path, kind):
    """Anything but an archive of arrays: the file's name, and what was expected."""
    path = tmp_path / "model.npz"
    path.write_bytes(FOREIGN[kind])
    refused(path, "expected")


def test_pickled_objects_are_refused(tmp_path):
    """Loading never runs code from a file."""
    np.savez(tmp_path / "model.npz", meta=np.asarray([{}], dtype=object))
    refused(tmp_path / "model.npz", "meta", "without pickles")


@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_refused(tmp_path_factory, saved, share):
    """Cut anywhere."""
    path = tmp_path_factory.mktemp("cut") / "model.npz"
    path.write_bytes(saved[: int(share * len(saved))])
    refused(path, "expected")


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_found_or_harmless(tmp_path_factory, saved, place, bit):
    """Never another error than ValueError, and never other numbers: damage is found by the
    archive's checksums.
    """
    path, damaged = tmp_path_factory.mktemp("flip") / "model.npz", bytearray(saved)
    damaged[int(place * len(saved))] ^= 1 << bit
    path.write_bytes(damaged)
    try:
        found = load_checkpoint(path)
    except ValueError as error:
        assert path.name in str(error) and "\n" not in str(error)
    else:
        assert_same(found.progress, fresh().progress)


def test_a_damaged_compressed_file_is_refused(tmp_path, saved):
    """Somebody may have packed it more tightly; damage is found all the same."""
    path = tmp_path / "model.npz"
    path.write_bytes(saved)
    np.savez_compressed(path, **contents(path))
    assert_same(load_checkpoint(path).progress, fresh().progress)
    data = bytearray(path.read_bytes())
    for start in range(100, len(data) - 3000, 1500):
        damaged = data[:start] + b"\xff" * 40 + data[start + 40 :]
        path.write_bytes(damaged)
        refused(path, "expected")


def test_arrays_without_a_description_are_refused(tmp_path):
    """No meta, meta that is no JSON, JSON that is no description, or is nested without end."""
    texts = (b"[1]", b"[" * 200_000, b'{"format":' * 200_000)
    for arrays in (
        {"x": np.ones(2)},
        {"meta": np.ones(2)},
        {"meta": described()},
        *({"meta": np.frombuffer(t, dtype="uint8")} for t in texts),
    ):
        np.savez(tmp_path / "model.npz", **arrays)
        refused(tmp_path / "model.npz", "without a description")


@pytest.mark.parametrize("found", [0, FORMAT + 1, "1"])
def test_another_format_is_refused_by_number(tmp_path, found):
    """Whatever else is in the file: the number found and the number expected."""
    np.savez(tmp_path / "model.npz", meta=described(format=found))
    refused(tmp_path / "model.npz", f"expected checkpoint format {FORMAT}", f"found {found}")


WRONG = {
    "an unknown setting": lambda m: m["config"].update(experts=8),
    "an unknown train setting": lambda m: m["settings"].update(epochs=8),
    "a width of text": lambda m: m["config"].update(width="8"),
    "an odd head width": lambda m: m["config"].update(width=3),
    "no settings": lambda m: m.pop("settings"),
    "no step": lambda m: m.pop("step"),
    "no history": lambda m: m.pop("history"),
    "half a record": lambda m: m.update(history=[[1, 2.0]]),
    "a record of words": lambda m: m.update(history=[[1, "2.0", 1.0, [0.0] * 6, 0.0]]),
    "a record of seven step sizes": lambda m: m.update(history=[[1, 2.0, 1.0, [0.0] * 7, 0.0]]),
    "no text": lambda m: m.pop("text"),
    "half a text": lambda m: m.update(text=["stdlib"]),
    "a document without a name": lambda m: m["text"].__setitem__(3, [["1"]]),
    "no origin": lambda m: m.pop("origin"),
    "no writer": lambda m: m.pop("writer"),
    "a step before the first": lambda m: m.update(step=-1),
    "a window of nothing": lambda m: m["settings"].update(window=0),
    "half a window": lambda m: m["settings"].update(window=2.5),
    "a batch that is true": lambda m: m["settings"].update(batch=True),
    "a rate that is no number": lambda m: m["settings"].update(rate=float("nan")),
    "a rate left out": lambda m: m["settings"].pop("rate"),
    "more layers than arrays": lambda m: m["config"].update(layers=10**9),
    "a width beyond memory": lambda m: m["config"].update(width=10**12),
    "a width beyond machine numbers": lambda m: m["config"].update(width=10**30),
    "nested too deeply": lambda m: m.update(config=[[[]]]),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_description_that_does_not_fit_is_refused(tmp_path, saved, wrong):
    """Of a later version, or edited by hand."""
    path = tmp_path / "model.npz"
    path.write_bytes(saved)
    description = meta(path)
    WRONG[wrong](description)
    np.savez(path, **contents(path) | {"meta": described(**description)})
    refused(path, "description that does not fit")


@pytest.mark.parametrize("kind", ["params", "mean", "square"])
@pytest.mark.parametrize("name", [name for name, _ in named_leaves(initialize(CONFIG))][::7])
def test_an_array_that_is_missing_or_misshapen_is_named(tmp_path, saved, kind, name):
    """Missing, of another shape, not of real numbers: the array, what was expected and what was
    found.
    """
    path, key = tmp_path / "model.npz", f"{kind}/{name}"
    path.write_bytes(saved)
    arrays = contents(path)
    array = arrays.pop(key)
    np.savez(path, **arrays)
    refused(path, key, str(array.shape), "missing")
    np.savez(path, **arrays | {key: np.zeros((2, 9), "float32")})
    refused(path, key, str(array.shape), "(2, 9)")
    np.savez(path, **arrays | {key: array.astype("int64")})
    refused(path, key, "real numbers", "int64")


def test_the_file_holds_what_its_description_says(tmp_path, saved):
    """One array per leaf and tree, and a description that a person can read."""
    path = tmp_path / "model.npz"
    path.write_bytes(saved)
    names = [name for name, _ in named_leaves(fresh().progress.params)]
    assert sorted(contents(path)) == sorted(["meta", *(f"{kind}/{name}" for kind in ("params", "mean", "square") for name in names)])
    assert meta(path)["format"] == FORMAT and meta(path)["config"]["width"] == 4 and meta(path)["text"] == json.loads(json.dumps(TEXT))


def test_a_claimed_size_is_compared_before_anything_is_drawn(tmp_path, saved, monkeypatch):
    """Thirty layers of width 4000 would take minutes and 30 GB: the first array tells."""
    path = tmp_path / "model.npz"
    path.write_bytes(saved)
    description = meta(path)
    description["config"].update(width=4000, layers=30)
    np.savez(path, **contents(path) | {"meta": described(**description)})

    def drawn(*_):
        raise AssertionError("numbers are drawn")

    monkeypatch.setattr(np.random, "default_rng", drawn)
    refused(path, "params/embedding", "(256, 4000)", "(256, 4)")


@pytest.mark.parametrize("fast", [True, False])
def test_shapes_without_numbers_are_those_of_the_parameters(fast):
    """The same tree, at no cost."""
    config = Config(width=6, layers=2, heads=3, vocabulary=7, fast=fast)
    drawn, shapes = initialize(config), parameter_shapes(config)
    assert [(n, p.shape) for n, p in named_leaves(drawn)] == [(n, p.shape) for n, p in named_leaves(shapes)]


def test_nobody_is_advised_to_load_pickles(tmp_path):
    """A text given as a checkpoint is named as what it is not; NumPy's advice to load it unsafely
    is not passed on.
    """
    path = tmp_path / "text.txt"
    path.write_text("not a model")
    with pytest.raises(ValueError, match="text.txt: expected an .npz file without pickles") as caught:
        load_checkpoint(path)
    assert "unsafely" not in str(caught.value) and "pickle.load" not in str(caught.value)
