"""Sizes of the study. ``make study`` runs FULL; tests run smaller ones."""

from __future__ import annotations

from typing import NamedTuple

from ..checks import check_segment
from ..lm.model import Config, check_config
from ..lm.resume import CONFIG, TRAINING
from ..lm.train import TrainSettings, check_train_settings


class Sizes(NamedTuple):
    """What is trained and read, and what is tried on validation documents."""

    config: Config = CONFIG
    training: TrainSettings = TRAINING
    corpora: tuple[str, ...] = ("stdlib", "topics")
    windows: tuple[int, ...] = (256, 512)
    seeds: tuple[int, ...] = (0, 1, 2)
    few: tuple[int, ...] = (0, 1)  # seeds of what is asked beside the main table
    lengths: tuple[float, ...] = (0.25, 4.0)  # of training, in units of training.steps
    short: float = 0.5  # training of ablations and health, in the same units
    widths: tuple[int, ...] = (64, 192)  # beside config.width
    layers: tuple[int, ...] = (1, 6)
    segment: int = 64  # tokens per update of dynamic evaluation
    validation: tuple[int, int] = (5, 4096)  # documents, bytes of each
    test: tuple[int, int] = (12, 8192)
    statistics_batches: int = 64  # training segments for the RMS descent
    sgd: tuple[float, ...] = (0.02, 0.04, 0.08)  # step sizes tried first
    rms: tuple[float, ...] = (3e-4, 6e-4, 1.2e-3)
    block: tuple[float, ...] = (0.1, 0.3, 0.6)
    block_rms: tuple[float, ...] = (6e-4, 1.2e-3, 2.4e-3)
    untrained: tuple[float, ...] = (0.001, 0.003, 0.01)
    decays: tuple[float, ...] = (0.0, 0.01)  # tried with each
    thetas: tuple[float, ...] = (5.0, 10.0, 20.0)  # of the neural cache
    shares: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2, 0.3)
    ngram_shares: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)  # of n-grams beside a model
    more: int = 3  # further step sizes, as long as the best one is the first or the last
    order: int = 5  # of the n-grams


FULL = Sizes()


def check_sizes(s: Sizes) -> None:
    """Raise ValueError naming the first size that cannot be."""
    check_segment(s.segment)
    check_config(s.config)
    rates = ("sgd", "rms", "block", "block_rms", "untrained")
    for name in ("corpora", "windows", "seeds", "few", *rates, "decays"):
        if not getattr(s, name):
            raise ValueError(f"{name} must have at least one entry, got none")
    for name in ("validation", "test"):
        if min(getattr(s, name)) < 1:
            raise ValueError(f"{name}: documents and bytes must be at least 1, {getattr(s, name)}")
    for window in s.windows:
        check_train_settings(s.training._replace(window=window))
    for width in s.widths:
        check_config(s.config._replace(width=width))
