"""How a kernel wants its arrays, in the words that kernels use: the options of ``check_kernel``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ..rules.heads import GROUPINGS
from .subjects import Subject

LAYOUTS = ("BTK", "BTHK", "BHTK")
DTYPES = ("float64", "float32", "bfloat16", "float16")


class Options(NamedTuple):
    """Options of ``check_kernel``, by name."""

    read: str = "inclusive"  # or "strict": the state before the token is written
    layout: str = "BTK"  # heads folded into B; "BTHK": (B,T,H,K); "BHTK": (B,H,T,K)
    grouped_values: int = 1  # value heads per head of q and k
    grouping: str = "neighbours"  # value heads 0 and 1 share; "strided": every H-th does
    scale: float | str = 1.0  # the kernel multiplies q by it; "rsqrt": 1 / sqrt(K)
    log_gates: bool = False  # the gate comes as its logarithm, and so does its gradient
    l2norm: float = 0.0  # the kernel divides q and k by sqrt(|.|^2 + this) itself; 0: it does not
    state_layout: str = "KE"  # or "EK": the kernel's state is the transpose
    state: str = "optional"  # an array or None; "always": an array; "never": no such argument
    chunk: int = 16  # tokens per chunk of the kernel: lengths are drawn around its multiples
    multiple_of: int = 1  # lengths are multiples of this
    sizes: dict[str, int] = {}  # sizes the kernel insists on, such as {"K": 64, "E": 64, "H": 2}
    minibatch: int = 4  # tokens whose gradients are taken at one network, or of one update
    within: bool = False  # sequential_block: a token reads what its own segment has written
    place: int = 1  # ttt_..._under_way: how many tokens of the mini-batch are over
    stale: bool = False  # titans, ..._per_chunk: gradients of a chunk taken at its first memory
    eps: float = 1e-6  # ttt_..., titans_mlp, fast_block: of the LayerNorm; l2norm: its own
    packed: bool = False  # one row of documents, and after the state cu_seqlens
    first_order: bool = False  # fast_block: stop the outer gradient at the memory's values
    window: int | None = None  # attention: how many keys a token sees
    dtype: str = "float64"  # of the arrays the kernel gets: see ``compare.tolerance``
    library: str = "numpy"  # what makes them: "torch", "jax", "cupy", ...
    to: Callable[[Any], Any] | None = None  # from a NumPy array; instead of dtype's own conversion

    @property
    def settings(self) -> dict[str, Any]:
        """What is part of the function itself."""
        names = (
            "read",
            "chunk",
            "minibatch",
            "place",
            "within",
            "stale",
            "eps",
            "first_order",
            "window",
        )
        return {name: getattr(self, name) for name in names}

    def factor(self, width: int) -> float:
        """What the kernel multiplies queries of this width by."""
        return width**-0.5 if self.scale == "rsqrt" else float(self.scale)


def check_options(subject: Subject, options: Options) -> Options:
    """The options, if they can be. Raises ValueError naming the option and what to do."""
    if subject.read:
        options = options._replace(read=subject.read)
    _choice("read", options.read, ("inclusive", "strict"))
    _choice("layout", options.layout, LAYOUTS if subject.heads else LAYOUTS[:1])
    _choice("grouping", options.grouping, GROUPINGS)
    _choice("state_layout", options.state_layout, ("KE", "EK"))
    _choice("state", options.state, ("optional", "always", "never"))
    _choice("dtype", options.dtype, DTYPES)
    for name in ("chunk", "multiple_of", "grouped_values", "minibatch"):
        if getattr(options, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(options, name)}")
    if "under_way" in subject.name and not 0 <= options.place < options.minibatch:
        raise ValueError(
            f"place must be from 0 to minibatch - 1 = {options.minibatch - 1}, got {options.place}"
        )
    if options.grouped_values > 1 and options.layout == "BTK":
        raise ValueError('grouped_values needs a layout with heads: "BTHK" or "BHTK"')
    if options.log_gates and not subject.gate:
        raise ValueError(f"log_gates: {subject.name} has no gate that is taken as a logarithm")
    if options.packed and any("T" in letters for letters in subject.shared.values()):
        raise ValueError(f"packed: all sequences of {subject.name} share an array with tokens")
    if isinstance(options.scale, str) and options.scale != "rsqrt":
        raise ValueError(f'scale must be a number or "rsqrt", got {options.scale!r}')
    if (options.l2norm or options.scale != 1.0) and "q" not in subject.tokens:
        raise ValueError(f"scale and l2norm are about q, which {subject.name} does not have")
    if options.l2norm < 0:
        raise ValueError(f"l2norm must be the epsilon under the root, >= 0, got {options.l2norm}")
    if options.state_layout == "EK" and "BKE" not in subject.state.values():
        raise ValueError(f"state_layout: {subject.name} has no state of shape (K,E)")
    if options.dtype == "bfloat16" and options.library == "numpy" and not options.to:
        raise ValueError('NumPy has no bfloat16: give library="torch" or "jax", or to=')
    unknown = set(options.sizes) - set("BHKENFIDVTJ")
    if unknown:
        raise ValueError(f"sizes: no axis is called {', '.join(sorted(unknown))}")
    return options


def _choice(name: str, found: Any, choices: tuple[str, ...]) -> None:
    if found not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {found!r}")
