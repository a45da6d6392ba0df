"""From the arrays of a case to the ones a kernel wants, and from exact answers to what it should
say.

A case is drawn with a head axis: tokens (B,T,H,...), states (B,H,...), parameters (H,...). The
exact answers are those of each head alone. ``inputs_of_head`` undoes what the kernel says it does
itself (scale, logarithm, l2 norm, shared heads), ``expected`` carries the answers back through the
same steps, ``present`` puts the axes where the kernel has them.
"""

from __future__ import annotations

from ..backend import Array, host
from ..ops.l2norm import l2norm_bwd, l2norm_fwd
from ..rules.gates import gates_from_log, gates_from_log_bwd
from ..rules.heads import share, share_bwd
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
        if shares_heads(name):
            a = share(a, a.shape[axis] * options.grouped_values, axis, options.grouping)
        found[name] = host.array(host.take(a, head, axis=axis), order="C")
    if options.l2norm:
        found |= {n: l2norm_fwd(found[n], options.l2norm)[0] for n in "qk"}
    if "q" in found:
        found["q"] = options.factor(found["q"].shape[-1]) * found["q"]
    if options.log_gates:
        found[subject.gate] = gates_from_log(found[subject.gate])
    return found


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
        if shares_heads(name) and name.startswith("g_"):
            a = share_bwd(a, a.shape[axis] // options.grouped_values, axis, options.grouping)
        found[name] = a
    if "g_q" in found:
        found["g_q"] = options.factor(found["g_q"].shape[-1]) * found["g_q"]
    if options.l2norm and "g_q" in found:
        for name in "qk":
            _, res = l2norm_fwd(case[name], options.l2norm)
            found[f"g_{name}"] = l2norm_bwd(found[f"g_{name}"], res)
    if options.log_gates and f"g_{subject.gate}" in found:
        alpha = gates_from_log(case[subject.gate])
        found[f"g_{subject.gate}"] = gates_from_log_bwd(found[f"g_{subject.gate}"], alpha)
    return found


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
