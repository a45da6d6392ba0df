"""Text: split by document and by name alone, every byte predicted once, batches that are functions
of seed and step.
"""

import hashlib
import itertools
import os
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwl_ref.lm.corpus import MIN_BYTES, PARTS, Corpus, cut, load_corpus, omissions, readable, split, summary
from fwl_ref.lm.data import Batch, Document, place_ends, training_batch, windows
from fwl_ref.lm.reading import LeftOut, read

SEED = 7


def text(name, length=600):
    """A document of pseudo-random bytes that depend on its name."""
    rng = np.random.default_rng(list(name.encode()))
    return Document(name, rng.integers(0, 256, length).astype("uint8"))


def names(corpus):
    return [{d.name for d in part} for part in corpus.parts]


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


def test_short_documents_are_used_and_those_without_a_prediction_left_out():
    """Two bytes are enough to predict one; fewer are in no part, and listed."""
    corpus = split("many", [*MANY, text("short", MIN_BYTES - 1), text("enough", MIN_BYTES), text("empty", 0)])
    assert set.union(*names(corpus)) == {d.name for d in MANY} | {"enough"} and MIN_BYTES == 2
    assert corpus.left_out == (LeftOut("short", 1, "empty or one byte"), LeftOut("empty", 0, "empty or one byte"))


def test_few_documents_leave_no_part_empty():
    """Three documents for training by their hashes give three parts of one."""
    few = [text(name) for name in ("a", "b", "c")]
    assert [part_of(d.name) for d in few] == [0, 0, 0]
    assert all(len(p) == 1 for p in names(split("few", few)))


def homes(corpus):
    """The part of every text in a corpus, as a number: 0 train, 1 validation, 2 test."""
    return {d.data.tobytes(): k for k, part in enumerate(corpus.parts) for d in part}


@given(st.lists(st.text("abcdef", min_size=1, max_size=3), min_size=3, max_size=12, unique=True), st.data())
def test_added_documents_bring_nothing_out_of_training(labels, data):
    """However few there are, and in whatever order: a document stays, or leaves validation or test
    to others; what was trained on stays in training.
    """
    count = data.draw(st.integers(3, len(labels)))
    documents = [text(label) for label in labels]
    try:
        before = homes(split("before", documents[:count]))
    except ValueError:
        return
    after = homes(split("after", data.draw(st.permutations(documents))))
    assert set(after) == {d.data.tobytes() for d in documents}
    assert all(after[content] <= part for content, part in before.items())


def test_that_property_is_not_empty():
    """Of the ways to choose four of eight names, most can be split, some fill an empty part, and a
    document that filled one does leave it.
    """
    documents, moved, filled, split_at_all = [text(c) for c in "abcdefgh"], 0, 0, 0
    for four in itertools.combinations(documents, 4):
        try:
            before = homes(split("before", four))
        except ValueError:
            continue
        after = homes(split("after", documents))
        split_at_all += 1
        filled += any(before[d.data.tobytes()] != part_of(d.name) for d in four)
        moved += any(after[content] < part for content, part in before.items())
        assert all(after[content] <= part for content, part in before.items())
    assert split_at_all > 35 and filled > 10 and moved > 10


@given(st.lists(st.tuples(st.integers(0, 59), st.text("xyz", min_size=1, max_size=4)), max_size=8, unique_by=lambda c: c[1]))
def test_a_copy_brings_nothing_out_of_training(copies):
    """A text under several names is in one part, once: the first part that a name is sent to.
    Copies are listed.
    """
    documents = MANY[:60]
    assert {part_of(d.name) for d in documents} == {0, 1, 2}
    before = homes(split("before", documents))
    added = [Document(name, documents[i].data) for i, name in copies]
    corpus = split("after", [*added, *documents])
    after = homes(corpus)
    assert sum(map(len, corpus.parts)) == len(after) == 60
    assert all(after[content] <= part for content, part in before.items())
    for i, document in enumerate(documents):
        labels = [document.name, *(name for j, name in copies if j == i)]
        assert after[document.data.tobytes()] == min(map(part_of, labels))
    assert [(left.size, left.why) for left in corpus.left_out] == [(600, "duplicate")] * len(copies)


# --- one long document


def places(corpus):
    """The part of every byte of a single document, by its position: pieces in order are the
    document.
    """
    pieces = sorted(((d, k) for k, part in enumerate(corpus.parts) for d in part), key=lambda found: found[0].name)
    return np.concatenate([np.full(len(d.data), k) for d, k in pieces]), np.concatenate([d.data for d, _ in pieces])


def test_one_long_document_is_cut_into_pieces_that_keep_every_byte():
    """The pieces of a single file, put together in order, are the file."""
    document = text("book.txt", 50_001)
    corpus = split("book", [document])
    assert all(names(corpus)) and (places(corpus)[1] == document.data).all()


def test_pieces_grow_and_two_of_ten_are_held_out():
    """16 pieces of 1 KiB, 16 of 2 KiB, then of 3 KiB; numbers 4, 14, ... are for validation and 9,
    19, ... for testing.
    """
    document = text("book.txt", 60_000)
    assert [len(d.data) for d in cut(document)] == [1024] * 16 + [2048] * 16 + [3072] * 3 + [1632]
    numbers = [[int(d.name.rpartition("#")[2]) for d in part] for part in split("book", [document]).parts]
    assert numbers[1:] == [[4, 14, 24, 34], [9, 19, 29]] and sorted(sum(numbers, [])) == list(range(36))


def test_a_last_piece_of_one_byte_is_left_out_and_named():
    """Nothing can be predicted in it before a second byte is there."""
    corpus = split("log", [text("log.txt", 10 * 1024 + 1)])
    assert sum(len(d.data) for part in corpus.parts for d in part) == 10 * 1024
    assert corpus.left_out == (LeftOut("log.txt#0010", 1, "empty or one byte"),)


LONG = text("log.txt", 200_000).data


@given(st.integers(10 * 1024, 199_000), st.integers(1, 1000))
def test_an_appended_file_keeps_every_byte_in_its_part(size, more):
    """Whatever the length, and however little is appended: nothing moves at all."""
    before, after = (places(split("log", [Document("log.txt", LONG[:n])]))[0] for n in (size, size + more))
    assert len(after) >= size + more - 1  # a last piece of one byte waits for a second one
    assert (before == after[: len(before)]).all() and {0, 1, 2} == set(before.tolist())


def test_appending_a_kilobyte_to_a_file_tests_on_nothing_trained_on(tmp_path):
    """The files of a bug report: 115 kB, and 1 kB more."""
    path, parts = tmp_path / "log.txt", []
    lines = [f"{i} {i * i % 9973}\n" for i in range(12_100)]
    for count in (12_000, 12_100):
        path.write_text("".join(lines[:count]))
        corpus = load_corpus(str(path))
        parts.append([{line for d in part for line in d.data.tobytes().split(b"\n")[1:-1]} for part in corpus.parts])
    assert path.stat().st_size > 115_000 and all(map(len, parts[0]))
    assert not parts[0][0] & parts[1][2] and not parts[0][2] & parts[1][0]


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
    """Both have three non-empty, disjoint parts of documents in which something can be predicted,
    and no text occurs under two names in two parts.
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
    assert again.fingerprint == shipped.fingerprint and again.left_out == shipped.left_out
    for ours, other in zip(shipped.parts, again.parts, strict=True):
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
    documents = {d.name: d.data.tobytes().decode() for part in corpus.parts for d in part}
    assert documents == files


def test_a_file_of_ones_own_keeps_every_byte(tmp_path):
    """One long UTF-8 file is cut by bytes; put together it is the file again."""
    path = tmp_path / "größe.txt"
    path.write_text(WORDS * 500, encoding="utf-8", newline="")
    corpus = load_corpus(str(path))
    pieces = sorted((d for part in corpus.parts for d in part), key=lambda d: d.name)
    assert b"".join(p.data.tobytes() for p in pieces).decode() == WORDS * 500 and all(corpus.parts)


# --- folders as people have them


def filled(folder, *paths):
    """Write a line of text, of its own name, to every one of these paths."""
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(f"this is {path}, a text like any other\n")


def read_names(folder):
    """Names of the documents, and (name, why) of what was left out."""
    found = read(str(folder))
    return [d.name for d in found.documents], [(item.name, item.why) for item in found.left_out]


def test_hidden_folders_are_left_out_and_named(tmp_path):
    """Versions, environments and notebook copies are no text of one's own."""
    filled(tmp_path, "a.txt", "b/c.txt", ".git/config", ".venv/lib/site.py", "b/.ipynb_checkpoints/c.txt", ".profile")
    hidden = [(name, "hidden") for name in (".git", ".profile", ".venv", "b/.ipynb_checkpoints")]
    assert read_names(tmp_path) == (["a.txt", "b/c.txt"], hidden)


def test_a_hidden_folder_can_be_named_itself(tmp_path):
    """What is asked for is read."""
    filled(tmp_path, ".notes/a.txt")
    assert read_names(tmp_path / ".notes") == (["a.txt"], [])


def test_files_that_are_not_text_are_left_out_and_named_with_their_size(tmp_path):
    """A picture beside the text is no reason to refuse the text."""
    filled(tmp_path, "a.txt")
    (tmp_path / "logo.png").write_bytes(b"\x89PNG\r\n" + bytes(50))
    assert read(str(tmp_path)).left_out == [LeftOut("logo.png", 56, "not UTF-8")]


def test_pipes_and_dangling_links_are_left_out_unopened(tmp_path):
    """Opening a pipe would wait for ever."""
    filled(tmp_path, "a.txt")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    (tmp_path / "round").symlink_to(tmp_path / "round")
    names, left_out = read_names(tmp_path)
    assert names == ["a.txt"] and left_out[::2] == [("gone.txt", "dangling link"), ("round", "unreadable")]
    assert left_out[1] == ("pipe", "pipe or device")


def test_what_may_not_be_read_is_left_out(tmp_path, monkeypatch):
    """A file and a folder without permission; simulated, because root may read everything."""
    filled(tmp_path, "a.txt", "secret.txt", "private/b.txt")
    plain, listed = Path.read_bytes, Path.iterdir

    def refuse(path, allowed):
        if path.name in ("secret.txt", "private"):
            raise PermissionError(13, "Permission denied", str(path))
        return allowed(path)

    monkeypatch.setattr(Path, "read_bytes", lambda path: refuse(path, plain))
    monkeypatch.setattr(Path, "iterdir", lambda path: refuse(path, listed))
    assert read_names(tmp_path) == (["a.txt"], [("private/", "unreadable"), ("secret.txt", "unreadable")])
    for name in ("secret.txt", "private"):
        with pytest.raises(PermissionError, match=name):
            read(str(tmp_path / name))


def test_links_to_folders_are_followed_once(tmp_path):
    """A folder elsewhere is read under the link's name, two links to it under the first; a folder
    that lies here keeps its own name; circles end.
    """
    filled(tmp_path, "here/a.txt", "here/z/b.txt", "there/c.txt", "there/d/e.txt")
    here = tmp_path / "here"
    for name, target in {"one": "there", "two": "there", "again": "here/z", "up": ".", "self": "here"}.items():
        (here / name).symlink_to(tmp_path / target)
    (tmp_path / "there/d/back").symlink_to(tmp_path / "there")
    (tmp_path / "there/home").symlink_to(here)
    names, left_out = read_names(here)
    assert names == ["a.txt", "one/c.txt", "one/d/e.txt", "z/b.txt"]
    twice, circle = "read under another name", "linked in a circle"
    assert left_out == [
        ("again/", twice), ("one/d/back", circle), ("one/home/", twice), ("self", circle), ("two/", twice), ("up", circle),
    ]  # fmt: skip


def test_names_of_other_encodings_are_spelled_out(tmp_path):
    """A Latin-1 file name is no UTF-8: its byte is spelled out, and so is a line break in a name;
    the document is split and fingerprinted as any other.
    """
    for name in (b"gr\xfcn.txt", b"plain.txt", b"two\nlines.txt"):
        try:
            Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(ascii(name).encode() * 10)
        except OSError:
            pytest.skip("this file system takes UTF-8 names alone")
    assert read_names(tmp_path) == (["gr\\xfcn.txt", "plain.txt", "two\\nlines.txt"], [])
    corpus = split("names", read(str(tmp_path)).documents)
    assert len(set(corpus.fingerprint)) == 3 and "\n" not in summary(corpus)


def test_a_dangling_link_does_not_break_the_standard_library(tmp_path, monkeypatch):
    """Debian's site settings are a link that may lead nowhere. Other kinds of files are not named:
    the corpus is the sources.
    """
    filled(tmp_path, "ast.py", "json/tool.py", "json/notes.txt", "test/test_ast.py", ".hidden.txt")
    (tmp_path / "sitecustomize.py").symlink_to(tmp_path / "nowhere")
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    assert read_names("stdlib") == (["ast.py", "json/tool.py"], [("sitecustomize.py", "dangling link")])


def test_the_summary_says_on_one_line_what_was_read_and_left_out():
    """Documents and bytes of each part; of every reason how many, the first name and the bytes,
    where they are known.
    """
    left_out = [LeftOut(".git", None, "hidden"), LeftOut("a.png", 1000, "not UTF-8"), LeftOut("b.png", 234, "not UTF-8")]
    corpus = Corpus("notes", (text("a", 1500), text("b", 20)), (text("c", 7),), (text("d", 9),), tuple(left_out))
    read_part = "corpus notes: train 2 documents (1,520 bytes), validation 1 documents (7 bytes), test 1 documents (9 bytes)"
    assert summary(corpus) == f"{read_part}; left out: 1 hidden (.git), 2 not UTF-8 (a.png, ...; 1,234 bytes)"
    assert summary(corpus._replace(left_out=())) == read_part and omissions([]) == ""
    assert Corpus._fields[1:4] == PARTS


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


class Everything:
    """In place of a random generator: draws every number that it may, once and in order."""

    def integers(self, low, high, size):
        assert size == high - low
        return np.arange(low, high)


def every_window(monkeypatch, documents, length, total):
    """The batch of all windows that a training batch may draw, each as often as its odds say."""
    with monkeypatch.context() as patch:
        patch.setattr(np.random, "default_rng", lambda key: Everything())
        return training_batch(documents, total, length, SEED, 0)


@pytest.mark.parametrize("length", [1, 2, 7, 16])
def test_every_document_is_trained_on_in_proportion_to_its_bytes(monkeypatch, length):
    """Over all windows that can be drawn, each document has the same number of predictions for each
    of its bytes but the first: ``length``.
    """
    sizes = (1, 2, 3, 8, 16, 17, 18, 100, 255)
    documents = [Document(f"{n}", np.full(n, i, dtype="uint8")) for i, n in enumerate(sizes)]
    total = sum(max(n - 1, length) for n in sizes if n > 1)
    batch = every_window(monkeypatch, documents, length, total)
    trained = np.bincount(batch.labels[batch.weights > 0], minlength=len(sizes))
    assert trained.tolist() == [(n - 1) * length for n in sizes]


@pytest.mark.parametrize("length", [1, 2, 7, 16])
@pytest.mark.parametrize("size", [2, 16, 17, 18, 100])
def test_every_byte_is_trained_on_almost_equally_often(monkeypatch, size, length):
    """Windows fill wherever the document is long enough; a byte far from the ends is predicted
    ``length`` times, none less than half as often.
    """
    document = Document("d", np.arange(size, dtype="uint8"))
    batch = every_window(monkeypatch, [document], length, max(size - 1, length))
    assert (batch.weights.sum(axis=1) == min(length, size - 1)).all()
    count = np.bincount(batch.labels[batch.weights > 0], minlength=size)[1:]
    assert (count[length : size - 1 - length] == length).all() and (2 * count >= length).all()


def test_many_short_documents_beside_a_long_one_are_trained_on():
    """A thousand documents of 256 bytes beside 100 kB: 72 % of the windows, as of the bytes."""
    short, long = Document("short", np.ones(256, dtype="uint8")), Document("long", np.zeros(100_000, dtype="uint8"))
    ends = place_ends([*[short] * 1000, long], 256)
    assert ends[999] == 256_000 and ends[1000] == 256_000 + 99_999


def test_an_empty_name_is_not_the_current_folder(tmp_path, monkeypatch):
    """As from an unset variable of a shell: not every file that happens to lie here."""
    for i in range(20):
        (tmp_path / f"{i}.txt").write_text("some text " * (i + 1))
    monkeypatch.chdir(tmp_path)
    assert len(read(".").documents) == 20
    with pytest.raises(ValueError, match="name of the corpus is empty: give '.' for the current folder"):
        read("")


def test_documents_with_nothing_to_predict_are_counted_as_left_out():
    """What is evaluated is what is said to be read: all else is listed."""
    documents = [Document(str(n), np.zeros(n, "uint8")) for n in (0, 5, 1, 2)]
    kept, left_out = readable(documents, [LeftOut("x", None, "hidden")])
    assert [d.name for d in kept] == ["5", "2"]
    assert left_out == [LeftOut("x", None, "hidden"), *(LeftOut(str(n), n, "empty or one byte") for n in (0, 1))]
