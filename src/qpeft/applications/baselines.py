"""Plain baselines on the same rows: what a practitioner would try first, from scikit-learn with its defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qpeft.applications.tables import Field, Task, number
from qpeft.errors import MissingDependencyError

if TYPE_CHECKING:
    import numpy as np


def baselines(
    task: Task, train: Sequence[Mapping[str, Any]], test: Sequence[Mapping[str, Any]], *, seed: int = 0
) -> dict[str, np.ndarray]:
    """Name -> probabilities `(test rows, task.answers)`, trained on the rows `train`; rows are those of `prepare`.

    For tables logistic regression (numbers standardised, missing ones at the median with a mark, categories one-hot) and gradient
    boosting (numbers as they are, categories as categories); for texts logistic regression on TF-IDF of words and pairs of words.
    "most frequent" answers with the shares of the training labels.
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


def table(fields: Sequence[Field], rows: Sequence[Mapping[str, str]]) -> Any:
    """A data frame of these columns: numbers, NaN where there is none, and words."""
    import pandas

    frame = pandas.DataFrame([{f.name: row[f.name] for f in fields} for row in rows])
    for f in fields:
        if f.kind == "number":
            frame[f.name] = [number(row[f.name]) for row in rows]
            frame[f.name] = frame[f.name].astype(float)
    return frame


def linear(fields: Sequence[Field], *, exact: bool = False) -> Any:
    """Logistic regression on a table: numbers standardised, missing ones at the median with a mark, categories one-hot.

    The transformer has a part for each column, by its name. `exact` solves to the last digits, whatever the machine.
    """
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    def part(field: Field) -> Any:
        if field.kind == "category":
            return OneHotEncoder(handle_unknown="ignore")
        return make_pipeline(SimpleImputer(strategy="median", add_indicator=True), StandardScaler())

    read = ColumnTransformer([(f.name, part(f), [f.name]) for f in fields if f.kind != "text"])
    solver = {"solver": "newton-cholesky", "tol": 1e-12} if exact else {}
    return make_pipeline(read, LogisticRegression(max_iter=2000, **solver))


def _columns(task: Task, rows: Sequence[Mapping[str, Any]]) -> Any:
    """A text task's texts; a table as a data frame."""
    if len(task.fields) == 1 and task.fields[0].kind == "text":
        return [row["values"][task.fields[0].name] for row in rows]
    return table(task.fields, [row["values"] for row in rows])


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
    numbers = [f.name for f in task.fields if f.kind == "number"]
    categories = [f.name for f in task.fields if f.kind == "category"]
    codes = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    trees = ColumnTransformer([("categories", codes, categories), ("numbers", "passthrough", numbers)])
    marked = list(range(len(categories)))
    return {
        "logistic regression": linear(task.fields),
        "gradient boosting": make_pipeline(trees, HistGradientBoostingClassifier(categorical_features=marked, random_state=seed)),
    }
