"""The command line: ``python -m fwl_ref demo | train | evaluate | generate | golden | check``."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from . import __version__
from .backend import BACKENDS, BackendError
from .verify import golden

DATA_HELP = "'stdlib' (default), 'topics', or a UTF-8 file or folder of yours"


def main(argv: list[str] | None = None) -> int:
    """Run one command; 0 on success, 1 if a check failed, 2 on bad input (one line says what, and
    how to mend it).
    """
    args = parser().parse_args(argv)
    try:
        return args.run(args) or 0
    except (ValueError, TypeError, OSError, FloatingPointError, MemoryError, BackendError) as error:
        print(f"fwl_ref: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "\nfwl_ref: interrupted; demo and train go on from their last checkpoint when run again",
            file=sys.stderr,
        )
        return 130


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
    demo.add_argument("--data", default="stdlib", help=DATA_HELP)
    demo.add_argument(
        "--out", type=Path, default=Path("results"), help="folder for table, figure and models"
    )
    _add_backend(demo)
    demo.set_defaults(run=_demo)

    train = commands.add_parser("train", help="train a model on your text; run again to resume")
    train.add_argument("--data", default="stdlib", help=DATA_HELP)
    train.add_argument(
        "--out",
        type=Path,
        default=Path("results/model.npz"),
        help="checkpoint to write, and to resume from",
    )
    train.add_argument("--plain", action="store_true", help="without fast weights")
    train.add_argument(
        "--dialect", choices=("tf", "jax"), default="tf", help="which published program's block"
    )
    train.add_argument(
        "--first-order", action="store_true", help="stop the outer gradient at the memory's values"
    )
    for name, default in (
        ("steps", 600),
        ("batch", 4),
        ("window", 256),
        ("width", 128),
        ("layers", 3),
        ("heads", 2),
        ("seed", 0),
    ):
        train.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    train.add_argument("--rate", type=float, default=2e-3, help="peak learning rate, default 0.002")
    _add_backend(train)
    train.set_defaults(run=_train)

    evaluate = commands.add_parser(
        "evaluate", help="read documents with a trained model: static or adapting"
    )
    evaluate.add_argument("checkpoint", type=Path)
    evaluate.add_argument(
        "--data",
        default=None,
        help=f"{DATA_HELP}; left out: what the model was trained on, its test documents",
    )
    evaluate.add_argument(
        "--bytes", type=int, default=None, help="read at most this much of each document"
    )
    _add_backend(evaluate)
    evaluate.set_defaults(run=_evaluate)

    generate = commands.add_parser("generate", help="sample text after a prompt, adapting to it")
    generate.add_argument("checkpoint", type=Path)
    generate.add_argument(
        "--prompt", default="def ", help="text to start from, or @FILE to read it from a file"
    )
    generate.add_argument("--count", type=int, default=300, help="bytes to write")
    generate.add_argument("--temperature", type=float, default=0.7)
    generate.add_argument("--seed", type=int, default=0)
    generate.add_argument(
        "--no-adapt", action="store_true", help="do not write sampled bytes to the fast weights"
    )
    _add_backend(generate)
    generate.set_defaults(run=_generate)

    cases = commands.add_parser(
        "golden",
        help="cases of the block and of every rule, to check another implementation against",
    )
    golden.add_arguments(cases)
    cases.set_defaults(run=golden.main)

    check = commands.add_parser(
        "check",
        help="test this installation: every theorem on this machine, one report to send with a question",
    )
    check.add_argument("--no-demo", action="store_true", help="leave the quick demo out")
    check.add_argument("--out", type=Path, default=Path("results"), help="folder for the report")
    _add_backend(check)
    check.set_defaults(run=_check)
    return top


def _add_backend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        default="numpy",
        help="where to compute: numpy (default), or cupy on an NVIDIA GPU",
    )


def _demo(args: argparse.Namespace) -> None:
    from .demo.run import run_demo

    run_demo(args.out, args.data, args.quick, backend=args.backend)


def _train(args: argparse.Namespace) -> None:
    from .backend import backend_target
    from .files import check_writable
    from .lm import footprint
    from .lm.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
    from .lm.corpus import load_corpus, summary
    from .lm.model import Config, check_config
    from .lm.train import Progress, TrainSettings, begin, check_train_settings, on_backend, train

    config = Config(
        width=args.width,
        layers=args.layers,
        heads=args.heads,
        fast=not args.plain,
        dialect=args.dialect,
        first_order=args.first_order,
    )
    settings = TrainSettings(
        steps=args.steps, batch=args.batch, window=args.window, rate=args.rate, seed=args.seed
    )
    check_config(config)
    check_train_settings(settings)
    backend_target(args.backend)
    start = None
    if args.out.exists():
        found = load_checkpoint(args.out)
        was = found.config._asdict() | found.settings._asdict() | {"data": found.corpus}
        asked = config._asdict() | settings._asdict() | {"data": args.data}
        other = [
            f"{name} {was[name]}, not {value}"
            for name, value in asked.items()
            if was[name] != value
        ]
        if other:
            raise ValueError(
                f"{args.out} was trained with other settings ({'; '.join(other)}): give the same, or another --out"
            )
        start = found.progress
        if start.adam.step >= settings.steps:
            print(f"{args.out} is trained already, all {settings.steps} steps")
            return
        print(f"resuming {args.out} at step {start.adam.step} of {settings.steps}")
    check_writable(args.out.parent)

    def save(progress: Progress) -> None:
        save_checkpoint(args.out, Checkpoint(config, settings, args.data, progress))

    corpus = load_corpus(args.data)
    print(summary(corpus))
    need = footprint.training(config, settings.batch, settings.window)
    print(f"memory at the peak of a step, about {footprint.sentence(need)}")
    with footprint.explained("a training step", need, config, settings.window, settings.batch):
        start = (
            begin(config, settings, args.backend)
            if start is None
            else on_backend(start, args.backend)
        )
        train(corpus, config, settings, start=start, save=save)
    print(f"written: {args.out}")


def _evaluate(args: argparse.Namespace) -> None:
    from .backend import backend_target
    from .lm import evaluate, footprint
    from .lm.checkpoint import load_checkpoint
    from .lm.corpus import amount, load_corpus, omissions, summary
    from .lm.device import to_backend
    from .lm.reading import read, shown

    backend_target(args.backend)
    found = load_checkpoint(args.checkpoint)
    if args.data is None:
        corpus = load_corpus(found.corpus)
        documents, line = corpus.test, summary(corpus)
    else:
        documents, left_out = read(args.data)
        line = f"text {shown(args.data)}: {amount(documents)}{omissions(left_out)}"
    print(line)
    params, config, window = (
        to_backend(found.progress.params, args.backend),
        found.config,
        found.settings.window,
    )
    options = {"window": window, "limit": args.bytes}
    static = evaluate.Way(evaluate.static, params, config, options)
    ways = {"static": static}
    if config.fast:
        reset = static._replace(function=evaluate.fast_weights)
        carried = reset._replace(options=options | {"carried": True})
        ways = {
            "slow weights alone": static,
            "fast, reset every window": reset,
            "fast, carried": carried,
        }
    need = footprint.evaluation(config, window)
    with footprint.explained("reading a window", need, config, window):
        evaluate.print_table(documents, ways, f"(memory about {footprint.sentence(need)})")


def _generate(args: argparse.Namespace) -> None:
    from .lm.checkpoint import load_checkpoint
    from .lm.device import to_backend
    from .lm.generate import generate

    found = load_checkpoint(args.checkpoint)
    prompt = (
        Path(args.prompt[1:]).read_bytes()
        if args.prompt.startswith("@")
        else os.fsencode(args.prompt)
    )
    text = generate(
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
