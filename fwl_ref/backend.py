"""The only file that imports an array library.

Every function in the package starts with ``xp = namespace(x)``: the arrays that come in decide
which library computes and in which precision. Nothing else in the package knows whether it runs on
NumPy, on CuPy or on a strict array-API implementation.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import array_api_compat
import array_api_compat.numpy as host_namespace
import numpy as host  # arrays in host memory: text, printing, plotting, saving

Array: TypeAlias = Any
Tree: TypeAlias = Any

__all__ = [
    "Array", "Tree", "host", "namespace", "library", "device", "as_index", "is_host", "to_numpy",
    "from_dlpack", "like", "as_dtype", "written_to", "product_to", "overwritten",
    "BACKENDS", "BackendError", "backend_target", "backend_versions", "use_device", "wait",
    "waiting_refused", "peak_bytes",
]  # fmt: skip

_PLAIN = {host.ndarray, host.float32, host.float64}  # what an operation on the host returns
# by name, where a command asks for one; functions go by the arrays they are given
BACKENDS = ("numpy", "cupy")


class BackendError(RuntimeError):
    """The array library or the device that was asked for is not there."""


def namespace(*arrays: Array | None) -> Any:
    """The array-API namespace shared by ``arrays`` (``None`` entries are skipped).

    Raises
    ------
    TypeError
        If the arrays come from different libraries or devices, or have different dtypes; the
        message names both. If one is a plain number.
    """
    if _plain(arrays):
        return host_namespace
    given = [a for a in arrays if a is not None]
    xp, first = library(*given), given[0]
    for other in given[1:]:
        if other.dtype != first.dtype:
            raise TypeError(
                f"all arrays must have one dtype, got {first.dtype} (shape {tuple(first.shape)}) "
                f"and {other.dtype} (shape {tuple(other.shape)}): convert one of them, "
                "nothing is upcast silently"
            )
    return xp


def library(*arrays: Array) -> Any:
    """The namespace shared by arrays that may differ in dtype: features and labels.

    Raises TypeError as ``namespace`` does.
    """
    numbers = [a for a in arrays if isinstance(a, int | float) and not is_host(a)]
    if numbers:
        raise TypeError(
            f"all arguments must be arrays, got the number {numbers[0]!r}: "
            "like(number, x, x.dtype) makes one for the library and the dtype of x"
        )
    try:
        xp = array_api_compat.array_namespace(*arrays)
    except TypeError:
        kinds = sorted({f"{type(a).__module__}.{type(a).__name__}" for a in arrays})
        raise TypeError(
            f"all arrays must come from one library, got {' and '.join(kinds)}: "
            "move them with like()"
        ) from None
    if not array_api_compat.is_numpy_namespace(xp):
        places = [device(a) for a in arrays]
        devices = {str(place) for place in places if place is not None}
        if len(devices) > 1:
            raise TypeError(
                f"all arrays must live on one device, got {' and '.join(sorted(devices))}: "
                "move them with like()"
            )
    return xp


def _plain(arrays: tuple[Array | None, ...]) -> bool:
    """Whether the host can see at once that they go together: NumPy's own, of one dtype.

    Every function asks, 130 times for a byte that a small model writes.
    """
    dtype = None
    for a in arrays:
        if a is None:
            continue
        if type(a) not in _PLAIN:
            return False
        if dtype is None:
            dtype = a.dtype
        elif a.dtype is not dtype:  # equal ones may be two: the long way finds out
            return False
    return dtype is not None


def device(x: Array) -> Any:
    """Where ``x`` is. NumPy's scalars, which an operation on arrays without axes gives, say it
    themselves only since NumPy 2.1. Arrays within jax.grad and jax.jit are nowhere yet: None, which
    leaves the place to JAX.
    """
    return array_api_compat.device(x)


def as_index(index: Array) -> Array:
    """``index`` as ``take`` wants it: on 32 bits, as in a browser, NumPy takes no int64."""
    xp = array_api_compat.array_namespace(index)
    return xp.astype(index, xp.int64 if sys.maxsize > 2**32 else xp.int32)


def is_host(x: Array) -> bool:
    """True if ``x`` is a NumPy array or scalar, so that looking at its values costs no transfer."""
    return isinstance(x, host.ndarray | host.generic)


def to_numpy(x: Array) -> host.ndarray:
    """Copy ``x`` to the host, to print, plot or save: the one explicit transfer from a device."""
    if is_host(x):
        return host.asarray(x)
    if array_api_compat.is_cupy_array(x):
        return x.get()
    return from_dlpack(x)


def from_dlpack(x: Any) -> host.ndarray:
    """A host array of an array of any library that has DLPack, from its device."""
    try:
        return host.from_dlpack(x, device="cpu")
    except TypeError:  # NumPy before 2.1 takes no keyword: it reads what lies on the host
        return host.from_dlpack(x)


def like(x: Any, target: Array, dtype: Any = None) -> Array:
    """Move the host array ``x`` to the library and device of ``target``.

    ``x`` keeps its dtype unless one is given.

    On a GPU the copy goes through pinned memory on the current stream and nothing waits for it:
    CuPy does both by itself for an array in pageable host memory, and has read ``x`` when this
    returns.
    """
    x = host.asarray(x) if dtype is None else host.asarray(x, dtype=_host_dtype(dtype))
    if is_host(target):
        return x
    xp = array_api_compat.array_namespace(target)
    return array_api_compat.to_device(xp.asarray(x), array_api_compat.device(target))


def as_dtype(x: Array, dtype: str) -> Array:
    """``x`` as "float32" or "float64", in its own library."""
    xp = array_api_compat.array_namespace(x)
    return xp.astype(x, getattr(xp, dtype))


def written_to(a: Array, where: Any, values: Array, add: bool = False) -> Array:
    """``a`` with ``values`` at the index ``where``, or with ``add`` added to what is there: ``a``
    itself, written to, but for arrays that cannot change (JAX's) a new one.
    """
    if hasattr(a, "at"):
        return a.at[where].add(values) if add else a.at[where].set(values)
    if add:
        a[where] += values  # in place: no second array of this size
    else:
        a[where] = values
    return a


def product_to(out: Array, where: Any, a: Array, b: Array) -> Array:
    """``written_to(out, where, a b)``; on the host the product is formed at its place."""
    xp = namespace(a, b)
    if is_host(out):
        matmul = xp.matmul  # NumPy's has ``out``, the standard's has not
        matmul(a, b, out=out[where])
        return out
    return written_to(out, where, xp.matmul(a, b))


def overwritten(f: Callable[..., Array], x: Array) -> Array:
    """``f(x)`` for an entrywise function of the library, in the memory of ``x``, which nobody else
    may hold; a new array where the library knows no such thing.
    """
    if isinstance(x, host.ndarray) or array_api_compat.is_cupy_array(x):
        return f(x, out=x)  # in place: no second array of this size
    return f(x)


def _host_dtype(dtype: Any) -> Any:
    return host.dtype(str(dtype).rsplit(".", 1)[-1])


def backend_target(backend: str) -> Array:
    """A target for ``like``: an empty array where ``backend`` ("numpy" or "cupy") computes.

    Raises BackendError if CuPy or a GPU is missing, saying what to install; ValueError for another
    name.
    """
    if backend not in BACKENDS:
        raise ValueError(f"the backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    return host.zeros(0) if backend == "numpy" else _cupy().zeros(0)


def use_device(backend: str, number: int) -> None:
    """Compute on GPU ``number`` from here on, counted round where there are fewer; on the host
    there is nothing to choose.

    Raises as ``backend_target``.
    """
    backend_target(backend)
    if backend == "cupy":
        cuda = _cupy().cuda
        cuda.Device(number % cuda.runtime.getDeviceCount()).use()


def backend_versions(backend: str = "numpy") -> dict[str, str]:
    """Names and versions a result must be reported with; for CuPy also the device.

    Raises as ``backend_target``.
    """
    import platform

    found = {"python": platform.python_version(), "numpy": host.__version__}
    if backend == "numpy":
        return found
    cupy = _cupy()
    device, runtime = cupy.cuda.Device(), cupy.cuda.runtime
    properties = runtime.getDeviceProperties(device.id)
    return found | {
        "cupy": cupy.__version__,
        "device": properties["name"].decode(),
        "compute capability": device.compute_capability,
        "device memory": f"{properties['totalGlobalMem'] / 2**30:.1f} GiB",
        "CUDA driver": _dotted(runtime.driverGetVersion()),
        "CUDA runtime": _dotted(runtime.runtimeGetVersion()),
        "devices": str(runtime.getDeviceCount()),
        "TF32": os.environ.get("CUPY_TF32", "0"),  # 1 lets CuPy round float32 products to ten bits
    }


def wait(x: Array) -> None:
    """Return when everything that was asked of the device of ``x`` is done: for clocks.

    Host arrays are always ready.
    """
    if array_api_compat.is_cupy_array(x):
        _cupy().cuda.Device(x.device.id).synchronize()


@contextmanager
def waiting_refused(x: Array) -> Iterator[type[Exception]]:
    """Inside, what makes the host wait for the device of ``x`` raises the error that this yields.

    For checks: a hidden transfer makes the host wait. It relies on CuPy's own detection, which the
    host has no need of and some versions of CuPy may lack: then nothing is raised.
    """
    detect = None
    if array_api_compat.is_cupy_array(x):
        import cupyx

        detect = getattr(cupyx, "allow_synchronize", None)
    if detect is None:
        yield BackendError
        return
    with warnings.catch_warnings():
        # it is announced to go some day
        warnings.filterwarnings("ignore", message="cupyx.allow_synchronize")
        with detect(False):
            yield cupyx.DeviceSynchronized


def peak_bytes(x: Array, reset: bool = False) -> int:
    """The most device memory that CuPy's pool has held since ``reset``; 0 for host arrays."""
    if not array_api_compat.is_cupy_array(x):
        return 0
    pool = _cupy().get_default_memory_pool()
    if reset:
        pool.free_all_blocks()
    return pool.total_bytes()


def _cupy() -> Any:
    """CuPy, with a GPU to run on."""
    try:
        import cupy
    except ImportError as error:
        raise BackendError(
            f"the cupy backend needs CuPy, and importing it failed ({error}): "
            "pip install 'fwl_ref[cuda13]' for a driver of CUDA 13, 'fwl_ref[cuda12]' for one of "
            "CUDA 12 (nvidia-smi says which), or use the numpy backend"
        ) from None
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise BackendError(
            f"CuPy {cupy.__version__} finds no GPU ({error}): "
            "see nvidia-smi, or use the numpy backend"
        ) from None
    if not count:
        raise BackendError(
            f"CuPy {cupy.__version__} finds no GPU: "
            "see nvidia-smi and CUDA_VISIBLE_DEVICES, or use the numpy backend"
        )
    return cupy


def _dotted(version: int) -> str:
    """13020 -> "13.2" """
    return f"{version // 1000}.{version % 1000 // 10}"
