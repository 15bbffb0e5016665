"""Quantum-PEFT: its circuit against PennyLane's template, its matrices against dense ones, its parameter counts."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pennylane as qml
import pytest
import torch
from torch import Tensor

import qpeft
from qpeft.adapters.methods.quantum_peft import QuantumPEFT, QuantumPEFTConfig, StiefelColumns
from qpeft.circuits.ansatz import simplified_two_design
from qpeft.circuits.simulator.statevector import columns
from qpeft.errors import AdapterError, CircuitError
from qpeft.testing import SLOW, check_adapter
from tests.adapters.compare_controls import assert_differ_in_one_part
from tests.adapters.derivatives import gradcheck

DOUBLE = torch.float64
PARAMETRISATIONS = ("pauli", "taylor", "cayley")


def build(d_in: int = 11, d_out: int = 6, **settings: Any) -> QuantumPEFT:
    return QuantumPEFT(d_in, d_out, QuantumPEFTConfig(**{"init_weights": False, "r": 3, **settings}), {}).to(DOUBLE)


def trainable(delta: torch.nn.Module) -> int:
    return sum(p.numel() for p in delta.parameters() if p.requires_grad)


@pytest.mark.parametrize("parametrisation", PARAMETRISATIONS)
def test_contract(parametrisation: str) -> None:
    check_adapter(partial(qpeft.QuantumPEFTConfig, r=3, parametrisation=parametrisation), skip=SLOW)


@pytest.mark.slow
@pytest.mark.parametrize("parametrisation", PARAMETRISATIONS)
def test_contract_compiled(parametrisation: str) -> None:
    check_adapter(partial(qpeft.QuantumPEFTConfig, r=3, parametrisation=parametrisation, order=3), only=SLOW)


@pytest.mark.parametrize("n_layers", [1, 2, 3])
@pytest.mark.parametrize("n", range(1, 6))
def test_the_circuit_is_the_simplified_two_design(n: int, n_layers: int) -> None:
    circuit = simplified_two_design(n, n_layers)
    assert circuit.n_angles == (2 * n_layers + 1) * n - 2 * n_layers
    angles = torch.randn(circuit.n_angles, dtype=DOUBLE, generator=torch.Generator().manual_seed(n))
    initial, weights = angles[:n].numpy(), angles[n:].numpy().reshape(n_layers, n - 1, 2)
    if n == 1:  # the template has no layers without a second qubit
        want = qml.matrix(qml.RY(initial[0], 0))
    else:
        want = qml.matrix(qml.SimplifiedTwoDesign(initial, weights, wires=range(n)), wire_order=range(n))
    real, imaginary = columns(circuit, angles, 2**n)
    np.testing.assert_allclose(real.numpy(), want.real, atol=1e-12)
    assert imaginary.abs().max() < 1e-12
    assert np.abs(want.imag).max() < 1e-12


def test_the_circuit_needs_a_qubit_and_a_layer() -> None:
    for sizes in ((0, 1), (2, 0)):
        with pytest.raises(CircuitError, match="at least one qubit and one layer"):
            simplified_two_design(*sizes)


@pytest.mark.parametrize(("d_in", "d_out"), [(8, 16), (11, 6), (1, 5), (7, 2), (1, 1)])
@pytest.mark.parametrize("parametrisation", PARAMETRISATIONS)
def test_delta_is_the_decomposition(parametrisation: str, d_in: int, d_out: int) -> None:
    delta = build(d_in, d_out, parametrisation=parametrisation, alpha=1.5)
    k = min(3, d_in, d_out)
    u, v, values = delta.u(), delta.v(), delta.singular_values
    assert (u.shape, v.shape, values.shape) == ((d_out, k), (d_in, k), (k,))
    want = (1.5 / 3) * u @ torch.diag(values) @ v.T
    torch.testing.assert_close(delta.weight(), want)
    b, a = delta.factors()
    assert (b.shape, a.shape) == ((d_out, k), (k, d_in))
    torch.testing.assert_close(b @ a, want)
    for matrix, size in ((u, d_out), (v, d_in)):
        if parametrisation != "pauli" or (size & (size - 1) == 0 and size > 1):
            torch.testing.assert_close(matrix.T @ matrix, torch.eye(k, dtype=DOUBLE), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("size", "k"), [(1, 1), (5, 1), (5, 5), (9, 4)])
def test_columns_of_the_exponential_and_of_the_cayley_map(size: int, k: int) -> None:
    torch.manual_seed(0)
    exponential, cayley = StiefelColumns(size, k, 30).to(DOUBLE), StiefelColumns(size, k, None).to(DOUBLE)
    cayley.load_state_dict(exponential.state_dict())
    b = torch.zeros(size, size, dtype=DOUBLE)
    with torch.no_grad():
        b[tuple(torch.tril_indices(size, k, -1))] = exponential.entries
    a, eye = b - b.T, torch.eye(size, dtype=DOUBLE)
    torch.testing.assert_close(exponential(), torch.linalg.matrix_exp(a)[:, :k])
    torch.testing.assert_close(cayley(), ((eye - a) @ torch.linalg.inv(eye + a))[:, :k])


def test_orthonormality_of_the_truncated_series() -> None:
    """At the start, 576 x 8: an error of 3e-4 with six terms, of 1e-9 with the default twelve."""

    def error(order: int) -> float:
        torch.manual_seed(0)
        u = StiefelColumns(576, 8, order).to(DOUBLE)()
        return (u.T @ u - torch.eye(8, dtype=DOUBLE)).abs().max().item()

    assert error(1) > 0.5
    assert 1e-6 < error(6) < 1e-3
    assert error(QuantumPEFTConfig().order) < 1e-8


@pytest.mark.parametrize(("d_in", "d_out", "k"), [(64, 64, 4), (576, 192, 8), (31, 17, 5), (2, 9, 2)])
def test_published_parameter_formulas(d_in: int, d_out: int, k: int) -> None:
    for n_layers in (1, 3):
        angles = sum((2 * n_layers + 1) * max(1, math.ceil(math.log2(n))) - 2 * n_layers for n in (d_in, d_out))
        assert trainable(build(d_in, d_out, r=k, n_layers=n_layers)) == angles + k
    for parametrisation in ("taylor", "cayley"):
        entries = sum(n * k - k * (k + 1) // 2 for n in (d_in, d_out))
        assert trainable(build(d_in, d_out, r=k, parametrisation=parametrisation)) == entries + k
        if d_in == d_out:
            assert entries + k == 2 * d_in * k - k * k


@pytest.mark.parametrize("parametrisation", PARAMETRISATIONS)
def test_starts_at_zero_delta(parametrisation: str) -> None:
    delta = build(init_weights=True, parametrisation=parametrisation)
    assert delta(torch.randn(4, 11, dtype=DOUBLE)).abs().max() == 0
    zero = [name for name, parameter in delta.named_parameters() if parameter.abs().max() == 0]
    assert zero == ["singular_values"]


def test_the_circuits_control_lacks_its_entangling_gates_alone() -> None:
    method, other = assert_differ_in_one_part(partial(build, 8, 16, n_layers=2), {}, {"entangling": False})

    def rotation(angle: Tensor) -> np.ndarray:
        c, s = math.cos(angle.item() / 2), math.sin(angle.item() / 2)
        return np.array([[c, -s], [s, c]])

    circuits = [delta.v.state.circuit for delta in (method, other)]  # type: ignore[union-attr]
    assert [op for op in circuits[0].ops if op.gate != "cz"] == list(circuits[1].ops)
    angles = other.v.state.angles.detach()  # type: ignore[union-attr]
    totals = [sum(angles[op.angle.index] for op in circuits[1].ops if op.qubits == (q,)) for q in range(3)]
    want = np.kron(np.kron(rotation(totals[0]), rotation(totals[1])), rotation(totals[2]))
    np.testing.assert_allclose(other.v().detach().numpy(), want[:, :3], atol=1e-12)  # type: ignore[operator]


def test_the_control_of_the_series_is_its_first_order() -> None:
    method, other = assert_differ_in_one_part(build, {"parametrisation": "taylor"}, {"order": 1})
    entries = other.u.entries.detach()  # type: ignore[union-attr]
    b = torch.zeros(6, 6, dtype=DOUBLE)
    b[tuple(torch.tril_indices(6, 3, -1))] = entries
    torch.testing.assert_close(other.u(), (torch.eye(6, dtype=DOUBLE) + b - b.T)[:, :3])  # type: ignore[operator]
    assert isinstance(method, QuantumPEFT)


@pytest.mark.parametrize("parametrisation", PARAMETRISATIONS)
def test_gradients(parametrisation: str) -> None:
    delta = build(5, 4, r=2, parametrisation=parametrisation)
    assert gradcheck(delta, torch.randn(2, 5, dtype=DOUBLE))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": 0}, "r must be"),
        ({"n_layers": 0}, "n_layers must be"),
        ({"order": 0}, "order must be"),
        ({"dropout": -0.1}, "dropout is a probability"),
        ({"parametrisation": "qr"}, "unknown parametrisation.*pauli, taylor, cayley"),
        ({"parametrisation": "taylor", "entangling": False}, "only a circuit has entangling gates"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        qpeft.QuantumPEFTConfig(**settings)
