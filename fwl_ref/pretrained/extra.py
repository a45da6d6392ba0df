"""The libraries that read files of models are an extra: they are imported where they are used."""

from __future__ import annotations

import importlib
from typing import Any


class ExtraError(ImportError):
    """A library that reads files of models is not installed."""


def needed(name: str) -> Any:
    """The module of that name. Raises ExtraError, saying what to install."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ExtraError(
            f"reading this model needs {name}, and importing it failed ({error}): "
            "pip install 'fwl_ref[pretrained]'"
        ) from None
