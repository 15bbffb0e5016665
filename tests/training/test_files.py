"""Files that are there whole or not at all, whoever else writes them."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

from qpeft.files import atomic_write


def write_often(path: Path, letter: str) -> None:
    for _ in range(300):
        atomic_write(path, letter * 10_000)


def test_processes_that_write_the_same_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_often, args=(path, letter)) for letter in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
        assert writer.exitcode == 0
    assert set(path.read_text()) in ({"a"}, {"b"})
    assert [file.name for file in tmp_path.iterdir()] == ["baseline.json"]
