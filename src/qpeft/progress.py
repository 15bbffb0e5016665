"""Progress of long work on the error stream: on a terminal one line that is rewritten, in a file or a pipe a line now and then."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Final, TextIO, TypeVar

EVERY_S: Final = 30.0
"""Seconds between lines where nobody watches."""
REWRITE_S: Final = 0.1
"""Seconds between rewrites on a terminal, at least."""
Item = TypeVar("Item")


class StatusLine:
    """Where progress is shown.

    Args:
        stream: where to write, by default the errors.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self.written_s = time.monotonic()

    def due(self) -> bool:
        """Whether it is time for the next line."""
        return time.monotonic() - self.written_s >= (REWRITE_S if self.live else EVERY_S)

    def write(self, text: str) -> None:
        """Rewrite the line on a terminal, cut to its width; elsewhere add a line."""
        self.written_s = time.monotonic()
        if self.live:
            width = shutil.get_terminal_size().columns - 1
            self.stream.write(f"\r\x1b[K{text if len(text) <= width else text[: width - 1] + '…'}")
        elif text:
            self.stream.write(text + "\n")
        self.stream.flush()

    def clear(self) -> None:
        """Take the line off a terminal."""
        if self.live:
            self.write("")


class Count:
    """A `with` block that counts what is done of `total` and shows it with the time left.

    Args:
        what: what is being done, with which the line begins.
        total: how many there are.
        shown: False shows nothing.
        line: where to show it.
    """

    def __init__(self, what: str, total: int, *, shown: bool = True, line: StatusLine | None = None) -> None:
        self.what, self.total, self.done = what, total, 0
        self.line = (line or StatusLine()) if shown else None
        self.began_s = time.monotonic()
        self.began = 0

    def __enter__(self) -> Count:
        return self

    def __exit__(self, *_: object) -> None:
        if self.line is not None:
            self.line.clear()

    def skip(self, n: int) -> None:
        """Count `n` as done earlier: they say nothing about the time left."""
        self.done += n
        self.began += n

    def add(self, n: int = 1, note: str = "") -> None:
        """Count `n` more; `note` is shown after the time left."""
        self.done += n
        if self.line is None or not self.line.due():
            return
        text = f"{self.what}: {self.done:,}/{self.total:,}"
        if self.done > self.began:
            per_one_s = (time.monotonic() - self.began_s) / (self.done - self.began)
            text += f", {duration(per_one_s * max(self.total - self.done, 0))} left"
        self.line.write(f"{text}, {note}" if note else text)


def counted(items: Sequence[Item], what: str, *, shown: bool = True) -> Iterator[Item]:
    """The items one after another, with progress.

    Args:
        items: to go through.
        what: what is being done, with which the line begins.
        shown: False shows nothing.
    """
    with Count(what, len(items), shown=shown) as count:
        for item in items:
            yield item
            count.add()


def duration(seconds: float) -> str:
    """A time as `M:SS` or `H:MM:SS`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
