"""Reasons made by a rule: which columns of a row speak most for a label. They are the rule's, not those of whoever decided.

The rule: a logistic regression is fitted on the training rows (`baselines.linear`; numbers standardised, missing ones at the median
with a mark, categories one-hot, no text). With z the transformed row, m the mean of z over the training rows and w the weights of
the label's log-odds, a column speaks for the label by the sum of w (z - m) over what the column became. The reasons of a label are
the columns of the largest sums, in that order. Columns by which rows are told apart in tables by group (age, sex and the like) are
not read by this regression, and so are never a reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from qpeft.applications.baselines import linear, table
from qpeft.applications.tables import Field, Task
from qpeft.errors import DataError

_DIGITS = 6  # sums are compared to so many digits, so that the last bits of a solver decide nothing


def reasons(task: Task, train: Sequence[Mapping[str, str]], rows: Sequence[Mapping[str, str]]) -> list[dict[str, list[str]]]:
    """For each row and each answer the names of `task.reasons` columns, the strongest first.

    Raises DataError if there are fewer columns that may be a reason.
    """
    import numpy as np

    fields = reason_fields(task)
    if len(fields) < task.reasons:
        raise DataError(
            f"{task.reasons} reasons asked for", file=task.name, expected=f"at most the {len(fields)} columns that may be one"
        )
    model = linear(fields, exact=True)
    model.fit(table(fields, train), [task.answers.index(task.answer(row)) for row in train])
    transform, regression = model[0], model[-1]
    weights = regression.coef_ if len(task.answers) > 2 else np.vstack([-regression.coef_, regression.coef_])
    centre = _dense(transform.transform(table(fields, train))).mean(axis=0)
    moved = _dense(transform.transform(table(fields, rows))) - centre
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


def judged(
    task: Task, train: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], said: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, float]]:
    """`judge` of each model's texts, and of a baseline that reads no row but its true label and always names that label's
    commonest reasons of the training rows.
    """
    counts = {
        answer: Counter(name for row in train if row["label"] == answer for name in row["reasons"][answer])
        for answer in task.answers
    }
    often = {answer: sorted(found, key=lambda name: (-found[name], name))[: task.reasons] for answer, found in counts.items()}
    guess = [task.explained(row["label"], often[row["label"]]) for row in rows]
    return {name: judge(task, rows, texts) for name, texts in {**said, "the label's commonest reasons": guess}.items()}


def judge(task: Task, rows: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> dict[str, float]:
    """Shares, in 0..1: of texts that follow the form (`parses`), of reasons named that are the rule's for the label that the text
    gives (`reasons_agree`; none where it does not parse), and of texts whose first reason is the rule's first (`first_agrees`).
    """
    parsed, agree, first = 0, 0.0, 0
    for row, text in zip(rows, texts, strict=True):
        read = task.parse(text)
        if read is None:
            continue
        label, names = read
        truth = row["reasons"][label]
        parsed += 1
        agree += len(set(names) & set(truth)) / task.reasons
        first += names[0] == truth[0]
    return {"parses": parsed / len(rows), "reasons_agree": agree / len(rows), "first_agrees": first / len(rows)}
