"""Packing: disjoint live qubits, enough of them, the guard, and tenants that do not notice each other."""

from __future__ import annotations

import dataclasses

import networkx
import numpy as np
import pytest
import torch
from scipy import stats

from qpeft.backends.emulator.backend import EmulatedCircuit, EmulatorBackend
from qpeft.backends.emulator.chip import Chip, load_chip
from qpeft.backends.emulator.packing import PackedProgram, capacity, pack
from qpeft.backends.emulator.routing import check_layout
from qpeft.circuits import ansatz
from qpeft.circuits.ir import Circuit, Op
from qpeft.errors import BackendError
from tests.backends.emulator.random_chips import random_chip

LINE = Circuit(5, tuple(Op("cz", (q, q + 1)) for q in range(4)))


def with_dead(name: str, share: float, seed: int = 0) -> Chip:
    """The shipped lattice with exactly this share of its couplers dead."""
    chip = load_chip(name)
    order = np.random.default_rng(seed).permutation(len(chip.couplers))
    gone = set(order[: round(share * len(order))].tolist())
    couplers = (dataclasses.replace(c, enabled=i not in gone, error_cz=0.03) for i, c in enumerate(chip.couplers))
    return dataclasses.replace(chip, couplers=tuple(couplers))


def check_program(program: PackedProgram, chip: Chip, guard: int = 0) -> None:
    assert len(set(program.qubits)) == len(program.qubits)
    graph = networkx.Graph(c.qubits for c in chip.couplers)
    distance = dict(networkx.all_pairs_shortest_path_length(graph, cutoff=guard + 1))
    for number, place in enumerate(program.places):
        check_layout(place.circuit, place.qubits, chip)
        for other in program.places[:number]:
            assert all(distance[a].get(b, guard + 1) > guard for a in place.qubits for b in other.qubits)


@pytest.mark.parametrize(
    ("name", "share", "least"), [("wukong-72", 0, 14), ("wukong-72", 0.25, 11), ("wukong-180", 0, 35), ("wukong-180", 0.25, 28)]
)
def test_lines_of_five_that_fit(name: str, share: float, least: int) -> None:
    chip = with_dead(name, share)
    places = capacity(LINE, chip)
    assert len(places) >= least
    check_program(PackedProgram(tuple(range(len(places))), places), chip)


@pytest.mark.parametrize("guard", [1, 2])
def test_guard(guard: int) -> None:
    chip = with_dead("wukong-72", 0.25)
    places = capacity(LINE, chip, guard=guard)
    assert len(places) >= {1: 4, 2: 3}[guard]
    check_program(PackedProgram(tuple(range(len(places))), places), chip, guard)
    with pytest.raises(BackendError, match="guard"):
        pack([LINE], chip, guard=-1)


def test_few_tenants_get_the_best_qubits() -> None:
    chip = load_chip("wukong-72")
    (program,) = pack([LINE], chip)
    best = capacity(LINE, chip)
    costs = [sum(chip.neighbours[a][b] for a, b in zip(p.qubits, p.qubits[1:], strict=False)) for p in (*program.places, *best)]
    assert costs[0] <= min(costs[1:]) * 1.5
    with_worst = np.mean(costs[1:])
    assert costs[0] < with_worst


@pytest.fixture(scope="module")
def mixed() -> tuple[EmulatorBackend, list[Circuit], list[PackedProgram]]:
    """Twenty circuits of four kinds, some of which need swaps, on the chip with dead couplers."""
    backend = EmulatorBackend("wukong-72")
    kinds = [ansatz.qtha(4, 1), ansatz.hardware_efficient(5, 1), ansatz.qtha(3, 1), ansatz.hardware_efficient(2, 2)]
    circuits = [kinds[i % 4] for i in range(20)]
    return backend, circuits, pack(circuits, backend.chip, seed=3)


def test_every_circuit_is_placed_once(mixed: tuple[EmulatorBackend, list[Circuit], list[PackedProgram]]) -> None:
    backend, circuits, programs = mixed
    assert sorted(t for program in programs for t in program.tenants) == list(range(20))
    assert len(programs) == 2
    for program in programs:
        check_program(program, backend.chip)
        for tenant, place in zip(program.tenants, program.places, strict=True):
            assert len(place.measured) == circuits[tenant].n_qubits
    assert pack(circuits, backend.chip, seed=3) == programs


def rows_for(program: PackedProgram, batch: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.uniform(-3, 3, (batch, place.circuit.n_params)) for place in program.places]


def solo(backend: EmulatorBackend, program: PackedProgram, number: int, rows: np.ndarray) -> np.ndarray:
    """The tenant alone on its qubits."""
    place = program.places[number]
    circuit = Circuit(len(place.measured), (), place.circuit.n_inputs, place.circuit.n_params)  # what was asked for, by its size
    return EmulatedCircuit(backend, circuit, (place,)).probabilities(torch.from_numpy(rows)).numpy()


def test_a_tenants_exact_distribution_is_that_of_its_solo_run(
    mixed: tuple[EmulatorBackend, list[Circuit], list[PackedProgram]],
) -> None:
    backend, _, programs = mixed
    for program in programs:
        rows = rows_for(program, 2, 0)
        starts = np.cumsum([0] + [place.circuit.n_qubits for place in program.places])
        groups = [[int(start) + q for q in place.measured] for start, place in zip(starts, program.places, strict=False)]
        together = backend.compile_packed(program).marginals(torch.from_numpy(program.params(rows)), groups)
        for number, found in enumerate(together):
            assert np.abs(found.numpy() - solo(backend, program, number, rows[number])).max() < 1e-13


def test_counts_split_back(mixed: tuple[EmulatorBackend, list[Circuit], list[PackedProgram]]) -> None:
    """Chi-square of each tenant's counts with its solo distribution, below the 1 - 1e-6 quantile: one in 25,000 seeds fails."""
    backend, _, programs = mixed
    program, shots = programs[0], 4000
    rows = rows_for(program, 2, 1)
    counts = backend.compile_packed(program).run(program.params(rows), shots, seed=5)
    tenants = program.split(counts)
    assert len(tenants) == len(program.tenants)
    for number, tenant in enumerate(tenants):
        seen = tenant.probabilities() * shots
        assert seen.sum(axis=1).tolist() == pytest.approx([shots] * 2)
        expected = solo(backend, program, number, rows[number]) * shots
        assert expected.min() > 5  # where the chi-square distribution holds
        statistic = ((seen - expected) ** 2 / expected).sum(axis=1)
        assert statistic.max() < stats.chi2.ppf(1 - 1e-6, seen.shape[1] - 1)


def test_tenants_are_independent(mixed: tuple[EmulatorBackend, list[Circuit], list[PackedProgram]]) -> None:
    """The correlation of two tenants' bits is noise: below 5 / sqrt(shots)."""
    backend, _, programs = mixed
    program, shots = programs[0], 4000
    counts = backend.compile_packed(program).run(program.params(rows_for(program, 1, 2)), shots, seed=6)
    bits, weights = next(iter(counts))
    first, second = bits[:, 0], bits[:, program.places[0].circuit.n_qubits]
    covariance = np.cov(first.astype(float), second.astype(float), fweights=weights.astype(int))
    assert abs(covariance[0, 1]) / np.sqrt(covariance[0, 0] * covariance[1, 1]) < 5 / np.sqrt(shots)


def test_what_does_not_fit_goes_on_another_program() -> None:
    chip = random_chip([(q, q + 1) for q in range(10)], 0)
    programs = pack([LINE] * 5, chip)
    assert [len(program.tenants) for program in programs] == [2, 2, 1]
    with pytest.raises(BackendError, match="more qubits"):
        pack([Circuit(12, ())], chip)
    assert pack([], chip) == []
    held = pack([LINE], chip, free=[4, 5, 6, 7, 8])[0]
    assert set(held.qubits) == {4, 5, 6, 7, 8}
