"""What adapters to PyTorch programs share: a case's variables as leaves, float32 read as float64, modules without their packages."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np

Case = dict[str, np.ndarray]
NOT_DIFFERENTIATED = ("kind", "read", "chunk", "stale", "minibatch", "eps", "out", "loss")


def import_in_float64() -> Any:
    """PyTorch, with float64 wherever a program says float32: the references cast to it by name."""
    import torch

    torch.set_default_dtype(torch.float64)
    torch.float32 = torch.float = torch.float64
    torch.Tensor.float = torch.Tensor.double
    return torch


def bare_module(name: str) -> types.ModuleType:
    """A module of a package whose ``__init__`` files are not run: they import kernels for GPUs."""
    parts = name.split(".")
    folder = Path(next(path for path in sys.path if Path(path, parts[0], "__init__.py").exists()))
    for i in range(1, len(parts)):
        package = types.ModuleType(".".join(parts[:i]))
        package.__path__ = [str(folder.joinpath(*parts[:i]))]
        package.__spec__ = ModuleSpec(package.__name__, None, is_package=True)
        sys.modules.setdefault(package.__name__, package)
    return importlib.import_module(name)


def changed(module: types.ModuleType, *changes: tuple[str, str, int]) -> types.ModuleType:
    """The module with some of its text changed: (old, new, how often it is there).

    Raises ValueError if it is not there that often: the program is another one now.
    """
    source = Path(module.__file__).read_text(encoding="utf-8")
    for old, new, times in changes:
        if source.count(old) != times:
            found = f"expected {times} times {old.strip()!r} in {module.__name__}, found {source.count(old)}"
            raise ValueError(f"{found}: the program has changed, look at the adapter")
        source = source.replace(old, new)
    new_module = types.ModuleType(module.__name__)
    exec(compile(source, module.__file__, "exec"), new_module.__dict__)
    return new_module


def answers(case: Case, program: Callable[[dict[str, Any], Case], tuple[Any, dict[str, Any]]], leave_out: tuple[str, ...] = ()) -> Case:
    """Output, final states, loss and gradients of a rule's case by autograd.

    ``program(x, case)`` gets the case's variables as leaves, (B,T,...), and returns the output and the final states by their names.
    """
    import torch

    torch.manual_seed(0)
    names = [n for n in case if n not in NOT_DIFFERENTIATED and not n.startswith(("g_", "cot_", "state_out"))]
    leaves = {n: torch.tensor(np.asarray(case[n], "float64"), requires_grad=True) for n in names}
    if "state_H" in leaves:  # a gradient for symmetric changes
        leaves_in_use = leaves | {"state_H": 0.5 * (leaves["state_H"] + leaves["state_H"].mT)}
    else:
        leaves_in_use = leaves
    out, states = program(leaves_in_use, case)
    loss = (out * torch.tensor(case["cot_out"])).sum()
    for name, state in states.items():
        loss = loss + (state * torch.tensor(case[f"cot_{name}"])).sum()
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    found = {"out": out, "loss": loss} | {n.replace("state", "state_out", 1): a for n, a in states.items()}
    found |= {f"g_{n}": torch.zeros_like(leaves[n]) if g is None else g for n, g in zip(leaves, gradients, strict=True)}
    return {n: a.detach().numpy() for n, a in found.items() if n not in leave_out}


def strict_read(program: Callable, writes_nothing: dict[str, float]) -> Callable:
    """What a program that reads inclusively answers one token later: token t read where the program reads t - 1.

    In front stands a token that writes nothing; queries move one token forward, so each reads what was written before its own token.
    """

    def strict(x: dict[str, Any], case: Case) -> tuple[Any, dict[str, Any]]:
        import torch

        states = {n for n in x if n.startswith("state")}
        tokens = [n for n, a in x.items() if n not in states and a.ndim > 1 and a.shape[:2] == x["q"].shape[:2]]
        front = dict(x)
        for name in tokens:
            if name != "q":
                nothing = torch.full_like(x[name][:, :1], writes_nothing.get(name, 0.0))
                front[name] = torch.cat([nothing, x[name]], 1)
        front["q"] = torch.cat([x["q"], torch.zeros_like(x["q"][:, :1])], 1)
        out, after = program(front, case)
        return out[:, :-1], after

    return strict
