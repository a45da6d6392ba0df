"""The forward formulas of transformer, write and model, written out again in plain NumPy, one token
at a time.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from fwl_ref.fwl import write_fwd
from fwl_ref.lm.model import Config, effective_step_sizes, features_fwd, initialize, loss_and_gradient, model_bwd, model_fwd
from fwl_ref.lm.stack import stack_fwd
from fwl_ref.lm.transformer import KeyValues, layer_fwd
from fwl_ref.slow_block import FastParameters
from fwl_ref.tree import leaves, named_leaves, tree_map
from tests.strategies import block_cases, generator, make_model_case
from tests.tolerances import assert_bitwise, assert_close, assert_trees_close

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


def literal_layer(x, p, heads, window):
    """(T,D): one pre-LN layer, token by token and head by head."""
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
def test_a_transformer_layer_is_its_formula(window):
    """x + attention + MLP, token by token   (T.1)"""
    _, p = parameters(1)
    x = generator(2)(2, 6, CONFIG.width)
    (y, cache), _ = layer_fwd(x, p.trunk[0], CONFIG.heads, window)
    assert_close(y, np.stack([literal_layer(row, p.trunk[0], CONFIG.heads, window) for row in x]))
    assert cache.k.shape == (2, CONFIG.heads, 6, CONFIG.width // CONFIG.heads)


@pytest.mark.parametrize("cut", [1, 2, 5])
def test_a_layer_with_a_cache_goes_on_where_it_stopped(cut):
    """The second piece sees the first one's keys and values, at their positions   (T.1)"""
    _, p = parameters(3)
    x = generator(4)(2, 6, CONFIG.width)
    (whole, _), _ = layer_fwd(x, p.trunk[0], CONFIG.heads, 3)
    (first, cache), _ = layer_fwd(x[:, :cut], p.trunk[0], CONFIG.heads, 3)
    (second, _), _ = layer_fwd(x[:, cut:], p.trunk[0], CONFIG.heads, 3, KeyValues(*cache))
    assert_close(np.concatenate([first, second], axis=1), whole)


@pytest.mark.parametrize("cut", [1, 2, 5])
def test_a_stack_with_caches_goes_on_where_it_stopped(cut):
    """Every layer of the second piece sees its own keys and values of the first, not another
    layer's and not none   (T.3), (M.1)
    """
    case, p = parameters(3)
    assert len(p.trunk) > 1
    config = CONFIG._replace(attention_window=3)
    (whole, _), _ = features_fwd(p, case.tokens, config)
    (first, caches), _ = features_fwd(p, case.tokens[:, :cut], config)
    (second, _), _ = features_fwd(p, case.tokens[:, cut:], config, caches)
    assert_close(np.concatenate([first, second], axis=1), whole)


def test_the_stack_is_one_layer_after_the_other_and_the_features_its_normalised_output():
    """x_i = f_i(x_{i-1}), from the rows of the embedding to the final LayerNorm   (T.3), (M.1)"""
    case, p = parameters(5)
    expected = []
    for row in case.tokens:
        x = p.embedding[row]
        for layer in p.trunk:
            x = literal_layer(x, layer, CONFIG.heads, None)
        expected.append(x)
    (stacked, _), _ = stack_fwd(layer_fwd, p.embedding[case.tokens], p.trunk, (CONFIG.heads, None))
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
        z = a @ slow.W2 + slow.b2 + (x[b, t] if settings.residual else 0)
        mean = np.mean if settings.norm == "layer" else lambda _: 0.0
        rstd = 1 / np.sqrt(np.mean((z - mean(z)) ** 2) + settings.eps)
        z_hat = (z - mean(z)) * rstd
        y = (z_hat * slow.gain + slow.bias) @ slow.U + slow.c
        p = np.exp(y - y.max())
        dlogits = weights[b, t] / n * (p / p.sum() - np.eye(len(y))[labels[b, t]])
        dn = slow.U @ dlogits
        v = dn * slow.gain
        dz = rstd * (v - mean(v) - z_hat * (z_hat * v).mean())
        dh = 2 * np.maximum(h, 0) * (slow.W2 @ dz)
        for found, wanted in zip(memory, (h, x[b, t], dh, a, dz, dn * z_hat, dn), strict=True):
            assert_close(found[b, t], wanted, scale=1.0)
        assert_close(logits[b, t], y)


# --- the loss


@pytest.mark.parametrize("fast", [True, False])
def test_the_loss_is_the_mean_over_the_weights(fast):
    """sum w nll / sum w and its gradient, for weights of any sum, some of them 0; no weights are
    weights of 1   (M.5)
    """
    case, p = parameters(11)
    config, shape = CONFIG._replace(fast=fast), case.tokens.shape
    uneven = np.random.default_rng(1).uniform(0, 0.1, shape)
    uneven[:, :2] = 0  # the first token of all too
    assert 0 < np.sum(uneven) < 1
    for weights in (uneven, 30 * uneven, None):
        w = np.ones(shape) if weights is None else weights
        loss, gradient = loss_and_gradient(p, case.tokens, case.labels, weights, config)
        literal, res = model_fwd(p, case.tokens, case.labels, w, config)
        assert_close(loss, np.sum(w * literal.nll) / np.sum(w))
        assert_trees_close(gradient, model_bwd(w / np.sum(w), res))
        if not fast:
            assert all(e.shape == () and e == 0 for e in (*gradient.eta, gradient.decay))


@pytest.mark.parametrize("normalizer", ["batch", "constant"])
@pytest.mark.parametrize("fast", [True, False])
def test_losses_of_the_parts_of_a_batch_sum_up_to_that_of_the_whole(fast, normalizer):
    """Each part is told the weights of all: sum w over the batch, the normalizer "batch" included   (M.5)"""
    case, p = parameters(13)
    config, w = CONFIG._replace(fast=fast, normalizer=normalizer), np.random.default_rng(2).uniform(0, 2, case.tokens.shape)
    whole = loss_and_gradient(p, case.tokens, case.labels, w, config)
    one, two = (loss_and_gradient(p, *(a[part] for a in (case.tokens, case.labels, w)), config, np.sum(w)) for part in ([0], [1]))
    assert len(case.tokens) == 2
    assert_trees_close(tree_map(lambda a, b: a + b, one, two), whole)


def test_a_model_goes_on_from_a_state_and_from_caches():
    """Both at once, each where it belongs: a text read in two calls is the text read in one   (M.3)"""
    case, p = parameters(14)
    config = CONFIG._replace(fast=True, chunk=2, constant=10.0)
    whole, _ = model_fwd(p, case.tokens, case.labels, None, config)
    first, _ = model_fwd(p, case.tokens[:, :2], case.labels[:, :2], None, config)
    then, _ = model_fwd(p, case.tokens[:, 2:], case.labels[:, 2:], None, config, first.state, first.caches)
    assert_close(np.concatenate([first.nll, then.nll], axis=1), whole.nll)


@pytest.mark.parametrize("fast", [True, False])
def test_without_any_weight_there_is_no_loss_and_no_gradient(fast):
    """All weights 0: 0 and not 0 / 0   (M.5)"""
    case, p = parameters(12)
    loss, gradient = loss_and_gradient(p, case.tokens, case.labels, np.zeros(case.tokens.shape), CONFIG._replace(fast=fast))
    assert loss == 0 and all(np.all(g == 0) for g in leaves(gradient))


# --- where training starts

host_made = pytest.mark.host("initial parameters are made on the host")
WIDE = Config(width=96, layers=3, heads=2, vocabulary=257)  # matrices with enough entries to measure their deviation


def deviation_is(matrix, expected):
    """The deviation of n normal numbers is off by a share of 1 / sqrt(2n); four times that is one
    case in 16,000.
    """
    assert abs(np.std(matrix) / expected - 1) < 4 / np.sqrt(2 * matrix.size)
    assert abs(np.mean(matrix)) < 4 * expected / np.sqrt(matrix.size)


@host_made
def test_parameters_start_as_the_docstring_says():
    """Normal with deviation 0.02, what goes into the residual stream of L layers with 0.02 /
    sqrt(2L), gains 1, biases 0, F = 4D   (M.3)
    """
    p = initialize(WIDE, seed=1)
    d, v, f = 96, 257, 4 * 96
    shapes = {
        "W_qkv": (d, 3 * d),
        "W_o": (d, d),
        "W_in": (d, f),
        "W_out": (f, d),
        "W1": (d, f),
        "W2": (f, d),
        "U": (d, v),
        "embedding": (v, d),
    }
    assert len(p.trunk) == 3
    for path, leaf in named_leaves(p._replace(eta=None, decay=None)):
        name = path.rsplit(".", 1)[-1]
        if name in shapes:
            assert leaf.shape == shapes[name], path
            deviation_is(leaf, 0.02 / np.sqrt(6) if name in ("W_o", "W_out") else 0.02)
        else:
            assert leaf.ndim == 1 and np.all(leaf == (1 if name.startswith("gain") else 0)), path
    matrices = [leaf for leaf in leaves(p) if leaf.ndim == 2]
    assert len({leaf.tobytes() for leaf in matrices}) == len(matrices) == 3 * 4 + 4  # no two are the same draw


@host_made
def test_step_sizes_start_at_a_hundredth_and_at_zero_in_a_plain_model():
    """eta = 0.01, the number (not the step) of both published programs, lambda = 0.005, both as told; a plain model has the
    same parameters and neither   (M.3)
    """
    for config, eta, decay in ((CONFIG, 0.01, 0.005), (CONFIG._replace(fast=False), 0, 0)):
        p = initialize(config)
        assert [float(e) for e in p.eta] == pytest.approx([eta] * 6) and float(p.decay) == pytest.approx(decay)
    told = initialize(CONFIG, step_size=0.3, decay=0.2)
    assert [float(e) for e in told.eta] == pytest.approx([0.3] * 6) and float(told.decay) == pytest.approx(0.2)


@host_made
def test_a_seed_is_one_set_of_parameters():
    """The same bits for the same seed, 0 unless told otherwise; in float64 the numbers that float32
    rounds.
    """
    first, again, other, fine = (
        initialize(CONFIG),
        initialize(CONFIG, seed=0),
        initialize(CONFIG, seed=1),
        initialize(CONFIG, dtype="float64"),
    )
    for a, b, c, d in zip(*(map(leaves, (first, again, other, fine))), strict=True):
        assert_bitwise(a, b)
        assert a.ndim < 2 or not np.any(a == c)
        assert a.dtype == np.float32 and d.dtype == np.float64
        assert_bitwise(d.astype(np.float32), a)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(("dialect", "eps"), [("tf", 0.0), ("jax", 1e-6)])
def test_a_dialect_has_its_epsilon(dialect, eps, fast):
    """The first token's logits are those of the slow block, with the LayerNorm of the published
    program   (M.3), (B.1)
    """
    case, _ = parameters(7)
    config, p = CONFIG._replace(dialect=dialect, fast=fast), case.parameters
    output, _ = model_fwd(p, case.tokens, case.labels, None, config)
    (x, _), _ = features_fwd(p, case.tokens, config)
    b = p.block
    for row, logits in zip(x[:, 0], output.logits[:, 0], strict=True):
        z = np.maximum(row @ b.W1 + b.b1, 0) ** 2 @ b.W2 + b.b2
        assert_close(logits, norm(z, b.gain, b.bias, eps) @ b.U + b.c)
        assert np.max(np.abs(logits - norm(z, b.gain, b.bias, 1e-6 - eps) @ b.U - b.c)) > 1e-8


def test_a_dialect_has_its_step_sizes():
    """tf: six; jax: none for the dense biases, and the gain's for the bias too."""
    eta = FastParameters(*(np.asarray(float(i + 1)) for i in range(6)))
    assert effective_step_sizes(eta, "tf") == eta
    assert [float(e) for e in effective_step_sizes(eta, "jax")] == [1, 0, 3, 0, 5, 5]


def test_nothing_but_training_keeps_probabilities_of_attention() -> None:
    """Not even of a single key: a layer, the features and the model by default   (T.1), (M.1), (M.3)"""
    p, text = initialize(CONFIG), np.zeros((1, 1), "int64")
    _, layer = layer_fwd(p.embedding[None, :1, :], p.trunk[0], CONFIG.heads)
    _, (_, stack, _) = features_fwd(p, text, CONFIG)
    _, model = model_fwd(p, text, text, None, CONFIG)
    for residual in (layer, *stack, *model.stack):
        assert residual.attention.kept == (None,)
