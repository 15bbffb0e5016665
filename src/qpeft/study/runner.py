"""The work of a study: tune every arm on every task, then train and test the seeds. What the records hold is not done again."""

from __future__ import annotations

import dataclasses
import gc
import logging
import math
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from qpeft.applications.task import FILE
from qpeft.applications.task import Task as Prepared
from qpeft.errors import QpeftError, RunError
from qpeft.records import RunRecord
from qpeft.study.plan import ArmSection, StudyPlan, TaskSection, fingerprint
from qpeft.study.records import StudyRecords, TuningRecord
from qpeft.study.results import arm_results
from qpeft.study.tasks import prepare
from qpeft.study.tuning import best_rate
from qpeft.training.recipe.config import RunConfig

logger = logging.getLogger(__name__)
FAILURES = (QpeftError, RuntimeError, ValueError)  # of a method on a task, which a study goes on after


class StudyRunner:
    """A study at work.

    Args:
        plan: what to run.
        records: what is known, and where results go.
        folder: where runs live until they are recorded.
    """

    def __init__(self, plan: StudyPlan, records: StudyRecords, folder: Path) -> None:
        self.plan, self.records, self.folder = plan, records, folder
        self.unrelated: dict[str, float] = {}  # by task, the base model's loss on unrelated text

    def work(self, tasks: Sequence[TaskSection], arms: Sequence[ArmSection]) -> Iterator[RunRecord]:
        """Task by task: tune all arms, then seed by seed train all arms, so that paired results come early.

        Args:
            tasks: tasks of the plan.
            arms: arms of the plan.

        Yields:
            The record of each run.
        """
        for task in tasks:
            prepare(task, self.plan.parts)
            rates = {arm.label: self.tune(task, arm) for arm in arms}
            for seed in self.plan.seeds:
                for arm in arms:
                    yield self.seed_run(task, arm, rates[arm.label], seed)
                    gc.collect()

    def progress(self) -> tuple[int, int]:
        """(runs done, runs planned), tuning not counted."""
        done = sum(result.finished for task in self.plan.tasks for result in arm_results(self.plan, self.records, task))
        return done, len(self.plan.tasks) * len(self.plan.arms) * len(self.plan.seeds)

    def tune(self, task: TaskSection, arm: ArmSection) -> float | None:
        """Tune the learning rate, in the same way for all arms.

        Args:
            task: the task.
            arm: the arm.

        Returns:
            The learning rate that wins, or None where every one failed.
        """
        tried: set[float] = set()

        def loss_after(rate: float, step: int) -> float | None:
            tried.add(rate)
            return self._tuning_run(task, arm, rate, step).loss

        best = best_rate(self.plan.tuning, self.plan.max_steps, loss_after, arm.start)
        for rate in tried:
            shutil.rmtree(self._folder(self.plan.tuning_run(task, arm, rate)), ignore_errors=True)
        return best

    def _tuning_run(self, task: TaskSection, arm: ArmSection, rate: float, step: int) -> TuningRecord:
        """Train a learning rate for `step` steps and record the loss on validation rows."""
        from qpeft.training.loop.checkpoints import held_out_losses
        from qpeft.training.loop.run import train

        config = self.plan.tuning_run(task, arm, rate)
        mark = fingerprint(config)
        if (known := self.records.tuning.get((mark, step))) is not None:
            return known
        folder = self._folder(config)
        found: float | None = None
        error, wall_s = "", 0.0
        try:
            if step not in held_out_losses(folder):
                wall_s = train(config, folder, baseline=self._baseline(task, "validation"), until=step, progress=True).wall_s
            found = held_out_losses(folder)[step]
        except FAILURES as problem:
            error = _failure(problem)
        if found is not None and not math.isfinite(found):
            found, error = None, "the loss is not finite"
        record = TuningRecord(task.name, arm.label, rate, step, found, mark, error, wall_s)
        told = error or f"validation loss {found:.4f} nats/token"
        logger.warning("%s, %s, learning rate %g, step %d: %s", task.name, arm.label, rate, step, told)
        self.records.add_tuning(record)
        return record

    def seed_run(self, task: TaskSection, arm: ArmSection, rate: float | None, seed: int) -> RunRecord:
        """Train with the tuned learning rate and score on held-out rows. A run that the records hold is not repeated.

        Args:
            task: the task.
            arm: the arm.
            rate: the tuned learning rate; None, where every rate failed, gives a failed record.
            seed: of the run and of its data.

        Returns:
            The record, which is in the study's records now.
        """
        from qpeft.training.loop.run import train
        from qpeft.training.loop.run_dir import failed_record

        config = self.plan.seed_run(task, arm, rate, seed)
        if (known := self.records.runs.get(fingerprint(config))) is not None:
            return known
        if rate is None:
            errors = [record.error for record in self.records.tuning_of(task.name, arm.label) if record.error]
            record = failed_record(config, f"every learning rate failed on validation rows, the last with {errors[-1]}")
            self.records.add_run(record)
            return record
        folder = self._folder(config).with_name(f"{self._folder(config).name}-seed-{seed}")
        try:
            record = train(config, folder, baseline=self._baseline(task, self.plan.held_out), progress=True)
            scores = score(folder, task, self.plan.held_out, self.unrelated)
            record = dataclasses.replace(record, metrics={**record.metrics, **scores})
        except FAILURES as problem:
            record = failed_record(config, _failure(problem))
            logger.error("%s, %s, seed %d failed: %s", task.name, arm.label, seed, problem)
        self.records.add_run(record)
        shutil.rmtree(folder, ignore_errors=True)
        return record

    def _folder(self, config: RunConfig) -> Path:
        name = re.sub(r"[^a-z0-9]+", "-", f"{config.label} {config.training.learning_rate:g}".lower()).strip("-")
        return self.folder / f"{name}-{fingerprint(config)}"

    def _baseline(self, task: TaskSection, part: str) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / f"baseline-{re.sub(r'[^a-z0-9]+', '-', task.name.lower())}-{part}.json"


def _failure(problem: Exception) -> str:
    """Failure text for the record of a run. A locked folder is no failure of the method and is raised."""
    if isinstance(problem, RunError):
        raise problem
    return f"{type(problem).__name__}: {problem}"


def score(folder: Path, task: TaskSection, part: str, unrelated: dict[str, float]) -> dict[str, float]:
    """The task's metrics of a finished run on held-out rows, and its forgetting: the rise of the loss on unrelated text
    (nats/token).

    Args:
        folder: folder of the finished run.
        task: the task; metrics that it does not ask for are left out.
        part: held-out rows: "validation" or "test".
        unrelated: the base model's loss on the unrelated text by task; a missing one is computed and added.

    Returns:
        Metrics by name.
    """
    import numpy as np

    from qpeft.applications.preparation.prepare import read_part
    from qpeft.evaluation import metrics
    from qpeft.evaluation.classify import label_log_likelihoods, probabilities
    from qpeft.training.data.examples import load_examples
    from qpeft.training.data.tokenization import tokenize_all
    from qpeft.training.loop.loaded_run import load_run
    from qpeft.training.model.held_out_loss import evaluate

    found: dict[str, float] = {}
    if not task.score_rows and not task.unrelated:
        return found
    config, model, tokenizer = load_run(folder)
    batch = config.training.per_device_eval_batch_size
    if task.score_rows:
        prepared = Prepared.read(Path(task.folder) / FILE)
        rows = read_part(Path(task.folder), part)[: task.score_rows]
        truth = np.array([prepared.answers.index(row["label"]) for row in rows])
        prompts = [row["messages"][0]["content"] for row in rows]
        told = probabilities(
            label_log_likelihoods(model, tokenizer, prompts, prepared.answers, system=task.system, batch_size=batch, progress=True)
        )
        found |= metrics.classification(told, truth, prepared.answers, positive=prepared.positive, cost=prepared.cost)
    if task.unrelated:
        texts = tokenize_all(load_examples(task.unrelated)[: task.unrelated_rows], tokenizer, task.max_length).rows
        after = evaluate(model, texts, tokenizer, batch_size=batch, share_prefixes=True, progress=True)["loss"]
        if task.name not in unrelated:
            with model.disable_adapter():
                before = evaluate(model, texts, tokenizer, batch_size=batch, share_prefixes=True, progress=True)
            unrelated[task.name] = before["loss"]
        found["forgetting"] = after - unrelated[task.name]
    return found
