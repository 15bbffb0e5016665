"""The plan of a study: one YAML file that says which model, tasks, methods, learning rates and seeds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from qpeft.errors import ConfigError
from qpeft.training.recipe.adapter_section import read_adapter
from qpeft.training.recipe.config import AdapterFields, DataSection, Label, ModelSection, RunConfig
from qpeft.training.recipe.training_section import Count, Natural, Pattern, Positive, Seed, TrainingSection
from qpeft.training.recipe.validation import Problem, Section, explain
from qpeft.training.recipe.yaml_source import read_yaml

TEXT, CLASSES = "text", "classification"


class Task(Section):
    """Rows to learn from, to tune on and to judge on: `FOLDER/{train,validation,test}.jsonl`.

    `prepare` names a data set of the catalogue that is prepared into the folder if it is not there; `split` a folder without
    validation rows, an eighth of whose training rows are set aside. `judge_rows` of the test
    rows are judged by the likelihoods of their answers, where the folder holds a task of classification; none means by loss
    alone. `unrelated` is a file of other text: the loss on it is what was forgotten. `step_rows` is how many rows a step has, where
    that is not the study's number.
    """

    name: Label
    folder: Annotated[str, Field(min_length=1)]
    prepare: str | None = None
    split: str | None = None
    max_length: Annotated[int, Field(ge=2)] = 256
    system: str | None = None
    train_rows: Count | None = None
    tuning_rows: Count | None = None
    test_rows: Count | None = None
    judge_rows: Natural = 0
    step_rows: Count | None = None
    unrelated: str | None = None
    unrelated_rows: Count = 32

    def data(self, part: str) -> DataSection:
        """Training rows with the rows of `part` held out."""
        held_out = self.tuning_rows if part == "validation" else self.test_rows
        return DataSection(
            train=f"{self.folder}/train.jsonl",
            eval=f"{self.folder}/{part}.jsonl",
            max_length=self.max_length,
            max_train_rows=self.train_rows,
            max_eval_rows=held_out,
            system=self.system,
        )


class Rung(Section):
    """Successive halving: after `step` steps, the best `keep` of a method's learning rates go on."""

    step: Count
    keep: Count


class Tuning(Section):
    """Every method has these learning rates, rungs and this seed, and no others; what is tuned on are validation rows."""

    learning_rates: Annotated[tuple[Positive, ...], Field(min_length=1)]
    rungs: tuple[Rung, ...] = ()
    seed: Seed = 1000

    def inconsistencies(self) -> Iterable[Problem]:
        """Rungs climb and narrow, down to one."""
        before = (0, len(self.learning_rates))
        for index, rung in enumerate(self.rungs):
            if rung.step <= before[0] or rung.keep >= before[1]:
                yield Problem(("rungs", index), f"step {rung.step}, keep {rung.keep}", f"step > {before[0]}, keep < {before[1]}")
            before = (rung.step, rung.keep)
        if before[1] != 1:
            yield Problem(("rungs",), f"{before[1]} learning rates are left", "a last rung that keeps 1")

    def steps(self) -> int:
        """Steps of training that tuning costs a method and task."""
        total, alive, before = 0, len(self.learning_rates), 0
        for rung in self.rungs:
            total += alive * (rung.step - before)
            alive, before = rung.keep, rung.step
        return total


class Arm(Section):
    """A method with its settings. `kind` sorts it in tables: quantum, control (of a quantum method), classical or lora. `of` is the
    arm of which this one is a change or a control, with which it is compared.

    `learning_rate_factors` are a recipe's: they multiply each of the study's learning rates for parts of the adapter.
    """

    label: Label
    kind: Annotated[str, Field(pattern="^(lora|classical|quantum|control|ours)$")]
    adapter: AdapterFields
    of: Label | None = None
    learning_rate_factors: dict[Pattern, Positive] = Field(default_factory=dict)


class Plan(Section):
    """A study: arms x tasks, tuned each with the same budget on validation rows, then trained with every seed and judged on test
    rows. `training` holds what all runs share; learning rate and seed are the study's.
    """

    name: Label
    model: ModelSection
    training: dict[str, Any] = Field(default_factory=dict)
    tuning: Tuning
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]
    tasks: Annotated[tuple[Task, ...], Field(min_length=1)]
    arms: Annotated[tuple[Arm, ...], Field(min_length=1)]

    def inconsistencies(self) -> Iterable[Problem]:
        """Names are unique, the seed of tuning is no seed of the study, and the grid decides what is tuned."""
        for section, names in (("tasks", [t.name for t in self.tasks]), ("arms", [a.label for a in self.arms])):
            for index, name in enumerate(names):
                if name in names[:index]:
                    yield Problem((section, index), f"{name!r} appears twice", "each once")
        labels = [arm.label for arm in self.arms]
        for index, arm in enumerate(self.arms):
            if arm.of is not None and (arm.of == arm.label or arm.of not in labels):
                yield Problem(("arms", index, "of"), f"{arm.of!r} is no other arm", f"one of {', '.join(labels)}")
        if self.tuning.seed in self.seeds:
            yield Problem(("tuning", "seed"), f"{self.tuning.seed} is also a seed of the study", "another")
        for key in ("learning_rate", "seed", "data_seed", "num_train_epochs"):
            if key in self.training:
                yield Problem(("training", key), "decided by the study", "max_steps, tuning.learning_rates and seeds")
        steps = self.training.get("max_steps")
        if not isinstance(steps, int):
            yield Problem(("training", "max_steps"), "missing", "the steps of a run")
        elif self.tuning.rungs and self.tuning.rungs[-1].step > steps:
            yield Problem(("tuning", "rungs"), f"step {self.tuning.rungs[-1].step}", f"at most max_steps = {steps}")

    def run(self, task: Task, arm: Arm, part: str, learning_rate: float, seed: int) -> RunConfig:
        """The recipe of one run."""
        given = {"save_strategy": "no", "logging_steps": 5, **self.training}
        if task.step_rows is not None:
            given["per_device_train_batch_size"] = task.step_rows
        training = TrainingSection.model_validate_json(json.dumps(given)).model_copy(
            update={
                "learning_rate": learning_rate,
                "learning_rate_factors": arm.learning_rate_factors,
                "seed": seed,
                "data_seed": seed,
                "disable_tqdm": True,
            }
        )
        return RunConfig(
            name=f"{self.name}: {task.name}" + (", tuning" if part == "validation" else ""),
            label=arm.label,
            model=self.model,
            adapter=arm.adapter,
            data=task.data(part),
            training=training,
        )

    def trial(self, task: Task, arm: Arm, learning_rate: float) -> RunConfig:
        """A run of the ladder: judged on validation rows, with the tuning's seed."""
        return self.run(task, arm, "validation", learning_rate, self.tuning.seed)

    def final(self, task: Task, arm: Arm, tuned: float | None, seed: int) -> RunConfig:
        """The run that counts: judged on test rows, at the tuned learning rate (at the first one where every one failed)."""
        return self.run(task, arm, "test", tuned or self.tuning.learning_rates[0], seed)


def fingerprint(config: RunConfig) -> str:
    """What decides a run's result, as a hash: names of groups and arms do not."""
    values = {key: value for key, value in config.resolved().items() if key not in ("name", "label")}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def load_plan(path: Path) -> Plan:
    """Read and check a plan; every problem found is in the one ConfigError raised."""
    source = read_yaml(path)
    problems = list(source.problems)
    plan = None
    try:
        plan = Plan.model_validate_json(json.dumps({"name": path.stem, **(source.value or {})}))
    except ValidationError as error:
        problems += [source.problem(*problem) for problem in explain(error, Plan)]
    if plan is not None:
        for index, arm in enumerate(plan.arms):
            for problem in read_adapter(arm.adapter)[1]:
                problems.append(source.problem(("arms", index, "adapter", *problem.path), *problem[1:]))
        try:
            plan.run(plan.tasks[0], plan.arms[0], "test", 1e-3, plan.seeds[0])
        except ValidationError as error:
            problems += [source.problem(*problem) for problem in explain(error, TrainingSection, ("training",))]
    if problems or plan is None:
        raise ConfigError.collect(problems)
    return plan
