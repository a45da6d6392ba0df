"""The whole suite on another array library, without a test knowing it.

    FWL_REF_BACKEND=numpy     the tests call the package as it is (the default)
    FWL_REF_BACKEND=strict    array_api_strict, on a device that is not the host
    FWL_REF_BACKEND=cupy      CuPy on the current GPU
    python -m tests.backends  the suite on every backend there is; what `make test` runs

Tests are written in NumPy. Away from NumPy, a test module that imports a function of the package is
given a stand-in for it: host arrays among the arguments are moved to the device, the package
computes there, arrays in the result are moved back. Functions that a test hands to the package (a
loss to differentiate, a mutant in the place of an op) are turned round the same way. So a test sees
NumPy arrays only, the package sees arrays of the device only, and the same assertions hold it to
account with the same tolerances. Three more things:

- every call is checked for purity: an argument that the package changed in place on the device is
  an error;
- a call that already carries arrays of another library passes through as it is;
- what is about the host alone is marked ``host``, with its reason, and is left out elsewhere:
  ``HOST_ONLY`` below, or in a test file
  ``pytestmark = pytest.mark.host("why")``. A test that is not marked and still moves no array is
  counted too.
"""

from __future__ import annotations

import abc
import builtins
import functools
import importlib
import inspect
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from typing import Any

import array_api_compat
import numpy as np

import fwl_ref
from fwl_ref.backend import Array, BackendError, backend_target, is_host, like, to_numpy
from fwl_ref.lm.data import Batch, Corpus, Document

BACKENDS = ("numpy", "strict", "cupy")
NAME = os.environ.get("FWL_REF_BACKEND", "numpy")
REQUIRED = {"numpy", "strict", *filter(None, os.environ.get("FWL_REF_REQUIRE", "").split(","))}  # under CI=true these must be there

# Modules that work on files, text and host arrays and call the others: their arguments stay where
# they are.
HOST_MODULES = {
    "adapt.command", "adapt.documents", "adapt.figure", "adapt.plan", "adapt.rows", "adapt.run", "adapt.settings", "adapt.store",
    "adapt.study", "adapt.table", "lm.tune", "lm.mixture",
    "pretrained", "pretrained.extra", "pretrained.gguf_file", "pretrained.load", "pretrained.names",
    "pretrained.on_top", "pretrained.safetensors_folder", "pretrained.source", "pretrained.tokens",
    "backend", "files", "lm.checkpoint", "lm.corpus", "lm.data", "lm.reading", "lm.footprint", "lm.seen", "lm.table", "lm.table_plot",
    "lm.position", "lm.side_by_side", "lm.commands.common", "lm.commands.train", "lm.commands.evaluate", "lm.commands.generate",
    "demo.compare", "demo.cost", "demo.run",
    "demo.parallel", "demo.plots", "demo.report", "verify.cases", "verify.measure", "verify.device", "verify.report", "verify.selftest",
    "audit.check", "audit.command", "audit.diagnosis", "audit.evaluator", "audit.probes",
    "verify.golden", "verify.golden_answers", "verify.golden_fields", "verify.golden_block", "verify.golden_rules", "__main__",
    "verify.golden_around", "verify.golden_ops",
    "testing.cases", "testing.command", "testing.compare", "testing.diagnose", "testing.faults.backward", "testing.faults.common",
    "testing.faults.numbers", "testing.faults.own", "testing.faults.state", "testing.faults.table",
    "testing.kernel", "testing.layouts", "testing.libraries",
    "testing.options", "testing.plugin", "testing.subjects", "testing.trial", "testing",
}  # fmt: skip
HOST_FUNCTIONS = {"bits_per_byte", "print_table", "sample"}  # what is done with losses and logits once they are home
HOST_TYPES = (Document, Corpus, Batch)  # text is host data wherever it goes
NUMBERS = {"int", "float", "bool", "int | None", "float | None"}  # annotations of what is no array even if NumPy made it

# Node ids (fnmatch patterns) of tests that are about the host alone, and why.
COMPLEX = "differentiates with complex numbers, which the ops need not take elsewhere"
VALUES = "values are checked on the host, before they are moved"
HOST_ONLY = {
    "tests/test_structure.py*": "reads source files and docs",
    "tests/lm/test_data.py*": "text and files",
    "tests/verify/test_golden.py*": "files; cases are host arrays, and are moved by --backend",
    "tests/test_bad_input.py::test_labels_*": VALUES,
    "tests/test_bad_input.py::test_weights_that_are_negative*": VALUES,
    "tests/test_bad_input.py::test_a_stream_refuses_what_the_block_refuses": VALUES,
    "tests/test_bad_input.py::test_a_step_size_is_finite*": VALUES,
    "tests/test_bad_input.py::test_a_decay_outside_its_range_is_refused*": VALUES,
    "tests/test_bad_input.py::test_the_normalizer_of_the_oracle_is_above_0*": VALUES,
    "tests/test_gradcheck.py::test_float16_has_too_few_digits*": "float16 is NumPy's and CuPy's, not the standard's",
    "tests/test_bad_input.py::test_a_refused_call_changes_no_argument": VALUES,
    "tests/test_bad_input.py::test_a_model_refuses_*": VALUES,
    "tests/test_bad_input.py::test_messages_have_no_placeholders": VALUES,
    "tests/test_bad_input.py::test_mixed_libraries_are_refused(step sizes)": "makes its own mixture of libraries",
    "tests/ops/test_laws.py::test_ops_accept_non_contiguous_inputs*": "strides of NumPy",
    "tests/*complex_step*": COMPLEX,
    "tests/rules/test_ttt.py::test_the_inner_loss_its_gradient_and_their_adjoints*": COMPLEX,
    "tests/*on_any_array_library*": "compares NumPy with the strict library itself",
}

moved = [0]  # arrays moved to the device so far


def missing(name: str) -> str:
    """Why the backend ``name`` cannot run here; empty if it can."""
    try:
        target_of(name)
    except (ImportError, BackendError) as error:
        return str(error)
    return ""


def target_of(name: str) -> Array:
    """An empty array where the backend computes."""
    if name == "strict":
        import array_api_strict

        return array_api_strict.zeros(0).to_device(array_api_strict.Device("device1"))
    return backend_target(name)


def described(name: str) -> str:
    """The backend with its versions, or why there is none."""
    if name not in BACKENDS:
        return f"{name}: unknown, expected one of {', '.join(BACKENDS)}"
    reason = missing(name)
    if reason:
        return f"{name} ({reason.split(': pip')[0]})"
    if name == "strict":
        return f"array_api_strict {version('array-api-strict')} on device1"
    if name == "cupy":
        import cupy

        return f"cupy {cupy.__version__} on {cupy.cuda.runtime.getDeviceProperties(0)['name'].decode()}"
    return f"numpy {np.__version__}"


def absent_required() -> list[str]:
    """Backends that must be there and are not."""
    return [f"{name}: {missing(name)}" for name in sorted(REQUIRED) if missing(name)]


def host_file(path: Path) -> str:
    """Why a whole test file is about the host, by its ``pytestmark`` or by ``HOST_ONLY``; empty if it
    is not. The file is read, not imported: what it imports may take seconds.
    """
    mark = re.search(r'^pytestmark = \[?\s*pytest\.mark\.host\("(.*?)"\)', path.read_text(encoding="utf-8"), re.MULTILINE)
    return mark[1] if mark else host_reason(path.relative_to(Path(__file__).parents[1]).as_posix())


def host_reason(nodeid: str) -> str:
    """Why a test is left out elsewhere than on NumPy, by ``HOST_ONLY``; empty if it is not."""
    return next((reason for pattern, reason in HOST_ONLY.items() if fnmatch(nodeid.replace("[", "(").replace("]", ")"), pattern)), "")


# Crossing the boundary
# -------------------------------------------------------------------------------------------------------


def _is_device(value: Any) -> bool:
    return (hasattr(value, "__array_namespace__") or array_api_compat.is_cupy_array(value)) and not is_host(value)


def _carries_device(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return any(_carries_device(v) for v in value)
    return any(_carries_device(v) for v in value.values()) if isinstance(value, dict) else _is_device(value)


class Crossing:
    """The moves of one call. What goes out and comes back is the same object: tests may ask ``a is
    b``.
    """

    def __init__(self) -> None:
        self.twin: dict[int, Any] = {}
        self.alive: list = []  # so that no id is used twice
        self.sent: list[tuple[Array, Array]] = []

    def out(self, value: Any) -> Any:
        """Host -> device."""
        if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
            return self._once(value, self._send)
        if isinstance(value, np.generic):
            return self._send(np.asarray(value))
        return self._through(value, self.out, handed)

    def home(self, value: Any) -> Any:
        """Device -> host."""
        if _is_device(value):
            return self._once(value, lambda a: np.array(to_numpy(a)))
        return self._through(value, self.home, stand_in)

    def check_pure(self, name: str) -> None:
        """Nothing that was sent was changed."""
        for before, array in self.sent:
            assert np.array(to_numpy(array)).tobytes() == before.tobytes(), f"{name} changed an argument of shape {before.shape} in place"

    def _send(self, value: np.ndarray) -> Array:
        moved[0] += 1
        array = like(np.array(value, order="C"), TARGET)
        self.sent.append((np.array(to_numpy(array)), array))  # as it arrived: CuPy takes the sign off a scalar -0.0
        return array

    def _once(self, value: Any, move: Callable) -> Any:
        if id(value) not in self.twin:
            new = move(value)
            self.alive += [value, new]
            self.twin |= {id(value): new, id(new): value}
        return self.twin[id(value)]

    def _through(self, value: Any, move: Callable, turn: Callable) -> Any:
        """Into tuples, lists, dictionaries, iterators and functions; anything else is what it is."""
        if isinstance(value, HOST_TYPES) or not isinstance(value, tuple | list | dict | Iterator | Callable):
            return value
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            plain = {f for f, a in type(value).__annotations__.items() if a in NUMBERS}
            parts = [_plain(v) if f in plain else move(v) for f, v in zip(value._fields, value, strict=True)]
            return self._rebuilt(value, parts, type(value)._make)
        if isinstance(value, tuple | list):
            return self._rebuilt(value, [move(v) for v in value], type(value))
        if isinstance(value, dict):
            return {k: move(v) for k, v in value.items()}
        return map(move, value) if isinstance(value, Iterator) else turn(value)

    def _rebuilt(self, value: Any, parts: list, make: Callable) -> Any:
        if all(a is b for a, b in zip(value, parts, strict=True)):
            return self.twin.get(id(value), value)
        return self._once(value, lambda _: make(parts))


def _plain(value: Any) -> Any:
    """A number that NumPy made where a plain one belongs."""
    return value.item() if isinstance(value, np.generic) else value


class StandIn:
    """A function of the package as a test sees it: NumPy in, NumPy out."""

    def __init__(self, function: Callable) -> None:
        functools.update_wrapper(self, function)
        self.original = function
        try:
            parameters = inspect.signature(function).parameters
        except (TypeError, ValueError):
            parameters = {}
        self.names = list(parameters)
        self.plain = {n for n, p in parameters.items() if p.annotation in NUMBERS}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if _carries_device((args, kwargs)):
            return self.original(*args, **kwargs)
        crossing, names = Crossing(), [*self.names, *[""] * len(args)]
        args = [_plain(a) if n in self.plain else crossing.out(a) for n, a in zip(names, args, strict=False)]
        kwargs = {n: _plain(a) if n in self.plain else crossing.out(a) for n, a in kwargs.items()}
        result = self.original(*args, **kwargs)
        crossing.check_pure(getattr(self.original, "__name__", "a function"))
        return crossing.home(result)

    def __reduce__(self) -> tuple:
        return getattr, (importlib.import_module(self.original.__module__), self.original.__name__)


class Handed:
    """A test's function as the package sees it: arrays of the device in and out."""

    def __init__(self, function: Callable) -> None:
        functools.update_wrapper(self, function, updated=())
        self.original = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        crossing = Crossing()
        args, kwargs = crossing.home(args), {n: crossing.home(a) for n, a in kwargs.items()}
        return crossing.out(self.original(*args, **kwargs))


_stand_ins: dict[int, StandIn] = {}


def stand_in(value: Any) -> Any:
    """For a function that the package wrote its stand-in; the test's own function for one that it
    had handed over.
    """
    if isinstance(value, Handed):
        return value.original
    if not isinstance(value, types.FunctionType) or not value.__module__.startswith("fwl_ref"):
        return value
    if _module(value.__module__) in HOST_MODULES or value.__name__ in HOST_FUNCTIONS:
        return value
    if "<locals>" in value.__qualname__:
        return StandIn(value)
    return _stand_ins.setdefault(id(value), StandIn(value))


def handed(value: Any) -> Any:
    """The package's function for a stand-in; a test's function turned round; the package's own
    function as it is.
    """
    if isinstance(value, StandIn):
        return value.original
    if not callable(value) or isinstance(value, type | Handed) or (getattr(value, "__module__", None) or "").startswith("fwl_ref"):
        return value
    return Handed(value)


# What a test module imports
# --------------------------------------------------------------------------------------------------


class Facade:
    """A module of the package as tests see it: its functions are stand-ins, and what is set on it
    is set on the module itself.
    """

    __slots__ = ("module",)

    def __init__(self, module: types.ModuleType) -> None:
        object.__setattr__(self, "module", module)

    def __getattr__(self, name: str) -> Any:
        return facade(getattr(object.__getattribute__(self, "module"), name))

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.module, name, handed(value))

    def __delattr__(self, name: str) -> None:
        delattr(self.module, name)


def _module(name: str) -> str:
    return name.removeprefix("fwl_ref").removeprefix(".")


@functools.cache
def _facade_of(module: types.ModuleType) -> Facade:
    return Facade(module)


def facade(value: Any) -> Any:
    """Modules of the package become facades, its functions stand-ins."""
    if not isinstance(value, types.ModuleType):
        return stand_in(value)
    ours = value.__name__.split(".")[0] == "fwl_ref" and _module(value.__name__) not in HOST_MODULES
    return _facade_of(value) if ours else value


class _Index(abc.ABC):  # noqa: B024 only for isinstance
    """What ``typing.SupportsIndex`` is, remembered type by type."""

    @classmethod
    def __subclasshook__(cls, kind: type) -> bool:
        return hasattr(kind, "__index__")


def _quicken(array: Array) -> None:
    """Four checks of the strict library with the same answers in half the time: small arrays spend
    most of it there.
    """
    kind, dtype, library = type(array), type(array.dtype), array.__array_namespace__()
    kind.__array_namespace__ = lambda self, /, *, api_version=None: library  # its own goes through all flags, and changes none
    slow = dtype.__eq__  # looks for NumPy's dtypes first, to warn
    dtype.__eq__ = lambda self, other: self._np_dtype == other._np_dtype if type(other) is dtype else slow(self, other)
    home = sys.modules[kind.__module__]
    home.SupportsIndex, home._all_dtypes = _Index, frozenset(home._all_dtypes)


def install() -> None:
    """From here on, modules of the suite that import the package get facades; the package itself
    imports as before.
    """
    for found in pkgutil.walk_packages(fwl_ref.__path__, "fwl_ref."):
        if _module(found.name) not in HOST_MODULES:
            importlib.import_module(found.name)
    if NAME == "strict":
        _quicken(TARGET)
    train = importlib.import_module("fwl_ref.lm.train")
    start = train.initialize  # training that starts from nothing starts on the device
    train.initialize = lambda *args, **kwargs: Crossing().out(start(*args, **kwargs))
    plain = builtins.__import__

    def for_tests(name: str, globals: dict | None = None, locals: dict | None = None, fromlist: Any = (), level: int = 0) -> Any:
        module = plain(name, globals, locals, fromlist, level)
        importer = (globals or {}).get("__name__") or ""
        ours = level == 0 and name.split(".")[0] == "fwl_ref" and importer.startswith("tests.")
        return facade(module) if ours and importer not in (__name__, "tests.conftest") else module

    builtins.__import__ = for_tests


# All backends in turn
# --------------------------------------------------------------------------------------------------------


def said(name: str, part: str) -> str:
    return f"{described(name)}, {part}" if part else described(name)


def main(arguments: list[str]) -> int:
    """The suite on every backend there is, side by side, NumPy's in two halves that start at its two
    ends and meet: it is the longest. What pytest says of the first is shown as it comes, of the
    others at the end.

    ``--quick``: on NumPy alone, and each test with its first and its last parameters only, slow
    ones not at all. The rest is for pytest.
    """
    quick, arguments = "--quick" in arguments, [a for a in arguments if a != "--quick"]
    profile = os.environ.get("HYPOTHESIS_PROFILE", "few" if quick else "quick")
    absent, running = absent_required(), {}
    claims = tempfile.TemporaryDirectory()
    parts = [("numpy", "first half"), ("numpy", "last half"), *((name, "") for name in BACKENDS if name != "numpy")]
    for name, part in parts:
        if missing(name) or (quick and name != "numpy"):
            continue
        # the mathematics has its many examples on NumPy; elsewhere two of each show that the library
        # does the same. One BLAS thread each: the arrays are small, and two suites with two threads
        # each wait for one another
        environment = (
            {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
            | os.environ
            | {"FWL_REF_BACKEND": name, "HYPOTHESIS_PROFILE": profile if name == "numpy" else "few"}
        )
        environment |= {"FWL_REF_HALF": f"{part.split()[0]}:{claims.name}"} if part else {}
        environment |= {"FWL_REF_ENDS": "1"} if quick else {}
        output = tempfile.TemporaryFile("w+") if running else None  # noqa: SIM115 read below
        running[name, part] = (output, subprocess.Popen([sys.executable, "-m", "pytest", *arguments], env=environment, stdout=output))
    failed = []
    for (name, part), (output, process) in running.items():
        if process.wait():
            failed.append((name, part))
        if output:
            output.seek(0)
            print(f"\nThe suite on {said(name, part)}:\n{output.read()}", flush=True)
    claims.cleanup()
    left_out = "NOT RUN, left out of the quick form:" if quick else "NOT RUN"
    for name, part in parts:
        absence = "NOT RUN" if missing(name) else left_out
        verdict = "FAILED" if (name, part) in failed else "passed" if (name, part) in running else absence
        print(f"{verdict}  {said(name, part)}")
    if absent and os.environ.get("CI", "").lower() not in ("", "0", "false"):
        print(f"CI=true, and a required backend is missing: {'; '.join(absent)}")
        return 3
    return 1 if failed else 0


TARGET = target_of(NAME) if NAME in BACKENDS and not missing(NAME) else None

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
