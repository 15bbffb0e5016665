"""Calibrate once, serve at classical speed: trained circuits run at the points of their surrogates, which become the adapter."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qpeft.adapters.controls import STORED
from qpeft.adapters.quantum_layer import QuantumLayer
from qpeft.backends.base import Backend
from qpeft.backends.executor import BackendExecutor
from qpeft.backends.spending.budget import Ledger
from qpeft.circuits.simulator.simulate import Simulator
from qpeft.circuits.surrogate.executor import SurrogateExecutor, SurrogateFunction
from qpeft.errors import AdapterError
from qpeft.export.models import AdaptedRun
from qpeft.training import environment
from qpeft.training.loop.loaded_run import copy_sharing_weights
from qpeft.training.on_chip.session import open_backend

CARD = "README.md"


def export_surrogate(run: AdaptedRun, scratch: Path, folder: Path, backend: str, shots: int | None, seed: int) -> tuple[Any, Any]:
    """(the exported model as it loads, the report's part): an adapter whose circuits are `stored`, written to `scratch`.

    A vendor's jobs are kept in `folder/jobs`, so an export that is asked again attaches to them.

    Raises:
        AdapterError: no circuit with inputs in the adapter. BackendError: what the backend refuses.
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
    where = open_backend(backend, folder)
    try:
        ledger = Ledger()
        executor = SurrogateExecutor(BackendExecutor(where, shots, seed=seed, ledger=ledger, progress=True))
        measured = {name: _measure(layer, executor, shots) for name, layer in layers.items()}
    finally:
        where.close()
    settings = copy.copy(run.settings)
    if settings.qnn == "product":  # the grid is that of the circuit which was measured, not of the one it is a control of
        settings.circuit, settings.n_layers = next(iter(layers.values())).circuit, type(settings)().n_layers
    settings.qnn = STORED
    student = get_peft_model(copy_sharing_weights(run.base), settings).eval()
    coefficients = {
        f"{name.replace(f'.{run.adapter}.', '.')}.coefficients": found["coefficients"] for name, found in measured.items()
    }
    weights = get_peft_model_state_dict(run.model, adapter_name=run.adapter, save_embedding_layers=False)
    kept = {name: value for name, value in weights.items() if not name.endswith("qnn.angles")}
    set_peft_model_state_dict(student, {**kept, **coefficients})
    student.save_pretrained(str(scratch), save_embedding_layers=False)
    found = _report(where, shots, ledger, list(measured.values()))
    with open(scratch / CARD, "a", encoding="utf-8") as card:
        card.write(_card(found))
    return PeftModel.from_pretrained(copy_sharing_weights(run.base), str(scratch)).eval(), {"surrogate": found}


def _measure(layer: QuantumLayer, executor: SurrogateExecutor, shots: int | None) -> dict[str, Any]:
    """Coefficients of a layer's circuit, and how far its values at the points are from the noiseless ones."""
    angles = layer.angles.detach().double().cpu()
    measured, exact = (place.compile(layer.circuit, layer.observables) for place in (executor, SurrogateExecutor(Simulator())))
    assert isinstance(measured, SurrogateFunction)
    assert isinstance(exact, SurrogateFunction)
    values = measured.values(angles)
    return {
        "coefficients": measured.coefficients(angles).float().contiguous(),
        "points": measured.surrogate.size,
        "off": (values - exact.values(angles)).square().mean().item(),
        "variance": ((1 - values.square()).clamp_min(0) / shots).mean().item() if shots else 0.0,
    }


def _report(backend: Backend, shots: int | None, ledger: Ledger, measured: list[Mapping[str, Any]]) -> dict[str, Any]:
    chip = backend.chip
    date = None if chip is None else chip.date
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
        # the weights of an evaluation have squares that sum to 1: the mean variance of an evaluation is that of the points
        "shot_error_rms": (sum(found["variance"] for found in measured) / len(measured)) ** 0.5,
        "shot_error_bound": 0.0 if shots is None else shots**-0.5,
        "off_the_exact_circuit_rms": (sum(found["off"] for found in measured) / len(measured)) ** 0.5,
        "spent": ledger.to_dict(),
    }


def _card(found: Mapping[str, Any]) -> str:
    """Section of the adapter's card: where its circuits were measured."""
    kind = "a classical computer that emulates the chip" if found["simulated"] else "the vendor's machine"
    synthetic = ", a calibration made by a program and not measured on a chip" if found["synthetic_calibration"] else ""
    shots = found["shots_per_circuit"]
    return f"""
## Measured circuits

The quantum circuits of this adapter were measured once, on a grid of inputs that determines them for every input. They run from
here on as trigonometric polynomials in PyTorch, without a simulator or a chip; qpeft loads them (`import qpeft`, then PEFT).

| | |
|---|---|
| measured on | `{found["backend"]}`, {kind}{synthetic} |
| calibration | `{found["calibration"]}`, dated {found["calibration_date"] or "unknown"} |
| measured at | {found["measured_at"]} |
| circuits | {found["circuits"]}, {found["spent"]["circuits"]:,} executions |
| shots | {"exact probabilities" if shots is None else f"{shots:,} a circuit, {found['spent']['shots']:,} in all"} |
| estimated error of an expectation value from shots | {found["shot_error_rms"]:.4f} RMS, at most {found["shot_error_bound"]:.4f} |
| distance from the noiseless circuit, noise and shots together | {found["off_the_exact_circuit_rms"]:.4f} RMS |

The noise of where it was measured is part of the adapter. A circuit of this size can be simulated: nothing here needed a chip.
"""
