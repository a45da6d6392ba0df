"""What several ranks run in the tests of ``lm/ranks.py``: mpiexec -n N python -m tests.lm.ranks_program JOB ARGUMENTS."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from fwl_ref.__main__ import main
from fwl_ref.backend import as_dtype, host
from fwl_ref.demo.run import run_demo
from fwl_ref.lm import shards
from fwl_ref.lm import train as training
from fwl_ref.lm.adamw import adam_init
from fwl_ref.lm.corpus import Corpus, load_corpus
from fwl_ref.lm.model import Config
from fwl_ref.lm.ranks import ALONE, Ranks, from_first, started, workers
from fwl_ref.lm.resume import resume, train_towards
from fwl_ref.lm.train import Progress, TrainSettings, begin
from fwl_ref.tree import tree_map

CONFIG = Config(width=8, layers=1, heads=2, chunk=5)
SETTINGS = TrainSettings(steps=10, batch=5, window=32, warmup=20, seed=3)  # warming up to the end: the same rates however many steps
CASES = {
    "constant": (CONFIG, SETTINGS),
    "batch": (CONFIG._replace(normalizer="batch"), SETTINGS),
    "sequence": (CONFIG._replace(normalizer="sequence"), SETTINGS._replace(batch=4)),
    "plain": (CONFIG._replace(fast=False), SETTINGS._replace(batch=3)),
    "two parts": (CONFIG, SETTINGS._replace(batch=2)),  # of one sequence each
}


def write_text(folder: Path) -> Corpus:
    """A dozen documents, most of them shorter than a window: the ranks' weights differ."""
    folder.mkdir(exist_ok=True)
    for i in range(12):
        (folder / f"{i}.txt").write_text(f"the {i}th cat sat on mat {i}. " * (1, 1, 1, 3)[i % 4])
    return load_corpus(str(folder))


def fresh(config: Config, settings: TrainSettings) -> Progress:
    """A start in float64."""
    params = tree_map(lambda p: as_dtype(host.asarray(p), "float64"), begin(config, settings).params)
    return Progress(params, adam_init(params), ())


def train_cases(folder: Path, steps: int, ranks: Ranks = ALONE) -> None:
    """Train every case, as far as the number of ranks allows it, to step ``steps``; go on from what ``folder`` has."""
    shards.PART = 1  # one sequence a part
    corpus = from_first(ranks, load_corpus(str(folder.parent / "text")) if ranks.first else None)
    for name, (config, settings) in CASES.items():
        path, asked = folder / f"{name}.npz", settings._replace(steps=steps)
        if ranks.size > settings.batch:
            continue
        found = from_first(ranks, resume(path, config, asked, corpus, extend=True) if ranks.first else None)
        train_towards(path, config, asked, corpus, found or fresh(config, asked), ranks=ranks, quiet=True)


def train_until(number: int, arguments: list[str], what: str) -> int:
    """The command ``train``; in batch 5 rank ``number`` does ``what``: fails, dies, or says that it is there and waits."""
    draw = training.training_batch

    def batch(documents: tuple, size: int, length: int, seed: int, step: int) -> tuple:
        if step == 5 and int(os.environ["OMPI_COMM_WORLD_RANK"]) == number:
            if what == "fails":
                raise ValueError("no such batch")
            if what == "breaks":
                raise ZeroDivisionError("a defect")
            if what == "dies":
                os.kill(os.getpid(), 9)
            Path("there").touch()
            time.sleep(60)
        return draw(documents, size, length, seed, step)

    training.training_batch = batch
    return main(["train", *arguments])


def demo(out: Path, text: str) -> None:
    """The demo at the size of its own tests, with its jobs on the other ranks."""
    from tests.demo.test_run import TINY

    ranks = started()
    with workers(ranks) as pool:
        if ranks.first:
            run_demo(out, text, settings=TINY, pool=pool)


if __name__ == "__main__":
    job, *given = sys.argv[1:]
    if job == "cases":
        train_cases(Path(given[0]), int(given[1]), started())
    elif job == "until":
        sys.exit(train_until(int(given[1]), given[2:], given[0]))
    elif job == "demo":
        demo(Path(given[0]), given[1])
