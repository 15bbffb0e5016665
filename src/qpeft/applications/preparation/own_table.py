"""A user's own table as a data set."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from qpeft.applications.columns import infer_fields, number, spelled
from qpeft.applications.data_sets.base import DataSet
from qpeft.applications.data_sets.sources import FileSource
from qpeft.applications.table import read_table
from qpeft.applications.task import Group
from qpeft.errors import DataError

logger = logging.getLogger(__name__)

MAX_LABELS = 60


def own_data(
    file: Path,
    label: str,
    *,
    name: str | None = None,
    instruction: str | None = None,
    positive: str = "",
    drop: Sequence[str] = (),
    group: str = "",
    groups: Sequence[str] = (),
    reasons: int = 0,
    encoding: str | None = None,
    max_text: int = 0,
) -> DataSet:
    """The data set of one table whose column `label` is to be predicted.

    Args:
        file: CSV, TSV, Excel, JSON, JSON Lines or Parquet.
        label: the column to predict: 2 to 60 different values.
        name: default the file's name.
        instruction: what the model is asked; default made of the label's name and values.
        positive: of two labels the one that metrics rank by; default the rarer one, which is logged.
        drop: columns that are not inputs.
        group: a column; rows with the same value (a patient, a customer) stay in one split.
        groups: columns for whose values metrics are reported apart; numbers in quartiles.
        reasons: each answer names so many columns (see `preparation.reasons`).
        encoding: of a text file, default found out.
        max_text: texts are cut after so many characters; 0: never.

    Raises:
        DataError: the file cannot be read, a column is not there, or the label's values are not 2 to 60. All problems at once.
    """
    table = read_table(file, encoding=encoding, texts=(label,))
    columns = table.columns
    problems = [
        DataError("no such column", file=str(file), field=column, expected=f"one of {', '.join(columns)}")
        for column in dict.fromkeys((label, *drop, *filter(None, (group,)), *groups))
        if column not in columns
    ]
    seen = sorted({row[label] for row in table.rows if row[label]}) if label in columns else []
    if label in columns and not 2 <= len(seen) <= MAX_LABELS:
        problems.append(DataError(f"{len(seen)} different labels", file=str(file), field=label, expected=f"2 to {MAX_LABELS}"))
    if positive and seen and positive not in seen:
        problems.append(DataError(f"got {positive!r}", file=str(file), field="positive", expected=f"one of {', '.join(seen)}"))
    if label in drop:
        problems.append(DataError("is the label", file=str(file), field=label, expected="columns other than the label in --drop"))
    if problems:
        raise DataError.collect(problems)
    if len(seen) == 2 and not positive:
        positive = min(seen, key=lambda value: (sum(row[label] == value for row in table.rows), value))
        logger.warning("the positive class of %s is %r, the rarer one; another one: --positive", label, positive)
    why = f", and the {reasons} facts that speak most for it" if reasons else ""
    edges = {g: infer_fields(table.rows, [g], notations=table.notations)[0] for g in groups}
    return DataSet(
        name=name or file.stem,
        title=f"{spelled(name or file.stem)}: {spelled(label)}",
        kind="classification",
        source=FileSource(path=file),
        read=lambda _: table.rows,
        notations=table.notations,
        licence="the user's own: fill in who may use the data",
        use="fill in what the data was collected for",
        limits=("Fill in whom the rows stand for, and what no decision may rest on.",),
        instruction=instruction or f"What is the {spelled(label)}? Answer with one of: {', '.join(seen)}{why}.",
        reasons=reasons,
        target=label,
        positive=positive,
        drop=(*drop, *([group] if group else ())),
        group=group,
        groups=tuple(
            Group(name=spelled(g), field=g, edges=_quartiles(table.rows, g) if edges[g].kind == "number" else ()) for g in groups
        ),
        max_text=max_text,
    )


def _quartiles(rows: Sequence[Mapping[str, str]], column: str) -> tuple[float, ...]:
    values = sorted(n for row in rows if (n := number(row[column])) is not None)
    return tuple(sorted({values[len(values) * q // 4] for q in (1, 2, 3)}))
