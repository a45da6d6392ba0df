"""Hypothesis profiles; which backend the suite runs on, what is left out there, and a report of
both.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import pytest
from hypothesis import HealthCheck, Phase, settings

from fwl_ref.lm.data import Corpus, load_corpus
from tests import backends

_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}
_AWAY = {"derandomize": True, "phases": [Phase.explicit, Phase.generate]}  # on other backends: no search for the smallest failure
settings.register_profile("one", max_examples=1, **_AWAY, **_COMMON)
settings.register_profile("few", max_examples=3, **_AWAY, **_COMMON)
settings.register_profile("quick", max_examples=10, **_COMMON)
settings.register_profile("mutants", max_examples=10, **_AWAY, **_COMMON)  # of tools/mutate.py: the same examples for each of them
settings.register_profile("thorough", max_examples=100, derandomize=True, print_blob=True, **_COMMON)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "quick")
settings.load_profile(PROFILE)

left_out: Counter[str] = Counter()  # reason -> tests about the host alone
unmoved: list[str] = []  # tests that ran and moved no array to the device
notes: dict[str, str] = {}  # things that could not be checked here, and why: said at the end of every run


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """A dozen short, repetitive documents."""
    folder = tmp_path_factory.mktemp("text")
    for i in range(12):
        (folder / f"{i}.txt").write_text(f"the {i}th cat sat on mat {i}. " * 20)
    return load_corpus(str(folder))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "host(reason): about files, the command line or NumPy itself; left out on other backends")
    config.addinivalue_line("markers", "slow: left out of a quick run, which says how many")
    config.addinivalue_line("markers", "gpu: needs a GPU and CuPy; skipped, with the reason, where there is none")
    if backends.TARGET is None:
        pytest.exit(f"FWL_REF_BACKEND={backends.NAME}: {backends.described(backends.NAME)}", returncode=3)
    absent = backends.absent_required()
    if os.environ.get("CI", "").lower() not in ("", "0", "false") and absent:
        pytest.exit(f"CI=true, and a required backend is missing: {'; '.join(absent)}", returncode=3)
    if backends.NAME != "numpy":
        backends.install()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    reason = backends.missing("cupy") if any(item.get_closest_marker("gpu") for item in items) else ""
    kept, host = [], []
    for item in items:
        if reason and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=reason))
        mark = item.get_closest_marker("host")
        why = mark.args[0] if mark else backends.host_reason(item.nodeid)
        (host if why and backends.NAME != "numpy" else kept).append(item)
        left_out.update([why] if why else [])
    rest = between(kept) if os.environ.get("FWL_REF_ENDS") else []
    if rest:
        notes["slow tests, and parameters between the first and the last of each test"] = f"{len(rest)} cases, left out of a quick run"
    elsewhere = others(kept)
    items[:] = [item for item in kept if item not in rest and item not in elsewhere]
    config.hook.pytest_deselected(items=[*host, *({*rest, *elsewhere} & {*kept})])


def others(items: list[pytest.Item]) -> set[pytest.Item]:
    """What another process runs, if ``tests.backends`` has divided the suite: FWL_REF_PART = "2/2" is every second test function."""
    part, parts = map(int, os.environ.get("FWL_REF_PART", "1/1").split("/"))
    functions = list(dict.fromkeys(item.nodeid.split("[")[0] for item in items))
    mine = set(functions[part - 1 :: parts])
    return {item for item in items if item.nodeid.split("[")[0] not in mine}


def between(items: list[pytest.Item]) -> set[pytest.Item]:
    """The slow tests, and those that are neither the first nor the last of their function."""
    functions: dict[str, list[pytest.Item]] = {}
    for item in items:
        functions.setdefault(item.nodeid.split("[")[0], []).append(item)
    return {item for cases in functions.values() for item in cases[1:-1]} | {item for item in items if item.get_closest_marker("slow")}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    before = backends.moved[0]
    result = yield
    if backends.moved[0] == before:
        unmoved.append(item.nodeid)
    return result


def _report() -> list[str]:
    found = []
    for name in ("numpy", "array-api-compat", "array-api-strict", "cupy-cuda12x", "cupy-cuda13x", "hypothesis"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} absent")
    others = [name for name in backends.BACKENDS if name != backends.NAME]
    return [
        f"backend of this run: {backends.described(backends.NAME)}; others: {'; '.join(map(backends.described, others))}",
        f"installed: {', '.join(found)}; hypothesis profile: {PROFILE}",
    ]


def pytest_report_header() -> list[str]:
    """Which backends and versions run: a result means little without them."""
    return _report()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """``-q`` hides the header, so say it at the end, and what this run does not show."""
    if not terminalreporter.showheader:
        for line in _report():
            terminalreporter.write_line(line)
    reasons = "; ".join(f"{count} {reason}" for reason, count in left_out.most_common())
    if backends.NAME == "numpy":
        terminalreporter.write_line(f"about the host alone, left out on other backends: {left_out.total()} ({reasons})")
    else:
        line = f"left out as about the host alone: {left_out.total()} ({reasons}); ran without moving an array: {len(unmoved)}"
        terminalreporter.write_line(f"arrays moved to the device: {backends.moved[0]:,}; {line}")
        if os.environ.get("FWL_REF_UNMOVED"):
            terminalreporter.write_line("\n".join(unmoved))
    for what, why in notes.items():
        terminalreporter.write_line(f"not checked: {what}: {why}")
