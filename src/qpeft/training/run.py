"""One training run: a recipe and a folder in, an adapter and a record out, whatever happens in between.

The folder holds `recipe.yaml` (resolved), `checkpoints/`, `tensorboard/`, and when done `adapter/` (a PEFT adapter folder) and
`record.json`. Starting a run again in its folder continues from the newest whole checkpoint, with the same data order and random
state, so a killed run ends with the weights of an unkilled one; a finished run returns its record at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qpeft.errors import BackendError, BudgetError, ConfigError, MissingDependencyError, RunError
from qpeft.records import Measurement, RunRecord
from qpeft.training import environment, models
from qpeft.training.adapter_section import build_adapter_config
from qpeft.training.config import RunConfig
from qpeft.training.data import data_hash, load_data
from qpeft.training.evaluate import Rows, evaluate
from qpeft.training.files import write_whole
from qpeft.training.tokenization import collator, tokenize_all
from qpeft.training.yaml_source import read_yaml

if TYPE_CHECKING:
    from qpeft.training.backend import ChipSession

logger = logging.getLogger(__name__)

RECIPE, ADAPTER, RECORD, FAILURE = "recipe.yaml", "adapter", "record.json", "failure.json"
BASELINE = "baseline.json"
BACKEND_FILES = ("spent.json", "results.sqlite", "jobs")  # see backend.py
WHOLE = "whole.json"  # in a checkpoint that was written to its end


def train(config: RunConfig, folder: Path, *, overwrite: bool = False, baseline: Path | None = None) -> RunRecord:
    """Train one adapter, or continue, in `folder`. `baseline` is a file in which runs on the same model and held-out rows keep
    the base model's metrics for each other.

    Raises:
        RunError: the folder holds another recipe's run (unless `overwrite`), or another process is training in it.
        ConfigError, DataError, ModelError: as loading says.
    """
    if config.adapter is None:
        raise RunError("the recipe has no adapter section", value=config.name, cure="qpeft compare trains the arms of a comparison")
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        claim(config, folder, overwrite, ("checkpoints", "tensorboard", ADAPTER, RECORD, FAILURE, *BACKEND_FILES))
        if (folder / RECORD).exists():
            logger.warning("%s is finished already; its record is returned", folder)
            return read_record(folder)
        (folder / FAILURE).unlink(missing_ok=True)
        try:
            record = _train(config, folder, baseline or folder / BASELINE)
        except Exception as error:
            write_whole(folder / FAILURE, json.dumps({"error": f"{type(error).__name__}: {error}"}))
            raise
        write_whole(folder / RECORD, record.to_json() + "\n")
    return record


def read_record(folder: Path) -> RunRecord:
    """The record of a finished run."""
    try:
        return RunRecord.from_json((folder / RECORD).read_text(encoding="utf-8"), file=str(folder / RECORD), line=1)
    except FileNotFoundError as error:
        raise RunError("not a finished run", value=str(folder), cure=f"qpeft train {folder / RECIPE} --output {folder}") from error


def finished_config(folder: Path) -> RunConfig:
    """The recipe of a finished run; RunError for any other folder."""
    if not (folder / ADAPTER / "adapter_config.json").exists() or not (folder / RECIPE).exists():
        raise RunError("not a finished run", value=str(folder), bound=f"a folder with {RECIPE} and {ADAPTER}/")
    return RunConfig.from_resolved(read_yaml(folder / RECIPE).value)  # its data files may have moved since


def load_run(folder: Path) -> tuple[RunConfig, Any, Any]:
    """`(config, model, tokenizer)` of a finished run, the adapter in place, in evaluation mode."""
    from peft import PeftModel

    config = finished_config(folder)
    base, tokenizer = models.load_model(config.model), models.load_tokenizer(config.model)
    return config, PeftModel.from_pretrained(base, str(folder / ADAPTER)).eval(), tokenizer


def _train(config: RunConfig, folder: Path, baseline: Path) -> RunRecord:
    from peft import get_peft_model
    from transformers import set_seed

    from qpeft.adapters.peft import lora_parameters
    from qpeft.adapters.quantum import QuantumLayer

    train_examples, eval_examples = load_data(config.data)
    tokenizer = models.load_tokenizer(config.model)
    train_rows = tokenize_all(train_examples, tokenizer, config.data.max_length).rows
    eval_rows = tokenize_all(eval_examples, tokenizer, config.data.max_length).rows if eval_examples else []
    base = models.load_model(config.model)
    if str(base.dtype) == "torch.bfloat16" and environment.slow_in_bfloat16(base.device.type):
        logger.warning("this processor has no bfloat16 instructions: model.dtype: float32 is several times faster here")
    base_parameters = sum(p.numel() for p in base.parameters())
    batch_size = config.training.per_device_eval_batch_size
    progress = not config.training.disable_tqdm
    hashes = {
        "model": models.base_hash(config.model.model_name_or_path, base.config),
        "train": data_hash(train_examples),
        **({"eval": data_hash(eval_examples)} if eval_examples else {}),
    }
    key = [hashes["model"], hashes.get("eval"), config.model.dtype, config.data.max_length]
    before = _read_baseline(baseline, key)
    if before is None:
        before = evaluate(base, eval_rows, tokenizer, batch_size=batch_size, progress=progress) if eval_rows else {}
        write_whole(baseline, json.dumps({"key": key, "metrics": before}))

    set_seed(config.training.seed)  # before the adapter is made: its initial values are part of the run
    adapter_config = build_adapter_config(config.adapter or {})
    model = get_peft_model(base, adapter_config)
    if config.init_from is not None:
        hashes["init"] = _start_from(model, Path(config.init_from))
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    logger.info("%s: %s trainable of %s parameters", config.label or config.name, f"{trainable:,}", f"{base_parameters:,}")

    clock = _Clock()
    on_chip: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        chip = None
        if config.backend is not None:
            from qpeft.training.backend import ChipSession
            from qpeft.training.plan import decided

            section = decided(config, model, [len(row["input_ids"]) for row in train_rows], len(eval_rows))
            chip = stack.enter_context(ChipSession(section, folder, model))
        trainer = _make_trainer(config, folder, model, tokenizer, train_rows, eval_rows, clock, chip)
        checkpoint = _newest_whole_checkpoint(folder)
        if checkpoint is not None:
            clock.earlier_s = json.loads((checkpoint / WHOLE).read_text())["wall_s"]
            logger.warning("continuing from %s", checkpoint)
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            wall_s = clock.elapsed_s()
            step, after = trainer.measured
            if eval_rows and (step != trainer.state.global_step or config.training.load_best_model_at_end):
                if chip is not None:
                    chip.begin_evaluation(int(trainer.state.global_step))
                after = evaluate(model, eval_rows, tokenizer, batch_size=batch_size, progress=progress)
        except BackendError as error:
            trainer.save_last_step()
            if chip is not None and isinstance(error, BudgetError):
                raise chip.explain(error, int(trainer.state.global_step)) from error
            raise
        if chip is not None:
            on_chip = chip.to_record()
            simulated = chip.backend.simulated
    if on_chip and eval_rows:
        on_chip["exact_loss"] = evaluate(model, eval_rows, tokenizer, batch_size=batch_size)["loss"]
    _save_adapter(model, folder)
    tokens = int(trainer.state.num_input_tokens_seen)
    return RunRecord(
        label=config.label or str(adapter_config.peft_type.value),
        method=str(adapter_config.peft_type.value),
        group=config.name,
        seed=config.training.seed,
        model=config.model.model_name_or_path,
        trainable_parameters=trainable,
        base_parameters=base_parameters,
        reference_lora_parameters=lora_parameters(model, adapter_config) or None,
        steps=int(trainer.state.global_step),
        train_tokens=tokens,
        wall_s=round(wall_s, 3),
        tokens_per_s=round(tokens / wall_s, 1),
        peak_memory_bytes=environment.peak_memory_bytes(),
        circuit_executions=on_chip.get("circuits", 0),
        shots=on_chip.get("shots", 0),
        simulated=simulated if on_chip else any(isinstance(module, QuantumLayer) for module in model.modules()),
        backend=on_chip,
        metrics={name: value for name, value in after.items() if name != "tokens"},
        metrics_before={name: value for name, value in before.items() if name != "tokens"},
        train_curve=_curve(trainer.state.log_history, "loss"),
        eval_curve=_eval_curve(trainer.state.log_history, before, after, int(trainer.state.global_step)),
        config=config.resolved(),
        versions=environment.versions(),
        hashes=hashes,
        machine=environment.machine(),
        created_at=environment.now(),
    )


def _read_baseline(file: Path, key: list[Any]) -> dict[str, float] | None:
    """The base model's metrics, if the file has them for this model and these rows."""
    if not file.exists():
        return None
    kept = json.loads(file.read_text(encoding="utf-8"))
    found: dict[str, float] | None = kept["metrics"] if kept["key"] == key else None
    return found


class _Clock:
    """Training time over all sessions of a run, evaluation during training included."""

    def __init__(self) -> None:
        self.earlier_s, self._started = 0.0, time.monotonic()

    def start(self) -> None:
        self._started = time.monotonic()

    def elapsed_s(self) -> float:
        return self.earlier_s + time.monotonic() - self._started


def _make_trainer(
    config: RunConfig,
    folder: Path,
    model: Any,
    tokenizer: Any,
    train_rows: Rows,
    eval_rows: Rows,
    clock: _Clock,
    chip: ChipSession | None,
) -> Any:
    """transformers.Trainer with our evaluation, checkpoints that are whole or do not count, and speed in the progress bar.

    With circuits on a chip, its waiting gradients are run once before each optimiser step, and when it fails in the middle of a
    step `save_last_step` writes the checkpoint that would have been written after the step before.
    """
    import numpy as np
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Watch(TrainerCallback):  # type: ignore[misc]
        random: tuple[Any, ...] = (-1, None, None, None)  # the last step that was done, and the generators after it

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
                self.random = (int(state.global_step), random.getstate(), np.random.get_state(), torch.get_rng_state())

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            write_whole(checkpoint / WHOLE, json.dumps({"wall_s": clock.elapsed_s()}))

    class EvaluatingTrainer(Trainer):  # type: ignore[misc]
        measured: tuple[int, dict[str, float]] = (-1, {})  # the last evaluation and its step

        def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
            if chip is not None:
                chip.begin_evaluation(int(self.state.global_step))
            found = evaluate(self.model, eval_rows, tokenizer, batch_size=self.args.per_device_eval_batch_size)
            self.measured = (int(self.state.global_step), found)
            metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
            self.log(metrics)
            self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
            return metrics

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(*args, **kwargs)
            if chip is not None and self.accelerator.sync_gradients:
                chip.flush()
            return loss

        def save_last_step(self) -> None:
            step, python, numpy, generator = watch.random
            if step != self.state.global_step or (Path(self.args.output_dir) / f"checkpoint-{step}" / WHOLE).exists():
                return  # no step was done since the last checkpoint
            random.setstate(python)
            np.random.set_state(numpy)
            torch.set_rng_state(generator)
            self._save_checkpoint(self.model, trial=None)
            watch.on_save(self.args, self.state, self.control)

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
    trainer = EvaluatingTrainer(
        model=model,
        args=arguments,
        train_dataset=list(train_rows),
        eval_dataset=list(eval_rows) or None,
        data_collator=collator(tokenizer),
        processing_class=tokenizer,
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


def _newest_whole_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of most steps that was written to its end; torn ones are removed."""
    found = []
    for checkpoint in (folder / "checkpoints").glob("checkpoint-*"):
        if (checkpoint / WHOLE).exists():
            found.append(checkpoint)
        else:
            logger.warning("%s was not written to its end and is removed", checkpoint)
            shutil.rmtree(checkpoint)
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _save_adapter(model: Any, folder: Path) -> None:
    """Write `adapter/` whole or not at all."""
    scratch = folder / f"{ADAPTER}.partial"
    shutil.rmtree(scratch, ignore_errors=True)
    model.save_pretrained(str(scratch))
    shutil.rmtree(folder / ADAPTER, ignore_errors=True)
    os.replace(scratch, folder / ADAPTER)


def _curve(history: list[dict[str, Any]], key: str) -> tuple[Measurement, ...]:
    return tuple(
        Measurement(step=int(entry["step"]), loss=float(entry[key]), learning_rate=entry.get("learning_rate"))
        for entry in history
        if key in entry
    )


def _eval_curve(
    history: list[dict[str, Any]], before: dict[str, float], after: dict[str, float], last: int
) -> tuple[Measurement, ...]:
    if not before:
        return ()
    points = {0: before["loss"]}
    points |= {point.step: point.loss for point in _curve(history, "eval_loss")}
    points[last] = after["loss"]
    return tuple(Measurement(step=step, loss=loss) for step, loss in sorted(points.items()))


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the system lets go of it when the process ends, however it ends."""
    with open(folder / ".lock", "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(
                "another process is training in this folder", value=str(folder), cure="wait, or another --output"
            ) from error
        yield


def claim(config: RunConfig, folder: Path, overwrite: bool, contents: Sequence[str]) -> None:
    """Write the recipe into a new folder; refuse one that holds another recipe, or with `overwrite` remove its `contents`."""
    recipe = folder / RECIPE
    if recipe.exists():
        if recipe.read_text(encoding="utf-8") == config.to_yaml():
            return
        if _same_but_for_its_budget(recipe, config):
            write_whole(recipe, config.to_yaml())
            return
        if not overwrite:
            raise RunError("the folder holds a run of another recipe", value=str(folder), cure="another --output, or --overwrite")
        for name in contents:
            shutil.rmtree(folder / name, ignore_errors=True)
            (folder / name).unlink(missing_ok=True)
    write_whole(recipe, config.to_yaml())


def _same_but_for_its_budget(recipe: Path, config: RunConfig) -> bool:
    try:
        found = RunConfig.from_resolved(read_yaml(recipe).value)
    except ConfigError:
        return False
    return found.without_budget() == config.without_budget()


def _start_from(model: Any, folder: Path) -> str:
    """Load another adapter's weights into the new one; their hash. RunError unless they are the same parameters."""
    from peft import load_peft_weights, set_peft_model_state_dict
    from peft.utils import get_peft_model_state_dict

    weights = load_peft_weights(str(folder), device="cpu")
    wanted = {name: tuple(value.shape) for name, value in get_peft_model_state_dict(model, save_embedding_layers=False).items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if found != wanted:
        different = sorted(wanted.items() ^ found.items())
        raise RunError(
            "init_from holds another adapter", value=different[0][0], cure="the adapter section of the run it comes from"
        )
    set_peft_model_state_dict(model, weights)
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].float().numpy().tobytes())
    return digest.hexdigest()
