"""Controls of a circuit: formulas, parameters, and that each lacks what it is to lack."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from qpeft.adapters.controls import QNN_KINDS, Linear, Perceptron, make_qnn, unentangled
from qpeft.adapters.quantum_layer import QuantumLayer, set_executor
from qpeft.circuits import ansatz
from qpeft.circuits.ir import Angle, Circuit, Observable, Op
from qpeft.errors import AdapterError

DOUBLE = torch.float64


def made(kind: str, r: int = 3, depth: int = 2) -> nn.Module:
    torch.manual_seed(0)
    module = make_qnn(kind, ansatz.qtha(r, depth))
    assert module is not None
    return module.to(DOUBLE)


def inputs(r: int = 3) -> Tensor:
    return torch.randn(5, r, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [("circuit", 24), ("product", 12), ("frozen", 0), ("cos", 0), ("mlp", 24), ("mlp2", 18), ("mlp3", 27), ("mlp4", 36)],
)
def test_shape_and_parameters(kind: str, parameters: int) -> None:
    module = made(kind)
    assert sum(p.numel() for p in module.parameters() if p.requires_grad) == parameters
    for shape in ((3,), (5, 3), (2, 4, 3), (0, 3)):
        out = module(torch.zeros(shape, dtype=DOUBLE))
        assert out.shape == shape
        assert out.dtype == DOUBLE


def test_every_kind_is_made() -> None:
    circuit = ansatz.qtha(3, 2)
    assert make_qnn("none", circuit) is None
    assert all(make_qnn(kind, circuit) is not None for kind in QNN_KINDS if kind != "none")
    with pytest.raises(AdapterError, match=r"unknown qnn.*sine.*circuit, none"):
        make_qnn("sine", circuit)


def test_the_cosine_is_the_circuit_of_one_layer_at_zero_angles() -> None:
    circuit = made("circuit", depth=1)
    with torch.no_grad():
        circuit.angles.zero_()
    torch.testing.assert_close(made("cos")(inputs()), circuit(inputs()))
    degrees = torch.tensor([[0.0, math.pi / 3, math.pi]], dtype=DOUBLE)
    torch.testing.assert_close(made("cos")(degrees), torch.tensor([[1.0, 0.5, -1.0]], dtype=DOUBLE))


@pytest.mark.parametrize(("kind", "depth"), [("mlp", 2), ("mlp2", 2), ("mlp3", 3), ("mlp4", 4)])
def test_perceptron(kind: str, depth: int) -> None:
    module, want = made(kind), inputs()
    weights = list(module.parameters())
    assert len(weights) == depth
    for k, weight in enumerate(weights):
        want = want @ weight.T
        if k < depth - 1:
            want = want / (1 + torch.exp(-want))
    assert isinstance(module, Perceptron)
    torch.testing.assert_close(module(inputs()), want)


def test_linear_starts_kaiming_uniform() -> None:
    torch.manual_seed(0)
    layer = Linear(24, 4000)
    bound = math.sqrt(6 / 24)
    assert layer.bias is None
    assert layer.weight.abs().max() <= bound
    assert layer.weight.abs().max() > 0.99 * bound
    assert layer.weight.var().item() == pytest.approx(2 / 24, rel=0.02)  # gain sqrt 2


def test_circuit_gives_the_published_vectors() -> None:
    published = {
        (2, 1): [0.96760251, 0.36738528],
        (3, 2): [0.78682627, -0.71964828, -0.81452548],
        (4, 4): [0.65986947, 0.15531571, 0.29181923, -0.24382975],
        (5, 3): [0.58261679, -0.34245991, 0.23338042, 0.14510394, 0.43029383],
    }
    for (n, depth), want in published.items():
        module = made("circuit", n, depth)
        m = torch.arange(n * depth, dtype=DOUBLE).reshape(depth, n)
        with torch.no_grad():
            module.angles.copy_(torch.stack([0.2 * (1 + m), 0.1 * (1 + m), 0.05 * (1 + m), -0.15 * (1 + m)], 1).flatten())
        u = torch.tensor((0.3, -1.1, 2.0, 0.7, -0.4)[:n], dtype=DOUBLE)
        torch.testing.assert_close(module(u), torch.tensor(want, dtype=DOUBLE), rtol=0, atol=1e-8)


@pytest.mark.parametrize("kind", ["circuit", "product", "frozen"])
def test_without_angles_a_circuit_is_a_cosine(kind: str) -> None:
    module = made(kind)
    with torch.no_grad():
        module.angles.zero_()
    torch.testing.assert_close(module(inputs()), torch.cos(2 * inputs()))


@pytest.mark.parametrize(("kind", "entangles"), [("circuit", True), ("frozen", True), ("product", False)])
def test_entanglement(kind: str, entangles: bool) -> None:
    """Output k depends on other inputs than u_k if and only if gates entangle."""
    jacobian = torch.autograd.functional.jacobian(made(kind), inputs()[0])
    off_diagonal = jacobian - torch.diag(torch.diagonal(jacobian))
    assert (off_diagonal.abs().max() > 1e-3) == entangles
    assert torch.diagonal(jacobian).abs().min() > 1e-6


def test_frozen_circuit_is_saved_but_never_trained() -> None:
    frozen, circuit = made("frozen"), made("circuit")
    assert not [p for p in frozen.parameters() if p.requires_grad]
    assert not list(frozen.buffers())  # frameworks that shard and copy models do so with parameters
    assert frozen.state_dict().keys() == circuit.state_dict().keys() == {"angles"}
    torch.testing.assert_close(frozen(inputs()), circuit(inputs()))  # one seed, one circuit


def test_angles_start_uniform() -> None:
    angles = made("circuit", 4, 250).angles
    assert angles.abs().max() < math.pi
    assert angles.abs().max() > 0.99 * math.pi
    assert angles.std().item() == pytest.approx(math.pi / math.sqrt(3), rel=0.02)


def test_set_executor_replaces_the_simulator_everywhere() -> None:
    class Constant:
        has_state = False

        def compile(self, circuit: Circuit, observables: Sequence[Observable] | None = None) -> object:
            return lambda u, angles: torch.full_like(u, 0.5) * circuit.n_qubits

    model = nn.ModuleList([made("circuit"), made("frozen", 2), made("cos")])
    assert set_executor(model, Constant()) == 2  # type: ignore[arg-type]
    assert model[0](inputs()).unique().tolist() == [1.5]
    assert model[1](inputs(2)).unique().tolist() == [1.0]


def test_gradients_of_a_quantum_layer() -> None:
    module = made("circuit", 2, 1)
    assert isinstance(module, QuantumLayer)
    u = inputs(2).requires_grad_()
    angles = module.angles.detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda u, angles: torch.func.functional_call(module, {"angles": angles}, (u,)), (u, angles))


def own_circuit() -> Circuit:
    """Two inputs, three qubits, four angles: uploads with a scale and in a gate on two qubits, an angle that two gates share."""
    ops = (
        Op("rx", (0,), Angle(0, 2.0)),
        Op("ry", (1,), Angle(1, 0.5, 0.1)),
        Op("crz", (0, 1), Angle(2)),
        Op("rz", (2,), Angle(3)),
        Op("rxx", (1, 2), Angle(1)),
        Op("ry", (2,), Angle(5, -1.0)),
        Op("ry", (0,), Angle(3)),
        Op("cp", (2, 0), Angle(4)),
    )
    return Circuit(3, ops, n_inputs=2, n_params=6)


@pytest.mark.parametrize(("n", "depth"), [(1, 1), (2, 3), (5, 2)])
def test_without_its_gates_on_several_qubits_qthas_circuit_is_its_product_control(n: int, depth: int) -> None:
    assert unentangled(ansatz.qtha(n, depth)) == ansatz.qtha(n, depth, entangling=False)


def test_what_an_own_circuit_loses_without_its_gates_on_several_qubits() -> None:
    found = unentangled(own_circuit())
    assert [(op.gate, op.qubits, op.angle) for op in found.ops] == [
        ("rx", (0,), Angle(0, 2.0)),
        ("ry", (1,), Angle(1, 0.5, 0.1)),
        ("rz", (2,), Angle(2)),
        ("ry", (2,), Angle(3, -1.0)),
        ("ry", (0,), Angle(2)),
    ]
    assert (found.n_inputs, found.n_params) == (2, 4)
    assert unentangled(found) == found


@pytest.mark.parametrize(
    ("kind", "parameters"), [("circuit", 4), ("product", 2), ("frozen", 0), ("mlp", 5), ("mlp2", 2 * 2 + 2 * 3)]
)
def test_controls_of_an_own_circuit(kind: str, parameters: int) -> None:
    module = make_qnn(kind, own_circuit())
    assert module is not None
    assert sum(p.numel() for p in module.parameters() if p.requires_grad) == parameters
    assert module(torch.zeros(7, 2)).shape == (7, 3)


def test_a_cosine_needs_as_many_outputs_as_inputs() -> None:
    with pytest.raises(AdapterError, match="2 inputs and 3 outputs"):
        make_qnn("cos", own_circuit())
    assert make_qnn("cos", own_circuit(), [Observable.z(0), Observable.z(1)]) is not None
