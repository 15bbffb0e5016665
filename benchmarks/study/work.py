"""The work of a study: tune every arm on every task, then train and judge the seeds. What the ledger knows is not done again."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import logging
import math
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.study.ledger import Ledger, Trial, climbed
from benchmarks.study.plan import Arm, Plan, Task, fingerprint
from benchmarks.study.results import lines
from qpeft.applications.task import FILE
from qpeft.applications.task import Task as Prepared
from qpeft.errors import DataError, QpeftError, RunError
from qpeft.records import RunRecord
from qpeft.training.recipe.config import RunConfig

logger = logging.getLogger(__name__)
FAILURES = (QpeftError, RuntimeError, ValueError)  # of a method on a task, which a study goes on after


def prepare(task: Task) -> None:
    """Make the task's rows, if they are not there; a DataError says what a folder lacks."""
    folder = Path(task.folder)
    if task.prepare and not folder.exists():
        from qpeft.applications.data_sets import DATA_SETS
        from qpeft.applications.preparation.prepare import prepare as write

        write(DATA_SETS[task.prepare], folder)
    if task.split and not folder.exists():
        _split(Path(task.split), folder)
    for part in ("train", "validation", "test"):
        if not (folder / f"{part}.jsonl").is_file():
            raise DataError(
                f"task {task.name} has no {part} rows",
                file=f"{folder / part}.jsonl",
                expected="train, validation and test rows",
                hint="`split: FOLDER` in the plan sets validation rows aside",
            )
    if task.judge_rows and not (folder / FILE).is_file():
        raise DataError(
            f"task {task.name} has judge_rows, and its rows no answers to choose among",
            file=str(folder / FILE),
            expected="a data set of `qpeft prepare`",
            hint="judge_rows: 0 judges by loss alone",
        )
    if task.unrelated and not Path(task.unrelated).is_file():
        raise DataError(f"task {task.name} has no unrelated text", file=task.unrelated, expected="rows as in test.jsonl")


def _split(source: Path, folder: Path) -> None:
    """The rows of a folder without validation rows: an eighth of the training rows, those of smallest SHA-256, is set aside."""
    rows = (source / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    order = sorted(rows, key=lambda row: hashlib.sha256(row.encode()).hexdigest())
    aside = set(order[: len(rows) // 8])
    made = folder.with_name(f"{folder.name}.part")  # renamed when whole: a kill leaves no folder that lacks a part
    made.mkdir(parents=True, exist_ok=True)
    (made / "validation.jsonl").write_text("".join(row for row in rows if row in aside), encoding="utf-8")
    (made / "train.jsonl").write_text("".join(row for row in rows if row not in aside), encoding="utf-8")
    (made / "test.jsonl").write_text((source / "test.jsonl").read_text(encoding="utf-8"), encoding="utf-8")
    made.rename(folder)


def _failure(problem: Exception) -> str:
    """What the ledger says of a run that failed. An error of the folder, where another process is at work, is not the method's."""
    if isinstance(problem, RunError):
        raise problem
    return f"{type(problem).__name__}: {problem}"


class Study:
    """A plan at work: `runs` is where runs live until they are in the ledger."""

    def __init__(self, plan: Plan, ledger: Ledger, runs: Path) -> None:
        self.plan, self.ledger, self.runs = plan, ledger, runs
        self.unrelated: dict[str, float] = {}  # by task, the base model's loss on unrelated text

    def _folder(self, config: RunConfig) -> Path:
        name = re.sub(r"[^a-z0-9]+", "-", f"{config.label} {config.training.learning_rate:g}".lower()).strip("-")
        return self.runs / f"{name}-{fingerprint(config)}"

    def _trial(self, task: Task, arm: Arm, rate: float, step: int) -> Trial:
        """Train a learning rate up to `step` and write down the loss on validation rows."""
        from qpeft.training.loop.run import train
        from qpeft.training.loop.run_dir import held_out_losses

        config = self.plan.trial(task, arm, rate)
        mark = fingerprint(config)
        if (known := self.ledger.trials.get((mark, step))) is not None:
            return known
        folder = self._folder(config)
        found: float | None = None
        error = ""
        try:
            if step not in held_out_losses(folder):
                train(config, folder, baseline=self._baseline(task, "validation"), until=step)
            found = held_out_losses(folder)[step]
        except FAILURES as problem:
            error = _failure(problem)
        if found is not None and not math.isfinite(found):
            found, error = None, "the loss is not finite"
        trial = Trial(task.name, arm.label, rate, step, found, mark, error)
        logger.warning("%s, %s, learning rate %g, step %d: %s", task.name, arm.label, rate, step, error or found)
        self.ledger.add_trial(trial)
        return trial

    def _baseline(self, task: Task, part: str) -> Path:
        self.runs.mkdir(parents=True, exist_ok=True)
        return self.runs / f"baseline-{re.sub(r'[^a-z0-9]+', '-', task.name.lower())}-{part}.json"

    def tune(self, task: Task, arm: Arm) -> float | None:
        """The learning rate that wins the ladder, the same for all arms; None where every one failed."""
        best = climbed(self.plan.tuning, lambda rate, step: self._trial(task, arm, rate, step).loss)
        for rate in self.plan.tuning.learning_rates:
            shutil.rmtree(self._folder(self.plan.trial(task, arm, rate)), ignore_errors=True)
        return best

    def final(self, task: Task, arm: Arm, rate: float | None, seed: int) -> RunRecord:
        """One run of the study: trained with the tuned learning rate, judged on test rows; failed where there is none."""
        from qpeft.training.loop.run import train
        from qpeft.training.loop.run_dir import failed_record

        config = self.plan.final(task, arm, rate, seed)
        if (known := self.ledger.records.get(fingerprint(config))) is not None:
            return known
        if rate is None:
            mine = [t.error for t in self.ledger.trials.values() if (t.task, t.arm) == (task.name, arm.label) and t.error]
            record = failed_record(config, f"every learning rate failed on validation rows, the last with {mine[-1]}")
            self.ledger.add_record(record)
            return record
        folder = self._folder(config).with_name(f"{self._folder(config).name}-seed-{seed}")
        try:
            record = train(config, folder, baseline=self._baseline(task, "test"))
            record = dataclasses.replace(record, metrics={**record.metrics, **judge(folder, task, self.unrelated)})
        except FAILURES as problem:
            record = failed_record(config, _failure(problem))
            logger.error("%s, %s, seed %d failed: %s", task.name, arm.label, seed, problem)
        self.ledger.add_record(record)
        shutil.rmtree(folder, ignore_errors=True)
        return record

    def work(self, tasks: Sequence[Task], arms: Sequence[Arm]) -> Iterator[RunRecord]:
        """Task by task: tune all arms, then seed by seed all arms, so that paired results come early."""
        for task in tasks:
            prepare(task)
            rates = {arm.label: self.tune(task, arm) for arm in arms}
            for seed in self.plan.seeds:
                for arm in arms:
                    yield self.final(task, arm, rates[arm.label], seed)
                    gc.collect()

    def left(self) -> tuple[int, int]:
        """(runs done, runs planned), tuning not counted."""
        done = sum(line.made for task in self.plan.tasks for line in lines(self.plan, self.ledger, task))
        return done, len(self.plan.tasks) * len(self.plan.arms) * len(self.plan.seeds)


def judge(folder: Path, task: Task, unrelated: dict[str, float]) -> dict[str, float]:
    """Measures of the task on test rows, and how much the loss on unrelated text rose (nats a token); `unrelated` remembers what it
    is without an adapter."""
    import numpy as np

    from qpeft.applications.preparation.prepare import read_part
    from qpeft.evaluation import metrics
    from qpeft.evaluation.classify import label_log_likelihoods, probabilities
    from qpeft.training.data.examples import load_examples
    from qpeft.training.data.tokenization import tokenize_all
    from qpeft.training.loop.loaded_run import load_run
    from qpeft.training.model.held_out_loss import evaluate

    found: dict[str, float] = {}
    if not task.judge_rows and not task.unrelated:
        return found
    config, model, tokenizer = load_run(folder)
    batch = config.training.per_device_eval_batch_size
    if task.judge_rows:
        prepared = Prepared.read(Path(task.folder) / FILE)
        rows = read_part(Path(task.folder), "test")[: task.judge_rows]
        truth = np.array([prepared.answers.index(row["label"]) for row in rows])
        prompts = [row["messages"][0]["content"] for row in rows]
        told = probabilities(
            label_log_likelihoods(model, tokenizer, prompts, prepared.answers, system=task.system, batch_size=batch)
        )
        found |= metrics.classification(told, truth, prepared.answers, positive=prepared.positive, cost=prepared.cost)
    if task.unrelated:
        texts = tokenize_all(load_examples(task.unrelated)[: task.unrelated_rows], tokenizer, task.max_length).rows
        after = evaluate(model, texts, tokenizer, batch_size=batch, share_prefixes=True)["loss"]
        if task.name not in unrelated:
            with model.disable_adapter():
                unrelated[task.name] = evaluate(model, texts, tokenizer, batch_size=batch, share_prefixes=True)["loss"]
        found["forgetting"] = after - unrelated[task.name]
    return found
