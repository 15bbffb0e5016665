"""One training run: from a recipe and a folder to an adapter and a record. It survives interruptions.

The folder holds `recipe.yaml` (resolved), `checkpoints/`, `tensorboard/`, and when done `adapter/` (a PEFT adapter folder) and
`record.json`. Starting a run again in its folder continues from the newest whole checkpoint, with the same data order and random
state, so a killed run ends with the weights of an unkilled one; a finished run returns its record at once.

The story of a run: processes.py (who trains), run_dir.py (the folder), this file, trainer.py (steps), outcome.py (the record).
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
from qpeft.records import RunRecord
from qpeft.training import environment
from qpeft.training.data.run_data import RunData, load_run_data
from qpeft.training.data.tokenization import collator
from qpeft.training.loop import checkpoints, hub
from qpeft.training.loop.outcome import ModelSummary, run_record
from qpeft.training.loop.progress_log import told_progress
from qpeft.training.loop.run_dir import (
    ADAPTER,
    BASELINE,
    RECORD,
    finished_record,
    forget_failure,
    init_run_dir,
    lock_run_dir,
    note_failure,
    save_adapter,
)
from qpeft.training.loop.sharding import is_sharded
from qpeft.training.model import loading
from qpeft.training.model.held_out_loss import evaluate
from qpeft.training.on_chip.session import ChipSession, CircuitSession
from qpeft.training.processes import Processes, start_processes
from qpeft.training.recipe.adapter_section import build_adapter_config
from qpeft.training.recipe.config import RunConfig

logger = logging.getLogger(__name__)


def train(
    config: RunConfig,
    folder: Path,
    *,
    overwrite: bool = False,
    baseline: Path | None = None,
    until: int | None = None,
    progress: bool | None = None,
) -> RunRecord:
    """Train one adapter, or continue, in `folder`.

    Under `torchrun` every process calls this; the first one writes, and all return the same record.

    Args:
        config: the recipe, with an adapter section.
        folder: the run's folder.
        overwrite: replace another recipe's run in the folder.
        baseline: a file in which runs on the same model and held-out rows keep the base model's metrics for each other.
        until: pause with a checkpoint after this step. The record then has status "paused" and is not kept. The schedule is that
            of the whole run, so a run that continues ends as if it had not paused.
        progress: show a line of progress; None does as the recipe says (`disable_tqdm`).

    Raises:
        RunError: the folder holds another recipe's run (unless `overwrite`), or another process is training in it.
        DivergedError: the loss is not a finite number. BudgetError, BackendError: as the backend says.
        ConfigError, DataError, ModelError: as loading says.
    """
    if config.adapter is None:
        raise RunError("the recipe has no adapter section", value=config.name, hint="qpeft compare trains the arms of a comparison")
    processes = start_processes()
    with contextlib.ExitStack() as held:
        known = processes.on_first(lambda: _enter(held, config, folder, overwrite))
        if known is not None:
            return known
        held.enter_context(environment.own_mixed_precision())
        repository = processes.on_first(lambda: hub.make_repository(config))
        held.enter_context(told_progress(folder, processes.first))
        run = Run(config, folder, processes, not config.training.disable_tqdm if progress is None else progress)
        try:
            record = run.train(baseline or folder / BASELINE, until)
        except Exception as error:
            note_failure(folder, config, error, run.history())
            raise
        if record.status == "ok":
            processes.on_first(lambda: _finish(folder, record, repository))
    return record


def _finish(folder: Path, record: RunRecord, repository: str | None) -> None:
    """Write the record; push the adapter to the hub where the recipe has `push_to_hub`."""
    atomic_write(folder / RECORD, record.to_json() + "\n")
    if repository is not None:
        hub.push(repository, folder / ADAPTER)
        logger.info("the adapter is at %s on the hub", repository)


def _enter(held: contextlib.ExitStack, config: RunConfig, folder: Path, overwrite: bool) -> RunRecord | None:
    """Lock and initialise the folder; the record of a run that is finished already."""
    folder.mkdir(parents=True, exist_ok=True)
    held.enter_context(lock_run_dir(folder))
    init_run_dir(config, folder, overwrite)
    known = finished_record(folder)
    if known is not None:
        logger.warning("%s is finished already; its record is returned", folder)
    else:
        forget_failure(folder)
    return known


class Run:
    """The parts of one run, in the order in which they come to be: data, base model, adapter, circuits, trainer."""

    def __init__(self, config: RunConfig, folder: Path, processes: Processes, progress: bool) -> None:
        self.config, self.folder, self.processes, self.progress = config, folder, processes, progress
        self.trainer: Any = None

    def history(self) -> list[dict[str, Any]]:
        """Entries logged so far."""
        return [] if self.trainer is None else list(self.trainer.state.log_history)

    def train(self, baseline: Path, until: int | None) -> RunRecord:
        """Load, adapt, train, evaluate, save.

        Args:
            baseline: a file with the base model's metrics, which runs on the same model and held-out rows share.
            until: pause after this optimizer step; None trains to the end.

        Returns:
            The record, which is not written yet.
        """
        config = self.config
        tokenizer = loading.load_tokenizer(config.model)
        data = load_run_data(config.data, tokenizer, config.training.data_seed or config.training.seed)
        base = loading.load_model(config.model)
        hashes = {"model": loading.base_hash(config.model.model_name_or_path, base.config), **data.hashes}
        before = self._base_metrics(base, data, tokenizer, hashes, baseline)
        model, adapter_config, counts = self._adapt(base, hashes)

        environment.forget_peak_memory()
        with self._circuits(model, data) as circuits:
            checkpoint = self._resume_point(until)
            trainer = self._trainer(model, tokenizer, data, circuits, checkpoint, until)
            wall_s, after = self._fit(trainer, circuits, checkpoint)
            backend, simulated = circuits.to_record(), circuits.simulated
        if backend and data.held_out:
            backend["exact_loss"] = trainer.held_out_metrics()["loss"]
        finished = int(trainer.state.global_step) >= int(trainer.state.max_steps)
        return run_record(
            config,
            trainer,
            counts,
            method=str(adapter_config.peft_type.value),
            stored=self._save(trainer) if finished else None,
            simulated=simulated,
            backend=backend,
            before=before,
            after=after,
            hashes=hashes,
            wall_s=wall_s,
        )

    def _base_metrics(self, base: Any, data: RunData, tokenizer: Any, hashes: dict[str, str], file: Path) -> dict[str, float]:
        """Held-out metrics of the base model, from the file if it has them for this model and these rows."""
        section = self.config.training
        key = [hashes["model"], hashes.get("eval"), self.config.model.dtype, self.config.data.max_length]
        if self.config.model.quantization is not None:
            key.append(self.config.model.quantization)
        known = self.processes.on_first(lambda: _read_baseline(file, key))
        if known is not None:
            return known
        found: dict[str, float] = {}
        if data.held_out:
            found = evaluate(
                base,
                data.held_out,
                tokenizer,
                batch_size=section.per_device_eval_batch_size,
                share_prefixes=self.config.shares_in_evaluation,
                progress=self.progress and self.processes.first,
                processes=self.processes,
            )
        if self.processes.first:
            atomic_write(file, json.dumps({"key": key, "metrics": found}))
        return found

    def _adapt(self, base: Any, hashes: dict[str, str]) -> tuple[Any, Any, ModelSummary]:
        """The adapter on the base model, with the initial values that the run's seed gives, or those of `init_from`."""
        from peft import get_peft_model
        from transformers import set_seed

        config = self.config
        base_parameters = loading.count_parameters(base)
        if config.model.quantization is not None:
            from peft import prepare_model_for_kbit_training

            base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
        set_seed(config.training.seed)  # before the adapter is made: its initial values are part of the run
        adapter_config = build_adapter_config(config.adapter or {})
        model = get_peft_model(base, adapter_config)
        if config.init_from is not None:
            hashes["init"] = _start_from(model, Path(config.init_from))
        counts = ModelSummary.of(model, adapter_config, base_parameters)
        if self.processes.first:
            logger.info(
                "%s: %s trainable of %s parameters", config.label or config.name, f"{counts.trainable:,}", f"{counts.base:,}"
            )
        return model, adapter_config, counts

    def _circuits(self, model: Any, data: RunData) -> CircuitSession:
        """Where the adapter's circuits run: on the recipe's backend, else on the exact simulator."""
        if self.config.backend is None:
            return CircuitSession()
        from qpeft.training.on_chip.cost_estimate import decided

        if is_sharded(self.config.training, self.processes) or self.processes.deepspeed:
            raise RunError("circuits on a backend do not train with sharded parameters", hint="training.distributed: ddp")
        rows = data.train
        assert isinstance(rows, list)  # the recipe was checked: no stream with a backend
        choice = self.processes.on_first(lambda: decided(self.config, model, rows, data.held_out, self.folder).gradient)
        section = self.config.backend.model_copy(update={"gradient": choice})
        return ChipSession(section, self.folder, model, self.processes)

    def _trainer(
        self,
        model: Any,
        tokenizer: Any,
        data: RunData,
        circuits: CircuitSession,
        checkpoint: Path | None,
        until: int | None,
    ) -> Any:
        """The trainer of the adapted model, its adapter started from the first gradients where the method asks for that."""
        from qpeft.training.loop.trainer import AdapterTrainer

        looked_s = 0.0
        if checkpoint is None and self.config.init_from is None:
            looked_s = _start_from_gradients(self.config, model, tokenizer, data)
        self.trainer = AdapterTrainer(
            self.config,
            self.folder,
            model,
            tokenizer,
            data.train,
            data.held_out,
            circuits=circuits,
            processes=self.processes,
            until=until,
            progress=self.progress,
        )
        self.trainer.clock.earlier_s = looked_s if checkpoint is None else checkpoints.wall_s(checkpoint)
        return self.trainer

    def _resume_point(self, until: int | None) -> Path | None:
        """The checkpoint to continue from."""
        checkpoint = self.processes.on_first(lambda: checkpoints.newest_whole_checkpoint(self.folder))
        if checkpoint is None:
            return None
        checkpoints.demand_resumable(checkpoint, self.processes)
        step = checkpoints.step_of(checkpoint)
        if until is not None and step >= until:
            raise RunError("trained that far already", value=str(checkpoint), hint=f"until more than {step} steps")
        if self.processes.first:
            logger.warning("continuing from %s", checkpoint)
        return checkpoint

    def _fit(self, trainer: Any, circuits: CircuitSession, checkpoint: Path | None) -> tuple[float, dict[str, float]]:
        """All steps that are left: (seconds of training, held-out metrics after it).

        What a failing backend interrupts leaves the checkpoint of its last whole step.
        """
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            return trainer.clock.elapsed_s(), trainer.final_metrics()
        except BackendError as error:
            trainer.save_last_step()
            if isinstance(error, BudgetError):
                raise circuits.explain(error, int(trainer.state.global_step)) from error
            raise

    def _save(self, trainer: Any) -> int:
        """Write the adapter; how many numbers its file holds."""
        state = trainer.full_state_dict()
        return self.processes.on_first(lambda: save_adapter(trainer.model, self.folder, state))


def _read_baseline(file: Path, key: list[Any]) -> dict[str, float] | None:
    if not file.exists():
        return None
    kept = json.loads(file.read_text(encoding="utf-8"))
    found: dict[str, float] | None = kept["metrics"] if kept["key"] == key else None
    return found


def _start_from_gradients(config: RunConfig, model: Any, tokenizer: Any, data: RunData) -> float:
    """For methods that start from the first gradients: batches of training rows, drawn by the run's seed. The seconds it took."""
    from qpeft.adapters.gradient_init import gradient_batches, init_from_gradients

    size, count = config.training.per_device_train_batch_size, gradient_batches(model)
    if not count:
        return 0.0
    if not isinstance(data.train, list):
        raise RunError("the method starts from gradients of training rows, which a stream does not give", hint="streaming: false")
    rows, started, collate, draw = data.train, time.monotonic(), collator(tokenizer), random.Random(config.training.seed)
    batches = (collate([rows[draw.randrange(len(rows))] for _ in range(size)]) for _ in range(count))
    model.train()
    init_from_gradients(model, ({name: value.to(model.device) for name, value in batch.items()} for batch in batches))
    return time.monotonic() - started


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
