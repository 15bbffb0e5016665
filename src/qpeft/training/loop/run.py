"""One training run: a recipe and a folder in, an adapter and a record out, whatever happens in between.

The folder holds `recipe.yaml` (resolved), `checkpoints/`, `tensorboard/`, and when done `adapter/` (a PEFT adapter folder) and
`record.json`. Starting a run again in its folder continues from the newest whole checkpoint, with the same data order and random
state, so a killed run ends with the weights of an unkilled one; a finished run returns its record at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import random
import time
from pathlib import Path
from typing import Any

from qpeft.errors import BackendError, BudgetError, RunError
from qpeft.files import atomic_write
from qpeft.records import Measurement, RunRecord
from qpeft.training import environment
from qpeft.training.data.examples import data_hash, load_data
from qpeft.training.data.tokenization import collator, tokenize_all
from qpeft.training.loop.run_dir import (
    ADAPTER,
    BACKEND_FILES,
    BASELINE,
    FAILURE,
    RECORD,
    WHOLE,
    init_run_dir,
    lock_run_dir,
    newest_whole_checkpoint,
    read_record,
    save_adapter,
    step_of,
)
from qpeft.training.loop.trainer import Clock, make_trainer
from qpeft.training.model import loading
from qpeft.training.model.held_out_loss import Rows, evaluate
from qpeft.training.recipe.adapter_section import build_adapter_config
from qpeft.training.recipe.config import RunConfig

logger = logging.getLogger(__name__)


def train(
    config: RunConfig, folder: Path, *, overwrite: bool = False, baseline: Path | None = None, until: int | None = None
) -> RunRecord:
    """Train one adapter, or continue, in `folder`. `baseline` is a file in which runs on the same model and held-out rows keep
    the base model's metrics for each other. After step `until` the run pauses with a checkpoint: its record says so and is not
    kept; the schedule is that of the whole run, so that a run that goes on ends as if it had not paused.

    Raises:
        RunError: the folder holds another recipe's run (unless `overwrite`), or another process is training in it.
        ConfigError, DataError, ModelError: as loading says.
    """
    if config.adapter is None:
        raise RunError("the recipe has no adapter section", value=config.name, hint="qpeft compare trains the arms of a comparison")
    folder.mkdir(parents=True, exist_ok=True)
    with lock_run_dir(folder):
        init_run_dir(config, folder, overwrite, ("checkpoints", "tensorboard", ADAPTER, RECORD, FAILURE, *BACKEND_FILES))
        if (folder / RECORD).exists():
            logger.warning("%s is finished already; its record is returned", folder)
            return read_record(folder)
        (folder / FAILURE).unlink(missing_ok=True)
        try:
            record = _train(config, folder, baseline or folder / BASELINE, until)
        except Exception as error:
            atomic_write(folder / FAILURE, json.dumps({"error": f"{type(error).__name__}: {error}"}))
            raise
        if record.status == "ok":
            atomic_write(folder / RECORD, record.to_json() + "\n")
    return record


def _train(config: RunConfig, folder: Path, baseline: Path, until: int | None) -> RunRecord:
    from peft import get_peft_model
    from transformers import set_seed

    from qpeft.adapters.peft import lora_parameters, merges
    from qpeft.adapters.quantum_layer import QuantumLayer

    train_examples, eval_examples = load_data(config.data)
    tokenizer = loading.load_tokenizer(config.model)
    train_rows = tokenize_all(train_examples, tokenizer, config.data.max_length).rows
    eval_rows = tokenize_all(eval_examples, tokenizer, config.data.max_length).rows if eval_examples else []
    base = loading.load_model(config.model)
    base_parameters = sum(p.numel() for p in base.parameters())
    training = config.training
    batches: Any = {"batch_size": training.per_device_eval_batch_size, "share_prefixes": training.share_prefixes}
    progress = not config.training.disable_tqdm
    hashes = {
        "model": loading.base_hash(config.model.model_name_or_path, base.config),
        "train": data_hash(train_examples),
        **({"eval": data_hash(eval_examples)} if eval_examples else {}),
    }
    key = [hashes["model"], hashes.get("eval"), config.model.dtype, config.data.max_length]
    before = _read_baseline(baseline, key)
    if before is None:
        before = evaluate(base, eval_rows, tokenizer, progress=progress, **batches) if eval_rows else {}
        atomic_write(baseline, json.dumps({"key": key, "metrics": before}))

    set_seed(config.training.seed)  # before the adapter is made: its initial values are part of the run
    adapter_config = build_adapter_config(config.adapter or {})
    model = get_peft_model(base, adapter_config)
    if config.init_from is not None:
        hashes["init"] = _start_from(model, Path(config.init_from))
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    logger.info("%s: %s trainable of %s parameters", config.label or config.name, f"{trainable:,}", f"{base_parameters:,}")

    environment.forget_peak_memory()
    clock = Clock()
    on_chip: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        chip = None
        if config.backend is not None:
            from qpeft.training.on_chip.cost_estimate import decided
            from qpeft.training.on_chip.session import ChipSession

            section = decided(config, model, train_rows, eval_rows, folder)
            chip = stack.enter_context(ChipSession(section, folder, model))
        checkpoint = newest_whole_checkpoint(folder)
        if checkpoint is None and config.init_from is None:
            clock.earlier_s = _look_at_gradients(config, model, tokenizer, train_rows)
        trainer = make_trainer(config, folder, model, tokenizer, train_rows, eval_rows, clock, chip, until)
        if checkpoint is not None:
            clock.earlier_s = json.loads((checkpoint / WHOLE).read_text())["wall_s"]
            logger.warning("continuing from %s", checkpoint)
            if until is not None and step_of(checkpoint) >= until:
                raise RunError(
                    "trained that far already", value=str(checkpoint), hint=f"until more than {step_of(checkpoint)} steps"
                )
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            wall_s = clock.elapsed_s()
            step, after = trainer.measured
            if eval_rows and (step != trainer.state.global_step or config.training.load_best_model_at_end):
                if chip is not None:
                    chip.begin_evaluation(int(trainer.state.global_step))
                after = evaluate(model, eval_rows, tokenizer, progress=progress, **batches)
        except BackendError as error:
            trainer.save_last_step()
            if chip is not None and isinstance(error, BudgetError):
                raise chip.explain(error, int(trainer.state.global_step)) from error
            raise
        if chip is not None:
            on_chip = chip.to_record()
            simulated = chip.backend.simulated
    if on_chip and eval_rows:
        on_chip["exact_loss"] = evaluate(model, eval_rows, tokenizer, **batches)["loss"]
    finished = int(trainer.state.global_step) >= int(trainer.state.max_steps)
    stored = save_adapter(model, folder) if finished else None
    tokens = int(trainer.state.num_input_tokens_seen)
    return RunRecord(
        label=config.label or str(adapter_config.peft_type.value),
        method=str(adapter_config.peft_type.value),
        group=config.name,
        seed=config.training.seed,
        model=config.model.model_name_or_path,
        status="ok" if finished else "paused",
        trainable_parameters=trainable,
        base_parameters=base_parameters,
        stored_parameters=stored,
        inference_parameters=0 if merges(model) else stored,
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


def _look_at_gradients(config: RunConfig, model: Any, tokenizer: Any, rows: Rows) -> float:
    """For methods that start from the first gradients: batches of training rows, drawn by the run's seed. The seconds it took."""
    from qpeft.adapters.gradient_init import gradient_batches, start_from_gradients

    size, count = config.training.per_device_train_batch_size, gradient_batches(model)
    if not count:
        return 0.0
    started, collate, draw = time.monotonic(), collator(tokenizer), random.Random(config.training.seed)
    batches = (collate([rows[draw.randrange(len(rows))] for _ in range(size)]) for _ in range(count))
    model.train()
    start_from_gradients(model, ({name: value.to(model.device) for name, value in batch.items()} for batch in batches))
    return time.monotonic() - started


def _read_baseline(file: Path, key: list[Any]) -> dict[str, float] | None:
    """The base model's metrics, if the file has them for this model and these rows."""
    if not file.exists():
        return None
    kept = json.loads(file.read_text(encoding="utf-8"))
    found: dict[str, float] | None = kept["metrics"] if kept["key"] == key else None
    return found


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
            "init_from holds another adapter", value=different[0][0], hint="the adapter section of the run it comes from"
        )
    set_peft_model_state_dict(model, weights)
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].float().numpy().tobytes())
    return digest.hexdigest()
