"""Controls: classical replacements of a circuit, which show the circuit's share of a result.

A result of a quantum adapter means little without its controls (arXiv 2403.07059, 2504.05336). All are made from the circuit:

    circuit     the circuit
    none        nothing: the path is left out
    cos         cos(u): QTHA's circuit with one layer and all angles zero; for circuits with as many outputs as inputs
    mlp         a perceptron of two layers with SiLU, its width such that it has as many parameters as the circuit has angles
    mlp2..mlp4  a perceptron of 2, 3 or 4 layers with SiLU, as wide as the inputs
    product     the circuit without its gates on several qubits
    frozen      the circuit at its random initial angles, not trained

`shuffled` is the circuit with its outputs dealt to other samples of the batch. It knows nothing of its sample, so an instrument
that finds it better than a control is wrong (benchmarks/instrument.py).

`stored` is no control. It is the circuit as it was measured (layers/stored_surrogate.py), which `qpeft export` makes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from qpeft.adapters.layers.stored_surrogate import StoredSurrogate
from qpeft.adapters.quantum_layer import QuantumLayer
from qpeft.circuits.ir import Circuit, Observable, Op
from qpeft.errors import AdapterError

MEASURED = ("circuit", "product", "frozen")  # the kinds that are circuits
QNN_KINDS = ("circuit", "none", "cos", "mlp", "mlp2", "mlp3", "mlp4", "product", "frozen")
STORED, SHUFFLED = "stored", "shuffled"


class Cosine(nn.Module):
    """`z = cos(u)`, element-wise."""

    def forward(self, u: Tensor) -> Tensor:
        """`z (..., n)` from `u (..., n)`, in radians."""
        return torch.cos(u)


class Perceptron(nn.Module):
    """Layers without bias, with SiLU between them.

    Args:
        sizes: of the input, the hidden layers and the output.
    """

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for size, following in itertools.pairwise(sizes):
            layers += [Linear(size, following), nn.SiLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, u: Tensor) -> Tensor:
        """`z (..., sizes[-1])` from `u (..., sizes[0])`."""
        out: Tensor = self.layers(u)
        return out


class Shuffled(QuantumLayer):
    """A circuit whose outputs go to other samples: in the order of a permutation that the number of samples fixes."""

    def forward(self, u: Tensor) -> Tensor:
        """`(..., n_outputs)` for `u (..., n_inputs)`, the values of other rows."""
        values = super().forward(u)
        flat = values.reshape(-1, values.shape[-1])
        order = torch.randperm(len(flat), generator=torch.Generator().manual_seed(len(flat)))
        return flat[order.to(flat.device)].reshape(values.shape)


class Linear(nn.Linear):
    """A linear map without bias, kaiming-uniform with a = 0 (QTHA's initialisation): entries within `sqrt(6 / fan_in)`."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__(d_in, d_out, bias=False)

    def reset_parameters(self) -> None:
        """Draw the weight uniform within `sqrt(6 / in_features)` of zero."""
        bound = math.sqrt(6.0 / self.in_features)
        nn.init.uniform_(self.weight, -bound, bound)


def z_and_zz(n_qubits: int) -> tuple[Observable, ...]:
    """`Z_j`, then `Z_j Z_k` for j < k: `n (n + 1) / 2` observables, all read from the same shots."""
    pairs = itertools.combinations(range(n_qubits), 2)
    qubits = [*((k,) for k in range(n_qubits)), *pairs]
    return tuple(Observable(((1.0, tuple((k, "Z") for k in chosen)),)) for chosen in qubits)


def unentangled(circuit: Circuit) -> Circuit:
    """The circuit without its gates on several qubits, and without the angles that only those gates had.

    The other angles keep their order. Inputs stay, also those that no gate takes any more.
    """
    ops = [op for op in circuit.ops if len(op.qubits) == 1]
    found = {op.angle.index for op in ops if op.angle is not None and op.angle.index is not None}
    inputs, used = range(circuit.n_inputs), sorted(found - {*range(circuit.n_inputs)})
    place = {**{k: k for k in inputs}, **{old: circuit.n_inputs + new for new, old in enumerate(used)}}

    def moved(op: Op) -> Op:
        if op.angle is None or op.angle.index is None:
            return op
        return replace(op, angle=replace(op.angle, index=place[op.angle.index]))

    return Circuit(circuit.n_qubits, tuple(map(moved, ops)), circuit.n_inputs, circuit.n_inputs + len(used))


def n_outputs(circuit: Circuit, observables: Sequence[Observable] | None) -> int:
    """Values that a circuit gives for a sample: one for each observable.

    Args:
        circuit: the circuit.
        observables: default `<Z_k>` for each qubit k.
    """
    return circuit.n_qubits if observables is None else len(observables)


def make_qnn(kind: str, circuit: Circuit, observables: Sequence[Observable] | None = None, stored: Any = None) -> nn.Module | None:
    """The module `u (..., n_inputs) -> z (..., n_outputs)` of a kind.

    Args:
        kind: one of `QNN_KINDS`, `SHUFFLED` or `STORED`.
        circuit: what the kind stands for.
        observables: the circuit's outputs; default `<Z_k>` of every qubit k.
        stored: for `STORED`, the form of the surrogate.

    Returns:
        None for "none".

    Raises:
        AdapterError: no such kind, or "cos" for a circuit with other numbers of inputs and outputs.
    """
    inputs, outputs = circuit.n_inputs, n_outputs(circuit, observables)
    if kind == "none":
        return None
    if kind == "cos":
        if inputs != outputs:
            raise AdapterError(
                "cos(u) has as many values as inputs",
                value=f"a circuit with {inputs} inputs and {outputs} outputs",
                hint="another control: mlp, product, frozen or none",
            )
        return Cosine()
    if kind == "mlp":
        return Perceptron(inputs, max(1, round(circuit.n_angles / (inputs + outputs))), outputs)
    if kind in ("mlp2", "mlp3", "mlp4"):
        return Perceptron(*[inputs] * int(kind[-1]), outputs)
    if kind in MEASURED:
        chosen = unentangled(circuit) if kind == "product" else circuit
        return QuantumLayer(chosen, frozen=kind == "frozen", observables=observables)
    if kind == SHUFFLED:
        return Shuffled(circuit, observables=observables)
    if kind == STORED:
        return StoredSurrogate(circuit, observables, stored)
    raise AdapterError("unknown qnn", value=kind, bound=", ".join(QNN_KINDS))
