"""From a data set's source to a folder of rows: train.jsonl, validation.jsonl, test.jsonl, task.json, CARD.md and recipe.yaml.

A row is `{"messages": [...], "label": answer, "values": {column: text}}`; `label` and `values` are there for classification, for
baselines, subgroups and prediction; where reasons are asked for, `reasons` holds the rule's for each answer. The schema and the
rule are learned from the training rows alone.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qpeft.applications.columns import cut, infer_fields
from qpeft.applications.data_sets.base import DataSet
from qpeft.applications.data_sets.sources import FileSource, HubSource, PackageSource
from qpeft.applications.preparation import recipe
from qpeft.applications.preparation.checks import findings, lost_texts
from qpeft.applications.preparation.data_card import card
from qpeft.applications.preparation.splits import PARTS, Split, normalised, split
from qpeft.applications.table import read_table
from qpeft.applications.task import FILE, Task
from qpeft.errors import DataError, MissingDependencyError
from qpeft.files import replace_folder
from qpeft.training.data.examples import Conversation, load_examples
from qpeft.training.data.files import read_rows

logger = logging.getLogger(__name__)

CARD = "CARD.md"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedData:
    """Result of a preparation: rows and SHA-256 of each part, and the rows left out, of which `unlabelled` have no label and the
    others are copies or kin of a test row. `kinds`: the task's columns by the kind that they were read as.
    """

    folder: Path
    rows: Mapping[str, int]
    hashes: Mapping[str, str]
    left_out: int
    unlabelled: int
    kinds: Mapping[str, Sequence[str]]


def prepare(
    data: DataSet,
    out: Path,
    *,
    file: Path | None = None,
    seed: int = 0,
    model: str = recipe.MODEL,
    overwrite: bool = False,
) -> PreparedData:
    """Read, check, split and write.

    Args:
        data: what to prepare.
        out: the folder to write.
        file: a local copy to read instead of the hub's.
        seed: of the split.
        model: the base model of the recipe, whose tokenizer measures the rows.
        overwrite: replace what is in the folder.

    Raises:
        DataError: the source cannot be had or is another file; a label is unknown; the test rows are not the frozen ones.
    """
    if out.exists() and any(out.iterdir()) and not overwrite:
        raise DataError("the folder is not empty", file=str(out), hint="another --out, or --overwrite")
    rows = read(data, file)
    made, task = _classification(data, rows, seed) if data.kind == "classification" else _messages(data, rows, seed)
    texts = {part: "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made.parts[part]).encode() for part in PARTS}
    hashes = {part: hashlib.sha256(text).hexdigest() for part, text in texts.items()}
    if data.tests and seed == 0 and file is None and hashes["test"] != data.tests:
        raise DataError(
            f"the test rows have SHA-256 {hashes['test']}", file=data.name, expected=f"the frozen test set {data.tests}"
        )
    with replace_folder(out) as new:
        for part, text in texts.items():
            (new / f"{part}.jsonl").write_bytes(text)
        task.write(new)
        counts = {part: Counter(row.get("label", "") for row in made.parts[part]) for part in PARTS}
        (new / CARD).write_text(card(data, task, counts, hashes, made.left_out, seed), encoding="utf-8")
        (new / recipe.FILE).write_text(recipe.recipe(task, new, model, {p: len(made.parts[p]) for p in PARTS}), encoding="utf-8")
    kinds: dict[str, list[str]] = {}
    for field in task.fields:
        kinds.setdefault(field.kind, []).append(field.name)
    return PreparedData(
        folder=out,
        rows={part: len(made.parts[part]) for part in PARTS},
        hashes=hashes,
        left_out=made.left_out,
        unlabelled=sum(not row[data.target] for row in rows) if data.kind == "classification" else 0,
        kinds=kinds,
    )


def read(data: DataSet, file: Path | None = None) -> list[Mapping[str, Any]]:
    """The rows as published.

    Args:
        data: the data set.
        file: a local copy to read instead of the hub's.

    Raises:
        DataError: the source cannot be had, is another file, or lacks a column.
    """
    source = data.source
    if isinstance(source, PackageSource):
        if file is not None:
            raise DataError("a local file was given", file=str(file), expected="none: the source is a package, pinned by its hash")
        assert data.read is not None
        return list(data.read(source.read()))
    if isinstance(source, FileSource):
        return list(
            data.read([source.path.read_bytes()]) if data.read is not None else read_table(source.path, texts=(data.target,)).rows
        )
    assert data.convert is not None
    given = [row.values for row in read_rows(file)] if file else _hub(source)
    try:
        return [data.convert(row) for row in given]
    except KeyError as error:
        raise DataError("a row lacks a column", file=str(file or source.dataset), field=str(error.args[0])) from error


def _hub(source: HubSource) -> list[dict[str, Any]]:
    try:
        import datasets
    except ImportError as error:
        raise MissingDependencyError("datasets", "train", f"the hub dataset {source.dataset!r}") from error
    try:
        return [dict(row) for row in datasets.load_dataset(source.dataset, source.name, split=source.split)]
    except Exception as error:  # the library and the network raise errors of many packages
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        hint = "connect to the hub, or give a local copy with --file"
        raise DataError(f"the dataset cannot be loaded: {reason}", file=source.dataset, hint=hint) from error


def _classification(data: DataSet, rows: Sequence[Mapping[str, Any]], seed: int) -> tuple[Split, Task]:
    unlabelled = sum(not row[data.target] for row in rows)
    rows = [row for row in rows if row[data.target]]
    labels = dict(data.labels) or {value: value for value in sorted({row[data.target] for row in rows})}
    if unknown := sorted({row[data.target] for row in rows} - labels.keys()):
        raise DataError(f"got {unknown[0]!r}", file=data.name, field=data.target, expected=f"one of {', '.join(labels)}")
    columns = [name for name in rows[0] if name != data.target and name not in data.drop]
    if isinstance(data.source, FileSource):
        for finding in findings(rows, columns, data.target):
            logger.warning("%s, %s", data.name, finding)

    def prompt(row: Mapping[str, str]) -> str:
        """Prompt of a row as the model reads it, cut to its limit. Rows with equal cut prompts count as copies."""
        read = [cut(row[column], data.max_text) for column in columns]
        return normalised(read[0]) if len(read) == 1 else json.dumps(read)

    parts = split(
        rows,
        prompt=prompt,
        label=lambda row: labels[row[data.target]],
        group=(lambda row: str(row[data.group])) if data.group else None,
        in_test=data.in_test,
        seed=seed,
        shuffled=_shuffled(data),
    )
    infer = functools.partial(
        infer_fields, words=data.words, units=data.units, values=data.values, notations=data.notations, max_text=data.max_text
    )
    task = Task(
        name=data.name,
        title=data.title,
        kind=data.kind,
        instruction=data.instruction,
        target=data.target,
        fields=infer(parts.parts["train"], columns),
        labels=labels,
        positive=data.positive,
        cost=data.cost,
        groups=data.groups,
        reasons=data.reasons,
        **_words(data),
    )
    for finding in lost_texts(rows, task.fields):
        logger.warning("%s, %s", data.name, finding)
    kept = (*columns, *(g.field for g in data.groups if g.field not in columns))

    def written(row: Mapping[str, str], why: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        answer = task.answer(row)
        said = task.explained(answer, why[answer]) if why else answer
        turns = [{"role": "user", "content": task.prompt(row)}, {"role": "assistant", "content": said}]
        whole = {"messages": turns, "label": answer, "values": {name: row[name] for name in kept}}
        return whole | ({"reasons": why} if why else {})

    def explained(rows: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
        found: Sequence[Mapping[str, Sequence[str]]] = [{}] * len(rows)
        if task.reasons:
            from qpeft.applications.preparation.reasons import find_reasons

            found = find_reasons(task, parts.parts["train"], rows)
        return [written(row, why) for row, why in zip(rows, found, strict=True)]

    return Split({part: explained(parts.parts[part]) for part in PARTS}, parts.left_out + unlabelled), task


def _shuffled(data: DataSet) -> tuple[str, ...]:
    """Data sets with a frozen test set keep their train and test files as published results have them."""
    return ("validation",) if data.tests else PARTS


def _words(data: DataSet) -> dict[str, Any]:
    """Facts about the data for a run's card."""
    return {"licence": data.licence, "use": data.use, "limits": data.limits}


def _messages(data: DataSet, rows: Sequence[Mapping[str, Any]], seed: int) -> tuple[Split, Task]:
    with tempfile.TemporaryDirectory() as scratch:  # through the one reader that checks formats
        file = Path(scratch) / f"{data.name}.jsonl"
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        examples = load_examples(str(file))
    written = [
        {"messages": [{"role": m.role, "content": m.content} for m in example.messages]}
        for example in examples
        if isinstance(example, Conversation)
    ]
    parts = split(
        written,
        prompt=lambda row: normalised("\n".join(m["content"] for m in row["messages"] if m["role"] == "user")),
        label=lambda row: "",
        seed=seed,
        shuffled=_shuffled(data),
    )
    return parts, Task(name=data.name, title=data.title, kind=data.kind, **_words(data))


def read_part(folder: Path, part: str) -> list[dict[str, Any]]:
    """The rows of a prepared part, as written.

    Args:
        folder: folder of the prepared data.
        part: "train", "validation" or "test".
    """
    return [dict(row.values) for row in read_rows(folder / f"{part}.jsonl")]


def read_task(folder: Path) -> Task:
    """The task of a prepared folder."""
    return Task.read(folder / FILE)
