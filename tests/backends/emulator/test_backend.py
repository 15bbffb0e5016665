"""The emulator as a backend: whole circuits, shots, refusals, large parts on Aer, packing of rows, published counts, training."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from benchmarks import published_counts
from qpeft.backends.base import Backend, CompiledCircuit
from qpeft.backends.emulator import pauli_transfer
from qpeft.backends.emulator.backend import EmulatedCircuit, EmulatorBackend, NoisyExecutor
from qpeft.backends.emulator.chip import Chip, load_chip
from qpeft.backends.emulator.native_gates import to_native
from qpeft.backends.registry import get_backend
from qpeft.circuits import ansatz
from qpeft.circuits.executor import Executor
from qpeft.circuits.ir import Angle, Circuit, Observable, Op
from qpeft.circuits.simulator.simulate import Simulator
from qpeft.errors import BackendError, CircuitError, ResourceError
from tests.backends.emulator import aer_reference
from tests.backends.emulator.random_chips import chips, random_chip, random_native

RING = [(0, 1), (1, 2), (2, 3), (3, 0)]


@pytest.fixture(scope="module")
def small() -> EmulatorBackend:
    return EmulatorBackend(random_chip([*RING, (2, 4), (4, 5), (5, 6)], 1))


def test_it_is_a_backend(small: EmulatorBackend, tmp_path: Path) -> None:
    assert isinstance(small, Backend)
    assert isinstance(small.compile(ansatz.qtha(2, 1)), CompiledCircuit)
    named = get_backend("emulator:wukong-72")
    assert (named.name, named.limits.max_qubits, named.limits.exact, named.simulated) == ("emulator:wukong-72", 72, True, True)
    path = tmp_path / "mine.json"
    path.write_text(small.chip.to_json())
    mine = get_backend(f"emulator:{path}", seed=0)
    assert mine.calibration == small.calibration != named.calibration
    drifted = dataclasses.replace(
        small.chip, qubits=(dataclasses.replace(small.chip.qubits[0], error_1q=0.1), *small.chip.qubits[1:])
    )
    assert EmulatorBackend(drifted).calibration != small.calibration


@pytest.mark.parametrize("circuit", [ansatz.qtha(4, 1), ansatz.hardware_efficient(3, 1), ansatz.qtha(5, 1)])
def test_a_routed_circuit_is_equal_to_aer(small: EmulatorBackend, circuit: Circuit) -> None:
    """Through swaps, with outcomes in the circuit's own order and qubits that only carried swaps left out."""
    emulated = small.compile(circuit)
    (place,) = emulated.places
    params = np.random.default_rng(0).uniform(-3, 3, (1, circuit.n_params))
    expected = aer_reference.probabilities(small.chip, place.circuit, list(place.qubits), params[0].tolist())
    grid = expected.reshape((2,) * place.circuit.n_qubits)
    others = tuple(q for q in range(place.circuit.n_qubits) if q not in place.measured)
    expected = np.transpose(grid.sum(axis=others), [sorted(place.measured).index(q) for q in place.measured]).reshape(-1)
    assert np.abs(emulated.run(params, None).probabilities()[0] - expected).max() < 1e-8


def test_large_parts_run_on_aer_with_the_same_noise(small: EmulatorBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path for parts beyond LARGEST, forced on a part that both can do: exactly equal, and shots from the same distribution."""
    circuit = ansatz.qtha(3, 1)
    params = np.random.default_rng(1).uniform(-3, 3, (2, circuit.n_params))
    exact = small.compile(circuit).run(params, None).probabilities()
    monkeypatch.setattr(pauli_transfer, "LARGEST", 4)
    compiled = small.compile(circuit)
    assert not compiled.parts[0][0].exact
    assert np.abs(compiled.run(params, None).probabilities() - exact).max() < 1e-8
    shots = 3000
    counts = compiled.run(params, shots, seed=3)
    assert counts.counts == compiled.run(params, shots, seed=3).counts
    statistic = ((counts.probabilities() - exact) ** 2 / exact).sum(axis=1) * shots
    assert statistic.max() < stats.chi2.ppf(1 - 1e-6, 7)
    with pytest.raises(BackendError, match="no gradient"):
        compiled.probabilities(torch.from_numpy(params).requires_grad_())


def test_more_joined_qubits_than_any_vector_holds() -> None:
    """Thirteen in a deep line: shots through trajectories, no exact answer, and the reason."""
    chip = random_chip([(q, q + 1) for q in range(12)], 2)
    line = [Op("cz", (q, q + 1)) for q in range(12)]
    turns = [Op("ry", (q,), Angle(0)) for q in range(13)]
    backend = EmulatorBackend(chip, native=True)
    compiled = backend.compile(Circuit(13, (*turns, *line, *turns, *reversed(line), *turns), 0, 1))
    counts = compiled.run(np.zeros((1, 1)), 40, seed=0)
    assert sum(counts.counts[0].values()) == 40
    up = [qubit.p1_given_0 for qubit in chip.qubits]
    ones = (1 - counts.expectations()[0]) / 2  # angles of zero: |0> at the end but for noise and readout
    assert np.all(ones < np.array(up) + 0.5)
    with pytest.raises(BackendError, match="exact on so many joined qubits"):
        compiled.run(np.zeros((1, 1)), None)


def test_values_of_a_wide_circuit_are_exact() -> None:
    """Twelve qubits in a ring, too many for a vector of all: marginals and expectation values are within the shots' error of
    Aer's trajectories, and autograd's gradient is that of central differences."""
    wukong = EmulatorBackend("wukong-180")
    circuit = ansatz.qtha(12, 1)
    compiled, shots = wukong.compile(circuit), 400
    assert not compiled.exact
    params = np.random.default_rng(0).uniform(-3, 3, (1, circuit.n_params))
    inputs, angles = torch.from_numpy(params).split([12, circuit.n_angles], dim=1)
    pairs = [Observable(((1.0, ((0, "Z"), (11, "Z"))),)), Observable(((0.5, ()), (2.0, ((7, "Z"),))))]
    run = NoisyExecutor(wukong).compile(circuit, [*map(Observable.z, range(12)), *pairs])
    values = run(inputs, angles[0])[0].numpy()
    counts = compiled.run(params, shots, seed=0)
    seen = np.concatenate([counts.expectations()[0], counts.expectations([*pairs])[0]])
    spread = np.sqrt(np.array([*[1.0] * 13, 2.0]) / shots)
    assert np.abs(values - seen).max() < 5 * spread.max()
    assert np.sqrt(np.mean(((values - seen) / spread) ** 2)) < 1.5

    def first(x: torch.Tensor) -> torch.Tensor:
        return compiled.marginals(x, [[3], [11, 0]])[1][0, 0]

    x = torch.from_numpy(params).requires_grad_()
    (slope,) = torch.autograd.grad(first(x), x)
    which, step = int(slope.abs().argmax()), torch.zeros_like(x)
    step[0, which] = 1e-4
    difference = (first(x + step) - first(x - step)).item() / 2e-4
    assert slope[0, which].item() == pytest.approx(difference, rel=1e-5)


def test_a_network_gives_what_a_vector_gives(small: EmulatorBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of one and two qubits of a circuit that both can do, with many rows, with one, and with angles that rows share."""
    circuit = ansatz.qtha(5, 2)
    rows = torch.from_numpy(np.random.default_rng(2).uniform(-3, 3, (4, circuit.n_params)))
    rows[:, 5:9] = rows[0, 5:9]
    groups = [[0], [4, 1], [2, 3]]
    exact = small.compile(circuit).marginals(rows, groups)
    monkeypatch.setattr(EmulatedCircuit, "exact", False)
    monkeypatch.setattr(pauli_transfer, "evolve", pauli_transfer.contract)
    compiled = small.compile(circuit)
    for some in (rows, rows[:1], rows[:1].expand(3, -1)):
        for found, table in zip(compiled.marginals(some, groups), exact, strict=True):
            assert torch.allclose(found, table[: 4 if len(some) == 4 else 1].expand(len(some), -1), atol=1e-12, rtol=0)
    monkeypatch.setattr(pauli_transfer, "LARGEST", 16)
    with pytest.raises(BackendError, match="exact on so many joined qubits"):
        compiled.marginals(rows, groups)


def test_shots_are_seeded_and_multinomial(small: EmulatorBackend) -> None:
    circuit = ansatz.qtha(3, 1)
    compiled, rng = small.compile(circuit), np.random.default_rng(4)
    params = rng.uniform(-3, 3, (5, circuit.n_params))
    exact = compiled.run(params, None).probabilities()
    counts = compiled.run(params, 10_000, seed=7)
    assert counts.counts == compiled.run(params, 10_000, seed=7).counts != compiled.run(params, 10_000, seed=8).counts
    statistic = ((counts.probabilities() - exact) ** 2 / exact).sum(axis=1) * 10_000
    assert statistic.max() < stats.chi2.ppf(1 - 1e-6, 7)
    assert len(compiled.run(params[:0], 10)) == len(compiled.run(params[:0], None)) == 0


def test_a_wide_circuit_of_small_parts() -> None:
    """Thirty pairs at once: exact as marginals, sparse as counts, and no table of 2^60."""
    backend = EmulatorBackend("wukong-180")
    ops = [op for q in range(30) for op in (Op("ry", (2 * q,), Angle(0, 1.0, 0.1 * q)), Op("cx", (2 * q, 2 * q + 1)))]
    compiled = backend.compile(Circuit(60, tuple(ops), 0, 1))
    assert len(compiled.parts[0]) == 30
    params = np.array([[0.4], [1.1]])
    pairs = compiled.marginals(torch.from_numpy(params), [[2 * q, 2 * q + 1] for q in range(30)])
    counts = compiled.run(params, 5000, seed=1)
    for q in range(30):
        exact, seen = pairs[q].numpy(), counts.marginal([2 * q, 2 * q + 1]).probabilities()
        assert (((seen - exact) ** 2 / exact).sum(axis=1) * 5000).max() < stats.chi2.ppf(1 - 1e-6, 3)
    swapped = compiled.marginals(torch.from_numpy(params), [[1, 0]])[0]
    assert torch.equal(swapped, pairs[0][:, [0, 2, 1, 3]])
    with pytest.raises(ResourceError, match="marginals"):
        compiled.run(params, None)
    with pytest.raises(BackendError, match="different qubits"):
        compiled.marginals(torch.from_numpy(params), [[0, 60]])


def test_refusals(small: EmulatorBackend) -> None:
    with pytest.raises(BackendError, match="too many qubits"):
        small.compile(Circuit(8, ()))
    native = EmulatorBackend(small.chip, native=True)
    with pytest.raises(BackendError, match="not coupled"):
        native.compile(Circuit(7, (Op("cz", (0, 6)),)))
    with pytest.raises(BackendError, match="not a native gate"):
        native.compile(Circuit(1, (Op("h", (0,)),)))
    with pytest.raises(BackendError, match="no qubit 7"):
        native.compile(Circuit(8, ()))
    with pytest.raises(BackendError, match="packing chooses"):
        EmulatorBackend(small.chip, pack=True, layout=(0,))
    compiled = small.compile(ansatz.qtha(2, 1))
    with pytest.raises(BackendError, match="too many shots"):
        compiled.run(np.zeros((1, compiled.circuit.n_params)), 10_001)
    for rows in (np.zeros((1, 1)), np.full((1, compiled.circuit.n_params), np.nan)):
        with pytest.raises(CircuitError):
            compiled.run(rows, 10)
    with pytest.raises(CircuitError, match="shape"):
        compiled.probabilities(torch.zeros(1, 1))


def test_packed_rows() -> None:
    """Row i runs on place i mod per_program, with the noise of that place."""
    chip = random_chip([*RING, (2, 4), (4, 5), (5, 6), (6, 7)], 1)
    circuit = Circuit(2, (Op("ry", (0,), Angle(0)), Op("cx", (0, 1))), 0, 1)
    packed = EmulatorBackend(chip, pack=True).compile(circuit)
    assert packed.per_program == 4
    params = np.linspace(0, 2, 7)[:, None]
    found = packed.run(params, None).probabilities()
    for i, place in enumerate([*packed.places, *packed.places][:7]):
        solo = EmulatorBackend(chip, native=True, layout=place.qubits).compile(to_native(circuit))
        assert np.abs(found[i] - solo.run(params[i : i + 1], None).probabilities()[0]).max() < 1e-14
    counts = packed.run(params, 9000, seed=2)
    statistic = ((counts.probabilities() - found) ** 2 / found).sum(axis=1) * 9000
    assert statistic.max() < stats.chi2.ppf(1 - 1e-6, 3)
    one = packed.run(params[:2], None).probabilities()
    assert np.array_equal(one, found[:2])


@settings(deadline=None, max_examples=60)
@given(chips(), st.integers(0, 2**32 - 1))
def test_any_chip_gives_distributions(chip: Chip, seed: int) -> None:
    """Extreme times and errors, dead parts: on every live coupler in turn, non-negative and of sum 1."""
    live = list(chip.live_qubits)
    pairs = [(live.index(a), live.index(b)) for a, near in chip.neighbours.items() for b in near]
    if not live:
        with pytest.raises(BackendError):
            EmulatorBackend(chip).compile(Circuit(1, ()))
        return
    circuit = random_native(len(live), pairs, 25, np.random.default_rng(seed))
    compiled = EmulatorBackend(chip, native=True, layout=live).compile(circuit)
    table = compiled.run(np.array([[0.1, 2.0, -1.0]]), None).probabilities()
    raw = compiled.probabilities(torch.tensor([[0.1, 2.0, -1.0]], dtype=torch.float64)).numpy()
    assert np.isfinite(table).all()
    assert raw.min() > -1e-12
    assert abs(raw.sum() - 1) < 1e-12


def test_estimate() -> None:
    backend = EmulatorBackend("wukong-72")
    assert backend.estimate(1, 1000) == pytest.approx(0.16)
    assert backend.estimate(300, 1000) == pytest.approx(48.0)


@pytest.mark.parametrize("state", published_counts.PUBLISHED)
def test_published_counts_lie_inside_the_interval(state: str) -> None:
    """Raw counts of the 180-qubit chip against the central 99% over calibrations, good places and shots; not by being wide:
    a noiseless chip's counts lie outside."""
    circuit, published = published_counts.PUBLISHED[state]
    found = published_counts.intervals(circuit, seeds=2, best=0.25)
    for outcome, count in published.items():
        low, high = found[outcome]
        assert low <= count <= high
    ends = [outcome for outcome in found if "+" in outcome]
    low, high = found[ends[0]]
    assert high < published_counts.SHOTS
    assert high - low < 100


def test_noise_aware_training() -> None:
    """The executor is one for adapters: near the simulator on a quiet chip, gradients of both kinds, Z words."""
    chip = load_chip("wukong-180")
    executor = NoisyExecutor(EmulatorBackend(chip))
    assert isinstance(executor, Executor)
    circuit = ansatz.qtha(4, 1)
    torch.manual_seed(0)
    inputs = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    angles = torch.randn(circuit.n_angles, dtype=torch.float64, requires_grad=True)
    noisy = executor.compile(circuit)(inputs, angles)
    ideal = Simulator().compile(circuit)(inputs, angles)
    assert noisy.shape == ideal.shape == (2, 3, 4)
    assert 1e-3 < (noisy - ideal).abs().max() < 0.6
    run = executor.compile(circuit, [Observable.pauli("ZZII"), Observable.z(3)])
    assert torch.autograd.gradcheck(lambda a, b: run(a, b), (inputs[0, :1].detach().requires_grad_(), angles), fast_mode=True)
    assert run(inputs.bfloat16(), angles.float()).dtype == torch.float32
    with pytest.raises(CircuitError, match="BackendExecutor"):
        executor.compile(circuit, [Observable.pauli("XIII")])
    with pytest.raises(CircuitError, match="wrong shape"):
        run(inputs, angles[:-1])
    target = torch.tensor([0.3, -0.2, 0.1, 0.4], dtype=torch.float64)
    run = executor.compile(circuit)
    optimiser, losses = torch.optim.Adam([angles], 0.1), []
    for _ in range(15):
        optimiser.zero_grad()
        loss = ((run(inputs[0, 0].detach(), angles) - target) ** 2).sum()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]


def test_the_order_of_bits() -> None:
    chip = random_chip(RING, 9)
    circuit = Circuit(3, (Op("x", (0,)), Op("x", (2,))))
    table = EmulatorBackend(chip).compile(circuit).run(np.zeros((1, 0)), None).probabilities()[0]
    assert table.argmax() == 0b101
