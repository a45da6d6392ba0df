"""``python -m fwl_ref generate``: sample text after a prompt, adapting to it."""

from __future__ import annotations

import argparse
import os
import shutil
from inspect import signature
from pathlib import Path

from .. import generate as generation
from ..checkpoint import Checkpoint, fingerprint_of, load_checkpoint
from ..device import to_backend
from ..evaluate import with_step_size
from ..side_by_side import side_by_side
from ..state import Adapted, load_state, save_state
from .common import DEFAULT, add_backend, outputs, remark

SAMPLING = signature(generation.generate).parameters
PROMPT = "def "
SHOWN = 200  # bytes of the prompt's end
MARK = "▸"  # between the prompt and what was sampled


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``generate``; ``main`` does what they say."""
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument(
        "--prompt",
        help="text to start from, or @FILE to read it from a file "
        f"(default: {PROMPT!r}, or nothing where --state goes on with a text)",
    )
    parser.add_argument("--count", type=int, default=300, help="bytes to write" + DEFAULT)
    for name, what in (("temperature", "0 takes the likeliest byte"), ("seed", "of the draws")):
        default = SAMPLING[name].default
        parser.add_argument(f"--{name}", type=type(default), default=default, help=what + DEFAULT)
    parser.add_argument(
        "--no-adapt", action="store_true", help="do not write sampled bytes to the fast weights"
    )
    parser.add_argument(
        "--compare",
        action="store_true",
        help="beside it, what the slow weights alone write: the same model before it adapts",
    )
    parser.add_argument(
        "--state",
        type=Path,
        metavar="FILE",
        help="go on from the memory in FILE, and leave the new one there; what `generate` left "
        "goes on with its text",
    )
    add_backend(parser)


def main(args: argparse.Namespace) -> None:
    """Print the end of the prompt, a mark, and the sampled text.

    Raises ValueError, OSError or FloatingPointError, in words.
    """
    found = load_checkpoint(args.checkpoint)
    with outputs(args.state, beside=[args.checkpoint]):
        _generate(args, found)


def _generate(args: argparse.Namespace, found: Checkpoint) -> None:
    config, window = found.config, found.settings.window
    generation.check_sampling(args.count, args.temperature, args.seed, window)
    params = to_backend(found.progress.params, args.backend)
    memory = Adapted(generation.reader_start(params), 0)
    if args.state and args.state.exists():
        kept = load_state(args.state, found.progress.params, config, window)
        memory = Adapted(to_backend(kept.reader, args.backend), kept.size)
    goes_on = memory.reader.last is not None
    prompt = _prompt(args.prompt, "" if goes_on else PROMPT)
    if not prompt and not goes_on:
        raise ValueError(
            "the prompt must hold at least 1 byte: the first prediction is made from it"
        )
    reader = generation.read_text(params, config, memory.reader, prompt, window)
    options = {"window": window, "temperature": args.temperature, "seed": args.seed, "quiet": False}
    before = b""
    if args.compare:
        slow = with_step_size(params, 0.0, 0.0)
        before, _ = generation.write_text(slow, config, reader, args.count, adapt=False, **options)
    text, reader = generation.write_text(
        params, config, reader, args.count, adapt=not args.no_adapt, **options
    )
    tail = prompt[-SHOWN:].decode("utf-8", "replace")
    shown = [f"{tail}{MARK}{sampled.decode('utf-8', 'replace')}" for sampled in (before, text)]
    if args.compare:
        width = shutil.get_terminal_size((100, 24)).columns
        titles = ("before: slow weights alone", "after: adapted")
        print(side_by_side(titles, (shown[0], shown[1]), width))
    else:
        print(shown[1])
    if args.state:
        size = memory.size + len(prompt) + len(text)
        save_state(args.state, Adapted(reader, size), fingerprint_of(found.progress.params))
        print(remark(args.state, size, found.progress.params.decay))


def _prompt(given: str | None, default: str) -> bytes:
    """The bytes of ``--prompt``: as typed, or those of the file behind an @."""
    text = default if given is None else given
    return Path(text[1:]).read_bytes() if text.startswith("@") else os.fsencode(text)
