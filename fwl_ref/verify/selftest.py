"""Is this installation sound? Every theorem once, on this machine, in float64 and float32; then the
quick demo and, on a GPU, times.

    python -m fwl_ref check [--backend numpy|cupy] [--no-demo]

The test suite draws thousands of cases and needs its own packages. This needs nothing but the
package: one small fixed case per claim, the error found beside the error allowed, and one report,
``check-BACKEND.md`` and ``.json``, to send along with a question.

Allowed is what rounding can do, and nothing was tuned. float64: 1e-10, the tolerance of the suite.
float32: Higham's bound for 32 sums of 64 terms in succession, 32 (64 + 2) 2^-24 = 1.3e-4. Errors
are relative to the largest entry. Where a claim is bitwise, 0 is allowed; where a wrong program
must be noticed, the difference must be at least 100 times what rounding may do.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from .. import __version__
from ..backend import (
    Array,
    Tree,
    backend_target,
    backend_versions,
    host,
    like,
    namespace,
    peak_bytes,
    to_numpy,
    wait,
    waiting_refused,
)
from ..demo.report import finite
from ..dynamic_evaluation import Descent, dynamic_evaluation, evaluate_block
from ..fwl import FastSettings, fast_block_bwd, fast_block_fwd
from ..gradcheck import AdjointError, check_adjoint
from ..lm import footprint
from ..lm.data import Corpus, Document, training_batch
from ..lm.device import batch_like
from ..lm.model import Config, initialize, loss_and_gradient, model_fwd
from ..lm.train import Progress, TrainSettings, advance, begin
from ..ops.cross_entropy import cross_entropy_bwd, cross_entropy_fwd
from ..ops.dense import dense_bwd, dense_fwd
from ..ops.linear_attention import (
    linear_attention_bwd,
    linear_attention_chunked_bwd,
    linear_attention_chunked_fwd,
    linear_attention_fwd,
    linear_attention_recurrent_bwd,
    linear_attention_recurrent_fwd,
)
from ..slow_block import FastParameters, SlowParameters, slow_block_bwd, slow_block_fwd
from ..stream import stream_predict, stream_reveal, stream_start
from ..tree import leaves, tree_map

DTYPES = ("float64", "float32")
ALLOWED = {"float64": 1e-10, "float32": 32 * 66 * 2.0**-24}
B, T, D, F, V = 2, 9, 6, 24, 7  # small enough to be instant, large enough for several chunks


class Finding(NamedTuple):
    """One claim, checked once."""

    claim: str
    error: float  # what was found
    allowed: float
    must_exceed: bool = False  # a negative control: the error must be at least ``allowed``

    @property
    def ok(self) -> bool:
        """Whether the claim holds; not a number never does."""
        return self.error >= self.allowed if self.must_exceed else self.error <= self.allowed


class Case(NamedTuple):
    """Everything ``fast_block_fwd`` takes, in its order."""

    x: Array  # (B,T,D)
    labels: Array  # (B,T)
    weights: Array  # (B,T)
    slow: SlowParameters
    eta: FastParameters
    decay: Array  # ()
    settings: FastSettings


# One case and a few ways to run it
# -------------------------------------------------------------------------------------------


def make_case(
    target: Array, dtype: str, decay: float = 0.1, seed: int = 0, **settings: Any
) -> Case:
    """The same numbers on every device and, up to rounding, in both precisions."""
    rng = host.random.default_rng(seed)

    def normal(*shape: int, scale: float = 1.0) -> Array:
        return like(scale * rng.standard_normal(shape), target, dtype)

    slow = SlowParameters(
        normal(D, F, scale=D**-0.5), normal(F, scale=0.2), normal(F, D, scale=F**-0.5), normal(D),
        like(1 + 0.2 * rng.standard_normal(D), target, dtype), normal(D, scale=0.2), normal(D, V), normal(V, scale=0.2),
    )  # fmt: skip
    x, labels = normal(B, T, D), like(rng.integers(0, V, (B, T)), target)
    weights = like(rng.uniform(0.5, 2.0, (B, T)), target, dtype)
    eta = FastParameters(*(like(e, target, dtype) for e in rng.uniform(0.02, 0.1, 6)))
    return Case(
        x,
        labels,
        weights,
        slow,
        eta,
        like(decay, target, dtype),
        FastSettings(**({"chunk": 4} | settings)),
    )


def run(case: Case, state: FastParameters | None = None) -> tuple[Array, FastParameters]:
    """Logits (B,T,V) of the block, and the accumulated gradients it leaves."""
    (logits, _, state), _ = fast_block_fwd(*case, state)
    return logits, state


def plain(case: Case) -> Array:
    """(B,T,V)   logits of the slow block."""
    (_, logits), _ = slow_block_fwd(case.x, case.labels, case.slow, case.settings.eps)
    return logits


def literal(case: Case, stale: bool) -> Array:
    """(B,T,V)   logits of dynamic evaluation, token by token; with the gradients at the slow
    weights if ``stale``.
    """
    rule = {
        "segment": 1,
        "decay": _number(case.decay),
        "n": case.settings.constant,
        "eps": case.settings.eps,
    }
    return evaluate_block(*case[:5], stale=stale, **rule)[0]


def steps(case: Case, factor: float) -> Case:
    """Every step size times ``factor``."""
    return case._replace(eta=tree_map(lambda e: e * factor, case.eta))


def tokens(case: Case, index: list[int]) -> Case:
    """The sequences made of the tokens at ``index``, in that order."""
    xp, at = namespace(case.x), like(host.asarray(index, dtype="int64"), case.x)
    return case._replace(
        **{name: xp.take(getattr(case, name), at, axis=1) for name in ("x", "labels", "weights")}
    )


def gap(a: Tree, b: Tree) -> float:
    """Largest difference over largest magnitude, over all leaves; not a number where something is
    not finite.
    """
    worst = 0.0
    for x, y in zip(leaves(a), leaves(b), strict=True):
        x, y = to_numpy(x).astype("float64"), to_numpy(y).astype("float64")
        if x.shape != y.shape or not host.all(host.isfinite(x)):
            return float("nan")
        if x.size:
            worst = max(worst, float(host.max(host.abs(x - y)) / max(host.max(host.abs(y)), 1e-3)))
    return worst


def bits(a: Array, b: Array) -> float:
    """How many entries are not the same to the last bit."""
    a, b = host.ascontiguousarray(to_numpy(a)), host.ascontiguousarray(to_numpy(b))
    return float(host.sum(a.view(f"u{a.itemsize}") != b.view(f"u{b.itemsize}")))


# The theorems
# ----------------------------------------------------------------------------------------------------------------


def equivalence(target: Array, dtype: str) -> Iterator[Finding]:
    """1. The block is dynamic evaluation with every gradient taken at the slow weights."""
    for eps in (1e-6, 0.0):
        case = make_case(target, dtype, eps=eps)
        yield Finding(
            f"block = dynamic evaluation at the slow weights, eps {eps:g}",
            gap(run(case)[0], literal(case, True)),
            ALLOWED[dtype],
        )


def first_tokens(target: Array, dtype: str) -> Iterator[Finding]:
    """2. True SGD agrees on tokens 0 and 1, and on no later one."""
    case = steps(make_case(target, dtype), 3.0)
    ours, theirs = run(case)[0], literal(case, False)
    yield Finding(
        "tokens 0 and 1 = true SGD", gap(ours[:, :2, :], theirs[:, :2, :]), ALLOWED[dtype]
    )
    yield Finding("token 2 is not", gap(ours[:, 2, :], theirs[:, 2, :]), 100 * ALLOWED[dtype], True)


def second_order(target: Array, dtype: str) -> Iterator[Finding]:
    """3. The difference to true SGD shrinks with the square of the step sizes. Below float32's
    rounding, so in float64 only.
    """
    if dtype == "float32":
        return
    case = make_case(target, dtype)
    sizes = [
        float(host.max(host.abs(to_numpy(run(c)[0] - literal(c, False)))))
        for c in (steps(case, 2.0**-k) for k in (6, 7, 8))
    ]
    slopes = [float(host.log2(a / b)) for a, b in zip(sizes[:-1], sizes[1:], strict=True)]
    yield Finding("slope of the difference to true SGD is 2", max(abs(s - 2) for s in slopes), 0.1)


def linear_loss(target: Array, dtype: str) -> Iterator[Finding]:
    """4. For a loss linear in the parameters, stale and current gradients are the same, and so
    is linear attention.
    """
    q, k, v, keep, start = attention_case(target, dtype)
    xp, none = namespace(q), like(host.zeros(v.shape[2]), q, dtype)  # no bias

    def score(theta: tuple, t: int) -> tuple:
        y, _ = dense_fwd(q[0, t : t + 1, :], theta[0], none)
        _, res = dense_fwd(k[0, t : t + 1, :], theta[0], none)
        return y, (-dense_bwd(v[0, t : t + 1, :], res)[1],)  # l = -<v, k W>

    rows = [y for y, _ in dynamic_evaluation((start[0, ...],), range(T), score, Descent(1.0))]
    (out, _), _ = linear_attention_fwd(q, k, v, xp.ones_like(keep), start)
    yield Finding(
        "linear attention = SGD on a linear loss",
        gap(out[0, ...], xp.concat(rows, axis=0)),
        ALLOWED[dtype],
    )


def tangent_kernel(target: Array, dtype: str) -> Iterator[Finding]:
    """5. At step size 0 the slope of a loss in the step sizes is minus a causal row sum of
    products of gradients.
    """
    case = make_case(target, dtype, decay=0.0)
    still, t = steps(case, 0.0), T - 1
    (logits, _, _), res = fast_block_fwd(*still)
    _, loss = cross_entropy_fwd(logits, case.labels)
    hot = host.zeros((B, T))
    hot[0, t] = 1.0
    _, _, g_eta, _, _ = fast_block_bwd(cross_entropy_bwd(like(hot, target, dtype), loss), None, res)

    def gradient(s: int, weigh: bool) -> SlowParameters:
        part = slice(s, s + 1)
        (nll, _), residual = slow_block_fwd(
            case.x[0, part, :], case.labels[0, part], case.slow, case.settings.eps
        )
        share = case.weights[0, part] if weigh else namespace(nll).ones_like(nll)
        return slow_block_bwd(share, residual)[1]

    mine, xp = gradient(t, False), namespace(case.x)
    rows = [tree_map(lambda a, b: -xp.sum(a * b), mine, gradient(s, True)) for s in range(t)]
    expected = rows[0]
    for row in rows[1:]:
        expected = tree_map(lambda a, b: a + b, expected, row)
    yield Finding(
        "d loss / d step size = - sum of <g_t, g_s>",
        gap(tuple(g_eta), tuple(expected[:6])),
        ALLOWED[dtype],
    )


def attention_case(target: Array, dtype: str, keep: float = 0.9) -> tuple:
    """q, k, v, keep, state."""
    rng = host.random.default_rng(1)
    q, k, v, state = (
        rng.standard_normal(shape) for shape in ((B, T, D), (B, T, D), (B, T, V), (B, D, V))
    )
    return tuple(like(a, target, dtype) for a in (q, k, v, keep, state))


def forms(target: Array, dtype: str) -> Iterator[Finding]:
    """6. Linear attention is one function in three forms."""
    case = attention_case(target, dtype)
    expected, _ = linear_attention_recurrent_fwd(*case)
    yield Finding(
        "parallel = recurrent", gap(linear_attention_fwd(*case)[0], expected), ALLOWED[dtype]
    )
    worst = max(
        gap(linear_attention_chunked_fwd(*case, chunk)[0], expected)
        for chunk in (1, 2, 4, T, T + 3)
    )
    yield Finding("chunks of 1, 2, 4, T, T + 3 = recurrent", worst, ALLOWED[dtype])


def pieces(target: Array, dtype: str) -> Iterator[Finding]:
    """7. Pieces with the state carried are the whole."""
    case, xp = make_case(target, dtype), namespace(target)
    logits, state, cut = *run(case), 4
    first, middle = run(tokens(case, [*range(cut)]))
    second, end = run(tokens(case, [*range(cut, T)]), middle)
    yield Finding(
        "two pieces = the whole",
        gap((xp.concat([first, second], axis=1), end), (logits, state)),
        ALLOWED[dtype],
    )


def streaming(target: Array, dtype: str) -> Iterator[Finding]:
    """8. Predict, then reveal, token by token, is the full pass; the other way round is refused."""
    case, xp = make_case(target, dtype), namespace(target)
    stream, rows, refused = stream_start(B, case.slow), [], 0.0
    for t in range(T):
        label, weight = case.labels[:, t], case.weights[:, t]
        try:
            stream_reveal(stream, label, weight, case.slow, case.decay, case.settings)
        except ValueError:
            refused += 1
        logits, stream = stream_predict(stream, case.x[:, t, :], case.slow, case.eta, case.settings)
        stream = stream_reveal(stream, label, weight, case.slow, case.decay, case.settings)
        rows.append(logits)
    yield Finding(
        "stream = full pass", gap((xp.stack(rows, axis=1), stream.state), run(case)), ALLOWED[dtype]
    )
    yield Finding("reveal before predict is refused", T - refused, 0.0)


def nothing_fast(target: Array, dtype: str) -> Iterator[Finding]:
    """9. Step sizes of zero, or weights of zero, are the plain model."""
    case = make_case(target, dtype)
    yield Finding(
        "step sizes 0 = plain", gap(run(steps(case, 0.0))[0], plain(case)), ALLOWED[dtype]
    )
    worst = 0.0
    for normalizer in ("constant", "sequence", "batch"):
        unwritten = make_case(target, dtype, normalizer=normalizer)._replace(
            weights=0 * case.weights
        )
        worst = max(worst, gap(run(unwritten)[0], plain(case)))
    yield Finding("weights 0 = plain, whatever the normalizer", worst, ALLOWED[dtype])


def causality(target: Array, dtype: str) -> Iterator[Finding]:
    """10. The future moves no bit of the past."""
    case, t, xp = make_case(target, dtype), 4, namespace(target)
    loud = 1e3 * make_case(target, dtype, seed=5).x
    x = xp.concat([case.x[:, : t + 1, :], loud[:, t + 1 :, :]], axis=1)
    labels = xp.concat([case.labels[:, :t], (case.labels[:, t:] + 1) % V], axis=1)
    weights = xp.concat([case.weights[:, :t], 1e3 * case.weights[:, t:]], axis=1)
    moved = run(case._replace(x=x, labels=labels, weights=weights))[0]
    yield Finding(
        "entries of the past that a louder future moves",
        bits(moved[:, : t + 1, :], run(case)[0][:, : t + 1, :]),
        0.0,
    )


def leaks(target: Array, dtype: str) -> Iterator[Finding]:
    """11. What is not finite stays in the future; an inclusive mask, and cumsum(a) - a, would
    be noticed.
    """
    q, k, v, keep, state = attention_case(target, dtype, 1.0)
    xp, cut = namespace(q), 5
    with host.errstate(all="ignore"):
        bad = xp.concat([v[:, :cut, :], v[:, cut:, :] * float("nan")], axis=1)
        (spoilt, _), _ = linear_attention_chunked_fwd(q, k, bad, keep, state, 4)
    (out, _), _ = linear_attention_chunked_fwd(q, k, v, keep, state, 4)
    yield Finding(
        "entries that a NaN of later tokens reaches",
        bits(spoilt[:, : cut + 1, :], out[:, : cut + 1, :]),
        0.0,
    )
    inclusive = out + xp.sum(q * k, axis=-1, keepdims=True) * v
    yield Finding("an inclusive mask differs", gap(inclusive, out), 100 * ALLOWED[dtype], True)
    louder = xp.concat([v[:, :cut, :], v[:, cut:, :] * 1e6], axis=1)

    def subtracted(a: Array) -> Array:
        return xp.cumulative_sum(a, axis=1) - a

    moved = bits(subtracted(louder)[:, : cut + 1, :], subtracted(v)[:, : cut + 1, :])
    yield Finding("entries that cumsum(a) - a leaks into", moved, 1.0, True)


def normalizers(target: Array, dtype: str) -> Iterator[Finding]:
    """12. Under a normalizer that counts tokens, a prefix is the short text with rescaled step
    sizes.
    """
    case, t = make_case(target, dtype, normalizer="batch"), 5
    xp, prefix = namespace(target), tokens(case, [*range(t)])
    ratio = xp.sum(prefix.weights) / xp.sum(case.weights)  # ()
    short = run(prefix._replace(eta=tree_map(lambda e: e * ratio, case.eta)))[0]
    yield Finding(
        "prefix = short text at eta N_t / N_T", gap(short, run(case)[0][:, :t, :]), ALLOWED[dtype]
    )


def weights(target: Array, dtype: str) -> Iterator[Finding]:
    """13. Weight 0 is not written, weight 2 is written twice."""
    case, s = make_case(target, dtype, decay=0.0), 3
    mark = like(host.arange(T) == s, target)  # (T,)
    xp = namespace(target)
    absent = run(case._replace(weights=xp.where(mark, 0 * case.weights, case.weights)))
    others = [t for t in range(T) if t != s]
    without = run(tokens(case, others))
    at = like(host.asarray(others, dtype="int64"), target)
    yield Finding(
        "weight 0 = not there",
        gap((xp.take(absent[0], at, axis=1), absent[1]), without),
        ALLOWED[dtype],
    )
    _, double = run(case._replace(weights=xp.where(mark, 2 * case.weights, case.weights)))
    yield Finding(
        "weight 2 = twice",
        gap(run(tokens(case, [*range(s + 1), *range(s, T)]))[1], double),
        ALLOWED[dtype],
    )


def order(target: Array, dtype: str) -> Iterator[Finding]:
    """14. Without decay the order of the past does not matter; with it, it does."""
    shuffled = [3, 1, 0, 2, *range(4, T)]
    for decay, name, must in (
        (0.0, "order of the past does not matter", False),
        (0.3, "with decay it does", True),
    ):
        case = make_case(target, dtype, decay=decay)
        error = gap(run(tokens(case, shuffled))[0][:, 4:, :], run(case)[0][:, 4:, :])
        yield Finding(name, error, 100 * ALLOWED[dtype] if must else ALLOWED[dtype], must)


def symmetry(target: Array, dtype: str) -> Iterator[Finding]:
    """15. Rotating the features changes nothing; scaling them is a change of one step size."""
    case, xp = make_case(target, dtype), namespace(target)
    rotation = like(
        host.linalg.qr(host.random.default_rng(2).standard_normal((D, D)))[0], target, dtype
    )
    turned = case._replace(
        x=xp.matmul(case.x, rotation),
        slow=case.slow._replace(W1=xp.matmul(xp.matrix_transpose(rotation), case.slow.W1)),
    )
    yield Finding("x R and R^T W1", gap(run(turned)[0], run(case)[0]), ALLOWED[dtype])
    scaled = case._replace(x=2 * case.x, slow=case.slow._replace(W1=case.slow.W1 / 2))
    faster = case._replace(eta=case.eta._replace(W1=4 * case.eta.W1))
    yield Finding(
        "2 x and W1 / 2 = step size times 4", gap(run(scaled)[0], run(faster)[0]), ALLOWED[dtype]
    )


def adjoints(target: Array, dtype: str) -> Iterator[Finding]:
    """16. The backward pass of the block is the adjoint of its forward pass; in float32, the
    same as in float64.
    """
    case = make_case(target, dtype)
    if dtype == "float64":
        report = check_adjoint(
            *as_function(case), (case.x, case.slow, case.eta, case.decay), step=1e-5, rtol=1e-7
        )
        yield Finding(
            f"<u, J v> = <J^T u, v>, {report.checked} inputs, by differences", report.error, 1e-7
        )
    else:
        exact = make_case(target, "float64")
        yield Finding(
            "gradients = those in float64", gap(gradients(case), gradients(exact)), ALLOWED[dtype]
        )
    p = tree_map(
        lambda a: like(a, target, dtype),
        initialize(Config(width=8, layers=2, heads=2, vocabulary=V), 3, step_size=0.05),
    )
    config, at_home = Config(width=8, layers=2, heads=2, vocabulary=V, chunk=4), host.zeros(0)
    ours = loss_and_gradient(p, case.labels, case.labels, case.weights, config)[:2]
    exact = (
        tree_map(lambda a: like(to_numpy(a), at_home, "float64"), p),
        *(to_numpy(case.labels),) * 2,
        to_numpy(case.weights).astype("float64"),
    )
    theirs = loss_and_gradient(*exact, config)[:2]
    yield Finding(
        "gradient of the language model = NumPy's in float64", gap(ours, theirs), ALLOWED[dtype]
    )


def as_function(case: Case) -> tuple[Callable, Callable]:
    """The block as a function of everything differentiable, and its adjoint."""

    def fwd(x: Array, slow: SlowParameters, eta: FastParameters, decay: Array) -> tuple:
        (logits, _, out), res = fast_block_fwd(
            x, case.labels, case.weights, slow, eta, decay, case.settings
        )
        return (logits, out), res

    return fwd, lambda g, res: fast_block_bwd(*g, res)[:4]


def gradients(case: Case) -> tuple:
    """All gradients of the block for a fixed cotangent of its logits."""
    u = like(
        host.random.default_rng(7).standard_normal((B, case.x.shape[1], V)), case.x, case.x.dtype
    )
    return fast_block_bwd(u, None, fast_block_fwd(*case)[1])[:4]


def backward_forms(target: Array, dtype: str) -> Iterator[Finding]:
    """17. Chunked backward = parallel backward = backpropagation through time."""
    case = attention_case(target, dtype)
    (out, state), res = linear_attention_recurrent_fwd(*case)
    expected = linear_attention_recurrent_bwd(out, state, res)
    parallel = linear_attention_bwd(out, state, linear_attention_fwd(*case)[1])
    chunked = linear_attention_chunked_bwd(out, state, linear_attention_chunked_fwd(*case, 4)[1])
    yield Finding("parallel = through time", gap(parallel, expected), ALLOWED[dtype])
    yield Finding("chunked = through time", gap(chunked, expected), ALLOWED[dtype])


def first_order(target: Array, dtype: str) -> Iterator[Finding]:
    """18. The first-order switch changes the gradient, but not at step size 0."""
    full, first = (make_case(target, dtype, first_order=switch) for switch in (False, True))
    yield Finding(
        "first order is another gradient",
        gap(gradients(first)[:2], gradients(full)[:2]),
        100 * ALLOWED[dtype],
        True,
    )
    still = [gradients(steps(case, 0.0))[:2] for case in (first, full)]
    yield Finding("at step size 0 it is the same", gap(*still), ALLOWED[dtype])


def teeth(target: Array, dtype: str) -> Iterator[Finding]:
    """19. The comparisons above reject wrong programs."""
    case = make_case(target, dtype)
    oracle = literal(case, True)
    mutants = {
        "decay forgotten": case._replace(decay=0 * case.decay),
        "weights forgotten": case._replace(weights=0 * case.weights + 1),
        "two step sizes swapped": case._replace(
            eta=case.eta._replace(W1=case.eta.W2, W2=case.eta.W1)
        ),
        "normalizer forgotten": case._replace(settings=case.settings._replace(constant=2.0)),
    }
    for name, mutant in mutants.items():
        yield Finding(f"{name}: noticed", gap(run(mutant)[0], oracle), 100 * ALLOWED[dtype], True)
    if dtype == "float32":  # differences of float32 are too rough to judge a gradient
        return
    fwd, bwd = as_function(case)
    for name, i in (("x", 0), ("the slow parameters", 1), ("the step sizes", 2), ("the decay", 3)):

        def dropped(g: tuple, res: Any, i: int = i) -> tuple:
            return tuple(
                tree_map(lambda a: 0 * a, d) if k == i else d for k, d in enumerate(bwd(g, res))
            )

        try:
            check_adjoint(
                fwd, dropped, (case.x, case.slow, case.eta, case.decay), step=1e-5, rtol=1e-7
            )
        except AdjointError:
            yield Finding(f"gradient of {name} dropped: noticed", 1.0, 1.0, True)
        else:
            yield Finding(f"gradient of {name} dropped: noticed", 0.0, 1.0, True)


THEOREMS = (
    equivalence, first_tokens, second_order, linear_loss, tangent_kernel, forms, pieces, streaming, nothing_fast, causality, leaks,
    normalizers, weights, order, symmetry, adjoints, backward_forms, first_order, teeth,
)  # fmt: skip


def findings(target: Array) -> Iterator[tuple[int, str, Finding]]:
    """Number of the theorem, precision and finding, for all theorems. One that breaks down is a
    finding too, and the others go on.
    """
    for number, theorem in enumerate(THEOREMS, start=1):
        for dtype in DTYPES:
            try:
                for finding in theorem(target, dtype):
                    yield number, dtype, finding
            except Exception as error:  # whatever a library on somebody's machine may raise
                yield (
                    number,
                    dtype,
                    Finding(
                        f"{theorem.__name__}: {type(error).__name__}: {' '.join(str(error).split())}",
                        float("nan"),
                        0.0,
                    ),
                )


# Training on the device, its times and its memory
# -----------------------------------------------------------------------------


def toy_corpus() -> Corpus:
    """Text that is on every machine: one made-up document."""
    data = host.random.default_rng(0).integers(97, 123, 200_000).astype("uint8")
    return Corpus("toy", (Document("toy", data),), (), ())


def without_waiting(target: Array, backend: str) -> Iterator[Finding]:
    """Training steps between two logs make no device-to-host copy, hidden or not."""
    config, s = Config(width=16, layers=1, heads=2), TrainSettings(steps=9, batch=2, window=32)
    start, corpus = begin(config, s, backend), toy_corpus()
    params, adam, _ = advance(start.params, start.adam, corpus, config, s)
    stopped = 0.0
    with waiting_refused(target) as refused:
        try:
            for _ in range(3):
                params, adam, _ = advance(params, adam, corpus, config, s)
        except refused:
            stopped = 1.0
    yield Finding("training steps that wait for the device", stopped, 0.0)


class Timing(NamedTuple):
    """One size: seconds of NumPy and of the device, each the median of interleaved runs; bytes
    stated and taken by a training step.
    """

    width: int
    window: int
    batch: int
    numpy_forward: float
    forward: float
    numpy_step: float
    step: float
    stated: int
    taken: int


def timings(
    target: Array,
    backend: str,
    sizes: tuple = ((128, 256, 4), (256, 1024, 2), (512, 1024, 4)),
    rounds: int = 3,
) -> Iterator[Timing]:
    """Forward pass and training step of both libraries in turn, float32."""
    corpus = toy_corpus()
    for width, window, batch in sizes:
        config, s = (
            Config(width=width, layers=2, heads=width // 64),
            TrainSettings(steps=99, batch=batch, window=window),
        )
        here, there = begin(config, s), begin(config, s, backend)
        seconds: dict[str, list[float]] = {
            name: [] for name in ("numpy_forward", "forward", "numpy_step", "step")
        }
        peak_bytes(target, reset=True)
        for count in range(rounds + 1):
            for name, progress in (("numpy_", here), ("", there)):
                for what, job in (("forward", forward), ("step", step)):
                    start = time.perf_counter()
                    wait(job(progress, corpus, config, s))
                    if count:  # the first round compiles and warms up
                        seconds[name + what].append(time.perf_counter() - start)
        stated = footprint.training(config, batch, window).total
        yield Timing(
            width,
            window,
            batch,
            **{n: statistics.median(t) for n, t in seconds.items()},
            stated=stated,
            taken=peak_bytes(target),
        )


def forward(progress: Progress, corpus: Corpus, config: Config, s: TrainSettings) -> Array:
    """(B,T)   the forward pass of a training step: something to time."""
    batch = batch_like(
        training_batch(corpus.train, s.batch, s.window, s.seed, 0), progress.params.embedding
    )
    return model_fwd(progress.params, *batch, config)[0].nll


def step(progress: Progress, corpus: Corpus, config: Config, s: TrainSettings) -> Array:
    """(9+L,)   a training step, not recorded."""
    return advance(progress.params, progress.adam, corpus, config, s)[2]


# The report
# -------------------------------------------------------------------------------------------------------------------


def run_checks(backend: str, out: Path, demo: bool = True) -> int:
    """Everything on ``backend``; prints as it goes and writes ``out``/check-BACKEND.md and .json. 0
    if all holds, 1 if not.

    Raises BackendError if there is no such library or device.
    """
    target, clock = backend_target(backend), time.perf_counter()
    versions = (
        {"fwl_ref": __version__}
        | backend_versions(backend)
        | {"machine": f"{platform.platform()}, {os.cpu_count()} cores"}
    )
    print(
        f"fwl_ref check, backend {backend}: " + ", ".join(f"{k} {v}" for k, v in versions.items()),
        flush=True,
    )
    rows, bad = [], 0
    extra = without_waiting(target, backend) if backend != "numpy" else ()
    for number, dtype, finding in chain(
        findings(target), ((0, "float32", finding) for finding in extra)
    ):
        rows.append(
            {"theorem": number, "dtype": dtype, **finding._asdict(), "ok": bool(finding.ok)}
        )
        bad += not finding.ok
        print(_line(rows[-1]), flush=True)
    table, broken = [], []
    try:
        table += (
            [timing._asdict() for timing in timings(target, backend)] if backend != "numpy" else []
        )
        results = _demo(backend, out) if demo else None
        error = results["equivalence_max_error"] if results else 0.0
        if error is None or not error <= ALLOWED["float64"]:
            broken.append(
                f"demo: the block is not dynamic evaluation on the trained model: {_shown(error, '.1e')}"
            )
    except Exception as error:  # the report is written whatever happens, and says it
        results = None
        broken.append(f"{type(error).__name__}: {' '.join(str(error).split())}")
    print("".join(f"FAIL  {line}\n" for line in broken), end="", flush=True)
    bad += len(broken)
    found = finite(
        {
            "backend": backend,
            "versions": versions,
            "date": datetime.date.today().isoformat(),
            "seconds": round(time.perf_counter() - clock, 1),
            "failed": int(bad),
            "broken": broken,
            "findings": rows,
            "timings": table,
            "demo": results,
        }
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / f"check-{backend}.json").write_text(json.dumps(found, indent=1) + "\n")
    (out / f"check-{backend}.md").write_text(report(found))
    print(
        f"{len(rows) - sum(not r['ok'] for r in rows)} of {len(rows)} claims hold; {found['seconds']} s"
    )
    print(f"written: {out / f'check-{backend}.md'} (send this one along with a question) and .json")
    return 1 if bad else 0


def _demo(backend: str, out: Path) -> dict[str, Any]:
    """The quick demo's table, and its own check of the theorem on a trained model."""
    from ..demo.run import run_demo

    results = run_demo(out / f"check-{backend}-demo", quick=True, backend=backend)
    return {
        name: results[name]
        for name in ("bits_per_byte", "relative_time", "equivalence_max_error", "seconds")
    }


def _line(row: dict[str, Any]) -> str:
    sign = ">=" if row["must_exceed"] else "<="
    name = f"theorem {row['theorem']:2d}" if row["theorem"] else "transfers "
    verdict = "PASS" if row["ok"] else "FAIL"
    return f"{verdict}  {name}  {row['dtype']}  {_shown(row['error'], '8.1e')} {sign} {row['allowed']:7.1e}  {row['claim']}"


def report(found: dict[str, Any]) -> str:
    """The whole outcome as Markdown."""
    lines = [f"# fwl_ref check, backend {found['backend']}", ""]
    lines += [
        f"- {name}: {value}"
        for name, value in (
            found["versions"] | {"date": found["date"], "seconds": found["seconds"]}
        ).items()
    ]
    lines += [
        "",
        f"{found['failed']} failed.",
        "",
        "```",
        *map(_line, found["findings"]),
        *found["broken"],
        "```",
        "",
    ]
    if found["timings"]:
        lines += [
            "Seconds, median of interleaved runs, float32, two layers; memory of a training step as stated and as taken on the device.", "",
            "| width | window | batch | forward NumPy | device | ratio | step NumPy | device | ratio | stated | taken |",
            "|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
        ]  # fmt: skip
        for row in found["timings"]:
            t = Timing(**row)
            cells = (
                *(
                    t.width,
                    t.window,
                    t.batch,
                    f"{t.numpy_forward:.4f}",
                    f"{t.forward:.4f}",
                    f"{t.numpy_forward / t.forward:.1f}",
                ),
                *(f"{t.numpy_step:.4f}", f"{t.step:.4f}", f"{t.numpy_step / t.step:.1f}"),
                *(footprint.readable(t.stated), footprint.readable(t.taken)),
            )
            lines.append(f"| {' | '.join(map(str, cells))} |")
        lines.append("")
    if found["demo"]:
        bits_per_byte, times, error = (
            found["demo"][name]
            for name in ("bits_per_byte", "relative_time", "equivalence_max_error")
        )
        lines += [
            f"Quick demo, {found['demo']['seconds']} s; equivalence on the trained model {_shown(error, '.1e')}.",
            "",
        ]
        lines += [
            f"- {n}: {_shown(b, '.3f')} bits per byte, time {_shown(times[n], '.2f')}"
            for n, b in bits_per_byte.items()
        ] + [""]
    return "\n".join(lines)


def _shown(value: float | None, how: str) -> str:
    """A number, or the word for what JSON has no number for."""
    return "not a number" if value is None else format(value, how)


def _number(x: Array) -> float:
    return float(to_numpy(x))
