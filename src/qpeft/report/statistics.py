"""Intervals over seeds, paired differences and Holm's correction: all the statistics of a report.

Everything here is about the choice of seed. An interval over seeds says nothing about another data set, model or setting.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any

from qpeft.errors import MissingDependencyError

LEVEL = 0.95
MIN_SEEDS = 5  # fewer paired seeds prove nothing

_LOWER_IS_BETTER = ("loss", "perplexity", "error", "forgetting")
_HIGHER_IS_BETTER = ("accuracy", "match", "f1", "rouge", "bleu", "reward")


@dataclass(frozen=True)
class Estimate:
    """The mean of `n` values and the half width of its 95% t interval (None when n = 1: one value has no spread)."""

    mean: float
    half_width: float | None
    n: int

    @property
    def low(self) -> float:
        """Lower end of the interval; the mean when there is no interval."""
        return self.mean - (self.half_width or 0.0)

    @property
    def high(self) -> float:
        """Upper end of the interval; the mean when there is no interval."""
        return self.mean + (self.half_width or 0.0)

    def overlaps(self, other: Estimate) -> bool | None:
        """Whether the two intervals share a point; None when one of them has no interval."""
        if self.half_width is None or other.half_width is None:
            return None
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True)
class PairedDifference:
    """`label` minus `reference` in one metric, over the seeds that both finished.

    `p` is the two-sided paired t-test, `p_holm` the same after Holm's correction over all comparisons of one table; both are
    None when the differences do not vary, where the test is not defined. `lower` counts the seeds with a negative difference.
    """

    label: str
    reference: str
    difference: Estimate
    lower: int
    p: float | None
    p_holm: float | None = None


def estimate(values: Sequence[float]) -> Estimate:
    """mean(x) ± t(0.975, n-1) · s / √n, with s the sample standard deviation (n-1 below the fraction); n >= 1."""
    n = len(values)
    if n < 2:
        return Estimate(float(values[0]), None, n)
    quantile = float(scipy_stats().t.ppf((1 + LEVEL) / 2, n - 1))
    return Estimate(fmean(values), quantile * stdev(values) / math.sqrt(n), n)


def paired_difference(label: str, values: Sequence[float], reference: str, reference_values: Sequence[float]) -> PairedDifference:
    """Compare values with reference values, pair by pair.

    Args:
        label: name of the values.
        values: one per seed, at least two.
        reference: name of the reference.
        reference_values: one per seed, the same seeds in the same order.

    Returns:
        Mean difference (value minus reference) with its interval, and an uncorrected p value; None for p where all differences are
        equal.
    """
    differences = [value - other for value, other in zip(values, reference_values, strict=True)]
    summary = estimate(differences)
    n, spread = len(differences), stdev(differences)
    rounding = 1e-12 * max(map(abs, [*values, *reference_values]))
    p = 2 * float(scipy_stats().t.sf(abs(summary.mean) * math.sqrt(n) / spread, n - 1)) if spread > rounding else None
    return PairedDifference(label, reference, summary, sum(d < 0 for d in differences), p)


def corrected(rows: Sequence[PairedDifference]) -> list[PairedDifference]:
    """The rows of one table with Holm's correction over those that have a p value."""
    adjusted = iter(holm([row.p for row in rows if row.p is not None]))
    return [row if row.p is None else replace(row, p_holm=next(adjusted)) for row in rows]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p values, in the order given.

    With the m values sorted, p(1) <= ... <= p(m): adjusted p(i) = max over j <= i of min(1, (m - j + 1) · p(j)).
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def direction(metric: str) -> int:
    """-1 when a lower value of the metric is better, 1 when a higher one is, 0 when its name does not tell."""
    name = metric.lower()
    if any(word in name for word in _LOWER_IS_BETTER):
        return -1
    return 1 if any(word in name for word in _HIGHER_IS_BETTER) else 0


def scipy_stats() -> Any:
    """scipy.stats, or MissingDependencyError with the pip line."""
    try:
        from scipy import stats
    except ImportError as error:
        raise MissingDependencyError("scipy", "report", "an interval over seeds") from error
    return stats


def pareto(sizes: Sequence[float], values: Sequence[float], sign: int) -> list[int]:
    """The Pareto front of size and value.

    Args:
        sizes: sizes; smaller is better.
        values: values of the same points.
        sign: 1 if a larger value is better, -1 if a smaller one is.

    Returns:
        Indices of the points that no other equals or beats in both, by size.
    """
    chosen: list[int] = []
    for i in sorted(range(len(sizes)), key=lambda i: (sizes[i], -sign * values[i])):
        if not chosen or sign * values[i] > sign * values[chosen[-1]]:
            chosen.append(i)
    return chosen
