"""How much is read, trained and tuned: three sizes, and what they need."""

from __future__ import annotations

from typing import NamedTuple

from ..lm.llama import LlamaConfig

KEY_TOKENS = 200_000  # features from which the keys' map is made, at most


class Settings(NamedTuple):
    """Everything that fixes the figures, but the model and the text."""

    length: int = 4096  # tokens of a document at most
    window: int = 512  # tokens that the trunk's attention sees
    contexts: tuple[int, ...] = (1024, 2048, 4096)  # longer windows, of the model as it is
    long: int = 2048  # the one of these at which fast weights and cache are tried as well
    test: int = 4  # documents of each text
    validation: int = 2  # documents of each text
    train_tokens: int = 100_000  # of all texts together
    steps: int = 60
    batch: int = 1  # sequences a step
    train_length: int = 2048  # tokens of a sequence
    rate: float = 1e-3
    checks: int = 2  # how often training looks at the validation documents
    segment: int = 128  # tokens between two steps of dynamic evaluation
    refresh: int = 32  # tokens between two true gradient steps of the layer
    layers: int = 4  # the last ones, which dynamic evaluation adapts
    full: int = 1  # documents of each text on which it adapts all parameters
    tune_length: int = 2048  # tokens of a validation document on which its rate is tuned
    statistics: int = 8192  # training tokens whose gradients give the map that whitens values
    pieces: int = 8  # training segments for the statistics of its RMS rule
    more: int = 2  # values tried beyond the edge of a grid
    at_once: int = 512  # tokens that go through the trunk together
    block: int = 256  # tokens that have logits at the same time
    chunk: int = 64  # tokens of a chunk of linear attention
    together: int = 4  # documents that true gradients read side by side
    seed: int = 0


HOST = Settings()  # about an hour and a half of two CPU cores
QUICK = Settings(
    length=1024, contexts=(1024,), long=1024, test=1, validation=1, train_tokens=4096, steps=6,
    train_length=512, checks=1, pieces=2, full=0, more=0, tune_length=512, statistics=1024,
)  # fmt: skip
DEVICE = Settings(
    test=12, validation=4, train_tokens=1_000_000, steps=250, checks=5, full=4, pieces=32,
    tune_length=4096, statistics=65536, at_once=8192, block=1024, chunk=256, together=16,
)  # fmt: skip


def settings_for(backend: str, quick: bool) -> Settings:
    """The size that fits a machine: QUICK, DEVICE with "cupy", HOST otherwise."""
    if quick:
        big = QUICK._replace(at_once=DEVICE.at_once, block=DEVICE.block, chunk=DEVICE.chunk)
        return big if backend == "cupy" else QUICK
    return DEVICE if backend == "cupy" else HOST


def check_settings(s: Settings) -> None:
    """Raise ValueError naming the first setting that cannot be."""
    for name in s._fields:
        least = 0 if name in ("full", "more", "seed", "rate") else 1
        value = getattr(s, name)
        if name != "contexts" and value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if s.window % s.segment:
        raise ValueError(
            f"a window of {s.window} tokens must hold whole segments, got {s.segment} tokens"
        )
    if s.long not in s.contexts:
        raise ValueError(f"the long context must be one of {s.contexts}, got {s.long}")
    for context in s.contexts:
        if context <= s.window or context % s.window:
            raise ValueError(
                f"a longer context must be a multiple of the window {s.window}, got {context}"
            )


def trunk_products(config: LlamaConfig, window: int, layers: int | None = None) -> float:
    """Multiply-adds a token of the trunk, attention over half a window in the mean."""
    D, F, K = config.width, config.hidden, config.head
    heads = (config.heads + config.groups) * K  # H K + G K
    each = 2 * D * heads + 3 * D * F + config.heads * K * (window + 1)
    return float(each * (config.layers if layers is None else layers))


def head_products(config: LlamaConfig) -> float:
    """Multiply-adds a token of the unembedding."""
    return float(config.width * config.vocabulary)


def model_bytes(config: LlamaConfig) -> int:
    """Bytes of the parameters in float32."""
    D, F, K = config.width, config.hidden, config.head
    layer = 2 * D * (config.heads + config.groups) * K + 3 * D * F + 2 * D
    tables = (1 if config.tied else 2) * config.vocabulary * D
    return 4 * (config.layers * layer + tables + D)


def context_bytes(config: LlamaConfig, window: int) -> int:
    """Bytes of keys and values of a window in float32."""
    return 4 * 2 * config.layers * config.groups * config.head * window


class Need(NamedTuple):
    """What a run takes, in bytes and seconds."""

    memory: int
    disk: int  # for features
    trained: int  # for what is trained, in the folder of the results
    seconds: float


def need(
    s: Settings, config: LlamaConfig, train: int, validation: int, test: int, seconds: float
) -> Need:
    """Of ``train``, ``validation``, ``test`` tokens in all, if a token of the frozen model takes
    ``seconds``. A sum over what is done, each as a multiple of that by its multiply-adds.
    """
    D, V = config.width, config.vocabulary
    head, trunk = head_products(config), trunk_products(config, s.window)
    unit = seconds / (head + trunk)  # seconds a multiply-add
    read, kept = validation + test, 4 * D
    lower = min(train, KEY_TOKENS) + read  # tokens whose features of a lower layer are keys as well
    disk = 2 * D * train + kept * read * (2 + len(s.contexts))
    arrays = 9 * kept * read + 2 * D * train + 6 * 4 * s.block * V
    arrays += s.together * kept * (6 * s.length + 6 * D)  # features, keys, matrices side by side
    whole = model_bytes(config)
    adapting = whole * (5 if s.full else 1)  # statistics: MS, root, divisor, norm; a gradient
    training = 4 * s.batch * s.train_length * D * (40 + 3 * D // s.refresh)
    training += 4 * 12 * D * V  # an unembedding: its best, moments, successors, what AdamW forms
    longer = sum(trunk_products(config, c) for c in s.contexts)
    sequences = s.steps * s.batch * s.train_length
    per_document = min(s.length, s.tune_length)
    tuned = 5 + s.more  # values of a grid
    work = train * trunk + read * (trunk + longer) + lower * trunk
    stale = 17  # rows of stale gradients with nothing trained, each with its options
    work += read * head * 2 + (tuned * stale * validation + 9 * test) * head
    work += sequences * head * 9 + s.checks * validation * head * 4 + test * head * 8
    windows = 1 + len(s.contexts)  # of true gradients: untrained and two that are trained
    work += (windows + 1) * (tuned + 4) * validation * head * 2
    work += windows * 3 * (validation + test) * head * 2
    work += sequences * head * (6 + 16 + 4)  # trained through, with the unembedding, that plain
    top = trunk * s.layers / config.layers * 3 + head * 2
    work += 2 * (tuned * 2 * per_document + test) * top + read * trunk
    read_whole = 2 * (tuned * per_document + s.full * s.length) if s.full else 0  # of two texts
    work += 2 * read_whole * 3 * (trunk + head)
    heads = 2 * 4 * 4 * D * V  # each learned, its best state, and two moments
    return Need(whole + max(adapting, training) + arrays, disk, heads, work * unit)
