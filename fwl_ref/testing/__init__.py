"""Property tests for other people's kernels: ``check_kernel("gated_delta", my_kernel)``.

docs/check_your_kernel.md has the arrays of every rule in order, and the options.
"""

from .cases import Plan
from .kernel import KernelError, Report, check_kernel
from .libraries import jax_gradients, torch_gradients

__all__ = ["KernelError", "Plan", "Report", "check_kernel", "jax_gradients", "torch_gradients"]
