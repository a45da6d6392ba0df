"""Write docs/peers.md: what other people's programs computed, and how far this project's answers are from theirs.

    python tools/peers.py [--check]
    python tools/peers.py fresh [--python PYTHON] [--write]

The first reads ``tests/peers/manifest.json`` and recomputes every stored case. The page states the power of ten above the largest error, so
that it is the same on every machine whose rounding is no worse; ``--check`` writes nothing and fails if the page is stale.

The second needs a package index. It installs those programs that are packages into ``build/peers``, has them answer the inputs of the
stored cases anew (``tools/fresh``), compares, and prints the table; ``--write`` puts it on the page. With ``--python``, an interpreter that
has the programs, nothing is installed. Exit status 1 if an answer differs, or if a program that disagrees with itself is not on the side
that the page says.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from fwl_ref.verify.golden import Result, check_folder

ROOT = Path(__file__).resolve().parent.parent
FOLDER, PAGE = ROOT / "tests" / "peers", ROOT / "docs" / "peers.md"
OPEN, CLOSE = "<!-- from here: tools/peers.py -->", "<!-- to here -->"
FRESH_OPEN, FRESH_CLOSE = "<!-- from here: tools/peers.py fresh -->", "<!-- to here: fresh -->"
TORCH = "torch==2.13.0"  # what the stored answers were computed with
PACKAGES = (("numpy",), (TORCH,), ("fla-core", TORCH), ("transformers", TORCH), ("titans-pytorch", TORCH), ("jax",))
RTOL = 1e-12
EXACT, APART = 1e-6, 1e-5  # finite differences agree, or two answers are not one


def bound(error: float) -> str:
    """The power of ten above it."""
    return f"1e{math.ceil(math.log10(max(error, 1e-15)))}"


def tables() -> str:
    """One table for each program: cases, what they compare, the bound on the error."""
    manifest = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))
    errors = {Path(r.file).stem: r.worst.error for r in check_folder(FOLDER) if not r.problem}
    lines = []
    for program, cases in manifest.items():
        lines += ["", f"## {program}", "", "| function | case | agrees within | in the case's variables |", "|:--|:--|--:|:--|"]
        for case in cases:
            within = bound(errors[case["case"]]) if case["case"] in errors else "1e-12"
            kind = " ".join(case["case"].split("_")[1:-1])
            lines.append(f"| `{case['function']}` | {kind} | {within} | {case['mapping']} |")
        lines += ["", *(f"Source: {source}." for source in dict.fromkeys(case["source"] for case in cases))]
    return "\n".join([OPEN, *lines, "", CLOSE])


# The comparison made afresh
# ----------------------------------------------------------------------------------------------------------------------------------------


def installed(folder: Path) -> Path:
    """The interpreter of a new environment in which every package is that can be had."""
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    for packages in PACKAGES:
        print(f"installing {packages[0]}", flush=True)
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages]
        if subprocess.run(command, stderr=subprocess.DEVNULL).returncode:
            print(f"{packages[0]} could not be installed", flush=True)
    return python


def answered_afresh(python: Path, out: Path) -> dict[str, Any]:
    """The report of tools/fresh; its answers lie under ``out``."""
    quick = {"TRANSFORMERS_VERBOSITY": "error", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    command = [str(python), "-m", "tools.fresh", str(FOLDER), str(out)]
    subprocess.run(command, check=True, cwd=ROOT, env=os.environ | quick)
    return json.loads((out / "report.json").read_text(encoding="utf-8"))


def compared(out: Path, name: str) -> dict[str, Result]:
    """The cases that a program answered, by their names."""
    if not (out / name).is_dir():
        return {}
    results = {Path(r.file).stem: r for r in check_folder(FOLDER, answers=out / name, rtol=RTOL)}
    return {case: r for case, r in results.items() if (out / name / f"{case}.npz").exists()}


def programs(report: dict[str, Any], out: Path) -> tuple[list[str], bool]:
    """The table program, version, function, what agrees, to what; and whether all of it agrees."""
    lines, good = ["| program | function | cases | answers compared | agree within |", "|:--|:--|--:|--:|--:|"], True
    for name, entry in report["programs"].items():
        results = compared(out, name)
        good = good and all(r.ok for r in results.values()) and not entry["failed"]
        version = entry["version"] or name
        for function in dict.fromkeys(entry["answered"].values()):
            rows = [r for case, r in results.items() if entry["answered"][case] == function]
            number, note = sum(len(r.arrays) for r in rows), entry["notes"].get(function, "")
            wrong = [f"{r.file}: {r.problem or r.worst}" for r in rows if not r.ok]
            within = f"**differs**: {'; '.join(wrong)}" if wrong else bound(max(r.worst.error for r in rows))
            lines.append(f"| {version} | `{function}`{f', {note}' if note else ''} | {len(rows)} | {number} | {within} |")
        lines += [f"| {version} | {words} | | | could not be asked |" for words in dict.fromkeys(entry["failed"].values())]
        if "absent" in entry:
            lines.append(f"| {version} | {entry['absent']} | | | not asked |")
    return lines, good


RIGHT = {  # check: (heading, what it shows, rows that must be tiny, rows that must not)
    "titans_layernorm": (
        "Titans, the gradient through LayerNorm",
        "**Finite differences side with the TTT reference's formula.** `fla/ops/titans/naive.py` divides two of three terms by rstd D, "
        "where the TTT reference beside it divides all three: a pair of parentheses is missing. Its chunked form has the same line, "
        "so comparing the two forms shows nothing. "
        "`titans` here is without LayerNorm; `ttt_linear` has it, and agrees with the TTT reference.",
        (1,),
        (0,),
    ),
    "mesa_solver": (
        "Mesa, the solver",
        "**The exact solver is right.** `naive_mesa_net_CG` adds 1e-5 to p A p and to r r, so that its steps shrink as it converges. "
        "`mesa` here agrees with `naive_mesa_net_exact`.",
        (1, 2),
        (0, 3),
    ),
    "two_combas": (
        "Comba, two references",
        "**Each takes a gradient step, but of two rules.** Comba as published ([Hu et al. 2025](https://arxiv.org/abs/2506.02475)) has, by "
        "its abstract, a transition of a scalar plus a matrix of low rank. S (alpha - beta k k^T) + beta v k^T is one: the chunked "
        "reference, whose gradient is taken at S. The recurrent one takes it behind the gate, at alpha S, as the gated delta rule does; "
        "its transition alpha (1 - beta k k^T) is a scalar plus low rank, too. The library's two Triton kernels take it at S "
        "(`fused_recurrent.py` and `wy_fast.py`, read at 0781577, not run): so does the published rule, as far as programs say. "
        "The paper's own equations were not checked. `dplr` here gives both.",
        (1, 3),
        (0, 2),
    ),
}


def disagreements(report: dict[str, Any]) -> tuple[list[str], bool]:
    """A table for each, and whether finite differences side with whom the page says."""
    lines, good = [], True
    for entry in report["disagreements"]:
        heading, verdict, tiny, large = RIGHT[entry["name"]]
        lines += ["", f"### {heading}", ""]
        if "failed" in entry:
            lines.append(f"Could not be asked: {entry['failed']}")
            continue
        lines += [f"{entry['what']}", "", "| relative difference | median | least to most |", "|:--|--:|--:|"]
        draws = list(entry["rows"].values())
        lines += [f"| {what} | {statistics.median(d):.1e} | {min(d):.0e} to {max(d):.0e} |" for what, d in entry["rows"].items()]
        holds = all(max(draws[i]) < EXACT for i in tiny) and all(statistics.median(draws[i]) > APART for i in large)
        lines += ["", verdict if holds else "**Not so any more**: what is said of this program on the page does not hold for this version."]
        good = good and holds
    return lines, good


def fresh(python: Path | None, write: bool) -> int:
    """Install, ask, compare, print."""
    with tempfile.TemporaryDirectory() as folder:
        report = answered_afresh(python or installed(ROOT / "build" / "peers"), Path(folder))
        table, agree = programs(report, Path(folder))
    rows, hold = disagreements(report)
    versions = report["version"] or "flash-linear-attention is not installed"
    lines = [*table, "", "## Where they disagree with themselves", "", f"With {versions}; 21 random draws for each row.", *rows]
    print("\n".join(lines))
    if write:
        put("\n".join([FRESH_OPEN, "", *lines, "", FRESH_CLOSE]), FRESH_OPEN, FRESH_CLOSE)
    return int(not (agree and hold))


def put(text: str, start: str, end: str, check: bool = False) -> int:
    """Replace a part of the page, marks included; with ``check`` only say whether it would change."""
    old = PAGE.read_text(encoding="utf-8")
    new = old[: old.index(start)] + text + old[old.index(end) + len(end) :]
    if check:
        return int(new != old)
    PAGE.write_text(new, encoding="utf-8")
    return 0


def main() -> int:
    """Write the page, say that it is stale, or make the comparison afresh."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, fail if docs/peers.md is stale")
    again = parser.add_subparsers(dest="action").add_parser("fresh", help="have those programs that are packages answer again")
    again.add_argument("--python", type=Path, help="an interpreter that has them; nothing is installed")
    again.add_argument("--write", action="store_true", help="put the table into docs/peers.md")
    options = parser.parse_args()
    if options.action == "fresh":
        return fresh(options.python, options.write)
    return put(tables(), OPEN, CLOSE, options.check)


if __name__ == "__main__":
    raise SystemExit(main())
