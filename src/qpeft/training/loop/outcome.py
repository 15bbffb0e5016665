"""From a trainer and its model to the record of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qpeft.records import Measurement, RunRecord
from qpeft.training import environment
from qpeft.training.recipe.config import RunConfig


@dataclass(frozen=True)
class ModelSummary:
    """Parameter counts of the adapted model, taken before it may be sharded.

    Parameters: trained ones, those of the base model, and of LoRA on the same modules. `merges`: whether inference needs nothing
    next to the base model. `circuits`: whether the adapter runs circuits.
    """

    trainable: int
    base: int
    reference_lora: int | None
    merges: bool
    circuits: bool

    @classmethod
    def of(cls, model: Any, adapter_config: Any, base: int) -> ModelSummary:
        """Count the parameters of an adapted model.

        Args:
            model: the adapted model.
            adapter_config: the adapter's PEFT config.
            base: number of parameters of the base model alone.
        """
        from qpeft.adapters.inspection import lora_parameters, merges
        from qpeft.adapters.quantum_layer import QuantumLayer

        trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        circuits = any(isinstance(module, QuantumLayer) for module in model.modules())
        return cls(trainable, base, lora_parameters(model, adapter_config) or None, merges(model), circuits)


def run_record(
    config: RunConfig,
    trainer: Any,
    counts: ModelSummary,
    *,
    method: str,
    stored: int | None,
    simulated: bool,
    backend: Mapping[str, Any],
    before: Mapping[str, float],
    after: Mapping[str, float],
    hashes: Mapping[str, str],
    wall_s: float,
) -> RunRecord:
    """The record of a run that ended or paused.

    Args:
        config: the recipe.
        trainer: the run's trainer.
        counts: numbers of parameters.
        method: name of the method.
        stored: numbers in the adapter's file; None for a run that paused and has none.
        simulated: whether a classical computer ran what a backend ran.
        backend: what the circuits' session records: backend, gradient method, cost.
        before: held-out metrics of the base model.
        after: held-out metrics of the trained model.
        hashes: hashes of the base model and of the data.
        wall_s: seconds of training, over all sessions.
    """
    state = trainer.state
    tokens = int(state.num_input_tokens_seen)
    return RunRecord(
        label=config.label or method,
        method=method,
        group=config.name,
        seed=config.training.seed,
        model=config.model.model_name_or_path,
        status="paused" if stored is None else "ok",
        trainable_parameters=counts.trainable,
        base_parameters=counts.base,
        stored_parameters=stored,
        inference_parameters=0 if counts.merges else stored,
        reference_lora_parameters=counts.reference_lora,
        steps=int(state.global_step),
        train_tokens=tokens,
        wall_s=round(wall_s, 3),
        tokens_per_s=round(tokens / wall_s, 1),
        peak_memory_bytes=environment.peak_memory_bytes(),
        circuit_executions=backend.get("circuits", 0),
        shots=backend.get("shots", 0),
        simulated=simulated if backend else counts.circuits,
        backend=backend,
        metrics=_without_tokens(after),
        metrics_before=_without_tokens(before),
        train_curve=training_curve(state.log_history),
        eval_curve=_held_out_curve(state.log_history, before, after, int(state.global_step)),
        config=config.resolved(),
        versions=environment.versions(),
        hashes=hashes,
        machine=environment.machine(),
        created_at=environment.now(),
    )


def training_curve(history: list[dict[str, Any]]) -> tuple[Measurement, ...]:
    """Logged training losses."""
    return _curve(history, "loss")


def _without_tokens(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name != "tokens"}


def _curve(history: list[dict[str, Any]], key: str) -> tuple[Measurement, ...]:
    return tuple(
        Measurement(step=int(entry["step"]), loss=float(entry[key]), learning_rate=entry.get("learning_rate"))
        for entry in history
        if key in entry
    )


def _held_out_curve(
    history: list[dict[str, Any]], before: Mapping[str, float], after: Mapping[str, float], last: int
) -> tuple[Measurement, ...]:
    if not before:
        return ()
    points = {0: before["loss"]}
    points |= {point.step: point.loss for point in _curve(history, "eval_loss")}
    points[last] = after["loss"]
    return tuple(Measurement(step=step, loss=loss) for step, loss in sorted(points.items()))
