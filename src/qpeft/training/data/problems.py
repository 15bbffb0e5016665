"""A row of a file, and the problems found in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qpeft.errors import DataError

MAX_PROBLEMS = 20


@dataclass(frozen=True)
class Row:
    """`index` counts rows from 0; `line` counts lines of the file from 1, and is 0 where there are no lines."""

    index: int
    line: int
    values: dict[str, Any]


class Report:
    """Collects the problems of one source; the first `MAX_PROBLEMS` are kept, the others counted.

    `encoding` is that of a text file, None where it is to be found out.
    """

    def __init__(self, file: str, encoding: str | None = None) -> None:
        self.file, self.encoding, self.problems, self.count = file, encoding, list[DataError](), 0

    def add(self, what: str, expected: str = "", *, line: int = 0, field: str = "", hint: str | None = None) -> None:
        """Record one problem; reading goes on.

        Args:
            what: what is wrong.
            expected: what was expected.
            line: line in the file, from 1; 0 if the format has no lines.
            field: name of the field.
            hint: what to do about it.
        """
        self.count += 1
        if self.count <= MAX_PROBLEMS:
            self.problems.append(DataError(what, file=self.file, line=line, field=field, expected=expected, hint=hint))

    def stop(self, what: str, expected: str = "", *, line: int = 0, hint: str | None = None) -> DataError:
        """Record a problem after which the file cannot be read further.

        Args:
            what: what is wrong.
            expected: what was expected.
            line: line in the file, from 1; 0 if the format has no lines.
            hint: what to do about it.

        Returns:
            The error to raise. It lists this problem and all before it.
        """
        self.add(what, expected, line=line, hint=hint)
        return self.error()

    def error(self) -> DataError:
        """One DataError of everything noted; there must be something."""
        problems = self.problems
        if self.count > MAX_PROBLEMS:
            problems = [*problems, DataError(f"and {self.count - MAX_PROBLEMS} problems more, {self.count} in all", file=self.file)]
        error = DataError.collect(problems)
        assert isinstance(error, DataError)
        return error
