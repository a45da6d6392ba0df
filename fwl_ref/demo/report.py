"""Write the demo's results: ``demo.json``, ``demo.md``, ``demo.png``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..files import whole_file
from .plots import demo_figure


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
    print(
        f"written: {out / 'demo.json'}, {out / 'demo.md'}, {out / 'demo.png'}; models: {out / 'plain.npz'}, {out / 'fast.npz'}"
    )


def markdown(labels: dict[str, str], results: dict[str, Any]) -> str:
    """The table and what was run, as Markdown."""
    bits, times, adds = (
        results[key] for key in ("bits_per_byte", "relative_time", "relative_multiply_adds")
    )
    width = max(len(label) for label in labels.values())
    lines = [
        f"| {'reading test documents':{width}} | bits per byte | change against static | time per byte | multiply-adds | step size |",
        f"|:{'-' * (width + 1)}|--------------:|----------------------:|--------------:|--------------:|:----------|",
    ]
    for name, label in labels.items():
        shown = (
            _change(bits[name], bits["static"], results["change_standard_error"][name])
            if name != "static"
            else "-"
        )
        measured = "not finite" if bits[name] is None else f"{bits[name]:.3f}"
        cells = (
            f"{label:{width}}",
            f"{measured:>13}",
            f"{shown:>21}",
            f"{times[name]:12.2f}x",
            f"{adds[name]:12.2f}x",
        )
        lines.append(f"| {' | '.join(cells)} | {results['chosen'][name]} |")
    settings, learned = results["settings"], results["learned"]
    training = settings["training"]
    eta = ", ".join(f"{name} {value:.4f}" for name, value in learned["eta"].items())
    versions, read, chosen_on = (
        results["versions"],
        len(results["documents"]),
        len(results["validation_documents"]),
    )
    spread = (
        f"in brackets the standard error over {read} documents"
        if read > 1
        else "one document, so its spread is not known"
    )
    lines += [
        "",
        "Equivalence on the trained model, float64: largest difference between the block's logits and the slow block at "
        f"theta_0 - eta * sum of gradients: {results['equivalence_max_error']:.1e}.",
        "",
        f"Change: in bits over all bytes; {spread}. Time: median ratio of "
        f"{settings['timing'][1]} interleaved runs, one thread; static takes {results['microseconds_per_token_static']:.0f} microseconds "
        f"per byte. Step sizes that are not learned were chosen on validation documents ({chosen_on}).",
        "",
        f"Learned: step sizes {eta}; decay {learned['decay']:.4f}.",
        "",
        f"Corpus {settings['corpus']} of Python {versions['python']}; {results['parameters']:,} parameters; {training['steps']} steps of "
        f"{training['batch']} windows of {training['window']} bytes; seed {results['seed']}; {results['machine']}; "
        f"NumPy {versions['numpy']}, BLAS kernel {versions['blas']}; {results['date']}; {results['seconds']:.0f} s in all.",
        "",
    ]
    return "\n".join(lines)


def _change(bits: float | None, static: float | None, error: float | None) -> str:
    """Percent against static, with its standard error if that is known."""
    if bits is None or static is None:
        return "-"
    return f"{100 * (bits / static - 1):+.1f} %" + ("" if error is None else f" (± {error:.1f})")


def _write(path: Path, text: str) -> None:
    with whole_file(path) as file:
        file.write(text.encode("utf-8"))
