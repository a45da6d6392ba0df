"""What a single array of a golden case must be: there, of a shape, of a type, finite, in range.

Every refusal is a ValueError that names the array, what was expected and what was found.
"""

from __future__ import annotations

from collections.abc import Collection

from ..backend import Array, host

Arrays = dict[str, Array]  # a file: host arrays by their names
Sizes = dict[str, int]  # what the letters of shapes stand for, as far as it is known


def get(arrays: Arrays, name: str) -> Array:
    """The array of that name."""
    if name not in arrays:
        refuse(name, "in every case of this kind", "nothing: it is missing")
    return arrays[name]


def real(arrays: Arrays, name: str, letters: str, sizes: Sizes) -> Array:
    """Finite real numbers of the shape that the letters say, as float64: float32 is widened."""
    array = get(arrays, name)
    check_shape(name, array, letters, sizes)
    check_real(name, array)
    check_finite(name, array)
    return array.astype("float64")


def labels(arrays: Arrays, name: str, letters: str, sizes: Sizes) -> Array:
    """int64 in [0, V), of the shape that the letters say."""
    array = get(arrays, name)
    check_shape(name, array, letters, sizes)
    if array.dtype.kind not in "iu":
        refuse(name, "integers", array.dtype)
    outside = (array < 0) | (array >= sizes["V"])
    if outside.any():
        bad = first(outside)
        expected = f"integers in [0, V) = [0, {sizes['V']})"
        refuse(name, expected, f"{array[bad]} at index {bad}")
    return array.astype("int64")


def number(arrays: Arrays, name: str) -> float:
    """A finite real scalar; an integer is as good."""
    array = get(arrays, name)
    check_shape(name, array, "", {})
    if array.dtype.kind not in "iu":
        check_real(name, array)
    check_finite(name, array)
    return float(array)


def count(arrays: Arrays, name: str, least: int) -> int:
    """An integer scalar, at least ``least``."""
    array = get(arrays, name)
    check_shape(name, array, "", {})
    if array.dtype.kind not in "biu":
        refuse(name, "an integer", f"{array.dtype} {array}")
    if array < least:
        refuse(name, f"an integer >= {least}", array)
    return int(array)


def choice(arrays: Arrays, name: str, choices: Collection[str]) -> str:
    """A scalar string among ``choices``."""
    array = get(arrays, name)
    check_shape(name, array, "", {})
    value = array.item()
    value = value.decode("ascii", "replace") if isinstance(value, bytes) else value
    if value not in choices:
        refuse(name, f"one of {', '.join(choices)}", repr(value))
    return value


def check_shape(name: str, array: Array, letters: str, sizes: Sizes) -> None:
    """Compare the letters that are known with this array's sizes, and learn the others from it. The
    letter 1 is 1.
    """
    found, pattern = tuple(array.shape), f"({','.join(letters)})"
    known = [1 if letter == "1" else sizes.get(letter) for letter in letters]
    fits = len(found) == len(known) and all(
        size in (None, here) for size, here in zip(known, found, strict=True)
    )
    if not fits:
        shape = ", ".join(str(sizes.get(letter, letter)) for letter in letters)
        expected = f"shape {pattern} = ({shape})" if letters else "shape () (a scalar)"
        refuse(name, expected, found)
    for letter, size in zip(letters, found, strict=True):
        if not size and letter not in "TP":  # no tokens, or none before them
            refuse(name, f"{letter} >= 1 in shape {pattern}", found)
        sizes[letter] = size


def check_real(name: str, array: Array) -> None:
    """Either byte order will do."""
    if array.dtype.kind != "f" or array.dtype.itemsize not in (4, 8):
        refuse(name, "float64 or float32", array.dtype)


def precision(array: Array) -> str:
    """ "float32" for an array of it, "float64" for all others: a whole number is exact."""
    return "float32" if array.dtype.kind == "f" and array.dtype.itemsize == 4 else "float64"


def check_finite(name: str, array: Array) -> None:
    """Name the first entry that is not finite."""
    wrong = ~host.isfinite(array)
    if wrong.any():
        bad = first(wrong)
        refuse(name, "finite numbers", f"{array[bad]}" + (f" at index {bad}" if bad else ""))


def first(mask: Array) -> tuple[int, ...]:
    """Where a mask is true for the first time."""
    return tuple(int(i) for i in host.argwhere(mask)[0])


def refuse(name: str, expected: object, found: object) -> None:
    """Raise ValueError: ``name``: expected this, found that."""
    raise ValueError(f"{name}: expected {expected}, found {found}")
