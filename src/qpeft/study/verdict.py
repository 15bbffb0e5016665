"""The verdict on one method: the standard protocol with the method and its controls, and what the records say of it.

A verdict is a study whose plan is made here: the protocol's references, the method, and its controls (registry.Method.controls).
Its records are a study's, so it resumes as a study does.
"""

from __future__ import annotations

import importlib.resources
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, stdev
from typing import Any

from qpeft.errors import ConfigError
from qpeft.report.statistics import MIN_SEEDS, PairedDifference
from qpeft.study.plan import ArmSection, StudyPlan, TaskSection, load_plan
from qpeft.study.power import detectable_difference
from qpeft.study.records import StudyRecords
from qpeft.study.results import ArmResult, arm_results, paired_differences

REFERENCE = "LoRA r=8"
LEVEL = 0.05
SKIPPED = ("mlp2", "mlp3", "mlp4")  # mlp, of equal size, is control enough
CIRCUIT = {"peft_type": "QTHA", "hidden_size": 16, "bond_dim": 4, "target_modules": ["q_proj", "v_proj"]}
QUICK_STEPS, QUICK_SEEDS, QUICK_RATES = 8, 2, 2
QUICK_ROWS = {"step_rows": 2, "tuning_rows": 16, "test_rows": 32}


@dataclass(frozen=True)
class Subject:
    """Subject of a verdict: name, adapter section, and the plug-ins of its method."""

    name: str
    adapter: Mapping[str, Any]
    plugins: tuple[str, ...] = ()


def standard_protocol() -> Path:
    """The file of the standard protocol."""
    return Path(str(importlib.resources.files("qpeft.study") / "protocol.yaml"))


def read_subject(what: str, inputs: Sequence[str] = (), observables: Sequence[str] = ()) -> Subject:
    """A circuit file, a recipe with an adapter section, or the name of a method.

    Args:
        what: FILE.qasm, a circuit as FILE.json, RECIPE.yaml or a PEFT type such as QTHA. A circuit takes the place of QTHA's.
        inputs: for a circuit file, the names of the parameters that are data, in order.
        observables: for a circuit file, what is measured: Pauli strings, a letter for each qubit. Default Z of every qubit.

    Raises:
        ConfigError: it is none of these, or its settings are not valid.
    """
    from qpeft.training.recipe.adapter_section import build_adapter_config, embed_circuit
    from qpeft.training.recipe.config import load_recipe

    path = Path(what)
    if (inputs or observables) and path.suffix not in (".qasm", ".json"):
        raise ConfigError("inputs and observables are of a circuit file", file=what, expected="FILE.qasm or FILE.json")
    if path.suffix in (".yaml", ".yml"):
        recipe = load_recipe(path)
        if recipe.adapter is None:
            raise ConfigError("the recipe has no adapter section", file=what, expected="one method, not a comparison")
        return Subject(recipe.label or path.stem, recipe.adapter, recipe.plugins)
    if path.suffix in (".qasm", ".json"):
        if not path.is_file():
            raise ConfigError("no such file", file=what, expected="a circuit")
        adapter: dict[str, Any] = {**CIRCUIT, "circuit": str(path.resolve())}
        adapter |= {"observables": list(observables)} if observables else {}
        subject = Subject(path.stem, embed_circuit(adapter | ({"circuit_inputs": list(inputs)} if inputs else {}), [Path.cwd()]))
    else:
        subject = Subject(what, {"peft_type": what.upper(), "target_modules": ["q_proj", "v_proj"]})
    build_adapter_config(subject.adapter)
    return subject


def controls_of(subject: Subject) -> list[ArmSection]:
    """The subject's classical controls and ablations, those that its settings allow."""
    from qpeft.adapters.registry import METHODS
    from qpeft.training.recipe.adapter_section import read_adapter

    method = METHODS.get(str(subject.adapter["peft_type"]).upper())
    arms = []
    for name, settings in (method.controls if method is not None else {}).items():
        adapter = {**subject.adapter, **settings}
        same = all(subject.adapter.get(key) == value for key, value in settings.items())
        if name not in SKIPPED and not same and not read_adapter(adapter)[1]:
            arms.append(ArmSection(label=f"{subject.name}: {name}", kind="control", of=subject.name, adapter=adapter))
    return arms


def verdict_plan(
    subject: Subject, protocol: StudyPlan, *, tasks: Sequence[str] = (), seeds: int | None = None, quick: bool = False
) -> StudyPlan:
    """The protocol with the subject and its controls as arms.

    Args:
        subject: what is judged.
        protocol: references, tasks, training, tuning and seeds.
        tasks: only these tasks of the protocol.
        seeds: only the first so many seeds.
        quick: a first look: one task, two seeds, eight steps of two rows, two learning rates, one reference and one control.

    Raises:
        ConfigError: a task that the protocol does not have, or a subject with the name of a reference.
    """
    names = [task.name for task in protocol.tasks]
    for name in tasks:
        if name not in names:
            raise ConfigError(f"no task {name!r} in the protocol", expected=f"one of {', '.join(names)}")
    if subject.name in [arm.label for arm in protocol.arms]:
        raise ConfigError(f"{subject.name!r} is a reference of the protocol", expected="another name", field="--name")
    chosen = [task for task in protocol.tasks if not tasks or task.name in tasks]
    arms, controls = list(protocol.arms), controls_of(subject)
    update: dict[str, Any] = {"name": "verdict", "plugins": (*protocol.plugins, *subject.plugins)}
    count = seeds
    if quick:
        chosen = [chosen[0].model_copy(update=QUICK_ROWS)]
        arms, controls, count = arms[:1], controls[:1], min(seeds or QUICK_SEEDS, QUICK_SEEDS)
        steps = min(QUICK_STEPS, protocol.max_steps)
        training = {**protocol.training, "max_steps": steps, "warmup_steps": min(2, steps)}
        rates = protocol.tuning.learning_rates
        middle = rates[max(0, (len(rates) - QUICK_RATES) // 2) :][:QUICK_RATES]
        update |= {
            "training": training,
            "tuning": protocol.tuning.model_copy(update={"learning_rates": middle, "extend": 0, "rungs": ()}),
        }
    own = ArmSection(label=subject.name, kind="quantum", adapter=dict(subject.adapter))
    update |= {"seeds": protocol.seeds[:count], "tasks": tuple(chosen), "arms": (*arms, own, *controls)}
    return protocol.model_copy(update=update)


def read_protocol(file: Path | None = None) -> StudyPlan:
    """The standard protocol, or another plan whose arms are the references."""
    return load_plan(file or standard_protocol())


@dataclass(frozen=True)
class RemainingWork:
    """Remaining work: training steps, runs, and seconds estimated from timed steps."""

    runs: int
    steps: int
    seconds: float


def work_left(plan: StudyPlan, records: StudyRecords) -> tuple[int, int, int]:
    """Runs that the records lack, their training steps, and the rows that they evaluate. Rates beyond the grid are not foreseen.

    Args:
        plan: the verdict's study.
        records: what has been run.
    """
    from qpeft.study.plan import fingerprint

    runs, steps, rows = 0, 0, 0
    for task in plan.tasks:
        for arm in plan.arms:
            last = plan.tuning.rungs[-1].step if plan.tuning.rungs else plan.max_steps
            marks = [fingerprint(plan.tuning_run(task, arm, rate)) for rate in plan.tuning.learning_rates]
            left = sum((mark, last) not in records.tuning for mark in marks)
            rate = records.rate(plan, task, arm)
            seeds = [s for s in plan.seeds if fingerprint(plan.seed_run(task, arm, rate, s)) not in records.runs]
            runs += left + len(seeds)
            steps += left * last + len(seeds) * plan.max_steps
            rows += left * (task.tuning_rows or 0) + len(seeds) * (task.test_rows or 0)
    return runs, steps, rows


def estimate_cost(plan: StudyPlan, records: StudyRecords, subject: str, rounds: int = 3) -> RemainingWork:
    """Estimate the time of the runs that the records lack, from a few timed training steps on the first task's rows.

    Other arms are taken to be as fast as the subject.

    Args:
        plan: the verdict's study.
        records: what has been run.
        subject: label of the arm that is timed.
        rounds: steps that are timed, after one that is not; the median counts.
    """
    import torch
    from peft import get_peft_model

    from qpeft.study.tasks import prepare
    from qpeft.training.data.examples import load_examples
    from qpeft.training.data.tokenization import collator, tokenize_all
    from qpeft.training.model import loading
    from qpeft.training.model.prefix_sharing import narrowed, training_obstacle
    from qpeft.training.recipe.adapter_section import build_adapter_config

    task, arm = plan.tasks[0], next(arm for arm in plan.arms if arm.label == subject)
    prepare(task, plan.parts)
    config = plan.run(task, arm, "validation", plan.tuning.learning_rates[0], plan.tuning.seed)
    loading.load_model(plan.model)  # the first time imports the model's code
    started = time.monotonic()
    base, tokenizer = loading.load_model(plan.model), loading.load_tokenizer(plan.model)
    model = get_peft_model(base, build_adapter_config(arm.adapter))
    load_s = time.monotonic() - started
    size = config.training.per_device_train_batch_size
    examples = load_examples(config.data.train, system=task.system)[: size * (rounds + 1)]
    rows = tokenize_all(examples, tokenizer, task.max_length).rows
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6)
    setting = config.training.share_prefixes
    shares = training_obstacle(config, model) is None if setting == "auto" else setting
    times = []
    for index in range(rounds + 1):
        batch = collator(tokenizer)([rows[(index * size + k) % len(rows)] for k in range(size)])
        started = time.monotonic()
        on_device = {name: value.to(model.device) for name, value in batch.items()}
        inputs, following = narrowed(on_device, base, shares)
        logits = model(**inputs).logits.flatten(0, 1).float()
        torch.autograd.backward(torch.nn.functional.cross_entropy(logits, following.flatten()))
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.monotonic() - started)
    step_s = median(times[1:])
    runs, steps, rows_evaluated = work_left(plan, records)
    seconds = steps * step_s + rows_evaluated * step_s / size / 3 + runs * load_s  # a forward pass is a third of a step
    return RemainingWork(runs, steps, seconds)


@dataclass(frozen=True)
class Finding:
    """Result of the subject on one task.

    `rows` are its paired differences of held-out loss (subject minus other, nats/token), corrected over the whole verdict (Holm).
    `visible` is, by the other's label, the smallest true difference that so many seeds see with a power of 0.8 at the level of the
    whole verdict.
    """

    task: TaskSection
    subject: ArmResult
    others: Mapping[str, ArmResult]
    rows: Mapping[str, PairedDifference]
    visible: Mapping[str, float] = field(default_factory=dict)

    @property
    def controls(self) -> list[str]:
        """Labels of the subject's own controls."""
        return [label for label, other in self.others.items() if other.arm.of == self.subject.arm.label]

    @property
    def equal_size(self) -> str | None:
        """The reference of lowest loss among those with at most the subject's parameters, LoRA r=8 aside; else the smallest."""
        references = [x for x in self.others.values() if x.arm.kind in ("lora", "classical") and x.arm.label != REFERENCE]
        small = [x for x in references if x.parameters <= self.subject.parameters]
        best = min(small, key=lambda x: x.loss.mean) if small else min(references, key=lambda x: x.parameters, default=None)
        return None if best is None else best.arm.label

    def relative(self, label: str) -> float:
        """The subject's mean loss relative to another's: -0.1 is 10% lower."""
        return self.subject.loss.mean / self.others[label].loss.mean - 1

    def outcome(self, label: str) -> str:
        """lower, higher or equal: whether the corrected test tells the difference from chance."""
        row = self.rows[label]
        if row.p_holm is None or row.p_holm >= LEVEL:
            return "equal"
        return "lower" if row.difference.mean < 0 else "higher"


def findings(plan: StudyPlan, records: StudyRecords, subject: str) -> list[Finding]:
    """The finding of every task on which the subject has two seeds or more.

    Args:
        plan: the verdict's study.
        records: what has been run.
        subject: label of the method under test.
    """
    cases = []
    for task in plan.tasks:
        by_label = {result.arm.label: result for result in arm_results(plan, records, task) if result.runs}
        own = by_label.pop(subject, None)
        if own is not None and len(own.runs) > 1:
            paired = {label: other for label, other in by_label.items() if len(other.runs.keys() & own.runs.keys()) > 1}
            cases.append((task, own, paired))
    pairs = [(own, other) for _, own, others in cases for other in others.values()]
    rows = iter(paired_differences(pairs))
    found = []
    for task, own, others in cases:
        mine = {label: next(rows) for label in others}
        visible = {}
        for label, other in others.items():
            seeds = sorted(own.runs.keys() & other.runs.keys())
            differences = [own.runs[s].metrics["loss"] - other.runs[s].metrics["loss"] for s in seeds]
            visible[label] = detectable_difference(stdev(differences), len(seeds), LEVEL / len(pairs))
        found.append(Finding(task, own, others, mine, visible))
    return found


def sentence(found: Sequence[Finding], subject: str) -> str:
    """The verdict in one sentence.

    Args:
        found: the finding of each task.
        subject: label of the method under test.
    """
    if not found:
        return f"No verdict on {subject} yet: too few runs are done."
    seeds = min(len(finding.subject.runs) for finding in found)
    places = " and ".join(filter(None, [", ".join(f.task.name for f in found[:-1]), found[-1].task.name]))
    if seeds < MIN_SEEDS:
        told = f"{100 * found[0].relative(REFERENCE):+.0f}% held-out loss vs. {REFERENCE}" if REFERENCE in found[0].others else ""
        return f"A first look at {subject} on {places} with {seeds} seeds, which proves nothing" + (f": {told}." if told else ".")
    controls = [finding.outcome(label) for finding in found for label in finding.controls]
    parts = []
    for label in dict.fromkeys([REFERENCE, *(finding.equal_size or "" for finding in found)]):
        mine = [finding for finding in found if label in finding.others and (label == REFERENCE or finding.equal_size == label)]
        if mine:
            parts.append(_against(label, mine))
    if controls and all(outcome == "lower" for outcome in controls):
        parts.append("it is ahead of each of its own controls")
    elif controls:
        parts.append(
            "at least one of its own controls is ahead of it"
            if "higher" in controls
            else "no measurable difference to at least one of its own controls, so what makes it different is not what helps"
        )
    return f"{subject} on {places}: " + "; ".join(parts) + "."


def _against(label: str, found: Sequence[Finding]) -> str:
    """How the subject's loss compares with one reference over the tasks."""
    groups: dict[str, list[str]] = {}
    for finding in found:
        groups.setdefault(finding.outcome(label), []).append(f"{finding.task.name} {100 * finding.relative(label):+.1f}%")
    words = {"lower": "lower loss than", "higher": "higher loss than", "equal": "no measurable difference to"}
    return ", ".join(f"{words[outcome]} {label} ({', '.join(tasks)})" for outcome, tasks in groups.items())
