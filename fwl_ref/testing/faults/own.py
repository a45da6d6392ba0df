"""What only one rule can get wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from ...backend import Array, host
from ...ops.common import chunk_slices
from ..options import Options
from ..subjects import SUBJECTS, Arrays, Settings, Subject, state_out, tokens_of
from .common import Fault, NotHere, changed, length_of, with_answer


def of_rule(subject: Subject, options: Options) -> Iterator[Fault]:
    """Faults that one rule alone can have."""
    name = subject.name
    if subject.tokens.get("q") == subject.tokens.get("k", ""):  # one key per query
        yield Fault(
            "q and k swapped",
            "q and k are swapped",
            lambda s, a, o: s.answers(a | {"q": a["k"], "k": a["q"]}, o),
        )
        if subject.tokens["k"] != subject.tokens["v"] or name == "attention":
            yield Fault(
                "k and v swapped",
                "k and v are swapped, or it reads q S with S transposed: o = (q v^T) k",
                _swapped_kv,
            )
    rows = [n for n in ("k", "v", "a", "b") if n in subject.tokens]
    if len(rows) > 1:
        yield from (
            Fault(
                f"{n} one late",
                f"off by one: token t takes the {n} of token t - 1",
                changed(n, _late),
            )
            for n in rows
        )
        yield from (
            Fault(
                f"{n} one early",
                f"off by one: token t takes the {n} of token t + 1",
                changed(n, _early),
            )
            for n in rows
        )
    if name in ("decay", "gla"):
        gate = subject.gate
        each = (lambda a: a[gate][..., None]) if name == "decay" else (lambda a: a[gate])
        yield Fault(
            "fades its own write",
            "off by one: it fades the new write too, S = gate (S + k^T v): the fade comes "
            "first, then the write",
            lambda s, a, o: s.answers(a | {"k": a["k"] * each(a)}, o),
        )
    if name == "linear_attention":
        yield Fault(
            "fades its own write",
            "off by one: it fades the new write too, S = keep (S + k^T v)",
            lambda s, a, o: s.answers(a | {"k": a["k"] * a["keep"]}, o),
        )
        yield Fault(
            "fades before it reads",
            "off by one: it fades the state before a token reads it",
            lambda s, a, o: s.answers(a | {"q": a["q"] * a["keep"]}, o),
        )
    if name in ("gla", "kda", "dplr"):
        yield Fault(
            "one gate for all channels",
            "every key channel fades by the gate of the first: alpha is taken for one number a "
            "token",
            changed("alpha", lambda g: 0 * g + g[..., :1]),
        )
    if subject.gate and subject.tokens.get(subject.gate) and list(subject.state) == ["state"]:
        yield Fault(
            "writes not faded",
            "what a chunk writes is not faded to the chunk's end: the state that it hands on is "
            "too large",
            _writes_not_faded,
        )
    if name in ("delta", "gated_delta", "kda"):
        yield Fault(
            "no erasing",
            "it only adds: beta k^T v is written without taking out what k recalls",
            _only_adds,
        )
    if name in ("gated_delta", "kda"):
        yield Fault(
            "error at the unfaded memory",
            "the error v - k S is taken at the memory before the fade: fade first, then take "
            "the step",
            _unfaded,
        )
        yield Fault(
            "fades its own write",
            "off by one: it takes the step first and fades after it: the fade comes first",
            _fade_last,
        )
    if name == "dplr":
        yield Fault(
            "a and b swapped",
            "a and b are swapped: it recalls with b and writes with a",
            lambda s, a, o: s.answers(a | {"a": a["b"], "b": a["a"]}, o),
        )
        yield Fault(
            "recalls the faded memory",
            "a reads the memory after the fade: it reads S, not Diag(alpha) S",
            lambda s, a, o: s.answers(a | {"a": a["a"] * a["alpha"]}, o),
        )
        yield Fault(
            "no recall",
            "the second pair is missing: b^T (a S) is never written",
            changed("b", lambda b: 0 * b),
        )
        yield Fault(
            "sign of b",
            "sign: what is recalled is written with the other sign, -b^T (a S)",
            changed("b", lambda b: -b),
        )
    if name == "gated_delta_product":
        yield Fault(
            "gate at every step",
            "the gate is applied at each of the N steps of a token: once, before the first",
            partial(_gated_steps, at=range),
        )
        yield Fault(
            "fades its own write",
            "off by one: it takes the steps first and fades after them: the fade comes first",
            partial(_gated_steps, at=lambda steps: (steps,)),
        )
    if name in ("delta_product", "gated_delta_product"):
        yield Fault(
            "steps reversed",
            "the N steps of a token are taken in reverse",
            lambda s, a, o: s.answers(_steps(a, slice(None, None, -1)), o),
        )
        yield Fault(
            "first step only",
            "only the first of the N steps of a token is taken",
            lambda s, a, o: s.answers(a | {"beta": _keep_step(a["beta"], 0)}, o),
        )
        yield Fault(
            "last step only",
            "only the last of the N steps of a token is taken",
            lambda s, a, o: s.answers(a | {"beta": _keep_step(a["beta"], -1)}, o),
        )
    if name == "longhorn":
        yield Fault(
            "explicit step",
            "the step is explicit, the delta rule's: its rate beta lacks 1 / (1 + beta |k|^2)",
            _explicit,
        )
    if name in ("titans", "titans_per_chunk"):
        yield Fault(
            "stale gradients",
            "the gradients of a chunk are taken at its first memory: give stale=True if that "
            "is meant",
            lambda s, a, o: s.answers(a, o | {"stale": not o["stale"]}),
        )
    if name == "titans_per_chunk":
        yield Fault(
            "rates at every token",
            "momentum and decay act at every token, and every token adds the update to the "
            "memory: once per chunk",
            _at_every_token,
        )
    if name == "short_conv":
        yield Fault(
            "taps reversed",
            "the kernel is turned round: the last row of w belongs to the present token, the "
            "first to the one furthest back",
            changed("w", lambda w: w[::-1, :]),
        )
        yield Fault(
            "state reversed",
            "it takes the state that comes in for the newest token first: the oldest is first",
            changed("state", lambda S: S[:, ::-1, :]),
        )
        yield Fault(
            "x one late",
            "off by one: it does not see the present token",
            _convolves_late,
        )
        yield Fault(
            "silu",
            "it applies SiLU to what it returns: the convolution alone is meant",
            lambda s, a, o: with_answer(s.answers(a, o), "out", lambda y: y / (1 + host.exp(-y))),
        )
    if name == "l2norm":
        yield Fault(
            "epsilon outside the root",
            "the epsilon is added to the length: it stands under the root",
            lambda s, a, o: _divided(a, _length(a) + o["eps"]),
        )
        yield Fault(
            "maximum with the epsilon",
            "it divides by the larger of length and epsilon: the epsilon is added under the root",
            lambda s, a, o: _divided(a, host.maximum(_length(a), o["eps"])),
        )
        yield Fault(
            "mean of squares",
            "scale: it divides by the root of the mean of squares, as RMSNorm does: by their sum",
            lambda s, a, o: _divided(a, host.sqrt(_length(a) ** 2 / a["x"].shape[-1] + o["eps"])),
        )
        yield Fault(
            "length held still",
            "its backward pass takes the length for a constant: what the gradient has along the "
            "output is taken out",
            lambda s, a, o: (
                s.answers(a, o) | {"g_x": a["cot_out"] / host.sqrt(_length(a) ** 2 + o["eps"])}
            ),
        )
    if name.endswith("under_way"):
        yield Fault(
            "no factor", "the reader's factor is missing", changed("factor", lambda f: 0 * f + 1)
        )
        yield Fault(
            "factor of the writer",
            "the factor multiplies a token's own step: it is the reader's, and multiplies all that "
            "the mini-batch has written",
            lambda s, a, o: s.answers(
                a | {"step": a["step"] * a["factor"], "factor": 0 * a["factor"] + 1}, o
            ),
        )
        yield Fault(
            "begins a mini-batch",
            "it begins a mini-batch at the first token: the one under way goes on, with the "
            "gradients at the network it began with",
            lambda s, a, o: s.answers(a, o | {"place": 0}),
        )
    if subject.needs_state:
        yield Fault(
            "fresh gradients",
            "every token takes its gradient at the current state: within a mini-batch all "
            "take it at the first",
            lambda s, a, o: s.answers(a, o | {"minibatch": 1}),
        )
        yield Fault(
            "stale throughout",
            "all tokens take their gradients at the state that came in: the mini-batch never ends",
            lambda s, a, o: s.answers(a, o | {"minibatch": length_of(s, a) + o["place"]}),
        )
        yield Fault(
            "no gain", "the gain of the LayerNorm is missing", changed("gain", lambda g: 0 * g + 1)
        )
        yield Fault(
            "no bias", "the bias of the LayerNorm is missing", changed("bias", lambda g: 0 * g)
        )
    if name == "mesa":
        yield Fault(
            "ridge twice",
            "scale: it answers as if the ridge were twice as large",
            changed("ridge", lambda g: 2 * g),
        )
        yield Fault(
            "ridge half",
            "scale: it answers as if the ridge were half as large",
            changed("ridge", lambda g: g / 2),
        )
        yield Fault(
            "no ridge", "the ridge is (all but) missing", changed("ridge", lambda g: 1e-9 * g)
        )
        yield Fault("ridge 1", "it takes 1 for the ridge", changed("ridge", lambda g: 0 * g + 1))
        yield Fault("H read as G", "k and v are swapped", _swapped_kv)
    if name == "masked_attention":
        yield Fault(
            "mask transposed",
            "the mask is transposed, or scores are: token t reads what comes after it",
            _mask_transposed,
        )
        yield Fault(
            "mask as yes or no",
            "it takes the mask for yes or no: its weights are missing",
            changed("mask", lambda m: (m != 0) * 1.0),
        )
    if name == "sequential_block":
        yield Fault(
            "stale gradients",
            "all gradients are taken at the slow weights: each segment's at the weights that the "
            "segments before it left",
            _stale_segments,
        )
        yield Fault(
            "own segment",
            "the other reading of a token's own segment: give within=True if a token reads what "
            "its segment has written, False if all of a segment is read with the same weights",
            lambda s, a, o: s.answers(a, o | {"within": not o["within"]}),
        )
    if name in ("fast_block", "sequential_block"):
        yield Fault(
            "first order",
            "the gradient stops at the memory's values: sweep 5, the gradient of the "
            "gradient, is missing; "
            "give first_order=True if that is meant",
            lambda s, a, o: s.answers(a, o | {"first_order": not o["first_order"]}),
        )
        yield Fault(
            "labels one late",
            "off by one: token t takes the label of token t - 1",
            changed("labels", _late),
        )
        yield Fault(
            "labels one early",
            "off by one: token t takes the label of token t + 1",
            changed("labels", _early),
        )
        yield Fault(
            "no step sizes",
            "it answers with the slow weights: nothing is read from the memory",
            lambda s, a, o: s.answers(a | {n: 0 * a[n] for n in a if n.startswith("eta_")}, o),
        )
        yield Fault(
            "ascends",
            "sign: the step goes up the slow loss, not down",
            lambda s, a, o: s.answers(a | {n: -a[n] for n in a if n.startswith("eta_")}, o),
        )
        for step in ("W1", "b1", "W2", "b2", "gain", "bias"):
            yield Fault(
                f"no eta_{step}",
                f"{step} stays slow: its step is missing",
                changed(f"eta_{step}", lambda g: 0 * g),
            )


def _stale_segments(subject: Subject, a: Arrays, settings: Settings) -> Arrays:
    """Segments read at their start, what each writes taken at the slow weights"""
    if settings["within"]:
        raise NotHere
    fast = ("W1", "b1", "W2", "b2", "gain", "bias")
    still = {f"eta_{n}": 0 * a[f"eta_{n}"] for n in fast} | {"decay": 0 * a["decay"]}
    empty = {f"state_{n}": 0 * a[f"state_{n}"] for n in fast}
    block, logits = SUBJECTS["fast_block"], []
    held = {n: a[n] for n in empty}
    for part in chunk_slices(length_of(subject, a), settings["minibatch"]):
        piece = tokens_of(subject, a, part)
        rows = []
        for b in range(len(a["x"])):
            moved = {n: a[n] - a[f"eta_{n}"] * held[f"state_{n}"][b] for n in fast}
            own = {n: piece[n][b : b + 1] for n in piece if n not in subject.shared}
            alone = piece | own | still | moved | {n: x[b : b + 1] for n, x in empty.items()}
            rows.append(block.answers(alone, settings)["logits_slow"])
        logits.append(host.concat(rows, axis=0))
        written = block.answers(piece | still | empty, settings)
        held = {n: (1 - a["decay"]) * x + written[state_out(n)] for n, x in held.items()}
    return {"logits": host.concat(logits, axis=1)} | {state_out(n): x for n, x in held.items()}


def _at_every_token(subject: Subject, a: Arrays, settings: Settings) -> Arrays:
    """Titans with the rates of a chunk's first token at all of them, the gradients stale"""
    size = settings["minibatch"]
    first = [t - t % size for t in range(length_of(subject, a))]
    spread = {n: a[n][:, first] for n in ("momentum", "decay")}
    case = {n: a[n] for n in a} | spread
    found = SUBJECTS["titans"].answers(case, settings | {"stale": True, "chunk": size})
    return {n: found[n] for n in ("out", "state_out_M", "state_out_U")}


def _late(a):
    return host.concat([0 * a[:, :1, ...], a[:, :-1, ...]], axis=1)


def _convolves_late(subject: Subject, a: Arrays, settings: Settings) -> Arrays:
    """Outputs of a convolution that begins a token further back; the state it leaves is right."""
    whole = host.concat([0 * a["state"][:, :1, :], a["state"], a["x"]], axis=1)  # (B,1+P+T,D)
    before = a["state"].shape[1]
    late = a | {"state": whole[:, :before, :], "x": whole[:, before:-1, :]}
    left = subject.answers(a, settings)["state_out"]
    return subject.answers(late, settings) | {"state_out": left}


def _length(a: Arrays) -> Array:
    """(B,T,1)"""
    return host.linalg.vector_norm(a["x"], axis=-1, keepdims=True)


def _divided(a: Arrays, by: Array) -> Arrays:
    """Forward only."""
    return {"out": a["x"] / by}


def _early(a):
    return host.concat([a[:, 1:, ...], 0 * a[:, :1, ...]], axis=1)


def _swapped_kv(subject: Subject, a: Arrays, settings: Settings) -> Arrays:
    if a["k"].shape != a["v"].shape:
        raise NotHere
    return subject.answers(a | {"k": a["v"], "v": a["k"]}, settings)


def _mask_transposed(subject: Subject, a: Arrays, settings: Settings) -> Arrays:
    scores = host.matmul(a["q"], host.matrix_transpose(a["k"])) * host.matrix_transpose(a["mask"])
    return {"out": host.matmul(scores, a["v"])}


def _only_adds(subject: Subject, a: Arrays, settings: Settings) -> Arrays:
    case = {n: a[n] for n in ("q", "k", "state", "cot_out", "cot_state_out")}
    case |= {"v": a["beta"][..., None] * a["v"]}
    case["alpha"] = host.zeros_like(a["k"]) + _columns(a.get("alpha", host.ones_like(a["beta"])))
    found = SUBJECTS["gla"].answers(case, settings)
    return {n: found[n] for n in ("out", "state_out")}


def _explicit(subject: Subject, a: Arrays, settings: Settings) -> Arrays:
    return SUBJECTS["delta"].answers(a, settings)


def _gated(a: Arrays, settings: Settings, step: Callable) -> Arrays:
    """o and S of a loop S_{t+1} = step(S, k, v, alpha, beta)"""
    S, out = a["state"], []
    for t in range(a["q"].shape[1]):
        before = S
        S = step(
            S,
            a["k"][:, t, :, None],
            a["v"][:, t, None, :],
            _columns(a["alpha"])[:, t, :, None],
            a["beta"][:, t, None, None],
        )
        seen = before if settings["read"] == "strict" else S
        out.append(host.sum(a["q"][:, t, :, None] * seen, axis=1))
    return {"out": host.stack(out, axis=1), "state_out": S}


def _columns(alpha):
    """(B,T)->(B,T,1), (B,T,K) as it is   a gate per token as one per channel"""
    return alpha[..., None] if alpha.ndim == 2 else alpha


def _error(S, k, v):
    return k * (v - host.sum(k * S, axis=1, keepdims=True))


def _unfaded(subject: Subject, a: Arrays, settings: Settings) -> Arrays:
    return _gated(a, settings, lambda S, k, v, alpha, beta: alpha * S + beta * _error(S, k, v))


def _fade_last(subject: Subject, a: Arrays, settings: Settings) -> Arrays:
    return _gated(a, settings, lambda S, k, v, alpha, beta: alpha * (S + beta * _error(S, k, v)))


def _steps(a: Arrays, order: slice) -> Arrays:
    return a | {n: a[n][:, :, order, ...] for n in ("k", "v", "beta")}


def _gated_steps(subject: Subject, a: Arrays, settings: Settings, at: Callable) -> Arrays:
    """A loop that fades before the steps ``at(N)``; step N is after the last"""
    S, out, steps = a["state"], [], a["k"].shape[2]
    for t in range(a["q"].shape[1]):
        before, gate = S, a["alpha"][:, t, None, None]
        for n in range(steps):
            S = gate * S if n in at(steps) else S
            error = _error(S, a["k"][:, t, n, :, None], a["v"][:, t, n, None, :])
            S = S + a["beta"][:, t, n, None, None] * error
        S = gate * S if steps in at(steps) else S
        seen = before if settings["read"] == "strict" else S
        out.append(host.sum(a["q"][:, t, :, None] * seen, axis=1))
    return {"out": host.stack(out, axis=1), "state_out": S}


def _keep_step(beta, index: int):
    kept = host.zeros_like(beta)
    kept[:, :, index] = beta[:, :, index]
    return kept


def _writes_not_faded(subject: Subject, a: Arrays, settings: Settings) -> Arrays:
    """Forward only: S = (product of the chunk's gates) S + the sum of its writes as they were."""
    outs, state = [], a["state"]  # (B,K,E)
    for part in chunk_slices(length_of(subject, a), settings["chunk"]):
        piece = tokens_of(subject, a, part) | {"state": state}
        outs.append(subject.answers(piece, settings)["out"])  # (B,L,E)
        kept, written, now = state, 0 * state, state
        for t in range(length_of(subject, piece)):
            one = tokens_of(subject, piece, slice(t, t + 1)) | {"state": now}
            after = subject.answers(one, settings)["state_out"]
            gate = one[subject.gate]  # (B,1) or (B,1,K)
            gate = gate.reshape(len(gate), -1, 1)  # (B,1,1) or (B,K,1)
            written = written + (after - gate * now)
            kept, now = gate * kept, after
        state = kept + written
    return {"out": host.concat(outs, axis=1), "state_out": state}
