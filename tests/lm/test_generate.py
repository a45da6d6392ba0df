"""Generation: the same bytes as literal loops, repeatable, adapting where it should and only there."""

import numpy as np
import pytest

from fwl_ref.lm.evaluate import with_step_size
from fwl_ref.lm.generate import generate, sample
from fwl_ref.lm.model import DIALECTS, Config, effective_step_sizes, features_fwd, initialize, model_fwd
from fwl_ref.slow_block import FastParameters, SlowParameters, slow_block_bwd, slow_block_fwd
from fwl_ref.tree import leaves, tree_map

CONFIG = Config(width=8, layers=1, heads=2, chunk=5)
PROMPT = b"the cat sat on the mat; the cat sat"
FAST = len(FastParameters._fields)


def model(step_size=0.05, decay=0.01, seed=1, config=CONFIG):
    """A random float64 model with logits of order one."""
    fresh = initialize(config, seed, dtype="float64")
    grown = tree_map(lambda p: p * 20 if p.ndim == 2 else p, fresh)
    return with_step_size(grown, step_size, decay) if config.fast else grown


def draw(logits, temperature, rng):
    """A byte by inverting the cumulative distribution: one uniform number a byte."""
    if temperature == 0:
        return int(np.argmax(logits))
    p = np.exp((logits - logits.max()) / temperature)
    return int(np.searchsorted(np.cumsum(p / p.sum()), rng.random(), side="right"))


def full_pass(params, config, prompt, count, temperature, seed):
    """Reads the whole text anew for every byte, with the chunked form; the last token's label does
    not reach its own logits.
    """
    rng, text = np.random.default_rng(seed), list(prompt)
    for _ in range(count):
        tokens, labels = np.asarray([text]), np.asarray([[*text[1:], 0]])
        output, _ = model_fwd(params, tokens, labels, None, config)
        text.append(draw(output.logits[0, -1], temperature, rng))
    return bytes(text[len(prompt) :])


def contexts(text, window):
    """Where the context of each byte begins: a full one begins anew with its last half."""
    start, starts = 0, []
    for i in range(len(text)):
        if i - start == window:
            start = i - window // 2
        starts.append(start)
    return starts


def moving_parameters(params, config, prompt, count, window, temperature, seed, adapt):
    """Fast parameters that are really moved, by gradients of the slow block; a context read anew for every byte; no fast weight code."""
    eta, eps = effective_step_sizes(params.eta, config.dialect), DIALECTS[config.dialect]
    total = [np.zeros_like(p) for p in params.block[:FAST]]

    def last_features(text):
        context = text[contexts(text, window)[-1] :] if config.attention_window is None else text
        return features_fwd(params, np.asarray([list(context)]), config)[0][0][0, -1]  # (D,)

    def write(x, label, weight):
        _, res = slow_block_fwd(x[None], np.asarray([label]), params.block, eps)
        _, gradient = slow_block_bwd(np.asarray([weight]), res)
        for i in range(FAST):
            total[i] = (1 - params.decay) * total[i] + gradient[i]

    for i in range(1, len(prompt)):
        write(last_features(prompt[:i]), prompt[i], 1.0)
    rng, text = np.random.default_rng(seed), list(prompt)
    for _ in range(count):
        x = last_features(text)
        moved = [p - e * s for p, e, s in zip(params.block, eta, total, strict=False)]
        (_, logits), _ = slow_block_fwd(x[None], np.asarray([0]), SlowParameters(*moved, *params.block[FAST:]), eps)
        text.append(draw(logits[0], temperature, rng))
        write(x, text[-1], float(adapt))
    return bytes(text[len(prompt) :])


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("prompt", [PROMPT, b"a", b"ab"])
def test_generation_is_reading_the_whole_text_anew_for_every_byte(temperature, dialect, prompt):
    """As long as the text fits into a window, the stream and the full pass give the same bytes."""
    config = CONFIG._replace(dialect=dialect)
    params = model(step_size=0.005, config=config)
    found = generate(params, config, prompt, 25, window=100, temperature=temperature, seed=3)
    assert found == full_pass(params, config, prompt, 25, temperature, 3)
    assert len(set(found)) > 3 or temperature == 0  # the likeliest byte of an untrained model is often the same


@pytest.mark.parametrize(
    ("window", "attention_window"), [(1, None), (2, None), (7, None), (34, None), (35, None), (100, None), (7, 3), (50, 9)]
)
@pytest.mark.parametrize("adapt", [True, False])
def test_generation_is_a_loop_over_moving_parameters(window, attention_window, adapt):
    """Any window, shorter than the text or not, sliding attention or not: parameters that really move, one gradient of the slow block after
    another, at features that are computed without a cache.
    """
    config = CONFIG._replace(attention_window=attention_window, layers=2)
    params = model(config=config)
    found = generate(params, config, PROMPT, 30, window=window, temperature=0.5, seed=5, adapt=adapt)
    assert found == moving_parameters(params, config, PROMPT, 30, window, 0.5, 5, adapt)


@pytest.mark.host("bytes are drawn on the host")
def test_temperature_zero_takes_the_likeliest_byte_whatever_the_seed():
    """Argmax of the logits; sampling agrees with it as the temperature goes to 0, however tiny."""
    logits = np.random.default_rng(0).standard_normal(256).astype("float32")
    assert sample(logits, 0.0, None) == int(logits.argmax())
    rng = np.random.default_rng(0)
    assert all(sample(logits, t, rng) == int(logits.argmax()) for t in (1e-3, 1e-9, 5e-324) for _ in range(5))
    params = model()
    assert len({generate(params, CONFIG, PROMPT, 20, temperature=0.0, seed=s) for s in range(4)}) == 1


@pytest.mark.host("bytes are drawn on the host")
def test_sampling_follows_the_softmax():
    """Frequencies of 4000 draws against softmax(logits / temperature), within five standard errors."""
    logits, temperature, n = np.array([0.0, 1.0, 2.0, -1.0]), 0.8, 4000
    p = np.exp(logits / temperature) / np.exp(logits / temperature).sum()
    rng = np.random.default_rng(1)
    shares = np.bincount([sample(logits, temperature, rng) for _ in range(n)], minlength=4) / n
    assert (abs(shares - p) < 5 * np.sqrt(p * (1 - p) / n)).all()
    assert max(abs(shares - 0.25)) > 0.2


def test_the_same_seed_writes_the_same_bytes():
    """Twice the same, and a shorter text is the beginning of a longer one; another seed gives
    another text.
    """
    params = model()
    first = generate(params, CONFIG, PROMPT, 40, seed=3)
    assert generate(params, CONFIG, PROMPT, 40, seed=3) == first and len(first) == 40
    assert generate(params, CONFIG, PROMPT, 15, seed=3) == first[:15] and generate(params, CONFIG, PROMPT, 0, seed=3) == b""
    assert generate(params, CONFIG, PROMPT, 40, seed=4) != first


def test_adapting_to_what_is_written_changes_it():
    """With large step sizes the texts part; the first byte is before any adaptation to samples;
    with step sizes of 0 nothing changes.
    """
    large = model(step_size=0.3)
    texts = [generate(large, CONFIG, PROMPT, 40, temperature=0.0, adapt=adapt) for adapt in (True, False)]
    assert texts[0][0] == texts[1][0] and texts[0] != texts[1]
    still = model(step_size=0.0)
    texts = [generate(still, CONFIG, PROMPT, 40, adapt=adapt) for adapt in (True, False)]
    assert texts[0] == texts[1]


def test_the_prompt_is_written_to_memory():
    """What is too far back for attention still counts, through the fast weights alone."""
    other = PROMPT[:10].upper() + PROMPT[10:]
    for step_size, same in ((0.0, True), (0.3, False)):
        params = model(step_size)
        texts = [generate(params, CONFIG, p, 20, window=8, temperature=0.0) for p in (PROMPT, other)]
        assert (texts[0] == texts[1]) is same


@pytest.mark.parametrize("normalizer", ["constant", "batch", "sequence"])
def test_a_plain_model_generates_whatever_its_normalizer(normalizer):
    """Step sizes of zero: the bytes of the slow block, adapting or not."""
    config = CONFIG._replace(fast=False, normalizer=normalizer)
    params = model(config=config)
    texts = {generate(params, config, PROMPT, 20, window=100, seed=2, adapt=adapt) for adapt in (True, False)}
    assert texts == {full_pass(params, config, PROMPT, 20, 0.7, 2)}


def test_generation_leaves_the_parameters_alone():
    """The model that one holds is as before."""
    params = model()
    before = [p.copy() for p in leaves(params)]
    generate(params, CONFIG, PROMPT, 5)
    assert all((a == b).all() for a, b in zip(before, leaves(params), strict=True))


def test_a_progress_bar_only_if_asked(capsys):
    """Quiet unless told otherwise; the text itself is returned, never printed."""
    params = model()
    generate(params, CONFIG, b"a", 2)
    assert capsys.readouterr() == ("", "")
    generate(params, CONFIG, b"a", 2, quiet=False)
    out, err = capsys.readouterr()
    assert not out and "sampling" in err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt": b""}, ["at least 1 byte"]),
        ({"count": -1}, ["count", "at least 0", "got -1"]),
        ({"temperature": -0.1}, ["temperature", "at least 0", "got -0.1"]),
        ({"temperature": np.nan}, ["temperature", "finite", "got nan"]),
        ({"temperature": np.inf}, ["temperature", "finite", "got inf"]),
        ({"seed": -1}, ["seed", "at least 0", "got -1"]),
        ({"window": 0}, ["window", "at least 1", "got 0"]),
        ({"window": 0, "prompt": b"a"}, ["window", "at least 1", "got 0"]),
        ({"config": CONFIG._replace(normalizer="batch")}, ["constant normalizer", "batch"]),
        ({"config": CONFIG._replace(normalizer="sequence"), "prompt": b"a"}, ["constant normalizer", "sequence"]),
    ],
)
def test_generation_that_cannot_be_is_refused(changes, words):
    """Before anything is sampled: what must hold and what was found."""
    good = {"config": CONFIG, "prompt": PROMPT, "count": 3}
    with pytest.raises(ValueError) as caught:
        generate(model(), **(good | changes))
    assert all(word in str(caught.value) for word in words), caught.value
