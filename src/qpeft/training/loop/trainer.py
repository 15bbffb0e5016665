"""transformers.Trainer as a run uses it: our evaluation and loss, parameter groups, circuits, several processes."""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from qpeft.errors import ConfigError, DivergedError, MissingDependencyError
from qpeft.files import atomic_write
from qpeft.training.data.tokenization import collator
from qpeft.training.loop import checkpoints, sharding
from qpeft.training.loop.callbacks import (
    CircuitSteps,
    EvaluateLastStep,
    LogSpeed,
    MarkCheckpoints,
    PauseAfter,
    RememberStep,
    TellProgress,
    TrainingTimer,
)
from qpeft.training.loop.param_groups import scale_rates
from qpeft.training.loop.progress import ProgressLine
from qpeft.training.model.held_out_loss import Rows, evaluate
from qpeft.training.model.label_logits import cross_entropy, keeps_logits, plain_loss
from qpeft.training.model.packing import packed
from qpeft.training.model.prefix_sharing import demand_trees, narrowed, training_obstacle
from qpeft.training.on_chip.session import CircuitSession
from qpeft.training.processes import Processes
from qpeft.training.recipe.config import RunConfig
from qpeft.training.recipe.training_section import TrainingSection

logger = logging.getLogger(__name__)
BAD_BATCH = "diverged-batch.json"


class AdapterTrainer(Trainer):  # type: ignore[misc]
    """Trains the adapter of a run.

    Args:
        config: the recipe.
        folder: the run's folder; checkpoints go into `checkpoints/`.
        model: the base model with the adapter on it.
        train_rows, eval_rows: tokenised rows; `train_rows` may be an iterable data set.
        circuits: where the adapter's circuits run.
        processes: those that train together.
        until: pause after this step.
        progress: show a line of progress.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        model: Any,
        tokenizer: Any,
        train_rows: Any,
        eval_rows: Rows,
        *,
        circuits: CircuitSession,
        processes: Processes,
        until: int | None = None,
        progress: bool = True,
    ) -> None:
        section, self.config = config.training, config
        self.section, self.run_dir, self.eval_rows = section, folder, eval_rows
        self.circuits, self.processes, self.clock = circuits, processes, TrainingTimer()
        self.progress = progress and processes.first
        self.measured: tuple[int, dict[str, float]] = (-1, {})  # the last evaluation and its step
        self.steps = RememberStep()
        self.sharded = sharding.is_sharded(section, processes)
        self.gathers = self.sharded or processes.deepspeed  # whole tensors have to be asked of all processes
        arguments = training_arguments(section, folder, processes)
        demand_reporters(section)
        if processes.count > 1 and not self.sharded:
            sharding.leave_to_circuits(model, circuits.deferred_gradients)
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=train_rows,
            eval_dataset=list(eval_rows) or None,
            data_collator=collator(tokenizer),
            processing_class=tokenizer,
            compute_loss_func=cross_entropy if _spares_logits(model, section) else None,
        )
        self.shares_prefixes = self._shares_prefixes(model)
        if self.sharded:
            sharding.shard(model)
            self.is_distributed_loading_by_transformers = True  # the model is placed, and its gradients are reduced, already
        self.callback_handler.callbacks = [*self._our_callbacks(until), *_reporters(section, folder, processes)] + [
            callback for callback in self.callback_handler.callbacks if type(callback).__name__ not in _REPLACED
        ]

    def _our_callbacks(self, until: int | None) -> list[TrainerCallback]:
        """In the order in which they see an event: what they add to a log entry is there when it is shown."""
        pause = [] if until is None else [PauseAfter(until, evaluates=bool(self.eval_rows))]
        name = f"{self.config.label}, seed {self.section.seed}" if self.config.label else ""
        progress = [ProgressLine(name)] if self.progress else []
        told = [TellProgress(self.run_dir, pauses=self.processes.count == 1)] if self.processes.first else []
        return [
            LogSpeed(self.clock, self.circuits),
            CircuitSteps(self.circuits),
            self.steps,
            EvaluateLastStep(),
            *pause,
            MarkCheckpoints(self.clock, self.processes),
            *told,
            *progress,
        ]

    def _shares_prefixes(self, model: Any) -> bool:
        """Whether the rows of a training batch share prefixes, as the recipe says or by rule."""
        setting = self.section.share_prefixes
        if setting != "auto":
            return setting
        obstacle = training_obstacle(self.config, model)
        if self.processes.first:
            decided = "on, in batches where it is less work" if obstacle is None else f"off in training ({obstacle})"
            logger.info("share_prefixes: auto: %s", decided)
        return obstacle is None

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """transformers' loss, with logits for the labelled columns alone where the model can do that.

        Args:
            model: the wrapped model.
            inputs: a collated batch.
            *args: passed on to transformers.
            **kwargs: passed on to transformers.
        """
        if self.compute_loss_func is not None:
            if self.section.packing:
                inputs, following = packed(inputs, self.model)
            else:
                inputs, following = narrowed(inputs, self.model, self.shares_prefixes)
            inputs["labels"] = following
        return super().compute_loss(model, inputs, *args, **kwargs)

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """One batch forward and backward; after the last batch of a step the gradients that wait for circuits.

        Args:
            model: the wrapped model.
            inputs: a collated batch.
            *args: passed on to transformers.
            **kwargs: passed on to transformers.

        Returns:
            The loss, detached, as transformers' `Trainer` returns it.

        Raises:
            DivergedError: the loss is not a finite number; the batch is left in the run's folder.
        """
        batch = dict(inputs)  # the loss takes the labels out of the other
        loss = super().training_step(model, inputs, *args, **kwargs)
        if not math.isfinite(value := float(loss)):
            raise self._diverged(batch, value)
        if self.accelerator.sync_gradients:
            self.circuits.flush()
        return loss

    def _diverged(self, batch: Mapping[str, Any], loss: float) -> DivergedError:
        step = int(self.state.global_step)
        rows = {name: tensor.tolist() for name, tensor in batch.items() if isinstance(tensor, torch.Tensor)}
        texts = self.processing_class.batch_decode(batch["input_ids"]) if "input_ids" in batch else []
        file = self.run_dir / BAD_BATCH
        atomic_write(file, json.dumps({"step": step + 1, "loss": str(loss), "texts": texts, "batch": rows}))
        return DivergedError(
            f"the loss of step {step + 1} is {loss}",
            value=f"learning rate {self._get_learning_rate():.3g}",
            hint=f"a smaller learning rate, warm-up or max_grad_norm; the batch is in {file}",
        )

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """Held-out metrics of the model as it is."""
        self.circuits.begin_evaluation(int(self.state.global_step))
        found = self.held_out_metrics()
        self.measured = (int(self.state.global_step), found)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(metrics)
        self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def held_out_metrics(self) -> dict[str, float]:
        """Metrics on the held-out rows, which the processes share out among them; empty without such rows."""
        if not self.eval_rows:
            return {}
        size, shares = self.section.per_device_eval_batch_size, self.config.shares_in_evaluation
        return evaluate(
            self.model,
            self.eval_rows,
            self.processing_class,
            batch_size=size,
            share_prefixes=shares,
            progress=self.progress,
            processes=self.processes,
            recorded=self.gathers,
        )

    def final_metrics(self) -> dict[str, float]:
        """Metrics of the model after training: of the last evaluation, if no step came after it."""
        step, found = self.measured
        if step == self.state.global_step and not self.section.load_best_model_at_end:
            return found
        if self.eval_rows:
            self.circuits.begin_evaluation(int(self.state.global_step))
        return self.held_out_metrics()

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' optimizer, with the recipe's learning rates of parts."""
        fresh, optimizer = self.optimizer is None, super().create_optimizer(*args, **kwargs)
        if fresh and self.section.learning_rate_factors:
            scale_rates(optimizer, self.model.named_parameters(), self.section.learning_rate_factors)
        return optimizer

    def save_last_step(self) -> None:
        """Write the checkpoint of the last whole step, for a run that failed in the middle of the next."""
        last, step = self.steps.last, int(self.state.global_step)
        if last.step != step or checkpoints.is_whole(Path(self.args.output_dir) / f"checkpoint-{step}"):
            return  # no step was done since the last checkpoint
        import numpy as np

        self.state.num_input_tokens_seen = last.tokens
        random.setstate(last.python)
        np.random.set_state(last.numpy)
        torch.set_rng_state(last.torch)
        self._save_checkpoint(self.model, trial=None)
        MarkCheckpoints(self.clock, self.processes).on_save(self.args, self.state, self.control)

    # -- parameters sharded among processes (FSDP2, DeepSpeed); see sharding.py ----------------------------------------------------

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the whole adapter, gathered from all processes where it is sharded.

        Args:
            output_dir: folder; default the trainer's output folder.
            _internal_call: as in transformers' `Trainer`.
        """
        if not self.gathers:
            super().save_model(output_dir, _internal_call)
            return
        state = self.full_state_dict()
        if self.args.should_save:
            self._save(output_dir, state_dict=state)

    def full_state_dict(self) -> dict[str, Any] | None:
        """Full state dict of a sharded model for `save_pretrained`; None for a model that is not sharded."""
        return sharding.full_state_dict(self.model) if self.gathers else None

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        with sharding.whole_optimizer_state(self.optimizer, self.sharded):
            super()._save_optimizer_and_scheduler(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with sharding.split_optimizer_state(self.optimizer, self.sharded):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.sharded:
            sharding.load_full_state(self.model, Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _defer_fsdp_gradient_reduction(self) -> Any:
        return sharding.without_reduction(self.model)


REPORTERS = {"wandb": "reporters", "trackio": "reporters"}  # package -> extra
_REPLACED = ("ProgressCallback", "PrinterCallback", "TensorBoardCallback")


def training_arguments(section: TrainingSection, folder: Path, processes: Processes) -> Any:
    """`TrainingArguments` of a run.

    Args:
        section: the recipe's `training` section.
        folder: the run's folder; checkpoints go into `checkpoints/`.
        processes: the processes that train together.
    """
    given = section.to_training_arguments_kwargs()
    if given.get("save_total_limit") is not None:
        given["save_total_limit"] = max(2, given["save_total_limit"])  # a kill while one is written must leave another
    given["dataloader_pin_memory"] = given.get("dataloader_pin_memory", True) and torch.cuda.is_available()
    given["gradient_accumulation_steps"] = section.accumulation(processes.count)
    for name in ("push_to_hub", "hub_model_id", "hub_private_repo"):  # hub.py, which pushes the finished adapter
        given.pop(name, None)
    given["report_to"] = [name for name in given.pop("report_to") if name != "tensorboard"] or "none"
    if processes.deepspeed:
        given["accelerator_config"] = {"use_configured_state": True}  # as `start_processes` made it
    elif processes.count > 1:
        given["use_cpu"] = given.get("use_cpu", False) or not torch.accelerator.is_available()
    return TrainingArguments(
        output_dir=str(folder / checkpoints.CHECKPOINTS),
        include_num_input_tokens_seen="non_padding",
        label_names=["labels"],
        remove_unused_columns=False,
        logging_nan_inf_filter=False,  # a loss that is not finite ends the run
        **given,
    )


def _spares_logits(model: Any, section: TrainingSection) -> bool:
    """Whether logits are computed for labelled tokens alone; ConfigError where shared prefixes need that and cannot have it."""
    spares = keeps_logits(model) and plain_loss(model) and not section.label_smoothing_factor
    for option in ("share_prefixes", "packing"):
        if getattr(section, option) is True:
            demand_trees(model, option)
            if not spares:
                raise ConfigError("the loss of this model takes no shared sequences", field=f"training.{option}", hint="false")
    return spares


def demand_reporters(section: TrainingSection) -> None:
    """MissingDependencyError for a reporter of the recipe that is not installed."""
    for name in section.report_to:
        if name in REPORTERS and importlib.util.find_spec(name) is None:
            raise MissingDependencyError(name, REPORTERS[name], f"training.report_to: {name}")


def _reporters(section: TrainingSection, folder: Path, processes: Processes) -> list[TrainerCallback]:
    """TensorBoard with its files in the run's folder; the other reporters are transformers' own."""
    if "tensorboard" not in section.report_to or not processes.first:
        return []
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingDependencyError("tensorboard", "train", "training.report_to: tensorboard") from error
    from transformers.integrations import TensorBoardCallback

    return [TensorBoardCallback(SummaryWriter(log_dir=str(folder / "tensorboard")))]
