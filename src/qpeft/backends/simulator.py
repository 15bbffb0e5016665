"""The exact simulator as a backend: probabilities of all outcomes, or shots drawn from them.

Unlike `circuits.simulate`, which is made for batches that share their angles, every parameter may differ from row to row here, and
what is wanted is the distribution, not its gradient: a batch of state vectors in numpy, gate by gate, off the gate table.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import psutil

from qpeft.backends.base import DENSE_QUBITS, Backend, CompiledCircuit, Counts, FloatArray, Limits, check_circuit, check_run, sample
from qpeft.backends.folding import check_scale
from qpeft.circuits.ir import Circuit, Op
from qpeft.errors import ResourceError

ComplexArray = npt.NDArray[np.complex128]

CHUNK_AMPLITUDES = 1 << 20  # of the states of the rows that are computed together


@dataclass(frozen=True)
class SimulatorBackend(Backend):
    """The backend `simulator`: no noise, in double precision on the processor."""

    name: str = "simulator"
    limits: Limits = field(default_factory=lambda: Limits(max_qubits=DENSE_QUBITS, exact=True))
    calibration: str = "exact"

    def compile(self, circuit: Circuit) -> CompiledSimulation:
        """See `Backend.compile`. Raises BackendError for more than `limits.max_qubits` qubits."""
        check_circuit(self.name, self.limits, circuit)
        return CompiledSimulation(self, circuit)

    def with_noise_scale(self, scale: int) -> SimulatorBackend:
        """This backend itself, which has no noise. Raises BackendError for a `scale` that is not 1, 3, 5, ..."""
        check_scale(scale)
        return self  # there is no noise


class CompiledSimulation(CompiledCircuit):
    """A circuit on the exact simulator."""

    def __init__(self, backend: SimulatorBackend, circuit: Circuit) -> None:
        self.backend, self.circuit = backend, circuit

    def run(self, params: FloatArray, shots: int | None, seed: int | None = None) -> Counts:
        """See `CompiledCircuit.run`: the exact table of all outcomes, or with `shots` a multinomial draw from it.

        Raises:
            ResourceError: the table `(batch, 2^n)` needs more memory than is available.
        """
        rows = check_run(self.backend.name, self.backend.limits, self.circuit, params, shots)
        dimension = 2**self.circuit.n_qubits
        required, available = len(rows) * dimension * 8 * 2, psutil.virtual_memory().available
        if required > available:
            raise ResourceError(
                f"a table of {len(rows)} distributions over {self.circuit.n_qubits} qubits",
                required_bytes=required,
                available_bytes=available,
                hint="run fewer rows at a time",
            )
        table = np.empty((len(rows), dimension))
        size = max(1, CHUNK_AMPLITUDES // dimension)
        for start in range(0, len(rows), size):
            table[start : start + size] = np.abs(states(self.circuit, rows[start : start + size])) ** 2
        return Counts.dense(table, None) if shots is None else sample(table, shots, seed)


def states(circuit: Circuit, rows: FloatArray) -> ComplexArray:
    """Final states from `|0...0>` for each row of parameters: `(rows, 2^n)`, qubit 0 the most significant bit of the index.

    Args:
        circuit: the circuit.
        rows: parameters `(rows, n_params)`, radians.
    """
    flat = np.zeros((len(rows), 2**circuit.n_qubits), dtype=np.complex128)
    flat[:, 0] = 1.0
    psi = flat.reshape(len(rows), *(2,) * circuit.n_qubits)
    for op in circuit.ops:
        axes = [1 + q for q in op.qubits]
        front = np.moveaxis(psi, axes, range(1, 1 + len(axes)))
        flat = front.reshape(len(rows), 2 ** len(axes), 2 ** (circuit.n_qubits - len(axes)))
        psi = np.moveaxis((_matrices(op, rows) @ flat).reshape(front.shape), range(1, 1 + len(axes)), axes)
    return psi.reshape(len(rows), 2**circuit.n_qubits)


def _matrices(op: Op, rows: FloatArray) -> ComplexArray:
    """`(rows, K, K)`, or `(1, K, K)` where the gate is the same for all rows."""
    spec, angle = op.spec, op.angle
    constant = np.array(spec.constant, dtype=np.complex128)[None]
    if angle is None or spec.cosine is None or spec.sine is None:
        return constant
    value = np.full(1, angle.shift) if angle.index is None else angle.scale * rows[:, angle.index] + angle.shift
    value = (spec.frequency * value)[:, None, None]
    out: ComplexArray = constant + np.cos(value) * np.array(spec.cosine) + np.sin(value) * np.array(spec.sine)
    return out
