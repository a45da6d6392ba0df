"""The demo: train a plain and a fast model on real text, then read documents neither has seen in
nine ways.

Both models have the same number of parameters, the same seed and the same order of data; each
trains on a core of its own, or on a GPU one after the other in one process. The quick form reads
its own corpus with two models that were trained longer and come with the package (``pair.py``).
Every step size that is not learned is chosen on validation documents. The table (JSON, Markdown), a
figure and the models that were trained go to ``results/``.
"""

from __future__ import annotations

import datetime
import os
import platform
import time
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from ..backend import Array, as_dtype, backend_target, backend_versions, host, to_numpy
from ..checks import check_segment
from ..dynamic_evaluation import Descent, RmsScale, evaluate_block, mean_square, rms_scale
from ..files import finite, reserved
from ..fwl import fast_block_fwd
from ..lm import cached, evaluate, footprint
from ..lm.corpus import Corpus, Document, load_corpus, pick, summary
from ..lm.data import windows
from ..lm.device import batch_like, to_backend
from ..lm.evaluate import Way, bits_per_byte
from ..lm.model import (
    Config,
    Parameters,
    effective_step_sizes,
    fast_settings,
    features_fwd,
)
from ..lm.resume import CONFIG, TRAINING, resume, train_towards
from ..lm.shards import blas_kernel
from ..lm.train import Progress, TrainSettings, check_train_settings
from ..tree import size, tree_map
from . import cost
from .compare import change_standard_error, choose, read_all, relative_times
from .pair import MODELS, SHIPPED_OF, check_held_out, load_pair
from .parallel import InTurn, is_starting, worker_pool
from .report import write_report

LABELS = {
    "static": "static",
    "dynamic_evaluation_sgd": "dynamic evaluation, SGD",
    "dynamic_evaluation_rms": "dynamic evaluation, RMS",
    "dynamic_evaluation_block": "dynamic evaluation, block only",
    "neural_cache": "plain, neural cache",
    "fast_untrained": "fast weights, plain model, not trained for it",
    "fast_windowed": "fast weights, reset every window",
    "fast_carried": "fast weights, carried through the document",
    "fast_cache": "fast weights, carried, neural cache",
}
CACHED = ("neural_cache", "fast_cache")  # a byte costs more the longer the document is


class DemoSettings(NamedTuple):
    """Sizes of the demo. What ``make demo`` runs is FULL, and ``make demo QUICK=1`` is QUICK."""

    config: Config
    training: TrainSettings
    shipped: bool = False  # read the package's own models if they are of the same corpus
    segment: int = 64  # tokens per update of dynamic evaluation
    validation: tuple[int, int] = (5, 4096)  # documents, bytes of each
    test: tuple[int, int] = (12, 8192)
    statistics_batches: int = 64  # training segments for the RMS descent
    timing: tuple[int, int] = (2048, 5)  # bytes, rounds
    sgd: tuple = (0.02, 0.04, 0.08)  # step sizes tried
    rms: tuple = (3e-4, 6e-4, 1.2e-3)
    block: tuple = (0.1, 0.3, 0.6)
    untrained: tuple = (0.001, 0.003, 0.01)
    decays: tuple = (0.0, 0.01)  # tried with each
    thetas: tuple = (5.0, 10.0, 20.0, 40.0, 80.0)  # of the neural cache
    shares: tuple = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)  # tried with each


# so many steps that the plain model needs fewer bits than gzip does
FULL = DemoSettings(CONFIG, TRAINING._replace(steps=1500))
QUICK = FULL._replace(
    shipped=True,
    training=TRAINING._replace(steps=170, warmup=20),
    validation=(3, 2048),
    test=(12, 4096),
    statistics_batches=16,
    timing=(1024, 3),
    sgd=(0.04, 0.08, 0.16),  # around what suits the models of the package
    rms=(1.5e-4, 3e-4, 6e-4),
    decays=(0.0,),
)


def run_demo(
    out: Path,
    source: str = "stdlib",
    quick: bool = False,
    settings: DemoSettings | None = None,
    backend: str = "numpy",
    pool: Executor | None = None,
) -> dict[str, Any]:
    """Train, choose, read, time, write the report; returns what ``demo.json`` holds.

    An interrupted demo goes on from the checkpoints in ``out``, trained or half trained. One that
    ended with a report starts anew. Its jobs go to ``pool``; without one, to two processes on this
    machine, or one after the other to its GPU.

    Raises
    ------
    ValueError, OSError
        Before training: settings that cannot be, too little text, an ``out`` that cannot be written
        to or is in use, whose ``plain.npz`` or ``fast.npz`` is no checkpoint of a demo. WorkerError
        (an OSError): a worker was killed, or could not start.
    BackendError
        ``backend`` is "cupy" and there is no CuPy or no GPU.
    """
    if is_starting():  # a worker imports a main module that calls this: the first process says so
        raise SystemExit(1)
    s = settings or (QUICK if quick else FULL)
    check_train_settings(s.training)
    check_segment(s.segment)
    backend_target(backend)
    with reserved(out / "plain.npz"), reserved(out / "fast.npz"):
        return _demo(out, source, quick, s, backend, pool)


def _demo(
    out: Path, source: str, quick: bool, s: DemoSettings, backend: str, given: Executor | None
) -> dict[str, Any]:
    """The demo, once it is known that its outcome can be written."""
    clock, numpy = time.perf_counter(), backend == "numpy"
    if s.shipped and source == SHIPPED_OF:
        pair = load_pair()
        s = s._replace(config=pair.config, training=pair.training)
    else:
        pair, s = None, s._replace(shipped=False)
    minutes = (
        f"about {'1 minute' if quick else '5 to 8 minutes'} on two cores"
        if numpy
        else "on one GPU, one after the other"
    )
    print(f"fwl_ref demo: two models of {describe(s)}; {minutes}", flush=True)
    if pair:
        print(f"the models come with the package, trained on {pair.made}", flush=True)
    else:
        batch, window = s.training.batch, s.training.window
        need = footprint.training(s.config, batch, window, together=1 if numpy else batch)
        at_once = "; two at a time" if numpy else ""
        peak = f"memory at the peak of a training step, about {footprint.sentence(need)}{at_once}"
        print(peak, flush=True)
    corpus = load_corpus(source)
    validation = pick(corpus.validation, *s.validation)
    test = pick(corpus.test, *s.test)
    if pair:
        check_held_out(pair, [*validation, *test])
    print(summary(corpus), flush=True)
    print(f"reading {len(test)} test documents, up to {s.test[1]:,} bytes of each", flush=True)
    pools: AbstractContextManager[Executor]
    if given is not None:
        pools = nullcontext(given)
    else:
        pools = worker_pool(min(2, os.cpu_count() or 1)) if numpy else InTurn()
    with pools as pool:
        if pair:
            models, curves = (pair.plain, pair.fast), pair.curves
        else:
            both = train_both(pool, s, corpus, out, backend)
            models = both[0].params, both[1].params
            curves = {
                name: host.asarray([r.bits_per_byte for r in progress.history])
                for name, progress in zip(MODELS, both, strict=True)
            }
        plain, fast = (to_backend(params, backend) for params in models)
        ways, tried = choose_ways(pool, s, plain, fast, corpus, validation)
        rows = read_all(pool, list(ways.values()), test, "test documents")
        losses = dict(zip(ways, rows, strict=True))
        print("timing, one process, ways interleaved ...", flush=True)
        longest = max(test, key=lambda document: len(document.data))
        sample = Document("timing", test[0].data[: s.timing[0] + 1])
        samples = {name: longest if name in CACHED else sample for name in ways}
        times, microseconds = pool.submit(relative_times, ways, samples, s.timing[1]).result()
        first = (fast, s.config, test[0], s.training.window)
        error = pool.submit(equivalence_error, *first).result()
    bits = {name: bits_per_byte(rows) for name, rows in losses.items()}
    found = {
        "bits_per_byte": bits,
        "relative_time": times,
        "relative_multiply_adds": relative_multiply_adds(s, len(longest.data) - 1),
        "cache_bytes": len(longest.data) - 1,
        "equivalence_max_error": error,
        "change_standard_error": {
            name: change_standard_error(rows, losses["static"]) for name, rows in losses.items()
        },
        "chosen": {name: way.label for name, way in ways.items()},
        "tried_on_validation": tried,
        "microseconds_per_token_static": microseconds,
        "learned": {
            "eta": tree_map(_number, fast.eta)._asdict(),
            "decay": _number(fast.decay),
        },
        "settings": settings_of(s, source, quick),
        "documents": [document.name for document in test],
        "validation_documents": [document.name for document in validation],
        "seed": s.training.seed,
        "parameters": size(plain),
        "versions": backend_versions(backend) | {"blas": blas_kernel()},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "date": datetime.date.today().isoformat(),
        "seconds": round(time.perf_counter() - clock, 1),
    }
    results = finite(found)
    write_report(out, LABELS, results, curves, losses, s.training.window)
    return results


def describe(s: DemoSettings) -> str:
    """One line about the model."""
    model = f"{s.config.layers} layers, width {s.config.width}"
    return f"{model}, windows of {s.training.window} bytes, {s.training.steps} steps"


def train_both(
    pool: Executor, s: DemoSettings, corpus: Corpus, out: Path, backend: str = "numpy"
) -> tuple[Progress, Progress]:
    """The plain and the fast model, side by side, each from its checkpoint if an interrupted demo
    left one.
    """
    configs = {"plain": s.config._replace(fast=False), "fast": s.config._replace(fast=True)}
    paths = {name: out / f"{name}.npz" for name in configs}
    starts = {
        name: unreported(paths[name], config, s.training, corpus)
        for name, config in configs.items()
    }
    jobs = [
        pool.submit(
            train_one, name, row, paths[name], config, s.training, corpus, starts[name], backend
        )
        for row, (name, config) in enumerate(configs.items())
    ]
    plain, fast = (job.result() for job in jobs)
    return plain, fast


def unreported(
    path: Path, config: Config, training: TrainSettings, corpus: Corpus
) -> Progress | None:
    """What an interrupted demo left: its progress, if settings and text are the same. None if there
    is none, or if a report has been written since.
    """
    found = resume(path, config, training, corpus, writer="demo", anew=True)
    report = path.with_name("demo.json")
    reported = report.exists() and report.stat().st_mtime_ns >= path.stat().st_mtime_ns
    return None if reported else found


def train_one(
    name: str,
    row: int,
    path: Path,
    config: Config,
    training: TrainSettings,
    corpus: Corpus,
    start: Progress | None,
    backend: str = "numpy",
) -> Progress:
    """Train one model from ``start`` (None = from scratch), with checkpoints at ``path`` and a
    progress bar in that row.
    """
    bar: dict[str, Any] = {"label": f"{name:>5} model", "position": row}
    return train_towards(
        path, config, training, corpus, start, writer="demo", backend=backend, **bar
    )


def choose_ways(
    pool: Executor,
    s: DemoSettings,
    plain: Parameters,
    fast: Parameters,
    corpus: Corpus,
    documents: list[Document],
) -> tuple[dict[str, Way], dict[str, dict[str, float]]]:
    """The nine ways to read, step sizes chosen on the validation ``documents``; and the bits per
    byte of every step size tried.
    """
    config, window = s.config._replace(fast=False), {"window": s.training.window}
    drawn = s.segment, s.training.seed + 1, s.statistics_batches
    scale = rms_scale(mean_square(evaluate.segment_gradients(plain, config, corpus, *drawn)))

    def dynamic(rate: float, decay: float, scale: RmsScale | None = None) -> Way:
        options = {"descent": Descent(rate, decay, scale), "segment": s.segment, **window}
        return Way(evaluate.dynamic, plain, config, options, f"rate {rate:g}, decay {decay:g}")

    def block(rate: float, decay: float) -> Way:
        options = {"rate": rate, "decay": decay, "segment": s.segment, **window}
        label = f"rate {rate:g}, decay {decay:g}"
        return Way(evaluate.dynamic_block, plain, config, options, label)

    def untrained(rate: float, carried: bool) -> Way:
        params = evaluate.with_step_size(plain, rate, s.training.decay)
        label = f"step size {rate:g}, {'carried' if carried else 'reset'}"
        return fast_way(params, carried, label)

    def fast_way(params: Parameters, carried: bool, label: str) -> Way:
        options = {"carried": carried, **window}
        return Way(evaluate.fast_weights, params, s.config, options, label)

    candidates = {
        "dynamic_evaluation_sgd": [dynamic(r, d) for r in s.sgd for d in s.decays],
        "dynamic_evaluation_rms": [dynamic(r, d / 10, scale) for r in s.rms for d in s.decays],
        "dynamic_evaluation_block": [block(r, d) for r in s.block for d in s.decays],
        "fast_untrained": [untrained(r, c) for r in s.untrained for c in (False, True)],
    }
    sizes = documents, s.training.window, s.thetas, s.shares
    jobs = {
        "neural_cache": pool.submit(with_cache, "plain", plain, config, False, *sizes),
        "fast_cache": pool.submit(with_cache, "fast", fast, s.config, True, *sizes),
    }
    chosen, tried = choose(pool, candidates, documents, "step sizes, validation")
    for name, job in jobs.items():
        chosen[name], tried[name] = job.result()
    ways = chosen | {
        "static": Way(evaluate.static, plain, config, window),
        "fast_windowed": fast_way(fast, False, "learned"),
        "fast_carried": fast_way(fast, True, "learned"),
    }
    in_order = [name for name in LABELS if name in tried]
    return {name: ways[name] for name in LABELS}, {name: tried[name] for name in in_order}


def with_cache(
    name: str,
    params: Parameters,
    config: Config,
    carried: bool,
    documents: list[Document],
    window: int,
    thetas: tuple[float, ...],
    shares: tuple[float, ...],
) -> tuple[Way, dict[str, float]]:
    """The model ``name`` with the neural cache that is best on ``documents``, and the bits per byte
    of every one tried. Each document is read once, whatever is tried.

    Raises ValueError if the model's losses are not finite.
    """
    read = [cached.parts(params, config, d, window, carried=carried) for d in documents]
    try:
        best, unit = cached.tune_on(read, thetas, shares)
    except FloatingPointError as error:
        raise ValueError(f"neural cache: the {name} model diverged on validation") from error
    tried = {_cache_label(*pair): loss / evaluate.LN2 for pair, loss in best.tried.items()}
    options = {"carried": carried, "theta": best.theta * unit, "share": best.share}
    label = _cache_label(best.theta, best.share)
    return Way(cached.cached, params, config, {"window": window, **options}, label), tried


def _cache_label(theta: float, share: float) -> str:
    return f"theta {theta:g}, share {share:g}"


def equivalence_error(params: Parameters, config: Config, document: Document, window: int) -> float:
    """Largest |difference| of logits, float64, on the document's first window: the fast block
    against the slow block at theta_0 - eta * sum of gradients.

    The literal side moves the parameters and runs the slow block, token by token; it shares no code
    with the fast weights.
    """
    params = tree_map(lambda p: as_dtype(p, "float64"), params)
    tokens, labels, weights = batch_like(next(windows(document, window)), params.embedding)
    (x, _), _ = features_fwd(params, tokens, config)  # (1,T,D)
    eta, fixed = effective_step_sizes(params.eta, config.dialect), fast_settings(config)
    block = (x, labels, weights, params.block, eta)
    (logits, _, _), _ = fast_block_fwd(*block, params.decay, fixed)  # (1,T,V)
    decay, n, eps = _number(params.decay), fixed.constant, fixed.eps
    literal, _ = evaluate_block(*block, segment=1, decay=decay, n=n, eps=eps, stale=True)  # (1,T,V)
    return float(host.max(host.abs(to_numpy(logits - literal))))


def relative_multiply_adds(s: DemoSettings, length: int) -> dict[str, float]:
    """Counted multiply-adds per token, static = 1; of the cache on a document of ``length``."""
    window, config = s.training.window, s.config
    beside = cost.cache(config, length) * window / length  # of a window's bytes, on average
    counts = {
        "static": cost.static(config, window),
        "dynamic_evaluation_sgd": cost.dynamic(config, window, s.segment),
        "dynamic_evaluation_rms": cost.dynamic(config, window, s.segment),
        "dynamic_evaluation_block": cost.dynamic_block(config, window),
        "neural_cache": cost.static(config, window) + beside,
        "fast_untrained": cost.fast(config, window, carried=True),
        "fast_windowed": cost.fast(config, window, alone=True),
        "fast_carried": cost.fast(config, window, carried=True),
        "fast_cache": cost.fast(config, window, carried=True) + beside,
    }
    return {name: count / counts["static"] for name, count in counts.items()}


def _number(x: Array) -> float:
    """A scalar of any library as a Python float."""
    return float(to_numpy(x))


def settings_of(s: DemoSettings, source: str, quick: bool) -> dict[str, Any]:
    """Plain data for the report."""
    nested = {"config": s.config._asdict(), "training": s.training._asdict()}
    return {"corpus": source, "quick": quick} | s._asdict() | nested
