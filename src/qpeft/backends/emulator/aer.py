"""Parts too large for transfer.py, on Qiskit Aer: the same schedule and calibration, as Aer's own noise.

Exact probabilities come from Aer's density matrix (to EXACT_QUBITS), shots from quantum trajectories.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qpeft.backends.emulator.noise import CZPulse, Decay, IdealRotation, NoiseParameters, NoiseSchedule, Step
from qpeft.circuits.ir import Angle, Circuit
from qpeft.errors import BackendError, MissingDependencyError

EXACT_QUBITS = 12  # 4^12 complex numbers are 256 MiB

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


def probabilities(
    circuit: Circuit,
    schedule: NoiseSchedule,
    angles: Sequence[Angle],
    calibration: NoiseParameters,
    rows: Tensor,
    measured: Sequence[int],
) -> Tensor:
    """Exact outcome probabilities, readout errors included, not differentiable.

    Args:
        circuit: native circuit of the part.
        schedule: its gates and waits in the order of time.
        angles: angles of the schedule's rotations.
        calibration: noise of its qubits, one placement.
        rows: parameters `(batch, n_params)`, radians.
        measured: qubits whose outcomes are wanted, in the order of the result.

    Returns:
        `(batch, 2^k)` for k measured qubits, in the dtype and on the device of `rows`.

    Raises:
        BackendError: more than `EXACT_QUBITS` qubits; parameters that require a gradient; Aer failed.
    """
    n = circuit.n_qubits
    if n > EXACT_QUBITS:
        raise BackendError(
            "the emulator cannot be exact on so many joined qubits", value=n, bound=EXACT_QUBITS, hint="give a number of shots"
        )
    if rows.requires_grad:
        raise BackendError("circuits of more than 8 joined qubits run on Aer, which has no gradient", value=n)
    simulator, tables = _simulator("density_matrix"), []
    for program in _programs(circuit, schedule, angles, calibration, rows.detach().cpu().numpy()):
        program.save_probabilities(list(range(n))[::-1])  # Qiskit's first qubit is the last bit
        result = simulator.run(program, shots=1).result()
        if not result.success:
            raise BackendError(f"Aer failed: {result.status}")
        grid = np.asarray(result.data(0)["probabilities"]).reshape((2,) * n)
        for axis, confusion in enumerate(calibration.confusion[0]):
            grid = np.moveaxis(np.tensordot(confusion, grid, axes=(1, axis)), 0, axis)
        tables.append(grid.sum(axis=tuple(set(range(n)) - set(measured))).reshape(-1))
    table = np.array(tables).reshape(-1, 2 ** len(measured))
    return torch.as_tensor(table, dtype=rows.dtype, device=rows.device)


def sample(
    circuit: Circuit,
    schedule: NoiseSchedule,
    angles: Sequence[Angle],
    calibration: NoiseParameters,
    rows: FloatArray,
    shots: int,
    seed: np.random.SeedSequence,
) -> BoolArray:
    """Draw outcomes, readout errors included.

    Args:
        circuit: native circuit of the part.
        schedule: its gates and waits in the order of time.
        angles: angles of the schedule's rotations.
        calibration: noise of its qubits, one placement.
        rows: parameters `(batch, n_params)`, radians.
        shots: repetitions of each row.
        seed: equal seeds give equal outcomes.

    Returns:
        Outcomes of all of the part's qubits, `(batch, shots, n)`.

    Raises:
        BackendError: Aer failed.
    """
    n = circuit.n_qubits
    simulator, rng = _simulator("statevector"), np.random.default_rng(seed)
    out = np.zeros((len(rows), shots, n), dtype=np.bool_)
    for i, program in enumerate(_programs(circuit, schedule, angles, calibration, rows)):
        program.measure_all()
        result = simulator.run(program, shots=shots, memory=True, seed_simulator=int(rng.integers(2**31))).result()
        if not result.success:
            raise BackendError(f"Aer failed: {result.status}")
        out[i] = np.array([[bit == "1" for bit in reversed(word)] for word in result.get_memory()])
    flip = np.where(out, calibration.confusion[0, :, 0, 1], calibration.confusion[0, :, 1, 0])
    return np.asarray(out ^ (rng.random(out.shape) < flip))


def _simulator(method: str) -> Any:
    try:
        from qiskit_aer import AerSimulator
    except ImportError as missing:
        raise MissingDependencyError("qiskit-aer", "aer", "emulating parts too large for the Pauli-transfer simulator") from missing
    return AerSimulator(method=method)


def _programs(
    circuit: Circuit, schedule: NoiseSchedule, angles: Sequence[Angle], calibration: NoiseParameters, rows: FloatArray
) -> Iterator[Any]:
    """A QuantumCircuit for each row, its noise written out as Kraus operators.

    Not as a NoiseModel: with that, Aer 0.18.2's trajectories of circuits such as these end in "Kraus is empty".
    """
    from qiskit import QuantumCircuit
    from qiskit.quantum_info import Kraus
    from qiskit_aer.noise import depolarizing_error, thermal_relaxation_error

    made: dict[Step, Any] = {}

    def channel(step: Decay | CZPulse) -> Any:
        if step not in made:
            if isinstance(step, CZPulse):
                error = depolarizing_error(1 - calibration.keep_cz[0, step.pair], 2)
            else:
                q = step.qubit
                error = thermal_relaxation_error(calibration.t1_ns[0, q], calibration.t2_ns[0, q], step.ns)
                if step.pulse:
                    error = depolarizing_error(1 - calibration.keep_1q[0, q], 1).compose(error)
            made[step] = Kraus(error).to_instruction()
        return made[step]

    for row in rows:
        out = QuantumCircuit(circuit.n_qubits)
        for step in schedule.steps:
            if isinstance(step, IdealRotation):
                getattr(out, f"r{step.axis}")(angles[step.slot].value(row.tolist()), step.qubit)
                continue
            if isinstance(step, CZPulse):
                out.cz(*step.qubits)
            out.append(channel(step), step.qubits if isinstance(step, CZPulse) else [step.qubit])
        yield out
