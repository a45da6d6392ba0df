"""Bytes stated before the work starts: against what NumPy really allocates, and as the words of an
error when they are not there.
"""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from fwl_ref.__main__ import main
from fwl_ref.lm import footprint
from fwl_ref.lm import train as training
from fwl_ref.lm.data import Corpus, Document
from fwl_ref.lm.evaluate import dynamic_block, fast_weights
from fwl_ref.lm.model import Config, initialize, model_fwd, model_score
from fwl_ref.lm.train import TrainSettings, begin, train_step
from fwl_ref.tree import leaves, size

pytestmark = pytest.mark.host("measures what NumPy allocates")

FACTOR = 1.35  # how far the statement may be from the peak, either way
TEXT = np.random.default_rng(0).integers(97, 107, 60_000).astype("uint8")
CORPUS = Corpus("made up", (Document("made up", TEXT),), (), ())
SIZES = [  # width, layers, heads, batch, window, chunk: dominated by layers, window, batch, parameters, vocabulary, heads, one chunk
    (64, 4, 2, 2, 256, 32),
    (32, 1, 1, 1, 2048, 64),
    (32, 1, 1, 8, 128, 64),
    (256, 2, 1, 1, 64, 64),
    (16, 1, 1, 2, 512, 64),
    (64, 2, 8, 1, 512, 16),
    (64, 1, 2, 2, 512, None),
]


def cases(fast: bool) -> list[tuple[Config, int, int]]:
    return [
        (Config(width=d, layers=n, heads=h, chunk=chunk, fast=fast), batch, window) for d, n, h, batch, window, chunk in SIZES
    ]  # fmt: skip


EVERY = [*cases(True), *cases(False)]
every_size = pytest.mark.parametrize(("config", "batch", "window"), EVERY)


def peak(job) -> int:
    """The most that NumPy and Python allocate at once while ``job`` runs, what was there before not
    counted.
    """
    job()  # caches and compiled patterns
    tracemalloc.start()
    try:
        job()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def owner(a: np.ndarray) -> np.ndarray:
    """The array whose memory ``a`` looks at."""
    while isinstance(a.base, np.ndarray):
        a = a.base
    return a


@pytest.mark.parametrize("config", [c for c, *_ in EVERY])
def test_the_number_of_parameters_is_counted(config: Config) -> None:
    """Leaf by leaf, of the model that initialize makes."""
    assert footprint.count_parameters(config) == size(initialize(config))


@every_size
def test_what_is_kept_for_the_backward_pass_is_the_sum_of_the_residuals(config: Config, batch: int, window: int) -> None:
    """Within a twentieth: every array that output or residual holds on to, views counted once with
    the array they look at.
    """
    p, text = initialize(config), np.tile(TEXT[:window].astype("int64"), (batch, 1))
    kept = model_fwd(p, text, text, None, config)
    given = {id(owner(a)) for a in (*leaves(p), text)}
    held = {id(owner(a)): owner(a).nbytes for a in leaves(kept) if isinstance(a, np.ndarray)}
    total = sum(n for key, n in held.items() if key not in given)
    assert footprint.training(config, batch, window, together=batch).activations > total
    assert batch * footprint._kept(config, window, 4) == pytest.approx(total, rel=0.05)


@every_size
@pytest.mark.parametrize("itemsize", [4, 8])
def test_a_training_step_takes_what_is_stated(config: Config, batch: int, window: int, itemsize: int) -> None:
    """The peak of a step, with the parameters and moments that are there before, within FACTOR."""
    s = TrainSettings(batch=batch, window=window, steps=3)
    start = begin(config, s)
    if itemsize == 8:
        wide = initialize(config, dtype="float64")
        start = start._replace(params=wide, adam=training.adam_init(wide))
    taken = peak(lambda: train_step(start, CORPUS, config, s)) + 3 * itemsize * size(start.params)
    assert taken / FACTOR < footprint.training(config, batch, window, itemsize).total < FACTOR * taken


@every_size
def test_reading_takes_what_is_stated(config: Config, batch: int, window: int) -> None:
    """The peak of reading four windows, carried where the model is fast, within FACTOR."""
    p, document = initialize(config), Document("made up", TEXT[: 4 * window + 1])
    taken = peak(lambda: fast_weights(p, config, document, window, carried=config.fast)) + 4 * size(p)
    assert taken / FACTOR < footprint.evaluation(config, window).total < FACTOR * taken


@pytest.mark.parametrize("carried", [True, False])
def test_reading_a_long_document_takes_no_more_than_a_short_one(carried: bool) -> None:
    """One window is held at a time: twelve windows peak where three do, but for the losses
    themselves.
    """
    config = Config(width=32, layers=1, heads=1)
    p = initialize(config)
    short, long = (Document("made up", TEXT[: 64 * n + 1]) for n in (3, 12))
    ways = [(fast_weights, {"carried": carried}), (dynamic_block, {"rate": 0.1, "decay": 0.0, "segment": 16})]
    for read, options in ways:
        few, many = (peak(lambda d=d: read(p, config, d, 64, **options)) for d in (short, long))
        assert many < 1.1 * few + 40 * 64 * 9


@pytest.mark.parametrize("fast", [True, False])
def test_reading_keeps_nothing_of_a_layer_but_its_keys_and_values(fast: bool) -> None:
    """``model_score`` of twelve layers peaks where that of four does, but for the keys and values that it returns: 4 D numbers per token
    and layer. N: ``model_fwd`` keeps 23 D of each.
    """
    text = TEXT[:256].astype("int64")[None, :]
    taken = {}
    for function in (model_score, model_fwd):
        for layers in (4, 12):
            config = Config(width=32, layers=layers, heads=1, fast=fast)
            taken[function, layers] = peak(lambda p=initialize(config), c=config, f=function: f(p, text, text, None, c))  # noqa: B008
    each = {f: (taken[f, 12] - taken[f, 4]) / 8 / (256 * 32 * 4) for f in (model_score, model_fwd)}
    assert each[model_score] == pytest.approx(4, rel=0.1) and each[model_fwd] > 20


def test_memory_grows_with_the_text_and_not_with_its_square() -> None:
    """Twice the window takes twice the activations, in training and in reading, once it is long."""
    config = Config(width=64, layers=2, heads=1)
    for need in (lambda t: footprint.training(config, 1, t), lambda t: footprint.evaluation(config, t)):
        assert need(65536).activations / need(32768).activations == pytest.approx(2, rel=0.01)
    one = footprint.training(config, 1, 512).activations
    assert footprint.training(config, 8, 512, together=8).activations == 8 * one
    gradients = 4 * footprint.count_parameters(config)
    assert footprint.training(config, 8, 512, together=2).activations == 2 * (one + gradients)


# When there is not enough
# ------------------------------------------------------------------------------------------------------


class OutOfMemoryError(MemoryError):
    """As CuPy's: a MemoryError."""


SMALL, WIDE = Config(width=16, layers=1, heads=1), Config(width=512, layers=6, heads=4)


@pytest.mark.parametrize("error", [MemoryError, OutOfMemoryError])
@pytest.mark.parametrize(
    ("config", "batch", "window", "words"),
    [
        (SMALL, 8, 512, ["lower the batch (now 8)", "window (now 512"]),
        (SMALL, 1, 512, ["lower the window (now 512 tokens)"]),
        (WIDE, 1, 8, ["lower the width (now 512)", "layers (now 6)"]),
    ],
)
def test_an_error_says_which_size_to_lower(error: type, config: Config, batch: int, window: int, words: list[str]) -> None:
    """The one that most of the memory grows with; and how much is needed, and what the library
    said.
    """
    need = footprint.training(config, batch, window)
    with pytest.raises(MemoryError) as caught, footprint.explained("a training step", need, config, window, batch):
        raise error("no room for 17 bytes")
    for word in (*words, "out of memory", "a training step", footprint.readable(need.total), "no room for 17 bytes"):
        assert word in str(caught.value)


def test_other_errors_pass() -> None:
    """Only memory is explained."""
    with pytest.raises(ValueError, match="as it was"), footprint.explained("x", footprint.Bytes(1, 1), SMALL, 8):
        raise ValueError("as it was")


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 bytes"), (999, "999 bytes"), (1e6, "1 MB"), (12_345_678, "12.3 MB"), (2e15, "2e+03 TB")]
)
def test_sizes_are_readable(count: float, text: str) -> None:
    """Three digits and a unit."""
    assert footprint.readable(count) == text


def test_training_and_evaluation_state_the_bytes_before_they_start(tmp_path, capsys, monkeypatch) -> None:
    """And out of memory is one line that names an option to lower, not a traceback."""
    (tmp_path / "text").mkdir()
    for i in range(6):
        (tmp_path / "text" / f"{i}.txt").write_text(f"the {i}th cat sat on mat {i}. " * 12)
    sizes = ["--steps=1", "--batch=2", "--window=8", "--width=8", "--layers=1", "--heads=2", "--data", str(tmp_path / "text")]
    model, need = (tmp_path / "out" / "m.npz", footprint.training(Config(width=8, layers=1, heads=2), 2, 8))
    assert main(["train", *sizes, "--out", str(model)]) == 0
    out = capsys.readouterr().out
    assert out.index(footprint.sentence(need)) < out.index("written")
    assert main(["evaluate", str(model)]) == 0
    reading = footprint.evaluation(Config(width=8, layers=1, heads=2), 8)
    assert footprint.sentence(reading) in capsys.readouterr().out.splitlines()[1]

    def exhausted(*_):
        raise OutOfMemoryError("no room")

    monkeypatch.setattr(training, "loss_and_gradient", exhausted)
    assert main(["train", *sizes, "--out", str(tmp_path / "other.npz")]) == 2
    (line,) = [text for text in capsys.readouterr().err.replace("\r", "\n").splitlines() if text.startswith("fwl_ref:")]
    assert "out of memory" in line and "lower the" in line and "no room" in line
