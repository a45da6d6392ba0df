"""Fast weights put on a model start as exactly that model: small models of both families.

A docstring with "N:" has a negative control: something that must not hold.
"""

from __future__ import annotations

import numpy as np
import pytest

from fwl_ref.fast_matrix import FastMatrix, fast_matrix_fwd
from fwl_ref.fwl import fast_block_fwd
from fwl_ref.key_map import whitening
from fwl_ref.lm import gpt2, llama
from fwl_ref.ops.cross_entropy import cross_entropy_fwd
from fwl_ref.pretrained.load import Pretrained
from fwl_ref.pretrained.on_top import block_on_top, final_norm, matrix_on_top
from fwl_ref.slow_block import FastParameters
from tests.lm.golden_families import GPT2S, LLAMAS, golden
from tests.tolerances import assert_bitwise, assert_close, relative_error

pytestmark = pytest.mark.host("models are loaded as host arrays")
every_model = pytest.mark.parametrize("name", [*LLAMAS, *GPT2S])


def parts(name: str) -> tuple:
    """A model, its features before the final normalisation, and the batch."""
    case = golden(name)
    model = Pretrained("", llama if name in LLAMAS else gpt2, case.config, case.p, None)
    x, _ = model.family.features_below_norm(case.p, case.tokens, case.config)
    return model, x, case


@every_model
def test_features_below_the_norm_are_the_features_without_it(name: str) -> None:
    """features = norm(features_below_norm)   (M.6), (M.11)"""
    model, x, case = parts(name)
    norm = final_norm(model)
    assert norm.norm == ("rms" if name in LLAMAS else "layer")
    found, _ = model.family.features(case.p, case.tokens, case.config)
    centred = x - np.mean(x, axis=-1, keepdims=True) if name in GPT2S else x
    size = np.sqrt(np.mean(centred**2, axis=-1, keepdims=True) + case.config.eps)
    assert_close(found, centred / size * norm.gain + norm.bias)


@every_model
def test_the_fast_matrix_starts_as_the_model(name: str) -> None:
    """Plain losses are those of the model's logits; with step sizes of 0 the fast ones are the same
    bits. N: with others they are not.   (X.11)
    """
    model, x, case = parts(name)
    slow, settings = matrix_on_top(model, whitening([x], 3))
    (logits, _), _ = model.family.model_fwd(case.p, case.tokens, case.config)
    weights = np.ones(case.labels.shape)

    def losses(step: float) -> tuple:
        eta = FastMatrix(np.asarray(step), np.asarray(step))
        return fast_matrix_fwd(x, case.labels, weights, slow, eta, np.asarray(0.0), settings)[0]

    fast, plain, _ = losses(0.0)
    assert_close(plain, cross_entropy_fwd(logits, case.labels)[0])
    assert_bitwise(fast, plain)
    assert relative_error(losses(0.5)[0], plain) > 1e-6
    assert slow.U.base is not None and np.shares_memory(slow.U, case.p.table)


@every_model
def test_the_block_starts_as_the_model(name: str) -> None:
    """Plain logits are the model's, and so is the first fast one; hidden units vary by about 1. N: later fast
    logits are others.   (X.13)
    """
    model, x, case = parts(name)
    slow, settings = block_on_top(model, whitening([x], 3), hidden=500, seed=0)
    eta = FastParameters(*(np.asarray(0.1) for _ in range(6)))
    (fast, plain, _), _ = fast_block_fwd(x, case.labels, np.ones(case.labels.shape), slow, eta, np.asarray(0.0), settings)
    (logits, _), _ = model.family.model_fwd(case.p, case.tokens, case.config)
    assert_close(plain, logits)
    assert_bitwise(fast[:, 0], plain[:, 0])
    assert relative_error(fast[:, 1:], plain[:, 1:]) > 1e-6
    assert 0.7 < np.std(x @ slow.W1 + slow.b1) < 1.3


def test_keys_of_other_features_are_refused() -> None:
    """Before anything is made."""
    model, x, _ = parts(GPT2S[0])
    with pytest.raises(ValueError, match="for features of width"):
        matrix_on_top(model, whitening([x[..., 1:]]))
    with pytest.raises(ValueError, match="at least 1 hidden unit"):
        block_on_top(model, whitening([x]), 0, 0)
