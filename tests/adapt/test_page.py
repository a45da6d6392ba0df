"""docs/adapt.md: its tables are those of the runs whose results are kept."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fwl_ref.adapt.settings import head_products, model_bytes, trunk_products
from fwl_ref.adapt.table import interval
from fwl_ref.adapt.ways_descent import gradient_products
from fwl_ref.adapt.ways_untrained import NORMS
from fwl_ref.lm.llama import LlamaConfig

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/adapt.md").read_text(encoding="utf-8")
TEXTS = ("stdlib", "topics", "wikitext-2")
TRUE, STALE = "fast, not trained, whitened values, true gradients", "fast, not trained, whitened values"
DEEP, THROUGH = "fast, not trained, true gradients, keys of two layers", "fast, trained through true gradients"
RMS = "dynamic evaluation, RMS, last 4 layers"
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
    costs = {way: [f"{lines(run)['stdlib', way][key]:.2f}" for key in ("products", "memory")] for way in ways}
    table = "".join(row([*compared(run, way), *costs[way]]) for way in ways)
    assert table in PAGE
    versions = run["versions"]
    assert all(f"{name} {versions[key]}" in PAGE for name, key in (("CuPy", "cupy"), ("NumPy", "numpy"), ("Python", "python")))
    assert (run["settings"]["steps"], run["settings"]["train_length"]) == (250, 2048)
    trained = sum(int(text.split("documents (")[1].split(" tokens")[0].replace(",", "")) for text in run["texts"])
    assert f"{trained:,} tokens" in PAGE


def less(gpu: dict[str, Any], other: dict[Any, float], way: str, text: str) -> str:
    """What a way gains more than the means of ``other``, document by document, with Student's interval."""
    nats, sources = gpu["main"]["nats"][way], [document[0] for document in gpu["main"]["documents"]]
    found = [value - nats[int(i)] for i, value in other.items() if sources[int(i)] == text]
    return f"{np.mean(found):.3f} ± {interval(found):.3f}"


def test_gains_are_compared_document_by_document(gpu: dict[str, Any]) -> None:
    """What one way gains more than another, and who is harmed."""
    nats, sources = gpu["main"]["nats"], [document[0] for document in gpu["main"]["documents"]]
    cache, with_cache = dict(enumerate(nats["neural cache"])), dict(enumerate(nats[f"{RMS}, and cache"]))
    for way, other, words in (
        (TRUE, cache, "more than the neural cache"),
        (DEEP, cache, "more than the cache"),
        (f"{DEEP}, and cache", with_cache, "more than RMS"),
    ):
        first, second, third = (less(gpu, other, way, text) for text in TEXTS)
        assert f"{first}, {second} and {third} {words}" in PAGE
    first, second, third = (less(gpu, dict(enumerate(nats[TRUE])), THROUGH, text) for text in TEXTS)
    assert f"{first} and {second} more than with nothing trained" in PAGE and f"which is {third.removeprefix('-')} less" in PAGE
    plain, rules = nats["as it is"], gpu["kept"]
    harmed = {way: [(s, a - b) for a, b, s in zip(nats[way], plain, sources, strict=True) if a >= b] for way in nats}
    assert len(sources) == 44
    for way in (TRUE, DEEP, "fast, not trained, sharp kernel, normalised", "guard: as it is, true gradients, trained"):
        assert harmed[way] == [], way
    for way, harm in (
        (THROUGH, "After training these are harmed by {}"),
        ("neural cache", "one strange document ({})"),
        (RMS, "the last four layers one ({})"),
    ):
        ((source, by),) = harmed[way]
        assert source == "strange" and harm.format(f"{by:.3f}") in PAGE
    head = lines(gpu["main"])["wikitext-2", "plain layer and unembedding, trained"]
    assert [s for s, _ in harmed[head["way"]]].count("wikitext-2") == 12 and f"all twelve articles ({head['change']:.3f} in" in PAGE
    thirty_two = rules[f"segments of 32: {RMS}"]["nats"]
    less_of = {way: [less(gpu, thirty_two, way, text) for text in TEXTS] for way in (TRUE, DEEP, THROUGH)}
    a, b, c = less_of[TRUE]
    assert f"gains {a} and {b} less\nthan true gradients" in PAGE and f"and {c[1:]} more on the seven articles" in PAGE
    a, b, c = less_of[DEEP]
    assert f"Against keys of two layers it is {a} and {b} less and {c[1:]} more;" in PAGE
    a, b, c = less_of[THROUGH]
    assert f"through true gradients {a} and {b} less, and {c[1:]} more." in PAGE
    sgd = rules["dynamic evaluation, SGD, all parameters"]["nats"]
    worst = max(sgd, key=lambda i: sgd[i] - plain[int(i)])
    a, b, _ = (less(gpu, sgd, TRUE, text) for text in TEXTS)
    c = less(gpu, {i: value for i, value in sgd.items() if i != worst}, TRUE, "wikitext-2")
    assert f"on `stdlib` ({a}), ahead of it on `topics` ({b[1:]}), and on WikiText-2 ahead on eleven articles ({c[1:]})" in PAGE
    assert f"overshoots and loses {sgd[worst] - plain[int(worst)]:.3f}" in PAGE and sources[int(worst)] == "wikitext-2"
    delta = dict(enumerate(nats["fast, not trained, delta rule"]))
    assert f"where true gradients gain {less(gpu, delta, TRUE, 'stdlib')} more" in PAGE
    assert [s for s, _ in harmed["fast, not trained, delta rule"]] == ["wikitext-2", "wikitext-2", "strange"]


def test_what_is_added_to_a_longer_context(gpu: dict[str, Any]) -> None:
    """Against the same context, document by document; and whom it harms there."""
    nats, names = gpu["main"]["nats"], [document[1] for document in gpu["main"]["documents"]]
    contexts, worst, harmed = (1024, 2048, 4096), {TRUE: 0.0, THROUGH: 0.0}, {TRUE: set(), THROUGH: set()}
    for way in (TRUE, THROUGH):
        base = dict(enumerate(nats["context 4096"]))
        a, b, c = (less(gpu, base, f"context 4096, {way}", text) for text in TEXTS)
        assert f"{a}, {b} and {c} {'with nothing trained' if way == TRUE else 'trained'}" in PAGE
        for context in contexts:
            change = np.subtract(nats[f"context {context}, {way}"], nats[f"context {context}"])
            worst[way] = max(worst[way], change.max())
            harmed[way] |= {name for name, value in zip(names, change, strict=True) if value > 5e-4}
    assert harmed[TRUE] == {"hex.txt"} and {name for name in harmed[THROUGH] if "article" in name} == {"article-20.txt", "article-41.txt"}
    assert f"by up to {worst[TRUE]:.3f} with nothing trained, and by\n  up to {worst[THROUGH]:.3f} trained" in PAGE
    found = lines(gpu["main"])
    for text in TEXTS:  # eight times the window, and four times with true gradients on top
        assert found[text, "context 4096"]["change"] < min(found[text, f"context 2048, {way}"]["change"] for way in (TRUE, THROUGH))


def test_the_table_by_quarter_and_how_good_the_model_is(gpu: dict[str, Any]) -> None:
    found = lines(gpu["main"])
    for way in ("neural cache", RMS, TRUE, DEEP, THROUGH):
        assert row([way, *(", ".join(f"{q:+.3f}" for q in found[text, way]["quarters"]) for text in TEXTS)]) in PAGE
    for key, words in (("perplexity", "{:.2f}, {:.2f} and {:.2f} a token"), ("bits_per_byte", "{:.3f}, {:.3f} and {:.3f} bits")):
        assert words.format(*(found[text, "as it is"][key] for text in TEXTS)) in PAGE


def test_how_it_is_known_whose_losses_were_kept(gpu: dict[str, Any]) -> None:
    """Rows that were not finished: every article by its name, and of the others those that the page counts."""
    sources = [document[0] for document in gpu["main"]["documents"]]
    for name, entry in gpu["kept"].items():
        known = [sources[i] for i in entry["named"]]
        articles = [i for i in entry["nats"] if sources[int(i)] == "wikitext-2"]
        assert (known.count("stdlib"), known.count("topics"), known.count("wikitext-2")) == (7, 1, len(articles)), name
    rates = [gpu["kept"][f"dynamic evaluation, {rule}, all parameters"]["rate"] for rule in ("RMS", "SGD")]
    assert rates == [3e-6, 0.01] and "rates of 3e-6 (RMS) and 0.01 (SGD)" in PAGE


def test_what_the_page_says_of_single_rows(gpu: dict[str, Any]) -> None:
    """Gains and losses in its sentences."""
    found = lines(gpu["main"])

    def gains(way: str, base: str = "as it is") -> list[str]:
        return [f"{found[text, base]['change'] - found[text, way]['change']:.3f}" for text in TEXTS]

    for way in (TRUE, DEEP, f"{DEEP}, and cache", "plain layer, trained"):
        first, second, third = gains(way)
        assert f"{first}, {second} and {third}" in PAGE, way
    first, second, third = gains(THROUGH)
    assert f"gains {first} and {second} on the kinds" in PAGE and f"on WikiText-2 {third}," in PAGE
    stale, delta, mean = (
        found["wikitext-2", f"fast, not trained, {w}"] for w in ("whitened values", "delta rule", "sharp kernel, normalised")
    )
    assert f"turns {stale['change']:+.3f} on WikiText-2 into {change(delta)}, and gains {gains(delta['way'])[0]} on `stdlib`" in PAGE
    assert f"gives {mean['change']:+.3f} and harms no document" in PAGE
    head = gains("fast and unembedding, trained through true gradients", THROUGH)
    assert f"adds {head[0]} and {head[1][:-1]}" in PAGE and f"takes {head[2][1:]} away" in PAGE


def test_the_table_of_seeds(gpu: dict[str, Any]) -> None:
    now, before = ([gpu[name] for name in ("main", f"{kind}seed 1", f"{kind}seed 2")] for kind in ("", "stale, "))
    ways = (THROUGH, now), ("plain layer, trained", before), ("fast, trained, carried", before)
    table = "".join(
        row([way, str(seed), *(change(lines(run)[text, way]) for text in TEXTS)]) for way, runs in ways for seed, run in enumerate(runs)
    )
    assert table in PAGE
    for runs in (now, before):
        assert [run["settings"]["seed"] for run in runs] == [0, 1, 2] and {run["settings"]["steps"] for run in runs} == {250}
    assert {run["versions"]["device"] for run in now} == {"NVIDIA H200"} and "H100" in before[1]["versions"]["device"]


def test_the_table_of_segments(gpu: dict[str, Any]) -> None:
    runs = {32: gpu["main"], 64: gpu["every 64"], 128: gpu["every 128"]}
    assert all(run["settings"]["refresh"] == tokens for tokens, run in runs.items())
    table = "".join(row(compared(run, TRUE, str(tokens))) for tokens, run in runs.items())
    assert table + row(compared(gpu["main"], STALE, "never taken afresh: stale")) in PAGE


def unfinished(gpu: dict[str, Any], name: str, label: str, cost: str) -> str:
    """A row of means of documents whose losses were kept; in brackets how many, if not twelve."""
    main, values = gpu["main"], gpu["kept"][name]["nats"]
    plain, cells, changes = main["nats"]["as it is"], [], []
    for text in TEXTS:
        found = [value - plain[int(i)] for i, value in values.items() if main["documents"][int(i)][0] == text]
        cells.append(f"{np.mean(found):+.3f} ± {interval(found):.3f}" + ("" if len(found) == 12 else f" ({len(found)})"))
        changes += found
    return row([label, *cells, f"{max(changes):+.3f}", cost])


def test_the_table_of_equal_segments(gpu: dict[str, Any]) -> None:
    found = lines(gpu["main"])
    table = "".join(
        row([*compared(gpu["main"], way)[:5], f"{found['stdlib', way]['products']:.2f}"]) for way in ("neural cache", TRUE, DEEP, THROUGH)
    )
    for rms in (True, False):
        way = RMS if rms else RMS.replace("RMS", "SGD")
        table += unfinished(gpu, f"segments of 32: {way}", f"{way}, a step every 32", cost(4, 32, rms))
    assert table in PAGE


def test_the_table_of_all_parameters(gpu: dict[str, Any]) -> None:
    ways = [(f"dynamic evaluation, {rule}, all parameters", rule == "RMS") for rule in ("RMS", "SGD")]
    assert "".join(unfinished(gpu, way, way, cost(None, 128, rms)) for way, rms in ways) in PAGE


def cost(layers: int | None, segment: int, rms: bool) -> str:
    """Multiply-adds of dynamic evaluation of SmolLM2, as its row counts them, beside the model as it is."""
    c = LlamaConfig(width=576, hidden=1536, layers=30, heads=9, groups=3, head=64, vocabulary=49152, context=2048, tied=True)
    plain = trunk_products(c, 512) + head_products(c)
    moved = model_bytes(c)
    if layers is not None:
        moved = layers * ((moved - 4 * c.vocabulary * c.width) // c.layers)
    return f"{(gradient_products(c, 512, layers) + (2 if rms else 1) * moved / 4 / segment) / plain:.2f}"


@pytest.mark.parametrize("name", ["adapt_gpu.json", "adapt_long.json"])
def test_the_table_of_long_documents(name: str) -> None:
    run = kept(name)["long"] if "gpu" in name else kept(name)
    found, texts = lines(run), ("stdlib", "wikitext-2-test.txt")

    def cells(way: str) -> list[str]:
        both = [found[text, way] for text in texts]
        return [way, *(cell for line in both for cell in (change(line), ", ".join(f"{q:+.3f}" for q in line["quarters"])))]

    assert "".join(row(cells(way)) for way in dict.fromkeys(way for _, way in found)) in PAGE
    assert (run["settings"]["length"], run["settings"]["test"]) == (16384, 4)
    for text in texts:  # true gradients gain more in every quarter than in the one before
        for way in (TRUE, THROUGH) if name == "adapt_long.json" else (TRUE,):
            assert list(found[text, way]["quarters"]) == sorted(found[text, way]["quarters"], reverse=True)


def test_the_table_of_cures() -> None:
    run = kept("adapt_cures.json")
    delta, bound = "fast, not trained, delta rule", "fast, not trained, bounded"
    assert row(compared(run, delta)) + row(compared(run, bound)) in PAGE
    assert run["chosen"][delta]["beta"] == 0.03 and run["chosen"][bound]["most"] == max(NORMS)


def test_the_table_of_little_training_text() -> None:
    run, guards = kept("adapt_guards.json"), ("guard: as it is, true gradients", "guard: as it is, true gradients, trained")
    assert "".join(row(compared(run, way)) for way in (TRUE, THROUGH, *guards)) in PAGE
    plain = run["nats"]["as it is"]
    for guard in guards:
        assert len(plain) == 44 and all(run["nats"][guard][i] < nats for i, nats in plain.items())  # no document is worse
    harm = {way: f"{lines(run)['strange', way]['worst']:.3f}" for way in (TRUE, THROUGH)}
    assert f"hexadecimal digits by {harm[TRUE]}, and by {harm[THROUGH]} after training" in PAGE


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
    assert "\n".join(found["rows"]) in PAGE and found["date"] in PAGE and len(found["rows"]) == 8


def test_the_readme_says_what_the_run_found(gpu: dict[str, Any]) -> None:
    """Every row of its table, in its order, and the numbers below it."""
    found, readme = lines(gpu["main"]), (ROOT / "README.md").read_text(encoding="utf-8")
    part = readme.split("**On a model that people use?**")[1].split("[docs/measurements.md]")[0]
    table = re.findall(r"^\| (.+?) \| (.+) \|$", part, re.M)[1:]
    ways = (TRUE, DEEP, THROUGH, RMS, "neural cache", "context 2048", STALE)
    for (_, cells), way in zip(table, ways, strict=True):
        gains = [f"{-found[text, way]['change']:+.3f} ± {found[text, way]['interval']:.3f}" for text in TEXTS]
        assert cells.split(" | ") == [*gains, f"{found['stdlib', way]['products']:.2f}"], way
    took = [line.split("|")[3].split()[0] for line in kept("adapting.json")["rows"] if "fast, true gradients" in line]
    assert f"they take {took[0]} times as long as the model alone for one document, {took[1]} for four" in part
    assert f"for {cost(4, 32, True)} times" in part
    assert max(found[text, way]["worst"] for text in (*TEXTS, "strange") for way in (TRUE, DEEP)) < 0
    often = gpu["kept"][f"segments of 32: {RMS}"]["nats"]  # level: by less than a hundredth on each text
    assert all(abs(float(less(gpu, often, DEEP, text).split()[0])) < 0.01 for text in TEXTS)
