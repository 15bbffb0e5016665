"""One tree of errors. Each says what was wrong, the bound it broke and the hint.

QpeftError
|-- CircuitError            a circuit, gate, observable or argument shape that is not valid   (also ValueError)
|   |-- QasmError           OpenQASM text that cannot be read, with its line
|   `-- OriginIRError       OriginIR text that cannot be read, with its line
|-- ResourceError           a request that needs more memory than the machine has            (also MemoryError)
|-- AdapterError            an adapter setting or layer that cannot work                     (also ValueError)
|   `-- MergeError          a non-linear adapter asked to merge into the base weights
|-- ConfigError             a recipe or record file: file, line, field, what was expected    (also ValueError)
|   `-- DataError           a data row that is not of the declared format
|-- ModelError              a model that cannot be found or loaded
|-- RunError                a run folder that cannot be evaluated, resumed or reported
|   `-- DivergedError       a training loss that is not a finite number
|-- BackendError            a circuit or request that a backend refuses, before it runs      (also ValueError)
|   |-- BudgetError         work that would cost more than is left of a budget
|   `-- JobError            a vendor's job that failed, was refused, or whose fate is not known
|-- PluginError             a package or file that adds something to qpeft and cannot be loaded
|-- ServiceError            the task service refused a request or could not be reached
|-- UnsupportedPlatformError  a part of qpeft that does not run on this operating system
`-- MissingDependencyError  an optional package that is not installed, with the pip line     (also ImportError)
"""

from __future__ import annotations

from collections.abc import Sequence


class QpeftError(Exception):
    """Base of every error raised on purpose by qpeft.

    `value` is what was offered, `bound` what was allowed, `hint` what to do; all are plain text or numbers and all are in
    the message, so a log line is enough to act on.
    """

    def __init__(self, what: str, *, value: object = None, bound: object = None, hint: str | None = None) -> None:
        self.what, self.value, self.bound, self.hint = what, value, bound, hint
        parts = [what]
        if value is not None:
            parts.append(f"got {value!r}" if isinstance(value, str) else f"got {value}")
        if bound is not None:
            parts.append(f"allowed: {bound}")
        if hint is not None:
            parts.append(f"hint: {hint}")
        super().__init__("; ".join(parts))


class UnsupportedPlatformError(QpeftError):
    """A part of qpeft that does not run on this operating system."""


class CircuitError(QpeftError, ValueError):
    """A circuit, gate, observable or argument shape that is not valid."""


class QasmError(CircuitError):
    """OpenQASM text that cannot be read; `line` counts from 1 (0 when unknown)."""

    def __init__(self, what: str, *, line: int = 0, value: object = None, bound: object = None, hint: str | None = None) -> None:
        self.line = line
        super().__init__(f"line {line}: {what}" if line else what, value=value, bound=bound, hint=hint)


class OriginIRError(CircuitError):
    """OriginIR text that cannot be read; `line` counts from 1 (0 when unknown)."""

    def __init__(self, what: str, *, line: int = 0, value: object = None, bound: object = None, hint: str | None = None) -> None:
        self.line = line
        super().__init__(f"line {line}: {what}" if line else what, value=value, bound=bound, hint=hint)


class ResourceError(QpeftError, MemoryError):
    """A request refused before allocation; `value` and `bound` are in bytes, the message in GiB."""

    def __init__(self, what: str, *, required_bytes: int, available_bytes: int, hint: str) -> None:
        super().__init__(
            f"{what} needs {required_bytes / 2**30:,.2f} GiB of memory, {available_bytes / 2**30:,.2f} GiB are available; "
            f"hint: {hint}"
        )
        self.value, self.bound, self.hint = required_bytes, available_bytes, hint


class AdapterError(QpeftError, ValueError):
    """An adapter setting or a layer that cannot work."""


class MergeError(AdapterError):
    """A non-linear adapter was asked to merge into the base weights."""


class ConfigError(QpeftError, ValueError):
    """A file that does not validate. `file`, `line` (from 1, 0 when unknown), `field` (dotted) and `expected` name the place.

    `problems` lists every problem found in the file, not only the first.
    """

    def __init__(
        self,
        what: str,
        *,
        file: str = "",
        line: int = 0,
        field: str = "",
        expected: str = "",
        hint: str | None = None,
        problems: Sequence[ConfigError] = (),
    ) -> None:
        self.file, self.line, self.field, self.expected = file, line, field, expected
        self.problems = tuple(problems)
        place = ":".join(part for part in (file, str(line) if line else "") if part)
        message = ": ".join(part for part in (place, field, what) if part)
        if expected:
            message += f"; expected {expected}"
        super().__init__(message, hint=hint)
        self.what = what

    @classmethod
    def collect(cls, problems: Sequence[ConfigError]) -> ConfigError:
        """One error that carries many: its message is theirs, a line each."""
        if len(problems) == 1:
            return problems[0]
        first = problems[0]
        error = cls(first.what, file=first.file, line=first.line, field=first.field, expected=first.expected, problems=problems)
        error.args = ("\n".join(str(problem) for problem in problems),)
        return error


class DataError(ConfigError):
    """A data row that is not of the declared format."""


class ModelError(QpeftError):
    """A model that cannot be found or loaded."""


class RunError(QpeftError):
    """A run folder that cannot be evaluated, resumed or reported."""


class PluginError(QpeftError):
    """A package or a file that adds something to qpeft cannot be loaded, or may not be; the message names it."""


class DivergedError(RunError):
    """A training loss that is not a finite number; the message names the step and the file with the batch."""


class ServiceError(QpeftError):
    """The task service refused a request or could not be reached.

    `status` is the HTTP status (0: no answer came), `code` a stable word for programs, `retry_after_s` seconds after which the
    same request may succeed (None: it will not).
    """

    def __init__(
        self,
        what: str,
        *,
        status: int = 400,
        code: str = "invalid",
        retry_after_s: float | None = None,
        value: object = None,
        bound: object = None,
        hint: str | None = None,
    ) -> None:
        self.status, self.code, self.retry_after_s = status, code, retry_after_s
        super().__init__(what, value=value, bound=bound, hint=hint)


class BackendError(QpeftError, ValueError):
    """A circuit or request that a backend refuses; nothing was run."""


class BudgetError(BackendError):
    """Work that would cost more than is left; `value` is what was asked, `bound` what is left. Nothing was sent."""


class JobError(BackendError):
    """A vendor's job that failed, was refused, or whose fate is not known; `job` is the vendor's id, "" if none is known."""

    def __init__(self, what: str, *, job: str = "", value: object = None, bound: object = None, hint: str | None = None) -> None:
        self.job = job
        super().__init__(f"job {job}: {what}" if job else what, value=value, bound=bound, hint=hint)


class MissingDependencyError(QpeftError, ImportError):
    """An optional package is not installed; the message holds the pip line that cures it."""

    def __init__(self, package: str, extra: str, why: str) -> None:
        super().__init__(f"{why} needs the package {package!r}, which is not installed", hint=f'pip install "qpeft[{extra}]"')
        self.package, self.extra = package, extra
