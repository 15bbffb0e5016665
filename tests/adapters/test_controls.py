"""What stands where the circuit stands: formulas, parameters, and that the controls lack what they are to lack."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from qpeft.adapters.controls import QNN_KINDS, Linear, Perceptron, make_qnn
from qpeft.adapters.quantum_layer import QuantumLayer, set_executor
from qpeft.circuits.ir import Circuit, Observable
from qpeft.errors import AdapterError

DOUBLE = torch.float64


def made(kind: str, r: int = 3, depth: int = 2) -> nn.Module:
    torch.manual_seed(0)
    module = make_qnn(kind, r, depth)
    assert module is not None
    return module.to(DOUBLE)


def inputs(r: int = 3) -> Tensor:
    return torch.randn(5, r, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [("circuit", 24), ("product", 12), ("frozen", 0), ("cos", 0), ("mlp2", 18), ("mlp3", 27), ("mlp4", 36)],
)
def test_shape_and_parameters(kind: str, parameters: int) -> None:
    module = made(kind)
    assert sum(p.numel() for p in module.parameters()) == parameters
    for shape in ((3,), (5, 3), (2, 4, 3), (0, 3)):
        out = module(torch.zeros(shape, dtype=DOUBLE))
        assert out.shape == shape
        assert out.dtype == DOUBLE


def test_every_kind_is_made() -> None:
    assert make_qnn("none", 3, 2) is None
    assert all(make_qnn(kind, 3, 2) is not None for kind in QNN_KINDS if kind != "none")
    with pytest.raises(AdapterError, match=r"unknown qnn.*sine.*circuit, none"):
        make_qnn("sine", 3, 2)


def test_cosine() -> None:
    torch.testing.assert_close(made("cos")(inputs()), torch.cos(inputs()))


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_perceptron(depth: int) -> None:
    module, want = made(f"mlp{depth}"), inputs()
    weights = list(module.parameters())
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
    assert not list(frozen.parameters())
    assert frozen.state_dict().keys() == circuit.state_dict().keys() == {"angles"}
    torch.testing.assert_close(frozen(inputs()), circuit(inputs()))  # one seed, one circuit


def test_angles_start_uniform() -> None:
    angles = made("circuit", 4, 250).angles
    assert angles.abs().max() < math.pi
    assert angles.abs().max() > 0.99 * math.pi
    assert angles.std().item() == pytest.approx(math.pi / math.sqrt(3), rel=0.02)


def test_set_executor_replaces_the_simulator_everywhere() -> None:
    class Constant:
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
