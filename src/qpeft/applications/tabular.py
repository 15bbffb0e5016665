"""Rows of a task as a scikit-learn problem: the data frame and a logistic regression on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qpeft.applications.columns import Field


def data_frame(fields: Sequence[Field], rows: Sequence[Mapping[str, str]]) -> Any:
    """A pandas data frame of columns: numbers as float (days as ordinals), NaN where one is missing, and text.

    Args:
        fields: the columns.
        rows: text of each column, by name.
    """
    import pandas

    frame = pandas.DataFrame([{f.name: row[f.name] for f in fields} for row in rows])
    for f in fields:
        if f.kind in ("number", "date"):
            frame[f.name] = [f.value(row[f.name]) for row in rows]
            frame[f.name] = frame[f.name].astype(float)
    return frame


def logistic_regression(fields: Sequence[Field], *, exact: bool = False) -> Any:
    """Logistic regression on a table: numbers standardised, missing ones at the median with a mark, categories one-hot.

    The transformer has a part for each column, by its name.

    Args:
        fields: the columns.
        exact: solve to the last digits, so that every machine gives the same.

    Returns:
        A scikit-learn pipeline, not fitted.
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
