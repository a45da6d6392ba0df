"""JAX: the fast weight block as its definition has it, differentiated by ``jax.grad``, the gradient of the gradient too.

JAX has no such layer. The forward pass of one token, written here in a few lines, and the sum of the definition are the only code that is
not its own; every gradient of the answers is ``jax.grad``'s.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .common import Case

PACKAGE, MODULE, PROGRAM = "jax", "jax", "JAX"
FAST, SLOW = ("W1", "b1", "W2", "b2", "gain", "bias"), ("W1", "b1", "W2", "b2", "gain", "bias", "U", "c")
NOTES = {"jax.grad": "of the loss of one token at the slow parameters, and of the mean loss at the fast ones"}


def loss_of_token(p: dict, x: Any, label: Any, eps: Any, h0: Any = 0.0, z0: Any = 0.0, n0: Any = 0.0) -> tuple[Any, Any]:
    """Cross-entropy of the block for one token; its logits, activations and normalised z.

    h0, z0 and n0 are added where dh, dz and dn are asked for.
    """
    import jax
    import jax.numpy as jnp

    h = x @ p["W1"] + p["b1"] + h0  # (F)
    z = jnp.square(jax.nn.relu(h)) @ p["W2"] + p["b2"] + z0  # (D)
    n = (z - z.mean()) / jnp.sqrt(z.var() + eps) * p["gain"] + p["bias"] + n0  # (D)
    logits = n @ p["U"] + p["c"]  # (V)
    kept = (logits, jnp.square(jax.nn.relu(h)), (z - z.mean()) / jnp.sqrt(z.var() + eps))
    return jax.nn.logsumexp(logits) - logits[label], kept


def inputs(case: Case) -> tuple[dict, dict, Any, Any]:
    """Slow parameters, step sizes, the decay, and N of every sequence (B)."""
    name = {n: f"slow_{n}" if f"slow_{n}" in case else n for n in SLOW}
    w = case["weights"]
    n = {"constant": np.full(len(w), case["constant"]), "batch": np.full(len(w), w.sum()), "sequence": w.sum(1)}[str(case["normalizer"])]
    return {n: case[f] for n, f in name.items()}, {n: case[f"eta_{n}"] for n in FAST}, case["decay"], np.where(n > 0, n, 1.0)


def fwl(case: Case) -> Case:
    """p_t = p - eta * (faded sum of the gradients before t), every gradient at p."""
    import jax
    import jax.numpy as jnp

    slow, eta, decay, norm = inputs(case)
    y, w, eps = case["labels"], case["weights"], float(case["eps"])
    zero = (jnp.zeros(len(slow["b1"])), jnp.zeros(len(slow["b2"])), jnp.zeros(len(slow["b2"])))
    gaps = np.arange(w.shape[1])[:, None] - np.arange(w.shape[1])[None]  # (T,T) t - s
    past = np.tril(np.ones(gaps.shape), -1)

    def deltas(p: dict, x: Any, label: Any) -> tuple[Any, Any]:
        """dh, dz, dn."""
        return jax.grad(lambda at: loss_of_token(p, x, label, eps, *at)[0])(zero)

    def gradients(p: dict, x: Any, label: Any) -> dict:
        if not int(case["first_order"]):
            return jax.grad(lambda fast: loss_of_token(p | fast, x, label, eps)[0])({n: p[n] for n in FAST})
        dh, dz, dn = jax.lax.stop_gradient(deltas(p, x, label))  # the values are cut off, the keys are not
        _, (_, a, normal) = loss_of_token(p, x, label, eps)
        dgain = jax.lax.stop_gradient(dn * normal)
        return {"W1": jnp.outer(x, dh), "b1": dh, "W2": jnp.outer(a, dz), "b2": dz, "gain": dgain, "bias": dn}

    def sequence(p: dict, eta: dict, decay: Any, x: Any, y: Any, w: Any, n: Any) -> tuple[Any, Any]:
        written = jax.vmap(lambda x, y: gradients(p, x, y))(x, y)  # (T,...)
        fade = past * (1 - decay) ** jnp.maximum(gaps - 1, 0) * (w / n)  # (T,T)
        fast = {m: p[m] - eta[m] * jnp.tensordot(fade, written[m], 1) for m in FAST}
        rest = {m: p[m] for m in SLOW if m not in FAST}
        return jax.vmap(lambda f, x, y: loss_of_token(f | rest, x, y, eps))(fast, x, y)

    def loss(x: Any, p: dict, eta: dict, decay: Any) -> tuple[Any, Any]:
        nll, (logits, _, _) = jax.vmap(sequence, (None, None, None, 0, 0, 0, 0))(p, eta, decay, x, y, w, norm)
        return (w * nll).sum() / max(w.sum(), 1e-8), logits

    (value, logits), g = jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True))(case["x"], slow, eta, decay)
    d = jax.jit(jax.vmap(jax.vmap(lambda x, y: deltas(slow, x, y))))(case["x"], y)
    plain = jax.jit(jax.vmap(jax.vmap(lambda x, y: loss_of_token(slow, x, y, eps)[1][0])))(case["x"], y)
    share = (w / norm[:, None])[..., None]
    found = {"logits": logits, "logits_slow": plain, "loss": value, "g_x": g[0], "g_decay": g[3]}
    found |= {n: share * a for n, a in zip(("dh", "dz", "dn"), d, strict=True)}
    return found | {f"g_{n}": a for n, a in g[1].items()} | {f"g_eta_{n}": a for n, a in g[2].items()}


def dynamic_evaluation(case: Case) -> Case:
    """Steps of gradient descent at the current parameters, one sequence at a time."""
    import jax

    slow, eta, decay, norm = inputs(case)
    eps, segment = float(case["eps"]), int(case["segment"])

    def segment_loss(fast: dict, x: Any, y: Any, share: Any) -> tuple[Any, Any]:
        nll, (logits, _, _) = jax.vmap(lambda x, y: loss_of_token(slow | fast, x, y, eps))(x, y)
        return (share * nll).sum(), logits

    differentiated = jax.jit(jax.value_and_grad(segment_loss, has_aux=True))
    all_logits, finals = [], []
    for x, y, w, n in zip(case["x"], case["labels"], case["weights"], norm, strict=True):
        start = fast = {m: slow[m] for m in FAST}
        rows = []
        for t in range(0, len(y), segment):
            part = slice(t, t + segment)
            (_, logits), g = differentiated(fast, x[part], y[part], w[part] / n)
            fast = {m: fast[m] - eta[m] * g[m] + decay * (start[m] - fast[m]) for m in FAST}
            rows.append(logits)
        all_logits.append(np.concatenate(rows))
        finals.append(fast)
    return {"logits": np.stack(all_logits)} | {m: np.stack([f[m] for f in finals]) for m in FAST}


def answer(function: str, case: Case) -> Case:
    """The answers to a case of the block or of dynamic evaluation."""
    import jax

    jax.config.update("jax_enable_x64", True)
    found = {"fwl": fwl, "dynamic_evaluation": dynamic_evaluation}[str(case["kind"])](case)
    return {n: np.asarray(a, "float64") for n, a in found.items()}
