"""What generates weights: states and probabilities of circuits, hashed vectors, factors made of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from qpeft.adapters.layers.generated_lora import GENERATORS, Hashed, Probabilities, RealState, qubits_for
from qpeft.adapters.methods.amplitude import Amplitude, AmplitudeConfig
from qpeft.adapters.quantum_layer import MEASURED_QUBITS, ProbabilityLayer, StateLayer, set_executor
from qpeft.circuits import ansatz
from qpeft.circuits.ir import Circuit, Observable
from qpeft.circuits.simulator.simulate import Simulator
from qpeft.errors import AdapterError
from tests import reference
from tests.adapters.derivatives import gradcheck


class Elsewhere:
    """An executor that is no simulator to the layers: it runs the circuits it is given on one."""

    has_state = False

    def __init__(self) -> None:
        self.observables: list[int] = []

    def compile(self, circuit: Circuit, observables: Sequence[Observable] | None = None) -> Any:
        self.observables.append(len(observables or ()))
        return Simulator().compile(circuit, observables)


@pytest.mark.parametrize(("size", "qubits"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (100, 7), (4096, 12), (4097, 13)])
def test_qubits_for(size: int, qubits: int) -> None:
    assert qubits_for(size) == qubits


@pytest.mark.parametrize("n_qubits", [1, 2, 4])
@pytest.mark.parametrize("kind", ["circuit", "product"])
def test_the_circuit_of_generators(kind: str, n_qubits: int) -> None:
    """RY on every qubit and linear CNOTs, gate by gate in numpy; the state is real."""
    torch.manual_seed(0)
    state = RealState(kind, n_qubits, 3).double()
    angles = next(state.parameters())
    psi = np.zeros((2,) * n_qubits)
    psi[(0,) * n_qubits] = 1.0
    for layer in angles.detach().reshape(3, n_qubits).numpy():
        for i, angle in enumerate(layer):
            c, s = np.cos(angle / 2), np.sin(angle / 2)
            psi = reference.apply([[c, -s], [s, c]], (i,), psi)
        for i in range(n_qubits - 1 if kind == "circuit" else 0):
            psi = reference.apply([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]], (i, i + 1), psi)
    np.testing.assert_allclose(state().detach().numpy(), psi.real.reshape(-1), atol=1e-12)
    torch.manual_seed(0)
    probabilities = Probabilities(kind, n_qubits, 3).double()
    np.testing.assert_allclose(probabilities().detach().numpy(), np.abs(psi.reshape(-1)) ** 2, atol=1e-12)


@pytest.mark.parametrize("made", [RealState, Probabilities])
def test_controls_have_as_many_numbers(made: Any) -> None:
    for kind in GENERATORS:
        generator = made(kind, 3, 2)
        trained = sum(p.numel() for p in generator.parameters() if p.requires_grad)
        held = trained + sum(tensor.numel() for name, tensor in generator.state_dict().items() if kind == "frozen")
        assert (trained, held) == ((0, 6) if kind == "frozen" else (6, 6)), kind
        out = generator()
        assert out.shape == (8,)
        assert (out if made is Probabilities else out.square()).sum().item() == pytest.approx(1, abs=1e-6)
        assert out.min() >= 0 or made is RealState


def test_a_product_state_has_independent_bits() -> None:
    torch.manual_seed(1)
    entangled, product = (Probabilities(kind, 2, 2)().reshape(2, 2) for kind in ("circuit", "product"))
    for p, independent in ((product, True), (entangled, False)):
        off = (p - p.sum(1, keepdim=True) * p.sum(0, keepdim=True)).abs().max().item()
        assert (off < 1e-6) == independent


def test_hashed_places_are_the_same_everywhere() -> None:
    """Drawn from the seed, not from the global state or the default device or dtype; not saved; every number is used."""
    first = Hashed(40, 5)
    torch.manual_seed(123)
    second = Hashed(40, 5)
    with torch.device("meta"):
        on_meta = Hashed(40, 5)
    for other in (second, on_meta):
        assert torch.equal(first.get_buffer("place"), other.get_buffer("place"))
        assert torch.equal(first.get_buffer("sign"), other.get_buffer("sign"))
    assert first.get_buffer("place").tolist()[:8] == PLACES
    assert first.get_buffer("sign").unique().tolist() == [-1, 1]
    assert first.get_buffer("place").unique().tolist() == list(range(5))
    assert not torch.equal(Hashed(40, 5, seed=1).get_buffer("place"), first.get_buffer("place"))
    assert first.state_dict().keys() == {"numbers"}
    want = first.numbers[first.get_buffer("place")] * first.get_buffer("sign")
    torch.testing.assert_close(first(), want / want.square().sum().sqrt())


PLACES = [2, 4, 1, 0, 1, 4, 3, 1]


@pytest.mark.parametrize("n_qubits", [1, 3, 4])
def test_probabilities_are_measured_elsewhere(n_qubits: int) -> None:
    layer, elsewhere = ProbabilityLayer(ansatz.ry_cnot(n_qubits, 2)).double(), Elsewhere()
    want = layer()
    (slope,) = torch.autograd.grad(want.square().sum(), layer.angles)
    assert set_executor(layer, elsewhere) == 1
    found = layer()
    assert elsewhere.observables == [2**n_qubits]
    torch.testing.assert_close(found, want, rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad(found.square().sum(), layer.angles)[0], slope)


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(AdapterError, match=r"amplitudes, which no measurement gives.*Elsewhere"):
        set_executor(StateLayer(ansatz.ry_cnot(2, 1)), Elsewhere())
    with pytest.raises(AdapterError, match=rf"too many probabilities.*{MEASURED_QUBITS + 1} qubits"):
        set_executor(ProbabilityLayer(ansatz.ry_cnot(MEASURED_QUBITS + 1, 1)), Elsewhere())


def test_ry_cnot_equals_pennylane() -> None:
    qml = pytest.importorskip("pennylane")
    circuit = ansatz.ry_cnot(4, 2)
    layer = StateLayer(circuit, k=1).double()

    @qml.qnode(qml.device("default.qubit", wires=4))
    def state() -> object:
        for row in layer.angles.detach().reshape(2, 4).numpy():
            qml.AngleEmbedding(row, wires=range(4), rotation="Y")
            for i in range(3):
                qml.CNOT(wires=(i, i + 1))
        return qml.state()

    re, im = layer()
    np.testing.assert_allclose(re[:, 0].detach().numpy() + 1j * im[:, 0].detach().numpy(), state(), atol=1e-12)


def build(d_in: int = 6, d_out: int = 10, **settings: Any) -> Amplitude:
    torch.manual_seed(0)
    return Amplitude(d_in, d_out, AmplitudeConfig(**{"r": 3, "n_layers": 2, "init_weights": False, **settings}), {}).double()


def test_factors_are_the_weight_and_nothing_else() -> None:
    delta = build(alpha=1.5)
    up, down = delta.factors()
    numbers = delta.numbers()
    a, b = numbers[:18].reshape(3, 6) / 6**0.5, numbers[18:].reshape(10, 3)
    torch.testing.assert_close(up @ down, 0.5 * b @ torch.diag(delta.gate) @ a)
    torch.testing.assert_close(delta.weight(), up @ down)
    x = torch.randn(4, 6, dtype=torch.float64)
    torch.testing.assert_close(delta(x), x @ (up @ down).T)


def test_the_gate_is_zero_at_the_start() -> None:
    assert build(init_weights=True).gate.abs().max() == 0
    assert build(init_weights=True).weight().abs().max() == 0
    assert build().weight().abs().max() > 1e-3


def test_generation_asks_the_circuit_once() -> None:
    """In evaluation without gradients the state is kept until an angle changes."""
    delta, x = build().eval(), torch.randn(2, 6, dtype=torch.float64)
    calls: list[int] = []
    delta.state.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        first = delta(x)
        assert torch.equal(delta(x), first)
        assert len(calls) == 1
        next(delta.state.parameters()).add_(0.3)
        assert not torch.equal(delta(x), first)
        assert len(calls) == 2


def test_gradients() -> None:
    delta = build(3, 2, r=2)
    assert gradcheck(delta, torch.randn(2, 3, dtype=torch.float64))
