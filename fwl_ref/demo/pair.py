"""A plain and a fast model that come with the package, for the quick demo to read at once.

``tools/pair.py`` trains them as the full demo does, only longer. A document goes to the training,
validation or test part by its name (``lm/corpus.py``), so what the demo reads was held out in
training, whatever Python's version. Parameters are kept in half precision.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..backend import Array, as_dtype, host
from ..files import load_arrays, save_arrays
from ..lm.corpus import Document
from ..lm.model import Config, Parameters, parameter_shapes
from ..lm.train import TrainSettings
from ..tree import named_leaves, rebuild

PAIR = Path(__file__).with_name("pair.npz")
SHIPPED_OF = "stdlib"  # the corpus that the models were trained on
MODELS = ("plain", "fast")


class Pair(NamedTuple):
    """Both models, and how they came about."""

    plain: Parameters
    fast: Parameters
    curves: dict[str, Array]  # (steps,) bits per byte in training, of each
    config: Config  # of the fast one
    training: TrainSettings
    trained: tuple[str, ...]  # names of the documents
    made: str  # when, and with what


def save_pair(path: Path, pair: Pair) -> None:
    """Write both models, in half precision. Raises ValueError for a number beyond its range."""
    arrays = {f"curve.{name}": host.asarray(pair.curves[name], dtype="float16") for name in MODELS}
    for name in MODELS:
        for leaf, value in named_leaves(getattr(pair, name)):
            arrays[f"{name}.{leaf}"] = half = host.asarray(value, dtype="float16")
            if not host.all(host.isfinite(half)):
                raise ValueError(f"{name}.{leaf} has a number beyond half precision")
    about = {
        "config": pair.config._asdict(),
        "training": pair.training._asdict(),
        "trained": pair.trained,
        "made": pair.made,
    }
    arrays["about"] = host.frombuffer(json.dumps(about).encode("utf-8"), dtype="uint8")
    save_arrays(path, arrays)


def load_pair(path: Path = PAIR) -> Pair:
    """Both models in single precision. Raises ValueError or OSError as ``load_arrays``."""
    arrays = load_arrays(path)
    about: dict[str, Any] = json.loads(arrays["about"].tobytes())
    config = Config(**about["config"])

    def model(name: str) -> Parameters:
        shapes = parameter_shapes(config)
        found = [as_dtype(arrays[f"{name}.{leaf}"], "float32") for leaf, _ in named_leaves(shapes)]
        return rebuild(shapes, found)

    return Pair(
        model("plain"),
        model("fast"),
        {name: as_dtype(arrays[f"curve.{name}"], "float32") for name in MODELS},
        config,
        TrainSettings(**about["training"]),
        tuple(about["trained"]),
        about["made"],
    )


def check_held_out(pair: Pair, documents: Sequence[Document]) -> None:
    """Raise ValueError if a document was trained on."""
    if seen := sorted({d.name for d in documents} & set(pair.trained)):
        raise ValueError(
            f"the models that come with the package were trained on {seen[0]}, which is to be read "
            "as a test: take the full demo, which trains its own"
        )
