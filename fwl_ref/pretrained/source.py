"""What a file of a model offers, whatever its format: a configuration, named tensors of known
shapes, and a way to read one of them.

Nothing of a tensor is read before all names and shapes were compared with the configuration.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple, get_type_hints

from ..backend import Array, Tree, host
from ..lm import gpt2, llama
from ..tree import named_leaves, rebuild

FAMILIES = {"llama": llama, "gpt2": gpt2}  # architectures, as both formats name them


class Source(NamedTuple):
    """An opened file or folder."""

    path: str
    family: str  # "llama" or "gpt2"
    config: Any  # LlamaConfig or Gpt2Config
    names: Tree  # parameters of the family, with the name of a tensor in the place of each array
    transposed: bool  # matrices are stored (outputs, inputs)
    shapes: dict[str, tuple[int, ...]]  # of all tensors there are, as stored
    unused: frozenset[str]  # names without influence on what the model computes
    read: Callable[[str], Array]  # a tensor as a host array of real numbers


def family_of(path: str, architecture: str) -> ModuleType:
    """``fwl_ref.lm.llama`` or ``fwl_ref.lm.gpt2``. Raises ValueError for another architecture."""
    if architecture not in FAMILIES:
        raise ValueError(
            f"{path}: the architecture must be one of {', '.join(FAMILIES)}, got {architecture!r}: "
            "other layers would have to be written first"
        )
    return FAMILIES[architecture]


def required(settings: dict[str, Any], key: str, path: str) -> Any:
    """A setting of a file. Raises ValueError, naming both, if the file does not say."""
    if settings.get(key) is None:
        raise ValueError(f"{path}: the setting {key!r} is missing")
    return settings[key]


def refuse_unless(condition: bool, path: str, what: str) -> None:
    """Raise ValueError: the file asks for a computation that is not written."""
    if not condition:
        raise ValueError(f"{path}: {what} is not supported: the logits would be wrong")


def configured(
    build: Callable[..., Any], settings: dict[str, Any], path: str, tensors: int, *more: Any
) -> Any:
    """``build(settings, path, *more)``, a configuration whose numbers are numbers.

    Raises ValueError, naming the file, if they are not, or if there are more layers than tensors:
    nothing may be made for each of a billion layers that a file only claims.
    """
    try:
        config = build(settings, path, *more)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{path}: a setting of the model has another type ({error})") from None
    for name, kind in get_type_hints(type(config)).items():
        value, kinds = getattr(config, name), (int, float) if kind is float else (kind,)
        if not isinstance(value, kinds):
            raise ValueError(f"{path}: {name} must be of type {kind.__name__}, got {value!r}")
    if config.layers > tensors:
        raise ValueError(f"{path}: it claims {config.layers} layers and has {tensors} tensors")
    return config


def check_source(source: Source) -> None:
    """Raise ValueError, naming the tensor, unless the file has every tensor that its configuration
    asks for, of the right shape, and no other.
    """
    model = FAMILIES[source.family]
    try:
        model.check_config(source.config)
    except ValueError as error:
        raise ValueError(f"{source.path}: {error}") from None
    sizes, axes = model.axis_sizes(source.config), dict(named_leaves(_axes(source)))
    asked = dict(named_leaves(source.names))
    for place, name in asked.items():
        words = axes[place].split(",")
        shape = tuple(sizes[word] for word in words)
        shape = shape[::-1] if _turned(source, place, shape) else shape
        if name not in source.shapes:
            raise ValueError(
                f"{source.path}: the tensor {name!r} is missing; it should have shape {shape}"
            )
        if source.shapes[name] != shape:
            raise ValueError(
                f"{source.path}: the tensor {name!r} must have shape {shape}, as its configuration "
                f"says, found {source.shapes[name]}"
            )
    left = sorted(set(source.shapes) - set(asked.values()) - source.unused)
    if left:
        raise ValueError(
            f"{source.path}: {len(left)} of the tensors would not be used, first {left[0]!r}: "
            f"a {source.family} model with such parts is not supported"
        )


def read_parameters(source: Source, dtype: str = "float32") -> Tree:
    """The parameters of a checked source, as host arrays of one dtype.

    Matrices are views of the stored layout. Raises ValueError as ``check_source``, before it reads,
    and for a tensor with numbers that are not finite.
    """
    check_source(source)
    found = []
    for place, name in named_leaves(source.names):
        with host.errstate(over="ignore"):  # what is not finite is named below
            array = host.asarray(source.read(name), dtype=dtype, order="C")
        if not host.all(host.isfinite(array)):
            raise ValueError(f"{source.path}: the tensor {name!r} is not finite in {dtype}")
        found.append(array.T if _turned(source, place, array.shape) else array)
    return rebuild(source.names, found)


def _axes(source: Source) -> Tree:
    return FAMILIES[source.family].parameter_axes(source.config)


def _turned(source: Source, place: str, shape: tuple[int, ...]) -> bool:
    """Dense layers are (inputs, outputs) here; tables of tokens and positions have one layout."""
    return source.transposed and len(shape) == 2 and place.startswith("trunk.")
