"""Which rows there are, in the order in which they are made: what is cheap and what is asked first.

A row that is on the disk already is not made again; what later rows need of it is taken over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from . import ways_untrained
from .rows import Row
from .settings import trunk_products
from .study import Study, read_at
from .ways import AS_IS, as_it_is, context_name, guard, home
from .ways_cache import CACHE, neural_cache, with_cache
from .ways_descent import descent_name, descent_row, descent_validation
from .ways_refreshed import (
    THROUGH,
    THROUGH_HEAD,
    TRUE_DEEP,
    TRUE_TRAINED,
    TRUE_UNTRAINED,
    named,
    refreshed_cache,
    refreshed_through,
    refreshed_trained,
    refreshed_untrained,
    trained_through,
    untrained_of,
)
from .ways_trained import CARRIED, PLAIN, PLAIN_HEAD, RESET, layer_row, validation_losses
from .ways_untrained import unembedding, untrained

UNTRAINED = "fast, not trained"
WHITENED = "fast, not trained, whitened values"
SHARP = "fast, not trained, sharp kernel"
NORMALISED = "fast, not trained, sharp kernel, normalised"
DELTA = "fast, not trained, delta rule"
BOUNDED = "fast, not trained, bounded"
KINDS = (  # of stale reads with whitened values
    (SHARP, ways_untrained.SHARP),
    (NORMALISED, ways_untrained.NORMALISED),
    (DELTA, ways_untrained.DELTA),
    (BOUNDED, ways_untrained.BOUNDED),
)
UNEMBEDDING = "fast unembedding, not trained"
BOTH = "fast, trained, carried, and cache"
SAFE = "guard: as it is, fast carried"
SAFE_CACHE = "guard: as it is, neural cache"
SAFE_ALL = "guard: as it is, plain, fast, cache, both"
SAFE_TRUE = "guard: as it is, true gradients"
SAFE_THROUGH = "guard: as it is, true gradients, trained"
SAFE_BEST = "guard: as it is, cache, true gradients and cache, the same trained"


class Step(NamedTuple):
    """A row to make. ``needs`` are names of rows that it is made of."""

    name: str
    make: Callable[[dict[str, Row]], Row]
    needs: tuple[str, ...] = ()


def plan(study: Study) -> list[Step]:
    """All rows for these settings."""
    s = study.settings
    steps = [Step(AS_IS, lambda _: as_it_is(study, s.window))]
    steps += [
        Step(context_name(context), partial(_alone, as_it_is, study, context))
        for context in s.contexts
    ]
    steps += [
        Step(CACHE, lambda _: neural_cache(study)),
        Step(UNTRAINED, lambda _: untrained(study, UNTRAINED, whiten=False)),
        Step(WHITENED, lambda _: untrained(study, WHITENED, whiten=True)),
        *(Step(name, partial(_alone, untrained, study, name, True, kind)) for name, kind in KINDS),
        *_true(study, s.window),
        Step(TRUE_DEEP, lambda _: refreshed_untrained(study, s.window, TRUE_DEEP)),
        _true_cache(study, TRUE_DEEP),
        _guard(study, SAFE_TRUE, (AS_IS, TRUE_UNTRAINED)),
        _guard(study, SAFE_THROUGH, (AS_IS, THROUGH)),
        _guard(
            study,
            SAFE_BEST,
            (AS_IS, CACHE, *(f"{n}, and cache" for n in (TRUE_UNTRAINED, THROUGH))),
        ),
        Step(CARRIED, lambda _: layer_row(study, CARRIED)),
        Step(TRUE_TRAINED, lambda _: refreshed_trained(study)),
        Step(RESET, lambda _: layer_row(study, RESET)),
        Step(PLAIN, lambda _: layer_row(study, PLAIN)),
        Step(PLAIN_HEAD, lambda _: layer_row(study, PLAIN_HEAD)),
        Step(BOTH, lambda rows: _both(study, rows), (CARRIED,)),
    ]
    steps += [_guard(study, SAFE, (AS_IS, CARRIED)), _guard(study, SAFE_CACHE, (AS_IS, CACHE))]
    steps += [_guard(study, SAFE_ALL, (AS_IS, PLAIN, CARRIED, CACHE, BOTH))]
    for rms in (True, False):
        name = descent_name(study, rms, whole=False)
        steps.append(Step(name, partial(_alone, descent_row, study, rms, False)))
    best = descent_name(study, True, whole=False)
    steps.append(
        Step(f"{best}, and cache", lambda rows: _descent_cache(study, rows[best], rows), (best,))
    )
    steps += _long(study)
    for context in s.contexts:
        steps += _true(study, context)
    steps.append(Step(UNEMBEDDING, lambda _: unembedding(study, UNEMBEDDING)))
    for rms in (True, False) if s.full else ():
        name = descent_name(study, rms, whole=True)
        steps.append(Step(name, partial(_alone, descent_row, study, rms, True)))
    return steps


def chosen(steps: Sequence[Step], words: Sequence[str]) -> set[str]:
    """The names that contain one of ``words``, with all that is needed for them and the row that
    every other is compared with; all names if there are no words. A whole name means itself only.

    Raises ValueError for a word that no name contains.
    """
    names = [step.name for step in steps]
    if not words:
        return set(names)
    found = {AS_IS}
    for word in words:
        meant = [word] if word in names else [name for name in names if word in name]
        if not meant:
            raise ValueError(f"no row's name contains {word!r}: the rows are {', '.join(names)}")
        found.update(meant)
    for step in reversed(steps):  # what is needed stands before
        if step.name in found:
            found |= set(step.needs)
    return found


def _alone(make: Callable[..., Row], *rest: Any) -> Row:
    """A row made of no other: the last argument, the rows so far, is left out."""
    return make(*rest[:-1])


def take_over(study: Study, row: Row) -> None:
    """What later rows need of a row that was read from the disk."""
    if row.name == CACHE:
        study.memo["theta"] = row.chosen["theta"]
    if row.name == UNTRAINED:
        study.memo["eta", False] = row.chosen["eta"]


def _guard(study: Study, name: str, of: tuple[str, ...]) -> Step:
    return Step(name, lambda rows: guard(study, name, [rows[n] for n in of]), of)


def _both(study: Study, rows: dict[str, Row]) -> Row:
    window = study.settings.window
    tuned = validation_losses(study, CARRIED, window)
    return with_cache(study, BOTH, CARRIED, rows[CARRIED].losses, tuned, window)


def _descent_cache(study: Study, row: Row, rows: dict[str, Row]) -> Row:
    """Dynamic evaluation of the last layers and a cache of the frozen model's features, which take
    these layers once more; what lies below them does not move.
    """
    s, config = study.settings, study.model.config
    documents, tuned = descent_validation(study, True, row.chosen["rate"])
    found = with_cache(
        study, f"{row.name}, and cache", row.name, row.losses, tuned, s.window,
        documents=row.documents, tuned_on=documents,
    )  # fmt: skip
    seconds = rows[AS_IS].chosen["trunk_seconds"] * s.layers / config.layers
    products = trunk_products(config, s.window, s.layers)
    return found._replace(
        window=0, seconds=found.seconds + seconds, products=found.products + products
    )


def _true(study: Study, window: int) -> list[Step]:
    """True gradients with the trunk at a window: nothing trained, trained through them, and the
    unembedding trained as well; each alone and with the cache. The training is that of the
    settings' window.
    """
    plain = named(study, TRUE_UNTRAINED, window)
    base = () if window == study.settings.window else (context_name(window),)
    steps = [
        Step(plain, lambda _: refreshed_untrained(study, window), base),
        _true_cache(study, plain),
    ]
    for head in (False, True):
        name = named(study, THROUGH_HEAD if head else THROUGH, window)

        def trained(rows: dict[str, Row], head: bool = head) -> Row:
            return refreshed_through(study, rows[TRUE_UNTRAINED], window, head)

        def cached(rows: dict[str, Row], head: bool = head, name: str = name) -> Row:
            _, layer = trained_through(study, rows[TRUE_UNTRAINED], head)
            return refreshed_cache(study, rows[name], layer)

        steps += [
            Step(name, trained, (*base, TRUE_UNTRAINED)),
            Step(f"{name}, and cache", cached, (TRUE_UNTRAINED, name)),
        ]
    return steps


def _true_cache(study: Study, name: str) -> Step:
    """The cache on top of true gradients with nothing trained."""

    def make(rows: dict[str, Row]) -> Row:
        return refreshed_cache(study, rows[name], untrained_of(study, rows[name]))

    return Step(f"{name}, and cache", make, (name,))


def _long(study: Study) -> list[Step]:
    """Fast weights and cache on the model with a longer context; the layer was trained at the
    window.
    """
    long = study.settings.long
    base = context_name(long)
    fast, cache = f"{base}, {CARRIED}", f"{base}, {CACHE}"
    both, safe = f"{base}, {BOTH}", f"{base}, guard of all"

    def cached(rows: dict[str, Row]) -> Row:
        tuned = [home(read_at(study, d, long).nll) for d in study.validation]
        return with_cache(study, cache, base, rows[base].losses, tuned, long)

    def all_of(rows: dict[str, Row]) -> Row:
        tuned = validation_losses(study, CARRIED, long)
        return with_cache(study, both, fast, rows[fast].losses, tuned, long)

    of = (base, fast, cache, both)
    return [
        Step(fast, lambda _: layer_row(study, CARRIED, long), (base,)),
        Step(cache, cached, (base,)),
        Step(both, all_of, (fast,)),
        Step(safe, lambda rows: guard(study, safe, [rows[n] for n in of], window=long), of),
    ]
