"""Answer the stored cases with the programs that are here: ``python -m tools.fresh CASES OUT``, from the folder of the project.

Writes ``OUT/PROGRAM/CASE.npz`` with answers, and ``OUT/report.json``: for every program its version, the cases and functions it answered,
and in words what could not be done; and what programs answer where they disagree with themselves.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from . import disagreements
from .common import import_in_float64

ADAPTERS = ("fla", "hf", "titans", "jax_block")


def version(*packages: str) -> str:
    """fla-core 0.6.0, torch 2.13.0; what is not installed is left out."""
    found = []
    for package in packages:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def cases(manifest: dict[str, list[dict[str, str]]], adapter: Any) -> list[tuple[str, str]]:
    """(file, function): of the adapter's program; JAX answers every case of the block."""
    if adapter.PROGRAM not in manifest:
        rows = [row["case"] for listed in manifest.values() for row in listed]
        return [(case, "jax.grad") for case in rows if "_fwl_" in case or "_dynamic_evaluation_" in case]
    return [(row["case"], row["function"].split(",")[0].split("(")[0]) for row in manifest[adapter.PROGRAM]]


def words(error: Exception) -> str:
    """One line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def one_program(name: str, folder: Path, out: Path) -> dict[str, Any]:
    """Answer what the program can, and say what it cannot."""
    adapter = importlib.import_module(f".{name}", __package__)
    library = "jax" if name == "jax_block" else "torch"
    entry: dict[str, Any] = {"version": version(*dict.fromkeys((adapter.PACKAGE, library))), "notes": adapter.NOTES}
    entry |= {"answered": {}, "failed": {}}
    for module in (library, adapter.MODULE):
        if importlib.util.find_spec(module) is None:
            return entry | {"absent": f"{module} is not installed"}
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    for file, function in cases(manifest, adapter):
        path = folder / f"{file}.npz"
        if not path.exists():  # no case of golden's kinds
            continue
        with np.load(path) as arrays:
            case = dict(arrays)
        try:
            found = adapter.answer(function, case)
        except Exception as error:  # somebody else's program may fail in any way; the others go on
            entry["failed"][file] = f"{function}: {words(error)}"
            continue
        (out / name).mkdir(parents=True, exist_ok=True)
        np.savez(out / name / f"{file}.npz", **found)
        entry["answered"][file] = function
    return entry


def main() -> int:
    """Every program, then every disagreement."""
    folder, out = map(Path, sys.argv[1:3])
    out.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"programs": {}, "disagreements": []}
    try:
        import_in_float64()
    except ImportError as error:
        print(words(error), file=sys.stderr)
    for name in ADAPTERS:
        report["programs"][name] = one_program(name, folder, out)
    for check in disagreements.CHECKS:
        entry: dict[str, Any] = {"name": check.__name__, "what": check.__doc__}
        try:
            draws = [check(seed) for seed in range(disagreements.DRAWS)]
            entry["rows"] = {what: [draw[what] for draw in draws] for what in draws[0]}
        except Exception as error:
            entry["failed"] = words(error)
        report["disagreements"].append(entry)
    report["version"] = version("fla-core", "torch")
    (out / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
