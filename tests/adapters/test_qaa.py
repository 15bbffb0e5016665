"""QAA: the contract, the formulas in numpy, the zero vector, controls."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import qpeft
from qpeft.adapters.layers.generated_lora import GENERATORS, qubits_for
from qpeft.adapters.methods.qaa import QAA, QAAConfig
from qpeft.errors import AdapterError, MergeError
from qpeft.testing import SLOW, check_adapter
from tests import reference
from tests.adapters.derivatives import gradcheck

SMALL: dict[str, Any] = {"r": 4, "n_layers": 2}


def config(**settings: Any) -> Any:
    return qpeft.QAAConfig(**{**SMALL, **settings})


def build(d_in: int = 6, d_out: int = 10, **settings: Any) -> QAA:
    torch.manual_seed(0)
    return QAA(d_in, d_out, QAAConfig(**{**SMALL, "init_weights": False, **settings}), {}).double()


def rows(d_in: int = 6, count: int = 5) -> Tensor:
    return torch.randn(count, d_in, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def test_contract() -> None:
    check_adapter(config, skip=SLOW)


@pytest.mark.slow
def test_contract_compiled() -> None:
    check_adapter(config, only=SLOW)


def test_a_twin_saves_and_trains() -> None:
    check_adapter(partial(config, unitary="hashed"), only=["saves_and_loads", "every_parameter_learns", "copies_and_pickles"])


@pytest.mark.parametrize("r", [1, 2, 3, 8])
@pytest.mark.parametrize("unitary", ["circuit", "product", "frozen"])
def test_delta_equals_its_formulas(unitary: str, r: int) -> None:
    """The embedded state through the circuit gate by gate, `<Z_k>` from its probabilities."""
    delta, n = build(r=r, unitary=unitary, alpha=1.5), qubits_for(r)
    own = {name: tensor.detach().numpy() for name, tensor in delta.state_dict().items()}
    want = []
    for x in rows().numpy():
        h = own["down.weight"] @ x
        psi = np.zeros(2**n)
        psi[:r] = h / np.linalg.norm(h)
        psi = psi.reshape((2,) * n)
        for layer in own["unitary.angles"].reshape(2, n):
            for i, angle in enumerate(layer):
                c, s = np.cos(angle / 2), np.sin(angle / 2)
                psi = reference.apply([[c, -s], [s, c]], (i,), psi)
            for i in range(n - 1 if unitary != "product" else 0):
                psi = reference.apply([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]], (i, i + 1), psi)
        p = np.abs(psi) ** 2
        z = np.array([p.take(0, axis=k).sum() - p.take(1, axis=k).sum() for k in range(n)])
        want.append(1.5 / r * own["up.weight"] @ z)
    np.testing.assert_allclose(delta(rows()).detach().numpy(), want, rtol=1e-9, atol=1e-10)
    assert np.abs(want).max() > 1e-3


def test_amplitude_embedding_equals_pennylane() -> None:
    qml = pytest.importorskip("pennylane")
    delta = build(r=5)
    h = rows(5, 3)

    @qml.qnode(qml.device("default.qubit", wires=3))
    def circuit(row: np.ndarray) -> object:
        qml.AmplitudeEmbedding(row, wires=range(3), pad_with=0.0, normalize=True)
        for layer in delta.unitary.angles.detach().reshape(2, 3).numpy():  # type: ignore[operator,union-attr]
            qml.AngleEmbedding(layer, wires=range(3), rotation="Y")
            for i in range(2):
                qml.CNOT(wires=(i, i + 1))
        return [qml.expval(qml.Z(k)) for k in range(3)]

    want = np.array([circuit(row) for row in h.numpy()])
    np.testing.assert_allclose(delta.embed(h).detach().numpy(), want, atol=1e-9)


def test_the_zero_vector_gives_nothing_and_finite_gradients() -> None:
    delta = build().float()
    x = torch.cat([torch.zeros(1, 6), 1e-30 * torch.ones(1, 6), torch.ones(1, 6)]).requires_grad_()
    out = delta(x)
    assert out[0].abs().max() == 0
    assert out[1].abs().max() < 1e-6
    assert out[2].abs().max() > 1e-3
    out.square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in delta.parameters())


def test_the_norm_is_lost() -> None:
    torch.testing.assert_close(build()(rows()), build()(7 * rows()), rtol=1e-8, atol=1e-10)


def test_not_linear() -> None:
    assert not build().linear
    with pytest.raises(MergeError, match="not linear"):
        build().weight()


@pytest.mark.parametrize(("r", "qubits"), [(1, 1), (8, 3), (9, 4)])
def test_size(r: int, qubits: int) -> None:
    """`d_in r + n d_out + n L`."""
    assert sum(p.numel() for p in build(31, 17, r=r).parameters() if p.requires_grad) == 31 * r + qubits * 17 + 2 * qubits


def test_controls_differ_in_the_unitary_alone() -> None:
    deltas = {kind: build(unitary=kind) for kind in GENERATORS}
    circuit = deltas["circuit"]
    for kind, delta in deltas.items():
        trained = sum(p.numel() for p in delta.parameters() if p.requires_grad)
        assert trained == sum(p.numel() for p in circuit.parameters() if p.requires_grad) - (2 * 2 if kind == "frozen" else 0)
        assert torch.equal(delta.down.weight, circuit.down.weight)
        assert torch.equal(delta.up.weight, circuit.up.weight)
        matrix = delta.matrix()
        assert matrix.square().sum().item() == pytest.approx(4, rel=1e-6)
        assert torch.allclose(matrix.T @ matrix, torch.eye(4, dtype=matrix.dtype)) == (kind != "hashed")
    assert not torch.allclose(deltas["product"](rows()), circuit(rows()))


def test_gradients() -> None:
    delta = build(4, 3, r=3)
    assert gradcheck(delta, rows(4, 2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": 0}, "r must be a whole number"),
        ({"n_layers": -1}, "n_layers must be"),
        ({"dropout": 1.5}, "dropout is a probability"),
        ({"unitary": "oracle"}, "unknown unitary"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        config(**settings)
