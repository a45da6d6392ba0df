"""Arrays of PyTorch and JAX go through the package, and kernels in them through the kit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fwl_ref import FastParameters, FastSettings, SlowParameters, fast_block_bwd, fast_block_fwd
from fwl_ref.lm.model import Config, initialize, loss_and_gradient
from fwl_ref.ops.attention import attention_bwd, attention_fwd
from fwl_ref.rules.gated_delta import gated_delta_chunked_bwd, gated_delta_chunked_fwd, gated_delta_recurrent_fwd
from fwl_ref.testing import check_kernel, jax_gradients
from fwl_ref.tree import leaves, tree_map
from fwl_ref.verify.golden_rules import PLANS, RULES, answers, draw_case
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


def to_jax(tree: Any) -> Any:
    """The arrays of a tree in JAX."""
    return tree_map(FOUND["jax"], tree)


def assert_same(found: Any, expected: Any) -> None:
    """Two trees, one of JAX and one of NumPy."""
    for a, b in zip(leaves(found), leaves(expected), strict=True):
        assert_close(np.asarray(a), b)


@with_jax
@pytest.mark.parametrize("kind", RULES)
def test_jax_differentiates_a_rule(kind: str) -> None:
    """jax.grad of the loss of a golden case, whose answers are the gradients by hand. The chunked or dual form."""
    plan = [p for p in PLANS if p.kind == kind][-1]
    case = draw_case(plan._replace(length=min(plan.length, 4)), np.random.default_rng(0), {})
    expected, names = answers(case), RULES[kind].differentiated
    arrays = {name: FOUND["jax"](a) for name, a in case.items() if isinstance(a, np.ndarray)}
    found = jax.grad(lambda moving: answers(case | arrays | moving)["loss"])({name: arrays[name] for name in names})
    if "state_H" in found:  # symmetric changes
        found["state_H"] = 0.5 * (found["state_H"] + found["state_H"].mT)
    for name in names:
        assert_close(np.asarray(found[name]), expected[f"g_{name}"])


@with_jax
def test_jax_differentiates_the_block() -> None:
    """jax.grad with respect to features, parameters, step sizes and decay."""
    rng = np.random.default_rng(0)
    x, labels, weights = rng.standard_normal((2, 5, 4)), rng.integers(0, 7, (2, 5)), np.ones((2, 5))
    slow = SlowParameters(*(rng.standard_normal(s) for s in [(4, 8), 8, (8, 4), 4, 4, 4, (4, 7), 7]))
    eta, decay, settings = FastParameters(*(np.asarray(0.05),) * 6), np.asarray(0.01), FastSettings(chunk=3)

    def loss(x: Any, slow: Any, eta: Any, decay: Any) -> Any:
        return fast_block_fwd(x, *to_jax((labels, weights)), slow, eta, decay, settings)[0][0].sum()

    (logits, _, _), res = fast_block_fwd(x, labels, weights, slow, eta, decay, settings)
    assert_same(jax.grad(loss, argnums=(0, 1, 2, 3))(*to_jax((x, slow, eta, decay))), fast_block_bwd(np.ones_like(logits), None, res)[:4])


@with_jax
@pytest.mark.parametrize("fast", [True, False])
def test_jax_differentiates_the_model(fast: bool) -> None:
    """jax.grad of the loss, attention and embedding included."""
    rng, config = np.random.default_rng(0), Config(vocabulary=7, width=4, layers=1, heads=2, fast=fast)
    p = tree_map(lambda a: a + 0.1 * rng.standard_normal(a.shape), initialize(config, rng))
    p = p._replace(decay=np.asarray(0.05))
    text = (*rng.integers(0, 7, (2, 2, 5)), np.ones((2, 5)))
    found = jax.grad(lambda p: loss_and_gradient(p, *to_jax(text), config)[0])(to_jax(p))
    assert_same(found, loss_and_gradient(p, *text, config)[1])


@with_jax
def test_jax_compiles_a_rule_and_takes_its_gradient_by_hand() -> None:
    """jax.jit of both passes, and jax.custom_vjp of the two."""
    given = [FOUND["jax"](a) for a in rule_case()]
    plain = lambda *a: gated_delta_chunked_fwd(*a, chunk=3, read="inclusive")  # noqa: E731
    (out, _), res = plain(*given)
    assert_close(np.asarray(jax.jit(lambda *a: plain(*a)[0][0])(*given)), np.asarray(out))
    rule = jax.custom_vjp(lambda *a: plain(*a)[0])
    rule.defvjp(lambda *a: (rule(*a), a), lambda a, cots: gated_delta_chunked_bwd(*cots, plain(*a)[1])[:5])
    found = jax.grad(lambda *a: rule(*a)[0].sum(), argnums=(0, 1, 2, 3, 4))(*given)
    for a, b in zip(found, gated_delta_chunked_bwd(out * 0 + 1, None, res), strict=False):
        assert_close(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("library", EACH)
@pytest.mark.parametrize("window", [None, 3])
def test_attention_takes_and_gives_arrays_of_the_library(library: str, window: int | None) -> None:
    """Also those that cannot be written to."""
    q, k, v, dout = np.random.default_rng(0).standard_normal((4, 1, 2, 5, 4))
    out, res = attention_fwd(q, k, v, window)
    there = [FOUND[library](a) for a in (q, k, v, dout)]
    out_there, res_there = attention_fwd(*there[:3], window)
    assert_close(np.asarray(out_there), out)
    for a, b in zip(attention_bwd(there[3], res_there), attention_bwd(dout, res), strict=True):
        assert_close(np.asarray(a), b)


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


@with_torch
@pytest.mark.parametrize("kind", RULES)
def test_autograd_of_torch_goes_through_every_rule_without_a_layernorm(kind: str) -> None:
    """The gradients of a golden case, by autograd and by hand; LayerNorm works in place, which PyTorch refuses."""
    case, names = draw_case([p for p in PLANS if p.kind == kind][-1], np.random.default_rng(0), {}), RULES[kind].differentiated
    arrays = {name: torch.tensor(a, requires_grad=name in names) for name, a in case.items() if isinstance(a, np.ndarray)}
    if "gain" in names:
        with pytest.raises(RuntimeError, match="inplace operation"):
            answers(case | arrays)["loss"].backward()
        return
    answers(case | arrays)["loss"].backward()
    expected = answers(case)
    for name in names:
        g = arrays[name].grad.numpy()
        assert_close(0.5 * (g + g.mT) if name == "state_H" else g, expected[f"g_{name}"])


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
