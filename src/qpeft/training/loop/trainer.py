"""transformers.Trainer as a run uses it: our evaluation, whole checkpoints, speed in the progress bar, circuits on a chip."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qpeft.errors import ConfigError, MissingDependencyError
from qpeft.files import atomic_write
from qpeft.training import environment
from qpeft.training.data.tokenization import collator
from qpeft.training.loop.param_groups import scale_rates
from qpeft.training.loop.run_dir import WHOLE
from qpeft.training.model.held_out_loss import Rows, evaluate
from qpeft.training.model.label_logits import cross_entropy, keeps_logits, plain_loss
from qpeft.training.model.prefix_sharing import demand_trees, narrowed
from qpeft.training.recipe.config import RunConfig

if TYPE_CHECKING:
    from qpeft.training.on_chip.session import ChipSession


class Clock:
    """Training time over all sessions of a run, evaluation during training included."""

    def __init__(self) -> None:
        self.earlier_s, self._started = 0.0, time.monotonic()

    def start(self) -> None:
        self._started = time.monotonic()

    def elapsed_s(self) -> float:
        return self.earlier_s + time.monotonic() - self._started


def make_trainer(
    config: RunConfig,
    folder: Path,
    model: Any,
    tokenizer: Any,
    train_rows: Rows,
    eval_rows: Rows,
    clock: Clock,
    chip: ChipSession | None,
    until: int | None = None,
) -> Any:
    """transformers.Trainer with our evaluation, checkpoints that are whole or do not count, and speed in the progress bar.

    After step `until` it evaluates, writes a checkpoint and stops; schedules are those of the whole run.

    With circuits on a chip, its waiting gradients are run once before each optimiser step, and when it fails in the middle of a
    step `save_last_step` writes the checkpoint that would have been written after the step before.
    """
    import numpy as np
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Watch(TrainerCallback):  # type: ignore[misc]
        last: tuple[Any, ...] = (-1, 0, None, None, None)  # the last step that was done; tokens and generators after it

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            clock.start()
            self._seen_s, self._seen_tokens = time.monotonic(), int(state.num_input_tokens_seen)

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
            if logs is not None and "loss" in logs:
                now, tokens = time.monotonic(), int(state.num_input_tokens_seen)
                logs["tokens_per_s"] = round((tokens - self._seen_tokens) / max(now - self._seen_s, 1e-9), 1)
                logs |= {} if chip is None else chip.shown()
                logs["peak_memory_gib"] = round(environment.peak_memory_bytes() / 2**30, 2)
                self._seen_s, self._seen_tokens = now, tokens

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if chip is not None:
                chip.begin_step(int(state.global_step))

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if chip is not None:
                generators = (random.getstate(), np.random.get_state(), torch.get_rng_state())
                self.last = (int(state.global_step), state.num_input_tokens_seen, *generators)
            if until is not None and state.global_step >= until:
                control.should_training_stop = control.should_save = True
                control.should_evaluate = bool(eval_rows)

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            atomic_write(checkpoint / WHOLE, json.dumps({"wall_s": clock.elapsed_s()}))

    class EvaluatingTrainer(Trainer):  # type: ignore[misc]
        measured: tuple[int, dict[str, float]] = (-1, {})  # the last evaluation and its step

        def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
            if chip is not None:
                chip.begin_evaluation(int(self.state.global_step))
            size = self.args.per_device_eval_batch_size
            found = evaluate(self.model, eval_rows, tokenizer, batch_size=size, share_prefixes=shares)
            self.measured = (int(self.state.global_step), found)
            metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
            self.log(metrics)
            self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
            return metrics

        def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            if self.compute_loss_func is not None:  # logits for the labelled columns alone
                inputs, following = narrowed(inputs, self.model, shares)
                inputs["labels"] = following
            return super().compute_loss(model, inputs, *args, **kwargs)

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(*args, **kwargs)
            if chip is not None and self.accelerator.sync_gradients:
                chip.flush()
            return loss

        def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
            fresh, optimizer = self.optimizer is None, super().create_optimizer(*args, **kwargs)
            if fresh and config.training.learning_rate_factors:
                scale_rates(optimizer, self.model.named_parameters(), config.training.learning_rate_factors)
            return optimizer

        def save_last_step(self) -> None:
            step, tokens, python, numpy, generator = watch.last
            if step != self.state.global_step or (Path(self.args.output_dir) / f"checkpoint-{step}" / WHOLE).exists():
                return  # no step was done since the last checkpoint
            self.state.num_input_tokens_seen = tokens
            random.setstate(python)
            np.random.set_state(numpy)
            torch.set_rng_state(generator)
            self._save_checkpoint(self.model, trial=None)
            watch.on_save(self.args, self.state, self.control)

    shares = config.training.share_prefixes
    given = config.training.to_training_arguments_kwargs()
    if given.get("save_total_limit") is not None:
        given["save_total_limit"] = max(2, given["save_total_limit"])  # a kill while one is written must leave another
    given["dataloader_pin_memory"] = given.get("dataloader_pin_memory", True) and torch.cuda.is_available()
    reporters = given.pop("report_to")
    watch = Watch()
    callbacks = [watch, *_tensorboard(reporters, folder)]
    arguments = TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        include_num_input_tokens_seen="non_padding",
        label_names=["labels"],
        remove_unused_columns=False,
        report_to=[name for name in reporters if name != "tensorboard"] or "none",
        **given,
    )
    spares_logits = keeps_logits(model) and plain_loss(model) and not arguments.label_smoothing_factor and arguments.n_gpu <= 1
    if shares:
        demand_trees(model)
        if not spares_logits:
            hint = "a process for each GPU, or false"
            raise ConfigError("several GPUs in one process", field="training.share_prefixes", hint=hint)
    trainer = EvaluatingTrainer(
        model=model,
        args=arguments,
        train_dataset=list(train_rows),
        eval_dataset=list(eval_rows) or None,
        data_collator=collator(tokenizer),
        processing_class=tokenizer,
        compute_loss_func=cross_entropy if spares_logits else None,
    )
    for callback in reversed(callbacks):  # before the progress bar, so that it shows what Watch adds
        trainer.callback_handler.callbacks.insert(0, callback)
    return trainer


def _tensorboard(reporters: list[str], folder: Path) -> list[Any]:
    if "tensorboard" not in reporters:
        return []
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingDependencyError("tensorboard", "train", "training.report_to: tensorboard") from error
    from transformers.integrations import TensorBoardCallback

    return [TensorBoardCallback(SummaryWriter(log_dir=str(folder / "tensorboard")))]
