"""What both formats call the parameters: trees of names, shaped like the parameters."""

from __future__ import annotations

from ..backend import Tree
from ..lm.gpt2 import Gpt2Config, Gpt2Parameters
from ..lm.llama import LlamaConfig, LlamaLayer, LlamaParameters
from ..lm.transformer import LayerParameters


def gguf_llama(config: LlamaConfig) -> Tree:
    """Names of llama.cpp."""
    attention = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output")
    mlp = ("ffn_norm", "ffn_gate", "ffn_up", "ffn_down")
    trunk = tuple(
        LlamaLayer(*(f"blk.{i}.{part}.weight" for part in (*attention, *mlp)))
        for i in range(config.layers)
    )
    table = None if config.tied else "output.weight"
    return LlamaParameters("token_embd.weight", trunk, "output_norm.weight", table)


def gguf_gpt2(config: Gpt2Config) -> Tree:
    """Names of llama.cpp."""
    parts = ("attn_norm", "attn_qkv", "attn_output", "ffn_norm", "ffn_up", "ffn_down")
    trunk = tuple(LayerParameters(*_both(f"blk.{i}.", parts)) for i in range(config.layers))
    gain, bias = _both("", ("output_norm",))
    table = None if config.tied else "output.weight"
    return Gpt2Parameters("token_embd.weight", "position_embd.weight", trunk, gain, bias, table)


def safetensors_llama(config: LlamaConfig) -> Tree:
    """Names of transformers."""
    attention = tuple(f"self_attn.{part}_proj" for part in "qkvo")
    mlp = tuple(f"mlp.{part}_proj" for part in ("gate", "up", "down"))
    parts = ("input_layernorm", *attention, "post_attention_layernorm", *mlp)
    trunk = tuple(
        LlamaLayer(*(f"model.layers.{i}.{part}.weight" for part in parts))
        for i in range(config.layers)
    )
    table = None if config.tied else "lm_head.weight"
    return LlamaParameters("model.embed_tokens.weight", trunk, "model.norm.weight", table)


def safetensors_gpt2(config: Gpt2Config, prefix: str) -> Tree:
    """Names of transformers, of which some files lack the ``prefix`` "transformer."."""
    parts = ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
    trunk = tuple(LayerParameters(*_both(f"{prefix}h.{i}.", parts)) for i in range(config.layers))
    gain, bias = _both(prefix, ("ln_f",))
    table = None if config.tied else "lm_head.weight"
    tokens, positions = f"{prefix}wte.weight", f"{prefix}wpe.weight"
    return Gpt2Parameters(tokens, positions, trunk, gain, bias, table)


def _both(before: str, parts: tuple[str, ...]) -> list[str]:
    """Weight and bias of each part."""
    return [f"{before}{part}.{kind}" for part in parts for kind in ("weight", "bias")]
