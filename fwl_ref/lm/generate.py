"""Sample text from a model that adapts to the prompt and, if wanted, to what it writes itself."""

from __future__ import annotations

import math

from ..backend import Array, host, like, to_numpy
from ..fwl import FastSettings
from ..stream import Stream, stream_predict, stream_reveal, stream_start
from .bar import Bar
from .data import Document, windows
from .model import Config, Parameters, effective_step_sizes, fast_settings, features, model_score


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

    Without ``adapt`` only the prompt is written, and fades while sampling goes on. Every byte sees
    the ``window`` bytes before it. A temperature of 0 always takes the likeliest byte. A plain
    model has step sizes of zero, so for it nothing adapts.

    Raises ValueError for an empty prompt, a negative count or seed, a temperature that is negative
    or not finite, a window below 1, or a normalizer that cannot stream; FloatingPointError if
    logits are not finite.
    """
    if not prompt:
        raise ValueError(
            "the prompt must hold at least 1 byte: the first prediction is made from it"
        )
    limits = {
        "count": (count, 0),
        "temperature": (temperature, 0),
        "seed": (seed, 0),
        "window": (window, 1),
    }
    for name, (value, least) in limits.items():
        if not least <= value < math.inf:
            raise ValueError(f"{name} must be finite and at least {least}, got {value}")
    if not config.fast:  # nothing is divided by the normalizer, and any plain model can stream
        config = config._replace(normalizer="constant")
    settings, eta = fast_settings(config), effective_step_sizes(params.eta, config.dialect)
    stream = read_prompt(params, config, prompt, window)
    rng, text = host.random.default_rng(seed), list(prompt)
    for _ in Bar(range(count), desc="sampling", unit="byte", disable=quiet):
        x = last_features(params, config, text[-window:])  # (1,D)
        logits, stream = stream_predict(stream, x, params.block, eta, settings)  # (1,V)
        scores = to_numpy(logits)[0, :]  # (V,)
        if not host.all(host.isfinite(scores)):
            raise FloatingPointError(
                f"the logits after {len(text):,} bytes are not finite: the parameters are too "
                "large for their precision, or the fast weights diverged, which smaller step sizes "
                "prevent"
            )
        byte = sample(scores, temperature, rng)
        stream = reveal(stream, byte, float(adapt), params, settings)
        text.append(byte)
    return bytes(text[len(prompt) :])


def read_prompt(params: Parameters, config: Config, prompt: bytes, window: int) -> Stream:
    """The memory after reading all of the prompt whose next byte is known."""
    stream = stream_start(1, params.block)
    if len(prompt) < 2:
        return stream
    state = stream.state
    for batch in windows(Document("prompt", host.frombuffer(prompt, dtype="uint8")), window):
        tokens, labels = like(batch.tokens, params.embedding), like(batch.labels, params.embedding)
        output = model_score(params, tokens, labels, None, config, state if config.fast else None)
        state = output.state if config.fast else state
    return stream._replace(state=state)


def last_features(params: Parameters, config: Config, context: list[int]) -> Array:
    """(1,D)   features of the context's last byte."""
    tokens = like(host.asarray([context], dtype="int64"), params.embedding)
    x, _ = features(params, tokens, config)
    return x[:, -1, :]


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
