"""``adapt`` from documents to a table: every row is saved when it is finished, and so is the table.

A row that fails is named in the results and does not stop the others. A run that was interrupted
goes on after its last row, its training after its last step.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..backend import (
    BackendError,
    backend_target,
    backend_versions,
    host,
    like,
    peak_bytes,
    wait,
)
from ..files import finite, reserved
from ..lm import llama
from ..lm.bar import Bar
from ..lm.device import to_backend
from ..lm.table import save_text
from ..pretrained.load import Pretrained
from . import table
from .documents import PARTS, Texts, count, summary
from .figure import save_figure
from .plan import BOTH, CACHE, CARRIED, PLAIN, RESET, SAFE_ALL, chosen, plan, take_over
from .rows import Row, load_row, save_row
from .settings import Settings, check_settings, need
from .store import Store, held
from .study import Study, TrainingTextError, documents_of
from .trunk import Model, features, model_on, plain_losses

VERSION = 2  # of what the rows mean: another one makes all rows anew
DRAWN = (CARRIED, RESET, PLAIN, CACHE, BOTH, SAFE_ALL)  # in the figure


class Outcome(NamedTuple):
    """What a run has made."""

    rows: tuple[Row, ...]
    failures: dict[str, str]  # row -> why it is not there


def run(
    found: Pretrained,
    texts: Sequence[Texts],
    settings: Settings,
    store: Store,
    out: Path,
    backend: str,
    only: Sequence[str] = (),
) -> Outcome:
    """Make all rows that are not there yet, or those whose names contain a word of ``only`` and
    what they need; and the table after each.

    Raises ValueError for settings, a model or words that cannot be, BackendError without the
    backend, and OSError if nothing can be written.
    """
    check_settings(settings)
    if found.family is not llama:
        raise ValueError(
            f"{found.path}: only models of the llama family can be adapted here, this one has "
            "another final normalisation"
        )
    backend_target(backend)
    out.mkdir(parents=True, exist_ok=True)
    with reserved(out / "results.json"):
        return _run(found, texts, settings, store, out, backend, only)


def _run(
    found: Pretrained,
    texts: Sequence[Texts],
    settings: Settings,
    store: Store,
    out: Path,
    backend: str,
    only: Sequence[str],
) -> Outcome:
    parameters = to_backend(found.parameters, backend)
    model = model_on(parameters, found.config, settings.at_once, settings.block)
    for text in texts:
        print(summary(text), flush=True)
    train, validation, test = (documents_of(texts, part) for part in PARTS)
    key = run_key(store.model, texts, settings, backend)
    study = Study(model, settings, store, out, key, train, validation, test, {})
    steps = plan(study)
    wanted = chosen(steps, only)
    print(_statement(model, texts, settings, store), flush=True)
    rows: dict[str, Row] = {}
    failures: dict[str, str] = {}
    began = time.monotonic()
    for number, step in enumerate(steps):
        row = load_row(out / "rows", key, step.name)
        if row is None and step.name not in wanted:
            continue
        if row is None:
            absent = [name for name in step.needs if name not in rows]
            if absent:
                failures[step.name] = f"it needs the row {absent[0]!r}, which is not there"
            else:
                row = _attempt(study, step, rows, failures)
        else:
            take_over(study, row)
        if row is not None:
            rows[step.name] = row
        if rows:
            write_results(out, tuple(rows.values()), failures, study, texts, backend, found.path)
        spent = time.monotonic() - began
        words = _words(study, row, rows) if row is not None else failures[step.name]
        Bar.write(f"[{spent:6.0f} s] {number + 1:2}/{len(steps)} {step.name}: {words}")
    if rows:
        print(f"\n{(out / 'results.txt').read_text(encoding='utf-8')}", flush=True)
    try:
        drawn = [name for name in DRAWN if name in rows] or list(rows)
        save_figure(out / "position.png", list(rows.values()), test, settings.length, drawn)
    except (ImportError, StopIteration) as error:
        print(f"no figure: {error}", flush=True)
    return Outcome(tuple(rows.values()), failures)


def run_key(model: str, texts: Sequence[Texts], settings: Settings, backend: str) -> str:
    """32 hexadecimal digits: with the same, a row would come out the same."""
    keys = [[t.name, [[d.key for d in part] for part in t[1:]]] for t in texts]
    words = json.dumps([VERSION, model, keys, settings, backend])
    return hashlib.sha256(words.encode()).hexdigest()[:32]


def write_results(
    out: Path,
    rows: Sequence[Row],
    failures: dict[str, str],
    study: Study,
    texts: Sequence[Texts],
    backend: str,
    path: str,
) -> None:
    """The table so far: as text, CSV, Markdown and JSON, each written whole."""
    if not any(row.name == table.AS_IS for row in rows):
        return
    found = table.lines(rows, study.test, study.settings, study.model)
    words = table.as_text(found, study.settings)
    if failures:
        words += "\n".join(["not there:", *(f"  {n}: {why}" for n, why in failures.items()), ""])
    save_text(out / "results.txt", words)
    save_text(out / "results.csv", table.as_csv(found))
    save_text(out / "results.md", table.as_markdown(found))
    about: dict[str, Any] = {
        "model": Path(path).name,
        "digest": study.store.model,
        "backend": backend,
        "versions": backend_versions(backend),
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "settings": study.settings._asdict(),
        "texts": [summary(text) for text in texts],
        "documents": [[d.source, d.tokens.name, len(d.tokens.ids) - 1] for d in study.test],
        "peak_device_bytes": peak_bytes(study.model.U),
        "lines": [line._asdict() for line in found],
        "nats": {
            row.name: {i: float(a.mean()) for i, a in zip(row.documents, row.losses, strict=True)}
            for row in rows
        },
        "chosen": {row.name: row.chosen for row in rows},
        "failures": failures,
    }
    save_text(out / "results.json", json.dumps(finite(about), indent=1) + "\n")


def _attempt(study: Study, step: Any, rows: dict[str, Row], failures: dict[str, str]) -> Row | None:
    """A row, saved; or None, and why."""
    try:
        with host.errstate(all="ignore"):  # rates that are too large explode: that is a result
            row = step.make(rows)
    except (OSError, BackendError, TrainingTextError):  # the next row would meet it as well
        raise
    except Exception as error:
        traceback.print_exc()
        failures[step.name] = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return None
    save_row(study.folder / "rows", study.key, row)
    return row


def _words(study: Study, row: Row, rows: dict[str, Row]) -> str:
    """The change on each text, and what was tuned."""
    if table.AS_IS not in rows:
        return "done"
    found = table.lines(list(rows.values()), study.test, study.settings, study.model)
    mine = [line for line in found if line.way == row.name]
    change = ", ".join(f"{line.text} {line.change:+.4f}" for line in mine)
    chosen = ", ".join(
        f"{name} {value:.4g}" for name, value in row.chosen.items() if isinstance(value, float)
    )
    return f"{change}  ({chosen})" if chosen else change


def _statement(model: Model, texts: Sequence[Texts], s: Settings, store: Store) -> str:
    """What the run needs, from the time that some windows take.

    Raises ValueError if the features would not fit below the limit of the store.
    """
    ids = host.resize(texts[-1].test[0].ids, s.at_once + 1)  # (n,) as many as go together

    def once() -> None:
        wait(plain_losses(model, features(model, ids, s.window), like(ids[1:], model.U)))

    once()
    began = time.perf_counter()
    once()
    seconds = (time.perf_counter() - began) / (len(ids) - 1)
    train, validation, test = (sum(count(getattr(text, part)) for text in texts) for part in PARTS)
    found = need(s, model.config, train, validation, test, seconds)
    kept = held(store)
    if store.folder is not None and found.disk + kept > store.limit and found.disk > store.limit:
        raise ValueError(
            f"features of these documents take {found.disk:,} bytes, more than the limit of "
            f"{store.limit:,}: raise --cache-limit, lower --train-tokens, or give --no-cache"
        )
    where = "nowhere" if store.folder is None else f"in {str(store.folder)!r}"
    return (
        f"needs about {found.memory / 2**30:.1f} GiB of memory, {found.disk / 2**30:.2f} GiB for "
        f"features (kept {where}, {kept / 2**30:.2f} GiB there), {found.trained / 2**30:.2f} GiB "
        f"for what is trained, and {found.seconds / 60:.0f} minutes ("
        f"{1000 * seconds:.3g} ms a token of the frozen model)"
    )
