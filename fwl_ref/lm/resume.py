"""Training towards a file: go on from what is there, save what is finished. ``train`` and the demo
do it alike.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from . import footprint
from .adamw import adam_init
from .checkpoint import (
    Checkpoint,
    Names,
    Text,
    fingerprint_of,
    load_checkpoint,
    save_checkpoint,
    text_of,
)
from .corpus import Corpus, Document, split
from .evaluate import with_step_size
from .model import Config, check_model
from .ranks import ALONE, Ranks, rows
from .reading import shown
from .train import Progress, TrainSettings, begin, on_backend, train

# what the commands train unless asked for something else
CONFIG = Config(heads=2)
TRAINING = TrainSettings()


class Origin(NamedTuple):
    """The model that training starts from, as its checkpoints remember it."""

    fingerprint: str = ""  # of the parameters; "": from scratch
    trained: Names = ()  # all that it was trained on


SCRATCH = Origin()


def origin_of(found: Checkpoint) -> Origin:
    """A checkpoint as the origin of another training."""
    return Origin(fingerprint_of(found.progress.params), (*found.text.train, *found.text.earlier))


def resume(
    path: Path,
    config: Config,
    settings: TrainSettings,
    corpus: Corpus,
    *,
    writer: str = "train",
    anew: bool = False,
    extend: bool = False,
    origin: Origin = SCRATCH,
) -> Progress | None:
    """How far the same training came: the same settings, text and origin. None if there is no file.

    Text is the same if its training documents are, wherever they lie. With ``anew`` another
    training of the same ``writer`` is to be replaced: None, and a line that says so. With
    ``extend`` the number of steps may differ, as long as so many are not done already.

    Raises ValueError for a file of another command or (without ``anew``) another training, naming
    what differs, and for what ``load_checkpoint`` refuses.
    """
    if not path.exists():
        return None
    found = load_checkpoint(path)
    if found.writer != writer:
        raise ValueError(
            f"{path} is a model of the command `{found.writer}`, and `{writer}` would replace it: "
            "give another --out"
        )
    done = found.progress.adam.step
    if extend and settings.steps < done and settings.steps != found.settings.steps:
        raise ValueError(
            f"{path} has {done} steps already, which cannot be undone: "
            f"give --steps {done} or more, or another --out"
        )
    if extend:  # how far to go is free
        found = found._replace(settings=found.settings._replace(steps=settings.steps))
    other = differences(found, config, settings, corpus, origin)
    if not other:
        return found.progress
    if not anew:
        raise ValueError(
            f"{path} was trained otherwise ({'; '.join(other)}): "
            "give the same settings and text, or another --out"
        )
    print(f"{path} was trained otherwise ({'; '.join(other)}): training anew", flush=True)
    return None


def differences(
    found: Checkpoint,
    config: Config,
    settings: TrainSettings,
    corpus: Corpus,
    origin: Origin = SCRATCH,
) -> list[str]:
    """What a checkpoint was trained with that is not what is asked for: in words, one a thing."""
    was = found.config._asdict() | found.settings._asdict()
    asked = config._asdict() | settings._asdict()
    other = [f"{name} {was[name]}, not {asked[name]}" for name in asked if was[name] != asked[name]]
    if found.origin != origin.fingerprint:
        names = (f"model {o}" if o else "scratch" for o in (found.origin, origin.fingerprint))
        other.append("started from {}, not from {}".format(*names))
    text = text_of(corpus)
    if found.text.fingerprint.train == text.fingerprint.train:
        return other
    if found.text.source != text.source:
        return [*other, f"data {shown(found.text.source)}, not {shown(text.source)}"]
    return [*other, changed(found.text, text)]


def changed(was: Text, now: Text) -> str:
    """That a text is no longer what it was."""
    return (
        f"the text in {shown(now.source)} has changed since: its training part had "
        f"{len(was.train)} documents and {was.size:,} bytes, now {len(now.train)} and {now.size:,}"
    )


def begin_from(found: Checkpoint, config: Config, settings: TrainSettings) -> Progress:
    """The parameters of a checkpoint as the start of a new training: step 0, zero moments.

    A plain model that becomes a fast one gets the step sizes and decay that a fresh one starts
    with; a fast model that becomes plain loses them. All else is taken over.

    Raises ValueError or TypeError if ``config`` has other shapes.
    """
    params = found.progress.params
    check_model(params, config)
    if config.fast and not found.config.fast:
        params = with_step_size(params, settings.step_size, settings.decay)
    if not config.fast:
        params = with_step_size(params, 0.0, 0.0)
    return Progress(params, adam_init(params), ())


def train_towards(
    path: Path,
    config: Config,
    settings: TrainSettings,
    corpus: Corpus,
    start: Progress | None,
    *,
    writer: str = "train",
    backend: str = "numpy",
    origin: Origin = SCRATCH,
    ranks: Ranks = ALONE,
    **options: Any,
) -> Progress:
    """Train from ``start`` (None: from scratch) on the device that ``backend`` names, with
    checkpoints at ``path`` that remember the ``origin``; ``options`` are those of ``train``: label
    and position of the progress bar, how often to save. All ``ranks`` call it, and the
    first one writes.

    Raises as ``train``; MemoryError says which size to lower.
    """
    text = text_of(corpus)._replace(earlier=origin.trained)

    def save(progress: Progress) -> None:
        made = Checkpoint(config, settings, text, progress, writer, origin.fingerprint)
        save_checkpoint(path, made)

    batch = len(range(settings.batch)[rows(ranks, settings.batch)])
    together = None if backend == "numpy" else batch
    need = footprint.training(config, batch, settings.window, together=together)
    with footprint.explained("a training step", need, config, settings.window, batch):
        if start is None:
            start = begin(config, settings, backend)
        else:
            start = on_backend(start, backend)
        kept = save if ranks.first else None
        return train(corpus, config, settings, start=start, save=kept, ranks=ranks, **options)


def known(text: Text, corpus: Corpus) -> str:
    """Whether the test documents of ``corpus`` are new to a model that was trained on ``text``."""
    now = text_of(corpus)
    if now.fingerprint == text.fingerprint:
        return f"the test documents of {shown(now.source)}, none of which was trained on"
    if now.fingerprint.train == text.fingerprint.train:
        return (
            f"the test documents of {shown(now.source)}; some have changed since training, "
            "none was trained on"
        )
    return (
        f"warning: {changed(text, now)}; the split may have changed with it, "
        "so test documents may have been trained on"
    )


def known_all(text: Text, source: str, documents: list[Document]) -> str:
    """Whether all ``documents`` of a source are new to a model that was trained on ``text``."""
    with suppress(ValueError):  # too few documents for a split: then it was not trained on them
        now = text_of(split(source, documents))
        if now.fingerprint.train == text.fingerprint.train:
            return f"all of {shown(source)}, what the model was trained on among it"
    return (
        f"all of {shown(source)}; as a whole not what the model was trained on "
        f"({shown(text.source)}), though single documents may be"
    )
