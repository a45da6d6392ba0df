"""Every rule as a loop over tokens, written anew from its formula, for NumPy and PyTorch arrays
alike: somebody else's kernels, which share no code with the package. ``bug`` puts a classic mistake
into one of them.

One head, rows are tokens: q, k (B,T,K), v (B,T,E), a state S (B,K,E) that is read by q S.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np


def library(a: Any) -> Any:
    return sys.modules["torch"] if type(a).__module__ == "torch" else np


def outer(k: Any, v: Any) -> Any:
    return k[..., :, None] * v[..., None, :]


def row(x: Any, S: Any) -> Any:
    """(B,K),(B,K,E)->(B,E)"""
    return (x[..., None] * S).sum(-2)


def col(x: Any) -> Any:
    """(B,)->(B,1,1)"""
    return x[:, None, None]


def loop(step: Callable, see: Callable, T: int, state: Any, read: str, like: Any) -> tuple[Any, Any]:
    """out_t = see(t, state), state = step(t, state)"""
    out = []
    for t in range(T):
        before = state
        state = step(t, state)
        out.append(see(t, before if read == "strict" else state))
    return library(like).stack(out, 1), state


def empty(k: Any, v: Any, state: Any) -> Any:
    return 0 * outer(k[:, 0], v[:, 0]) if state is None else state


def linear(q, k, v, state=None, *, read="inclusive", bug=""):
    def step(t, S):
        return S + outer(k[:, t], v[:, t])

    return loop(step, lambda t, S: row(q[:, t], S), q.shape[1], empty(k, v, state), read, q)


def decay(q, k, v, gamma, state=None, *, read="inclusive", bug=""):
    def step(t, S):
        new = outer(k[:, t], v[:, t])
        if bug == "fades its own write":
            return col(gamma[:, t]) * (S + new)
        return (S if bug == "no fade" else col(gamma[:, t]) * S) + new

    return loop(step, lambda t, S: row(q[:, t], S), q.shape[1], empty(k, v, state), read, q)


def gla(q, k, v, alpha, state=None, *, read="inclusive", bug=""):
    def step(t, S):
        new = outer(k[:, t], v[:, t])
        if bug == "fades its own write":
            return alpha[:, t, :, None] * (S + new)
        return (S if bug == "no fade" else alpha[:, t, :, None] * S) + new

    return loop(step, lambda t, S: row(q[:, t], S), q.shape[1], empty(k, v, state), read, q)


def delta(q, k, v, beta, state=None, *, read="inclusive", bug=""):
    def step(t, S):
        recalled = 0 if bug == "no erasing" else row(k[:, t], S)
        rate = 1 if bug == "no beta" else beta[:, t, None]
        return S + outer(k[:, t], rate * (v[:, t] - recalled))

    return loop(step, lambda t, S: row(q[:, t], S), q.shape[1], empty(k, v, state), read, q)


def gated_delta(q, k, v, alpha, beta, state=None, *, read="inclusive", bug=""):
    def step(t, S):
        fade = col(alpha[:, t])
        if bug == "error at the unfaded memory":
            return fade * S + outer(k[:, t], beta[:, t, None] * (v[:, t] - row(k[:, t], S)))
        if bug == "fades its own write":
            return fade * (S + outer(k[:, t], beta[:, t, None] * (v[:, t] - row(k[:, t], S))))
        S = S if bug == "no fade" else fade * S
        recalled = 0 if bug == "no erasing" else row(k[:, t], S)
        return S + outer(k[:, t], beta[:, t, None] * (v[:, t] - recalled))

    return loop(step, lambda t, S: row(q[:, t], S), q.shape[1], empty(k, v, state), read, q)


def kda(q, k, v, alpha, beta, state=None, *, read="inclusive", bug=""):
    def step(t, S):
        fade = (alpha[:, t, :1] + 0 * alpha[:, t] if bug == "one gate for all channels" else alpha[:, t])[..., None]
        late = bug == "fades its own write"
        faded = S if late or bug == "no fade" else fade * S
        recalled = 0 if bug == "no erasing" else row(k[:, t], S if bug == "error at the unfaded memory" else faded)
        after = faded + outer(k[:, t], beta[:, t, None] * (v[:, t] - recalled))
        return fade * after if late else after

    return loop(step, lambda t, S: row(q[:, t], S), q.shape[1], empty(k, v, state), read, q)


def dplr(q, k, v, alpha, a, b, state=None, *, read="inclusive", bug=""):
    a, b = (b, a) if bug == "a and b swapped" else (a, -b if bug == "sign of b" else b)

    def step(t, S):
        gate = alpha[:, t, :1] + 0 * alpha[:, t] if bug == "one gate for all channels" else alpha[:, t]
        faded = S if bug == "no fade" else gate[..., None] * S
        recalled = row(a[:, t], faded if bug == "recalls the faded memory" else S)
        return faded + outer(k[:, t], v[:, t]) + (0 if bug == "no recall" else outer(b[:, t], recalled))

    return loop(step, lambda t, S: row(q[:, t], S), q.shape[1], empty(k, v, state), read, q)


def delta_product(q, k, v, beta, state=None, *, read="inclusive", bug=""):
    N = k.shape[2]
    order = {"steps reversed": range(N)[::-1], "first step only": range(1), "last step only": range(N - 1, N)}

    def step(t, S):
        for n in order.get(bug, range(N)):
            S = S + outer(k[:, t, n], beta[:, t, n, None] * (v[:, t, n] - row(k[:, t, n], S)))
        return S

    return loop(step, lambda t, S: row(q[:, t], S), q.shape[1], empty(k[:, :, 0], v[:, :, 0], state), read, q)


def gated_delta_product(q, k, v, alpha, beta, state=None, *, read="inclusive", bug=""):
    N = k.shape[2]
    order = {"steps reversed": range(N)[::-1], "first step only": range(1), "last step only": range(N - 1, N)}.get(bug, range(N))

    def step(t, S):
        fade = col(alpha[:, t])
        S = S if bug in ("no fade", "gate at every step", "fades its own write") else fade * S
        for n in order:
            S = fade * S if bug == "gate at every step" else S
            S = S + outer(k[:, t, n], beta[:, t, n, None] * (v[:, t, n] - row(k[:, t, n], S)))
        return fade * S if bug == "fades its own write" else S

    return loop(step, lambda t, S: row(q[:, t], S), q.shape[1], empty(k[:, :, 0], v[:, :, 0], state), read, q)


def longhorn(q, k, v, beta, state=None, *, read="inclusive", bug=""):
    def step(t, S):
        rate = beta[:, t, None]
        rate = rate if bug == "explicit step" else rate / (1 + rate * (k[:, t] ** 2).sum(-1)[:, None])
        return S + outer(k[:, t], rate * (v[:, t] - row(k[:, t], S)))

    return loop(step, lambda t, S: row(q[:, t], S), q.shape[1], empty(k, v, state), read, q)


def titans(q, k, v, momentum, decay, step, state=None, *, read="inclusive", bug=""):
    M, U = (None, None) if state is None else state
    M, U = empty(k, v, M), empty(k, v, U)

    def move(t, state):
        M, U = state
        theta = 2 * step[:, t, None] if bug == "step twice" else step[:, t, None]
        push = outer(k[:, t], theta * (v[:, t] - row(k[:, t], M)))
        U = push if bug == "no momentum" else col(momentum[:, t]) * U + push
        return (M if bug == "no decay" else col(1 - decay[:, t]) * M) + U, U

    return loop(move, lambda t, s: row(q[:, t], s[0]), q.shape[1], (M, U), read, q)


def mesa(q, k, v, keep, weight, ridge, state=None, *, read="inclusive", bug=""):
    G, H = (None, None) if state is None else state
    G, H, xp = empty(k, v, G), empty(k, k, H), library(q)
    eye = xp.eye(k.shape[-1], dtype=k.dtype)

    def step(t, state):
        fade = 1 if bug == "no fade" else col(keep[:, t])
        return tuple(fade * S + col(weight[:, t]) * outer(k[:, t], x[:, t]) for S, x in zip(state, (v, k), strict=True))

    def see(t, state):
        lam = 1 if bug == "ridge 1" else ridge
        return row(xp.linalg.solve(state[1] + lam * eye, q[:, t, :, None])[..., 0], state[0])

    return loop(step, see, q.shape[1], (G, H), read, q)


def _norm(z, eps):
    z = z - z.mean(-1)[..., None]
    sigma = ((z * z).mean(-1)[..., None] + eps) ** 0.5
    return z / sigma, sigma


def _pull(g, hat, sigma):
    """What the LayerNorm makes of a gradient with respect to its normalised output."""
    return (g - g.mean(-1)[..., None] - hat * (g * hat).mean(-1)[..., None]) / sigma


def ttt_linear(q, k, v, step, gain, bias, state, *, read="inclusive", minibatch=4, eps=1e-6, bug=""):
    gain, bias = (1, 0) if bug == "no norm" else (gain, bias)
    first = [state]

    def move(t, state):
        if bug == "fresh gradients" or (t % minibatch == 0 and bug != "stale throughout"):
            first[0] = state
        W0, b0 = first[0]
        hat, sigma = _norm(row(k[:, t], W0) + b0, eps)
        error = 2 * (k[:, t] + hat * gain + bias - v[:, t])
        dz = step[:, t, None] * _pull(error * gain, hat, sigma)
        return state[0] - outer(k[:, t], dz), state[1] - dz

    def see(t, state):
        hat, _ = _norm(row(q[:, t], state[0]) + state[1], eps)
        return q[:, t] + hat * gain + bias

    return loop(move, see, q.shape[1], tuple(state), read, q)


def linear_attention(q, k, v, keep, state=None, *, bug=""):
    def step(t, S):
        new = outer(k[:, t], v[:, t])
        return keep * (S + new) if bug == "fades its own write" else keep * S + new

    read = "inclusive" if bug == "reads its own write" else "strict"
    return loop(step, lambda t, S: row(q[:, t], S), q.shape[1], empty(k, v, state), read, q)


def masked_attention(q, k, v, mask, *, bug=""):
    scores = (q[:, :, None, :] * k[:, None, :, :]).sum(-1)
    weights = mask.T if bug == "mask transposed" else mask
    return ((scores * weights)[..., None] * v[:, None, :, :]).sum(2)


def attention(q, k, v, *, bug=""):
    xp, out = library(q), []
    for t in range(q.shape[1]):
        seen = slice(0, max(t, 1) if bug == "strict mask" else q.shape[1] if bug == "no mask" else t + 1)
        scores = (q[:, t, None, :] * k[:, seen]).sum(-1)
        scores = scores if bug == "no scale" else scores / q.shape[-1] ** 0.5
        p = xp.exp(scores - (0 if bug == "no max" else xp.amax(scores, -1)[:, None]))
        out.append((p[..., None] * v[:, seen]).sum(1) / p.sum(1)[:, None])
    return xp.stack(out, 1)


def short_conv(x, w, state=None, *, bug=""):
    P, T = w.shape[0] - 1, x.shape[1]
    before = [0 * x[:, 0]] * P if state is None else [state[:, i] for i in range(P)]
    if bug == "state reversed":
        before = before[::-1]
    seen = before + [x[:, t] for t in range(T)]
    taps = [w[P - j if bug == "taps reversed" else j] for j in range(P + 1)]
    shift = 1 if bug == "sees no present" else 0
    out = library(x).stack([sum(taps[j] * seen[t + j - shift] for j in range(P + 1) if t + j >= shift) for t in range(T)], 1)
    left = library(x).stack(seen[len(seen) - P :], 1)
    return (out / (1 + library(x).exp(-out)) if bug == "silu" else out), left


def l2norm(x, *, bug="", eps=1e-6):
    xp, squares = library(x), (x * x).sum(-1)[..., None]
    if bug == "epsilon outside the root":
        return x / (squares**0.5 + eps)
    if bug == "maximum with the epsilon":
        return x / xp.clip(squares**0.5, eps, None)
    return x / ((squares / x.shape[-1] if bug == "mean of squares" else squares) + eps) ** 0.5


KERNELS = {
    f.__name__: f
    for f in (linear, decay, gla, delta, gated_delta, kda, dplr, delta_product, gated_delta_product, longhorn, titans, mesa, ttt_linear,
              linear_attention, masked_attention, attention, short_conv, l2norm)
}  # fmt: skip
