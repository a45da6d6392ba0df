"""Tell the C library to keep memory that was freed, so that the next array need not fault it in.

Every operation makes a new array and lets another go. Arrays of more than 128 kB go straight back
to the system, and every page of the next one costs a fault: in a forward pass of a small model that
takes longer than the arithmetic. Two settings of glibc's ``mallopt`` keep the pages in the process.
It then holds on to the most memory that it has ever used.

Importing ``fwl_ref`` does this, unless ``FWL_REF_MALLOPT=0`` is in the environment. Where the C
library has no ``mallopt`` (macOS, Windows, musl) nothing happens.
"""

from __future__ import annotations

import ctypes
import os

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # parameters of glibc's <malloc.h>
NEVER, NONE = -1, 0  # trim the heap; arrays in mappings of their own


def keep_freed_memory() -> bool:
    """Whether the C library was told, and agreed."""
    if os.environ.get("FWL_REF_MALLOPT") == "0":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc; TypeError: Windows
        return False
    return mallopt(TRIM_THRESHOLD, NEVER) == 1 and mallopt(MMAP_MAX, NONE) == 1
