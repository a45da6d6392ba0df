"""What is measured with a language model on the device: its gradient, that training waits for
nothing, its times and its memory.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import NamedTuple

from ..backend import Array, host, like, peak_bytes, to_numpy, wait, waiting_refused
from ..lm import footprint
from ..lm.corpus import Corpus
from ..lm.data import training_batch
from ..lm.device import batch_like
from ..lm.model import Config, initialize, loss_and_gradient, model_score
from ..lm.reading import Document
from ..lm.train import Progress, TrainSettings, advance, begin
from ..tree import tree_map
from .cases import V, small_case
from .measure import Finding, same

SIZES = ((128, 256, 4), (256, 1024, 2), (512, 1024, 4))  # width, window, batch


def model_gradient(target: Array, dtype: str) -> Iterator[Finding]:
    """16, for the whole language model: its gradient is NumPy's in float64."""
    case = small_case(target, dtype)
    config = Config(width=8, layers=2, heads=2, vocabulary=V, chunk=4)
    start = initialize(config, 3, step_size=0.05)
    parameters = tree_map(lambda a: like(a, target, dtype), start)
    ours = loss_and_gradient(parameters, case.labels, case.labels, case.weights, config)

    def at_home(a: Array) -> Array:
        return to_numpy(a).astype("float64")

    labels = to_numpy(case.labels)
    exact = (tree_map(at_home, parameters), labels, labels, at_home(case.weights))
    theirs = loss_and_gradient(*exact, config)
    claim = "gradient of the language model = NumPy's in float64"
    yield same(claim, ours, theirs, dtype)


def toy_corpus() -> Corpus:
    """Text that is on every machine: one made-up document."""
    data = host.random.default_rng(0).integers(97, 123, 200_000).astype("uint8")
    return Corpus("toy", (Document("toy", data),), (), ())


def without_waiting(target: Array, backend: str) -> Iterator[Finding]:
    """Training steps between two logs make no device-to-host copy, hidden or not."""
    config, s = Config(width=16, layers=1, heads=2), TrainSettings(steps=9, batch=2, window=32)
    start, corpus = begin(config, s, backend), toy_corpus()
    params, adam, _ = advance(start.params, start.adam, corpus, config, s)
    stopped = 0.0
    with waiting_refused(target) as refused:
        try:
            for _ in range(3):
                params, adam, _ = advance(params, adam, corpus, config, s)
        except refused:
            stopped = 1.0
    yield Finding("training steps that wait for the device", stopped, 0.0)


class Timing(NamedTuple):
    """One size: seconds of NumPy and of the device, each the median of interleaved runs; bytes
    stated and taken by a training step.
    """

    width: int
    window: int
    batch: int
    numpy_forward: float
    forward: float
    numpy_step: float
    step: float
    stated: int
    taken: int


def timings(target: Array, backend: str, sizes: tuple = SIZES, rounds: int = 3) -> Iterator[Timing]:
    """Forward pass and training step of both libraries in turn, float32."""
    corpus = toy_corpus()
    for width, window, batch in sizes:
        config = Config(width=width, layers=2, heads=width // 64)
        s = TrainSettings(steps=99, batch=batch, window=window)
        started = {"numpy_": begin(config, s), "": begin(config, s, backend)}
        jobs = {"forward": forward, "step": step}
        seconds: dict[str, list[float]] = {name + what: [] for what in jobs for name in started}
        peak_bytes(target, reset=True)
        for count in range(rounds + 1):
            for name, progress in started.items():
                for what, job in jobs.items():
                    start = time.perf_counter()
                    wait(job(progress, corpus, config, s))
                    if count:  # the first round compiles and warms up
                        seconds[name + what].append(time.perf_counter() - start)
        yield Timing(
            width,
            window,
            batch,
            **{name: statistics.median(taken) for name, taken in seconds.items()},
            stated=footprint.training(config, batch, window, together=batch).total,
            taken=peak_bytes(target),
        )


def forward(progress: Progress, corpus: Corpus, config: Config, s: TrainSettings) -> Array:
    """(B,T)   the forward pass of a training step: something to time."""
    host_batch = training_batch(corpus.train, s.batch, s.window, s.seed, 0)
    batch = batch_like(host_batch, progress.params.embedding)
    return model_score(progress.params, *batch, config).nll


def step(progress: Progress, corpus: Corpus, config: Config, s: TrainSettings) -> Array:
    """(9+L,)   a training step, not recorded."""
    _, _, record = advance(progress.params, progress.adam, corpus, config, s)
    return record
