"""The `training` section of a recipe: names and meaning of transformers.TrainingArguments, with defaults for adapters."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from qpeft.errors import ConfigError
from qpeft.training.recipe.validation import Problem, Section, unknown_value


def _whole_or_share(value: float) -> float:
    if value >= 1 and value != int(value):
        raise PydanticCustomError("steps", "Input should be a whole number of steps, or a share of all steps below 1")
    return int(value) if value >= 1 else value


def _pattern(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise PydanticCustomError("pattern", "Input should be a regular expression: {problem}", {"problem": str(error)}) from error
    return value


def _names(value: Any) -> Any:
    names = [value] if isinstance(value, str) else value
    return (() if names == ["none"] else tuple(names)) if isinstance(names, list) else names


Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Positive = Annotated[float, Field(gt=0)]
Unit = Annotated[float, Field(ge=0, lt=1)]
Steps = Annotated[float, Field(gt=0), AfterValidator(_whole_or_share)]
Pattern = Annotated[str, AfterValidator(_pattern)]
Names = Annotated[tuple[str, ...], BeforeValidator(_names)]


OURS = ("learning_rate_factors", "share_prefixes", "global_batch_size", "distributed", "packing")
"""Arguments that transformers does not have."""


class TrainingSection(Section):
    """Arguments of transformers.Trainer under their own names. `Steps` below 1 are a share of all steps.

    Five are ours:

    * `global_batch_size`: rows of an optimizer step over all processes, instead of `gradient_accumulation_steps`; the same recipe
      then trains alike on any number of processes.
    * `distributed`: how several processes train, by copies (ddp) or with the parameters sharded among them (fsdp2).
    * `learning_rate_factors`: regular expression -> factor; parameters in whose name it is found learn at that multiple of the
      learning rate.
    * `share_prefixes`: what rows of a batch begin with, such as one instruction for all, is computed once where that is less work,
      in training and evaluation; losses are the same to rounding. `auto` does so wherever model, adapter and recipe allow it.
    * `packing`: short rows of a batch share sequences no longer than its longest row; losses are the same to rounding.

    `max_steps` counts optimizer steps and excludes `num_train_epochs`; with neither, three epochs are trained. `bf16` and `fp16`
    switch on autocast and say nothing of the dtype of the base weights (`model.dtype`). The folder of the run and what belongs to
    it is no part of a recipe.
    """

    renamed: ClassVar[Mapping[str, str]] = {
        "warmup_ratio": "write warmup_steps with a value below 1: a share of all steps",
        "evaluation_strategy": "write eval_strategy",
        "no_cuda": "write use_cpu",
        "learning_rates": "write learning_rate; a sweep is a compare section with one arm for each value",
        "batch_size": "write per_device_train_batch_size",
        "lr": "write learning_rate",
        "epochs": "write num_train_epochs",
        "activation_checkpointing": "write gradient_checkpointing",
        "output_dir": "leave it out: the run folder is an option of the command line",
        "do_train": "leave it out",
        "do_eval": "leave it out: give data.eval or data.eval_size",
    }

    num_train_epochs: Positive | None = None
    max_steps: Count | None = None
    per_device_train_batch_size: Count = 4
    per_device_eval_batch_size: Count = 8
    share_prefixes: bool | Literal["auto"] = "auto"
    packing: bool = False
    gradient_accumulation_steps: Count = 1
    global_batch_size: Count | None = None
    distributed: Literal["ddp", "fsdp2"] = "ddp"
    auto_find_batch_size: bool = False

    learning_rate: Positive = 2e-4
    learning_rate_factors: dict[Pattern, Positive] = Field(default_factory=dict)
    lr_scheduler_type: str = "cosine"
    lr_scheduler_kwargs: dict[str, Any] | None = None
    warmup_steps: Annotated[float, Field(ge=0), AfterValidator(_whole_or_share)] = 0.03
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    optim: str = "adamw_torch"
    optim_args: str | None = None
    adam_beta1: Unit = 0.9
    adam_beta2: Unit = 0.999
    adam_epsilon: Positive = 1e-8
    label_smoothing_factor: Unit = 0.0
    neftune_noise_alpha: Positive | None = None

    bf16: bool = False
    fp16: bool = False
    tf32: bool | None = None
    gradient_checkpointing: bool = False
    gradient_checkpointing_kwargs: dict[str, Any] | None = None
    torch_compile: bool = False
    torch_compile_backend: str | None = None
    torch_compile_mode: str | None = None
    torch_empty_cache_steps: Count | None = None
    use_cpu: bool = False

    logging_strategy: Literal["no", "steps", "epoch"] = "steps"
    logging_steps: Steps = 10
    logging_first_step: bool = True
    report_to: Names = ()
    run_name: str | None = None
    push_to_hub: bool = False
    hub_model_id: str | None = None
    hub_private_repo: bool | None = None
    disable_tqdm: bool | None = None

    eval_strategy: Literal["no", "steps", "epoch"] = "no"
    eval_steps: Steps | None = None
    eval_delay: Annotated[float, Field(ge=0)] = 0
    eval_on_start: bool = False
    eval_accumulation_steps: Count | None = None

    save_strategy: Literal["no", "steps", "epoch", "best"] = "steps"
    save_steps: Steps = 500
    save_total_limit: Count | None = 2
    save_only_model: bool = False
    load_best_model_at_end: bool = False
    metric_for_best_model: str | None = None
    greater_is_better: bool | None = None

    seed: Seed = 42
    data_seed: Seed | None = None
    full_determinism: bool = False

    dataloader_num_workers: Natural = 0
    dataloader_prefetch_factor: Count | None = None
    dataloader_persistent_workers: bool = False
    dataloader_pin_memory: bool = True
    dataloader_drop_last: bool = False

    def inconsistencies(self) -> Iterable[Problem]:
        """Combinations that transformers or torch would refuse later, or that contradict each other."""
        if self.max_steps is not None and self.num_train_epochs is not None:
            yield Problem(("num_train_epochs",), "given together with max_steps", "one of the two (the other null)")
        if self.global_batch_size is not None and self.gradient_accumulation_steps != 1:
            yield Problem(("gradient_accumulation_steps",), "given together with global_batch_size", "one of the two")
        if self.global_batch_size is not None and self.global_batch_size % self.per_device_train_batch_size:
            expected = f"a multiple of per_device_train_batch_size ({self.per_device_train_batch_size})"
            yield Problem(("global_batch_size",), f"is {self.global_batch_size}", expected)
        if self.bf16 and self.fp16:
            yield Problem(("fp16",), "true together with bf16", "one of the two")
        shares = self.share_prefixes is True
        if self.packing and (shares or self.label_smoothing_factor):
            other = "share_prefixes" if shares else "label_smoothing_factor"
            yield Problem(("packing",), f"true together with {other}", "one of the two")
        for name in ("label_smoothing_factor", "neftune_noise_alpha"):
            if shares and getattr(self, name):
                yield Problem(("share_prefixes",), f"true together with {name}", "one of the two")
        if self.dataloader_num_workers == 0:
            for name in ("dataloader_prefetch_factor", "dataloader_persistent_workers"):
                if getattr(self, name):
                    yield Problem((name,), "needs worker processes", "dataloader_num_workers of at least 1")
        if self.eval_strategy == "no":
            for name, value in (("load_best_model_at_end", True), ("save_strategy", "best")):
                if getattr(self, name) == value:
                    yield Problem((name,), "needs evaluations during training", 'eval_strategy "steps" or "epoch"')
            if self.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy"):
                yield Problem(("lr_scheduler_type",), "needs evaluations during training", 'eval_strategy "steps" or "epoch"')
        elif self.load_best_model_at_end and self.save_strategy != "best":
            yield from self._best_model_is_saved()

    def accumulation(self, processes: int) -> int:
        """Batches of one process that make an optimizer step.

        Raises ConfigError where `global_batch_size` does not divide among the processes.
        """
        if self.global_batch_size is None:
            return self.gradient_accumulation_steps
        together = self.per_device_train_batch_size * processes
        if self.global_batch_size % together:
            raise ConfigError(
                f"{self.global_batch_size} rows do not divide among {processes} processes of "
                f"{self.per_device_train_batch_size} rows",
                field="training.global_batch_size",
                expected=f"a multiple of {together}",
                hint="another number of processes, or another per_device_train_batch_size",
            )
        return self.global_batch_size // together

    def _best_model_is_saved(self) -> Iterable[Problem]:
        if self.save_strategy != self.eval_strategy:
            yield Problem(
                ("save_strategy",),
                f"is {self.save_strategy!r} with load_best_model_at_end",
                f"{self.eval_strategy!r} as eval_strategy",
            )
        elif self.eval_strategy == "steps":
            every = self.logging_steps if self.eval_steps is None else self.eval_steps
            scaled = (round(self.save_steps * 1e6), round(every * 1e6))
            if (self.save_steps < 1) != (every < 1) or scaled[0] % max(scaled[1], 1):
                yield Problem(
                    ("save_steps",), f"is {self.save_steps} with load_best_model_at_end", f"a multiple of eval_steps ({every})"
                )

    def to_training_arguments_kwargs(self) -> dict[str, Any]:
        """Keyword arguments for the installed transformers.TrainingArguments; `output_dir` is the caller's.

        Raises ConfigError where a value other than the default names an argument that this transformers does not have.
        """
        from transformers import TrainingArguments

        known = {f.name for f in dataclasses.fields(TrainingArguments)}
        values = {name: value for name, value in self.model_dump().items() if value is not None}
        for name in OURS:
            values.pop(name, None)
        values["report_to"] = list(self.report_to)
        if self.max_steps is None and self.num_train_epochs is None:
            values["num_train_epochs"] = 3.0
        if "activation_checkpointing" in known:  # the newer name; the old one warns
            for name in ("gradient_checkpointing", "gradient_checkpointing_kwargs"):
                if name in values:
                    values[name.replace("gradient", "activation")] = values.pop(name)
        elif self.gradient_checkpointing:  # older releases recompute in a way that needs inputs with gradients
            values.setdefault("gradient_checkpointing_kwargs", {"use_reentrant": False})
        if "warmup_ratio" in known:  # older releases hold the share in a field of its own
            warmup = values.pop("warmup_steps")
            values |= {"warmup_ratio": warmup} if 0 < warmup < 1 else {"warmup_steps": int(warmup)}
        for name in values.keys() - known:
            if values.pop(name) != type(self).model_fields[name].default:
                raise ConfigError("the installed transformers has no such argument", field=f"training.{name}", hint="leave it out")
        return values


def unknown_names(values: Mapping[str, Any]) -> list[Problem]:
    """Names of optimizers, schedules and reporters in a training section that the installed transformers does not have."""
    given = {name: values[name] for name in ("lr_scheduler_type", "optim") if isinstance(values.get(name), str)}
    reporters = _names(values.get("report_to", ()))
    if not given and not reporters:
        return []
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
    from transformers.trainer_utils import SchedulerType
    from transformers.training_args import OptimizerNames

    known = {
        "lr_scheduler_type": [str(kind.value) for kind in SchedulerType],
        "optim": [str(kind.value) for kind in OptimizerNames],
    }
    problems = [unknown_value((name,), value, known[name]) for name, value in given.items() if value not in known[name]]
    names = [name for name in reporters if isinstance(name, str)] if isinstance(reporters, list | tuple) else []
    problems += [
        unknown_value(("report_to",), name, sorted(INTEGRATION_TO_CALLBACK))
        for name in names
        if name not in INTEGRATION_TO_CALLBACK
    ]
    return problems
