"""Write the demo's results: ``demo.json``, ``demo.md``, ``demo.png``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..files import whole_file
from .plots import demo_figure

HEAD = [
    "reading test documents",
    "bits per byte",
    "change against static",
    "time per byte",
    "multiply-adds",
    "settings",
]


def write_report(
    out: Path, labels: dict, results: dict[str, Any], curves: dict, losses: dict, window: int
) -> None:
    """Write all three files, each whole or not at all, print the table and say where everything is.

    ``results`` is plain data; None stands for a number that is not finite or not known (see
    ``files.finite``).
    """
    out.mkdir(parents=True, exist_ok=True)
    text = markdown(labels, results)
    _write(out / "demo.json", json.dumps(results, indent=1, allow_nan=False) + "\n")
    _write(out / "demo.md", text)
    demo_figure(out / "demo.png", labels, curves, losses, results, window)
    print("\n" + text)
    report, models = ("demo.json", "demo.md", "demo.png"), ("plain.npz", "fast.npz")
    written, trained = (", ".join(str(out / name) for name in names) for names in (report, models))
    own = "" if results["settings"]["shipped"] else f"; models: {trained}"
    print(f"written: {written}{own}")


def markdown(labels: dict[str, str], results: dict[str, Any]) -> str:
    """The table and what was run, as Markdown."""
    return "\n".join([*_table(labels, results), "", *_measured(results), "", _run(results), ""])


def _table(labels: dict[str, str], results: dict[str, Any]) -> list[str]:
    bits, errors = results["bits_per_byte"], results["change_standard_error"]
    times, adds = results["relative_time"], results["relative_multiply_adds"]
    width = max(len(label) for label in labels.values())
    lines = [
        f"| {HEAD[0]:{width}} | {' | '.join(HEAD[1:])} |",
        f"|:{'-' * (width + 1)}|--------------:|----------------------:"
        "|--------------:|--------------:|:----------|",
    ]
    for name, label in labels.items():
        change = "-" if name == "static" else _change(bits[name], bits["static"], errors[name])
        measured = "not finite" if bits[name] is None else f"{bits[name]:.3f}"
        lines.append(
            f"| {label:{width}} | {measured:>13} | {change:>21} "
            f"| {times[name]:12.2f}x | {adds[name]:12.2f}x | {results['chosen'][name]} |"
        )
    return lines


def _measured(results: dict[str, Any]) -> list[str]:
    read, chosen_on = len(results["documents"]), len(results["validation_documents"])
    spread = "one document, so its spread is not known"
    if read > 1:
        spread = f"in brackets the standard error over {read} documents"
    learned = results["learned"]
    eta = ", ".join(f"{name} {value:.4f}" for name, value in learned["eta"].items())
    return [
        "Equivalence on the trained model, float64: largest difference between the block's logits "
        "and the slow block at theta_0 - eta * sum of gradients: "
        f"{results['equivalence_max_error']:.1e}.",
        "",
        f"Change: in bits over all bytes; {spread}. "
        f"Time: median ratio of {results['settings']['timing'][1]} interleaved runs, one thread; "
        f"static takes {results['microseconds_per_token_static']:.0f} microseconds per byte. "
        f"Step sizes that are not learned were chosen on validation documents ({chosen_on}), "
        "and so was the cache. It compares every byte with all before it: its costs are those of a "
        f"document of {results['cache_bytes']:,} bytes, and grow with the length.",
        "",
        f"Learned: step sizes {eta}; decay {learned['decay']:.4f}.",
    ]


def _run(results: dict[str, Any]) -> str:
    settings, versions = results["settings"], results["versions"]
    corpus, training = settings["corpus"], settings["training"]
    comes_with = " of" if corpus in ("stdlib", "topics") else ";"  # these are texts of Python
    return (
        f"Corpus {corpus}{comes_with} Python {versions['python']}; "
        f"{results['parameters']:,} parameters; {training['steps']} steps of "
        f"{training['batch']} windows of {training['window']} bytes"
        f"{', before they came with the package' if settings['shipped'] else ''}; "
        f"seed {results['seed']}; "
        f"{results['machine']}; NumPy {versions['numpy']}, BLAS kernel {versions['blas']}; "
        f"{results['date']}; {results['seconds']:.0f} s in all."
    )


def _change(bits: float | None, static: float | None, error: float | None) -> str:
    """Percent against static, with its standard error if that is known."""
    if bits is None or static is None:
        return "-"
    return f"{100 * (bits / static - 1):+.1f} %" + ("" if error is None else f" (± {error:.1f})")


def _write(path: Path, text: str) -> None:
    with whole_file(path) as file:
        file.write(text.encode("utf-8"))
