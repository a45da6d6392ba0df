"""Freed memory stays in the process, so that the next array of its size costs no page fault."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

from fwl_ref import allocator

pytestmark = pytest.mark.host("about the C library of the host")

PROGRAM = """
import resource, sys
import fwl_ref
import numpy as np
a = np.ones(2**20)
for _ in range(3):
    b = a + a
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    b = a + a  # 8 MB: 2,048 pages
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def has_mallopt() -> bool:
    try:
        return hasattr(ctypes.CDLL(None), "mallopt")
    except TypeError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not has_mallopt(), reason="the C library has no mallopt: nothing can be told to it")
def test_a_user_who_only_imports_has_no_page_faults_and_can_opt_out() -> None:
    """Twenty sums of 8 MB: next to no fault. N: with FWL_REF_MALLOPT=0 the pages are faulted in again and again."""
    faults = {}
    for setting in ("1", "0"):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")} | {"FWL_REF_MALLOPT": setting}
        done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
        faults[setting] = int(done.stdout)
    assert 5 * faults["1"] < faults["0"]  # how many depends on the size of the pages


def test_it_says_whether_it_did_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not when it was told not to, nor where there is no mallopt or it refuses; the C library is asked for both settings."""
    asked = []

    class Library:
        def __init__(self, answer: int) -> None:
            self.mallopt = lambda *setting: asked.append(setting) or answer

    monkeypatch.delenv("FWL_REF_MALLOPT", raising=False)
    for answer, expected in ((1, True), (0, False)):
        monkeypatch.setattr(ctypes, "CDLL", lambda name, answer=answer: Library(answer))
        assert allocator.keep_freed_memory() is expected
    assert asked[:2] == [(-1, -1), (-4, 0)]  # M_TRIM_THRESHOLD, M_MMAP_MAX of <malloc.h>
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not allocator.keep_freed_memory()
    del asked[:]
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library(1))
    monkeypatch.setenv("FWL_REF_MALLOPT", "0")
    assert not allocator.keep_freed_memory() and not asked
