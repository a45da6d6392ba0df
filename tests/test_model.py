"""The forward formulas of transformer, write and model, written out again in plain NumPy, one token at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from fwl_ref.fwl import write_fwd
from fwl_ref.model import Config, features_fwd
from fwl_ref.transformer import KeyValues, block_fwd, stack_fwd
from tests.strategies import block_cases, generator, make_model_case
from tests.tolerances import assert_close

CONFIG = Config(width=8, layers=2, heads=2, vocabulary=7)


def norm(x, gain, bias, eps):
    """LayerNorm of one vector."""
    return (x - x.mean()) / np.sqrt(x.var() + eps) * gain + bias


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def rotated(x, position):
    """Channels i and i + K/2 turned by position / 10000^(2 i / K), with complex numbers."""
    half = len(x) // 2
    turned = (x[:half] + 1j * x[half:]) * np.exp(1j * position * 10000.0 ** (-2 * np.arange(half) / len(x)))
    return np.concatenate([turned.real, turned.imag])


def literal_block(x, p, heads, window):
    """(T,D): one pre-LN block, token by token and head by head."""
    length, width = x.shape
    head = width // heads
    qkv = np.stack([norm(row, p.gain1, p.bias1, 1e-5) @ p.W_qkv + p.b_qkv for row in x])
    out = np.zeros_like(x)
    for t in range(length):
        merged = []
        for h in range(heads):
            part = slice(h * head, (h + 1) * head)
            q = rotated(qkv[t, :width][part], t)
            seen = [s for s in range(t + 1) if window is None or s > t - window]
            scores = np.array([q @ rotated(qkv[s, width : 2 * width][part], s) / np.sqrt(head) for s in seen])
            p_t = np.exp(scores) / np.exp(scores).sum()
            merged.append(sum(w * qkv[s, 2 * width :][part] for w, s in zip(p_t, seen, strict=True)))
        out[t] = x[t] + np.concatenate(merged) @ p.W_o + p.b_o
    return np.stack([row + gelu(norm(row, p.gain2, p.bias2, 1e-5) @ p.W_in + p.b_in) @ p.W_out + p.b_out for row in out])


def parameters(seed):
    """A model whose every parameter matters."""
    case = make_model_case(2, 6, CONFIG, seed)
    return case, case.parameters


@pytest.mark.parametrize("window", [None, 1, 3])
def test_a_transformer_block_is_its_formula(window):
    """x + attention + MLP, token by token   (T.1)"""
    _, p = parameters(1)
    x = generator(2)(2, 6, CONFIG.width)
    (y, cache), _ = block_fwd(x, p.blocks[0], CONFIG.heads, window)
    assert_close(y, np.stack([literal_block(row, p.blocks[0], CONFIG.heads, window) for row in x]))
    assert cache.k.shape == (2, CONFIG.heads, 6, CONFIG.width // CONFIG.heads)


@pytest.mark.parametrize("cut", [1, 2, 5])
def test_a_block_with_a_cache_goes_on_where_it_stopped(cut):
    """The second piece sees the first one's keys and values, at their positions   (T.1)"""
    _, p = parameters(3)
    x = generator(4)(2, 6, CONFIG.width)
    (whole, _), _ = block_fwd(x, p.blocks[0], CONFIG.heads, 3)
    (first, cache), _ = block_fwd(x[:, :cut], p.blocks[0], CONFIG.heads, 3)
    (second, _), _ = block_fwd(x[:, cut:], p.blocks[0], CONFIG.heads, 3, KeyValues(*cache))
    assert_close(np.concatenate([first, second], axis=1), whole)


@pytest.mark.parametrize("cut", [1, 2, 5])
def test_a_stack_with_caches_goes_on_where_it_stopped(cut):
    """Every block of the second piece sees its own keys and values of the first, not another block's and not none   (T.3), (M.1)"""
    case, p = parameters(3)
    assert len(p.blocks) > 1
    config = CONFIG._replace(attention_window=3)
    (whole, _), _ = features_fwd(p, case.tokens, config)
    (first, caches), _ = features_fwd(p, case.tokens[:, :cut], config)
    (second, _), _ = features_fwd(p, case.tokens[:, cut:], config, caches)
    assert_close(np.concatenate([first, second], axis=1), whole)


def test_the_stack_is_one_block_after_the_other_and_the_features_its_normalised_output():
    """x_i = f_i(x_{i-1}), from the rows of the embedding to the final LayerNorm   (T.3), (M.1)"""
    case, p = parameters(5)
    expected = []
    for row in case.tokens:
        x = p.embedding[row]
        for block in p.blocks:
            x = literal_block(x, block, CONFIG.heads, None)
        expected.append(x)
    (stacked, _), _ = stack_fwd(p.embedding[case.tokens], p.blocks, CONFIG.heads)
    assert_close(stacked, np.stack(expected))
    (features, _), _ = features_fwd(p, case.tokens, CONFIG)
    assert_close(features, np.stack([[norm(v, p.gain, p.bias, 1e-5) for v in x] for x in expected]))


@given(block_cases(normalizers=("constant", "sequence", "batch"), min_length=1))
def test_what_is_written_is_the_formula_of_every_token(case):
    """Keys x, a and values dh, dz, dgain, dbias of each token, by scalars   (F.1)"""
    x, labels, weights, slow, _, _, settings = case
    (memory, logits), _ = write_fwd(x, labels, weights, slow, settings)
    for b, t in np.ndindex(*labels.shape):
        n = {"constant": settings.constant, "sequence": weights[b].sum(), "batch": weights.sum()}[settings.normalizer] or 1.0
        h = x[b, t] @ slow.W1 + slow.b1
        a = np.maximum(h, 0) ** 2
        z = a @ slow.W2 + slow.b2
        rstd = 1 / np.sqrt(z.var() + settings.eps)
        z_hat = (z - z.mean()) * rstd
        y = (z_hat * slow.gain + slow.bias) @ slow.U + slow.c
        p = np.exp(y - y.max())
        dlogits = weights[b, t] / n * (p / p.sum() - np.eye(len(y))[labels[b, t]])
        dn = slow.U @ dlogits
        v = dn * slow.gain
        dz = rstd * (v - v.mean() - z_hat * (z_hat * v).mean())
        dh = 2 * np.maximum(h, 0) * (slow.W2 @ dz)
        for found, wanted in zip(memory, (h, x[b, t], dh, a, dz, dn * z_hat, dn), strict=True):
            assert_close(found[b, t], wanted, scale=1.0)
        assert_close(logits[b, t], y)
