"""The folder of a run: what it holds, who may write there, and what of it is whole."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from qpeft.errors import ConfigError, RunError
from qpeft.files import atomic_write, lock_file, replace_folder
from qpeft.plugins import load_plugins
from qpeft.records import RunRecord
from qpeft.training import environment
from qpeft.training.recipe.config import RunConfig
from qpeft.training.recipe.yaml_source import read_yaml

logger = logging.getLogger(__name__)

RECIPE, ADAPTER, RECORD, FAILURE = "recipe.yaml", "adapter", "record.json", "failure.json"
BASELINE = "baseline.json"
BACKEND_FILES = ("spent.json", "results.sqlite", "jobs")  # see backend.py
WHOLE = "whole.json"  # in a checkpoint that was written to its end


def read_record(folder: Path) -> RunRecord:
    """The record of a finished run."""
    try:
        return RunRecord.from_json((folder / RECORD).read_text(encoding="utf-8"), file=str(folder / RECORD), line=1)
    except FileNotFoundError as error:
        raise RunError("not a finished run", value=str(folder), hint=f"qpeft train {folder / RECIPE} --output {folder}") from error


def failed_record(config: RunConfig, reason: str) -> RunRecord:
    """The record of a run that ended without one: failures are published too."""
    return RunRecord(
        label=str(config.label),
        method=str((config.adapter or {})["peft_type"]).upper(),
        group=config.name,
        seed=config.training.seed,
        model=config.model.model_name_or_path,
        status="failed",
        error=reason,
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


def newest_whole_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of most steps that was written to its end; torn ones are removed."""
    found = []
    for checkpoint in (folder / "checkpoints").glob("checkpoint-*"):
        if (checkpoint / WHOLE).exists():
            found.append(checkpoint)
        else:
            logger.warning("%s was not written to its end and is removed", checkpoint)
            shutil.rmtree(checkpoint)
    return max(found, key=step_of, default=None)


def step_of(checkpoint: Path) -> int:
    """The optimizer steps done in a checkpoint."""
    return int(checkpoint.name.rpartition("-")[2])


def held_out_losses(folder: Path) -> dict[int, float]:
    """Step -> held-out loss (nats a token) of a run, finished or not, as far as its newest checkpoint knows."""
    checkpoint = newest_whole_checkpoint(folder)
    if checkpoint is None:
        return {}
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    return {int(entry["step"]): float(entry["eval_loss"]) for entry in state["log_history"] if "eval_loss" in entry}


def save_adapter(model: Any, folder: Path) -> int:
    """Write `adapter/` whole or not at all; how many numbers its file holds."""
    from safetensors import safe_open

    with replace_folder(folder / ADAPTER) as scratch:
        model.save_pretrained(str(scratch))
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


def init_run_dir(config: RunConfig, folder: Path, overwrite: bool, contents: Sequence[str]) -> None:
    """Write the recipe into a new folder; refuse one that holds another recipe, or with `overwrite` remove its `contents`."""
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
