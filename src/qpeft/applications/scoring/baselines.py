"""Plain baselines on the same rows: what a practitioner would try first, from scikit-learn with its defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qpeft.applications.tabular import data_frame, logistic_regression
from qpeft.applications.task import Task
from qpeft.errors import MissingDependencyError

if TYPE_CHECKING:
    import numpy as np


def baselines(
    task: Task, train: Sequence[Mapping[str, Any]], test: Sequence[Mapping[str, Any]], *, seed: int = 0
) -> dict[str, np.ndarray]:
    """Train the baselines and predict.

    For tables logistic regression (numbers standardised, missing ones at the median with a mark, categories one-hot) and gradient
    boosting (numbers as they are, categories as categories); for texts logistic regression on TF-IDF of words and pairs of words.
    "most frequent" answers with the shares of the training labels.

    Args:
        task: the task.
        train: training rows, as `prepare` writes them.
        test: rows to predict, as `prepare` writes them.
        seed: of the models.

    Returns:
        By name the probabilities `(test rows, task.answers)`.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
    """
    import numpy as np

    try:
        from sklearn.dummy import DummyClassifier
    except ImportError as error:
        raise MissingDependencyError("scikit-learn", "applications", "baselines") from error

    answers = task.answers
    truth = np.array([answers.index(row["label"]) for row in train])
    columns, rest = _columns(task, train), _columns(task, test)
    found = {}
    for name, model in {"most frequent": DummyClassifier(strategy="prior"), **_models(task, seed)}.items():
        model.fit(columns, truth)
        found[name] = np.zeros((len(test), len(answers)))
        found[name][:, model.classes_] = model.predict_proba(rest)
    return found


def _columns(task: Task, rows: Sequence[Mapping[str, Any]]) -> Any:
    """A text task's texts; a table as a data frame."""
    if len(task.fields) == 1 and task.fields[0].kind == "text":
        return [row["values"][task.fields[0].name] for row in rows]
    return data_frame(task.fields, [row["values"] for row in rows])


def _models(task: Task, seed: int) -> dict[str, Any]:
    from sklearn.compose import ColumnTransformer
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OrdinalEncoder

    if len(task.fields) == 1 and task.fields[0].kind == "text":
        words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
        return {"TF-IDF + logistic regression": make_pipeline(words, LogisticRegression(max_iter=2000))}
    numbers = [f.name for f in task.fields if f.kind in ("number", "date")]
    categories = [f.name for f in task.fields if f.kind == "category"]
    codes = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    trees = ColumnTransformer([("categories", codes, categories), ("numbers", "passthrough", numbers)])
    marked = list(range(len(categories)))
    return {
        "logistic regression": logistic_regression(task.fields),
        "gradient boosting": make_pipeline(trees, HistGradientBoostingClassifier(categorical_features=marked, random_state=seed)),
    }
