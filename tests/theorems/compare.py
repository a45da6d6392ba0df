"""The comparisons that the theorems make, in one place, so that ``test_19_teeth`` can show that each
of them rejects wrong programs.

A case and the ways to run it are those of the package's self-test, ``fwl_ref/verify/cases.py`` and
``runs.py``. Two sides share no code with the fast weight block: ``sequential`` and ``stale`` call
dynamic evaluation, and ``literal`` forms the parameters of every token with the slow block's
first-order backward pass.

A docstring that opens with "N:" is a negative control: it shows that something wrong is refused, or
that a theorem needs its condition. "E:" is the counterpart: something that a comparison must accept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st

from fwl_ref.slow_block import FastParameters, slow_block_bwd, slow_block_fwd
from fwl_ref.stream import Stream, stream_predict, stream_reveal, stream_start
from fwl_ref.tree import leaves, tree_map
from fwl_ref.verify.cases import BlockCase, tokens, with_settings
from fwl_ref.verify.runs import Run, State, normalizers, plain, run, stale
from tests.strategies import chunks, splits
from tests.tolerances import RTOL, assert_bitwise, relative_error

CLEAR = 1e4 * RTOL  # what a negative control must exceed: orders of magnitude clear of the tolerance
EVERY_NORMALIZER = ("constant", "sequence", "batch")


def run_stream(case: BlockCase, state: State | None = None) -> Run:
    """``run``, one token at a time."""
    stream = stream_start(case.x.shape[0], case.slow, case.settings) if state is None else Stream(state, None)
    rows = [plain(tokens(case, slice(0, 0)))]
    for t in range(case.x.shape[1]):
        logits, stream = stream_predict(stream, case.x[:, t], case.slow, case.eta, case.settings)
        stream = stream_reveal(stream, case.labels[:, t], case.weights[:, t], case.slow, case.decay, case.settings)
        rows.append(logits[:, None, :])
    return Run(np.concatenate(rows, axis=1), stream.state)


def run_in_pieces(case: BlockCase, state: State | None, data: st.DataObject) -> Run:
    """``run`` on pieces cut anywhere, each in chunks of any size or as a stream, with the state
    carried from one to the next.
    """
    cuts, rows = data.draw(splits(case.x.shape[1]), label="cuts"), []
    for low, high in zip(cuts[:-1], cuts[1:], strict=True):
        part = tokens(case, slice(low, high))
        if data.draw(st.booleans(), label="stream"):
            logits, state = run_stream(part, state)
        else:
            logits, state = run(with_settings(part, chunk=data.draw(chunks(high - low), label="chunk")), state)
        rows.append(logits)
    return Run(np.concatenate(rows, axis=1), state)


def only(case: BlockCase, *names: str) -> BlockCase:
    """The named parameters fast, the others slow."""
    return case._replace(eta=FastParameters(*(e if n in names else 0 * e for n, e in zip(FastParameters._fields, case.eta, strict=True))))


def shares(case: BlockCase) -> np.ndarray:
    """(B,T)   w / N, what the loss of each token counts."""
    return case.weights / np.reshape(normalizers(case), (-1, 1))


# The parameters of every token, formed
# --------------------------------------------------------------------------------------------


def token_gradient(case: BlockCase, b: int, part: slice, fast: FastParameters | None = None) -> FastParameters:
    """Gradient of sum_{s in part} w_s CE_s / N of sequence b with respect to the fast parameters,
    at ``fast`` (None = the slow weights).
    """
    p = case.slow if fast is None else case.slow._replace(**fast._asdict())
    _, res = slow_block_fwd(case.x[b, part], case.labels[b, part], p, *case.settings.plain)
    _, gradient = slow_block_bwd(shares(case)[b, part], res)
    return FastParameters(*gradient[:6])


def literal(case: BlockCase) -> Run:
    """Logits and accumulated gradients by forming p_t = p - eta_p G_t for every token, with G_{t+1}
    = keep G_t + grad l_t / N.
    """
    batch, length = case.labels.shape
    logits, states = np.zeros((batch, length, case.slow.U.shape[1])), []
    for b in range(batch):
        total = FastParameters(*(np.zeros_like(p) for p in case.slow[:6]))
        for t in range(length):
            part = slice(t, t + 1)
            moved = tree_map(lambda p, e, g: p - e * g, FastParameters(*case.slow[:6]), case.eta, total)
            (_, row), _ = slow_block_fwd(case.x[b, part], case.labels[b, part], case.slow._replace(**moved._asdict()), *case.settings.plain)
            logits[b, t] = row[0]
            total = tree_map(lambda g, new: (1 - case.decay) * g + new, total, token_gradient(case, b, part))
        states.append(total)
    return Run(logits, FastParameters(*(np.stack(column) for column in zip(*states, strict=True))))


def segment_masked(case: BlockCase, length: int) -> np.ndarray:
    """(B,T,V)   the fast weight block where token t reads the writes of earlier *segments* only:
    M_ts = 1[s // L < t // L].

    Each segment is read with nothing written, through the state of the segments before; then it is
    written.
    """
    rows, state = [plain(tokens(case, slice(0, 0)))], None
    still = case._replace(decay=0 * case.decay)
    for start in range(0, case.labels.shape[1], length):
        part = tokens(still, slice(start, start + length))
        logits, _ = run(part._replace(weights=0 * part.weights), state)
        _, new = run(part)
        state = new if state is None else tree_map(lambda old, g: (1 - case.decay) * old + g, state, new)
        rows.append(logits)
    return np.concatenate(rows, axis=1)


# Theorem 1
# -------------------------------------------------------------------------------------------------------------------


class EquivalenceError(NamedTuple):
    """Relative errors of the block against the literal side."""

    logits: float  # against dynamic evaluation
    parameters: float  # final parameters against dynamic evaluation
    literal_logits: float  # against the loop that forms the parameters
    state: float  # accumulated gradients against that loop


def equivalence_error(case: BlockCase) -> EquivalenceError:
    """How far the block is from dynamic evaluation at the slow weights."""
    logits, state = run(case)
    oracle_logits, oracle_parameters = stale(case)
    literal_logits, literal_state = literal(case)
    parameters = [p - e * g for p, e, g in zip(case.slow, case.eta, state, strict=False)]
    scale = float(np.max(np.sum(shares(case), axis=1), initial=0.0))  # of what a state sums: dlogits = w / N (softmax - onehot)
    return EquivalenceError(
        relative_error(logits, oracle_logits),
        max(relative_error(p, q) for p, q in zip(parameters, oracle_parameters, strict=True)),
        relative_error(logits, literal_logits),
        max(relative_error(g, q, scale) for g, q in zip(state, literal_state, strict=True)),
    )


def assert_equivalent(case: BlockCase) -> None:
    error = equivalence_error(case)
    assert max(error) <= RTOL, f"the block is not dynamic evaluation at the slow weights: {error}, allowed {RTOL}"


# Theorem 10
# ------------------------------------------------------------------------------------------------------------------


def perturb_future(arrays: tuple, t: int, vocabulary: int, seed: int, scale: float = 1e3) -> tuple:
    """(inputs, labels, weights) with inputs after t, and labels and weights from t on, replaced by
    something unrelated and large.

    Inputs are features (B,T,D), or tokens (B,T) which have no size.
    """
    inputs, labels, weights = (np.array(a) for a in arrays)
    rng = np.random.default_rng(seed)
    if inputs.dtype.kind in "iu":
        inputs[:, t + 1 :] = rng.integers(0, vocabulary, inputs[:, t + 1 :].shape)
    else:
        inputs[:, t + 1 :] = scale * rng.standard_normal(inputs[:, t + 1 :].shape)
    labels[:, t:] = rng.integers(0, vocabulary, labels[:, t:].shape)
    weights[:, t:] = scale * rng.uniform(0, 1, weights[:, t:].shape)
    return inputs, labels, weights


def assert_future_is_invisible(f: Callable, arrays: tuple, t: int, vocabulary: int, seed: int) -> None:
    """Outputs 0..t of ``f(inputs, labels, weights)`` are the same bits whatever the future is."""
    assert_bitwise(f(*perturb_future(arrays, t, vocabulary, seed))[:, : t + 1], f(*arrays)[:, : t + 1], f"outputs up to token {t}")


def block_logits(case: BlockCase) -> Callable:
    """``f(x, labels, weights)``, the block of ``case`` as assert_future_is_invisible wants it."""
    return lambda x, labels, weights: run(case._replace(x=x, labels=labels, weights=weights)).logits


def largest_difference(a: tuple, b: tuple) -> dict[str, float]:
    """Relative difference of each leaf of two NamedTuples of arrays."""
    return {name: relative_error(x, y) for name, x, y in zip(a._fields, leaves(a), leaves(b), strict=True)}
