"""An adapted memory as a file: what a model has made of the text it has read, to go on from later.

One ``.npz`` file without pickles: the sums of gradients and, if the reader stands in the middle of
a text, the keys and values and the features of its last byte. It belongs to one set of parameters,
and to no other: sums of gradients at other slow weights mean nothing.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from ..backend import Array, host, to_numpy
from ..files import load_arrays, save_arrays
from ..slow_block import FastParameters
from ..stream import Stream
from ..tree import named_leaves
from .checkpoint import fingerprint_of
from .context import Context
from .generate import Reader
from .model import Config, Parameters
from .transformer import KeyValues

FORMAT = 1


class Adapted(NamedTuple):
    """A reader, and how many bytes made it what it is."""

    reader: Reader  # host arrays, if it comes from a file
    size: int


def half_life(decay: Array) -> float:
    """After how many bytes half of what was written has faded; infinity without decay."""
    rate = float(to_numpy(decay))
    return math.log(2) / -math.log1p(-rate) if 0 < rate < 1 else 0.0 if rate else math.inf


def save_state(path: Path, adapted: Adapted, model: str) -> None:
    """Write a memory of the model with this fingerprint; see ``load_state``."""
    stream, context, last = adapted.reader
    arrays = {f"state/{name}": to_numpy(leaf) for name, leaf in named_leaves(stream.state)}
    for i, cache in enumerate(context.caches or ()):
        arrays |= {f"k/{i}": to_numpy(cache.k), f"v/{i}": to_numpy(cache.v)}
    if last is not None:
        arrays["last"] = to_numpy(last)
    meta = {"memory": FORMAT, "model": model, "bytes": adapted.size}
    arrays["meta"] = host.frombuffer(json.dumps(meta).encode(), dtype=host.uint8)
    arrays["text"] = host.frombuffer(context.text, dtype=host.uint8)
    save_arrays(path, arrays)


def load_state(path: Path, params: Parameters, config: Config, window: int) -> Adapted:
    """Read what ``save_state`` wrote for the model of these host parameters.

    Raises FileNotFoundError; ValueError, naming the file, for one that holds no memory or another
    model's, or arrays that are missing, misshapen or not finite; OSError for one that cannot be
    read.
    """
    arrays = load_arrays(path)
    try:
        meta = json.loads(arrays.pop("meta").tobytes())
        form, model, size = meta["memory"], str(meta["model"]), int(meta["bytes"])
    except (KeyError, ValueError, TypeError, RecursionError):
        raise ValueError(
            f"{path}: expected a memory that `generate --state` or `evaluate --state` wrote, found "
            "another file: give another name"
        ) from None
    if form != FORMAT:
        raise ValueError(f"{path}: expected memory format {FORMAT}, found {form}")
    mine = fingerprint_of(params)
    if model != mine:
        raise ValueError(
            f"{path} is the memory of another model ({model}, not {mine}), or of this one before "
            "it was trained further: give another --state"
        )
    state = FastParameters(
        *(
            _take(path, arrays, f"state/{name}", (1, *getattr(params.block, name).shape))
            for name in FastParameters._fields
        )
    )
    if "last" not in arrays:
        return Adapted(Reader(Stream(state, None), Context(), None), size)
    keys = arrays["k/0"].shape[2:3] if "k/0" in arrays and arrays["k/0"].ndim == 4 else (0,)
    shape = (1, config.heads, *keys, config.width // config.heads)
    caches = tuple(
        KeyValues(_take(path, arrays, f"k/{i}", shape), _take(path, arrays, f"v/{i}", shape))
        for i in range(config.layers)
    )
    text = arrays["text"].tobytes() if "text" in arrays else b""
    fits = not text if config.attention_window else 0 < len(text) == keys[0] <= window
    if not fits:
        raise ValueError(
            f"{path}: expected a context of at most {window} bytes with a key for each, found "
            f"{len(text)} bytes and {keys[0]} keys: the file is damaged"
        )
    last = _take(path, arrays, "last", (1, config.width))
    return Adapted(Reader(Stream(state, None), Context(text, caches), last), size)


def _take(path: Path, arrays: dict[str, Any], name: str, shape: tuple[int, ...]) -> Array:
    """A finite array of this shape."""
    array = arrays.get(name)
    if array is None or array.shape != shape or array.dtype.kind != "f":
        found = "nothing" if array is None else f"{array.dtype} of shape {array.shape}"
        raise ValueError(f"{path}: {name}: expected real numbers of shape {shape}, found {found}")
    if not host.all(host.isfinite(array)):
        raise ValueError(f"{path}: {name}: expected finite numbers: the memory has diverged")
    return array
