"""Sample text from a model that adapts to the prompt and, if wanted, to what it writes itself.

A ``Reader`` is a place in a text: the fast weights after the bytes before it, and the keys and
values that the trunk still needs. It goes on by text that is given (``read_text``) or that it
samples (``write_text``), one byte's work a byte, and can be kept (``lm/state.py``).
"""

from __future__ import annotations

import math
from typing import NamedTuple

from ..backend import Array, device, host, like, namespace, to_numpy
from ..fwl import FastSettings, fast_block_score
from ..stream import Stream, stream_predict, stream_reveal, stream_start
from .bar import Bar
from .context import Context, read_on
from .model import Config, Parameters, effective_step_sizes, fast_settings


class Reader(NamedTuple):
    """A place in a text. The last byte is read and not yet written to the fast weights: that takes
    the byte after it.
    """

    stream: Stream
    context: Context
    last: Array | None  # (1,D) features of the last byte; None before the first


def reader_start(params: Parameters) -> Reader:
    """Before the first byte."""
    return Reader(stream_start(1, params.block), Context(), None)


def generate(
    params: Parameters,
    config: Config,
    prompt: bytes,
    count: int,
    *,
    window: int = 256,
    temperature: float = 0.7,
    seed: int = 0,
    adapt: bool = True,
    quiet: bool = True,
) -> bytes:
    """``count`` bytes after ``prompt``; with ``adapt`` each sampled byte is written to the fast
    weights like a byte of text.

    Without ``adapt`` only the prompt is written, and fades while sampling goes on. Which bytes
    before it a byte sees, ``lm/context.py`` says. A temperature of 0 always takes the likeliest
    byte. A plain model has step sizes of zero, so for it nothing adapts.

    Raises ValueError for an empty prompt, a negative count or seed, a temperature that is negative
    or not finite, a window below 1, or a normalizer that cannot stream; FloatingPointError if
    logits are not finite.
    """
    check_sampling(count, temperature, seed, window)
    if not prompt:
        raise ValueError(
            "the prompt must hold at least 1 byte: the first prediction is made from it"
        )
    reader = read_text(params, config, reader_start(params), prompt, window)
    text, _ = write_text(
        params,
        config,
        reader,
        count,
        window=window,
        temperature=temperature,
        seed=seed,
        adapt=adapt,
        quiet=quiet,
    )
    return text


def read_text(
    params: Parameters, config: Config, reader: Reader, text: bytes, window: int
) -> Reader:
    """The reader after ``text``: each byte is written to the fast weights once the next is known.

    Raises ValueError as ``read_on``, or for a normalizer that cannot stream.
    """
    config = streaming(config)
    settings, eta = fast_settings(config), effective_step_sizes(params.eta, config.dialect)
    xp = namespace(params.embedding)
    for start in range(0, len(text), window):
        piece = text[start : start + window]
        x, context = read_on(params, config, reader.context, piece, window)  # (1,n,D)
        last, labels, stream = x[:, -1, :], piece[1:], reader.stream
        if reader.last is None:
            x = x[:, :-1, :]
        else:
            labels = piece
            x = xp.concat([reader.last[:, None, :], x[:, :-1, :]], axis=1)
        if labels and config.fast:  # nothing reads what a plain model would write
            known = like(host.asarray([list(labels)], dtype="int64"), x)  # (1,n)
            weights = xp.ones(known.shape, dtype=x.dtype, device=device(x))
            _, state = fast_block_score(
                x, known, weights, params.block, eta, params.decay, settings, stream.state
            )
            stream = Stream(state, None)
        reader = Reader(stream, context, last)
    return reader


def write_text(
    params: Parameters,
    config: Config,
    reader: Reader,
    count: int,
    *,
    window: int = 256,
    temperature: float = 0.7,
    seed: int = 0,
    adapt: bool = True,
    quiet: bool = True,
) -> tuple[bytes, Reader]:
    """``count`` sampled bytes, and the reader after them. Arguments and errors as ``generate``;
    ValueError too if the reader has not read a byte.
    """
    check_sampling(count, temperature, seed, window)
    config = streaming(config)
    settings, eta = fast_settings(config), effective_step_sizes(params.eta, config.dialect)
    rng, text = host.random.default_rng(seed), bytearray()
    stream, context, last = reader
    if last is None:
        raise ValueError("nothing has been read: the first prediction is made from a byte of text")
    for _ in Bar(range(count), desc="sampling", unit="byte", disable=quiet):
        logits, stream = stream_predict(stream, last, params.block, eta, settings)  # (1,V)
        scores = to_numpy(logits)[0, :]  # (V,)
        if not host.all(host.isfinite(scores)):
            raise FloatingPointError(
                f"the logits after {len(text):,} sampled bytes are not finite: the parameters are "
                "too large for their precision, or the fast weights diverged, which smaller step "
                "sizes prevent"
            )
        byte = sample(scores, temperature, rng)
        if config.fast:
            stream = reveal(stream, byte, float(adapt), params, settings)
        else:  # nothing reads what a plain model would write
            stream = stream._replace(pending=None)
        x, context = read_on(params, config, context, bytes([byte]), window)  # (1,1,D)
        last = x[:, 0, :]
        text.append(byte)
    return bytes(text), Reader(stream, context, last)


def streaming(config: Config) -> Config:
    """The configuration for one byte at a time: nothing of a plain model is divided by the
    normalizer, so any plain model can stream.
    """
    return config if config.fast else config._replace(normalizer="constant")


def check_sampling(count: int, temperature: float, seed: int, window: int) -> None:
    """Raise ValueError naming the first number that cannot be."""
    limits = {
        "count": (count, 0),
        "temperature": (temperature, 0),
        "seed": (seed, 0),
        "window": (window, 1),
    }
    for name, (value, least) in limits.items():
        if not least <= value < math.inf:
            raise ValueError(f"{name} must be finite and at least {least}, got {value}")


def reveal(
    stream: Stream, byte: int, weight: float, params: Parameters, settings: FastSettings
) -> Stream:
    """Tell the fast weights what the byte was."""
    target = params.embedding
    label = like(host.asarray([byte], dtype="int64"), target)  # (1,)
    w = like(host.asarray([weight]), target, target.dtype)  # (1,)
    return stream_reveal(stream, label, w, params.block, params.decay, settings)


def sample(logits: Array, temperature: float, rng: host.random.Generator) -> int:
    """Draw from softmax(logits / temperature) on the host."""
    if temperature == 0:
        return int(logits.argmax())
    wide = logits.astype("float64")
    with host.errstate(over="ignore"):  # a tiny temperature: all but the likeliest go to -inf
        p = host.exp((wide - wide.max()) / temperature)
    return int(rng.choice(len(p), p=p / p.sum()))
