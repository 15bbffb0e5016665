"""Fourier grids through noisy circuits and shots: what adapters get is what direct execution gives, at a cost that is counted."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from qpeft.backends.emulator.backend import EmulatorBackend, NoisyExecutor
from qpeft.backends.emulator.chip import load_chip
from qpeft.backends.executor import CHUNK, BackendExecutor
from qpeft.backends.registry import get_backend
from qpeft.backends.spending.budget import Budget, Cost, Ledger
from qpeft.backends.spending.cache import ResultCache
from qpeft.circuits import ansatz
from qpeft.circuits.ir import Circuit
from qpeft.circuits.simulator.simulate import Simulator
from qpeft.circuits.surrogate.executor import SurrogateExecutor
from qpeft.circuits.surrogate.grid import FourierGrid
from qpeft.errors import BudgetError

DOUBLE = torch.float64


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.empty(*shape, dtype=DOUBLE).uniform_(-7, 7, generator=torch.Generator().manual_seed(seed))


CIRCUITS = {"qtha-2-1": ansatz.qtha(2, 1), "qtha-4-1": ansatz.qtha(4, 1), "qtha-3-2": ansatz.qtha(3, 2)}
CIRCUITS["hardware-efficient"] = ansatz.hardware_efficient(3, 2)


@pytest.mark.parametrize("name", CIRCUITS)
@pytest.mark.parametrize("chip", ["wukong-72", "wukong-180"])
def test_noisy_grid_is_the_noisy_circuit(name: str, chip: str) -> None:
    """To 1e-6 with exact probabilities, and it is the noise that is reproduced: the exact circuit is elsewhere."""
    circuit, backend = CIRCUITS[name], EmulatorBackend(chip)
    inputs, angles = uniform(25, circuit.n_inputs), uniform(circuit.n_angles, seed=1)
    direct = BackendExecutor(backend).compile(circuit)(inputs, angles)
    grid = SurrogateExecutor(BackendExecutor(backend)).compile(circuit)(inputs, angles)
    torch.testing.assert_close(grid, direct, rtol=0, atol=1e-6)
    assert (direct - Simulator().compile(circuit)(inputs, angles)).abs().max() > 0.01


def test_gradients_through_the_noisy_grid_are_those_of_the_noisy_circuit() -> None:
    """In angles and inputs, by parameter shift on the grid and by autograd through the emulator."""
    circuit, backend = ansatz.qtha(2, 1), EmulatorBackend("wukong-72")
    weights, found = uniform(7, 2, seed=5), []
    for executor in (
        BackendExecutor(backend),
        SurrogateExecutor(BackendExecutor(backend)),
        SurrogateExecutor(NoisyExecutor(backend)),
    ):
        inputs, angles = uniform(7, 2).requires_grad_(), uniform(circuit.n_angles, seed=1).requires_grad_()
        out = executor.compile(circuit)(inputs, angles)
        found.append(torch.autograd.grad((out * weights).sum(), (inputs, angles)))
    for other in found[1:]:
        for mine, direct in zip(other, found[0], strict=True):
            torch.testing.assert_close(mine, direct, rtol=0, atol=1e-6)


def test_shot_variance_on_the_emulator_is_the_predicted_one() -> None:
    """4,000 grids of 200 shots each. A sample variance of 4,000 is off by 1 in sqrt(2 / 4,000) = 0.022: five of them."""
    circuit, shots, repeats = ansatz.qtha(2, 1), 200, 4000
    grid, inputs, angles = FourierGrid.of(circuit), uniform(3, 2), uniform(circuit.n_angles, seed=3)
    compiled = EmulatorBackend("wukong-72").compile(circuit)
    rows = np.concatenate([grid.points(), np.tile(angles.numpy(), (grid.size, 1))], axis=1)
    exact = torch.from_numpy(compiled.run(rows, None).expectations())
    drawn = torch.from_numpy(compiled.run(np.tile(rows, (repeats, 1)), shots, seed=0).expectations()).reshape(repeats, -1, 2)
    evaluated = torch.einsum("bv,rvk->rbk", grid.weights(inputs), drawn)
    predicted = grid.variance(exact, shots, inputs)
    torch.testing.assert_close(evaluated.var(0) / predicted, torch.ones(3, 2, dtype=DOUBLE), rtol=0, atol=0.11)
    assert predicted.max() <= 1 / shots


@pytest.mark.parametrize(("gradient", "per_point"), [("parameter-shift", 8 * 2 + 8 * 4), ("spsa", 2)])
def test_a_step_of_four_qubits_costs_what_the_formula_says(gradient: str, per_point: int) -> None:
    """16 angles, 8 of them in rotations and 8 in controlled ones; the same for 10 and for 500 tokens."""
    for tokens in (10, 500):
        ledger, circuit = Ledger(), ansatz.qtha(4, 1)
        inner = BackendExecutor(get_backend("simulator"), 100, gradient=gradient, seed=0, ledger=ledger)  # type: ignore[arg-type]
        executor = SurrogateExecutor(inner, deferred=True)
        run, angles = executor.compile(circuit), uniform(circuit.n_angles).requires_grad_()
        for module in range(3):
            run(uniform(tokens, 4, seed=module), angles).square().sum().backward()
        executor.flush()
        assert ledger.spent.circuits == 81 * (1 + per_point)
        prepared = inner.prepare(circuit)
        assert ledger.spent == prepared.cost(81) + prepared.cost(prepared.gradient_rows(81))


def test_cost_adds_up_chunk_by_chunk() -> None:
    prepared = BackendExecutor(EmulatorBackend("wukong-72"), 10).prepare(ansatz.qtha(2, 1))
    assert prepared.cost(2 * CHUNK + 5) == prepared.cost(CHUNK) + prepared.cost(CHUNK) + prepared.cost(5)
    assert prepared.cost(0) == Cost()
    assert prepared.gradient_rows(3, inputs=True) == 3 * (2 * 2 + 4 * 2 + 4 * 4)


def samples(executor: BackendExecutor, circuit: Circuit, *steps: int) -> list[Tensor]:
    run, found = executor.compile(circuit), []
    for step in steps:
        executor.begin(step)
        found.append(run(uniform(4, 2), uniform(circuit.n_angles, seed=1)))
    return found


def test_a_step_has_its_own_sample_whatever_ran_before(tmp_path: Path) -> None:
    circuit, backend = ansatz.qtha(2, 1), get_backend("simulator")
    one, two = samples(BackendExecutor(backend, 50, seed=3), circuit, 1, 2)
    assert not torch.equal(one, two)
    assert torch.equal(samples(BackendExecutor(backend, 50, seed=3), circuit, 2)[0], two)
    assert not torch.equal(samples(BackendExecutor(backend, 50, seed=4), circuit, 2)[0], two)
    cache = ResultCache(tmp_path / "cache")
    cached = BackendExecutor(backend, 50, seed=3, cache=cache)
    first, other, again = samples(cached, circuit, 1, 2, 1)
    assert torch.equal(first, one)
    assert torch.equal(other, two)  # not the cached one of step 1
    assert torch.equal(again, one)
    assert (cached.ledger.spent.circuits, cached.ledger.cached) == (8, 4)


def test_what_is_left_after_a_crash_is_what_would_have_come(tmp_path: Path) -> None:
    """A run of two chunks is cut off after the first; with the cache the second attempt runs the second chunk with its own seed."""
    circuit, angles = ansatz.qtha(1, 1), uniform(2, seed=1)
    inputs = torch.linspace(-3, 3, CHUNK + 40, dtype=DOUBLE)[:, None]
    whole = BackendExecutor(get_backend("simulator"), 20, seed=0).compile(circuit)(inputs, angles)
    cache, budget = ResultCache(tmp_path / "cache"), Budget(circuits=CHUNK)
    cut = BackendExecutor(get_backend("simulator"), 20, seed=0, cache=cache)

    def stop(_: Cost) -> None:
        if cut.ledger.spent.circuits > CHUNK:
            raise KeyboardInterrupt

    cut.ledger.watch = stop
    with pytest.raises(KeyboardInterrupt):
        cut.compile(circuit)(inputs, angles)
    again = BackendExecutor(get_backend("simulator"), 20, seed=0, cache=cache, ledger=Ledger(budget))
    assert torch.equal(again.compile(circuit)(inputs, angles), whole)
    assert again.ledger.spent.circuits == 40
    with pytest.raises(BudgetError):
        BackendExecutor(get_backend("simulator"), 20, ledger=Ledger(budget)).compile(circuit)(inputs, angles)


def test_another_chip_file(tmp_path: Path) -> None:
    """A user's own chip: the same grid, other noise, and the file's timing in the estimate."""
    chip = load_chip("wukong-72")
    qubits = tuple(dataclasses.replace(q, t1_us=2.0, t2_us=1.0) for q in chip.qubits)
    worse = dataclasses.replace(chip, name="mine", qubits=qubits)
    (tmp_path / "mine.json").write_text(worse.to_json())
    circuit, inputs = ansatz.qtha(3, 1), uniform(9, 3)
    angles, found = uniform(circuit.n_angles, seed=1), []
    for name in ("emulator:wukong-72", f"emulator:{tmp_path / 'mine.json'}"):
        backend = get_backend(name)
        direct = BackendExecutor(backend).compile(circuit)(inputs, angles)
        torch.testing.assert_close(
            SurrogateExecutor(BackendExecutor(backend)).compile(circuit)(inputs, angles), direct, rtol=0, atol=1e-6
        )
        found.append(direct)
    assert (found[0] - found[1]).abs().max() > 1e-3
