"""Where a program disagrees with itself: two of its answers to one question, and finite differences to say who is right.

Each check draws its inputs from a seed and returns relative differences by what was compared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .common import changed
from .fla import naive


def central(f: Callable[[np.ndarray], float], x: np.ndarray, h: float = 1e-6) -> np.ndarray:
    """The gradient of f at x by central differences, entry by entry."""
    found = np.zeros_like(x)
    for i in np.ndindex(*x.shape):
        e = np.zeros_like(x)
        e[i] = h
        found[i] = (f(x + e) - f(x - e)) / (2 * h)
    return found


def apart(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference over the largest magnitude of what is expected."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def titans_layernorm(seed: int) -> dict[str, float]:
    """Titans: one token, step 1, gain and bias; the loss is its own, |LN(k M) - (v - k)|^2."""
    import torch

    rng, D, eps = np.random.default_rng(seed), 5, 1e-6
    k, v, gain, bias = (rng.standard_normal(D) for _ in range(4))
    M = rng.standard_normal((D, D))

    def loss(M: np.ndarray) -> float:
        """|LN(k M) - (v - k)|^2"""
        z = k @ M
        n = (z - z.mean()) / np.sqrt(z.var() + eps)
        return float(((n * gain + bias - (v - k)) ** 2).sum())

    right = central(loss, M)

    def written(program: Any) -> np.ndarray:
        """One token, step 1, no momentum, no decay: what the memory loses is the gradient."""
        shape, rate = (1, 1, 1, D), (1, 1, 1, 1)
        tokens = [torch.tensor(a).reshape(shape) for a in (k, k, v)]
        norm, start = (torch.tensor(gain), torch.tensor(bias)), torch.tensor(M)[None, None]
        rates = (torch.ones(rate), torch.zeros(rate), torch.zeros(rate))
        _, after = program.titans_linear(*tokens, *norm, *rates, eps, 1, start, True)
        return M - after[0, 0].numpy()

    reference = naive("titans")
    old, new = ("{}D * grad - grad.sum(-1, keepdim=True){} / (rstd * D)".format(*pair) for pair in (("", ""), ("(", ")")))
    mended = changed(reference, (f"v_new = {old}", f"v_new = {new}", 2))
    return {
        "what its reference writes, from the gradient of its loss by finite differences": apart(written(reference), right),
        "the same with the bracket of its TTT reference": apart(written(mended), right),
    }


def mesa_solver(seed: int) -> dict[str, float]:
    """Mesa: 30 steps of conjugate gradients in 4 dimensions; what is minimised is 1/2 x (H + ridge) x - q x."""
    import torch

    rng, T, K = np.random.default_rng(seed), 8, 4
    q, k = rng.standard_normal((2, T, K)) / 2
    weight, ridge, H = rng.uniform(0.2, 1, T), rng.uniform(0.5, 1.5, K), np.eye(K)
    head = [torch.tensor(a)[None, :, None] for a in (q, k, np.zeros((T, K)), np.zeros(T))]
    last = (torch.tensor(ridge)[None], torch.tensor(weight)[None, :, None])
    start = (torch.tensor(H)[None, None], torch.eye(K)[None, None])  # values 0 and G = 1: the output is x itself
    reference = naive("mesa_net")
    exact = reference.naive_mesa_net_exact(*head, *last, *start)[0][0, :, 0].numpy()
    by_cg = reference.naive_mesa_net_CG(*head, *last, T, 30, *start)[0][0, :, 0].numpy()
    mended = changed(reference, ("1e-5", "1e-300", 4))
    without = mended.naive_mesa_net_CG(*head, *last, T, 30, *start)[0][0, :, 0].numpy()

    def slope(x: np.ndarray) -> float:
        """The largest slope of 1/2 x (H_t + ridge) x - q x at the answers, which is 0 at the minimum, over the largest q."""
        worst = 0.0
        for t in range(T):
            A = H + np.einsum("s,si,sj->ij", weight[: t + 1], k[: t + 1], k[: t + 1]) + np.diag(ridge)
            worst = max(worst, float(np.abs(central(lambda z, A=A, t=t: 0.5 * z @ A @ z - q[t] @ z, x[t])).max()))
        return worst / float(np.abs(q).max())

    return {
        "conjugate gradients from the exact solver": apart(by_cg, exact),
        "the same without its + 1e-5": apart(without, exact),
        "slope at the exact solver's answer, by finite differences": slope(exact),
        "slope at the answer of conjugate gradients": slope(by_cg),
    }


def two_combas(seed: int) -> dict[str, float]:
    """Comba: 11 tokens that take out what the key recalls, p = k; one token's step on 1/2 |k S - v|^2."""
    import torch

    rng, T, K, E = np.random.default_rng(seed), 11, 5, 4
    q, k = rng.standard_normal((2, T, K)) / K**0.5
    v, S = rng.standard_normal((T, E)), rng.standard_normal((K, E))
    alpha, beta = rng.uniform(0.6, 1, T), rng.uniform(0.2, 1, T)
    reference = naive("comba")

    def run(function: str, T: int, **more: Any) -> tuple[np.ndarray, np.ndarray]:
        """Outputs and last state of the first T tokens, with p = k: it takes out what the key recalls."""
        arrays = {"q": q, "k": k, "v": v, "p": k, "beta": beta, "g": np.log(alpha)}
        heads = {n: torch.tensor(a)[None, :T, None] for n, a in arrays.items()}
        more |= {"scale": 1.0, "initial_state": torch.tensor(S)[None, None], "output_final_state": True}
        out, state = getattr(reference, function)(**heads, **more)
        return out[0, :, 0].numpy(), state[0, 0].numpy()

    def loss(S: np.ndarray) -> float:
        """1/2 |k S - v|^2 of token 0"""
        return 0.5 * float(((k[0] @ S - v[0]) ** 2).sum())

    recurrent, chunked = run("naive_recurrent_comba", T), run("naive_chunk_comba", T, chunk_size=T)
    after = {"recurrent": run("naive_recurrent_comba", 1)[1], "chunked": run("naive_chunk_comba", 1, chunk_size=1)[1]}
    step = {name: (alpha[0] * S - state) / beta[0] for name, state in after.items()}
    at_S, behind = central(loss, S), central(loss, alpha[0] * S)
    return {
        "outputs of the recurrent reference from those of the chunked one": apart(recurrent[0], chunked[0]),
        "step of the chunked one from the gradient at S, by finite differences": apart(step["chunked"], at_S),
        "step of the recurrent one from the gradient at S": apart(step["recurrent"], at_S),
        "step of the recurrent one from the gradient at alpha S": apart(step["recurrent"], behind),
    }


CHECKS = (titans_layernorm, mesa_solver, two_combas)
DRAWS = 21
