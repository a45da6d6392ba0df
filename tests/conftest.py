"""Hypothesis profiles; which backend the suite runs on, what is left out there, and a report of
both.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings

from fwl_ref.lm.data import Corpus, load_corpus
from tests import backends

_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}
_AWAY = {"derandomize": True, "phases": [Phase.explicit, Phase.generate]}  # on other backends: no search for the smallest failure
settings.register_profile("few", max_examples=2, **_AWAY, **_COMMON)  # the simplest, which may be empty, and one that was drawn
settings.register_profile("quick", max_examples=10, **_COMMON)
settings.register_profile("mutants", max_examples=10, **_AWAY, **_COMMON)  # of tools/mutate.py: the same examples for each of them
settings.register_profile("thorough", max_examples=100, derandomize=True, print_blob=True, **_COMMON)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "quick")
settings.load_profile(PROFILE)
HALF = os.environ.pop("FWL_REF_HALF", "")  # which half of the suite this is; not for the runs of pytest that a test starts

left_out: Counter[str] = Counter()  # reason -> tests about the host alone
files_left_out: dict[Path, str] = {}  # files of such tests -> reason
unmoved: list[str] = []  # tests that ran and moved no array to the device
elsewhere: list[pytest.Item] = []  # tests of the other half of the suite
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


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """A file about the host alone is not even imported elsewhere."""
    if backends.NAME == "numpy" or not collection_path.name.startswith("test_"):
        return None
    reason = backends.host_file(collection_path)
    if reason:
        files_left_out[collection_path] = reason
    return True if reason else None


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
    rest = between(kept) if os.environ.get("FWL_REF_ENDS") else set()
    if rest:
        notes["slow tests, and parameters between the first and the last of each test"] = f"{len(rest)} cases, left out of a quick run"
    items[:] = [item for item in kept if item not in rest]
    config.hook.pytest_deselected(items=[*host, *rest])
    if PROFILE != "mutants":
        share_examples(items)
    if HALF.startswith("last:"):
        items.reverse()


def functions(items: list[pytest.Item]) -> list[list[pytest.Item]]:
    """The cases of each test function."""
    found: dict[str, list[pytest.Item]] = {}
    for item in items:
        found.setdefault(item.nodeid.split("[")[0], []).append(item)
    return list(found.values())


def between(items: list[pytest.Item]) -> set[pytest.Item]:
    """The slow tests, and those that are neither the first nor the last of their function."""
    inner = {item for cases in functions(items) for item in cases[1:-1]}
    return inner | {item for item in items if item.get_closest_marker("slow")}


def share_examples(items: list[pytest.Item]) -> None:
    """A property that runs over many cases, every rule say, has the examples of its profile shared out among them."""
    for cases in functions(items):
        test = cases[0].function  # one for all of its cases
        if hasattr(test, "hypothesis"):
            given = test._hypothesis_internal_use_settings
            test._hypothesis_internal_use_settings = settings(given, max_examples=share(given.max_examples, len(cases)))


def share(examples: int, cases: int) -> int:
    """The examples of each case: a fair share, but a tenth of all and three at least."""
    return min(examples, max(3, examples // 10, examples // cases))


def claimed(item: pytest.Item) -> bool:
    """Whether this process is the one to run a test. Two halves of the suite start at its two ends and
    meet wherever the faster one has got to: who first makes the file of a test runs it.
    """
    folder = HALF.partition(":")[2]
    if not folder:
        return True
    try:
        (Path(folder) / sha256(item.nodeid.encode()).hexdigest()).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    if claimed(item):
        return None  # as ever
    elsewhere.append(item)  # and so are all that follow: what is set up is torn down at the end
    return True


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    session.config.hook.pytest_deselected(items=elsewhere)


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
    counts = (left_out, Counter(files_left_out.values()))
    reasons, files = ("; ".join(f"{count} {why}" for why, count in found.most_common()) for found in counts)
    if backends.NAME == "numpy":
        terminalreporter.write_line(f"about the host alone, left out on other backends: {left_out.total()} ({reasons})")
    else:
        host = f"{len(files_left_out)} files ({files}); {left_out.total()} other tests ({reasons})"
        terminalreporter.write_line(f"arrays moved to the device: {backends.moved[0]:,}; ran without moving an array: {len(unmoved)}")
        terminalreporter.write_line(f"left out as about the host alone: {host}")
        if os.environ.get("FWL_REF_UNMOVED"):
            terminalreporter.write_line("\n".join(unmoved))
    for what, why in notes.items():
        terminalreporter.write_line(f"not checked: {what}: {why}")
