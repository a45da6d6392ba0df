"""The backend finds the library of its arrays and refuses to mix."""

from __future__ import annotations

import array_api_strict
import numpy as np
import pytest

from fwl_ref.backend import as_dtype, backend_versions, is_host, like, namespace, to_numpy
from tests.tolerances import assert_bitwise

DEVICES = [array_api_strict.Device(name) for name in ("CPU_DEVICE", "device1", "device2")]


def test_namespace_is_the_library_of_the_arrays() -> None:
    """namespace(x) computes where x lives; None entries are skipped."""
    assert namespace(np.ones(2), None, np.ones(3)).__name__.endswith("numpy")
    assert namespace(None, array_api_strict.asarray([1.0])) is array_api_strict


def test_mixed_dtypes_are_refused_naming_both_and_their_shapes() -> None:
    """float32 with float64 is an error: nothing is upcast silently."""
    with pytest.raises(TypeError, match=r"float64 \(shape \(2,\)\) and float32 \(shape \(3, 1\)\)"):
        namespace(np.ones(2), np.ones((3, 1), dtype="float32"))
    with pytest.raises(TypeError, match="float64.*int64"):
        namespace(np.ones(2), np.ones(2, dtype="int64"))
    strict = array_api_strict.ones(2)
    with pytest.raises(TypeError, match="float64.*float32"):
        namespace(strict, array_api_strict.astype(strict, array_api_strict.float32))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_mixed_libraries_are_refused_naming_both(dtype: str) -> None:
    """NumPy with another library is an error that says how to move, whatever the dtypes."""
    ours, theirs = np.ones(2, dtype=dtype), array_api_strict.ones(2)
    for mixed in ((ours, theirs), (theirs, ours)):
        with pytest.raises(TypeError, match="one library, got array_api_strict.*numpy.*like"):
            namespace(*mixed)


def test_mixed_devices_are_refused_naming_both() -> None:
    """Two devices of one library are an error."""
    a = array_api_strict.ones(2)
    with pytest.raises(TypeError, match="CPU_DEVICE.*device1"):
        namespace(a, a.to_device(DEVICES[1]))


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "bool"])
def test_like_and_to_numpy_are_inverse(device: array_api_strict.Device, dtype: str) -> None:
    """to_numpy(like(a, target)) = a, dtype kept, on the target's library and device."""
    target = array_api_strict.ones(1).to_device(device)
    a = (np.arange(6).reshape(2, 3) % 4).astype(dtype)
    moved = like(a, target)
    assert moved.device == device
    assert str(moved.dtype).endswith(dtype)
    assert not is_host(moved)
    assert_bitwise(to_numpy(moved), a)


def test_like_converts_only_when_asked() -> None:
    """like(x, target, dtype) has that dtype, whether it is named as the library or as a string names it."""
    target = array_api_strict.ones(1).to_device(DEVICES[1])
    for dtype in ("float32", array_api_strict.float32):
        assert like(np.ones(2), target, dtype).dtype == array_api_strict.float32
    assert like([1.0, 2.0], np.ones(1), "float32").dtype == np.float32
    assert like(np.ones(2), np.ones(1, dtype="float32")).dtype == np.float64


def test_host_arrays_are_not_copied_and_scalars_are_host_values() -> None:
    """to_numpy on the host is the identity; a NumPy scalar counts as host."""
    a = np.ones(3)
    assert to_numpy(a) is a
    assert is_host(a) and is_host(np.float32(1)) and not is_host(1.0)


def test_as_dtype_keeps_library_and_device() -> None:
    """as_dtype changes the precision and nothing else."""
    x = array_api_strict.ones(2).to_device(DEVICES[1])
    assert as_dtype(x, "float32").dtype == array_api_strict.float32
    assert as_dtype(x, "float32").device == DEVICES[1]
    assert as_dtype(np.ones(2), "float32").dtype == np.float32


def test_versions_name_python_and_numpy() -> None:
    """What a reported number must be reported with."""
    assert backend_versions()["numpy"] == np.__version__
    assert backend_versions()["python"].count(".") == 2
