"""The comparisons of the other files reject wrong programs (theorem 19)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ...backend import Array
from ...gradcheck import AdjointError, check_adjoint
from ...tree import tree_map
from ..cases import BlockCase, small_case, with_settings
from ..measure import Finding, different
from ..runs import as_function, run, stale


def teeth(target: Array, dtype: str) -> Iterator[Finding]:
    """19. The comparisons above reject wrong programs."""
    case = small_case(target, dtype)
    oracle, eta = stale(case).logits, case.eta
    mutants = {
        "decay forgotten": case._replace(decay=0 * case.decay),
        "weights forgotten": case._replace(weights=0 * case.weights + 1),
        "two step sizes swapped": case._replace(eta=eta._replace(W1=eta.W2, W2=eta.W1)),
        "normalizer forgotten": with_settings(case, constant=2.0),
    }
    for name, mutant in mutants.items():
        yield different(f"{name}: noticed", run(mutant).logits, oracle, dtype)
    if dtype == "float32":  # differences of float32 are too rough to judge a gradient
        return
    for i, name in enumerate(("x", "the slow parameters", "the step sizes", "the decay")):
        noticed = 1.0 if _refused_without(case, i) else 0.0
        yield Finding(f"gradient of {name} dropped: noticed", noticed, 1.0, must_exceed=True)


def _refused_without(case: BlockCase, dropped: int) -> bool:
    """Whether the gradient check refuses a backward pass with one of its results set to zero."""
    fwd, bwd = as_function(case)

    def wrong(g: tuple, res: Any) -> tuple:
        given = enumerate(bwd(g, res))
        return tuple(tree_map(lambda a: 0 * a, d) if i == dropped else d for i, d in given)

    args = (case.x, case.slow, case.eta, case.decay)
    try:
        check_adjoint(fwd, wrong, args, step=1e-5, rtol=1e-7)
    except AdjointError:
        return True
    return False
