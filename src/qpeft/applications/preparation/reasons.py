"""Reasons for a label from a logistic regression: they are the regression's, not those of whoever decided.

1. Fit a logistic regression on the training rows (`tabular.logistic_regression`: numbers standardised, missing numbers at the
   median with an indicator, categories one-hot, no text).
2. With z the transformed row, m the mean of z over the training rows and w the weights of the label's log-odds, a column
   contributes the sum of w (z - m) over its transformed parts.
3. The reasons of a label are the columns of the largest sums, in that order.

Columns by which results are reported apart (age, sex and the like) are not in the regression, so they are never a reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qpeft.applications.columns import Field
from qpeft.applications.tabular import data_frame, logistic_regression
from qpeft.applications.task import Task
from qpeft.errors import DataError

_DIGITS = 6  # sums are compared to so many digits, so that the last bits of a solver decide nothing


def find_reasons(task: Task, train: Sequence[Mapping[str, str]], rows: Sequence[Mapping[str, str]]) -> list[dict[str, list[str]]]:
    """The reasons of each row for each answer.

    Args:
        task: the task; `task.reasons` is the number of reasons.
        train: values of the training rows, by column.
        rows: values of the rows that get reasons, by column.

    Returns:
        For each row the names of `task.reasons` columns by answer, the strongest first.

    Raises:
        DataError: fewer columns may be a reason.
    """
    import numpy as np

    fields = reason_fields(task)
    if len(fields) < task.reasons:
        raise DataError(
            f"{task.reasons} reasons asked for", file=task.name, expected=f"at most the {len(fields)} columns that may be one"
        )
    model = logistic_regression(fields, exact=True)
    model.fit(data_frame(fields, train), [task.answers.index(task.answer(row)) for row in train])
    transform, regression = model[0], model[-1]
    weights = regression.coef_ if len(task.answers) > 2 else np.vstack([-regression.coef_, regression.coef_])
    centre = _dense(transform.transform(data_frame(fields, train))).mean(axis=0)
    moved = _dense(transform.transform(data_frame(fields, rows))) - centre
    parts = [transform.output_indices_[f.name] for f in fields]
    sums = np.stack([np.round(moved[:, part] @ weights[:, part].T, _DIGITS) for part in parts], axis=-1)  # (rows, answers, fields)
    order = np.argsort(-sums, axis=-1, kind="stable")[..., : task.reasons]
    return [{answer: [fields[i].name for i in row[k]] for k, answer in enumerate(task.answers)} for row in order.tolist()]


def reason_fields(task: Task) -> tuple[Field, ...]:
    """The columns that may be a reason."""
    told_apart = {group.field for group in task.groups}
    return tuple(f for f in task.fields if f.kind != "text" and f.name not in told_apart)


def _dense(values: Any) -> Any:
    return values.toarray() if hasattr(values, "toarray") else values
