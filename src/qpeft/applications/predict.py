"""Predictions for a table: a label and its probabilities for each row, or the reason why there is none."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qpeft.applications.scoring.evaluate_task import MAX_REASON, find_task, greedy_answers, label_probabilities
from qpeft.applications.table import Table, read_table
from qpeft.applications.task import BECAUSE, Task
from qpeft.errors import DataError, RunError
from qpeft.evaluation.generate import user_turn
from qpeft.progress import Count
from qpeft.training.loop.loaded_run import load_run
from qpeft.training.loop.run_dir import read_record

if TYPE_CHECKING:
    import numpy as np

CHUNK = 200  # rows answered, written and counted at once


@dataclass(frozen=True, kw_only=True)
class Decision:
    """How probabilities become a label: the likeliest one, or with `threshold` the positive class from that probability on, or
    with `cost[true][predicted]` the label of least expected cost.
    """

    threshold: float | None = None
    cost: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def check(self, task: Task) -> None:
        """Raises RunError for a threshold without a positive class, and for a cost that lacks a pair of answers."""
        if self.threshold is not None and self.cost:
            raise RunError("a threshold and costs decide twice", hint="one of them")
        if self.threshold is not None and not task.positive:
            raise RunError("a threshold needs a positive class", value=", ".join(task.answers), hint="--cost for several classes")
        if self.cost and (unknown := {*self.cost, *(a for row in self.cost.values() for a in row)} - {*task.answers}):
            raise RunError("no such answer", value=", ".join(sorted(unknown)), bound=", ".join(task.answers))

    def label(self, task: Task, p: np.ndarray) -> int:
        """The index of the answer for the probabilities `p`."""
        import numpy as np

        if self.threshold is not None:
            positive = task.answers.index(task.positive)
            return positive if p[positive] >= self.threshold else 1 - positive
        if self.cost:
            matrix = [[self.cost.get(true, {}).get(said, float(true != said)) for said in task.answers] for true in task.answers]
            return int((p @ np.array(matrix)).argmin())
        return int(p.argmax())


def predict(
    run: Path,
    source: Path,
    target: Path,
    *,
    decision: Decision | None = None,
    encoding: str | None = None,
    batch_size: int = 8,
    overwrite: bool = False,
    progress: bool = False,
) -> dict[str, int]:
    """Answer each row of a table into a CSV file.

    The output has the columns of the input as written, then `label`, `probability` (of the label), `probability_ANSWER` for each
    answer, `reasons` where the task has them, `warnings` (a number outside the range of the training rows, a text cut) and
    `refused` (why the model was not asked: a category that no training row had, a missing value). Where the input has a column
    of one of these names, the added one is called `predicted_NAME`.

    Rows are written as they are answered, to a file next to the target that becomes the target in the end: killed, the same call
    goes on after the last whole chunk of rows.

    Args:
        run: a finished run on a classification task.
        source: CSV, TSV, Excel, JSON, JSON Lines or Parquet, with the columns of the task.
        target: the CSV file to write; never the input.
        decision: default the likeliest label.
        encoding: of the input; default found out.
        batch_size: rows per forward pass.
        overwrite: replace the target.
        progress: show the count of rows.

    Returns:
        Counts of rows: "rows", "warned", "refused".

    Raises:
        RunError: the task has no labels, or the decision does not fit it.
        DataError: the input lacks a column of the task, or the output exists.
    """
    task, _ = find_task(run)
    decision = decision or Decision()
    if task.kind != "classification":
        raise RunError("the run's task has no labels to predict", value=task.kind, hint="qpeft chat, or qpeft serve-model")
    decision.check(task)
    if target.exists() and source.exists() and target.samefile(source):
        raise DataError("the output is the input", file=str(target), hint="another --output")
    if not target.parent.is_dir():
        raise DataError("no such folder", file=str(target.parent), hint="a folder that exists")
    if target.exists() and not overwrite:
        raise DataError("the file exists", file=str(target), hint="another --output, or --overwrite")
    table = read_table(source, encoding=encoding, notations={f.name: f.notation for f in task.fields})
    if lacking := [f.name for f in task.fields if f.name not in table.columns]:
        raise DataError("columns are missing", file=str(source), field=", ".join(lacking), expected="every column of the task")
    added = _added(task, table.columns)
    key = json.dumps([read_record(run).id, decision.threshold, decision.cost], sort_keys=True)
    part = target.with_name(f"{target.name}.{hashlib.sha256(key.encode()).hexdigest()[:12]}.part")
    done = _answered(part, table, added)
    model = _Model(run, task, decision, batch_size)
    with part.open("w", newline="", encoding="utf-8") as stream, Count("rows", len(table.rows), shown=progress) as count:
        writer = csv.DictWriter(stream, [*table.columns, *added.values()], restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(done)
        count.skip(len(done))
        for start in range(len(done), len(table.rows), CHUNK):
            answers = model.answer(table.rows[start : start + CHUNK])
            chunk = [
                written | {added[name]: value for name, value in answer.items()}
                for written, answer in zip(table.written[start : start + CHUNK], answers, strict=True)
            ]
            writer.writerows(chunk)
            stream.flush()
            done += chunk
            count.add(len(chunk))
    os.replace(part, target)
    counts = {
        name: sum(bool(row.get(added[column])) for row in done) for name, column in (("warned", "warnings"), ("refused", "refused"))
    }
    return {"rows": len(table.rows), **counts}


def _added(task: Task, columns: Sequence[str]) -> dict[str, str]:
    """What is added to a row -> its column in the output."""
    names = ["label", "probability", *(f"probability_{answer}" for answer in task.answers)]
    names += [*(["reasons"] if task.reasons else []), "warnings", "refused"]
    return {name: f"predicted_{name}" if name in columns else name for name in names}


def _answered(part: Path, table: Table, added: Mapping[str, str]) -> list[dict[str, str]]:
    """The rows that a killed call left, as far as they are those of the input; of a last chunk cut short nothing."""
    if not part.exists():
        return []
    with part.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        found = list(reader)
    if reader.fieldnames != [*table.columns, *added.values()]:
        return []
    whole = found[: len(found) // CHUNK * CHUNK]
    same = all(old[column] == row[column] for old, row in zip(whole, table.written, strict=False) for column in table.columns)
    return whole if same else []


class _Model:
    """The run's model, loaded when the first row needs it."""

    def __init__(self, run: Path, task: Task, decision: Decision, batch_size: int) -> None:
        self.run, self.task, self.decision, self.batch_size = run, task, decision, batch_size
        self.loaded: tuple[Any, Any, Any] | None = None

    def answer(self, rows: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
        """What is added to each row."""
        task = self.task
        told = [{"refused": "; ".join(task.refusals(row)), "warnings": "; ".join(task.warnings(row))} for row in rows]
        asked = [(row, added) for row, added in zip(rows, told, strict=True) if not added["refused"]]
        if not asked:
            return told
        self.loaded = self.loaded or load_run(self.run)
        config, model, tokenizer = self.loaded
        prompts, system = [task.prompt(row) for row, _ in asked], config.data.system
        likely = label_probabilities(model, tokenizer, task, prompts, system=system, batch_size=self.batch_size)
        for (_, added), p in zip(asked, likely, strict=True):
            chosen = self.decision.label(task, p)
            added |= {"label": task.answers[chosen], "probability": f"{p[chosen]:.6f}"}
            added |= {f"probability_{answer}": f"{value:.6f}" for answer, value in zip(task.answers, p, strict=True)}
        if task.reasons:
            talks = [user_turn(prompt, system) for prompt in prompts]
            texts = greedy_answers(model, tokenizer, talks, max_new_tokens=MAX_REASON, batch_size=self.batch_size)
            for (_, added), text in zip(asked, texts, strict=True):
                added["reasons"] = self._reasons(text, added["label"])
        return told

    def _reasons(self, text: str, label: str) -> str:
        """The reasons in words, if the text is of the right form and its label is the one predicted; else nothing."""
        read = self.task.parse(text)
        return text.partition(BECAUSE)[2].strip() if read is not None and read[0] == label else ""
