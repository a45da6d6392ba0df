"""How the backward pass of a block ends whose memory was changed between write and read."""

from __future__ import annotations

from ..backend import Array
from ..fwl import Memory, WriteResidual, write_bwd
from ..slow_block import SlowParameters


def back_through_write(
    g_m: Memory, g_x: Array, g_read: SlowParameters, write: WriteResidual
) -> tuple[Array, SlowParameters]:
    """Back through the write, for a block whose read has left ``g_x`` and ``g_read``: both shares
    of every gradient, as ``fast_block_bwd`` adds them.
    """
    g_x_write, g_write = write_bwd(g_m, write)
    pairs = zip(g_read, g_write, strict=True)
    g_slow = SlowParameters(*(r if w is None else w if r is None else r + w for r, w in pairs))
    return g_x + g_x_write, g_slow
