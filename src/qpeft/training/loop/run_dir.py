"""The folder of a run: its files, its lock, and which checkpoints are complete."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from qpeft.errors import ConfigError, RunError
from qpeft.files import atomic_write, lock_file, replace_folder
from qpeft.plugins import load_plugins
from qpeft.records import Measurement, RunRecord
from qpeft.training import environment
from qpeft.training.loop.progress_log import PROGRESS
from qpeft.training.recipe.config import RunConfig
from qpeft.training.recipe.yaml_source import read_yaml

RECIPE, ADAPTER, RECORD, FAILURE = "recipe.yaml", "adapter", "record.json", "failure.json"
BASELINE, SAMPLES = "baseline.json", "samples.json"
BACKEND_FILES = ("spent.json", "results.sqlite", "jobs")  # see backend.py


def read_record(folder: Path) -> RunRecord:
    """The record of a finished run."""
    try:
        return RunRecord.from_json((folder / RECORD).read_text(encoding="utf-8"), file=str(folder / RECORD), line=1)
    except FileNotFoundError as error:
        raise RunError("not a finished run", value=str(folder), hint=f"qpeft train {folder / RECIPE} --output {folder}") from error


def finished_record(folder: Path) -> RunRecord | None:
    """The record of a run, None while it has none."""
    return read_record(folder) if (folder / RECORD).exists() else None


def forget_failure(folder: Path) -> None:
    """Remove what an earlier attempt in the folder said of its failure."""
    (folder / FAILURE).unlink(missing_ok=True)


def note_failure(folder: Path, config: RunConfig, error: Exception, history: Sequence[dict[str, Any]]) -> None:
    """Write `failure.json`: the error, and the record of the run as far as it came.

    Args:
        folder: the run's folder.
        config: the run's recipe.
        error: what ended the run.
        history: the trainer's log entries so far.
    """
    reason = f"{type(error).__name__}: {error}"
    losses = [entry for entry in history if isinstance(entry.get("loss"), float) and math.isfinite(entry["loss"])]
    curve = tuple(Measurement(step=int(e["step"]), loss=e["loss"], learning_rate=e.get("learning_rate")) for e in losses)
    record = failed_record(config, reason, train_curve=curve)
    atomic_write(folder / FAILURE, json.dumps({"error": reason, "record": json.loads(record.to_json())}))


def read_failure(folder: Path, config: RunConfig) -> RunRecord | None:
    """The record of a run that failed in this folder, None where nothing was noted.

    Args:
        folder: the run's folder.
        config: the run's recipe.
    """
    if not (folder / FAILURE).exists():
        return None
    noted = json.loads((folder / FAILURE).read_text(encoding="utf-8"))
    if "record" in noted:
        return RunRecord.from_json(json.dumps(noted["record"]), file=str(folder / FAILURE), line=1)
    return failed_record(config, noted["error"])


def failed_record(config: RunConfig, reason: str, *, train_curve: tuple[Measurement, ...] = ()) -> RunRecord:
    """The record, with status "failed", of a run that ended without one.

    Args:
        config: the run's recipe, with an adapter section.
        reason: why the run ended.
        train_curve: training losses up to then.
    """
    return RunRecord(
        label=config.label or str((config.adapter or {})["peft_type"]).upper(),
        method=str((config.adapter or {})["peft_type"]).upper(),
        group=config.name,
        seed=config.training.seed,
        model=config.model.model_name_or_path,
        status="failed",
        error=reason,
        steps=train_curve[-1].step if train_curve else 0,
        train_curve=train_curve,
        config=config.resolved(),
        versions=environment.versions(),
        created_at=environment.now(),
    )


def run_recipe(folder: Path) -> RunConfig:
    """The recipe of a run, finished or not, as it was when the run began; its data files may have moved since.

    Raises RunError for a folder that is no run.
    """
    if not (folder / RECIPE).is_file():
        raise RunError("not a run", value=str(folder), bound=f"a folder with {RECIPE}")
    return RunConfig.from_resolved(read_yaml(folder / RECIPE).value)


def finished_config(folder: Path) -> RunConfig:
    """The recipe of a finished run, its plug-ins loaded; RunError for any other folder."""
    if not (folder / ADAPTER / "adapter_config.json").exists() or not (folder / RECIPE).exists():
        if (folder / "records.jsonl").exists():
            raise RunError("a comparison and not a run", value=str(folder), hint=f"one of its runs: {folder}/runs/ARM/seed-N")
        raise RunError("not a finished run", value=str(folder), bound=f"a folder with {RECIPE} and {ADAPTER}/")
    config = run_recipe(folder)
    load_plugins(config.plugins)
    return config


def save_adapter(model: Any, folder: Path, state: dict[str, Any] | None = None) -> int:
    """Write `adapter/` whole or not at all.

    Args:
        model: the adapted model.
        folder: the run's folder.
        state: state dict to write; default the model's own.

    Returns:
        How many numbers the adapter's file holds.
    """
    from safetensors import safe_open

    with replace_folder(folder / ADAPTER) as scratch:
        model.save_pretrained(str(scratch), state_dict=state)
    with safe_open(str(folder / ADAPTER / "adapter_model.safetensors"), "pt") as weights:
        return sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118 (no iterator)


@contextlib.contextmanager
def lock_run_dir(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the system releases it when the process ends, however it ends."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock_file(folder / ".lock", timeout_s=0))
        except TimeoutError as error:
            raise RunError(
                "another process is training in this folder", value=str(folder), hint="wait, or another --output"
            ) from error
        yield


CONTENTS = ("checkpoints", "tensorboard", ADAPTER, RECORD, FAILURE, PROGRESS, SAMPLES, *BACKEND_FILES)
"""Files and folders of a run, besides its recipe."""


def init_run_dir(config: RunConfig, folder: Path, overwrite: bool, contents: Sequence[str] = CONTENTS) -> None:
    """Write the recipe into the run's folder.

    Args:
        config: the recipe.
        folder: the run's folder.
        overwrite: replace a run of another recipe.
        contents: files and folders that are removed then.

    Raises:
        RunError: the folder holds a run of another recipe, and `overwrite` is False.
    """
    recipe = folder / RECIPE
    if recipe.exists():
        if recipe.read_text(encoding="utf-8") == config.to_yaml():
            return
        if _same_but_for_its_budget(recipe, config):
            atomic_write(recipe, config.to_yaml())
            return
        if not overwrite:
            raise RunError("the folder holds a run of another recipe", value=str(folder), hint="another --output, or --overwrite")
        for name in contents:
            shutil.rmtree(folder / name, ignore_errors=True)
            (folder / name).unlink(missing_ok=True)
    atomic_write(recipe, config.to_yaml())


def _same_but_for_its_budget(recipe: Path, config: RunConfig) -> bool:
    try:
        found = run_recipe(recipe.parent)
    except ConfigError:
        return False
    return found.without_budget() == config.without_budget()
