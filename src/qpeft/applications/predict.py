"""Predictions for a table: a label and its probability for each row, or a refusal with its reason."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qpeft.applications.columns import read_table
from qpeft.applications.scoring.evaluate_task import MAX_REASON, find_task, greedy_answers, label_probabilities
from qpeft.applications.task import BECAUSE, Task
from qpeft.errors import DataError, RunError
from qpeft.evaluation.generate import user_turn
from qpeft.training.loop.loaded_run import load_run
from qpeft.training.loop.run_dir import read_record

COLUMNS = ("label", "probability", "reasons", "refused")
CHUNK = 200  # rows answered, written and counted at once


def predict(
    run: Path, source: Path, target: Path, *, batch_size: int = 8, overwrite: bool = False, progress: bool = False
) -> dict[str, int]:
    """Answer each row of a table. The output has the columns of the input, then label, its probability, its reasons where the task
    has them, and why the row was refused (then the others are empty). Columns of the input that have one of these names are not
    taken over.

    Rows are written as they are answered, to a file next to the target that becomes the target in the end: killed, the same call
    goes on after the last whole chunk of rows.

    Args:
        run: folder of the finished run.
        source: the table: CSV, or another format of a data file.
        target: CSV file to write.
        batch_size: rows in a batch.
        overwrite: replace the output if it exists.
        progress: show a bar.

    Returns:
        The number of `rows`, and how many of them were `refused`.

    Raises:
        RunError: the run's task has no labels.
        DataError: the input lacks a column of the task, or the output exists (unless `overwrite`).
    """
    from tqdm.auto import tqdm

    task, _ = find_task(run)
    if task.kind != "classification":
        raise RunError("the run's task has no labels to predict", value=task.kind, hint="qpeft chat, or qpeft serve-model")
    if target.exists() and not overwrite:
        raise DataError("the file exists", file=str(target), hint="another --output, or --overwrite")
    rows = read_table(source)
    if lacking := [f.name for f in task.fields if f.name not in rows[0]]:
        raise DataError("columns are missing", file=str(source), field=", ".join(lacking), expected="every column of the task")
    added = [name for name in COLUMNS if name != "reasons" or task.reasons]
    kept = [column for column in rows[0] if column not in added]
    part = target.with_name(f"{target.name}.{read_record(run).id[:12]}.part")
    done = _answered(part, rows, kept, added)
    model = _Model(run, task, batch_size)
    with part.open("w", newline="", encoding="utf-8") as stream, tqdm(total=len(rows), unit="row", disable=not progress) as bar:
        writer = csv.DictWriter(stream, [*kept, *added], restval="", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(done)
        bar.update(len(done))
        for start in range(len(done), len(rows), CHUNK):
            chunk = model.answer(rows[start : start + CHUNK])
            writer.writerows(chunk)
            stream.flush()
            done += chunk
            bar.update(len(chunk))
    os.replace(part, target)
    return {"rows": len(rows), "refused": sum(bool(row["refused"]) for row in done)}


def _answered(part: Path, rows: Sequence[Mapping[str, str]], kept: Sequence[str], added: Sequence[str]) -> list[dict[str, str]]:
    """The rows that a killed call left, as far as they are those of the input; of a last chunk cut short nothing."""
    if not part.exists():
        return []
    with part.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        found = list(reader)
    if reader.fieldnames != [*kept, *added]:
        return []
    whole = found[: len(found) // CHUNK * CHUNK]
    same = all(old[column] == row[column] for old, row in zip(whole, rows, strict=False) for column in kept)
    return whole if same else []


class _Model:
    """The run's model, loaded when the first row needs it."""

    def __init__(self, run: Path, task: Task, batch_size: int) -> None:
        self.run, self.task, self.batch_size = run, task, batch_size
        self.loaded: tuple[Any, Any, Any] | None = None

    def answer(self, rows: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
        """Each row with what is added to it."""
        told = [{**row, "refused": "; ".join(self.task.refusals(row))} for row in rows]
        asked = [row for row in told if not row["refused"]]
        if not asked:
            return told
        self.loaded = self.loaded or load_run(self.run)
        config, model, tokenizer = self.loaded
        prompts, system = [self.task.prompt(row) for row in asked], config.data.system
        likely = label_probabilities(model, tokenizer, self.task, prompts, system=system, batch_size=self.batch_size)
        for row, p in zip(asked, likely, strict=True):
            row |= {"label": self.task.answers[int(p.argmax())], "probability": f"{p.max():.6f}"}
        if self.task.reasons:
            talks = [user_turn(prompt, system) for prompt in prompts]
            texts = greedy_answers(model, tokenizer, talks, max_new_tokens=MAX_REASON, batch_size=self.batch_size)
            for row, text in zip(asked, texts, strict=True):
                row["reasons"] = self._reasons(text, row["label"])
        return told

    def _reasons(self, text: str, label: str) -> str:
        """The reasons in words, if the text is of the right form and its label the likeliest one; else nothing."""
        read = self.task.parse(text)
        return text.partition(BECAUSE)[2].strip() if read is not None and read[0] == label else ""
