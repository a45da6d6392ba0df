"""What weights, order and coordinates do (theorems 13 to 15)."""

from __future__ import annotations

from collections.abc import Iterator

from ...backend import Array, as_index, host, like, namespace
from ..cases import D, T, generator, small_case, tokens
from ..measure import Finding, different, same
from ..runs import run


def weights(target: Array, dtype: str) -> Iterator[Finding]:
    """13. Weight 0 is not written, weight 2 is written twice."""
    case, s, xp = small_case(target, dtype, decay=0.0), 3, namespace(target)
    mark = like(host.arange(T) == s, target)  # (T,)
    others = [t for t in range(T) if t != s]
    at = as_index(like(host.asarray(others, dtype="int64"), target))

    absent = run(case._replace(weights=xp.where(mark, 0 * case.weights, case.weights)))
    found = (xp.take(absent.logits, at, axis=1), absent.state)
    yield same("weight 0 = not there", found, tuple(run(tokens(case, others))), dtype)

    double = run(case._replace(weights=xp.where(mark, 2 * case.weights, case.weights)))
    twice = run(tokens(case, [*range(s + 1), *range(s, T)]))
    yield same("weight 2 = twice", twice.state, double.state, dtype)


def order(target: Array, dtype: str) -> Iterator[Finding]:
    """14. Without decay the order of the past does not matter; with it, it does."""
    past = [3, 1, 0, 2]

    def both_orders(decay: float) -> tuple[Array, Array]:
        """Logits of what follows a shuffled past, and the past as it was."""
        case, now = small_case(target, dtype, decay=decay), len(past)
        shuffled = tokens(case, [*past, *range(now, T)])
        return run(shuffled).logits[:, now:, :], run(case).logits[:, now:, :]

    yield same("order of the past does not matter", *both_orders(0.0), dtype)
    yield different("with decay it does", *both_orders(0.3), dtype)


def symmetry(target: Array, dtype: str) -> Iterator[Finding]:
    """15. Rotating the features changes nothing; scaling them is a change of one step size."""
    case, xp = small_case(target, dtype), namespace(target)
    rotation = like(host.linalg.qr(generator(2)(D, D))[0], target, dtype)
    W1 = xp.matmul(xp.matrix_transpose(rotation), case.slow.W1)
    turned = case._replace(x=xp.matmul(case.x, rotation), slow=case.slow._replace(W1=W1))
    yield same("x R and R^T W1", run(turned).logits, run(case).logits, dtype)

    scaled = case._replace(x=2 * case.x, slow=case.slow._replace(W1=case.slow.W1 / 2))
    faster = case._replace(eta=case.eta._replace(W1=4 * case.eta.W1))
    claim = "2 x and W1 / 2 = step size times 4"
    yield same(claim, run(scaled).logits, run(faster).logits, dtype)
