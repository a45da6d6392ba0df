"""One function, many ways to run it (theorems 6 to 9)."""

from __future__ import annotations

from collections.abc import Iterator

from ...backend import Array, namespace
from ...ops.linear_attention import (
    linear_attention_chunked_fwd,
    linear_attention_fwd,
    linear_attention_recurrent_fwd,
)
from ...stream import stream_predict, stream_reveal, stream_start
from ..cases import B, T, small_attention_case, small_case, tokens, with_settings, with_steps
from ..measure import Finding, same
from ..runs import plain, run


def forms(target: Array, dtype: str) -> Iterator[Finding]:
    """6. Linear attention is one function in three forms."""
    case = small_attention_case(target, dtype)
    expected, _ = linear_attention_recurrent_fwd(*case)
    parallel, _ = linear_attention_fwd(*case)
    yield same("parallel = recurrent", parallel, expected, dtype)
    chunked = [linear_attention_chunked_fwd(*case, chunk)[0] for chunk in (1, 2, 4, T, T + 3)]
    claim = "chunks of 1, 2, 4, T, T + 3 = recurrent"
    yield same(claim, tuple(chunked), (expected,) * len(chunked), dtype)


def pieces(target: Array, dtype: str) -> Iterator[Finding]:
    """7. Pieces with the state carried are the whole."""
    case, xp, cut = small_case(target, dtype), namespace(target), 4
    first = run(tokens(case, slice(0, cut)))
    second = run(tokens(case, slice(cut, T)), first.state)
    logits = xp.concat([first.logits, second.logits], axis=1)
    yield same("two pieces = the whole", (logits, second.state), tuple(run(case)), dtype)


def streaming(target: Array, dtype: str) -> Iterator[Finding]:
    """8. Predict, then reveal, token by token, is the full pass; the other way round is refused."""
    case, xp = small_case(target, dtype), namespace(target)
    stream, rows, refused = stream_start(B, case.slow), [], 0.0
    for t in range(T):
        revealed = (case.labels[:, t], case.weights[:, t], case.slow, case.decay, case.settings)
        try:
            stream_reveal(stream, *revealed)
        except ValueError:
            refused += 1
        logits, stream = stream_predict(stream, case.x[:, t, :], case.slow, case.eta, case.settings)
        stream = stream_reveal(stream, *revealed)
        rows.append(logits)
    found = (xp.stack(rows, axis=1), stream.state)
    yield same("stream = full pass", found, tuple(run(case)), dtype)
    yield Finding("reveal before predict is refused", T - refused, 0.0)


def nothing_fast(target: Array, dtype: str) -> Iterator[Finding]:
    """9. Step sizes of zero, or weights of zero, are the plain model."""
    case = small_case(target, dtype)
    expected = plain(case)
    yield same("step sizes 0 = plain", run(with_steps(case, 0.0)).logits, expected, dtype)
    unwritten = case._replace(weights=0 * case.weights)
    found = [
        run(with_settings(unwritten, normalizer=normalizer)).logits
        for normalizer in ("constant", "sequence", "batch")
    ]
    claim = "weights 0 = plain, whatever the normalizer"
    yield same(claim, tuple(found), (expected,) * len(found), dtype)
