"""The plan: all runs as data, the most important ones first.

Within a stage every seed comes before the next group of rows. So a study that is stopped at any
time has its most important rows for all seeds, and an interval for each. Every section is asked of
one corpus and window before the main table is repeated for longer windows. What is asked beside the
main table has fewer seeds, ablations shorter training too, so that the whole plan takes two cores
somewhat over two hours.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

from ..demo import cost
from ..lm.model import Config
from ..lm.train import TrainSettings
from ..slow_block import FastParameters
from .memory import HEADS, RULES
from .outside import OUTSIDE
from .row import BASE, BLOCK, BLOCK_RMS, CACHE, CARRIED, MEMORY, RESET, RMS, SGD, Row, key_of
from .settings import Sizes

MU = 0.9  # of the momentum
NUDGE = 1e-6  # of all parameters, relative: what another order of rounding does


class Place(NamedTuple):
    """A corpus, a window and a seed."""

    corpus: str
    window: int
    seed: int


def plan(s: Sizes, texts: dict[str, str]) -> list[Row]:
    """All rows, in the order in which they are to be made; a key once. ``texts`` has the digest of
    each corpus.
    """
    first, builder = Place(s.corpora[0], s.windows[0], 0), Builder(s, texts)

    def main(corpus: str, window: int) -> list[Row]:
        return builder.stage(builder.main, Place(corpus, window, 0), s.seeds)

    rows = [row for corpus in s.corpora for row in builder.outside(corpus)]
    rows += main(s.corpora[0], s.windows[0])
    rows += builder.stage(builder.memories, first, s.seeds)
    rows += builder.stage(partial(builder.lengths, times=(1,)), first, s.seeds)
    rows += builder.stage(partial(builder.lengths, times=s.lengths), first, s.few)
    for corpus in s.corpora[1:]:
        rows += main(corpus, s.windows[0])
    rows += builder.stage(builder.ablations, first, s.few)
    rows += builder.stage(builder.health, first, s.few)
    rows += builder.stage(builder.sizes, first, s.few)
    for window in s.windows[1:]:
        for corpus in s.corpora:
            rows += main(corpus, window)
    return rows


def once(rows: Iterable[Row]) -> list[Row]:
    """The first row of each key: what there is to run. The page shows a run wherever it is asked
    for.
    """
    found: dict[str, Row] = {}
    for row in rows:
        found.setdefault(row.key, row)
    return list(found.values())


class Builder(NamedTuple):
    """Makes rows of given sizes."""

    s: Sizes
    texts: dict[str, str]

    def stage(self, groups: Any, place: Place, seeds: tuple[int, ...]) -> list[Row]:
        """The groups of all seeds: the first group of each seed, then the second, and so on."""
        columns = [groups(place._replace(seed=seed)) for seed in seeds]
        return [row for group in zip(*columns, strict=True) for rows in group for row in rows]

    def row(
        self,
        kind: str,
        section: int,
        variant: str,
        name: str,
        place: Place,
        settings: dict[str, Any],
        needs: tuple[str, ...] = (),
    ) -> Row:
        """A row with its key."""
        key = key_of(kind, self.texts[place.corpus], place.seed, settings, needs)
        return Row(key, kind, section, variant, name, *place, settings, needs)

    def train(
        self,
        section: int,
        variant: str,
        place: Place,
        config: Config,
        training: TrainSettings | None = None,
        nudge: float = 0.0,
        **own: Any,
    ) -> Row:
        """A model to train; ``own`` says what it has that ``lm.model`` has not (``learner.py``)."""
        t = training or self.training(place)
        t = t._replace(seed=place.seed)
        name = "fast weights" if config.fast else "plain"
        name = "another memory" if own.get("top", {}).get("name") == "memory" else name
        settings = {"config": config._asdict(), "training": t._asdict(), "nudge": nudge, **own}
        return self.row("train", section, variant, name, place, settings)

    def read(
        self, section: int, model: Row, name: str, way: str, place: Place, **options: Any
    ) -> Row:
        """A way of reading with a trained model; the windows are those it was trained with."""
        s = self.s
        asked = {"way": way, "validation": s.validation, "test": s.test, **options}
        settings = {**model.settings, **asked}
        return self.row("read", section, model.variant, name, place, settings, (model.key,))

    def training(self, place: Place) -> TrainSettings:
        """Of the main table; a longer window has as many tokens a step."""
        t = self.s.training
        return t._replace(window=place.window, batch=max(1, t.batch * t.window // place.window))

    def brief(self, place: Place) -> TrainSettings:
        """Of ablations and of training health, which are compared with each other alone."""
        t = self.training(place)
        return t._replace(steps=max(1, round(self.s.short * t.steps)))

    def outside(self, corpus: str) -> list[Row]:
        """Compressors of each document."""
        place = Place(corpus, 0, 0)
        settings = {"test": self.s.test, "order": self.s.order}
        rows = [(name, {**settings, "way": name}) for name in OUTSIDE]
        return [self.row("outside", 1, "", name, place, own) for name, own in rows]

    def tuned(self, way: str) -> dict[str, Any]:
        """What dynamic evaluation tries on validation documents."""
        s = self.s
        found = {"rates": getattr(s, way), "decays": s.decays, "more": s.more}
        own = {"batches": s.statistics_batches} if way in ("rms", "block_rms") else {}
        return found | {"segment": s.segment} | own

    def main(self, place: Place) -> list[list[Row]]:
        """Section 1, and section 4 from the losses of its rows."""
        s, t = self.s, self.training(place)
        fast, plain = s.config._replace(fast=True), s.config._replace(fast=False)
        cached = {"thetas": s.thetas, "shares": s.shares}
        p, f = (self.train(1, "", place, config) for config in (plain, fast))
        static = self.read(1, p, BASE, "static", place)
        reset = self.read(1, f, RESET, "fast", place, carried=False)
        carried = self.read(1, f, CARRIED, "fast", place, carried=True)
        names = {
            "sgd": SGD,
            "rms": RMS,
            "block": BLOCK,
            "block_rms": BLOCK_RMS,
            "untrained": "plain, fast weights switched on at test time",
        }
        adapting = {
            way: self.read(1, p, name, way, place, **self.tuned(way)) for way, name in names.items()
        }
        same = "plain, equal training compute"
        c = self.train(1, same, place, plain, t._replace(steps=equal_steps(plain, fast, t)))
        longer = "plain, longer window of equal inference compute"
        width = equal_window(plain, fast, t.window)
        long = t._replace(window=width, batch=max(1, t.batch * t.window // width))
        w = self.train(1, longer, place, plain, long)
        o = self.train(1, "first order", place, fast._replace(first_order=True))
        caches = [
            self.read(1, p, CACHE, "cache", place, carried=False, **cached),
            self.read(
                1, f, "fast weights, carried, neural cache", "cache", place, carried=True, **cached
            ),
        ]
        counted = {"shares": s.ngram_shares, "order": s.order}
        counts = [
            self.read(1, p, "plain, n-grams of the document", "n-grams", place, **counted,
                      carried=False),
            self.read(1, f, "fast weights, carried, n-grams of the document", "n-grams", place,
                      **counted, carried=True),
        ]  # fmt: skip
        where = [
            self.row("where", 4, "", r.name, place, {"test": s.test}, (static.key, r.key))
            for r in (carried, adapting["sgd"], adapting["block"])
        ]
        return [
            [p, f, static, carried, reset],
            [adapting["block"], adapting["sgd"]],
            [c, self.read(1, c, same, "static", place)],
            where,
            [adapting["rms"], adapting["untrained"], adapting["block_rms"], *caches],
            counts,
            [w, self.read(1, w, longer, "static", place)],
            [
                o,
                self.read(1, o, "fast weights, first order, reset", "fast", place, carried=False),
                self.read(1, o, "fast weights, first order, carried", "fast", place, carried=True),
            ],
        ]

    def pair(self, variant: str, place: Place, config: Config, t: TrainSettings) -> list[Row]:
        """Section 2: a plain and a fast model of one size, and what adapting gains on each."""
        p, f = (
            self.train(2, variant, place, config._replace(fast=fast), t) for fast in (False, True)
        )
        return [
            p,
            f,
            self.read(2, p, BASE, "static", place),
            self.read(2, f, CARRIED, "fast", place, carried=True),
            self.read(
                2,
                p,
                BLOCK,
                "block",
                place,
                **self.tuned("block"),
            ),
        ]

    def memories(self, place: Place) -> list[list[Row]]:
        """Section 3: what is written by a gradient against what is written by a projection."""
        c = self.s.config
        p, f = (
            self.train(3, words, place, c._replace(fast=fast))
            for words, fast in (("none", False), ("gradients: fast weights", True))
        )
        groups = [
            [
                p,
                f,
                self.read(3, p, BASE, "static", place),
                self.read(3, f, CARRIED, "fast", place, carried=True),
                self.read(3, f, RESET, "fast", place, carried=False),
            ]
        ]
        for rule in RULES:
            top = {"name": "memory", "rule": rule, "heads": HEADS}
            words = f"projections: {rule.replace('_', ' ')}"
            m = self.train(3, words, place, c._replace(fast=False), top=top)
            reads = ((MEMORY, True), ("memory, reset", False))
            groups += [[m, *(self.read(3, m, n, "top", place, carried=v) for n, v in reads)]]
        return groups

    def lengths(self, place: Place, times: tuple[float, ...]) -> list[list[Row]]:
        """Section 2, by training length, in units of the main table's."""
        t, c = self.training(place), self.s.config
        steps = [max(1, round(n * t.steps)) for n in times]
        return [self.pair(f"{n} steps", place, c, t._replace(steps=n)) for n in steps]

    def sizes(self, place: Place) -> list[list[Row]]:
        """Section 2, by width and by depth."""
        c, t = self.s.config, self.training(place)
        return [
            *(self.pair(f"width {w}", place, c._replace(width=w), t) for w in self.s.widths),
            *(self.pair(f"{n} layers", place, c._replace(layers=n), t) for n in self.s.layers),
        ]

    def changed(
        self, section: int, variant: str, place: Place, config: Config, t: TrainSettings, **o: Any
    ) -> list[Row]:
        """A fast model that differs in one thing, carried and reset, in windows of the place."""
        f = self.train(section, variant, place, config, t, **o)
        way, words = "top" if "top" in o else "fast", ((CARRIED, True), (RESET, False))
        own = {} if t.window == place.window else {"reading_window": place.window}
        return [f, *(self.read(section, f, n, way, place, carried=c, **own) for n, c in words)]

    def health(self, place: Place) -> list[list[Row]]:
        """Section 6: what removes the spikes of the gradient norm; each once more from parameters
        that differ as rounding would make them.
        """
        t, c = self.brief(place), self.s.config._replace(fast=True)
        cures = {
            "as it is": (c, t),
            "clip 0.25": (c, t._replace(clip=t.clip / 4)),
            "step sizes start at a third": (c, t._replace(step_size=t.step_size / 3)),
            "warm-up four times as long": (c, t._replace(warmup=4 * t.warmup)),
            "half the learning rate": (c, t._replace(rate=t.rate / 2)),
        }
        nudges = (("", 0.0), (", nudged", NUDGE))
        name, one = "one norm for all gradients", {"together": t.clip}
        return [
            *(
                self.changed(6, cure + note, place, *settings, nudge=nudge)
                for cure, settings in cures.items()
                for note, nudge in nudges
            ),
            *(
                self.changed(6, name + note, place, c, t, nudge=nudge, taught=one)
                for note, nudge in nudges
            ),
        ]

    def ablations(self, place: Place) -> list[list[Row]]:
        """Section 5: one thing changed, in training or in reading alone."""
        t, c = self.brief(place), self.s.config._replace(fast=True)
        trained = {
            "as it is": (c, t),
            "dialect jax: no fast dense biases": (c._replace(dialect="jax"), t),
            "no decay": (c, t._replace(decay=0.0)),
            "step sizes may be negative": (c, t._replace(nonnegative=False)),
            "updates divided by the tokens of a window": (c._replace(constant=float(t.window)), t),
        }
        groups = [self.changed(5, name, place, *own) for name, own in trained.items()]
        f = self.train(5, "as it is", place, c, t)
        off = {"without W1, b1": ("W1", "b1"), "without W2, b2": ("W2", "b2")}
        off["without gain, bias"] = ("gain", "bias")
        reads = [
            self.read(5, f, f"carried, read {words}", "fast", place, carried=True, off=names)
            for words, names in off.items()
        ]
        fresh = self.read(5, f, "reset, gradients taken afresh at every token", "fresh", place)
        leak = "reset, read inclusively: a leak"
        leak_row = self.read(5, f, leak, "top", place, carried=False, top={"name": "leak"})
        return [*groups, [*reads, leak_row], *self.otherwise(place), [fresh]]

    def otherwise(self, place: Place) -> list[list[Row]]:
        """Section 5, what ``lm.model`` has no setting for: another gradient, or another top."""
        t, c = self.brief(place), self.s.config._replace(fast=True)
        sequential = {"name": "sequential", "segment": self.s.segment}
        every = FastParameters._fields
        taught: dict[str, dict[str, Any]] = {
            "one step size for all": {"shared": True},
            "decay fixed": {"held": {"decay": t.decay}},
            "step sizes fixed": {"held": dict.fromkeys(every, t.step_size)},
            **{
                f"only {', '.join(fast)} fast": {"held": {n: 0.0 for n in every if n not in fast}}
                for fast in (every[:2], every[2:4], every[4:])
            },
        }
        tops: dict[str, dict[str, Any]] = {
            "gradients afresh in every segment": {**sequential, "within": True},
            "gradients afresh in every segment, read at its start": {**sequential, "within": False},
            "read inclusively: a leak": {"name": "leak"},
            "a decay for each layer and for the norm": {"name": "decays"},
            "a learned scale for each key and value": {"name": "scales"},
        }
        rows = [self.changed(5, name, place, c, t, taught=own) for name, own in taught.items()]
        longer = t._replace(window=2 * t.window)  # a window to read, and one to train on
        name = "state carried in training"
        rows += [self.changed(5, name, place, c, longer, taught={"carried": True})]
        rows += [self.changed(5, name, place, c, t, top=top) for name, top in tops.items()]
        # an optimizer's decay is a setting, and the learned one off
        window = {"name": "window", "tokens": self.s.segment}
        name = f"the last {self.s.segment} gradients alone"
        rows += [self.changed(5, name, place, c, t._replace(decay=0.0), top=window)]
        # steps of a momentum are 1 / (1 - mu) as long
        heavy = t._replace(step_size=t.step_size * (1 - MU), decay=0.0)
        top = {"name": "momentum", "mu": MU, "decay": t.decay}
        return [*rows, self.changed(5, f"momentum {MU:g}", place, c, heavy, top=top)]


def equal_steps(plain: Config, fast: Config, t: TrainSettings) -> int:
    """Steps of the plain model for the multiply-adds that the fast model trains with; rounded up.

    A training step is taken as three times a reading for both. A count says a little more for
    both, and more so for the plain model, but no more than 5 % (``tests/study``).
    """
    own, other = cost.static(plain, t.window), fast_products(fast, t.window)
    return -(-t.steps * other // own)


def fast_products(config: Config, window: int, carried: bool = False) -> int:
    """Multiply-adds of a window of the fast model with which the plain one is made equal.

    Sums over the past are counted as attention with q = k = 1, which they were when the rows were
    made. They take less since, by less than a thousandth of all: so much more the plain model has.
    """
    general = cost.past(config.chunk or window, window, 1, 2 * config.width, carried, False)
    short = cost.past_sums(window, 2 * config.width)
    return cost.fast(config, window, carried) - short + general


def equal_window(plain: Config, fast: Config, window: int) -> int:
    """The longest window, a multiple of ``window``, at which the plain model takes no more
    multiply-adds a byte than the fast one takes at ``window``, its state carried; at least
    ``window``.
    """
    limit = fast_products(fast, window, carried=True) / window
    found = window
    while cost.static(plain, found + window) / (found + window) <= limit and found < 64 * window:
        found += window
    return found
