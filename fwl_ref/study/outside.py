"""Yardsticks from outside: what compressors make of each test document alone, knowing nothing else.

A compressor's size has its header in it, which the models do not pay. ``gzip`` is counted without
its header, ``xz`` as raw LZMA2. They are whole bytes and predict the first byte too.
"""

from __future__ import annotations

import lzma
import math
import zlib
from collections.abc import Callable

from .ngram import ORDER, ngram_nats


def gzip_bits(text: bytes) -> float:
    """Bits of the raw deflate stream at level 9, as in a gzip file without its 18 bytes around."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return 8.0 * len(packer.compress(text) + packer.flush())


def xz_bits(text: bytes) -> float:
    """Bits of the raw LZMA2 stream at the strongest preset, as in an xz file without its frame."""
    chain = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]
    return 8.0 * len(lzma.compress(text, lzma.FORMAT_RAW, filters=chain))


def ngram_bits(text: bytes, order: int = ORDER) -> float:
    """Bits of the mixture of orders (``ngram.py``)."""
    return sum(ngram_nats(text, order)) / math.log(2)


OUTSIDE: dict[str, Callable[[bytes], float]] = {
    "gzip": gzip_bits,
    "xz": xz_bits,
    "n-grams": ngram_bits,
}
