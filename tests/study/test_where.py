"""Section 4's questions, against answers that are looked up byte by byte."""

import numpy as np
import pytest

from fwl_ref.lm.corpus import Document
from fwl_ref.study.where import BUCKETS, CONTEXT, REPEATED, codes, earlier, frequencies, sums

pytestmark = pytest.mark.host("text")


def document(text, name="d"):
    return Document(name, np.frombuffer(text, dtype="uint8"))


TRAIN = [document(b"abcabcabd" * 3), document(b"xyz"), document(b"abcdabcd")]
TEST = [document(b"abcabcaxabcab"), document(b"zzzzabcd"), document(b"ab")]


def occurrences(text, piece):
    return sum(text[i : i + len(piece)] == piece for i in range(len(text)))


def test_frequency_and_repetition_are_what_a_search_finds():
    """Of every byte but the first; -1 where the context is too short."""
    found = frequencies(TRAIN, TEST)
    for d, counts in zip(TEST, found, strict=True):
        text = d.data.tobytes()
        for t in range(1, len(text)):
            context = text[t - CONTEXT : t] if t >= CONTEXT else None
            expected = -1 if context is None else sum(occurrences(x.data.tobytes(), context) for x in TRAIN)
            assert counts[t - 1] == expected
            piece = text[t - REPEATED : t + 1] if t >= REPEATED else None
            expected = -1 if piece is None else sum(text[i - REPEATED : i + 1] == piece for i in range(REPEATED, t))
            assert earlier(d)[t - 1] == expected
    assert len(codes(TEST[2].data, 4)) == 0


def test_sums_over_buckets_are_the_whole():
    """Positions hold every byte once; the other questions all bytes whose context is long enough."""
    rng = np.random.default_rng(0)
    losses, base = ([rng.normal(size=len(d.data) - 1).astype("float32") for d in TEST] for _ in range(2))
    found = sums(TRAIN, TEST, losses, base)
    assert list(found) == list(BUCKETS)
    for i, d in enumerate(TEST):
        n = len(d.data) - 1
        assert sum(found["position"]["count"][i]) == n
        assert sum(found["frequency"]["count"][i]) == max(0, n + 1 - CONTEXT)
        assert sum(found["earlier"]["count"][i]) == max(0, n + 1 - REPEATED)
        assert sum(found["position"]["change"][i]) == pytest.approx((losses[i] - base[i]).astype(float).sum())
