"""The command line: ``python -m fwl_ref COMMAND``; ``parser`` has the commands."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any

from . import __version__
from .adapt import command as adapting
from .audit import command as audit
from .backend import BackendError
from .lm.commands import evaluate as evaluation
from .lm.commands import generate as generation
from .lm.commands import train as training
from .lm.commands.common import DEFAULT, add_backend, add_data, say
from .lm.ranks import ALONE, end_all, first_one_first, started, workers
from .study import command as study
from .testing import command as kernel
from .verify import golden

RESULTS = Path("results")
MISTAKES = (ValueError, TypeError, OSError, FloatingPointError, MemoryError, BackendError)
SPREAD = ("train", "evaluate", "demo", "study")  # what several ranks do together
AFTER_ROW = "; every finished row and training step is saved, and the next run goes on from there"
GOING_ON = "; every finished step is saved, and training goes on from there when run again"


def main(argv: list[str] | None = None) -> int:
    """Run one command; 0 on success, 1 if a check failed, 2 on bad input (one line says what, and
    how to mend it), 128 + N if signal N ended it.

    Where ``mpiexec`` has started several ranks, one that does not succeed ends all.
    """
    args = parser().parse_args(argv)
    args.ranks = ALONE
    try:
        status = _status(args)
    except BaseException:
        if args.ranks.size > 1:
            traceback.print_exc()
        end_all(args.ranks, 1)
        raise
    if status:
        end_all(args.ranks, status)
    return status


def _status(args: argparse.Namespace) -> int:
    """Run the command, with words for what goes wrong."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # what an encoding lacks is no reason to lose the text
            stream.reconfigure(errors="backslashreplace")
    going_on = GOING_ON if args.command in ("train", "demo") else ""
    going_on = AFTER_ROW if args.command in ("adapt", "study") else going_on
    try:
        with _signals_as_exceptions(), ExitStack() as kept:
            if args.command in SPREAD:
                args.ranks = started()
                kept.enter_context(first_one_first(args.ranks))
            if not args.ranks.first:
                kept.enter_context(redirect_stdout(None))
            status = args.run(args) or 0
            if sys.stdout is not None:
                sys.stdout.flush()
            return status
    except BrokenPipeError:  # nobody reads on: say no more, also when Python ends
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # 128 + SIGPIPE, which Windows does not have
    except MISTAKES as error:
        place = "" if args.ranks.first else f"rank {args.ranks.number} of {args.ranks.size}: "
        say(f"fwl_ref: {place}{' '.join(str(error).split()) or type(error).__name__}")
        return 2
    except KeyboardInterrupt:
        if args.ranks.first:
            say(f"\nfwl_ref: interrupted{going_on}")
        return 128 + signal.SIGINT
    except Ended as ended:
        if args.ranks.first:
            say(f"\nfwl_ref: ended by {signal.Signals(ended.number).name}{going_on}")
        return 128 + ended.number


class Ended(BaseException):
    """A signal asks this process to end; ``number`` says which."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def _signals_as_exceptions() -> Iterator[None]:
    """A closed terminal (SIGHUP) or a request to end (SIGTERM) becomes an exception, so that work
    can be saved. A signal that is ignored, as under nohup, stays ignored.
    """

    def end(number: int, _: Any) -> None:
        raise Ended(number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGHUP", "SIGTERM"):
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            if number is not None and signal.getsignal(number) == signal.SIG_DFL:
                before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(
        prog="fwl_ref",
        description="Fast weight layers and dynamic evaluation, every gradient by hand.",
    )
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(dest="command", required=True, metavar="command")

    demo = commands.add_parser(
        "demo", help="train a plain and a fast model on real text and compare nine ways of reading"
    )
    demo.add_argument(
        "--quick",
        action="store_true",
        help="a minute's version: reads the standard library with models that come with the "
        "package; on other text trains briefly, and the figures mean little",
    )
    add_data(demo, "stdlib")
    _add_out(demo, RESULTS, "folder for table, figure and models")
    add_backend(demo)
    demo.set_defaults(run=_demo)

    plan = commands.add_parser(
        "study", help="what fast weights buy on real text: many runs, resumable, and a page"
    )
    study.add_arguments(plan)
    plan.set_defaults(run=study.main)

    train = commands.add_parser(
        "train", help="train a model on your text; run again to resume, with more --steps to go on"
    )
    training.add_arguments(train)
    train.set_defaults(run=training.main)

    evaluate = commands.add_parser(
        "evaluate", help="read documents with a trained model: static or adapting"
    )
    evaluation.add_arguments(evaluate)
    evaluate.set_defaults(run=evaluation.main)

    adapt = commands.add_parser(
        "adapt", help="a real model reads documents: as it is, with fast weights, with a cache, ..."
    )
    adapting.add_arguments(adapt)
    adapt.set_defaults(run=adapting.main)

    sample = commands.add_parser("generate", help="sample text after a prompt, adapting to it")
    generation.add_arguments(sample)
    sample.set_defaults(run=generation.main)

    cases = commands.add_parser(
        "golden",
        help="cases of the block, every rule and two ops, to check another implementation against",
    )
    golden.add_arguments(cases)
    cases.set_defaults(run=golden.main)

    legal = commands.add_parser(
        "audit", help="is every score of an evaluator of yours made before its label was seen?"
    )
    audit.add_arguments(legal)
    legal.set_defaults(run=audit.main)
    mine = commands.add_parser(
        "kernel", help="property tests of your kernel against a rule, and what is wrong with it"
    )
    kernel.add_arguments(mine)
    mine.set_defaults(run=kernel.main)

    check = commands.add_parser(
        "check",
        help="test this installation: every theorem here, one report to send with a question",
    )
    check.add_argument("--no-demo", action="store_true", help="leave the quick demo out")
    _add_out(check, RESULTS, "folder for the report")
    add_backend(check)
    check.set_defaults(run=_check)
    return top


def _add_out(parser: argparse.ArgumentParser, default: Path, what: str) -> None:
    parser.add_argument("--out", type=Path, default=default, help=what + DEFAULT)


def _demo(args: argparse.Namespace) -> None:
    from .demo.run import run_demo

    with workers(args.ranks, args.backend) as pool:
        if args.ranks.first:
            run_demo(args.out, args.data, args.quick, backend=args.backend, pool=pool)


def _check(args: argparse.Namespace) -> int:
    from .verify.selftest import run_checks

    return run_checks(args.backend, args.out, demo=not args.no_demo)


if __name__ == "__main__":
    sys.exit(main())
