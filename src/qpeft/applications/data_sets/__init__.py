"""The data sets that qpeft knows by name: an explicit list, each with its source, its task, its licence and its limits."""

from __future__ import annotations

from qpeft.applications.data_sets import finance, medicine, text
from qpeft.applications.data_sets.base import DataSet
from qpeft.errors import DataError

DATA_SETS: dict[str, DataSet] = {d.name: d for d in (*finance.SETS, *medicine.SETS, *text.SETS)}


def find(name: str) -> DataSet:
    """Raises DataError with the known names."""
    if name not in DATA_SETS:
        raise DataError(
            "no data set of this name", field=name, expected=f"one of {', '.join(DATA_SETS)}, or a data file with --label"
        )
    return DATA_SETS[name]
