"""docs/adapt.md: its tables are those of the runs whose results are kept."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fwl_ref.adapt.table import interval

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/adapt.md").read_text(encoding="utf-8")
TEXTS = ("stdlib", "topics", "wikitext-2")
TRUE, STALE = "fast, not trained, whitened values, true gradients", "fast, not trained, whitened values"
RMS = "dynamic evaluation, RMS, last 4 layers"
LONGER = f"context 2048, {TRUE}"
pytestmark = pytest.mark.host("reads files")


def kept(name: str) -> Any:
    """benchmarks/results/, as ``adapt`` wrote it."""
    return json.loads((ROOT / "benchmarks/results" / name).read_text(encoding="utf-8"))


def lines(run: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(line["text"], line["way"]): line for line in run["lines"]}


def change(line: dict[str, Any]) -> str:
    return f"{line['change']:+.3f} ± {line['interval']:.3f}"


def row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def compared(run: dict[str, Any], way: str, label: str = "") -> list[str]:
    """The change on three texts, the worst of their documents and of the strange ones."""
    found = lines(run)
    worst = [f"{max(found[text, way]['worst'] for text in TEXTS):+.3f}", f"{found['strange', way]['worst']:+.3f}"]
    return [label or way, *(change(found[text, way]) for text in TEXTS), *worst]


@pytest.fixture(scope="module")
def gpu() -> dict[str, Any]:
    return kept("adapt_gpu.json")


def test_the_table_of_all_ways(gpu: dict[str, Any]) -> None:
    run = gpu["main"]
    ways = list(dict.fromkeys(line["way"] for line in run["lines"]))
    assert len(ways) > 20
    table = "".join(row([*compared(run, way), f"{lines(run)['stdlib', way]['products']:.2f}"]) for way in ways)
    assert table in PAGE
    versions = run["versions"]
    assert all(f"{name} {versions[key]}" in PAGE for name, key in (("CuPy", "cupy"), ("NumPy", "numpy"), ("Python", "python")))
    assert (run["settings"]["steps"], run["settings"]["train_length"]) == (250, 2048)
    trained = sum(int(text.split("documents (")[1].split(" tokens")[0].replace(",", "")) for text in run["texts"])
    assert f"{trained:,} tokens" in PAGE


def test_gains_are_compared_document_by_document(gpu: dict[str, Any]) -> None:
    """What true gradients gain more than the cache and than RMS, with Student's interval; and who is harmed."""
    nats, sources = gpu["main"]["nats"], [document[0] for document in gpu["main"]["documents"]]

    def more(other: str, text: str) -> str:
        found = [b - a for a, b, source in zip(nats[TRUE], nats[other], sources, strict=True) if source == text]
        return f"{np.mean(found):.3f} ± {interval(found):.3f}"

    for other in ("neural cache", RMS):
        first, second, third = (more(other, text) for text in TEXTS)
        assert f"{first}, {second} and {third} more than" in PAGE
    assert len(sources) == 44 and all(a < b for a, b in zip(nats[TRUE], nats["as it is"], strict=True))
    harmed = [(s, a - b) for a, b, s in zip(nats[RMS], nats["as it is"], sources, strict=True) if a > b]
    assert [s for s, _ in harmed] == ["stdlib", *["strange"] * 4]
    assert f"RMS harms four of them (up to {max(h for _, h in harmed):.3f}) and one of `stdlib` ({harmed[0][1]:.3f})" in PAGE


def test_the_table_of_seeds(gpu: dict[str, Any]) -> None:
    runs = [gpu[name] for name in ("main", "seed 1", "seed 2")]
    table = "".join(
        row([way, str(seed), *(change(lines(run)[text, way]) for text in TEXTS)])
        for way in ("plain layer, trained", "fast, trained, carried")
        for seed, run in enumerate(runs)
    )
    assert table in PAGE
    assert [run["settings"]["seed"] for run in runs] == [0, 1, 2]
    for text in TEXTS:  # with nothing trained a seed changes next to nothing
        assert np.ptp([lines(run)[text, TRUE]["change"] for run in runs]) < 2e-3


def test_the_table_of_segments(gpu: dict[str, Any]) -> None:
    runs = {32: gpu["main"], 64: gpu["every 64"], 128: gpu["every 128"]}
    assert all(run["settings"]["refresh"] == tokens for tokens, run in runs.items())
    table = "".join(row(compared(run, TRUE, str(tokens))) for tokens, run in runs.items())
    assert table + row(compared(gpu["main"], STALE, "never taken afresh: stale")) in PAGE
    long = [row(compared(gpu["every 128"], way)) for way in ("context 2048", LONGER, f"{LONGER}, and cache")]
    assert "".join(long) in PAGE


def test_the_table_of_long_documents(gpu: dict[str, Any]) -> None:
    run = gpu["long"]
    found, texts = lines(run), ("stdlib", "wikitext-2-test.txt")

    def cells(way: str) -> list[str]:
        both = [found[text, way] for text in texts]
        return [way, *(cell for line in both for cell in (change(line), ", ".join(f"{q:+.3f}" for q in line["quarters"])))]

    assert "".join(row(cells(way)) for way in dict.fromkeys(way for _, way in found)) in PAGE
    assert (run["settings"]["length"], run["settings"]["test"]) == (16384, 4)


def test_the_table_of_what_is_trained_and_guarded() -> None:
    run = kept("adapt_guards.json")
    ways = list(dict.fromkeys(line["way"] for line in run["lines"]))
    assert "".join(row([*compared(run, way), f"{lines(run)['stdlib', way]['products']:.2f}"]) for way in ways) in PAGE
    plain = run["nats"]["as it is"]
    for guard in ("guard: as it is, true gradients", "guard: as it is, true gradients, trained"):
        assert len(plain) == 44 and all(run["nats"][guard][i] < nats for i, nats in plain.items())  # no document is worse
    harm = {way: f"{lines(run)['strange', way]['worst']:.3f}" for way in (TRUE, "fast, trained through true gradients")}
    assert f"hexadecimal digits by {harm[TRUE]}, and by {harm['fast, trained through true gradients']} after training" in PAGE


def test_the_table_of_equal_segments() -> None:
    run = kept("adapt_segments.json")
    found, ways = lines(run), list(dict.fromkeys(line["way"] for line in run["lines"]))
    assert (run["settings"]["segment"], run["settings"]["refresh"], run["settings"]["test"]) == (32, 32, 4)
    table = [row([way, *(change(found[text, way]) for text in TEXTS), f"{found['stdlib', way]['products']:.2f}"]) for way in ways[1:]]
    assert "".join(table) in PAGE
    ahead = [text for text in TEXTS if found[text, RMS]["change"] < found[text, TRUE]["change"]]
    assert ahead == ["topics", "wikitext-2"]  # as the README says


def test_both_backends_read_the_same(gpu: dict[str, Any]) -> None:
    """docs/gpu.md: the documents that do not come with Python, on the device and on the host."""
    host, means = kept("adapt_guards.json"), []
    for run in (gpu["main"], host):
        nats = run["nats"]["as it is"]
        values = list(nats.values()) if isinstance(nats, dict) else nats
        means.append({d[1]: v for d, v in zip(run["documents"], values, strict=True) if d[0] in ("wikitext-2", "strange")})
    assert means[0].keys() == means[1].keys() and len(means[0]) == 20
    assert max(abs(means[0][name] - means[1][name]) for name in means[0]) < 4e-7
    assert "agree to 4e-7 nats" in (ROOT / "docs/gpu.md").read_text(encoding="utf-8")


def test_the_table_of_times() -> None:
    found = kept("adapting.json")
    assert "\n".join(found["rows"]) in PAGE and found["date"] in PAGE and len(found["rows"]) == 7


def test_the_table_of_all_parameters() -> None:
    """Of two runs that were made before, on two documents of each text."""
    for name, rule in (("adapt_true.json", "RMS"), ("adapt_through.json", "SGD")):
        run, way = kept(name), f"dynamic evaluation, {rule}, all parameters"
        found = lines(run)
        both = [found[text, way] for text in ("stdlib", "topics")]
        assert [line["documents"] for line in both] == [2, 2] and run["settings"]["tune_length"] == 1024
        assert row([way, *map(change, both), f"{both[0]['products']:.2f}"]) in PAGE


def test_the_readme_says_what_the_run_found(gpu: dict[str, Any]) -> None:
    """Every number of its paragraph, in its order."""
    found, readme = lines(gpu["main"]), (ROOT / "README.md").read_text(encoding="utf-8")
    paragraph = readme.split("**On a model that people use?**")[1].split("\n\n")[0]
    gains = {way: [f"{-found[text, way]['change']:.3f}" for text in TEXTS] for _, way in found}
    cost = {way: f"{found['stdlib', way]['products']:.2f}" for _, way in found}
    true = [f"{g} ± {found[text, TRUE]['interval']:.3f}" for g, text in zip(gains[TRUE], TEXTS, strict=True)]
    cache = "neural cache"
    took = next(line for line in kept("adapting.json")["rows"] if "fast, true gradients" in line).split("|")[3].split()[0]
    expected = [*true, cost[TRUE], took, *gains[RMS], cost[RMS], *gains[cache], cost[cache], *gains["context 2048"], cost["context 2048"]]
    numbers = re.findall(r"\d\.\d+(?: ± \d\.\d+)?", paragraph)
    assert numbers == [*expected, gains[STALE][0]]
    assert max(found[text, TRUE]["worst"] for text in (*TEXTS, "strange")) < 0 < found["strange", RMS]["worst"]
    assert abs(found["topics", STALE]["change"]) < found["topics", STALE]["interval"]
