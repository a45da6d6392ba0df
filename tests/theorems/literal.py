"""Optimizers written out: parameters that really move, one step after the other. No mask, no slot,
no attention, no fast weight code.

An optimizer here is a function ``walk(theta0, eta, gradient, length)`` that yields the parameters
read by token 0, 1, ..., length - 1. It yields before it asks for the gradient of the token that
reads. ``gradient(t, theta)`` is the first-order gradient of token t's loss at theta; a *stale*
optimizer asks for it at theta0 only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np

from fwl_ref.dynamic_evaluation import Descent, RmsScale, update
from fwl_ref.slow_block import FastParameters, SlowParameters, slow_block_bwd, slow_block_fwd
from fwl_ref.tree import add, leaves, tree_map, zeros_like

Walk = Callable[[FastParameters, FastParameters, Callable, int], Iterator[FastParameters]]


def descend(theta: FastParameters, eta: FastParameters, step: FastParameters) -> FastParameters:
    """theta - eta step, one step size per parameter."""
    return tree_map(lambda p, e, s: p - e * s, theta, eta, step)


# Linear in stale gradients
# ---------------------------------------------------------------------------------------------------


def sgd(rate: Callable[[int], float] = lambda t: 1.0) -> Walk:
    """Gradient descent with a step size that may depend on the token."""

    def walk(theta0, eta, gradient, length):
        theta = theta0
        for t in range(length):
            yield theta
            theta = descend(theta, eta, tree_map(lambda g, t=t: rate(t) * g, gradient(t, theta0)))

    return walk


def decay(rate: float) -> Walk:
    """After every step the parameters are pulled back towards where they started."""

    def walk(theta0, eta, gradient, length):
        theta = theta0
        for t in range(length):
            yield theta
            pulled = tree_map(lambda p, p0: p + rate * (p0 - p), theta, theta0)
            theta = descend(pulled, eta, gradient(t, theta0))

    return walk


def heavy_ball(mu: float, rate: float = 0.0) -> Walk:
    """A velocity that accumulates gradients, and parameters that follow the velocity; with a pull
    back if ``rate`` is not 0.
    """

    def walk(theta0, eta, gradient, length):
        theta, velocity = theta0, zeros_like(theta0)
        for t in range(length):
            yield theta
            velocity = tree_map(lambda v, g: mu * v + g, velocity, gradient(t, theta0))
            pulled = tree_map(lambda p, p0: p + rate * (p0 - p), theta, theta0)
            theta = descend(pulled, eta, velocity)

    return walk


def polyak_average() -> Walk:
    """Gradient descent runs on its own; what is read is the mean of all its iterates so far, the
    first one included.
    """

    def walk(theta0, eta, gradient, length):
        iterates = [theta0]
        for t in range(length):
            yield tree_map(lambda *values: sum(values) / len(values), *iterates)
            iterates.append(descend(iterates[-1], eta, gradient(t, theta0)))

    return walk


def queue(window: int) -> Walk:
    """The last ``window`` gradients wait in a queue; a step is theirs together, taken from theta_0."""

    def walk(theta0, eta, gradient, length):
        waiting = []
        for t in range(length):
            theta = theta0
            for g in waiting:
                theta = descend(theta, eta, g)
            yield theta
            waiting = [*waiting, gradient(t, theta0)][-window:]

    return walk


def minibatches(size: int) -> Walk:
    """Gradients are collected, and every ``size`` tokens one step is taken with their sum."""

    def walk(theta0, eta, gradient, length):
        theta, batch = theta0, []
        for t in range(length):
            yield theta
            batch.append(gradient(t, theta0))
            if len(batch) == size:
                for g in batch:
                    theta = descend(theta, eta, g)
                batch = []

    return walk


def rms(divisor: FastParameters) -> Walk:
    """Krause's RMS rule without decay, as dynamic evaluation has it   (Y.2)"""

    def walk(theta0, eta, gradient, length):
        theta, descent = theta0, Descent(eta, scale=RmsScale(divisor, divisor))
        for t in range(length):
            yield theta
            theta = update(theta, gradient(t, theta0), theta0, descent)

    return walk


# Not linear
# ------------------------------------------------------------------------------------------------------------------


def norm(tree: FastParameters) -> float:
    return float(np.sqrt(sum(np.sum(g * g) for g in leaves(tree))))


def adam(beta1: float = 0.9, beta2: float = 0.99, eps: float = 1e-8) -> Walk:
    """Running means of gradients and of their squares, bias-corrected: the divisor runs along with
    the gradients.
    """

    def walk(theta0, eta, gradient, length):
        theta, m, v = theta0, zeros_like(theta0), zeros_like(theta0)
        for t in range(length):
            yield theta
            g = gradient(t, theta0)
            m = tree_map(lambda old, g: beta1 * old + (1 - beta1) * g, m, g)
            v = tree_map(lambda old, g: beta2 * old + (1 - beta2) * g * g, v, g)
            c1, c2 = 1 - beta1 ** (t + 1), 1 - beta2 ** (t + 1)
            theta = descend(theta, eta, tree_map(lambda m, v, c1=c1, c2=c2: (m / c1) / (np.sqrt(v / c2) + eps), m, v))

    return walk


def clipping(largest: float) -> Walk:
    """A gradient longer than ``largest`` is shortened to that length."""

    def walk(theta0, eta, gradient, length):
        theta = theta0
        for t in range(length):
            yield theta
            g = gradient(t, theta0)
            size = norm(g)
            theta = descend(theta, eta, tree_map(lambda x, size=size: x * min(1.0, largest / max(size, 1e-300)), g))

    return walk


def sign() -> Walk:
    """Only the signs of a gradient's entries count."""

    def walk(theta0, eta, gradient, length):
        theta = theta0
        for t in range(length):
            yield theta
            theta = descend(theta, eta, tree_map(np.sign, gradient(t, theta0)))

    return walk


def orthogonalised(m: np.ndarray) -> np.ndarray:
    """Five Newton-Schulz steps with Muon's coefficients, which send singular values to about 1; of
    a vector its direction.
    """
    x = m / max(float(np.sqrt(np.sum(m * m))), 1e-300)
    if m.ndim < 2:
        return x
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x


def muon(mu: float = 0.9) -> Walk:
    """Momentum whose matrices are orthogonalised before the step."""

    def walk(theta0, eta, gradient, length):
        theta, velocity = theta0, zeros_like(theta0)
        for t in range(length):
            yield theta
            velocity = tree_map(lambda v, g: mu * v + g, velocity, gradient(t, theta0))
            theta = descend(theta, eta, tree_map(orthogonalised, velocity))

    return walk


def sequential_sgd() -> Walk:
    """Gradient descent proper: each gradient at the parameters of its moment."""

    def walk(theta0, eta, gradient, length):
        theta = theta0
        for t in range(length):
            yield theta
            theta = descend(theta, eta, gradient(t, theta))

    return walk


# Running a walk over the slow block
# ------------------------------------------------------------------------------------------


def walked(walk: Walk, x, labels, share, slow: SlowParameters, eta: FastParameters, kind: tuple) -> list[list[FastParameters]]:
    """The parameters that tokens 0, ..., T - 1 of each sequence read, and those after the last;
    ``share`` (B,T) is w / N, ``kind``
    what the slow block takes beside its parameters: ``settings.plain``.
    """
    theta0 = FastParameters(*slow[:6])
    found = []
    for b in range(x.shape[0]):

        def gradient(t: int, theta: FastParameters, b: int = b) -> FastParameters:
            part = slice(t, t + 1)
            _, res = slow_block_fwd(x[b, part], labels[b, part], slow._replace(**theta._asdict()), *kind)
            return FastParameters(*slow_block_bwd(share[b, part], res)[1][:6])

        readers = x.shape[1] + 1
        found.append(list(islice(walk(theta0, eta, gradient, readers), readers)))
    return found


def logits_at(thetas: list[list[FastParameters]], x, labels, slow: SlowParameters, kind: tuple) -> np.ndarray:
    """(B,T,V)   every token scored by the slow block at its own parameters."""
    out = np.zeros((*labels.shape, slow.U.shape[1]))
    for b, t in np.ndindex(*labels.shape):
        p = slow._replace(**thetas[b][t]._asdict())
        (_, row), _ = slow_block_fwd(x[b, t : t + 1], labels[b, t : t + 1], p, *kind)
        out[b, t] = row[0]
    return out


def moves(thetas: list[list[FastParameters]], slow: SlowParameters) -> np.ndarray:
    """(B,T+1,P)   theta_t - theta_0, all parameters in one row."""
    start = FastParameters(*slow[:6])

    def away(theta: FastParameters) -> np.ndarray:
        return np.concatenate([np.ravel(p) for p in leaves(add(theta, tree_map(lambda p: -p, start)))])

    return np.asarray([[away(theta) for theta in row] for row in thetas])
