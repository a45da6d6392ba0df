"""The only file that imports an array library.

Every function in the package starts with ``xp = namespace(x)``: the arrays that come in decide which library computes and in
which precision. Nothing else in the package knows whether it runs on NumPy, on CuPy or on a strict array-API implementation.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import array_api_compat
import numpy as host  # arrays in host memory: text, printing, plotting, saving

Array: TypeAlias = Any
Tree: TypeAlias = Any

__all__ = ["Array", "Tree", "host", "namespace", "library", "is_host", "to_numpy", "like", "as_dtype", "backend_versions"]


def namespace(*arrays: Array | None) -> Any:
    """The array-API namespace shared by ``arrays`` (``None`` entries are skipped).

    Raises
    ------
    TypeError
        If the arrays come from different libraries or devices, or have different dtypes; the message names both.
    """
    given = [a for a in arrays if a is not None]
    xp, first = library(*given), given[0]
    for other in given[1:]:
        if other.dtype != first.dtype:
            raise TypeError(
                f"all arrays must have one dtype, got {first.dtype} (shape {tuple(first.shape)}) and {other.dtype} "
                f"(shape {tuple(other.shape)}): convert one of them, nothing is upcast silently"
            )
    return xp


def library(*arrays: Array) -> Any:
    """The namespace shared by arrays that may differ in dtype: features and labels. Raises TypeError as ``namespace`` does."""
    try:
        xp = array_api_compat.array_namespace(*arrays)
    except TypeError:
        kinds = sorted({f"{type(a).__module__}.{type(a).__name__}" for a in arrays})
        raise TypeError(f"all arrays must come from one library, got {' and '.join(kinds)}: move them with like()") from None
    if not array_api_compat.is_numpy_namespace(xp):
        devices = {str(array_api_compat.device(a)) for a in arrays}
        if len(devices) > 1:
            raise TypeError(f"all arrays must live on one device, got {' and '.join(sorted(devices))}: move them with like()")
    return xp


def is_host(x: Array) -> bool:
    """True if ``x`` is a NumPy array or scalar, so that looking at its values costs no transfer."""
    return isinstance(x, host.ndarray | host.generic)


def to_numpy(x: Array) -> host.ndarray:
    """Copy ``x`` to the host: the one explicit device-to-host transfer (printing, plotting, saving)."""
    if is_host(x):
        return host.asarray(x)
    if array_api_compat.is_cupy_array(x):
        return x.get()
    return host.from_dlpack(x, device="cpu")


def like(x: Any, target: Array, dtype: Any = None) -> Array:
    """Move the host array ``x`` to the library and device of ``target``; keep ``x``'s dtype unless one is given."""
    x = host.asarray(x) if dtype is None else host.asarray(x, dtype=_host_dtype(dtype))
    if is_host(target):
        return x
    xp = array_api_compat.array_namespace(target)
    return array_api_compat.to_device(xp.asarray(x), array_api_compat.device(target))


def as_dtype(x: Array, dtype: str) -> Array:
    """``x`` as "float32" or "float64", in its own library."""
    xp = array_api_compat.array_namespace(x)
    return xp.astype(x, getattr(xp, dtype))


def _host_dtype(dtype: Any) -> Any:
    return host.dtype(str(dtype).rsplit(".", 1)[-1])


def backend_versions() -> dict[str, str]:
    """Names and versions a result must be reported with."""
    import platform

    return {"python": platform.python_version(), "numpy": host.__version__}
