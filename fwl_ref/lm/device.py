"""To the device and onto it: whole trees and batches of text, moved where the arithmetic happens.

Files, text and random numbers are host data. They are moved once, here; afterwards the arrays
themselves say where to compute. Trees come home one leaf at a time, with ``to_numpy``.
"""

from __future__ import annotations

from typing import Any

from ..backend import Array, Tree, backend_target, is_host, like
from ..tree import tree_map
from .data import Batch


def to_backend(tree: Tree, backend: str) -> Tree:
    """The host arrays of a tree in the library, and on the device, that ``backend`` names; leaves
    that are no arrays stay as they are.

    Raises BackendError if there is no such library or device, saying what to install.
    """
    target = backend_target(backend)

    def move(leaf: Any) -> Any:
        return like(leaf, target) if is_host(leaf) else leaf

    return tree if is_host(target) else tree_map(move, tree)


def batch_like(batch: Batch, target: Array) -> Batch:
    """A batch of text in the library, on the device and in the precision of ``target``."""
    return Batch(
        like(batch.tokens, target),
        like(batch.labels, target),
        like(batch.weights, target, target.dtype),
    )
