"""Tokenizers, by the library ``tokenizers``: from a ``tokenizer.json``, or built again from the
vocabulary and merges of a GGUF file.

A GGUF file only names how text is cut before the merges, ``tokenizer.ggml.pre``. The cuts below are
those that llama.cpp makes for these names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .extra import needed
from .source import required

CONTROL, USER = 3, 4  # token types of GGUF: tokens of their own, never the result of a merge

# Apart from contractions and single digits these differ in whether letters take a sign before them.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CUTS = {  # name in the file -> patterns, one after the other; None is GPT-2's, which is built in
    "gpt-2": (None,),
    "gpt2": (None,),
    "smollm": (r"\p{N}", None),  # every digit alone, and then as GPT-2
    "llama3": (LLAMA3,),
    "llama-v3": (LLAMA3,),
    "llama-bpe": (LLAMA3,),
}


def tokenizer_of_json(file: Path) -> Any:
    """A ``tokenizers.Tokenizer``. Raises ValueError, naming the file, if it is none."""
    tokenizers = needed("tokenizers")
    try:
        return tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{file}: expected a tokenizer, found none ({error})") from None


def tokenizer_of_gguf(settings: dict[str, Any], path: str) -> Any:
    """A ``tokenizers.Tokenizer`` from the settings of a GGUF file.

    Control tokens are found in the text as well, as ``tokenizer.json`` has it. Raises ValueError,
    naming the file, if it has no byte-level BPE or cuts text in a way that is not known here.
    """
    tokenizers = needed("tokenizers")
    kind = required(settings, "tokenizer.ggml.model", path)
    if kind != "gpt2":
        raise ValueError(f'{path}: the tokenizer must be a byte-level BPE ("gpt2"), got {kind!r}')
    name = required(settings, "tokenizer.ggml.pre", path)
    if name not in CUTS:
        raise ValueError(f"{path}: text must be cut as one of {', '.join(CUTS)}, got {name!r}")
    words = required(settings, "tokenizer.ggml.tokens", path)
    merges = required(settings, "tokenizer.ggml.merges", path)
    types = settings.get("tokenizer.ggml.token_type") or [1] * len(words)
    llama3 = CUTS[name] == (LLAMA3,)
    try:
        model = tokenizers.models.BPE(
            vocab={word: i for i, word in enumerate(words)},
            merges=[tuple(merge.split(" ", 1)) for merge in merges],
            ignore_merges=llama3,  # a piece that is a token stays whole
        )
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{path}: vocabulary and merges do not fit each other ({error})") from None
    tokenizer = tokenizers.Tokenizer(model)
    cut, bytes_of = tokenizers.pre_tokenizers, tokenizers.pre_tokenizers.ByteLevel
    steps = [
        bytes_of(add_prefix_space=False, use_regex=True)
        if pattern is None
        else cut.Split(tokenizers.Regex(pattern), "isolated")
        for pattern in CUTS[name]
    ]
    if CUTS[name][-1] is not None:
        steps.append(bytes_of(add_prefix_space=False, use_regex=False))
    tokenizer.pre_tokenizer = cut.Sequence(steps)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    for number, special in ((CONTROL, True), (USER, False)):
        whole = [w for w, t in zip(words, types, strict=True) if t == number]
        added = [tokenizers.AddedToken(w, special=special, normalized=False) for w in whole]
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(added)
    if settings.get("tokenizer.ggml.add_bos_token", llama3):
        first = required(settings, "tokenizer.ggml.bos_token_id", path)
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{words[first]} $A", special_tokens=[(words[first], first)]
        )
    return tokenizer
