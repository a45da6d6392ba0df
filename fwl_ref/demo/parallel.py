"""Worker processes that each compute on one core, and no processes at all where there is one GPU.

Small models gain little from a second BLAS thread and lose much when something else runs, so each
worker's linear algebra gets one thread.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..lm.bar import Bar

WORKER_ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
ASKED = (signal.SIGINT, signal.SIGTERM)
ENDED_AS_ASKED = (None, 0, -signal.SIGTERM, *(128 + number for number in ASKED))


class WorkerError(ChildProcessError):
    """A worker process did not start or was killed, and what it was doing is not done."""


class Workers(ProcessPoolExecutor):
    """A pool that knows its processes, and what each of them is doing: ``notes`` is a folder."""

    def __init__(self, count: int, notes: str, **options: Any) -> None:
        super().__init__(count, **options)
        self.notes = notes
        self.processes: set[BaseProcess] = set()
        self.others = set(multiprocessing.active_children())
        for _ in range(count):  # all start now: the end of one that starts later may go unnoticed
            self.submit(_start)

    def submit(self, job: Callable, /, *args: Any, **kwargs: Any) -> Future:
        """As every executor; a first argument that is a word tells jobs of one function apart."""
        name = f" ({args[0]})" if args and isinstance(args[0], str) else ""
        label = f"{job.__name__.strip('_').replace('_', ' ')}{name}"
        future = super().submit(_run, self.notes, label, job, *args, **kwargs)
        self.processes |= set(multiprocessing.active_children()) - self.others
        return future

    def what_happened(self) -> str:
        """Why a pool is broken, and what to do; to be asked when its processes are gone."""
        notes = {path.name: path.read_text() for path in Path(self.notes).iterdir()}
        if not notes:
            return (
                "the worker processes could not start. Each imports the main module first, so call "
                'run_demo from a file, under `if __name__ == "__main__":`'
            )
        ended = {str(process.pid): process.exitcode for process in self.processes}
        killed = [
            f"{notes.get(pid, 'start')}, exit code {code}"
            for pid, code in ended.items()
            if code not in ENDED_AS_ASKED
        ]
        return (
            f"a worker process was killed while it was to {'; '.join(killed) or 'end'}. "
            "Most likely memory ran out: close other programs or choose smaller sizes. The same "
            "command goes on from the last checkpoint of each model"
        )


@contextmanager
def worker_pool(count: int) -> Iterator[Workers]:
    """A pool of ``count`` fresh processes, started with the environment above; progress bars share
    one lock.

    After an error, or when interrupted, jobs that have not begun are dropped, and the workers are
    asked to end: one that trains saves its last finished step.

    Raises WorkerError if one was killed, or if none could start, because the main module is one
    that would start them again.
    """
    context = multiprocessing.get_context("spawn")
    before = {name: os.environ.get(name) for name in WORKER_ENVIRONMENT}
    os.environ.update(WORKER_ENVIRONMENT)
    lock = context.RLock()
    Bar.set_lock(lock)
    try:
        with TemporaryDirectory() as notes:
            start = {"initializer": _start_worker, "initargs": (lock,)}
            pool = Workers(count, notes, mp_context=context, **start)
            try:
                with pool:
                    try:
                        yield pool
                    except BaseException:
                        for process in pool.processes:
                            process.terminate()
                        pool.shutdown(cancel_futures=True)
                        raise
            except BrokenProcessPool:
                raise WorkerError(pool.what_happened()) from None
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def is_starting() -> bool:
    """Whether this process is a worker that is still importing the main module."""
    return getattr(multiprocessing.current_process(), "_inheriting", False)


class InTurn(Executor):
    """Does each job here and now, one after the other: for a GPU, which two processes would only
    share, with two copies of everything.
    """

    def submit(self, job: Callable, /, *args: Any, **kwargs: Any) -> Future:
        """Run the job; an error waits in the future, an interruption does not."""
        future: Future = Future()
        try:
            future.set_result(job(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def _start_worker(lock: Any) -> None:
    Bar.set_lock(lock)
    for number in ASKED:
        signal.signal(number, _quit)


def _start() -> None:
    """The first job of a worker."""


def _quit(number: int, _: Any) -> None:
    """Ends a job, once: saving what is finished is not to be interrupted again."""
    for asked in ASKED:
        signal.signal(asked, signal.SIG_IGN)
    raise SystemExit(128 + number)


def _run(notes: str, label: str, job: Callable, *args: Any, **kwargs: Any) -> Any:
    """Do a job in a worker, which leaves a note of what it does, and ends when it is asked to."""
    Path(notes, str(os.getpid())).write_text(label)
    try:
        return job(*args, **kwargs)
    except SystemExit as asked:  # without a traceback, and without waiting for another job
        # a job that ends itself with words, or with nothing, has not done its work
        os._exit(asked.code if isinstance(asked.code, int) else 1)
