"""The plan of a study: one YAML file that says which model, tasks, arms, learning rates and seeds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationError

from qpeft.errors import ConfigError
from qpeft.plugins import load_plugins
from qpeft.training.recipe.adapter_section import read_adapter
from qpeft.training.recipe.config import AdapterFields, DataSection, Label, ModelSection, RunConfig
from qpeft.training.recipe.training_section import Count, Natural, Pattern, Positive, Seed, TrainingSection
from qpeft.training.recipe.validation import Problem, Section, explain
from qpeft.training.recipe.yaml_source import read_yaml

ADDED: dict[tuple[str, ...], Any] = {  # recipe fields younger than the first fingerprints, and their defaults
    ("plugins",): [],
    ("model", "quantization"): None,
    ("data", "streaming"): False,
    ("training", "global_batch_size"): None,
    ("training", "distributed"): "ddp",
    ("training", "packing"): False,
    ("training", "run_name"): None,
    ("training", "push_to_hub"): False,
    ("training", "hub_model_id"): None,
    ("training", "hub_private_repo"): None,
}
RENAMED: dict[tuple[str, str], dict[Any, Any]] = {  # new values that mean what an older one meant, up to rounding
    ("training", "share_prefixes"): {"auto": False},
}
Part = Literal["train", "validation", "test"]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class TaskSection(Section):
    """A task: rows to train on, to tune on and to test on, `FOLDER/{train,validation,test}.jsonl`.

    `prepare` names a data set of the catalogue that is written into the folder if it is not there; `split` a folder without
    validation rows, an eighth of whose training rows are set aside. `sha256` freezes parts: other rows are an error. The first
    `score_rows` test rows are scored by the likelihoods of their answers, where the folder holds a classification task; 0 means
    loss alone. `unrelated` is a file of other text: how much the loss on it rises is the forgetting. `step_rows` is the rows of
    a training step, where that is not the plan's number.
    """

    renamed: ClassVar[Mapping[str, str]] = {"judge_rows": "write score_rows"}

    name: Label
    folder: Annotated[str, Field(min_length=1)]
    prepare: str | None = None
    split: str | None = None
    sha256: dict[Part, Digest] = Field(default_factory=dict)
    max_length: Annotated[int, Field(ge=2)] = 256
    system: str | None = None
    train_rows: Count | None = None
    tuning_rows: Count | None = None
    test_rows: Count | None = None
    score_rows: Natural = 0
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
    """A rung of successive halving: after `step` steps, an arm's best `keep` learning rates go on."""

    step: Count
    keep: Count


class TuningSection(Section):
    """How every arm's learning rate is chosen: by loss on validation rows, with one seed that is no seed of the study.

    `search: grid` trains every rate of `learning_rates` for all steps, or climbs `rungs` (successive halving). A winner at the edge
    of the grid is followed beyond it, by at most `extend` further rates. `search: hill_climb` starts at the arm's `start`, trains
    for all steps and ends when both neighbours on the grid are worse.
    """

    learning_rates: Annotated[tuple[Positive, ...], Field(min_length=1)]
    search: Literal["grid", "hill_climb"] = "grid"
    rungs: tuple[Rung, ...] = ()
    extend: Natural = 0
    seed: Seed = 1000

    def inconsistencies(self) -> Iterable[Problem]:
        """Rungs climb and narrow, down to one."""
        before = (0, len(self.learning_rates))
        for index, rung in enumerate(self.rungs):
            if rung.step <= before[0] or rung.keep >= before[1]:
                yield Problem(("rungs", index), f"step {rung.step}, keep {rung.keep}", f"step > {before[0]}, keep < {before[1]}")
            before = (rung.step, rung.keep)
        if self.rungs and before[1] != 1:
            yield Problem(("rungs",), f"{before[1]} learning rates are left", "a last rung that keeps 1")
        if self.search == "hill_climb":
            for name in ("rungs", "extend"):
                if getattr(self, name):
                    yield Problem((name,), "given together with hill_climb", "search: grid")

    def steps(self, max_steps: int) -> int:
        """Training steps that the tuning of an arm on a task costs, rates beyond the grid not counted. Hill climbing costs this at
        most."""
        if not self.rungs:
            return max_steps * len(self.learning_rates)
        total, alive, before = 0, len(self.learning_rates), 0
        for rung in self.rungs:
            total += alive * (rung.step - before)
            alive, before = rung.keep, rung.step
        return total


class ArmSection(Section):
    """An arm: a method with its settings.

    `kind` sorts it in tables. `of` is the arm that this one is a change or a control of, and is compared with.
    `learning_rate_factors` are a recipe's: they multiply the learning rate for parts of the adapter. `start` is where hill climbing
    starts.
    """

    label: Label
    kind: Literal["lora", "classical", "quantum", "control", "ours"]
    adapter: AdapterFields
    of: Label | None = None
    learning_rate_factors: dict[Pattern, Positive] = Field(default_factory=dict)
    start: Positive | None = None


class StudyPlan(Section):
    """A study: arms x tasks. Each arm is tuned on each task's validation rows, then trained with every seed and tested.

    `training` holds what all runs share; learning rate and seed are the study's. With `held_out: validation` the seeds are compared
    on validation rows and no test row is read: a search. `registration` is the page on which the plan was registered before a
    test row was read. `note` is printed on the study's page. `plugins` are a recipe's: files and modules to import first.
    """

    name: Label
    model: ModelSection
    training: dict[str, Any] = Field(default_factory=dict)
    tuning: TuningSection
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]
    held_out: Literal["validation", "test"] = "test"
    registration: str | None = None
    note: str | None = None
    plugins: tuple[str, ...] = ()
    tasks: Annotated[tuple[TaskSection, ...], Field(min_length=1)]
    arms: Annotated[tuple[ArmSection, ...], Field(min_length=1)]

    def inconsistencies(self) -> Iterable[Problem]:
        """Names are unique, the tuning's seed is no seed of the study, and what is tuned is not given."""
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

    @property
    def max_steps(self) -> int:
        """Steps of a run."""
        return int(self.training["max_steps"])

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts of a task that the study reads."""
        return ("train", "validation", "test") if self.held_out == "test" else ("train", "validation")

    def run(self, task: TaskSection, arm: ArmSection, part: str, learning_rate: float, seed: int) -> RunConfig:
        """The recipe of one run.

        Args:
            task: the task.
            arm: the arm.
            part: held-out rows: "validation" or "test".
            learning_rate: the learning rate.
            seed: of the run and of its data.
        """
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
            plugins=self.plugins,
        )

    def tuning_run(self, task: TaskSection, arm: ArmSection, learning_rate: float) -> RunConfig:
        """The recipe of a tuning run: validation rows, the tuning's seed.

        Args:
            task: the task.
            arm: the arm.
            learning_rate: the learning rate.
        """
        return self.run(task, arm, "validation", learning_rate, self.tuning.seed)

    def seed_run(self, task: TaskSection, arm: ArmSection, tuned: float | None, seed: int) -> RunConfig:
        """The recipe of a run that counts, on the study's held-out rows.

        Args:
            task: the task.
            arm: the arm.
            tuned: the tuned learning rate; None, where every rate failed, takes the grid's first.
            seed: of the run and of its data.
        """
        return self.run(task, arm, self.held_out, tuned or self.tuning.learning_rates[0], seed)


def fingerprint(config: RunConfig) -> str:
    """Hash of everything that decides a run's result, without names of groups and arms. Records hold it: it must not change."""
    values = {key: value for key, value in config.resolved().items() if key not in ("name", "label")}
    for (*sections, name), default in ADDED.items():
        inside = values
        for section in sections:
            inside = inside[section]
        if name in inside and inside[name] == default:
            del inside[name]
    for (section, name), older in RENAMED.items():
        values[section][name] = older.get(values[section][name], values[section][name])
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def load_plan(path: Path) -> StudyPlan:
    """Read and check a plan.

    Raises:
        ConfigError: with every problem found.
        PluginError: a plug-in cannot be imported, or is not allowed to run.
    """
    source = read_yaml(path)
    problems = list(source.problems)
    plan = None
    try:
        plan = StudyPlan.model_validate_json(json.dumps({"name": path.stem, **(source.value or {})}))
    except ValidationError as error:
        problems += [source.problem(*problem) for problem in explain(error, StudyPlan)]
    if plan is not None:
        load_plugins(plan.plugins)
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
