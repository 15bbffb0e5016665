"""The lattice surrogate: equal to the circuit everywhere, with its gradients, and nothing run that is not on the lattice."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qpeft.circuits import ansatz
from qpeft.circuits.executor import Expectations
from qpeft.circuits.ir import GATES, Angle, Circuit, Observable, Op
from qpeft.circuits.simulator.simulate import Simulator
from qpeft.circuits.surrogate.executor import SurrogateExecutor
from qpeft.circuits.surrogate.grid import FourierGrid
from qpeft.errors import CircuitError
from tests.strategies import circuits

DOUBLE = torch.float64


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.empty(*shape, dtype=DOUBLE).uniform_(-7, 7, generator=torch.Generator().manual_seed(seed))


class Counting:
    """An executor that counts the samples it runs, forward and backward."""

    has_state = False

    def __init__(self) -> None:
        self.samples = self.gradients = 0

    def compile(self, circuit: Circuit, observables: Sequence[Observable] | None = None) -> Expectations:
        run = Simulator().compile(circuit, observables)

        def counted(inputs: Tensor, angles: Tensor) -> Tensor:
            self.samples += len(inputs)
            out = run(inputs, angles)
            if out.requires_grad:
                out.register_hook(lambda grad: setattr(self, "gradients", self.gradients + len(grad)))
            return out

        return counted


def agree(circuit: Circuit, observables: Sequence[Observable] | None = None, samples: int = 5) -> None:
    inputs, angles = uniform(samples, circuit.n_inputs).requires_grad_(), uniform(circuit.n_angles, seed=1).requires_grad_()
    results = []
    for executor in (Simulator(), SurrogateExecutor(Simulator())):
        out = executor.compile(circuit, observables)(inputs, angles)
        weights = torch.linspace(-1, 1, out.numel(), dtype=DOUBLE).reshape(out.shape)
        gradients = torch.autograd.grad((out * weights).sum(), (inputs, angles), allow_unused=True, materialize_grads=True)
        results.append((out, *gradients))
    for direct, lattice in zip(*results, strict=True):
        torch.testing.assert_close(lattice, direct, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("n_qubits", "n_layers"), [(1, 1), (1, 3), (2, 1), (2, 3), (3, 2), (4, 1), (4, 2), (5, 1), (6, 1), (3, 3)])
def test_qtha_circuit(n_qubits: int, n_layers: int) -> None:
    circuit = ansatz.qtha(n_qubits, n_layers)
    assert FourierGrid.of(circuit).size == (2 * n_layers + 1) ** n_qubits
    agree(circuit)


@settings(max_examples=40, deadline=None)
@given(circuits(max_qubits=3, max_ops=10), st.integers(0, 3))
def test_any_circuit(circuit: Circuit, n_inputs: int) -> None:
    made = Circuit(circuit.n_qubits, circuit.ops, min(n_inputs, circuit.n_params), circuit.n_params)
    try:
        size = FourierGrid.of(made).size
    except CircuitError:  # scales drawn at random need not have a common base
        return
    if size < 20_000:
        agree(made)


@pytest.mark.parametrize("name", [name for name, spec in GATES.items() if spec.parametrised])
def test_every_gate_may_take_an_input(name: str) -> None:
    n, qubits = GATES[name].n_qubits, tuple(range(GATES[name].n_qubits))
    spread = tuple(Op("ry", (q,), Angle(shift=0.4 + q)) for q in qubits)
    for scales in ((1.0,), (0.5, -2.0), (3.0, 1.5, 0.25)):
        ops = [op for scale in scales for op in (Op(name, qubits, Angle(0, scale, 0.3)), *spread)]
        circuit = Circuit(n, (*spread, *ops), 1, 1)
        agree(circuit, [Observable.pauli("XY"[:n]), Observable.pauli("ZX"[:n], 0.7)])


def test_frequencies_of_gates() -> None:
    assert GATES["ry"].frequencies == (1.0,)
    assert GATES["p"].frequencies == (1.0,)
    assert GATES["crz"].frequencies == (0.5, 1.0)
    assert GATES["rzz"].frequencies == (1.0,)
    assert GATES["h"].frequencies == ()


def test_one_input_in_gates_of_unlike_frequencies() -> None:
    """ry(u) has frequency 1, crz(u) 1/2 and 1, ry(2u/3) 2/3: the base is 1/6 and the degrees add up to 6 + 6 + 4."""
    ops = (Op("ry", (0,), Angle(0)), Op("h", (1,)), Op("crz", (0, 1), Angle(0)), Op("ry", (1,), Angle(0, 2 / 3)), Op("h", (0,)))
    circuit = Circuit(2, ops, 1, 1)
    lattice = FourierGrid.of(circuit)
    assert lattice.base[0] == pytest.approx(1 / 6)
    assert lattice.degrees == (16,)
    agree(circuit, [Observable.pauli("ZI"), Observable.pauli("XY")])


def test_an_unused_input_costs_one_point() -> None:
    lattice = FourierGrid.of(Circuit(1, (Op("ry", (0,), Angle(1)),), 2, 2))
    assert lattice.shape == (1, 3)
    agree(Circuit(1, (Op("ry", (0,), Angle(1)),), 2, 2))
    agree(Circuit(1, (Op("ry", (0,), Angle(0)),), 0, 1))  # no input at all


def test_what_has_no_lattice_is_refused() -> None:
    with pytest.raises(CircuitError, match="common base"):
        FourierGrid.of(Circuit(1, (Op("ry", (0,), Angle(0)), Op("ry", (0,), Angle(0, math.sqrt(2)))), 1, 1))
    for scale in (1e-7, 5e-324):
        with pytest.raises(CircuitError, match="too small a frequency"):
            FourierGrid.of(Circuit(1, (Op("rx", (0,), Angle(0, scale)),), 1, 1))
    with pytest.raises(CircuitError, match="too many points"):
        FourierGrid.of(ansatz.qtha(8, 8))
    run = SurrogateExecutor(Simulator()).compile(ansatz.qtha(2, 1))
    with pytest.raises(CircuitError, match="wrong shape"):
        run(torch.zeros(3, 5), torch.zeros(8))


def test_weights_are_the_surrogate_and_their_squares_sum_to_one() -> None:
    circuit = ansatz.qtha(3, 2)
    run = SurrogateExecutor(Simulator()).compile(circuit)
    inputs, angles = uniform(6, 3), uniform(circuit.n_angles, seed=2)
    weights = run.surrogate.weights(inputs)  # type: ignore[attr-defined]
    torch.testing.assert_close(weights @ run.values(angles), run(inputs, angles), rtol=0, atol=1e-12)  # type: ignore[attr-defined]
    torch.testing.assert_close(weights.square().sum(1), torch.ones(6, dtype=DOUBLE), rtol=0, atol=1e-12)


def test_shot_variance_of_an_evaluation() -> None:
    """10,000 repetitions of shots drawn on the lattice: their variance is the predicted one, and at most 1 / shots.

    The ratio of a sample variance to the true one has a standard deviation of about sqrt(2 / 10,000) = 0.014: five of them.
    """
    circuit, shots, repeats = ansatz.qtha(2, 1), 50, 10_000
    run = SurrogateExecutor(Simulator()).compile(circuit)
    lattice, inputs, angles = FourierGrid.of(circuit), uniform(4, 2), uniform(circuit.n_angles, seed=3)
    exact = run.values(angles)  # type: ignore[attr-defined]
    rng = np.random.default_rng(0)
    ones = rng.binomial(shots, ((1 + exact) / 2).numpy(), size=(repeats, *exact.shape))
    noisy = torch.as_tensor(2 * ones / shots - 1)
    evaluated = torch.einsum("bv,rvk->rbk", lattice.weights(inputs), noisy)
    predicted = lattice.variance(exact, shots, inputs)
    assert predicted.max() <= 1 / shots
    torch.testing.assert_close(evaluated.var(0) / predicted, torch.ones(4, 2, dtype=DOUBLE), rtol=0, atol=5 * 0.0142)
    bias = (evaluated.mean(0) - run(inputs, angles)).abs() / (predicted / repeats).sqrt()
    assert bias.max() < 5


def test_a_shared_circuit_runs_once_a_step_whatever_the_tokens() -> None:
    circuit, counting = ansatz.qtha(2, 1), Counting()
    run = SurrogateExecutor(counting).compile(circuit)
    angles = uniform(circuit.n_angles).requires_grad_()
    optimizer = torch.optim.SGD([angles], lr=0.1)
    for step in range(3):
        for _ in range(4):  # modules, or batches
            run(uniform(100 * (step + 1), 2), angles)
        run(uniform(7, 2), angles).sum().backward()
        run(uniform(9, 2), angles).sum().backward()  # the record serves again
        optimizer.step()
        assert counting.samples == 9 * (step + 1)
        assert counting.gradients == 18 * (step + 1)
    with torch.no_grad():
        run(uniform(5, 2), angles), run(uniform(5, 2), angles)
    assert counting.samples == 9 * 4
    run(uniform(5, 2), angles)  # a record is needed now
    assert counting.samples == 9 * 5


def test_deferred_gradients_are_the_same_and_cost_one_lattice_a_step() -> None:
    circuit, batches, found = ansatz.qtha(2, 2), [uniform(30, 2, seed=k) for k in range(4)], {}
    for deferred in (False, True):
        counting = Counting()
        executor = SurrogateExecutor(counting, deferred=deferred)
        run, angles = executor.compile(circuit), uniform(circuit.n_angles, seed=9).requires_grad_()
        for batch in batches:
            run(batch, angles).square().sum().backward()
        assert (angles.grad is None) == deferred
        executor.flush()
        executor.flush()  # nothing waits
        assert angles.grad is not None
        found[deferred] = angles.grad
        assert (counting.samples, counting.gradients) == (25, 25 if deferred else 100)
    torch.testing.assert_close(found[True], found[False])


def test_deferred_gradients_are_never_lost_or_late() -> None:
    circuit = ansatz.qtha(2, 1)
    run, angles = SurrogateExecutor(Simulator(), deferred=True).compile(circuit), uniform(circuit.n_angles).requires_grad_()
    run(uniform(3, 2), angles).sum().backward()
    with torch.no_grad():
        angles.add_(0.1)
    with pytest.raises(CircuitError, match="flush"):
        run(uniform(3, 2), angles)
    with pytest.raises(CircuitError, match="leaf"):
        SurrogateExecutor(Simulator(), deferred=True).compile(circuit)(uniform(3, 2), angles * 1.0)


def test_a_lattice_that_is_forgotten_is_measured_anew() -> None:
    circuit, counting = ansatz.qtha(2, 1), Counting()
    executor = SurrogateExecutor(counting, deferred=True)
    run, angles = executor.compile(circuit), uniform(circuit.n_angles)
    run(uniform(3, 2), angles), run(uniform(3, 2), angles)
    assert counting.samples == 9
    executor.forget()
    run(uniform(3, 2), angles.requires_grad_()).sum().backward()
    assert counting.samples == 18
    with pytest.raises(CircuitError, match="flush"):
        executor.forget()
    executor.flush()
    executor.forget()


def test_float32_leading_shapes_and_no_samples() -> None:
    circuit = ansatz.qtha(3, 1)
    run, direct = SurrogateExecutor(Simulator()).compile(circuit), Simulator().compile(circuit)
    inputs, angles = uniform(2, 5, 3).float(), uniform(circuit.n_angles).float()
    out = run(inputs, angles)
    assert (out.shape, out.dtype) == ((2, 5, 3), torch.float32)
    torch.testing.assert_close(out, direct(inputs, angles), rtol=0, atol=2e-6)
    assert run(inputs[:0], angles).shape == (0, 5, 3)
    assert run(inputs[0, 0], angles).shape == (3,)


@pytest.mark.parametrize("degrees", [(), (2,), (1, 3), (2, 0, 1), (1, 1, 2, 1)])
def test_evaluation_by_hand_has_the_gradients_of_finite_differences(degrees: tuple[int, ...]) -> None:
    lattice = FourierGrid(tuple(0.5 + 0.25 * q for q in range(len(degrees))), degrees)
    coefficients, inputs = uniform(*lattice.shape, 3).requires_grad_(), uniform(5, len(degrees), seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lattice.evaluate, (coefficients, inputs))
    assert torch.autograd.gradcheck(lambda c: lattice.evaluate(c, inputs.detach()), (coefficients,))
    if degrees:
        assert torch.autograd.gradcheck(lambda u: lattice.evaluate(coefficients.detach(), u), (inputs,))
