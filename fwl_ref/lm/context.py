"""What the trunk keeps of a text that goes on: keys and values, so that one more byte costs one
byte's work and not a window's.

With a sliding attention window of w keys a byte never looks further back than w - 1 keys, so older
ones are let go. That is exact: the features are those of the whole text read at once, and memory
and work per byte stay the same however long the text is.

Without one, a byte looks back to where its context begins, and a model is trained on contexts of at
most ``window`` bytes. So a full context begins anew: with the last ``window // 2`` bytes, which are
read once more. A byte then sees itself and between ``window // 2`` and ``window - 1`` bytes before
it, at the positions of training, for about two bytes' work. Which bytes these are depends on the
text alone, not on the pieces in which it is read.
"""

from __future__ import annotations

from typing import NamedTuple

from ..backend import Array, host, like, namespace
from ..ops.rotary import rotary_fwd
from .model import Config, Parameters, features
from .transformer import KeyValues


class Context(NamedTuple):
    """What the next byte's attention may look at; empty before the first byte."""

    text: bytes = b""  # since the context began; not kept under a sliding attention window
    caches: tuple[KeyValues, ...] | None = None  # one per layer


def read_on(
    params: Parameters, config: Config, context: Context, text: bytes, window: int
) -> tuple[Array, Context]:
    """(1,n,D)   features of the n bytes of ``text``, and the context after them.

    ``window`` bytes are in memory at a time. Raises ValueError if there is no text, or if
    ``window`` is below 1.
    """
    if not text or window < 1:
        raise ValueError(
            f"reading on needs at least 1 byte and a window of at least 1, got {len(text)} bytes "
            f"and window {window}"
        )
    sliding = config.attention_window
    xs = []
    while text:
        again = b""
        if len(context.text) == window:
            again, context = context.text[window - window // 2 :], Context()
        piece = text[: window - len(context.text) - len(again)]
        text = text[len(piece) :]
        tokens = like(host.asarray([list(again + piece)], dtype="int64"), params.embedding)
        x, caches = features(params, tokens, config, context.caches)  # (1,a+n,D)
        xs.append(x[:, len(again) :, :])
        if sliding is None:
            context = Context(context.text + again + piece, caches)
        else:
            context = Context(b"", within_reach(caches, sliding))
    return namespace(*xs).concat(xs, axis=1), context


def within_reach(caches: tuple[KeyValues, ...], attention_window: int) -> tuple[KeyValues, ...]:
    """The caches without what is out of reach, once they hold twice what is within.

    The keys that stay are turned back by as many positions as were dropped, so positions never grow
    beyond what float32 can tell apart. Attention is the same, since q_t . k_s depends on t - s
    alone (P.1).
    """
    length = caches[0].k.shape[2]
    if length < 2 * attention_window:
        return caches
    drop = length - (attention_window - 1)

    def kept(cache: KeyValues) -> KeyValues:
        k, v = cache.k[:, :, drop:, :], cache.v[:, :, drop:, :]  # (1,H,w-1,K)
        turned, _ = rotary_fwd(k[:, :, :, None, :], -drop)  # (1,H,w-1,1,K) each by the same angle
        return KeyValues(turned[:, :, :, 0, :], v)

    return tuple(kept(cache) for cache in caches)
