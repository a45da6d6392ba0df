"""What `transformers` and PyTorch's autograd computed for small random models, read from tests/lm/golden.

``tools/pretrained_golden.py`` made the files. Names and layouts of that library are put into words of
this one here, by hand: nothing of ``fwl_ref/pretrained`` is used.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fwl_ref.lm.gpt2 import Gpt2Config, Gpt2Parameters
from fwl_ref.lm.llama import LlamaConfig, LlamaLayer, LlamaParameters
from fwl_ref.lm.transformer import LayerParameters

FOLDER = Path(__file__).resolve().parent / "golden"
LLAMAS = ("llama_tied_grouped", "llama_untied", "llama_scaled")
GPT2S = ("gpt2_tied", "gpt2_untied")


class Golden(NamedTuple):
    """A model, a batch, and the other program's answers."""

    p: Any  # parameters
    config: Any
    tokens: np.ndarray  # (B,T)
    labels: np.ndarray  # (B,T)
    weights: np.ndarray  # (B,T)
    logits: np.ndarray  # (B,T,V)
    loss: np.ndarray  # () sum of weights times cross-entropies
    gradient: Any  # of the loss, as parameters


def stored(name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of a file, and the configuration as transformers writes it."""
    with np.load(FOLDER / f"{name}.npz") as file:
        arrays = dict(file)
    return arrays, json.loads(arrays.pop("config").tobytes())


def golden(name: str) -> Golden:
    """One case, of either family."""
    arrays, given = stored(name)
    build, config = (_llama, _llama_config(given)) if name in LLAMAS else (_gpt2, _gpt2_config(given))
    p, gradient = (build({k[2:]: a for k, a in arrays.items() if k.startswith(kind)}, config) for kind in ("p/", "g/"))
    return Golden(p, config, *(arrays[k] for k in ("tokens", "labels", "weights", "logits", "loss")), gradient)


def _llama_config(given: dict[str, Any]) -> LlamaConfig:
    heads = given["num_attention_heads"]
    return LlamaConfig(
        width=given["hidden_size"],
        hidden=given["intermediate_size"],
        layers=given["num_hidden_layers"],
        heads=heads,
        groups=given["num_key_value_heads"],
        head=given["head_dim"],
        vocabulary=given["vocab_size"],
        context=given["max_position_embeddings"],
        eps=given["rms_norm_eps"],
        base=given["rope_parameters"]["rope_theta"],
        pairs="halves",
        tied=given["tie_word_embeddings"],
        factors=_factors(given),
    )


def _factors(given: dict[str, Any]) -> tuple[float, ...] | None:
    """Of Llama 3.1: slow pairs are slower, fast ones as they were, with a ramp between them."""
    rotary, head = given["rope_parameters"], given["head_dim"]
    if rotary["rope_type"] == "default":
        return None
    factors = []
    for i in range(head // 2):
        turns = rotary["original_max_position_embeddings"] * rotary["rope_theta"] ** (-2 * i / head) / (2 * np.pi)
        low, high = rotary["low_freq_factor"], rotary["high_freq_factor"]
        share = min(max((turns - low) / (high - low), 0.0), 1.0)  # how much of the frequency stays
        factors.append(1 / (share + (1 - share) / rotary["factor"]))
    return tuple(factors)


def _llama(a: dict[str, np.ndarray], config: LlamaConfig) -> LlamaParameters:
    def layer(i: int) -> LlamaLayer:
        at = f"model.layers.{i}."
        q, k, v, o = (a[f"{at}self_attn.{n}_proj.weight"].T for n in "qkvo")
        gate, up, down = (a[f"{at}mlp.{n}_proj.weight"].T for n in ("gate", "up", "down"))
        return LlamaLayer(a[f"{at}input_layernorm.weight"], q, k, v, o, a[f"{at}post_attention_layernorm.weight"], gate, up, down)

    trunk = tuple(layer(i) for i in range(config.layers))
    return LlamaParameters(a["model.embed_tokens.weight"], trunk, a["model.norm.weight"], a.get("lm_head.weight"))


def _gpt2_config(given: dict[str, Any]) -> Gpt2Config:
    width = given["n_embd"]
    return Gpt2Config(
        width=width,
        hidden=given["n_inner"] or 4 * width,
        layers=given["n_layer"],
        heads=given["n_head"],
        vocabulary=given["vocab_size"],
        context=given["n_positions"],
        eps=given["layer_norm_epsilon"],
        tied=given["tie_word_embeddings"],
    )


def _gpt2(a: dict[str, np.ndarray], config: Gpt2Config) -> Gpt2Parameters:
    def layer(i: int) -> LayerParameters:
        parts = ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
        return LayerParameters(*(a[f"transformer.h.{i}.{part}.{kind}"] for part in parts for kind in ("weight", "bias")))

    trunk = tuple(layer(i) for i in range(config.layers))
    tables = (a["transformer.wte.weight"], a["transformer.wpe.weight"])
    return Gpt2Parameters(*tables, trunk, a["transformer.ln_f.weight"], a["transformer.ln_f.bias"], a.get("lm_head.weight"))
