"""Training towards a file: go on from what is there, save what is finished. ``train`` and the demo
do it alike.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from . import footprint
from .checkpoint import Checkpoint, Text, load_checkpoint, save_checkpoint, text_of
from .corpus import Corpus, Document, split
from .model import Config
from .reading import shown
from .train import Progress, TrainSettings, begin, on_backend, train

# what the commands train unless asked for something else
CONFIG = Config(heads=2)
TRAINING = TrainSettings()


def resume(
    path: Path,
    config: Config,
    settings: TrainSettings,
    corpus: Corpus,
    *,
    writer: str = "train",
    anew: bool = False,
) -> Progress | None:
    """How far the same training came: the same settings, the same text. None if there is no file.

    Text is the same if its training documents are, wherever they lie. With ``anew`` another
    training of the same ``writer`` is to be replaced: None, and a line that says so.

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
    other = differences(found, config, settings, corpus)
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
    found: Checkpoint, config: Config, settings: TrainSettings, corpus: Corpus
) -> list[str]:
    """What a checkpoint was trained with that is not what is asked for: in words, one a thing."""
    was = found.config._asdict() | found.settings._asdict()
    asked = config._asdict() | settings._asdict()
    other = [f"{name} {was[name]}, not {asked[name]}" for name in asked if was[name] != asked[name]]
    text = text_of(corpus)
    if found.text.fingerprint.train == text.fingerprint.train:
        return other
    if found.text.source != text.source:
        return [*other, f"data {shown(found.text.source)}, not {shown(text.source)}"]
    return [*other, changed(found.text, text)]


def changed(was: Text, now: Text) -> str:
    """That a text is no longer what it was."""
    return (
        f"the text in {shown(now.source)} has changed since: its training part had {was.documents} "
        f"documents and {was.size:,} bytes, now {now.documents} and {now.size:,}"
    )


def train_towards(
    path: Path,
    config: Config,
    settings: TrainSettings,
    corpus: Corpus,
    start: Progress | None,
    *,
    writer: str = "train",
    backend: str = "numpy",
    **bar: Any,
) -> Progress:
    """Train from ``start`` (None: from scratch) on the device that ``backend`` names, with
    checkpoints at ``path``; ``bar`` is the label and position of the progress bar.

    Raises as ``train``; MemoryError says which size to lower.
    """
    text = text_of(corpus)

    def save(progress: Progress) -> None:
        save_checkpoint(path, Checkpoint(config, settings, text, progress, writer))

    together = None if backend == "numpy" else settings.batch
    need = footprint.training(config, settings.batch, settings.window, together=together)
    with footprint.explained("a training step", need, config, settings.window, settings.batch):
        if start is None:
            start = begin(config, settings, backend)
        else:
            start = on_backend(start, backend)
        return train(corpus, config, settings, start=start, save=save, **bar)


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
