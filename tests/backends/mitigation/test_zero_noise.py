"""Zero-noise extrapolation: mitiq's weights, and on the emulator values nearer to the noiseless ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qpeft.backends.emulator.backend import EmulatorBackend, NoisyExecutor
from qpeft.backends.executor import BackendExecutor
from qpeft.backends.mitigation.zero_noise import Extrapolation, ZeroNoise, extrapolation_weights
from qpeft.backends.registry import get_backend
from qpeft.backends.spending.budget import Ledger
from qpeft.circuits import ansatz
from qpeft.circuits.executor import Executor
from qpeft.circuits.ir import Angle, Circuit, Op
from qpeft.circuits.simulator.simulate import expectations
from qpeft.errors import BackendError

# LinearFactory, PolyFactory(order=2) and RichardsonFactory.extrapolate(scales, unit vector) of mitiq 1.1.0, for each unit vector.
MITIQ: list[tuple[tuple[int, ...], Extrapolation, list[float]]] = [
    ((1, 3), "linear", [1.5, -0.5]),
    ((1, 3), "richardson", [1.5, -0.5]),
    ((1, 3, 5), "linear", [1.0833333333, 0.3333333333, -0.4166666667]),
    ((1, 3, 5), "quadratic", [1.875, -1.25, 0.375]),
    ((1, 3, 5), "richardson", [1.875, -1.25, 0.375]),
    ((1, 3, 5, 7), "linear", [0.85, 0.45, 0.05, -0.35]),
    ((1, 3, 5, 7), "quadratic", [1.5375, -0.2375, -0.6375, 0.3375]),
    ((1, 3, 5, 7), "richardson", [2.1875, -2.1875, 1.3125, -0.3125]),
]


@pytest.mark.parametrize(("scales", "order", "weights"), MITIQ)
def test_weights_are_mitiqs(scales: tuple[int, ...], order: Extrapolation, weights: list[float]) -> None:
    assert extrapolation_weights(scales, order) == pytest.approx(weights, abs=1e-9)


def test_extrapolation_is_exact_for_its_polynomials() -> None:
    scales = np.array([1, 3, 5, 7])
    orders: tuple[tuple[Extrapolation, int], ...] = (("linear", 1), ("quadratic", 2), ("richardson", 3))
    for order, degree in orders:
        weights = extrapolation_weights(tuple(scales), order)
        for power in range(degree + 1):
            assert np.dot(weights, scales**power) == pytest.approx(0.0**power, abs=1e-9)
    for scales_, order_ in (((1,), "linear"), ((1, 1), "linear"), ((1, 3), "quadratic"), ((1, 3), "cubic"), ((), "richardson")):
        with pytest.raises(BackendError):
            extrapolation_weights(scales_, order_)  # type: ignore[arg-type]


def test_the_values_at_each_scale_differ() -> None:
    """RY at scales 1, 3 and 5, whose folds a compiler would merge."""
    circuit = Circuit(1, (Op("ry", (0,), Angle(0)),), 0, 1)
    zero_noise = ZeroNoise(BackendExecutor(get_backend("emulator:wukong-72")), (1, 3, 5))
    angles = torch.tensor([1.2], dtype=torch.float64)
    inputs = torch.empty(1, 0, dtype=torch.float64)
    values = [executor.compile(circuit)(inputs, angles).item() for executor in zero_noise.executors]
    assert len({round(value, 6) for value in values}) == 3
    assert zero_noise.compile(circuit)(inputs, angles).item() == pytest.approx(np.dot(zero_noise.weights, values))


@pytest.mark.parametrize("kind", ["parameter-shift", "autograd"])
def test_zero_noise_on_the_emulator_is_better_and_differentiable(kind: str) -> None:
    circuit = ansatz.qtha(2, 1)
    backend = EmulatorBackend("wukong-72", layout=get_backend("emulator:wukong-72").compile(circuit).qubits)
    executor = BackendExecutor(backend) if kind == "parameter-shift" else NoisyExecutor(backend)
    inputs = torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    angles = torch.full((8,), 0.7, dtype=torch.float64, requires_grad=True)
    want = expectations(circuit, inputs, angles)
    gradients, errors = [], []
    runs: tuple[Executor, ...] = (executor, ZeroNoise(executor, (1, 3)))
    for run in runs:
        values = run.compile(circuit)(inputs, angles)
        errors.append((values - want).abs().mean().item())
        gradients.append(torch.autograd.grad(values.sum(), angles)[0])
    assert errors[1] < errors[0]
    (exact,) = torch.autograd.grad(want.sum(), angles)
    assert (gradients[1] - exact).norm() < (gradients[0] - exact).norm()


def test_every_scale_is_charged_and_has_its_own_shots() -> None:
    ledger = Ledger()
    circuit = ansatz.qtha(2, 1)
    zero_noise = ZeroNoise(BackendExecutor(get_backend("emulator:wukong-72"), 500, seed=3, ledger=ledger), (1, 3))
    run = zero_noise.compile(circuit)
    run(torch.zeros(2, 2), torch.ones(circuit.n_angles))
    assert ledger.spent.circuits == 2  # two equal rows once, at each of two scales
    assert zero_noise.executors[0].next_seed() != zero_noise.executors[1].next_seed()
