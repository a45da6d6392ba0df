"""Hypothesis profiles, the report of backends and versions, and the skip of GPU tests where there is no GPU."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version

import pytest
from hypothesis import HealthCheck, settings

_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}
settings.register_profile("quick", max_examples=10, **_COMMON)
settings.register_profile("thorough", max_examples=100, derandomize=True, print_blob=True, **_COMMON)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "quick")
settings.load_profile(PROFILE)


def _gpu_missing() -> str:
    """Why GPU tests cannot run here; empty if they can."""
    try:
        import cupy
    except ImportError:
        return "CuPy is not installed"
    try:
        return "" if cupy.cuda.runtime.getDeviceCount() else "no GPU"
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"no GPU: {error}"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs a GPU and CuPy; skipped, with the reason, where there is none")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    reason = _gpu_missing() if marked else ""
    for item in marked if reason else ():
        item.add_marker(pytest.mark.skip(reason=reason))


def _report() -> list[str]:
    found = []
    for name in ("numpy", "array-api-compat", "array-api-strict", "cupy-cuda12x", "cupy-cuda13x", "hypothesis"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} absent")
    return ["backends: " + ", ".join(found), f"hypothesis profile: {PROFILE}"]


def pytest_report_header() -> list[str]:
    """Which backends and versions run: a result means little without them."""
    return _report()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """``-q`` hides the header, so say it at the end."""
    if not terminalreporter.showheader:
        for line in _report():
            terminalreporter.write_line(line)
