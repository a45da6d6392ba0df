"""How a model of the study begins, and what its gradient is: found by the settings of its row.

Most rows train ``lm.model`` as it is. The others ask for

    top      {"name": ..., options}       what stands on the features (``tops.py``)
    taught   {"held": {name: value}}      step sizes, or the decay, that start at a value and stay
             {"shared": True}             one step size instead of six
             {"carried": True}            a state that comes in from the window before
             {"together": limit}          all gradients clipped by one norm
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ..backend import Tree, host
from ..files import load_arrays
from ..lm.adamw import AdamState
from ..lm.checkpoint import TREES
from ..lm.corpus import Corpus
from ..lm.model import Config, loss_and_gradient
from ..lm.resume import resume
from ..lm.train import Progress, TrainSettings, begin
from ..tree import named_leaves, rebuild
from .memory import begin_memory
from .model import begin_with
from .scales import no_scales
from .teach import Gradient, gradient_of, held, shared, together
from .tops import top_of


class Learner(NamedTuple):
    """A pair of functions: where training begins, and the loss with its gradient."""

    begin: Callable[[Config, TrainSettings], Progress]
    gradient: Gradient | None  # None: of ``lm.model``


MODEL = Learner(begin, None)


def learner_of(settings: dict[str, Any]) -> Learner:
    """The learner of a row's model. Raises KeyError for a top that is not known."""
    top, taught = settings.get("top"), settings.get("taught", {})
    if top is None and not taught:
        return MODEL
    carried, fixed = taught.get("carried", False), taught.get("held", {})

    def gradient(p: Any, *given: Any) -> Any:
        config: Config = given[3]
        own: Gradient = loss_and_gradient
        if top is not None or carried:
            own = gradient_of(top_of(config, top or {"name": "stale"}), carried=carried)
        own = shared(own) if taught.get("shared") else own
        own = together(own, taught["together"]) if "together" in taught else own
        return held(own, tuple(fixed))(p, *given)

    def start(config: Config, s: TrainSettings) -> Progress:
        progress = begin(config, s)
        own = own_of(progress.params, config, s, top or {})
        progress = progress if own is None else begin_with(progress.params, own)
        params = progress.params
        values = {n: host.full_like(params.decay, v) for n, v in fixed.items()}
        decay = values.pop("decay", params.decay)
        return progress._replace(
            params=params._replace(eta=params.eta._replace(**values), decay=decay)
        )

    return Learner(start, gradient)


def own_of(p: Any, config: Config, s: TrainSettings, top: dict[str, Any]) -> Tree:
    """What the top of a row starts with beyond ``lm.model``'s ``p``; None if it has nothing."""
    name = top.get("name")
    if name == "memory":
        return begin_memory(config, s, top["rule"], top["heads"])
    if name == "decays":
        return host.zeros(3, dtype=p.decay.dtype)  # (3,)
    return no_scales(p) if name == "scales" else None


def load(
    path: Path, config: Config, training: TrainSettings, corpus: Corpus, learner: Learner
) -> Progress | None:
    """How far a model came; None if there is no file. What a model has beyond ``lm.model`` stands
    in the same file, which ``load_checkpoint`` does not look at.

    Raises as ``lm.resume.resume``; KeyError for a file that lacks it.
    """
    found = resume(path, config, training, corpus, writer="study")
    if found is None or learner is MODEL:
        return found
    fresh, arrays = learner.begin(config, training).params, load_arrays(path)
    trees = [
        rebuild(fresh, [arrays[f"{kind}/{name}"] for name, _ in named_leaves(fresh)])
        for kind in TREES
    ]
    return Progress(trees[0], AdamState(trees[1], trees[2], found.adam.step), found.history)
