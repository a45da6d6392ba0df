"""``python -m fwl_ref train``: train a model on your text, go on with one, start from another."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from ...backend import backend_target
from ...checks import NORMALIZERS
from ...files import reserved
from .. import footprint
from ..adamw import cosine
from ..checkpoint import load_checkpoint
from ..corpus import Corpus, load_corpus, summary
from ..model import DIALECTS, Config, check_config
from ..ranks import Ranks, from_first, own_device, rows
from ..resume import (
    CONFIG,
    SCRATCH,
    TRAINING,
    Origin,
    begin_from,
    origin_of,
    resume,
    train_towards,
)
from ..train import SAVE_EVERY, Progress, TrainSettings, check_train_settings
from .common import add_backend, add_data

MODEL = Path("results") / "model.npz"
CHOICES = {"dialect": tuple(DIALECTS), "normalizer": NORMALIZERS}
WORDS = {  # every field of Config and of TrainSettings
    "width": "of the model",
    "layers": "of the trunk",
    "heads": "of attention",
    "vocabulary": "of the embedding; text is bytes, so 256 or more",
    "attention_window": "keys that a byte may look back on, itself among them; none: the window",
    "fast": "with fast weights",
    "dialect": "which published program's block",
    "normalizer": "what divides the gradients that are written",
    "constant": "the constant normalizer",
    "chunk": "bytes per chunk of linear attention, which changes the time alone; none: the window",
    "first_order": "stop the outer gradient at the memory's values",
    "steps": "of AdamW; more than are done go on with a model that is trained",
    "batch": "windows per step",
    "window": "bytes per window",
    "rate": "peak learning rate",
    "warmup": "steps until the learning rate is at its peak",
    "weight_decay": "of AdamW, on matrices",
    "clip": "largest norm of the gradient of the weights, and of that of step sizes and decay",
    "step_size": "where the six learned step sizes start",
    "decay": "where the learned decay starts",
    "seed": "of parameters and order of text",
    "nonnegative": "keep step sizes from changing sign",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``train``; ``main`` does what they say."""
    add_data(parser, "stdlib")
    parser.add_argument(
        "--out",
        type=Path,
        default=MODEL,
        help="checkpoint to write, and to resume from (default: %(default)s)",
    )
    parser.add_argument(
        "--from",
        dest="origin",
        type=Path,
        metavar="MODEL",
        help="start from the parameters of MODEL; settings that are not given are those of MODEL",
    )
    parser.add_argument(
        "--save-every",
        type=int,
        default=SAVE_EVERY,
        metavar="STEPS",
        help="how often to save (default: %(default)s); the last step is always saved",
    )
    parser.add_argument(
        "--plain",
        dest="fast",
        action="store_false",
        default=argparse.SUPPRESS,
        help="without fast weights, the same as --no-fast",
    )
    for kind, defaults in ((Config, CONFIG), (TrainSettings, TRAINING)):
        _add_fields(parser, kind, defaults)
    add_backend(parser)


class Plan(NamedTuple):
    """What is to be trained; the same on every rank."""

    config: Config
    settings: TrainSettings
    corpus: Corpus
    start: Progress | None  # None: from scratch
    origin: Origin


def main(args: argparse.Namespace) -> None:
    """Train to the number of steps asked for.

    Where there are several ranks, the first one reads all files, tells the others what is in them,
    and writes.

    Raises ValueError, TypeError, OSError, FloatingPointError or MemoryError, in words.
    """
    ranks: Ranks = args.ranks
    own_device(ranks, args.backend)
    with reserved(args.out) if ranks.first else nullcontext():
        plan = from_first(ranks, _plan(args, ranks) if ranks.first else None)
        if plan is None:
            return
        config, settings, corpus, start, origin = plan
        train_towards(
            args.out,
            config,
            settings,
            corpus,
            start,
            backend=args.backend,
            origin=origin,
            ranks=ranks,
            save_every=args.save_every,
        )
    print(f"written: {args.out}")


def _plan(args: argparse.Namespace, ranks: Ranks) -> Plan | None:
    """What the arguments and the files say; None if it is trained already."""
    found = load_checkpoint(args.origin) if args.origin else None
    config = (found.config if found else CONFIG)._replace(**_given(args, Config))
    settings = (found.settings if found else TRAINING)._replace(**_given(args, TrainSettings))
    check_config(config)
    check_train_settings(settings)
    if args.save_every < 1:
        raise ValueError(f"--save-every must be at least 1 step, got {args.save_every}")
    backend_target(args.backend)
    batch = len(range(settings.batch)[rows(ranks, settings.batch)])  # of the first rank
    origin = origin_of(found) if found else SCRATCH
    corpus = load_corpus(args.data)
    start = resume(args.out, config, settings, corpus, extend=True, origin=origin)
    if start is not None and start.adam.step >= settings.steps:
        print(f"{args.out} is trained already, all {settings.steps} steps")
        return None
    if start is not None:
        print(_going_on(args.out, settings))
    elif found:
        start = begin_from(found, config, settings)
        print(f"starting from {args.origin}, trained for {found.progress.adam.step} steps")
    print(summary(corpus))
    together = None if args.backend == "numpy" else batch
    need = footprint.training(config, batch, settings.window, together=together)
    each = "" if ranks.size == 1 else f" of each of {ranks.size} ranks"
    print(f"memory at the peak of a step{each}, about {footprint.sentence(need)}", flush=True)
    return Plan(config, settings, corpus, start, origin)


def _going_on(path: Path, s: TrainSettings) -> str:
    """That training goes on, and if to another number of steps than was planned, what follows."""
    found = load_checkpoint(path)
    done, planned = found.progress.adam.step, found.settings.steps
    line = f"resuming {path} at step {done} of {s.steps}"
    if planned != s.steps:
        line += f"; {planned} were planned"
    rates = ([cosine(i, n, s.warmup) for i in range(done)] for n in (planned, s.steps))
    if next(rates) == next(rates):
        return line
    return (
        f"{line}. From here on the learning rate is that of a training of {s.steps} steps, so the "
        f"model will not be the one of {s.steps} steps in one go"
    )


def _given(args: argparse.Namespace, kind: type) -> dict[str, Any]:
    """The fields of a NamedTuple that were given on the command line."""
    return {name: value for name, value in vars(args).items() if name in get_type_hints(kind)}


def _add_fields(parser: argparse.ArgumentParser, kind: type, defaults: NamedTuple) -> None:
    """An option for every field of a NamedTuple, with its type; what is not given stays away from
    the arguments, so that it can come from another model.
    """
    for name, hint in get_type_hints(kind).items():
        default = getattr(defaults, name)
        word = "none" if default is None else default
        options: dict[str, Any] = {"type": hint, "choices": CHOICES.get(name)}
        if hint is bool:
            options = {"action": argparse.BooleanOptionalAction}
        elif hint == int | None:
            options = {"type": number_or_none}
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            default=argparse.SUPPRESS,
            help=f"{WORDS[name]} (default: {word})",
            **options,
        )


def number_or_none(text: str) -> int | None:
    """An int, or None for "none"."""
    return None if text == "none" else int(text)
