"""Processes of the benchmark as this one sees them: started, asked, ended."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
US = "fwl_ref"
SIDES = {US: "ours", "torch": "pytorch", "jax": "jaxjit"}  # name -> file in sides/
TUNED = (
    "OPENBLAS_",
    "GOTO_",
    "OMP_",
    "KMP_",
    "GOMP_",
    "MKL_",
    "BLIS_",
    "MALLOC_",
    "GLIBC_TUNABLES",
    "LD_PRELOAD",
    "XLA_",
    "TORCH_",
    "JAX_",
)

Ask = Callable[..., Any]


class SideError(RuntimeError):
    """A side is not installed, failed, or does not compute what the others do."""


def check_installed(names: list[str]) -> None:
    """Raise SideError naming the package that is not there and how to get it."""
    absent = [name for name in names if find_spec(name) is None]
    if absent:
        others = [name for name in names if name not in absent and name != US]
        without = f", or leave it out: --against {' '.join(others)}" if others else ""
        raise SideError(
            f"not installed for {sys.executable}: {', '.join(absent)}. pip install -e '.[bench]'{without}. "
            "(On Linux pip takes PyTorch's CUDA build; the CPU build is smaller and enough)"
        )


def untuned(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without what tunes an allocator or a number of threads."""
    return {name: value for name, value in environment.items() if not name.startswith(TUNED)}


@contextmanager
def process(name: str, cores: list[int]) -> Iterator[Ask]:
    """``ask(what, *arguments)`` of a fresh process of that side, pinned to ``cores``, in an environment that tunes nothing.

    Raises SideError with the process's own traceback, or if it is gone.
    """
    command = [sys.executable, "-m", "benchmarks.worker", SIDES[name], ",".join(map(str, cores))]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=untuned(os.environ), cwd=ROOT)

    def ask(what: str, *arguments: Any) -> Any:
        try:
            pickle.dump((what, arguments), child.stdin)
            child.stdin.flush()
            fine, answer = pickle.load(child.stdout)
        except (EOFError, BrokenPipeError):
            raise SideError(f"the process of {name} ended, exit status {child.wait()}, when asked to {what}") from None
        if not fine:
            raise SideError(f"{name}, when asked to {what}:\n{answer}")
        return answer

    try:
        yield ask
    finally:
        child.kill()
        child.communicate()
