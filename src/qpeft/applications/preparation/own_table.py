"""A user's own table as a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from qpeft.applications.columns import infer_fields, number, read_table, spelled
from qpeft.applications.data_sets.base import DataSet
from qpeft.applications.data_sets.sources import FileSource
from qpeft.applications.task import Group
from qpeft.errors import DataError


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
) -> DataSet:
    """A data set of the user's own: one table, of which one column is to be predicted.

    Args:
        file: the table: CSV, TSV, JSON, JSON Lines or Parquet.
        label: the column to predict, with 2 to 60 different values.
        name: name of the data set; default the file's.
        instruction: the question put to the model; default one that lists the labels.
        positive: the label whose probability ranks the rows; default the last of two labels.
        drop: columns that are no input.
        group: a column whose equal values stay in one part, such as a patient or a customer. It is no input.
        groups: columns for whose values the results are reported separately.
        reasons: how many columns that speak for it follow each answer, by the rule of reasons.py.

    Raises:
        DataError: a column that the table does not have, a wrong number of labels, or a `positive` that is no label.
    """
    rows = read_table(file)
    columns = list(rows[0])
    for column in (label, *drop, *filter(None, (group,)), *groups):
        if column not in columns:
            raise DataError("no such column", file=str(file), field=column, expected=f"one of {', '.join(columns)}")
    seen = sorted({row[label] for row in rows if row[label]})
    if len(seen) < 2 or len(seen) > 60:
        raise DataError(f"{len(seen)} different labels", file=str(file), field=label, expected="2 to 60")
    if positive and positive not in seen:
        raise DataError(f"got {positive!r}", file=str(file), field="positive", expected=f"one of {', '.join(seen)}")
    why = f", and the {reasons} facts that speak most for it" if reasons else ""
    edges = {g: infer_fields(rows, [g])[0] for g in groups}
    return DataSet(
        name=name or file.stem,
        title=f"{spelled(name or file.stem)}: {spelled(label)}",
        kind="classification",
        source=FileSource(path=file),
        licence="the user's own: fill in who may use the data",
        use="fill in what the data was collected for",
        limits=("Fill in whom the rows stand for, and what no decision may rest on.",),
        instruction=instruction or f"What is the {spelled(label)}? Answer with one of: {', '.join(seen)}{why}.",
        reasons=reasons,
        target=label,
        positive=positive or (seen[-1] if len(seen) == 2 else ""),
        drop=(*drop, *([group] if group else ())),
        group=group,
        groups=tuple(
            Group(name=spelled(g), field=g, edges=_quartiles(rows, g) if edges[g].kind == "number" else ()) for g in groups
        ),
    )


def _quartiles(rows: Sequence[Mapping[str, str]], column: str) -> tuple[float, ...]:
    values = sorted(n for row in rows if (n := number(row[column])) is not None)
    return tuple(sorted({values[len(values) * q // 4] for q in (1, 2, 3)}))
