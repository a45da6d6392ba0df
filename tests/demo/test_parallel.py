"""Worker processes that end otherwise than planned: in words, and with what was finished saved."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fwl_ref.demo.parallel import WorkerError, _run, worker_pool

pytestmark = pytest.mark.host("processes")


def works_until_asked(name, folder):
    """Leaves a file when it begins, and another one when it is asked to end and has saved."""
    Path(folder, f"{name} begun").touch()
    try:
        while True:
            time.sleep(0.05)
    except SystemExit:
        time.sleep(0.2)  # saving takes its time, and another request to end does not disturb it
        Path(folder, f"{name} saved").touch()
        raise


def run_out(word):
    """As if the kernel had run out of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for(*paths):
    """Until all are there; a minute at most."""
    for _ in range(1200):
        if all(path.exists() for path in paths):
            return
        time.sleep(0.05)
    raise AssertionError(f"not there: {paths}")


@pytest.mark.slow
def test_a_killed_worker_is_named_and_the_other_one_saves(tmp_path):
    """Which job, how it ended, the likely reason, and what to do; no notes are left behind."""
    with pytest.raises(WorkerError) as caught, worker_pool(2) as pool:
        notes = Path(pool.notes)
        pool.submit(works_until_asked, "plain", str(tmp_path))
        wait_for(tmp_path / "plain begun")
        pool.submit(run_out, "fast").result()
    words = str(caught.value)
    assert all(word in words for word in ("was to run out (fast), exit code -9", "memory", "The same command goes on")), words
    assert "plain" not in words and isinstance(caught.value, OSError)
    assert (tmp_path / "plain saved").exists() and not notes.exists()


@pytest.mark.slow
@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_workers_are_asked_to_end_and_save(tmp_path, error):
    """Interrupted, or because something else went wrong: both jobs save, none is waited for."""
    paths = [tmp_path / f"{name} begun" for name in "ab"]
    with pytest.raises(error), worker_pool(2) as pool:
        jobs = [pool.submit(works_until_asked, name, str(tmp_path)) for name in "ab"]
        wait_for(*paths)
        for process in pool.processes:  # as Ctrl-C in a terminal, which reaches everybody
            os.kill(process.pid, signal.SIGINT)
        raise error
    assert all(job.done() for job in jobs)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a begun", "a saved", "b begun", "b saved"]


@pytest.mark.parametrize(("given", "status"), [(143, 143), ("no room", 1), (None, 1)])
def test_a_job_that_ends_itself_ends_its_worker(tmp_path, monkeypatch, given, status):
    """With the exit status that it gives; words, or nothing, are a failure, and no TypeError."""

    def job():
        raise SystemExit(given)

    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    _run(str(tmp_path), "job", job)
    assert ended == [status]


SCRIPT = """
from pathlib import Path
from fwl_ref.demo.run import run_demo
run_demo(Path("out"), "topics", quick=True)
"""


@pytest.mark.slow
def test_a_script_without_a_guard_is_told_of_it(tmp_path):
    """Each worker imports the script: one message that says what to write, and nothing is trained."""
    (tmp_path / "script.py").write_text(SCRIPT)
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True, cwd=tmp_path, env=env)
    assert run.returncode == 1 and 'under `if __name__ == "__main__":`' in run.stderr.splitlines()[-1]
    assert run.stderr.count("Traceback") == 1 and run.stdout.count("fwl_ref demo") == 1
    assert not list((tmp_path / "out").iterdir())
