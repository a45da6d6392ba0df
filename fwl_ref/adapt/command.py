"""``python -m fwl_ref adapt``: a real model reads documents, as it is and adapting."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..backend import backend_target
from ..lm.commands.common import DEFAULT, add_backend
from ..pretrained.load import SMOLLM2, load, smollm2_path
from .documents import count, load_texts, load_unseen
from .run import run
from .settings import Settings, check_settings, settings_for
from .store import Store, digest_of

TEXTS = ("stdlib", "topics")
GIB = 2**30
HELP = {
    "length": "tokens of a document at most",
    "window": "tokens that the model's attention sees",
    "test": "test documents of each text",
    "validation": "validation documents of each text",
    "train_tokens": "training tokens of all texts together",
    "train_length": "tokens of a training sequence",
    "steps": "training steps",
    "batch": "training sequences a step",
    "rate": "learning rate, in units of what is learned",
    "full": "documents of each text for dynamic evaluation of all parameters; 0 = none",
    "tune_length": "tokens of a validation document on which rates of dynamic evaluation are tuned",
    "segment": "tokens between two steps of dynamic evaluation",
    "refresh": "tokens between two true gradient steps of the layer",
    "seed": "of training, and of the training text that whitening is measured on",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``adapt``; ``main`` does what they say."""
    parser.add_argument(
        "--model", default=SMOLLM2, help="'smollm2', a .gguf file, or a folder" + DEFAULT
    )
    parser.add_argument(
        "--data",
        action="append",
        help="'stdlib', 'topics', or a UTF-8 file or folder of yours; may be given several times "
        "(default: stdlib and topics)",
    )
    parser.add_argument(
        "--unseen",
        action="append",
        help="a UTF-8 file or folder to test on as well, of which nothing is trained or tuned; may "
        "be given several times",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        default=(),
        metavar="WORD",
        help="only rows whose names contain one of these, or are one of them, and what they need",
    )
    parser.add_argument("--quick", action="store_true", help="minutes: figures that mean little")
    parser.add_argument(
        "--out", type=Path, default=Path("results/adapt"), help="folder of the results" + DEFAULT
    )
    parser.add_argument(
        "--cache", type=Path, default=None, help="folder of features (default: in the results)"
    )
    parser.add_argument("--no-cache", action="store_true", help="keep features in memory only")
    parser.add_argument(
        "--cache-limit", type=float, default=8.0, help="GiB that it may hold" + DEFAULT
    )
    for name, what in HELP.items():
        kind = float if name == "rate" else int
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=None, help=what)
    parser.add_argument("--contexts", type=int, nargs="+", help="longer windows of the model")
    add_backend(parser)


def main(args: argparse.Namespace) -> int:
    """Make the table; 1 if a row could not be made.

    Raises ValueError, OSError or BackendError, in words.
    """
    settings = asked(args)
    check_settings(settings)
    backend_target(args.backend)
    model = load(args.model)
    if model.tokenizer is None:
        raise ValueError(f"{model.path}: there is no tokenizer.json, so no text can be read")
    names = list(dict.fromkeys(args.data or TEXTS))
    texts = []
    left = settings.train_tokens
    for i, name in enumerate(reversed(names)):
        share = left // (len(names) - i)  # what a small text leaves goes to those before it
        s = settings
        texts.append(load_texts(name, model.tokenizer, s.length, s.validation, s.test, share))
        left -= min(share, count(texts[-1].train))
    texts.reverse()
    texts += [
        load_unseen(name, model.tokenizer, settings.length, settings.test, texts)
        for name in dict.fromkeys(args.unseen or ())
    ]
    folder = None if args.no_cache else args.cache or args.out / "features"
    path = smollm2_path() if args.model == SMOLLM2 else args.model
    store = Store(folder, digest_of(str(path)), int(args.cache_limit * GIB))
    outcome = run(model, texts, settings, store, args.out, args.backend, args.only)
    return 1 if outcome.failures else 0


def asked(args: argparse.Namespace) -> Settings:
    """The settings of the size that was asked for, with what was given in their place."""
    settings = settings_for(args.backend, args.quick)
    given = {name: getattr(args, name) for name in HELP if getattr(args, name) is not None}
    settings = settings._replace(**given)
    contexts = tuple(args.contexts) if args.contexts else settings.contexts
    if not args.contexts:  # a document shorter than a context has none
        contexts = tuple(c for c in contexts if c <= settings.length) or (2 * settings.window,)
    long = settings.long if settings.long in contexts else contexts[0]
    return settings._replace(contexts=contexts, long=long)
