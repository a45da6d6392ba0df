"""Train one model of the study, and keep what the other commands do not: the squared norm of every
parameter's gradient at every step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from ..backend import Array, host
from ..files import load_arrays, save_arrays
from ..lm.checkpoint import Checkpoint, save_checkpoint, text_of
from ..lm.corpus import Corpus
from ..lm.model import Config
from ..lm.ranks import ALONE
from ..lm.train import SAVE_EVERY, Progress, TrainSettings, advance, records
from ..tree import named_leaves, tree_map
from .learner import MODEL, Learner, load

TOP = 10  # steps of the largest gradient norms
LAST = 200  # steps whose mean loss is reported


class Trained(NamedTuple):
    """A model, and the squares of its gradients."""

    progress: Progress
    squares: Array  # (steps, leaves)


def train_model(
    path: Path,
    config: Config,
    training: TrainSettings,
    corpus: Corpus,
    nudge: float = 0.0,
    save_every: int = SAVE_EVERY,
    learner: Learner = MODEL,
) -> Trained:
    """Train from the checkpoint at ``path``, or from scratch; the same bits either way.

    ``nudge`` scales all starting parameters by 1 + nudge. Interrupted, the last finished step is
    saved.

    Raises as ``lm.train.train`` and ``lm.resume.resume``.
    """
    found = load(path, config, training, corpus, learner)
    beside = path.with_suffix(".squares.npz")
    if found is None:
        found = learner.begin(config, training)
        found = found._replace(params=tree_map(lambda p: p * (1 + nudge), found.params))
        old = host.zeros((0, len(list(named_leaves(found.params)))))  # (0,L)
    else:
        old = load_arrays(beside)["squares"][: found.adam.step]  # (n,L)
    params, adam, history = found.params, found.adam, list(found.history)
    new: list[Array] = []  # (L,) each
    text = text_of(corpus)

    def kept() -> Trained:
        squares = host.concatenate([old, host.stack(new)]) if new else old  # (n,L)
        return Trained(Progress(params, adam, tuple(history)), squares)

    def save() -> None:
        done = kept()
        save_arrays(beside, {"squares": done.squares})  # first: the checkpoint may not be ahead
        save_checkpoint(path, Checkpoint(config, training, text, done.progress, "study"))

    saved = adam.step if path.exists() else -1
    try:
        while adam.step < training.steps:
            later, moments, row = advance(
                params, adam, corpus, config, training, ALONE, learner.gradient
            )
            history += records([row], adam.step, later)
            params, adam = later, moments
            new.append(row[9 : 9 + old.shape[1]])
            if adam.step % save_every == 0:
                save()
                saved = adam.step
    finally:
        if saved != adam.step:
            save()
    return kept()


def described(trained: Trained) -> dict[str, Any]:
    """What the results keep of a training: its end, and the health of its gradients."""
    progress, squares = trained
    names = [name for name, _ in named_leaves(progress.params)]
    norms = host.asarray([r.grad_norm for r in progress.history])  # (n,)
    largest = host.argsort(-norms)[:TOP]  # (TOP,)
    share = squares[largest] / squares[largest].sum(axis=1, keepdims=True)  # (TOP,L)
    mean = share.mean(axis=0)  # (L,)
    most = host.argsort(-mean)[:3]  # (3,)
    bits = [r.bits_per_byte for r in progress.history[-LAST:]]
    last = progress.history[-1]
    return {
        "steps": len(norms),
        "training_bits_per_byte": sum(bits) / len(bits),
        "eta": list(last.eta),
        "decay": last.decay,
        "norm_median": float(host.median(norms)),
        "norm_largest": [float(norms[i]) for i in largest],
        "norm_largest_steps": [int(i) for i in largest],
        "norm_shares": {names[i]: float(mean[i]) for i in most},
    }
