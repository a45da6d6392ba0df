"""Answers that other people's programs computed, none of them with code of this project: tests/peers and its manifest.

A case is a golden file. Its variables were the leaves of the other program's graph, so conventions (a scale, a logarithm, a factor of
two) are inside that graph and its gradients are gradients of the case's variables. A docstring that opens with "N:" is a negative control.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fwl_ref.dynamic_evaluation import Descent, RmsScale, mean_square, rms_scale, update
from fwl_ref.rules.dplr import dplr_recurrent_fwd
from fwl_ref.verify.golden import check_folder
from tools import peers
from tools.fresh import __main__ as asked
from tools.fresh import disagreements, fla, hf, jax_block, titans

pytestmark = pytest.mark.host("files; cases are host arrays")

FOLDER = Path(__file__).resolve().parents[1] / "peers"
MANIFEST = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))
CASES = [case["case"] for cases in MANIFEST.values() for case in cases]
RTOL = 1e-12  # the largest error found over the answer's largest magnitude was 3.7e-14


def test_the_manifest_names_every_case_and_no_other() -> None:
    """Program, source, function and mapping for each file."""
    assert sorted(CASES) == sorted(p.stem for p in FOLDER.rglob("*.npz"))
    assert len(CASES) >= 34 and len(MANIFEST) >= 7
    for cases in MANIFEST.values():
        for case in cases:
            assert set(case) == {"case", "source", "function", "mapping"} and all(case.values()), case


def test_every_peer_agrees_on_every_answer() -> None:
    """Logits, per-token gradients, outputs, states, losses and all gradients, to rounding."""
    results = check_folder(FOLDER)
    assert {Path(r.file).stem for r in results} == {name for name in CASES if not (FOLDER / "plain" / f"{name}.npz").exists()}
    for result in results:
        assert not result.problem and not result.missing, f"{result.file}: {result.problem or result.missing}"
        assert result.worst.error <= RTOL, f"{result.file}: {result.worst}"


def test_krauses_program_moves_parameters_as_the_rms_rule_does() -> None:
    """(Y.2) on a recurrent network of his: the gradients are the program's, the walk of the parameters is ours."""
    case = krauses_case()
    roots = mean_square(tuple(g[i] for g in case["train_gradient"]) for i in range(len(case["train_gradient"][0])))
    for found, expected in zip(roots, case["MS_root"], strict=True):
        np.testing.assert_allclose(np.sqrt(found), expected, rtol=RTOL)
    scale = RmsScale(tuple(root + case["eps"] for root in case["MS_root"]), case["RMSnorm"])
    clipped = sum(int(np.sum(norm * case["decay"] > 1)) for norm in scale.norm)
    assert clipped == 25  # entries whose pull towards theta_0 is clipped: the rule's other branch is walked as well
    assert off_his_walk(case, Descent(case["rate"], case["decay"], scale)) <= RTOL


def test_krauses_settings_converted_walk_as_his_program_does() -> None:
    """epsilon / m and lambda m / m_K, with statistics from ``rms_scale``; m_K / m is 1.49 here   (Y.5)
    N: either left as it is walks elsewhere.
    """
    case = krauses_case()
    square, roots = tuple(root**2 for root in case["MS_root"]), case["MS_root"]
    m = np.mean(np.concatenate([root.ravel() for root in roots]))
    m_K = np.mean([root.mean() for root in roots])
    assert round(m_K / m, 2) == 1.49

    def off(eps: float, decay: float) -> float:
        return off_his_walk(case, Descent(case["rate"], decay, rms_scale(square, eps)))

    assert off(case["eps"] / m, case["decay"] * m / m_K) <= RTOL
    assert off(case["eps"], case["decay"] * m / m_K) > 0.01 and off(case["eps"] / m, case["decay"]) > 0.01


def krauses_case() -> dict:
    """What his program was given and where its parameters went: trees by the names of their arrays, and numbers."""
    names = ("embedding_weight", "dense_weight", "dense_bias", "output_weight", "output_bias")
    with np.load(FOLDER / "plain" / "61_dyneval_rms_lambda0.9_segments8.npz") as data:
        trees = {name.partition("__")[0] for name in data if "__" in name}
        numbers = {name: float(data[name]) for name in ("eps", "rate", "decay")}
        return numbers | {what: tuple(data[f"{what}__{name}"] for name in names) for what in trees}


def off_his_walk(case: dict, descent: Descent) -> float:
    """How far ``update`` on his gradients gets from his parameters, over each array's largest magnitude."""
    theta, worst = case["theta0"], 0.0
    for segment in range(len(case["gradient"][0])):
        theta = update(theta, tuple(g[segment] for g in case["gradient"]), case["theta0"], descent)
        errors = [np.abs(a - b[segment]).max() / np.abs(b).max() for a, b in zip(theta, case["theta"], strict=True)]
        worst = max(worst, *errors)
    return worst


def test_two_combas_are_dplr_and_differ_in_what_they_recall() -> None:
    """(U.50): flash-linear-attention's chunked reference takes out what the key recalls before the gate, as published, its recurrent one
    what it recalls behind it.
    """
    with np.load(FOLDER / "plain" / "79_fla_comba_inclusive_both_B2T11K5E4.npz") as data:
        q, k, v, state, beta = data["q"], data["k"], data["v"], data["state"], data["beta"][..., None]
        alpha = np.repeat(data["alpha"][..., None], k.shape[-1], axis=-1)
        p = data["share"] * k
        for name, a in (("chunk", p), ("recurrent", alpha * p)):
            (out, after), _ = dplr_recurrent_fwd(q, beta * k, v, alpha, a, -beta * k, state, read="inclusive")
            for found, expected in ((out, data[f"out_{name}"]), (after, data[f"state_{name}"])):
                np.testing.assert_allclose(found, expected, rtol=0, atol=RTOL * np.abs(expected).max())
        apart = np.abs(data["out_chunk"] - data["out_recurrent"]).max() / np.abs(data["out_chunk"]).max()
        assert apart > 0.05  # two functions


# --- the comparison made afresh, as far as it goes without those programs


def test_every_case_of_a_program_that_is_a_package_has_an_adapter() -> None:
    """Functions of the manifest are those of tools/fresh; JAX is asked for every case of the block."""
    for adapter in (fla, hf, titans):
        rows = asked.cases(MANIFEST, adapter)
        assert {function for case, function in rows if (FOLDER / f"{case}.npz").exists()} <= set(adapter.ADAPTERS)
        assert rows and set(adapter.NOTES) <= set(adapter.ADAPTERS)
    of_the_block = {case for case in CASES if "fwl" in case or "dynamic_evaluation" in case}
    assert {case for case, _ in asked.cases(MANIFEST, jax_block)} == of_the_block and len(of_the_block) >= 13


def test_a_program_that_is_not_there_is_said_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is answered, and the table says why."""
    monkeypatch.setattr(asked.importlib.util, "find_spec", lambda name: None)
    report = {"programs": {name: asked.one_program(name, FOLDER, tmp_path) for name in asked.ADAPTERS}}
    lines, good = peers.programs(report, tmp_path)
    assert good and len(lines) == 2 + len(asked.ADAPTERS)
    for line, library in zip(lines[2:], ("torch", "torch", "torch", "jax"), strict=True):
        assert line.endswith(f"| {library} is not installed | | | not asked |")


def test_answers_made_afresh_are_compared(tmp_path: Path) -> None:
    """N: forward only agrees; a share of 1e-9 more does not; a program that failed is no agreement either."""
    name = "33_fla_gated_delta_inclusive_recurrent_B2T18K5E4"
    with np.load(FOLDER / f"{name}.npz") as data:
        out = data["out"]
    entry = {"version": "theirs 1.0", "notes": {}, "answered": {name: "their_function"}, "failed": {}}
    (tmp_path / "fla").mkdir()
    for answer, failed, good, words in (
        (out, {}, True, "| theirs 1.0 | `their_function` | 1 | 1 | 1e-15 |"),
        (out * (1 + 1e-9), {}, False, "**differs**"),
        (out, {"a": "f: TypeError: g"}, False, "| theirs 1.0 | f: TypeError: g | | | could not be asked |"),
    ):
        np.savez(tmp_path / "fla" / f"{name}.npz", out=answer)
        lines, agree = peers.programs({"programs": {"fla": entry | {"failed": failed}}}, tmp_path)
        assert agree == good and words in "\n".join(lines)


def test_finite_differences_must_side_with_whom_the_page_says() -> None:
    """N: with the sides exchanged, or nothing apart, the verdict is not printed and the status is not 0."""
    for name, (_, verdict, tiny, large) in peers.RIGHT.items():
        rows = {i: [1e-9 if i in tiny else 1e-2] * 3 for i in (*tiny, *large)}
        for found, good in ((rows, True), ({i: [1e-2] * 3 for i in rows}, False), ({i: [1e-9] * 3 for i in rows}, False)):
            named = {f"row {i}": found[i] for i in sorted(found)}
            lines, holds = peers.disagreements({"disagreements": [{"name": name, "what": "A check.", "rows": named}]})
            assert holds == good and (verdict in lines) == good
    lines, _ = peers.disagreements({"disagreements": [{"name": name, "what": "A check.", "failed": "no torch"}]})
    assert lines[-1] == "Could not be asked: no torch"


def test_the_page_shows_the_comparison_made_afresh() -> None:
    """Every adapter has its row, with versions and agreement; every disagreement its verdict."""
    page = peers.PAGE.read_text(encoding="utf-8")
    part = page[page.index(peers.FRESH_OPEN) : page.index(peers.FRESH_CLOSE)]
    rows = [line for line in part.splitlines() if line.count("|") == 6 and "`" in line]
    there = {
        function for adapter in (fla, hf, titans) for case, function in asked.cases(MANIFEST, adapter) if (FOLDER / f"{case}.npz").exists()
    }
    assert {line.split("`")[1] for line in rows} == {*there, "jax.grad"}
    assert all("1e-1" in line and "differs" not in line for line in rows)
    assert all(verdict in part for _, verdict, _, _ in peers.RIGHT.values())
    assert f"{disagreements.DRAWS} random draws" in part
    assert all(word in part for word in ("fla-core 0.6.0", "torch 2.13.0", "transformers 5.24.0", "titans-pytorch 0.5.5", "jax 0.10.2"))
