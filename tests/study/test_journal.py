"""The file of results: lines are whole, and a half one is no row."""

import json
import math

import pytest

from fwl_ref.study.journal import append_result, read_results

pytestmark = pytest.mark.host("files")


def test_rows_come_back_in_order_and_a_number_that_ran_away_is_null(tmp_path):
    """What append returns is what a reader finds."""
    path = tmp_path / "new" / "r.jsonl"
    assert read_results(path) == {}
    one = append_result(path, {"key": "b", "bits": [1.5, math.inf], "sizes": (2, 3)})
    append_result(path, {"key": "a"})
    assert one == {"key": "b", "bits": [1.5, None], "sizes": [2, 3]}
    assert list(read_results(path).values()) == [one, {"key": "a"}]


def test_a_line_that_was_cut_off_is_left_out_and_taken_away(tmp_path):
    """Whatever its length: every cut of a file of two rows leaves one, or none, and can be written on."""
    path = tmp_path / "r.jsonl"
    for key in "ab":
        append_result(path, {"key": key})
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        before = list(read_results(path))
        assert before == ["a"][: whole[:cut].count(b"\n")]
        append_result(path, {"key": "c"})
        assert list(read_results(path)) == [*before, "c"]
        assert all(json.loads(line) for line in path.read_text().splitlines())


@pytest.mark.parametrize("line", [b"{}", b"[1]", b"words", b'"key"'])
def test_a_line_of_something_else_is_named(tmp_path, line):
    """With file and number."""
    path = tmp_path / "r.jsonl"
    append_result(path, {"key": "a"})
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(ValueError, match="line 2: expected a row"):
        read_results(path)
