"""Make one row, in whatever process: everything it needs is in files below one folder.

Models lie in ``models/``, losses in ``losses/``, named by the key of their row.
"""

from __future__ import annotations

import datetime
import math
import platform
import time
from functools import lru_cache
from pathlib import Path

from ..backend import Array, backend_versions
from ..files import load_arrays, save_arrays
from ..lm.corpus import Document, load_corpus, pick
from ..lm.evaluate import LN2
from ..lm.model import Config
from ..lm.train import TrainSettings
from .journal import Result
from .learner import learner_of, load
from .outside import OUTSIDE, ngram_bits
from .row import Row
from .training import described, train_model
from .ways import WAYS, Given
from .where import POSITIONS, sums

MISFORTUNES = (FloatingPointError, OverflowError)  # numbers that ran away: a result, and no error

corpus_of = lru_cache(maxsize=4)(load_corpus)


def make(row: Row, out: Path) -> Result:
    """The row's result. Numbers that run away make a result that says so.

    Raises as training and reading do, for all else.
    """
    began = time.perf_counter()
    try:
        found = MAKERS[row.kind](row, out)
    except MISFORTUNES as error:
        found = {"failed": " ".join(str(error).split())}
    return {
        **row._asdict(),
        **found,
        "row_seconds": round(time.perf_counter() - began, 2),
        "versions": backend_versions("numpy"),
        "machine": f"{platform.system()} {platform.machine()}",
        "date": datetime.date.today().isoformat(),
    }


def trained(row: Row, out: Path) -> Result:
    """A model, in its file."""
    config, training = settings_of(row)
    place = model_file(out, row.key)
    options = {"nudge": row.settings["nudge"], "learner": learner_of(row.settings)}
    return described(train_model(place, config, training, corpus_of(row.corpus), **options))


def read(row: Row, out: Path) -> Result:
    """A way of reading: bits of every test document, and the losses in their file."""
    o, corpus = row.settings, corpus_of(row.corpus)
    config, training = settings_of(row)
    model = model_file(out, row.needs[0])
    progress = load(model, config, training, corpus, learner_of(o))
    if progress is None:
        raise FileNotFoundError(
            f"{model}, the model of the row {row.name!r}, is gone: "
            "remove its line from the results, and it is trained again"
        )
    given = Given(
        progress.params, config, window_of(row), row.seed, corpus,
        pick(corpus.validation, *o["validation"]),
    )  # fmt: skip
    chosen = WAYS[o["way"]](given, o)
    test, began = pick(corpus.test, *o["test"]), time.perf_counter()
    losses = [chosen.read(document).astype("float64") for document in test]
    seconds = time.perf_counter() - began
    arrays = {str(i): loss.astype("float32") for i, loss in enumerate(losses)}
    save_arrays(out / "losses" / f"{row.key}.npz", arrays)
    return {
        "documents": [d.name for d in test],
        "bytes": [len(loss) for loss in losses],
        "bits": [float(loss.mean()) / LN2 for loss in losses],
        "by_position": [by_position(loss) for loss in losses],
        "chosen": chosen.tuned,
        "seconds_per_byte": seconds / sum(len(loss) for loss in losses),
    }


def by_position(loss: Array) -> list[float]:
    """Mean bits a byte between the POSITIONS; nan where there is none."""
    stops = (*POSITIONS[1:], len(loss) + 1)
    parts = [loss[a:b] for a, b in zip(POSITIONS, stops, strict=True)]
    return [float(part.mean()) / LN2 if len(part) else math.nan for part in parts]


def outside(row: Row, _: Path) -> Result:
    """A compressor: bits a predicted byte, like those of the models."""
    o = row.settings
    test = pick(corpus_of(row.corpus).test, *o["test"])
    texts = [document.data.tobytes() for document in test]
    began = time.perf_counter()
    if o["way"] == "n-grams":
        bits = [ngram_bits(text, o["order"]) for text in texts]
    else:
        bits = [OUTSIDE[o["way"]](text) for text in texts]
    seconds = time.perf_counter() - began
    sizes = [len(text) - 1 for text in texts]
    return {
        "documents": [d.name for d in test],
        "bytes": sizes,
        "bits": [b / n for b, n in zip(bits, sizes, strict=True)],
        "seconds_per_byte": seconds / sum(sizes),
    }


def where(row: Row, out: Path) -> Result:
    """Section 4: the second row that is needed against the first, byte by byte."""
    corpus = corpus_of(row.corpus)
    test = pick(corpus.test, *row.settings["test"])
    base, own = (losses_of(out, key, test) for key in row.needs)
    return {"where": sums(corpus.train, test, own, base)}


MAKERS = {"train": trained, "read": read, "outside": outside, "where": where}


def settings_of(row: Row) -> tuple[Config, TrainSettings]:
    """What the row's model is trained with."""
    return Config(**row.settings["config"]), TrainSettings(**row.settings["training"])


def window_of(row: Row) -> int:
    """How much is read at a time: the windows of training, unless the row says otherwise."""
    window: int = row.settings.get("reading_window", row.settings["training"]["window"])
    return window


def model_file(out: Path, key: str) -> Path:
    """Where a model lies."""
    return out / "models" / f"{key}.npz"


def losses_of(out: Path, key: str, documents: list[Document]) -> list[Array]:
    """The losses that a row left. Raises ValueError if they are of other documents."""
    arrays = load_arrays(out / "losses" / f"{key}.npz")
    losses = [arrays[str(i)] for i in range(len(arrays))]
    if [len(loss) for loss in losses] != [len(d.data) - 1 for d in documents]:
        raise ValueError(f"losses of the row {key} are not those of these documents: start anew")
    return losses
