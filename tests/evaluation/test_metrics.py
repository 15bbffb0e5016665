from __future__ import annotations

import numpy as np
import pytest

from qpeft.evaluation.metrics import (
    classification,
    exact_match,
    expected_calibration_error,
    final_number,
    interval,
    reliability,
    rouge,
)


def test_two_answers_by_hand() -> None:
    p = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.7, 0.3]])  # of good, bad
    truth = np.array([0, 1, 1, 0])
    cost = {"good": {"good": 0, "bad": 1}, "bad": {"good": 5, "bad": 0}}
    found = classification(p, truth, ["good", "bad"], positive="bad", cost=cost)
    assert found["accuracy"] == 0.75
    assert found["balanced_accuracy"] == 0.75
    assert found["f1"] == pytest.approx(2 / 3)
    assert found["auroc"] == 1.0  # both bad ones have a higher probability of bad than both good ones
    assert found["log_loss"] == pytest.approx(-np.log([0.9, 0.4, 0.8, 0.7]).mean())
    assert found["cost"] == 5 / 4
    assert found["cost_best"] == 1 / 4  # bad is the cheaper answer above a probability of 1/6: one good one is called bad


def test_auroc_is_the_share_of_pairs_in_order() -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet([1, 1, 1], 60)
    truth = rng.integers(0, 3, 60)

    def pairs(k: int) -> float:
        inside, outside = p[truth == k, k], p[truth != k, k]
        return float(np.mean(inside[:, None] > outside[None, :]))

    assert classification(p, truth, "abc")["auroc"] == pytest.approx(np.mean([pairs(k) for k in range(3)]))


def test_one_class_alone_has_no_auroc() -> None:
    p = np.array([[0.9, 0.1], [0.8, 0.2]])
    assert "auroc" not in classification(p, np.array([0, 0]), ["a", "b"], positive="b")


def test_calibration() -> None:
    p = np.array([[0.95, 0.05]] * 10 + [[0.35, 0.65]] * 10)
    truth = np.array([0] * 9 + [1] + [1] * 4 + [0] * 6)
    curve = reliability(p, truth)
    assert [(round(b["confidence"], 2), b["accuracy"], b["count"]) for b in curve] == [(0.65, 0.4, 10), (0.95, 0.9, 10)]
    assert expected_calibration_error(p, truth) == pytest.approx((0.25 + 0.05) / 2)
    sure = np.array([[1.0, 0.0]] * 4)
    assert expected_calibration_error(sure, np.zeros(4, dtype=int)) == 0.0


def test_interval_covers_the_mean_at_its_rate() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(100):
        low, high = interval(rng.normal(0.3, 1, 80), seed=trial, resamples=400)
        hits += low <= 0.3 <= high
    assert 88 <= hits <= 99


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so 3 + 4 = 7.\n#### 7", 7),
        ("#### 1,234", 1234),
        ("He pays $5,000.50.", 5000.5),
        ("it is -3", -3),
        ("first 3 then 12.", 12),
        ("#### $18 in all, not 20", 18),
        ("none", None),
    ],
)
def test_final_number(text: str, number: float | None) -> None:
    assert final_number(text) == number


def test_exact_match_and_rouge() -> None:
    assert exact_match(["#### 7", "no idea", "it is 3."], ["#### 7", "#### 1", "#### 4"]) == pytest.approx(1 / 3)
    scores = rouge(["the cat sat"], ["the cat ran"])
    assert scores["rouge1"] == pytest.approx(2 / 3)
    assert scores["rouge2"] == pytest.approx(1 / 2)


def test_rouge_is_the_package_s_in_english_and_counts_characters_in_chinese() -> None:
    from rouge_score import rouge_scorer

    truth, answer = "The cats_were running: 2.5 miles, weren't they?", "A cat ran 2 miles; the cats were tired."
    stock = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True).score(truth, answer)
    assert rouge([answer], [truth]) == {name: pytest.approx(score.fmeasure) for name, score in stock.items()}
    chinese = rouge(["我很高兴"], ["我不高兴"])
    assert chinese == {"rouge1": pytest.approx(0.75), "rouge2": pytest.approx(1 / 3), "rougeL": pytest.approx(0.75)}
    assert rouge(["Größe"], ["Größe"])["rouge1"] == 1
    assert rouge(["Größe"], ["Grüße"])["rouge1"] == 0
