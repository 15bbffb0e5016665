"""Power of the paired t-test, against published values and against simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from qpeft.study.power import detectable_difference, power, seeds_needed


def test_published_values() -> None:
    """G*Power 3.1, matched pairs, two tails, alpha 0.05."""
    assert power(0.5, 1.0, 34) == pytest.approx(0.8078, abs=5e-4)
    assert power(1.0, 1.0, 10) == pytest.approx(0.8031, abs=5e-4)
    assert seeds_needed(0.5, 1.0) == 34
    assert seeds_needed(1.0, 1.0) == 10


@pytest.mark.parametrize(("difference", "n", "alpha"), [(0.8, 5, 0.05), (1.5, 5, 0.01), (0.3, 12, 0.05)])
def test_simulated_studies_find_as_many(difference: float, n: int, alpha: float) -> None:
    draws = np.random.default_rng(0).normal(difference, 1.0, size=(20_000, n))
    found = (stats.ttest_1samp(draws, 0.0, axis=1).pvalue < alpha).mean()
    assert power(difference, 1.0, n, alpha) == pytest.approx(found, abs=0.012)


def test_the_detectable_difference_has_the_wanted_power() -> None:
    visible = detectable_difference(0.2, 5, 0.01)
    assert power(visible, 0.2, 5, 0.01) == pytest.approx(0.8, abs=1e-6)
    assert detectable_difference(0.2, 10, 0.01) < visible
    assert seeds_needed(visible, 0.2, 0.01) == 5


def test_power_falls_steadily_with_the_spread() -> None:
    found = [power(0.0877, 0.003 * 1.05**k, 10, 0.05 / 36) for k in range(120)]
    assert found[0] == 1.0
    assert all(0.0 < after <= before + 1e-9 for before, after in itertools.pairwise(found))


def test_extremes() -> None:
    assert detectable_difference(0.0, 5) == 0.0
    assert power(100.0, 1.0, 5) == 1.0
    assert seeds_needed(1e-6, 1.0, most=50) is None
