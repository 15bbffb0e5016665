"""Predictions for a table: a label and its probability for each row, or a refusal with its reason."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from qpeft.applications.classify import label_log_likelihoods, probabilities
from qpeft.applications.evaluation import find_task
from qpeft.errors import DataError, RunError
from qpeft.training.data_files import read_rows
from qpeft.training.files import write_whole
from qpeft.training.run import load_run

COLUMNS = ("label", "probability", "refused")


def predict(
    run: Path, source: Path, target: Path, *, batch_size: int = 8, overwrite: bool = False, progress: bool = False
) -> dict[str, int]:
    """Answer each row of `source` (CSV and the other formats of a data file) into the CSV `target`: the columns of the input, then
    label, its probability, and why the row was refused (then label and probability are empty). Columns of the input that have one
    of these names are not taken over.

    Returns counts: {"rows", "refused"}.

    Raises:
        RunError: the run's task has no labels.
        DataError: the input lacks a column of the task, or the output exists (unless `overwrite`).
    """
    task, _ = find_task(run)
    if task.kind != "classification":
        raise RunError("the run's task has no labels to predict", value=task.kind, cure="qpeft chat, or qpeft serve-model")
    if target.exists() and not overwrite:
        raise DataError("the file exists", file=str(target), cure="another --output, or --overwrite")
    rows = [{k: "" if v is None or v != v else str(v).strip() for k, v in row.values.items()} for row in read_rows(source)]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    if lacking := [f.name for f in task.fields if f.name not in columns]:
        raise DataError("columns are missing", file=str(source), field=", ".join(lacking), expected="every column of the task")
    refusals = [task.refusals(row) for row in rows]
    asked = [i for i, reasons in enumerate(refusals) if not reasons]
    answered: dict[int, tuple[str, str]] = {}
    if asked:
        config, model, tokenizer = load_run(run)
        prompts = [task.prompt(rows[i]) for i in asked]
        scores = label_log_likelihoods(
            model, tokenizer, prompts, task.answers, system=config.data.system, batch_size=batch_size, progress=progress
        )
        for i, p in zip(asked, probabilities(scores), strict=True):
            answered[i] = (task.answers[int(p.argmax())], f"{p.max():.6f}")
    kept = [column for column in columns if column not in COLUMNS]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*kept, *COLUMNS])
    for i, row in enumerate(rows):
        said: tuple[Any, Any] = answered.get(i, ("", ""))
        writer.writerow([*(row.get(column, "") for column in kept), *said, "; ".join(refusals[i])])
    write_whole(target, text.getvalue())
    return {"rows": len(rows), "refused": len(rows) - len(asked)}
