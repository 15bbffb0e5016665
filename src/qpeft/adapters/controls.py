"""Classical controls: what stands where the circuit stands, so that the circuit's share of a result can be told.

No result of a quantum adapter means anything without these beside it (arXiv 2403.07059, 2504.05336).

    circuit     the quantum circuit itself
    none        nothing: the path is left out
    cos         cos(u), what the circuit is with one layer, all angles zero and no training
    mlp2..mlp4  a multilayer perceptron of 2, 3 or 4 square layers with SiLU between them
    product     the same circuit with its entangling gates removed
    frozen      the same circuit at its random initial angles, not trained

`stored` is no control: it is the circuit as it was measured (stored_lattice.py), made by `qpeft export --to lattice`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qpeft.adapters.layers.stored_grid import StoredGrid
from qpeft.adapters.quantum_layer import QuantumLayer
from qpeft.circuits import ansatz
from qpeft.circuits.ir import Observable
from qpeft.errors import AdapterError

QNN_KINDS = ("circuit", "none", "cos", "mlp2", "mlp3", "mlp4", "product", "frozen")
MEASURED = ("circuit", "product", "frozen")  # the kinds that are circuits
STORED = "stored"
CIRCUITS = ("qtha", "hardware_efficient")  # functions of ansatz.py


class Cosine(nn.Module):
    """`z = cos(u)`, element-wise."""

    def forward(self, u: Tensor) -> Tensor:
        return torch.cos(u)


class Perceptron(nn.Module):
    """`depth` square layers `(r, r)` without bias, SiLU between them."""

    def __init__(self, size: int, depth: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(depth):
            layers += [Linear(size, size), nn.SiLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, u: Tensor) -> Tensor:
        out: Tensor = self.layers(u)
        return out


class Linear(nn.Linear):
    """A linear map without bias, kaiming-uniform with a = 0 (QTHA's initialisation): entries within `sqrt(6 / fan_in)`."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__(d_in, d_out, bias=False)

    def reset_parameters(self) -> None:
        bound = math.sqrt(6.0 / self.in_features)
        nn.init.uniform_(self.weight, -bound, bound)


def pairs_of_z(n_qubits: int) -> tuple[Observable, ...]:
    """`Z_j`, then `Z_j Z_k` for j < k: all read from the same shots, `n (n + 1) / 2` of them."""
    pairs = itertools.combinations(range(n_qubits), 2)
    words = [*((k,) for k in range(n_qubits)), *pairs]
    return tuple(Observable(((1.0, tuple((k, "Z") for k in word)),)) for word in words)


def make_qnn(
    kind: str, n_qubits: int, n_layers: int, observables: Sequence[Observable] | None = None, *, name: str = "qtha"
) -> nn.Module | None:
    """The module `u (..., r) -> z (..., r)` of a kind; None for "none". `observables` are a circuit's, in the place of `Z_k`;
    `name` is one of `CIRCUITS`, of which "product" knows the first alone.
    """
    if kind == "none":
        return None
    if kind == "cos":
        return Cosine()
    if kind in ("mlp2", "mlp3", "mlp4"):
        return Perceptron(n_qubits, int(kind[-1]))
    if kind in MEASURED:
        without = {"entangling": False} if kind == "product" else {}
        circuit = getattr(ansatz, name)(n_qubits, n_layers, **without)
        return QuantumLayer(circuit, frozen=kind == "frozen", observables=observables)
    if kind == STORED:
        return StoredGrid(getattr(ansatz, name)(n_qubits, n_layers))
    raise AdapterError("unknown qnn", value=kind, bound=", ".join(QNN_KINDS))
