"""The benchmarks run, what they report is what they measured, and the programs they compare compute
the same. A docstring that opens with "N:" is a negative control.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import adapting, agreement, bench, processes, ranks, ratios, results, rules, scaling, starts, strange
from benchmarks.agreement import Checked, agree, error
from benchmarks.interleave import compared, in_turn, interleaved
from benchmarks.problem import LLAMA_WORKS, SIZES, SMOLLM2, WORKS, Llama, Size, counted, problem, works
from benchmarks.processes import SideError, process, untuned
from benchmarks.results import Measured, save, summary, table
from benchmarks.sides import ours
from fwl_ref.adapt.trunk import model_on
from fwl_ref.lm.train import TrainSettings
from tests.adapt import small as tiny
from tests.conftest import notes

pytestmark = pytest.mark.host("measures NumPy, and starts processes")

TINY_LLAMA = Llama(SMOLLM2._replace(width=18, hidden=20, layers=2, heads=6, groups=2, head=4, vocabulary=11), 13, 2)
TINY = Size(width=16, layers=1, heads=2, vocabulary=11, window=13, batch=3)
CORES = bench.available()[:1]


def twin(name: str) -> Any:
    """The other side's file; skipped, and said at the end of the run, where its library is absent."""
    library = {"pytorch": "torch", "jaxjit": "jax"}[name]
    try:
        importlib.import_module(library)
    except ImportError as missing:
        notes[f"benchmarks/sides/{name}.py against this project"] = f"{library} is not installed ({missing}): pip install -e '.[bench]'"
        pytest.skip(notes[f"benchmarks/sides/{name}.py against this project"])
    return importlib.import_module(f"benchmarks.sides.{name}")


def uneven(work: str, dtype: str = "float64") -> dict[str, Any]:
    """A tiny problem whose weights are all at random, with chunks that do not divide the window."""
    given, rng = problem(TINY, work, dtype), np.random.default_rng(1)
    moved = {n: (a + 0.1 * rng.standard_normal(a.shape) if a.ndim else a).astype(dtype) for n, a in given["weights"].items()}
    return given | {"weights": moved, "config": given["config"] | {"chunk": 5}}


# What is compared
# ------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("name", "work"), [*(("pytorch", work) for work in WORKS), ("jaxjit", "plain_step"), ("jaxjit", "fast_step")])
def test_the_other_side_computes_the_same_loss_and_gradients(name: str, work: str) -> None:
    """In float64, for every weight; a step has a gradient for each of them. JAX compiles for seconds, so its steps alone."""
    side, given = twin(name), uneven(work)
    loss, found = side.load(given, 1)()
    expected = ours.load(given, 1)()
    assert agree(work, name, (loss, side.host(found)), expected) < 1e-12
    assert set(found) == (set(given["weights"]) if work.endswith("step") else set())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pytorch", "jaxjit"])
def test_the_other_side_reads_as_this_llama_does(name: str) -> None:
    """In float64, weights as views of rows of outputs, as a file's are. N: other pairs are refused, another base is another answer."""
    side, given = twin(name), problem(TINY_LLAMA, "llama_forward", "float64")
    assert given["weights"]["trunk.0.W_q"].T.flags["C_CONTIGUOUS"]
    expected = ours.load(given, 1)()
    assert agree("llama_forward", name, side.load(given, 1)(), expected) < 1e-12
    with pytest.raises(ValueError, match="interleaved"):
        side.load(given | {"config": given["config"] | {"pairs": "halves"}}, 1)
    moved = given | {"config": given["config"] | {"base": 100.0}}
    with pytest.raises(SideError, match="the loss"):
        agree("llama_forward", name, side.load(moved, 1)(), expected)


@pytest.mark.slow
def test_another_function_is_not_timed() -> None:
    """N: a larger chunk is the same function, a faster decay is not; and first order is refused."""
    side, given = twin("pytorch"), uneven("fast_step")
    expected = ours.load(given, 1)()
    loss, found = side.load(given | {"config": given["config"] | {"chunk": 64}}, 1)()
    agree("fast_step", "torch", (loss, side.host(found)), expected)
    weights = given["weights"] | {"decay": given["weights"]["decay"] + 1e-3}
    loss, found = side.load(given | {"weights": weights}, 1)()
    with pytest.raises(SideError, match="nothing is timed"):
        agree("fast_step", "torch", (loss, side.host(found)), expected)
    with pytest.raises(ValueError, match="as it is by default"):
        side.load(given | {"config": given["config"] | {"first_order": True}}, 1)


def test_agreement_is_of_the_loss_and_of_every_gradient() -> None:
    """N: a loss, an entry, a shape, a missing gradient, a number that is not finite, something where nothing should be."""
    g = {"W": np.array([1.0, -4.0]), "eta": np.zeros(())}
    assert agree("step", "torch", (2.0, g | {"W": g["W"] + 4e-12}), (2.0, g)) == pytest.approx(1e-12, rel=1e-3)
    wrong = [
        ((2.1, g), "the loss by torch"),
        ((2.0, g | {"W": g["W"] * [1, 1.001]}), "the gradient of W"),
        ((2.0, g | {"W": np.array([1.0, np.nan])}), "inf away"),
        ((2.0, g | {"W": np.ones(3)}), "inf away"),
        ((2.0, g | {"eta": np.full((), 1e-3)}), "the gradient of eta"),
        ((2.0, {"W": g["W"]}), "only one has eta"),
    ]
    for found, words in wrong:
        with pytest.raises(SideError, match=words):
            agree("step", "torch", found, (2.0, g))
    assert error(np.zeros(2), np.zeros(2)) == 0.0


@pytest.mark.parametrize("kind", ["plain", "fast"])
def test_counted_multiply_adds_are_those_that_a_forward_pass_forms(kind: str) -> None:
    """And a step forms at least twice as many again, since each product has two adjoints."""
    forward, step = (ours.formed(ours.load(problem(TINY, f"{kind}_{what}"), 1)) for what in ("forward", "step"))
    assert forward == counted(TINY, f"{kind}_forward")
    assert forward * 2.9 < counted(TINY, f"{kind}_step") == 3 * forward
    assert 2.5 * forward < step < 4 * forward


# Processes
# ------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_side_answers_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss, seconds, memory; what tunes an allocator or threads does not reach it; an error comes with its words, an end is noticed."""
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "7")
    given = problem(TINY, "fast_step")
    with process("fwl_ref", CORES) as ask:
        assert ask("versions")["numpy"] == np.__version__
        ask("load", given, 1)
        seconds, loss = ask("clock")
        expected, gradient = ours.load(given, 1)()
        assert seconds > 0 and loss == pytest.approx(expected, rel=1e-5)
        assert ask("gradients")[1].keys() == gradient.keys() and ask("formed") > 0
        before, peak = ask("memory")
        assert before is None or 0 < before <= peak
        with pytest.raises(SideError, match="fwl_ref, when asked to load(.|\n)*KeyError"):
            ask("load", {}, 1)
        with pytest.raises(SideError, match="ended, exit status"):
            ask("end", _Ends())


class _Ends:
    """What cannot be read there."""

    def __reduce__(self) -> Any:
        return os._exit, (3,)


def test_the_environment_of_a_side_tunes_nothing() -> None:
    """Everything else stays."""
    tuned = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_TRIM_THRESHOLD_": "1", "XLA_FLAGS": "x"}
    assert untuned({"PATH": "p", "HOME": "h", **tuned}) == {"PATH": "p", "HOME": "h"}


def test_a_library_that_is_absent_is_named_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Exit status 2, nothing started."""
    monkeypatch.setattr(processes, "find_spec", lambda name: None if name == "jax" else object())
    monkeypatch.setattr(processes.subprocess, "Popen", None)
    assert bench.main(["--size", "small"]) == 2
    message = capsys.readouterr().err
    assert sys.executable in message and ": jax. pip install -e '.[bench]'" in message and "--against torch" in message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--threads", "999"], "each thread needs a core"),
        (["--pairs", "0"], "must be at least 1"),
        (["--cores", "987654", "--threads", "1"], "among those that this process may use"),
    ],
)
def test_what_cannot_be_measured_is_refused(words: list[str], message: str, capsys: Any) -> None:
    """Before anything starts."""
    assert bench.main(words) == 2
    assert message in capsys.readouterr().err


# What is reported
# ------------------------------------------------------------------------------------------------------------------


def made_up(threads: tuple[int, ...] = (1, 2), torch_seconds: float = 2.0) -> dict:
    """A summary of times that nobody measured: this project takes 1, 2 and 3 seconds."""
    one = Measured(
        {"fwl_ref": [1.0, 2.0, 3.0], "torch": [torch_seconds] * 3, "jax": [4.0] * 3},
        dict.fromkeys(("fwl_ref", "torch", "jax"), (2**20, 3 * 2**20)),
    )
    checks = {work: Checked(5.0, {"torch": 1e-15, "jax": 2e-15}, 150) for work in WORKS}
    found = summary(checks, {n: dict.fromkeys(WORKS, one) for n in threads}, dict.fromkeys(threads, 100.0), dict.fromkeys(WORKS, 100))
    run = {"machine": "m", "cores": [0], "versions": {"torch": "2"}, "date": "today", "pairs": 3, "threads": list(threads)}
    return found | {"run": run}


def test_a_round_runs_forwards_and_the_next_backwards() -> None:
    """A B B A, after one round to warm up that does not count."""
    calls: list[str] = []
    clocks = {n: lambda n=n: calls.append(n) or float(len(calls)) for n in "ab"}
    rounds: list[int] = []
    seconds = in_turn(clocks, 4, lambda: rounds.append(len(calls)))
    assert "".join(calls) == "ba" + "abba" * 2 and rounds == [2, 4, 6, 8, 10]
    assert seconds == {"a": [3.0, 6.0, 7.0, 10.0], "b": [4.0, 5.0, 8.0, 9.0]}


def test_a_ratio_is_the_median_of_the_ratios_within_rounds() -> None:
    """Not the ratio of the medians: 2 here, where the rounds say 1, 1 and 4; its spread is half their range."""
    found = compared({"a": [1.0, 8.0, 4.0], "b": [1.0, 8.0, 1.0]}, to="b")
    assert found["a"] == (4.0, 1.0, 1.5) and found["b"] == (1.0, 1.0, 0.0)
    times = interleaved({n: lambda: np.zeros(1) for n in "ab"}, rounds=3)
    assert times["a"].ratio == 1 and times["a"].spread == 0 and times["b"].seconds > 0


def test_the_results_have_the_keys_that_readers_look_for() -> None:
    """ratio = this project / the other, by size, by threads, by work."""
    found = made_up()
    for key in ("ratio_to_torch_1_thread", "ratio_to_torch_2_threads"):
        assert found[key] == dict.fromkeys(WORKS, 1.0)
    assert found["ratio_to_jax_2_threads"]["fast_step"] == 0.5
    assert found["spread_of_ratio_to_torch_1_thread"]["fast_step"] == 0.5
    assert found["memory_mib_1_thread"]["plain_step"]["torch"] == {"process": 3.0, "work": 2.0}
    assert found["seconds_1_thread"]["plain_step"] == {"fwl_ref": 2.0, "torch": 2.0, "jax": 4.0}
    assert found["share_of_product_peak_2_threads"]["plain_step"]["fwl_ref"] == 0.5
    assert found["product_peak_gflops_1_thread"] == pytest.approx(2e-7)
    assert found["multiply_adds"]["fast_step"] == {"counted": 100, "formed": 150}
    assert found["largest_error_in_float64"]["fast_step"] == {"torch": 1e-15, "jax": 2e-15}
    assert found["largest_error_in_float64"]["bound"] == agreement.BOUND
    assert set(SIZES) == {"reference", "small", "smollm2"} and WORKS == ("plain_forward", "plain_step", "fast_forward", "fast_step")
    assert [works(SIZES[name]) for name in ("small", "smollm2")] == [list(WORKS), list(LLAMA_WORKS)]
    assert [works(SIZES[name], ("fast_step",)) for name in ("small", "smollm2")] == [["fast_step"], []]


def test_the_table_says_ratios_and_whether_they_are_a_result() -> None:
    """A row per work and number of threads; fewer than seven pairs are a trial."""
    text = "\n".join(table("small", made_up()))
    assert text.count("| fast step | 1.00 ± 0.50 | 0.50 ± 0.25 | 2.000 | 50% | 2 | 2.000 | 50% | 2 |") == 2
    assert "| fast step | 100 | 150 | 1.50 | torch 1.0e-15, jax 2.0e-15 |" in text
    assert "a trial, not a result" in text
    enough = made_up()
    enough["run"]["pairs"] = results.PAIRS
    assert results.PAIRS == 7 and "trial" not in "\n".join(table("small", enough))
    assert "| fast step | 1.00 ± 0.50 | 0.50 ± 0.25 | 2.000 | 50% | - |" in "\n".join(table("small", without_memory(made_up())))


def without_memory(found: dict) -> dict:
    """As on a system that does not say what a process holds."""
    nothing = dict.fromkeys(("fwl_ref", "torch", "jax"), results.mib(None, None))
    return found | {key: dict.fromkeys(WORKS, nothing) for key in found if key.startswith("memory")}


def test_a_size_that_was_measured_replaces_that_size_alone(tmp_path: Path) -> None:
    """The other keeps its own date and machine."""
    path = tmp_path / "results" / "bench.json"
    save(path, {"small": made_up(), "reference": made_up()})
    save(path, {"small": made_up((1,), torch_seconds=4.0)})
    found = json.loads(path.read_text())
    assert found["reference"]["ratio_to_torch_2_threads"]["plain_forward"] == 1.0
    assert found["small"]["ratio_to_torch_1_thread"]["plain_forward"] == 0.5 and "ratio_to_torch_2_threads" not in found["small"]


@pytest.mark.slow
def test_the_whole_run_against_this_project_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    """With a side that is this project under the name of another: it agrees, the ratio is about one, everything is saved.

    N: where the answers are not within the bound, nothing is timed.
    """
    monkeypatch.setitem(processes.SIDES, "torch", "ours")
    monkeypatch.setattr(processes, "find_spec", lambda name: object())
    monkeypatch.setitem(SIZES, "small", TINY)
    path = tmp_path / "bench.json"
    words = ["--size", "small", "--only", "fast_step", "--threads", "1", "--pairs", "2", "--against", "torch"]
    assert bench.main([*words, "--out", str(path)]) == 0
    found = json.loads(path.read_text())["small"]
    assert 0.05 < found["ratio_to_torch_1_thread"]["fast_step"] < 20 and found["run"]["pairs"] == 2
    assert found["largest_error_in_float64"]["fast_step"] == {"torch": 0.0} and str(path) in capsys.readouterr().out
    monkeypatch.setattr(agree, "__defaults__", (-1.0,))  # a bound that nothing is within
    monkeypatch.setattr(bench, "measure", None)
    assert bench.main(words) == 2 and "nothing is timed" in capsys.readouterr().err


# Rules
# ------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_rules_are_measured_in_both_forms(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    """A row per rule and length, errors of rounding; N: another function has another error."""
    monkeypatch.setattr(rules, "SIZES", {"B": 2, "K": 6, "E": 6, "N": 2, "F": 8})
    path = tmp_path / "rules.json"
    assert rules.main(["--length", "16", "32", "--rounds=1", "--out", str(path)]) == 0
    found = json.loads(path.read_text())["rules"]
    assert tuple(found) == rules.MEASURED and all(lengths.keys() == {"16", "32"} for lengths in found.values())
    for forms in (forms for lengths in found.values() for forms in lengths.values()):
        assert forms["recurrent"]["ratio"] == 1 and all(t["seconds"] > 0 and t["error"] < 1e-4 for t in forms.values())
    assert sum(line.startswith("| ") for line in capsys.readouterr().out.splitlines()) == 1 + 2 * len(rules.MEASURED)
    wrong = rules.form
    monkeypatch.setattr(rules, "form", lambda name, kind, a: wrong(name, kind, a | {"q": 2 * a["q"]} if kind == "chunked" else a))
    assert rules.measure("delta", 16, 1)["chunked"]["error"] > 0.1


# Ratios and scaling
# ------------------------------------------------------------------------------------------------------------------


def test_the_ratios_script_prints_both_tables(capsys: Any) -> None:
    """Every chunk size and every way of reading, the first of each being 1."""
    ratios.main(["--width=64", "--layers=1", "--window=8", "--rounds=1"])
    out = capsys.readouterr().out
    assert f"numpy {np.__version__}" in out
    assert [line.split("|")[1].strip() for line in out.splitlines() if line.startswith("| ")] == [
        "chunk", "64", "8", "16", "32", "128", "T",
        "reading", "static", "fast, reset", "fast, carried", "dynamic, whole model", "dynamic, block alone",
    ]  # fmt: skip
    first = [line for line in out.splitlines() if line.startswith(("| 64 |", "| static |"))]
    assert [line.count(" 1.00 ± 0.00 ") for line in first] == [2, 1] and all(line.endswith(" 1.00 |") for line in first)


def test_the_scaling_script_leaves_out_what_does_not_fit(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line per size; one too large for the memory given says so; NumPy is left out where it would
    take too long.
    """
    monkeypatch.setattr(scaling, "SMALL", ((8, 512), (64,), (1,)))
    scaling.main(["--memory=0.02", "--rounds=1"])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| 8 ") or line.startswith("| 512 ")]
    assert len(rows) == 2 and "left out: 29" in rows[1] and "of 0.02 GB" in rows[1] and rows[0].count(" - ") == 5
    scaling.main(["--seconds=0", "--rounds=1"])
    out = capsys.readouterr().out.splitlines()
    assert out[-1].startswith("| 512 | 64 | 1 | - | - | - | - | - | - |")


def test_the_full_scaling_table_covers_what_it_says() -> None:
    """T 1k to 64k, D 128 to 1024, batch 1 to 64."""
    sizes = list(scaling.sizes(True))
    assert len(sizes) == len(set(sizes)) == 48
    for values, low, high in zip(zip(*sizes, strict=True), (1024, 128, 1), (65536, 1024, 64), strict=True):
        assert (min(values), max(values)) == (low, high)


# Ranks
# ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 4, 8, 1024])
def test_sums_take_what_their_messages_take_one_after_the_other(n: int) -> None:
    """Each algorithm walked through: who sends how much in which round. N: a network without latency has another ring."""
    net, size, rounds = ranks.Network(3e-6, 7e9), 10_000_000.0, n.bit_length() - 1

    def messages(sizes: list[float]) -> float:
        return sum(net.latency + one / net.bandwidth for one in sizes)

    halves = [size / 2**i for i in range(1, rounds + 1)]
    assert ranks.ring(n, size, net) == pytest.approx(messages([size / n] * (n - 1) * 2))
    assert ranks.halving(n, size, net) == pytest.approx(messages(halves + halves[::-1]))
    assert ranks.tree(n, size, net) == pytest.approx(messages([size] * rounds))
    assert ranks.summing(n, size, net) <= ranks.halving(n, size, net)
    assert ranks.ring(n, size, net._replace(latency=0.0)) < ranks.ring(n, size, net)


def test_one_rank_costs_what_was_measured() -> None:
    """No sum, no copy, nothing drawn for others; between two measurements on a line."""
    for key, one in ranks.MEASURED.items():
        for net in ranks.NETWORKS.values():
            assert all(ranks.step(1, batch, key, net) == seconds for batch, seconds in one.seconds.items())
            assert ranks.weak(1, key, net) == ranks.strong(1, key, net) == 1
            assert all(ranks.weak(n, key, net) < 1 and ranks.strong(n, key, net) < n + 1e-9 for n in (8, 64, 1024))
    assert ranks.Step({1: 1.0, 3: 2.0, 4: 4.0}, 0.0).of(2) == 1.5 and ranks.Step({1: 1.0, 3: 2.0, 4: 4.0}, 0.0).of(7) == 7


def test_the_page_of_ranks_has_what_its_command_prints(tmp_path: Path) -> None:
    """Every line of both tables and every measured second; the figure can be drawn."""
    page = (Path(__file__).parent.parent / "docs" / "ranks.md").read_text(encoding="utf-8")
    assert "\n".join(ranks.tables()).split("\n\n")[0] in page and all(line in page for line in ranks.tables())
    for one in ranks.MEASURED.values():
        assert ", ".join(f"{batch}: {seconds:.4f}" for batch, seconds in one.seconds.items()) in page
    ranks.draw(tmp_path / "ranks.svg")
    assert "1,024 sequences divided (computed)" in (tmp_path / "ranks.svg").read_text(encoding="utf-8")


def test_the_page_of_measurements_has_the_stored_starts() -> None:
    """The tables of docs/measurements.md are those of benchmarks/results/starts.json, which says where it was run; the default is
    among the starts.
    """
    found = json.loads(starts.RESULTS.read_text(encoding="utf-8"))
    page = (Path(__file__).parent.parent / "docs" / "measurements.md").read_text(encoding="utf-8")
    sizes = {r["size"] for r in found["rows"]}
    assert {"small"} <= sizes <= set(starts.SIZES)
    for size in sizes:
        assert starts.table(found["rows"], size) in page
        assert f"N = 1, {TrainSettings().step_size}" in {r["start"] for r in found["rows"] if r["size"] == size}
    for words in (found["run"]["date"], f"NumPy {found['run']['numpy']}", f"Python {found['run']['python']}", f"{starts.STEPS} steps"):
        assert words in page.split("## Where step sizes start")[1]


def test_the_strange_documents_are_the_same_everywhere(tmp_path: Path) -> None:
    """Eight files of 64 KiB; what repeats repeats, what turns does so where it is said to."""
    first, second = (strange.write(tmp_path / name) for name in ("a", "b"))
    assert [p.name for p in first] == list(strange.MAKERS) and len(first) == 8
    texts = {p.name: p.read_text(encoding="ascii") for p in first}
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
    assert {len(text) for text in texts.values()} == {strange.SIZE} and len(set(texts.values())) == 8
    assert texts["late.txt"][:8192] == (strange.PROSE * 40)[:8192] and strange.PROSE[:20] not in texts["late.txt"][8193:]
    assert texts["turns.txt"].count("\n") == 31 and set(texts["hex.txt"]) == set("0123456789abcdef")


def test_what_adapting_takes_is_timed_on_the_same_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With step sizes next to nothing every way has the losses of the model as it is; the longer context has its own. A count for each."""
    monkeypatch.setattr(adapting, "WINDOW", 16)
    monkeypatch.setattr(adapting, "SEGMENT", 8)
    monkeypatch.setattr(adapting, "LAYERS", 2)
    model = model_on(tiny.parameters(), tiny.CONFIG, 32, 10)
    ids = np.random.default_rng(0).integers(0, tiny.CONFIG.vocabulary, 129)
    work = adapting.jobs(model, ids, 64, 16, 8)
    found = {name: job() for name, job in work.items()}
    plain = found.pop("as it is")
    longer = found.pop("context 64")
    assert len(found) == 6 and np.abs(longer - plain)[16:32].max() > 1e-2
    for name, losses in found.items():
        assert np.abs(losses - plain).max() < 1e-3, name
    counts = adapting.counted(model, 128, 64)
    assert counts[0] == 1.0 and min(counts[1:]) > 1 and len(counts) == len(work)
    assert counts[list(work).index("fast, true gradients")] < counts[list(work).index("fast, stale gradients")]
    monkeypatch.setattr(adapting, "load", lambda _: tiny.pretrained())
    adapting.main(["--tokens", "64", "--rounds", "1", "--out", str(tmp_path / "run.json")])
    saved = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert [line.split("|")[1].strip() for line in saved["rows"]] == list(work) and (saved["tokens"], saved["rounds"]) == (64, 1)


@pytest.mark.slow
def test_a_step_is_timed(capsys: pytest.CaptureFixture) -> None:
    """One line a size and batch."""
    ranks.main(["--measure", "--sizes", "small", "--batches", "1", "--rounds", "1"])
    assert "numpy small: 1 a rank: 0." in capsys.readouterr().out


def test_the_page_of_benchmarks_has_the_stored_ratios() -> None:
    """Each row of the table in benchmarks/README.md is benchmarks/results/bench.json, which has at least seven rounds."""
    root = Path(__file__).parent.parent / "benchmarks"
    found, page = (
        json.loads((root / "results" / "bench.json").read_text(encoding="utf-8")),
        (root / "README.md").read_text(encoding="utf-8"),
    )
    rows = re.findall(r"^\| `(\w+)` (.*?) \| (.*?) \|$", page, re.M)
    assert len(rows) == 9
    for size, words, cells in rows:
        own, work = found[size], words.replace(" ", "_")
        pairs = [(o, by) for by in ("1_thread", "2_threads") for o in ("torch", "jax")]
        expected = [f"{own[f'ratio_to_{o}_{by}'][work]:.2f} ± {own[f'spread_of_ratio_to_{o}_{by}'][work]:.2f}" for o, by in pairs]
        expected += [f"{abs(own['memory_mib_1_thread'][work][side]['work']):.0f}" for side in ("fwl_ref", "torch")]
        assert cells.split(" | ") == expected and own["run"]["pairs"] >= 7 and own["run"]["date"] in page


def test_the_page_of_benchmarks_has_the_stored_rules() -> None:
    """Every rule's row is that of benchmarks/results/bench_rules.json; errors are numbers."""
    root = Path(__file__).parent.parent / "benchmarks"
    found = json.loads((root / "results" / "bench_rules.json").read_text(encoding="utf-8"))
    assert "\n".join(rules.lines(found["rules"])) in (root / "README.md").read_text(encoding="utf-8")
    assert tuple(found["rules"]) == rules.MEASURED
    errors = [form["error"] for lengths in found["rules"].values() for forms in lengths.values() for form in forms.values()]
    assert all(0 <= e < 1e-5 for e in errors)
