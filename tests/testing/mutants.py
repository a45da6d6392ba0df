"""Kernels with one classic fault each, for every rule: what the kit must reject, and by which name.

Three sources, none of which is the kit's own list of faults: the naive loops with a ``bug``; a
driver that runs the package's chunked forms chunk by chunk and gets the bookkeeping between chunks
wrong; and wrappers that get an argument or a result wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from fwl_ref.tree import tree_map
from fwl_ref.verify.golden_rules import RULES
from tests.testing import naive

CHUNK = 4
MINIBATCH = 2
PLACE = 1  # of a mini-batch under way


class Mutant(NamedTuple):
    rule: str
    fault: str  # the name that the kit must give it
    kernel: Callable[..., Any]
    backward: Callable[..., Any] | None = None
    options: dict[str, Any] = {}

    def __str__(self) -> str:
        return f"{self.rule}-{self.fault}"


# Chunk by chunk
# ----------------------------------------------------------------------------------------


def pieces(length: int) -> list[slice]:
    return [slice(i, min(i + CHUNK, length)) for i in range(0, length, CHUNK)]


def functions(rule: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Forward and backward pass of the package for a whole sequence, chunked or dual."""
    name = RULES[rule].function or rule
    form = "dual" if hasattr(RULES[rule].module, f"{name}_dual_fwd") else "chunked"
    return called(rule, form), getattr(RULES[rule].module, f"{name}_{form}_bwd")


def called(rule: str, form: str, read: str = "inclusive") -> Callable[..., Any]:
    """A forward pass of the package as the kit calls a kernel: the rule's arrays, then the state."""
    row = RULES[rule]
    fwd = getattr(row.module, f"{row.function or rule}_{form}_fwd")
    words = {"read": read} | {n: x for n, x in (("minibatch", MINIBATCH), ("eps", 1e-6)) if n in (*row.counts, *row.numbers)}
    names = (*row.tokens, *row.shared)

    def kernel(*inputs: Any) -> Any:
        *given, state = inputs
        named = {n: a for n, a in zip(names, given, strict=True) if n in row.keywords}
        rest = [a for n, a in zip(names, given, strict=True) if n not in row.keywords]
        return fwd(*rest, state._replace(place=PLACE) if "place" in row.counts else state, **named, **words)

    return kernel


def split(rule: str, inputs: tuple) -> tuple[list, list, Any]:
    """Tokens, shared parameters, state."""
    n = len(RULES[rule].tokens)
    return list(inputs[:n]), list(inputs[n:-1]), inputs[-1]


def driver(rule: str, bug: str = "") -> Callable[..., Any]:
    """Consecutive chunks, the state handed on."""
    fwd, _ = functions(rule)

    def kernel(*inputs: Any) -> Any:
        tokens, shared, state = split(rule, inputs)
        first, outs, before, after = state, [], state, state
        parts = pieces(tokens[0].shape[1])
        for part in parts:
            before = state
            if bug == "state not carried" and outs:
                state = zero(after)
            if bug == "state restarts":
                state = first
            short = part.stop - part.start < CHUNK
            (out, after), _ = fwd(*(a[:, part] for a in tokens), *shared, state)
            outs.append(0 * out if short and bug in ("last chunk missing", "outputs of the last chunk missing") else out)
            if not (short and bug in ("last chunk missing", "state of the short chunk missing")):
                state = after
        if bug == "state of the last chunk missing":
            state = before
        if state is None:  # nothing was written
            state = zero(after)
        if bug == "last token not in the state":
            _, state = whole(rule, *(a[:, :-1] for a in tokens), *shared, first) if tokens[0].shape[1] > 1 else (0, first)
            state = zero(after) if state is None else state
        return np.concatenate(outs, axis=1), state

    return kernel


def zero(state: Any) -> Any:
    return tree_map(lambda a: 0 * a, state)


def whole(rule: str, *inputs: Any) -> Any:
    fwd, _ = functions(rule)
    return fwd(*inputs)[0]


def honest(rule: str) -> Callable[..., Any]:
    """The backward pass of the package."""
    fwd, bwd = functions(rule)

    def backward(cotangents: tuple, *inputs: Any) -> tuple:
        return bwd(*cotangents, fwd(*inputs)[1])

    return backward


def not_carried(rule: str) -> Callable[..., Any]:
    """A backward pass that forgets the gradient of the state between chunks."""
    fwd, bwd = functions(rule)

    def backward(cotangents: tuple, *inputs: Any) -> tuple:
        dout, dstate = cotangents
        tokens, shared, state = split(rule, inputs)
        found = []
        parts = pieces(tokens[0].shape[1])
        for part in parts:
            (_, state), res = fwd(*(a[:, part] for a in tokens), *shared, state)
            found.append(bwd(dout[:, part], dstate if part is parts[-1] else None, res))
        n, m = len(tokens), len(shared)
        g_tokens = [np.concatenate([f[i] for f in found], axis=1) for i in range(n)]
        return (*g_tokens, *(sum(f[n + i] for f in found) for i in range(m)), found[0][-1])

    return backward


# Arguments and results
# ----------------------------------------------------------------------------------------


def changed(rule: str, name: str, change: Callable[[Any], Any]) -> Callable[..., Any]:
    """A kernel that takes an argument for something else."""
    names = [*RULES[rule].tokens, *RULES[rule].shared]

    def kernel(*inputs: Any) -> Any:
        given = list(inputs)
        given[names.index(name)] = change(given[names.index(name)])
        return loops(rule)(*given)

    return kernel


def loops(rule: str) -> Callable[..., Any]:
    """The package's loops take any gate."""
    return lambda *inputs: called(rule, "recurrent")(*inputs)[0]


def after_backward(rule: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[..., Any]:
    """A backward pass with something wrong about one gradient."""
    names = [*RULES[rule].tokens, *RULES[rule].shared, "state"]

    def backward(cotangents: tuple, *inputs: Any) -> tuple:
        given = dict(zip(names, inputs, strict=True))
        found = dict(zip(names, honest(rule)(cotangents, *inputs), strict=True))
        return tuple((found | change(found | {f"in_{n}": a for n, a in given.items()})).values())

    return backward


def transposed_dk(rule: str) -> Callable[..., Any]:
    """dk of scores where their transpose belongs: the cotangents reach it in reversed time."""

    def backward(cotangents: tuple, *inputs: Any) -> tuple:
        found = list(honest(rule)(cotangents, *inputs))
        dout, dstate = cotangents
        found[1] = honest(rule)((dout[:, ::-1], dstate), *inputs)[1]
        return tuple(found)

    return backward


def transposed_product(cotangents: tuple, q: Any, k: Any, v: Any, state: Any) -> tuple:
    """Linear attention's backward pass with an einsum that has its letters swapped in dk."""
    found = list(honest("linear")(cotangents, q, k, v, state))
    dout, dstate = cotangents
    dscores = np.einsum("bte,bse->bts", dout, v) * np.tri(q.shape[1])
    found[1] = np.einsum("bts,bsk->btk", dscores, q) + np.einsum("bte,bke->btk", v, dstate)
    return tuple(found)


def no_state(cotangents: tuple, *inputs: Any, rule: str) -> tuple:
    return honest(rule)((cotangents[0], None), *inputs)


def strict(rule: str) -> Callable[..., Any]:
    return lambda *inputs: called(rule, "recurrent", "strict")(*inputs)[0]


# The table
# ----------------------------------------------------------------------------------------

GATE = {
    "decay": "gamma",
    "gla": "alpha",
    "gated_delta": "alpha",
    "kda": "alpha",
    "dplr": "alpha",
    "gated_delta_product": "alpha",
    "mesa": "keep",
}
BETWEEN = ("state not carried", "state restarts", "last chunk missing", "outputs of the last chunk missing",
           "state of the last chunk missing", "state of the short chunk missing", "last token not in the state")  # fmt: skip
LOOPS = [
    ("decay", "no gamma", "no fade"), ("decay", "fades its own write", ""), ("gla", "no alpha", "no fade"),
    ("gla", "fades its own write", ""), ("delta", "no erasing", ""), ("delta", "no beta", ""), ("gated_delta", "no alpha", "no fade"),
    ("gated_delta", "no erasing", ""),
    ("gated_delta", "error at the unfaded memory", ""), ("gated_delta", "fades its own write", ""), ("delta_product", "steps reversed", ""),
    ("kda", "no alpha", "no fade"), ("kda", "no erasing", ""), ("kda", "error at the unfaded memory", ""),
    ("kda", "fades its own write", ""), ("kda", "one gate for all channels", ""),
    ("dplr", "no alpha", "no fade"), ("dplr", "a and b swapped", ""), ("dplr", "recalls the faded memory", ""), ("dplr", "no recall", ""),
    ("gated_delta_product", "no alpha", "no fade"), ("gated_delta_product", "gate at every step", ""),
    ("gated_delta_product", "fades its own write", ""), ("gated_delta_product", "steps reversed", ""),
    ("gated_delta_product", "first step only", ""), ("gated_delta_product", "last step only", ""),
    ("dplr", "sign of b", ""), ("dplr", "one gate for all channels", ""),
    ("delta_product", "first step only", ""), ("delta_product", "last step only", ""), ("longhorn", "explicit step", ""),
    ("titans", "step twice", ""), ("titans", "no momentum", ""), ("titans", "no decay", ""), ("mesa", "no keep", "no fade"),
    ("mesa", "ridge 1", ""),
    ("ttt_linear", "fresh gradients", ""), ("ttt_linear", "stale throughout", ""), ("linear_attention", "fades its own write", ""),
    ("linear_attention", "reads its own write", ""), ("masked_attention", "mask transposed", ""), ("attention", "strict mask", ""),
    ("attention", "no mask", ""), ("attention", "q K^0.5", "no scale"),
    ("short_conv", "taps reversed", ""), ("short_conv", "state reversed", ""), ("short_conv", "silu", ""),
    ("short_conv", "x one late", "sees no present"),
    ("l2norm", "epsilon outside the root", ""), ("l2norm", "maximum with the epsilon", ""), ("l2norm", "mean of squares", ""),
]  # fmt: skip


def mutants() -> list[Mutant]:
    found = [
        Mutant(rule, fault, partial(naive.KERNELS[rule], bug=bug or fault, **({"minibatch": MINIBATCH} if rule == "ttt_linear" else {})))
        for rule, fault, bug in LOOPS
    ]
    for rule, arrays in RULES.items():
        found += [Mutant(rule, bug, driver(rule, bug)) for bug in BETWEEN]
        found.append(Mutant(rule, "misses its own write", strict(rule)))
        found.append(Mutant(rule, "reads its own write", loops(rule), options={"read": "strict"}))
        found.append(Mutant(rule, "ignores the state in", partial(forget, rule)))
        if "gain" not in arrays.shared:  # scores of any size: q enters once
            found.append(Mutant(rule, "q K^-0.5", changed(rule, "q", lambda q: q / q.shape[-1] ** 0.5)))
            found.append(Mutant(rule, "q K^0.5", loops(rule), options={"scale": "rsqrt"}))
        if rule in GATE:
            found.append(Mutant(rule, f"exp of {GATE[rule]}", changed(rule, GATE[rule], np.exp)))
            found.append(Mutant(rule, f"log of {GATE[rule]}", loops(rule), options={"log_gates": True}))
            found.append(Mutant(rule, f"{GATE[rule]} one late", changed(rule, GATE[rule], late)))
            found.append(Mutant(rule, f"gradient of log {GATE[rule]}", loops(rule), after_backward(rule, partial(times_gate, GATE[rule]))))
        for rate in ("beta", "step", "weight"):
            if rate in arrays.tokens:
                found.append(Mutant(rule, f"{rate} twice", changed(rule, rate, lambda a: 2 * a)))
                found.append(
                    Mutant(rule, f"{rate} one late", changed(rule, rate, lambda a: np.concatenate([0 * a[:, :1], a[:, :-1]], axis=1)))
                )
        found.append(Mutant(rule, "gradient not carried", driver(rule), not_carried(rule)))
        found.append(Mutant(rule, "cotangent of the state ignored", driver(rule), partial(no_state, rule=rule)))
        found.append(Mutant(rule, "g_k transposed", driver(rule), transposed_dk(rule)))
        found.append(Mutant(rule, "g_q times 0.5", driver(rule), after_backward(rule, lambda g: {"q": g["q"] / 2})))
        found.append(Mutant(rule, "g_v zero", driver(rule), after_backward(rule, lambda g: {"v": 0 * g["v"]})))
    for rule in ("ttt_linear_under_way", "ttt_mlp_under_way"):
        found.append(Mutant(rule, "no factor", changed(rule, "factor", lambda f: 0 * f + 1)))
        found.append(Mutant(rule, "factor of the writer", partial(writers_factor, rule)))
        found.append(Mutant(rule, "begins a mini-batch", partial(begins, rule)))
    for rule in ("decay", "gla", "gated_delta"):
        found.append(Mutant(rule, "writes not faded", partial(writes_not_faded, rule)))
    for rule in ("titans_per_chunk", "titans_mlp"):
        for rate in ("momentum", "decay"):
            found.append(Mutant(rule, f"no {rate}", changed(rule, rate, lambda a: 0 * a)))
    found.append(Mutant("titans_per_chunk", "rates at every token", at_every_token))
    found.append(Mutant("titans_per_chunk", "stale gradients", partial(stale, "titans_per_chunk")))
    found.append(Mutant("titans", "stale gradients", partial(stale, "titans")))
    found.append(Mutant("titans_mlp", "stale throughout", stale_throughout))
    found.append(Mutant("linear", "g_k transposed", driver("linear"), transposed_product))
    found.append(Mutant("gated_delta", "state out transposed", transposed_state, options={"sizes": {"K": 4, "E": 4}}))
    found.append(Mutant("l2norm", "length held still", naive.l2norm, length_held_still))
    found.append(Mutant("attention", "not finite", partial(naive.attention, bug="no max")))
    return found


def writes_not_faded(rule: str, q: Any, k: Any, v: Any, gate: Any, *rest: Any) -> Any:
    """Chunk by chunk, and the state of a chunk gets the sum of k^T u as if it were all written at the end."""
    *beta, state = rest
    S = np.zeros((len(k), k.shape[2], v.shape[2])) if state is None else state
    outs = []
    for part in pieces(q.shape[1]):
        k_, v_, g = k[:, part], v[:, part], gate[:, part]
        outs.append(whole(rule, q[:, part], k_, v_, g, *(b[:, part] for b in beta), S)[0])
        u, now = [], S  # what each token writes
        for t in range(k_.shape[1]):
            now = (g[:, t, None, None] if g.ndim == 2 else g[:, t, :, None]) * now
            u.append(beta[0][:, part][:, t, None] * (v_[:, t] - np.einsum("bk,bke->be", k_[:, t], now)) if beta else v_[:, t])
            now = now + np.einsum("bk,be->bke", k_[:, t], u[-1])
        kept = np.prod(g, axis=1)
        S = (kept[:, None, None] if g.ndim == 2 else kept[:, :, None]) * S + np.einsum("btk,bte->bke", k_, np.stack(u, 1))
    return np.concatenate(outs, axis=1), S


def length_held_still(cotangents: Any, x: Any) -> Any:
    return (cotangents[0] / np.sqrt((x * x).sum(-1, keepdims=True) + 1e-6),)


def writers_factor(rule: str, q: Any, k: Any, v: Any, step: Any, factor: Any, *rest: Any) -> Any:
    return loops(rule)(q, k, v, step * factor, 0 * factor + 1, *rest)


def begins(rule: str, q: Any, k: Any, v: Any, step: Any, factor: Any, gain: Any, bias: Any, state: Any) -> Any:
    """The call takes what comes in for the first token of a mini-batch."""
    row = RULES[rule]
    fwd = getattr(row.module, f"{row.function}_recurrent_fwd")
    words = {"minibatch": MINIBATCH, "eps": 1e-6, "read": "inclusive", "factor": factor}
    return fwd(q, k, v, step, gain, bias, state._replace(place=0), **words)[0]


def at_every_token(q: Any, k: Any, v: Any, momentum: Any, decay: Any, step: Any, state: Any) -> Any:
    """A loop that fades, and adds the update to the memory, at every token of a chunk."""
    M, U = (np.zeros((len(k), k.shape[2], v.shape[2])),) * 2 if state is None else state
    first, out = M, []
    for t in range(q.shape[1]):
        start = t - t % MINIBATCH
        first = M if t == start else first
        error = v[:, t] - np.einsum("bk,bke->be", k[:, t], first)
        U = momentum[:, start, None, None] * U + np.einsum("bk,be->bke", k[:, t], step[:, t, None] * error)
        M = (1 - decay[:, start, None, None]) * M + U
        out.append(np.einsum("bk,bke->be", q[:, t], M))
    return np.stack(out, 1), (M, U)


def stale(rule: str, *inputs: Any) -> Any:
    row = RULES[rule]
    words = {"minibatch": MINIBATCH} if "minibatch" in row.counts else {}
    return getattr(row.module, f"{rule}_stale_fwd")(*inputs, CHUNK, read="inclusive", **words)[0]


def stale_throughout(*inputs: Any) -> Any:
    fwd = RULES["titans_mlp"].module.titans_mlp_dual_fwd
    return fwd(*inputs, minibatch=inputs[0].shape[1], eps=1e-6, read="inclusive")[0]


def late(gate: Any) -> Any:
    return np.concatenate([0 * gate[:, :1] + 1, gate[:, :-1]], axis=1)


def times_gate(name: str, g: dict[str, Any]) -> dict[str, Any]:
    return {name: g[name] * g[f"in_{name}"]}


def forget(rule: str, *inputs: Any) -> Any:
    *rest, state = inputs
    return loops(rule)(*rest, None if state is None else zero(state))


def transposed_state(*inputs: Any) -> Any:
    out, state = naive.gated_delta(*inputs)
    return out, np.swapaxes(state, -1, -2)
