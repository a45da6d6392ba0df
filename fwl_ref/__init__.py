"""Fast weight layers and dynamic evaluation, every gradient by hand, for any array library.

The names below are what one needs to use the block, the model and the checks. To read the code
start with ``fwl_ref.fwl`` (write and read), then ``fwl_ref.dynamic_evaluation`` (what it is
compared with and checked against) and ``fwl_ref.ops`` (what both are made of).
"""

from .allocator import keep_freed_memory
from .backend import like, namespace, to_numpy
from .dynamic_evaluation import Descent, evaluate_block
from .fwl import (
    FastSettings,
    Memory,
    fast_block_bwd,
    fast_block_fwd,
    read_bwd,
    read_fwd,
    write_bwd,
    write_fwd,
)
from .gradcheck import AdjointError, check_adjoint
from .lm.model import Config, Parameters, initialize, loss_and_gradient, model_bwd, model_fwd
from .slow_block import FastParameters, SlowParameters, slow_block_bwd, slow_block_fwd
from .stream import Stream, stream_predict, stream_reveal, stream_start

__version__ = "0.1.0"

keep_freed_memory()

__all__ = [
    "AdjointError", "Config", "Descent", "FastParameters", "FastSettings", "Memory",
    "Parameters", "SlowParameters", "Stream", "check_adjoint", "evaluate_block",
    "fast_block_bwd", "fast_block_fwd", "initialize", "like", "loss_and_gradient", "model_bwd",
    "model_fwd", "namespace", "read_bwd", "read_fwd", "slow_block_bwd", "slow_block_fwd",
    "stream_predict", "stream_reveal", "stream_start", "to_numpy", "write_bwd", "write_fwd",
]  # fmt: skip
