"""Files of small models as other programs write them: GGUF as llama.cpp's converter does, folders as
transformers does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.lm import golden_families
from tests.lm.golden_families import LLAMAS, stored

WORDS = [*"abcdefghij", "ab"]  # a vocabulary of 11 tokens


def interleaved(w: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key matrix (outputs, inputs) from halves to interleaved pairs, head by head."""
    head = w.shape[0] // heads
    order = [i // 2 + (i % 2) * (head // 2) for i in range(head)]  # 0, K/2, 1, K/2 + 1, ...
    return np.concatenate([w[h * head : (h + 1) * head][order] for h in range(heads)])


def llama_tensors(name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors and settings that llama.cpp's converter would write for a golden llama."""
    arrays, given = stored(name)
    heads, groups = given["num_attention_heads"], given["num_key_value_heads"]
    parts = {
        "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    }  # fmt: skip
    tensors = {"token_embd.weight": arrays["p/model.embed_tokens.weight"], "output_norm.weight": arrays["p/model.norm.weight"]}
    if "p/lm_head.weight" in arrays:
        tensors["output.weight"] = arrays["p/lm_head.weight"]
    for i in range(given["num_hidden_layers"]):
        for theirs, ours in parts.items():
            tensors[f"blk.{i}.{ours}.weight"] = arrays[f"p/model.layers.{i}.{theirs}.weight"]
        for part, count in (("attn_q", heads), ("attn_k", groups)):
            tensors[f"blk.{i}.{part}.weight"] = interleaved(tensors[f"blk.{i}.{part}.weight"], count)
    settings = {
        "llama.embedding_length": given["hidden_size"],
        "llama.feed_forward_length": given["intermediate_size"],
        "llama.block_count": given["num_hidden_layers"],
        "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": groups,
        "llama.attention.key_length": given["head_dim"],
        "llama.rope.dimension_count": given["head_dim"],
        "llama.context_length": given["max_position_embeddings"],
        "llama.vocab_size": given["vocab_size"],
        "llama.attention.layer_norm_rms_epsilon": given["rms_norm_eps"],
        "llama.rope.freq_base": given["rope_parameters"]["rope_theta"],
    }
    factors = golden_families.golden(name).config.factors
    if factors is not None:
        tensors["rope_freqs.weight"] = np.asarray(factors, dtype="float32")
    return tensors, settings


def gpt2_tensors(name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The same for a golden GPT-2, whose matrices the converter transposes."""
    arrays, given = stored(name)
    parts = {
        "ln_1": "attn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output",
        "ln_2": "ffn_norm", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
    }  # fmt: skip
    tables = {"wte.weight": "token_embd.weight", "wpe.weight": "position_embd.weight"}
    tensors = {ours: arrays[f"p/transformer.{theirs}"] for theirs, ours in tables.items()}
    for kind in ("weight", "bias"):
        tensors[f"output_norm.{kind}"] = arrays[f"p/transformer.ln_f.{kind}"]
        for i in range(given["n_layer"]):
            for theirs, ours in parts.items():
                tensors[f"blk.{i}.{ours}.{kind}"] = np.ascontiguousarray(arrays[f"p/transformer.h.{i}.{theirs}.{kind}"].T)
    if "p/lm_head.weight" in arrays:
        tensors["output.weight"] = arrays["p/lm_head.weight"]
    width = given["n_embd"]
    settings = {
        "gpt2.embedding_length": width,
        "gpt2.feed_forward_length": given["n_inner"] or 4 * width,
        "gpt2.block_count": given["n_layer"],
        "gpt2.attention.head_count": given["n_head"],
        "gpt2.context_length": given["n_positions"],
        "gpt2.attention.layer_norm_epsilon": given["layer_norm_epsilon"],
    }
    return tensors, settings


def gguf_parts(name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors and settings of a golden model of either family, with a tokenizer."""
    tensors, settings = llama_tensors(name) if name in LLAMAS else gpt2_tensors(name)
    settings["general.architecture"] = name.split("_")[0]
    settings |= {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2"}
    return tensors, settings | {"tokenizer.ggml.tokens": WORDS, "tokenizer.ggml.merges": ["a b"]}


def write_gguf(path: Path, tensors: dict[str, np.ndarray], settings: dict[str, Any], types: dict[str, Any] | None = None) -> Path:
    """A file with these tensors and settings; ``types`` says which tensors are quantised, and how."""
    import gguf

    writer = gguf.GGUFWriter(path, settings["general.architecture"])
    for key, value in settings.items():
        if key == "general.architecture":
            continue  # the writer has written it
        if isinstance(value, list):
            writer.add_array(key, value)
        else:
            add = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float64}[type(value)]
            add(key, value)
    for key, array in tensors.items():
        kind = (types or {}).get(key)
        array = np.ascontiguousarray(array)
        if kind is None:
            writer.add_tensor(key, array)
        else:
            writer.add_tensor(key, gguf.quantize(array.astype("float32"), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def folder_parts(name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors and configuration of a golden model as transformers saves them."""
    arrays, given = stored(name)
    return {key[2:]: a for key, a in arrays.items() if key.startswith("p/")}, given


def write_folder(folder: Path, tensors: dict[str, np.ndarray], given: dict[str, Any], files: int = 1) -> Path:
    """A folder of a model, its tensors dealt out to some files."""
    from safetensors.numpy import save_file

    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(given), encoding="utf-8")
    for i in range(files):
        part = {key: np.ascontiguousarray(a) for key, a in list(tensors.items())[i::files]}
        save_file(part, folder / f"model-{i}.safetensors")
    return folder
