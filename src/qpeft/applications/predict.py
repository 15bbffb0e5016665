"""Predictions for a table: a label and its probability for each row, or a refusal with its reason."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from qpeft.applications.answers import answers, conversation
from qpeft.applications.classify import ask
from qpeft.applications.evaluation import MAX_REASON, find_task
from qpeft.applications.tables import BECAUSE, Task
from qpeft.errors import DataError, RunError
from qpeft.training.data_files import read_rows
from qpeft.training.files import write_whole
from qpeft.training.run import load_run

COLUMNS = ("label", "probability", "reasons", "refused")


def predict(
    run: Path, source: Path, target: Path, *, batch_size: int = 8, overwrite: bool = False, progress: bool = False
) -> dict[str, int]:
    """Answer each row of `source` (CSV and the other formats of a data file) into the CSV `target`: the columns of the input, then
    label, its probability, its reasons where the task has them, and why the row was refused (then the others are empty). Columns
    of the input that have one of these names are not taken over.

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
    answered: dict[int, tuple[str, str, str]] = {}
    if asked:
        config, model, tokenizer = load_run(run)
        prompts, system = [task.prompt(rows[i]) for i in asked], config.data.system
        options: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
        likely = ask(model, tokenizer, task, prompts, system=system, **options)
        labels = [task.answers[k] for k in likely.argmax(axis=1)]
        why = [""] * len(asked)
        if task.reasons:
            texts = answers(model, tokenizer, [conversation(p, system) for p in prompts], max_new_tokens=MAX_REASON, **options)
            why = [_reasons(task, text, label) for text, label in zip(texts, labels, strict=True)]
        for i, label, p, reason in zip(asked, labels, likely.max(axis=1), why, strict=True):
            answered[i] = (label, f"{p:.6f}", reason)
    added = [name for name in COLUMNS if name != "reasons" or task.reasons]
    kept = [column for column in columns if column not in added]
    text = io.StringIO()
    writer = csv.DictWriter(text, [*kept, *added], restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for i, row in enumerate(rows):
        said = dict(zip(COLUMNS, (*answered.get(i, ("", "", "")), "; ".join(refusals[i])), strict=True))
        writer.writerow({**row, **said})
    write_whole(target, text.getvalue())
    return {"rows": len(rows), "refused": len(rows) - len(asked)}


def _reasons(task: Task, text: str, label: str) -> str:
    """The reasons in words, if the text is of the right form and its label the likeliest one; else nothing."""
    read = task.parse(text)
    return text.partition(BECAUSE)[2].strip() if read is not None and read[0] == label else ""
