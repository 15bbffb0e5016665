"""A study spread over the processes of an engine: each arm on each task is a process, and all write the same records."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from qpeft.errors import RunError
from qpeft.study.engine import Engine, StudyPart
from qpeft.study.plan import StudyPlan
from qpeft.study.records import StudyRecords
from qpeft.study.tasks import prepare

logger = logging.getLogger(__name__)


def spread(parts: Sequence[StudyPart], plan: StudyPlan, records: Path, engine: Engine) -> None:
    """Run the parts. Rows are prepared here, before several processes read them.

    Args:
        parts: the parts, each an arm on a task.
        plan: the study's plan.
        records: the folder of the study's records, which all machines see.
        engine: who runs the parts.

    Raises:
        RunError: a part ended without all of its runs; the others are recorded.
    """
    for task in plan.tasks:
        if any(part.task == task.name for part in parts):
            prepare(task, plan.parts)
    ended = []
    for number, (part, code) in enumerate(engine.run(parts), start=1):
        runs = [r for r in StudyRecords(records, plan.name).runs.values() if (r.group, r.label) == (part.task, part.arm)]
        failed = sum(record.status != "ok" for record in runs)
        logger.warning("[%d/%d] %s, %s: %d runs, %d failed", number, len(parts), part.task, part.arm, len(runs), failed)
        if code:
            ended.append(f"{part.task}, {part.arm} (exit code {code})")
    if ended:
        raise RunError("parts of the study did not end", value="; ".join(ended), hint="the same command goes on")
