"""Text: split by document and by name alone, every byte predicted once, batches that are functions
of seed and step.
"""

import hashlib

import numpy as np
import pytest

from fwl_ref.lm.data import MIN_BYTES, Batch, Corpus, Document, load_corpus, split, training_batch, windows

SEED = 7


def text(name, length=600):
    """A document of pseudo-random bytes that depend on its name."""
    rng = np.random.default_rng(list(name.encode()))
    return Document(name, rng.integers(0, 256, length).astype("uint8"))


def names(corpus):
    return [{d.name for d in part} for part in (corpus.train, corpus.validation, corpus.test)]


def part_of(name):
    """The documented rule: the hash of the name, 80 / 10 / 10."""
    bucket = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) % 10
    return 0 if bucket < 8 else bucket - 7


MANY = [text(f"file_{i}.txt") for i in range(200)]


# --- the split


def test_split_puts_each_document_into_exactly_one_part():
    """The parts are disjoint, complete, and near 80 / 10 / 10."""
    parts = names(split("many", MANY))
    assert sum(len(p) for p in parts) == len(set.union(*parts)) == len(MANY)
    assert len(parts[0]) / len(MANY) == pytest.approx(0.8, abs=0.07)
    assert all(len(p) / len(MANY) == pytest.approx(0.1, abs=0.06) for p in parts[1:])


def test_split_follows_the_hash_of_the_name():
    """Where a document goes is its name's hash, so it is the same on every machine and in every
    run.
    """
    for k, part in enumerate(names(split("many", MANY))):
        assert {part_of(name) for name in part} == {k}


def test_split_of_a_document_does_not_depend_on_the_others():
    """Adding, removing and reordering documents never moves another one."""
    whole = names(split("many", MANY))
    fewer = names(split("many", MANY[::-2]))
    assert all(some <= all_ for some, all_ in zip(fewer, whole, strict=True))


def test_split_of_a_document_does_not_depend_on_its_text():
    """Editing a document leaves it in its part."""
    edited = [Document(d.name, d.data[::-1]) for d in MANY]
    assert names(split("many", edited)) == names(split("many", MANY))


def test_short_documents_are_left_out():
    """A document below the minimum is in no part; one of just that length is in one."""
    parts = names(split("many", [*MANY, text("short", MIN_BYTES - 1), text("enough", MIN_BYTES)]))
    assert "short" not in set.union(*parts) and "enough" in set.union(*parts)


def test_few_documents_leave_no_part_empty():
    """Three documents give three parts of one, whatever their hashes."""
    few = [text(name) for name in ("a", "b", "c")]
    assert all(len(p) == 1 for p in names(split("few", few)))


def test_one_long_document_is_cut_into_pieces_that_keep_every_byte():
    """The pieces of a single file, put together in order, are the file."""
    document = text("book.txt", 50_001)
    corpus = split("book", [document])
    pieces = sorted((*corpus.train, *corpus.validation, *corpus.test), key=lambda d: d.name)
    assert all(names(corpus)) and (np.concatenate([p.data for p in pieces]) == document.data).all()


# --- the fingerprint


def test_a_fingerprint_tells_each_part_from_any_other():
    """It is the same for the same text; a byte, a name, an order, a boundary between documents or
    between name and text changes that part's digest and no other.
    """
    a, b = Document("a", np.frombuffer(b"one two", dtype="uint8")), Document("b", np.frombuffer(b"three", dtype="uint8"))
    corpus = Corpus("made up", (a, b), (b,), ())
    assert corpus.fingerprint == Corpus("elsewhere", (a, b), (b,), ()).fingerprint
    assert all(len(part) == 64 and int(part, 16) >= 0 for part in corpus.fingerprint)
    others = [
        (a, Document("b", b.data[::-1])), (a, Document("c", b.data)), (b, a), (a,), (a, b, b), (),
        (Document("a", a.data[:-1]), Document("b", np.concatenate([a.data[-1:], b.data]))),
        (Document("ao", a.data[1:]), b), (Document("a", np.concatenate([a.data, b.data])),),
    ]  # fmt: skip
    changed = [corpus._replace(train=other).fingerprint for other in others]
    assert len({f.train for f in [corpus.fingerprint, *changed]}) == len(others) + 1
    assert {f[1:] for f in changed} == {corpus.fingerprint[1:]}


# --- the corpora


@pytest.fixture(scope="module", params=["stdlib", "topics"])
def shipped(request):
    """A corpus that comes with Python."""
    return load_corpus(request.param)


def test_shipped_corpora_load_with_disjoint_parts(shipped):
    """Both have three non-empty, disjoint parts of documents long enough to adapt to, and no text
    occurs under two names in two parts.
    """
    parts = names(shipped)
    assert all(parts) and len(set.union(*parts)) == sum(len(p) for p in parts)
    documents = [d for part in (shipped.train, shipped.validation, shipped.test) for d in part]
    assert all(len(d.data) >= MIN_BYTES and d.data.dtype == np.uint8 for d in documents)
    contents = [{hashlib.sha256(d.data.tobytes()).digest() for d in part} for part in (shipped.train, shipped.validation, shipped.test)]
    assert not contents[0] & contents[1] and not contents[0] & contents[2] and not contents[1] & contents[2]


def test_shipped_corpora_load_the_same_twice(shipped):
    """Loading is deterministic: names, order and bytes."""
    again = load_corpus(shipped.source)
    for ours, other in zip(shipped[1:], again[1:], strict=True):
        assert [d.name for d in ours] == [d.name for d in other]
        assert all((a.data == b.data).all() for a, b in zip(ours, other, strict=True))


# --- one's own text

WORDS = "Größe, naïve façade; Ω ≈ 3 — 日本語 🙂\n"


def test_a_folder_of_ones_own_keeps_every_byte(tmp_path):
    """Non-ASCII names and text, nested folders: documents are the files' bytes, named by relative
    path; hidden files are left out.
    """
    (tmp_path / "unter ordner").mkdir()
    files = {f"тест_{i}.txt" if i % 2 else f"unter ordner/ü{i}.md": WORDS * (20 + i) for i in range(30)}
    for name, content in files.items():
        (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    (tmp_path / ".hidden").write_bytes(b"\xff" * 1000)
    corpus = load_corpus(str(tmp_path))
    documents = {d.name: d.data.tobytes().decode() for part in corpus[1:] for d in part}
    assert documents == files


def test_a_file_of_ones_own_keeps_every_byte(tmp_path):
    """One long UTF-8 file is cut by bytes; put together it is the file again."""
    path = tmp_path / "größe.txt"
    path.write_text(WORDS * 500, encoding="utf-8", newline="")
    corpus = load_corpus(str(path))
    pieces = sorted((d for part in corpus[1:] for d in part), key=lambda d: d.name)
    assert b"".join(p.data.tobytes() for p in pieces).decode() == WORDS * 500 and all(corpus[1:])


# --- windows


@pytest.mark.parametrize(("length", "window"), [(2, 5), (10, 1), (10, 3), (10, 9), (10, 10), (11, 5), (300, 64)])
def test_windows_predict_every_byte_but_the_first_exactly_once(length, window):
    """Labels in order are bytes 1, 2, ..., n-1; each token is the byte before its label; no window
    is longer than asked.
    """
    document = text("d", length)
    batches = list(windows(document, window))
    assert (np.concatenate([b.labels[0] for b in batches]) == document.data[1:]).all()
    assert (np.concatenate([b.tokens[0] for b in batches]) == document.data[:-1]).all()
    assert all(b.tokens.shape == b.labels.shape == b.weights.shape and 1 <= b.tokens.shape[1] <= window for b in batches)
    assert all((b.weights == 1).all() for b in batches) and all(b.tokens.shape[1] == window for b in batches[:-1])


@pytest.mark.parametrize("limit", [1, 7, 8, 100])
def test_windows_stop_at_the_limit(limit):
    """``limit`` bytes are predicted, or all of a shorter document."""
    document = text("d", 30)
    labels = np.concatenate([b.labels[0] for b in windows(document, 8, limit)])
    assert (labels == document.data[1 : limit + 1]).all()


# --- training batches


def same(a: Batch, b: Batch) -> bool:
    return all((x == y).all() for x, y in zip(a, b, strict=True))


def test_training_batch_is_a_function_of_seed_and_step():
    """The same twice, whatever was drawn before or between; another seed or step gives another
    batch.
    """
    documents = tuple(MANY[:5])
    first = training_batch(documents, 3, 16, SEED, 4)
    for step in range(3):
        training_batch(documents, 2, 8, SEED + 1, step)
    np.random.default_rng(0).random(10)
    assert same(first, training_batch(documents, 3, 16, SEED, 4))
    assert not same(first, training_batch(documents, 3, 16, SEED, 5))
    assert not same(first, training_batch(documents, 3, 16, SEED + 1, 4))


def test_training_batch_has_the_same_windows_first_in_a_larger_batch():
    """Rows are drawn in order, so a smaller batch is the beginning of a larger one."""
    small, large = (training_batch(tuple(MANY[:5]), b, 16, SEED, 0) for b in (2, 6))
    assert same(small, Batch(*(a[:2] for a in large)))


def test_padding_has_weight_zero_and_no_window_crosses_a_document():
    """Where the weight is 1 a row is consecutive bytes of one document; then come zeros of weight
    0, only at a document's end.
    """
    documents = tuple(text(f"d{i}", n) for i, n in enumerate((5, 12, 40, 3)))
    contents = [d.data.tobytes() for d in documents]
    padded = full = 0
    for step in range(40):
        batch = training_batch(documents, 4, 16, SEED, step)
        assert batch.tokens.shape == batch.labels.shape == batch.weights.shape == (4, 16)
        for tokens, labels, weights in zip(*batch, strict=True):
            n = int(weights.sum())
            assert n >= 1 and (weights[:n] == 1).all() and (weights[n:] == 0).all()
            assert not tokens[n:].any() and not labels[n:].any()
            assert (tokens[1:n] == labels[: n - 1]).all()
            row = bytes(tokens[:n].astype("uint8")) + bytes([int(labels[n - 1])])
            homes = [c for c in contents if row in c]
            assert homes and (n == 16 or any(c.endswith(row) for c in homes))
            padded, full = padded + (n < 16), full + (n == 16)
    assert padded and full


def test_every_position_of_every_document_is_drawn():
    """No document and no byte is out of reach of training: all labels of a small corpus turn up."""
    documents = (Document("a", np.arange(0, 30, dtype="uint8")), Document("b", np.arange(100, 106, dtype="uint8")))
    seen = set()
    for step in range(60):
        batch = training_batch(documents, 4, 8, SEED, step)
        seen |= set(batch.labels[batch.weights > 0].tolist())
    assert seen == {*range(1, 30), *range(101, 106)}
