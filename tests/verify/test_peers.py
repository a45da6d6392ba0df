"""Answers that other people's programs computed, none of them with code of this project: tests/peers and its manifest.

A case is a golden file. Its variables were the leaves of the other program's graph, so conventions (a scale, a logarithm, a factor of
two) are inside that graph and its gradients are gradients of the case's variables.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fwl_ref.dynamic_evaluation import Descent, RmsScale, update
from fwl_ref.rules.dplr import dplr_recurrent_fwd
from fwl_ref.verify.golden import check_folder

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
    names = ("embedding_weight", "dense_weight", "dense_bias", "output_weight", "output_bias")
    with np.load(FOLDER / "plain" / "61_dyneval_rms_lambda0.9_segments8.npz") as data:

        def tree(what: str) -> tuple:
            return tuple(data[f"{what}__{name}"] for name in names)

        roots = tuple(np.sqrt(np.mean(g**2, axis=0)) for g in tree("train_gradient"))
        for found, expected in zip(roots, tree("MS_root"), strict=True):
            np.testing.assert_allclose(found, expected, rtol=RTOL)
        scale = RmsScale(tuple(root + float(data["eps"]) for root in tree("MS_root")), tree("RMSnorm"))
        descent = Descent(float(data["rate"]), float(data["decay"]), scale)
        theta0 = theta = tree("theta0")
        gradients, after = tree("gradient"), tree("theta")
        clipped = sum(int(np.sum(norm * descent.decay > 1)) for norm in scale.norm)
        assert clipped == 25  # entries whose pull towards theta_0 is clipped: the rule's other branch is walked as well
        for segment in range(len(gradients[0])):
            theta = update(theta, tuple(g[segment] for g in gradients), theta0, descent)
            for found, expected in zip(theta, after, strict=True):
                np.testing.assert_allclose(found, expected[segment], rtol=0, atol=RTOL * np.abs(expected).max())


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
