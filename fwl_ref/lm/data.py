"""Text as bytes, documents kept apart, split by document. No download.

Two corpora come with every CPython: the standard library's source files, and the reference texts of
``pydoc_data.topics``. Any UTF-8 file or folder of your own works the same way. The split depends on
each document's name alone, so adding a document never moves another one from one part to the other
(the exception: a corpus so small that a part would be empty).
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..backend import Array, host

VOCABULARY = 256  # bytes
MIN_BYTES = 256  # shorter documents say nothing about adapting
SKIPPED_FOLDERS = {
    "test", "tests", "idle_test",  # another kind of text, and absent from many installations
    "site-packages", "dist-packages", "__pycache__",  # not the standard library
    "encodings", "pydoc_data",  # generated tables, near copies of each other; the other corpus
}  # fmt: skip


class Document(NamedTuple):
    name: str
    data: Array  # (n,) uint8, on the host


class Fingerprint(NamedTuple):
    """SHA-256 of each part of a corpus, 64 hexadecimal digits each."""

    train: str
    validation: str
    test: str


class Corpus(NamedTuple):
    """Documents of one source, split by document."""

    source: str
    train: tuple[Document, ...]
    validation: tuple[Document, ...]
    test: tuple[Document, ...]

    @property
    def fingerprint(self) -> Fingerprint:
        """A digest of each part: of the names, lengths and bytes of its documents, in their order.

        Batches are a function of ``train``, seed and step: with the same ``fingerprint.train``
        training goes on as it began. The parts of one corpus share no document, so with the same
        ``fingerprint.train`` no document of ``test`` was trained on.
        """
        return Fingerprint(digest(self.train), digest(self.validation), digest(self.test))


class Batch(NamedTuple):
    """Windows of text: ``labels[t]`` is the byte after ``tokens[t]``; weight 0 marks padding."""

    tokens: Array  # (B,T) int64
    labels: Array  # (B,T) int64
    weights: Array  # (B,T) float


def load_corpus(source: str = "stdlib") -> Corpus:
    """Load "stdlib", "topics", or the UTF-8 file or folder at the path ``source``, split 80 / 10 /
    10 by document.

    Raises
    ------
    FileNotFoundError
        No such path.
    ValueError
        A file that is not UTF-8 (with its name and the offending byte), or too little text to fill all three parts.
    """
    return split(source, load_documents(source))


def load_documents(source: str) -> list[Document]:
    """All documents of "stdlib", "topics" or a UTF-8 file or folder, in a fixed order. Raises as
    load_corpus.
    """
    if source == "stdlib":
        return _standard_library()
    if source == "topics":
        from pydoc_data.topics import topics

        return [_document(f"topics/{name}", text.encode()) for name, text in sorted(topics.items())]
    return _user_files(Path(source))


def split(source: str, documents: list[Document]) -> Corpus:
    """Each document goes where the hash of its name sends it: 80 % train, 10 % validation, 10 %
    test.

    A text that occurs under several names is kept under the first, so that nothing is both trained
    on and tested.
    """
    kept = list(
        {d.data.tobytes(): d for d in reversed(documents) if len(d.data) >= MIN_BYTES}.values()
    )[::-1]  # a text counts once
    if not kept:
        raise ValueError(
            f"the corpus {source!r} is empty or tiny: {len(documents)} documents, none of at least {MIN_BYTES} bytes; give more text"
        )
    if len(kept) == 1:
        kept = _cut(kept[0], source)
    parts: tuple[list, list, list] = ([], [], [])
    for document in kept:
        bucket = int.from_bytes(hashlib.sha256(document.name.encode()).digest()[:4], "big") % 10
        parts[0 if bucket < 8 else bucket - 7].append(document)
    for part in (1, 2):  # few documents: make sure that no part is empty
        if not parts[part] and len(parts[0]) > 1:
            parts[part].append(parts[0].pop())
    names = ("train", "validation", "test")
    empty = [name for name, part in zip(names, parts, strict=True) if not part]
    if empty:
        raise ValueError(
            f"the corpus {source!r} has {len(kept)} documents, too few for a split by document ({empty[0]} would be empty): "
            "give at least three documents, or one longer file"
        )
    return Corpus(source, *(tuple(part) for part in parts))


def digest(documents: tuple[Document, ...]) -> str:
    """SHA-256 of the documents' names, lengths and bytes, in their order."""
    found = hashlib.sha256()
    for name, data in documents:
        label = name.encode()
        found.update(f"{len(label)} {len(data)} ".encode() + label + data.tobytes())
    return found.hexdigest()


def _document(name: str, raw: bytes) -> Document:
    return Document(name, host.frombuffer(raw, dtype=host.uint8))


def _standard_library() -> list[Document]:
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = sorted(
        p for p in root.rglob("*.py") if not SKIPPED_FOLDERS & set(p.relative_to(root).parts[:-1])
    )
    return [_document(p.relative_to(root).as_posix(), p.read_bytes()) for p in paths]


def _user_files(path: Path) -> list[Document]:
    if not path.exists():
        raise FileNotFoundError(
            f"no corpus at {str(path)!r}: give 'stdlib', 'topics', or the path of a UTF-8 file or folder"
        )
    files = (
        [path]
        if path.is_file()
        else sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
    )
    documents = []
    for file in files:
        raw = file.read_bytes()
        try:
            raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{str(file)!r} is not UTF-8: byte 0x{raw[error.start]:02x} at offset {error.start}; convert it or leave it out"
            ) from None
        name = file.name if path.is_file() else file.relative_to(path).as_posix()
        documents.append(_document(name, raw))
    return documents


def _cut(document: Document, source: str) -> list[Document]:
    """One long file becomes documents of equal length, so that it can be split at all."""
    pieces = min(100, len(document.data) // (4 * MIN_BYTES))
    if pieces < 10:
        raise ValueError(
            f"the corpus {source!r} is one document of {len(document.data)} bytes, too little to split: "
            f"give at least {40 * MIN_BYTES} bytes or several documents"
        )
    edges = host.linspace(0, len(document.data), pieces + 1).astype(int)
    return [
        Document(f"{document.name}#{i:02d}", document.data[a:b])
        for i, (a, b) in enumerate(zip(edges[:-1], edges[1:], strict=True))
    ]


def windows(document: Document, length: int, limit: int | None = None) -> Iterator[Batch]:
    """Consecutive windows (B = 1) over the first ``limit`` bytes; the last one may be short. Every
    byte but the first is predicted once.

    Raises ValueError if ``length`` or ``limit`` is below 1, or if there are not 2 bytes: the first
    is given, the others are predicted.
    """
    if length < 1:
        raise ValueError(f"a window must hold at least 1 token, got T = {length}")
    if limit is not None and limit < 1:
        raise ValueError(f"at least 1 byte of a document must be read, got a limit of {limit}")
    if len(document.data) < 2:
        raise ValueError(
            f"{document.name!r} has {len(document.data)} bytes, at least 2 bytes are needed: the first one is not predicted"
        )
    data = document.data[: None if limit is None else limit + 1].astype(host.int64)
    for start in range(0, len(data) - 1, length):
        tokens, labels = data[start : start + length], data[start + 1 : start + length + 1]
        tokens = tokens[: len(labels)]
        yield Batch(tokens[None], labels[None], host.ones((1, len(labels)), dtype="float32"))


def training_batch(
    documents: tuple[Document, ...], batch: int, length: int, seed: int, step: int
) -> Batch:
    """Batch number ``step``: a function of the seed and the step alone, so that training resumes
    and repeats exactly.

    A window starts anywhere in the concatenation of the documents' possible starts; windows at a
    document's end are padded with weight 0.
    """
    if batch < 1 or length < 1:
        raise ValueError(f"batch and window must be at least 1, got B = {batch}, T = {length}")
    rng = host.random.default_rng([seed, step])
    sizes = host.array([max(1, len(d.data) - length) for d in documents])
    ends = host.cumsum(sizes)
    tokens = host.zeros((batch, length), dtype=host.int64)
    labels = host.zeros((batch, length), dtype=host.int64)
    weights = host.zeros((batch, length), dtype="float32")
    for row, place in enumerate(rng.integers(0, ends[-1], size=batch)):
        i = int(host.searchsorted(ends, place, side="right"))
        start = int(place - (ends[i] - sizes[i]))
        piece = documents[i].data[start : start + length + 1]
        n = len(piece) - 1
        tokens[row, :n], labels[row, :n], weights[row, :n] = piece[:-1], piece[1:], 1
    return Batch(tokens, labels, weights)
