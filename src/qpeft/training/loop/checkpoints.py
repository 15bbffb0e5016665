"""Checkpoints of a run: which are whole, and what the newest of them knows.

A checkpoint counts once `whole.json` is in it, which is written last and holds the digest of every other file. One that is torn, or
whose files have changed since, is set aside and the one before it is used.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from pathlib import Path
from typing import Any

from qpeft.errors import RunError
from qpeft.files import atomic_write
from qpeft.training.processes import Processes

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
WHOLE = "whole.json"


def mark_whole(checkpoint: Path, *, wall_s: float) -> None:
    """Say that the checkpoint was written to its end, after `wall_s` seconds of training in all."""
    files = {
        path.relative_to(checkpoint).as_posix(): _digest(path)
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file() and path.name != WHOLE
    }
    atomic_write(checkpoint / WHOLE, json.dumps({"wall_s": wall_s, "files": files}))


def is_whole(checkpoint: Path) -> bool:
    """Whether the checkpoint was written to its end; its files are not read."""
    return (checkpoint / WHOLE).exists()


def newest_whole_checkpoint(folder: Path) -> Path | None:
    """The whole checkpoint of most steps in a run's folder; torn and broken ones are removed, with a warning that names them."""
    for checkpoint in sorted((folder / CHECKPOINTS).glob("checkpoint-*"), key=step_of, reverse=True):
        problem = _problem(checkpoint)
        if problem is None:
            return checkpoint
        logger.warning("%s %s; it is removed, and the checkpoint before it is used", checkpoint, problem)
        shutil.rmtree(checkpoint)
    return None


def _problem(checkpoint: Path) -> str | None:
    """Description of a checkpoint's defect; None for a valid checkpoint."""
    if not is_whole(checkpoint):
        return "was not written to its end"
    try:
        files = _marked(checkpoint).get("files", {})  # checkpoints of earlier versions have no digests
        changed = [name for name, digest in files.items() if _digest(checkpoint / name) != digest]
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"cannot be read ({error})"
    return f"has a broken file: {changed[0]}" if changed else None


def demand_resumable(checkpoint: Path, processes: Processes) -> None:
    """RunError for a checkpoint without the optimizer's state in a form that these processes can load.

    Args:
        checkpoint: folder of the checkpoint.
        processes: the processes that continue from it.
    """
    parts = len(list(checkpoint.glob("global_step*/*_optim_states.pt")))  # one of each process, where DeepSpeed trained
    ours = (checkpoint / "optimizer.pt").exists()
    if (parts or (ours and processes.deepspeed)) and not (processes.deepspeed and parts == processes.count):
        raise RunError(
            "DeepSpeed continues its own checkpoints, on as many processes as wrote them",
            value=f"{processes.count} processes{' under DeepSpeed' if processes.deepspeed else ''}",
            bound=f"{parts} processes under DeepSpeed" if parts else "a launch without DeepSpeed",
            hint="that launch, or --overwrite",
        )
    if not parts and not ours:
        raise RunError(
            "the checkpoint holds the adapter without the optimizer, so training cannot continue from it",
            value=str(checkpoint),
            hint="save_only_model: false and --overwrite, or init_from to start anew from these weights",
        )


def wall_s(checkpoint: Path) -> float:
    """Seconds of training before the checkpoint was written."""
    return float(_marked(checkpoint)["wall_s"])


def step_of(checkpoint: Path) -> int:
    """The optimizer steps done in a checkpoint."""
    return int(checkpoint.name.rpartition("-")[2])


def held_out_losses(folder: Path) -> dict[int, float]:
    """Step -> held-out loss (nats/token) of a run, finished or not, as far as its newest checkpoint knows."""
    checkpoint = newest_whole_checkpoint(folder)
    if checkpoint is None:
        return {}
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    return {int(entry["step"]): float(entry["eval_loss"]) for entry in state["log_history"] if "eval_loss" in entry}


def _marked(checkpoint: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((checkpoint / WHOLE).read_text(encoding="utf-8"))
    return found


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
