"""The yardsticks from outside: probabilities that sum to 1, and bits that are those of the compressors."""

import gzip
import lzma
import math
import random

import pytest

from fwl_ref.study.ngram import counted, ngram_nats, probability
from fwl_ref.study.outside import gzip_bits, ngram_bits, xz_bits

pytestmark = pytest.mark.host("text")

TEXT = b"the cat sat on the mat; the cat sat on the hat. \x00\xff" * 6


@pytest.mark.parametrize("order", [0, 1, 3, 6])
def test_probabilities_of_all_bytes_sum_to_one_after_every_byte(order):
    """sum_y p(y) = 1, all p > 0, whatever has been counted."""
    counts = {}
    for t, y in enumerate(TEXT[:60]):
        past = TEXT[max(0, t - order) : t]
        p = [probability(counts, past, z) for z in range(256)]
        assert math.fsum(p) == pytest.approx(1, abs=1e-12) and min(p) > 0
        counted(counts, past, y)


def test_the_first_steps_by_hand():
    """ "ab": b after "a" once counted in the empty context (n = 1, u = 1): (0 + 1 / 256) / 2. Then "aba": a after "b" was never seen, in
    the empty context a has 1 of 2, 2 different: (1 + 2 / 256) / 4.
    """
    assert ngram_nats(b"ab", 2) == pytest.approx([-math.log(1 / 512)])
    assert ngram_nats(b"aba", 2)[1] == pytest.approx(-math.log((1 + 2 / 256) / 4))
    # "abab": the empty context has a twice, b once, so b has (1 + 2 / 256) / 5 there; after a it came once of once
    assert ngram_nats(b"abab", 1)[2] == pytest.approx(-math.log((1 + (1 + 2 / 256) / 5) / 2))


def test_a_byte_is_predicted_from_what_stands_before_it():
    """Losses of a prefix are a prefix of the losses."""
    assert ngram_nats(TEXT[:40]) == ngram_nats(TEXT)[:39]


def test_text_that_repeats_costs_less_and_noise_costs_eight_bits():
    """Order 5 is far below 2 bits a byte on repetition; random bytes cost about 8, at most a bit more."""
    assert ngram_bits(TEXT) / len(TEXT) < 2
    noise = random.Random(0).randbytes(4000)
    assert 7.9 < ngram_bits(noise) / len(noise) < 9
    with pytest.raises(ValueError, match="order"):
        ngram_nats(TEXT, -1)


def test_compressors_are_those_of_the_files_without_their_frames():
    """gzip's file has 10 + 8 bytes more; an xz file has at least 32 bytes more."""
    assert gzip_bits(TEXT) == 8 * (len(gzip.compress(TEXT, 9)) - 18)
    assert 0 < 8 * len(lzma.compress(TEXT, preset=9 | lzma.PRESET_EXTREME)) - xz_bits(TEXT) < 8 * 80
