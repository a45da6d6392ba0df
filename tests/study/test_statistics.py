"""Intervals over seeds and documents: cases known by hand, and a simulation. A docstring that opens with "N:" is a negative control."""

import math

import numpy as np
import pytest

from fwl_ref.adapt.table import T_975
from fwl_ref.study.statistics import mean_interval, student

pytestmark = pytest.mark.host("numbers on the host")


def test_a_table_worked_out_by_hand():
    """[[1,2,3],[3,4,8]]: row means 2 and 5, column means 2, 3, 5.5, mean 3.5; mean squares 13.5 of seeds, 6.5 of documents, 1.5 of the
    rest; variance (13.5 + 6.5 - 1.5) / 6; degrees of freedom 18.5^2 / (13.5^2 / 1 + 6.5^2 / 2 + 1.5^2 / 2) = 1.67, so those of 1.
    """
    found = mean_interval([[1, 2, 3], [3, 4, 8]])
    assert found.value == 3.5 and (found.seeds, found.documents) == (2, 3)
    assert found.half == pytest.approx(12.706 * math.sqrt(18.5 / 6))


def test_one_seed_is_the_paired_t_interval_over_documents():
    """mean ± t s / sqrt(D)"""
    changes = [-0.3, -0.1, -0.25, 0.05]
    found = mean_interval([changes])
    assert found.half == pytest.approx(3.182 * np.std(changes, ddof=1) / 2)
    assert mean_interval(np.array([changes]).T).half == pytest.approx(found.half)


def test_seeds_that_agree_add_no_certainty_about_documents():
    """Three equal seeds leave the standard error of the documents as it is."""
    one = mean_interval([[1.0, 2.0, 4.0]])
    three = mean_interval([[1.0, 2.0, 4.0]] * 3)
    assert three.half == pytest.approx(one.half)


def test_what_is_not_known_is_nan():
    """One number has no interval; a loss that ran away gives none."""
    assert math.isnan(mean_interval([[2.0]]).half) and mean_interval([[2.0]]).value == 2
    assert math.isnan(mean_interval([[1.0, math.nan]]).half)
    assert mean_interval([[1.0, 1.0], [1.0, 1.0]]).half == 0
    for wrong in ([], [1.0], np.zeros((0, 3))):
        with pytest.raises(ValueError, match="seeds and documents"):
            mean_interval(wrong)


def test_the_quantiles_are_those_of_student():
    """Found again by integration: P(|t| < q) = 0.95, by Simpson's rule on the density."""
    for freedom in (1, 2, 5, 29, 30):
        q = T_975[freedom - 1]
        x = np.linspace(0, q, 20001)
        scale = math.gamma((freedom + 1) / 2) / math.gamma(freedom / 2) / math.sqrt(freedom * math.pi)
        y = scale * (1 + x * x / freedom) ** (-(freedom + 1) / 2)
        inside = 2 * (x[1] / 3) * (y[0] + 4 * y[1:-1:2].sum() + 2 * y[2:-2:2].sum() + y[-1])
        assert inside == pytest.approx(0.95, abs=1e-4), freedom
    assert student(0.3) == T_975[0] and student(2.9) == T_975[1] and student(math.inf) == T_975[-1]


@pytest.mark.parametrize("deviations", [(1, 1, 1), (0.1, 2, 0.5), (0, 0, 1), (2, 0.1, 0.5)])
def test_intervals_hold_the_true_mean_95_times_in_100(deviations):
    """Of tables drawn with known parts of seeds, documents and rest. Never fewer than 94 in 100 of 2,000; more where the rest is alone,
    because a variance is never taken to be below what one direction shows.
    """
    rng, hits, tables = np.random.default_rng(0), 0, 2000
    seeds, documents = 4, 12
    for _ in range(tables):
        s, d, rest = (
            rng.normal(size=shape) * dev for shape, dev in zip(((seeds, 1), (1, documents), (seeds, documents)), deviations, strict=True)
        )
        found = mean_interval(3 + s + d + rest)
        hits += abs(found.value - 3) <= found.half
    assert hits / tables > 0.94


def test_documents_alone_would_be_too_sure():
    """N: a mutant that takes all S D numbers as independent misses the mean more than once in three."""
    rng, hits = np.random.default_rng(1), 0
    for _ in range(500):
        x = 3 + rng.normal(size=(4, 1)) + 0.1 * rng.normal(size=(4, 12))
        hits += abs(x.mean() - 3) <= 2.01 * x.std(ddof=1) / math.sqrt(x.size)
    assert hits / 500 < 0.66
