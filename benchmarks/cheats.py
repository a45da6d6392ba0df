"""Seven ways to cheat at test-time training, each beside its honest counterpart: the figures of
docs/audit.md, and the teeth of the audit's tests.

    python benchmarks/cheats.py [--steps 250] [--seed 0] [--documents 6] [--bytes 2048]

Trains a small plain model on the standard library, then reads test documents in every way. A few
minutes on one core. The Markdown table it prints is the one in the docs.

Every way is an evaluator as ``fwl_ref.audit`` wants it: a function from tokens (n,) to logits
(n-1,V). It must contain all that is fitted to the test text, or the audit could not see it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fwl_ref.audit.evaluator import document_losses
from fwl_ref.dynamic_evaluation import FAST_ONLY, Descent, mean_square, rms_scale, update
from fwl_ref.lm.corpus import Corpus, load_corpus
from fwl_ref.lm.data import Document, windows
from fwl_ref.lm.model import DIALECTS, Config, Parameters, effective_step_sizes, fast_settings, features_fwd
from fwl_ref.lm.train import TrainSettings, train
from fwl_ref.slow_block import FastParameters, SlowParameters, slow_block_bwd, slow_block_fwd
from fwl_ref.stream import stream_predict, stream_reveal, stream_start

Array = np.ndarray
Evaluator = Callable[[Array], Array]
SHARE = 0.2  # of counts in a mixture of model and counts
DECAY = 0.01  # of the fast weights, per token


class Reader(NamedTuple):
    """A plain model and how it reads: what every way has in common."""

    params: Parameters
    config: Config
    window: int
    segment: int  # tokens per update
    rate: float  # of dynamic evaluation of the block
    rates: tuple[float, ...]  # that are tried
    rms_rate: float
    step_size: float  # of fast weights
    train_moments: tuple[Array, Array]  # (D,) mean and deviation of features of training text
    train_squares: SlowParameters  # mean squared gradients of training text


def features(reader: Reader, tokens: Array) -> Array:
    """(n-1,D)   features of every token but the last, window by window."""
    rows = []
    for batch in windows(Document("text", tokens), reader.window):
        (x, _), _ = features_fwd(reader.params, batch.tokens, reader.config)
        rows.append(x[0])
    return np.concatenate(rows)


def segments(n: int, length: int) -> Iterator[slice]:
    return (slice(start, min(start + length, n)) for start in range(0, n, length))


def score(reader: Reader, theta: SlowParameters, x: Array, labels: Array) -> tuple[Array, SlowParameters]:
    """(L,D),(L,)->(L,V)   logits, and the gradient of the mean loss."""
    (_, logits), res = slow_block_fwd(x[None], labels[None], theta, DIALECTS[reader.config.dialect])
    share = np.full((1, len(labels)), 1 / len(labels), x.dtype)
    return logits[0], slow_block_bwd(share, res)[1]


def adapt(
    reader: Reader,
    tokens: Array,
    descent: Descent,
    start: SlowParameters | None = None,
    update_first: bool = False,
) -> tuple[Array, SlowParameters]:
    """Dynamic evaluation of the block: logits (n-1,V), and the parameters at the end."""
    x, labels, theta = features(reader, tokens), tokens[1:], start or reader.params.block
    descent, rows = descent._replace(subset=FAST_ONLY), []
    for part in segments(len(labels), reader.segment):
        logits, gradient = score(reader, theta, x[part], labels[part])
        theta = update(theta, gradient, reader.params.block, descent)
        rows.append(score(reader, theta, x[part], labels[part])[0] if update_first else logits)
    return np.concatenate(rows), theta


def static(reader: Reader) -> Evaluator:
    return lambda tokens: adapt(reader, tokens, Descent(0.0))[0]


# 1: the update comes first


def scored_before_the_update(reader: Reader) -> Evaluator:
    return lambda tokens: adapt(reader, tokens, Descent(reader.rate))[0]


def scored_after_the_update(reader: Reader) -> Evaluator:
    return lambda tokens: adapt(reader, tokens, Descent(reader.rate), update_first=True)[0]


# 2: counts of the segment


def mixed(logits: Array, counts: Array) -> Array:
    """Log probabilities of the model with a SHARE of the counts' (n-1,V), where there are any."""
    wide = logits.astype("float64")
    p = np.exp(wide - wide.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    total = counts.sum(axis=1, keepdims=True)
    share = np.where(total > 0, SHARE, 0.0)
    return np.log((1 - share) * p + share * counts / np.maximum(total, 1))


def one_hot(labels: Array, vocabulary: int) -> Array:
    return np.eye(vocabulary)[labels]


def counts_of_the_segment(reader: Reader, behind: int = 0) -> Evaluator:
    """Mix in the counts of the labels of each segment, or of the one ``behind`` it."""

    def evaluator(tokens: Array) -> Array:
        seen = one_hot(tokens[1:], reader.config.vocabulary)
        counts = np.zeros_like(seen)
        parts = list(segments(len(seen), reader.segment))
        for part, source in zip(parts[behind:], parts, strict=False):
            counts[part] = seen[source].sum(axis=0)
        return mixed(static(reader)(tokens), counts)

    return evaluator


def counts_of_the_segment_before(reader: Reader) -> Evaluator:
    return counts_of_the_segment(reader, behind=1)


# 3: the inclusive read


def fast_weights(reader: Reader, inclusive: bool) -> Evaluator:
    """One token at a time; a read that is ``inclusive`` has the token's own gradient in it."""
    params, settings = reader.params, fast_settings(reader.config)
    dtype = params.embedding.dtype.type
    eta = FastParameters(*(np.asarray(reader.step_size, dtype) for _ in FastParameters._fields))
    eta = effective_step_sizes(eta, reader.config.dialect)

    def evaluator(tokens: Array) -> Array:
        stream, rows = stream_start(1, params.block), []
        for x, label in zip(features(reader, tokens), tokens[1:], strict=True):
            x, label = x[None], label[None]
            logits, asked = stream_predict(stream, x, params.block, eta, settings)
            stream = stream_reveal(asked, label, np.ones(1, dtype), params.block, dtype(DECAY), settings)
            if inclusive:
                logits, _ = stream_predict(stream, x, params.block, eta, settings)
            rows.append(logits[0])
        return np.stack(rows)

    return evaluator


def strict_read(reader: Reader) -> Evaluator:
    return fast_weights(reader, inclusive=False)


def inclusive_read(reader: Reader) -> Evaluator:
    return fast_weights(reader, inclusive=True)


# 4: a normalizer over the document


def moments(x: Array) -> tuple[Array, Array]:
    return x.mean(axis=0), x.std(axis=0) + 1e-3


def document_normalizer(reader: Reader) -> Evaluator:
    """Features brought from the document's mean and deviation to those of training text."""

    def evaluator(tokens: Array) -> Array:
        x = features(reader, tokens)
        (mean, deviation), (wanted_mean, wanted_deviation) = moments(x), reader.train_moments
        x = (x - mean) / deviation * wanted_deviation + wanted_mean
        return score(reader, reader.params.block, x, tokens[1:])[0]

    return evaluator


# 5: statistics that were collected beforehand


def counts_of_the_document(reader: Reader) -> Evaluator:
    def evaluator(tokens: Array) -> Array:
        seen = one_hot(tokens[1:], reader.config.vocabulary)
        return mixed(static(reader)(tokens), np.zeros_like(seen) + seen.sum(axis=0))

    return evaluator


def counts_of_what_was_read(reader: Reader) -> Evaluator:
    def evaluator(tokens: Array) -> Array:
        seen = one_hot(tokens[1:], reader.config.vocabulary)
        return mixed(static(reader)(tokens), np.cumsum(seen, axis=0) - seen)

    return evaluator


def squares(reader: Reader, tokens: Array) -> SlowParameters:
    """Mean squared gradients of the segments of a text."""
    x, labels = features(reader, tokens), tokens[1:]
    parts = segments(len(labels), reader.segment)
    return mean_square(score(reader, reader.params.block, x[p], labels[p])[1] for p in parts)


def rms(reader: Reader, tokens: Array, mean_squares: SlowParameters) -> Array:
    return adapt(reader, tokens, Descent(reader.rms_rate, scale=rms_scale(mean_squares)))[0]


def squares_of_training_text(reader: Reader) -> Evaluator:
    return lambda tokens: rms(reader, tokens, reader.train_squares)


def squares_of_the_document(reader: Reader) -> Evaluator:
    return lambda tokens: rms(reader, tokens, squares(reader, tokens))


# 6: tuned on the test text


def tuned_rate(reader: Reader) -> Evaluator:
    """Of several step sizes, the one that reads this document best."""

    def evaluator(tokens: Array) -> Array:
        tried = [adapt(reader, tokens, Descent(rate))[0] for rate in reader.rates]
        return min(tried, key=lambda logits: document_losses(logits, tokens).mean())

    return evaluator


# 7: two passes


def two_passes(reader: Reader) -> Evaluator:
    """Read the document once, and keep what was learned for reading it again."""

    def evaluator(tokens: Array) -> Array:
        descent = Descent(reader.rate)
        _, theta = adapt(reader, tokens, descent)
        return adapt(reader, tokens, descent, start=theta)[0]

    return evaluator


class Cheat(NamedTuple):
    """A cheat, its honest counterpart, and what the audit calls it."""

    name: str
    cheat: Callable[[Reader], Evaluator]
    honest: Callable[[Reader], Evaluator]
    kind: str


CHEATS = [
    Cheat("scored after the update on its segment", scored_after_the_update, scored_before_the_update, "update_before_score"),
    Cheat("counts of its own segment", counts_of_the_segment, counts_of_the_segment_before, "segment_statistics"),
    Cheat("inclusive read of fast weights", inclusive_read, strict_read, "own_label"),
    Cheat("features normalized over the document", document_normalizer, static, "normalizer"),
    Cheat("counts of the document", counts_of_the_document, counts_of_what_was_read, "statistics"),
    Cheat("squared gradients of the document", squares_of_the_document, squares_of_training_text, "statistics"),
    Cheat("step size chosen on the document", tuned_rate, scored_before_the_update, "tuning"),
    Cheat("two passes", two_passes, scored_before_the_update, "two_passes"),
]


# Measuring
# --------------------------------------------------------------------------------------------------------


def make_reader(params: Parameters, config: Config, window: int, segment: int, text: Array, **settings: Any) -> Reader:
    """A reader whose statistics come from ``text``, which is none of the test text."""
    defaults = {"rate": 0.1, "rates": (0.02, 0.05, 0.1, 0.2, 0.4), "rms_rate": 6e-4, "step_size": 3e-4}
    reader = Reader(params, config, window, segment, **defaults | settings, train_moments=None, train_squares=None)
    return reader._replace(train_moments=moments(features(reader, text)), train_squares=squares(reader, text))


def bits_per_byte(evaluator: Evaluator, documents: list[Array]) -> float:
    losses = [document_losses(evaluator(tokens), tokens) for tokens in documents]
    return float(np.concatenate(losses).mean() / np.log(2))


def texts(documents: tuple[Document, ...], count: int, length: int) -> list[Array]:
    """``count`` documents, evenly spread over those that are long enough, cut to ``length``."""
    long = [d for d in documents if len(d.data) > length]
    return [long[i * len(long) // count].data[: length + 1].astype("int64") for i in range(count)]


def chosen(reader: Reader, documents: list[Array]) -> Reader:
    """The reader with the step sizes that read validation documents best."""

    def best(name: str, candidates: tuple[float, ...], way: Callable[[Reader], Evaluator]) -> float:
        return min(candidates, key=lambda value: bits_per_byte(way(reader._replace(**{name: value})), documents))

    return reader._replace(
        rate=best("rate", reader.rates, scored_before_the_update),
        rms_rate=best("rms_rate", (2e-4, 5e-4, 1e-3, 2e-3), squares_of_training_text),
        step_size=best("step_size", (3e-4, 1e-3, 3e-3), strict_read),
    )


def measure(corpus: Corpus, steps: int, seed: int, count: int, length: int) -> str:
    """The Markdown table, and the settings below it."""
    clock, config, window = time.perf_counter(), Config(width=64, layers=2, heads=2, fast=False), 128
    progress = train(corpus, config, TrainSettings(steps=steps, batch=8, window=window, seed=seed))
    train_text = np.concatenate(texts(corpus.train, 8, 4096))
    reader = chosen(make_reader(progress.params, config, window, 64, train_text), texts(corpus.validation, 3, 1024))
    test = texts(corpus.test, count, length)
    lines = ["| cheat | honest | cheating | gain | the honest counterpart |", "|:--|--:|--:|--:|:--|"]
    known: dict[Callable, float] = {}
    for row in CHEATS:
        if row.honest not in known:
            known[row.honest] = bits_per_byte(row.honest(reader), test)
        honest, cheat = known[row.honest], bits_per_byte(row.cheat(reader), test)
        words = row.honest.__name__.replace("_", " ")
        lines.append(f"| {row.name} | {honest:.3f} | {cheat:.3f} | {honest - cheat:.3f} | {words} |")
    settings = (
        f"Bits per byte of {count} test documents of {length:,} bytes, corpus {corpus.source}. Plain model of width {config.width}, "
        f"{config.layers} layers, {steps} steps of 8 windows of {window} bytes, seed {seed}; segments of {reader.segment} bytes; static "
        f"{bits_per_byte(static(reader), test):.3f}. Chosen on 1,024 bytes of 3 validation documents: rate {reader.rate:g} of "
        f"{', '.join(f'{r:g}' for r in reader.rates)} (the cheat chooses from the same), RMS rate {reader.rms_rate:g}, step size of the "
        f"fast weights {reader.step_size:g}, their decay {DECAY:g}. Counts have a share of {SHARE:g}."
    )
    print(f"{time.perf_counter() - clock:.0f} s")
    return "\n".join([*lines, "", settings])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, default in (("steps", 250), ("seed", 0), ("documents", 6), ("bytes", 2048)):
        parser.add_argument(f"--{name}", type=int, default=default, help="default %(default)s")
    parser.add_argument("--data", default="stdlib", help="default %(default)s")
    parser.add_argument("--out", type=Path, default=None, help="also write the table here")
    args = parser.parse_args()
    table = measure(load_corpus(args.data), args.steps, args.seed, args.documents, args.bytes)
    print(table)
    if args.out:
        args.out.write_text(table + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
