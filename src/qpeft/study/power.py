"""Power of the two-sided paired t-test over seeds."""

from __future__ import annotations

import math

from qpeft.report.statistics import scipy_stats

POWER = 0.8


def power(difference: float, spread: float, n: int, alpha: float = 0.05) -> float:
    """The chance that a paired t-test over `n` seeds finds a true difference.

    Args:
        difference: true mean of the paired differences.
        spread: their standard deviation.
        n: seeds, at least 2.
        alpha: level of the test, after any correction.

    Returns:
        A probability, from the non-central t distribution.
    """
    if spread == 0.0:
        return 1.0 if difference else alpha
    stats = scipy_stats()
    quantile = float(stats.t.ppf(1 - alpha / 2, n - 1))
    shift = abs(difference) * math.sqrt(n) / spread
    if shift > 37.0:  # scipy's non-central t loses its digits far out, where the power is 1
        return 1.0
    wrong_side = float(stats.nct.cdf(-quantile, n - 1, shift)) if shift < 4.0 else 0.0  # less than 1e-5 beyond, and NaN further out
    return float(stats.nct.sf(quantile, n - 1, shift)) + wrong_side


def detectable_difference(spread: float, n: int, alpha: float = 0.05, wanted: float = POWER) -> float:
    """The smallest true difference that a paired t-test over seeds finds with the wanted power.

    Args:
        spread: standard deviation of the paired differences.
        n: seeds, at least 2.
        alpha: level of the test, after any correction.
        wanted: power, 0 to 1.

    Returns:
        The difference, in the unit of the spread.
    """
    if spread == 0.0:
        return 0.0
    low, high = 0.0, spread
    while power(high, spread, n, alpha) < wanted:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if power(middle, spread, n, alpha) < wanted else (low, middle)
    return high


def seeds_needed(difference: float, spread: float, alpha: float = 0.05, wanted: float = POWER, most: int = 1000) -> int | None:
    """The fewest seeds with which a paired t-test finds a true difference with the wanted power.

    Args:
        difference: true mean of the paired differences.
        spread: their standard deviation, in the same unit.
        alpha: level of the test, after any correction.
        wanted: power, 0 to 1.
        most: the largest number of seeds that is tried.

    Returns:
        The number of seeds, or None if it is more than `most`.
    """
    return next((n for n in range(2, most + 1) if power(difference, spread, n, alpha) >= wanted), None)
