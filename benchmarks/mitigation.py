"""What error mitigation is worth: QTHA's circuit on the emulated Wukong-72, values against the noiseless ones, shots counted.

    python -m benchmarks.mitigation            # the table of docs/mitigation.md

The root mean square error of `<Z_k>` over 50 random inputs, 4 qubits and 5 sets of angles, with exact values (what noise alone
leaves) and with shots (what one gets). Every method may spend about the same shots per circuit: those that run more circuits get
fewer for each. The calibration of readout is spent once; it is listed apart.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from qpeft.backends.base import Backend
from qpeft.backends.executor import BackendExecutor
from qpeft.backends.mitigation.readout import MitigatedBackend, ReadoutCorrection
from qpeft.backends.mitigation.zero_noise import ZeroNoise
from qpeft.backends.registry import get_backend
from qpeft.circuits import ansatz
from qpeft.circuits.executor import Executor
from qpeft.circuits.simulator.simulate import expectations

QUBITS, LAYERS, INPUTS, SETS = 4, 1, 50, 5


def fixed_layout(name: str) -> Backend:
    """The emulator with the circuit's best qubits as its fixed layout, so that every circuit uses these."""
    place = get_backend(name).compile(ansatz.qtha(QUBITS, LAYERS)).qubits
    return get_backend(name, layout=place)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default="emulator:wukong-72")
    parser.add_argument("--shots", type=int, default=12_000, help="a circuit and input may spend, over all that it runs")
    parser.add_argument("--calibration", type=int, default=20_000, help="shots of each circuit of a readout calibration")
    arguments = parser.parse_args()
    backend = fixed_layout(arguments.backend)
    single = ReadoutCorrection.measure(backend, QUBITS, arguments.calibration, seed=1)
    pairs = ReadoutCorrection.measure(backend, QUBITS, arguments.calibration, groups=[(0, 1), (2, 3)], seed=100)
    plain, by_qubit, by_pair = backend, MitigatedBackend(backend, single), MitigatedBackend(backend, pairs)
    methods: list[tuple[str, Backend, tuple[int, ...], int]] = [
        ("none", plain, (1,), 0),
        ("readout, per qubit", by_qubit, (1,), single.shots),
        ("readout, on pairs", by_pair, (1,), pairs.shots),
        ("zero noise, scales 1 3", plain, (1, 3), 0),
        ("zero noise, scales 1 3 5", plain, (1, 3, 5), 0),
        ("readout per qubit and zero noise, scales 1 3", by_qubit, (1, 3), single.shots),
        ("readout per qubit and zero noise, scales 1 3 5", by_qubit, (1, 3, 5), single.shots),
    ]
    print("| mitigation | circuits each | shots each | calibration shots | RMSE, exact values | RMSE, shots |")
    print("|---|---:|---:|---:|---:|---:|")
    for label, where, scales, calibration in methods:
        each = arguments.shots // len(scales)
        errors = [error(lambda shots: executor(where, shots, scales), shots) for shots in (None, each)]  # noqa: B023 - called here
        print(
            f"| {label} | {len(scales)} | {each * len(scales):,} | {calibration or 0:,} | {errors[0]:.4f} | {errors[1]:.4f} |",
            flush=True,
        )


def executor(backend: Backend, shots: int | None, scales: tuple[int, ...]) -> Executor:
    inner = BackendExecutor(backend, shots, seed=7)
    return inner if scales == (1,) else ZeroNoise(inner, scales)


def error(make: Callable[[int | None], Executor], shots: int | None) -> float:
    """RMSE over inputs, angles and qubits."""
    circuit, off = ansatz.qtha(QUBITS, LAYERS), []
    run = make(shots).compile(circuit)
    for seed in range(SETS):
        generator = torch.Generator().manual_seed(seed)
        inputs = torch.randn(INPUTS, circuit.n_inputs, dtype=torch.float64, generator=generator)
        angles = torch.empty(circuit.n_angles, dtype=torch.float64).uniform_(-torch.pi, torch.pi, generator=generator)
        off.append(run(inputs, angles) - expectations(circuit, inputs, angles))
    together: Tensor = torch.stack(off)
    return together.square().mean().sqrt().item()


if __name__ == "__main__":
    main()
