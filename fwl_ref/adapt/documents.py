"""Documents as tokens of a model, split into those to train on, to tune by and to test on.

A document is never joined to another one. The longest go to the test, because carried memory shows
itself late; of documents that are all long enough, the hash of the name decides. A single file is
cut into pieces, and a piece goes where its number sends it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..backend import Array, host
from ..lm.reading import read, shown

MIN_TOKENS = 2  # the first is given, the others are predicted
BYTES_PER_TOKEN = 12  # more than a document of text has on average: what lies behind is not encoded
PARTS = ("train", "validation", "test")
SHARES = 10  # of ten pieces of a single file the fifth tunes and the tenth tests


class Tokens(NamedTuple):
    """A document as the model reads it."""

    name: str
    ids: Array  # (n,) int64, on the host
    sizes: Array  # (n,) int64, bytes of each token

    @property
    def key(self) -> str:
        """16 hexadecimal digits of the SHA-256 of the tokens."""
        return hashlib.sha256(self.ids.tobytes()).hexdigest()[:16]


class Texts(NamedTuple):
    """Documents of one source, no document in two parts."""

    name: str
    train: tuple[Tokens, ...]
    validation: tuple[Tokens, ...]
    test: tuple[Tokens, ...]


def load_texts(
    source: str, tokenizer: Any, length: int, validation: int, test: int, train_tokens: int
) -> Texts:
    """The documents of "stdlib", "topics", or a UTF-8 file or folder, at most ``length`` predicted
    tokens of each.

    ``test`` and ``validation`` are how many documents these parts get; the others are for training,
    until these have ``train_tokens`` tokens.

    Raises ValueError if there are too few documents, and as ``lm.reading.read``.
    """
    found, single = _found(source, tokenizer, length)
    if single:
        parts = tuple(
            tuple(t for i, t in enumerate(found) if _share(i) == part) for part in range(3)
        )
        train, tune, tests = parts[0], parts[1][:validation], parts[2][:test]
    else:
        tests, tune = found[:test], found[test : test + validation]
        train = tuple(sorted(found[test + validation :], key=lambda t: _hash(t.name)))
    kept, total = [], 0
    for tokens in train:
        if total >= train_tokens:
            break
        kept.append(tokens)
        total += len(tokens.ids) - 1
    texts = Texts(source, tuple(kept), tune, tests)
    for part in PARTS:
        if not getattr(texts, part):
            raise ValueError(
                f"{shown(source)!r} has too few documents, {len(found)}: nothing is left for "
                f"the {part} part; give more text, or ask for fewer documents (--test)"
            )
    return texts


def load_unseen(
    source: str, tokenizer: Any, length: int, test: int, others: Sequence[Texts]
) -> Texts:
    """Test documents of a text of which nothing is trained or tuned: the longest ``test`` files of
    a folder, or the first pieces of a single file.

    Raises ValueError if there is none, or if one of them is in the training or validation part of
    ``others``; and as ``lm.reading.read``.
    """
    found, _ = _found(source, tokenizer, length)
    if not found:
        raise ValueError(f"{shown(source)!r} has no document: nothing is left for the test part")
    seen = {t.key: t.name for text in others for t in (*text.train, *text.validation)}
    for tokens in found[:test]:
        if tokens.key in seen:
            raise ValueError(
                f"{tokens.name!r} of {shown(source)!r} is to be unseen, but {seen[tokens.key]!r} "
                "is the same text and is trained or tuned on: leave one of them out"
            )
    return Texts(source, (), (), found[:test])


def _found(source: str, tokenizer: Any, length: int) -> tuple[tuple[Tokens, ...], bool]:
    """All documents of a source, the longest first, no text twice; or the pieces of its only file
    in their order, and True.
    """
    documents, _ = read(source)
    size = bytes_of(tokenizer)
    if len(documents) == 1:
        ids = encode(tokenizer, documents[0].data.tobytes())
        step = length + 1
        pieces = [ids[i : i + step] for i in range(0, len(ids), step)]
        names = [f"{documents[0].name}#{i:04d}" for i in range(len(pieces))]
        found = [
            Tokens(name, piece, size(piece))
            for name, piece in zip(names, pieces, strict=True)
            if len(piece) >= MIN_TOKENS
        ]
        return tuple(found), True
    seen: dict[str, Tokens] = {}
    for document in documents:
        data = document.data[: BYTES_PER_TOKEN * (length + 1)].tobytes()
        ids = encode(tokenizer, data)[: length + 1]
        if len(ids) >= MIN_TOKENS:
            tokens = Tokens(document.name, ids, size(ids))
            seen.setdefault(tokens.key, tokens)
    return tuple(sorted(seen.values(), key=lambda t: (-len(t.ids), _hash(t.name)))), False


def encode(tokenizer: Any, data: bytes) -> Array:
    """(n,)   the ids of the text; bytes that are not UTF-8, as where it was cut, are left out."""
    ids = tokenizer.encode(data.decode("utf-8", "ignore")).ids
    return host.asarray(ids, dtype=host.int64)


def bytes_of(tokenizer: Any) -> Callable[[Array], Array]:
    """A function from ids (n,) to the bytes of each: a byte-level token has a letter for a byte."""
    known: dict[int, int] = {}

    def size(ids: Array) -> Array:
        for i in set(ids.tolist()) - known.keys():
            known[i] = len(tokenizer.id_to_token(i) or "")
        return host.asarray([known[i] for i in ids.tolist()], dtype=host.int64)

    return size


def summary(texts: Texts) -> str:
    """One line: documents and tokens of each part."""
    words = [
        f"{part} {len(documents):,} documents ({count(documents):,} tokens)"
        for part, documents in ((part, getattr(texts, part)) for part in PARTS)
    ]
    return f"text {shown(texts.name)}: {', '.join(words)}"


def count(documents: Sequence[Tokens]) -> int:
    """How many tokens are predicted."""
    return sum(len(t.ids) - 1 for t in documents)


def _share(number: int) -> int:
    """The part of a piece: 0 to train, 1 to tune, 2 to test."""
    return {4: 1, 9: 2}.get(number % SHARES, 0)


def _hash(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()
