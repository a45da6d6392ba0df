"""The llama family and GPT-2: against another program's answers, against their formulas written out
token by token, and against finite differences. A docstring with "N:" has a negative control:
something that must not hold.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fwl_ref.gradcheck import check_adjoint
from fwl_ref.lm import gpt2, llama
from fwl_ref.lm.heads import merge_heads, split_heads
from fwl_ref.lm.unembed import unembed_bwd, unembed_fwd
from fwl_ref.ops.cross_entropy import cross_entropy_bwd, cross_entropy_fwd
from fwl_ref.tree import tree_map
from tests.lm.golden_families import GPT2S, LLAMAS, Golden, golden
from tests.strategies import first_elsewhere, generator
from tests.tolerances import RTOL, assert_bitwise, assert_close, assert_trees_close, float32_bound, relative_error

PEER = RTOL  # two exact programs in float64; found: 3e-13 at most
every_model = pytest.mark.parametrize("name", [*LLAMAS, *GPT2S])
every_model_or_two_elsewhere = pytest.mark.parametrize("name", [*first_elsewhere(LLAMAS), *first_elsewhere(GPT2S)])


def family(name: str) -> Any:
    return llama if name in LLAMAS else gpt2


def run(case: Golden, name: str) -> tuple:
    """Logits, weighted loss and the gradient of all parameters."""
    (logits, _), res = family(name).model_fwd(case.p, case.tokens, case.config)
    nll, entropy = cross_entropy_fwd(logits, case.labels)
    gradient = family(name).model_bwd(cross_entropy_bwd(case.weights, entropy), res)
    return logits, np.sum(case.weights * nll), gradient


# --- another program


@every_model
def test_logits_and_gradients_are_those_of_transformers_and_autograd(name: str) -> None:
    """LlamaForCausalLM and GPT2LMHeadModel in float64, every gradient of every parameter.   (M.6) to
    (M.12), (T.5) to (T.8)
    """
    case = golden(name)
    logits, loss, gradient = run(case, name)
    assert_close(logits, case.logits, PEER)
    assert_close(loss, case.loss, PEER)
    assert_trees_close(gradient, case.gradient, PEER)


@every_model
def test_float32_is_float64_rounded(name: str) -> None:
    """The same model in float32: another dtype, the same function."""
    case = golden(name)
    narrow = case._replace(p=tree_map(lambda a: a.astype("float32"), case.p), weights=case.weights.astype("float32"))
    logits, _, gradient = run(narrow, name)
    assert logits.dtype == np.float32
    assert_close(logits, case.logits, float32_bound(terms=64, stages=32))
    assert_trees_close(gradient, case.gradient, float32_bound(terms=64, stages=64))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("llama_tied_grouped", {"pairs": "interleaved"}),
        ("llama_tied_grouped", {"base": 500.0}),
        ("llama_tied_grouped", {"eps": 1e-3}),
        ("llama_untied", {"base": 10000.0}),
        ("llama_scaled", {"factors": None}),
        ("gpt2_untied", {"eps": 1e-5}),
    ],
)
def test_a_wrong_setting_is_seen(name: str, change: dict) -> None:
    """N: each setting of the configuration matters: with another value the logits are others."""
    case = golden(name)
    (logits, _), _ = family(name).model_fwd(case.p, case.tokens, case.config._replace(**change))
    assert relative_error(logits, case.logits) > 1e-5


# --- the formulas, one token and one head at a time


def rms(x, gain, eps):
    return x / np.sqrt(np.mean(x**2) + eps) * gain


def layer_norm(x, gain, bias, eps):
    return (x - x.mean()) / np.sqrt(x.var() + eps) * gain + bias


def attend(q, keys, values):
    scores = np.array([q @ k / np.sqrt(len(q)) for k in keys])
    weights = np.exp(scores - scores.max())
    return sum(w * v for w, v in zip(weights / weights.sum(), values, strict=True))


def turned(x, position, c):
    """Channels i and i + K/2 as one complex number, turned."""
    half = len(x) // 2
    z = (x[:half] + 1j * x[half:]) * np.exp(1j * position * c.base ** (-2 * np.arange(half) / len(x)) / (c.factors or np.ones(half)))
    return np.concatenate([z.real, z.imag])


def part(row, head, width):
    return row[head * width : (head + 1) * width]


def literal_llama_layer(x, p, c):
    """(T,D)->(T,D)"""
    y = [rms(row, p.gain1, c.eps) for row in x]
    keys = [[turned(part(row @ p.W_k, g, c.head), s, c) for s, row in enumerate(y)] for g in range(c.groups)]
    values = [[part(row @ p.W_v, g, c.head) for row in y] for g in range(c.groups)]
    out = []
    for t in range(len(x)):
        heads = []
        for h in range(c.heads):
            g = h * c.groups // c.heads
            q = turned(part(y[t] @ p.W_q, h, c.head), t, c)
            heads.append(attend(q, keys[g][: t + 1], values[g][: t + 1]))
        mid = x[t] + np.concatenate(heads) @ p.W_o
        n = rms(mid, p.gain2, c.eps)
        gate = n @ p.W_gate
        out.append(mid + (gate / (1 + np.exp(-gate)) * (n @ p.W_up)) @ p.W_down)
    return np.stack(out)


def literal_gpt2_layer(x, p, c):
    """(T,D)->(T,D)"""
    d, head = c.width, c.width // c.heads
    qkv = [layer_norm(row, p.gain1, p.bias1, c.eps) @ p.W_qkv + p.b_qkv for row in x]
    out = []
    for t in range(len(x)):
        heads = [
            attend(
                part(qkv[t][:d], h, head),
                [part(r[d : 2 * d], h, head) for r in qkv[: t + 1]],
                [part(r[2 * d :], h, head) for r in qkv[: t + 1]],
            )
            for h in range(c.heads)
        ]
        mid = x[t] + np.concatenate(heads) @ p.W_o + p.b_o
        u = layer_norm(mid, p.gain2, p.bias2, c.eps) @ p.W_in + p.b_in
        out.append(mid + 0.5 * u * (1 + np.tanh(np.sqrt(2 / np.pi) * (u + 0.044715 * u**3))) @ p.W_out + p.b_out)
    return np.stack(out)


@every_model
def test_a_layer_and_the_features_are_their_formulas(name: str) -> None:
    """x + attention + MLP, token by token, from the rows of the tables to the final
    normalisation.   (T.5), (T.7), (T.3), (M.6), (M.11)
    """
    p, c, tokens = golden(name)[:3]
    literal = literal_llama_layer if name in LLAMAS else literal_gpt2_layer
    x = generator(1)(2, 6, c.width)
    (y, cache), _ = family(name).layer_fwd(x, p.trunk[0], c)
    assert_close(y, np.stack([literal(row, p.trunk[0], c) for row in x]))
    assert cache.k.shape[1] == (c.groups if name in LLAMAS else c.heads)
    expected = []
    for row in tokens:
        x = p.embedding[row] if name in LLAMAS else p.embedding[row] + p.positions[: len(row)]
        for layer in p.trunk:
            x = literal(x, layer, c)
        norm = (lambda v: rms(v, p.gain, c.eps)) if name in LLAMAS else (lambda v: layer_norm(v, p.gain, p.bias, c.eps))
        expected.append([norm(v) for v in x])
    (found, _), _ = family(name).features_fwd(p, tokens, c)
    assert_close(found, np.asarray(expected))


def test_the_unembedding_is_a_product_with_every_row_of_the_table() -> None:
    """logits_v = x . table_v, and its adjoint.   (M.8), (M.9)"""
    x, table = generator(2)(2, 3, 4), generator(3)(5, 4)
    logits, _ = unembed_fwd(x, table)
    assert_close(logits, np.asarray([[[u @ row for row in table] for u in line] for line in x]))
    check_adjoint(unembed_fwd, unembed_bwd, (x, table))


def test_heads_are_parts_of_a_row() -> None:
    """Head h of a token is the h-th part of its row; merging undoes splitting, bit by bit."""
    y = generator(4)(2, 3, 12)
    heads = split_heads(y, 3)
    for b, h, t in np.ndindex(2, 3, 3):
        assert_bitwise(heads[b, h, t], y[b, t, 4 * h : 4 * h + 4])
    assert_bitwise(merge_heads(heads), y)


# --- finite differences


@every_model_or_two_elsewhere
@pytest.mark.parametrize("cached", [False, True])
def test_the_backward_pass_of_a_layer_is_its_adjoint(name: str, cached: bool) -> None:
    """<u, J v> = <J^T u, v> for x and every parameter, with and without a cache.   (T.6), (T.8)"""
    p, c = golden(name)[:2]
    x, cache = generator(5)(1, 5, c.width), None
    if cached:
        (_, cache), _ = family(name).layer_fwd(generator(6)(1, 3, c.width), p.trunk[1], c)

    def fwd(x: Any, p: Any) -> tuple:
        (y, _), res = family(name).layer_fwd(x, p, c, cache)
        return y, res

    check_adjoint(fwd, family(name).layer_bwd, (x, p.trunk[0]))


@every_model_or_two_elsewhere
def test_the_backward_pass_of_a_model_is_its_adjoint(name: str) -> None:
    """From the logits to every parameter, tied tables included.   (M.7), (M.9), (M.10), (M.12),
    (T.4)
    """
    p, c, tokens = golden(name)[:3]
    tokens = tokens[:1, :5]
    (_, caches), _ = family(name).model_fwd(p, tokens[:, :2], c)

    def fwd(p: Any) -> tuple:
        (logits, _), res = family(name).model_fwd(p, tokens, c, caches)
        return logits, res

    check_adjoint(fwd, lambda dlogits, res: (family(name).model_bwd(dlogits, res),), (p,), step=1e-4)


@pytest.mark.parametrize("name", ["llama_tied_grouped", "gpt2_tied"])
def test_a_tied_table_has_the_gradients_of_both_of_its_uses(name: str) -> None:
    """dE of a tied model = dE + dU of the same model untied; N: neither of the two alone.   (M.10)"""
    case = golden(name)
    untied = case._replace(p=case.p._replace(unembedding=case.p.embedding), config=case.config._replace(tied=False))
    _, _, tied_gradient = run(case, name)
    _, _, gradient = run(untied, name)
    assert tied_gradient.unembedding is None
    assert_close(tied_gradient.embedding, gradient.embedding + gradient.unembedding)
    for alone in (gradient.embedding, gradient.unembedding):
        assert relative_error(tied_gradient.embedding, alone) > 0.01


# --- the cache


@every_model
@pytest.mark.parametrize("cut", [0, 1, 5, 8])
def test_a_model_with_caches_goes_on_where_it_stopped(name: str, cut: int) -> None:
    """The second piece sees the first one's keys and values, at their positions; N: without caches it
    is another text.   (M.6), (M.11)
    """
    case = golden(name)
    model = family(name)
    (first, caches), _ = model.model_fwd(case.p, case.tokens[:, :cut], case.config)
    (second, _), _ = model.model_fwd(case.p, case.tokens[:, cut:], case.config, caches)
    assert_close(np.concatenate([first, second], axis=1), case.logits)
    if cut:
        (alone, _), _ = model.model_fwd(case.p, case.tokens[:, cut:], case.config)
        assert relative_error(alone, second) > 1e-3


@every_model
def test_features_without_residuals_are_the_same_bits(name: str) -> None:
    """``features`` = ``features_fwd``, output and caches.   (M.6), (M.11)"""
    p, c, tokens = golden(name)[:3]
    (x, caches), _ = family(name).features_fwd(p, tokens, c)
    again, kept = family(name).features(p, tokens, c)
    assert_bitwise(again, x)
    for a, b in zip(kept, caches, strict=True):
        assert_bitwise(a.k, b.k)
        assert_bitwise(a.v, b.v)
    (rest, _), _ = family(name).features_fwd(p, tokens[:, :2], c, caches)
    assert_bitwise(family(name).features(p, tokens[:, :2], c, kept)[0], rest)


# --- conventions


def test_interleaved_pairs_are_halves_with_the_columns_of_queries_and_keys_in_another_order() -> None:
    """Files of llama.cpp store the first, files of transformers the second.   (P.1)"""
    case = golden("llama_tied_grouped")
    order = [0, 2, 1, 3]  # of a head of 4: halves (0, 1 | 2, 3) become pairs (0, 2), (1, 3)

    def reordered(w: np.ndarray) -> np.ndarray:
        return np.concatenate([w[:, 4 * h : 4 * h + 4][:, order] for h in range(w.shape[1] // 4)], axis=1)

    trunk = tuple(layer._replace(W_q=reordered(layer.W_q), W_k=reordered(layer.W_k)) for layer in case.p.trunk)
    (logits, _), _ = llama.model_fwd(case.p._replace(trunk=trunk), case.tokens, case.config._replace(pairs="interleaved"))
    assert_close(logits, case.logits)


# --- what cannot be


@every_model
def test_a_parameter_of_another_shape_is_named(name: str) -> None:
    """Before anything is computed."""
    case = golden(name)
    model, last = family(name), "W_down" if name in LLAMAS else "W_out"
    trunk = (case.p.trunk[0], case.p.trunk[1]._replace(**{last: case.p.gain}))
    with pytest.raises(ValueError, match=rf"trunk\.1\.{last} must have shape \(F,D\)"):
        model.model_fwd(case.p._replace(trunk=trunk), case.tokens, case.config)
    with pytest.raises(ValueError, match="must have 2 layers, got 1"):
        model.model_fwd(case.p._replace(trunk=trunk[:1]), case.tokens, case.config)
    with pytest.raises(ValueError, match="unembedding"):
        model.model_fwd(case.p, case.tokens, case.config._replace(tied=not case.config.tied))
    with pytest.raises(ValueError, match="embedding must have shape"):
        model.model_fwd(case.p._replace(embedding=case.p.embedding[1:]), case.tokens, case.config)


@every_model
@pytest.mark.host("values are checked on the host, before they are moved")
def test_a_token_out_of_range_is_refused(name: str) -> None:
    """11 tokens: 0 to 10."""
    case = golden(name)
    for run_it in (family(name).features_fwd, family(name).features):
        with pytest.raises(ValueError, match=r"tokens must lie in \[0, 11\), got 11"):
            run_it(case.p, case.tokens + 11 - case.tokens.max(), case.config._replace(vocabulary=11))


BAD = [
    ("llama_untied", {"layers": 0}, "layers must be at least 1, got 0"),
    ("llama_untied", {"groups": 3}, "a multiple of the key-value heads, got 2 and 3"),
    ("llama_untied", {"head": 3}, "an even head width, got 3"),
    ("llama_untied", {"pairs": "neox"}, "pairs must be halves or interleaved, got 'neox'"),
    ("llama_untied", {"factors": (1.0,)}, "factors must be 2 numbers above 0.*got"),
    ("llama_untied", {"factors": (1.0, -2.0)}, "factors must be 2 numbers above 0.*got"),
    ("llama_untied", {"eps": 0.0}, "eps must be above 0"),
    ("llama_untied", {"base": -1.0}, "base must be above 0"),
    ("gpt2_tied", {"context": 0}, "context must be at least 1"),
    ("gpt2_tied", {"heads": 3}, "width 8 and 3 heads"),
    ("gpt2_tied", {"eps": -1e-5}, "eps must be above 0"),
]


@pytest.mark.parametrize(("name", "change", "words"), BAD)
def test_a_setting_that_cannot_be_is_named(name: str, change: dict, words: str) -> None:
    """The first one that is wrong."""
    with pytest.raises(ValueError, match=words):
        family(name).check_config(golden(name).config._replace(**change))


def test_more_tokens_than_learned_positions_are_refused() -> None:
    """12 positions: 9 tokens in the cache leave room for 3.   (M.11)"""
    p, c, tokens = golden("gpt2_tied")[:3]
    (_, caches), _ = gpt2.features_fwd(p, tokens, c)
    gpt2.features_fwd(p, tokens[:, :3], c, caches)
    with pytest.raises(ValueError, match=r"there are 12 learned positions, got 13 tokens \(9 of them in the cache\)"):
        gpt2.features_fwd(p, tokens[:, :4], c, caches)
