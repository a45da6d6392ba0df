"""Golden cases: files that go round, errors that name the array, and answers recomputed here from
the formulas alone.

A docstring that opens with "N:" is a negative control.
"""

import argparse
import hashlib

import numpy as np
import pytest

from fwl_ref.backend import host
from fwl_ref.files import load_arrays, save_arrays
from fwl_ref.slow_block import FastParameters, SlowParameters, slow_block_bwd, slow_block_fwd
from fwl_ref.verify import golden, golden_around, golden_block, golden_ops, golden_rules
from fwl_ref.verify.golden_answers import compare

FAST, SLOW = FastParameters._fields, SlowParameters._fields
FWL = [i for i, plan in enumerate(golden.PLANS) if plan.kind == "fwl"]
DYNAMIC = [i for i, plan in enumerate(golden.PLANS) if plan.kind == "dynamic_evaluation"]
CHAIN = [i for i, plan in enumerate(golden.PLANS) if plan.kind == "sequential"]
# The last case of each rule, op, packed row and layer of heads: no zeros in it.
RULE = {plan.kind: i for i, plan in enumerate(golden.PLANS) if plan.kind not in golden_block.KINDS}


def draw(i, seed=0):
    """The inputs of case number i."""
    return golden.draw_case(golden.PLANS[i], np.random.default_rng([seed, i]))


def command(*words):
    """The exit code of ``golden WORDS``."""
    parser = argparse.ArgumentParser()
    golden.add_arguments(parser)
    return golden.main(parser.parse_args([str(w) for w in words]))


def digests(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of all cases of seed 0; nobody writes into it."""
    path = tmp_path_factory.mktemp("golden")
    golden.make_cases(path)
    return path


# --- the formulas once more, in plain numpy, one token at a time; complex inputs give derivatives by the complex step


def settings(case):
    """eps, norm and residual of a case."""
    return float(case["eps"]), str(case["norm"]), bool(case["residual"])


def block(x, p, eps, norm, residual):
    """Everything the slow block computes for one token: h, a, zhat, 1 / deviation, n, logits."""
    h = x @ p["W1"] + p["b1"]
    a = np.where(h.real > 0, h, 0) ** 2
    z = a @ p["W2"] + p["b2"]
    z = z + x if residual else z
    centred = z - z.mean() if norm == "layer" else z
    rstd = 1 / np.sqrt((centred**2).mean() + eps)
    n = centred * rstd * p["gain"] + p["bias"]
    return h, a, centred * rstd, rstd, n, n @ p["U"] + p["c"]


def cross_entropy(logits, y):
    top = logits.real.max()
    return np.log(np.exp(logits - top).sum()) + top - logits[y]


def gradients(x, y, share, p, eps, norm, residual):
    """dh, dz, dn of share * CE for one token; the norm through its Jacobian written as a matrix."""
    h, _, n, rstd, _, logits = block(x, p, eps, norm, residual)
    e = np.exp(logits - logits.real.max())
    dlogits = share * (e / e.sum() - np.eye(len(e))[y])
    dn = p["U"] @ dlogits
    d = len(n)
    centre = np.ones((d, d)) / d if norm == "layer" else 0
    jacobian = rstd * (np.eye(d) - centre - np.outer(n, n) / d)
    dz = jacobian @ (p["gain"] * dn)
    return (p["W2"] @ dz) * 2 * np.where(h.real > 0, h, 0), dz, dn


def normalizers(case):
    """N of every sequence."""
    w = case["weights"]
    n = {"constant": np.full(len(w), case["constant"]), "batch": np.full(len(w), w.sum()), "sequence": w.sum(axis=1)}[
        str(case["normalizer"])
    ]
    return np.where(n > 0, n, 1.0)


def fast_forward(case, frozen=None):
    """Logits (B,T,V) and written values of the fast block with weight matrices that are really
    formed, and the outer loss.
    """
    p = {name: case[name] for name in SLOW}
    eta = {name: case[f"eta_{name}"] for name in FAST}
    kind, (batch, length) = settings(case), case["labels"].shape
    logits, values, loss = np.zeros((batch, length, len(p["c"])), dtype=complex), [], 0
    for b, n in enumerate(normalizers(case)):
        total = {name: 0 * p[name] for name in FAST}
        for t in range(length):
            x, y, share = case["x"][b, t], case["labels"][b, t], case["weights"][b, t] / n
            fast = p | {name: p[name] - eta[name] * total[name] for name in FAST}
            logits[b, t] = block(x, fast, *kind)[-1]
            loss = loss + case["weights"][b, t] * cross_entropy(logits[b, t], y)
            _, a, zhat, *_ = block(x, p, *kind)
            dh, dz, dn = values_t = gradients(x, y, share, p, *kind)
            dgain, dbias = dn * zhat, dn
            if frozen is not None:
                dh, dz, dgain, dbias = frozen[b * length + t]
            values.append((*values_t, dn * zhat))
            new = {"W1": np.outer(x, dh), "b1": dh, "W2": np.outer(a, dz), "b2": dz, "gain": dgain, "bias": dbias}
            total = {name: (1 - case["decay"]) * total[name] + new[name] for name in FAST}
    return logits, values, loss / max(case["weights"].sum(), 1e-8)


def sequential(case):
    """Dynamic evaluation with parameters that change: logits, and the final parameters of every
    sequence.
    """
    p0, kind, segment = {name: case[name] for name in SLOW}, settings(case), int(case["segment"])
    all_logits, finals = [], []
    for b, n in enumerate(normalizers(case)):
        p, rows = dict(p0), []
        for start in range(0, case["labels"].shape[1], segment):
            gradient = {name: np.zeros_like(p[name]) for name in FAST}
            for t in range(start, min(start + segment, case["labels"].shape[1])):
                x = case["x"][b, t]
                _, a, zhat, _, _, logits = block(x, p, *kind)
                rows.append(logits)
                dh, dz, dn = gradients(x, case["labels"][b, t], case["weights"][b, t] / n, p, *kind)
                new = {"W1": np.outer(x, dh), "b1": dh, "W2": np.outer(a, dz), "b2": dz, "gain": dn * zhat, "bias": dn}
                gradient = {name: gradient[name] + new[name] for name in FAST}
            p = p | {name: p[name] - case[f"eta_{name}"] * gradient[name] + case["decay"] * (p0[name] - p[name]) for name in FAST}
        all_logits.append(rows)
        finals.append(p)
    return {"logits": np.array(all_logits)} | {name: np.array([p[name] for p in finals]) for name in FAST}


def chained(case):
    """Logits and outer loss of a text whose weights change after every segment, and within one if its tokens are read; complex inputs
    give derivatives by the complex step.
    """
    p0, kind, segment, (batch, length) = {n: case[n] for n in SLOW}, settings(case), int(case["segment"]), case["labels"].shape
    logits, loss = np.zeros((batch, length, len(p0["c"])), dtype=complex), 0
    for b, n in enumerate(normalizers(case)):
        held = {name: 0 * p0[name] for name in FAST}
        for start in range(0, length, segment):
            p = p0 | {name: p0[name] - case[f"eta_{name}"] * held[name] for name in FAST}
            total = {name: 0 * p0[name] for name in FAST}
            for t in range(start, min(start + segment, length)):
                x, y, w = case["x"][b, t], case["labels"][b, t], case["weights"][b, t]
                read = int(case["within"])
                logits[b, t] = block(x, p | {m: p[m] - read * case[f"eta_{m}"] * total[m] for m in FAST}, *kind)[-1]
                loss = loss + w * cross_entropy(logits[b, t], y)
                _, a, zhat, *_ = block(x, p, *kind)
                dh, dz, dn = gradients(x, y, w / n, p, *kind)
                new = {"W1": np.outer(x, dh), "b1": dh, "W2": np.outer(a, dz), "b2": dz, "gain": dn * zhat, "bias": dn}
                total = {name: total[name] + new[name] for name in FAST}
            held = {name: (1 - case["decay"]) * held[name] + total[name] for name in FAST}
    return logits, loss / max(case["weights"].sum(), 1e-8)


@pytest.mark.parametrize("i", CHAIN)
def test_segments_one_after_the_other_are_a_loop_that_is_differentiated(i):
    """Logits and loss of an explicit loop, and three entries of every gradient by its complex step."""
    case = draw(i)
    answers, rng = golden.run_case(case), np.random.default_rng(i)
    logits, loss = chained(case)
    assert_close(answers["logits"], logits)
    assert_close(answers["loss"], loss)
    for name in ["x", *SLOW, *(f"eta_{n}" for n in FAST), "decay"]:
        answer = answers[f"g_{name}"]
        for _ in range(3 if answer.ndim else 1):
            index = tuple(int(rng.integers(0, n)) for n in answer.shape)
            moved = case[name].astype(complex)
            moved[index] += 1e-30j
            slope = chained(case | {name: moved})[1].imag / 1e-30
            assert abs(answer[index] - slope) <= 1e-10 * max(np.abs(answer).max(), 1e-6), name


def assert_close(found, expected, tolerance=1e-10):
    scale = max(np.abs(expected).max(), 1e-6)
    assert np.abs(found - expected).max() <= tolerance * scale


@pytest.mark.parametrize("i", FWL)
def test_answers_are_those_of_weight_matrices_that_are_really_formed(i):
    """Logits, loss and the written gradients equal a token-by-token loop in plain numpy."""
    case = draw(i)
    answers = golden.run_case(case)
    logits, values, loss = fast_forward(case)
    shape = case["labels"].shape
    assert_close(answers["logits"], logits)
    assert_close(answers["loss"], loss)
    slow = [block(x, {n: case[n] for n in SLOW}, *settings(case))[-1] for row in case["x"] for x in row]
    assert_close(answers["logits_slow"], np.reshape(slow, (*shape, -1)))
    for k, name in enumerate(("dh", "dz", "dn")):
        assert_close(answers[name], np.reshape([v[k] for v in values], (*shape, -1)))


@pytest.mark.parametrize("i", FWL)
def test_logits_are_those_of_the_slow_block_at_moved_parameters(i):
    """Token t scores with p - eta * (faded sum of the gradients before it), taken with the slow
    block's own backward pass.
    """
    case = draw(i, seed=3)
    slow = SlowParameters(*(case[n] for n in SLOW))
    eta = [*(case[f"eta_{n}"] for n in FAST), 0.0, 0.0]
    answers, kind = golden.run_case(case), settings(case)
    for b, n in enumerate(normalizers(case)):
        total = [np.zeros_like(p) for p in slow]
        for t in range(case["labels"].shape[1]):
            moved = SlowParameters(*(p - e * s for p, e, s in zip(slow, eta, total, strict=True)))
            here = slice(t, t + 1)
            (_, logits), _ = slow_block_fwd(case["x"][b, here], case["labels"][b, here], moved, *kind)
            assert_close(answers["logits"][b, here], logits)
            _, res = slow_block_fwd(case["x"][b, here], case["labels"][b, here], slow, *kind)
            _, gradient = slow_block_bwd(case["weights"][b, here] / n, res)
            total = [(1 - case["decay"]) * s + g for s, g in zip(total, gradient, strict=True)]


@pytest.mark.parametrize("i", FWL)
def test_gradients_are_those_of_the_complex_step(i):
    """Three entries of every gradient answer equal Im loss(p + i h) / h of the plain numpy loop;
    first_order freezes the values.
    """
    case = draw(i, seed=1)
    answers, rng = golden.run_case(case), np.random.default_rng(i)
    _, values, _ = fast_forward(case)
    frozen = [(dh, dz, dgain, dn) for dh, dz, dn, dgain in values] if case["first_order"] else None
    for name in ["x", *SLOW, *(f"eta_{n}" for n in FAST), "decay"]:
        answer = answers[f"g_{name}"]
        for _ in range(3 if answer.ndim else 1):
            index = tuple(int(rng.integers(0, n)) for n in answer.shape)
            moved = case[name].astype(complex)
            moved[index] += 1e-30j
            slope = fast_forward(case | {name: moved}, frozen)[2].imag / 1e-30
            assert abs(answer[index] - slope) <= 1e-10 * max(np.abs(answer).max(), 1e-6), name


@pytest.mark.parametrize("i", [FWL[1], FWL[3]])
def test_gradients_are_those_of_finite_differences(i):
    """A central difference of the loss answer itself, along one random direction per input, without
    any derivative by hand.
    """
    case, rng = draw(i, seed=2), np.random.default_rng(i)
    answers = golden.run_case(case)
    for name in ["x", *SLOW, *(f"eta_{n}" for n in FAST), "decay"]:
        v, h = rng.standard_normal(case[name].shape), 1e-5
        ends = [float(golden.run_case(case | {name: case[name] + s * h * v})["loss"]) for s in (1, -1)]
        slope = float((answers[f"g_{name}"] * v).sum())
        assert (ends[0] - ends[1]) / (2 * h) == pytest.approx(slope, rel=1e-5, abs=1e-8), name


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("i", DYNAMIC)
def test_dynamic_evaluation_is_a_loop_of_plain_gradient_steps(i, seed):
    """Logits and final parameters equal an explicit numpy loop that shares no code with the
    library.
    """
    case = draw(i, seed)
    answers, expected = golden.run_case(case), sequential(case)
    assert answers.keys() == expected.keys() == set(golden.ANSWERS["dynamic_evaluation"])
    for name, array in expected.items():
        assert answers[name].shape == array.shape
        assert_close(answers[name], array)


def test_a_case_of_no_tokens_has_answers():
    """T = 0: empty logits, loss 0, zero gradients, and final parameters that never moved."""
    for i in (FWL[0], DYNAMIC[0]):
        case = draw(i)
        case |= {name: case[name][:, :0] for name in ("x", "labels", "weights")}
        answers = golden.run_case(case)
        assert answers["logits"].shape == (*case["labels"].shape, len(case["c"]))
        if i in DYNAMIC:
            assert (answers["W1"] == case["W1"]).all()
        else:
            assert answers["loss"] == 0 and not answers["g_W1"].any()


# --- files


def test_made_cases_check_clean(folder, capsys):
    """``make`` then ``check``: a line per case and one per answer, exit code 0, no file but the cases."""
    assert command("check", folder) == 0
    *printed, last = capsys.readouterr().out.splitlines()
    answers = [name for plan in golden.kinds_in_turn(golden.PLANS) for name in golden.ANSWERS[plan.kind]]
    assert [line.split()[0] for line in printed if line.startswith("     ")] == answers
    assert all(line.endswith(": ok") for line in printed if line.startswith("     "))
    assert sum(line.startswith("ok   ") for line in printed) == len(golden.PLANS) == len(printed) - len(answers)
    assert last == f"{len(golden.PLANS)} of {len(golden.PLANS)} cases agree in every answer they have"
    assert len(list(folder.iterdir())) == len(golden.PLANS)
    assert all(r.ok and r.worst.error == 0 and not r.missing for r in golden.check_folder(folder))


def test_made_cases_are_varied(folder):
    """There is a case of every kind; those of the block cover every setting that the format has,
    and their sizes differ.
    """
    cases = [golden.check_case(load_arrays(p)) for p in sorted(folder.iterdir())]
    assert {c["kind"] for c in cases} == set(golden.KINDS)
    cases = [c for c in cases if c["kind"] in golden_block.KINDS]
    lengths = [c["labels"].shape[1] for c in cases]
    for kind in golden_block.KINDS:
        assert {c["normalizer"] for c in cases if c["kind"] == kind} == {"batch", "sequence", "constant"}
        assert {c["eps"] for c in cases if c["kind"] == kind} == {0, 1e-6}
        assert {c["decay"] > 0 for c in cases if c["kind"] == kind} == {False, True}
    assert {c["first_order"] for c in cases} == {0, 1} and 1 in lengths
    assert len({(c["norm"], c["residual"]) for c in cases}) == 4
    chunks = [(c["chunk"], t) for c, t in zip(cases, lengths, strict=True) if c["kind"] == "fwl"]
    assert any(s == 0 for s, _ in chunks) and any(s == 1 for s, _ in chunks)
    assert any(s > t for s, t in chunks) and any(1 < s < t and t % s for s, t in chunks)
    weights = [c["weights"] for c in cases]
    assert any((w == 0).all() for w in weights) and any((w == 0).any() and (w > 0).any() for w in weights)
    assert any((w % 1 > 0).any() for w in weights)
    assert any(c[f"eta_{n}"] == 0 for c in cases for n in FAST)
    assert len({(c["x"].shape, c["W1"].shape, c["U"].shape) for c in cases}) > 8


def test_the_same_seed_writes_the_same_bytes(folder, tmp_path):
    """Files are a function of seed and number: same seed same bytes, other seed other numbers, a
    shorter run is a prefix.
    """
    golden.make_cases(tmp_path / "again", 5)
    golden.make_cases(tmp_path / "other", 5, seed=1)
    assert digests(tmp_path / "again").items() <= digests(folder).items()
    for ours, other in zip(sorted((tmp_path / "again").iterdir()), sorted((tmp_path / "other").iterdir()), strict=True):
        x, y = (load_arrays(p) for p in (ours, other))
        name = "x" if "x" in x else "q"
        assert x[name].shape != y[name].shape or (x[name] != y[name]).any()


def test_more_cases_than_plans(tmp_path):
    """A count beyond the table goes round it with new numbers."""
    count = len(golden.PLANS) + 2
    paths = golden.make_cases(tmp_path, count)
    assert len({p.name for p in paths}) == count and all(r.ok for r in golden.check_folder(tmp_path))


@pytest.mark.parametrize("i", [FWL[0], DYNAMIC[0], RULE["delta"], RULE["titans"]])
def test_run_answers_a_case_of_ones_own(i, tmp_path, capsys):
    """``run`` adds to a case without answers exactly the answers of run_case, under their names,
    and ``check`` accepts what it wrote.
    """
    case = draw(i, seed=5)
    np.savez(tmp_path / "own.npz", **case)
    (tmp_path / "out").mkdir()
    assert command("run", tmp_path / "own.npz", tmp_path / "out" / "own.npz") == 0
    written, answers = load_arrays(tmp_path / "out" / "own.npz"), golden.run_case(case)
    for name, array in answers.items():
        assert (written[name] == array).all() and written[name].dtype == "float64"
    for name in case.keys() - answers.keys():
        assert (written[name] == case[name]).all()
    assert command("check", tmp_path / "out") == 0
    # a case that has answers already is a case too; those answers are ignored
    first = next(iter(answers))
    np.savez(tmp_path / "wrong.npz", **written | {first: 7 + written[first]})
    assert command("run", tmp_path / "wrong.npz", tmp_path / "again.npz") == 0
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "out" / "own.npz").read_bytes()
    capsys.readouterr()


@pytest.mark.parametrize("i", [FWL[0], DYNAMIC[0]])
def test_norm_and_residual_may_be_left_out(i, tmp_path):
    """LayerNorm and no residual, and ``check`` reads such a file."""
    case = draw(i)
    short = {name: a for name, a in case.items() if name not in golden_block.OPTIONAL}
    answers = golden.run_case(short)
    assert all((a == answers[name]).all() for name, a in golden.run_case(case).items())
    assert all((answers[name] == a).all() for name, a in golden.answered_case(short).items() if name in answers)
    save_arrays(
        tmp_path / "short.npz", short | answers if i in FWL else {f"slow_{n}" if n in FAST else n: a for n, a in short.items()} | answers
    )
    (result,) = golden.check_folder(tmp_path)
    assert result.ok and not result.problem


def test_what_is_as_good_is_accepted():
    """Whole numbers for real scalars, small integer types, booleans, bytes and the other byte order
    change nothing.
    """
    case = draw(FWL[0])
    same = case | {
        "decay": np.array(0),
        "first_order": np.array(False),
        "labels": case["labels"].astype("uint8"),
        "kind": np.array(b"fwl"),
        "x": case["x"].astype(">f8"),
        "eps": case["eps"].astype(">f8"),
    }
    answers = golden.run_case(case)
    assert all((a == answers[name]).all() for name, a in golden.run_case(same).items())


@pytest.mark.parametrize("kind", golden.KINDS)
def test_check_sees_every_corrupted_answer(kind, tmp_path, capsys):
    """A relative error of 1e-6 in one entry of any answer is found, named, and makes the exit code
    non-zero.
    """
    arrays = golden.answered_case(draw(({"fwl": FWL[1], "dynamic_evaluation": DYNAMIC[0], "sequential": CHAIN[0]} | RULE)[kind]))
    for name in golden.ANSWERS[kind]:
        wrong = arrays[name].copy()
        place = np.unravel_index(np.abs(wrong).argmax(), wrong.shape)
        wrong[place] *= 1 + 1e-6
        save_arrays(tmp_path / "case.npz", arrays | {name: wrong})
        (result,) = golden.check_folder(tmp_path)
        assert not result.ok and result.worst.name == name and result.worst.error == pytest.approx(1e-6, rel=1e-3)
        assert [a.name for a in result.arrays if a.wrong] == [name]
        here = [int(i) for i in place]
        assert result.worst.wrong.startswith(f"first at {here}: {wrong[place]:.9g} instead of" if here else f"{wrong[place]:.9g}")
    assert command("check", tmp_path) == 1
    assert capsys.readouterr().out.startswith("DIFF case.npz")


def test_check_refuses_answers_that_are_not_numbers(tmp_path):
    """A stored NaN, a wrong shape or type is never taken for agreement; every other answer is still compared."""
    arrays = golden.answered_case(draw(FWL[1]))
    for name, bad, word in (
        ("dz", np.nan * arrays["dz"], "nan instead of"),
        ("logits", arrays["logits"][:, 1:], f"expected shape {arrays['logits'].shape}"),
        ("dn", arrays["dn"].astype("float16"), "expected float64 or float32, found float16"),
        ("loss", np.array("small"), "expected float64 or float32"),
        ("g_x", 1j * arrays["g_x"], "found complex128"),
    ):
        np.savez(tmp_path / "case.npz", **arrays | {name: bad})
        (result,) = golden.check_folder(tmp_path)
        wrong = [a for a in result.arrays if a.wrong]
        assert not result.ok and [a.name for a in wrong] == [name] and word in wrong[0].wrong and wrong[0].error == np.inf
        assert len(result.arrays) == len(golden.ANSWERS["fwl"])


def test_only_some_of_the_answers_are_enough(tmp_path, capsys):
    """Forward only: what is there is compared, what is not is listed. Status 0 if all of it is right, 1 if not or if there is nothing."""
    for i, there in ((FWL[1], ("logits", "loss")), (RULE["titans"], ("out", "state_out_U")), (DYNAMIC[0], ("logits",))):
        kind = golden.PLANS[i].kind
        arrays = golden.answered_case(draw(i))
        missing = [name for name in golden.ANSWERS[kind] if name not in there]
        part = {name: a for name, a in arrays.items() if name not in missing}
        np.savez(tmp_path / "case.npz", **part)
        assert command("check", tmp_path) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in lines[1:-2]] == list(there)
        assert lines[-2] == f"     missing, not compared: {', '.join(missing)}"
        assert lines[-1] == f"1 of 1 cases agree in every answer they have; answers missing: {len(missing)}"
        np.savez(tmp_path / "case.npz", **part | {there[0]: 1.01 * part[there[0]]})
        assert command("check", tmp_path) == 1 and "wrong, first at" in capsys.readouterr().out
        np.savez(tmp_path / "case.npz", **draw(i))
        assert command("check", tmp_path) == 1  # nothing agrees with everything
        assert capsys.readouterr().out.splitlines() == [
            "none case.npz",
            "0 of 0 cases agree in every answer they have; cases without answers: 1",
        ]
    # a case whose parameters keep their own names, as a program writes it that knows no final ones
    np.savez(tmp_path / "case.npz", **draw(DYNAMIC[0]), logits=arrays["logits"])
    assert command("check", tmp_path) == 0 and "missing, not compared: W1, b1" in capsys.readouterr().out


def test_answers_may_lie_in_a_folder_of_their_own(tmp_path, capsys):
    """N: the answers of the case itself are not looked at then, and a folder without any file agrees with nothing."""
    path, other = golden.make_cases(tmp_path / "cases", kinds=["delta"])
    out = load_arrays(path)["out"]
    (tmp_path / "mine").mkdir()
    options = ("check", tmp_path / "cases", "--answers", tmp_path / "mine")
    assert command(*options) == 1 and "0 of 0 cases agree" in capsys.readouterr().out
    for arrays, status, words in (
        ({"out": out}, 0, "missing, not compared: state_out"),
        ({"out": out}, 0, f"none {other.name}"),
        ({"out": out, "q": 7 * out}, 0, "1 of 1 cases agree in every answer they have; answers missing: 7; cases without answers: 1"),
        ({"out": 2 * out}, 1, f"DIFF {path.name}"),
        ({"Out": out}, 1, "Out: expected only the arrays of a delta case"),
        ({"q": out}, 1, "cases without answers: 2"),
    ):
        np.savez(tmp_path / "mine" / path.name, **arrays)
        assert command(*options) == status and words in capsys.readouterr().out
    assert command("check", tmp_path / "cases", "--answers", tmp_path / "absent") == 2 and "absent" in capsys.readouterr().err


def test_rtol_replaces_what_is_allowed(tmp_path, capsys):
    """Above the error it agrees, below it differs; 0, 1 and NaN are no tolerances."""
    arrays = golden.answered_case(draw(RULE["delta"]))
    place = np.unravel_index(np.abs(arrays["out"]).argmax(), arrays["out"].shape)
    arrays["out"][place] *= 1 + 1e-4
    np.savez(tmp_path / "case.npz", **arrays)
    assert [command("check", tmp_path, *more) for more in ((), ("--rtol", 2e-4), ("--rtol", 5e-5))] == [1, 0, 1]
    capsys.readouterr()
    for bad in ("0", "1", "nan", "-1e-3"):
        assert command("check", tmp_path, f"--rtol={bad}") == 2
        assert "expected rtol above 0 and below 1" in capsys.readouterr().err


def test_features_have_the_width_of_the_block_unless_a_size_is_given(tmp_path, capsys):
    """I = D as drawn before; with I given, all kinds are answered and checked, and the file's name says it."""
    plain = [golden.draw_case(p, np.random.default_rng(1)) for p in golden_block.PLANS]
    assert all(case["x"].shape[-1] == len(case["b2"]) for case in plain)
    kinds = [word for kind in golden_block.KINDS for word in ("--kind", kind)]
    assert command("make", tmp_path, *kinds, "--size", "I=9,D=4") == 0
    paths = sorted(tmp_path.iterdir())
    assert len(paths) == len(golden_block.PLANS) and all("I9D4F" in path.name for path in paths)
    for case in map(load_arrays, paths):
        assert case["x"].shape[-1] == 9 and case["U"].shape[0] == 4
    assert command("check", tmp_path) == 0


def test_kinds_and_sizes_are_chosen(tmp_path, capsys):
    """Only these kinds are written and checked, in these sizes; what is not given is drawn as before."""
    assert command("make", tmp_path, "--kind", "gla", "--kind", "dynamic_evaluation", "--size", "K=5,B=2,T=13,D=6") == 0
    cases = [golden.check_case(load_arrays(path)) for path in sorted(tmp_path.iterdir())]
    plans = golden.kinds_in_turn([plan for plan in golden.PLANS if plan.kind in ("gla", "dynamic_evaluation")])
    assert [c["kind"] for c in cases] == [p.kind for p in plans]
    assert {plan.kind for plan in plans[:2]} == {"gla", "dynamic_evaluation"}  # so a few cases have both
    for case in cases:
        rule = case["kind"] == "gla"
        assert (case["k"].shape == (2, 13, 5)) if rule else (case["x"].shape == (2, 13, 6))
    last = max(i for i, plan in enumerate(plans) if plan.kind == "gla")
    drawn = golden.draw_case(plans[last], np.random.default_rng([0, last]))
    assert cases[last]["v"].shape[2:] == drawn["v"].shape[2:]
    capsys.readouterr()
    assert command("check", tmp_path, "--kind", "gla") == 0
    assert "2 of 2 cases" in capsys.readouterr().out
    assert command("check", tmp_path, "--kind", "mesa") == 2 and "of kind mesa" in capsys.readouterr().err
    for size, words in (("F=3", "of B, E, K, T, found F=3"), ("K=0", "found K=0")):
        assert command("make", tmp_path, "--kind", "gla", "--size", size) == 2 and words in capsys.readouterr().err
    for options in (("--size", "K"), ("--size", "K=-1"), ("--size", ""), ("--kind", "softmax"), ("--dtype", "float16")):
        with pytest.raises(SystemExit):
            command("make", tmp_path, *options)
        assert options[0] in capsys.readouterr().err


def test_float32_cases_hold_what_float32_can_hold(tmp_path):
    """Inputs are float32 in the file, are answered exactly as they are, and stay float32 through ``run``."""
    paths = golden.make_cases(tmp_path / "made", dtype="float32")
    for path, plan in zip(paths, golden.kinds_in_turn(golden.PLANS), strict=True):
        arrays = load_arrays(path)
        answers = golden.ANSWERS[plan.kind]
        assert path.stem.endswith("_float32")
        assert {a.dtype.name for n, a in arrays.items() if n not in answers and a.dtype.kind == "f"} == {"float32"}
        wide = {n: a.astype("float64") if a.dtype.kind == "f" else a for n, a in arrays.items()}
        expected = golden.run_case(wide)
        assert all(arrays[n].dtype == "float64" and (arrays[n] == expected[n]).all() for n in answers)
    golden.run_file(paths[-1], tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == paths[-1].read_bytes()


def test_float32_answers_are_allowed_what_float32_rounds(tmp_path):
    """By the coarser of inputs and answer: half the tolerance passes, twice it fails."""
    for dtype, answer, allowed in (("float64", "float64", 1e-9), ("float64", "float32", 1e-3), ("float32", "float64", 1e-3)):
        (path,) = golden.make_cases(tmp_path, 1, kinds=["delta"], dtype=dtype)
        arrays = load_arrays(path)
        for share, ok in ((0.5, True), (2.0, False)):
            moved = arrays["out"] + share * allowed * np.abs(arrays["out"]).max()
            save_arrays(path, arrays | {"out": moved.astype(answer)})
            (result,) = golden.check_folder(tmp_path)
            assert result.ok == ok and result.arrays[0].tolerance == allowed and result.arrays[0].dtype == answer
        path.unlink()


@pytest.mark.parametrize("i", [*(max(i for i in FWL if not golden.PLANS[i].still), DYNAMIC[0]), *RULE.values()])
def test_a_program_in_float32_is_accepted(i, monkeypatch):
    """The functions themselves, fed float32 throughout. What is rounded is a share of 1e-7; what is allowed is a thousandth."""
    case = {n: a.astype("float32") if a.dtype.kind == "f" else a for n, a in draw(i).items()}
    exact, checked = golden.run_case(case), golden.check_case(case)
    narrow = {n: a.astype("float32") if isinstance(a, np.ndarray) and a.dtype.kind == "f" else a for n, a in checked.items()}
    monkeypatch.setattr(golden_block, "like", lambda a, *_: np.asarray(a, "float32"))
    families = (golden_block, golden_rules, golden_ops, golden_around)
    family = next(f for f in families if checked["kind"] in f.KINDS)
    found = {n: np.asarray(a) for n, a in family.answers(narrow).items()}
    rows = compare(found, exact, True, None)
    assert {a.dtype for a in rows} == {"float32"} and not [str(a) for a in rows if a.wrong]
    assert max(a.error for a in rows) > 1e-9  # it is another precision


def test_check_goes_on_after_a_bad_file(folder, tmp_path, capsys):
    """Files that cannot be read are reported by name with the others, and the exit code is
    non-zero.
    """
    good = sorted(folder.iterdir())[0]
    (tmp_path / "b_good.npz").write_bytes(good.read_bytes())
    (tmp_path / "a_text.npz").write_text("not an archive")
    (tmp_path / "c_half.npz").write_bytes(good.read_bytes()[:999])
    (tmp_path / "d_empty.npz").write_bytes(b"")
    with (tmp_path / "e_single.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    damaged = bytearray(good.read_bytes())
    damaged[200] ^= 255
    (tmp_path / "f_damaged.npz").write_bytes(damaged)
    assert command("check", tmp_path) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("     ")]
    assert [line.split()[0] for line in lines[:-1]] == ["BAD", "ok", "BAD", "BAD", "BAD", "BAD"]


def test_nothing_to_check_is_an_error(tmp_path, capsys):
    """A folder without cases, a path that is no folder, an input that is missing: non-zero exit, a
    message, nothing written.
    """
    assert command("check", tmp_path) == 2 and "found none" in capsys.readouterr().err
    assert command("check", tmp_path / "absent") == 2 and "absent" in capsys.readouterr().err
    assert command("run", tmp_path / "absent.npz", tmp_path / "out.npz") == 2 and "absent.npz" in capsys.readouterr().err
    assert command("make", tmp_path / "made", "--count", 0) == 2 and "count 0" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_failed_run_leaves_the_old_file(tmp_path, capsys):
    """Output is written whole or not at all: a bad case touches nothing."""
    np.savez(tmp_path / "bad.npz", **draw(0) | {"decay": np.array(np.nan)})
    (tmp_path / "out.npz").write_bytes(b"precious")
    assert command("run", tmp_path / "bad.npz", tmp_path / "out.npz") == 2
    assert "bad.npz: decay" in capsys.readouterr().err
    assert (tmp_path / "out.npz").read_bytes() == b"precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.npz", "out.npz"]


def test_a_write_that_breaks_off_leaves_nothing(tmp_path, monkeypatch):
    """An error in the middle of writing leaves the old file and no draft."""
    (tmp_path / "case.npz").write_bytes(b"precious")

    def breaks_off(file, **_):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(host, "savez", breaks_off)
    with pytest.raises(OSError, match="no space left"):
        save_arrays(tmp_path / "case.npz", {})
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"precious"]


# --- bad cases


def put(name, place, value):
    """Set one entry."""

    def change(case):
        case[name] = case[name].copy()
        case[name][place] = value

    return change


def swap(name, value):
    """Set a whole array."""

    def change(case):
        case[name] = np.asarray(value(case[name]) if callable(value) else value)

    return change


def narrowed(case):
    """Features of another width than the block, and a residual."""
    case.update(W1=case["W1"][1:], x=case["x"][..., 1:], residual=np.array(1))


REQUIRED = [n for n in golden.INPUTS["fwl"] if n not in golden_block.OPTIONAL]
BAD = {  # what is wrong -> (which case, the change, the array, words of the message)
    **{f"missing {n}": (0, lambda case, n=n: case.pop(n), n, "found nothing") for n in REQUIRED},
    "missing segment": (2, lambda case: case.pop("segment"), "segment", "found nothing"),
    "segment in fwl": (0, swap("segment", 1), "segment", "leave it out"),
    "unknown array": (0, swap("extra", 1.0), "extra", "leave it out"),
    "answer of the other kind": (2, swap("dh", 1.0), "dh", "leave it out"),
    "x of two axes": (0, swap("x", lambda a: a[0]), "x", "(B,T,I)"),
    "no sequences": (0, swap("x", lambda a: a[:0]), "x", "B >= 1"),
    **{
        f"ill-shaped {n}": (0, swap(n, lambda a: a[..., 1:]), n, "expected shape")
        for n in ("labels", "weights", "b1", "b2", "gain", "bias", "c")
    },
    "W2 of another hidden width": (0, swap("W2", lambda a: a[1:]), "W2", "expected shape (F,D)"),
    "W1 of another width": (0, swap("W1", lambda a: a[1:]), "W1", "expected shape (I,F)"),
    "U of another width": (0, swap("U", lambda a: a.T), "U", "expected shape (D,V)"),
    **{f"{n} as a vector": (0, swap(n, lambda a: a[None]), n, "scalar") for n in ("eta_W1", "decay", "chunk", "kind", "normalizer")},
    "float labels": (0, swap("labels", lambda a: 1.0 * a), "labels", "expected integers, found float64"),
    "float16 features": (0, swap("x", lambda a: a.astype("float16")), "x", "expected float64 or float32, found float16"),
    "integer weights": (0, swap("weights", lambda a: a.astype("int64")), "weights", "expected float64 or float32, found int64"),
    "complex U": (0, swap("U", lambda a: a + 0j), "U", "expected float64 or float32, found complex128"),
    "float16 step size": (0, swap("eta_b2", lambda a: a.astype("float16")), "eta_b2", "found float16"),
    "text for a number": (0, swap("eps", "small"), "eps", "expected float64"),
    "real chunk": (0, swap("chunk", 1.5), "chunk", "expected an integer, found float64 1.5"),
    "label too large": (0, put("labels", (0, 3), 4), "labels", "[0, 4), found 4 at index (0, 3)"),
    "label below 0": (0, put("labels", (1, 0), -1), "labels", "found -1 at index (1, 0)"),
    **{f"NaN in {n}": (0, put(n, (0,) * len(golden_block.REAL[n]), np.nan), n, "expected finite numbers, found nan") for n in SLOW},
    "infinite feature": (0, put("x", (0, 2, 1), -np.inf), "x", "found -inf at index (0, 2, 1)"),
    "infinite weight": (0, put("weights", (0, 2), np.inf), "weights", "found inf at index (0, 2)"),
    "infinite step size": (0, swap("eta_gain", np.inf), "eta_gain", "found inf"),
    "NaN decay": (0, swap("decay", np.nan), "decay", "found nan"),
    "negative weight": (0, put("weights", (0, 2), -0.5), "weights", ">= 0, found -0.5"),
    "negative chunk": (0, swap("chunk", -1), "chunk", ">= 0, found -1"),
    "negative eps": (0, swap("eps", -1e-6), "eps", "found -1e-06"),
    "decay above 1": (0, swap("decay", 1.5), "decay", "[0, 1], found 1.5"),
    "decay below 0": (2, swap("decay", -0.1), "decay", "[0, 1], found -0.1"),
    "constant 0": (0, swap("constant", 0.0), "constant", "> 0, found 0.0"),
    "first_order 2": (0, swap("first_order", 2), "first_order", "0 or 1, found 2"),
    "residual 2": (0, swap("residual", 2), "residual", "0 or 1, found 2"),
    "residual of other features": (0, narrowed, "residual", "I ="),
    "unknown norm": (0, swap("norm", "batch"), "norm", "found 'batch'"),
    "segment 0": (2, swap("segment", 0), "segment", ">= 1, found 0"),
    "unknown kind": (0, swap("kind", "slow"), "kind", ", heads_mesa, found 'slow'"),
    "unknown normalizer": (0, swap("normalizer", "mean"), "normalizer", "found 'mean'"),
    "number as normalizer": (0, swap("normalizer", 1), "normalizer", "found 1"),
    "objects": (0, swap("x", lambda a: a.astype(object)), "x", "Python objects"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", BAD)
def test_a_bad_case_is_refused_by_name(wrong):
    """ValueError that starts with the array's name and says what was found."""
    i, change, name, words = BAD[wrong]
    case = draw(i)
    change(case)
    with pytest.raises(ValueError) as error:
        golden.run_case(case)
    assert str(error.value).startswith(f"{name}: expected") and words in str(error.value)


def test_a_width_of_one_needs_an_epsilon():
    """D = 1 has variance 0: refused with eps 0, computed with eps > 0."""
    rng = np.random.default_rng(0)
    case = draw(0) | {n: rng.standard_normal(s) for n, s in {"x": (3, 8, 1), "W1": (1, 9), "W2": (9, 1), "U": (1, 4)}.items()}
    case |= {n: np.ones(1) for n in ("b2", "gain", "bias")}
    assert np.isfinite(golden.run_case(case)["loss"])
    with pytest.raises(ValueError, match="eps: expected a number > 0, for a row of z has width D = 1"):
        golden.run_case(case | {"eps": np.array(0.0)})


@pytest.mark.parametrize("i", [FWL[3], DYNAMIC[1]])
def test_answers_that_are_not_finite_are_refused_by_name(i):
    """LayerNorm without epsilon on a constant row has no answer: an error, no NaN in a file."""
    case = draw(i)
    case |= {"eps": np.array(0.0), "W2": np.zeros_like(case["W2"]), "b2": np.ones_like(case["b2"])}
    with pytest.raises(ValueError, match="logits.*: expected finite answers, found nan"):
        golden.run_case(case)


def test_pickles_are_refused(tmp_path, capsys):
    """An object array in a file is never unpickled; the message names file and array."""
    np.savez(tmp_path / "case.npz", **draw(0) | {"x": np.array([{}, print], dtype=object)})
    assert command("check", tmp_path) == 1
    assert "case.npz: x: expected an array without pickles" in capsys.readouterr().out
    assert command("run", tmp_path / "case.npz", tmp_path / "out.npz") == 2
    assert "x: expected an array without pickles" in capsys.readouterr().err and not (tmp_path / "out.npz").exists()
