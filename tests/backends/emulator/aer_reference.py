"""The emulator's noise model a second time, in Qiskit's and Aer's own terms: nothing but the Chip is shared with qpeft.

Aer knows depolarisation and thermal relaxation, Qiskit the average fidelity of a channel; the schedule is computed anew here.
"""

from __future__ import annotations

import functools
from typing import Any

import networkx
import numpy as np
from qiskit import QuantumCircuit
from qiskit.quantum_info import average_gate_fidelity
from qiskit_aer import AerSimulator
from qiskit_aer.noise import NoiseModel, QuantumError, depolarizing_error, thermal_relaxation_error

from qpeft.backends.emulator.chip import Chip
from qpeft.circuits.ir import Circuit


@functools.lru_cache(maxsize=100_000)
def relaxation(chip: Chip, qubit: int, ns: float) -> QuantumError:
    calibration: Any = chip.qubits[qubit]
    return thermal_relaxation_error(calibration.t1_us * 1e3, calibration.t2_us * 1e3, ns)


def pulse_error(chip: Chip, qubits: tuple[int, ...], error: float, ns: float) -> QuantumError:
    """Depolarisation, then relaxation; as Qiskit's device model, what relaxation leaves of the error is depolarisation's."""
    relaxed = functools.reduce(QuantumError.expand, (relaxation(chip, q, ns) for q in qubits))  # qubits[0] lowest
    dimension = 2 ** len(qubits)
    fidelity = average_gate_fidelity(relaxed) if chip.gate_errors_include_decay else 1.0
    parameter = dimension * (error - (1 - fidelity)) / (dimension * fidelity - 1)
    return depolarizing_error(max(0.0, parameter), len(qubits)).compose(relaxed)


def noise_model(chip: Chip) -> NoiseModel:
    """Every gate error and readout error of the chip. Waiting is not a gate: see `aer_circuit`."""
    model = NoiseModel(["rx", "ry", "rz", "cz", "quantum_channel"])
    times = chip.native_gates
    for q in chip.live_qubits:
        calibration: Any = chip.qubits[q]
        model.add_quantum_error(pulse_error(chip, (q,), calibration.error_1q, times.rphi.time_ns), ["rx", "ry"], [q])
        up, down = calibration.p1_given_0, calibration.p0_given_1
        model.add_readout_error([[1 - up, up], [down, 1 - down]], [q])
    for a, near in chip.neighbours.items():
        for b, error in near.items():
            model.add_quantum_error(pulse_error(chip, (a, b), error, times.cz.time_ns), ["cz"], [a, b])
    return model


def aer_circuit(chip: Chip, circuit: Circuit, physical: list[int], params: Any, measure: bool = False) -> QuantumCircuit:
    """A native circuit on all of the chip's qubits, relaxation of waiting qubits written out, saving probabilities."""
    out = QuantumCircuit(chip.n_qubits, circuit.n_qubits if measure else 0)
    clock: dict[int, float] = {}
    graph = networkx.Graph(op.qubits for op in circuit.ops if len(op.qubits) == 2)
    graph.add_nodes_from(range(circuit.n_qubits))

    def wait(q: int, until: float) -> None:
        if q in clock and until > clock[q]:
            out.append(relaxation(chip, physical[q], until - clock[q]).to_instruction(), [physical[q]])
        clock[q] = until

    op: Any
    for op in circuit.ops:
        where = [physical[q] for q in op.qubits]
        if op.gate == "cz":
            start = max(clock.get(q, 0.0) for q in op.qubits)
            for q in op.qubits:
                wait(q, start)
                clock[q] += chip.native_gates.cz.time_ns
            out.cz(*where)
        else:
            getattr(out, op.gate)(op.angle.value(params), *where)
            duration = 0.0 if op.gate == "rz" else chip.native_gates.rphi.time_ns
            clock[op.qubits[0]] = clock.get(op.qubits[0], 0.0) + duration
    for part in networkx.connected_components(graph):
        end = max(clock.get(q, 0.0) for q in part)
        for q in part:
            wait(q, end)
    if measure:
        out.measure(physical, range(circuit.n_qubits))
    else:
        out.save_probabilities(physical[::-1])  # Qiskit's first qubit is the last bit
    return out


def simulator(chip: Chip) -> AerSimulator:
    return AerSimulator(method="density_matrix", noise_model=noise_model(chip), max_parallel_threads=1)


def read(chip: Chip, circuit: Circuit, physical: list[int], result: Any, experiment: int = 0) -> Any:
    """`(2^n,)` outcome probabilities of one circuit of Aer's result, readout errors applied, qubit 0 leftmost."""
    assert result.success, result.status
    values = np.asarray(result.data(experiment)["probabilities"]).reshape((2,) * circuit.n_qubits)
    for axis, q in enumerate(physical):
        calibration: Any = chip.qubits[q]
        up, down = calibration.p1_given_0, calibration.p0_given_1
        values = np.moveaxis(np.tensordot([[1 - up, down], [up, 1 - down]], values, axes=(1, axis)), 0, axis)
    return values.reshape(-1)


def probabilities(chip: Chip, circuit: Circuit, physical: list[int], params: Any, aer: AerSimulator | None = None) -> Any:
    """The same for one circuit, run here."""
    result = (aer or simulator(chip)).run(aer_circuit(chip, circuit, physical, params), shots=1).result()
    return read(chip, circuit, physical, result)
