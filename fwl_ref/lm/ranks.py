"""Several processes on one or more machines, started together by ``mpiexec``: its ranks.

A batch is a sum of its sequences, so each rank takes some of them, and one sum over all ranks gives
every rank the whole gradient. All then take the same step from the same parameters. Nothing else of
training knows how many ranks there are. Jobs that do not depend on each other, documents to read or
models to train, are done by the other ranks through the interface of ``concurrent.futures``.

MPI is by mpi4py, which is imported where ``mpiexec`` has started two ranks or more.
"""

from __future__ import annotations

import ctypes
import os
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Any, NamedTuple

from ..backend import Tree, is_host, like, namespace, to_numpy, use_device, wait
from ..tree import leaves, rebuild
from .shards import blas_threads, one_thread

# where Open MPI, MPICH and those made from it, MVAPICH and Slurm say how many they have started
COUNTS = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
POLL = 1e-5  # seconds between two looks at who is there
PATIENCE = 1.0  # seconds for the first rank to save, and to say what all have met


class RankError(ChildProcessError):
    """The ranks could not find each other, or no longer agree."""


class Ranks(NamedTuple):
    """All processes that were started together, as one of them sees them."""

    number: int = 0  # which one this is
    size: int = 1
    local: int = 0  # which one it is among those on the same machine
    direct: bool = False  # whether MPI takes arrays on a GPU as they are
    comm: Any = None  # mpi4py's communicator; None: alone

    @property
    def first(self) -> bool:
        """Whether this is the one that reads, saves and speaks for all."""
        return self.number == 0


ALONE = Ranks()


def started() -> Ranks:
    """The ranks that ``mpiexec`` started; ALONE, and nothing is imported, if it started one or
    none.

    Raises RankError if mpi4py is missing, or belongs to another MPI than ``mpiexec``.
    """
    count = max((int(os.environ[name]) for name in COUNTS if name in os.environ), default=1)
    if count == 1:
        return ALONE
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise RankError(
            f"started as one of {count} ranks, and importing mpi4py failed ({error}): "
            "pip install 'fwl_ref[mpi]', or start one process without mpiexec"
        ) from None
    comm = MPI.COMM_WORLD
    if comm.Get_size() != count:
        raise RankError(
            f"started as one of {count} ranks, but mpi4py sees {comm.Get_size()}: mpiexec and "
            "mpi4py belong to different MPI libraries; start with the mpiexec of the one that "
            f"mpi4py uses ({MPI.Get_library_version().split(',')[0].strip()})"
        )
    local = comm.Split_type(MPI.COMM_TYPE_SHARED).Get_rank()
    return Ranks(comm.Get_rank(), count, local, _takes_device_arrays(MPI), comm)


def own_device(ranks: Ranks, backend: str) -> None:
    """Compute on this rank's GPU from here on, where ``backend`` has any; nothing if it is alone.

    Raises BackendError if there is none.
    """
    if ranks.size > 1:
        use_device(backend, ranks.local)


def rows(ranks: Ranks, batch: int) -> slice:
    """Which sequences of a batch are this rank's: neighbours, and no rank has two more than
    another.

    Raises ValueError if there are more ranks than sequences.
    """
    if batch < ranks.size:
        raise ValueError(
            f"a batch of {batch} sequences is too small for {ranks.size} ranks, of which each "
            f"takes one at least: give --batch {ranks.size} or more, or start {batch} ranks"
        )
    low, high = (i * batch // ranks.size for i in (ranks.number, ranks.number + 1))
    return slice(low, high)


def summed(ranks: Ranks, tree: Tree) -> Tree:
    """The sum over all ranks of every array of a tree; each rank gets it, to the bit the same.

    All arrays travel as one. On a GPU they do so as they are if MPI can take them, and through host
    memory otherwise. Ranks that are not here yet are waited for so that this one can be interrupted
    meanwhile: a signal, or another rank's end, becomes an exception in Python.
    """
    if ranks.size == 1:
        return tree
    from mpi4py import MPI

    given = leaves(tree)
    xp = namespace(*given)
    parts = [xp.reshape(leaf, (-1,)) for leaf in given]  # each (n,)
    flat = xp.concat(parts)  # (P,)
    there = flat if is_host(flat) or ranks.direct else to_numpy(flat)  # (P,)
    wait(there)  # MPI knows nothing of what a GPU still has to do
    everybody(ranks)
    ranks.comm.Allreduce(MPI.IN_PLACE, there)
    flat = there if there is flat else like(there, flat)  # (P,)
    new, start = [], 0
    for leaf, part in zip(given, parts, strict=True):
        end = start + part.shape[0]
        new.append(xp.reshape(flat[start:end], leaf.shape))
        start = end
    return rebuild(tree, new)


def everybody(ranks: Ranks) -> None:
    """Return when every rank is here."""
    arrived = ranks.comm.Ibarrier()
    while not arrived.Test():
        time.sleep(POLL)


def from_first(ranks: Ranks, value: Any) -> Any:
    """The first rank's ``value``, on every rank: then they need no common disk to read from."""
    return value if ranks.size == 1 else ranks.comm.bcast(value)


def check_same(ranks: Ranks, params: Tree, step: int) -> None:
    """Raise RankError, naming a rank, unless all have the parameters of the first, to the bit."""
    if ranks.size == 1:
        return
    mine = 0
    for leaf in leaves(params):
        mine = zlib.crc32(to_numpy(leaf).tobytes(), mine)
    everybody(ranks)
    found = ranks.comm.allgather(mine)
    other = [i for i, code in enumerate(found) if code != found[0]]
    if other:
        raise RankError(
            f"step {step}: rank {other[0]} has other parameters than rank 0 (as have "
            f"{len(other)} of {ranks.size} ranks), so they no longer train one model and nothing "
            "of it is saved: use the same processors and versions of NumPy on all machines"
        )


@contextmanager
def workers(ranks: Ranks, backend: str = "numpy") -> Iterator[Executor | None]:
    """On the first rank an executor whose jobs the others do; None elsewhere, when all are done,
    and None at once if there is no other rank.

    A job's linear algebra has one thread, as in a local pool, or its rank's GPU.
    """
    if ranks.size == 1:
        yield None
        return
    from mpi4py.futures import MPICommExecutor

    own_device(ranks, backend)
    if not ranks.first and blas_threads() > 1:
        one_thread()
    pool = MPICommExecutor(ranks.comm, root=0)
    yield pool.__enter__()  # type: ignore[misc]
    pool.__exit__(None, None, None)  # after an error nobody is waited for: all ranks end


@contextmanager
def first_one_first(ranks: Ranks) -> Iterator[None]:
    """What goes wrong on another rank waits: it is often what the first one met, which saves and
    says it for all.
    """
    try:
        yield
    except BaseException:
        if not ranks.first:
            time.sleep(PATIENCE)
        raise


def end_all(ranks: Ranks, status: int) -> None:
    """End every rank with exit status ``status``, this one too; nothing if it is alone."""
    if ranks.size > 1:
        ranks.comm.Abort(status)


def _takes_device_arrays(mpi: Any) -> bool:
    """Whether this MPI says that it was built for CUDA, and runs so; Open MPI can be asked."""
    try:
        query = ctypes.CDLL(mpi.__file__).MPIX_Query_cuda_support
    except (OSError, AttributeError):
        return False
    return bool(query() == 1)
