"""Files and folders that are there whole or not at all, and locks between processes."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qpeft.files import atomic_write, lock_file, replace_folder


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


def test_a_folder_is_replaced_whole_or_stays(tmp_path: Path) -> None:
    place = tmp_path / "out"
    for text in ("first", "second"):
        with replace_folder(place) as scratch:
            (scratch / text).write_text(text)
            assert not (place / text).exists()
        assert [file.name for file in place.iterdir()] == [text]
    with pytest.raises(FileNotFoundError), replace_folder(place) as scratch:
        (scratch / "no such folder" / "third").write_text("third")
    assert [file.name for file in place.iterdir()] == ["second"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path: Path) -> None:
    place = tmp_path / "out"
    place.mkdir()
    (place / "kept").write_text("kept")
    os.replace(place, tmp_path / ".out.replaced")
    with pytest.raises(RuntimeError), replace_folder(place):
        raise RuntimeError
    assert (place / "kept").read_text() == "kept"


def test_a_lock_is_held_against_other_processes_and_released_by_a_kill(tmp_path: Path) -> None:
    lock = tmp_path / "new" / ".lock"
    code = (
        "import sys, time; from pathlib import Path; from qpeft.files import lock_file\n"
        "with lock_file(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(TimeoutError, match="another process"), lock_file(lock, timeout_s=0):
            pass
        process.kill()
    with lock_file(lock, timeout_s=10):
        pass


@pytest.mark.parametrize("absent", ["fcntl", "resource"])
def test_training_runs_where_a_module_of_unix_is_not_there(absent: str) -> None:
    """Windows has neither module: importing every module that training and its commands need must not ask for one."""
    code = (
        "import sys, psutil, torch, peft, transformers\n"  # they choose their own imports by the system
        f"sys.modules[{absent!r}] = None\n"
        "import qpeft.records, qpeft.files, qpeft.training.loop.run, qpeft.study.compare, qpeft.export.run, qpeft.cli\n"
        "from qpeft.training import environment\n"
        "assert environment.peak_memory_bytes() > 2**20"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
