"""Training runs of a folder, from their recipes, records and progress. Nothing here loads a model."""

from __future__ import annotations

import functools
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from qpeft.errors import QpeftError, RunError
from qpeft.records import RunRecord
from qpeft.training.loop.progress_log import PAUSE, PROGRESS, Progress, read_progress
from qpeft.training.loop.run_dir import ADAPTER, FAILURE, RECIPE, RECORD, SAMPLES, read_record

MAX_RUNS = 5000
SKIPPED = {"checkpoints", "tensorboard", "adapter", "jobs", "report", ".git"}
FILES = (PROGRESS, RECORD, FAILURE, SAMPLES, PAUSE, RECIPE, ADAPTER)


@dataclass(frozen=True)
class TrainingRun:
    """A run as far as its folder tells. `name` is its path under the root."""

    name: str
    folder: Path
    config: Mapping[str, Any]
    record: RunRecord | None
    error: str
    progress: Progress
    pausing: bool

    @property
    def state(self) -> str:
        """running, finished, failed, paused or new."""
        if self.progress.running:
            return "running"
        if self.record is not None:
            return "finished"
        if self.error:
            return "failed"
        return "paused" if self.progress.entries or (self.folder / "checkpoints").exists() else "new"

    @property
    def label(self) -> str:
        """The arm's name with its seed, else the recipe's."""
        label = self.config.get("label") or self.method
        return f"{label}, seed {self.seed}"

    @property
    def method(self) -> str:
        """The adapter's PEFT type."""
        return str((self.config.get("adapter") or {}).get("peft_type", "")).upper()

    @property
    def seed(self) -> Any:
        """Of the recipe."""
        return (self.config.get("training") or {}).get("seed", "")

    @property
    def steps(self) -> tuple[int, int]:
        """Steps done and planned."""
        last = self.progress.entries[-1] if self.progress.entries else {}
        done = self.record.steps if self.record is not None else int(last.get("step", 0))
        planned = int(last.get("steps", 0)) or int((self.config.get("training") or {}).get("max_steps") or 0)
        return done, max(planned, done)

    def latest(self, name: str) -> float | None:
        """The newest value of a number of the log."""
        found = next((entry[name] for entry in reversed(self.progress.entries) if isinstance(entry.get(name), int | float)), None)
        return None if found is None else float(found)

    def series(self, name: str) -> tuple[list[float], list[float]]:
        """Steps and values of a number of the log, else of the record's curves."""
        found = [(e["step"], e[name]) for e in self.progress.entries if isinstance(e.get(name), int | float)]
        if self.record is not None and (not found or name == "eval_loss"):
            curve = {"loss": self.record.train_curve, "eval_loss": self.record.eval_curve}.get(name, ())
            found = [(point.step, point.loss) for point in curve] or found
        return [float(step) for step, _ in found], [float(value) for _, value in found]

    @property
    def held_out_loss(self) -> float | None:
        """After training, else the last one measured."""
        return self.record.metrics.get("loss") if self.record is not None else self.latest("eval_loss")

    @property
    def currency(self) -> str:
        """Of the prices in the recipe's budget; "" where it names none."""
        budget = (self.config.get("backend") or {}).get("budget") or {}
        return str((budget.get("price") or {}).get("currency", ""))

    def budget_left(self) -> list[tuple[str, float, float]]:
        """`(what, spent, bound)` of each bound of the recipe's budget; what was spent alone has the bound 0."""
        budget = (self.config.get("backend") or {}).get("budget") or {}
        found = []
        for what in ("circuits", "shots", "jobs", "seconds", "money"):
            logged = "chip_s" if what == "seconds" else what
            spent = self.latest(logged)
            if self.record is not None and self.record.backend:
                spent = float(self.record.backend.get(logged, spent or 0))
            if spent is not None or budget.get(what):
                found.append((what, spent or 0.0, float(budget.get(what) or 0)))
        return found


class RunFolder:
    """The folder that `qpeft ui` shows."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()

    def names(self) -> list[str]:
        """Paths under the root of folders with a recipe that trains one adapter, or that will."""
        return sorted(str(folder.relative_to(self.root)) for folder in _folders(self.root, 0))[:MAX_RUNS]

    def all(self) -> list[TrainingRun]:
        """Every run that can be read; one whose files are broken appears as failed."""
        return [run for name in self.names() if (run := self._read(name)) is not None]

    def run(self, name: str) -> TrainingRun:
        """The run at a path under the root; RunError 404-like for any other path."""
        folder = (self.root / name).resolve()
        if not folder.is_relative_to(self.root) or not (folder / RECIPE).is_file():
            raise RunError("no such run", value=name[:200], hint="a folder of a run under the folder that qpeft ui shows")
        found = self._read(str(folder.relative_to(self.root)))
        if found is None:
            raise RunError("a comparison and not a run", value=name[:200], hint="its runs are listed on the first page")
        return found

    def signature(self) -> int:
        """Changes when a run's files change."""
        marks = []
        for name in self.names():
            for file in FILES:
                try:
                    stat = (self.root / name / file).stat()
                    marks.append((name, file, stat.st_mtime_ns, stat.st_size))
                except OSError:
                    continue
        return hash(tuple(marks))

    def _read(self, name: str) -> TrainingRun | None:
        folder = self.root / name
        error = ""
        try:
            config = _yaml(folder / RECIPE, (folder / RECIPE).stat().st_mtime_ns)
        except (OSError, yaml.YAMLError) as problem:
            config, error = {}, f"{RECIPE}: {problem}"
        if not error and (not config.get("adapter") or config.get("compare")):
            return None
        record = None
        if (folder / RECORD).exists():
            try:
                record = read_record(folder)
            except (OSError, QpeftError) as problem:
                error = str(problem)
        if record is None and (folder / FAILURE).exists():
            try:
                error = str(json.loads((folder / FAILURE).read_text(encoding="utf-8"))["error"])
            except (OSError, ValueError, KeyError, TypeError) as problem:
                error = f"{FAILURE}: {problem}"
        progress = read_progress(folder)
        return TrainingRun(name, folder, config, record, error, progress, (folder / PAUSE).exists() and progress.running)


def _folders(folder: Path, depth: int) -> Iterator[Path]:
    if (folder / RECIPE).is_file():
        yield folder
    if depth >= 6:
        return
    try:
        inside = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.is_symlink())
    except OSError:
        return
    for entry in inside:
        if entry.name not in SKIPPED and not entry.name.startswith("."):
            yield from _folders(entry, depth + 1)


@functools.lru_cache(maxsize=MAX_RUNS)
def _yaml(file: Path, changed_ns: int) -> dict[str, Any]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found = yaml.load(file.read_text(encoding="utf-8"), Loader=loader)
    return found if isinstance(found, dict) else {}


def tensor_sizes(run: TrainingRun) -> dict[str, int]:
    """Numbers in each tensor of the adapter's file, by its header alone; empty without one."""
    file = run.folder / ADAPTER / "adapter_model.safetensors"
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > 100 << 20:
                return {}
            header = json.loads(stream.read(length))
    except (OSError, ValueError, struct.error):
        return {}
    sizes = {}
    for name, entry in header.items():
        if name != "__metadata__":
            size = 1
            for length in entry["shape"]:
                size *= int(length)
            sizes[name] = size
    return sizes


def samples(run: TrainingRun) -> list[dict[str, str]]:
    """Prompts with the expected answer, the base model's and the adapter's; empty before they are generated."""
    try:
        found = json.loads((run.folder / SAMPLES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
