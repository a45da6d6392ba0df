"""Several ranks compute what one process computes, and end together. A docstring that opens with "N:" is a negative control."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import array_api_strict
import numpy as np
import pytest

from fwl_ref.__main__ import main
from fwl_ref.lm import ranks as module
from fwl_ref.lm import shards
from fwl_ref.lm.checkpoint import load_checkpoint
from fwl_ref.lm.data import training_batch
from fwl_ref.lm.evaluate import Way, fast_weights, static
from fwl_ref.lm.model import initialize, loss_and_gradient
from fwl_ref.lm.ranks import ALONE, RankError, Ranks, check_same, end_all, first_one_first, from_first, rows, started, summed, workers
from fwl_ref.lm.shards import part_of
from fwl_ref.lm.table import print_table
from fwl_ref.tree import add, leaves, named_leaves
from tests.conftest import notes
from tests.lm.ranks_program import CASES, CONFIG, train_cases, write_text
from tests.tolerances import assert_close, assert_trees_close, relative_error

pytestmark = pytest.mark.host("processes")

ROOT = Path(__file__).resolve().parent.parent.parent
TOLERANCE = 1e-12  # ten steps in float64: some ten times the rounding of a step's sums, which AdamW carries on


# Without MPI
# ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "size"), [(1, 1), (4, 2), (5, 3), (7, 7), (1024, 1000)])
def test_the_ranks_rows_are_the_batch(batch: int, size: int) -> None:
    """Each sequence once, in order, at least one a rank, and no rank has two more than another."""
    parts = [range(batch)[rows(Ranks(i, size), batch)] for i in range(size)]
    assert [i for part in parts for i in part] == list(range(batch))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1 and min(map(len, parts)) >= 1


def test_more_ranks_than_sequences_are_refused() -> None:
    """With what to do."""
    with pytest.raises(ValueError, match="a batch of 4 sequences is too small for 5 ranks.*--batch 5 or more, or start 4 ranks"):
        rows(Ranks(0, 5), 4)


@pytest.mark.parametrize("normalizer", ["constant", "sequence", "batch"])
@pytest.mark.parametrize("fast", [True, False])
def test_shares_with_the_total_of_the_batch_sum_up_to_the_batch(tmp_path: Path, fast: bool, normalizer: str) -> None:
    """Loss and gradient (M.5), where the shares' weights differ: of windows with padding, and at random. N: each share by its own total
    gives another sum.
    """
    config = CONFIG._replace(fast=fast, normalizer=normalizer)
    p = initialize(config, 1, "float64", step_size=0.1, decay=0.1)
    drawn = training_batch(write_text(tmp_path / "text").train, 5, 32, 3, 1)
    padded = drawn._replace(weights=drawn.weights.astype("float64"))
    assert len(set(padded.weights.sum(axis=1))) > 1, "all windows are full: this would show nothing"
    for batch in (padded, padded._replace(weights=np.random.default_rng(0).uniform(0, 2, (5, 32)))):
        whole, total = loss_and_gradient(p, *batch, config), float(batch.weights.sum())
        shares = [part_of(batch, rows(Ranks(i, 3), 5)) for i in range(3)]
        first, second, third = (loss_and_gradient(p, *share, config, total) for share in shares)
        assert_trees_close(add(add(first, second), third), whole)
        first, second, third = (loss_and_gradient(p, *share, config) for share in shares)
        means = (first[0] + second[0] + third[0]) / 3
        assert relative_error(means, whole[0]) > 1e-4


@pytest.mark.parametrize("total", [0.0, -1.0, float("nan")])
def test_a_total_that_is_none_is_refused(total: float) -> None:
    """Before anything is divided by it."""
    text = np.zeros((1, 3), dtype="int64")
    with pytest.raises(ValueError, match="must have a sum above 0, got"):
        loss_and_gradient(initialize(CONFIG), text, text, None, CONFIG, total)


class Twice:
    """A communicator of two ranks, of which the other one always says the same."""

    def __init__(self) -> None:
        self.summed: list[np.ndarray] = []

    def Ibarrier(self) -> SimpleNamespace:
        """There at the second look."""
        looks = iter([False, True])
        return SimpleNamespace(Test=lambda: next(looks))

    def Allreduce(self, place: str, array: np.ndarray) -> None:
        assert place == "in place"
        self.summed.append(array)
        array *= 2


@pytest.fixture
def mpi(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A stand-in for ``mpi4py.MPI``."""
    fake = SimpleNamespace(IN_PLACE="in place", COMM_TYPE_SHARED=1, __file__=module.__file__)
    fake.Get_library_version = lambda: "Some MPI v1, built somewhere"
    monkeypatch.setitem(sys.modules, "mpi4py", SimpleNamespace(MPI=fake))
    for name in module.COUNTS:
        monkeypatch.delenv(name, raising=False)
    return fake


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_tree_is_summed_in_one_call_over_one_buffer(mpi: SimpleNamespace, dtype: str) -> None:
    """Shapes and precision stay; a device's arrays come home for it and go back; alone nothing happens."""
    comm, rng = Twice(), np.random.default_rng(0)
    tree = (rng.standard_normal(()).astype(dtype)[()], (rng.standard_normal((2, 3)).astype(dtype), None, np.zeros((0, 4), dtype)))
    found = summed(Ranks(0, 2, comm=comm), tree)
    assert [a.shape for a in comm.summed] == [(7,)] and comm.summed[0].dtype == dtype
    for (_, a), (_, b) in zip(named_leaves(found), named_leaves(tree), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape and np.all(a == 2 * b)
    device = array_api_strict.Device("device1")
    away = (array_api_strict.asarray(tree[1][0], device=device),)
    (back,) = summed(Ranks(0, 2, comm=comm), away)
    assert back.device == device and type(comm.summed[1]) is np.ndarray
    assert np.all(np.from_dlpack(array_api_strict.asarray(back, device=array_api_strict.Device("CPU_DEVICE"))) == 2 * tree[1][0])
    assert summed(ALONE, tree) is tree and from_first(ALONE, tree) is tree
    check_same(ALONE, tree, 0)
    end_all(ALONE, 1)


def test_arrays_go_as_they_are_where_mpi_can_read_them(mpi: SimpleNamespace) -> None:
    """No copy to the host and back."""
    given = []
    comm = Twice()
    comm.Allreduce = lambda place, array: given.append(array)
    summed(Ranks(0, 2, direct=True, comm=comm), (array_api_strict.ones(3), array_api_strict.zeros(())))
    assert isinstance(given[0], type(array_api_strict.ones(1))) and given[0].shape == (4,)


def test_ranks_that_no_longer_agree_are_told() -> None:
    """The same parameters to the bit pass; a last bit on one of them does not."""
    mine, other = (np.ones(3),), (np.array([1, 1, 1 + 2.0**-52]),)
    codes = []
    comm = Twice()
    comm.allgather = lambda code: codes.append(code) or [*codes, code]
    check_same(Ranks(0, 2, comm=comm), mine, 7)
    with pytest.raises(RankError, match="step 7: rank 1 has other parameters than rank 0 .*2 of 2 ranks.*nothing of it is saved"):
        check_same(Ranks(0, 2, comm=comm), other, 7)


def test_one_process_needs_no_mpi(monkeypatch: pytest.MonkeyPatch) -> None:
    """Started by itself, or by mpiexec as the only one, it does not import mpi4py; as one of two it says what to install."""
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    for name in module.COUNTS:
        monkeypatch.delenv(name, raising=False)
    assert started() is ALONE
    with workers(ALONE) as pool:
        assert pool is None
    for name in module.COUNTS:
        monkeypatch.setenv(name, "1")
        assert started() is ALONE
    monkeypatch.setenv(module.COUNTS[0], "2")
    with pytest.raises(RankError, match=r"one of 2 ranks, and importing mpi4py failed .*pip install 'fwl_ref\[mpi\]'"):
        started()


@pytest.mark.parametrize(("number", "expected"), [(0, []), (1, [module.PATIENCE])])
def test_the_first_rank_speaks_first(monkeypatch: pytest.MonkeyPatch, number: int, expected: list[float]) -> None:
    """What all have met, a loss that is not finite, say, is said once: the others wait before they end all."""
    waited: list[float] = []
    monkeypatch.setattr(module.time, "sleep", waited.append)
    with pytest.raises(FloatingPointError), first_one_first(Ranks(number, 2)):
        raise FloatingPointError
    with first_one_first(Ranks(number, 2)):
        pass
    assert waited == expected


@pytest.mark.parametrize("name", module.COUNTS)
def test_what_mpiexec_says_and_what_mpi_sees_must_be_the_same(mpi: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """With the mpiexec of another MPI every process would believe that it is alone, and all would write one file."""
    sizes = iter([1, 1, 2])
    mpi.COMM_WORLD = SimpleNamespace(Get_size=lambda: next(sizes), Get_rank=lambda: 1)
    mpi.COMM_WORLD.Split_type = lambda _: SimpleNamespace(Get_rank=lambda: 0)
    monkeypatch.setenv(name, "2")
    with pytest.raises(RankError, match="one of 2 ranks, but mpi4py sees 1: .*different MPI libraries.*Some MPI v1"):
        started()
    assert started() == Ranks(1, 2, 0, False, mpi.COMM_WORLD)


def test_a_pool_that_is_handed_in_reads_the_table(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    """Any executor: the same rows in the same order, and the same lines."""
    p, documents = initialize(CONFIG, 1), write_text(tmp_path / "text").train
    ways = {"static": Way(static, p, CONFIG, {"window": 32}), "fast": Way(fast_weights, p, CONFIG, {"window": 32})}
    one, _ = print_table(documents, ways)
    lines = capsys.readouterr().out
    with ThreadPoolExecutor(3) as pool:
        two, _ = print_table(documents, ways, pool=pool)
    assert capsys.readouterr().out == lines
    for a, b in zip(one, two, strict=True):
        assert a.name == b.name and all(np.array_equal(a.losses[way], b.losses[way]) for way in ways)


# With MPI
# ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mpiexec() -> str:
    """The command; skipped, and said at the end of the run, where there is none."""
    found = shutil.which("mpiexec", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    lacking = "mpi4py" if importlib.util.find_spec("mpi4py") is None else "" if found else "mpiexec"
    if lacking:
        notes["training and evaluation on several ranks"] = f"{lacking} is not installed: pip install -e '.[mpi]'"
        pytest.skip(notes["training and evaluation on several ranks"])
    return str(found)


def start(mpiexec: str, size: int, folder: Path, *arguments: str) -> subprocess.Popen:
    """``size`` ranks of ``python -m ARGUMENTS`` in ``folder``, one thread each."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMIX_", "PRTE_", *module.COUNTS))}
    env |= {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "OPENBLAS_NUM_THREADS": "1"}
    env |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    command = [mpiexec, "-n", str(size), "--oversubscribe", sys.executable, "-m", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env=env, start_new_session=True, **pipes)


def end(process: subprocess.Popen) -> tuple[int, str, str]:
    """Exit status and what was printed; ranks that do not end are killed, and that is a failure."""
    try:
        out, err = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, out, err


def run(mpiexec: str, size: int, folder: Path, *arguments: str) -> str:
    """What ranks print that succeed."""
    status, out, err = end(start(mpiexec, size, folder, *arguments))
    assert status == 0, err
    return out


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case by one process, ten steps."""
    folder = tmp_path_factory.mktemp("ranks")
    write_text(folder / "text")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(shards, "PART", 1)
        train_cases(folder / "alone", 10)
    return folder


def assert_same_training(folder: Path, alone: Path, size: int) -> None:
    """All that a checkpoint holds, to ``TOLERANCE``; what two ranks sum is to the bit what one sums.

    A moment of a step size is a sum over all tokens that cancels, so moments are held to the size of the largest.
    """
    for name, (_, settings) in CASES.items():
        if settings.batch < size:
            continue
        found, expected = (load_checkpoint(f / f"{name}.npz") for f in (folder, alone))
        assert found[:3] == expected[:3] and found.progress.adam.step == 10
        assert_trees_close(found.progress.params, expected.progress.params, TOLERANCE, name)
        for ours, theirs in zip(found.progress.adam[:2], expected.progress.adam[:2], strict=True):
            largest = max(float(np.max(np.abs(leaf))) for leaf in leaves(theirs))
            assert_trees_close(ours, theirs, TOLERANCE, name, scale=largest)
        for ours, theirs in zip(found.progress.history, expected.progress.history, strict=True):
            assert_close(np.hstack(ours), np.hstack(theirs), TOLERANCE, f"{name}, step {ours.step}")
        assert expected.progress.params.embedding.dtype == "float64"
    same = (folder / "two parts.npz").read_bytes() == (alone / "two parts.npz").read_bytes() if size < 3 else True
    assert same, "two ranks with a part each add two numbers, and the order of two does not matter"


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2, 3])
def test_ranks_train_as_one_process_does(mpiexec: str, alone: Path, tmp_path: Path, size: int) -> None:
    """Ten steps in float64, with batches that do not divide by the ranks, with every normalizer, and plain."""
    folder = alone / f"{size} ranks"
    run(mpiexec, size, tmp_path, "tests.lm.ranks_program", "cases", str(folder), "10")
    assert_same_training(folder, alone / "alone", size)


@pytest.mark.slow
def test_two_ranks_stop_and_three_go_on(mpiexec: str, alone: Path, tmp_path: Path) -> None:
    """A checkpoint does not know how many ranks made it."""
    folder = alone / "two, then three"
    for size, steps in ((2, "5"), (3, "10")):
        run(mpiexec, size, tmp_path, "tests.lm.ranks_program", "cases", str(folder), steps)
    assert_same_training(folder, alone / "alone", 3)


SMALL = [*("--data", "text", "--out", "model.npz", "--width", "8", "--layers", "1"), *("--heads", "2", "--batch", "4"), "--window", "32"]
SMALL += ["--steps", "8"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "status", "words"), [("fails", 2, "fwl_ref: rank 1 of 2: no such batch"), ("breaks", 1, "a defect"), ("dies", 137, "")]
)
def test_one_rank_that_fails_ends_all(mpiexec: str, tmp_path: Path, what: str, status: int, words: str) -> None:
    """In words, with an exit status, with no checkpoint of half a step; by the same command it goes on."""
    write_text(tmp_path / "text")
    found, _, err = end(start(mpiexec, 2, tmp_path, "tests.lm.ranks_program", "until", what, "1", *SMALL))
    assert found == status and words in err, (found, err)
    if (tmp_path / "model.npz").exists():  # mpiexec gives little time to save
        assert load_checkpoint(tmp_path / "model.npz").progress.adam.step == 5
    assert "written: model.npz" in run(mpiexec, 2, tmp_path, "fwl_ref", "train", *SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGTERM])
def test_ranks_that_are_interrupted_save_and_end(mpiexec: str, tmp_path: Path, asked: signal.Signals) -> None:
    """Ctrl-C reaches mpiexec, which asks all ranks to end: the first saves the last step that all have done."""
    write_text(tmp_path / "text")
    process = start(mpiexec, 2, tmp_path, "tests.lm.ranks_program", "until", "waits", "1", *SMALL)
    for _ in range(1200):
        if (tmp_path / "there").exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    time.sleep(0.5)
    process.send_signal(asked)
    status, _, err = end(process)
    assert status != 0, err
    assert load_checkpoint(tmp_path / "model.npz").progress.adam.step == 5, err


@pytest.mark.slow
def test_a_batch_too_small_is_refused_once(mpiexec: str, tmp_path: Path) -> None:
    """By the first rank, before the text is read; nothing is written."""
    write_text(tmp_path / "text")
    status, out, err = end(start(mpiexec, 3, tmp_path, "fwl_ref", "train", *SMALL, "--batch", "2"))
    assert status == 2 and err.count("too small for 3 ranks") == 1 and not out
    assert not (tmp_path / "model.npz").exists()


@pytest.mark.slow
def test_evaluation_says_on_three_ranks_what_it_says_on_one(
    mpiexec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The same lines; the memory of ``--state`` goes from document to document as before."""
    write_text(tmp_path / "text")
    monkeypatch.chdir(tmp_path)
    assert main(["train", *SMALL, "--steps", "2"]) == 0
    capsys.readouterr()
    for more in ([], ["--state", "memory.npz"]):
        command = ["evaluate", "model.npz", "--data", "text", *more]
        assert main(command) == 0
        expected = capsys.readouterr().out
        (tmp_path / "memory.npz").unlink(missing_ok=True)
        assert run(mpiexec, 3, tmp_path, "fwl_ref", *command) == expected
        (tmp_path / "memory.npz").unlink(missing_ok=True)


@pytest.mark.slow
def test_the_demo_runs_on_ranks(mpiexec: str, tmp_path: Path) -> None:
    """Its models, step sizes and documents are those of one process: training, choosing and reading are the jobs of other ranks."""
    from fwl_ref.demo.parallel import InTurn
    from fwl_ref.demo.run import run_demo
    from tests.demo.test_run import TINY

    text = tmp_path / "text"
    text.mkdir()
    for i in range(40):
        (text / f"{i}.txt").write_text(f"the {i}th cat sat on mat {i * i}. " * 12)
    expected = run_demo(tmp_path / "one", str(text), settings=TINY, pool=InTurn())
    run(mpiexec, 3, tmp_path, "tests.lm.ranks_program", "demo", str(tmp_path / "three"), str(text))
    found = json.loads((tmp_path / "three" / "demo.json").read_text())
    for key in ("bits_per_byte", "chosen", "tried_on_validation", "learned"):
        assert found[key] == json.loads(json.dumps(expected[key])), key
