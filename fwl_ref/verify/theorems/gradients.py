"""The backward passes are adjoints, in every form (theorems 16 to 18).

That of the language model is in ``verify/device.py``, so that nothing here loads training or data.
"""

from __future__ import annotations

from collections.abc import Iterator

from ...backend import Array, like
from ...gradcheck import check_adjoint
from ...ops.linear_attention import (
    linear_attention_bwd,
    linear_attention_chunked_bwd,
    linear_attention_chunked_fwd,
    linear_attention_fwd,
    linear_attention_recurrent_bwd,
    linear_attention_recurrent_fwd,
)
from ..cases import BlockCase, generator, small_attention_case, small_case, with_steps
from ..measure import Finding, different, same
from ..runs import Gradients, as_function, gradients


def adjoints(target: Array, dtype: str) -> Iterator[Finding]:
    """16. The backward pass of the block is the adjoint of its forward pass; in float32, the
    same as in float64.
    """
    case = small_case(target, dtype)
    if dtype == "float64":
        args = (case.x, case.slow, case.eta, case.decay)
        report = check_adjoint(*as_function(case), args, step=1e-5, rtol=1e-7)
        claim = f"<u, J v> = <J^T u, v>, {report.checked} inputs, by differences"
        yield Finding(claim, report.error, 1e-7)
    else:
        exact = _gradients(small_case(target, "float64"))
        yield same("gradients = those in float64", _gradients(case)[:4], exact[:4], dtype)


def backward_forms(target: Array, dtype: str) -> Iterator[Finding]:
    """17. Chunked backward = parallel backward = backpropagation through time."""
    case = small_attention_case(target, dtype)
    (out, state), res = linear_attention_recurrent_fwd(*case)
    expected = linear_attention_recurrent_bwd(out, state, res)
    parallel = linear_attention_bwd(out, state, linear_attention_fwd(*case)[1])
    chunked = linear_attention_chunked_bwd(out, state, linear_attention_chunked_fwd(*case, 4)[1])
    yield same("parallel = through time", parallel, expected, dtype)
    yield same("chunked = through time", chunked, expected, dtype)


def first_order(target: Array, dtype: str) -> Iterator[Finding]:
    """18. The first-order switch changes the gradient, but not at step size 0."""
    full, first = (small_case(target, dtype, first_order=switch) for switch in (False, True))
    claim = "first order is another gradient"
    yield different(claim, _gradients(first)[:2], _gradients(full)[:2], dtype)
    full, first = (with_steps(case, 0.0) for case in (full, first))
    claim = "at step size 0 it is the same"
    yield same(claim, _gradients(first)[:2], _gradients(full)[:2], dtype)


def _gradients(case: BlockCase) -> Gradients:
    """All gradients of the block for a fixed cotangent of its logits."""
    u = generator(7)(*case.labels.shape, case.slow.c.shape[0])
    return gradients(case, like(u, case.x, case.x.dtype))
