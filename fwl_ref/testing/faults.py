"""Classic faults of kernels, each as the answers that a kernel with it gives.

A diagnosis compares the kernel's answers with these. What matches to rounding in every failing case
is named; nothing is guessed from a likeness.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from ..backend import host
from .options import Options
from .subjects import SUBJECTS, Arrays, Settings, Subject, state_out, tokens_of, zeros
from .trial import Answer

MultiChange = Callable[[Subject, Arrays, Settings], Arrays | None]


class Fault(NamedTuple):
    """What a kernel may do wrong."""

    name: str  # a word or two, for tests and tables
    sentence: str
    answer: Answer | None = None  # None: the options alone differ
    options: Options | None = None


class NotHere(Exception):
    """The fault makes no sense in this case."""


def faults(subject: Subject, options: Options) -> Iterator[Fault]:
    """Every fault that a kernel of this subject may have, the most specific first."""
    yield from _reading(subject, options)
    yield from _state(subject, options)
    yield from _chunks(subject, options)
    yield from _gates(subject, options)
    yield from _scales(subject, options)
    yield from _rates(subject)
    yield from _own(subject, options)
    yield from _layouts(subject, options)
    yield from _backward(subject, options)


# --- where the state is read and where it goes


def _reading(subject: Subject, options: Options) -> Iterator[Fault]:
    if subject.read:
        if subject.name == "attention":
            for fill in ("itself", "nothing", "nan"):  # what the first token has left to see
                yield Fault(
                    "strict mask",
                    "a token does not see itself: the mask is exclusive",
                    partial(_strict_attention, fill=fill),
                )
            yield Fault("no mask", "a token sees its future: the mask is missing", _all_attention)
        elif subject.name == "linear_attention":
            yield Fault(
                "reads its own write",
                "a token reads its own write: the mask is inclusive where linear_attention is strict",
                _inclusive_linear,
            )
        return
    if options.read == "strict":
        yield Fault(
            "reads its own write",
            "a token reads its own write: it looks at the state after it, where a strict read looks at the one before",
            lambda s, a, o: s.answers(a, o | {"read": "inclusive"}),
        )
    else:
        yield Fault(
            "misses its own write",
            "a token does not see its own write: it reads the state before it (a strict read) where the inclusive one is "
            'asked for; if that is meant, give read="strict"',
            lambda s, a, o: s.answers(a, o | {"read": "strict"}),
        )


def _inclusive_linear(subject: Subject, a: Arrays, settings: Settings) -> Arrays:
    """o_t = q_t S_{t+1}: the decay rule's inclusive read at a constant rate"""
    gamma = host.broadcast_to(a["keep"], a["q"].shape[:2])
    case = {n: a[n] for n in ("q", "k", "v", "state", "cot_out", "cot_state_out")}
    found = SUBJECTS["decay"].answers(case | {"gamma": gamma}, settings | {"read": "inclusive"})
    found["g_keep"] = host.sum(found.pop("g_gamma"))
    return found


def _softmax(a: Arrays, mask) -> Arrays:
    scores = host.matmul(a["q"], host.matrix_transpose(a["k"])) * a["q"].shape[-1] ** -0.5
    scores = host.where(mask, scores, -host.inf)
    with host.errstate(all="ignore"):
        p = host.exp(scores - host.max(scores, axis=-1, keepdims=True))
        p = host.nan_to_num(p / host.sum(p, axis=-1, keepdims=True))
    return {"out": host.matmul(p, a["v"])}


def _strict_attention(subject: Subject, a: Arrays, settings: Settings, fill: str) -> Arrays:
    mask = host.tri(a["q"].shape[1], k=-1, dtype=bool)
    mask[0, 0] = fill == "itself"
    out = _softmax(a, mask)["out"]
    if fill == "nan":
        out[:, 0, :] = host.nan
    return {"out": out}


def _all_attention(subject: Subject, a: Arrays, settings: Settings) -> Arrays:
    n = a["q"].shape[1]
    return _softmax(a, host.ones((n, n), dtype=bool))


def _state(subject: Subject, options: Options) -> Iterator[Fault]:
    if not subject.state:
        return
    yield Fault(
        "ignores the state in",
        "it ignores the state that comes in",
        lambda s, a, o: s.answers(zeros(s, a), o),
    )
    yield Fault(
        "last token not in the state",
        "the state it returns is off by one: the last token's write is missing",
        lambda s, a, o: s.answers(a, o) | _states(s, a, o, a_length(s, a) - 1),
    )
    for name in subject.state:
        out = state_out(name)
        yield Fault(
            f"{out} zero",
            f"the {out} it returns is all zeros",
            lambda s, a, o, out=out: _with(s.answers(a, o), out, lambda x: 0 * x),
        )
        if len(subject.state) > 1:
            yield Fault(
                f"{out} not updated",
                f"the {out} it returns is the one that came in",
                lambda s, a, o, out=out, n=name: s.answers(a, o) | {out: a[n]},
            )
    if "BKE" in subject.state.values():
        yield Fault(
            "state in transposed",
            "it reads the state that comes in as its transpose",
            lambda s, a, o: s.answers(_transposed(s, a), o),
        )
        yield Fault(
            "state out transposed",
            "the state it returns is the transpose",
            lambda s, a, o: s.answers(a, o) | _states_transposed(s, a, o),
        )


def a_length(subject: Subject, arrays: Arrays) -> int:
    """T of a case"""
    return arrays[next(iter(subject.tokens))].shape[1]


def _states(subject: Subject, a: Arrays, settings: Settings, length: int) -> Arrays:
    """The states after that many tokens."""
    after = subject.answers(tokens_of(subject, a, slice(0, length)), settings) if length else a
    return {state_out(n): after[state_out(n)] if length else a[n] for n in subject.state}


def _with(answers: Arrays, name: str, change: Callable) -> Arrays:
    return answers | {name: change(answers[name])}


def _transposed(subject: Subject, a: Arrays) -> Arrays:
    names = [n for n, letters in subject.state.items() if letters == "BKE"]
    if a[names[0]].shape[-1] != a[names[0]].shape[-2]:
        raise NotHere
    return a | {n: host.matrix_transpose(a[n]) for n in names}


def _states_transposed(subject: Subject, a: Arrays, settings: Settings) -> Arrays:
    names = [n for n, letters in subject.state.items() if letters == "BKE"]
    if a[names[0]].shape[-1] != a[names[0]].shape[-2]:
        raise NotHere
    found = subject.answers(a, settings)
    return {state_out(n): host.matrix_transpose(found[state_out(n)]) for n in names}


# --- chunks


def _chunks(subject: Subject, options: Options) -> Iterator[Fault]:
    if not subject.tokens or subject.name in ("attention", "masked_attention"):
        yield Fault(
            "last chunk missing",
            "the last chunk, which is short, is left out: its outputs are zero",
            lambda s, a, o: _short(s, a, o, states=False),
        )
        return
    yield Fault(
        "last chunk missing",
        "the last chunk, which is short, is left out: its outputs are zero and the state stops before it",
        lambda s, a, o: _short(s, a, o, states=True),
    )
    yield Fault(
        "outputs of the last chunk missing",
        "the outputs of the last chunk, which is short, are zero",
        lambda s, a, o: _short(s, a, o, states=False),
    )
    yield Fault(
        "state of the last chunk missing",
        "the state it returns is the one before the last chunk: the last chunk's writes are missing",
        lambda s, a, o: (
            s.answers(a, o) | _states(s, a, o, (a_length(s, a) - 1) // o["chunk"] * o["chunk"])
        ),
    )
    yield Fault(
        "state of the short chunk missing",
        "the state it returns stops before the last chunk where that is short",
        lambda s, a, o: (
            s.answers(a, o) | _states(s, a, o, a_length(s, a) // o["chunk"] * o["chunk"])
        ),
    )
    yield Fault(
        "state not carried",
        "the state is not carried from chunk to chunk: every chunk after the first starts from an empty memory",
        lambda s, a, o: _restarted(s, a, o, empty=True),
    )
    yield Fault(
        "state restarts",
        "every chunk starts from the state that came in, not from the one the chunk before left",
        lambda s, a, o: _restarted(s, a, o, empty=False),
    )


def _parts(length: int, chunk: int) -> list[slice]:
    return [slice(i, min(i + chunk, length)) for i in range(0, length, chunk)]


def _short(subject: Subject, a: Arrays, settings: Settings, states: bool) -> Arrays:
    length, chunk = a_length(subject, a), settings["chunk"]
    full = length // chunk * chunk
    if full == length:
        return subject.answers(a, settings)
    found = subject.answers(a, settings)
    for name in subject.outputs:
        out = host.array(found[name])
        out[:, full:, ...] = 0
        found[name] = out
    return found | (_states(subject, a, settings, full) if states else {})


def _restarted(subject: Subject, a: Arrays, settings: Settings, empty: bool) -> Arrays:
    """Forward only: chunks that do not know of one another."""
    found: list[Arrays] = []
    for i, part in enumerate(_parts(a_length(subject, a), settings["chunk"])):
        piece = tokens_of(subject, a, part)
        found.append(subject.answers(zeros(subject, piece) if i and empty else piece, settings))
    joined = {n: host.concat([f[n] for f in found], axis=1) for n in subject.outputs}
    return joined | {state_out(n): found[-1][state_out(n)] for n in subject.state}


# --- gates and rates

FADES = {
    "gamma": "the fade",
    "alpha": "the fade",
    "keep": "the fade",
    "decay": "the weight decay",
    "momentum": "the momentum",
}


def _changed(name: str, change: Callable) -> Answer:
    """The answers to other numbers in one array."""

    def answer(subject: Subject, a: Arrays, settings: Settings) -> Arrays:
        with host.errstate(all="ignore"):
            moved = a | {name: change(a[name])}
            found = subject.answers(moved, settings)
        return {n: host.asarray(x) for n, x in found.items()}

    return answer


def _gates(subject: Subject, options: Options) -> Iterator[Fault]:
    fades = [n for n in subject.inputs if n in FADES]
    for name in fades:
        none = (lambda g: 0 * g) if name in ("decay", "momentum") else (lambda g: 0 * g + 1)
        yield Fault(
            f"no {name}",
            f"{FADES[name]} is missing: it answers as if {name} were {none(0):d}",
            _changed(name, none),
        )
        yield Fault(
            f"{name} inverted",
            f"it takes {name} for 1 - {name}: what is kept for what is forgotten",
            _changed(name, lambda g: 1 - g),
        )
        if name == subject.gate:
            word = (
                "is a logarithm and it forgets to take exp of it"
                if options.log_gates
                else "is the gate itself and it takes its logarithm"
            )
            yield Fault(
                f"log of {name}", f"gate as log or not: {name} {word}", _changed(name, host.log)
            )
            word = (
                "exp is taken twice"
                if options.log_gates
                else "is the gate itself and it takes exp of it, as of a logarithm"
            )
            yield Fault(
                f"exp of {name}", f"gate as log or not: {name} {word}", _changed(name, host.exp)
            )
        if subject.tokens.get(name):
            yield from _shifts(name)
            yield Fault(
                f"{name} of the chunk's first token",
                f"one {name} per chunk: every token fades by that of its chunk's first",
                _per_chunk(name),
            )


def _per_chunk(name: str) -> Answer:
    def answer(subject: Subject, a: Arrays, settings: Settings) -> Arrays:
        gate, chunk = host.array(a[name]), settings["chunk"]
        for part in _parts(gate.shape[1], chunk):
            gate[:, part, ...] = gate[:, part.start : part.start + 1, ...]
        return subject.answers(a | {name: gate}, settings)

    return answer


def _shifts(name: str) -> Iterator[Fault]:
    def before(fill: float) -> Callable:
        return lambda g: host.concat([0 * g[:, :1, ...] + fill, g[:, :-1, ...]], axis=1)

    def after(fill: float) -> Callable:
        return lambda g: host.concat([g[:, 1:, ...], 0 * g[:, :1, ...] + fill], axis=1)

    for fill in (1.0, 0.0):
        yield Fault(
            f"{name} one late",
            f"off by one: token t takes the {name} of token t - 1",
            _changed(name, before(fill)),
        )
        yield Fault(
            f"{name} one early",
            f"off by one: token t takes the {name} of token t + 1",
            _changed(name, after(fill)),
        )


def _rates(subject: Subject) -> Iterator[Fault]:
    for name in ("beta", "step", "weight", "weights"):
        if name not in subject.tokens:
            continue
        yield Fault(
            f"no {name}",
            f"{name} is missing: it answers as if it were 1",
            _changed(name, lambda g: 0 * g + 1),
        )
        yield Fault(
            f"{name} twice",
            f"scale: it answers as if {name} were twice as large, as of a loss without its 1/2",
            _changed(name, lambda g: 2 * g),
        )
        yield Fault(
            f"{name} half",
            f"scale: it answers as if {name} were half as large, as of a loss with a 1/2 too many",
            _changed(name, lambda g: g / 2),
        )
        yield Fault(f"{name} squared", f"{name} is applied twice", _changed(name, lambda g: g * g))
        yield Fault(
            f"{name} sigmoid",
            f"it takes the sigmoid of {name}, which is the rate itself",
            _changed(name, lambda g: 1 / (1 + host.exp(-g))),
        )
        yield from _shifts(name)


def _scales(subject: Subject, options: Options) -> Iterator[Fault]:
    if "q" not in subject.tokens:
        return
    for power, word in (
        (-0.5, "divides q by sqrt(K)"),
        (0.5, "multiplies q by sqrt(K)"),
        (-1.0, "divides q by K"),
        (1.0, "multiplies q by K"),
    ):
        more = (
            "once more than it should"
            if options.scale != 1.0 or subject.name == "attention"
            else "and should not"
        )
        if power > 0 and (options.scale == "rsqrt" or subject.name == "attention"):
            word, more = (
                ("does not divide q by sqrt(K)", "and should") if power == 0.5 else (word, more)
            )
        yield Fault(
            f"q K^{power}",
            f"scale: it {word} {more}",
            _changed("q", lambda q, p=power: q * q.shape[-1] ** p),
        )
    if options.scale not in (1.0, "rsqrt"):
        yield Fault(
            "no scale",
            f"scale: it leaves out the factor {options.scale} of q",
            _changed("q", lambda q: q / float(options.scale)),
        )
        yield Fault(
            "scale twice",
            f"scale: the factor {options.scale} of q is applied twice",
            _changed("q", lambda q: q * float(options.scale)),
        )
    k_power = lambda k: k * k.shape[-1] ** -0.5  # noqa: E731
    if subject.name != "attention":
        yield Fault("k K^-0.5", "scale: it divides k, not q, by sqrt(K)", _changed("k", k_power))


# --- what only one rule can get wrong


def _own(subject: Subject, options: Options) -> Iterator[Fault]:
    name = subject.name
    if {"q", "k"} <= subject.tokens.keys() and name != "delta_product":
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
    if {"k", "v"} <= subject.tokens.keys():
        yield from (
            Fault(
                f"{n} one late",
                f"off by one: token t takes the {n} of token t - 1",
                _changed(n, _late),
            )
            for n in "kv"
        )
        yield from (
            Fault(
                f"{n} one early",
                f"off by one: token t takes the {n} of token t + 1",
                _changed(n, _early),
            )
            for n in "kv"
        )
    if name in ("decay", "gla"):
        gate = subject.gate
        each = (lambda a: a[gate][..., None]) if name == "decay" else (lambda a: a[gate])
        yield Fault("fades its own write", "off by one: it fades the new write too, S = gate (S + k^T v): the fade comes first, then the write",
                    lambda s, a, o: s.answers(a | {"k": a["k"] * each(a)}, o))  # fmt: skip
    if name == "linear_attention":
        yield Fault("fades its own write", "off by one: it fades the new write too, S = keep (S + k^T v)",
                    lambda s, a, o: s.answers(a | {"k": a["k"] * a["keep"]}, o))  # fmt: skip
        yield Fault("fades before it reads", "off by one: it fades the state before a token reads it",
                    lambda s, a, o: s.answers(a | {"q": a["q"] * a["keep"]}, o))  # fmt: skip
    if name in ("delta", "gated_delta"):
        yield Fault(
            "no erasing",
            "it only adds: beta k^T v is written without taking out what k recalls",
            _only_adds,
        )
    if name == "gated_delta":
        yield Fault(
            "error at the unfaded memory",
            "the error v - k S is taken at the memory before the fade: fade first, then take the step",
            _unfaded,
        )
        yield Fault(
            "fades its own write",
            "off by one: it takes the step first and fades after it: the fade comes first",
            _fade_last,
        )
    if name == "delta_product":
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
    if name == "titans":
        yield Fault("stale gradients", "the gradients of a chunk are taken at its first memory: give stale=True if that is meant",
                    lambda s, a, o: s.answers(a, o | {"stale": not o["stale"]}))  # fmt: skip
    if name in ("ttt_linear", "ttt_mlp"):
        yield Fault("fresh gradients", "every token takes its gradient at the current state: within a mini-batch all take it at the first",
                    lambda s, a, o: s.answers(a, o | {"minibatch": 1}))  # fmt: skip
        yield Fault("stale throughout", "all tokens take their gradients at the state that came in: the mini-batch never ends",
                    lambda s, a, o: s.answers(a, o | {"minibatch": a_length(s, a)}))  # fmt: skip
        yield Fault(
            "no gain", "the gain of the LayerNorm is missing", _changed("gain", lambda g: 0 * g + 1)
        )
        yield Fault(
            "no bias", "the bias of the LayerNorm is missing", _changed("bias", lambda g: 0 * g)
        )
    if name == "mesa":
        yield Fault(
            "ridge twice",
            "scale: it answers as if the ridge were twice as large",
            _changed("ridge", lambda g: 2 * g),
        )
        yield Fault(
            "ridge half",
            "scale: it answers as if the ridge were half as large",
            _changed("ridge", lambda g: g / 2),
        )
        yield Fault(
            "no ridge", "the ridge is (all but) missing", _changed("ridge", lambda g: 1e-9 * g)
        )
        yield Fault("ridge 1", "it takes 1 for the ridge", _changed("ridge", lambda g: 0 * g + 1))
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
            _changed("mask", lambda m: (m != 0) * 1.0),
        )
    if name == "fast_block":
        yield Fault("first order", "the gradient stops at the memory's values: sweep 5, the gradient of the gradient, is missing; "
                    "give first_order=True if that is meant", lambda s, a, o: s.answers(a, o | {"first_order": not o["first_order"]}))  # fmt: skip
        yield Fault(
            "labels one late",
            "off by one: token t takes the label of token t - 1",
            _changed("labels", _late),
        )
        yield Fault(
            "labels one early",
            "off by one: token t takes the label of token t + 1",
            _changed("labels", _early),
        )
        yield Fault("no step sizes", "it answers with the slow weights: nothing is read from the memory",
                    lambda s, a, o: s.answers(a | {n: 0 * a[n] for n in a if n.startswith("eta_")}, o))  # fmt: skip
        yield Fault("ascends", "sign: the step goes up the slow loss, not down",
                    lambda s, a, o: s.answers(a | {n: -a[n] for n in a if n.startswith("eta_")}, o))  # fmt: skip
        for step in ("W1", "b1", "W2", "b2", "gain", "bias"):
            yield Fault(
                f"no eta_{step}",
                f"{step} stays slow: its step is missing",
                _changed(f"eta_{step}", lambda g: 0 * g),
            )


def _late(a):
    return host.concat([0 * a[:, :1, ...], a[:, :-1, ...]], axis=1)


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
    gamma = a.get("alpha", host.ones_like(a["beta"]))
    case = {n: a[n] for n in ("q", "k", "state", "cot_out", "cot_state_out")}
    case |= {"v": a["beta"][..., None] * a["v"], "gamma": gamma}
    found = SUBJECTS["decay"].answers(case, settings)
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
            a["alpha"][:, t, None, None],
            a["beta"][:, t, None, None],
        )
        seen = before if settings["read"] == "strict" else S
        out.append(host.sum(a["q"][:, t, :, None] * seen, axis=1))
    return {"out": host.stack(out, axis=1), "state_out": S}


def _error(S, k, v):
    return k * (v - host.sum(k * S, axis=1, keepdims=True))


def _unfaded(subject: Subject, a: Arrays, settings: Settings) -> Arrays:
    return _gated(a, settings, lambda S, k, v, alpha, beta: alpha * S + beta * _error(S, k, v))


def _fade_last(subject: Subject, a: Arrays, settings: Settings) -> Arrays:
    return _gated(a, settings, lambda S, k, v, alpha, beta: alpha * (S + beta * _error(S, k, v)))


def _steps(a: Arrays, order: slice) -> Arrays:
    return a | {n: a[n][:, :, order, ...] for n in ("k", "v", "beta")}


def _keep_step(beta, index: int):
    kept = host.zeros_like(beta)
    kept[:, :, index] = beta[:, :, index]
    return kept


# --- heads, logarithms, norms


def _layouts(subject: Subject, options: Options) -> Iterator[Fault]:
    if options.grouped_values > 1:
        other = "strided" if options.grouping == "neighbours" else "neighbours"
        yield Fault("heads grouped otherwise", f"the wrong value heads share a head of q and k: as with grouping={other!r}",
                    None, options._replace(grouping=other))  # fmt: skip
    if options.log_gates:
        yield Fault(f"gradient of {subject.gate}, not of its log", f"gate as log or not: g_{subject.gate} is the gradient of the gate, "
                    "not of its logarithm: times the gate is missing", lambda s, a, o: _without_log(s, a, o))  # fmt: skip
    elif subject.gate:
        yield Fault(f"gradient of log {subject.gate}", f"gate as log or not: g_{subject.gate} is the gradient of the gate's logarithm, "
                    "which came as itself", lambda s, a, o: _with(s.answers(a, o), f"g_{s.gate}", lambda g: g * a[s.gate]))  # fmt: skip
    if options.l2norm:
        yield Fault(
            "no l2 norm", "it does not normalise q and k", None, options._replace(l2norm=0.0)
        )
        yield Fault(
            "l2 epsilon",
            "it normalises by |k| alone: the epsilon under the root is missing",
            None,
            options._replace(l2norm=1e-30),
        )
    elif {"q", "k"} <= subject.tokens.keys() and subject.name not in ("attention", "delta_product"):
        yield Fault("l2 norm", "it normalises q and k, which come as they are to be used; give l2norm=EPSILON if that is meant",
                    None, options._replace(l2norm=1e-6))  # fmt: skip
        yield Fault(
            "l2 norm",
            "it normalises q, which comes as it is to be used",
            _changed("q", lambda q: q / host.linalg.vector_norm(q, axis=-1, keepdims=True)),
        )


def _without_log(subject: Subject, a: Arrays, settings: Settings) -> Arrays:
    return _with(subject.answers(a, settings), f"g_{subject.gate}", lambda g: g / a[subject.gate])


# --- the backward pass alone


def _backward(subject: Subject, options: Options) -> Iterator[Fault]:
    if subject.state:
        yield Fault("cotangent of the state ignored", "its backward pass ignores the gradient of the final state",
                    lambda s, a, o: s.answers(a | {f"cot_{state_out(n)}": 0 * a[f"cot_{state_out(n)}"] for n in s.state}, o))  # fmt: skip
        yield Fault(
            "gradient not carried",
            "its backward pass does not carry the gradient of the state back from chunk to chunk",
            _not_carried,
        )
    yield Fault("cotangent of the output ignored", "its backward pass ignores the gradient of the output",
                lambda s, a, o: s.answers(a | {f"cot_{n}": 0 * a[f"cot_{n}"] for n in s.outputs if f"cot_{n}" in a}, o))  # fmt: skip


def _not_carried(subject: Subject, a: Arrays, settings: Settings) -> Arrays:
    """Every chunk from its own state, and only the last knows of the final state's gradient."""
    parts = _parts(a_length(subject, a), settings["chunk"])
    state, found = {n: a[n] for n in subject.state}, []
    for part in parts:
        piece = tokens_of(subject, a, part) | state
        if part is not parts[-1]:
            piece |= {f"cot_{state_out(n)}": 0 * a[f"cot_{state_out(n)}"] for n in subject.state}
        found.append(subject.answers(piece, settings))
        state = {n: found[-1][state_out(n)] for n in subject.state}
    tokens = {
        f"g_{n}": host.concat([f[f"g_{n}"] for f in found], axis=1)
        for n in subject.tokens
        if f"g_{n}" in found[0]
    }
    shared = {f"g_{n}": sum(f[f"g_{n}"] for f in found) for n in subject.shared}
    outputs = {n: host.concat([f[n] for f in found], axis=1) for n in subject.outputs}
    states = {state_out(n): found[-1][state_out(n)] for n in subject.state}
    return (
        outputs | states | tokens | shared | {f"g_{n}": found[0][f"g_{n}"] for n in subject.state}
    )
