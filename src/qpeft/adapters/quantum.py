"""A circuit as a layer: trainable angles around an Executor."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from qpeft.circuits.executor import Executor
from qpeft.circuits.ir import Circuit
from qpeft.circuits.simulate import Simulator


class QuantumLayer(nn.Module):
    """`z = <Z_k>(u; angles)`: inputs `(..., n_inputs)` and outputs `(..., n_qubits)`, float32 (float64 for a float64 layer).

    Angles start uniform in (-pi, pi). With `frozen` they are a buffer: saved, never trained. The circuit runs on an exact
    simulator until `set_executor` gives it another place.
    """

    def __init__(self, circuit: Circuit, *, frozen: bool = False) -> None:
        super().__init__()
        self.circuit = circuit
        angles = torch.empty(circuit.n_angles)
        if frozen:
            self.register_buffer("angles", angles)
        else:
            self.angles = nn.Parameter(angles)
        self.set_executor(Simulator())
        self.initialise()

    def set_executor(self, executor: Executor) -> None:
        """Run the circuit on another executor from now on."""
        self.run = executor.compile(self.circuit)

    @torch.no_grad()
    def initialise(self) -> None:
        self.angles.uniform_(-math.pi, math.pi)

    def forward(self, u: Tensor) -> Tensor:
        return self.run(u, self.angles)

    def extra_repr(self) -> str:
        return f"{self.circuit.n_qubits} qubits, {len(self.circuit.ops)} gates, {self.circuit.n_angles} angles"


def set_executor(model: nn.Module, executor: Executor) -> int:
    """Run every circuit of a model on `executor`; returns how many circuits there are."""
    layers = [module for module in model.modules() if isinstance(module, QuantumLayer)]
    for layer in layers:
        layer.set_executor(executor)
    return len(layers)
