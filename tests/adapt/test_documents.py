"""Documents, their parts, and features on disk. A docstring with "N:" has a negative control:
something that must not hold.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fwl_ref.adapt.documents import Tokens, bytes_of, load_texts, load_unseen, summary
from fwl_ref.adapt.store import Store, digest_of, held, key_of, stored
from fwl_ref.lm.tune import tune
from tests.adapt.small import WORDS, Letters, write_texts

pytestmark = pytest.mark.host("text and files")


def tokens(seed: int = 0, name: str = "a") -> Tokens:
    ids = np.random.default_rng(seed).integers(0, 5, 20)
    return Tokens(name, ids, np.ones(20, dtype=int))


def test_documents_are_in_one_part_and_as_in_their_files(tmp_path: Path) -> None:
    """The longest are tested on, none is in two parts or joined to another, and the same call splits alike."""
    folder = write_texts(tmp_path / "t")
    (folder / "copy.txt").write_bytes((folder / "00.txt").read_bytes())
    texts = load_texts(str(folder), Letters(), 96, 2, 3, 10_000)
    parts = [{t.name for t in part} for part in texts[1:]]
    assert [len(part) for part in texts[1:]] == [7, 2, 3]
    assert len(set.union(*parts)) == 12
    for document in (t for part in texts[1:] for t in part):
        text = (folder / document.name).read_text()
        assert "".join(WORDS[i] for i in document.ids) == text[:97]
    assert min(len(t.ids) for t in texts.test) == 97
    again = load_texts(str(folder), Letters(), 96, 2, 3, 10_000)
    assert [[(t.name, t.key) for t in part] for part in again[1:]] == [[(t.name, t.key) for t in part] for part in texts[1:]]
    assert "validation 2 documents" in summary(texts)
    assert len(load_texts(str(folder), Letters(), 96, 2, 3, 100).train) == 2


def test_a_single_file_is_cut_into_pieces(tmp_path: Path) -> None:
    """Of ten pieces the fifth tunes and the tenth tests; N: too short a file is refused."""
    file = tmp_path / "one.txt"
    text = "".join(np.random.default_rng(0).choice(list(WORDS), size=210))
    file.write_text(text)
    texts = load_texts(str(file), Letters(), 9, 5, 5, 10_000)
    names = [[t.name for t in part] for part in texts[1:]]
    assert names[1] == ["one.txt#0004", "one.txt#0014"]
    assert names[2] == ["one.txt#0009", "one.txt#0019"]
    assert len(names[0]) == 17
    file.write_text(text[:60])
    with pytest.raises(ValueError, match="nothing is left for the test part"):
        load_texts(str(file), Letters(), 9, 5, 5, 10_000)


def test_an_unseen_text_is_only_tested_on(tmp_path: Path) -> None:
    """The longest files of a folder, the first pieces of a file; N: a document that is trained on elsewhere is
    refused, one that is tested on there is not.
    """
    folder = write_texts(tmp_path / "t")
    others = [load_texts(str(folder), Letters(), 96, 2, 3, 10_000)]
    new = write_texts(tmp_path / "new", 4, 90, 5)
    found = load_unseen(str(new), Letters(), 96, 2, others)
    assert (found.train, found.validation, [t.name for t in found.test]) == ((), (), ["00.txt", "01.txt"])
    assert [t.name for t in load_unseen(str(new / "00.txt"), Letters(), 29, 2, others).test] == ["00.txt#0000", "00.txt#0001"]
    assert [t.key for t in load_unseen(str(folder), Letters(), 96, 3, others).test] == [t.key for t in others[0].test]
    with pytest.raises(ValueError, match="is the same text and is trained or tuned on"):
        load_unseen(str(folder), Letters(), 96, 4, others)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no document"):
        load_unseen(str(tmp_path / "empty"), Letters(), 96, 4, others)


def test_a_token_of_bytes_has_a_letter_for_each() -> None:
    assert bytes_of(Letters())(np.array([1, 1, 3])).tolist() == [1, 1, 1]


def test_features_are_kept_under_all_that_they_depend_on(tmp_path: Path) -> None:
    """The model's files, the tokens, the window and the precision change the key, the name does not; a
    second call reads the file; a damaged file is computed again.
    """
    store = Store(tmp_path, "model", 10**6)
    keys = {
        key_of(store, tokens(), 8, "float16"), key_of(store._replace(model="other"), tokens(), 8, "float16"),
        key_of(store, tokens(1), 8, "float16"), key_of(store, tokens(), 16, "float16"), key_of(store, tokens(), 8, "float32"),
    }  # fmt: skip
    assert len(keys) == 5
    assert key_of(store, tokens(name="b"), 8, "float16") in keys
    x, calls = np.arange(12.0).reshape(4, 3), []

    def compute() -> np.ndarray:
        calls.append(1)
        return x

    for count in (1, 1):
        found = stored(store, tokens(), 8, "float16", compute)
        assert np.array_equal(found, x)
        assert found.dtype == np.float16
        assert len(calls) == count
    file = next(tmp_path.glob("*.npz"))
    file.write_bytes(file.read_bytes()[:50])
    assert np.array_equal(stored(store, tokens(), 8, "float16", compute), x)
    assert len(calls) == 2
    stored(store._replace(folder=None), tokens(), 8, "float16", compute)
    assert len(calls) == 3


def test_what_cannot_be_kept_is_said(tmp_path: Path) -> None:
    """More than the limit, and numbers that half precision does not hold."""
    store = Store(tmp_path, "model", 10)
    with pytest.raises(OSError, match="more than 10 bytes"):
        stored(store, tokens(), 8, "float32", lambda: np.zeros((4, 3)))
    assert held(store) == 0
    with pytest.raises(FloatingPointError, match="not finite in float16"):
        stored(store, tokens(), 8, "float16", lambda: np.full((4, 3), 1e6))


def test_the_digest_is_of_the_files(tmp_path: Path) -> None:
    """A changed byte of a file, or of a file in a folder, is another digest."""
    file = tmp_path / "config.json"
    found = set()
    for text in ("one", "two"):
        file.write_text(text)
        found |= {digest_of(str(file)), digest_of(str(tmp_path))}
    assert len(found) == 2  # a folder of one file is as that file


def test_a_value_at_the_edge_is_followed() -> None:
    """A parabola whose lowest point lies beyond the grid; what is not finite is never chosen."""
    assert tune(lambda v: (np.log(v) - np.log(81)) ** 2, (1.0, 3.0, 9.0)).best == 81
    assert tune(lambda v: (np.log(v) - np.log(81)) ** 2, (1.0, 3.0, 9.0), more=1).best == 27
    found = tune(lambda v: np.nan if v > 2 else -v, (1.0, 2.0, 4.0))
    assert (found.best, found.loss) == (2.0, -2.0)
    assert found.tried[4.0] == np.inf
    with pytest.raises(FloatingPointError, match="no value gives a finite loss"):
        tune(lambda v: np.inf, (1.0,))
