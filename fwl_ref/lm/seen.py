"""What a model has seen of a document: whether its figures are about new text or about memory.

Texts are compared whole, by their bytes, whatever they are called; a document that was cut into
pieces for training, piece by piece. A document that has the name of one that was trained on, and
other bytes, is marked as doubtful: it may be the same text after an edit.
"""

from __future__ import annotations

from collections.abc import Iterable

from .checkpoint import Text
from .corpus import Document, cut, identity

NEW = "never seen"
DOUBTFUL = "trained?"
LEGEND = {
    DOUBTFUL: "a document of this name was trained on, with other bytes",
    "% trained": "a document that was cut into pieces, of which so many bytes were trained on",
}


def seen(text: Text, document: Document) -> str:
    """In a word: "trained", "validation" (settings may have been chosen by it), "test" or "never
    seen"; "80 % trained" of one that was cut, "trained?" of one whose name alone was trained on.
    """
    parts = {
        "test": text.test,
        "validation": text.validation,
        "trained": (*text.train, *text.earlier),  # last: what was trained on is never called a test
    }
    known = {mark: part for part, names in parts.items() for _, mark in names}
    found = known.get(identity(document))
    if found:
        return found
    trained = sum(len(p.data) for p in cut(document) if known.get(identity(p)) == "trained")
    if trained:
        return f"{max(1, round(100 * trained / len(document.data)))} % trained"
    if document.name in {name for name, _ in parts["trained"]}:
        return DOUBTFUL
    return NEW


def is_trained(word: str) -> bool:
    """Whether a word of ``seen`` says that training saw some of the text, or may have."""
    return "trained" in word


def warning(words: Iterable[str]) -> str:
    """What must be said of a table with these words; empty if every document is new, of the
    validation or of the test part.
    """
    words = list(words)
    trained = sum(map(is_trained, words))
    if not trained:
        return ""
    legends = [what for mark, what in LEGEND.items() if any(mark in word for word in words)]
    return "; ".join(
        [
            f"warning: {trained} of {len(words)} documents were trained on, so their figures say "
            "what the model remembers and not how it reads new text (column 'seen')",
            *legends,
        ]
    )
