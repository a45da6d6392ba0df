"""Comparing ways of reading: nothing gets lost or swapped between processes, the best candidate
wins, times are honest ratios.
"""

import math
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from tqdm import tqdm

from fwl_ref.demo import compare
from fwl_ref.demo.compare import change_standard_error, choose, read_all, relative_times
from fwl_ref.demo.parallel import WORKER_ENVIRONMENT, worker_pool
from fwl_ref.dynamic_evaluation import Descent
from fwl_ref.lm import evaluate
from fwl_ref.lm.cached import cached
from fwl_ref.lm.data import Document
from fwl_ref.lm.evaluate import Way, read
from fwl_ref.lm.model import Config, initialize

pytestmark = pytest.mark.host("processes, clocks and text")

CONFIG = Config(width=8, layers=1, heads=2, chunk=5)
LN2 = math.log(2)


def documents(*lengths):
    """Documents of different lengths and contents."""
    return [Document(f"d{i}", np.random.default_rng(i).integers(97, 107, n).astype("uint8")) for i, n in enumerate(lengths)]


def constant(params, config, document, *, bits, delay=0.0):
    """A way to read that loses ``bits`` on every byte of every document, after a while."""
    time.sleep(delay * (10 - len(document.data)))
    return np.full(len(document.data) - 1, bits * LN2)


def fake(label, **options):
    return Way(constant, None, None, options, label)


@pytest.fixture(scope="module")
def threads():
    with ThreadPoolExecutor(4) as pool:
        yield pool


@pytest.fixture(scope="module")
def workers():
    """The pool that the demo uses; starting it takes a second."""
    with worker_pool(2) as pool:
        yield pool


# --- reading


def test_read_all_keeps_the_order_whatever_ends_first(threads, capsys):
    """Longer documents are done first here; rows are ways, columns documents. A bar counts every
    document of every way.
    """
    ways = [fake("one", bits=1.0, delay=0.01), fake("two", bits=2.0)]
    rows = read_all(threads, ways, documents(3, 5, 9), "reading")
    assert [[len(x) for x in row] for row in rows] == [[2, 4, 8]] * 2
    assert [[x[0] / LN2 for x in row] for row in rows] == [[1.0] * 3, [2.0] * 3]
    assert "reading: 100%" in capsys.readouterr().err


def test_an_error_in_a_worker_reaches_the_caller(threads):
    """It does not vanish in the pool."""
    with pytest.raises(ValueError, match="2 bytes"):
        read_all(threads, [Way(evaluate.static, initialize(CONFIG), CONFIG, {"window": 8})], documents(5, 1), "reading")


# --- choosing


def test_the_candidate_with_the_fewest_bits_wins(threads):
    """Per name; every candidate's bits per byte are reported; of equals the first wins."""
    candidates = {
        "sgd": [fake("a", bits=3.0), fake("b", bits=2.0), fake("c", bits=2.5)],
        "rms": [fake("a", bits=1.0), fake("b", bits=4.0)],
        "tie": [fake("first", bits=1.5), fake("second", bits=1.5)],
    }
    chosen, table = choose(threads, candidates, documents(5, 7), "choosing")
    assert {name: way.label for name, way in chosen.items()} == {"sgd": "b", "rms": "a", "tie": "first"}
    assert chosen["sgd"] is candidates["sgd"][1]
    expected = {"sgd": {"a": 3.0, "b": 2.0, "c": 2.5}, "rms": {"a": 1.0, "b": 4.0}, "tie": {"first": 1.5, "second": 1.5}}
    assert {n: {k: pytest.approx(v) for k, v in row.items()} for n, row in expected.items()} == table


@pytest.mark.parametrize("diverged", [math.nan, math.inf])
def test_a_candidate_that_diverged_never_wins(threads, diverged):
    """Wherever it stands in the list; if all did, the error names them."""
    good, bad = fake("small", bits=5.0), fake("large", bits=diverged)
    for order in ([bad, good], [good, bad]):
        chosen, table = choose(threads, {"sgd": order}, documents(4), "choosing")
        assert chosen["sgd"] is good and not math.isfinite(table["sgd"]["large"])
    with pytest.raises(ValueError, match="sgd: all of large, huge diverged.*smaller step sizes"):
        choose(threads, {"sgd": [bad, bad._replace(label="huge")]}, documents(4), "choosing")


# --- the spread


def test_the_standard_error_is_that_of_the_mean_change():
    """Percent per document, their deviation over the root of their number; not a number for one
    document.
    """
    base = [np.full(4, 2.0), np.full(7, 4.0), np.full(2, 1.0)]
    rows = [np.full(4, 1.0), np.full(7, 3.0), np.full(2, 1.0)]
    changes = np.array([-50.0, -25.0, 0.0])
    expected = np.sqrt(((changes - changes.mean()) ** 2).sum() / 2) / np.sqrt(3)
    assert change_standard_error(rows, base) == pytest.approx(expected, rel=1e-12) and change_standard_error(base, base) == 0
    assert np.isnan(change_standard_error(rows[:1], base[:1]))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_there_is_no_standard_error_where_a_document_diverged(bad):
    """Not a number, and no warning."""
    base, rows = [np.full(4, 2.0), np.full(7, 4.0)], [np.full(4, 1.0), np.full(7, bad)]
    assert np.isnan(change_standard_error(rows, base))


# --- timing


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when it is told to."""
    now = [100.0]
    monkeypatch.setattr(compare, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    return now


def timed(clock, calls, name, seconds):
    """A way that takes the given seconds, one entry per call."""

    def function(params, config, document):
        calls.append(name)
        clock[0] += seconds[calls.count(name) - 1]
        return np.zeros(len(document.data) - 1)

    return Way(function, None, None, {}, name)


def test_times_are_medians_of_ratios_of_interleaved_rounds(clock):
    """The first round warms up and does not count; a disturbed round does not matter; machines that
    slow down do not matter. What reads a longer document is compared by the byte.
    """
    calls = []
    ways = {"static": timed(clock, calls, "static", [9.0, 1.0, 1.0, 2.0]), "double": timed(clock, calls, "double", [90.0, 2.0, 50.0, 4.0])}
    ways["long"] = timed(clock, calls, "long", [1.0, 4.0, 4.0, 8.0])
    short, long = documents(11, 21)
    ratios, microseconds = relative_times(ways, {"static": short, "double": short, "long": long}, rounds=3)
    assert calls == ["static", "double", "long"] * 4
    assert ratios == {"static": 1.0, "double": 2.0, "long": 2.0}
    assert microseconds == pytest.approx(1e6 * statistics.median([1, 1, 2]) / 10)


def test_real_ways_can_be_timed():
    """With a real clock: positive ratios, exactly 1 for the first way."""
    params = initialize(CONFIG)
    ways = {
        "static": Way(evaluate.static, params, CONFIG, {"window": 8}),
        "dynamic": Way(evaluate.dynamic, params, CONFIG, {"window": 8, "descent": Descent(0.1), "segment": 2}),
    }
    ratios, microseconds = relative_times(ways, dict.fromkeys(ways, documents(30)[0]), rounds=3)
    assert ratios["static"] == 1 and ratios["dynamic"] > 1 and microseconds > 0


# --- processes


def test_workers_find_what_is_found_here(workers):
    """Every way of the demo travels to another process and back; losses are the same to the bit."""
    params, texts = initialize(CONFIG), documents(30, 9, 21)
    plain = CONFIG._replace(fast=False)
    ways = [
        Way(evaluate.static, params, plain, {"window": 8}, "static"),
        Way(evaluate.dynamic, params, plain, {"window": 8, "descent": Descent(0.1), "segment": 3}, "dynamic"),
        Way(evaluate.dynamic_block, params, plain, {"window": 8, "rate": 0.1, "decay": 0.0, "segment": 3}, "block"),
        Way(evaluate.fast_weights, params, CONFIG, {"window": 8, "carried": True}, "fast"),
        Way(cached, params, CONFIG, {"window": 8, "theta": 1.0, "share": 0.2, "carried": True}, "cache"),
    ]
    rows = read_all(workers, ways, texts, "reading")
    for way, row in zip(ways, rows, strict=True):
        assert all((a == read(way, text)).all() for a, text in zip(row, texts, strict=True)), way.label


def test_workers_compute_on_one_thread_each(workers):
    """The environment is theirs; that of this process is as it was."""
    found = {name: workers.submit(os.getenv, name).result() for name in WORKER_ENVIRONMENT}
    assert found == WORKER_ENVIRONMENT
    assert os.getpid() not in {workers.submit(os.getpid).result() for _ in range(4)}


def test_the_environment_and_the_rest_come_back(monkeypatch):
    """Set, changed or absent before: the same afterwards, also after an error."""
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    before = dict(os.environ)
    with worker_pool(1):
        assert os.environ["OMP_NUM_THREADS"] == "1" == os.environ["MKL_NUM_THREADS"]
    assert dict(os.environ) == before
    with pytest.raises(KeyError, match="ours"), worker_pool(1):
        raise KeyError("ours")
    assert dict(os.environ) == before
    tqdm(total=1, disable=True).close()  # the lock that bars share still works


def test_after_an_error_jobs_that_have_not_begun_are_dropped():
    """An interrupted demo ends at once and not when all documents are read."""
    begin, jobs = time.perf_counter(), []
    with pytest.raises(KeyboardInterrupt), worker_pool(1) as pool:
        pool.submit(os.getpid).result()
        jobs += [pool.submit(time.sleep, 0.1) for _ in range(200)]
        raise KeyboardInterrupt
    done = [job for job in jobs if not job.cancelled() and job.exception() is None]  # others were dropped, or failed with their worker
    assert time.perf_counter() - begin < 10 and len(done) < 10
