"""A right kernel is accepted in every layout, with every option, in every dtype: no false alarm.

The kernels are naive loops that fold and unfold heads themselves; gradients by central differences,
and by autograd where PyTorch is installed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fwl_ref.fwl import FastSettings, fast_block_bwd, fast_block_fwd
from fwl_ref.testing import check_kernel
from fwl_ref.testing.compare import ROUNDOFF, rounded, tolerance
from tests.conftest import notes
from tests.testing.naive import KERNELS, library

pytestmark = pytest.mark.host("kernels are functions of host arrays; the reference is checked elsewhere")

MISSING = ""
try:
    import torch

    from fwl_ref.testing import torch_gradients

    torch.set_num_threads(1)
except ImportError as error:
    MISSING = f"PyTorch is not installed ({error}): pip install torch"
    notes["kernels in PyTorch, bfloat16 and autograd"] = MISSING
with_torch = pytest.mark.skipif(bool(MISSING), reason=MISSING)


def in_layout(
    layout: str, *, groups: int = 1, strided: bool = False, scale: float | str = 1.0, log: bool = False, eps: float = 0.0,
    transposed: bool = False,
) -> Callable[..., Any]:  # fmt: skip
    """The gated delta rule as a library would offer it."""

    def kernel(q: Any, k: Any, v: Any, alpha: Any, beta: Any, state: Any = None) -> tuple[Any, Any]:
        xp = library(q)
        if layout == "BHTK":
            q, k, v, alpha, beta = (xp.swapaxes(a, 1, 2) for a in (q, k, v, alpha, beta))
        alpha = xp.exp(alpha) if log else alpha
        if eps:
            q, k = (a / ((a * a).sum(-1)[..., None] + eps) ** 0.5 for a in (q, k))
        q = q * (q.shape[-1] ** -0.5 if scale == "rsqrt" else scale)
        outs, states = [], []
        for h in range(v.shape[2]):
            shared = h % k.shape[2] if strided else h // groups
            S = None if state is None else state[:, h]
            S = xp.swapaxes(S, 1, 2) if transposed and S is not None else S
            out, S = KERNELS["gated_delta"](q[:, :, shared], k[:, :, shared], v[:, :, h], alpha[:, :, h], beta[:, :, h], S)
            outs.append(out)
            states.append(xp.swapaxes(S, 1, 2) if transposed else S)
        out = xp.stack(outs, 2)
        return xp.swapaxes(out, 1, 2) if layout == "BHTK" else out, xp.stack(states, 1)

    return kernel


def differences(kernel: Callable[..., Any], h: float = 1e-6) -> Callable[..., Any]:
    """Gradients by central differences, entry by entry."""

    def loss(cotangents: tuple, inputs: list) -> float:
        returned = kernel(*inputs)
        return sum(float((a * c).sum()) for a, c in zip(returned, cotangents, strict=True))

    def backward(cotangents: tuple, *inputs: Any) -> list:
        gradients = []
        for i, a in enumerate(inputs):
            if a is None:
                gradients.append(None)
                continue
            g = np.zeros_like(a)
            for at in np.ndindex(*a.shape):
                moved = [np.array(a) for _ in range(2)]
                moved[0][at] += h
                moved[1][at] -= h
                up, down = (loss(cotangents, [*inputs[:i], m, *inputs[i + 1 :]]) for m in moved)
                g[at] = (up - down) / (2 * h)
            gradients.append(g)
        return gradients

    return backward


VARIANTS = {
    "BTHK": ({}, {}),
    "BHTK, scaled": ({"scale": "rsqrt"}, {"scale": "rsqrt"}),
    "BTHK, log gates": ({"log": True}, {"log_gates": True}),
    "BHTK, l2 norm": ({"eps": 1e-6}, {"l2norm": 1e-6}),
    "BTHK, grouped": ({"groups": 2}, {"grouped_values": 2}),
    "BHTK, grouped strided": ({"groups": 2, "strided": True}, {"grouped_values": 2, "grouping": "strided"}),
    "BTHK, transposed state": ({"transposed": True}, {"state_layout": "EK"}),
    "BHTK, all": (
        {"groups": 3, "scale": 0.3, "log": True, "eps": 1e-3, "transposed": True},
        {"grouped_values": 3, "scale": 0.3, "log_gates": True, "l2norm": 1e-3, "state_layout": "EK"},
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_right_kernel_is_accepted_in_every_layout(name: str) -> None:
    """Outputs and states, 40 cases each, in float64 and float32."""
    made, options = VARIANTS[name]
    for dtype in ("float64", "float32"):
        kernel = in_layout(name[:4], **made)
        report = check_kernel("gated_delta", kernel, layout=name[:4], chunk=4, dtype=dtype, examples=40, **options)
        assert report.cases >= 20 and report.arrays == ("out", "state_out")


@pytest.mark.parametrize("name", VARIANTS)
def test_gradients_are_those_of_what_the_kernel_was_given(name: str) -> None:
    """By central differences of the kernel itself: through scale, logarithm, norm and shared
    heads.
    """
    made, options = VARIANTS[name]
    kernel, sizes = in_layout(name[:4], **made), {"B": 1, "T": 3, "K": 3, "E": 2, "H": 2}
    report = check_kernel(
        "gated_delta", kernel, backward=differences(kernel), layout=name[:4], sizes=sizes, examples=4, rtol=1e-6, **options
    )  # fmt: skip
    assert report.arrays[2:] == ("g_q", "g_k", "g_v", "g_alpha", "g_beta", "g_state") or "g_state" not in report.arrays


@with_torch
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_right_torch_kernel_is_accepted_with_its_autograd(name: str, dtype: str) -> None:
    """Every gradient, every layout; the naive loop rounds each step to bfloat16 there."""
    made, options = VARIANTS[name]
    kernel = in_layout(name[:4], **made)
    report = check_kernel(
        "gated_delta", kernel, backward=torch_gradients(kernel), layout=name[:4], chunk=4, dtype=dtype, library="torch",
        examples=15, **options,
    )  # fmt: skip
    assert {"g_q", "g_k", "g_v", "g_alpha", "g_beta"} <= set(report.arrays)


READS = [
    (name, read) for name in KERNELS for read in (("inclusive", "strict") if not name.endswith(("attention", "conv", "norm")) else ("",))
]


@pytest.mark.parametrize(("name", "read"), READS)
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_naive_loops_of_every_rule_are_accepted(name: str, read: str, dtype: str) -> None:
    """Loops that share no code with the package, three seeds each."""
    if name in ("mesa", "l2norm") and dtype == "float16":
        pytest.skip("NumPy solves no systems in float16, and squares of short vectors are below it")
    words = {"read": read} if read else {}
    for seed in range(3):
        check_kernel(name, lambda *a: KERNELS[name](*a, **words), chunk=4, dtype=dtype, examples=20, seed=seed, **words)


@with_torch
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_naive_torch_loops_of_every_rule_are_accepted_with_their_autograd(name: str, dtype: str) -> None:
    """The gradients by hand of every rule against autograd of loops that share no code with them."""
    if name == "mesa" and dtype == "bfloat16":
        pytest.skip("PyTorch solves no systems in bfloat16")
    kernel = KERNELS[name]
    check_kernel(name, kernel, backward=torch_gradients(kernel), library="torch", chunk=4, dtype=dtype, examples=20)


def block(x: Any, labels: Any, weights: Any, slow: Any, eta: Any, decay: Any, state: Any) -> Any:
    return fast_block_fwd(x, labels, weights, slow, eta, decay, FastSettings(chunk=3), state)[0]


def block_bwd(cotangents: tuple, *inputs: Any) -> tuple:
    g_logits, _, g_state = cotangents
    *rest, state = inputs
    g_x, g_slow, g_eta, g_decay, g_in = fast_block_bwd(g_logits, g_state, fast_block_fwd(*rest, FastSettings(chunk=3), state)[1])
    return g_x, None, None, g_slow, g_eta, g_decay, g_in


def test_the_fast_weight_block_is_accepted() -> None:
    """In chunks of 3, with states and gradients of all that is differentiated."""
    report = check_kernel("fast_block", block, backward=block_bwd, chunk=3, examples=25)
    assert {"logits", "logits_slow", "state_out_W1", "g_x", "g_W1", "g_U", "g_eta_bias", "g_decay"} <= set(report.arrays)


def test_features_of_another_width_than_the_block_are_drawn_when_asked_for() -> None:
    """I is the block's width D unless ``sizes`` says otherwise."""
    for sizes, widths in (({}, None), ({"I": 6}, 6), ({"D": 4, "I": 3}, 3)):
        seen = []

        def watched(x: Any, *rest: Any, seen: list = seen) -> Any:
            seen.append((x.shape[-1], rest[2].W2.shape[1]))
            return block(x, *rest)

        check_kernel("fast_block", watched, backward=block_bwd, chunk=3, examples=5, sizes=sizes)
        assert all(i == (widths or d) for i, d in seen) and (not widths or any(i != d for i, d in seen))


# Tolerances
# ----------------------------------------------------------------------------------------


def test_tolerances_are_the_stated_formula() -> None:
    """16 u + 8 (n + 2) a / (1 - n a), and unit roundoffs that are those of the types."""
    assert tolerance("float64", 0) == 16 * 2.0**-53 + 16 * 2.0**-53
    assert tolerance("bfloat16", 10) == pytest.approx(16 * 2.0**-8 + 96 * 2.0**-24, rel=1e-6)
    for dtype in ("float64", "float32", "float16"):
        assert ROUNDOFF[dtype] == np.finfo(dtype).eps / 2
    order = [tolerance(d, 50) for d in ("float64", "float32", "float16", "bfloat16")]
    assert order == sorted(order)


def test_rounding_to_bfloat16_is_to_nearest_even() -> None:
    """Eight bits: 1 + 2^-8 is a tie and goes to 1, 1 + 3 2^-8 to 1 + 2^-6."""
    a = np.array([1.0, 1 + 2.0**-8, 1 + 3 * 2.0**-8, -1 - 2.0**-8 * 1.01, 3.0e38])
    assert rounded(a, "bfloat16")[:4].tolist() == [1.0, 1.0, 1 + 2.0**-6, -1 - 2.0**-7]
    assert rounded(a, "float64") is a
