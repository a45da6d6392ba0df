"""What is audited: a function from tokens to scores, or a stream made into one; asked with care."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..backend import Array, host, to_numpy

Evaluator = Callable[[Array], Any]


def streamed(start: Callable[[], Any]) -> Evaluator:
    """An evaluator from ``start() -> stream`` with ``predict() -> (V,)`` logits and
    ``reveal(token)``.

    Every document gets a stream of its own. Token i is revealed, then token i + 1 is predicted.
    """

    def evaluator(tokens: Array) -> Array:
        stream, rows = start(), []
        for token in tokens[:-1]:
            stream.reveal(int(token))
            rows.append(on_host(stream.predict()))
        return host.stack(rows)

    return evaluator


def reader(evaluator: Any, vocabulary: int) -> tuple[Evaluator, list[int]]:
    """A function that asks the evaluator for host scores and refuses bad ones; a list that holds
    the number of calls so far.

    Raises
    ------
    TypeError
        ``evaluator`` cannot be called, or is one stream where a way to start streams is needed.
    """
    if hasattr(evaluator, "predict") and hasattr(evaluator, "reveal"):
        if not isinstance(evaluator, type):
            raise TypeError(
                "the evaluator must be able to read many documents, got one stream: give the class "
                "of the stream, or streamed(lambda: ...) with a function that starts a new one"
            )
        evaluator = streamed(evaluator)
    if not callable(evaluator):
        raise TypeError(
            "the evaluator must be a function from tokens (n,) to losses (n-1,) or logits (n-1,V), "
            f"got {type(evaluator).__name__}"
        )
    calls = [0]

    def ask(tokens: Array) -> Array:
        calls[0] += 1
        scores = on_host(evaluator(tokens.copy()))
        check_scores(scores, len(tokens), vocabulary)
        return scores

    return ask, calls


def on_host(scores: Any) -> Array:
    """Scores as a host array of floating point: a list, or an array of any library."""
    scores = scores.detach() if hasattr(scores, "detach") else scores  # PyTorch keeps its graph
    try:
        known = hasattr(scores, "__dlpack__") or hasattr(scores, "__array_namespace__")
        found = to_numpy(scores) if known else host.asarray(scores)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise TypeError(
            "scores must be an array that the host can read, got "
            f"{type(scores).__name__} ({error}): return float32 or float64 in host memory"
        ) from error
    if found.dtype.kind != "f":
        raise TypeError(f"scores must be floating point numbers, got dtype {found.dtype}")
    return host.array(found)


def check_scores(scores: Array, n: int, vocabulary: int) -> None:
    """One finite row for every token but the first.

    Raises ValueError if not, or if a loss is below 0.
    """
    if scores.shape not in ((n - 1,), (n - 1, vocabulary)):
        raise ValueError(
            f"for {n} tokens the scores must have shape (n-1,) = ({n - 1},), losses, or (n-1,V) = "
            f"({n - 1}, {vocabulary}), logits, got {scores.shape}: row i scores token i + 1, the "
            "first token is given"
        )
    if not host.isfinite(scores).all():
        row = int(host.argwhere(~host.isfinite(scores))[0][0])
        raise ValueError(f"scores must be finite, row {row} is not: what is not a number leaks")
    if scores.ndim == 1 and scores.min() < -64 * precision(scores):
        raise ValueError(
            f"losses must be at least 0, row {int(scores.argmin())} is {scores.min()}: "
            "a loss is minus the logarithm of a probability"
        )


def precision(scores: Array) -> float:
    """The rounding unit of the numbers, however they are stored: float32 losses in a list of
    Python's floats are still float32.
    """
    for dtype in ("float16", "float32"):
        with host.errstate(over="ignore", under="ignore"):
            same = (scores == scores.astype(dtype)).all()
        if same:
            return float(host.finfo(dtype).eps)
    return float(host.finfo("float64").eps)


def document_losses(scores: Array, tokens: Array) -> Array:
    """(n-1,)   the loss of every token but the first, from losses or logits."""
    if scores.ndim == 1:
        return scores
    wide = scores.astype("float64")
    top = wide.max(axis=1, keepdims=True)
    lse = top[:, 0] + host.log(host.exp(wide - top).sum(axis=1))
    return lse - host.take_along_axis(wide, tokens[1:, None], axis=1)[:, 0]
