"""What a model has seen of a document: by its bytes, whatever it is called; by pieces; by its name."""

import numpy as np
import pytest

from fwl_ref.lm.checkpoint import text_of
from fwl_ref.lm.corpus import Document, split
from fwl_ref.lm.reading import document
from fwl_ref.lm.seen import seen, warning

pytestmark = pytest.mark.host("text")


def some(count, size=50, seed=0):
    rng = np.random.default_rng(seed)
    return [Document(f"{i}.txt", rng.integers(97, 123, size).astype("uint8")) for i in range(count)]


def test_every_document_of_a_corpus_is_in_the_part_it_was_sent_to():
    """All three parts; the same bytes under another name are the same text; other text was never seen."""
    documents = some(40)
    corpus = split("here", documents)
    text = text_of(corpus)
    for part, word in zip(corpus.parts, ("trained", "validation", "test"), strict=True):
        assert part and {seen(text, d) for d in part} == {word}
        assert {seen(text, d._replace(name="other")) for d in part} == {word}
    assert {seen(text, d) for d in some(5, seed=1) if d.name not in {t.name for t in corpus.train}} <= {"never seen"}
    assert seen(text, document("new.txt", b"something else")) == "never seen"


def test_an_edited_document_is_doubtful_if_it_was_trained_on():
    """One byte: the name alone is known. An edited test document is new text."""
    corpus = split("here", some(40))
    text = text_of(corpus)

    def edited(d):
        return d._replace(data=np.append(d.data, np.uint8(33)))

    assert seen(text, edited(corpus.train[0])) == "trained?"
    assert seen(text, edited(corpus.test[0])) == "never seen"


def test_what_an_earlier_model_was_trained_on_counts():
    """Training that started from another model has seen that one's text too, wherever it stands now."""
    old, new = split("old", some(40)), split("new", some(40, seed=1))
    text = text_of(new)._replace(earlier=text_of(old).train)
    assert seen(text, old.train[0]) == "trained" and seen(text, old.test[0]) != "trained"
    both = text_of(old)._replace(earlier=text_of(old).test)
    assert seen(both, old.test[0]) == "trained"


def test_a_single_file_that_was_cut_has_a_share():
    """As it was, and with text added at its end: the bytes of the training pieces over all its bytes."""
    (whole,) = some(1, size=40_000)
    corpus = split("file", [whole])
    share = sum(len(d.data) for d in corpus.train) / len(whole.data)
    assert seen(text_of(corpus), whole) == f"{round(100 * share)} % trained" and 0.7 < share < 0.9
    grown = whole._replace(data=np.concatenate([whole.data, some(1, size=40_000, seed=2)[0].data]))
    word = seen(text_of(corpus), grown)
    assert word.endswith("% trained") and int(word.split()[0]) == pytest.approx(50 * share, abs=2)
    assert {seen(text_of(corpus), d) for d in corpus.test} == {"test"}


def test_the_warning_counts_what_was_trained_on():
    """Nothing to say of new text; legends of the words that need one."""
    assert warning(["test", "never seen", "validation"]) == "" == warning([])
    assert "2 of 3 documents were trained on" in warning(["trained", "test", "trained"]) and ";" not in warning(["trained"])
    assert "of this name" in warning(["trained?"]) and "cut into pieces" in warning(["80 % trained"])
