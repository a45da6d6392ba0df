"""The command line: ``python -m fwl_ref COMMAND``; ``parser`` has the commands."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

from . import __version__
from .audit import command as audit
from .backend import BACKENDS, BackendError
from .lm import generate as generation
from .lm.model import DIALECTS
from .lm.resume import CONFIG, TRAINING
from .testing import command as kernel
from .verify import golden

RESULTS = Path("results")
SAMPLING = signature(generation.generate).parameters
MISTAKES = (ValueError, TypeError, OSError, FloatingPointError, MemoryError, BackendError)
GOING_ON = "; every finished step is saved, and training goes on from there when run again"


def main(argv: list[str] | None = None) -> int:
    """Run one command; 0 on success, 1 if a check failed, 2 on bad input (one line says what, and
    how to mend it), 128 + N if signal N ended it.
    """
    args = parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # what an encoding lacks is no reason to lose the text
            stream.reconfigure(errors="backslashreplace")
    going_on = GOING_ON if args.command in ("train", "demo") else ""
    try:
        with _signals_as_exceptions():
            status = args.run(args) or 0
            if sys.stdout is not None:
                sys.stdout.flush()
            return status
    except BrokenPipeError:  # nobody reads on: say no more, also when Python ends
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # 128 + SIGPIPE, which Windows does not have
    except MISTAKES as error:
        _say(f"fwl_ref: {' '.join(str(error).split()) or type(error).__name__}")
        return 2
    except KeyboardInterrupt:
        _say(f"\nfwl_ref: interrupted{going_on}")
        return 128 + signal.SIGINT
    except Ended as ended:
        _say(f"\nfwl_ref: ended by {signal.Signals(ended.number).name}{going_on}")
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


def _say(line: str) -> None:
    """A line on standard error, if anybody can see it."""
    if sys.stderr is not None:
        with suppress(OSError):
            print(line, file=sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(
        prog="fwl_ref",
        description="Fast weight layers and dynamic evaluation, every gradient by hand.",
    )
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(dest="command", required=True, metavar="command")

    demo = commands.add_parser(
        "demo", help="train a plain and a fast model on real text and compare seven ways of reading"
    )
    demo.add_argument(
        "--quick",
        action="store_true",
        help="a minute's version: same output, figures that mean little",
    )
    _add_data(demo, "stdlib")
    _add_out(demo, RESULTS, "folder for table, figure and models")
    _add_backend(demo)
    demo.set_defaults(run=_demo)

    train = commands.add_parser("train", help="train a model on your text; run again to resume")
    _add_data(train, "stdlib")
    _add_out(train, RESULTS / "model.npz", "checkpoint to write, and to resume from")
    train.add_argument("--plain", action="store_true", help="without fast weights")
    train.add_argument(
        "--first-order", action="store_true", help="stop the outer gradient at the memory's values"
    )
    _add_fields(train, CONFIG, MODEL_OPTIONS)
    _add_fields(train, TRAINING, TRAINING_OPTIONS)
    _add_backend(train)
    train.set_defaults(run=_train)

    evaluate = commands.add_parser(
        "evaluate", help="read documents with a trained model: static or adapting"
    )
    evaluate.add_argument("checkpoint", type=Path)
    _add_data(evaluate, None, "; left out: what the model was trained on, its test documents")
    evaluate.add_argument(
        "--bytes", type=int, default=None, help="read at most this much of each document"
    )
    _add_backend(evaluate)
    evaluate.set_defaults(run=_evaluate)

    sample = commands.add_parser("generate", help="sample text after a prompt, adapting to it")
    sample.add_argument("checkpoint", type=Path)
    sample.add_argument(
        "--prompt",
        default="def ",
        help="text to start from, or @FILE to read it from a file (default: %(default)r)",
    )
    sample.add_argument("--count", type=int, default=300, help="bytes to write" + DEFAULT)
    for name, what in (("temperature", "0 takes the likeliest byte"), ("seed", "of the draws")):
        default = SAMPLING[name].default
        sample.add_argument(f"--{name}", type=type(default), default=default, help=what + DEFAULT)
    sample.add_argument(
        "--no-adapt", action="store_true", help="do not write sampled bytes to the fast weights"
    )
    _add_backend(sample)
    sample.set_defaults(run=_generate)

    cases = commands.add_parser(
        "golden",
        help="cases of the block and of every rule, to check another implementation against",
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
    _add_backend(check)
    check.set_defaults(run=_check)
    return top


DEFAULT = " (default: %(default)s)"
MODEL_OPTIONS = {
    "width": "of the model",
    "layers": "of the trunk",
    "heads": "of attention",
    "dialect": "which published program's block",
}
TRAINING_OPTIONS = {
    "steps": "of AdamW",
    "batch": "windows per step",
    "window": "bytes per window",
    "rate": "peak learning rate",
    "seed": "of parameters and order of text",
}


def _add_fields(
    parser: argparse.ArgumentParser, defaults: NamedTuple, options: dict[str, str]
) -> None:
    """An option for each of the named fields of a NamedTuple, with its type and value there."""
    for name, what in options.items():
        default = getattr(defaults, name)
        choices = tuple(DIALECTS) if name == "dialect" else None
        parser.add_argument(
            f"--{name}", type=type(default), default=default, choices=choices, help=what + DEFAULT
        )


def _add_data(parser: argparse.ArgumentParser, default: str | None, more: str = DEFAULT) -> None:
    text = "'stdlib', 'topics', or a UTF-8 file or folder of yours"
    parser.add_argument("--data", default=default, help=text + more)


def _add_out(parser: argparse.ArgumentParser, default: Path, what: str) -> None:
    parser.add_argument("--out", type=Path, default=default, help=what + DEFAULT)


def _add_backend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        default="numpy",
        help="where to compute; cupy is an NVIDIA GPU" + DEFAULT,
    )


def _demo(args: argparse.Namespace) -> None:
    from .demo.run import run_demo

    run_demo(args.out, args.data, args.quick, backend=args.backend)


def _train(args: argparse.Namespace) -> None:
    from .backend import backend_target
    from .files import reserved
    from .lm import footprint
    from .lm.corpus import load_corpus, summary
    from .lm.model import check_config
    from .lm.resume import resume, train_towards
    from .lm.train import check_train_settings

    given = {name: getattr(args, name) for name in MODEL_OPTIONS}
    config = CONFIG._replace(fast=not args.plain, first_order=args.first_order, **given)
    settings = TRAINING._replace(**{name: getattr(args, name) for name in TRAINING_OPTIONS})
    check_config(config)
    check_train_settings(settings)
    backend_target(args.backend)
    with reserved(args.out):
        corpus = load_corpus(args.data)
        start = resume(args.out, config, settings, corpus)
        if start is not None and start.adam.step >= settings.steps:
            print(f"{args.out} is trained already, all {settings.steps} steps")
            return
        if start is not None:
            print(f"resuming {args.out} at step {start.adam.step} of {settings.steps}")
        print(summary(corpus))
        together = None if args.backend == "numpy" else settings.batch
        need = footprint.training(config, settings.batch, settings.window, together=together)
        print(f"memory at the peak of a step, about {footprint.sentence(need)}", flush=True)
        train_towards(args.out, config, settings, corpus, start, backend=args.backend)
    print(f"written: {args.out}")


def _evaluate(args: argparse.Namespace) -> None:
    from .backend import backend_target
    from .lm import evaluate, footprint
    from .lm.checkpoint import load_checkpoint
    from .lm.corpus import amount, load_corpus, omissions, readable, summary
    from .lm.device import to_backend
    from .lm.reading import read, shown
    from .lm.resume import known, known_all

    backend_target(args.backend)
    found = load_checkpoint(args.checkpoint)
    config, window = found.config, found.settings.window
    params = to_backend(found.progress.params, args.backend)
    if args.data is None:
        corpus = load_corpus(found.text.source)
        documents, line = list(corpus.test), summary(corpus)
        note = known(found.text, corpus)
    else:
        documents, left_out = readable(*read(args.data))
        line = f"text {shown(args.data)}: {amount(documents)}{omissions(left_out)}"
        note = known_all(found.text, args.data, documents)
    print(line, flush=True)
    if note.startswith("warning"):
        _say(note)
        note = "test documents that may have been trained on"
    options = {"window": window, "limit": args.bytes}
    static = evaluate.Way(evaluate.static, params, config, options)
    ways = {"static": static}
    if config.fast:
        reset = static._replace(function=evaluate.fast_weights)
        ways = {
            "slow weights alone": static,
            "fast, reset every window": reset,
        }
        if config.normalizer == "constant":
            ways["fast, carried"] = reset._replace(options=options | {"carried": True})
        else:
            _say(
                f"no column for carried fast weights: the normalizer {config.normalizer!r} looks "
                "at a whole window, so nothing can be carried from one window to the next"
            )
    need = footprint.evaluation(config, window)
    with footprint.explained("reading a window", need, config, window):
        memory = f"memory about {footprint.sentence(need)}"
        evaluate.print_table(documents, ways, f"({memory}; {note})")


def _generate(args: argparse.Namespace) -> None:
    from .lm.checkpoint import load_checkpoint
    from .lm.device import to_backend

    found = load_checkpoint(args.checkpoint)
    prompt = os.fsencode(args.prompt)
    if args.prompt.startswith("@"):
        prompt = Path(args.prompt[1:]).read_bytes()
    text = generation.generate(
        to_backend(found.progress.params, args.backend),
        found.config,
        prompt,
        args.count,
        window=found.settings.window,
        temperature=args.temperature,
        seed=args.seed,
        adapt=not args.no_adapt,
        quiet=False,
    )
    print((prompt[-200:] + text).decode("utf-8", "replace"))


def _check(args: argparse.Namespace) -> int:
    from .verify.selftest import run_checks

    return run_checks(args.backend, args.out, demo=not args.no_demo)


if __name__ == "__main__":
    sys.exit(main())
