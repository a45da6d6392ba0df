"""Tokenizers built again from a GGUF file, against the definition written out: text is cut, then pairs
of symbols are merged, the oldest merge first. A docstring with "N:" has a negative control:
something that must not hold.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwl_ref.pretrained.tokens import tokenizer_of_gguf, tokenizer_of_json
from tests.pretrained.test_load import with_extra

pytestmark = [pytest.mark.host("text"), with_extra]

TEXT = "It's 1992, and we'll see: the naïve model of 2,048 tokens isn't IT'S.\n\n  x += 1\r\n\tif they've 30 %: \n" * 3


def symbols() -> dict[int, str]:
    """GPT-2's printable character for every byte."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


SYMBOL = symbols()


def letter(c: str) -> bool:
    return unicodedata.category(c)[0] == "L"


def number(c: str) -> bool:
    return unicodedata.category(c)[0] == "N"


def other(c: str) -> bool:
    return not (c.isspace() or letter(c) or number(c))


def run_of(text: str, at: int, kind: Callable[[str], bool], most: int = 10**9) -> int:
    """Where a run of characters of one kind that begins at ``at`` ends."""
    end = at
    while end < len(text) and end - at < most and kind(text[end]):
        end += 1
    return end


def blank(text: str, at: int) -> int:
    """The end of white space: its last character is left to a word that follows."""
    end = run_of(text, at, str.isspace)
    return end - 1 if end < len(text) and end - at > 1 else end


def next_gpt2(text: str, at: int) -> int:
    for ending in ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d"):
        if text.startswith(ending, at):
            return at + len(ending)
    for kind in (letter, number, other):
        start = at + (text[at] == " ")
        end = run_of(text, start, kind)
        if end > start:
            return end
    return blank(text, at)


def next_llama3(text: str, at: int) -> int:
    for ending in ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d"):
        if text[at : at + len(ending)].lower() == ending:
            return at + len(ending)
    sign = text[at] not in "\r\n" and not letter(text[at]) and not number(text[at])
    end = run_of(text, at + sign, letter)
    if end > at + sign:
        return end
    end = run_of(text, at, number, 3)
    if end > at:
        return end
    start = at + (text[at] == " ")
    end = run_of(text, start, other)
    if end > start:
        return run_of(text, end, "\r\n".__contains__)
    end = run_of(text, at, str.isspace)
    line = max(text.rfind("\n", at, end), text.rfind("\r", at, end))
    return line + 1 if line >= at else blank(text, at)


def pieces(text: str, step: Callable[[str, int], int]) -> list[str]:
    found, at = [], 0
    while at < len(text):
        end = step(text, at)
        found.append(text[at:end])
        at = end
    return found


def digits_alone(text: str) -> list[str]:
    """Cut before and after every character that is a number."""
    parts = [""]
    for c in text:
        if number(c):
            parts += [c, ""]
        else:
            parts[-1] += c
    return [part for part in parts if part]


CUTS = {
    "gpt-2": lambda text: pieces(text, next_gpt2),
    "smollm": lambda text: [piece for part in digits_alone(text) for piece in pieces(part, next_gpt2)],
    "llama-bpe": lambda text: pieces(text, next_llama3),
}


def merged(word: list[str], merges: list[tuple[str, str]]) -> list[str]:
    """The oldest merge first, wherever it applies, until none does."""
    while True:
        pairs = set(zip(word, word[1:], strict=False))
        pair = next((m for m in merges if m in pairs), None)
        if pair is None:
            return word
        out: list[str] = []
        for symbol in word:
            if out and (out[-1], symbol) == pair:
                out[-1] += symbol
            else:
                out.append(symbol)
        word = out


def learned(cut: Callable[[str], list[str]], count: int = 40) -> list[tuple[str, str]]:
    """The most frequent pairs of TEXT, one after the other."""
    words = [[SYMBOL[b] for b in piece.encode()] for piece in cut(TEXT)]
    merges: list[tuple[str, str]] = []
    for _ in range(count):
        counts = Counter(pair for word in words for pair in zip(word, word[1:], strict=False))
        if not counts:
            break
        merges.append(min(counts, key=lambda pair: (-counts[pair], pair)))
        words = [merged(word, merges) for word in words]
    return merges


def settings_for(name: str, **more: Any) -> dict[str, Any]:
    """What a GGUF file says about a tokenizer, with three tokens of its own at the end."""
    merges = learned(CUTS[name])
    plain = [*SYMBOL.values(), *dict.fromkeys(a + b for a, b in merges)]
    words = [*plain, "<|start|>", "<|end|>", "<user>"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": name,
        "tokenizer.ggml.tokens": words,
        "tokenizer.ggml.token_type": [*[1] * len(plain), 3, 3, 4],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in merges],
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.bos_token_id": len(plain),
    } | {f"tokenizer.ggml.{key}": value for key, value in more.items()}


SETTINGS = {name: settings_for(name) for name in CUTS}
BUILT = {}


def tokenizer(name: str) -> Any:
    if name not in BUILT:
        BUILT[name] = tokenizer_of_gguf(SETTINGS[name], "file")
    return BUILT[name]


def literal(text: str, name: str) -> list[int]:
    """Token numbers by the definition."""
    settings = SETTINGS[name]
    number_of = {word: i for i, word in enumerate(settings["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in settings["tokenizer.ggml.merges"]]
    found = []
    for piece in CUTS[name](text):
        whole = "".join(SYMBOL[b] for b in piece.encode())
        if name == "llama-bpe" and whole in number_of:  # a piece that is a token stays whole
            found.append(number_of[whole])
        else:
            found += [number_of[s] for s in merged(list(whole), merges)]
    return found


every_name = pytest.mark.parametrize("name", CUTS)
texts = st.text(alphabet="aest 1290'ITtsl\n\r\t.,:%é中½٣+", max_size=24)


@every_name
@given(text=texts)
def test_token_numbers_are_those_of_the_definition(name: str, text: str) -> None:
    """Cut, spell in bytes, merge; and back to the same text."""
    found = tokenizer(name).encode(text).ids
    assert found == literal(text, name)
    assert tokenizer(name).decode(found) == text


@every_name
def test_the_text_that_merges_were_learned_from_is_cut_the_same_way(name: str) -> None:
    """Contractions, digits, lines and signs of ordinary text; merges take part."""
    found = tokenizer(name).encode(TEXT).ids
    assert found == literal(TEXT, name)
    assert len(found) < 0.8 * len(TEXT.encode())


def test_the_three_cuts_differ_where_they_should() -> None:
    """N: digits together, alone, and in threes; a capital contraction; a sign before letters."""
    text = " 2048IT'S\n\n(x"
    assert CUTS["gpt-2"](text) == [" 2048", "IT", "'", "S", "\n", "\n", "(", "x"]
    assert CUTS["smollm"](text) == [" ", "2", "0", "4", "8", "IT", "'", "S", "\n", "\n", "(", "x"]
    assert CUTS["llama-bpe"](text) == [" ", "204", "8", "IT", "'S", "\n\n", "(x"]


def test_control_tokens_are_found_in_text_and_left_out_of_what_is_decoded() -> None:
    """Tokens of the user's own stay."""
    found = tokenizer("smollm").encode("it<|end|>s<user>")
    assert found.tokens[-3:] == ["<|end|>", "s", "<user>"]
    assert tokenizer("smollm").decode(found.ids) == "its<user>"
    assert tokenizer("smollm").decode(found.ids, skip_special_tokens=False) == "it<|end|>s<user>"


@pytest.mark.parametrize(
    ("name", "more", "first"), [("smollm", {"add_bos_token": True}, True), ("smollm", {}, False), ("llama-bpe", {}, False)]
)
def test_a_first_token_is_there_if_the_file_says_so(name: str, more: dict, first: bool) -> None:
    """add_bos_token."""
    tokens = tokenizer_of_gguf(settings_for(name, **more), "file").encode("it").tokens
    assert (tokens[0] == "<|start|>") == first


def test_llama_3_has_a_first_token_unless_the_file_says_otherwise() -> None:
    """Its files do not always say."""
    settings = {key: value for key, value in SETTINGS["llama-bpe"].items() if not key.endswith("add_bos_token")}
    assert tokenizer_of_gguf(settings, "file").encode("it").tokens[0] == "<|start|>"
    settings = {key: value for key, value in SETTINGS["gpt-2"].items() if not key.endswith("add_bos_token")}
    assert tokenizer_of_gguf(settings, "file").encode("it").tokens[0] != "<|start|>"


def test_a_tokenizer_json_is_read_as_it_is(tmp_path: Path) -> None:
    """And named if it is none."""
    file = tmp_path / "tokenizer.json"
    tokenizer("smollm").save(str(file))
    assert tokenizer_of_json(file).encode(TEXT).ids == literal(TEXT, "smollm")
    file.write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json: expected a tokenizer, found none"):
        tokenizer_of_json(file)
