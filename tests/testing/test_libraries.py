"""Arrays of PyTorch and JAX go through the package, and kernels in them through the kit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fwl_ref import FastParameters, FastSettings, SlowParameters, fast_block_bwd, fast_block_fwd
from fwl_ref.rules.gated_delta import gated_delta_chunked_bwd, gated_delta_chunked_fwd, gated_delta_recurrent_fwd
from fwl_ref.testing import check_kernel, jax_gradients
from fwl_ref.tree import leaves
from tests.conftest import notes
from tests.testing.naive import delta
from tests.tolerances import assert_close

pytestmark = pytest.mark.host("brings arrays of other libraries itself")
FOUND: dict[str, Any] = {}
MISSING: dict[str, str] = {}
try:
    import torch

    FOUND["torch"] = torch.tensor
except ImportError as error:
    MISSING["torch"] = notes["arrays of PyTorch"] = f"PyTorch is not installed ({error}): pip install torch"
try:
    import jax

    jax.config.update("jax_enable_x64", True)
    FOUND["jax"] = jax.numpy.asarray
except ImportError as error:
    MISSING["jax"] = notes["arrays of JAX"] = f"JAX is not installed ({error}): pip install jax"
EACH = [pytest.param(n, marks=pytest.mark.skipif(n in MISSING, reason=MISSING.get(n, ""))) for n in ("torch", "jax")]
with_jax = pytest.mark.skipif("jax" in MISSING, reason=MISSING.get("jax", ""))
with_torch = pytest.mark.skipif("torch" in MISSING, reason=MISSING.get("torch", ""))


def rule_case() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [*rng.standard_normal((3, 2, 7, 4)), *rng.uniform(0.3, 1, (2, 2, 7))]


@pytest.mark.parametrize("library", EACH)
def test_a_rule_takes_and_gives_arrays_of_the_library(library: str) -> None:
    """Both forms and the backward pass, the same numbers as NumPy's."""
    given, there = rule_case(), [FOUND[library](a) for a in rule_case()]
    (out, state), res = gated_delta_chunked_fwd(*given, chunk=3, read="inclusive")
    (out_there, state_there), res_there = gated_delta_chunked_fwd(*there, chunk=3, read="inclusive")
    assert type(out_there) is type(there[0])
    assert_close(np.asarray(out_there), out)
    assert_close(np.asarray(gated_delta_recurrent_fwd(*there, read="inclusive")[0][0]), out)
    wanted, found = gated_delta_chunked_bwd(out, state, res), gated_delta_chunked_bwd(out_there, state_there, res_there)
    for a, b in zip(found, wanted, strict=True):
        assert_close(np.asarray(a), b)


@pytest.mark.parametrize("library", EACH)
def test_the_block_takes_and_gives_arrays_of_the_library(library: str) -> None:
    """Forward and backward, the same numbers as NumPy's."""

    def run(to: Any) -> list[Any]:
        rng = np.random.default_rng(0)
        x, labels, weights = rng.standard_normal((2, 9, 4)), rng.integers(0, 7, (2, 9)), np.ones((2, 9))
        slow = SlowParameters(*(to(rng.standard_normal(s)) for s in [(4, 8), 8, (8, 4), 4, 4, 4, (4, 7), 7]))
        eta = FastParameters(*(to(np.asarray(0.05)),) * 6)
        outputs, res = fast_block_fwd(to(x), to(labels), to(weights), slow, eta, to(np.asarray(0.01)), FastSettings(chunk=4))
        return [a for a in leaves((outputs, fast_block_bwd(outputs[0], outputs[2], res))) if a is not None]

    for there, here in zip(run(FOUND[library]), run(np.asarray), strict=True):
        assert_close(np.asarray(there), here)


@with_jax
def test_transformations_of_jax_are_refused_with_the_way_round() -> None:
    """Inside jax.grad and jax.jit arrays have no device; jax.custom_vjp with the passes by hand
    works.
    """
    given = [FOUND["jax"](a) for a in rule_case()]
    plain = lambda *a: gated_delta_chunked_fwd(*a, chunk=3, read="inclusive")  # noqa: E731
    for transformed in (jax.grad(lambda q: plain(q, *given[1:])[0][0].sum()), jax.jit(lambda q: plain(q, *given[1:])[0][0])):
        with pytest.raises(TypeError, match=r"call the _bwd function or give both to jax.custom_vjp"):
            transformed(given[0])

    rule = jax.custom_vjp(lambda *a: plain(*a)[0])
    rule.defvjp(lambda *a: (rule(*a), a), lambda a, cots: gated_delta_chunked_bwd(*cots, plain(*a)[1])[:5])
    found = jax.grad(lambda *a: rule(*a)[0].sum(), argnums=(0, 1, 2, 3, 4))(*given)
    (out, _), res = plain(*given)
    for a, b in zip(found, gated_delta_chunked_bwd(out * 0 + 1, None, res), strict=False):
        assert_close(np.asarray(a), np.asarray(b))


@with_torch
def test_autograd_of_torch_goes_through_a_rule() -> None:
    """Its gradients are those by hand."""
    given = [torch.tensor(a, requires_grad=True) for a in rule_case()]
    (out, _), res = gated_delta_chunked_fwd(*given, chunk=3, read="inclusive")
    out.sum().backward()
    with torch.no_grad():
        wanted = gated_delta_chunked_bwd(torch.ones_like(out), None, res)
    for a, b in zip(given, wanted, strict=False):
        assert_close(a.grad.numpy(), b.numpy())


@with_jax
def test_a_kernel_in_jax_is_checked_with_its_own_gradients() -> None:
    """jax.vjp, in float64 and float32."""

    def kernel(q: Any, k: Any, v: Any, beta: Any, state: Any) -> Any:
        xp = jax.numpy
        S = xp.zeros((k.shape[0], k.shape[2], v.shape[2]), k.dtype) if state is None else state
        out = []
        for t in range(q.shape[1]):
            error = v[:, t] - xp.einsum("bk,bke->be", k[:, t], S)
            S = S + xp.einsum("bk,be->bke", k[:, t], beta[:, t, None] * error)
            out.append(xp.einsum("bk,bke->be", q[:, t], S))
        return xp.stack(out, 1), S

    for dtype in ("float64", "float32"):
        report = check_kernel(
            "delta", kernel, backward=jax_gradients(kernel), library="jax", dtype=dtype, chunk=2, sizes={"B": 1, "K": 3, "E": 2}, examples=5
        )  # fmt: skip
        assert "g_beta" in report.arrays


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_kernel_on_the_strict_library_is_checked_through_dlpack(dtype: str) -> None:
    """Arrays that are neither NumPy's nor convertible by themselves: ``to`` makes them."""
    import array_api_strict as strict

    def kernel(*inputs: Any) -> Any:
        assert all(a is None or type(a).__name__ == "Array" for a in inputs)
        out, state = delta(*(None if a is None else np.from_dlpack(a) for a in inputs))
        return strict.asarray(out), strict.asarray(state)

    to = lambda a: strict.asarray(a.astype(dtype))  # noqa: E731
    assert check_kernel("delta", kernel, to=to, dtype=dtype, chunk=4, examples=10).cases == 10
