"""`python -m benchmarks.emulator`: 100 noisy circuits on the emulator and on Qiskit Aer's density matrix, same noise.

Circuits: 20 each of 4, 5, 6, 7 and 8 qubits, 2 layers of RX, RY, RZ on every qubit and CZ along a line, random angles, each on a
random line of live couplers of the 72-qubit chip, from the circuit to all outcome probabilities. Aer gets them all in one
run with the noise model of the full chip, waiting qubits' relaxation included
(tests/backends/emulator/aer_reference.py). Its circuits and noise model are built before its clock starts;
 the emulator's clock runs from the circuits on. One thread each.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import torch
from tests.backends.emulator import aer_reference

from qpeft.backends.emulator.backend import EmulatorBackend, probabilities_of
from qpeft.backends.emulator.chip import Chip, load_chip
from qpeft.circuits.ir import Angle, Circuit, Op


def layered(n_qubits: int, n_layers: int) -> Circuit:
    """RX, RY, RZ on every qubit and CZ along the line, in each layer; native as it stands."""
    ops: list[Op] = []
    for _ in range(n_layers):
        for q in range(n_qubits):
            ops += [
                Op(gate, (q,), Angle(len(ops) - sum(op.gate == "cz" for op in ops) + i))
                for i, gate in enumerate(("rx", "ry", "rz"))
            ]
        ops += [Op("cz", (q, q + 1)) for q in range(n_qubits - 1)]
    return Circuit(n_qubits, tuple(ops), 0, 3 * n_qubits * n_layers)


def random_line(chip: Chip, n_qubits: int, rng: np.random.Generator) -> list[int]:
    """Qubits joined one after the other by live couplers."""
    while True:
        line = [int(rng.choice(chip.live_qubits))]
        while len(line) < n_qubits and (near := [q for q in chip.neighbours[line[-1]] if q not in line]):
            line.append(int(rng.choice(near)))
        if len(line) == n_qubits:
            return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--circuits", type=int, default=20, help="of each number of qubits")
    parser.add_argument("--repeats", type=int, default=3, help="of the emulator's run; the fastest counts")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    chip, rng = load_chip("wukong-72"), np.random.default_rng(0)
    work = [
        (layered(n, 2), random_line(chip, n, rng), rng.uniform(-np.pi, np.pi, (1, 6 * n)))
        for n in range(4, 9)
        for _ in range(arguments.circuits)
    ]
    ours = []
    for _ in range(arguments.repeats):
        start = time.perf_counter()
        compiled = [EmulatorBackend(chip, native=True, layout=line).compile(circuit) for circuit, line, _ in work]
        tables = probabilities_of(compiled, [torch.from_numpy(params) for _, _, params in work])
        ours.append(time.perf_counter() - start)
    programs = [aer_reference.aer_circuit(chip, circuit, line, params[0].tolist()) for circuit, line, params in work]
    aer = aer_reference.simulator(chip)
    start = time.perf_counter()
    result = aer.run(programs, shots=1).result()
    aer_s = time.perf_counter() - start
    difference = max(
        float(np.abs(table.numpy()[0] - aer_reference.read(chip, circuit, line, result, i)).max())
        for i, (table, (circuit, line, _)) in enumerate(zip(tables, work, strict=True))
    )
    figures = {
        "circuits": len(work),
        "emulator_s": min(ours),
        "aer_s": aer_s,
        "ratio": aer_s / min(ours),
        "largest_difference": difference,
    }
    print(json.dumps(figures) if arguments.json else "\n".join(f"{name:>20}  {value:.4g}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
