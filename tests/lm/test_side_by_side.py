"""Two texts beside each other."""

import pytest

from fwl_ref.lm.side_by_side import side_by_side

pytestmark = pytest.mark.host("text")


def test_lines_stand_beside_lines():
    """Broken at the edge, padded where a text is shorter, nothing lost; what cannot be printed is shown."""
    out = side_by_side(("left", "right"), ("abcdefghijkl\n\nx", "1\t2\x00"), width=23)
    assert out.splitlines() == [
        "left       | right",
        "---------- | ----------",
        "abcdefghij | 1   2\\x00",
        "kl         |",
        "           |",
        "x          |",
    ]
    assert side_by_side(("", ""), ("", ""), width=1).splitlines()[1] == "---------- | ----------"
