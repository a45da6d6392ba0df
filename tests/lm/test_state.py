"""A memory as a file: goes on to the bit, belongs to one model, and refuses what does not fit."""

import json

import numpy as np
import pytest

from fwl_ref.backend import to_numpy
from fwl_ref.lm.checkpoint import fingerprint_of
from fwl_ref.lm.context import Context
from fwl_ref.lm.generate import Reader, read_text, reader_start, write_text
from fwl_ref.lm.model import Config, initialize
from fwl_ref.lm.state import Adapted, half_life, load_state, save_state
from fwl_ref.tree import leaves, tree_map

pytestmark = pytest.mark.host("files")
CONFIG = Config(width=8, layers=2, heads=2, chunk=5)
PROMPT, WINDOW = b"the cat sat on the mat", 16


def model(config=CONFIG):
    return tree_map(lambda p: p * 20 if p.ndim == 2 else p, initialize(config, 1, step_size=0.05))


def kept(tmp_path, params, config=CONFIG):
    """A reader in the middle of a text, and its file."""
    reader = read_text(params, config, reader_start(params), PROMPT, WINDOW)
    save_state(tmp_path / "s.npz", Adapted(reader, len(PROMPT)), fingerprint_of(params))
    return reader, tmp_path / "s.npz"


@pytest.mark.parametrize("sliding", [None, 5])
def test_a_memory_goes_on_to_the_bit(tmp_path, sliding):
    """Written and read: the same arrays, and the same bytes after them."""
    config = CONFIG._replace(attention_window=sliding)
    params = model(config)
    reader, path = kept(tmp_path, params, config)
    found = load_state(path, params, config, WINDOW)
    assert found.size == len(PROMPT) and found.reader.context.text == reader.context.text
    arrays = [leaves((r.stream, r.context.caches, r.last)) for r in (reader, found.reader)]
    for a, b in zip(*arrays, strict=True):
        assert (a == b).all() and a.dtype == b.dtype
    texts = [write_text(params, config, r, 30, window=WINDOW, seed=3)[0] for r in (reader, found.reader)]
    assert texts[0] == texts[1]


def test_a_memory_between_texts_has_no_context(tmp_path):
    """That of evaluate: the sums alone, and a prompt is needed."""
    params = model()
    reader, _ = kept(tmp_path, params)
    save_state(tmp_path / "e.npz", Adapted(Reader(reader.stream, Context(), None), 5), fingerprint_of(params))
    found = load_state(tmp_path / "e.npz", params, CONFIG, WINDOW)
    assert found.reader.last is None and found.reader.context == Context() and found.size == 5
    assert (to_numpy(reader.stream.state.W1) == found.reader.stream.state.W1).all()


def test_a_memory_belongs_to_one_model(tmp_path):
    """One step of training later, or of another seed: refused, by both names."""
    params = model()
    _, path = kept(tmp_path, params)
    other = params._replace(gain=params.gain + np.float32(1e-3))
    with pytest.raises(ValueError, match=f"another model .{fingerprint_of(params)}, not {fingerprint_of(other)}"):
        load_state(path, other, CONFIG, WINDOW)
    assert (
        fingerprint_of(params)
        == fingerprint_of(tree_map(np.copy, params))
        != fingerprint_of(tree_map(lambda p: p.astype("float64"), params))
    )


def damaged(path, **changes):
    with np.load(path) as file:
        arrays = dict(file) | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"state/W2": None}, "state/W2: expected real numbers of shape .*found nothing"),
        ({"state/b1": np.ones((1, 3))}, r"state/b1: expected real numbers of shape \(1, 32\), found float64 of shape \(1, 3\)"),
        ({"state/b1": np.full((1, 32), np.nan)}, "state/b1: expected finite numbers"),
        ({"last": np.ones((1, 7))}, "last: expected real numbers"),
        ({"v/1": None}, "v/1: expected real numbers"),
        ({"text": np.frombuffer(b"abc", dtype="uint8")}, "a context of at most 16 bytes with a key for each, found 3 bytes and"),
        ({"meta": np.frombuffer(json.dumps({"memory": 9, "model": "", "bytes": 1}).encode(), dtype="uint8")}, "format 1, found 9"),
        ({"meta": None}, "expected a memory that"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tmp_path, changes, words):
    """Missing, misshapen, not finite, of another format, of another kind: the file, and what was found."""
    params = model()
    _, path = kept(tmp_path, params)
    damaged(path, **changes)
    with pytest.raises(ValueError, match=words) as caught:
        load_state(path, params, CONFIG, WINDOW)
    assert str(caught.value).startswith(str(path))


def test_half_a_memory_fades_in_its_half_life():
    """(1 - lambda)^n = 1/2; never without decay, at once where everything fades."""
    for decay in (0.5, 0.005, 0.3):
        assert (1 - decay) ** half_life(np.asarray(decay)) == pytest.approx(0.5)
    assert half_life(np.asarray(0.0)) == np.inf and half_life(np.asarray(1.0)) == 0
