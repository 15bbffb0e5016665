"""A comparison: every arm for every seed, each in a process of its own, into one file of records.

A process per run makes peak memory the run's own and lets the others go on when one dies. Runs and records survive a kill: started
again in its folder, a comparison skips what is finished and continues what is not.
"""

from __future__ import annotations

import json
import logging
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from qpeft.errors import RunError
from qpeft.records import RunRecord, append_record, read_records
from qpeft.training.loop.run_dir import BASELINE, FAILURE, RECORD, failed_record, init_run_dir, read_record
from qpeft.training.recipe.config import RunConfig

logger = logging.getLogger(__name__)

RECORDS, RUNS = "records.jsonl", "runs"


def runs(config: RunConfig, folder: Path) -> Iterator[tuple[RunConfig, Path]]:
    """The single runs and their folders, seed by seed, so that paired results come early."""
    if config.compare is None:
        raise RunError("the recipe has no compare section", value=config.name, hint="qpeft train trains its adapter")
    names = [re.sub(r"[^a-z0-9]+", "-", arm.label.lower()).strip("-") for arm in config.compare.arms]
    for seed in config.compare.seeds:
        for index, (arm, name) in enumerate(zip(config.compare.arms, names, strict=True)):
            unique = name if name and names.count(name) == 1 else f"{name}-{index + 1}".lstrip("-")
            yield config.arm_config(arm, seed), folder / RUNS / unique / f"seed-{seed}"


def compare(config: RunConfig, folder: Path, *, overwrite: bool = False) -> Path:
    """Train what is not trained yet; returns the file of records. A failed run is recorded as failed and tried again next time.

    Raises RunError if the folder holds another recipe's comparison (unless `overwrite`), or if every run failed.
    """
    planned = list(runs(config, folder))
    folder.mkdir(parents=True, exist_ok=True)
    init_run_dir(config, folder, overwrite, (RECORDS, RUNS, BASELINE))
    records = folder / RECORDS
    known = {record.id for record in read_records(records)} if records.exists() else set()
    failed = 0
    for number, (run, place) in enumerate(planned, start=1):
        logger.warning("[%d/%d] %s, seed %d", number, len(planned), run.label, run.training.seed)
        if not (place / RECORD).exists():
            place.mkdir(parents=True, exist_ok=True)
            request = place / "request.yaml"
            request.write_text(run.to_yaml(), encoding="utf-8")
            command = ["train", str(request), "--output", str(place), "--baseline", str(folder / BASELINE)]
            code = subprocess.run([sys.executable, "-m", "qpeft.cli", *command]).returncode
            if code == 128 + signal.SIGINT or code == -signal.SIGINT:
                raise KeyboardInterrupt
        record = read_record(place) if (place / RECORD).exists() else _failure(run, place, code)
        failed += record.status != "ok"
        if record.id not in known:
            append_record(records, record)
    if failed == len(planned):
        raise RunError("every run failed", value=str(folder), hint=f"see {records}; the reasons are in it")
    return records


def _failure(run: RunConfig, place: Path, code: int) -> RunRecord:
    """The record of a run that ended without one."""
    reason = f"the process ended with exit code {code}"
    if code < 0:
        reason = f"the process was killed by signal {signal.Signals(-code).name}"
    if (place / FAILURE).exists():
        reason = json.loads((place / FAILURE).read_text(encoding="utf-8"))["error"]
    logger.error("%s, seed %d failed: %s", run.label, run.training.seed, reason)
    return failed_record(run, reason)
