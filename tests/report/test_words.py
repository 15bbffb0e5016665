"""Numbers, units and names as a reader sees them."""

from __future__ import annotations

import pytest

from qpeft.report import words
from qpeft.report.statistics import Estimate


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (words.metric_name("loss"), "Held-out loss"),
        (words.heading("token_accuracy"), "Token accuracy\u00a0↑"),
        (words.heading("perplexity"), "Perplexity\u00a0↓"),
        (words.heading("tokens"), "Tokens"),
        (words.number(2.21314), "2.2131"),
        (words.number(-2.21314), "−2.2131"),
        (words.number(30.32578), "30.326"),
        (words.number(134.204), "134.20"),
        (words.number(12345.6), "12,346"),
        (words.signed(0.5), "+0.5000"),
        (words.signed(-0.5), "−0.5000"),
        (words.interval(Estimate(2.0, 0.01234, 3)), "± 0.0123"),
        (words.interval(Estimate(2.0, None, 1)), ""),
        (words.probability(0.0004), "< 0.001"),
        (words.probability(0.0312), "0.031"),
        (words.probability(None), "not defined"),
        (words.compact(1500), "1.5k"),
        (words.compact(999_999), "1M"),
        (words.compact(999_400), "999k"),
        (words.compact(460_800), "461k"),
        (words.compact(7), "7"),
        (words.percent(0.00217), "0.217%"),
        (words.percent(0.1131), "11.3%"),
        (words.percent(1.0), "100%"),
        (words.percent(12.345), "1,234%"),
        (words.duration(8.24), "8.2 s"),
        (words.duration(59.96), "1 min 00 s"),
        (words.duration(192), "3 min 12 s"),
        (words.duration(3599.7), "1 h 00 min"),
        (words.duration(7500), "2 h 05 min"),
        (words.gib(1.5 * 2**30), "1.50"),
        (words.listing([]), ""),
        (words.listing(["a"]), "a"),
        (words.listing(["a", "b", "c"]), "a, b and c"),
        (words.plural(1, "run"), "1 run"),
        (words.plural(2000, "run"), "2,000 runs"),
    ],
)
def test_words(found: str, expected: str) -> None:
    assert found == expected


def test_merged() -> None:
    first = {"torch": "2.6", "memory_bytes": 2**34, "gpus": [], "cores": 2}
    second = {"torch": "2.7", "memory_bytes": 2**34, "gpus": ["A", "B"], "cores": 2}
    assert words.merged([first, second]) == "cores 2, gpus A, B, memory 16.00 GiB, torch 2.6 or 2.7"
    assert words.merged([first]) == "cores 2, memory 16.00 GiB, torch 2.6"
    assert words.merged([{}]) == ""
