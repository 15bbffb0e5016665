"""How far the reasons that a model names are those of the regression (see `preparation.reasons`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from qpeft.applications.task import Task


def score_all(
    task: Task, train: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], said: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, float]]:
    """`score_reasons` of each model, and of a baseline that knows the true label and always names the label's most frequent
    reasons.

    Args:
        task: the task.
        train: the training rows, with `label` and `reasons`.
        rows: the rows that were answered, with `label` and `reasons`.
        said: each model's texts, one per row.
    """
    counts = {
        answer: Counter(name for row in train if row["label"] == answer for name in row["reasons"][answer])
        for answer in task.answers
    }
    often = {answer: sorted(found, key=lambda name: (-found[name], name))[: task.reasons] for answer, found in counts.items()}
    guess = [task.explained(row["label"], often[row["label"]]) for row in rows]
    return {name: score_reasons(task, rows, texts) for name, texts in {**said, "the label's commonest reasons": guess}.items()}


def score_reasons(task: Task, rows: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> dict[str, float]:
    """Agreement of a model's reasons with the rule's.

    Args:
        task: the task.
        rows: the rows that were answered, with `reasons` by label.
        texts: the model's answer to each row.

    Returns:
        Shares, 0 to 1: `parses`, texts that follow the form; `reasons_agree`, named reasons that are the rule's for the label in
        the text (0 for a text that does not parse); `first_agrees`, texts whose first reason is the rule's first.
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
