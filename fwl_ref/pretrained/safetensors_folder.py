"""Models in a folder of the library transformers: ``config.json`` and one or several
``.safetensors``.

Matrices of llama models are stored (outputs, inputs), those of GPT-2 (inputs, outputs). Rotary
positions have pairs in halves.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ..lm.gpt2 import Gpt2Config
from ..lm.llama import LlamaConfig
from .extra import needed
from .names import safetensors_gpt2, safetensors_llama
from .source import Source, configured, family_of, refuse_unless, required

REAL = {"F64", "F32", "F16", "BF16"}
# tensors that older files carry: masks and frequencies that follow from the configuration
CONSTANTS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")


def open_safetensors(folder: Path) -> Source:
    """The folder as a source of tensors.

    Raises
    ------
    FileNotFoundError
        No folder, no ``config.json`` or no ``.safetensors`` in it.
    ValueError
        Naming the file: truncated or damaged, another architecture, a setting that is missing or
        asks for what is not supported, a tensor that is in two files or holds no real numbers.
    ExtraError
        ``safetensors`` or ``ml_dtypes`` is not installed.
    """
    safetensors = needed("safetensors")
    needed("ml_dtypes")  # importing it teaches NumPy what bfloat16 is
    settings = _settings(folder / "config.json")
    where: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"no .safetensors in {str(folder)!r}")
    for file in files:
        try:
            with safetensors.safe_open(file, framework="np") as opened:
                slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
                found = {n: (tuple(s.get_shape()), s.get_dtype()) for n, s in slices.items()}
        except safetensors.SafetensorError as error:
            raise ValueError(
                f"{file}: no whole safetensors file, but one that is truncated or damaged "
                f"({error}): it has {file.stat().st_size} bytes"
            ) from None
        for name, (shape, kind) in found.items():
            if name in where:
                raise ValueError(f"{file}: the tensor {name!r} is in {where[name].name} as well")
            if kind not in REAL and not name.endswith(CONSTANTS):
                raise ValueError(
                    f"{file}: the tensor {name!r} must hold real numbers "
                    f"({', '.join(sorted(REAL))}), found {kind}"
                )
            where[name], shapes[name] = file, shape

    def read(name: str) -> Any:
        with safetensors.safe_open(where[name], framework="np") as opened:
            return opened.get_tensor(name)

    stated = str(folder / "config.json")
    family = str(required(settings, "model_type", stated))
    family_of(stated, family)
    config = configured(_llama if family == "llama" else _gpt2, settings, stated, len(shapes))
    prefix = "transformer." if "transformer.wte.weight" in shapes else ""
    llama = isinstance(config, LlamaConfig)
    names = safetensors_llama(config) if llama else safetensors_gpt2(config, prefix)
    unused = {name for name in shapes if name.endswith(CONSTANTS)}
    if config.tied:
        unused.add("lm_head.weight")  # a copy of the embedding, if it is there
    # GPT-2's layers are one-dimensional convolutions there, with weights (inputs, outputs)
    return Source(str(folder), family, config, names, llama, shapes, frozenset(unused), read)


def _settings(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(
            f"no {str(file)!r}: a folder of a model has config.json beside its .safetensors"
        )
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: expected a configuration in JSON ({error})") from None
    if not isinstance(settings, dict):
        raise ValueError(f"{file}: expected an object in JSON, found {type(settings).__name__}")
    return settings


def _llama(settings: dict[str, Any], path: str) -> LlamaConfig:
    def get(key: str) -> Any:
        return required(settings, key, path)

    heads, width = get("num_attention_heads"), get("hidden_size")
    activation = settings.get("hidden_act", "silu")
    refuse_unless(activation == "silu", path, f"the activation {activation!r}")
    for key in ("attention_bias", "mlp_bias", "rope_interleaved"):
        refuse_unless(not settings.get(key), path, f"{key} = {settings.get(key)}")
    rotary = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    kind = rotary.get("rope_type", rotary.get("type", "default"))
    known = kind in ("default", "llama3")
    refuse_unless(known, path, f"rotary positions of type {kind!r}")
    share = rotary.get("partial_rotary_factor", settings.get("partial_rotary_factor")) or 1
    refuse_unless(share == 1, path, f"rotating a share of {share} of the channels of a head")
    head = settings.get("head_dim") or width // max(heads, 1)
    base = float(rotary.get("rope_theta", settings.get("rope_theta")) or 10000.0)
    return LlamaConfig(
        width=width,
        hidden=get("intermediate_size"),
        layers=get("num_hidden_layers"),
        heads=heads,
        groups=settings.get("num_key_value_heads") or heads,
        head=head,
        vocabulary=get("vocab_size"),
        context=get("max_position_embeddings"),
        eps=get("rms_norm_eps"),
        base=base,
        pairs="halves",
        tied=bool(settings.get("tie_word_embeddings", False)),
        factors=_factors(rotary, base, head, path) if kind == "llama3" else None,
    )


def _factors(rotary: dict[str, Any], base: float, head: int, path: str) -> tuple[float, ...]:
    """Of Llama 3.1: a pair that turns often enough in the old context stays as it was, one that
    turns seldom is slower by ``factor``, and in between the frequency is mixed.
    """
    old = required(rotary, "original_max_position_embeddings", path)
    slowest = required(rotary, "factor", path)
    low, high = (required(rotary, f"{name}_freq_factor", path) for name in ("low", "high"))
    factors = []
    for i in range(head // 2):
        turns = old * base ** (-2 * i / head) / (2 * math.pi)
        kept = min(max((turns - low) / (high - low), 0.0), 1.0)
        factors.append(1 / (kept + (1 - kept) / slowest))
    return tuple(factors)


def _gpt2(settings: dict[str, Any], path: str) -> Gpt2Config:
    def get(key: str) -> Any:
        return required(settings, key, path)

    activation = settings.get("activation_function", "gelu_new")
    known = activation in ("gelu_new", "gelu_pytorch_tanh")
    refuse_unless(known, path, f"the activation {activation!r}")
    for key, usual in (
        ("scale_attn_weights", True),
        ("scale_attn_by_inverse_layer_idx", False),
        ("add_cross_attention", False),
    ):
        value = settings.get(key, usual)
        refuse_unless(value == usual, path, f"{key} = {value}")
    return Gpt2Config(
        width=get("n_embd"),
        hidden=settings.get("n_inner") or 4 * get("n_embd"),
        layers=get("n_layer"),
        heads=get("n_head"),
        vocabulary=get("vocab_size"),
        context=get("n_positions"),
        eps=settings.get("layer_norm_epsilon", 1e-5),
        tied=bool(settings.get("tie_word_embeddings", True)),
    )
