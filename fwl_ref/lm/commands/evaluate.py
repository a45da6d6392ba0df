"""``python -m fwl_ref evaluate``: bits per byte of every document, static and adapting."""

from __future__ import annotations

import argparse
from concurrent.futures import Executor
from pathlib import Path

from ...backend import backend_target
from ...slow_block import FastParameters
from ...stream import Stream
from .. import footprint, table
from ..checkpoint import Checkpoint, fingerprint_of, load_checkpoint
from ..context import Context
from ..corpus import amount, load_corpus, omissions, readable, summary
from ..data import Document
from ..device import to_backend
from ..evaluate import Way, carry, fast_weights, static
from ..generate import Reader
from ..ranks import workers
from ..reading import read, shown
from ..resume import known, known_all
from ..seen import seen, warning
from ..state import Adapted, load_state, save_state
from .common import add_backend, add_data, outputs, remark, say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``evaluate``; ``main`` does what they say."""
    parser.add_argument("checkpoint", type=Path)
    add_data(parser, None, "; left out: what the model was trained on, its test documents")
    parser.add_argument(
        "--bytes", type=int, default=None, help="read at most this much of each document"
    )
    parser.add_argument(
        "--plain",
        type=Path,
        metavar="MODEL",
        help="a model that was trained with --plain: the first column, against which gains count",
    )
    parser.add_argument(
        "--state",
        type=Path,
        metavar="FILE",
        help="go on from the memory in FILE, from one document to the next, and leave the new "
        "memory there; a new file starts with an empty one",
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="a line for each document")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the table with its totals")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="a picture of the table, PNG")
    add_backend(parser)


def main(args: argparse.Namespace) -> None:
    """Print the table, and save what was asked for.

    Raises ValueError, OSError or FloatingPointError, in words.
    """
    with workers(args.ranks, args.backend) as pool:
        if args.ranks.first:
            _read(args, pool)


def _read(args: argparse.Namespace, pool: Executor | None) -> None:
    files = args.csv, args.json, args.plot, args.state
    backend_target(args.backend)
    found = load_checkpoint(args.checkpoint)
    with outputs(*files, beside=[args.checkpoint, args.plain]):
        _evaluate(args, found, pool)


def _evaluate(args: argparse.Namespace, found: Checkpoint, pool: Executor | None) -> None:
    memory = _memory(args, found)
    ways = _ways(args, found)
    documents, line, note = _text(args, found)
    print(line, flush=True)
    if note.startswith("warning"):
        say(note)
        note = "test documents that may have been trained on"
    words = [seen(found.text, document) for document in documents]
    if warning(words):
        say(warning(words))
    config, window = found.config, found.settings.window
    need = footprint.evaluation(config, window)
    with footprint.explained("reading a window", need, config, window):
        start = None if memory is None else to_backend(memory.reader.stream.state, args.backend)
        about = f"({_gain(ways)}memory about {footprint.sentence(need)}; {note})"
        rows, state = table.print_table(documents, ways, about, words=words, state=start, pool=pool)
    if args.csv:
        table.save_text(args.csv, table.as_csv(rows))
    if args.json:
        facts = {"model": shown(args.checkpoint), "text": line, "window": window}
        table.save_text(args.json, table.as_json(rows, facts))
    if args.plot:
        from .. import table_plot  # matplotlib takes a second to load

        table_plot.save(args.plot, rows, window)
    if memory is not None:
        assert isinstance(state, FastParameters)  # a table has a row, and a row leaves a state
        size = memory.size + sum(len(next(iter(row.losses.values()))) for row in rows)
        reader = Reader(Stream(state, None), Context(), None)
        save_state(args.state, Adapted(reader, size), fingerprint_of(found.progress.params))
        print(remark(args.state, size, found.progress.params.decay))


def _text(args: argparse.Namespace, found: Checkpoint) -> tuple[list[Document], str, str]:
    """The documents, what they are, and whether they are new."""
    if args.data is None:
        corpus = load_corpus(found.text.source)
        return list(corpus.test), summary(corpus), known(found.text, corpus)
    documents, left_out = readable(*read(args.data))
    line = f"text {shown(args.data)}: {amount(documents)}{omissions(left_out)}"
    return documents, line, known_all(found.text, args.data, documents)


def _memory(args: argparse.Namespace, found: Checkpoint) -> Adapted | None:
    """Where ``--state`` starts; None if it was not given."""
    if args.state is None:
        return None
    if not found.config.fast:
        raise ValueError("--state is the memory of fast weights, and this model is a plain one")
    if found.config.normalizer != "constant":
        raise ValueError(
            f"--state needs the constant normalizer: {found.config.normalizer!r} looks at a whole "
            "window, so nothing can be carried from one to the next"
        )
    if args.state.exists():
        return load_state(args.state, found.progress.params, found.config, found.settings.window)
    return Adapted(Reader(Stream(None, None), Context(), None), 0)


def _ways(args: argparse.Namespace, found: Checkpoint) -> dict[str, Way]:
    """The columns: what does not adapt first, what adapts most last."""
    config, options = found.config, {"window": found.settings.window, "limit": args.bytes}
    params = to_backend(found.progress.params, args.backend)
    ways = {}
    if args.plain:
        ways["plain model"] = _plain(args, found)
    if not config.fast:
        return ways | {"static": Way(static, params, config, options)}
    ways |= {
        "slow weights alone": Way(static, params, config, options),
        "fast, reset every window": Way(fast_weights, params, config, options),
    }
    if config.normalizer != "constant":
        say(
            f"no column for carried fast weights: the normalizer {config.normalizer!r} looks "
            "at a whole window, so nothing can be carried from one window to the next"
        )
        return ways
    if args.state:
        return ways | {"fast, carried on": Way(carry, params, config, options)}
    carried = Way(fast_weights, params, config, options | {"carried": True})
    return ways | {"fast, carried": carried}


def _plain(args: argparse.Namespace, found: Checkpoint) -> Way:
    """The plain model, read in the windows of the other: the same context for both."""
    plain = load_checkpoint(args.plain)
    if plain.config.fast:
        raise ValueError(
            f"{args.plain} is a model with fast weights: --plain takes one trained with --plain"
        )
    if plain.text.fingerprint.train != found.text.fingerprint.train:
        say(
            f"warning: {args.plain} was trained on other text, so the gain is not of adapting alone"
        )
    options = {"window": found.settings.window, "limit": args.bytes}
    return Way(static, to_backend(plain.progress.params, args.backend), plain.config, options)


def _gain(ways: dict[str, Way]) -> str:
    first, *others = ways
    return f"gain: bits that {others[-1]!r} saves of {first!r}; " if others else ""
