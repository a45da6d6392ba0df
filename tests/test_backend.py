"""The backend finds the library of its arrays and refuses to mix; training stays on its device; the
suite's stand-ins have teeth.

A docstring that opens with "N:" is a negative control.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import array_api_strict
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from fwl_ref.__main__ import main, parser
from fwl_ref.backend import (
    BackendError,
    as_dtype,
    backend_target,
    backend_versions,
    is_host,
    like,
    namespace,
    overwritten,
    peak_bytes,
    product_to,
    to_numpy,
    wait,
    waiting_refused,
)
from fwl_ref.demo import run as demo
from fwl_ref.demo.parallel import InTurn
from fwl_ref.lm import train as training
from fwl_ref.lm.adamw import NonFiniteError, adam_init, clip, global_norm, squares
from fwl_ref.lm.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, text_of
from fwl_ref.lm.data import Corpus, Document, load_corpus
from fwl_ref.lm.device import batch_like, to_backend
from fwl_ref.lm.model import Config
from fwl_ref.lm.train import LOG_EVERY, Progress, TrainSettings, advance, begin, on_backend, records, train, train_step
from fwl_ref.ops import attention
from fwl_ref.tree import leaves, tree_map
from tests import backends, conftest
from tests.conftest import claimed, pytest_configure, pytest_report_header, share, share_examples
from tests.tolerances import assert_bitwise

pytestmark = pytest.mark.host("moves arrays itself")

ROOT = Path(__file__).resolve().parent.parent
DEVICES = [array_api_strict.Device(name) for name in ("CPU_DEVICE", "device1", "device2")]


def test_namespace_is_the_library_of_the_arrays() -> None:
    """namespace(x) computes where x lives; None entries are skipped."""
    assert namespace(np.ones(2), None, np.ones(3)).__name__.endswith("numpy")
    assert namespace(None, array_api_strict.asarray([1.0])) is array_api_strict


def test_mixed_dtypes_are_refused_naming_both_and_their_shapes() -> None:
    """float32 with float64 is an error: nothing is upcast silently."""
    with pytest.raises(TypeError, match=r"float64 \(shape \(2,\)\) and float32 \(shape \(3, 1\)\)"):
        namespace(np.ones(2), np.ones((3, 1), dtype="float32"))
    with pytest.raises(TypeError, match="float64.*int64"):
        namespace(np.ones(2), np.ones(2, dtype="int64"))
    strict = array_api_strict.ones(2)
    with pytest.raises(TypeError, match="float64.*float32"):
        namespace(strict, array_api_strict.astype(strict, array_api_strict.float32))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_mixed_libraries_are_refused_naming_both(dtype: str) -> None:
    """NumPy with another library is an error that says how to move, whatever the dtypes."""
    ours, theirs = np.ones(2, dtype=dtype), array_api_strict.ones(2)
    for mixed in ((ours, theirs), (theirs, ours)):
        with pytest.raises(TypeError, match="one library, got array_api_strict.*numpy.*like"):
            namespace(*mixed)


def test_mixed_devices_are_refused_naming_both() -> None:
    """Two devices of one library are an error."""
    a = array_api_strict.ones(2)
    with pytest.raises(TypeError, match="CPU_DEVICE.*device1"):
        namespace(a, a.to_device(DEVICES[1]))


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "bool"])
def test_like_and_to_numpy_are_inverse(device: array_api_strict.Device, dtype: str) -> None:
    """to_numpy(like(a, target)) = a, dtype kept, on the target's library and device."""
    target = array_api_strict.ones(1).to_device(device)
    a = (np.arange(6).reshape(2, 3) % 4).astype(dtype)
    moved = like(a, target)
    assert moved.device == device
    assert str(moved.dtype).endswith(dtype)
    assert not is_host(moved)
    assert_bitwise(to_numpy(moved), a)


def test_like_converts_only_when_asked() -> None:
    """like(x, target, dtype) has that dtype, whether it is named as the library or as a string
    names it.
    """
    target = array_api_strict.ones(1).to_device(DEVICES[1])
    for dtype in ("float32", array_api_strict.float32):
        assert like(np.ones(2), target, dtype).dtype == array_api_strict.float32
    assert like([1.0, 2.0], np.ones(1), "float32").dtype == np.float32
    assert like(np.ones(2), np.ones(1, dtype="float32")).dtype == np.float64


def test_host_arrays_are_not_copied_and_scalars_are_host_values() -> None:
    """to_numpy on the host is the identity; a NumPy scalar counts as host."""
    a = np.ones(3)
    assert to_numpy(a) is a
    assert is_host(a) and is_host(np.float32(1)) and not is_host(1.0)


def test_as_dtype_keeps_library_and_device() -> None:
    """as_dtype changes the precision and nothing else."""
    x = array_api_strict.ones(2).to_device(DEVICES[1])
    assert as_dtype(x, "float32").dtype == array_api_strict.float32
    assert as_dtype(x, "float32").device == DEVICES[1]
    assert as_dtype(np.ones(2), "float32").dtype == np.float32


@pytest.mark.parametrize("xp", [np, array_api_strict])
def test_products_and_functions_of_entries_find_their_places(xp: ModuleType) -> None:
    """``product_to`` changes the rows that it is told and no others, ``overwritten`` is the function; on the host both in place."""
    out, a, b = xp.zeros((2, 4, 3)), xp.ones((2, 2, 5)), xp.ones((2, 5, 3))
    rows = (slice(None), slice(1, 3), slice(None))
    found = to_numpy(product_to(out, rows, a, b))
    assert (found[rows] == 5).all() and found.sum() == 5 * 12
    x = xp.asarray([0.0, 1.0])
    y = overwritten(xp.exp, x)
    assert_bitwise(to_numpy(y), np.exp([0.0, 1.0]))
    assert (y is x) == (xp is np)
    assert np.shares_memory(found, to_numpy(out))
    assert overwritten(np.exp, np.float64(0.0)) == 1  # no array, no memory to write to


def test_versions_name_python_and_numpy() -> None:
    """What a reported number must be reported with."""
    assert backend_versions()["numpy"] == np.__version__
    assert backend_versions()["python"].count(".") == 2


# A backend by its name
# ---------------------------------------------------------------------------------------------------------


def test_numpy_is_always_there() -> None:
    """A host array to move to; moving a tree there returns the tree itself."""
    tree = (np.ones(2), (None, 3))
    assert is_host(backend_target("numpy")) and to_backend(tree, "numpy") is tree
    assert peak_bytes(np.ones(2)) == 0 and wait(np.ones(2)) is None
    with waiting_refused(np.ones(2)) as error:
        assert issubclass(error, Exception)


def test_an_unknown_backend_is_refused() -> None:
    """By name, with the names there are."""
    with pytest.raises(ValueError, match="numpy, cupy, got 'torch'"):
        backend_target("torch")


class CUDARuntimeError(RuntimeError):
    """As CuPy's."""


def fake_cupy(count: Any) -> ModuleType:
    """A CuPy that finds ``count`` GPUs, or fails to look for them."""

    def look() -> int:
        if isinstance(count, Exception):
            raise count
        return count

    module = ModuleType("cupy")
    module.__version__ = "99"
    module.cuda = SimpleNamespace(runtime=SimpleNamespace(getDeviceCount=look, CUDARuntimeError=CUDARuntimeError))
    return module


MISSING = {
    "no CuPy": (None, ["pip install 'fwl_ref[cuda13]'", "'fwl_ref[cuda12]'", "numpy backend"]),
    "no driver": (fake_cupy(CUDARuntimeError("no driver")), ["CuPy 99 finds no GPU", "no driver", "numpy backend"]),
    "no GPU": (fake_cupy(0), ["CuPy 99 finds no GPU", "CUDA_VISIBLE_DEVICES", "numpy backend"]),
}


@pytest.mark.parametrize("what", MISSING)
def test_a_missing_gpu_or_cupy_is_an_error_that_says_what_to_install(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is asked for by name: a target, versions, a tree moved."""
    module, words = MISSING[what]
    monkeypatch.setitem(sys.modules, "cupy", module)
    for action in (backend_target, backend_versions, lambda name: to_backend((np.ones(1),), name)):
        with pytest.raises(BackendError) as caught:
            action("cupy")
        assert all(word in str(caught.value) for word in words), caught.value


COMMANDS = {
    "demo": ["demo", "--quick"],
    "train": ["train"],
    "evaluate": ["evaluate", "MODEL"],
    "generate": ["generate", "MODEL"],
    "golden make": ["golden", "make", "OUT/golden"],
    "golden run": ["golden", "run", "CASE", "OUT/answer.npz"],
    "golden check": ["golden", "check", "CASES"],
    "check": ["check", "--no-demo"],
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A model, a folder of golden cases and one of them."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "text").mkdir()
    for i in range(6):
        (folder / "text" / f"{i}.txt").write_text(f"the {i}th cat sat on mat {i}. " * 12)
    sizes = ["--steps=1", "--batch=1", "--window=8", "--width=8", "--layers=1", "--heads=2", "--data", str(folder / "text")]
    assert main(["train", *sizes, "--out", str(folder / "model.npz")]) == 0
    assert main(["golden", "make", str(folder / "cases"), "--count", "1"]) == 0
    (case,) = (folder / "cases").iterdir()
    return {"MODEL": str(folder / "model.npz"), "CASES": str(folder / "cases"), "CASE": str(case)}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_takes_a_backend(name: str, files: dict, tmp_path: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without CuPy each ends with 2 and one line on what to install, and leaves nothing behind."""
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.chdir(tmp_path)
    words = [files.get(w, w.replace("OUT", str(tmp_path))) for w in COMMANDS[name]]
    assert main([*words, "--backend", "cupy"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install 'fwl_ref[cuda13]'" in line
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
    if name.startswith("golden"):
        assert main([*words, "--backend", "numpy"]) == 0


# A training step on a device
# ---------------------------------------------------------------------------------------------------

CONFIG = Config(width=8, layers=1, heads=2, chunk=5)
SETTINGS = TrainSettings(steps=LOG_EVERY + 3, batch=1, window=7, warmup=2, seed=3)
CORPUS = Corpus("made up", (Document("made up", np.random.default_rng(0).integers(97, 107, 4000).astype("uint8")),), (), ())
CROSSINGS = ("__float__", "__bool__", "__int__", "__index__", "__complex__", "__array__", "__dlpack__", "__buffer__")


def on_device(tree: Any) -> Any:
    """Host arrays of a tree moved to a device that is not the host."""
    target = array_api_strict.ones(1).to_device(DEVICES[1])
    return tree_map(lambda leaf: like(leaf, target) if is_host(leaf) else leaf, tree)


def start_on_device(config: Config = CONFIG) -> Progress:
    params = on_device(begin(config, SETTINGS).params)
    return Progress(params, adam_init(params), ())


@pytest.fixture
def crossings(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """Every way for a value to leave the device, counted: to_numpy, and what Python does of itself
    for float(x), if x: and the like.
    """
    seen: Counter[str] = Counter()
    kind = type(array_api_strict.ones(1))

    def counted(name: str, original: Any) -> Any:
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            seen[name] += self.device == DEVICES[1]
            return original(self, *args, **kwargs)

        return method

    for name in CROSSINGS:
        if hasattr(kind, name):
            monkeypatch.setattr(kind, name, counted(name, getattr(kind, name)))
    return seen


@pytest.mark.parametrize("fast", [True, False])
def test_a_training_step_brings_nothing_home_but_its_record(fast: bool, crossings: Counter) -> None:
    """Three steps: no crossing of any kind; reading their records: one."""
    config = CONFIG._replace(fast=fast)
    params, adam, _ = start_on_device(config)
    rows = []
    for _ in range(3):
        params, adam, row = advance(params, adam, CORPUS, config, SETTINGS)
        rows.append(row)
    assert not +crossings
    assert [r.step for r in records(rows, 0, params)] == [0, 1, 2]
    assert +crossings == Counter({"__dlpack__": 1})


def test_training_brings_records_home_every_so_many_steps(crossings: Counter) -> None:
    """13 steps: one transfer after 10 and one after 13; more often only to save."""
    train(CORPUS, CONFIG, SETTINGS, start=start_on_device(), quiet=True)
    assert +crossings == Counter({"__dlpack__": 2})
    crossings.clear()
    train(CORPUS, CONFIG, SETTINGS, start=start_on_device(), quiet=True, save=lambda _: None, save_every=4)
    assert +crossings == Counter({"__dlpack__": 4})


def test_a_hidden_crossing_is_counted(crossings: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    """N: a step that looks at its loss, or decides by it, is found out."""
    original = training.loss_and_gradient

    def curious(*args: Any) -> tuple:
        loss, grads = original(*args)
        if loss > 100:
            loss = loss * float(loss)
        return loss, grads

    monkeypatch.setattr(training, "loss_and_gradient", curious)
    params, adam, _ = start_on_device()
    advance(params, adam, CORPUS, CONFIG, SETTINGS)
    assert crossings["__bool__"] == 1


def test_training_on_a_device_is_training_on_the_host() -> None:
    """The strict library computes with NumPy: parameters, moments and history are the same to the
    last bit, clipped or not.
    """
    norms = sorted(r.grad_norm for r in train(CORPUS, CONFIG, SETTINGS, quiet=True).history)
    settings = SETTINGS._replace(clip=norms[len(norms) // 2])
    ours, theirs = (train(CORPUS, CONFIG, settings, start=start_on_device(), quiet=True), train(CORPUS, CONFIG, settings, quiet=True))
    assert {r.grad_norm > settings.clip for r in theirs.history} == {True, False}
    assert ours.history == theirs.history
    for a, b in zip(leaves((ours.params, ours.adam[:2])), leaves((theirs.params, theirs.adam[:2])), strict=True):
        assert a.device == DEVICES[1]
        assert_bitwise(to_numpy(a), b)


def test_a_step_is_the_same_recorded_or_not() -> None:
    """train_step is advance and records; the history grows by one."""
    start = start_on_device()
    once = train_step(start, CORPUS, CONFIG, SETTINGS)
    params, _, row = advance(start.params, start.adam, CORPUS, CONFIG, SETTINGS)
    assert once.history == records([row], 0, params) and len(once.history) == 1 and once.adam.step == 1
    for a, b in zip(leaves(once.params), leaves(params), strict=True):
        assert_bitwise(to_numpy(a), to_numpy(b))


@pytest.mark.parametrize("step", [0, 5, LOG_EVERY])
@pytest.mark.parametrize("name", ["embedding", "decay", "loss"])
def test_what_goes_wrong_between_two_transfers_is_named_with_its_step(step: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps run on until the records come home; then the first bad one stops training, and nothing
    from it on is saved.
    """
    original, calls, saved = training.loss_and_gradient, [], []

    def poisoned(*args: Any) -> tuple:
        loss, grads = original(*args)
        calls.append(None)
        if len(calls) == step + 1:
            if name == "loss":
                return loss * np.nan, grads
            grads = grads._replace(**{name: getattr(grads, name) * np.nan})
        return loss, grads

    monkeypatch.setattr(training, "loss_and_gradient", poisoned)
    words = f"step {step}: " + ("the loss is nan" if name == "loss" else f"the gradient of {name} is not finite")
    with pytest.raises(NonFiniteError, match=words):
        train(CORPUS, CONFIG, SETTINGS, start=start_on_device(), quiet=True, save=saved.append, save_every=4)
    assert [p.adam.step for p in saved] == [s for s in (4, 8, 12) if s <= step]
    assert all(np.isfinite(to_numpy(a)).all() for p in saved for a in leaves(p.params))


@pytest.mark.parametrize("limit", [0.5, 5.0, 50.0])
def test_clipping_by_a_factor_is_clipping_by_a_decision(limit: float) -> None:
    """On a device the norm is not looked at; the result is the same to the last bit."""
    grads = (np.array([3.0, 0.0]), (np.array(4.0), None))
    moved = on_device(grads)
    here, there = (clip(grads, limit, global_norm(squares(grads))), clip(moved, limit, global_norm(squares(moved))))
    for a, b in zip(leaves(here), leaves(there), strict=True):
        assert_bitwise(to_numpy(b), np.asarray(a))


def test_progress_moves_with_its_moments_and_keeps_its_history() -> None:
    """on_backend moves arrays only."""
    start = begin(CONFIG, SETTINGS)._replace(history=("a record",))
    assert on_backend(start, "numpy") == start
    assert begin(CONFIG, SETTINGS, "numpy").adam.step == 0


def test_a_batch_goes_to_the_device_in_the_precision_of_the_parameters() -> None:
    """Integers stay integers, weights become what the target is."""
    target = array_api_strict.ones(1, dtype=array_api_strict.float64).to_device(DEVICES[1])
    batch = batch_like(training.training_batch(CORPUS.train, 2, 8, 0, 0), target)
    assert {str(a.dtype) for a in batch[:2]} == {"array_api_strict.int64"} and batch.weights.dtype == array_api_strict.float64
    assert all(a.device == DEVICES[1] for a in batch)


# The suite on other backends: the stand-ins have teeth
# ---------------------------------------------------------------------------


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A stand-in as it is on the strict library, whatever this run's backend: ``away(f)`` is f as a
    test sees it.
    """
    monkeypatch.setattr(backends, "TARGET", array_api_strict.zeros(0).to_device(DEVICES[1]))
    return backends.StandIn


class Pair(NamedTuple):
    a: Any
    count: int


def test_a_stand_in_computes_on_the_device_and_answers_on_the_host(away: Any) -> None:
    """Arrays, scalars of NumPy and trees go out and come home; dtypes stay."""
    seen = []

    def f(pair: Pair, factor: Any, plain: float) -> tuple:
        seen.append((pair.a.device, factor.device, type(plain), type(pair.count)))
        return Pair(pair.a * factor, pair.count), [pair.a == 1]

    f.__annotations__ = {"plain": "float"}
    a = np.array([1.0, 2.0], dtype="float32")
    (pair, hit), before = away(f)(Pair(a, 7), np.float32(3), 0.5), backends.moved[0]
    assert seen == [(DEVICES[1], DEVICES[1], float, int)] and before > 0
    assert_bitwise(pair.a, 3 * a)
    assert pair.count == 7 and hit[0].tolist() == [True, False]


def test_what_comes_back_is_the_same_object(away: Any) -> None:
    """Tests may ask ``a is b``: leaves, whole trees, and what an iterator yields."""
    a, b = np.ones(2), np.ones(3)
    tree = (a, (b, None))
    assert away(lambda t: t)(tree) is tree
    assert away(lambda t: (t[1][0], t[0]))(tree) == (b, a) and away(lambda t: t[1][0])(tree) is b
    assert [x is y for x, y in zip(away(lambda t: iter([t[0]]))(tree), [a], strict=True)] == [True]


def test_a_function_that_takes_numpy_for_granted_is_found(away: Any) -> None:
    """N: np.* inside, a host array made inside, a method that only NumPy has, an index list: each
    fails away from NumPy.
    """
    x = np.ones((2, 3))
    inside = (lambda a: a + np.ones(3), lambda a: a * np.float64(2), np.asarray)
    for f in (np.exp, *inside, lambda a: a.sum(), lambda a: a[[0, 1]]):
        f(x)
        with pytest.raises((TypeError, AttributeError, IndexError, RuntimeError)):
            away(lambda a, f=f: f(a))(x)


def test_a_function_that_changes_its_argument_is_found(away: Any) -> None:
    """N: the copy on the device is compared with what was sent."""

    def impure(a: Any) -> Any:
        a += 1
        return a * 2

    x = np.ones(3)
    with pytest.raises(AssertionError, match=r"impure changed an argument of shape \(3,\) in place"):
        away(impure)(x)
    assert (x == 1).all()


def test_functions_handed_over_see_the_host(away: Any) -> None:
    """A loss written in NumPy serves a package that calls it with arrays of the device."""
    kinds = []

    def loss(a: np.ndarray) -> np.ndarray:
        kinds.append(type(a))
        return np.exp(a)

    def apply(f: Any, a: Any) -> Any:
        out = f(a)
        assert out.device == DEVICES[1]
        return out * 2

    x = np.arange(3.0)
    assert_bitwise(away(apply)(loss, x), 2 * np.exp(x))
    assert kinds == [np.ndarray]


def test_arrays_of_another_library_pass_through(away: Any) -> None:
    """Neither moved nor brought home: tests about mixing make their own mixture."""
    strict = array_api_strict.ones(2)
    assert away(lambda a, b: (a, b))(strict, np.ones(1))[0] is strict
    assert isinstance(away(lambda a, b: b)(strict, np.ones(1)), np.ndarray)


def test_a_facade_hands_out_stand_ins_and_passes_on_what_is_set(away: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions of the package, one stand-in each; modules about the host as they are; a mutant
    reaches the module and is undone.
    """
    from fwl_ref.lm import data
    from fwl_ref.verify import golden

    module = sys.modules["fwl_ref.fwl"]
    face, original = backends.Facade(module), module.write_fwd
    assert isinstance(face.write_fwd, away) and face.write_fwd is face.write_fwd
    assert face.FastSettings is module.FastSettings
    assert backends.facade(data) is data and backends.facade(golden) is golden
    with monkeypatch.context() as patch:
        mutant = lambda *args: None  # noqa: E731
        patch.setattr(face, "write_fwd", mutant)
        assert isinstance(module.write_fwd, backends.Handed) and face.write_fwd is mutant
    assert module.write_fwd is original


def test_the_two_halves_of_the_suite_are_all_of_it_and_meet_where_they_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test is run by one half, and by one alone, however fast each of them is; what one runs lies
    together, so that nothing is set up in vain; without halves all run.
    """

    class Item(NamedTuple):
        nodeid: str

    items = [Item(f"tests/test_x.py::test_{name}[{case}]") for name in "abcde" for case in range(3)]
    monkeypatch.setattr(conftest, "HALF", "")
    assert all(claimed(item) for item in items)
    for i, speed in enumerate((1, 2, 30)):
        folder, ran = tmp_path / str(i), {"first": [], "last": []}
        folder.mkdir()
        ways = {"first": iter(items), "last": iter(items[::-1])}
        for half in (["first"] * speed + ["last"]) * 30:
            monkeypatch.setattr(conftest, "HALF", f"{half}:{folder}")
            item = next(ways[half], None)
            if item and claimed(item):
                ran[half].append(item)
        assert ran["first"] + ran["last"][::-1] == items


def test_a_file_about_the_host_alone_is_known_by_its_mark_or_by_the_list() -> None:
    """Read from its text: what other backends do not run is not imported there."""
    found = {name: backends.host_file(ROOT / "tests" / name) for name in ("test_backend.py", "test_wheel.py", "testing/test_teeth.py")}
    assert found == {
        "test_backend.py": "moves arrays itself",
        "test_wheel.py": "builds and installs a wheel",
        "testing/test_teeth.py": "kernels are functions of host arrays",
    }
    assert backends.host_file(ROOT / "tests" / "test_structure.py") == "reads source files and docs"
    assert not any(backends.host_file(ROOT / "tests" / name) for name in ("test_tree.py", "rules/test_laws.py", "rules/test_ttt.py"))


def test_examples_are_shared_out_among_the_cases_of_a_property() -> None:
    """All of them for one case; never fewer than a tenth, nor than three, nor more than there are."""
    assert [share(100, cases) for cases in (1, 2, 7, 10, 400)] == [100, 50, 14, 10, 10]
    assert [share(10, cases) for cases in (1, 2, 4, 400)] == [10, 5, 3, 3] and share(2, 1) == share(2, 9) == 2

    @hypothesis.settings(max_examples=40)
    @hypothesis.given(st.integers())
    def drawn(x: int) -> None:
        seen.append(x)

    class Item(NamedTuple):
        nodeid: str
        function: Any

    seen: list[int] = []
    share_examples([Item(f"tests/test_x.py::test_drawn[{case}]", drawn) for case in range(8)] + [Item("tests/test_x.py::test_other", len)])
    drawn()
    assert len(seen) == 5


def test_the_suite_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy and the strict library are required, CuPy if FWL_REF_REQUIRE says so; a backend that is
    missing has a reason.
    """
    absent = {line.split(":")[0] for line in backends.absent_required()}
    assert {"numpy", "strict"} <= backends.REQUIRED and not {"numpy", "strict"} & absent
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert "cupy" in backends.missing("cupy") and not backends.missing("numpy")
    monkeypatch.setattr(backends, "REQUIRED", {"cupy"})
    assert backends.absent_required()[0].startswith("cupy: ")
    assert "unknown" in backends.described("torch") and "NumPy" not in backends.described("cupy")


# Every command on a device
# -----------------------------------------------------------------------------------------------------


@pytest.fixture
def strict_for_cupy(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """Whoever asks for "cupy" gets the strict library on a device that is not the host; counts how
    often an array is moved there.
    """
    real, target, seen = backend_target, array_api_strict.zeros(0).to_device(DEVICES[1]), Counter()

    def instead(name: str) -> Any:
        seen[name] += 1
        return target if name == "cupy" else real(name)

    for module in ("backend", "lm.device", "lm.commands.train", "lm.commands.evaluate", "demo.run", "verify.golden", "verify.selftest"):
        monkeypatch.setattr(f"fwl_ref.{module}.backend_target", instead)
    monkeypatch.setattr(demo, "backend_versions", lambda name: backend_versions() | {"device": name})
    return seen


def lines(capsys: Any, *words: Any) -> list[str]:
    """What a command that succeeds prints."""
    capsys.readouterr()
    assert main([str(w) for w in words]) == 0
    return capsys.readouterr().out.splitlines()


def test_training_resumed_on_a_device_goes_on_to_the_same_bits(
    files: dict, tmp_path: Any, capsys: Any, strict_for_cupy: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint says nothing of the device: one step here and two there are three steps here. Of
    one sequence: a device takes a batch whole, the host sums its sequences.
    """
    text = str(Path(files["MODEL"]).parent / "text")
    sizes = ["--steps=3", "--batch=1", "--window=8", "--width=8", "--layers=1", "--heads=2", "--data", text]
    saved: list[Progress] = []
    config, s = Config(width=8, layers=1, heads=2), TrainSettings(steps=3, batch=1, window=8)
    straight = train(load_corpus(text), config, s, quiet=True, save=saved.append, save_every=1)
    save_checkpoint(tmp_path / "m.npz", Checkpoint(config, s, text_of(load_corpus(text)), saved[0]))
    assert "resuming" in lines(capsys, "train", *sizes, "--out", tmp_path / "m.npz", "--backend", "cupy")[0]
    assert strict_for_cupy["cupy"] > 3
    found = load_checkpoint(tmp_path / "m.npz").progress
    assert found.history == straight.history
    for a, b in zip(leaves((found.params, found.adam[:2])), leaves((straight.params, straight.adam[:2])), strict=True):
        assert_bitwise(a, b)


def test_reading_and_writing_on_a_device_give_what_they_give_here(files: dict, capsys: Any, strict_for_cupy: Counter) -> None:
    """evaluate: the same table. generate: the same bytes, for they are drawn on the host."""
    for command in (["evaluate", files["MODEL"]], ["generate", files["MODEL"], "--count", "9", "--seed", "3"]):
        here, there = lines(capsys, *command), lines(capsys, *command, "--backend", "cupy")
        assert here == there and strict_for_cupy["cupy"] >= 1
        strict_for_cupy.clear()


def test_a_memory_goes_from_a_device_to_the_host_and_back(files: dict, tmp_path: Path, capsys: Any, strict_for_cupy: Counter) -> None:
    """evaluate and generate with --state, there and here in turn: the same text as here alone."""
    texts = []
    for state, places in (("here.npz", ("numpy",) * 3), ("both.npz", ("cupy", "numpy", "cupy"))):
        more = [["--state", tmp_path / state, "--backend", place] for place in places]
        said = [lines(capsys, "evaluate", files["MODEL"], *more[0])[1:-1]]
        said += [lines(capsys, "generate", files["MODEL"], "--count", "9", "--compare", *options)[:-1] for options in more[1:]]
        texts.append(said)
    assert texts[0] == texts[1] and strict_for_cupy["cupy"] > 2


@pytest.mark.slow
def test_golden_answers_are_the_same_wherever_they_are_computed(tmp_path: Any, capsys: Any, strict_for_cupy: Counter) -> None:
    """Cases made here are accepted there, and the other way round: every kind of case there is."""
    lines(capsys, "golden", "make", tmp_path / "here")
    lines(capsys, "golden", "make", tmp_path / "there", "--backend", "cupy")
    count = len(list((tmp_path / "here").iterdir()))
    for folder, backend in (("here", "cupy"), ("there", "numpy")):
        assert lines(capsys, "golden", "check", tmp_path / folder, "--backend", backend)[-1].startswith(f"{count} of {count} cases agree")
    case, answer = next((tmp_path / "here").iterdir()), tmp_path / "answer.npz"
    lines(capsys, "golden", "run", case, answer, "--backend", "cupy")
    assert answer.exists() and strict_for_cupy["cupy"] > 2 * count


TINY = demo.QUICK._replace(
    config=CONFIG,
    training=SETTINGS._replace(window=16),
    segment=8,
    validation=(1, 18),
    test=(2, 34),
    statistics_batches=1,
    timing=(16, 1),
    sgd=(0.1,),
    rms=(1e-3,),
    block=(0.1,),
    untrained=(0.01,),
)


@pytest.mark.slow  # its parts, training, reading and writing, are tests of their own above
def test_the_demo_on_a_device_is_the_demo(files: dict, tmp_path: Any, strict_for_cupy: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both models in turn in this process; the same losses, the same learned numbers, and it says
    where it ran.
    """
    monkeypatch.setattr(demo, "worker_pool", lambda _: InTurn())
    text = str(Path(files["MODEL"]).parent / "text")
    here, there = (demo.run_demo(tmp_path / name, text, settings=TINY, backend=name) for name in ("numpy", "cupy"))
    assert there["versions"]["device"] == "cupy" and strict_for_cupy["cupy"] >= 3
    assert there["equivalence_max_error"] < 1e-12
    for key in ("bits_per_byte", "learned", "chosen", "tried_on_validation"):
        assert there[key] == here[key], key


# One GPU
# -----------------------------------------------------------------------------------------------------------------------


def test_jobs_in_turn_run_here_and_at_once() -> None:
    """What the demo uses in place of processes on a GPU: results and errors wait in the future, an
    interruption does not.
    """
    done = []
    with InTurn() as pool:
        future = pool.submit(lambda a, *, b: done.append(a) or a + b, 1, b=2)
        assert done == [1] and future.result() == 3
        failing = pool.submit(lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            failing.result()

        def interrupted() -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            pool.submit(interrupted)


@pytest.mark.gpu
def test_the_demo_on_a_gpu_is_the_demo(files: dict, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No processes; bits per byte as on the host up to float32, and the block is dynamic evaluation
    on the trained model.
    """
    monkeypatch.setattr(demo, "worker_pool", lambda _: InTurn())
    text = str(Path(files["MODEL"]).parent / "text")
    here, there = (demo.run_demo(tmp_path / name, text, settings=TINY, backend=name) for name in ("numpy", "cupy"))
    assert there["equivalence_max_error"] < 1e-10 and there["versions"]["device"]
    for name, bits in here["bits_per_byte"].items():
        assert there["bits_per_byte"][name] == pytest.approx(bits, abs=1e-3)


@pytest.mark.gpu
def test_a_training_step_on_a_gpu_does_not_wait() -> None:
    """CuPy's own detection sees no synchronisation in steps that are not recorded, and sees one
    that is.
    """
    target = backend_target("cupy")
    start = begin(CONFIG, SETTINGS, "cupy")
    params, adam, _ = advance(start.params, start.adam, CORPUS, CONFIG, SETTINGS)
    with waiting_refused(target) as error:
        for _ in range(3):
            params, adam, row = advance(params, adam, CORPUS, CONFIG, SETTINGS)
        with pytest.raises(error):
            records([row], 3, params)
    peak_bytes(target, reset=True)
    assert peak_bytes(target) > 0 and backend_versions("cupy")["device"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "code", "words"),
    [
        ({"CI": "true", "FWL_REF_REQUIRE": "cupy"}, 3, "a required backend is missing: cupy"),
        ({"FWL_REF_BACKEND": "strict"}, 0, "backend of this run: array_api_strict"),
    ],
)
def test_a_run_without_a_required_backend_fails(settings: dict, code: int, words: str) -> None:
    """The variables of the environment are read, the exit code is one of failure, and a run says which
    backend it was.
    """
    if code and not backends.missing("cupy"):
        pytest.skip("CuPy is here")
    kept = {name: value for name, value in os.environ.items() if name not in ("CI", "FWL_REF_REQUIRE", "FWL_REF_BACKEND")}
    command = [sys.executable, "-m", "pytest", "tests/test_tree.py", "-k", "have_names"]
    run = subprocess.run(command, cwd=ROOT, env=kept | settings, capture_output=True, text=True)
    assert run.returncode == code and words in run.stdout + run.stderr, run.stdout + run.stderr


@pytest.mark.parametrize(
    ("ci", "required", "name", "words"),
    [
        ("true", {"cupy"}, "numpy", "a required backend is missing: cupy"),
        ("true", set(), "numpy", ""),
        ("0", {"cupy"}, "numpy", ""),
        ("0", set(), "cupy", "FWL_REF_BACKEND=cupy: cupy"),
        ("0", set(), "torch", "expected one of numpy, strict, cupy"),
    ],
)
def test_what_is_missing_ends_a_run_under_ci_and_what_was_asked_for_by_name_always(
    ci: str, required: set, name: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is collected; what is not required is only said."""
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setenv("CI", ci)
    monkeypatch.setattr(backends, "REQUIRED", {"numpy", "strict"} | required)
    monkeypatch.setattr(backends, "NAME", name)
    monkeypatch.setattr(backends, "TARGET", np.zeros(0) if name == "numpy" else None)
    config: Any = SimpleNamespace(addinivalue_line=lambda *_: None)
    if words:
        with pytest.raises(pytest.exit.Exception, match=words) as caught:
            pytest_configure(config)
        assert caught.value.returncode == 3
    else:
        pytest_configure(config)
    assert "cupy (" in " ".join(pytest_report_header())


# What the page on GPUs says
# ----------------------------------------------------------------------------------------------------

PAGE = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")


def test_every_command_of_the_page_on_gpus_is_one() -> None:
    """Commands and options exist; extras, scripts and make targets too."""
    found = [line.split("#")[0].split() for line in PAGE.splitlines() if line.startswith("    ")]
    commands = [words for words in found if words[:3] == ["python", "-m", "fwl_ref"]]
    assert {words[3] for words in commands} == {"demo", "train", "evaluate", "generate", "golden", "check"}
    for words in commands:
        assert parser().parse_args(words[3:]).backend == "cupy"
    for words in found:
        if words[:2] == [".venv/bin/python", "-m"]:
            assert (ROOT / words[2].replace(".", "/")).with_suffix(".py").exists() and words[3:5] == ["--backend", "cupy"]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {name for group in re.findall(r"(?:fwl_ref|\.)\[([\w,-]+)\]", PAGE) for name in group.split(",")}
    assert named == {"cuda12", "cuda13", "cupy-surface", "dev"} and named <= extras.keys()
    assert not any("cupy" in line for line in extras["dev"] + extras["test"])


def test_the_page_on_gpus_says_what_has_run_and_what_has_not() -> None:
    """In as many words, and with the numbers that the code has."""
    assert "**It has run on two GPUs:**" in PAGE and "Other devices are untested." in PAGE
    assert "Left out there:" in PAGE and "The suite was not run on the H100" in PAGE and "This is **not a GPU**" in PAGE
    assert LOG_EVERY == 10 and "`train` fetches ten rows in one transfer" in PAGE
    assert attention.BLOCK == 128 and "scores for 128 queries at a time" in PAGE
