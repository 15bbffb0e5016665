"""How good answers are: the measures of classification, calibration, costs, and of numbers and texts."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qpeft.errors import MissingDependencyError

if TYPE_CHECKING:
    import numpy as np

BINS = 10


def classification(
    probabilities: np.ndarray,
    truth: np.ndarray,
    answers: Sequence[str],
    *,
    positive: str = "",
    cost: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Measures of `probabilities` (rows, answers) against `truth` (rows), the index of the true answer; all in 0..1 but the last.

    accuracy, balanced_accuracy (mean recall of the answers that occur), f1 (of `positive`, else the unweighted mean over answers),
    auroc (of `positive`, else the mean of one against the rest; left out where an answer does not occur), ece (expected
    calibration error of the most likely answer, 10 bins of equal width), log_loss (nats), and with `cost` the mean cost of the
    most likely answer (cost) and of the answer of least expected cost (cost_best).
    """
    import numpy as np

    sk = _sklearn_metrics()
    predicted = probabilities.argmax(axis=1)
    present = sorted(set(truth.tolist()))
    found = {
        "accuracy": float((predicted == truth).mean()),
        "balanced_accuracy": float(np.mean([(predicted[truth == k] == k).mean() for k in present])),
    }
    if positive:
        index = list(answers).index(positive)
        found["f1"] = float(sk.f1_score(truth == index, predicted == index, zero_division=0.0))
        if len(present) == 2:
            found["auroc"] = float(sk.roc_auc_score(truth == index, probabilities[:, index]))
    else:
        found["f1"] = float(sk.f1_score(truth, predicted, average="macro", labels=present, zero_division=0.0))
        if len(present) > 1 and len(present) < len(truth):
            found["auroc"] = float(np.mean([sk.roc_auc_score(truth == k, probabilities[:, k]) for k in present]))
    found["ece"] = expected_calibration_error(probabilities, truth)
    found["log_loss"] = float(-np.log(np.clip(probabilities[np.arange(len(truth)), truth], 1e-12, None)).mean())
    if cost:
        matrix = np.array([[float(cost[true][other]) for other in answers] for true in answers])
        found["cost"] = float(matrix[truth, predicted].mean())
        found["cost_best"] = float(matrix[truth, (probabilities @ matrix).argmin(axis=1)].mean())
    return found


def reliability(probabilities: np.ndarray, truth: np.ndarray, bins: int = BINS) -> list[dict[str, float]]:
    """The reliability curve. Confidence is the most likely answer's probability; bins have equal width and are closed on the right.

    Args:
        probabilities: `(rows, answers)`, each row sums to 1.
        truth: `(rows,)`, index of the right answer.
        bins: number of bins.

    Returns:
        `confidence` (mean), `accuracy` and `count` (rows) of each bin that is not empty.
    """
    import numpy as np

    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == truth
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    curve = []
    for index in range(bins):
        inside = place == index
        if inside.any():
            curve.append(
                {
                    "confidence": float(confidence[inside].mean()),
                    "accuracy": float(correct[inside].mean()),
                    "count": float(inside.sum()),
                }
            )
    return curve


def expected_calibration_error(probabilities: np.ndarray, truth: np.ndarray, bins: int = BINS) -> float:
    """The mean over rows of |accuracy - confidence| of their bin of the reliability curve.

    Args:
        probabilities: `(rows, answers)`, each row sums to 1.
        truth: `(rows,)`, index of the right answer.
        bins: number of bins of the reliability curve.
    """
    return sum(b["count"] * abs(b["accuracy"] - b["confidence"]) for b in reliability(probabilities, truth, bins)) / len(truth)


def interval(differences: np.ndarray, *, seed: int = 0, resamples: int = 2000) -> tuple[float, float]:
    """The 95% percentile bootstrap interval of the mean of per-row values.

    Args:
        differences: `(rows,)`, the values.
        seed: of the resampling.
        resamples: number of bootstrap samples.

    Returns:
        Lower and upper end, in the unit of the values.
    """
    import numpy as np

    generator = np.random.default_rng(seed)
    means = differences[generator.integers(0, len(differences), (resamples, len(differences)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def intervals(
    measure: Callable[[np.ndarray], Mapping[str, float]], rows: int, *, seed: int = 0, resamples: int = 300
) -> dict[str, list[float]]:
    """The 95% percentile bootstrap intervals of measures over rows, `[low, high]` each.

    Args:
        measure: the measures of the rows of these indices. A measure that some resamples lack is taken over the others.
        rows: how many there are.
        seed: of the resamples.
        resamples: how many are drawn.
    """
    import numpy as np

    generator, found = np.random.default_rng(seed), dict[str, list[float]]()
    for _ in range(resamples):
        for name, value in measure(generator.integers(0, rows, rows)).items():
            found.setdefault(name, []).append(value)
    return {name: np.quantile(values, [0.025, 0.975]).tolist() for name, values in found.items()}


_NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?")


def final_number(text: str) -> float | None:
    """The number after the last `####`, else the last number of the text; thousands commas are allowed. None if there is none."""
    after = text.rpartition("####")[2]
    numbers = _NUMBER.findall(after) or _NUMBER.findall(text)
    return float(numbers[0 if "####" in text and _NUMBER.search(after) else -1].replace(",", "").rstrip(".")) if numbers else None


def exact_match(answers: Sequence[str], truths: Sequence[str]) -> float:
    """The share of answers whose final number is the true one.

    Args:
        answers: generated texts.
        truths: the reference text of each.
    """
    hits = [
        (given := final_number(answer)) is not None and given == final_number(truth)
        for answer, truth in zip(answers, truths, strict=True)
    ]
    return sum(hits) / len(hits)


def rouge(answers: Sequence[str], truths: Sequence[str]) -> dict[str, float]:
    """Mean F-measures of ROUGE-1, -2 and -L, in 0..1, of the package rouge-score; English is stemmed as the package does it.

    Args:
        answers: generated texts.
        truths: the reference text of each.

    Returns:
        `rouge1`, `rouge2` and `rougeL`.

    Raises:
        MissingDependencyError: rouge-score is not installed.
    """
    try:
        from rouge_score import rouge_scorer
    except ImportError as error:
        raise MissingDependencyError("rouge-score", "applications", "ROUGE") from error
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=_Words())
    scores = [scorer.score(truth, answer) for answer, truth in zip(answers, truths, strict=True)]
    return {name: sum(score[name].fmeasure for score in scores) / len(scores) for name in ("rouge1", "rouge2", "rougeL")}


class _Words:
    """rouge-score's own words for ASCII; it drops all else, so other letters make words here, and each Chinese, Japanese or Korean
    character is one, as is usual where words are not spaced.
    """

    _unspaced = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
    _word = re.compile(rf"[{_unspaced}]|[^\W_{_unspaced}]+")

    def __init__(self) -> None:
        from rouge_score.tokenizers import DefaultTokenizer

        self._english = DefaultTokenizer(use_stemmer=True)

    def tokenize(self, text: str) -> list[str]:
        found = self._word.findall(text.lower())
        return [part for word in found for part in (self._english.tokenize(word) if word.isascii() else [word])]


def _sklearn_metrics() -> Any:
    try:
        from sklearn import metrics
    except ImportError as error:
        raise MissingDependencyError("scikit-learn", "applications", "measures of classification") from error
    return metrics
