"""``python -m fwl_ref study``: run what is left of the plan, and write the page."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..lm.commands.common import DEFAULT
from ..lm.ranks import workers
from .run import MINUTES, run_study
from .settings import FULL


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``study``; ``main`` does what they say."""
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("results/study"),
        help="folder of results, models and losses; all ranks have to see it" + DEFAULT,
    )
    parser.add_argument(
        "--page", type=Path, help="the page to write (default: study.md in that folder)"
    )
    limit = parser.add_mutually_exclusive_group()
    limit.add_argument(
        "--minutes",
        type=float,
        default=MINUTES,
        help="start no row that would end later; 0 only writes the page" + DEFAULT,
    )
    limit.add_argument("--full", action="store_true", help="the whole plan, however long it takes")


def main(args: argparse.Namespace) -> int:
    """Run the study; 0. Raises as ``run_study``."""
    minutes = None if args.full else args.minutes
    with workers(args.ranks) as pool:
        if args.ranks.first:
            at_once = args.ranks.size - 1 if pool is not None else None
            run_study(args.out, args.page, minutes, FULL, pool, at_once)
    return 0
