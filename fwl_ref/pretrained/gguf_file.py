"""Models in one file of llama.cpp, ``.gguf``, with every quantisation that the package ``gguf``
dequantizes.

Matrices are stored (outputs, inputs). Of llama models the rows of queries and keys are in an order
for interleaved pairs of rotary positions. They stay in it: ``pairs`` says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..lm.gpt2 import Gpt2Config
from ..lm.llama import LlamaConfig
from .extra import needed
from .names import gguf_gpt2, gguf_llama
from .source import Source, configured, family_of, refuse_unless, required

FACTORS = "rope_freqs.weight"  # what slows the rotary positions of Llama 3.1 and later down


def open_gguf(path: Path) -> tuple[Source, dict[str, Any]]:
    """The file as a source of tensors, and all of its settings.

    Raises
    ------
    FileNotFoundError
        No such file.
    ValueError
        Naming the file: truncated or damaged, another architecture, a setting that is missing or
        asks for what is not supported.
    ExtraError
        ``gguf`` is not installed.
    """
    gguf = needed("gguf")
    if not path.is_file():
        raise FileNotFoundError(f"no file at {str(path)!r}")
    try:
        reader = gguf.GGUFReader(path)
        settings = {key: field.contents() for key, field in reader.fields.items()}
    except (ValueError, IndexError, KeyError, OverflowError, MemoryError, TypeError) as error:
        raise ValueError(
            f"{path}: no whole GGUF file, but one that is truncated or damaged, or another format "
            f"({error}): its {path.stat().st_size} bytes end too early, or were changed"
        ) from None
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    shapes = {name: tuple(int(n) for n in t.shape[::-1]) for name, t in tensors.items()}
    architecture = str(required(settings, "general.architecture", str(path)))
    family_of(str(path), architecture)
    build = _llama if architecture == "llama" else _gpt2
    config = configured(build, settings, str(path), len(shapes), "output.weight" not in shapes)
    if isinstance(config, LlamaConfig) and FACTORS in tensors:
        config = config._replace(factors=tuple(map(float, tensors[FACTORS].data)))
    names = gguf_llama(config) if isinstance(config, LlamaConfig) else gguf_gpt2(config)

    def read(name: str) -> Any:
        tensor = tensors[name]
        if tensor.data.dtype.kind == "f":
            return tensor.data.copy()  # what comes from the file must not change with it
        try:
            return gguf.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            raise ValueError(f"{path}: the tensor {name!r}: {error}") from None

    unused = frozenset({FACTORS} if architecture == "llama" else ())  # part of the configuration
    return Source(str(path), architecture, config, names, True, shapes, unused, read), settings


def _llama(settings: dict[str, Any], path: str, tied: bool) -> LlamaConfig:
    def get(key: str) -> Any:
        return required(settings, f"llama.{key}", path)

    heads, width = get("attention.head_count"), get("embedding_length")
    groups = settings.get("llama.attention.head_count_kv", heads)
    refuse_unless(isinstance(groups, int), path, "another number of key-value heads in every layer")
    head = settings.get("llama.attention.key_length", width // max(heads, 1))
    rotated = settings.get("llama.rope.dimension_count", head)
    refuse_unless(rotated == head, path, f"rotating {rotated} of {head} channels of a head")
    scaling = settings.get("llama.rope.scaling.type", "none")
    refuse_unless(scaling == "none", path, f"rotary positions with scaling {scaling!r}")
    return LlamaConfig(
        width=width,
        hidden=get("feed_forward_length"),
        layers=get("block_count"),
        heads=heads,
        groups=groups,
        head=head,
        vocabulary=_vocabulary(settings, "llama", path),
        context=get("context_length"),
        eps=get("attention.layer_norm_rms_epsilon"),
        base=settings.get("llama.rope.freq_base", 10000.0),
        pairs="interleaved",
        tied=tied,
    )


def _gpt2(settings: dict[str, Any], path: str, tied: bool) -> Gpt2Config:
    def get(key: str) -> Any:
        return required(settings, f"gpt2.{key}", path)

    return Gpt2Config(
        width=get("embedding_length"),
        hidden=get("feed_forward_length"),
        layers=get("block_count"),
        heads=get("attention.head_count"),
        vocabulary=_vocabulary(settings, "gpt2", path),
        context=get("context_length"),
        eps=get("attention.layer_norm_epsilon"),
        tied=tied,
    )


def _vocabulary(settings: dict[str, Any], family: str, path: str) -> int:
    """As the file says, or as many tokens as it lists."""
    stated = settings.get(f"{family}.vocab_size")
    return stated or len(required(settings, "tokenizer.ggml.tokens", path))
