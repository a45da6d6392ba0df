"""A pytest fixture: ``pytest_plugins = ["fwl_ref.testing.plugin"]`` in a conftest.py.

    def test_my_kernel(check_kernel):
        check_kernel("gated_delta", my_kernel)

is the function of that name, which leaves a failing case in the test's temporary folder.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from . import kernel


@pytest.fixture(name="check_kernel")
def fixture_check_kernel(tmp_path: Path) -> Any:
    """``fwl_ref.testing.check_kernel`` with ``save`` set."""
    return partial(kernel.check_kernel, save=tmp_path)
