"""Progress of long work: one line on a terminal, a line now and then in a file, nothing where nobody asked."""

from __future__ import annotations

import io

import pytest

from qpeft import progress
from qpeft.progress import Count, StatusLine, counted, duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that pass, which the test sets."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_terminal_has_one_line_that_is_rewritten_and_cleared(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    stream = Terminal()
    with Count("circuits on emulator:wukong-72", 4, line=StatusLine(stream)) as count:
        for _ in range(4):
            clock[0] += 10.0
            count.add(1, "100 shots")
    written = stream.getvalue()
    assert "\n" not in written
    lines = [part.removeprefix("\x1b[K") for part in written.split("\r")[1:]]
    assert lines[0] == "circuits on emulator:wukong-72: 1/4, 0…"
    assert all(len(line) < 40 for line in lines)
    assert lines[-1] == ""


def test_a_file_has_a_line_now_and_then(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    for _ in counted(range(100), "evaluating, batch"):
        clock[0] += 1.0
    assert stream.getvalue().splitlines() == [
        "evaluating, batch: 30/100, 1:10 left",
        "evaluating, batch: 60/100, 0:40 left",
        "evaluating, batch: 90/100, 0:10 left",
    ]
    assert list(counted([1, 2], "quick")) == [1, 2]
    assert list(counted([3], "hidden", shown=False)) == [3]
    assert "quick" not in stream.getvalue()


def test_what_was_done_earlier_says_nothing_about_the_time_left(clock: list[float]) -> None:
    stream = Terminal()
    with Count("rows", 1000, line=StatusLine(stream)) as count:
        count.skip(900)
        clock[0] = 60.0
        count.add(50)
        assert stream.getvalue().endswith("rows: 950/1,000, 1:00 left")
    assert [duration(s) for s in (0.4, 61, 3600 * 27 + 5)] == ["0:00", "1:01", "27:00:05"]
