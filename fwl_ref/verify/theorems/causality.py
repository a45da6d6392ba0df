"""What a token may know: the past, and nothing else (theorems 10 to 12)."""

from __future__ import annotations

from collections.abc import Iterator

from ...backend import Array, host, namespace
from ...ops.linear_attention import linear_attention_chunked_fwd
from ..cases import V, small_attention_case, small_case, tokens, with_steps
from ..measure import Finding, bits, different, same
from ..runs import normalizers, run


def causality(target: Array, dtype: str) -> Iterator[Finding]:
    """10. The future moves no bit of the past."""
    case, t, xp = small_case(target, dtype), 4, namespace(target)
    loud = 1e3 * small_case(target, dtype, seed=5).x
    changed = case._replace(
        x=xp.concat([case.x[:, : t + 1, :], loud[:, t + 1 :, :]], axis=1),
        labels=xp.concat([case.labels[:, :t], (case.labels[:, t:] + 1) % V], axis=1),
        weights=xp.concat([case.weights[:, :t], 1e3 * case.weights[:, t:]], axis=1),
    )
    moved = bits(run(changed).logits[:, : t + 1, :], run(case).logits[:, : t + 1, :])
    yield Finding("entries of the past that a louder future moves", moved, 0.0)


def leaks(target: Array, dtype: str) -> Iterator[Finding]:
    """11. What is not finite stays in the future; an inclusive mask, and cumsum(a) - a, would
    be noticed.
    """
    q, k, v, keep, state = small_attention_case(target, dtype, keep=1.0)
    xp, cut = namespace(q), 5

    def later(factor: float) -> Array:
        """The values, those from the cut on times ``factor``."""
        return xp.concat([v[:, :cut, :], v[:, cut:, :] * factor], axis=1)

    with host.errstate(all="ignore"):
        (spoilt, _), _ = linear_attention_chunked_fwd(q, k, later(float("nan")), keep, state, 4)
    (out, _), _ = linear_attention_chunked_fwd(q, k, v, keep, state, 4)
    reached = bits(spoilt[:, : cut + 1, :], out[:, : cut + 1, :])
    yield Finding("entries that a NaN of later tokens reaches", reached, 0.0)

    inclusive = out + xp.sum(q * k, axis=-1, keepdims=True) * v
    yield different("an inclusive mask differs", inclusive, out, dtype)

    def subtracted(a: Array) -> Array:
        return xp.cumulative_sum(a, axis=1) - a

    moved = bits(subtracted(later(1e6))[:, : cut + 1, :], subtracted(v)[:, : cut + 1, :])
    yield Finding("entries that cumsum(a) - a leaks into", moved, 1.0, must_exceed=True)


def counting_normalizers(target: Array, dtype: str) -> Iterator[Finding]:
    """12. Under a normalizer that counts tokens, a prefix is the short text with rescaled step
    sizes.
    """
    case, t = small_case(target, dtype, normalizer="batch"), 5
    prefix = tokens(case, slice(0, t))
    short = run(with_steps(prefix, normalizers(prefix) / normalizers(case))).logits
    claim = "prefix = short text at eta N_t / N_T"
    yield same(claim, short, run(case).logits[:, :t, :], dtype)
