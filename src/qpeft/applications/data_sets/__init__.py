"""The data sets known by name: qpeft's own, and those of other packages (entry points of the group `qpeft.datasets`)."""

from __future__ import annotations

from qpeft.applications.data_sets import finance, medicine, text
from qpeft.applications.data_sets.base import DataSet
from qpeft.errors import DataError
from qpeft.plugins import Registry

DATA_SETS: Registry[DataSet] = Registry("qpeft.datasets", {d.name: d for d in (*finance.SETS, *medicine.SETS, *text.SETS)}, DataSet)


def find(name: str) -> DataSet:
    """The data set of a name. Raises DataError with the known names."""
    if name not in DATA_SETS:
        raise DataError(
            "no data set of this name", field=name, expected=f"one of {', '.join(DATA_SETS)}, or a data file with --label"
        )
    return DATA_SETS[name]
