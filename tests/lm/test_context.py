"""Reading on by cached keys and values: the features of a literal recomputation, at every byte, and memory that does not grow.

A docstring that opens with "N:" is a negative control: something that must not hold.
"""

import numpy as np
import pytest

from fwl_ref.lm import context as contexts
from fwl_ref.lm.context import Context, read_on
from fwl_ref.lm.generate import generate, read_text, reader_start, write_text
from fwl_ref.lm.model import Config, features_fwd, initialize, model_fwd
from fwl_ref.tree import leaves, tree_map

CONFIG = Config(width=8, layers=3, heads=2, chunk=5)
TEXT = bytes(np.random.default_rng(0).integers(97, 123, 90).astype("uint8"))
WINDOW = 16


def model(config=CONFIG, dtype="float64", step_size=0.01):
    """Random, with logits of order one."""
    fresh = initialize(config, 1, dtype=dtype, step_size=step_size)
    return fresh._replace(
        **{name: tree_map(lambda p: p * 20 if p.ndim == 2 else p, getattr(fresh, name)) for name in ("trunk", "embedding", "block")}
    )


def literal(params, config, text, window):
    """(n,D)   every byte from its own context, read anew: under sliding attention all of the text, else what ``lm/context.py`` says."""
    found, start = [], 0
    for i in range(len(text)):
        if config.attention_window is None and i - start == window:
            start = i - window // 2
        (x, _), _ = features_fwd(params, np.asarray([list(text[start : i + 1])]), config)
        found.append(x[0, -1])
    return np.stack(found)


def in_pieces(params, config, text, window, sizes):
    """(n,D), contexts   the same by ``read_on``, in pieces of these sizes in turn."""
    xs, context, seen, at, turn = [], Context(), [], 0, 0
    while at < len(text):
        size = sizes[turn % len(sizes)]
        x, context = read_on(params, config, context, text[at : at + size], window)
        xs.append(x[0])
        seen.append(context)
        at, turn = at + size, turn + 1
    return np.concatenate(xs), seen


@pytest.mark.parametrize("sizes", [(1,), (90,), (7, 1, 1, 30)])
@pytest.mark.parametrize(
    ("window", "sliding"), [(WINDOW, None), (1, None), (2, None), (15, None), (100, None), (WINDOW, 1), (WINDOW, 5), (3, 20), (100, 7)]
)
def test_cached_features_are_those_of_reading_anew(window, sliding, sizes):
    """At every byte, however the text is cut into pieces: to rounding."""
    config = CONFIG._replace(attention_window=sliding)
    params = model(config)
    found, _ = in_pieces(params, config, TEXT, window, sizes)
    assert abs(found - literal(params, config, TEXT, window)).max() < 1e-12


def test_under_sliding_attention_the_caches_stop_growing():
    """Never more than twice the attention window and a piece; without it never more than the window. Positions, too, stay below that."""
    for sliding, most in ((5, 2 * 5), (None, WINDOW)):
        config = CONFIG._replace(attention_window=sliding)
        _, seen = in_pieces(model(config), config, TEXT * 2, WINDOW, (1,))
        lengths = [cache.k.shape[2] for context in seen for cache in context.caches]
        assert max(lengths) <= most and max(len(context.text) for context in seen) <= WINDOW


@pytest.mark.parametrize("mistake", ["one key too few", "keys not turned back"])
def test_a_cache_that_is_cut_wrongly_is_noticed(mistake, monkeypatch):
    """N: one key more let go, or keys left at their old positions."""
    config = CONFIG._replace(attention_window=5)
    original = contexts.within_reach

    def wrong(caches, w):
        if mistake == "one key too few":
            return original(caches, w - 1)
        return original(caches, w)

    monkeypatch.setattr(contexts, "within_reach", wrong)
    if mistake == "keys not turned back":
        monkeypatch.setattr(contexts, "rotary_fwd", lambda k, start: (k, None))
    params = model(config)
    found, _ = in_pieces(params, config, TEXT, WINDOW, (1,))
    assert abs(found - literal(params, config, TEXT, WINDOW)).max() > 1e-3


def test_a_long_text_in_float32_loses_nothing():
    """After 3,000 bytes the error against float64 is what it was after 300: positions do not grow."""
    config = CONFIG._replace(attention_window=5)
    text = TEXT * 34
    single, double = (in_pieces(model(config, dtype), config, text, WINDOW, (7,))[0] for dtype in ("float32", "float64"))
    errors = abs(single - double).max(axis=1)
    assert errors[-300:].max() < 4 * errors[:300].max() < 1e-3


@pytest.mark.parametrize("sliding", [None, 5])
def test_a_reader_adapts_as_reading_the_text_at_once_does(sliding):
    """Within one window, or under sliding attention whatever the length: the memory is that of the model's one forward pass."""
    config = CONFIG._replace(attention_window=sliding)
    params, window = model(config), 100 if sliding is None else WINDOW
    tokens, labels = (np.asarray([list(part)]) for part in (TEXT[:-1], TEXT[1:]))
    output, _ = model_fwd(params, tokens, labels, None, config)
    for cuts in ([90], [1, 2, 50, 90], list(range(1, 91))):
        reader = reader_start(params)
        for start, stop in zip([0, *cuts[:-1]], cuts, strict=True):
            reader = read_text(params, config, reader, TEXT[start:stop], window)
        for a, b in zip(leaves(reader.stream.state), leaves(output.state), strict=True):
            assert abs(a - b).max() < 1e-11 * max(1, abs(b).max())


@pytest.mark.parametrize("sliding", [None, 5])
@pytest.mark.parametrize("split", [1, 16, 40])
def test_writing_goes_on_where_it_stopped(sliding, split):
    """The likeliest bytes in two goes are those in one; what was sampled is text like any other."""
    config = CONFIG._replace(attention_window=sliding)
    params = model(config, step_size=0.05)
    whole = generate(params, config, TEXT[:9], 45, window=WINDOW, temperature=0.0)
    options = {"window": WINDOW, "temperature": 0.0}
    first, reader = write_text(params, config, read_text(params, config, reader_start(params), TEXT[:9], WINDOW), split, **options)
    second, _ = write_text(params, config, reader, 45 - split, **options)
    assert first + second == whole
    assert generate(params, config, TEXT[:9] + first, 45 - split, **options) == second


def test_reading_nothing_is_refused():
    """No text, no window; and nothing is sampled before a byte was read."""
    params = model()
    for text, window in ((b"", 5), (b"a", 0)):
        with pytest.raises(ValueError, match="at least 1"):
            read_on(params, CONFIG, Context(), text, window)
    with pytest.raises(ValueError, match="nothing has been read"):
        write_text(params, CONFIG, reader_start(params), 1)
