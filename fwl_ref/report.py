"""Write the demo's results: ``demo.json``, ``demo.md``, ``demo.png``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .plots import demo_figure


def write_report(out: Path, labels: dict, results: dict[str, Any], curves: dict, losses: dict, window: int) -> None:
    """Write all three files, each whole or not at all, print the table and say where everything is."""
    out.mkdir(parents=True, exist_ok=True)
    text = markdown(labels, results)
    _write(out / "demo.json", json.dumps(results, indent=1) + "\n")
    _write(out / "demo.md", text)
    demo_figure(out / "demo.png", labels, curves, losses, results, window)
    print("\n" + text)
    print(f"written: {out / 'demo.json'}, {out / 'demo.md'}, {out / 'demo.png'}; models: {out / 'plain.npz'}, {out / 'fast.npz'}")


def markdown(labels: dict[str, str], results: dict[str, Any]) -> str:
    """The table and what was run, as Markdown."""
    bits, times, adds = (results[key] for key in ("bits_per_byte", "relative_time", "relative_multiply_adds"))
    width = max(len(label) for label in labels.values())
    lines = [
        f"| {'reading test documents':{width}} | bits per byte | change against static | time per byte | multiply-adds | step size |",
        f"|:{'-' * (width + 1)}|--------------:|----------------------:|--------------:|--------------:|:----------|",
    ]
    for name, label in labels.items():
        change = 100 * (bits[name] / bits["static"] - 1)
        error = results["change_standard_error"][name]
        shown = "-" if name == "static" else f"{change:+.1f} % (± {error:.1f})"
        cells = (f"{label:{width}}", f"{bits[name]:13.3f}", f"{shown:>21}", f"{times[name]:12.2f}x", f"{adds[name]:12.2f}x")
        lines.append(f"| {' | '.join(cells)} | {results['chosen'][name]} |")
    settings, learned = results["settings"], results["learned"]
    training = settings["training"]
    eta = ", ".join(f"{name} {value:.4f}" for name, value in learned["eta"].items())
    versions, count = results["versions"], len(results["documents"])
    lines += [
        "",
        "Equivalence on the trained model, float64: largest difference between the block's logits and the slow block at "
        f"theta_0 - eta * sum of gradients: {results['equivalence_max_error']:.1e}.",
        "",
        f"Change: bits saved over all bytes; in brackets the standard error over {count} documents. Time: median ratio of "
        f"{settings['timing'][1]} interleaved runs, one thread; static takes {results['microseconds_per_token_static']:.0f} microseconds "
        f"per byte. Step sizes that are not learned were chosen on {settings['validation'][0]} validation documents.",
        "",
        f"Learned: step sizes {eta}; decay {learned['decay']:.4f}.",
        "",
        f"Corpus {settings['corpus']} of Python {versions['python']}; {results['parameters']:,} parameters; {training['steps']} steps of "
        f"{training['batch']} windows of {training['window']} bytes; seed {results['seed']}; {results['machine']}; "
        f"NumPy {versions['numpy']}, BLAS kernel {versions['blas']}; {results['date']}; {results['seconds']:.0f} s in all.",
        "",
    ]
    return "\n".join(lines)


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(text)
    temporary.replace(path)
