"""Arrays of other libraries: there, and back home; gradients by their own differentiation."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from ..backend import Array, BackendError, from_dlpack, host
from .options import Options


def imported(name: str, why: str) -> Any:
    """The module of that name. Raises BackendError saying what needs it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise BackendError(f"{why} needs {name}, and importing it failed: {error}") from None


def converter(options: Options) -> Callable[[Array], Any]:
    """From a host array (float64 or int64) to what the kernel gets."""
    dtype, to = options.dtype, options.to
    if to is not None:
        return to
    if options.library == "numpy":
        return lambda a: a.astype(dtype) if a.dtype.kind == "f" else a
    name = {"jax": "jax.numpy"}.get(options.library, options.library)
    xp = imported(name, f"library={options.library!r}")
    make = getattr(xp, "tensor", None) or xp.asarray  # torch.tensor copies; so does asarray
    return lambda a: make(a, dtype=getattr(xp, dtype)) if a.dtype.kind == "f" else make(a)


def home(a: Any) -> Array:
    """An array of any library as a host array of float64. Goes by DLPack, from a device too."""
    if hasattr(a, "detach"):  # torch: out of its graph; NumPy has no bfloat16
        a = a.detach()
        a = (a.double() if a.is_floating_point() else a).cpu()
    if (
        isinstance(a, host.ndarray | host.generic | float | int)
        or hasattr(a, "__array__")
        and not hasattr(a, "get")
    ):
        found = host.asarray(a)
    else:
        found = a.get() if hasattr(a, "get") else from_dlpack(a)
    return found.astype("float64")


def torch_gradients(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """A ``backward`` for ``check_kernel`` that differentiates a PyTorch kernel by autograd.

    ``check_kernel("delta", kernel, backward=torch_gradients(kernel), library="torch")``. The kernel
    runs once more for it. An input that the outputs do not depend on has the gradient None.
    """

    def backward(cotangents: tuple[Any, ...], *inputs: Any) -> Any:
        torch = imported("torch", "torch_gradients")
        leaves = [a for a in flat(inputs) if a is not None]
        fresh = [
            a.detach().clone().requires_grad_() if a.is_floating_point() else a for a in leaves
        ]
        outputs = flat(kernel(*filled(inputs, iter(fresh))))
        given = zip(outputs, flat(cotangents), strict=True)
        pairs = [(o, c) for o, c in given if c is not None and o is not None and o.requires_grad]
        wanted = [a for a in fresh if a.requires_grad]
        found = iter([None] * len(wanted))
        if pairs:
            outs = [o for o, _ in pairs]
            cots = [c.to(o.dtype) for o, c in pairs]
            found = iter(torch.autograd.grad(outs, wanted, cots, allow_unused=True))
        gradients = [next(found) if a.requires_grad else None for a in fresh]
        return filled(inputs, iter(gradients))

    return backward


def jax_gradients(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """A ``backward`` for ``check_kernel`` that differentiates a JAX kernel with ``jax.vjp``."""

    def backward(cotangents: tuple[Any, ...], *inputs: Any) -> Any:
        jax = imported("jax", "jax_gradients")
        leaves = [a for a in flat(inputs) if a is not None]
        real = [a.dtype.kind not in "iu" for a in leaves]

        def function(*differentiated: Any) -> list[Any]:
            moving, rest = iter(differentiated), zip(leaves, real, strict=True)
            every = [next(moving) if is_real else a for a, is_real in rest]
            return flat(kernel(*filled(inputs, iter(every))))

        outputs, pull = jax.vjp(function, *(a for a, r in zip(leaves, real, strict=True) if r))
        given = zip(outputs, flat(cotangents), strict=True)
        cots = [o * 0 if c is None else c.astype(o.dtype) for o, c in given]
        found = iter(pull(cots))
        return filled(inputs, iter([next(found) if r else None for r in real]))

    return backward


# --- tuples in tuples


def flat(tree: Any) -> list[Any]:
    """The leaves of nested tuples and lists; None is a leaf."""
    if isinstance(tree, tuple | list):
        return [leaf for branch in tree for leaf in flat(branch)]
    return [tree]


def filled(tree: Any, leaves: Any) -> Any:
    """``tree`` with its leaves replaced in order, None kept where it was."""
    if tree is None:
        return None
    if isinstance(tree, tuple | list):
        branches = [filled(branch, leaves) for branch in tree]
        return type(tree)(*branches) if hasattr(tree, "_fields") else type(tree)(branches)
    return next(leaves)
