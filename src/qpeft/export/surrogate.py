"""Calibrate once, serve at classical speed: trained circuits run at the points of their surrogates, which become the adapter."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from qpeft.adapters.controls import STORED
from qpeft.adapters.quantum_layer import QuantumLayer
from qpeft.backends.base import Backend
from qpeft.backends.executor import BackendExecutor
from qpeft.backends.spending.budget import Ledger
from qpeft.circuits.simulator.simulate import Simulator
from qpeft.circuits.surrogate.base import Surrogate, noise_has_won
from qpeft.circuits.surrogate.choice import make_surrogate
from qpeft.circuits.surrogate.executor import SurrogateExecutor, SurrogateFunction
from qpeft.circuits.surrogate.regression import RegressionSurrogate
from qpeft.circuits.surrogate.stored import Stored, StoredForm, stored_forms
from qpeft.errors import AdapterError, CircuitError
from qpeft.export.distill import padded
from qpeft.export.models import AdaptedRun
from qpeft.training import environment
from qpeft.training.loop.loaded_run import copy_sharing_weights
from qpeft.training.on_chip.session import open_backend

logger = logging.getLogger(__name__)

CARD = "README.md"
ENOUGH = 4  # activations for each point of a regression


REGRESSION_POINTS = 512
Wanted = Literal["auto", "grid", "sparse", "regression"]


def export_surrogate(
    run: AdaptedRun,
    scratch: Path,
    folder: Path,
    backend: str,
    shots: int | None,
    seed: int,
    *,
    error: float = 0.05,
    surrogate: Wanted = "auto",
) -> tuple[Any, Any]:
    """Write an adapter whose circuits are stored as surrogates, with values measured on a backend.

    A vendor's jobs are kept in `folder/jobs`, so an export that is asked again attaches to them.

    Args:
        run: the run.
        scratch: where the adapter is written.
        folder: the run's folder.
        backend: name of the backend, as `get_backend` takes it.
        shots: repetitions of each circuit; None for exact probabilities.
        seed: of simulated shots.
        error: root mean square error of an expectation value, for which points are chosen and the stored form is.
        surrogate: what is measured; "auto" is the grid or the sparse series, whichever has fewer points, and for a circuit that has
            neither a regression on the activations of the calibration rows.

    Returns:
        The exported model as it loads from `scratch`, and its part of the report.

    Raises:
        AdapterError: no circuit with inputs in the adapter. BackendError: what the backend refuses. CircuitError: no surrogate of
        this kind. DataError: a regression, and no rows to take activations from.
    """
    from peft import PeftModel, get_peft_model, set_peft_model_state_dict
    from peft.utils import get_peft_model_state_dict

    layers = {name: layer for name, layer in run.model.named_modules() if isinstance(layer, QuantumLayer)}
    if not layers or not hasattr(run.settings, "qnn"):
        raise AdapterError(
            "only a circuit that takes inputs has a surrogate",
            value=str(run.settings.peft_type.value),
            hint="--to lora: the weights of a generator run anywhere",
        )
    planned = _planned(run, layers, shots, seed, error, surrogate)
    where = open_backend(backend, folder)
    try:
        ledger = Ledger()
        inner = BackendExecutor(where, shots, seed=seed, ledger=ledger, progress=True)
        measured = {name: _measure(layer, planned[name], inner, shots, error) for name, layer in layers.items()}
    finally:
        where.close()
    form = _smallest([found["forms"] for found in measured.values()], error)
    settings = copy.copy(run.settings)
    if settings.qnn == "product":  # the numbers are of the circuit that was measured, not of the one it is a control of
        settings.circuit, settings.n_layers = next(iter(layers.values())).circuit, type(settings)().n_layers
    settings.qnn, settings.stored = STORED, form.to_dict()
    student = get_peft_model(copy_sharing_weights(run.base), settings).eval()
    tensors = {
        f"{name.replace(f'.{run.adapter}.', '.')}.{part}": tensor.float().contiguous()
        for name, found in measured.items()
        for part, tensor in found["forms"][form].tensors.items()
    }
    weights = get_peft_model_state_dict(run.model, adapter_name=run.adapter, save_embedding_layers=False)
    kept = {name: value for name, value in weights.items() if not name.endswith("qnn.angles")}
    set_peft_model_state_dict(student, {**kept, **tensors})
    student.save_pretrained(str(scratch), save_embedding_layers=False)
    found = _report(where, shots, ledger, list(measured.values()), form, error)
    with open(scratch / CARD, "a", encoding="utf-8") as card:
        card.write(_card(found))
    return PeftModel.from_pretrained(copy_sharing_weights(run.base), str(scratch)).eval(), {"surrogate": found}


def _planned(
    run: AdaptedRun, layers: Mapping[str, QuantumLayer], shots: int | None, seed: int, error: float, surrogate: Wanted
) -> dict[str, Surrogate]:
    """The surrogate of each layer before anything runs."""
    found: dict[str, Surrogate] = {}
    refused: dict[str, CircuitError] = {}
    for name, layer in layers.items():
        if surrogate != "regression":
            try:
                found[name] = make_surrogate(layer.circuit, layer.observables, kind=surrogate, shots=shots, error=error, seed=seed)
                continue
            except CircuitError as refusal:
                if surrogate != "auto":
                    raise
                refused[name] = refusal
    missing = {name: layer for name, layer in layers.items() if name not in found}
    if missing:
        if refused:
            logger.warning("a regression on activations stands for the circuits: %s", next(iter(refused.values())))
        for name, inputs in _activations(run, missing).items():
            points = min(REGRESSION_POINTS, len(torch.unique(inputs, dim=0)))
            found[name] = RegressionSurrogate.of(
                layers[name].circuit, layers[name].observables, inputs=inputs, points=points, shots=shots, seed=seed
            )
    return {name: found[name] for name in layers}


@torch.no_grad()
def _activations(run: AdaptedRun, layers: Mapping[str, QuantumLayer]) -> dict[str, Tensor]:
    """Inputs `(N, n_inputs)` of each layer while the adapted model reads the calibration rows, padding left out."""
    seen: dict[str, list[Tensor]] = {name: [] for name in layers}
    mask: list[Tensor] = []

    def keep(name: str) -> Any:
        def hook(_: Any, arguments: tuple[Tensor, ...]) -> None:
            u = arguments[0].detach()
            own = u[mask[0]] if u.shape[:-1] == mask[0].shape else u.reshape(-1, u.shape[-1])
            seen[name].append(own.double().cpu())

        return hook

    handles = [layer.register_forward_pre_hook(keep(name)) for name, layer in layers.items()]
    try:
        for batch in padded(run.rows_to_fit(), run.tokenizer, run.batch_size, run.model.device):
            mask[:] = [batch["attention_mask"].bool()]
            run.model(**batch, use_cache=False)
            if all(sum(map(len, rows)) >= ENOUGH * REGRESSION_POINTS for rows in seen.values()):
                break
    finally:
        for handle in handles:
            handle.remove()
    return {name: torch.cat(rows) for name, rows in seen.items()}


def _measure(layer: QuantumLayer, surrogate: Surrogate, inner: BackendExecutor, shots: int | None, error: float) -> dict[str, Any]:
    """A layer's circuit in every form in which it can be stored, and how far its values are from the noiseless ones."""
    angles = layer.angles.detach().double().cpu()
    measured = SurrogateExecutor(inner, make=lambda *_: surrogate).compile(layer.circuit, layer.observables)
    assert isinstance(measured, SurrogateFunction)
    values = measured.values(angles)
    points = torch.as_tensor(surrogate.points())
    exact = Simulator().compile(layer.circuit, layer.observables)(points, angles)
    variance = ((1 - values.square()).clamp_min(0) / shots).mean().item() if shots else 0.0
    return {
        "forms": {form.form: form for form in stored_forms(surrogate, values, layer.circuit, layer.observables, error=error)},
        "points": surrogate.size,
        "off": (values - exact).square().mean().item(),
        "variance": variance,
        "signal": max(values.var(0).mean().item() - variance, 0.0) if len(values) > 1 else 0.0,
        "exact_signal": exact.var(0).mean().item() if len(exact) > 1 else 0.0,
    }


def _smallest(forms: Sequence[Mapping[StoredForm, Stored]], error: float) -> StoredForm:
    """Of the forms that every layer has, the one of fewest numbers whose error is at most the one asked in each layer; where none
    is, the one of least error."""
    shared = [form for form in forms[0] if all(form in own for own in forms)]

    def worst(form: StoredForm) -> float:
        return max(own[form].error for own in forms)

    good = [form for form in shared if worst(form) <= error]
    return min(good, key=lambda form: forms[0][form].numbers) if good else min(shared, key=worst)


def _report(
    backend: Backend, shots: int | None, ledger: Ledger, measured: list[Mapping[str, Any]], form: StoredForm, error: float
) -> dict[str, Any]:
    chip = backend.chip
    date = None if chip is None else chip.date
    stored = [found["forms"][form] for found in measured]
    estimated = max(own.error for own in stored)
    signal, exact = (math.sqrt(sum(found[name] for found in measured) / len(measured)) for name in ("signal", "exact_signal"))
    problems = []
    if estimated > error:
        problems.append(f"the stored values are off by {estimated:.3f} RMS, more than the {error:g} asked")
    if lost := noise_has_won(signal, exact, shots):
        problems.append(lost)
    for problem in problems:
        logger.warning("%s", problem)
    return {
        "backend": backend.name,
        "simulated": backend.simulated,
        "synthetic_calibration": None if chip is None else chip.synthetic,
        "calibration": backend.calibration,
        "calibration_date": None if date is None else date.isoformat(),
        "measured_at": environment.now(),
        "shots_per_circuit": shots,
        "circuits": len(measured),
        "points": [found["points"] for found in measured],
        **form.to_dict(),
        "numbers": sum(own.numbers for own in stored),
        "error_asked": error,
        "error_rms": estimated,
        "signal_rms": signal,
        "noiseless_signal_rms": exact,
        "problems": problems,
        # the weights of an evaluation have squares that sum to 1: the mean variance of an evaluation is that of the points
        "shot_error_rms": (sum(found["variance"] for found in measured) / len(measured)) ** 0.5,
        "shot_error_bound": 0.0 if shots is None else shots**-0.5,
        "off_the_exact_circuit_rms": (sum(found["off"] for found in measured) / len(measured)) ** 0.5,
        "spent": ledger.to_dict(),
    }


def _card(found: Mapping[str, Any]) -> str:
    """Section of the adapter's card: where its circuits were measured."""
    kind = "a classical computer that emulates the chip" if found["simulated"] else "the vendor's machine"
    problems = "".join(f"**Problem: {problem}.** " for problem in found["problems"])
    synthetic = ", a calibration made by a program and not measured on a chip" if found["synthetic_calibration"] else ""
    shots = found["shots_per_circuit"]
    return f"""
## Measured circuits

The quantum circuits of this adapter were measured once, at a few inputs, to which a classical function was fitted. It runs in plain
PyTorch, without a simulator or a chip; qpeft loads it (`import qpeft`, then PEFT).

| | |
|---|---|
| measured on | `{found["backend"]}`, {kind}{synthetic} |
| calibration | `{found["calibration"]}`, dated {found["calibration_date"] or "unknown"} |
| measured at | {found["measured_at"]} |
| circuits | {found["circuits"]}, {found["spent"]["circuits"]:,} executions |
| shots | {"exact probabilities" if shots is None else f"{shots:,} a circuit, {found['spent']['shots']:,} in all"} |
| estimated error of an expectation value from shots | {found["shot_error_rms"]:.4f} RMS, at most {found["shot_error_bound"]:.4f} |
| stored as | {found["kind"]}, {found["numbers"]:,} numbers |
| estimated error of the stored function at other inputs | {found["error_rms"]:.4f} RMS, {found["error_asked"]:g} asked |
| dependence on the inputs | {found["signal_rms"]:.4f} RMS, {found["noiseless_signal_rms"]:.4f} without noise |
| distance from the noiseless circuit, noise and shots together | {found["off_the_exact_circuit_rms"]:.4f} RMS |

{problems}The noise of where it was measured is part of the adapter. A circuit of this size can be
simulated: nothing here needed a chip.
"""
