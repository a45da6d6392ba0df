"""``python -m fwl_ref audit MODULE:FUNCTION --data FILE``: the audit on the command line."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

from ..lm.reading import read
from .check import audit_scores


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``audit``; ``main`` does what they say."""
    parser.add_argument("evaluator", metavar="MODULE:FUNCTION", help="tokens -> losses or logits")
    parser.add_argument(
        "--data", required=True, metavar="FILE", help="a UTF-8 file; of a folder, the longest"
    )
    parser.add_argument("--bytes", type=int, default=512, help="read so many (default %(default)s)")
    parser.add_argument("--vocabulary", type=int, default=256, metavar="V", help="default 256")
    parser.add_argument("--tolerance", type=float, default=0.0, help="0 (default): every bit")
    parser.add_argument("--seed", type=int, default=0, help="of the changes (default 0)")


def main(args: argparse.Namespace) -> int:
    """Print what was checked and found. 0: no leak; 1: a leak.

    Raises ValueError, TypeError or OSError, in words, for what cannot be audited.
    """
    evaluator = imported(args.evaluator)
    if args.bytes < 1:
        raise ValueError(f"--bytes must be at least 1, got {args.bytes}")
    documents = read(args.data).documents
    if not documents:
        raise ValueError(f"no text at {args.data!r}: give a UTF-8 file")
    name, data = max(documents, key=lambda d: len(d.data))
    report = audit_scores(
        evaluator,
        data[: args.bytes],
        vocabulary=args.vocabulary,
        tolerance=args.tolerance,
        seed=args.seed,
    )
    print(f"{args.evaluator} on {min(args.bytes, len(data)):,} bytes of {name}")
    print(report)
    return 0 if report.ok else 1


def imported(name: str) -> Any:
    """The function behind MODULE:FUNCTION, looked for in the current folder too.

    Raises ValueError if there is none.
    """
    module, function = (*name.split(":", 1), "")[:2]
    if not (module and function):
        raise ValueError(f"the evaluator must be named MODULE:FUNCTION, got {name!r}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return getattr(importlib.import_module(module), function)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise
        raise ValueError(
            f"no module {error.name!r} here or installed, asked for {name!r}"
        ) from None
    except AttributeError:
        raise ValueError(f"{module!r} has no {function!r}, asked for {name!r}") from None
