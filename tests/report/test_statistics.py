"""Statistics against scipy's own routines, hand-computed values and a published example of Holm's method."""

from __future__ import annotations

import random
import sys

import pytest
from scipy import stats

from qpeft.errors import MissingDependencyError
from qpeft.report.statistics import Estimate, direction, estimate, holm, paired_difference


@pytest.mark.parametrize("n", [2, 3, 5, 12])
def test_interval_is_that_of_scipy(n: int) -> None:
    generator = random.Random(n)
    values = [generator.gauss(2.2, 0.05) for _ in range(n)]
    found = estimate(values)
    low, high = stats.t.interval(0.95, n - 1, loc=sum(values) / n, scale=stats.sem(values))
    assert found.n == n
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-12)


def test_interval_by_hand() -> None:
    # 1, 2, 3: mean 2, standard deviation 1, t(0.975, 2) = 4.302653
    found = estimate([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.half_width == pytest.approx(4.302653 / 3**0.5, abs=1e-6)


def test_one_value_has_no_interval() -> None:
    assert estimate([2.5]) == Estimate(2.5, None, 1)
    assert estimate([2.5]).low == estimate([2.5]).high == 2.5


def test_overlap() -> None:
    assert Estimate(1.0, 0.5, 5).overlaps(Estimate(2.0, 0.5, 5)) is True  # they touch
    assert Estimate(1.0, 0.5, 5).overlaps(Estimate(2.0, 0.4, 5)) is False
    assert Estimate(2.0, 0.4, 5).overlaps(Estimate(1.0, 0.5, 5)) is False
    assert Estimate(1.0, None, 1).overlaps(Estimate(1.0, 0.4, 5)) is None


@pytest.mark.parametrize("n", [2, 5, 9])
def test_paired_test_is_that_of_scipy(n: int) -> None:
    generator = random.Random(n)
    first = [generator.gauss(2.2, 0.05) for _ in range(n)]
    second = [value + generator.gauss(0.01, 0.02) for value in first]
    found, expected = paired_difference("b", second, "a", first), stats.ttest_rel(second, first)
    interval = expected.confidence_interval(0.95)
    assert found.p == pytest.approx(float(expected.pvalue), rel=1e-10)
    assert (found.difference.low, found.difference.high) == pytest.approx((interval.low, interval.high), rel=1e-9)
    assert found.lower == sum(b < a for a, b in zip(first, second, strict=True))
    assert (found.label, found.reference, found.difference.n) == ("b", "a", n)


@pytest.mark.parametrize("shift", [0.0, 0.1])
def test_differences_that_do_not_vary_have_no_p(shift: float) -> None:
    values = [2.1, 2.2, 2.3]
    assert paired_difference("b", [value + shift for value in values], "a", values).p is None


def test_holm_by_hand() -> None:
    # m = 4, sorted 0.005 0.01 0.03 0.04, times 4 3 2 1: 0.02 0.03 0.06 0.04, made monotone: 0.02 0.03 0.06 0.06
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_is_monotone_capped_and_keeps_order() -> None:
    assert holm([0.5, 0.9, 0.6]) == [1.0, 1.0, 1.0]
    assert holm([]) == []
    assert holm([0.03]) == [0.03]
    generator = random.Random(0)
    p_values = [generator.random() ** 3 for _ in range(12)]
    adjusted = holm(p_values)
    assert all(a >= p for a, p in zip(adjusted, p_values, strict=True))
    ordered = [a for _, a in sorted(zip(p_values, adjusted, strict=True))]
    assert ordered == sorted(ordered)


def test_holm_rejects_what_the_step_down_procedure_rejects() -> None:
    """Holm's own rule: walk up the sorted p values while p(i) <= 0.05 / (m - i + 1)."""
    generator = random.Random(1)
    for _ in range(200):
        p_values = [generator.random() * 0.08 for _ in range(6)]
        rejected = set()
        for rank, index in enumerate(sorted(range(6), key=lambda i: p_values[i])):
            if p_values[index] > 0.05 / (6 - rank):
                break
            rejected.add(index)
        assert {i for i, p in enumerate(holm(p_values)) if p <= 0.05} == rejected


@pytest.mark.parametrize(
    ("metric", "expected"),
    [("loss", -1), ("perplexity", -1), ("forgetting", -1), ("token_accuracy", 1), ("exact_match", 1), ("rougeL", 1), ("tokens", 0)],
)
def test_direction(metric: str, expected: int) -> None:
    assert direction(metric) == expected


def test_scipy_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    assert estimate([1.0]).n == 1
    with pytest.raises(MissingDependencyError, match=r"qpeft\[report\]"):
        estimate([1.0, 2.0])
