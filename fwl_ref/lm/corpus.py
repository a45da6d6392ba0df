"""A corpus: documents of one source, split into text to train on, to choose by and to test on.

Two corpora come with every CPython, so nothing is downloaded: the standard library's source files,
and the reference texts of ``pydoc_data.topics``. Any UTF-8 file or folder of your own works the
same way.

The split never looks at how much text there is. A document goes where the hash of its name sends
it; a single file is cut at fixed places, and a piece goes where its number sends it. So text that
is added leaves what was trained on out of the test part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias

from .reading import Document, LeftOut, Reading, read, shown

MIN_BYTES = 2  # the first byte of a document is given, the others are predicted
PIECE = 1024  # bytes of each of the first pieces of a single file
SAME_LENGTH = 16  # so many pieces, then longer ones
MIN_FILE = 10 * PIECE  # ten pieces are the fewest that fill all three parts
PARTS = ("train", "validation", "test")

Documents: TypeAlias = tuple[Document, ...]


class Fingerprint(NamedTuple):
    """SHA-256 of each part of a corpus, 64 hexadecimal digits each."""

    train: str
    validation: str
    test: str


class Corpus(NamedTuple):
    """Documents of one source, split by document."""

    source: str
    train: Documents
    validation: Documents
    test: Documents
    left_out: tuple[LeftOut, ...] = ()

    @property
    def parts(self) -> tuple[Documents, Documents, Documents]:
        """The documents to train on, to choose by and to test on."""
        return self.train, self.validation, self.test

    @property
    def fingerprint(self) -> Fingerprint:
        """A digest of each part: of the names, lengths and bytes of its documents, in their order.

        Batches are a function of ``train``, seed and step: with the same ``fingerprint.train``
        training goes on as it began. The parts of one corpus share no document, so with the same
        ``fingerprint.train`` no document of ``test`` was trained on.
        """
        return Fingerprint(*map(digest, self.parts))


def load_corpus(source: str = "stdlib") -> Corpus:
    """The text of a source, split 80 / 10 / 10 by document.

    A source is "stdlib", "topics", or the path of a UTF-8 file or folder.

    Raises
    ------
    FileNotFoundError
        No such path.
    ValueError
        Too little text to fill all three parts; or a single file that is not UTF-8 (with the byte
        and its offset), a pipe or a device.
    OSError
        A file or folder that may not be read.
    """
    documents, left_out = read(source)
    return split(source, documents, left_out)


def split(source: str, documents: Iterable[Document], left_out: Iterable[LeftOut] = ()) -> Corpus:
    """Each document goes where the hash of its name sends it: train, validation or test.

    A text under several names is one document. It goes to the first of the three parts that one of
    its names is sent to, so nothing is both trained on and tested. If no document is sent to the
    test or validation part, the training document with the highest hash fills it. A single document
    is cut into pieces; of ten pieces in a row, the fifth is for validation, the tenth for testing.

    What was trained on stays in training when documents are added, or bytes at the end of a single
    document. With two exceptions: a second document beside a single one, because then nothing is
    cut; and a copy of a document under a new name, where a part had to be filled. The other way is
    open: a document can leave test or validation for training, by a copy or where it filled a part.

    Raises ValueError if there is too little text to fill all three parts.
    """
    documents = list(documents)
    long_enough, left_out = readable(documents, left_out)
    texts: dict[bytes, Document] = {}
    for document in long_enough:
        first = texts.setdefault(document.data.tobytes(), document)
        if first is not document:
            one, copy = sorted((first, document), key=_rank)
            texts[document.data.tobytes()] = one
            left_out.append(LeftOut(copy.name, len(copy.data), "duplicate"))
    kept = list(texts.values())
    size = sum(len(d.data) for d in kept)
    if not kept or (len(kept) == 1 and size < MIN_FILE):
        raise ValueError(
            f"the corpus {shown(source)!r} is empty or tiny: {len(documents)} documents, of which "
            f"{len(kept)} can be used, with {size} bytes{omissions(left_out)}; give more text: one "
            f"document of at least {MIN_FILE} bytes, or several"
        )
    if len(kept) > 1:
        return Corpus(source, *_by_name(source, kept), tuple(left_out))
    pieces = cut(kept[0])
    if len(pieces[-1].data) < MIN_BYTES:
        left_out.append(LeftOut(pieces.pop().name, 1, "empty or one byte"))
    return Corpus(source, *_by_number(pieces), tuple(left_out))


def readable(documents: Iterable[Document], left_out: Iterable[LeftOut] = ()) -> Reading:
    """The documents that have something to predict; the others are left out too."""
    kept: list[Document] = []
    short: list[Document] = []
    for d in documents:
        (kept if len(d.data) >= MIN_BYTES else short).append(d)
    return Reading(
        kept, [*left_out, *(LeftOut(d.name, len(d.data), "empty or one byte") for d in short)]
    )


def pick(documents: tuple[Document, ...], count: int, limit: int) -> list[Document]:
    """``count`` documents of a part, evenly spread over those of at least ``limit`` bytes (or over
    all, if those are too few), cut to ``limit``.
    """
    long = [d for d in documents if len(d.data) > limit]
    pool = long if len(long) >= min(count, len(documents)) else list(documents)
    chosen = [pool[i * len(pool) // min(count, len(pool))] for i in range(min(count, len(pool)))]
    return [Document(d.name, d.data[: limit + 1]) for d in chosen]


def summary(corpus: Corpus) -> str:
    """One line: documents and bytes of each part of a corpus, and what was left out."""
    parts = [f"{name} {amount(part)}" for name, part in zip(PARTS, corpus.parts, strict=True)]
    return f"corpus {shown(corpus.source)}: {', '.join(parts)}{omissions(corpus.left_out)}"


def amount(documents: Sequence[Document]) -> str:
    """How many documents, and how many bytes in all."""
    return f"{len(documents):,} documents ({sum(len(d.data) for d in documents):,} bytes)"


def omissions(left_out: Iterable[LeftOut]) -> str:
    """What was left out, for the end of a line: of every reason how many, the first name, the size.

    Empty if nothing was.
    """
    reasons: dict[str, list[LeftOut]] = {}
    for item in left_out:
        reasons.setdefault(item.why, []).append(item)
    found = []
    for why, items in reasons.items():
        name = items[0].name + (", ..." if len(items) > 1 else "")
        known = [item.size for item in items if item.size is not None]
        size = f"; {sum(known):,} bytes" if known else ""
        found.append(f"{len(items):,} {why} ({name}{size})")
    return f"; left out: {', '.join(found)}" if found else ""


def identity(document: Document) -> str:
    """16 hexadecimal digits of the SHA-256 of a document's bytes, whatever its name."""
    return hashlib.sha256(document.data.tobytes()).hexdigest()[:16]


def digest(documents: Iterable[Document]) -> str:
    """SHA-256 of the documents' names, lengths and bytes, in their order."""
    found = hashlib.sha256()
    for name, data in documents:
        label = name.encode()
        found.update(f"{len(label)} {len(data)} ".encode() + label + data.tobytes())
    return found.hexdigest()


def _rank(document: Document) -> tuple[int, bytes]:
    """The part (0, 1, 2) that a document's name sends it to, and the hash that says so."""
    found = hashlib.sha256(document.name.encode()).digest()
    return max(0, int.from_bytes(found[:4], "big") % 10 - 7), found


def _by_name(source: str, documents: list[Document]) -> tuple[Documents, Documents, Documents]:
    parts: list[list[Document]] = [[], [], []]
    for document in documents:
        parts[_rank(document)[0]].append(document)
    train, validation, test = parts
    for part in (test, validation):  # few documents: no part may be empty
        if not part and len(train) > 1:
            part.append(max(train, key=_rank))
            train.remove(part[0])
    if not all(parts):
        empty = next(name for name, part in zip(PARTS, parts, strict=True) if not part)
        raise ValueError(
            f"the corpus {shown(source)!r} has {len(documents)} documents, too few for a split by "
            f"the hash of their names ({empty} would be empty): give at least three documents, "
            "better ten, or one longer file"
        )
    return tuple(train), tuple(validation), tuple(test)


def cut(document: Document) -> list[Document]:
    """Pieces of one long document: 16 of 1 KiB, 16 of 2 KiB, and so on, numbered from 0.

    Longer texts have more and longer pieces, and a byte is in the same piece whatever follows it.
    """
    name, data = document
    pieces: list[Document] = []
    start = 0
    while start < len(data):
        end = start + PIECE * (1 + len(pieces) // SAME_LENGTH)
        pieces.append(Document(f"{name}#{len(pieces):04d}", data[start:end]))
        start = end
    return pieces


def _by_number(pieces: list[Document]) -> tuple[Documents, Documents, Documents]:
    train = tuple(piece for number, piece in enumerate(pieces) if number % 10 not in (4, 9))
    return train, tuple(pieces[4::10]), tuple(pieces[9::10])
