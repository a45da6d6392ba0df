"""From the arrays of a case to the ones a kernel wants, and from exact answers to what it should
say.

A case is drawn with a head axis: tokens (B,T,H,...), states (B,H,...), parameters (H,...). The
exact answers are those of each head alone. ``inputs_of_head`` undoes what the kernel says it does
itself (scale, logarithm, l2 norm, shared heads), ``expected`` carries the answers back through the
same steps, ``present`` puts the axes where the kernel has them.
"""

from __future__ import annotations

from ..backend import Array, host
from .options import Options
from .subjects import Arrays, Subject


def head_letters(letters: str, headless: bool = False) -> str:
    """BTK -> BTHK, BKE -> BHKE, K -> HK: where the head axis is in a case"""
    if headless:
        return letters
    for start in ("BT", "B"):
        if letters.startswith(start):
            return start + "H" + letters[len(start) :]
    return "H" + letters


def letters_of(subject: Subject, name: str) -> str:
    """The letters of an input, an answer, a gradient or a cotangent, without heads."""
    bare = name.removeprefix("cot_").removeprefix("g_")
    known = subject.inputs | subject.outputs
    return known[bare] if bare in known else known[bare.replace("state_out", "state", 1)]


def is_headless(subject: Subject, name: str) -> bool:
    """Whether all heads share the array."""
    return name.removeprefix("g_") in subject.headless


def shares_heads(name: str) -> bool:
    """Whether value heads share it: queries and keys."""
    return name.removeprefix("g_") in ("q", "k")


# --- to one head of the reference


def inputs_of_head(subject: Subject, case: Arrays, options: Options, head: int) -> Arrays:
    """The arrays of one value head, as the reference takes them."""
    found = {}
    for name, a in case.items():
        if is_headless(subject, name):
            found[name] = a
            continue
        axis = head_letters(letters_of(subject, name)).index("H")
        h = _shared_head(head, a.shape[axis], options) if shares_heads(name) else head
        found[name] = host.array(host.take(a, h, axis=axis), order="C")
    if options.l2norm:
        found |= {n: found[n] * _inverse_norm(found[n], options.l2norm) for n in "qk"}
    if "q" in found:
        found["q"] = options.factor(found["q"].shape[-1]) * found["q"]
    if options.log_gates:
        found[subject.gate] = host.exp(found[subject.gate])
    return found


def _shared_head(head: int, count: int, options: Options) -> int:
    """Which of ``count`` heads of q and k a value head uses."""
    return head // options.grouped_values if options.grouping == "neighbours" else head % count


def _inverse_norm(a: Array, eps: float) -> Array:
    """(...,K)->(...,1)"""
    return (host.sum(a * a, axis=-1, keepdims=True) + eps) ** -0.5


# --- back


def expected(subject: Subject, case: Arrays, options: Options, heads: list[Arrays]) -> Arrays:
    """The answers of all heads -> answers, and gradients of what the kernel was given."""
    found = {}
    for name in heads[0]:
        if name == "loss":
            continue
        per_head = [answers[name] for answers in heads]
        if is_headless(subject, name):
            found[name] = sum(per_head)
            continue
        axis = head_letters(letters_of(subject, name)).index("H")
        a = host.stack(per_head, axis=axis)
        if name in ("g_q", "g_k") and options.grouped_values > 1:  # a shared head gathers
            beside = options.grouping == "neighbours"
            split = (-1, options.grouped_values) if beside else (options.grouped_values, -1)
            a = host.reshape(a, (*a.shape[:axis], *split, *a.shape[axis + 1 :]))
            a = host.sum(a, axis=axis + 1 if beside else axis)
        found[name] = a
    if "g_q" in found:
        found["g_q"] = options.factor(found["g_q"].shape[-1]) * found["g_q"]
    if options.l2norm and "g_q" in found:
        for name in "qk":
            found[f"g_{name}"] = _l2norm_bwd(found[f"g_{name}"], case[name], options.l2norm)
    if options.log_gates and f"g_{subject.gate}" in found:
        found[f"g_{subject.gate}"] = host.exp(case[subject.gate]) * found[f"g_{subject.gate}"]
    return found


def _l2norm_bwd(g: Array, a: Array, eps: float) -> Array:
    """Adjoint of a -> a / sqrt(|a|^2 + eps), its value already summed over what shares it."""
    r = _inverse_norm(a, eps)  # (...,1)
    return r * (g - r * r * a * host.sum(a * g, axis=-1, keepdims=True))


# --- axes


def shown(subject: Subject, name: str, options: Options) -> str:
    """The letters of an array as the kernel has it."""
    plain = letters_of(subject, name)
    if options.layout == "BTK":
        letters = plain
    else:
        letters = head_letters(plain, is_headless(subject, name))
        letters = letters.replace("BTH", "BHT", 1) if options.layout == "BHTK" else letters
    transposed = options.state_layout == "EK" and plain == "BKE" and "state" in name
    return letters.replace("KE", "EK") if transposed else letters


def present(subject: Subject, name: str, a: Array, options: Options) -> Array:
    """An array of a case with its axes where the kernel has them."""
    here, there = head_letters(letters_of(subject, name)), shown(subject, name, options)
    if is_headless(subject, name):
        return a
    if options.layout == "BTK":
        a, here = host.take(a, 0, axis=here.index("H")), here.replace("H", "", 1)
    return host.array(a if here == there else _arranged(a, here, there), order="C")


def _arranged(a: Array, here: str, there: str) -> Array:
    """The axes called ``here`` in the order ``there``. Letters that occur twice keep theirs."""
    axes, left = [], list(here)
    for letter in there:
        at = left.index(letter)
        axes.append(at)
        left[at] = ""
    return host.permute_dims(a, axes)
