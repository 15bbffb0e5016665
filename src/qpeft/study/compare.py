"""A comparison: every arm for every seed, each in a process of its own, into one file of records.

A process per run makes peak memory the run's own and lets the others go on when one dies. Runs and records survive a kill: started
again in its folder, a comparison skips what is finished and continues what is not.
"""

from __future__ import annotations

import logging
import re
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

from qpeft.errors import RunError
from qpeft.records import RunRecord, append_record, read_records
from qpeft.study.engine import Engine, LocalEngine, RunSpec
from qpeft.training.loop.run_dir import BASELINE, failed_record, finished_record, init_run_dir, read_failure
from qpeft.training.recipe.config import RunConfig

logger = logging.getLogger(__name__)

RECORDS, RUNS = "records.jsonl", "runs"


def runs(config: RunConfig, folder: Path) -> Iterator[tuple[RunConfig, Path]]:
    """The single runs of a comparison, seed by seed, so that paired results come early.

    Args:
        config: the recipe, with a `compare` section.
        folder: folder of the comparison.

    Yields:
        The recipe of each run, and its folder.

    Raises:
        RunError: the recipe has no `compare` section.
    """
    if config.compare is None:
        raise RunError("the recipe has no compare section", value=config.name, hint="qpeft train trains its adapter")
    names = [re.sub(r"[^a-z0-9]+", "-", arm.label.lower()).strip("-") for arm in config.compare.arms]
    for seed in config.compare.seeds:
        for index, (arm, name) in enumerate(zip(config.compare.arms, names, strict=True)):
            unique = name if name and names.count(name) == 1 else f"{name}-{index + 1}".lstrip("-")
            yield config.arm_config(arm, seed), folder / RUNS / unique / f"seed-{seed}"


def compare(config: RunConfig, folder: Path, *, overwrite: bool = False, engine: Engine | None = None) -> Path:
    """Train what is not trained yet. A failed run is recorded as failed and tried again next time.

    Args:
        config: the recipe of the comparison.
        folder: folder of the comparison.
        overwrite: replace another recipe's comparison in the folder.
        engine: who runs the runs; one process after another on this machine by default.

    Returns:
        The file of records.

    Raises:
        RunError: the folder holds another recipe's comparison (unless `overwrite`), or every run failed.
    """
    planned = list(runs(config, folder))
    folder.mkdir(parents=True, exist_ok=True)
    init_run_dir(config, folder, overwrite, (RECORDS, RUNS, BASELINE))
    records = folder / RECORDS
    known = {record.id for record in read_records(records)} if records.exists() else set()
    failed = 0
    for number, (run, record) in enumerate(_results(planned, folder / BASELINE, engine or LocalEngine()), start=1):
        failed += record.status != "ok"
        logger.warning("[%d/%d] %s, seed %d: %s", number, len(planned), run.label, run.training.seed, _outcome(record))
        if record.id not in known:
            append_record(records, record)
    if failed == len(planned):
        raise RunError("every run failed", value=str(folder), hint=f"see {records}; the reasons are in it")
    return records


def _results(planned: Sequence[tuple[RunConfig, Path]], baseline: Path, engine: Engine) -> Iterator[tuple[RunConfig, RunRecord]]:
    """The record of each run: those that are finished first, the others as they end."""
    waiting: dict[Path, RunConfig] = {}
    jobs: list[RunSpec] = []
    rows: list[tuple[object, object]] = []  # what decides which rows a run has and how they are cut
    for run, place in planned:
        if (known := finished_record(place)) is not None:
            yield run, known
            continue
        place.mkdir(parents=True, exist_ok=True)
        request = place / "request.yaml"
        request.write_text(run.to_yaml(), encoding="utf-8")
        waiting[place] = run
        own = (run.model, run.data)
        jobs.append(RunSpec(request, place, baseline, same_rows=own in rows))
        rows.append(own)
    for job, code in engine.run(jobs):
        run = waiting[job.folder]
        yield run, finished_record(job.folder) or _failure(run, job.folder, code)


def _outcome(record: RunRecord) -> str:
    if record.status != "ok":
        return record.error
    loss = f"held-out loss {record.metrics['loss']:.4f} nats/token, " if record.metrics else ""
    return f"{loss}{record.tokens_per_s:,.0f} tokens/s"


def _failure(run: RunConfig, place: Path, code: int) -> RunRecord:
    """The record of a run that ended without one."""
    reason = f"the process ended with exit code {code}"
    if code < 0:
        reason = f"the process was killed by signal {signal.Signals(-code).name}"
    return read_failure(place, run) or failed_record(run, reason)
