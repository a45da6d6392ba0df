"""``check_kernel`` on the command line: ``python -m fwl_ref kernel MODULE:FUNCTION --rule R``."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .kernel import KernelError, check_kernel
from .libraries import jax_gradients, torch_gradients
from .options import DTYPES, LAYOUTS, Options
from .subjects import SUBJECTS

AUTOGRAD = {"torch": torch_gradients, "jax": jax_gradients}
CHOICES = {
    "read": ("inclusive", "strict"),
    "layout": LAYOUTS,
    "grouping": ("neighbours", "strided"),
    "state_layout": ("KE", "EK"),
    "state": ("optional", "always", "never"),
    "dtype": DTYPES,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``check_kernel`` as options of ``parser``; ``main`` does what they say."""
    parser.add_argument("kernel", metavar="MODULE:FUNCTION", help="imported from this folder too")
    parser.add_argument("--rule", required=True, choices=SUBJECTS)
    parser.add_argument(
        "--backward", metavar="MODULE:FUNCTION", help="backward(cotangents, *inputs)"
    )
    parser.add_argument(
        "--autograd", action="store_true", help="gradients by the library's autograd"
    )
    parser.add_argument("--examples", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rtol", type=float, default=None)
    parser.add_argument("--save", type=Path, help="a folder for the smallest failing case")
    parser.add_argument(
        "--sizes", default="", metavar="K=64,E=64", help="sizes the kernel insists on"
    )
    for name, default in Options._field_defaults.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(default, bool):
            parser.add_argument(flag, action="store_true")
        elif name in CHOICES:
            parser.add_argument(flag, choices=CHOICES[name], default=default)
        elif name == "scale":
            parser.add_argument(flag, default="1", help='a number, or "rsqrt": 1 / sqrt(K)')
        elif name == "window":
            parser.add_argument(flag, type=int, default=None)
        elif name not in ("sizes", "to"):
            parser.add_argument(flag, type=type(default), default=default)


def main(args: argparse.Namespace) -> int:
    """0: all cases agree. 1: the kernel differs; what, where and why is printed."""
    options = {n: getattr(args, n) for n in Options._fields if n not in ("sizes", "to", "scale")}
    options["scale"] = args.scale if args.scale == "rsqrt" else float(args.scale)
    options["sizes"] = _sizes(args.sizes)
    kernel = imported(args.kernel)
    backward = imported(args.backward) if args.backward else None
    if args.autograd:
        if args.library not in AUTOGRAD or backward:
            raise ValueError("--autograd needs --library torch or jax, and no --backward")
        backward = AUTOGRAD[args.library](kernel)
    words = {name: getattr(args, name) for name in ("examples", "seed", "rtol", "save")}
    try:
        print(check_kernel(args.rule, kernel, backward=backward, **words, **options))
    except KernelError as error:
        print(error)
        return 1
    return 0


def imported(name: str) -> Callable[..., Any]:
    """The function called MODULE:FUNCTION. Raises ValueError saying which part is missing."""
    module, colon, function = name.partition(":")
    if not colon or not module or not function:
        raise ValueError(f"expected MODULE:FUNCTION, such as kernels:gated_delta, got {name!r}")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), function, None)
    except ImportError as error:
        raise ValueError(f"{module} cannot be imported: {error}") from None
    if not callable(found):
        raise ValueError(f"{module} has no function {function}")
    return found


def _sizes(text: str) -> dict[str, int]:
    """K=64,E=64 -> {"K": 64, "E": 64}"""
    pairs = [item.partition("=") for item in text.split(",") if item]
    if not all(equals and value.isdigit() for _, equals, value in pairs):
        raise ValueError(f"--sizes must look like K=64,E=64, got {text!r}")
    return {letter: int(value) for letter, _, value in pairs}
