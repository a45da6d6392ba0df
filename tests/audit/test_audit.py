"""The audit names seven cheats rightly, lets honest evaluators pass, and refuses what it cannot
judge.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import cheats
from fwl_ref.audit import ScoreLeak, audit_scores, check_score_first, streamed
from fwl_ref.audit.evaluator import document_losses, precision
from fwl_ref.backend import namespace
from fwl_ref.dynamic_evaluation import Descent, mean_square, rms_scale
from fwl_ref.fwl import FastSettings
from fwl_ref.lm import evaluate
from fwl_ref.lm.data import Document
from fwl_ref.lm.model import Config, initialize, loss_and_gradient
from fwl_ref.slow_block import FastParameters
from fwl_ref.stream import stream_predict, stream_reveal, stream_start
from fwl_ref.tree import tree_map

pytestmark = pytest.mark.host("compares host scores bit by bit; what it audits runs everywhere in tests of its own")

V, SEGMENT, WINDOW = 12, 8, 32
CONFIG = Config(width=8, layers=1, heads=2, vocabulary=V, fast=False)


def make_params():
    """Random parameters of a size at which every part of the model takes part."""
    rng = np.random.default_rng(0)
    return tree_map(lambda a: a + 0.4 * rng.standard_normal(a.shape), initialize(CONFIG, seed=1, dtype="float64"))


def make_document(n):
    """A part that repeats and a part that does not, so that adapting helps here and hurts there."""
    rng = np.random.default_rng(5)
    return np.concatenate([np.resize(rng.integers(0, V, 5), n // 2), rng.integers(0, V, n - n // 2)])


PARAMS, DOCUMENT, SHORT = make_params(), make_document(96), make_document(64)
READER = cheats.make_reader(
    PARAMS, CONFIG, WINDOW, SEGMENT, np.random.default_rng(7).integers(0, V, 200),
    rate=0.3, rates=(0.0, 0.5, 2.0), rms_rate=0.02, step_size=0.05,
)  # fmt: skip


def as_logits(evaluator):
    return evaluator


def as_losses(evaluator):
    return lambda tokens: document_losses(evaluator(tokens), tokens)


def kinds(evaluator, document=DOCUMENT, **options):
    report = audit_scores(evaluator, document, **{"vocabulary": V, **options})
    assert report.ok == (not report.findings)
    return [finding.kind for finding in report.findings]


# The seven cheats, and honest evaluators
# --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shown", [as_logits, pytest.param(as_losses, marks=pytest.mark.slow)])
@pytest.mark.parametrize("cheat", cheats.CHEATS, ids=lambda c: c.cheat.__name__)
def test_every_cheat_is_named(cheat, shown):
    """By its kind, and nothing else is found."""
    slow = cheat.cheat is cheats.inclusive_read  # token by token
    assert kinds(shown(cheat.cheat(READER)), SHORT[:32] if slow else DOCUMENT) == [cheat.kind]


@pytest.mark.parametrize("shown", [as_logits, pytest.param(as_losses, marks=pytest.mark.slow)])
@pytest.mark.parametrize("honest", sorted({c.honest for c in cheats.CHEATS}, key=lambda f: f.__name__), ids=lambda f: f.__name__)
def test_the_honest_counterpart_of_every_cheat_passes(honest, shown):
    """To the last bit."""
    check_score_first(shown(honest(READER)), SHORT, vocabulary=V, positions=range(1, 64, 9))


def test_the_page_has_a_figure_for_every_cheat_and_a_row_for_every_kind():
    """docs/audit.md, whose table benchmarks/cheats.py prints."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "audit.md").read_text(encoding="utf-8")
    table = [line.split("|")[1:-1] for line in page.splitlines() if line.startswith("| ")]
    assert [row[0].strip() for row in table if len(row) == 5][1:] == [c.name for c in cheats.CHEATS]
    for _, honest, cheating, gain, _ in [row for row in table if len(row) == 5][1:]:
        assert abs(float(honest) - float(cheating) - float(gain)) < 0.0011  # each rounded to 0.001
    assert all(f"`{c.kind}`" in page for c in cheats.CHEATS)


def test_there_are_seven_cheats():
    """Two of them are statistics collected beforehand."""
    assert len({c.kind for c in cheats.CHEATS}) == 7


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("cheat", [cheats.scored_after_the_update, cheats.counts_of_the_segment], ids=lambda f: f.__name__)
def test_the_segment_is_found(cheat, seed):
    """Its first row and its length."""
    (finding,) = audit_scores(cheat(READER), DOCUMENT, vocabulary=V, seed=seed).findings
    start, end = finding.reach
    assert (start % SEGMENT, end - start, finding.row) == (0, SEGMENT, 0)
    assert f"rows {start} to {end - 1} know" in finding.words


def ways():
    """The product's own ways of reading: function, parameters, configuration, options."""
    fast, params = CONFIG._replace(fast=True), evaluate.with_step_size(PARAMS, 0.05, 0.01)
    _, gradient = loss_and_gradient(PARAMS, DOCUMENT[None, :-1], DOCUMENT[None, 1:], None, CONFIG)
    sgd, rms = Descent(0.1, 0.01), Descent(0.01, 0.01, rms_scale(mean_square([gradient])))
    return {
        "static": (evaluate.static, PARAMS, CONFIG, {}),
        "fast weights, reset": (evaluate.fast_weights, params, fast, {}),
        "fast weights, carried": (evaluate.fast_weights, params, fast, {"carried": True}),
        "dynamic evaluation, SGD": (evaluate.dynamic, PARAMS, CONFIG, {"descent": sgd, "segment": SEGMENT}),
        "dynamic evaluation, RMS": (evaluate.dynamic, PARAMS, CONFIG, {"descent": rms, "segment": SEGMENT}),
        "dynamic evaluation, block": (evaluate.dynamic_block, PARAMS, CONFIG, {"rate": 0.3, "decay": 0.01, "segment": SEGMENT}),
    }


@pytest.mark.parametrize("name", ways())
def test_the_products_own_ways_of_reading_pass(name):
    """All of ``fwl_ref.lm.evaluate``, by their losses; the mean squares were collected beforehand,
    outside, which no audit can see.
    """
    function, params, config, options = ways()[name]
    check_score_first(
        lambda tokens: function(params, config, Document("text", tokens), WINDOW, **options), SHORT, vocabulary=V, positions=range(1, 64, 9)
    )


def test_a_normalizer_over_the_sequence_is_found_in_the_block():
    """With N the number of the window's tokens, earlier updates know how long the text is; a carried
    state refuses it, a reset one does not.
    """
    config = CONFIG._replace(fast=True, normalizer="sequence")
    params = evaluate.with_step_size(PARAMS, 0.05, 0.0)

    def evaluator(tokens):
        return evaluate.fast_weights(params, config, Document("text", tokens), len(DOCUMENT))

    (finding,) = audit_scores(evaluator, DOCUMENT, vocabulary=V).findings
    assert finding.kind == "normalizer" and "how long the document is" in finding.words


# Streams
# --------------------------------------------------------------------------------------------------------


class BlockStream:
    """The fast weight block on rows of an embedding, one token at a time."""

    def __init__(self):
        self.slow, self.stream, self.settings = PARAMS.block, stream_start(1, PARAMS.block), FastSettings(eps=1e-6)
        self.eta = FastParameters(*(np.asarray(0.05) for _ in FastParameters._fields))

    def reveal(self, token):
        if self.stream.pending is not None:
            self.stream = stream_reveal(self.stream, np.array([token]), np.ones(1), self.slow, np.asarray(0.01), self.settings)
        self.token = token

    def predict(self):
        logits, self.stream = stream_predict(self.stream, PARAMS.embedding[[self.token]], self.slow, self.eta, self.settings)
        return logits[0]


class KeepsCounts:
    """Counts of what was read, by this stream and by all before it."""

    counts = np.ones(V)

    def reveal(self, token):
        self.counts[token] += 1

    def predict(self):
        return np.log(self.counts / self.counts.sum())


def test_the_streaming_form_passes_and_equals_what_it_streams():
    """A class with predict and reveal is an evaluator: token i is revealed, token i + 1 predicted."""
    check_score_first(BlockStream, DOCUMENT[:32], vocabulary=V, positions=range(1, 32, 5))
    scores = streamed(BlockStream)(DOCUMENT[:10])
    stream, rows = BlockStream(), []
    for token in DOCUMENT[:9]:
        stream.reveal(token)
        rows.append(stream.predict())
    assert scores.shape == (9, V) and np.array_equal(scores, rows)


def test_a_stream_that_keeps_its_counts_for_the_next_is_found():
    """State on the class outlives the stream."""
    assert kinds(KeepsCounts, DOCUMENT[:48]) == ["state"]


def test_one_stream_is_not_an_evaluator():
    """It cannot be read twice."""
    with pytest.raises(TypeError, match="got one stream: give the class"):
        audit_scores(BlockStream(), DOCUMENT, vocabulary=V)


# Small evaluators
# --------------------------------------------------------------------------------------------------------


def ngram(tokens):
    """A bigram cache, written after it is read."""
    counts, rows = np.ones((V, V)), []
    for old, new in zip(tokens[:-1], tokens[1:], strict=True):
        rows.append(np.log(counts[old] / counts[old].sum()))
        counts[old, new] += 1
    return np.array(rows)


def history(tokens):
    """(n-1,V)   logits that depend on every token so far, and on nothing else."""
    summary = np.cumsum(np.sin(1.7 * tokens[:-1] + np.arange(len(tokens) - 1)))
    return np.sin(summary[:, None] * np.arange(1, V + 1))


def peek(ahead):
    """Row i also knows token i + 1 + ``ahead``."""
    return lambda tokens: history(tokens) + 0.1 * np.sin(np.append(tokens[1 + ahead :], np.zeros(ahead)))[:, None] * np.arange(V)


@pytest.mark.parametrize("shown", [as_logits, as_losses])
def test_a_cache_that_is_written_after_it_is_read_passes(shown):
    check_score_first(shown(ngram), DOCUMENT, vocabulary=V)


def test_a_bigram_cache_of_the_whole_text_is_learning_it_before():
    """Counts in context help the row with that context most: two passes."""

    def evaluator(tokens):
        counts = np.ones((V, V))
        np.add.at(counts, (tokens[:-1], tokens[1:]), 1)
        return np.log(counts / counts.sum(axis=1, keepdims=True))[tokens[:-1]]

    assert kinds(evaluator) == ["two_passes"]


@pytest.mark.parametrize("ahead", [1, 3])
@pytest.mark.parametrize("shown", [as_logits, as_losses])
def test_looking_a_few_tokens_ahead_is_found(ahead, shown):
    """So many that it is said how many."""
    (finding,) = audit_scores(shown(peek(ahead)), DOCUMENT, vocabulary=V).findings
    assert (finding.kind, finding.reach[1]) == ("lookahead", ahead + 1)


def test_the_own_label_is_found_by_logits_and_by_losses():
    """Losses keep every bit when a later token changes, but their probabilities sum to more than 1."""

    def evaluator(tokens):
        return history(tokens) + 0.3 * np.eye(V)[tokens[1:]]

    assert kinds(evaluator) == kinds(as_losses(evaluator)) == ["own_label"]
    assert kinds(as_losses(evaluator), label_rows=0) == []  # what it costs V calls a row to see


def test_a_choice_and_an_own_label_are_two_findings():
    """The wide leak does not hide the narrow one."""

    def evaluator(tokens):
        scale = 1.0 if np.mean(tokens) > np.mean(DOCUMENT) + 1 else 1.5
        return scale * history(tokens) + 0.3 * np.eye(V)[tokens[1:]]

    assert kinds(evaluator) == ["tuning", "own_label"]


@given(st.integers(0, 2**32), st.data())
def test_one_row_that_knows_one_later_token_is_found(seed, data):
    """With every position asked for, a leak of any row from any later token, and its row is named."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, V, 24)
    row = data.draw(st.integers(0, 21), label="row")
    q = data.draw(st.integers(row + 1, 23), label="token")

    def evaluator(tokens):
        logits = history(tokens)
        if len(tokens) > q:
            logits[row] += 0.01 * tokens[q] * np.arange(V)
        return logits

    report = audit_scores(evaluator, tokens, vocabulary=V, positions=range(1, 24), seed=seed % 100)
    assert not report.ok and min(f.row for f in report.findings) == row
    assert audit_scores(history, tokens, vocabulary=V, positions=range(1, 24), seed=seed % 100).ok


def test_the_length_alone_is_a_normalizer():
    """No other text of the same length shows it."""
    (finding,) = audit_scores(lambda tokens: history(tokens) / len(tokens), DOCUMENT, vocabulary=V).findings
    assert finding.kind == "normalizer" and "how long the document is" in finding.words
    assert kinds(lambda tokens: history(tokens) / len(tokens), lengths=False) == []


def test_state_between_calls_is_a_finding_of_its_own():
    """Learned from the last call; or a cache that only another text disturbs; or random numbers."""
    counts, last, rng = np.ones(V), [DOCUMENT], np.random.default_rng(0)

    def learns(tokens):
        counts[:] += np.bincount(tokens, minlength=V)
        return np.tile(np.log(counts / counts.sum()), (len(tokens) - 1, 1)) + np.eye(V)[tokens[1:]] * np.log(counts.sum())

    def remembers(tokens):
        changed = len(tokens) != len(last[0]) or np.any(tokens != last[0])
        last[0] = tokens
        return history(tokens) + 0.01 * changed * np.arange(V)

    def dropout(tokens):
        return history(tokens) + 1e-6 * rng.standard_normal((len(tokens) - 1, V))

    assert kinds(learns) == ["state"]
    assert kinds(remembers) == ["state"]
    assert kinds(dropout) == ["random"]
    assert kinds(dropout, tolerance=1e-4) == []  # noise that the caller knows of


def test_a_tolerance_lets_small_leaks_pass_and_no_others():
    """It is compared with the change of a score."""

    def evaluator(tokens):
        return history(tokens) + 1e-6 * np.eye(V)[tokens[1:]]

    assert kinds(evaluator, tolerance=2e-6) == []
    assert kinds(evaluator, tolerance=0.5e-6) == kinds(evaluator) == ["own_label"]


def test_losses_that_are_no_distribution_are_said_to_be_none():
    """Bits instead of nats: no label was seen, and still it is no score."""
    report = audit_scores(lambda tokens: as_losses(ngram)(tokens) / np.log(2), DOCUMENT, vocabulary=V)
    assert [f.kind for f in report.findings] == ["not_a_distribution"]
    assert "bits instead of nats" in str(report)


def test_the_leak_is_raised_with_its_report():
    """In a test it reads as one line, and fails like any assertion."""
    with pytest.raises(ScoreLeak, match="own_label: row .* changes with its label") as caught:
        check_score_first(peek(0), DOCUMENT, vocabulary=V)
    assert isinstance(caught.value, AssertionError) and caught.value.report.findings[0].kind == "own_label"
    report = check_score_first(history, DOCUMENT, vocabulary=V)
    assert report.ok and "no leak found" in str(report) and f"{report.calls} calls" in str(report)


def test_calls_cost_what_the_docstring_says():
    """5 per position, 4 for repeats, 6 for lengths, V for each row of labels."""
    assert audit_scores(history, DOCUMENT, vocabulary=V, positions=range(1, 11)).calls == 60
    assert audit_scores(as_losses(history), DOCUMENT, vocabulary=V, positions=range(1, 11), label_rows=3).calls == 60 + 3 * V


def test_the_same_seed_makes_the_same_report():
    assert audit_scores(peek(2), DOCUMENT, vocabulary=V, seed=3) == audit_scores(peek(2), DOCUMENT, vocabulary=V, seed=3)


def test_evaluators_cannot_change_the_document():
    """Each call gets a copy."""

    def evaluator(tokens):
        scores = history(tokens)
        tokens[:] = 0
        return scores

    check_score_first(evaluator, DOCUMENT, vocabulary=V)


def test_precision_is_that_of_the_numbers_not_of_their_type():
    """float32 losses in a list of Python's floats are float32."""
    values = np.random.default_rng(0).standard_normal(5)
    for dtype in ("float16", "float32", "float64"):
        assert precision(values.astype(dtype).astype("float64")) == np.finfo(dtype).eps
    check_score_first(lambda t: [float(x) for x in as_losses(ngram)(t).astype("float32")], DOCUMENT, vocabulary=V)


def test_scores_on_any_array_library_are_taken():
    """What the standard's arrays hold, on a device that is not the host."""
    strict = pytest.importorskip("array_api_strict")
    device = strict.Device("device1")
    check_score_first(lambda tokens: strict.asarray(history(tokens)).to_device(device), DOCUMENT, vocabulary=V)
    assert namespace(strict.zeros(1)) is not np


# What is refused
# --------------------------------------------------------------------------------------------------------

BAD = {
    "a row for every token": (lambda t: np.zeros(len(t)), {}, ValueError, r"row i scores token i \+ 1"),
    "another vocabulary": (lambda t: np.zeros((len(t) - 1, V + 1)), {}, ValueError, r"got \(95, 13\)"),
    "not finite": (lambda t: np.full(len(t) - 1, np.nan), {}, ValueError, "scores must be finite, row 0 is not"),
    "negative losses": (lambda t: np.full(len(t) - 1, -1.0), {}, ValueError, "losses must be at least 0"),
    "integers": (lambda t: np.zeros(len(t) - 1, int), {}, TypeError, "floating point"),
    "words": (lambda t: "no array", {}, TypeError, "scores must be"),
    "no function": (3, {}, TypeError, "must be a function from tokens"),
    "tolerance": (history, {"tolerance": -1.0}, ValueError, "tolerance must be finite and >= 0, got -1"),
    "no tolerance": (history, {"tolerance": np.nan}, ValueError, "tolerance must be finite"),
    "position 0": (history, {"positions": [0, 3]}, ValueError, "the first token is given"),
    "position n": (history, {"positions": [96]}, ValueError, r"positions must lie in \[1, 96\)"),
    "no position": (history, {"positions": []}, ValueError, "at least one"),
    "label rows": (history, {"label_rows": -1}, ValueError, "label_rows must be at least 0"),
    "vocabulary": (history, {"vocabulary": 1}, ValueError, "vocabulary must hold at least 2"),
    "tokens beyond it": (history, {"vocabulary": 5}, ValueError, r"tokens must lie in \[0, 5\)"),
    "short": (history, {"document": DOCUMENT[:15]}, ValueError, "at least 16 tokens.* got 15"),
    "real numbers": (history, {"document": DOCUMENT / 2}, TypeError, "bytes or integers"),
    "two axes": (history, {"document": DOCUMENT[None]}, TypeError, r"shape \(1, 96\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_audited_is_refused(name):
    """With the invariant and the value found."""
    evaluator, options, error, words = BAD[name]
    with pytest.raises(error, match=re.compile(words, re.DOTALL)):
        audit_scores(evaluator, **{"document": DOCUMENT, "vocabulary": V, **options})


def test_settings_are_refused_before_the_evaluator_is_asked():
    asked = []
    for options in ({"tolerance": -1.0}, {"positions": [0]}, {"label_rows": -1}, {"vocabulary": 5}):
        with pytest.raises(ValueError):
            audit_scores(lambda tokens: asked.append(tokens), **{"document": DOCUMENT, "vocabulary": V, **options})
    assert not asked


def test_bytes_are_a_document():
    check_score_first(lambda t: np.zeros((len(t) - 1, 256)), b"sixteen letters or more")
