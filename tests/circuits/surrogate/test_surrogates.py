"""Surrogates past the grid against the exact simulator: error, its estimate, gradients, variance from shots."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from qpeft.circuits import ansatz
from qpeft.circuits.ir import Angle, Circuit, Observable, Op
from qpeft.circuits.simulator.simulate import Simulator, expectations
from qpeft.circuits.surrogate.choice import make_surrogate, surrogate_maker
from qpeft.circuits.surrogate.executor import SurrogateExecutor
from qpeft.circuits.surrogate.grid import FourierGrid
from qpeft.circuits.surrogate.regression import RegressionSurrogate
from qpeft.circuits.surrogate.sparse import SparseSurrogate
from qpeft.circuits.surrogate.tensor_train import TensorTrainSurrogate
from qpeft.errors import CircuitError

DOUBLE = torch.float64


def uniform(*shape: int, seed: int = 1) -> Tensor:
    return torch.as_tensor(np.random.default_rng(seed).uniform(0, 2 * math.pi, shape))


def with_shots(values: Tensor, shots: int, seed: int = 2) -> Tensor:
    """Means of `shots` outcomes +-1."""
    ones = np.random.default_rng(seed).binomial(shots, ((1 + values) / 2).clamp(0, 1).numpy())
    return torch.as_tensor(2.0 * ones / shots - 1)


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def scaled(n: int = 3) -> Circuit:
    """Two uploads of every input at frequencies 1/2 and 2, and observables that are not Z."""
    ops = [Op("ry", (q,), Angle(q, 0.5)) for q in range(n)]
    ops += [Op("cx", (q, (q + 1) % n)) for q in range(n)]
    ops += [Op("rx", (q,), Angle(n + q)) for q in range(n)] + [Op("ry", (q,), Angle(q, 2.0, 0.3)) for q in range(n)]
    return Circuit(n, tuple(ops), n, 2 * n)


@pytest.mark.parametrize(
    ("circuit", "observables"), [(ansatz.qtha(4, 1), None), (scaled(), [Observable.pauli("XIZ"), Observable.pauli("YYI", 0.5)])]
)
def test_without_shots_enough_points_give_the_exact_function(circuit: Circuit, observables: list[Observable] | None) -> None:
    sparse = SparseSurrogate.of(circuit, observables, shots=None, points=400)
    angles, inputs = uniform(circuit.n_angles), uniform(50, circuit.n_inputs, seed=3) * 4
    values = expectations(circuit, torch.as_tensor(sparse.points()), angles, observables)
    exact = expectations(circuit, inputs, angles, observables)
    assert rms(sparse.evaluate(sparse.coefficients(values), inputs) - exact) < 1e-3  # of terms that random angles seldom need
    assert float(sparse.error(values).max()) < 1e-2


@pytest.mark.parametrize("n_qubits", [8, 16])
def test_one_layer_costs_the_same_at_any_width(n_qubits: int) -> None:
    circuit = ansatz.qtha(n_qubits, 1)
    sparse = SparseSurrogate.of(circuit, shots=1000)
    assert sparse.size <= 256
    angles, inputs = uniform(circuit.n_angles), uniform(100, n_qubits, seed=3)
    values = with_shots(expectations(circuit, torch.as_tensor(sparse.points()), angles), 1000)
    error = (sparse.evaluate(sparse.coefficients(values), inputs) - expectations(circuit, inputs, angles)).square().mean(0).sqrt()
    assert float(error.max()) < 0.05
    assert 0.5 < rms(sparse.error(values)) / rms(error) < 2


MAKERS: dict[str, Any] = {
    "sparse": lambda circuit: SparseSurrogate.of(circuit, points=120),
    "tensor train": lambda circuit: TensorTrainSurrogate.of(circuit, points=120),
    "regression": lambda circuit: RegressionSurrogate.of(circuit, inputs=0.4 * torch.randn(500, 4, dtype=DOUBLE), points=120),
}


@pytest.mark.parametrize("name", MAKERS)
def test_values_errors_and_gradients(name: str) -> None:
    torch.manual_seed(0)
    circuit = ansatz.qtha(4, 1)
    surrogate = MAKERS[name](circuit)
    assert surrogate.size == len(surrogate.points()) == 120
    inputs = 0.4 * torch.randn(40, 4, dtype=DOUBLE) if name == "regression" else uniform(40, 4, seed=3)
    angles = uniform(circuit.n_angles)
    values = with_shots(expectations(circuit, torch.as_tensor(surrogate.points()), angles), 1000)
    exact = expectations(circuit, inputs, angles)
    fitted = surrogate.coefficients(values)
    error = rms(surrogate.evaluate(fitted, inputs) - exact)
    assert error < 0.06
    assert 0.4 < float(surrogate.error(values).square().mean().sqrt()) / error < 2.5
    leaf = inputs[:5].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda u: surrogate.evaluate(fitted, u), leaf)
    if name != "tensor train":  # linear in the values, its settings held
        assert torch.autograd.gradcheck(
            lambda v: surrogate.evaluate(surrogate.coefficients(v), inputs[:3]), values.requires_grad_()
        )


def test_gauss_newton_points_where_the_fit_moves() -> None:
    circuit = ansatz.qtha(4, 1)
    surrogate, angles, inputs = TensorTrainSurrogate.of(circuit, points=200), uniform(16), uniform(30, 4, seed=3)
    values = expectations(circuit, torch.as_tensor(surrogate.points()), angles).requires_grad_()
    weight = torch.as_tensor(np.random.default_rng(5).normal(size=(30, 4)))
    (surrogate.evaluate(surrogate.coefficients(values), inputs) * weight).sum().backward()
    step = 1e-3 * (expectations(circuit, torch.as_tensor(surrogate.points()), angles + 1.0) - values.detach())
    with torch.no_grad():
        moved = [(surrogate.evaluate(surrogate.coefficients(values + s * step), inputs) * weight).sum() for s in (1, -1)]
    assert values.grad is not None
    assert float((values.grad * step).sum()) == pytest.approx(float(moved[0] - moved[1]) / 2, rel=0.15)


def test_variance_from_shots_is_what_repeats_show() -> None:
    circuit = ansatz.qtha(4, 1)
    surrogate, angles, inputs = SparseSurrogate.of(circuit, points=300), uniform(16), uniform(20, 4, seed=3)
    exact = expectations(circuit, torch.as_tensor(surrogate.points()), angles)
    surrogate.coefficients(with_shots(exact, 500))  # the prior's factors, held from here on
    runs = [surrogate.evaluate(surrogate.coefficients(with_shots(exact, 500, seed=s)), inputs) for s in range(60)]
    found, told = torch.stack(runs).var(0).mean(), surrogate.variance(exact, 500, inputs).mean()
    assert float(found / told) == pytest.approx(1, abs=0.2)


def test_what_cannot_be_done_is_refused_with_the_way_out() -> None:
    with pytest.raises(CircuitError, match="regression on activations"):
        SparseSurrogate.of(ansatz.qtha(8, 8))
    with pytest.raises(CircuitError, match=r"no surrogate of so small an error.*more shots"):
        SparseSurrogate.of(ansatz.qtha(3, 1), shots=1, error=1e-3)
    with pytest.raises(CircuitError, match=r"number of points.*2 to 5"):
        RegressionSurrogate.of(ansatz.qtha(2, 1), inputs=torch.arange(10.0).view(5, 2), points=6)


def test_a_fit_that_cannot_be_believed_says_so() -> None:
    """Published n = L = 8 with inputs over the whole circle: nothing learns it from 300 points, and the estimate tells."""
    circuit, inputs = ansatz.qtha(8, 8), uniform(600, 8, seed=4)
    surrogate = RegressionSurrogate.of(circuit, inputs=inputs[:300], points=300)
    angles = uniform(circuit.n_angles)
    values = with_shots(expectations(circuit, torch.as_tensor(surrogate.points()), angles), 1000)
    signal = float(expectations(circuit, inputs[300:], angles).std())
    assert float(surrogate.error(values).square().mean().sqrt()) > 0.8 * signal


def test_the_smaller_surrogate_is_chosen_and_refusals_give_every_reason() -> None:
    assert isinstance(make_surrogate(ansatz.qtha(4, 1)), FourierGrid)
    wide = make_surrogate(ansatz.qtha(8, 1))
    assert isinstance(wide, SparseSurrogate)
    assert wide.size <= 256
    assert isinstance(make_surrogate(ansatz.qtha(8, 1), kind="grid"), FourierGrid)
    with pytest.raises(CircuitError, match=r"no surrogate.*grid: .*17 x 17.*sparse: .*17 x 17"):
        make_surrogate(ansatz.qtha(8, 8))


def test_an_executor_around_a_sparse_surrogate_trains_angles() -> None:
    """Gradients for angles through a few points are those of the exact circuit, to the surrogate's error."""
    circuit, inputs = ansatz.qtha(6, 1), uniform(40, 6, seed=3)
    executor = SurrogateExecutor(Simulator(), make=surrogate_maker(kind="sparse", shots=None, error=0.01))
    angles, weight = uniform(circuit.n_angles), uniform(40, 6, seed=4)
    grads = []
    for place in (executor, Simulator()):
        leaf = angles.clone().requires_grad_()
        (place.compile(circuit)(inputs, leaf) * weight).sum().backward()
        grads.append(leaf.grad)
    assert grads[0] is not None
    assert grads[1] is not None
    assert rms(grads[0] - grads[1]) < 0.02 * rms(grads[1])
