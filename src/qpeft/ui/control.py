"""Starting, pausing and resuming runs from a page: each in a process of its own, which outlives the server."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import IO

from qpeft.errors import RunError
from qpeft.training.loop.progress_log import PAUSE
from qpeft.training.loop.run_dir import RECIPE
from qpeft.ui.runs import RunFolder, TrainingRun

LOG = "ui.log"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}(/[A-Za-z0-9][A-Za-z0-9._-]{0,79}){0,4}")


class Control:
    """Runs of one folder, started by this server or before it."""

    def __init__(self, folder: RunFolder, recipes: Path) -> None:
        self.folder, self.recipes = folder, recipes.resolve()
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    def recipe_files(self) -> list[str]:
        """Recipes under the folder of recipes, as paths in it."""
        found = sorted(path for pattern in ("*.yaml", "*/*.yaml") for path in self.recipes.glob(pattern) if path.is_file())
        return [str(path.relative_to(self.recipes)) for path in found[:200] if _is_recipe(path)]

    def start(self, recipe: str, name: str) -> str:
        """Train a recipe in a new folder; the folder's name. RunError for what cannot be started."""
        file = (self.recipes / recipe).resolve()
        if not file.is_relative_to(self.recipes) or not file.is_file():
            raise RunError("no such recipe", value=recipe[:200], bound=str(self.recipes))
        name = name.strip() or file.stem
        if not NAME.fullmatch(name):
            raise RunError("a folder's name has letters, digits, dots, dashes", value=name[:80])
        target = self.folder.root / name
        if target.exists():
            raise RunError("there is such a folder already", value=name, hint="another name, or resume the run in it")
        target.mkdir(parents=True)
        command = "compare" if "\ncompare:" in "\n" + file.read_text(encoding="utf-8", errors="replace") else "train"
        self._launch(name, [command, str(file), "--output", str(target)], target / LOG)
        return name

    def resume(self, run: TrainingRun) -> None:
        """Go on from the newest checkpoint."""
        if run.state in ("running", "finished"):
            raise RunError(f"the run is {run.state}", value=run.name)
        self._launch(run.name, ["train", str(run.folder / RECIPE), "--output", str(run.folder)], run.folder / LOG)

    def pause(self, run: TrainingRun) -> None:
        """Ask a run to stop with a checkpoint after the step it is at."""
        if run.state != "running":
            raise RunError(f"the run is {run.state} and not running", value=run.name)
        (run.folder / PAUSE).touch()

    def log_of(self, run: TrainingRun) -> str:
        """The end of what the run's process printed."""
        return tail(run.folder / LOG)

    def starting(self) -> list[tuple[str, str, bool]]:
        """`(folder, end of its output, alive)` of what this server started and whose run is not there yet."""
        known = set(self.folder.names())
        found = []
        for name, process in self._started.items():
            alive = process.poll() is None
            if name not in known or (not alive and process.returncode):
                found.append((name, tail(self.folder.root / name / LOG), alive))
        return found

    def _launch(self, name: str, arguments: list[str], log: Path) -> None:
        with log.open("ab") as stream:
            self._started[name] = launch(arguments, stream)


def launch(arguments: list[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start `qpeft ARGUMENTS` in a session of its own.

    Args:
        arguments: arguments of the command.
        log: file for its output and errors.
    """
    environment = {**os.environ, "COLUMNS": "140"}
    command = [sys.executable, "-m", "qpeft.cli", *arguments]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=environment)


def tail(file: Path, size: int = 4000) -> str:
    """The end of a text file; lines that were overwritten on a terminal are left out.

    Args:
        file: the file.
        size: the most bytes.
    """
    with contextlib.suppress(OSError), file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - size))
        text = stream.read().decode(errors="replace")
        return "\n".join(line.rpartition("\r")[2] for line in text.splitlines()).strip()
    return ""


def _is_recipe(path: Path) -> bool:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")[:100_000]
    except OSError:
        return False
    return bool(re.search(r"^model:", text, re.MULTILINE) and re.search(r"^(adapter|compare):", text, re.MULTILINE))
